// text: characters, case, tokens, quoted strings, numbers, escapes, parameter lists.
//
// The grammar of RFC 3261 section 25.1 starts here. All functions take string_views into somebody
// else's bytes and return views into the same bytes; the few that return std::string say so. A NUL
// is an octet like any other, and octets above 127 pass wherever UTF-8 is allowed.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>

#include "error.hpp"

namespace sipmsg {

/// Classes of octets; one octet may be of several. Names follow RFC 3261 25.1.
enum CharClass : std::uint8_t {
  char_token = 1,  ///< token
  char_digit = 2,  ///< DIGIT
  char_hex = 4,    ///< DIGIT and A-F, a-f
  char_user = 8,   ///< unreserved and user-unreserved: what a userinfo may hold unescaped
  char_parameter =
      16,           ///< param-unreserved and unreserved: what a URI parameter may hold unescaped
  char_host = 32,   ///< letters, digits, '-', '.', and '_' which the field knows well
  char_blank = 64,  ///< space, tab, and the CR LF of a folded line
  char_delimiter = 128,  ///< what begins or ends a part of a list: " < > , ; &
};

/// What some editors write before UTF-8; no part of the text.
inline constexpr std::string_view byte_order_mark = "\xEF\xBB\xBF";

namespace detail {

constexpr std::array<std::uint8_t, 256> make_char_table() {
  std::array<std::uint8_t, 256> table{};
  auto add = [&table](std::string_view octets, std::uint8_t classes) {
    for (char c : octets) {
      auto& entry = table[static_cast<unsigned char>(c)];
      entry = static_cast<std::uint8_t>(entry | classes);
    }
  };
  constexpr std::string_view letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
  constexpr std::string_view mark = "-_.!~*'()";
  add("0123456789", char_token | char_digit | char_hex | char_user | char_parameter | char_host);
  add(letters, char_token | char_user | char_parameter | char_host);
  add("abcdefABCDEF", char_hex);
  add("-.!%*_+`'~", char_token);
  add(mark, char_user | char_parameter);
  add("&=+$,;?/", char_user);
  add("[]/:&+$", char_parameter);
  add("-._", char_host);
  add(" \t\r\n", char_blank);
  add("\"<>,;&", char_delimiter);
  return table;
}

inline constexpr std::array<std::uint8_t, 256> char_table = make_char_table();

}  // namespace detail

constexpr bool is_char(char c, std::uint8_t classes) {
  return (detail::char_table[static_cast<unsigned char>(c)] & classes) != 0;
}
constexpr bool is_digit(char c) { return c >= '0' && c <= '9'; }
constexpr bool is_blank(char c) { return is_char(c, char_blank); }

/// Lower case for ASCII letters; every other octet stays as it is, whatever the locale.
constexpr char to_lower(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c + ('a' - 'A')) : c;
}

inline std::string to_lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) c = to_lower(c);
  return result;
}

/// Equal but for the case of ASCII letters. RFC 3261 7.3.1: names, tokens and parameter names
/// compare so.
constexpr bool equal_ignoring_case(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i] != b[i] && to_lower(a[i]) != to_lower(b[i])) return false;
  }
  return true;
}

/// Without blanks at either end; the line breaks of folded lines count as blanks (RFC 3261 7.3.1).
constexpr std::string_view trim(std::string_view text) {
  while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_blank(text.back())) text.remove_suffix(1);
  return text;
}

/// The offset of the first octet of the class at or after `begin`, or the end of the text.
constexpr std::size_t find_class(std::string_view text, std::uint8_t classes,
                                 std::size_t begin = 0) {
  while (begin < text.size() && !is_char(text[begin], classes)) ++begin;
  return begin;
}

/// The offset of the first octet outside the class at or after `begin`, or the end of the text.
constexpr std::size_t skip_class(std::string_view text, std::uint8_t classes,
                                 std::size_t begin = 0) {
  while (begin < text.size() && is_char(text[begin], classes)) ++begin;
  return begin;
}

/// True for one or more octets, all of the class.
constexpr bool all_of_class(std::string_view text, std::uint8_t classes) {
  return !text.empty() && skip_class(text, classes) == text.size();
}

