// The user agent, driven by hand: what it puts on the wire, what it refuses to, and that each
// request of its own ends in exactly one callback. Two agents and a proxy in bad weather are in
// test_simulation.cpp.
#include <doctest/doctest.h>

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "support/sipmsg.hpp"

namespace test_agent {

using namespace sipmsg;

namespace {

constexpr std::uint32_t udp_socket = 1;
constexpr std::uint32_t tcp_socket = 7;
constexpr std::uint64_t timer_f_ms = 32000;

/// Takes everything down that is sent, or refuses it.
class Wire final : public Sink {
 public:
  struct Sent {
    Flow flow;
    std::string bytes;
  };

  Result<std::string_view> sent_by(Flow& flow) override {
    if (no_way) return no_way;
    if (has_no_tcp && flow.transport == Transport::tcp) return {ErrorCode::network, -111};
    if (flow.socket == 0) flow.socket = flow.transport == Transport::udp ? udp_socket : tcp_socket;
    return std::string_view("192.0.2.1:5060");
  }
  Error send(const Flow& flow, const Slices& message) override {
    if (broken) return broken;
    sent.push_back({flow, message.to_string()});
    return {};
  }
  bool has_stream_to(const SocketAddress&) const override { return has_stream; }

  std::vector<Sent> sent;
  Error no_way;
  Error broken;
  bool has_no_tcp = false;
  bool has_stream = false;
};

SipHashKey key_of(unsigned char octet) {
  SipHashKey key;
  key.fill(octet);
  return key;
}

Flow flow_from(const std::string& address, Transport transport = Transport::udp) {
  Flow flow;
  flow.transport = transport;
  flow.socket = transport == Transport::udp ? udp_socket : tcp_socket;
  flow.remote = parse_socket_address(address).value();
  return flow;
}

Message parsed(const std::string& bytes) {
  auto message = Message::from_bytes(bytes);
  REQUIRE_MESSAGE(message.ok(), message.error().name() << " in:\n" << bytes);
  REQUIRE_FALSE(validate(*message));
  return *message;
}

/// An answer to `request`, as its recipient would write it.
std::string answer_to(const std::string& request, int code, const std::string& phrase = "") {
  std::vector<char> buffer(max_message_size);
  Output out(buffer.data(), buffer.size());
  write_status_line(out, code, phrase);
  write_response_head(out, parsed(request), "its-tag", flow_from("192.0.2.7:5060").remote);
  write_body(out, {}, {});
  REQUIRE_FALSE(out.error());
  return std::string(out.written());
}

/// A server's question for the password, with a nonce of its own.
std::string challenge_to(const std::string& request, const std::string& nonce) {
  std::string text = answer_to(request, 401);
  text.insert(text.find("\r\n") + 2,
              "WWW-Authenticate: Digest realm=\"here\", nonce=\"" + nonce + "\", qop=\"auth\"\r\n");
  return text;
}

/// A request to the agent, with whatever a test wants to be different.
struct Incoming {
  std::string method = "MESSAGE";
  std::string uri = "sip:alice@192.0.2.1";
  std::string branch = "z9hG4bKone";
  std::string from = "<sip:bob@example.org>;tag=bobs-tag";
  std::string to = "<sip:alice@example.org>";
  std::string call_id = "one@example.org";
  std::string cseq = "1";
  std::string more;  ///< header lines
  std::string type = "Content-Type: text/plain";
  std::string body = "Hello";

  std::string text() const {
    return method + " " + uri + " SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.7:5060;branch=" + branch +
           "\r\nMax-Forwards: 70\r\nFrom: " + from + "\r\nTo: " + to + "\r\nCall-ID: " + call_id +
           "\r\nCSeq: " + cseq + " " + method + "\r\n" + more + type +
           "\r\nContent-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
  }
};

/// What callbacks were told. Must outlive the agent, whose destructor calls those that wait.
struct Told {
  std::vector<Outcome> outcomes;

  SentHandler note() {
    return [this](const Outcome& outcome) {
      outcomes.push_back(outcome);
      outcomes.back().response = nullptr;
    };
  }
};

struct Fixture {
  explicit Fixture(const AgentOptions& options = {}) : agent(options, wire, key_of(1)) {}

  Wire wire;
  Agent agent;
  std::vector<ServerTransaction> open;

