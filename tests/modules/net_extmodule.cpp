// External programs for real: started, killed, hanging, flooding, and connected by TCP and UNIX
// sockets. What the protocol's commands do is tested in test_extmodule.cpp.
// Not covered: a system that has no processes or file descriptors left.
#include <doctest/doctest.h>

#include <sys/stat.h>
#include <sys/un.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../../src/modules/extmodule/extmodule.hpp"
#include "../support/data.hpp"
#include "../support/loop.hpp"

namespace net_extmodule {

using namespace modules;

namespace {

/// A directory of configuration that is gone at the end.
class Directory {
 public:
  Directory() {
    char name[] = "/tmp/sipmsg-extmodule-XXXXXX";
    REQUIRE(::mkdtemp(name) != nullptr);
    path = name;
    REQUIRE(::mkdir((path + "/scripts").c_str(), 0700) == 0);
  }
  ~Directory() {
    for (const std::string& file : files_) ::unlink(file.c_str());
    ::rmdir((path + "/scripts").c_str());
    ::rmdir(path.c_str());
  }
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;

  void write(const std::string& name, const std::string& text, mode_t mode = 0600) {
    files_.push_back(path + "/" + name);
    std::FILE* file = std::fopen(files_.back().c_str(), "wb");
    REQUIRE(file != nullptr);
    REQUIRE(std::fwrite(text.data(), 1, text.size(), file) == text.size());
    std::fclose(file);
    REQUIRE(::chmod(files_.back().c_str(), mode) == 0);
  }
  void write_script(const std::string& name, const std::string& text) {
    write("scripts/" + name, text, 0700);
  }
  void expect(const std::string& name) { files_.push_back(path + "/" + name); }

  std::string path;

 private:
  std::vector<std::string> files_;
};

MessagePointer message(const std::string& name, ListMessage::Parameters parameters = {}) {
  return std::make_shared<ListMessage>(name, std::move(parameters));
}

/// A server's loop with the module on it.
class Stage {
 public:
  Stage() : server(loop.uv()) {}
  ~Stage() {
    stop();
    server.close();
  }

  /// Reads the configuration, and starts what it says.
  void start(const std::string& config) {
    directory.write("extmodule.conf", config);
    sipmsg::Diagnostics diagnostics;
    module = make_extmodule();
    const bool is_loaded = module->load(directory.path, diagnostics);
    for (const auto& diagnostic : diagnostics) CAPTURE(to_text(diagnostic));
    REQUIRE(is_loaded);
    REQUIRE(module->is_enabled());
    module->start(context);
  }
  void stop() {
    if (module) module->stop();
    module.reset();
  }

  bool has_logged(const std::string& part, std::size_t times = 1) const {
    std::size_t found = 0;
    for (const auto& line : logged) {
      if (line.find(part) != std::string::npos) ++found;
    }
    return found >= times;
  }
  bool wait_for_log(const std::string& part, std::size_t times = 1) {
    const bool is_logged = loop.run_until([&] { return has_logged(part, times); });
    if (!is_logged) {
      for (const auto& line : logged) MESSAGE(line);
    }
    return is_logged;
  }
  bool wait_for_handler(const std::string& name = "m") {
    return loop.run_until([&] { return engine.is_wanted(name); });
  }
  void dispatch(const MessagePointer& what) {
    engine.dispatch(what, [this](bool handled) { outcomes.push_back(handled); });
  }
  bool wait_for_outcomes(std::size_t count) {
    return loop.run_until([&] { return outcomes.size() >= count; });
  }
  bool receives(test::RawSocket& socket, const std::string& part) {
    return loop.run_until([&] {
      socket.read_on();
      return socket.received.find(part) != std::string::npos;
    });
  }
  bool is_closed(test::RawSocket& socket) {
    return loop.run_until([&] { return socket.read_on(); });
  }
  /// What stands in the log behind `before`, up to the next blank.
  std::string logged_behind(const std::string& before) const {
    for (const auto& line : logged) {
      const std::size_t at = line.find(before);
      if (at == std::string::npos) continue;
      const std::size_t begin = at + before.size();
      return line.substr(begin, line.find(' ', begin) - begin);
    }
    return {};
  }
  std::uint16_t tcp_port() const {
    return static_cast<std::uint16_t>(std::stoi(logged_behind("listening tcp 127.0.0.1:")));
  }

