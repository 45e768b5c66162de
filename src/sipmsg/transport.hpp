// transport: all sockets of one server or client, and which of them a message takes.
//
// Transports turns datagrams and streams into one sequence of parsed messages, each with the Flow
// it came by, and sends what it is given along a Flow. A Flow that names a socket is obeyed to the
// letter: an answer leaves by the socket its request came in by (RFC 3261 18.2.2, RFC 3581), and a
// request reaches a phone over the connection it registered on (RFC 5626). Where no socket is named
// a suitable one is chosen, or opened.
//
// What our Via names as sent-by is the address under which the peer can reach us: that of the
// socket, and for one bound to all addresses the one that lies nearest to the peer.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tcp.hpp"
#include "transaction.hpp"
#include "udp.hpp"

namespace sipmsg {

/// One socket to listen on. Sizes in octets.
struct ListenerOptions {
  std::string name;  ///< for logs
  Transport transport = Transport::udp;
  SocketAddress address;                       ///< port 0: any that is free
  std::size_t max_message = max_message_size;  ///< a larger one is handed over with `too_large`
  std::uint32_t receive_buffer = 0;  ///< of the system, for a UDP socket; 0: as the system has it
  int backlog = 0;                   ///< TCP connections not yet accepted; 0: the system's maximum
  std::uint32_t idle_timeout_ms = 120000;  ///< of the TCP connections accepted here; 0: none
  bool ipv6_only = false;                  ///< an IPv6 socket refuses IPv4 peers
};

/// A socket that listens.
struct Listener {
  std::string name;
  Transport transport = Transport::udp;
  SocketAddress address;  ///< with the port that was chosen
  bool ipv6_only = false;
  std::uint32_t socket = 0;  ///< as in a Flow; 0 for TCP, where the connections have the numbers
};

struct TransportOptions {
  TcpOptions tcp;
  /// What may wait to be sent on one UDP socket, in octets.
  std::size_t max_queued_datagrams = std::size_t{1} << 20;
  /// Where no UDP socket can reach a peer, open one, on a port of the system's choice. A server
  /// that says where it listens may prefer an error.
  bool open_udp_on_demand = true;
  /// Tell the receiver of UDP peers that cannot be reached, where the system can.
  bool report_unreachable = false;
};

struct TransportCounters {
  UdpCounters udp;  ///< of all sockets together
  TcpCounters tcp;
};

class TransportReceiver {
 public:
  /// Every message that comes in, readable or not: `error` is what MessageView::parse said, or
  /// `too_large`. Valid during the call only, in which anything may be done, also destroying the
  /// Transports.
  virtual void on_message(const MessageView& message, Error error, const Flow& from) = 0;
  /// A TCP connection is gone or could not be made: once for each, never inside a call of ours, and
  /// never after `close`. What was sent on it and not answered will not be.
  virtual void on_connection_closed(std::uint32_t socket, Error why) = 0;
  /// Instead, where it could not be made: nothing that was sent on it has arrived.
  virtual void on_connection_failed(std::uint32_t socket, Error why) {
    on_connection_closed(socket, why);
  }
  /// A datagram did not reach its peer, as ICMP has it, which anybody may have sent. With
  /// `report_unreachable` only.
  virtual void on_unreachable(const Flow& /* flow */, Error /* why */) {}
  /// Everything that had come is handed over: the moment for what is done once for many messages.
  virtual void on_batch_end() {}
  /// A TCP connection that a peer made has been idle for its time: whether it stays open all the
  /// same, because a phone is reached over it. Nothing of ours may be called from here.
  virtual bool keeps_idle_connection(std::uint32_t) { return false; }

 protected:
  ~TransportReceiver() = default;
};

class Transports final : public Sink, private TcpReceiver {
 public:
  /// Called for each message in or out, as it is on the wire, also for those that are refused; not
  /// for keep-alives.
  using TraceHandler =
      std::function<void(bool is_incoming, const Flow& flow, std::string_view octets)>;

