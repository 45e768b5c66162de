#include "input.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

namespace program {

/// What waits: a poll handle, or for files, which are never waited for, an idle one.
struct Input::Core {
  union {
    uv_handle_t any;
    uv_poll_t poll;
    uv_idle_t idle;
  } handle;
  int descriptor;
  Handler handler;
  Input* owner;
  bool is_polled;

  void start() {
    if (is_polled) {
      uv_poll_start(&handle.poll, UV_READABLE,
                    [](uv_poll_t* poll, int, int) { static_cast<Core*>(poll->data)->read(); });
    } else {
      uv_idle_start(&handle.idle, [](uv_idle_t* idle) { static_cast<Core*>(idle->data)->read(); });
    }
  }

  void read() {
    char octets[16384];
    const ssize_t size = ::read(descriptor, octets, sizeof octets);
    if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
    const Handler call = handler;  // it may close this
    if (size <= 0) owner->close();
    call({octets, size > 0 ? static_cast<std::size_t>(size) : 0});
  }
};

Input::Input(uv_loop_t* loop, int descriptor, Handler handler) : core_(new Core) {
  core_->descriptor = descriptor;
  core_->handler = std::move(handler);
  core_->owner = this;
  const int flags = fcntl(descriptor, F_GETFL);
  core_->is_polled = uv_poll_init(loop, &core_->handle.poll, descriptor) == 0;
  if (core_->is_polled) {
    if (flags >= 0) fcntl(descriptor, F_SETFL, flags);  // libuv made it not block
  } else {
    uv_idle_init(loop, &core_->handle.idle);
  }
  core_->handle.any.data = core_;
  core_->start();
}

void Input::pause() {
  if (core_ == nullptr) return;
  if (core_->is_polled) {
    uv_poll_stop(&core_->handle.poll);
  } else {
    uv_idle_stop(&core_->handle.idle);
  }
}

void Input::resume() {
  if (core_ != nullptr) core_->start();
}

void Input::close() {
  if (core_ == nullptr) return;
  uv_close(&core_->handle.any,
           [](uv_handle_t* handle) { delete static_cast<Core*>(handle->data); });
  core_ = nullptr;
}

}  // namespace program
