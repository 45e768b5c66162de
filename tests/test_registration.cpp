// A client that stays registered, driven by hand: what it asks for, when it asks again, and when it
// gives up. With a registrar, a network and its losses: test_client_simulation.cpp.
#include <doctest/doctest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "support/sipmsg.hpp"

namespace test_registration {

using namespace sipmsg;

namespace {

using State = RegistrationStatus::State;

constexpr std::uint32_t tcp_socket = 7;

/// Takes everything down that is sent, or refuses it.
class Wire final : public Sink {
 public:
  Result<std::string_view> sent_by(Flow& flow) override {
    if (broken) return broken;
    if (flow.socket == 0) flow.socket = flow.transport == Transport::udp ? 1 : tcp_socket;
    return std::string_view("192.0.2.1:5060");
  }
  Error send(const Flow& flow, const Slices& message) override {
    if (broken) return broken;
    flows.push_back(flow);
    sent.push_back(message.to_string());
    return {};
  }

  std::vector<Flow> flows;
  std::vector<std::string> sent;
  Error broken;
};

RegistrationOptions alice() {
  RegistrationOptions options;
  options.address_of_record = "sip:alice@192.0.2.9";
  options.login = std::make_shared<Login>("alice", "secret");
  return options;
}

struct Fixture {
  explicit Fixture(RegistrationOptions options = alice())
      : keeper(std::make_shared<RegistrationKeeper>(
            agent, std::move(options),
            [this](const RegistrationStatus& status) { told.push_back(status); })) {}
  ~Fixture() {
    agent.close();
    keeper->close(now_ms);
  }

  Wire wire;
  SipHashKey key{};
  Agent agent{AgentOptions(), wire, key};
  std::vector<RegistrationStatus> told;
  std::uint64_t now_ms = 0;
  std::shared_ptr<RegistrationKeeper> keeper;

  void start() { REQUIRE_FALSE(keeper->start(now_ms)); }
  /// Time passes, with everything that is due in it.
  void pass_until(std::uint64_t until_ms) {
    while (true) {
      std::uint64_t next_ms = until_ms + 1;
      if (const auto deadline = agent.next_deadline()) next_ms = std::min(next_ms, *deadline);
      if (const auto deadline = keeper->next_deadline()) next_ms = std::min(next_ms, *deadline);
      if (next_ms > until_ms) break;
      now_ms = std::max(now_ms, next_ms);
      agent.advance(now_ms);
      keeper->advance(now_ms);
    }
    now_ms = until_ms;
  }
  void pass(std::uint64_t duration_ms) { pass_until(now_ms + duration_ms); }

  Message request(std::size_t index) const {
    REQUIRE(index < sent_requests().size());
    return Message::from_bytes(sent_requests()[index]).value();
  }
  Message last() const { return Message::from_bytes(sent_requests().back()).value(); }
  /// All but retransmissions and keep-alives.
  std::vector<std::string> sent_requests() const {
    std::vector<std::string> requests;
    for (const auto& octets : wire.sent) {
      const bool is_new = std::find(requests.begin(), requests.end(), octets) == requests.end();
      if (is_new && octets.size() > 4) requests.push_back(octets);
    }
    return requests;
  }
  std::size_t keepalives() const {
    return static_cast<std::size_t>(std::count_if(
        wire.sent.begin(), wire.sent.end(), [](const auto& octets) { return octets.size() <= 4; }));
  }

