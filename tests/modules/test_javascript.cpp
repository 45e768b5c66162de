// What a script sees and does, in virtual time: the language's surroundings (Engine, Message,
// texts), the order of its work, its limits. Also the frames it speaks in, its source with what it
// includes, and javascript.conf. Real processes are in net_javascript.cpp.
#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <deque>
#include <fstream>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../../src/modules/engine.hpp"
#include "../../src/modules/javascript/javascript.hpp"
#include "../../src/modules/javascript/link.hpp"
#include "../../src/modules/javascript/runner.hpp"
#include "../../src/modules/javascript/settings.hpp"
#include "../../src/modules/javascript/shared.hpp"
#include "../../src/modules/javascript/text.hpp"

namespace test_javascript {

using namespace modules;

namespace {

using Parameters = std::vector<std::pair<std::string, std::string>>;

struct Answered {
  bool handled = false;
  std::string return_value;
  std::string changes;  ///< "a=1 b" : a set, b removed
};

struct Dispatched {
  std::uint64_t id = 0;
  std::string name;
  std::string return_value;
  Parameters parameters;
};

/// The server's end of the link, as lists. Time passes only while the script waits for it; the
/// server is gone when there is nothing left to wait for.
class FakeServer final : public ScriptLink {
 public:
  explicit FakeServer(const std::string& script, std::size_t memory_limit = 16 << 20) {
    writer_.begin(FrameType::start);
    writer_.text("test.js");
    writer_.text(script);
    writer_.number(1);
    writer_.text("/scripts/test.js");
    writer_.number(1);
    for (unsigned value : {1u, 0u, 1u}) writer_.number(value);
    writer_.number(memory_limit);
    writer_.number(5000);  // uptime
    writer_.number(1);
    writer_.text("configpath");
    writer_.text("/etc/sipmsg");
    add();
  }

  /// Offers a message to the script's first handler.
  void handle(std::uint64_t id, const Parameters& parameters, std::uint64_t handler = 1,
              const std::string& name = "call.route") {
    writer_.begin(FrameType::handle);
    writer_.number(id);
    writer_.number(handler);
    writer_.text(name);
    writer_.text("before");
    writer_.number(1700000000);
    write(parameters);
    add();
  }

  void result(std::uint64_t id, bool handled, const std::string& return_value,
              const Parameters& parameters, const Table* table = nullptr) {
    writer_.begin(FrameType::result);
    writer_.number(id);
    writer_.flag(handled);
    writer_.text("database");
    writer_.text(return_value);
    write(parameters);
    writer_.flag(table != nullptr);
    if (table != nullptr) {
      writer_.number(table->columns.size());
      for (const auto& column : table->columns) writer_.text(column);
      writer_.number(table->rows.size());
      for (const auto& row : table->rows) {
        for (const auto& value : row) {
          writer_.flag(value.has_value());
          if (value) writer_.text(*value);
        }
      }
    }
    add();
  }

  bool run() { return ScriptRunner(*this).run(); }

  void send(std::string_view octets) override {
    std::string_view frame;
    while (split_frame(octets, frame) == FrameState::whole) take(frame);
    CHECK(octets.empty());
  }

  Received receive(std::string& frame, std::uint64_t wait_ms) override {
    if (!incoming_.empty()) {
      frame = incoming_.front();
      incoming_.pop_front();
      return Received::frame;
    }
    if (wait_ms == forever || time_ms_ + wait_ms > end_ms) return Received::end;
    time_ms_ += wait_ms;
    return Received::nothing;
  }

  std::uint64_t now_ms() override { return time_ms_; }

  std::string text() const {
    std::string all;
    for (const auto& line : lines) all += line + "\n";
    return all;
  }

  std::vector<std::string> lines;  ///< of the log
  std::vector<std::string> work;   ///< "done", "busy ran a timer", in order with "answer 1"
  std::map<std::uint64_t, Answered> answers;
  std::vector<Dispatched> dispatched;
  std::vector<std::string> installed;  ///< "1 owner call.route 100 caller ^1"
  std::function<void(const Dispatched&)> on_dispatch;
  std::uint64_t end_ms = 100000;

 private:
  void add() {
    REQUIRE(writer_.end());
    std::string_view rest = writer_.ready();
    std::string_view frame;
    REQUIRE(split_frame(rest, frame) == FrameState::whole);
    incoming_.emplace_back(frame);
    writer_.consume(writer_.ready().size());
  }

  void write(const Parameters& parameters) {
    writer_.number(parameters.size());
    for (const auto& [name, value] : parameters) {
      writer_.text(name);
      writer_.text(value);
    }
  }

