#include "../src/program/transcript.hpp"

#include <doctest/doctest.h>

#include <random>

#include "support/screen.hpp"

namespace test_transcript {

using namespace program;
using Lines = std::vector<std::string>;

namespace {

struct Chat {
  Chat(std::size_t columns, std::size_t rows) : screen(columns, rows), transcript(editor) {
    screen.write(transcript.resize(columns, rows));
  }
  LineEditor editor;
  test::Screen screen;
  Transcript transcript;
};

}  // namespace

TEST_CASE("what comes is shown above the line that is being written") {
  Chat chat(20, 6);
  chat.editor.feed("hello\x1b[D");
  chat.screen.write(chat.transcript.show_line());
  chat.screen.write(chat.transcript.add("102: good morning"));
  CHECK(chat.screen.text() == Lines{"102: good morning", "> hello"});
  CHECK(chat.screen.column() == 6);
  CHECK(chat.screen.unknown() == 0);
}

TEST_CASE("an entry wider than the terminal takes several rows") {
  Chat chat(11, 6);
  chat.screen.write(chat.transcript.add("0123456789abcdef\nsecond\n\nfourth"));
  CHECK(chat.screen.text() == Lines{"0123456789", "abcdef", "second", "", "fourth", ">"});
}

TEST_CASE("an entry that is still on the screen is rewritten, and what is below it moves") {
  Chat chat(20, 8);
  chat.screen.write(chat.transcript.add("me: one [sent]", 1));
  chat.screen.write(chat.transcript.add("102: two"));
  chat.editor.feed("th");
  chat.screen.write(chat.transcript.rewrite(1, "me: one [delivered, 200 OK]"));
  CHECK(chat.screen.text() == Lines{"me: one [delivered,", " 200 OK]", "102: two", "> th"});
  chat.screen.write(chat.transcript.rewrite(1, "me: one"));
  CHECK(chat.screen.text() == Lines{"me: one", "102: two", "> th"});
  CHECK(chat.screen.unknown() == 0);
}

TEST_CASE("an entry that has scrolled away, or was written in another width, is said again") {
  Chat chat(20, 4);
  chat.screen.write(chat.transcript.add("me: one [sent]", 1));
  for (const char* text : {"a", "b", "c"}) chat.screen.write(chat.transcript.add(text));
  chat.screen.write(chat.transcript.rewrite(1, "me: one [200]"));
  CHECK(chat.screen.text() == Lines{"b", "c", "me: one [200]", ">"});
  chat.screen.write(chat.transcript.resize(18, 4));
  chat.screen.write(chat.transcript.rewrite(1, "me: one [read]"));
  CHECK(chat.screen.text() == Lines{"c", "me: one [200]", "me: one [read]", ">"});
}

TEST_CASE("the screen can be cleared and drawn anew") {
  Chat chat(20, 6);
  chat.screen.write(chat.transcript.add("one"));
  chat.screen.write("rubbish from elsewhere");
  chat.editor.feed("two");
  chat.screen.write(chat.transcript.redraw());
  CHECK(chat.screen.text() == Lines{"one", "> two"});
}

TEST_CASE("however entries come and change, the screen shows the last of them in their order") {
  std::mt19937 random(11);
  for (std::size_t columns : {7u, 20u, 80u}) {
    constexpr std::size_t rows = 12;
    Chat chat(columns, rows);
    std::vector<std::string> said;
    std::vector<std::size_t> place(1);  // of each id, in `said`
    for (int i = 0; i < 500; ++i) {
      const std::string text(1 + random() % 30, static_cast<char>('a' + random() % 26));
      const bool rewrites = place.size() > 1 && random() % 2 == 0;
      const std::size_t id = rewrites ? place.size() - 1 : place.size();
      if (rewrites) {
        said[place[id]] = text;
        chat.screen.write(chat.transcript.rewrite(id, text));
      } else {
        place.push_back(said.size());
        said.push_back(text);
        chat.screen.write(chat.transcript.add(text, id));
      }
      Lines all;
      for (std::string rest : said) {
        for (; rest.size() > columns - 1; rest.erase(0, columns - 1)) {
          all.push_back(rest.substr(0, columns - 1));
        }
        all.push_back(rest);
      }
      all.emplace_back(">");
      Lines shown = chat.screen.text();
      REQUIRE(shown.size() <= all.size());
      REQUIRE(Lines(all.end() - static_cast<std::ptrdiff_t>(shown.size()), all.end()) == shown);
    }
    CHECK(chat.screen.unknown() == 0);
  }
}

}  // namespace test_transcript
