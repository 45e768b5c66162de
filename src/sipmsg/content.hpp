// content: what the body of a MESSAGE says, whatever form its sender gave it.
//
// `read_content` looks through the forms that clients really send and finds the text: text/plain
// in several charsets; message/cpim (RFC 3862), an envelope with headers of its own; multipart,
// whose first text/plain part is taken. "Is typing" (RFC 3994) and "was delivered" (RFC 5438,
// IMDN) are messages about messages, and are recognised as such. All texts come out as valid
// UTF-8, but may hold control characters: whoever prints them on a terminal must look at them.
//
// Both kinds of notice are small XML documents. The XML reader here knows as much as they need, and
// refuses document type definitions: no entity can be declared, so none can explode.
//
// Left out on purpose: HTML is handed over as it is; Content-Transfer-Encoding (SIP carries eight
// bits, RFC 3261 7.4.1) and Require of CPIM are not obeyed; IMDN-Record-Route is not followed.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "writer.hpp"

namespace sipmsg {

// Characters: everything becomes UTF-8, and what is none becomes U+FFFD.

namespace detail {

inline constexpr std::string_view replacement_character = "\xef\xbf\xbd";

/// The octets at the beginning of a text that are one character, or that should be replaced by one.
struct Utf8Piece {
  std::size_t size;
  bool well_formed;
};

/// What the text, which is not empty, begins with: a character; or else as many octets as could
/// have become one, so that the octet that breaks a character off is looked at by itself.
constexpr Utf8Piece first_utf8_piece(std::string_view text) {
  const auto octet = [text](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = octet(0);
  if (lead < 0x80) return {1, true};
  if (lead < 0xc2 || lead > 0xf4) return {1, false};
  const std::size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  // Narrower bounds on the second octet keep overlong forms, surrogates and everything above
  // U+10FFFF out (RFC 3629 4).
  unsigned lowest = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  unsigned highest = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  std::size_t size = 1;
  while (size < length && size < text.size() && octet(size) >= lowest && octet(size) <= highest) {
    ++size;
    lowest = 0x80;
    highest = 0xbf;
  }
  return {size, size == length};
}

inline void append_valid_utf8(std::string& out, std::string_view octets) {
  while (!octets.empty()) {
    const Utf8Piece piece = first_utf8_piece(octets);
    out.append(piece.well_formed ? octets.substr(0, piece.size) : replacement_character);
    octets.remove_prefix(piece.size);
  }
}

/// Appends a character by its number; U+FFFD for a number that is no character.
inline void append_character(std::string& out, std::uint32_t character) {
  const bool is_surrogate = character >= 0xd800 && character < 0xe000;
  if (is_surrogate || character > 0x10ffff) {
    out.append(replacement_character);
    return;
  }
  if (character < 0x80) {
    out.push_back(static_cast<char>(character));
    return;
  }
  const auto six_bits = [&out, character](unsigned shift) {
    out.push_back(static_cast<char>(0x80 | ((character >> shift) & 0x3f)));
  };
  if (character < 0x800) {
    out.push_back(static_cast<char>(0xc0 | (character >> 6)));
  } else if (character < 0x10000) {
    out.push_back(static_cast<char>(0xe0 | (character >> 12)));
    six_bits(6);
  } else {
    out.push_back(static_cast<char>(0xf0 | (character >> 18)));
    six_bits(12);
    six_bits(6);
  }
  six_bits(0);
}

/// Puts UTF-16 together: a high and a low surrogate make one character, half a pair none.
class Utf16Reader {
 public:
  explicit Utf16Reader(std::string& out) : out_(out) {}

  void take(std::uint32_t unit) {
    const bool is_high = unit >= 0xd800 && unit < 0xdc00;
    const bool is_low = unit >= 0xdc00 && unit < 0xe000;
    if (is_low && high_ != 0) {
      append_character(out_, 0x10000 + ((high_ - 0xd800) << 10) + (unit - 0xdc00));
      high_ = 0;
      return;
    }
    finish();
    if (is_high) {
      high_ = unit;
    } else {
      append_character(out_, unit);
    }
  }
  /// To be called where no further unit follows.
  void finish() {
    if (high_ != 0) out_.append(replacement_character);
    high_ = 0;
  }

 private:
  std::string& out_;
  std::uint32_t high_ = 0;
};

enum class Charset : std::uint8_t { unknown, utf_8, windows_1252, iso_8859_15, utf_16, be, le };

/// ASCII is read as UTF-8, which contains it, and ISO-8859-1 as Windows-1252, as browsers do: the
/// senders mean these, and the control characters of ISO-8859-1 are no good to anybody.
constexpr Charset find_charset(std::string_view name) {
  constexpr std::pair<std::string_view, Charset> names[] = {
      {"", Charset::utf_8},  // the default in SIP (RFC 3261 7.4.1) and CPIM
      {"utf-8", Charset::utf_8},
      {"utf8", Charset::utf_8},
      {"us-ascii", Charset::utf_8},
      {"ascii", Charset::utf_8},
      {"iso-8859-1", Charset::windows_1252},
      {"iso8859-1", Charset::windows_1252},
      {"latin1", Charset::windows_1252},
      {"windows-1252", Charset::windows_1252},
      {"cp1252", Charset::windows_1252},
      {"iso-8859-15", Charset::iso_8859_15},
      {"iso8859-15", Charset::iso_8859_15},
      {"latin-9", Charset::iso_8859_15},
      {"utf-16", Charset::utf_16},
      {"utf-16be", Charset::be},
      {"utf-16le", Charset::le},
  };
  for (const auto& known : names) {
    if (equal_ignoring_case(known.first, name)) return known.second;
  }
  return Charset::unknown;
}

/// The character for an octet from 0x80 up; 0xfffd where the charset has none.
constexpr std::uint32_t latin_character(Charset charset, unsigned char octet) {
  constexpr std::uint16_t windows_1252[] = {
      0x20ac, 0xfffd, 0x201a, 0x0192, 0x201e, 0x2026, 0x2020, 0x2021, 0x02c6, 0x2030, 0x0160,
      0x2039, 0x0152, 0xfffd, 0x017d, 0xfffd, 0xfffd, 0x2018, 0x2019, 0x201c, 0x201d, 0x2022,
      0x2013, 0x2014, 0x02dc, 0x2122, 0x0161, 0x203a, 0x0153, 0xfffd, 0x017e, 0x0178};
  if (octet < 0xa0) return charset == Charset::windows_1252 ? windows_1252[octet - 0x80] : 0xfffd;
  if (charset == Charset::iso_8859_15) {
    switch (octet) {
      case 0xa4: return 0x20ac;
      case 0xa6: return 0x0160;
      case 0xa8: return 0x0161;
      case 0xb4: return 0x017d;
      case 0xb8: return 0x017e;
      case 0xbc: return 0x0152;
      case 0xbd: return 0x0153;
      case 0xbe: return 0x0178;
      default: break;
    }
  }
  return octet;
}

inline void append_utf16(std::string& out, std::string_view octets, Charset charset) {
  const bool marked_le = octets.substr(0, 2) == "\xff\xfe";
  const bool marked_be = octets.substr(0, 2) == "\xfe\xff";
  // Without a name or a mark the order is that of the network (RFC 2781 4.3).
  const bool is_le = charset == Charset::le || (charset == Charset::utf_16 && marked_le);
  if (is_le ? marked_le : marked_be) octets.remove_prefix(2);
  Utf16Reader reader(out);
  for (; octets.size() >= 2; octets.remove_prefix(2)) {
    const std::uint32_t first = static_cast<unsigned char>(octets[0]);
    const std::uint32_t second = static_cast<unsigned char>(octets[1]);
    reader.take(is_le ? second << 8 | first : first << 8 | second);
  }
  reader.finish();
  if (!octets.empty()) out.append(replacement_character);
}

}  // namespace detail

/// The text in UTF-8, for a charset by its name in MIME, any case; "" means UTF-8. Octets that are
/// no character come out as U+FFFD, and a byte order mark is left out. Nothing for a charset that
/// is not known. Known: UTF-8, US-ASCII, ISO-8859-1 and -15, Windows-1252, UTF-16, UTF-16LE and BE.
inline std::optional<std::string> to_utf8(std::string_view octets, std::string_view charset = {}) {
  const detail::Charset known = detail::find_charset(charset);
  std::string out;
  out.reserve(octets.size());
  switch (known) {
    case detail::Charset::unknown: return std::nullopt;
    case detail::Charset::utf_8:
      if (octets.substr(0, 3) == byte_order_mark) octets.remove_prefix(3);
      detail::append_valid_utf8(out, octets);
      break;
    case detail::Charset::windows_1252:
    case detail::Charset::iso_8859_15:
      for (char c : octets) {
        const auto octet = static_cast<unsigned char>(c);
        detail::append_character(out, octet < 0x80 ? octet : detail::latin_character(known, octet));
      }
      break;
    case detail::Charset::utf_16:
    case detail::Charset::be:
    case detail::Charset::le: detail::append_utf16(out, octets, known); break;
  }
  return out;
}

// Dates as CPIM and IMDN write them.

namespace detail {

/// A number of exactly `count` digits.
inline std::optional<std::int64_t> scan_digits(Scanner& in, std::size_t count,
                                               std::uint64_t highest) {
  const std::string_view digits = in.rest().substr(0, count);
  const auto value = parse_digits(digits, highest);
  if (digits.size() < count || !value) return std::nullopt;
  in.advance(count);
  return static_cast<std::int64_t>(*value);
}

/// How far a zone is ahead of UTC, in seconds: "Z", "+01:00", and "+0100", because it is sent.
inline std::optional<std::int64_t> scan_zone(Scanner& in) {
  if (in.skip('Z') || in.skip('z')) return 0;
  const bool is_behind = in.skip('-');
  if (!is_behind && !in.skip('+')) return std::nullopt;
  const auto hours = scan_digits(in, 2, 23);
  in.skip(':');
  const auto minutes = scan_digits(in, 2, 59);
  if (!hours || !minutes) return std::nullopt;
  const std::int64_t ahead_s = *hours * 3600 + *minutes * 60;
  return is_behind ? -ahead_s : ahead_s;
}

/// Whether a year of four digits tells the date.
constexpr bool is_writable_date(std::int64_t unix_s) {
  return unix_s >= 0 && unix_s < days_from_date(10000, 1, 1) * 86400;
}

}  // namespace detail

/// A date of RFC 3339 ("2025-11-23T02:37:42.5+01:00") as seconds since 1970; fractions are cut off.
/// Error: `bad_date`, also before 1970 and after the year 9999 in UTC.
inline Result<std::int64_t> parse_date_time(std::string_view text) {
  detail::Scanner in(trim(text));
  std::int64_t fields[6] = {};
  constexpr std::size_t lengths[] = {4, 2, 2, 2, 2, 2};
  constexpr std::uint64_t highest[] = {9999, 12, 31, 23, 59, 60};
  constexpr std::string_view separators = "--T::";
  for (std::size_t i = 0; i < 6; ++i) {
    const auto value = detail::scan_digits(in, lengths[i], highest[i]);
    if (!value) return in.error(ErrorCode::bad_date);
    fields[i] = *value;
    if (i == 5 || in.skip(separators[i]) || (separators[i] == 'T' && in.skip('t'))) continue;
    return in.error(ErrorCode::bad_date);
  }
  if (in.skip('.') && in.of_class(char_digit).empty()) return in.error(ErrorCode::bad_date);
  const auto zone_s = detail::scan_zone(in);
  if (!zone_s || !in.done()) return in.error(ErrorCode::bad_date);

  const std::int64_t year = fields[0];
  const auto month = static_cast<unsigned>(fields[1]);
  const auto day = static_cast<unsigned>(fields[2]);
  if (year < 1970 || month == 0 || day == 0) return ErrorCode::bad_date;
  const std::int64_t days = detail::days_from_date(year, month, day);
  const std::int64_t next_month = month == 12 ? detail::days_from_date(year + 1, 1, 1)
                                              : detail::days_from_date(year, month + 1, 1);
  if (days >= next_month) return ErrorCode::bad_date;
  const std::int64_t unix_s =
      days * 86400 + fields[3] * 3600 + fields[4] * 60 + fields[5] - *zone_s;
  if (!detail::is_writable_date(unix_s)) return ErrorCode::bad_date;
  return unix_s;
}

/// The date of RFC 3339 for seconds since 1970 (not before, and not after the year 9999), in UTC:
/// "2025-11-23T01:37:42Z".
inline std::string format_date_time(std::int64_t unix_s) {
  // The calendar is that of the Date header: "Sun, 23 Nov 2025 01:37:42 GMT".
  const std::string date = format_date(unix_s);
  const std::string_view text = date;
  const auto month = static_cast<char>(detail::month_names.find(text.substr(8, 3)) / 3 + 1);
  std::string out(text.substr(12, 4));
  out.push_back('-');
  out.push_back(month < 10 ? '0' : '1');
  out.push_back(static_cast<char>('0' + month % 10));
  out.append("-").append(text.substr(5, 2));
  return out.append("T").append(text.substr(17, 8)).append("Z");
}

// XML, as much of it as two small documents need.

namespace detail {

/// Reads a document and calls back at the end of each element. Checks that tags match; looks at
/// names without their namespace prefix, and not at attributes.
class XmlReader {
 public:
  static constexpr std::size_t max_size = 16384;
  static constexpr std::size_t max_depth = 16;

