// The line protocol of external programs: its grammar, the values programs may set, and sessions in
// virtual time. Real programs and sockets are in net_extmodule.cpp.
#include <doctest/doctest.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "../../src/modules/extmodule/codec.hpp"
#include "../../src/modules/extmodule/locals.hpp"
#include "../../src/modules/extmodule/session.hpp"
#include "support/data.hpp"

namespace test_extmodule {

using namespace modules;
using namespace modules::extmodule;

namespace {

using Parameters = ListMessage::Parameters;

MessagePointer message(const std::string& name, Parameters parameters = {}) {
  return std::make_shared<ListMessage>(name, std::move(parameters));
}

/// "a=1 b=2"
std::string text_of(const Message& of) {
  std::string out;
  of.for_each([&out](std::string_view name, std::string_view value) {
    out.append(out.empty() ? "" : " ").append(name).append("=").append(value);
  });
  return out;
}

/// The end of everything a program is connected by, in anybody's time.
class FakePeer : public Peer {
 public:
  void send(std::string line) override { sent.push_back(std::move(line)); }
  bool can_send() const override { return has_room; }
  std::uint64_t now_ms() const override { return time_ms; }
  std::uint64_t now_unix_s() const override { return 1795398940; }
  void wake_at(std::uint64_t deadline_ms) override { wake_ms = deadline_ms; }
  void log(sipmsg::Severity, std::string_view text) override { logged.emplace_back(text); }
  void end(Ending ending) override { endings.push_back(ending); }

  /// What was sent since the last call.
  std::vector<std::string> take_sent() { return std::exchange(sent, {}); }
  std::string take_line() {
    auto lines = take_sent();
    return lines.size() == 1 ? lines[0] : std::to_string(lines.size()) + " lines";
  }
  bool has_logged(const std::string& part) const {
    for (const auto& line : logged) {
      if (line.find(part) != std::string::npos) return true;
    }
    return false;
  }

  std::vector<std::string> sent;
  std::vector<std::string> logged;
  std::vector<Ending> endings;
  std::uint64_t time_ms = 1000;
  std::uint64_t wake_ms = 0;
  bool has_room = true;
};

/// One engine and one program.
struct Stage {
  explicit Stage(SessionOptions options = {})
      : session(Session::make(engine, peer, std::move(options))) {}

  void say(const std::string& line) { session->take(line); }
  /// What the engine answers to one line.
  std::string reply(const std::string& line) {
    session->take(line);
    return peer.take_line();
  }
  void wait(std::uint64_t ms) {
    peer.time_ms += ms;
    session->advance(peer.time_ms);
  }
  /// Offers a message to the handlers; the outcome is added to `outcomes`.
  void dispatch(const MessagePointer& what) {
    engine.dispatch(what, [this](bool handled) { outcomes.push_back(handled); });
  }
  /// The id of the question that was sent last.
  std::string asked() {
    const std::string line = peer.take_line();
    return line.substr(0, 11) == "%%>message:" ? line.substr(11, line.find(':', 11) - 11) : "";
  }

