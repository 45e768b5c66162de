// tcp.hpp, and the stream side of transport.hpp, on real sockets of the loopback. Framing itself is
// tested in test_stream.cpp.
// Not covered: memory that runs out, the keep-alive of the system.
#include "support/sipmsg.hpp"

#include <sys/resource.h>
#include <sys/syscall.h>

#include <functional>
#include <memory>
#include <vector>

#include "support/loop.hpp"

namespace net_tcp {

using namespace sipmsg;

// ---- fault injection: libuv accepts connections by this call; the next ones can be made to fail
// ----

namespace {
int failing_accepts = 0;
int accept_calls = 0;
}  // namespace

extern "C" int accept4(int fd, sockaddr* address, socklen_t* size, int flags) {
  ++accept_calls;
  if (failing_accepts > 0) {
    --failing_accepts;
    errno = EMFILE;
    return -1;
  }
  return static_cast<int>(::syscall(SYS_accept4, fd, address, size, flags));
}

namespace {

SocketAddress loopback(std::uint16_t port = 0) {
  SocketAddress address;
  address.ip = *parse_ip("127.0.0.1");
  address.port = port;
  return address;
}

class Collector : public TcpReceiver {
 public:
  struct Closed {
    std::uint32_t connection;
    Error why;
  };

  void on_stream_message(std::uint32_t connection, const MessageView& message, Error error,
                         const SocketAddress& from) override {
    inside = true;
    connections.push_back(connection);
    messages.emplace_back(message.bytes());
    call_ids.emplace_back(message.call_id());
    errors.push_back(error.code);
    remote = from;
    if (const auto running = on_message) running(connection);
    inside = false;
  }
  void on_connection_closed(std::uint32_t connection, Error why) override {
    CHECK_FALSE(inside);
    closed.push_back({connection, why});
    if (const auto running = on_closed) running(connection);
  }
  void on_stream_messages_end() override { ++ends; }
  bool keeps_idle_connection(std::uint32_t) override {
    ++idle_asked;
    return is_needed;
  }

  std::vector<std::uint32_t> connections;
  std::vector<std::string> messages, call_ids;
  std::vector<ErrorCode> errors;
  SocketAddress remote;
  std::vector<Closed> closed;
  std::function<void(std::uint32_t)> on_message, on_closed;
  int ends = 0;
  int idle_asked = 0;
  bool is_needed = false;  ///< what is said of idle connections
  bool inside = false;     ///< a call of ours, in which none of theirs may come
};

const SipHashKey key{};

/// What most tests need: a loop, and a listener on it.
struct TcpServer {
  explicit TcpServer(TcpOptions options = {}, TcpListenOptions listen_options = {})
      : loop(events.uv()), tcp(std::make_unique<TcpConnections>(loop, collector, options, key)) {
    const auto bound = tcp->listen(loopback(), listen_options);
    REQUIRE(bound.ok());
    address = *bound;
  }
  ~TcpServer() {
    tcp.reset();
    loop.close();
  }
  test::RawSocket connect() { return test::RawSocket(SOCK_STREAM, address.port); }
  template <class Condition>
  bool run_until(Condition condition) {
    return events.run_until(condition);
  }

