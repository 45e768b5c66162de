// extmodule/program: see program.hpp.
#include "program.hpp"

#include <algorithm>
#include <csignal>
#include <utility>

namespace modules::extmodule {

namespace {

using sipmsg::Severity;

constexpr int standard_error = 2;

template <class Handle>
std::shared_ptr<Program> program_of(const Handle* handle) {
  auto* program = static_cast<Program*>(handle->data);
  return program == nullptr ? nullptr : program->shared_from_this();
}

uv_stdio_container_t inherit(int number) {
  uv_stdio_container_t stdio{};
  stdio.flags = UV_INHERIT_FD;
  stdio.data.fd = number;
  return stdio;
}

/// `direction` is as the program sees it.
uv_stdio_container_t pipe_to(Stream* stream, uv_stdio_flags direction) {
  uv_stdio_container_t stdio{};
  stdio.flags = static_cast<uv_stdio_flags>(UV_CREATE_PIPE | direction);
  stdio.data.stream = &stream->any;
  return stdio;
}

uv_stdio_container_t nothing() {
  uv_stdio_container_t stdio{};
  stdio.flags = UV_IGNORE;
  return stdio;
}

}  // namespace

Program::Program(const Surroundings& surroundings, ProgramSettings settings)
    : around_(surroundings),
      settings_(std::move(settings)),
      name_(settings_.path.substr(settings_.path.rfind('/') + 1)) {}

void Program::log(Severity severity, const std::string& text) const {
  if (!is_stopped_) around_.log(severity, name_ + ": " + text);
}

// ---- the beginning ----

void Program::start() {
  ending_ = std::nullopt;
  restart_ = std::nullopt;
  has_failed_ = false;
  started_ms_ = uv_now(around_.loop);
  Owned<Stream> input;
  Owned<Stream> output;
  if (settings_.speaks) {
    input = make_pipe(around_.loop);
    output = make_pipe(around_.loop);
  }
  if (const int status = spawn(input.get(), output.get()); status < 0) {
    log(Severity::error, std::string("cannot be started: ") + uv_strerror(status));
    process_.reset();
    has_failed_ = true;
    return go_on();
  }
  self_ = shared_from_this();
  if (!settings_.speaks) return;
  const auto on_ended = [this](std::optional<Ending> ending) { disconnected(ending); };
  connection_ = std::make_shared<Connection>(around_, name_, settings_.session, on_ended);
  connection_->open(std::move(input), std::move(output));
}

int Program::spawn(Stream* input, Stream* output) {
  // Pipes for the program's input and output; we read from its output, so names change sides.
  uv_stdio_container_t stdio[] = {
      output == nullptr ? nothing() : pipe_to(output, UV_READABLE_PIPE),
      input == nullptr ? inherit(standard_error) : pipe_to(input, UV_WRITABLE_PIPE),
      inherit(standard_error),
  };
  std::string path = settings_.path;
  std::string argument = settings_.argument;
  char* arguments[] = {&path[0], argument.empty() ? nullptr : &argument[0], nullptr};
  uv_process_options_t options{};
  options.file = path.c_str();
  options.args = arguments;
  options.stdio = stdio;
  options.stdio_count = 3;
  // A group of its own: a Ctrl-C at the terminal is for the server, which ends its programs in
  // order, and whatever a script starts ends with it.
  options.flags = UV_PROCESS_DETACHED;
  options.exit_cb = [](uv_process_t* process, std::int64_t status, int signal) {
    if (const auto program = program_of(process)) program->exited(status, signal);
  };
  process_.reset(new uv_process_t);
  const int status = uv_spawn(around_.loop, process_.get(), &options);
  process_->data = this;
  group_ = status < 0 ? 0 : process_->pid;
  return status;
}

// ---- the end ----

void Program::stop() {
  const auto self = shared_from_this();
  is_stopped_ = true;
  if (connection_) connection_->close();
  connection_.reset();
  if (process_) return terminate();
  go_on();
}

void Program::exited(std::int64_t status, int signal) {
  process_.reset();
  has_failed_ = status != 0 || signal != 0;
  if (signal != 0) {
    log(Severity::warning, "ended by signal " + std::to_string(signal));
  } else {
    log(status == 0 ? Severity::info : Severity::warning,
        "ended with status " + std::to_string(status));
  }
  if (!connection_) return go_on();
  // What it said last may still be in the pipe, which a process that it left behind may keep open.
  set_timer(Timer::rest, around_.grace_ms);
}

void Program::disconnected(std::optional<Ending> ending) {
  const auto self = shared_from_this();
  ending_ = ending;
  restart_ = connection_->locals().restart;
  connection_.reset();
  if (!process_) return go_on();
  // Who has closed his end may be about to end, which takes a moment; who broke the rules may not.
  if (ending == Ending::broken) return terminate();
  set_timer(Timer::rest, around_.grace_ms);
}

void Program::terminate() {
  uv_kill(-group_, SIGTERM);
  set_timer(Timer::kill, around_.grace_ms);
}

void Program::set_timer(Timer purpose, std::uint64_t delay_ms) {
  if (!timer_) timer_ = make_timer(around_.loop);
  timer_->data = this;
  timer_purpose_ = purpose;
  const auto passed = [](uv_timer_t* timer) {
    if (const auto program = program_of(timer)) program->timed_out();
  };
  uv_timer_start(timer_.get(), passed, delay_ms, 0);
}

void Program::timed_out() {
  switch (std::exchange(timer_purpose_, Timer::none)) {
    case Timer::pause: return start();
    case Timer::kill:
      if (process_) uv_kill(-group_, SIGKILL);
      return;
    case Timer::rest:
      if (process_) return terminate();
      // libuv looks at timers before it reads: where the server was held up, what was said in time
      // is still unread.
      return set_timer(Timer::last_look, 1);
    case Timer::last_look:
      restart_ = connection_->locals().restart;
      connection_->close();
      connection_.reset();
      return go_on();
    case Timer::none: return;
  }
}

/// Process and connection are gone.
void Program::go_on() {
  const auto self = std::exchange(self_, nullptr);
  timer_.reset();
  if (!settings_.speaks) return;  // it may have been there to start something that stays
  if (const int group = std::exchange(group_, 0)) uv_kill(-group, SIGKILL);  // what it left behind
  if (!is_stopped_ && wants_restart()) start_later();
}

/// Who ends in order wants to end; who fails is needed, for it was configured.
bool Program::wants_restart() const {
  if (restart_) return *restart_;
  if (ending_ == Ending::finished) return false;
  return has_failed_ || ending_.has_value();
}

void Program::start_later() {
  const std::uint64_t lived_ms = uv_now(around_.loop) - started_ms_;
  if (lived_ms >= longest_pause_ms) pause_ms_ = shortest_pause_ms;
  log(Severity::info, "is started again in " + std::to_string(pause_ms_ / 1000) + " s");
  set_timer(Timer::pause, pause_ms_);
  pause_ms_ = std::min(pause_ms_ * 2, longest_pause_ms);
}

}  // namespace modules::extmodule
