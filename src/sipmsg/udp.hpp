// udp: datagrams, many for one system call, and never one cut or lost in silence.
//
// A UdpSocket hands every datagram to its receiver where libuv put it: nothing is copied, and all
// sockets of a loop read into one shared room. What is longer than the limit is handed over whole
// and named as too large, so that its sender can be told (RFC 3261 21.5.7) instead of having half a
// message believed. Clients keep their NAT bindings open with datagrams that mean nothing; those
// end here (RFC 5626 4.4.2, RFC 5389 6).
//
// Where a client asks for it, and on Linux, it is told which peers cannot be reached (RFC
// 3261 18.4): a socket that is not connected learns that from its queue of ICMP errors alone. A
// server does not ask: strangers could make it read more of them than messages.
//
// Sending tries the socket at once, straight from the caller's slices. Only where the system is
// full the datagram is copied and waits, in order, up to a bound. `send` is the one place where
// datagrams could be gathered and sent in batches one day; callers would not notice.
#pragma once

#include <uv.h>

#ifdef __linux__
#include <linux/errqueue.h>
#endif

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <string_view>
#include <utility>

#include "loop.hpp"
#include "pool.hpp"
#include "writer.hpp"

namespace sipmsg {

struct UdpOptions {
  /// Longer datagrams are handed over with the error `too_large`. Octets.
  std::size_t max_datagram = max_message_size;
  /// The system's buffers for this socket, in octets; 0: as the system has them.
  std::uint32_t receive_buffer = 0;
  /// An IPv6 socket refuses IPv4 peers; otherwise they appear with their IPv4 addresses.
  bool ipv6_only = false;
  /// What may wait to be sent, in octets.
  std::size_t max_queued = std::size_t{1} << 20;
  /// Tell the receiver of peers that cannot be reached, where the system can.
  bool report_unreachable = false;
};

/// Numbers of what happened on a socket since it was opened.
struct UdpCounters {
  std::uint64_t received = 0;        ///< datagrams handed to the receiver
  std::uint64_t keepalives = 0;      ///< datagrams that meant nothing
  std::uint64_t too_large = 0;       ///< of those received: longer than the limit
  std::uint64_t receive_errors = 0;  ///< the system reported one instead of a datagram
  std::uint64_t sent = 0;            ///< taken by the system
  std::uint64_t queued = 0;          ///< had to wait first
  std::uint64_t send_errors = 0;     ///< refused, at once or later
};

class UdpReceiver {
 public:
  /// A datagram from `from`; `error` is none or `too_large`. The octets may be changed by nobody
  /// and are valid during the call only. The receiver may do anything in it: send, close the
  /// socket, destroy it.
  virtual void on_datagram(std::string_view octets, const SocketAddress& from, Error error) = 0;
  /// Everything that had come is handed over: the moment for what is done once for many.
  virtual void on_datagrams_end() {}
  /// Something that was sent to `peer` came back as ICMP: nobody listens there (UV_ECONNREFUSED),
  /// or there is no way (UV_EHOSTUNREACH, UV_ENETUNREACH). The same may be done in it.
  virtual void on_unreachable(const SocketAddress& /* peer */, Error /* why */) {}

 protected:
  ~UdpReceiver() = default;
};

/// What clients send to keep a NAT binding open: nothing at all, line ends (RFC 5626 4.4.1 over
/// UDP), NULs, or a STUN message (RFC 5389 6: its first octet is no letter of a method).
inline bool is_udp_keepalive(std::string_view octets) {
  constexpr std::size_t stun_header_size = 20;
  if (octets.size() >= stun_header_size && static_cast<unsigned char>(octets[0]) < 4) return true;
  constexpr std::string_view padding("\r\n\0", 3);
  return octets.find_first_not_of(padding) == std::string_view::npos;
}

namespace detail {

/// A UDP socket and what waits to be sent on it, until libuv has let go of it.
class UdpCore {
 public:
  UdpCore(std::shared_ptr<LoopCore> loop, UdpReceiver& receiver, const UdpOptions& options)
      : loop_(std::move(loop)), receiver_(&receiver), options_(options) {}

