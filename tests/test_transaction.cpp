#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "support/allocations.hpp"
#include "support/data.hpp"
#include "support/sipmsg.hpp"

namespace test_transaction {

using sipmsg::ClientTransaction;
using sipmsg::Error;
using sipmsg::ErrorCode;
using sipmsg::Flow;
using sipmsg::HeaderId;
using sipmsg::MessageView;
using sipmsg::Output;
using sipmsg::Result;
using sipmsg::ServerTransaction;
using sipmsg::Slices;
using sipmsg::TransactionLayer;
using sipmsg::TransactionOptions;
using sipmsg::Transport;

namespace {

using Times = std::vector<std::uint64_t>;

Flow flow_from(const std::string& address, Transport transport = Transport::udp,
               std::uint32_t socket = 1) {
  Flow flow;
  flow.transport = transport;
  flow.socket = socket;
  flow.remote = *sipmsg::parse_socket_address(address);
  return flow;
}

const Flow udp = flow_from("192.0.2.7:5070");
const Flow tcp = flow_from("192.0.2.7:41000", Transport::tcp, 9);

Flow flow_of(Transport transport) { return transport == Transport::udp ? udp : tcp; }

std::string replaced(std::string text, const std::string& what, const std::string& with) {
  const std::size_t at = text.find(what);
  if (at == std::string::npos) FAIL("no '" << what << "' in " << text);
  return text.replace(at, what.size(), with);
}

const std::string message_request =
    "MESSAGE sip:bob@example.com SIP/2.0\r\n"
    "Via: SIP/2.0/UDP 192.0.2.7:5070;branch=z9hG4bKone;rport\r\n"
    "Max-Forwards: 70\r\n"
    "From: <sip:alice@example.com>;tag=a1\r\n"
    "To: <sip:bob@example.com>\r\n"
    "Call-ID: call-1\r\n"
    "CSeq: 1 MESSAGE\r\n"
    "Content-Type: text/plain\r\n"
    "Content-Length: 2\r\n"
    "\r\n"
    "hi";

std::string with_method(const std::string& method) {
  return replaced(replaced(message_request, "MESSAGE", method), "1 MESSAGE", "1 " + method);
}

const std::string invite_request = with_method("INVITE");
const std::string ack_request = with_method("ACK");

/// A request as a client of RFC 2543 makes it: without magic cookie.
std::string legacy(const std::string& request) {
  return replaced(request, "branch=z9hG4bKone", "branch=1");
}

std::string response_text(int code, const std::string& method = "MESSAGE",
                          const std::string& branch = "z9hG4bKours") {
  return "SIP/2.0 " + std::to_string(code) +
         " Whatever\r\n"
         "Via: SIP/2.0/UDP 192.0.2.1:5060;branch=" +
         branch +
         ";rport=5060\r\n"
         "From: <sip:alice@example.com>;tag=a1\r\n"
         "To: <sip:bob@example.com>;tag=b1\r\n"
         "Call-ID: call-1\r\n"
         "CSeq: 1 " +
         method + "\r\nContent-Length: 0\r\n\r\n";
}

std::string header_of(const std::string& message, HeaderId id) {
  MessageView view;
  REQUIRE_FALSE(view.parse(message));
  return std::string(view.header(id));
}

/// Everything around one TransactionLayer, in virtual time: the network that takes what is sent,
/// and the user that is told what arrives.
class World : private sipmsg::Sink, private sipmsg::TransactionUser {
 public:
  struct Sent {
    std::uint64_t at_ms;
    Flow flow;
    std::string bytes;
  };
  struct Failure {
    std::uint64_t at_ms;
    std::uint64_t user_data;
    ErrorCode code;
  };

  explicit World(const TransactionOptions& options = {}, std::uint8_t secret = 1)
      : layer(options, *this, *this, sipmsg::SipHashKey{secret}) {}

  /// Lets time pass, with a call of advance at each deadline and one at the end.
  void run_until(std::uint64_t end_ms) {
    while (layer.next_deadline().value_or(end_ms + 1) <= end_ms) {
      now_ms = *layer.next_deadline();
      layer.advance(now_ms);
    }
    now_ms = end_ms;
    layer.advance(now_ms);
  }
  void receive(const std::string& bytes, const Flow& from = udp) {
    MessageView message;
    const Error error = message.parse(bytes);
    layer.receive(message, error, from, now_ms);
  }
  /// An answer without further headers, for the request that came last or for another one.
  std::string answer_text(ServerTransaction server, int code) const {
    char buffer[4096];
    Output out(buffer, sizeof buffer);
    layer.begin_response(server, code, {}, out);
    sipmsg::write_body(out, {}, {});
    return std::string(out.written());
  }
  ErrorCode answer(int code) { return answer(server(), code); }
  ErrorCode answer(ServerTransaction to, int code) {
    const std::string text = answer_text(to, code);
    return layer.respond(to, code, Slices(text), now_ms).code;
  }
  Result<ClientTransaction> send(const Flow& flow, std::uint64_t user_data = 1,
                                 const std::string& branch = "z9hG4bKours",
                                 const std::string& method = "MESSAGE") {
    const std::string text = method + " request " + branch;
    return layer.send(flow, branch, method, Slices(text), user_data, now_ms);
  }

  ServerTransaction server() const {
    return requests.empty() ? ServerTransaction() : requests.back();
  }
  Times sent_at() const {
    Times times;
    for (const Sent& each : sent) times.push_back(each.at_ms);
    return times;
  }

  std::uint64_t now_ms = 0;
  std::vector<Sent> sent;
  std::vector<ServerTransaction> requests;
  std::vector<std::string> request_texts;
  std::vector<int> responses;
  std::vector<Failure> failures;
  ErrorCode send_error = ErrorCode::none;  ///< what the sink says from now on
  std::set<std::uint32_t> closed_sockets;  ///< on these it says `closed`
  std::function<void(ServerTransaction)> when_request;
  std::function<void(ClientTransaction)> when_response;
  std::function<void(ClientTransaction)> when_failure;
  TransactionLayer layer;

