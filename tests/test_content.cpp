// What bodies say: charsets, envelopes, multiparts and the two XML documents, well written, badly
// written and hostile; and what we write of the same.
#include <doctest/doctest.h>

#include <string>
#include <string_view>
#include <vector>

#include "support/data.hpp"
#include "support/guarded.hpp"
#include "support/sipmsg.hpp"

namespace test_content {

using namespace sipmsg;
using namespace std::literals;

namespace {

const std::string bad = "\xef\xbf\xbd";  // U+FFFD

/// Whatever `write` writes, and no error.
template <class Write>
std::string written_by(Write write) {
  char buffer[4096];
  Output out(buffer, sizeof buffer);
  write(out);
  CHECK_MESSAGE(!out.error(), out.error().name());
  return std::string(out.written());
}

template <class Write>
std::string_view error_of(Write write) {
  char buffer[4096];
  Output out(buffer, sizeof buffer);
  write(out);
  return out.error().name();
}

/// UTF-8 by the table of RFC 3629 4, read the slow way.
bool is_valid_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const auto at = [text](std::size_t k) -> unsigned {
      return k < text.size() ? static_cast<unsigned char>(text[k]) : 0U;
    };
    std::size_t length = 0;
    if (at(i) < 0x80) length = 1;
    if ((at(i) & 0xe0) == 0xc0) length = 2;
    if ((at(i) & 0xf0) == 0xe0) length = 3;
    if ((at(i) & 0xf8) == 0xf0) length = 4;
    if (length == 0) return false;
    unsigned character = length == 1 ? at(i) : at(i) & (0x7fU >> length);
    for (std::size_t k = 1; k < length; ++k) {
      if ((at(i + k) & 0xc0) != 0x80) return false;
      character = character << 6 | (at(i + k) & 0x3f);
    }
    constexpr unsigned smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    if (character < smallest[length] || character > 0x10ffff) return false;
    if (character >= 0xd800 && character < 0xe000) return false;
    i += length;
  }
  return true;
}

/// A document of nothing but nested elements.
std::string nested(std::size_t depth) {
  std::string document;
  for (std::size_t i = 0; i < depth; ++i) document += i == 0 ? "<imdn>" : "<a>";
  for (std::size_t i = depth; i-- > 0;) document += i == 0 ? "</imdn>" : "</a>";
  return document;
}

const std::string cpim_body =
    "From: \"Alice \\u00c4 \\\"A\\\"\" <sip:alice@example.org>\r\n"
    "To: Bob B. <sip:bob@example.org>\r\n"
    "To: <sip:bobby@example.org>\r\n"
    "cc: <im:carol@example.org>\r\n"
    "DateTime: 2025-11-23T02:37:42+01:00\r\n"
    "Subject: on \\\\ and \\t \\ud83d\\udc4b\r\n"
    "Subject:;lang=de nichts\r\n"
    "NS: imdn <urn:ietf:params:imdn>\r\n"
    "NS: My <urn:example:mine>\r\n"
    "imdn.Message-ID: 34jk324jx9\r\n"
    "imdn.Disposition-Notification: positive-delivery,display ;x=1\r\n"
    "imdn.Original-To: <sip:list@example.org>\r\n"
    "My.Colour:;shade=\"light; or so\" blue\r\n"
    "Their.Colour: red\r\n"
    "\r\n"
    "Content-Type: text/plain;\r\n charset=utf-8\r\n"
    "Content-Length: 5\r\n"
    "\r\n"
    "h\xc3\xa9llo";

}  // namespace

TEST_CASE("text comes out as UTF-8 from every charset that is known") {
  struct Row {
    std::string_view type;
    std::string_view body;
    std::string text;
    bool is_known = true;
  };
  const Row rows[] = {
      {"", "plain", "plain"},
      {"text/plain", "\xc5\xbelu\xc5\xa5 \xf0\x9f\x91\x8b", "\xc5\xbelu\xc5\xa5 \xf0\x9f\x91\x8b"},
      {"Text/PLAIN ; Charset=\"UTF-8\"", "\xc3\xa9", "\xc3\xa9"},
      {"text/plain;charset=us-ascii", "\xc3\xa9", "\xc3\xa9"},
      {"text/plain;charset=UTF8;format=flowed", "\xef\xbb\xbfhi", "hi"},
      {"text/plain;charset=iso-8859-1", "caf\xe9 \x93q\x94 \x81",
       "caf\xc3\xa9 \xe2\x80\x9cq\xe2\x80\x9d " + bad},
      {"text/plain;charset=windows-1252", "\x80\xff", "\xe2\x82\xac\xc3\xbf"},
      {"text/plain;charset=ISO-8859-15", "\xa4\xa5\xbe\x93", "\xe2\x82\xac\xc2\xa5\xc5\xb8" + bad},
      {"text/plain;charset=utf-16", "\xfe\xff\0a\xd8\x3d\xdc\x4b"sv, "a\xf0\x9f\x91\x8b"},
      {"text/plain;charset=utf-16",
       "\xff\xfe"
       "a\0"sv,
       "a"},
      {"text/plain;charset=utf-16", "\0a"sv, "a"},
      {"text/plain;charset=utf-16le", "\xff\xfe\xe9\0"sv, "\xc3\xa9"},
      {"text/plain;charset=utf-16be", "\0\xe9"sv, "\xc3\xa9"},
      {"text/plain;charset=utf-16be", "\xdc\x00\0a\xd8\x00"sv, bad + "a" + bad},
      {"text/plain;charset=utf-16be", "\xd8\x00\xd8\x3d\xdc\x4b\0"sv,
       bad + "\xf0\x9f\x91\x8b" + bad},
      {"text/plain;charset=koi8-r", "a\xc1", "a" + bad, false},
  };
  for (const Row& row : rows) {
    CAPTURE(row.type);
    const auto content = read_content(row.type, row.body);
    REQUIRE(content.ok());
    CHECK(content->kind == ContentKind::text);
    CHECK(content->media_type == "text/plain");
    CHECK(content->text == row.text);
    CHECK(content->charset_is_known == row.is_known);
    CHECK(content->body == row.body);
    CHECK_FALSE(content->cpim.has_value());
  }
  CHECK(read_content("text/plain;charset=\"KOI8-r\"", "")->charset == "KOI8-r");
  CHECK(read_content("text/plain", "")->charset.empty());
}

