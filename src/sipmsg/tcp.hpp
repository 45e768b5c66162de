// tcp: listeners, connections made and accepted, their reuse, and their limits.
//
// Connections are known by number; a number of a connection that is gone finds nothing, and is not
// given to another until all others were. Connections to a peer are made when something is to be
// sent and there is none; what is sent meanwhile waits. Whoever connected, both sides use the
// connection for requests and answers alike (RFC 3261 18, RFC 5923).
//
// A peer can waste three things, and each has its bound: time (a message must be complete soon
// after it began, an idle connection is closed), connections (in all and per address), and memory
// (a peer that does not read what it is sent gets no more of it, and is not read from either).
// Reading holds no memory while nothing is half read (stream.hpp).
//
// libuv writes to sockets in a way that can raise SIGPIPE, so that signal is ignored from the first
// TcpConnections on, unless the program has made its own arrangements.
#pragma once

#include <uv.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "hash.hpp"
#include "loop.hpp"
#include "pool.hpp"
#include "stream.hpp"
#include "timer.hpp"
#include "writer.hpp"

namespace sipmsg {

/// What holds for all connections. Times in milliseconds, sizes in octets.
struct TcpOptions {
  std::uint32_t connect_timeout_ms = 10000;  ///< to wait for a peer to accept
  std::uint32_t message_timeout_ms = 20000;  ///< from a message's first octet to its last
  std::uint32_t drain_timeout_ms = 2000;     ///< for a last answer to get out before closing
  std::uint32_t keepalive_ms = 120000;       ///< between pings on connections made by us; 0: none
  std::uint32_t idle_timeout_ms = 120000;  ///< for connections made by us, where keepalive_ms is 0
  /// For the peer's machine to acknowledge what is sent on connections made by us; 0: as long as
  /// the system likes, a quarter of an hour mostly, and so where it has no TCP_USER_TIMEOUT.
  std::uint32_t acknowledge_timeout_ms = 30000;
  std::uint32_t accept_retry_ms = 1000;        ///< to pause a listener that the system lets down
  std::size_t max_message = max_message_size;  ///< on connections made by us
  std::size_t max_queued = std::size_t{256} << 10;        ///< waiting to be sent on one connection
  std::size_t max_queued_in_all = std::size_t{16} << 20;  ///< on all connections together
  std::size_t max_connections = 10000;
  /// Accepted from one IPv4 address, or from one IPv6 network of 64 bits.
  std::size_t max_connections_per_address = 1000;
};

/// What holds for one listener and the connections it accepts.
struct TcpListenOptions {
  std::size_t max_message = max_message_size;  ///< octets
  std::uint32_t idle_timeout_ms = 120000;      ///< without a message or ping; 0: for ever
  int backlog = 0;         ///< connections not yet accepted; 0: the system's maximum
  bool ipv6_only = false;  ///< an IPv6 listener refuses IPv4 peers
};

/// Numbers of what happened since the start.
struct TcpCounters {
  std::uint64_t accepted = 0;
  std::uint64_t refused = 0;          ///< accepted and closed at once: too many connections
  std::uint64_t accept_failures = 0;  ///< the system had no file descriptor or memory left
  std::uint64_t connected = 0;        ///< made by us
  std::uint64_t connect_failures = 0;
  std::uint64_t received = 0;      ///< messages
  std::uint64_t keepalives = 0;    ///< pings and pongs received
  std::uint64_t sent = 0;          ///< messages taken for sending
  std::uint64_t not_sent = 0;      ///< messages refused for a limit
  std::uint64_t closed_idle = 0;   ///< for being idle
  std::uint64_t closed_slow = 0;   ///< for a message that did not complete in time
  std::uint64_t closed_frame = 0;  ///< for a message whose end could not be found
};

class TcpReceiver {
 public:
  /// A message, or, with an `error` that leaves its end unknown, what could be read of one; the
  /// connection is closed then, after what is sent on it inside this call. The message is valid
  /// during the call only. The receiver may do anything in it: send, close, destroy.
  virtual void on_stream_message(std::uint32_t connection, const MessageView& message, Error error,
                                 const SocketAddress& from) = 0;
  /// The connection is gone, or could not be made. Once for each connection; never inside a call of
  /// the receiver's, and never after `close`. `why`: `closed` by the peer or for being idle,
  /// `timeout`, `network`, or the mistake in the last message.
  virtual void on_connection_closed(std::uint32_t connection, Error why) = 0;
  /// Instead, where it could not be made: the peer has seen nothing of what was sent on it.
  virtual void on_connection_failed(std::uint32_t connection, Error why) {
    on_connection_closed(connection, why);
  }
  /// Everything that had come on a connection is handed over.
  virtual void on_stream_messages_end() {}
  /// A connection has been idle for its time: whether it is needed, and so stays open all the same.
  /// Nothing of ours may be called from here.
  virtual bool keeps_idle_connection(std::uint32_t) { return false; }

