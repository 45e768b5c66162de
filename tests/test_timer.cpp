#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "support/allocations.hpp"
#include "support/sipmsg.hpp"

namespace test_timer {

using sipmsg::Timer;
using sipmsg::TimerQueue;
using sipmsg::Timers;

namespace {

/// Advances and returns the owners' numbers of the timers that fired, in order: "1 2 ".
std::string fired(Timers& timers, std::uint64_t now_ms) {
  std::string owners;
  timers.advance(now_ms, [&owners](Timer& timer) { owners += std::to_string(timer.owner) + " "; });
  return owners;
}

}  // namespace

TEST_CASE("a timer fires at its deadline, once") {
  Timers timers;
  Timer timer(7, 3);
  CHECK_FALSE(timer.is_running());
  CHECK_FALSE(timers.next_deadline());

  timers.queue(500).start(timer, 1000);
  CHECK(timer.is_running());
  CHECK(timer.deadline_ms() == 1500);
  CHECK(timer.kind == 3);
  CHECK(timers.next_deadline() == 1500);
  CHECK(fired(timers, 1499) == "");
  CHECK(fired(timers, 1500) == "7 ");
  CHECK_FALSE(timer.is_running());
  CHECK_FALSE(timers.next_deadline());
  CHECK(fired(timers, 5000) == "");
}

TEST_CASE("timers fire in the order of their deadlines, whatever their queues") {
  Timers timers;
  TimerQueue& slow = timers.queue(300);
  TimerQueue& fast = timers.queue(100);
  Timer a(1);
  Timer b(2);
  Timer c(3);
  Timer d(4);
  slow.start(a, 0);    // 300
  fast.start(b, 50);   // 150
  fast.start(c, 200);  // 300, but its queue was made later
  slow.start(d, 1);    // 301
  CHECK(timers.next_deadline() == 150);
  CHECK(fired(timers, 10000) == "2 1 3 4 ");
}

TEST_CASE("one duration is one queue, and a duration of 0 counts as 1") {
  Timers timers;
  CHECK(&timers.queue(500) == &timers.queue(500));
  CHECK(&timers.queue(500) != &timers.queue(501));
  CHECK(&timers.queue(0) == &timers.queue(1));
  CHECK(timers.queue(0).duration_ms() == 1);
}

TEST_CASE("a cancelled timer does not fire, wherever in its queue it stands") {
  for (std::uint32_t cancelled = 0; cancelled < 4; ++cancelled) {
    CAPTURE(cancelled);
    Timers timers;
    Timer all[] = {Timer(0), Timer(1), Timer(2), Timer(3)};
    for (Timer& timer : all) timers.queue(10).start(timer, timer.owner);
    all[cancelled].cancel();
    all[cancelled].cancel();
    CHECK_FALSE(all[cancelled].is_running());
    CHECK(timers.next_deadline() == (cancelled == 0 ? 11 : 10));
    std::string expected;
    for (const Timer& timer : all) {
      if (timer.owner != cancelled) expected += std::to_string(timer.owner) + " ";
    }
    CHECK(fired(timers, 100) == expected);
  }
}

TEST_CASE("starting a running timer moves its deadline, also from one queue to another") {
  Timers timers;
  Timer timer(1);
  Timer other(2);
  timers.queue(100).start(timer, 0);
  timers.queue(100).start(other, 10);
  timers.queue(100).start(timer, 50);
  CHECK(fired(timers, 149) == "2 ");
  timers.queue(1000).start(timer, 149);
  CHECK(fired(timers, 1148) == "");
  CHECK(fired(timers, 1149) == "1 ");
}

TEST_CASE("a destroyed timer is out of its queue") {
  Timers timers;
  Timer first(1);
  auto second = std::make_unique<Timer>(2);
  Timer third(3);
  timers.queue(10).start(first, 0);
  timers.queue(10).start(*second, 0);
  timers.queue(10).start(third, 0);
  second.reset();
  CHECK(fired(timers, 10) == "1 3 ");
}

TEST_CASE("a timer may outlive its queue") {
  Timer first(1);
  Timer second(2);
  {
    Timers timers;
    timers.queue(10).start(first, 0);
    timers.queue(10).start(second, 0);
  }
  first.cancel();
  Timers timers;
  timers.queue(10).start(second, 0);
  CHECK(fired(timers, 10) == "2 ");
}

TEST_CASE("while a timer fires, any timer may be started, cancelled and destroyed") {
  Timers timers;
  TimerQueue& queue = timers.queue(10);
  auto first = std::make_unique<Timer>(1);
  Timer second(2);
  Timer third(3);
  Timer fourth(4);
  queue.start(*first, 0);
  queue.start(second, 0);
  queue.start(third, 0);
  std::string order;
  timers.advance(10, [&](Timer& timer) {
    order += std::to_string(timer.owner) + " ";
    CHECK_FALSE(timer.is_running());
    if (timer.owner == 1) {
      second.cancel();
      timers.queue(1).start(fourth, 5);  // a new queue, already due
      first.reset();                     // itself
    } else if (timer.owner == 3) {
      queue.start(timer, 10);  // itself, for later
    }
  });
  CHECK(order == "1 4 3 ");
  CHECK(timers.next_deadline() == 20);
  CHECK(fired(timers, 20) == "3 ");
}

TEST_CASE(
    "a timer that starts itself anew fires once for each call, and advancing inside is safe") {
  Timers timers;
  Timer timer(1);
  Timer other(2);
  timers.queue(0).start(timer, 0);
  timers.queue(50).start(other, 0);
  int count = 0;
  timers.advance(100, [&](Timer& fires) {
    ++count;
    if (fires.owner == 1) {
      timers.queue(0).start(fires, 100);
      CHECK(fired(timers, 100) == "2 ");
    }
  });
  CHECK(count == 1);
  CHECK(timers.next_deadline() == 101);
}

TEST_CASE("time may jump ahead by hours: all that is due fires, earliest first") {
  Timers timers;
  Timer all[] = {Timer(0), Timer(1), Timer(2), Timer(3)};
  timers.queue(4000).start(all[0], 0);
  timers.queue(500).start(all[1], 0);
  timers.queue(32000).start(all[2], 0);
  timers.queue(500).start(all[3], 20000000);
  CHECK(fired(timers, 36000000) == "1 0 2 3 ");
}

TEST_CASE("where time steps back, a queue keeps its order") {
  Timers timers;
  Timer first(1);
  Timer second(2);
  timers.queue(10).start(first, 100);
  timers.queue(10).start(second, 50);
  CHECK(second.deadline_ms() == 110);
  CHECK(fired(timers, 109) == "");
  CHECK(fired(timers, 110) == "1 2 ");
}

TEST_CASE("many timers agree with a plain list of deadlines, and none of it allocates") {
  Timers timers;
  TimerQueue* queues[] = {&timers.queue(5), &timers.queue(20), &timers.queue(70)};
  std::vector<std::unique_ptr<Timer>> all;
  std::vector<std::uint64_t> deadlines(200, 0);  // 0: does not run
  for (std::uint32_t i = 0; i < deadlines.size(); ++i) all.push_back(std::make_unique<Timer>(i));
  std::mt19937 random(2);
  const test::AllocationCount allocations;
  for (std::uint64_t now_ms = 1; now_ms < 3000; ++now_ms) {
    for (int action = 0; action < 5; ++action) {
      const std::size_t which = random() % all.size();
      if (random() % 3 == 0) {
        all[which]->cancel();
        deadlines[which] = 0;
      } else {
        TimerQueue& queue = *queues[random() % 3];
        queue.start(*all[which], now_ms);
        deadlines[which] = now_ms + queue.duration_ms();
      }
    }
    std::uint64_t earliest = 0;
    for (std::uint64_t deadline : deadlines) {
      if (deadline != 0 && (earliest == 0 || deadline < earliest)) earliest = deadline;
    }
    const auto next = timers.next_deadline();
    if (next.value_or(0) != earliest) FAIL("at " << now_ms);
    timers.advance(now_ms, [&](Timer& timer) {
      if (deadlines[timer.owner] != now_ms) FAIL("timer " << timer.owner << " at " << now_ms);
      deadlines[timer.owner] = 0;
    });
    for (std::uint64_t deadline : deadlines) {
      if (deadline != 0 && deadline <= now_ms) FAIL("missed at " << now_ms);
    }
  }
  CHECK(allocations.count() == 0);
}

}  // namespace test_timer