TEST_CASE("octets that are no character are replaced, and the ones after them are not lost") {
  struct Row {
    std::string_view octets;
    std::string text;
  };
  const Row rows[] = {
      {"a\x80z", "a" + bad + "z"},
      {"\xc0\x80", bad + bad},
      {"\xc1\xbf", bad + bad},
      {"\xe2\x82", bad},
      {"\xe2\x82z", bad + "z"},
      {"\xe2\xe2\x82\xac", bad + "\xe2\x82\xac"},
      {"\xe0\x9f\xbf", bad + bad + bad},
      {"\xed\xa0\x80", bad + bad + bad},
      {"\xf0\x8f\xbf\xbf", bad + bad + bad + bad},
      {"\xf0\x9f\x91", bad},
      {"\xf4\x90\x80\x80", bad + bad + bad + bad},
      {"\xf5\xff", bad + bad},
      {"\xed\x9f\xbf\xee\x80\x80\xf4\x8f\xbf\xbf", "\xed\x9f\xbf\xee\x80\x80\xf4\x8f\xbf\xbf"},
      {"a\0b"sv, "a\0b"s},
  };
  for (const Row& row : rows) {
    CAPTURE(row.text);
    CHECK(*to_utf8(row.octets) == row.text);
  }
  for (unsigned first = 0; first < 0x10000; ++first) {
    const char octets[] = {static_cast<char>(first >> 8), static_cast<char>(first), '\x8f', '\xbf'};
    const std::string_view text(octets, sizeof octets);
    const std::string out = *to_utf8(text);
    CHECK_UNARY(is_valid_utf8(out));
    CHECK_UNARY((out == text) == is_valid_utf8(text));
  }
}

TEST_CASE("every character number is written as UTF-8 reads it, and no other number is one") {
  for (std::uint32_t character = 0; character < 0x110010; character += 0xf) {
    std::string text;
    detail::append_character(text, character);
    const bool exists = character <= 0x10ffff && !(character >= 0xd800 && character < 0xe000);
    CHECK_UNARY(is_valid_utf8(text));
    CHECK_UNARY((text == bad) == !exists);
  }
}

TEST_CASE("dates of RFC 3339 are read in any zone and written in UTC") {
  struct Row {
    std::string_view text;
    std::int64_t unix_s;
  };
  const Row rows[] = {
      {"1970-01-01T00:00:00Z", 0},
      {"1970-01-01T01:00:00+01:00", 0},
      {"2025-11-23T01:37:42Z", 1763861862},
      {" 2025-11-23t02:37:42.125+01:00 ", 1763861862},
      {"2025-11-22T20:07:42-05:30", 1763861862},
      {"2025-11-23T01:37:42+0000", 1763861862},
      {"2024-02-29T23:59:60z", 1709251200},
      {"9999-12-31T23:59:59Z", 253402300799},
  };
  for (const Row& row : rows) {
    CAPTURE(row.text);
    const auto unix_s = parse_date_time(row.text);
    REQUIRE(unix_s.ok());
    CHECK(*unix_s == row.unix_s);
    CHECK(*parse_date_time(format_date_time(row.unix_s)) == row.unix_s);
  }
  CHECK(format_date_time(0) == "1970-01-01T00:00:00Z");
  CHECK(format_date_time(1763861862) == "2025-11-23T01:37:42Z");
  CHECK(format_date_time(1728813602) == "2024-10-13T10:00:02Z");
  CHECK(format_date_time(253402300799) == "9999-12-31T23:59:59Z");
  for (std::string_view text : {"",
                                "2025",
                                "2025-11-23",
                                "2025-11-23T01:37:42",
                                "2025-13-01T00:00:00Z",
                                "2025-00-01T00:00:00Z",
                                "2025-01-00T00:00:00Z",
                                "2025-02-29T00:00:00Z",
                                "2025-04-31T00:00:00Z",
                                "2025-01-01T24:00:00Z",
                                "2025-01-01T00:60:00Z",
                                "2025-01-01T00:00:61Z",
                                "2025-01-01T00:00:00.Z",
                                "2025-01-01T00:00:00+1",
                                "2025-01-01T00:00:00+01:0",
                                "2025-01-01T00:00:00+24:00",
                                "2025-01-01T00:00:00Zx",
                                "2025-01-01 00:00:00Z",
                                "1969-12-31T23:59:59Z",
                                "1970-01-01T00:00:00+01:00",
                                "9999-12-31T23:59:59-01:00",
                                "+025-01-01T00:00:00Z",
                                "2025-1-01T00:00:00Z",
                                "Sun, 23 Nov 2025 01:37:42 GMT"}) {
    CAPTURE(text);
    CHECK(parse_date_time(text).error().code == ErrorCode::bad_date);
  }
}

