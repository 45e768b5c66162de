// A real server and the engine of the modules: what arrives as call.route and msg.execute, what the
// handlers' outcome means to the sender, what applications send, and phones that come and go.
#include <doctest/doctest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../../src/modules/bridge.hpp"
#include "support/loop.hpp"
#include "support/phone.hpp"

namespace net_bridge {

using modules::Answer;
using modules::Bridge;
using modules::Engine;
using modules::ListMessage;
using modules::MessagePointer;
using sipmsg::Server;
using sipmsg::Settings;
using sipmsg::Transport;
using test::Phone;

namespace {

/// Alice, bob and carol, of whom nobody is asked for a password; others do not exist.
Settings bridge_settings() {
  Settings settings = sipmsg::open_settings();
  for (auto& listener : settings.listeners) listener.port = 0;
  settings.registrar.accept_any_user = false;
  for (const char* name : {"alice", "bob", "carol"}) {
    sipmsg::UserSettings user;
    user.name = name;
    settings.users.push_back(user);
  }
  settings.users[1].alternatives = {"sales"};
  settings.users[2].alternatives = {"sales", "alice"};  // alice is somebody else all the same
  return settings;
}

struct Fixture {
  explicit Fixture(Settings settings = bridge_settings())
      : server(loop.uv(), settings), bridge(std::make_unique<Bridge>(server, engine, settings)) {
    const auto error = server.start();
    REQUIRE_MESSAGE(!error, error.text());
    alice = std::make_unique<Phone>(loop, server, "alice", Transport::udp);
    bob = std::make_unique<Phone>(loop, server, "bob", Transport::udp);
    carol = std::make_unique<Phone>(loop, server, "carol", Transport::udp);
  }
  int write_to(const std::string& recipient, std::string body = "hello") {
    const std::size_t before = alice->answers.size();
    alice->write_to(recipient, std::move(body));
    REQUIRE(loop.run_until([&] { return alice->answers.size() > before; }));
    return alice->answers.back();
  }
  /// Answers every message of that name with `act`.
  void handle(const std::string& name, int priority, std::function<bool(modules::Message&)> act) {
    engine.install("test", name, priority,
                   [act = std::move(act)](const MessagePointer& message, const Answer& answer) {
                     answer(act(*message));
                   });
  }
  /// Dispatches a message and waits until it is handled or not.
  bool dispatch(const std::shared_ptr<ListMessage>& message) {
    int result = -1;
    engine.dispatch(message, [&](bool handled) { result = handled ? 1 : 0; });
    REQUIRE(loop.run_until([&] { return result >= 0; }));
    return result == 1;
  }

