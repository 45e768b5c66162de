// Whose domains these are, and who sent a request. What is answered is in test_proxy.cpp, the
// arithmetic in test_digest.cpp.
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "support/network.hpp"
#include "support/sipmsg.hpp"

namespace test_access {

using sipmsg::AccessControl;
using sipmsg::ChallengeKind;
using sipmsg::DigestAlgorithm;
using sipmsg::DigestHash;
using sipmsg::FieldList;
using sipmsg::Identity;
using sipmsg::OwnDomains;
using sipmsg::UserDirectory;
using sipmsg::UserSettings;
using test::network::Request;

namespace {

const sipmsg::IpAddress client = *sipmsg::parse_ip("192.0.2.10");

/// An AccessControl with users and a clock, and what a client makes of its challenges.
struct Gate {
  explicit Gate(sipmsg::DigestOptions options = {})
      : access(options, "a secret of sixteen octets"), realm(options.realm) {
    add("bob", true, "secret");
    add("open", true, "");
    add("nokey", false, "");
  }
  void add(const std::string& name, bool has_password, const std::string& password) {
    UserSettings user;
    user.name = name;
    user.has_password = has_password;
    user.password = password;
    users.add(user);
  }

  /// The challenges as they stand in a 401 or 407.
  std::vector<std::string> challenges(ChallengeKind kind, bool stale = false) {
    char buffer[2048];
    sipmsg::Output out(buffer, sizeof buffer);
    access.write_challenges(out, kind, stale, client, now_ms);
    REQUIRE_FALSE(out.error());
    return test::network::headers_of(
        "SIP/2.0 401\r\n" + std::string(out.written()) + "\r\n",
        kind == ChallengeKind::www ? "WWW-Authenticate" : "Proxy-Authenticate");
  }
  /// Credentials for a fresh challenge.
  std::string credentials(const std::string& user, const std::string& password,
                          std::size_t challenge = 0) {
    const std::string value = challenges(ChallengeKind::www).at(challenge);
    sipmsg::DigestClient digest;
    REQUIRE_FALSE(digest.take(*sipmsg::parse_challenge(value), "cnonce"));
    return *digest.authorize(user, password, "MESSAGE", "sip:bob@example.org", "hello");
  }
  Identity identify(const std::string& headers, ChallengeKind kind = ChallengeKind::www) {
    Request request;
    request.headers = headers;
    text = request.text();
    sipmsg::MessageView view;
    REQUIRE_FALSE(view.parse(text));
    own = {};
    const Identity identity = access.identify(view, kind, users, client, now_ms, own);
    hidden.clear();
    for (std::size_t field : own) hidden.push_back(std::string(view.field(field).value));
    return identity;
  }