TEST_CASE("a document that says somebody is typing is read as that") {
  struct Row {
    std::string_view document;
    bool is_active;
    std::string_view content_type = "";
    std::uint32_t refresh_s = 120;
    std::string_view last_active = "";
  };
  const Row rows[] = {
      {"<isComposing><state>active</state></isComposing>", true},
      {"<isComposing><state>idle</state></isComposing>", false},
      {"<isComposing><state>paused</state></isComposing>", false},
      {"<isComposing><state/></isComposing>", false},
      {"\xef\xbb\xbf<?xml version='1.0' encoding=\"UTF-8\"?>\r\n<!-- <x> -- -->\n"
       "<c:isComposing xmlns:c='urn:ietf:params:xml:ns:im-iscomposing'\n a = \"/>\" >"
       "<c:state\n>\n a<!-- - -->ct<![CDATA[iv]]>&#101; </c:state\t>"
       "<c:lastactive>2025-11-23T01:37:42Z</c:lastactive><c:contenttype>text/html</c:contenttype>"
       "<c:refresh>90</c:refresh></c:isComposing>\n<?end?> <!---->",
       true, "text/html", 90, "2025-11-23T01:37:42Z"},
      {"<isComposing><state>active</state><refresh>0</refresh></isComposing>", true},
      {"<isComposing><state>active</state><refresh>-5</refresh></isComposing>", true},
      {"<isComposing><state>active</state><refresh>4294967296</refresh></isComposing>", true},
      {"<isComposing>x<state>active</state>x</isComposing>", true},
      {"<isComposing><state>idle<x>active</x></state></isComposing>", false},
      {"<isComposing><x><state>active</state></x><state>idle</state></isComposing>", false},
      {"<isComposing><contenttype>&lt;&gt;&amp;&quot;&apos;&#x1F44B;</contenttype>"
       "<state>active</state></isComposing>",
       true, "<>&\"'\xf0\x9f\x91\x8b"},
      {"<isComposing><contenttype>\xe9</contenttype><state>idle</state></isComposing>", false, bad},
  };
  for (const Row& row : rows) {
    CAPTURE(row.document);
    const auto content = read_content("application/im-iscomposing+xml;charset=utf-8", row.document);
    REQUIRE(content.ok());
    CHECK(content->kind == ContentKind::composing);
    CHECK(content->composing.is_active == row.is_active);
    CHECK(content->composing.content_type == row.content_type);
    CHECK(content->composing.refresh_s == row.refresh_s);
    CHECK(content->composing.last_active == row.last_active);
    CHECK(content->text.empty());
  }
}

TEST_CASE("a document that is not well-formed, or could grow, is refused where that shows") {
  struct Row {
    std::string_view document;
    int place;
  };
  const Row rows[] = {
      {"", 0},
      {"  ", 2},
      {"text", 0},
      {"&lt;<a/>", 1},
      {"<![CDATA[a]]><a/>", 9},
      {"<a><b>c</b>", 11},
      {"<a><b>c</a>", 10},
      {"<a></a></a>", 9},
      {"<a/><b/>", 6},
      {"<a/>text", 4},
      {"<a/>&amp;", 5},
      {"<a></a", 6},
      {"<a", 2},
      {"<a /", 3},
      {"<a / >", 3},
      {"<a x/>", 4},
      {"<a x=1/>", 5},
      {"<a x='<'/>", 8},
      {"<a x=\"1'/>", 6},
      {"<a =\"1\"/>", 3},
      {"< a/>", 1},
      {"<1/>", 1},
      {"</a>", 2},
      {"<a><![CDATA[ </a>", 12},
      {"<a><!-- </a>", 7},
      {"<?xml <a/>", 2},
      {"<a>&nbsp;</a>", 4},
      {"<a>&lt</a>", 4},
      {"<a>&</a>", 4},
      {"<a>&#0;</a>", 4},
      {"<a>&#27;</a>", 4},
      {"<a>&#xD800;</a>", 4},
      {"<a>&#xFFFE;</a>", 4},
      {"<a>&#xFFFF;</a>", 4},
      {"<a>&#x110000;</a>", 4},
      {"<a>&#1114112;</a>", 4},
      {"<a>&#x;</a>", 4},
      {"<a>&#;</a>", 4},
      {"<a>&#x0000000041;</a>", 4},
      {"<a>\x1b[2J</a>", 3},
      {"<a>\0</a>"sv, 3},
      {"<!DOCTYPE a [<!ENTITY b \"bb\"><!ENTITY c \"&b;&b;\">]><a>&c;</a>", 1},
      {"<!DOCTYPE a SYSTEM \"file:///etc/passwd\"><a/>", 1},
      {"<a><!ENTITY b \"c\"></a>", 4},
      {"\xff\xfe<\0a\0"sv, 3},
  };
  for (const Row& row : rows) {
    CAPTURE(row.document);
    const test::GuardedText guarded(row.document);
    detail::XmlReader xml(guarded.view());
    const Error error = xml.read([](const detail::XmlReader&) {});
    CHECK(error.code == ErrorCode::bad_xml);
    CHECK(error.place == row.place);
  }
  for (std::string_view document : {"<isComposing/>", "<imdn><state>active</state></imdn>",
                                    "<isComposing><a><state>active</state></a></isComposing>"}) {
    CAPTURE(document);
    CHECK(read_content("application/im-iscomposing+xml", document).error().code ==
          ErrorCode::bad_xml);
  }
}

TEST_CASE("a document may be so deep and so large and no more") {
  const auto code = [](const std::string& document) {
    detail::XmlReader xml(document);
    return xml.read([](const detail::XmlReader&) {}).code;
  };
  CHECK(code(nested(detail::XmlReader::max_depth)) == ErrorCode::none);
  CHECK(code(nested(detail::XmlReader::max_depth + 1)) == ErrorCode::bad_xml);
  const std::string around = "<a></a>";
  std::string text(detail::XmlReader::max_size - around.size(), 'x');
  CHECK(code("<a>" + text + "</a>") == ErrorCode::none);
  text += 'x';
  CHECK(code("<a>" + text + "</a>") == ErrorCode::bad_xml);
}

