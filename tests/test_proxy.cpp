// What the server decides: who may send, who is registered, what is refused and with which words,
// and what handlers do. How a message then travels is in test_relay.cpp.
#include <algorithm>
#include <array>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "support/allocations.hpp"
#include "support/data.hpp"
#include "support/network.hpp"
#include "support/sipmsg.hpp"

namespace test_proxy {

using namespace test::network;
using sipmsg::RouteKey;
using sipmsg::RouteRequest;
using sipmsg::Settings;
using sipmsg::Verdict;

namespace {

const Flow alice = udp("192.0.2.10:5060");
const Flow bob = udp("192.0.2.20:5070");
const std::string bob_contact = "sip:bob@192.0.2.20:5070";
const std::string allow = "MESSAGE, REGISTER, OPTIONS";

Request with_headers(const std::string& headers) {
  Request request;
  request.headers = headers;
  return request;
}

Request to_uri(const std::string& uri) {
  Request request;
  request.uri = uri;
  return request;
}

/// A request that is none of those before.
Request numbered(int n) {
  Request request;
  request.via = "SIP/2.0/UDP 192.0.2.10:5060;branch=z9hG4bKn" + std::to_string(n) + ";rport";
  request.call_id = "call-" + std::to_string(n);
  return request;
}

Request with_method(const std::string& method) {
  Request request;
  request.method = method;
  request.cseq = "1 " + method;
  request.body.clear();
  return request;
}

Request registration(const std::string& user, const std::string& contact_line) {
  Request request = with_method("REGISTER");
  request.uri = "sip:example.org";
  request.from = "<sip:" + user + "@example.org>;tag=r1";
  request.to = "<sip:" + user + "@example.org>";
  request.headers = contact_line;
  return request;
}

/// A user agent that answers challenges. Each request it sends is a new one.
class Phone {
 public:
  Phone(Network& network, std::string user, std::string password)
      : network_(network), user_(std::move(user)), password_(std::move(password)) {}

  Flow flow = alice;
  std::string header = "Authorization";  ///< or Proxy-Authorization

  /// Sends it with the credentials there are; the packet that comes of it.
  Packet send(const Request& request) { return network_.ask(signed_text(request), flow); }
  /// The request as it sends it.
  std::string signed_text(Request request) {
    const std::string n = std::to_string(network_.next_number());
    request.via = "SIP/2.0/UDP 192.0.2.10:5060;branch=z9hG4bK" + user_ + n + ";rport";
    request.cseq = n + " " + request.method;
    request.call_id = "call-" + n;
    if (digest_.is_ready()) {
      request.headers +=
          header + ": " +
          *digest_.authorize(user_, password_, request.method, request.uri, request.body) + "\r\n";
    }
    return request.text();
  }
  /// Takes over the challenge of that algorithm.
  void answer(const Packet& refusal, const std::string& algorithm = "MD5") {
    const std::string name = header == "Authorization" ? "WWW-Authenticate" : "Proxy-Authenticate";
    for (const std::string& value : headers_of(refusal.text, name)) {
      const auto challenge = sipmsg::parse_challenge(value);
      REQUIRE(challenge);
      if (challenge->algorithm_text == algorithm) {
        REQUIRE_FALSE(digest_.take(*challenge, "cnonce"));
        return;
      }
    }
    FAIL("no challenge for " << algorithm << " in: " << refusal.text);
  }
  /// Sends it, answers the challenge, sends it again.
  Packet log_in_and_send(const Request& request) {
    answer(send(request));
    return send(request);
  }

