// One message: start line, header index, frame (RFC 3261 7, 18.3, 25.1), and what makes it valid.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "support/data.hpp"
#include "support/guarded.hpp"
#include "support/sipmsg.hpp"

namespace test_message {

using namespace sipmsg;
using namespace std::literals;

namespace {

const std::string small =
    "MESSAGE sip:bob@example.org SIP/2.0\r\n"
    "Via: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1\r\n"
    "From: <sip:alice@example.org>;tag=1\r\n"
    "To: <sip:bob@example.org>\r\n"
    "Call-ID: a@b\r\n"
    "CSeq: 1 MESSAGE\r\n"
    "Content-Length: 5\r\n"
    "\r\n"
    "Hello";

/// `text` with the first `from` in it replaced.
std::string with(std::string text, std::string_view from, std::string_view to) {
  const std::size_t at = text.find(from);
  REQUIRE(at != std::string::npos);
  return text.replace(at, from.size(), to);
}

std::string name_of(Error error) { return error.name(); }

std::string values_of(const MessageView& message, HeaderId id) {
  std::string all;
  for (std::string_view value : message.values(id)) all += "[" + std::string(value) + "]";
  return all;
}

}  // namespace

TEST_CASE("a request is indexed over the bytes it came in") {
  const test::GuardedText bytes(small);
  MessageView message;
  CHECK_FALSE(message.parse(bytes.view()));
  CHECK(message.is_request());
  CHECK_FALSE(message.is_response());
  CHECK(message.method() == Method::message);
  CHECK(message.method_text() == "MESSAGE");
  CHECK(message.request_uri_text() == "sip:bob@example.org");
  CHECK(message.request_uri()->user == "bob");
  CHECK(message.status_code() == 0);
  CHECK(message.header_count() == 6);
  CHECK(message.field(0).name == "Via");
  CHECK(message.field(0).id == HeaderId::via);
  CHECK(message.field(5).value == "5");
  CHECK(message.field_line(1) == "From: <sip:alice@example.org>;tag=1\r\n");
  CHECK(message.field_line(5) == "Content-Length: 5\r\n");
  CHECK(message.top_via()->branch == "z9hG4bK1");
  CHECK(message.from()->tag() == "1");
  CHECK(message.to()->tag() == "");
  CHECK(message.cseq()->number == 1);
  CHECK(message.call_id() == "a@b");
  CHECK(message.content_length() == 5);
  CHECK(message.max_forwards() == std::nullopt);
  CHECK(message.body() == "Hello");
  CHECK(message.bytes() == small);
  CHECK(message.size() == small.size());
  CHECK(message.bytes().data() == bytes.view().data());
  CHECK(message.body().data() == bytes.view().data() + message.body_offset());
  CHECK(message.offset_of(message.call_id()) == small.find("a@b"));
  CHECK_FALSE(validate(message));
}

TEST_CASE("a response is told by its first word, its phrase may be anything or missing") {
  struct Row {
    std::string_view line;
    int code;
    std::string_view phrase;
  };
  const Row rows[] = {
      {"SIP/2.0 200 OK", 200, "OK"},
      {"sip/2.0 401 Unauthorized", 401, "Unauthorized"},
      {"SIP/2.0 100 ", 100, ""},
      {"SIP/2.0 699", 699, ""},
      {"SIP/2.0 200  = 2**3 * 5**2 \xd0\xbd\xd0\xbe\tx", 200, " = 2**3 * 5**2 \xd0\xbd\xd0\xbe\tx"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.line);
    const test::GuardedText bytes(std::string(row.line) + "\r\nCSeq: 1 A\r\n\r\n");
    MessageView message;
    CHECK_FALSE(message.parse(bytes.view()));
    CHECK(message.is_response());
    CHECK(message.status_code() == row.code);
    CHECK(message.reason_phrase() == row.phrase);
    CHECK(message.method() == Method::other);
    CHECK(message.method_text().empty());
    CHECK(message.header_count() == 1);
  }
}

TEST_CASE("a start line with a mistake is refused, and the headers can be asked all the same") {
  struct Row {
    std::string_view line;
    ErrorCode code;
    int place;
  };
  const Row rows[] = {
      {"MESSAGE", ErrorCode::bad_start_line, 7},
      {"MESSAGE sip:a", ErrorCode::bad_start_line, 13},
      {"MESSAGE  SIP/2.0", ErrorCode::bad_start_line, 8},
      {"MESSAGE sip:a  SIP/2.0", ErrorCode::bad_start_line, 8},
      {"MESSAGE  sip:a SIP/2.0", ErrorCode::bad_start_line, 8},
      {"MESSAGE sip:a SIP/2.0 ", ErrorCode::bad_start_line, 8},
      {"MESSAGE sip:a b SIP/2.0", ErrorCode::bad_start_line, 8},
      {"MESSAGE sip:a\tb SIP/2.0", ErrorCode::bad_start_line, 8},
      {"MESSAGE sip:a HTTP/1.1", ErrorCode::bad_start_line, 14},
      {"MESSAGE sip:a SIP", ErrorCode::bad_start_line, 14},
      {"MESSAGE sip:a SIP/7.0", ErrorCode::bad_version, 14},
      {"MESSAGE sip:a SIP/2.00", ErrorCode::bad_version, 14},
      {" MESSAGE sip:a SIP/2.0", ErrorCode::bad_method, 0},
      {"MES(SAGE sip:a SIP/2.0", ErrorCode::bad_method, 0},
      {"M\xc3\x84SSAGE sip:a SIP/2.0", ErrorCode::bad_method, 0},
      {"MESSAGE sip:a\0 SIP/2.0"sv, ErrorCode::bad_start_line, 13},
      {"SIP/2.0", ErrorCode::bad_start_line, 7},
      {"SIP/2.0 ", ErrorCode::bad_status_code, 8},
      {"SIP/2.0 20 OK", ErrorCode::bad_status_code, 8},
      {"SIP/2.0 2000 OK", ErrorCode::bad_status_code, 8},
      {"SIP/2.0 099 OK", ErrorCode::bad_status_code, 8},
      {"SIP/2.0 700 OK", ErrorCode::bad_status_code, 8},
      {"SIP/2.0 20x OK", ErrorCode::bad_status_code, 8},
      {"SIP/2.0 4294967301 better not break the receiver", ErrorCode::bad_status_code, 8},
      {"SIP/3.0 200 OK", ErrorCode::bad_version, 0},
      {"SIP/2.0  200 OK", ErrorCode::bad_status_code, 8},
      {"SIP/2.0\t200 OK", ErrorCode::bad_start_line, 7},
  };
  for (const Row& row : rows) {
    CAPTURE(row.line);
    const test::GuardedText bytes(std::string(row.line) + "\r\nCall-ID: x\r\n\r\n");
    MessageView message;
    const Error error = message.parse(bytes.view());
    CHECK(name_of(error) == error_name(row.code));
    CHECK(error.place == row.place);
    CHECK(message.call_id() == "x");
  }
}

TEST_CASE("header lines are indexed in order, known or not, folded or not") {
  const test::GuardedText bytes(
      "A x:y SIP/2.0\r\n"
      "TO :\r\n sip:a@h;\r\n\ttag=1\r\n"
      "NewFangled:   one\r\n two \r\n"
      "m:*\r\n"
      "s :\r\n"
      "Empty:\r\n"
      "Content-Type:text/plain\r\n"
      "newfangled: again\r\n"
      "X!%*+`'~_.-: any token\r\n"
      "\r\n"sv);
  MessageView message;
  CHECK_FALSE(message.parse(bytes.view()));
  CHECK(message.header_count() == 8);
  CHECK(message.header(HeaderId::to) == "sip:a@h;\r\n\ttag=1");
  CHECK(message.to()->tag() == "1");
  CHECK(message.header("NEWFANGLED") == "one\r\n two");
  CHECK(message.header(HeaderId::contact) == "*");
  CHECK(message.has(HeaderId::subject));
  CHECK(message.header(HeaderId::subject).empty());
  CHECK(message.header("S") == "");
  CHECK(message.header("empty") == "");
  CHECK(message.header("Subject") == "");
  CHECK(message.header("x!%*+`'~_.-") == "any token");
  CHECK(message.header("Nothing") == std::nullopt);
  CHECK(message.header("Via") == std::nullopt);
  CHECK(message.header(HeaderId::via).empty());
  CHECK_FALSE(message.has(HeaderId::via));
  CHECK(message.field(1).id == HeaderId::other);
  CHECK(message.field(1).name == "NewFangled");
  CHECK(message.find_next(1) == message.header_count());
  CHECK(message.find(HeaderId::other) == message.header_count());
  CHECK(message.field_line(1) == "NewFangled:   one\r\n two \r\n");
  CHECK(message.body().empty());
}

TEST_CASE("the elements of a list come out over all its lines") {
  const test::GuardedText bytes(
      "A x:y SIP/2.0\r\n"
      "Contact: \"a, b\" <sip:a,b@h>;x=\"1,2\" , sip:c@h\r\n"
      "Via: SIP/2.0/UDP a\r\n"
      "m: <sip:d@h>\r\n"
      "v: SIP/2.0/TCP b ,\r\n SIP/2.0/UDP c\r\n"
      "Contact:,x,\r\n"
      "\r\n"sv);
  MessageView message;
  CHECK_FALSE(message.parse(bytes.view()));
  CHECK(values_of(message, HeaderId::contact) ==
        "[\"a, b\" <sip:a,b@h>;x=\"1,2\"][sip:c@h][<sip:d@h>][][x][]");
  CHECK(values_of(message, HeaderId::via) == "[SIP/2.0/UDP a][SIP/2.0/TCP b][SIP/2.0/UDP c]");
  CHECK(values_of(message, HeaderId::route).empty());
  CHECK(message.values(HeaderId::route).empty());
  CHECK_FALSE(message.values(HeaderId::via).empty());
  CHECK(message.find(HeaderId::contact) == 0);
  CHECK(message.find_next(0) == 2);
  CHECK(message.find_next(2) == 4);
  CHECK(message.find_next(4) == message.header_count());
  std::size_t fields[6] = {};
  std::size_t i = 0;
  const HeaderValues contacts = message.values(HeaderId::contact);
  for (auto it = contacts.begin(); it != contacts.end(); ++it) fields[i++] = it.field();
  CHECK(fields[1] == 0);
  CHECK(fields[2] == 2);
  CHECK(fields[5] == 4);
}

TEST_CASE("a header line with a mistake is named, the others are read") {
  struct Row {
    std::string_view line;
    ErrorCode code;
    int place;  ///< in the line
  };
  const Row rows[] = {
      {"no colon", ErrorCode::bad_header_line, 2},
      {": no name", ErrorCode::bad_header_line, 0},
      {"two words: x", ErrorCode::bad_header_line, 3},
      {"br(ack)et: x", ErrorCode::bad_header_line, 2},
      {"\xc3\xa4: x", ErrorCode::bad_header_line, 0},
      {"a\0b: x"sv, ErrorCode::bad_header_line, 1},
      {"folded\r\n : x", ErrorCode::bad_header_line, 6},
      {"a: b\rc: d", ErrorCode::bad_line_end, 4},
      {"a: b\r", ErrorCode::bad_line_end, 4},
      {"a:\r b", ErrorCode::bad_line_end, 2},
      {"a\r: b", ErrorCode::bad_line_end, 1},
      {"a: b\nc: d", ErrorCode::bad_line_end, 4},
      {"a: b\n c", ErrorCode::bad_line_end, 4},
  };
  const std::string start = "A x:y SIP/2.0\r\n";
  for (const Row& row : rows) {
    CAPTURE(row.line);
    const test::GuardedText bytes(start + std::string(row.line) + "\r\nCall-ID: x\r\n\r\nbody");
    MessageView message;
    const Error error = message.parse(bytes.view());
    CHECK(name_of(error) == error_name(row.code));
    CHECK(error.place == static_cast<int>(start.size()) + row.place);
    CHECK(message.call_id() == "x");
    CHECK(message.body() == "body");
  }
}

TEST_CASE("a line that begins with a blank right behind the start line folds nothing") {
  MessageView message;
  CHECK(message.parse("A x:y SIP/2.0\r\n B: c\r\nD: e\r\n\r\n").code == ErrorCode::bad_header_line);
  CHECK(message.header_count() == 1);
}

TEST_CASE("octets that end no line pass through a value: NUL, tabs, UTF-8") {
  const std::string value = "\"\\\0\x01\x7f\t\xc3\xa9\xff\" <sip:a@h>"s;
  const std::string bytes = "A x:y SIP/2.0\r\nFrom: " + value + "\r\n\r\n\0\r\n"s;
  MessageView message;
  CHECK_FALSE(message.parse(bytes));
  CHECK(message.header(HeaderId::from) == value);
  CHECK(message.body() == "\0\r\n"sv);
  CHECK(message.from().ok());
}

TEST_CASE("the frame of a datagram is checked") {
  const std::string head = "A x:y SIP/2.0\r\nTo: x\r\n";
  struct Row {
    std::string_view rest;
    ErrorCode code;
    std::string_view body;
  };
  const Row rows[] = {
      {"\r\nabc", ErrorCode::none, "abc"},
      {"\r\n", ErrorCode::none, ""},
      {"l: 3\r\n\r\nabc", ErrorCode::none, "abc"},
      {"\r\n abc\r\n\tdef", ErrorCode::none, " abc\r\n\tdef"},
      {"Content-Length: 2\r\n\r\nabc", ErrorCode::none, "ab"},
      {"Content-Length: 0\r\n\r\nabc", ErrorCode::none, ""},
      {"Content-Length: 0002\r\n\r\nabc", ErrorCode::none, "ab"},
      {"Content-Length: 2\r\nl: 2\r\n\r\nabc", ErrorCode::none, "ab"},
      {"Content-Length: 4\r\n\r\nabc", ErrorCode::content_length_beyond, "abc"},
      {"Content-Length: 99999999999999999999\r\n\r\nabc", ErrorCode::content_length_beyond, "abc"},
      {"Content-Length: -999\r\n\r\nabc", ErrorCode::bad_content_length, "abc"},
      {"Content-Length:\r\n\r\nabc", ErrorCode::bad_content_length, "abc"},
      {"Content-Length: 3 3\r\n\r\nabc", ErrorCode::bad_content_length, "abc"},
      {"Content-Length: 3,3\r\n\r\nabc", ErrorCode::bad_content_length, "abc"},
      {"Content-Length: 2\r\nl: 3\r\n\r\nabc", ErrorCode::conflicting_content_length, "abc"},
      {"l: 3\r\nX: y\r\nl: 3\r\nl: 03\r\n\r\nabc", ErrorCode::conflicting_content_length, "abc"},
      {"", ErrorCode::missing_blank_line, ""},
      {"X: y", ErrorCode::missing_blank_line, ""},
      {"X: y\r\n", ErrorCode::missing_blank_line, ""},
      {"X: y\r\n z", ErrorCode::missing_blank_line, ""},
      {"\r", ErrorCode::bad_line_end, ""},
      {"\nabc", ErrorCode::bad_line_end, "abc"},
      {"X: y\n\nabc", ErrorCode::bad_line_end, "abc"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.rest);
    const std::string whole = head + std::string(row.rest);
    const test::GuardedText bytes(whole);
    MessageView message;
    CHECK(name_of(message.parse(bytes.view())) == error_name(row.code));
    CHECK(message.header(HeaderId::to) == "x");
    CHECK(message.body() == row.body);
    CHECK(message.bytes().size() == message.size());
  }
}

TEST_CASE("on a stream the end of the body has to be known") {
  const std::string head = "A x:y SIP/2.0\r\nTo: x\r\n";
  struct Row {
    std::string_view rest;
    ErrorCode code;
    std::size_t beyond;  ///< how much longer the message is than what came
  };
  const Row rows[] = {
      {"l: 3\r\n\r\nabc", ErrorCode::none, 0},
      {"l: 3\r\n\r\nabcdef", ErrorCode::none, 0},
      {"l: 3\r\n\r\nab", ErrorCode::incomplete, 1},
      {"l: 3\r\n\r\n", ErrorCode::incomplete, 3},
      {"l: 3\r\n\r", ErrorCode::incomplete, 0},
      {"l: 3\r\n", ErrorCode::incomplete, 0},
      {"\r\nabc", ErrorCode::missing_content_length, 0},
      {"l: -1\r\n\r\nabc", ErrorCode::bad_content_length, 0},
      {"l: 1\r\nl: 2\r\n\r\nabc", ErrorCode::conflicting_content_length, 0},
      {"l: 65535\r\n\r\nabc", ErrorCode::too_large, 0},
      {"l: 65536\r\n\r\nabc", ErrorCode::too_large, 0},
      {"l: 99999999999999999999999\r\n\r\nabc", ErrorCode::too_large, 0},
      {"no colon\r\nl: 3\r\n\r\nabc", ErrorCode::bad_header_line, 0},
      // the frame comes before any other mistake, and a mistake before what is missing
      {"no colon\r\n\r\nabc", ErrorCode::missing_content_length, 0},
      {"no colon\r\nl: 1\r\nl: 2\r\n\r\n", ErrorCode::conflicting_content_length, 0},
      {"no colon\r\na: b\rc\r\nl: 3\r\n\r\nabc", ErrorCode::bad_line_end, 0},
      {"no colon\r\nl: 3\r\n\r\n", ErrorCode::bad_header_line, 3},
      {"no colon\r\nl: 3\r\n", ErrorCode::incomplete, 0},
  };
  for (const Row& row : rows) {
    CAPTURE(row.rest);
    const std::string whole = head + std::string(row.rest);
    const test::GuardedText bytes(whole);
    MessageView message;
    const Error error = message.parse(bytes.view(), Framing::stream);
    CHECK(name_of(error) == error_name(row.code));
    CHECK(message.header(HeaderId::to) == "x");
    CHECK(message.bytes().size() <= whole.size());
    CHECK(message.size() - message.bytes().size() == row.beyond);
    CHECK(message.bytes().substr(message.body_offset()) == message.body());
  }
}

TEST_CASE("a message whose body comes later is completed without reading it again") {
  std::string bytes = small.substr(0, small.size() - 3);
  MessageView message;
  CHECK(message.parse(bytes, Framing::stream).code == ErrorCode::incomplete);
  CHECK(message.body() == "He");
  CHECK(message.size() == small.size());
  const std::string more = small.substr(0, small.size() - 1);
  message.extend(more);
  CHECK(message.body() == "Hell");
  CHECK(message.size() == small.size());
  const std::string elsewhere = small + "MESSAGE";
  message.extend(elsewhere);
  CHECK(message.bytes() == small);
  CHECK(message.body().data() == elsewhere.data() + message.body_offset());
  CHECK(message.call_id() == "a@b");
}

TEST_CASE("nothing, a blank line and too much are told apart") {
  MessageView message;
  CHECK(message.parse("").code == ErrorCode::empty);
  CHECK(message.parse("\r\n").code == ErrorCode::empty);
  CHECK(message.parse("\r\n\r\n").code == ErrorCode::empty);
  CHECK(message.parse("\0"sv).code == ErrorCode::missing_blank_line);
  CHECK(message.parse("\n").code == ErrorCode::bad_line_end);
  CHECK(message.parse(std::string(max_message_size + 1, 'a')).code == ErrorCode::too_large);
  CHECK(message.header_count() == 0);
  const std::string padded = "\r\n\r\n" + small;
  CHECK_FALSE(message.parse(padded));
  CHECK(message.bytes() == small);
  CHECK(message.offset_of(message.call_id()) == small.find("a@b"));
  CHECK(message.parse(padded, Framing::stream).code == ErrorCode::empty);
  CHECK(message.parse("\r").code == ErrorCode::bad_line_end);

  std::string largest = "A x:y SIP/2.0\r\nL:";
  largest.append(max_message_size - largest.size() - 5, ' ');
  largest += "0\r\n\r\n";
  CHECK_FALSE(message.parse(largest));
  CHECK(message.content_length() == 0);
  CHECK(message.size() == max_message_size);
  CHECK(message.body_offset() == max_message_size);
  CHECK_FALSE(message.parse(largest, Framing::stream));
}

TEST_CASE("as many headers as there is room for are indexed, one more is named") {
  std::string bytes = "A x:y SIP/2.0\r\n";
  for (int i = 0; i < SIPMSG_MAX_HEADERS; ++i) bytes += "v: x\r\n";
  MessageView message;
  const std::string full = bytes + "\r\n";
  CHECK_FALSE(message.parse(full));
  CHECK(message.header_count() == SIPMSG_MAX_HEADERS);
  std::size_t vias = 0;
  for (std::string_view via : message.values(HeaderId::via)) vias += via == "x";
  CHECK(vias == SIPMSG_MAX_HEADERS);
  const std::string over = bytes + "l: 0\r\n\r\n";
  const Error error = message.parse(over);
  CHECK(error.code == ErrorCode::too_many_headers);
  CHECK(error.place == static_cast<int>(bytes.size()));
  CHECK(message.parse(over, Framing::stream).code == ErrorCode::too_many_headers);
  CHECK(message.header_count() == SIPMSG_MAX_HEADERS);
}

TEST_CASE("a view can be used again, and nothing of the last message stays") {
  MessageView message;
  CHECK_FALSE(message.parse(small));
  CHECK(message.parse("SIP/2.0 200 OK\r\n\r\n").code == ErrorCode::none);
  CHECK(message.header_count() == 0);
  CHECK_FALSE(message.has(HeaderId::call_id));
  CHECK(message.request_uri_text().empty());
  CHECK(message.body().empty());
  CHECK_FALSE(message.parse(small));
  CHECK(message.reason_phrase().empty());
  CHECK(message.status_code() == 0);
  CHECK(message.is_request());
}

TEST_CASE("no part of a message is read beyond its end, wherever it is cut") {
  for (const char* name : {"a_message", "b_message_auth", "c_register", "d_200", "f_torture"}) {
    const std::string whole = test::read_data("corpus/" + std::string(name) + ".sip");
    test::GuardedText bytes(whole);
    for (std::size_t size = whole.size(); size-- > 0;) {
      bytes.set(std::string_view(whole).substr(0, size));
      MessageView message;
      CHECK_UNARY(bool(message.parse(bytes.view())));
      CHECK_UNARY(message.parse(bytes.view(), Framing::stream).code ==
                  (size == 0 ? ErrorCode::empty : ErrorCode::incomplete));
      static_cast<void>(validate(message));
      CHECK_UNARY(message.bytes().size() == size);
    }
  }
}

TEST_CASE("numbers in headers are read, or are nothing") {
  struct Row {
    std::string_view value;
    std::optional<std::uint32_t> max_forwards, expires;
  };
  const Row rows[] = {
      {"70", 70, 70},
      {"0068", 68, 68},
      {"255", 255, 255},
      {"256", std::nullopt, 256},
      {"4294967295", std::nullopt, 4294967295},
      {"4294967296", std::nullopt, 4294967295},
      {"1000000000000000000000000000000", std::nullopt, 4294967295},
      {"", std::nullopt, std::nullopt},
      {"-1", std::nullopt, std::nullopt},
      {"7 0", std::nullopt, std::nullopt},
      {"Thu, 01 Dec 1994 16:00:00 GMT", std::nullopt, std::nullopt},
  };
  for (const Row& row : rows) {
    CAPTURE(row.value);
    const std::string bytes = "A x:y SIP/2.0\r\nMax-Forwards: " + std::string(row.value) +
                              "\r\nExpires: " + std::string(row.value) + "\r\n\r\n";
    MessageView message;
    CHECK_FALSE(message.parse(bytes));
    CHECK(message.max_forwards() == row.max_forwards);
    CHECK(message.expires() == row.expires);
  }
}

TEST_CASE("a message's date is read, or is an error") {
  const struct {
    std::string line;
    std::int64_t seconds;  ///< 0 for an error
  } rows[] = {
      {"Date: Sat, 13 Nov 2010 23:29:00 GMT\r\n", 1289690940},
      {"Date: yesterday\r\n", 0},
      {"", 0},
  };
  for (const auto& row : rows) {
    CAPTURE(row.line);
    const auto message =
        Message::from_bytes("MESSAGE sip:a@b SIP/2.0\r\n" + row.line + "Content-Length: 0\r\n\r\n");
    REQUIRE(message);
    CHECK(message->date().ok() == (row.seconds != 0));
    CHECK(message->date().value() == row.seconds);
  }
}

TEST_CASE("what a message lacks or has wrong is named, with its place") {
  struct Row {
    std::string_view from, to;
    ErrorCode code;
    std::string_view place;  ///< the mistake is where this stands; "" for the beginning
  };
  const Row rows[] = {
      {"Call-ID: a@b\r\n", "", ErrorCode::missing_call_id, ""},
      {"Via: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1\r\n", "", ErrorCode::missing_via, ""},
      {"From: <sip:alice@example.org>;tag=1\r\n", "", ErrorCode::missing_from, ""},
      {"To: <sip:bob@example.org>\r\n", "", ErrorCode::missing_to, ""},
      {"CSeq: 1 MESSAGE\r\n", "", ErrorCode::missing_cseq, ""},
      {"CSeq: 1 MESSAGE", "CSeq: 1 message", ErrorCode::cseq_method_mismatch, "1 message"},
      {"CSeq: 1 MESSAGE", "CSeq: x MESSAGE", ErrorCode::bad_cseq, "x MESSAGE"},
      {"To: <sip", "t: <sip:x>\r\nTo: <sip", ErrorCode::duplicate_header, "To:"},
      {"CSeq:", "Call-ID: x\r\nCSeq:", ErrorCode::duplicate_header, "Call-ID: x"},
      {"CSeq:",
       "m: sip:x\r\nContact: sip:x\r\nv: x\r\nRoute: x\r\nRoute: y\r\nX: y\r\nX: z\r\nCSeq:",
       ErrorCode::none, ""},
      {"branch=z", "branch==z", ErrorCode::bad_parameter, "=z9"},
      {"2.0/UDP 192", "2.0/UDP @192", ErrorCode::bad_host, "@192"},
      {"<sip:alice@", "<sip:alice@@", ErrorCode::bad_host, "@example.org>;tag"},
      {"<sip:bob@example.org>", "<sip:bob", ErrorCode::bad_name_addr, "sip:bob\r\n"},
      {"a@b", "a b", ErrorCode::bad_call_id, "a b"},
      {"a@b", "", ErrorCode::bad_call_id, "\r\nCSeq"},
      {"CSeq:", "Max-Forwards: 256\r\nCSeq:", ErrorCode::bad_number, "256"},
      {"MESSAGE sip:bob@", "MESSAGE sip:b%b@", ErrorCode::bad_escape, "%b@"},
      {"MESSAGE sip:bob@", "MESSAGE bob@", ErrorCode::bad_uri, "bob@"},
      {"MESSAGE sip:bob@", "MESSAGE x:bob@", ErrorCode::none, ""},
  };
  for (const Row& row : rows) {
    const std::string bytes = with(small, row.from, row.to);
    CAPTURE(bytes);
    MessageView message;
    CHECK_FALSE(message.parse(bytes));
    const Error error = validate(message);
    CHECK(name_of(error) == error_name(row.code));
    CHECK(error.place == static_cast<int>(row.place.empty() ? 0 : bytes.find(row.place)));
  }
}

TEST_CASE("a response needs the same headers, but its CSeq may name any method") {
  const std::string bytes = with(small, "MESSAGE sip:bob@example.org SIP/2.0", "SIP/2.0 200 OK");
  MessageView message;
  CHECK_FALSE(message.parse(bytes));
  CHECK_FALSE(validate(message));
  const std::string other = with(bytes, "1 MESSAGE", "1 x");
  CHECK_FALSE(message.parse(other));
  CHECK_FALSE(validate(message));
  const std::string without = with(bytes, "Call-ID: a@b\r\n", "");
  CHECK_FALSE(message.parse(without));
  CHECK(validate(message).code == ErrorCode::missing_call_id);
}

TEST_CASE("a Message owns its bytes, through copies and moves") {
  for (const std::string& text : {small, with(small, "Hello", std::string(5, 'x'))}) {
    std::string bytes = text;
    auto made = Message::from_bytes(bytes);
    REQUIRE(made.ok());
    bytes.assign(bytes.size(), '!');
    Message message = std::move(*made);
    const Message copy = message;
    Message moved = std::move(message);
    CHECK(copy.bytes() == text);
    CHECK(copy.bytes().data() != moved.bytes().data());
    CHECK(moved.bytes() == text);
    CHECK(moved.call_id() == "a@b");
    CHECK(message.header_count() == 0);  // NOLINT: what was moved from is empty
    CHECK(message.bytes().empty());
    message = copy;
    CHECK(message.body() == text.substr(text.size() - 5));
    Message& self = message;
    message = self;
    CHECK(message.bytes() == text);
    message = std::move(moved);
    CHECK(message.from()->tag() == "1");
    CHECK(moved.bytes().empty());  // NOLINT
  }
}

TEST_CASE("a Message can be made of a view, also of one whose body has not all come") {
  const std::string part = small.substr(0, small.size() - 2);
  MessageView view;
  CHECK(view.parse(part, Framing::stream).code == ErrorCode::incomplete);
  const Message message{view};
  CHECK(message.bytes() == part);
  CHECK(message.bytes().data() != part.data());
  CHECK(message.call_id() == "a@b");
  CHECK(Message::from_bytes("nonsense").error().code == ErrorCode::missing_blank_line);
  CHECK(Message().header_count() == 0);
  CHECK(Message().bytes().empty());
  CHECK_FALSE(Message().has(HeaderId::via));
}

TEST_CASE("the codes that break the frame are those that leave its end in doubt") {
  CHECK(breaks_frame(ErrorCode::bad_line_end));
  CHECK(breaks_frame(ErrorCode::missing_content_length));
  CHECK_FALSE(breaks_frame(ErrorCode::bad_version));
  CHECK_FALSE(breaks_frame(ErrorCode::incomplete));
  CHECK_FALSE(breaks_frame(ErrorCode::none));
}

}  // namespace test_message