  test::EventLoop loop;
  Directory directory;
  sipmsg::Server server;
  Engine engine;
  std::vector<std::string> logged;
  std::vector<bool> outcomes;
  std::unique_ptr<Module> module;
  Context context{loop.uv(), server, engine,
                  [this](sipmsg::Severity, std::string_view text) { logged.emplace_back(text); }};
};

/// Tells its process id, has itself installed for "m", and goes on as `rest` says.
std::string script(const std::string& rest) {
  return "#!/bin/sh\necho \"%%>output:pid $$ \"\necho '%%>install::m'\n" + rest + "\n";
}

/// Answers every question with true.
const char* const answering =
    "while IFS=: read -r command id rest; do\n"
    "  case \"$command\" in '%%>message') echo \"%%<message:$id:true::$1\" ;; esac\n"
    "done";

pid_t pid_in(const Stage& stage) { return std::stoi(stage.logged_behind("pid ")); }

bool is_alive(pid_t pid) { return ::kill(pid, 0) == 0; }

std::optional<test::RawSocket> connect_unix(const std::string& path) {
  const int fd = ::socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  std::memcpy(name.sun_path, path.data(), path.size());
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&name), sizeof name) != 0) {
    ::close(fd);
    return std::nullopt;
  }
  return std::optional<test::RawSocket>(std::in_place, fd);
}

}  // namespace

