// A MESSAGE on its way: what the recipient gets, to whom it goes, and which answer the sender gets
// (RFC 3261 16.6 to 16.9, RFC 4320, RFC 5393). Who may send at all is in test_proxy.cpp.
#include <algorithm>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "support/network.hpp"
#include "support/sipmsg.hpp"

namespace test_relay {

using namespace test::network;
using sipmsg::SocketAddress;

namespace {

const Flow alice = udp("192.0.2.10:5060");
const Flow bob = udp("192.0.2.20:5070");
const std::string bob_contact = "sip:bob@192.0.2.20:5070;line=1";

constexpr std::uint64_t t1_ms = 500;

/// A network in which bob has one phone.
struct NetworkWithBob : Network {
  NetworkWithBob() { bind("bob", bob_contact, bob); }
};

Request numbered(int n) {
  Request request;
  request.via = "SIP/2.0/UDP 192.0.2.10:5060;branch=z9hG4bKn" + std::to_string(n) + ";rport";
  request.call_id = "call-" + std::to_string(n);
  return request;
}

/// The lines of `text` without those that begin with one of `names`.
std::vector<std::string> lines_without(const std::string& text,
                                       const std::vector<std::string>& names) {
  std::vector<std::string> lines = head_lines(text);
  const auto is_named = [&](const std::string& line) {
    return std::any_of(names.begin(), names.end(), [&](const std::string& name) {
      return line.compare(0, name.size(), name) == 0;
    });
  };
  lines.erase(std::remove_if(lines.begin(), lines.end(), is_named), lines.end());
  return lines;
}

}  // namespace

// ---- what the recipient gets

TEST_CASE("the recipient gets the message as it was sent but for the edits of a proxy") {
  Network network;
  network.bind("bob", bob_contact, bob);
  Request request;
  request.from = "\"Alice \\\"A\\\" <b>\" <sip:alice@example.org;x=y>;tag=88;note=\"a,b\"";
  request.to = "Bob <sip:bob@example.org>";
  request.call_id = "aB.c-1@host";
  request.cseq = "17   MESSAGE";
  request.headers =
      "X-Unknown: one,\r\n  two\r\n"
      "Date: not a date\r\n"
      "P-Asserted-Identity: <sip:whoever@example.org>\r\n"
      "User-Agent: phone/1\r\n"
      "s: subject\r\n";
  request.content_type = "text/plain;charset=utf-8";
  request.body = std::string("h\xc3\xa9llo\r\n\0\xff\n\r\n\r\n", 16);
  network.receive(request.text(), alice);
  const Packet packet = network.take_one();

  CHECK(packet.flow == bob);
  CHECK(start_line(packet.text) == "MESSAGE " + bob_contact + " SIP/2.0");
  const std::vector<std::string> edited = {"MESSAGE ", "Via: ", "Max-Forwards: "};
  CHECK(lines_without(packet.text, edited) == lines_without(request.text(), edited));
  CHECK(body_of(packet.text) == request.body);

  const std::vector<std::string> vias = headers_of(packet.text, "Via");
  REQUIRE(vias.size() == 2);
  CHECK(head_lines(packet.text)[1] == "Via: " + vias[0]);
  CHECK(vias[0].find("SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK") == 0);
  CHECK(vias[0].substr(vias[0].size() - 6) == ";rport");
  CHECK(vias[1] == "SIP/2.0/UDP 192.0.2.10:5060;branch=z9hG4bKa1;received=192.0.2.10;rport=5060");
  CHECK(headers_of(packet.text, "Max-Forwards") == std::vector<std::string>{"19"});
}

TEST_CASE("the sender's Via gets received and rport where they say something new") {
  struct Row {
    const char* via;
    const char* source;
    const char* forwarded;
  };
  const Row rows[] = {
      {"SIP/2.0/UDP 192.0.2.10:5060;branch=z9hG4bKa", "192.0.2.10:5060",
       "SIP/2.0/UDP 192.0.2.10:5060;branch=z9hG4bKa"},
      {"SIP/2.0/UDP 192.0.2.10:5060;branch=z9hG4bKa", "192.0.2.99:5060",
       "SIP/2.0/UDP 192.0.2.10:5060;branch=z9hG4bKa;received=192.0.2.99"},
      {"SIP/2.0/UDP host.example;branch=z9hG4bKa", "192.0.2.10:5060",
       "SIP/2.0/UDP host.example;branch=z9hG4bKa;received=192.0.2.10"},
      {"SIP/2.0/UDP 10.0.0.1;rport;branch=z9hG4bKa;alias", "192.0.2.10:4444",
       "SIP/2.0/UDP 10.0.0.1;branch=z9hG4bKa;alias;received=192.0.2.10;rport=4444"},
      {"SIP/2.0/UDP 10.0.0.1;rport=1;received=6.6.6.6;branch=z9hG4bKa", "192.0.2.10:4444",
       "SIP/2.0/UDP 10.0.0.1;branch=z9hG4bKa;received=192.0.2.10;rport=4444"},
      {"SIP/2.0/UDP 192.0.2.10:5060;branch=z9hG4bKa, SIP/2.0/TCP a.example;branch=z9hG4bKb",
       "192.0.2.99:5060",
       "SIP/2.0/UDP 192.0.2.10:5060;branch=z9hG4bKa;received=192.0.2.99, SIP/2.0/TCP "
       "a.example;branch=z9hG4bKb"},
      {"SIP/2.0/UDP [2001:db8::9];rport;branch=z9hG4bKa", "[2001:db8::9]:5060",
       "SIP/2.0/UDP [2001:db8::9];branch=z9hG4bKa;received=2001:db8::9;rport=5060"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.via);
    NetworkWithBob network;
    Request request;
    request.via = row.via;
    network.receive(request.text(), udp(row.source));
    const std::vector<std::string> vias = headers_of(network.take_one().text, "Via");
    REQUIRE(vias.size() == 2);
    CHECK(vias[1] == row.forwarded);
  }
}

TEST_CASE("Max-Forwards is counted down, capped, and added where it is absent") {
  struct Row {
    std::string received;
    std::string forwarded;  ///< "" for 483
  };
  const Row rows[] = {{"70", "19"}, {"20", "19"}, {"19", "18"}, {"1", "0"},
                      {"0", ""},    {"", "19"},   {"255", "19"}};
  for (const Row& row : rows) {
    CAPTURE(row.received);
    NetworkWithBob network;
    Request request;
    request.max_forwards = row.received;
    network.receive(request.text(), alice);
    const Packet packet = network.take_one();
    if (row.forwarded.empty()) {
      CHECK(packet.status() == 483);
      CHECK(packet.flow.remote == alice.remote);
    } else {
      CHECK(headers_of(packet.text, "Max-Forwards") == std::vector<std::string>{row.forwarded});
    }
  }
}

TEST_CASE("where Content-Length was missing it is added, in both directions") {
  for (const std::string body : {"hello", ""}) {
    Network network;
    const Flow phone = tcp("192.0.2.20:40000", 77);
    network.bind("bob", "sip:bob@192.0.2.20:40000;transport=tcp", phone);
    Request request;
    request.body = body;
    request.has_content_length = false;
    network.receive(request.text(), alice);
    const Packet packet = network.take_one();
    CHECK(packet.flow == phone);
    CHECK(header_of(packet.text, "Content-Length") == std::to_string(body.size()));
    CHECK(body_of(packet.text) == body);

    std::string answer = answer_to(packet.text, "200 OK");
    answer.replace(answer.find("Content-Length: 0\r\n"), 19, "");
    network.receive(answer, phone);
    const Packet forwarded = network.take_one();
    CHECK(forwarded.status() == 200);
    CHECK(header_of(forwarded.text, "Content-Length") == "0");
  }
  NetworkWithBob network;
  Request request;
  network.receive(request.text(), alice);
  std::string refusal = answer_to(network.take_one().text, "486 Busy");
  refusal.replace(refusal.find("Content-Length: 0\r\n"), 19, "");
  network.receive(refusal + "why", bob);
  const Packet forwarded = network.take_one();
  CHECK(forwarded.status() == 486);
  CHECK(header_of(forwarded.text, "Content-Length") == "3");
  CHECK(body_of(forwarded.text) == "why");
}

TEST_CASE("octets behind the body of a datagram are not sent on") {
  NetworkWithBob network;
  Request request;
  network.receive(request.text() + "MESSAGE sip:x@y SIP/2.0\r\n\r\n", alice);
  const Packet packet = network.take_one();
  CHECK(body_of(packet.text) == "hello");
  network.receive(answer_to(packet.text, "200 OK") + "more", bob);
  CHECK(body_of(network.take_one().text).empty());
}

TEST_CASE("the Path of the registration becomes Route") {
  Network network;
  network.bind("bob", bob_contact, udp("192.0.2.50:5060"),
               "Path: <sip:edge.example.org;lr>\r\nPath: <sip:192.0.2.50;lr>\r\n");
  network.receive(Request().text(), alice);
  const Packet packet = network.take_one();
  CHECK(packet.to() == "192.0.2.50:5060");
  CHECK(start_line(packet.text) == "MESSAGE " + bob_contact + " SIP/2.0");
  CHECK(header_of(packet.text, "Route") == "<sip:edge.example.org;lr>, <sip:192.0.2.50;lr>");
}

TEST_CASE("a Route that names us is taken off, whatever stands before and behind it") {
  for (const std::string routes : {
           "Route: <sip:example.org;lr>\r\n",
           "Route: <sip:EXAMPLE.org:5062;transport=udp;lr>\r\n",
           "Route: <sip:example.org;lr>, <sip:a@example.org;lr>\r\n",
           "Route: <sip:example.org;lr>\r\nSubject: x\r\nRoute: <sip:example.org;lr>\r\n",
       }) {
    CAPTURE(routes);
    NetworkWithBob network;
    Request request;
    request.headers = routes;
    network.receive(request.text(), alice);
    const Packet packet = network.take_one();
    CHECK(packet.flow == bob);
    CHECK(headers_of(packet.text, "Route").empty());
    CHECK(headers_of(packet.text, "Subject").size() == (routes.find("Subject") != routes.npos));
  }
  // The first header of all, where our own lines are put in too.
  NetworkWithBob network;
  std::string text = Request().text();
  text.insert(text.find("Via: "), "Route: <sip:example.org;lr>\r\n");
  network.receive(text, alice);
  const Packet packet = network.take_one();
  CHECK(headers_of(packet.text, "Route").empty());
  CHECK(headers_of(packet.text, "Via").size() == 2);
}

TEST_CASE("credentials for our realm go no further, those for others do") {
  const std::string ours =
      "Digest username=\"alice\", realm=\"Yate\", nonce=\"n\", uri=\"sip:x\", response=\"r\"";
  const std::string others =
      "Digest username=\"alice\", realm=\"elsewhere\", nonce=\"n\", uri=\"sip:x\", response=\"r\"";
  NetworkWithBob network;
  Request request;
  request.headers = "Authorization: " + ours + "\r\nAuthorization: " + others +
                    "\r\nProxy-Authorization: " + others + "\r\nProxy-Authorization: " + ours +
                    "\r\nAuthorization: Basic abc\r\n";
  network.receive(request.text(), alice);
  const Packet packet = network.take_one();
  CHECK(headers_of(packet.text, "Authorization") == std::vector<std::string>{others, "Basic abc"});
  CHECK(headers_of(packet.text, "Proxy-Authorization") == std::vector<std::string>{others});
}

// ---- to whom it goes

TEST_CASE("a message goes to all bindings of its recipient, each with a branch of its own") {
  Network network;
  const std::vector<Flow> phones = {udp("192.0.2.21:5060"), tcp("192.0.2.22:40000", 55),
                                    udp("[2001:db8::23]:5060", 2)};
  for (const Flow& phone : phones) {
    network.bind("bob", "sip:bob@" + sipmsg::to_text(phone.remote), phone);
  }
  network.receive(Request().text(), alice);
  const std::vector<Packet> packets = network.take();
  REQUIRE(packets.size() == 3);
  std::vector<std::string> branches;
  for (const Packet& packet : packets) {
    CHECK(std::count(phones.begin(), phones.end(), packet.flow) == 1);
    CHECK(start_line(packet.text) ==
          "MESSAGE sip:bob@" + sipmsg::to_text(packet.flow.remote) + " SIP/2.0");
    const std::string via = headers_of(packet.text, "Via").front();
    const bool over_tcp = packet.flow.transport == Transport::tcp;
    const bool ipv6 = packet.flow.remote.ip.is_ipv6();
    CHECK(via.find(std::string("SIP/2.0/") + (over_tcp ? "TCP " : "UDP ") +
                   (ipv6 ? "[2001:db8::1]:5060;" : "192.0.2.1:5060;")) == 0);
    branches.push_back(parameter_of(via, "branch"));
    CHECK(header_of(packet.text, "Max-Breadth") == "20");  // a third of 60
    CHECK(body_of(packet.text) == "hello");
  }
  std::sort(branches.begin(), branches.end());
  CHECK(std::unique(branches.begin(), branches.end()) == branches.end());
}

TEST_CASE("a message to an alternative goes to all who list it") {
  sipmsg::Settings settings = plain_settings();
  settings.users[1].alternatives = {"sales"};  // bob
  settings.users[2].alternatives = {"sales", "bob"};
  Network network(settings);
  network.bind("bob", "sip:bob@192.0.2.21", udp("192.0.2.21:5060"));
  network.bind("carol", "sip:carol@192.0.2.22", udp("192.0.2.22:5060"));
  network.bind("carol", "sip:carol@192.0.2.23", udp("192.0.2.23:5060"));
  struct Row {
    const char* uri;
    std::vector<std::string> targets;
  };
  const Row rows[] = {
      {"sip:sales@example.org", {"192.0.2.21:5060", "192.0.2.22:5060", "192.0.2.23:5060"}},
      {"sip:%73ales@example.org", {"192.0.2.21:5060", "192.0.2.22:5060", "192.0.2.23:5060"}},
      {"sip:bob@example.org", {"192.0.2.21:5060"}},  // a user's own name comes first
      {"sip:carol@example.org", {"192.0.2.22:5060", "192.0.2.23:5060"}},
  };
  int n = 0;
  for (const Row& row : rows) {
    CAPTURE(row.uri);
    Request request = numbered(++n);
    request.uri = row.uri;
    network.receive(request.text(), alice);
    std::vector<std::string> targets;
    for (const Packet& packet : network.take()) targets.push_back(packet.to());
    std::sort(targets.begin(), targets.end());
    CHECK(targets == row.targets);
  }
}

TEST_CASE("a user who is offline is not stood in for by those who list the name") {
  sipmsg::Settings settings = plain_settings();
  settings.users[2].alternatives = {"bob"};
  Network network(settings);
  network.bind("carol", "sip:carol@192.0.2.22", udp("192.0.2.22:5060"));
  network.receive(Request().text(), alice);
  CHECK(network.take_one().status() == 405);
}

TEST_CASE("an expired binding gets nothing") {
  Network network;
  network.bind("bob", bob_contact, bob, "Expires: 60\r\n");
  network.bind("bob", "sip:bob@192.0.2.21", udp("192.0.2.21:5060"), "Expires: 120\r\n");
  network.now_ms += 60000;
  network.receive(Request().text(), alice);
  CHECK(network.take_one().to() == "192.0.2.21:5060");
}

TEST_CASE("a target that cannot be reached is passed over; where none can, the sender gets 480") {
  Network network;
  const Flow dead = tcp("192.0.2.22:40000", 55);
  network.bind("bob", "sip:bob@192.0.2.22:40000", dead);
  network.bind("bob", bob_contact, bob);
  network.send_error = [&](const Flow& flow) {
    return flow == dead ? Error(ErrorCode::gone) : Error();
  };
  network.receive(Request().text(), alice);
  const Packet packet = network.take_one();
  CHECK(packet.flow == bob);
  network.receive(answer_to(packet.text, "200 OK"), bob);
  CHECK(network.take_one().status() == 200);

  network.send_error = [](const Flow& flow) {
    return flow.remote == alice.remote ? Error() : Error(ErrorCode::network, -101);
  };
  network.receive(numbered(2).text(), alice);
  CHECK(network.take_one().status() == 480);
}

TEST_CASE("a message that grew too large for a datagram prefers a connection to its target") {
  NetworkWithBob network;
  Request request = numbered(1);
  request.body = std::string(1000, 'x');
  network.receive(request.text(), alice);
  CHECK(network.take_one().flow == bob);  // by UDP, for there is no other way
  CHECK(network.logged("goes by UDP to 192.0.2.20 port 5070") == 1);

  network.streams.push_back(bob.remote);
  request = numbered(2);
  request.body = std::string(1000, 'x');
  network.receive(request.text(), alice);
  const Packet packet = network.take_one();
  CHECK(packet.flow.transport == Transport::tcp);
  CHECK(packet.to() == "192.0.2.20:5070");
  CHECK(headers_of(packet.text, "Via").front().find("SIP/2.0/TCP 192.0.2.1:5060;") == 0);

  // Small ones stay with UDP, and so do large ones where the connection turns out to be broken.
  network.receive(numbered(3).text(), alice);
  CHECK(network.take_one().flow == bob);
  network.send_error = [](const Flow& flow) {
    return flow.transport == Transport::tcp ? Error(ErrorCode::gone) : Error();
  };
  request = numbered(4);
  request.body = std::string(1000, 'x');
  network.receive(request.text(), alice);
  const Packet by_udp = network.take_one();
  CHECK(by_udp.flow == bob);
  CHECK(headers_of(by_udp.text, "Via").front().find("SIP/2.0/UDP ") == 0);
}

TEST_CASE("what no datagram can hold is refused with 513 and never cut") {
  NetworkWithBob network;
  Request request;
  request.body = std::string(65200, 'x');
  network.receive(request.text(), tcp("192.0.2.10:40000", 5));
  CHECK(network.take_one().status() == 513);
}

TEST_CASE("large messages do not fill the log") {
  NetworkWithBob network;
  for (int i = 0; i < 100; ++i) {
    Request request = numbered(i);
    request.body = std::string(2000, 'x');
    network.receive(request.text(), alice);
  }
  CHECK(network.log_lines.size() == 10);
  network.now_ms += 60000;
  Request request = numbered(1000);
  request.body = std::string(2000, 'x');
  network.receive(request.text(), alice);
  CHECK(network.log_lines.size() == 11);
}

TEST_CASE("a request does not double beyond its breadth") {
  struct Row {
    const char* breadth;
    int bindings;
    int status;             ///< 0: it is relayed
    std::string forwarded;  ///< Max-Breadth of each copy
  };
  const Row rows[] = {
      {"", 1, 0, ""},      {"", 10, 0, "6"},     {"60", 10, 0, "6"}, {"7", 3, 0, "2"},
      {"3", 3, 0, "1"},    {"2", 3, 440, ""},    {"1", 1, 0, "1"},   {"0", 2, 440, ""},
      {"999", 2, 0, "30"}, {"many", 2, 0, "30"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.breadth);
    CAPTURE(row.bindings);
    Network network;
    for (int i = 0; i < row.bindings; ++i) {
      const std::string host = "192.0.2." + std::to_string(100 + i);
      network.bind("bob", "sip:bob@" + host, udp(host + ":5060"));
    }
    Request request;
    if (*row.breadth != '\0') {
      request.headers = std::string("Max-Breadth: ") + row.breadth + "\r\n";
    }
    network.receive(request.text(), alice);
    const std::vector<Packet> packets = network.take();
    if (row.status != 0) {
      REQUIRE(packets.size() == 1);
      CHECK(packets[0].status() == row.status);
      CHECK(network.logged("440") == 1);
      continue;
    }
    CHECK(packets.size() == static_cast<std::size_t>(row.bindings));
    for (const Packet& packet : packets) {
      CHECK(header_of(packet.text, "Max-Breadth") == row.forwarded);
    }
  }
}

TEST_CASE("an alternative of more users than a request may double to is refused whole") {
  sipmsg::Settings settings = plain_settings();
  for (int i = 0; i < 61; ++i) {
    sipmsg::UserSettings user;
    user.name = "user" + std::to_string(i);
    user.alternatives = {"everybody"};
    settings.users.push_back(user);
  }
  Network network(settings);
  for (int i = 0; i < 60; ++i) {
    const std::string contact = "sip:" + std::to_string(i) + "@192.0.2.20:5070";
    network.bind("user" + std::to_string(i), contact, bob);
  }
  Request request = numbered(1);
  request.uri = "sip:everybody@example.org";
  network.receive(request.text(), alice);
  CHECK(network.take().size() == 60);
  network.bind("user60", "sip:60@192.0.2.20:5070", bob);
  request = numbered(2);
  request.uri = "sip:everybody@example.org";
  network.receive(request.text(), alice);
  CHECK(network.take_one().status() == 440);
}

// ---- loops and spirals

TEST_CASE("a message that comes back with the same Request-URI has looped") {
  // bob's phone is registered as if it were we ourselves.
  Network network;
  network.bind("bob", "sip:bob@example.org:5060", udp("192.0.2.1:5060"));
  network.receive(Request().text(), alice);
  const Packet first = network.take_one();
  // The first return is a spiral, for the Request-URI has changed; the second is a loop.
  network.receive(first.text, udp("192.0.2.1:5060"));
  const Packet second = network.take_one();
  CHECK(second.text.find("MESSAGE ") == 0);
  network.receive(second.text, udp("192.0.2.1:5060"));
  const Packet third = network.take_one();
  CHECK(third.status() == 482);
  // The refusal finds its way back to the sender.
  network.receive(third.text, udp("192.0.2.1:5060"));
  const Packet fourth = network.take_one();
  CHECK(fourth.status() == 482);
  network.receive(fourth.text, udp("192.0.2.1:5060"));
  const Packet last = network.take_one();
  CHECK(last.status() == 482);
  CHECK(last.flow.remote == alice.remote);
  CHECK(headers_of(last.text, "Via").size() == 1);
}

TEST_CASE("a message that comes back for somebody else is a spiral, and relayed") {
  NetworkWithBob network;
  network.bind("carol", "sip:carol@192.0.2.30", udp("192.0.2.30:5060"));
  network.receive(Request().text(), alice);
  std::string text = network.take_one().text;
  text.replace(0, text.find(" SIP/2.0"), "MESSAGE sip:carol@example.org");
  network.receive(text, bob);
  const Packet packet = network.take_one();
  CHECK(packet.to() == "192.0.2.30:5060");
  CHECK(headers_of(packet.text, "Via").size() == 3);
}

TEST_CASE("ten contacts that all lead back to us cannot multiply a message") {
  Network network;
  for (int i = 0; i < 10; ++i) {
    network.bind("bob", "sip:bob@example.org;x=" + std::to_string(i), udp("192.0.2.1:5060"));
  }
  network.receive(Request().text(), alice);
  std::size_t messages = 0;
  std::size_t rounds = 0;
  for (std::vector<Packet> packets = network.take(); !packets.empty() && rounds < 50; ++rounds) {
    for (const Packet& packet : packets) {
      messages += packet.status() == 0;
      if (packet.flow.remote != alice.remote) network.receive(packet.text, packet.flow);
    }
    packets = network.take();
  }
  CHECK(messages == 10);
  CHECK(rounds < 10);
}

// ---- which answer the sender gets

TEST_CASE("the recipient's answer reaches the sender whole, without our Via") {
  NetworkWithBob network;
  Request request;
  network.receive(request.text(), alice);
  const Packet packet = network.take_one();
  const std::string answer =
      answer_to(packet.text, "202 Kept, for now", "X-Own: 1\r\nServer: phone\r\n", "a body");
  network.receive(answer, bob);
  const Packet forwarded = network.take_one();
  CHECK(forwarded.to() == "192.0.2.10:5060");
  std::string expected = answer;
  const std::size_t via = expected.find("Via: ");
  expected.erase(via, expected.find("\r\n", via) + 2 - via);
  CHECK(forwarded.text == expected);
  CHECK(network.proxy.counters().relayed == 1);
  CHECK(network.proxy.counters().delivered == 1);
}

TEST_CASE("our Via is taken off also where the recipient put all into one line") {
  NetworkWithBob network;
  network.receive(Request().text(), alice);
  std::string answer = answer_to(network.take_one().text, "200 OK");
  const std::size_t second = answer.rfind("\r\nVia: ");
  answer.replace(second, 7, ", ");
  network.receive(answer, bob);
  const Packet forwarded = network.take_one();
  const auto vias = headers_of(forwarded.text, "Via");
  REQUIRE(vias.size() == 1);
  CHECK(parameter_of(vias[0], "branch") == "z9hG4bKa1");
  CHECK(vias[0].find(',') == std::string::npos);
}

TEST_CASE("the best answer of all branches is the sender's") {
  struct Row {
    std::vector<std::string> answers;  ///< in the order they come; "" for silence
    std::string expected;
  };
  const Row rows[] = {
      {{"200 OK"}, "200 OK"},
      {{"486 Busy Here"}, "486 Busy Here"},
      {{"404 Not Found", "200 OK"}, "200 OK"},
      {{"603 Decline", "200 OK"}, "200 OK"},
      {{"603 Decline", "404 Not Found"}, "603 Decline"},
      {{"404 Not Found", "603 Decline"}, "603 Decline"},
      {{"404 Not Found", "302 Moved Temporarily"}, "302 Moved Temporarily"},
      {{"500 Broken", "404 Not Found"}, "404 Not Found"},
      {{"404 Not Found", "486 Busy Here"}, "404 Not Found"},
      {{"404 Not Found", "415 Unsupported Media Type"}, "415 Unsupported Media Type"},
      {{"486 Busy Here", "420 Bad Extension", "404 Not Found"}, "420 Bad Extension"},
      {{"404 Not Found", "484 Address Incomplete"}, "484 Address Incomplete"},
      {{"404 Not Found", "407 Proxy Authentication Required"}, "407 Proxy Authentication Required"},
      {{"503 Service Unavailable", "407 Proxy Authentication Required", "501 Not Implemented",
        "404 Not Found"},
       "407 Proxy Authentication Required"},
      {{"503 Service Unavailable"}, "500 Recipient Unavailable"},
      {{"503 Service Unavailable", "503 Service Unavailable"}, "500 Recipient Unavailable"},
      {{"503 Service Unavailable", "501 Not Implemented"}, "501 Not Implemented"},
      {{"503 Service Unavailable", "404 Not Found"}, "404 Not Found"},
      {{"408 Request Timeout"}, "480 Temporarily Unavailable"},
      {{"408 Request Timeout", "404 Not Found"}, "404 Not Found"},
      {{"404 Not Found", "408 Request Timeout"}, "404 Not Found"},
      {{"408 Request Timeout", "501 Not Implemented"}, "480 Temporarily Unavailable"},
      {{"", "404 Not Found"}, "404 Not Found"},
      {{"", ""}, "480 Temporarily Unavailable"},
  };
  for (const Row& row : rows) {
    std::string name;
    for (const std::string& answer : row.answers) name += "[" + answer + "]";
    CAPTURE(name);
    Network network;
    for (std::size_t i = 0; i < row.answers.size(); ++i) {
      const std::string host = "192.0.2." + std::to_string(100 + i);
      network.bind("bob", "sip:bob@" + host, udp(host + ":5060"));
    }
    network.receive(Request().text(), alice);
    const std::vector<Packet> branches = network.take();
    REQUIRE(branches.size() == row.answers.size());
    for (std::size_t i = 0; i < branches.size(); ++i) {
      if (row.answers[i].empty()) continue;
      network.receive(answer_to(branches[i].text, row.answers[i]), branches[i].flow);
    }
    if (row.answers[0].empty()) {
      network.wait(64 * t1_ms);  // retransmissions go out meanwhile
    }
    std::vector<Packet> answers = network.take();
    answers.erase(std::remove_if(answers.begin(), answers.end(),
                                 [](const Packet& packet) { return packet.status() == 0; }),
                  answers.end());
    REQUIRE(answers.size() == 1);
    CHECK(start_line(answers[0].text) == "SIP/2.0 " + row.expected);
    CHECK(answers[0].flow.remote == alice.remote);
    CHECK(headers_of(answers[0].text, "Via").size() == 1);
    network.wait(64 * t1_ms);
    CHECK(network.proxy.transactions() == 0);
  }
}

TEST_CASE("the first 2xx goes out at once, later ones and the rest of the branches are absorbed") {
  Network network;
  for (const char* host : {"192.0.2.21", "192.0.2.22", "192.0.2.23"}) {
    network.bind("bob", std::string("sip:bob@") + host, udp(std::string(host) + ":5060"));
  }
  network.receive(Request().text(), alice);
  const std::vector<Packet> branches = network.take();
  REQUIRE(branches.size() == 3);
  network.receive(answer_to(branches[1].text, "200 OK", "X-Phone: 1\r\n"), branches[1].flow);
  CHECK(header_of(network.take_one().text, "X-Phone") == "1");
  // The message is for all phones: the others go on getting it until they answer.
  network.wait(t1_ms);
  std::vector<Packet> again = network.take();
  REQUIRE(again.size() == 2);
  for (const Packet& packet : again) CHECK(packet.flow.remote != branches[1].flow.remote);
  network.receive(answer_to(branches[0].text, "200 OK"), branches[0].flow);
  network.receive(answer_to(branches[2].text, "600 Busy Everywhere"), branches[2].flow);
  CHECK(network.take().empty());
  CHECK(network.proxy.counters().delivered == 1);
  // The sender's retransmission gets the stored answer, and nobody gets the message again.
  network.receive(Request().text(), alice);
  const Packet repeated = network.take_one();
  CHECK(repeated.status() == 200);
  CHECK(header_of(repeated.text, "X-Phone") == "1");
}

TEST_CASE("a 401 takes the challenges of all other 401 and 407 along") {
  Network network;
  for (const char* host : {"192.0.2.21", "192.0.2.22", "192.0.2.23", "192.0.2.24"}) {
    network.bind("bob", std::string("sip:bob@") + host, udp(std::string(host) + ":5060"));
  }
  network.receive(Request().text(), alice);
  const std::vector<Packet> branches = network.take();
  REQUIRE(branches.size() == 4);
  const auto answer = [&](std::size_t i, const std::string& status, const std::string& headers) {
    network.receive(answer_to(branches[i].text, status, headers, "body " + std::to_string(i)),
                    branches[i].flow);
  };
  answer(0, "404 Not Found", "WWW-Authenticate: Digest realm=\"no\", nonce=\"0\"\r\n");
  answer(1, "401 Unauthorized", "WWW-Authenticate: Digest realm=\"a\", nonce=\"1\"\r\n");
  answer(2, "407 Proxy Authentication Required",
         "Proxy-Authenticate: Digest realm=\"b\",\r\n nonce=\"2\"\r\n"
         "Proxy-Authenticate: Digest realm=\"c\", nonce=\"3\"\r\n");
  CHECK(network.take().empty());
  answer(3, "401 Unauthorized",
         "www-authenticate: Digest realm=\"d\", nonce=\"4\"\r\n"
         "Proxy-Authenticate: Digest realm=\"e\", nonce=\"5\"\r\n");
  const Packet packet = network.take_one();
  CHECK(start_line(packet.text) == "SIP/2.0 401 Unauthorized");
  CHECK(headers_of(packet.text, "WWW-Authenticate") ==
        std::vector<std::string>{"Digest realm=\"a\", nonce=\"1\""});
  CHECK(headers_of(packet.text, "www-authenticate") ==
        std::vector<std::string>{"Digest realm=\"d\", nonce=\"4\""});
  CHECK(headers_of(packet.text, "Proxy-Authenticate") ==
        std::vector<std::string>{"Digest realm=\"b\",\r\n nonce=\"2\"",
                                 "Digest realm=\"c\", nonce=\"3\"",
                                 "Digest realm=\"e\", nonce=\"5\""});
  CHECK(body_of(packet.text) == "body 1");
  CHECK(header_of(packet.text, "Content-Length") == "6");
}

TEST_CASE("what recipients put into challenges is bounded") {
  Network network;
  for (const char* host : {"192.0.2.21", "192.0.2.22", "192.0.2.23"}) {
    network.bind("bob", std::string("sip:bob@") + host, udp(std::string(host) + ":5060"));
  }
  network.receive(Request().text(), alice);
  const std::string long_line =
      "WWW-Authenticate: Digest realm=\"" + std::string(6000, 'x') + "\", nonce=\"1\"\r\n";
  for (const Packet& branch : network.take()) {
    network.receive(answer_to(branch.text, "401 Unauthorized", long_line), branch.flow);
  }
  CHECK(headers_of(network.take_one().text, "WWW-Authenticate").size() == 2);
}

TEST_CASE("a silent recipient: 480 at 60*T1, never 408, and before the sender gives up") {
  NetworkWithBob network;
  network.receive(Request().text(), alice);
  network.wait(60 * t1_ms - 1);
  for (const Packet& packet : network.take()) CHECK(packet.flow == bob);
  network.wait(1);
  const Packet packet = network.take_one();
  CHECK(packet.status() == 480);
  CHECK(packet.flow.remote == alice.remote);
  // An answer that comes too late is nobody's any more.
  network.wait(t1_ms);
  network.take();
  NetworkWithBob late;
  late.receive(Request().text(), alice);
  const std::string request = late.take_one().text;
  late.wait(60 * t1_ms);
  late.take();
  late.receive(answer_to(request, "200 OK"), bob);
  CHECK(late.take().empty());
  CHECK(late.proxy.counters().delivered == 0);
}

TEST_CASE("the time a sender is kept waiting follows T1") {
  sipmsg::Settings settings = plain_settings();
  settings.timers.t1_ms = 100;
  Network network(settings);
  network.bind("bob", bob_contact, bob);
  network.receive(Request().text(), alice);
  network.wait(5999);
  for (const Packet& packet : network.take()) CHECK(packet.flow == bob);
  network.wait(1);
  CHECK(network.take_one().status() == 480);
}

TEST_CASE("where the connection to the only recipient breaks the sender hears it at once") {
  Network network;
  const Flow phone = tcp("192.0.2.20:40000", 77);
  network.bind("bob", "sip:bob@192.0.2.20:40000;transport=tcp", phone);
  network.receive(Request().text(), alice);
  CHECK(network.take_one().flow == phone);
  network.proxy.connection_closed(77, ErrorCode::closed, network.now_ms);
  CHECK(network.take_one().status() == 480);
  // And the binding is gone with it.
  network.receive(numbered(2).text(), alice);
  CHECK(network.take_one().status() == 405);
}

TEST_CASE("answers that match no request of ours go nowhere") {
  NetworkWithBob network;
  network.receive(Request().text(), alice);
  const std::string request = network.take_one().text;
  const std::string answer = answer_to(request, "200 OK");
  const std::string branch = parameter_of(headers_of(request, "Via").front(), "branch");
  const auto with_branch = [&](const std::string& other) {
    std::string text = answer;
    return text.replace(text.find(branch), branch.size(), other);
  };
  std::string guessed = branch;
  guessed[10] = guessed[10] == 'a' ? 'b' : 'a';
  const std::string strays[] = {
      with_branch(guessed),      with_branch("z9hG4bK"),
      with_branch(branch + "0"), with_branch(branch.substr(0, branch.size() - 1)),
      with_branch("z9hG4bKa1"),
  };
  for (const std::string& stray : strays) {
    network.receive(stray, bob);
    CHECK(network.take().empty());
  }
  std::string other_method = answer;
  other_method.replace(other_method.find("1 MESSAGE"), 9, "1 OPTIONS");
  network.receive(other_method, bob);
  CHECK(network.take().empty());
  // 64 bits of chance are what an answer is believed for. A phone with two addresses may answer
  // from the other one.
  network.receive(answer, udp("198.51.100.1:9"));
  CHECK(network.take_one().status() == 200);
}

TEST_CASE("an answer with our Via alone is not passed on") {
  NetworkWithBob network;
  network.receive(Request().text(), alice);
  std::string answer = answer_to(network.take_one().text, "200 OK");
  const std::size_t second = answer.rfind("Via: ");
  answer.erase(second, answer.find("\r\n", second) + 2 - second);
  network.receive(answer, bob);
  const Packet packet = network.take_one();
  CHECK(packet.status() == 480);  // that branch has no answer for the sender
  CHECK(network.proxy.counters().delivered == 0);
}

TEST_CASE("provisional answers are not passed on, the final one behind them is") {
  NetworkWithBob network;
  network.receive(Request().text(), alice);
  const std::string request = network.take_one().text;
  network.receive(answer_to(request, "100 Trying"), bob);
  network.receive(answer_to(request, "183 Session Progress"), bob);
  CHECK(network.take().empty());
  network.receive(answer_to(request, "200 OK"), bob);
  CHECK(network.take_one().status() == 200);
}

TEST_CASE("a malformed answer is dropped, and does not end the branch") {
  NetworkWithBob network;
  network.receive(Request().text(), alice);
  const std::string request = network.take_one().text;
  std::string broken = answer_to(request, "200 OK");
  broken.replace(broken.find("CSeq: 1"), 7, "CSeq: x");
  network.receive(broken, bob);
  CHECK(network.take().empty());
  network.receive(answer_to(request, "200 OK"), bob);
  CHECK(network.take_one().status() == 200);
}

TEST_CASE("over TCP the sender gets its answer on its connection") {
  NetworkWithBob network;
  const Flow connection = tcp("192.0.2.10:40000", 5);
  Request request;
  request.via = "SIP/2.0/TCP 192.0.2.10;branch=z9hG4bKa1;rport;alias";
  network.receive(request.text(), connection, sipmsg::Framing::stream);
  const Packet packet = network.take_one();
  CHECK(packet.flow == bob);
  network.receive(answer_to(packet.text, "200 OK"), bob);
  CHECK(network.take_one().flow == connection);
}

TEST_CASE("a message is kept no longer than its transactions") {
  NetworkWithBob network;
  for (int i = 0; i < 50; ++i) {
    network.receive(numbered(i).text(), alice);
    if (i % 2 == 0) network.receive(answer_to(network.take_one().text, "200 OK"), bob);
    network.take();
  }
  CHECK(network.proxy.transactions() == 100);
  network.wait((60 + 64) * t1_ms);  // those that were answered 480 are remembered so long
  CHECK(network.proxy.transactions() == 0);
  network.wait(3600000);
  CHECK(network.proxy.next_deadline() == UINT64_MAX);
}

}  // namespace test_relay
