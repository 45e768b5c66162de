// Digest authentication: the vectors, what softphones really sent, both sides of a login, replay.
#include <doctest/doctest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "support/data.hpp"
#include "support/sipmsg.hpp"

namespace test_digest {

using namespace sipmsg;

namespace {

const std::string secret = "0123456789abcdef";
const std::string address_a = {'\x7f', 0, 0, 1};
const std::string address_b = {'\x7f', 0, 0, 2};

DigestOptions options_for(const std::string& realm, std::vector<DigestAlgorithm> algorithms) {
  DigestOptions options;
  options.realm = realm;
  options.algorithms = std::move(algorithms);
  return options;
}

std::string challenge_text(const DigestAuthenticator& server, std::size_t index,
                           const DigestNonce& nonce, bool stale = false) {
  std::string room(server.max_challenge_size(), '#');
  room.resize(server.write_challenge(index, nonce, stale, &room[0], room.size()));
  return room;
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  REQUIRE(at != std::string::npos);
  return text.replace(at, from.size(), to);
}

const char* verdict_name(DigestVerdict verdict) {
  switch (verdict) {
    case DigestVerdict::accepted: return "accepted";
    case DigestVerdict::stale: return "stale";
    case DigestVerdict::wrong_response: return "wrong_response";
    case DigestVerdict::wrong_scheme: return "wrong_scheme";
    case DigestVerdict::wrong_realm: return "wrong_realm";
    case DigestVerdict::wrong_algorithm: return "wrong_algorithm";
    case DigestVerdict::wrong_uri: return "wrong_uri";
  }
  return "?";
}

/// One server, and a client of it that knows its way.
struct Attempt {
  explicit Attempt(DigestOptions options = {}) : server(std::move(options), secret) {}

  /// A fresh nonce, taken over by the client; `edit_from` in the challenge becomes `edit_to`.
  void challenge(const std::string& edit_from = "", const std::string& edit_to = "") {
    std::string text = challenge_text(server, 0, server.make_nonce(address, now_ms));
    if (!edit_from.empty()) text = replaced(text, edit_from, edit_to);
    const auto parsed = parse_challenge(text);
    REQUIRE(parsed.ok());
    REQUIRE_FALSE(client.take(*parsed, "cnonce" + std::to_string(++cnonces)));
  }

  std::string authorization() {
    auto value = client.authorize("101", password, method, uri, body);
    REQUIRE(value.ok());
    return *value;
  }

  std::string check(const std::string& value,
                    const DigestSecret& known = DigestSecret::password("pw101")) {
    const auto credentials = parse_credentials(value);
    REQUIRE_MESSAGE(credentials.ok(), value);
    return verdict_name(server.check(*credentials, {method, uri, body, address}, known, now_ms));
  }