TEST_SUITE("extmodule: programs") {
  TEST_CASE("a program written for Yate's library works unchanged") {
    Stage stage;
    stage.start("[general]\nscripts_dir=" SIPMSG_TEST_DATA
                "/../modules/scripts\n[scripts]\nyate_like.py\n");
    REQUIRE(stage.wait_for_handler("call.route"));
    const auto routed = message("call.route", {{"called", "99991001"},
                                               {"sip_x", "a=b:c%"},
                                               {"xsip_body", "two\r\nlines"},
                                               {"sip_x", "second"}});
    stage.dispatch(routed);
    REQUIRE(stage.wait_for_outcomes(1));
    CHECK(stage.outcomes[0]);
    CHECK(routed->return_value == "tone/dial");
    CHECK(routed->get("sip_x") == "a=b:c%");
    CHECK(routed->get("xsip_body") == "two\r\nlines");
    CHECK(routed->get("greeting") == "hello :-)");

    const auto other = message("call.route", {{"called", "102"}});
    stage.dispatch(other);
    REQUIRE(stage.wait_for_outcomes(2));
    CHECK_FALSE(stage.outcomes[1]);

    const auto large = message("call.route", {{"xsip_body", std::string(60000, '%')}});
    stage.dispatch(large);
    REQUIRE(stage.wait_for_outcomes(3));
    CHECK(large->get("xsip_body") == std::string(60000, '%'));
    CHECK_FALSE(stage.has_logged("ended"));
  }

  TEST_CASE("a program gets its argument, and many messages at once") {
    Stage stage;
    stage.directory.write_script("a.sh", script(answering));
    stage.start("[scripts]\na.sh=x y\n");
    REQUIRE(stage.wait_for_handler());
    std::vector<MessagePointer> messages;
    for (int i = 0; i < 500; ++i) {
      messages.push_back(message("m", {{"body", std::string(100, 'b')}}));
      stage.dispatch(messages.back());
    }
    REQUIRE(stage.wait_for_outcomes(500));
    for (bool handled : stage.outcomes) CHECK(handled);
    CHECK(messages.back()->return_value == "x y");
  }

  TEST_CASE("a program that is killed lets go of what waits, and is started again") {
    Stage stage;
    stage.directory.write_script("a.sh", script("cat >/dev/null"));
    stage.start("[scripts]\na.sh\n");
    REQUIRE(stage.wait_for_handler());
    stage.dispatch(message("m"));
    stage.dispatch(message("m"));
    ::kill(pid_in(stage), SIGKILL);
    REQUIRE(stage.wait_for_outcomes(2));
    CHECK(stage.outcomes == std::vector<bool>{false, false});
    CHECK_FALSE(stage.engine.is_wanted("m"));
    REQUIRE(stage.wait_for_log("ended by signal 9"));
    CHECK(stage.wait_for_log("started again in 1 s"));
    CHECK(stage.wait_for_handler());
  }

  TEST_CASE("a program that fails again and again is started later and later") {
    Stage stage;
    stage.directory.write_script("a.sh", "#!/bin/sh\nexit 3\n");
    stage.start("[scripts]\na.sh\n");
    REQUIRE(stage.wait_for_log("ended with status 3"));
    REQUIRE(stage.wait_for_log("started again in 1 s"));
    CHECK(stage.wait_for_log("started again in 2 s"));
  }

  TEST_CASE("who ends in order is not started again, unless it wants to be") {
    struct Row {
      const char* name;
      const char* rest;
      bool is_started_again;
    };
    const Row rows[] = {
        {"status 0", "exit 0", false},
        {"quit", "echo '%%>quit'; exit 1", false},
        {"status 0, restart wanted", "echo '%%>setlocal:restart:true'; exit 0", true},
        {"quit, restart wanted", "echo '%%>setlocal:restart:true'; echo '%%>quit'", true},
        {"status 1, restart not wanted", "echo '%%>setlocal:restart:false'; exit 1", false},
        {"status 1", "exit 1", true},
    };
    for (const Row& row : rows) {
      CAPTURE(row.name);
      Stage stage;
      stage.directory.write_script("a.sh", script(row.rest));
      stage.start("[scripts]\na.sh\n");
      REQUIRE(stage.wait_for_log("ended with status"));
      // Until both ends of it are gone, and what it said last is read.
      stage.loop.run_until([&] { return stage.has_logged("started again"); },
                           row.is_started_again ? 10000 : 700);
      CHECK(stage.has_logged("started again") == row.is_started_again);
      CHECK(stage.has_logged("pid"));
    }
  }

  TEST_CASE("a program that hangs costs each message its timeout, and is killed at the stop") {
    Stage stage;
    // It answers nothing, wants to hear of no end, and has a child of its own that does the same.
    stage.directory.write_script("a.sh", script("trap '' TERM\n(while :; do sleep 1; done) &\n"
                                                "while :; do sleep 1; done"));
    stage.start("[general]\ntimeout=50\nwaitflush=1\n[scripts]\na.sh\n");
    REQUIRE(stage.wait_for_handler());
    stage.dispatch(message("m"));
    REQUIRE(stage.wait_for_outcomes(1));
    CHECK_FALSE(stage.outcomes[0]);
    CHECK(stage.has_logged("did not answer m in time"));
    const pid_t pid = pid_in(stage);
    CHECK(is_alive(pid));
    stage.dispatch(message("m"));
    stage.stop();
    CHECK(stage.outcomes.size() == 2);
    CHECK_FALSE(stage.engine.is_wanted("m"));
    REQUIRE(stage.loop.run_until([&] { return !is_alive(pid); }));
  }

  TEST_CASE("a timebomb kills a program that hangs, and another one is started") {
    Stage stage;
    stage.directory.write_script("a.sh", script("sleep 1000"));
    stage.start("[general]\ntimeout=50\ntimebomb=yes\n[scripts]\na.sh\n");
    REQUIRE(stage.wait_for_handler());
    stage.dispatch(message("m"));
    REQUIRE(stage.wait_for_outcomes(1));
    REQUIRE(stage.wait_for_log("ended by signal 15"));
    CHECK(stage.wait_for_handler());
  }

  TEST_CASE("a program that floods us and reads nothing costs no memory and no message") {
    Stage stage;
    stage.directory.write_script("a.sh", script("yes"));
    stage.directory.write_script("b.sh", script("echo '%%>install::n'\n" + std::string(answering)));
    stage.start("[scripts]\na.sh\nb.sh\n");
    REQUIRE(stage.wait_for_handler("n"));
    REQUIRE(stage.wait_for_log("not understood: y", 5));
    for (int i = 0; i < 20; ++i) {
      stage.dispatch(message("n"));
      REQUIRE(stage.wait_for_outcomes(static_cast<std::size_t>(i) + 1));
      CHECK(stage.outcomes.back());
    }
    // It is not read from any more once it owes us a megabyte of reading.
    const auto is_asked_no_more = [&] {
      stage.dispatch(message("m"));
      return stage.has_logged("does not read what it is sent");
    };
    CHECK(stage.loop.run_until(is_asked_no_more, 60000));
    CHECK(stage.logged.size() < 100);
  }

  TEST_CASE("a program that does not read is asked no more once much waits for it") {
    Stage stage;
    stage.directory.write_script("a.sh", script("sleep 1000"));
    stage.start("[scripts]\na.sh\n");
    REQUIRE(stage.wait_for_handler());
    for (int i = 0; i < 40; ++i) stage.dispatch(message("m", {{"body", std::string(100000, 'b')}}));
    CHECK(stage.outcomes.size() > 20);
    CHECK(stage.outcomes.size() < 40);
    CHECK(stage.has_logged("does not read what it is sent"));
    stage.stop();
    CHECK(stage.outcomes.size() == 40);
  }

  TEST_CASE("a line longer than bufsize ends the program") {
    Stage stage;
    stage.directory.write_script("a.sh", script("head -c 9000 /dev/zero | tr '\\0' a\nsleep 1000"));
    stage.start("[scripts]\na.sh\n");
    REQUIRE(stage.wait_for_log("more than 8192 octets"));
    CHECK(stage.wait_for_log("ended by signal 15"));
    CHECK(stage.wait_for_log("started again"));
  }

  TEST_CASE("what a program said last is obeyed also when another one keeps its pipe open") {
    Stage stage;
    stage.directory.write_script("a.sh", script("sleep 1000 &\necho '%%>output:last words'"));
    stage.start("[general]\nwaitflush=1\n[scripts]\na.sh\n");
    REQUIRE(stage.wait_for_log("last words"));
    REQUIRE(stage.wait_for_log("ended with status 0"));
    CHECK(stage.loop.run_until([&] { return !stage.engine.is_wanted("m"); }));
  }

  TEST_CASE("a program that hears nothing any more is heard to its end") {
    Stage stage;
    stage.directory.write_script(
        "a.sh", script("exec <&-\necho '%%>install::n'\nsleep 0.1\necho '%%>output:last words'\n"
                       "exec sleep 1000"));
    stage.start("[scripts]\na.sh\n");
    CHECK(stage.wait_for_log("last words"));
    CHECK(stage.wait_for_log("ended by signal 15"));  // it is of no use, and may not stay
    CHECK_FALSE(stage.engine.is_wanted("m"));
  }

  TEST_CASE("what a program said in time is obeyed also when the server itself was held up") {
    Stage stage;
    stage.directory.expect("said");
    stage.directory.write_script(
        "a.sh", script("(sleep 0.05; echo '%%>output:last words'; >" + stage.directory.path +
                       "/said; exec sleep 1000) &"));
    stage.start("[general]\nwaitflush=1\n[scripts]\na.sh\n");
    REQUIRE(stage.wait_for_log("ended with status 0"));
    const std::uint64_t began_ns = uv_hrtime();
    while (::access((stage.directory.path + "/said").c_str(), F_OK) != 0 ||
           uv_hrtime() - began_ns < 200000000) {
      REQUIRE(uv_hrtime() - began_ns < 10000000000);
    }
    CHECK(stage.wait_for_log("last words"));
  }

  TEST_CASE("a program that cannot be run is said to be so, and tried again") {
    Stage stage;
    stage.directory.write_script("a.sh", "#!/nowhere/at/all\n");
    stage.start("[scripts]\na.sh\n");
    CHECK(stage.has_logged("a.sh: cannot be started"));
    CHECK(stage.has_logged("started again in 1 s"));
  }

  TEST_CASE("programs of [execute] run without the protocol, and end with the server") {
    Stage stage;
    stage.directory.write_script("touch.sh", "#!/bin/sh\necho '%%>install::m' >\"$1\"\n");
    stage.directory.write_script("long.sh", "#!/bin/sh\necho $$ >\"$1\"\nexec sleep 1000\n");
    stage.directory.expect("touched");
    stage.directory.expect("pid");
    stage.start("[execute]\ntouch.sh=${configpath}/touched\nlong.sh=${configpath}/pid\n");
    REQUIRE(stage.wait_for_log("touch.sh: ended with status 0"));
    CHECK(::access((stage.directory.path + "/touched").c_str(), F_OK) == 0);
    CHECK_FALSE(stage.engine.is_wanted("m"));
    stage.stop();
  }

  TEST_CASE("the module may be destroyed before the loop turns") {
    Stage stage;
    stage.directory.write_script("a.sh", script(answering));
    stage.start("[scripts]\na.sh\n[listener x]\nport=0\n");
    SUBCASE("at once") {}
    SUBCASE("later") { REQUIRE(stage.wait_for_handler()); }
    stage.stop();
    const std::size_t lines = stage.logged.size();
    stage.server.close();
    CHECK(stage.loop.run_dry());
    CHECK(stage.logged.size() == lines);
  }

  TEST_CASE("a handler may stop the module while a line of the program is obeyed") {
    Stage stage;
    stage.directory.write_script(
        "a.sh", script("echo '%%>message:x:0:n:'\necho '%%>quit'\n" + std::string(answering)));
    bool is_stopped = false;
    stage.engine.install("test", "n", 10, [&](const MessagePointer&, const Answer& answer) {
      stage.stop();
      is_stopped = true;
      answer(true);
    });
    stage.start("[scripts]\na.sh\n");
    CHECK(stage.loop.run_until([&] { return is_stopped; }));
  }
}

