// login.hpp through an Agent: what goes out after a 401 or 407, judged by our own server's side.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "support/sipmsg.hpp"

namespace test_login {

using namespace sipmsg;

namespace {

const SipHashKey key{};

/// Takes everything down that is sent.
class Wire final : public Sink {
 public:
  Result<std::string_view> sent_by(Flow& flow) override {
    flow.socket = 1;
    return std::string_view("192.0.2.1:5060");
  }
  Error send(const Flow&, const Slices& message) override {
    sent.push_back(message.to_string());
    return {};
  }
  std::vector<std::string> sent;
};

/// A server that asks for the password of one user, as often as it likes.
class Asking {
 public:
  explicit Asking(int code = 401, const std::string& realm = "here",
                  std::vector<DigestAlgorithm> algorithms = {DigestAlgorithm{}},
                  std::string_view secret = "sixteen octets!!")
      : code_(code), authenticator_(options(realm, std::move(algorithms)), secret) {}

  /// What became of the credentials in `request`; nothing where it has none for this server.
  std::optional<DigestVerdict> judge(const Message& request, const std::string& password) {
    const HeaderId id = code_ == 401 ? HeaderId::authorization : HeaderId::proxy_authorization;
    for (std::size_t i = request.find(id); i != request.header_count(); i = request.find_next(i)) {
      const auto credentials = parse_credentials(request.field(i).value);
      REQUIRE(credentials);
      nonce_count = credentials->nonce_count;
      nonce = credentials->nonce;
      algorithm = credentials->algorithm ? credentials->algorithm->name() : "";
      const DigestVerdict verdict = authenticator_.check(
          *credentials,
          {request.method_text(), request.request_uri_text(), request.body(), "client"},
          DigestSecret::password(password), 0);
      if (verdict != DigestVerdict::wrong_realm) return verdict;
    }
    return std::nullopt;
  }
  std::string challenge(const std::string& request, bool stale = false) {
    return answer(request, code_, lines(stale));
  }
  std::string next_nonce() { return std::string(authenticator_.make_nonce("client", 0).view()); }
  /// The challenges as headers.
  std::string lines(bool stale = false) {
    const DigestNonce made = authenticator_.make_nonce("client", 0);
    std::string lines;
    for (std::size_t i = 0; i < authenticator_.challenge_count(); ++i) {
      std::string text(authenticator_.max_challenge_size(), '\0');
      text.resize(authenticator_.write_challenge(i, made, stale, &text[0], text.size()));
      lines += (code_ == 401 ? "WWW-Authenticate: " : "Proxy-Authenticate: ") + text + "\r\n";
    }
    return lines;
  }
  static std::string answer(const std::string& request, int code, const std::string& lines = "") {
    const auto parsed = Message::from_bytes(request);
    REQUIRE(parsed);
    std::vector<char> buffer(max_message_size);
    Output out(buffer.data(), buffer.size());
    write_status_line(out, code, {});
    write_response_head(out, *parsed, "tag", SocketAddress{*parse_ip("192.0.2.1"), 5060, 0});
    out.raw(lines);
    write_body(out, {}, {});
    REQUIRE_FALSE(out.error());
    return std::string(out.written());
  }

  std::uint32_t nonce_count = 0;
  std::string nonce;
  std::string algorithm;

 private:
  static DigestOptions options(const std::string& realm, std::vector<DigestAlgorithm> algorithms) {
    DigestOptions options;
    options.realm = realm;
    options.algorithms = std::move(algorithms);
    return options;
  }
  int code_;
  DigestAuthenticator authenticator_;
};

struct Fixture {
  Wire wire;
  std::vector<int> codes;
  std::shared_ptr<Login> login = std::make_shared<Login>("alice", "secret");
  Agent agent{AgentOptions(), wire, key};

