// receive: messages as lines, as JSON, or as the input of a program.
#include <memory>
#include <string>

#include "account.hpp"
#include "auto_reply.hpp"
#include "command_line.hpp"
#include "incoming.hpp"
#include "jobs.hpp"
#include "lifetime.hpp"
#include "outcome.hpp"
#include "output.hpp"
#include "presence.hpp"
#include "screen_text.hpp"
#include "subcommands.hpp"
#include "trace.hpp"

namespace program {

namespace {

struct ReceiveArguments {
  Account account;
  std::string as;
  std::string listen;
  bool json = false;
  std::uint32_t count = 0;  ///< 0: without end
  std::uint32_t timeout_ms = 0;
  std::string program;
  std::uint32_t jobs = 4;
  std::string auto_reply;
};

std::optional<int> read(ReceiveArguments& arguments, int argc, char** argv) {
  const Option options[] = {
      {"--as", "URI", "who to be: registers as sip:USER@SERVER", &arguments.as},
      {"--listen", "TYPE:HOST:PORT", "without registering, messages that come to this address",
       &arguments.listen},
      {"--json", "", "print a JSON object for each message", &arguments.json},
      {"--count", "N", "end after so many messages", NumberTarget{&arguments.count, 1, 1000000000}},
      {"--timeout", "SECONDS", "end after this time", SecondsTarget{&arguments.timeout_ms}},
      {"--exec", "PROGRAM", "run it for each message, instead of printing", &arguments.program},
      {"--jobs", "N", "at most so many of them at once; default: 4",
       NumberTarget{&arguments.jobs, 1, 1000}},
      {"--auto-reply", "TEXT", "answer with this; nobody more often than once in ten seconds",
       &arguments.auto_reply},
  };
  CommandLine command;
  command.usage = "sipmsg receive --as URI [OPTIONS]";
  command.summary =
      "Prints the messages that come, each as one line: \"sip:101@example.org: hello\". In it a "
      "line\n"
      "end is written as \\n, and what a terminal would obey is left out.";
  command.options = options;
  command.shared = arguments.account.options();
  command.notes =
      "--json prints from, display_name, to, date (RFC 3339), call_id, kind, content_type, and by "
      "kind:\n"
      "text (text, html); body_base64 (other); is_composing (composing); message_id and\n"
      "delivery_status (notification). The last two are printed with --json only, and not "
      "counted.\n\n"
      "--exec: the program has the text, or else the body, on its standard input, and in its\n"
      "environment SIPMSG_FROM, SIPMSG_DISPLAY_NAME, SIPMSG_TO, SIPMSG_DATE, SIPMSG_CALL_ID and\n"
      "SIPMSG_CONTENT_TYPE. The sender gets 200 where it ends with status 0, 480 with 75, 603 "
      "with\n"
      "any other; 500 where it cannot be run or a signal ends it; 503 where 100 wait already. It\n"
      "should end within 30 seconds: later the sender has given up.\n\n"
      "Exit status: 0 done, 1 the registration was refused, 2 wrong usage, 3 the server or "
      "standard\n"
      "output is gone, or there were fewer than --count messages, or none before --timeout.";
  return read_arguments(command, argc, argv);
}

std::string complete(ReceiveArguments& arguments) {
  if (arguments.as.empty() && arguments.listen.empty()) return "--as URI is missing, or --listen";
  if (!arguments.as.empty()) {
    if (std::string wrong = check_uri("--as", arguments.as); !wrong.empty()) return wrong;
  } else if (!arguments.auto_reply.empty()) {
    return "--auto-reply needs --as: it says who answers";
  }
  return arguments.account.complete(uri_of(arguments.as));
}

int code_of_exit_status(int status) {
  constexpr int try_later = 75;  // EX_TEMPFAIL of sysexits.h
  if (status == 0) return 200;
  if (status < 0) return 500;
  return status == try_later ? 480 : 603;
}

class Receiving {
 public:
  explicit Receiving(const ReceiveArguments& arguments)
      : arguments_(arguments),
        lifetime_(uv_default_loop(),
                  [this](int number) {
                    complain(std::string("ended by ") + signal_name(number));
                    cut_short(is_short() ? exit_network : exit_done);
                  }),
        jobs_(uv_default_loop(), arguments.program, arguments.jobs),
        endpoint_(uv_default_loop(), agent_options(arguments)),
        presence_(endpoint_, arguments.account,
                  {[](const std::string& line) { std::fprintf(stderr, "%s\n", line.c_str()); },
                   [] {}, [this](int status) { cut_short(status); }}) {
    if (arguments.account.trace()) endpoint_.on_trace(print_trace);
    endpoint_.on_message([this](const sipmsg::Message& message, sipmsg::Reply reply) {
      take(read_incoming(message), reply);
    });
  }

  int run() {
    const int status = arguments_.listen.empty() ? presence_.enroll(uri_of(arguments_.as))
                                                 : presence_.listen(arguments_.listen);
    if (status != exit_done) {
      end(status);
    } else if (arguments_.timeout_ms != 0) {
      timeout_ = std::make_unique<Timer>(uv_default_loop());
      timeout_->start(arguments_.timeout_ms, 0, [this] { on_timeout(); });
    }
    return lifetime_.run();
  }