TEST_SUITE("extmodule: examples") {
  const std::string head =
      "[general]\nscripts_dir=" SIPMSG_TEST_DATA "/../../examples/scripts\n[scripts]\n";

  MessagePointer routed(const std::string& caller, const std::string& called,
                        const std::string& body) {
    return message("call.route", {{"route_type", "msg"},
                                  {"caller", caller},
                                  {"called", called},
                                  {"username", caller},
                                  {"domain", "h"},
                                  {"xsip_body", body}});
  }

  TEST_CASE("the example that filters lets one user write, and forbids it to others") {
    Stage stage;
    stage.start(head + "extmodule_filter.py=101\n");
    REQUIRE(stage.wait_for_handler("call.route"));
    const auto refused = routed("102", "101", "hello");
    stage.dispatch(refused);
    REQUIRE(stage.wait_for_outcomes(1));
    CHECK(stage.outcomes[0]);
    CHECK(refused->return_value == "-");
    CHECK(refused->get("reason") == "forbidden");
    const auto passed = routed("101", "102", "hello");
    stage.dispatch(passed);
    REQUIRE(stage.wait_for_outcomes(2));
    CHECK_FALSE(stage.outcomes[1]);
    CHECK_FALSE(passed->get("reason"));
  }

  TEST_CASE("the example that stores writes each message to the database, whatever is in it") {
    Stage stage;
    std::vector<std::string> queries;
    stage.engine.install("database", "database", 100,
                         [&](const MessagePointer& asked, const Answer& answer) {
                           CHECK(asked->get("account") == "chat");
                           queries.push_back(asked->get_or("query"));
                           if (queries.size() == 2) asked->set("error", "the disk is full");
                           answer(true);
                         });
    stage.start(head + "extmodule_store.py=chat\n");
    REQUIRE(stage.wait_for_handler("call.route"));
    stage.dispatch(routed("101", "102", "it's: 100%\r\n\xc3\xbc"));
    REQUIRE(stage.wait_for_outcomes(1));
    CHECK_FALSE(stage.outcomes[0]);
    REQUIRE(queries.size() == 2);
    CHECK(queries[0].find("CREATE TABLE IF NOT EXISTS messages") == 0);
    CHECK(queries[1] ==
          "INSERT INTO messages (caller, called, body) VALUES (CAST(X'313031' AS CHAR), "
          "CAST(X'313032' AS CHAR), CAST(X'697427733a20313030250d0ac3bc' AS CHAR))");
    CHECK(stage.wait_for_log("not stored: the disk is full"));
  }

  TEST_CASE("the example that answers takes messages to its user, and writes back") {
    Stage stage;
    std::vector<std::string> bodies;
    stage.engine.install("sip", "msg.execute", 100,
                         [&](const MessagePointer& sent, const Answer& answer) {
                           CHECK(sent->get("called") == "101");
                           CHECK(sent->get("caller") == "assistant");
                           CHECK(sent->get("domain") == "h");
                           CHECK(sent->get("xsip_type") == "text/plain");
                           bodies.push_back(sent->get_or("xsip_body"));
                           answer(true);
                         });
    stage.start(head + "extmodule_auto_reply.py=assistant\n");
    // Its second handler is installed right behind this one, so that lines come in that order.
    REQUIRE(stage.wait_for_handler("call.route"));
    const auto sent = routed("101", "assistant", "50% off: now\n");
    stage.dispatch(sent);
    REQUIRE(stage.wait_for_outcomes(1));
    REQUIRE(stage.outcomes[0]);
    auto execute = message("msg.execute", {{"callto", sent->return_value}});
    sent->for_each(
        [&](std::string_view name, std::string_view value) { execute->set(name, value); });
    stage.dispatch(execute);
    REQUIRE(stage.wait_for_outcomes(2));
    CHECK(stage.outcomes[1]);
    REQUIRE(stage.loop.run_until([&] { return !bodies.empty(); }));
    CHECK(bodies[0] == "You wrote: 50% off: now\n");

    const auto other = routed("101", "102", "hello");
    stage.dispatch(other);
    REQUIRE(stage.wait_for_outcomes(3));
    CHECK_FALSE(stage.outcomes[2]);
  }

  TEST_CASE("the configuration of the examples has no mistakes") {
    sipmsg::Diagnostics diagnostics;
    const auto module = make_extmodule();
    CHECK(module->load(SIPMSG_TEST_DATA "/../../examples/scripts", diagnostics));
    CHECK(module->is_enabled());
    CHECK(diagnostics.empty());
  }
}

