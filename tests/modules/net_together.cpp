// Everything at once, for the thread sanitizer above all: handlers in the thread pool, a script in
// its process that stores each message in a database, queries in the same pool, an external
// program, and phones that write meanwhile. SIPMSG_TEST_PROGRAM is the path of the program, which
// scripts run in.
#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../../src/modules/bridge.hpp"
#include "../../src/modules/database/sqlite.hpp"
#include "../../src/modules/extmodule/extmodule.hpp"
#include "../../src/modules/javascript/settings.hpp"
#include "../../src/modules/module.hpp"
#include "support/loop.hpp"
#include "support/phone.hpp"

namespace net_together {

using namespace modules;
using sipmsg::RouteRequest;
using sipmsg::Settings;
using sipmsg::Verdict;
using test::Phone;

namespace {

/// One phone writes so, and every one of its messages is answered so.
struct Kind {
  const char* sender;
  const char* body;
  const char* recipient;
  int answer;
};

constexpr Kind kinds[] = {{"alice", "for the pool", "bob", 403},
                          {"carol", "for the script", "bob", 406},
                          {"dave", "for the program", "bob", 486},
                          {"erin", "for the phone", "bob", 200},
                          {"frank", "for who is away", "gina", 405}};
constexpr std::size_t messages_each = 60;

/// The pool and the script refuse theirs before anything is stored.
constexpr std::size_t stored = 3 * messages_each;

constexpr char script[] = R"js(
Message.install(function (msg) {
  if (msg.xsip_body == "for the script") {
    msg.reason = "rejected";
    return true;
  }
  var m = new Message("database");
  m.account = "seen";
  m.query = "INSERT INTO seen VALUES('" + msg.caller.sqlEscape("'") + "')";
  if (!m.dispatch() || m.error !== undefined) {
    msg.code = 500;
    msg.retValue("-");
    return true;
  }
  return false;
}, "call.route", 50);
)js";

constexpr char program[] = R"python(#!/usr/bin/env python3
import sys
print("%%>install:60:call.route\n%%>install:60:ready", flush=True)
for line in sys.stdin:
    if line.startswith("%%>message:"):
        verdict = ":true::-:reason=busy" if "=for the program" in line else ":false:"
        print("%%<message:" + line.split(":")[1] + verdict, flush=True)
)python";

constexpr char database[] =
    "[seen]\ndatabase=${configpath}/seen.db\npoolsize=2\ntimeout=25000\n"
    "initialize=CREATE TABLE IF NOT EXISTS seen(sender TEXT)\n";

/// A directory with these files, gone at the end.
class Directory {
 public:
  Directory() {
    char name[] = "/tmp/sipmsg-together-XXXXXX";
    REQUIRE(::mkdtemp(name) != nullptr);
    path = name;
    write("sqlitedb.conf", database, 0600);
    write("extmodule.conf", "[general]\nscripts_dir=.\ntimeout=25000\n[scripts]\nprogram.py=\n",
          0600);
    write("program.py", program, 0700);
    write("javascript.conf", "[scripts]\nscript=script.js\n", 0600);
    write("script.js", script, 0600);
  }
  ~Directory() {
    for (const char* name : {"sqlitedb.conf", "extmodule.conf", "program.py", "javascript.conf",
                             "script.js", "seen.db", "seen.db-wal", "seen.db-shm"}) {
      ::unlink((path + "/" + name).c_str());
    }
    ::rmdir(path.c_str());
  }
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;

  std::string path;

 private:
  void write(const std::string& name, const std::string& text, mode_t mode) const {
    const std::string file_path = path + "/" + name;
    std::FILE* file = std::fopen(file_path.c_str(), "wb");
    REQUIRE(file != nullptr);
    REQUIRE(std::fwrite(text.data(), 1, text.size(), file) == text.size());
    std::fclose(file);
    REQUIRE(::chmod(file_path.c_str(), mode) == 0);
  }
};

Settings settings_of_test() {
  Settings settings = sipmsg::open_settings();
  for (auto& listener : settings.listeners) listener.port = 0;
  settings.registrar.accept_any_user = false;
  settings.message.handler_deadline_s = 30;  // for slow machines: nothing here may time out
  for (const char* name : {"alice", "bob", "carol", "dave", "erin", "frank", "gina"}) {
    sipmsg::UserSettings user;
    user.name = name;
    settings.users.push_back(user);
  }
  return settings;
}

