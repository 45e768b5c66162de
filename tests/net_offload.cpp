// offload.hpp: typed results, order, bounds, and closing at any moment. Meant to be run with the
// thread sanitizer, too.
// Not covered: a process that has no thread pool of libuv's.
#include "support/sipmsg.hpp"

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "support/loop.hpp"

namespace net_offload {

using namespace sipmsg;

namespace {

/// Holds threads until it is opened.
class Gate {
 public:
  void pass() {
    std::unique_lock<std::mutex> lock(mutex_);
    opened_.wait(lock, [this] { return open_; });
  }
  void open() {
    const std::lock_guard<std::mutex> lock(mutex_);
    open_ = true;
    opened_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable opened_;
  bool open_ = false;
};

/// Numbers that look like chance and are the same for the same seed.
struct Generator {
  unsigned operator()() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<unsigned>(state >> 33);
  }
  std::uint64_t state;
};

/// All threads of libuv's pool, kept busy until this goes.
class BusyPool {
 public:
  explicit BusyPool(test::EventLoop& events) : events_(events) {
    for (Hold& hold : holds_) {
      hold.request.data = this;
      uv_queue_work(
          events.uv(), &hold.request,
          [](uv_work_t* request) {
            auto& pool = *static_cast<BusyPool*>(request->data);
            ++pool.running_;
            pool.gate_.pass();
          },
          [](uv_work_t* request, int) { ++static_cast<BusyPool*>(request->data)->done_; });
    }
    while (running_ < threads) std::this_thread::yield();
  }
  ~BusyPool() {
    gate_.open();
    CHECK(events_.run_until([this] { return done_ == threads; }));
  }

