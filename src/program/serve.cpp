// serve: the server on the command line: its sockets, its log, its signals. What it does with
// messages is all in the header.
#include <array>
#include <csignal>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../modules/modules.hpp"
#include "command_line.hpp"
#include "configuration.hpp"
#include "lifetime.hpp"
#include "subcommands.hpp"
#include "trace.hpp"

namespace program {

namespace {

using sipmsg::ListenerSettings;
using sipmsg::Settings;

struct ServeArguments {
  std::string directory;
  std::vector<ListenerSettings> listeners;
  bool trace = false;
};

/// "udp:127.0.0.1:5060" or "tcp:[::1]:5060". An explanation where it is neither, "" where all is
/// well.
std::string parse_listen(std::string_view text, ListenerSettings& listener) {
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

std::optional<int> read(ServeArguments& arguments, int argc, char** argv) {
  std::vector<std::string> listen;
  CommandLine command;
  command.usage = "sipmsg serve [-c DIR] [--listen TYPE:HOST:PORT]... [--trace]";
  command.summary = "Relays chat messages between the softphones that register here.";
  const Option options[] = {
      {"-c", "DIR", "read DIR/ysipchan.conf and DIR/regfile.conf, as Yate has them",
       &arguments.directory},
      {"--listen", "TYPE:HOST:PORT",
       "where to listen instead: udp or tcp, a numeric address, a port;\n"
       "may be given several times, as in --listen udp:192.0.2.1:5060\n"
       "--listen 'tcp:[::1]:5060'",
       &listen},
      {"--trace", "", "show every SIP message on standard error", &arguments.trace},
  };
  command.options = options;
  command.notes =
      "Without -c any user may register with any password, from this machine only. SIGHUP reads "
      "the\n"
      "configuration anew, or ends the server where there is none; SIGINT and SIGTERM end it.";
  if (const auto status = read_arguments(command, argc, argv)) return status;
  for (const std::string& text : listen) {
    ListenerSettings listener;
    if (const std::string wrong = parse_listen(text, listener); !wrong.empty()) {
      complain(wrong);
      return exit_usage;
    }
    arguments.listeners.push_back(std::move(listener));
  }
  return std::nullopt;
}

/// The configuration, and what the command line says instead.
bool load(const ServeArguments& arguments, Settings& settings, modules::Modules& extensions,
          sipmsg::Diagnostics& diagnostics) {
  const bool usable = load_configuration(arguments.directory, settings, extensions, diagnostics);
  if (!arguments.listeners.empty()) settings.listeners = arguments.listeners;
  settings.trace = settings.trace || arguments.trace;
  return usable;
}

/// What to type into a softphone; for who started the server without any configuration.
void print_welcome(const Settings& settings) {
  const ListenerSettings& first = settings.listeners.front();
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
  for (const ListenerSettings& listener : settings.listeners) {
    const auto ip = sipmsg::parse_ip(listener.address);
    if (ip && ip->is_loopback()) continue;
    std::fprintf(stderr,
                 "warning: whoever can reach %s can register and send under any name; "
                 "use -c DIR to ask for passwords\n",
                 listener.address.c_str());
  }
}

void print_line(sipmsg::Severity severity, std::string_view text) {
  std::fprintf(stderr, "%s: %.*s\n", sipmsg::severity_name(severity), static_cast<int>(text.size()),
               text.data());
}

/// One server on one loop, with the signals that end or reload it.
class Serving {
 public:
  Serving(const ServeArguments& arguments, Settings settings,
          std::unique_ptr<modules::Modules> extensions)
      : arguments_(arguments),
        settings_(std::move(settings)),
        server_(uv_default_loop(), settings_),
        extensions_(std::move(extensions)) {
    server_.on_log(print_line);
    if (settings_.trace) server_.on_trace(print_trace);
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
    extensions_->start(uv_default_loop(), server_, settings_, print_line);
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

  /// Without a configuration there is nothing to read anew: the terminal was closed.
  bool reloads_at(int number) const { return number == SIGHUP && !arguments_.directory.empty(); }

  void watch(uv_signal_t& handle, int number) {
    uv_signal_init(uv_default_loop(), &handle);
    handle.data = this;
    if (is_ignored(number) && !reloads_at(number)) return;  // nohup wants us to stay
    uv_signal_start(
        &handle,
        [](uv_signal_t* signal, int caught) {
          auto* serving = static_cast<Serving*>(signal->data);
          serving->reloads_at(caught) ? serving->reload() : serving->end();
        },
        number);
  }

  void end() {
    extensions_->stop();
    server_.close();
    for (uv_signal_t& signal : signals_) {
      auto* handle = reinterpret_cast<uv_handle_t*>(&signal);
      if (uv_is_closing(handle) == 0) uv_close(handle, nullptr);
    }
  }

  /// A configuration that cannot be used leaves the one that is in force.
  void reload() {
    Settings settings;
    auto extensions = std::make_unique<modules::Modules>();
    sipmsg::Diagnostics diagnostics;
    const bool usable = load(arguments_, settings, *extensions, diagnostics);
    print(stderr, diagnostics);
    if (!usable) return complain("the configuration stays as it was");
    extensions_->stop();
    server_.reload(settings);
    extensions_ = std::move(extensions);
    settings_ = std::move(settings);
    extensions_->start(uv_default_loop(), server_, settings_, print_line);
    std::fputs("reloaded\n", stderr);
  }

  const ServeArguments& arguments_;
  Settings settings_;
  sipmsg::Server server_;
  std::unique_ptr<modules::Modules> extensions_;
  std::array<uv_signal_t, 3> signals_{};
};

}  // namespace

int serve(int argc, char** argv) {
  ServeArguments arguments;
  if (const auto status = read(arguments, argc, argv)) return *status;
  Settings settings;
  auto extensions = std::make_unique<modules::Modules>();
  sipmsg::Diagnostics diagnostics;
  const bool usable = load(arguments, settings, *extensions, diagnostics);
  print(stderr, diagnostics);
  if (!usable) return exit_usage;
  if (arguments.directory.empty()) print_welcome(settings);
  return Serving(arguments, std::move(settings), std::move(extensions)).run();
}

}  // namespace program