  explicit XmlReader(std::string_view document) : document_(document) {}

  /// Calls `use(*this)` at each element's end. Error: `bad_xml`, with the offset in the document.
  template <class Use>
  Error read(Use use) {
    if (document_.size() > max_size)
      return {ErrorCode::bad_xml, static_cast<std::int32_t>(max_size)};
    for (std::size_t i = find_control(document_); i < document_.size();
         i = find_control(document_, i + 1)) {
      if (!is_blank(document_[i])) return {ErrorCode::bad_xml, static_cast<std::int32_t>(i)};
    }
    skip(byte_order_mark);
    while (position_ < document_.size()) {
      if (const Error error = read_next(use)) return error;
    }
    return depth_ == 0 && has_root_ ? Error() : error();
  }

  /// How deep the element stands that ends here; the root has depth 1.
  std::size_t depth() const { return depth_; }
  /// The local name of the element at that depth.
  std::string_view name(std::size_t depth) const {
    const std::string_view qualified = names_[depth - 1];
    return qualified.substr(qualified.rfind(':') + 1);
  }
  /// The text of the element that ends here, trimmed, as valid UTF-8. Of one that holds elements:
  /// what follows the last of them.
  std::string_view text() const { return trim(text_); }

 private:
  Error error() const { return {ErrorCode::bad_xml, static_cast<std::int32_t>(position_)}; }
  char peek() const { return position_ < document_.size() ? document_[position_] : '\0'; }
  bool skip(std::string_view expected) {
    if (document_.substr(position_, expected.size()) != expected) return false;
    position_ += expected.size();
    return true;
  }
  void skip_blanks() { position_ = skip_class(document_, char_blank, position_); }
  /// Takes what stands before `end`, and `end` itself; nothing where it never comes.
  std::optional<std::string_view> take_until(std::string_view end) {
    const std::size_t found = document_.find(end, position_);
    if (found == std::string_view::npos) return std::nullopt;
    const std::string_view taken = document_.substr(position_, found - position_);
    position_ = found + end.size();
    return taken;
  }

