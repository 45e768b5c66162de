// A network in virtual time: hosts with addresses, datagrams that are lost, doubled, delayed and
// overtaken, streams that keep their order and can break.
//
// Everything that happens is an event with a time; the loop takes the earliest of the next event
// and the hosts' next deadlines, and moves the clock there. A day passes in the time its messages
// take to be handled. All chance comes from one generator, so one seed gives one run, octet for
// octet.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "sipmsg.hpp"

namespace test {

/// Random numbers that are the same everywhere (SplitMix64), as std's distributions are not.
class Dice {
 public:
  explicit Dice(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next() {
    state_ += 0x9e3779b97f4a7c15;
    std::uint64_t mixed = state_;
    mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9;
    mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111eb;
    return mixed ^ mixed >> 31;
  }
  /// From `low` to `high`, both included.
  std::uint64_t between(std::uint64_t low, std::uint64_t high) {
    return low + next() % (high - low + 1);
  }
  bool hits(unsigned percent) { return next() % 100 < percent; }
  sipmsg::SipHashKey key() {
    sipmsg::SipHashKey key{};
    for (auto& octet : key) octet = static_cast<std::uint8_t>(next());
    return key;
  }

 private:
  std::uint64_t state_;
};

/// What happens to a datagram on its way. A delay of its own for each makes them overtake each
/// other; with `min_delay_ms` equal to `max_delay_ms` they arrive in order.
struct Weather {
  unsigned loss_percent = 0;
  unsigned duplicate_percent = 0;
  std::uint64_t min_delay_ms = 1;
  std::uint64_t max_delay_ms = 1;
};

/// What lives at a host: a thin shell around an Agent or a Proxy.
class Node {
 public:
  static constexpr std::uint64_t never = UINT64_MAX;

  virtual void receive(const sipmsg::MessageView& message, sipmsg::Error error,
                       const sipmsg::Flow& from, std::uint64_t now_ms) = 0;
  virtual void connection_closed(std::uint32_t socket, sipmsg::Error error,
                                 std::uint64_t now_ms) = 0;
  virtual void advance(std::uint64_t now_ms) = 0;
  virtual std::uint64_t next_deadline() const = 0;

 protected:
  ~Node() = default;
};

class Network;

/// An address on the network, and the Sink of whoever lives there.
class Host final : public sipmsg::Sink {
 public:
  /// `address`: "192.0.2.1:5060". The network must outlive the host.
  Host(Network& network, const std::string& address);

  const sipmsg::SocketAddress& address() const { return address_; }
  const std::string& address_text() const { return text_; }
  /// Who lives here from now on; null for nobody: then datagrams disappear and streams end.
  void set_node(Node* node) { node_ = node; }
  Node* node() const { return node_; }

  sipmsg::Result<std::string_view> sent_by(sipmsg::Flow& flow) override;
  sipmsg::Error send(const sipmsg::Flow& flow, const sipmsg::Slices& message) override;
  bool has_stream_to(const sipmsg::SocketAddress& remote) const override;

 private:
  Network& network_;
  std::string text_;
  sipmsg::SocketAddress address_;
  Node* node_ = nullptr;
};

class Network {
 public:
  static constexpr std::uint32_t udp_socket = 1;

  /// What was done to datagrams, for tests to see that their weather was not fair.
  struct Counters {
    std::uint64_t sent = 0;
    std::uint64_t lost = 0;
    std::uint64_t duplicated = 0;
    std::uint64_t overtaken = 0;
    std::uint64_t delivered = 0;
    std::uint64_t connections = 0;
    std::uint64_t broken_connections = 0;
  };

  explicit Network(std::uint64_t seed, Weather weather = {}) : dice_(seed), weather_(weather) {}
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  std::uint64_t now_ms() const { return now_ms_; }
  Dice& dice() { return dice_; }
  void set_weather(const Weather& weather) { weather_ = weather; }
  const Counters& counters() const { return counters_; }
  /// A number over every octet that arrived, and when: equal for equal runs.
  std::uint64_t fingerprint() const { return fingerprint_; }

  /// Has `call()` happen after so many milliseconds.
  void after(std::uint64_t delay_ms, std::function<void()> call) {
    Event event;
    event.kind = Event::call;
    event.function = std::move(call);
    push(std::move(event), now_ms_ + delay_ms);
  }