  std::vector<bool> outcomes;  // the session's end adds to it, too
  Engine engine;
  FakePeer peer;
  std::shared_ptr<Session> session;
};

SessionOptions with(const std::function<void(Locals&)>& change) {
  SessionOptions options;
  change(options.locals);
  return options;
}

}  // namespace

TEST_SUITE("extmodule: lines") {
  TEST_CASE("fields are escaped as Yate does, and read back") {
    struct Row {
      const char* name;
      std::string plain;
      std::string escaped;
    };
    const Row rows[] = {
        {"nothing", "", ""},
        {"plain text and UTF-8 pass", "Gr\xc3\xbc\xc3\x9f e=d;", "Gr\xc3\xbc\xc3\x9f e=d;"},
        {"a colon", "sip:102@h", "sip%z102@h"},
        {"a percent sign", "100%", "100%%"},
        {"line ends", "a\r\nb", "a%M%Jb"},
        {"the lowest and the highest control character", "\x01\x1f", "%A%_"},
        {"a delete is no control character here", "\x7f", "\x7f"},
        {"what looks escaped", "%J", "%%J"},
    };
    for (const Row& row : rows) {
      CAPTURE(row.name);
      CHECK(escape(row.plain) == row.escaped);
      CHECK(unescape(row.escaped) == row.plain);
    }
    CHECK(escape_name("a=b:c") == "a%}b%zc");
    CHECK(unescape_name("a%}b%zc") == "a=b:c");
  }

  TEST_CASE("a NUL is escaped, but as in Yate not read back") {
    CHECK(escape(std::string(1, '\0')) == "%@");
    CHECK_FALSE(unescape("%@"));
  }

  TEST_CASE("what is escaped wrongly is refused") {
    for (const char* wrong :
         {"%", "a%", "%a", "%j", "%}", "% ", "%:", "a\tb", "a\rb", "%`", "%{"}) {
      CAPTURE(wrong);
      CHECK_FALSE(unescape(wrong));
    }
    CHECK_FALSE(unescape_name("%{"));
  }

  TEST_CASE("every command of a program is taken apart") {
    const auto message_read =
        std::get<MessageLine>(*decode("%%>message:id%z1:17:call.route:sip/x:a=1=2:b%}=:c::d=%J"));
    CHECK(message_read.id == "id:1");
    CHECK(message_read.created_unix_s == 17);
    CHECK(message_read.name == "call.route");
    CHECK(message_read.return_value == "sip/x");
    REQUIRE(message_read.parameters.size() == 4);
    CHECK(message_read.parameters[0].value == "1=2");
    CHECK(message_read.parameters[1].name == "b=");
    CHECK(message_read.parameters[1].value == "");
    CHECK_FALSE(message_read.parameters[2].value);
    CHECK(message_read.parameters[3].value == "\n");

    const auto brief = std::get<AnswerLine>(*decode("%%<message:7:true:"));
    CHECK(brief.id == "7");
    CHECK(brief.handled);
    CHECK_FALSE(brief.return_value);
    const auto whole = std::get<AnswerLine>(*decode("%%<message:7:false:other:-:reason=forbidden"));
    CHECK_FALSE(whole.handled);
    CHECK(whole.name == "other");
    CHECK(whole.return_value == "-");
    CHECK(whole.parameters.size() == 1);

    const auto install = std::get<InstallLine>(*decode("%%>install:50:call.route:route_type:msg"));
    CHECK(install.priority == 50);
    CHECK(install.name == "call.route");
    CHECK(install.filter == "route_type");
    CHECK(install.value == "msg");
    CHECK_FALSE(std::get<InstallLine>(*decode("%%>install::call.route")).priority);
    CHECK(std::get<UninstallLine>(*decode("%%>uninstall:x%zy")).name == "x:y");
    CHECK(std::get<WatchLine>(*decode("%%>watch:")).name.empty());
    CHECK(std::get<UnwatchLine>(*decode("%%>unwatch:a")).name == "a");
    CHECK(std::get<SetlocalLine>(*decode("%%>setlocal:timeout:5000")).value == "5000");
    CHECK(std::get<SetlocalLine>(*decode("%%>setlocal:timeout:")).value.empty());
    CHECK(std::get<OutputLine>(*decode("%%>output:a:b%z")).text == "a:b%z");
    CHECK(std::get<DebugLine>(*decode("%%>debug:9:a%zb")).text == "a:b");
    CHECK(std::get<DebugLine>(*decode("%%>debug:9:100% sure")).text == "100% sure");
    CHECK(std::get<ConnectLine>(*decode("%%>connect:channel:x:audio")).role == "channel");
    CHECK(std::holds_alternative<QuitLine>(*decode("%%>quit")));
    CHECK(std::get<ErrorLine>(*decode("Error in: %%>x")).text == "%%>x");
  }

  TEST_CASE("what is no command is not understood") {
    for (const char* wrong : {"garbage",
                              "%%>",
                              "%%>nothing:a",
                              "%%>message",
                              "%%>message:1",
                              "%%>message:1:2:",
                              "%%>message:1:x:call.route",
                              "%%>message:1:2:call.route::=v",
                              "%%>message:1:2:call.route:%",
                              "%%>message:1:2:call.route::a=%j",
                              "%%<message:1",
                              "%%<message:1:true",
                              "%%<message:1:true:call.route",
                              "%%<message:%:true:",
                              "%%>install",
                              "%%>install:50:",
                              "%%>install:x:call.route",
                              "%%>install:-1:call.route",
                              "%%>uninstall",
                              "%%>watch",
                              "%%>setlocal",
                              "%%>debug:x:text",
                              "%%>debug",
                              "%%>output",
                              " %%>quit",
                              "%%>quit "}) {
      CAPTURE(wrong);
      CHECK_FALSE(decode(wrong));
    }
  }

  TEST_CASE("what the engine says reads back as what it meant") {
    ListMessage original("a:b", {{"k=1", "v%\n"}, {"empty", ""}, {"k=1", "again"}});
    original.return_value = "-:";
    original.created_unix_s = 12;
    const std::string line = message_line("5", original);
    CHECK(line == "%%>message:5:12:a%zb:-%z:k%}1=v%%%J:empty=:k%}1=again");
    const auto read = std::get<MessageLine>(*decode(line));
    CHECK(read.name == "a:b");
    CHECK(read.return_value == "-:");
    CHECK(read.parameters[0].name == "k=1");
    CHECK(read.parameters[0].value == "v%\n");
    CHECK(answer_line("", true, original) ==
          "%%<message::true:a%zb:-%z:k%}1=v%%%J:empty=:k%}1=again");
    CHECK(installed_line(50, "call.route", true) == "%%<install:50:call.route:true");
    CHECK(uninstalled_line(0, "x:y", false) == "%%<uninstall:0:x%zy:false");
    CHECK(watched_line("", true) == "%%<watch::true");
    CHECK(unwatched_line("a", false) == "%%<unwatch:a:false");
    CHECK(setlocal_line("a:", "b:", true) == "%%<setlocal:a%z:b%z:true");
    CHECK(error_line("a:b%") == "Error in: a:b%");
  }

  TEST_CASE("lines are cut out of pieces of every size") {
    const std::string stream = "one\r\ntwo\n\nthree\rfour\nrest";
    for (std::size_t size = 1; size <= stream.size(); ++size) {
      CAPTURE(size);
      LineCutter cutter;
      std::vector<std::string> lines;
      for (std::size_t at = 0; at < stream.size(); at += size) {
        cutter.add(std::string_view(stream).substr(at, size));
        while (const auto line = cutter.next(100)) lines.push_back(*line);
      }
      CHECK(lines == std::vector<std::string>{"one", "two", "", "three\rfour"});
    }
  }

  TEST_CASE("a line may be as long as the limit, and one more octet is too much") {
    for (const char* end : {"\n", "\r\n"}) {
      LineCutter fits;
      fits.add(std::string(100, 'a') + end);
      CHECK(fits.next(100) == std::string(100, 'a'));
      CHECK_FALSE(fits.is_too_long());
      LineCutter long_one;
      long_one.add("ok\n" + std::string(101, 'a') + end + "later\n");
      CHECK(long_one.next(100) == "ok");
      CHECK_FALSE(long_one.next(100));
      CHECK(long_one.is_too_long());
      CHECK_FALSE(long_one.next(100));
    }
    LineCutter endless;
    endless.add(std::string(101, 'a'));
    CHECK_FALSE(endless.next(100));
    CHECK(endless.is_too_long());
  }
}

TEST_SUITE("extmodule: sessions") {
  TEST_CASE("a session goes as one was seen to go with Yate") {
    const auto lines = test::split(test::read_data("vectors/yate-extmodule/session.txt"), '\n');
    const auto line_with = [&lines](const std::string& part) {
      for (const auto& line : lines) {
        if (line.find(part) != std::string::npos && line[0] != '#') return line.substr(2);
      }
      FAIL("no such line: " << part);
      return std::string();
    };
    SessionOptions options;
    options.is_connected = false;
    Stage stage(options);
    stage.say(line_with("> %%>connect:global"));
    CHECK(stage.peer.take_sent().empty());
    CHECK(stage.reply(line_with("> %%>install")) == line_with("< %%<install"));
    CHECK(stage.reply(line_with("> %%>setlocal")) == line_with("< %%<setlocal"));
    CHECK(stage.reply(line_with("> %%>watch")) == line_with("< %%<watch"));

    // The engine's own parameters of the row, as it would have them before it asks the program.
    const auto filled = [](const std::string& row) {
      const auto read = std::get<MessageLine>(*decode(row));
      auto made = std::make_shared<ListMessage>(read.name);
      for (const auto& parameter : read.parameters) made->add(parameter.name, *parameter.value);
      made->created_unix_s = read.created_unix_s;
      return made;
    };
    const std::string question = line_with("< %%>message:ID");
    const auto routed = filled(question);
    stage.dispatch(routed);
    // What differs from Yate: the program itself stands in `handlers`.
    std::string expected = question + ",extmodule%z50";
    expected.replace(expected.find("ID"), 2, "1");
    CHECK(stage.peer.take_line() == expected);
    const auto answer_with = [&](const std::string& row, const std::string& id) {
      std::string answer = line_with(row);
      stage.say(answer.replace(answer.find("ID"), 2, id));
    };
    answer_with("> %%<message:ID:false:::", "1");
    CHECK(stage.outcomes == std::vector<bool>{false});

    stage.dispatch(routed);
    stage.peer.take_sent();
    answer_with("> %%<message:ID:false:::code=480", "2");
    CHECK(routed->get("code") == "480");
    stage.dispatch(routed);
    stage.peer.take_sent();
    answer_with("> %%<message:ID:true::-:reason=forbidden", "3");
    CHECK(stage.outcomes == std::vector<bool>{false, false, true});
    CHECK(routed->return_value == "-");
    CHECK(routed->get("reason") == "forbidden");
    CHECK(routed->get("sip_to") == "<sip:102@h>");

    const std::string notice = line_with("< %%<message::true:msg.execute");
    std::string shown = notice;
    shown.replace(shown.find("<message::true:"), 15, ">message:x:0:");
    stage.engine.install(
        "sip", "msg.execute", 100, [](const MessagePointer& sent, const Answer& answer) {
          sent->set("handlers",
                    sent->get_or("handlers").substr(0, sent->get_or("handlers").rfind(',')));
          answer(true);
        });
    stage.dispatch(filled(shown));
    CHECK(stage.peer.take_line() == notice);

    CHECK(stage.reply(line_with("> garbage")) == line_with("< Error in: garbage"));
    stage.engine.install("regfile", "engine.status", 100,
                         [](const MessagePointer& asked, const Answer& answer) {
                           asked->return_value = "name=regfile";
                           answer(false);
                         });
    CHECK(stage.reply(line_with("> %%>message:id1")) ==
          "%%<message:id1:false:engine.status:name=regfile:module=regfile:"
          "handlers=regfile%z100");
    CHECK(stage.reply(line_with("> %%>quit")) == line_with("< %%<quit"));
    CHECK(stage.peer.endings == std::vector<Ending>{Ending::finished});
  }

  TEST_CASE("answers change of a message just what they say") {
    struct Row {
      const char* name;
      const char* answer;
      bool handled;
      const char* message_name;
      const char* return_value;
      const char* parameters;
    };
    const Row rows[] = {
        {"the short form changes nothing", "false:", false, "m", "old", "a=1 b=2 b=3"},
        {"the same, handled", "true:", true, "m", "old", "a=1 b=2 b=3"},
        {"an empty return value replaces", "false::", false, "m", "", "a=1 b=2 b=3"},
        {"set and added", "false:::code=480:a=9", false, "m", "", "a=9 b=2 b=3 code=480"},
        {"cleared, all of that name", "true::-:b", true, "m", "-", "a=1"},
        {"another name", "true:n:x", true, "n", "x", "a=1 b=2 b=3"},
        {"everything sent back as it was", "true:m:x:a=1:b=2:b=3", true, "m", "x", "a=1 b=2 b=3"},
        {"the second of two changed: as in Yate the first is", "true:m:x:a=1:b=2:b=4", true, "m",
         "x", "a=1 b=4 b=3"},
        {"no boolean is false", "yes sir:", false, "m", "old", "a=1 b=2 b=3"},
    };
    for (const Row& row : rows) {
      CAPTURE(row.name);
      Stage stage;
      stage.say("%%>install:5:m");
      stage.peer.take_sent();
      const auto asked = message("m", {{"a", "1"}, {"b", "2"}, {"b", "3"}});
      asked->return_value = "old";
      stage.dispatch(asked);
      const std::string id = stage.asked();
      CHECK(stage.outcomes.empty());
      stage.say("%%<message:" + id + ":" + row.answer);
      REQUIRE(stage.outcomes.size() == 1);
      CHECK(stage.outcomes[0] == row.handled);
      CHECK(asked->name() == row.message_name);
      CHECK(asked->return_value == row.return_value);
      asked->clear("handlers");
      CHECK(text_of(*asked) == row.parameters);
      CHECK(stage.peer.take_sent().empty());
    }
  }

  TEST_CASE("handlers stand at their priority, once per name, and are offered what passes") {
    Stage stage;
    CHECK(stage.reply("%%>install::m") == "%%<install:100:m:true");
    CHECK(stage.reply("%%>install:5:m") == "%%<install:5:m:false");
    CHECK(stage.reply("%%>install:7:n:type:msg") == "%%<install:7:n:true");
    CHECK(stage.reply("%%>install:8:o:type") == "%%<install:8:o:true");
    struct Row {
      const char* name;
      Parameters parameters;
      bool is_asked;
    };
    const Row rows[] = {
        {"m", {}, true},
        {"n", {{"type", "msg"}}, true},
        {"n", {{"type", "msgs"}}, false},
        {"n", {{"type", "Msg"}}, false},
        {"n", {}, false},
        {"o", {}, true},  // no value: without that parameter
        {"o", {{"type", "msg"}}, false},
        {"p", {}, false},
    };
    for (const Row& row : rows) {
      CAPTURE(row.name);
      CAPTURE(row.is_asked);
      stage.dispatch(message(row.name, row.parameters));
      CHECK(stage.peer.take_sent().size() == (row.is_asked ? 1 : 0));
    }
    CHECK(stage.reply("%%>uninstall:m") == "%%<uninstall:100:m:true");
    CHECK(stage.reply("%%>uninstall:m") == "%%<uninstall:0:m:false");
    stage.dispatch(message("m"));
    CHECK(stage.peer.take_sent().empty());
  }

  TEST_CASE("a handler before the program decides first, one behind it last") {
    Stage stage;
    std::string order;
    const auto note = [&order](const char* what) {
      return [&order, what](const MessagePointer&, const Answer& answer) {
        order += what;
        answer(false);
      };
    };
    stage.engine.install("a", "m", 10, note("before "));
    stage.engine.install("b", "m", 90, note("behind "));
    stage.say("%%>setlocal:trackparam:filter");
    stage.say("%%>install:50:m");
    stage.peer.take_sent();
    const auto offered = message("m");
    stage.dispatch(offered);
    CHECK(order == "before ");
    stage.say("%%<message:" + stage.asked() + ":false:");
    CHECK(order == "before behind ");
    CHECK(offered->get("handlers") == "a:10,filter:50,b:90");
  }

  TEST_CASE("an answer that does not come in time is taken as not handled") {
    Stage stage;
    CHECK(stage.reply("%%>setlocal:timeout:5000") == "%%<setlocal:timeout:5000:true");
    stage.say("%%>install::m");
    stage.peer.take_sent();
    const auto asked = message("m");
    stage.dispatch(asked);
    const std::string id = stage.asked();
    CHECK(stage.peer.wake_ms == 6000);
    stage.wait(4999);
    CHECK(stage.outcomes.empty());
    stage.wait(1);
    CHECK(stage.outcomes == std::vector<bool>{false});
    CHECK(stage.peer.has_logged("did not answer m in time"));
    CHECK(stage.peer.endings.empty());
    stage.say("%%<message:" + id + ":true::late:a=1");
    CHECK(stage.peer.has_logged("unmatched"));
    CHECK(asked->return_value == "");
    CHECK_FALSE(asked->get("a"));
    CHECK(stage.outcomes.size() == 1);
  }

  TEST_CASE("a program that answers nothing does not fill the log") {
    Stage stage;
    stage.say("%%>install::m");
    stage.say("%%>setlocal:timeout:100");
    for (int i = 0; i < 100; ++i) stage.dispatch(message("m"));
    stage.wait(100);
    CHECK(stage.outcomes.size() == 100);
    CHECK(stage.peer.logged.size() == 10);
  }

  TEST_CASE("each message has the timeout that was set when it was asked about") {
    Stage stage;
    stage.say("%%>install::m");
    stage.dispatch(message("m"));
    stage.say("%%>setlocal:timeout:100");
    stage.dispatch(message("m"));
    stage.wait(100);
    CHECK(stage.outcomes.size() == 1);
    CHECK(stage.peer.wake_ms == 5000);
    stage.wait(3900);
    CHECK(stage.outcomes.size() == 2);
  }

  TEST_CASE("a timebomb ends a program that lets a message time out") {
    Stage stage(with([](Locals& locals) { locals.timebomb = true; }));
    stage.say("%%>install::m");
    stage.dispatch(message("m"));
    stage.dispatch(message("m"));
    stage.wait(4000);
    CHECK(stage.peer.endings == std::vector<Ending>{Ending::broken});
    CHECK(stage.outcomes == std::vector<bool>{false, false});
    CHECK_FALSE(stage.engine.is_wanted("m"));
  }

  TEST_CASE("more messages than maxqueue do not wait, and the log says so once") {
    Stage stage;
    stage.say("%%>setlocal:maxqueue:3");
    stage.say("%%>install::m");
    stage.peer.take_sent();
    for (int i = 0; i < 5; ++i) stage.dispatch(message("m"));
    CHECK(stage.outcomes == std::vector<bool>{false, false});
    CHECK(stage.peer.take_sent().size() == 3);
    CHECK(stage.peer.logged.size() == 1);
    stage.say("%%<message:1:true:");
    stage.dispatch(message("m"));
    CHECK(stage.peer.take_sent().size() == 1);
  }

  TEST_CASE("a program that does not read is not asked and not shown anything") {
    Stage stage;
    stage.say("%%>install::m");
    stage.say("%%>watch:m");
    stage.peer.take_sent();
    stage.peer.has_room = false;
    stage.dispatch(message("m"));
    CHECK(stage.outcomes == std::vector<bool>{false});
    CHECK(stage.peer.take_sent().empty());
    CHECK(stage.peer.has_logged("does not read"));
  }

  TEST_CASE("a program is offered its own messages only where it wants to be") {
    Stage stage;
    stage.say("%%>install::m");
    stage.say("%%>watch:m");
    stage.peer.take_sent();
    CHECK(stage.reply("%%>message:a:0:m::k=v") ==
          "%%<message:a:false:m::k=v:handlers=extmodule%z100");
    stage.say("%%>setlocal:reenter:true");
    stage.say("%%>setlocal:selfwatch:yes");
    stage.peer.take_sent();
    stage.say("%%>message:b:0:m:");
    const std::string id = stage.asked();
    stage.say("%%<message:" + id + ":true::done");
    CHECK(stage.peer.take_sent() ==
          std::vector<std::string>{"%%<message::true:m:done:handlers=extmodule%z100",
                                   "%%<message:b:true:m:done:handlers=extmodule%z100"});
  }

  TEST_CASE("the engine answers a program's messages when their handlers have") {
    Stage stage;
    Answer later;
    MessagePointer seen;
    stage.engine.install("slow", "m", 10, [&](const MessagePointer& asked, Answer answer) {
      seen = asked;
      later = std::move(answer);
    });
    stage.say("%%>message:x%z1:17:m:r:a=b:gone:c=%J");
    CHECK(stage.peer.take_sent().empty());
    CHECK(seen->created_unix_s == 17);
    CHECK(seen->return_value == "r");
    CHECK(seen->get("a") == "b");
    CHECK(seen->get("c") == "\n");
    CHECK_FALSE(seen->get("gone"));
    seen->return_value = "ok";
    later(true);
    CHECK(stage.peer.take_line() == "%%<message:x%z1:true:m:ok:a=b:c=%J:handlers=slow%z10");
    stage.say("%%>message:y:0:m:");
    CHECK(seen->created_unix_s == 1795398940);
    stage.say("%%>setlocal:settime:true");
    stage.say("%%>message:z:17:m:");
    CHECK(seen->created_unix_s == 1795398940);
  }

  TEST_CASE("a message of the program that a handler drops is answered as not handled") {
    Stage stage;
    stage.engine.install("careless", "m", 10, [](const MessagePointer&, const Answer&) {});
    CHECK(stage.reply("%%>message:x:0:m:") == "%%<message:x:false:m::handlers=careless%z10");
  }

  TEST_CASE("of a program's own messages no more than maxqueue are on their way") {
    Stage stage(with([](Locals& locals) { locals.maxqueue = 2; }));
    std::vector<Answer> answers;
    stage.engine.install("slow", "m", 10, [&](const MessagePointer&, Answer answer) {
      answers.push_back(std::move(answer));
    });
    stage.say("%%>message:1:0:m:");
    stage.say("%%>message:2:0:m:");
    CHECK(stage.reply("%%>message:3:0:m:") == "%%<message:3:false:m:");
    CHECK(answers.size() == 2);
  }

  TEST_CASE("watched messages are shown once, when their walk is over") {
    Stage stage;
    CHECK(stage.reply("%%>watch:m") == "%%<watch:m:true");
    CHECK(stage.reply("%%>watch:m") == "%%<watch:m:false");
    stage.dispatch(message("m", {{"a", "1"}}));
    CHECK(stage.peer.take_line() == "%%<message::false:m::a=1");
    stage.dispatch(message("n"));
    CHECK(stage.peer.take_sent().empty());
    CHECK(stage.reply("%%>watch:") == "%%<watch::true");
    stage.dispatch(message("n"));
    CHECK(stage.peer.take_line() == "%%<message::false:n:");
    stage.dispatch(message("m"));
    CHECK(stage.peer.take_line() == "%%<message::false:m:");
    CHECK(stage.reply("%%>unwatch:") == "%%<unwatch::true");
    CHECK(stage.reply("%%>unwatch:") == "%%<unwatch::false");
    stage.dispatch(message("m"));
    CHECK(stage.peer.take_line() == "%%<message::false:m:");
    CHECK(stage.reply("%%>unwatch:m") == "%%<unwatch:m:true");
    stage.dispatch(message("m"));
    CHECK(stage.peer.take_sent().empty());
  }

  TEST_CASE("a program's end releases what waits and takes back what it installed") {
    Stage stage;
    stage.say("%%>install::m");
    stage.say("%%>watch:n");
    stage.dispatch(message("m"));
    stage.dispatch(message("m"));
    CHECK(stage.engine.is_wanted("n"));
    stage.peer.take_sent();
    SUBCASE("gone") {
      stage.session->closed();
      CHECK(stage.peer.endings.empty());
      CHECK(stage.peer.take_sent().empty());
    }
    SUBCASE("destroyed") { stage.session.reset(); }
    SUBCASE("by quit") {
      CHECK(stage.reply("%%>quit") == "%%<quit");
      CHECK(stage.peer.endings == std::vector<Ending>{Ending::finished});
      stage.say("%%>install::m");
      CHECK(stage.peer.take_sent().empty());
    }
    SUBCASE("by a line too long") {
      stage.session->take_too_long();
      CHECK(stage.peer.endings == std::vector<Ending>{Ending::broken});
    }
    CHECK(stage.outcomes == std::vector<bool>{false, false});
    CHECK_FALSE(stage.engine.is_wanted("m"));
    CHECK_FALSE(stage.engine.is_wanted("n"));
  }

  TEST_CASE("a program that quits gets the answers to its messages first") {
    Stage stage;
    Answer later;
    stage.engine.install("slow", "m", 10,
                         [&](const MessagePointer&, Answer answer) { later = std::move(answer); });
    stage.say("%%>message:x:0:m:");
    CHECK(stage.reply("%%>quit") == "%%<quit");
    CHECK(stage.peer.endings.empty());
    later(true);
    CHECK(stage.peer.take_line() == "%%<message:x:true:m::handlers=slow%z10");
    CHECK(stage.peer.endings == std::vector<Ending>{Ending::finished});
  }

  TEST_CASE("a message of the program that is answered after its end disturbs nobody") {
    Stage stage;
    Answer later;
    stage.engine.install("slow", "m", 10,
                         [&](const MessagePointer&, Answer answer) { later = std::move(answer); });
    stage.say("%%>message:x:0:m:");
    stage.session->closed();
    SUBCASE("ended") {}
    SUBCASE("destroyed") { stage.session.reset(); }
    later(true);
    CHECK(stage.peer.take_sent().empty());
  }

  TEST_CASE("a handler that ends the program in the middle of a line is survived") {
    Stage stage;
    stage.engine.install("x", "m", 10, [&](const MessagePointer&, const Answer& answer) {
      stage.session.reset();
      answer(true);
    });
    Session* const session = stage.session.get();
    session->take("%%>message:x:0:m:");
    CHECK(stage.session.get() == nullptr);
  }

  TEST_CASE("who must say what it is says so first, and is a global program") {
    SessionOptions options;
    options.is_connected = false;
    Stage stage(options);
    SUBCASE("global, with an id") {
      stage.say("%%>connect:global:me");
      CHECK(stage.reply("%%>setlocal:id:") == "%%<setlocal:id:me:true");
      CHECK(stage.reply("%%>connect:global") == "Error in: %%>connect:global");
      CHECK(stage.peer.endings.empty());
    }
    SUBCASE("refused") {
      SUBCASE("a channel") { stage.say("%%>connect:channel:x:audio"); }
      SUBCASE("no role at all") { stage.say("%%>install::m"); }
      SUBCASE("nonsense") { stage.say("GET / HTTP/1.1"); }
      CHECK(stage.peer.endings == std::vector<Ending>{Ending::refused});
      CHECK(stage.peer.take_sent().empty());
      CHECK_FALSE(stage.engine.is_wanted("m"));
    }
  }

  TEST_CASE("who has a role already cannot connect") {
    Stage stage;
    CHECK(stage.reply("%%>connect:global") == "Error in: %%>connect:global");
  }

  TEST_CASE("an error is never answered by an error, and nonsense fills no log") {
    Stage stage;
    stage.say("Error in: %%<install:50:m:true");
    CHECK(stage.peer.take_sent().empty());
    CHECK(stage.peer.has_logged("did not understand: %%<install:50:m:true"));
    stage.say("");
    CHECK(stage.peer.take_sent().empty());
    for (int i = 0; i < 100; ++i) stage.say("x\x1b[31m");
    CHECK(stage.peer.take_sent().size() == 100);
    CHECK(stage.peer.logged.size() == 10);
    CHECK(stage.peer.has_logged("x?[31m"));
    CHECK_FALSE(stage.peer.has_logged("\x1b"));
  }

  TEST_CASE("what a program says to people goes to the log, in one line") {
    Stage stage;
    stage.say("%%>output:Hi%J:\tyou");
    CHECK(stage.peer.logged == std::vector<std::string>{"Hi%J:?you"});
    stage.say("%%>debug:8:note%J");
    CHECK(stage.peer.logged.back() == "note?");
    stage.say("%%>debug:9:too much");
    CHECK(stage.peer.logged.size() == 2);
    stage.say("%%>setlocal:debuglevel:9");
    stage.say("%%>debug:9:not any more");
    CHECK(stage.peer.logged.size() == 3);
  }

  TEST_CASE("values are set, asked for, and kept within their limits") {
    SessionOptions options;
    const auto facts = std::make_shared<Facts>();
    facts->engine = {{"version", "0.1"}, {"configpath", "/etc/x"}};
    facts->loaded_modules = {"regfile"};
    facts->run_id = "17";
    sipmsg::Diagnostics diagnostics;
    facts->config = sipmsg::parse_ini("[general]\nmodload=yes\n", "yate.conf", {}, diagnostics);
    options.facts = facts;
    Stage stage(options);
    struct Row {
      const char* line;
      const char* answer;
    };
    const Row rows[] = {
        {"id:x%zy", "id:x%zy:true"},
        {"id:", "id:x%zy:true"},
        {"id", "id:x%zy:true"},
        {"disconnected:true", "disconnected:true:true"},
        {"trackparam:filter", "trackparam:filter:true"},
        {"reason:busy", "reason:busy:true"},
        {"timeout:", "timeout:4000:true"},
        {"timeout:1", "timeout:1:true"},
        {"timeout:0", "timeout:1:true"},
        {"timeout:99999999999", "timeout:600000:true"},
        {"timeout:soon", "timeout:600000:false"},
        {"timebomb:", "timebomb:false:true"},
        {"timebomb:yes", "timebomb:true:true"},
        {"timebomb:maybe", "timebomb:true:false"},
        {"bufsize:", "bufsize:8192:true"},
        {"bufsize:10", "bufsize:2048:true"},
        {"bufsize:100000", "bufsize:65536:true"},
        {"maxqueue:", "maxqueue:1000:true"},
        {"maxqueue:-1", "maxqueue:0:true"},
        {"maxqueue:20000", "maxqueue:10000:true"},
        {"restart:", "restart:false:true"},
        {"restart:true", "restart:true:true"},
        {"restart:x", "restart:true:false"},
        {"reenter:true", "reenter:true:true"},
        {"selfwatch:true", "selfwatch:true:true"},
        {"setdata:", "setdata:true:true"},
        {"setdata:false", "setdata:false:true"},
        {"settime:on", "settime:true:true"},
        {"debuglevel:", "debuglevel:8:true"},
        {"debuglevel:99", "debuglevel:10:true"},
        {"debugname:me", "debugname:me:true"},
        {"engine.version:", "engine.version:0.1:true"},
        {"engine.version:2", "engine.version:0.1:false"},
        {"engine.nothing:", "engine.nothing::true"},
        {"config.general.modload:", "config.general.modload:yes:true"},
        {"config.general.nothing:", "config.general.nothing::true"},
        {"config.general:", "config.general::true"},
        {"loaded.regfile:", "loaded.regfile:true:true"},
        {"loaded.h323:", "loaded.h323:false:true"},
        {"runid:", "runid:17:true"},
        {"nothing:1", "nothing:1:false"},
    };
    for (const Row& row : rows) {
      CAPTURE(row.line);
      CHECK(stage.reply(std::string("%%>setlocal:") + row.line) ==
            std::string("%%<setlocal:") + row.answer);
    }
  }

  TEST_CASE("a maxqueue of 0 is as much as is allowed, not endless") {
    Stage stage(with([](Locals& locals) { locals.maxqueue = 0; }));
    stage.say("%%>install::m");
    for (std::uint32_t i = 0; i < Locals::largest_maxqueue + 2; ++i) stage.dispatch(message("m"));
    CHECK(stage.outcomes.size() == 2);
  }

  TEST_CASE("lines may be as long as bufsize, and longer after a long question" *
            doctest::test_suite("long")) {
    Stage stage;
    CHECK(stage.session->max_line() == 8192);
    stage.say("%%>setlocal:bufsize:4096");
    CHECK(stage.session->max_line() == 4096);
    stage.say("%%>install::m");
    stage.peer.take_sent();
    const std::string body(20000, ':');
    stage.dispatch(message("m", {{"xsip_body", body}}));
    const std::string question = stage.peer.take_line();
    // A program in the manner of Yate's library: everything comes back, and a bit more.
    const std::string answer = "%%<message:1:true:m:x" + question.substr(question.find(":m:") + 3);
    CHECK(answer.size() + 1000 < stage.session->max_line());
    for (int i = 0; i < 100; ++i) {
      stage.dispatch(message("m", {{"xsip_body", std::string(523000, ':')}}));
    }
    CHECK(stage.session->max_line() == Session::longest_line);
  }

  TEST_CASE("a message too long for any line is not shown to a program") {
    Stage stage;
    stage.say("%%>install::m");
    stage.peer.take_sent();
    stage.dispatch(message("m", {{"xsip_body", std::string(600000, ':')}}));
    CHECK(stage.outcomes == std::vector<bool>{false});
    CHECK(stage.peer.take_sent().empty());
  }

  TEST_CASE("handlers and watches of one program are bounded") {
    Stage stage;
    for (std::size_t i = 0; i < Session::max_installs; ++i) {
      stage.say("%%>install::m" + std::to_string(i));
      stage.say("%%>watch:m" + std::to_string(i));
    }
    stage.peer.take_sent();
    CHECK(stage.reply("%%>install::n") == "%%<install:100:n:false");
    CHECK(stage.reply("%%>watch:n") == "%%<watch:n:false");
  }
}

}  // namespace test_extmodule