 private:
  Network& network_;
  std::string user_;
  std::string password_;
  sipmsg::DigestClient digest_;
};

std::string password_of(const std::string& user) { return "secret of " + user; }

/// A network in which bob has one phone.
struct NetworkWithBob : Network {
  explicit NetworkWithBob(const Settings& settings = plain_settings()) : Network(settings) {
    bind("bob", bob_contact, bob);
  }
};

/// Everything but `names`, which stand for values that differ from run to run.
std::string without(const std::string& text, const std::vector<std::string>& names) {
  std::string out;
  for (const std::string& line : head_lines(text)) {
    if (std::find(names.begin(), names.end(), line.substr(0, line.find(':'))) == names.end()) {
      out += line + "\n";
    }
  }
  return out;
}

}  // namespace

// ---- refusals of every kind

TEST_CASE("MESSAGE that is switched off gets 501, and the log names the key") {
  Settings settings = plain_settings();
  settings.message.enable = false;
  NetworkWithBob network(settings);
  const Packet packet = network.ask(Request().text(), alice);
  CHECK(start_line(packet.text) == "SIP/2.0 501 Not Implemented");
  CHECK(header_of(packet.text, "Allow") == "REGISTER, OPTIONS");
  CHECK(header_of(packet.text, "Server") == "sipmsg/" SIPMSG_VERSION);
  CHECK(network.logged("set [message] enable=yes in ysipchan.conf") == 1);
  network.ask(numbered(2).text(), alice);
  CHECK(network.log_lines.size() == 1);  // once a minute is enough
  network.now_ms += 60000;
  network.ask(numbered(3).text(), alice);
  CHECK(network.log_lines.size() == 2);
}

TEST_CASE("a recipient that does not exist gets 404") {
  for (const char* uri : {"sip:dave@example.org", "sip:Bob@example.org", "sip:example.org",
                          "sip:bob%20@example.org", "sip:b@example.org"}) {
    CAPTURE(uri);
    NetworkWithBob network;
    CHECK(network.ask(to_uri(uri).text(), alice).status() == 404);
  }
}

TEST_CASE("a recipient that is offline gets 405 with Allow, or what offline_code says") {
  struct Row {
    std::uint16_t offline_code;
    const char* status_line;
  };
  const Row rows[] = {{405, "SIP/2.0 405 Method Not Allowed"},
                      {480, "SIP/2.0 480 Temporarily Unavailable"},
                      {404, "SIP/2.0 404 Not Found"},
                      {408, "SIP/2.0 480 Temporarily Unavailable"},  // RFC 4320: never 408
                      {604, "SIP/2.0 604 Does Not Exist Anywhere"}};
  for (const Row& row : rows) {
    Settings settings = plain_settings();
    settings.message.offline_code = row.offline_code;
    settings.users[2].alternatives = {"sales"};
    Network network(settings);
    for (const char* uri : {"sip:bob@example.org", "sip:sales@example.org"}) {
      CAPTURE(uri);
      Request request = to_uri(uri);
      request.call_id = uri;
      request.via += std::string(";x=") + uri;
      request.via = "SIP/2.0/UDP 192.0.2.10;branch=z9hG4bK" + std::to_string(row.offline_code) +
                    (uri[4] == 'b' ? "b" : "s");
      const Packet packet = network.ask(request.text(), alice);
      CHECK(start_line(packet.text) == row.status_line);
      CHECK(header_of(packet.text, "Allow") == allow);
    }
  }
}

TEST_CASE("requests for foreign domains are refused, and the log names the key") {
  struct Row {
    Request request;
    int status;
  };
  Request foreign_options = with_method("OPTIONS");
  foreign_options.uri = "sip:example.com";
  Request foreign_registrar = registration("bob", "");
  foreign_registrar.uri = "sip:example.com";
  Request foreign_address = registration("bob", "");
  foreign_address.to = "<sip:bob@example.com>";
  const Row rows[] = {
      {to_uri("sip:bob@example.com"), 403},
      {to_uri("sip:bob@192.0.2.20:5070"), 403},  // also where bob is there indeed
      {to_uri("sip:bob@example.org.evil.example"), 403},
      {with_headers("Route: <sip:example.com;lr>\r\n"), 403},
      {with_headers("Route: <sip:example.org;lr>, <sip:192.0.2.66;lr>\r\n"), 403},
      {with_headers("Route: <sip:example.org;lr>\r\nRoute: <sip:x@example.com>\r\n"), 403},
      {foreign_options, 404},
      {foreign_registrar, 404},
      {foreign_address, 404},
  };
  for (const Row& row : rows) {
    CAPTURE(row.request.text());
    NetworkWithBob network;
    CHECK(network.ask(row.request.text(), alice).status() == row.status);
    CHECK(network.logged("[general] domains") == 1);
  }
  // The star makes all of them ours.
  Settings settings = plain_settings();
  settings.domains = {"*"};
  NetworkWithBob network(settings);
  CHECK(network.ask(to_uri("sip:bob@example.com").text(), alice).flow == bob);
  CHECK(network.log_lines.empty());
}

TEST_CASE("a Route that cannot be read, or too many of them, get 400") {
  NetworkWithBob network;
  Packet packet = network.ask(with_headers("Route: <sip:example.org\r\n").text(), alice);
  CHECK(start_line(packet.text) == "SIP/2.0 400 a From, To, Contact or Route value is malformed");
  std::string routes;
  for (int i = 0; i < 20; ++i) routes += "Route: <sip:example.org;lr>\r\n";
  Request request = numbered(2);
  request.headers = routes;
  CHECK(network.ask(request.text(), alice).status() == 400);
}

TEST_CASE("schemes other than sip get 416") {
  for (const char* uri : {"sips:bob@example.org", "tel:+15551234", "mailto:bob@example.org",
                          "soap.beep://192.0.2.103:3002"}) {
    for (const char* method : {"MESSAGE", "REGISTER", "OPTIONS"}) {
      CAPTURE(uri);
      CAPTURE(method);
      NetworkWithBob network;
      Request request = with_method(method);
      request.uri = uri;
      CHECK(start_line(network.ask(request.text(), alice).text) ==
            "SIP/2.0 416 Unsupported URI Scheme");
    }
  }
}

TEST_CASE("extensions that are asked for and not known get 420 and are named") {
  struct Row {
    const char* method;
    const char* headers;
    std::vector<std::string> unsupported;  ///< none: it is served
  };
  const Row rows[] = {
      {"MESSAGE", "Proxy-Require: a\r\n", {"a"}},
      {"MESSAGE", "Proxy-Require: a, b\r\nProxy-Require: c\r\n", {"a", "b", "c"}},
      {"MESSAGE", "Proxy-Require: path\r\n", {"path"}},
      {"MESSAGE", "Proxy-Require:\r\n", {}},
      {"MESSAGE", "Require: a\r\n", {}},  // that is for the recipient
      {"OPTIONS", "Require: a, path\r\n", {"a"}},
      {"OPTIONS", "Require: PATH\r\n", {}},
      {"OPTIONS", "Proxy-Require: a\r\n", {"a"}},
      {"OPTIONS", "Require: a\r\nSupported: b\r\n", {"a"}},
      {"REGISTER", "Require: outbound\r\n", {"outbound"}},
      {"REGISTER", "Require: path\r\n", {}},
      {"REGISTER", "Require: ,path,\r\n", {}},
      {"REGISTER", "Require: path, gruu,\r\n", {"gruu"}},
  };
  for (const Row& row : rows) {
    CAPTURE(row.method);
    CAPTURE(row.headers);
    NetworkWithBob network;
    Request request = with_method(row.method);
    request.headers = row.headers;
    const Packet packet = network.ask(request.text(), alice);
    CHECK(packet.status() == (!row.unsupported.empty()               ? 420
                              : std::string(row.method) == "MESSAGE" ? 0
                                                                     : 200));
    if (!row.unsupported.empty()) CHECK(headers_of(packet.text, "Unsupported") == row.unsupported);
  }
}

TEST_CASE("an option tag that is no token is refused and not repeated") {
  NetworkWithBob network;
  const Packet packet =
      network.ask(with_headers("Proxy-Require: \"a\r\n b\", c d\r\n").text(), alice);
  CHECK(packet.status() == 420);
  CHECK(headers_of(packet.text, "Unsupported").empty());
}

TEST_CASE("what is malformed gets 400 with the reason and the place") {
  struct Row {
    std::string text;
    std::string status_line;  ///< what it begins with
  };
  const std::string good = Request().text();
  const auto changed = [&good](const std::string& what, const std::string& with) {
    std::string text = good;
    return text.replace(text.find(what), what.size(), with);
  };
  const Row rows[] = {
      {changed("CSeq: 1", "CSeq: x"), "SIP/2.0 400 CSeq is malformed (octet "},
      {changed("1 MESSAGE", "1 OPTIONS"), "SIP/2.0 400 the method in CSeq differs from the "},
      {changed("Call-ID: call-1\r\n", ""), "SIP/2.0 400 Call-ID is missing"},
      {changed("<sip:alice@", "<sip:%@"), "SIP/2.0 400 a % is not followed by two hexadecimal"},
      {changed("Max-Forwards: 70", "Max-Forwards: 256"), "SIP/2.0 400 a number is malformed"},
      {changed("Content-Length: 5", "Content-Length: 9"), "SIP/2.0 400 Content-Length is larger"},
      {changed("SIP/2.0\r\nVia", "SIP/3.0\r\nVia"), "SIP/2.0 505 the SIP version is not 2.0"},
      {changed("To: ", "To: <sip:x@y>\r\nTo: "), "SIP/2.0 400 a header that may appear once "},
  };
  for (const Row& row : rows) {
    CAPTURE(row.text);
    NetworkWithBob network;
    const Packet packet = network.ask(row.text, alice);
    CHECK(start_line(packet.text).find(row.status_line) == 0);
    CHECK(network.proxy.transactions() == 0);
  }
}

TEST_CASE("on a stream a message without Content-Length gets 400, with it is relayed") {
  NetworkWithBob network;
  const Flow connection = tcp("192.0.2.10:40000", 5);
  Request request;
  request.has_content_length = false;
  network.receive(request.text(), connection, sipmsg::Framing::stream);
  const Packet refusal = network.take_one();
  CHECK(start_line(refusal.text).find("SIP/2.0 400 Content-Length is required on a stream") == 0);
  CHECK(refusal.flow == connection);
  network.receive(Request().text(), connection, sipmsg::Framing::stream);
  CHECK(network.take_one().flow == bob);
}

TEST_CASE("methods that are not served get 501 with Allow") {
  for (const char* method : {"INVITE", "BYE", "PUBLISH", "SUBSCRIBE", "NOTIFY", "INFO", "REFER",
                             "PRACK", "UPDATE", "message", "XYZZY"}) {
    CAPTURE(method);
    NetworkWithBob network;
    const Packet packet = network.ask(with_method(method).text(), alice);
    CHECK(packet.status() == 501);
    CHECK(header_of(packet.text, "Allow") == allow);
  }
  Settings settings = plain_settings();
  settings.registrar.enable = false;
  settings.options_enable = false;
  NetworkWithBob network(settings);
  CHECK(network.ask(with_method("REGISTER").text(), alice).status() == 501);
  Request options = with_method("OPTIONS");
  const Packet packet = network.ask(options.text(), alice);
  CHECK(packet.status() == 501);
  CHECK(header_of(packet.text, "Allow") == "MESSAGE");
}

TEST_CASE("an ACK is never answered, and ends the refusal of its INVITE") {
  NetworkWithBob network;
  const Packet refusal = network.ask(with_method("INVITE").text(), alice);
  CHECK(refusal.status() == 501);
  network.wait(500);
  CHECK(network.take_one().status() == 501);  // over UDP the refusal is repeated until the ACK
  Request ack = with_method("ACK");
  ack.to = header_of(refusal.text, "To");
  network.receive(ack.text(), alice);
  network.wait(64000);
  CHECK(network.take().empty());
  CHECK(network.proxy.transactions() == 0);
  Request stray = with_method("ACK");
  stray.via = numbered(7).via;
  network.receive(stray.text(), alice);
  CHECK(network.take().empty());
}

TEST_CASE("a CANCEL finds its INVITE or gets 481") {
  NetworkWithBob network;
  CHECK(network.ask(with_method("CANCEL").text(), alice).status() == 481);
  Request invite = with_method("INVITE");
  invite.via = numbered(2).via;
  CHECK(network.ask(invite.text(), alice).status() == 501);
  Request cancel = with_method("CANCEL");
  cancel.via = numbered(2).via;
  CHECK(network.ask(cancel.text(), alice).status() == 200);
}

TEST_CASE("a request without a Via can not be answered, and is not") {
  NetworkWithBob network;
  Request request;
  request.via.clear();
  network.receive(request.text(), alice);
  CHECK(network.take().empty());
}

TEST_CASE("when the table of transactions is full the answer is 503 with Retry-After") {
  Settings settings = plain_settings();
  settings.max_transactions = 3;
  settings.flood.retry_after_s = 17;
  NetworkWithBob network(settings);
  for (int i = 0; i < 3; ++i) CHECK(network.ask(numbered(i).text(), alice).flow == bob);
  const Packet packet = network.ask(numbered(4).text(), alice);
  CHECK(packet.status() == 503);
  CHECK(header_of(packet.text, "Retry-After") == "17");
}

// ---- who sends

TEST_CASE("a sender must prove who it is, with 401 or 407, and is then relayed") {
  for (const int code : {401, 407}) {
    CAPTURE(code);
    Settings settings = guarded_settings();
    settings.message.auth_code = static_cast<std::uint16_t>(code);
    NetworkWithBob network(settings);
    Phone phone(network, "alice", password_of("alice"));
    if (code == 407) phone.header = "Proxy-Authorization";
    const Packet refusal = phone.send(Request());
    CHECK(refusal.status() == code);
    CHECK(refusal.flow.remote == alice.remote);
    CHECK(network.proxy.transactions() == 0);  // nothing is kept for those who prove nothing
    phone.answer(refusal);
    for (int i = 0; i < 3; ++i) {  // one nonce, rising nonce-count
      const Packet packet = phone.send(Request());
      CHECK(packet.flow == bob);
      CHECK(headers_of(packet.text, phone.header).empty());
      CHECK(body_of(packet.text) == "hello");
    }
    CHECK(network.log_lines.empty());
  }
}

TEST_CASE("credentials for others and a wrong scheme are none, and are passed on") {
  NetworkWithBob network(guarded_settings());
  Phone phone(network, "alice", password_of("alice"));
  const std::string others =
      "Digest username=\"alice\", realm=\"elsewhere\", nonce=\"n\", uri=\"sip:x\", response=\"r\"";
  const Request request =
      with_headers("Proxy-Authorization: " + others + "\r\nAuthorization: Basic YQ==\r\n");
  const Packet packet = phone.log_in_and_send(request);
  CHECK(packet.flow == bob);
  CHECK(header_of(packet.text, "Proxy-Authorization") == others);
  CHECK(header_of(packet.text, "Authorization") == "Basic YQ==");
}

TEST_CASE("credentials for us that stand in the other header go no further either") {
  for (const int code : {401, 407}) {
    Settings settings = guarded_settings();
    settings.message.auth_code = static_cast<std::uint16_t>(code);
    NetworkWithBob network(settings);
    Phone phone(network, "alice", password_of("alice"));
    if (code == 407) phone.header = "Proxy-Authorization";
    const std::string other = code == 407 ? "Authorization" : "Proxy-Authorization";
    const Packet packet =
        phone.log_in_and_send(with_headers(
            other + ": Digest username=\"alice\", realm=\"Yate\", nonce=\"n\", uri=\"sip:x\", "
                    "response=\"r\"\r\n"));
    CHECK(packet.flow == bob);
    CHECK(headers_of(packet.text, other).empty());
  }
}

TEST_CASE("a nonce that is too old is answered with stale=true, and the next one works") {
  NetworkWithBob network(guarded_settings());
  Phone phone(network, "alice", password_of("alice"));
  CHECK(phone.log_in_and_send(Request()).flow == bob);
  network.now_ms += 300000;
  network.bind("bob", bob_contact, bob);
  const Packet refusal = phone.send(Request());
  CHECK(refusal.status() == 401);
  CHECK(header_of(refusal.text, "WWW-Authenticate").find("stale=true") != std::string::npos);
  CHECK(network.log_lines.empty());
  phone.answer(refusal);
  CHECK(phone.send(Request()).flow == bob);
}

TEST_CASE("several algorithms are offered best first, and each of them lets in") {
  using sipmsg::DigestAlgorithm;
  using sipmsg::DigestHash;
  Settings settings = guarded_settings();
  settings.digest.algorithms = {DigestAlgorithm{DigestHash::sha_256, false},
                                DigestAlgorithm{DigestHash::md5, false}};
  NetworkWithBob network(settings);
  for (const char* algorithm : {"SHA-256", "MD5"}) {
    Phone phone(network, "alice", password_of("alice"));
    phone.flow = udp(std::string("192.0.2.10:") + (algorithm[0] == 'S' ? "5061" : "5062"));
    Request request;
    request.body = algorithm;
    const Packet refusal = phone.send(request);
    const auto challenges = headers_of(refusal.text, "WWW-Authenticate");
    REQUIRE(challenges.size() == 2);
    CHECK(challenges[0].find("algorithm=SHA-256") != std::string::npos);
    CHECK(challenges[1].find("algorithm=MD5") != std::string::npos);
    phone.answer(refusal, algorithm);
    CHECK(phone.send(request).flow == bob);
  }
}

TEST_CASE("a wrong password, an unknown user and one without password are answered alike") {
  std::vector<std::string> answers;
  Settings settings = guarded_settings();
  sipmsg::UserSettings nokey;
  nokey.name = "nokey";
  settings.users.push_back(nokey);
  for (const auto& account : std::vector<std::pair<std::string, std::string>>{
           {"alice", "wrong"}, {"dave", "wrong"}, {"nokey", ""}, {"nokey", "wrong"}}) {
    CAPTURE(account.first);
    NetworkWithBob network(settings);
    Phone phone(network, account.first, account.second);
    const Packet packet = phone.log_in_and_send(Request());
    CHECK(packet.status() == 401);
    CHECK(network.logged("wrong password or unknown user in MESSAGE from 192.0.2.10:5060") == 1);
    CHECK(network.proxy.transactions() == 0);
    answers.push_back(without(packet.text, {"Via", "To", "Call-ID", "WWW-Authenticate"}));
    CHECK(header_of(packet.text, "WWW-Authenticate").find("stale") == std::string::npos);
  }
  for (const std::string& answer : answers) CHECK(answer == answers.front());
}

TEST_CASE("an empty password lets in everybody who gives the name") {
  Settings settings = guarded_settings();
  settings.users[0].password.clear();
  NetworkWithBob network(settings);
  Phone phone(network, "alice", "anything");
  CHECK(phone.log_in_and_send(Request()).flow == bob);
}

TEST_CASE("whoever is asked for a password may only use its own names") {
  struct Row {
    const char* from;
    bool allowed;
    const char* reason;
  };
  const Row rows[] = {
      {"<sip:alice@example.org>;tag=1", true, ""},
      {"\"Bob\" <sip:ALICE@example.org>;tag=1", false, "neither the user's name nor"},
      {"sip:alice@EXAMPLE.ORG;tag=1", true, ""},
      {"<sip:al%69ce@example.org:5099;transport=tcp>;tag=1", true, ""},
      {"<sip:sales@example.org>;tag=1", true, ""},
      {"<sip:bob@example.org>;tag=1", false, "neither the user's name nor"},
      {"<sip:alice@example.com>;tag=1", false, "[general] domains"},
      {"<sip:example.org>;tag=1", false, "neither the user's name nor"},
      {"<tel:5551234>;tag=1", false, "neither the user's name nor"},
      {"<sip:anonymous@anonymous.invalid>;tag=1", false, "neither the user's name nor"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.from);
    Settings settings = guarded_settings();
    settings.users[0].alternatives = {"sales"};
    NetworkWithBob network(settings);
    Phone phone(network, "alice", password_of("alice"));
    Request request;
    request.from = row.from;
    const Packet packet = phone.log_in_and_send(request);
    CHECK(packet.status() == (row.allowed ? 0 : 403));
    if (row.allowed) {
      CHECK(header_of(packet.text, "From") == row.from);
      CHECK(network.log_lines.empty());
    } else {
      CHECK(network.logged("user alice may not use the From address") == 1);
      CHECK(network.logged(row.reason) == 1);
    }
  }
}

TEST_CASE("nobody can assert another identity behind a From that was checked") {
  NetworkWithBob network(guarded_settings());
  Phone phone(network, "alice", password_of("alice"));
  const Packet packet = phone.log_in_and_send(
      with_headers("P-Asserted-Identity: <sip:bob@example.org>\r\nX-Kept: 1\r\n"
                   "p-asserted-identity: <tel:110>\r\n"));
  CHECK(packet.flow == bob);
  CHECK(headers_of(packet.text, "P-Asserted-Identity").empty());
  CHECK(headers_of(packet.text, "p-asserted-identity").empty());
  CHECK(header_of(packet.text, "X-Kept") == "1");
}

TEST_CASE("wrong passwords do not fill the log") {
  NetworkWithBob network(guarded_settings());
  Phone phone(network, "alice", "wrong");
  phone.answer(phone.send(Request()));
  for (int i = 0; i < 100; ++i) phone.send(Request());
  CHECK(network.log_lines.size() == 30);
}

TEST_CASE("with accept_any_user everybody exists, and is offline until registered") {
  Settings settings = sipmsg::open_settings();
  Network network(settings);
  Request request;
  request.uri = "sip:anybody@anywhere.example";
  CHECK(network.ask(request.text(), alice).status() == 405);
  Request nobody = numbered(2);
  nobody.uri = "sip:anywhere.example";
  CHECK(network.ask(nobody.text(), alice).status() == 404);

  Request reg = registration("x", "Contact: <sip:x@192.0.2.20:5070>\r\n");
  reg.to = "<sip:anyb%6Fdy@anywhere.example>";
  CHECK(network.ask(reg.text(), bob).status() == 200);
  Request again = numbered(3);
  again.uri = request.uri;
  CHECK(network.ask(again.text(), alice).flow == bob);
}

TEST_CASE("autocreate lets unknown names register where no password is asked") {
  Settings settings = plain_settings();
  const std::string contact = "Contact: <sip:dave@192.0.2.20:5070>\r\n";
  Network closed(settings);
  CHECK(closed.ask(registration("dave", contact).text(), bob).status() == 404);
  settings.registrar.autocreate = true;
  Network network(settings);
  CHECK(network.ask(registration("dave", contact).text(), bob).status() == 200);
  Request request = numbered(2);
  request.uri = "sip:dave@example.org";
  CHECK(network.ask(request.text(), alice).flow == bob);
}

// ---- REGISTER

TEST_CASE("a REGISTER with the right password is granted, and says what is bound") {
  Settings settings = guarded_settings();
  Network network(settings);
  network.proxy.set_unix_time_at_zero(1289690940 - 5000);  // now_ms is 5000000
  Phone phone(network, "bob", password_of("bob"));
  phone.flow = bob;
  const Request request =
      registration("bob",
                   "Contact: <sip:bob@192.0.2.20:5070;line=1>;q=0.5\r\nExpires: 300\r\n"
                   "Path: <sip:edge.example.org;lr>\r\nSupported: path\r\n");
  const Packet refusal = phone.send(request);
  CHECK(refusal.status() == 401);  // also where messages ask with 407
  CHECK(network.registrar.size() == 0);
  phone.answer(refusal);
  const Packet granted = phone.send(request);
  CHECK(granted.status() == 200);
  CHECK(header_of(granted.text, "Contact").find("<sip:bob@192.0.2.20:5070;line=1>") == 0);
  CHECK(header_of(granted.text, "Contact").find("expires=300") != std::string::npos);
  CHECK(header_of(granted.text, "Expires") == "300");
  CHECK(header_of(granted.text, "Date") == "Sat, 13 Nov 2010 23:29:00 GMT");
  CHECK(header_of(granted.text, "Path") == "<sip:edge.example.org;lr>");
  CHECK(headers_of(granted.text, "X-Real-Contact").empty());
  CHECK(network.registrar.count("bob", network.now_ms) == 1);

  network.now_ms += 100000;
  const Packet listed = phone.send(registration("bob", ""));
  CHECK(listed.status() == 200);
  CHECK(header_of(listed.text, "Contact").find("expires=200") != std::string::npos);
  CHECK(headers_of(listed.text, "Expires").empty());
  const Packet removed = phone.send(registration("bob", "Contact: *\r\nExpires: 0\r\n"));
  CHECK(removed.status() == 200);
  CHECK(headers_of(removed.text, "Contact").empty());
  CHECK(network.registrar.count("bob", network.now_ms) == 0);
}

TEST_CASE("a REGISTER for somebody else's address gets 403") {
  struct Row {
    const char* to;
    int status;
  };
  const Row rows[] = {
      {"<sip:bob@example.org>", 200},   {"<sip:robert@example.org>", 200},
      {"<sip:carol@example.org>", 403}, {"<sip:example.org>", 403},
      {"<sip:bob@example.com>", 404},   {"<tel:5551234>", 404},
      {"<sips:bob@example.org>", 404},
  };
  for (const Row& row : rows) {
    CAPTURE(row.to);
    Settings settings = guarded_settings();
    settings.users[1].alternatives = {"robert"};
    Network network(settings);
    Phone phone(network, "bob", password_of("bob"));
    Request request = registration("bob", "Contact: <sip:x@192.0.2.20:5070>\r\n");
    request.to = row.to;
    CHECK(phone.log_in_and_send(request).status() == row.status);
    // Under whatever name he comes, the bindings are bob's.
    CHECK(network.registrar.count("bob", network.now_ms) == (row.status == 200 ? 1U : 0U));
    CHECK(network.registrar.size() == (row.status == 200 ? 1U : 0U));
    if (row.status == 403) CHECK(network.logged("may not use the To address") == 1);
  }
}

TEST_CASE("a stranger learns nothing of which addresses exist") {
  for (const char* user : {"bob", "dave"}) {
    Network network(guarded_settings());
    CHECK(network.ask(registration(user, "").text(), bob).status() == 401);
  }
}

TEST_CASE("what a registrar refuses, and what it adds for phones behind a NAT") {
  struct Row {
    const char* what;
    std::string contact;
    const char* source;
    int status;
    std::vector<std::pair<std::string, std::string>> headers;
  };
  const Row rows[] = {
      {"too brief",
       "Contact: <sip:bob@192.0.2.20>\r\nExpires: 10\r\n",
       "192.0.2.20:5060",
       423,
       {{"Min-Expires", "60"}}},
      {"too long",
       "Contact: <sip:bob@192.0.2.20>;expires=999999\r\n",
       "192.0.2.20:5060",
       200,
       {{"Expires", "3600"}}},
      {"none said",
       "Contact: <sip:bob@192.0.2.20>\r\n",
       "192.0.2.20:5060",
       200,
       {{"Expires", "600"}, {"P-NAT-Refresh", ""}}},
      {"malformed", "Contact: <sip:bob@>\r\n", "192.0.2.20:5060", 400, {}},
      {"star with time", "Contact: *\r\nExpires: 60\r\n", "192.0.2.20:5060", 400, {}},
      {"another scheme", "Contact: <mailto:bob@example.org>\r\n", "192.0.2.20:5060", 400, {}},
      {"private address",
       "Contact: <sip:bob@10.0.0.7:5070;a=b>\r\n",
       "198.51.100.9:31000",
       200,
       {{"X-Real-Contact", "<sip:bob@198.51.100.9:31000;a=b>"},
        {"P-NAT-Refresh", "25"},
        {"Contact", "<sip:bob@10.0.0.7:5070;a=b>"}}},
      {"IPv6",
       "Contact: <sip:bob@[2001:db8::5]>\r\n",
       "[2001:db8::5]:5060",
       200,
       {{"Contact", "<sip:bob@[2001:db8::5]>"}, {"X-Real-Contact", ""}}},
  };
  for (const Row& row : rows) {
    CAPTURE(row.what);
    Network network;
    const Packet packet = network.ask(registration("bob", row.contact).text(), udp(row.source));
    CHECK(packet.status() == row.status);
    for (const auto& header : row.headers) {
      const std::string& name = header.first;
      const std::string& value = header.second;
      CAPTURE(name);
      CHECK(header_of(packet.text, name).substr(0, value.size()) == value);
      if (value.empty()) CHECK(headers_of(packet.text, name).empty());
    }
    CHECK(header_of(packet.text, "Content-Length") == "0");
    if (row.status == 400) CHECK(start_line(packet.text).find(" (octet ") != std::string::npos);
  }
}

TEST_CASE("a phone behind a NAT is reached through it") {
  Network network;
  const Flow outside = udp("198.51.100.9:31000");
  network.ask(registration("bob", "Contact: <sip:bob@10.0.0.7:5070>\r\n").text(), outside);
  Request request = numbered(2);
  const Packet packet = network.ask(request.text(), alice);
  CHECK(packet.flow == outside);
  CHECK(start_line(packet.text) == "MESSAGE sip:bob@10.0.0.7:5070 SIP/2.0");
}

TEST_CASE("full tables: 403 for a user's own limit, 503 with Retry-After for the server's") {
  Settings settings = plain_settings();
  settings.registrar.max_bindings = 3;
  settings.registrar.max_bindings_per_user = 2;
  settings.flood.retry_after_s = 17;
  Network network(settings);
  int n = 0;
  const auto put = [&](const std::string& user) {
    Request request = registration(
        user, "Contact: <sip:" + user + "@192.0.2.20:" + std::to_string(5060 + n) + ">\r\n");
    request.call_id = std::to_string(n);
    request.via = numbered(++n).via;
    return network.ask(request.text(), bob);
  };
  CHECK(put("bob").status() == 200);
  CHECK(put("bob").status() == 200);
  CHECK(put("bob").status() == 403);
  CHECK(put("carol").status() == 200);
  const Packet full = put("alice");
  CHECK(full.status() == 503);
  CHECK(header_of(full.text, "Retry-After") == "17");
}

TEST_CASE("who is new is logged once, and not when he comes again") {
  Network network;
  for (int i = 1; i <= 3; ++i) {
    Request request = registration("bob", "Contact: <sip:bob@192.0.2.20:5070>\r\n");
    request.cseq = std::to_string(i) + " REGISTER";
    request.via = numbered(i).via;
    CHECK(network.ask(request.text(), bob).status() == 200);
  }
  CHECK(network.log_lines == std::vector<std::string>{"bob registered from udp 192.0.2.20:5070"});
}

TEST_CASE("an older REGISTER cannot undo a later one") {
  Network network;
  Request later = registration("bob", "Contact: <sip:bob@192.0.2.20>\r\n");
  later.cseq = "5 REGISTER";
  CHECK(network.ask(later.text(), bob).status() == 200);
  Request older = registration("bob", "Contact: <sip:bob@192.0.2.20>;expires=0\r\n");
  older.cseq = "4 REGISTER";
  older.via = numbered(2).via;
  CHECK(network.ask(older.text(), bob).status() == 500);
  CHECK(network.registrar.count("bob", network.now_ms) == 1);
}

// ---- OPTIONS

TEST_CASE("OPTIONS says what we can do, to nobody's harm in a flood") {
  Settings settings = plain_settings();
  settings.flood.events = 5;
  settings.flood.protection = false;
  NetworkWithBob network(settings);
  Request request = with_method("OPTIONS");
  request.uri = "sip:example.org";
  const Packet packet = network.ask(request.text(), alice);
  CHECK(packet.status() == 200);
  CHECK(header_of(packet.text, "Allow") == allow);
  CHECK(header_of(packet.text, "Supported") == "path");
  CHECK(header_of(packet.text, "Accept") == "*/*");
  request.max_forwards = "0";  // 16.3: the last recipient may answer
  request.via = numbered(1).via;
  CHECK(network.ask(request.text(), alice).status() == 200);
  for (int i = 2; i < 7; ++i) {
    request.via = numbered(i).via;
    const Packet answer = network.ask(request.text(), alice);
    CHECK(answer.status() == (i < 5 ? 200 : 503));
    CHECK(header_of(answer.text, "Retry-After") == (i < 5 ? "" : "30"));
  }
  network.proxy.idle();
  request.via = numbered(9).via;
  CHECK(network.ask(request.text(), alice).status() == 200);
}

TEST_CASE("in a flood over UDP MESSAGE is served, and what comes again by itself is not") {
  struct Row {
    const char* method;
    Flow flow;
    bool served;
  };
  const Row rows[] = {
      {"MESSAGE", alice, true},
      {"REGISTER", alice, false},
      {"OPTIONS", alice, false},
      {"SUBSCRIBE", alice, false},
      {"INVITE", alice, false},
      {"BYE", alice, true},
      {"REGISTER", tcp("192.0.2.10:40000", 5), true},
  };
  for (const bool protection : {true, false}) {
    Settings settings = plain_settings();
    settings.flood.events = 20;
    settings.flood.protection = protection;
    for (const Row& row : rows) {
      CAPTURE(row.method);
      NetworkWithBob network(settings);
      for (int i = 0; i < 20; ++i) network.receive(numbered(i).text(), alice);
      CHECK(network.take().size() == 20);
      Request request = with_method(row.method);
      request.via = numbered(100).via;
      network.receive(request.text(), row.flow);
      const bool served = row.served || !protection;
      CHECK(network.take().size() == (served ? 1U : 0U));
      CHECK(network.proxy.counters().dropped == (served ? 0U : 1U));
      network.proxy.idle();
      request.via = numbered(101).via;
      network.receive(request.text(), row.flow);
      CHECK(network.take().size() == 1);
    }
  }
}

// ---- handlers

TEST_CASE("a handler sees who writes to whom, what, and from where") {
  Settings settings = guarded_settings();
  settings.users[0].alternatives = {"al ice"};
  NetworkWithBob network(settings);
  Phone phone(network, "alice", password_of("alice"));
  int asked = 0;
  network.proxy.handlers().add(50, [&](const RouteRequest& request) {
    ++asked;
    CHECK(request.caller == "al ice");
    CHECK(request.caller_name == "\"Alice A\"");
    CHECK(request.called == "b,b");
    CHECK(request.username == "alice");
    CHECK(request.body() == "hello");
    CHECK(request.content_type() == "text/plain;charset=utf-8");
    CHECK(request.source == alice);
    CHECK(request.message.header("X-Extra").value_or("") == "1");
    CHECK(bool(request.key));
    return Verdict::next();
  });
  Request request = with_headers("X-Extra: 1\r\n");
  request.uri = "sip:b%2Cb@example.org;x=y";
  request.from = "\"Alice A\" <sip:al%20ice@example.org>;tag=1";
  request.content_type = "text/plain;charset=utf-8";
  CHECK(phone.log_in_and_send(request).status() == 404);
  CHECK(asked == 1);
}

TEST_CASE("what each verdict makes of a message") {
  struct Row {
    const char* what;
    Verdict verdict;
    std::string start;  ///< start line of what is sent, and
    std::string to;     ///< where to
  };
  const std::string sender = "192.0.2.10:5060";
  const std::string phone = "192.0.2.20:5070";
  const std::string to_bob = "MESSAGE " + bob_contact + " SIP/2.0";
  const Row rows[] = {
      {"next", Verdict::next(), to_bob, phone},
      {"accept", Verdict::accept(), "SIP/2.0 202 Accepted", sender},
      {"accept 200", Verdict::accept(200), "SIP/2.0 200 OK", sender},
      {"accept 404", Verdict::accept(404), "SIP/2.0 202 Accepted", sender},
      {"reject", Verdict::reject(486), "SIP/2.0 486 Busy Here", sender},
      {"phrase", Verdict::reject(403, "Not today"), "SIP/2.0 403 Not today", sender},
      {"bad phrase", Verdict::reject(403, "a\r\nX: y"), "SIP/2.0 403 Forbidden", sender},
      {"long phrase", Verdict::reject(403, std::string(70000, 'x')), "SIP/2.0 403 Forbidden",
       sender},
      {"reject 200", Verdict::reject(200), "SIP/2.0 500 Server Internal Error", sender},
      {"reject 0", Verdict::reject(0), "SIP/2.0 500 Server Internal Error", sender},
      {"reject 777", Verdict::reject(777), "SIP/2.0 500 Server Internal Error", sender},
      {"reject 408", Verdict::reject(408), "SIP/2.0 480 Temporarily Unavailable", sender},
      {"forward to the called", Verdict::forward({}), to_bob, phone},
      {"forward to a name", Verdict::forward({"carol"}), "MESSAGE sip:carol@192.0.2.30 SIP/2.0",
       "192.0.2.30:5060"},
      {"forward to an address of ours", Verdict::forward({"sip:c%61rol@example.org;x=y"}),
       "MESSAGE sip:carol@192.0.2.30 SIP/2.0", "192.0.2.30:5060"},
      {"forward elsewhere", Verdict::forward({"sip:dave@198.51.100.7:5099?Subject=x"}),
       "MESSAGE sip:dave@198.51.100.7:5099 SIP/2.0", "198.51.100.7:5099"},
      {"forward to IPv6", Verdict::forward({"sip:[2001:db8::7];transport=tcp"}),
       "MESSAGE sip:[2001:db8::7];transport=tcp SIP/2.0", "[2001:db8::7]:5060"},
      {"forward to the same twice", Verdict::forward({"bob", "sip:bob@example.org", "bob"}), to_bob,
       phone},
      {"forward to one who is offline", Verdict::forward({"alice"}),
       "SIP/2.0 405 Method Not Allowed", sender},
      {"forward to nobody", Verdict::forward({"nobody", "", "tel:1", "sip:a@name.example", ":"}),
       "SIP/2.0 405 Method Not Allowed", sender},
  };
  for (const Row& row : rows) {
    for (const bool later : {false, true}) {
      CAPTURE(row.what);
      CAPTURE(later);
      NetworkWithBob network;
      network.bind("carol", "sip:carol@192.0.2.30", udp("192.0.2.30:5060"));
      RouteKey key;
      network.proxy.handlers().add(50, [&](const RouteRequest& request) {
        key = request.key;
        return later ? Verdict::later() : row.verdict;
      });
      network.receive(Request().text(), alice);
      if (later) {
        CHECK(network.take().empty());
        CHECK(network.proxy.waiting() == 1);
        CHECK_FALSE(network.proxy.resume(key, row.verdict, network.now_ms));
      }
      const Packet packet = network.take_one();
      CHECK(start_line(packet.text) == row.start);
      CHECK(packet.to() == row.to);
      CHECK(network.proxy.waiting() == 0);
      if (packet.status() == 0) {
        CHECK(body_of(packet.text) == "hello");
        network.receive(answer_to(packet.text, "200 OK"), packet.flow);
        CHECK(network.take_one().status() == 200);
      }
    }
  }
}

TEST_CASE("a handler may send a message to several") {
  NetworkWithBob network;
  network.bind("carol", "sip:carol@192.0.2.30", udp("192.0.2.30:5060"));
  network.proxy.handlers().add(50, [](const RouteRequest&) {
    return Verdict::forward({"carol", "bob", "sip:x@198.51.100.7"});
  });
  network.receive(Request().text(), alice);
  CHECK(network.take().size() == 3);
}

TEST_CASE("whom a handler calls in place of the one called is who gets the message") {
  struct Row {
    const char* uri;
    const char* called;
    int status;  ///< 0: bob gets it
  };
  const Row rows[] = {
      {"sip:nobody@example.org", "bob", 0},
      {"sip:carol@example.org", "bob", 0},
      {"sip:carol:secret@example.org;transport=udp", "bob", 0},
      {"sip:example.org", "bob", 0},
      {"sip:bob@example.org", "alice", 405},
      {"sip:bob@example.org", "no body", 404},
      {"sip:bob@example.org", "", 404},
  };
  for (const Row& row : rows) {
    for (const bool later : {false, true}) {
      CAPTURE(row.uri);
      CAPTURE(row.called);
      CAPTURE(later);
      NetworkWithBob network;
      network.bind("carol", "sip:carol@192.0.2.30", udp("192.0.2.30:5060"));
      RouteKey key;
      network.proxy.handlers().add(50, [&](const RouteRequest& request) {
        key = request.key;
        if (later) return Verdict::later();
        request.set_parameter("called", row.called);
        return Verdict::next();
      });
      network.receive(to_uri(row.uri).text(), alice);
      sipmsg::RouteChanges changes;
      changes.set("called", row.called);
      if (later) {
        CHECK_FALSE(network.proxy.resume(key, Verdict::next(), network.now_ms, changes));
      }
      const Packet packet = network.take_one();
      CHECK(packet.status() == row.status);
      if (row.status == 0) CHECK(start_line(packet.text) == "MESSAGE " + bob_contact + " SIP/2.0");
    }
  }
}

TEST_CASE("a forward of nobody known to the one called is 404") {
  Network network;
  network.proxy.handlers().add(50, [](const RouteRequest&) { return Verdict::forward({}); });
  CHECK(network.ask(to_uri("sip:dave@example.org").text(), alice).status() == 404);
}

TEST_CASE("a 503 of a handler carries Retry-After") {
  NetworkWithBob network;
  network.proxy.handlers().add(50, [](const RouteRequest&) { return Verdict::reject(503); });
  const Packet packet = network.ask(Request().text(), alice);
  CHECK(packet.status() == 503);
  CHECK(header_of(packet.text, "Retry-After") == "30");
}

TEST_CASE("users are looked up at their own priority") {
  for (const std::uint32_t priority : {100U, 20U}) {
    Settings settings = plain_settings();
    settings.route_priority = priority;
    NetworkWithBob network(settings);
    network.proxy.handlers().add(50, [](const RouteRequest&) { return Verdict::accept(); });
    CHECK(network.ask(Request().text(), alice).status() == (priority == 100 ? 202 : 0));
  }
}

TEST_CASE("handlers that answer later, one behind the other") {
  NetworkWithBob network;
  std::vector<RouteKey> keys;
  std::vector<std::string> called;
  for (int i = 0; i < 2; ++i) {
    network.proxy.handlers().add(50 + i, [&](const RouteRequest& request) {
      keys.push_back(request.key);
      called.emplace_back(request.called);
      return Verdict::later();
    });
  }
  network.receive(Request().text(), alice);
  network.receive(Request().text(), alice);  // a retransmission asks nobody again
  REQUIRE(keys.size() == 1);
  CHECK(network.proxy.resume(keys[0], Verdict::later(), network.now_ms).code ==
        ErrorCode::bad_argument);
  CHECK_FALSE(network.proxy.resume(keys[0], Verdict::next(), network.now_ms));
  REQUIRE(keys.size() == 2);
  CHECK(network.proxy.resume(keys[0], Verdict::accept(), network.now_ms).code == ErrorCode::gone);
  CHECK(network.take().empty());
  CHECK_FALSE(network.proxy.resume(keys[1], Verdict::next(), network.now_ms));
  CHECK(network.take_one().flow == bob);
  CHECK(network.proxy.resume(keys[1], Verdict::next(), network.now_ms).code == ErrorCode::gone);
  CHECK(called == std::vector<std::string>{"bob", "bob"});
  CHECK(network.take().empty());
  CHECK(network.proxy.resume(RouteKey(), Verdict::next(), network.now_ms).code == ErrorCode::gone);
}

TEST_CASE("a key names nothing inside the handler that is given it") {
  NetworkWithBob network;
  network.proxy.handlers().add(50, [&](const RouteRequest& request) {
    CHECK(network.proxy.resume(request.key, Verdict::accept(), network.now_ms).code ==
          ErrorCode::gone);
    return Verdict::next();
  });
  CHECK(network.ask(Request().text(), alice).flow == bob);
}

TEST_CASE("a handler that does not answer in time costs the sender a 504") {
  NetworkWithBob network;
  RouteKey key;
  network.proxy.handlers().add(50, [&](const RouteRequest& request) {
    key = request.key;
    return Verdict::later();
  });
  network.receive(Request().text(), alice);
  network.wait(9999);
  CHECK(network.take().empty());
  network.wait(1);
  CHECK(start_line(network.take_one().text) == "SIP/2.0 504 Server Time-out");
  CHECK(network.proxy.waiting() == 0);
  CHECK(network.logged("did not answer in time") == 1);
  CHECK(network.proxy.resume(key, Verdict::next(), network.now_ms).code == ErrorCode::gone);
  CHECK(network.take().empty());
}

TEST_CASE("however long handlers take, the sender hears before it gives up") {
  // 60*T1 in all: three handlers of 9 s each, then a recipient that stays silent.
  NetworkWithBob network;
  std::vector<RouteKey> keys;
  for (int i = 0; i < 3; ++i) {
    network.proxy.handlers().add(50 + i, [&](const RouteRequest& request) {
      keys.push_back(request.key);
      return Verdict::later();
    });
  }
  network.receive(Request().text(), alice);
  const std::uint64_t begin_ms = network.now_ms;
  for (std::size_t i = 0; i < 3; ++i) {
    network.wait(9000);
    REQUIRE(keys.size() == i + 1);
    CHECK_FALSE(network.proxy.resume(keys[i], Verdict::next(), network.now_ms));
  }
  network.wait(20000);
  std::uint64_t answered_ms = 0;
  for (const Packet& packet : network.take()) {
    if (packet.status() != 0) {
      CHECK(packet.status() == 480);
      answered_ms = packet.at_ms - begin_ms;
    }
  }
  CHECK(answered_ms > 27000);
  CHECK(answered_ms <= 30000);

  // And with handlers alone.
  Settings settings = plain_settings();
  settings.timers.t1_ms = 100;
  Network quick(settings);
  quick.proxy.handlers().add(50, [](const RouteRequest&) { return Verdict::later(); });
  quick.receive(Request().text(), alice);
  quick.wait(6000);
  CHECK(quick.take_one().status() == 504);
}

TEST_CASE("how many messages may wait for handlers is limited") {
  Settings settings = plain_settings();
  settings.message.max_pending = 3;
  NetworkWithBob network(settings);
  std::vector<RouteKey> keys;
  network.proxy.handlers().add(50, [&](const RouteRequest& request) {
    keys.push_back(request.key);
    return Verdict::later();
  });
  for (int i = 0; i < 3; ++i) network.receive(numbered(i).text(), alice);
  CHECK(network.take().empty());
  CHECK(network.proxy.waiting() == 3);
  for (int i = 3; i < 5; ++i) {
    const Packet packet = network.ask(numbered(i).text(), alice);
    CHECK(packet.status() == 503);
    CHECK(header_of(packet.text, "Retry-After") == "30");
  }
  CHECK(network.logged("max_pending") == 1);
  CHECK(network.proxy.resume(keys[4], Verdict::next(), network.now_ms).code == ErrorCode::gone);
  CHECK_FALSE(network.proxy.resume(keys[1], Verdict::accept(), network.now_ms));
  CHECK(network.take_one().status() == 202);
  network.receive(numbered(5).text(), alice);
  CHECK(network.take().empty());
  CHECK(network.proxy.waiting() == 3);
}

TEST_CASE("handlers may remove and add handlers while they are asked") {
  NetworkWithBob network;
  sipmsg::HandlerChain& handlers = network.proxy.handlers();
  sipmsg::HandlerChain::Id self = 0;
  std::string order;
  self = handlers.add(50, [&](const RouteRequest&) {
    order += "a";
    CHECK(handlers.remove(self));
    handlers.add(60, [&](const RouteRequest&) {
      order += "b";
      return Verdict::next();
    });
    return Verdict::next();
  });
  CHECK(network.ask(numbered(1).text(), alice).flow == bob);
  CHECK(network.ask(numbered(2).text(), alice).flow == bob);
  CHECK(order == "abb");
}

TEST_CASE("a handler may answer for other messages, which are then offered further on") {
  NetworkWithBob network;
  network.bind("carol", "sip:carol@192.0.2.30", udp("192.0.2.30:5060"));
  RouteKey first;
  std::string seen;
  network.proxy.handlers().add(50, [&](const RouteRequest& request) {
    if (!first) {
      first = request.key;
      return Verdict::later();
    }
    const std::string called(request.called);
    const std::string caller(request.caller);
    CHECK_FALSE(network.proxy.resume(first, Verdict::next(), network.now_ms));
    // What this handler was given is still its own.
    CHECK(request.called == called);
    CHECK(request.caller == caller);
    return Verdict::next();
  });
  network.proxy.handlers().add(60, [&](const RouteRequest& request) {
    seen += std::string(request.called) + " ";
    return Verdict::next();
  });
  Request to_bob = numbered(1);
  network.receive(to_bob.text(), alice);
  Request to_carol = numbered(2);
  to_carol.uri = "sip:carol@example.org";
  network.receive(to_carol.text(), alice);
  const std::vector<Packet> packets = network.take();
  REQUIRE(packets.size() == 2);
  CHECK(packets[0].flow == bob);
  CHECK(packets[1].to() == "192.0.2.30:5060");
  CHECK(seen == "bob carol ");
}

TEST_CASE("a message of whom nobody waits any more is not sent on") {
  NetworkWithBob network;
  RouteKey key;
  network.proxy.handlers().add(50, [&](const RouteRequest& request) {
    key = request.key;
    return Verdict::later();
  });
  network.receive(Request().text(), alice);
  network.now_ms += 40000;  // the clock jumps, and the verdict comes before `advance`
  CHECK(network.proxy.resume(key, Verdict::next(), network.now_ms).code == ErrorCode::gone);
  CHECK(network.take().empty());
  CHECK(network.proxy.waiting() == 0);
}

TEST_CASE("answers go to where the request came from, or as its Via says") {
  struct Row {
    bool to_source;
    const char* via;
    const char* answered;
  };
  const Row rows[] = {
      {true, "SIP/2.0/UDP 192.0.2.10:5099;branch=z9hG4bKa", "192.0.2.10:4444"},
      {true, "SIP/2.0/UDP 192.0.2.10:5099;branch=z9hG4bKa;rport", "192.0.2.10:4444"},
      {false, "SIP/2.0/UDP 192.0.2.10:5099;branch=z9hG4bKa", "192.0.2.10:5099"},
      {false, "SIP/2.0/UDP 198.51.100.1;branch=z9hG4bKa", "192.0.2.10:5060"},
      {false, "SIP/2.0/UDP 192.0.2.10:5099;branch=z9hG4bKa;rport", "192.0.2.10:4444"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.via);
    Settings settings = plain_settings();
    settings.listeners[0].answer_to_source = row.to_source;
    Network network(settings);
    Request request;
    request.via = row.via;
    CHECK(network.ask(request.text(), udp("192.0.2.10:4444")).to() == row.answered);
  }
}

TEST_CASE("the clock may jump by hours while messages wait and travel") {
  NetworkWithBob network;
  network.proxy.handlers().add(50, [](const RouteRequest& request) {
    return request.body() == "wait" ? Verdict::later() : Verdict::next();
  });
  network.receive(numbered(1).text(), alice);
  Request waiting = numbered(2);
  waiting.body = "wait";
  network.receive(waiting.text(), alice);
  network.take();
  network.now_ms += 7200000;
  network.proxy.advance(network.now_ms);
  CHECK(network.take().empty());  // RFC 4320: no answer is better than a late one
  CHECK(network.proxy.transactions() == 0);
  CHECK(network.proxy.waiting() == 0);
}

TEST_CASE("settings and users can change while messages wait, also from inside a handler") {
  Settings settings = guarded_settings();
  settings.digest.realm = "a realm too long for a short string";
  settings.listeners[0].name.clear();  // as this network calls it
  settings.listeners[0].role = "a role too long for a short string";
  settings.users[0].parameters = {{"plan", "gold of ${caller}"}};
  NetworkWithBob network(settings);
  Phone phone(network, "alice", password_of("alice"));
  phone.answer(phone.send(Request()));

  Settings changed = settings;
  changed.message.offline_code = 480;
  changed.route_priority = 300;
  changed.user_agent = "other\r\nname";
  changed.users.erase(changed.users.begin());  // alice is gone
  auto users = std::make_unique<sipmsg::UserDirectory>(directory_of(changed));
  network.proxy.handlers().add(50, [&](const RouteRequest& request) {
    network.proxy.reload(changed, *users);
    network.users = sipmsg::UserDirectory();  // those before are no more
    CHECK(request.username == "alice");
    CHECK(request.parameter("realm") == "a realm too long for a short string");
    CHECK(request.parameter("role") == "a role too long for a short string");
    CHECK(request.parameter("plan") == "gold of alice");
    const sipmsg::KeptRouteRequest kept(request);
    CHECK(kept.view().context.realm == request.context.realm);
    return Verdict::next();
  });
  std::string later;
  network.proxy.handlers().add(200, [&](const RouteRequest& request) {
    later = request.username;
    return Verdict::next();
  });
  CHECK(phone.send(Request()).flow == bob);
  CHECK(later == "alice");
  Request options = with_method("OPTIONS");
  options.uri = "sip:example.org";
  CHECK(header_of(network.ask(options.text(), alice).text, "Server") == "othername");
  CHECK(phone.send(Request()).status() == 401);
}

TEST_CASE("whoever reads the log may call the server from there") {
  struct Row {
    const char* what;
    Request request;
    int status;
  };
  Request foreign_from;
  foreign_from.from = "<sip:carol@example.org>;tag=1";
  Request large;
  large.body = std::string(2000, 'x');
  const Row rows[] = {
      {"a name", foreign_from, 403},
      {"a domain", to_uri("sip:bob@example.com"), 403},
      {"a registration", registration("alice", "Contact: <sip:a@192.0.2.10>\r\n"), 200},
      {"a large datagram", large, 0},
  };
  for (const Row& row : rows) {
    CAPTURE(row.what);
    const Settings settings = guarded_settings();
    NetworkWithBob network(settings);
    RouteKey waiting;
    network.proxy.handlers().add(50, [&](const RouteRequest& request) {
      if (request.body() != "wait") return Verdict::next();
      waiting = request.key;
      return Verdict::later();
    });
    Phone phone(network, "alice", password_of("alice"));
    phone.answer(phone.send(Request()));
    Request first;
    first.body = "wait";
    network.on_next_log = [&] { FAIL("too early"); };
    // One message waits, and goes on in the middle of the next one.
    Phone other(network, "alice", password_of("alice"));
    other.answer(other.send(Request()));
    network.receive(other.signed_text(first), alice);
    REQUIRE(network.take().empty());
    std::unique_ptr<sipmsg::UserDirectory> users;
    network.on_next_log = [&] {
      users = std::make_unique<sipmsg::UserDirectory>(directory_of(settings));
      network.proxy.reload(settings, *users);
      network.users = sipmsg::UserDirectory();  // those before are no more
      CHECK_FALSE(network.proxy.resume(waiting, Verdict::next(), network.now_ms));
    };
    network.receive(phone.signed_text(row.request), alice);
    CHECK_FALSE(network.on_next_log);
    const std::vector<Packet> packets = network.take();
    REQUIRE(packets.size() == 2);
    std::vector<int> statuses;
    for (const Packet& packet : packets) {
      statuses.push_back(packet.status());
      if (packet.status() != 0) continue;
      CHECK(packet.flow == bob);
      const std::string body = body_of(packet.text);
      CHECK((body == "wait" || body == row.request.body));
    }
    std::sort(statuses.begin(), statuses.end());
    CHECK(statuses == std::vector<int>{0, row.status});
  }
}

// ---- real input

TEST_CASE("the torture messages of RFC 4475 get what a message server owes them") {
  // 0: nothing is sent. Two numbers: either would do by the index, the first is ours.
  const std::map<std::string, int> expected = {
      {"wsinv.dat", 501},      {"intmeth.dat", 501},  {"esc01.dat", 501},
      {"escnull.dat", 200},    {"esc02.dat", 501},    {"lwsdisp.dat", 200},
      {"longreq.dat", 501},    {"dblreq.dat", 200},   {"semiuri.dat", 200},
      {"transports.dat", 200}, {"mpart01.dat", 405},  {"unreason.dat", 0},
      {"noreason.dat", 0},     {"badinv01.dat", 400}, {"clerr.dat", 400},
      {"ncl.dat", 400},        {"scalar02.dat", 400}, {"scalarlg.dat", 0},
      {"quotbal.dat", 400},    {"ltgtruri.dat", 400}, {"lwsruri.dat", 400},
      {"lwsstart.dat", 400},   {"trws.dat", 400},     {"escruri.dat", 501},
      {"baddate.dat", 501},    {"regbadct.dat", 400}, {"badaspec.dat", 400},
      {"baddn.dat", 400},      {"badvers.dat", 505},  {"mismatch01.dat", 400},
      {"mismatch02.dat", 400}, {"bigcode.dat", 0},    {"badbranch.dat", 200},
      {"insuf.dat", 400},      {"unkscm.dat", 416},   {"novelsc.dat", 416},
      {"unksm2.dat", 404},     {"bext01.dat", 420},   {"invut.dat", 501},
      {"regaut01.dat", 401},   {"multi01.dat", 400},  {"mcl01.dat", 400},
      {"bcast.dat", 0},        {"zeromf.dat", 200},   {"cparam01.dat", 200},
      {"cparam02.dat", 200},   {"regescrt.dat", 200}, {"sdp01.dat", 501},
      {"inv2543.dat", 501},
  };
  const auto rows = test::read_table("rfc4475/INDEX.tsv");
  REQUIRE(rows.size() == expected.size());
  for (const auto& row : rows) {
    const std::string& file = row[0];
    CAPTURE(file);
    REQUIRE(expected.count(file) == 1);
    Settings settings = sipmsg::open_settings();
    settings.registrar.auth_required = file == "regaut01.dat";
    Network network(settings);
    const std::string text = test::read_data("rfc4475/" + file);
    network.receive(text, alice);
    const std::vector<Packet> packets = network.take();
    const int status = expected.at(file);
    REQUIRE(packets.size() == (status == 0 ? 0U : 1U));
    if (status == 0) continue;
    CHECK(packets[0].status() == status);
    CHECK(packets[0].flow.remote.ip == alice.remote.ip);
    sipmsg::MessageView answer;
    CHECK_FALSE(answer.parse(packets[0].text));
    if (status == 501) CHECK(header_of(packets[0].text, "Allow") == allow);
    if (status == 420) {
      CHECK(headers_of(packets[0].text, "Unsupported") ==
            std::vector<std::string>{"noProxiesSupportThis", "norDoAnyProxiesSupportThis"});
    }
    // Over a stream nothing odd happens either.
    Network stream(settings);
    stream.receive(text, tcp("192.0.2.10:40000", 5), sipmsg::Framing::stream);
    CHECK(stream.take().size() <= 1);
  }
}

TEST_CASE("what the torture messages of RFC 4475 leave behind") {
  struct After : Network {
    explicit After(const std::string& file) : Network(sipmsg::open_settings()) {
      receive(test::read_data("rfc4475/" + file), alice);
      take();
    }
  };
  const auto contacts = [](const Network& network, const std::string& user) {
    std::vector<std::string> found;
    network.registrar.for_each(user, network.now_ms, [&](const sipmsg::Binding& binding) {
      found.emplace_back(binding.contact_uri);
    });
    std::sort(found.begin(), found.end());
    return found;
  };
  using List = std::vector<std::string>;
  CHECK(contacts(After("escnull.dat"), std::string("null-\0-null", 11)) ==
        List{"sip:%00%00@host5.example.com", "sip:%00@host5.example.com"});
  CHECK(contacts(After("cparam01.dat"), "watson") == List{"sip:+19725552222@gw1.example.net"});
  CHECK(contacts(After("cparam02.dat"), "watson") ==
        List{"sip:+19725552222@gw1.example.net;unknownparam"});
  CHECK(contacts(After("unksm2.dat"), "2983792873").empty());

  // A Route that was smuggled in by a contact is not obeyed.
  After smuggled("regescrt.dat");
  Request to_user = to_uri("sip:user@example.com");
  const Packet packet = smuggled.ask(to_user.text(), alice);
  CHECK(start_line(packet.text) == "MESSAGE sip:user@example.com SIP/2.0");
  CHECK(headers_of(packet.text, "Route").empty());
  CHECK(packet.flow == alice);
}

TEST_CASE("a body with every kind of octet reaches the recipient unchanged") {
  Network network(sipmsg::open_settings());
  network.bind("kumiko", "sip:kumiko@192.0.2.20:5070", bob);
  const std::string text = test::read_data("rfc4475/mpart01.dat");
  const Packet packet = network.ask(text, alice);
  CHECK(packet.flow == bob);
  CHECK(body_of(packet.text) == body_of(text));
  CHECK(headers_of(packet.text, "Route").empty());
  for (const char* name : {"From", "To", "Call-ID", "CSeq", "Content-Type", "Identity", "Date"}) {
    CHECK(header_of(packet.text, name) == header_of(text, name));
  }
}

namespace {

/// One captured message, by the table in the README.
struct Capture {
  std::string file;
  bool over_tcp;
  std::string what;
};

std::vector<Capture> captures() {
  std::vector<Capture> found;
  for (const std::string& line : test::split(test::read_data("captures/README.md"), '\n')) {
    const std::vector<std::string> cells = test::split(line, '|');
    if (cells.size() < 7 || cells[4].find(".txt") == std::string::npos) continue;
    found.push_back({cells[4].substr(1, cells[4].size() - 2), cells[5] == " tcp ",
                     cells[6].substr(1, cells[6].size() - 2)});
  }
  return found;
}

Flow flow_of(const Capture& capture) {
  return capture.over_tcp ? tcp("127.0.0.1:40000", 5) : udp("127.0.0.1:25110");
}

}  // namespace

TEST_CASE("an open server serves everything that real clients send") {
  std::size_t count = 0;
  for (const Capture& capture : captures()) {
    CAPTURE(capture.file);
    CAPTURE(capture.what);
    ++count;
    const std::string text = test::read_data("captures/" + capture.file);
    const bool is_registration = capture.what.find("REGISTER") == 0;
    const bool is_message = capture.what.find("MESSAGE") == 0;
    for (const bool online : {false, true}) {
      Network network(sipmsg::open_settings());
      if (online) {
        for (int user = 101; user < 120; ++user) {
          network.bind(std::to_string(user), bob_contact, bob);
        }
      }
      network.receive(text, flow_of(capture),
                      capture.over_tcp ? sipmsg::Framing::stream : sipmsg::Framing::datagram);
      const std::vector<Packet> packets = network.take();
      if (!is_registration && !is_message && text.compare(0, 7, "PUBLISH") != 0 &&
          text.compare(0, 3, "BYE") != 0) {
        CHECK(packets.empty());  // answers to what we did not send, and keep-alives
        continue;
      }
      REQUIRE(packets.size() == 1);
      const Packet& packet = packets[0];
      if (is_message && online) {
        CHECK(packet.flow == bob);
        CHECK(body_of(packet.text) == body_of(text));
        for (const char* name : {"From", "To", "Call-ID", "CSeq", "Content-Type"}) {
          CHECK(headers_of(packet.text, name) == headers_of(text, name));
        }
        continue;
      }
      CHECK(packet.status() == (is_registration ? 200 : is_message ? 405 : 501));
      CHECK(packet.flow.remote.ip == flow_of(capture).remote.ip);
      CHECK(packet.flow.transport == flow_of(capture).transport);
      if (is_registration) {
        const bool removes = capture.what.find("unregister") != std::string::npos;
        const std::string user = header_of(text, "To").substr(header_of(text, "To").find("10"), 3);
        const std::size_t before = online ? 1 : 0;
        const std::size_t after = network.registrar.count(user, network.now_ms);
        if (!removes) CHECK(after == before + 1);
        if (removes) CHECK(after <= before);
      }
    }
  }
  CHECK(count == 237);
}

TEST_CASE("a server with passwords challenges what real clients send, and knows their passwords") {
  for (const Capture& capture : captures()) {
    const bool is_registration = capture.what.find("REGISTER") == 0;
    if (!is_registration && capture.what.find("MESSAGE") != 0) continue;
    CAPTURE(capture.file);
    CAPTURE(capture.what);
    const std::string text = test::read_data("captures/" + capture.file);
    const std::size_t realm = text.find("realm=\"");
    for (const bool right : {true, false}) {
      Settings settings = guarded_settings();
      settings.domains = {"*"};
      settings.users.clear();
      for (int n = 101; n < 120; ++n) {
        sipmsg::UserSettings user;
        user.name = std::to_string(n);
        user.has_password = true;
        user.password = (right ? "pw" : "wrong") + user.name;
        settings.users.push_back(user);
      }
      if (realm != std::string::npos) {
        settings.digest.realm = text.substr(realm + 7, text.find('"', realm + 7) - realm - 7);
      }
      Network network(settings);
      network.receive(text, flow_of(capture),
                      capture.over_tcp ? sipmsg::Framing::stream : sipmsg::Framing::datagram);
      const Packet packet = network.take_one();
      CHECK(packet.status() == 401);
      CHECK(headers_of(packet.text, "WWW-Authenticate").size() == 1);
      // The nonces are another server's. With the right password that is all that is wrong.
      const bool stale =
          header_of(packet.text, "WWW-Authenticate").find("stale=true") != std::string::npos;
      CHECK(stale == (right && realm != std::string::npos));
      CHECK(network.log_lines.size() == (realm != std::string::npos && !right ? 1U : 0U));
      CHECK(network.registrar.size() == 0);
    }
  }
}

// ---- what it costs

namespace {

/// A network that allocates nothing: it keeps the last packet, in a buffer of its own.
class LastPacket : public sipmsg::Sink, public sipmsg::ServerLog {
 public:
  std::string_view text() const { return {buffer_.data(), size_}; }
  Flow flow;
  int sent = 0;

