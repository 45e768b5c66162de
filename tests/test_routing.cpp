// Who exists here, and in which order handlers are asked. What becomes of their verdicts is in
// test_proxy.cpp.
#include <sstream>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "support/allocations.hpp"
#include "support/sipmsg.hpp"

namespace test_routing {

using sipmsg::HandlerChain;
using sipmsg::RouteRequest;
using sipmsg::ShortText;
using sipmsg::UserDirectory;
using sipmsg::UserSettings;
using sipmsg::Verdict;

namespace {

UserSettings user(const std::string& name, const std::vector<std::string>& alternatives = {}) {
  UserSettings settings;
  settings.name = name;
  settings.alternatives = alternatives;
  return settings;
}

std::vector<std::string> listing(const UserDirectory& users, const std::string& name) {
  std::vector<std::string> found;
  const std::size_t count = users.for_each_alternative(
      name, [&](const UserSettings& settings) { found.push_back(settings.name); });
  CHECK(count == found.size());
  return found;
}

/// A request that handlers are asked about; they look at nothing but its key here.
struct Question {
  sipmsg::MessageView message;
  RouteRequest request{message, {}, {}, {}, {}, {}, {}};
};

}  // namespace

TEST_CASE("a user is found by the exact name and by nothing else") {
  UserDirectory users;
  users.add(user("bob", {"sales", "Bob"}));
  users.add(user("carol", {"sales", "sales", "carol", ""}));
  CHECK(users.size() == 2);
  REQUIRE(users.find("bob") != nullptr);
  CHECK(users.find("bob")->name == "bob");
  for (const char* name : {"Bob", "bo", "bobb", "sales", "", "dave"}) {
    CAPTURE(name);
    CHECK(users.find(name) == nullptr);
  }
}

TEST_CASE("an alternative finds all who list it, in the order of the file, each once") {
  UserDirectory users;
  users.add(user("dave", {"sales"}));
  users.add(user("bob", {"sales", "support"}));
  users.add(user("carol", {"sales", "carol", "sales"}));
  CHECK(listing(users, "sales") == std::vector<std::string>{"dave", "bob", "carol"});
  CHECK(listing(users, "support") == std::vector<std::string>{"bob"});
  CHECK(listing(users, "Sales").empty());
  CHECK(listing(users, "carol").empty());  // her own name is no alternative
  CHECK(users.knows("sales"));
  CHECK(users.knows("carol"));
  CHECK_FALSE(users.knows("Sales"));
  CHECK_FALSE(users.knows(""));
}

TEST_CASE("a name may be one user's own and another's alternative") {
  UserDirectory users;
  users.add(user("bob", {"carol"}));
  users.add(user("carol"));
  CHECK(users.find("carol")->name == "carol");
  CHECK(listing(users, "carol") == std::vector<std::string>{"bob"});
}

TEST_CASE("of two users with one name the first stays") {
  UserDirectory users;
  users.add(user("bob", {"sales"}));
  users.add(user("bob", {"support"}));
  CHECK(users.size() == 1);
  CHECK(users.knows("sales"));
  CHECK_FALSE(users.knows("support"));
}

TEST_CASE("ten thousand users are found as fast as ten, also under one alternative") {
  UserDirectory users;
  for (int i = 0; i < 10000; ++i) users.add(user("user" + std::to_string(i), {"everybody"}));
  CHECK(users.size() == 10000);
  for (int i = 0; i < 10000; ++i) REQUIRE(users.find("user" + std::to_string(i)) != nullptr);
  CHECK(listing(users, "everybody").size() == 10000);
}

TEST_CASE("a user answers to its name and to its alternatives") {
  const UserSettings bob = user("bob", {"robert", "sales"});
  for (const char* name : {"bob", "robert", "sales"}) CHECK(sipmsg::answers_to(bob, name));
  for (const char* name : {"Bob", "rob", ""}) CHECK_FALSE(sipmsg::answers_to(bob, name));
}

TEST_CASE("a short text holds any octets, and decodes escapes once") {
  const std::string long_text(1000, 'x');
  struct Row {
    std::string text;
    std::string decoded;
  };
  const Row rows[] = {
      {"", ""},
      {"bob", "bob"},
      {"b%6Fb", "bob"},
      {"%2541", "%41"},
      {"a%00b", std::string("a\0b", 3)},
      {"100%", "100%"},
      {std::string(64, 'a'), std::string(64, 'a')},
      {std::string(65, 'a'), std::string(65, 'a')},
      {long_text + "%41", long_text + "A"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.text);
    CHECK(ShortText(row.text).view() == row.text);
    CHECK(ShortText::unescaped(row.text).view() == row.decoded);
    const ShortText moved = ShortText::unescaped(row.text);
    const ShortText copy = moved;
    CHECK(copy.view() == row.decoded);
  }
  test::AllocationCount allocations;
  const ShortText name(std::string_view(long_text).substr(0, 64));
  CHECK(allocations.count() == 0);
  CHECK(name.view().size() == 64);
}

TEST_CASE("handlers are asked by priority, ties in the order of installation") {
  HandlerChain chain;
  std::string asked;
  const auto handler = [&asked](char name) {
    return [&asked, name](const RouteRequest&) {
      asked.push_back(name);
      return Verdict::next();
    };
  };
  CHECK(chain.empty());
  chain.add(100, handler('c'));
  chain.add(50, handler('a'));
  chain.add(100, handler('d'));
  chain.add(50, handler('b'));
  chain.add(INT32_MAX, handler('z'));
  chain.add(INT32_MIN, handler('0'));
  chain.add(-1, handler('1'));
  CHECK_FALSE(chain.empty());
  Question question;
  HandlerChain::Position position;
  CHECK(chain.walk(position, question.request).kind() == Verdict::Kind::next);
  CHECK(asked == "01abcdz");
}

TEST_CASE("the first verdict other than next ends the walk, which can be taken up behind it") {
  HandlerChain chain;
  std::string asked;
  const auto handler = [&](char name, Verdict verdict) {
    return [&asked, name, verdict](const RouteRequest&) {
      asked.push_back(name);
      return verdict;
    };
  };
  chain.add(1, handler('a', Verdict::next()));
  chain.add(2, handler('b', Verdict::reject(486, "Busy")));
  chain.add(3, handler('c', Verdict::accept()));
  chain.add(4, handler('d', Verdict::forward({"bob", "sip:carol@192.0.2.3"})));
  chain.add(5, handler('e', Verdict::later()));
  Question question;
  HandlerChain::Position position;

  const Verdict rejected = chain.walk(position, question.request);
  CHECK(rejected.kind() == Verdict::Kind::reject);
  CHECK(rejected.code() == 486);
  CHECK(rejected.phrase() == "Busy");
  const Verdict accepted = chain.walk(position, question.request);
  CHECK(accepted.kind() == Verdict::Kind::accept);
  CHECK(accepted.code() == 202);
  const Verdict forwarded = chain.walk(position, question.request);
  CHECK(forwarded.kind() == Verdict::Kind::forward);
  CHECK(forwarded.uris() == std::vector<std::string>{"bob", "sip:carol@192.0.2.3"});
  CHECK(chain.walk(position, question.request).kind() == Verdict::Kind::later);
  CHECK(chain.walk(position, question.request).kind() == Verdict::Kind::next);
  CHECK(asked == "abcde");
}

TEST_CASE("a handler that was removed is not asked, and can be removed once") {
  HandlerChain chain;
  int asked = 0;
  const auto count = [&asked](const RouteRequest&) {
    ++asked;
    return Verdict::next();
  };
  const HandlerChain::Id first = chain.add(1, count);
  const HandlerChain::Id second = chain.add(1, count);
  CHECK(first != 0);
  CHECK(first != second);
  CHECK(chain.remove(first));
  CHECK_FALSE(chain.remove(first));
  CHECK_FALSE(chain.remove(12345));
  Question question;
  HandlerChain::Position position;
  static_cast<void>(chain.walk(position, question.request));
  CHECK(asked == 1);
  CHECK(chain.add(1, count) != first);
}

TEST_CASE("a handler may remove itself and others, and add some, while it is asked") {
  HandlerChain chain;
  std::string asked;
  HandlerChain::Id self = 0;
  HandlerChain::Id victim = 0;
  const auto note = [&asked](char name) {
    return [&asked, name](const RouteRequest&) {
      asked.push_back(name);
      return Verdict::next();
    };
  };
  const std::string captured(100, 'x');  // dies with the handler, were it not held
  self = chain.add(10, [&, captured](const RouteRequest&) {
    CHECK(chain.remove(self));
    CHECK(chain.remove(victim));
    chain.add(5, note('-'));   // before this one: not in this walk
    chain.add(10, note('b'));  // behind it
    chain.add(30, note('d'));
    asked.append(captured.substr(0, 1));
    return Verdict::next();
  });
  victim = chain.add(20, note('!'));
  chain.add(25, note('c'));
  Question question;
  HandlerChain::Position position;
  static_cast<void>(chain.walk(position, question.request));
  CHECK(asked == "xbcd");
  asked.clear();
  position = {};
  static_cast<void>(chain.walk(position, question.request));
  CHECK(asked == "-bcd");
}

TEST_CASE("an empty handler is passed over") {
  HandlerChain chain;
  chain.add(1, nullptr);
  chain.add(2, [](const RouteRequest&) { return Verdict::accept(200); });
  Question question;
  HandlerChain::Position position;
  CHECK(chain.walk(position, question.request).code() == 200);
}

TEST_CASE("a reason is a status by Yate's table, or a number") {
  struct Row {
    const char* reasons;
    int status;
  };
  const Row rows[] = {
      {"invalid-message protocol-error", 400},
      {"noauth noautoauth", 401},
      {"forbidden", 403},
      {"noroute offline", 404},
      {"rejected", 406},
      {"timeout", 408},
      {"unallocated moved", 410},
      {"nomedia", 415},
      {"noanswer congestion", 480},
      {"nocall", 481},
      {"looping", 483},
      {"incomplete", 484},
      {"busy", 486},
      {"unacceptable", 488},
      {"pending", 491},
      {"failure interworking", 500},
      {"service-not-implemented unimplemented", 501},
      {"noconn service-unavailable noresource", 503},
      {"postdialdelay", 504},
      {"433 0433", 433},
      {"200", 200},
      {"699", 699},
      {"199 700 0 -404 404x Forbidden nonsense", 0},
  };
  for (const Row& row : rows) {
    std::istringstream reasons(row.reasons);
    for (std::string reason; reasons >> reason;) {
      CAPTURE(reason);
      CHECK(sipmsg::status_of_reason(reason).value_or(0) == row.status);
    }
  }
  CHECK_FALSE(sipmsg::status_of_reason(""));
}

TEST_CASE("what a handler in Yate's manner returns is a target, a refusal, or not its business") {
  struct Row {
    bool handled;
    const char* return_value;
    const char* reason;
    Verdict::Kind kind;
    int code;
    const char* uris;
  };
  const Row rows[] = {
      {false, "sip/sip:bob@x", "busy", Verdict::Kind::next, 0, ""},
      {true, "sip/sip:bob@x", "busy", Verdict::Kind::forward, 0, "sip:bob@x "},
      {true, "fork", "", Verdict::Kind::forward, 0, "sip:a@x sip:b@x "},
      {true, "", "", Verdict::Kind::reject, 405, ""},
      {true, "", "busy", Verdict::Kind::reject, 486, ""},
      {true, "-", "rejected", Verdict::Kind::reject, 406, ""},
      {true, "error", "", Verdict::Kind::reject, 405, ""},
      {true, "tone/dial", "", Verdict::Kind::reject, 405, ""},
      {true, "tone/dial", "200", Verdict::Kind::reject, 405, ""},
  };
  for (const Row& row : rows) {
    CAPTURE(row.return_value);
    CAPTURE(row.reason);
    sipmsg::RouteChanges changes;
    if (*row.reason != '\0') changes.set("reason", row.reason);
    changes.set("callto.1", "sip/sip:a@x");
    changes.set("callto.2", "tone/busy");
    changes.set("callto.3", "sip/sip:b@x");
    Question question;
    question.request.changes = &changes;
    const Verdict verdict = sipmsg::verdict_of(row.handled, row.return_value, question.request);
    CHECK(verdict.kind() == row.kind);
    CHECK(verdict.code() == row.code);
    std::string uris;
    for (const std::string& uri : verdict.uris()) uris += uri + " ";
    CHECK(uris == row.uris);
  }
}

}  // namespace test_routing
