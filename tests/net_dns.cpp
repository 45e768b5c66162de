// dns.hpp: the system's own names, replies to SRV queries, and closing at any moment. res_query is
// replaced by a function of ours, because /etc/resolv.conf is not a test's to change.
// Not covered: name servers. tests/smoke/interop.py has one, in a network of its own.
#include "support/sipmsg.hpp"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "support/data.hpp"
#include "support/loop.hpp"

namespace net_dns {

using namespace sipmsg;

namespace {

/// What res_query is to return next, and what it was asked.
struct Resolver {
  std::mutex mutex;
  std::condition_variable changed;
  std::string reply;   ///< the answer
  int size = 0;        ///< what is returned where it is not 0, for answers that did not fit
  int reason = 0;      ///< h_errno, and -1 is returned
  bool holds = false;  ///< until `release`
  int waiting = 0;
  std::string asked;
  std::thread::id thread;

  void release() {
    const std::lock_guard<std::mutex> lock(mutex);
    holds = false;
    changed.notify_all();
  }
  bool has_waiting() {
    const std::lock_guard<std::mutex> lock(mutex);
    return waiting > 0;
  }
};
Resolver* resolver = nullptr;

/// One for each test, as long as threads may ask it: declare it before the loop.
class ScriptedResolver : public Resolver {
 public:
  ScriptedResolver() { resolver = this; }
  ~ScriptedResolver() { resolver = nullptr; }
};

}  // namespace

// The program's own symbol comes before the C library's.
extern "C" int res_query(const char* name, int record_class, int type, unsigned char* answer,
                         int size)
#ifdef __GLIBC__
    noexcept
#endif
{
  if (resolver == nullptr) {  // a test of another file: there are no name servers
    h_errno = HOST_NOT_FOUND;
    return -1;
  }
  std::unique_lock<std::mutex> lock(resolver->mutex);
  resolver->thread = std::this_thread::get_id();
  resolver->asked =
      std::string(name) + " " + std::to_string(record_class) + " " + std::to_string(type);
  ++resolver->waiting;
  resolver->changed.wait(lock, [] { return !resolver->holds; });
  --resolver->waiting;
  if (resolver->reason != 0) {
    h_errno = resolver->reason;
    return -1;
  }
  const auto length = static_cast<int>(resolver->reply.size());
  std::memcpy(answer, resolver->reply.data(), static_cast<std::size_t>(std::min(length, size)));
  return resolver->size != 0 ? resolver->size : length;
}

TEST_CASE("localhost has an address, found while the loop runs") {
  test::EventLoop events;
  Loop loop(events.uv());
  Dns dns(loop);
  int calls = 0;
  std::vector<IpAddress> addresses;
  dns.look_up_addresses("localhost", [&](Error error, const std::vector<IpAddress>& found) {
    ++calls;
    CHECK_FALSE(error);
    addresses = found;
  });
  CHECK(calls == 0);
  REQUIRE(events.run_until([&] { return calls > 0; }));
  CHECK(calls == 1);
  REQUIRE_FALSE(addresses.empty());
  for (const IpAddress& ip : addresses) CHECK(ip.is_loopback());
}

TEST_CASE("a name nobody has is unknown, and what is no name is not looked up") {
  test::EventLoop events;
  Loop loop(events.uv());
  Dns dns(loop);
  const struct {
    std::string host;
    ErrorCode error;
  } rows[] = {
      // A label of more than 63 octets cannot be asked for, so no name server is needed to say no.
      {std::string(64, 'a') + ".invalid", ErrorCode::unknown_host},
      {"", ErrorCode::bad_host},
      {"127.1", ErrorCode::bad_host},
      {"::1", ErrorCode::bad_host},
      {std::string("localhost\0.example", 18), ErrorCode::bad_host},
      {std::string(254, 'a'), ErrorCode::bad_host},
  };
  for (const auto& row : rows) {
    CAPTURE(row.host);
    int calls = 0;
    dns.look_up_addresses(row.host, [&](Error error, const std::vector<IpAddress>& found) {
      ++calls;
      CHECK(error.name() == std::string(error_name(row.error)));
      CHECK(found.empty());
    });
    CHECK(calls == 0);
    REQUIRE(events.run_until([&] { return calls > 0; }));
    CHECK(calls == 1);
  }
}

TEST_CASE("SRV records are asked for on another thread and read from the reply") {
  ScriptedResolver system;
  test::EventLoop events;
  Loop loop(events.uv());
  Dns dns(loop);
  const std::string whole = test::read_data("dns/five_weighted.bin");
  const struct {
    const char* rule;
    std::string reply;
    int size;
    int reason;
    Error error;
    std::size_t records;
  } rows[] = {
      {"records", whole, 0, 0, {}, 5},
      {"a reply larger than the buffer", whole, 100000, 0, {}, 5},
      {"no such name", "", 0, HOST_NOT_FOUND, {}, 0},
      {"no such records", "", 0, NO_DATA, {}, 0},
      {"no such name, says the reply", test::read_data("dns/no_such_name.bin"), 0, 0, {}, 0},
      {"no name server answers", "", 0, TRY_AGAIN, network_error(UV_EAI_AGAIN), 0},
      {"the name server refuses", "", 0, NO_RECOVERY, network_error(UV_EAI_FAIL), 0},
      {"rubbish", "rubbish", 0, 0, ErrorCode::bad_dns_answer, 0},
  };
  for (const auto& row : rows) {
    CAPTURE(row.rule);
    system.reply = row.reply;
    system.size = row.size;
    system.reason = row.reason;
    int calls = 0;
    dns.look_up_srv("_sip._udp.example.org", [&](Error error, const auto& records) {
      ++calls;
      CHECK(error.name() == std::string(row.error.name()));
      CHECK(error.place == row.error.place);
      CHECK(records.size() == row.records);
    });
    CHECK(calls == 0);
    REQUIRE(events.run_until([&] { return calls > 0; }));
    CHECK(calls == 1);
    CHECK(system.asked == "_sip._udp.example.org 1 33");
    const bool on_own_thread = system.thread == std::this_thread::get_id();
    CHECK_FALSE(on_own_thread);
  }
}

TEST_CASE("what is no name is not asked for") {
  test::EventLoop events;
  Loop loop(events.uv());
  Dns dns(loop);
  bool is_refused = false;
  dns.look_up_srv("_sip._udp.example..", [&](Error error, const auto&) {
    is_refused = error.code == ErrorCode::bad_host;
  });
  CHECK(events.run_until([&] { return is_refused; }));
}

TEST_CASE("the next hops of a domain are found by its SRV records") {
  ScriptedResolver system;
  test::EventLoop events;
  Loop loop(events.uv());
  Dns dns(loop);
  // One record: priority 0, weight 0, port 5070, target localhost.
  system.reply = std::string("\0\0\x81\x80\0\0\0\1\0\0\0\0\0\0\x21\0\1\0\0\0\0\0\x11", 23) +
                 std::string("\0\0\0\0\x13\xce\x09localhost\0", 17);
  Random random(SipHashKey{});
  std::vector<Flow> hops;
  CHECK_FALSE(locate(*parse_uri("sip:example.org;transport=tcp"), &dns, random,
                     [&](Error error, std::vector<Flow> found) {
                       CHECK_FALSE(error);
                       hops = std::move(found);
                     }));
  REQUIRE(events.run_until([&] { return !hops.empty(); }));
  CHECK(system.asked == "_sip._tcp.example.org 1 33");
  for (const Flow& hop : hops) {
    CHECK(hop.transport == Transport::tcp);
    CHECK(hop.remote.port == 5070);
    CHECK(hop.remote.ip.is_loopback());
  }
}

TEST_CASE("after closing nobody is called, whatever had begun") {
  enum class End { close, destroy, close_loop };
  for (const End end : {End::close, End::destroy, End::close_loop}) {
    CAPTURE(static_cast<int>(end));
    ScriptedResolver system;
    test::EventLoop events;
    system.holds = true;
    Loop loop(events.uv());
    auto dns = std::make_unique<Dns>(loop);
    const auto never = [](Error, const auto&) { FAIL("called after closing"); };
    for (int i = 0; i < 5; ++i) {  // more than run at a time
      dns->look_up_srv("_sip._udp.example.org", never);
      dns->look_up_addresses("localhost", never);
    }
    dns->look_up_srv("no name", never);
    dns->look_up_addresses("no name", never);
    while (!system.has_waiting()) std::this_thread::yield();
    if (end == End::close) dns->close();
    if (end == End::destroy) dns = nullptr;
    if (end == End::close_loop) loop.close();
    if (dns) dns->look_up_addresses("localhost", never);
    if (dns) dns->look_up_srv("_sip._udp.example.org", never);
    system.release();
    loop.close();
    CHECK(events.run_dry());
    dns = nullptr;
  }
}

TEST_CASE("a handler may destroy the service, and the next one is not called") {
  ScriptedResolver system;
  test::EventLoop events;
  system.reason = NO_DATA;
  Loop loop(events.uv());
  for (const bool by_address : {false, true}) {
    CAPTURE(by_address);
    auto dns = std::make_unique<Dns>(loop);
    int calls = 0;
    const auto destroy = [&](Error, const auto&) {
      ++calls;
      dns = nullptr;
    };
    for (int i = 0; i < 3; ++i) {
      if (by_address) {
        dns->look_up_addresses("localhost", destroy);
      } else {
        dns->look_up_srv("_sip._udp.example.org", destroy);
      }
    }
    REQUIRE(events.run_until([&] { return calls > 0; }));
    events.turn();
    CHECK(calls == 1);
  }
}

TEST_CASE("how many look-ups may wait is limited, and the limit is told later") {
  ScriptedResolver system;
  test::EventLoop events;
  system.holds = true;
  system.reason = NO_DATA;
  Loop loop(events.uv());
  Dns dns(loop);
  int done = 0;
  int refused = 0;
  for (int i = 0; i < 1001; ++i) {
    dns.look_up_srv("_sip._udp.example.org", [&](Error error, const auto&) {
      ++(error.code == ErrorCode::limit_reached ? refused : done);
    });
  }
  CHECK(refused == 0);
  CHECK(events.run_until([&] { return refused > 0; }));
  CHECK(done == 0);
  system.release();
  CHECK(events.run_until([&] { return done == 1000; }));
  CHECK(refused == 1);
}

}  // namespace net_dns