 protected:
  ~TcpReceiver() = default;
};

/// Connections are numbered from here; what is below is free for sockets of other kinds.
inline constexpr std::uint32_t first_connection_number = 0x10000;

namespace detail {

class TcpCore;

struct TcpConnection {
  enum class State : std::uint8_t {
    connecting,  ///< what is sent waits in libuv's queue
    open,        ///< reading and writing
    draining,    ///< what was sent goes out, what comes is dropped
    closed,      ///< until libuv has let go of it
  };

  TcpConnection(std::shared_ptr<TcpCore> owner, StreamBuffers& buffers, std::size_t max_message)
      : core(std::move(owner)), framer(buffers, max_message) {}

  uv_tcp_t handle;
  uv_connect_t connect_request;
  uv_shutdown_t shutdown_request;
  std::shared_ptr<TcpCore> core;  ///< which holds this one, too: let go in the close callback
  Handle place;                   ///< in the core's slab
  StreamFramer framer;
  Timer timer;                               ///< what it waits for; `kind` says what
  TimerQueue* idle_timers = nullptr;         ///< null: it may be idle for ever
  std::uint32_t number = 0;                  ///< 0: nobody has heard of it
  std::uint32_t listener = HashIndex::npos;  ///< which accepted it
  std::uint32_t peer = HashIndex::npos;      ///< its address's entry
  SocketAddress remote;
  SocketAddress local;
  std::size_t queued = 0;  ///< octets in libuv's queue
  Error why;               ///< it is being closed
  State state = State::connecting;
  bool made_by_us = false;
  bool was_open = false;  ///< it stood once
  bool is_reading = false;
  bool peer_is_done = false;   ///< it will not send any more
  bool has_shut_down = false;  ///< all is sent, and the peer knows that it was all
};

/// Whom the connections of an address are counted for. An IPv6 address counts with its whole
/// network, of which each subscriber has one, and 2^64 addresses in it.
inline IpAddress peer_network(IpAddress ip) {
  if (ip.is_ipv6()) std::fill(ip.octets.begin() + 8, ip.octets.end(), std::uint8_t{0});
  return ip;
}

struct TcpListener {
  uv_tcp_t handle;
  std::shared_ptr<TcpCore> core;
  std::uint32_t index = 0;  ///< in the core's list
};

/// All listeners and connections of one owner, until libuv has let go of the last.
class TcpCore : public std::enable_shared_from_this<TcpCore> {
 public:
  TcpCore(std::shared_ptr<LoopCore> loop, Alarm& alarm, TcpReceiver& receiver,
          const TcpOptions& options, const SipHashKey& key)
      : options_(options),
        loop_(std::move(loop)),
        alarm_(&alarm),
        receiver_(&receiver),
        hash_(key) {}

  Result<SocketAddress> listen(const SocketAddress& address, const TcpListenOptions& options);
  Result<std::uint32_t> connect(const SocketAddress& remote);
  Error send(TcpConnection& connection, const Slices& message);
  /// Closes it after what was sent has gone out.
  void drain(TcpConnection& connection, Error why);
  /// No callback reaches alarm or receiver any more. What was sent has `flush_ms` to get out.
  void close(std::uint32_t flush_ms);
  void advance(std::uint64_t now_ms);

  TcpConnection* find(std::uint32_t number);
  TcpConnection* find(const SocketAddress& remote);
  std::size_t connection_count() const { return connections_.size(); }
  const TcpCounters& counters() const { return counters_; }
  bool loop_is_closed() const { return loop_->is_closed(); }

 private:
  using State = TcpConnection::State;
  enum TimerKind : std::uint8_t {
    connect_timer,
    message_timer,
    idle_timer,
    ping_timer,
    drain_timer,
    accept_timer
  };

  /// A listener as it was asked for; `open` is null while it pauses.
  struct Listening {
    SocketAddress address;
    TcpListenOptions options;
    TimerQueue* idle_timers = nullptr;
    TcpListener* open = nullptr;
    Timer retry;
  };
  /// How many connections one address or network has.
  struct Peer {
    IpAddress network;
    std::size_t connections = 0;
  };
  /// Octets that wait. It stands at the front of a block of the pool, the octets behind it.
  struct Queued {
    uv_write_t request;
    TcpConnection* connection;
    std::size_t size;
    Block block;  ///< the one this stands in
    char* octets() { return reinterpret_cast<char*>(this + 1); }
  };

  // -- listeners --
  Error open_listener(std::uint32_t index);
  void close_listener(Listening& listening);
  void pause_listener(Listening& listening);
  void accept(TcpListener& listener);

  // -- the life of a connection --
  TcpConnection& create(std::size_t max_message);
  bool has_place_for(const IpAddress& ip);
  std::uint32_t find_peer(const IpAddress& network) const;
  void enter(TcpConnection& connection);
  void open(TcpConnection& connection);
  void limit_silence(TcpConnection& connection);
  void forget(TcpConnection& connection);
  void close(TcpConnection& connection, Error why);
  void on_closed(TcpConnection& connection);
  void start_timer(TcpConnection& connection, TimerKind kind, TimerQueue& queue);
  void start_idle_timer(TcpConnection& connection);
  static bool is_timing_a_message(const TcpConnection& connection) {
    return connection.timer.is_running() && connection.timer.kind == message_timer;
  }
  void on_timer(Timer& timer);

