// loop.hpp and files.hpp: closing at any moment, alarms, posting, addresses, files.
// Not covered: the randomness of random_secret, interfaces of other machines (a table stands for
// them), a disk that fails in the middle of a write.
#include "support/sipmsg.hpp"

#include <sys/stat.h>

#include <cstdlib>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "support/loop.hpp"

namespace net_loop {

using namespace sipmsg;

namespace {

class TestAlarm final : public Alarm {
 public:
  explicit TestAlarm(Loop& loop) : Alarm(loop) {}
  void on_alarm(std::uint64_t now_ms) override {
    ++calls;
    last_ms = now_ms;
    if (const auto running = then) running();  // a copy: it may destroy this
  }
  int calls = 0;
  std::uint64_t last_ms = 0;
  std::function<void()> then;
};

/// A directory of its own, removed at the end.
class TestDirectory {
 public:
  TestDirectory() {
    const char* base = std::getenv("TMPDIR");
    path = std::string(base == nullptr ? "/tmp" : base) + "/sipmsg-test-XXXXXX";
    REQUIRE(::mkdtemp(&path[0]) != nullptr);
    path += '/';
  }
  ~TestDirectory() {
    const auto names = all_names();
    for (const std::string& name : names) ::unlink((path + name).c_str());
    ::rmdir(path.c_str());
  }
  std::vector<std::string> all_names() const {
    std::vector<std::string> names;
    uv_fs_t request;
    uv_dirent_t entry;
    if (uv_fs_scandir(nullptr, &request, path.c_str(), 0, nullptr) >= 0) {
      while (uv_fs_scandir_next(&request, &entry) == 0) names.emplace_back(entry.name);
    }
    uv_fs_req_cleanup(&request);
    return names;
  }
  std::string path;
};

IpAddress ip(std::string_view text) {
  const auto parsed = parse_ip(text);
  REQUIRE(parsed);
  return *parsed;
}

}  // namespace

TEST_CASE("a loop is kept running by a Loop until that is closed") {
  test::EventLoop events;
  Loop loop(events.uv());
  REQUIRE_FALSE(loop.error());
  CHECK(uv_loop_alive(events.uv()) != 0);
  loop.close();
  loop.close();
  CHECK(loop.is_closed());
  CHECK(events.run_dry());
}

TEST_CASE("an alarm goes off once, at its time and not before") {
  test::EventLoop events;
  Loop loop(events.uv());
  TestAlarm alarm(loop);
  const std::uint64_t start_ms = loop.fresh_now_ms();
  alarm.arm(start_ms + 30);
  CHECK(events.run_until([&] { return alarm.calls > 0; }));
  CHECK(alarm.last_ms >= start_ms + 30);
  events.turn();
  CHECK(alarm.calls == 1);
}

TEST_CASE("an alarm that is set twice goes off at the earlier time") {
  test::EventLoop events;
  Loop loop(events.uv());
  TestAlarm alarm(loop);
  const std::uint64_t start_ms = loop.fresh_now_ms();
  alarm.arm(start_ms + 60000);
  alarm.arm(start_ms + 10);
  alarm.arm(start_ms + 30000);
  CHECK(events.run_until([&] { return alarm.calls > 0; }));
  CHECK(alarm.last_ms < start_ms + 30000);
}

TEST_CASE("of several alarms each goes off at its own time, also one set inside another") {
  test::EventLoop events;
  Loop loop(events.uv());
  TestAlarm early(loop);
  TestAlarm late(loop);
  TestAlarm inner(loop);
  const std::uint64_t start_ms = loop.fresh_now_ms();
  late.arm(start_ms + 40);
  early.arm(start_ms + 10);
  early.then = [&] { inner.arm(loop.now_ms()); };
  CHECK(events.run_until([&] { return early.calls > 0; }));
  CHECK(late.calls == 0);
  CHECK(events.run_until([&] { return late.calls > 0 && inner.calls > 0; }));
  CHECK(late.last_ms >= start_ms + 40);
}

TEST_CASE("an alarm that sets itself to the past goes off again, and the loop goes on meanwhile") {
  test::EventLoop events;
  Loop loop(events.uv());
  TestAlarm alarm(loop);
  bool posted = false;
  alarm.then = [&] { alarm.arm(0); };
  alarm.arm(0);
  REQUIRE_FALSE(loop.post([&] { posted = true; }));
  CHECK(events.run_until([&] { return posted && alarm.calls > 3; }));
}

TEST_CASE("alarm and loop may be destroyed inside an alarm, in any order") {
  for (const bool loop_first : {true, false}) {
    CAPTURE(loop_first);
    test::EventLoop events;
    auto loop = std::make_unique<Loop>(events.uv());
    TestAlarm other(*loop);
    auto dying = std::make_unique<TestAlarm>(*loop);
    other.arm(loop->fresh_now_ms());
    dying->arm(loop->now_ms());
    bool done = false;
    dying->then = [&] {
      done = true;
      if (loop_first) loop.reset();
      dying.reset();
      loop.reset();
    };
    CHECK(events.run_dry());
    CHECK(done);
    CHECK(other.calls == 0);
    other.arm(0);  // nothing happens any more
  }
}

TEST_CASE("functions posted from other threads run on the loop's thread, each thread's in order") {
  constexpr int threads = 4;
  constexpr int each = 500;
  test::EventLoop events;
  Loop loop(events.uv());
  const auto own_thread = std::this_thread::get_id();
  std::vector<int> last(threads, -1);
  int wrong = 0;
  int total = 0;
  std::vector<std::thread> posters;
  for (int thread = 0; thread < threads; ++thread) {
    posters.emplace_back([&, thread] {
      for (int i = 0; i < each; ++i) {
        (void)loop.post([&, thread, i, owned = std::make_unique<int>(i)] {
          if (std::this_thread::get_id() != own_thread || *owned != i) ++wrong;
          if (last[static_cast<std::size_t>(thread)] != i - 1) ++wrong;
          last[static_cast<std::size_t>(thread)] = i;
          ++total;
        });
      }
    });
  }
  CHECK(events.run_until([&] { return total == threads * each; }));
  for (std::thread& thread : posters) thread.join();
  CHECK(wrong == 0);
}

TEST_CASE("what was posted before closing is destroyed unrun, and posting after it is an error") {
  test::EventLoop events;
  auto token = std::make_shared<int>(0);
  Loop loop(events.uv());
  bool ran = false;
  REQUIRE_FALSE(loop.post([&, token] { ran = true; }));
  CHECK(token.use_count() == 2);
  loop.close();
  CHECK(token.use_count() == 1);
  CHECK(loop.post([&, token] { ran = true; }).code == ErrorCode::closed);
  CHECK(token.use_count() == 1);
  CHECK(events.run_dry());
  CHECK_FALSE(ran);
}

TEST_CASE("a posted function may close or destroy the loop; those behind it are destroyed unrun") {
  test::EventLoop events;
  auto loop = std::make_unique<Loop>(events.uv());
  auto token = std::make_shared<int>(0);
  bool ran = false;
  REQUIRE_FALSE(loop->post([&] { loop.reset(); }));
  REQUIRE_FALSE(loop->post([&, token] { ran = true; }));
  CHECK(events.run_dry());
  CHECK_FALSE(ran);
  CHECK(token.use_count() == 1);
}

TEST_CASE("other threads may post while the loop is closed") {
  test::EventLoop events;
  Loop loop(events.uv());
  std::thread poster([&] {
    while (!loop.post([] {})) {
    }
  });
  events.turn(20);
  loop.close();
  poster.join();
  CHECK(events.run_dry());
}

TEST_CASE("an address comes back from its native form as it was") {
  for (const char* text : {"192.0.2.7:5060", "0.0.0.0:0", "255.255.255.255:65535",
                           "[2001:db8::1:2]:5061", "[::1]:1"}) {
    CAPTURE(text);
    const auto address = parse_socket_address(text);
    REQUIRE(address.ok());
    const NativeAddress native = to_native(*address);
    CHECK(from_native(&native.any) == *address);
    CHECK((native.any.sa_family == AF_INET) == address->ip.is_ipv4());
  }
  SocketAddress scoped;
  scoped.ip = ip("fe80::1");
  scoped.scope = 7;
  const NativeAddress native = to_native(scoped);
  CHECK(from_native(&native.any) == scoped);
}

TEST_CASE("an IPv4 address in the clothes of IPv6 is the IPv4 address") {
  const auto address = parse_socket_address("192.0.2.7:5060");
  const NativeAddress native = to_native(*address, true);
  CHECK(native.any.sa_family == AF_INET6);
  CHECK(from_native(&native.any) == *address);
}

TEST_CASE("a listener's address may be in brackets and may name an interface") {
  CHECK(listen_address("192.0.2.7", 5060)->port == 5060);
  CHECK(listen_address("[::1]", 1)->ip == ip("::1"));
  CHECK(listen_address("::", 1)->ip.is_unspecified());
  CHECK(listen_address("fe80::1%lo", 1)->scope != 0);
  CHECK(listen_address("fe80::1%nosuch0", 1).error().code == ErrorCode::bad_address);
  CHECK(listen_address("localhost", 1).error().code == ErrorCode::bad_address);
  CHECK(listen_address("", 1).error().code == ErrorCode::bad_address);
}

TEST_CASE("this machine has a loopback interface with its network") {
  bool found = false;
  for (const InterfaceAddress& address : interface_addresses()) {
    if (address.ip != ip("127.0.0.1")) continue;
    found = true;
    CHECK(address.is_loopback);
    CHECK(address.prefix_length == 8);
  }
  CHECK(found);
}

TEST_CASE("the local address for a peer is the one nearest to it") {
  std::vector<InterfaceAddress> interfaces;
  const auto add = [&](std::string_view text, std::uint8_t prefix_length,
                       bool is_loopback = false) {
    interfaces.push_back({ip(text), prefix_length, is_loopback});
  };
  add("127.0.0.1", 8, true);
  add("fe80::5", 64);
  add("192.0.2.10", 24);
  add("192.0.2.11", 24);
  add("10.1.2.3", 20);
  add("10.0.0.1", 8);
  add("2001:db8::10", 64);
  add("fd00::10", 8);
  struct Row {
    std::string_view remote, expected;
  };
  for (const Row& row :
       {Row{"127.0.0.1", "127.0.0.1"}, Row{"127.8.8.8", "127.0.0.1"},
        Row{"192.0.2.77", "192.0.2.10"}, Row{"10.200.0.1", "10.0.0.1"},
        Row{"10.1.15.255", "10.1.2.3"}, Row{"10.1.16.0", "10.0.0.1"}, Row{"10.0.0.1", "10.0.0.1"},
        Row{"192.0.2.11", "192.0.2.11"}, Row{"203.0.113.1", "192.0.2.10"}, Row{"::1", "::1"},
        Row{"2001:db8::77", "2001:db8::10"}, Row{"2001:db8:1::77", "2001:db8::10"},
        Row{"fdff::1", "fd00::10"}, Row{"fe80::77", "fe80::5"}}) {
    CAPTURE(row.remote);
    CHECK(to_text(choose_local_address(interfaces, ip(row.remote))) == row.expected);
  }
  CHECK(to_text(choose_local_address({}, ip("192.0.2.1"))) == "127.0.0.1");
  CHECK(to_text(choose_local_address({}, ip("2001:db8::1"))) == "::1");
}

TEST_CASE("an error of the network says what the system said") {
  CHECK(describe(network_error(UV_EADDRINUSE)) == "the network refused: address already in use");
  CHECK(describe(ErrorCode::timeout) == "no answer came in time");
  CHECK(describe({ErrorCode::network, -99999}).find("-99999") != std::string::npos);
}

TEST_CASE("two secrets differ, and the time is that of this century") {
  CHECK(random_secret().value() != random_secret().value());
  CHECK(unix_time_s() > 1600000000);
}

TEST_CASE("a file is read byte for byte, whatever its size") {
  TestDirectory directory;
  const std::string path = directory.path + "file";
  for (const std::size_t size : {0u, 1u, 16383u, 16384u, 16385u, 100000u}) {
    CAPTURE(size);
    std::string text;
    for (std::size_t i = 0; i < size; ++i) text.push_back(static_cast<char>(i * 31));
    REQUIRE_FALSE(write_file_atomically(path, text));
    const auto read = read_file(path);
    REQUIRE(read.ok());
    CHECK(*read == text);
  }
  CHECK(read_file(path, 99999).error().code == ErrorCode::too_large);
  CHECK(read_file(path, 100000).ok());
  CHECK(directory.all_names() == std::vector<std::string>{"file"});
}

TEST_CASE("a file that is not there, and a directory, are errors with the system's reason") {
  TestDirectory directory;
  const Error missing = read_file(directory.path + "missing").error();
  CHECK(missing.code == ErrorCode::file);
  CHECK(missing.place == UV_ENOENT);
  CHECK(read_file(directory.path).error().place == UV_EISDIR);
  CHECK(list_directory(directory.path + "missing").error().code == ErrorCode::file);
  CHECK(write_file_atomically(directory.path + "missing/file", "x").place == UV_ENOENT);
  CHECK(directory.all_names().empty());
  const std::string inner = directory.path + "inner";
  REQUIRE(::mkdir(inner.c_str(), 0700) == 0);
  CHECK(write_file_atomically(inner, "x").code == ErrorCode::file);
  CHECK(directory.all_names() == std::vector<std::string>{"inner"});  // nothing is left beside it
  ::rmdir(inner.c_str());
}

TEST_CASE("a new file is its owner's alone, and a file that is replaced keeps its mode") {
  TestDirectory directory;
  const std::string path = directory.path + "file";
  struct stat status {};
  REQUIRE_FALSE(write_file_atomically(path, "first"));
  REQUIRE(::stat(path.c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0600);
  REQUIRE(::chmod(path.c_str(), 0640) == 0);
  REQUIRE_FALSE(write_file_atomically(path, "second"));
  REQUIRE(::stat(path.c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0640);
  CHECK(*read_file(path) == "second");
}

TEST_CASE("a link stays a link, and the file it leads to is replaced") {
  TestDirectory directory;
  REQUIRE_FALSE(write_file_atomically(directory.path + "file", "first"));
  const std::string link = directory.path + "link";
  REQUIRE(::symlink("file", link.c_str()) == 0);
  REQUIRE_FALSE(write_file_atomically(link, "second"));
  struct stat status {};
  REQUIRE(::lstat(link.c_str(), &status) == 0);
  CHECK(S_ISLNK(status.st_mode));
  CHECK(*read_file(directory.path + "file") == "second");
}

TEST_CASE("a directory lists its files and links to files, and nothing else") {
  TestDirectory directory;
  REQUIRE_FALSE(write_file_atomically(directory.path + "a.conf", "a"));
  REQUIRE(::symlink("a.conf", (directory.path + "b.conf").c_str()) == 0);
  REQUIRE(::symlink("nowhere", (directory.path + "dangling").c_str()) == 0);
  REQUIRE(::symlink(".", (directory.path + "self").c_str()) == 0);
  FileSource source;
  const auto names = source.list(directory.path);
  REQUIRE(names.ok());
  CHECK(names->size() == 2);
  CHECK((*names)[0] != (*names)[1]);
  CHECK(source.list(directory.path + "a.conf").error().code == ErrorCode::file);
  CHECK(*source.read(directory.path + "b.conf") == "a");
}

}  // namespace net_loop
