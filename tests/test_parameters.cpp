// What handlers may ask of a message by name, in Yate's words, and what becomes of what they set.
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "support/network.hpp"
#include "support/sipmsg.hpp"

namespace test_parameters {

using namespace test::network;
using sipmsg::KeptRouteRequest;
using sipmsg::RouteChanges;
using sipmsg::RouteRequest;
using sipmsg::Settings;
using sipmsg::Verdict;

namespace {

const Flow alice = udp("192.0.2.10:5060");
using Pairs = std::vector<std::pair<std::string, std::string>>;

Pairs all_parameters(const RouteRequest& request) {
  Pairs pairs;
  request.for_each_parameter([&](std::string_view name, std::string_view value) {
    pairs.emplace_back(std::string(name), std::string(value));
  });
  return pairs;
}

std::string value_of(const RouteRequest& request, const char* name) {
  return request.parameter(name).value_or("(none)");
}

/// A network whose first handler looks at each message with `look`.
struct Looking : Network {
  explicit Looking(std::function<void(const RouteRequest&)> look,
                   const Settings& settings = plain_settings())
      : Network(settings) {
    bind("bob", "sip:bob@192.0.2.20:5070", udp("192.0.2.20:5070"));
    proxy.handlers().add(10, [look = std::move(look)](const RouteRequest& request) {
      look(request);
      return Verdict::next();
    });
  }
};

}  // namespace

TEST_CASE("a message has Yate's parameters, in Yate's order") {
  Pairs seen;
  Settings settings = plain_settings();
  settings.listeners[0].role = "inside";
  Looking network([&](const RouteRequest& request) { seen = all_parameters(request); }, settings);
  Request request;
  request.from = "\"Al \\\"X\\\"\" <sip:al%69ce@example.org>;tag=t1";
  request.max_forwards = "5";
  request.headers =
      "X-Foo: bar\r\nSubject:  a\r\n b\r\nx-foo: again\r\nRoute: <sip:example.org;lr>\r\n";
  request.body = "a:b%\r\nc=d";
  network.receive(request.text(), alice);
  REQUIRE(network.take().size() == 1);
  const Pairs expected = {
      {"module", "sip"},
      {"route_type", "msg"},
      {"called", "bob"},
      {"caller", "alice"},
      {"callername", "Al \"X\""},
      {"connection_reliable", "false"},
      {"antiloop", "4"},
      {"ip_host", "192.0.2.10"},
      {"ip_port", "5060"},
      {"ip_transport", "UDP"},
      {"address", "192.0.2.10:5060"},
      {"sip_uri", "sip:bob@example.org"},
      {"sip_callid", "call-1"},
      {"xsip_dlgtag", seen.empty() ? "" : seen[12].second},
      {"sip_from", "\"Al \\\"X\\\"\" <sip:al%69ce@example.org>;tag=t1"},
      {"sip_to", "<sip:bob@example.org>"},
      {"sip_x-foo", "bar"},
      {"sip_subject", "a  b"},
      {"sip_x-foo", "again"},
      {"sip_content-type", "text/plain"},
      {"xsip_type", "text/plain"},
      {"xsip_body", "a:b%\r\nc=d"},
  };
  Pairs without_tag = seen;
  REQUIRE(seen.size() > 13);
  CHECK(seen[13].first == "xsip_dlgtag");
  CHECK_FALSE(seen[13].second.empty());
  without_tag[13].second = expected[13].second;
  CHECK(without_tag == expected);
}

TEST_CASE("who has proved a password has more parameters, and the keys of his section") {
  Settings settings = guarded_settings();
  settings.users[0].parameters = {{"callername", "Alice of ${domain}"}, {"plan", "${nothing}gold"}};
  Pairs seen;
  Looking network([&](const RouteRequest& request) { seen = all_parameters(request); }, settings);
  sipmsg::DigestClient digest;
  Request request;
  const Packet refusal = network.ask(request.text(), alice);
  const std::string asked = header_of(refusal.text, "WWW-Authenticate");
  const auto challenge = sipmsg::parse_challenge(asked);
  REQUIRE(challenge);
  REQUIRE_FALSE(digest.take(*challenge, "cnonce"));
  request.cseq = "2 MESSAGE";
  request.via = "SIP/2.0/UDP 192.0.2.10:5060;branch=z9hG4bKa2;rport";
  request.headers =
      "Authorization: " +
      *digest.authorize("alice", "secret of alice", "MESSAGE", request.uri, request.body) + "\r\n";
  network.receive(request.text(), alice);
  REQUIRE_FALSE(seen.empty());
  std::string names;
  for (const auto& pair : seen) names += pair.first + " ";
  CHECK(names.find("called caller username realm newcall domain connection_reliable "
                   "username antiloop ") != std::string::npos);
  for (const auto& pair : seen) {
    if (pair.first == "username") CHECK(pair.second == "alice");
    if (pair.first == "realm") CHECK(pair.second == "Yate");
    if (pair.first == "domain") CHECK(pair.second == "example.org");
    if (pair.first == "callername") CHECK(pair.second == "Alice of example.org");
  }
  CHECK(seen.back() == std::pair<std::string, std::string>("plan", "gold"));
  CHECK(names.find("authorization") == std::string::npos);
}

TEST_CASE("each parameter that is shown is found by its name, and no other") {
  Looking network([&](const RouteRequest& request) {
    for (const auto& shown : all_parameters(request)) {
      CAPTURE(shown.first);
      if (shown.first != "sip_x-foo") CHECK(request.parameter(shown.first) == shown.second);
    }
    CHECK(value_of(request, "sip_x-foo") == "bar");
    for (const char* name : {"", "id", "sip_", "sip_via", "sip_X-Foo", "sip_cseq", "sipheader_via",
                             "Called", "called ", "xsip_body.1", "xsip_nothing", "username"}) {
      CAPTURE(name);
      CHECK_FALSE(request.parameter(name));
    }
  });
  Request request;
  request.headers = "X-Foo: bar\r\nX-Foo: again\r\n";
  network.receive(request.text(), alice);
  CHECK(network.take().size() == 1);
}

TEST_CASE("the headers of transport are there on demand") {
  Settings settings = plain_settings();
  settings.initial_headers = true;
  Looking network(
      [&](const RouteRequest& request) {
        CHECK(value_of(request, "sipheader_max-forwards") == "70");
        CHECK(value_of(request, "sipheader_cseq") == "1 MESSAGE");
        CHECK(value_of(request, "sip_cseq") == "(none)");
        CHECK(value_of(request, "sipheader_subject") == "(none)");
      },
      settings);
  network.receive(Request().text(), alice);
  CHECK(network.take().size() == 1);
}

TEST_CASE("a body is text where Yate says so, and encoded where not") {
  struct Row {
    const char* type;
    std::string body;
    sipmsg::BodyEncoding encoding;
    const char* shown_type;
    const char* shown_encoding;
    std::string shown_body;
  };
  using sipmsg::BodyEncoding;
  const std::string nul("a\0b", 3);
  const Row rows[] = {
      {"text/plain;charset=x", "hi", BodyEncoding::base64, "text/plain", "(none)", "hi"},
      {"Text/HTML", "<b>", BodyEncoding::base64, "Text/HTML", "(none)", "<b>"},
      {"text/plain", nul, BodyEncoding::base64, "text/plain", "base64", "YQBi"},
      {"application/im-iscomposing+xml", "<a/>", BodyEncoding::hex,
       "application/im-iscomposing+xml", "(none)", "<a/>"},
      {"application/json", "{}", BodyEncoding::hex, "application/json", "(none)", "{}"},
      {"application/x+json", "{}", BodyEncoding::hex, "application/x+json", "(none)", "{}"},
      {"message/sipfrag", "x", BodyEncoding::hex, "message/sipfrag", "(none)", "x"},
      {"message/cpim", "x", BodyEncoding::hex, "message/cpim", "hex", "78"},
      {"image/png", "\xff\x01", BodyEncoding::hexs, "image/png", "hexs", "ff 01"},
      {"image/png", "\xff\x01", BodyEncoding::raw, "image/png", "raw", "\xff\x01"},
      {"application/sdp", "v=0", BodyEncoding::base64, "(none)", "(none)", "(none)"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.type);
    Settings settings = plain_settings();
    settings.body_encoding = row.encoding;
    bool looked = false;
    Looking network(
        [&](const RouteRequest& request) {
          looked = true;
          CHECK(value_of(request, "xsip_type") == row.shown_type);
          CHECK(value_of(request, "xsip_body_encoding") == row.shown_encoding);
          CHECK(value_of(request, "xsip_body") == row.shown_body);
        },
        settings);
    Request request;
    request.content_type = row.type;
    request.body = row.body;
    network.receive(request.text(), alice);
    CHECK(looked);
  }
}

TEST_CASE("a multipart body is shown part by part, nested ones in their place") {
  bool looked = false;
  Looking network([&](const RouteRequest& request) {
    looked = true;
    CHECK(value_of(request, "xsip_type") == "text/plain");
    CHECK(value_of(request, "xsip_body") == "one");
    CHECK(value_of(request, "xsip_body.header_x-a") == "b  c");
    CHECK(value_of(request, "xsip_type.1") == "image/png");
    CHECK(value_of(request, "xsip_body_encoding.1") == "base64");
    CHECK(value_of(request, "xsip_body.1") == "AQ==");
    CHECK(value_of(request, "xsip_type.2") == "text/html");
    CHECK(value_of(request, "xsip_body.3") == "(none)");
  });
  Request request;
  request.content_type = "multipart/mixed;boundary=\"x y\"";
  request.body =
      "--x y\r\nContent-Type: text/plain\r\nX-A: b\r\n c\r\n\r\none\r\n"
      "--x y\r\nContent-Type: multipart/alternative;boundary=in\r\n\r\n"
      "--in\r\nContent-Type: image/png\r\n\r\n\x01\r\n--in\r\nContent-Type: "
      "text/html\r\n\r\n<p>\r\n"
      "--in--\r\n\r\n--x y--\r\n";
  network.receive(request.text(), alice);
  CHECK(looked);
}

TEST_CASE("what a handler sets is what the next one sees, in its place or at the end") {
  Pairs seen;
  Looking network([](const RouteRequest& request) {
    request.set_parameter("callername", "Al");
    request.set_parameter("colour", "red");
    request.set_parameter("caller", "alice");  // what it is already
    request.clear_parameter("sip_to");
    request.set_parameter("colour", "blue");
    CHECK(value_of(request, "colour") == "blue");
    CHECK(value_of(request, "sip_to") == "(none)");
    std::size_t changes = 0;
    for (const RouteChanges::Change& change : *request.changes) changes += change.name.size() > 0;
    CHECK(changes == 3);
  });
  network.proxy.handlers().add(20, [&](const RouteRequest& request) {
    seen = all_parameters(request);
    return Verdict::next();
  });
  Request request;
  request.from = "Alice <sip:alice@example.org>;tag=1";
  network.receive(request.text(), alice);
  CHECK(network.take().size() == 1);
  REQUIRE(seen.size() > 5);
  CHECK(seen[4] == std::pair<std::string, std::string>("callername", "Al"));
  CHECK(seen.back() == std::pair<std::string, std::string>("colour", "blue"));
  for (const auto& pair : seen) CHECK(pair.first != "sip_to");
}

TEST_CASE("a kept request says all the same when the message and its user are gone") {
  Settings settings = plain_settings();
  settings.users[0].parameters = {{"plan", "gold of ${caller}"}};
  std::unique_ptr<KeptRouteRequest> kept;
  Pairs before;
  {
    Looking network(
        [&](const RouteRequest& request) {
          request.set_parameter("colour", "red");
          before = all_parameters(request);
          kept = std::make_unique<KeptRouteRequest>(request);
        },
        settings);
    network.receive(Request().text(), alice);
  }
  REQUIRE(kept);
  Pairs after = all_parameters(kept->view());
  std::sort(before.begin(), before.end());
  std::sort(after.begin(), after.end());
  CHECK(after == before);
  CHECK(value_of(kept->view(), "plan") == "gold of alice");
  kept->view().set_parameter("colour", "blue");
  CHECK(value_of(kept->view(), "colour") == "blue");
}

TEST_CASE("a key of the sender's section is a header where its name says so, asked for or not") {
  Settings settings = plain_settings();
  settings.users[0].parameters = {{"sip_x-plan", "gold of ${caller}"}, {"sip_subject", "default"}};
  for (const bool later : {false, true}) {
    CAPTURE(later);
    std::unique_ptr<KeptRouteRequest> kept;
    Network network(settings);
    network.bind("bob", "sip:bob@192.0.2.20:5070", udp("192.0.2.20:5070"));
    network.proxy.handlers().add(10, [&](const RouteRequest& request) {
      CHECK(value_of(request, "sip_x-plan") == "gold of alice");
      request.set_parameter("sip_subject", "another");
      if (!later) return Verdict::next();
      kept = std::make_unique<KeptRouteRequest>(request);
      return Verdict::later();
    });
    network.receive(Request().text(), alice);
    if (later) {
      CHECK_FALSE(
          network.proxy.resume(kept->key(), Verdict::next(), network.now_ms, kept->changes()));
    }
    const Packet packet = network.take_one();
    CHECK(header_of(packet.text, "X-Plan") == "gold of alice");
    CHECK(header_of(packet.text, "Subject") == "another");
  }
}

// What is sent in the end.

namespace {

/// What reaches bob, or the answer, when a handler has set these.
Packet sent_with(const Pairs& parameters, const Request& request, bool later = false) {
  Network network;
  network.bind("bob", "sip:bob@192.0.2.20:5070", udp("192.0.2.20:5070"));
  std::unique_ptr<KeptRouteRequest> kept;
  network.proxy.handlers().add(10, [&](const RouteRequest& route) {
    if (later) {
      kept = std::make_unique<KeptRouteRequest>(route);
      return Verdict::later();
    }
    for (const auto& [name, value] : parameters) route.set_parameter(name, value);
    return Verdict::next();
  });
  network.receive(request.text(), alice);
  if (later) {
    for (const auto& [name, value] : parameters) kept->view().set_parameter(name, value);
    CHECK_FALSE(
        network.proxy.resume(kept->key(), Verdict::next(), network.now_ms, kept->changes()));
  }
  return network.take_one();
}

}  // namespace

TEST_CASE("another body and another type go out, now or later, with the length that fits") {
  for (const bool later : {false, true}) {
    CAPTURE(later);
    Request request;
    request.content_type = "text/plain;charset=utf-8";
    Packet packet = sent_with({{"xsip_body", "another one"}}, request, later);
    CHECK(packet.to() == "192.0.2.20:5070");
    CHECK(body_of(packet.text) == "another one");
    CHECK(header_of(packet.text, "Content-Length") == "11");
    CHECK(header_of(packet.text, "Content-Type") == "text/plain;charset=utf-8");
    CHECK(header_of(packet.text, "Call-ID") == "call-1");
    CHECK(headers_of(packet.text, "Via").size() == 2);

    packet = sent_with(
        {{"xsip_body", "AQI="}, {"xsip_body_encoding", "base64"}, {"xsip_type", "image/png"}},
        request, later);
    CHECK(body_of(packet.text) == "\x01\x02");
    CHECK(header_of(packet.text, "Content-Type") == "image/png");
  }
}

TEST_CASE("another body is read in the form in which the first was shown, or in one that is set") {
  struct Row {
    const char* type;  ///< of the body that arrives
    Pairs parameters;
    const char* body;
  };
  const Row rows[] = {
      {"image/png", {{"xsip_body", "aGk="}}, "hi"},
      {"image/png", {{"xsip_body_encoding", "base64"}, {"xsip_body", "aGk="}}, "hi"},
      {"image/png", {{"xsip_body", "aGk="}, {"xsip_type", "text/plain"}}, "hi"},
      {"image/png", {{"xsip_body", "6869"}, {"xsip_body_encoding", "hex"}}, "hi"},
      {"image/png", {{"xsip_body_encoding", "hex"}, {"xsip_body", "6869"}}, "hi"},
      {"image/png", {{"xsip_body", "aGk="}, {"xsip_body_encoding", ""}}, "aGk="},
      {"image/png", {{"xsip_body_encoding", ""}, {"xsip_body", "aGk="}}, "aGk="},
      {"text/plain", {{"xsip_body", "aGk="}}, "aGk="},
  };
  for (const Row& row : rows) {
    for (const bool later : {false, true}) {
      CAPTURE(row.type);
      CAPTURE(later);
      Request request;
      request.content_type = row.type;
      request.headers = "Content-Encoding: gzip\r\nSubject: one\r\n";
      const Packet packet = sent_with(row.parameters, request, later);
      CHECK(body_of(packet.text) == row.body);
      CHECK(headers_of(packet.text, "Content-Encoding").empty());
      CHECK(header_of(packet.text, "Subject") == "one");
    }
  }
  Request compressed;
  compressed.headers = "Content-Encoding: gzip\r\n";
  CHECK(header_of(sent_with({{"sip_x-new", "1"}}, compressed).text, "Content-Encoding") == "gzip");
}

TEST_CASE("a handler that sends back what it was told changes nothing") {
  Network network;
  network.bind("bob", "sip:bob@192.0.2.20:5070", udp("192.0.2.20:5070"));
  network.proxy.handlers().add(10, [&](const RouteRequest& route) {
    for (const auto& [name, value] : all_parameters(route)) route.set_parameter(name, value);
    CHECK(route.changes->empty());
    return Verdict::next();
  });
  Request request;
  request.content_type = "text/plain;charset=x;format=flowed";
  request.headers = "Subject: one\r\n";
  network.receive(request.text(), alice);
  const Packet packet = network.take_one();
  CHECK(header_of(packet.text, "Content-Type") == "text/plain;charset=x;format=flowed");
}

TEST_CASE("headers may be set, replaced and taken out, but not those a proxy answers for") {
  Request request;
  request.headers = "Subject: one\r\nX-Foo: a\r\nX-Foo: b\r\n";
  const Packet packet = sent_with({{"sip_x-foo", "c"},
                                   {"sip_x-new", "d"},
                                   {"sip_from", "<sip:mallory@example.org>"},
                                   {"sip_call-id", "other"},
                                   {"sip_via", "SIP/2.0/UDP x"},
                                   {"sip_content-length", "1"},
                                   {"sip_bad name", "x"}},
                                  request);
  CHECK(headers_of(packet.text, "X-Foo") == std::vector<std::string>{"c"});
  CHECK(header_of(packet.text, "X-New") == "d");
  CHECK(header_of(packet.text, "Subject") == "one");
  CHECK(header_of(packet.text, "From") == "<sip:alice@example.org>;tag=alice1");
  CHECK(header_of(packet.text, "Call-ID") == "call-1");
  CHECK(headers_of(packet.text, "Via").size() == 2);
  CHECK(body_of(packet.text) == "hello");
  request.content_type.clear();
  const Packet without_type = sent_with({{"sip_x-new", "d"}}, request);
  CHECK(without_type.text.find("Content-Type") == std::string::npos);
  CHECK(body_of(without_type.text) == "hello");
}

TEST_CASE("what cannot be sent costs its own message a 500") {
  const Pairs rows[] = {
      {{"sip_x-foo", "a\r\nVia: x"}},
      {{"xsip_type", "text/plain\r\nX: y"}},
      {{"xsip_body", "***"}, {"xsip_body_encoding", "base64"}},
      {{"xsip_body", std::string(70000, 'x')}},
  };
  for (const Pairs& row : rows) {
    CAPTURE(row[0].first);
    CHECK(sent_with(row, Request()).status() == 500);
  }
}

TEST_CASE("an answer of our own has the headers that handlers set for it") {
  Request request;
  request.uri = "sip:nobody@example.org";
  const Packet packet =
      sent_with({{"osip_x-why", "because"}, {"osip_via", "x"}, {"osip_x-bad", "a\r\nb"}}, request);
  CHECK(packet.status() == 404);
  CHECK(header_of(packet.text, "X-Why") == "because");
  CHECK(headers_of(packet.text, "Via").size() == 1);
  CHECK(packet.text.find("X-Bad") == std::string::npos);
  for (const std::size_t size : {65300U, 70000U}) {  // more than a datagram holds
    const Packet plain = sent_with({{"osip_x", std::string(size, 'x')}}, request);
    CHECK(plain.status() == 404);
    CHECK(plain.text.size() < 1000);
  }
}

TEST_CASE("a code that a handler leaves refuses a message for which others find a way") {
  struct Row {
    const char* name;
    const char* value;
    int status;  ///< 0: it is delivered
  };
  const Row rows[] = {
      {"code", "480", 480},
      {"code", "200", 0},
      {"code", "99", 0},
      {"code", "x", 0},
      {"antiloop", "0", 483},
      {"antiloop", "-3", 483},
      {"antiloop", "1", 0},
      // Without a way these refuse; with one they are history.
      {"reason", "forbidden", 0},
      {"error", "486", 0},
  };
  for (const Row& row : rows) {
    CAPTURE(row.name);
    CAPTURE(row.value);
    CHECK(sent_with({{row.name, row.value}}, Request()).status() == row.status);
  }
}

TEST_CASE("where nobody finds a way, code, reason and error name the answer") {
  struct Row {
    Pairs parameters;
    int status;
  };
  const Row rows[] = {
      {{{"reason", "forbidden"}}, 403},
      {{{"reason", "486"}}, 486},
      {{{"error", "486"}}, 486},
      {{{"error", "forbidden"}}, 404},
      {{{"code", "433"}}, 433},
      {{{"code", "433"}, {"reason", "busy"}, {"error", "500"}}, 433},
      {{{"reason", "busy"}, {"error", "500"}}, 486},
      {{{"reason", "no such name"}}, 404},
      {{{"code", "200"}}, 404},
      {{{"code", "799"}}, 404},
      {{{"reason", "timeout"}}, 480},  // RFC 4320: never 408
      {{}, 404},
  };
  for (const Row& row : rows) {
    if (!row.parameters.empty()) CAPTURE(row.parameters[0].second);
    Request request;
    request.uri = "sip:nobody@example.org";
    CHECK(sent_with(row.parameters, request).status() == row.status);
  }
}

}  // namespace test_parameters