/// The offset of the first control character (an octet below the space: CR, LF, TAB, NUL and so on)
/// at or after `begin`, or the end of the text. Whole messages pass through here, so it looks at
/// eight octets at a time.
inline std::size_t find_control(std::string_view text, std::size_t begin = 0) {
  constexpr std::uint64_t ones = 0x0101010101010101;
  for (; begin + 8 <= text.size(); begin += 8) {
    std::uint64_t octets = 0;
    std::memcpy(&octets, text.data() + begin, 8);
    // Taking 0x20 from an octet below it borrows, which sets the highest bit.
    if (((octets - ones * 0x20) & ~octets & ones * 0x80) != 0) break;
  }
  while (begin < text.size() && static_cast<unsigned char>(text[begin]) >= 0x20) ++begin;
  return begin;
}

constexpr bool is_token(std::string_view text) { return all_of_class(text, char_token); }

/// A number of digits only, no sign, at most `maximum`; nothing where it is none. Leading zeros are
/// fine (RFC 4475 3.1.1.1).
constexpr std::optional<std::uint64_t> parse_digits(std::string_view text, std::uint64_t maximum) {
  if (text.empty()) return std::nullopt;
  std::uint64_t value = 0;
  for (char c : text) {
    if (!is_digit(c)) return std::nullopt;
    const auto digit = static_cast<std::uint64_t>(c - '0');
    if (digit > maximum || value > (maximum - digit) / 10) return std::nullopt;
    value = value * 10 + digit;
  }
  return value;
}

/// The value of a hexadecimal digit, or -1.
constexpr int hex_value(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

/// True where every % is followed by two hexadecimal digits.
constexpr bool has_valid_escapes(std::string_view text) {
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') continue;
    if (i + 2 >= text.size() || hex_value(text[i + 1]) < 0 || hex_value(text[i + 2]) < 0) {
      return false;
    }
    i += 2;
  }
  return true;
}

/// Walks over the octets of a text with %-escapes, each decoded exactly once: `%2541` yields the
/// three octets of "%41" (RFC 4475 3.1.1.3). Allocates nothing; a malformed escape stands for
/// itself.
class UnescapedOctets {
 public:
  constexpr explicit UnescapedOctets(std::string_view text) : text_(text) {}
  constexpr bool done() const { return position_ >= text_.size(); }
  constexpr std::size_t remaining() const { return text_.size() - position_; }
  constexpr char next() {
    const char c = text_[position_++];
    if (c != '%' || position_ + 1 >= text_.size()) return c;
    const int high = hex_value(text_[position_]);
    const int low = hex_value(text_[position_ + 1]);
    if (high < 0 || low < 0) return c;
    position_ += 2;
    return static_cast<char>(high * 16 + low);
  }

 private:
  std::string_view text_;
  std::size_t position_ = 0;
};

/// Writes every octet that is not of that class as % and two hexadecimal digits.
inline std::string escape(std::string_view text, std::uint8_t allowed) {
  constexpr std::string_view digits = "0123456789ABCDEF";
  std::string out;
  for (char c : text) {
    const auto octet = static_cast<unsigned char>(c);
    if (is_char(c, allowed)) {
      out += c;
    } else {
      out += {'%', digits[octet >> 4], digits[octet & 15]};
    }
  }
  return out;
}

inline std::string unescape(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (UnescapedOctets octets(text); !octets.done();) result.push_back(octets.next());
  return result;
}

/// Where the quoted string that opens at `text[begin]` has its closing quote; npos where it is not
/// closed. A backslash takes the octet after it along, whatever it is (RFC 3261 25.1 quoted-pair).
constexpr std::size_t closing_quote(std::string_view text, std::size_t begin) {
  std::size_t i = begin + 1;
  std::size_t quote = text.find('"', i);
  while (quote != std::string_view::npos) {
    const std::size_t backslash = text.substr(i, quote - i).find('\\');
    if (backslash == std::string_view::npos) return quote;
    i += backslash + 2;
    if (i > quote) quote = text.find('"', i);
  }
  return std::string_view::npos;
}

constexpr bool is_quoted(std::string_view text) {
  return text.size() >= 2 && text.front() == '"' && closing_quote(text, 0) == text.size() - 1;
}