 private:
  sipmsg::Result<std::string_view> sent_by(Flow& to) override {
    if (to.socket == 0) to.socket = 1;
    return std::string_view("192.0.2.1:5060");
  }
  Error send(const Flow& to, const sipmsg::Slices& message) override {
    flow = to;
    size_ = message.size();
    message.copy_to(buffer_.data());
    ++sent;
    return {};
  }
  void log(sipmsg::Severity, std::string_view) override {}

  std::array<char, 65536> buffer_;
  std::size_t size_ = 0;
};

}  // namespace

TEST_CASE("in steady state a message that is relayed, and its answer, cost no allocation" *
          doctest::test_suite("long")) {
  for (const bool authenticated : {false, true}) {
    for (const std::size_t body_size : {20U, 1000U, 3000U}) {
      const bool is_kept = body_size == 1000;  // for whoever takes what nobody took
      CAPTURE(authenticated);
      CAPTURE(body_size);
      Settings settings = authenticated ? guarded_settings() : plain_settings();
      settings.users[1].name = "bob with a name too long for a small string";
      const std::string to = "sip:bob%20with%20a%20name%20too%20long%20for%20a%20small%20string";
      const sipmsg::UserDirectory users = directory_of(settings);
      sipmsg::Registrar registrar({}, Network::secret);
      LastPacket network;
      sipmsg::Proxy proxy(settings, users, registrar, network, network, Network::secret);
      sipmsg::OwnDomains domains;
      domains.add("example.org");
      proxy.set_domains(domains);
      if (is_kept) proxy.on_undelivered([](const RouteRequest&, int) { return Verdict::next(); });

      std::uint64_t now_ms = 1000000;
      const auto receive = [&](std::string_view text, const Flow& from) {
        test::AllocationCount allocations;
        sipmsg::MessageView message;
        const Error error = message.parse(text);
        proxy.receive(message, error, from, now_ms);
        proxy.advance(now_ms);
        return allocations.count();
      };
      const std::string binding =
          registration("x", "Contact: <" + bob_contact + ">\r\nExpires: 3600\r\n").text();
      sipmsg::MessageView view;
      REQUIRE_FALSE(view.parse(binding));
      REQUIRE(registrar.update(settings.users[1].name, view, bob, now_ms).status == 200);

      sipmsg::DigestClient digest;
      std::size_t allocated = 0;
      constexpr int warm_up = 300;
      constexpr int counted = 300;
      for (int i = 0; i < warm_up + counted; ++i) {
        Request request = numbered(i);
        request.uri = to + "@example.org";
        request.body = std::string(body_size, 'x');
        if (digest.is_ready()) {
          request.headers = "Authorization: " +
                            *digest.authorize("alice", password_of("alice"), "MESSAGE", request.uri,
                                              request.body) +
                            "\r\n";
        }
        std::size_t cost = receive(request.text(), alice);
        if (authenticated && !digest.is_ready()) {
          const std::string challenge = header_of(std::string(network.text()), "WWW-Authenticate");
          REQUIRE_FALSE(digest.take(*sipmsg::parse_challenge(challenge), "cnonce"));
          continue;
        }
        REQUIRE(network.flow == bob);
        REQUIRE(network.text().substr(0, 8) == "MESSAGE ");
        const std::string answer = answer_to(std::string(network.text()), "200 OK");
        cost += receive(answer, bob);
        REQUIRE(network.flow.remote == alice.remote);
        REQUIRE(network.text().substr(0, 12) == "SIP/2.0 200 ");
        // Timers J and K run out while others run, as they do in a server.
        now_ms += 200;
        if (i >= warm_up) allocated += cost;
      }
      CHECK(allocated == 0);
      CHECK(proxy.counters().delivered >= warm_up + counted - 1);
      CHECK(proxy.transactions() > 100);
    }
  }
}

// Messages that nobody took.

namespace {

/// A network in which somebody keeps what nobody took; `said` tells what it was asked.
struct NetworkWithKeeper : Network {
  explicit NetworkWithKeeper(Verdict verdict) {
    proxy.on_undelivered([this, verdict](const RouteRequest& request, int code) {
      said.push_back(std::to_string(code) + " " + std::string(request.caller) + ">" +
                     std::string(request.called) + " " + std::string(request.body()));
      key = request.key;
      return verdict;
    });
  }
  std::vector<std::string> said;
  RouteKey key;
};

}  // namespace

TEST_CASE("a message that no binding took is offered to whoever keeps such messages") {
  struct Row {
    const char* what;
    const char* answer;  ///< of the one phone; "" for silence, "-" for no phone
    const char* said;
    int without;  ///< the sender's answer where it is not kept
  };
  const Row rows[] = {
      {"offline", "-", "405 alice>bob hello", 405},
      {"silent", "", "480 alice>bob hello", 480},
      {"408", "408 Request Timeout", "480 alice>bob hello", 480},
      {"480", "480 Not Here", "480 alice>bob hello", 480},
      {"503", "503 Service Unavailable", "503 alice>bob hello", 500},
      {"415", "415 Unsupported Media Type", "415 alice>bob hello", 415},
      {"603", "603 Decline", "603 alice>bob hello", 603},
  };
  const Verdict verdicts[] = {Verdict::next(), Verdict::accept(202), Verdict::later()};
  for (const Row& row : rows) {
    for (const Verdict& verdict : verdicts) {
      CAPTURE(row.what);
      CAPTURE(static_cast<int>(verdict.kind()));
      NetworkWithKeeper network(verdict);
      const bool is_bound = std::string(row.answer) != "-";
      if (is_bound) network.bind("bob", bob_contact, bob);
      network.receive(Request().text(), alice);
      if (is_bound) {
        const Packet copy = network.take_one();
        if (*row.answer != '\0') network.receive(answer_to(copy.text, row.answer), bob);
        if (*row.answer == '\0') network.wait(30000);
      }
      CHECK(network.said == std::vector<std::string>{row.said});
      if (verdict.kind() == Verdict::Kind::later) {
        CHECK(network.proxy.waiting() == 1);
        network.sent.erase(
            std::remove_if(network.sent.begin(), network.sent.end(),
                           [](const Packet& packet) { return packet.status() == 0; }),
            network.sent.end());
        CHECK(network.sent.empty());
        CHECK_FALSE(network.proxy.resume(network.key, Verdict::accept(202), network.now_ms));
      }
      const Packet answer = network.take().back();
      CHECK(answer.to() == "192.0.2.10:5060");
      CHECK(answer.status() == (verdict.kind() == Verdict::Kind::next ? row.without : 202));
      CHECK(network.proxy.relays() == 0);
    }
  }
}

TEST_CASE("an answer of the recipient that nobody wants to keep goes to the sender as it came") {
  NetworkWithKeeper network(Verdict::next());
  network.bind("bob", bob_contact, bob);
  network.receive(Request().text(), alice);
  const Packet copy = network.take_one();
  network.receive(answer_to(copy.text, "488 No Thanks", "X-Why: because\r\n", "text"), bob);
  const Packet answer = network.take_one();
  CHECK(start_line(answer.text) == "SIP/2.0 488 No Thanks");
  CHECK(header_of(answer.text, "X-Why") == "because");
  CHECK(body_of(answer.text) == "text");
}

TEST_CASE("nobody is asked about what was delivered, refused before, or meant for nobody") {
  NetworkWithKeeper network(Verdict::accept());
  network.bind("bob", bob_contact, bob);
  network.receive(Request().text(), alice);
  network.receive(answer_to(network.take_one().text, "200 OK"), bob);
  CHECK(network.take_one().status() == 200);
  Request lost = numbered(8);
  lost.uri = "sip:nobody@example.org";
  CHECK(network.ask(lost.text(), alice).status() == 404);
  Request hopeless = numbered(9);
  hopeless.max_forwards = "0";
  CHECK(network.ask(hopeless.text(), alice).status() == 483);
  CHECK(network.said.empty());
}

TEST_CASE("what nobody took may be sent elsewhere, and is not offered twice") {
  NetworkWithKeeper network(Verdict::forward({"carol"}));
  network.receive(Request().text(), alice);
  CHECK(network.said.size() == 1);
  CHECK(network.take_one().status() == 405);  // carol is offline, too
  network.bind("carol", "sip:carol@192.0.2.30", udp("192.0.2.30:5060"));
  network.receive(numbered(2).text(), alice);
  CHECK(network.said.size() == 2);
  CHECK(start_line(network.take_one().text) == "MESSAGE sip:carol@192.0.2.30 SIP/2.0");
}

TEST_CASE("what handlers send on is offered for the one user it went to, and for nobody else") {
  struct Row {
    std::vector<std::string> uris;
    const char* said;  ///< where carol has no phone; "" for nothing
    const char* said_of_silence;
  };
  const Row rows[] = {
      {{"carol"}, "405 alice>carol hello", "480 alice>carol hello"},
      {{"sip:carol@example.org"}, "405 alice>carol hello", "480 alice>carol hello"},
      {{"carol", "sip:c%61rol@example.org"}, "405 alice>carol hello", "480 alice>carol hello"},
      {{"carol", "bob"}, "", ""},
      {{"carol", "sip:gate@192.0.2.99"}, "", ""},
      {{"sip:gate@192.0.2.99"}, "", ""},
      {{"sip:carol@192.0.2.99", "carol"}, "", ""},
      {{"nobody"}, "", ""},
  };
  for (const Row& row : rows) {
    for (const bool is_bound : {false, true}) {
      CAPTURE(row.uris[0]);
      CAPTURE(is_bound);
      NetworkWithKeeper network(Verdict::accept(202));
      network.proxy.handlers().add(
          10, [&row](const RouteRequest&) { return Verdict::forward(row.uris); });
      if (is_bound) network.bind("carol", "sip:carol@192.0.2.30", udp("192.0.2.30:5060"));
      Request request;
      request.uri = "sip:77@example.org";
      network.receive(request.text(), alice);
      network.wait(30000);
      const std::string said = is_bound ? row.said_of_silence : row.said;
      REQUIRE(network.said.size() == (said.empty() ? 0 : 1));
      if (!said.empty()) CHECK(network.said[0] == said);
      const int status = network.take().back().status();
      CHECK((status == 202) == !said.empty());
      CHECK(status >= 200);
    }
  }
}

TEST_CASE("what is kept is the message as handlers have changed it") {
  for (const bool is_bound : {false, true}) {
    CAPTURE(is_bound);
    NetworkWithKeeper network(Verdict::accept());
    network.proxy.handlers().add(10, [](const RouteRequest& request) {
      request.set_parameter("xsip_body", "changed");
      return Verdict::next();
    });
    if (is_bound) network.bind("bob", bob_contact, bob);
    network.receive(Request().text(), alice);
    if (is_bound) network.receive(answer_to(network.take_one().text, "480 Away"), bob);
    REQUIRE(network.said.size() == 1);
    CHECK(network.said[0].substr(4) == "alice>bob changed");
  }
}

TEST_CASE("what is kept for another than the one called is his") {
  for (const bool is_bound : {false, true}) {
    CAPTURE(is_bound);
    NetworkWithKeeper network(Verdict::next());
    network.proxy.handlers().add(10, [](const RouteRequest& request) {
      request.set_parameter("called", "bob");
      return Verdict::next();
    });
    if (is_bound) network.bind("bob", bob_contact, bob);
    network.receive(to_uri("sip:nobody@example.org").text(), alice);
    if (is_bound) network.receive(answer_to(network.take_one().text, "480 Away"), bob);
    CHECK(network.said ==
          std::vector<std::string>{std::string(is_bound ? "480" : "405") + " alice>bob hello"});
    CHECK(network.take_one().status() == (is_bound ? 480 : 405));
  }
}

// Messages of our own.

namespace {

sipmsg::Outgoing own_message() {
  sipmsg::Outgoing outgoing;
  outgoing.to = "sip:bob@example.org";
  outgoing.from = "\"Us\" <sip:us@example.org>";
  outgoing.body = "news";
  outgoing.headers = {{"Date", "Sat, 13 Nov 2010 23:29:00 GMT"}};
  return outgoing;
}

}  // namespace

TEST_CASE("a message of our own goes to every binding, and its end is told once") {
  struct Row {
    const char* first;
    const char* second;
    int code;
  };
  const Row rows[] = {
      {"200 OK", "480 Away", 200},
      {"480 Away", "200 OK", 200},
      {"480 Away", "486 Busy", 480},
      {"603 No", "480 Away", 603},
      {"", "", 480},
      {"401 Who", "404 No", 401},
  };
  for (const Row& row : rows) {
    CAPTURE(row.first);
    CAPTURE(row.second);
    Network network;
    network.bind("bob", bob_contact, bob);
    network.bind("bob", "sip:bob@192.0.2.21", udp("192.0.2.21:5060"));
    std::vector<int> ends;
    REQUIRE_FALSE(
        network.proxy.send(own_message(), network.now_ms, [&](const sipmsg::Outcome& end) {
          CHECK_FALSE(end.error);
          ends.push_back(end.code);
        }));
    const std::vector<Packet> copies = network.take();
    REQUIRE(copies.size() == 2);
    for (const Packet& copy : copies) {
      CHECK(headers_of(copy.text, "Via").size() == 1);
      CHECK(header_of(copy.text, "Max-Forwards") == "20");
      CHECK(header_of(copy.text, "From").find("\"Us\" <sip:us@example.org>;tag=") == 0);
      CHECK(header_of(copy.text, "To") == "<sip:bob@example.org>");
      CHECK(header_of(copy.text, "Date") == "Sat, 13 Nov 2010 23:29:00 GMT");
      CHECK(body_of(copy.text) == "news");
    }
    const char* answers[] = {row.first, row.second};
    for (std::size_t i = 0; i < 2; ++i) {
      if (*answers[i] != '\0')
        network.receive(answer_to(copies[i].text, answers[i]), copies[i].flow);
    }
    network.wait(100000);
    CHECK(ends == std::vector<int>{row.code});
  }
}

TEST_CASE("a message of our own to nobody ends later, as a sender would be answered") {
  struct Row {
    const char* to;
    const char* contact;
    int code;
  };
  const Row rows[] = {{"sip:alice@example.org", "", 405},
                      {"sip:nobody@example.org", "", 404},
                      {"sip:bob@example.org", "sip:bob@192.0.2.99", 405}};
  for (const Row& row : rows) {
    CAPTURE(row.to);
    Network network;
    network.bind("bob", bob_contact, bob);
    sipmsg::Outgoing outgoing = own_message();
    outgoing.to = row.to;
    outgoing.request_uri = row.contact;
    std::vector<int> ends;
    REQUIRE_FALSE(network.proxy.send(
        outgoing, network.now_ms, [&](const sipmsg::Outcome& end) { ends.push_back(end.code); }));
    CHECK(ends.empty());
    network.wait(1);
    REQUIRE(ends.size() == 1);
    CHECK(ends[0] == row.code);
    CHECK(network.take().empty());
  }
}

TEST_CASE("a message of our own may go to one binding, or to an address") {
  Network network;
  network.bind("bob", bob_contact, bob);
  network.bind("bob", "sip:bob@192.0.2.21", udp("192.0.2.21:5060"));
  sipmsg::Outgoing outgoing = own_message();
  outgoing.request_uri = bob_contact;
  REQUIRE_FALSE(network.proxy.send(outgoing, network.now_ms, nullptr));
  Packet packet = network.take_one();
  CHECK(start_line(packet.text) == "MESSAGE " + bob_contact + " SIP/2.0");
  CHECK(packet.to() == "192.0.2.20:5070");
  network.receive(answer_to(packet.text, "200 OK"), packet.flow);
  outgoing.request_uri.clear();
  outgoing.next_hop = udp("198.51.100.7:5060");
  REQUIRE_FALSE(network.proxy.send(outgoing, network.now_ms, nullptr));
  packet = network.take_one();
  CHECK(start_line(packet.text) == "MESSAGE sip:bob@example.org SIP/2.0");
  CHECK(packet.to() == "198.51.100.7:5060");
}

TEST_CASE("what is wrong with a message of our own is said at once, and nothing is sent") {
  struct Row {
    const char* what;
    void (*change)(sipmsg::Outgoing&);
    sipmsg::ErrorCode code;
  };
  using sipmsg::ErrorCode;
  using sipmsg::Outgoing;
  const Row rows[] = {
      {"to", [](Outgoing& o) { o.to = "bob"; }, ErrorCode::bad_uri},
      {"from", [](Outgoing& o) { o.from = "<sip:a@b"; }, ErrorCode::bad_name_addr},
      {"line end",
       [](Outgoing& o) {
         o.headers = {{"X", "a\r\nb"}};
       },
       ErrorCode::forbidden_octet},
      {"own header",
       [](Outgoing& o) {
         o.headers = {{"Via", "a"}};
       },
       ErrorCode::duplicate_header},
      {"call id", [](Outgoing& o) { o.call_id = "a b"; }, ErrorCode::bad_call_id},
      {"large", [](Outgoing& o) { o.body = std::string(70000, 'x'); }, ErrorCode::too_large},
  };
  for (const Row& row : rows) {
    CAPTURE(row.what);
    Network network;
    network.bind("bob", bob_contact, bob);
    sipmsg::Outgoing outgoing = own_message();
    row.change(outgoing);
    CHECK(
        network.proxy.send(outgoing, network.now_ms, [](const sipmsg::Outcome&) { FAIL("called"); })
            .code == row.code);
    network.wait(100000);
    CHECK(network.take().empty());
  }
}

TEST_CASE("closing ends every message of our own as closed") {
  Network network;
  network.bind("bob", bob_contact, bob);
  std::vector<sipmsg::ErrorCode> ends;
  const auto note = [&](const sipmsg::Outcome& end) { ends.push_back(end.error.code); };
  REQUIRE_FALSE(network.proxy.send(own_message(), network.now_ms, note));
  sipmsg::Outgoing nobody = own_message();
  nobody.to = "sip:nobody@example.org";
  REQUIRE_FALSE(network.proxy.send(nobody, network.now_ms, note));
  network.proxy.close();
  CHECK(ends == std::vector<sipmsg::ErrorCode>(2, sipmsg::ErrorCode::closed));
}

// Phones that come and go.

TEST_CASE("whoever asks is told of each binding that is made, renewed and removed") {
  Network network;
  std::vector<std::string> events;
  network.proxy.on_registration([&](const sipmsg::RegistrationEvent& event) {
    CHECK(network.sent.size() == 1);  // the answer went first
    const char* kinds[] = {"added ", "refreshed ", "removed "};
    events.push_back(kinds[static_cast<int>(event.kind)] + std::string(event.user) + " " +
                     std::string(event.contact) + " " + std::to_string(event.expires_s));
  });
  const auto send = [&](int n, const std::string& contact) {
    Request request = registration("bob", contact);
    request.cseq = std::to_string(n) + " REGISTER";
    request.via = "SIP/2.0/UDP 192.0.2.20:5070;branch=z9hG4bKr" + std::to_string(n) + ";rport";
    CHECK(network.ask(request.text(), bob).status() == 200);
  };
  send(1, "Contact: <" + bob_contact + ">;expires=100\r\n");
  send(2, "Contact: <" + bob_contact + ">;expires=200\r\n");
  send(3, "Contact: <" + bob_contact + ">;expires=0\r\n");
  send(4, "");  // asks only
  CHECK(events == std::vector<std::string>{"added bob " + bob_contact + " 100",
                                           "refreshed bob " + bob_contact + " 200",
                                           "removed bob " + bob_contact + " 0"});
}

TEST_CASE("a thousand messages that wait for slow handlers do not delay one that waits for none") {
  Settings settings = plain_settings();
  settings.message.max_pending = 1000;
  NetworkWithBob network(settings);
  std::vector<RouteKey> keys;
  network.proxy.handlers().add(50, [&](const RouteRequest& request) {
    if (request.body() != "slow") return Verdict::next();
    keys.push_back(request.key);
    return Verdict::later();
  });
  for (int n = 1; n <= 1000; ++n) {
    Request slow = numbered(n);
    slow.body = "slow";
    network.receive(slow.text(), alice);
  }
  CHECK(network.take().empty());
  CHECK(network.proxy.waiting() == 1000);
  const Packet quick = network.ask(numbered(0).text(), alice);  // in the same instant
  CHECK(quick.to() == "192.0.2.20:5070");
  for (const RouteKey& key : keys) {
    CHECK_FALSE(network.proxy.resume(key, Verdict::accept(), network.now_ms));
  }
  CHECK(network.take().size() == 1000);
}

}  // namespace test_proxy