TEST_CASE("a notification is read with its type and status") {
  struct Row {
    std::string_view inside;
    NotificationType type;
    NotificationStatus status;
  };
  using Type = NotificationType;
  using Status = NotificationStatus;
  const Row rows[] = {
      {"<delivery-notification><status><delivered/></status></delivery-notification>",
       Type::delivery, Status::delivered},
      {"<delivery-notification><status><failed/></status></delivery-notification>", Type::delivery,
       Status::failed},
      {"<delivery-notification><status><forbidden/></status></delivery-notification>",
       Type::delivery, Status::forbidden},
      {"<delivery-notification><status><error/><r:reason xmlns:r='http://example.org/r' "
       "code=\"415\">Unsupported</r:reason></status></delivery-notification>",
       Type::delivery, Status::error},
      {"<display-notification>\n<status>\n<displayed></displayed>\n</status>\n"
       "</display-notification>",
       Type::display, Status::displayed},
      {"<processing-notification><status><processed/></status></processing-notification>",
       Type::processing, Status::processed},
      {"<processing-notification><status><stored/></status></processing-notification>",
       Type::processing, Status::stored},
      {"<delivery-notification><status><revoked/></status></delivery-notification>", Type::delivery,
       Status::other},
      {"<delivery-notification><x><delivered/></x></delivery-notification>", Type::delivery,
       Status::other},
      {"<status><delivered/></status>", Type::other, Status::other},
      {"", Type::other, Status::other},
  };
  for (const Row& row : rows) {
    CAPTURE(row.inside);
    const std::string document =
        "<?xml version=\"1.0\"?><imdn xmlns=\"urn:ietf:params:xml:ns:imdn\">"
        "<message-id>a&lt;b</message-id><datetime>2008-04-04T12:16:49-05:00</datetime>"
        "<recipient-uri>im:bob@example.com</recipient-uri>"
        "<original-recipient-uri>im:list@example.com</original-recipient-uri>"
        "<subject>hi</subject>" +
        std::string(row.inside) + "</imdn>";
    const auto content = read_content("message/imdn+xml", document);
    REQUIRE(content.ok());
    CHECK(content->kind == ContentKind::notification);
    const Notification& notification = content->notification;
    CHECK(notification.type == row.type);
    CHECK(notification.status == row.status);
    CHECK(notification.message_id == "a<b");
    CHECK(notification.date_time == "2008-04-04T12:16:49-05:00");
    CHECK(notification.recipient_uri == "im:bob@example.com");
    CHECK(notification.original_recipient_uri == "im:list@example.com");
    CHECK(notification.subject == "hi");
  }
  for (std::string_view document :
       {"<imdn/>", "<imdn><message-id> </message-id></imdn>", "<x><message-id>1</message-id></x>",
        "<imdn><message-id>1</imdn>"}) {
    CAPTURE(document);
    CHECK(read_content("message/imdn+xml", document).error().code == ErrorCode::bad_xml);
  }
}

TEST_CASE("an envelope is opened, and its headers are read") {
  const auto content = read_content("Message/CPIM", cpim_body);
  REQUIRE(content.ok());
  CHECK(content->kind == ContentKind::text);
  CHECK(content->media_type == "text/plain");
  CHECK(content->charset == "utf-8");
  // Content-Length counts characters here, one octet too few, and cuts nothing off.
  CHECK(content->text == "h\xc3\xa9llo");
  REQUIRE(content->cpim.has_value());
  const CpimMessage& cpim = *content->cpim;
  CHECK(cpim.from.name == "Alice \xc3\x84 \"A\"");
  CHECK(cpim.from.uri == "sip:alice@example.org");
  REQUIRE(cpim.to.size() == 2);
  CHECK(cpim.to[0].name == "Bob B.");
  CHECK(cpim.to[0].uri == "sip:bob@example.org");
  CHECK(cpim.to[1].name.empty());
  REQUIRE(cpim.cc.size() == 1);
  CHECK(cpim.cc[0].uri == "im:carol@example.org");
  CHECK(*parse_date_time(cpim.date_time) == 1763861862);
  REQUIRE(cpim.subjects.size() == 2);
  CHECK(cpim.subjects[0].text == "on \\ and \t \xf0\x9f\x91\x8b");
  CHECK(cpim.subjects[0].language.empty());
  CHECK(cpim.subjects[1].text == "nichts");
  CHECK(cpim.subjects[1].language == "de");
  CHECK(cpim.message_id == "34jk324jx9");
  CHECK(cpim.original_to == "sip:list@example.org");
  CHECK(cpim.request.positive_delivery);
  CHECK(cpim.request.display);
  CHECK_FALSE(cpim.request.negative_delivery);
  CHECK_FALSE(cpim.request.processing);
  CHECK(content->wants_delivery_notification());

  const CpimField* colour = cpim.find("urn:example:mine", "colour");
  REQUIRE(colour != nullptr);
  CHECK(colour->value == "blue");
  CHECK(colour->parameters.find("shade") == "\"light; or so\"");
  const CpimField* undeclared = cpim.find("", "Their.Colour");
  REQUIRE(undeclared != nullptr);
  CHECK(undeclared->value == "red");
  CHECK(cpim.find(cpim_namespace, "Colour") == nullptr);
  CHECK(cpim.fields.size() == 14);
}

TEST_CASE("the envelope of a recorded message is opened") {
  const std::string bytes = test::read_data("corpus/b_message_auth.sip");
  MessageView message;
  REQUIRE_FALSE(message.parse(bytes));
  const auto content = read_content(message);
  REQUIRE(content.ok());
  CHECK(content->kind == ContentKind::text);
  CHECK(content->text == "The meeting is moved to 10:30 CET");
  REQUIRE(content->cpim.has_value());
  CHECK(content->cpim->from.uri == "sip:alice@atlanta.example.com");
  CHECK(content->cpim->message_id == "34jk324jx9");
  CHECK(content->cpim->date_time == "2025-11-23T01:37:42Z");
  CHECK_FALSE(content->wants_delivery_notification());
}

