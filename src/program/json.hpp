// json: one object on one line (RFC 8259), which is all that --json prints.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace program {

class JsonObject {
 public:
  /// The text must be UTF-8; octets that are none become U+FFFD.
  JsonObject& add(std::string_view name, std::string_view text);
  JsonObject& add(std::string_view name, const char* text) {
    return add(name, std::string_view(text));
  }
  JsonObject& add(std::string_view name, std::int64_t number);
  JsonObject& add(std::string_view name, int number) {
    return add(name, static_cast<std::int64_t>(number));
  }
  /// With three decimals.
  JsonObject& add(std::string_view name, double number);
  JsonObject& add(std::string_view name, bool value);
  JsonObject& add(std::string_view name, const JsonObject& object);

  std::string text() const { return members_.empty() ? "{}" : members_ + "}"; }

 private:
  void begin(std::string_view name);

  std::string members_;
};

/// RFC 4648 4, for what is no text.
std::string base64(std::string_view octets);

}  // namespace program
