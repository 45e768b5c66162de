// Endpoint on real sockets of the loopback: two of them on one loop talk to each other.
#include <doctest/doctest.h>
#include <sys/resource.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "support/loop.hpp"
#include "support/sipmsg.hpp"

namespace net_endpoint {

using sipmsg::Endpoint;
using sipmsg::Error;
using sipmsg::ErrorCode;
using sipmsg::Message;
using sipmsg::Outcome;
using sipmsg::Outgoing;
using sipmsg::Registration;
using sipmsg::RegistrationOptions;
using sipmsg::RegistrationStatus;
using sipmsg::Reply;
using sipmsg::Server;
using sipmsg::Transport;

namespace {

/// Two endpoints, one of which listens on every transport.
struct Pair {
  test::EventLoop loop;
  Endpoint bob{loop.uv()};
  Endpoint alice{loop.uv()};

  Pair() {
    REQUIRE_FALSE(bob.listen_udp("127.0.0.1", 0));
    REQUIRE_FALSE(bob.listen_tcp("127.0.0.1", 0));
  }
  /// A message to bob.
  Outgoing to_bob(Transport transport, std::string body = "hello") const {
    const std::size_t index = transport == Transport::udp ? 0 : 1;
    Outgoing outgoing;
    outgoing.to = "sip:bob@" + to_text(bob.listeners()[index].address);
    if (transport == Transport::tcp) outgoing.to += ";transport=tcp";
    outgoing.from = "sip:alice@127.0.0.1";
    outgoing.body = std::move(body);
    return outgoing;
  }
};

}  // namespace

TEST_CASE("a message reaches the other endpoint whole, and its answer the sender") {
  const std::string bodies[] = {"hello", "Grüße \xF0\x9F\x91\x8B", std::string("a\0b\r\n\r\nc", 8),
                                std::string(20000, 'x')};
  for (Transport transport : {Transport::udp, Transport::tcp}) {
    for (const std::string& body : bodies) {
      CAPTURE(body.size());
      Pair pair;
      std::string received;
      std::string from;
      int code = 0;
      pair.bob.on_message([&](const Message& message, Reply reply) {
        received = std::string(message.body());
        from = std::string(message.from()->uri.text);
        CHECK(reply.send(202, "Later"));
      });
      REQUIRE_FALSE(pair.alice.send(pair.to_bob(transport, body), [&](const Outcome& outcome) {
        code = outcome.code;
        CHECK(outcome.ok());
        CHECK(outcome.reason == "Later");
      }));
      REQUIRE(pair.loop.run_until([&] { return code != 0; }));
      CHECK(code == 202);
      CHECK(received == body);
      CHECK(from == "sip:alice@127.0.0.1");
    }
  }
}

TEST_CASE("an endpoint without a handler refuses messages with 405") {
  Pair pair;
  int code = 0;
  REQUIRE_FALSE(pair.alice.send(pair.to_bob(Transport::udp),
                                [&](const Outcome& outcome) { code = outcome.code; }));
  REQUIRE(pair.loop.run_until([&] { return code != 0; }));
  CHECK(code == 405);
}

TEST_CASE("a connection that is refused fails the send, once") {
  Pair pair;
  Outgoing outgoing = pair.to_bob(Transport::tcp);
  pair.bob.close();
  int calls = 0;
  Error error;
  REQUIRE_FALSE(pair.alice.send(outgoing, [&](const Outcome& outcome) {
    ++calls;
    error = outcome.error;
  }));
  REQUIRE(pair.loop.run_until([&] { return calls != 0; }));
  CHECK(calls == 1);
  CHECK(error.code == ErrorCode::network);
  CHECK(error.place == UV_ECONNREFUSED);
}

#ifdef __linux__
TEST_CASE("a port where nobody listens is an error at once, and other sends go on") {
  Pair pair;
  Error error;
  int code = 0;
  Outgoing outgoing = pair.to_bob(Transport::udp);
  {
    test::EventLoop loop;
    Endpoint gone(loop.uv());
    REQUIRE_FALSE(gone.listen_udp("127.0.0.1", 0));
    outgoing.to = "sip:gone@" + to_text(gone.listeners()[0].address);
  }
  pair.bob.on_message([](const Message&, Reply reply) { reply.send(200); });
  const std::uint64_t begin_ms = uv_now(pair.loop.uv());
  REQUIRE_FALSE(pair.alice.send(outgoing, [&](const Outcome& outcome) { error = outcome.error; }));
  REQUIRE_FALSE(pair.alice.send(pair.to_bob(Transport::udp),
                                [&](const Outcome& outcome) { code = outcome.code; }));
  REQUIRE(pair.loop.run_until([&] { return bool(error) && code != 0; }));
  CHECK(error.code == ErrorCode::network);
  CHECK(error.place == UV_ECONNREFUSED);
  CHECK(code == 200);
  CHECK(uv_now(pair.loop.uv()) - begin_ms < 5000);
}
#endif

TEST_CASE("a large message goes over TCP where the same address takes connections") {
  test::EventLoop loop;
  std::vector<Transport> ways;
  std::vector<std::size_t> sizes;
  int code = 0;
  Endpoint bob(loop.uv());
  Endpoint alice(loop.uv());
  REQUIRE_FALSE(bob.listen_udp("127.0.0.1", 0));
  const std::uint16_t port = bob.listeners()[0].address.port;
  bool takes_connections = false;
  SUBCASE("and it does") {
    takes_connections = true;
    REQUIRE_FALSE(bob.listen_tcp("127.0.0.1", port));
  }
  SUBCASE("else over UDP, once") {}
  bob.on_message([&](const Message& message, Reply reply) {
    sizes.push_back(message.body().size());
    reply.send(200);
  });
  bob.on_trace([&](bool is_incoming, const sipmsg::Flow& flow, std::string_view) {
    if (is_incoming) ways.push_back(flow.transport);
  });
  Outgoing outgoing;
  outgoing.to = "sip:bob@127.0.0.1:" + std::to_string(port) + ";transport=udp";
  outgoing.body.assign(5000, 'x');
  REQUIRE_FALSE(alice.send(outgoing, [&](const Outcome& outcome) { code = outcome.code; }));
  REQUIRE(loop.run_until([&] { return code != 0; }));
  CHECK(code == 200);
  CHECK(sizes == std::vector<std::size_t>{5000});
  CHECK(ways == std::vector<Transport>{takes_connections ? Transport::tcp : Transport::udp});
}

TEST_CASE("a deadline is kept by the loop's clock") {
  Pair pair;
  pair.bob.on_message([](const Message&, Reply) {});  // never answers
  Outgoing outgoing = pair.to_bob(Transport::udp);
  outgoing.deadline_ms = 30;
  Error error;
  REQUIRE_FALSE(pair.alice.send(outgoing, [&](const Outcome& outcome) { error = outcome.error; }));
  const std::uint64_t begin_ms = uv_now(pair.loop.uv());
  REQUIRE(pair.loop.run_until([&] { return bool(error); }));
  CHECK(error.code == ErrorCode::timeout);
  CHECK(uv_now(pair.loop.uv()) - begin_ms >= 30);
  CHECK(uv_now(pair.loop.uv()) - begin_ms < 5000);
}

TEST_CASE("a name is looked up by what the application gives, or by the system") {
  /// Knows one host.
  class Names final : public sipmsg::NameService {
   public:
    explicit Names(test::EventLoop& loop) : loop_(loop.uv()) {}
    ~Names() { loop_.close(); }
    void look_up_addresses(const std::string& host, AddressHandler done) override {
      const bool is_known = host == "bob.invalid";
      REQUIRE_FALSE(loop_.post([done, is_known] {
        is_known ? done({}, {*sipmsg::parse_ip("127.0.0.1")}) : done(ErrorCode::unknown_host, {});
      }));
    }
    void look_up_srv(const std::string&, SrvHandler done) override {
      REQUIRE_FALSE(loop_.post([done] { done({}, {}); }));
    }
    void close() { loop_.close(); }

   private:
    sipmsg::Loop loop_;
  };
  int code = 0;
  Error error;
  Pair pair;
  Names names(pair.loop);
  sipmsg::AgentOptions options;
  pair.bob.on_message([](const Message&, Reply reply) { reply.send(200); });
  const std::string port = std::to_string(pair.bob.listeners()[0].address.port);
  Outgoing outgoing;
  SUBCASE("known to the application") {
    options.names = &names;
    outgoing.to = "sip:bob@bob.invalid:" + port;
  }
  SUBCASE("known to the system") { outgoing.to = "sip:bob@localhost:" + port; }
  SUBCASE("not known") {
    options.names = &names;
    outgoing.to = "sip:bob@nobody.invalid";
  }
  Endpoint carol(pair.loop.uv(), options);
  REQUIRE_FALSE(carol.send(outgoing, [&](const Outcome& outcome) {
    code = outcome.code;
    error = outcome.error;
  }));
  REQUIRE(pair.loop.run_until([&] { return code != 0 || error; }));
  if (outgoing.to == "sip:bob@nobody.invalid") {
    CHECK(error.code == ErrorCode::unknown_host);
  } else {
    CHECK(code == 200);
  }
}

TEST_CASE("closing tells who waits for a name, and the loop runs dry") {
  Pair pair;
  int closed = 0;
  Outgoing outgoing;
  outgoing.to = "sip:bob@localhost";
  REQUIRE_FALSE(pair.alice.send(outgoing, [&](const Outcome& outcome) {
    CHECK(outcome.error.code == ErrorCode::closed);
    ++closed;
  }));
  pair.alice.close();
  CHECK(closed == 1);
  pair.bob.close();
  CHECK(pair.loop.run_dry());
  CHECK(closed == 1);
}

TEST_CASE("closing tells everyone who waits, and the loop runs dry") {
  Pair pair;
  pair.bob.on_message([](const Message&, Reply) {});  // never answers
  int closed = 0;
  for (Transport transport : {Transport::udp, Transport::tcp}) {
    REQUIRE_FALSE(pair.alice.send(pair.to_bob(transport), [&](const Outcome& outcome) {
      CHECK(outcome.error.code == ErrorCode::closed);
      ++closed;
    }));
  }
  pair.alice.close();
  CHECK(closed == 2);
  CHECK(pair.alice.send(pair.to_bob(Transport::udp), {}).code == ErrorCode::closed);
  pair.bob.close();
  CHECK(pair.loop.run_dry());
}

TEST_CASE("an endpoint may be destroyed inside its own callbacks") {
  SUBCASE("while it receives") {
    Pair pair;
    auto doomed = std::make_unique<Endpoint>(pair.loop.uv());
    REQUIRE_FALSE(doomed->listen_udp("127.0.0.1", 0));
    Outgoing outgoing = pair.to_bob(Transport::udp);
    outgoing.to = "sip:doomed@" + to_text(doomed->listeners()[0].address);
    Reply kept;
    doomed->on_message([&](const Message&, Reply reply) {
      kept = reply;
      doomed.reset();
    });
    REQUIRE_FALSE(pair.alice.send(outgoing, {}));
    REQUIRE(pair.loop.run_until([&] { return !doomed; }));
    CHECK_FALSE(kept.send(200));
  }
  SUBCASE("while it is told what became of a message") {
    Pair pair;
    pair.bob.on_message([](const Message&, Reply reply) { reply.send(200); });
    auto doomed = std::make_unique<Endpoint>(pair.loop.uv());
    REQUIRE_FALSE(
        doomed->send(pair.to_bob(Transport::tcp), [&](const Outcome&) { doomed.reset(); }));
    REQUIRE(pair.loop.run_until([&] { return !doomed; }));
  }
}

TEST_CASE("a handler may replace itself and the endpoint may be closed inside it") {
  int first = 0;
  int second = 0;
  int answers = 0;  // before the pair: its end tells whoever still waits
  Pair pair;
  pair.bob.on_message([&](const Message&, Reply reply) {
    ++first;
    reply.send(200);
    pair.bob.on_message([&](const Message&, Reply next) {
      ++second;
      next.send(200);
      pair.bob.close();
    });
  });
  const auto count = [&](const Outcome&) { ++answers; };
  REQUIRE_FALSE(pair.alice.send(pair.to_bob(Transport::udp), count));
  REQUIRE(pair.loop.run_until([&] { return answers == 1; }));
  REQUIRE_FALSE(pair.alice.send(pair.to_bob(Transport::udp), count));
  REQUIRE(pair.loop.run_until([&] { return second == 1; }));
  CHECK(first == 1);
  CHECK(second == 1);
}

TEST_CASE("a reply may come later, but only once") {
  Pair pair;
  Reply kept;
  bool received = false;
  pair.bob.on_message([&](const Message&, Reply reply) {
    kept = reply;
    received = true;
  });
  int code = 0;
  std::string why;
  REQUIRE_FALSE(pair.alice.send(pair.to_bob(Transport::udp), [&](const Outcome& outcome) {
    code = outcome.code;
    why = outcome.response->header("X-Why").value_or("");
  }));
  REQUIRE(pair.loop.run_until([&] { return received; }));
  CHECK_FALSE(kept.send(99));
  CHECK_FALSE(kept.send(200, "two\r\nlines"));
  CHECK_FALSE(kept.send(200, {}, {{"X-Y", "two\r\nlines"}}));
  CHECK(kept.send(603, {}, {{"X-Why", "I do not want to"}}));
  CHECK_FALSE(kept.send(200));
  REQUIRE(pair.loop.run_until([&] { return code != 0; }));
  CHECK(code == 603);
  CHECK(why == "I do not want to");
}

TEST_CASE("a delivery notice comes with today's date, and is not answered with another") {
  test::EventLoop loop;
  std::vector<std::string> notices;
  int code = 0;
  sipmsg::AgentOptions options;
  options.delivery_notices = true;
  Endpoint alice(loop.uv(), options);
  Endpoint bob(loop.uv(), options);
  REQUIRE_FALSE(alice.listen_udp("127.0.0.1", 0));
  REQUIRE_FALSE(bob.listen_udp("127.0.0.1", 0));
  bob.on_message([](const Message&, Reply reply) { reply.send(200); });
  alice.on_message([&](const Message& message, Reply reply) {
    const auto content = read_content(message);
    REQUIRE(content);
    CHECK(content->kind == sipmsg::ContentKind::notification);
    notices.push_back(content->notification.message_id);
    const auto date_s = sipmsg::parse_date_time(content->cpim->date_time);
    CHECK(sipmsg::unix_time_s() - static_cast<std::uint64_t>(*date_s) < 60);
    reply.send(200);
  });
  std::vector<char> buffer(4096);
  sipmsg::Output out(buffer.data(), buffer.size());
  sipmsg::CpimStart start;
  start.from = "sip:alice@127.0.0.1";
  start.to = "sip:bob@127.0.0.1";
  start.message_id = "one";
  start.request.positive_delivery = true;
  write_cpim(out, start, "Hello");
  Outgoing outgoing;
  outgoing.to = "sip:bob@" + to_text(bob.listeners()[0].address);
  outgoing.from = "sip:alice@127.0.0.1";
  outgoing.content_type = "message/cpim";
  outgoing.body = out.written();
  REQUIRE_FALSE(alice.send(outgoing, [&](const Outcome& outcome) { code = outcome.code; }));
  REQUIRE(loop.run_until([&] { return code != 0 && !notices.empty(); }));
  CHECK(code == 200);
  loop.turn(10);
  CHECK(notices == std::vector<std::string>{"one"});
}

// ---- registrations ------------------------------------------------------------------------------

namespace {

using State = RegistrationStatus::State;

/// A server where everybody may register, and an endpoint that does.
struct Home {
  test::EventLoop loop;
  std::vector<State> states;
  std::unique_ptr<Server> server;
  Endpoint endpoint{loop.uv()};