  test::EventLoop events;
  Loop loop;
  Collector collector;
  std::unique_ptr<TcpConnections> tcp;
  SocketAddress address;
};

}  // namespace

TEST_CASE("a message arrives with its connection's number and its sender's address") {
  TcpServer server;
  test::RawSocket peer = server.connect();
  peer.send(test::request("one"));
  CHECK(server.run_until([&] { return server.collector.ends > 0; }));
  REQUIRE(server.collector.messages.size() == 1);
  CHECK(server.collector.messages[0] == test::request("one"));
  CHECK(server.collector.errors[0] == ErrorCode::none);
  CHECK(server.collector.connections[0] >= first_connection_number);
  CHECK(server.collector.remote == loopback(peer.port()));
  CHECK(server.tcp->local(server.collector.connections[0]) == server.address);
  CHECK(server.tcp->listener(server.collector.connections[0]) == std::size_t{0});
  CHECK(server.tcp->has_connection_to(loopback(peer.port())));
  CHECK(server.tcp->counters().accepted == 1);
}

TEST_CASE("messages arrive whole however the stream is cut") {
  const std::string stream = "\r\n" + test::request("one") +
                             test::request("two", std::string(9000, 'x')) + "\r\n\r\n" +
                             test::request("three", "");
  for (const std::size_t piece :
       {std::size_t{1}, std::size_t{7}, std::size_t{1000}, stream.size()}) {
    CAPTURE(piece);
    TcpServer server;
    test::RawSocket peer = server.connect();
    for (std::size_t i = 0; i < stream.size(); i += piece) {
      const std::string_view part = std::string_view(stream).substr(i, piece);
      REQUIRE(peer.send(part) == static_cast<long>(part.size()));
      if (piece < 1000 && i % 50 < piece) server.events.turn(1);
    }
    CHECK(server.run_until([&] { return server.collector.messages.size() == 3; }));
    CHECK(server.collector.call_ids == std::vector<std::string>{"one", "two", "three"});
    CHECK(server.run_until([&] { return peer.read_on() || peer.received == "\r\n"; }));
  }
}

TEST_CASE("an answer goes back over the connection its request came by") {
  TcpServer server;
  test::RawSocket first = server.connect();
  test::RawSocket second = server.connect();
  server.collector.on_message = [&](std::uint32_t connection) {
    Slices answer("answer to ");
    const std::string call_id = server.collector.call_ids.back();
    answer.add(call_id);
    CHECK_FALSE(server.tcp->send(connection, answer));
  };
  second.send(test::request("second"));
  first.send(test::request("first"));
  CHECK(server.run_until([&] {
    first.read_on();
    second.read_on();
    return first.received == "answer to first" && second.received == "answer to second";
  }));
  CHECK(server.tcp->counters().sent == 2);
}

TEST_CASE("a ping gets a pong; a line end alone, and many pings at once, do not get many") {
  struct Row {
    const char* name;
    std::string sent, expected;
  };
  std::string many;
  for (int i = 0; i < 1000; ++i) many += "\r\n\r\n";
  for (const Row& row : {Row{"ping", "\r\n\r\n", "\r\n"}, Row{"pong", "\r\n", ""},
                         Row{"many pings", many, "\r\n"}}) {
    CAPTURE(row.name);
    TcpServer server;
    test::RawSocket peer = server.connect();
    peer.send(row.sent);
    peer.send(test::request("end"));
    CHECK(server.run_until(
        [&] { return server.collector.ends > 0 && !server.collector.messages.empty(); }));
    server.events.turn();
    peer.read_on();
    CHECK(peer.received.size() <= row.expected.size() * 2);  // two reads, perhaps
    CHECK(peer.received.empty() == row.expected.empty());
    CHECK(server.tcp->counters().keepalives == row.sent.size() / 2);
  }
}

TEST_CASE("a message without an end is handed over with its mistake, answered, and the last") {
  TcpServer server;
  test::RawSocket peer = server.connect();
  server.collector.on_message = [&](std::uint32_t connection) {
    CHECK_FALSE(server.tcp->send(connection, Slices("400, and good bye")));
  };
  const std::string no_length =
      "MESSAGE sip:bob@127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/TCP a;branch=z9hG4bKx\r\nCall-ID: "
      "bad\r\n\r\n";
  peer.send(no_length);
  peer.send(std::string(100000, 'x'));  // unread, this would make the system withdraw the answer
  CHECK(server.run_until([&] { return peer.read_on(); }));
  CHECK(peer.received == "400, and good bye");
  CHECK(server.collector.call_ids == std::vector<std::string>{"bad"});
  CHECK(server.collector.errors[0] == ErrorCode::missing_content_length);
  peer.close();
  CHECK(server.run_until([&] { return !server.collector.closed.empty(); }));
  CHECK(server.collector.closed[0].why.code == ErrorCode::missing_content_length);
  CHECK(server.tcp->counters().closed_frame == 1);
}

TEST_CASE("a peer that does not go after the last answer is closed all the same") {
  TcpOptions options;
  options.drain_timeout_ms = 30;
  TcpServer server(options);
  test::RawSocket peer = server.connect();
  peer.send("rubbish\r\n\r\n");
  CHECK(server.run_until([&] { return !server.collector.closed.empty(); }));
  CHECK(server.tcp->connection_count() == 0);
}

TEST_CASE("a message above the limit is refused as too large, by its announcement alone") {
  TcpListenOptions options;
  options.max_message = 1000;
  TcpServer server({}, options);
  test::RawSocket fits = server.connect();
  const std::size_t head = test::request("fits", std::string(700, 'x')).size() - 700;
  fits.send(test::request("fits", std::string(1000 - head, 'x')));
  CHECK(server.run_until([&] { return !server.collector.messages.empty(); }));
  CHECK(server.collector.errors[0] == ErrorCode::none);
  test::RawSocket large = server.connect();
  large.send(test::request("much", std::string(1001 - head, 'x')).substr(0, head + 4));
  CHECK(server.run_until([&] { return server.collector.messages.size() == 2; }));
  CHECK(server.collector.errors[1] == ErrorCode::too_large);
  CHECK(server.collector.call_ids[1] == "much");
}

TEST_CASE("a connection that is idle is closed, and traffic of either direction keeps it") {
  TcpListenOptions options;
  options.idle_timeout_ms = 300;
  TcpServer server({}, options);
  test::RawSocket idle = server.connect();
  test::RawSocket pinging = server.connect();
  test::RawSocket listening = server.connect();
  idle.send(test::request("idle"));
  pinging.send(test::request("pinging"));
  CHECK(server.run_until([&] { return server.collector.messages.size() == 2; }));
  listening.send(test::request("listening"));
  CHECK(server.run_until([&] { return server.collector.messages.size() == 3; }));
  const std::uint32_t idle_number =
      server.collector.connections[server.collector.call_ids[0] == "idle" ? 0 : 1];
  std::uint64_t last_ms = server.loop.fresh_now_ms();
  const std::uint64_t end_ms = last_ms + 700;
  // A timer of the test's, so that the loop turns.
  uv_timer_t ticker;
  uv_timer_init(server.events.uv(), &ticker);
  uv_timer_start(
      &ticker, [](uv_timer_t*) {}, 10, 10);
  CHECK(server.run_until([&] {
    const std::uint64_t now_ms = server.loop.now_ms();
    if (now_ms >= last_ms + 20) {
      last_ms = now_ms;
      pinging.send("\r\n\r\n");
      CHECK_FALSE(server.tcp->send(server.collector.connections[2], Slices("news")));
    }
    return now_ms >= end_ms;
  }));
  uv_close(reinterpret_cast<uv_handle_t*>(&ticker), nullptr);
  REQUIRE(server.collector.closed.size() == 1);
  CHECK(server.collector.closed[0].connection == idle_number);
  CHECK(server.collector.closed[0].why.code == ErrorCode::closed);
  CHECK(server.tcp->counters().closed_idle == 1);
  CHECK(idle.read_on());
  server.events.turn();
}

TEST_CASE("a connection that is needed stays open however long it is idle") {
  TcpListenOptions options;
  options.idle_timeout_ms = 5;
  TcpServer server({}, options);
  server.collector.is_needed = true;
  test::RawSocket peer = server.connect();
  peer.send(test::request("one"));  // before its first message it is not idle but slow
  CHECK(server.run_until([&] { return server.collector.idle_asked >= 3; }));
  CHECK(server.tcp->connection_count() == 1);
  const int asked = server.collector.idle_asked;
  server.collector.is_needed = false;
  CHECK(server.run_until([&] { return server.tcp->connection_count() == 0; }));
  CHECK(server.collector.idle_asked == asked + 1);
  CHECK(server.tcp->counters().closed_idle == 1);
}

TEST_CASE("without an idle timeout a connection stays, but a half message in it does not") {
  TcpOptions options;
  options.message_timeout_ms = 60;
  TcpListenOptions listen_options;
  listen_options.idle_timeout_ms = 0;
  TcpServer server(options, listen_options);
  test::RawSocket peer = server.connect();
  peer.send(test::request("one"));
  CHECK(server.run_until([&] { return server.collector.messages.size() == 1; }));
  CHECK_FALSE(server.events.run_until([&] { return !server.collector.closed.empty(); }, 150));
  peer.send("MESSAGE");
  CHECK(server.run_until([&] { return !server.collector.closed.empty(); }));
  CHECK(server.collector.closed[0].why.code == ErrorCode::timeout);
}

TEST_CASE("a message that drips in is not waited for longer than one that stops") {
  for (const char* first : {"", "MESSAGE sip:"}) {
    CAPTURE(first);
    TcpOptions options;
    options.message_timeout_ms = 80;
    TcpServer server(options);
    test::RawSocket peer = server.connect();
    if (*first != '\0') peer.send(first);
    uv_timer_t ticker;
    uv_timer_init(server.events.uv(), &ticker);
    uv_timer_start(
        &ticker, [](uv_timer_t*) {}, 5, 5);
    CHECK(server.run_until([&] {
      if (*first != '\0') peer.send("x");
      return !server.collector.closed.empty();
    }));
    CHECK(server.collector.closed[0].why.code == ErrorCode::timeout);
    CHECK(server.tcp->counters().closed_slow == 1);
    uv_close(reinterpret_cast<uv_handle_t*>(&ticker), nullptr);
    server.events.turn();
  }
}

TEST_CASE("what we send does not keep a connection that owes us the rest of a message") {
  TcpOptions options;
  options.message_timeout_ms = 80;
  TcpServer server(options);
  test::RawSocket peer = server.connect();
  peer.send(test::request("one") + "MESSAGE");
  CHECK(server.run_until([&] { return server.collector.messages.size() == 1; }));
  uv_timer_t ticker;
  uv_timer_init(server.events.uv(), &ticker);
  uv_timer_start(
      &ticker, [](uv_timer_t*) {}, 10, 10);
  CHECK(server.run_until([&] {
    (void)server.tcp->send(server.collector.connections[0], Slices("news"));
    return !server.collector.closed.empty();
  }));
  CHECK(server.collector.closed[0].why.code == ErrorCode::timeout);
  uv_close(reinterpret_cast<uv_handle_t*>(&ticker), nullptr);
  server.events.turn();
}

TEST_CASE("a connection is made when something is to be sent, and used for all that follows") {
  TcpServer server;
  Collector client_collector;
  TcpConnections client(server.loop, client_collector, {}, key);
  const auto number = client.connect(server.address);
  REQUIRE(number.ok());
  CHECK_FALSE(client.send(*number, Slices(test::request("one"))));  // while it is opening
  CHECK_FALSE(client.send(*number, Slices(test::request("two"))));
  CHECK(*client.connect(server.address) == *number);
  CHECK(client.local(*number)->ip == server.address.ip);
  CHECK(server.run_until([&] { return server.collector.messages.size() == 2; }));
  CHECK(*client.connect(server.address) == *number);
  CHECK_FALSE(client.send(*number, Slices(test::request("three"))));
  CHECK(server.run_until([&] { return server.collector.messages.size() == 3; }));
  CHECK(server.collector.call_ids == std::vector<std::string>{"one", "two", "three"});
  CHECK(server.collector.connections[0] == server.collector.connections[2]);
  CHECK(client.local(*number) == server.collector.remote);
  CHECK_FALSE(client.listener(*number));

  // Requests may go the other way over it.
  CHECK(*server.tcp->connect(server.collector.remote) == server.collector.connections[0]);
  CHECK_FALSE(server.tcp->send(server.collector.connections[0], Slices(test::request("back"))));
  CHECK(server.run_until(
      [&] { return client_collector.call_ids == std::vector<std::string>{"back"}; }));
  CHECK(client.counters().connected == 1);
}

TEST_CASE("a connection that cannot be made is told later, never at once") {
  test::EventLoop events;
  Loop loop(events.uv());
  Collector collector;
  TcpConnections tcp(loop, collector, {}, key);
  std::uint16_t port = 0;
  { port = test::RawListener().port(); }  // nobody listens there any more
  const auto number = tcp.connect(loopback(port));
  REQUIRE(number.ok());
  CHECK_FALSE(tcp.send(*number, Slices(test::request("x"))));
  CHECK(collector.closed.empty());
  CHECK(events.run_until([&] { return !collector.closed.empty(); }));
  CHECK(collector.closed[0].connection == *number);
  CHECK(collector.closed[0].why.code == ErrorCode::network);
  CHECK(collector.closed[0].why.place == UV_ECONNREFUSED);
  CHECK(tcp.send(*number, Slices("x")).code == ErrorCode::gone);
  CHECK(tcp.counters().connect_failures == 1);
  CHECK_FALSE(tcp.has_connection_to(loopback(port)));
  loop.close();
}

TEST_CASE("a peer that does not answer the connection is given up") {
  test::RawListener full(0);
  test::RawSocket first(SOCK_STREAM, full.port());  // fills its queue; the next one hears nothing
  test::EventLoop events;
  Loop loop(events.uv());
  Collector collector;
  TcpOptions options;
  options.connect_timeout_ms = 50;
  TcpConnections tcp(loop, collector, options, key);
  const auto number = tcp.connect(loopback(full.port()));
  REQUIRE(number.ok());
  CHECK_FALSE(tcp.send(*number, Slices("x")));
  CHECK(events.run_until([&] { return !collector.closed.empty(); }));
  CHECK(collector.closed[0].connection == *number);
  CHECK(collector.closed[0].why.code == ErrorCode::timeout);
  loop.close();
}

TEST_CASE("connections made by us are pinged when nothing else is sent") {
  test::RawListener listener;
  test::EventLoop events;
  Loop loop(events.uv());
  Collector collector;
  TcpOptions options;
  options.keepalive_ms = 40;
  TcpConnections tcp(loop, collector, options, key);
  REQUIRE(tcp.connect(loopback(listener.port())).ok());
  std::optional<test::RawSocket> peer;
  CHECK(events.run_until([&] {
    if (!peer) peer = listener.accept();
    if (peer) peer->read_on();
    return peer && peer->received == "\r\n\r\n\r\n\r\n";  // twice
  }));
  CHECK(collector.closed.empty());
  tcp.close();
  loop.close();
}

TEST_CASE("a connection made by us whose peer reads nothing any more is given up") {
  test::RawListener listener;
  test::EventLoop events;
  Loop loop(events.uv());
  Collector collector;
  TcpOptions options;
  options.keepalive_ms = 50;
  TcpConnections tcp(loop, collector, options, key);
  const auto number = tcp.connect(loopback(listener.port()));
  REQUIRE(number.ok());
  std::optional<test::RawSocket> peer;
  CHECK(events.run_until([&] { return (peer = listener.accept()).has_value(); }));
  CHECK(events.run_until([&] { return tcp.counters().connected == 1; }));
  while (!tcp.send(*number, Slices(std::string(60000, 'x')))) {
  }
  CHECK(events.run_until([&] { return !collector.closed.empty(); }));
  CHECK(collector.closed[0].why.code == ErrorCode::timeout);
  loop.close();
}

TEST_CASE("a connection made by us is given up where its peer went without a word") {
  const test::RawListener listener;
  test::EventLoop events;
  Loop loop(events.uv());
  Collector collector;
  TcpOptions options;
  options.acknowledge_timeout_ms = 300;
  TcpConnections tcp(loop, collector, options, key);
  const auto number = tcp.connect(loopback(listener.port()));
  REQUIRE(number.ok());
  std::optional<test::RawSocket> peer;
  CHECK(events.run_until([&] { return (peer = listener.accept()).has_value(); }));
  CHECK(events.run_until([&] { return tcp.counters().connected == 1; }));
  peer->vanish();
  CHECK_FALSE(tcp.send(*number, Slices(test::request("lost"))));
  REQUIRE(events.run_until([&] { return !collector.closed.empty(); }));
  CHECK(collector.closed[0].connection == *number);
  CHECK(collector.closed[0].why.code == ErrorCode::network);
  CHECK(collector.closed[0].why.place == UV_ETIMEDOUT);
  tcp.close();
  loop.close();
}

TEST_CASE("a peer that does not read gets no more than the limit, and is not read from meanwhile") {
  TcpOptions options;
  options.max_queued = 100000;
  TcpServer server(options);
  test::RawSocket peer = server.connect();
  peer.send(test::request("one"));
  CHECK(server.run_until([&] { return server.collector.messages.size() == 1; }));
  const std::uint32_t number = server.collector.connections[0];
  std::string expected;
  Error error;
  while (!error) {
    REQUIRE(expected.size() < 100000000);
    const std::string message = std::to_string(expected.size()) + std::string(20000, '.');
    error = server.tcp->send(number, Slices(message));
    if (!error) expected += message;
  }
  CHECK(error.code == ErrorCode::limit_reached);
  CHECK(server.tcp->counters().not_sent == 1);
  CHECK(server.tcp->is_open(number));
  peer.send(test::request("two"));
  CHECK_FALSE(server.events.run_until([&] { return server.collector.messages.size() == 2; }, 50));
  CHECK(server.run_until([&] {
    peer.read_on();
    return peer.received.size() == expected.size();
  }));
  CHECK(peer.received == expected);
  CHECK(server.run_until([&] { return server.collector.messages.size() == 2; }));
  CHECK_FALSE(server.tcp->send(number, Slices("more")));
}

TEST_CASE(
    "where all that may wait is used up by peers that do not read, those that read are served") {
  TcpOptions options;
  options.max_queued = 100000;
  options.max_queued_in_all = 100000;
  TcpServer server(options);
  test::RawSocket silent = server.connect();
  silent.send(test::request("silent"));
  CHECK(server.run_until([&] { return server.collector.messages.size() == 1; }));
  test::RawSocket reader = server.connect();
  reader.send(test::request("reader"));
  CHECK(server.run_until([&] { return server.collector.messages.size() == 2; }));
  const std::uint32_t silent_number = server.collector.connections[0];
  const std::uint32_t reader_number = server.collector.connections[1];
  const std::string piece(10000, '.');
  while (!server.tcp->send(silent_number, Slices(piece))) {
  }
  for (std::size_t i = 1; i <= 100; ++i) {
    CHECK_FALSE(server.tcp->send(reader_number, Slices(piece)));
    CHECK(server.run_until([&] {
      reader.read_on();
      return reader.received.size() == i * piece.size();
    }));
  }
  // Now it reads no more either: nothing of it may wait, though its own limit is far.
  Error error;
  for (int i = 0; i < 10000 && !error; ++i) error = server.tcp->send(reader_number, Slices(piece));
  CHECK(error.code == ErrorCode::limit_reached);
  // What the silent one leaves is free for others again.
  silent.reset();
  CHECK(server.run_until([&] { return server.collector.closed.size() > 0; }));
  test::RawSocket third = server.connect();
  third.send(test::request("third"));
  CHECK(server.run_until([&] { return server.collector.messages.size() == 3; }));
  std::size_t taken = 0;
  const std::uint32_t third_number = server.collector.connections[2];
  while (!server.tcp->send(third_number, Slices(piece))) taken += piece.size();
  CHECK(server.run_until([&] {
    third.read_on();
    return third.received.size() == taken;
  }));
  CHECK(server.tcp->is_open(third_number));
}

TEST_CASE("all connections together may not make more wait than their common limit") {
  test::RawListener first(0),
      second(0);  // each with a full queue: connections to them stay opening
  test::RawSocket first_waiting(SOCK_STREAM, first.port());
  test::RawSocket second_waiting(SOCK_STREAM, second.port());
  test::EventLoop events;
  Loop loop(events.uv());
  Collector collector;
  TcpOptions options;
  options.max_queued = 100000;
  options.max_queued_in_all = 150000;
  TcpConnections tcp(loop, collector, options, key);
  const auto one = tcp.connect(loopback(first.port()));
  const auto two = tcp.connect(loopback(second.port()));
  REQUIRE((one.ok() && two.ok()));
  const std::string piece(10000, '.');
  int taken[2] = {0, 0};
  while (!tcp.send(*one, Slices(piece))) ++taken[0];
  while (!tcp.send(*two, Slices(piece))) ++taken[1];
  CHECK(taken[0] == 10);
  CHECK(taken[1] == 5);
  tcp.close_connection(*one);
  CHECK(events.run_until([&] { return !collector.closed.empty(); }));
  while (!tcp.send(*two, Slices(piece))) ++taken[1];
  CHECK(taken[1] == 10);
  loop.close();
}

TEST_CASE("more connections than the limits allow are closed at once, and others live on") {
  for (const bool per_address : {false, true}) {
    CAPTURE(per_address);
    TcpOptions options;
    (per_address ? options.max_connections_per_address : options.max_connections) = 2;
    TcpServer server(options);
    test::RawSocket first = server.connect();
    test::RawSocket second = server.connect();
    first.send(test::request("first"));
    second.send(test::request("second"));
    CHECK(server.run_until([&] { return server.collector.messages.size() == 2; }));
    test::RawSocket third = server.connect();
    CHECK(server.run_until([&] { return third.read_on(); }));
    CHECK(server.tcp->counters().refused == 1);
    CHECK(server.collector.closed.empty());  // nobody had heard of it
    if (!per_address) {
      CHECK(server.tcp->connect(loopback(9)).error().code == ErrorCode::limit_reached);
    }
    first.close();
    CHECK(server.run_until([&] { return server.collector.closed.size() == 1; }));
    test::RawSocket fourth = server.connect();
    fourth.send(test::request("fourth"));
    CHECK(server.run_until([&] { return server.collector.messages.size() == 3; }));
  }
}

TEST_CASE("connections are counted by IPv4 address, and by IPv6 network") {
  const auto network = [](std::string_view ip) {
    return to_text(detail::peer_network(*parse_ip(ip)));
  };
  CHECK(network("192.0.2.7") == "192.0.2.7");
  CHECK(network("2001:db8:1:2:3:4:5:6") == "2001:db8:1:2::");
  CHECK(network("::1") == "::");
}

TEST_CASE("a system without file descriptors pauses the listener, which then comes back") {
  TcpOptions options;
  options.accept_retry_ms = 30;
  TcpServer server(options);
  failing_accepts = 1000000;
  accept_calls = 0;
  test::RawSocket peer = server.connect();
  CHECK(server.run_until([&] { return server.tcp->counters().accept_failures > 0; }));
  failing_accepts = 0;
  CHECK(accept_calls < 10);
  CHECK(server.run_until([&] {
    test::RawSocket again(::socket(AF_INET, SOCK_STREAM, 0));
    sockaddr_in name{};
    name.sin_family = AF_INET;
    name.sin_port = htons(server.address.port);
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ::connect(again.fd(), reinterpret_cast<const sockaddr*>(&name), sizeof name);
    server.events.turn();
    return server.tcp->counters().accepted > 0;
  }));
}

TEST_CASE("a port that is taken is an error at once") {
  TcpServer server;
  Collector collector;
  TcpConnections other(server.loop, collector, {}, key);
  const Error error = other.listen(server.address).error();
  CHECK(error.code == ErrorCode::network);
  CHECK(error.place == UV_EADDRINUSE);
  CHECK(other.listen(loopback()).ok());
}

TEST_CASE("numbers of connections that are gone find nothing, and are not given again") {
  TcpServer server;
  std::vector<std::uint32_t> numbers;
  for (int i = 0; i < 5; ++i) {
    test::RawSocket peer = server.connect();
    peer.send(test::request("x"));
    const std::size_t before = server.collector.closed.size();
    CHECK(server.run_until([&] { return server.collector.messages.size() == before + 1; }));
    const std::uint32_t number = server.collector.connections.back();
    for (std::uint32_t other : numbers) {
      CHECK(other != number);
      CHECK(server.tcp->send(other, Slices("x")).code == ErrorCode::gone);
      CHECK_FALSE(server.tcp->is_open(other));
      CHECK_FALSE(server.tcp->local(other));
    }
    numbers.push_back(number);
    peer.close();
    CHECK(server.run_until([&] { return server.collector.closed.size() == before + 1; }));
    CHECK(server.collector.closed.back().why.code == ErrorCode::closed);
    CHECK(server.collector.closed.back().connection == number);
  }
  CHECK(server.tcp->connection_count() == 0);
}

TEST_CASE("a peer that breaks the connection off ends it, and writing to it does not end us") {
  for (const bool reset : {true, false}) {
    CAPTURE(reset);
    TcpServer server;
    test::RawSocket peer = server.connect();
    peer.send(test::request("x"));
    CHECK(server.run_until([&] { return !server.collector.messages.empty(); }));
    const std::uint32_t number = server.collector.connections[0];
    if (reset) {
      peer.reset();
    } else {
      peer.close();  // the second write finds the pipe broken
    }
    Error error;
    for (int i = 0; i < 100 && !error; ++i) error = server.tcp->send(number, Slices("x"));
    CHECK(error.code == ErrorCode::network);
    CHECK(error.place == (reset ? UV_ECONNRESET : UV_EPIPE));
    CHECK(server.tcp->send(number, Slices("x")).code == ErrorCode::gone);
    CHECK(server.collector.closed.empty());  // never inside our call
    CHECK(server.run_until([&] { return !server.collector.closed.empty(); }));
    CHECK(server.collector.closed[0].why.code == ErrorCode::network);
  }
}

TEST_CASE("a peer that has said all it has to say still gets what waits for it") {
  TcpOptions options;
  options.max_queued = options.max_queued_in_all = std::size_t{64} << 20;
  options.drain_timeout_ms = 60000;  // not what ends it
  TcpServer server(options);
  test::RawSocket peer = server.connect();
  std::string expected;
  server.collector.on_message = [&](std::uint32_t connection) {
    // More than the system takes at once, less than may wait.
    const std::string piece(60000, 'y');
    while (expected.size() < 20000000) {
      CHECK_FALSE(server.tcp->send(connection, Slices(piece)));
      expected += piece;
    }
  };
  peer.send(test::request("x"));
  peer.finish_writing();
  CHECK(server.run_until([&] { return !expected.empty(); }));
  server.events.turn();
  CHECK(server.run_until([&] { return peer.read_on(); }));
  CHECK((peer.received == expected));
  CHECK(server.run_until([&] { return !server.collector.closed.empty(); }));
  CHECK(server.collector.closed[0].why.code == ErrorCode::closed);
}

TEST_CASE("one connection may be closed, inside its own message too, after what was sent on it") {
  for (const bool inside : {false, true}) {
    CAPTURE(inside);
    TcpServer server;
    test::RawSocket peer = server.connect();
    const auto end = [&](std::uint32_t connection) {
      CHECK_FALSE(server.tcp->send(connection, Slices("last words")));
      server.tcp->close_connection(connection);
      CHECK(server.tcp->send(connection, Slices("too late")).code == ErrorCode::gone);
    };
    if (inside) server.collector.on_message = end;
    peer.send(test::request("one") + test::request("two"));
    CHECK(server.run_until([&] { return !server.collector.messages.empty(); }));
    if (!inside) end(server.collector.connections[0]);
    CHECK(server.run_until([&] { return peer.read_on(); }));
    CHECK(peer.received == "last words");
    CHECK(server.collector.messages.size() == (inside ? 1 : 2));
    peer.close();
    CHECK(server.run_until([&] { return server.collector.closed.size() == 1; }));
  }
}

TEST_CASE("everything may be closed or destroyed inside any callback") {
  for (const bool destroy : {false, true}) {
    for (const bool in_message : {false, true}) {
      CAPTURE(destroy);
      CAPTURE(in_message);
      TcpServer server;
      test::RawSocket peer = server.connect();
      test::RawSocket other = server.connect();
      bool ended = false;
      const auto end = [&](std::uint32_t) {
        CHECK_FALSE(ended);
        ended = true;
        if (destroy) {
          server.tcp.reset();
          server.loop.close();
        } else {
          server.tcp->close();
        }
      };
      other.send("MESS");
      if (in_message) {
        server.collector.on_message = end;
      } else {
        server.collector.on_closed = end;
        server.collector.on_message = [&](std::uint32_t) { peer.close(); };
      }
      peer.send(test::request("one") + test::request("two"));
      CHECK(server.run_until([&] { return ended; }));
      server.events.turn();
      CHECK(server.collector.messages.size() == (in_message ? 1 : 2));
      CHECK(other.read_on());
    }
  }
}

TEST_CASE("everything may be closed while a connection is opening, with messages that wait") {
  for (const bool wait_a_turn : {false, true}) {
    CAPTURE(wait_a_turn);
    test::RawListener listener;
    test::EventLoop events;
    Loop loop(events.uv());
    Collector collector;
    TcpConnections tcp(loop, collector, {}, key);
    const auto number = tcp.connect(loopback(listener.port()));
    REQUIRE(number.ok());
    CHECK_FALSE(tcp.send(*number, Slices("x")));
    if (wait_a_turn) events.turn(1);
    tcp.close(200);
    CHECK(tcp.connect(loopback(listener.port())).error().code == ErrorCode::closed);
    CHECK(tcp.send(*number, Slices("x")).code == ErrorCode::gone);
    loop.close();
    CHECK(events.run_dry());
    CHECK(collector.closed.empty());
  }
}

TEST_CASE("closing lets go out what waits, also when everything is destroyed meanwhile") {
  for (const bool peer_reads : {true, false}) {
    CAPTURE(peer_reads);
    auto server = std::make_unique<TcpServer>();
    test::RawSocket peer = server->connect();
    test::RawSocket idle = server->connect();
    idle.send("MESS");
    peer.send(test::request("x"));
    CHECK(server->run_until([&] { return !server->collector.messages.empty(); }));
    std::string expected;
    const std::string piece(50000, 'z');
    while (!server->tcp->send(server->collector.connections[0], Slices(piece))) expected += piece;
    server->tcp->close(peer_reads ? 10000 : 30);
    server->tcp.reset();
    server->loop.close();
    if (peer_reads) {
      CHECK(server->run_until([&] { return peer.read_on(); }));
      CHECK(peer.received == expected);
      peer.close();
    }
    CHECK(server->events.run_dry(5000));
    CHECK(server->collector.closed.empty());
  }
}

// ---- Transports ----

namespace {

class MessageCollector : public TransportReceiver {
 public:
  void on_message(const MessageView& message, Error error, const Flow& from) override {
    call_ids.emplace_back(message.call_id());
    errors.push_back(error.code);
    flows.push_back(from);
    if (const auto running = then) running();
  }
  void on_connection_closed(std::uint32_t socket, Error) override { closed.push_back(socket); }
  void on_batch_end() override { ++batches; }

