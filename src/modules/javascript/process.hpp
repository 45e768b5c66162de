// javascript/process: the server's side of one script: its handlers in the engine, the messages it
// is asked about, the messages it dispatches, its limits, and its restarts.
//
// A script that runs longer than its time limit without a pause is killed; one that waits for an
// answer is not. Whatever happens to it, each message it was asked about goes on to the next
// handler. It is started anew, at first at once, then later and later.
#pragma once

#include <uv.h>

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../engine.hpp"
#include "child.hpp"
#include "shared.hpp"
#include "sipmsg.hpp"
#include "source.hpp"

namespace modules {

struct ScriptLimits {
  std::uint64_t time_limit_ms = 2000;  ///< of running without a pause
  std::uint64_t timeout_ms = 4000;     ///< of one message, waiting included
  std::size_t memory_limit = std::size_t{64} << 20;
  std::size_t max_queue = 1000;  ///< messages it is asked about at one time
};

/// What all scripts of a server have in common. Outlives them, and so does what it points to.
struct ScriptSurroundings {
  uv_loop_t* loop = nullptr;
  Engine* engine = nullptr;
  sipmsg::LogHandler log;
  std::string program;  ///< this very program, to be run with `run-script`
  sipmsg::RunParameters run_parameters;
  std::uint64_t started_ms = 0;  ///< on the loop's clock
  SharedVariables* shared = nullptr;
  ScriptLimits limits;
};

/// Belongs to the loop's thread. Made by `start`, ended by `stop`.
class ScriptProcess final : private ScriptChild::Events {
 public:
  /// Waits until the script has been loaded, for `time_limit_ms` at most, so that its handlers are
  /// in place before the first message comes.
  static std::shared_ptr<ScriptProcess> start(ScriptSurroundings& surroundings,
                                              ScriptSource source);
  ~ScriptProcess() = default;
  ScriptProcess(const ScriptProcess&) = delete;
  ScriptProcess& operator=(const ScriptProcess&) = delete;

  /// Takes its handlers out of the engine, answers what waits for it, ends the process. The loop
  /// has to turn before all of it is gone.
  void stop();

  const std::string& name() const { return source_.name; }
  /// 0 where no process is running.
  int pid() const { return child_ ? child_->pid() : 0; }

 private:
  /// A message the script is asked about.
  struct Asked {
    MessagePointer message;
    Answer answer;
    std::uint64_t deadline_ms = 0;
  };
  struct Installed {
    std::uint64_t handler = 0;
    Engine::Id id = 0;
  };

  ScriptProcess(ScriptSurroundings& surroundings, ScriptSource source)
      : surroundings_(surroundings), source_(std::move(source)) {}

  // -- the process
  void launch();
  void write_start();
  void wait_until_loaded();
  void on_end(const std::string& why) override;
  /// Nothing of the old process counts any more.
  void forget_process();
  void restart_later();

  // -- frames
  void on_frame(FrameType type, FrameReader& fields) override;
  bool take(FrameType type, FrameReader& fields);
  bool take_done();
  bool take_install(FrameReader& fields);
  bool take_remove(FrameReader& fields);
  bool take_answer(FrameReader& fields);
  bool take_dispatch(FrameReader& fields);
  bool take_shared(FrameReader& fields);
  bool take_log(FrameReader& fields);

  // -- messages
  void ask(std::uint64_t handler, const MessagePointer& message, Answer answer);
  void send_result(std::uint64_t id, const Message& message, bool handled);
  void add_work(std::string what);

  // -- time
  /// As it is, not as it was when the loop last looked: what the server was busy with before is not
  /// taken from the script's time.
  std::uint64_t now_ms() const {
    uv_update_time(surroundings_.loop);
    return uv_now(surroundings_.loop);
  }
  std::uint64_t next_deadline_ms() const;
  void arm();
  void on_timer();
  void give_up_waiting(std::uint64_t now_ms);

  void log(sipmsg::Severity severity, std::string_view text);

  ScriptSurroundings& surroundings_;
  ScriptSource source_;
  std::weak_ptr<ScriptProcess> weak_;
  std::shared_ptr<ScriptProcess> self_;  ///< while libuv holds a pointer to the timer
  uv_timer_t timer_{};
  std::uint64_t timer_deadline_ms_ = UINT64_MAX;
  std::shared_ptr<ScriptChild> child_;
  std::vector<Installed> installed_;
  std::map<std::uint64_t, Asked> asked_;  ///< by id, so the oldest first
  std::uint64_t last_id_ = 0;
  std::deque<std::string> work_;  ///< what it was told to do; it does the first of them now
  bool is_loading_ = false;       ///< the script itself is among it
  std::uint64_t work_deadline_ms_ = UINT64_MAX;
  std::uint64_t restart_ms_ = UINT64_MAX;
  std::uint64_t launched_ms_ = 0;
  unsigned failures_ = 0;        ///< since it last ran for long
  bool queue_was_full_ = false;  ///< said already
  bool stopped_ = false;
};

}  // namespace modules