  /// Opens, binds and starts to read. After an error this is on its way out already.
  Error open(const SocketAddress& address);
  /// Lets go: no callback reaches the receiver any more, and this frees itself.
  void close();
  Error send(const SocketAddress& to, const Slices& datagram);

  SocketAddress local() const {
    NativeAddress native;
    int size = sizeof native;
    uv_udp_getsockname(&handle_, &native.any, &size);
    SocketAddress address = from_native(&native.any);
    return address;
  }
  const UdpCounters& counters() const { return counters_; }

 private:
  /// One datagram that waits. It stands at the front of a block of the pool, its octets behind it.
  struct Queued {
    uv_udp_send_t request;
    UdpCore* core;
    Block block;  ///< the one this stands in
    char* octets() { return reinterpret_cast<char*>(this + 1); }
  };

  /// libuv fills 64 KiB for each datagram, the largest there is, and up to 20 in one call. Memory
  /// that no datagram reached is never touched, so it stays virtual.
  static constexpr std::size_t datagram_room = 65536;
  static constexpr std::size_t receive_room = 16 * datagram_room;

  Error bind(const SocketAddress& address);
  Error enqueue(const NativeAddress& to, const Slices& datagram);
  void receive(std::ptrdiff_t size, const char* octets, const sockaddr* from, unsigned flags);
  void ask_for_icmp();
  void read_icmp();
  static void on_sent(uv_udp_send_t* request, int status);