TEST_CASE("what pjsua sends before a text says that somebody is typing") {
  std::size_t composing = 0;
  std::size_t texts = 0;
  std::vector<std::string> names;
  for (const auto& [first, transport] : {std::pair(3, "udp"), {23, "tcp"}, {42, "udp"}}) {
    for (int i = 0; i < 12; ++i) {
      const std::string digits = (first + i < 10 ? "0" : "") + std::to_string(first + i);
      names.push_back(digits + "-" + transport + "-MESSAGE" + (i % 2 == 0 ? "" : "-auth"));
    }
  }
  for (const std::string& name : names) {
    CAPTURE(name);
    const std::string bytes = test::read_data("captures/pjsua/" + name + ".txt");
    MessageView message;
    REQUIRE_FALSE(message.parse(bytes));
    const auto content = read_content(message);
    REQUIRE(content.ok());
    if (content->kind == ContentKind::composing) {
      CHECK(content->composing.is_active);
      CHECK(content->composing.refresh_s == 120);
      ++composing;
    } else {
      REQUIRE(content->kind == ContentKind::text);
      CHECK_FALSE(content->text.empty());
      CHECK(content->text == message.body());
      ++texts;
    }
  }
  CHECK(composing == 18);
  CHECK(texts == 18);
}

TEST_CASE("envelopes as they are sent, if not as they should be, are opened") {
  struct Row {
    std::string_view body;
    std::string_view text;
    std::string_view from = "sip:a@b";
  };
  const Row rows[] = {
      {"From: <sip:a@b>\n\nContent-Type: text/plain\n\nhi", "hi"},
      {"From: <sip:a@b>\r\n\r\n\r\nhi", "hi"},
      {"From: sip:a@b\r\n\r\n\r\nhi", "hi"},
      {"\r\n\r\nhi", "hi", ""},
      {"From: <sip:a@b>\r\n\r\n\r\n hi", " hi"},
      {"From: <sip:a@b>\n\n\n\thi", "\thi"},
      {"from : <sip:a@b>\r\n\r\n\r\n", ""},
      {"From:<sip:a@b>\r\nFrom: <sip:other@b>\r\n\r\n\r\nhi", "hi"},
      {"Content-Type: Message/CPIM\r\nContent-Length: 9\r\n\r\nFrom: <sip:a@b>\r\n\r\n\r\nhi",
       "hi"},
      {"From: \"a <x>\\\" b\" <sip:a@b>\r\n\r\n\r\nhi", "hi"},
      {"NS: cpim <urn:ietf:params:cpim-headers:>\r\nNS: <urn:example:x>\r\nFrom: <sip:x@x>\r\n"
       "cpim.From: <sip:a@b>\r\nNS: <urn:ietf:params:cpim-headers:>\r\n\r\n\r\nhi",
       "hi"},
      {"From: <sip:a@b>\r\n\r\nContent-Length: 2\r\n\r\nhi\r\n\r\n", "hi"},
      {"From: <sip:a@b>\r\n\r\nContent-Length: 1\r\n\r\nhi", "hi"},
      {"From: <sip:a@b>\r\n\r\nContent-Length: 99\r\n\r\nhi\r\n", "hi\r\n"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.body);
    const auto content = read_content("message/cpim", row.body);
    REQUIRE(content.ok());
    CHECK(content->text == row.text);
    CHECK(content->cpim->from.uri == row.from);
  }
  // A prefix counts for what it was declared as, not for how it is spelt.
  const auto renamed = parse_cpim(
      "NS: x <urn:ietf:params:imdn>\r\nNS: imdn <urn:example:x>\r\nx.Message-ID: 1\r\n"
      "imdn.Message-ID: 2\r\n\r\n\r\n");
  REQUIRE(renamed.ok());
  CHECK(renamed->message_id == "1");
  const auto undeclared = parse_cpim("imdn.Message-ID: 3\r\nimdn.Message-ID: 4\r\n\r\n\r\n");
  CHECK(undeclared->message_id == "3");
}

TEST_CASE("escapes in an envelope's texts are decoded, and half of one stands for itself") {
  struct Row {
    std::string_view written;
    std::string text;
  };
  const Row rows[] = {
      {"plain", "plain"},
      {"\\\"\\'\\\\\\b\\t\\n\\r", "\"'\\\b\t\n\r"},
      {"\\u0041\\u00E9\\u20aC", "A\xc3\xa9\xe2\x82\xac"},
      {"\\uD83D\\uDC4B!", "\xf0\x9f\x91\x8b!"},
      {"\\uD83Dx\\uDC4B", bad + "x" + bad},
      {"\\uD83D", bad},
      {"\\u12", "\\u12"},
      {"\\u12xy", "\\u12xy"},
      {"\\x\\", "\\x\\"},
      {"\xff\\n", bad + "\n"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.written);
    const std::string body = "Subject: " + std::string(row.written) + "\r\n\r\n\r\n";
    const auto message = parse_cpim(body);
    REQUIRE(message.ok());
    REQUIRE(message->subjects.size() == 1);
    CHECK(message->subjects[0].text == row.text);
  }
}

TEST_CASE("an envelope that is not one is refused where that shows") {
  struct Row {
    std::string body;
    ErrorCode code;
    int place;
  };
  std::string many;
  for (int i = 0; i < SIPMSG_MAX_HEADERS; ++i) many += "X: 1\r\n";
  const Row rows[] = {
      {"", ErrorCode::bad_cpim, 0},
      {"hello", ErrorCode::bad_cpim, 0},
      {"From: <sip:a@b>\r\n", ErrorCode::bad_cpim, 17},
      {"From: <sip:a@b>\r\nhello\r\n\r\n\r\n", ErrorCode::bad_cpim, 17},
      {": x\r\n\r\n\r\n", ErrorCode::bad_cpim, 0},
      {"From: <sip:a@b\r\n\r\n\r\n", ErrorCode::bad_cpim, 0},
      {"From: \"a <sip:a@b>\r\n\r\n\r\n", ErrorCode::bad_cpim, 0},
      {"NS: imdn <urn\r\n\r\n\r\n", ErrorCode::bad_cpim, 0},
      {"imdn.Original-To: <a\r\n\r\n\r\n", ErrorCode::bad_cpim, 0},
      {"A: 1\r\nSubject: \x1b[2J\r\n\r\n\r\n", ErrorCode::bad_cpim, 6},
      {"A: 1\r\n\r\n", ErrorCode::bad_cpim, 8},
      {"A: 1\r\n\r\nContent-Type: text/plain", ErrorCode::bad_cpim, 8},
      {"A: 1\r\n\r\nhello\r\n\r\n", ErrorCode::bad_cpim, 8},
      {"A: 1\r\n\r\nContent-Type: text\r\n\r\n", ErrorCode::bad_cpim, 26},
      {"A: 1\r\n\r\nContent-Type: text/plain;=\r\n\r\n", ErrorCode::bad_cpim, 33},
      {"A: 1\r\n\r\nContent-Type: message/imdn+xml\r\n\r\n<imdn><", ErrorCode::bad_xml, 49},
      {many + "\r\n\r\n", ErrorCode::none, 0},
      {many + "X: 1\r\n\r\n\r\n", ErrorCode::too_many_headers, SIPMSG_MAX_HEADERS * 6},
  };
  for (const Row& row : rows) {
    CAPTURE(row.body);
    const test::GuardedText guarded(row.body);
    const auto content = read_content("message/cpim", guarded.view());
    CHECK(content.error().code == row.code);
    CHECK(content.error().place == row.place);
  }
}

