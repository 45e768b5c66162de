// lifetime: how a client's run begins and ends: the signals that end it, and the end that comes
// even where something hangs.
//
// A client ends when its loop has run dry: it closes what it opened. What cannot be closed is a
// look-up of a name in another thread; for that the run is cut off a second after `end`.
#pragma once

#include <uv.h>

#include <functional>
#include <memory>
#include <vector>

#include "exit_status.hpp"

namespace program {

class Lifetime {
 public:
  /// From now on SIGPIPE does nothing: what is written says so. SIGINT, SIGTERM, SIGHUP and SIGQUIT
  /// call `on_signal`, on the loop; a second one ends the program at once. They interrupt a write
  /// that waits for its reader. Those that were ignored before, as nohup does, still are.
  Lifetime(uv_loop_t* loop, std::function<void(int signal)> on_signal);
  ~Lifetime();
  Lifetime(const Lifetime&) = delete;
  Lifetime& operator=(const Lifetime&) = delete;

  /// Ends with this status; the first call counts. False where the end had come already. What the
  /// loop still has to do, it does.
  bool end(int status);
  bool has_ended() const { return has_ended_; }

  /// Runs the loop until it is dry, or the end has come and a second has passed. The status.
  int run();

  /// Called before the program is cut off; to restore the terminal.
  void on_cut_off(std::function<void()> handler) { on_cut_off_ = std::move(handler); }

 private:
  [[noreturn]] void cut_off(int status);

  uv_loop_t* loop_;
  std::function<void(int)> on_signal_;
  std::function<void()> on_cut_off_;
  std::vector<std::unique_ptr<uv_signal_t>> signals_;
  uv_timer_t timer_{};
  bool has_ended_ = false;
  bool was_signalled_ = false;
  int status_ = exit_done;
};

/// Whether whoever started us wants nothing to be done at this signal.
bool is_ignored(int signal);

/// "SIGTERM" for the signals that end a program.
const char* signal_name(int signal);

/// A timer that calls a function, once or again and again. It may go inside its own callback.
class Timer {
 public:
  explicit Timer(uv_loop_t* loop);
  ~Timer();
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

  /// Calls after `after_ms`, and then every `every_ms` unless that is 0. Starts anew where it runs.
  void start(std::uint64_t after_ms, std::uint64_t every_ms, std::function<void()> function);
  void stop();

 private:
  struct Core {
    uv_timer_t handle;
    std::function<void()> function;
  };
  Core* core_;  ///< frees itself once libuv has let go of it
};

}  // namespace program
