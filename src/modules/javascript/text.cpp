// javascript/text: see text.hpp.
#include "text.hpp"

#include <cstddef>
#include <cstdint>

namespace modules {

namespace {

constexpr std::uint32_t first_high_surrogate = 0xD800;
constexpr std::uint32_t first_low_surrogate = 0xDC00;
constexpr std::uint32_t behind_surrogates = 0xE000;
constexpr std::uint32_t replacement = 0xFFFD;

void append_utf8(std::uint32_t character, std::string& out) {
  const auto octet = [&out](std::uint32_t value) { out.push_back(static_cast<char>(value)); };
  if (character < 0x80) return octet(character);
  if (character < 0x800) {
    octet(0xC0 | character >> 6);
  } else {
    if (character < 0x10000) {
      octet(0xE0 | character >> 12);
    } else {
      octet(0xF0 | character >> 18);
      octet(0x80 | (character >> 12 & 0x3F));
    }
    octet(0x80 | (character >> 6 & 0x3F));
  }
  octet(0x80 | (character & 0x3F));
}

/// One character of UTF-8 in its shortest form, surrogates allowed: `size` is 0 where there is none
/// at the front of `text`.
struct Decoded {
  std::uint32_t character = 0;
  std::size_t size = 0;
};

Decoded decode_utf8(std::string_view text) {
  const auto first = static_cast<unsigned char>(text.front());
  if (first < 0x80) return {first, 1};
  const std::size_t size = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4 || text.size() < size) return {};
  std::uint32_t character = first & (0xFFu >> (size + 1));
  for (std::size_t i = 1; i < size; ++i) {
    const auto next = static_cast<unsigned char>(text[i]);
    if ((next & 0xC0) != 0x80) return {};
    character = character << 6 | (next & 0x3Fu);
  }
  constexpr std::uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
  if (character < smallest[size] || character > 0x10FFFF) return {};
  return {character, size};
}

bool is_surrogate(std::uint32_t character) {
  return character >= first_high_surrogate && character < behind_surrogates;
}

/// The low surrogate at the front of `text`, or 0.
std::uint32_t low_surrogate(std::string_view text) {
  if (text.empty()) return 0;
  const std::uint32_t character = decode_utf8(text).character;
  return character >= first_low_surrogate && character < behind_surrogates ? character : 0;
}

}  // namespace

bool is_ascii(std::string_view text) {
  unsigned char seen = 0;
  for (char c : text) seen = static_cast<unsigned char>(seen | static_cast<unsigned char>(c));
  return seen < 0x80;
}

void to_script_text(std::string_view octets, std::string& out) {
  out.clear();
  while (!octets.empty()) {
    const Decoded next = decode_utf8(octets);
    if (next.size == 0 || is_surrogate(next.character)) {
      append_utf8(first_low_surrogate | static_cast<unsigned char>(octets.front()), out);
      octets.remove_prefix(1);
      continue;
    }
    if (next.character < 0x10000) {
      out.append(octets.substr(0, next.size));
    } else {
      append_utf8(first_high_surrogate + ((next.character - 0x10000) >> 10), out);
      append_utf8(first_low_surrogate + ((next.character - 0x10000) & 0x3FF), out);
    }
    octets.remove_prefix(next.size);
  }
}

void from_script_text(std::string_view text, std::string& out) {
  while (!text.empty()) {
    const Decoded next = decode_utf8(text);
    text.remove_prefix(next.size == 0 ? 1 : next.size);
    if (next.size == 0) {  // only Duktape's own symbols are no texts
      append_utf8(replacement, out);
    } else if (!is_surrogate(next.character)) {
      append_utf8(next.character, out);
    } else if (next.character >= first_low_surrogate) {
      const std::uint32_t octet = next.character - first_low_surrogate;
      if (octet >= 0x80 && octet <= 0xFF) {
        out.push_back(static_cast<char>(octet));
      } else {
        append_utf8(replacement, out);
      }
    } else if (const std::uint32_t low = low_surrogate(text); low != 0) {
      append_utf8(
          0x10000 + ((next.character - first_high_surrogate) << 10) + (low - first_low_surrogate),
          out);
      text.remove_prefix(3);
    } else {
      append_utf8(replacement, out);
    }
  }
}

bool is_plain_number(std::string_view text) {
  if (text == "0") return true;
  if (!text.empty() && text.front() == '-') text.remove_prefix(1);
  if (text.empty() || text.size() > 16 || text.front() < '1') return false;
  for (char c : text) {
    if (c < '0' || c > '9') return false;
  }
  constexpr std::string_view largest = "9007199254740991";  // 2^53 - 1
  return text.size() < largest.size() || text <= largest;
}

}  // namespace modules