  template <class Use>
  Error read_next(Use& use) {
    if (skip("<?")) return take_until("?>") ? Error() : error();
    if (skip("<!--")) return take_until("-->") ? Error() : error();
    if (skip("<![CDATA[")) return read_cdata();
    if (skip("</")) return read_end_tag(use);
    // "<!DOCTYPE" and all other declarations fail as a start tag without a name.
    if (skip("<")) return read_start_tag(use);
    if (skip("&")) return read_reference();
    return read_text();
  }

  Error read_text() {
    const std::size_t end = std::min(document_.find_first_of("<&", position_), document_.size());
    const std::string_view text = document_.substr(position_, end - position_);
    if (depth_ == 0 && skip_class(text, char_blank) < text.size()) return error();
    append_valid_utf8(text_, text);
    position_ = end;
    return {};
  }

  Error read_cdata() {
    if (depth_ == 0) return error();
    const auto text = take_until("]]>");
    if (!text) return error();
    append_valid_utf8(text_, *text);
    return {};
  }

  /// &lt; &gt; &amp; &quot; &apos; and characters by number. No other entity exists, because none
  /// can be declared.
  Error read_reference() {
    constexpr std::pair<std::string_view, char> entities[] = {
        {"lt", '<'}, {"gt", '>'}, {"amp", '&'}, {"quot", '"'}, {"apos", '\''}};
    constexpr std::size_t longest = 10;
    const std::string_view name = document_.substr(position_, longest);
    const std::size_t end = name.find(';');
    if (depth_ == 0 || end == std::string_view::npos) return error();
    const std::string_view reference = name.substr(0, end);
    if (reference.substr(0, 1) == "#") {
      const auto character = read_number(reference.substr(1));
      if (!character) return error();
      append_character(text_, *character);
      position_ += end + 1;
      return {};
    }
    for (const auto& entity : entities) {
      if (entity.first != reference) continue;
      text_.push_back(entity.second);
      position_ += end + 1;
      return {};
    }
    return error();
  }

  /// The number of a character that may stand in a document (XML 1.0 2.2): no NUL, no escape.
  static std::optional<std::uint32_t> read_number(std::string_view digits) {
    std::uint64_t number = 0;
    if (digits.substr(0, 1) == "x") {
      digits.remove_prefix(1);
      if (!all_of_class(digits, char_hex)) return std::nullopt;
      for (char c : digits) number = number * 16 + static_cast<std::uint64_t>(hex_value(c));
    } else {
      const auto value = parse_digits(digits, 0x10ffff);
      if (!value) return std::nullopt;
      number = *value;
    }
    const bool is_control = number < 0x20 && number != '\t' && number != '\n' && number != '\r';
    const bool is_surrogate = number >= 0xd800 && number < 0xe000;
    if (is_control || is_surrogate || number == 0xfffe || number == 0xffff || number > 0x10ffff) {
      return std::nullopt;
    }
    return static_cast<std::uint32_t>(number);
  }

  std::string_view read_name() {
    const std::size_t begin = position_;
    const auto may_begin = [](char c) {
      return c == '_' || (to_lower(c) >= 'a' && to_lower(c) <= 'z') ||
             static_cast<unsigned char>(c) >= 0x80;
    };
    while (may_begin(peek()) || (position_ > begin && (is_digit(peek()) || peek() == '-' ||
                                                       peek() == '.' || peek() == ':'))) {
      ++position_;
    }
    return document_.substr(begin, position_ - begin);
  }

  template <class Use>
  Error read_start_tag(Use& use) {
    const std::string_view name = read_name();
    if (name.empty() || (depth_ == 0 && has_root_) || depth_ == max_depth) return error();
    for (skip_blanks(); peek() != '>' && peek() != '/'; skip_blanks()) {
      if (const Error error = read_attribute()) return error;
    }
    has_root_ = true;
    names_[depth_++] = name;
    text_.clear();
    if (skip("/>")) {
      end_element(use);
      return {};
    }
    return skip(">") ? Error() : error();
  }

  Error read_attribute() {
    if (read_name().empty()) return error();
    skip_blanks();
    if (!skip("=")) return error();
    skip_blanks();
    const std::string_view quote = peek() == '\'' ? "'" : "\"";
    if (!skip(quote)) return error();
    const auto value = take_until(quote);
    return value && value->find('<') == std::string_view::npos ? Error() : error();
  }

  template <class Use>
  Error read_end_tag(Use& use) {
    if (depth_ == 0 || read_name() != names_[depth_ - 1]) return error();
    skip_blanks();
    if (!skip(">")) return error();
    end_element(use);
    return {};
  }

  template <class Use>
  void end_element(Use& use) {
    use(*this);
    --depth_;
    text_.clear();
  }