  void take(std::string_view octets) {
    FrameReader frame(octets);
    const auto type = frame.type();
    REQUIRE(type);
    switch (*type) {
      case FrameType::done: work.emplace_back("done"); break;
      case FrameType::busy: work.push_back("busy " + std::string(frame.text())); break;
      case FrameType::install: {
        std::string line = std::to_string(frame.number());
        line.append(" ").append(frame.text()).append(" ").append(frame.text());
        line += " " + std::to_string(frame.number());
        line.append(" ").append(frame.text()).append(" ").append(frame.text());
        installed.push_back(line);
        break;
      }
      case FrameType::remove: installed.push_back("-" + std::to_string(frame.number())); break;
      case FrameType::answer: take_answer(frame); break;
      case FrameType::dispatch: take_dispatch(frame); break;
      case FrameType::shared: take_shared(frame); break;
      case FrameType::log:
        (void)frame.number();
        lines.emplace_back(frame.text());
        break;
      default: FAIL("a frame in the wrong direction");
    }
    CHECK(frame.is_good());
  }

  void take_answer(FrameReader& frame) {
    const std::uint64_t id = frame.number();
    work.push_back("answer " + std::to_string(id));
    CHECK(answers.count(id) == 0);
    Answered& answer = answers[id];
    answer.handled = frame.flag();
    answer.return_value = frame.text();
    for (std::uint64_t left = frame.count(24); left > 0; --left) {
      std::string change(frame.text());
      const bool present = frame.flag();
      const std::string_view value = frame.text();
      if (present) change.append("=").append(value);
      answer.changes += (answer.changes.empty() ? "" : " ") + change;
    }
  }

  void take_dispatch(FrameReader& frame) {
    Dispatched message;
    message.id = frame.number();
    message.name = frame.text();
    message.return_value = frame.text();
    (void)frame.number();
    for (std::uint64_t left = frame.count(16); left > 0; --left) {
      std::string name(frame.text());
      message.parameters.emplace_back(std::move(name), frame.text());
    }
    dispatched.push_back(message);
    if (on_dispatch) on_dispatch(message);
  }

  void take_shared(FrameReader& frame) {
    const auto operation = static_cast<SharedOperation>(frame.number());
    const std::string name(frame.text());
    const std::string value(frame.text());
    std::optional<std::string> found;
    if (operation == SharedOperation::set) return void(shared_.set(name, value));
    if (operation == SharedOperation::clear) return shared_.clear(name);
    if (operation == SharedOperation::get) found = shared_.get(name);
    if (operation == SharedOperation::increment) {
      found = std::to_string(*shared_.increment(name, std::stoull(value)));
    }
    writer_.begin(FrameType::shared_value);
    writer_.flag(found.has_value());
    writer_.text(found.value_or(""));
    add();
  }

