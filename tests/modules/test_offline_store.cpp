// What is kept for users who are offline: files, order, limits, expiry; every failure of the disk,
// and a crash before every single operation on it.
// Not covered: a disk that loses what it has synced.
#include <dirent.h>
#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "../../src/modules/offline/store.hpp"
#include "support/loop.hpp"

namespace test_offline_store {

using namespace modules;

namespace {

constexpr std::int64_t noon_s = 1764158400;  // any day's

/// A directory of its own, removed with all that is in it.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string name = "/tmp/sipmsg-offline.XXXXXX";
    REQUIRE(::mkdtemp(&name[0]) != nullptr);
    path = name;
  }
  ~TemporaryDirectory() {
    for (const std::string& directory : {spool(), path}) {
      for (const std::string& name : names(directory)) ::unlink((directory + "/" + name).c_str());
      ::rmdir(directory.c_str());
    }
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  std::string spool() const { return path + "/spool"; }
  static std::vector<std::string> names(const std::string& directory) {
    return sipmsg::list_directory(directory).value();
  }
  /// How many files of the spool end so.
  std::size_t count(const std::string& ending) const {
    std::size_t found = 0;
    for (const std::string& name : names(spool())) {
      if (name.size() > ending.size() &&
          name.compare(name.size() - ending.size(), ending.size(), ending) == 0) {
        ++found;
      }
    }
    return found;
  }

  std::string path;
};

void write_text(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}
std::string read_text(const std::string& path) { return sipmsg::read_file(path).value(); }

KeptMessage message_for(const std::string& user, const std::string& body,
                        const std::string& sender = "101@example.org") {
  KeptMessage message;
  message.user = user;
  message.sender = sender;
  message.identity = user + "/" + sender + "/" + body;
  message.from = "\"Ann\" <sip:101@example.org>";
  message.to = "<sip:" + user + "@example.org>";
  message.date = "Wed, 26 Nov 2025 12:00:00 GMT";
  message.kept_s = noon_s;
  message.expires_s = noon_s + 3600;
  message.content_type = "text/plain";
  message.body = body;
  return message;
}

bool is_same(const KeptMessage& a, const KeptMessage& b) {
  return a.user == b.user && a.sender == b.sender && a.identity == b.identity && a.from == b.from &&
         a.to == b.to && a.date == b.date && a.kept_s == b.kept_s && a.expires_s == b.expires_s &&
         a.content_type == b.content_type && a.headers == b.headers && a.body == b.body;
}

/// Lets chosen operations fail, and those after a crash.
class FaultyFiles : public FileOperations {
 public:
  int create(const std::string& path) override {
    return fails() ? UV_EIO : real_files().create(path);
  }
  int write(int file, std::string_view text) override {
    if (!fails()) return real_files().write(file, text);
    real_files().write(file, text.substr(0, text.size() / 2));  // as a full disk does it
    return UV_ENOSPC;
  }
  int sync(int file) override { return fails() ? UV_EIO : real_files().sync(file); }
  int close(int file) override {
    const int status = real_files().close(file);  // the number must not leak
    return fails() ? UV_EIO : status;
  }
  int rename(const std::string& from, const std::string& to) override {
    return fails() ? UV_EIO : real_files().rename(from, to);
  }
  int remove(const std::string& path) override {
    return fails() ? UV_EIO : real_files().remove(path);
  }
  int sync_directory(const std::string& path) override {
    return fails() ? UV_EIO : real_files().sync_directory(path);
  }

  int operations = 0;
  int failing = 0;        ///< the number of the one that fails, from 1
  bool is_crash = false;  ///< and everything after it does

 private:
  bool fails() {
    ++operations;
    return operations == failing || (is_crash && failing != 0 && operations > failing);
  }
};

/// What a server finds when it starts on that spool: the bodies, in order.
std::vector<std::string> bodies_after_restart(const TemporaryDirectory& directory) {
  Spool spool(directory.spool());
  std::string unusable;
  const SpoolContents contents = spool.open(0, unusable);
  CHECK(unusable == "");
  CHECK(contents.left_alone == 0);
  std::vector<std::string> bodies;
  for (const SpoolContents::Kept& kept : contents.kept) {
    Unreadable unreadable;
    const auto message = spool.read(kept.message.id, unreadable);
    REQUIRE(message);
    bodies.push_back(message->body);
  }
  CHECK(directory.count(".tmp") == 0);
  return bodies;
}

}  // namespace

