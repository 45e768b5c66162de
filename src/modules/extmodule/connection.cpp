// extmodule/connection: see connection.hpp.
#include "connection.hpp"

#include <algorithm>
#include <ctime>
#include <utility>

namespace modules::extmodule {

namespace {

/// The connection of a stream or timer; null where it is over, and its handles are closing.
template <class Handle>
std::shared_ptr<Connection> connection_of(const Handle* handle) {
  auto* connection = static_cast<Connection*>(handle->data);
  return connection == nullptr ? nullptr : connection->shared_from_this();
}

}  // namespace

struct Connection::Write {
  uv_write_t request;
  std::string octets;
};

Connection::Connection(const Surroundings& surroundings, std::string name, SessionOptions options,
                       OnEnded on_ended)
    : around_(surroundings),
      name_(std::move(name)),
      on_ended_(std::move(on_ended)),
      session_(Session::make(around_.engine, *this, std::move(options))) {}

void Connection::open(Owned<Stream> input, Owned<Stream> output) {
  input_ = std::move(input);
  output_ = std::move(output);
  timer_ = make_timer(around_.loop);
  input_->any.data = this;
  outgoing()->data = this;
  timer_->data = this;
  read_on();
}

void Connection::close() {
  session_->closed();
  input_.reset();
  output_.reset();
  timer_.reset();
}

/// The end, once. Nothing may be done with this behind it but return.
void Connection::over(std::optional<Ending> ending) {
  if (!input_) return;
  close();
  if (const OnEnded on_ended = std::exchange(on_ended_, nullptr)) on_ended(ending);
}

// ---- reading ----

void Connection::read_on() {
  const auto allocate = [](uv_handle_t* handle, std::size_t, uv_buf_t* buffer) {
    auto& room = static_cast<Connection*>(handle->data)->buffer_;
    *buffer = uv_buf_init(room.data(), static_cast<unsigned>(room.size()));
  };
  const auto read = [](uv_stream_t* stream, ssize_t size, const uv_buf_t* buffer) {
    const auto connection = connection_of(stream);
    if (!connection || size == 0) return;
    if (size < 0) return connection->over(connection->ending_);
    connection->received({buffer->base, static_cast<std::size_t>(size)});
  };
  is_paused_ = false;
  uv_read_start(&input_->any, allocate, read);
}

void Connection::received(std::string_view octets) {
  if (ending_) return;
  cutter_.add(octets);
  take_lines();
}

void Connection::take_lines() {
  while (input_ && !ending_) {
    if (!is_deaf_ && !can_send()) {
      if (!std::exchange(is_paused_, true)) uv_read_stop(&input_->any);
      return;
    }
    const auto line = cutter_.next(session_->max_line());
    if (!line) break;
    session_->take(*line);
  }
  if (input_ && !ending_ && cutter_.is_too_long()) session_->take_too_long();
}

// ---- writing ----

void Connection::send(std::string line) {
  if (!input_ || is_deaf_) return;
  outbox_.append(line) += '\n';
  write_on();
}

/// One request at a time: lines that are sent meanwhile go together in the next.
void Connection::write_on() {
  if (in_flight_ != 0) return;
  if (outbox_.empty()) {
    if (!ending_) return;
    auto* request = new uv_shutdown_t;
    const auto done = [](uv_shutdown_t* shut, int) { delete shut; };
    if (uv_shutdown(request, outgoing(), done) < 0) delete request;
    return;
  }
  auto* write = new Write{{}, std::exchange(outbox_, {})};
  write->request.data = write;
  in_flight_ = write->octets.size();
  const uv_buf_t buffer =
      uv_buf_init(&write->octets[0], static_cast<unsigned>(write->octets.size()));
  const auto done = [](uv_write_t* request, int status) {
    const std::unique_ptr<Write> finished(static_cast<Write*>(request->data));
    if (const auto connection = connection_of(request->handle)) connection->written(status);
  };
  // Where even the request is refused, the stream is broken, and reading tells so.
  if (uv_write(&write->request, outgoing(), &buffer, 1, done) < 0) delete write;
}

void Connection::written(int status) {
  in_flight_ = 0;
  if (status < 0) return lose_listener();
  write_on();
  if (!is_paused_ || !can_send()) return;
  read_on();
  take_lines();  // those that came with the last piece
}

/// A program that has said what it had to say, and is gone, has not heard our answers. Its last
/// words are in the pipe all the same.
void Connection::lose_listener() {
  if (ending_) return over(ending_);
  is_deaf_ = true;
  has_looked_ = false;
  outbox_.clear();
  timer_deadline_ms_ = UINT64_MAX;
  wake_at(now_ms() + around_.grace_ms);
  if (!is_paused_) return;
  read_on();
  take_lines();
}

// ---- what the session wants ----

std::uint64_t Connection::now_unix_s() const {
  return static_cast<std::uint64_t>(std::time(nullptr));
}

void Connection::wake_at(std::uint64_t deadline_ms) {
  if (!timer_ || deadline_ms >= timer_deadline_ms_) return;
  timer_deadline_ms_ = deadline_ms;
  const std::uint64_t now = now_ms();
  uv_timer_start(
      timer_.get(),
      [](uv_timer_t* timer) {
        if (const auto connection = connection_of(timer)) connection->timed_out();
      },
      deadline_ms > now ? deadline_ms - now : 0, 0);
}

void Connection::timed_out() {
  timer_deadline_ms_ = UINT64_MAX;
  // libuv looks at timers before it reads: where the server was held up, what was said in time is
  // still unread.
  if (!std::exchange(has_looked_, true)) return wake_at(now_ms() + 1);
  has_looked_ = false;
  if (ending_ || is_deaf_) return over(ending_);
  session_->advance(now_ms());
}

void Connection::log(sipmsg::Severity severity, std::string_view text) {
  const std::string& chosen = session_->locals().debugname;
  const std::string name = chosen.empty() ? name_ : printable(chosen);
  around_.log(severity, name + ": " + std::string(text));
}

/// What was sent before, the answer to `quit` above all, still reaches the program. Closing a
/// socket with unread octets in it would take that from it, so they are read, and dropped.
void Connection::end(Ending ending) {
  const auto self = shared_from_this();
  if (ending != Ending::finished || is_deaf_) return over(ending);
  ending_ = ending;
  if (is_paused_) read_on();
  timer_deadline_ms_ = UINT64_MAX;
  wake_at(now_ms() + around_.grace_ms);
  write_on();
}

}  // namespace modules::extmodule
