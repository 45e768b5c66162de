// What real softphones sent, against the table in tests/data/captures/README.md: every row of it is
// a test.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "support/data.hpp"
#include "support/guarded.hpp"
#include "support/sipmsg.hpp"

namespace test_captures {

using namespace sipmsg;

namespace {

/// A row of the table: "| client | version | server | file | transport | what it is |".
struct Capture {
  std::string client, file, transport, what;
};

std::vector<Capture> captures() {
  std::vector<Capture> rows;
  for (const std::string& line : test::split(test::read_data("captures/README.md"), '\n')) {
    auto cells = test::split(line, '|');
    for (std::string& cell : cells) cell = std::string(trim(cell));
    if (cells.size() < 7 || cells[4].find(".txt") == std::string::npos) continue;
    rows.push_back({cells[1], cells[4], cells[5], cells[6]});
  }
  return rows;
}

bool says(const Capture& capture, std::string_view words) {
  return capture.what.find(words) != std::string::npos;
}

/// The first words of the last column: "REGISTER", "response 200 OK to MESSAGE".
std::string first_words(const std::string& what) {
  return what.substr(0, std::min(what.find(','), what.find(" with ")));
}

void check_request(const Capture& capture, const MessageView& message) {
  CHECK(message.method_text() == first_words(capture.what));
  CHECK(method_name(message.method()) == message.method_text());
  CHECK(message.request_uri()->scheme == UriScheme::sip);
  CHECK(message.cseq()->method == message.method_text());
  CHECK(message.max_forwards() == 70);
  CHECK(message.to()->tag().empty() == (message.method() != Method::bye));
  CHECK_FALSE(message.from()->tag().empty());

  CHECK(message.has(HeaderId::authorization) + message.has(HeaderId::proxy_authorization) ==
        (says(capture, "with Authorization") ? 1 : 0));
  for (HeaderId id : {HeaderId::authorization, HeaderId::proxy_authorization}) {
    if (!message.has(id)) continue;
    const auto credentials = parse_credentials(message.header(id));
    REQUIRE(credentials.ok());
    CHECK(credentials->is_digest);
    CHECK(unquote(credentials->username) == message.from()->uri.user);
  }
  for (const char* type :
       {"text/plain", "application/pidf+xml", "application/im-iscomposing+xml"}) {
    if (!says(capture, type)) continue;
    const auto media = message.content_type();
    REQUIRE(media.ok());
    CHECK(std::string(media->type) + "/" + std::string(media->subtype) == type);
    CHECK_FALSE(message.body().empty());
  }
}

void check_register(const Capture& capture, const MessageView& message) {
  bool removes = message.expires() == 0U;
  for (std::string_view element : message.values(HeaderId::contact)) {
    if (element == "*") continue;
    const auto contact = parse_name_addr(element);
    REQUIRE(contact.ok());
    CHECK_FALSE(contact->uri.host.empty());
    removes = removes || contact->parameters.find("expires") == "0";
  }
  CHECK(removes == says(capture, "unregister"));
}

}  // namespace

TEST_CASE("every captured message is what the table says it is") {
  const std::vector<Capture> rows = captures();
  CHECK(rows.size() == 237);
  for (const Capture& capture : rows) {
    CAPTURE(capture.file);
    const std::string whole = test::read_data("captures/" + capture.file);
    const test::GuardedText bytes(whole);
    MessageView message;
    const bool over_tcp = capture.transport == "tcp";
    const Error error = message.parse(bytes.view(), over_tcp ? Framing::stream : Framing::datagram);
    if (says(capture, "keepalive")) {
      CHECK(error.code == ErrorCode::empty);
      continue;
    }
    REQUIRE_MESSAGE(!error, error.name() << " at " << error.place);
    const Error invalid = validate(message);
    REQUIRE_MESSAGE(!invalid, invalid.name() << " at " << invalid.place);
    CHECK(message.bytes() == whole);

    const auto via = message.top_via();
    CHECK(parse_transport(via->transport) == parse_transport(capture.transport));
    CHECK(via->has_rfc3261_branch());
    CHECK(parse_ip(via->host)->is_loopback());
    for (std::size_t i = 0; i < message.header_count(); ++i) {
      const HeaderField field = message.field(i);
      CHECK(is_token(field.name));
      const bool known = field.id != HeaderId::other;
      CHECK(message.header(field.name).has_value());
      if (known && field.name.size() > 1) {
        CHECK(equal_ignoring_case(field.name, header_name(field.id)));
      }
    }
    if (says(capture, "response")) {
      CHECK(message.is_response());
      CHECK("response " + std::to_string(message.status_code()) + " " +
                std::string(message.reason_phrase()) + " to " +
                std::string(message.cseq()->method) ==
            capture.what);
      CHECK_FALSE(message.to()->tag().empty());
    } else {
      check_request(capture, message);
      if (message.method() == Method::register_) check_register(capture, message);
    }
  }
}

}  // namespace test_captures
