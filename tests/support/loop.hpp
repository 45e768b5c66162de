// A libuv loop for tests, and raw sockets to talk to what runs on it. No test sleeps: the loop runs
// until something is the case, and a guard ends the test where it never is.
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>
#include <uv.h>

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include <doctest/doctest.h>

namespace test {

/// Checks at its end that the loop runs dry: whatever a test opened must be closed by then.
class EventLoop {
 public:
  EventLoop() {
    REQUIRE(uv_loop_init(&loop_) == 0);
    uv_timer_init(&loop_, &guard_);
    guard_.data = this;
    uv_unref(reinterpret_cast<uv_handle_t*>(&guard_));
  }
  ~EventLoop() {
    CHECK(run_dry());
    uv_close(reinterpret_cast<uv_handle_t*>(&guard_), nullptr);
    uv_run(&loop_, UV_RUN_DEFAULT);
    CHECK(uv_loop_close(&loop_) == 0);
  }
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  uv_loop_t* uv() { return &loop_; }

  /// Runs until `condition()` holds. False where it did not within `limit_ms`, or where the loop
  /// has nothing more to wait for.
  template <class Condition>
  bool run_until(Condition condition, std::uint64_t limit_ms = 10000) {
    start_guard(limit_ms);
    bool alive = true;
    while (!condition()) {
      if (expired_ || !alive) return false;
      alive = uv_run(&loop_, UV_RUN_ONCE) != 0;
    }
    return true;
  }
  /// Runs until nothing is left. False where something is, after `limit_ms`.
  bool run_dry(std::uint64_t limit_ms = 10000) {
    start_guard(limit_ms);
    return uv_run(&loop_, UV_RUN_DEFAULT) == 0;
  }
  /// Handles whatever is there already, without waiting for more.
  void turn(int times = 3) {
    while (times-- > 0) uv_run(&loop_, UV_RUN_NOWAIT);
  }

 private:
  void start_guard(std::uint64_t limit_ms) {
    expired_ = false;
    uv_update_time(&loop_);
    uv_timer_start(
        &guard_,
        [](uv_timer_t* timer) {
          static_cast<EventLoop*>(timer->data)->expired_ = true;
          uv_stop(timer->loop);
        },
        limit_ms, 0);
  }