 private:
  static sipmsg::AgentOptions agent_options(const ReceiveArguments& arguments) {
    sipmsg::AgentOptions options;
    options.delivery_notices = true;
    options.login = arguments.account.login();
    return options;
  }

  void on_timeout() {
    if (!is_short() && count_ > 0) return cut_short(exit_done);
    complain(count_ == 0 ? "no message came in time"
                         : std::to_string(count_) + " of " + std::to_string(arguments_.count) +
                               " messages came in time");
    cut_short(exit_network);
  }

  /// Fewer than were asked for.
  bool is_short() const { return count_ < arguments_.count; }

  void take(const Incoming& incoming, const sipmsg::Reply& reply) {
    if (is_finishing_) {
      reply.send(480);
      return;
    }
    if (!incoming.is_message()) {
      reply.send(200);
      if (arguments_.json) print(incoming);
      return;
    }
    if (!arguments_.program.empty()) {
      if (!run_program(incoming, reply)) return;
    } else {
      if (!print(incoming)) {
        reply.send(500);
        return;
      }
      reply.send(200);
    }
    ++count_;
    answer(incoming);
    if (count_ == arguments_.count) finish(exit_done);
  }

  bool print(const Incoming& incoming) {
    if (print_line_out(arguments_.json ? incoming.json().text() : incoming.line())) return true;
    cut_short(exit_network);
    return false;
  }

  bool run_program(const Incoming& incoming, const sipmsg::Reply& reply) {
    Job job;
    const bool is_text = incoming.kind != sipmsg::ContentKind::other;
    job.input = is_text ? incoming.text : incoming.body;
    job.environment = {{"SIPMSG_FROM", printable(incoming.from)},
                       {"SIPMSG_DISPLAY_NAME", printable(incoming.display_name)},
                       {"SIPMSG_TO", printable(incoming.to)},
                       {"SIPMSG_DATE", incoming.date},
                       {"SIPMSG_CALL_ID", printable(incoming.call_id)},
                       {"SIPMSG_CONTENT_TYPE", printable(incoming.content_type)}};
    job.done = [this, reply](int status) {
      reply.send(code_of_exit_status(status));
      if (is_finishing_) stop_when_idle();
    };
    if (jobs_.add(std::move(job))) return true;
    reply.send(503, {}, {{"Retry-After", "10"}});
    return false;
  }

  void answer(const Incoming& incoming) {
    if (arguments_.auto_reply.empty() || incoming.is_auto_submitted) return;
    const auto peer = sipmsg::parse_uri(incoming.from);
    const std::string own = uri_of(arguments_.as);
    if (!peer || address_of_record(*peer) == address_of_record(*sipmsg::parse_uri(own))) return;
    if (!limit_.allows(address_of_record(*peer), uv_now(uv_default_loop()))) return;
    sipmsg::Outgoing outgoing;
    outgoing.to = incoming.from;
    outgoing.from = arguments_.as;
    outgoing.body = arguments_.auto_reply;
    outgoing.headers = {{"Auto-Submitted", "auto-replied"}};
    outgoing.login = arguments_.account.login();
    // Through our server: it knows where everybody is, and no stranger's own server gets to see
    // what our password makes of its challenge.
    outgoing.proxy = arguments_.listen.empty() ? arguments_.account.server_of(own)
                                               : arguments_.account.proxy_for(incoming.from);
    ++answers_under_way_;
    const sipmsg::Error error =
        endpoint_.send(outgoing, [this, to = incoming.from](const sipmsg::Outcome& outcome) {
          if (!outcome.ok()) complain("answer to " + printable(to) + ": " + sentence(outcome));
          --answers_under_way_;
          if (is_finishing_) stop_when_idle();
        });
    if (!error) return;
    --answers_under_way_;
    complain("answer to " + printable(incoming.from) + ": " + sentence(error));
  }

  /// Takes no more, and ends when what is under way is done.
  void finish(int status) {
    if (is_finishing_) return;
    is_finishing_ = true;
    status_ = status;
    stop_when_idle();
  }
  /// The same, whatever is under way.
  void cut_short(int status) {
    is_cut_short_ = true;
    finish(status);
    stop_when_idle();
  }

  void stop_when_idle() {
    const bool is_busy = !jobs_.is_idle() || answers_under_way_ > 0;
    if (is_stopping_ || (is_busy && !is_cut_short_)) return;
    is_stopping_ = true;
    presence_.stop([this] { end(status_); });
  }

  void end(int status) {
    if (!lifetime_.end(status)) return;
    timeout_.reset();
    jobs_.close();
    endpoint_.close();
  }

  const ReceiveArguments& arguments_;
  Lifetime lifetime_;
  std::unique_ptr<Timer> timeout_;
  AutoReplyLimit limit_;
  Jobs jobs_;
  std::uint32_t count_ = 0;
  std::uint32_t answers_under_way_ = 0;
  bool is_finishing_ = false;
  bool is_cut_short_ = false;
  bool is_stopping_ = false;
  int status_ = exit_done;
  sipmsg::Endpoint endpoint_;
  Presence presence_;
};

}  // namespace

int receive(int argc, char** argv) {
  ReceiveArguments arguments;
  if (const auto status = read(arguments, argc, argv)) return *status;
  if (const std::string wrong = complete(arguments); !wrong.empty()) {
    complain(wrong);
    return exit_usage;
  }
  return Receiving(arguments).run();
}

}  // namespace program