  std::shared_ptr<LoopCore> loop_;
  UdpReceiver* receiver_;
  UdpOptions options_;
  UdpCounters counters_;
  BlockPool pool_{std::size_t{256} << 10};
  uv_udp_t handle_;
  bool is_ipv6_ = false;
};

inline Error UdpCore::open(const SocketAddress& address) {
  const int status = uv_udp_init_ex(loop_->loop(), &handle_, AF_UNSPEC | UV_UDP_RECVMMSG);
  if (status < 0) {
    delete this;
    return network_error(status);
  }
  handle_.data = this;
  is_ipv6_ = address.ip.is_ipv6();
  const Error error = bind(address);
  if (error) close();
  return error;
}

inline Error UdpCore::bind(const SocketAddress& address) {
  const NativeAddress native = to_native(address);
  // Without UV_UDP_REUSEADDR: a port that is taken must be an error, not shared.
  const unsigned flags = is_ipv6_ && options_.ipv6_only ? unsigned{UV_UDP_IPV6ONLY} : 0;
  int status = uv_udp_bind(&handle_, &native.any, flags);
  if (status == 0 && options_.receive_buffer != 0) {
    int size = static_cast<int>(options_.receive_buffer);
    status = uv_recv_buffer_size(reinterpret_cast<uv_handle_t*>(&handle_), &size);
  }
  if (status < 0) return network_error(status);
  if (options_.report_unreachable) ask_for_icmp();
  const auto give_room = [](uv_handle_t* handle, std::size_t, uv_buf_t* room) {
    LoopCore& loop = *static_cast<UdpCore*>(handle->data)->loop_;
    *room = uv_buf_init(loop.receive_buffer(receive_room), receive_room);
  };
  const auto take = [](uv_udp_t* handle, ssize_t size, const uv_buf_t* buffer, const sockaddr* from,
                       unsigned flags_of_datagram) {
    static_cast<UdpCore*>(handle->data)->receive(size, buffer->base, from, flags_of_datagram);
  };
  status = uv_udp_recv_start(&handle_, give_room, take);
  return status < 0 ? network_error(status) : Error();
}

inline void UdpCore::close() {
  receiver_ = nullptr;
  // Stopped first: libuv would hand over the rest of a batch even after uv_close.
  uv_udp_recv_stop(&handle_);
  uv_close(reinterpret_cast<uv_handle_t*>(&handle_),
           [](uv_handle_t* handle) { delete static_cast<UdpCore*>(handle->data); });
}

inline void UdpCore::receive(std::ptrdiff_t size, const char* octets, const sockaddr* from,
                             unsigned flags) {
  if (from == nullptr) {  // nothing more to read, the end of a batch, or an error
    if (size < 0) ++counters_.receive_errors;
    if (options_.report_unreachable) read_icmp();
    if (receiver_ != nullptr) receiver_->on_datagrams_end();
    return;
  }
  const std::string_view datagram(octets, static_cast<std::size_t>(size));
  if (is_udp_keepalive(datagram)) {
    ++counters_.keepalives;
    return;
  }
  ++counters_.received;
  const bool too_large = datagram.size() > options_.max_datagram || (flags & UV_UDP_PARTIAL) != 0;
  if (too_large) ++counters_.too_large;
  receiver_->on_datagram(datagram, from_native(from),
                         too_large ? Error(ErrorCode::too_large) : Error());
}

#ifdef __linux__

/// ip(7), IP_RECVERR. That it does not work is no reason not to.
inline void UdpCore::ask_for_icmp() {
  uv_os_fd_t fd;
  if (uv_fileno(reinterpret_cast<uv_handle_t*>(&handle_), &fd) < 0) return;
  const int on = 1;
  setsockopt(fd, IPPROTO_IP, IP_RECVERR, &on, sizeof on);
  if (is_ipv6_) setsockopt(fd, IPPROTO_IPV6, IPV6_RECVERR, &on, sizeof on);
}

/// Reads the queue of errors to its end: while something is in it the system wakes us.
inline void UdpCore::read_icmp() {
  uv_os_fd_t fd;
  while (receiver_ != nullptr && uv_fileno(reinterpret_cast<uv_handle_t*>(&handle_), &fd) == 0) {
    NativeAddress peer;
    alignas(cmsghdr) char control[256];
    msghdr message{};
    message.msg_name = &peer;
    message.msg_namelen = sizeof peer;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    if (recvmsg(fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT) < 0) return;
    for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr;
         part = CMSG_NXTHDR(&message, part)) {
      const bool is_error = (part->cmsg_level == IPPROTO_IP && part->cmsg_type == IP_RECVERR) ||
                            (part->cmsg_level == IPPROTO_IPV6 && part->cmsg_type == IPV6_RECVERR);
      if (!is_error || receiver_ == nullptr) continue;
      sock_extended_err error;
      std::memcpy(&error, CMSG_DATA(part), sizeof error);
      const int status = -static_cast<int>(error.ee_errno);
      // What is too large for the path is told by sending; the rest is nothing that ends a request.
      if (status == UV_ECONNREFUSED || status == UV_EHOSTUNREACH || status == UV_ENETUNREACH) {
        receiver_->on_unreachable(from_native(&peer.any), network_error(status));
      }
    }
  }
}

#else

inline void UdpCore::ask_for_icmp() {}
inline void UdpCore::read_icmp() {}

#endif

inline Error UdpCore::send(const SocketAddress& to, const Slices& datagram) {
  if (to.ip.is_ipv6() && !is_ipv6_) return network_error(UV_EAFNOSUPPORT);
  const NativeAddress native = to_native(to, is_ipv6_);
  std::array<uv_buf_t, Slices::capacity> pieces;
  for (std::size_t i = 0; i < datagram.count; ++i) {
    const std::string_view piece = datagram.pieces[i];
    pieces[i] = uv_buf_init(const_cast<char*>(piece.data()), static_cast<unsigned>(piece.size()));
  }
  // libuv wants a buffer all the same.
  if (datagram.count == 0) pieces[0] = uv_buf_init(nullptr, 0);
  const auto count = static_cast<unsigned>(std::max<std::size_t>(datagram.count, 1));
  const auto try_send = [&] {
    return uv_udp_try_send(&handle_, pieces.data(), count, &native.any);
  };
  int status = try_send();
  // It may have been told of another datagram's end, which says nothing of this one.
  if (status < 0 && status != UV_EAGAIN && options_.report_unreachable) status = try_send();
  if (status >= 0) {
    ++counters_.sent;
    return {};
  }
  if (status == UV_EAGAIN) return enqueue(native, datagram);
  ++counters_.send_errors;
  return status == UV_EMSGSIZE ? Error(ErrorCode::too_large) : network_error(status);
}

inline Error UdpCore::enqueue(const NativeAddress& to, const Slices& datagram) {
  const std::size_t size = datagram.size();
  Block block;
  if (uv_udp_get_send_queue_size(&handle_) + size <= options_.max_queued) {
    block = pool_.allocate(sizeof(Queued) + size);
  }
  if (!block) {
    ++counters_.send_errors;
    return ErrorCode::limit_reached;
  }
  auto* queued = new (block.data()) Queued;
  queued->core = this;
  queued->request.data = queued;
  queued->block = std::move(block);
  datagram.copy_to(queued->octets());
  const uv_buf_t buffer = uv_buf_init(queued->octets(), static_cast<unsigned>(size));
  const int status =
      uv_udp_send(&queued->request, &handle_, &buffer, 1, &to.any, &UdpCore::on_sent);
  if (status == 0) {
    ++counters_.queued;
    return {};
  }
  const Block freed = std::move(queued->block);
  ++counters_.send_errors;
  return network_error(status);
}

inline void UdpCore::on_sent(uv_udp_send_t* request, int status) {
  auto* queued = static_cast<Queued*>(request->data);
  UdpCounters& counters = queued->core->counters_;
  ++(status < 0 ? counters.send_errors : counters.sent);
  const Block freed = std::move(queued->block);  // and `queued` with it
}

}  // namespace detail