 private:
  Result<std::string_view> sent_by(Flow&) override { return std::string_view("192.0.2.1:5060"); }
  Error send(const Flow& flow, const Slices& message) override {
    if (send_error != ErrorCode::none) return send_error;
    if (closed_sockets.count(flow.socket) != 0) return ErrorCode::closed;
    sent.push_back({now_ms, flow, message.to_string()});
    return {};
  }
  void on_request(ServerTransaction server, const MessageView& request, const Flow&) override {
    requests.push_back(server);
    request_texts.emplace_back(request.bytes());
    if (when_request) when_request(server);
  }
  void on_response(ClientTransaction client, const MessageView& response, const Flow&) override {
    responses.push_back(response.status_code());
    if (when_response) when_response(client);
  }
  void on_failure(ClientTransaction client, Error error) override {
    failures.push_back({now_ms, layer.user_data(client), error.code});
    if (when_failure) when_failure(client);
  }
};

}  // namespace

// The client machine.

TEST_CASE(
    "an unanswered request goes out at the instants of Timer E and fails at that of Timer F") {
  struct Row {
    std::string name;
    std::uint32_t t1_ms, t2_ms, max_sends;
    Times sent_at;
    std::uint64_t failed_at;
  };
  const Row rows[] = {
      {"the RFC's own values",
       500,
       4000,
       255,
       {0, 500, 1500, 3500, 7500, 11500, 15500, 19500, 23500, 27500, 31500},
       32000},
      {"four sends in all", 500, 4000, 4, {0, 500, 1500, 3500}, 32000},
      {"one send", 500, 4000, 1, {0}, 32000},
      {"T1 is T2", 500, 500, 4, {0, 500, 1000, 1500}, 32000},
      {"T2 is no multiple of T1", 100, 500, 6, {0, 100, 300, 700, 1200, 1700}, 6400},
      {"T1 above T2 counts as T2", 1000, 500, 4, {0, 1000, 2000, 3000}, 64000},
  };
  for (const Row& row : rows) {
    CAPTURE(row.name);
    TransactionOptions options;
    options.t1_ms = row.t1_ms;
    options.t2_ms = row.t2_ms;
    options.max_request_sends = row.max_sends;
    World world(options);
    REQUIRE(world.send(udp, 77));
    world.run_until(100000);
    CHECK(world.sent_at() == row.sent_at);
    for (const auto& sent : world.sent) {
      CHECK(sent.bytes == world.sent[0].bytes);
      CHECK(sent.flow == udp);
    }
    REQUIRE(world.failures.size() == 1);
    CHECK(world.failures[0].at_ms == row.failed_at);
    CHECK(world.failures[0].code == ErrorCode::timeout);
    CHECK(world.failures[0].user_data == 77);
    CHECK(world.layer.size() == 0);
    CHECK(world.layer.kept_size() == 0);
    CHECK_FALSE(world.layer.next_deadline());
  }
}

TEST_CASE("over TCP a request goes out once, is not copied, and fails at Timer F") {
  World world;
  REQUIRE(world.send(tcp));
  CHECK(world.layer.kept_size() == 0);
  world.run_until(100000);
  CHECK(world.sent_at() == Times{0});
  REQUIRE(world.failures.size() == 1);
  CHECK(world.failures[0].at_ms == 32000);
  CHECK(world.layer.size() == 0);
}

TEST_CASE("after a provisional response the request is repeated at T2, and Timer F still ends it") {
  World world;
  REQUIRE(world.send(udp));
  world.run_until(600);
  world.receive(response_text(183));
  CHECK(world.responses == std::vector<int>{183});
  world.receive(response_text(183));
  CHECK(world.responses == std::vector<int>{183, 183});
  world.run_until(100000);
  // The timer that was running when the 183 came runs to its end.
  CHECK(world.sent_at() == Times{0, 500, 1500, 5500, 9500, 13500, 17500, 21500, 25500, 29500});
  REQUIRE(world.failures.size() == 1);
  CHECK(world.failures[0].at_ms == 32000);
}

TEST_CASE("a 100 slows the repetition down and is not told") {
  World world;
  REQUIRE(world.send(udp));
  world.receive(response_text(100));
  world.run_until(9000);
  CHECK(world.responses.empty());
  CHECK(world.sent_at() == Times{0, 500, 4500, 8500});
}

TEST_CASE("a final response is told once, and repeats of it are absorbed until Timer K") {
  for (int first : {200, 202, 302, 404, 500, 603}) {
    for (bool after_provisional : {false, true}) {
      CAPTURE(first);
      CAPTURE(after_provisional);
      World world;
      const auto client = world.send(udp);
      REQUIRE(client);
      if (after_provisional) world.receive(response_text(180));
      world.responses.clear();
      world.run_until(600);
      world.receive(response_text(first));
      CHECK(world.responses == std::vector<int>{first});
      CHECK(world.layer.kept_size() == 0);
      CHECK(world.layer.next_deadline() == 5600);  // Timers E and F are off
      world.receive(response_text(first));
      world.receive(response_text(180));
      world.receive(response_text(486));
      world.run_until(5599);
      CHECK(world.layer.client_count() == 1);
      world.run_until(5600);
      CHECK(world.layer.client_count() == 0);
      world.receive(response_text(first));  // a stray
      world.run_until(100000);
      CHECK(world.responses == std::vector<int>{first});
      CHECK(world.failures.empty());
      CHECK(world.sent_at() == Times{0, 500});
    }
  }
}

TEST_CASE("over TCP a final response ends the transaction at once") {
  World world;
  const auto client = world.send(tcp, 5);
  REQUIRE(client);
  std::uint64_t user_data = 0;
  world.when_response = [&](ClientTransaction told) { user_data = world.layer.user_data(told); };
  world.receive(response_text(180), tcp);
  CHECK(world.layer.client_count() == 1);
  world.receive(response_text(200), tcp);
  CHECK(world.responses == std::vector<int>{180, 200});
  CHECK(user_data == 5);
  CHECK(world.layer.size() == 0);
  CHECK(world.layer.user_data(*client) == 0);
  world.receive(response_text(200), tcp);
  CHECK(world.responses.size() == 2);
}

TEST_CASE("a response matches by branch and CSeq method") {
  World world;
  REQUIRE(world.send(udp));
  world.receive(response_text(200, "MESSAGE", "z9hG4bKother"));
  world.receive(response_text(200, "OPTIONS"));
  world.receive(replaced(response_text(200), ";branch=z9hG4bKours", ""));
  world.receive(replaced(response_text(200), "Call-ID: call-1\r\n", ""));  // malformed
  world.receive(replaced(response_text(200), "Length: 0", "Length: 9"));   // cut off
  CHECK(world.responses.empty());
  world.receive(response_text(200));
  CHECK(world.responses == std::vector<int>{200});
  // Unknown methods are told apart as well.
  REQUIRE(world.send(udp, 1, "z9hG4bKours", "FOO"));
  world.receive(response_text(201, "BAR"));
  CHECK(world.responses.size() == 1);
  world.receive(response_text(201, "FOO"));
  CHECK(world.responses == std::vector<int>{200, 201});
}

TEST_CASE("an error on the first send is returned and never told") {
  for (Transport transport : {Transport::udp, Transport::tcp}) {
    World world;
    world.send_error = ErrorCode::network;
    CHECK(world.send(flow_of(transport)).error().code == ErrorCode::network);
    CHECK(world.layer.size() == 0);
    CHECK_FALSE(world.layer.next_deadline());
    world.run_until(100000);
    CHECK(world.failures.empty());
  }
}

TEST_CASE("an error on repeating is told instead of a response, in Trying and in Proceeding") {
  for (bool proceeding : {false, true}) {
    World world;
    REQUIRE(world.send(udp));
    if (proceeding) world.receive(response_text(100));
    world.send_error = ErrorCode::network;
    world.run_until(100000);
    REQUIRE(world.failures.size() == 1);
    CHECK(world.failures[0].at_ms == 500);
    CHECK(world.failures[0].code == ErrorCode::network);
    CHECK(world.layer.size() == 0);
  }
}

TEST_CASE("a forgotten request is neither repeated nor told about") {
  for (Transport transport : {Transport::udp, Transport::tcp}) {
    World world;
    const auto client = world.send(flow_of(transport));
    REQUIRE(client);
    world.layer.forget(*client);
    world.layer.forget(*client);
    CHECK(world.layer.size() == 0);
    CHECK(world.layer.kept_size() == 0);
    world.receive(response_text(200));
    world.layer.connection_closed(tcp.socket, ErrorCode::closed, world.now_ms);
    world.run_until(100000);
    CHECK(world.sent_at() == Times{0});
    CHECK(world.responses.empty());
    CHECK(world.failures.empty());
  }
}

TEST_CASE("what may not be sent is refused without a callback") {
  World world;
  CHECK(world.send(udp, 1, "z9hG4bKa", "INVITE").error().code == ErrorCode::bad_argument);
  CHECK(world.send(udp, 1, "z9hG4bKa", "ACK").error().code == ErrorCode::bad_argument);
  const std::string huge(sipmsg::BlockPool::max_block_size + 1, 'x');
  CHECK(world.layer.send(udp, "z9hG4bKa", "MESSAGE", Slices(huge), 1, 0).error().code ==
        ErrorCode::too_large);
  CHECK(world.sent.empty());
  CHECK(world.layer.size() == 0);
}

TEST_CASE("requests beyond the limit are refused, and there is room again once others end") {
  TransactionOptions options;
  options.max_transactions = 2;
  World world(options);
  REQUIRE(world.send(udp, 1, "z9hG4bK1"));
  REQUIRE(world.send(udp, 1, "z9hG4bK2"));
  CHECK(world.send(udp, 1, "z9hG4bK3").error().code == ErrorCode::limit_reached);
  CHECK(world.sent.size() == 2);
  world.receive(message_request);  // the other direction has a limit of its own
  CHECK(world.requests.size() == 1);
  world.run_until(32000);
  CHECK(world.send(udp, 1, "z9hG4bK3").ok());
}

TEST_CASE("a closed connection fails the requests on it and no others") {
  World world;
  const Flow other = flow_from("192.0.2.8:5060", Transport::tcp, 10);
  std::vector<ClientTransaction> clients;
  for (std::uint64_t i = 0; i < 6; ++i) {
    const auto client = world.send(i == 5 ? other : tcp, i, "z9hG4bK" + std::to_string(i));
    REQUIRE(client);
    clients.push_back(*client);
  }
  world.layer.forget(clients[1]);                                 // from the middle,
  world.receive(response_text(200, "MESSAGE", "z9hG4bK4"), tcp);  // and from either end
  world.layer.forget(clients[0]);
  world.layer.connection_closed(12345, ErrorCode::closed, 0);
  CHECK(world.failures.empty());
  world.layer.connection_closed(tcp.socket, ErrorCode::closed, 0);
  std::set<std::uint64_t> failed;
  for (const auto& failure : world.failures) {
    failed.insert(failure.user_data);
    CHECK(failure.code == ErrorCode::closed);
  }
  CHECK(world.failures.size() == 2);
  CHECK(failed == std::set<std::uint64_t>{2, 3});
  CHECK(world.layer.client_count() == 1);
  world.layer.connection_closed(tcp.socket, ErrorCode::closed, 0);
  CHECK(world.failures.size() == 2);
  world.layer.connection_closed(other.socket, ErrorCode::network, 0);
  CHECK(world.failures.size() == 3);
  CHECK(world.layer.size() == 0);
}

TEST_CASE("when time jumps ahead by hours nothing is sent in a burst and all ends once") {
  World world;
  REQUIRE(world.send(udp, 1, "z9hG4bK1"));
  world.receive(invite_request);
  CHECK(world.answer(405) == ErrorCode::none);
  world.receive(message_request);
  CHECK(world.answer(200) == ErrorCode::none);
  const std::size_t sent_before = world.sent.size();
  world.now_ms = 36000000;
  world.layer.advance(world.now_ms);
  CHECK(world.sent.size() == sent_before);
  REQUIRE(world.failures.size() == 1);
  CHECK(world.failures[0].code == ErrorCode::timeout);
  CHECK(world.layer.size() == 0);
  CHECK(world.layer.kept_size() == 0);
}

TEST_CASE("a late call of advance sends once and goes on from there") {
  World world;
  REQUIRE(world.send(udp));
  world.now_ms = 2000;  // 500 and 1500 have passed
  world.layer.advance(2000);
  CHECK(world.sent_at() == Times{0, 2000});
  CHECK(world.layer.next_deadline() == 3000);
}

// The server machine for requests other than INVITE.

TEST_CASE("a request is given to the user once, and repeats of it are absorbed in Trying") {
  for (Transport transport : {Transport::udp, Transport::tcp}) {
    World world;
    const Flow from = flow_of(transport);
    world.receive(message_request, from);
    world.receive(message_request, from);
    world.run_until(20000);
    world.receive(message_request, from);
    CHECK(world.requests.size() == 1);
    CHECK(world.request_texts[0] == message_request);
    CHECK(world.sent.empty());
    CHECK(world.layer.source(world.server()) == from);
  }
}

TEST_CASE("over UDP the answer is kept for 64*T1 and given to every repeat, octet for octet") {
  World world;
  world.receive(message_request);
  const ServerTransaction server = world.server();
  world.run_until(250);
  CHECK(world.answer(404) == ErrorCode::none);
  REQUIRE(world.sent.size() == 1);
  CHECK(world.sent[0].bytes ==
        "SIP/2.0 404 Not Found\r\n"
        "Via: SIP/2.0/UDP 192.0.2.7:5070;branch=z9hG4bKone;received=192.0.2.7;rport=5070\r\n"
        "From: <sip:alice@example.com>;tag=a1\r\n"
        "To: <sip:bob@example.com>;tag=" +
            std::string(world.layer.to_tag(server)) +
            "\r\n"
            "Call-ID: call-1\r\n"
            "CSeq: 1 MESSAGE\r\n"
            "Content-Length: 0\r\n\r\n");
  CHECK(world.sent[0].flow == udp);

  world.receive(message_request);
  world.run_until(32249);
  world.receive(message_request);
  CHECK(world.requests.size() == 1);
  REQUIRE(world.sent.size() == 3);
  CHECK(world.sent[1].bytes == world.sent[0].bytes);
  CHECK(world.sent[2].bytes == world.sent[0].bytes);
  CHECK(world.sent[2].flow == udp);
  CHECK(world.layer.is_open(server));

  world.run_until(32250);  // Timer J
  CHECK(world.layer.size() == 0);
  CHECK(world.layer.kept_size() == 0);
  CHECK_FALSE(world.layer.is_open(server));
  world.receive(message_request);
  CHECK(world.requests.size() == 2);
}

TEST_CASE("over TCP the answer ends the transaction: Timer J is zero") {
  World world;
  world.receive(message_request, tcp);
  CHECK(world.answer(200) == ErrorCode::none);
  REQUIRE(world.sent.size() == 1);
  CHECK(world.sent[0].flow == tcp);
  CHECK(world.layer.size() == 0);
  CHECK(world.layer.kept_size() == 0);
  CHECK_FALSE(world.layer.next_deadline());
}

TEST_CASE("a forwarded answer goes out and is kept as it is given, in pieces") {
  World world;
  world.receive(message_request);
  Slices pieces;
  pieces.add("SIP/2.0 200 OK\r\n");
  pieces.add("whatever");
  CHECK_FALSE(world.layer.respond(world.server(), 200, pieces, 0));
  world.receive(message_request);
  REQUIRE(world.sent.size() == 2);
  CHECK(world.sent[0].bytes == "SIP/2.0 200 OK\r\nwhatever");
  CHECK(world.sent[1].bytes == "SIP/2.0 200 OK\r\nwhatever");
}

TEST_CASE("a request has one final answer: what comes after it is refused and not sent") {
  for (Transport transport : {Transport::udp, Transport::tcp}) {
    World world;
    world.receive(message_request, flow_of(transport));
    CHECK(world.answer(200) == ErrorCode::none);
    CHECK(world.answer(500) == ErrorCode::gone);
    CHECK(world.answer(100) == ErrorCode::gone);
    CHECK(world.sent.size() == 1);
    char buffer[100];
    Output out(buffer, sizeof buffer);
    world.layer.begin_response(world.server(), 200, {}, out);
    CHECK(out.size() == 0);
    CHECK(out.error().code == ErrorCode::gone);
  }
}

TEST_CASE("an answer that comes too late is dropped, and the transaction ends in silence") {
  for (Transport transport : {Transport::udp, Transport::tcp}) {
    World world;
    world.receive(message_request, flow_of(transport));
    const ServerTransaction server = world.server();
    const std::string text = world.answer_text(server, 200);
    SUBCASE("after the timer") { world.run_until(32000); }
    SUBCASE("before the timer was looked at") { world.now_ms = 32000; }
    CHECK(world.layer.respond(server, 200, Slices(text), world.now_ms).code == ErrorCode::gone);
    world.run_until(40000);
    CHECK(world.sent.empty());
    CHECK(world.layer.size() == 0);
    CHECK(world.layer.kept_size() == 0);
  }
  World world;
  world.receive(message_request);
  world.run_until(31999);
  CHECK(world.answer(480) == ErrorCode::none);
  CHECK(world.sent.size() == 1);
}

TEST_CASE("no 408, and no provisional answer but 100, is ever sent to other requests than INVITE") {
  World world;
  world.receive(message_request);
  for (int code : {408, 101, 180, 183, 199, 0, 99, 700, -1}) {
    CAPTURE(code);
    CHECK(world.answer(code) == ErrorCode::bad_argument);
  }
  CHECK(world.sent.empty());
  CHECK(world.answer(480) == ErrorCode::none);  // it is open still
}

TEST_CASE("a 100 may come over TCP at any time, over UDP once the client repeats at T2") {
  World over_tcp;
  over_tcp.receive(message_request, tcp);
  CHECK(over_tcp.answer(100) == ErrorCode::none);
  CHECK(over_tcp.sent.size() == 1);

  World world;
  world.receive(message_request);
  world.run_until(3499);
  CHECK(world.answer(100) == ErrorCode::bad_argument);
  CHECK(world.sent.empty());
  world.run_until(3500);
  CHECK(world.answer(100) == ErrorCode::none);
  world.receive(message_request);  // Proceeding: the 100 again
  REQUIRE(world.sent.size() == 2);
  CHECK(world.sent[1].bytes == world.sent[0].bytes);
  CHECK(world.answer(100) == ErrorCode::none);
  CHECK(world.answer(200) == ErrorCode::none);
  world.receive(message_request);
  REQUIRE(world.sent.size() == 5);
  CHECK(world.sent[3].bytes.substr(0, 14) == "SIP/2.0 200 OK");
  CHECK(world.sent[4].bytes == world.sent[3].bytes);
  world.run_until(35499);
  CHECK(world.layer.size() == 1);
  world.run_until(35500);
  CHECK(world.layer.size() == 0);
}

TEST_CASE("in Proceeding as well, time runs out 64*T1 after the request came") {
  World world;
  world.receive(message_request);
  world.run_until(5000);
  CHECK(world.answer(100) == ErrorCode::none);
  world.run_until(32000);
  CHECK(world.layer.size() == 0);
  CHECK(world.sent.size() == 1);
}

TEST_CASE("the answer is kept although the sink refused it, for the client will ask again") {
  World world;
  world.receive(message_request);
  world.send_error = ErrorCode::network;
  CHECK(world.answer(200) == ErrorCode::network);
  world.send_error = ErrorCode::none;
  world.receive(message_request);
  CHECK(world.requests.size() == 1);
  REQUIRE(world.sent.size() == 1);
  CHECK(world.sent[0].bytes.substr(0, 14) == "SIP/2.0 200 OK");
}

TEST_CASE("an answer without state leaves nothing behind, and a repeat is a new request") {
  for (const std::string& request : {message_request, invite_request}) {
    World world;
    world.receive(request);
    const ServerTransaction server = world.server();
    const std::string text = world.answer_text(server, 401);
    CHECK(world.layer.respond_statelessly(server, 100, Slices(text), 0).code ==
          ErrorCode::bad_argument);
    CHECK_FALSE(world.layer.respond_statelessly(server, 401, Slices(text), 0));
    CHECK(world.layer.size() == 0);
    CHECK(world.layer.kept_size() == 0);
    CHECK(world.layer.respond_statelessly(server, 401, Slices(text), 0).code == ErrorCode::gone);
    world.receive(ack_request);
    world.receive(request);
    CHECK(world.requests.size() == 2);
    CHECK(world.answer_text(world.server(), 401) == text);  // To tag included
    CHECK(world.sent.size() == 1);
  }
}

TEST_CASE("a number of the user's stays with a request until it is gone") {
  World world;
  world.receive(message_request);
  const ServerTransaction server = world.server();
  CHECK(world.layer.user_data(server) == 0);
  world.layer.set_user_data(server, 42);
  CHECK(world.layer.user_data(server) == 42);
  world.run_until(32000);
  CHECK(world.layer.user_data(server) == 0);
  world.layer.set_user_data(server, 43);
  CHECK(world.layer.to_tag(server).empty());
  CHECK(world.layer.source(server).socket == 0);
  CHECK(world.layer.user_data(ServerTransaction()) == 0);
}

// Matching.

TEST_CASE("requests match by branch, sent-by and method, and by the address they come from") {
  struct Row {
    std::string name;
    std::string request;
    std::string from;
    bool same;
  };
  const Row rows[] = {
      {"the same", message_request, "192.0.2.7:5070", true},
      {"from another port, as a NAT may do", message_request, "192.0.2.7:6000", true},
      {"other Call-ID and body: not compared", replaced(message_request, "call-1", "call-2"),
       "192.0.2.7:5070", true},
      {"other branch", replaced(message_request, "Kone", "Ktwo"), "192.0.2.7:5070", false},
      {"other sent-by host", replaced(message_request, "UDP 192.0.2.7", "UDP 192.0.2.8"),
       "192.0.2.7:5070", false},
      {"other sent-by port", replaced(message_request, "7:5070", "7:5071"), "192.0.2.7:5070",
       false},
      {"no sent-by port, which is 5060", replaced(message_request, "7:5070", "7"), "192.0.2.7:5070",
       false},
      {"other method", with_method("OPTIONS"), "192.0.2.7:5070", false},
      {"other method, unknown", with_method("FOO"), "192.0.2.7:5070", false},
      {"from another address: another phone that made the same branch", message_request,
       "192.0.2.8:5070", false},
  };
  for (const Row& row : rows) {
    CAPTURE(row.name);
    World world;
    world.receive(message_request);
    world.receive(row.request, flow_from(row.from));
    CHECK(world.requests.size() == (row.same ? 1 : 2));
  }
}

TEST_CASE("a sent-by without port is one with port 5060") {
  World world;
  world.receive(replaced(message_request, "7:5070", "7"));
  world.receive(replaced(message_request, "7:5070", "7:5060"));
  CHECK(world.requests.size() == 1);
}

TEST_CASE("unknown methods are told apart") {
  World world;
  world.receive(with_method("FOO"));
  world.receive(with_method("BAR"));
  world.receive(with_method("FOO"));
  CHECK(world.requests.size() == 2);
}

TEST_CASE("parts of the key cannot be shifted into one another") {
  World world;
  world.receive(replaced(message_request, "7:5070;branch=z9hG4bKone", "7;branch=z9hG4bKab"));
  world.receive(replaced(message_request, "UDP 192.0.2.7:5070;branch=z9hG4bKone",
                         "UDP b192.0.2.7;branch=z9hG4bKa"));
  CHECK(world.requests.size() == 2);
}

TEST_CASE("two phones that were switched on in the same second share all but the sent-by port") {
  // Twinkle makes branch, Call-ID, tag and CSeq from the time of day.
  World world;
  const std::string first = test::read_data("captures/twinkle/01-udp-REGISTER.txt");
  MessageView view;
  REQUIRE_FALSE(view.parse(first));
  const std::string sent_by = "127.0.0.1:" + std::to_string(view.top_via()->port);
  world.receive(first, flow_from(sent_by));
  world.receive(replaced(first, sent_by, "127.0.0.1:5999"), flow_from("127.0.0.1:5999"));
  REQUIRE(world.requests.size() == 2);
  CHECK(world.answer(world.requests[0], 200) == ErrorCode::none);
  CHECK(world.answer(world.requests[1], 403) == ErrorCode::none);
  CHECK(world.sent[0].flow.remote.port == view.top_via()->port);
  CHECK(world.sent[1].flow.remote.port == 5999);
}

TEST_CASE("without the magic cookie requests match as RFC 2543 has it") {
  struct Row {
    std::string name;
    std::string what;
    std::string with;
    bool same;
  };
  const Row rows[] = {
      {"the same", "hi", "hi", true},
      {"other headers and body: not compared", "Max-Forwards: 70", "Max-Forwards: 69", true},
      {"other Request-URI", "MESSAGE sip:bob", "MESSAGE sip:bill", false},
      {"other From tag", "tag=a1", "tag=a2", false},
      {"other To tag", "To: <sip:bob@example.com>", "To: <sip:bob@example.com>;tag=x", false},
      {"other Call-ID", "call-1", "call-2", false},
      {"other CSeq number", "CSeq: 1", "CSeq: 2", false},
      {"other Via", "7:5070", "7:5071", false},
      {"other branch, which is part of Via", "branch=1", "branch=2", false},
  };
  for (std::string branch : {";branch=1", ";branch=z9hG4bK", ";branch=Z9hg4bk"}) {
    const std::string request = replaced(message_request, ";branch=z9hG4bKone", branch);
    for (const Row& row : rows) {
      if (request.find(row.what) == std::string::npos) continue;
      CAPTURE(branch);
      CAPTURE(row.name);
      World world;
      world.receive(request);
      world.receive(replaced(request, row.what, row.with));
      CHECK(world.requests.size() == (row.same ? 1 : 2));
    }
  }
  World world;
  const std::string request = replaced(message_request, ";branch=z9hG4bKone", "");
  world.receive(request);
  world.receive(request);
  world.receive(replaced(replaced(request, "MESSAGE", "OPTIONS"), "1 MESSAGE", "1 OPTIONS"));
  CHECK(world.requests.size() == 2);
}

TEST_CASE("requests whose branch is the cookie alone are not taken for one transaction") {
  World world;
  const std::string badbranch = test::read_data("rfc4475/badbranch.dat");
  world.receive(badbranch);
  world.receive(badbranch);
  CHECK(world.requests.size() == 1);
  world.receive(replaced(badbranch, "CSeq: 8", "CSeq: 9"));
  CHECK(world.requests.size() == 2);
}

TEST_CASE("an ACK that matches nothing is dropped") {
  World world;
  world.receive(ack_request);
  world.receive(legacy(ack_request));
  world.receive(message_request);
  world.receive(ack_request);  // the branch of a request that is no INVITE
  CHECK(world.requests.size() == 1);
  CHECK(world.sent.empty());
}

// The server machine for INVITE.

TEST_CASE("the refusal of an INVITE is repeated at the instants of Timer G until Timer H") {
  struct Row {
    std::uint32_t max_sends;
    Times sent_at;
  };
  const Row rows[] = {
      {255, {100, 600, 1600, 3600, 7600, 11600, 15600, 19600, 23600, 27600, 31600}},
      {5, {100, 600, 1600, 3600, 7600}},
      {1, {100}},
  };
  for (const Row& row : rows) {
    CAPTURE(row.max_sends);
    TransactionOptions options;
    options.max_answer_sends = row.max_sends;
    World world(options);
    world.receive(invite_request);
    world.run_until(100);
    CHECK(world.answer(405) == ErrorCode::none);
    world.run_until(32099);
    CHECK(world.layer.size() == 1);
    CHECK(world.sent_at() == row.sent_at);
    for (const auto& sent : world.sent) CHECK(sent.bytes == world.sent[0].bytes);
    world.run_until(32100);
    CHECK(world.layer.size() == 0);
    CHECK(world.layer.kept_size() == 0);
    CHECK(world.requests.size() == 1);
  }
}

TEST_CASE("an ACK ends the repetition, and Timer I the transaction") {
  for (bool is_legacy : {false, true}) {
    CAPTURE(is_legacy);
    const auto form = [is_legacy](const std::string& text) {
      return is_legacy ? legacy(text) : text;
    };
    World world;
    world.receive(form(invite_request));
    CHECK(world.answer(486) == ErrorCode::none);
    world.run_until(700);
    const std::string to = header_of(world.sent[0].bytes, HeaderId::to);
    const std::string ack = replaced(form(ack_request), "To: <sip:bob@example.com>", "To: " + to);
    world.receive(form(invite_request));  // Completed: the answer again
    CHECK(world.sent_at() == Times{0, 500, 700});
    if (is_legacy) {
      world.receive(replaced(ack, to, "<sip:bob@example.com>;tag=other"));
      CHECK(world.layer.kept_size() > 0);
    }
    world.receive(ack);
    CHECK(world.layer.kept_size() == 0);
    CHECK(world.layer.next_deadline() == 5700);  // Timer G is off
    world.receive(ack);
    world.receive(form(invite_request));  // Confirmed: nothing
    world.run_until(5699);
    CHECK(world.layer.size() == 1);
    world.run_until(5700);
    CHECK(world.layer.size() == 0);
    CHECK(world.sent_at() == Times{0, 500, 700});
    CHECK(world.requests.size() == 1);
  }
}

TEST_CASE("an INVITE of RFC 2543 within a dialog is acknowledged with the tag it came with") {
  World world;
  const std::string to = "To: <sip:bob@example.com>";
  world.receive(replaced(legacy(invite_request), to, to + ";tag=b7"));
  CHECK(world.answer(488) == ErrorCode::none);
  CHECK(header_of(world.sent[0].bytes, HeaderId::to) == "<sip:bob@example.com>;tag=b7");
  world.receive(legacy(ack_request));
  CHECK(world.layer.kept_size() > 0);
  world.receive(replaced(legacy(ack_request), to, to + ";tag=b7"));
  CHECK(world.layer.kept_size() == 0);
}

TEST_CASE("over TCP the refusal of an INVITE goes out once, and the ACK ends the transaction") {
  World world;
  world.receive(invite_request, tcp);
  CHECK(world.answer(501) == ErrorCode::none);
  world.run_until(31999);
  CHECK(world.layer.size() == 1);
  CHECK(world.sent.size() == 1);
  world.receive(invite_request, tcp);
  CHECK(world.sent.size() == 2);
  SUBCASE("ACK") { world.receive(ack_request, tcp); }
  SUBCASE("Timer H") { world.run_until(32000); }
  CHECK(world.layer.size() == 0);
  CHECK(world.layer.kept_size() == 0);
}

TEST_CASE("while an INVITE is open, repeats of it get the latest provisional answer") {
  World world;
  world.receive(invite_request);
  world.receive(invite_request);
  world.receive(ack_request);
  CHECK(world.sent.empty());
  CHECK(world.answer(100) == ErrorCode::none);
  CHECK(world.answer(180) == ErrorCode::none);
  world.receive(invite_request);
  REQUIRE(world.sent.size() == 3);
  CHECK(world.sent[2].bytes == world.sent[1].bytes);
  CHECK(world.answer(487) == ErrorCode::none);
  CHECK(world.answer(180) == ErrorCode::gone);
  CHECK(world.requests.size() == 1);
}

TEST_CASE("an INVITE cannot be answered with 2xx, and nobody waits for its answer for ever") {
  World world;
  world.receive(invite_request);
  CHECK(world.answer(200) == ErrorCode::bad_argument);
  world.run_until(31999);
  CHECK(world.layer.size() == 1);
  world.run_until(32000);
  CHECK(world.layer.size() == 0);
  CHECK(world.sent.empty());
}

TEST_CASE("a CANCEL is a request of its own that finds the INVITE it means") {
  for (bool is_legacy : {false, true}) {
    CAPTURE(is_legacy);
    const auto form = [is_legacy](const std::string& text) {
      return is_legacy ? legacy(text) : text;
    };
    World world;
    world.receive(form(invite_request));
    const ServerTransaction invite = world.server();
    MessageView cancel;
    const std::string text = form(with_method("CANCEL"));
    REQUIRE_FALSE(cancel.parse(text));
    CHECK(world.layer.find_cancelled(cancel, udp) == invite);
    CHECK_FALSE(world.layer.find_cancelled(cancel, flow_from("192.0.2.66:5070")));

    world.receive(text);
    REQUIRE(world.requests.size() == 2);
    CHECK(world.layer.to_tag(world.server()) == world.layer.to_tag(invite));
    CHECK(world.answer(200) == ErrorCode::none);
    CHECK(world.answer(invite, 487) == ErrorCode::none);
    world.receive(text);
    CHECK(world.requests.size() == 2);
    CHECK(world.sent.size() == 3);
  }
  World world;
  world.receive(message_request);
  MessageView cancel;
  const std::string text = with_method("CANCEL");
  REQUIRE_FALSE(cancel.parse(text));
  CHECK_FALSE(world.layer.find_cancelled(cancel, udp));
}

// Where answers go.

TEST_CASE("an answer goes back where RFC 3261 18.2.2 and RFC 3581 send it") {
  struct Row {
    std::string name;
    std::string via;
    bool to_source;
    std::string goes_to;
    std::string answer_via;
  };
  const Row rows[] = {
      {"rport", "192.0.2.7:5070;branch=z9hG4bKx;rport", false, "192.0.2.7:7777",
       "192.0.2.7:5070;branch=z9hG4bKx;received=192.0.2.7;rport=7777"},
      {"no rport: the port in Via", "192.0.2.7:5070;branch=z9hG4bKx", false, "192.0.2.7:5070",
       "192.0.2.7:5070;branch=z9hG4bKx"},
      {"no rport, no port: 5060", "192.0.2.7;branch=z9hG4bKx", false, "192.0.2.7:5060",
       "192.0.2.7;branch=z9hG4bKx"},
      {"another host in Via: the source's address", "10.0.0.1:5070;branch=z9hG4bKx", false,
       "192.0.2.7:5070", "10.0.0.1:5070;branch=z9hG4bKx;received=192.0.2.7"},
      {"a name in Via", "pc.example.com;branch=z9hG4bKx", false, "192.0.2.7:5060",
       "pc.example.com;branch=z9hG4bKx;received=192.0.2.7"},
      {"maddr is not followed", "192.0.2.7:5070;maddr=203.0.113.5;branch=z9hG4bKx", false,
       "192.0.2.7:5070", "192.0.2.7:5070;maddr=203.0.113.5;branch=z9hG4bKx"},
      {"a received the sender made up", "192.0.2.7:5070;received=203.0.113.5;branch=z9hG4bKx",
       false, "192.0.2.7:5070", "192.0.2.7:5070;branch=z9hG4bKx"},
      {"told to ignore Via", "10.0.0.1:5070;branch=z9hG4bKx", true, "192.0.2.7:7777",
       "10.0.0.1:5070;branch=z9hG4bKx;received=192.0.2.7"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.name);
    TransactionOptions options;
    options.answer_to_source = row.to_source;
    World world(options);
    const Flow from = flow_from("192.0.2.7:7777");
    const std::string request =
        replaced(message_request, "192.0.2.7:5070;branch=z9hG4bKone;rport", row.via);
    world.receive(request, from);
    CHECK(world.answer(200) == ErrorCode::none);
    world.receive(request, from);
    world.receive(replaced(request, "Call-ID: call-1\r\n", ""), from);  // the stateless 400
    REQUIRE(world.sent.size() == 3);
    for (const auto& sent : world.sent) {
      CHECK(sipmsg::to_text(sent.flow.remote) == row.goes_to);
      CHECK(sent.flow.socket == 1);
      CHECK(header_of(sent.bytes, HeaderId::via) == std::string("SIP/2.0/UDP ") + row.answer_via);
    }
  }
}

TEST_CASE("over TCP an answer goes on the connection of the request, else on a new one") {
  for (const std::string& request : {message_request, invite_request}) {
    World world;
    world.receive(request, tcp);
    world.closed_sockets.insert(tcp.socket);
    CHECK(world.answer(405) == ErrorCode::none);
    REQUIRE(world.sent.size() == 1);
    CHECK(world.sent[0].flow.transport == Transport::tcp);
    CHECK(world.sent[0].flow.socket == 0);
    CHECK(sipmsg::to_text(world.sent[0].flow.remote) == "192.0.2.7:5070");  // the port in Via
  }
  World world;
  world.receive(message_request, tcp);
  world.send_error = ErrorCode::closed;
  CHECK(world.answer(200) == ErrorCode::closed);
  CHECK(world.layer.size() == 0);
}

TEST_CASE(
    "all Via headers of a request are in its answer, in order, and only the first is stamped") {
  World world;
  world.receive(replaced(message_request, "Max-Forwards",
                         "v: SIP/2.0/TCP a.example.com;branch=z9hG4bK2 , SIP/2.0/UDP "
                         "b.example.com;branch=z9hG4bK3\r\nMax-Forwards"));
  CHECK(world.answer(200) == ErrorCode::none);
  CHECK(world.sent[0].bytes.find(
            "Via: SIP/2.0/UDP 192.0.2.7:5070;branch=z9hG4bKone;received=192.0.2.7;rport=5070\r\n"
            "Via: SIP/2.0/TCP a.example.com;branch=z9hG4bK2\r\n"
            "Via: SIP/2.0/UDP b.example.com;branch=z9hG4bK3\r\n") != std::string::npos);
}

// Limits, and answers without state.

TEST_CASE("beyond the limit a request gets 503 with Retry-After, and nothing is kept") {
  TransactionOptions options;
  options.max_transactions = 1;
  options.retry_after_s = 17;
  World world(options);
  world.receive(message_request);
  const std::size_t kept = world.layer.kept_size();
  const std::string second = replaced(message_request, "Kone", "Ktwo");
  world.receive(second);
  world.receive(second);
  world.receive(replaced(ack_request, "Kone", "Ktwo"));
  CHECK(world.requests.size() == 1);
  CHECK(world.layer.size() == 1);
  CHECK(world.layer.kept_size() == kept);
  REQUIRE(world.sent.size() == 2);
  CHECK(world.sent[0].bytes.substr(0, 12) == "SIP/2.0 503 ");
  CHECK(header_of(world.sent[0].bytes, HeaderId::retry_after) == "17");
  CHECK(world.sent[1].bytes == world.sent[0].bytes);  // the To tag as well (RFC 3261 8.2.7)

  world.receive(message_request);  // what is open is served on
  CHECK(world.answer(200) == ErrorCode::none);
  world.run_until(32000);
  world.receive(second);
  CHECK(world.requests.size() == 2);
  CHECK(header_of(world.answer_text(world.server(), 200), HeaderId::to) ==
        header_of(world.sent[0].bytes, HeaderId::to));
}

TEST_CASE("kept messages beyond their limit have the same effect") {
  TransactionOptions options;
  options.max_kept_size = 1000;
  World world(options);
  const std::string large(2000, 'x');
  REQUIRE(world.layer.send(udp, "z9hG4bKbig", "MESSAGE", Slices(large), 1, 0));
  CHECK(world.layer.kept_size() >= 2000);
  CHECK(world.send(udp).error().code == ErrorCode::limit_reached);
  world.receive(message_request);
  CHECK(world.requests.empty());
  REQUIRE(world.sent.size() == 2);
  CHECK(world.sent[1].bytes.substr(0, 12) == "SIP/2.0 503 ");
  world.run_until(32000);
  world.receive(message_request);
  CHECK(world.requests.size() == 1);
}

TEST_CASE("To tags differ from request to request and from secret to secret") {
  std::set<std::string> tags;
  for (std::uint8_t secret = 1; secret <= 3; ++secret) {
    World world({}, secret);
    for (std::string branch : {"Ka", "Kb", "Kc"}) {
      world.receive(replaced(message_request, "Kone", branch));
      tags.insert(std::string(world.layer.to_tag(world.server())));
      CHECK(world.layer.to_tag(world.server()).size() == 16);
    }
  }
  CHECK(tags.size() == 9);
}

TEST_CASE("a malformed request is answered with what is wrong and where, each time alike") {
  struct Row {
    std::string request;
    std::string status_line;
  };
  const Row rows[] = {
      {replaced(message_request, "Call-ID: call-1\r\n", ""), "SIP/2.0 400 Call-ID is missing\r\n"},
      {replaced(message_request, "CSeq: 1 MESSAGE\r\n", ""), "SIP/2.0 400 CSeq is missing\r\n"},
      {replaced(message_request, "CSeq: 1 ", "CSeq: one "),
       "SIP/2.0 400 CSeq is malformed (octet 200)\r\n"},
      {replaced(message_request, "1 MESSAGE", "1 OPTIONS"),
       "SIP/2.0 400 the method in CSeq differs from the request's (octet 200)\r\n"},
      {replaced(message_request, "SIP/2.0\r\n", "SIP/3.0\r\n"),
       "SIP/2.0 505 the SIP version is not 2.0 (octet 28)\r\n"},
      {replaced(message_request, "Length: 2", "Length: 3"),
       "SIP/2.0 400 Content-Length is larger than the body that came (octet 253)\r\n"},
  };
  for (const Row& row : rows) {
    World world;
    world.receive(row.request);
    world.receive(row.request);
    CHECK(world.requests.empty());
    CHECK(world.layer.size() == 0);
    REQUIRE(world.sent.size() == 2);
    CHECK(world.sent[0].bytes.substr(0, world.sent[0].bytes.find('\n') + 1) == row.status_line);
    CHECK(world.sent[1].bytes == world.sent[0].bytes);
    CHECK(
        header_of(world.sent[0].bytes, HeaderId::to).substr(0, 30) ==
        "<sip:bob@example.com>;tag=" +
            world.sent[0].bytes.substr(world.sent[0].bytes.find("bob@example.com>;tag=") + 21, 4));
  }
}

TEST_CASE("what is too large is answered 513") {
  World world;
  MessageView message;
  REQUIRE_FALSE(message.parse(message_request));
  world.layer.receive(message, ErrorCode::too_large, udp, 0);
  std::string many = message_request;
  for (int i = 0; i < SIPMSG_MAX_HEADERS; ++i) many = replaced(many, "Max-", "X: y\r\nMax-");
  world.receive(many);
  REQUIRE(world.sent.size() == 2);
  for (const auto& sent : world.sent) CHECK(sent.bytes.substr(0, 12) == "SIP/2.0 513 ");
}

TEST_CASE("no answer goes to what is owed none") {
  const std::string silent[] = {
      replaced(ack_request, "Call-ID: call-1\r\n", ""),
      replaced(ack_request, "SIP/2.0\r\n", "SIP/3.0\r\n"),
      replaced(response_text(200), "Call-ID: call-1\r\n", ""),
      replaced(response_text(200), "SIP/2.0 200", "SIP/2.0 2000"),
      replaced(message_request, "Via: SIP/2.0/UDP 192.0.2.7:5070;branch=z9hG4bKone;rport\r\n", ""),
      "\r\n\r\n",
      "\r\n",
      "",
      "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n",
      std::string(100, '\0'),
      "nonsense",
  };
  for (const std::string& bytes : silent) {
    CAPTURE(bytes);
    World world;
    world.receive(bytes);
    CHECK(world.sent.empty());
    CHECK(world.requests.empty());
    CHECK(world.layer.size() == 0);
  }
}

TEST_CASE("the line breaks of a malformed request do not get into the answer") {
  for (std::string from : {"a\rVia: evil", "a\n Via: evil", "a\r\r\n b"}) {
    CAPTURE(from);
    World world;
    world.receive(replaced(message_request, "From: ", "From: " + from + "\r\nX: "));
    CHECK(world.requests.empty());
    REQUIRE(world.sent.size() == 1);
    MessageView answer;
    CHECK_FALSE(answer.parse(world.sent[0].bytes));
    CHECK(answer.status_code() == 400);
    CHECK(answer.header(HeaderId::from).find_first_of("\r\n") == std::string_view::npos);
    CHECK(answer.header(HeaderId::via).find("evil") == std::string_view::npos);
  }
}

TEST_CASE("a request whose answer would be many times its size is dropped") {
  World world;
  const std::string commas(20000, ',');
  world.receive(replaced(message_request, ";rport", ";rport" + commas));
  CHECK(world.requests.empty());
  CHECK(world.sent.empty());
  CHECK(world.layer.size() == 0);
}

TEST_CASE("the torture messages of RFC 4475 meet the transaction layer") {
  struct Row {
    std::string file;
    std::string outcome;  ///< "request", "dropped", or the status line of the answer
  };
  const Row rows[] = {
      {"wsinv.dat", "request"},
      {"intmeth.dat", "request"},
      {"esc01.dat", "request"},
      {"escnull.dat", "request"},
      {"esc02.dat", "request"},
      {"lwsdisp.dat", "request"},
      {"longreq.dat", "request"},
      {"dblreq.dat", "request"},
      {"semiuri.dat", "request"},
      {"transports.dat", "request"},
      {"mpart01.dat", "request"},
      {"unreason.dat", "dropped"},
      {"noreason.dat", "dropped"},
      {"badinv01.dat", "400 a parameter is malformed (octet 217)"},
      {"clerr.dat", "400 Content-Length is larger than the body that came (octet 336)"},
      {"ncl.dat", "400 Content-Length is not a number (octet 326)"},
      {"scalar02.dat", "400 CSeq is malformed (octet 174)"},
      {"scalarlg.dat", "dropped"},
      {"quotbal.dat", "400 a quoted string is not closed (octet 41)"},
      {"ltgtruri.dat", "400 the URI is malformed (octet 7)"},
      {"lwsruri.dat", "400 the first line is neither a request line nor a status line (octet 7)"},
      {"lwsstart.dat", "400 the first line is neither a request line nor a status line (octet 7)"},
      {"trws.dat", "400 the first line is neither a request line nor a status line (octet 8)"},
      {"escruri.dat", "request"},
      {"baddate.dat", "request"},
      {"regbadct.dat", "request"},
      {"badaspec.dat", "400 the URI is malformed (octet 206)"},
      {"baddn.dat", "400 the blank line after the headers is missing (octet 331)"},
      {"badvers.dat", "505 the SIP version is not 2.0 (octet 33)"},
      {"mismatch01.dat", "400 the method in CSeq differs from the request's (octet 163)"},
      {"mismatch02.dat", "400 the method in CSeq differs from the request's (octet 165)"},
      {"bigcode.dat", "dropped"},
      {"badbranch.dat", "request"},
      {"insuf.dat", "400 Call-ID is missing"},
      {"unkscm.dat", "request"},
      {"novelsc.dat", "request"},
      {"unksm2.dat", "request"},
      {"bext01.dat", "request"},
      {"invut.dat", "request"},
      {"regaut01.dat", "request"},
      {"multi01.dat", "400 a header that may appear once appears twice (octet 470)"},
      {"mcl01.dat", "400 several Content-Length headers disagree (octet 246)"},
      {"bcast.dat", "dropped"},
      {"zeromf.dat", "request"},
      {"cparam01.dat", "request"},
      {"cparam02.dat", "request"},
      {"regescrt.dat", "request"},
      {"sdp01.dat", "request"},
      {"inv2543.dat", "request"},
  };
  std::set<std::string> tested;
  for (const Row& row : rows) {
    CAPTURE(row.file);
    World world;
    world.receive(test::read_data("rfc4475/" + row.file));
    std::string outcome = "dropped";
    if (!world.requests.empty()) outcome = "request";
    if (!world.sent.empty()) {
      outcome = world.sent[0].bytes.substr(8, world.sent[0].bytes.find('\r') - 8);
      CHECK(world.layer.size() == 0);
    }
    CHECK(outcome == row.outcome);
    tested.insert(row.file);
  }
  for (const auto& row : test::read_table("rfc4475/INDEX.tsv")) CHECK(tested.count(row[0]) == 1);
}

TEST_CASE("the requests of real phones come through, once each") {
  std::string files[] = {"baresip/03-udp-MESSAGE.txt",  "linphone/01-udp-REGISTER.txt",
                         "linphone/03-udp-PUBLISH.txt", "linphone/04-udp-MESSAGE.txt",
                         "pjsua/05-udp-MESSAGE.txt",    "sipp/09-udp-BYE.txt",
                         "sipp/03-udp-MESSAGE.txt",     "twinkle/01-udp-REGISTER.txt"};
  World world;
  for (std::string file : files) {
    const std::string bytes = test::read_data(std::string("captures/") + file);
    world.receive(bytes);
    world.receive(bytes);
  }
  CHECK(world.requests.size() == std::size(files));
  CHECK(world.sent.empty());  // no 100 to any of them (RFC 4320)
}

// Calling back while being called.

TEST_CASE("a request may be answered, and anything else done, while it is being given") {
  World world;
  world.when_request = [&world](ServerTransaction server) {
    CHECK(world.answer(server, 200) == ErrorCode::none);
    if (world.requests.size() > 1) return;
    world.receive(message_request);                               // its own repeat
    world.receive(replaced(message_request, "Kone", "Knested"));  // another request
    CHECK(world.send(tcp));
    world.layer.connection_closed(tcp.socket, ErrorCode::closed, world.now_ms);
  };
  world.receive(message_request);
  CHECK(world.requests.size() == 2);
  CHECK(world.failures.size() == 1);
  CHECK(world.sent.size() == 4);
  world.receive(message_request, tcp);
  CHECK(world.requests.size() == 2);
}

TEST_CASE("a transaction may be gone when giving its request returns") {
  World world;
  world.when_request = [&world](ServerTransaction) { world.run_until(world.now_ms + 40000); };
  world.receive(message_request);
  CHECK(world.layer.size() == 0);
  world.when_request = [&world](ServerTransaction) { world.layer.close(); };
  world.receive(message_request);
  CHECK(world.layer.size() == 0);
}

TEST_CASE("when a response is told, the transaction may be forgotten and new ones made") {
  for (Transport transport : {Transport::udp, Transport::tcp}) {
    for (int code : {180, 200}) {
      World world;
      REQUIRE(world.send(flow_of(transport)));
      world.when_response = [&](ClientTransaction client) {
        world.layer.forget(client);
        for (int i = 0; i < 200; ++i) {
          CHECK(world.send(flow_of(transport), 2, "z9hG4bKnew" + std::to_string(i)));
        }
      };
      world.receive(response_text(code));
      world.receive(response_text(code));
      CHECK(world.responses == std::vector<int>{code});
      CHECK(world.layer.client_count() == 200);
      world.run_until(100000);
      CHECK(world.failures.size() == 200);
      CHECK(world.layer.size() == 0);
    }
  }
}

TEST_CASE("time may pass, and the same response come again, while a response is told") {
  for (Transport transport : {Transport::udp, Transport::tcp}) {
    World world;
    REQUIRE(world.send(flow_of(transport)));
    world.when_response = [&](ClientTransaction) {
      world.receive(response_text(200));
      world.layer.connection_closed(tcp.socket, ErrorCode::closed, world.now_ms);
      world.run_until(world.now_ms + 100000);
    };
    world.receive(response_text(200));
    CHECK(world.responses == std::vector<int>{200});
    CHECK(world.failures.empty());
    CHECK(world.layer.size() == 0);
  }
}

TEST_CASE("when a failure is told, others may be forgotten and new requests sent on the same way") {
  World world;
  std::vector<ClientTransaction> clients;
  for (std::uint64_t i = 0; i < 10; ++i) {
    const auto client = world.send(tcp, i, "z9hG4bK" + std::to_string(i));
    REQUIRE(client);
    clients.push_back(*client);
  }
  world.when_failure = [&](ClientTransaction client) {
    CHECK(world.layer.user_data(client) < 10);
    if (world.failures.size() > 1) return;
    for (std::size_t i = 0; i < 5; ++i) world.layer.forget(clients[i]);
    world.receive(response_text(200, "MESSAGE", "z9hG4bK7"), tcp);
    CHECK(world.send(tcp, 99, "z9hG4bKagain"));
    world.layer.forget(client);
  };
  world.layer.connection_closed(tcp.socket, ErrorCode::closed, 0);
  CHECK(world.failures.size() == 4);  // 9, and 8, 6, 5; 7 was answered
  CHECK(world.responses == std::vector<int>{200});
  CHECK(world.layer.client_count() == 1);
  world.when_failure = nullptr;
  world.layer.connection_closed(tcp.socket, ErrorCode::closed, 0);
  CHECK(world.failures.back().user_data == 99);
  CHECK(world.layer.size() == 0);
}

TEST_CASE("when a timeout is told, the connection may be closed") {
  World world;
  REQUIRE(world.send(tcp, 1, "z9hG4bK1"));
  world.run_until(10);
  REQUIRE(world.send(tcp, 2, "z9hG4bK2"));
  world.when_failure = [&](ClientTransaction) {
    world.layer.connection_closed(tcp.socket, ErrorCode::network, world.now_ms);
  };
  world.run_until(32000);
  REQUIRE(world.failures.size() == 2);
  CHECK(world.failures[0].code == ErrorCode::timeout);
  CHECK(world.failures[1].code == ErrorCode::network);
  CHECK(world.failures[1].user_data == 2);
  CHECK(world.layer.size() == 0);
}

TEST_CASE("when a timeout is told, everything may be closed") {
  World world;
  for (std::uint64_t i = 0; i < 5; ++i) {
    REQUIRE(world.send(i % 2 == 0 ? udp : tcp, i, "z9hG4bK" + std::to_string(i)));
  }
  world.receive(message_request);
  world.when_failure = [&](ClientTransaction) { world.layer.close(); };
  world.run_until(100000);
  CHECK(world.failures.size() == 5);
  CHECK(world.layer.size() == 0);
}

TEST_CASE("closing tells every open request, and nothing is taken on after it") {
  World world;
  REQUIRE(world.send(udp, 1, "z9hG4bK1"));
  REQUIRE(world.send(tcp, 2, "z9hG4bK2"));
  REQUIRE(world.send(udp, 3, "z9hG4bK3"));
  world.receive(response_text(200, "MESSAGE", "z9hG4bK3"));  // answered already
  world.receive(message_request);
  world.when_failure = [&](ClientTransaction) {
    CHECK(world.send(udp, 4, "z9hG4bK4").error().code == ErrorCode::closed);
    if (world.failures.size() == 1) CHECK(world.answer(503) == ErrorCode::none);
  };
  world.layer.close();
  world.layer.close();
  CHECK(world.failures.size() == 2);
  for (const auto& failure : world.failures) CHECK(failure.code == ErrorCode::closed);
  CHECK(world.layer.size() == 0);
  CHECK(world.layer.kept_size() == 0);
  CHECK_FALSE(world.layer.next_deadline());
  world.receive(message_request);
  world.receive(replaced(message_request, "Call-ID: call-1\r\n", ""));
  CHECK(world.requests.size() == 1);
  CHECK(world.sent.back().bytes.substr(0, 12) == "SIP/2.0 503 ");
}

// What it costs.

namespace {

/// A proxy in miniature that allocates nothing: each request is sent on as it is, each response
/// given back.
class Relay : private sipmsg::Sink, private sipmsg::TransactionUser {
 public:
  Relay() : layer_({}, *this, *this, sipmsg::SipHashKey{1}) {}

