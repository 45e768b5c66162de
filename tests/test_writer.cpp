// What goes out: written whole, or edited from what came in. Nothing a caller gives can end a line.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "support/allocations.hpp"
#include "support/data.hpp"
#include "support/sipmsg.hpp"

namespace test_writer {

using namespace sipmsg;
using namespace std::literals;

namespace {

const std::string request =
    "MESSAGE sip:bob@example.org SIP/2.0\r\n"
    "Via: SIP/2.0/UDP 192.0.2.1:5070;branch=z9hG4bK1;rport\r\n"
    "v: SIP/2.0/TCP a.example.org;branch=z9hG4bK0 , SIP/2.0/UDP b.example.org\r\n"
    "Max-Forwards: 70\r\n"
    "Route: <sip:this.example.org;lr>, <sip:next.example.org;lr>\r\n"
    "From: \"Alice\" <sip:alice@example.org>;tag=1\r\n"
    "To: <sip:bob@example.org>\r\n"
    "Call-ID: a@b\r\n"
    "CSeq: 1 MESSAGE\r\n"
    "Content-Type: text/plain\r\n"
    "Content-Length: 5\r\n"
    "\r\n"
    "Hello";

MessageView parsed(std::string_view bytes) {
  MessageView message;
  const Error error = message.parse(bytes);
  REQUIRE_MESSAGE(!error, error.name() << " at " << error.place << " in " << bytes);
  return message;
}

SocketAddress address(std::string_view text) { return *parse_socket_address(text); }

/// What one of the functions that write puts out; "!" and the error's name where it refuses.
template <class Write>
std::string written(Write write) {
  char buffer[4096];
  Output out(buffer, sizeof buffer);
  write(out);
  if (out.error()) return "!" + std::string(out.error().name());
  return std::string(out.written());
}

std::string with(std::string text, std::string_view from, std::string_view to) {
  const std::size_t at = text.find(from);
  REQUIRE(at != std::string::npos);
  return text.replace(at, from.size(), to);
}

RequestStart message_start() {
  RequestStart start;
  start.method = "MESSAGE";
  start.request_uri = "sip:bob@example.org";
  start.sent_by = "192.0.2.1:5060";
  start.branch = "z9hG4bKx";
  start.from = "\"Alice\" <sip:alice@example.org>";
  start.from_tag = "f";
  start.to = "<sip:bob@example.org>";
  start.call_id = "a@b";
  return start;
}

/// Texts that would end a line, a header or a message where one reader or another sees it.
const std::string hostile[] = {"\r\nEvil: x", "\nEvil: x", "\rEvil: x",     "\r\n\r\nbody",
                               "\0"s,         "x\r\n",     "\r\n folded: x"};

}  // namespace

TEST_CASE("a new request has the headers of RFC 3261 8.1.1 and reads back") {
  const std::string text = written([](Output& out) {
    RequestStart start = message_start();
    start.cseq = 7;
    start.transport = Transport::tcp;
    begin_request(out, start);
    write_header(out, "Subject", "hi");
    write_header(out, HeaderId::expires, std::uint64_t{60});
    write_body(out, "text/plain;charset=utf-8", "Gr\xc3\xbc\xc3\x9f\x65\r\n");
  });
  CHECK(text ==
        "MESSAGE sip:bob@example.org SIP/2.0\r\n"
        "Via: SIP/2.0/TCP 192.0.2.1:5060;branch=z9hG4bKx;rport\r\n"
        "Max-Forwards: 70\r\n"
        "From: \"Alice\" <sip:alice@example.org>;tag=f\r\n"
        "To: <sip:bob@example.org>\r\n"
        "Call-ID: a@b\r\n"
        "CSeq: 7 MESSAGE\r\n"
        "Subject: hi\r\n"
        "Expires: 60\r\n"
        "Content-Type: text/plain;charset=utf-8\r\n"
        "Content-Length: 9\r\n"
        "\r\n"
        "Gr\xc3\xbc\xc3\x9f\x65\r\n");
  CHECK_FALSE(validate(parsed(text)));
}

TEST_CASE("a request without body says so, and one within a dialog has the tag of its peer") {
  const std::string text = written([](Output& out) {
    RequestStart start = message_start();
    start.to_tag = "t";
    begin_request(out, start);
    write_body(out, {}, {});
  });
  CHECK(text.find("To: <sip:bob@example.org>;tag=t\r\n") != std::string::npos);
  CHECK(text.find("Content-Type") == std::string::npos);
  CHECK(text.substr(text.size() - 23) == "\r\nContent-Length: 0\r\n\r\n");
}

TEST_CASE("an answer takes from its request what RFC 3261 8.2.6 says") {
  const MessageView message = parsed(request);
  const std::string text = written([&](Output& out) {
    write_status_line(out, 200, {});
    write_response_head(out, message, "me", address("203.0.113.9:4711"));
    write_body(out, {}, {});
  });
  CHECK(text ==
        "SIP/2.0 200 OK\r\n"
        "Via: SIP/2.0/UDP 192.0.2.1:5070;branch=z9hG4bK1;received=203.0.113.9;rport=4711\r\n"
        "Via: SIP/2.0/TCP a.example.org;branch=z9hG4bK0\r\n"
        "Via: SIP/2.0/UDP b.example.org\r\n"
        "From: \"Alice\" <sip:alice@example.org>;tag=1\r\n"
        "To: <sip:bob@example.org>;tag=me\r\n"
        "Call-ID: a@b\r\n"
        "CSeq: 1 MESSAGE\r\n"
        "Content-Length: 0\r\n"
        "\r\n");
  CHECK_FALSE(validate(parsed(text)));
}

TEST_CASE("To gets a tag where it has none and one is given") {
  struct Row {
    std::string_view to, tag, written;
  };
  const Row rows[] = {
      {"<sip:bob@example.org>", "t", "To: <sip:bob@example.org>;tag=t\r\n"},
      {"<sip:bob@example.org>", "", "To: <sip:bob@example.org>\r\n"},
      {"<sip:bob@example.org>;tag=old", "t", "To: <sip:bob@example.org>;tag=old\r\n"},
      {"sip:bob@example.org", "t", "To: sip:bob@example.org;tag=t\r\n"},
      {"\"broken <sip:bob@example.org>", "t", "To: \"broken <sip:bob@example.org>\r\n"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.to);
    const std::string bytes = with(request, "<sip:bob@example.org>", row.to);
    const MessageView message = parsed(bytes);
    const std::string text = written(
        [&](Output& out) { write_response_head(out, message, row.tag, address("192.0.2.1:1")); });
    CHECK(text.find(row.written) != std::string::npos);
  }
}

TEST_CASE("the top Via is stamped as RFC 3261 18.2.1 and RFC 3581 say") {
  struct Row {
    std::string_view via, source, stamped;
  };
  const Row rows[] = {
      {"SIP/2.0/UDP 192.0.2.1;branch=x", "192.0.2.1:9", "SIP/2.0/UDP 192.0.2.1;branch=x"},
      {"SIP/2.0/UDP 192.0.2.1;branch=x", "192.0.2.2:9",
       "SIP/2.0/UDP 192.0.2.1;branch=x;received=192.0.2.2"},
      {"SIP/2.0/UDP 192.0.2.1;rport;branch=x", "192.0.2.1:9",
       "SIP/2.0/UDP 192.0.2.1;branch=x;received=192.0.2.1;rport=9"},
      {"SIP/2.0/UDP host.example;branch=x", "192.0.2.1:9",
       "SIP/2.0/UDP host.example;branch=x;received=192.0.2.1"},
      {"SIP/2.0/UDP h;received=6.6.6.6;rport=66;branch=x;ttl=1;y=\"a;b\"", "192.0.2.1:9",
       "SIP/2.0/UDP h;branch=x;ttl=1;y=\"a;b\";received=192.0.2.1;rport=9"},
      {"SIP / 2.0\r\n /UDP  h : 5060 ;\r\n branch = x", "192.0.2.1:9",
       "SIP / 2.0  /UDP  h : 5060;branch=x;received=192.0.2.1"},
      {"SIP/2.0/UDP [2001:DB8::1]:5060;branch=x", "[2001:db8::1]:9",
       "SIP/2.0/UDP [2001:DB8::1]:5060;branch=x"},
      {"SIP/2.0/UDP h", "[2001:db8::1]:9", "SIP/2.0/UDP h;received=2001:db8::1"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.via);
    const auto via = parse_via(row.via);
    REQUIRE(via.ok());
    const std::string text =
        written([&](Output& out) { write_stamped_via(out, row.via, *via, address(row.source)); });
    CHECK(text == row.stamped);
    CHECK(parse_via(text)->branch == via->branch);
  }
}

TEST_CASE("an answer to a message with mistakes has what could be read, on lines of its own") {
  const std::string bytes =
      "MESSAGE sip:bob@example.org SIP/2.0\r\n"
      "Via: nonsense\r\n"
      "From: <sip:a@h>\rEvil: 1\r\n"
      "To: <sip:b@h>\n Evil: 2\r\n"
      "CSeq: x\r\r\n"
      "\r\n";
  MessageView message;
  CHECK(message.parse(bytes).code == ErrorCode::bad_line_end);
  const std::string text =
      written([&](Output& out) { write_response_head(out, message, "t", address("192.0.2.1:1")); });
  CHECK(text ==
        "Via: nonsense\r\n"
        "From: <sip:a@h> Evil: 1\r\n"
        "To: <sip:b@h>  Evil: 2\r\n"
        "CSeq: x\r\n");
}

TEST_CASE("nothing that a caller gives can end a line") {
  using Write = void (*)(Output&, const std::string&);
  const auto start_with = [](std::string_view RequestStart::*member) {
    return [member](Output& out, const std::string& text) {
      RequestStart start = message_start();
      start.*member = text;
      begin_request(out, start);
    };
  };
  for (const std::string& text : hostile) {
    CAPTURE(text);
    for (auto member : {&RequestStart::method, &RequestStart::request_uri, &RequestStart::sent_by,
                        &RequestStart::branch, &RequestStart::from, &RequestStart::from_tag,
                        &RequestStart::to, &RequestStart::to_tag, &RequestStart::call_id}) {
      const std::string result = written([&](Output& out) { start_with(member)(out, text + "x"); });
      CHECK(result[0] == '!');
    }
    const Write writes[] = {
        [](Output& out, const std::string& t) { write_header(out, t, "x"); },
        [](Output& out, const std::string& t) { write_header(out, "X", t); },
        [](Output& out, const std::string& t) { write_header(out, HeaderId::subject, t); },
        [](Output& out, const std::string& t) { write_status_line(out, 200, t); },
        [](Output& out, const std::string& t) { write_body(out, t, "body"); },
        [](Output& out, const std::string& t) { out.value(t); },
        [](Output& out, const std::string& t) { out.word(t); },
        [](Output& out, const std::string& t) { out.token(t); },
        [](Output& out, const std::string& t) { out.host(t); },
        [](Output& out, const std::string& t) { out.host("::" + t); },
        [](Output& out, const std::string& t) { static_cast<void>(out.copied(t)); },
    };
    for (std::size_t i = 0; i < std::size(writes); ++i) {
      CAPTURE(i);
      CHECK(written([&](Output& out) { writes[i](out, text); })[0] == '!');
    }
    const MessageView message = parsed(request);
    CHECK(written([&](Output& out) {
            write_response_head(out, message, text, address("192.0.2.1:1"));
          }) == "!bad_token");

    // what was received is never refused, but cannot end a line either
    if (text.find('\0') == std::string::npos) {
      const std::string copy = written([&](Output& out) { out.received(text); });
      CHECK(copy.find_first_of("\r\n") == std::string::npos);
      CHECK(copy[0] != '!');
    }

    Edits uri(message);
    uri.set_request_uri("sip:x" + text);
    CHECK(uri.error());
    CHECK(uri.slices().count == 0);
    Edits value(message);
    value.replace(message.header(HeaderId::max_forwards), text);
    CHECK(value.error());
    Edits length(message);
    length.set_content_length(text);
    CHECK(length.error());
  }
}

TEST_CASE("what a caller gives cannot make two words or two headers of one") {
  const auto request_with = [](std::string_view RequestStart::*member, std::string_view text) {
    return written([&](Output& out) {
      RequestStart start = message_start();
      start.*member = text;
      begin_request(out, start);
    });
  };
  CHECK(request_with(&RequestStart::method, "MESSAGE sip:x") == "!bad_token");
  CHECK(request_with(&RequestStart::method, "") == "!bad_token");
  CHECK(request_with(&RequestStart::request_uri, "sip:x SIP/2.0") == "!forbidden_octet");
  CHECK(request_with(&RequestStart::request_uri, "") == "!forbidden_octet");
  CHECK(request_with(&RequestStart::branch, "x;y=z") == "!bad_token");
  CHECK(request_with(&RequestStart::branch, "") == "!bad_token");
  CHECK(request_with(&RequestStart::from_tag, "x y") == "!bad_token");
  CHECK(request_with(&RequestStart::call_id, "") == "!forbidden_octet");
  CHECK(request_with(&RequestStart::sent_by, "h x") == "!forbidden_octet");
  CHECK(written([](Output& out) { write_header(out, "X: y", "z"); }) == "!bad_token");
  CHECK(written([](Output& out) { write_header(out, "", "z"); }) == "!bad_token");
  CHECK(written([](Output& out) { write_header(out, HeaderId::other, "z"); }) == "!bad_token");
  CHECK(written([](Output& out) { write_header(out, HeaderId::other, std::uint64_t{1}); }) ==
        "!bad_token");
  for (int code : {-1, 0, 99, 700, 1000}) {
    CHECK(written([&](Output& out) { write_status_line(out, code, "x"); }) == "!bad_argument");
  }
}

TEST_CASE("tabs and octets above 127 may stand in a value") {
  CHECK(written([](Output& out) { write_header(out, "X", "a\tb \xc3\xa4\x7f"); }) ==
        "X: a\tb \xc3\xa4\x7f\r\n");
}

TEST_CASE("the first error stays, and nothing is written after it") {
  char buffer[16];
  Output out(buffer, sizeof buffer);
  out.raw("0123456789").value("a\nb").raw("more");
  CHECK(out.error().code == ErrorCode::forbidden_octet);
  CHECK(out.error().place == 1);
  CHECK(out.written() == "0123456789");
  out.token("").raw(std::string(100, 'x'));
  CHECK(out.error().code == ErrorCode::forbidden_octet);

  Output full(buffer, sizeof buffer);
  full.raw("0123456789").raw("0123456");
  CHECK(full.error().code == ErrorCode::no_room);
  CHECK(full.error().place == 10);
  CHECK(full.raw("x").written() == "0123456789");
  Output exact(buffer, sizeof buffer);
  CHECK_FALSE(exact.raw("0123456789").raw("012345").raw("").error());
  CHECK(exact.room() == 0);
  CHECK(exact.since(10) == "012345");
}

TEST_CASE("numbers, addresses and hosts are written as they stand in a header") {
  CHECK(written([](Output& out) { out.number(0).raw(" ").number(~0ULL); }) ==
        "0 18446744073709551615");
  CHECK(written([](Output& out) { out.hex(0x1f).raw(" ").hex(~0ULL); }) ==
        "000000000000001f ffffffffffffffff");
  CHECK(written([](Output& out) { out.ip(*parse_ip("192.0.2.10")); }) == "192.0.2.10");
  CHECK(written([](Output& out) { out.ip(*parse_ip("2001:db8::1")); }) == "2001:db8::1");
  CHECK(written([](Output& out) { out.host("2001:db8::1"); }) == "[2001:db8::1]");
  CHECK(written([](Output& out) { out.host("h.example"); }) == "h.example");
}

TEST_CASE("every status code has a phrase") {
  for (int code = 100; code < 700; ++code) CHECK_FALSE(default_reason_phrase(code).empty());
  CHECK(default_reason_phrase(405) == "Method Not Allowed");
  CHECK(default_reason_phrase(499) == "Bad Request");
  CHECK(default_reason_phrase(699) == "Decline");
  CHECK(default_reason_phrase(299) == "OK");
  CHECK(default_reason_phrase(0) == default_reason_phrase(500 + 99));
  CHECK(written([](Output& out) { write_status_line(out, 480, "Offline \xc3\xa4"); }) ==
        "SIP/2.0 480 Offline \xc3\xa4\r\n");
}

TEST_CASE("a forwarded message is the received one with a few edits, its body where it came") {
  const MessageView message = parsed(request);
  char buffer[1024];
  const test::AllocationCount allocations;
  Output text(buffer, sizeof buffer);
  Edits edits(message);
  edits.set_request_uri(text.copied("sip:bob@192.0.2.77:5060;transport=udp"));
  std::size_t begin = text.size();
  text.raw("Via: SIP/2.0/UDP 198.51.100.1;branch=z9hG4bKproxy;rport\r\n");
  edits.insert_first(text.since(begin));
  begin = text.size();
  const std::string_view top = *message.values(HeaderId::via).begin();
  write_stamped_via(text, top, *parse_via(top), address("203.0.113.9:4711"));
  edits.replace(top, text.since(begin));
  begin = text.size();
  text.number(69);
  edits.replace(message.header(HeaderId::max_forwards), text.since(begin));
  edits.remove_first_element(HeaderId::route);
  edits.remove_field(message.find(HeaderId::content_type));
  edits.insert_last("X-Last: 1\r\n");
  const Slices slices = edits.slices();
  const std::size_t allocated = allocations.count();

  CHECK(allocated == 0);
  CHECK_FALSE(text.error());
  CHECK_FALSE(edits.error());
  CHECK(slices.complete);
  const std::string expected =
      "MESSAGE sip:bob@192.0.2.77:5060;transport=udp SIP/2.0\r\n"
      "Via: SIP/2.0/UDP 198.51.100.1;branch=z9hG4bKproxy;rport\r\n"
      "Via: SIP/2.0/UDP 192.0.2.1:5070;branch=z9hG4bK1;received=203.0.113.9;rport=4711\r\n"
      "v: SIP/2.0/TCP a.example.org;branch=z9hG4bK0 , SIP/2.0/UDP b.example.org\r\n"
      "Max-Forwards: 69\r\n"
      "Route:  <sip:next.example.org;lr>\r\n"
      "From: \"Alice\" <sip:alice@example.org>;tag=1\r\n"
      "To: <sip:bob@example.org>\r\n"
      "Call-ID: a@b\r\n"
      "CSeq: 1 MESSAGE\r\n"
      "Content-Length: 5\r\n"
      "X-Last: 1\r\n"
      "\r\n"
      "Hello";
  CHECK(slices.to_string() == expected);
  CHECK(slices.size() == expected.size());
  const std::string_view last = *(slices.end() - 1);
  CHECK(last.data() + last.size() == message.body().data() + message.body().size());
  CHECK(last.data() >= message.bytes().data());
}

TEST_CASE("an answer goes on without its top Via") {
  struct Row {
    std::string_view vias, left;
  };
  const Row rows[] = {
      {"Via: SIP/2.0/UDP a\r\nVia: SIP/2.0/UDP b\r\n", "Via: SIP/2.0/UDP b\r\n"},
      {"Via: SIP/2.0/UDP a, SIP/2.0/UDP b\r\n", "Via:  SIP/2.0/UDP b\r\n"},
      {"v: SIP/2.0/UDP a;x=\",\" ,\r\n SIP/2.0/UDP b\r\n", "v: \r\n SIP/2.0/UDP b\r\n"},
      {"Via: SIP/2.0/UDP a\r\n", ""},
  };
  for (const Row& row : rows) {
    CAPTURE(row.vias);
    const std::string bytes = "SIP/2.0 200 OK\r\n" + std::string(row.vias) + "l: 0\r\n\r\n";
    const MessageView message = parsed(bytes);
    Edits edits(message);
    edits.remove_first_element(HeaderId::via);
    const std::string text = edits.slices().to_string();
    CHECK(text == "SIP/2.0 200 OK\r\n" + std::string(row.left) + "l: 0\r\n\r\n");
    if (!row.left.empty()) CHECK(parsed(text).top_via()->host == "b");
  }
}

TEST_CASE(
    "edits at one place come in the order they were made, what is put in before what is cut") {
  const std::string bytes = "A x:y SIP/2.0\r\nB: c\r\nD: e\r\n\r\n";
  const MessageView message = parsed(bytes);
  const std::size_t b = bytes.find("B:");
  for (bool cut_first : {true, false}) {
    Edits edits(message);
    if (cut_first) edits.remove_field(0);
    edits.insert(b, "1: x\r\n");
    edits.insert_first("2: x\r\n");
    if (!cut_first) edits.remove_field(0);
    edits.insert_first("3: x\r\n");
    edits.insert(bytes.find("D:"), "4: x\r\n");
    CHECK_FALSE(edits.error());
    CHECK(edits.slices().to_string() ==
          "A x:y SIP/2.0\r\n1: x\r\n2: x\r\n3: x\r\n4: x\r\nD: e\r\n\r\n");
  }
  CHECK(Edits(message).slices().to_string() == bytes);
}

TEST_CASE("another body gets its Content-Length, in a message with one and without") {
  for (const std::string& length : {"l: 5\r\n"s, ""s}) {
    const std::string bytes = "A x:y SIP/2.0\r\nB: c\r\n" + length + "\r\nHello";
    const MessageView message = parsed(bytes);
    Edits edits(message);
    edits.set_body("Good day", "8");
    const std::string text = edits.slices().to_string();
    CAPTURE(text);
    CHECK(parsed(text).body() == "Good day");
    CHECK(parsed(text).content_length() == 8);
    CHECK(parsed(text).header_count() == 2);
  }
}

TEST_CASE("edits that cannot be are an error, and then nothing goes out") {
  const MessageView message = parsed(request);
  const std::string headless = "A x:y SIP/2.0\r\n\r\n";
  MessageView bare = parsed(request);  // what it leaves behind must not be taken for a header
  REQUIRE_FALSE(bare.parse(headless));
  struct Row {
    const char* name;
    void (*edit)(Edits&, const MessageView&);
    ErrorCode code;
  };
  const Row rows[] = {
      {"the same field twice",
       [](Edits& e, const MessageView&) {
         e.remove_field(2);
         e.remove_field(2);
       },
       ErrorCode::bad_argument},
      {"a value in a field that is gone",
       [](Edits& e, const MessageView& m) {
         e.remove_field(m.find(HeaderId::max_forwards));
         e.replace(m.header(HeaderId::max_forwards), "1");
       },
       ErrorCode::bad_argument},
      {"a field whose value is edited",
       [](Edits& e, const MessageView& m) {
         e.replace(m.header(HeaderId::max_forwards), "1");
         e.remove_field(m.find(HeaderId::max_forwards));
       },
       ErrorCode::bad_argument},
      {"inside of what is cut",
       [](Edits& e, const MessageView& m) {
         e.replace(10, 20, {});
         e.insert(m.offset_of(m.request_uri_text()) + 10, "x");
       },
       ErrorCode::bad_argument},
      {"beyond the end",
       [](Edits& e, const MessageView& m) { e.insert(m.bytes().size() + 1, "x"); },
       ErrorCode::bad_argument},
      {"too long", [](Edits& e, const MessageView& m) { e.replace(m.bytes().size(), 1, "x"); },
       ErrorCode::bad_argument},
      {"a field that is not there",
       [](Edits& e, const MessageView& m) { e.remove_field(m.header_count()); },
       ErrorCode::bad_argument},
      {"a header that is not there",
       [](Edits& e, const MessageView&) { e.remove_first_element(HeaderId::path); },
       ErrorCode::bad_argument},
      {"the value of a header that is not there",
       [](Edits& e, const MessageView& m) { e.replace(m.header(HeaderId::path), "x"); },
       ErrorCode::bad_argument},
      {"a URI of nothing", [](Edits& e, const MessageView&) { e.set_request_uri(""); },
       ErrorCode::forbidden_octet},
      {"too many",
       [](Edits& e, const MessageView&) {
         for (int i = 0; i < 24; ++i) e.insert_last("X: y\r\n");
       },
       ErrorCode::no_room},
  };
  for (const Row& row : rows) {
    CAPTURE(row.name);
    Edits edits(message);
    row.edit(edits, message);
    CHECK(edits.error().name() == std::string_view(error_name(row.code)));
    CHECK(edits.slices().count == 0);
  }
  Edits first(bare);
  first.insert_first("X: y\r\n");
  first.insert_last("Z: y\r\n");
  CHECK(first.slices().to_string() == "A x:y SIP/2.0\r\nX: y\r\nZ: y\r\n\r\n");
  Edits most(message);
  for (int i = 0; i < 23; ++i) most.insert_last("X: y\r\n");
  CHECK_FALSE(most.error());
  CHECK(most.slices().complete);
}

TEST_CASE("only header lines can be put among the headers") {
  const MessageView message = parsed(request);
  for (std::string_view lines : {"", "X: y\r\n", "X: y\r\nZ:\r\n", "X: a\tb\r\n", "X: \xff\r\n"}) {
    CAPTURE(lines);
    Edits edits(message);
    edits.insert_last(lines);
    CHECK_FALSE(edits.error());
    const std::string text = edits.slices().to_string();
    CHECK(parsed(text).size() == request.size() + lines.size());
  }
  const std::string_view others[] = {"X",
                                     "X: y",
                                     "X: y\n",
                                     "X: y\r",
                                     "X: y\r\n\r\n",
                                     "\r\n",
                                     "X: y\r\n\r\nbody",
                                     " X: y\r\n",
                                     "X y\r\n",
                                     ": y\r\n",
                                     "X: y\rZ: a\r\n",
                                     "X: y\nZ: a\r\n",
                                     "X: \0\r\n"sv,
                                     "X : y\r\n",
                                     "X: y\r\n folded\r\n",
                                     "X: y\r\nZ"};
  for (std::string_view lines : others) {
    CAPTURE(lines);
    Edits edits(message);
    edits.insert_first(lines);
    CHECK(edits.error().code == ErrorCode::forbidden_octet);
  }
}

TEST_CASE("slices hold so many pieces, skip empty ones, and say when one is left out") {
  Slices slices("abc");
  slices.add("");
  CHECK(slices.count == 1);
  for (std::size_t i = 1; i < Slices::capacity; ++i) slices.add("x");
  CHECK(slices.complete);
  CHECK(slices.size() == Slices::capacity + 2);
  slices.add("y");
  CHECK_FALSE(slices.complete);
  CHECK(slices.count == Slices::capacity);
  slices.add("");
  CHECK_FALSE(slices.complete);
  CHECK(Slices().size() == 0);
  CHECK(Slices().to_string().empty());
}

TEST_CASE("every captured MESSAGE is forwarded as text surgery would") {
  std::size_t count = 0;
  for (const std::string& line : test::split(test::read_data("captures/README.md"), '\n')) {
    const auto cells = test::split(line, '|');
    if (cells.size() < 7 || cells[6].substr(0, 8) != " MESSAGE") continue;
    const std::string bytes =
        test::read_data("captures/" + cells[4].substr(1, cells[4].size() - 2));
    CAPTURE(cells[4]);
    const MessageView message = parsed(bytes);
    Edits edits(message);
    edits.set_request_uri("sip:new@192.0.2.1");
    edits.insert_first("Via: SIP/2.0/UDP h;branch=z9hG4bKx\r\n");
    edits.replace(message.header(HeaderId::max_forwards), "69");
    if (message.has(HeaderId::authorization)) {
      edits.remove_field(message.find(HeaderId::authorization));
    }
    const Slices slices = edits.slices();

    std::string expected = bytes;
    const std::size_t space = expected.find(' ');
    expected.replace(space + 1, expected.find(' ', space + 1) - space - 1, "sip:new@192.0.2.1");
    expected.insert(expected.find("\r\n") + 2, "Via: SIP/2.0/UDP h;branch=z9hG4bKx\r\n");
    const std::size_t hops = expected.find("Max-Forwards: ");
    expected.replace(hops + 14, 2, "69");
    const std::size_t authorization = expected.find("\r\nAuthorization: ");
    if (authorization != std::string::npos) {
      expected.erase(authorization, expected.find("\r\n", authorization + 2) - authorization);
    }
    CHECK(slices.to_string() == expected);
    const std::string_view last = *(slices.end() - 1);
    CHECK(last.data() + last.size() == bytes.data() + bytes.size());
    ++count;
  }
  CHECK(count > 100);
}

}  // namespace test_writer