// ---- the file

TEST_CASE("a message comes out of its file as it went in, whatever octets it has") {
  KeptMessage message = message_for("102", "hello");
  message.user = std::string("../../etc/passwd\n%41\0\x7f\xff", 24);
  message.from = "\"a: b\r\nUser: x\" <sip:a@b>";
  message.headers = {{"Subject", "one\ttwo"}, {"Content-Encoding", "gzip"}, {"User", "not ours"}};
  message.body = std::string("\n\nUser: me\n\0\r\n", 14);
  std::string why;
  const auto read = parse_file_text(to_file_text(message), why);
  REQUIRE(read);
  CHECK(is_same(*read, message));
}

TEST_CASE("a file is a text that a person can read") {
  KeptMessage message = message_for("102", "hello");
  message.headers = {{"Subject", "lunch"}};
  message.body += "\n";
  const std::string text = to_file_text(message);
  CHECK(text.substr(text.find('\n') + 1) ==
        "User: 102\n"
        "Sender: 101@example.org\n"
        "From: \"Ann\" <sip:101@example.org>\n"
        "To: <sip:102@example.org>\n"
        "Date: Wed, 26 Nov 2025 12:00:00 GMT\n"
        "Kept: 2025-11-26T12:00:00Z\n"
        "Until: 2025-11-26T13:00:00Z\n"
        "Identity: 102/101@example.org/hello\n"
        "Content-Type: text/plain\n"
        "SIP-Subject: lunch\n"
        "\n"
        "hello\n");
}

TEST_CASE("a file that was cut, changed or made by hand is no message") {
  const std::string text = to_file_text(message_for("102", "hello"));
  std::string why;
  for (std::size_t size = 0; size < text.size(); ++size) {
    CAPTURE(size);
    CHECK_FALSE(parse_file_text(text.substr(0, size), why));
    CHECK(why != "");
    std::string changed = text;
    changed[size] = static_cast<char>(changed[size] ^ 1);
    CHECK_FALSE(parse_file_text(changed, why));
  }
  CHECK_FALSE(parse_file_text(text + "\n", why));
  CHECK(why == "is torn or was changed");
  CHECK_FALSE(parse_file_text("sipmsg-kept 2" + text.substr(13), why));
  CHECK(why == "is no message of this version of the format");
}

// ---- the index

TEST_CASE("a limit that is reached refuses one message more, and only then") {
  OfflineLimits limits;
  limits.max_per_user = 2;
  limits.max_per_sender = 3;
  limits.max_octets = 5 * (100 + OfflineIndex::overhead);
  OfflineIndex index(limits);
  std::vector<std::uint64_t> ids;
  const auto reserve = [&](const char* user, const char* sender) {
    KeptMessage message = message_for(user, std::to_string(ids.size()), sender);
    const Keeping keeping = index.reserve(message, 100, noon_s);
    ids.push_back(message.id);
    return keeping;
  };
  CHECK(reserve("102", "a") == Keeping::kept);
  CHECK(reserve("102", "a") == Keeping::kept);
  CHECK(reserve("102", "b") == Keeping::user_full);
  CHECK(reserve("103", "a") == Keeping::kept);
  CHECK(reserve("104", "a") == Keeping::sender_full);
  CHECK(reserve("103", "b") == Keeping::kept);
  CHECK(reserve("104", "b") == Keeping::kept);
  CHECK(reserve("105", "c") == Keeping::store_full);
  CHECK(index.size() == 5);
  CHECK(index.octets() == limits.max_octets);

  index.remove(ids[0], false, noon_s);
  CHECK(reserve("102", "a") == Keeping::kept);
  for (const std::uint64_t id : ids) index.remove(id, false, noon_s);
  CHECK(index.size() == 0);
  CHECK(index.octets() == 0);
  CHECK_FALSE(index.has("102"));
}