  /// Opens nothing yet. `receiver` must live until `close`.
  Transports(Loop& loop, TransportReceiver& receiver, const TransportOptions& options = {})
      : options_(options),
        loop_(loop),
        receiver_(receiver),
        tcp_(loop, *this, options.tcp, random_secret().value()) {}
  ~Transports() {
    close();
    if (destroyed_ != nullptr) *destroyed_ = true;
  }
  Transports(const Transports&) = delete;
  Transports& operator=(const Transports&) = delete;

  /// Opens a socket and returns its address, with the port. Error: `network`, with what the system
  /// said: a port that is taken is UV_EADDRINUSE.
  Result<SocketAddress> listen(const ListenerOptions& options);
  /// All that `listen` opened, in that order. References live until the next `listen`.
  const std::vector<Listener>& listeners() const { return listeners_; }
  /// The one through which messages of that Flow come; null for a socket opened on demand, for a
  /// connection made by us, and for one that is gone.
  const Listener* listener_of(const Flow& flow) const;

  /// See Sink. For TCP without a socket a connection is made, if there is none, and its number
  /// written into `flow`. The view is valid until the next call.
  inline Result<std::string_view> sent_by(Flow& flow) override;
  /// See Sink. Errors: `gone` for a connection that is no more; `too_large` for what no datagram
  /// holds; `limit_reached` where too much waits already; `network`; `closed`.
  inline Error send(const Flow& flow, const Slices& message) override;
  /// Whether a TCP connection to `remote` is open, or opening.
  bool has_stream_to(const SocketAddress& remote) const override {
    return tcp_.has_connection_to(remote);
  }
  std::string_view listener_name(const Flow& flow) const override {
    const Listener* listener = listener_of(flow);
    return listener == nullptr ? std::string_view() : std::string_view(listener->name);
  }
  /// Whether that TCP connection is open, or opening.
  bool is_open(std::uint32_t socket) const { return tcp_.is_open(socket); }
  /// Closes one TCP connection after what was sent on it has gone out.
  void close_connection(std::uint32_t socket) { tcp_.close_connection(socket); }

  /// Replaces the trace handler; an empty one ends it. It may replace itself, and may close and
  /// destroy.
  void on_trace(TraceHandler handler) {
    trace_ = handler ? std::make_shared<TraceHandler>(std::move(handler)) : nullptr;
  }

  std::size_t connection_count() const { return tcp_.connection_count(); }
  TransportCounters counters() const;

  /// Closes everything; nothing is called any more. What was sent over TCP and still waits has
  /// `flush_ms` to get out, also after this object is destroyed.
  void close(std::uint32_t flush_ms = 500);

 private:
  /// A UDP socket, under its number.
  struct Datagrams final : UdpReceiver {
    Datagrams(Transports& transports, std::uint32_t socket_number)
        : owner(transports), number(socket_number) {}
    void on_datagram(std::string_view octets, const SocketAddress& from, Error error) override {
      owner.on_datagram(octets, error, Flow{Transport::udp, number, from});
    }
    void on_datagrams_end() override { owner.receiver_.on_batch_end(); }
    void on_unreachable(const SocketAddress& peer, Error why) override {
      owner.receiver_.on_unreachable(Flow{Transport::udp, number, peer}, why);
    }

    Transports& owner;
    std::uint32_t number;
    UdpSocket socket;
    SocketAddress address;
    bool ipv6_only = false;
    std::string sent_by;  ///< empty where it depends on the peer
  };