  // -- reading and writing --
  void start_reading(TcpConnection& connection);
  void pause_reading(TcpConnection& connection);
  void read(TcpConnection& connection, std::ptrdiff_t size);
  void hand_over(TcpConnection& connection);
  void wait_for_more(TcpConnection& connection, bool made_progress);
  void on_end_of_stream(TcpConnection& connection);
  void on_shut_down(TcpConnection& connection, int status);
  Error write(TcpConnection& connection, const Slices& message);
  Error enqueue(TcpConnection& connection, const Slices& message, std::size_t already_sent);
  void on_written(TcpConnection& connection, std::size_t size, int status);
  void close_flush_timer();

  std::uint64_t hash_of(const SocketAddress& address) const;
  std::uint64_t hash_of(const IpAddress& ip) const;
  /// Numbers are ours, so nobody chooses them: spread by a multiplication (the golden ratio).
  static std::uint64_t hash_of(std::uint32_t number) { return number * 0x9e3779b97f4a7c15; }
  std::uint64_t now_ms() const { return uv_now(loop_->loop()); }
  static TcpConnection& of(void* data) { return *static_cast<TcpConnection*>(data); }
  template <class Base, class Derived>
  static Base* as(Derived* handle) {
    return reinterpret_cast<Base*>(handle);
  }