  std::vector<std::string> call_ids;
  std::vector<ErrorCode> errors;
  std::vector<Flow> flows;
  std::vector<std::uint32_t> closed;
  std::function<void()> then;
  int batches = 0;
};

ListenerOptions tcp_listener(const char* name, const char* address = "127.0.0.1:0") {
  ListenerOptions options;
  options.name = name;
  options.transport = Transport::tcp;
  options.address = *parse_socket_address(address);
  return options;
}

}  // namespace

TEST_CASE("over TCP a flow names the connection, and sent-by the listener") {
  test::EventLoop events;
  Loop loop(events.uv());
  MessageCollector client_collector;
  MessageCollector server_collector;
  Transports client(loop, client_collector);
  Transports server(loop, server_collector);
  const auto client_address = client.listen(tcp_listener("client"));
  ListenerOptions udp;
  udp.address = loopback();
  REQUIRE(server.listen(udp).ok());
  const auto server_address = server.listen(tcp_listener("tcp"));
  REQUIRE((client_address.ok() && server_address.ok()));

  Flow flow{Transport::tcp, 0, *server_address};
  CHECK_FALSE(client.has_stream_to(flow.remote));
  CHECK(*client.sent_by(flow) == to_text(*client_address));
  CHECK(flow.socket >= first_connection_number);
  CHECK(client.has_stream_to(flow.remote));
  CHECK(client.is_open(flow.socket));
  CHECK_FALSE(client.send(flow, Slices(test::request("one"))));
  Flow again{Transport::tcp, 0, *server_address};
  CHECK_FALSE(client.send(again, Slices(test::request("two"))));
  CHECK(events.run_until([&] { return server_collector.flows.size() == 2; }));
  CHECK(server_collector.batches > 0);
  CHECK(client.connection_count() == 1);
  CHECK(client.listener_of(flow) == nullptr);

  Flow back = server_collector.flows[0];
  CHECK(back.transport == Transport::tcp);
  CHECK(server_collector.flows[1] == back);
  REQUIRE(server.listener_of(back) != nullptr);
  CHECK(server.listener_of(back)->name == "tcp");
  CHECK(*server.sent_by(back) == to_text(*server_address));
  CHECK_FALSE(server.send(back, Slices(test::request("back"))));
  CHECK(events.run_until(
      [&] { return client_collector.call_ids == std::vector<std::string>{"back"}; }));
  CHECK(client_collector.flows[0] == flow);

  client.close_connection(flow.socket);
  CHECK(events.run_until([&] { return server_collector.closed.size() == 1; }));
  CHECK(server_collector.closed[0] == back.socket);
  CHECK(server.send(back, Slices("x")).code == ErrorCode::gone);
  CHECK(server.sent_by(back).error().code == ErrorCode::gone);
  CHECK(server.listener_of(back) == nullptr);
  CHECK(server.counters().tcp.accepted == 1);
  client.close();
  server.close();
  loop.close();
}

TEST_CASE("without a TCP listener sent-by is this end of the connection") {
  test::EventLoop events;
  Loop loop(events.uv());
  test::RawListener listener;
  MessageCollector collector;
  Transports transports(loop, collector);
  Flow flow{Transport::tcp, 0, loopback(listener.port())};
  const std::string sent_by(*transports.sent_by(flow));
  std::optional<test::RawSocket> peer;
  CHECK(events.run_until([&] { return (peer = listener.accept()).has_value(); }));
  sockaddr_in name{};
  socklen_t size = sizeof name;
  REQUIRE(::getpeername(peer->fd(), reinterpret_cast<sockaddr*>(&name), &size) == 0);
  CHECK(sent_by == "127.0.0.1:" + std::to_string(ntohs(name.sin_port)));
  transports.close();
  loop.close();
}

TEST_CASE("over a listener for all addresses, sent-by is the address the peer connected to") {
  test::EventLoop events;
  Loop loop(events.uv());
  MessageCollector collector;
  Transports transports(loop, collector);
  const auto wildcard = transports.listen(tcp_listener("all", "0.0.0.0:0"));
  REQUIRE(wildcard.ok());
  test::RawSocket peer(SOCK_STREAM, wildcard->port);
  peer.send(test::request("x"));
  CHECK(events.run_until([&] { return !collector.flows.empty(); }));
  CHECK(*transports.sent_by(collector.flows[0]) == "127.0.0.1:" + std::to_string(wildcard->port));
  transports.close();
  loop.close();
}

TEST_CASE("a trace handler that closes everything is the last to see the stream") {
  for (const bool destroy : {false, true}) {
    CAPTURE(destroy);
    test::EventLoop events;
    Loop loop(events.uv());
    MessageCollector collector;
    auto transports = std::make_unique<Transports>(loop, collector);
    const auto address = transports->listen(tcp_listener("tcp"));
    REQUIRE(address.ok());
    test::RawSocket peer(SOCK_STREAM, address->port);
    std::vector<std::string> seen;
    transports->on_trace([&](bool, const Flow&, std::string_view octets) {
      seen.emplace_back(octets);
      if (destroy) {
        transports.reset();
      } else {
        transports->close();
      }
    });
    peer.send(test::request("one") + test::request("two"));
    CHECK(events.run_until([&] { return !seen.empty(); }));
    loop.close();
    CHECK(events.run_dry());
    CHECK(seen == std::vector<std::string>{test::request("one")});
    CHECK(collector.call_ids.empty());
  }
}

}  // namespace net_tcp
