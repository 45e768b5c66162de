// chat: a softphone for text: what is typed goes out, what comes is shown.
//
// One line is under way at a time (RFC 3428 8), so that lines arrive in their order; the others
// wait. "Is typing" is sent only while nothing else is, and not to who refuses it.
#include <algorithm>
#include <deque>
#include <memory>
#include <string>

#include "account.hpp"
#include "chat_view.hpp"
#include "command_line.hpp"
#include "composing.hpp"
#include "incoming.hpp"
#include "lifetime.hpp"
#include "outcome.hpp"
#include "presence.hpp"
#include "screen_text.hpp"
#include "subcommands.hpp"
#include "trace.hpp"

namespace program {

namespace {

using sipmsg::Outcome;
using sipmsg::Outgoing;

constexpr std::size_t max_waiting_lines = 100;
/// How long a line waits, at most, for the answer to "is typing".
constexpr std::uint32_t typing_deadline_ms = 2000;

struct ChatArguments {
  Account account;
  std::string as;
  std::string listen;
  std::string peer;
};

std::optional<int> read(ChatArguments& arguments, int argc, char** argv) {
  const Option options[] = {
      {"--as", "URI", "who to be: registers as sip:USER@SERVER", &arguments.as},
      {"--listen", "TYPE:HOST:PORT", "without a server: the peer reaches us at this address",
       &arguments.listen},
  };
  const Operand operands[] = {{"PEER-URI", &arguments.peer, true}};
  CommandLine command;
  command.usage = "sipmsg chat --as URI [OPTIONS] PEER-URI";
  command.summary = "Sends what is typed, line by line, and shows what comes.";
  command.options = options;
  command.operands = operands;
  command.shared = arguments.account.options();
  command.notes =
      "Lines that begin with / are commands: /to URI writes to somebody else, /quit ends, /help "
      "says\n"
      "so; //x sends /x. Behind each own line stands what became of it.\n\n"
      "In a pipe: each line of standard input is sent; \"> TEXT  [delivered: 200 OK]\" tells of "
      "it, and\n"
      "\"< URI: TEXT\" of each message that comes. It ends when all lines are answered.\n\n"
      "Exit status: 0 done, 1 the registration, or in a pipe a line, was refused, 2 wrong usage or "
      "a line\n"
      "that is too long, 3 no answer, a signal while lines waited, or nobody reads what is "
      "printed.";
  return read_arguments(command, argc, argv);
}

std::string complete(ChatArguments& arguments) {
  if (arguments.as.empty()) return "--as URI is missing";
  if (std::string wrong = check_uri("--as", arguments.as); !wrong.empty()) return wrong;
  if (std::string wrong = check_uri("PEER-URI", arguments.peer); !wrong.empty()) return wrong;
  return arguments.account.complete(uri_of(arguments.as));
}

/// The canonical form, by which two URIs name the same; the text itself where there is none.
std::string address_of(const std::string& uri_text) {
  const auto uri = sipmsg::parse_uri(uri_text);
  return uri ? address_of_record(*uri) : uri_text;
}

class Chat {
 public:
  explicit Chat(const ChatArguments& arguments)
      : arguments_(arguments),
        peer_(uri_of(arguments.peer)),
        lifetime_(uv_default_loop(), [this](int number) { on_signal(number); }),
        typing_timer_(std::make_unique<Timer>(uv_default_loop())),
        view_(make_chat_view(
            uv_default_loop(),
            {[this](std::string line) { on_line(std::move(line)); },
             [this](std::string_view text) { on_key(text); },
             [this](int status) { on_end_of_input(status); }, [this] { finish(exit_network); }})),
        endpoint_(uv_default_loop(), agent_options(arguments)),
        presence_(endpoint_, arguments.account,
                  {[this](const std::string& line) { view_->show_notice(printable(line)); },
                   [this] { on_ready(); }, [this](int status) { finish(status); }}) {
    lifetime_.on_cut_off([this] { view_->close(); });
    if (arguments.account.trace()) endpoint_.on_trace(print_trace);
    endpoint_.on_message([this](const sipmsg::Message& message, sipmsg::Reply reply) {
      reply.send(is_finishing_ ? 480 : 200);
      if (!is_finishing_) on_incoming(read_incoming(message));
    });
  }

  int run() {
    if (!view_->start()) {
      complain("the terminal cannot be used");
      end(exit_usage);
      return lifetime_.run();
    }
    show_peer();
    const int status = arguments_.listen.empty() ? presence_.enroll(uri_of(arguments_.as))
                                                 : presence_.listen(arguments_.listen);
    if (status != exit_done) end(status);
    return lifetime_.run();
  }

