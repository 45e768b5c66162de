// extmodule/connection: a session on libuv's streams, the two pipes of a program or one socket.
//
// Lines are read and written here, and the session's deadlines kept. Memory is bounded both ways: a
// program that does not read what it is sent is sent nothing more unasked, and is not read from
// either until it has, for its commands are answered.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "codec.hpp"
#include "handle.hpp"
#include "session.hpp"

namespace modules::extmodule {

/// What every connection of the module has in common. The engine outlives them.
struct Surroundings {
  uv_loop_t* loop;
  Engine& engine;
  sipmsg::LogHandler log;
  std::uint32_t grace_ms;  ///< for a program to read what is left, and to end by itself
};

class Connection final : public Peer, public std::enable_shared_from_this<Connection> {
 public:
  /// Octets that may wait to be read by the program.
  static constexpr std::size_t max_backlog = 1048576;

  /// Called once, when it is over and its streams are closed: why the session ended it, or nothing
  /// where the program has closed its end. May let go of the connection.
  using OnEnded = std::function<void(std::optional<Ending> ending)>;

  /// `name` is what the log calls it.
  Connection(const Surroundings& surroundings, std::string name, SessionOptions options,
             OnEnded on_ended);
  ~Connection() { close(); }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  /// Begins to read. `output` is null for a socket, which goes both ways.
  void open(Owned<Stream> input, Owned<Stream> output);
  /// Ends it at once, without `on_ended`.
  void close();
  const Locals& locals() const { return session_->locals(); }

  void send(std::string line) override;
  bool can_send() const override { return !is_deaf_ && outbox_.size() + in_flight_ < max_backlog; }
  /// As it is, not as it was when the loop last looked: what the server was busy with before is not
  /// taken from the program's time.
  std::uint64_t now_ms() const override {
    uv_update_time(around_.loop);
    return uv_now(around_.loop);
  }
  std::uint64_t now_unix_s() const override;
  void wake_at(std::uint64_t deadline_ms) override;
  void log(sipmsg::Severity severity, std::string_view text) override;
  void end(Ending ending) override;

 private:
  struct Write;

  uv_stream_t* outgoing() const { return output_ ? &output_->any : &input_->any; }
  void read_on();
  void received(std::string_view octets);
  void take_lines();
  void write_on();
  void written(int status);
  void lose_listener();
  void timed_out();
  void over(std::optional<Ending> ending);

  const Surroundings around_;
  const std::string name_;
  OnEnded on_ended_;
  std::shared_ptr<Session> session_;
  Owned<Stream> input_;   ///< null before `open` and when it is over
  Owned<Stream> output_;  ///< null for a socket
  Owned<uv_timer_t> timer_;
  std::uint64_t timer_deadline_ms_ = UINT64_MAX;
  LineCutter cutter_;
  std::string outbox_;            ///< lines behind those that libuv has
  std::size_t in_flight_ = 0;     ///< octets that libuv has
  bool is_paused_ = false;        ///< not reading, until the program has read
  bool has_looked_ = false;       ///< once more, since the time was over
  bool is_deaf_ = false;          ///< it has closed its end; what it said before is still read
  std::optional<Ending> ending_;  ///< set: what is left is written, what comes is dropped
  std::array<char, 16384> buffer_;
};

}  // namespace modules::extmodule
