#include "../src/program/json.hpp"

#include <doctest/doctest.h>

namespace test_json {

using namespace program;

TEST_CASE("an object is one line, its members in the order they were added") {
  JsonObject inner;
  inner.add("200", 3);
  CHECK(JsonObject().text() == "{}");
  CHECK(inner.text() == "{\"200\": 3}");
  JsonObject object;
  object.add("text", "hello").add("ok", true).add("code", -7).add("ms", 1.5).add("answers", inner);
  CHECK(object.text() ==
        "{\"text\": \"hello\", \"ok\": true, \"code\": -7, \"ms\": 1.500, \"answers\": {\"200\": "
        "3}}");
}

TEST_CASE("whatever a text holds, it stays one string") {
  struct Row {
    std::string_view text;
    std::string_view written;
  };
  const Row rows[] = {
      {"say \"hi\"", R"("say \"hi\"")"},
      {"a\\b", R"("a\\b")"},
      {"one\ntwo\r", R"("one\ntwo\u000d")"},
      {std::string_view("a\0b", 3), R"("a\u0000b")"},
      {"\x1b[2J\x7f\xc2\x9b", R"("\u001b[2J\u007f\u009b")"},
      {"gr\xc3\xbc\xc3\x9f \xf0\x9f\x99\x82", "\"gr\xc3\xbc\xc3\x9f \xf0\x9f\x99\x82\""},
      {"half\xc3", "\"half\xef\xbf\xbd\""},
  };
  for (const Row& row : rows) {
    CAPTURE(row.written);
    CHECK(JsonObject().add("x", row.text).text() == "{\"x\": " + std::string(row.written) + "}");
  }
}

TEST_CASE("octets become base64 (the examples of RFC 4648 10)") {
  CHECK(base64("") == "");
  CHECK(base64("f") == "Zg==");
  CHECK(base64("fo") == "Zm8=");
  CHECK(base64("foo") == "Zm9v");
  CHECK(base64("foob") == "Zm9vYg==");
  CHECK(base64("fooba") == "Zm9vYmE=");
  CHECK(base64("foobar") == "Zm9vYmFy");
  CHECK(base64("\xff\xfe\xfd") == "//79");
}

}  // namespace test_json
