// Endpoint on real sockets of the loopback: two of them on one loop talk to each other.
#include <doctest/doctest.h>

#include <memory>
#include <string>
#include <vector>

#include "support/loop.hpp"
#include "support/sipmsg.hpp"

using sipmsg::Endpoint;
using sipmsg::Error;
using sipmsg::ErrorCode;
using sipmsg::Message;
using sipmsg::Outcome;
using sipmsg::Outgoing;
using sipmsg::Reply;
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
  REQUIRE_FALSE(pair.alice.send(pair.to_bob(Transport::udp),
                                [&](const Outcome& outcome) { code = outcome.code; }));
  REQUIRE(pair.loop.run_until([&] { return received; }));
  CHECK_FALSE(kept.send(99));
  CHECK_FALSE(kept.send(200, "two\r\nlines"));
  CHECK(kept.send(603));
  CHECK_FALSE(kept.send(200));
  REQUIRE(pair.loop.run_until([&] { return code != 0; }));
  CHECK(code == 603);
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
