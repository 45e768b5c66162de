// javascript/child: one process of a script, as the server sees it: started, written to, read from,
// killed.
#pragma once

#include <uv.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "link.hpp"

namespace modules {

class ScriptChild {
 public:
  /// Told of what happens; may kill the child inside.
  class Events {
   public:
    virtual void on_frame(FrameType type, FrameReader& fields) = 0;
    /// Once, and nothing after it. `why`: "killed by signal 9".
    virtual void on_end(const std::string& why) = 0;

   protected:
    ~Events() = default;
  };

  /// Null where no process could be made; `why` then says what was in the way. `program` is run as
  /// `program run-script NAME MEMORY-LIMIT`, with its standard input connected.
  static std::shared_ptr<ScriptChild> start(uv_loop_t* loop, const std::string& program,
                                            const std::string& name, std::size_t memory_limit,
                                            Events& events, std::string& why);
  ScriptChild(const ScriptChild&) = delete;
  ScriptChild& operator=(const ScriptChild&) = delete;

  FrameWriter& frames() { return frames_; }
  /// Sends what is written, now or as soon as the child takes it.
  void flush();
  /// Octets the child has not taken yet.
  std::size_t backlog() const { return frames_.ready().size(); }
  int pid() const { return process_.pid; }

  /// Waits outside of the loop until there is something to read or to write, and does so. False
  /// where the child is gone or the time is over.
  bool pump(int wait_ms);

  /// Ends it at once. No event comes after this.
  void detach_and_kill();
  /// Ends it at once; `on_end` comes when it is gone, with this reason.
  void kill(std::string why);

 private:
  explicit ScriptChild(Events& events) : events_(&events) {}

  bool spawn(uv_loop_t* loop, const std::string& program, const std::string& name,
             std::size_t memory_limit, std::string& why);
  void watch(int events);
  void on_ready(int events);
  enum class Read : std::uint8_t { some, nothing, end };

  Read read_frames();
  /// Hands the whole frames of `input_` over. False where it holds something else.
  bool take_frames();
  void on_exit(std::int64_t status, int signal);
  void close_poll();
  static void on_closed(uv_handle_t* handle);

  Events* events_;  ///< null when nobody is to be told any more
  uv_process_t process_{};
  uv_poll_t poll_{};
  int socket_ = -1;
  int watched_ = 0;
  bool exited_ = false;
  int open_handles_ = 0;
  std::shared_ptr<ScriptChild> self_;  ///< while libuv holds pointers to this
  FrameWriter frames_;
  std::string input_;
  std::string why_;  ///< why it was killed
};

}  // namespace modules