  void send(const std::string& body = "Hello") {
    Outgoing outgoing;
    outgoing.to = "sip:bob@192.0.2.7";
    outgoing.body = body;
    outgoing.login = login;
    REQUIRE_FALSE(agent.send(outgoing, 0, [this](const Outcome& o) { codes.push_back(o.code); }));
  }
  void receive(const std::string& bytes) {
    MessageView view;
    const Error error = view.parse(bytes);
    agent.receive(view, error, Flow{}, 0);
  }
  Message last() const { return Message::from_bytes(wire.sent.back()).value(); }
};

}  // namespace

TEST_CASE("a challenge is answered with the same request, once more and with credentials") {
  for (int code : {401, 407}) {
    CAPTURE(code);
    Asking server(code);
    Fixture fixture;
    fixture.send("H\xC3\xA4llo\r\n");
    const Message first = fixture.last();
    CHECK_FALSE(server.judge(first, "secret"));
    fixture.receive(server.challenge(fixture.wire.sent[0]));
    REQUIRE(fixture.wire.sent.size() == 2);
    CHECK(fixture.codes.empty());

    const Message second = fixture.last();
    CHECK(server.judge(second, "secret") == DigestVerdict::accepted);
    CHECK(second.call_id() == first.call_id());
    CHECK(second.header(HeaderId::from) == first.header(HeaderId::from));
    CHECK(second.cseq()->number == first.cseq()->number + 1);
    CHECK(second.top_via()->branch != first.top_via()->branch);
    CHECK(second.body() == first.body());
    fixture.receive(Asking::answer(fixture.wire.sent[1], 200));
    CHECK(fixture.codes == std::vector<int>{200});
  }
}

TEST_CASE("without an account a challenge is the final answer") {
  Asking server;
  Fixture fixture;
  fixture.login = nullptr;
  fixture.send();
  fixture.receive(server.challenge(fixture.wire.sent[0]));
  CHECK(fixture.codes == std::vector<int>{401});
  CHECK(fixture.wire.sent.size() == 1);
}

TEST_CASE("what follows carries credentials at once, with a rising count") {
  Asking server;
  Fixture fixture;
  fixture.send();
  fixture.receive(server.challenge(fixture.wire.sent[0]));
  fixture.receive(Asking::answer(fixture.wire.sent[1], 200));
  REQUIRE(server.judge(fixture.last(), "secret") == DigestVerdict::accepted);
  for (std::uint32_t count = 2; count < 5; ++count) {
    fixture.send();
    CHECK(server.judge(fixture.last(), "secret") == DigestVerdict::accepted);
    CHECK(server.nonce_count == count);
  }
  CHECK(fixture.wire.sent.size() == 5);
}

TEST_CASE("a large request, written for UDP and sent by TCP, counts once") {
  Asking server;
  Fixture fixture;
  for (std::uint32_t count = 1; count < 4; ++count) {
    fixture.send(std::string(2000, 'x'));
    if (count == 1) fixture.receive(server.challenge(fixture.wire.sent[0]));
    CHECK(server.judge(fixture.last(), "secret") == DigestVerdict::accepted);
    CHECK(server.nonce_count == count);
    CHECK(fixture.last().top_via()->transport == "TCP");
  }
}

TEST_CASE("a password that was refused is not tried again, until there is another one") {
  Asking server;
  Fixture fixture;
  fixture.send();
  fixture.receive(server.challenge(fixture.wire.sent[0]));
  CHECK(server.judge(fixture.last(), "another") == DigestVerdict::wrong_response);
  CHECK_FALSE(fixture.login->is_refused());
  fixture.receive(server.challenge(fixture.wire.sent[1]));
  CHECK(fixture.codes == std::vector<int>{401});
  CHECK(fixture.login->is_refused());
  CHECK(fixture.wire.sent.size() == 2);

  fixture.send();
  CHECK_FALSE(server.judge(fixture.last(), "another"));
  fixture.receive(server.challenge(fixture.wire.sent[2]));
  CHECK(fixture.codes == std::vector<int>{401, 401});
  CHECK(fixture.wire.sent.size() == 3);

  fixture.login->set_password("another");
  CHECK_FALSE(fixture.login->is_refused());
  fixture.send();
  fixture.receive(server.challenge(fixture.wire.sent[3]));
  CHECK(server.judge(fixture.last(), "another") == DigestVerdict::accepted);
}

TEST_CASE("a nonce that is stale is replaced, but not for ever") {
  Asking server;
  Fixture fixture;
  fixture.send();
  std::size_t answered = 0;
  while (fixture.codes.empty()) {
    REQUIRE(answered < 10);
    fixture.receive(server.challenge(fixture.wire.sent[answered], answered > 0));
    ++answered;
    if (!fixture.codes.empty()) break;
    CHECK(server.judge(fixture.last(), "secret") == DigestVerdict::accepted);
  }
  CHECK(answered == 5);
  CHECK(fixture.codes == std::vector<int>{401});
  CHECK_FALSE(fixture.login->is_refused());
}

TEST_CASE("an old nonce in the first try does not count against the password") {
  Asking server;
  Fixture fixture;
  fixture.send();
  fixture.receive(server.challenge(fixture.wire.sent[0]));
  fixture.receive(Asking::answer(fixture.wire.sent[1], 200));
  Asking restarted(401, "here", {DigestAlgorithm{}}, "another secret!!");
  fixture.send();
  CHECK(restarted.judge(fixture.last(), "secret") == DigestVerdict::stale);
  fixture.receive(restarted.challenge(fixture.wire.sent[2]));  // some servers never say stale
  CHECK(restarted.judge(fixture.last(), "secret") == DigestVerdict::accepted);
  CHECK(fixture.codes == std::vector<int>{200});
}

TEST_CASE("a proxy and the server behind it are each given what they ask for") {
  Asking proxy(407, "on the way");
  Asking server(401, "at the end");
  Fixture fixture;
  fixture.send();
  fixture.receive(proxy.challenge(fixture.wire.sent[0]));
  fixture.receive(server.challenge(fixture.wire.sent[1]));
  REQUIRE(fixture.wire.sent.size() == 3);
  CHECK(proxy.judge(fixture.last(), "secret") == DigestVerdict::accepted);
  CHECK(server.judge(fixture.last(), "secret") == DigestVerdict::accepted);
}

TEST_CASE("of several challenges the strongest that we speak is answered") {
  const DigestAlgorithm md5{DigestHash::md5, false};
  const DigestAlgorithm sha_256{DigestHash::sha_256, false};
  const DigestAlgorithm sha_512_256{DigestHash::sha_512_256, false};
  const struct {
    std::vector<DigestAlgorithm> offered;
    std::string answered;
  } rows[] = {{{sha_256, md5}, "SHA-256"},
              {{md5, sha_256}, "SHA-256"},
              {{md5, sha_512_256, sha_256}, "SHA-512-256"},
              {{md5}, "MD5"}};
  for (const auto& row : rows) {
    CAPTURE(row.answered);
    Asking server(401, "here", row.offered);
    Fixture fixture;
    fixture.send();
    fixture.receive(server.challenge(fixture.wire.sent[0]));
    CHECK(server.judge(fixture.last(), "secret") == DigestVerdict::accepted);
    CHECK(server.algorithm == row.answered);
  }
}

TEST_CASE("challenges of several realms in one answer are each answered (RFC 3261 16.7)") {
  Asking first(
      401, "first",
      {DigestAlgorithm{DigestHash::md5, false}, DigestAlgorithm{DigestHash::sha_256, false}});
  Asking second(401, "second");
  Asking proxy(407, "proxy");
  Fixture fixture;
  fixture.send();
  const std::string request = fixture.wire.sent[0];
  fixture.receive(Asking::answer(
      request, 401,
      first.lines() + proxy.lines() + second.lines() + "WWW-Authenticate: Basic x\r\n"));
  REQUIRE(fixture.wire.sent.size() == 2);
  CHECK(first.judge(fixture.last(), "secret") == DigestVerdict::accepted);
  CHECK(first.algorithm == "SHA-256");
  CHECK(second.judge(fixture.last(), "secret") == DigestVerdict::accepted);
  CHECK(proxy.judge(fixture.last(), "secret") == DigestVerdict::accepted);
  // One of them asks again: the password is not right there, and that is the end of it.
  fixture.receive(Asking::answer(fixture.wire.sent[1], 401, second.lines()));
  CHECK(fixture.codes == std::vector<int>{401});
  CHECK(fixture.login->is_refused());
}

TEST_CASE("a server that gives the next nonce with each answer is given each once") {
  for (int code : {401, 407}) {
    CAPTURE(code);
    const std::string info = code == 401 ? "Authentication-Info" : "Proxy-Authentication-Info";
    Asking server(code);
    Fixture fixture;
    fixture.send();
    fixture.receive(server.challenge(fixture.wire.sent[0]));
    std::string used;
    for (int i = 0; i < 5; ++i) {
      CHECK(server.judge(fixture.last(), "secret") == DigestVerdict::accepted);
      CHECK(server.nonce_count == 1);
      CHECK(server.nonce != used);
      used = server.nonce;
      const std::string next = server.next_nonce();
      fixture.receive(Asking::answer(fixture.wire.sent.back(), i == 2 ? 480 : 200,
                                     info + ": qop=auth, nextnonce=\"" + next + "\"\r\n"));
      fixture.send();
    }
    CHECK(fixture.wire.sent.size() == 7);
  }
}

TEST_CASE("a next nonce that makes no sense is passed over") {
  for (const std::string line : {"Authentication-Info: x", "Authentication-Info: nextnonce",
                                 "Authentication-Info: nextnonce=", "Authentication-Info:",
                                 "Proxy-Authentication-Info: nextnonce=\"other\""}) {
    CAPTURE(line);
    Asking server;
    Fixture fixture;
    fixture.send();
    fixture.receive(server.challenge(fixture.wire.sent[0]));
    REQUIRE(server.judge(fixture.last(), "secret") == DigestVerdict::accepted);
    fixture.receive(Asking::answer(fixture.wire.sent[1], 200, line + "\r\n"));
    fixture.send();
    CHECK(server.judge(fixture.last(), "secret") == DigestVerdict::accepted);
    CHECK(server.nonce_count == 2);
  }
}

TEST_CASE("a next nonce is for nobody where two realms could be meant") {
  Asking first(401, "first");
  Asking second(401, "second");
  Fixture fixture;
  fixture.send();
  fixture.receive(Asking::answer(fixture.wire.sent[0], 401, first.lines() + second.lines()));
  fixture.receive(
      Asking::answer(fixture.wire.sent[1], 200,
                     "Authentication-Info: nextnonce=\"" + first.next_nonce() + "\"\r\n"));
  fixture.send();
  CHECK(first.judge(fixture.last(), "secret") == DigestVerdict::accepted);
  CHECK(first.nonce_count == 2);
  CHECK(second.judge(fixture.last(), "secret") == DigestVerdict::accepted);
}

TEST_CASE("a challenge that nobody can answer is the final answer") {
  for (const std::string line : {"", "WWW-Authenticate: Basic realm=\"x\"\r\n",
                                 "WWW-Authenticate: Digest realm=\"x\", nonce=\"y\", "
                                 "algorithm=SHA-3\r\n",
                                 "WWW-Authenticate: Digest nonsense\r\n"}) {
    CAPTURE(line);
    Fixture fixture;
    fixture.send();
    fixture.receive(Asking::answer(fixture.wire.sent[0], 401, line));
    CHECK(fixture.codes == std::vector<int>{401});
    CHECK(fixture.wire.sent.size() == 1);
  }
}

}  // namespace test_login
