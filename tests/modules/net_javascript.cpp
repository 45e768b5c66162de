// Scripts in real processes: what becomes of messages when a script loops, fails, dies or is
// stopped; its messages to others; the scripts of examples/scripts, with a database and a phone
// that are part of the test. SIPMSG_TEST_PROGRAM is the path of the program.
#include <doctest/doctest.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../../src/modules/javascript/process.hpp"
#include "../../src/modules/javascript/settings.hpp"
#include "support/loop.hpp"

namespace net_javascript {

using namespace modules;

namespace {

using Parameters = ListMessage::Parameters;

/// Scripts on an engine, and everything that is logged, but nothing twice in a row.
class Scripts {
 public:
  explicit Scripts(ScriptLimits limits = {}) {
    surroundings_.loop = loop.uv();
    surroundings_.engine = &engine;
    surroundings_.program = SIPMSG_TEST_PROGRAM;
    surroundings_.shared = &shared_;
    surroundings_.limits = limits;
    surroundings_.log = [this](sipmsg::Severity, std::string_view line) {
      if (lines.empty() || lines.back() != line) lines.emplace_back(line);
    };
  }
  ~Scripts() {
    stop();
    CHECK(loop.run_dry());
    CHECK(::waitpid(-1, nullptr, WNOHANG) == -1);  // nobody is left
    CHECK(errno == ECHILD);
  }
  Scripts(const Scripts&) = delete;
  Scripts& operator=(const Scripts&) = delete;

  void use_program(const std::string& program) { surroundings_.program = program; }

  ScriptProcess& add(const std::string& text, const std::string& name = "test") {
    ScriptSource source;
    source.name = name;
    source.text = text;
    source.files = {"/scripts/" + name + ".js"};
    source.pieces = {{1, 0, 1}};
    return add(std::move(source));
  }
  ScriptProcess& add(ScriptSource source) {
    processes.push_back(ScriptProcess::start(surroundings_, std::move(source)));
    return *processes.back();
  }
  void stop() {
    for (const auto& process : std::exchange(processes, {})) process->stop();
  }

  /// One that is on its way; 1 handled, 0 not, -1 no answer yet.
  struct Sent {
    std::shared_ptr<ListMessage> message;
    int handled = -1;
  };
  std::shared_ptr<Sent> send(const std::string& name, Parameters parameters = {}) {
    auto sent = std::make_shared<Sent>();
    sent->message = std::make_shared<ListMessage>(name, std::move(parameters));
    engine.dispatch(sent->message, [sent](bool handled) { sent->handled = handled ? 1 : 0; });
    return sent;
  }
  /// Waits for the answer.
  std::shared_ptr<Sent> ask(const std::string& name, Parameters parameters = {}) {
    auto sent = send(name, std::move(parameters));
    CHECK(loop.run_until([&] { return sent->handled >= 0; }));
    return sent;
  }
  bool has_line(const std::string& piece) const {
    for (const std::string& line : lines) {
      if (line.find(piece) != std::string::npos) return true;
    }
    return false;
  }

  test::EventLoop loop;
  Engine engine;
  std::vector<std::string> lines;
  std::vector<std::shared_ptr<ScriptProcess>> processes;