  std::string_view document_;
  std::size_t position_ = 0;
  std::array<std::string_view, max_depth> names_;  ///< of the open elements, with their prefixes
  std::size_t depth_ = 0;
  bool has_root_ = false;
  std::string text_;
};

/// A caller's or a stranger's text between tags. Error: `forbidden_octet` for what no document may
/// hold.
inline void write_xml_text(Output& out, std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const Utf8Piece piece = first_utf8_piece(text.substr(i));
    const char c = text[i];
    if (static_cast<unsigned char>(c) < 0x20 && !is_blank(c)) {
      out.fail(ErrorCode::forbidden_octet, i);
      return;
    }
    if (!piece.well_formed) {
      out.raw(replacement_character);
    } else if (c == '<') {
      out.raw("&lt;");
    } else if (c == '>') {
      out.raw("&gt;");
    } else if (c == '&') {
      out.raw("&amp;");
    } else {
      out.raw(text.substr(i, piece.size));
    }
    i += piece.size;
  }
}

inline void write_xml_element(Output& out, std::string_view name, std::string_view text) {
  out.raw("<").raw(name).raw(">");
  write_xml_text(out, text);
  out.raw("</").raw(name).raw(">");
}

inline constexpr std::string_view xml_declaration = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";

}  // namespace detail

// "Is typing" (RFC 3994).

inline constexpr std::string_view composing_media_type = "application/im-iscomposing+xml";

/// Whether somebody is writing a message.
struct Composing {
  bool is_active = false;         ///< false: has stopped; so reads any state that is not known
  std::string content_type;       ///< of what is written, "" where it is not said: text
  std::string last_active;        ///< the date as written, RFC 3339; see `parse_date_time`
  std::uint32_t refresh_s = 120;  ///< for how long `is_active` holds, unless said again
};

/// Reads a document of type application/im-iscomposing+xml. Error: `bad_xml`.
inline Result<Composing> parse_composing(std::string_view document) {
  Composing composing;
  bool has_root = false;
  bool has_state = false;
  detail::XmlReader xml(document);
  const Error error = xml.read([&](const detail::XmlReader& at) {
    if (at.depth() == 1) has_root = at.name(1) == "isComposing";
    if (at.depth() != 2) return;
    if (at.name(2) == "state") {
      has_state = true;
      composing.is_active = at.text() == "active";
    } else if (at.name(2) == "contenttype") {
      composing.content_type = at.text();
    } else if (at.name(2) == "lastactive") {
      composing.last_active = at.text();
    } else if (at.name(2) == "refresh") {
      const auto seconds = parse_digits(at.text(), 0xffffffff);
      if (seconds && *seconds > 0) composing.refresh_s = static_cast<std::uint32_t>(*seconds);
    }
  });
  if (error) return error;
  if (!has_root || !has_state) return ErrorCode::bad_xml;
  return composing;
}

/// Writes a document that says so. `refresh_s` is left out where it is 0, which means 120 to the
/// receiver (RFC 3994 3.3), and `content_type` where it is empty.
inline void write_composing(Output& out, bool is_active, std::uint32_t refresh_s = 0,
                            std::string_view content_type = "text/plain") {
  out.raw(detail::xml_declaration);
  out.raw("<isComposing xmlns=\"urn:ietf:params:xml:ns:im-iscomposing\">\n");
  out.raw(is_active ? "<state>active</state>\n" : "<state>idle</state>\n");
  if (!content_type.empty()) {
    detail::write_xml_element(out, "contenttype", content_type);
    out.raw("\n");
  }
  if (refresh_s != 0) out.raw("<refresh>").number(refresh_s).raw("</refresh>\n");
  out.raw("</isComposing>\n");
}

// "Was delivered" (RFC 5438).

inline constexpr std::string_view notification_media_type = "message/imdn+xml";

/// What a notification is about: the message's arrival, its being shown to somebody, or what a
/// server on the way did with it.
enum class NotificationType : std::uint8_t { delivery, display, processing, other };
/// What became of the message; `other` is any status that is not known.
enum class NotificationStatus : std::uint8_t {
  delivered,
  failed,
  displayed,
  processed,
  stored,
  forbidden,
  error,
  other
};

/// The name as it stands in the document; empty for `other`.
constexpr std::string_view notification_type_name(NotificationType type) {
  constexpr std::string_view names[] = {"delivery-notification", "display-notification",
                                        "processing-notification", ""};
  return names[static_cast<std::size_t>(type)];
}
constexpr std::string_view notification_status_name(NotificationStatus status) {
  constexpr std::string_view names[] = {"delivered", "failed",    "displayed", "processed",
                                        "stored",    "forbidden", "error",     ""};
  return names[static_cast<std::size_t>(status)];
}

/// What became of a message that was sent.
struct Notification {
  NotificationType type = NotificationType::other;
  NotificationStatus status = NotificationStatus::other;
  std::string message_id;     ///< of the message it speaks of: its imdn.Message-ID
  std::string date_time;      ///< of that message, as written, RFC 3339
  std::string recipient_uri;  ///< "" where it is not said, as with the next two
  std::string original_recipient_uri;
  std::string subject;
};

/// Reads a document of type message/imdn+xml. Error: `bad_xml`, also for one that does not say of
/// which message it speaks.
inline Result<Notification> parse_notification(std::string_view document) {
  Notification notification;
  bool has_root = false;
  detail::XmlReader xml(document);
  const auto take_type = [&notification](std::string_view name) {
    for (NotificationType type :
         {NotificationType::delivery, NotificationType::display, NotificationType::processing}) {
      if (notification_type_name(type) == name) notification.type = type;
    }
  };
  // Extensions may stand beside the status, such as a reason: they change nothing.
  const auto take_status = [&notification](std::string_view name) {
    for (std::uint8_t i = 0; i < static_cast<std::uint8_t>(NotificationStatus::other); ++i) {
      const auto status = static_cast<NotificationStatus>(i);
      if (notification_status_name(status) == name) notification.status = status;
    }
  };
  const Error error = xml.read([&](const detail::XmlReader& at) {
    if (at.depth() == 1) has_root = at.name(1) == "imdn";
    if (at.depth() == 4 && at.name(3) == "status") take_status(at.name(4));
    if (at.depth() != 2) return;
    if (at.name(2) == "message-id") {
      notification.message_id = at.text();
    } else if (at.name(2) == "datetime") {
      notification.date_time = at.text();
    } else if (at.name(2) == "recipient-uri") {
      notification.recipient_uri = at.text();
    } else if (at.name(2) == "original-recipient-uri") {
      notification.original_recipient_uri = at.text();
    } else if (at.name(2) == "subject") {
      notification.subject = at.text();
    } else {
      take_type(at.name(2));
    }
  });
  if (error) return error;
  if (!has_root || notification.message_id.empty()) return ErrorCode::bad_xml;
  return notification;
}

namespace detail {

/// Which status may stand in which notification (RFC 5438 11).
constexpr bool fits(NotificationType type, NotificationStatus status) {
  switch (status) {
    case NotificationStatus::delivered:
    case NotificationStatus::failed: return type == NotificationType::delivery;
    case NotificationStatus::displayed: return type == NotificationType::display;
    case NotificationStatus::processed:
    case NotificationStatus::stored: return type == NotificationType::processing;
    case NotificationStatus::forbidden:
    case NotificationStatus::error: return type != NotificationType::other;
    default: return false;
  }
}

}  // namespace detail

/// Writes a document of type message/imdn+xml. It travels in an envelope: see
/// `write_notification_for`. Errors: `bad_argument` without message-id or date, and for a status
/// that does not belong to the type.
inline void write_notification(Output& out, const Notification& notification) {
  if (notification.message_id.empty() || notification.date_time.empty() ||
      !detail::fits(notification.type, notification.status)) {
    out.fail(ErrorCode::bad_argument);
    return;
  }
  const auto optional_element = [&out](std::string_view name, std::string_view text) {
    if (text.empty()) return;
    detail::write_xml_element(out, name, text);
    out.raw("\n");
  };
  const std::string_view type = notification_type_name(notification.type);
  out.raw(detail::xml_declaration).raw("<imdn xmlns=\"urn:ietf:params:xml:ns:imdn\">\n");
  optional_element("message-id", notification.message_id);
  optional_element("datetime", notification.date_time);
  optional_element("recipient-uri", notification.recipient_uri);
  optional_element("original-recipient-uri", notification.original_recipient_uri);
  optional_element("subject", notification.subject);
  out.raw("<").raw(type).raw("><status><").raw(notification_status_name(notification.status));
  out.raw("/></status></").raw(type).raw(">\n</imdn>\n");
}

// The envelope (RFC 3862).

inline constexpr std::string_view cpim_media_type = "message/cpim";
/// The namespaces of header names: of those without a prefix, and of those for notifications.
inline constexpr std::string_view cpim_namespace = "urn:ietf:params:cpim-headers:";
inline constexpr std::string_view imdn_namespace = "urn:ietf:params:imdn";

/// Somebody in a From, To or cc header.
struct CpimAddress {
  std::string name;      ///< the formal name, decoded, valid UTF-8; "" where there is none
  std::string_view uri;  ///< as written, without <>; any scheme
};

struct CpimSubject {
  std::string text;           ///< decoded, valid UTF-8
  std::string_view language;  ///< such as "de", "" where it is not said
};

/// Any header, with its prefix resolved.
struct CpimField {
  std::string_view name_space;  ///< a URI; "" where the prefix was not declared
  std::string_view name;        ///< without the prefix, but for one that was not declared
  Parameters parameters;
  std::string_view value;  ///< as written
};

/// Which notifications the sender asks for (RFC 5438 6.2).
struct NotificationRequest {
  bool positive_delivery = false;
  bool negative_delivery = false;
  bool display = false;
  bool processing = false;

