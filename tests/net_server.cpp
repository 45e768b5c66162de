// Server on real sockets of the loopback: endpoints register with it and write to each other.
// What the proxy decides is tested in virtual time (test_proxy.cpp); here are sockets, clock,
// threads, files and closing.
#include <doctest/doctest.h>

#include <atomic>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/loop.hpp"
#include "support/phone.hpp"
#include "support/sipmsg.hpp"

namespace net_server {

using sipmsg::ErrorCode;
using sipmsg::RouteKey;
using sipmsg::RouteRequest;
using sipmsg::Server;
using sipmsg::Settings;
using sipmsg::Severity;
using sipmsg::Transport;
using sipmsg::Verdict;
using test::Phone;

namespace {

/// Open mode, on ports of the system's choice.
Settings test_settings() {
  Settings settings = sipmsg::open_settings();
  for (auto& listener : settings.listeners) listener.port = 0;
  return settings;
}

struct Fixture {
  explicit Fixture(Settings settings = test_settings(), Transport transport = Transport::udp)
      : server(loop.uv(), settings) {
    server.on_log([this](Severity, std::string_view text) { log.emplace_back(text); });
    const auto error = server.start();
    REQUIRE_MESSAGE(!error, error.text());
    alice = std::make_unique<Phone>(loop, server, "alice", transport);
    bob = std::make_unique<Phone>(loop, server, "bob", transport);
  }
  /// Alice writes to bob, and this waits for her answer.
  int write(std::string body = "hello") {
    const std::size_t before = alice->answers.size();
    alice->write_to("bob", std::move(body));
    REQUIRE(loop.run_until([&] { return alice->answers.size() > before; }));
    return alice->answers.back();
  }