TEST_CASE("messages are given out in the order they came, none twice to a phone that refused it") {
  OfflineIndex index;
  std::vector<std::uint64_t> ids;
  for (const char* body : {"a", "b", "c"}) {
    KeptMessage message = message_for("102", body);
    REQUIRE(index.reserve(message, 100, noon_s) == Keeping::kept);
    ids.push_back(message.id);
  }
  CHECK(ids[0] < ids[1]);
  CHECK(ids[1] < ids[2]);
  constexpr std::uint64_t phone = 7;
  CHECK(index.next("102", phone) == ids[0]);
  index.find(ids[0])->refused_by = phone;
  CHECK(index.next("102", phone) == ids[1]);
  CHECK(index.next("102", phone + 1) == ids[0]);
  index.find(ids[1])->is_held = true;
  CHECK(index.next("102", phone) == ids[2]);
  index.find(ids[1])->is_held = false;
  index.remove(ids[1], false, noon_s);
  CHECK(index.next("102", phone) == ids[2]);
  CHECK(index.next("103", phone) == 0);
}

TEST_CASE("a message expires at its time, not before, and not while it is being delivered") {
  OfflineIndex index;
  KeptMessage message = message_for("102", "a");
  message.expires_s = noon_s + 60;
  REQUIRE(index.reserve(message, 100, noon_s) == Keeping::kept);
  CHECK(index.next_expiry_s() == noon_s + 60);
  CHECK(index.take_expired(noon_s + 60).empty());  // it is not written yet
  index.commit(message.id);
  CHECK(index.take_expired(noon_s + 59).empty());
  index.find(message.id)->is_held = true;
  CHECK(index.take_expired(noon_s + 61).empty());
  index.find(message.id)->is_held = false;
  CHECK(index.take_expired(noon_s + 60) == std::vector<std::uint64_t>{message.id});
  CHECK(index.take_expired(noon_s + 60).empty());
}

TEST_CASE("a repetition is recognised while its message is kept and for a minute after it came") {
  OfflineIndex index;
  KeptMessage message = message_for("102", "a");
  REQUIRE(index.reserve(message, 100, noon_s) == Keeping::kept);
  CHECK(index.being_written(message.identity) == message.id);
  index.commit(message.id);
  CHECK_FALSE(index.being_written(message.identity));
  KeptMessage again = message_for("102", "a");
  CHECK(index.reserve(again, 100, noon_s + 3000) == Keeping::known);
  index.remove(message.id, true, noon_s + 1);
  CHECK(index.reserve(again, 100, noon_s + 59) == Keeping::known);
  CHECK(index.reserve(again, 100, noon_s + 60) == Keeping::kept);
  // One that could not be written was never accepted: its repetition is a new try.
  index.remove(again.id, false, noon_s + 60);
  CHECK(index.reserve(again, 100, noon_s + 60) == Keeping::kept);
}

TEST_CASE("ids rise over restarts, also where the clock went back") {
  OfflineIndex index;
  KeptMessage message = message_for("102", "a");
  message.id = 9000000000000000u;
  index.restore(message, 100);
  KeptMessage next = message_for("102", "b");
  REQUIRE(index.reserve(next, 100, noon_s) == Keeping::kept);
  CHECK(next.id > message.id);
}

// ---- the spool

