// The program: its subcommands, one function each. Everything it does is in the header; here are
// the command line, the terminal, signals and exit statuses.
#include <array>
#include <csignal>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "sipmsg.hpp"

namespace {

using sipmsg::Diagnostic;
using sipmsg::Diagnostics;
using sipmsg::Error;
using sipmsg::Flow;
using sipmsg::Server;
using sipmsg::Settings;
using sipmsg::Severity;

/// What a caller can tell from the exit status.
enum Exit : int { exit_done = 0, exit_refused = 1, exit_usage = 2, exit_network = 3 };

constexpr char usage_text[] =
    R"(sipmsg: a server for SIP chat messages (RFC 3428)

usage: sipmsg SUBCOMMAND [OPTIONS]

  serve     relays messages between softphones; without options, on this machine only
  check     reads a configuration directory and names every mistake, file and line

  --version, --help; each subcommand has --help, too

Exit status: 0 done, 1 refused by the other side, 2 usage or configuration, 3 network.
)";

constexpr char serve_usage[] =
    R"(usage: sipmsg serve [-c DIR] [--listen TYPE:HOST:PORT]... [--trace]

Relays chat messages between the softphones that register here.

  -c DIR                   read DIR/ysipchan.conf and DIR/regfile.conf, as Yate has them
  --listen TYPE:HOST:PORT  where to listen instead: udp or tcp, a numeric address, a port;
                           may be given several times, as in --listen udp:192.0.2.1:5060
                           --listen 'tcp:[::1]:5060'
  --trace                  show every SIP message on standard error

Without -c any user may register with any password, from this machine only. SIGHUP reads the
configuration anew, or ends the server where there is none; SIGINT and SIGTERM end it.
)";

constexpr char check_usage[] =
    R"(usage: sipmsg check -c DIR

Reads DIR/ysipchan.conf and DIR/regfile.conf, and prints what is wrong or worth knowing, each with
file and line. Nothing is sent. Exit status 2 where the server could not start with it.
)";

void complain(const std::string& text) { std::fprintf(stderr, "sipmsg: %s\n", text.c_str()); }

/// Ends with exit_usage where something is wrong with the arguments.
int usage_error(const std::string& text, const char* usage) {
  complain(text);
  std::fprintf(stderr, "%s", usage);
  return exit_usage;
}

// ---- arguments
// -----------------------------------------------------------------------------------

struct ServeArguments {
  std::string directory;
  std::vector<sipmsg::ListenerSettings> listeners;
  bool trace = false;
  bool help = false;
};

/// "udp:127.0.0.1:5060" or "tcp:[::1]:5060". An explanation where it is neither, "" where all is
/// well.
std::string parse_listen(std::string_view text, sipmsg::ListenerSettings& listener) {
  const std::string quoted = "--listen " + std::string(text) + ": ";
  const std::size_t colon = text.find(':');
  const auto type = sipmsg::parse_transport(text.substr(0, colon));
  if (colon == std::string_view::npos || !type) {
    return quoted + "expected udp:HOST:PORT or tcp:HOST:PORT";
  }
  const auto address = sipmsg::parse_socket_address(text.substr(colon + 1));
  if (!address) {
    return quoted + "expected a numeric address and a port, such as 127.0.0.1:5060 or [::1]:5060";
  }
  listener.name = std::string(text);
  listener.type = *type;
  listener.address = sipmsg::to_text(address->ip);
  listener.ipv6 = address->ip.is_ipv6();
  listener.port = address->port;
  return {};
}

/// Reads the arguments of `serve` and `check`; says what is wrong, or "" where all is well.
std::string parse_arguments(int argc, char** argv, bool is_serve, ServeArguments& arguments) {
  for (int i = 2; i < argc; ++i) {
    std::string_view name = argv[i];
    if (name == "--help" || name == "-h") {
      arguments.help = true;
      return {};
    }
    if (is_serve && name == "--trace") {
      arguments.trace = true;
      continue;
    }
    const bool is_directory = name == "-c";
    if (!is_directory && !(is_serve && name == "--listen")) {
      return "unknown argument " + std::string(name);
    }
    if (i + 1 == argc) return std::string(name) + " needs a value";
    const std::string_view value = argv[++i];
    if (is_directory) {
      arguments.directory = value;
      continue;
    }
    sipmsg::ListenerSettings listener;
    if (std::string wrong = parse_listen(value, listener); !wrong.empty()) return wrong;
    arguments.listeners.push_back(std::move(listener));
  }
  return {};
}

// ---- configuration
// -------------------------------------------------------------------------------

void print(std::FILE* out, const Diagnostics& diagnostics) {
  for (const Diagnostic& diagnostic : diagnostics) {
    std::fprintf(out, "%s\n", to_text(diagnostic).c_str());
  }
}

/// The settings for these arguments. False where they cannot be used; why stands in `diagnostics`.
bool load(const ServeArguments& arguments, Settings& settings, Diagnostics& diagnostics) {
  bool usable = true;
  if (arguments.directory.empty()) {
    settings = sipmsg::open_settings();
  } else {
    usable = !sipmsg::load_directory(arguments.directory, settings, diagnostics);
  }
  if (!arguments.listeners.empty()) settings.listeners = arguments.listeners;
  settings.trace = settings.trace || arguments.trace;
  return usable;
}

// ---- serve
// ---------------------------------------------------------------------------------------