  FrameWriter writer_;
  std::deque<std::string> incoming_;
  SharedVariables shared_;
  std::uint64_t time_ms_ = 1000;
};

struct Row {
  const char* expression;
  const char* printed;
};

/// What Engine.output prints of an expression, inside a handler that got `parameters`.
std::string printed(const std::string& expression, const Parameters& parameters) {
  FakeServer server("Message.install(function (msg) { Engine.output(" + expression +
                    "); }, 'call.route');");
  server.handle(1, parameters);
  CHECK(server.run());
  CHECK(server.answers.count(1) == 1);
  REQUIRE(server.lines.size() == 1);
  return server.lines[0];
}

}  // namespace

TEST_CASE("javascript: parameters are properties, and what looks like a number reads as one") {
  const Parameters parameters = {
      {"caller", "101"},      {"called", "007"},   {"sip_content-type", "text/plain"},
      {"xsip_body", "hello"}, {"plus", "+40"},     {"large", "9007199254740993"},
      {"minus", "-5"},        {"fraction", "1.5"}, {"name", "Bob"},
      {"empty", ""},          {"twice", "first"},  {"twice", "second"},
      {"exponent", "1e3"},    {"flag", "true"}};
  const Row rows[] = {
      {"msg.caller, typeof msg.caller", "101 number"},
      {"msg.caller == 101, msg.caller == '101', msg.caller === 101", "true true true"},
      {"msg.caller === '101'", "false"},
      {"msg.caller != '101'", "false"},
      {"msg.caller + 1, msg.minus * 2", "102 -10"},
      {"'to ' + msg.called, msg.called", "to 007 007"},
      {"msg.called == 7, msg.called < 8, msg.called * 1", "true true 7"},
      {"typeof msg.called", "string"},  // Yate: number, which cannot keep its zeros here
      {"msg.plus, msg.large, msg.fraction, msg.exponent", "+40 9007199254740993 1.5 1e3"},
      {"msg['sip_content-type'], msg.xsip_body", "text/plain hello"},
      {"msg.nothing, msg.empty === ''", "undefined true"},
      {"msg.twice", "first"},
      {"'caller' in msg, 'nothing' in msg, 'dispatch' in msg", "true false false"},
      {"msg.flag, typeof msg.flag", "true string"},
      {"msg.name()", "call.route"},
      {"msg.getParam('name')", "Bob"},
      {"msg.getParam('nothing', 'x'), msg.getParam('caller', 0)", "x 101"},
      {"typeof msg.getParam('caller', '', false), typeof msg.getParam('caller')", "string number"},
      {"msg.retValue(), msg.msgTime(), msg.broadcast()", "before 1700000000 false"},
      {"(function () { var names = []; for (var name in msg) names.push(name);"
       " return names.slice(0, 3).join(); })()",
       "caller,called,sip_content-type"},
      {"Object.keys(msg).length, JSON.stringify(msg).substr(0, 14)", "13 {\"caller\":101,"},
      {"msg instanceof Message", "true"},
      {"msg.caller.length, msg.caller.substr(1), msg.caller.match(/1$/) !== null", "3 01 true"},
      {"msg.caller.sqlEscape(), msg.caller.trim(), msg.caller.indexOf('0')", "101 101 1"},
      {"msg.caller.split('0').length, msg.caller.startsWith('10')", "2 true"}};
  for (const Row& row : rows) {
    CAPTURE(row.expression);
    CHECK(printed(row.expression, parameters) == row.printed);
  }
}

TEST_CASE("javascript: only what a handler changed travels back") {
  struct Case {
    const char* body;
    bool handled;
    const char* return_value;
    const char* changes;
  };
  const Case cases[] = {
      {"", false, "before", ""},
      {"return true;", true, "before", ""},
      {"return false;", false, "before", ""},
      {"return 'yes';", true, "before", ""},
      {"return 0;", false, "before", ""},
      {"msg.reason = 'rejected'; return false;", false, "before", "reason=rejected"},
      {"msg.retValue('-'); return true;", true, "-", ""},
      {"msg.retValue(''); return true;", true, "", ""},
      {"msg.count = 5; msg.yes = true;", false, "before", "count=5 yes=true"},
      {"delete msg.caller;", false, "before", "caller"},
      {"msg.caller = undefined;", false, "before", "caller"},
      {"msg.caller = 7; msg.caller = null;", false, "before", "caller"},
      {"msg.setParam('a', 1); msg.clearParam('caller');", false, "before", "a=1 caller"},
      {"msg.copyParams({x: 'y', f: function () {}}); msg.copyParams(msg);", false, "before",
       "x=y caller=101"},
      {"msg['sip_subject'] = 'caf\\u00e9 \\ud83d\\ude00';", false, "before",
       "sip_subject=caf\xc3\xa9 \xf0\x9f\x98\x80"}};
  for (const Case& row : cases) {
    CAPTURE(row.body);
    FakeServer server("Message.install(function (msg) {" + std::string(row.body) +
                      "}, 'call.route');");
    server.handle(9, {{"caller", "101"}});
    CHECK(server.run());
    CHECK(server.lines.empty());
    REQUIRE(server.answers.count(9) == 1);
    CHECK(server.answers[9].handled == row.handled);
    CHECK(server.answers[9].return_value == row.return_value);
    CHECK(server.answers[9].changes == row.changes);
  }
}

TEST_CASE("javascript: any octets pass through a script unchanged") {
  std::string all;
  for (int octet = 0; octet < 256; ++octet) all.push_back(static_cast<char>(octet));
  for (const std::string& value :
       {all, std::string("\xf0\x9f\x98\x80\xed\xb3\xa9\xff\xc0\x80"), std::string("\x80 first")}) {
    FakeServer server(
        "Message.install(function (msg) { msg.copy = msg.body; msg.size = msg.body.length; },"
        "'call.route');");
    server.handle(1, {{"body", value}});
    CHECK(server.run());
    CHECK(server.lines.empty());
    CHECK(server.answers[1].changes.find("copy=" + value + " size=") == 0);
  }
  CHECK(printed("msg.body.length, msg.body.charCodeAt(0)", {{"body", "\xf0\x9f\x98\x80"}}) ==
        "2 55357");
}

TEST_CASE("javascript: texts of the other side that no octets stand for are replaced") {
  const std::pair<const char*, const char*> rows[] = {
      {"\xed\xa0\xbd", "\xef\xbf\xbd"},                  // a high surrogate alone
      {"\xed\xb0\x80", "\xef\xbf\xbd"},                  // a low one that is no octet
      {"\xed\xb3\xa9", "\xe9"},                          // one that is
      {"\xed\xa0\xbd\xed\xb8\x80", "\xf0\x9f\x98\x80"},  // a pair
      {"\x82", "\xef\xbf\xbd"}};                         // a symbol of Duktape's
  for (const auto& [text, octets] : rows) {
    std::string out;
    from_script_text(text, out);
    CHECK(out == octets);
  }
}

TEST_CASE("javascript: handlers are installed with priority and filter, replaced and removed") {
  FakeServer server(R"(
    function f() {}
    function g() {}
    Message.trackName('filter');
    Engine.output(
      Message.install(f, 'call.route'), Message.install(g, 'call.route', 50, 'caller', '^1[0-9]+$'),
      Message.install(f, 'user.register', 20, 'username', '101'), Message.install('f', 'x'),
      Message.install(f), Message.install(g, 'x', 1, 'caller', '^(('), Message.trackName());
    Engine.output(Message.install(f, 'call.route', 30));
    Engine.output(Message.handlers().map(function (h) { return h.name + ':' + h.priority; }));
    Engine.output(Message.uninstall('call.route'), Message.uninstall('call.route'));
    Engine.output(Message.handlers('call.route').length, Message.uninstall(),
                  Message.handlers().length);
  )");
  CHECK(server.run());
  CHECK(server.text() ==
        "true true true false false false filter\n"
        "true\n"
        "call.route:50,user.register:20,call.route:30\n"
        "true false\n"
        "0 true 0\n");
  const std::vector<std::string> expected = {"1 filter call.route 100  ",
                                             "2 filter call.route 50 caller ^1[0-9]+$",
                                             "3 filter user.register 20 username 101",
                                             "-1",
                                             "5 filter call.route 30  ",
                                             "-2",
                                             "-5",
                                             "-3"};
  CHECK(server.installed == expected);
}

TEST_CASE("javascript: timers that are always due leave room for messages") {
  FakeServer server(R"(
    var seen = 0;
    Message.install(function () { ++seen; return true; }, 'call.route');
    for (var i = 0; i < 20 && seen < 2; ++i) Engine.usleep(0);
    Engine.output(seen, i < 20);
  )");
  for (std::uint64_t id : {1u, 2u}) server.handle(id, {{"caller", "1"}});
  CHECK(server.run());
  CHECK(server.text() == "2 true\n");
  CHECK(server.answers[1].handled);
  CHECK(server.answers[2].handled);
}

TEST_CASE("javascript: dispatch waits for the answer while other messages are handled") {
  FakeServer server(R"(
    Message.install(function (msg) {
      var m = new Message('database');
      m.account = 'smsc';
      m.number = msg.caller;
      var handled = m.dispatch();
      msg.seen = handled + ' ' + m.rows + ' ' + m.account + ' ' + m.retValue();
      return true;
    }, 'call.route');
  )");
  std::vector<std::uint64_t> waiting;
  server.on_dispatch = [&](const Dispatched& message) {
    CHECK(message.name == "database");
    waiting.push_back(message.id);
    if (waiting.size() < 3) return;
    for (std::size_t i : {1u, 0u, 2u}) {
      server.result(waiting[i], i != 0, "r", {{"rows", std::to_string(i)}, {"number", "1"}});
    }
  };
  for (std::uint64_t id : {1u, 2u, 3u}) server.handle(id, {{"caller", std::to_string(id)}});
  CHECK(server.run());
  CHECK(server.text() == "");
  REQUIRE(server.dispatched.size() == 3);
  CHECK(server.dispatched[1].parameters == Parameters{{"account", "smsc"}, {"number", "2"}});
  const std::vector<std::string> expected = {"done", "done",     "done", "done",     "answer 2",
                                             "done", "answer 1", "done", "answer 3", "done"};
  CHECK(server.work == expected);
  CHECK(server.answers[1].changes == "seen=false 0 undefined r");
  CHECK(server.answers[2].changes == "seen=true 1 undefined r");
  CHECK(server.answers[3].changes == "seen=true 2 undefined r");
}

TEST_CASE("javascript: a message caused by dispatch comes back to the script, in callbacks too") {
  FakeServer server(R"(
    Message.install(function (msg) {
      msg.got = [1, 2].map(function (i) {
        var m = new Message('inner');
        m.i = i;
        m.dispatch();
        return m.answer;
      }).join();
      return true;
    }, 'outer');
    Message.install(function (msg) {
      Engine.usleep(1000);
      msg.answer = msg.i * 10;
      return true;
    }, 'inner');
  )");
  std::map<std::uint64_t, std::uint64_t> caused;  // the inner message of a dispatch
  std::uint64_t next = 100;
  server.on_dispatch = [&](const Dispatched& message) {
    caused[next] = message.id;
    server.handle(next++, message.parameters, 2, "inner");
  };
  server.handle(1, {}, 1, "outer");
  // The answers to the inner messages become the results of the dispatches.
  struct Loop final : ScriptLink {
    explicit Loop(FakeServer& server, std::map<std::uint64_t, std::uint64_t>& caused)
        : server_(server), caused_(caused) {}
    void send(std::string_view frames) override {
      server_.send(frames);
      for (auto entry = caused_.begin(); entry != caused_.end();) {
        const auto answer = server_.answers.find(entry->first);
        if (answer == server_.answers.end()) {
          ++entry;
          continue;
        }
        server_.result(entry->second, answer->second.handled, "",
                       {{"answer", answer->second.changes.substr(7)}});
        entry = caused_.erase(entry);
      }
    }
    Received receive(std::string& frame, std::uint64_t wait_ms) override {
      return server_.receive(frame, wait_ms);
    }
    std::uint64_t now_ms() override { return server_.now_ms(); }
    FakeServer& server_;
    std::map<std::uint64_t, std::uint64_t>& caused_;
  } loop(server, caused);
  CHECK(ScriptRunner(loop).run());
  CHECK(server.text() == "");
  CHECK(server.answers[1].handled);
  CHECK(server.answers[1].changes == "got=10,20");
  // However it waits, the server gets one `done` for each piece of work.
  int open = 0;
  for (const std::string& entry : server.work) {
    if (entry.rfind("busy", 0) == 0) ++open;
    if (entry == "done") --open;
  }
  CHECK(open == -(1 + 3 + 2));  // start, three messages, two results
}

TEST_CASE("javascript: waits inside of callbacks end at a depth, with an exception") {
  FakeServer server(R"(
    Message.install(function (msg) {
      [0].forEach(function () { new Message('again').dispatch(); });
    }, 'again');
  )");
  std::uint64_t next = 1;
  server.handle(next++, {}, 1, "again");
  server.on_dispatch = [&](const Dispatched& message) {
    if (next < 100) return server.handle(next++, message.parameters, 1, "again");
    for (const Dispatched& waiting : server.dispatched) server.result(waiting.id, false, "", {});
  };
  CHECK(server.run());
  CHECK(server.text().find("RangeError: too many messages wait inside one another") !=
        std::string::npos);
}

TEST_CASE("javascript: enqueue sends and does not wait") {
  FakeServer server(
      "var m = new Message('x', true, {a: 1}); Engine.output(m.broadcast()); "
      "m.retValue('r'); m.enqueue(); Engine.output('on');");
  CHECK(server.run());
  CHECK(server.text() == "true\non\n");
  REQUIRE(server.dispatched.size() == 1);
  CHECK(server.dispatched[0].id == 0);
  CHECK(server.dispatched[0].return_value == "r");
  CHECK(server.dispatched[0].parameters == Parameters{{"a", "1"}});
}

TEST_CASE("javascript: rows and columns of a database") {
  Table table;
  table.columns = {"id", "text"};
  table.rows = {{"1", "one"}, {"02", std::nullopt}};
  Table empty;
  empty.columns = {"id"};
  const Row rows[] = {
      {"m.getRow(0).id + 1, m.getRow(0).text", "2 one"},
      {"m.getRow(1).id, m.getRow(1).text", "02 null"},
      {"m.getRow(2), m.getRow(-1), m.getRow('x')", "null null null"},
      {"m.getRow().length, m.getRow()[0].text", "2 one"},
      {"m.getColumn('id').join('/'), m.getColumn(0).length", "1/02 2"},
      {"m.getColumn('none'), m.getColumn(7)", "null null"},
      {"Object.keys(m.getColumn()).join(), m.getColumn().text[0]", "id,text one"},
      {"m.getResult(0, 'text'), m.getResult(0, 0), m.getResult(1, 1)", "one 1 null"},
      {"m.getResult(5, 0), m.getResult(0, 'none'), m.getResult(0, 2)", "null null null"},
      {"typeof m.getResult(0, 'id'), typeof m.rows", "number number"},
      {"e.getColumn(), e.getColumn('id'), e.getRow(0), e.getRow().length", "null null null 0"},
      {"new Message('x').getRow(), new Message('x').getResult(0, 0)", "null null"}};
  for (const Row& row : rows) {
    CAPTURE(row.expression);
    FakeServer server(
        "var m = new Message('database'), e = new Message('database');"
        "m.dispatch(); e.dispatch(); Engine.output(" +
        std::string(row.expression) + ");");
    server.on_dispatch = [&](const Dispatched& message) {
      const bool first = server.dispatched.size() == 1;
      server.result(message.id, true, "", {{"rows", "2"}}, first ? &table : &empty);
    };
    CHECK(server.run());
    CHECK(server.text() == std::string(row.printed) + "\n");
  }
}

TEST_CASE("javascript: timers go off in order, repeat, and are cleared") {
  FakeServer server(R"(
    var times = 0, interval = Engine.setInterval(function () {
      Engine.output('tick ' + ++times);
      if (times === 3) Engine.clearInterval(interval);
    }, 100);
    Engine.setTimeout(function () { Engine.output('late'); }, 250);
    var never = Engine.setTimeout(function () { Engine.output('never'); }, 10);
    Engine.output(Engine.clearTimeout(never), Engine.clearTimeout(12345));
    Engine.sleep(0.22);
    Engine.output('slept', Engine.uptime());
  )");
  CHECK(server.run());
  CHECK(server.text() == "true false\ntick 1\ntick 2\nslept 5\nlate\ntick 3\n");
  CHECK(server.now_ms() == 1300);
  CHECK(server.work[1] == "busy ran a timer");
}

TEST_CASE("javascript: no more than ten thousand timers") {
  FakeServer server(
      "try { for (var i = 0; ; i++) Engine.setTimeout(function () {}, 1e9); }"
      "catch (e) { Engine.output(i, e); }");
  CHECK(server.run());
  CHECK(server.text() == "10000 RangeError: too many timers\n");
}

TEST_CASE("javascript: shared variables, log lines, run parameters") {
  const Row rows[] = {
      {"Engine.shared.set('a', 5), Engine.shared.get('a'), typeof Engine.shared.get('b')",
       "undefined 5 undefined"},
      {"Engine.shared.inc('n'), Engine.shared.inc('n'), Engine.shared.get('n')", "0 1 2"},
      {"Engine.shared.inc('w', 1), Engine.shared.inc('w', 1), Engine.shared.inc('w', 1)", "0 1 0"},
      {"Engine.shared.set('u', 'caf\xc3\xa9'), Engine.shared.get('u').length", "undefined 4"},
      {"Engine.runParams('configpath'), Engine.runParams().configpath, Engine.runParams('x')",
       "/etc/sipmsg /etc/sipmsg undefined"},
      {"Engine.debugName('me'), Engine.debugName(), Engine.debugLevel(), Engine.DebugWarn",
       "undefined me 8 5"},
      {"'it\\'s a \\\\'.sqlEscape(), 'it\\'s a \\\\'.sqlEscape(\"'\"), ''.sqlEscape()",
       "it''s a \\\\ it''s a \\ "},
      {"' x '.trim(), 'abc'.substr(1, 1), 'a-b'.split('-').length, 'abc'.indexOf('c')", "x b 2 2"}};
  for (const Row& row : rows) {
    CAPTURE(row.expression);
    FakeServer server("Engine.output(" + std::string(row.expression) + ");");
    CHECK(server.run());
    CHECK(server.text() == std::string(row.printed) + "\n");
  }
  FakeServer server(
      "Engine.debugName('d'); Engine.debug(Engine.DebugInfo, 'no');"
      "Engine.debug(5, 'a', 1); Engine.alarm(2, 'b');");
  CHECK(server.run());
  CHECK(server.text() == "<d> a 1\n<d> alarm: b\n");
}

TEST_CASE("javascript: an exception is logged with file and line; the message goes on") {
  const std::pair<const char*, const char*> rows[] = {
      {"\nthrow new Error('boo');", "/scripts/test.js:2: Error: boo"},
      {"\n\nmsg.x.y = 1;", "/scripts/test.js:3: TypeError: cannot write property 'y' of undefined"},
      {"\nnew Message();", "/scripts/test.js:2: TypeError: a message needs a name"},
      {"\n'x'.repeat(-1);", "/scripts/test.js:2: RangeError: invalid args"},
      {"\nEngine.setTimeout(5);", "/scripts/test.js:2: TypeError: a timer needs a function"},
      {"throw 'text';", "text"},
      {"throw {toString: function () { throw 1; }};", "1"}};
  for (const auto& row : rows) {
    const std::string body = row.first;
    const std::string line = row.second;
    CAPTURE(body);
    FakeServer server("Message.install(function (msg) {" + std::string(body) + "}, 'call.route');");
    server.handle(1, {});
    server.handle(2, {});
    CHECK(server.run());
    REQUIRE(server.lines.size() == 2);
    CHECK(server.lines[0] == line);
    CHECK(server.answers.count(1) == 1);
    CHECK(server.answers.count(2) == 1);
    CHECK_FALSE(server.answers[1].handled);
  }
}

TEST_CASE("javascript: a script that fails while it is loaded keeps the handlers it has") {
  FakeServer server("Message.install(function () { return true; }, 'call.route');\nnothing();");
  server.handle(1, {});
  CHECK(server.run());
  CHECK(server.text() == "/scripts/test.js:2: ReferenceError: identifier 'nothing' undefined\n");
  CHECK(server.answers[1].handled);
}

TEST_CASE("javascript: too much memory is an exception a script may catch") {
  FakeServer server(R"(
    Message.install(function (msg) {
      var grown = ['x'];
      try { while (true) grown.push(grown.join()); } catch (e) { msg.caught = e.name; }
      grown = null;
      return true;
    }, 'call.route');
  )",
                    4 << 20);
  server.handle(1, {});
  server.handle(2, {});
  CHECK(server.run());
  CHECK(server.answers[2].changes == "caught=Error");
}