TEST_SUITE("extmodule: listeners") {
  TEST_CASE("a program connects by TCP, says what it is, and serves") {
    Stage stage;
    stage.start("[listener test]\nport=0\n");
    test::RawSocket program(SOCK_STREAM, stage.tcp_port());
    program.send("%%>connect:global\r\n%%>install:50:m\r\n");
    REQUIRE(stage.receives(program, "%%<install:50:m:true\n"));
    stage.dispatch(message("m", {{"a", "1"}}));
    REQUIRE(stage.receives(program, "%%>message:1:0:m::a=1:handlers=extmodule%z50\n"));
    program.send("%%<message:1:true::done\n");
    REQUIRE(stage.wait_for_outcomes(1));
    CHECK(stage.outcomes[0]);
    // The answer to quit arrives although what follows is never read as lines.
    program.send("%%>quit\n" + std::string(5000, 'x'));
    program.finish_writing();
    REQUIRE(stage.is_closed(program));
    CHECK(program.received.substr(program.received.size() - 8) == "%%<quit\n");
    CHECK_FALSE(stage.engine.is_wanted("m"));
  }

  TEST_CASE("an answer that came in time counts, however late the server gets to read it") {
    Stage stage;
    stage.start("[general]\ntimeout=1000\n[listener test]\nport=0\nrole=global\n");
    test::RawSocket program(SOCK_STREAM, stage.tcp_port());
    program.send("%%>install::m\n");
    REQUIRE(stage.receives(program, "true\n"));
    stage.dispatch(message("m"));
    REQUIRE(stage.receives(program, "%%>message:1:"));
    program.send("%%<message:1:true:::\n");
    uv_sleep(1200);
    REQUIRE(stage.wait_for_outcomes(1));
    CHECK(stage.outcomes[0]);
  }

  TEST_CASE("with a fixed role there is nothing to say first") {
    Stage stage;
    stage.start("[listener test]\nport=0\nrole=global\n");
    test::RawSocket program(SOCK_STREAM, stage.tcp_port());
    program.send("%%>connect:global\n");
    CHECK(stage.receives(program, "Error in: %%>connect:global\n"));
  }

  TEST_CASE("who wants to be a channel, or says something else first, is closed") {
    Stage stage;
    stage.start("[listener test]\nport=0\n");
    for (const char* first : {"%%>connect:channel:x:audio\n", "%%>install::m\n"}) {
      CAPTURE(first);
      test::RawSocket program(SOCK_STREAM, stage.tcp_port());
      program.send(first);
      REQUIRE(stage.is_closed(program));
      CHECK(program.received.empty());
    }
    CHECK_FALSE(stage.engine.is_wanted("m"));
  }

  TEST_CASE("a connection that breaks lets go of what waits") {
    Stage stage;
    stage.start("[listener test]\nport=0\nrole=global\n");
    test::RawSocket program(SOCK_STREAM, stage.tcp_port());
    program.send("%%>install::m\n");
    REQUIRE(stage.receives(program, "true\n"));
    stage.dispatch(message("m"));
    SUBCASE("closed") { program.close(); }
    SUBCASE("reset") { program.reset(); }
    REQUIRE(stage.wait_for_outcomes(1));
    CHECK_FALSE(stage.outcomes[0]);
    CHECK_FALSE(stage.engine.is_wanted("m"));
  }

  TEST_CASE("no more programs than allowed are connected at once") {
    Stage stage;
    stage.start("[listener test]\nport=0\nrole=global\n");
    std::vector<std::unique_ptr<test::RawSocket>> programs;
    for (int i = 0; i < 100; ++i) {
      programs.push_back(std::make_unique<test::RawSocket>(SOCK_STREAM, stage.tcp_port()));
      programs.back()->send("%%>watch:m\n");
      REQUIRE(stage.receives(*programs.back(), "true\n"));
    }
    test::RawSocket one_more(SOCK_STREAM, stage.tcp_port());
    CHECK(stage.is_closed(one_more));
    CHECK(stage.has_logged("too many programs"));
    programs.front()->close();
    stage.loop.turn();
    test::RawSocket in_its_place(SOCK_STREAM, stage.tcp_port());
    in_its_place.send("%%>watch:m\n");
    CHECK(stage.receives(in_its_place, "true\n"));
  }

  TEST_CASE("a UNIX socket is its owner's alone, and gone at the end") {
    Stage stage;
    const std::string path = stage.directory.path + "/socket";
    struct stat status {};
    SUBCASE("by default") {
      stage.start("[listener test]\ntype=unix\npath=${configpath}/socket\nrole=global\n");
      REQUIRE(::stat(path.c_str(), &status) == 0);
      CHECK((status.st_mode & 0777) == 0600);
    }
    SUBCASE("as configured") {
      stage.start(
          "[listener test]\ntype=unix\npath=${configpath}/socket\nmode=0660\nrole=global\n");
      REQUIRE(::stat(path.c_str(), &status) == 0);
      CHECK((status.st_mode & 0777) == 0660);
    }
    auto program = connect_unix(path);
    REQUIRE(program.has_value());
    program->send("%%>install::m\n");
    CHECK(stage.receives(*program, "%%<install:100:m:true\n"));
    stage.stop();
    CHECK(::lstat(path.c_str(), &status) != 0);
    CHECK(stage.is_closed(*program));
  }

  TEST_CASE("a socket that was left behind is replaced, anything else stays") {
    Stage stage;
    const std::string path = stage.directory.path + "/socket";
    const std::string config = "[listener test]\ntype=unix\npath=" + path + "\nrole=global\n";
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    std::memcpy(name.sun_path, path.data(), path.size());
    const int other = ::socket(AF_UNIX, SOCK_STREAM, 0);
    SUBCASE("left behind") {
      REQUIRE(::bind(other, reinterpret_cast<const sockaddr*>(&name), sizeof name) == 0);
      ::close(other);
      stage.start(config);
      CHECK(stage.has_logged("listening unix " + path));
      CHECK(connect_unix(path).has_value());
    }
    SUBCASE("in use") {
      stage.directory.expect("socket");
      REQUIRE(::bind(other, reinterpret_cast<const sockaddr*>(&name), sizeof name) == 0);
      REQUIRE(::listen(other, 1) == 0);
      stage.start(config);
      CHECK(stage.has_logged("cannot listen on unix " + path));
      stage.stop();
      CHECK(connect_unix(path).has_value());
      ::close(other);
    }
    SUBCASE("a file") {
      ::close(other);
      stage.directory.write("socket", "precious");
      stage.start(config);
      CHECK(stage.has_logged("cannot listen on unix " + path));
      stage.stop();
      CHECK(::access(path.c_str(), F_OK) == 0);
    }
  }

  TEST_CASE("a port that is taken is said in the log") {
    const test::RawListener other;
    Stage stage;
    const std::string port = std::to_string(other.port());
    stage.start("[listener test]\nport=" + port + "\n");
    CHECK(stage.has_logged("cannot listen on tcp 127.0.0.1:" + port));
  }

  TEST_CASE("another module takes the place of one that stops, on the same port") {
    Stage stage;
    const std::string path = stage.directory.path + "/socket";
    stage.start("[listener a]\nport=0\n[listener b]\ntype=unix\npath=" + path + "\n");
    const std::string port = std::to_string(stage.tcp_port());
    stage.stop();
    stage.logged.clear();
    stage.start("[listener a]\nport=" + port + "\n[listener b]\ntype=unix\npath=" + path + "\n");
    CHECK(stage.has_logged("listening tcp 127.0.0.1:" + port));
    CHECK(connect_unix(path).has_value());
  }
}

