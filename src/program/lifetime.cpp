#include "lifetime.hpp"

#include <csignal>
#include <cstdlib>

namespace program {

namespace {

constexpr int ending_signals[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};
constexpr std::uint64_t patience_ms = 1000;

/// libuv has the system call that a signal interrupts go on: a write that nobody reads would never
/// come back to the loop.
void let_interrupt(int number) {
  struct sigaction action {};
  sigaction(number, nullptr, &action);
  action.sa_flags &= ~SA_RESTART;
  sigaction(number, &action, nullptr);
}

}  // namespace

Lifetime::Lifetime(uv_loop_t* loop, std::function<void(int)> on_signal)
    : loop_(loop), on_signal_(std::move(on_signal)) {
  std::signal(SIGPIPE, SIG_IGN);
  uv_timer_init(loop, &timer_);
  timer_.data = this;
  uv_unref(reinterpret_cast<uv_handle_t*>(&timer_));
  for (int number : ending_signals) {
    if (is_ignored(number)) continue;
    signals_.push_back(std::make_unique<uv_signal_t>());
    uv_signal_t* handle = signals_.back().get();
    uv_signal_init(loop, handle);
    handle->data = this;
    uv_unref(reinterpret_cast<uv_handle_t*>(handle));
    uv_signal_start(
        handle,
        [](uv_signal_t* signal, int caught) {
          auto* self = static_cast<Lifetime*>(signal->data);
          if (self->was_signalled_) self->cut_off(exit_network);
          self->was_signalled_ = true;
          self->on_signal_(caught);
        },
        number);
    let_interrupt(number);
  }
}

Lifetime::~Lifetime() {
  uv_close(reinterpret_cast<uv_handle_t*>(&timer_), nullptr);
  for (const auto& signal : signals_)
    uv_close(reinterpret_cast<uv_handle_t*>(signal.get()), nullptr);
  uv_run(loop_, UV_RUN_NOWAIT);  // libuv lets go of them in here
}

bool Lifetime::end(int status) {
  if (has_ended_) return false;
  has_ended_ = true;
  status_ = status;
  uv_timer_start(
      &timer_,
      [](uv_timer_t* timer) {
        auto* self = static_cast<Lifetime*>(timer->data);
        self->cut_off(self->status_);
      },
      patience_ms, 0);
  return true;
}

int Lifetime::run() {
  uv_run(loop_, UV_RUN_DEFAULT);
  return status_;
}

/// Without what is done at a proper exit, which would wait for libuv's threads.
void Lifetime::cut_off(int status) {
  if (on_cut_off_) on_cut_off_();
  std::_Exit(status);
}

bool is_ignored(int signal) {
  struct sigaction action {};
  return sigaction(signal, nullptr, &action) == 0 && action.sa_handler == SIG_IGN;
}

const char* signal_name(int signal) {
  switch (signal) {
    case SIGINT: return "SIGINT";
    case SIGTERM: return "SIGTERM";
    case SIGHUP: return "SIGHUP";
    case SIGQUIT: return "SIGQUIT";
    default: return "a signal";
  }
}

Timer::Timer(uv_loop_t* loop) : core_(new Core) {
  uv_timer_init(loop, &core_->handle);
  core_->handle.data = core_;
}

Timer::~Timer() {
  uv_close(reinterpret_cast<uv_handle_t*>(&core_->handle),
           [](uv_handle_t* handle) { delete static_cast<Core*>(handle->data); });
}

void Timer::start(std::uint64_t after_ms, std::uint64_t every_ms, std::function<void()> function) {
  core_->function = std::move(function);
  uv_update_time(core_->handle.loop);
  uv_timer_start(
      &core_->handle,
      [](uv_timer_t* timer) {
        const std::function<void()> call = static_cast<Core*>(timer->data)->function;
        call();
      },
      after_ms, every_ms);
}

void Timer::stop() { uv_timer_stop(&core_->handle); }

}  // namespace program