  uv_loop_t loop_;
  uv_timer_t guard_;
  bool expired_ = false;
};

/// A socket of the operating system, by default connected to a port of 127.0.0.1 or ::1. Reading
/// never waits.
class RawSocket {
 public:
  RawSocket(int type, std::uint16_t port, bool ipv6 = false) {
    fd_ = ::socket(ipv6 ? AF_INET6 : AF_INET, type, 0);
    REQUIRE(fd_ >= 0);
    int status = -1;
    if (ipv6) {
      sockaddr_in6 peer{};
      peer.sin6_family = AF_INET6;
      peer.sin6_port = htons(port);
      peer.sin6_addr = in6addr_loopback;
      status = ::connect(fd_, reinterpret_cast<const sockaddr*>(&peer), sizeof peer);
    } else {
      sockaddr_in peer{};
      peer.sin_family = AF_INET;
      peer.sin_port = htons(port);
      peer.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      status = ::connect(fd_, reinterpret_cast<const sockaddr*>(&peer), sizeof peer);
    }
    REQUIRE(status == 0);
    ::fcntl(fd_, F_SETFL, ::fcntl(fd_, F_GETFL) | O_NONBLOCK);
  }
  /// Takes over an open socket.
  explicit RawSocket(int fd) : fd_(fd) {
    ::fcntl(fd_, F_SETFL, ::fcntl(fd_, F_GETFL) | O_NONBLOCK);
  }
  RawSocket(RawSocket&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  RawSocket& operator=(RawSocket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  RawSocket(const RawSocket&) = delete;
  RawSocket& operator=(const RawSocket&) = delete;
  ~RawSocket() { close(); }

  int fd() const { return fd_; }
  std::uint16_t port() const {
    sockaddr_storage name{};
    socklen_t size = sizeof name;
    ::getsockname(fd_, reinterpret_cast<sockaddr*>(&name), &size);
    return ntohs(name.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&name)->sin6_port
                                            : reinterpret_cast<sockaddr_in*>(&name)->sin_port);
  }
  /// How many octets the system took, -1 where it took none.
  long send(std::string_view octets) const {
    return ::send(fd_, octets.data(), octets.size(), MSG_NOSIGNAL);
  }
  /// The next datagram, or what has come on a stream; nothing where nothing has.
  std::optional<std::string> receive() {
    std::string buffer(65536, '\0');
    const long size = ::recv(fd_, &buffer[0], buffer.size(), 0);
    if (size < 0) return std::nullopt;
    if (size == 0) ended_ = true;
    buffer.resize(static_cast<std::size_t>(size));
    return buffer;
  }
  /// Adds what has come on a stream to `received`. True when the peer has closed it.
  bool read_on() {
    while (const auto piece = receive()) {
      received += *piece;
      if (ended_) return true;
    }
    return ended_ || (errno != EAGAIN && errno != EWOULDBLOCK);
  }
  void finish_writing() const { ::shutdown(fd_, SHUT_WR); }
  /// Closes so that the peer gets a reset.
  void reset() {
    const linger now{1, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close();
  }
  /// From now on this end drops whatever comes, and acknowledges nothing: as if its machine, or a
  /// router on the way, were gone without a word.
  void vanish() const {
    sock_filter drop_all{BPF_RET | BPF_K, 0, 0, 0};
    const sock_fprog program{1, &drop_all};
    REQUIRE(::setsockopt(fd_, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) == 0);
  }
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }

  std::string received;

 private:
  int fd_ = -1;
  bool ended_ = false;
};

/// A socket of the operating system that listens on a port of 127.0.0.1.
class RawListener {
 public:
  explicit RawListener(int backlog = 16) {
    fd_ = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in name{};
    name.sin_family = AF_INET;
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof name;
    REQUIRE(::bind(fd_, reinterpret_cast<const sockaddr*>(&name), sizeof name) == 0);
    REQUIRE(::listen(fd_, backlog) == 0);
    REQUIRE(::getsockname(fd_, reinterpret_cast<sockaddr*>(&name), &size) == 0);
    port_ = ntohs(name.sin_port);
    ::fcntl(fd_, F_SETFL, ::fcntl(fd_, F_GETFL) | O_NONBLOCK);
  }
  RawListener(const RawListener&) = delete;
  RawListener& operator=(const RawListener&) = delete;
  ~RawListener() { ::close(fd_); }

  int fd() const { return fd_; }
  std::uint16_t port() const { return port_; }
  /// The next connection, if there is one.
  std::optional<RawSocket> accept() const {
    const int fd = ::accept(fd_, nullptr, nullptr);
    if (fd < 0) return std::nullopt;
    return std::optional<RawSocket>(std::in_place, fd);
  }

 private:
  int fd_ = -1;
  std::uint16_t port_ = 0;
};

/// Whether this machine can use ::1 at all.
inline bool has_ipv6() {
  const int fd = ::socket(AF_INET6, SOCK_DGRAM, 0);
  if (fd < 0) return false;
  sockaddr_in6 name{};
  name.sin6_family = AF_INET6;
  name.sin6_addr = in6addr_loopback;
  const bool bound = ::bind(fd, reinterpret_cast<const sockaddr*>(&name), sizeof name) == 0;
  ::close(fd);
  return bound;
}

/// A small request; `Content-Length` is right.
inline std::string request(const std::string& call_id, const std::string& body = "hello") {
  return "MESSAGE sip:bob@127.0.0.1 SIP/2.0\r\n"
         "Via: SIP/2.0/TCP 127.0.0.1:5060;branch=z9hG4bK" +
         call_id +
         "\r\n"
         "From: <sip:alice@127.0.0.1>;tag=1\r\nTo: <sip:bob@127.0.0.1>\r\n"
         "Call-ID: " +
         call_id +
         "\r\nCSeq: 1 MESSAGE\r\n"
         "Content-Length: " +
         std::to_string(body.size()) + "\r\n\r\n" + body;
}

}  // namespace test