TEST_CASE("files and directory are for their owner alone, and no name comes from the network") {
  TemporaryDirectory directory;
  Spool spool(directory.spool());
  std::string unusable;
  spool.open(0, unusable);
  REQUIRE(unusable == "");
  KeptMessage message = message_for("../../../tmp/x", "a");
  message.id = 42;
  std::atomic<bool> is_committed{false};
  REQUIRE_FALSE(spool.write(message, is_committed));
  CHECK(is_committed);
  const std::string file = directory.spool() + "/0000000000000042.msg";
  struct stat status {};
  REQUIRE(::stat(file.c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0600);
  REQUIRE(::stat(directory.spool().c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0700);
  CHECK(directory.names(directory.spool()).size() == 2);
}

TEST_CASE("a spool that others may look into is remarked on, and used") {
  TemporaryDirectory directory;
  REQUIRE(::mkdir(directory.spool().c_str(), 0700) == 0);
  REQUIRE(::chmod(directory.spool().c_str(), 0750) == 0);
  Spool spool(directory.spool());
  std::string unusable;
  const SpoolContents contents = spool.open(0, unusable);
  CHECK(unusable == "");
  REQUIRE(contents.remarks.size() == 1);
  CHECK(contents.remarks[0].find("others than its owner") != std::string::npos);
}

TEST_CASE("a spool that somebody works on is not opened, and the error says who does") {
  TemporaryDirectory directory;
  std::string unusable;
  auto first = std::make_unique<Spool>(directory.spool());
  first->open(0, unusable);
  REQUIRE(unusable == "");
  Spool second(directory.spool());
  second.open(0, unusable);
  CHECK(unusable == directory.spool() + ": process " + std::to_string(::getpid()) +
                        " works on this spool; each server needs its own");
  first.reset();
  unusable.clear();
  Spool third(directory.spool());
  third.open(0, unusable);
  CHECK(unusable == "");
}

TEST_CASE("a spool that cannot be made or read is an error that names it") {
  TemporaryDirectory directory;
  std::string unusable;
  Spool below_nothing(directory.path + "/no/spool");
  below_nothing.open(0, unusable);
  CHECK(unusable.find(directory.path + "/no/spool: ") == 0);
  unusable.clear();
  write_text(directory.spool(), "a file");
  Spool a_file(directory.spool());
  a_file.open(0, unusable);
  CHECK(unusable != "");
  ::unlink(directory.spool().c_str());
}

TEST_CASE("what is broken or not ours is reported and left alone; what is half written goes") {
  TemporaryDirectory directory;
  REQUIRE(::mkdir(directory.spool().c_str(), 0700) == 0);
  const std::string at = directory.spool() + "/";
  const std::string whole = to_file_text(message_for("102", "good"));
  write_text(at + "0000000000000007.msg", whole);
  write_text(at + "0000000000000003.msg", whole.substr(0, whole.size() - 1));
  write_text(at + "0000000000000004.msg", "");
  write_text(at + "notes.txt", "mine");
  write_text(at + "7.msg", whole);
  write_text(at + "0000000000000009.done", whole);
  write_text(at + ".0000000000000008.tmp", whole);
  write_text(at + ".keep", "");
  Spool spool(directory.spool());
  std::string unusable;
  const SpoolContents contents = spool.open(0, unusable);
  CHECK(unusable == "");
  REQUIRE(contents.kept.size() == 1);
  CHECK(contents.kept[0].message.id == 7);
  CHECK(contents.kept[0].octets == whole.size());
  CHECK(contents.kept[0].message.body == "");  // an index, not a copy
  REQUIRE(contents.finished.size() == 1);
  CHECK(contents.finished[0].id == 9);
  CHECK(contents.left_alone == 5);
  CHECK(contents.remarks.size() == 5);
  bool is_named = false;
  for (const std::string& remark : contents.remarks) {
    is_named |= remark == at + "0000000000000003.msg: is torn or was changed; left alone";
  }
  CHECK(is_named);
  CHECK(read_text(at + "notes.txt") == "mine");
  CHECK(directory.count(".msg") == 4);
  CHECK(directory.count(".tmp") == 0);
}

TEST_CASE("a directory full of strange files is reported in a few lines") {
  TemporaryDirectory directory;
  REQUIRE(::mkdir(directory.spool().c_str(), 0700) == 0);
  for (int i = 0; i < 100; ++i) write_text(directory.spool() + "/" + std::to_string(i), "");
  std::string unusable;
  const SpoolContents contents = read_spool(directory.spool(), unusable);
  CHECK(contents.left_alone == 100);
  CHECK(contents.remarks.size() == 20);
}

TEST_CASE(
    "whichever operation fails, a message that was not accepted is not there, and no other "
    "suffers") {
  for (int failing = 1;; ++failing) {
    CAPTURE(failing);
    TemporaryDirectory directory;
    std::vector<std::string> expected;
    FaultyFiles files;
    {
      Spool spool(directory.spool(), files);
      std::string unusable;
      spool.open(0, unusable);
      REQUIRE(unusable == "");
      files.operations = 0;
      files.failing = failing;
      for (std::uint64_t id = 1; id <= 3; ++id) {
        KeptMessage message = message_for("102", std::to_string(id));
        message.id = id;
        std::atomic<bool> is_committed{false};
        const sipmsg::Error error = spool.write(message, is_committed);
        CHECK(is_committed == !error);
        if (!error) expected.push_back(message.body);
      }
    }
    CHECK(bodies_after_restart(directory) == expected);
    if (files.operations < failing) break;
    CHECK(expected.size() >= 2);
    REQUIRE(failing < 100);
  }
}

TEST_CASE(
    "a crash before any operation loses no accepted message and brings back no delivered "
    "one but the last") {
  for (int failing = 1;; ++failing) {
    CAPTURE(failing);
    TemporaryDirectory directory;
    FaultyFiles files;
    files.is_crash = true;
    std::vector<std::string> accepted;
    std::size_t delivered = 0;  // of those, from the front, and known to be on the disk
    bool is_in_flight = false;
    {
      Spool spool(directory.spool(), files);
      std::string unusable;
      spool.open(0, unusable);
      REQUIRE(unusable == "");
      files.operations = 0;
      files.failing = failing;
      for (std::uint64_t id = 1; id <= 4; ++id) {
        KeptMessage message = message_for("102", std::to_string(id));
        message.id = id;
        std::atomic<bool> is_committed{false};
        if (spool.write(message, is_committed)) break;
        accepted.push_back(message.body);
        // Every other message is delivered once it is there, with and without a trace.
        if (id % 2 == 1) continue;
        is_in_flight = static_cast<bool>(spool.finish(delivered + 1, id == 2));
        if (is_in_flight) break;
        ++delivered;
      }
    }
    const std::vector<std::string> found = bodies_after_restart(directory);
    const std::vector<std::string> left(accepted.begin() + static_cast<std::ptrdiff_t>(delivered),
                                        accepted.end());
    // The one that was being delivered may be there or not; one that was being accepted, too.
    std::vector<std::string> without_in_flight = left;
    if (is_in_flight) without_in_flight.erase(without_in_flight.begin());
    std::vector<std::string> with_unanswered = left;
    with_unanswered.push_back(std::to_string(accepted.size() + 1));
    const bool is_right =
        found == left || found == without_in_flight || (!is_in_flight && found == with_unanswered);
    CHECK(is_right);
    if (files.operations < failing) break;
    REQUIRE(failing < 100);
  }
}

// ---- the store

namespace {

/// A store on a loop of its own.
struct Running {
  explicit Running(OfflineOptions options = {}, FileOperations& files = real_files())
      : loop(events.uv()),
        store(
            loop, (options.lock_patience_ms = 0, std::move(options)),
            [this](sipmsg::Severity, std::string_view text) { log.append(text).append("\n"); },
            files) {}

  bool open(std::int64_t now_s = noon_s) {
    int opened = -1;
    store.open(now_s, [&](bool is_usable) { opened = is_usable; });
    CHECK(opened == -1);
    CHECK(events.run_until([&] { return opened != -1; }));
    return opened == 1;
  }
  bool keep(const KeptMessage& message, std::int64_t now_s = noon_s) {
    int told = -1;
    const Keeping keeping = store.keep(message, now_s, [&](bool is_kept) { told = is_kept; });
    if (keeping != Keeping::kept) return false;
    CHECK(told == -1);
    CHECK(events.run_until([&] { return told != -1; }));
    return told == 1;
  }
  std::optional<KeptMessage> take(std::uint64_t id) {
    bool is_taken = false;
    std::optional<KeptMessage> result;
    store.take(id, [&](std::optional<KeptMessage> message) {
      result = std::move(message);
      is_taken = true;
    });
    CHECK(events.run_until([&] { return is_taken; }));
    return result;
  }
  bool finish(std::uint64_t id, std::int64_t now_s = noon_s) {
    int told = -1;
    store.finish(id, now_s, [&](bool is_safe) { told = is_safe; });
    CHECK(events.run_until([&] { return told != -1; }));
    return told == 1;
  }
  /// Everything for that user, delivered one after another.
  std::vector<std::string> deliver(const std::string& user) {
    std::vector<std::string> bodies;
    while (const std::uint64_t id = store.next(user, 0)) {
      const auto message = take(id);
      REQUIRE(message);
      bodies.push_back(message->body);
      CHECK(finish(id));
    }
    return bodies;
  }
  bool says(const std::string& text) const { return log.find(text) != std::string::npos; }

  test::EventLoop events;
  sipmsg::Loop loop;
  std::string log;
  OfflineStore store;
};

OfflineOptions in(const TemporaryDirectory& directory) {
  OfflineOptions options;
  options.spool = directory.spool();
  return options;
}

}  // namespace

TEST_CASE("what is kept is there after a restart, in order, until it is delivered") {
  TemporaryDirectory directory;
  {
    Running running(in(directory));
    REQUIRE(running.open());
    for (const char* body : {"1", "2", "3", "4"}) CHECK(running.keep(message_for("102", body)));
    CHECK(running.keep(message_for("103", "other")));
    CHECK(running.finish(running.store.next("102", 0)));
  }
  {
    Running running(in(directory));
    REQUIRE(running.open());
    CHECK(running.says(directory.spool() + ": 4 messages kept"));
    CHECK(running.deliver("102") == std::vector<std::string>{"2", "3", "4"});
    CHECK(running.deliver("103") == std::vector<std::string>{"other"});
    CHECK(running.store.size() == 0);
    CHECK(directory.count(".msg") == 0);
  }
}

TEST_CASE("many messages at a time are all kept, and each user's in the order they came") {
  TemporaryDirectory directory;
  Running running(in(directory));
  REQUIRE(running.open());
  int told = 0;
  std::vector<std::string> expected;
  for (int i = 0; i < 60; ++i) {
    const std::string body = std::to_string(i);
    const std::string user = i % 2 == 0 ? "102" : "103";
    if (i % 2 == 0) expected.push_back(body);
    REQUIRE(running.store.keep(message_for(user, body), noon_s, [&told](bool is_kept) {
      told += is_kept ? 1 : 100;
    }) == Keeping::kept);
  }
  CHECK(running.events.run_until([&] { return told >= 60; }));
  CHECK(told == 60);
  CHECK(running.deliver("102") == expected);
}

TEST_CASE(
    "a repetition is not kept twice: while it is written, while it is kept, after it was "
    "delivered, after a restart") {
  TemporaryDirectory directory;
  const KeptMessage message = message_for("102", "once");
  {
    Running running(in(directory));
    REQUIRE(running.open());
    int told = 0;
    const auto kept = [&told](bool is_kept) { told += is_kept; };
    CHECK(running.store.keep(message, noon_s, kept) == Keeping::kept);
    CHECK(running.store.keep(message, noon_s, kept) == Keeping::kept);
    CHECK(running.events.run_until([&] { return told == 2; }));
    CHECK(running.store.size() == 1);
    CHECK(running.store.keep(message, noon_s, kept) == Keeping::known);
    CHECK(running.deliver("102") == std::vector<std::string>{"once"});
    CHECK(running.store.keep(message, noon_s, kept) == Keeping::known);
    CHECK(directory.count(".done") == 1);
  }
  {
    Running running(in(directory));
    REQUIRE(running.open(noon_s + 30));
    CHECK(running.store.keep(message, noon_s + 30, nullptr) == Keeping::known);
    running.store.expire(noon_s + 60, nullptr);
    CHECK(running.keep(message, noon_s + 60));
    CHECK(directory.count(".done") == 0);
  }
}

TEST_CASE("what expired is removed with a line in the log, and shown to who asked for it") {
  TemporaryDirectory directory;
  Running running(in(directory));
  REQUIRE(running.open());
  KeptMessage soon = message_for("10\x1b[2J", "soon");
  soon.expires_s = noon_s + 100;
  REQUIRE(running.keep(soon));
  REQUIRE(running.keep(message_for("102", "later")));
  CHECK(running.store.next_deadline_s(noon_s) == noon_s + 100);
  std::string shown;
  const auto use = [&shown](const KeptMessage& message) { shown += message.body; };
  running.store.expire(noon_s + 99, use);
  CHECK(running.store.size() == 2);
  running.store.expire(noon_s + 100, use);
  CHECK(running.events.run_until([&] { return directory.count(".msg") == 1; }));
  CHECK(shown == "soon");
  CHECK(running.says(" for \"10%1B[2J\" expired, undelivered"));
  CHECK(running.store.next_deadline_s(noon_s + 100) == noon_s + 3600);
}

TEST_CASE("a message that somebody removed by hand is passed over, and one he broke left alone") {
  TemporaryDirectory directory;
  Running running(in(directory));
  REQUIRE(running.open());
  for (const char* body : {"1", "2", "3"}) REQUIRE(running.keep(message_for("102", body)));
  const std::uint64_t first = running.store.next("102", 0);
  const std::uint64_t second = first + 1;
  const auto file = [&](std::uint64_t id) {
    return directory.spool() + "/" + spool_id_text(id) + ".msg";
  };
  ::unlink(file(first).c_str());
  write_text(file(second), "broken");
  CHECK_FALSE(running.take(first));
  CHECK(running.store.next("102", 0) == second);
  CHECK_FALSE(running.take(second));
  CHECK(running.says("message " + spool_id_text(first) + " was removed by hand"));
  CHECK(running.says("message " + spool_id_text(second) + ": is no message"));
  CHECK(running.deliver("102") == std::vector<std::string>{"3"});
  CHECK(read_text(file(second)) == "broken");
}

TEST_CASE("a message that cannot be read at the moment is there again when it can") {
  TemporaryDirectory directory;
  Running running(in(directory));
  REQUIRE(running.open());
  for (const char* body : {"1", "2"}) REQUIRE(running.keep(message_for("102", body)));
  const std::uint64_t first = running.store.next("102", 0);
  const std::string file = spool_file(directory.spool(), first);
  REQUIRE(::rename(file.c_str(), (directory.spool() + "/aside").c_str()) == 0);
  REQUIRE(::mkdir(file.c_str(), 0700) == 0);
  CHECK_FALSE(running.take(first));
  CHECK(running.says("message " + spool_id_text(first) + ": "));
  CHECK(running.says("; tried again later"));
  CHECK(running.store.next("102", 0) == first);
  CHECK(running.store.is_written(first));
  REQUIRE(::rmdir(file.c_str()) == 0);
  REQUIRE(::rename((directory.spool() + "/aside").c_str(), file.c_str()) == 0);
  CHECK(running.deliver("102") == std::vector<std::string>{"1", "2"});
}

TEST_CASE("a message that cannot be read expires all the same") {
  TemporaryDirectory directory;
  Running running(in(directory));
  REQUIRE(running.open());
  REQUIRE(running.keep(message_for("102", "1")));
  const std::uint64_t id = running.store.next("102", 0);
  const std::string file = spool_file(directory.spool(), id);
  REQUIRE(::unlink(file.c_str()) == 0);
  REQUIRE(::mkdir(file.c_str(), 0700) == 0);
  int shown = 0;
  running.store.expire(noon_s + 3600, [&shown](const KeptMessage&) { ++shown; });
  CHECK(running.events.run_until([&] { return running.store.size() == 0; }));
  CHECK(shown == 0);
  CHECK(running.says("expired, undelivered"));
  CHECK(running.events.run_until([&] { return running.says("may be delivered again"); }));
  REQUIRE(::rmdir(file.c_str()) == 0);
}

TEST_CASE("a message that cannot be written is refused, and the next one is kept again") {
  TemporaryDirectory directory;
  FaultyFiles files;
  Running running(in(directory), files);
  REQUIRE(running.open());
  files.operations = 0;
  files.failing = 3;  // create, write, sync
  CHECK_FALSE(running.keep(message_for("102", "1")));
  CHECK(running.says("i/o error"));
  CHECK(running.store.size() == 0);
  CHECK_FALSE(running.store.has("102"));
  CHECK(running.keep(message_for("102", "1")));
}

TEST_CASE("a delivery that cannot be marked is reported, for it may be repeated after a restart") {
  TemporaryDirectory directory;
  FaultyFiles files;
  Running running(in(directory), files);
  REQUIRE(running.open());
  REQUIRE(running.keep(message_for("102", "1")));
  files.operations = 0;
  files.failing = 1;
  CHECK_FALSE(running.finish(running.store.next("102", 0)));
  CHECK(running.says("may be delivered again"));
  CHECK(running.store.size() == 0);  // this process does not
}

TEST_CASE("closing tells everybody who waits whether his message is kept, and that is so") {
  for (int turns = 0; turns < 6; ++turns) {
    TemporaryDirectory directory;
    std::size_t kept = 0;
    std::size_t told = 0;
    {
      Running running(in(directory));
      REQUIRE(running.open());
      for (int i = 0; i < 8; ++i) {
        REQUIRE(
            running.store.keep(message_for("102", std::to_string(i)), noon_s, [&](bool is_kept) {
              ++told;
              kept += is_kept ? 1 : 0;
            }) == Keeping::kept);
      }
      running.events.turn(turns);
      running.store.close();
      CHECK(told == 8);
      CHECK(running.store.keep(message_for("102", "late"), noon_s, nullptr) == Keeping::failed);
    }
    CHECK(bodies_after_restart(directory).size() == kept);
  }
}

TEST_CASE("without a spool messages are kept in memory and can be handed on") {
  Running first;
  REQUIRE(first.open());
  for (const char* body : {"1", "2"}) REQUIRE(first.keep(message_for("102", body)));
  CHECK(first.store.next("102", 0) != 0);
  first.store.close();
  Running second;
  REQUIRE(second.open());
  for (const KeptMessage& message : first.store.take_all()) second.store.adopt(message, noon_s);
  CHECK(second.deliver("102") == std::vector<std::string>{"1", "2"});
  CHECK(second.store.size() == 0);
}

TEST_CASE("what another store has accepted is taken over, however small the limits have become") {
  TemporaryDirectory directory;
  OfflineOptions small = in(directory);
  small.max_writing = 2;
  small.limits.max_per_user = 3;
  small.limits.max_per_sender = 3;
  small.limits.max_octets = 1000;
  std::vector<std::string> bodies;
  for (int i = 0; i < 20; ++i) bodies.push_back(std::to_string(i));
  for (const std::string& spool : {std::string(), small.spool}) {
    CAPTURE(spool);
    small.spool = spool;
    {
      Running running(small);
      REQUIRE(running.open());
      for (const std::string& body : bodies) {
        running.store.adopt(message_for("102", body), noon_s);
        running.store.adopt(message_for("102", body), noon_s);  // of which there is only one
      }
      CHECK(running.store.size() == bodies.size());
      CHECK(running.store.keep(message_for("102", "new"), noon_s, nullptr) == Keeping::user_full);
      if (spool.empty()) CHECK(running.deliver("102") == bodies);
    }
  }
}

TEST_CASE("what is taken over goes into the spool, and what that cannot take stays in memory") {
  TemporaryDirectory directory;
  FaultyFiles files;
  {
    Running running(in(directory), files);
    REQUIRE(running.open());
    files.operations = 0;
    files.failing = 1;
    running.store.adopt(message_for("102", "1"), noon_s);
    running.store.adopt(message_for("102", "2"), noon_s);
    CHECK(running.events.run_until([&] { return directory.count(".msg") == 1; }));
    CHECK(running.events.run_until([&] { return running.says("stays in memory"); }));
    const auto message = running.take(running.store.next("102", 0));
    REQUIRE(message);
    CHECK(message->body == "1");
    running.store.close();
    const std::vector<KeptMessage> left = running.store.take_all();
    REQUIRE(left.size() == 1);
    CHECK(left[0].body == "1");
  }
  CHECK(bodies_after_restart(directory) == std::vector<std::string>{"2"});
}

TEST_CASE(
    "what is being taken over when the store is closed is in the spool or handed on, not both") {
  for (int turns = 0; turns < 4; ++turns) {
    TemporaryDirectory directory;
    std::vector<std::string> all;
    {
      Running running(in(directory));
      REQUIRE(running.open());
      for (const char* body : {"1", "2", "3"}) {
        running.store.adopt(message_for("102", body), noon_s);
      }
      running.events.turn(turns);
      running.store.close();
      for (const KeptMessage& message : running.store.take_all()) all.push_back(message.body);
    }
    for (const std::string& body : bodies_after_restart(directory)) all.push_back(body);
    std::sort(all.begin(), all.end());
    CHECK(all == std::vector<std::string>{"1", "2", "3"});
  }
}

TEST_CASE("no more messages wait for the disk than the limit allows") {
  OfflineOptions options;
  options.max_writing = 2;
  Running running(options);
  REQUIRE(running.open());
  const auto kept = [](bool) {};
  CHECK(running.store.keep(message_for("102", "1"), noon_s, kept) == Keeping::kept);
  CHECK(running.store.keep(message_for("102", "2"), noon_s, kept) == Keeping::kept);
  CHECK(running.store.keep(message_for("102", "3"), noon_s, kept) == Keeping::failed);
}

TEST_CASE("a store whose spool another process holds says so and is not usable") {
  TemporaryDirectory directory;
  Spool other(directory.spool());
  std::string unusable;
  other.open(0, unusable);
  REQUIRE(unusable == "");
  Running running(in(directory));
  CHECK_FALSE(running.open());
  CHECK(running.says("works on this spool"));
}

}  // namespace test_offline_store
