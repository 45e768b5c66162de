#include "../src/program/screen_text.hpp"

#include <doctest/doctest.h>

namespace test_screen_text {

using namespace program;

TEST_CASE("a terminal never gets what it would obey") {
  struct Row {
    std::string_view name;
    std::string_view text;
    std::string_view shown;
  };
  const Row rows[] = {
      {"plain text", "hello", "hello"},
      {"UTF-8", "gr\xc3\xbc\xc3\x9f dich \xe4\xbd\xa0 \xf0\x9f\x99\x82",
       "gr\xc3\xbc\xc3\x9f dich \xe4\xbd\xa0 \xf0\x9f\x99\x82"},
      {"an escape sequence", "a\x1b[2Jb", "a\xef\xbf\xbd[2Jb"},
      {"a window title", "\x1b]0;x\x07", "\xef\xbf\xbd]0;x\xef\xbf\xbd"},
      {"the same as one C1 character",
       "a\xc2\x9b"
       "2Jb",
       "a\xef\xbf\xbd"
       "2Jb"},
      {"the same as a bare octet",
       "a\x9b"
       "2Jb",
       "a\xef\xbf\xbd"
       "2Jb"},
      {"delete", "a\x7f", "a\xef\xbf\xbd"},
      {"a carriage return that would write over the line", "ab\rc",
       "ab\xef\xbf\xbd"
       "c"},
      {"line ends", "one\r\ntwo\nthree", "one\\ntwo\\nthree"},
      {"a tab", "a\tb", "a b"},
      {"NUL", std::string_view("a\0b", 3),
       "a\xef\xbf\xbd"
       "b"},
      {"a turn of the direction",
       "sip:\xe2\x80\xae"
       "bob",
       "sip:bob"},
      {"an isolate of the direction",
       "a\xe2\x81\xa6"
       "b\xe2\x81\xa9",
       "ab"},
      {"the line separator",
       "a\xe2\x80\xa8"
       "b",
       "a\xef\xbf\xbd"
       "b"},
      {"half a character", "a\xc3", "a\xef\xbf\xbd"},
      {"an overlong slash", "\xc0\xaf", "\xef\xbf\xbd\xef\xbf\xbd"},
      {"a surrogate", "\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
      {"above the last character", "\xf4\x90\x80\x80",
       "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.name);
    CHECK(printable(row.text) == row.shown);
    CHECK(printable(row.shown) == row.shown);
  }
  CHECK(printable("one\r\ntwo\n", LineEnds::kept) == "one\ntwo\n");
}

TEST_CASE("columns are counted as a terminal counts them") {
  struct Row {
    std::string_view text;
    std::size_t columns;
  };
  const Row rows[] = {
      {"", 0},
      {"abc", 3},
      {"gr\xc3\xbc\xc3\x9f", 4},
      {"e\xcc\x81", 1},                         // with a combining acute accent
      {"\xe4\xbd\xa0\xe5\xa5\xbd", 4},          // two Chinese characters
      {"\xf0\x9f\x99\x82", 2},                  // a face
      {"\xf0\x9f\x91\x8d\xf0\x9f\x8f\xbd", 2},  // a thumb and the colour of its skin
  };
  for (const Row& row : rows) {
    CAPTURE(row.text);
    CHECK(columns_of(row.text) == row.columns);
  }
}

TEST_CASE("what is stepped over is a character with its marks") {
  const std::string_view text = "ae\xcc\x81\xe4\xbd\xa0";
  CHECK(next_position(text, 0) == 1);
  CHECK(next_position(text, 1) == 4);
  CHECK(next_position(text, 4) == 7);
  CHECK(next_position(text, 7) == 7);
  CHECK(previous_position(text, 7) == 4);
  CHECK(previous_position(text, 4) == 1);
  CHECK(previous_position(text, 1) == 0);
  CHECK(previous_position(text, 0) == 0);
}

TEST_CASE("a text is cut between characters, never inside of one") {
  const std::string_view text =
      "a\xe4\xbd\xa0"
      "b";
  CHECK(fitting(text, 0) == "");
  CHECK(fitting(text, 1) == "a");
  CHECK(fitting(text, 2) == "a");
  CHECK(fitting(text, 3) == "a\xe4\xbd\xa0");
  CHECK(fitting(text, 9) == text);
}

}  // namespace test_screen_text