  /// Lets time pass up to that moment.
  void run_until(std::uint64_t end_ms) {
    while (step(end_ms)) {
    }
    now_ms_ = std::max(now_ms_, end_ms);
  }
  void run_for(std::uint64_t duration_ms) { run_until(now_ms_ + duration_ms); }
  /// Lets time pass until nothing is on its way and nobody waits for anything, at most so long.
  /// False where that did not suffice: something never ends.
  bool run_until_quiet(std::uint64_t at_most_ms = std::uint64_t{86400000}) {
    const std::uint64_t end_ms = now_ms_ + at_most_ms;
    while (step(end_ms)) {
    }
    return next_moment() == Node::never;
  }

  // Streams.

  /// Breaks one open connection by chance: what is on its way in it is lost, and its two ends learn
  /// of it at different times. False where there is none.
  bool break_some_connection() {
    std::vector<std::size_t> candidates;
    for (std::size_t i = 0; i < connections_.size(); ++i) {
      if (!connections_[i].broken) candidates.push_back(i);
    }
    if (candidates.empty()) return false;
    break_connection(candidates[dice_.between(0, candidates.size() - 1)]);
    return true;
  }
  /// All connections of a host, as when its program ends.
  void break_connections_of(const Host& host) {
    for (std::size_t i = 0; i < connections_.size(); ++i) {
      const Connection& connection = connections_[i];
      const bool is_an_end = connection.ends[0].host == &host || connection.ends[1].host == &host;
      if (is_an_end && !connection.broken) break_connection(i);
    }
  }
  std::size_t open_connections() const {
    std::size_t count = 0;
    for (const Connection& connection : connections_) count += connection.broken ? 0 : 1;
    return count;
  }

 private:
  friend class Host;

  struct Event {
    enum Kind : std::uint8_t { call, datagram, octets, closed };
    Kind kind = call;
    std::uint64_t at_ms = 0;
    std::uint64_t number = 0;  ///< what was begun first comes first
    sipmsg::SocketAddress to;  ///< of a datagram, with `from`
    sipmsg::SocketAddress from;
    std::size_t connection = 0;  ///< of octets and closed, and which of its ends is meant
    std::size_t end = 0;
    std::string bytes;
    std::function<void()> function;
  };
  /// std's heaps have the largest on top.
  struct Later {
    bool operator()(const Event& a, const Event& b) const {
      return a.at_ms != b.at_ms ? a.at_ms > b.at_ms : a.number > b.number;
    }
  };

  /// One of the two ends of a connection.
  struct End {
    explicit End(sipmsg::StreamBuffers& buffers)
        : framer(std::make_unique<sipmsg::StreamFramer>(buffers)) {}
    Host* host = nullptr;
    sipmsg::SocketAddress remote;  ///< the other end, seen from here
    bool open = true;
    std::uint64_t last_arrival_ms = 0;  ///< octets arrive here in order
    std::unique_ptr<sipmsg::StreamFramer> framer;
  };
  struct Connection {
    explicit Connection(sipmsg::StreamBuffers& buffers) : ends{End(buffers), End(buffers)} {}
    End ends[2];
    bool broken = false;
  };
  static constexpr std::uint32_t first_stream_socket = 1000;
  static constexpr std::uint64_t max_steps_at_once = 200000;

  static std::uint32_t socket_of(std::size_t connection, std::size_t end) {
    return first_stream_socket + static_cast<std::uint32_t>(2 * connection + end);
  }
  End* end_of(std::uint32_t socket) {
    if (socket < first_stream_socket) return nullptr;
    const std::size_t number = socket - first_stream_socket;
    return number / 2 < connections_.size() ? &connections_[number / 2].ends[number % 2] : nullptr;
  }

  void push(Event event, std::uint64_t at_ms) {
    event.at_ms = at_ms;
    event.number = ++event_count_;
    events_.push_back(std::move(event));
    std::push_heap(events_.begin(), events_.end(), Later());
  }
  Host* host_at(const sipmsg::SocketAddress& address) const {
    for (Host* host : hosts_) {
      if (host->address() == address) return host;
    }
    return nullptr;
  }
  std::uint64_t delay_ms() { return dice_.between(weather_.min_delay_ms, weather_.max_delay_ms); }

  /// The node that has something to do first, and when.
  std::pair<Node*, std::uint64_t> next_node() const {
    std::pair<Node*, std::uint64_t> first(nullptr, Node::never);
    for (const Host* host : hosts_) {
      if (host->node() == nullptr) continue;
      const std::uint64_t deadline_ms = host->node()->next_deadline();
      if (deadline_ms < first.second) first = {host->node(), deadline_ms};
    }
    return first;
  }
  std::uint64_t next_moment() const {
    return std::min(next_node().second, events_.empty() ? Node::never : events_.front().at_ms);
  }