  TcpOptions options_;
  std::shared_ptr<LoopCore> loop_;
  Alarm* alarm_;
  TcpReceiver* receiver_;  ///< null when closed
  SipHash hash_;           ///< fresh: copied for each use
  TcpCounters counters_;
  Timers timers_;  // before what holds timers
  StreamBuffers buffers_;
  BlockPool pool_{std::size_t{1} << 20};
  std::size_t queued_ = 0;  ///< on all connections
  std::vector<std::unique_ptr<Listening>> listeners_;
  Slab<TcpConnection, 16> connections_;
  HashIndex by_number_;
  HashIndex by_remote_;
  Slab<Peer> peers_;
  HashIndex by_network_;
  std::uint32_t last_number_ = first_connection_number - 1;
  uv_timer_t flush_timer_;
  std::shared_ptr<TcpCore> self_;  ///< while the flush timer is open
  bool flush_timer_is_open_ = false;
  char dropped_[4096];  ///< what is read only to be dropped
};

// ---- listeners ----

inline Result<SocketAddress> TcpCore::listen(const SocketAddress& address,
                                             const TcpListenOptions& options) {
  auto listening = std::make_unique<Listening>();
  listening->address = address;
  listening->options = options;
  if (options.idle_timeout_ms != 0) {
    listening->idle_timers = &timers_.queue(options.idle_timeout_ms);
  }
  const auto index = static_cast<std::uint32_t>(listeners_.size());
  listening->retry.owner = index;
  listening->retry.kind = accept_timer;
  listeners_.push_back(std::move(listening));
  if (auto error = open_listener(index)) {
    listeners_.pop_back();
    return error;
  }
  return listeners_.back()->address;
}

/// Binds and listens; with port 0 the port that the system chose is kept in the address.
inline Error TcpCore::open_listener(std::uint32_t index) {
  Listening& listening = *listeners_[index];
  auto* listener = new TcpListener;
  if (const int status = uv_tcp_init(loop_->loop(), &listener->handle); status < 0) {
    delete listener;
    return network_error(status);
  }
  listener->core = shared_from_this();
  listener->index = index;
  listener->handle.data = listener;
  listening.open = listener;

  const NativeAddress native = to_native(listening.address);
  const bool ipv6_only = listening.address.ip.is_ipv6() && listening.options.ipv6_only;
  int status =
      uv_tcp_bind(&listener->handle, &native.any, ipv6_only ? unsigned{UV_TCP_IPV6ONLY} : 0);
  // A port that is taken is reported here only, not by bind.
  if (status == 0) {
    const int backlog = listening.options.backlog > 0 ? listening.options.backlog : SOMAXCONN;
    status = uv_listen(as<uv_stream_t>(&listener->handle), backlog,
                       [](uv_stream_t* handle, int accept_status) {
                         auto& ready = *static_cast<TcpListener*>(handle->data);
                         TcpCore& core = *ready.core;
                         if (accept_status == 0) return core.accept(ready);
                         core.pause_listener(*core.listeners_[ready.index]);
                       });
  }
  if (status < 0) {
    close_listener(listening);
    return network_error(status);
  }
  NativeAddress bound;
  int size = sizeof bound;
  if (uv_tcp_getsockname(&listener->handle, &bound.any, &size) == 0) {
    listening.address.port = from_native(&bound.any).port;
  }
  return {};
}

inline void TcpCore::close_listener(Listening& listening) {
  if (listening.open == nullptr) return;
  uv_close(as<uv_handle_t>(&std::exchange(listening.open, nullptr)->handle),
           [](uv_handle_t* handle) { delete static_cast<TcpListener*>(handle->data); });
}

/// The system has no file descriptor or no memory left. libuv would try again at once and for ever,
/// so the listener is closed for a while.
inline void TcpCore::pause_listener(Listening& listening) {
  ++counters_.accept_failures;
  close_listener(listening);
  timers_.queue(options_.accept_retry_ms).start(listening.retry, now_ms());
  alarm_->arm(listening.retry.deadline_ms());
}

inline void TcpCore::accept(TcpListener& listener) {
  const Listening& listening = *listeners_[listener.index];
  TcpConnection& connection = create(listening.options.max_message);
  NativeAddress remote;
  NativeAddress local;
  int remote_size = sizeof remote;
  int local_size = sizeof local;
  if (uv_accept(as<uv_stream_t>(&listener.handle), as<uv_stream_t>(&connection.handle)) != 0 ||
      uv_tcp_getpeername(&connection.handle, &remote.any, &remote_size) != 0 ||
      uv_tcp_getsockname(&connection.handle, &local.any, &local_size) != 0) {
    ++counters_.accept_failures;  // the peer has gone again, mostly
    return close(connection, ErrorCode::closed);
  }
  connection.remote = from_native(&remote.any);
  connection.local = from_native(&local.any);
  if (!has_place_for(connection.remote.ip)) {
    ++counters_.refused;
    return close(connection, ErrorCode::limit_reached);
  }
  ++counters_.accepted;
  connection.listener = listener.index;
  connection.idle_timers = listening.idle_timers;
  enter(connection);
  open(connection);
  // Whoever connects has something to say.
  start_timer(connection, message_timer, timers_.queue(options_.message_timeout_ms));
}

// ---- the life of a connection ----

/// A connection with an open handle, which nobody can find yet.
inline TcpConnection& TcpCore::create(std::size_t max_message) {
  const Handle place = connections_.create(shared_from_this(), buffers_, max_message);
  TcpConnection& connection = *connections_.get(place);
  connection.place = place;
  connection.timer.owner = place.index;
  uv_tcp_init(loop_->loop(), &connection.handle);
  connection.handle.data = &connection;
  connection.connect_request.data = &connection;
  connection.shutdown_request.data = &connection;
  return connection;
}

/// Whether one more may be accepted from there; the one in question counts already.
inline bool TcpCore::has_place_for(const IpAddress& ip) {
  if (connections_.size() > options_.max_connections) return false;
  const std::uint32_t peer = find_peer(peer_network(ip));
  return peer == HashIndex::npos ||
         peers_.at(peer).connections < options_.max_connections_per_address;
}

/// Gives the connection a number, and enters it where it can be found.
inline void TcpCore::enter(TcpConnection& connection) {
  do {
    ++last_number_;
    if (last_number_ < first_connection_number) last_number_ = first_connection_number;
  } while (find(last_number_) != nullptr);
  connection.number = last_number_;
  by_number_.insert(hash_of(connection.number), connection.place.index);
  by_remote_.insert(hash_of(connection.remote), connection.place.index);

  const IpAddress network = peer_network(connection.remote.ip);
  connection.peer = find_peer(network);
  if (connection.peer == HashIndex::npos) {
    connection.peer = peers_.create().index;
    peers_.at(connection.peer).network = network;
    by_network_.insert(hash_of(network), connection.peer);
  }
  ++peers_.at(connection.peer).connections;
}

inline Result<std::uint32_t> TcpCore::connect(const SocketAddress& remote) {
  if (connections_.size() >= options_.max_connections) return ErrorCode::limit_reached;
  // The loop's clock may be old where the application calls out of the blue.
  uv_update_time(loop_->loop());
  TcpConnection& connection = create(options_.max_message);
  connection.remote = remote;
  connection.made_by_us = true;
  const std::uint32_t idle_ms =
      options_.keepalive_ms != 0 ? options_.keepalive_ms : options_.idle_timeout_ms;
  if (idle_ms != 0) connection.idle_timers = &timers_.queue(idle_ms);

  const NativeAddress native = to_native(remote);
  const int status = uv_tcp_connect(&connection.connect_request, &connection.handle, &native.any,
                                    [](uv_connect_t* request, int connect_status) {
                                      TcpConnection& made = of(request->data);
                                      TcpCore& core = *made.core;
                                      if (made.state != State::connecting) return;
                                      if (connect_status == 0) {
                                        ++core.counters_.connected;
                                        core.open(made);
                                        core.start_idle_timer(made);
                                      } else {
                                        ++core.counters_.connect_failures;
                                        core.close(made, network_error(connect_status));
                                      }
                                    });
  if (status < 0) {
    ++counters_.connect_failures;
    close(connection, network_error(status));
    return network_error(status);
  }
  NativeAddress local;
  int size = sizeof local;
  if (uv_tcp_getsockname(&connection.handle, &local.any, &size) == 0) {
    connection.local = from_native(&local.any);
  }
  enter(connection);
  start_timer(connection, connect_timer, timers_.queue(options_.connect_timeout_ms));
  return connection.number;
}

/// The connection stands.
inline void TcpCore::open(TcpConnection& connection) {
  connection.state = State::open;
  connection.was_open = true;
  uv_tcp_nodelay(&connection.handle, 1);
  // After so long without a sign of life the system asks whether the peer's machine is still there.
  constexpr unsigned quiet_s = 60;
  uv_tcp_keepalive(&connection.handle, 1, quiet_s);
  if (connection.made_by_us) limit_silence(connection);
  start_reading(connection);
}

/// A peer that went without a word, a router that forgot the connection: while something of ours is
/// on its way the system asks nothing, and would send it again and again for a quarter of an hour.
/// Whoever waits for an answer would wait on this connection each time anew.
inline void TcpCore::limit_silence(TcpConnection& connection) {
#ifdef TCP_USER_TIMEOUT
  uv_os_fd_t fd;
  if (uv_fileno(as<uv_handle_t>(&connection.handle), &fd) < 0) return;
  const unsigned limit_ms = options_.acknowledge_timeout_ms;
  setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &limit_ms, sizeof limit_ms);
#else
  static_cast<void>(connection);
#endif
}

/// From here on the connection cannot be found.
inline void TcpCore::forget(TcpConnection& connection) {
  if (connection.number == 0) return;
  by_number_.erase(hash_of(connection.number), connection.place.index);
  by_remote_.erase(hash_of(connection.remote), connection.place.index);
}

inline void TcpCore::close(TcpConnection& connection, Error why) {
  if (connection.state == State::closed) return;
  if (connection.state != State::draining) {
    forget(connection);
    connection.why = why;
  }
  connection.state = State::closed;
  connection.timer.cancel();
  uv_close(as<uv_handle_t>(&connection.handle), [](uv_handle_t* handle) {
    TcpConnection& closed = of(handle->data);
    // Let go of first, so that the last connection does not destroy its core from inside.
    const std::shared_ptr<TcpCore> core = std::move(closed.core);
    core->on_closed(closed);
  });
}

inline void TcpCore::on_closed(TcpConnection& connection) {
  const std::uint32_t number = connection.number;
  const Error why = connection.why;
  const bool was_open = connection.was_open;
  if (connection.peer != HashIndex::npos) {
    Peer& peer = peers_.at(connection.peer);
    if (--peer.connections == 0) {
      by_network_.erase(hash_of(peer.network), connection.peer);
      peers_.destroy(peers_.handle_of(connection.peer));
    }
  }
  connections_.destroy(connection.place);
  if (connections_.size() == 0) close_flush_timer();
  if (number == 0 || receiver_ == nullptr) return;
  if (was_open) return receiver_->on_connection_closed(number, why);
  receiver_->on_connection_failed(number, why);
}

inline void TcpCore::drain(TcpConnection& connection, Error why) {
  if (connection.state == State::connecting) return close(connection, why);
  if (connection.state != State::open) return;
  forget(connection);
  connection.state = State::draining;
  connection.why = why;
  // Reading goes on: data left unread would make the system break the connection off, and take the
  // last answer from the peer.
  if (!connection.peer_is_done) start_reading(connection);
  const int status = uv_shutdown(&connection.shutdown_request, as<uv_stream_t>(&connection.handle),
                                 [](uv_shutdown_t* request, int shutdown_status) {
                                   TcpConnection& done = of(request->data);
                                   done.core->on_shut_down(done, shutdown_status);
                                 });
  if (status < 0) return close(connection, why);
  start_timer(connection, drain_timer, timers_.queue(options_.drain_timeout_ms));
}

inline void TcpCore::on_shut_down(TcpConnection& connection, int status) {
  connection.has_shut_down = true;
  if (status < 0 || connection.peer_is_done) close(connection, connection.why);
}

inline void TcpCore::close(std::uint32_t flush_ms) {
  receiver_ = nullptr;
  for (const auto& listening : listeners_) {
    close_listener(*listening);
    listening->retry.cancel();
  }
  bool some_are_left = false;
  connections_.for_each([&](Handle, TcpConnection& connection) {
    const bool has_more = connection.queued > 0 || connection.state == State::draining;
    if (flush_ms == 0 || !has_more) return close(connection, ErrorCode::closed);
    drain(connection, ErrorCode::closed);
    some_are_left = some_are_left || connection.state == State::draining;
  });
  alarm_ = nullptr;
  if (!some_are_left || flush_timer_is_open_) return;
  // A timer of their own: the owner's may be gone before they are.
  uv_timer_init(loop_->loop(), &flush_timer_);
  flush_timer_.data = this;
  flush_timer_is_open_ = true;
  self_ = shared_from_this();
  uv_timer_start(
      &flush_timer_,
      [](uv_timer_t* timer) {
        auto& core = *static_cast<TcpCore*>(timer->data);
        core.connections_.for_each([&core](Handle, TcpConnection& connection) {
          core.close(connection, ErrorCode::closed);
        });
      },
      flush_ms, 0);
}

inline void TcpCore::close_flush_timer() {
  if (!std::exchange(flush_timer_is_open_, false)) return;
  uv_close(as<uv_handle_t>(&flush_timer_), [](uv_handle_t* handle) {
    const auto last = std::move(static_cast<TcpCore*>(handle->data)->self_);
  });
}

// ---- time ----

inline void TcpCore::start_timer(TcpConnection& connection, TimerKind kind, TimerQueue& queue) {
  connection.timer.kind = kind;
  queue.start(connection.timer, now_ms());
  if (alarm_ != nullptr) alarm_->arm(connection.timer.deadline_ms());
}

inline void TcpCore::start_idle_timer(TcpConnection& connection) {
  if (connection.idle_timers == nullptr) return connection.timer.cancel();
  const bool pings = connection.made_by_us && options_.keepalive_ms != 0;
  start_timer(connection, pings ? ping_timer : idle_timer, *connection.idle_timers);
}

inline void TcpCore::advance(std::uint64_t now) {
  timers_.advance(now, [this](Timer& timer) { on_timer(timer); });
  const auto next = timers_.next_deadline();
  if (next && alarm_ != nullptr) alarm_->arm(*next);
}

inline void TcpCore::on_timer(Timer& timer) {
  if (timer.kind == accept_timer) {
    if (open_listener(timer.owner)) pause_listener(*listeners_[timer.owner]);
    return;
  }
  TcpConnection& connection = connections_.at(timer.owner);
  switch (timer.kind) {
    case connect_timer: ++counters_.connect_failures; return close(connection, ErrorCode::timeout);
    case message_timer: ++counters_.closed_slow; return close(connection, ErrorCode::timeout);
    case idle_timer:
      if (receiver_ != nullptr && receiver_->keeps_idle_connection(connection.number)) {
        return start_idle_timer(connection);
      }
      ++counters_.closed_idle;
      return close(connection, ErrorCode::closed);
    case ping_timer:
      // RFC 5626 3.5.1. A peer that has read nothing since the last one is not there any more.
      if (connection.queued > 0) return close(connection, ErrorCode::timeout);
      (void)write(connection, Slices("\r\n\r\n"));
      return start_idle_timer(connection);
    default: return close(connection, connection.why);
  }
}

// ---- reading ----

inline void TcpCore::start_reading(TcpConnection& connection) {
  if (connection.is_reading) return;
  const auto give_room = [](uv_handle_t* handle, std::size_t, uv_buf_t* room) {
    TcpConnection& reader = of(handle->data);
    if (reader.state == State::open) {
      const StreamFramer::Room free = reader.framer.writable();
      *room = uv_buf_init(free.data, static_cast<unsigned>(free.size));
    } else {
      char* dropped = reader.core->dropped_;
      *room = uv_buf_init(dropped, sizeof reader.core->dropped_);
    }
  };
  const auto take = [](uv_stream_t* handle, ssize_t size, const uv_buf_t*) {
    TcpConnection& reader = of(handle->data);
    reader.core->read(reader, size);
  };
  connection.is_reading = uv_read_start(as<uv_stream_t>(&connection.handle), give_room, take) == 0;
}

inline void TcpCore::pause_reading(TcpConnection& connection) {
  uv_read_stop(as<uv_stream_t>(&connection.handle));
  connection.is_reading = false;
}

inline void TcpCore::read(TcpConnection& connection, std::ptrdiff_t size) {
  if (size == UV_EOF) return on_end_of_stream(connection);
  if (size < 0) return close(connection, network_error(static_cast<int>(size)));
  if (size == 0 || connection.state != State::open) return;
  connection.framer.commit(static_cast<std::size_t>(size));
  hand_over(connection);
}

/// Gives the receiver every whole message that has come. The receiver may close the connection or
/// everything; connection and core are there until this returns, for libuv still holds them.
inline void TcpCore::hand_over(TcpConnection& connection) {
  bool made_progress = false;
  bool pinged = false;
  while (connection.state == State::open) {
    const StreamEvent event = connection.framer.next();
    if (event == StreamEvent::need_more) break;
    made_progress = true;
    switch (event) {
      case StreamEvent::message:
      case StreamEvent::error:
        ++counters_.received;
        receiver_->on_stream_message(connection.number, connection.framer.view(),
                                     connection.framer.error(), connection.remote);
        break;
      case StreamEvent::ping: pinged = true; [[fallthrough]];
      default: ++counters_.keepalives; break;
    }
    if (event == StreamEvent::error) {
      ++counters_.closed_frame;
      drain(connection, connection.framer.error());
    }
  }
  if (connection.state == State::open) {
    // One answer, however many pings came at once: nobody makes us write much by writing little.
    if (pinged) (void)write(connection, Slices("\r\n"));
    wait_for_more(connection, made_progress);
  }
  if (receiver_ != nullptr) receiver_->on_stream_messages_end();
}

/// A message must be complete some time after it began, however busily it drips. Between messages
/// there is more time.
inline void TcpCore::wait_for_more(TcpConnection& connection, bool made_progress) {
  if (connection.state != State::open) return;
  if (connection.framer.pending() == 0) return start_idle_timer(connection);
  if (made_progress || !is_timing_a_message(connection)) {
    start_timer(connection, message_timer, timers_.queue(options_.message_timeout_ms));
  }
}

inline void TcpCore::on_end_of_stream(TcpConnection& connection) {
  connection.peer_is_done = true;
  pause_reading(connection);
  if (connection.state == State::open && connection.queued > 0) {
    return drain(connection, ErrorCode::closed);
  }
  if (connection.state == State::open || connection.has_shut_down) {
    close(connection, ErrorCode::closed);
  }
}

// ---- writing ----

inline Error TcpCore::send(TcpConnection& connection, const Slices& message) {
  if (connection.state != State::open && connection.state != State::connecting) {
    return ErrorCode::gone;
  }
  if (auto error = write(connection, message)) {
    ++counters_.not_sent;
    return error;
  }
  ++counters_.sent;
  // What we send keeps an idle connection, too; one that owes us the rest of a message it does not.
  if (connection.state == State::open && !is_timing_a_message(connection)) {
    start_idle_timer(connection);
  }
  return {};
}

/// Writes what the system takes at once, and queues a copy of the rest.
inline Error TcpCore::write(TcpConnection& connection, const Slices& message) {
  const std::size_t size = message.size();
  std::size_t sent = 0;
  if (connection.state == State::open && connection.queued == 0) {
    std::array<uv_buf_t, Slices::capacity> pieces;
    for (std::size_t i = 0; i < message.count; ++i) {
      const std::string_view piece = message.pieces[i];
      pieces[i] = uv_buf_init(const_cast<char*>(piece.data()), static_cast<unsigned>(piece.size()));
    }
    const int status = uv_try_write(as<uv_stream_t>(&connection.handle), pieces.data(),
                                    static_cast<unsigned>(message.count));
    if (status < 0 && status != UV_EAGAIN) {
      close(connection, network_error(status));
      return network_error(status);
    }
    if (status > 0) sent = static_cast<std::size_t>(status);
    if (sent == size) return {};
  }
  const std::size_t rest = size - sent;
  if (connection.queued + rest <= options_.max_queued &&
      queued_ + rest <= options_.max_queued_in_all) {
    return enqueue(connection, message, sent);
  }
  if (sent > 0) {
    close(connection, ErrorCode::limit_reached);  // nothing can follow half a message
  } else if (connection.queued > 0) {
    pause_reading(connection);  // who does not read is not read from: it would make us more to send
  }
  return ErrorCode::limit_reached;
}

inline Error TcpCore::enqueue(TcpConnection& connection, const Slices& message,
                              std::size_t already_sent) {
  const std::size_t size = message.size() - already_sent;
  Block block = pool_.allocate(sizeof(Queued) + size);
  if (!block) {  // no message is as large as that
    if (already_sent > 0) close(connection, ErrorCode::too_large);
    return ErrorCode::too_large;
  }
  auto* queued = new (block.data()) Queued;
  queued->request.data = queued;
  queued->connection = &connection;
  queued->size = size;
  queued->block = std::move(block);
  char* out = queued->octets();
  for (std::string_view piece : message) {
    const std::size_t skipped = std::min(already_sent, piece.size());
    already_sent -= skipped;
    piece.remove_prefix(skipped);
    if (!piece.empty()) std::memcpy(out, piece.data(), piece.size());
    out += piece.size();
  }
  const uv_buf_t buffer = uv_buf_init(queued->octets(), static_cast<unsigned>(size));
  const int status = uv_write(&queued->request, as<uv_stream_t>(&connection.handle), &buffer, 1,
                              [](uv_write_t* request, int write_status) {
                                auto* written = static_cast<Queued*>(request->data);
                                TcpConnection& writer = *written->connection;
                                const std::size_t octets = written->size;
                                { const Block freed = std::move(written->block); }
                                writer.core->on_written(writer, octets, write_status);
                              });
  if (status < 0) {
    const Block freed = std::move(queued->block);
    close(connection, network_error(status));
    return network_error(status);
  }
  connection.queued += size;
  queued_ += size;
  return {};
}

inline void TcpCore::on_written(TcpConnection& connection, std::size_t size, int status) {
  connection.queued -= size;
  queued_ -= size;
  if (connection.state != State::open) return;
  if (status < 0) return close(connection, network_error(status));
  if (connection.queued <= options_.max_queued / 2) start_reading(connection);
}

// ---- finding ----

inline std::uint64_t TcpCore::hash_of(const IpAddress& ip) const {
  SipHash hash = hash_;
  hash.update(ip.bytes());
  return hash.finish();
}

inline std::uint64_t TcpCore::hash_of(const SocketAddress& address) const {
  const std::uint32_t numbers[2] = {address.port, address.scope};
  SipHash hash = hash_;
  hash.update(address.ip.bytes());
  hash.update({reinterpret_cast<const char*>(numbers), sizeof numbers});
  return hash.finish();
}

inline std::uint32_t TcpCore::find_peer(const IpAddress& network) const {
  return by_network_.find(hash_of(network), [&](std::uint32_t candidate) {
    return peers_.at(candidate).network == network;
  });
}

inline TcpConnection* TcpCore::find(std::uint32_t number) {
  const std::uint32_t index = by_number_.find(hash_of(number), [&](std::uint32_t candidate) {
    return connections_.at(candidate).number == number;
  });
  return index == HashIndex::npos ? nullptr : &connections_.at(index);
}

inline TcpConnection* TcpCore::find(const SocketAddress& remote) {
  const std::uint32_t index = by_remote_.find(hash_of(remote), [&](std::uint32_t candidate) {
    return connections_.at(candidate).remote == remote;
  });
  return index == HashIndex::npos ? nullptr : &connections_.at(index);
}

/// Writing to a connection that the peer has closed must be an error, not the end of the program.
inline void ignore_broken_pipes() {
#ifdef SIGPIPE
  struct sigaction action;
  std::memset(&action, 0, sizeof action);
  if (sigaction(SIGPIPE, nullptr, &action) != 0 || (action.sa_flags & SA_SIGINFO) != 0) return;
  if (action.sa_handler != SIG_DFL) return;
  action.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &action, nullptr);
#endif
}

}  // namespace detail