TEST_CASE("javascript: a script that holds on to its memory is ended" *
          doctest::test_suite("long")) {
  FakeServer server(R"(
    var kept = [];
    Message.install(function (msg) {
      while (true) kept.push(new Array(100).join('x') + kept.length);
    }, 'call.route');
  )",
                    4 << 20);
  server.handle(1, {});
  server.handle(2, {});
  CHECK_FALSE(server.run());
  CHECK(server.answers.count(1) == 1);
  CHECK(server.answers.count(2) == 0);
  CHECK(server.lines.back() == "its memory_limit is used up");
}

TEST_CASE("javascript: what is no frame for a script ends it") {
  for (const std::string& frame :
       {std::string(1, '\x7f'), std::string(1, static_cast<char>(FrameType::done)),
        std::string()}) {
    struct Wrong final : ScriptLink {
      explicit Wrong(std::string frame) : frame_(std::move(frame)) {}
      void send(std::string_view) override {}
      Received receive(std::string& out, std::uint64_t) override {
        out = frame_;
        return Received::frame;
      }
      std::uint64_t now_ms() override { return 0; }
      std::string frame_;
    } link(frame);
    CHECK_FALSE(ScriptRunner(link).run());
  }
}

TEST_CASE("javascript: a script cannot harm what surrounds it by changing it") {
  FakeServer server(R"(
    Duktape.Thread.yield = Duktape.Thread.resume = null;
    Object.keys = Array.prototype.push;
    Message.install(function (msg) { var m = new Message('x'); m.dispatch(); return true; },
                    'call.route');
    delete Message; delete Engine; Message = 5;
  )");
  server.on_dispatch = [&](const Dispatched& message) { server.result(message.id, true, "", {}); };
  server.handle(1, {});
  server.run();
  CHECK(server.answers.count(1) == 1);
}

