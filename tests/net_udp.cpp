// udp.hpp, and the datagram side of transport.hpp, on real sockets of the loopback.
// Not covered: datagrams over real networks, ICMP errors, systems without recvmmsg.
#include "support/sipmsg.hpp"

#include <sys/syscall.h>

#include <functional>
#include <memory>
#include <vector>

#include "support/loop.hpp"

namespace net_udp {

using namespace sipmsg;

// ---- fault injection: libuv sends datagrams by this call; the next ones can be made to fail ----

namespace {
int failing_sends = 0;
int failing_with = 0;
}  // namespace

extern "C" ssize_t sendmsg(int fd, const msghdr* message, int flags) {
  if (failing_sends > 0) {
    --failing_sends;
    errno = failing_with;
    return -1;
  }
  return ::syscall(SYS_sendmsg, fd, message, flags);
}

namespace {

void fail_sends(int count, int with) {
  failing_sends = count;
  failing_with = with;
}

SocketAddress address_of(const char* text) {
  const auto address = parse_socket_address(text);
  REQUIRE(address.ok());
  return *address;
}

SocketAddress loopback(std::uint16_t port = 0) {
  SocketAddress address = address_of("127.0.0.1:0");
  address.port = port;
  return address;
}

struct Received {
  std::string octets;
  SocketAddress from;
  ErrorCode error;
};

class Collector : public UdpReceiver {
 public:
  void on_datagram(std::string_view octets, const SocketAddress& from, Error error) override {
    received.push_back({std::string(octets), from, error.code});
    if (const auto running = then) running();
  }
  void on_datagrams_end() override { ++ends; }

  std::vector<Received> received;
  std::function<void()> then;
  int ends = 0;
};

class MessageCollector : public TransportReceiver {
 public:
  void on_message(const MessageView& message, Error error, const Flow& from) override {
    messages.push_back(std::string(message.bytes()));
    call_ids.emplace_back(message.call_id());
    errors.push_back(error.code);
    flows.push_back(from);
    if (const auto running = then) running();
  }
  void on_connection_closed(std::uint32_t, Error) override { FAIL("there are no connections"); }
  void on_batch_end() override { ++batches; }

