// The program: which subcommand is meant. What each one does stands in src/program/, what SIP is in
// the header; here is only the way to them.
#include <cstdio>
#include <string>
#include <string_view>

#include "modules/modules.hpp"
#include "program/exit_status.hpp"
#include "program/subcommands.hpp"
#include "sipmsg.hpp"

#ifdef SIPMSG_WITH_JAVASCRIPT
#include "modules/javascript/main.hpp"
#endif
#ifdef SIPMSG_WITH_OFFLINE
#include "modules/offline/spool_command.hpp"
#endif

namespace {

struct Subcommand {
  std::string_view name;
  int (*run)(int argc, char** argv);
  const char* summary;  ///< null for what is not for people
};

constexpr Subcommand subcommands[] = {
    {"serve", program::serve,
     "relays messages between softphones; by itself, on this machine only"},
    {"send", program::send, "sends a message and says what became of it"},
    {"receive", program::receive, "prints messages that come, or hands them to a program"},
    {"chat", program::chat, "a softphone for text, on a terminal or in a pipe"},
    {"explain", program::explain, "takes a message apart, with the RFC section of each part"},
    {"check", program::check, "reads a configuration and names every mistake, file and line"},
#ifdef SIPMSG_WITH_OFFLINE
    {"spool", modules::spool_main, "lists, shows and drops messages that are kept for later"},
#endif
#ifdef SIPMSG_WITH_JAVASCRIPT
    {"run-script", modules::run_script_main, nullptr},
#endif
};

void print_usage(std::FILE* out) {
  std::fputs(
      "sipmsg: a server for SIP chat messages (RFC 3428), and its clients\n\n"
      "usage: sipmsg SUBCOMMAND [OPTIONS]\n\n",
      out);
  for (const Subcommand& subcommand : subcommands) {
    if (subcommand.summary == nullptr) continue;
    std::fprintf(out, "  %-9s %s\n", std::string(subcommand.name).c_str(), subcommand.summary);
  }
  std::fputs(
      "\n  --version, --help; each subcommand has --help, too\n\n"
      "Exit status: 0 done, 1 refused by the other side, 2 usage or configuration, 3 network.\n",
      out);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view name = argc > 1 ? argv[1] : "";
  for (const Subcommand& subcommand : subcommands) {
    if (subcommand.name == name) return subcommand.run(argc, argv);
  }
  if (name == "--version") {
    std::printf("sipmsg " SIPMSG_VERSION "\nmodules: %s\n", modules::module_names().c_str());
    return program::exit_done;
  }
  if (name == "--help" || name == "-h") {
    print_usage(stdout);
    return program::exit_done;
  }
  program::complain(name.empty() ? "a subcommand is missing"
                                 : "unknown subcommand " + std::string(name));
  print_usage(stderr);
  return program::exit_usage;
}
