// input: standard input, or any file descriptor, on the loop: octets as they come, then the end.
//
// The descriptor stays as it was: shells and the programs beside us in a pipeline share it, and
// would stumble over one that does not block.
#pragma once

#include <uv.h>

#include <functional>
#include <string_view>

namespace program {

class Input {
 public:
  using Handler = std::function<void(std::string_view octets)>;

  /// Reads at once. The handler gets an empty piece at the end, and nothing after it; it may close
  /// and destroy this.
  Input(uv_loop_t* loop, int descriptor, Handler handler);
  ~Input() { close(); }
  Input(const Input&) = delete;
  Input& operator=(const Input&) = delete;

  /// Reads nothing until `resume`: what is written meanwhile waits with its writer.
  void pause();
  void resume();
  void close();

 private:
  struct Core;
  Core* core_;  ///< null once closed; frees itself once libuv has let go of it
};

}  // namespace program