 private:
  static constexpr int threads = 4;
  struct Hold {
    uv_work_t request;
  };
  test::EventLoop& events_;
  Gate gate_;
  std::atomic<int> running_{0};
  int done_ = 0;
  Hold holds_[threads];
};

}  // namespace

TEST_CASE("work runs on another thread, and what it returns comes back to the loop's") {
  test::EventLoop events;
  Loop loop(events.uv());
  Offload offload(loop);
  const auto own_thread = std::this_thread::get_id();
  std::string result;
  REQUIRE_FALSE(offload.run(
      [own_thread, text = std::make_unique<std::string>("found")] {
        return std::make_unique<std::string>(
            *text + (std::this_thread::get_id() == own_thread ? " here" : " there"));
      },
      [&, token = std::make_unique<int>(7)](Error error, std::unique_ptr<std::string> value) {
        CHECK_FALSE(error);
        CHECK((std::this_thread::get_id() == own_thread));
        CHECK(*token == 7);
        result = *value;
      }));
  CHECK(result.empty());
  CHECK(offload.size() == 1);
  CHECK(events.run_until([&] { return !result.empty(); }));
  CHECK(result == "found there");
  CHECK(offload.size() == 0);
  loop.close();
}

TEST_CASE("work that returns nothing reports with the error alone") {
  test::EventLoop events;
  Loop loop(events.uv());
  Offload offload(loop);
  std::atomic<int> worked{0};
  int reported = 0;
  REQUIRE_FALSE(offload.run([&] { ++worked; },
                            [&](Error error) {
                              CHECK_FALSE(error);
                              ++reported;
                            }));
  CHECK(events.run_until([&] { return reported > 0; }));
  CHECK(worked == 1);
  loop.close();
}

TEST_CASE(
    "jobs of one key run and report one after another in order; no more than allowed at once") {
  constexpr int keys = 7;
  constexpr int each = 60;
  test::EventLoop events;
  Loop loop(events.uv());
  Offload offload(loop);
  struct Key {
    std::atomic<int> inside{0};
    int worked = 0;  // not atomic: the jobs of a key never run together, the sanitizer may look
    int reported = 0;
  };
  std::vector<std::unique_ptr<Key>> states;
  for (int i = 0; i < keys; ++i) states.push_back(std::make_unique<Key>());
  std::atomic<int> wrong{0};
  int reported = 0;
  for (int i = 0; i < each; ++i) {
    for (int k = 0; k < keys; ++k) {
      Key& key = *states[static_cast<std::size_t>(k)];
      REQUIRE_FALSE(offload.run(
          static_cast<std::uint64_t>(k) << 32,
          [&, i] {
            if (++key.inside > 1) ++wrong;
            if (key.worked != i) ++wrong;
            for (int spin = (i * 7 % 13) * 500; spin > 0; --spin)
              std::atomic_signal_fence(std::memory_order_seq_cst);
            ++key.worked;
            --key.inside;
            return i;
          },
          [&, i](Error error, int value) {
            if (error || value != i || key.reported != i) ++wrong;
            ++key.reported;
            ++reported;
          }));
    }
  }
  CHECK(events.run_until([&] { return reported == keys * each; }));
  CHECK(wrong == 0);
  loop.close();
}

TEST_CASE("a slow key holds up nobody but itself") {
  test::EventLoop events;
  Loop loop(events.uv());
  Offload offload(loop);
  Gate gate;
  std::vector<int> slow;
  int quick = 0;
  for (int i = 0; i < 20; ++i) {
    REQUIRE_FALSE(offload.run(
        1, [&] { gate.pass(); }, [&, i](Error) { slow.push_back(i); }));
  }
  for (std::uint64_t key = 2; key < 100; ++key) {
    REQUIRE_FALSE(offload.run(
        key, [] {}, [&](Error) { ++quick; }));
  }
  CHECK(events.run_until([&] { return quick == 98; }));
  CHECK(slow.empty());
  gate.open();
  CHECK(events.run_until([&] { return slow.size() == 20; }));
  for (int i = 0; i < 20; ++i) CHECK(slow[static_cast<std::size_t>(i)] == i);
  loop.close();
}

TEST_CASE("the pool is given no more jobs at a time than allowed, and serves others meanwhile") {
  test::EventLoop events;
  Loop loop(events.uv());
  OffloadOptions options;
  options.max_running = 2;
  Offload offload(loop, options);
  Gate gate;
  std::atomic<int> started{0};
  int reported = 0;
  for (std::uint64_t key = 0; key < 10; ++key) {
    REQUIRE_FALSE(offload.run(
        key,
        [&] {
          ++started;
          gate.pass();
        },
        [&](Error) { ++reported; }));
  }
  // The pool takes work in order: this would be stuck behind ten jobs that wait.
  uv_work_t other;
  bool other_is_done = false;
  other.data = &other_is_done;
  uv_queue_work(
      events.uv(), &other, [](uv_work_t*) {},
      [](uv_work_t* request, int) { *static_cast<bool*>(request->data) = true; });
  CHECK(events.run_until([&] { return other_is_done && started >= 2; }, 3000));
  CHECK(started == 2);
  gate.open();
  CHECK(events.run_until([&] { return reported == 10 && other_is_done; }));
  loop.close();
}

TEST_CASE("jobs beyond the bound are refused at once, and never reported") {
  test::EventLoop events;
  Loop loop(events.uv());
  OffloadOptions options;
  options.max_jobs = 5;
  Offload offload(loop, options);
  Gate gate;
  int reported = 0;
  for (std::uint64_t i = 0; i < 5; ++i) {
    REQUIRE_FALSE(offload.run(
        i % 2, [&] { gate.pass(); }, [&](Error) { ++reported; }));
  }
  bool refused_ran = false;
  CHECK(offload
            .run(
                9, [&] { refused_ran = true; }, [&](Error) { refused_ran = true; })
            .code == ErrorCode::limit_reached);
  gate.open();
  CHECK(events.run_until([&] { return reported == 5; }));
  CHECK_FALSE(refused_ran);
  CHECK_FALSE(offload.run(
      9, [] {}, [&](Error) { ++reported; }));
  CHECK(events.run_until([&] { return reported == 6; }));
  loop.close();
}

TEST_CASE("closing reports everything as cancelled, what is running and what waits, once") {
  test::EventLoop events;
  Loop loop(events.uv());
  auto offload = std::make_unique<Offload>(loop);
  Gate gate;
  std::atomic<int> started{0};
  const auto token = std::make_shared<int>(0);
  int cancelled = 0;
  int others = 0;
  for (std::uint64_t i = 0; i < 30; ++i) {
    REQUIRE_FALSE(offload->run(
        i % 6,
        [&, token] {
          ++started;
          gate.pass();
          return 5;
        },
        [&, token](Error error, int value) {
          ++(error.code == ErrorCode::cancelled && value == 0 ? cancelled : others);
        }));
  }
  while (started < 4) std::this_thread::yield();
  offload.reset();
  CHECK(cancelled == 30);
  gate.open();
  loop.close();
  CHECK(events.run_dry());
  CHECK(cancelled == 30);
  CHECK(others == 0);
  CHECK(started == 4);
  CHECK(token.use_count() == 1);
}

TEST_CASE("work that libuv has not begun is taken back when closing") {
  test::EventLoop events;
  Loop loop(events.uv());
  std::atomic<bool> worked{false};
  int cancelled = 0;
  {
    BusyPool busy(events);
    Offload offload(loop);
    REQUIRE_FALSE(offload.run(
        [&] { worked = true; },
        [&](Error error) { cancelled += error.code == ErrorCode::cancelled ? 1 : 100; }));
    events.turn();
    offload.close();
    CHECK(cancelled == 1);
  }
  loop.close();
  CHECK(events.run_dry());
  CHECK_FALSE(worked);
  CHECK(cancelled == 1);
}

TEST_CASE("after closing, jobs are refused") {
  test::EventLoop events;
  Loop loop(events.uv());
  Offload closed(loop);
  closed.close();
  CHECK(closed.run([] {}, [](Error) { FAIL("reported"); }).code == ErrorCode::closed);
  Offload open(loop);
  loop.close();
  CHECK(open.run([] {}, [](Error) { FAIL("reported"); }).code == ErrorCode::closed);
}

TEST_CASE("a report may give more jobs, of its own key too") {
  test::EventLoop events;
  Loop loop(events.uv());
  OffloadOptions options;
  options.max_jobs = 1;
  Offload offload(loop, options);
  int rounds = 0;
  std::function<void()> again = [&] {
    REQUIRE_FALSE(offload.run(
        1, [] {},
        [&](Error) {
          if (++rounds < 5) again();
        }));
  };
  again();
  CHECK(events.run_until([&] { return rounds == 5; }));
  loop.close();
}

TEST_CASE("a report may close or destroy its Offload, and so may a cancelled one") {
  for (const bool destroy : {false, true}) {
    for (const bool when_cancelled : {false, true}) {
      CAPTURE(destroy);
      CAPTURE(when_cancelled);
      test::EventLoop events;
      Loop loop(events.uv());
      auto offload = std::make_unique<Offload>(loop);
      int reported = 0;
      for (std::uint64_t i = 0; i < 20; ++i) {
        REQUIRE_FALSE(offload->run(
            i % 5, [] {},
            [&](Error) {
              ++reported;
              if (offload == nullptr) return;
              if (destroy) {
                const auto dying = std::move(offload);
              } else {
                offload->close();
              }
            }));
      }
      if (when_cancelled) offload->close();
      CHECK(events.run_until([&] { return reported == 20; }));
      loop.close();
      CHECK(events.run_dry());
      CHECK(reported == 20);
    }
  }
}

TEST_CASE("whatever happens when, every accepted job reports exactly once") {
  for (unsigned seed = 1; seed <= 30; ++seed) {
    CAPTURE(seed);
    Generator random{seed};
    test::EventLoop events;
    Loop loop(events.uv());
    OffloadOptions options;
    options.max_jobs = 1 + random() % 50;
    options.max_running = 1 + random() % 6;
    auto offload = std::make_unique<Offload>(loop, options);
    std::vector<int> reports;
    std::vector<int> last_of_key(8, -1);
    int out_of_order = 0;
    const unsigned steps = 20 + random() % 150;
    for (unsigned step = 0; step < steps; ++step) {
      if (random() % 4 == 0) {
        events.turn(1);
        continue;
      }
      const std::uint64_t key = random() % last_of_key.size();
      const auto number = static_cast<int>(reports.size());
      const Error error = offload->run(
          key,
          [spins = random() % 2000] {
            for (unsigned spin = 0; spin < spins; ++spin)
              std::atomic_signal_fence(std::memory_order_seq_cst);
            return std::string(100, 'x');
          },
          [&, key, number](Error failure, const std::string& value) {
            ++reports[static_cast<std::size_t>(number)];
            if (!failure && value.size() != 100) ++out_of_order;
            if (!failure && last_of_key[key] > number) ++out_of_order;
            if (!failure) last_of_key[key] = number;
          });
      if (!error) reports.push_back(0);
    }
    if (random() % 2 == 0) {
      offload.reset();
    } else {
      CHECK(events.run_until([&] { return offload->size() == 0; }));
    }
    loop.close();
    CHECK(events.run_dry());
    CHECK(out_of_order == 0);
    for (int count : reports) CHECK(count == 1);
  }
}

}  // namespace net_offload