TEST_CASE("of several parts the first text is taken, or else the best there is") {
  struct Row {
    std::string_view type;
    std::string_view body;
    ContentKind kind;
    std::string_view media_type;
    std::string_view text;
  };
  using Kind = ContentKind;
  const Row rows[] = {
      {"multipart/mixed;boundary=b", "--b\r\n\r\nhi\r\n--b--", Kind::text, "text/plain", "hi"},
      {"multipart/mixed; boundary=\"b c\"",
       "preamble\r\n--b c \r\nContent-Type: image/png\r\n\r\n\x89\r\n--b c\r\n"
       "content-type: text/plain\r\n\r\none\r\n\r\n--b c\r\n\r\ntwo\r\n--b c--\r\nepilogue",
       Kind::text, "text/plain", "one\r\n"},
      {"multipart/alternative;boundary=b",
       "--b\nContent-Type: text/html;charset=iso-8859-1\n\n<b>\xe9</b>\n--b--\n", Kind::html,
       "text/html", "<b>\xc3\xa9</b>"},
      {"multipart/alternative;boundary=b",
       "--b\r\nContent-Type: text/html\r\n\r\n<b>\r\n--b\r\nContent-Type: "
       "text/plain\r\n\r\nb\r\n--b--",
       Kind::text, "text/plain", "b"},
      {"multipart/mixed;boundary=b",
       "--b\r\nContent-Type: multipart/alternative;boundary=bb\r\n\r\n--bb\r\n\r\nin\r\n--bb--\r\n"
       "--b\r\n\r\nout\r\n--b--",
       Kind::text, "text/plain", "in"},
      {"multipart/mixed;boundary=b",
       "--b\r\nContent-Type: application/im-iscomposing+xml\r\n\r\n<broken\r\n--b\r\n"
       "Content-Type: image/png\r\n\r\n1\r\n--b\r\nContent-Type: image/gif\r\n\r\n2\r\n--b--",
       Kind::other, "image/png", ""},
      {"multipart/mixed;boundary=b",
       "--b\r\nContent-Transfer-Encoding: base64\r\n\r\naGk=\r\n--b\r\n"
       "Content-Transfer-Encoding: 8bit\r\n\r\nhi\r\n--b--",
       Kind::text, "text/plain", "hi"},
      {"multipart/mixed;boundary=b", "--b\r\n\r\nnever closed", Kind::text, "text/plain",
       "never closed"},
      {"multipart/mixed;boundary=b", "--b\r\n\r\n--bc\r\n--b-\r\n--b--", Kind::text, "text/plain",
       "--bc\r\n--b-"},
      {"multipart/x-unknown;boundary=b", "--b\r\n\r\n\r\n--b--", Kind::text, "text/plain", ""},
      {"multipart/mixed;boundary=b",
       "--b\r\nContent-Type: message/cpim\r\n\r\nFrom: <sip:a@b>\r\n\r\n\r\nhi\r\n--b--",
       Kind::text, "text/plain", "hi"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.body);
    const test::GuardedText guarded(row.body);
    const auto content = read_content(row.type, guarded.view());
    REQUIRE(content.ok());
    CHECK(content->kind == row.kind);
    CHECK(content->media_type == row.media_type);
    CHECK(content->text == row.text);
  }
}

TEST_CASE("a multipart body without parts is refused where that shows") {
  struct Row {
    std::string_view type;
    std::string_view body;
    ErrorCode code;
    int place;
  };
  const Row rows[] = {
      {"multipart/mixed", "--b\r\n\r\nhi\r\n--b--", ErrorCode::bad_multipart, 0},
      {"multipart/mixed;boundary=\"\"", "--\r\n\r\nhi\r\n----", ErrorCode::bad_multipart, 0},
      {"multipart/mixed;boundary=b", "", ErrorCode::bad_multipart, 0},
      {"multipart/mixed;boundary=b", "--c\r\n\r\nhi", ErrorCode::bad_multipart, 0},
      {"multipart/mixed;boundary=b", "--b--", ErrorCode::bad_multipart, 0},
      {"multipart/mixed;boundary=b", "--b\r\n--b--", ErrorCode::bad_multipart, 5},
      {"multipart/mixed;boundary=b", "--b\r\nno header\r\n\r\n--b--", ErrorCode::bad_multipart, 5},
      {"multipart/mixed;boundary=b", "--b\r\nContent-Type: x\r\n\r\n\r\n--b--",
       ErrorCode::bad_multipart, 20},
      {"multipart/mixed;boundary=b", "--b\r\nno\r\n--b\r\nContent-Type: x\r\n\r\n\r\n--b--",
       ErrorCode::bad_multipart, 5},
      {"multipart/mixed;boundary=b", "--b\r\nContent-Type: message/cpim\r\n\r\nhello\r\n--b--",
       ErrorCode::bad_cpim, 35},
      {"multipart/mixed;boundary=012345678901234567890123456789012345678901234567890123456789"
       "01234567890",
       "--01234567890123456789012345678901234567890123456789012345678901234567890\r\n\r\nhi",
       ErrorCode::bad_multipart, 0},
  };
  for (const Row& row : rows) {
    CAPTURE(row.body);
    const auto content = read_content(row.type, row.body);
    CHECK(content.error().code == row.code);
    CHECK(content.error().place == row.place);
  }
}

