// javascript/child: see child.hpp.
//
// The connection is one end of a pair of sockets, watched by uv_poll rather than wrapped in a
// uv_pipe: so it can be waited for outside of the loop, too, while the server starts.
#include "child.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <utility>

namespace modules {

namespace {

bool would_block() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

std::string reason_of(std::int64_t status, int signal) {
  if (signal != 0) return "killed by signal " + std::to_string(signal);
  return "ended with status " + std::to_string(status);
}

}  // namespace

std::shared_ptr<ScriptChild> ScriptChild::start(uv_loop_t* loop, const std::string& program,
                                                const std::string& name, std::size_t memory_limit,
                                                Events& events, std::string& why) {
  std::shared_ptr<ScriptChild> child(new ScriptChild(events));
  child->self_ = child;
  if (!child->spawn(loop, program, name, memory_limit, why)) return nullptr;
  return child;
}

bool ScriptChild::spawn(uv_loop_t* loop, const std::string& program, const std::string& name,
                        std::size_t memory_limit, std::string& why) {
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0) {
    why = uv_strerror(uv_translate_sys_error(errno));
    self_.reset();
    return false;
  }
  socket_ = ends[0];
  ::fcntl(socket_, F_SETFL, ::fcntl(socket_, F_GETFL) | O_NONBLOCK);

  std::string memory = std::to_string(memory_limit);
  std::string subcommand = "run-script";
  std::array<char*, 5> arguments = {const_cast<char*>(program.c_str()), subcommand.data(),
                                    const_cast<char*>(name.c_str()), memory.data(), nullptr};
  std::array<uv_stdio_container_t, 3> stdio{};
  stdio[0].flags = UV_INHERIT_FD;
  stdio[0].data.fd = ends[1];
  stdio[1].flags = UV_IGNORE;
  stdio[2].flags = UV_INHERIT_FD;
  stdio[2].data.fd = STDERR_FILENO;
  uv_process_options_t options{};
  options.file = program.c_str();
  options.args = arguments.data();
  options.stdio = stdio.data();
  options.stdio_count = static_cast<int>(stdio.size());
  // A session of its own: the interrupt key of the server's terminal is for the server.
  options.flags = UV_PROCESS_DETACHED;
  options.exit_cb = [](uv_process_t* process, std::int64_t status, int signal) {
    static_cast<ScriptChild*>(process->data)->on_exit(status, signal);
  };
  process_.data = poll_.data = this;
  open_handles_ = 1;
  const int spawned = uv_spawn(loop, &process_, &options);
  ::close(ends[1]);
  if (spawned != 0) {
    why = uv_strerror(spawned);
    events_ = nullptr;
    exited_ = true;
    ::close(std::exchange(socket_, -1));
    uv_close(reinterpret_cast<uv_handle_t*>(&process_), on_closed);
    return false;
  }
  uv_poll_init(loop, &poll_, socket_);
  ++open_handles_;
  watch(UV_READABLE);
  return true;
}

void ScriptChild::watch(int events) {
  if (socket_ < 0 || events == watched_) return;
  watched_ = events;
  uv_poll_start(&poll_, events, [](uv_poll_t* poll, int status, int ready) {
    // An error is something to read, too: reading tells which.
    static_cast<ScriptChild*>(poll->data)->on_ready(status < 0 ? UV_READABLE : ready);
  });
}

void ScriptChild::flush() {
  while (socket_ >= 0 && backlog() > 0) {
    const std::string_view ready = frames_.ready();
    const ssize_t size = ::send(socket_, ready.data(), ready.size(), MSG_NOSIGNAL);
    if (size < 0 && !would_block()) return;  // it is gone, as reading will find
    if (size < 0) return watch(UV_READABLE | UV_WRITABLE);
    frames_.consume(static_cast<std::size_t>(size));
  }
  watch(UV_READABLE);
}

void ScriptChild::on_ready(int events) {
  const std::shared_ptr<ScriptChild> alive = self_;
  if ((events & UV_WRITABLE) != 0) flush();
  if ((events & UV_READABLE) == 0 || read_frames() != Read::end) return;
  // It closed the connection: it is gone, or of no more use. `on_exit` follows.
  close_poll();
  if (!exited_) uv_process_kill(&process_, SIGKILL);
}

bool ScriptChild::pump(int wait_ms) {
  if (socket_ < 0) return false;
  const short wanted = backlog() > 0 ? POLLIN | POLLOUT : POLLIN;
  pollfd entry{socket_, wanted, 0};
  const int ready = ::poll(&entry, 1, wait_ms);
  if (ready < 0 && errno == EINTR) return true;  // another child has ended, mostly
  if (ready <= 0) return false;
  on_ready(((entry.revents & POLLOUT) != 0 ? UV_WRITABLE : 0) |
           ((entry.revents & ~POLLOUT) != 0 ? UV_READABLE : 0));
  return socket_ >= 0;
}

/// One piece at a time: a script that writes without an end must not keep the loop from its other
/// work.
ScriptChild::Read ScriptChild::read_frames() {
  if (socket_ < 0) return Read::end;
  std::array<char, 65536> piece;
  const ssize_t size = ::recv(socket_, piece.data(), piece.size(), 0);
  if (size < 0 && would_block()) return Read::nothing;
  if (size <= 0) return Read::end;
  input_.append(piece.data(), static_cast<std::size_t>(size));
  return take_frames() ? Read::some : Read::end;
}

bool ScriptChild::take_frames() {
  std::string_view rest = input_;
  FrameState state = FrameState::incomplete;
  std::string_view frame;
  while (events_ != nullptr && (state = split_frame(rest, frame)) == FrameState::whole) {
    FrameReader reader(frame);
    const auto type = reader.type();
    if (!type) {
      state = FrameState::broken;
      break;
    }
    events_->on_frame(*type, reader);
  }
  input_.erase(0, input_.size() - rest.size());
  return state != FrameState::broken;
}

void ScriptChild::detach_and_kill() {
  events_ = nullptr;
  kill({});
}

void ScriptChild::kill(std::string why) {
  why_ = std::move(why);
  if (!exited_) uv_process_kill(&process_, SIGKILL);
  if (events_ == nullptr) close_poll();
}

void ScriptChild::on_exit(std::int64_t status, int signal) {
  const std::shared_ptr<ScriptChild> alive = self_;
  exited_ = true;
  while (events_ != nullptr && read_frames() == Read::some) {
  }
  close_poll();
  uv_close(reinterpret_cast<uv_handle_t*>(&process_), on_closed);
  if (Events* events = std::exchange(events_, nullptr)) {
    events->on_end(why_.empty() ? reason_of(status, signal) : why_);
  }
}

void ScriptChild::close_poll() {
  if (socket_ < 0) return;
  uv_close(reinterpret_cast<uv_handle_t*>(&poll_), on_closed);
  ::close(std::exchange(socket_, -1));
}

void ScriptChild::on_closed(uv_handle_t* handle) {
  auto* child = static_cast<ScriptChild*>(handle->data);
  if (--child->open_handles_ == 0) child->self_.reset();  // the end of `child`, perhaps
}

}  // namespace modules
