// extmodule/session: see session.hpp.
#include "session.hpp"

#include <algorithm>
#include <optional>
#include <type_traits>
#include <variant>
#include <vector>

namespace modules::extmodule {

namespace {

using sipmsg::Severity;

constexpr std::string_view module_name = "extmodule";

/// Of a program that talks nonsense so many lines are logged.
constexpr std::uint32_t max_complaints = 10;

/// How Yate's levels of debugging, 0 (fail) to 10 (all), are called here.
Severity severity_of(int level) {
  constexpr int conf = 3;
  constexpr int mild = 6;
  if (level <= conf) return Severity::error;
  return level <= mild ? Severity::warning : Severity::info;
}

/// Parameters by name, the values of each in order.
using Values = std::map<std::string, std::vector<std::string>, std::less<>>;

Values values_of(const Message& message) {
  Values values;
  message.for_each([&values](std::string_view name, std::string_view value) {
    values[std::string(name)].emplace_back(value);
  });
  return values;
}

/// Yate's own library for programs sends every parameter back. What comes back as it was must not
/// count as a change: setting the second of two equally named ones would overwrite the first.
void apply(const Changes& changes, Message& message) {
  const Values before = values_of(message);
  std::map<std::string_view, std::size_t> seen;
  for (const Change& change : changes) {
    if (!change.value) {
      message.clear(change.name);
      continue;
    }
    const std::size_t place = seen[change.name]++;
    const auto known = before.find(change.name);
    const bool is_same = known != before.end() && place < known->second.size() &&
                         known->second[place] == *change.value;
    if (!is_same) message.set(change.name, *change.value);
  }
}

/// A message that a program has dispatched. Where the engine drops it, the program is told, too.
class OwnMessage {
 public:
  using Tell = std::function<void(bool handled)>;

  explicit OwnMessage(Tell tell) : tell_(std::move(tell)) {}
  ~OwnMessage() { tell(false); }
  OwnMessage(const OwnMessage&) = delete;
  OwnMessage& operator=(const OwnMessage&) = delete;

  void tell(bool handled) {
    const Tell once = std::exchange(tell_, nullptr);
    if (once) once(handled);
  }

 private:
  Tell tell_;
};

}  // namespace

std::string printable(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (static_cast<unsigned char>(c) < 32 || c == 127) c = '?';
  }
  return out;
}

std::shared_ptr<Session> Session::make(Engine& engine, Peer& peer, SessionOptions options) {
  return std::shared_ptr<Session>(new Session(engine, peer, std::move(options)));
}

Session::Session(Engine& engine, Peer& peer, SessionOptions options)
    : engine_(engine),
      peer_(peer),
      priority_(options.priority),
      facts_(std::move(options.facts)),
      locals_(std::move(options.locals)),
      state_(options.is_connected ? State::connected : State::unconnected) {}

std::size_t Session::max_line() const {
  return std::min(locals_.bufsize + longest_sent_, longest_line);
}

// ---- from the program ----

void Session::take(std::string_view line) {
  const auto self = shared_from_this();  // a handler may end the program
  if (state_ == State::quitting || state_ == State::closed || line.empty()) return;
  const auto decoded = decode(line);
  if (state_ == State::unconnected) {
    const auto* wish = decoded ? std::get_if<ConnectLine>(&*decoded) : nullptr;
    if (wish != nullptr) return connect(*wish);
    peer_.log(Severity::warning, "said something before it said what it is; closed");
    return end(Ending::refused);
  }
  if (!decoded) return complain(line);
  const auto obey_it = [&](const auto& command) {
    // What has a role does not get another one.
    constexpr bool is_connect = std::is_same_v<decltype(command), const ConnectLine&>;
    if constexpr (is_connect) {
      complain(line);
    } else {
      obey(command);
    }
  };
  std::visit(obey_it, *decoded);
}

void Session::take_too_long() {
  peer_.log(Severity::error, "sent a line of more than " + std::to_string(max_line()) +
                                 " octets; closed. setlocal:bufsize allows longer ones");
  end(Ending::broken);
}

void Session::complain(std::string_view line) {
  constexpr std::size_t longest_shown = 200;
  if (++complaints_ <= max_complaints) {
    const bool is_last = complaints_ == max_complaints;
    peer_.log(Severity::warning,
              "sent a line that is not understood: " + printable(line.substr(0, longest_shown)) +
                  (is_last ? " (further ones are not logged)" : ""));
  }
  peer_.send(error_line(line));
}