 private:
  SharedVariables shared_;
  ScriptSurroundings surroundings_;
};

ScriptLimits quick(std::uint64_t time_limit_ms) {
  ScriptLimits limits;
  limits.time_limit_ms = time_limit_ms;
  return limits;
}

constexpr char echo[] =
    "Message.install(function (msg) { msg.seen = msg.caller; return true; }, 'call.route', 50);";

}  // namespace

TEST_CASE("javascript: a script's handlers are there when start returns, and change the message") {
  Scripts scripts;
  scripts.add(echo);
  CHECK(scripts.engine.is_wanted("call.route"));
  const auto sent = scripts.ask("call.route", {{"caller", "007"}});
  CHECK(sent->handled == 1);
  CHECK(sent->message->get_or("seen") == "007");
  CHECK(sent->message->get_or("handlers") == "javascript:50");
}

TEST_CASE("javascript: a script in an endless loop is killed, its messages go on, it comes back") {
  Scripts scripts(quick(300));
  std::vector<std::string> later;
  scripts.engine.install("later", "call.route", 90,
                         [&](const MessagePointer& message, const Answer& answer) {
                           later.push_back(message->get_or("caller"));
                           answer(true);
                         });
  auto& script = scripts.add(
      "Message.install(function (msg) { while (msg.caller == 666) {} return msg.caller == 1; },"
      "'call.route', 50);",
      "loop");
  const int first = script.pid();
  uv_sleep(250);  // the server is busy with something else, which is not the script's time
  const std::uint64_t began = uv_hrtime();
  const auto bad = scripts.send("call.route", {{"caller", "666"}, {"called", "b\x1b[0m"}});
  const auto behind = scripts.send("call.route", {{"caller", "2"}});
  CHECK(scripts.loop.run_until([&] { return bad->handled == 1 && behind->handled == 1; }));
  const std::uint64_t took_ms = (uv_hrtime() - began) / 1000000;
  CHECK(took_ms >= 200);
  CHECK(took_ms < 5000);
  CHECK(later == std::vector<std::string>{"666", "2"});
  CHECK(
      scripts.has_line("loop: its process was stopped: it handled call.route (caller 666, "
                       "called b?[0m) and did not come to an end within 300 ms"));
  CHECK(scripts.loop.run_until([&] { return script.pid() != 0; }));
  CHECK(script.pid() != first);
  CHECK(scripts.loop.run_until([&] {
    return scripts.ask("call.route", {{"caller", "1"}})->message->get_or("handlers") ==
           "javascript:50";
  }));
}

TEST_CASE("javascript: a script does not pay for the time the server itself was held up") {
  Scripts scripts(quick(400));
  auto& script = scripts.add(echo);
  const int pid = script.pid();
  const auto sent = scripts.send("call.route", {{"caller", "1"}});
  uv_sleep(1200);
  scripts.loop.turn();
  CHECK(sent->handled == 1);
  CHECK(scripts.ask("call.route", {{"caller", "2"}})->handled == 1);
  CHECK(script.pid() == pid);
  CHECK_FALSE(scripts.has_line("was stopped"));
}

TEST_CASE("javascript: an endless loop in a regular expression, in a timer or at the start") {
  const std::pair<const char*, const char*> rows[] = {
      {"Engine.setTimeout(function () { while (true) {} }, 1);", "it ran a timer"},
      {"while (true) {}", "it was loaded"},
      {"while (true) Engine.output('x');", "it was loaded"},
      {"Engine.setTimeout(function () { /(x+x+)+y/.test(new Array(40).join('x')); }, 1);",
       "it ran a timer"},
      {"[1].forEach(function () { Engine.usleep(10); while (true) {} });",
       "it went on inside a callback"}};
  for (const auto& row : rows) {
    const std::string text = row.first;
    const std::string said = row.second;
    CAPTURE(text);
    Scripts scripts(quick(200));
    scripts.add(text);
    const std::string line = "was stopped: " + said;
    CHECK(scripts.loop.run_until([&] { return scripts.has_line(line); }));
  }
}

TEST_CASE("javascript: a script that takes nothing is not asked, and goes on when it does again") {
  ScriptLimits limits = quick(60000);
  limits.timeout_ms = 60000;
  limits.memory_limit = std::size_t{1} << 30;
  Scripts scripts(limits);
  auto& script = scripts.add(echo);
  const int pid = script.pid();
  REQUIRE(::kill(pid, SIGSTOP) == 0);
  const std::string large(std::size_t{24} << 20, 'x');
  std::vector<std::shared_ptr<Scripts::Sent>> sent;
  do {
    sent.push_back(scripts.send("call.route", {{"caller", "1"}, {"text", large}}));
  } while (sent.back()->handled < 0 && sent.size() < 10);
  CHECK(sent.back()->handled == 0);
  CHECK(scripts.has_line("is not asked about call.route (caller 1): it does not take what"));
  sent.pop_back();
  REQUIRE(::kill(pid, SIGCONT) == 0);
  for (const auto& one : sent) {
    CHECK(scripts.loop.run_until([&] { return one->handled == 1; }, 60000));
  }
  for (int i = 0; i < 3; ++i) CHECK(scripts.ask("call.route", {{"caller", "2"}})->handled == 1);
  CHECK(script.pid() == pid);
  CHECK_FALSE(scripts.has_line("was stopped"));
}

TEST_CASE("javascript: an exception is logged with file and line, the message goes on") {
  Scripts scripts;
  int later = 0;
  scripts.engine.install("later", "call.route", 90,
                         [&](const MessagePointer&, const Answer& answer) {
                           ++later;
                           answer(true);
                         });
  auto& script =
      scripts.add("Message.install(function (msg) {\n  nothing();\n}, 'call.route', 50);");
  const int pid = script.pid();
  CHECK(scripts.ask("call.route")->handled == 1);
  CHECK(later == 1);
  CHECK(scripts.lines == std::vector<std::string>{"test: /scripts/test.js:2: ReferenceError: "
                                                  "identifier 'nothing' undefined"});
  CHECK(script.pid() == pid);
}

TEST_CASE("javascript: a script that uses up its memory is ended and started again") {
  ScriptLimits limits;
  limits.memory_limit = 4 << 20;
  Scripts scripts(limits);
  auto& script = scripts.add(
      "var kept = []; Message.install(function () { while (true) kept.push({}); }, 'call.route');");
  const int pid = script.pid();
  CHECK(scripts.ask("call.route")->handled == 0);
  CHECK(scripts.loop.run_until([&] { return script.pid() != 0 && script.pid() != pid; }));
  CHECK(scripts.has_line("Error: alloc failed"));
  CHECK(scripts.has_line("its memory_limit is used up"));
}

TEST_CASE("javascript: a process that is killed costs nothing but a restart") {
  Scripts scripts;
  auto& script = scripts.add(echo);
  const int pid = script.pid();
  REQUIRE(::kill(pid, SIGKILL) == 0);
  const auto sent = scripts.ask("call.route", {{"caller", "1"}});
  CHECK(sent->handled == 0);
  CHECK(scripts.loop.run_until([&] { return script.pid() != 0 && script.pid() != pid; }));
  CHECK(scripts.has_line("its process killed by signal 9"));
  CHECK(scripts.loop.run_until([&] {
    return scripts.ask("call.route", {{"caller", "1"}})->handled == 1;
  }));
}

TEST_CASE("javascript: a program that cannot be started is tried again, and no mistake to stop") {
  Scripts scripts;
  scripts.use_program("/nonexistent/sipmsg");
  auto& script = scripts.add(echo);
  CHECK(script.pid() == 0);
  CHECK(scripts.ask("call.route")->handled == 0);
  CHECK(scripts.has_line("cannot be started: no such file or directory"));
  const auto tries = [&] {
    int found = 0;
    for (const std::string& line : scripts.lines) {
      if (line.find("cannot be started") != std::string::npos) ++found;
    }
    return found;
  };
  CHECK(scripts.loop.run_until([&] { return tries() >= 3; }));
  CHECK(scripts.has_line("is started again in 400 ms"));
}

TEST_CASE("javascript: a process that sends what is no answer is stopped") {
  const std::pair<const char*, const char*> rows[] = {
      // A frame for scripts, one that is not whole inside, an answer to nothing, no frame at all.
      {"\\001\\000\\000\\000\\000", "its process sent what is no answer, and was stopped"},
      {"\\001\\000\\000\\000\\006", "its process sent what is no answer, and was stopped"},
      {"\\001\\000\\000\\000\\004\\001\\000\\000\\000\\004",
       "its process sent what is no answer, and was stopped"},
      {"\\377\\377\\377\\377", "its process killed by signal 9"}};
  for (const auto& row : rows) {
    const std::string octets = row.first;
    const std::string said = row.second;
    CAPTURE(octets);
    char path[] = "/tmp/sipmsg-mad-XXXXXX";
    const int file = ::mkstemp(path);
    REQUIRE(file >= 0);
    const std::string program = "#!/bin/sh\nprintf '" + octets + "' >&0\nexec cat >/dev/null\n";
    CHECK(::write(file, program.data(), program.size()) == static_cast<long>(program.size()));
    ::fchmod(file, 0700);
    ::close(file);
    Scripts scripts(quick(5000));
    scripts.use_program(path);
    scripts.add(echo);
    CHECK(scripts.loop.run_until([&] { return scripts.has_line(said); }));
    scripts.stop();
    ::unlink(path);
  }
}

TEST_CASE("javascript: a script asks a database and goes on when it has answered") {
  Scripts scripts;
  std::vector<std::pair<MessagePointer, Answer>> queries;
  scripts.engine.install("sqlitedb", "database", 100,
                         [&](const MessagePointer& message, Answer answer) {
                           queries.emplace_back(message, std::move(answer));
                         });
  scripts.add(R"(
    Message.install(function (msg) {
      var m = new Message("database");
      m.account = "smsc";
      m.query = "SELECT '" + msg.xsip_body.sqlEscape() + "'";
      msg.handled = m.dispatch();
      msg.row = m.getRow(0).id + "/" + m.getResult(0, "text");
      return true;
    }, "call.route", 50);
  )");
  const auto first = scripts.send("call.route", {{"xsip_body", "it's"}});
  const auto second = scripts.send("call.route", {{"xsip_body", "2"}});
  CHECK(scripts.loop.run_until([&] { return queries.size() == 2; }));
  CHECK(queries[0].first->get_or("query") == "SELECT 'it''s'");
  CHECK(queries[0].first->get_or("account") == "smsc");
  for (int i : {1, 0}) {
    auto table = std::make_shared<Table>();
    table->columns = {"id", "text"};
    table->rows = {{std::to_string(i), "caf\xc3\xa9"}};
    auto& [message, answer] = queries[static_cast<std::size_t>(i)];
    message->table = table;
    message->set("rows", "1");
    answer(true);
  }
  CHECK(scripts.loop.run_until([&] { return first->handled == 1 && second->handled == 1; }));
  CHECK(first->message->get_or("row") == "0/caf\xc3\xa9");
  CHECK(second->message->get_or("row") == "1/caf\xc3\xa9");
  CHECK(first->message->get_or("handled") == "true");
}

TEST_CASE("javascript: rows that are too many for a frame are left out, with a line in the log") {
  Scripts scripts;
  scripts.engine.install("sqlitedb", "database", 100,
                         [&](const MessagePointer& message, const Answer& answer) {
                           auto table = std::make_shared<Table>();
                           table->columns = {"x"};
                           table->rows = {{std::string(max_frame_size, 'x')}};
                           message->table = table;
                           answer(true);
                         });
  scripts.add(
      "Message.install(function (msg) { var m = new Message('database'); m.dispatch();"
      "msg.row = String(m.getRow(0)); return true; }, 'call.route');");
  CHECK(scripts.ask("call.route")->message->get_or("row") == "null");
  CHECK(scripts.has_line("too large"));
}

TEST_CASE("javascript: messages that come back to a script while it waits are handled meanwhile") {
  Scripts scripts;
  scripts.add(R"(
    Message.install(function (msg) {
      var m = new Message("number");
      m.n = msg.n - 1;
      msg.sum = msg.n;
      if (m.n > 0 && m.dispatch()) msg.sum = msg.n + m.sum;
      return true;
    }, "number");
    Message.install(function (msg) {
      msg.sum = [3, 4].map(function (n) {
        var m = new Message("number");
        m.n = n;
        m.dispatch();
        return m.sum;
      }).join();
      return true;
    }, "numbers");
  )");
  CHECK(scripts.ask("number", {{"n", "20"}})->message->get_or("sum") == "210");
  CHECK(scripts.ask("numbers")->message->get_or("sum") == "6,10");
  CHECK(scripts.lines.empty());
}

TEST_CASE("javascript: scripts talk to each other and share variables") {
  Scripts scripts;
  scripts.add(
      "Message.install(function (msg) { var m = new Message('second'); m.dispatch();"
      "msg.got = m.got; msg.n = Engine.shared.get('n'); return true; }, 'first');",
      "one");
  scripts.add(
      "Message.install(function (msg) { msg.got = Engine.shared.inc('n');"
      "return true; }, 'second');",
      "two");
  CHECK(scripts.ask("first")->message->get_or("got") == "0");
  const auto sent = scripts.ask("first");
  CHECK(sent->message->get_or("got") == "1");
  CHECK(sent->message->get_or("n") == "2");
}

TEST_CASE("javascript: filters choose what a script is asked about") {
  struct Case {
    const char* filter;
    const char* value;
    bool asked;
  };
  const Case cases[] = {{"101", "101", true},         {"101", "1010", false},
                        {"^1[0-9]+$", "101", true},   {"^1[0-9]+$", "1a", false},
                        {"^1[0-9]+$^", "101", false}, {"^1[0-9]+$^", "1a", true},
                        {"^(a|b)$", "b", true},       {"", "x", false},
                        {"^", "anything", true}};
  Scripts scripts;
  for (std::size_t i = 0; i < std::size(cases); ++i) {
    CAPTURE(std::string(cases[i].filter));
    const std::string name = "n" + std::to_string(i);
    scripts.add("Message.install(function () { return true; }, '" + name + "', 50, 'caller', '" +
                    cases[i].filter + "');",
                name);
    CHECK(scripts.ask(name, {{"caller", cases[i].value}})->handled == (cases[i].asked ? 1 : 0));
    CHECK(scripts.ask(name, {})->handled ==
          (std::string(cases[i].filter) == "^" || *cases[i].filter == '\0' ||
                   std::string(cases[i].filter) == "^1[0-9]+$^"
               ? 1
               : 0));
    scripts.stop();
  }
  scripts.add("Message.install(function () { return true; }, 'nul', 50, 'caller', '^101$');");
  CHECK(scripts.ask("nul", {{"caller", std::string("101\0x", 5)}})->handled == 0);
}

TEST_CASE("javascript: timers run in real time, and what they dispatch arrives") {
  Scripts scripts;
  int ticks = 0;
  scripts.engine.install("test", "tick", 100, [&](const MessagePointer&, const Answer& answer) {
    ++ticks;
    answer(true);
  });
  scripts.add("Engine.setInterval(function () { new Message('tick').enqueue(); }, 5);");
  CHECK(scripts.loop.run_until([&] { return ticks >= 5; }));
}

TEST_CASE("javascript: a message nobody answers a script about goes on after the timeout") {
  ScriptLimits limits;
  limits.time_limit_ms = 1000;  // no matter: the script waits, it does not run
  limits.timeout_ms = 1500;
  Scripts scripts(limits);
  std::vector<Answer> kept;
  scripts.engine.install("slow", "database", 100, [&](const MessagePointer&, Answer answer) {
    kept.push_back(std::move(answer));
  });
  auto& script = scripts.add(
      "Message.install(function (msg) { new Message('database').dispatch(); return true; },"
      "'call.route');");
  const int pid = script.pid();
  CHECK(scripts.ask("call.route", {{"caller", "5"}})->handled == 0);
  CHECK(scripts.has_line("no answer within 1500 ms to call.route (caller 5)"));
  for (const Answer& answer : kept) answer(true);  // the late answer is no trouble
  const auto next = scripts.send("call.route");
  REQUIRE(scripts.loop.run_until([&] { return kept.size() == 2; }));
  kept.back()(true);
  CHECK(scripts.loop.run_until([&] { return next->handled == 1; }));
  CHECK(script.pid() == pid);
}

TEST_CASE("javascript: more messages than max_queue go on without the script") {
  ScriptLimits limits;
  limits.max_queue = 3;
  Scripts scripts(limits);
  scripts.add("Message.install(function () { Engine.sleep(0.05); return true; }, 'call.route');");
  std::vector<std::shared_ptr<Scripts::Sent>> sent;
  for (int i = 0; i < 5; ++i) sent.push_back(scripts.send("call.route"));
  CHECK(sent[2]->handled == -1);
  CHECK(sent[3]->handled == 0);
  CHECK(sent[4]->handled == 0);
  CHECK(scripts.loop.run_until([&] { return sent[2]->handled == 1; }));
  CHECK(scripts.lines.size() == 1);
}

TEST_CASE("javascript: stop answers what waits, and leaves nothing behind") {
  ScriptLimits limits;
  limits.timeout_ms = 60000;
  limits.time_limit_ms = 60000;
  Scripts scripts(limits);
  std::vector<Answer> kept;
  scripts.engine.install("slow", "database", 100, [&](const MessagePointer&, Answer answer) {
    kept.push_back(std::move(answer));
  });
  scripts.add(
      "Message.install(function (msg) { new Message('database').dispatch(); return true; },"
      "'call.route');");
  scripts.add("Engine.setTimeout(function () { while (true) {} }, 1);", "loop");
  const auto sent = scripts.send("call.route");
  REQUIRE(scripts.loop.run_until([&] { return kept.size() == 1; }));
  scripts.stop();
  CHECK(sent->handled == 0);
  CHECK_FALSE(scripts.engine.is_wanted("call.route"));
  kept.back()(true);
  CHECK(scripts.loop.run_dry());
}

TEST_CASE("javascript: start waits for the script, not for what it does afterwards") {
  constexpr std::uint64_t limit_ms = 60000;
  Scripts scripts(quick(limit_ms));
  const std::uint64_t began = uv_hrtime();
  scripts.add(
      "Message.install(function () { return true; }, 'call.route');"
      "Engine.setTimeout(function () { while (true) {} }, 1);"
      "var end = Date.now() + 20; while (Date.now() < end) {}");  // so that its timer is due at
                                                                  // once
  CHECK((uv_hrtime() - began) / 1000000 < limit_ms / 2);
  CHECK(scripts.engine.is_wanted("call.route"));
}

TEST_CASE("javascript: a script may be stopped from inside an answer of its own") {
  Scripts scripts;
  scripts.add(echo);
  auto message = std::make_shared<ListMessage>("call.route");
  bool answered = false;
  scripts.engine.dispatch(message, [&](bool) {
    answered = true;
    scripts.stop();
  });
  CHECK(scripts.loop.run_until([&] { return answered; }));
}

TEST_CASE("javascript: the process ends when its server is gone") {
  test::EventLoop loop;
  int ends[2];
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
  std::string program = SIPMSG_TEST_PROGRAM;
  std::string subcommand = "run-script";
  std::string name = "orphan";
  std::string memory = "4194304";
  char* arguments[] = {program.data(), subcommand.data(), name.data(), memory.data(), nullptr};
  uv_stdio_container_t stdio[1];
  stdio[0].flags = UV_INHERIT_FD;
  stdio[0].data.fd = ends[1];
  uv_process_options_t options{};
  options.file = program.c_str();
  options.args = arguments;
  options.stdio = stdio;
  options.stdio_count = 1;
  std::int64_t status = -1;
  options.exit_cb = [](uv_process_t* process, std::int64_t exit_status, int) {
    *static_cast<std::int64_t*>(process->data) = exit_status;
    uv_close(reinterpret_cast<uv_handle_t*>(process), nullptr);
  };
  uv_process_t process;
  process.data = &status;
  REQUIRE(uv_spawn(loop.uv(), &process, &options) == 0);
  ::close(ends[1]);
  ::close(ends[0]);
  CHECK(loop.run_until([&] { return status >= 0; }));
  CHECK(status == 0);
}

// ---- the examples

namespace {

/// The scripts of examples/scripts, with a database that is a list and a phone that answers `code`.
class Examples : public Scripts {
 public:
  explicit Examples(const std::string& name) {
    JavascriptSettings settings;
    sipmsg::Diagnostics diagnostics;
    const std::string directory = std::string(SIPMSG_TEST_DATA) + "/../../examples/scripts";
    REQUIRE(load_javascript(directory, settings, diagnostics));
    CHECK(diagnostics.empty());
    SourceOptions options;
    ScriptSource source;
    source.name = name;
    REQUIRE(read_script(directory + "/" + name + ".js", options, source, diagnostics));
    add(std::move(source));
    engine.install("sqlitedb", "database", 100,
                   [this](const MessagePointer& message, const Answer& answer) {
                     answer_query(*message);
                     answer(true);
                   });
    engine.install("sip", "msg.execute", 100,
                   [this](const MessagePointer& message, const Answer& answer) {
                     delivered.push_back(message);
                     message->set("code", std::to_string(code));
                     answer(code < 300);
                   });
  }