// ---- frames

TEST_CASE("javascript frames: fields come out as they went in, in pieces of any size") {
  FrameWriter writer;
  writer.begin(FrameType::log);
  writer.number(UINT64_MAX);
  writer.text(std::string("a\0b", 3));
  writer.flag(true);
  CHECK(writer.ready().empty());
  REQUIRE(writer.end());
  writer.begin(FrameType::busy);  // never ended: dropped
  writer.text("lost");
  writer.begin(FrameType::done);
  REQUIRE(writer.end());
  const std::string octets(writer.ready());
  for (std::size_t size = 0; size <= octets.size(); ++size) {
    std::string_view rest = std::string_view(octets).substr(0, size);
    std::string_view frame;
    const FrameState state = split_frame(rest, frame);
    if (state == FrameState::incomplete) {
      CHECK(rest.size() == size);
      continue;
    }
    FrameReader reader(frame);
    CHECK(reader.type() == FrameType::log);
    CHECK(reader.number() == UINT64_MAX);
    CHECK(reader.text() == std::string("a\0b", 3));
    CHECK(reader.flag());
    CHECK(reader.is_good());
    CHECK(reader.number() == 0);
    CHECK_FALSE(reader.is_good());
  }
  std::string_view rest = octets;
  std::string_view frame;
  REQUIRE(split_frame(rest, frame) == FrameState::whole);
  REQUIRE(split_frame(rest, frame) == FrameState::whole);
  CHECK(FrameReader(frame).type() == FrameType::done);
  CHECK(rest.empty());
}

