#include "json.hpp"

#include <cstdio>

#include "screen_text.hpp"

namespace program {

namespace {

void append_string(std::string& out, std::string_view text) {
  out.push_back('"');
  while (!text.empty()) {
    const Character character = first_character(text);
    char escaped[8];
    if (character.number == '"' || character.number == '\\') {
      out.append("\\").append(text.substr(0, 1));
    } else if (character.number == '\n') {
      out.append("\\n");
    } else if (character.number < 0x20 || (character.number >= 0x7f && character.number < 0xa0)) {
      // The latter need not be escaped, but whoever looks at it on a terminal is glad.
      std::snprintf(escaped, sizeof escaped, "\\u%04x", static_cast<unsigned>(character.number));
      out.append(escaped);
    } else if (character.number == 0xfffd) {
      out.append("\xef\xbf\xbd");
    } else {
      out.append(text.substr(0, character.size));
    }
    text.remove_prefix(character.size);
  }
  out.push_back('"');
}

}  // namespace

void JsonObject::begin(std::string_view name) {
  members_.append(members_.empty() ? "{" : ", ");
  append_string(members_, name);
  members_.append(": ");
}

JsonObject& JsonObject::add(std::string_view name, std::string_view text) {
  begin(name);
  append_string(members_, text);
  return *this;
}

JsonObject& JsonObject::add(std::string_view name, std::int64_t number) {
  begin(name);
  members_.append(std::to_string(number));
  return *this;
}

JsonObject& JsonObject::add(std::string_view name, double number) {
  begin(name);
  char text[32];
  std::snprintf(text, sizeof text, "%.3f", number);
  members_.append(text);
  return *this;
}

JsonObject& JsonObject::add(std::string_view name, bool value) {
  begin(name);
  members_.append(value ? "true" : "false");
  return *this;
}

JsonObject& JsonObject::add(std::string_view name, const JsonObject& object) {
  begin(name);
  members_.append(object.text());
  return *this;
}

std::string base64(std::string_view octets) {
  constexpr std::string_view alphabet =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (; !octets.empty(); octets.remove_prefix(octets.size() < 3 ? octets.size() : 3)) {
    std::uint32_t bits = 0;
    for (std::size_t i = 0; i < 3; ++i) {
      bits = bits << 8 | (i < octets.size() ? static_cast<unsigned char>(octets[i]) : 0U);
    }
    for (std::size_t i = 0; i < 4; ++i) {
      const bool is_padding = i > octets.size();
      text.push_back(is_padding ? '=' : alphabet[(bits >> (18 - 6 * i)) & 63]);
    }
  }
  return text;
}

}  // namespace program