  bool any() const { return positive_delivery || negative_delivery || display || processing; }
};

/// A message in its envelope. Lifetime: views into the body that was read.
struct CpimMessage {
  std::vector<CpimField> fields;  ///< all headers in order, at most SIPMSG_MAX_HEADERS
  CpimAddress from;               ///< its URI is "" where there is none
  std::vector<CpimAddress> to;
  std::vector<CpimAddress> cc;
  std::vector<CpimSubject> subjects;  ///< the same subject, in several languages
  std::string_view date_time;         ///< as written, RFC 3339; see `parse_date_time`
  std::string_view message_id;        ///< imdn.Message-ID
  std::string_view original_to;       ///< the URI of imdn.Original-To
  NotificationRequest request;        ///< imdn.Disposition-Notification
  std::string_view content_type;      ///< of the enclosed message, "" where it is not said
  std::string_view transfer_encoding;
  std::string_view content;  ///< the enclosed message

  /// The first header of that name, or null. Names are compared without regard to case: RFC 3862
  /// tells upper from lower case, but no two names differ in nothing else.
  const CpimField* find(std::string_view name_space, std::string_view name) const {
    for (const CpimField& field : fields) {
      if (field.name_space == name_space && equal_ignoring_case(field.name, name)) return &field;
    }
    return nullptr;
  }
};

namespace detail {

/// Lines that end in CR LF or, as some senders write them within a body, in LF alone.
class LineReader {
 public:
  explicit LineReader(std::string_view text) : text_(text) {}

  /// The next line without its end; with `folds` all lines of a folded header. False at the end of
  /// the text, and where the last line has no end.
  bool next(std::string_view& line, bool folds = false) {
    begin_ = position_;
    std::size_t end = text_.find('\n', position_);
    while (folds && end != std::string_view::npos && end > begin_ + 1 && end + 1 < text_.size() &&
           (text_[end + 1] == ' ' || text_[end + 1] == '\t')) {
      end = text_.find('\n', end + 1);
    }
    if (end == std::string_view::npos) return false;
    position_ = end + 1;
    if (end > begin_ && text_[end - 1] == '\r') --end;
    line = text_.substr(begin_, end - begin_);
    return true;
  }
  /// Where the line begins that `next` looked at last, and what follows it.
  std::size_t line_begin() const { return begin_; }
  std::string_view rest() const { return text_.substr(position_); }

 private:
  std::string_view text_;
  std::size_t begin_ = 0;
  std::size_t position_ = 0;
};

/// The headers of an enclosed message or part (RFC 2045), as far as they matter here.
struct PartHead {
  std::string_view content_type;
  std::string_view transfer_encoding;
  std::string_view content_length;
};

/// Reads up to and with the empty line; false where there is none or a line is no header.
inline bool read_part_head(LineReader& lines, PartHead& head) {
  std::string_view line;
  while (lines.next(line, true)) {
    if (line.empty()) return true;
    const std::size_t colon = line.find(':');
    if (colon == std::string_view::npos) return false;
    const std::string_view name = trim(line.substr(0, colon));
    const std::string_view value = trim(line.substr(colon + 1));
    if (equal_ignoring_case(name, "Content-Type")) head.content_type = value;
    if (equal_ignoring_case(name, "Content-Transfer-Encoding")) head.transfer_encoding = value;
    if (equal_ignoring_case(name, "Content-Length")) head.content_length = value;
  }
  return false;
}

/// Header values of CPIM escape characters as C does, and by number: \" \' \\ \b \t \n \r \u00e4.
/// Any other backslash stands for itself.
inline std::string decode_cpim_text(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  Utf16Reader by_number(out);
  while (!text.empty()) {
    if (text.size() >= 6 && text.substr(0, 2) == "\\u" &&
        all_of_class(text.substr(2, 4), char_hex)) {
      std::uint32_t unit = 0;
      for (char c : text.substr(2, 4)) unit = unit * 16 + static_cast<std::uint32_t>(hex_value(c));
      by_number.take(unit);
      text.remove_prefix(6);
      continue;
    }
    by_number.finish();
    constexpr std::string_view letters = "\"'\\btnr";
    constexpr std::string_view meanings = "\"'\\\b\t\n\r";
    const std::size_t escape =
        text.size() >= 2 && text[0] == '\\' ? letters.find(text[1]) : std::string_view::npos;
    if (escape != std::string_view::npos) {
      out.push_back(meanings[escape]);
      text.remove_prefix(2);
      continue;
    }
    const std::size_t plain = std::min(text.find('\\', 1), text.size());
    append_valid_utf8(out, text.substr(0, plain));
    text.remove_prefix(plain);
  }
  by_number.finish();
  return out;
}

/// A name and a URI in brackets; a URI alone needs none, as some senders write it.
struct NameAndUri {
  std::string_view name;
  std::string_view uri;
};

inline std::optional<NameAndUri> split_name_and_uri(std::string_view value) {
  std::size_t open = 0;
  if (value.substr(0, 1) == "\"") {
    open = closing_quote(value, 0);
    if (open == std::string_view::npos) return std::nullopt;
  }
  open = value.find('<', open);
  if (open == std::string_view::npos) return NameAndUri{{}, value};
  const std::size_t close = value.find('>', open);
  if (close == std::string_view::npos) return std::nullopt;
  return NameAndUri{trim(value.substr(0, open)), value.substr(open + 1, close - open - 1)};
}

class CpimReader {
 public:
  explicit CpimReader(std::string_view body) : lines_(body) {}