  AccessControl access;
  std::string realm;
  UserDirectory users;
  std::uint64_t now_ms = 1000000;
  std::string text;
  FieldList own;
  std::vector<std::string> hidden;  ///< what the recipient is not to see
};

std::string authorization(const std::string& value) { return "Authorization: " + value + "\r\n"; }

}  // namespace

TEST_CASE("a domain is ours by name in any case, by address in any spelling, or by the star") {
  struct Row {
    std::vector<std::string> domains;
    std::string host;
    bool ours;
  };
  const Row rows[] = {
      {{"example.org"}, "example.org", true},
      {{"example.org"}, "EXAMPLE.Org", true},
      {{"Example.ORG"}, "example.org", true},
      {{"example.org"}, "example.org.", true},
      {{"example.org."}, "example.org", true},
      {{"example.org"}, "sip.example.org", false},
      {{"example.org"}, "example.orgx", false},
      {{"example.org"}, "", false},
      {{"example.org", "localhost"}, "localhost", true},
      {{"192.0.2.1"}, "192.0.2.1", true},
      {{"192.0.2.1"}, "192.0.2.001", true},
      {{"192.0.2.1"}, "192.0.2.10", false},
      {{"2001:db8::1"}, "2001:DB8:0::1", true},
      {{"[2001:db8::1]"}, "2001:db8::1", true},
      {{"2001:db8::1"}, "2001:db8::2", false},
      {{"*"}, "anything.example", true},
      {{"*"}, "", true},
      {{}, "example.org", false},
      {{""}, "", false},
      {{""}, ".", false},
  };
  for (const Row& row : rows) {
    CAPTURE(row.host);
    OwnDomains domains;
    for (const std::string& domain : row.domains) domains.add(domain);
    CHECK(domains.contains(row.host) == row.ours);
  }
  OwnDomains by_address;
  by_address.add(*sipmsg::parse_ip("192.0.2.1"));
  CHECK(by_address.contains("192.0.2.1"));
  CHECK_FALSE(by_address.is_any());
}

TEST_CASE("the right password proves who it is, anything else proves nothing") {
  Gate gate;
  struct Row {
    const char* what;
    std::string headers;
    Identity::Kind kind;
    bool refused;
  };
  const std::string foreign =
      "Digest username=\"bob\", realm=\"elsewhere\", nonce=\"n\", uri=\"sip:x\", response=\"r\"";
  const std::string other_algorithm =
      "Digest username=\"bob\", realm=\"sipmsg\", nonce=\"n\", uri=\"sip:bob@example.org\", "
      "response=\"00000000000000000000000000000000\", algorithm=SHA-1";
  const Row rows[] = {
      {"none", "", Identity::Kind::anonymous, false},
      {"right", authorization(gate.credentials("bob", "secret")), Identity::Kind::known, false},
      {"wrong password", authorization(gate.credentials("bob", "Secret")),
       Identity::Kind::anonymous, true},
      {"unknown user", authorization(gate.credentials("dave", "secret")), Identity::Kind::anonymous,
       true},
      {"no password key", authorization(gate.credentials("nokey", "")), Identity::Kind::anonymous,
       true},
      {"user in another case", authorization(gate.credentials("Bob", "secret")),
       Identity::Kind::anonymous, true},
      {"Basic", authorization("Basic Ym9iOnNlY3JldA=="), Identity::Kind::anonymous, false},
      {"malformed", authorization("Digest username=\"bob\""), Identity::Kind::anonymous, false},
      {"another realm", authorization(foreign), Identity::Kind::anonymous, false},
      {"another algorithm", authorization(other_algorithm), Identity::Kind::anonymous, false},
      {"in the other header", "Proxy-Authorization: " + gate.credentials("bob", "secret") + "\r\n",
       Identity::Kind::anonymous, false},
      {"behind others",
       authorization("NoOneKnowsThis a=b") + authorization(foreign) +
           authorization(gate.credentials("bob", "wrong")) +
           authorization(gate.credentials("bob", "secret")),
       Identity::Kind::known, false},
  };
  for (const Row& row : rows) {
    CAPTURE(row.what);
    const Identity identity = gate.identify(row.headers);
    CHECK(identity.kind == row.kind);
    CHECK(identity.refusal.empty() == !row.refused);
    if (row.kind == Identity::Kind::known) {
      REQUIRE(identity.user != nullptr);
      CHECK(identity.user->name == "bob");
    }
  }
}

TEST_CASE("Proxy-Authorization proves it where a proxy asks") {
  Gate gate;
  const std::string value = gate.credentials("bob", "secret");
  CHECK(gate.identify("Proxy-Authorization: " + value + "\r\n", ChallengeKind::proxy).kind ==
        Identity::Kind::known);
}

TEST_CASE("an empty password lets in everybody who names the user in our realm") {
  Gate gate;
  CHECK(gate.identify(authorization(gate.credentials("open", "whatever"))).kind ==
        Identity::Kind::known);
  const std::string forged =
      "Digest username=\"open\", realm=\"sipmsg\", nonce=\"n\", uri=\"sip:x\", response=\"r\"";
  CHECK(gate.identify(authorization(forged)).kind == Identity::Kind::known);
  const std::string foreign =
      "Digest username=\"open\", realm=\"elsewhere\", nonce=\"n\", uri=\"sip:x\", response=\"r\"";
  CHECK(gate.identify(authorization(foreign)).kind == Identity::Kind::anonymous);
  CHECK(gate.identify("").kind == Identity::Kind::anonymous);
}

TEST_CASE("a right password with a nonce that is too old or used up is stale") {
  Gate gate;
  const std::string value = gate.credentials("bob", "secret");
  CHECK(gate.identify(authorization(value)).kind == Identity::Kind::known);
  const Identity again = gate.identify(authorization(value));
  CHECK(again.kind == Identity::Kind::stale);
  CHECK(again.refusal.empty());
  const std::string old = gate.credentials("bob", "secret");
  const std::string old_and_wrong = gate.credentials("bob", "wrong");
  gate.now_ms += 300000;
  CHECK(gate.identify(authorization(old)).kind == Identity::Kind::stale);
  CHECK(gate.identify(authorization(old) + authorization(old_and_wrong)).kind ==
        Identity::Kind::stale);
  CHECK(gate.identify(authorization(old_and_wrong)).kind == Identity::Kind::anonymous);
}

TEST_CASE("credentials for another Request-URI are refused and named") {
  Gate gate;
  const std::string challenge = gate.challenges(ChallengeKind::www).front();
  sipmsg::DigestClient digest;
  REQUIRE_FALSE(digest.take(*sipmsg::parse_challenge(challenge), "cnonce"));
  const Identity identity = gate.identify(
      authorization(*digest.authorize("bob", "secret", "MESSAGE", "sip:carol@example.org", "")));
  CHECK(identity.kind == Identity::Kind::anonymous);
  CHECK(identity.refusal == "credentials for another address");
}

TEST_CASE("one challenge is written for each algorithm, best first, and each can be answered") {
  sipmsg::DigestOptions options;
  options.realm = "our \"realm\"";
  options.algorithms = {DigestAlgorithm{DigestHash::sha_512_256, false},
                        DigestAlgorithm{DigestHash::sha_256, false},
                        DigestAlgorithm{DigestHash::md5, false}};
  Gate gate(options);
  const std::vector<std::string> written = gate.challenges(ChallengeKind::proxy, true);
  REQUIRE(written.size() == 3);
  const char* names[] = {"SHA-512-256", "SHA-256", "MD5"};
  for (std::size_t i = 0; i < written.size(); ++i) {
    const auto challenge = sipmsg::parse_challenge(written[i]);
    REQUIRE(challenge);
    CHECK(challenge->algorithm_text == names[i]);
    CHECK(challenge->stale);
    CHECK(challenge->offers_auth);
    CHECK(sipmsg::unquote(challenge->realm) == options.realm);
    CHECK(gate.identify(authorization(gate.credentials("bob", "secret", i))).kind ==
          Identity::Kind::known);
  }
  CHECK(written[0].find("nonce=") != std::string::npos);
  CHECK(gate.challenges(ChallengeKind::www).front().find("stale") == std::string::npos);
}

TEST_CASE("what is for our realm is noted, right or wrong, and nothing else") {
  Gate gate;
  const std::string ours = gate.credentials("bob", "secret");
  const std::string wrong = gate.credentials("dave", "x");
  const std::string foreign =
      "Digest username=\"bob\", realm=\"elsewhere\", nonce=\"n\", uri=\"sip:x\", response=\"r\"";
  gate.identify(authorization(foreign) + authorization(wrong) + authorization("Basic Ym9i") +
                authorization(ours));
  CHECK(gate.hidden == std::vector<std::string>{wrong, ours});

  sipmsg::MessageView view;
  REQUIRE_FALSE(view.parse(gate.text));
  FieldList found;
  gate.access.find_own(view, ChallengeKind::www, found);
  CHECK(found.end() - found.begin() == 2);
  gate.access.find_own(view, ChallengeKind::proxy, found);
  CHECK(found.end() - found.begin() == 2);
}

TEST_CASE("of many credentials only a few are judged, so that nobody buys hashes by the dozen") {
  Gate gate;
  std::string many;
  for (int i = 0; i < 4; ++i) many += authorization(gate.credentials("bob", "wrong"));
  const std::string right = authorization(gate.credentials("bob", "secret"));
  CHECK(gate.identify(many + right).kind == Identity::Kind::anonymous);
  const std::string wrong = authorization(gate.credentials("bob", "wrong"));
  CHECK(gate.identify(wrong + right).kind == Identity::Kind::known);
}

TEST_CASE("a list of fields says when it overflowed") {
  FieldList fields;
  for (std::size_t i = 0; i < FieldList::capacity; ++i) fields.add(i * 10);
  CHECK_FALSE(fields.overflowed());
  std::vector<std::size_t> listed(fields.begin(), fields.end());
  CHECK(listed.size() == FieldList::capacity);
  CHECK(listed.back() == 110);
  fields.add(5);
  CHECK(fields.overflowed());
  CHECK(fields.end() - fields.begin() == FieldList::capacity);
}

TEST_CASE("a user speaks under its own names, in our domains") {
  UserSettings bob;
  bob.name = "bob";
  bob.alternatives = {"sales", "Bob Smith"};
  OwnDomains domains;
  domains.add("example.org");
  struct Row {
    const char* uri;
    bool allowed;
  };
  const Row rows[] = {
      {"sip:bob@example.org", true},
      {"sip:bob@example.org:5090;transport=tcp", true},
      {"sip:b%6fb@EXAMPLE.org", true},
      {"sip:sales@example.org", true},
      {"sip:Bob%20Smith@example.org", true},
      {"sips:bob@example.org", true},
      {"sip:Bob@example.org", false},
      {"sip:carol@example.org", false},
      {"sip:bob@example.com", false},
      {"sip:example.org", false},
      {"tel:5", false},
      {"mailto:bob@example.org", false},
  };
  for (const Row& row : rows) {
    CAPTURE(row.uri);
    const auto uri = sipmsg::parse_uri(row.uri);
    REQUIRE(uri);
    const std::string name = sipmsg::unescape(uri->user);
    CHECK(sipmsg::may_speak_as(bob, *uri, name, domains) == row.allowed);
  }
}

}  // namespace test_access