  std::vector<std::string> messages, call_ids;
  std::vector<ErrorCode> errors;
  std::vector<Flow> flows;
  std::function<void()> then;
  int batches = 0;
};

ListenerOptions udp_at(const char* address) {
  ListenerOptions options;
  options.address = address_of(address);
  return options;
}

}  // namespace

TEST_CASE("a datagram arrives as it was sent, with its sender's address") {
  test::EventLoop events;
  Loop loop(events.uv());
  Collector collector;
  UdpSocket socket;
  REQUIRE_FALSE(socket.open(loop, loopback(), collector));
  CHECK(socket.local().ip == loopback().ip);
  CHECK(socket.local().port != 0);
  test::RawSocket peer(SOCK_DGRAM, socket.local().port);
  const std::string octets("a\0b\xff\r\n", 6);
  CHECK(peer.send(octets) == 6);
  CHECK(events.run_until([&] { return collector.ends > 0; }));
  REQUIRE(collector.received.size() == 1);
  CHECK(collector.received[0].octets == octets);
  CHECK(collector.received[0].from == loopback(peer.port()));
  CHECK(collector.received[0].error == ErrorCode::none);
  loop.close();
}

TEST_CASE("a burst of datagrams arrives whole and in order, many at a time") {
  constexpr int count = 100;
  test::EventLoop events;
  Loop loop(events.uv());
  Collector collector;
  UdpSocket socket;
  UdpOptions options;
  options.receive_buffer = 1 << 20;
  REQUIRE_FALSE(socket.open(loop, loopback(), collector, options));
  test::RawSocket peer(SOCK_DGRAM, socket.local().port);
  for (int i = 0; i < count; ++i) {
    peer.send(std::string(static_cast<std::size_t>(1 + i * 20), static_cast<char>('0' + i % 75)));
  }
  CHECK(events.run_until([&] { return collector.received.size() == count; }));
  for (int i = 0; i < count; ++i) {
    CAPTURE(i);
    const std::string& octets = collector.received[static_cast<std::size_t>(i)].octets;
    CHECK(octets ==
          std::string(static_cast<std::size_t>(1 + i * 20), static_cast<char>('0' + i % 75)));
  }
  CHECK(socket.counters().received == count);
  loop.close();
}

TEST_CASE("slices go out as one datagram, to an address of choice") {
  test::EventLoop events;
  Loop loop(events.uv());
  Collector collector;
  UdpSocket socket;
  REQUIRE_FALSE(socket.open(loop, loopback(), collector));
  test::RawSocket peer(SOCK_DGRAM, socket.local().port);
  Slices slices("one ");
  slices.add("two ");
  slices.add("three");
  CHECK_FALSE(socket.send(loopback(peer.port()), slices));
  CHECK(events.run_until([&] { return peer.receive() == "one two three"; }));
  CHECK(socket.counters().sent == 1);
  CHECK(socket.counters().queued == 0);
  loop.close();
}

TEST_CASE("a datagram may be empty, also one that has to wait") {
  test::EventLoop events;
  Loop loop(events.uv());
  Collector collector;
  UdpSocket socket;
  REQUIRE_FALSE(socket.open(loop, loopback(), collector));
  test::RawSocket peer(SOCK_DGRAM, socket.local().port);
  for (const int failures : {0, 1}) {
    CAPTURE(failures);
    fail_sends(failures, EAGAIN);
    CHECK_FALSE(socket.send(loopback(peer.port()), Slices("")));
    CHECK(events.run_until([&] { return peer.receive() == ""; }));
    CHECK(events.run_until(
        [&] { return socket.counters().sent == static_cast<std::uint64_t>(1 + failures); }));
  }
  loop.close();
}

TEST_CASE(
    "a datagram at the limit is fine, one above it is handed over whole and named too large") {
  test::EventLoop events;
  Loop loop(events.uv());
  Collector collector;
  UdpSocket socket;
  UdpOptions options;
  options.max_datagram = 1500;
  REQUIRE_FALSE(socket.open(loop, loopback(), collector, options));
  test::RawSocket peer(SOCK_DGRAM, socket.local().port);
  const std::size_t sizes[] = {1, 1499, 1500, 1501, 9000, 65507};
  for (const std::size_t size : sizes) CHECK(peer.send(std::string(size, 'x')) > 0);
  CHECK(events.run_until([&] { return collector.received.size() == 6; }));
  for (std::size_t i = 0; i < 6; ++i) {
    CAPTURE(sizes[i]);
    CHECK(collector.received[i].octets == std::string(sizes[i], 'x'));
    const bool expect_too_large = sizes[i] > 1500;
    CHECK((collector.received[i].error == ErrorCode::too_large) == expect_too_large);
  }
  CHECK(socket.counters().too_large == 3);
  loop.close();
}

TEST_CASE("what clients send to keep a NAT binding open never reaches the receiver") {
  const std::string stun = std::string("\0\1\0\0\x21\x12\xA4\x42", 8) + std::string(12, 'i');
  const std::string keepalives[] = {"",
                                    "\r\n",
                                    "\r\n\r\n",
                                    std::string(4, '\0'),
                                    std::string("\0", 1),
                                    "\r\n\r\n\r\n\r\n",
                                    stun,
                                    std::string("\1\1\0\0", 4) + stun.substr(4)};
  test::EventLoop events;
  Loop loop(events.uv());
  Collector collector;
  UdpSocket socket;
  REQUIRE_FALSE(socket.open(loop, loopback(), collector));
  test::RawSocket peer(SOCK_DGRAM, socket.local().port);
  for (const std::string& keepalive : keepalives) {
    CAPTURE(keepalive.size());
    CHECK(is_udp_keepalive(keepalive));
    peer.send(keepalive);
  }
  peer.send("end");
  CHECK(events.run_until([&] { return !collector.received.empty(); }));
  CHECK(collector.received[0].octets == "end");
  CHECK(socket.counters().keepalives == 8);
  for (const char* text : {"x", "\r\nx", "OPTIONS sip:a SIP/2.0\r\n\r\n", " ", "0000"}) {
    CAPTURE(text);
    CHECK_FALSE(is_udp_keepalive(text));
  }
  loop.close();
}

TEST_CASE("a port that is taken is an error at once") {
  test::EventLoop events;
  Loop loop(events.uv());
  Collector collector;
  UdpSocket first;
  REQUIRE_FALSE(first.open(loop, loopback(), collector));
  UdpSocket second;
  const Error error = second.open(loop, first.local(), collector);
  CHECK(error.code == ErrorCode::network);
  CHECK(error.place == UV_EADDRINUSE);
  CHECK_FALSE(second.is_open());
  CHECK(second.send(loopback(9), Slices("x")).code == ErrorCode::closed);
  loop.close();
}

TEST_CASE("an address that is not this machine's is an error") {
  test::EventLoop events;
  Loop loop(events.uv());
  Collector collector;
  UdpSocket socket;
  CHECK(socket.open(loop, address_of("192.0.2.1:0"), collector).place == UV_EADDRNOTAVAIL);
  loop.close();
}

TEST_CASE("a socket may be closed, destroyed or opened anew inside its own callback") {
  for (const int what : {0, 1, 2}) {
    CAPTURE(what);
    test::EventLoop events;
    Loop loop(events.uv());
    Collector collector;
    auto socket = std::make_unique<UdpSocket>();
    REQUIRE_FALSE(socket->open(loop, loopback(), collector));
    const std::uint16_t port = socket->local().port;
    test::RawSocket peer(SOCK_DGRAM, port);
    for (int i = 0; i < 10; ++i) peer.send("x");  // what is left of the batch must not arrive
    collector.then = [&] {
      if (what == 0) socket->close();
      if (what == 1) socket.reset();
      if (what == 2) REQUIRE_FALSE(socket->open(loop, loopback(), collector));
    };
    CHECK(events.run_until([&] { return !collector.received.empty(); }));
    events.turn();
    CHECK(collector.received.size() == 1);
    if (what == 2) {
      CHECK(socket->local().port != port);
      collector.then = nullptr;
      test::RawSocket again(SOCK_DGRAM, socket->local().port);
      again.send("y");
      CHECK(events.run_until([&] { return collector.received.size() == 2; }));
      socket->close();
    }
    loop.close();
  }
}

TEST_CASE("the loop runs dry when the Loop and its socket go in either order") {
  for (const bool loop_first : {true, false}) {
    CAPTURE(loop_first);
    test::EventLoop events;
    Collector collector;
    auto loop = std::make_unique<Loop>(events.uv());
    auto socket = std::make_unique<UdpSocket>();
    REQUIRE_FALSE(socket->open(*loop, loopback(), collector));
    if (loop_first) loop.reset();
    socket.reset();
    loop.reset();
    CHECK(events.run_dry());
  }
}

TEST_CASE("where the system is full, datagrams wait, in order and up to a bound") {
  test::EventLoop events;
  Loop loop(events.uv());
  Collector collector;
  UdpSocket socket;
  UdpOptions options;
  options.max_queued = 1000;
  REQUIRE_FALSE(socket.open(loop, loopback(), collector, options));
  test::RawSocket peer(SOCK_DGRAM, socket.local().port);
  const SocketAddress to = loopback(peer.port());
  for (int round = 1; round <= 3; ++round) {
    CAPTURE(round);
    fail_sends(1, round == 1 ? EAGAIN : ENOBUFS);
    Slices slices("first ");
    const std::string filler(494, '.');
    slices.add(filler);
    CHECK_FALSE(socket.send(to, slices));
    CHECK_FALSE(socket.send(to, Slices("second")));
    CHECK(socket.send(to, Slices(std::string(600, 'x'))).code == ErrorCode::limit_reached);
    std::vector<std::string> arrived;
    CHECK(events.run_until([&] {
      while (const auto datagram = peer.receive()) arrived.push_back(*datagram);
      return arrived.size() == 2 && socket.counters().sent == static_cast<std::uint64_t>(2 * round);
    }));
    CHECK(arrived == std::vector<std::string>{"first " + filler, "second"});
    CHECK(socket.counters().queued == static_cast<std::uint64_t>(2 * round));
    CHECK(socket.counters().send_errors == static_cast<std::uint64_t>(round));
  }
  CHECK_FALSE(socket.send(to, Slices(std::string(600, 'x'))));  // there is room again
  loop.close();
}

TEST_CASE("a socket may be closed while datagrams wait") {
  test::EventLoop events;
  Loop loop(events.uv());
  Collector collector;
  UdpSocket socket;
  REQUIRE_FALSE(socket.open(loop, loopback(), collector));
  fail_sends(1, EAGAIN);
  CHECK_FALSE(socket.send(loopback(9), Slices("x")));
  CHECK_FALSE(socket.send(loopback(9), Slices("y")));
  CHECK(socket.counters().queued == 2);
  socket.close();
  loop.close();
}

TEST_CASE("what the system refuses to send is an error at once") {
  test::EventLoop events;
  Loop loop(events.uv());
  Collector collector;
  UdpSocket socket;
  REQUIRE_FALSE(socket.open(loop, loopback(), collector));
  fail_sends(1, EPERM);
  CHECK(socket.send(loopback(9), Slices("x")).place == UV_EPERM);
  CHECK(socket.send(address_of("[::1]:9"), Slices("x")).place == UV_EAFNOSUPPORT);
  CHECK(socket.send(loopback(9), Slices(std::string(65508, 'x'))).code == ErrorCode::too_large);
  CHECK(socket.send(loopback(0), Slices("x")).code == ErrorCode::network);
  CHECK_FALSE(socket.send(loopback(9), Slices(std::string(65507, 'x'))));
  loop.close();
}

TEST_CASE("an IPv6 socket serves IPv6 peers, and IPv4 peers under their IPv4 addresses") {
  if (!test::has_ipv6()) return;
  for (const bool ipv6_only : {false, true}) {
    CAPTURE(ipv6_only);
    test::EventLoop events;
    Loop loop(events.uv());
    Collector collector;
    UdpSocket socket;
    UdpOptions options;
    options.ipv6_only = ipv6_only;
    REQUIRE_FALSE(socket.open(loop, address_of("[::]:0"), collector, options));
    test::RawSocket ipv4(SOCK_DGRAM, socket.local().port);
    test::RawSocket ipv6(SOCK_DGRAM, socket.local().port, true);
    ipv4.send("from ipv4");
    ipv6.send("from ipv6");
    const std::size_t expected = ipv6_only ? 1 : 2;
    CHECK(events.run_until([&] { return collector.received.size() == expected; }));
    CHECK(collector.received.back().from ==
          address_of(("[::1]:" + std::to_string(ipv6.port())).c_str()));
    for (const Received& received : collector.received) {
      CHECK_FALSE(socket.send(received.from, Slices("answer")));
    }
    CHECK(events.run_until([&] { return ipv6.receive() == "answer"; }));
    if (!ipv6_only) {
      CHECK(collector.received[0].from == loopback(ipv4.port()));
      CHECK(events.run_until([&] { return ipv4.receive() == "answer"; }));
    }
    loop.close();
  }
}

// ---- Transports ----

TEST_CASE("datagrams come out as parsed messages with the flow they came by") {
  test::EventLoop events;
  Loop loop(events.uv());
  MessageCollector collector;
  Transports transports(loop, collector);
  ListenerOptions options = udp_at("127.0.0.1:0");
  options.name = "general";
  const auto address = transports.listen(options);
  REQUIRE(address.ok());
  test::RawSocket peer(SOCK_DGRAM, address->port);
  peer.send(test::request("one"));
  peer.send("\r\n\r\n");
  peer.send("\r\n\r\n" + test::request("two"));
  peer.send("rubbish");
  CHECK(events.run_until([&] { return collector.messages.size() == 3; }));
  CHECK(collector.batches > 0);
  CHECK(collector.call_ids == std::vector<std::string>{"one", "two", ""});
  CHECK(collector.messages[1] == test::request("two"));
  CHECK(collector.errors[0] == ErrorCode::none);
  CHECK(collector.errors[1] == ErrorCode::none);
  CHECK(collector.errors[2] != ErrorCode::none);
  const Flow& flow = collector.flows[0];
  CHECK(flow.transport == Transport::udp);
  CHECK(flow.socket == transports.listeners()[0].socket);
  CHECK(flow.remote == loopback(peer.port()));
  REQUIRE(transports.listener_of(flow) != nullptr);
  CHECK(transports.listener_of(flow)->name == "general");
  CHECK(transports.listener_of(flow)->address == *address);
  CHECK(transports.counters().udp.keepalives == 1);
  CHECK(transports.counters().udp.received == 3);
  transports.close();
  loop.close();
}

TEST_CASE("a message larger than the listener's limit is readable, and named too large") {
  test::EventLoop events;
  Loop loop(events.uv());
  MessageCollector collector;
  Transports transports(loop, collector);
  ListenerOptions options = udp_at("127.0.0.1:0");
  options.max_message = 524;
  const auto address = transports.listen(options);
  REQUIRE(address.ok());
  test::RawSocket peer(SOCK_DGRAM, address->port);
  peer.send(test::request("large", std::string(600, 'x')));
  CHECK(events.run_until([&] { return !collector.messages.empty(); }));
  CHECK(collector.errors[0] == ErrorCode::too_large);
  CHECK(collector.call_ids[0] == "large");
  transports.close();
  loop.close();
}

TEST_CASE("an answer leaves by the socket its request came in by") {
  test::EventLoop events;
  Loop loop(events.uv());
  MessageCollector collector;
  Transports transports(loop, collector);
  const auto first = transports.listen(udp_at("127.0.0.1:0"));
  const auto second = transports.listen(udp_at("127.0.0.1:0"));
  REQUIRE((first.ok() && second.ok()));
  test::RawSocket peer(SOCK_DGRAM, second->port);  // hears that address alone
  peer.send(test::request("x"));
  CHECK(events.run_until([&] { return !collector.flows.empty(); }));
  CHECK_FALSE(transports.send(collector.flows[0], Slices("answer")));
  CHECK(events.run_until([&] { return peer.receive() == "answer"; }));

  Flow unknown = collector.flows[0];
  unknown.socket = 99;
  CHECK(transports.send(unknown, Slices("x")).code == ErrorCode::gone);
  CHECK(transports.sent_by(unknown).error().code == ErrorCode::gone);
  transports.close();
  CHECK(transports.send(collector.flows[0], Slices("x")).code == ErrorCode::closed);
  CHECK(transports.listen(udp_at("127.0.0.1:0")).error().code == ErrorCode::closed);
  loop.close();
}

TEST_CASE(
    "sent-by is the socket's address, and of a socket bound to all the one nearest the peer") {
  test::EventLoop events;
  Loop loop(events.uv());
  MessageCollector collector;
  Transports transports(loop, collector);
  const auto specific = transports.listen(udp_at("127.0.0.1:0"));
  const auto wildcard = transports.listen(udp_at("0.0.0.0:0"));
  REQUIRE((specific.ok() && wildcard.ok()));
  Flow flow{Transport::udp, 0, loopback(9)};
  CHECK(*transports.sent_by(flow) == to_text(*specific));
  CHECK(flow.socket == transports.listeners()[0].socket);

  flow.socket = transports.listeners()[1].socket;
  SocketAddress expected = *wildcard;
  expected.ip = loopback().ip;
  CHECK(*transports.sent_by(flow) == to_text(expected));

  // A socket bound to the loopback cannot reach other machines.
  Flow far{Transport::udp, 0, address_of("192.0.2.1:5060")};
  REQUIRE(transports.sent_by(far).ok());
  CHECK(far.socket == transports.listeners()[1].socket);
  expected.ip = choose_local_address(interface_addresses(), far.remote.ip);
  CHECK(*transports.sent_by(far) == to_text(expected));
  transports.close();
  loop.close();
}

TEST_CASE("where no socket can reach a peer one is opened, unless that is not wanted") {
  for (const bool on_demand : {true, false}) {
    CAPTURE(on_demand);
    test::EventLoop events;
    Loop loop(events.uv());
    MessageCollector collector;
    TransportOptions options;
    options.open_udp_on_demand = on_demand;
    Transports transports(loop, collector, options);
    Collector peer_collector;
    UdpSocket peer;
    REQUIRE_FALSE(peer.open(loop, loopback(), peer_collector));
    Flow flow{Transport::udp, 0, peer.local()};
    const Error error = transports.send(flow, Slices(test::request("x")));
    CHECK(bool(error) != on_demand);
    if (on_demand) {
      CHECK(transports.listeners().empty());
      CHECK(events.run_until([&] { return !peer_collector.received.empty(); }));
      CHECK(*transports.sent_by(flow) == to_text(peer_collector.received[0].from));
      CHECK(transports.listener_of(flow) == nullptr);
      CHECK_FALSE(peer.send(peer_collector.received[0].from, Slices(test::request("back"))));
      CHECK(events.run_until([&] { return !collector.messages.empty(); }));
    }
    peer.close();
    transports.close();
    loop.close();
  }
}

TEST_CASE("an IPv6 socket is chosen for IPv6 peers, with brackets in sent-by") {
  if (!test::has_ipv6()) return;
  test::EventLoop events;
  Loop loop(events.uv());
  MessageCollector collector;
  Transports transports(loop, collector);
  const auto both = transports.listen(udp_at("[::]:0"));
  const auto ipv4 = transports.listen(udp_at("127.0.0.1:0"));
  REQUIRE((both.ok() && ipv4.ok()));
  Flow to_ipv6{Transport::udp, 0, address_of("[::1]:9")};
  CHECK(*transports.sent_by(to_ipv6) == "[::1]:" + std::to_string(both->port));
  CHECK(to_ipv6.socket == transports.listeners()[0].socket);
  Flow to_ipv4{Transport::udp, 0, loopback(9)};
  CHECK(*transports.sent_by(to_ipv4) == to_text(*ipv4));
  // Named, the IPv6 socket serves IPv4 as well.
  to_ipv4.socket = to_ipv6.socket;
  CHECK(*transports.sent_by(to_ipv4) == "127.0.0.1:" + std::to_string(both->port));
  transports.close();
  loop.close();
}

TEST_CASE("the trace handler sees every message in and out, and may replace itself") {
  test::EventLoop events;
  Loop loop(events.uv());
  MessageCollector collector;
  Transports transports(loop, collector);
  const auto address = transports.listen(udp_at("127.0.0.1:0"));
  REQUIRE(address.ok());
  test::RawSocket peer(SOCK_DGRAM, address->port);
  std::vector<std::string> seen;
  const auto token = std::make_shared<std::string>("first ");
  transports.on_trace([&, token](bool is_incoming, const Flow& flow, std::string_view octets) {
    CHECK(flow.remote.port == peer.port());
    transports.on_trace([&](bool incoming, const Flow&, std::string_view text) {
      seen.push_back((incoming ? "second in " : "second out ") + std::string(text));
    });
    // What this function holds is still there.
    seen.push_back(*token + (is_incoming ? "in " : "out ") + std::string(octets));
  });
  peer.send("one");
  CHECK(events.run_until([&] { return collector.flows.size() == 1; }));
  Slices answer("an");
  answer.add("swer");
  CHECK_FALSE(transports.send(collector.flows[0], answer));
  CHECK(seen == std::vector<std::string>{"first in one", "second out answer"});
  transports.on_trace({});
  CHECK_FALSE(transports.send(collector.flows[0], answer));
  CHECK(seen.size() == 2);
  transports.close();
  loop.close();
}

TEST_CASE("Transports may be closed or destroyed inside any of its callbacks") {
  for (const bool destroy : {false, true}) {
    for (const bool in_trace : {false, true}) {
      CAPTURE(destroy);
      CAPTURE(in_trace);
      test::EventLoop events;
      Loop loop(events.uv());
      MessageCollector collector;
      auto transports = std::make_unique<Transports>(loop, collector);
      const auto address = transports->listen(udp_at("127.0.0.1:0"));
      REQUIRE(address.ok());
      test::RawSocket peer(SOCK_DGRAM, address->port);
      for (int i = 0; i < 5; ++i) peer.send(test::request("x"));
      bool ended = false;
      const auto end = [&] {
        ended = true;
        if (destroy) {
          transports.reset();
        } else {
          transports->close();
        }
      };
      if (in_trace) {
        transports->on_trace([&](bool, const Flow&, std::string_view) { end(); });
      } else {
        collector.then = end;
      }
      CHECK(events.run_until([&] { return ended; }));
      loop.close();
      CHECK(events.run_dry());
      CHECK(collector.messages.size() == (in_trace ? 0 : 1));
    }
  }
}

}  // namespace net_udp