  Home() { open(0, 0); }
  /// Port 0: any.
  void open(std::uint16_t udp_port, std::uint16_t tcp_port) {
    sipmsg::Settings settings = sipmsg::open_settings();
    for (auto& listener : settings.listeners) {
      listener.port = listener.type == Transport::udp ? udp_port : tcp_port;
    }
    server = std::make_unique<Server>(loop.uv(), settings);
    REQUIRE_FALSE(server->start().error);
  }
  std::uint16_t port(Transport transport) const {
    for (const auto& listener : server->listeners()) {
      if (listener.transport == transport) return listener.address.port;
    }
    return 0;
  }
  RegistrationOptions options(Transport transport) const {
    RegistrationOptions options;
    options.address_of_record = "sip:alice@127.0.0.1";
    options.proxy = "sip:127.0.0.1:" + std::to_string(port(transport));
    if (transport == Transport::tcp) options.proxy += ";transport=tcp";
    options.expires_s = 3600;
    return options;
  }
  Endpoint::RegistrationHandler note() {
    return [this](const RegistrationStatus& status) { states.push_back(status.state); };
  }
};

}  // namespace

TEST_CASE("an endpoint that is registered is written to by its name, until it is not") {
  for (Transport transport : {Transport::udp, Transport::tcp}) {
    std::vector<int> codes;
    int received = 0;
    int stopped = 0;
    Home home;
    Endpoint writer(home.loop.uv());
    home.endpoint.on_message([&](const Message&, Reply reply) {
      ++received;
      reply.send(200);
    });
    Registration registration(home.endpoint, home.options(transport), home.note());
    REQUIRE_FALSE(registration.start());
    REQUIRE(home.loop.run_until([&] { return !home.states.empty(); }));
    CHECK(home.states == std::vector<State>{State::registered});
    CHECK(registration.status().expires_s > 0);

    Outgoing outgoing;
    outgoing.to = "sip:alice@127.0.0.1";
    outgoing.from = "sip:writer@127.0.0.1";
    outgoing.proxy = home.options(Transport::udp).proxy;
    outgoing.body = "Hello";
    const auto note = [&](const Outcome& outcome) { codes.push_back(outcome.code); };
    REQUIRE_FALSE(writer.send(outgoing, note));
    REQUIRE(home.loop.run_until([&] { return codes.size() == 1; }));
    registration.stop([&] { ++stopped; });
    CHECK(stopped == 0);
    REQUIRE(home.loop.run_until([&] { return stopped == 1; }));
    CHECK(home.states.back() == State::unregistered);
    REQUIRE_FALSE(writer.send(outgoing, note));
    REQUIRE(home.loop.run_until([&] { return codes.size() == 2; }));
    CHECK(codes[0] == 200);
    CHECK(codes[1] >= 400);
    CHECK(received == 1);
  }
}

TEST_CASE("whoever is registered and goes, endpoint or registration, is not bound any more") {
  for (Transport transport : {Transport::udp, Transport::tcp}) {
    for (bool is_endpoint : {false, true}) {
      CAPTURE(is_endpoint);
      Home home;
      auto registration =
          std::make_unique<Registration>(home.endpoint, home.options(transport), home.note());
      REQUIRE_FALSE(registration->start());
      REQUIRE(home.loop.run_until([&] { return home.server->bindings() == 1; }));
      REQUIRE(home.loop.run_until([&] { return !home.states.empty(); }));
      if (is_endpoint) {
        home.endpoint.close();
      } else {
        registration.reset();
      }
      CHECK(home.loop.run_until([&] { return home.server->bindings() == 0; }));
      CHECK(home.states == std::vector<State>{State::registered});
    }
  }
}

TEST_CASE("an endpoint registers again when its connection broke or nobody listened") {
  Home home;
  Registration registration(home.endpoint, home.options(Transport::tcp), home.note());
  const std::uint16_t tcp_port = home.port(Transport::tcp);
  REQUIRE_FALSE(registration.start());
  REQUIRE(home.loop.run_until([&] { return !home.states.empty(); }));
  home.server.reset();
  REQUIRE(home.loop.run_until([&] { return home.states.size() >= 3; }));  // refused once more
  home.open(0, tcp_port);
  REQUIRE(home.loop.run_until([&] { return home.states.back() == State::registered; }));
  CHECK(home.states[0] == State::registered);
  CHECK(home.states[1] == State::retrying);
  CHECK(home.states[2] == State::retrying);
}

TEST_CASE("an endpoint keeps the way to it open while it is registered") {
  /// Grants whatever is asked for.
  class Granting final : public sipmsg::TransportReceiver {
   public:
    explicit Granting(uv_loop_t* uv) : loop(uv), transports(loop, *this) {}
    ~Granting() {
      transports.close();
      loop.close();
    }
    void on_message(const sipmsg::MessageView& message, Error, const sipmsg::Flow& from) override {
      std::vector<char> buffer(4096);
      sipmsg::Output out(buffer.data(), buffer.size());
      write_status_line(out, 200, {});
      write_response_head(out, message, "tag", from.remote);
      sipmsg::write_body(out, {}, {});
      CHECK_FALSE(transports.send(from, sipmsg::Slices(out.written())));
    }
    void on_connection_closed(std::uint32_t, Error) override {}

    sipmsg::Loop loop;
    sipmsg::Transports transports;
  };
  for (Transport transport : {Transport::udp, Transport::tcp}) {
    std::size_t traced = 0;
    test::EventLoop loop;
    Granting registrar(loop.uv());
    sipmsg::ListenerOptions listener;
    listener.transport = transport;
    listener.address = *sipmsg::parse_socket_address("127.0.0.1:0");
    const auto address = registrar.transports.listen(listener);
    REQUIRE(address);
    Endpoint endpoint(loop.uv());
    endpoint.on_trace([&](bool, const sipmsg::Flow&, std::string_view) { ++traced; });
    RegistrationOptions options;
    options.address_of_record = "sip:alice@" + to_text(*address);
    if (transport == Transport::tcp) options.address_of_record += ";transport=tcp";
    options.keepalive_s = 1;
    Registration registration(endpoint, options, {});
    REQUIRE_FALSE(registration.start());
    const auto keepalives = [&] {
      const sipmsg::TransportCounters counters = registrar.transports.counters();
      return counters.udp.keepalives + counters.tcp.keepalives;
    };
    REQUIRE(loop.run_until([&] { return keepalives() >= 1; }));
    CHECK(traced == 2);  // REGISTER and its answer, no keep-alive
  }
}

TEST_CASE("registrations and endpoints may go in any order, inside their own callbacks, too") {
  int stopped = 0;
  Home home;
  SUBCASE("the registration first, while it registers") {
    auto registration =
        std::make_unique<Registration>(home.endpoint, home.options(Transport::udp), home.note());
    REQUIRE_FALSE(registration->start());
    registration.reset();
    home.loop.turn(10);
    CHECK(home.states.empty());
  }
  SUBCASE("the registration in its handler") {
    std::unique_ptr<Registration> registration;
    registration =
        std::make_unique<Registration>(home.endpoint, home.options(Transport::udp),
                                       [&](const RegistrationStatus&) { registration.reset(); });
    REQUIRE_FALSE(registration->start());
    REQUIRE(home.loop.run_until([&] { return registration.get() == nullptr; }));
  }
  SUBCASE("the registration when it has stopped, with another one in its place") {
    auto registration =
        std::make_unique<Registration>(home.endpoint, home.options(Transport::udp), home.note());
    REQUIRE_FALSE(registration->start());
    registration->stop([&] {
      ++stopped;
      registration =
          std::make_unique<Registration>(home.endpoint, home.options(Transport::tcp), home.note());
      REQUIRE_FALSE(registration->start());
    });
    REQUIRE(home.loop.run_until(
        [&] { return !home.states.empty() && home.states.back() == State::registered; }));
    CHECK(stopped == 1);
  }
  SUBCASE("the registration while it stops") {
    auto registration =
        std::make_unique<Registration>(home.endpoint, home.options(Transport::udp), home.note());
    REQUIRE_FALSE(registration->start());
    registration->stop([&] { ++stopped; });
    registration.reset();
    CHECK(stopped == 1);
  }
  SUBCASE("the endpoint while it stops") {
    Registration registration(home.endpoint, home.options(Transport::udp), home.note());
    REQUIRE_FALSE(registration.start());
    registration.stop([&] { ++stopped; });
    home.endpoint.close();
    CHECK(stopped == 1);
    CHECK(registration.start().code == ErrorCode::closed);
    registration.stop([&] { ++stopped; });
    CHECK(stopped == 2);
  }
  SUBCASE("the endpoint while two stop, the first of which lets go of the second") {
    bool is_gone = false;
    Registration registration(home.endpoint, home.options(Transport::udp), home.note());
    auto other =
        std::make_unique<Registration>(home.endpoint, home.options(Transport::udp), home.note());
    REQUIRE_FALSE(registration.start());
    REQUIRE_FALSE(other->start());
    registration.stop([&] {
      other.reset();
      is_gone = true;
      ++stopped;
    });
    other->stop([&] {
      CHECK_FALSE(is_gone);
      ++stopped;
    });
    home.endpoint.close();
    CHECK(stopped == 2);
  }
  SUBCASE("the endpoint in the handler") {
    auto endpoint = std::make_unique<Endpoint>(home.loop.uv());
    Registration registration(*endpoint, home.options(Transport::udp),
                              [&](const RegistrationStatus&) { endpoint.reset(); });
    REQUIRE_FALSE(registration.start());
    REQUIRE(home.loop.run_until([&] { return endpoint.get() == nullptr; }));
    CHECK(registration.start().code == ErrorCode::closed);
  }
  SUBCASE("both when it has stopped") {
    auto endpoint = std::make_unique<Endpoint>(home.loop.uv());
    auto registration =
        std::make_unique<Registration>(*endpoint, home.options(Transport::tcp), home.note());
    REQUIRE_FALSE(registration->start());
    registration->stop([&] {
      endpoint.reset();
      registration.reset();
      ++stopped;
    });
    REQUIRE(home.loop.run_until([&] { return stopped == 1; }));
  }
  home.server.reset();
}

TEST_CASE("listening says what is wrong") {
  Pair pair;
  const std::uint16_t taken = pair.bob.listeners()[0].address.port;
  CHECK(pair.alice.listen_udp("127.0.0.1", taken).place == UV_EADDRINUSE);
  CHECK(pair.alice.listen_tcp("127.0.0.1", pair.bob.listeners()[1].address.port).place ==
        UV_EADDRINUSE);
  CHECK(pair.alice.listen_udp("localhost", 0).code == ErrorCode::bad_address);
  CHECK(pair.alice.listen_udp("192.0.2.1", 0).place == UV_EADDRNOTAVAIL);
}

TEST_CASE("an endpoint that cannot work says so at once, and whoever stops it does not wait") {
  test::EventLoop loop;
  // libuv wakes a loop through a descriptor that it opens with the loop: this one lacks it, and
  // there is none left.
  const int wakeup = std::exchange(loop.uv()->async_io_watcher.fd, -1);
  rlimit limit{};
  REQUIRE(getrlimit(RLIMIT_NOFILE, &limit) == 0);
  const rlimit none{0, limit.rlim_max};
  REQUIRE(setrlimit(RLIMIT_NOFILE, &none) == 0);
  const auto endpoint = std::make_unique<Endpoint>(loop.uv());
  REQUIRE(setrlimit(RLIMIT_NOFILE, &limit) == 0);
  loop.uv()->async_io_watcher.fd = wakeup;

  CHECK(endpoint->listen_udp("127.0.0.1", 0).place == UV_EMFILE);
  int told = 0;
  Outgoing outgoing;
  outgoing.to = "sip:bob@localhost";
  CHECK(endpoint->send(outgoing, [&](const Outcome&) { ++told; }).place == UV_EMFILE);
  RegistrationOptions options;
  options.address_of_record = "sip:alice@localhost";
  Registration registration(*endpoint, options, [&](const RegistrationStatus&) { ++told; });
  CHECK(registration.start().place == UV_EMFILE);
  bool stopped = false;
  registration.stop([&] { stopped = true; });
  CHECK(stopped);
  CHECK(loop.run_dry());
  CHECK(told == 0);
}

TEST_CASE("the trace shows every message, in and out") {
  Pair pair;
  pair.bob.on_message([](const Message&, Reply reply) { reply.send(200); });
  std::vector<std::string> trace;
  pair.bob.on_trace([&](bool is_incoming, const sipmsg::Flow&, std::string_view octets) {
    trace.push_back((is_incoming ? "in " : "out ") + std::string(octets.substr(0, 11)));
  });
  bool done = false;
  REQUIRE_FALSE(pair.alice.send(pair.to_bob(Transport::udp), [&](const Outcome&) { done = true; }));
  REQUIRE(pair.loop.run_until([&] { return done; }));
  CHECK(trace == std::vector<std::string>{"in MESSAGE sip", "out SIP/2.0 200"});
}

TEST_CASE("other threads may post to the loop") {
  Pair pair;
  bool ran = false;
  uv_thread_t thread;
  struct Job {
    Endpoint* endpoint;
    bool* ran;
  } job{&pair.alice, &ran};
  REQUIRE(uv_thread_create(
              &thread,
              [](void* argument) {
                const Job& posted = *static_cast<Job*>(argument);
                CHECK_FALSE(posted.endpoint->post([ran = posted.ran] { *ran = true; }));
              },
              &job) == 0);
  REQUIRE(pair.loop.run_until([&] { return ran; }));
  uv_thread_join(&thread);
}

}  // namespace net_endpoint