  /// One event or one deadline, if there is one up to `end_ms`.
  bool step(std::uint64_t end_ms) {
    const auto [node, deadline_ms] = next_node();
    const std::uint64_t event_ms = events_.empty() ? Node::never : events_.front().at_ms;
    const std::uint64_t moment_ms = std::min(deadline_ms, event_ms);
    if (moment_ms > end_ms || moment_ms == Node::never) return false;
    if (moment_ms > now_ms_) {
      now_ms_ = moment_ms;
      steps_at_once_ = 0;
    }
    if (++steps_at_once_ > max_steps_at_once) FAIL("time stands still at ", now_ms_, " ms");
    if (deadline_ms < event_ms) {
      node->advance(now_ms_);
      return true;
    }
    std::pop_heap(events_.begin(), events_.end(), Later());
    Event event = std::move(events_.back());
    events_.pop_back();
    happen(event);
    return true;
  }

  void happen(Event& event) {
    switch (event.kind) {
      case Event::call: return event.function();
      case Event::datagram: return arrive(event);
      case Event::octets: return arrive_on_stream(event);
      case Event::closed: return end_stream(event);
    }
  }

  void note(std::string_view bytes) {
    fingerprint_ = (fingerprint_ ^ now_ms_) * 0x100000001b3;
    for (char c : bytes) {
      fingerprint_ = (fingerprint_ ^ static_cast<unsigned char>(c)) * 0x100000001b3;
    }
  }

  // Datagrams.

  sipmsg::Error send_datagram(const Host& from, const sipmsg::SocketAddress& to,
                              std::string bytes) {
    if (bytes.size() > 65507) return sipmsg::ErrorCode::too_large;
    ++counters_.sent;
    if (dice_.hits(weather_.loss_percent)) {
      ++counters_.lost;
      return {};
    }
    Event event;
    event.kind = Event::datagram;
    event.to = to;
    event.from = from.address();
    event.bytes = std::move(bytes);
    while (dice_.hits(weather_.duplicate_percent)) {
      ++counters_.duplicated;
      push(event, now_ms_ + delay_ms());
    }
    push(std::move(event), now_ms_ + delay_ms());
    return {};
  }

  void arrive(const Event& event) {
    Host* host = host_at(event.to);
    if (host == nullptr || host->node() == nullptr) return;
    ++counters_.delivered;
    if (event.number < last_arrived_) ++counters_.overtaken;
    last_arrived_ = std::max(last_arrived_, event.number);
    note(event.bytes);
    sipmsg::MessageView message;
    const sipmsg::Error error = message.parse(event.bytes);
    sipmsg::Flow flow;
    flow.socket = udp_socket;
    flow.remote = event.from;
    host->node()->receive(message, error, flow, now_ms_);
  }

  // Streams.

  /// The number of the socket of an open connection from there to there, made where there is none.
  std::uint32_t connect(Host& from, const sipmsg::SocketAddress& to) {
    if (const std::uint32_t socket = find_connection(from, to)) return socket;
    const std::size_t number = connections_.size();
    connections_.emplace_back(buffers_);
    ++counters_.connections;
    Connection& connection = connections_.back();
    connection.ends[0].host = &from;
    connection.ends[0].remote = to;
    connection.ends[1].host = host_at(to);
    connection.ends[1].remote = from.address();
    connection.ends[1].remote.port = static_cast<std::uint16_t>(49152 + number % 16384);
    if (connection.ends[1].host == nullptr || connection.ends[1].host->node() == nullptr) {
      connection.broken = true;
      close_later(number, 0);
    }
    return socket_of(number, 0);
  }
  std::uint32_t find_connection(const Host& from, const sipmsg::SocketAddress& to) const {
    for (std::size_t i = connections_.size(); i-- > 0;) {
      for (std::size_t end = 0; end < 2; ++end) {
        const End& here = connections_[i].ends[end];
        if (here.host == &from && here.open && here.remote == to) return socket_of(i, end);
      }
    }
    return 0;
  }