TEST_CASE("javascript frames: lengths that cannot be are refused") {
  std::string_view frame;
  std::string_view zero("\0\0\0\0", 4);
  CHECK(split_frame(zero, frame) == FrameState::broken);
  std::string_view huge("\xff\xff\xff\xff", 4);
  CHECK(split_frame(huge, frame) == FrameState::broken);
  FrameWriter writer;
  writer.begin(FrameType::log);
  writer.text(std::string(max_frame_size, 'x'));
  CHECK_FALSE(writer.end());
  CHECK(writer.ready().empty());
  writer.begin(FrameType::handle);
  writer.number(1000000);  // entries that are not there
  writer.number(7);
  REQUIRE(writer.end());
  std::string_view rest = writer.ready();
  REQUIRE(split_frame(rest, frame) == FrameState::whole);
  FrameReader reader(frame);
  CHECK(reader.type() == FrameType::handle);
  CHECK(reader.count(16) == 0);
  CHECK_FALSE(reader.is_good());
}

TEST_CASE("javascript: shared variables have limits") {
  SharedVariables shared;
  const std::string half(SharedVariables::max_octets / 2, 'x');
  CHECK(shared.set("a", half));
  CHECK(shared.set("a", half));
  CHECK_FALSE(shared.set("b", half));
  CHECK(shared.get("a") == half);
  shared.clear("a");
  CHECK(shared.set("b", half));
  shared.clear("b");
  for (std::size_t i = 0; i < SharedVariables::max_count; ++i) shared.set(std::to_string(i), "");
  CHECK_FALSE(shared.set("more", ""));
  CHECK_FALSE(shared.increment("more", 0));
  CHECK(shared.set("7", "again"));
}

