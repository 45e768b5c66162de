#include "../src/program/composing.hpp"

#include <doctest/doctest.h>

#include "../src/program/auto_reply.hpp"

namespace test_composing {

using namespace program;

TEST_CASE("typing is said at the first key, and again before that runs out") {
  ComposingSender typing;
  CHECK_FALSE(typing.next_deadline());
  CHECK(typing.on_key(true, 1000) == true);
  for (std::uint64_t now_ms = 2000; now_ms < 31000; now_ms += 1000) {
    CAPTURE(now_ms);
    CHECK_FALSE(typing.on_key(true, now_ms));
  }
  CHECK(typing.on_key(true, 31000) == true);
  CHECK(ComposingSender::refresh_s >= 60);
}

TEST_CASE("resting keys, and a line given up, are said to be idle, once") {
  ComposingSender typing;
  CHECK(typing.on_key(true, 0) == true);
  CHECK_FALSE(typing.on_key(true, 5000));
  REQUIRE(typing.next_deadline());
  const std::uint64_t deadline_ms = *typing.next_deadline();
  CHECK(deadline_ms == 5000 + ComposingSender::idle_after_ms);
  CHECK_FALSE(typing.advance(deadline_ms - 1));
  CHECK(typing.advance(deadline_ms) == false);
  CHECK_FALSE(typing.advance(deadline_ms + 1));
  CHECK_FALSE(typing.next_deadline());

  CHECK(typing.on_key(true, 40000) == true);
  CHECK(typing.on_key(false, 41000) == false);
  CHECK_FALSE(typing.on_key(false, 42000));
  CHECK_FALSE(typing.stop());
}

TEST_CASE("the message itself says that typing has ended") {
  ComposingSender typing;
  CHECK(typing.on_key(true, 0) == true);
  typing.on_sent();
  CHECK_FALSE(typing.next_deadline());
  CHECK_FALSE(typing.on_key(false, 1));
  CHECK(typing.on_key(true, 2) == true);
}

TEST_CASE("typing is believed until it is taken back, a message comes, or its time is over") {
  ComposingWatcher watcher;
  CHECK_FALSE(watcher.is_typing());
  watcher.on_signal(true, 120, 1000);
  CHECK(watcher.is_typing());
  CHECK(*watcher.next_deadline() == 121000);
  watcher.advance(120999);
  CHECK(watcher.is_typing());
  watcher.advance(121000);
  CHECK_FALSE(watcher.is_typing());
  CHECK_FALSE(watcher.next_deadline());
  watcher.on_signal(true, 120, 130000);
  watcher.on_signal(true, 60, 131000);
  CHECK(*watcher.next_deadline() == 191000);
  watcher.on_signal(false, 60, 132000);
  CHECK_FALSE(watcher.is_typing());
  watcher.on_signal(true, 60, 133000);
  watcher.on_message();
  CHECK_FALSE(watcher.is_typing());
}

TEST_CASE("nobody is answered twice within ten seconds, and not more peers than are remembered") {
  AutoReplyLimit limit;
  CHECK(limit.allows("sip:101@example.org", 1000));
  CHECK_FALSE(limit.allows("sip:101@example.org", 1001));
  CHECK(limit.allows("sip:102@example.org", 1001));
  CHECK_FALSE(limit.allows("sip:101@example.org", 10999));
  CHECK(limit.allows("sip:101@example.org", 11000));
  CHECK_FALSE(limit.allows("sip:101@example.org", 11001));

  AutoReplyLimit full;
  for (std::size_t i = 0; i < AutoReplyLimit::max_peers; ++i) {
    REQUIRE(full.allows(std::to_string(i), 0));
  }
  CHECK_FALSE(full.allows("one more", 0));
  CHECK(full.allows("one more", AutoReplyLimit::interval_ms));
}

}  // namespace test_composing
