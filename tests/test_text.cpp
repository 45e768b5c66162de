// Characters, numbers, escapes, quoted strings and lists: against the grammar of RFC 3261 25.1, and
// where a function is written for speed, against a slow one that is plainly right.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "support/guarded.hpp"
#include "support/sipmsg.hpp"

namespace test_text {

using namespace sipmsg;
using namespace std::literals;

namespace {

/// Every text of up to `longest` octets of the alphabet.
std::vector<std::string> all_texts(std::string_view alphabet, std::size_t longest) {
  std::vector<std::string> texts{""};
  for (std::size_t first = 0, length = 1; length <= longest; ++length) {
    const std::size_t end = texts.size();
    for (; first < end; ++first) {
      for (char c : alphabet) texts.push_back(texts[first] + c);
    }
  }
  return texts;
}

bool is_in(std::string_view set, char c) { return set.find(c) != std::string_view::npos; }

}  // namespace

TEST_CASE("every octet is in the character classes that the grammar names") {
  for (int octet = 0; octet < 256; ++octet) {
    CAPTURE(octet);
    const char c = static_cast<char>(octet);
    const bool digit = octet >= '0' && octet <= '9';
    const bool letter = (octet >= 'a' && octet <= 'z') || (octet >= 'A' && octet <= 'Z');
    const bool nul = octet == 0;  // a string_view of literals finds no NUL by itself
    const bool unreserved = letter || digit || (!nul && is_in("-_.!~*'()", c));
    CHECK(is_char(c, char_digit) == digit);
    CHECK(is_digit(c) == digit);
    CHECK(is_char(c, char_token) == (letter || digit || (!nul && is_in("-.!%*_+`'~", c))));
    CHECK(is_char(c, char_user) == (unreserved || (!nul && is_in("&=+$,;?/", c))));
    CHECK(is_char(c, char_parameter) == (unreserved || (!nul && is_in("[]/:&+$", c))));
    CHECK(is_char(c, char_host) == (letter || digit || (!nul && is_in("-._", c))));
    CHECK(is_blank(c) == (!nul && is_in(" \t\r\n", c)));
    CHECK(is_char(c, char_hex) == (hex_value(c) >= 0));
    CHECK(is_char(c, char_hex) == (digit || (!nul && is_in("abcdefABCDEF", c))));
    CHECK(is_char(c, char_delimiter) == (!nul && is_in("\"<>,;&", c)));
  }
}

TEST_CASE("case is ignored for ASCII letters and for nothing else") {
  CHECK(equal_ignoring_case("", ""));
  CHECK(equal_ignoring_case("Via", "vIA"));
  CHECK_FALSE(equal_ignoring_case("Via", "Vi"));
  CHECK_FALSE(equal_ignoring_case("a\0b"sv, "a\0c"sv));
  for (int a = 0; a < 256; ++a) {
    for (int b = 0; b < 256; ++b) {
      const char x = static_cast<char>(a);
      const char y = static_cast<char>(b);
      const bool letters = (a | 0x20) == (b | 0x20) && (a | 0x20) >= 'a' && (a | 0x20) <= 'z';
      CHECK_UNARY(equal_ignoring_case({&x, 1}, {&y, 1}) == (a == b || letters));
    }
  }
  CHECK(to_lower("ÄBC-z"sv) == "Äbc-z");
}

TEST_CASE("trimming takes blanks and folds away at both ends only") {
  CHECK(trim("") == "");
  CHECK(trim(" \t\r\n ") == "");
  CHECK(trim("\r\n a b\t") == "a b");
  CHECK(trim("a") == "a");
  CHECK(trim("\0 "sv) == "\0"sv);
}

TEST_CASE("digits are a number up to the maximum, and nothing else is one") {
  struct Row {
    std::string_view text;
    std::uint64_t maximum;
    std::optional<std::uint64_t> value;
  };
  const Row rows[] = {
      {"0", 0, 0},
      {"1", 0, std::nullopt},
      {"", 9, std::nullopt},
      {"9", 9, 9},
      {"10", 9, std::nullopt},
      {"255", 255, 255},
      {"256", 255, std::nullopt},
      {"0000000000000000000000000000000255", 255, 255},
      {"4294967295", 0xffffffff, 0xffffffff},
      {"4294967296", 0xffffffff, std::nullopt},
      {"18446744073709551615", ~0ULL, ~0ULL},
      {"18446744073709551616", ~0ULL, std::nullopt},
      {"36893488147419103232", ~0ULL, std::nullopt},
      {"99999999999999999999999999999999999", ~0ULL, std::nullopt},
      {"-1", 9, std::nullopt},
      {"+1", 9, std::nullopt},
      {" 1", 9, std::nullopt},
      {"1 ", 9, std::nullopt},
      {"0x1", 99, std::nullopt},
      {"1\0"sv, 99, std::nullopt},
  };
  for (const Row& row : rows) {
    CAPTURE(row.text);
    CHECK(parse_digits(row.text, row.maximum) == row.value);
  }
}

TEST_CASE("an escape is decoded exactly once, and a broken one stands for itself") {
  CHECK(unescape("") == "");
  CHECK(unescape("%25%34%31") == "%41");
  CHECK(unescape("%2541") == "%41");
  CHECK(unescape("sips%3Auser%40example.com") == "sips:user@example.com");
  CHECK(unescape("a%00b") == "a\0b"s);
  CHECK(unescape("%fF") == "\xff");
  for (const char* broken : {"%", "%4", "a%", "%zz", "%4g", "%%"}) {
    CAPTURE(broken);
    CHECK(unescape(broken) == broken);
    CHECK_FALSE(has_valid_escapes(broken));
  }
  CHECK(unescape("%%41") == "%A");
  CHECK(has_valid_escapes("%41%00x%fF"));
  CHECK(has_valid_escapes(""));
}

TEST_CASE("a quoted string ends at the first quote that no backslash takes along") {
  const auto plainly = [](std::string_view text) {
    bool escaped = false;
    for (std::size_t i = 1; i < text.size(); ++i) {
      if (escaped) {
        escaped = false;
      } else if (text[i] == '\\') {
        escaped = true;
      } else if (text[i] == '"') {
        return i;
      }
    }
    return std::string_view::npos;
  };
  for (const std::string& rest : all_texts("a\"\\", 8)) {
    const std::string text = "\"" + rest;
    CAPTURE(text);
    REQUIRE(closing_quote(text, 0) == plainly(text));
    REQUIRE(is_quoted(text) == (text.size() > 1 && plainly(text) == text.size() - 1));
  }
  CHECK(closing_quote("ab\"cd\"", 2) == 5);
}

TEST_CASE("quoting and unquoting are each other's reverse") {
  for (const std::string& text : all_texts("a\"\\ ", 6)) {
    CAPTURE(text);
    REQUIRE(unquote(quote(text)) == text);
  }
  CHECK(quote("a\"b\\c") == R"("a\"b\\c")");
  CHECK(unquote(R"("J Rosenberg \\\"")") == R"(J Rosenberg \")");
  CHECK(unquote("plain\\ text") == "plain\\ text");
  CHECK(unquote("\"open") == "\"open");
  CHECK(unquote("\"\\\0\"\""sv) == "\"\\\0\"\""s);  // closed before its end: not a quoted string
  CHECK(unquote("\"\\\0\""sv) == "\0"s);
}

TEST_CASE("lists are split outside of quotes and angle brackets") {
  const auto plainly = [](std::string_view text, char stop) {
    bool in_brackets = false;
    for (std::size_t i = 0; i < text.size(); ++i) {
      if (text[i] == '"') {
        while (++i < text.size() && text[i] != '"') i += text[i] == '\\';
      } else if (in_brackets) {
        in_brackets = text[i] != '>';
      } else if (text[i] == '<') {
        in_brackets = true;
      } else if (text[i] == stop) {
        return i;
      }
    }
    return text.size();
  };
  for (const std::string& text : all_texts("a,;\"\\<>", 6)) {
    CAPTURE(text);
    REQUIRE(find_outside_quotes(text, ',') == plainly(text, ','));
    REQUIRE(find_outside_quotes(text, ';') == plainly(text, ';'));
  }
  CHECK(find_outside_quotes("a&b&c", '&', 2) == 3);
  CHECK(find_outside_quotes("a,b", ',', 2) == 3);
}

TEST_CASE("control characters are found wherever they stand") {
  std::string text(40, 'x');
  for (std::size_t size = 0; size <= text.size(); ++size) {
    const test::GuardedText guarded(std::string_view(text).substr(0, size));
    for (std::size_t begin = 0; begin <= size; ++begin) {
      REQUIRE(find_control(guarded.view(), begin) == size);
    }
  }
  for (int octet = 0; octet < 256; ++octet) {
    for (std::size_t place = 0; place < 20; ++place) {
      std::string with = "\xff\x7f \x80" + text;
      with[place] = static_cast<char>(octet);
      with[place + 3] = '\n';
      REQUIRE(find_control(with) == (octet < 0x20 ? place : place + 3));
    }
  }
}

TEST_CASE("parameters come out one by one, as they are written") {
  struct Row {
    std::string_view text;
    char separator;
    std::string_view shown;
  };
  const Row rows[] = {
      {"", ';', ""},
      {"lr", ';', "[lr]"},
      {" lr ; ttl = 16 ", ';', "[lr][ttl|16]"},
      {"a=\"x;y\";b", ';', "[a|\"x;y\"][b]"},
      {"a=\"x\\\";y\";b", ';', "[a|\"x\\\";y\"][b]"},
      {"a=<x;y>;b", ';', "[a|<x;y>][b]"},
      {"a=;b", ';', "[a|][b]"},
      {"a=b=c", ';', "[a|b=c]"},
      {";;a", ';', "[][][a]"},
      {"a;", ';', "[a]"},
      {"a=\"open;b", ';', "[a|\"open;b]"},
      {"a\r\n =\r\n b;c", ';', "[a|b][c]"},
      {"a=1, b=\"2,3\"", ',', "[a|1][b|\"2,3\"]"},
      {"to=x&from=y", '&', "[to|x][from|y]"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.text);
    const test::GuardedText text(row.text);
    std::string shown;
    for (const Parameter& parameter : Parameters(text.view(), row.separator)) {
      shown += "[" + std::string(parameter.name);
      if (parameter.has_value) shown += "|" + std::string(parameter.value);
      shown += "]";
    }
    CHECK(shown == row.shown);
  }
}

TEST_CASE("a parameter is found by its name in any case, the first of several") {
  const Parameters parameters("a=1;LR;B=\"2\";b=3");
  CHECK(parameters.find("A") == "1");
  CHECK(parameters.find("b") == "\"2\"");
  CHECK(parameters.find("lr") == "");
  CHECK(parameters.has("lr"));
  CHECK_FALSE(parameters.has("l"));
  CHECK(parameters.find("c") == std::nullopt);
  CHECK(Parameters().find("a") == std::nullopt);
}

TEST_CASE("the grammar can be used in constant expressions") {
  static_assert(is_token("MESSAGE") && !is_token("a b") && !is_token(""));
  static_assert(parse_digits("0070", 255) == 70);
  static_assert(Parameters("a;b=2").find("b") == "2");
  static_assert(closing_quote("\"\\\"\"", 0) == 3);
  static_assert(trim(" a ") == "a");
}

TEST_CASE("every error has a name of its own and a sentence") {
  CHECK(Error().name() == "none"sv);
  CHECK_FALSE(Error());
  const Error error(ErrorCode::bad_via, 7);
  CHECK(error);
  CHECK(error.name() == "bad_via"sv);
  CHECK(error.at(5).place == 12);
  for (int code = 0; code <= static_cast<int>(ErrorCode::network); ++code) {
    const std::string_view text = error_text(static_cast<ErrorCode>(code));
    CAPTURE(text);
    CHECK(text.find_first_of("\r\n") == std::string_view::npos);
    CHECK(text.size() > 5);
    CHECK(text.back() != '.');
    for (int other = 0; other < code; ++other) {
      const std::string_view name = error_name(static_cast<ErrorCode>(code));
      CHECK(name != error_name(static_cast<ErrorCode>(other)));
    }
  }
}

}  // namespace test_text