/// A server with all of it. Scripts are started by hand: their processes must run the program, and
/// this one is not it.
class Together {
 public:
  Together() : settings_(settings_of_test()), server(loop.uv(), settings_) {
    const auto error = server.start();
    REQUIRE_MESSAGE(!error, error.text());
    bridge_ = std::make_unique<Bridge>(server, engine, settings_);
    // Before the bridge, behind which nobody is asked any more.
    server.add_async_handler(INT32_MIN, [this](const RouteRequest& request) {
      ++asked_in_pool;
      return request.body() == "for the pool" ? Verdict::reject(403) : Verdict::next();
    });
    sipmsg::Diagnostics diagnostics;
    modules_.push_back(make_sqlitedb());
    modules_.push_back(make_extmodule());
    for (const auto& module : modules_) {
      REQUIRE(module->load(directory_.path, diagnostics));
      module->start(context_);
    }
    JavascriptSettings scripts;
    REQUIRE(load_javascript(directory_.path, scripts, diagnostics));
    CHECK(diagnostics.empty());
    surroundings_.loop = loop.uv();
    surroundings_.engine = &engine;
    surroundings_.program = SIPMSG_TEST_PROGRAM;
    surroundings_.shared = &shared_;
    surroundings_.log = context_.log;
    surroundings_.limits.timeout_ms = 25000;
    script_ = ScriptProcess::start(surroundings_, scripts.scripts.front());
    REQUIRE(loop.run_until([&] { return engine.is_wanted("ready"); }));
  }
  ~Together() {
    script_->stop();
    for (const auto& module : modules_) module->stop();
    bridge_.reset();
    server.close();
  }
  Together(const Together&) = delete;
  Together& operator=(const Together&) = delete;

  /// The only value of a query's only row.
  std::string query(const std::string& sql) {
    const auto message = std::make_shared<ListMessage>("database");
    message->add("account", "seen");
    message->add("query", sql);
    bool is_done = false;
    engine.dispatch(message, [&](bool) { is_done = true; });
    REQUIRE(loop.run_until([&] { return is_done; }));
    REQUIRE(message->table.get() != nullptr);
    return message->table->rows.at(0).at(0).value_or("NULL");
  }

  test::EventLoop loop;
  Engine engine;

 private:
  Directory directory_;
  Settings settings_;

 public:
  sipmsg::Server server;
  std::atomic<std::size_t> asked_in_pool{0};
  std::vector<std::string> logged;

 private:
  Context context_{loop.uv(), server, engine,
                   [this](sipmsg::Severity, std::string_view line) { logged.emplace_back(line); }};
  std::unique_ptr<Bridge> bridge_;
  std::vector<std::unique_ptr<Module>> modules_;
  SharedVariables shared_;
  ScriptSurroundings surroundings_;
  std::shared_ptr<ScriptProcess> script_;
};

}  // namespace

TEST_CASE("pool, script, program and database at once: each message has its one right answer") {
  Together together;
  Phone bob(together.loop, together.server, "bob", sipmsg::Transport::udp);
  bob.enroll(together.loop);
  std::vector<std::unique_ptr<Phone>> phones;
  for (const Kind& kind : kinds) {
    phones.push_back(std::make_unique<Phone>(together.loop, together.server, kind.sender,
                                             sipmsg::Transport::udp));
  }
  for (std::size_t i = 0; i < messages_each; ++i) {
    for (std::size_t k = 0; k < phones.size(); ++k) {
      phones[k]->write_to(kinds[k].recipient, kinds[k].body);
    }
    together.loop.turn();
  }
  REQUIRE(together.loop.run_until(
      [&] {
        return std::all_of(phones.begin(), phones.end(), [](const auto& phone) {
          return phone->answers.size() >= messages_each;
        });
      },
      60000));
  for (std::size_t k = 0; k < phones.size(); ++k) {
    CAPTURE(kinds[k].body);
    CHECK(phones[k]->answers == std::vector<int>(messages_each, kinds[k].answer));
  }
  CHECK(bob.received == std::vector<std::string>(messages_each, "for the phone"));
  CHECK(together.asked_in_pool == messages_each * phones.size());
  CHECK(together.query("SELECT count(*) FROM seen") == std::to_string(stored));
  for (const auto& line : together.logged) CAPTURE(line);
  CHECK(together.logged.empty());
}

}  // namespace net_together
