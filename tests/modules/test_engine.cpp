// The engine of the program's modules: who is asked, in which order, and who is told.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "../../src/modules/engine.hpp"

namespace test_engine {

using namespace modules;

namespace {

/// What happened, in order.
struct Record {
  std::string text;
  void add(const std::string& what) { text += (text.empty() ? "" : " ") + what; }
};

/// A handler that notes its name and answers at once.
Handler noting(Record& record, const std::string& name, bool handled = false) {
  return [&record, name, handled](const MessagePointer&, const Answer& answer) {
    record.add(name);
    answer(handled);
  };
}

/// Notes how the walk ended.
Answer ending(Record& record) {
  return [&record](bool handled) { record.add(handled ? "handled" : "not-handled"); };
}

MessagePointer message(const std::string& name, ListMessage::Parameters parameters = {}) {
  return std::make_shared<ListMessage>(name, std::move(parameters));
}

}  // namespace

TEST_CASE("handlers are asked by priority, ties in the order of installation") {
  Engine engine;
  Record record;
  engine.install("m", "x", 100, noting(record, "b"));
  engine.install("m", "x", 200, noting(record, "d"));
  engine.install("m", "x", 100, noting(record, "c"));
  engine.install("m", "x", -5, noting(record, "a"));
  engine.install("m", "y", 50, noting(record, "other"));
  engine.dispatch(message("x"), ending(record));
  CHECK(record.text == "a b c d not-handled");
}

TEST_CASE(
    "what is installed last comes behind its equals, also those that come later, not others") {
  Engine engine;
  Record record;
  const Engine::Id last = engine.install_last("m", "x", 100, noting(record, "last"));
  engine.install("m", "x", 100, noting(record, "a"));
  engine.install("m", "x", 101, noting(record, "behind"));
  engine.install("m", "x", 100, noting(record, "b"));
  engine.dispatch(message("x"), ending(record));
  CHECK(record.text == "a b last behind not-handled");
  CHECK(engine.uninstall(last));
}

TEST_CASE("the first handler that handles the message ends its walk") {
  Engine engine;
  Record record;
  engine.install("m", "x", 2, noting(record, "second", true));
  engine.install("m", "x", 3, noting(record, "third", true));
  engine.install("m", "x", 1, noting(record, "first"));
  engine.dispatch(message("x"), ending(record));
  CHECK(record.text == "first second handled");
}

TEST_CASE("a message without handlers is not handled") {
  Engine engine;
  Record record;
  engine.dispatch(message("x"), ending(record));
  CHECK(record.text == "not-handled");
  engine.dispatch(message("x"), nullptr);  // nobody wants to know
}

TEST_CASE("a handler with a filter is offered only what passes it, and passes leave no trace") {
  Engine engine;
  Record record;
  const auto is_urgent = [](const Message& m) { return m.get_or("urgent") == "yes"; };
  engine.install("m", "x", 1, noting(record, "urgent"), is_urgent);
  engine.install("m", "x", 2, noting(record, "any"));
  const MessagePointer plain = message("x");
  engine.dispatch(plain, ending(record));
  CHECK(plain->get_or("handlers") == "m:2");
  engine.dispatch(message("x", {{"urgent", "yes"}}), ending(record));
  CHECK(record.text == "any not-handled urgent any not-handled");
}

TEST_CASE("a filter sees what earlier handlers have set") {
  Engine engine;
  Record record;
  engine.install("m", "x", 1, [](const MessagePointer& m, const Answer& answer) {
    m->set("urgent", "yes");
    answer(false);
  });
  engine.install("m", "x", 2, noting(record, "urgent"),
                 [](const Message& m) { return m.get("urgent").has_value(); });
  engine.dispatch(message("x"), nullptr);
  CHECK(record.text == "urgent");
}

TEST_CASE("the parameter handlers lists who was asked, except owners without a name") {
  Engine engine;
  Record record;
  engine.install("first", "x", 10, noting(record, "1"));
  engine.install("", "x", 20, noting(record, "2"));
  engine.install("third", "x", 30, noting(record, "3", true));
  engine.install("fourth", "x", 40, noting(record, "4"));
  const MessagePointer m = message("x", {{"handlers", "before:1"}});
  engine.dispatch(m, nullptr);
  CHECK(m->get_or("handlers") == "before:1,first:10,third:30");
}

TEST_CASE("a handler may answer later, and the walk goes on from there") {
  Engine engine;
  Record record;
  Answer late;
  engine.install("m", "x", 1, [&](const MessagePointer&, Answer answer) {
    record.add("waiting");
    late = std::move(answer);
  });
  engine.install("m", "x", 2, noting(record, "next"));
  SUBCASE("to the next one") {
    engine.dispatch(message("x"), ending(record));
    CHECK(record.text == "waiting");
    late(false);
    CHECK(record.text == "waiting next not-handled");
  }
  SUBCASE("to the end") {
    engine.dispatch(message("x"), ending(record));
    late(true);
    CHECK(record.text == "waiting handled");
  }
  SUBCASE("also when the one that waited was uninstalled meanwhile") {
    engine.dispatch(message("x"), ending(record));
    CHECK(engine.uninstall(1));
    late(false);
    CHECK(record.text == "waiting next not-handled");
  }
}

TEST_CASE("a second answer is ignored, at once and later") {
  Engine engine;
  Record record;
  Answer late;
  engine.install("m", "x", 1, [&](const MessagePointer&, const Answer& answer) {
    answer(false);
    answer(true);
  });
  engine.install("m", "x", 2, [&](const MessagePointer&, Answer answer) { late = answer; });
  engine.dispatch(message("x"), ending(record));
  CHECK(record.text.empty());
  late(true);
  late(false);
  late(true);
  CHECK(record.text == "handled");
}

TEST_CASE("handlers may be installed and uninstalled from inside a handler") {
  Engine engine;
  Record record;
  Engine::Id self = 0;
  Engine::Id victim = 0;
  self = engine.install("m", "x", 10, [&](const MessagePointer&, const Answer& answer) {
    record.add("changing");
    CHECK(engine.uninstall(self));
    CHECK(engine.uninstall(victim));
    engine.install("m", "x", 5, noting(record, "too-early"));
    engine.install("m", "x", 20, noting(record, "in-time"));
    answer(false);
  });
  victim = engine.install("m", "x", 15, noting(record, "victim"));
  engine.dispatch(message("x"), ending(record));
  CHECK(record.text == "changing in-time not-handled");
  engine.dispatch(message("x"), ending(record));
  CHECK(record.text == "changing in-time not-handled too-early in-time not-handled");
}

TEST_CASE("uninstalling says whether there was such a handler") {
  Engine engine;
  Record record;
  const Engine::Id id = engine.install("m", "x", 1, noting(record, "a"));
  CHECK(id != 0);
  CHECK_FALSE(engine.uninstall(id + 1));
  CHECK(engine.uninstall(id));
  CHECK_FALSE(engine.uninstall(id));
  engine.dispatch(message("x"), nullptr);
  CHECK(record.text.empty());
}

TEST_CASE("watchers are told when the walk is over, of their name or of every one") {
  Engine engine;
  Record record;
  const auto noting_watch = [&record](const std::string& name) {
    return [&record, name](const Message& m, bool handled) {
      record.add(name + "(" + m.name() + (handled ? ",yes)" : ",no)"));
    };
  };
  const Engine::Id all = engine.watch("", noting_watch("all"));
  engine.watch("x", noting_watch("only-x"));
  engine.install("m", "x", 1, noting(record, "asked", true));
  engine.dispatch(message("x"), ending(record));
  engine.dispatch(message("y"), ending(record));
  CHECK(record.text == "asked all(x,yes) only-x(x,yes) handled all(y,no) not-handled");
  CHECK(engine.unwatch(all));
  CHECK_FALSE(engine.unwatch(all));
  record.text.clear();
  engine.dispatch(message("y"), ending(record));
  CHECK(record.text == "not-handled");
}

TEST_CASE("a watcher may unwatch and watch") {
  Engine engine;
  Record record;
  Engine::Id id = 0;
  id = engine.watch("x", [&](const Message&, bool) {
    record.add("once");
    engine.unwatch(id);
    engine.watch("x", [&record](const Message&, bool) { record.add("from-now-on"); });
  });
  engine.dispatch(message("x"), nullptr);
  CHECK(record.text == "once");
  engine.dispatch(message("x"), nullptr);
  CHECK(record.text == "once from-now-on");
}

TEST_CASE("a message can be dispatched inside a handler of another one, or of the same") {
  Engine engine;
  Record record;
  engine.install("m", "x", 1, [&](const MessagePointer& m, const Answer& answer) {
    const int depth = std::stoi(m->get_or("depth", "0"));
    record.add("x" + std::to_string(depth));
    if (depth < 2) {
      engine.dispatch(message("x", {{"depth", std::to_string(depth + 1)}}), ending(record));
    }
    engine.dispatch(message("y"), ending(record));
    answer(depth == 0);
  });
  engine.install("m", "y", 1, noting(record, "y", true));
  engine.dispatch(message("x"), ending(record));
  CHECK(record.text == "x0 x1 x2 y handled not-handled y handled not-handled y handled handled");
}

TEST_CASE("a renamed message goes on with the handlers of its new name") {
  Engine engine;
  Record record;
  engine.install("m", "x", 1, [&](const MessagePointer& m, const Answer& answer) {
    m->rename("y");
    answer(false);
  });
  engine.install("m", "x", 2, noting(record, "x2"));
  engine.install("m", "y", 1, noting(record, "y1-is-behind"));
  engine.install("m", "y", 2, noting(record, "y2"));
  engine.dispatch(message("x"), ending(record));
  CHECK(record.text == "y1-is-behind y2 not-handled");
}

TEST_CASE("a name is wanted where it has a handler or a watcher") {
  Engine engine;
  Record record;
  CHECK_FALSE(engine.is_wanted("x"));
  const Engine::Id handler = engine.install("m", "x", 1, noting(record, ""));
  CHECK(engine.is_wanted("x"));
  CHECK_FALSE(engine.is_wanted("y"));
  engine.uninstall(handler);
  CHECK_FALSE(engine.is_wanted("x"));
  const Engine::Id one = engine.watch("y", [](const Message&, bool) {});
  CHECK(engine.is_wanted("y"));
  engine.unwatch(one);
  engine.watch("", [](const Message&, bool) {});
  CHECK(engine.is_wanted("anything"));
}

TEST_CASE("of several parameters with one name the first counts") {
  ListMessage m("x", {{"a", "1"}, {"b", "2"}});
  m.add("a", "3");
  CHECK(m.get("a") == "1");
  CHECK_FALSE(m.get("A").has_value());
  CHECK(m.get_or("c", "none") == "none");
  m.set("a", "4");
  m.set("c", "5");
  std::string all;
  const auto list = [&all](std::string_view name, std::string_view value) {
    all.append(name).append("=").append(value).append(" ");
  };
  m.for_each(list);
  CHECK(all == "a=4 b=2 a=3 c=5 ");
  m.clear("a");
  all.clear();
  m.for_each(list);
  CHECK_MESSAGE(all == "b=2 c=5 ", "clearing takes all of that name");
}

}  // namespace test_engine
