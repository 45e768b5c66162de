// javascript/process: see process.hpp.
#include "process.hpp"

#include <regex.h>

#include <algorithm>

namespace modules {

namespace {

using sipmsg::Severity;

constexpr char loading[] = "was loaded";
constexpr std::uint64_t never = UINT64_MAX;
constexpr std::uint64_t first_restart_ms = 100;
constexpr std::uint64_t last_restart_ms = 30000;
constexpr std::uint64_t long_run_ms = 60000;
constexpr std::size_t max_handlers = 1000;
/// What a script that does not read is allowed to leave in our memory.
constexpr std::size_t max_backlog = std::size_t{64} << 20;

/// A name from the network as a log line has it: short, and without what a terminal would obey.
std::string shown(std::string_view text) {
  constexpr std::size_t longest = 64;
  std::string out(text.substr(0, longest));
  for (char& c : out) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return out;
}

/// "call.route (caller 101, called 102)".
std::string describe_message(const Message& message) {
  std::string out = shown(message.name());
  const char* before = " (";
  for (const char* name : {"caller", "called"}) {
    const auto value = message.get(name);
    if (!value) continue;
    out.append(before).append(name).append(" ").append(shown(*value));
    before = ", ";
  }
  return before[0] == ',' ? out + ")" : out;
}

/// The filter of Message.install: a parameter and its value, or `^` and a POSIX extended regular
/// expression, inverted by `^` at the end. A parameter that is not there counts as empty, as in
/// Yate.
class Filter {
 public:
  Filter(std::string_view parameter, std::string_view value)
      : parameter_(parameter), value_(value) {
    if (value.empty() || value.front() != '^') return;
    inverted_ = value.size() > 1 && value.back() == '^';
    if (inverted_) value.remove_suffix(1);
    is_regex_ = true;
    compiled_ = regcomp(&regex_, std::string(value).c_str(), REG_EXTENDED | REG_NOSUB) == 0;
  }
  ~Filter() {
    if (compiled_) regfree(&regex_);
  }
  Filter(const Filter&) = delete;
  Filter& operator=(const Filter&) = delete;

  bool is_good() const { return !is_regex_ || compiled_; }
  bool passes(const Message& message) const {
    const std::string value = message.get_or(parameter_);
    if (!is_regex_) return value == value_;
    // The expression sees the text up to a NUL only; what has one matches nothing.
    const bool whole = value.find('\0') == std::string::npos;
    const bool matches = whole && regexec(&regex_, value.c_str(), 0, nullptr, 0) == 0;
    return matches != inverted_;
  }