TEST_CASE("bodies within bodies are opened up to a limit") {
  std::string type = "text/plain";
  std::string body = "deep";
  for (int depth = 1; depth <= 6; ++depth) {
    body = "From: <sip:" + std::to_string(depth) + "@x>\r\n\r\nContent-Type: " + type + "\r\n\r\n" +
           body;
    type = "message/cpim";
    const auto content = read_content(type, body);
    REQUIRE(content.ok());
    const bool is_opened = depth <= detail::max_content_depth;
    CHECK(content->kind == (is_opened ? ContentKind::text : ContentKind::other));
    CHECK(content->text == (is_opened ? "deep" : ""));
    CHECK(content->cpim->from.uri == "sip:" + std::to_string(depth) + "@x");
  }
}

TEST_CASE("what is of no known kind is handed over as it came") {
  const auto image = read_content("Image/PNG;x=1", "\x89PNG");
  REQUIRE(image.ok());
  CHECK(image->kind == ContentKind::other);
  CHECK(image->media_type == "image/png");
  CHECK(image->body == "\x89PNG");
  CHECK(image->text.empty());
  const auto html = read_content("text/html", "<b>hi</b>");
  CHECK(html->kind == ContentKind::html);
  CHECK(html->text == "<b>hi</b>");
  const auto encoded =
      read_content("message/cpim", "A: 1\r\n\r\nContent-Transfer-Encoding: base64\r\n\r\naGk=");
  CHECK(encoded->kind == ContentKind::other);
  CHECK(encoded->body == "aGk=");
  CHECK(read_content("text", "hi").error().code == ErrorCode::bad_media_type);
  CHECK(read_content("text/plain;=", "hi").error().code == ErrorCode::bad_media_type);
  CHECK(read_content("text/plain;=", "hi").error().place == 11);
}

TEST_CASE("a document that somebody is typing is written as it is read") {
  CHECK(written_by([](Output& out) { write_composing(out, true, 90); }) ==
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
        "<isComposing xmlns=\"urn:ietf:params:xml:ns:im-iscomposing\">\n"
        "<state>active</state>\n"
        "<contenttype>text/plain</contenttype>\n"
        "<refresh>90</refresh>\n"
        "</isComposing>\n");
  const std::string idle = written_by([](Output& out) { write_composing(out, false, 0, "a<&>b"); });
  const auto composing = parse_composing(idle);
  REQUIRE(composing.ok());
  CHECK_FALSE(composing->is_active);
  CHECK(composing->content_type == "a<&>b");
  CHECK(idle.find("refresh") == std::string::npos);
  CHECK(error_of([](Output& out) { write_composing(out, true, 0, "a\x1b"); }) ==
        "forbidden_octet"sv);
}

TEST_CASE("an envelope is written as it is read") {
  CpimStart start;
  start.from = "sip:alice@example.org";
  start.from_name = "Alice \"\\\" \n \x1f\x7f \xc3\xa9 \xff";
  start.to = "sip:bob@example.org";
  start.subject = "a\tb\\n";
  start.date_s = 1763861862;
  start.message_id = "m-1";
  start.request.positive_delivery = true;
  start.request.display = true;
  const std::string body = written_by([&](Output& out) { write_cpim(out, start, "hi"); });
  CHECK(body == "From: \"Alice \\\"\\\\\\\" \\u000a \\u001f\\u007f \xc3\xa9 " + bad +
                    "\" <sip:alice@example.org>\r\n"
                    "To: <sip:bob@example.org>\r\n"
                    "DateTime: 2025-11-23T01:37:42Z\r\n"
                    "Subject: a\\u0009b\\\\n\r\n"
                    "NS: imdn <urn:ietf:params:imdn>\r\n"
                    "imdn.Message-ID: m-1\r\n"
                    "imdn.Disposition-Notification: positive-delivery, display\r\n"
                    "\r\n"
                    "Content-Type: text/plain;charset=utf-8\r\n"
                    "Content-Length: 2\r\n"
                    "\r\n"
                    "hi");
  const auto content = read_content("message/cpim", body);
  REQUIRE(content.ok());
  CHECK(content->text == "hi");
  CHECK(content->cpim->from.name == "Alice \"\\\" \n \x1f\x7f \xc3\xa9 " + bad);
  CHECK(content->cpim->subjects.at(0).text == start.subject);
  CHECK(content->wants_delivery_notification());
}

TEST_CASE("an envelope cannot be broken open from inside") {
  const auto error_with = [](auto change) {
    CpimStart start;
    start.from = "sip:a@b";
    start.to = "sip:c@d";
    change(start);
    return error_of([&](Output& out) { write_cpim(out, start, "hi"); });
  };
  CHECK(error_with([](CpimStart&) {}) == "none"sv);
  CHECK(error_with([](CpimStart& start) { start.from = ""; }) == "forbidden_octet"sv);
  CHECK(error_with([](CpimStart& start) { start.from = "sip:a@b>"; }) == "forbidden_octet"sv);
  CHECK(error_with([](CpimStart& start) { start.to = "a\r\nb"; }) == "forbidden_octet"sv);
  CHECK(error_with([](CpimStart& start) { start.message_id = "a\r\nb"; }) == "bad_token"sv);
  CHECK(error_with([](CpimStart& start) { start.content_type = "a\r\n"; }) == "forbidden_octet"sv);
  CHECK(error_with([](CpimStart& start) { start.subject = "a\r\nb"; }) == "none"sv);
  CHECK(error_with([](CpimStart& start) { start.date_s = -1; }) == "bad_argument"sv);
  CHECK(error_with([](CpimStart& start) { start.date_s = 253402300800; }) == "bad_argument"sv);
  CHECK(error_with([](CpimStart& start) { start.request.display = true; }) == "bad_argument"sv);
}