  Error read() {
    if (const Error error = read_headers()) return error;
    // Some senders put "Content-Type: message/cpim", which says what the whole body is, into the
    // body itself.
    const CpimField* type = message_.find(cpim_namespace, "Content-Type");
    if (type != nullptr && equal_ignoring_case(type->value, cpim_media_type)) {
      message_ = CpimMessage();
      if (const Error error = read_headers()) return error;
    }
    return read_content();
  }
  CpimMessage take_message() { return std::move(message_); }

 private:
  struct Namespace {
    std::string_view prefix;
    std::string_view uri;
  };

  Error error(ErrorCode code = ErrorCode::bad_cpim) const {
    return {code, static_cast<std::int32_t>(lines_.line_begin())};
  }

  Error read_headers() {
    std::string_view line;
    while (lines_.next(line)) {
      if (line.empty()) return {};
      if (message_.fields.size() == SIPMSG_MAX_HEADERS) return error(ErrorCode::too_many_headers);
      for (std::size_t i = find_control(line); i < line.size(); i = find_control(line, i + 1)) {
        if (line[i] != '\t') return error();
      }
      if (!read_header(line)) return error();
    }
    return error();
  }

  /// `prefix.Name:;parameter=value Value` (RFC 3862 3.6).
  bool read_header(std::string_view line) {
    const std::size_t colon = line.find(':');
    if (colon == std::string_view::npos || colon == 0) return false;
    CpimField field;
    field.name = trim(line.substr(0, colon));
    std::string_view rest = line.substr(colon + 1);
    if (rest.substr(0, 1) == ";") {
      const std::size_t end = end_of_parameters(rest);
      field.parameters = Parameters(rest.substr(1, end - 1));
      rest.remove_prefix(end);
    }
    field.value = trim(rest);
    if (equal_ignoring_case(field.name, "NS")) {
      field.name_space = cpim_namespace;
      message_.fields.push_back(field);
      return take_namespace(field.value);
    }
    resolve_prefix(field);
    message_.fields.push_back(field);
    return take(field);
  }

  static std::size_t end_of_parameters(std::string_view text) {
    std::size_t i = 0;
    while (i < text.size() && !is_blank(text[i])) {
      const std::size_t quote = text[i] == '"' ? closing_quote(text, i) : i;
      i = std::min(quote, text.size() - 1) + 1;
    }
    return i;
  }

  void resolve_prefix(CpimField& field) const {
    const std::size_t dot = field.name.find('.');
    const bool has_prefix = dot != std::string_view::npos;
    const std::string_view prefix = has_prefix ? field.name.substr(0, dot) : std::string_view();
    for (std::size_t i = namespaces_.size(); i-- > 0;) {
      if (namespaces_[i].prefix != prefix) continue;
      field.name_space = namespaces_[i].uri;
      if (has_prefix) field.name.remove_prefix(dot + 1);
      return;
    }
  }

  bool take(const CpimField& field) {
    const auto is_named = [&field](std::string_view name) {
      return equal_ignoring_case(field.name, name);
    };
    if (field.name_space == imdn_namespace) {
      if (is_named("Message-ID") && message_.message_id.empty()) {
        message_.message_id = field.value;
      }
      if (is_named("Disposition-Notification")) take_request(field.value);
      if (is_named("Original-To")) {
        const auto address = split_name_and_uri(field.value);
        if (!address) return false;
        message_.original_to = address->uri;
      }
      return true;
    }
    if (field.name_space != cpim_namespace) return true;
    if (is_named("From"))
      return message_.from.uri.empty() ? take_address(field, message_.from) : true;
    if (is_named("To")) return take_address(field, message_.to.emplace_back());
    if (is_named("cc")) return take_address(field, message_.cc.emplace_back());
    if (is_named("DateTime") && message_.date_time.empty()) message_.date_time = field.value;
    if (is_named("Subject")) {
      message_.subjects.push_back({decode_cpim_text(field.value),
                                   field.parameters.find("lang").value_or(std::string_view())});
    }
    return true;
  }

  static bool take_address(const CpimField& field, CpimAddress& address) {
    const auto parts = split_name_and_uri(field.value);
    if (!parts) return false;
    address.uri = parts->uri;
    const std::string_view name = parts->name;
    address.name = decode_cpim_text(is_quoted(name) ? name.substr(1, name.size() - 2) : name);
    return true;
  }

  /// `NS: prefix <URI>`; without a prefix it is for names that have none (RFC 3862 4.6).
  bool take_namespace(std::string_view value) {
    const auto parts = split_name_and_uri(value);
    if (!parts) return false;
    namespaces_.push_back({parts->name, parts->uri});
    return true;
  }

  void take_request(std::string_view value) {
    for (const Parameter& wanted : Parameters(value, ',')) {
      const std::string_view name = trim(wanted.name.substr(0, wanted.name.find(';')));
      NotificationRequest& request = message_.request;
      if (equal_ignoring_case(name, "positive-delivery")) request.positive_delivery = true;
      if (equal_ignoring_case(name, "negative-delivery")) request.negative_delivery = true;
      if (equal_ignoring_case(name, "display")) request.display = true;
      if (equal_ignoring_case(name, "processing")) request.processing = true;
    }
  }

  Error read_content() {
    PartHead head;
    if (!read_part_head(lines_, head)) return error();
    message_.content_type = head.content_type;
    message_.transfer_encoding = head.transfer_encoding;
    message_.content = lines_.rest();
    // RFC 3862 knows no Content-Length: the enclosed message goes on to the end. Senders write it
    // all the same, some of them with the number of characters, so it must not cut a text short. It
    // is believed where it leaves out nothing but a line end.
    const auto length = parse_digits(head.content_length, message_.content.size());
    if (length && trim(message_.content.substr(*length)).empty()) {
      message_.content = message_.content.substr(0, *length);
    }
    return {};
  }