  void receive(const std::string& bytes, std::uint64_t now_ms = 0,
               const Flow& from = flow_from("192.0.2.7:5060")) {
    MessageView view;
    const Error error = view.parse(bytes);
    agent.receive(view, error, from, now_ms);
  }
  /// Time passes, with everything that is due in it.
  void pass(std::uint64_t until_ms) {
    for (auto deadline = agent.next_deadline(); deadline && *deadline <= until_ms;
         deadline = agent.next_deadline()) {
      agent.advance(*deadline);
    }
    agent.advance(until_ms);
  }
  /// Answers nothing by itself: the test does.
  void keep_requests() {
    agent.on_message([this](const MessageView&, const Flow&, ServerTransaction server) {
      open.push_back(server);
    });
  }
  const std::string& last() const {
    REQUIRE_FALSE(wire.sent.empty());
    return wire.sent.back().bytes;
  }
};

Outgoing to_bob() {
  Outgoing outgoing;
  outgoing.to = "sip:bob@192.0.2.7";
  outgoing.from = "sip:alice@example.org";
  outgoing.body = "Hello Bob";
  return outgoing;
}

std::string to_string(Error error) { return error.name(); }

}  // namespace

// ---- what goes out ----------------------------------------------------------------------------

TEST_CASE("a message carries everything that RFC 3261 8.1.1 asks of a request") {
  Told told;
  Fixture fixture;
  REQUIRE_FALSE(fixture.agent.send(to_bob(), 0, told.note()));
  REQUIRE(fixture.wire.sent.size() == 1);
  CHECK(fixture.wire.sent[0].flow == flow_from("192.0.2.7:5060"));

  const Message message = parsed(fixture.last());
  CHECK(message.method() == Method::message);
  CHECK(message.request_uri_text() == "sip:bob@192.0.2.7");
  CHECK(message.header(HeaderId::from).substr(0, 28) == "<sip:alice@example.org>;tag=");
  CHECK(message.header(HeaderId::to) == "<sip:bob@192.0.2.7>");
  CHECK(message.max_forwards() == 70);
  CHECK(message.cseq()->method == "MESSAGE");
  CHECK(message.header(HeaderId::content_type) == "text/plain;charset=utf-8");
  CHECK(message.header(HeaderId::user_agent) == "sipmsg/" SIPMSG_VERSION);
  CHECK(message.body() == "Hello Bob");
  CHECK_FALSE(message.has(HeaderId::contact));  // RFC 3428 4
  const auto via = message.top_via();
  CHECK(via->transport == "UDP");
  CHECK(via->host == "192.0.2.1");
  CHECK(via->has_rport);
  CHECK(via->has_rfc3261_branch());
}

TEST_CASE("branch, Call-ID and From tag are new for each request, and CSeq rises") {
  Fixture fixture;
  std::set<std::string> tokens;
  std::uint32_t last_cseq = 0;
  for (int i = 0; i < 50; ++i) {
    REQUIRE_FALSE(fixture.agent.send(to_bob(), 0, nullptr));
    const Message message = parsed(fixture.last());
    tokens.insert(std::string(message.top_via()->branch));
    tokens.insert(std::string(message.call_id()));
    tokens.insert(std::string(message.from()->tag()));
    CHECK(message.cseq()->number > last_cseq);
    last_cseq = message.cseq()->number;
  }
  CHECK(tokens.size() == 150);
}

TEST_CASE("agents with different secrets write different tokens") {
  std::set<std::string> branches;
  for (unsigned char octet = 1; octet < 10; ++octet) {
    Wire wire;
    Agent agent(AgentOptions(), wire, key_of(octet));
    REQUIRE_FALSE(agent.send(to_bob(), 0, nullptr));
    branches.insert(std::string(parsed(wire.sent[0].bytes).top_via()->branch));
  }
  CHECK(branches.size() == 9);
}

TEST_CASE("what goes out tells nothing of the keys that the secret is spread into") {
  // The transaction layer hashes with the numbers that its secret yields: were the tokens made of
  // the same numbers, everybody could foresee tags and make keys collide.
  Fixture fixture;
  std::string wire;
  for (int i = 0; i < 20; ++i) {
    REQUIRE_FALSE(fixture.agent.send(to_bob(), 0, nullptr));
    wire += fixture.last();
  }
  Random of_secret(key_of(1));
  for (int i = 0; i < 100; ++i) {
    char token[12];
    of_secret.write_token(token, sizeof token);
    CHECK(wire.find(std::string(token, sizeof token)) == std::string::npos);
  }
}

TEST_CASE("requests with one Call-ID have one From tag, as registrations and retries must") {
  Fixture fixture;
  Outgoing outgoing = to_bob();
  outgoing.call_id = "a-registration@192.0.2.1";
  REQUIRE_FALSE(fixture.agent.send(outgoing, 0, nullptr));
  const Message first = parsed(fixture.last());
  REQUIRE_FALSE(fixture.agent.send(outgoing, 0, nullptr));
  const Message second = parsed(fixture.last());
  CHECK(first.call_id() == "a-registration@192.0.2.1");
  CHECK(second.call_id() == first.call_id());
  CHECK(second.from()->tag() == first.from()->tag());
  CHECK(second.cseq()->number == first.cseq()->number + 1);
  CHECK(second.top_via()->branch != first.top_via()->branch);
}

TEST_CASE("a body goes out octet for octet") {
  std::string all_octets;
  for (int i = 0; i < 256; ++i) all_octets.push_back(static_cast<char>(i));
  const std::string bodies[] = {"",
                                "\r\n",
                                "\r\n\r\nBYE sip:x SIP/2.0\r\n\r\n",
                                std::string("a\0b", 3),
                                "Gr\xc3\xbc\xc3\x9f\x65 \xf0\x9f\x99\x82",
                                all_octets,
                                std::string(60000, 'x')};
  for (const std::string& body : bodies) {
    Fixture fixture;
    Outgoing outgoing = to_bob();
    outgoing.body = body;
    REQUIRE_FALSE(fixture.agent.send(outgoing, 0, nullptr));
    const Message message = parsed(fixture.last());
    CHECK(message.body() == body);
    CHECK(message.content_length() == body.size());
    CHECK(message.has(HeaderId::content_type) == !body.empty());
  }
}

TEST_CASE("method, Request-URI, content type and further headers are as they are asked for") {
  Fixture fixture;
  Outgoing outgoing;
  outgoing.method = "REGISTER";
  outgoing.to = outgoing.from = "sip:alice@example.org";
  outgoing.request_uri = "sip:192.0.2.9:5070";
  outgoing.headers = {{"Contact", "<sip:alice@192.0.2.1>"}, {"Expires", "600"}, {"X-Y", ""}};
  REQUIRE_FALSE(fixture.agent.send(outgoing, 0, nullptr));
  CHECK(fixture.wire.sent[0].flow.remote == parse_socket_address("192.0.2.9:5070").value());
  const Message message = parsed(fixture.last());
  CHECK(message.method() == Method::register_);
  CHECK(message.request_uri_text() == "sip:192.0.2.9:5070");
  CHECK(message.header(HeaderId::contact) == "<sip:alice@192.0.2.1>");
  CHECK(message.header(HeaderId::expires) == "600");
  CHECK(message.header("X-Y") == "");

  outgoing = to_bob();
  outgoing.content_type = "application/im-iscomposing+xml";
  REQUIRE_FALSE(fixture.agent.send(outgoing, 0, nullptr));
  CHECK(parsed(fixture.last()).header(HeaderId::content_type) == "application/im-iscomposing+xml");
}

TEST_CASE("To and From are written in brackets, with the display name in quotes") {
  const struct {
    std::string given;
    std::string written;
  } rows[] = {
      {"sip:bob@192.0.2.7", "<sip:bob@192.0.2.7>"},
      {"<sip:bob@192.0.2.7>", "<sip:bob@192.0.2.7>"},
      {"sip:bob@192.0.2.7;x=1", "<sip:bob@192.0.2.7;x=1>"},  // not a parameter of the header
      {"Bob <sip:bob@192.0.2.7>", "\"Bob\" <sip:bob@192.0.2.7>"},
      {"Bob B.  <sip:bob@192.0.2.7>", "\"Bob B.\" <sip:bob@192.0.2.7>"},
      {"B\xc3\xb6"
       "b <sip:bob@192.0.2.7>",
       "\"B\xc3\xb6"
       "b\" <sip:bob@192.0.2.7>"},
      {"\"Bob \\\"the\\\" B\" <sip:bob@192.0.2.7>", "\"Bob \\\"the\\\" B\" <sip:bob@192.0.2.7>"},
      {"\"<sip:eve@192.0.2.6>\" <sip:bob@192.0.2.7>",
       "\"<sip:eve@192.0.2.6>\" <sip:bob@192.0.2.7>"},
  };
  for (const auto& row : rows) {
    CAPTURE(row.given);
    Fixture fixture;
    Outgoing outgoing = to_bob();
    outgoing.to = outgoing.from = row.given;
    REQUIRE_FALSE(fixture.agent.send(outgoing, 0, nullptr));
    const Message message = parsed(fixture.last());
    CHECK(message.header(HeaderId::to) == row.written);
    CHECK(message.header(HeaderId::from).substr(0, row.written.size() + 5) ==
          row.written + ";tag=");
    CHECK(message.request_uri()->user == "bob");
    CHECK(message.request_uri()->host == "192.0.2.7");
    CHECK(message.to()->tag().empty());
  }
}

TEST_CASE("whoever gives no From is anonymous") {
  Fixture fixture;
  Outgoing outgoing = to_bob();
  outgoing.from.clear();
  REQUIRE_FALSE(fixture.agent.send(outgoing, 0, nullptr));
  CHECK(parsed(fixture.last()).from()->uri.text == "sip:anonymous@anonymous.invalid");
}

TEST_CASE("a request goes where its Request-URI says, or to the next hop that is given") {
  const struct {
    std::string uri;
    const char* next_hop;  ///< null for none
    Transport transport;
    const char* remote;
  } rows[] = {
      {"sip:bob@192.0.2.7", nullptr, Transport::udp, "192.0.2.7:5060"},
      {"sip:192.0.2.7", nullptr, Transport::udp, "192.0.2.7:5060"},
      {"sip:bob@192.0.2.7:5070", nullptr, Transport::udp, "192.0.2.7:5070"},
      {"SIP:bob@192.0.2.7;transport=UDP", nullptr, Transport::udp, "192.0.2.7:5060"},
      {"sip:bob@192.0.2.7;transport=tcp", nullptr, Transport::tcp, "192.0.2.7:5060"},
      {"sip:bob@[2001:db8::7]", nullptr, Transport::udp, "[2001:db8::7]:5060"},
      {"sip:bob@[2001:db8::7]:5070;transport=tcp", nullptr, Transport::tcp, "[2001:db8::7]:5070"},
      {"sip:bob@example.org;maddr=192.0.2.8", nullptr, Transport::udp, "192.0.2.8:5060"},
      {"sip:bob@example.org", "192.0.2.9:5060", Transport::udp, "192.0.2.9:5060"},
      {"sip:bob@192.0.2.7;transport=tcp", "192.0.2.9:5060", Transport::udp, "192.0.2.9:5060"},
      {"tel:+358-555-1234567", "192.0.2.9:5060", Transport::udp, "192.0.2.9:5060"},
  };
  for (const auto& row : rows) {
    CAPTURE(row.uri);
    Fixture fixture;
    Outgoing outgoing = to_bob();
    outgoing.to = row.uri;
    if (row.next_hop != nullptr) outgoing.next_hop = flow_from(row.next_hop);
    REQUIRE_FALSE(fixture.agent.send(outgoing, 0, nullptr));
    CHECK(fixture.wire.sent[0].flow == flow_from(row.remote, row.transport));
    const Message message = parsed(fixture.last());
    CHECK(message.request_uri_text() == row.uri);
    CHECK(message.top_via()->transport == transport_name(row.transport));
  }
}

TEST_CASE("a large request goes over TCP, asked for or not, and says so in its Via") {
  for (const char* parameter : {"", ";transport=udp"}) {
    for (std::size_t size : {std::size_t{100}, std::size_t{1300}}) {
      CAPTURE(parameter);
      CAPTURE(size);
      Fixture fixture;
      Outgoing outgoing = to_bob();
      outgoing.to += parameter;
      outgoing.body.assign(size, 'x');
      REQUIRE_FALSE(fixture.agent.send(outgoing, 0, nullptr));
      REQUIRE(fixture.wire.sent.size() == 1);
      const bool by_tcp = size > 1000;
      CHECK(fixture.wire.sent[0].flow.transport == (by_tcp ? Transport::tcp : Transport::udp));
      CHECK(fixture.wire.sent[0].flow.socket == (by_tcp ? tcp_socket : udp_socket));
      CHECK(parsed(fixture.last()).top_via()->transport == (by_tcp ? "TCP" : "UDP"));
    }
  }
}

TEST_CASE("a large request stays on the socket it is given, unless there is a TCP connection") {
  for (bool has_stream : {false, true}) {
    Fixture fixture;
    fixture.wire.has_stream = has_stream;
    Outgoing outgoing = to_bob();
    outgoing.body.assign(1300, 'x');
    outgoing.next_hop = flow_from("192.0.2.9:5060");
    REQUIRE_FALSE(fixture.agent.send(outgoing, 0, nullptr));
    CHECK(fixture.wire.sent[0].flow ==
          flow_from("192.0.2.9:5060", has_stream ? Transport::tcp : Transport::udp));
  }
}

TEST_CASE("a large request goes over UDP where no TCP connection could be made") {
  Told told;
  Fixture fixture;
  Outgoing outgoing = to_bob();
  outgoing.body.assign(1300, 'x');
  SUBCASE("as is said at once") { fixture.wire.has_no_tcp = true; }
  SUBCASE("as is said later") {}
  REQUIRE_FALSE(fixture.agent.send(outgoing, 0, told.note()));
  if (!fixture.wire.has_no_tcp) {
    CHECK(fixture.wire.sent.back().flow.transport == Transport::tcp);
    fixture.agent.connection_failed(tcp_socket, {ErrorCode::network, -111}, 10);
  }
  const Message message = parsed(fixture.last());
  CHECK(fixture.wire.sent.back().flow.transport == Transport::udp);
  CHECK(message.top_via()->transport == "UDP");
  CHECK(message.body() == outgoing.body);
  CHECK(told.outcomes.empty());
  fixture.receive(answer_to(fixture.last(), 200), 20);
  REQUIRE(told.outcomes.size() == 1);
  CHECK(told.outcomes[0].code == 200);
}

TEST_CASE("a large request whose connection broke is not sent again: it may have arrived") {
  Told told;
  Fixture fixture;
  Outgoing outgoing = to_bob();
  outgoing.body.assign(1300, 'x');
  REQUIRE_FALSE(fixture.agent.send(outgoing, 0, told.note()));
  fixture.agent.connection_closed(tcp_socket, {ErrorCode::network, -104}, 10);
  CHECK(fixture.wire.sent.size() == 1);
  REQUIRE(told.outcomes.size() == 1);
  CHECK(told.outcomes[0].error.place == -104);
}

TEST_CASE("what asks for TCP never goes over UDP") {
  Told told;
  Fixture fixture;
  Outgoing outgoing = to_bob();
  outgoing.to += ";transport=tcp";
  REQUIRE_FALSE(fixture.agent.send(outgoing, 0, told.note()));
  fixture.agent.connection_failed(tcp_socket, {ErrorCode::network, -111}, 10);
  CHECK(fixture.wire.sent.size() == 1);
  CHECK(told.outcomes.size() == 1);
}

TEST_CASE("an outbound proxy takes what is for anybody, by address or by tel URI") {
  for (const char* to : {"sip:bob@example.org", "sip:bob@192.0.2.7", "tel:+358-555-1234567"}) {
    CAPTURE(to);
    Fixture fixture;
    Outgoing outgoing = to_bob();
    outgoing.to = to;
    outgoing.proxy = "sip:192.0.2.9:5070;transport=tcp";
    REQUIRE_FALSE(fixture.agent.send(outgoing, 0, nullptr));
    CHECK(fixture.wire.sent[0].flow == flow_from("192.0.2.9:5070", Transport::tcp));
    CHECK(parsed(fixture.last()).request_uri_text() == to);
  }
}

TEST_CASE("a Contact names where the agent is reached the way the request goes") {
  for (bool by_tcp : {false, true}) {
    Fixture fixture;
    Outgoing outgoing;
    outgoing.method = "REGISTER";
    outgoing.to = outgoing.from = "sip:alice@example.org";
    outgoing.request_uri = by_tcp ? "sip:192.0.2.9;transport=tcp" : "sip:192.0.2.9";
    outgoing.contact_user = "al%20ice";
    REQUIRE_FALSE(fixture.agent.send(outgoing, 0, nullptr));
    CHECK(
        parsed(fixture.last()).header(HeaderId::contact) ==
        (by_tcp ? "<sip:al%20ice@192.0.2.1:5060;transport=tcp>" : "<sip:al%20ice@192.0.2.1:5060>"));
  }
}

// ---- what does not go out -----------------------------------------------------------------------

TEST_CASE("what cannot be sent is refused at once, with nothing sent and no callback") {
  const struct {
    std::string what;
    void (*change)(Outgoing&);
    ErrorCode expected;
  } rows[] = {
      {"no recipient", [](Outgoing& o) { o.to = ""; }, ErrorCode::bad_uri},
      {"no URI", [](Outgoing& o) { o.to = "bob"; }, ErrorCode::bad_uri},
      {"no host", [](Outgoing& o) { o.to = "sip:"; }, ErrorCode::bad_host},
      {"no user", [](Outgoing& o) { o.to = "sip:@192.0.2.7"; }, ErrorCode::bad_uri},
      {"a blank", [](Outgoing& o) { o.to = "sip:bob b@192.0.2.7"; }, ErrorCode::bad_uri},
      {"a port too large", [](Outgoing& o) { o.to += ":65536"; }, ErrorCode::bad_port},
      {"an escape", [](Outgoing& o) { o.to = "sip:b%4@192.0.2.7"; }, ErrorCode::bad_escape},
      {"no closing bracket", [](Outgoing& o) { o.to = "<sip:bob@192.0.2.7"; },
       ErrorCode::bad_name_addr},
      {"two URIs", [](Outgoing& o) { o.to = "<sip:bob@192.0.2.7>, <sip:eve@192.0.2.6>"; },
       ErrorCode::bad_parameter},
      {"a tag", [](Outgoing& o) { o.to = "<sip:bob@192.0.2.7>;tag=x"; }, ErrorCode::bad_name_addr},
      {"a From with a tag", [](Outgoing& o) { o.from = "<sip:a@example.org>;tag=x"; },
       ErrorCode::bad_name_addr},
      {"a From that is none", [](Outgoing& o) { o.from = "alice"; }, ErrorCode::bad_uri},
      {"a Request-URI that is none", [](Outgoing& o) { o.request_uri = "bob"; },
       ErrorCode::bad_uri},
      {"a Request-URI that is none, for a next hop",
       [](Outgoing& o) {
         o.request_uri = "sip:b ob@x";
         o.next_hop = flow_from("192.0.2.9:5060");
       },
       ErrorCode::bad_uri},
      {"a Request-URI in brackets", [](Outgoing& o) { o.request_uri = "<sip:bob@192.0.2.7>"; },
       ErrorCode::bad_uri},
      {"headers in the URI", [](Outgoing& o) { o.to += "?Subject=x"; }, ErrorCode::bad_uri},
      {"a method in the URI", [](Outgoing& o) { o.to += ";method=BYE"; }, ErrorCode::bad_uri},
      {"sips", [](Outgoing& o) { o.to = "sips:bob@192.0.2.7"; }, ErrorCode::unsupported_scheme},
      {"sips by a next hop",
       [](Outgoing& o) {
         o.to = "sips:bob@example.org";
         o.next_hop = flow_from("192.0.2.9:5060");
       },
       ErrorCode::unsupported_scheme},
      {"tel", [](Outgoing& o) { o.to = "tel:+15551234"; }, ErrorCode::unsupported_scheme},
      {"mailto", [](Outgoing& o) { o.to = "mailto:bob@example.org"; },
       ErrorCode::unsupported_scheme},
      {"a name for a host", [](Outgoing& o) { o.to = "sip:bob@example.org"; },
       ErrorCode::bad_address},
      {"a bad IPv6 address", [](Outgoing& o) { o.to = "sip:bob@[::1::]"; }, ErrorCode::bad_host},
      {"a proxy that is none", [](Outgoing& o) { o.proxy = "proxy"; }, ErrorCode::bad_uri},
      {"a name for a proxy", [](Outgoing& o) { o.proxy = "sip:example.org"; },
       ErrorCode::bad_address},
      {"a proxy over TLS", [](Outgoing& o) { o.proxy = "sips:192.0.2.9"; },
       ErrorCode::unsupported_scheme},
      {"a name for maddr", [](Outgoing& o) { o.to += ";maddr=example.org"; },
       ErrorCode::bad_address},
      {"TLS", [](Outgoing& o) { o.to += ";transport=tls"; }, ErrorCode::unsupported_transport},
      {"SCTP", [](Outgoing& o) { o.to += ";transport=sctp"; }, ErrorCode::unsupported_transport},
      {"no method", [](Outgoing& o) { o.method = ""; }, ErrorCode::bad_method},
      {"two methods", [](Outgoing& o) { o.method = "MESSAGE BYE"; }, ErrorCode::bad_method},
      {"INVITE", [](Outgoing& o) { o.method = "INVITE"; }, ErrorCode::bad_argument},
      {"ACK", [](Outgoing& o) { o.method = "ACK"; }, ErrorCode::bad_argument},
      {"a Call-ID with a blank", [](Outgoing& o) { o.call_id = "a b"; }, ErrorCode::bad_call_id},
      {"a body without type", [](Outgoing& o) { o.content_type = ""; }, ErrorCode::bad_media_type},
      {"a type that is none", [](Outgoing& o) { o.content_type = "text"; },
       ErrorCode::bad_media_type},
      {"a header without name",
       [](Outgoing& o) {
         o.headers = {{"", "x"}};
       },
       ErrorCode::bad_token},
      {"a header that continues the one before",
       [](Outgoing& o) {
         o.headers = {{" X", "x"}};
       },
       ErrorCode::bad_token},
      {"two headers in one",
       [](Outgoing& o) {
         o.headers = {{"X: y", "x"}};
       },
       ErrorCode::bad_token},
      {"a second Via",
       [](Outgoing& o) {
         o.headers = {{"v", "SIP/2.0/UDP 192.0.2.6"}};
       },
       ErrorCode::duplicate_header},
      {"a second From",
       [](Outgoing& o) {
         o.headers = {{"FROM", "<sip:eve@example.org>"}};
       },
       ErrorCode::duplicate_header},
      {"a second length",
       [](Outgoing& o) {
         o.headers = {{"L", "0"}};
       },
       ErrorCode::duplicate_header},
      {"a Contact",
       [](Outgoing& o) {
         o.headers = {{"m", "<sip:alice@192.0.2.1>"}};
       },
       ErrorCode::bad_argument},
      {"a contact's user in a MESSAGE", [](Outgoing& o) { o.contact_user = "alice"; },
       ErrorCode::bad_argument},
      {"a contact's user that is none",
       [](Outgoing& o) {
         o.method = "REGISTER";
         o.contact_user = "a b";
       },
       ErrorCode::bad_uri},
      {"a contact's user that goes beyond the user",
       [](Outgoing& o) {
         o.method = "REGISTER";
         o.contact_user = "a@192.0.2.6>,<sip:b";
       },
       ErrorCode::bad_uri},
      {"two contacts",
       [](Outgoing& o) {
         o.method = "REGISTER";
         o.contact_user = "alice";
         o.headers = {{"m", "<sip:alice@192.0.2.1>"}};
       },
       ErrorCode::duplicate_header},
      {"a body too long", [](Outgoing& o) { o.body.assign(65535, 'x'); }, ErrorCode::too_large},
      {"a body much too long", [](Outgoing& o) { o.body.assign(1000000, 'x'); },
       ErrorCode::too_large},
      {"a URI too long",
       [](Outgoing& o) { o.to = "sip:" + std::string(66000, 'b') + "@192.0.2.7"; },
       ErrorCode::too_large},
  };
  for (const auto& row : rows) {
    CAPTURE(row.what);
    Told told;
    Fixture fixture;
    Outgoing outgoing = to_bob();
    row.change(outgoing);
    CHECK(to_string(fixture.agent.send(outgoing, 0, told.note())) == error_name(row.expected));
    CHECK(fixture.wire.sent.empty());
    CHECK(fixture.agent.waiting() == 0);
    fixture.pass(100000);
    fixture.agent.close();
    CHECK(told.outcomes.empty());
  }
}

TEST_CASE("CR, LF and NUL get into no field but the body") {
  const struct {
    std::string name;
    std::string& (*field)(Outgoing&);
  } fields[] = {
      {"to", [](Outgoing& o) -> std::string& { return o.to; }},
      {"from", [](Outgoing& o) -> std::string& { return o.from; }},
      {"request_uri", [](Outgoing& o) -> std::string& { return o.request_uri; }},
      {"method", [](Outgoing& o) -> std::string& { return o.method; }},
      {"content_type", [](Outgoing& o) -> std::string& { return o.content_type; }},
      {"call_id", [](Outgoing& o) -> std::string& { return o.call_id; }},
      {"proxy", [](Outgoing& o) -> std::string& { return o.proxy; }},
      {"contact user", [](Outgoing& o) -> std::string& { return o.contact_user; }},
      {"header name", [](Outgoing& o) -> std::string& { return o.headers[0].first; }},
      {"header value", [](Outgoing& o) -> std::string& { return o.headers[0].second; }},
  };
  const std::string injected[] = {"\r", "\n", std::string(1, '\0'), "\r\nX-Evil: yes", "\r\n "};
  for (const auto& field : fields) {
    for (const std::string& octets : injected) {
      for (bool inside : {false, true}) {
        CAPTURE(field.name);
        CAPTURE(octets);
        Fixture fixture;
        Outgoing outgoing;
        outgoing.to = "\"Bob\" <sip:bob@192.0.2.7>";
        outgoing.from = "\"Alice\" <sip:alice@example.org>";
        outgoing.request_uri = "sip:bob@192.0.2.7";
        outgoing.call_id = "one";
        outgoing.method = "REGISTER";
        outgoing.proxy = "sip:192.0.2.9";
        outgoing.contact_user = "alice";
        outgoing.body = "x";
        outgoing.headers = {{"X-Y", "z"}};
        std::string& text = field.field(outgoing);
        text.insert(inside ? text.size() / 2 : text.size(), octets);
        CHECK(fixture.agent.send(outgoing, 0, nullptr));
        CHECK(fixture.wire.sent.empty());
      }
    }
  }
}

TEST_CASE("an error of the sink while sending is returned, and no callback follows") {
  for (bool no_way : {false, true}) {
    Told told;
    Fixture fixture;
    (no_way ? fixture.wire.no_way : fixture.wire.broken) = {ErrorCode::network, -101};
    const Error error = fixture.agent.send(to_bob(), 0, told.note());
    CHECK(error.code == ErrorCode::network);
    CHECK(error.place == -101);
    CHECK(fixture.agent.waiting() == 0);
    fixture.pass(100000);
    CHECK(told.outcomes.empty());
  }
}

TEST_CASE("beyond its limit an agent refuses to send") {
  Told told;
  Wire wire;
  AgentOptions options;
  options.transactions.max_transactions = 3;
  Agent agent(options, wire, key_of(1));
  for (int i = 0; i < 3; ++i) CHECK_FALSE(agent.send(to_bob(), 0, told.note()));
  CHECK(agent.send(to_bob(), 0, told.note()).code == ErrorCode::limit_reached);
  CHECK(agent.waiting() == 3);
  agent.close();
  CHECK(told.outcomes.size() == 3);
}

// ---- exactly one callback -----------------------------------------------------------------------

TEST_CASE("the final answer is told once, with code and phrase, however often it comes") {
  Fixture fixture;
  int calls = 0;
  REQUIRE_FALSE(fixture.agent.send(to_bob(), 0, [&](const Outcome& outcome) {
    ++calls;
    CHECK_FALSE(outcome.error);
    CHECK(outcome.code == 486);
    CHECK(outcome.reason == "Not now");
    CHECK_FALSE(outcome.ok());
    REQUIRE(outcome.response != nullptr);
    CHECK(outcome.response->to()->tag() == "its-tag");
  }));
  const std::string request = fixture.last();
  fixture.receive(answer_to(request, 100), 10);
  fixture.receive(answer_to(request, 183), 20);
  CHECK(calls == 0);
  CHECK(fixture.agent.waiting() == 1);
  fixture.receive(answer_to(request, 486, "Not now"), 30);
  CHECK(calls == 1);
  CHECK(fixture.agent.waiting() == 0);
  fixture.receive(answer_to(request, 486, "Not now"), 40);
  fixture.receive(answer_to(request, 200), 50);
  fixture.pass(100000);
  fixture.receive(answer_to(request, 200), 100001);
  fixture.agent.close();
  CHECK(calls == 1);
  CHECK_FALSE(fixture.agent.next_deadline());
  CHECK(fixture.agent.kept_size() == 0);
}

TEST_CASE("every 2xx means that it was accepted, and nothing else does") {
  for (int code : {200, 202, 299, 300, 302, 400, 404, 480, 499, 500, 503, 600, 699}) {
    CAPTURE(code);
    Told told;
    Fixture fixture;
    REQUIRE_FALSE(fixture.agent.send(to_bob(), 0, told.note()));
    fixture.receive(answer_to(fixture.last(), code), 10);
    REQUIRE(told.outcomes.size() == 1);
    CHECK(told.outcomes[0].code == code);
    CHECK(told.outcomes[0].ok() == (code < 300));
  }
}

TEST_CASE("without an answer the callback is told of the timeout once, after 64*T1") {
  Told told;
  Fixture fixture;
  REQUIRE_FALSE(fixture.agent.send(to_bob(), 1000, told.note()));
  const std::string request = fixture.last();
  fixture.pass(1000 + timer_f_ms - 1);
  CHECK(told.outcomes.empty());
  CHECK(fixture.wire.sent.size() == 11);
  for (const auto& sent : fixture.wire.sent) CHECK(sent.bytes == request);
  fixture.pass(1000 + timer_f_ms);
  REQUIRE(told.outcomes.size() == 1);
  CHECK(told.outcomes[0].error.code == ErrorCode::timeout);
  CHECK(told.outcomes[0].code == 0);
  CHECK_FALSE(told.outcomes[0].ok());
  fixture.receive(answer_to(request, 200), 1000 + timer_f_ms + 1);  // too late
  fixture.pass(200000);
  CHECK(told.outcomes.size() == 1);
  CHECK(fixture.agent.transactions() == 0);
}

TEST_CASE("a TCP connection that closes ends the requests on it, once, and no others") {
  Told told;
  Told other;
  Fixture fixture;
  Outgoing outgoing = to_bob();
  outgoing.to += ";transport=tcp";
  for (int i = 0; i < 3; ++i) REQUIRE_FALSE(fixture.agent.send(outgoing, 0, told.note()));
  REQUIRE_FALSE(fixture.agent.send(to_bob(), 0, other.note()));
  fixture.agent.connection_closed(tcp_socket + 1, {ErrorCode::network, -1}, 10);
  CHECK(told.outcomes.empty());
  fixture.agent.connection_closed(tcp_socket, {ErrorCode::network, -104}, 20);
  REQUIRE(told.outcomes.size() == 3);
  CHECK(told.outcomes[0].error.code == ErrorCode::network);
  CHECK(told.outcomes[0].error.place == -104);
  fixture.agent.connection_closed(tcp_socket, {ErrorCode::network, -104}, 30);
  fixture.pass(100000);
  CHECK(told.outcomes.size() == 3);
  CHECK(other.outcomes.size() == 1);
}

TEST_CASE("a socket that fails while a request is repeated ends it, once") {
  Told told;
  Fixture fixture;
  REQUIRE_FALSE(fixture.agent.send(to_bob(), 0, told.note()));
  fixture.wire.broken = ErrorCode::network;
  fixture.pass(100000);
  REQUIRE(told.outcomes.size() == 1);
  CHECK(told.outcomes[0].error.code == ErrorCode::network);
}

TEST_CASE("closing tells everybody who waits, once, and ends everything else") {
  for (bool by_destruction : {false, true}) {
    CAPTURE(by_destruction);
    Told told;
    auto fixture = std::make_unique<Fixture>();
    for (int i = 0; i < 5; ++i) REQUIRE_FALSE(fixture->agent.send(to_bob(), 0, told.note()));
    fixture->receive(answer_to(fixture->last(), 200), 10);
    fixture->receive(Incoming().text(), 20);
    CHECK(told.outcomes.size() == 1);
    if (by_destruction) {
      fixture.reset();
    } else {
      fixture->agent.close();
      fixture->agent.close();
      CHECK(fixture->agent.waiting() == 0);
      CHECK(fixture->agent.transactions() == 0);
      CHECK(fixture->agent.kept_size() == 0);
      CHECK_FALSE(fixture->agent.next_deadline());
      CHECK(fixture->agent.send(to_bob(), 30, told.note()).code == ErrorCode::closed);
    }
    REQUIRE(told.outcomes.size() == 5);
    for (std::size_t i = 1; i < 5; ++i) {
      CHECK(told.outcomes[i].error.code == ErrorCode::closed);
    }
  }
}

TEST_CASE("callbacks may send, also when the agent closes") {
  Fixture fixture;
  int calls = 0;
  Error when_closed;
  REQUIRE_FALSE(fixture.agent.send(to_bob(), 0, [&](const Outcome& first) {
    CHECK(first.ok());
    ++calls;
    REQUIRE_FALSE(fixture.agent.send(to_bob(), 10, [&](const Outcome& second) {
      CHECK(second.error.code == ErrorCode::timeout);
      ++calls;
      REQUIRE_FALSE(fixture.agent.send(to_bob(), 40000, [&](const Outcome& third) {
        CHECK(third.error.code == ErrorCode::closed);
        ++calls;
        when_closed = fixture.agent.send(to_bob(), 40000, [&](const Outcome&) { ++calls; });
      }));
    }));
  }));
  fixture.receive(answer_to(fixture.last(), 200), 10);
  CHECK(calls == 1);
  fixture.pass(40000);
  CHECK(calls == 2);
  fixture.agent.close();
  CHECK(calls == 3);
  CHECK(when_closed.code == ErrorCode::closed);
}

TEST_CASE("closing is legal inside every callback") {
  SUBCASE("of an answer") {
    Told told;
    Fixture fixture;
    REQUIRE_FALSE(fixture.agent.send(to_bob(), 0, told.note()));
    REQUIRE_FALSE(fixture.agent.send(to_bob(), 0, [&](const Outcome&) { fixture.agent.close(); }));
    fixture.receive(answer_to(fixture.last(), 200), 10);
    CHECK(told.outcomes.size() == 1);
    CHECK(fixture.agent.transactions() == 0);
  }
  SUBCASE("of a timeout, while others are due") {
    Fixture fixture;
    int calls = 0;
    for (int i = 0; i < 10; ++i) {
      REQUIRE_FALSE(fixture.agent.send(to_bob(), 0, [&](const Outcome&) {
        ++calls;
        fixture.agent.close();
      }));
    }
    fixture.pass(100000);
    CHECK(calls == 10);
  }
  SUBCASE("of a connection that closes") {
    Fixture fixture;
    int calls = 0;
    Outgoing outgoing = to_bob();
    outgoing.to += ";transport=tcp";
    for (int i = 0; i < 10; ++i) {
      REQUIRE_FALSE(fixture.agent.send(outgoing, 0, [&](const Outcome&) {
        ++calls;
        fixture.agent.close();
      }));
    }
    fixture.agent.connection_closed(tcp_socket, ErrorCode::network, 10);
    CHECK(calls == 10);
    CHECK(fixture.agent.transactions() == 0);
  }
  SUBCASE("of a request") {
    Fixture fixture;
    Error answered;
    fixture.agent.on_message([&](const MessageView&, const Flow&, ServerTransaction server) {
      fixture.agent.close();
      answered = fixture.agent.reply(server, 200);
    });
    fixture.receive(Incoming().text());
    CHECK(answered.code == ErrorCode::gone);
    CHECK(fixture.wire.sent.empty());
  }
}

// ---- what comes in ------------------------------------------------------------------------------

TEST_CASE("a message is handed over once and its answer repeated to those who repeat it") {
  Fixture fixture;
  int calls = 0;
  fixture.agent.on_message(
      [&](const MessageView& message, const Flow& from, ServerTransaction server) {
        ++calls;
        CHECK(message.body() == "Hello");
        CHECK(from == flow_from("192.0.2.7:5060"));
        CHECK_FALSE(fixture.agent.reply(server, 200));
      });
  for (int i = 0; i < 5; ++i) fixture.receive(Incoming().text(), 100U * static_cast<unsigned>(i));
  CHECK(calls == 1);
  REQUIRE(fixture.wire.sent.size() == 5);
  for (const auto& sent : fixture.wire.sent) CHECK(sent.bytes == fixture.last());

  const Message answer = parsed(fixture.last());
  CHECK(answer.status_code() == 200);
  CHECK(answer.reason_phrase() == "OK");
  CHECK_FALSE(answer.to()->tag().empty());
  CHECK(answer.body().empty());                // RFC 3428 7
  CHECK_FALSE(answer.has(HeaderId::contact));  // the same
  CHECK(answer.header(HeaderId::server) == "sipmsg/" SIPMSG_VERSION);
  fixture.pass(100000);
  CHECK(fixture.agent.transactions() == 0);
  CHECK_FALSE(fixture.agent.next_deadline());
}

TEST_CASE("the To tag of a dialog we do not know stays the only one") {
  Fixture fixture;
  fixture.agent.on_message([&](const MessageView&, const Flow&, ServerTransaction server) {
    CHECK_FALSE(fixture.agent.reply(server, 200));
  });
  Incoming incoming;
  incoming.to = "<sip:alice@example.org>;tag=of-a-call";
  fixture.receive(incoming.text());
  CHECK(parsed(fixture.last()).header(HeaderId::to) == incoming.to);
}

TEST_CASE("an answer has the code and the phrase that were asked for, or is refused") {
  const struct {
    int code;
    std::string phrase;
    ErrorCode expected;
    const char* written;  ///< the phrase on the wire
  } rows[] = {
      {200, "", ErrorCode::none, "OK"},
      {202, "", ErrorCode::none, "Accepted"},
      {200, "Danke sch\xc3\xb6n", ErrorCode::none, "Danke sch\xc3\xb6n"},
      {299, "", ErrorCode::none, "OK"},
      {404, "", ErrorCode::none, "Not Found"},
      {415, "", ErrorCode::none, "Unsupported Media Type"},
      {699, "Never", ErrorCode::none, "Never"},
      {0, "", ErrorCode::bad_argument, ""},
      {-1, "", ErrorCode::bad_argument, ""},
      {100, "", ErrorCode::bad_argument, ""},  // RFC 4320
      {180, "", ErrorCode::bad_argument, ""},
      {199, "", ErrorCode::bad_argument, ""},
      {408, "", ErrorCode::bad_argument, ""},  // RFC 4320
      {700, "", ErrorCode::bad_argument, ""},
      {200, "OK\r\nX-Evil: yes", ErrorCode::forbidden_octet, ""},
  };
  for (const auto& row : rows) {
    CAPTURE(row.code);
    CAPTURE(row.phrase);
    Fixture fixture;
    fixture.keep_requests();
    fixture.receive(Incoming().text());
    REQUIRE(fixture.open.size() == 1);
    CHECK(to_string(fixture.agent.reply(fixture.open[0], row.code, row.phrase)) ==
          error_name(row.expected));
    if (row.expected == ErrorCode::none) {
      CHECK(parsed(fixture.last()).status_code() == row.code);
      CHECK(parsed(fixture.last()).reason_phrase() == row.written);
    } else {
      CHECK(fixture.wire.sent.empty());
      CHECK_FALSE(fixture.agent.reply(fixture.open[0], 200));  // it is open still
    }
    CHECK(fixture.agent.reply(fixture.open[0], 200).code == ErrorCode::gone);
  }
}

TEST_CASE("an answer may come later, but not after the sender has given up") {
  Fixture fixture;
  fixture.keep_requests();
  fixture.receive(Incoming().text(), 0);
  fixture.receive(Incoming().text(), 500);
  CHECK(fixture.wire.sent.empty());
  CHECK_FALSE(fixture.agent.reply(fixture.open[0], 200, {}, timer_f_ms - 1));
  CHECK(fixture.wire.sent.size() == 1);

  Incoming second;
  second.branch += "2";
  second.call_id += "2";
  fixture.receive(second.text(), 100000);
  REQUIRE(fixture.open.size() == 2);
  CHECK(fixture.agent.reply(fixture.open[1], 200, {}, 100000 + timer_f_ms).code == ErrorCode::gone);
  fixture.pass(200000);
  CHECK(fixture.agent.reply(fixture.open[1], 200, {}, 200000).code == ErrorCode::gone);
  CHECK(fixture.agent.reply(ServerTransaction(), 200).code == ErrorCode::gone);
  CHECK(fixture.wire.sent.size() == 1);
}

TEST_CASE("a late answer is kept for 64*T1 from when it was given") {
  Fixture fixture;
  fixture.keep_requests();
  fixture.receive(Incoming().text(), 0);
  CHECK_FALSE(fixture.agent.reply(fixture.open[0], 200, {}, 20000));
  fixture.pass(20000 + timer_f_ms - 1);
  fixture.receive(Incoming().text(), 20000 + timer_f_ms - 1);
  CHECK(fixture.wire.sent.size() == 2);
  CHECK(fixture.open.size() == 1);
}

TEST_CASE("a handler may replace itself, or take itself away, while it runs") {
  Fixture fixture;
  std::string calls;
  fixture.agent.on_message(
      [&, kept = std::string("first ")](const MessageView&, const Flow&, ServerTransaction server) {
        fixture.agent.on_message([&](const MessageView&, const Flow&, ServerTransaction again) {
          calls += "second ";
          fixture.agent.on_message(nullptr);
          CHECK_FALSE(fixture.agent.reply(again, 200));
        });
        calls += kept;  // what it captured is still there
        CHECK_FALSE(fixture.agent.reply(server, 200));
      });
  for (const char* number : {"1", "2", "3"}) {
    Incoming incoming;
    incoming.branch += number;
    incoming.call_id += number;
    fixture.receive(incoming.text());
  }
  CHECK(calls == "first second ");
  CHECK(parsed(fixture.last()).status_code() == 405);
}

TEST_CASE("a handler keeps what it changes in itself from message to message") {
  Fixture fixture;
  std::vector<int> counts;
  fixture.agent.on_message(
      [&counts, count = 0](const MessageView&, const Flow&, ServerTransaction) mutable {
        counts.push_back(++count);
      });
  for (const char* number : {"1", "2", "3"}) {
    Incoming incoming;
    incoming.branch += number;
    incoming.call_id += number;
    fixture.receive(incoming.text());
  }
  CHECK(counts == std::vector<int>{1, 2, 3});
}

TEST_CASE("a handler may send") {
  Told told;
  Fixture fixture;
  fixture.agent.on_message(
      [&](const MessageView& message, const Flow& from, ServerTransaction server) {
        CHECK_FALSE(fixture.agent.reply(server, 200));
        Outgoing echo;
        echo.to = "sip:bob@192.0.2.7";
        echo.body = message.body();
        echo.next_hop = from;
        CHECK_FALSE(fixture.agent.send(echo, 0, told.note()));
        CHECK(message.body() == "Hello");
      });
  fixture.receive(Incoming().text());
  REQUIRE(fixture.wire.sent.size() == 2);
  CHECK(parsed(fixture.last()).body() == "Hello");
}

TEST_CASE("what is not for a handler is answered as RFC 3261 8.2 has it") {
  const struct {
    std::string what;
    bool with_handler;
    void (*change)(Incoming&);
    int code;  ///< 0: handed over; -1: no answer
    const char* header;
    const char* value;
  } rows[] = {
      {"a message", true, [](Incoming&) {}, 0, nullptr, nullptr},
      {"a message nobody wants", false, [](Incoming&) {}, 405, "Allow", "OPTIONS"},
      {"OPTIONS", true, [](Incoming& i) { i.method = "OPTIONS"; }, 200, "Allow",
       "MESSAGE, OPTIONS"},
      {"OPTIONS tell what bodies are taken", true, [](Incoming& i) { i.method = "OPTIONS"; }, 200,
       "Accept", "*/*"},
      {"OPTIONS without handler", false, [](Incoming& i) { i.method = "OPTIONS"; }, 200, "Allow",
       "OPTIONS"},
      {"INVITE", true, [](Incoming& i) { i.method = "INVITE"; }, 501, "Allow", "MESSAGE, OPTIONS"},
      {"REGISTER", true, [](Incoming& i) { i.method = "REGISTER"; }, 501, "Allow",
       "MESSAGE, OPTIONS"},
      {"BYE", true, [](Incoming& i) { i.method = "BYE"; }, 501, nullptr, nullptr},
      {"PUBLISH", true, [](Incoming& i) { i.method = "PUBLISH"; }, 501, nullptr, nullptr},
      {"a method nobody knows", true, [](Incoming& i) { i.method = "SING"; }, 501, "Allow",
       "MESSAGE, OPTIONS"},
      {"message in lower case", true, [](Incoming& i) { i.method = "message"; }, 501, nullptr,
       nullptr},
      {"CANCEL of nothing", true, [](Incoming& i) { i.method = "CANCEL"; }, 481, nullptr, nullptr},
      {"ACK", true, [](Incoming& i) { i.method = "ACK"; }, -1, nullptr, nullptr},
      {"a sips URI", true, [](Incoming& i) { i.uri = "sips:alice@192.0.2.1"; }, 416, nullptr,
       nullptr},
      {"a tel URI", true, [](Incoming& i) { i.uri = "tel:+15551234"; }, 416, nullptr, nullptr},
      {"another URI", true, [](Incoming& i) { i.uri = "mailto:a@example.org"; }, 416, nullptr,
       nullptr},
      {"a tel URI in To alone", true, [](Incoming& i) { i.to = "<tel:+15551234>"; }, 0, nullptr,
       nullptr},
      {"any user", true, [](Incoming& i) { i.uri = "sip:nobody@192.0.2.1"; }, 0, nullptr, nullptr},
      {"an extension", true, [](Incoming& i) { i.more = "Require: 100rel, sec-agree\r\n"; }, 420,
       "Unsupported", "100rel, sec-agree"},
      {"OPTIONS with an extension", true,
       [](Incoming& i) {
         i.method = "OPTIONS";
         i.more = "Require: 100rel\r\n";
       },
       420, "Unsupported", "100rel"},
      {"CANCEL with an extension", true,
       [](Incoming& i) {
         i.method = "CANCEL";
         i.more = "Require: 100rel\r\n";
       },
       481, nullptr, nullptr},
      {"Proxy-Require, which is not for us", true,
       [](Incoming& i) { i.more = "Proxy-Require: 100rel\r\n"; }, 0, nullptr, nullptr},
      {"headers nobody knows", true, [](Incoming& i) { i.more = "X-Y: z\r\n"; }, 0, nullptr,
       nullptr},
      {"a CSeq that is none", true, [](Incoming& i) { i.cseq = "x"; }, 400, nullptr, nullptr},
  };
  for (const auto& row : rows) {
    CAPTURE(row.what);
    Fixture fixture;
    if (row.with_handler) fixture.keep_requests();
    Incoming incoming;
    row.change(incoming);
    fixture.receive(incoming.text());
    CHECK(fixture.open.size() == (row.code == 0 ? 1 : 0));
    if (row.code <= 0) {
      CHECK(fixture.wire.sent.empty());
      continue;
    }
    MessageView answer;
    const std::string bytes = fixture.last();
    REQUIRE_FALSE(answer.parse(bytes));
    CHECK(answer.status_code() == row.code);
    if (row.header != nullptr) CHECK(answer.header(std::string_view(row.header)) == row.value);
    fixture.pass(200000);
    CHECK(fixture.agent.transactions() == 0);
  }
}

TEST_CASE("405 and 501 from a handler say what is allowed") {
  for (int code : {405, 501}) {
    Fixture fixture;
    fixture.keep_requests();
    fixture.receive(Incoming().text());
    CHECK_FALSE(fixture.agent.reply(fixture.open[0], code));
    CHECK(parsed(fixture.last()).header(HeaderId::allow) == "MESSAGE, OPTIONS");
  }
}

TEST_CASE("an INVITE is refused, and both CANCEL and ACK find it") {
  Fixture fixture;
  Incoming invite;
  invite.method = "INVITE";
  fixture.receive(invite.text());
  CHECK(parsed(fixture.last()).status_code() == 501);
  const std::string tag(parsed(fixture.last()).to()->tag());
  Incoming cancel = invite;
  cancel.method = "CANCEL";
  fixture.receive(cancel.text(), 10);
  CHECK(parsed(fixture.last()).status_code() == 200);
  CHECK(parsed(fixture.last()).to()->tag() == tag);  // RFC 3261 9.2
  Incoming ack = invite;
  ack.method = "ACK";
  ack.to += ";tag=" + tag;
  const std::size_t before = fixture.wire.sent.size();
  fixture.receive(ack.text(), 20);
  fixture.pass(100000);
  CHECK(fixture.wire.sent.size() == before);
  CHECK(fixture.agent.transactions() == 0);
}

TEST_CASE("a request that comes by a second way is handed over once") {
  Fixture fixture;
  fixture.agent.on_message([&](const MessageView&, const Flow&, ServerTransaction server) {
    fixture.open.push_back(server);
    CHECK_FALSE(fixture.agent.reply(server, 200));
  });
  fixture.receive(Incoming().text(), 0);
  CHECK(parsed(fixture.last()).status_code() == 200);

  SUBCASE("from another proxy, and over TCP, with the same answer") {
    Incoming again;
    again.branch = "z9hG4bKtwo";
    fixture.receive(again.text(), 100, flow_from("192.0.2.8:5060"));
    CHECK(parsed(fixture.last()).status_code() == 200);
    CHECK(parsed(fixture.last()).top_via()->branch == "z9hG4bKtwo");
    again.branch = "z9hG4bKthree";
    fixture.receive(again.text(), 200, flow_from("192.0.2.7:5060", Transport::tcp));
    CHECK(parsed(fixture.last()).status_code() == 200);
    CHECK(fixture.wire.sent.back().flow.transport == Transport::tcp);
    CHECK(fixture.open.size() == 1);
  }
  SUBCASE("by a proxy that had forgotten it, too") {
    fixture.pass(2 * timer_f_ms);
    Incoming again;
    again.branch = "z9hG4bKtwo";
    fixture.receive(again.text(), 2 * timer_f_ms);
    CHECK(parsed(fixture.last()).status_code() == 200);
    CHECK(fixture.open.size() == 1);
  }
  SUBCASE("until nobody repeats it any more") {
    fixture.pass(100000);
    CHECK_FALSE(fixture.agent.next_deadline());
    Incoming again;
    again.branch = "z9hG4bKtwo";
    fixture.receive(again.text(), 100000);
    CHECK(fixture.open.size() == 2);
  }
  SUBCASE("and what differs is another message") {
    void (*changes[])(Incoming&) = {
        [](Incoming& i) { i.call_id = "two@example.org"; },
        [](Incoming& i) { i.cseq = "2"; },
        [](Incoming& i) { i.from = "<sip:bob@example.org>;tag=another"; },
        [](Incoming& i) { i.from = "<sip:carol@example.org>;tag=bobs-tag"; },
        [](Incoming& i) { i.body = "Hallo"; },
        [](Incoming& i) { i.to += ";tag=of-a-call"; },
    };
    std::size_t expected = 1;
    for (auto change : changes) {
      Incoming again;
      again.branch = "z9hG4bKdiffers" + std::to_string(expected);
      change(again);
      fixture.receive(again.text(), 100);
      CHECK(fixture.open.size() == ++expected);
    }
  }
}

TEST_CASE("a second way gets 482 while there is no answer, and then all of the first one's") {
  Fixture fixture;
  fixture.keep_requests();
  fixture.receive(Incoming().text(), 0);
  Incoming again;
  again.branch = "z9hG4bKtwo";
  fixture.receive(again.text(), 100);
  CHECK(parsed(fixture.last()).status_code() == 482);
  REQUIRE(fixture.open.size() == 1);
  REQUIRE_FALSE(fixture.agent.reply(fixture.open[0], 480, "Not now", {{"Retry-After", "5"}}, 200));
  again.branch = "z9hG4bKthree";
  fixture.receive(again.text(), 300);
  const Message answer = parsed(fixture.last());
  CHECK(answer.status_code() == 480);
  CHECK(answer.reason_phrase() == "Not now");
  CHECK(answer.header(HeaderId::retry_after) == "5");
  CHECK(fixture.open.size() == 1);
}

TEST_CASE("an answer that the socket refuses is kept for the retransmission") {
  Fixture fixture;
  fixture.keep_requests();
  fixture.receive(Incoming().text());
  fixture.wire.broken = ErrorCode::network;
  CHECK(fixture.agent.reply(fixture.open[0], 200).code == ErrorCode::network);
  fixture.wire.broken = {};
  CHECK(fixture.agent.reply(fixture.open[0], 200).code == ErrorCode::gone);
  fixture.receive(Incoming().text(), 500);
  CHECK(parsed(fixture.last()).status_code() == 200);
  CHECK(fixture.open.size() == 1);
}

TEST_CASE("an answer may carry headers, but none of those that are written here") {
  const struct {
    int code;
    Headers headers;
    ErrorCode expected;
  } rows[] = {
      {200, {{"X-Y", "z"}, {"Warning", "399 x \"y\""}}, ErrorCode::none},
      {302, {{"Contact", "<sip:bob@192.0.2.8>"}}, ErrorCode::none},
      {415, {{"Accept", "text/html"}}, ErrorCode::none},
      {405, {{"Allow", "OPTIONS"}}, ErrorCode::none},
      {200, {{"Contact", "<sip:bob@192.0.2.8>"}}, ErrorCode::bad_argument},  // RFC 3428 7
      {200, {{"Via", "SIP/2.0/UDP x"}}, ErrorCode::duplicate_header},
      {200, {{"l", "0"}}, ErrorCode::duplicate_header},
      {200, {{"Server", "x"}}, ErrorCode::duplicate_header},
      {200, {{"X Y", "z"}}, ErrorCode::bad_token},
      {200, {{"X-Y", "z\r\nX-Evil: yes"}}, ErrorCode::forbidden_octet},
  };
  for (const auto& row : rows) {
    CAPTURE(row.headers[0].first);
    Fixture fixture;
    fixture.keep_requests();
    fixture.receive(Incoming().text());
    CHECK(to_string(fixture.agent.reply(fixture.open[0], row.code, {}, row.headers, 0)) ==
          error_name(row.expected));
    if (row.expected != ErrorCode::none) {
      CHECK(fixture.wire.sent.empty());
      continue;
    }
    const Message answer = parsed(fixture.last());
    for (const auto& header : row.headers) {
      CHECK(answer.header(header.first) == header.second);
      const HeaderId id = header_id(header.first);
      if (id != HeaderId::other) CHECK(answer.find_next(answer.find(id)) == answer.header_count());
    }
  }
}

TEST_CASE("content is refused with 415 and what is accepted, where the application says so") {
  const std::vector<std::string> some = {"text/plain", "message/cpim", "image/*"};
  const struct {
    std::string what;
    std::vector<std::string> accept;
    std::string type;  ///< header lines
    std::string body;
    const char* header;  ///< of the refusal; null where it is handed over
    const char* value;
  } rows[] = {
      {"one of them", some, "Content-Type: text/plain", "x", nullptr, ""},
      {"in another case, with parameters", some, "c: TEXT/Plain;charset=utf-8", "x", nullptr, ""},
      {"one of a kind", some, "Content-Type: image/png", "x", nullptr, ""},
      {"none of them", some, "Content-Type: text/html", "x", "Accept",
       "text/plain, message/cpim, image/*"},
      {"one that begins alike", some, "Content-Type: text/plainer", "x", "Accept",
       "text/plain, message/cpim, image/*"},
      {"one that makes no sense", some, "Content-Type: text", "x", "Accept",
       "text/plain, message/cpim, image/*"},
      {"none, which means text", some, "X-Y: z", "x", nullptr, ""},
      {"no body", some, "Content-Type: text/html", "", nullptr, ""},
      {"a body that may be passed over", some,
       "Content-Type: text/html\r\nContent-Disposition: render;handling=optional", "x", nullptr,
       ""},
      {"a body that may not", some,
       "Content-Type: text/html\r\nContent-Disposition: render;handling=required", "x", "Accept",
       "text/plain, message/cpim, image/*"},
      {"anything", {"*/*"}, "Content-Type: text/html", "x", nullptr, ""},
      {"anything, as nothing is said", {}, "Content-Type: text/html", "x", nullptr, ""},
      {"a coding",
       {},
       "Content-Type: text/plain\r\nContent-Encoding: gzip",
       "x",
       "Accept-Encoding",
       "identity"},
      {"a coding, in short", some, "Content-Type: text/plain\r\ne: gzip", "x", "Accept-Encoding",
       "identity"},
      {"the coding that is none",
       {},
       "Content-Type: text/plain\r\nContent-Encoding: Identity",
       "x",
       nullptr,
       ""},
  };
  for (const auto& row : rows) {
    CAPTURE(row.what);
    AgentOptions options;
    options.accept = row.accept;
    Fixture fixture(options);
    fixture.keep_requests();
    Incoming incoming;
    incoming.type = row.type;
    incoming.body = row.body;
    fixture.receive(incoming.text());
    CHECK(fixture.open.size() == (row.header == nullptr ? 1 : 0));
    if (row.header == nullptr) continue;
    const Message answer = parsed(fixture.last());
    CHECK(answer.status_code() == 415);
    CHECK(answer.header(row.header) == row.value);
    CHECK(answer.has(HeaderId::accept) == (std::string(row.header) == "Accept"));
  }
}

TEST_CASE("OPTIONS are answered with what is accepted (RFC 3261 11.2)") {
  AgentOptions options;
  options.accept = {"text/plain", "message/cpim"};
  Fixture fixture(options);
  fixture.keep_requests();
  Incoming incoming;
  incoming.method = "OPTIONS";
  fixture.receive(incoming.text());
  const Message answer = parsed(fixture.last());
  CHECK(answer.status_code() == 200);
  const struct {
    const char* name;
    std::string_view value;
  } rows[] = {{"Allow", "MESSAGE, OPTIONS"},
              {"Accept", "text/plain, message/cpim"},
              {"Accept-Encoding", "identity"},
              {"Accept-Language", "*"},
              {"Supported", ""}};
  for (const auto& row : rows) {
    CAPTURE(row.name);
    REQUIRE(answer.header(row.name));
    CHECK(*answer.header(row.name) == row.value);
  }
}

// ---- deadlines ----------------------------------------------------------------------------------

TEST_CASE("a deadline ends a request with a timeout, once, wherever it stands") {
  Told told;
  Fixture fixture;
  Outgoing outgoing = to_bob();
  outgoing.deadline_ms = 1500;
  SUBCASE("over UDP") {}
  SUBCASE("over TCP") { outgoing.to += ";transport=tcp"; }
  REQUIRE_FALSE(fixture.agent.send(outgoing, 100, told.note()));
  const std::string request = fixture.last();
  fixture.pass(1599);
  CHECK(told.outcomes.empty());
  fixture.pass(1600);
  REQUIRE(told.outcomes.size() == 1);
  CHECK(told.outcomes[0].error.code == ErrorCode::timeout);
  CHECK(fixture.agent.waiting() == 0);
  const std::size_t sent = fixture.wire.sent.size();
  fixture.receive(answer_to(request, 200), 1700);  // too late
  fixture.pass(200000);
  CHECK(told.outcomes.size() == 1);
  CHECK(fixture.wire.sent.size() == sent);  // nor is it repeated any more
  CHECK_FALSE(fixture.agent.next_deadline());
}

TEST_CASE("an answer before the deadline is told, and nothing after it") {
  Told told;
  Fixture fixture;
  Outgoing outgoing = to_bob();
  for (std::uint32_t deadline_ms : {3000U, 1000U, 2000U}) {
    outgoing.deadline_ms = deadline_ms;
    REQUIRE_FALSE(fixture.agent.send(outgoing, 0, told.note()));
  }
  fixture.receive(answer_to(fixture.wire.sent[1].bytes, 200), 999);
  REQUIRE(told.outcomes.size() == 1);
  fixture.receive(answer_to(fixture.wire.sent[2].bytes, 404), 1500);
  fixture.pass(2999);
  CHECK(told.outcomes.size() == 2);
  fixture.pass(3000);
  REQUIRE(told.outcomes.size() == 3);
  CHECK(told.outcomes[2].error.code == ErrorCode::timeout);
  fixture.pass(100000);
  CHECK(told.outcomes.size() == 3);
}

TEST_CASE("ten thousand deadlines that are not needed are not kept" * doctest::test_suite("long")) {
  Told told;
  Fixture fixture;
  Outgoing outgoing = to_bob();
  outgoing.deadline_ms = 3600000;
  REQUIRE_FALSE(fixture.agent.send(outgoing, 0, told.note()));  // the soonest, which stays
  for (int i = 0; i < 10000; ++i) {
    outgoing.deadline_ms = 3600001;
    REQUIRE_FALSE(fixture.agent.send(outgoing, 0, told.note()));
    fixture.receive(answer_to(fixture.last(), 200));
    fixture.wire.sent.clear();
  }
  CHECK(told.outcomes.size() == 10000);
  CHECK(fixture.agent.kept_deadlines() < 100);
}

// ---- names, and several servers -----------------------------------------------------------------

namespace {

/// Answers when the test says so.
class Names final : public NameService {
 public:
  void look_up_addresses(const std::string& host, AddressHandler done) override {
    asked.push_back(host);
    addresses_.push_back(std::move(done));
  }
  void look_up_srv(const std::string& name, SrvHandler done) override {
    asked.push_back(name);
    srv_.push_back(std::move(done));
  }
  /// No SRV records, and these addresses.
  void answer(const std::vector<std::string>& texts, Error error = {}) {
    for (int i = 0; i < 4; ++i) {
      for (const auto& done : std::exchange(srv_, {})) done({}, {});
    }
    std::vector<IpAddress> found;
    for (const auto& text : texts) found.push_back(*parse_ip(text));
    for (const auto& done : std::exchange(addresses_, {})) done(error, found);
  }
  std::vector<std::string> asked;

