// outgoing.hpp: what a caller may give for To, From and further headers.
// Not covered: what becomes of it (test_agent, test_proxy).
#include <string>

#include <doctest/doctest.h>

#include "support/sipmsg.hpp"

namespace test_outgoing {

using namespace sipmsg;

TEST_CASE("a party is a URI, with or without a name, and is written in a form of its own") {
  const struct {
    const char* given;
    const char* written;
  } rows[] = {
      {"sip:bob@example.org", "<sip:bob@example.org>"},
      {"<sip:bob@example.org>", "<sip:bob@example.org>"},
      {"Bob <sip:bob@example.org>", "\"Bob\" <sip:bob@example.org>"},
      {"\"B \\\"b\\\"\" <sip:bob@example.org>", "\"B \\\"b\\\"\" <sip:bob@example.org>"},
      // Without brackets a parameter is the URI's (RFC 3261 20.10).
      {"sip:bob@example.org;transport=tcp", "<sip:bob@example.org;transport=tcp>"},
  };
  for (const auto& row : rows) {
    CAPTURE(row.given);
    const auto party = detail::parse_party(row.given);
    REQUIRE(party);
    CHECK(detail::party_text(*party) == row.written);
  }
}

TEST_CASE("a party that would say more than whom it names is refused") {
  const struct {
    std::string given;
    ErrorCode error;
  } rows[] = {
      {"<sip:bob@example.org>;tag=1", ErrorCode::bad_name_addr},
      {"sip:bob@example.org?Subject=x", ErrorCode::bad_uri},
      {"<sip:bob@example.org;method=REGISTER>", ErrorCode::bad_uri},
      {"sip:bob@example.org\r\nX-Evil: yes", ErrorCode::forbidden_octet},
      {"Bob\n <sip:bob@example.org>", ErrorCode::forbidden_octet},
      {std::string("sip:bob@example.org\0", 20), ErrorCode::forbidden_octet},
  };
  for (const auto& row : rows) {
    CAPTURE(row.given);
    CHECK(detail::parse_party(row.given).error().code == row.error);
  }
}

TEST_CASE("further headers are none of those that each request has, and hold no line end") {
  const struct {
    const char* name;
    const char* value;
    bool allows_contact;
    ErrorCode error;
  } rows[] = {
      {"Subject", "x", false, ErrorCode::none},
      {"X-Own", "x", false, ErrorCode::none},
      {"Via", "x", false, ErrorCode::duplicate_header},
      {"f", "x", false, ErrorCode::duplicate_header},  // From
      {"CONTENT-LENGTH", "0", false, ErrorCode::duplicate_header},
      {"X Own", "x", false, ErrorCode::bad_token},
      {"", "x", false, ErrorCode::bad_token},
      {"Subject", "x\r\nVia: y", false, ErrorCode::forbidden_octet},
      {"Contact", "<sip:bob@x>", false, ErrorCode::bad_argument},  // RFC 3428 4
      {"Contact", "<sip:bob@x>", true, ErrorCode::none},
  };
  for (const auto& row : rows) {
    CAPTURE(row.name);
    CAPTURE(row.value);
    CHECK(detail::check_headers({{row.name, row.value}}, row.allows_contact).code == row.error);
  }
}

}  // namespace test_outgoing