  void answer(int code, const std::string& lines = "") {
    const Message asked = last();
    std::vector<char> buffer(max_message_size);
    Output out(buffer.data(), buffer.size());
    write_status_line(out, code, {});
    write_response_head(out, asked, "tag", parse_socket_address("198.51.100.1:1024").value());
    out.raw(lines);
    write_body(out, {}, {});
    const std::string octets(out.written());
    MessageView view;
    const Error error = view.parse(octets);
    agent.receive(view, error, wire.flows.back(), now_ms);
  }
  /// 200, as a registrar writes it.
  void grant(std::uint32_t seconds, const std::string& lines = "") {
    answer(200, "Contact: <sip:alice@192.0.2.1:5060>;expires=" + std::to_string(seconds) + "\r\n" +
                    lines);
  }
  const RegistrationStatus& status() const {
    REQUIRE_FALSE(told.empty());
    return told.back();
  }
};

}  // namespace

TEST_CASE("a registration asks its registrar, with a contact of its own") {
  Fixture fixture;
  fixture.start();
  const Message request = fixture.last();
  CHECK(request.method() == Method::register_);
  CHECK(request.request_uri_text() == "sip:192.0.2.9");  // RFC 3261 10.2: without a user
  CHECK(request.to()->uri.text == "sip:alice@192.0.2.9");
  CHECK(request.from()->uri.text == "sip:alice@192.0.2.9");
  CHECK(request.header(HeaderId::contact) == "<sip:alice@192.0.2.1:5060>");
  CHECK(request.expires() == 600);
  CHECK(fixture.keeper->status().state == State::registering);
  CHECK(fixture.told.empty());
  fixture.grant(300);
  REQUIRE(fixture.told.size() == 1);
  CHECK(fixture.status().state == State::registered);
  CHECK(fixture.status().expires_s == 300);
  CHECK(fixture.status().code == 200);
}

TEST_CASE("the registrar is that of the address-of-record, or the one that is named") {
  const struct {
    std::string address_of_record;
    std::string registrar;
    std::string proxy;
    std::string request_uri;
    std::string hop;
  } rows[] = {
      {"sip:alice@192.0.2.9", "", "", "sip:192.0.2.9", "192.0.2.9:5060 UDP"},
      {"sip:alice@192.0.2.9:5070", "", "", "sip:192.0.2.9:5070", "192.0.2.9:5070 UDP"},
      {"sip:alice@[2001:db8::9];transport=tcp", "", "", "sip:[2001:db8::9];transport=tcp",
       "[2001:db8::9]:5060 TCP"},
      {"sip:alice@example.org", "sip:192.0.2.8", "", "sip:192.0.2.8", "192.0.2.8:5060 UDP"},
      {"sip:alice@example.org", "", "sip:192.0.2.7;transport=tcp", "sip:example.org",
       "192.0.2.7:5060 TCP"},
  };
  for (const auto& row : rows) {
    CAPTURE(row.address_of_record);
    RegistrationOptions options = alice();
    options.address_of_record = row.address_of_record;
    options.registrar = row.registrar;
    options.proxy = row.proxy;
    Fixture fixture(options);
    fixture.start();
    CHECK(fixture.last().request_uri_text() == row.request_uri);
    const Flow& flow = fixture.wire.flows.back();
    CHECK(to_text(flow.remote) + " " + std::string(transport_name(flow.transport)) == row.hop);
  }
}

TEST_CASE("what cannot be registered is said at once, and nothing is sent") {
  const struct {
    std::string address_of_record;
    std::string registrar;
    ErrorCode expected;
  } rows[] = {
      {"", "", ErrorCode::bad_uri},
      {"sip:192.0.2.9", "", ErrorCode::bad_argument},
      {"sips:alice@192.0.2.9", "", ErrorCode::unsupported_scheme},
      {"tel:+15551234", "sip:192.0.2.9", ErrorCode::unsupported_scheme},
      {"sip:alice@example.org", "", ErrorCode::bad_address},
      {"sip:alice@192.0.2.9", "registrar", ErrorCode::bad_uri},
  };
  for (const auto& row : rows) {
    CAPTURE(row.address_of_record);
    RegistrationOptions options = alice();
    options.address_of_record = row.address_of_record;
    options.registrar = row.registrar;
    Fixture fixture(options);
    CHECK(std::string(fixture.keeper->start(0).name()) == error_name(row.expected));
    fixture.pass(1000000);
    CHECK(fixture.wire.sent.empty());
    CHECK(fixture.told.empty());
  }
}

TEST_CASE("what was granted to our own contact counts, else what the header says") {
  const struct {
    std::string what;
    std::string lines;
    std::uint32_t granted_s;
  } rows[] = {
      {"ours among others",
       "Contact: <sip:alice@192.0.2.6:5060>;expires=30, <sip:alice@192.0.2.1:5060>;expires=200\r\n"
       "Contact: <sip:bob@192.0.2.1:5060>;expires=40\r\nExpires: 50\r\n",
       200},
      {"ours as the registrar saw us",
       "Contact: <sip:alice@192.0.2.6:5060>;expires=30, "
       "<sip:alice@198.51.100.1:1024>;expires=200\r\n",
       200},
      {"one alone, rewritten", "Contact: <sip:x@198.51.100.7>;expires=200\r\n", 200},
      {"ours without a word", "Contact: <sip:alice@192.0.2.1:5060>\r\nExpires: 200\r\n", 200},
      {"none of ours",
       "Contact: <sip:alice@192.0.2.6>;expires=30, <sip:alice@192.0.2.5>;expires=40\r\n"
       "Expires: 200\r\n",
       200},
      {"nothing", "", 600},
      {"nonsense", "Contact: <<\r\nExpires: x\r\n", 600},
      {"for ever", "Contact: <sip:alice@192.0.2.1:5060>;expires=4294967295\r\n", 86400},
  };
  for (const auto& row : rows) {
    CAPTURE(row.what);
    Fixture fixture;
    fixture.start();
    fixture.answer(200, row.lines);
    CHECK(fixture.status().expires_s == row.granted_s);
  }
}

TEST_CASE("it is refreshed at half-life, with one Call-ID and a rising CSeq") {
  Fixture fixture;
  fixture.start();
  std::uint32_t cseq = 0;
  std::string call_id(fixture.last().call_id());
  std::string tag(fixture.last().from()->tag());
  for (std::size_t count = 1; count <= 5; ++count) {
    CAPTURE(count);
    REQUIRE(fixture.sent_requests().size() == count);
    const Message request = fixture.last();
    CHECK(request.call_id() == call_id);
    CHECK(request.from()->tag() == tag);
    CHECK(request.cseq()->number > cseq);
    cseq = request.cseq()->number;
    fixture.grant(100);
    CHECK(fixture.status().state == State::registered);
    fixture.pass(49999);
    CHECK(fixture.sent_requests().size() == count);
    fixture.pass(1);
  }
}

TEST_CASE("a registration of one second is not refreshed more than once a second") {
  Fixture fixture;
  fixture.start();
  fixture.grant(1);
  fixture.pass(999);
  CHECK(fixture.sent_requests().size() == 1);
  fixture.pass(1);
  CHECK(fixture.sent_requests().size() == 2);
}

TEST_CASE("a challenge is answered, and a password that is refused ends it") {
  const std::string challenge =
      "WWW-Authenticate: Digest realm=\"x\", nonce=\"y\", algorithm=MD5\r\n";
  Fixture fixture;
  fixture.start();
  fixture.answer(401, challenge);
  CHECK(fixture.last().has(HeaderId::authorization));
  CHECK(fixture.told.empty());
  SUBCASE("as it should be") {
    fixture.grant(600);
    CHECK(fixture.status().state == State::registered);
    fixture.pass(300000);
    CHECK(fixture.last().has(HeaderId::authorization));  // at once
  }
  SUBCASE("wrong") {
    fixture.answer(401, challenge);
    CHECK(fixture.status().state == State::refused);
    CHECK(fixture.status().code == 401);
    const std::size_t sent = fixture.wire.sent.size();
    fixture.pass(86400000);
    CHECK(fixture.wire.sent.size() == sent);
    CHECK_FALSE(fixture.keeper->next_deadline());
  }
}

TEST_CASE("some refusals are for good, until it is started again") {
  for (int code : {301, 400, 401, 403, 404, 405, 407, 410, 416, 420, 501, 505, 600, 603, 604}) {
    CAPTURE(code);
    RegistrationOptions options = alice();
    options.login = nullptr;
    Fixture fixture(options);
    fixture.start();
    fixture.answer(code);
    REQUIRE(fixture.told.size() == 1);
    CHECK(fixture.status().state == State::refused);
    CHECK(fixture.status().code == code);
    fixture.pass(86400000);
    CHECK(fixture.sent_requests().size() == 1);
    fixture.start();
    CHECK(fixture.sent_requests().size() == 2);
    fixture.grant(600);
    CHECK(fixture.status().state == State::registered);
  }
}

TEST_CASE("other refusals are tried again, later each time and within bounds") {
  for (int code : {408, 423, 429, 480, 486, 491, 500, 502, 503, 504}) {
    CAPTURE(code);
    Fixture fixture;
    fixture.start();
    std::uint64_t longest_ms = 1000;
    for (int i = 0; i < 12; ++i) {
      fixture.answer(code);
      REQUIRE(fixture.status().state == State::retrying);
      CHECK(fixture.status().code == code);
      const std::uint64_t wait_ms = fixture.status().retry_in_ms;
      CHECK(wait_ms >= longest_ms / 2);
      CHECK(wait_ms <= longest_ms);
      const std::size_t sent = fixture.sent_requests().size();
      fixture.pass(wait_ms - 1);
      CHECK(fixture.sent_requests().size() == sent);
      fixture.pass(1);
      CHECK(fixture.sent_requests().size() == sent + 1);
      longest_ms = std::min<std::uint64_t>(2 * longest_ms, 300000);
    }
    fixture.grant(600);
    fixture.pass(300000);
    fixture.answer(code);
    CHECK(fixture.status().retry_in_ms <= 1000);  // from the beginning
  }
}

TEST_CASE("clients that fail together do not try again together") {
  std::vector<std::uint64_t> waits;
  for (std::uint8_t seed = 0; seed < 20; ++seed) {
    Wire wire;
    SipHashKey key{};
    key[0] = seed;
    Agent agent{AgentOptions(), wire, key};
    RegistrationOptions options;
    options.address_of_record = "sip:alice@192.0.2.9";
    const auto keeper = std::make_shared<RegistrationKeeper>(
        agent, options,
        [&](const RegistrationStatus& status) { waits.push_back(status.retry_in_ms); });
    REQUIRE_FALSE(keeper->start(0));
    for (std::uint64_t now_ms = 0; now_ms <= 32000; now_ms += 500) agent.advance(now_ms);
    keeper->close(32000);
  }
  REQUIRE(waits.size() == 20);
  std::sort(waits.begin(), waits.end());
  CHECK(waits.back() - waits.front() > 200);
}

TEST_CASE("Retry-After is obeyed, within a day") {
  const struct {
    std::string value;
    std::uint64_t least_ms;
    std::uint64_t most_ms;
  } rows[] = {
      {"120", 120000, 120000}, {"7 (in a minute);duration=60", 7000, 7000}, {"0", 500, 1000},
      {"soon", 500, 1000},     {"99999999999", 86400000, 86400000},
  };
  for (const auto& row : rows) {
    CAPTURE(row.value);
    Fixture fixture;
    fixture.start();
    fixture.answer(503, "Retry-After: " + row.value + "\r\n");
    CHECK(fixture.status().retry_in_ms >= row.least_ms);
    CHECK(fixture.status().retry_in_ms <= row.most_ms);
  }
}

TEST_CASE("a registrar that wants longer registrations gets them (423)") {
  Fixture fixture;
  fixture.start();
  fixture.answer(423, "Min-Expires: 1800\r\n");
  CHECK(fixture.told.empty());
  CHECK(fixture.last().expires() == 1800);
  fixture.grant(1800);
  CHECK(fixture.status().expires_s == 1800);
  fixture.pass(900000);
  CHECK(fixture.last().expires() == 1800);  // it has been learnt
}

TEST_CASE("a registrar that never has enough is not asked for ever") {
  for (const std::string lines : {"", "Min-Expires: 10\r\n", "Min-Expires: 600\r\n",
                                  "Min-Expires: x\r\n", "Min-Expires: 4294967295\r\n"}) {
    CAPTURE(lines);
    Fixture fixture;
    fixture.start();
    for (int i = 0; i < 3 && fixture.told.empty(); ++i) fixture.answer(423, lines);
    REQUIRE(fixture.told.size() == 1);
    CHECK(fixture.status().state == State::retrying);
    CHECK(fixture.sent_requests().size() <= 2);
  }
}

TEST_CASE("what is granted for no time is not granted") {
  Fixture fixture;
  fixture.start();
  fixture.grant(0);
  CHECK(fixture.status().state == State::retrying);
  fixture.pass(1000);
  CHECK(fixture.sent_requests().size() == 2);
}

TEST_CASE("silence and an unreachable network are tried again") {
  Fixture fixture;
  fixture.start();
  fixture.pass(32000);
  CHECK(fixture.status().state == State::retrying);
  CHECK(fixture.status().error.code == ErrorCode::timeout);
  CHECK(fixture.status().code == 0);
  fixture.wire.broken = {ErrorCode::network, -101};
  fixture.pass(10000);
  CHECK(fixture.told.size() > 2);
  CHECK(fixture.status().state == State::retrying);
  CHECK(fixture.status().error.place == -101);
  fixture.wire.broken = {};
  fixture.pass(16000);
  fixture.grant(600);
  CHECK(fixture.status().state == State::registered);
  CHECK_FALSE(fixture.status().error);
}

TEST_CASE("a connection that breaks is made anew, and others do not matter") {
  RegistrationOptions options = alice();
  options.address_of_record += ";transport=tcp";
  Fixture fixture(options);
  fixture.start();
  CHECK(fixture.last().header(HeaderId::contact) == "<sip:alice@192.0.2.1:5060;transport=tcp>");
  fixture.answer(200, "Contact: <sip:alice@192.0.2.1:5060;transport=tcp>;expires=600\r\n");
  fixture.keeper->connection_closed(tcp_socket + 1, ErrorCode::closed, 100);
  CHECK(fixture.status().state == State::registered);
  fixture.keeper->connection_closed(tcp_socket, ErrorCode::closed, 100);
  CHECK(fixture.status().state == State::retrying);
  CHECK(fixture.status().error.code == ErrorCode::closed);
  CHECK(fixture.status().retry_in_ms <= 1000);
  fixture.keeper->connection_closed(tcp_socket, ErrorCode::closed, 100);
  CHECK(fixture.told.size() == 2);
  fixture.pass(2000);
  CHECK(fixture.sent_requests().size() == 2);
}

TEST_CASE("a registrar that ICMP says is not there is asked again") {
  Fixture fixture;
  fixture.start();
  fixture.grant(600);
  const SocketAddress registrar = parse_socket_address("192.0.2.9:5060").value();
  SocketAddress other = registrar;
  other.port = 5061;
  fixture.keeper->unreachable(other, {ErrorCode::network, -111}, 100);
  CHECK(fixture.status().state == State::registered);
  fixture.keeper->unreachable(registrar, {ErrorCode::network, -111}, 100);
  CHECK(fixture.status().state == State::retrying);
  CHECK(fixture.status().error.place == -111);
  fixture.pass(1100);
  CHECK(fixture.sent_requests().size() == 2);
}

TEST_CASE("a registrar that wants more each time is not followed at once") {
  Fixture fixture;
  fixture.start();
  fixture.answer(423, "Min-Expires: 700\r\n");
  fixture.answer(423, "Min-Expires: 701\r\n");
  CHECK(fixture.status().state == State::retrying);
  CHECK(fixture.sent_requests().size() == 2);
  fixture.pass(1000);
  fixture.answer(423, "Min-Expires: 702\r\n");
  fixture.grant(702);
  CHECK(fixture.status().state == State::registered);
}

// ---- keep-alives --------------------------------------------------------------------------------

TEST_CASE("while it is registered the way to us is kept open") {
  for (Transport transport : {Transport::udp, Transport::tcp}) {
    RegistrationOptions options = alice();
    if (transport == Transport::tcp) options.address_of_record += ";transport=tcp";
    Fixture fixture(options);
    fixture.start();
    fixture.pass(30000);
    CHECK(fixture.keepalives() == 0);  // not yet
    fixture.grant(3600);
    fixture.pass(250000);
    CHECK(fixture.keepalives() >= 10);
    CHECK(fixture.keepalives() <= 12);  // 80 to 100 of 100
    CHECK(fixture.wire.sent.back() == (transport == Transport::udp ? "" : "\r\n\r\n"));
    CHECK(fixture.wire.flows.back().transport == transport);
    CHECK(to_text(fixture.wire.flows.back().remote) == "192.0.2.9:5060");
    CHECK(fixture.wire.flows.back().socket != 0);  // the same way, not any
  }
}

TEST_CASE("how often is said by the options, and by a registrar that wants it more often") {
  const struct {
    std::uint32_t keepalive_s;
    std::string lines;
    std::size_t least;
    std::size_t most;
  } rows[] = {
      {0, "", 0, 0},
      {0, "P-NAT-Refresh: 10\r\n", 0, 0},
      {100, "", 10, 13},
      {100, "P-NAT-Refresh: 10\r\n", 100, 125},
      {100, "P-NAT-Refresh: 1000\r\n", 10, 13},
      {100, "P-NAT-Refresh: 0\r\n", 10, 13},
      {100, "P-NAT-Refresh: x\r\n", 10, 13},
  };
  for (const auto& row : rows) {
    CAPTURE(row.keepalive_s);
    CAPTURE(row.lines);
    RegistrationOptions options = alice();
    options.keepalive_s = row.keepalive_s;
    Fixture fixture(options);
    fixture.start();
    fixture.grant(3600, row.lines);
    fixture.pass(1000000);
    CHECK(fixture.keepalives() >= row.least);
    CHECK(fixture.keepalives() <= row.most);
  }
}

TEST_CASE("a keep-alive that cannot be sent makes it register anew") {
  Fixture fixture;
  fixture.start();
  fixture.grant(3600);
  fixture.wire.broken = ErrorCode::gone;
  fixture.pass(25000);
  CHECK(fixture.status().state == State::retrying);
  fixture.wire.broken = {};
  fixture.pass(5000);
  CHECK(fixture.sent_requests().size() == 2);
}

// ---- the end ------------------------------------------------------------------------------------

TEST_CASE("stopping takes the binding back, and tells when that is done, once") {
  Fixture fixture;
  int done = 0;
  fixture.start();
  const std::string call_id(fixture.last().call_id());
  fixture.grant(600);
  fixture.keeper->stop(fixture.now_ms, [&] { ++done; });
  CHECK(done == 0);
  CHECK(fixture.last().expires() == 0);
  CHECK(fixture.last().header(HeaderId::contact) == "<sip:alice@192.0.2.1:5060>");
  CHECK(fixture.last().call_id() == call_id);
  fixture.answer(200);
  CHECK(done == 1);
  CHECK(fixture.status().state == State::unregistered);
  const std::size_t sent = fixture.wire.sent.size();
  fixture.pass(86400000);
  CHECK(done == 1);
  CHECK(fixture.wire.sent.size() == sent);  // neither refreshed nor kept alive
  CHECK_FALSE(fixture.keeper->next_deadline());
}

TEST_CASE("stopping does not wait for a registrar that is silent, or for nothing") {
  SUBCASE("silent") {
    Fixture fixture;
    int done = 0;
    fixture.start();
    fixture.grant(600);
    fixture.keeper->stop(fixture.now_ms, [&] { ++done; });
    fixture.pass(4999);
    CHECK(done == 0);
    fixture.pass(1);
    CHECK(done == 1);
    fixture.pass(100000);
    CHECK(done == 1);
  }
  SUBCASE("never started") {
    Fixture fixture;
    int done = 0;
    fixture.keeper->stop(fixture.now_ms, [&] { ++done; });
    CHECK(done == 0);  // never from inside
    fixture.pass(0);
    CHECK(done == 1);
    CHECK(fixture.wire.sent.empty());
  }
  SUBCASE("refused") {
    Fixture fixture;
    int done = 0;
    fixture.start();
    fixture.answer(403);
    fixture.keeper->stop(fixture.now_ms, [&] { ++done; });
    fixture.pass(0);
    CHECK(done == 1);
    CHECK(fixture.sent_requests().size() == 1);
  }
  SUBCASE("stopped before") {
    Fixture fixture;
    int done = 0;
    fixture.start();
    fixture.grant(600);
    fixture.keeper->stop(fixture.now_ms, [&] { ++done; });
    fixture.keeper->stop(fixture.now_ms, [&] { ++done; });
    fixture.answer(200);
    CHECK(done == 2);
    fixture.keeper->stop(fixture.now_ms, [&] { ++done; });
    fixture.pass(0);
    CHECK(done == 3);
    CHECK(fixture.sent_requests().size() == 2);
  }
}

TEST_CASE("stopping waits for the answer to what is under way (RFC 3261 10.2)") {
  Fixture fixture;
  int done = 0;
  fixture.start();
  fixture.keeper->stop(fixture.now_ms, [&] { ++done; });
  CHECK(fixture.sent_requests().size() == 1);
  fixture.grant(600);
  REQUIRE(fixture.sent_requests().size() == 2);
  CHECK(fixture.last().expires() == 0);
  fixture.answer(200);
  CHECK(done == 1);
  REQUIRE(fixture.told.size() == 1);  // not that it was registered for a moment
  CHECK(fixture.status().state == State::unregistered);
}

TEST_CASE("after it was stopped it can be started again, and old answers are nobody's") {
  Fixture fixture;
  int done = 0;
  fixture.start();
  fixture.grant(600);
  fixture.keeper->stop(fixture.now_ms, [&] { ++done; });
  CHECK(fixture.keeper->start(fixture.now_ms).code == ErrorCode::bad_argument);  // not yet
  fixture.pass(5000);
  CHECK(done == 1);
  fixture.start();
  const std::size_t told = fixture.told.size();
  fixture.pass(27000);  // the old one's timeout
  CHECK(fixture.told.size() == told);
  fixture.grant(600);
  CHECK(fixture.status().state == State::registered);
}

TEST_CASE("whoever waits for the end is told when everything closes") {
  int done = 0;
  {
    Fixture fixture;
    fixture.start();
    fixture.grant(600);
    fixture.keeper->stop(fixture.now_ms, [&] { ++done; });
    fixture.agent.close();
    CHECK(done == 0);
    fixture.keeper->close(fixture.now_ms);
    CHECK(done == 1);
    CHECK(fixture.keeper->start(0).code == ErrorCode::closed);
  }
  CHECK(done == 1);
}

TEST_CASE("whoever goes without waiting sends word to a registrar that has granted something") {
  Fixture fixture;
  fixture.start();
  SUBCASE("granted: also a challenge is still met, and the handler hears nothing of it") {
    fixture.grant(600);
    const std::size_t told = fixture.told.size();
    fixture.keeper->close(fixture.now_ms);
    const Message goodbye = fixture.request(1);
    CHECK(goodbye.header("Expires") == "0");
    CHECK(goodbye.call_id() == fixture.request(0).call_id());
    CHECK(goodbye.cseq()->number > fixture.request(0).cseq()->number);
    fixture.answer(401, "WWW-Authenticate: Digest realm=\"r\", nonce=\"n\"\r\n");
    REQUIRE(fixture.sent_requests().size() == 3);
    const Message repeated = fixture.last();
    CHECK(repeated.header("Expires") == "0");
    CHECK_FALSE(repeated.header("Authorization")->empty());
    fixture.answer(200);
    CHECK(fixture.told.size() == told);
    return;
  }
  SUBCASE("asked, and not answered yet") {}
  SUBCASE("refused for now") { fixture.answer(503); }
  SUBCASE("being refreshed: RFC 3261 10.2 has no second one before that is answered") {
    fixture.grant(600);
    fixture.pass(300000);
  }
  SUBCASE("being stopped: it knows") {
    fixture.grant(600);
    fixture.keeper->stop(fixture.now_ms, nullptr);
  }
  const std::size_t sent = fixture.sent_requests().size();
  fixture.keeper->close(fixture.now_ms);
  CHECK(fixture.sent_requests().size() == sent);
}

TEST_CASE("the handler may let go of its registration, stop it, and close the agent") {
  Wire wire;
  SipHashKey key{};
  Agent agent{AgentOptions(), wire, key};
  RegistrationOptions options;
  options.address_of_record = "sip:alice@192.0.2.9";
  std::shared_ptr<RegistrationKeeper> keeper;
  int done = 0;
  int told = 0;
  const auto make = [&](auto act) {
    keeper =
        std::make_shared<RegistrationKeeper>(agent, options, [&, act](const RegistrationStatus&) {
          ++told;
          act();
        });
    REQUIRE_FALSE(keeper->start(0));
  };
  SUBCASE("let go of") {
    make([&] { keeper.reset(); });
    agent.advance(32000);
    CHECK(told == 1);
    CHECK(keeper.use_count() == 0);
  }
  SUBCASE("let go of, when it has stopped") {
    make([] {});
    keeper->stop(0, [&] {
      ++done;
      keeper.reset();
    });
    keeper->advance(5000);
    CHECK(done == 1);
    CHECK(keeper.use_count() == 0);
  }
  SUBCASE("stop") {
    make([&] { keeper->stop(32000, [&] { ++done; }); });
    agent.advance(32000);
    keeper->advance(37000);
    CHECK(done == 1);
  }
  SUBCASE("close") {
    make([&] { agent.close(); });
    agent.advance(32000);
    CHECK(told == 1);
  }
}

}  // namespace test_registration
