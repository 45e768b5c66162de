// What is kept of a message, what is sent of it later, and what its sender is told.
#include <doctest/doctest.h>

#include <string>
#include <string_view>

#include "../../src/modules/offline/request.hpp"

namespace test_offline_request {

using namespace modules;

namespace {

constexpr std::int64_t noon_s = 1764158400;  // Wed, 26 Nov 2025 12:00:00 GMT
constexpr std::uint32_t week_s = 604800;

/// A MESSAGE as the server hands it to a handler.
struct Received {
  explicit Received(std::string_view headers, std::string_view body = "hello",
                    std::string_view branch = "z9hG4bK1", std::string_view user = {})
      : username(user) {
    std::string text = "MESSAGE sip:102@example.org SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.1;branch=";
    text.append(branch).append("\r\nFrom: \"Ann, A.\" <sip:101@example.org>;tag=a\r\n");
    text.append("To: <sip:102@example.org>\r\nCall-ID: c@x\r\nCSeq: 7 MESSAGE\r\n");
    text.append(headers).append("Content-Length: ").append(std::to_string(body.size()));
    text.append("\r\n\r\n").append(body);
    auto parsed = sipmsg::Message::from_bytes(text);
    REQUIRE(parsed);
    message = std::move(parsed).value();
  }
  sipmsg::RouteRequest request() const {
    return {message, "101", "Ann, A.", "102", username, {}, {}};
  }
  KeptMessage kept() const {
    auto result = keep_of(request(), "102", noon_s, week_s);
    REQUIRE(result);
    return *result;
  }