 private:
  struct Line {
    std::uint64_t id;
    std::string to;
    std::string text;
  };

  static sipmsg::AgentOptions agent_options(const ChatArguments& arguments) {
    sipmsg::AgentOptions options;
    options.delivery_notices = true;
    options.login = arguments.account.login();
    return options;
  }
  static std::uint64_t now_ms() {
    uv_update_time(uv_default_loop());
    return uv_now(uv_default_loop());
  }

  // What the person does.

  void on_ready() {
    is_ready_ = true;
    view_->set_ready(true);
    send_next();
  }

  void on_line(std::string line) {
    const bool is_command = !line.empty() && line[0] == '/' && line.substr(0, 2) != "//";
    if (is_command) return on_command(line);
    if (line.substr(0, 2) == "//") line.erase(0, 1);
    if (line.empty()) return;
    typing_.on_sent();
    lines_.push_back({++last_id_, peer_, sipmsg::to_utf8(line).value_or(line)});
    const Line& added = lines_.back();
    view_->show_own(added.id, printable(added.text), LineState::waiting, "waiting");
    if (lines_.size() >= max_waiting_lines) view_->set_ready(false);
    send_next();
  }

  void on_command(const std::string& line) {
    const std::size_t blank = std::min(line.find(' '), line.size());
    const std::string name = line.substr(0, blank);
    const std::string argument(sipmsg::trim(std::string_view(line).substr(blank)));
    if (name == "/quit") return on_end_of_input(exit_done);
    if (name == "/to") return change_peer(argument);
    if (name == "/help") {
      for (const char* text : {"/to URI  write to somebody else", "/quit    end",
                               "//text   send a line that begins with /"}) {
        view_->show_notice(text);
      }
      return;
    }
    view_->show_notice(printable(name) + ": no such command; /help names them");
  }

  void change_peer(const std::string& uri) {
    if (const std::string wrong = check_uri("/to", uri); !wrong.empty()) {
      return view_->show_notice(printable(wrong));
    }
    signal_typing(typing_.stop());
    peer_ = uri_of(uri);
    watcher_ = ComposingWatcher();
    refuses_typing_ = false;
    show_peer();
  }

  /// In a pipe all that was written is answered first; a person does not want to wait.
  void on_end_of_input(int status) {
    status_ = std::max(status_, status);
    if (!is_pipe() || lines_.empty()) return finish(status_);
    is_at_end_ = true;
    view_->set_ready(false);
  }

  void on_key(std::string_view text) {
    const bool is_message = !text.empty() && text[0] != '/';
    if (is_busy() || refuses_typing_) return;
    signal_typing(typing_.on_key(is_message, now_ms()));
    wait_for_typing();
  }

  // What goes out.

  bool is_busy() const { return !is_ready_ || is_under_way_; }

  Outgoing outgoing_to(const std::string& peer) const {
    Outgoing outgoing;
    outgoing.to = peer;
    outgoing.from = arguments_.as;
    outgoing.login = arguments_.account.login();
    outgoing.proxy = arguments_.account.proxy_for(peer);
    return outgoing;
  }

  void send_next() {
    if (is_busy() || lines_.empty() || is_finishing_) return;
    const Line& line = lines_.front();
    view_->show_own(line.id, printable(line.text), LineState::sent, "sent");
    Outgoing outgoing = outgoing_to(line.to);
    outgoing.body = line.text;
    is_under_way_ = true;
    const sipmsg::Error error =
        endpoint_.send(outgoing, [this](const Outcome& outcome) { on_outcome(outcome); });
    if (!error) return;
    Outcome outcome;
    outcome.error = error;
    on_outcome(outcome);
  }

  void on_outcome(const Outcome& outcome) {
    is_under_way_ = false;
    if (is_finishing_) return;
    const Line line = lines_.front();
    lines_.pop_front();
    if (outcome.ok()) refuses_typing_ = false;
    const char* word = !outcome.ok()         ? "failed: "
                       : outcome.code == 202 ? "accepted: "
                                             : "delivered: ";
    view_->show_own(line.id, printable(line.text), LineState::settled, word + sentence(outcome));
    if (is_finishing_) return;
    if (is_pipe()) status_ = std::max<int>(status_, exit_status_of(outcome));
    if (lines_.size() == max_waiting_lines / 2 && !is_at_end_) view_->set_ready(true);
    if (lines_.empty() && is_at_end_) return finish(status_);
    send_next();
  }