/// Walks over the octets of a quoted string's inside with each quoted-pair resolved; of a text that
/// is not quoted, over its octets as they are. Allocates nothing.
class UnquotedOctets {
 public:
  constexpr explicit UnquotedOctets(std::string_view text)
      : text_(is_quoted(text) ? text.substr(1, text.size() - 2) : text),
        escapes_(is_quoted(text)) {}
  constexpr bool done() const { return position_ >= text_.size(); }
  constexpr char next() {
    const char c = text_[position_++];
    if (!escapes_ || c != '\\' || position_ >= text_.size()) return c;
    return text_[position_++];
  }

 private:
  std::string_view text_;
  bool escapes_;
  std::size_t position_ = 0;
};

inline std::string unquote(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (UnquotedOctets octets(text); !octets.done();) result.push_back(octets.next());
  return result;
}

/// `text` in quotes, with backslashes before quotes and backslashes.
inline std::string quote(std::string_view text) {
  std::string result = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') result.push_back('\\');
    result.push_back(c);
  }
  result.push_back('"');
  return result;
}

/// The first place at or after `begin` where `stop` (one of , ; &) stands outside quoted strings
/// and outside `<>`; the end of the text where there is none. This one rule splits header
/// lists at commas and parameters at semicolons (RFC 3261 7.3.1).
/// An unclosed quote or bracket reaches to the end; whoever reads that value says what is wrong.
constexpr std::size_t find_outside_quotes(std::string_view text, char stop, std::size_t begin = 0) {
  if (text.find(stop, begin) == std::string_view::npos) return text.size();  // mostly so
  bool in_brackets = false;
  for (std::size_t i = find_class(text, char_delimiter, begin); i < text.size();
       i = find_class(text, char_delimiter, i + 1)) {
    const char c = text[i];
    if (c == '"') {
      i = closing_quote(text, i);
      if (i == std::string_view::npos) return text.size();
    } else if (in_brackets) {
      in_brackets = c != '>';
    } else if (c == stop) {
      return i;
    } else {
      in_brackets = c == '<';
    }
  }
  return text.size();
}

/// One parameter as it is written: `value` is empty for `;lr`, and still quoted for `;a="b"`.
struct Parameter {
  std::string_view name;
  std::string_view value;
  bool has_value = false;
};

/// The parameters of a header or a URI, text as it stands after the first separator. Iterates
/// lazily and allocates nothing; malformed parameters come out as they are.
/// Lifetime: views into the text given.
class Parameters {
 public:
  constexpr Parameters() = default;
  constexpr explicit Parameters(std::string_view text, char separator = ';')
      : text_(text), separator_(separator) {}

  class Iterator {
   public:
    constexpr Iterator(std::string_view rest, char separator)
        : rest_(rest), separator_(separator), at_end_(rest.empty()) {
      if (!at_end_) read();
    }
    constexpr const Parameter& operator*() const { return current_; }
    constexpr const Parameter* operator->() const { return &current_; }
    constexpr Iterator& operator++() {
      if (rest_.empty()) {
        at_end_ = true;
      } else {
        read();
      }
      return *this;
    }
    constexpr bool operator!=(const Iterator& other) const { return at_end_ != other.at_end_; }

   private:
    constexpr void read() {
      const std::size_t end = find_outside_quotes(rest_, separator_);
      const std::string_view piece = rest_.substr(0, end);
      rest_ = end < rest_.size() ? rest_.substr(end + 1) : std::string_view();
      const std::size_t equals = piece.find('=');
      current_.has_value = equals != std::string_view::npos;
      current_.name = trim(piece.substr(0, equals));
      current_.value = current_.has_value ? trim(piece.substr(equals + 1)) : std::string_view();
    }

    std::string_view rest_;
    char separator_;
    bool at_end_;
    Parameter current_;
  };

  constexpr Iterator begin() const { return {text_, separator_}; }
  constexpr Iterator end() const { return {std::string_view(), separator_}; }
  constexpr std::string_view text() const { return text_; }

  /// The first parameter of that name, any case: its value as written ("" for one without), or
  /// nothing.
  constexpr std::optional<std::string_view> find(std::string_view name) const {
    for (const Parameter& parameter : *this) {
      if (equal_ignoring_case(parameter.name, name)) return parameter.value;
    }
    return std::nullopt;
  }
  constexpr bool has(std::string_view name) const { return find(name).has_value(); }

 private:
  std::string_view text_;
  char separator_ = ';';
};

}  // namespace sipmsg