  /// One MESSAGE, repeated once, and its answer, repeated once.
  void relay(unsigned number, std::uint64_t now_ms) {
    now_ms_ = now_ms;
    layer_.advance(now_ms);
    char branch[16];
    std::snprintf(branch, sizeof branch, "z9hG4bK%08u", number);
    branch_ = {branch, 15};
    fill(request_, branch);
    fill(response_, branch);
    MessageView message;
    for (int i = 0; i < 2; ++i) {
      const Error error = message.parse(request_);
      layer_.receive(message, error, udp, now_ms);
    }
    for (int i = 0; i < 2; ++i) {
      const Error error = message.parse(response_);
      layer_.receive(message, error, udp, now_ms);
    }
    const Error error = message.parse(request_);
    layer_.receive(message, error, udp, now_ms);
  }

  unsigned sent = 0;
  unsigned failed = 0;
  TransactionLayer& layer() { return layer_; }

 private:
  static void fill(std::string& text, const char* branch) {
    text.replace(text.find("z9hG4bK"), 15, branch, 15);
  }
  Result<std::string_view> sent_by(Flow&) override { return std::string_view("192.0.2.1:5060"); }
  Error send(const Flow&, const Slices&) override {
    ++sent;
    return {};
  }
  void on_request(ServerTransaction server, const MessageView& request, const Flow&) override {
    server_ = server;
    if (!layer_.send(udp, branch_, "MESSAGE", Slices(request.bytes()), 1, now_ms_)) ++failed;
  }
  void on_response(ClientTransaction, const MessageView& response, const Flow&) override {
    if (layer_.respond(server_, 200, Slices(response.bytes()), now_ms_)) ++failed;
  }
  void on_failure(ClientTransaction, Error) override { ++failed; }