  // -- receiving --
  void on_datagram(std::string_view octets, Error error, const Flow& flow);
  inline void on_stream_message(std::uint32_t connection, const MessageView& message, Error error,
                                const SocketAddress& from) override;
  void on_connection_closed(std::uint32_t connection, Error why) override {
    receiver_.on_connection_closed(connection, why);
  }
  void on_connection_failed(std::uint32_t connection, Error why) override {
    receiver_.on_connection_failed(connection, why);
  }
  void on_stream_messages_end() override { receiver_.on_batch_end(); }
  bool keeps_idle_connection(std::uint32_t connection) override {
    return receiver_.keeps_idle_connection(connection);
  }
  bool trace_incoming(const Flow& flow, std::string_view octets);

  // -- sending --
  Result<Datagrams*> open_udp(const ListenerOptions& options);
  Result<Datagrams*> udp_socket(const Flow& flow);
  Datagrams* choose_udp(const IpAddress& remote);
  Error send_on(const Flow& flow, const Slices& message);

  // -- sent-by --
  std::string_view udp_sent_by(const Datagrams& datagrams, const SocketAddress& remote);
  SocketAddress tcp_sent_by(std::uint32_t connection, const SocketAddress& remote);
  IpAddress local_address_for(const IpAddress& remote);
  std::string_view render(const SocketAddress& address);
  /// Whether what is bound to `bound` has `ip` as one of its addresses.
  static bool covers(const IpAddress& bound, bool ipv6_only, const IpAddress& ip) {
    if (bound.family == ip.family) return bound.is_unspecified() || bound == ip;
    return bound.is_ipv6() && bound.is_unspecified() && !ipv6_only;
  }