  LineReader lines_;
  CpimMessage message_;
  // Later ones win. The prefix imdn is used by some without being declared.
  std::vector<Namespace> namespaces_{{"", cpim_namespace}, {"imdn", imdn_namespace}};
};

}  // namespace detail

/// Reads an envelope, not what is enclosed. Errors: `bad_cpim`, `too_many_headers`.
inline Result<CpimMessage> parse_cpim(std::string_view body) {
  detail::CpimReader reader(body);
  if (const Error error = reader.read()) return error;
  return reader.take_message();
}

/// What an envelope begins with. All texts are the caller's and are checked.
struct CpimStart {
  std::string_view from;  ///< a URI
  std::string_view from_name = {};
  std::string_view to;  ///< a URI
  std::string_view to_name = {};
  std::string_view subject = {};
  std::int64_t date_s = 0;           ///< when it was written, in seconds since 1970
  std::string_view message_id = {};  ///< a token that names the message, needed for `request`
  NotificationRequest request = {};
  std::string_view content_type = "text/plain;charset=utf-8";  ///< of what is enclosed
};

namespace detail {

inline void write_cpim_text(Output& out, std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const Utf8Piece piece = first_utf8_piece(text.substr(i));
    const auto octet = static_cast<unsigned char>(text[i]);
    if (!piece.well_formed) {
      out.raw(replacement_character);
    } else if (octet < 0x20 || octet == 0x7f) {
      const char escaped[] = {
          '\\', 'u', '0', '0', "0123456789abcdef"[octet >> 4], "0123456789abcdef"[octet & 15]};
      out.raw({escaped, sizeof escaped});
    } else {
      if (octet == '"' || octet == '\\') out.raw("\\");
      out.raw(text.substr(i, piece.size));
    }
    i += piece.size;
  }
}

inline void write_cpim_address(Output& out, std::string_view header, std::string_view name,
                               std::string_view uri) {
  out.raw(header).raw(": ");
  if (!name.empty()) {
    out.raw("\"");
    write_cpim_text(out, name);
    out.raw("\" ");
  }
  if (uri.find_first_of("<>") != std::string_view::npos) out.fail(ErrorCode::forbidden_octet);
  out.raw("<").word(uri).raw(">\r\n");
}

inline void write_notification_request(Output& out, const NotificationRequest& request) {
  std::string_view separator = "imdn.Disposition-Notification: ";
  const auto add = [&out, &separator](bool wanted, std::string_view name) {
    if (wanted) out.raw(std::exchange(separator, ", ")).raw(name);
  };
  add(request.positive_delivery, "positive-delivery");
  add(request.negative_delivery, "negative-delivery");
  add(request.processing, "processing");
  add(request.display, "display");
  out.raw("\r\n");
}

inline void write_cpim_head(Output& out, const CpimStart& start) {
  if (!is_writable_date(start.date_s) || (start.request.any() && start.message_id.empty())) {
    out.fail(ErrorCode::bad_argument);
    return;
  }
  write_cpim_address(out, "From", start.from_name, start.from);
  write_cpim_address(out, "To", start.to_name, start.to);
  out.raw("DateTime: ").raw(format_date_time(start.date_s)).raw("\r\n");
  if (!start.subject.empty()) {
    out.raw("Subject: ");
    write_cpim_text(out, start.subject);
    out.raw("\r\n");
  }
  if (!start.message_id.empty()) {
    out.raw("NS: imdn <").raw(imdn_namespace).raw(">\r\n");
    out.raw("imdn.Message-ID: ").token(start.message_id).raw("\r\n");
  }
  if (start.request.any()) write_notification_request(out, start.request);
  out.raw("\r\n");
}

}  // namespace detail

/// Writes a body of type message/cpim. Errors: `bad_argument` for a request without message_id and
/// for a date before 1970 or after 9999; `forbidden_octet`, `bad_token`.
inline void write_cpim(Output& out, const CpimStart& start, std::string_view body) {
  detail::write_cpim_head(out, start);
  write_body(out, start.content_type, body);
}

/// Writes the body, of type message/cpim, of the message that reports what became of `received`.
/// It goes to the sender, under its own `message_id` (RFC 5438 7.2.1). Errors: `bad_argument` where
/// `received` lacks Message-ID, From or To, and for a status that does not belong to the type;
/// `forbidden_octet` where what it has cannot be sent back.
inline void write_notification_for(Output& out, const CpimMessage& received, NotificationType type,
                                   NotificationStatus status, std::string_view message_id,
                                   std::int64_t now_s) {
  if (received.message_id.empty() || received.to.empty() || message_id.empty() ||
      !detail::is_writable_date(now_s)) {
    out.fail(ErrorCode::bad_argument);
    return;
  }
  Notification notification;
  notification.type = type;
  notification.status = status;
  notification.message_id = received.message_id;
  notification.date_time =
      received.date_time.empty() ? format_date_time(now_s) : std::string(received.date_time);
  notification.recipient_uri = received.to.front().uri;
  notification.original_recipient_uri = received.original_to;
  constexpr std::size_t longest_escape = 5;  // &amp;
  constexpr std::size_t tags = 512;
  std::string buffer(
      tags + longest_escape *
                 (notification.message_id.size() + notification.date_time.size() +
                  notification.recipient_uri.size() + notification.original_recipient_uri.size()),
      '\0');
  Output document(&buffer[0], buffer.size());
  write_notification(document, notification);
  if (document.error()) {
    out.fail(document.error().code);
    return;
  }
  CpimStart start;
  start.from = received.to.front().uri;
  start.to = received.from.uri;
  start.date_s = now_s;
  start.message_id = message_id;
  detail::write_cpim_head(out, start);
  write_header(out, HeaderId::content_disposition, "notification");
  write_body(out, notification_media_type, document.written());
}

// All of it together.

/// What a body turned out to be, from what is best to have to what is least.
enum class ContentKind : std::uint8_t {
  text,          ///< something to read: `text`
  html,          ///< the same, with its tags
  composing,     ///< somebody is typing: `composing`
  notification,  ///< what became of a message: `notification`
  other          ///< anything else: `media_type` and `body`
};

/// Lifetime: views into the content type and the body that were read.
struct Content {
  ContentKind kind = ContentKind::other;
  std::string media_type;           ///< type/subtype in lower case, of the innermost part
  std::string text;                 ///< of the kinds text and html: valid UTF-8
  std::string charset;              ///< of the text, as the sender named it; "" where he did not
  bool charset_is_known = true;     ///< false: `text` was read as UTF-8, for want of better
  Composing composing;              ///< of the kind composing
  Notification notification;        ///< of the kind notification
  std::optional<CpimMessage> cpim;  ///< the envelope, if there was one; the outermost
  std::string_view body;            ///< the octets of the innermost part as they came

  /// Whether the sender asks to be told that this message arrived, and can be told. What became of
  /// a notification is never told, whatever it asks (RFC 5438).
  bool wants_delivery_notification() const {
    return kind != ContentKind::notification && cpim && cpim->request.positive_delivery &&
           !cpim->message_id.empty() && !cpim->from.uri.empty() && !cpim->to.empty();
  }
};