  test::EventLoop loop;
  Server server;
  Engine engine;
  std::unique_ptr<Bridge> bridge;
  std::unique_ptr<Phone> alice;
  std::unique_ptr<Phone> bob;
  std::unique_ptr<Phone> carol;
};

}  // namespace

TEST_CASE("the outcome of call.route is the sender's answer, as in Yate") {
  struct Row {
    const char* what;
    bool handled;
    const char* return_value;
    const char* parameter;
    const char* value;
    int answer;
    bool is_delivered;
  };
  const Row rows[] = {
      {"not its business", false, "", "", "", 200, true},
      {"reason, but there is a way", false, "", "reason", "forbidden", 200, true},
      {"code, although there is a way", false, "", "code", "480", 480, false},
      {"hops used up", false, "", "antiloop", "0", 483, false},
      {"handled without a target", true, "", "", "", 405, false},
      {"refused", true, "-", "reason", "forbidden", 403, false},
      {"the page's filter", true, "", "reason", "rejected", 406, false},
      {"error as a number", true, "-", "error", "486", 486, false},
      {"error as a name", true, "-", "error", "forbidden", 405, false},
      {"a target that nobody can reach", true, "tone/dial", "", "", 405, false},
      {"a user of ours as target", true, "sip/sip:bob@127.0.0.1", "", "", 200, true},
  };
  for (const Row& row : rows) {
    CAPTURE(row.what);
    Fixture fixture;
    fixture.bob->enroll(fixture.loop);
    fixture.handle("call.route", 50, [&](modules::Message& message) {
      if (*row.parameter != '\0') message.set(row.parameter, row.value);
      message.return_value = row.return_value;
      return row.handled;
    });
    CHECK(fixture.write_to("bob") == row.answer);
    CHECK(fixture.bob->received.size() == (row.is_delivered ? 1 : 0));
  }
}

TEST_CASE("whom a rule calls in place of the one called is who gets the message, or is offline") {
  Fixture fixture;
  std::string undelivered;
  fixture.server.on_undelivered([&](const sipmsg::RouteRequest& request, int) {
    undelivered = request.called;
    return sipmsg::Verdict::next();
  });
  fixture.handle("call.route", 50, [](modules::Message& message) {
    message.set("called", "bob");
    return false;
  });
  fixture.carol->enroll(fixture.loop);
  CHECK(fixture.write_to("carol") == 405);
  CHECK(undelivered == "bob");
  fixture.bob->enroll(fixture.loop);
  CHECK(fixture.write_to("nobody") == 200);
  CHECK(fixture.write_to("carol") == 200);
  CHECK(fixture.bob->received.size() == 2);
  CHECK(fixture.carol->received.empty());
}

TEST_CASE("an application of the users' own priority comes before them, installed when it may") {
  Fixture fixture;
  fixture.bob->enroll(fixture.loop);
  CHECK(fixture.write_to("bob") == 200);
  fixture.handle("call.route", 100, [](modules::Message& message) {
    message.set("reason", "forbidden");
    return true;
  });
  CHECK(fixture.write_to("bob") == 403);
  CHECK(fixture.bob->received.size() == 1);
}

TEST_CASE("whom nobody routes is 404, or what a parameter says; who is offline 405") {
  Fixture fixture;
  std::string reason;
  fixture.handle("call.route", 150, [&](modules::Message& message) {
    if (!reason.empty()) message.set("reason", reason);
    return false;
  });
  CHECK(fixture.write_to("nobody") == 404);
  CHECK(fixture.write_to("bob") == 405);
  reason = "busy";
  CHECK(fixture.write_to("nobody") == 486);
  CHECK(fixture.write_to("bob") == 486);
}

TEST_CASE("the users route at their priority, with the parameters that Yate's regfile leaves") {
  Fixture fixture;
  std::vector<std::string> seen;
  fixture.engine.watch("call.route", [&](const modules::Message& message, bool handled) {
    seen.push_back((handled ? "handled " : "not ") + message.return_value + " " +
                   message.get_or("error") + " " + message.get_or("handlers"));
  });
  CHECK(fixture.write_to("bob") == 405);
  fixture.bob->enroll(fixture.loop);
  CHECK(fixture.write_to("bob") == 200);
  fixture.carol->enroll(fixture.loop);
  CHECK(fixture.write_to("sales") == 200);
  REQUIRE(seen.size() == 3);
  CHECK(seen[0] == "not  offline regfile:100");
  CHECK(seen[1] == "handled sip/" + fixture.bob->contact() + "  regfile:100");
  CHECK(seen[2] == "handled fork  regfile:100");
  CHECK(fixture.bob->received.size() == 2);
  REQUIRE(fixture.loop.run_until([&] { return fixture.carol->received.size() == 1; }));
}

TEST_CASE("a handler may answer later, and others go on meanwhile") {
  Fixture fixture;
  fixture.bob->enroll(fixture.loop);
  std::vector<Answer> waiting;
  fixture.engine.install("test", "call.route", 50,
                         [&](const MessagePointer& message, Answer answer) {
                           if (message->get("xsip_body") != "wait") return answer(false);
                           message->set("xsip_body", "waited");
                           waiting.push_back(std::move(answer));
                         });
  fixture.alice->write_to("bob", "wait");
  CHECK(fixture.write_to("bob", "quick") == 200);
  REQUIRE(waiting.size() == 1);
  waiting[0](false);
  REQUIRE(fixture.loop.run_until([&] { return fixture.bob->received.size() == 2; }));
  CHECK(fixture.bob->received == std::vector<std::string>{"quick", "waited"});
}

TEST_CASE("a handler that never answers costs its own message a 504") {
  Settings settings = bridge_settings();
  settings.message.handler_deadline_s = 1;
  Fixture fixture(settings);
  fixture.bob->enroll(fixture.loop);
  fixture.engine.install("test", "call.route", 50, [](const MessagePointer&, const Answer&) {});
  CHECK(fixture.write_to("bob") == 504);
}

TEST_CASE("a handler of msg.execute may take the message in place of the recipient") {
  struct Row {
    bool handled;
    const char* return_value;
    const char* parameter;
    const char* value;
    int answer;
    bool is_delivered;
  };
  const Row rows[] = {
      {false, "", "", "", 200, true},    {true, "", "", "", 200, false},
      {true, "202", "", "", 202, false}, {true, "", "reason", "busy", 486, false},
      {true, "603", "", "", 603, false}, {false, "", "reason", "busy", 200, true},
  };
  for (const Row& row : rows) {
    CAPTURE(row.return_value);
    CAPTURE(row.value);
    Fixture fixture;
    fixture.bob->enroll(fixture.loop);
    std::string callto;
    fixture.handle("msg.execute", 50, [&](modules::Message& message) {
      callto = message.get_or("callto");
      if (*row.parameter != '\0') message.set(row.parameter, row.value);
      message.return_value = row.return_value;
      return row.handled;
    });
    CHECK(fixture.write_to("bob") == row.answer);
    CHECK(callto == "sip/" + fixture.bob->contact());
    CHECK(fixture.bob->received.size() == (row.is_delivered ? 1 : 0));
  }
}

TEST_CASE("a target that is not a SIP URI is for whoever handles such targets in msg.execute") {
  Fixture fixture;
  fixture.handle("call.route", 150, [](modules::Message& message) {
    if (message.get("error") != "offline") return false;
    message.return_value = "mailbox/" + message.get_or("called");
    return true;
  });
  std::string kept;
  bool takes_it = true;
  fixture.handle("msg.execute", 50, [&](modules::Message& message) {
    if (!takes_it || message.get_or("callto").substr(0, 8) != "mailbox/") return false;
    kept = message.get_or("callto") + " " + message.get_or("xsip_body");
    message.return_value = "202";
    return true;
  });
  CHECK(fixture.write_to("bob", "later") == 202);
  CHECK(kept == "mailbox/bob later");
  takes_it = false;
  CHECK(fixture.write_to("bob") == 405);
  fixture.bob->enroll(fixture.loop);
  CHECK(fixture.write_to("bob") == 200);
}

TEST_CASE("what became of a target is said by who handled it, or passed it on, and nobody before") {
  struct Row {
    const char* target;
    const char* before;  ///< the reason that call.route has left
    bool handled;
    const char* reason;  ///< that msg.execute has left
    int answer;
  };
  const Row rows[] = {
      {"mailbox/bob", "forbidden", true, "", 200},
      {"mailbox/bob", "forbidden", true, "busy", 486},
      {"mailbox/bob", "forbidden", false, "", 405},
      {"mailbox/bob", "", false, "noresource", 503},
      {"mailbox/bob", "forbidden", false, "noresource", 503},
      {"sip/sip:bob@127.0.0.1", "forbidden", false, "busy", 200},
  };
  for (const Row& row : rows) {
    CAPTURE(row.target);
    CAPTURE(row.before);
    CAPTURE(row.reason);
    Fixture fixture;
    fixture.bob->enroll(fixture.loop);
    fixture.handle("call.route", 50, [&](modules::Message& message) {
      if (*row.before != '\0') message.set("reason", row.before);
      message.return_value = row.target;
      return true;
    });
    fixture.handle("msg.execute", 50, [&](modules::Message& message) {
      CHECK_FALSE(message.get("reason"));
      if (*row.reason != '\0') message.set("reason", row.reason);
      return row.handled;
    });
    CHECK(fixture.write_to("bob") == row.answer);
  }
}

TEST_CASE("a handler of msg.execute may send the message elsewhere") {
  Fixture fixture;
  fixture.bob->enroll(fixture.loop);
  fixture.carol->enroll(fixture.loop);
  fixture.handle("msg.execute", 50, [&](modules::Message& message) {
    message.set("callto", "sip/sip:carol@127.0.0.1");
    return false;
  });
  CHECK(fixture.write_to("bob") == 200);
  CHECK(fixture.bob->received.empty());
  CHECK(fixture.carol->received.size() == 1);
}

TEST_CASE("applications send by msg.execute, and learn the answer where they wait for it") {
  Fixture fixture;
  fixture.bob->enroll(fixture.loop);
  const auto message = [](ListMessage::Parameters parameters) {
    return std::make_shared<ListMessage>("msg.execute", std::move(parameters));
  };
  const auto news = message({{"callto", "sip/sip:bob@127.0.0.1"},
                             {"caller", "news room"},
                             {"domain", "127.0.0.1"},
                             {"xsip_type", "text/html"},
                             {"xsip_body", "PGI+"},
                             {"xsip_body_encoding", "base64"},
                             {"sip_subject", "News"},
                             {"sip_via", "nonsense"},
                             {"wait", "true"}});
  CHECK(fixture.dispatch(news));
  CHECK(news->get("code") == "200");
  REQUIRE(fixture.bob->received == std::vector<std::string>{"<b>"});
  CHECK(fixture.bob->last.header("Subject") == "News");
  CHECK(fixture.bob->last.header("Content-Type") == "text/html");
  CHECK(fixture.bob->last.from()->uri.text == "sip:news%20room@127.0.0.1");
  CHECK(fixture.bob->last.values(sipmsg::HeaderId::via).begin().field() ==
        fixture.bob->last.find(sipmsg::HeaderId::via));

  const auto offline = message({{"callto", "sip/sip:carol@127.0.0.1"}, {"wait", "true"}});
  CHECK_FALSE(fixture.dispatch(offline));
  CHECK(offline->get("code") == "405");
  CHECK(fixture.dispatch(message({{"called", "carol"}})));  // on its way, as far as it goes
  CHECK_FALSE(fixture.dispatch(message({})));
  CHECK_FALSE(fixture.dispatch(
      message({{"called", "bob"}, {"xsip_body", "*"}, {"xsip_body_encoding", "base64"}})));
  CHECK_FALSE(fixture.dispatch(message({{"called", "bob"}, {"caller", "x"}, {"domain", "a b"}})));
}

TEST_CASE("an application reaches the phone that call.route or a registration has named") {
  Fixture fixture;
  Phone desk(fixture.loop, fixture.server, "bob", Transport::udp, "bob-0xabc");
  std::string data;
  fixture.handle("user.register", 50, [&](modules::Message& message) {
    data = message.get_or("data");
    CHECK(message.get_or("alternatives") == "sales");
    return false;
  });
  const auto send = [&](const std::string& target, const std::string& called,
                        ListMessage::Parameters more = {}) {
    more.insert(more.end(),
                {{"callto", target}, {"called", called}, {"xsip_body", "x"}, {"wait", "true"}});
    const auto message = std::make_shared<ListMessage>("msg.execute", std::move(more));
    const bool handled = fixture.dispatch(message);
    CHECK(handled == (message->get_or("code") == "200"));
    return handled;
  };
  const auto route = [&](const std::string& called) {
    const auto message =
        std::make_shared<ListMessage>("call.route", ListMessage::Parameters{{"called", called}});
    REQUIRE(fixture.dispatch(message));
    return message;
  };
  desk.enroll(fixture.loop);
  CHECK(data == "sip/" + desk.contact());
  CHECK(send(data, "bob"));
  CHECK(send(route("bob")->return_value, "bob"));
  CHECK(send(route("sales")->return_value, "sales"));
  CHECK(desk.received.size() == 3);
  CHECK(desk.last.to()->uri.text == "sip:sales@127.0.0.1");
  CHECK_FALSE(send(data, ""));  // nobody is called bob-0xabc
  CHECK_FALSE(send("sip/sip:bob-0xabc@192.0.2.1", "carol"));

  fixture.bob->enroll(fixture.loop);
  CHECK(send("sip/" + fixture.bob->contact(), ""));
  CHECK(fixture.bob->received.size() == 1);
  CHECK(desk.received.size() == 3);
  const auto fork = route("bob");
  REQUIRE(fork->return_value == "fork");
  const auto targets = ListMessage::Parameters{{"callto.1", fork->get_or("callto.1")},
                                               {"callto.2", fork->get_or("callto.2")}};
  CHECK(send("fork", "bob", targets));
  CHECK(fixture.bob->received.size() == 2);
  CHECK(desk.received.size() == 4);
  CHECK_FALSE(send("fork", "bob", {{"callto.1", "sip/sip:carol@127.0.0.1"}}));
  CHECK(send("fork", "bob", {{"callto.1", "carol"}, {"callto.2", "sip/sip:bob@127.0.0.1"}}));
  CHECK(send("fork", "bob"));
  REQUIRE(fixture.loop.run_until(
      [&] { return fixture.bob->received.size() == 4 && desk.received.size() == 6; }));
  fixture.carol->enroll(fixture.loop);
}

TEST_CASE("an application's message without a domain comes from a host that is the server's") {
  struct Row {
    std::vector<std::string> domains;
    const char* domain;  ///< that the application gives
    const char* from;
  };
  const Row rows[] = {
      {{}, "", "sip:news@127.0.0.1"},
      {{"*"}, "", "sip:news@127.0.0.1"},
      {{"*", "example.org", "example.net"}, "", "sip:news@example.org"},
      {{"::1", "127.0.0.1"}, "", "sip:news@[::1]"},
      {{"*"}, "example.com", "sip:news@example.com"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.from);
    Settings settings = bridge_settings();
    settings.digest.realm = "My Office";
    settings.domains = row.domains;
    Fixture fixture(settings);
    fixture.bob->enroll(fixture.loop);
    CHECK(fixture.dispatch(
        std::make_shared<ListMessage>("msg.execute", ListMessage::Parameters{{"called", "bob"},
                                                                             {"caller", "news"},
                                                                             {"domain", row.domain},
                                                                             {"xsip_body", "x"},
                                                                             {"wait", "true"}})));
    CHECK(fixture.bob->last.from()->uri.text == row.from);
  }
}

TEST_CASE("xsip.generate sends where the configuration allows it") {
  for (const bool allowed : {false, true}) {
    Settings settings = bridge_settings();
    settings.generate = allowed;
    Fixture fixture(settings);
    fixture.bob->enroll(fixture.loop);
    const auto message = std::make_shared<ListMessage>(
        "xsip.generate",
        ListMessage::Parameters{{"called", "bob"}, {"xsip_body", "x"}, {"wait", "true"}});
    CHECK(fixture.dispatch(message) == allowed);
    CHECK(fixture.bob->received.size() == (allowed ? 1 : 0));
  }
}

TEST_CASE("phones that register and unregister are told to whoever handles such messages") {
  Fixture fixture;
  std::vector<std::string> seen;
  for (const char* name : {"user.register", "user.unregister"}) {
    fixture.handle(name, 50, [&](modules::Message& message) {
      seen.push_back(message.name() + " " + message.get_or("username") + " " +
                     message.get_or("data") + " " + message.get_or("expires"));
      return false;
    });
  }
  fixture.bob->enroll(fixture.loop);
  fixture.bob->enroll(fixture.loop, 0);
  const std::string data = " bob sip/" + fixture.bob->contact();
  CHECK(seen ==
        std::vector<std::string>{"user.register" + data + " 60", "user.unregister" + data + " "});
}

TEST_CASE("when the bridge goes, messages are routed as without it") {
  Fixture fixture;
  fixture.bob->enroll(fixture.loop);
  fixture.handle("call.route", 50, [](modules::Message&) { return true; });
  CHECK(fixture.write_to("bob") == 405);
  fixture.bridge.reset();
  CHECK(fixture.write_to("bob") == 200);
}

}  // namespace net_bridge