/// All TCP listeners and connections of one owner. May be destroyed at any time, inside its
/// receiver's callbacks too.
class TcpConnections final : private Alarm {
 public:
  /// `key` keeps peers from choosing addresses that collide in our tables: `random_secret()`.
  /// `receiver` must live until this is closed.
  TcpConnections(Loop& loop, TcpReceiver& receiver, const TcpOptions& options,
                 const SipHashKey& key)
      : Alarm(loop),
        core_(std::make_shared<detail::TcpCore>(loop.core(), static_cast<Alarm&>(*this), receiver,
                                                options, key)) {
    detail::ignore_broken_pipes();
  }
  ~TcpConnections() { close(0); }

  /// Accepts connections at `address`, port 0 for any that is free; returns the address with its
  /// port. Error: `network`; a port that is taken is one.
  Result<SocketAddress> listen(const SocketAddress& address, const TcpListenOptions& options = {}) {
    if (is_closed_ || core_->loop_is_closed()) return ErrorCode::closed;
    return core_->listen(address, options);
  }

  /// The number of a connection to `remote`: one that is open or opening, else a new one. Error:
  /// `limit_reached`, `network`. That it could not be made is said by `on_connection_closed`.
  Result<std::uint32_t> connect(const SocketAddress& remote) {
    if (is_closed_ || core_->loop_is_closed()) return ErrorCode::closed;
    if (const detail::TcpConnection* found = core_->find(remote)) return found->number;
    return core_->connect(remote);
  }