namespace detail {

/// How many envelopes and multiparts are looked into; what is deeper is `other`.
inline constexpr int max_content_depth = 4;

inline Error read_part(std::string_view content_type, std::string_view encoding,
                       std::string_view body, int depth, Content& content);

inline std::size_t offset_in(std::string_view whole, std::string_view part) {
  return static_cast<std::size_t>(part.data() - whole.data());
}

/// An error in an enclosed part, seen from the body around it. A bad Content-Type in there is a
/// mistake of the body around it.
inline Error enclosed_error(Error error, std::string_view body, std::string_view content_type,
                            std::string_view part, ErrorCode code) {
  if (error.code != ErrorCode::bad_media_type) return error.at(offset_in(body, part));
  return Error(code, error.place).at(offset_in(body, content_type));
}

inline Error read_enveloped(std::string_view body, int depth, Content& content) {
  auto message = parse_cpim(body);
  if (!message) return message.error();
  const Error error = read_part(message->content_type, message->transfer_encoding, message->content,
                                depth + 1, content);
  if (error) {
    return enclosed_error(error, body, message->content_type, message->content,
                          ErrorCode::bad_cpim);
  }
  content.cpim = std::move(message).value();
  return {};
}

/// The line between two parts (RFC 2046 5.1.1). `begin` is where the part before it ends: the line
/// end before the delimiter belongs to the delimiter.
struct Delimiter {
  bool found = false;
  bool is_last = false;
  std::size_t begin = 0;
  std::size_t end = 0;
};

inline Delimiter find_delimiter(std::string_view body, std::string_view boundary,
                                std::size_t begin) {
  Delimiter delimiter;
  for (std::size_t line = begin; line < body.size();) {
    const std::size_t next = std::min(body.find('\n', line), body.size() - 1) + 1;
    std::string_view text = body.substr(line, next - line);
    const bool matches = text.substr(0, 2) == "--" && text.substr(2, boundary.size()) == boundary;
    if (matches) {
      text.remove_prefix(2 + boundary.size());
      delimiter.is_last = text.substr(0, 2) == "--";
      if (delimiter.is_last) text.remove_prefix(2);
      delimiter.found = trim(text).empty();
    }
    if (delimiter.found) {
      delimiter.begin = line;
      if (delimiter.begin > begin) --delimiter.begin;
      if (delimiter.begin > begin && body[delimiter.begin - 1] == '\r') --delimiter.begin;
      delimiter.end = next;
      return delimiter;
    }
    line = next;
  }
  delimiter.begin = delimiter.end = body.size();
  delimiter.is_last = true;
  return delimiter;
}

inline Error read_multipart_part(std::string_view part, int depth, Content& content) {
  LineReader lines(part);
  PartHead head;
  if (!read_part_head(lines, head)) return ErrorCode::bad_multipart;
  const Error error =
      read_part(head.content_type, head.transfer_encoding, lines.rest(), depth + 1, content);
  if (!error) return {};
  return enclosed_error(error, part, head.content_type, lines.rest(), ErrorCode::bad_multipart);
}

/// Takes the first part that is text or else the best there is. Parts that cannot be read are
/// passed over, unless there is no other.
inline Error read_multipart(const MediaType& media, std::string_view body, int depth,
                            Content& content) {
  const std::string boundary =
      unquote(media.parameters.find("boundary").value_or(std::string_view()));
  constexpr std::size_t longest_boundary = 70;  // RFC 2046 5.1.1
  Delimiter delimiter = find_delimiter(body, boundary, 0);
  if (boundary.empty() || boundary.size() > longest_boundary || !delimiter.found ||
      delimiter.is_last) {
    return ErrorCode::bad_multipart;
  }
  Error first_error;
  bool has_part = false;
  while (!delimiter.is_last && !(has_part && content.kind == ContentKind::text)) {
    const std::size_t begin = delimiter.end;
    delimiter = find_delimiter(body, boundary, begin);
    Content candidate;
    const Error error =
        read_multipart_part(body.substr(begin, delimiter.begin - begin), depth, candidate);
    if (error) {
      if (!first_error) first_error = error.at(begin);
      continue;
    }
    if (!has_part || candidate.kind < content.kind) content = std::move(candidate);
    has_part = true;
  }
  return has_part ? Error() : first_error;
}

inline void read_text(const MediaType& media, std::string_view body, Content& content) {
  content.charset = unquote(media.parameters.find("charset").value_or(std::string_view()));
  auto text = to_utf8(body, content.charset);
  content.charset_is_known = text.has_value();
  content.text = text ? *std::move(text) : *to_utf8(body);
}

/// In SIP and in a part alike, what has no type is text (RFC 2045 5.2).
inline Error read_part(std::string_view content_type, std::string_view encoding,
                       std::string_view body, int depth, Content& content) {
  const auto media = parse_media_type(content_type.empty() ? "text/plain" : content_type);
  if (!media) return {ErrorCode::bad_media_type, media.error().place};
  content.kind = ContentKind::other;
  content.body = body;
  content.media_type = to_lower(media->type) + "/" + to_lower(media->subtype);
  const bool is_encoded = !encoding.empty() && !equal_ignoring_case(encoding, "7bit") &&
                          !equal_ignoring_case(encoding, "8bit") &&
                          !equal_ignoring_case(encoding, "binary");
  if (is_encoded) return {};
  if (media->is("text", "plain") || media->is("text", "html")) {
    content.kind = media->is("text", "html") ? ContentKind::html : ContentKind::text;
    read_text(*media, body, content);
  } else if (content.media_type == composing_media_type) {
    auto composing = parse_composing(body);
    if (!composing) return composing.error();
    content.kind = ContentKind::composing;
    content.composing = std::move(composing).value();
  } else if (content.media_type == notification_media_type) {
    auto notification = parse_notification(body);
    if (!notification) return notification.error();
    content.kind = ContentKind::notification;
    content.notification = std::move(notification).value();
  } else if (depth < max_content_depth && content.media_type == cpim_media_type) {
    return read_enveloped(body, depth, content);
  } else if (depth < max_content_depth && equal_ignoring_case(media->type, "multipart")) {
    return read_multipart(*media, body, depth, content);
  }
  return {};
}

}  // namespace detail

/// Reads the body of a message by its Content-Type; "" means text/plain. Both must stay where they
/// are for as long as the views in the result are used.
///
/// Errors: `bad_media_type` with the offset in the content type; `bad_cpim`, `too_many_headers`,
/// `bad_multipart` and `bad_xml` with the offset in the body. What is merely of no known type is no
/// error, but of kind `other`.
inline Result<Content> read_content(std::string_view content_type, std::string_view body) {
  Content content;
  if (const Error error = detail::read_part(content_type, {}, body, 0, content)) return error;
  return content;
}
inline Result<Content> read_content(const MessageView& message) {
  return read_content(message.header(HeaderId::content_type), message.body());
}

}  // namespace sipmsg