// ---- files

namespace {

/// A directory with files, gone at the end.
class Directory {
 public:
  Directory() { REQUIRE(::mkdtemp(path_.data()) != nullptr); }
  ~Directory() {
    for (const std::string& name : names_) ::unlink((path_ + "/" + name).c_str());
    ::rmdir((path_ + "/more").c_str());
    ::rmdir(path_.c_str());
  }
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;

  void write(const std::string& name, const std::string& text) {
    if (name.find('/') != std::string::npos) ::mkdir((path_ + "/more").c_str(), 0700);
    std::ofstream(path_ + "/" + name) << text;
    names_.push_back(name);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_ = "/tmp/sipmsg-javascript-XXXXXX";
  std::vector<std::string> names_;
};

/// The diagnostics, one a line, paths without the directory.
std::string shown(const sipmsg::Diagnostics& diagnostics, const Directory& directory) {
  std::string all;
  for (const auto& diagnostic : diagnostics) {
    std::string line = to_text(diagnostic);
    for (std::size_t at; (at = line.find(directory.path() + "/")) != std::string::npos;) {
      line.erase(at, directory.path().size() + 1);
    }
    all += line + "\n";
  }
  return all;
}

}  // namespace

TEST_CASE("javascript.conf: no file, no scripts, no mistake") {
  Directory directory;
  JavascriptSettings settings;
  sipmsg::Diagnostics diagnostics;
  CHECK(load_javascript(directory.path(), settings, diagnostics));
  CHECK(settings.scripts.empty());
  CHECK(diagnostics.empty());
}

TEST_CASE("javascript: the module is on where its file names a script") {
  Directory directory;
  sipmsg::Diagnostics diagnostics;
  const auto without = make_javascript();
  CHECK(without->name() == "javascript");
  CHECK(without->load(directory.path(), diagnostics));
  CHECK_FALSE(without->is_enabled());
  directory.write("javascript.conf", "[scripts]\na=a.js\n");
  directory.write("a.js", "");
  const auto with = make_javascript();
  CHECK(with->load(directory.path(), diagnostics));
  CHECK(with->is_enabled());
  CHECK(diagnostics.empty());
}

TEST_CASE("javascript.conf: scripts are found, with and without extension, and included files") {
  Directory directory;
  directory.write("javascript.conf",
                  "[general]\nscripts_dir=${configpath}\ninclude_dir=more\ntime_limit=500\n"
                  "memory_limit=2097152\ntimeout=0x400\nmax_queue=5\n"
                  "[late_scripts]\nlate=b.js\n[scripts]\nfirst=a\nb.js\n");
  directory.write("a.js",
                  "#require \"lib\"\n  #include \"lib.js\" // twice\n#require \"lib\"\nx();\n");
  directory.write("b.js", "var b = 1;");
  directory.write("more/lib.js", "var lib;\nvar more;\n");
  JavascriptSettings settings;
  sipmsg::Diagnostics diagnostics;
  CHECK(load_javascript(directory.path(), settings, diagnostics));
  CHECK(shown(diagnostics, directory) == "");
  CHECK(settings.limits.time_limit_ms == 500);
  CHECK(settings.limits.timeout_ms == 1024);
  CHECK(settings.limits.memory_limit == 2097152);
  CHECK(settings.limits.max_queue == 5);
  REQUIRE(settings.scripts.size() == 3);
  const ScriptSource& script = settings.scripts[0];
  CHECK(script.name == "first");
  CHECK(script.text == "var lib;\nvar more;\nvar lib;\nvar more;\nx();\n");
  CHECK(settings.scripts[1].name == "b.js");
  CHECK(settings.scripts[2].name == "late");
  const char* positions[] = {"more/lib.js:1", "more/lib.js:2", "more/lib.js:1", "more/lib.js:2",
                             "a.js:4"};
  for (std::uint32_t line = 1; line <= 5; ++line) {
    const SourcePosition position = script.position(line);
    CHECK(position.file + ":" + std::to_string(position.line) ==
          directory.path() + "/" + positions[line - 1]);
  }
}

TEST_CASE("javascript.conf: what is wrong is said with file and line") {
  struct Case {
    const char* conf;
    const char* script;
    bool usable;
    const char* said;
  };
  const Case cases[] = {
      {"[scripts]\na=a.js\n", "var a = 1;\nvar b = ;\n", false,
       "a.js:2: error: SyntaxError: empty expression not allowed\n"},
      {"[scripts]\na=a.js\n", "var a;\n#include \"none\"\n", false,
       "a.js:2: error: there is no file none to include\n"},
      {"[scripts]\na=a.js\n", "#include \"a.js\"\n", false,
       "a.js:1: error: files include files more than 10 deep\n"},
      {"[scripts]\na=none\n", "", false, "javascript.conf:2: error: a: there is no file none in "},
      {"[general]\nauto_extensions=no\n[scripts]\na=a\n", "", false,
       "javascript.conf:4: error: a: there is no file a in "},
      {"[general]\nmemory_limit=1\ntime_limit=soon\n", "", true,
       "javascript.conf:3: warning: time_limit: is no number; 2000 is used\n"
       "javascript.conf:2: warning: memory_limit: is out of range; 1048576 is used\n"},
      {"[general]\ntime_limits=5\nrouting=x\nwhat=5\n", "", true,
       "javascript.conf:2: warning: time_limits: is no key of [general]; did you mean time_limit\n"
       "javascript.conf:3: info: routing: has no effect here\n"
       "javascript.conf:4: warning: what: is no key of [general]\n"},
      {"[script]\na=a.js\n[handlers]\n", "", true,
       "javascript.conf:1: warning: the section [script] has no effect here\n"
       "javascript.conf:3: info: the section [handlers] has no effect here\n"},
      {"[scripts]\na=a.js\na=a.js\n", "", true,
       "javascript.conf:3: warning: a: stands there twice; the first counts\n"}};
  for (const Case& row : cases) {
    CAPTURE(row.conf);
    Directory directory;
    directory.write("javascript.conf", row.conf);
    directory.write("a.js", row.script);
    JavascriptSettings settings;
    sipmsg::Diagnostics diagnostics;
    CHECK(load_javascript(directory.path(), settings, diagnostics) == row.usable);
    CHECK(shown(diagnostics, directory).substr(0, std::string(row.said).size()) == row.said);
  }
}

TEST_CASE("javascript.conf: a script longer than max_length, included files counted, is refused") {
  Directory directory;
  directory.write("javascript.conf", "[general]\nmax_length=40000\n[scripts]\na=a.js\n");
  directory.write("a.js", "#include \"b.js\"\n#include \"b.js\"\n");
  directory.write("b.js", std::string(30000, ' '));
  JavascriptSettings settings;
  sipmsg::Diagnostics diagnostics;
  CHECK_FALSE(load_javascript(directory.path(), settings, diagnostics));
  REQUIRE(diagnostics.size() == 1);
  CHECK(diagnostics[0].text.find("longer than max_length=40000") != std::string::npos);
}

}  // namespace test_javascript