  test::EventLoop loop;
  Server server;
  std::vector<std::string> log;
  std::unique_ptr<Phone> alice;
  std::unique_ptr<Phone> bob;
};

/// A file of its own, removed at the end.
struct TemporaryFile {
  TemporaryFile() {
    const char* directory = std::getenv("TMPDIR");
    path = std::string(directory == nullptr ? "/tmp" : directory) + "/sipmsg-bindings-" +
           std::to_string(uv_os_getpid());
    std::remove(path.c_str());
  }
  ~TemporaryFile() { std::remove(path.c_str()); }
  std::string path;
};

}  // namespace

TEST_CASE("two phones write to each other through the server, over UDP and over TCP") {
  for (Transport transport : {Transport::udp, Transport::tcp}) {
    CAPTURE(transport);
    Fixture fixture(test_settings(), transport);
    fixture.alice->enroll(fixture.loop);
    fixture.bob->enroll(fixture.loop);
    CHECK(fixture.write("Grüße") == 200);
    CHECK(fixture.bob->received == std::vector<std::string>{"Grüße"});
    fixture.bob->write_to("alice", "zurück");
    REQUIRE(fixture.loop.run_until([&] { return !fixture.bob->answers.empty(); }));
    CHECK(fixture.alice->received == std::vector<std::string>{"zurück"});
    CHECK(fixture.server.counters().delivered == 2);
    CHECK(fixture.server.bindings() == 2);
  }
}

TEST_CASE("a recipient who is gone is answered 405") {
  Fixture fixture;
  CHECK(fixture.write() == 405);
  fixture.bob->enroll(fixture.loop);
  CHECK(fixture.write() == 200);
  fixture.bob->enroll(fixture.loop, 0);
  CHECK(fixture.write() == 405);
}

TEST_CASE("a binding goes with the TCP connection it was made on") {
  Fixture fixture(test_settings(), Transport::tcp);
  fixture.bob->enroll(fixture.loop);
  CHECK(fixture.write() == 200);
  fixture.bob->endpoint.close();
  REQUIRE(fixture.loop.run_until([&] { return fixture.server.bindings() == 0; }));
  CHECK(fixture.write() == 405);
}

TEST_CASE("a large message goes by the TCP connection there is") {
  Fixture fixture(test_settings(), Transport::tcp);
  fixture.bob->enroll(fixture.loop);
  const std::string large(30000, 'x');
  CHECK(fixture.write(large) == 200);
  CHECK(fixture.bob->received == std::vector<std::string>{large});
}

TEST_CASE("a registration is a line in the log, which no name can break") {
  Fixture fixture;
  fixture.bob->enroll(fixture.loop);
  REQUIRE(fixture.log.size() == 1);
  CHECK(fixture.log[0] ==
        "bob registered from udp " + to_text(fixture.bob->endpoint.listeners()[0].address));
  Phone eve(fixture.loop, fixture.server, "e%0Aerror%3A%20all%20is%20lost%1B%5B2J%C2%9B2J%C3%9B",
            Transport::udp);
  eve.enroll(fixture.loop);
  REQUIRE(fixture.log.size() == 2);
  CHECK(fixture.log[1].find("e?error: all is lost?[2J??2J\xc3\x9b registered from udp ") == 0);
}

TEST_CASE("a port that is taken is named") {
  Fixture fixture;
  Settings settings = test_settings();
  settings.listeners[0].port = fixture.server.listeners()[0].address.port;
  Server second(fixture.loop.uv(), settings);
  const auto error = second.start();
  REQUIRE(error);
  CHECK(error.error.place == UV_EADDRINUSE);
  CHECK(error.text().find("udp " + to_text(fixture.server.listeners()[0].address)) == 0);
}

TEST_CASE("a server without a listener that is enabled does not start") {
  test::EventLoop loop;
  Settings settings = test_settings();
  for (auto& listener : settings.listeners) listener.enable = false;
  Server server(loop.uv(), settings);
  CHECK(server.start().error.code == ErrorCode::bad_configuration);
}

TEST_CASE("handlers on the loop and in the pool see messages before the users do") {
  for (bool async_process : {false, true}) {
    CAPTURE(async_process);
    Settings settings = test_settings();
    settings.message.async_process = async_process;
    Fixture fixture(settings);
    fixture.bob->enroll(fixture.loop);
    std::atomic<int> calls{0};
    const uv_thread_t loop_thread = uv_thread_self();
    std::atomic<bool> was_on_loop{false};
    fixture.server.add_async_handler(50, [&](const RouteRequest& request) {
      ++calls;
      const uv_thread_t here = uv_thread_self();
      was_on_loop = uv_thread_equal(&here, &loop_thread) != 0;
      if (request.body() == "spam") return Verdict::reject(406);
      return Verdict::next();
    });
    CHECK(fixture.write() == 200);
    CHECK(fixture.write("spam") == 406);
    CHECK(calls == 2);
    CHECK(was_on_loop == !async_process);
    CHECK(fixture.bob->received.size() == 1);
  }
}

TEST_CASE("messages of one sender to one recipient keep their order through the pool") {
  Fixture fixture;
  fixture.bob->enroll(fixture.loop);
  fixture.server.add_async_handler(50, [](const RouteRequest& request) {
    if (request.body().size() % 2 == 0) uv_sleep(1);  // a slow one must not be overtaken
    return Verdict::next();
  });
  std::vector<std::string> sent;
  for (std::size_t i = 1; i <= 100; ++i) {
    sent.emplace_back(i, 'x');
    fixture.alice->write_to("bob", sent.back());
  }
  REQUIRE(fixture.loop.run_until([&] { return fixture.alice->answers.size() == sent.size(); }));
  CHECK(fixture.bob->received == sent);
}

TEST_CASE("more messages than may wait for handlers are refused with 503") {
  Settings settings = test_settings();
  settings.message.max_pending = 5;
  Fixture fixture(settings);
  fixture.bob->enroll(fixture.loop);
  std::vector<RouteKey> keys;
  fixture.server.add_handler(50, [&](const RouteRequest& request) {
    keys.push_back(request.key);
    return Verdict::later();
  });
  for (int i = 0; i < 8; ++i) fixture.alice->write_to("bob", std::to_string(i));
  REQUIRE(fixture.loop.run_until([&] { return fixture.alice->answers.size() == 3; }));
  CHECK(fixture.alice->answers == std::vector<int>{503, 503, 503});
  for (std::size_t i = 0; i < 5; ++i) CHECK_FALSE(fixture.server.resume(keys[i], Verdict::next()));
  REQUIRE(fixture.loop.run_until([&] { return fixture.alice->answers.size() == 8; }));
  CHECK(fixture.bob->received.size() == 5);
  CHECK(fixture.server.resume(keys[0], Verdict::next()).code == ErrorCode::gone);
}

TEST_CASE("a reload changes users and options and keeps the bindings") {
  Fixture fixture;
  fixture.bob->enroll(fixture.loop);
  Settings settings = test_settings();
  settings.message.enable = false;
  fixture.server.reload(settings);
  CHECK(fixture.write() == 501);
  settings.message.enable = true;
  fixture.server.reload(settings);
  CHECK(fixture.write() == 200);
  CHECK(fixture.server.bindings() == 1);
}

TEST_CASE("bindings are saved when the server closes and found again by the next one") {
  const TemporaryFile file;
  Settings settings = test_settings();
  settings.registrar.file = file.path;
  settings.registrar.autocreate = true;
  Fixture fixture(settings);
  fixture.bob->enroll(fixture.loop);
  // The port must be the same, or the phone's messages would not come from where it registered.
  settings.listeners[0].port = fixture.server.listeners()[0].address.port;
  settings.listeners[1].port = fixture.server.listeners()[1].address.port;
  fixture.server.close();
  fixture.loop.turn();
  Server second(fixture.loop.uv(), settings);
  REQUIRE_FALSE(second.start());
  CHECK(second.bindings() == 1);
  CHECK(fixture.write() == 200);
}

TEST_CASE("a bindings file that cannot be written is a warning, not the end") {
  Settings settings = test_settings();
  settings.registrar.file = "/nonexistent/bindings";
  Fixture fixture(settings);
  fixture.bob->enroll(fixture.loop);
  fixture.server.close();
  REQUIRE_FALSE(fixture.log.empty());
  CHECK(fixture.log.back().find("/nonexistent/bindings: ") == 0);
}

TEST_CASE("a server may be closed inside a handler, with messages under way") {
  for (bool in_pool : {false, true}) {
    CAPTURE(in_pool);
    std::atomic<bool> waits{false}, called{false};
    Fixture fixture;
    fixture.bob->enroll(fixture.loop);
    if (in_pool) {
      fixture.server.add_async_handler(50, [&](const RouteRequest&) {
        waits = true;
        while (!called) uv_sleep(1);
        return Verdict::next();
      });
      fixture.alice->write_to("bob", "lost");
      while (!waits) fixture.loop.turn();
    }
    fixture.server.add_handler(40, [&](const RouteRequest&) {
      called = true;
      fixture.server.close();
      return Verdict::next();
    });
    fixture.alice->write_to("bob", "last");
    REQUIRE(fixture.loop.run_until([&] { return called.load(); }));
    fixture.alice->endpoint.close();
    fixture.bob->endpoint.close();
    CHECK(fixture.loop.run_dry());
  }
}

TEST_CASE("what a handler in the pool sets is there for the handlers after it") {
  Fixture fixture;
  fixture.bob->enroll(fixture.loop);
  std::string seen;
  fixture.server.add_async_handler(50, [](const RouteRequest& request) {
    request.set_parameter("colour", "red of " + std::string(request.caller));
    request.set_parameter("xsip_body", "changed in the pool");
    return Verdict::next();
  });
  fixture.server.add_handler(60, [&](const RouteRequest& request) {
    seen = request.parameter("colour").value_or("(none)");
    return Verdict::next();
  });
  CHECK(fixture.write() == 200);
  CHECK(seen == "red of alice");
  CHECK(fixture.bob->received == std::vector<std::string>{"changed in the pool"});
}

TEST_CASE("what a handler throws is a 500 for its own message and nothing for others") {
  for (const bool in_pool : {false, true}) {
    CAPTURE(in_pool);
    Settings settings = test_settings();
    settings.message.async_process = in_pool;
    Fixture fixture(settings);
    fixture.bob->enroll(fixture.loop);
    fixture.server.add_async_handler(50, [](const RouteRequest& request) -> Verdict {
      if (request.body() == "bad") throw std::runtime_error("handler");
      return Verdict::next();
    });
    CHECK(fixture.write("bad") == 500);
    CHECK(fixture.write("good") == 200);
  }
}

namespace {

/// Holds handlers in the pool back until it is opened, at the latest when the test ends.
class Gate {
 public:
  Gate() { REQUIRE(uv_sem_init(&semaphore_, 0) == 0); }
  ~Gate() { open(); }
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;

