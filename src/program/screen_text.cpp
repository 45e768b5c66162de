#include "screen_text.hpp"

#include <algorithm>

namespace program {

namespace {

constexpr std::uint32_t replacement = 0xfffd;
constexpr std::string_view replacement_text = "\xef\xbf\xbd";

struct Range {
  std::uint32_t first;
  std::uint32_t last;
};

constexpr Range without_width[] = {
    {0x0300, 0x036f}, {0x0483, 0x0489}, {0x0591, 0x05bd},   {0x0610, 0x061a},  {0x064b, 0x065f},
    {0x093c, 0x093c}, {0x0941, 0x0948}, {0x094d, 0x094d},   {0x0e31, 0x0e31},  {0x0e34, 0x0e3a},
    {0x0e47, 0x0e4e}, {0x1ab0, 0x1aff}, {0x1dc0, 0x1dff},   {0x200b, 0x200d},  {0x20d0, 0x20f0},
    {0xfe00, 0xfe0f}, {0xfe20, 0xfe2f}, {0x1f3fb, 0x1f3ff}, {0xe0100, 0xe01ef}};

constexpr Range wide[] = {{0x1100, 0x115f},   {0x231a, 0x231b},   {0x2e80, 0x303e},
                          {0x3041, 0x33ff},   {0x3400, 0x4dbf},   {0x4e00, 0x9fff},
                          {0xa000, 0xa4cf},   {0xa960, 0xa97f},   {0xac00, 0xd7a3},
                          {0xf900, 0xfaff},   {0xfe30, 0xfe6f},   {0xff00, 0xff60},
                          {0xffe0, 0xffe6},   {0x1f300, 0x1f64f}, {0x1f680, 0x1f6ff},
                          {0x1f900, 0x1f9ff}, {0x1fa70, 0x1faff}, {0x20000, 0x3fffd}};

template <std::size_t size>
bool is_in(std::uint32_t character, const Range (&ranges)[size]) {
  for (const Range& range : ranges) {
    if (character >= range.first && character <= range.last) return true;
  }
  return false;
}

bool is_control(std::uint32_t character) {
  return character < 0x20 || (character >= 0x7f && character < 0xa0) || character == 0x2028 ||
         character == 0x2029;
}

/// Embeddings, overrides and isolates of the Unicode Bidirectional Algorithm, and its marks.
bool is_direction(std::uint32_t character) {
  return (character >= 0x202a && character <= 0x202e) ||
         (character >= 0x2066 && character <= 0x2069) || character == 0x200e ||
         character == 0x200f || character == 0x061c;
}

/// The lowest number that needs so many octets: shorter forms of it are no UTF-8 (RFC 3629 3).
constexpr std::uint32_t lowest_of_size[] = {0, 0, 0x80, 0x800, 0x10000};

}  // namespace

Character first_character(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text[0]);
  if (lead < 0x80) return {1, lead};
  const std::size_t size = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || text.size() < size) return {1, replacement};
  std::uint32_t number = lead & (0xffu >> (size + 1));
  for (std::size_t i = 1; i < size; ++i) {
    const auto octet = static_cast<unsigned char>(text[i]);
    if ((octet & 0xc0) != 0x80) return {1, replacement};
    number = number << 6 | (octet & 0x3f);
  }
  const bool is_surrogate = number >= 0xd800 && number < 0xe000;
  if (number < lowest_of_size[size] || number > 0x10ffff || is_surrogate) return {1, replacement};
  return {size, number};
}

std::size_t columns_of(std::uint32_t character) {
  if (character < 0x300) return 1;
  if (is_in(character, without_width)) return 0;
  return is_in(character, wide) ? 2 : 1;
}

std::size_t columns_of(std::string_view text) {
  std::size_t columns = 0;
  while (!text.empty()) {
    const Character character = first_character(text);
    columns += columns_of(character.number);
    text.remove_prefix(character.size);
  }
  return columns;
}

std::size_t previous_position(std::string_view text, std::size_t position) {
  // Forwards from the beginning: only so is it certain where characters begin.
  std::size_t begin = 0;
  for (std::size_t next = 0; next < position;) {
    begin = next;
    next = next_position(text, next);
  }
  return begin;
}

std::size_t next_position(std::string_view text, std::size_t position) {
  if (position >= text.size()) return text.size();
  position += first_character(text.substr(position)).size;
  while (position < text.size()) {
    const Character mark = first_character(text.substr(position));
    if (columns_of(mark.number) != 0) break;
    position += mark.size;
  }
  return position;
}

std::string_view fitting(std::string_view text, std::size_t columns) {
  std::size_t end = 0;
  while (end < text.size()) {
    const Character character = first_character(text.substr(end));
    const std::size_t width = columns_of(character.number);
    if (width > columns) break;
    columns -= width;
    end += character.size;
  }
  return text.substr(0, end);
}

std::string printable(std::string_view text, LineEnds line_ends) {
  std::string result;
  while (!text.empty()) {
    if (text.substr(0, 2) == "\r\n") text.remove_prefix(1);
    const Character character = first_character(text);
    if (character.number == '\n') {
      result.append(line_ends == LineEnds::kept ? "\n" : "\\n");
    } else if (character.number == '\t') {
      result.push_back(' ');
    } else if (is_control(character.number) || character.number == replacement) {
      result.append(replacement_text);
    } else if (!is_direction(character.number)) {
      result.append(text.substr(0, character.size));
    }
    text.remove_prefix(character.size);
  }
  return result;
}

}  // namespace program