 private:
  std::string parameter_;
  std::string value_;
  bool is_regex_ = false;
  bool inverted_ = false;
  bool compiled_ = false;
  regex_t regex_{};
};

void write_parameters(FrameWriter& frames, const Message& message) {
  std::uint64_t count = 0;
  message.for_each([&count](std::string_view, std::string_view) { ++count; });
  frames.number(count);
  message.for_each([&frames](std::string_view name, std::string_view value) {
    frames.text(name);
    frames.text(value);
  });
}

void write_table(FrameWriter& frames, const Table* table) {
  frames.flag(table != nullptr);
  if (table == nullptr) return;
  frames.number(table->columns.size());
  for (const std::string& column : table->columns) frames.text(column);
  frames.number(table->rows.size());
  for (const auto& row : table->rows) {
    for (std::size_t column = 0; column < table->columns.size(); ++column) {
      const bool present = column < row.size() && row[column].has_value();
      frames.flag(present);
      if (present) frames.text(*row[column]);
    }
  }
}

}  // namespace

// ---- the process

std::shared_ptr<ScriptProcess> ScriptProcess::start(ScriptSurroundings& surroundings,
                                                    ScriptSource source) {
  std::shared_ptr<ScriptProcess> process(new ScriptProcess(surroundings, std::move(source)));
  process->weak_ = process;
  process->self_ = process;
  uv_timer_init(surroundings.loop, &process->timer_);
  process->timer_.data = process.get();
  process->launch();
  process->wait_until_loaded();
  return process;
}

void ScriptProcess::launch() {
  restart_ms_ = never;
  launched_ms_ = now_ms();
  std::string why;
  child_ = ScriptChild::start(surroundings_.loop, surroundings_.program, source_.name,
                              surroundings_.limits.memory_limit, *this, why);
  if (!child_) {
    log(Severity::error, "cannot be started: " + why);
    return restart_later();
  }
  write_start();
  is_loading_ = true;
  add_work(loading);
  child_->flush();
}

void ScriptProcess::write_start() {
  FrameWriter& frames = child_->frames();
  frames.begin(FrameType::start);
  frames.text(source_.name);
  frames.text(source_.text);
  frames.number(source_.files.size());
  for (const std::string& file : source_.files) frames.text(file);
  frames.number(source_.pieces.size());
  for (const SourcePiece& piece : source_.pieces) {
    frames.number(piece.first);
    frames.number(piece.file);
    frames.number(piece.line);
  }
  frames.number(surroundings_.limits.memory_limit);
  frames.number(now_ms() - std::min(now_ms(), surroundings_.started_ms));
  frames.number(surroundings_.run_parameters.size());
  for (const sipmsg::RunParameter& parameter : surroundings_.run_parameters) {
    frames.text(parameter.name);
    frames.text(parameter.value);
  }
  frames.end();
}

void ScriptProcess::wait_until_loaded() {
  while (child_ && is_loading_) {
    if (now_ms() >= work_deadline_ms_) break;  // the timer sees to it
    const std::uint64_t left_ms = std::min(work_deadline_ms_ - now_ms(), std::uint64_t{60000});
    const std::shared_ptr<ScriptChild> child = child_;
    if (!child->pump(static_cast<int>(left_ms))) break;
  }
}

void ScriptProcess::stop() {
  if (std::exchange(stopped_, true)) return;
  if (child_) child_->detach_and_kill();
  forget_process();
  uv_close(reinterpret_cast<uv_handle_t*>(&timer_), [](uv_handle_t* timer) {
    static_cast<ScriptProcess*>(timer->data)->self_.reset();  // the end of it, perhaps
  });
}

void ScriptProcess::on_end(const std::string& why) {
  log(Severity::error, "its process " + why);
  forget_process();
  if (!stopped_) restart_later();
}

void ScriptProcess::forget_process() {
  child_.reset();
  work_.clear();
  work_deadline_ms_ = never;
  for (const Installed& installed : std::exchange(installed_, {})) {
    surroundings_.engine->uninstall(installed.id);
  }
  // An answer may lead to anything, a stop of this included.
  for (auto& [id, asked] : std::exchange(asked_, {})) asked.answer(false);
}

void ScriptProcess::restart_later() {
  if (now_ms() - launched_ms_ >= long_run_ms) failures_ = 0;
  const std::uint64_t delay_ms = std::min(first_restart_ms << failures_, last_restart_ms);
  if (delay_ms < last_restart_ms) ++failures_;
  restart_ms_ = now_ms() + delay_ms;
  log(Severity::info, "is started again in " + std::to_string(delay_ms) + " ms");
  arm();
}

// ---- frames

void ScriptProcess::on_frame(FrameType type, FrameReader& fields) {
  const std::shared_ptr<ScriptProcess> alive = self_;
  if (take(type, fields) && fields.is_good()) return;
  if (child_) child_->kill("sent what is no answer, and was stopped");
}

bool ScriptProcess::take(FrameType type, FrameReader& fields) {
  switch (type) {
    case FrameType::done: return take_done();
    case FrameType::busy:
      work_.push_front(shown(fields.text()));
      work_deadline_ms_ = now_ms() + surroundings_.limits.time_limit_ms;
      arm();
      return true;
    case FrameType::install: return take_install(fields);
    case FrameType::remove: return take_remove(fields);
    case FrameType::answer: return take_answer(fields);
    case FrameType::dispatch: return take_dispatch(fields);
    case FrameType::shared: return take_shared(fields);
    case FrameType::log: return take_log(fields);
    default: return false;
  }
}

bool ScriptProcess::take_done() {
  if (work_.empty()) return false;
  if (work_.front() == loading) is_loading_ = false;
  work_.pop_front();
  work_deadline_ms_ = work_.empty() ? never : now_ms() + surroundings_.limits.time_limit_ms;
  arm();
  return true;
}

bool ScriptProcess::take_install(FrameReader& fields) {
  const std::uint64_t handler = fields.number();
  std::string owner = shown(fields.text());
  std::string name(fields.text());
  const std::uint64_t priority = std::min(fields.number(), std::uint64_t{INT32_MAX});
  const std::string_view parameter = fields.text();
  const std::string_view value = fields.text();
  if (!fields.is_good() || installed_.size() >= max_handlers) return false;
  Predicate predicate;
  if (!parameter.empty()) {
    const auto filter = std::make_shared<Filter>(parameter, value);
    if (!filter->is_good()) return false;
    predicate = [filter](const Message& message) { return filter->passes(message); };
  }
  const Engine::Id id = surroundings_.engine->install(
      std::move(owner), std::move(name), static_cast<int>(priority),
      [weak = weak_, handler](const MessagePointer& message, Answer answer) {
        if (const auto process = weak.lock()) {
          process->ask(handler, message, std::move(answer));
        } else {
          answer(false);
        }
      },
      std::move(predicate));
  installed_.push_back({handler, id});
  return true;
}

bool ScriptProcess::take_remove(FrameReader& fields) {
  const std::uint64_t handler = fields.number();
  const auto found =
      std::find_if(installed_.begin(), installed_.end(),
                   [handler](const Installed& installed) { return installed.handler == handler; });
  if (found == installed_.end()) return false;
  surroundings_.engine->uninstall(found->id);
  installed_.erase(found);
  return true;
}

bool ScriptProcess::take_answer(FrameReader& fields) {
  const auto found = asked_.find(fields.number());
  if (found == asked_.end()) return true;  // too late
  const bool handled = fields.flag();
  const std::string_view return_value = fields.text();
  std::vector<std::pair<std::string_view, std::optional<std::string_view>>> changes;
  for (std::uint64_t left = fields.count(24); left > 0; --left) {
    const std::string_view name = fields.text();
    const bool present = fields.flag();
    const std::string_view value = fields.text();
    changes.emplace_back(name, present ? std::optional(value) : std::nullopt);
  }
  if (!fields.is_good()) return false;
  Asked asked = std::move(found->second);
  asked_.erase(found);
  asked.message->return_value = return_value;
  for (const auto& [name, value] : changes) {
    if (value) {
      asked.message->set(name, *value);
    } else {
      asked.message->clear(name);
    }
  }
  asked.answer(handled);
  return true;
}

bool ScriptProcess::take_dispatch(FrameReader& fields) {
  const std::uint64_t id = fields.number();
  auto message = std::make_shared<ListMessage>(std::string(fields.text()));
  message->return_value = fields.text();
  message->created_unix_s = fields.number();
  for (std::uint64_t left = fields.count(16); left > 0; --left) {
    std::string name(fields.text());
    message->add(std::move(name), std::string(fields.text()));
  }
  if (!fields.is_good()) return false;
  const std::weak_ptr<ScriptChild> sender = child_;
  surroundings_.engine->dispatch(message, [weak = weak_, sender, id, message](bool handled) {
    const auto process = weak.lock();
    const auto child = sender.lock();
    if (process && child && process->child_ == child && id != 0) {
      process->send_result(id, *message, handled);
    }
  });
  return true;
}

bool ScriptProcess::take_shared(FrameReader& fields) {
  const auto operation = static_cast<SharedOperation>(fields.number());
  const std::string name(fields.text());
  const std::string_view value = fields.text();
  if (!fields.is_good()) return false;
  SharedVariables& shared = *surroundings_.shared;
  std::optional<std::string> found;
  switch (operation) {
    case SharedOperation::get: found = shared.get(name); break;
    case SharedOperation::set:
      if (!shared.set(name, value)) log(Severity::warning, "no room for a shared variable");
      return true;
    case SharedOperation::clear: shared.clear(name); return true;
    case SharedOperation::increment: {
      const auto wrap = sipmsg::parse_integer(value).value_or(0);
      const auto before = shared.increment(name, static_cast<std::uint64_t>(wrap));
      if (before) found = std::to_string(*before);
      break;
    }
    default: return false;
  }
  FrameWriter& frames = child_->frames();
  frames.begin(FrameType::shared_value);
  frames.flag(found.has_value());
  frames.text(found.value_or(std::string()));
  frames.end();
  child_->flush();
  return true;
}

bool ScriptProcess::take_log(FrameReader& fields) {
  const std::uint64_t severity = fields.number();
  if (severity > static_cast<std::uint64_t>(Severity::info)) return false;
  log(static_cast<Severity>(severity), fields.text());
  return true;
}

// ---- messages

void ScriptProcess::add_work(std::string what) {
  if (work_.empty()) work_deadline_ms_ = now_ms() + surroundings_.limits.time_limit_ms;
  work_.push_back(std::move(what));
  arm();
}

void ScriptProcess::ask(std::uint64_t handler, const MessagePointer& message, Answer answer) {
  if (stopped_ || !child_) return answer(false);
  const bool full = asked_.size() >= surroundings_.limits.max_queue;
  if (full && !std::exchange(queue_was_full_, true)) {
    log(Severity::warning, "is asked about too many messages; some go on without it");
  }
  if (!full) queue_was_full_ = false;
  if (full) return answer(false);
  // Before anything is written: what was is sent, and must be counted as work.
  if (child_->backlog() > max_backlog) {
    log(Severity::warning,
        "is not asked about " + describe_message(*message) + ": it does not take what it was sent");
    return answer(false);
  }
  FrameWriter& frames = child_->frames();
  const std::uint64_t id = ++last_id_;
  frames.begin(FrameType::handle);
  frames.number(id);
  frames.number(handler);
  frames.text(message->name());
  frames.text(message->return_value);
  frames.number(message->created_unix_s);
  write_parameters(frames, *message);
  if (!frames.end()) {
    log(Severity::warning, "is not asked about " + describe_message(*message) + ": too large");
    return answer(false);
  }
  asked_[id] = {message, std::move(answer), now_ms() + surroundings_.limits.timeout_ms};
  add_work("handled " + describe_message(*message));
  child_->flush();
}

void ScriptProcess::send_result(std::uint64_t id, const Message& message, bool handled) {
  FrameWriter& frames = child_->frames();
  const auto write = [&](const Table* table) {
    frames.begin(FrameType::result);
    frames.number(id);
    frames.flag(handled);
    frames.text(message.name());
    frames.text(message.return_value);
    write_parameters(frames, message);
    write_table(frames, table);
    return frames.end();
  };
  if (!write(message.table.get())) {
    log(Severity::warning, "the rows of a " + shown(message.name()) + " are too large for it");
    if (!write(nullptr)) return child_->kill("dispatched too large a message, and was stopped");
  }
  add_work("went on after its " + shown(message.name()));
  child_->flush();
}

// ---- time

std::uint64_t ScriptProcess::next_deadline_ms() const {
  const std::uint64_t asked_ms = asked_.empty() ? never : asked_.begin()->second.deadline_ms;
  return std::min({work_deadline_ms_, restart_ms_, asked_ms});
}

/// The timer may go off too early, and is then set anew: so it need not be set for each message.
void ScriptProcess::arm() {
  const std::uint64_t deadline_ms = next_deadline_ms();
  if (stopped_ || deadline_ms >= timer_deadline_ms_) return;
  timer_deadline_ms_ = deadline_ms;
  const std::uint64_t delay_ms = deadline_ms > now_ms() ? deadline_ms - now_ms() : 1;
  uv_timer_start(
      &timer_, [](uv_timer_t* timer) { static_cast<ScriptProcess*>(timer->data)->on_timer(); },
      delay_ms, 0);
}

void ScriptProcess::on_timer() {
  const std::shared_ptr<ScriptProcess> alive = self_;
  timer_deadline_ms_ = never;
  // Where the server itself was held up, the script may have answered long since.
  if (const std::shared_ptr<ScriptChild> child = child_) child->pump(0);
  const std::uint64_t time_ms = now_ms();
  if (restart_ms_ <= time_ms) launch();
  if (work_deadline_ms_ <= time_ms && child_) {
    work_deadline_ms_ = never;
    child_->kill("was stopped: it " + work_.front() + " and did not come to an end within " +
                 std::to_string(surroundings_.limits.time_limit_ms) + " ms");
  }
  give_up_waiting(time_ms);
  arm();
}

void ScriptProcess::give_up_waiting(std::uint64_t time_ms) {
  while (!asked_.empty() && asked_.begin()->second.deadline_ms <= time_ms) {
    Asked asked = std::move(asked_.begin()->second);
    asked_.erase(asked_.begin());
    log(Severity::warning, "no answer within " + std::to_string(surroundings_.limits.timeout_ms) +
                               " ms to " + describe_message(*asked.message));
    asked.answer(false);
  }
}

void ScriptProcess::log(Severity severity, std::string_view text) {
  if (!surroundings_.log) return;
  std::string line = source_.name + ": ";
  line.append(text);
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  surroundings_.log(severity, line);
}

}  // namespace modules
