// offline/spool_command: see spool_command.hpp.
#include "spool_command.hpp"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "spool.hpp"

namespace modules {

namespace {

enum Exit : int { exit_done = 0, exit_refused = 1, exit_usage = 2 };

constexpr char usage[] =
    R"(usage: sipmsg spool list -c DIR
       sipmsg spool show -c DIR NUMBER...
       sipmsg spool drop -c DIR NUMBER...

Looks after messages that are kept for users who are offline, in the directory that [offline] spool
of DIR/ysipchan.conf names. The server may be running.

  list   one line for each message: number, when it was accepted, until when it is kept, for whom,
         from whom, octets of its file
  show   a message as it stands in its file
  drop   removes messages: they are not delivered
)";

struct Arguments {
  std::string action;
  std::string directory;
  std::vector<std::string> numbers;
  bool help = false;
};

int complain(const std::string& text) {
  std::fprintf(stderr, "sipmsg: %s\n", text.c_str());
  return exit_usage;
}

/// What is wrong with the arguments; empty where all is well.
std::string parse(int argc, char** argv, Arguments& arguments) {
  for (int i = 2; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument == "--help" || argument == "-h") {
      arguments.help = true;
      return {};
    }
    if (argument == "-c") {
      if (++i == argc) return "-c needs a value";
      arguments.directory = argv[i];
    } else if (arguments.action.empty()) {
      arguments.action = argument;
    } else {
      arguments.numbers.emplace_back(argument);
    }
  }
  const std::string& action = arguments.action;
  if (action != "list" && action != "show" && action != "drop") {
    return "spool needs one of list, show or drop";
  }
  if (arguments.directory.empty()) return "spool needs -c DIR";
  if (action == "list" && !arguments.numbers.empty()) return "list takes no number";
  if (action != "list" && arguments.numbers.empty())
    return action + " needs the number of a message";
  return {};
}

/// Where the messages stand; empty, with a complaint, where that cannot be told.
std::string spool_of(const std::string& directory) {
  sipmsg::Settings settings;
  sipmsg::Diagnostics diagnostics;
  if (sipmsg::load_directory(directory, settings, diagnostics)) {
    for (const sipmsg::Diagnostic& diagnostic : diagnostics) {
      if (diagnostic.severity == sipmsg::Severity::error) complain(to_text(diagnostic));
    }
    return {};
  }
  if (settings.offline.spool.empty()) {
    complain(directory + "/ysipchan.conf: [offline] no spool is set: messages are kept in memory");
  }
  return settings.offline.spool;
}

/// A number as it is listed, or without its leading zeros.
std::optional<std::uint64_t> parse_number(const std::string& text) {
  return text.size() > 16 ? std::nullopt
                          : parse_spool_id(std::string(16 - text.size(), '0') + text);
}

int list(const std::string& spool) {
  std::string unusable;
  const SpoolContents contents = read_spool(spool, unusable);
  if (!unusable.empty()) return complain(unusable);
  std::printf("%-16s  %-20s  %-20s  %-15s  %-24s  %s\n", "NUMBER", "ACCEPTED", "UNTIL", "FOR",
              "FROM", "OCTETS");
  for (const SpoolContents::Kept& kept : contents.kept) {
    const KeptMessage& message = kept.message;
    std::printf("%s  %-20s  %-20s  %-15s  %-24s  %llu\n", spool_id_text(message.id).c_str(),
                sipmsg::format_date_time(message.kept_s).c_str(),
                sipmsg::format_date_time(message.expires_s).c_str(),
                on_one_line(message.user).c_str(), on_one_line(message.sender).c_str(),
                static_cast<unsigned long long>(kept.octets));
  }
  for (const std::string& remark : contents.remarks) complain(remark);
  return exit_done;
}

/// The text as it is, but on a terminal, which it could command.
void print(const std::string& text) {
  if (::isatty(STDOUT_FILENO) == 0) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    return;
  }
  for (char c : text) {
    const bool is_control =
        (static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t') || c == 0x7f;
    std::fputc(is_control ? '?' : c, stdout);
  }
}

/// 0, or a negative errno.
int show(const std::string& file) {
  const auto text = sipmsg::read_file(file);
  if (!text) return text.error().place;
  print(*text);
  return 0;
}

int drop(const std::string& file, std::uint64_t id) {
  if (::unlink(file.c_str()) < 0) return -errno;
  std::printf("dropped %s\n", spool_id_text(id).c_str());
  return 0;
}

}  // namespace

int spool_main(int argc, char** argv) {
  Arguments arguments;
  if (const std::string wrong = parse(argc, argv, arguments); !wrong.empty()) {
    complain(wrong);
    std::fputs(usage, stderr);
    return exit_usage;
  }
  if (arguments.help) {
    std::fputs(usage, stdout);
    return exit_done;
  }
  const std::string spool = spool_of(arguments.directory);
  if (spool.empty()) return exit_usage;
  if (arguments.action == "list") return list(spool);
  std::vector<std::uint64_t> ids;
  for (const std::string& number : arguments.numbers) {
    const auto id = parse_number(number);
    if (!id) return complain(on_one_line(number) + " is no number of a message");
    ids.push_back(*id);
  }
  int status = exit_done;
  for (const std::uint64_t id : ids) {
    const std::string file = spool_file(spool, id);
    const int result = arguments.action == "show" ? show(file) : drop(file, id);
    if (result == 0) continue;
    status = exit_refused;
    complain(result == -ENOENT ? spool + ": no message " + spool_id_text(id)
                               : file + ": " + sipmsg::describe({sipmsg::ErrorCode::file, result}));
  }
  return status;
}

}  // namespace modules