TEST_SUITE("extmodule: configuration") {
  TEST_CASE("without a file there is nothing to do, and nothing wrong") {
    const Directory directory;
    sipmsg::Diagnostics diagnostics;
    const auto module = make_extmodule();
    CHECK(module->load(directory.path, diagnostics));
    CHECK_FALSE(module->is_enabled());
    CHECK(diagnostics.empty());
  }

  TEST_CASE("what is wrong is said with its line") {
    struct Row {
      const char* name;
      const char* config;
      bool is_usable;
      const char* remark;
    };
    const Row rows[] = {
        {"all is well", "[general]\npriority=90\nmaxqueue=0\ntimeout=5000\nwaitflush=10\n", true,
         ""},
        {"no such script", "[scripts]\n\nb.py=x\n", false,
         "extmodule.conf:3: error: DIR/scripts/b.py is not there"},
        {"a script that may not run", "[scripts]\nplain.py\n", false,
         "extmodule.conf:2: error: DIR/scripts/plain.py is not executable; chmod +x makes it so"},
        {"a directory", "[execute]\n/tmp\n", false, "extmodule.conf:2: error: /tmp is no program"},
        {"another directory of scripts",
         "[general]\nscripts_dir=${configpath}/none/\n[scripts]\na\n", false,
         "extmodule.conf:4: error: DIR/none//a is not there"},
        {"no number", "[general]\ntimeout=soon\n", true,
         "extmodule.conf:2: warning: timeout=soon is not used: it must be 1 to 600000 "
         "milliseconds"},
        {"too large a number", "[general]\nmaxqueue=10001\n", true,
         "extmodule.conf:2: warning: maxqueue=10001 is not used: it must be 0 to 10000"},
        {"no boolean", "[general]\ntimebomb=1\n", true,
         "extmodule.conf:2: warning: timebomb=1 is not used: it must be yes or no"},
        {"a key without effect", "[general]\ntrackparam=yes\n", true,
         "extmodule.conf:2: info: trackparam has no effect: programs always stand in the parameter "
         "handlers"},
        {"an unknown key", "[listener x]\nport=0\nprot=7\n", true,
         "extmodule.conf:3: warning: unknown key prot; known are type, addr, port, path, mode, "
         "role"},
        {"an unknown section", "[script]\nx\n", true,
         "extmodule.conf:1: warning: unknown section script; known are general, scripts, execute "
         "and listener NAME"},
        {"an unknown type", "[listener x]\ntype=udp\n", false,
         "extmodule.conf:2: error: unknown type udp; known are tcp and unix"},
        {"a role for calls", "[listener x]\nport=0\nrole=channel\n", false,
         "extmodule.conf:3: error: role channel is for calls; here only global programs are "
         "served"},
        {"no path", "[listener x]\ntype=unix\n", false,
         "extmodule.conf:1: error: a listener of type unix needs a path"},
        {"no port", "[listener x]\n", false,
         "extmodule.conf:1: error: a listener of type tcp needs a port"},
        {"a name for an address", "[listener x]\nport=0\naddr=localhost\n", false,
         "extmodule.conf:3: error: localhost is no numeric address"},
        {"open to the network", "[listener x]\nport=0\naddr=0.0.0.0\n", true,
         "extmodule.conf:3: warning: 0.0.0.0 can be reached from other machines: whoever connects "
         "there reads and changes every message, without a password"},
        {"open to the network by IPv6", "[listener x]\nport=0\naddr=::\n", true,
         "extmodule.conf:3: warning: :: can be reached from other machines: whoever connects there "
         "reads and changes every message, without a password"},
        {"the loopback of IPv6", "[listener x]\nport=0\naddr=::1\n", true, ""},
    };
    for (const Row& row : rows) {
      CAPTURE(row.name);
      Directory directory;
      directory.write("scripts/plain.py", "");
      directory.write("extmodule.conf", row.config);
      sipmsg::Diagnostics diagnostics;
      CHECK(make_extmodule()->load(directory.path, diagnostics) == row.is_usable);
      std::string expected = row.remark;
      if (expected.empty()) {
        CHECK(diagnostics.empty());
        continue;
      }
      if (const auto at = expected.find("DIR"); at != std::string::npos) {
        expected.replace(at, 3, directory.path);
      }
      REQUIRE(diagnostics.size() == 1);
      CHECK(to_text(diagnostics[0]) == directory.path + "/" + expected);
    }
  }

  TEST_CASE("the sample says nothing wrong, also with every key switched on") {
    const std::string sample = test::read_data("../../conf/extmodule.conf.sample");
    std::string switched_on = sample;
    for (std::size_t at = 0; (at = switched_on.find("\n;", at)) != std::string::npos; ++at) {
      if (switched_on[at + 2] != ' ') switched_on.erase(at + 1, 1);
    }
    for (const std::string& text : {sample, switched_on}) {
      Directory directory;
      directory.write("extmodule.conf", text);
      sipmsg::Diagnostics diagnostics;
      const auto module = make_extmodule();
      const bool is_usable = module->load(directory.path, diagnostics);
      std::string remarks;
      for (const auto& diagnostic : diagnostics) remarks += diagnostic.text + "\n";
      const std::string scripts = directory.path + "/scripts/";
      CHECK(is_usable == (text == sample));
      CHECK(remarks == (text == sample ? ""
                                       : scripts + "filter.py is not there\n" + scripts +
                                             "notify.sh is not there\n"));
    }
  }
}

}  // namespace net_extmodule
