// URIs: RFC 3261 19.1 and 25.1, RFC 3966 for tel, RFC 4475 and RFC 5118 for the odd ones.
#include <doctest/doctest.h>

#include <string>

#include "support/guarded.hpp"
#include "support/sipmsg.hpp"

namespace test_uri {

using namespace sipmsg;
using namespace std::literals;

namespace {

struct Valid {
  std::string_view text;
  UriScheme scheme;
  std::string_view user, password, host;
  std::uint16_t port;
  std::string_view parameters, headers;
};

const Valid valid[] = {
    {"sip:alice@atlanta.com", UriScheme::sip, "alice", "", "atlanta.com", 0, "", ""},
    {"sip:alice:secretword@atlanta.com;transport=tcp", UriScheme::sip, "alice", "secretword",
     "atlanta.com", 0, "transport=tcp", ""},
    {"sips:alice@atlanta.com?subject=project%20x&priority=urgent", UriScheme::sips, "alice", "",
     "atlanta.com", 0, "", "subject=project%20x&priority=urgent"},
    {"sip:+1-212-555-1212:1234@gateway.com;user=phone", UriScheme::sip, "+1-212-555-1212", "1234",
     "gateway.com", 0, "user=phone", ""},
    {"sips:1212@gateway.com", UriScheme::sips, "1212", "", "gateway.com", 0, "", ""},
    {"sip:alice@192.0.2.4", UriScheme::sip, "alice", "", "192.0.2.4", 0, "", ""},
    {"sip:atlanta.com;method=REGISTER?to=alice%40atlanta.com", UriScheme::sip, "", "",
     "atlanta.com", 0, "method=REGISTER", "to=alice%40atlanta.com"},
    {"sip:alice;day=tuesday@atlanta.com", UriScheme::sip, "alice;day=tuesday", "", "atlanta.com", 0,
     "", ""},
    {"SIP:bob@example.org:5061;lr", UriScheme::sip, "bob", "", "example.org", 5061, "lr", ""},
    {"sip:user;par=u%40example.net@example.com", UriScheme::sip, "user;par=u%40example.net", "",
     "example.com", 0, "", ""},
    {"sip:1_unusual.URI~(to-be!sure)&isn't+it$/crazy?,/;;*:&it+has=1,weird!*pas$wo~d_too.(doesn't-"
     "it)@example.com",
     UriScheme::sip, "1_unusual.URI~(to-be!sure)&isn't+it$/crazy?,/;;*",
     "&it+has=1,weird!*pas$wo~d_too.(doesn't-it)", "example.com", 0, "", ""},
    {"sips:sips%3Auser%40example.com@example.net", UriScheme::sips, "sips%3Auser%40example.com", "",
     "example.net", 0, "", ""},
    {"sip:null-%00-null@example.com", UriScheme::sip, "null-%00-null", "", "example.com", 0, "",
     ""},
    {"sip:host", UriScheme::sip, "", "", "host", 0, "", ""},
    {"sip:under_score.example:65535", UriScheme::sip, "", "", "under_score.example", 65535, "", ""},
    {"sip:h:00005060", UriScheme::sip, "", "", "h", 5060, "", ""},
    {"sip:[2001:db8::10]", UriScheme::sip, "", "", "2001:db8::10", 0, "", ""},
    {"sip:[2001:db8::10:5070]", UriScheme::sip, "", "", "2001:db8::10:5070", 0, "", ""},
    {"sip:user@[2001:db8::10]:5070;lr", UriScheme::sip, "user", "", "2001:db8::10", 5070, "lr", ""},
    {"sip:user@[::ffff:192.0.2.10]:19823", UriScheme::sip, "user", "", "::ffff:192.0.2.10", 19823,
     "", ""},
    {"sip:user@[2001:db8:::192.0.2.1]", UriScheme::sip, "user", "", "2001:db8:::192.0.2.1", 0, "",
     ""},
    {"sip:h;maddr=[::1];x=/:&+$", UriScheme::sip, "", "", "h", 0, "maddr=[::1];x=/:&+$", ""},
    {"sip:h;a=;b", UriScheme::sip, "", "", "h", 0, "a=;b", ""},
    {"sip:h;%41=%42", UriScheme::sip, "", "", "h", 0, "%41=%42", ""},
    {"tel:+1-201-555-0123", UriScheme::tel, "+1-201-555-0123", "", "", 0, "", ""},
    {"tel:7042;phone-context=example.com", UriScheme::tel, "7042", "", "", 0,
     "phone-context=example.com", ""},
    {"TEL:*21#", UriScheme::tel, "*21#", "", "", 0, "", ""},
    {"isbn:2983792873", UriScheme::other, "", "", "2983792873", 0, "", ""},
    {"http://www.example.com/a?b#c", UriScheme::other, "", "", "//www.example.com/a?b#c", 0, "",
     ""},
    {"soap.beep://192.0.2.103:3002", UriScheme::other, "", "", "//192.0.2.103:3002", 0, "", ""},
    {"nobodyKnowsThisScheme:totallyopaquecontent", UriScheme::other, "", "", "totallyopaquecontent",
     0, "", ""},
    {"name:John_Smith", UriScheme::other, "", "", "John_Smith", 0, "", ""},
};

UriView read(std::string_view text) {
  const auto uri = parse_uri(text);
  CAPTURE(text);
  REQUIRE(uri.ok());
  return *uri;
}

}  // namespace

TEST_CASE("a URI falls into its parts, each as it is written") {
  for (const Valid& row : valid) {
    CAPTURE(row.text);
    const test::GuardedText text(row.text);
    const auto uri = parse_uri(text.view());
    REQUIRE(uri.ok());
    CHECK(uri->text == row.text);
    CHECK(uri->scheme == row.scheme);
    CHECK(uri->scheme_text == row.text.substr(0, row.text.find(':')));
    CHECK(uri->user == row.user);
    CHECK(uri->has_user == !row.user.empty());
    CHECK(uri->password == row.password);
    CHECK(uri->has_password == !row.password.empty());
    CHECK(uri->host == row.host);
    CHECK(uri->port == row.port);
    CHECK(uri->parameters == row.parameters);
    CHECK(uri->headers == row.headers);
  }
}

TEST_CASE("a malformed URI is refused with the place where it went wrong") {
  struct Row {
    std::string_view text;
    ErrorCode code;
    int place;
  };
  const Row rows[] = {
      {"", ErrorCode::bad_uri, 0},
      {"sip", ErrorCode::bad_uri, 0},
      {":a", ErrorCode::bad_uri, 0},
      {"1sip:a", ErrorCode::bad_uri, 0},
      {"s p:a", ErrorCode::bad_uri, 1},
      {"<sip:user@example.com>", ErrorCode::bad_uri, 0},
      {" sip:a", ErrorCode::bad_uri, 0},
      {"alice@example.org:5060", ErrorCode::bad_uri, 5},
      {"sip:", ErrorCode::bad_host, 4},
      {"sip:@h", ErrorCode::bad_uri, 4},
      {"sip::pw@h", ErrorCode::bad_uri, 4},
      {"sip:a@", ErrorCode::bad_host, 6},
      {"sip:a@@h", ErrorCode::bad_host, 6},
      {"sip:a b@h", ErrorCode::bad_uri, 5},
      {"sip:a#b@h", ErrorCode::bad_uri, 5},
      {"sip:\xc3\xa4@h", ErrorCode::bad_uri, 4},
      {"sip:a\0b@h"sv, ErrorCode::bad_uri, 5},
      {"sip:a%4@h", ErrorCode::bad_escape, 5},
      {"sip:a%@h", ErrorCode::bad_escape, 5},
      {"sip:a:p%zz@h", ErrorCode::bad_escape, 7},
      {"sip:a:p:q@h", ErrorCode::bad_uri, 7},
      {"sip:a@h h", ErrorCode::bad_uri, 7},
      {"sip:a@h>", ErrorCode::bad_uri, 7},
      {"sip:a@h:", ErrorCode::bad_port, 8},
      {"sip:a@h:0", ErrorCode::bad_port, 8},
      {"sip:a@h:65536", ErrorCode::bad_port, 8},
      {"sip:a@h:99999999999999999999", ErrorCode::bad_port, 8},
      {"sip:a@h:5060x", ErrorCode::bad_uri, 12},
      {"sip:a@h :5060", ErrorCode::bad_uri, 7},
      {"sip:2001:db8::10", ErrorCode::bad_port, 9},  // RFC 5118 4.2
      {"sip:a@[2001:db8::10", ErrorCode::bad_host, 6},
      {"sip:a@[]", ErrorCode::bad_host, 7},
      {"sip:a@[192.0.2.1]", ErrorCode::bad_host, 7},
      {"sip:a@[::g]", ErrorCode::bad_host, 7},
      {"sip:a@[::1]x", ErrorCode::bad_uri, 11},
      {"sip:a@h;", ErrorCode::bad_uri, 8},
      {"sip:a@h;;lr", ErrorCode::bad_uri, 8},
      {"sip:a@h;=x", ErrorCode::bad_uri, 8},
      {"sip:a@h;a=b=c", ErrorCode::bad_uri, 11},
      {"sip:a@h;a=\"b\"", ErrorCode::bad_uri, 10},
      {"sip:a@h;a=%1", ErrorCode::bad_escape, 10},
      {"sip:a@h?", ErrorCode::bad_uri, 7},
      {"sip:a@h;lr?", ErrorCode::bad_uri, 10},
      {"sip:a@h?x=<y>", ErrorCode::bad_uri, 10},
      {"sip:a@h?x=%", ErrorCode::bad_escape, 10},
      {"tel:", ErrorCode::bad_uri, 4},
      {"tel:;a", ErrorCode::bad_uri, 4},
      {"tel:12 34", ErrorCode::bad_uri, 6},
      {"tel:1+2", ErrorCode::bad_uri, 5},
      {"tel:12;", ErrorCode::bad_uri, 7},
      {"x:", ErrorCode::bad_uri, 2},
      {"x:a b", ErrorCode::bad_uri, 3},
      {"x:a\"", ErrorCode::bad_uri, 3},
  };
  for (const Row& row : rows) {
    CAPTURE(row.text);
    const test::GuardedText text(row.text);
    const auto uri = parse_uri(text.view());
    CHECK(uri.error().name() == std::string_view(error_name(row.code)));
    CHECK(uri.error().place == row.place);
  }
}

TEST_CASE("no prefix of a URI is read beyond its end") {
  for (const Valid& row : valid) {
    test::GuardedText text(row.text);
    for (std::size_t size = row.text.size(); size-- > 0;) {
      text.set(row.text.substr(0, size));
      const auto uri = parse_uri(text.view());
      CHECK(uri->text.size() == (uri ? size : 0));
    }
  }
}

TEST_CASE("a URI parameter is found in any case") {
  const UriView uri = read("sip:h;transport=TCP;LR;maddr=[::1]");
  CHECK(uri.parameter("Transport") == "TCP");
  CHECK(uri.parameter("lr") == "");
  CHECK(uri.parameter("maddr") == "[::1]");
  CHECK(uri.parameter("user") == std::nullopt);
}

TEST_CASE("URIs are equivalent by the rules of RFC 3261 19.1.4") {
  struct Row {
    std::string_view a, b;
    bool equivalent;
  };
  const Row rows[] = {
      // the examples of the RFC
      {"sip:%61lice@atlanta.com;transport=TCP", "sip:alice@AtlanTa.CoM;Transport=tcp", true},
      {"sip:carol@chicago.com", "sip:carol@chicago.com;newparam=5", true},
      {"sip:carol@chicago.com", "sip:carol@chicago.com;security=on", true},
      {"sip:carol@chicago.com;newparam=5", "sip:carol@chicago.com;security=on", true},
      {"sip:biloxi.com;transport=tcp;method=REGISTER?to=sip:bob%40biloxi.com",
       "sip:biloxi.com;method=REGISTER;transport=tcp?to=sip:bob%40biloxi.com", true},
      {"sip:alice@atlanta.com?subject=project%20x&priority=urgent",
       "sip:alice@atlanta.com?priority=urgent&subject=project%20x", true},
      {"SIP:ALICE@AtLanTa.CoM;Transport=udp", "sip:alice@AtLanTa.CoM;Transport=UDP", false},
      {"sip:bob@biloxi.com", "sip:bob@biloxi.com:5060", false},
      {"sip:bob@biloxi.com", "sip:bob@biloxi.com;transport=udp", false},
      {"sip:bob@biloxi.com", "sip:bob@biloxi.com:6000;transport=tcp", false},
      {"sip:carol@chicago.com", "sip:carol@chicago.com?Subject=next%20meeting", false},
      {"sip:bob@phone21.boxesbybob.com", "sip:bob@192.0.2.4", false},
      {"sip:carol@chicago.com;security=on", "sip:carol@chicago.com;security=off", false},
      // and its rules one by one
      {"sip:a@h", "sips:a@h", false},
      {"sip:a@h", "sip:h", false},
      {"sip:a@h", "sip:a:@h", false},
      {"sip:a:p@h", "sip:a:P@h", false},
      {"sip:a:p@h", "sip:a:%70@h", true},
      {"sip:a%3Bb@h", "sip:a;b@h", false},
      {"sip:a%3Bb@h", "sip:a%3bb@h", true},
      {"sip:a%2Db@h", "sip:a-b@h", true},
      {"sip:a%2541@h", "sip:a%41@h", false},
      {"sip:%00@h", "sip:%00%00@h", false},
      {"sip:h;user=phone", "sip:h", false},
      {"sip:h;ttl=1", "sip:h", false},
      {"sip:h", "sip:h;method=INVITE", false},
      {"sip:h", "sip:h;maddr=192.0.2.1", false},
      {"sip:h;x=A", "sip:h;X=a", true},
      {"sip:h;lr", "sip:h;lr=on", false},
      {"sip:h;x=1;x=2", "sip:h;x=2;x=1", false},
      {"sip:h?a=1&a=2", "sip:h?a=2&a=1", true},
      {"sip:h?a=1&a=1", "sip:h?a=1&a=2", false},
      {"sip:h?a=1", "sip:h?a=1&a=1", false},
      {"sip:h?A=1", "sip:h?a=1", true},
      {"sip:h?a=x", "sip:h?a=X", false},
      // RFC 3966 4
      {"tel:+1-201-555-0123", "TEL:+1(201)5550123", true},
      {"tel:+12015550123", "tel:12015550123", false},
      {"tel:7042;phone-context=a", "tel:7042", false},
      {"tel:7042;phone-context=a;ext=1", "tel:7042;ext=1;phone-context=A", true},
      {"tel:7042", "sip:7042", false},
      {"http://a", "HTTP://a", true},
      {"http://a", "http://A", false},
  };
  for (const Row& row : rows) {
    CAPTURE(row.a);
    CAPTURE(row.b);
    CHECK(equivalent(read(row.a), read(row.b)) == row.equivalent);
    CHECK(equivalent(read(row.b), read(row.a)) == row.equivalent);
    CHECK(equivalent(read(row.a), read(row.a)));
  }
}

TEST_CASE("URIs beyond any use are compared by their octets") {
  struct Row {
    std::string_view piece;
    std::size_t times;
    bool by_octets;
  };
  for (const Row& row :
       {Row{";a=%41", 16, false}, Row{";a=%41", 17, true}, Row{"&a=%41", 30000, true},
        Row{"aaaaaaaa", 120, false}, Row{"aaaaaaaa", 130, true}}) {
    CAPTURE(row.piece);
    CAPTURE(row.times);
    std::string a = "sip:%61@h?x=";
    if (row.piece[0] != '&') a = row.piece[0] == ';' ? "sip:%61@h" : "sip:%61@h;x=";
    for (std::size_t i = 0; i < row.times; ++i) a += row.piece;
    const std::string b = "sip:a" + a.substr(7);
    CHECK(equivalent(read(a), read(a)));
    CHECK(equivalent(read(a), read(b)) != row.by_octets);
  }
}

TEST_CASE("an address-of-record is one text, however the URI is written") {
  struct Row {
    std::string_view uri, address_of_record;
  };
  const Row rows[] = {
      {"sip:Bob%20B@EXAMPLE.org:5060;user=phone?a=b", "sip:Bob B@example.org"},
      {"SIP:%61lice:pw@example.ORG", "sip:alice@example.org"},
      {"sips:a@h", "sips:a@h"},
      {"sip:H", "sip:h"},
      {"sip:a@[2001:DB8::1]:5060", "sip:a@[2001:db8::1]"},
      {"sip:a%2541@h", "sip:a%41@h"},
      {"TEL:+1-(201).555", "tel:+1201555"},
      {"HTTP://A", "http://A"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.uri);
    CHECK(address_of_record(read(row.uri)) == row.address_of_record);
  }
  CHECK(address_of_record(read("sip:a%00b@h")) == "sip:a\0b@h"s);
  CHECK(address_of_record(read("sip:%00@h")) != address_of_record(read("sip:%00%00@h")));
}

TEST_CASE("any text can be escaped into a user part, and comes back") {
  std::string octets;
  for (int octet = 0; octet < 256; ++octet) octets.push_back(static_cast<char>(octet));
  const std::string text = "sip:" + escape_user(octets) + "@h";
  CHECK(unescape(read(text).user) == octets);
  CHECK(escape_user("alice") == "alice");
  CHECK(escape_user("a b@c:d%") == "a%20b%40c%3Ad%25");
}

TEST_CASE("host and port are read from the front of a text") {
  struct Row {
    std::string_view text;
    bool blanks;
    std::string_view host;
    std::uint16_t port;
    std::size_t length;
  };
  const Row rows[] = {
      {"h;x", false, "h", 0, 1},
      {"h:5060;x", false, "h", 5060, 6},
      {"h : 5060 ;x", true, "h", 5060, 8},
      {"h : 5060 ;x", false, "h", 0, 1},
      {"h  ;x", true, "h", 0, 1},
      {"[::1]:1 x", true, "::1", 1, 7},
      {"192.0.2.1", true, "192.0.2.1", 0, 9},
  };
  for (const Row& row : rows) {
    CAPTURE(row.text);
    const test::GuardedText text(row.text);
    const auto read_to = parse_host_port(text.view(), row.blanks);
    REQUIRE(read_to.ok());
    CHECK(read_to->host == row.host);
    CHECK(read_to->port == row.port);
    CHECK(read_to->length == row.length);
  }
  CHECK(parse_host_port("h : x", true).error().code == ErrorCode::bad_port);
  CHECK(parse_host_port("").error().code == ErrorCode::bad_host);
}

}  // namespace test_uri