/// What to type into a softphone; for who started the server without any configuration.
void print_welcome(const Settings& settings) {
  const sipmsg::ListenerSettings& first = settings.listeners.front();
  sipmsg::SocketAddress address;
  address.ip = sipmsg::parse_ip(first.address).value_or(sipmsg::IpAddress());
  address.port = first.port;
  const std::string where = sipmsg::to_text(address);
  std::fprintf(stderr,
               "sipmsg " SIPMSG_VERSION
               ": open server, no configuration. Type into each softphone:\n"
               "  user name   any, another one in each: 101 in one, 102 in the other\n"
               "  password    any\n"
               "  domain      %s\n"
               "Then write from 101 to sip:102@%s, and back.\n",
               where.c_str(), where.c_str());
  for (const sipmsg::ListenerSettings& listener : settings.listeners) {
    const auto ip = sipmsg::parse_ip(listener.address);
    if (ip && ip->is_loopback()) continue;
    std::fprintf(stderr,
                 "warning: whoever can reach %s can register and send under any name; "
                 "use -c DIR to ask for passwords\n",
                 listener.address.c_str());
  }
}

void print_line(Severity severity, std::string_view text) {
  std::fprintf(stderr, "%s: %.*s\n", sipmsg::severity_name(severity), static_cast<int>(text.size()),
               text.data());
}

void print_trace(bool is_incoming, const Flow& flow, std::string_view octets) {
  std::fprintf(stderr, "%s %s %s, %zu octets\n", is_incoming ? "received from" : "sent to",
               std::string(transport_parameter(flow.transport)).c_str(),
               to_text(flow.remote).c_str(), octets.size());
  std::fwrite(octets.data(), 1, octets.size(), stderr);
  std::fputs("\n", stderr);
}

/// One server on one loop, with the signals that end or reload it.
class Serving {
 public:
  Serving(const ServeArguments& arguments, const Settings& settings)
      : arguments_(arguments), server_(uv_default_loop(), settings) {
    server_.on_log(print_line);
    if (settings.trace) server_.on_trace(print_trace);
  }

  int run() {
    if (const sipmsg::StartError error = server_.start()) {
      complain(error.text());
      if (error.error.place == UV_EADDRINUSE) {
        complain("another program has that port; --listen udp:127.0.0.1:5070 takes another one");
      }
      server_.close();
      uv_run(uv_default_loop(), UV_RUN_DEFAULT);
      return exit_network;
    }
    for (const sipmsg::Listener& listener : server_.listeners()) {
      std::fprintf(stderr, "listening %s %s\n",
                   std::string(transport_parameter(listener.transport)).c_str(),
                   to_text(listener.address).c_str());
    }
    for (std::size_t i = 0; i < signals_.size(); ++i) watch(signals_[i], signal_numbers[i]);
    std::fputs("ready\n", stderr);
    uv_run(uv_default_loop(), UV_RUN_DEFAULT);
    return exit_done;
  }

 private:
  static constexpr std::array<int, 3> signal_numbers = {SIGINT, SIGTERM, SIGHUP};

  void watch(uv_signal_t& handle, int number) {
    uv_signal_init(uv_default_loop(), &handle);
    handle.data = this;
    uv_signal_start(
        &handle,
        [](uv_signal_t* signal, int caught) {
          auto* serving = static_cast<Serving*>(signal->data);
          // Without a configuration there is nothing to read anew: the terminal was closed.
          const bool reloads = caught == SIGHUP && !serving->arguments_.directory.empty();
          reloads ? serving->reload() : serving->end();
        },
        number);
  }

  void end() {
    server_.close();
    for (uv_signal_t& signal : signals_) {
      auto* handle = reinterpret_cast<uv_handle_t*>(&signal);
      if (uv_is_closing(handle) == 0) uv_close(handle, nullptr);
    }
  }

  /// A configuration that cannot be used leaves the one that is in force.
  void reload() {
    Settings settings;
    Diagnostics diagnostics;
    const bool usable = load(arguments_, settings, diagnostics);
    print(stderr, diagnostics);
    if (!usable) return complain("the configuration stays as it was");
    server_.reload(settings);
    std::fputs("reloaded\n", stderr);
  }

  const ServeArguments& arguments_;
  sipmsg::Server server_;
  std::array<uv_signal_t, 3> signals_{};
};

int serve(const ServeArguments& arguments) {
  Settings settings;
  Diagnostics diagnostics;
  const bool usable = load(arguments, settings, diagnostics);
  print(stderr, diagnostics);
  if (!usable) return exit_usage;
  if (arguments.directory.empty()) print_welcome(settings);
  return Serving(arguments, settings).run();
}

// ---- check
// ---------------------------------------------------------------------------------------

int check(const ServeArguments& arguments) {
  if (arguments.directory.empty()) return usage_error("check needs -c DIR", check_usage);
  Settings settings;
  Diagnostics diagnostics;
  const bool usable = load(arguments, settings, diagnostics);
  print(stdout, diagnostics);
  if (usable) std::printf("%s: usable\n", arguments.directory.c_str());
  return usable ? exit_done : exit_usage;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view subcommand = argc > 1 ? argv[1] : "";
  if (subcommand == "--version") {
    std::puts("sipmsg " SIPMSG_VERSION);
    return exit_done;
  }
  if (subcommand == "--help" || subcommand == "-h") {
    std::fputs(usage_text, stdout);
    return exit_done;
  }
  const bool is_serve = subcommand == "serve";
  if (!is_serve && subcommand != "check") {
    return usage_error(subcommand.empty() ? "a subcommand is missing"
                                          : "unknown subcommand " + std::string(subcommand),
                       usage_text);
  }
  const char* usage = is_serve ? serve_usage : check_usage;
  ServeArguments arguments;
  const std::string wrong = parse_arguments(argc, argv, is_serve, arguments);
  if (!wrong.empty()) return usage_error(wrong, usage);
  if (arguments.help) {
    std::fputs(usage, stdout);
    return exit_done;
  }
  return is_serve ? serve(arguments) : check(arguments);
}