TEST_CASE("who asks for it is told that his message arrived") {
  const auto received = read_content("message/cpim", cpim_body);
  REQUIRE(received->wants_delivery_notification());
  const std::string body = written_by([&](Output& out) {
    write_notification_for(out, *received->cpim, NotificationType::delivery,
                           NotificationStatus::delivered, "reply-1", 1763861900);
  });
  CHECK(body ==
        "From: <sip:bob@example.org>\r\n"
        "To: <sip:alice@example.org>\r\n"
        "DateTime: 2025-11-23T01:38:20Z\r\n"
        "NS: imdn <urn:ietf:params:imdn>\r\n"
        "imdn.Message-ID: reply-1\r\n"
        "\r\n"
        "Content-Disposition: notification\r\n"
        "Content-Type: message/imdn+xml\r\n"
        "Content-Length: 371\r\n"
        "\r\n"
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
        "<imdn xmlns=\"urn:ietf:params:xml:ns:imdn\">\n"
        "<message-id>34jk324jx9</message-id>\n"
        "<datetime>2025-11-23T02:37:42+01:00</datetime>\n"
        "<recipient-uri>sip:bob@example.org</recipient-uri>\n"
        "<original-recipient-uri>sip:list@example.org</original-recipient-uri>\n"
        "<delivery-notification><status><delivered/></status></delivery-notification>\n"
        "</imdn>\n");
  const auto content = read_content("message/cpim", body);
  REQUIRE(content.ok());
  CHECK(content->kind == ContentKind::notification);
  CHECK(content->notification.type == NotificationType::delivery);
  CHECK(content->notification.status == NotificationStatus::delivered);
  CHECK(content->notification.message_id == "34jk324jx9");
  CHECK(content->cpim->message_id == "reply-1");
  CHECK_FALSE(content->wants_delivery_notification());
}

TEST_CASE("a notification is not answered with another, even where it asks") {
  const auto content = read_content(
      "message/cpim",
      "From: <sip:a@b>\r\nTo: <sip:c@d>\r\nimdn.Message-ID: 1\r\n"
      "imdn.Disposition-Notification: positive-delivery\r\n\r\nContent-Type: message/imdn+xml\r\n"
      "\r\n<imdn><message-id>0</message-id></imdn>");
  REQUIRE(content.ok());
  CHECK(content->cpim->request.positive_delivery);
  CHECK_FALSE(content->wants_delivery_notification());
}

TEST_CASE("a notification that cannot be right is not written") {
  const auto error_with = [](std::string_view headers, NotificationType type,
                             NotificationStatus status, std::string_view id = "r") {
    const std::string body = std::string(headers) + "\r\n\r\n";
    const auto received = parse_cpim(body);
    REQUIRE(received.ok());
    return error_of([&, type = type, status = status, id = id](Output& out) {
      write_notification_for(out, *received, type, status, id, 0);
    });
  };
  using Type = NotificationType;
  using Status = NotificationStatus;
  constexpr std::string_view good =
      "From: <sip:a@b>\r\nTo: <sip:c@d>\r\nimdn.Message-ID: a&<\xff>\r\n";
  CHECK(error_with(good, Type::delivery, Status::delivered) == "none"sv);
  CHECK(error_with(good, Type::delivery, Status::error) == "none"sv);
  CHECK(error_with(good, Type::display, Status::displayed) == "none"sv);
  CHECK(error_with(good, Type::processing, Status::stored) == "none"sv);
  CHECK(error_with(good, Type::delivery, Status::displayed) == "bad_argument"sv);
  CHECK(error_with(good, Type::display, Status::delivered) == "bad_argument"sv);
  CHECK(error_with(good, Type::other, Status::error) == "bad_argument"sv);
  CHECK(error_with(good, Type::delivery, Status::other) == "bad_argument"sv);
  CHECK(error_with(good, Type::delivery, Status::delivered, "") == "bad_argument"sv);
  CHECK(error_with(good, Type::delivery, Status::delivered, "a b") == "bad_token"sv);
  CHECK(error_with("From: <sip:a@b>\r\nTo: <sip:c@d>\r\n", Type::delivery, Status::delivered) ==
        "bad_argument"sv);
  CHECK(error_with("To: <sip:c@d>\r\nimdn.Message-ID: 1\r\n", Type::delivery, Status::delivered) ==
        "forbidden_octet"sv);
  CHECK(error_with("From: <sip:a b>\r\nTo: <sip:c@d>\r\nimdn.Message-ID: 1\r\n", Type::delivery,
                   Status::delivered) == "forbidden_octet"sv);
}

TEST_CASE("a body cut off anywhere is read without a step beyond its end") {
  const std::string multipart =
      "--b\r\nContent-Type: message/cpim\r\n\r\n" + cpim_body + "\r\n--b--\r\n";
  const std::string composing = written_by([](Output& out) { write_composing(out, true, 90); });
  const std::pair<std::string_view, std::string_view> bodies[] = {
      {"multipart/mixed;boundary=b", multipart},
      {"message/cpim", cpim_body},
      {"application/im-iscomposing+xml", composing},
      {"text/plain", "\xf0\x9f\x91\x8b"}};
  for (const auto& [type, body] : bodies) {
    test::GuardedText guarded(body);
    for (std::size_t size = 0; size <= body.size(); ++size) {
      guarded.set(body.substr(0, size));
      const auto content = read_content(type, guarded.view());
      CHECK_UNARY(content.ok() || content.error().place <= static_cast<int>(size));
      if (content.ok()) CHECK_UNARY(is_valid_utf8(content->text));
    }
  }
}

}  // namespace test_content
