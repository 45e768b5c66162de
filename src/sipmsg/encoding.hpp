// encoding: any octets written as text: base64 (RFC 4648 4) and hexadecimal digits.
//
// Bodies that are no text travel so to applications and come back so. Reading is strict: what is
// not exactly such a text is an error, never half a body.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "error.hpp"
#include "text.hpp"

namespace sipmsg {

namespace detail {

inline constexpr std::string_view base64_alphabet =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

}  // namespace detail

/// With padding, without line ends.
inline std::string to_base64(std::string_view octets) {
  std::string text;
  text.reserve((octets.size() + 2) / 3 * 4);
  for (std::size_t i = 0; i < octets.size(); i += 3) {
    const std::string_view group = octets.substr(i, 3);
    std::uint32_t bits = 0;
    for (std::size_t k = 0; k < 3; ++k) {
      bits = bits << 8 | (k < group.size() ? static_cast<unsigned char>(group[k]) : 0U);
    }
    for (std::size_t k = 0; k < 4; ++k) {
      const bool padding = k > group.size();
      text += padding ? '=' : detail::base64_alphabet[bits >> (18 - 6 * k) & 63];
    }
  }
  return text;
}

/// Errors, with the offset: `bad_token` for an octet outside the alphabet, `incomplete` where the
/// last group is not whole.
inline Result<std::string> from_base64(std::string_view text) {
  std::string octets;
  std::uint32_t bits = 0;
  std::size_t count = 0;
  std::size_t end = text.size();
  while (end > 0 && text.size() - end < 2 && text[end - 1] == '=') --end;
  for (std::size_t i = 0; i < end; ++i) {
    const std::size_t digit = detail::base64_alphabet.find(text[i]);
    if (digit == std::string_view::npos) {
      return {ErrorCode::bad_token, static_cast<std::int32_t>(i)};
    }
    bits = bits << 6 | static_cast<std::uint32_t>(digit);
    if (++count % 4 == 0) {
      for (int shift : {16, 8, 0}) octets += static_cast<char>(bits >> shift & 0xff);
    }
  }
  if (text.size() % 4 != 0 || count % 4 == 1) {
    return {ErrorCode::incomplete, static_cast<std::int32_t>(text.size())};
  }
  if (count % 4 >= 2) octets += static_cast<char>(bits >> (count % 4 == 2 ? 4 : 10) & 0xff);
  if (count % 4 == 3) octets += static_cast<char>(bits >> 2 & 0xff);
  return octets;
}

/// Two lower-case digits for each octet, with `separator` between octets, '\0' for none.
inline std::string to_hex(std::string_view octets, char separator = '\0') {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string text;
  for (char c : octets) {
    if (separator != '\0' && !text.empty()) text += separator;
    const auto octet = static_cast<unsigned char>(c);
    text += digits[octet >> 4];
    text += digits[octet & 15];
  }
  return text;
}

/// Reads pairs of digits, with single blanks between octets or without. Errors, with the offset:
/// `bad_token`, and `incomplete` for half an octet.
inline Result<std::string> from_hex(std::string_view text) {
  std::string octets;
  for (std::size_t i = 0; i < text.size(); i += 2) {
    if (text[i] == ' ' && i > 0 && i + 1 < text.size()) ++i;
    const int high = hex_value(text[i]);
    if (high < 0) return {ErrorCode::bad_token, static_cast<std::int32_t>(i)};
    if (i + 1 == text.size()) return {ErrorCode::incomplete, static_cast<std::int32_t>(i)};
    const int low = hex_value(text[i + 1]);
    if (low < 0) return {ErrorCode::bad_token, static_cast<std::int32_t>(i + 1)};
    octets += static_cast<char>(high << 4 | low);
  }
  return octets;
}

}  // namespace sipmsg
