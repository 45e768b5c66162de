// Octets as text and back: the vectors of RFC 4648 10, all lengths and octets, and what is refused.
#include <string>

#include <doctest/doctest.h>

#include "support/sipmsg.hpp"

namespace test_encoding {

using sipmsg::ErrorCode;
using sipmsg::from_base64;
using sipmsg::from_hex;
using sipmsg::to_base64;
using sipmsg::to_hex;

TEST_CASE("base64 is written and read as RFC 4648 10 has it") {
  struct Row {
    const char* octets;
    const char* text;
  };
  const Row rows[] = {
      {"", ""},
      {"f", "Zg=="},
      {"fo", "Zm8="},
      {"foo", "Zm9v"},
      {"foob", "Zm9vYg=="},
      {"fooba", "Zm9vYmE="},
      {"foobar", "Zm9vYmFy"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.octets);
    CHECK(to_base64(row.octets) == row.text);
    REQUIRE(from_base64(row.text));
    CHECK(*from_base64(row.text) == row.octets);
  }
}

TEST_CASE("all octets in texts of every length come back from base64 and from hexadecimal") {
  std::string octets;
  for (int i = 0; i < 600; ++i) {
    CHECK(*from_base64(to_base64(octets)) == octets);
    CHECK(*from_hex(to_hex(octets)) == octets);
    CHECK(*from_hex(to_hex(octets, ' ')) == octets);
    octets += static_cast<char>(i * 7 & 0xff);
  }
}

TEST_CASE("a text that is not base64 is refused with the place") {
  struct Row {
    const char* text;
    ErrorCode code;
    std::int32_t place;
  };
  const Row rows[] = {
      {"Zg=", ErrorCode::incomplete, 3}, {"Zg", ErrorCode::incomplete, 2},
      {"Z", ErrorCode::incomplete, 1},   {"Z===", ErrorCode::bad_token, 1},
      {"Zm 9", ErrorCode::bad_token, 2}, {"Zm9v\r\n", ErrorCode::bad_token, 4},
      {"=", ErrorCode::incomplete, 1},   {"Zm=v", ErrorCode::bad_token, 2},
      {"Z-_v", ErrorCode::bad_token, 1},
  };
  for (const Row& row : rows) {
    CAPTURE(row.text);
    const auto read = from_base64(row.text);
    CHECK(read.error().code == row.code);
    CHECK(read.error().place == row.place);
  }
}

TEST_CASE("hexadecimal takes both cases and single blanks, and nothing else") {
  CHECK(to_hex("\x01\xab\xff", ' ') == "01 ab ff");
  CHECK(*from_hex("01ABff") == "\x01\xab\xff");
  CHECK(*from_hex("01 AB ff") == "\x01\xab\xff");
  for (const char* text : {"0", "01 2", "0g", "g0", "01  02", " 01", "01 "}) {
    CAPTURE(text);
    CHECK_FALSE(from_hex(text));
  }
}

}  // namespace test_encoding
