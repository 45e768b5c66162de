#include "../src/program/line_editor.hpp"

#include <doctest/doctest.h>

#include <random>

#include "../src/program/screen_text.hpp"
#include "support/screen.hpp"

namespace test_line_editor {

using namespace program;

namespace {

std::string shown(const LineEditor& editor, std::size_t columns) {
  test::Screen screen(columns, 1);
  screen.write(editor.show());
  CHECK(screen.unknown() == 0);
  const auto text = screen.text();
  return text.empty() ? std::string() : text[0];
}

}  // namespace

TEST_CASE("keys edit the line") {
  struct Row {
    std::string_view name;
    std::string_view keys;
    std::string_view text;
    std::size_t cursor;
  };
  const Row rows[] = {
      {"letters", "hello", "hello", 5},
      {"UTF-8", "gr\xc3\xbc\xc3\x9f", "gr\xc3\xbc\xc3\x9f", 6},
      {"left inserts before", "ac\x1b[Db", "abc", 2},
      {"left at the beginning", "\x1b[D\x1b[Dx", "x", 1},
      {"right", "ab\x1b[D\x1b[D\x1b[Cx", "axb", 2},
      {"right at the end", "ab\x1b[C", "ab", 2},
      {"left over two octets", "a\xc3\xbc\x1b[Dx", "ax\xc3\xbc", 2},
      {"left over a letter with its accent", "e\xcc\x81\x1b[Dx", "xe\xcc\x81", 1},
      {"home and end", "bc\x1b[Ha\x1b[Fd", "abcd", 4},
      {"home and end, as keypads send them", "bc\x1bOHa\x1bOFd", "abcd", 4},
      {"home and end, as old terminals send them", "bc\x1b[1~a\x1b[4~d", "abcd", 4},
      {"Control-A and Control-E",
       "bc\x01"
       "a\x05"
       "d",
       "abcd", 4},
      {"Control-B and Control-F",
       "ac\x02"
       "b\x06"
       "d",
       "abcd", 4},
      {"backspace", "abc\x7f\x08", "a", 1},
      {"backspace over two octets", "a\xc3\xbc\x7f", "a", 1},
      {"backspace at the beginning",
       "\x7f"
       "a",
       "a", 1},
      {"delete", "abc\x01\x1b[3~", "bc", 0},
      {"delete at the end", "abc\x1b[3~", "abc", 3},
      {"Control-D in a line deletes", "abc\x01\x04", "bc", 0},
      {"Control-K", "abcd\x02\x02\x0b", "ab", 2},
      {"Control-U", "abcd\x02\x15", "d", 0},
      {"Control-W", "one two  \x17", "one ", 4},
      {"Control-W within a line", "one two three\x02\x17", "one two e", 8},
      {"Control-W at the beginning",
       "\x17"
       "a",
       "a", 1},
      {"Control-C empties the line", "abc\x03", "", 0},
      {"keys that mean nothing",
       "a\x1b[5~\x1b[15;2~\x1b"
       "xb\x1c"
       "c",
       "abc", 3},
      {"octets that are no character",
       "a\xff\xc3"
       "b\xa4\xa4"
       "c\xed\xa0\x80"
       "d",
       "abcd", 4},
      {"control characters in UTF-8",
       "a\xc2\x9b"
       "b",
       "ab", 2},
      {"a turn of the direction",
       "a\xe2\x80\xae"
       "b",
       "ab", 2},
      {"a paste with line ends", "\x1b[200~one\rtwo\n\x03three\x1b[201~!", "one two three!", 14},
      {"a paste with escapes in it", "\x1b[200~a\x1b[Db\x1b[201~", "ab", 2},
  };
  for (const Row& row : rows) {
    CAPTURE(row.name);
    LineEditor whole;
    CHECK(whole.feed(row.keys).empty());
    CHECK(whole.text() == row.text);
    CHECK(whole.cursor() == row.cursor);
    LineEditor pieces;
    for (char key : row.keys) CHECK(pieces.feed({&key, 1}).empty());
    CHECK(pieces.text() == row.text);
    CHECK(pieces.cursor() == row.cursor);
  }
}

TEST_CASE("some keys ask for something to be done") {
  struct Row {
    std::string_view keys;
    EditAction action;
    std::string_view text;
  };
  const Row rows[] = {
      {"hello\r", EditAction::accept, "hello"},
      {"hello\n", EditAction::accept, "hello"},
      {"\r", EditAction::accept, ""},
      {"\x03", EditAction::interrupt, ""},
      {"\x04", EditAction::end, ""},
      {"\x1a", EditAction::suspend, ""},
      {"\x0c", EditAction::redraw, ""},
  };
  for (const Row& row : rows) {
    CAPTURE(row.keys);
    LineEditor editor;
    const auto events = editor.feed(row.keys);
    REQUIRE(events.size() == 1);
    CHECK(events[0].action == row.action);
    CHECK(events[0].text == row.text);
    CHECK(editor.text().empty());
  }
}

TEST_CASE("what comes in one piece is done in its order") {
  LineEditor editor;
  const auto events = editor.feed("one\rtwo\rthree");
  REQUIRE(events.size() == 2);
  CHECK(events[0].text == "one");
  CHECK(events[1].text == "two");
  CHECK(editor.text() == "three");
}

TEST_CASE("earlier lines come back with the arrows") {
  LineEditor editor;
  editor.feed("one\rtwo\rtwo\r\rnew");
  editor.feed("\x1b[A");
  CHECK(editor.text() == "two");
  editor.feed("\x1b[A");
  CHECK(editor.text() == "one");  // neither the empty line nor the same one again
  editor.feed("\x1b[A");
  CHECK(editor.text() == "one");
  editor.feed("\x1b[B\x0e");
  CHECK(editor.text() == "new");  // what was being written is not lost
  editor.feed("\x1b[B");
  CHECK(editor.text() == "new");
  editor.feed("\x10\x10!");
  CHECK(editor.feed("\r")[0].text == "one!");
  CHECK(editor.text().empty());
}

TEST_CASE("the history has a limit, and so has a line") {
  LineEditor editor;
  for (std::size_t i = 0; i < LineEditor::max_history + 10; ++i) {
    editor.feed(std::to_string(i) + "\r");
  }
  for (std::size_t i = 0; i < LineEditor::max_history + 10; ++i) editor.feed("\x1b[A");
  CHECK(editor.text() == "10");

  editor.feed("\x15" + std::string(LineEditor::max_line_size - 1, 'x') + "\xc3\xbcyz");
  CHECK(editor.text().size() == LineEditor::max_line_size);
  CHECK(editor.text().back() == 'y');
}

TEST_CASE("the line is drawn behind its prompt, with the cursor in its place") {
  LineEditor editor;
  editor.set_columns(20);
  editor.set_prompt("102> ");
  editor.feed("hello\x1b[D\x1b[D");
  test::Screen screen(20, 1);
  screen.write(editor.show());
  CHECK(screen.text() == std::vector<std::string>{"102> hello"});
  CHECK(screen.column() == 8);
  editor.feed("\x15");
  screen.write(editor.show());  // what was there is gone
  CHECK(screen.text() == std::vector<std::string>{"102> lo"});
  CHECK(screen.column() == 5);
}

TEST_CASE("a line longer than the terminal is scrolled so that the cursor stays inside") {
  LineEditor editor;
  editor.set_columns(10);
  editor.feed("abcdefghijkl");
  CHECK(shown(editor, 10) == "> fghijkl");
  editor.feed("\x01");
  CHECK(shown(editor, 10) == "> abcdefg");
  editor.set_prompt("a prompt without end> ");
  CHECK(shown(editor, 10) == "a proabcd");
}

TEST_CASE("whatever the keys and the width, the line is whole characters and fits its row") {
  std::mt19937 random(7);
  const std::string_view pieces[] = {
      "a",      "\xc3\xbc", "\xe4\xbd\xa0", "\xcc\x81",         " ",      "\x1b[D",
      "\x1b[C", "\x1b[H",   "\x1b[F",       "\x1b[A",           "\x1b[B", "\x7f",
      "\x17",   "\r",       "\x0b",         "\xf0\x9f\x99\x82", "word "};
  for (std::size_t columns : {2u, 3u, 8u, 40u}) {
    LineEditor editor;
    editor.set_columns(columns);
    for (int i = 0; i < 3000; ++i) {
      editor.feed(pieces[random() % std::size(pieces)]);
      REQUIRE(editor.cursor() <= editor.text().size());
      REQUIRE(printable(editor.text()) == editor.text());
      REQUIRE(printable(editor.text().substr(0, editor.cursor())) ==
              editor.text().substr(0, editor.cursor()));
      std::string drawn = editor.show();
      drawn.erase(0, 4);  // "\r\x1b[K"
      const std::size_t end = drawn.find('\r');
      REQUIRE(columns_of(drawn.substr(0, end)) < columns);
      if (drawn.size() > end + 3) REQUIRE(std::stoul(drawn.substr(end + 3)) < columns);
    }
  }
}

}  // namespace test_line_editor