void Session::connect(const ConnectLine& line) {
  if (line.role != "global") {
    peer_.log(Severity::warning, "wants to be a " + printable(line.role) +
                                     ", which is for calls; only global programs are served");
    return end(Ending::refused);
  }
  if (!line.id.empty()) locals_.id = line.id;
  state_ = State::connected;
}

void Session::obey(const QuitLine&) {
  state_ = State::quitting;
  release();
  peer_.send(quit_line());
  if (own_.empty()) end(Ending::finished);
}

void Session::obey(const MessageLine& line) {
  ListMessage::Parameters parameters;
  for (const Change& parameter : line.parameters) {
    if (parameter.value) parameters.emplace_back(parameter.name, *parameter.value);
  }
  auto message = std::make_shared<ListMessage>(line.name, std::move(parameters));
  message->return_value = line.return_value;
  const bool is_now = locals_.settime || line.created_unix_s == 0;
  message->created_unix_s = is_now ? peer_.now_unix_s() : line.created_unix_s;
  if (own_.size() >= locals_.max_waiting()) {
    log_refused(*message, "too many of its own messages are on their way");
    return peer_.send(answer_line(line.id, false, *message));
  }
  own_.insert(message.get());
  const auto tell = [weak = weak_from_this(), id = line.id, message](bool handled) {
    if (const auto self = weak.lock()) self->dispatched(id, message, handled);
  };
  const auto own = std::make_shared<OwnMessage>(tell);
  engine_.dispatch(message, [own](bool handled) { own->tell(handled); });
}

void Session::dispatched(const std::string& id, const MessagePointer& message, bool handled) {
  own_.erase(message.get());
  if (state_ == State::closed) return;
  peer_.send(answer_line(id, handled, *message));
  if (state_ == State::quitting && own_.empty()) end(Ending::finished);
}

void Session::obey(const AnswerLine& line) {
  const auto number = sipmsg::parse_digits(line.id, UINT64_MAX);
  const auto found = number ? waiting_.find(*number) : waiting_.end();
  if (found == waiting_.end()) {
    if (!unmatched_log_.admits(peer_.now_ms())) return;
    return peer_.log(Severity::info,
                     "sent an answer that is unmatched: it is too late, or to no "
                     "question; its id is " +
                         printable(line.id));
  }
  const MessagePointer message = found->second.message;
  const Answer answer = take_answer(*number);
  if (!line.name.empty()) message->rename(line.name);
  if (line.return_value) message->return_value = *line.return_value;
  apply(line.parameters, *message);
  answer(line.handled);
}

void Session::obey(const InstallLine& line) {
  const int priority = line.priority.value_or(priority_);
  const bool is_new = installed_.count(line.name) == 0 && installed_.size() < max_installs;
  if (is_new) {
    const auto handler = [weak = weak_from_this()](const MessagePointer& message, Answer answer) {
      const auto self = weak.lock();
      return self ? self->ask(message, std::move(answer)) : answer(false);
    };
    Predicate filter;
    if (!line.filter.empty()) {
      filter = [name = line.filter, value = line.value](const Message& message) {
        return message.get_or(name) == value;
      };
    }
    const std::string owner(locals_.trackparam.empty() ? module_name : locals_.trackparam);
    installed_[line.name] = {
        engine_.install(owner, line.name, priority, handler, std::move(filter)), priority};
  }
  peer_.send(installed_line(priority, line.name, is_new));
}

void Session::obey(const UninstallLine& line) {
  const auto found = installed_.find(line.name);
  const Installed removed = found == installed_.end() ? Installed{} : found->second;
  if (found != installed_.end()) {
    engine_.uninstall(removed.id);
    installed_.erase(found);
  }
  peer_.send(uninstalled_line(removed.priority, line.name, removed.id != 0));
}

void Session::obey(const WatchLine& line) {
  const bool is_new = watches_.count(line.name) == 0 && watches_.size() < max_watches;
  if (is_new) {
    const auto watcher = [weak = weak_from_this(), name = line.name](const Message& message,
                                                                     bool handled) {
      if (const auto self = weak.lock()) self->show(name, message, handled);
    };
    watches_[line.name] = engine_.watch(line.name, watcher);
  }
  peer_.send(watched_line(line.name, is_new));
}