  void pass() {
    uv_sem_wait(&semaphore_);
    uv_sem_post(&semaphore_);
  }
  void open() { uv_sem_post(&semaphore_); }

 private:
  uv_sem_t semaphore_;  // never destroyed: a handler may still be leaving
};

}  // namespace

TEST_CASE("a message that a filter keeps from a slow handler waits for none of a thousand others") {
  Settings settings = test_settings();
  settings.message.max_pending = 1000;
  Fixture fixture(settings);
  fixture.bob->enroll(fixture.loop);
  Gate gate;
  std::size_t asked = 0;
  fixture.server.add_async_handler(
      50,
      [&](const RouteRequest&) {
        gate.pass();
        return Verdict::accept();
      },
      [&](const RouteRequest& request) {
        ++asked;
        return request.body() == "slow";
      });
  constexpr std::size_t slow = 1000;
  for (std::size_t i = 0; i < slow; ++i) {
    fixture.alice->write_to("bob", "slow");
    REQUIRE(fixture.loop.run_until([&] { return asked > i; }));
  }
  CHECK(fixture.write("quick") == 200);
  CHECK(fixture.alice->answers.size() == 1);
  CHECK(fixture.bob->received == std::vector<std::string>{"quick"});
  gate.open();
  REQUIRE(fixture.loop.run_until([&] { return fixture.alice->answers.size() == slow + 1; }));
}

TEST_CASE("a handler in the pool that exceeds its deadline costs its own message a 504") {
  Settings settings = test_settings();
  settings.message.handler_deadline_s = 1;
  Fixture fixture(settings);
  fixture.bob->enroll(fixture.loop);
  Gate gate;
  fixture.server.add_async_handler(50, [&](const RouteRequest& request) {
    if (request.body() == "hangs") gate.pass();
    return Verdict::next();
  });
  fixture.alice->write_to("bob", "hangs");
  fixture.alice->write_to("carol", "passes");
  REQUIRE(fixture.loop.run_until([&] { return fixture.alice->answers.size() == 2; }));
  CHECK(fixture.alice->answers == std::vector<int>{405, 504});
  gate.open();
  CHECK(fixture.write("later") == 200);
}

TEST_CASE("a handler in the pool is not asked about what was answered 504 before its turn came") {
  Settings settings = test_settings();
  settings.message.handler_deadline_s = 1;
  Fixture fixture(settings);
  fixture.bob->enroll(fixture.loop);
  Gate gate;
  std::atomic<int> asked{0};
  fixture.server.add_async_handler(50, [&](const RouteRequest&) {
    ++asked;
    gate.pass();
    return Verdict::next();
  });
  for (int i = 0; i < 5; ++i) fixture.alice->write_to("bob", "hangs");
  REQUIRE(fixture.loop.run_until([&] { return fixture.alice->answers.size() == 5; }));
  CHECK(fixture.alice->answers == std::vector<int>(5, 504));
  gate.open();
  CHECK(fixture.write("later") == 200);
  CHECK(asked == 2);
  CHECK(fixture.bob->received == std::vector<std::string>{"later"});
}

TEST_CASE("the server sends messages of its own to a user's phones, and tells of their answers") {
  Fixture fixture;
  fixture.bob->enroll(fixture.loop);
  sipmsg::Outgoing outgoing;
  outgoing.to = "sip:bob@127.0.0.1";
  outgoing.from = "sip:server@127.0.0.1";
  outgoing.body = "news";
  int code = 0;
  REQUIRE_FALSE(
      fixture.server.send(outgoing, [&](const sipmsg::Outcome& end) { code = end.code; }));
  REQUIRE(fixture.loop.run_until([&] { return code != 0; }));
  CHECK(code == 200);
  CHECK(fixture.bob->received == std::vector<std::string>{"news"});
  sipmsg::ErrorCode error{};
  REQUIRE_FALSE(
      fixture.server.send(outgoing, [&](const sipmsg::Outcome& end) { error = end.error.code; }));
  fixture.server.close();
  CHECK(error == ErrorCode::closed);
  CHECK(fixture.server.send(outgoing, nullptr).code == ErrorCode::closed);
}

}  // namespace net_server
