// Framing on a stream (RFC 3261 7.5 and 18.3, RFC 5626 3.5.1): however the octets are cut, the same
// events come out. One loop feeds every input in chunks of every size and compares the logs.
#include <doctest/doctest.h>

#include <memory>
#include <string>
#include <vector>

#include "support/allocations.hpp"
#include "support/data.hpp"
#include "support/sipmsg.hpp"

namespace test_stream {

using namespace sipmsg;
using namespace std::literals;

namespace {

const std::string hello = "MESSAGE sip:a SIP/2.0\r\nCall-ID: 1\r\nContent-Length: 5\r\n\r\nHello";
const std::string answer = "SIP/2.0 200 OK\r\nCall-ID: 2\r\nl: 0\r\n\r\n";
const std::string open_head = "A sip:a SIP/2.0\r\nCall-ID: 3\r\n";

/// What `next` says until it needs more: one line for each event.
void drain(StreamFramer& framer, std::string& log) {
  while (true) {
    switch (framer.next()) {
      case StreamEvent::need_more: return;
      case StreamEvent::blank: log += "blank\n"; break;
      case StreamEvent::ping: log += "ping\n"; break;
      case StreamEvent::message:
        log += "message " + std::string(framer.error().name()) + " " +
               std::string(framer.view().bytes()) + "\n";
        break;
      case StreamEvent::error:
        log += "error " + std::string(framer.error().name()) + " at " +
               std::to_string(framer.error().place) + ", Call-ID " +
               std::string(framer.view().call_id()) + "\n";
        CHECK(framer.next() == StreamEvent::error);
        CHECK(framer.writable().size == 0);
        return;
    }
  }
}

/// Reads `octets` in chunks of at most that many, as a connection does.
std::string log_of(std::string_view octets, std::size_t chunk,
                   std::size_t limit = max_message_size) {
  StreamBuffers buffers;
  StreamFramer framer(buffers, limit);
  std::string log;
  while (!octets.empty()) {
    const StreamFramer::Room room = framer.writable();
    if (room.size == 0) break;
    const std::size_t size = std::min(std::min(room.size, chunk), octets.size());
    octets.copy(room.data, size);
    framer.commit(size);
    octets.remove_prefix(size);
    drain(framer, log);
    CHECK_UNARY(framer.capacity() <= std::max(StreamBuffers::block_size, 2 * framer.pending()));
  }
  if (framer.pending() > 0 && log.find("error") == std::string::npos) {
    log += "pending " + std::to_string(framer.pending()) + "\n";
  }
  return log;
}

std::string whole(std::string_view message, const char* error = "none") {
  return "message " + std::string(error) + " " + std::string(message) + "\n";
}

/// The one loop: all sizes of chunks up to the whole.
void check_in_all_chunks(const std::string& octets, const std::string& log,
                         std::size_t limit = max_message_size) {
  for (std::size_t chunk = 1; chunk <= octets.size(); ++chunk) {
    CAPTURE(chunk);
    REQUIRE(log_of(octets, chunk, limit) == log);
  }
}

/// The messages of tests/data that have a Content-Length, as a stream needs.
std::vector<std::string> all_messages() {
  std::vector<std::string> messages;
  for (const char* name :
       {"a_message", "b_message_auth", "c_register", "d_200", "e_401", "f_torture"}) {
    messages.push_back(test::read_data("corpus/" + std::string(name) + ".sip"));
  }
  for (const std::string& line : test::split(test::read_data("captures/README.md"), '\n')) {
    const auto cells = test::split(line, '|');
    if (cells.size() < 7 || cells[5].find("cp") == std::string::npos) continue;
    const std::string name = cells[4].substr(1, cells[4].size() - 2);
    const std::string octets = test::read_data("captures/" + name);
    if (octets != "\r\n\r\n") messages.push_back(octets);
  }
  for (const char* name : {"wsinv", "intmeth", "esc01", "escnull", "esc02", "lwsdisp", "longreq",
                           "semiuri", "transports", "mpart01", "unreason", "noreason"}) {
    messages.push_back(test::read_data("rfc4475/" + std::string(name) + ".dat"));
  }
  return messages;
}

}  // namespace

TEST_CASE("every message of the test data comes out whole, however it is cut" *
          doctest::test_suite("long")) {
  const std::vector<std::string> messages = all_messages();
  CHECK(messages.size() > 80);
  for (const std::string& message : messages) {
    CAPTURE(message);
    check_in_all_chunks(message, whole(message));
  }
}

TEST_CASE("pipelined messages come out one by one, however they are cut") {
  std::string octets;
  std::string log;
  for (const std::string& message : all_messages()) {
    octets += message;
    log += whole(message);
  }
  for (std::size_t chunk : {1U, 2U, 3U, 7U, 63U, 64U, 65U, 511U, 1000U, 1460U, 4095U, 4096U, 4097U,
                            10000U, 65535U, 200000U}) {
    CAPTURE(chunk);
    REQUIRE(log_of(octets, chunk) == log);
  }
}

TEST_CASE("blank lines between messages are pings and padding") {
  struct Row {
    const char* name;
    std::string octets, log;
  };
  const Row rows[] = {
      {"nothing but a ping", "\r\n\r\n", "blank\nping\n"},
      {"a pong", "\r\n", "blank\n"},
      {"two pings", "\r\n\r\n\r\n\r\n", "blank\nping\nblank\nping\n"},
      {"padding before a message", "\r\n" + hello, "blank\n" + whole(hello)},
      {"padding before and after", "\r\n" + hello + "\r\n", "blank\n" + whole(hello) + "blank\n"},
      {"a message ends the count", "\r\n" + hello + "\r\n\r\n",
       "blank\n" + whole(hello) + "blank\nping\n"},
      {"a ping between messages", answer + "\r\n\r\n" + hello,
       whole(answer) + "blank\nping\n" + whole(hello)},
      {"half of a blank line", "\r", "pending 1\n"},
      {"half of a second one", "\r\n\r", "blank\npending 1\n"},
      {"a body that looks like a ping", "A sip:a SIP/2.0\r\nl: 4\r\n\r\n\r\n\r\n" + answer,
       whole("A sip:a SIP/2.0\r\nl: 4\r\n\r\n\r\n\r\n") + whole(answer)},
  };
  for (const Row& row : rows) {
    CAPTURE(row.name);
    check_in_all_chunks(row.octets, row.log);
  }
}

TEST_CASE("a mistake that leaves the end of the message known ends nothing") {
  struct Row {
    const char* error;
    std::string message;
  };
  const Row rows[] = {
      {"bad_version", "A sip:a SIP/7.0\r\nl: 3\r\n\r\nabc"},
      {"bad_start_line", "nonsense\r\nl: 0\r\n\r\n"},
      {"bad_header_line", "A sip:a SIP/2.0\r\nno colon\r\nl: 3\r\n\r\nabc"},
      {"bad_status_code", "SIP/2.0 4294967301 x\r\nl: 0\r\n\r\n"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.error);
    check_in_all_chunks(row.message + hello, whole(row.message, row.error) + whole(hello));
  }
}

TEST_CASE("where the end of a message cannot be known, that is said once and for all") {
  struct Row {
    const char* name;
    std::string octets, log;
  };
  const auto place = [](std::string_view text, std::size_t size) {
    return std::to_string(open_head.size() + text.size() - size);
  };
  const Row rows[] = {
      {"no Content-Length", open_head + "\r\nabc",
       "error missing_content_length at " + place("\r\n", 0) + ", Call-ID 3\n"},
      {"negative", open_head + "l: -5\r\n\r\nabcde",
       "error bad_content_length at " + place("l: ", 0) + ", Call-ID 3\n"},
      {"empty", open_head + "l:\r\n\r\nabcde",
       "error bad_content_length at " + place("l:", 0) + ", Call-ID 3\n"},
      {"a list", open_head + "l: 5, 5\r\n\r\nabcde",
       "error bad_content_length at " + place("l: ", 0) + ", Call-ID 3\n"},
      {"two that disagree", open_head + "l: 5\r\nContent-Length: 6\r\n\r\nabcde",
       "error conflicting_content_length at " + place("l: ", 0) + ", Call-ID 3\n"},
      {"absurd", open_head + "l: 18446744073709551616\r\n\r\n",
       "error too_large at " + place("l: ", 0) + ", Call-ID 3\n"},
      {"larger than any message", open_head + "l: 65535\r\n\r\n",
       "error too_large at " + place("l: ", 0) + ", Call-ID 3\n"},
      {"a line that ends in LF", open_head + "x: y\nl: 0\r\n\r\n",
       "error bad_line_end at " + place("x: y", 0) + ", Call-ID 3\n"},
      {"a head that ends in LF LF", "A sip:a SIP/2.0\ni: 3\nl: 0\n\n",
       "error bad_line_end at 15, Call-ID 3\n"},
      {"an LF between messages", "\n" + hello, "error bad_line_end at 0, Call-ID \n"},
      {"a CR between messages", "\r" + hello, "error bad_line_end at 0, Call-ID 1\n"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.name);
    check_in_all_chunks(row.octets, row.log);
    check_in_all_chunks(hello + row.octets + answer, whole(hello) + row.log);
  }
}

TEST_CASE("too many headers leave the end in doubt") {
  std::string octets = open_head;
  for (int i = 0; i < SIPMSG_MAX_HEADERS; ++i) octets += "a: b\r\n";
  octets += "l: 0\r\n\r\n";
  const std::string log = log_of(octets, octets.size());
  CHECK(log.substr(0, 22) == "error too_many_headers");
  CHECK(log == log_of(octets, 1));
}

TEST_CASE("a message may be as large as the limit and no larger") {
  const auto message = [](std::size_t size) {
    std::string octets = open_head + "l: ";
    const std::size_t body = size - octets.size() - (size < 1100 ? 3 : 4) - 4;
    octets += std::to_string(body) + "\r\n\r\n" + std::string(body, 'x');
    REQUIRE(octets.size() == size);
    return octets;
  };
  check_in_all_chunks(message(1000) + hello, whole(message(1000)) + whole(hello), 1000);
  check_in_all_chunks(message(1001) + hello, "error too_large at 1000, Call-ID 3\n", 1000);
  // beyond the first buffer
  for (std::size_t chunk : {1U, 100U, 4096U, 6000U, 9000U}) {
    CHECK(log_of(message(6000) + hello, chunk, 6000) == whole(message(6000)) + whole(hello));
    CHECK(log_of(message(6001) + hello, chunk, 6000) == "error too_large at 6000, Call-ID 3\n");
  }
}

TEST_CASE("a head that never ends is given up at the limit, and what it said is known") {
  const std::string octets = open_head + "x: " + std::string(2000, 'y');
  check_in_all_chunks(octets, "error too_large at 1000, Call-ID 3\n", 1000);
  CHECK(log_of(octets, 100, 3000) == "pending " + std::to_string(octets.size()) + "\n");
  const std::string line(70000, 'a');
  CHECK(log_of(line, 65535) == "error too_large at 65535, Call-ID \n");
  CHECK(log_of(line, 1) == "error too_large at 65535, Call-ID \n");
  CHECK(log_of(hello, 1, 0) == "error too_large at 1, Call-ID \n");
}

TEST_CASE("the largest message of all passes") {
  std::string octets = open_head + "l: ";
  const std::size_t body = max_message_size - octets.size() - 9;
  octets += std::to_string(body) + "\r\n\r\n" + std::string(body, '\n');
  REQUIRE(octets.size() == max_message_size);
  CHECK(log_of(octets + hello, 1460) == whole(octets) + whole(hello));
  CHECK(log_of(octets + hello, 200000) == whole(octets) + whole(hello));
}

TEST_CASE("a view stays right while the body behind it comes") {
  StreamBuffers buffers;
  StreamFramer framer(buffers);
  std::string octets = answer + open_head + "l: 20000\r\n\r\n" + std::string(20000, 'z');
  const std::size_t head_end = octets.find("zz");
  std::size_t fed = 0;
  const auto read = [&](std::size_t size) {
    while (size > 0) {
      const StreamFramer::Room room = framer.writable();
      const std::size_t n = std::min(size, room.size);
      octets.copy(room.data, n, fed);
      framer.commit(n);
      fed += n;
      size -= n;
      const StreamEvent event = framer.next();
      CHECK(event == (fed < octets.size() ? StreamEvent::need_more : StreamEvent::message));
    }
  };
  octets.copy(framer.writable().data, answer.size());
  framer.commit(answer.size());
  fed = answer.size();
  CHECK(framer.next() == StreamEvent::message);
  CHECK(framer.view().status_code() == 200);
  CHECK(framer.view().call_id() == "2");
  CHECK(framer.next() == StreamEvent::need_more);
  read(head_end - fed);
  CHECK(framer.capacity() == StreamBuffers::block_size);  // nothing for what was only announced
  read(octets.size() - fed);
  CHECK(framer.view().call_id() == "3");
  CHECK(framer.view().body() == std::string(20000, 'z'));
}

TEST_CASE("a quiet connection holds no memory, and a large message leaves none behind") {
  StreamBuffers buffers;
  StreamFramer framer(buffers);
  CHECK(framer.capacity() == 0);
  CHECK(framer.next() == StreamEvent::need_more);
  const std::string large = open_head + "l: 30000\r\n\r\n" + std::string(30000, 'z');
  const std::string octets = large + hello.substr(0, 30);
  std::size_t fed = 0;
  std::size_t largest = 0;
  std::string log;
  while (fed < octets.size()) {
    const StreamFramer::Room room = framer.writable();
    const std::size_t n = std::min(room.size, octets.size() - fed);
    octets.copy(room.data, n, fed);
    framer.commit(n);
    fed += n;
    largest = std::max(largest, framer.capacity());
    drain(framer, log);
  }
  CHECK(log == whole(large));
  CHECK(largest >= large.size());
  CHECK(framer.pending() == 30);
  CHECK(framer.capacity() == StreamBuffers::block_size);  // the rest has moved to a small one
  const StreamFramer::Room room = framer.writable();
  hello.copy(room.data, hello.size() - 30, 30);
  framer.commit(hello.size() - 30);
  CHECK(framer.next() == StreamEvent::message);
  CHECK(framer.view().bytes() == hello);
  CHECK(framer.next() == StreamEvent::need_more);
  CHECK(framer.capacity() == 0);
  CHECK(buffers.spare() == 1);
}

TEST_CASE("a large buffer is not kept for the next connection") {
  StreamBuffers buffers;
  const std::string large = open_head + "l: 30000\r\n\r\n" + std::string(30000, 'z');
  StreamFramer framer(buffers);
  std::size_t fed = 0;
  while (fed < large.size()) {
    const StreamFramer::Room room = framer.writable();
    const std::size_t n = large.copy(room.data, room.size, fed);
    framer.commit(n);
    fed += n;
    CHECK((framer.next() == StreamEvent::message) == (fed == large.size()));
  }
  CHECK(framer.next() == StreamEvent::need_more);
  CHECK(framer.capacity() == 0);
  CHECK(buffers.spare() == 0);
}

TEST_CASE("in steady state reading from connections allocates nothing") {
  StreamBuffers buffers;
  StreamFramer one(buffers);
  StreamFramer two(buffers);
  const auto read = [](StreamFramer& framer, std::string_view octets) {
    octets.copy(framer.writable().data, octets.size());
    framer.commit(octets.size());
    int messages = 0;
    while (framer.next() == StreamEvent::message) ++messages;
    return messages;
  };
  const auto turn = [&] {
    return read(one, hello) + read(one, std::string_view(hello).substr(0, 40)) +
           read(two, std::string_view(answer).substr(0, 10)) +
           read(one, std::string_view(hello).substr(40)) +
           read(two, std::string_view(answer).substr(10));
  };
  CHECK(turn() == 3);
  const test::AllocationCount allocations;
  for (int i = 0; i < 100; ++i) {
    if (turn() != 3) FAIL("a message is missing");
  }
  CHECK(allocations.count() == 0);
}

TEST_CASE("only so many spare buffers are kept") {
  StreamBuffers buffers(2);
  {
    std::vector<std::unique_ptr<StreamFramer>> framers;
    for (int i = 0; i < 5; ++i) {
      framers.push_back(std::make_unique<StreamFramer>(buffers));
      CHECK(framers.back()->writable().size == StreamBuffers::block_size);
    }
    CHECK(buffers.spare() == 0);
  }
  CHECK(buffers.spare() == 2);
}

}  // namespace test_stream