void Session::obey(const UnwatchLine& line) {
  const auto found = watches_.find(line.name);
  const bool is_known = found != watches_.end();
  if (is_known) {
    engine_.unwatch(found->second);
    watches_.erase(found);
  }
  peer_.send(unwatched_line(line.name, is_known));
}

void Session::obey(const SetlocalLine& line) {
  const Locals::Told told = locals_.set(line.name, line.value, *facts_);
  peer_.send(setlocal_line(line.name, told.value, told.done));
}

void Session::obey(const OutputLine& line) { peer_.log(Severity::info, printable(line.text)); }

void Session::obey(const DebugLine& line) {
  if (line.level > static_cast<int>(locals_.debuglevel)) return;
  peer_.log(severity_of(line.level), printable(line.text));
}

/// To answer it could go on for ever: it may be the answer to our own "Error in".
void Session::obey(const ErrorLine& line) {
  if (++complaints_ > max_complaints) return;
  peer_.log(Severity::warning, "did not understand: " + printable(line.text));
}

// ---- to the program ----

const char* Session::obstacle() const {
  if (state_ != State::connected) return "it is about to end";
  if (waiting_.size() >= locals_.max_waiting()) return "it has not answered maxqueue others";
  if (!peer_.can_send()) return "it does not read what it is sent";
  return nullptr;
}

void Session::log_refused(const Message& message, const char* why) {
  if (std::exchange(is_refusing_, true)) return;
  peer_.log(Severity::warning, "is not asked about " + printable(message.name()) + ": " + why +
                                   " (said once, until it keeps up again)");
}

void Session::ask(const MessagePointer& message, Answer answer) {
  if (is_own(*message) && !locals_.reenter) return answer(false);
  if (const char* why = obstacle()) {
    log_refused(*message, why);
    return answer(false);
  }
  const std::uint64_t number = ++last_number_;
  std::string line = message_line(std::to_string(number), *message);
  if (line.size() > longest_line) {
    log_refused(*message, "it is too long");
    return answer(false);
  }
  is_refusing_ = false;
  longest_sent_ = std::max(longest_sent_, line.size());
  const std::uint64_t deadline_ms = peer_.now_ms() + locals_.timeout_ms;
  waiting_[number] = {message, std::move(answer), deadline_ms};
  deadlines_.emplace(deadline_ms, number);
  peer_.wake_at(deadline_ms);
  peer_.send(std::move(line));
}

void Session::show(std::string_view watched, const Message& message, bool handled) {
  if (state_ != State::connected || (is_own(message) && !locals_.selfwatch)) return;
  // Who watches both this name and all is shown it once.
  if (!watched.empty() && watches_.count("") != 0) return;
  if (!peer_.can_send()) return log_refused(message, "it does not read what it is sent");
  peer_.send(answer_line("", handled, message));
}

// ---- the end of things ----

Answer Session::take_answer(std::uint64_t number) {
  const auto found = waiting_.find(number);
  Answer answer = std::move(found->second.answer);
  deadlines_.erase({found->second.deadline_ms, number});
  waiting_.erase(found);
  return answer;
}

void Session::advance(std::uint64_t now_ms) {
  const auto self = shared_from_this();
  while (!deadlines_.empty() && deadlines_.begin()->first <= now_ms) {
    const std::uint64_t number = deadlines_.begin()->second;
    const MessagePointer message = waiting_.find(number)->second.message;
    const Answer answer = take_answer(number);
    if (timeout_log_.admits(now_ms)) {
      peer_.log(Severity::warning, "did not answer " + printable(message->name()) +
                                       " in time, id " + std::to_string(number) +
                                       (locals_.timebomb ? "; it is ended for that" : ""));
    }
    answer(false);
    if (locals_.timebomb && state_ != State::closed) return end(Ending::broken);
  }
  if (!deadlines_.empty()) peer_.wake_at(deadlines_.begin()->first);
}

/// Takes back whatever was installed, and lets go of the messages that wait.
void Session::release() {
  for (const auto& installed : std::exchange(installed_, {})) {
    engine_.uninstall(installed.second.id);
  }
  for (const auto& watch : std::exchange(watches_, {})) engine_.unwatch(watch.second);
  deadlines_.clear();
  for (const auto& waiting : std::exchange(waiting_, {})) waiting.second.answer(false);
}

void Session::end(Ending ending) {
  if (state_ == State::closed) return;
  closed();
  peer_.end(ending);
}

void Session::closed() {
  if (state_ == State::closed) return;
  state_ = State::closed;
  release();
}

}  // namespace modules::extmodule