  sipmsg::Message message;
  std::string username;
};

std::string header_of(const sipmsg::Outgoing& outgoing, std::string_view name) {
  std::string found;
  for (const auto& header : outgoing.headers) {
    if (header.first == name) found += header.second + ";";
  }
  return found;
}

constexpr std::string_view cpim_type = "Content-Type: message/cpim\r\n";

std::string cpim(std::string_view wanted, std::string_view content_type = "text/plain",
                 std::string_view content = "hello") {
  std::string text =
      "From: <sip:101@example.org>\r\nTo: <sip:102@example.org>\r\n"
      "DateTime: 2025-11-26T12:00:00Z\r\nNS: imdn <urn:ietf:params:imdn>\r\n"
      "imdn.Message-ID: abc\r\n";
  if (!wanted.empty()) {
    text.append("imdn.Disposition-Notification: ").append(wanted).append("\r\n");
  }
  text.append("\r\nContent-Type: ").append(content_type).append("\r\n\r\n").append(content);
  return text;
}

}  // namespace

TEST_CASE("a message is delivered with From, body and type as they came, and when it was sent") {
  const Received received(
      "Content-Type: text/plain;\r\n charset=utf-8\r\nSubject: lunch\r\nContent-Encoding: gzip\r\n"
      "Date: Wed, 26 Nov 2025 11:00:00 GMT\r\nContact: <sip:x@y>\r\nRoute: <sip:z;lr>\r\n"
      "Authorization: Digest username=\"101\"\r\nX-Other: y\r\n");
  KeptMessage kept = received.kept();
  kept.id = 42;
  const sipmsg::Outgoing outgoing = delivery_of(kept, "sip:102@192.0.2.9:5070");
  CHECK(outgoing.from == "\"Ann, A.\" <sip:101@example.org>");
  CHECK(outgoing.to == "<sip:102@example.org>");
  CHECK(outgoing.request_uri == "sip:102@192.0.2.9:5070");
  CHECK(outgoing.body == "hello");
  CHECK(sipmsg::parse_media_type(outgoing.content_type)->parameters.text().find("utf-8") !=
        std::string_view::npos);
  CHECK(outgoing.content_type.find('\n') == std::string::npos);
  CHECK(outgoing.headers.size() == 3);
  CHECK(header_of(outgoing, "Subject") == "lunch;");
  CHECK(header_of(outgoing, "Content-Encoding") == "gzip;");
  CHECK(header_of(outgoing, "Date") == "Wed, 26 Nov 2025 11:00:00 GMT;");
  CHECK(outgoing.call_id == delivery_of(kept, "sip:102@192.0.2.10").call_id);
}

TEST_CASE("a message without a date, or with one that cannot be, gets that of its arrival") {
  for (const char* date : {"", "Date: yesterday\r\n", "Date: Wed, 26 Nov 2035 12:00:00 GMT\r\n"}) {
    CAPTURE(date);
    CHECK(Received(date).kept().date == "Wed, 26 Nov 2025 12:00:00 GMT");
  }
}

TEST_CASE("Expires shortens the time a message is kept, counted from its Date") {
  struct Row {
    const char* headers;
    std::int64_t left_s;  ///< 0: not kept at all
  };
  const Row rows[] = {
      {"", week_s},
      {"Expires: 60\r\n", 60},
      {"Expires: 99999999999\r\n", week_s},
      {"Expires: soon\r\n", week_s},
      {"Expires: 0\r\n", 0},
      {"Expires: 600\r\nDate: Wed, 26 Nov 2025 11:55:00 GMT\r\n", 300},
      {"Expires: 600\r\nDate: Wed, 26 Nov 2025 11:50:00 GMT\r\n", 0},
      {"Expires: 600\r\nDate: Wed, 26 Nov 2025 12:30:00 GMT\r\n", 600},
  };
  for (const Row& row : rows) {
    CAPTURE(row.headers);
    const auto kept = keep_of(Received(row.headers).request(), "102", noon_s, week_s);
    CHECK(kept.has_value() == (row.left_s != 0));
    if (kept) CHECK(kept->expires_s == noon_s + row.left_s);
  }
}

TEST_CASE("a repetition has the same identity, and nothing else has") {
  const std::string identity = Received("").kept().identity;
  CHECK(identity.size() == 32);
  CHECK(Received("Subject: x\r\n").kept().identity == identity);
  CHECK(Received("", "hello!").kept().identity != identity);
  CHECK(Received("", "hello", "z9hG4bK2").kept().identity != identity);
  CHECK(keep_of(Received("").request(), "103", noon_s, week_s)->identity != identity);
}

TEST_CASE("a message counts for whom the password proved, or else for its From") {
  CHECK(Received("", "x", "z9hG4bK1", "ann").kept().sender == "ann");
  CHECK(Received("").kept().sender.find("101@example.org") != std::string::npos);
}

TEST_CASE("a delivery names the user who registered, whatever the message called him") {
  KeptMessage kept = Received("").kept();
  kept.user = "a b@c";
  CHECK(delivery_of(kept, "sip:x@192.0.2.9").to == "<sip:a%20b%40c@example.org>");
  kept.to = "<sip:x@[2001:db8::1]:5060>";
  CHECK(delivery_of(kept, "sip:x@192.0.2.9").to == "<sip:a%20b%40c@[2001:db8::1]>");
  kept.to = "tel:5";
  CHECK(delivery_of(kept, "sip:x@192.0.2.9").to == "<sip:a%20b%40c@localhost>");
}

TEST_CASE("is-typing and notices are not worth keeping; everything else is, also what is broken") {
  const std::string typing =
      "<isComposing xmlns='urn:ietf:params:xml:ns:im-iscomposing'><state>active</state>"
      "</isComposing>";
  const std::string notice =
      "<imdn xmlns='urn:ietf:params:xml:ns:imdn'><message-id>abc</message-id>"
      "<datetime>2025-11-26T12:00:00Z</datetime><delivery-notification><status><delivered/>"
      "</status></delivery-notification></imdn>";
  struct Row {
    std::string headers;
    std::string body;
    bool is_kept;
  };
  const Row rows[] = {
      {"Content-Type: text/plain\r\n", "hello", true},
      {"Content-Type: application/octet-stream\r\n", std::string("\0\xff", 2), true},
      {"Content-Type: message/cpim\r\n", "broken", true},
      {std::string(cpim_type), cpim("positive-delivery"), true},
      {"Content-Type: application/im-iscomposing+xml\r\n", typing, false},
      {"Content-Type: message/imdn+xml\r\n", notice, false},
      {std::string(cpim_type), cpim("", "message/imdn+xml", notice), false},
      {std::string(cpim_type), cpim("", "application/im-iscomposing+xml", typing), false},
  };
  for (const Row& row : rows) {
    CAPTURE(row.headers);
    CHECK(is_worth_keeping(Received(row.headers, row.body).request()) == row.is_kept);
  }
}

TEST_CASE("a sender is told what he asked to be told, and nothing else") {
  struct Row {
    const char* wanted;
    Fate fate;
    const char* status;  ///< null: no notice
  };
  const Row rows[] = {
      {"processing", Fate::stored, "<stored"},
      {"positive-delivery", Fate::stored, nullptr},
      {"positive-delivery, negative-delivery", Fate::delivered, "<delivered"},
      {"negative-delivery", Fate::delivered, nullptr},
      {"negative-delivery", Fate::expired, "<failed"},
      {"display", Fate::expired, nullptr},
      {"", Fate::stored, nullptr},
  };
  for (const Row& row : rows) {
    CAPTURE(row.wanted);
    const KeptMessage kept = Received(cpim_type, cpim(row.wanted)).kept();
    const auto notice = notice_of(kept, row.fate, "id1", noon_s);
    CHECK(notice.has_value() == (row.status != nullptr));
    if (!notice) continue;
    CHECK(notice->to == kept.from);
    CHECK(notice->from == "<sip:102@example.org>");
    CHECK(notice->content_type == "message/cpim");
    CHECK(notice->body.find("<message-id>abc</message-id>") != std::string::npos);
    CHECK(notice->body.find(row.status) != std::string::npos);
    const auto content = sipmsg::read_content(notice->content_type, notice->body);
    REQUIRE(content);
    CHECK(content->kind == sipmsg::ContentKind::notification);
  }
}

TEST_CASE("no notice answers a notice, whatever it asks for") {
  const std::string notice =
      "<imdn xmlns='urn:ietf:params:xml:ns:imdn'><message-id>abc</message-id>"
      "<datetime>2025-11-26T12:00:00Z</datetime></imdn>";
  const KeptMessage kept =
      Received(cpim_type, cpim("positive-delivery, processing", "message/imdn+xml", notice)).kept();
  CHECK_FALSE(notice_of(kept, Fate::stored, "id1", noon_s));
  CHECK_FALSE(notice_of(kept, Fate::delivered, "id1", noon_s));
  CHECK_FALSE(notice_of(Received("").kept(), Fate::delivered, "id1", noon_s));
}

TEST_CASE("what another try may mend is no refusal for good") {
  for (int code : {401, 403, 404, 407, 408, 410, 480, 481, 482, 486, 500, 503, 504}) {
    CAPTURE(code);
    CHECK_FALSE(is_refused_for_good(code));
  }
  for (int code : {400, 405, 413, 415, 488, 501, 513, 600, 603, 606}) {
    CAPTURE(code);
    CHECK(is_refused_for_good(code));
  }
}

}  // namespace test_offline_request