 private:
  std::vector<AddressHandler> addresses_;
  std::vector<SrvHandler> srv_;
};

struct Named {
  Told told;
  Names names;
  Fixture fixture{options()};

  AgentOptions options() {
    AgentOptions options;
    options.names = &names;
    return options;
  }
  void send(Outgoing outgoing = to_name(), std::uint64_t now_ms = 0) {
    REQUIRE_FALSE(fixture.agent.send(std::move(outgoing), now_ms, told.note()));
  }
  static Outgoing to_name() {
    Outgoing outgoing = to_bob();
    outgoing.to = "sip:bob@example.org";
    return outgoing;
  }
  /// Where the last request went.
  std::string last_hop() const { return to_text(fixture.wire.sent.back().flow.remote); }
};

}  // namespace

TEST_CASE("a name is looked up, and the request then sent") {
  Named named;
  named.send();
  CHECK(named.fixture.wire.sent.empty());
  CHECK_FALSE(named.names.asked.empty());
  named.names.answer({"192.0.2.8"});
  REQUIRE(named.fixture.agent.next_deadline());  // it is due at once
  named.fixture.pass(50);
  REQUIRE(named.fixture.wire.sent.size() == 1);
  CHECK(named.last_hop() == "192.0.2.8:5060");
  CHECK(parsed(named.fixture.last()).request_uri_text() == "sip:bob@example.org");
  named.fixture.receive(answer_to(named.fixture.last(), 200), 60);
  REQUIRE(named.told.outcomes.size() == 1);
  CHECK(named.told.outcomes[0].code == 200);
}

TEST_CASE("a proxy's name is looked up, not the recipient's") {
  Named named;
  Outgoing outgoing = Named::to_name();
  outgoing.proxy = "sip:proxy.invalid:5070;transport=tcp";
  named.send(outgoing);
  CHECK(named.names.asked == std::vector<std::string>{"proxy.invalid"});
  named.names.answer({"192.0.2.9"});
  named.fixture.pass(0);
  CHECK(named.last_hop() == "192.0.2.9:5070");
  CHECK(named.fixture.wire.sent[0].flow.transport == Transport::tcp);
}

TEST_CASE("a request that waits for a name ends in exactly one callback") {
  SUBCASE("that it is not known") {
    Named named;
    named.send();
    named.names.answer({}, ErrorCode::unknown_host);
    CHECK(named.told.outcomes.empty());
    named.fixture.pass(0);
    REQUIRE(named.told.outcomes.size() == 1);
    CHECK(named.told.outcomes[0].error.code == ErrorCode::unknown_host);
    CHECK(named.fixture.agent.waiting() == 0);
  }
  SUBCASE("that its deadline has passed; the answer is nobody's then") {
    Named named;
    Outgoing outgoing = Named::to_name();
    outgoing.deadline_ms = 1000;
    named.send(outgoing);
    named.fixture.pass(1000);
    REQUIRE(named.told.outcomes.size() == 1);
    CHECK(named.told.outcomes[0].error.code == ErrorCode::timeout);
    named.names.answer({"192.0.2.8"});
    named.fixture.pass(2000);
    CHECK(named.told.outcomes.size() == 1);
    CHECK(named.fixture.wire.sent.empty());
  }
  SUBCASE("that the agent closes; the answer is nobody's then") {
    Named named;
    named.send();
    named.fixture.agent.close();
    REQUIRE(named.told.outcomes.size() == 1);
    CHECK(named.told.outcomes[0].error.code == ErrorCode::closed);
    named.names.answer({"192.0.2.8"});
    CHECK_FALSE(named.fixture.agent.next_deadline());
    CHECK(named.told.outcomes.size() == 1);
  }
  SUBCASE("that the agent is gone") {
    Told told;
    Names names;
    AgentOptions options;
    options.names = &names;
    {
      Fixture fixture(options);
      REQUIRE_FALSE(fixture.agent.send(Named::to_name(), 0, told.note()));
    }
    names.answer({"192.0.2.8"});
    CHECK(told.outcomes.size() == 1);
  }
  SUBCASE("that no socket reaches any of its addresses") {
    Named named;
    named.send();
    named.names.answer({"192.0.2.8", "192.0.2.9"});
    named.fixture.wire.no_way = {ErrorCode::network, -101};
    named.fixture.pass(0);
    REQUIRE(named.told.outcomes.size() == 1);
    CHECK(named.told.outcomes[0].error.place == -101);
  }
}

TEST_CASE("the next server is tried when one is silent, unreachable or answers 503") {
  const struct {
    std::string what;
    Transport transport;
    void (*fail)(Fixture&);
    std::uint64_t at_ms;
  } rows[] = {
      {"503", Transport::udp, [](Fixture& f) { f.receive(answer_to(f.last(), 503), 100); }, 100},
      {"silence", Transport::udp, [](Fixture& f) { f.pass(timer_f_ms); }, timer_f_ms},
      {"no connection", Transport::tcp,
       [](Fixture& f) {
         f.agent.connection_failed(tcp_socket, {ErrorCode::network, -111}, 100);
       },
       100},
      {"a connection that breaks", Transport::tcp,
       [](Fixture& f) { f.agent.connection_closed(tcp_socket, ErrorCode::closed, 100); }, 100},
  };
  for (const auto& row : rows) {
    CAPTURE(row.what);
    Named named;
    Fixture& fixture = named.fixture;
    Outgoing outgoing = Named::to_name();
    if (row.transport == Transport::tcp) outgoing.to += ";transport=tcp";
    named.send(outgoing);
    named.names.answer({"192.0.2.8", "192.0.2.9"});
    fixture.pass(0);
    CHECK(named.last_hop() == "192.0.2.8:5060");
    const Message first = parsed(fixture.last());
    row.fail(fixture);
    CHECK(named.told.outcomes.empty());
    CHECK(named.last_hop() == "192.0.2.9:5060");
    const Message second = parsed(fixture.last());
    // RFC 3263 4.3: another branch, and nothing else.
    CHECK(second.top_via()->branch != first.top_via()->branch);
    CHECK(second.call_id() == first.call_id());
    CHECK(second.header(HeaderId::cseq) == first.header(HeaderId::cseq));
    CHECK(second.header(HeaderId::from) == first.header(HeaderId::from));
    CHECK(second.body() == first.body());
    fixture.receive(answer_to(fixture.last(), 202), row.at_ms + 10);
    REQUIRE(named.told.outcomes.size() == 1);
    CHECK(named.told.outcomes[0].code == 202);
    fixture.pass(500000);
    CHECK(named.told.outcomes.size() == 1);
  }
}

TEST_CASE("a server that has answered 100 is not silent: the message is not sent to the next one") {
  Named named;
  Fixture& fixture = named.fixture;
  named.send();
  named.names.answer({"192.0.2.8", "192.0.2.9"});
  fixture.pass(5000);
  fixture.receive(answer_to(fixture.last(), 100), 5000);
  fixture.pass(timer_f_ms + 1000);
  REQUIRE(named.told.outcomes.size() == 1);
  CHECK(named.told.outcomes[0].error.code == ErrorCode::timeout);
  for (const auto& sent : fixture.wire.sent) CHECK(to_text(sent.flow.remote) == "192.0.2.8:5060");
  CHECK(fixture.agent.waiting() == 0);
}

TEST_CASE("a peer that cannot be reached ends what waits for it, once, and nothing else") {
  Told told;
  Told others;
  Fixture fixture;
  REQUIRE_FALSE(fixture.agent.send(to_bob(), 0, [&](const Outcome& outcome) {
    told.note()(outcome);
    REQUIRE_FALSE(fixture.agent.send(to_bob(), 10, others.note()));  // again: not concerned
  }));
  REQUIRE_FALSE(fixture.agent.send(to_bob(), 0, told.note()));
  for (const char* to :
       {"sip:bob@192.0.2.8", "sip:bob@192.0.2.7:5061", "sip:bob@192.0.2.7;transport=tcp"}) {
    Outgoing other = to_bob();
    other.to = to;
    REQUIRE_FALSE(fixture.agent.send(other, 0, others.note()));
  }
  Outgoing large = to_bob();
  large.body.assign(2000, 'x');  // over TCP
  REQUIRE_FALSE(fixture.agent.send(large, 0, others.note()));
  const SocketAddress peer = flow_from("192.0.2.7:5060").remote;
  fixture.agent.unreachable(peer, {ErrorCode::network, -111}, 10);
  REQUIRE(told.outcomes.size() == 2);
  CHECK(told.outcomes[0].error.place == -111);
  CHECK(others.outcomes.empty());
  const std::size_t sent = fixture.wire.sent.size();
  fixture.pass(400);
  CHECK(fixture.wire.sent.size() == sent);  // what ended is not repeated
  fixture.agent.close();
  CHECK(told.outcomes.size() == 2);
  CHECK(others.outcomes.size() == 5);
}

TEST_CASE("the next server is tried at once where ICMP says that one is not there") {
  Named named;
  named.send();
  named.names.answer({"192.0.2.8", "192.0.2.9"});
  named.fixture.pass(0);
  named.fixture.agent.unreachable(flow_from("192.0.2.8:5060").remote, ErrorCode::network, 5);
  CHECK(named.told.outcomes.empty());
  CHECK(named.last_hop() == "192.0.2.9:5060");
  named.fixture.receive(answer_to(named.fixture.last(), 200), 10);
  CHECK(named.told.outcomes.size() == 1);
}

TEST_CASE("the last server's failure is the outcome, and other refusals are no failure") {
  Named named;
  named.send();
  named.send();
  named.names.answer({"192.0.2.8", "192.0.2.9"});
  named.fixture.pass(0);
  REQUIRE(named.fixture.wire.sent.size() == 2);
  named.fixture.receive(answer_to(named.fixture.wire.sent[0].bytes, 486), 10);
  REQUIRE(named.told.outcomes.size() == 1);
  CHECK(named.told.outcomes[0].code == 486);
  named.fixture.receive(answer_to(named.fixture.wire.sent[1].bytes, 503), 20);
  CHECK(named.told.outcomes.size() == 1);
  named.fixture.receive(answer_to(named.fixture.last(), 503), 30);
  REQUIRE(named.told.outcomes.size() == 2);
  CHECK(named.told.outcomes[1].code == 503);
  CHECK(named.fixture.wire.sent.size() == 3);
}

TEST_CASE("the next server's not knowing a nonce does not count against the password") {
  Named named;
  Fixture& fixture = named.fixture;
  Outgoing outgoing = Named::to_name();
  outgoing.login = std::make_shared<Login>("alice", "secret");
  const auto login = outgoing.login;
  named.send(outgoing);
  named.names.answer({"192.0.2.8", "192.0.2.9"});
  fixture.pass(0);
  fixture.receive(challenge_to(fixture.last(), "of-the-first"), 10);
  fixture.receive(answer_to(fixture.last(), 503), 20);
  CHECK(named.last_hop() == "192.0.2.9:5060");
  fixture.receive(challenge_to(fixture.last(), "of-the-second"), 30);
  REQUIRE(named.told.outcomes.empty());
  const Message authorised = parsed(fixture.last());
  const auto credentials = parse_credentials(authorised.header(HeaderId::authorization));
  REQUIRE(credentials);
  CHECK(unquote(credentials->nonce) == "of-the-second");
  fixture.receive(answer_to(fixture.last(), 200), 40);
  REQUIRE(named.told.outcomes.size() == 1);
  CHECK(named.told.outcomes[0].code == 200);
  CHECK_FALSE(login->is_refused());
}

TEST_CASE("a large request tries each server by TCP, then by UDP, before the next") {
  Named named;
  Fixture& fixture = named.fixture;
  Outgoing outgoing = Named::to_name();
  outgoing.body.assign(2000, 'x');
  named.send(outgoing);
  named.names.answer({"192.0.2.8", "192.0.2.9"});
  fixture.pass(0);
  fixture.agent.connection_failed(tcp_socket, {ErrorCode::network, -111}, 100);
  fixture.pass(100 + timer_f_ms);
  fixture.agent.connection_failed(tcp_socket, {ErrorCode::network, -111}, 40000);
  std::vector<std::string> tried;
  for (const auto& sent : fixture.wire.sent) {
    const std::string hop =
        to_text(sent.flow.remote) + " " + std::string(transport_name(sent.flow.transport));
    if (tried.empty() || tried.back() != hop) tried.push_back(hop);
  }
  CHECK(tried == std::vector<std::string>{"192.0.2.8:5060 TCP", "192.0.2.8:5060 UDP",
                                          "192.0.2.9:5060 TCP", "192.0.2.9:5060 UDP"});
  fixture.pass(200000);
  REQUIRE(named.told.outcomes.size() == 1);
  CHECK(named.told.outcomes[0].error.code == ErrorCode::timeout);
}

TEST_CASE("a deadline holds for all servers together") {
  Named named;
  Outgoing outgoing = Named::to_name();
  outgoing.deadline_ms = timer_f_ms + 1000;
  named.send(outgoing);
  named.names.answer({"192.0.2.8", "192.0.2.9"});
  named.fixture.pass(timer_f_ms + 999);
  CHECK(named.last_hop() == "192.0.2.9:5060");
  CHECK(named.told.outcomes.empty());
  named.fixture.pass(timer_f_ms + 1000);
  CHECK(named.told.outcomes.size() == 1);
}

// ---- delivery notices ---------------------------------------------------------------------------

namespace {

constexpr std::uint64_t today_s = 1764200000;

AgentOptions with_notices() {
  AgentOptions options;
  options.delivery_notices = true;
  options.unix_time_s = [] { return today_s; };
  return options;
}

/// A message in its envelope, which asks to be told.
Incoming enveloped(NotificationRequest asked, std::string_view content_type = "text/plain",
                   std::string_view body = "Hello", std::string_view from = "sip:bob@example.org") {
  std::vector<char> buffer(4096);
  Output out(buffer.data(), buffer.size());
  CpimStart start;
  start.from = from;
  start.to = "sip:alice@example.org";
  start.date_s = 1764100000;
  start.message_id = "message-1";
  start.request = asked;
  start.content_type = content_type;
  write_cpim(out, start, body);
  REQUIRE_FALSE(out.error());
  Incoming incoming;
  incoming.type = "Content-Type: message/cpim";
  incoming.body = out.written();
  return incoming;
}

}  // namespace

TEST_CASE("a sender who asks is told of the delivery, or of the refusal, when it is answered") {
  NotificationRequest both;
  both.positive_delivery = both.negative_delivery = true;
  NotificationRequest positive;
  positive.positive_delivery = true;
  NotificationRequest negative;
  negative.negative_delivery = true;
  NotificationRequest display;
  display.display = true;
  const struct {
    NotificationRequest asked;
    int code;
    NotificationStatus status;  ///< `other` for no notice
  } rows[] = {
      {both, 200, NotificationStatus::delivered},     {both, 603, NotificationStatus::failed},
      {positive, 202, NotificationStatus::delivered}, {positive, 403, NotificationStatus::other},
      {negative, 200, NotificationStatus::other},     {negative, 403, NotificationStatus::failed},
      {display, 200, NotificationStatus::other},      {{}, 200, NotificationStatus::other},
  };
  for (const auto& row : rows) {
    CAPTURE(row.code);
    Fixture fixture(with_notices());
    fixture.keep_requests();
    fixture.receive(enveloped(row.asked).text(), 0, flow_from("192.0.2.7:5062"));
    REQUIRE(fixture.open.size() == 1);
    CHECK(fixture.wire.sent.empty());
    REQUIRE_FALSE(fixture.agent.reply(fixture.open[0], row.code, {}, 100));
    CHECK(parsed(fixture.wire.sent[0].bytes).status_code() == row.code);
    if (row.status == NotificationStatus::other) {
      CHECK(fixture.wire.sent.size() == 1);
      continue;
    }
    REQUIRE(fixture.wire.sent.size() == 2);
    CHECK(fixture.wire.sent[1].flow == flow_from("192.0.2.7:5062"));
    const Message notice = parsed(fixture.last());
    CHECK(notice.method() == Method::message);
    CHECK(notice.request_uri_text() == "sip:bob@example.org");
    CHECK(notice.to()->uri.text == "sip:bob@example.org");
    CHECK(notice.from()->uri.text == "sip:alice@example.org");
    const auto content = read_content(notice);
    REQUIRE(content);
    CHECK(content->kind == ContentKind::notification);
    CHECK(content->notification.message_id == "message-1");
    CHECK(content->notification.type == NotificationType::delivery);
    CHECK(content->notification.status == row.status);
    CHECK(parse_date_time(content->cpim->date_time).value() == std::int64_t{today_s});
    fixture.receive(answer_to(fixture.last(), 200), 200);
    CHECK(fixture.agent.waiting() == 0);
  }
}

TEST_CASE("who is an im: or pres: URI in the envelope is told where the request came from") {
  NotificationRequest asked;
  asked.positive_delivery = true;
  const struct {
    std::string enveloped;
    std::size_t notices;
  } rows[] = {{"im:bob@example.org", 1},
              {"IM:bob@EXAMPLE.org", 1},
              {"pres:bob@example.org", 1},
              {"sip:bob@example.org;transport=tcp", 1},
              {"im:victim@example.org", 0},
              {"im:bob@victim.example.org", 0},
              {"tel:bob@example.org", 0},
              {"mailto:bob@example.org", 0},
              {"im", 0},
              {"im:", 0}};
  for (const auto& row : rows) {
    CAPTURE(row.enveloped);
    Fixture fixture(with_notices());
    fixture.keep_requests();
    fixture.receive(enveloped(asked, "text/plain", "Hello", row.enveloped).text());
    REQUIRE(fixture.open.size() == 1);
    REQUIRE_FALSE(fixture.agent.reply(fixture.open[0], 200));
    REQUIRE(fixture.wire.sent.size() == 1 + row.notices);
    if (row.notices == 0) continue;
    const Message notice = parsed(fixture.last());
    CHECK(notice.request_uri_text() == "sip:bob@example.org");
    CHECK(notice.to()->uri.text == "sip:bob@example.org");
    const auto content = read_content(notice);
    REQUIRE(content);
    CHECK(content->cpim->to[0].uri == row.enveloped);
  }
}

TEST_CASE("a sender is told of a message that is empty, and of one that is large") {
  NotificationRequest asked;
  asked.positive_delivery = true;
  for (const std::size_t size : {std::size_t{0}, std::size_t{50000}}) {
    CAPTURE(size);
    Fixture fixture(with_notices());
    fixture.keep_requests();
    Incoming incoming = enveloped(asked, "text/plain", "");
    incoming.body.append(size, 'x');
    fixture.receive(incoming.text());
    REQUIRE(fixture.open.size() == 1);
    REQUIRE_FALSE(fixture.agent.reply(fixture.open[0], 200));
    REQUIRE(fixture.wire.sent.size() == 2);
    const Message notice = parsed(fixture.last());
    const auto content = read_content(notice);
    REQUIRE(content);
    CHECK(content->notification.message_id == "message-1");
    CHECK(content->cpim->from.uri == "sip:alice@example.org");
  }
}

TEST_CASE("a message that comes twice is told of once") {
  NotificationRequest asked;
  asked.positive_delivery = true;
  Fixture fixture(with_notices());
  fixture.keep_requests();
  Incoming incoming = enveloped(asked);
  fixture.receive(incoming.text());
  REQUIRE_FALSE(fixture.agent.reply(fixture.open[0], 200));
  incoming.branch += "2";
  fixture.receive(incoming.text());
  std::size_t notices = 0;
  for (const auto& sent : fixture.wire.sent) notices += parsed(sent.bytes).is_request();
  CHECK(notices == 1);
}

TEST_CASE("no notice goes out that is not wanted, or could harm others") {
  NotificationRequest asked;
  asked.positive_delivery = true;
  const std::string notification =
      "<imdn xmlns=\"urn:ietf:params:xml:ns:imdn\"><message-id>x</message-id>"
      "<datetime>2025-11-23T01:37:42Z</datetime><delivery-notification><status><delivered/>"
      "</status></delivery-notification></imdn>";
  const struct {
    std::string what;
    AgentOptions options;
    Incoming incoming;
  } rows[] = {
      {"where it is not enabled", AgentOptions(), enveloped(asked)},
      {"in answer to a notice", with_notices(), enveloped(asked, "message/imdn+xml", notification)},
      {"to somebody else than the sender", with_notices(),
       enveloped(asked, "text/plain", "Hello", "sip:victim@example.org")},
      {"for an envelope that cannot be read", with_notices(),
       [&] {
         Incoming broken = enveloped(asked);
         broken.body = "\x01";
         return broken;
       }()},
      {"for a message without envelope", with_notices(), Incoming()},
  };
  for (const auto& row : rows) {
    CAPTURE(row.what);
    Fixture fixture(row.options);
    fixture.keep_requests();
    fixture.receive(row.incoming.text());
    REQUIRE(fixture.open.size() == 1);
    REQUIRE_FALSE(fixture.agent.reply(fixture.open[0], 200));
    CHECK(fixture.wire.sent.size() == 1);
  }
}

}  // namespace test_agent