  sipmsg::Error send_on_stream(const Host& from, std::uint32_t socket, std::string_view bytes) {
    End* here = end_of(socket);
    if (here == nullptr || here->host != &from || !here->open) return sipmsg::ErrorCode::gone;
    const std::size_t number = (socket - first_stream_socket) / 2;
    const std::size_t other = 1 - (socket - first_stream_socket) % 2;
    End& there = connections_[number].ends[other];
    while (!bytes.empty()) {  // in pieces, as TCP pleases
      const std::size_t size = dice_.hits(70) ? bytes.size() : dice_.between(1, bytes.size());
      there.last_arrival_ms = std::max(there.last_arrival_ms, now_ms_ + delay_ms());
      Event event;
      event.kind = Event::octets;
      event.connection = number;
      event.end = other;
      event.bytes = std::string(bytes.substr(0, size));
      push(std::move(event), there.last_arrival_ms);
      bytes.remove_prefix(size);
    }
    return {};
  }

  void arrive_on_stream(const Event& event) {
    Connection& connection = connections_[event.connection];
    End& end = connection.ends[event.end];
    if (connection.broken || !end.open || end.host->node() == nullptr) return;
    note(event.bytes);
    std::string_view rest = event.bytes;
    while (!rest.empty()) {
      const auto room = end.framer->writable();
      const std::size_t size = std::min(room.size, rest.size());
      std::copy_n(rest.data(), size, room.data);
      end.framer->commit(size);
      rest.remove_prefix(size);
      if (!read_messages(event, end)) return;
    }
  }
  /// False where the stream makes no sense any more.
  bool read_messages(const Event& event, End& end) {
    while (true) {
      switch (end.framer->next()) {
        case sipmsg::StreamEvent::need_more: return true;
        case sipmsg::StreamEvent::blank:
        case sipmsg::StreamEvent::ping: continue;
        case sipmsg::StreamEvent::message: break;
        case sipmsg::StreamEvent::error:
          FAIL_CHECK("a stream was sent that has no frame");
          break_connection(event.connection);
          return false;
      }
      sipmsg::Flow flow;
      flow.transport = sipmsg::Transport::tcp;
      flow.socket = socket_of(event.connection, event.end);
      flow.remote = end.remote;
      end.host->node()->receive(end.framer->view(), end.framer->error(), flow, now_ms_);
      if (!end.open || end.host->node() == nullptr) return false;
    }
  }

  void break_connection(std::size_t number) {
    connections_[number].broken = true;
    ++counters_.broken_connections;
    close_later(number, 0);
    close_later(number, 1);
  }
  void close_later(std::size_t number, std::size_t end) {
    Event event;
    event.kind = Event::closed;
    event.connection = number;
    event.end = end;
    push(std::move(event), now_ms_ + delay_ms());
  }
  void end_stream(const Event& event) {
    End& end = connections_[event.connection].ends[event.end];
    if (!end.open) return;
    end.open = false;
    if (end.host->node() == nullptr) return;
    end.host->node()->connection_closed(socket_of(event.connection, event.end),
                                        sipmsg::ErrorCode::network, now_ms_);
  }

  Dice dice_;
  Weather weather_;
  Counters counters_;
  std::vector<Host*> hosts_;
  sipmsg::StreamBuffers buffers_;
  std::deque<Connection> connections_;
  std::vector<Event> events_;
  std::uint64_t event_count_ = 0;
  std::uint64_t last_arrived_ = 0;
  std::uint64_t now_ms_ = 0;
  std::uint64_t steps_at_once_ = 0;
  std::uint64_t fingerprint_ = 0xcbf29ce484222325;
};

inline Host::Host(Network& network, const std::string& address)
    : network_(network), text_(address) {
  const auto parsed = sipmsg::parse_socket_address(address);
  REQUIRE(parsed.ok());
  address_ = *parsed;
  network.hosts_.push_back(this);
}

inline sipmsg::Result<std::string_view> Host::sent_by(sipmsg::Flow& flow) {
  if (flow.transport == sipmsg::Transport::udp) {
    flow.socket = Network::udp_socket;
  } else if (flow.socket == 0) {
    flow.socket = network_.connect(*this, flow.remote);
  } else {
    const auto* end = network_.end_of(flow.socket);
    if (end == nullptr || !end->open) return sipmsg::ErrorCode::gone;
  }
  return std::string_view(text_);
}

inline sipmsg::Error Host::send(const sipmsg::Flow& flow, const sipmsg::Slices& message) {
  const std::string bytes = message.to_string();
  if (flow.transport == sipmsg::Transport::udp) {
    return network_.send_datagram(*this, flow.remote, bytes);
  }
  const std::uint32_t socket =
      flow.socket != 0 ? flow.socket : network_.connect(*this, flow.remote);
  return network_.send_on_stream(*this, socket, bytes);
}

inline bool Host::has_stream_to(const sipmsg::SocketAddress& remote) const {
  return network_.find_connection(*this, remote) != 0;
}

}  // namespace test