/// One bound UDP socket. May be destroyed at any time, inside its receiver's callbacks too.
class UdpSocket {
 public:
  UdpSocket() = default;
  UdpSocket(UdpSocket&& other) noexcept : core_(std::exchange(other.core_, nullptr)) {}
  UdpSocket& operator=(UdpSocket&& other) noexcept {
    std::swap(core_, other.core_);
    return *this;
  }
  ~UdpSocket() { close(); }

  /// Binds to `address`, port 0 for any that is free, and starts to hand datagrams to `receiver`,
  /// which must live until this is closed. Error: `network`; a port that is taken is one.
  Error open(Loop& loop, const SocketAddress& address, UdpReceiver& receiver,
             const UdpOptions& options = {}) {
    close();
    if (loop.is_closed()) return ErrorCode::closed;
    auto core = std::make_unique<detail::UdpCore>(loop.core(), receiver, options);
    // From here on the core frees itself, when libuv has let go of it.
    detail::UdpCore* opened = core.release();
    if (auto error = opened->open(address)) return error;
    core_ = opened;
    return {};
  }

  /// Sends one datagram, or copies it where it cannot go out at once; the pieces are the caller's
  /// again in any case. Error: `too_large` for more than a datagram or the path can hold,
  /// `limit_reached` where too much waits already, `network`, `closed`. What fails after waiting is
  /// only counted: a datagram may be lost anywhere.
  Error send(const SocketAddress& to, const Slices& datagram) {
    return core_ == nullptr ? Error(ErrorCode::closed) : core_->send(to, datagram);
  }

  /// Ends reading and drops what waits. Nothing is called any more.
  void close() {
    if (core_ != nullptr) std::exchange(core_, nullptr)->close();
  }

  bool is_open() const { return core_ != nullptr; }
  /// The address it is bound to, with the port that the system chose. Only while open.
  SocketAddress local() const { return core_->local(); }
  const UdpCounters& counters() const { return core_->counters(); }

 private:
  detail::UdpCore* core_ = nullptr;
};

}  // namespace sipmsg