  DigestAuthenticator server;
  DigestClient client;
  std::string password = "pw101";
  std::string method = "MESSAGE";
  std::string uri = "sip:102@example.org";
  std::string body = "hello";
  std::string address = address_a;
  std::uint64_t now_ms = 1000000;
  int cnonces = 0;
};

const std::string no_qop = "qop=\"auth\", ";

}  // namespace

// ---- vectors and captures ----------------------------------------------------------------------

TEST_CASE("every row of the digest vectors is computed and judged as published") {
  const auto rows = test::read_table("vectors/digest.txt");
  CHECK(rows.size() == 35);
  for (const auto& row : rows) {
    REQUIRE(row.size() == 16);
    CAPTURE(row[0]);
    const std::string &username = row[3], &realm = row[4], &password = row[5], &method = row[6];
    const auto algorithm = parse_digest_algorithm(row[2]);
    REQUIRE(algorithm.has_value());
    std::string body;
    for (std::size_t i = 0; row[12] != "-" && i < row[12].size(); i += 2) {
      body.push_back(static_cast<char>(hex_value(row[12][i]) * 16 + hex_value(row[12][i + 1])));
    }

    const DigestQop qop = row[11] == "auth-int" ? DigestQop::auth_int : DigestQop::none;
    const DigestHex ha1 = digest_ha1(algorithm->hash, username, realm, password);
    if (!algorithm->session) CHECK(ha1.view() == row[13]);
    CHECK(digest_ha2(algorithm->hash, method, row[7], qop, body).view() == row[14]);

    // The same as credentials in a header. The nonce is not ours: where the response is right, the
    // verdict is `stale`, and only there.
    std::string value = "Digest username=" + quote(username) + ", realm=" + quote(realm) +
                        ", nonce=" + quote(row[8]) + ", uri=" + quote(row[7]) +
                        ", algorithm=" + row[2] + ", response=\"" + row[15] + "\"";
    if (row[9] != "-") value += ", nc=" + row[9];
    if (row[10] != "-") value += ", cnonce=" + quote(row[10]);
    if (row[11] != "-") value += ", qop=" + row[11];
    const auto credentials = parse_credentials(value);
    REQUIRE(credentials.ok());
    CHECK(digest_response(*credentials, DigestSecret::password(password), method, body).view() ==
          row[15]);

    DigestAuthenticator server(options_for(realm, {*algorithm}), secret);
    const auto judge = [&](const std::string& with_body, const DigestSecret& known) {
      return server.check(*credentials, {method, row[7], with_body, address_a}, known, 0);
    };
    CHECK(judge(body, DigestSecret::password(password)) == DigestVerdict::stale);
    CHECK(judge(body, DigestSecret::ha1(algorithm->hash, ha1.view())) == DigestVerdict::stale);
    CHECK(judge(body, DigestSecret::password(password + "x")) == DigestVerdict::wrong_response);
    CHECK(judge(body, DigestSecret::unknown_user()) == DigestVerdict::wrong_response);
    CHECK(judge(body + "x", DigestSecret::password(password)) ==
          (qop == DigestQop::auth_int ? DigestVerdict::wrong_response : DigestVerdict::stale));
  }
}

TEST_CASE("the response that RFC 7616 prints with a wrong SHA-512/256 is not accepted") {
  for (const auto& row : test::read_table("vectors/digest.txt")) {
    if (row[0] != "rfc7616-3.9.2-sha512-256") continue;
    CHECK(row[15].substr(0, 8) == "3798d413");  // erratum 4897; printed: ae66e67d...
    return;
  }
  FAIL("row not found");
}

TEST_CASE("every authenticated capture of a real client verifies") {
  const std::string index = test::read_data("captures/README.md");
  int count = 0;
  for (const std::string& line : test::split(index, '\n')) {
    const auto columns = test::split(line, '|');
    if (columns.size() < 7 || columns[6].find("with Authorization") == std::string::npos) continue;
    const std::string file(trim(columns[4]));
    CAPTURE(file);
    const std::string message = test::read_data("captures/" + file);
    const std::string head = message.substr(0, message.find("\r\n\r\n") + 2);
    const std::string body = message.substr(head.size() + 2);
    const auto start = test::split(head.substr(0, head.find("\r\n")), ' ');
    const std::size_t name = head.find("\r\nAuthorization:");
    REQUIRE(name != std::string::npos);
    const std::size_t begin = name + 16;
    const std::string value = head.substr(begin, head.find("\r\n", begin) - begin);

    const auto credentials = parse_credentials(value);
    REQUIRE(credentials.ok());
    const std::string password = "pw" + unquote(credentials->username);
    const DigestSecret known = DigestSecret::password(password);
    const auto options = options_for(unquote(credentials->realm), {DigestAlgorithm{}});
    DigestAuthenticator server(options, secret);
    const DigestRequest request{start[0], start[1], body, address_a};
    // Right password, right URI, a nonce of another server: nothing but the nonce is refused.
    CHECK(server.check(*credentials, request, known, 0) == DigestVerdict::stale);
    CHECK(server.check(*credentials, {"OPTIONS", start[1], body, address_a}, known, 0) ==
          DigestVerdict::wrong_response);
    ++count;
  }
  CHECK(count == 106);
}

// ---- reading -----------------------------------------------------------------------------------

TEST_CASE("credentials are read as written, whatever the case, order and spacing") {
  const std::string value =
      " dIGEST \t response=\"ab\",NC=0000000A ,\r\n qop=\"auth\",,unknown=\"x,y\", "
      "username=\"a\\\"b\""
      ", realm=plain , nonce=\"n=,;\", URI=\"sip:a@b;x=<y>\", cnonce=\"\", "
      "Algorithm=\"sha-256-SESS\" ";
  const auto credentials = parse_credentials(value);
  REQUIRE(credentials.ok());
  CHECK(credentials->is_digest);
  CHECK(credentials->username == "\"a\\\"b\"");
  CHECK(unquote(credentials->username) == "a\"b");
  CHECK(credentials->realm == "plain");
  CHECK(credentials->nonce == "\"n=,;\"");
  CHECK(credentials->uri == "\"sip:a@b;x=<y>\"");
  CHECK(credentials->cnonce == "\"\"");
  CHECK(credentials->response == "ab");
  CHECK(credentials->qop == DigestQop::auth);
  CHECK(credentials->qop_text == "auth");
  CHECK(credentials->nonce_count_text == "0000000A");
  CHECK(credentials->nonce_count == 10);
  CHECK(credentials->algorithm == DigestAlgorithm{DigestHash::sha_256, true});
}

TEST_CASE("another scheme and an unknown algorithm are told, and are no errors") {
  const auto basic = parse_credentials("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
  REQUIRE(basic.ok());
  CHECK_FALSE(basic->is_digest);
  CHECK(basic->scheme == "Basic");
  const auto unknown = parse_credentials(
      "Digest username=\"u\",realm=\"r\",nonce=\"n\",uri=\"u\",response=\"r\",algorithm=AKAv1-MD5");
  REQUIRE(unknown.ok());
  CHECK_FALSE(unknown->algorithm.has_value());
  CHECK(unknown->algorithm_text == "AKAv1-MD5");
  CHECK(digest_response(*unknown, DigestSecret::password("p"), "M", "").view().empty());
}

TEST_CASE("malformed credentials are refused at the octet where it went wrong") {
  const std::string base = "Digest username=\"u\",realm=\"r\",nonce=\"n\",uri=\"u\",response=\"r\"";
  const auto end = [](const std::string& text) { return static_cast<std::int32_t>(text.size()); };
  const std::string qop = base + ",qop=auth,cnonce=\"c\",nc=";
  const struct {
    std::string value;
    std::int32_t place;
  } rows[] = {
      {"", 0},
      {"   ", 3},
      {"Dig/est x=y", 0},
      {"Digest", 6},
      {"Digest ,,,", 10},
      {base + ",", -1},
      {base.substr(0, base.size() - 13), end(base) - 13},  // no response
      {replaced(base, "username", "username*"), end(base) + 1},
      {replaced(base, "realm=\"r\"", "realm=\"\""), -1},
      {replaced(base, "realm=\"r\"", "realm="), 26},
      {replaced(base, "realm=\"r\"", "realm"), 20},
      {replaced(base, "realm=\"r\"", "realm=\"r"), 26},
      {replaced(base, "realm=\"r\"", "realm=a b"), 26},
      {replaced(base, "realm=\"r\"", "re alm=\"r\""), 20},
      {replaced(base, "realm=\"r\"", "=\"r\""), 20},
      {replaced(base, "realm=\"r\"", std::string("realm=a\0b", 9)), 26},
      {base + ",Nonce=\"m\"", end(base) + 1},
      {base + ",response=\"r\"", end(base) + 1},
      {base + ",qop=auth-conf", end(base) + 5},
      {base + ",qop=auth,nc=00000001", end(base) + 21},
      {base + ",qop=auth,cnonce=\"c\"", end(base) + 20},
      {base + ",algorithm=MD5-sess", end(base) + 19},
      {qop + "1", end(qop)},
      {qop + "0000000g", end(qop)},
      {qop + "000000001", end(qop)},
      {qop + "+0000001", end(qop)},
      {qop + "00000001", -1},
      {base + ",nc=1", -1},  // without qop it means nothing
  };
  for (const auto& row : rows) {
    CAPTURE(row.value);
    const auto credentials = parse_credentials(row.value);
    if (row.place < 0) {
      CHECK(credentials.ok());
      continue;
    }
    CHECK(credentials.error().code == ErrorCode::bad_credentials);
    CHECK(credentials.error().place == row.place);
  }
}

TEST_CASE("challenges are read, and those we cannot answer are told") {
  const auto full = parse_challenge(
      "Digest realm=\"Yate\", domain=\"sip:a sip:b\", nonce=\"n\", opaque=\"o\\\\\", stale=TRUE, "
      "algorithm=SHA-512-256, qop=\"auth , auth-int\"");
  REQUIRE(full.ok());
  CHECK(full->realm == "\"Yate\"");
  CHECK(full->nonce == "\"n\"");
  CHECK(full->opaque == "\"o\\\\\"");
  CHECK(full->stale);
  CHECK(full->algorithm == DigestAlgorithm{DigestHash::sha_512_256, false});
  CHECK(full->offers_auth);
  CHECK(full->offers_auth_int);
  CHECK(full->is_supported());

  const auto yate =
      parse_challenge("Digest realm=\"Yate\", nonce=\"a.1\", stale=FALSE, algorithm=MD5");
  REQUIRE(yate.ok());
  CHECK_FALSE(yate->stale);
  CHECK(yate->qop_text.empty());
  CHECK(yate->is_supported());

  const struct {
    const char* value;
    bool is_error;
  } rows[] = {
      {"Digest realm=\"r\", nonce=\"n\", algorithm=AKAv1-MD5", false},
      {"Digest realm=\"r\", nonce=\"n\", qop=\"auth-conf\"", false},
      {"Negotiate", false},
      {"Digest realm=\"r\"", true},
      {"Digest nonce=\"n\"", true},
      {"Digest realm=\"r\", nonce=\"n\", nonce=\"n\"", true},
      {"", true},
  };
  for (const auto& row : rows) {
    CAPTURE(row.value);
    const auto challenge = parse_challenge(row.value);
    CHECK(challenge.ok() == !row.is_error);
    CHECK_FALSE(challenge->is_supported());
  }
}

TEST_CASE("several challenges in one header value are told apart") {
  const struct {
    std::string value;
    std::vector<std::string> challenges;
  } rows[] = {
      {"", {}},
      {"  ", {}},
      {"Digest realm=\"r\", nonce=\"n\"", {"Digest realm=\"r\", nonce=\"n\""}},
      {"Digest a=b, c = d,Digest a=\"x, Digest y=z\" ,\r\n Basic realm=\"r\"",
       {"Digest a=b, c = d", "Digest a=\"x, Digest y=z\"", "Basic realm=\"r\""}},
      {"Negotiate, Digest a=b", {"Negotiate", "Digest a=b"}},
      {"Digest a=b, Negotiate", {"Digest a=b", "Negotiate"}},
      {"Digest a=b, Negotiate,Basic c=d", {"Digest a=b", "Negotiate", "Basic c=d"}},
      {"Digest a=b,,c=d,", {"Digest a=b,,c=d,"}},
      {", Digest a=b", {"", "Digest a=b"}},
      {"Digest a=\"unclosed, Digest b=c", {"Digest a=\"unclosed, Digest b=c"}},
  };
  for (const auto& row : rows) {
    CAPTURE(row.value);
    std::vector<std::string> found;
    for (std::string_view challenge : DigestChallenges(row.value)) found.emplace_back(challenge);
    CHECK(found == row.challenges);
  }
}

TEST_CASE("algorithm names are read in any case and printed in the registered one") {
  for (const char* name :
       {"MD5", "MD5-sess", "SHA-256", "SHA-256-sess", "SHA-512-256", "SHA-512-256-sess"}) {
    const auto algorithm = parse_digest_algorithm(to_lower(name));
    REQUIRE(algorithm.has_value());
    CHECK(std::string(algorithm->name()) == name);
  }
  CHECK_FALSE(parse_digest_algorithm("SHA-512").has_value());
  CHECK_FALSE(parse_digest_algorithm("").has_value());
}

TEST_CASE("a quoted value is a view where nothing is escaped, else it needs room") {
  const std::string plain = "\"bob\"";
  CHECK(unquote_into(plain, nullptr, 0)->data() == plain.data() + 1);
  CHECK(*unquote_into("bob", nullptr, 0) == "bob");
  CHECK(*unquote_into("\"\"", nullptr, 0) == "");
  char room[3];
  CHECK(*unquote_into("\"b\\\"\\\\\"", room, 3) == "b\"\\");
  CHECK_FALSE(unquote_into("\"b\\\"\\\\\"", room, 2).has_value());
}

// ---- the client --------------------------------------------------------------------------------

TEST_CASE("the client chooses the strongest algorithm it speaks, the first of equals") {
  const struct {
    std::vector<const char*> algorithms;
    int chosen;
  } rows[] = {
      {{}, -1},
      {{"MD5"}, 0},
      {{"AKAv1-MD5"}, -1},
      {{"MD5", "SHA-256"}, 1},
      {{"SHA-256", "MD5"}, 0},
      {{"AKAv1-MD5", "MD5", "SHA-512-256", "SHA-256"}, 2},
      {{"MD5-sess", "MD5"}, 0},
      {{"MD5", "MD5-sess"}, 0},
  };
  for (const auto& row : rows) {
    std::vector<std::string> texts;
    std::vector<DigestChallenge> challenges;
    for (const char* name : row.algorithms) {
      texts.push_back(std::string("Digest realm=\"r\", nonce=\"n\", algorithm=") + name);
    }
    for (const std::string& text : texts) challenges.push_back(*parse_challenge(text));
    const auto chosen = DigestClient::choose(challenges.data(), challenges.size());
    CHECK((chosen ? static_cast<int>(*chosen) : -1) == row.chosen);
  }
}

TEST_CASE("the client's header is quoted, counted, and answers what was asked") {
  DigestClient client;
  CHECK_FALSE(client.is_ready());
  CHECK(client.authorize("u", "p", "MESSAGE", "sip:a@b", "").error().code ==
        ErrorCode::bad_argument);

  const auto first = parse_challenge(
      "Digest realm=\"r \\\"1\\\"\", nonce=tok, opaque=\"o\\\\\", qop=\"auth\", algorithm=MD5");
  REQUIRE_FALSE(client.take(*first, "c1"));
  CHECK(client.is_ready());
  const std::string value = *client.authorize("a\"\\b", "p", "MESSAGE", "sip:a@b", "");
  const DigestHex response =
      digest_response(*parse_credentials(value), DigestSecret::password("p"), "MESSAGE", "");
  CHECK(value ==
        "Digest username=\"a\\\"\\\\b\", realm=\"r \\\"1\\\"\", nonce=\"tok\", "
        "uri=\"sip:a@b\", response=\"" +
            std::string(response.view()) +
            "\", algorithm=MD5, qop=auth, nc=00000001, cnonce=\"c1\", opaque=\"o\\\\\"");
  const auto next_count = [&client] {
    const std::string next = *client.authorize("u", "p", "MESSAGE", "sip:a@b", "");
    const auto credentials = parse_credentials(next);
    return std::to_string(credentials->nonce_count) + unquote(credentials->cnonce);
  };
  CHECK(next_count() == "2c1");
  REQUIRE_FALSE(client.take(*first, "c2"));  // the same nonce again: the count goes on
  CHECK(next_count() == "3c1");
  const auto second = parse_challenge("Digest realm=\"r\", nonce=\"new\", qop=\"auth\"");
  REQUIRE_FALSE(client.take(*second, "c3"));
  CHECK(next_count() == "1c3");

  // What was not named is not named, and without qop there is no cnonce (RFC 2617 3.2.2).
  const auto bare = parse_challenge("Digest realm=\"r\", nonce=\"bare\"");
  REQUIRE_FALSE(client.take(*bare, "c4"));
  const std::string bare_value = *client.authorize("u", "p", "MESSAGE", "sip:a@b", "");
  for (const char* absent : {"algorithm", "qop", "nc=", "cnonce", "opaque"}) {
    CAPTURE(absent);
    CHECK(bare_value.find(absent) == std::string::npos);
  }
}

TEST_CASE("the client lets no line end into its header and takes no challenge it cannot answer") {
  DigestClient client;
  const auto unknown = parse_challenge("Digest realm=\"r\", nonce=\"n\", algorithm=X");
  CHECK(client.take(*unknown, "c").code == ErrorCode::bad_argument);
  const auto folded = parse_challenge("Digest realm=\"r\r\n x\", nonce=\"n\"");
  CHECK(client.take(*folded, "c").code == ErrorCode::forbidden_octet);
  const auto good = parse_challenge("Digest realm=\"r\", nonce=\"n\", qop=\"auth\"");
  CHECK(client.take(*good, "c\n").code == ErrorCode::forbidden_octet);
  CHECK_FALSE(client.is_ready());
  REQUIRE_FALSE(client.take(*good, "c"));
  for (const std::string& bad : {std::string("x\r"), std::string("\nx"), std::string("x\0y", 3)}) {
    CHECK(client.authorize(bad, "p", "M", "sip:a@b", "").error().code ==
          ErrorCode::forbidden_octet);
    CHECK(client.authorize("u", "p", "M", bad, "").error().code == ErrorCode::forbidden_octet);
  }
}

// ---- the server --------------------------------------------------------------------------------

TEST_CASE("challenges are written one for each algorithm, in the order configured") {
  DigestAuthenticator server(options_for("Ya\"te\r\n", {{DigestHash::sha_256, false}, {}}), secret);
  REQUIRE(server.challenge_count() == 2);
  const DigestNonce nonce = server.make_nonce(address_a, 5);
  const std::string text(nonce.view());
  CHECK(challenge_text(server, 0, nonce) ==
        "Digest realm=\"Ya\\\"te\", nonce=\"" + text + "\", qop=\"auth\", algorithm=SHA-256");
  const std::string last = challenge_text(server, 1, nonce, true);
  CHECK(last == "Digest realm=\"Ya\\\"te\", nonce=\"" + text +
                    "\", qop=\"auth\", algorithm=MD5, stale=true");
  for (std::size_t room = 0; room <= last.size(); ++room) {
    std::string out(room + 1, '#');
    CHECK(server.write_challenge(1, nonce, true, &out[0], room) ==
          (room < last.size() ? 0 : last.size()));
    CHECK(out.back() == '#');
  }
}

TEST_CASE("nonces are never the same twice and are made of token characters") {
  DigestAuthenticator server({}, secret);
  std::set<std::string> seen;
  for (int i = 0; i < 100; ++i) {
    const DigestNonce nonce = server.make_nonce(address_a, 7);
    CHECK(is_token(nonce.view()));
    seen.emplace(nonce.view());
  }
  CHECK(seen.size() == 100);
}

TEST_CASE("the right password is let in with every algorithm and quality of protection") {
  for (DigestHash hash : {DigestHash::md5, DigestHash::sha_256, DigestHash::sha_512_256}) {
    for (bool session : {false, true}) {
      for (const std::string& qop :
           {std::string("qop=\"auth\", "), std::string("qop=auth-int, "), std::string()}) {
        const DigestAlgorithm algorithm{hash, session};
        CAPTURE(algorithm.name());
        CAPTURE(qop);
        Attempt login(options_for("r\\\"", {algorithm}));
        login.challenge(no_qop, qop);
        const std::string value = login.authorization();
        CHECK(login.check(value, DigestSecret::password("pw102")) == "wrong_response");
        CHECK(login.check(value, DigestSecret::unknown_user()) == "wrong_response");
        CHECK(login.check(value) == "accepted");

        login.challenge(no_qop, qop);
        const std::string again = login.authorization();
        const DigestHex ha1 = digest_ha1(hash, "101", "r\\\"", "pw101");
        CHECK(login.check(again, DigestSecret::ha1(hash, ha1.view())) == "accepted");
      }
    }
  }
}

TEST_CASE("a stored HA1 is good for its own hash only") {
  Attempt login(options_for("r", {{DigestHash::sha_256, false}}));
  login.challenge();
  const std::string value = login.authorization();
  const std::string ha1(digest_ha1(DigestHash::sha_256, "101", "r", "pw101").view());
  CHECK(login.check(value, DigestSecret::ha1(DigestHash::sha_512_256, ha1)) == "wrong_response");
  CHECK(login.check(value, DigestSecret::ha1(DigestHash::sha_256, ha1)) == "accepted");
}

TEST_CASE("an empty password is a password, and an unknown user has none") {
  Attempt login;
  login.password.clear();
  login.challenge();
  const std::string value = login.authorization();
  CHECK(login.check(value, DigestSecret::unknown_user()) == "wrong_response");
  CHECK(login.check(value, DigestSecret::password("")) == "accepted");
}

TEST_CASE("whatever the response covers cannot be changed on the way") {
  Attempt login;
  login.challenge();
  const std::string value = login.authorization();
  CHECK(login.check(replaced(value, "username=\"101\"", "username=\"100\"")) == "wrong_response");
  CHECK(login.check(replaced(value, "nc=00000001", "nc=00000002")) == "wrong_response");
  CHECK(login.check(replaced(value, "cnonce1", "cnonce2")) == "wrong_response");
  CHECK(login.check(replaced(value, "uri=\"sip:102", "uri=\"sip:103")) == "wrong_response");
  CHECK(login.check(replaced(value, "response=\"", "response=\"0")) == "wrong_response");
  CHECK(login.check(replaced(value, "qop=auth", "qop=auth-int")) == "wrong_response");
  std::string upper_case = value;
  const std::size_t begin = value.find("response=\"") + 10;
  for (std::size_t i = begin; i < begin + 32; ++i) {
    if (upper_case[i] >= 'a' && upper_case[i] <= 'f') {
      upper_case[i] = static_cast<char>(upper_case[i] - 'a' + 'A');
    }
  }
  CHECK(login.check(upper_case) == "wrong_response");  // RFC 2617 3.1.3
  CHECK(login.check(value) == "accepted");             // and none of that used up the count
}

TEST_CASE("credentials for somebody else are told from wrong ones") {
  Attempt login;
  login.challenge();
  const std::string value = login.authorization();
  CHECK(login.check("Basic QTpC") == "wrong_scheme");
  CHECK(login.check(replaced(value, "realm=\"sipmsg\"", "realm=\"sipmsg2\"")) == "wrong_realm");
  CHECK(login.check(replaced(value, "realm=\"sipmsg\"", "realm=\"sipms\"")) == "wrong_realm");
  CHECK(login.check(replaced(value, "algorithm=MD5", "algorithm=SHA-256")) == "wrong_algorithm");
  CHECK(login.check(replaced(value, "algorithm=MD5", "algorithm=MD5-sess")) == "wrong_algorithm");
  CHECK(login.check(replaced(value, "algorithm=MD5", "algorithm=X")) == "wrong_algorithm");
  CHECK(login.check(replaced(value, "algorithm=MD5, ", "")) == "accepted");
}

TEST_CASE("the digest-uri must name the user and host of the request, in any spelling") {
  const struct {
    const char* digest_uri;
    const char* request_uri;
    bool same;
  } rows[] = {
      {"sip:102@example.org", "sip:102@example.org", true},
      {"SIP:102@EXAMPLE.org", "sip:102@example.org", true},
      {"sip:%3102@example.org", "sip:102@example.org", true},
      {"sip:102@example.org;transport=tcp", "sip:102@example.org", true},
      {"sip:102@example.org", "sip:102@example.org:5060;transport=udp", true},
      {"sip:102@example.org:5061", "sip:102@example.org:5060", true},
      {"sip:example.org", "sip:102@example.org", true},  // sipp
      {"tel:+1-201", "tel:+1201", true},
      {"no uri", "no uri", true},
      {"sip:103@example.org", "sip:102@example.org", false},
      {"sip:102@example.com", "sip:102@example.org", false},
      {"sip:102@example.org", "sip:example.org", false},
      {"sips:102@example.org", "sip:102@example.org", false},
      {"tel:+1201", "tel:+1202", false},
      {"tel:+1201", "sip:+1201@example.org", false},
      {"no uri", "sip:102@example.org", false},
      {"im:102@example.org", "im:103@example.org", false},
  };
  for (const auto& row : rows) {
    CAPTURE(row.digest_uri);
    CAPTURE(row.request_uri);
    for (bool check_uri : {true, false}) {
      DigestOptions options;
      options.check_uri = check_uri;
      Attempt login(options);
      login.challenge();
      login.uri = row.digest_uri;
      const std::string value = login.authorization();
      login.uri = row.request_uri;
      CHECK(login.check(value) == (row.same || !check_uri ? "accepted" : "wrong_uri"));
    }
  }
}

TEST_CASE("a nonce older than its lifetime is stale, but only for who knows the password") {
  DigestOptions options;
  options.nonce_lifetime_s = 10;
  Attempt login(options);
  login.challenge();
  const std::string first = login.authorization();
  const std::string second = login.authorization();
  const std::uint64_t issued_ms = login.now_ms;
  login.now_ms = issued_ms + 9999;
  CHECK(login.check(first) == "accepted");
  login.now_ms = issued_ms + 10000;
  CHECK(login.check(second, DigestSecret::password("x")) == "wrong_response");
  CHECK(login.check(second) == "stale");
  login.now_ms = issued_ms - 1;  // a clock that went backwards
  CHECK(login.check(second) == "stale");
  login.now_ms = ~std::uint64_t{0};
  CHECK(login.check(second) == "stale");
  login.now_ms = issued_ms;
  CHECK(login.check(second) == "accepted");
}

TEST_CASE("a nonce is good for the address it was given to, and only as it was given") {
  Attempt login;
  login.challenge();
  const std::string value = login.authorization();
  login.address = address_b;
  CHECK(login.check(value) == "stale");
  login.address = address_a + std::string(12, '\0');
  CHECK(login.check(value) == "stale");
  login.address = address_a;

  DigestAuthenticator other({}, secret + "x");
  const auto credentials = parse_credentials(value);
  CHECK(other.check(*credentials, {login.method, login.uri, login.body, address_a},
                    DigestSecret::password("pw101"), login.now_ms) == DigestVerdict::stale);
  CHECK(login.check(value) == "accepted");

  // Any octet of a nonce changed: signed with the right password, and still not from us.
  const std::string nonce(login.server.make_nonce(address_a, login.now_ms).view());
  for (std::size_t i = 0; i <= nonce.size(); ++i) {
    std::string forged = nonce;
    if (i < nonce.size()) forged[i] = forged[i] == '0' ? '1' : '0';
    if (i == nonce.size()) forged += "0";
    const std::string text = "Digest realm=\"sipmsg\", qop=\"auth\", nonce=\"" + forged + "\"";
    REQUIRE_FALSE(login.client.take(*parse_challenge(text), "c"));
    CHECK(login.check(login.authorization()) == "stale");
  }
  const std::string odd = "Digest realm=\"sipmsg\", qop=\"auth\", nonce=\"a\\\"" + nonce + "\"";
  REQUIRE_FALSE(login.client.take(*parse_challenge(odd), "c"));
  CHECK(login.check(login.authorization()) == "stale");
}

TEST_CASE("each nonce-count is accepted once, out of order by up to 63") {
  Attempt login;
  login.challenge();
  std::vector<std::string> values;  // values[n] has the count n + 1
  for (int i = 0; i < 200; ++i) values.push_back(login.authorization());
  const struct {
    std::size_t count;
    const char* verdict;
  } rows[] = {
      {3, "accepted"},   {3, "stale"},   {1, "accepted"},   {1, "stale"},      {2, "accepted"},
      {66, "accepted"},  {3, "stale"},   {2, "stale"},      {4, "accepted"},   {4, "stale"},
      {65, "accepted"},  {65, "stale"},  {67, "accepted"},  {4, "stale"},      {66, "stale"},
      {130, "accepted"}, {67, "stale"},  {66, "stale"},     {68, "accepted"},  {200, "accepted"},
      {137, "accepted"}, {136, "stale"}, {194, "accepted"}, {199, "accepted"}, {200, "stale"},
  };
  for (const auto& row : rows) {
    CAPTURE(row.count);
    CHECK(login.check(values[row.count - 1]) == row.verdict);
  }
}

TEST_CASE("a nonce used without qop is good for one request, and for none if it was used before") {
  Attempt login;
  login.challenge(no_qop);
  const std::string first = login.authorization();
  login.body = "another";
  login.uri = "sip:103@example.org";
  const std::string second = login.authorization();
  CHECK(login.check(second) == "accepted");
  CHECK(login.check(second) == "stale");
  login.uri = "sip:102@example.org";
  CHECK(login.check(first) == "stale");
}

TEST_CASE("a nonce used with a count is no good without, nor the other way round") {
  Attempt login;
  const auto sign = [&login](DigestClient& client) {
    return *client.authorize("101", "pw101", login.method, login.uri, login.body);
  };
  for (bool bare_first : {false, true}) {
    CAPTURE(bare_first);
    const std::string challenge =
        challenge_text(login.server, 0, login.server.make_nonce(address_a, login.now_ms));
    const std::string bare_challenge = replaced(challenge, no_qop, "");
    DigestClient counting, bare;
    REQUIRE_FALSE(counting.take(*parse_challenge(challenge), "c"));
    REQUIRE_FALSE(bare.take(*parse_challenge(bare_challenge), "c"));
    CHECK(login.check(sign(bare_first ? bare : counting)) == "accepted");
    CHECK(login.check(sign(bare)) == "stale");
    CHECK(login.check(sign(counting)) == (bare_first ? "stale" : "accepted"));

    // Not even with a count that no client reaches.
    for (const char* count : {"fffffffe", "ffffffff"}) {
      const std::string value = sign(counting);
      DigestCredentials credentials = *parse_credentials(value);
      credentials.nonce_count_text = count;
      credentials.nonce_count = static_cast<std::uint32_t>(*parse_hex(count));
      const DigestSecret known = DigestSecret::password("pw101");
      const DigestHex response = digest_response(credentials, known, login.method, login.body);
      credentials.response = response.view();
      const DigestRequest request{login.method, login.uri, login.body, address_a};
      CHECK(login.server.check(credentials, request, known, login.now_ms) ==
            (bare_first ? DigestVerdict::stale : DigestVerdict::accepted));
    }
  }
}

TEST_CASE("wrong passwords take no place among the remembered nonces") {
  DigestOptions options;
  options.max_remembered_nonces = 8;
  Attempt login(options);
  login.challenge();
  const std::string early = login.authorization();
  login.password = "wrong";
  for (int i = 0; i < 100; ++i) {
    login.challenge();
    CHECK(login.check(login.authorization()) == "wrong_response");
  }
  CHECK(login.check(early) == "accepted");
}

TEST_CASE("a full memory refuses what it forgot and lets a fresh nonce in") {
  DigestOptions options;
  options.max_remembered_nonces = 8;
  Attempt login(options);
  std::vector<std::string> values;
  for (int i = 0; i < 12; ++i) {
    login.challenge();
    values.push_back(login.authorization());
  }
  // Nonces 2 to 9 fill the memory, 10 makes it forget number 2: all up to 2 are refused from now.
  for (std::size_t i = 2; i <= 9; ++i) CHECK(login.check(values[i]) == "accepted");
  CHECK(login.check(values[10]) == "accepted");
  CHECK(login.check(values[2]) == "stale");  // used, forgotten
  CHECK(login.check(values[1]) == "stale");  // not used, but that cannot be told
  CHECK(login.check(values[3]) == "stale");  // used, remembered
  CHECK(login.check(values[11]) == "accepted");
  login.challenge();
  CHECK(login.check(login.authorization()) == "accepted");
}

TEST_CASE("nothing is accepted twice, however small the memory" * doctest::test_suite("long")) {
  for (std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{20}, std::size_t{64}}) {
    CAPTURE(size);
    DigestOptions options;
    options.max_remembered_nonces = size;
    Attempt login(options);
    Random random(SipHashKey{1, 2, 3});
    std::vector<std::string> values;
    for (int i = 0; i < 100; ++i) {
      login.challenge(no_qop, i % 3 == 0 ? "" : no_qop);
      values.push_back(login.authorization());
      if (i % 3 != 0) values.push_back(login.authorization());
    }
    std::set<std::size_t> accepted;
    for (int i = 0; i < 3000; ++i) {
      const std::size_t chosen = random.next() % values.size();
      if (login.check(values[chosen]) == "accepted") CHECK(accepted.insert(chosen).second);
    }
    CHECK(accepted.size() >= 4);
  }
}

}  // namespace test_digest