  /// Never queued: what is late says nothing.
  void signal_typing(ComposingSender::Signal is_active) {
    if (!is_active || is_busy() || is_finishing_) return;
    Outgoing outgoing = outgoing_to(peer_);
    std::string document(512, '\0');
    sipmsg::Output out(document.data(), document.size());
    write_composing(out, *is_active, *is_active ? ComposingSender::refresh_s : 0);
    outgoing.body = out.written();
    outgoing.content_type = std::string(sipmsg::composing_media_type);
    outgoing.deadline_ms = typing_deadline_ms;
    is_under_way_ = true;
    const sipmsg::Error error = endpoint_.send(outgoing, [this](const Outcome& outcome) {
      is_under_way_ = false;
      if (!outcome.ok()) refuses_typing_ = true;
      send_next();
    });
    if (error) is_under_way_ = false;
  }

  // What comes in.

  void on_incoming(const Incoming& incoming) {
    const bool is_peer = address_of(incoming.from) == address_of(peer_);
    if (incoming.kind == sipmsg::ContentKind::composing) {
      if (!is_peer) return;
      watcher_.on_signal(incoming.is_composing, incoming.refresh_s, now_ms());
      show_peer();
      return wait_for_typing();
    }
    if (!incoming.is_message()) return;  // we ask for no notices
    if (is_peer && watcher_.is_typing()) {
      watcher_.on_message();
      show_peer();
    }
    const std::string line = incoming.line();
    const std::string who = printable(incoming.from);
    view_->show_incoming(is_peer && !is_pipe() ? name_of(peer_) : who, line.substr(who.size() + 2));
  }

  bool is_pipe() const { return !is_terminal_; }

  static std::string name_of(const std::string& uri_text) {
    const auto uri = sipmsg::parse_uri(uri_text);
    return printable(uri && uri->has_user ? uri->user : std::string_view(uri_text));
  }
  void show_peer() { view_->show_peer(name_of(peer_), watcher_.is_typing()); }

  void wait_for_typing() {
    auto deadline_ms = typing_.next_deadline();
    const auto watched_ms = watcher_.next_deadline();
    if (!deadline_ms || (watched_ms && *watched_ms < *deadline_ms)) deadline_ms = watched_ms;
    if (!deadline_ms || !typing_timer_) return;
    const std::uint64_t now = now_ms();
    typing_timer_->start(*deadline_ms > now ? *deadline_ms - now : 0, 0, [this] {
      signal_typing(typing_.advance(now_ms()));
      const bool was_typing = watcher_.is_typing();
      watcher_.advance(now_ms());
      if (was_typing != watcher_.is_typing()) show_peer();
      wait_for_typing();
    });
  }

  // The end.

  void on_signal(int number) {
    ended_by_ = number;
    const bool is_undone = is_pipe() && (!is_ready_ || !lines_.empty());
    finish(is_undone ? exit_network : status_);
  }

  void finish(int status) {
    if (is_finishing_) return;
    signal_typing(typing_.stop());
    is_finishing_ = true;
    status_ = status;
    typing_timer_.reset();
    view_->close();
    if (ended_by_ != 0) complain(std::string("ended by ") + signal_name(ended_by_));
    presence_.stop([this] { end(status_); });
  }

  void end(int status) {
    if (!lifetime_.end(status)) return;
    is_finishing_ = true;
    typing_timer_.reset();
    view_->close();
    endpoint_.close();
  }

  const ChatArguments& arguments_;
  const bool is_terminal_ = is_chat_on_terminal();
  std::string peer_;
  Lifetime lifetime_;
  ComposingSender typing_;
  ComposingWatcher watcher_;
  std::unique_ptr<Timer> typing_timer_;
  bool refuses_typing_ = false;
  std::deque<Line> lines_;  ///< the first one may be under way
  std::uint64_t last_id_ = 0;
  bool is_ready_ = false;
  bool is_under_way_ = false;
  bool is_at_end_ = false;
  bool is_finishing_ = false;
  int ended_by_ = 0;
  int status_ = exit_done;
  std::unique_ptr<ChatView> view_;
  sipmsg::Endpoint endpoint_;
  Presence presence_;
};

}  // namespace

int chat(int argc, char** argv) {
  ChatArguments arguments;
  if (const auto status = read(arguments, argc, argv)) return *status;
  if (const std::string wrong = complete(arguments); !wrong.empty()) {
    complain(wrong);
    return exit_usage;
  }
  return Chat(arguments).run();
}

}  // namespace program