  /// Sends, or copies what cannot go out at once; the pieces are the caller's again in any case.
  /// Error: `gone` where there is no such connection (any more), `limit_reached` where too much
  /// waits already, `network` where the connection broke just now. Taken is not delivered: a
  /// connection that closes takes along what waits.
  Error send(std::uint32_t connection, const Slices& message) {
    detail::TcpConnection* found = find(connection);
    return found == nullptr ? Error(ErrorCode::gone) : core_->send(*found, message);
  }

  /// Closes one connection after what was sent on it; `on_connection_closed` follows.
  void close_connection(std::uint32_t connection) {
    if (detail::TcpConnection* found = find(connection)) core_->drain(*found, ErrorCode::closed);
  }

  bool is_open(std::uint32_t connection) const { return find(connection) != nullptr; }
  /// Whether a connection to `remote` is open or opening.
  bool has_connection_to(const SocketAddress& remote) const {
    return !is_closed_ && core_->find(remote) != nullptr;
  }
  /// Our end of a connection, the port included; while it is opening perhaps not known yet, which
  /// is no family. Nothing where there is no such connection.
  std::optional<SocketAddress> local(std::uint32_t connection) const {
    const detail::TcpConnection* found = find(connection);
    if (found == nullptr) return std::nullopt;
    return found->local;
  }
  /// Which listener accepted it, counted from 0 in the order of `listen`. Nothing where none did.
  std::optional<std::size_t> listener(std::uint32_t connection) const {
    const detail::TcpConnection* found = find(connection);
    if (found == nullptr || found->listener == HashIndex::npos) return std::nullopt;
    return found->listener;
  }
  /// Those that are closing included.
  std::size_t connection_count() const { return core_->connection_count(); }
  const TcpCounters& counters() const { return core_->counters(); }

  /// Closes all. Nothing is called any more. What was sent and still waits has `flush_ms` to get
  /// out, also after this object is destroyed; without it everything is dropped at once.
  void close(std::uint32_t flush_ms = 0) {
    if (std::exchange(is_closed_, true)) return;
    core_->close(flush_ms);
  }

 private:
  detail::TcpConnection* find(std::uint32_t connection) const {
    return is_closed_ ? nullptr : core_->find(connection);
  }
  void on_alarm(std::uint64_t now_ms) override {
    if (is_closed_) return;
    core_->advance(now_ms);
  }

  std::shared_ptr<detail::TcpCore> core_;
  bool is_closed_ = false;
};

}  // namespace sipmsg