  std::vector<std::string> queries;
  std::vector<MessagePointer> delivered;
  Table rows;
  std::string dbtype = "sqlitedb";
  int code = 200;
  bool fails = false;

 private:
  void answer_query(Message& message) {
    const std::string query = message.get_or("query");
    CHECK(message.get_or("account") == "smsc");
    if (query.empty()) return message.set("dbtype", dbtype);
    queries.push_back(query);
    if (fails) return message.set("error", "failure");
    if (query.rfind("SELECT", 0) == 0) message.table = std::make_shared<Table>(rows);
    if (query.rfind("DELETE", 0) == 0) rows.rows.erase(rows.rows.begin());
    message.set("rows", std::to_string(rows.rows.size()));
  }
};

}  // namespace

TEST_CASE("examples/scripts: filter_sip_messages.js lets user 101 send, and nobody else") {
  Examples examples("filter_sip_messages");
  CHECK(examples.ask("call.route", {{"route_type", "msg"}, {"caller", "101"}})->handled == 0);
  const auto refused = examples.ask("call.route", {{"route_type", "msg"}, {"caller", "102"}});
  CHECK(refused->handled == 1);
  CHECK(refused->message->return_value == "-");
  CHECK(refused->message->get_or("reason") == "rejected");
  CHECK(examples.ask("call.route", {{"caller", "102"}})->handled == 0);
}

TEST_CASE("examples/scripts: smsc.js keeps what is for users who are offline") {
  Examples examples("smsc");
  Parameters parameters = {{"route_type", "msg"},
                           {"caller", "007"},
                           {"called", "102"},
                           {"error", "offline"},
                           {"xsip_body", "it's \\"}};
  const auto routed = examples.ask("call.route", parameters);
  CHECK(routed->handled == 1);
  CHECK(routed->message->return_value == "smsc/102");
  CHECK(examples.ask("call.route", {{"route_type", "msg"}, {"called", "102"}})->handled == 0);
  parameters[3] = {"callto", "smsc/102"};
  const auto kept = examples.ask("msg.execute", parameters);
  CHECK(kept->handled == 1);
  CHECK(kept->message->return_value == "202");
  REQUIRE(examples.queries.size() == 1);
  const std::string expected =
      "INSERT INTO sms(caller,called,message,type,encoding,sent) "
      "VALUES('007','102','it''s \\',NULL,NULL,'";
  CHECK(examples.queries[0].substr(0, expected.size()) == expected);
  examples.fails = true;
  examples.code = 405;  // the phone that does not know the target
  const auto failed = examples.ask("msg.execute", parameters);
  CHECK(failed->handled == 0);
  CHECK(failed->message->get_or("reason") == "noresource");
}

TEST_CASE("examples/scripts: smsc.js writes texts as the database reads them") {
  for (const bool is_mysql : {false, true}) {
    Examples examples("smsc");
    if (is_mysql) examples.dbtype = "mysqldb";
    const Parameters parameters = {{"caller", "101"},
                                   {"called", "102"},
                                   {"xsip_body", "\\'); DROP TABLE sms; -- ?"},
                                   {"callto", "smsc/102"}};
    CHECK(examples.ask("msg.execute", parameters)->handled == 1);
    REQUIRE(examples.queries.size() == 1);
    const std::string written =
        std::string(is_mysql ? "'\\\\''" : "'\\''") + "); DROP TABLE sms; -- ?',";
    CAPTURE(examples.queries[0]);
    CHECK(examples.queries[0].find("VALUES('101','102'," + written) != std::string::npos);
  }
}

TEST_CASE("examples/scripts: smsc.js delivers in order and forgets only what was accepted") {
  Examples examples("smsc");
  examples.rows.columns = {"id", "caller", "message", "type", "encoding", "sent"};
  for (const char* id : {"1", "2", "3"}) {
    examples.rows.rows.push_back(
        {id, "007", std::string("text ") + id, "text/plain", std::nullopt, "then"});
  }
  examples.code = 486;
  const Parameters phone = {{"username", "102"}, {"data", "sip/sip:102@192.0.2.1"}};
  examples.send("user.register", phone);
  examples.send("user.register", phone);  // meanwhile: not twice
  CHECK(examples.loop.run_until([&] { return examples.delivered.size() == 1; }));
  CHECK(examples.rows.rows.size() == 3);
  examples.code = 200;
  CHECK(examples.loop.run_until([&] {
    examples.ask("user.register", phone);
    return examples.delivered.size() > 1;
  }));
  CHECK(examples.loop.run_until([&] { return examples.rows.rows.empty(); }));
  REQUIRE(examples.delivered.size() == 4);
  for (std::size_t i = 1; i < 4; ++i) {
    const Message& message = *examples.delivered[i];
    CHECK(message.get_or("callto") == "sip/sip:102@192.0.2.1");
    CHECK(message.get_or("caller") == "007");
    CHECK(message.get_or("xsip_body") == "text " + std::to_string(i));
    CHECK(message.get_or("xsip_type") == "text/plain");
    CHECK_FALSE(message.get("xsip_body_encoding"));
    CHECK(message.get_or("sip_Date") == "then");
    CHECK(message.get_or("wait") == "true");
  }
}

}  // namespace net_javascript
