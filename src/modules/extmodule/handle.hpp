// extmodule/handle: libuv's handles in memory of their own.
//
// libuv reads and writes a handle until its close callback, which may be long after the object it
// belongs to is gone. So each handle is freed there; whoever owns one only says that it is done.
// `data` is the owner, and null from then on: callbacks that still come see that and return.
#pragma once

#include <uv.h>

#include <memory>

namespace modules::extmodule {

/// Closes the handle; libuv calls back nothing but what was under way.
struct CloseHandle {
  template <class Handle>
  void operator()(Handle* handle) const {
    auto* any = reinterpret_cast<uv_handle_t*>(handle);
    any->data = nullptr;
    uv_close(any, [](uv_handle_t* closed) { delete reinterpret_cast<Handle*>(closed); });
  }
};

/// A handle that was initialised.
template <class Handle>
using Owned = std::unique_ptr<Handle, CloseHandle>;

/// A pipe, UNIX socket or TCP socket.
union Stream {
  uv_stream_t any;
  uv_pipe_t pipe;
  uv_tcp_t tcp;
};

// These three cannot fail: the kernel is not asked yet.
inline Owned<Stream> make_pipe(uv_loop_t* loop) {
  auto* stream = new Stream;
  uv_pipe_init(loop, &stream->pipe, 0);
  return Owned<Stream>(stream);
}

inline Owned<Stream> make_tcp(uv_loop_t* loop) {
  auto* stream = new Stream;
  uv_tcp_init(loop, &stream->tcp);
  return Owned<Stream>(stream);
}

inline Owned<uv_timer_t> make_timer(uv_loop_t* loop) {
  auto* timer = new uv_timer_t;
  uv_timer_init(loop, timer);
  return Owned<uv_timer_t>(timer);
}

}  // namespace modules::extmodule
