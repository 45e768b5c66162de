// javascript/runner: the life of one script in its process: work comes in as frames, timers run
// out, the script runs, frames go out.
//
// Nothing here knows of sockets and clocks: they are a ScriptLink, which in tests is a list.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "api.hpp"
#include "heap.hpp"
#include "link.hpp"

namespace modules {

/// The server, as a script's process sees it.
class ScriptLink {
 public:
  enum class Received : std::uint8_t { frame, nothing, end };

  /// Whole frames; waits until they are on their way. Where the server is gone, `receive` says so.
  virtual void send(std::string_view frames) = 0;
  /// The next frame, without its length. `nothing`: there was none until `wait_ms` were over.
  virtual Received receive(std::string& frame, std::uint64_t wait_ms) = 0;
  /// Milliseconds since an arbitrary moment.
  virtual std::uint64_t now_ms() = 0;

  static constexpr std::uint64_t forever = UINT64_MAX;

 protected:
  ~ScriptLink() = default;
};

class ScriptRunner final : public ScriptHost {
 public:
  explicit ScriptRunner(ScriptLink& link) : link_(link) {}
  ~ScriptRunner() = default;
  ScriptRunner(const ScriptRunner&) = delete;
  ScriptRunner& operator=(const ScriptRunner&) = delete;

  /// Until the server is gone (true), or the script cannot go on (false).
  bool run();

  FrameWriter& frames() override { return frames_; }
  void flush() override;
  std::uint64_t now_ms() override { return link_.now_ms(); }
  std::uint64_t uptime_ms() override { return uptime_base_ms_ + (now_ms() - started_ms_); }
  std::uint64_t new_id() override { return ++last_id_; }
  bool set_timer(std::uint64_t id, std::uint64_t delay_ms, std::uint64_t interval_ms) override;
  void clear_timer(std::uint64_t id) override;
  bool wait_for(duk_context* context, std::uint64_t id) override;
  bool receive_shared(bool& present) override;
  const ScriptSource& source() const override { return source_; }

 private:
  static constexpr std::size_t max_timers = 10000;
  /// Waits inside of waits, each of which takes its share of the C stack.
  static constexpr std::size_t max_depth = 50;

  struct Timer {
    std::uint64_t id = 0;
    std::uint64_t interval_ms = 0;  ///< 0: once
  };
  struct Call;

  /// A timer that is due, or one frame; where both wait, now the one, now the other. False at the
  /// end.
  bool turn(duk_context* context);
  bool run_timer(duk_context* context);
  std::uint64_t next_timer_wait_ms();
  bool process(duk_context* context, const std::string& frame);
  bool start(FrameReader& frame);
  void read_source(FrameReader& frame);
  /// A call of a hook that may throw.
  void protect(duk_context* context, Call& call);
  static duk_ret_t run_call(duk_context* context, void* data);
  static void push_arguments(duk_context* context, Call& call);

  void begin_work(std::string_view what);
  void end_work();

  ScriptLink& link_;
  FrameWriter frames_;
  ScriptSource source_;
  std::unique_ptr<ScriptHeap> heap_;
  std::multimap<std::uint64_t, Timer> timers_;  ///< by when they are due
  std::deque<std::string> inbox_;               ///< frames that `receive_shared` came across
  std::vector<std::uint64_t> waits_;            ///< ids waited for inside of one another
  std::vector<std::uint64_t> arrived_;          ///< those of them that came
  std::uint64_t started_ms_ = 0;
  std::uint64_t uptime_base_ms_ = 0;
  std::uint64_t last_id_ = 0;
  bool is_frames_turn_ = false;  ///< the last turn was a timer's
  bool working_ = false;         ///< the server waits for a `done`
  bool over_ = false;            ///< the server is gone, or the script cannot go on
  bool failed_ = false;
};

}  // namespace modules