  TransactionLayer layer_;
  std::uint64_t now_ms_ = 0;
  std::string_view branch_;
  std::string request_ = replaced(message_request, "z9hG4bKone", "z9hG4bK00000000");
  std::string response_ = response_text(200, "MESSAGE", "z9hG4bK00000000");
  ServerTransaction server_;
};

}  // namespace

TEST_CASE("in steady state a relayed message allocates nothing" * doctest::test_suite("long")) {
  Relay relay;
  std::uint64_t now_ms = 0;
  unsigned number = 0;
  for (; number < 2000; ++number) relay.relay(number, now_ms += 20);
  const std::size_t open = relay.layer().size();
  const test::AllocationCount allocations;
  for (; number < 4000; ++number) relay.relay(number, now_ms += 20);
  CHECK(allocations.count() == 0);
  CHECK(relay.sent == 4000 * 3);  // the request, the answer, and the answer again
  CHECK(relay.failed == 0);
  CHECK(relay.layer().size() == open);
  CHECK(open == 1600 + 250);  // 32 s of answers, 5 s of answered requests
}

TEST_CASE("of an answered request only its answer is kept") {
  Relay relay;
  for (unsigned number = 0; number < 1000; ++number) relay.relay(number, 0);
  CHECK(relay.layer().server_count() == 1000);
  CHECK(relay.layer().client_count() == 1000);
  const std::size_t answer_size = response_text(200, "MESSAGE", "z9hG4bK00000000").size();
  CHECK(relay.layer().kept_size() <= 1000 * (answer_size + answer_size / 4));
  CHECK(sizeof(sipmsg::detail::ServerRecord) <= 192);
}

}  // namespace test_transaction
