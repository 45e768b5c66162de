// Header names and typed header values: RFC 3261 20 and 25.1, RFC 3581, RFC 5118.
#include <doctest/doctest.h>

#include <string>

#include "support/guarded.hpp"
#include "support/sipmsg.hpp"

namespace test_header {

using namespace sipmsg;
using namespace std::literals;

namespace {

std::string upper(std::string_view text) {
  std::string result(text);
  for (char& c : result) {
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  }
  return result;
}

/// Parameters as text: "name|value" each in brackets.
std::string show(const Parameters& parameters) {
  std::string shown;
  for (const Parameter& parameter : parameters) {
    shown += "[" + std::string(parameter.name);
    if (parameter.has_value) shown += "|" + std::string(parameter.value);
    shown += "]";
  }
  return shown;
}

}  // namespace

TEST_CASE("a header name is known in its long form in any case") {
  for (std::size_t i = 0; i < header_id_count; ++i) {
    const auto id = static_cast<HeaderId>(i);
    const std::string name(header_name(id));
    CAPTURE(name);
    CHECK(header_id(name) == id);
    CHECK(header_id(upper(name)) == id);
    CHECK(header_id(to_lower(name)) == id);
    for (std::size_t place = 0; place < name.size(); ++place) {
      for (char c : {'\0', ' ', '-', 'q', '\x7f', '\xc4'}) {
        std::string other = name;
        if (to_lower(other[place]) == c) continue;
        other[place] = c;
        CHECK(header_id(other) == HeaderId::other);
      }
    }
    CHECK(header_id(name + "s") == HeaderId::other);
    CHECK(header_id(name + ":") == HeaderId::other);
  }
  CHECK(header_id("") == HeaderId::other);
  CHECK(header_name(HeaderId::other).empty());
}

TEST_CASE("a compact name stands for its long one, and a letter without meaning for none") {
  struct Row {
    char letter;
    HeaderId id;
  };
  const Row rows[] = {
      {'a', HeaderId::accept_contact},
      {'c', HeaderId::content_type},
      {'e', HeaderId::content_encoding},
      {'f', HeaderId::from},
      {'i', HeaderId::call_id},
      {'k', HeaderId::supported},
      {'l', HeaderId::content_length},
      {'m', HeaderId::contact},
      {'o', HeaderId::event},
      {'r', HeaderId::refer_to},
      {'s', HeaderId::subject},
      {'t', HeaderId::to},
      {'v', HeaderId::via},
  };
  for (int octet = 0; octet < 256; ++octet) {
    const char c = static_cast<char>(octet);
    HeaderId expected = HeaderId::other;
    for (const Row& row : rows) {
      if (row.letter == to_lower(c)) expected = row.id;
    }
    CAPTURE(octet);
    CHECK(header_id({&c, 1}) == expected);
  }
}

TEST_CASE("headers that would be lists otherwise may stand once only") {
  CHECK(is_single_header(HeaderId::call_id));
  CHECK(is_single_header(HeaderId::content_length));
  CHECK(is_single_header(HeaderId::from));
  CHECK_FALSE(is_single_header(HeaderId::via));
  CHECK_FALSE(is_single_header(HeaderId::contact));
  CHECK_FALSE(is_single_header(HeaderId::www_authenticate));
  CHECK_FALSE(is_single_header(HeaderId::other));
}

TEST_CASE("a Via is read with blanks and folds wherever the grammar has them") {
  struct Row {
    std::string_view text, transport, host;
    std::uint16_t port;
    std::string_view branch, received, rport, maddr;
    bool has_rport, has_alias;
  };
  const Row rows[] = {
      {"SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK87asdks7", "UDP", "192.0.2.1", 5060,
       "z9hG4bK87asdks7", "", "", "", false, false},
      {"SIP/2.0/TCP host.example.org;rport;branch=z9hG4bK1;alias", "TCP", "host.example.org", 0,
       "z9hG4bK1", "", "", "", true, true},
      {"SIP/2.0/UDP h;rport=5061;received=192.0.2.9;maddr=224.2.0.1;ttl=16;branch=x", "UDP", "h", 0,
       "x", "192.0.2.9", "5061", "224.2.0.1", true, false},
      {" SIP  / 2.0  / TCP     spindle.example.com   ;\r\n  branch  =   z9hG4bK9ikj8  ", "TCP",
       "spindle.example.com", 0, "z9hG4bK9ikj8", "", "", "", false, false},
      {"SIP / 2.0\r\n /UDP\r\n    192.0.2.2 : 5070;branch=390skdjuw", "UDP", "192.0.2.2", 5070,
       "390skdjuw", "", "", "", false, false},
      {"sip/2.0/udp h;BRANCH=a;ReceiveD=1.2.3.4", "udp", "h", 0, "a", "1.2.3.4", "", "", false,
       false},
      {"SIP/2.0/UNKNOWN t3.example.com;branch=z9hG4bK2", "UNKNOWN", "t3.example.com", 0, "z9hG4bK2",
       "", "", "", false, false},
      {"SIP/2.0/UDP h", "UDP", "h", 0, "", "", "", "", false, false},
      {"SIP/2.0/UDP h;branch=1;branch=2;rport;rport=7;received=1.1.1.1;received=2.2.2.2", "UDP",
       "h", 0, "1", "1.1.1.1", "", "", true, false},
      {"SIP/2.0/UDP h;x=\"a;branch=no\\\"\";branch=yes", "UDP", "h", 0, "yes", "", "", "", false,
       false},
      // RFC 5118 4.1 and 4.5: addresses in brackets, and in received with and without
      {"SIP/2.0/UDP [2001:db8::9:1];received=[2001:db8::9:255];branch=z9hG4bKas3-111", "UDP",
       "2001:db8::9:1", 0, "z9hG4bKas3-111", "[2001:db8::9:255]", "", "", false, false},
      {"SIP/2.0/UDP [2001:db8::9:1]:6050;received=2001:db8::9:255;branch=z9hG4bKas3", "UDP",
       "2001:db8::9:1", 6050, "z9hG4bKas3", "2001:db8::9:255", "", "", false, false},
  };
  for (const Row& row : rows) {
    CAPTURE(row.text);
    const test::GuardedText text(row.text);
    const auto via = parse_via(text.view());
    REQUIRE(via.ok());
    CHECK(via->transport == row.transport);
    CHECK(via->host == row.host);
    CHECK(via->port == row.port);
    CHECK(via->port_or_default() == (row.port != 0 ? row.port : 5060));
    CHECK(via->branch == row.branch);
    CHECK(via->received == row.received);
    CHECK(via->rport == row.rport);
    CHECK(via->maddr == row.maddr);
    CHECK(via->has_rport == row.has_rport);
    CHECK(via->has_alias == row.has_alias);
    CHECK(via->parameters_end == text.view().find_last_not_of(" \t\r\n") + 1);
  }
}

TEST_CASE("a malformed Via is refused with its place") {
  struct Row {
    std::string_view text;
    ErrorCode code;
    int place;
  };
  const Row rows[] = {
      {"", ErrorCode::bad_via, 0},
      {"SIP", ErrorCode::bad_via, 3},
      {"SIP/", ErrorCode::bad_version, 4},
      {"SIP/2.0", ErrorCode::bad_via, 7},
      {"SIP/2.0/", ErrorCode::bad_via, 8},
      {"SIP/2.0/UDP", ErrorCode::bad_via, 11},
      {"SIP/2.0/UDP ", ErrorCode::bad_host, 12},
      {"SIP/2.0/UDP;branch=x", ErrorCode::bad_via, 11},
      {"HTTP/2.0/UDP h", ErrorCode::bad_via, 4},
      {"SIP/7.0/UDP h", ErrorCode::bad_version, 7},
      {"SIP/2.0/UDP h:x", ErrorCode::bad_port, 14},
      {"SIP/2.0/UDP h:70000", ErrorCode::bad_port, 14},
      {"SIP/2.0/UDP [::1", ErrorCode::bad_host, 12},
      {"SIP/2.0/UDP 192.0.2.15;;,;,,", ErrorCode::bad_parameter, 23},  // RFC 4475 3.1.2.1
      {"SIP/2.0/UDP h x", ErrorCode::bad_parameter, 14},
      {"SIP/2.0/UDP h;", ErrorCode::bad_parameter, 14},
      {"SIP/2.0/UDP h;branch=", ErrorCode::bad_parameter, 21},
      {"SIP/2.0/UDP h;branch=a b", ErrorCode::bad_parameter, 23},
      {"SIP/2.0/UDP h;x=\"a", ErrorCode::bad_quoted_string, 16},
      {"SIP/2.0/UDP h;x=\"a\"b", ErrorCode::bad_parameter, 19},
      {"SIP/2.0/UDP h;a=b=c", ErrorCode::bad_parameter, 17},
      {"SIP/2.0/UDP h;branch=a\0b"sv, ErrorCode::bad_parameter, 22},
  };
  for (const Row& row : rows) {
    CAPTURE(row.text);
    const test::GuardedText text(row.text);
    const Error error = parse_via(text.view()).error();
    CHECK(error.name() == std::string_view(error_name(row.code)));
    CHECK(error.place == row.place);
  }
}

TEST_CASE("only a branch with something behind the magic cookie names a transaction") {
  struct Row {
    std::string_view branch;
    bool names_one;
  };
  for (const Row& row : {Row{"z9hG4bKx", true}, Row{"Z9HG4BKx", true}, Row{"z9hG4bK", false},
                         Row{"", false}, Row{"390skdjuw", false}, Row{"xz9hG4bK", false}}) {
    Via via;
    via.branch = row.branch;
    CAPTURE(row.branch);
    CHECK(via.has_rfc3261_branch() == row.names_one);
  }
}

TEST_CASE("name-addr and addr-spec fall into name, URI and header parameters") {
  struct Row {
    std::string_view text, name, uri, parameters, tag;
  };
  const Row rows[] = {
      {"\"Alice\" <sip:alice@example.org>;tag=D6kf2p~aX", "\"Alice\"", "sip:alice@example.org",
       "[tag|D6kf2p~aX]", "D6kf2p~aX"},
      {"sip:bob@example.org", "", "sip:bob@example.org", "", ""},
      {"sip:bob@example.org;tag=a", "", "sip:bob@example.org", "[tag|a]", "a"},
      {"sip:bob@example.org;lr;tag=a", "", "sip:bob@example.org", "[lr][tag|a]", "a"},
      {"<sip:bob@example.org;lr>", "", "sip:bob@example.org;lr", "", ""},
      {"<sip:bob@example.org?a=b> ; TAG = x ; y", "", "sip:bob@example.org?a=b", "[TAG|x][y]", "x"},
      {"caller<sip:caller@example.com>;tag=323", "caller", "sip:caller@example.com", "[tag|323]",
       "323"},
      {"Anonymous Caller  <sip:a@h>", "Anonymous Caller", "sip:a@h", "", ""},
      {"\"J Rosenberg \\\\\\\"\"       <sip:jdrosen@example.com>\r\n  ;\r\n  tag = 98asjd8",
       "\"J Rosenberg \\\\\\\"\"", "sip:jdrosen@example.com", "[tag|98asjd8]", "98asjd8"},
      {"\r\n sip:vivekg@chair-dnrc.example.com ;   tag    = 1918181833n", "",
       "sip:vivekg@chair-dnrc.example.com", "[tag|1918181833n]", "1918181833n"},
      {"\"<sip:not@this>;tag=no\" <sip:a@h>;tag=yes", "\"<sip:not@this>;tag=no\"", "sip:a@h",
       "[tag|yes]", "yes"},
      {"sip:a@h;x=\"<y>;tag=no\"", "", "sip:a@h", "[x|\"<y>;tag=no\"]", ""},
      {"<sip:a@h>;tag=1;tag=2", "", "sip:a@h", "[tag|1][tag|2]", "1"},
      {"<sip:a@h;tag=no>", "", "sip:a@h;tag=no", "", ""},
      {"J\xc3\xbcrgen M\xc3\xbcller <sip:a@h>", "J\xc3\xbcrgen M\xc3\xbcller", "sip:a@h", "", ""},
      {"\"\\\0\x7f\xc3\xa9\" <sip:a@h>"sv, "\"\\\0\x7f\xc3\xa9\""sv, "sip:a@h", "", ""},
      {"<sip:a@h>;+sip.instance=\"<urn:uuid:00000000-0000-1000-8000-000A95A0E128>\";q=0.7", "",
       "sip:a@h", "[+sip.instance|\"<urn:uuid:00000000-0000-1000-8000-000A95A0E128>\"][q|0.7]", ""},
      {"<http://www.example.com>;tag=3234233", "", "http://www.example.com", "[tag|3234233]",
       "3234233"},
      {"isbn:2983792873", "", "isbn:2983792873", "", ""},
      {"tel:+1-201-555-0123;tag=x", "", "tel:+1-201-555-0123", "[tag|x]", "x"},
      {"\"\" <sip:a@h>", "\"\"", "sip:a@h", "", ""},
      {"sip:host.example;unknownparam", "", "sip:host.example", "[unknownparam]", ""},
      {"<sip:a@h>;received=[2001:db8::1]:5060", "", "sip:a@h", "[received|[2001:db8::1]:5060]", ""},
  };
  for (const Row& row : rows) {
    CAPTURE(row.text);
    const test::GuardedText text(row.text);
    const auto address = parse_name_addr(text.view());
    REQUIRE(address.ok());
    CHECK(address->display_name == row.name);
    CHECK(address->uri.text == row.uri);
    CHECK(show(address->parameters) == row.parameters);
    CHECK(address->tag() == row.tag);
  }
}

TEST_CASE("a malformed name-addr is refused with its place") {
  struct Row {
    std::string_view text;
    ErrorCode code;
    int place;
  };
  const Row rows[] = {
      {"", ErrorCode::bad_uri, 0},
      {"*", ErrorCode::bad_uri, 0},
      {"\"Mr. J. User <sip:j.user@example.com>", ErrorCode::bad_quoted_string, 0},
      {"\"Alice\"", ErrorCode::bad_name_addr, 7},
      {"\"Alice\" sip:a@h", ErrorCode::bad_name_addr, 8},
      {"\"Alice\" x <sip:a@h>", ErrorCode::bad_name_addr, 8},
      {"Bell, Alexander <sip:a.g.bell@example.com>", ErrorCode::bad_name_addr, 0},
      {"a@b <sip:a@h>", ErrorCode::bad_name_addr, 0},
      {"<sip:a@h", ErrorCode::bad_name_addr, 1},
      {"<>", ErrorCode::bad_uri, 1},
      {"< sip:a@h >", ErrorCode::bad_uri, 1},
      {"<sip:a@h >", ErrorCode::bad_uri, 8},
      {"<sip:a@h>x", ErrorCode::bad_parameter, 9},
      {"<sip:a@h> <sip:b@h>", ErrorCode::bad_parameter, 10},
      {"<sip:a@h>;", ErrorCode::bad_parameter, 10},
      {"<sip:a@h>;;tag=x", ErrorCode::bad_parameter, 10},
      {"<sip:a@h>;tag=", ErrorCode::bad_parameter, 14},
      {"<sip:a@h>;tag=\"x", ErrorCode::bad_quoted_string, 14},
      {"sip:a@h?x=y", ErrorCode::bad_name_addr, 0},  // RFC 4475 3.1.2.13
      {"sip:a@h, sip:b@h", ErrorCode::bad_uri, 7},
      {"sip:a@h sip:b@h", ErrorCode::bad_parameter, 8},
      {"example.org", ErrorCode::bad_uri, 0},
      {"<sip:a\r\n @h>", ErrorCode::bad_uri, 6},
  };
  for (const Row& row : rows) {
    CAPTURE(row.text);
    const test::GuardedText text(row.text);
    const Error error = parse_name_addr(text.view()).error();
    CHECK(error.name() == std::string_view(error_name(row.code)));
    CHECK(error.place == row.place);
  }
}

TEST_CASE("methods are told by their exact name") {
  for (int i = 1; i <= static_cast<int>(Method::update); ++i) {
    const auto method = static_cast<Method>(i);
    CAPTURE(method_name(method));
    CHECK(parse_method(method_name(method)) == method);
    CHECK(parse_method(to_lower(method_name(method))) == Method::other);
  }
  CHECK(parse_method("MESSAGE") == Method::message);
  CHECK(parse_method("") == Method::other);
  CHECK(parse_method("RE%47IST%45R") == Method::other);
  CHECK(method_name(Method::other).empty());
}

TEST_CASE("CSeq is a number below 2^31 and a method") {
  struct Row {
    std::string_view text;
    bool ok;
    std::uint32_t number;
    std::string_view method;
  };
  const Row rows[] = {
      {"20 MESSAGE", true, 20, "MESSAGE"},
      {"0009\r\n  INVITE", true, 9, "INVITE"},
      {" 0\tx", true, 0, "x"},
      {"2147483647 A", true, 2147483647, "A"},
      {"2147483648 A", false, 0, ""},
      {"36893488147419103232 REGISTER", false, 0, ""},
      {"", false, 0, ""},
      {"20", false, 0, ""},
      {"20 ", false, 0, ""},
      {"MESSAGE", false, 0, ""},
      {"20MESSAGE", false, 0, ""},
      {"-1 MESSAGE", false, 0, ""},
      {"20 MESSAGE x", false, 0, ""},
      {"20 MES/SAGE", false, 0, ""},
  };
  for (const Row& row : rows) {
    CAPTURE(row.text);
    const test::GuardedText text(row.text);
    const auto cseq = parse_cseq(text.view());
    CHECK(cseq.ok() == row.ok);
    CHECK(cseq.error().code == (row.ok ? ErrorCode::none : ErrorCode::bad_cseq));
    CHECK(cseq->number == row.number);
    if (row.ok) CHECK(cseq->method == row.method);
  }
}

TEST_CASE("a media type is read with its parameters") {
  const auto media = parse_media_type(" text / plain ; charset=\"utf-8\";x=y");
  REQUIRE(media.ok());
  CHECK(media->is("TEXT", "Plain"));
  CHECK_FALSE(media->is("text", "html"));
  CHECK(media->parameters.find("charset") == "\"utf-8\"");
  CHECK(media->parameters.find("x") == "y");
  CHECK(parse_media_type("message/cpim")->is("message", "cpim"));
  for (std::string_view text : {"", "text", "text/", "/plain", "text/plain x", "text/plain;",
                                "text/plain;charset", "te xt/plain", "text/plain;a=\"b"}) {
    CAPTURE(text);
    const test::GuardedText guarded(text);
    const bool fine = text == "text/plain;charset";  // a parameter needs no value
    CHECK(parse_media_type(guarded.view()).ok() == fine);
  }
}

TEST_CASE("a q value is read in thousandths") {
  struct Row {
    std::string_view text;
    std::optional<int> q;
  };
  const Row rows[] = {
      {"0", 0},      {"1", 1000},  {"0.", 0},     {"1.", 1000},    {"0.5", 500},
      {"0.33", 330}, {"0.007", 7}, {"1.0", 1000}, {"1.000", 1000}, {"0.999", 999},
      {"", {}},      {"2", {}},    {"1.001", {}}, {"0.1234", {}},  {"0,5", {}},
      {".5", {}},    {"-0", {}},   {"0.5x", {}},  {"01", {}},      {"0. 5", {}},
  };
  for (const Row& row : rows) {
    CAPTURE(row.text);
    CHECK(parse_q(row.text) == row.q);
  }
}

TEST_CASE("a date is seconds since 1970, and GMT") {
  struct Row {
    std::string_view text;
    std::int64_t unix_s;
  };
  const Row rows[] = {
      {"Thu, 01 Jan 1970 00:00:00 GMT", 0},          {"Sat, 13 Nov 2010 23:29:00 GMT", 1289690940},
      {"Tue, 29 Feb 2000 12:00:00 GMT", 951825600},  {"Sun, 23 Nov 2025 01:37:42 GMT", 1763861862},
      {"Thu, 31 Dec 2099 23:59:59 GMT", 4102444799},
  };
  for (const Row& row : rows) {
    CAPTURE(row.text);
    const auto date = parse_date(row.text);
    REQUIRE(date.ok());
    CHECK(*date == row.unix_s);
    CHECK(format_date(row.unix_s) == row.text);
  }
  for (std::int64_t day = 0; day < 60000; ++day) {
    const std::int64_t unix_s = day * 86400 + day % 86400;
    REQUIRE(*parse_date(format_date(unix_s)) == unix_s);
  }
  for (std::string_view text : {"", "Fri, 01 Jan 2010 16:00:00 EST",
                                "Sat, 13 Nov 2010 23:29:00 gmt", "Sat, 00 Nov 2010 23:29:00 GMT",
                                "Sat, 32 Nov 2010 23:29:00 GMT", "Sat, 13 Now 2010 23:29:00 GMT",
                                "Sat, 13 anF 2010 23:29:00 GMT", "Sat, 13 Nov 2010 24:29:00 GMT",
                                "Sat, 13 Nov 2010 23:60:00 GMT", "Sat, 13 Nov 1969 23:29:00 GMT",
                                "Sat, 13 Nov 2010 23:29:00 GMT x", "13 Nov 2010 23:29:00 GMT"}) {
    CAPTURE(text);
    CHECK(parse_date(text).error().code == ErrorCode::bad_date);
  }
}

}  // namespace test_header
