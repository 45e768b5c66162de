// jobs: programs that are run, one for each message, so many at a time.
#pragma once

#include <uv.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace program {

struct Job {
  std::string input;                                             ///< for its standard input
  std::vector<std::pair<std::string, std::string>> environment;  ///< besides ours
  /// Called once with the program's exit status; -1 where a signal ended it, or it could not be
  /// started. Not called after `close`.
  std::function<void(int status)> done;
};

class Jobs {
 public:
  static constexpr std::size_t max_waiting = 100;

  /// Each job is `program`, found as a shell would, without arguments; its output goes where ours
  /// goes. At most so many run at once.
  Jobs(uv_loop_t* loop, std::string program, std::uint32_t at_once)
      : loop_(loop), program_(std::move(program)), at_once_(at_once) {}
  ~Jobs() { close(); }
  Jobs(const Jobs&) = delete;
  Jobs& operator=(const Jobs&) = delete;

  /// Runs it, now or when one has ended. False where too many wait already.
  bool add(Job job);
  bool is_idle() const { return running_ == 0 && waiting_.empty(); }
  /// Drops what waits, and no longer cares for what runs.
  void close();

 private:
  struct Running;
  void start(Job job);
  void start_waiting();

  uv_loop_t* loop_;
  std::string program_;
  std::uint32_t at_once_;
  std::uint32_t running_ = 0;
  std::deque<Job> waiting_;
  std::vector<Running*> all_;  ///< each frees itself once libuv has let go of it
};

}  // namespace program