  TransportOptions options_;
  Loop& loop_;
  TransportReceiver& receiver_;
  TcpConnections tcp_;
  std::vector<std::unique_ptr<Datagrams>> udp_;  ///< number n at n - 1
  std::vector<Listener> listeners_;
  std::vector<std::size_t> tcp_listeners_;  ///< which of them listen on TCP
  std::shared_ptr<TraceHandler> trace_;
  bool* destroyed_ = nullptr;  ///< somebody's who wants to know
  bool is_closed_ = false;
  std::vector<InterfaceAddress> interfaces_;
  std::uint64_t interfaces_expire_ms_ = 0;
  char sent_by_[64];
};

// ---- listening ----

inline Result<SocketAddress> Transports::listen(const ListenerOptions& options) {
  if (is_closed_) return ErrorCode::closed;
  Listener listener;
  listener.name = options.name;
  listener.transport = options.transport;
  listener.ipv6_only = options.ipv6_only;
  if (options.transport == Transport::udp) {
    const auto opened = open_udp(options);
    if (!opened) return opened.error();
    listener.address = (*opened)->address;
    listener.socket = (*opened)->number;
  } else {
    TcpListenOptions tcp;
    tcp.max_message = options.max_message;
    tcp.idle_timeout_ms = options.idle_timeout_ms;
    tcp.backlog = options.backlog;
    tcp.ipv6_only = options.ipv6_only;
    const auto address = tcp_.listen(options.address, tcp);
    if (!address) return address.error();
    listener.address = *address;
    tcp_listeners_.push_back(listeners_.size());
  }
  listeners_.push_back(listener);
  return listener.address;
}

inline Result<Transports::Datagrams*> Transports::open_udp(const ListenerOptions& options) {
  auto datagrams = std::make_unique<Datagrams>(*this, static_cast<std::uint32_t>(udp_.size() + 1));
  if (datagrams->number >= first_connection_number) return ErrorCode::limit_reached;
  UdpOptions udp;
  udp.max_datagram = options.max_message;
  udp.receive_buffer = options.receive_buffer;
  udp.ipv6_only = options.ipv6_only;
  udp.max_queued = options_.max_queued_datagrams;
  udp.report_unreachable = options_.report_unreachable;
  if (auto error = datagrams->socket.open(loop_, options.address, *datagrams, udp)) return error;
  datagrams->address = datagrams->socket.local();
  datagrams->ipv6_only = options.ipv6_only;
  if (!options.address.ip.is_unspecified()) datagrams->sent_by = to_text(datagrams->address);
  udp_.push_back(std::move(datagrams));
  return udp_.back().get();
}

inline const Listener* Transports::listener_of(const Flow& flow) const {
  if (flow.transport == Transport::tcp) {
    const auto index = tcp_.listener(flow.socket);
    return index ? &listeners_[tcp_listeners_[*index]] : nullptr;
  }
  for (const Listener& listener : listeners_) {
    if (listener.socket != 0 && listener.socket == flow.socket) return &listener;
  }
  return nullptr;
}

inline TransportCounters Transports::counters() const {
  TransportCounters sum;
  sum.tcp = tcp_.counters();
  for (const auto& datagrams : udp_) {
    if (!datagrams->socket.is_open()) continue;
    const UdpCounters& udp = datagrams->socket.counters();
    sum.udp.received += udp.received;
    sum.udp.keepalives += udp.keepalives;
    sum.udp.too_large += udp.too_large;
    sum.udp.receive_errors += udp.receive_errors;
    sum.udp.sent += udp.sent;
    sum.udp.queued += udp.queued;
    sum.udp.send_errors += udp.send_errors;
  }
  return sum;
}

inline void Transports::close(std::uint32_t flush_ms) {
  if (std::exchange(is_closed_, true)) return;
  for (const auto& datagrams : udp_) datagrams->socket.close();
  tcp_.close(flush_ms);
}

// ---- receiving ----

inline void Transports::on_datagram(std::string_view octets, Error error, const Flow& flow) {
  // Line ends before the start line mean nothing (RFC 3261 7.5 says so of streams).
  while (octets.substr(0, 2) == "\r\n") octets.remove_prefix(2);
  if (!trace_incoming(flow, octets)) return;
  MessageView message;  // here, for everything else may be destroyed before it is
  const Error mistake = message.parse(octets);
  receiver_.on_message(message, error ? error : mistake, flow);
}

inline void Transports::on_stream_message(std::uint32_t connection, const MessageView& message,
                                          Error error, const SocketAddress& from) {
  const Flow flow{Transport::tcp, connection, from};
  if (!trace_incoming(flow, message.bytes())) return;
  receiver_.on_message(message, error, flow);
}

/// False where the handler has closed or destroyed this.
inline bool Transports::trace_incoming(const Flow& flow, std::string_view octets) {
  if (!trace_) return true;
  const std::shared_ptr<TraceHandler> handler = trace_;  // it may replace itself
  bool destroyed = false;
  bool* const outer = std::exchange(destroyed_, &destroyed);
  (*handler)(true, flow, octets);
  if (!destroyed) {
    destroyed_ = outer;
    return !is_closed_;
  }
  if (outer != nullptr) *outer = true;
  return false;
}

// ---- sending ----

/// The socket that a Flow names, or the best there is.
inline Result<Transports::Datagrams*> Transports::udp_socket(const Flow& flow) {
  if (is_closed_) return ErrorCode::closed;
  if (flow.socket > udp_.size()) return ErrorCode::gone;
  if (flow.socket > 0) return udp_[flow.socket - 1].get();
  if (Datagrams* chosen = choose_udp(flow.remote.ip)) return chosen;
  if (!options_.open_udp_on_demand) return network_error(UV_ENETUNREACH);
  ListenerOptions any;
  any.address.ip.family = flow.remote.ip.family;
  // For a peer on this machine nobody else needs to reach us.
  if (flow.remote.ip.is_loopback()) any.address.ip = flow.remote.ip;
  return open_udp(any);
}

/// The first socket that can reach `remote`: one of its family, and one bound to the loopback for
/// the loopback alone. Null where there is none.
inline Transports::Datagrams* Transports::choose_udp(const IpAddress& remote) {
  Datagrams* second_best = nullptr;
  for (const auto& candidate : udp_) {
    const IpAddress& bound = candidate->address.ip;
    const bool fits = bound.is_unspecified() || bound.is_loopback() == remote.is_loopback();
    if (bound.family == remote.family && fits) return candidate.get();
    if (bound.family != remote.family && covers(bound, candidate->ipv6_only, remote)) {
      second_best = candidate.get();
    }
  }
  return second_best;
}

inline Error Transports::send(const Flow& flow, const Slices& message) {
  constexpr std::size_t keepalive_size = 4;  // of the longest, CR LF CR LF; no message is as short
  const Error error = send_on(flow, message);
  if (trace_ && message.size() > keepalive_size) {
    // Last: the handler may replace itself, and destroy this.
    const std::shared_ptr<TraceHandler> handler = trace_;
    (*handler)(false, flow, message.to_string());
  }
  return error;
}

inline Error Transports::send_on(const Flow& flow, const Slices& message) {
  if (flow.transport == Transport::udp) {
    const auto datagrams = udp_socket(flow);
    return datagrams ? (*datagrams)->socket.send(flow.remote, message) : datagrams.error();
  }
  if (flow.socket != 0) return tcp_.send(flow.socket, message);
  const auto connection = tcp_.connect(flow.remote);
  return connection ? tcp_.send(*connection, message) : connection.error();
}

// ---- sent-by ----

inline Result<std::string_view> Transports::sent_by(Flow& flow) {
  if (flow.transport == Transport::udp) {
    const auto datagrams = udp_socket(flow);
    if (!datagrams) return datagrams.error();
    flow.socket = (*datagrams)->number;
    return udp_sent_by(**datagrams, flow.remote);
  }
  if (flow.socket == 0) {
    const auto connection = tcp_.connect(flow.remote);
    if (!connection) return connection.error();
    flow.socket = *connection;
  }
  if (!tcp_.is_open(flow.socket)) return ErrorCode::gone;
  return render(tcp_sent_by(flow.socket, flow.remote));
}

inline std::string_view Transports::udp_sent_by(const Datagrams& datagrams,
                                                const SocketAddress& remote) {
  if (!datagrams.sent_by.empty()) return datagrams.sent_by;
  SocketAddress address;
  address.ip = local_address_for(remote.ip);
  address.port = datagrams.address.port;
  return render(address);
}

/// Answers come back over the connection, and where it broke to a listener of ours (RFC 3261
/// 18.2.2): so its port it is, if there is one at this end's address.
inline SocketAddress Transports::tcp_sent_by(std::uint32_t connection,
                                             const SocketAddress& remote) {
  SocketAddress address = tcp_.local(connection).value_or(SocketAddress());
  if (!address.ip) address.ip = local_address_for(remote.ip);
  const Listener* found = nullptr;
  for (const std::size_t index : tcp_listeners_) {
    const Listener& listener = listeners_[index];
    if (!covers(listener.address.ip, listener.ipv6_only, address.ip)) continue;
    if (found == nullptr || listener.address.port == address.port) found = &listener;
  }
  if (found != nullptr) address.port = found->address.port;
  return address;
}

inline IpAddress Transports::local_address_for(const IpAddress& remote) {
  // Interfaces come and go, cables and VPNs, but not with every message.
  constexpr std::uint64_t lifetime_ms = 60000;
  const std::uint64_t now_ms = loop_.now_ms();
  if (!remote.is_loopback() && now_ms >= interfaces_expire_ms_) {
    interfaces_ = interface_addresses();
    interfaces_expire_ms_ = now_ms + lifetime_ms;
  }
  return choose_local_address(interfaces_, remote);
}

inline std::string_view Transports::render(const SocketAddress& address) {
  Output out(sent_by_, sizeof sent_by_);
  if (address.ip.is_ipv6()) out.raw("[");
  out.ip(address.ip);
  if (address.ip.is_ipv6()) out.raw("]");
  out.raw(":").number(address.port);
  return out.written();
}

}  // namespace sipmsg
