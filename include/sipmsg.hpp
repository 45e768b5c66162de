// sipmsg 0.1.0: SIP MESSAGE (RFC 3428) in one C++17 header, on one libuv loop.
//
// SPDX-License-Identifier: MIT
// Copyright (c) 2026 the sipmsg authors
// The licence stands at the end of this file; keep it there when you copy the file.
//
// To use it, put this file beside yours, write #include "sipmsg.hpp", and build with
//
//     c++ -std=c++17 -O2 yours.cpp $(pkg-config --cflags --libs libuv)
//
// With -DSIPMSG_NO_UV it ends before loop.hpp and needs the standard library only.
//
// generated: edit src/sipmsg and run tools/amalgamate.py. The parts, in the order of this file:
//
//   config.hpp        the version, and the few knobs that are fixed at compile time
//   error.hpp         the one list of errors; a value or an error
//   function_ref.hpp  a callable lent for one call
//   text.hpp          characters, case, tokens, quoted strings, numbers, escapes
//   encoding.hpp      any octets as text: base64, hexadecimal
//   uri.hpp           sip, sips and tel URIs: parse, print, compare, address-of-record
//   address.hpp       numeric IP addresses, transports, the flow a message came over
//   header.hpp        typed headers: Via, From, To, Contact, CSeq and the rest
//   message.hpp       one message: parsed in one pass over borrowed bytes, or owned
//   stream.hpp        where a message begins and ends on TCP; keep-alive
//   writer.hpp        new requests and responses; forwarding as a list of edits
//   content.hpp       what a body says: text, CPIM, is-composing, delivery notices
//   hash.hpp          MD5, SHA-256, SHA-512-256
//   digest.hpp        who sent it: challenges, credentials, nonces
//   ini.hpp           Yate's configuration grammar, every value with file and line
//   settings.hpp      the keys of the configuration files, their meaning and defaults
//   pool.hpp          memory that is used again: keyed index, slabs, blocks
//   timer.hpp         deadlines in queues by duration, in anybody's time
//   registrar.hpp     who can be reached where, and until when
//   parameters.hpp    a message as handlers see it, by name; what they change
//   routing.hpp       users, alternatives, and the chain of handlers that decides
//   access.hpp        whose domains, who sent it, and may he speak under that name
//   alteration.hpp    what handlers' changes make of a message and its answer
//   transaction.hpp   one request and its answers, sent again until they arrive
//   login.hpp         a client's side of the password question
//   outgoing.hpp      a request to be sent, and what became of it
//   locate.hpp        where a URI's host is: SRV records, addresses, in the order to be tried
//   agent.hpp         the two ends: sends requests, receives them, answers
//   registration.hpp  a client that stays registered
//   relay.hpp         one MESSAGE to every binding, and the best answer back
//   proxy.hpp         the server's decisions: register, relay, answer, refuse
//   loop.hpp          handles that close cleanly, the clock, the one timer
//   files.hpp         whole files, read, and replaced in one step
//   udp.hpp           datagrams in batches
//   tcp.hpp           listeners, connections, reuse, back-pressure
//   transport.hpp     all sockets of one server: what goes out through which
//   offload.hpp       work on the thread pool, answers in order
//   dns.hpp           names looked up by the system, in the pool
//   endpoint.hpp      Endpoint: sends and receives messages
//   server.hpp        Server: an Endpoint with registrar, routing and configuration

#ifndef SIPMSG_HPP
#define SIPMSG_HPP

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

// ========================================== config.hpp ==========================================

// config: the version, and the few knobs that are fixed when the header is compiled.
//
// Everything that can be decided at run time is an option of a class instead. Define a knob before
// the first include, and define it alike in every file of one program.

/// The version, as three numbers, as text, and as one number that compares (1.2.3 = 10203).
#define SIPMSG_VERSION_MAJOR 0
#define SIPMSG_VERSION_MINOR 1
#define SIPMSG_VERSION_PATCH 0
#define SIPMSG_VERSION "0.1.0"
#define SIPMSG_VERSION_NUMBER \
  (SIPMSG_VERSION_MAJOR * 10000 + SIPMSG_VERSION_MINOR * 100 + SIPMSG_VERSION_PATCH)

/// How many header fields one message may have; a message with more is refused as
/// `too_many_headers`. The index of a MessageView takes ten octets for each.
#ifndef SIPMSG_MAX_HEADERS
#define SIPMSG_MAX_HEADERS 128
#endif

// SIPMSG_NO_UV, when defined, leaves out everything that needs libuv: what remains is the parser,
// the writer, and the whole protocol core, driven by the caller's clock and sockets.

// SIPMSG_NO_SRV, when defined, leaves out the look-up of SRV records, for systems whose C library
// has no res_query. Servers are then found by their addresses alone.

// ========================================== error.hpp ===========================================

// error: the one list of what can go wrong, and the type that carries either a value or an error.
//
// sipmsg throws nothing. What can fail returns an Error, or a Result with a value in it, and both
// are [[nodiscard]]. An Error is two small numbers: a code from the list below and a place, which
// is a byte offset into the text that was read, or libuv's status for the codes of the network.

// clang-format off
#define SIPMSG_ERROR_LIST(X)                                                                      \
  X(none,                     "no error")                                                         \
  /* the frame of a message */                                                                    \
  X(incomplete,               "the message is not complete yet")                                  \
  X(empty,                    "there is nothing to read")                                         \
  X(too_large,                "the message is larger than the limit")                             \
  X(too_many_headers,         "the message has more header fields than the limit")                \
  X(bad_line_end,             "a line does not end in CR LF")                                     \
  X(missing_blank_line,       "the blank line after the headers is missing")                      \
  X(content_length_beyond,    "Content-Length is larger than the body that came")                 \
  X(bad_content_length,       "Content-Length is not a number")                                   \
  X(conflicting_content_length, "several Content-Length headers disagree")                        \
  X(missing_content_length,   "Content-Length is required on a stream")                           \
  /* the start line */                                                                            \
  X(bad_start_line,           "the first line is neither a request line nor a status line")       \
  X(bad_method,               "the method is not a token")                                        \
  X(bad_version,              "the SIP version is not 2.0")                                       \
  X(bad_status_code,          "the status code is not a number from 100 to 699")                  \
  /* headers */                                                                                   \
  X(bad_header_line,          "a header line has no name or no colon")                            \
  X(missing_via,              "Via is missing")                                                   \
  X(missing_from,             "From is missing")                                                  \
  X(missing_to,               "To is missing")                                                    \
  X(missing_call_id,          "Call-ID is missing")                                               \
  X(missing_cseq,             "CSeq is missing")                                                  \
  X(duplicate_header,         "a header that may appear once appears twice")                      \
  X(cseq_method_mismatch,     "the method in CSeq differs from the request's")                    \
  X(bad_via,                  "a Via header is malformed")                                        \
  X(bad_name_addr,            "a From, To, Contact or Route value is malformed")                  \
  X(bad_cseq,                 "CSeq is malformed")                                                \
  X(bad_call_id,              "Call-ID is malformed")                                             \
  X(bad_number,               "a number is malformed or out of range")                            \
  X(bad_quoted_string,        "a quoted string is not closed")                                    \
  X(bad_parameter,            "a parameter is malformed")                                         \
  X(bad_token,                "a token holds a character that is not allowed")                    \
  X(bad_date,                 "a date is malformed")                                              \
  X(bad_credentials,          "an authentication header is malformed")                            \
  X(bad_media_type,           "Content-Type is malformed")                                        \
  X(bad_contact_star,         "Contact: * stands with other contacts or with Expires above 0")    \
  /* URIs */                                                                                      \
  X(bad_uri,                  "the URI is malformed")                                             \
  X(bad_host,                 "the host is malformed")                                            \
  X(bad_port,                 "the port is not a number from 1 to 65535")                         \
  X(bad_escape,               "a % is not followed by two hexadecimal digits")                    \
  X(unsupported_scheme,       "the URI scheme is not served")                                     \
  X(unsupported_transport,    "the transport is not served")                                      \
  /* writing */                                                                                   \
  X(forbidden_octet,          "CR, LF, NUL or a misplaced blank cannot be written")               \
  X(no_room,                  "the output does not fit in the buffer")                            \
  /* content */                                                                                   \
  X(bad_cpim,                 "a message/cpim body is malformed")                                 \
  X(bad_multipart,            "a multipart body is malformed")                                    \
  X(bad_xml,                  "an XML document is malformed, or larger than the limit")           \
  /* running */                                                                                   \
  X(bad_argument,             "an argument is out of its range")                                  \
  X(bad_address,              "the address is not a numeric IP address with port")                \
  X(bad_configuration,        "the configuration has errors")                                     \
  X(limit_reached,            "a limit was reached")                                              \
  X(unknown_host,             "no address was found for the host")                                \
  X(bad_dns_answer,           "the answer of the DNS is malformed")                               \
  X(gone,                     "the transaction or connection is gone")                            \
  X(timeout,                  "no answer came in time")                                           \
  X(closed,                   "closed while waiting")                                             \
  X(cancelled,                "cancelled while waiting")                                          \
  X(file,                     "the file cannot be read or written")                               \
  X(network,                  "the network refused")
// clang-format on

namespace sipmsg {

/// What went wrong. One list for the whole header; `error_name` and `error_text` come from it too.
enum class ErrorCode : std::uint8_t {
#define SIPMSG_ERROR_ENUMERATOR(name, text) name,
  SIPMSG_ERROR_LIST(SIPMSG_ERROR_ENUMERATOR)
#undef SIPMSG_ERROR_ENUMERATOR
};

/// The enumerator's own name, for logs and tests. Never null.
inline const char* error_name(ErrorCode code) {
  static constexpr const char* names[] = {
#define SIPMSG_ERROR_NAME(name, text) #name,
      SIPMSG_ERROR_LIST(SIPMSG_ERROR_NAME)
#undef SIPMSG_ERROR_NAME
  };
  return names[static_cast<std::uint8_t>(code)];
}

/// One sentence without a full stop, fit for a reason phrase. Never null.
inline const char* error_text(ErrorCode code) {
  static constexpr const char* texts[] = {
#define SIPMSG_ERROR_TEXT(name, text) text,
      SIPMSG_ERROR_LIST(SIPMSG_ERROR_TEXT)
#undef SIPMSG_ERROR_TEXT
  };
  return texts[static_cast<std::uint8_t>(code)];
}
#undef SIPMSG_ERROR_LIST

/// An error, or the absence of one: false when all is well.
///
/// `place` is the byte offset into the text that was read, for the codes of parsers; libuv's
/// negative status for `network` and `file`; 0 otherwise.
struct [[nodiscard]] Error {
  ErrorCode code = ErrorCode::none;
  std::int32_t place = 0;

  constexpr Error() = default;
  constexpr Error(ErrorCode error_code, std::int32_t where = 0) : code(error_code), place(where) {}

  constexpr explicit operator bool() const { return code != ErrorCode::none; }
  const char* name() const { return error_name(code); }
  const char* text() const { return error_text(code); }

  /// The same error, seen from a text in which the one that was read begins at `offset`.
  constexpr Error at(std::size_t offset) const {
    return {code, place + static_cast<std::int32_t>(offset)};
  }
};

/// A value, or the error that kept it from being made. The value exists always (default
/// constructed on error), so that reading it by mistake is harmless; ask `ok()` first.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}
  Result(Error error) : error_(error) {}
  Result(ErrorCode code, std::int32_t place = 0) : error_(code, place) {}

  bool ok() const { return !error_; }
  explicit operator bool() const { return ok(); }
  Error error() const { return error_; }

  const T& value() const& { return value_; }
  T& value() & { return value_; }
  T&& value() && { return std::move(value_); }
  const T& operator*() const& { return value_; }
  T& operator*() & { return value_; }
  const T* operator->() const { return &value_; }
  T* operator->() { return &value_; }

 private:
  T value_{};
  Error error_{};
};

}  // namespace sipmsg

// ======================================= function_ref.hpp =======================================

// function_ref: a callable that is lent to a function for the time of one call.
//
// Where a template would be compiled once for every caller, a function that takes a FunctionRef is
// compiled once. Left out on purpose: keeping what is lent, for which std::function is there.

namespace sipmsg {
namespace detail {

template <class Signature>
class FunctionRef;

/// Lifetime: that of the callable, so it is an argument and never a member.
template <class Returned, class... Arguments>
class FunctionRef<Returned(Arguments...)> {
 public:
  template <class Callable>
  FunctionRef(const Callable& callable) : callable_(&callable), call_(call<Callable>) {}

  Returned operator()(Arguments... arguments) const {
    return call_(callable_, std::forward<Arguments>(arguments)...);
  }

 private:
  template <class Callable>
  static Returned call(const void* callable, Arguments... arguments) {
    return (*static_cast<const Callable*>(callable))(std::forward<Arguments>(arguments)...);
  }

  const void* callable_;
  Returned (*call_)(const void*, Arguments...);
};

}  // namespace detail
}  // namespace sipmsg

// =========================================== text.hpp ===========================================

// text: characters, case, tokens, quoted strings, numbers, escapes, parameter lists.
//
// The grammar of RFC 3261 section 25.1 starts here. All functions take string_views into somebody
// else's bytes and return views into the same bytes; the few that return std::string say so. A NUL
// is an octet like any other, and octets above 127 pass wherever UTF-8 is allowed.

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

// ========================================= encoding.hpp =========================================

// encoding: any octets written as text: base64 (RFC 4648 4) and hexadecimal digits.
//
// Bodies that are no text travel so to applications and come back so. Reading is strict: what is
// not exactly such a text is an error, never half a body.

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

// =========================================== uri.hpp ============================================

// uri: sip, sips and tel URIs, read as views, compared, and brought to the form that names a user.
//
// RFC 3261 19.1 (sip and sips), RFC 3966 (tel). A URI of another scheme is kept as text: whoever
// must act on it answers 416. Nothing is decoded while reading: an escape is decoded once, by the
// one who uses the value.

namespace sipmsg {

enum class UriScheme : std::uint8_t { other, sip, sips, tel };

/// A URI in its parts, each as written. Lifetime: views into the text that was parsed.
struct UriView {
  std::string_view text;         ///< the whole URI
  std::string_view scheme_text;  ///< "sip", in the case it was written
  std::string_view user;         ///< escapes intact; for tel the number; may be empty
  std::string_view password;     ///< without the colon
  std::string_view host;  ///< an IPv6 address without its brackets; for other schemes the rest
  std::string_view parameters;  ///< after the first ';'
  std::string_view headers;     ///< after the '?'
  std::uint16_t port = 0;       ///< 0 where none is written
  UriScheme scheme = UriScheme::other;
  bool has_user = false;
  bool has_password = false;

  /// The value of a URI parameter, "" for one without value, nothing where it is absent.
  std::optional<std::string_view> parameter(std::string_view name) const {
    return Parameters(parameters).find(name);
  }
};

/// True for an IPv6 address's octets; whether they make an address is for parse_ip to say.
constexpr bool is_ipv6_text(std::string_view text) {
  if (text.find(':') == std::string_view::npos) return false;
  for (char c : text) {
    if (!is_char(c, char_hex) && c != ':' && c != '.') return false;
  }
  return true;
}

/// host[:port], as it stands in a URI or a Via. RFC 3261 25.1 hostport.
struct HostPort {
  std::string_view host;   ///< without brackets
  std::uint16_t port = 0;  ///< 0 where none is written
  std::size_t length = 0;  ///< how many octets of the text it took
};

/// Reads a host and perhaps a port from the beginning of `text`, and stops where neither goes on.
/// Errors: `bad_host`, `bad_port`, at the offset where it went wrong.
inline Result<HostPort> parse_host_port(std::string_view text, bool blanks_around_colon = false) {
  HostPort result;
  std::size_t i = 0;
  if (!text.empty() && text[0] == '[') {
    const std::size_t close = text.find(']');
    if (close == std::string_view::npos) return {ErrorCode::bad_host, 0};
    result.host = text.substr(1, close - 1);
    if (!is_ipv6_text(result.host)) return {ErrorCode::bad_host, 1};
    i = close + 1;
  } else {
    i = skip_class(text, char_host);
    result.host = text.substr(0, i);
    if (i == 0) return {ErrorCode::bad_host, 0};
  }
  result.length = i;
  const auto skip_blanks = [&] {
    if (blanks_around_colon) i = skip_class(text, char_blank, i);
  };
  skip_blanks();
  if (i >= text.size() || text[i] != ':') return result;
  ++i;
  skip_blanks();
  const std::size_t digits = i;
  i = skip_class(text, char_digit, i);
  const auto port = parse_digits(text.substr(digits, i - digits), 65535);
  if (!port || *port == 0) return {ErrorCode::bad_port, static_cast<std::int32_t>(digits)};
  result.port = static_cast<std::uint16_t>(*port);
  result.length = i;
  return result;
}

namespace detail {

/// The offset of the first octet that is neither of the classes nor part of an escape, or npos.
inline std::size_t find_not_allowed(std::string_view text, std::uint8_t classes) {
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (is_char(text[i], classes)) continue;
    if (text[i] != '%' || i + 2 >= text.size() || hex_value(text[i + 1]) < 0 ||
        hex_value(text[i + 2]) < 0) {
      return i;
    }
    i += 2;
  }
  return std::string_view::npos;
}

inline Error error_in(std::string_view whole, std::string_view part, std::size_t offset,
                      ErrorCode code) {
  return {code, static_cast<std::int32_t>(part.data() - whole.data()) +
                    static_cast<std::int32_t>(offset)};
}

inline Error check_octets(std::string_view whole, std::string_view part, std::uint8_t classes) {
  const std::size_t bad = find_not_allowed(part, classes);
  if (bad == std::string_view::npos) return {};
  const bool escape = part[bad] == '%';
  return error_in(whole, part, bad, escape ? ErrorCode::bad_escape : ErrorCode::bad_uri);
}

/// uri-parameters (RFC 3261 25.1): names and values of param-unreserved octets and escapes.
inline Error check_uri_parameters(const UriView& uri) {
  std::size_t begin = 0;
  const std::string_view text = uri.parameters;
  while (begin <= text.size()) {
    const std::size_t end = std::min(text.find(';', begin), text.size());
    const std::string_view piece = text.substr(begin, end - begin);
    const std::size_t equals = std::min(piece.find('='), piece.size());
    if (equals == 0) return error_in(uri.text, piece, 0, ErrorCode::bad_uri);
    if (auto error = check_octets(uri.text, piece.substr(0, equals), char_parameter)) return error;
    if (equals < piece.size()) {
      if (auto error = check_octets(uri.text, piece.substr(equals + 1), char_parameter)) {
        return error;
      }
    }
    begin = end + 1;
  }
  return {};
}

inline Error parse_userinfo(UriView& uri, std::string_view userinfo) {
  uri.has_user = true;
  const std::size_t colon = userinfo.find(':');
  uri.user = userinfo.substr(0, colon);
  if (uri.user.empty()) return error_in(uri.text, userinfo, 0, ErrorCode::bad_uri);
  if (colon != std::string_view::npos) {
    uri.has_password = true;
    uri.password = userinfo.substr(colon + 1);
    if (auto error = check_octets(uri.text, uri.password, char_user)) return error;
  }
  return check_octets(uri.text, uri.user, char_user);
}

inline Error parse_sip_uri(UriView& uri, std::string_view rest) {
  // '@' cannot stand unescaped in any part, so the first one ends the userinfo, whatever of
  // ";?/" that holds (RFC 4475 3.1.1.9).
  const std::size_t at = rest.find('@');
  if (at != std::string_view::npos) {
    if (auto error = parse_userinfo(uri, rest.substr(0, at))) return error;
    rest.remove_prefix(at + 1);
  }
  const auto host_port = parse_host_port(rest);
  if (!host_port)
    return host_port.error().at(static_cast<std::size_t>(rest.data() - uri.text.data()));
  uri.host = host_port->host;
  uri.port = host_port->port;
  rest.remove_prefix(host_port->length);
  if (!rest.empty() && rest[0] == ';') {
    const std::size_t end = std::min(rest.find('?'), rest.size());
    uri.parameters = rest.substr(1, end - 1);
    if (auto error = check_uri_parameters(uri)) return error;
    rest.remove_prefix(end);
  }
  if (rest.empty()) return {};
  if (rest[0] != '?') return error_in(uri.text, rest, 0, ErrorCode::bad_uri);
  uri.headers = rest.substr(1);
  if (uri.headers.empty()) return error_in(uri.text, rest, 0, ErrorCode::bad_uri);
  return check_octets(uri.text, uri.headers, char_user | char_parameter);
}

constexpr bool is_tel_separator(char c) { return c == '-' || c == '.' || c == '(' || c == ')'; }

inline Error parse_tel_uri(UriView& uri, std::string_view rest) {
  const std::size_t end = std::min(rest.find(';'), rest.size());
  uri.user = rest.substr(0, end);
  uri.has_user = true;
  for (std::size_t i = 0; i < uri.user.size(); ++i) {
    const char c = uri.user[i];
    const bool allowed =
        is_char(c, char_hex) || is_tel_separator(c) || c == '*' || c == '#' || (c == '+' && i == 0);
    if (!allowed) return error_in(uri.text, uri.user, i, ErrorCode::bad_uri);
  }
  if (uri.user.empty()) return error_in(uri.text, rest, 0, ErrorCode::bad_uri);
  if (end == rest.size()) return {};
  uri.parameters = rest.substr(end + 1);
  return check_uri_parameters(uri);
}

inline Error parse_other_uri(UriView& uri, std::string_view rest) {
  uri.host = rest;
  if (rest.empty()) return {ErrorCode::bad_uri, static_cast<std::int32_t>(uri.text.size())};
  for (std::size_t i = 0; i < rest.size(); ++i) {
    const auto octet = static_cast<unsigned char>(rest[i]);
    const bool allowed =
        octet > 0x20 && octet != 0x7f && octet != '<' && octet != '>' && octet != '"';
    if (!allowed) return error_in(uri.text, rest, i, ErrorCode::bad_uri);
  }
  return {};
}

inline UriScheme uri_scheme(std::string_view text) {
  if (equal_ignoring_case(text, "sip")) return UriScheme::sip;
  if (equal_ignoring_case(text, "sips")) return UriScheme::sips;
  if (equal_ignoring_case(text, "tel")) return UriScheme::tel;
  return UriScheme::other;
}

}  // namespace detail

/// Reads one URI that fills `text` from first to last octet.
/// Errors: `bad_uri`, `bad_host`, `bad_port`, `bad_escape`, each with the offset in `text`. An
/// unknown scheme is no error.
inline Result<UriView> parse_uri(std::string_view text) {
  UriView uri;
  uri.text = text;
  const std::size_t colon = text.find(':');
  if (colon == std::string_view::npos || colon == 0) return {ErrorCode::bad_uri, 0};
  uri.scheme_text = text.substr(0, colon);
  for (std::size_t i = 0; i < colon; ++i) {
    const char c = text[i];
    // scheme = ALPHA *( ALPHA / DIGIT / "+" / "-" / "." ), RFC 3261 25.1
    const bool letter = to_lower(c) >= 'a' && to_lower(c) <= 'z';
    const bool later = is_digit(c) || c == '+' || c == '-' || c == '.';
    if (!letter && (i == 0 || !later)) return {ErrorCode::bad_uri, static_cast<std::int32_t>(i)};
  }
  uri.scheme = detail::uri_scheme(uri.scheme_text);
  const std::string_view rest = text.substr(colon + 1);
  Error error;
  switch (uri.scheme) {
    case UriScheme::sip:
    case UriScheme::sips: error = detail::parse_sip_uri(uri, rest); break;
    case UriScheme::tel: error = detail::parse_tel_uri(uri, rest); break;
    case UriScheme::other: error = detail::parse_other_uri(uri, rest); break;
  }
  if (error) return error;
  return uri;
}

namespace detail {

/// Equal where an escaped octet equals the octet itself, except for the octets that RFC 3261 calls
/// reserved: "%3B" is not ";" (19.1.4).
inline bool equal_with_escapes(std::string_view a, std::string_view b, bool ignore_case) {
  constexpr std::string_view reserved = ";/?:@&=+$,";
  UnescapedOctets left(a);
  UnescapedOctets right(b);
  std::size_t left_rest = a.size();
  std::size_t right_rest = b.size();
  while (!left.done() && !right.done()) {
    const char x = left.next();
    const char y = right.next();
    if (x != y && !(ignore_case && to_lower(x) == to_lower(y))) return false;
    const bool left_escaped = left_rest - left.remaining() > 1;
    const bool right_escaped = right_rest - right.remaining() > 1;
    left_rest = left.remaining();
    right_rest = right.remaining();
    if (left_escaped != right_escaped && reserved.find(x) != std::string_view::npos) return false;
  }
  return left.done() && right.done();
}

/// Every header of `a` stands in `b` as often. RFC 3261 19.1.4: header components are never
/// ignored, their order is.
inline bool has_all_headers(std::string_view a, std::string_view b) {
  const auto count = [](std::string_view headers, const Parameter& wanted) {
    int n = 0;
    for (const Parameter& header : Parameters(headers, '&')) {
      n += equal_with_escapes(header.name, wanted.name, true) &&
           equal_with_escapes(header.value, wanted.value, false);
    }
    return n;
  };
  for (const Parameter& header : Parameters(a, '&')) {
    if (count(a, header) != count(b, header)) return false;
  }
  return true;
}

/// A parameter that both have must agree; user, ttl, method, maddr and transport must be in both or
/// in none (RFC 3261 19.1.4).
inline bool parameters_agree(std::string_view a, std::string_view b, bool all_must_match) {
  for (const Parameter& parameter : Parameters(a)) {
    const auto other = Parameters(b).find(parameter.name);
    if (other) {
      if (!equal_with_escapes(parameter.value, *other, true)) return false;
      continue;
    }
    if (all_must_match) return false;
    for (std::string_view name : {"user", "ttl", "method", "maddr", "transport"}) {
      if (equal_ignoring_case(parameter.name, name)) return false;
    }
  }
  return true;
}

inline bool is_beyond_use(const UriView& uri) {
  const auto separators =
      std::count_if(uri.text.begin(), uri.text.end(), [](char c) { return c == ';' || c == '&'; });
  return separators > 16 || uri.text.size() > 1024;
}

inline bool equal_tel_numbers(std::string_view a, std::string_view b) {
  std::size_t i = 0;
  std::size_t j = 0;
  while (true) {
    while (i < a.size() && is_tel_separator(a[i])) ++i;
    while (j < b.size() && is_tel_separator(b[j])) ++j;
    if (i == a.size() || j == b.size()) return i == a.size() && j == b.size();
    if (to_lower(a[i++]) != to_lower(b[j++])) return false;
  }
}

}  // namespace detail

/// Whether two URIs mean the same, by RFC 3261 19.1.4; tel by RFC 3966 section 4; other schemes by
/// their text. Not transitive, as the RFC itself notes.
/// Every parameter of one is looked for in the other, so URIs beyond any use (more than 1024 octets
/// or 16 parameters and headers) are compared octet by octet: nobody can buy much time with them.
inline bool equivalent(const UriView& a, const UriView& b) {
  if (a.text == b.text) return true;
  if (detail::is_beyond_use(a) || detail::is_beyond_use(b)) return false;
  if (!equal_ignoring_case(a.scheme_text, b.scheme_text)) return false;
  if (a.scheme == UriScheme::other) return a.host == b.host;
  if (a.scheme == UriScheme::tel) {
    return detail::equal_tel_numbers(a.user, b.user) &&
           detail::parameters_agree(a.parameters, b.parameters, true) &&
           detail::parameters_agree(b.parameters, a.parameters, true);
  }
  return a.has_user == b.has_user && a.has_password == b.has_password && a.port == b.port &&
         equal_ignoring_case(a.host, b.host) && detail::equal_with_escapes(a.user, b.user, false) &&
         detail::equal_with_escapes(a.password, b.password, false) &&
         detail::parameters_agree(a.parameters, b.parameters, false) &&
         detail::parameters_agree(b.parameters, a.parameters, false) &&
         detail::has_all_headers(a.headers, b.headers) &&
         detail::has_all_headers(b.headers, a.headers);
}

/// The address-of-record that a URI names, as text that compares octet by octet: RFC 3261 10.3 step
/// 5 drops all parameters and decodes all escapes; the host is lower case, password, port and
/// headers are gone. "sip:Bob%20B@EXAMPLE.org:5060;user=phone" gives "sip:Bob B@example.org".
inline std::string address_of_record(const UriView& uri) {
  std::string result = to_lower(uri.scheme_text) + ":";
  if (uri.scheme == UriScheme::other) return result.append(uri.host);
  if (uri.scheme == UriScheme::tel) {
    for (char c : uri.user) {
      if (!detail::is_tel_separator(c)) result.push_back(to_lower(c));
    }
    return result;
  }
  if (uri.has_user) result.append(unescape(uri.user)).push_back('@');
  const bool ipv6 = uri.host.find(':') != std::string_view::npos;
  if (ipv6) result.push_back('[');
  result.append(to_lower(uri.host));
  if (ipv6) result.push_back(']');
  return result;
}

/// `text` with everything escaped that cannot stand in a URI's user part (RFC 3261 25.1 user).
inline std::string escape_user(std::string_view text) {
  constexpr char hex[] = "0123456789ABCDEF";
  std::string result;
  for (char c : text) {
    if (is_char(c, char_user)) {
      result.push_back(c);
    } else {
      const auto octet = static_cast<unsigned char>(c);
      result.append({'%', hex[octet >> 4], hex[octet & 15]});
    }
  }
  return result;
}

}  // namespace sipmsg

// ========================================= address.hpp ==========================================

// address: numeric IP addresses, transports, and the flow a message came over.
//
// The core names peers by these values and never touches a socket: a Flow is all it needs to answer
// where a request came from (RFC 3261 18.2.2, RFC 3581) and to reach a binding over the connection
// it registered on (RFC 5626).

namespace sipmsg {

/// An IPv4 or IPv6 address. Octets in network order; an IPv4 address fills the first four.
struct IpAddress {
  std::array<std::uint8_t, 16> octets{};
  std::uint8_t family = 0;  ///< 4, 6, or 0 for none

  bool is_ipv4() const { return family == 4; }
  bool is_ipv6() const { return family == 6; }
  explicit operator bool() const { return family != 0; }
  bool operator==(const IpAddress& other) const {
    return family == other.family && octets == other.octets;
  }
  bool operator!=(const IpAddress& other) const { return !(*this == other); }

  /// The octets that count, as text for hashing: 4, 16 or none.
  std::string_view bytes() const {
    return {reinterpret_cast<const char*>(octets.data()), family == 4   ? std::size_t{4}
                                                          : family == 6 ? std::size_t{16}
                                                                        : std::size_t{0}};
  }
  bool is_unspecified() const {
    for (auto octet : octets) {
      if (octet != 0) return false;
    }
    return true;
  }
  bool is_loopback() const {
    if (family == 4) return octets[0] == 127;
    for (std::size_t i = 0; i < 15; ++i) {
      if (octets[i] != 0) return false;
    }
    return family == 6 && octets[15] == 1;
  }
  /// RFC 1918 and link-local addresses, and unique local ones (RFC 4193).
  bool is_private() const {
    if (family == 6)
      return (octets[0] & 0xfe) == 0xfc || (octets[0] == 0xfe && (octets[1] & 0xc0) == 0x80);
    if (family != 4) return false;
    return octets[0] == 10 || (octets[0] == 172 && (octets[1] & 0xf0) == 16) ||
           (octets[0] == 192 && octets[1] == 168) || (octets[0] == 169 && octets[1] == 254);
  }
};

/// An address with a port; `scope` is the interface index of a link-local IPv6 address, else 0.
struct SocketAddress {
  IpAddress ip;
  std::uint16_t port = 0;
  std::uint32_t scope = 0;

  bool operator==(const SocketAddress& other) const {
    return ip == other.ip && port == other.port && scope == other.scope;
  }
  bool operator!=(const SocketAddress& other) const { return !(*this == other); }
};

enum class Transport : std::uint8_t { udp, tcp };

/// The name as it stands in a Via; `transport_parameter` gives the form of URIs.
inline std::string_view transport_name(Transport transport) {
  return transport == Transport::tcp ? "TCP" : "UDP";
}
inline std::string_view transport_parameter(Transport transport) {
  return transport == Transport::tcp ? "tcp" : "udp";
}
inline std::optional<Transport> parse_transport(std::string_view name) {
  if (equal_ignoring_case(name, "udp")) return Transport::udp;
  if (equal_ignoring_case(name, "tcp")) return Transport::tcp;
  return std::nullopt;
}

/// The way one message came, or is to go: which socket, and who is at the other end.
///
/// `socket` numbers the UDP socket, or the TCP connection (a connection's number is never used
/// again, so a stale flow cannot reach a stranger); 0 asks the transport to choose: the first UDP
/// socket of the address family, or for TCP an open connection to `remote`, else a new one.
struct Flow {
  Transport transport = Transport::udp;
  std::uint32_t socket = 0;
  SocketAddress remote;

  bool operator==(const Flow& other) const {
    return transport == other.transport && socket == other.socket && remote == other.remote;
  }
};

namespace detail {

inline std::optional<IpAddress> parse_ipv4(std::string_view text) {
  IpAddress address;
  address.family = 4;
  for (std::size_t i = 0; i < 4; ++i) {
    const std::size_t dot = i < 3 ? text.find('.') : text.size();
    if (dot == std::string_view::npos || dot > 3) return std::nullopt;
    const auto octet = parse_digits(text.substr(0, dot), 255);
    if (!octet) return std::nullopt;
    address.octets[i] = static_cast<std::uint8_t>(*octet);
    text.remove_prefix(i < 3 ? dot + 1 : dot);
  }
  return address;
}

/// Reads groups of hexadecimal digits into `out`, 16 octets; the one that ends the address may be
/// an IPv4 address. Returns how many octets were written, or nothing.
inline std::optional<std::size_t> parse_ipv6_groups(std::string_view text, bool is_end,
                                                    std::uint8_t* out) {
  std::size_t written = 0;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find(':'), text.size());
    const std::string_view group = text.substr(0, end);
    if (group.find('.') != std::string_view::npos) {
      const auto ipv4 = parse_ipv4(group);
      if (!ipv4 || !is_end || end != text.size() || written > 12) return std::nullopt;
      for (std::size_t i = 0; i < 4; ++i) out[written++] = ipv4->octets[i];
      return written;
    }
    if (group.empty() || group.size() > 4 || written > 14) return std::nullopt;
    unsigned value = 0;
    for (char c : group) {
      const int digit = hex_value(c);
      if (digit < 0) return std::nullopt;
      value = value * 16 + static_cast<unsigned>(digit);
    }
    out[written++] = static_cast<std::uint8_t>(value >> 8);
    out[written++] = static_cast<std::uint8_t>(value & 0xff);
    if (end == text.size()) return written;
    text.remove_prefix(end + 1);
    if (text.empty()) return std::nullopt;
  }
  return written;
}

inline std::optional<IpAddress> parse_ipv6(std::string_view text) {
  IpAddress address;
  address.family = 6;
  std::array<std::uint8_t, 16> head{};
  std::array<std::uint8_t, 16> tail{};
  const std::size_t gap = text.find("::");
  const bool has_gap = gap != std::string_view::npos;
  const auto head_size = parse_ipv6_groups(text.substr(0, gap), !has_gap, head.data());
  if (!head_size) return std::nullopt;
  if (!has_gap) {
    if (*head_size != 16) return std::nullopt;
    address.octets = head;
    return address;
  }
  const auto tail_size = parse_ipv6_groups(text.substr(gap + 2), true, tail.data());
  if (!tail_size || *head_size + *tail_size > 14) return std::nullopt;
  for (std::size_t i = 0; i < *head_size; ++i) address.octets[i] = head[i];
  for (std::size_t i = 0; i < *tail_size; ++i) address.octets[16 - *tail_size + i] = tail[i];
  return address;
}

inline void append_number(std::string& out, std::uint64_t value) {
  char digits[20];
  std::size_t n = 0;
  do {
    digits[n++] = static_cast<char>('0' + value % 10);
    value /= 10;
  } while (value != 0);
  while (n > 0) out.push_back(digits[--n]);
}

inline char* write_ipv4(const IpAddress& ip, char* out) {
  for (std::size_t i = 0; i < 4; ++i) {
    if (i > 0) *out++ = '.';
    const unsigned octet = ip.octets[i];
    if (octet >= 100) *out++ = static_cast<char>('0' + octet / 100);
    if (octet >= 10) *out++ = static_cast<char>('0' + octet / 10 % 10);
    *out++ = static_cast<char>('0' + octet % 10);
  }
  return out;
}

/// RFC 5952: lower case, no leading zeros, the longest run of two or more zero groups as "::".
inline char* write_ipv6(const IpAddress& ip, char* out) {
  std::array<unsigned, 8> groups{};
  for (std::size_t i = 0; i < 8; ++i) {
    groups[i] = static_cast<unsigned>(ip.octets[2 * i] << 8 | ip.octets[2 * i + 1]);
  }
  std::size_t gap = 8;
  std::size_t gap_size = 1;
  for (std::size_t i = 0; i < 8; ++i) {
    std::size_t zeros = 0;
    while (i + zeros < 8 && groups[i + zeros] == 0) ++zeros;
    if (zeros > gap_size) {
      gap = i;
      gap_size = zeros;
    }
  }
  for (std::size_t i = 0; i < 8;) {
    if (i == gap) {
      *out++ = ':';
      *out++ = ':';
      i += gap_size;
      continue;
    }
    if (i > 0 && i != gap + gap_size) *out++ = ':';
    bool leading = true;
    for (int shift = 12; shift >= 0; shift -= 4) {
      const unsigned digit = groups[i] >> shift & 15U;
      if (digit == 0 && leading && shift > 0) continue;
      leading = false;
      *out++ = "0123456789abcdef"[digit];
    }
    ++i;
  }
  return out;
}

}  // namespace detail

/// A numeric address; IPv6 with or without brackets. Nothing where it is none.
inline std::optional<IpAddress> parse_ip(std::string_view text) {
  if (text.size() >= 2 && text.front() == '[' && text.back() == ']') {
    return detail::parse_ipv6(text.substr(1, text.size() - 2));
  }
  if (text.find(':') != std::string_view::npos) return detail::parse_ipv6(text);
  return detail::parse_ipv4(text);
}

/// The longest text of an address: eight groups of four digits.
inline constexpr std::size_t max_ip_text = 39;

/// Writes "192.0.2.1" or "2001:db8::1" to `out`, which has room for `max_ip_text` octets. Returns
/// how many were written, 0 for no address.
inline std::size_t write_ip(const IpAddress& ip, char* out) {
  const char* const begin = out;
  if (ip.family == 4) out = detail::write_ipv4(ip, out);
  if (ip.family == 6) out = detail::write_ipv6(ip, out);
  return static_cast<std::size_t>(out - begin);
}

/// "192.0.2.1" or "2001:db8::1"; empty for none.
inline std::string to_text(const IpAddress& ip) {
  char text[max_ip_text];
  return {text, write_ip(ip, text)};
}

/// "192.0.2.1:5060" or "[2001:db8::1]:5060".
inline std::string to_text(const SocketAddress& address) {
  std::string out = address.ip.is_ipv6() ? "[" + to_text(address.ip) + "]" : to_text(address.ip);
  out.push_back(':');
  detail::append_number(out, address.port);
  return out;
}

/// "HOST:PORT" with a numeric host. Error: `bad_address`.
inline Result<SocketAddress> parse_socket_address(std::string_view text) {
  const std::size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return ErrorCode::bad_address;
  SocketAddress address;
  const std::string_view host = text.substr(0, colon);
  const bool bracketed = !host.empty() && host.front() == '[';
  const auto ip = parse_ip(host);
  const auto port = parse_digits(text.substr(colon + 1), 65535);
  if (!ip || !port || ip->is_ipv6() != bracketed) return ErrorCode::bad_address;
  address.ip = *ip;
  address.port = static_cast<std::uint16_t>(*port);
  return address;
}

}  // namespace sipmsg

// ========================================== header.hpp ==========================================

// header: the names of header fields, and the typed views of their values.
//
// A name is recognised once, to a HeaderId, in its long or compact form and in any case (RFC 3261
// 7.3.1, 7.3.3). A value is read only when somebody asks, into a struct of views; nothing is
// copied. Folded lines need no unfolding: their line breaks count as blanks.
// Authorization and its kin are read by digest.hpp.

// clang-format off
/// Name as an identifier, canonical spelling, compact letter or 0, whether it may stand only once.
#define SIPMSG_HEADER_LIST(X)                                \
  X(accept,              "Accept",              0,   false)  \
  X(accept_contact,      "Accept-Contact",      'a', false)  \
  X(allow,               "Allow",               0,   false)  \
  X(authorization,       "Authorization",       0,   false)  \
  X(call_id,             "Call-ID",             'i', true)   \
  X(contact,             "Contact",             'm', false)  \
  X(content_disposition, "Content-Disposition", 0,   true)   \
  X(content_encoding,    "Content-Encoding",    'e', false)  \
  X(content_length,      "Content-Length",      'l', true)   \
  X(content_type,        "Content-Type",        'c', true)   \
  X(cseq,                "CSeq",                0,   true)   \
  X(date,                "Date",                0,   true)   \
  X(event,               "Event",               'o', true)   \
  X(expires,             "Expires",             0,   true)   \
  X(from,                "From",                'f', true)   \
  X(max_forwards,        "Max-Forwards",        0,   true)   \
  X(min_expires,         "Min-Expires",         0,   true)   \
  X(path,                "Path",                0,   false)  \
  X(proxy_authenticate,  "Proxy-Authenticate",  0,   false)  \
  X(proxy_authorization, "Proxy-Authorization", 0,   false)  \
  X(proxy_require,       "Proxy-Require",       0,   false)  \
  X(record_route,        "Record-Route",        0,   false)  \
  X(refer_to,            "Refer-To",            'r', true)   \
  X(require,             "Require",             0,   false)  \
  X(retry_after,         "Retry-After",         0,   true)   \
  X(route,               "Route",               0,   false)  \
  X(server,              "Server",              0,   true)   \
  X(subject,             "Subject",             's', true)   \
  X(supported,           "Supported",           'k', false)  \
  X(to,                  "To",                  't', true)   \
  X(unsupported,         "Unsupported",         0,   false)  \
  X(user_agent,          "User-Agent",          0,   true)   \
  X(via,                 "Via",                 'v', false)  \
  X(warning,             "Warning",             0,   false)  \
  X(www_authenticate,    "WWW-Authenticate",    0,   false)
// clang-format on

namespace sipmsg {

/// The headers this stack knows by name; every other one is `other` and keeps its own.
enum class HeaderId : std::uint8_t {
#define SIPMSG_HEADER_ENUMERATOR(id, name, compact, single) id,
  SIPMSG_HEADER_LIST(SIPMSG_HEADER_ENUMERATOR)
#undef SIPMSG_HEADER_ENUMERATOR
      other
};

inline constexpr std::size_t header_id_count = static_cast<std::size_t>(HeaderId::other);

namespace detail {

struct HeaderInfo {
  std::string_view name;
  char compact;
  bool single;
};

inline constexpr std::array<HeaderInfo, header_id_count> header_infos = {{
#define SIPMSG_HEADER_INFO(id, name, compact, single) {name, compact, single},
    SIPMSG_HEADER_LIST(SIPMSG_HEADER_INFO)
#undef SIPMSG_HEADER_INFO
}};

/// Length, first and last letter tell the known names apart; the factors were found by trying.
constexpr std::size_t header_name_hash(std::string_view name) {
  const auto letter = [](char c) {
    return static_cast<std::size_t>(static_cast<unsigned char>(c) | 0x20U);
  };
  return (name.size() + letter(name.front()) * 11 + letter(name.back()) * 23) & 127U;
}

/// Open addressing: a slot holds a HeaderId plus one, or 0.
constexpr std::array<std::uint8_t, 128> make_header_table() {
  std::array<std::uint8_t, 128> table{};
  for (std::size_t id = 0; id < header_id_count; ++id) {
    std::size_t slot = header_name_hash(header_infos[id].name);
    while (table[slot] != 0) slot = (slot + 1) & 127U;
    table[slot] = static_cast<std::uint8_t>(id + 1);
  }
  return table;
}

inline constexpr std::array<std::uint8_t, 128> header_table = make_header_table();

constexpr std::array<std::uint8_t, 26> make_compact_table() {
  std::array<std::uint8_t, 26> table{};
  for (auto& entry : table) entry = static_cast<std::uint8_t>(HeaderId::other);
  for (std::size_t id = 0; id < header_id_count; ++id) {
    const char letter = header_infos[id].compact;
    if (letter != 0) table[static_cast<std::size_t>(letter - 'a')] = static_cast<std::uint8_t>(id);
  }
  return table;
}

inline constexpr std::array<std::uint8_t, 26> compact_table = make_compact_table();

}  // namespace detail
#undef SIPMSG_HEADER_LIST

/// The canonical spelling; empty for `other`. Headers we write go out so: some softphones know no
/// other case.
constexpr std::string_view header_name(HeaderId id) {
  return id == HeaderId::other ? std::string_view()
                               : detail::header_infos[static_cast<std::size_t>(id)].name;
}

/// Whether a second field of that name makes a message malformed (RFC 3261 7.3.1).
constexpr bool is_single_header(HeaderId id) {
  return id != HeaderId::other && detail::header_infos[static_cast<std::size_t>(id)].single;
}

/// Recognises a header name in any case and in its compact form.
inline HeaderId header_id(std::string_view name) {
  if (name.empty()) return HeaderId::other;
  if (name.size() == 1) {
    const char letter = to_lower(name[0]);
    if (letter < 'a' || letter > 'z') return HeaderId::other;
    return static_cast<HeaderId>(detail::compact_table[static_cast<std::size_t>(letter - 'a')]);
  }
  std::size_t slot = detail::header_name_hash(name);
  while (detail::header_table[slot] != 0) {
    const std::size_t id = detail::header_table[slot] - std::size_t{1};
    const std::string_view known = detail::header_infos[id].name;
    if (known == name || equal_ignoring_case(known, name)) return static_cast<HeaderId>(id);
    slot = (slot + 1) & 127U;
  }
  return HeaderId::other;
}

namespace detail {

/// Reads a header value from left to right and remembers where it is, for errors.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}

  bool done() const { return position_ >= text_.size(); }
  char peek() const { return done() ? '\0' : text_[position_]; }
  std::string_view rest() const { return text_.substr(position_); }
  std::size_t position() const { return position_; }
  void advance(std::size_t n) { position_ += n; }
  Error error(ErrorCode code) const { return {code, static_cast<std::int32_t>(position_)}; }

  void skip_blanks() { position_ = skip_class(text_, char_blank, position_); }
  bool skip(char c) {
    if (done() || text_[position_] != c) return false;
    ++position_;
    return true;
  }
  std::string_view token() { return of_class(char_token); }
  std::string_view of_class(std::uint8_t classes) {
    const std::size_t begin = position_;
    position_ = skip_class(text_, classes, begin);
    return since(begin);
  }
  /// The quoted string that begins here, quotes included; empty where it is not closed.
  std::string_view quoted() {
    const std::size_t begin = position_;
    const std::size_t close = closing_quote(text_, begin);
    if (close == std::string_view::npos) return {};
    position_ = close + 1;
    return text_.substr(begin, position_ - begin);
  }
  std::string_view since(std::size_t begin) const { return text_.substr(begin, position_ - begin); }

 private:
  std::string_view text_;
  std::size_t position_ = 0;
};

/// generic-param = token [ EQUAL ( token / host / quoted-string ) ], RFC 3261 25.1. The value may
/// hold what any of the three may, and a few octets more that softphones write into it.
inline Error scan_parameter(Scanner& in, Parameter& parameter) {
  in.skip_blanks();
  parameter.name = in.token();
  parameter.value = {};
  parameter.has_value = false;
  if (parameter.name.empty()) return in.error(ErrorCode::bad_parameter);
  in.skip_blanks();
  if (!in.skip('=')) return {};
  in.skip_blanks();
  parameter.has_value = true;
  if (in.peek() == '"') {
    parameter.value = in.quoted();
    if (parameter.value.empty()) return in.error(ErrorCode::bad_quoted_string);
  } else {
    parameter.value = in.of_class(char_token | char_parameter);
    if (parameter.value.empty()) return in.error(ErrorCode::bad_parameter);
  }
  in.skip_blanks();
  return {};
}

/// Reads ";name=value" as often as it stands there, up to the end of the text; calls `use` on each.
template <class Use>
Error scan_parameters(Scanner& in, Use use) {
  in.skip_blanks();
  while (!in.done()) {
    if (!in.skip(';')) return in.error(ErrorCode::bad_parameter);
    Parameter parameter;
    if (auto error = scan_parameter(in, parameter)) return error;
    use(parameter);
  }
  return {};
}

}  // namespace detail

/// A Via value (RFC 3261 20.42, RFC 3581). Lifetime: views into the value that was parsed.
struct Via {
  std::string_view transport;  ///< as written: "UDP", "TCP", or any token
  std::string_view host;       ///< sent-by host, IPv6 without brackets
  std::uint16_t port = 0;      ///< sent-by port, 0 where none is written
  std::string_view branch;
  std::string_view received;
  std::string_view maddr;
  std::string_view rport;  ///< the value, "" for a bare `;rport`
  bool has_rport = false;
  bool has_alias = false;  ///< RFC 5923: linphone and sipsak ask for the connection to be reused
  std::size_t parameters_end = 0;  ///< offset in the value where a further parameter may be put

  /// The port an answer goes to where nothing else is said (RFC 3261 18.2.2).
  std::uint16_t port_or_default() const { return port != 0 ? port : std::uint16_t{5060}; }
  /// True where the branch was made by the rules of RFC 3261 8.1.1.7 and so names a transaction. A
  /// branch that is the magic cookie and nothing else names none (RFC 4475 3.2.1).
  bool has_rfc3261_branch() const {
    return branch.size() > 7 && equal_ignoring_case(branch.substr(0, 7), "z9hG4bK");
  }
};

/// Reads one Via element: sent-protocol, sent-by, parameters, blanks wherever the grammar lets them
/// stand. Of a parameter that comes twice, which is forbidden (RFC 3261 7.3.1), the first counts.
/// Errors: `bad_via`, `bad_version`, `bad_host`, `bad_port`, `bad_parameter`.
inline Result<Via> parse_via(std::string_view text) {
  detail::Scanner in(text);
  Via via;
  in.skip_blanks();
  if (!equal_ignoring_case(in.token(), "SIP")) return in.error(ErrorCode::bad_via);
  in.skip_blanks();
  if (!in.skip('/')) return in.error(ErrorCode::bad_via);
  in.skip_blanks();
  if (in.token() != "2.0") return in.error(ErrorCode::bad_version);
  in.skip_blanks();
  if (!in.skip('/')) return in.error(ErrorCode::bad_via);
  in.skip_blanks();
  via.transport = in.token();
  if (via.transport.empty() || !is_blank(in.peek())) return in.error(ErrorCode::bad_via);
  in.skip_blanks();
  const auto sent_by = parse_host_port(in.rest(), true);
  if (!sent_by) return sent_by.error().at(in.position());
  via.host = sent_by->host;
  via.port = sent_by->port;
  in.advance(sent_by->length);
  const Error error = detail::scan_parameters(in, [&via](const Parameter& parameter) {
    const auto is_named = [&parameter](std::string_view name) {
      return equal_ignoring_case(parameter.name, name);
    };
    if (via.branch.empty() && is_named("branch")) {
      via.branch = parameter.value;
    } else if (!via.has_rport && is_named("rport")) {
      via.has_rport = true;
      via.rport = parameter.value;
    } else if (via.received.empty() && is_named("received")) {
      via.received = parameter.value;
    } else if (via.maddr.empty() && is_named("maddr")) {
      via.maddr = parameter.value;
    } else if (is_named("alias")) {
      via.has_alias = true;
    }
  });
  if (error) return error;
  via.parameters_end = text.size();
  while (via.parameters_end > 0 && is_blank(text[via.parameters_end - 1])) --via.parameters_end;
  return via;
}

/// A From, To, Contact, Route, Record-Route or Path value: name-addr or addr-spec with parameters
/// (RFC 3261 20.10). Lifetime: views into the value that was parsed.
struct NameAddr {
  std::string_view display_name;  ///< as written, still quoted where it was; `unquote` decodes
  UriView uri;
  Parameters parameters;       ///< those of the header, not of the URI
  std::string_view tag_value;  ///< of the first header parameter `tag`

  /// The tag of a From or To, "" where it has none.
  std::string_view tag() const { return tag_value; }
};

namespace detail {

/// Without quotes a display name is tokens and blanks (RFC 3261 25.1); UTF-8 passes as well,
/// because softphones write it.
inline bool is_unquoted_display_name(std::string_view text) {
  for (char c : text) {
    if (!is_char(c, char_token | char_blank) && static_cast<unsigned char>(c) < 0x80) return false;
  }
  return true;
}

inline Error scan_bracketed_uri(Scanner& in, NameAddr& address) {
  if (!in.skip('<')) return in.error(ErrorCode::bad_name_addr);
  const std::size_t close = in.rest().find('>');
  if (close == std::string_view::npos) return in.error(ErrorCode::bad_name_addr);
  const auto uri = parse_uri(in.rest().substr(0, close));
  if (!uri) return uri.error().at(in.position());
  address.uri = *uri;
  in.advance(close + 1);
  return {};
}

/// Without <> what follows the first semicolon belongs to the header, and a question mark may not
/// stand there at all (RFC 3261 20.10; RFC 4475 3.1.2.13 and 3.3.12).
inline Error scan_bare_uri(Scanner& in, NameAddr& address) {
  const std::string_view rest = in.rest();
  std::size_t end = 0;
  while (end < rest.size() && rest[end] != ';' && !is_blank(rest[end])) ++end;
  const auto uri = parse_uri(rest.substr(0, end));
  if (!uri) return uri.error().at(in.position());
  if (!uri->headers.empty()) return in.error(ErrorCode::bad_name_addr);
  address.uri = *uri;
  in.advance(end);
  return {};
}

}  // namespace detail

/// Reads one element. Errors: `bad_name_addr`, `bad_quoted_string`, `bad_parameter`, and those of
/// parse_uri, with the offset in `text`.
inline Result<NameAddr> parse_name_addr(std::string_view text) {
  detail::Scanner in(text);
  NameAddr address;
  in.skip_blanks();
  Error error;
  if (in.peek() == '"') {
    address.display_name = in.quoted();
    if (address.display_name.empty()) return in.error(ErrorCode::bad_quoted_string);
    in.skip_blanks();
    error = detail::scan_bracketed_uri(in, address);
  } else {
    // A '<' behind a semicolon or a quote belongs to a parameter: "sip:a@b;x="<y>"".
    std::size_t open = in.position();
    while (open < text.size() && text[open] != '<' && text[open] != ';' && text[open] != '"')
      ++open;
    if (open < text.size() && text[open] == '<') {
      const std::string_view name = text.substr(in.position(), open - in.position());
      if (!detail::is_unquoted_display_name(name)) return in.error(ErrorCode::bad_name_addr);
      address.display_name = trim(name);
      in.advance(name.size());
      error = detail::scan_bracketed_uri(in, address);
    } else {
      error = detail::scan_bare_uri(in, address);
    }
  }
  if (error) return error;
  in.skip_blanks();
  const std::size_t parameters_begin = in.position() + 1;
  error = detail::scan_parameters(in, [&address](const Parameter& parameter) {
    const bool is_tag = address.tag_value.empty() && equal_ignoring_case(parameter.name, "tag");
    if (is_tag) address.tag_value = parameter.value;
  });
  if (error) return error;
  if (parameters_begin < text.size()) {
    address.parameters = Parameters(text.substr(parameters_begin));
  }
  return address;
}

/// The methods of SIP; `other` is any further token. Names are case sensitive (RFC 3261 7.1).
enum class Method : std::uint8_t {
  other,
  ack,
  bye,
  cancel,
  info,
  invite,
  message,
  notify,
  options,
  prack,
  publish,
  refer,
  register_,
  subscribe,
  update,
};

namespace detail {
inline constexpr std::string_view method_names[] = {
    "",        "ACK",   "BYE",     "CANCEL", "INFO",     "INVITE",    "MESSAGE", "NOTIFY",
    "OPTIONS", "PRACK", "PUBLISH", "REFER",  "REGISTER", "SUBSCRIBE", "UPDATE"};
}

/// The name as it stands in a start line; empty for `other`.
constexpr std::string_view method_name(Method method) {
  return detail::method_names[static_cast<std::size_t>(method)];
}

inline Method parse_method(std::string_view name) {
  std::uint8_t method = 0;
  for (std::string_view known : detail::method_names) {
    if (method != 0 && known == name) return static_cast<Method>(method);
    ++method;
  }
  return Method::other;
}

/// CSeq (RFC 3261 20.16).
struct CSeq {
  std::uint32_t number = 0;
  std::string_view method;
};

/// Error: `bad_cseq`. The number must be below 2^31 (RFC 3261 8.1.1.5).
inline Result<CSeq> parse_cseq(std::string_view text) {
  detail::Scanner in(text);
  CSeq cseq;
  in.skip_blanks();
  const Error no_number = in.error(ErrorCode::bad_cseq);
  const auto number = parse_digits(in.of_class(char_digit), 0x7fffffff);
  if (!number) return no_number;
  if (!is_blank(in.peek())) return in.error(ErrorCode::bad_cseq);
  cseq.number = static_cast<std::uint32_t>(*number);
  in.skip_blanks();
  cseq.method = in.token();
  in.skip_blanks();
  if (cseq.method.empty() || !in.done()) return in.error(ErrorCode::bad_cseq);
  return cseq;
}

/// Content-Type (RFC 3261 20.15): "text/plain;charset=utf-8".
struct MediaType {
  std::string_view type;
  std::string_view subtype;
  Parameters parameters;

  bool is(std::string_view wanted_type, std::string_view wanted_subtype) const {
    return equal_ignoring_case(type, wanted_type) && equal_ignoring_case(subtype, wanted_subtype);
  }
};

/// Error: `bad_media_type`.
inline Result<MediaType> parse_media_type(std::string_view text) {
  detail::Scanner in(text);
  MediaType media;
  in.skip_blanks();
  media.type = in.token();
  in.skip_blanks();
  if (media.type.empty() || !in.skip('/')) return in.error(ErrorCode::bad_media_type);
  in.skip_blanks();
  media.subtype = in.token();
  if (media.subtype.empty()) return in.error(ErrorCode::bad_media_type);
  in.skip_blanks();
  const std::size_t parameters_begin = in.position() + 1;
  if (auto error = detail::scan_parameters(in, [](const Parameter&) {})) return error;
  if (parameters_begin < text.size()) media.parameters = Parameters(text.substr(parameters_begin));
  return media;
}

/// A q value (RFC 3261 25.1 qvalue) in thousandths, 0 to 1000; nothing where it is malformed.
inline std::optional<int> parse_q(std::string_view text) {
  if (text.empty() || (text[0] != '0' && text[0] != '1')) return std::nullopt;
  int thousandths = (text[0] - '0') * 1000;
  if (text.size() == 1) return thousandths;
  if (text[1] != '.' || text.size() > 5) return std::nullopt;
  int weight = 100;
  for (char c : text.substr(2)) {
    if (!is_digit(c)) return std::nullopt;
    thousandths += (c - '0') * weight;
    weight /= 10;
  }
  return thousandths <= 1000 ? std::optional<int>(thousandths) : std::nullopt;
}

namespace detail {

inline constexpr std::string_view month_names = "JanFebMarAprMayJunJulAugSepOctNovDec";
inline constexpr std::string_view weekday_names = "ThuFriSatSunMonTueWed";  // 1970-01-01: Thursday

/// Days since 1970-01-01 of a date of the Gregorian calendar, counted from March so that the leap
/// day comes last.
constexpr std::int64_t days_from_date(std::int64_t year, unsigned month, unsigned day) {
  if (month <= 2) --year;
  const std::int64_t era = year / 400;
  const std::int64_t year_of_era = year - era * 400;
  const std::int64_t day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
  return era * 146097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year -
         719468;
}

}  // namespace detail

/// Date (RFC 3261 20.17) as seconds since 1970: "Sat, 13 Nov 2010 23:29:00 GMT". No zone but GMT
/// exists in SIP. Error: `bad_date`.
inline Result<std::int64_t> parse_date(std::string_view text) {
  text = trim(text);
  const auto digits = [&text](std::size_t at, std::size_t n, std::uint64_t maximum) {
    return parse_digits(text.substr(at, n), maximum);
  };
  if (text.size() != 29 || text.substr(3, 2) != ", " || text[7] != ' ' || text[11] != ' ' ||
      text[16] != ' ' || text[19] != ':' || text[22] != ':' || text.substr(25) != " GMT") {
    return ErrorCode::bad_date;
  }
  const auto day = digits(5, 2, 31);
  const auto year = digits(12, 4, 9999);
  const auto hour = digits(17, 2, 23);
  const auto minute = digits(20, 2, 59);
  const auto second = digits(23, 2, 60);
  const std::size_t month = detail::month_names.find(text.substr(8, 3));
  if (!day || *day == 0 || !year || *year < 1970 || !hour || !minute || !second ||
      month == std::string_view::npos || month % 3 != 0) {
    return ErrorCode::bad_date;
  }
  const std::int64_t days =
      detail::days_from_date(static_cast<std::int64_t>(*year), static_cast<unsigned>(month / 3 + 1),
                             static_cast<unsigned>(*day));
  return days * 86400 + static_cast<std::int64_t>(*hour * 3600 + *minute * 60 + *second);
}

/// The text of a Date header for seconds since 1970 (not before).
inline std::string format_date(std::int64_t unix_s) {
  const std::int64_t days = unix_s / 86400;
  const auto second_of_day = static_cast<unsigned>(unix_s % 86400);
  std::int64_t year = 1970 + days / 366;
  while (detail::days_from_date(year + 1, 1, 1) <= days) ++year;
  unsigned month = 1;
  while (month < 12 && detail::days_from_date(year, month + 1, 1) <= days) ++month;
  const auto day = static_cast<unsigned>(days - detail::days_from_date(year, month, 1) + 1);
  std::string out(detail::weekday_names.substr(static_cast<std::size_t>(days % 7) * 3, 3));
  const auto two = [&out](unsigned value) {
    out.push_back(static_cast<char>('0' + value / 10));
    out.push_back(static_cast<char>('0' + value % 10));
  };
  out.append(", ");
  two(day);
  out.append(" ").append(detail::month_names.substr((month - 1) * std::size_t{3}, 3)).append(" ");
  detail::append_number(out, static_cast<std::uint64_t>(year));
  out.append(" ");
  two(second_of_day / 3600);
  out.append(":");
  two(second_of_day / 60 % 60);
  out.append(":");
  two(second_of_day % 60);
  return out.append(" GMT");
}

}  // namespace sipmsg

// ========================================= message.hpp ==========================================

// message: one SIP message, read in a single pass over the caller's bytes.
//
// `MessageView::parse` reads the start line and makes the index of header fields: where each name
// and value stands, and which header it is. It copies nothing and allocates nothing. Values are
// read by header.hpp when somebody asks for them. A message with a mistake is indexed all the same
// as far as it goes, because its sender is owed a 400 that can only be built from its headers
// (RFC 3261 8.2.6).
//
// MessageView borrows the bytes; Message owns them.

namespace sipmsg {

/// How the end of a message is known: by the datagram's, or by Content-Length (RFC 3261 18.3).
enum class Framing : std::uint8_t { datagram, stream };

/// The largest message that can be indexed, in octets: what a UDP datagram can hold.
inline constexpr std::size_t max_message_size = 65535;

/// One header field as it stands. Lifetime: views into the message's bytes.
struct HeaderField {
  HeaderId id = HeaderId::other;
  std::string_view name;   ///< as written
  std::string_view value;  ///< trimmed; a folded value still holds its line breaks
};

/// Whether a mistake leaves it in doubt where a message ends. On a stream nothing that follows such
/// a message can be trusted, so the connection has to be closed.
constexpr bool breaks_frame(ErrorCode code) {
  switch (code) {
    case ErrorCode::too_large:
    case ErrorCode::too_many_headers:
    case ErrorCode::bad_line_end:
    case ErrorCode::bad_content_length:
    case ErrorCode::conflicting_content_length:
    case ErrorCode::missing_content_length: return true;
    default: return false;
  }
}

/// The elements of a comma separated header, over all fields of that name and in order. Each is
/// trimmed; empty ones come out as such, for the reader of the value to refuse.
class HeaderValues;

class MessageView {
 public:
  /// Reads `bytes`, which must stay where they are for as long as the view is used. Empty lines at
  /// the front of a datagram are no part of the message (RFC 3261 7.5 asks that of streams, where
  /// the StreamFramer sees to it); a datagram of nothing else is `empty`.
  ///
  /// Returns the first mistake in the frame: start line, header lines, Content-Length. Whatever the
  /// mistake, what could be indexed can be asked for. With Framing::stream a body that has not come
  /// yet is `incomplete`, and `size()` says how large the message will be; a mistake that
  /// `breaks_frame` comes before any other there, and `incomplete` behind.
  /// Whether the message makes sense is for `validate` to say.
  Error parse(std::string_view bytes, Framing framing = Framing::datagram);

  bool is_request() const { return !is_response_; }
  bool is_response() const { return is_response_; }
  Method method() const { return method_; }
  std::string_view method_text() const { return text(start_[0]); }
  std::string_view request_uri_text() const { return text(start_[1]); }
  int status_code() const { return status_code_; }
  std::string_view reason_phrase() const { return text(start_[2]); }

  std::size_t header_count() const { return header_count_; }
  HeaderField field(std::size_t index) const {
    const Field& field = fields_[index];
    return {field.id, text(field.name), text(field.value)};
  }
  /// The whole line of a field, from its name to its CR LF, folded lines included.
  std::string_view field_line(std::size_t index) const {
    const std::size_t begin = fields_[index].name.begin;
    const std::size_t end = index + 1 < header_count_ ? std::size_t{fields_[index + 1].name.begin}
                                                      : std::size_t{body_begin_} - 2;
    return {base_ + begin, end - begin};
  }
  /// The index of the first field of that name, or header_count().
  std::size_t find(HeaderId id) const {
    return id == HeaderId::other || first_[static_cast<std::size_t>(id)] == no_field
               ? header_count_
               : first_[static_cast<std::size_t>(id)];
  }
  /// The index of the next field of the same name as field `index`, or header_count().
  std::size_t find_next(std::size_t index) const {
    return fields_[index].next == no_field ? header_count_ : fields_[index].next;
  }
  bool has(HeaderId id) const { return find(id) != header_count_; }
  /// The value of the first field of that name, "" where there is none.
  std::string_view header(HeaderId id) const {
    const std::size_t index = find(id);
    return index == header_count_ ? std::string_view() : text(fields_[index].value);
  }
  /// The same for any name, also one this stack does not know; nothing where there is none.
  std::optional<std::string_view> header(std::string_view name) const;
  HeaderValues values(HeaderId id) const;

  /// The body, as far as it has come.
  std::string_view body() const { return {base_ + body_begin_, body_size_}; }
  /// The whole message as far as it has come, without what came behind it.
  std::string_view bytes() const { return {base_, body_offset() + body_size_}; }
  /// How large the message is, or will be once the rest of its body has come.
  std::size_t size() const { return body_offset() + body_size_ + missing_; }
  std::size_t body_offset() const { return body_begin_; }
  /// The offset of a part of this message's bytes.
  std::size_t offset_of(std::string_view part) const {
    return static_cast<std::size_t>(part.data() - base_);
  }

  /// The typed values of the headers that stand once. A missing one reads as its own error.
  Result<UriView> request_uri() const { return parse_uri(request_uri_text()); }
  Result<Via> top_via() const;
  Result<NameAddr> from() const { return single(HeaderId::from, ErrorCode::missing_from); }
  Result<NameAddr> to() const { return single(HeaderId::to, ErrorCode::missing_to); }
  Result<CSeq> cseq() const {
    if (!has(HeaderId::cseq)) return ErrorCode::missing_cseq;
    return parse_cseq(header(HeaderId::cseq));
  }
  std::string_view call_id() const { return header(HeaderId::call_id); }
  /// Numbers; nothing where the header is absent or is not a number.
  std::optional<std::uint32_t> max_forwards() const { return number(HeaderId::max_forwards, 255); }
  std::optional<std::uint32_t> expires() const { return delta_seconds(header(HeaderId::expires)); }
  std::optional<std::uint32_t> content_length() const {
    return number(HeaderId::content_length, max_message_size);
  }
  /// When the sender says it was written, in seconds since 1970.
  Result<std::int64_t> date() const { return parse_date(header(HeaderId::date)); }
  Result<MediaType> content_type() const {
    return parse_media_type(header(HeaderId::content_type));
  }

  /// delta-seconds (RFC 3261 25.1); more than 2^32-1 counts as 2^32-1, as 20.19 asks.
  static std::optional<std::uint32_t> delta_seconds(std::string_view value) {
    value = trim(value);
    if (!all_of_class(value, char_digit)) return std::nullopt;
    const auto seconds = parse_digits(value, 0xffffffff);
    return seconds ? static_cast<std::uint32_t>(*seconds) : 0xffffffff;
  }

  /// The same message at another address: for an owner whose copy of the bytes lies elsewhere.
  void rebase(const char* bytes) { base_ = bytes; }
  /// The same message once more of its body has come: `bytes` begins with all that was parsed.
  void extend(std::string_view bytes) {
    const std::size_t whole = size();
    const std::size_t here = std::min(bytes.size(), whole);
    base_ = bytes.data();
    body_size_ = static_cast<std::uint16_t>(here - body_offset());
    missing_ = static_cast<std::uint16_t>(whole - here);
  }

 private:
  struct Span {
    std::uint16_t begin;
    std::uint16_t size;
  };
  struct Field {
    Span name;
    Span value;
    HeaderId id;
    std::uint8_t next;
  };
  static constexpr std::uint8_t no_field = 0xff;
  static_assert(SIPMSG_MAX_HEADERS >= 16 && SIPMSG_MAX_HEADERS < no_field,
                "SIPMSG_MAX_HEADERS must be from 16 to 254");

  std::string_view text(Span span) const { return {base_ + span.begin, span.size}; }
  Span span_of(std::string_view part) const {
    return {static_cast<std::uint16_t>(part.data() - base_),
            static_cast<std::uint16_t>(part.size())};
  }
  std::optional<std::uint32_t> number(HeaderId id, std::uint64_t maximum) const {
    const auto value = parse_digits(header(id), maximum);
    if (!value) return std::nullopt;
    return static_cast<std::uint32_t>(*value);
  }
  Result<NameAddr> single(HeaderId id, ErrorCode missing) const {
    if (!has(id)) return missing;
    return parse_name_addr(header(id));
  }
  /// One line, which may be folded: where it ends, and where the next one begins.
  struct Line {
    std::size_t end;
    std::size_t next;  ///< 0 where the line has no end
    Error error;       ///< `bad_line_end` for a CR or an LF that stands alone
  };
  static Line find_line(std::string_view bytes, std::size_t begin);
  Error parse_start_line(std::string_view line);
  Error parse_status_line(std::string_view line);
  Error parse_request_line(std::string_view line);
  Error parse_header_line(std::string_view line);
  Error find_body(std::size_t head_size, std::size_t available, Framing framing);

  const char* base_ = "";
  std::uint16_t body_begin_ = 0;
  std::uint16_t body_size_ = 0;
  std::uint16_t missing_ = 0;  ///< octets of the body that have not come yet, on a stream
  std::uint16_t status_code_ = 0;
  std::uint8_t header_count_ = 0;
  bool is_response_ = false;
  Method method_ = Method::other;
  Span start_[3] = {};  ///< method, Request-URI, reason phrase
  std::array<std::uint8_t, header_id_count> first_{};
  std::array<std::uint8_t, header_id_count> last_{};
  // Left uninitialised on purpose: only the first header_count_ entries are ever read.
  std::array<Field, SIPMSG_MAX_HEADERS> fields_;
};

class HeaderValues {
 public:
  class Iterator {
   public:
    Iterator(const MessageView& message, std::size_t field) : message_(&message), field_(field) {
      if (!at_end()) begin_field();
    }
    std::string_view operator*() const { return current_; }
    Iterator& operator++() {
      if (more_in_field_) {
        read();
      } else {
        field_ = message_->find_next(field_);
        if (!at_end()) begin_field();
      }
      return *this;
    }
    bool operator!=(const Iterator& other) const { return field_ != other.field_; }
    /// Which field the element stands in, and whether it is the only one there.
    std::size_t field() const { return field_; }

   private:
    bool at_end() const { return field_ == message_->header_count(); }
    void begin_field() {
      rest_ = message_->field(field_).value;
      read();
    }
    void read() {
      const std::size_t end = find_outside_quotes(rest_, ',');
      current_ = trim(rest_.substr(0, end));
      more_in_field_ = end < rest_.size();
      if (more_in_field_) rest_.remove_prefix(end + 1);
    }

    const MessageView* message_;
    std::size_t field_;
    std::string_view rest_;
    std::string_view current_;
    bool more_in_field_ = false;
  };

  HeaderValues(const MessageView& message, HeaderId id) : message_(&message), id_(id) {}
  Iterator begin() const { return {*message_, message_->find(id_)}; }
  Iterator end() const { return {*message_, message_->header_count()}; }
  bool empty() const { return !message_->has(id_); }

 private:
  const MessageView* message_;
  HeaderId id_;
};

inline HeaderValues MessageView::values(HeaderId id) const { return {*this, id}; }

inline std::optional<std::string_view> MessageView::header(std::string_view name) const {
  const HeaderId id = header_id(name);
  if (id != HeaderId::other) {
    if (!has(id)) return std::nullopt;
    return header(id);
  }
  for (std::size_t i = 0; i < header_count_; ++i) {
    if (fields_[i].id == HeaderId::other && equal_ignoring_case(text(fields_[i].name), name)) {
      return text(fields_[i].value);
    }
  }
  return std::nullopt;
}

inline Result<Via> MessageView::top_via() const {
  if (!has(HeaderId::via)) return ErrorCode::missing_via;
  return parse_via(*values(HeaderId::via).begin());
}

inline Error MessageView::parse(std::string_view bytes, Framing framing) {
  if (framing == Framing::datagram) {
    while (bytes.substr(0, 2) == "\r\n") bytes.remove_prefix(2);
  }
  base_ = bytes.data();
  body_begin_ = body_size_ = missing_ = status_code_ = 0;
  header_count_ = 0;
  is_response_ = false;
  method_ = Method::other;
  start_[0] = start_[1] = start_[2] = Span{0, 0};
  first_.fill(no_field);
  if (bytes.empty()) return ErrorCode::empty;
  if (bytes.size() > max_message_size) return ErrorCode::too_large;

  Error first_error;
  const auto note = [&first_error, framing](Error error) {
    const bool outweighs =
        framing == Framing::stream && breaks_frame(error.code) && !breaks_frame(first_error.code);
    if (error && (!first_error || outweighs)) first_error = error;
  };
  std::size_t position = 0;
  while (true) {
    const Line line = find_line(bytes, position);
    if (line.next == 0) {
      const auto place = static_cast<std::int32_t>(bytes.size());
      body_begin_ = static_cast<std::uint16_t>(bytes.size());
      if (framing == Framing::stream) return {ErrorCode::incomplete, place};
      note(line.error);
      note({ErrorCode::missing_blank_line, place});
      return first_error;
    }
    if (line.error) note(line.error);
    const std::string_view text = bytes.substr(position, line.end - position);
    const bool is_start_line = position == 0;
    position = line.next;
    if (text.empty() && is_start_line) return line.error ? line.error : ErrorCode::empty;
    if (text.empty()) break;
    if (const Error error = is_start_line ? parse_start_line(text) : parse_header_line(text)) {
      note(error);
    }
  }
  note(find_body(position, bytes.size(), framing));
  return first_error;
}

/// A line ends in CR LF. It goes on where a blank follows that, unless it is the start line or the
/// empty line (folding, RFC 3261 7.3.1). An LF without CR ends a line as well, so that everything
/// behind it can still be read; it is a mistake all the same, because other readers would see
/// another message.
inline MessageView::Line MessageView::find_line(std::string_view bytes, std::size_t begin) {
  Line line{0, 0, {}};
  for (std::size_t i = find_control(bytes, begin); i < bytes.size(); i = find_control(bytes, i)) {
    const bool crlf = bytes[i] == '\r' && i + 1 < bytes.size() && bytes[i + 1] == '\n';
    const bool is_line_end = crlf || bytes[i] == '\n';
    if (!crlf && (bytes[i] == '\r' || bytes[i] == '\n') && !line.error) {
      line.error = {ErrorCode::bad_line_end, static_cast<std::int32_t>(i)};
    }
    const std::size_t next = i + (crlf ? 2 : 1);
    const bool folded = begin != 0 && i != begin && next < bytes.size() &&
                        (bytes[next] == ' ' || bytes[next] == '\t');
    if (is_line_end && !folded) {
      line.end = i;
      line.next = next;
      return line;
    }
    i = next;
  }
  return line;
}

inline Error MessageView::parse_start_line(std::string_view line) {
  const std::size_t nul = line.find('\0');
  if (nul != std::string_view::npos) {
    return {ErrorCode::bad_start_line, static_cast<std::int32_t>(nul)};
  }
  // "SIP/" cannot begin a method: "/" is not a token character.
  is_response_ = line.size() >= 4 && equal_ignoring_case(line.substr(0, 4), "SIP/");
  return is_response_ ? parse_status_line(line) : parse_request_line(line);
}

/// Status-Line = SIP-Version SP Status-Code SP Reason-Phrase; the phrase may be empty, and the
/// space before it missing.
inline Error MessageView::parse_status_line(std::string_view line) {
  if (!equal_ignoring_case(line.substr(0, 7), "SIP/2.0")) return {ErrorCode::bad_version, 0};
  if (line.size() < 8 || line[7] != ' ') return {ErrorCode::bad_start_line, 7};
  const std::string_view rest = line.substr(8);
  const std::size_t space = std::min(rest.find(' '), rest.size());
  const auto code = parse_digits(rest.substr(0, space), 699);
  if (space != 3 || !code || *code < 100) return {ErrorCode::bad_status_code, 8};
  status_code_ = static_cast<std::uint16_t>(*code);
  if (space < rest.size()) start_[2] = span_of(rest.substr(space + 1));
  return {};
}

/// Request-Line = Method SP Request-URI SP SIP-Version, with exactly one space each.
inline Error MessageView::parse_request_line(std::string_view line) {
  const std::size_t first = line.find(' ');
  const std::size_t last = line.rfind(' ');
  const std::string_view method = line.substr(0, first);
  start_[0] = span_of(method);
  method_ = parse_method(method);
  if (!is_token(method)) return {ErrorCode::bad_method, 0};
  if (first == std::string_view::npos || first == last) {
    return {ErrorCode::bad_start_line, static_cast<std::int32_t>(line.size())};
  }
  const std::string_view version = line.substr(last + 1);
  const std::string_view uri = line.substr(first + 1, last - first - 1);
  start_[1] = span_of(uri);
  if (find_class(uri, char_blank) != uri.size() || uri.empty()) {
    return {ErrorCode::bad_start_line, static_cast<std::int32_t>(first + 1)};
  }
  if (version.size() < 4 || !equal_ignoring_case(version.substr(0, 4), "SIP/")) {
    return {ErrorCode::bad_start_line, static_cast<std::int32_t>(last + 1)};
  }
  if (!equal_ignoring_case(version, "SIP/2.0")) {
    return {ErrorCode::bad_version, static_cast<std::int32_t>(last + 1)};
  }
  return {};
}

inline Error MessageView::parse_header_line(std::string_view line) {
  const auto here = [&](std::size_t offset, ErrorCode code) {
    return Error(code,
                 static_cast<std::int32_t>(static_cast<std::size_t>(line.data() - base_) + offset));
  };
  const std::size_t colon = std::min(line.find(':'), line.size());
  std::size_t name_end = colon;
  while (name_end > 0 && (line[name_end - 1] == ' ' || line[name_end - 1] == '\t')) --name_end;
  const std::string_view name = line.substr(0, name_end);
  const HeaderId id = header_id(name);
  // Names we know are tokens.
  if (colon == line.size() || (id == HeaderId::other && !is_token(name))) {
    return here(skip_class(line, char_token), ErrorCode::bad_header_line);
  }
  if (header_count_ == SIPMSG_MAX_HEADERS) return here(0, ErrorCode::too_many_headers);

  fields_[header_count_] = {span_of(name), span_of(trim(line.substr(colon + 1))), id, no_field};
  if (id != HeaderId::other) {
    const auto known = static_cast<std::size_t>(id);
    if (first_[known] == no_field) {
      first_[known] = header_count_;
    } else {
      fields_[last_[known]].next = header_count_;
    }
    last_[known] = header_count_;
  }
  ++header_count_;
  return {};
}

inline Error MessageView::find_body(std::size_t head_size, std::size_t available, Framing framing) {
  body_begin_ = static_cast<std::uint16_t>(head_size);
  const std::size_t rest = available - head_size;
  body_size_ = framing == Framing::datagram ? static_cast<std::uint16_t>(rest) : std::uint16_t{0};
  const std::size_t index = find(HeaderId::content_length);
  if (index == header_count_) {
    // RFC 3261 18.3: on a stream it is mandatory; a datagram's end is the body's.
    if (framing == Framing::datagram) return {};
    return {ErrorCode::missing_content_length, static_cast<std::int32_t>(head_size)};
  }
  const auto place = static_cast<std::int32_t>(fields_[index].value.begin);
  const std::string_view value = text(fields_[index].value);
  for (std::size_t i = find_next(index); i != header_count_; i = find_next(i)) {
    if (text(fields_[i].value) != value) return {ErrorCode::conflicting_content_length, place};
  }
  if (!all_of_class(value, char_digit)) return {ErrorCode::bad_content_length, place};
  const auto length = parse_digits(value, max_message_size);
  if (framing == Framing::stream) {
    if (!length || *length > max_message_size - head_size) return {ErrorCode::too_large, place};
    body_size_ = static_cast<std::uint16_t>(std::min<std::size_t>(*length, rest));
    missing_ = static_cast<std::uint16_t>(*length - body_size_);
    if (missing_ > 0) return {ErrorCode::incomplete, static_cast<std::int32_t>(available)};
    return {};
  }
  if (!length || *length > rest) return {ErrorCode::content_length_beyond, place};
  body_size_ = static_cast<std::uint16_t>(*length);
  return {};
}

namespace detail {

inline Error error_in_header(const MessageView& message, HeaderId id, Error error) {
  return message.has(id) ? error.at(message.offset_of(message.header(id))) : error;
}

inline Error check_single_headers(const MessageView& message) {
  for (std::size_t i = 0; i < message.header_count(); ++i) {
    const std::size_t next = message.find_next(i);
    if (next == message.header_count() || !is_single_header(message.field(i).id)) continue;
    return {ErrorCode::duplicate_header,
            static_cast<std::int32_t>(message.offset_of(message.field(next).name))};
  }
  return {};
}

/// callid = word [ "@" word ] (RFC 3261 25.1): no blank and nothing that is not printable.
inline bool is_call_id(std::string_view text) {
  for (char c : text) {
    const auto octet = static_cast<unsigned char>(c);
    if (octet <= 0x20 || octet >= 0x7f) return false;
  }
  return !text.empty();
}

}  // namespace detail

/// Whether a message that was parsed without error has what every message must have (RFC 3261
/// 8.1.1, 8.2.6): Via, From, To, Call-ID and CSeq, each well formed; nothing twice that may stand
/// once; the CSeq method of a request its own; a Request-URI that is one.
/// The first mistake is returned, with its offset in the message where it has a place there.
/// A missing Max-Forwards passes: RFC 2543 did not know it (RFC 4475 3.4.1).
inline Error validate(const MessageView& message) {
  if (!message.has(HeaderId::call_id)) return ErrorCode::missing_call_id;
  if (auto error = detail::check_single_headers(message)) return error;
  const auto via = message.top_via();
  if (!via) return detail::error_in_header(message, HeaderId::via, via.error());
  const auto from = message.from();
  if (!from) return detail::error_in_header(message, HeaderId::from, from.error());
  const auto to = message.to();
  if (!to) return detail::error_in_header(message, HeaderId::to, to.error());
  const auto cseq = message.cseq();
  if (!cseq) return detail::error_in_header(message, HeaderId::cseq, cseq.error());
  if (!detail::is_call_id(message.call_id())) {
    return detail::error_in_header(message, HeaderId::call_id, ErrorCode::bad_call_id);
  }
  if (message.is_response()) return {};
  if (cseq->method != message.method_text()) {
    return detail::error_in_header(message, HeaderId::cseq, ErrorCode::cseq_method_mismatch);
  }
  if (message.has(HeaderId::max_forwards) && !message.max_forwards()) {
    return detail::error_in_header(message, HeaderId::max_forwards, ErrorCode::bad_number);
  }
  const auto uri = message.request_uri();
  if (!uri) return uri.error().at(message.offset_of(message.request_uri_text()));
  return {};
}

/// A message that owns its bytes; everything a MessageView can be asked, it can. Copying and moving
/// keep it whole. Lifetime of what it returns: as long as this Message is neither changed nor gone.
class Message : public MessageView {
 public:
  Message() = default;
  /// A copy of what `view` shows.
  explicit Message(const MessageView& view) : MessageView(view), storage_(view.bytes()) {
    rebase(storage_.data());
  }
  Message(const Message& other) : MessageView(other), storage_(other.storage_) {
    rebase(storage_.data());
  }
  Message(Message&& other) noexcept : MessageView(other), storage_(std::move(other.storage_)) {
    rebase(storage_.data());
    static_cast<MessageView&>(other) = MessageView();
  }
  Message& operator=(const Message& other) {
    if (this != &other) *this = Message(other);
    return *this;
  }
  Message& operator=(Message&& other) noexcept {
    if (this == &other) return *this;
    MessageView::operator=(other);
    storage_ = std::move(other.storage_);
    rebase(storage_.data());
    other.storage_.clear();
    static_cast<MessageView&>(other) = MessageView();
    return *this;
  }

  /// Takes the bytes over and reads them. The error is the one of MessageView::parse.
  static Result<Message> from_bytes(std::string bytes, Framing framing = Framing::datagram) {
    Message message;
    message.storage_ = std::move(bytes);
    if (auto error = message.parse(message.storage_, framing)) return error;
    return message;
  }

 private:
  using MessageView::parse;
  using MessageView::rebase;
  std::string storage_;
};

}  // namespace sipmsg

// ========================================== stream.hpp ==========================================

// stream: where one message ends and the next begins on a TCP connection.
//
// TCP carries octets, not messages: one read may bring half a header or three messages. A
// StreamFramer holds what has come and not been used, and hands out one message after the other,
// however the octets were cut on their way. Content-Length alone says where a body ends (RFC 3261
// 18.3), so a message without one that can be trusted is the last of its connection. Empty lines
// between messages are skipped (RFC 3261 7.5); two of them are a ping (RFC 5626 3.5.1).
//
// Memory follows the octets that came, not the lengths that were announced, and a connection that
// is quiet holds none. When to close a slow connection is for the owner of the clock to say.

namespace sipmsg {

/// What StreamFramer::next found.
enum class StreamEvent : std::uint8_t {
  need_more,  ///< nothing whole is left: read more
  message,    ///< a whole message, in `view()`; its first mistake, if any, in `error()`
  blank,      ///< one CR LF between messages: the answer to a ping of ours, or padding
  ping,       ///< a second CR LF right behind a blank: answer it with one CR LF
  error,      ///< nobody knows where this message ends: answer `view()` with `error()`, and close
};

namespace detail {

struct StreamBlock {
  MessageView view;
  std::size_t capacity = 0;
  std::unique_ptr<char[]> octets;
};

}  // namespace detail

/// Read buffers that nobody uses at the moment, shared by all connections of one loop, so that a
/// busy connection allocates nothing and a quiet one holds nothing.
/// Lifetime: must outlive every StreamFramer that was made with it.
class StreamBuffers {
 public:
  /// Holds most messages; larger ones get a buffer of their own while they last.
  static constexpr std::size_t block_size = 4096;

  explicit StreamBuffers(std::size_t max_spare = 16) : max_spare_(max_spare) {
    spare_.reserve(max_spare);
  }

  /// How many are kept at the moment.
  std::size_t spare() const { return spare_.size(); }

 private:
  friend class StreamFramer;

  std::unique_ptr<detail::StreamBlock> take() {
    if (!spare_.empty()) {
      auto block = std::move(spare_.back());
      spare_.pop_back();
      return block;
    }
    auto block = std::make_unique<detail::StreamBlock>();
    block->octets.reset(new char[block_size]);
    block->capacity = block_size;
    return block;
  }
  void give_back(std::unique_ptr<detail::StreamBlock> block) {
    if (block && block->capacity == block_size && spare_.size() < max_spare_) {
      spare_.push_back(std::move(block));
    }
  }

  std::vector<std::unique_ptr<detail::StreamBlock>> spare_;
  std::size_t max_spare_;
};

/// The reading side of one connection. In turn: read into `writable()`, `commit` what came, call
/// `next()` until it says `need_more`, also where nothing came, because that gives an unused buffer
/// back. The events do not depend on how the octets were cut.
class StreamFramer {
 public:
  /// Messages of more than `max_message_octets` (at most sipmsg::max_message_size) are an error.
  explicit StreamFramer(StreamBuffers& buffers, std::size_t max_message_octets = max_message_size)
      : buffers_(&buffers),
        limit_(std::clamp<std::size_t>(max_message_octets, 1, max_message_size)) {}
  ~StreamFramer() { buffers_->give_back(std::move(block_)); }
  StreamFramer(const StreamFramer&) = delete;
  StreamFramer& operator=(const StreamFramer&) = delete;

  /// Memory to read into.
  struct Room {
    char* data;
    std::size_t size;
  };

  /// Where the next octets go: room for at least one, none after `error`. Ends the life of
  /// `view()`.
  Room writable() {
    if (failed_) return {nullptr, 0};
    consume_message();
    if (!block_) block_ = buffers_->take();
    make_room();
    return {block_->octets.get() + end_, block_->capacity - end_};
  }
  /// Says that `size` octets were put into `writable()`, which must have been called before.
  void commit(std::size_t size) { end_ += size; }

  /// Goes on to the next message or blank line. Ends the life of `view()`.
  StreamEvent next() {
    if (failed_) return StreamEvent::error;
    consume_message();
    if (skip_line_end()) {
      after_blank_ = !after_blank_;
      return after_blank_ ? StreamEvent::blank : StreamEvent::ping;
    }
    if (begin_ == end_) {
      buffers_->give_back(std::move(block_));
      begin_ = end_ = 0;
      return StreamEvent::need_more;
    }
    const bool head_is_read = message_size_ != 0 || read_head();
    if (failed_) return StreamEvent::error;
    if (!head_is_read || pending() < message_size_) {
      // A large buffer does not outlive its message.
      const bool large = block_->capacity > StreamBuffers::block_size;
      if (large && pending() < StreamBuffers::block_size) move_to(StreamBuffers::block_size);
      return StreamEvent::need_more;
    }
    block_->view.extend(available());
    after_blank_ = false;
    delivered_ = true;
    return StreamEvent::message;
  }

  /// The message, after the events `message` and `error` only; after `error` as much of it as could
  /// be read. Lifetime: until `next`, `writable` or the destructor is called.
  const MessageView& view() const { return block_->view; }
  /// The mistake in `view()`, if any, as MessageView::parse found it.
  Error error() const { return error_; }
  /// Octets that came and were not handed out yet: a part of a message, if `next` needs more.
  std::size_t pending() const { return end_ - begin_; }
  /// Octets of memory held for this connection.
  std::size_t capacity() const { return block_ ? block_->capacity : 0; }

 private:
  std::string_view available() const {
    if (!block_) return {};
    return {block_->octets.get() + begin_, end_ - begin_};
  }
  bool fail(Error error) {
    failed_ = true;
    error_ = error;
    return false;
  }
  void consume_message() {
    if (!delivered_) return;
    begin_ += message_size_;
    message_size_ = searched_ = 0;
    error_ = {};
    delivered_ = false;
  }
  bool skip_line_end() {
    if (message_size_ != 0 || available().substr(0, 2) != "\r\n") return false;
    begin_ += 2;
    searched_ = 0;
    return true;
  }

  /// Reads the head of a message once it is all there, and so learns the size of the whole. False
  /// where octets are missing, or with `failed_` where the size cannot be known.
  bool read_head() {
    const std::string_view octets = available().substr(0, limit_);
    // The first look is a parse, which mostly finds a whole message. Where it does not, nothing is
    // parsed again before the end of the head has come, and no octet is searched twice for it.
    if (searched_ != 0 && !find_head_end(octets) && octets.size() < limit_) return false;
    const Error error = block_->view.parse(octets, Framing::stream);
    const std::size_t size = block_->view.size();
    const bool head_missing = error.code == ErrorCode::incomplete && size == octets.size();
    if (head_missing && octets.size() < limit_) {
      // What the end of the head may have begun with is searched again: LF CR LF.
      searched_ = std::max<std::size_t>(octets.size(), 3) - 2;
      return false;
    }
    if (head_missing || size > limit_) {
      return fail({ErrorCode::too_large, static_cast<std::int32_t>(limit_)});
    }
    if (breaks_frame(error.code)) return fail(error);
    if (error.code != ErrorCode::incomplete) error_ = error;
    message_size_ = size;
    return true;
  }

  /// Looks for an empty line, as MessageView::parse understands it, from `searched_` on.
  bool find_head_end(std::string_view octets) {
    while (true) {
      const std::size_t line_end = octets.find('\n', searched_);
      if (line_end == std::string_view::npos) {
        searched_ = octets.size();
        return false;
      }
      searched_ = line_end;
      const std::string_view rest = octets.substr(line_end + 1, 2);
      if (rest == "\r\n" || (!rest.empty() && rest[0] == '\n')) return true;
      if (rest.empty() || rest == "\r") return false;
      ++searched_;
    }
  }

  /// Sees to it that something can be read behind `end_`.
  void make_room() {
    if (begin_ > 0) {
      std::memmove(block_->octets.get(), block_->octets.get() + begin_, pending());
      end_ -= begin_;
      begin_ = 0;
    }
    // Doubling as the octets come: whoever announces much and sends little is given little.
    const bool full = end_ == block_->capacity && end_ < limit_;
    if (full) move_to(std::min(block_->capacity * 2, limit_));
  }
  void move_to(std::size_t capacity) {
    std::unique_ptr<char[]> octets(new char[capacity]);
    std::memcpy(octets.get(), block_->octets.get() + begin_, pending());
    block_->octets = std::move(octets);
    block_->capacity = capacity;
    end_ -= begin_;
    begin_ = 0;
  }

  StreamBuffers* buffers_;
  std::unique_ptr<detail::StreamBlock> block_;
  std::size_t limit_;
  std::size_t begin_ = 0;         ///< of the current message, in the block
  std::size_t end_ = 0;           ///< of the octets that came
  std::size_t message_size_ = 0;  ///< of the current message, 0 until its head was read
  std::size_t searched_ = 0;      ///< up to where the current message has no end of its head
  Error error_;
  bool delivered_ = false;    ///< the current message was handed out
  bool after_blank_ = false;  ///< an odd number of CR LF came since the last message
  bool failed_ = false;
};

}  // namespace sipmsg

// ========================================== writer.hpp ==========================================

// writer: new requests, answers to requests, and received messages sent on with a few edits.
//
// Everything is written into a buffer the caller gives, so that writing allocates nothing. A
// message that is forwarded is not built again: the edits say what to cut out and what to put in,
// and the result is a list of slices, most of them of the received bytes, that goes out as one
// datagram. CR, LF and NUL cannot get into a header: whatever comes from a caller goes through
// `Output::value` and its stricter kin, which refuse them, and Edits look at the lines they are
// given.

namespace sipmsg {

/// Writes into a buffer of the caller's. The first thing that goes wrong stays in `error()`, and
/// nothing is written after it, so that a whole message can be written before asking once.
/// Lifetime: the buffer must outlive this and every view of `written()`.
class Output {
 public:
  Output(char* buffer, std::size_t room) : buffer_(buffer), room_(room) {}

  /// Octets as they are: literals, and what was checked before.
  Output& raw(std::string_view text) {
    if (error_) return *this;
    if (text.size() > room_ - size_) {
      error_ = {ErrorCode::no_room, static_cast<std::int32_t>(size_)};
      return *this;
    }
    if (!text.empty()) std::memcpy(buffer_ + size_, text.data(), text.size());
    size_ += text.size();
    return *this;
  }
  /// Octets from a caller, which must not end the line: error `forbidden_octet` for CR, LF and NUL.
  Output& value(std::string_view text) {
    for (std::size_t i = find_control(text); i < text.size(); i = find_control(text, i + 1)) {
      if (text[i] != '\t') return fail(ErrorCode::forbidden_octet, i);
    }
    return raw(text);
  }
  /// Octets from a caller, one or more, none of them a blank or a control character: a URI, a
  /// Call-ID, a host. Error: `forbidden_octet`.
  Output& word(std::string_view text) {
    for (std::size_t i = 0; i < text.size(); ++i) {
      const auto octet = static_cast<unsigned char>(text[i]);
      if (octet <= 0x20 || octet == 0x7f) return fail(ErrorCode::forbidden_octet, i);
    }
    if (text.empty()) return fail(ErrorCode::forbidden_octet, 0);
    return raw(text);
  }
  /// A token from a caller (RFC 3261 25.1). Error: `bad_token`.
  Output& token(std::string_view text) {
    if (!is_token(text)) return fail(ErrorCode::bad_token, skip_class(text, char_token));
    return raw(text);
  }
  /// A header value that was received, perhaps in a message with mistakes: each line break in it,
  /// proper folding or not, becomes a blank.
  Output& received(std::string_view text) {
    std::size_t begin = 0;
    for (std::size_t i = find_control(text); i < text.size(); i = find_control(text, i)) {
      if (text[i] != '\r' && text[i] != '\n') {
        ++i;
        continue;
      }
      raw(text.substr(begin, i - begin)).raw(" ");
      while (i < text.size() && (text[i] == '\r' || text[i] == '\n')) ++i;
      begin = i;
    }
    return raw(text.substr(begin));
  }
  Output& number(std::uint64_t value) {
    char digits[20];
    std::size_t begin = sizeof digits;
    do {
      digits[--begin] = static_cast<char>('0' + value % 10);
      value /= 10;
    } while (value != 0);
    return raw({digits + begin, sizeof digits - begin});
  }
  /// A host as it stands in a URI or a Via: an IPv6 address gets its brackets.
  Output& host(std::string_view text) {
    if (text.find(':') == std::string_view::npos) return word(text);
    return raw("[").word(text).raw("]");
  }
  Output& ip(const IpAddress& address) {
    char text[max_ip_text];
    return raw({text, write_ip(address, text)});
  }

  /// Writes a caller's octets and returns the copy: for edits whose text must outlive its source.
  std::string_view copied(std::string_view text) {
    const std::size_t begin = size_;
    value(text);
    return since(begin);
  }
  /// 16 lower-case hexadecimal digits.
  Output& hex(std::uint64_t value) {
    std::array<char, 16> digits;
    for (std::size_t i = 16; i-- > 0; value >>= 4) digits[i] = "0123456789abcdef"[value & 15];
    return raw({digits.data(), digits.size()});
  }

  std::string_view written() const { return {buffer_, size_}; }
  /// What was written since `written().size()` was `begin`.
  std::string_view since(std::size_t begin) const { return {buffer_ + begin, size_ - begin}; }
  std::size_t size() const { return size_; }
  std::size_t room() const { return room_ - size_; }
  Error error() const { return error_; }
  /// Notes what a writer finds wrong with its arguments.
  Output& fail(ErrorCode code, std::size_t place = 0) {
    if (!error_) error_ = {code, static_cast<std::int32_t>(place)};
    return *this;
  }

 private:
  char* buffer_;
  std::size_t room_;
  std::size_t size_ = 0;
  Error error_;
};

/// The phrase that RFC 3261 21 gives a status code; that of its class for a code it does not know.
inline std::string_view default_reason_phrase(int code) {
  switch (code) {
    case 100: return "Trying";
    case 200: return "OK";
    case 202: return "Accepted";
    case 300: return "Multiple Choices";
    case 302: return "Moved Temporarily";
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 406: return "Not Acceptable";
    case 407: return "Proxy Authentication Required";
    case 408: return "Request Timeout";
    case 410: return "Gone";
    case 413: return "Request Entity Too Large";
    case 414: return "Request-URI Too Long";
    case 415: return "Unsupported Media Type";
    case 416: return "Unsupported URI Scheme";
    case 420: return "Bad Extension";
    case 423: return "Interval Too Brief";
    case 440: return "Max-Breadth Exceeded";
    case 480: return "Temporarily Unavailable";
    case 481: return "Call/Transaction Does Not Exist";
    case 482: return "Loop Detected";
    case 483: return "Too Many Hops";
    case 484: return "Address Incomplete";
    case 485: return "Ambiguous";
    case 486: return "Busy Here";
    case 487: return "Request Terminated";
    case 488: return "Not Acceptable Here";
    case 491: return "Request Pending";
    case 500: return "Server Internal Error";
    case 501: return "Not Implemented";
    case 502: return "Bad Gateway";
    case 503: return "Service Unavailable";
    case 504: return "Server Time-out";
    case 505: return "Version Not Supported";
    case 513: return "Message Too Large";
    case 600: return "Busy Everywhere";
    case 603: return "Decline";
    case 604: return "Does Not Exist Anywhere";
    case 606: return "Not Acceptable";
    default: break;
  }
  constexpr std::string_view classes[] = {"Trying",      "OK",           "Multiple Choices",
                                          "Bad Request", "Server Error", "Decline"};
  return classes[code >= 100 && code < 700 ? code / 100 - 1 : 4];
}

/// `Name: value`, both the caller's.
inline void write_header(Output& out, std::string_view name, std::string_view value) {
  out.token(name).raw(": ").value(value).raw("\r\n");
}
inline void write_header(Output& out, HeaderId id, std::string_view value) {
  write_header(out, header_name(id), value);
}
inline void write_header(Output& out, HeaderId id, std::uint64_t value) {
  out.token(header_name(id)).raw(": ").number(value).raw("\r\n");
}

/// Ends the headers and adds the body: Content-Type where there is one, Content-Length always
/// (RFC 3261 20.14: mandatory on a stream, harmless in a datagram).
inline void write_body(Output& out, std::string_view content_type, std::string_view body) {
  if (!content_type.empty()) write_header(out, HeaderId::content_type, content_type);
  write_header(out, HeaderId::content_length, body.size());
  out.raw("\r\n").raw(body);
}

/// A Via element as the server that received it must note it: with `received` where the sender's
/// host is not the address it came from or where it asked for rport, and with the value of `rport`
/// (RFC 3261 18.2.1, RFC 3581 4). What the sender itself claimed of either is left out.
inline void write_stamped_via(Output& out, std::string_view element, const Via& via,
                              const SocketAddress& source) {
  const std::size_t parameters = std::min(element.find(';'), element.size());
  out.received(trim(element.substr(0, parameters)));
  if (parameters < element.size()) {
    for (const Parameter& parameter : Parameters(element.substr(parameters + 1))) {
      if (equal_ignoring_case(parameter.name, "received") ||
          equal_ignoring_case(parameter.name, "rport")) {
        continue;
      }
      out.raw(";").received(parameter.name);
      if (parameter.has_value) out.raw("=").received(parameter.value);
    }
  }
  const auto sent_by = parse_ip(via.host);
  if (via.has_rport || !sent_by || *sent_by != source.ip) out.raw(";received=").ip(source.ip);
  if (via.has_rport) out.raw(";rport=").number(source.port);
}

/// The status line of an answer, `code` from 100 to 699. An empty phrase means the usual one.
inline void write_status_line(Output& out, int code, std::string_view phrase) {
  if (code < 100 || code > 699) {
    out.fail(ErrorCode::bad_argument);
    return;
  }
  out.raw("SIP/2.0 ").number(static_cast<std::uint64_t>(code)).raw(" ");
  out.value(phrase.empty() ? default_reason_phrase(code) : phrase).raw("\r\n");
}

/// The headers every answer takes from its request (RFC 3261 8.2.6): all Via, the top one stamped;
/// From, To, Call-ID, CSeq. `to_tag` is added where the request's To has none; a 100 needs none.
/// The request may be one that failed to parse: what it lacks is left out.
inline void write_response_head(Output& out, const MessageView& request, std::string_view to_tag,
                                const SocketAddress& source) {
  bool top = true;
  for (std::string_view element : request.values(HeaderId::via)) {
    const auto via = parse_via(element);
    out.raw("Via: ");
    if (top && via) {
      write_stamped_via(out, element, *via, source);
    } else {
      out.received(element);
    }
    out.raw("\r\n");
    top = false;
  }
  for (HeaderId id : {HeaderId::from, HeaderId::to, HeaderId::call_id, HeaderId::cseq}) {
    if (!request.has(id)) continue;
    out.raw(header_name(id)).raw(": ").received(request.header(id));
    if (id == HeaderId::to && !to_tag.empty()) {
      const auto to = request.to();
      if (to && to->tag().empty()) out.raw(";tag=").token(to_tag);
    }
    out.raw("\r\n");
  }
}

/// What a new request begins with. All texts are the caller's and are checked.
struct RequestStart {
  std::string_view method;
  std::string_view request_uri;
  Transport transport = Transport::udp;
  std::string_view sent_by;  ///< host[:port] of our Via
  std::string_view branch;   ///< with the magic cookie
  std::string_view from;     ///< name-addr or addr-spec, without tag
  std::string_view from_tag;
  std::string_view to;
  std::string_view to_tag;  ///< only within a dialog
  std::string_view call_id;
  std::uint32_t cseq = 1;
  std::uint32_t max_forwards = 70;
};

/// The request line and the headers of RFC 3261 8.1.1. Further headers and `write_body` follow.
inline void begin_request(Output& out, const RequestStart& start) {
  out.token(start.method).raw(" ").word(start.request_uri).raw(" SIP/2.0\r\n");
  out.raw("Via: SIP/2.0/").raw(transport_name(start.transport)).raw(" ").word(start.sent_by);
  out.raw(";branch=").token(start.branch).raw(";rport\r\n");
  write_header(out, HeaderId::max_forwards, start.max_forwards);
  out.raw("From: ").value(start.from).raw(";tag=").token(start.from_tag).raw("\r\n");
  out.raw("To: ").value(start.to);
  if (!start.to_tag.empty()) out.raw(";tag=").token(start.to_tag);
  out.raw("\r\n");
  out.raw("Call-ID: ").word(start.call_id).raw("\r\n");
  out.raw("CSeq: ").number(start.cseq).raw(" ").token(start.method).raw("\r\n");
}

/// A message in pieces, in the order they go out. Lifetime: that of the bytes the pieces point to.
struct Slices {
  static constexpr std::size_t capacity = 48;

  /// A string_view that may be left uninitialised: one message in a thousand has 48 pieces, and
  /// every one would pay for clearing them.
  struct Piece {
    const char* octets;
    std::size_t length;

    operator std::string_view() const { return {octets, length}; }
  };

  std::array<Piece, capacity> pieces;
  std::size_t count = 0;
  bool complete = true;  ///< false once a piece beyond the capacity was left out

  Slices() {}  // NOLINT: leaves `pieces` as they are, also in Slices{}
  explicit Slices(std::string_view whole) { add(whole); }
  void add(std::string_view piece) {
    if (piece.empty()) return;
    complete = count < capacity;
    if (complete) pieces[count++] = {piece.data(), piece.size()};
  }
  const Piece* begin() const { return pieces.data(); }
  const Piece* end() const { return pieces.data() + count; }
  std::size_t size() const {
    std::size_t sum = 0;
    for (std::string_view piece : *this) sum += piece.size();
    return sum;
  }
  /// Copies all pieces to `out`, which has room for `size()` octets.
  void copy_to(char* out) const {
    for (std::string_view piece : *this) {
      std::memcpy(out, piece.data(), piece.size());
      out += piece.size();
    }
  }
  std::string to_string() const {
    std::string whole(size(), '\0');
    copy_to(&whole[0]);
    return whole;
  }
};

namespace detail {

/// Whether a text is header lines and nothing else: each with a name, a colon and its CR LF, none
/// empty, no CR or LF anywhere else but in folding.
inline bool are_header_lines(std::string_view lines) {
  while (!lines.empty()) {
    const std::size_t name = skip_class(lines, char_token);
    if (name == 0 || name == lines.size() || lines[name] != ':') return false;
    std::size_t end = find_control(lines);
    while (end < lines.size() && lines[end] != '\r') {
      if (lines[end] == '\n' || lines[end] == '\0') return false;
      end = find_control(lines, end + 1);
    }
    if (lines.substr(end, 2) != "\r\n") return false;
    lines.remove_prefix(end + 2);
  }
  return true;
}

}  // namespace detail

/// A received message as it is to be sent on: a sorted list of places where something is cut out
/// and something put in. The message must have been parsed without error. The texts put in must
/// stay where they are until the message is sent; write them into an Output of your own.
/// The first thing that goes wrong stays in `error()`; `slices()` is empty from then on.
class Edits {
 public:
  explicit Edits(const MessageView& message) : message_(&message) {}

  /// Puts `text` in place of `length` octets at `offset`; what the text holds is not looked at.
  /// Of several insertions at one offset the first one made comes first, and all of them come
  /// before what replaces the octets there.
  /// Errors: `bad_argument` outside the message and where edits overlap, `no_room` beyond 23 edits.
  void replace(std::size_t offset, std::size_t length, std::string_view text) {
    const std::size_t size = message_->bytes().size();
    if (offset > size || length > size - offset) return fail(ErrorCode::bad_argument);
    if (count_ == capacity) return fail(ErrorCode::no_room);
    std::size_t at = count_;
    while (at > 0 && comes_before(offset, length, edits_[at - 1])) --at;
    const bool overlaps =
        (at > 0 && std::size_t{edits_[at - 1].offset} + edits_[at - 1].length > offset) ||
        (at < count_ && offset + length > edits_[at].offset);
    if (overlaps) return fail(ErrorCode::bad_argument);
    for (std::size_t i = count_++; i > at; --i) edits_[i] = edits_[i - 1];
    edits_[at] = {static_cast<std::uint16_t>(offset), static_cast<std::uint16_t>(length),
                  static_cast<std::uint32_t>(text.size()), text.data()};
  }
  void insert(std::size_t offset, std::string_view text) { replace(offset, 0, text); }
  /// Puts another text in place of a part of the message, such as a header's value. Error:
  /// `forbidden_octet` for CR, LF and NUL in the text.
  void replace(std::string_view part, std::string_view text) {
    for (std::size_t i = find_control(text); i < text.size(); i = find_control(text, i + 1)) {
      if (text[i] != '\t') return fail(ErrorCode::forbidden_octet);
    }
    cut(part, text);
  }

  /// Error: `forbidden_octet` for a URI that is empty or holds a blank or a control character.
  void set_request_uri(std::string_view uri) {
    if (uri.empty()) return fail(ErrorCode::forbidden_octet);
    for (char c : uri) {
      if (static_cast<unsigned char>(c) <= 0x20 || c == 0x7f)
        return fail(ErrorCode::forbidden_octet);
    }
    cut(message_->request_uri_text(), uri);
  }
  void remove_field(std::size_t index) {
    if (index >= message_->header_count()) return fail(ErrorCode::bad_argument);
    cut(message_->field_line(index), {});
  }
  /// Puts whole lines, each with its CR LF, before all headers or behind them. Error:
  /// `forbidden_octet` where the text is anything else than header lines.
  void insert_first(std::string_view lines) {
    const bool none = message_->header_count() == 0;
    insert_lines(none ? end_of_headers() : message_->offset_of(message_->field_line(0)), lines);
  }
  void insert_last(std::string_view lines) { insert_lines(end_of_headers(), lines); }
  /// Takes the first element of a comma separated header away: the whole line where it is alone.
  void remove_first_element(HeaderId id) {
    const std::size_t index = message_->find(id);
    if (index == message_->header_count()) return fail(ErrorCode::bad_argument);
    const std::string_view value = message_->field(index).value;
    const std::size_t end = find_outside_quotes(value, ',');
    if (end == value.size()) {
      remove_field(index);
    } else {
      cut(value.substr(0, end + 1), {});
    }
  }
  /// Puts another body in place, and corrects Content-Length.
  /// `length_text` must hold the decimal digits of the new body's size.
  void set_body(std::string_view body, std::string_view length_text) {
    replace(message_->body_offset(), message_->body().size(), body);
    set_content_length(length_text);
  }
  /// Puts the number into Content-Length, or the header into a message that has none, as a datagram
  /// may. Error: `bad_number` where the text is not one.
  void set_content_length(std::string_view digits) {
    if (!all_of_class(digits, char_digit)) return fail(ErrorCode::bad_number);
    if (message_->has(HeaderId::content_length)) {
      return cut(message_->header(HeaderId::content_length), digits);
    }
    insert(end_of_headers(), "Content-Length: ");
    insert(end_of_headers(), digits);
    insert(end_of_headers(), "\r\n");
  }

  Error error() const { return error_; }

  Slices slices() const {
    Slices result;
    if (error_) return result;
    const std::string_view bytes = message_->bytes();
    std::size_t position = 0;
    for (std::size_t i = 0; i < count_; ++i) {
      const Edit& edit = edits_[i];
      result.add(bytes.substr(position, edit.offset - position));
      result.add({edit.text, edit.text_size});
      position = std::size_t{edit.offset} + edit.length;
    }
    result.add(bytes.substr(position));
    return result;
  }

 private:
  struct Edit {
    std::uint16_t offset;
    std::uint16_t length;
    std::uint32_t text_size;
    const char* text;
  };
  // Each edit makes at most two slices, and one more ends the message.
  static constexpr std::size_t capacity = (Slices::capacity - 1) / 2;

  static bool comes_before(std::size_t offset, std::size_t length, const Edit& other) {
    return offset < other.offset || (offset == other.offset && length == 0 && other.length > 0);
  }
  void fail(ErrorCode code) {
    if (!error_) error_ = code;
  }
  std::size_t end_of_headers() const { return message_->body_offset() - 2; }
  void cut(std::string_view part, std::string_view text) {
    replace(message_->offset_of(part), part.size(), text);
  }
  void insert_lines(std::size_t offset, std::string_view lines) {
    if (!detail::are_header_lines(lines)) return fail(ErrorCode::forbidden_octet);
    insert(offset, lines);
  }

  const MessageView* message_;
  std::array<Edit, capacity> edits_{};
  std::size_t count_ = 0;
  Error error_;
};

}  // namespace sipmsg

// ========================================= content.hpp ==========================================

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

// =========================================== hash.hpp ===========================================

// hash: MD5, SHA-256 and SHA-512/256, HMAC, the keyed hash of all tables, random tokens.
//
// Digest authentication names three hashes: MD5 (RFC 1321), SHA-256 and SHA-512/256 (FIPS 180-4).
// They share one shape, cut into blocks, pad, mix each block into a small state, so they share the
// code that buffers and pads, and the two SHA-2 share the mixing as well. Tables whose keys an
// attacker may choose are keyed by SipHash (Aumasson, Bernstein 2012), whose values nobody can
// foresee without the key; the same function, counting, yields the random tokens of tags and
// branches. Left out on purpose: everything not needed for that (SHA-1, ciphers), and instructions
// of particular processors.

namespace sipmsg {

namespace detail {

inline const unsigned char* as_octets(std::string_view text) {
  return reinterpret_cast<const unsigned char*>(text.data());
}
inline std::string_view as_text(const std::uint8_t* octets, std::size_t count) {
  return {reinterpret_cast<const char*>(octets), count};
}

inline std::uint32_t load_little_32(const unsigned char* p) {
  return static_cast<std::uint32_t>(p[0]) | static_cast<std::uint32_t>(p[1]) << 8 |
         static_cast<std::uint32_t>(p[2]) << 16 | static_cast<std::uint32_t>(p[3]) << 24;
}
inline std::uint64_t load_little_64(const unsigned char* p) {
  return load_little_32(p) | static_cast<std::uint64_t>(load_little_32(p + 4)) << 32;
}

/// The most significant octet first.
template <class Word>
Word load_big(const unsigned char* p) {
  Word word = 0;
  for (std::size_t i = 0; i < sizeof(Word); ++i) word = static_cast<Word>(word << 8 | p[i]);
  return word;
}

template <class Word>
void store_little(Word word, std::uint8_t* out) {
  for (std::size_t i = 0; i < sizeof(Word); ++i) out[i] = static_cast<std::uint8_t>(word >> 8 * i);
}
template <class Word>
void store_big(Word word, std::uint8_t* out) {
  for (std::size_t i = sizeof(Word); i-- > 0; word = static_cast<Word>(word >> 8)) {
    out[i] = static_cast<std::uint8_t>(word);
  }
}

template <class Word>
constexpr Word rotate_left(Word word, int by) {
  return static_cast<Word>(word << by | word >> (static_cast<int>(sizeof(Word)) * 8 - by));
}
template <class Word>
constexpr Word rotate_right(Word word, int by) {
  return rotate_left(word, static_cast<int>(sizeof(Word)) * 8 - by);
}

/// What MD5 and the SHA-2 have in common: input of any length is cut into blocks, and the last
/// block is filled with a one bit, zeros and the length in bits. `Core` mixes one block.
template <class Core>
class BlockHash {
 public:
  static constexpr std::size_t digest_size = Core::digest_size;
  static constexpr std::size_t block_size = Core::block_size;
  using Digest = std::array<std::uint8_t, digest_size>;

  void update(std::string_view input) {
    if (input.empty()) return;
    length_ += input.size();
    if (filled_ > 0) {
      const std::size_t taken = std::min(input.size(), block_size - filled_);
      std::memcpy(buffer_.data() + filled_, input.data(), taken);
      filled_ += taken;
      input.remove_prefix(taken);
      if (filled_ < block_size) return;
      core_.mix(buffer_.data());
      filled_ = 0;
    }
    for (; input.size() >= block_size; input.remove_prefix(block_size)) core_.mix(as_octets(input));
    if (!input.empty()) std::memcpy(buffer_.data(), input.data(), input.size());
    filled_ = input.size();
  }

  /// The digest of all that was put in. The object is spent then; a copy made before goes on.
  Digest finish() {
    buffer_[filled_++] = 0x80;
    if (filled_ > block_size - Core::length_size) {
      std::fill(buffer_.begin() + static_cast<std::ptrdiff_t>(filled_), buffer_.end(), 0);
      core_.mix(buffer_.data());
      filled_ = 0;
    }
    // No input reaches 2^64 bits, so that the upper half of SHA-512's length stays zero.
    std::fill(buffer_.begin() + static_cast<std::ptrdiff_t>(filled_), buffer_.end(), 0);
    Core::store_length(length_ * 8, buffer_.data() + block_size - sizeof(std::uint64_t));
    core_.mix(buffer_.data());
    return core_.digest();
  }

  static Digest of(std::string_view input) {
    BlockHash hash;
    hash.update(input);
    return hash.finish();
  }

 private:
  Core core_;
  std::uint64_t length_ = 0;
  std::size_t filled_ = 0;
  std::array<unsigned char, block_size> buffer_{};
};

/// RFC 1321 3.4. The constants are the first 32 bits of |sin(1)|, |sin(2)|, ... (radians).
class Md5Core {
 public:
  static constexpr std::size_t digest_size = 16;
  static constexpr std::size_t block_size = 64;
  static constexpr std::size_t length_size = 8;
  static void store_length(std::uint64_t bits, unsigned char* out) { store_little(bits, out); }

  void mix(const unsigned char* block) {
    std::array<std::uint32_t, 16> x;
    for (std::size_t i = 0; i < 16; ++i) x[i] = load_little_32(block + 4 * i);
    std::uint32_t a = state_[0];
    std::uint32_t b = state_[1];
    std::uint32_t c = state_[2];
    std::uint32_t d = state_[3];
    const auto step = [&](std::size_t i, std::uint32_t mixed, std::size_t word, int rotation) {
      const std::uint32_t sum = a + mixed + x[word % 16] + sines[i];
      a = d;
      d = c;
      c = b;
      b += rotate_left(sum, rotation);
    };
    constexpr std::array<std::array<int, 4>, 4> rotations{
        {{7, 12, 17, 22}, {5, 9, 14, 20}, {4, 11, 16, 23}, {6, 10, 15, 21}}};
    for (std::size_t i = 0; i < 16; ++i) step(i, d ^ (b & (c ^ d)), i, rotations[0][i % 4]);
    for (std::size_t i = 16; i < 32; ++i) {
      step(i, c ^ (d & (b ^ c)), 5 * i + 1, rotations[1][i % 4]);
    }
    for (std::size_t i = 32; i < 48; ++i) step(i, b ^ c ^ d, 3 * i + 5, rotations[2][i % 4]);
    for (std::size_t i = 48; i < 64; ++i) step(i, c ^ (b | ~d), 7 * i, rotations[3][i % 4]);
    state_[0] += a;
    state_[1] += b;
    state_[2] += c;
    state_[3] += d;
  }

  std::array<std::uint8_t, digest_size> digest() const {
    std::array<std::uint8_t, digest_size> result;
    for (std::size_t i = 0; i < 4; ++i) store_little(state_[i], result.data() + 4 * i);
    return result;
  }

 private:
  static constexpr std::array<std::uint32_t, 64> sines{
      0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee, 0xf57c0faf, 0x4787c62a, 0xa8304613,
      0xfd469501, 0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be, 0x6b901122, 0xfd987193,
      0xa679438e, 0x49b40821, 0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa, 0xd62f105d,
      0x02441453, 0xd8a1e681, 0xe7d3fbc8, 0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed,
      0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a, 0xfffa3942, 0x8771f681, 0x6d9d6122,
      0xfde5380c, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70, 0x289b7ec6, 0xeaa127fa,
      0xd4ef3085, 0x04881d05, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665, 0xf4292244,
      0x432aff97, 0xab9423a7, 0xfc93a039, 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1,
      0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb,
      0xeb86d391};

  std::array<std::uint32_t, 4> state_{0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476};
};

/// The fractional parts of the cube roots of the first 80 primes (FIPS 180-4 4.2.3). SHA-256 uses
/// the upper halves of the first 64 (4.2.2).
inline constexpr std::array<std::uint64_t, 80> cube_roots{
    0x428a2f98d728ae22, 0x7137449123ef65cd, 0xb5c0fbcfec4d3b2f, 0xe9b5dba58189dbbc,
    0x3956c25bf348b538, 0x59f111f1b605d019, 0x923f82a4af194f9b, 0xab1c5ed5da6d8118,
    0xd807aa98a3030242, 0x12835b0145706fbe, 0x243185be4ee4b28c, 0x550c7dc3d5ffb4e2,
    0x72be5d74f27b896f, 0x80deb1fe3b1696b1, 0x9bdc06a725c71235, 0xc19bf174cf692694,
    0xe49b69c19ef14ad2, 0xefbe4786384f25e3, 0x0fc19dc68b8cd5b5, 0x240ca1cc77ac9c65,
    0x2de92c6f592b0275, 0x4a7484aa6ea6e483, 0x5cb0a9dcbd41fbd4, 0x76f988da831153b5,
    0x983e5152ee66dfab, 0xa831c66d2db43210, 0xb00327c898fb213f, 0xbf597fc7beef0ee4,
    0xc6e00bf33da88fc2, 0xd5a79147930aa725, 0x06ca6351e003826f, 0x142929670a0e6e70,
    0x27b70a8546d22ffc, 0x2e1b21385c26c926, 0x4d2c6dfc5ac42aed, 0x53380d139d95b3df,
    0x650a73548baf63de, 0x766a0abb3c77b2a8, 0x81c2c92e47edaee6, 0x92722c851482353b,
    0xa2bfe8a14cf10364, 0xa81a664bbc423001, 0xc24b8b70d0f89791, 0xc76c51a30654be30,
    0xd192e819d6ef5218, 0xd69906245565a910, 0xf40e35855771202a, 0x106aa07032bbd1b8,
    0x19a4c116b8d2d0c8, 0x1e376c085141ab53, 0x2748774cdf8eeb99, 0x34b0bcb5e19b48a8,
    0x391c0cb3c5c95a63, 0x4ed8aa4ae3418acb, 0x5b9cca4f7763e373, 0x682e6ff3d6b2b8a3,
    0x748f82ee5defb2fc, 0x78a5636f43172f60, 0x84c87814a1f0ab72, 0x8cc702081a6439ec,
    0x90befffa23631e28, 0xa4506cebde82bde9, 0xbef9a3f7b2c67915, 0xc67178f2e372532b,
    0xca273eceea26619c, 0xd186b8c721c0c207, 0xeada7dd6cde0eb1e, 0xf57d4f7fee6ed178,
    0x06f067aa72176fba, 0x0a637dc5a2c898a6, 0x113f9804bef90dae, 0x1b710b35131c471b,
    0x28db77f523047d84, 0x32caab7b40c72493, 0x3c9ebe0a15c9bebc, 0x431d67c49c100d4c,
    0x4cc5d4becb3e42b6, 0x597f299cfc657e2a, 0x5fcb6fab3ad6faec, 0x6c44198c4a475817};

/// The functions of FIPS 180-4 4.1.2: three numbers each, rotate, rotate, and rotate or shift.
struct Sha256Shape {
  using Word = std::uint32_t;
  static constexpr std::size_t rounds = 64;
  static constexpr std::array<int, 3> sum_0{2, 13, 22};
  static constexpr std::array<int, 3> sum_1{6, 11, 25};
  static constexpr std::array<int, 3> sigma_0{7, 18, 3};
  static constexpr std::array<int, 3> sigma_1{17, 19, 10};
  static constexpr std::array<Word, 8> initial{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                               0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
};

/// SHA-512 with a beginning of its own (5.3.6.2), cut to 256 bits (4.1.3 has the functions).
struct Sha512_256Shape {
  using Word = std::uint64_t;
  static constexpr std::size_t rounds = 80;
  static constexpr std::array<int, 3> sum_0{28, 34, 39};
  static constexpr std::array<int, 3> sum_1{14, 18, 41};
  static constexpr std::array<int, 3> sigma_0{1, 8, 7};
  static constexpr std::array<int, 3> sigma_1{19, 61, 6};
  static constexpr std::array<Word, 8> initial{
      0x22312194fc2bf72c, 0x9f555fa3c84c64c2, 0x2393b86b6f53b151, 0x963877195940eabd,
      0x96283ee2a88effe3, 0xbe5e1e2553863992, 0x2b0199fc2c85b8aa, 0x0eb72ddc81c52ca2};
};

/// FIPS 180-4 6.2 and 6.4, which differ only in what the shape says.
template <class Shape>
class Sha2Core {
 public:
  using Word = typename Shape::Word;
  static constexpr std::size_t digest_size = 32;
  static constexpr std::size_t block_size = 16 * sizeof(Word);
  static constexpr std::size_t length_size = 2 * sizeof(Word);
  static void store_length(std::uint64_t bits, unsigned char* out) { store_big(bits, out); }

  void mix(const unsigned char* block) {
    std::array<Word, Shape::rounds> w;
    for (std::size_t i = 0; i < 16; ++i) w[i] = load_big<Word>(block + sizeof(Word) * i);
    for (std::size_t i = 16; i < Shape::rounds; ++i) {
      w[i] = w[i - 16] + shifted(w[i - 15], Shape::sigma_0) + w[i - 7] +
             shifted(w[i - 2], Shape::sigma_1);
    }
    auto [a, b, c, d, e, f, g, h] = state_;
    for (std::size_t i = 0; i < Shape::rounds; ++i) {
      const Word choice = g ^ (e & (f ^ g));
      const Word majority = (a & b) | (c & (a | b));
      const Word first = h + rotated(e, Shape::sum_1) + choice + constant(i) + w[i];
      const Word second = rotated(a, Shape::sum_0) + majority;
      h = g;
      g = f;
      f = e;
      e = d + first;
      d = c;
      c = b;
      b = a;
      a = first + second;
    }
    const std::array<Word, 8> mixed{a, b, c, d, e, f, g, h};
    for (std::size_t i = 0; i < 8; ++i) state_[i] += mixed[i];
  }

  std::array<std::uint8_t, digest_size> digest() const {
    std::array<std::uint8_t, digest_size> result;
    for (std::size_t i = 0; i < digest_size / sizeof(Word); ++i) {
      store_big(state_[i], result.data() + sizeof(Word) * i);
    }
    return result;
  }

 private:
  static constexpr Word constant(std::size_t i) {
    return static_cast<Word>(cube_roots[i] >> (64 - 8 * sizeof(Word)));
  }
  static constexpr Word rotated(Word x, const std::array<int, 3>& by) {
    return rotate_right(x, by[0]) ^ rotate_right(x, by[1]) ^ rotate_right(x, by[2]);
  }
  static constexpr Word shifted(Word x, const std::array<int, 3>& by) {
    return rotate_right(x, by[0]) ^ rotate_right(x, by[1]) ^ static_cast<Word>(x >> by[2]);
  }

  std::array<Word, 8> state_ = Shape::initial;
};

}  // namespace detail

/// The hashes of digest authentication. `update` any number of times with pieces of any size, then
/// `finish` once; or `of` for one piece. Sizes in octets: `digest_size`, `block_size`.
using Md5 = detail::BlockHash<detail::Md5Core>;
using Sha256 = detail::BlockHash<detail::Sha2Core<detail::Sha256Shape>>;
using Sha512_256 = detail::BlockHash<detail::Sha2Core<detail::Sha512_256Shape>>;

/// HMAC-SHA-256 (RFC 2104): a seal that only who holds the key can make or check. The key is mixed
/// in at construction; copy the fresh object once for each message.
class HmacSha256 {
 public:
  static constexpr std::size_t digest_size = Sha256::digest_size;

  explicit HmacSha256(std::string_view key) {
    std::array<std::uint8_t, Sha256::block_size> block{};
    if (key.size() > block.size()) {
      const Sha256::Digest digest = Sha256::of(key);
      std::copy(digest.begin(), digest.end(), block.begin());
    } else {
      std::copy(key.begin(), key.end(), block.begin());
    }
    for (std::uint8_t& octet : block) octet ^= 0x36;
    inner_.update(detail::as_text(block.data(), block.size()));
    for (std::uint8_t& octet : block) octet ^= 0x36 ^ 0x5c;
    outer_.update(detail::as_text(block.data(), block.size()));
  }

  void update(std::string_view input) { inner_.update(input); }
  Sha256::Digest finish() {
    const Sha256::Digest digest = inner_.finish();
    outer_.update(detail::as_text(digest.data(), digest.size()));
    return outer_.finish();
  }

 private:
  Sha256 inner_;
  Sha256 outer_;
};

/// Writes two lower-case hexadecimal digits for each octet to `out`, which has room for them.
/// Returns the end of what was written.
inline char* write_hex(const std::uint8_t* octets, std::size_t count, char* out) {
  constexpr char digits[] = "0123456789abcdef";
  for (std::size_t i = 0; i < count; ++i) {
    *out++ = digits[octets[i] >> 4];
    *out++ = digits[octets[i] & 15];
  }
  return out;
}

/// A number as 16 lower-case hexadecimal digits.
inline char* write_hex(std::uint64_t number, char* out) {
  std::array<std::uint8_t, 8> octets;
  detail::store_big(number, octets.data());
  return write_hex(octets.data(), octets.size(), out);
}

/// A number of 1 to 16 hexadecimal digits of any case, or nothing.
constexpr std::optional<std::uint64_t> parse_hex(std::string_view text) {
  if (text.empty() || text.size() > 16) return std::nullopt;
  std::uint64_t number = 0;
  for (char c : text) {
    const int digit = hex_value(c);
    if (digit < 0) return std::nullopt;
    number = number << 4 | static_cast<std::uint64_t>(digit);
  }
  return number;
}

/// Equality whose duration tells nothing of where two texts differ; that their sizes differ is no
/// secret. For everything that is compared with what an attacker sent.
inline bool equal_constant_time(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  unsigned difference = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    difference |=
        static_cast<unsigned char>(a[i]) ^ static_cast<unsigned>(static_cast<unsigned char>(b[i]));
  }
  return difference == 0;
}

using SipHashKey = std::array<std::uint8_t, 16>;

/// SipHash-2-4, the keyed hash for every table whose keys come from outside: without the key
/// nobody can find names that all fall into one slot. A key of several parts is put in part by
/// part; where one part ends does not count. A table keeps one fresh object and copies it for each
/// look-up.
class SipHash {
 public:
  explicit SipHash(const SipHashKey& key) {
    const std::uint64_t k0 = detail::load_little_64(key.data());
    const std::uint64_t k1 = detail::load_little_64(key.data() + 8);
    // The octets of "somepseudorandomlygeneratedbytes".
    state_ = {k0 ^ 0x736f6d6570736575, k1 ^ 0x646f72616e646f6d, k0 ^ 0x6c7967656e657261,
              k1 ^ 0x7465646279746573};
  }

  void update(std::string_view input) {
    std::size_t i = 0;
    if (length_ % 8 == 0) {
      for (; i + 8 <= input.size(); i += 8) {
        mix(detail::load_little_64(detail::as_octets(input) + i));
        length_ += 8;
      }
    }
    for (; i < input.size(); ++i) {
      const auto octet = static_cast<unsigned char>(input[i]);
      word_ |= static_cast<std::uint64_t>(octet) << 8 * (length_ % 8);
      if (++length_ % 8 != 0) continue;
      mix(word_);
      word_ = 0;
    }
  }

  /// The hash of all that was put in. The object is spent then.
  std::uint64_t finish() {
    mix(word_ | length_ << 56);
    state_[2] ^= 0xff;
    for (int i = 0; i < 4; ++i) round();
    return state_[0] ^ state_[1] ^ state_[2] ^ state_[3];
  }

  static std::uint64_t of(const SipHashKey& key, std::string_view input) {
    SipHash hash(key);
    hash.update(input);
    return hash.finish();
  }

 private:
  void mix(std::uint64_t word) {
    state_[3] ^= word;
    round();
    round();
    state_[0] ^= word;
  }

  void round() {
    auto& [a, b, c, d] = state_;
    a += b;
    b = detail::rotate_left(b, 13) ^ a;
    a = detail::rotate_left(a, 32);
    c += d;
    d = detail::rotate_left(d, 16) ^ c;
    a += d;
    d = detail::rotate_left(d, 21) ^ a;
    c += b;
    b = detail::rotate_left(b, 17) ^ c;
    c = detail::rotate_left(c, 32);
  }

  std::array<std::uint64_t, 4> state_;
  std::uint64_t length_ = 0;
  std::uint64_t word_ = 0;  ///< octets that do not make eight yet
};

/// Numbers and tokens that nobody can foresee who does not know the seed, and that come again from
/// the same seed: SipHash over 0, 1, 2, ... For tags, branches, Call-IDs and cnonces (RFC 3261
/// 19.3 asks for 32 bits of randomness). Seed it with 16 octets of the operating system's
/// randomness; not for keys that must stay secret for years.
class Random {
 public:
  explicit Random(const SipHashKey& seed) : fresh_(seed) {}

  std::uint64_t next() {
    std::array<std::uint8_t, 8> octets;
    detail::store_little(count_++, octets.data());
    SipHash hash = fresh_;
    hash.update(detail::as_text(octets.data(), octets.size()));
    return hash.finish();
  }

  /// Writes `count` random token characters, lower case and digits, five bits of chance in each:
  /// 13 make 64 bits. Lower case alone, because some implementations compare tokens blind to case.
  void write_token(char* out, std::size_t count) {
    constexpr char letters[] = "abcdefghijklmnopqrstuvwxyz234567";
    std::uint64_t bits = 0;
    for (std::size_t i = 0; i < count; ++i, bits >>= 5) {
      if (i % 12 == 0) bits = next();
      out[i] = letters[bits & 31];
    }
  }

 private:
  SipHash fresh_;
  std::uint64_t count_ = 0;
};

namespace detail {

/// Sixteen octets of `random`: the seed of another one, or a key.
inline SipHashKey next_key(Random& random) {
  SipHashKey key;
  store_little(random.next(), key.data());
  store_little(random.next(), key.data() + 8);
  return key;
}

}  // namespace detail

}  // namespace sipmsg

// ========================================== digest.hpp ==========================================

// digest: who may speak. Challenges, credentials, responses, and nonces that remember nothing.
//
// Digest authentication (RFC 2617, RFC 7616; in SIP by RFC 3261 22 and RFC 8760): the server sends
// a challenge with a nonce, the client proves with a hash over nonce, method and URI that it knows
// the password. Three layers, top to bottom: reading the two headers as views, computing the
// response, and the two who use it, DigestClient and DigestAuthenticator. The server keeps nothing
// for a nonce it hands out: a nonce carries its time and a seal over that and the client's address.
// Only a nonce that a right password was used with is remembered, so that it cannot be replayed.
// Left out on purpose: Authentication-Info but for its nextnonce, userhash and username* (RFC
// 7616 3.4.4), which no softphone sends, and Basic, which RFC 3261 22.4 forbids.

namespace sipmsg {

// ---- names -------------------------------------------------------------------------------------

/// The hash functions of digest authentication, weakest first.
enum class DigestHash : std::uint8_t { md5, sha_256, sha_512_256 };

/// A hash, and whether the session variant (-sess) is meant, which mixes nonce and cnonce into HA1.
struct DigestAlgorithm {
  DigestHash hash = DigestHash::md5;
  bool session = false;

  constexpr bool operator==(const DigestAlgorithm& other) const {
    return hash == other.hash && session == other.session;
  }

  /// The token of the algorithm parameter, such as "SHA-256-sess" (RFC 7616 6.1). Never null.
  constexpr const char* name() const {
    switch (hash) {
      case DigestHash::md5: return session ? "MD5-sess" : "MD5";
      case DigestHash::sha_256: return session ? "SHA-256-sess" : "SHA-256";
      case DigestHash::sha_512_256: return session ? "SHA-512-256-sess" : "SHA-512-256";
    }
    return "";
  }
};

/// The algorithm of that name, any case; nothing for one we do not speak.
inline std::optional<DigestAlgorithm> parse_digest_algorithm(std::string_view name) {
  for (DigestHash hash : {DigestHash::md5, DigestHash::sha_256, DigestHash::sha_512_256}) {
    for (bool session : {false, true}) {
      const DigestAlgorithm algorithm{hash, session};
      if (equal_ignoring_case(name, algorithm.name())) return algorithm;
    }
  }
  return std::nullopt;
}

/// Quality of protection: what the response covers. `auth_int` covers the body too; `none` is the
/// old form of RFC 2069, without cnonce and nonce-count.
enum class DigestQop : std::uint8_t { none, auth, auth_int };

// ---- the two headers, as views -----------------------------------------------------------------

/// The value of an Authorization or Proxy-Authorization header. Lifetime: views into that value.
///
/// The first five are as written, with their quotes and escapes: read them with UnquotedOctets,
/// `unquote` or `unquote_into`. The others are without quotes. Parameters that are absent are
/// empty.
struct DigestCredentials {
  std::string_view scheme;
  std::string_view username;
  std::string_view realm;
  std::string_view nonce;
  std::string_view uri;
  std::string_view cnonce;
  std::string_view response;
  std::string_view qop_text;
  std::string_view nonce_count_text;  ///< eight hexadecimal digits, as the hash wants them
  std::string_view algorithm_text;
  std::optional<DigestAlgorithm> algorithm;  ///< MD5 where none is named; nothing if unknown
  std::uint32_t nonce_count = 0;
  DigestQop qop = DigestQop::none;
  bool is_digest = false;  ///< where false, nothing but `scheme` is filled in
};

/// One challenge of a WWW-Authenticate or Proxy-Authenticate header. Lifetime and form as above:
/// realm, nonce and opaque are as written, the others without quotes.
struct DigestChallenge {
  std::string_view scheme;
  std::string_view realm;
  std::string_view nonce;
  std::string_view opaque;
  std::string_view qop_text;  ///< the list as sent, "auth,auth-int"; empty where none is sent
  std::string_view algorithm_text;
  std::string_view stale_text;
  std::optional<DigestAlgorithm> algorithm;  ///< MD5 where none is named; nothing if unknown
  bool offers_auth = false;
  bool offers_auth_int = false;
  bool stale = false;      ///< the nonce was too old, the password was right: try again
  bool is_digest = false;  ///< where false, nothing but `scheme` is filled in

  /// Whether we can answer it: a digest, of an algorithm and a qop that we speak.
  constexpr bool is_supported() const {
    return is_digest && algorithm && (qop_text.empty() || offers_auth || offers_auth_int);
  }
};

namespace detail {

/// Where the value of a parameter is kept, and in which form.
template <class Header>
struct DigestField {
  std::string_view name;
  std::string_view Header::*member;
  bool keeps_quotes;
};

inline constexpr std::array<DigestField<DigestCredentials>, 9> credentials_fields{{
    {"username", &DigestCredentials::username, true},
    {"realm", &DigestCredentials::realm, true},
    {"nonce", &DigestCredentials::nonce, true},
    {"uri", &DigestCredentials::uri, true},
    {"cnonce", &DigestCredentials::cnonce, true},
    {"response", &DigestCredentials::response, false},
    {"qop", &DigestCredentials::qop_text, false},
    {"nc", &DigestCredentials::nonce_count_text, false},
    {"algorithm", &DigestCredentials::algorithm_text, false},
}};

inline constexpr std::array<DigestField<DigestChallenge>, 6> challenge_fields{{
    {"realm", &DigestChallenge::realm, true},
    {"nonce", &DigestChallenge::nonce, true},
    {"opaque", &DigestChallenge::opaque, true},
    {"qop", &DigestChallenge::qop_text, false},
    {"algorithm", &DigestChallenge::algorithm_text, false},
    {"stale", &DigestChallenge::stale_text, false},
}};

inline Error digest_error(std::string_view whole, std::string_view part) {
  return {ErrorCode::bad_credentials, static_cast<std::int32_t>(part.data() - whole.data())};
}

/// A quoted string, or octets that need no quotes. RFC 3261 25.1 says for each parameter which of
/// the two it wants; clients differ, and nothing depends on it.
inline bool is_digest_value(std::string_view value) {
  if (is_quoted(value)) return true;
  for (char c : value) {
    if (static_cast<unsigned char>(c) <= ' ' || c == '"' || c == '\x7f') return false;
  }
  return !value.empty();
}

/// Reads scheme and parameters into a header's views. Parameters we do not know are skipped
/// (RFC 3261 25.1 auth-param); one we know must not come twice, because two readers could then
/// take different ones for true.
template <class Header, std::size_t count>
Error read_digest_header(std::string_view whole,
                         const std::array<DigestField<Header>, count>& fields, Header& header) {
  const std::string_view value = trim(whole);
  std::size_t scheme_end = 0;
  while (scheme_end < value.size() && !is_blank(value[scheme_end])) ++scheme_end;
  header.scheme = value.substr(0, scheme_end);
  if (!is_token(header.scheme)) return digest_error(whole, value);
  header.is_digest = equal_ignoring_case(header.scheme, "Digest");
  if (!header.is_digest) return {};

  for (const Parameter& parameter : Parameters(value.substr(scheme_end), ',')) {
    if (parameter.name.empty() && !parameter.has_value) continue;
    if (!is_token(parameter.name)) return digest_error(whole, parameter.name);
    if (!is_digest_value(parameter.value)) {
      return digest_error(whole, parameter.has_value ? parameter.value : parameter.name);
    }
    for (const DigestField<Header>& field : fields) {
      if (!equal_ignoring_case(parameter.name, field.name)) continue;
      std::string_view& member = header.*field.member;
      if (!member.empty()) return digest_error(whole, parameter.name);
      const bool drop_quotes = !field.keeps_quotes && is_quoted(parameter.value);
      member =
          drop_quotes ? parameter.value.substr(1, parameter.value.size() - 2) : parameter.value;
    }
  }
  return {};
}

/// RFC 7616 3.3: an absent algorithm means MD5.
inline std::optional<DigestAlgorithm> algorithm_or_default(std::string_view name) {
  return name.empty() ? DigestAlgorithm{} : parse_digest_algorithm(name);
}

}  // namespace detail

/// Reads the value of an Authorization or Proxy-Authorization header. A scheme other than Digest
/// and an unknown algorithm are no errors; see `is_digest` and `algorithm`.
/// Error: `bad_credentials` at the parameter that is malformed, unknown in its value or there
/// twice; at the end of the value where one is missing.
inline Result<DigestCredentials> parse_credentials(std::string_view value) {
  DigestCredentials credentials;
  if (Error error = detail::read_digest_header(value, detail::credentials_fields, credentials)) {
    return error;
  }
  if (!credentials.is_digest) return credentials;

  const Error missing{ErrorCode::bad_credentials, static_cast<std::int32_t>(value.size())};
  for (std::string_view required : {credentials.username, credentials.realm, credentials.nonce,
                                    credentials.uri, credentials.response}) {
    if (required.empty()) return missing;
  }
  credentials.algorithm = detail::algorithm_or_default(credentials.algorithm_text);
  const bool is_session = credentials.algorithm && credentials.algorithm->session;
  if (is_session && credentials.cnonce.empty()) return missing;
  // A nonce-count without qop means nothing (RFC 2617 3.2.2); some clients send it all the same.
  if (credentials.qop_text.empty()) return credentials;

  if (equal_ignoring_case(credentials.qop_text, "auth")) {
    credentials.qop = DigestQop::auth;
  } else if (equal_ignoring_case(credentials.qop_text, "auth-int")) {
    credentials.qop = DigestQop::auth_int;
  } else {
    return detail::digest_error(value, credentials.qop_text);
  }
  if (credentials.cnonce.empty() || credentials.nonce_count_text.empty()) return missing;
  const std::optional<std::uint64_t> count = parse_hex(credentials.nonce_count_text);
  if (!count || credentials.nonce_count_text.size() != 8) {
    return detail::digest_error(value, credentials.nonce_count_text);
  }
  credentials.nonce_count = static_cast<std::uint32_t>(*count);
  return credentials;
}

/// Reads one challenge, such as DigestChallenges yields. A scheme other than Digest and an unknown
/// algorithm or qop are no errors; see `is_supported`.
/// Error: `bad_credentials`, as for `parse_credentials`.
inline Result<DigestChallenge> parse_challenge(std::string_view value) {
  DigestChallenge challenge;
  if (Error error = detail::read_digest_header(value, detail::challenge_fields, challenge)) {
    return error;
  }
  if (!challenge.is_digest) return challenge;
  if (challenge.realm.empty() || challenge.nonce.empty()) {
    return {ErrorCode::bad_credentials, static_cast<std::int32_t>(value.size())};
  }
  challenge.algorithm = detail::algorithm_or_default(challenge.algorithm_text);
  challenge.stale = equal_ignoring_case(challenge.stale_text, "true");
  for (const Parameter& option : Parameters(challenge.qop_text, ',')) {
    if (equal_ignoring_case(option.name, "auth")) challenge.offers_auth = true;
    if (equal_ignoring_case(option.name, "auth-int")) challenge.offers_auth_int = true;
  }
  return challenge;
}

/// Cuts a header value into its challenges. RFC 3261 20.44 gives each a header of its own, HTTP
/// lets several stand in one, separated by the same comma that separates parameters; a few servers
/// do that. A word that no '=' follows begins a new challenge.
/// Lifetime: views into the value.
class DigestChallenges {
 public:
  explicit DigestChallenges(std::string_view value) : value_(trim(value)) {}

  class Iterator {
   public:
    explicit Iterator(std::string_view rest) : rest_(rest) { read(); }
    std::string_view operator*() const { return current_; }
    Iterator& operator++() {
      read();
      return *this;
    }
    bool operator!=(const Iterator& other) const { return at_end_ != other.at_end_; }

   private:
    void read() {
      at_end_ = rest_.empty();
      std::size_t comma = find_outside_quotes(rest_, ',');
      while (comma < rest_.size() && !begins_challenge(rest_.substr(comma + 1))) {
        comma = find_outside_quotes(rest_, ',', comma + 1);
      }
      current_ = trim(rest_.substr(0, comma));
      rest_ = comma < rest_.size() ? rest_.substr(comma + 1) : std::string_view();
    }

    static bool begins_challenge(std::string_view text) {
      text = trim(text);
      std::size_t end = 0;
      while (end < text.size() && is_char(text[end], char_token)) ++end;
      if (end == 0) return false;
      const std::string_view after = text.substr(end);
      if (after.empty() || after.front() == ',') return true;
      return is_blank(after.front()) && trim(after).front() != '=';
    }

    std::string_view rest_;
    std::string_view current_;
    bool at_end_ = false;
  };

  Iterator begin() const { return Iterator(value_); }
  Iterator end() const { return Iterator(std::string_view()); }

 private:
  std::string_view value_;
};

/// The octets that a quoted or unquoted value stands for, without allocating: a view into the value
/// itself where nothing is escaped, else into `room`. Nothing where `room` is too small.
inline std::optional<std::string_view> unquote_into(std::string_view value, char* room,
                                                    std::size_t room_size) {
  if (!is_quoted(value)) return value;
  const std::string_view inside = value.substr(1, value.size() - 2);
  if (inside.find('\\') == std::string_view::npos) return inside;
  std::size_t used = 0;
  for (UnquotedOctets octets(value); !octets.done();) {
    if (used == room_size) return std::nullopt;
    room[used++] = octets.next();
  }
  return std::string_view(room, used);
}

// ---- the computation ---------------------------------------------------------------------------

/// A digest as lower-case hexadecimal digits, 32 or 64 of them: HA1, HA2 or a response.
class DigestHex {
 public:
  constexpr DigestHex() = default;
  template <std::size_t size>
  explicit DigestHex(const std::array<std::uint8_t, size>& digest) : size_(2 * size) {
    static_assert(2 * size <= sizeof(digits_), "no digest is longer than 256 bits");
    write_hex(digest.data(), size, digits_.data());
  }
  /// Lifetime: as long as this object lives and is not assigned to.
  std::string_view view() const { return {digits_.data(), size_}; }

 private:
  std::array<char, 64> digits_{};
  std::size_t size_ = 0;
};

namespace detail {

/// A piece of what is hashed. `as_written` resolves quotes and escapes on the way: RFC 7616 3.4
/// hashes unq(username), not the quoted string.
struct DigestPiece {
  std::string_view text;
  bool as_written = false;
};

template <class Hash>
void update_as_written(Hash& hash, std::string_view value) {
  if (!is_quoted(value)) return hash.update(value);
  const std::string_view inside = value.substr(1, value.size() - 2);
  if (inside.find('\\') == std::string_view::npos) return hash.update(inside);
  for (UnquotedOctets octets(value); !octets.done();) {
    const char octet = octets.next();
    hash.update(std::string_view(&octet, 1));
  }
}

/// H(piece ":" piece ":" ...), the only form that digest authentication knows.
template <class Hash>
DigestHex hash_joined(std::initializer_list<DigestPiece> pieces) {
  Hash hash;
  bool is_first = true;
  for (const DigestPiece& piece : pieces) {
    if (!is_first) hash.update(":");
    is_first = false;
    if (piece.as_written) {
      update_as_written(hash, piece.text);
    } else {
      hash.update(piece.text);
    }
  }
  return DigestHex(hash.finish());
}

inline DigestHex hash_joined(DigestHash hash, std::initializer_list<DigestPiece> pieces) {
  switch (hash) {
    case DigestHash::md5: return hash_joined<Md5>(pieces);
    case DigestHash::sha_256: return hash_joined<Sha256>(pieces);
    case DigestHash::sha_512_256: return hash_joined<Sha512_256>(pieces);
  }
  return {};
}

inline DigestHex digest_ha2(DigestHash hash, std::string_view method, DigestPiece uri,
                            DigestQop qop, std::string_view body) {
  if (qop != DigestQop::auth_int) return hash_joined(hash, {{method}, uri});
  // The hash of an absent body is the hash of nothing (RFC 3261 22.4 item 7).
  const DigestHex body_hash = hash_joined(hash, {{body}});
  return hash_joined(hash, {{method}, uri, {body_hash.view()}});
}

}  // namespace detail

/// H(username:realm:password), the form in which a server may keep a password. It is worth as much
/// as the password to whoever steals it, in this one realm.
inline DigestHex digest_ha1(DigestHash hash, std::string_view username, std::string_view realm,
                            std::string_view password) {
  return detail::hash_joined(hash, {{username}, {realm}, {password}});
}

/// H(method:uri), for auth-int H(method:uri:H(body)) (RFC 7616 3.4.3).
inline DigestHex digest_ha2(DigestHash hash, std::string_view method, std::string_view uri,
                            DigestQop qop = DigestQop::none, std::string_view body = {}) {
  return detail::digest_ha2(hash, method, {uri}, qop, body);
}

/// What a server knows of a user: the password, or its HA1, or that there is no such user.
/// Lifetime: views what it was made of.
struct DigestSecret {
  enum class Kind : std::uint8_t { password, ha1, unknown_user };

  static DigestSecret password(std::string_view password) { return {password, Kind::password}; }
  /// HA1 as `digest_ha1` yields it, lower-case digits; good for algorithms of that hash only.
  static DigestSecret ha1(DigestHash hash, std::string_view digits) {
    return {digits, Kind::ha1, hash};
  }
  /// No such user: nothing is ever accepted, but everything is computed as for any user, so that
  /// the time an answer takes does not tell which names exist.
  static DigestSecret unknown_user() { return {{}, Kind::unknown_user}; }

  /// Whether a response of that hash can be right at all.
  constexpr bool is_usable_for(DigestHash hash) const {
    return kind == Kind::password || (kind == Kind::ha1 && ha1_hash == hash);
  }

  std::string_view text;
  Kind kind = Kind::unknown_user;
  DigestHash ha1_hash = DigestHash::md5;
};

/// The response that these credentials should carry (RFC 7616 3.4.1); their `response` is not
/// looked at. Empty for an unknown algorithm. Allocates nothing.
///
/// -sess: the RFC computes HA1 once per session, with the first cnonce, and a server that keeps
/// nothing cannot. So cnonce must stay the same as long as the nonce does, which is what clients
/// with -sess do.
inline DigestHex digest_response(const DigestCredentials& credentials, const DigestSecret& secret,
                                 std::string_view method, std::string_view body) {
  if (!credentials.algorithm) return {};
  const DigestHash hash = credentials.algorithm->hash;
  const detail::DigestPiece nonce{credentials.nonce, true};
  const detail::DigestPiece cnonce{credentials.cnonce, true};

  // Computed also where it is stored: the time tells nothing of how a user is kept.
  const DigestHex computed_ha1 = detail::hash_joined(
      hash, {{credentials.username, true}, {credentials.realm, true}, {secret.text}});
  std::string_view ha1 = secret.kind == DigestSecret::Kind::ha1 ? secret.text : computed_ha1.view();
  DigestHex session_ha1;
  if (credentials.algorithm->session) {
    session_ha1 = detail::hash_joined(hash, {{ha1}, nonce, cnonce});
    ha1 = session_ha1.view();
  }

  const DigestHex ha2 =
      detail::digest_ha2(hash, method, {credentials.uri, true}, credentials.qop, body);
  if (credentials.qop == DigestQop::none) {
    return detail::hash_joined(hash, {{ha1}, nonce, {ha2.view()}});
  }
  return detail::hash_joined(
      hash,
      {{ha1}, nonce, {credentials.nonce_count_text}, cnonce, {credentials.qop_text}, {ha2.view()}});
}

// ---- the client --------------------------------------------------------------------------------

/// One client's answers to one server's challenges: keeps the nonce and counts its uses, so that
/// later requests may carry credentials at once, without being challenged again.
///
/// A 401 or 407 to a request that carried credentials means a wrong password, unless the challenge
/// says `stale`: do not answer it twice (RFC 3261 22.1).
class DigestClient {
 public:
  /// The place of the challenge to answer: of the strongest hash we speak, the first of equals;
  /// nothing where we speak none. RFC 8760 2.4 says the topmost that is supported, local policy
  /// permitting; ours is that a server's order may not weaken what protects the password.
  static std::optional<std::size_t> choose(const DigestChallenge* challenges, std::size_t count) {
    std::optional<std::size_t> best;
    for (std::size_t i = 0; i < count; ++i) {
      if (!challenges[i].is_supported()) continue;
      if (!best || challenges[*best].algorithm->hash < challenges[i].algorithm->hash) best = i;
    }
    return best;
  }

  /// Takes over a challenge; `cnonce` is the client's own random token (RFC 7616 3.4), used as long
  /// as the nonce is. The same nonce once more keeps its count and its cnonce.
  /// Errors: `bad_argument` for a challenge that is not supported; `forbidden_octet`.
  Error take(const DigestChallenge& challenge, std::string_view cnonce) {
    if (!challenge.is_supported()) return ErrorCode::bad_argument;
    for (std::string_view value : {challenge.realm, challenge.nonce, challenge.opaque, cnonce}) {
      if (has_forbidden_octet(value)) return ErrorCode::forbidden_octet;
    }
    std::string nonce = quote(unquote(challenge.nonce));
    if (nonce != nonce_) {
      nonce_count_ = 0;
      cnonce_ = quote(cnonce);
    }
    nonce_ = std::move(nonce);
    realm_ = quote(unquote(challenge.realm));
    opaque_ = challenge.opaque.empty() ? std::string() : quote(unquote(challenge.opaque));
    algorithm_ = *challenge.algorithm;
    names_algorithm_ = !challenge.algorithm_text.empty();
    // auth before auth-int: a proxy may touch the body on the way.
    qop_ = challenge.offers_auth       ? DigestQop::auth
           : challenge.offers_auth_int ? DigestQop::auth_int
                                       : DigestQop::none;
    return {};
  }

  /// Takes over the nonce that a server gives with its answer, instead of a challenge, for the next
  /// request (RFC 7616 3.5): the value of nextnonce, as written. Its count begins anew. Errors:
  /// `bad_argument` before a challenge was taken, and for no nonce; `forbidden_octet`.
  Error take_next_nonce(std::string_view next_nonce, std::string_view cnonce) {
    if (!is_ready() || next_nonce.empty()) return ErrorCode::bad_argument;
    if (has_forbidden_octet(next_nonce) || has_forbidden_octet(cnonce)) {
      return ErrorCode::forbidden_octet;
    }
    std::string nonce = quote(unquote(next_nonce));
    if (nonce == nonce_) return {};
    nonce_ = std::move(nonce);
    nonce_count_ = 0;
    cnonce_ = quote(cnonce);
    return {};
  }

  /// Whether a challenge was taken.
  bool is_ready() const { return !nonce_.empty(); }

  /// The value of the Authorization or Proxy-Authorization header for one request; each call counts
  /// as one use of the nonce. `uri` is the Request-URI as it is sent, `username` and `password` are
  /// plain text.
  /// Errors: `bad_argument` before a challenge was taken; `forbidden_octet`.
  Result<std::string> authorize(std::string_view username, std::string_view password,
                                std::string_view method, std::string_view uri,
                                std::string_view body) {
    if (!is_ready()) return ErrorCode::bad_argument;
    if (has_forbidden_octet(username) || has_forbidden_octet(uri)) {
      return ErrorCode::forbidden_octet;
    }
    std::array<char, 16> count;
    write_hex(++nonce_count_, count.data());
    const std::string quoted_username = quote(username);
    const std::string quoted_uri = quote(uri);

    DigestCredentials credentials;
    credentials.username = quoted_username;
    credentials.realm = realm_;
    credentials.nonce = nonce_;
    credentials.uri = quoted_uri;
    credentials.algorithm = algorithm_;
    credentials.qop = qop_;
    credentials.qop_text = qop_ == DigestQop::auth_int ? "auth-int" : "auth";
    credentials.nonce_count_text = std::string_view(count.data() + 8, 8);
    credentials.cnonce = cnonce_;
    const DigestHex response =
        digest_response(credentials, DigestSecret::password(password), method, body);

    std::string value = "Digest username=";
    value.append(quoted_username).append(", realm=").append(realm_);
    value.append(", nonce=").append(nonce_).append(", uri=").append(quoted_uri);
    value.append(", response=\"").append(response.view()).append("\"");
    if (names_algorithm_) value.append(", algorithm=").append(algorithm_.name());
    if (qop_ != DigestQop::none) {
      value.append(", qop=").append(credentials.qop_text);
      value.append(", nc=").append(credentials.nonce_count_text);
    }
    if (qop_ != DigestQop::none || algorithm_.session) value.append(", cnonce=").append(cnonce_);
    if (!opaque_.empty()) value.append(", opaque=").append(opaque_);
    return value;
  }

 private:
  static bool has_forbidden_octet(std::string_view text) {
    return text.find_first_of(std::string_view("\r\n\0", 3)) != std::string_view::npos;
  }

  // All quoted, ready to be written.
  std::string realm_;
  std::string nonce_;
  std::string opaque_;
  std::string cnonce_;
  std::uint64_t nonce_count_ = 0;
  DigestAlgorithm algorithm_;
  DigestQop qop_ = DigestQop::none;
  bool names_algorithm_ = false;
};

// ---- the server --------------------------------------------------------------------------------

/// A nonce as text: 16 digits of time in milliseconds, 16 of a serial number, 32 of the seal over
/// both and the client's address. One serves all the challenges of one response.
struct DigestNonce {
  std::array<char, 64> text{};
  std::string_view view() const { return {text.data(), text.size()}; }
};

namespace detail {

/// Which nonce-counts have been used with which nonces, in a fixed number of octets.
///
/// Only nonces that a right password was used with take a place, so nobody without a password can
/// fill it. A nonce's serial number tells its row; a full row forgets its oldest nonce and from
/// then on refuses every nonce that is older still and not remembered: it cannot know any more
/// whether that was used. So a table that is too small makes nonces live shorter, and never lets a
/// replay through.
class NonceMemory {
 public:
  explicit NonceMemory(std::size_t max_nonces)
      : row_count_(std::max<std::size_t>(1, (max_nonces + row_size - 1) / row_size)),
        rows_(static_cast<Row*>(std::calloc(row_count_, sizeof(Row)))) {
    // What `new` would do without exceptions. calloc, because its zeros of the operating system
    // take no memory until they are written to: an idle server stays small.
    if (!rows_) std::abort();
  }

  /// Notes that `nonce_count` was used with the nonce of that serial number, which is never 0.
  /// Returns false where it was used before, or where that cannot be told.
  bool use(std::uint64_t serial, std::uint32_t nonce_count) {
    if (Entry* entry = find_or_add(serial)) return mark(*entry, nonce_count);
    return false;
  }

  /// Uses the nonce up, in all its counts. Returns false where it was used before in any.
  bool use_up(std::uint64_t serial) {
    Entry* entry = find_or_add(serial);
    if (!entry || entry->window != 0) return false;
    entry->highest = ~std::uint32_t{0};
    entry->window = ~std::uint64_t{0};
    return true;
  }

 private:
  struct Entry {
    std::uint64_t serial;  ///< 0 where the place is free
    std::uint64_t window;  ///< bit n: the count `highest` - n was used
    std::uint32_t highest;
  };
  static constexpr std::size_t row_size = 8;
  struct Row {
    std::array<Entry, row_size> entries;
    std::uint64_t forgotten;  ///< nonces up to this serial are refused where not remembered
  };
  struct Free {
    void operator()(Row* rows) const { std::free(rows); }
  };

  Entry* find_or_add(std::uint64_t serial) {
    Row& row = rows_.get()[serial % row_count_];
    Entry* oldest = row.entries.data();
    for (Entry& entry : row.entries) {
      if (entry.serial == serial) return &entry;
      if (entry.serial < oldest->serial) oldest = &entry;
    }
    if (serial <= row.forgotten) return nullptr;
    row.forgotten = std::max(row.forgotten, oldest->serial);
    *oldest = Entry{serial, 0, 0};
    return oldest;
  }

  /// A window of 64 counts, as IPsec has it (RFC 4303 3.4.3): datagrams may overtake each other.
  static bool mark(Entry& entry, std::uint32_t count) {
    if (entry.window == 0 || count > entry.highest) {
      const std::uint32_t ahead = entry.window == 0 ? 64 : count - entry.highest;
      entry.window = (ahead < 64 ? entry.window << ahead : 0) | 1;
      entry.highest = count;
      return true;
    }
    const std::uint32_t behind = entry.highest - count;
    if (behind >= 64 || (entry.window >> behind & 1) != 0) return false;
    entry.window |= std::uint64_t{1} << behind;
    return true;
  }

  std::size_t row_count_;
  std::unique_ptr<Row, Free> rows_;
};

/// Whether the digest-uri names what the request is for. RFC 2617 3.2.2.5 wants the same resource,
/// RFC 3261 22.4 item 6 lets it differ. Ours: the same user at the same host. Ports, parameters and
/// headers do not count, for clients and proxies add and drop them; a digest-uri without user
/// passes for all users of its host (sipp signs so).
inline bool names_same_target(std::string_view digest_uri, std::string_view request_uri) {
  if (digest_uri == request_uri) return true;
  const Result<UriView> ours = parse_uri(request_uri);
  const Result<UriView> theirs = parse_uri(digest_uri);
  if (!ours || !theirs) return false;
  if (equivalent(*ours, *theirs)) return true;
  if (ours->scheme != theirs->scheme) return false;
  if (ours->scheme != UriScheme::sip && ours->scheme != UriScheme::sips) return false;
  if (!equal_ignoring_case(ours->host, theirs->host)) return false;
  return !theirs->has_user || equal_with_escapes(ours->user, theirs->user, false);
}

inline bool equal_unquoted(std::string_view as_written, std::string_view plain) {
  UnquotedOctets octets(as_written);
  for (char c : plain) {
    if (octets.done() || octets.next() != c) return false;
  }
  return octets.done();
}

}  // namespace detail

struct DigestOptions {
  /// Whom the password is for; shown to the user. CR, LF and NUL are left out.
  std::string realm = "sipmsg";
  /// One challenge for each, in this order: best first (RFC 8760 2.3).
  std::vector<DigestAlgorithm> algorithms = {DigestAlgorithm{}};
  std::uint64_t nonce_lifetime_s = 300;
  /// How many used nonces to remember, 25 octets each. The effect of too few: under load nonces
  /// live shorter than their lifetime, and clients come once more for a new one.
  std::size_t max_remembered_nonces = 16384;
  /// Refuse credentials whose uri parameter names another user or host than the Request-URI.
  bool check_uri = true;
};

/// What became of credentials. All but `accepted` are answered with challenges, with stale=true
/// only for `stale`; `wrong_uri` may also be answered 400 (RFC 2617 3.2.2.5).
enum class DigestVerdict : std::uint8_t {
  accepted,
  stale,            ///< the password is right, the nonce too old, used before, or not from us
  wrong_response,   ///< wrong password, or no such user
  wrong_scheme,     ///< not Digest
  wrong_realm,      ///< for somebody else; a request may carry several credentials (RFC 3261 22.3)
  wrong_algorithm,  ///< not one that we offer
  wrong_uri,        ///< all is right, but it was made for another Request-URI
};

/// The request that credentials come with. `client_address`: the octets of the IP address it came
/// from, 4 or 16, without port, since the port may change when a NAT forgets.
struct DigestRequest {
  std::string_view method;
  std::string_view uri;
  std::string_view body;
  std::string_view client_address;
};

/// The server's side: writes challenges and judges credentials.
///
/// Replay is refused for every nonce, so that what was overheard is worth nothing:
/// - With qop, each nonce-count is good once; counts up to 63 below the highest may come late.
/// - Without qop (RFC 2069 clients) there is no count, so a nonce is good for one request only. A
///   client that uses it again gets stale=true and a fresh one, and such clients answer that, as
///   they must: with servers without qop it is how nonces end. It costs them one more round trip
///   for a request that came with an old nonce, and no login.
/// A datagram that was merely sent twice does not get here: the transaction layer absorbs it.
///
/// Clock: `now_ms` need only be one that does not go backwards.
class DigestAuthenticator {
 public:
  /// `secret`: at least 16 random octets, fresh for each object. With the secret of an earlier one
  /// that one's nonces could be replayed, for which of them were used is not known here.
  DigestAuthenticator(DigestOptions options, std::string_view secret)
      : options_(std::move(options)), seal_(secret), memory_(options_.max_remembered_nonces) {
    std::string& realm = options_.realm;
    const auto is_forbidden = [](char c) { return c == '\r' || c == '\n' || c == '\0'; };
    realm.erase(std::remove_if(realm.begin(), realm.end(), is_forbidden), realm.end());
    quoted_realm_ = quote(realm);
  }

  const DigestOptions& options() const { return options_; }

  /// A new nonce for the client at that address, never the same twice.
  DigestNonce make_nonce(std::string_view client_address, std::uint64_t now_ms) {
    DigestNonce nonce;
    char* const serial = write_hex(now_ms, nonce.text.data());
    char* const seal = write_hex(++last_serial_, serial);
    const Sha256::Digest digest = sealed(nonce.view().substr(0, stamp_size), client_address);
    write_hex(digest.data(), seal_size / 2, seal);
    return nonce;
  }

  /// How many challenges go into one 401 or 407, each in a header of its own.
  std::size_t challenge_count() const { return options_.algorithms.size(); }

  /// No challenge is longer than this, in octets.
  std::size_t max_challenge_size() const {
    return quoted_realm_.size() + sizeof(DigestNonce::text) + 96;
  }

  /// Writes the value of challenge `index` to `out`, such as
  /// `Digest realm="Yate", nonce="...", qop="auth", algorithm=MD5, stale=true`.
  /// Returns its size; 0, with nothing of use written, where it is larger than `room`.
  std::size_t write_challenge(std::size_t index, const DigestNonce& nonce, bool stale, char* out,
                              std::size_t room) const {
    const std::string_view pieces[] = {"Digest realm=",
                                       quoted_realm_,
                                       ", nonce=\"",
                                       nonce.view(),
                                       "\", qop=\"auth\", algorithm=",
                                       options_.algorithms[index].name(),
                                       stale ? ", stale=true" : ""};
    std::size_t size = 0;
    for (std::string_view piece : pieces) {
      if (piece.size() > room - size) return 0;
      size += piece.copy(out + size, piece.size());
    }
    return size;
  }

  /// Judges credentials; on `accepted` their nonce-count is used up. Allocates nothing.
  ///
  /// The response is judged before the nonce: only who knows the password hears whether a nonce was
  /// stale (RFC 7616 3.3), and only a right response takes a place in memory.
  DigestVerdict check(const DigestCredentials& credentials, const DigestRequest& request,
                      const DigestSecret& secret, std::uint64_t now_ms) {
    if (!credentials.is_digest) return DigestVerdict::wrong_scheme;
    if (!detail::equal_unquoted(credentials.realm, options_.realm)) {
      return DigestVerdict::wrong_realm;
    }
    if (!is_offered(credentials.algorithm)) return DigestVerdict::wrong_algorithm;

    const DigestHex expected = digest_response(credentials, secret, request.method, request.body);
    const bool is_right = equal_constant_time(expected.view(), credentials.response);
    if (!is_right || !secret.is_usable_for(credentials.algorithm->hash)) {
      return DigestVerdict::wrong_response;
    }
    if (!targets(credentials, request)) return DigestVerdict::wrong_uri;

    const std::uint64_t serial = valid_serial(credentials.nonce, request.client_address, now_ms);
    if (serial == 0) return DigestVerdict::stale;
    const bool is_first_use = credentials.qop == DigestQop::none
                                  ? memory_.use_up(serial)
                                  : memory_.use(serial, credentials.nonce_count);
    return is_first_use ? DigestVerdict::accepted : DigestVerdict::stale;
  }

 private:
  static constexpr std::size_t stamp_size = 32;  // time and serial number, in digits
  static constexpr std::size_t seal_size = 32;   // 128 bits, in digits

  Sha256::Digest sealed(std::string_view stamp, std::string_view client_address) const {
    HmacSha256 hmac = seal_;
    hmac.update(stamp);
    hmac.update(client_address);
    return hmac.finish();
  }

  bool is_offered(const std::optional<DigestAlgorithm>& algorithm) const {
    if (!algorithm) return false;
    for (const DigestAlgorithm& offered : options_.algorithms) {
      if (offered == *algorithm) return true;
    }
    return false;
  }

  bool targets(const DigestCredentials& credentials, const DigestRequest& request) const {
    if (!options_.check_uri) return true;
    // A URI holds no quote and no backslash, so one with escapes is none.
    const auto uri = unquote_into(credentials.uri, nullptr, 0);
    return uri && detail::names_same_target(*uri, request.uri);
  }

  /// The serial number of a nonce that we made for that address and that is not too old; else 0.
  std::uint64_t valid_serial(std::string_view as_written, std::string_view client_address,
                             std::uint64_t now_ms) const {
    const std::optional<std::string_view> nonce = unquote_into(as_written, nullptr, 0);
    if (!nonce || nonce->size() != sizeof(DigestNonce::text)) return 0;

    const Sha256::Digest digest = sealed(nonce->substr(0, stamp_size), client_address);
    std::array<char, seal_size> seal;
    write_hex(digest.data(), seal_size / 2, seal.data());
    const std::string_view expected(seal.data(), seal.size());
    if (!equal_constant_time(expected, nonce->substr(stamp_size))) return 0;

    const std::uint64_t issued_ms = parse_hex(nonce->substr(0, 16)).value_or(0);
    const std::uint64_t serial = parse_hex(nonce->substr(16, 16)).value_or(0);
    const bool is_fresh =
        issued_ms <= now_ms && (now_ms - issued_ms) / 1000 < options_.nonce_lifetime_s;
    return is_fresh ? serial : 0;
  }

  DigestOptions options_;
  std::string quoted_realm_;
  HmacSha256 seal_;  ///< keyed and fresh; copied for each use
  detail::NonceMemory memory_;
  std::uint64_t last_serial_ = 0;
};

}  // namespace sipmsg

// =========================================== ini.hpp ============================================

// ini: the configuration grammar of Yate, every value with its file and line.
//
// Lines are comments, section headers, keys, or directives in brackets that include files and
// sections and switch stretches of a file on and off. Reading is done once and keeps everything in
// the order it was written, duplicates too: what a key means is for `settings` to say. Files come
// through an interface, so that this part needs no file system and a test needs no disk.
//
// Left out on purpose: writing such files, and the replacement of ${} in values, which each reader
// of a value decides for itself (`expand_run_parameters` is there for it).

namespace sipmsg {

// ---- what can be said about a configuration ----

/// `error`: cannot work as written. `warning`: works, but hardly as meant. `info`: good to know.
enum class Severity : std::uint8_t { error, warning, info };

inline const char* severity_name(Severity severity) {
  switch (severity) {
    case Severity::error: return "error";
    case Severity::warning: return "warning";
    case Severity::info: break;
  }
  return "info";
}

/// One remark on one line; line 0 is the file as a whole.
struct Diagnostic {
  Severity severity = Severity::info;
  std::string file;
  std::uint32_t line = 0;
  std::string text;
};

/// "FILE:LINE: SEVERITY: TEXT", the form that editors and terminals make clickable. Names out of
/// the file stand in it, so control octets, which a terminal would obey, come out as question
/// marks.
inline std::string to_text(const Diagnostic& diagnostic) {
  std::string out = diagnostic.file;
  if (diagnostic.line != 0) out += ":" + std::to_string(diagnostic.line);
  out.append(": ").append(severity_name(diagnostic.severity)).append(": ").append(diagnostic.text);
  for (char& c : out) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return out;
}

/// Remarks in the order they were made.
using Diagnostics = std::vector<Diagnostic>;

inline std::size_t count(const Diagnostics& diagnostics, Severity severity) {
  std::size_t found = 0;
  for (const Diagnostic& diagnostic : diagnostics) {
    if (diagnostic.severity == severity) ++found;
  }
  return found;
}

// ---- values ----

/// A boolean as Yate writes it, lower case only. Nothing for any other text: `1`, `0`, `YES` and
/// the empty text are no booleans, and stand for the default of their key.
inline std::optional<bool> parse_boolean(std::string_view text) {
  for (std::string_view word : {"true", "yes", "on", "enable", "t"}) {
    if (text == word) return true;
  }
  for (std::string_view word : {"false", "no", "off", "disable", "f"}) {
    if (text == word) return false;
  }
  return std::nullopt;
}

/// A C integer that is the whole text: decimal, 0x and hexadecimal, or 0 and octal, with a sign or
/// without. One too large for 64 bits becomes the largest, or the smallest, there is: whoever knows
/// the range of the key clamps it. Nothing where it is no such number.
inline std::optional<std::int64_t> parse_integer(std::string_view text) {
  bool negative = false;
  if (!text.empty() && (text.front() == '-' || text.front() == '+')) {
    negative = text.front() == '-';
    text.remove_prefix(1);
  }
  std::uint64_t base = 10;
  if (text.size() > 2 && text[0] == '0' && to_lower(text[1]) == 'x') {
    base = 16;
    text.remove_prefix(2);
  } else if (text.size() > 1 && text[0] == '0') {
    base = 8;
    text.remove_prefix(1);
  }
  if (text.empty()) return std::nullopt;
  constexpr std::uint64_t largest = INT64_MAX;
  std::uint64_t value = 0;
  for (char c : text) {
    const int digit = hex_value(c);
    if (digit < 0 || static_cast<std::uint64_t>(digit) >= base) return std::nullopt;
    const auto more = static_cast<std::uint64_t>(digit);
    value = value > (largest - more) / base ? largest : value * base + more;
  }
  const auto magnitude = static_cast<std::int64_t>(value);
  return negative ? -magnitude : magnitude;
}

/// A word that stands for a number.
struct IniKeyword {
  std::string_view word;
  std::int64_t value;
};

/// The value of a keyword, spelt exactly; else the integer it is; else nothing.
inline std::optional<std::int64_t> parse_keyword(std::string_view text, const IniKeyword* words,
                                                 std::size_t word_count) {
  for (std::size_t i = 0; i < word_count; ++i) {
    if (words[i].word == text) return words[i].value;
  }
  return parse_integer(text);
}

/// The pieces between commas, trimmed, without the empty ones. Views into `text`.
inline std::vector<std::string_view> split_list(std::string_view text) {
  std::vector<std::string_view> pieces;
  while (!text.empty()) {
    const std::size_t comma = text.find(',');
    const std::string_view piece = trim(text.substr(0, comma));
    if (!piece.empty()) pieces.push_back(piece);
    text = comma == std::string_view::npos ? std::string_view() : text.substr(comma + 1);
  }
  return pieces;
}

/// A named value that the program gives to its configuration: `configpath`, `version`, `nodename`.
struct RunParameter {
  std::string name;
  std::string value;
};
using RunParameters = std::vector<RunParameter>;

/// `text` with each `${name}` replaced by that parameter, or by nothing where there is none;
/// `${name$default}` names what takes its place instead. What was put in is not looked at again.
inline std::string expand_run_parameters(std::string_view text, const RunParameters& parameters) {
  std::string out;
  while (true) {
    const std::size_t open = text.find("${");
    const std::size_t close = open == std::string_view::npos ? open : text.find('}', open);
    if (close == std::string_view::npos) return out.append(text);
    std::string_view name = trim(text.substr(open + 2, close - open - 2));
    std::string_view value;
    if (const std::size_t dollar = name.find('$'); dollar != std::string_view::npos) {
      value = trim(name.substr(dollar + 1));
      name = trim(name.substr(0, dollar));
    }
    for (const RunParameter& parameter : parameters) {
      if (parameter.name != name) continue;
      value = parameter.value;
      break;
    }
    out.append(text.substr(0, open)).append(value);
    text.remove_prefix(close + 1);
  }
}

// ---- what a file holds ----

struct IniEntry {
  std::string key;
  std::string value;       ///< empty for a key without `=`
  std::uint32_t file = 0;  ///< index into Ini::files()
  std::uint32_t line = 0;  ///< of a continued value: the first
};

struct IniSection {
  std::string name;
  std::vector<IniEntry> entries;  ///< as written, duplicates too
  std::uint32_t file = 0;         ///< where the name stood first
  std::uint32_t line = 0;

  /// The first entry of that name, or null. Names are case sensitive.
  const IniEntry* find(std::string_view key) const {
    for (const IniEntry& entry : entries) {
      if (entry.key == key) return &entry;
    }
    return nullptr;
  }
};

namespace detail {
class IniReader;
}

/// A configuration as it was read. Pointers and references into it live as long as it is unchanged.
class Ini {
 public:
  const std::vector<IniSection>& sections() const { return sections_; }
  /// The paths that were read, the one asked for first, also where it could not be read.
  const std::vector<std::string>& files() const { return files_; }
  /// False where a `$require` or `$requiresection` found nothing.
  bool complete() const { return complete_; }

  /// The section of that name, or null. Names are case sensitive.
  const IniSection* find(std::string_view section) const {
    if (slots_.empty()) return nullptr;
    const std::uint32_t number = slots_[slot_of(section)];
    return number == 0 ? nullptr : &sections_[number - 1];
  }
  /// The first entry of that name in that section, or null.
  const IniEntry* find(std::string_view section, std::string_view key) const {
    const IniSection* found = find(section);
    return found == nullptr ? nullptr : found->find(key);
  }

 private:
  friend class detail::IniReader;

  /// Where that name stands in the hash table, or the free slot where it would (a regfile may have
  /// a section for each of ten thousand users, so a walk over them for each would not do).
  std::size_t slot_of(std::string_view name) const {
    std::uint32_t hash = 2166136261u;  // FNV-1a
    for (char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619u;
    std::size_t slot = hash & (slots_.size() - 1);
    while (slots_[slot] != 0 && sections_[slots_[slot] - 1].name != name) {
      slot = (slot + 1) & (slots_.size() - 1);
    }
    return slot;
  }

  /// The number of that section, which is made where it is new.
  std::size_t open_section(std::string name, std::uint32_t file, std::uint32_t line) {
    if ((sections_.size() + 1) * 2 > slots_.size()) grow();
    const std::size_t slot = slot_of(name);
    if (slots_[slot] != 0) return slots_[slot] - std::size_t{1};
    sections_.push_back({std::move(name), {}, file, line});
    slots_[slot] = static_cast<std::uint32_t>(sections_.size());
    return sections_.size() - 1;
  }

  void grow() {
    slots_.assign(slots_.empty() ? 16 : slots_.size() * 2, 0);
    for (std::size_t i = 0; i < sections_.size(); ++i) {
      slots_[slot_of(sections_[i].name)] = static_cast<std::uint32_t>(i + 1);
    }
  }

  std::vector<IniSection> sections_;
  std::vector<std::uint32_t> slots_;  ///< open addressing: section number + 1, 0 = free
  std::vector<std::string> files_;
  bool complete_ = true;
};

// ---- reading ----

/// Where files come from. Paths are as written in the configuration, relative ones put behind the
/// directory of the file that names them.
class IniSource {
 public:
  /// The whole file. Error: `file`.
  virtual Result<std::string> read(const std::string& path) = 0;
  /// The names of the regular files in a directory, in any order, without the path. Error: `file`
  /// where `path` is no directory.
  virtual Result<std::vector<std::string>> list(const std::string& path) = 0;

 protected:
  ~IniSource() = default;
};

struct IniOptions {
  RunParameters run_parameters;             ///< for ${} in section names and directives
  std::vector<std::string> loaded_modules;  ///< for `$loaded`: names like "regfile"
  std::uint32_t max_include_depth = 10;     ///< files inside files
  std::uint32_t max_files = 10000;          ///< read in all
  std::uint32_t max_entries = 1000000;      ///< kept in all
};

namespace detail {

/// Takes the lines of a text one by one. A line ends at LF, CR LF, CR or NUL.
class IniLines {
 public:
  explicit IniLines(std::string_view text) : rest_(text) {
    if (rest_.substr(0, 3) == byte_order_mark) rest_.remove_prefix(3);
  }

  /// The next line without its leading blanks, or false at the end.
  bool next(std::string_view& line) {
    if (rest_.empty()) return false;
    ++number_;
    constexpr std::string_view ends("\n\r\0", 3);
    const std::size_t end = rest_.find_first_of(ends);
    line = rest_.substr(0, end);
    while (!line.empty() && is_blank(line.front())) line.remove_prefix(1);
    if (end == std::string_view::npos) {
      rest_ = {};
      return true;
    }
    saw_nul_ = saw_nul_ || rest_[end] == '\0';
    const bool two_octets = rest_.substr(end, 2) == "\r\n";
    rest_.remove_prefix(end + (two_octets ? 2 : 1));
    return true;
  }

  std::uint32_t number() const { return number_; }  ///< of the line taken last, from 1
  bool saw_nul() const { return saw_nul_; }

 private:
  std::string_view rest_;
  std::uint32_t number_ = 0;
  bool saw_nul_ = false;
};

/// Takes `word` and the blanks behind it off the front of `text`, where it stands there as a word
/// of its own.
inline bool ini_skip_word(std::string_view& text, std::string_view word) {
  if (text.substr(0, word.size()) != word) return false;
  if (text.size() > word.size() && !is_blank(text[word.size()])) return false;
  text = trim(text.substr(word.size()));
  return true;
}

/// A module by any of the names Yate's users write: regfile, regfile.yate, server/regfile.yate.
inline std::string_view ini_module_name(std::string_view text) {
  if (const std::size_t slash = text.rfind('/'); slash != std::string_view::npos) {
    text.remove_prefix(slash + 1);
  }
  constexpr std::string_view ending = ".yate";
  if (text.size() > ending.size() && text.substr(text.size() - ending.size()) == ending) {
    text.remove_suffix(ending.size());
  }
  return text;
}

class IniReader {
 public:
  IniReader(Ini& ini, IniSource* source, const IniOptions& options, Diagnostics& diagnostics)
      : ini_(ini), source_(source), options_(options), diagnostics_(diagnostics) {}

  Error read_main_file(const std::string& path) {
    Result<std::string> text = source_->read(path);
    read_text_as(path, *text);
    return text.error();
  }

  void read_text_as(const std::string& path, std::string_view text) {
    ini_.files_.push_back(path);
    read_text(text, 0, no_section);
    for (std::size_t i = 0; i < unresolved_.size(); ++i) resolve(unresolved_[i]);
  }

 private:
  static constexpr std::size_t no_section = static_cast<std::size_t>(-1);
  /// How deep sections may include sections; each level is one call of `resolve`.
  static constexpr std::size_t max_section_depth = 100;
  /// The key under which a `$includesection` waits in its section for the end of the reading. No
  /// line can make such a key: one that begins with a bracket is no key line.
  static constexpr std::string_view placeholder_key = "[]";

  enum class Kind : std::uint8_t { note_if_missing, silent_if_missing, required };

  /// One file while it is read.
  struct Place {
    IniLines lines;
    std::uint32_t file;
    std::size_t section;  ///< the current one, or no_section
    std::uint32_t line() const { return lines.number(); }
  };

  // -- lines --

  /// An included file begins in the section of the one that includes it, and leaves that one's
  /// section as it was.
  void read_text(std::string_view text, std::uint32_t file, std::size_t section) {
    open_files_.push_back(file);
    Place place{IniLines(text), file, section};
    bool enabled = true;
    std::string_view line;
    while (place.lines.next(line)) {
      if (line.empty() || line.front() == ';') continue;
      if (line.front() == '[') {
        read_bracket_line(place, line, enabled);
      } else {
        read_key_line(place, line, enabled);
      }
    }
    if (place.lines.saw_nul()) {
      diagnostics_.push_back(
          {Severity::warning, ini_.files_[file], 0, "holds NUL octets; each ends its line"});
    }
    open_files_.pop_back();
  }

  void read_bracket_line(Place& place, std::string_view line, bool& enabled) {
    const std::size_t close = line.find(']');
    if (close == std::string_view::npos) {
      return warn(place, "a line that begins with [ has no ]; it is ignored");
    }
    std::string_view name = trim(line.substr(1, close - 1));
    if (name.empty()) return warn(place, "a section without a name is ignored");
    if (ini_skip_word(name, "$enabled")) {
      enabled = is_enabled(name, enabled);
      return;
    }
    if (!enabled || read_include(place, name) || read_include_section(place, name)) return;
    std::string expanded = expand(name);
    if (expanded.empty()) {
      warn(place, "the section's name is empty after replacement; its keys are ignored");
      place.section = no_section;
      return;
    }
    place.section = ini_.open_section(std::move(expanded), place.file, place.line());
  }

  /// Continuation lines belong to a key line also where that is switched off.
  void read_key_line(Place& place, std::string_view line, bool enabled) {
    const std::uint32_t line_number = place.line();
    const std::size_t equals = line.find('=');
    const std::string_view key = trim(line.substr(0, equals));
    std::string value;
    if (equals != std::string_view::npos && equals > 0) {
      value = line.substr(equals + 1);
      while (!value.empty() && value.back() == '\\') {
        value.pop_back();
        std::string_view next;
        if (!place.lines.next(next)) break;
        value.append(next);
      }
      value = std::string(trim(value));
    }
    if (!enabled) return;
    if (key.empty()) return warn(place, "a value without a key is ignored");
    if (place.section == no_section) {
      return warn(place, "a key outside any section is ignored");
    }
    add_entry(place.section, {std::string(key), std::move(value), place.file, line_number});
  }

  void add_entry(std::size_t section, IniEntry entry) {
    if (has_room(entry)) ini_.sections_[section].entries.push_back(std::move(entry));
  }

  /// Sections that include one another can grow without end; so can a directory that includes
  /// itself by many names.
  bool has_room(const IniEntry& entry) {
    if (++entry_count_ <= options_.max_entries) return true;
    if (entry_count_ == options_.max_entries + std::size_t{1}) {
      say(Severity::error, entry.file, entry.line,
          "more than " + std::to_string(options_.max_entries) + " keys; the rest is ignored");
    }
    return false;
  }

  // -- directives --

  bool is_enabled(std::string_view condition, bool enabled) const {
    if (condition == "else" || condition == "toggle") return !enabled;
    if (ini_skip_word(condition, "elseif") && enabled) return false;
    const std::string expanded = expand(condition);
    std::string_view text = trim(expanded);
    const bool inverted = ini_skip_word(text, "$not");
    return evaluate(text) != inverted;
  }

  bool evaluate(std::string_view text) const {
    if (ini_skip_word(text, "$loaded")) return is_loaded(text);
    if (ini_skip_word(text, "$unloaded")) return !is_loaded(text);
    if (ini_skip_word(text, "$filled")) return !text.empty();
    if (ini_skip_word(text, "$empty")) return text.empty();
    const bool otherwise = !ini_skip_word(text, "$bool");
    return parse_boolean(text).value_or(otherwise);
  }

  bool is_loaded(std::string_view module) const {
    for (const std::string& loaded : options_.loaded_modules) {
      if (ini_module_name(module) == loaded) return true;
    }
    return false;
  }

  /// Splits "KEYWORD ARGUMENT". Without an argument it is no directive, but the name of a section.
  static bool take_directive(std::string_view& text, std::string_view keyword) {
    return text.size() > keyword.size() && ini_skip_word(text, keyword);
  }

  bool read_include(Place& place, std::string_view directive) {
    Kind kind = Kind::note_if_missing;
    if (take_directive(directive, "$require")) {
      kind = Kind::required;
    } else if (take_directive(directive, "$includesilent")) {
      kind = Kind::silent_if_missing;
    } else if (!take_directive(directive, "$include")) {
      return false;
    }
    const std::string argument = expand(directive);
    if (argument.empty()) {
      missing(place.file, place.line(), kind, "the path to include is empty");
      return true;
    }
    std::string path = path_beside(ini_.files_[place.file], argument);
    Result<std::vector<std::string>> names = list(path);
    if (!names) {
      include_file(place, path, kind);
      return true;
    }
    if (path.back() != '/') path += '/';
    for (const std::string& name : sorted_names(*names)) include_file(place, path + name, kind);
    return true;
  }

  Result<std::vector<std::string>> list(const std::string& path) {
    if (source_ == nullptr) return ErrorCode::file;
    return source_->list(path);
  }

  void include_file(Place& place, const std::string& path, Kind kind) {
    if (open_files_.size() > options_.max_include_depth) {
      return refuse(place, kind, path, "files include files more than ",
                    std::to_string(options_.max_include_depth) + " deep");
    }
    for (std::uint32_t open : open_files_) {
      if (ini_.files_[open] == path) return refuse(place, kind, path, "it includes itself", "");
    }
    if (ini_.files_.size() >= options_.max_files) {
      return refuse(place, kind, path, "there are more files than ",
                    std::to_string(options_.max_files));
    }
    Result<std::string> text =
        source_ == nullptr ? Result<std::string>(ErrorCode::file) : source_->read(path);
    if (!text) {
      return missing(place.file, place.line(), kind, "cannot read the file " + path);
    }
    ini_.files_.push_back(path);
    read_text(*text, static_cast<std::uint32_t>(ini_.files_.size() - 1), place.section);
  }

  void refuse(const Place& place, Kind kind, const std::string& path, std::string_view why,
              std::string_view more) {
    if (kind == Kind::required) ini_.complete_ = false;
    warn(place, std::string("does not read ").append(path).append(": ").append(why).append(more));
  }

  void missing(std::uint32_t file, std::uint32_t line, Kind kind, std::string text) {
    if (kind == Kind::silent_if_missing) return;
    if (kind == Kind::required) ini_.complete_ = false;
    say(Severity::warning, file, line, std::move(text));
  }

  /// `argument` as seen from the directory of `file`, each run of slashes made one: a file must not
  /// escape the check for self-inclusion by another spelling.
  static std::string path_beside(std::string_view file, std::string_view argument) {
    std::string path;
    const std::size_t slash = file.rfind('/');
    if (argument.front() != '/' && slash != std::string_view::npos) {
      path = file.substr(0, slash + 1);
    }
    for (char c : argument) {
      if (c != '/' || path.empty() || path.back() != '/') path.push_back(c);
    }
    return path;
  }

  /// In byte order, without the leftovers of editors and packages.
  static std::vector<std::string> sorted_names(const std::vector<std::string>& names) {
    std::vector<std::string> sorted;
    for (const std::string& name : names) {
      if (name.empty() || name.front() == '.' || ends_with(name, "~") || ends_with(name, ".bak") ||
          ends_with(name, ".tmp")) {
        continue;
      }
      std::size_t place = sorted.size();
      while (place > 0 && name < sorted[place - 1]) --place;
      sorted.insert(sorted.begin() + static_cast<std::ptrdiff_t>(place), name);
    }
    return sorted;
  }
  static bool ends_with(std::string_view text, std::string_view ending) {
    return text.size() >= ending.size() && text.substr(text.size() - ending.size()) == ending;
  }

  // -- sections inside sections --

  static std::optional<Kind> take_section_directive(std::string_view& text) {
    if (take_directive(text, "$requiresection")) return Kind::required;
    if (take_directive(text, "$includesectionsilent")) return Kind::silent_if_missing;
    if (take_directive(text, "$includesection")) return Kind::note_if_missing;
    return std::nullopt;
  }

  /// Leaves a placeholder: the section named may come later in the file.
  bool read_include_section(Place& place, std::string_view directive) {
    std::string_view name = directive;
    const std::optional<Kind> kind = take_section_directive(name);
    if (!kind) return false;
    if (place.section == no_section) {
      missing(place.file, place.line(), *kind, "a section is included outside any section");
      return true;
    }
    add_entry(place.section,
              {std::string(placeholder_key), std::string(directive), place.file, place.line()});
    if (unresolved_.empty() || unresolved_.back() != place.section) {
      unresolved_.push_back(place.section);
    }
    return true;
  }

  /// Puts the entries of included sections where their placeholders are, the innermost first.
  void resolve(std::size_t section) {
    stack_.push_back(section);
    std::vector<IniEntry> written = std::move(ini_.sections_[section].entries);
    std::vector<IniEntry> entries;
    for (IniEntry& entry : written) {
      if (entry.key == placeholder_key) {
        insert_section(entry, entries);
      } else {
        entries.push_back(std::move(entry));
      }
    }
    ini_.sections_[section].entries = std::move(entries);
    stack_.pop_back();
  }

  void insert_section(const IniEntry& placeholder, std::vector<IniEntry>& entries) {
    std::string_view text = placeholder.value;
    const Kind kind = take_section_directive(text).value_or(Kind::note_if_missing);
    const std::string name = expand(text);
    const auto give_up = [&](std::string_view why) {
      missing(placeholder.file, placeholder.line, kind,
              std::string("does not include the section [").append(name).append("]: ").append(why));
    };
    const IniSection* found = ini_.find(name);
    if (found == nullptr) return give_up("there is none");
    const auto number = static_cast<std::size_t>(found - ini_.sections_.data());
    for (std::size_t open : stack_) {
      if (open == number) return give_up("it includes itself");
    }
    if (stack_.size() >= max_section_depth) return give_up("too many sections inside sections");
    resolve(number);
    for (const IniEntry& entry : ini_.sections_[number].entries) {
      if (has_room(entry)) entries.push_back(entry);
    }
  }

  // -- small things --

  std::string expand(std::string_view text) const {
    return expand_run_parameters(text, options_.run_parameters);
  }
  void warn(const Place& place, std::string text) {
    say(Severity::warning, place.file, place.line(), std::move(text));
  }
  void say(Severity severity, std::uint32_t file, std::uint32_t line, std::string text) {
    diagnostics_.push_back({severity, ini_.files_[file], line, std::move(text)});
  }

  Ini& ini_;
  IniSource* source_;
  const IniOptions& options_;
  Diagnostics& diagnostics_;
  std::vector<std::uint32_t> open_files_;  ///< the file that is read and those around it
  std::vector<std::size_t> unresolved_;    ///< sections that hold placeholders
  std::vector<std::size_t> stack_;         ///< sections whose placeholders are being replaced
  std::size_t entry_count_ = 0;
};

}  // namespace detail

/// Reads the file at `path` and all it includes into `ini`, which it empties first, and adds to
/// `diagnostics` what there is to remark. Nothing of what the file says is an error of this call.
/// Error: `file`, where `path` itself cannot be read; `ini` is then empty but for the path.
inline Error load_ini(IniSource& source, const std::string& path, const IniOptions& options,
                      Ini& ini, Diagnostics& diagnostics) {
  ini = Ini();
  return detail::IniReader(ini, &source, options, diagnostics).read_main_file(path);
}

/// Reads one text, which can include sections but no files; `name` stands for it in diagnostics.
inline Ini parse_ini(std::string_view text, const std::string& name, const IniOptions& options,
                     Diagnostics& diagnostics) {
  Ini ini;
  detail::IniReader(ini, nullptr, options, diagnostics).read_text_as(name, text);
  return ini;
}

}  // namespace sipmsg

// ========================================= settings.hpp =========================================

// settings: what the configuration files say, in plain structs with units in their names.
//
// ysipchan.conf says how the server works and regfile.conf who its users are, as in Yate. One table
// lists every key: where its value goes, what it may be, or why it has no effect here. Reading, the
// search for the nearest name of a misspelt key, and the tests of documentation and samples all
// work from that table.
//
// Yate falls back to a default without a word. Here a value that cannot be used is named with file,
// line, what was found and what is allowed: a warning, where the default is used instead, so that a
// directory that works with Yate works here too; an error, where nothing sensible can be done.
// Left out on purpose: reading files (`ini` with an IniSource does), and the files of modules.

namespace sipmsg {

// ---- the settings ------------------------------------------------------------------------------

/// One socket to listen on: `[general]` makes the first, each `[listener NAME]` one more.
struct ListenerSettings {
  std::string name = "general";
  bool enable = true;  ///< one that is off is listed all the same
  Transport type = Transport::udp;
  std::string address = "0.0.0.0";  ///< numeric; one of IPv6 may end in %INTERFACE
  std::uint16_t port = 5060;        ///< 0: any that is free
  bool ipv6 = false;                ///< the address is one of IPv6
  std::uint32_t max_datagram_octets = 65528;
  std::uint32_t max_stream_message_octets = 65528;
  std::uint32_t receive_buffer_octets = 0;  ///< of a UDP socket; 0: as the system has it
  std::uint32_t backlog = 5;                ///< connections not yet accepted; 0: the system's most
  std::uint32_t tcp_idle_s = 120;           ///< a connection idle for so long is closed
  bool answer_to_source = true;  ///< answers go where the packet came from, whatever Via says
  std::string role;              ///< handed to handlers with what comes in here
};

struct TransportSettings {
  std::uint32_t tcp_keepalive_s = 120;  ///< between pings on connections made by us; 0: none
  std::uint32_t tcp_write_limit_octets = 262144;  ///< waiting on one connection; more is refused
  std::uint32_t max_connections = 10000;
  std::uint32_t max_connections_per_address = 1000;
};

/// RFC 3261 17.1.2.2; T2 is four seconds.
struct TimerSettings {
  std::uint32_t t1_ms = 500;
  std::uint32_t t4_ms = 5000;
};

struct FloodSettings {
  bool protection = true;
  std::uint32_t events = 100;        ///< so many requests without an idle moment; 0: never a flood
  std::uint32_t retry_after_s = 30;  ///< in the 503 that a reached limit is answered with
};

struct RegistrarSettings {
  bool enable = true;
  bool auth_required = true;
  bool accept_any_user = false;  ///< users need not be listed; no key sets this
  bool autocreate = false;       ///< regfile.conf: the same, by the owner's wish
  std::uint32_t expires_min_s = 60;
  std::uint32_t expires_default_s = 600;
  std::uint32_t expires_max_s = 3600;
  bool nat = true;                   ///< a private Contact is replaced by the source address
  std::uint32_t nat_refresh_s = 25;  ///< asked of clients behind a NAT; 0: nothing is asked
  std::uint32_t max_bindings = 50000;
  std::uint32_t max_bindings_per_user = 10;
  std::string file;  ///< where bindings are kept over a restart; empty: nowhere
};

struct MessageSettings {
  bool enable = false;
  bool auth_required = true;
  bool async_process = true;         ///< handlers run in the thread pool
  std::uint16_t auth_code = 401;     ///< or 407
  std::uint16_t offline_code = 405;  ///< the answer for a user without bindings
  std::uint32_t handler_deadline_s = 10;
  std::uint32_t max_pending = 1000;  ///< messages that wait for handlers
};

/// Messages for users who cannot be reached; a module of the program keeps them.
struct OfflineSettings {
  bool enable = false;
  std::string spool;                    ///< the directory they are kept in; empty: memory
  std::uint32_t max_messages = 100;     ///< for one user
  std::uint32_t max_per_sender = 1000;  ///< of one sender
  std::uint64_t max_octets = 67108864;  ///< in all
  std::uint32_t expires_s = 604800;     ///< unless their sender wants a shorter time
  bool notify = false;                  ///< tells senders who ask for it what became of them
};

/// In which form handlers get a body that is no text, as parameter `xsip_body`.
enum class BodyEncoding : std::uint8_t { base64, hex, hexs, raw };

/// One user of regfile.conf.
struct UserSettings {
  std::string name;
  bool has_password = false;
  std::string password;  ///< where it is there and empty, everybody is let in
  std::vector<std::string> alternatives;
  std::vector<std::pair<std::string, std::string>> parameters;  ///< all other keys, in order
};

namespace detail {

inline DigestOptions default_digest() {
  DigestOptions digest;
  digest.realm = "Yate";  // accounts made for Yate may name it
  // MD5 alone: whether every softphone in use copes with a second challenge is not known yet. A
  // client that does not would be locked out by the stronger one (RFC 8760 2.4 hopes otherwise).
  digest.algorithms = {DigestAlgorithm{DigestHash::md5, false}};
  return digest;
}

}  // namespace detail

/// Everything the two files can say. As constructed: what Yate does without them.
struct Settings {
  std::vector<ListenerSettings> listeners = {ListenerSettings{}};
  std::string user_agent = "sipmsg/" SIPMSG_VERSION;
  std::uint32_t max_forwards = 20;
  bool trace = false;                ///< every message is logged
  std::vector<std::string> domains;  ///< lower case; "*": any; empty: found out at start
  std::uint32_t max_transactions = 100000;
  bool options_enable = true;
  std::uint32_t route_priority = 100;  ///< of the users of regfile.conf among the handlers
  BodyEncoding body_encoding = BodyEncoding::base64;
  bool initial_headers = false;  ///< handlers get the headers of transport too
  bool generate = false;         ///< applications may send messages by `xsip.generate`
  DigestOptions digest = detail::default_digest();
  TransportSettings transport;
  TimerSettings timers;
  FloodSettings flood;
  RegistrarSettings registrar;
  MessageSettings message;
  OfflineSettings offline;
  std::vector<UserSettings> users;
};

/// What `sipmsg serve` works with where no directory is given: reached from this machine only, any
/// user may register with any password, messages are on.
inline Settings open_settings() {
  Settings settings;
  settings.listeners.clear();
  for (Transport type : {Transport::udp, Transport::tcp}) {
    ListenerSettings listener;
    listener.name = std::string(transport_parameter(type));
    listener.type = type;
    listener.address = "127.0.0.1";
    listener.answer_to_source = false;  // no Yate to be like: RFC 3261 18.2.2 and RFC 3581
    settings.listeners.push_back(std::move(listener));
  }
  settings.domains = {"*"};
  settings.registrar.auth_required = false;
  settings.registrar.accept_any_user = true;
  settings.message.enable = true;
  settings.message.auth_required = false;
  return settings;
}

// ---- the table of keys -------------------------------------------------------------------------

enum class SettingKind : std::uint8_t {
  boolean,
  number,
  keyword,
  text,
  list,
  algorithms,
  without_effect,
};

/// What becomes of a number that is none of those allowed.
enum class OutOfRange : std::uint8_t { use_default, clamp, refuse };

/// Where the value of a key goes: the settings, or the listener whose section is read.
struct SettingTarget {
  Settings& settings;
  ListenerSettings& listener;
};

/// One key. `section` is as in the file, with "listener" for each `[listener NAME]` (whose keys may
/// stand in `[general]` too), and "regfile" for `[general]` of regfile.conf. The key "*" stands for
/// every key of its section.
struct SettingKey {
  using Number = std::uint64_t(const SettingTarget&);
  using SetNumber = void(const SettingTarget&, std::uint64_t);
  using Text = std::string&(const SettingTarget&);
  using List = std::vector<std::string>&(const SettingTarget&);

  constexpr SettingKey(std::string_view in_section, std::string_view name, SettingKind what,
                       Number* get = nullptr, SetNumber* set = nullptr)
      : section(in_section), key(name), number(get), set_number(set), kind(what) {}
  constexpr SettingKey(std::string_view in_section, std::string_view name, Text* field)
      : section(in_section), key(name), text(field), kind(SettingKind::text) {}
  constexpr SettingKey(std::string_view in_section, std::string_view name, List* field)
      : section(in_section), key(name), list(field), kind(SettingKind::list) {}

  std::string_view section;
  std::string_view key;
  std::string_view reason;  ///< why it has no effect
  std::uint64_t minimum = 0;
  std::uint64_t maximum = 0;
  const IniKeyword* keywords = nullptr;
  union {            // which one says `kind`
    Number* number;  ///< booleans and keywords too
    Text* text;
    List* list;
  };
  SetNumber* set_number = nullptr;
  std::uint8_t keyword_count = 0;
  SettingKind kind;
  OutOfRange out_of_range = OutOfRange::clamp;
  bool may_be_empty = true;
};

namespace detail {

template <class Field>
Settings& setting_owner(const SettingTarget& target, Field Settings::*) {
  return target.settings;
}
template <class Field>
ListenerSettings& setting_owner(const SettingTarget& target, Field ListenerSettings::*) {
  return target.listener;
}

/// The member that a path of member pointers leads to, such as timers, t1_ms.
template <auto first, auto... rest>
auto& setting_field(const SettingTarget& target) {
  return ((setting_owner(target, first).*first).*....*rest);
}

/// Builds the rows of the table. The template arguments are the path to the field.
template <auto... path>
struct SettingRow {
  using Field = std::remove_reference_t<decltype(setting_field<path...>(
      std::declval<const SettingTarget&>()))>;

  static std::uint64_t get(const SettingTarget& target) {
    return static_cast<std::uint64_t>(setting_field<path...>(target));
  }
  static void set(const SettingTarget& target, std::uint64_t value) {
    setting_field<path...>(target) = static_cast<Field>(value);
  }

  static constexpr SettingKey boolean(std::string_view section, std::string_view key) {
    return SettingKey(section, key, SettingKind::boolean, get, set);
  }
  static constexpr SettingKey number(std::string_view section, std::string_view key,
                                     std::uint64_t minimum, std::uint64_t maximum,
                                     OutOfRange out_of_range = OutOfRange::clamp) {
    SettingKey row(section, key, SettingKind::number, get, set);
    row.minimum = minimum;
    row.maximum = maximum;
    row.out_of_range = out_of_range;
    return row;
  }
  template <std::uint8_t count>
  static constexpr SettingKey keyword(std::string_view section, std::string_view key,
                                      const IniKeyword (&words)[count], OutOfRange out_of_range) {
    SettingKey row(section, key, SettingKind::keyword, get, set);
    row.keywords = words;
    row.keyword_count = count;
    row.out_of_range = out_of_range;
    return row;
  }
  static constexpr SettingKey text(std::string_view section, std::string_view key,
                                   bool may_be_empty) {
    SettingKey row(section, key, setting_field<path...>);
    row.may_be_empty = may_be_empty;
    return row;
  }
  static constexpr SettingKey list(std::string_view section, std::string_view key) {
    return SettingKey(section, key, setting_field<path...>);
  }
};

constexpr SettingKey no_effect(std::string_view section, std::string_view key,
                               std::string_view reason) {
  SettingKey row(section, key, SettingKind::without_effect);
  row.reason = reason;
  return row;
}

inline constexpr IniKeyword setting_types[] = {
    {"udp", static_cast<std::int64_t>(Transport::udp)},
    {"tcp", static_cast<std::int64_t>(Transport::tcp)},
};
inline constexpr IniKeyword setting_auth_codes[] = {{"401", 401}, {"407", 407}};
inline constexpr IniKeyword setting_body_encodings[] = {
    {"base64", static_cast<std::int64_t>(BodyEncoding::base64)},
    {"hex", static_cast<std::int64_t>(BodyEncoding::hex)},
    {"hexs", static_cast<std::int64_t>(BodyEncoding::hexs)},
    {"raw", static_cast<std::int64_t>(BodyEncoding::raw)},
};

}  // namespace detail

/// Every key there is, as an array.
inline const auto& setting_keys() {
  using detail::no_effect;
  using S = Settings;
  using L = ListenerSettings;
  using T = TransportSettings;
  using R = RegistrarSettings;
  using M = MessageSettings;
  using O = OfflineSettings;
  constexpr std::string_view calls = "calls and media are not served";
  constexpr std::string_view tls = "TLS is not served";
  constexpr std::string_view modules = "it belongs to modules of Yate";
  constexpr std::string_view capture = "there is no capture server; printmsg logs every message";
  constexpr std::string_view rfc_4320 = "a request other than INVITE gets no 100 (RFC 4320)";
  // clang-format off
  static constexpr SettingKey table[] = {
      detail::SettingRow<&L::enable>::boolean("listener", "enable"),
      detail::SettingRow<&L::type>::keyword("listener", "type", detail::setting_types, OutOfRange::refuse),
      detail::SettingRow<&L::address>::text("listener", "addr", true),
      detail::SettingRow<&L::port>::number("listener", "port", 0, 65535, OutOfRange::refuse),
      detail::SettingRow<&L::ipv6>::boolean("listener", "ipv6"),
      detail::SettingRow<&L::max_datagram_octets>::number("listener", "maxpkt", 524, 65528),
      detail::SettingRow<&L::max_stream_message_octets>::number("listener", "tcp_maxpkt", 524, 65528),
      detail::SettingRow<&L::receive_buffer_octets>::number("listener", "buffer", 0, 67108864),
      detail::SettingRow<&L::backlog>::number("listener", "backlog", 0, 65535),
      detail::SettingRow<&L::tcp_idle_s>::number("listener", "tcp_idle", 10, 600),
      detail::SettingRow<&L::answer_to_source>::boolean("listener", "ignorevia"),
      detail::SettingRow<&L::role>::text("listener", "role", true),

      detail::SettingRow<&S::domains>::list("general", "domains"),
      detail::SettingRow<&S::digest, &DigestOptions::realm>::text("general", "realm", false),
      SettingKey("general", "algorithms", SettingKind::algorithms),
      detail::SettingRow<&S::digest, &DigestOptions::nonce_lifetime_s>::number("general", "nonce_lifetime", 10, 86400),
      detail::SettingRow<&S::user_agent>::text("general", "useragent", false),
      detail::SettingRow<&S::max_forwards>::number("general", "maxforwards", 1, 255),
      detail::SettingRow<&S::registrar, &R::nat>::boolean("general", "nat"),
      detail::SettingRow<&S::timers, &TimerSettings::t1_ms>::number("general", "t1", 100, 5000, OutOfRange::use_default),
      detail::SettingRow<&S::timers, &TimerSettings::t4_ms>::number("general", "t4", 1000, 25000, OutOfRange::use_default),
      detail::SettingRow<&S::transport, &T::tcp_keepalive_s>::number("general", "tcp_keepalive", 0, 3600),
      detail::SettingRow<&S::transport, &T::tcp_write_limit_octets>::number("general", "tcp_write_limit", 65536, 16777216),
      detail::SettingRow<&S::flood, &FloodSettings::events>::number("general", "floodevents", 0, 1000000),
      detail::SettingRow<&S::flood, &FloodSettings::protection>::boolean("general", "floodprotection"),
      detail::SettingRow<&S::flood, &FloodSettings::retry_after_s>::number("general", "congestion_retry", 10, 600),
      detail::SettingRow<&S::max_transactions>::number("general", "max_transactions", 100, 10000000),
      detail::SettingRow<&S::transport, &T::max_connections>::number("general", "max_connections", 1, 1000000),
      detail::SettingRow<&S::transport, &T::max_connections_per_address>::number("general", "max_connections_per_address", 1, 1000000),
      detail::SettingRow<&S::digest, &DigestOptions::max_remembered_nonces>::number("general", "max_nonces", 8, 10000000),
      detail::SettingRow<&S::trace>::boolean("general", "printmsg"),
      detail::SettingRow<&S::body_encoding>::keyword("general", "body_encoding", detail::setting_body_encodings, OutOfRange::use_default),
      detail::SettingRow<&S::initial_headers>::boolean("general", "initial_headers"),
      detail::SettingRow<&S::generate>::boolean("general", "generate"),
      detail::SettingRow<&S::registrar, &R::enable>::boolean("general", "registrar"),
      detail::SettingRow<&S::options_enable>::boolean("general", "options"),

      detail::SettingRow<&S::options_enable>::boolean("options", "enable"),

      detail::SettingRow<&S::registrar, &R::enable>::boolean("registrar", "enable"),
      detail::SettingRow<&S::registrar, &R::auth_required>::boolean("registrar", "auth_required"),
      detail::SettingRow<&S::registrar, &R::expires_min_s>::number("registrar", "expires_min", 1, 2592000),
      detail::SettingRow<&S::registrar, &R::expires_default_s>::number("registrar", "expires_def", 1, 2592000),
      detail::SettingRow<&S::registrar, &R::expires_max_s>::number("registrar", "expires_max", 1, 2592000),
      detail::SettingRow<&S::registrar, &R::nat_refresh_s>::number("registrar", "nat_refresh", 0, 3600),
      detail::SettingRow<&S::registrar, &R::max_bindings>::number("registrar", "max_bindings", 1, 10000000),
      detail::SettingRow<&S::registrar, &R::max_bindings_per_user>::number("registrar", "max_bindings_per_user", 1, 100),

      detail::SettingRow<&S::message, &M::enable>::boolean("message", "enable"),
      detail::SettingRow<&S::message, &M::auth_required>::boolean("message", "auth_required"),
      detail::SettingRow<&S::message, &M::auth_code>::keyword("message", "auth_code", detail::setting_auth_codes, OutOfRange::use_default),
      detail::SettingRow<&S::message, &M::offline_code>::number("message", "offline_code", 400, 699, OutOfRange::use_default),
      detail::SettingRow<&S::message, &M::async_process>::boolean("message", "async_process"),
      detail::SettingRow<&S::message, &M::handler_deadline_s>::number("message", "handler_deadline", 1, 30),
      detail::SettingRow<&S::message, &M::max_pending>::number("message", "max_pending", 1, 1000000),

      detail::SettingRow<&S::offline, &O::enable>::boolean("offline", "enable"),
      detail::SettingRow<&S::offline, &O::spool>::text("offline", "spool", true),
      detail::SettingRow<&S::offline, &O::max_messages>::number("offline", "max_messages", 1, 1000000),
      detail::SettingRow<&S::offline, &O::max_per_sender>::number("offline", "max_per_sender", 1, 1000000),
      detail::SettingRow<&S::offline, &O::max_octets>::number("offline", "max_octets", 65536, 1099511627776),
      detail::SettingRow<&S::offline, &O::expires_s>::number("offline", "expires", 60, 31536000),
      detail::SettingRow<&S::offline, &O::notify>::boolean("offline", "notify"),

      detail::SettingRow<&S::registrar, &R::autocreate>::boolean("regfile", "autocreate"),
      detail::SettingRow<&S::registrar, &R::file>::text("regfile", "file", true),
      detail::SettingRow<&S::route_priority>::number("regfile", "route", 0, 1000000),

      no_effect("listener", "default", "a request goes out over the transport of the recipient's binding"),
      no_effect("listener", "udp_force_bind", "a port that is taken is an error, never another port"),
      no_effect("listener", "thread", "one thread does all the work"),
      no_effect("listener", "sslcontext", tls),
      no_effect("listener", "rtp_localip", calls),
      no_effect("listener", "nat_address", calls),
      no_effect("listener", "warn_bind_fail_delay", "a port that is taken is an error at once"),
      no_effect("listener", "capture_filter", capture),
      no_effect("listener", "capture_agent", capture),
      no_effect("listener", "capture_server", capture),
      no_effect("listener", "capture_compress", capture),

      no_effect("general", "ipv6_support", "IPv6 is always there for listeners with such an addr or ipv6=yes"),
      no_effect("general", "lazy100", rfc_4320),
      no_effect("general", "sip_req_trans_count", "requests are repeated until an answer comes or 64*T1 are over (RFC 3261 17.1.2.2)"),
      no_effect("general", "sip_rsp_trans_count", "an answer is repeated when the request is (RFC 3261 17.2.2)"),
      no_effect("general", "tcp_keepalive_first", "the first keep-alive comes after tcp_keepalive, like every other"),
      no_effect("general", "auth_foreign", "nonces of others are never accepted"),
      no_effect("general", "auth_copy_headers", modules),
      no_effect("general", "async_generic", "methods other than MESSAGE, REGISTER and OPTIONS are not served"),
      no_effect("general", "warn_no_default_udp_transport", "there is no default transport"),
      no_effect("general", "flags", "they are for broken calls"),
      no_effect("general", "tcp_out_rtp_localip", calls),
      no_effect("general", "transfer", calls),
      no_effect("general", "refer_update", calls),
      no_effect("general", "prack", calls),
      no_effect("general", "info", calls),
      no_effect("general", "fork", calls),
      no_effect("general", "fork_early", calls),
      no_effect("general", "progress", calls),
      no_effect("general", "check_allow_info", calls),
      no_effect("general", "missing_allow_info", calls),
      no_effect("general", "dtmfmethods", calls),
      no_effect("general", "honor_dtmf_detect", calls),
      no_effect("general", "rfc2833", calls),
      no_effect("general", "privacy", calls),
      no_effect("general", "secure", calls),
      no_effect("general", "forward_sdp", calls),
      no_effect("general", "rtp_start", calls),
      no_effect("general", "multi_ringing", calls),
      no_effect("general", "refresh_nosdp", calls),
      no_effect("general", "update_target", calls),
      no_effect("general", "update_verify", calls),
      no_effect("general", "preventive_bye", calls),
      no_effect("general", "autochangeparty", calls),
      no_effect("general", "change_party_2xx", calls),
      no_effect("general", "maxchans", calls),
      no_effect("general", "ssl_certificate_file", tls),
      no_effect("general", "ssl_key_file", tls),

      no_effect("registrar", "async_process", "registering waits for nothing"),
      no_effect("methods", "*", "methods other than MESSAGE, REGISTER and OPTIONS are not served"),
      no_effect("sip-t", "*", calls),
      no_effect("codecs", "*", calls),
      no_effect("hacks", "*", calls),

      no_effect("regfile", "auth", "users are looked up before any handler is asked"),
      no_effect("regfile", "register", "users are looked up before any handler is asked"),
  };
  // clang-format on
  return table;
}

/// What the value of a key may be, for people.
inline std::string setting_allowed(const SettingKey& row) {
  std::string out;
  switch (row.kind) {
    case SettingKind::boolean: return "yes or no";
    case SettingKind::number:
      return std::to_string(row.minimum) + " to " + std::to_string(row.maximum);
    case SettingKind::keyword:
      for (std::size_t i = 0; i < row.keyword_count; ++i) {
        out.append(i == 0 ? "" : " or ").append(row.keywords[i].word);
      }
      return out;
    case SettingKind::text: return "text";
    case SettingKind::list: return "list";
    case SettingKind::algorithms: return "list of MD5, SHA-256, SHA-512-256";
    case SettingKind::without_effect: break;
  }
  return out;
}

/// The present value of a key, as it would stand in the file.
inline std::string setting_text(const SettingKey& row, const SettingTarget& target) {
  std::string out;
  switch (row.kind) {
    case SettingKind::boolean: return row.number(target) != 0 ? "yes" : "no";
    case SettingKind::number: return std::to_string(row.number(target));
    case SettingKind::keyword:
      for (std::size_t i = 0; i < row.keyword_count; ++i) {
        if (static_cast<std::uint64_t>(row.keywords[i].value) == row.number(target)) {
          out = row.keywords[i].word;
        }
      }
      return out;
    case SettingKind::text: return row.text(target);
    case SettingKind::list:
      for (const std::string& piece : row.list(target)) {
        out.append(out.empty() ? "" : ",").append(piece);
      }
      return out;
    case SettingKind::algorithms:
      for (const DigestAlgorithm& algorithm : target.settings.digest.algorithms) {
        out.append(out.empty() ? "" : ",").append(algorithm.name());
      }
      return out;
    case SettingKind::without_effect: break;
  }
  return out;
}

// ---- reading -----------------------------------------------------------------------------------

namespace detail {

/// How many octets must be inserted, dropped, replaced or swapped with their neighbour to make one
/// name of the other, whatever their case; a large number for long names.
inline std::size_t edit_distance(std::string_view a, std::string_view b) {
  constexpr std::size_t longest = 40;
  if (a.size() > longest || b.size() > longest) return longest;
  std::array<std::size_t, longest + 1> before_last{};
  std::array<std::size_t, longest + 1> last{};
  std::array<std::size_t, longest + 1> row{};
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    before_last = last;
    last = row;
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const bool same = to_lower(a[i - 1]) == to_lower(b[j - 1]);
      row[j] = last[j - 1] + (same ? 0 : 1);
      if (row[j] > last[j] + 1) row[j] = last[j] + 1;
      if (row[j] > row[j - 1] + 1) row[j] = row[j - 1] + 1;
      const bool swapped = i > 1 && j > 1 && to_lower(a[i - 1]) == to_lower(b[j - 2]) &&
                           to_lower(a[i - 2]) == to_lower(b[j - 1]);
      if (swapped && row[j] > before_last[j - 2] + 1) row[j] = before_last[j - 2] + 1;
    }
  }
  return row[b.size()];
}

/// Collects the name most like the one given, if one is like it at all.
class NearestName {
 public:
  explicit NearestName(std::string_view name) : name_(name), best_(2 + name.size() / 4) {}
  void offer(std::string_view candidate) {
    const std::size_t distance = edit_distance(name_, candidate);
    if (distance >= best_ || distance >= candidate.size()) return;
    best_ = distance;
    nearest_ = candidate;
  }
  std::string_view found() const { return nearest_; }  ///< empty for none

 private:
  std::string_view name_;
  std::string_view nearest_;
  std::size_t best_;
};

/// A text of the file, cut where it is long.
inline std::string setting_shortened(std::string_view text) {
  constexpr std::size_t longest = 60;
  return std::string(text.substr(0, longest)).append(text.size() > longest ? "..." : "");
}

/// A value of the file in quotes.
inline std::string setting_shown(std::string_view value) {
  return "\"" + setting_shortened(value) + "\"";
}

/// Reads both files into settings that hold the defaults. Every value that is not used as it is
/// written leaves a diagnostic behind.
class SettingsReader {
 public:
  SettingsReader(Settings& settings, const RunParameters& run_parameters, Diagnostics& diagnostics)
      : settings_(settings),
        run_parameters_(run_parameters),
        diagnostics_(diagnostics),
        mentioned_(std::size(setting_keys())) {}

  void read_ysipchan(const Ini& ini) {
    begin(ini, "ysipchan.conf");
    settings_.listeners.clear();
    ListenerSettings general;
    read_general(general);
    for (const IniSection& section : ini.sections()) read_other_section(section);
    if (const IniSection* replaced = ini.find("listener general")) {
      read_listener(*replaced, "general", general);
    }
    for (const IniSection& section : ini.sections()) {
      const std::string_view name = listener_name(section);
      if (!name.empty() && name != "general") read_listener(section, name, general);
    }
    settings_.offline.spool = expand_run_parameters(settings_.offline.spool, run_parameters_);
    check_domains();
    check_expires();
    hint_at_message();
  }

  void read_regfile(const Ini& ini) {
    begin(ini, "regfile.conf");
    for (const IniSection& section : ini.sections()) {
      if (section.name != "general") read_user(section);
    }
    RegistrarSettings& registrar = settings_.registrar;
    if (const IniSection* general = ini.find("general")) {
      ListenerSettings none;
      read_section(*general, "regfile", {settings_, none});
      registrar.file = expand_run_parameters(registrar.file, run_parameters_);
      if (registrar.autocreate && registrar.auth_required) {
        remark(Severity::info, *general, general->find("autocreate"),
               "lets nobody in while [registrar] auth_required is on: who is not listed has no "
               "password to pass it with");
      }
    }
    if (settings_.users.empty() && !registrar.autocreate) {
      say(Severity::info, 0, 0, "no user is listed");
    }
  }

 private:
  void begin(const Ini& ini, std::string_view usual_name) {
    ini_ = &ini;
    file_ = ini.files().empty() ? std::string(usual_name) : ini.files().front();
  }

  // -- sections --

  /// The keys of the first listener stand among those for the whole server, and its limits are what
  /// the others start from.
  void read_general(ListenerSettings& general) {
    const std::size_t first_remark = diagnostics_.size();
    const IniSection* section = ini_->find("general");
    listener_is_bad_ = false;
    if (section != nullptr) read_section(*section, "general", {settings_, general});
    check_timers();
    check_idle(section, general);
    if (ini_->find("general", "tcp_keepalive") == nullptr) {
      settings_.transport.tcp_keepalive_s = general.tcp_idle_s;
    }
    if (ini_->find("listener general") == nullptr) add_listener(section, general, first_remark);
  }

  void read_other_section(const IniSection& section) {
    if (section.name == "general" || !listener_name(section).empty()) return;
    NearestName nearest(section.name);
    bool known = false;
    for (const SettingKey& row : setting_keys()) {
      if (row.section == "listener" || row.section == "regfile") continue;
      known = known || row.section == section.name;
      nearest.offer(row.section);
    }
    if (known) {
      ListenerSettings none;
      return read_section(section, section.name, {settings_, none});
    }
    if (edit_distance(section.name.substr(0, section.name.find(' ')), "listener") <= 2) {
      return remark(Severity::warning, section, nullptr,
                    "unknown section; a listener is written [listener NAME]");
    }
    remark(Severity::warning, section, nullptr,
           "unknown section" + suggestion(nearest.found(), "[", "]"));
  }

  static std::string suggestion(std::string_view name, std::string_view before,
                                std::string_view after) {
    if (name.empty()) return {};
    return std::string("; did you mean ").append(before).append(name).append(after).append("?");
  }

  void read_section(const IniSection& section, std::string_view scope,
                    const SettingTarget& target) {
    for (const IniEntry& entry : section.entries) {
      const SettingKey* row = find_key(scope, entry.key);
      if (row == nullptr) {
        remark_unknown(section, entry, scope);
      } else if (row->kind == SettingKind::without_effect) {
        mention(section, entry, *row);
      } else if (scope == "general" && is_replaced(*row)) {
        remark(Severity::info, section, &entry,
               "has no effect: [listener general] takes its place");
      } else if (is_first(section, entry)) {
        read_value(section, entry, *row, target);
      }
    }
  }

  /// Whether [general] is no listener because there is [listener general], and this key is not one
  /// that other listeners start from.
  bool is_replaced(const SettingKey& row) const {
    if (row.section != "listener" || ini_->find("listener general") == nullptr) return false;
    for (std::string_view key : {"type", "addr", "port", "ipv6", "backlog", "role"}) {
      if (row.key == key) return true;
    }
    return false;
  }

  /// The keys of a listener may stand in [general] too, but for the one that switches it off.
  static bool may_stand(const SettingKey& row, std::string_view scope) {
    return row.section == scope ||
           (scope == "general" && row.section == "listener" && row.key != "enable");
  }

  static const SettingKey* find_key(std::string_view scope, std::string_view key) {
    for (const SettingKey& row : setting_keys()) {
      if (may_stand(row, scope) && (row.key == key || row.key == "*")) return &row;
    }
    return nullptr;
  }

  void remark_unknown(const IniSection& section, const IniEntry& entry, std::string_view scope) {
    if (entry.key.front() == '#') {
      return remark(Severity::warning, section, &entry, "unknown key; only ; begins a comment");
    }
    NearestName nearest(entry.key);
    std::string owners;
    for (const SettingKey& row : setting_keys()) {
      if (may_stand(row, scope)) nearest.offer(row.key);
      if (row.key != entry.key || (row.section == "regfile") != (scope == "regfile")) continue;
      owners.append(owners.empty() ? "[" : ", [")
          .append(row.section == "listener" ? std::string_view("listener NAME") : row.section)
          .append("]");
    }
    const std::string hint =
        owners.empty() ? suggestion(nearest.found(), "\"", "\"") : "; it belongs to " + owners;
    remark(Severity::warning, section, &entry, "unknown key" + hint);
  }

  void mention(const IniSection& section, const IniEntry& entry, const SettingKey& row) {
    const auto number = static_cast<std::size_t>(&row - setting_keys());
    if (mentioned_[number]) return;
    mentioned_[number] = true;
    const bool whole_section = row.key == "*";
    remark(Severity::info, section, whole_section ? nullptr : &entry,
           std::string("has no effect: ").append(row.reason));
  }

  bool is_first(const IniSection& section, const IniEntry& entry) {
    const IniEntry* first = section.find(entry.key);
    if (first == &entry) return true;
    remark(Severity::warning, section, &entry,
           "stands here again; the first, " + ini_->files()[first->file] + ":" +
               std::to_string(first->line) + ", counts");
    return false;
  }

  // -- values --

  void read_value(const IniSection& section, const IniEntry& entry, const SettingKey& row,
                  const SettingTarget& target) {
    bool good = true;
    switch (row.kind) {
      case SettingKind::boolean: {
        const std::optional<bool> value = parse_boolean(entry.value);
        good = value.has_value();
        if (good) row.set_number(target, *value ? 1 : 0);
        break;
      }
      case SettingKind::number: return read_number(section, entry, row, target);
      case SettingKind::keyword: good = read_keyword(section, entry, row, target); break;
      case SettingKind::text:
        good = is_fit(entry.value) && (row.may_be_empty || !entry.value.empty());
        if (good) row.text(target) = entry.value;
        break;
      case SettingKind::list:
        row.list(target).clear();
        for (std::string_view piece : split_list(entry.value)) row.list(target).emplace_back(piece);
        break;
      case SettingKind::algorithms: return read_algorithms(section, entry, row, target);
      case SettingKind::without_effect: break;
    }
    if (!good) remark_unused(section, entry, row, target);
  }

  /// Texts go into headers and logs, where control octets have no place.
  static bool is_fit(std::string_view value) {
    for (char c : value) {
      if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return false;
    }
    return true;
  }

  void read_number(const IniSection& section, const IniEntry& entry, const SettingKey& row,
                   const SettingTarget& target) {
    const std::optional<std::int64_t> value = parse_integer(entry.value);
    if (!value) return remark_unused(section, entry, row, target);
    const bool too_small = *value < static_cast<std::int64_t>(row.minimum);
    const bool too_large = *value > static_cast<std::int64_t>(row.maximum);
    if (!too_small && !too_large) {
      return row.set_number(target, static_cast<std::uint64_t>(*value));
    }
    if (row.out_of_range == OutOfRange::clamp) {
      row.set_number(target, too_small ? row.minimum : row.maximum);
    }
    if (row.out_of_range == OutOfRange::refuse) return refuse(section, entry, row);
    remark_unused(section, entry, row, target);
  }

  bool read_keyword(const IniSection& section, const IniEntry& entry, const SettingKey& row,
                    const SettingTarget& target) {
    const std::optional<std::int64_t> value =
        parse_keyword(entry.value, row.keywords, row.keyword_count);
    for (std::size_t i = 0; i < row.keyword_count; ++i) {
      if (value != row.keywords[i].value) continue;
      row.set_number(target, static_cast<std::uint64_t>(*value));
      return true;
    }
    if (row.out_of_range != OutOfRange::refuse) return false;
    refuse(section, entry, row);
    return true;
  }

  void read_algorithms(const IniSection& section, const IniEntry& entry, const SettingKey& row,
                       const SettingTarget& target) {
    std::vector<DigestAlgorithm> algorithms;
    for (std::string_view name : split_list(entry.value)) {
      const std::optional<DigestAlgorithm> algorithm = parse_digest_algorithm(name);
      if (!algorithm) {
        return remark(
            Severity::error, section, &entry,
            setting_shown(name) + " is no algorithm we know; allowed: " + setting_allowed(row));
      }
      bool repeated = false;
      for (const DigestAlgorithm& earlier : algorithms) repeated |= earlier == *algorithm;
      if (!repeated) algorithms.push_back(*algorithm);
    }
    if (algorithms.empty()) return remark_unused(section, entry, row, target);
    target.settings.digest.algorithms = std::move(algorithms);
  }

  /// A value that is not used; what stands in its place is in the target already.
  void remark_unused(const IniSection& section, const IniEntry& entry, const SettingKey& row,
                     const SettingTarget& target) {
    std::string text = found_and_allowed(entry, row);
    text.append("; used instead: ").append(setting_text(row, target));
    if (entry.value.find(';') != std::string::npos) {
      text.append(" (a ; behind a value begins no comment)");
    }
    remark(Severity::warning, section, &entry, std::move(text));
  }

  void refuse(const IniSection& section, const IniEntry& entry, const SettingKey& row) {
    listener_is_bad_ = true;
    if (row.key == "type" && entry.value == "tls") {
      return remark(Severity::error, section, &entry,
                    "tls is not supported here; allowed: " + setting_allowed(row));
    }
    remark(Severity::error, section, &entry, found_and_allowed(entry, row));
  }

  static std::string found_and_allowed(const IniEntry& entry, const SettingKey& row) {
    std::string text = entry.value.empty() ? "empty" : setting_shown(entry.value);
    text.append(" is not allowed; allowed: ").append(setting_allowed(row));
    if (row.kind == SettingKind::boolean) text.append(" (true on enable t, false off disable f)");
    return text;
  }

  // -- listeners --

  /// NAME of a section [listener NAME]; empty for other sections.
  static std::string_view listener_name(const IniSection& section) {
    constexpr std::string_view word = "listener";
    const std::string_view name = section.name;
    if (name.size() <= word.size() || name.substr(0, word.size()) != word) return {};
    return is_blank(name[word.size()]) ? trim(name.substr(word.size())) : std::string_view();
  }

  void read_listener(const IniSection& section, std::string_view name,
                     const ListenerSettings& general) {
    const std::size_t first_remark = diagnostics_.size();
    ListenerSettings listener;
    listener.name = name;
    listener.max_datagram_octets = general.max_datagram_octets;
    listener.max_stream_message_octets = general.max_stream_message_octets;
    listener.receive_buffer_octets = general.receive_buffer_octets;
    listener.tcp_idle_s = general.tcp_idle_s;
    listener.answer_to_source = general.answer_to_source;
    listener_is_bad_ = false;
    read_section(section, "listener", {settings_, listener});
    check_idle(&section, listener);
    add_listener(&section, listener, first_remark);
  }

  /// What is wrong with a listener that is off keeps nobody from starting.
  void add_listener(const IniSection* section, ListenerSettings listener,
                    std::size_t first_remark) {
    resolve_address(section, listener);
    if (listener.enable) check_taken(section, listener);
    if (listener.enable && listener_is_bad_) return;
    settings_.listeners.push_back(std::move(listener));
    if (settings_.listeners.back().enable) return;
    for (std::size_t i = first_remark; i < diagnostics_.size(); ++i) {
      if (diagnostics_[i].severity == Severity::error) diagnostics_[i].severity = Severity::warning;
    }
  }

  static std::string_view without_interface(std::string_view address) {
    return address.substr(0, address.find('%'));
  }

  void resolve_address(const IniSection* section, ListenerSettings& listener) {
    if (section == nullptr) return;
    const IniEntry* addr = section->find("addr");
    const IniEntry* ipv6 = section->find("ipv6");
    if (addr == nullptr || addr->value.empty()) {
      listener.address = listener.ipv6 ? "::" : "0.0.0.0";
      return;
    }
    const std::optional<IpAddress> ip = parse_ip(without_interface(listener.address));
    const bool has_interface = listener.address.find('%') != std::string::npos;
    if (!ip || listener.address.front() == '[' || (ip->is_ipv4() && has_interface)) {
      listener_is_bad_ = true;
      return remark(Severity::error, *section, addr,
                    setting_shown(addr->value) +
                        " is not a numeric IPv4 or IPv6 address; allowed: one, or "
                        "empty for all addresses");
    }
    if (ipv6 != nullptr && listener.ipv6 != ip->is_ipv6()) {
      remark(Severity::warning, *section, ipv6, "contradicts addr, which counts");
    }
    listener.ipv6 = ip->is_ipv6();
  }

  /// A port can be had once: for one address, or for all of a family.
  void check_taken(const IniSection* section, const ListenerSettings& listener) {
    if (section == nullptr || listener_is_bad_ || listener.port == 0) return;
    for (const ListenerSettings& other : settings_.listeners) {
      if (!other.enable || other.type != listener.type || other.port != listener.port) continue;
      if (!overlap(other.address, listener.address)) continue;
      const IniEntry* entry = section->find("port");
      listener_is_bad_ = true;
      return remark(Severity::error, *section, entry == nullptr ? section->find("addr") : entry,
                    std::string(transport_parameter(listener.type)) + " " + listener.address + ":" +
                        std::to_string(listener.port) + " is taken already by the listener " +
                        setting_shown(other.name));
    }
  }

  static bool overlap(std::string_view a, std::string_view b) {
    const IpAddress one = parse_ip(without_interface(a)).value_or(IpAddress());
    const IpAddress two = parse_ip(without_interface(b)).value_or(IpAddress());
    if (one.family != two.family) return false;
    if (one.is_unspecified() || two.is_unspecified()) return true;
    return one == two &&
           a.substr(without_interface(a).size()) == b.substr(without_interface(b).size());
  }

  // -- what keys have to do with one another --

  void check_timers() {
    TimerSettings& timers = settings_.timers;
    if (timers.t4_ms >= 3 * timers.t1_ms) return;
    const IniSection& general = *ini_->find("general");
    const IniEntry* t4 = general.find("t4");
    timers.t4_ms = 3 * timers.t1_ms;
    remark(t4 == nullptr ? Severity::info : Severity::warning, general,
           t4 == nullptr ? general.find("t1") : t4,
           "t4 is at least 3 times t1; used: " + std::to_string(timers.t4_ms));
  }

  /// A connection must outlive the transactions on it: at least 96 times T1.
  void check_idle(const IniSection* section, ListenerSettings& listener) {
    const std::uint32_t least_s = (96 * settings_.timers.t1_ms + 999) / 1000;
    if (listener.tcp_idle_s >= least_s) return;
    listener.tcp_idle_s = least_s;
    const IniEntry* entry = section == nullptr ? nullptr : section->find("tcp_idle");
    if (entry == nullptr) return;
    remark(Severity::warning, *section, entry,
           "is at least 96 times t1; used: " + std::to_string(least_s));
  }

  void check_domains() {
    std::vector<std::string> domains;
    for (const std::string& written : settings_.domains) {
      if (written == "*" || parse_ip(written) || all_of_class(written, char_host)) {
        domains.push_back(to_lower(written));
        continue;
      }
      remark(Severity::warning, *ini_->find("general"), ini_->find("general", "domains"),
             setting_shown(written) +
                 " is left out; allowed: host names and addresses without port, or *");
    }
    settings_.domains = std::move(domains);
  }

  void check_expires() {
    RegistrarSettings& registrar = settings_.registrar;
    const IniSection* section = ini_->find("registrar");
    if (registrar.expires_max_s < registrar.expires_min_s) {
      registrar.expires_max_s = registrar.expires_min_s;
      remark(
          Severity::warning, *section, first_of(*section, "expires_max", "expires_min"),
          "expires_max is not below expires_min; used: " + std::to_string(registrar.expires_max_s));
    }
    const std::uint32_t asked = registrar.expires_default_s;
    std::uint32_t& used = registrar.expires_default_s;
    if (used < registrar.expires_min_s) used = registrar.expires_min_s;
    if (used > registrar.expires_max_s) used = registrar.expires_max_s;
    if (used == asked) return;
    const IniEntry* entry = section->find("expires_def");
    remark(entry == nullptr ? Severity::info : Severity::warning, *section, entry,
           "expires_def is between expires_min and expires_max; used: " + std::to_string(used));
  }

  static const IniEntry* first_of(const IniSection& section, std::string_view one,
                                  std::string_view other) {
    const IniEntry* entry = section.find(one);
    return entry == nullptr ? section.find(other) : entry;
  }

  void hint_at_message() {
    if (settings_.message.enable) return;
    constexpr std::string_view hint =
        "messages are off and answered 501; enable=yes in [message] switches them on";
    if (const IniSection* section = ini_->find("message")) {
      return remark(Severity::info, *section, section->find("enable"), std::string(hint));
    }
    say(Severity::info, 0, 0, std::string(hint));
  }

  // -- users --

  void read_user(const IniSection& section) {
    UserSettings user;
    user.name = section.name;
    for (const IniEntry& entry : section.entries) read_user_key(section, entry, user);
    if (!user.has_password) {
      remark(Severity::info, section, nullptr,
             "has no password: may register only where [registrar] auth_required is off");
    } else if (user.password.empty()) {
      remark(Severity::warning, section, section.find("password"),
             "is empty: anybody is let in as this user, with any password");
    }
    settings_.users.push_back(std::move(user));
  }

  void read_user_key(const IniSection& section, const IniEntry& entry, UserSettings& user) {
    if (entry.key == "password") {
      if (!is_first(section, entry)) return;
      user.has_password = true;
      user.password = entry.value;
    } else if (entry.key == "alternatives") {
      if (is_first(section, entry)) read_alternatives(section, entry, user);
    } else {
      for (std::string_view key : {"password", "alternatives"}) {
        if (edit_distance(entry.key, key) > 2) continue;
        remark(Severity::warning, section, &entry,
               "is kept as a parameter of the user" + suggestion(key, "\"", "\""));
      }
      user.parameters.emplace_back(entry.key, entry.value);
    }
  }

  void read_alternatives(const IniSection& section, const IniEntry& entry, UserSettings& user) {
    for (std::string_view name : split_list(entry.value)) {
      bool repeated = false;
      for (const std::string& earlier : user.alternatives) repeated |= earlier == name;
      if (repeated) {
        remark(Severity::warning, section, &entry, setting_shown(name) + " stands here twice");
        continue;
      }
      if (name != "general" && ini_->find(name) != nullptr) {
        remark(
            Severity::warning, section, &entry,
            setting_shown(name) + (name == user.name ? " is this user's own name"
                                                     : " is a user, who gets what is sent there"));
      }
      user.alternatives.emplace_back(name);
    }
  }

  // -- remarks --

  /// On a key, or where there is none on its section.
  void remark(Severity severity, const IniSection& section, const IniEntry* entry,
              std::string text) {
    std::string subject = "[" + setting_shortened(section.name) + "]";
    if (entry != nullptr) subject.append(" ").append(setting_shortened(entry->key));
    say(severity, entry == nullptr ? section.file : entry->file,
        entry == nullptr ? section.line : entry->line, subject + ": " + text);
  }
  void say(Severity severity, std::uint32_t file, std::uint32_t line, std::string text) {
    diagnostics_.push_back(
        {severity, file == 0 ? file_ : ini_->files()[file], line, std::move(text)});
  }

  Settings& settings_;
  const RunParameters& run_parameters_;
  Diagnostics& diagnostics_;
  std::vector<bool> mentioned_;  ///< keys without effect that were named already
  const Ini* ini_ = nullptr;
  std::string file_;
  bool listener_is_bad_ = false;
};

}  // namespace detail

/// Sets `settings` to what the two files say, and to defaults where they say nothing. A file that
/// does not exist is an Ini without sections. `run_parameters` are put into the path of `file`.
/// Adds to `diagnostics` what there is to remark, in the order of the lines of each section.
/// Error: `bad_configuration`, where `diagnostics` then holds an error, from here or from before.
inline Error load_settings(const Ini& ysipchan, const Ini& regfile,
                           const RunParameters& run_parameters, Settings& settings,
                           Diagnostics& diagnostics) {
  settings = Settings();
  detail::SettingsReader reader(settings, run_parameters, diagnostics);
  reader.read_ysipchan(ysipchan);
  reader.read_regfile(regfile);
  return count(diagnostics, Severity::error) == 0 ? Error() : ErrorCode::bad_configuration;
}

}  // namespace sipmsg

// =========================================== pool.hpp ===========================================

// pool: memory that is used again: an index by keyed hash, slabs of objects, blocks of octets.
//
// A server in steady state makes and forgets the same things over and over: transactions, bindings,
// copies of messages. Here they are taken from what was freed before, so that after a warm-up no
// message costs a heap allocation. Objects stay where they are for life and are known by a Handle,
// which notices when its object is gone; tables know them by a 32-bit index, half a pointer.
// Left out on purpose: threads (everything belongs to one), and giving slabs and indexes back
// before the end: both are as large as their owner's limit allows, blocks have a cap of their own.

namespace sipmsg {

/// Finds 32-bit values by 64-bit hashes: open addressing, linear probing, eight octets a slot, at
/// most half of the slots in use. Grows by doubling and never shrinks.
///
/// The hashes must be keyed (SipHash) where the names behind them come from outside: with any other
/// hash an attacker could choose names that all fall into one slot. Only 32 bits of the hash are
/// kept, so the owner says in `find` whether a value is the one it means.
class HashIndex {
 public:
  static constexpr std::uint32_t npos = 0xffffffff;  ///< no value; may not be inserted

  /// Makes room for `count` entries, so that inserting up to there allocates nothing.
  void reserve(std::size_t count) {
    std::size_t slots = 16;
    while (slots < count * 2) slots *= 2;
    if (slots > slots_.size()) rehash(slots);
  }

  /// Adds an entry. Several may have the same hash, and the same hash and value twice count twice.
  void insert(std::uint64_t hash, std::uint32_t value) {
    reserve(++size_);
    put({shorten(hash), value});
  }

  /// Takes out the entry with that hash and value, where there is one.
  void erase(std::uint64_t hash, std::uint32_t value) {
    const std::size_t at =
        find_slot(hash, [value](std::uint32_t candidate) { return candidate == value; });
    if (at == no_slot) return;
    --size_;
    close_gap(at);
  }

  /// The first value with that hash of which `match(value)` says yes; npos where there is none.
  template <class Match>
  std::uint32_t find(std::uint64_t hash, Match match) const {
    const std::size_t at = find_slot(hash, match);
    return at == no_slot ? npos : slots_[at].value;
  }

  std::size_t size() const { return size_; }

 private:
  struct Slot {
    std::uint32_t hash;
    std::uint32_t value;  ///< npos in a free slot
  };
  static constexpr std::size_t no_slot = static_cast<std::size_t>(-1);

  static std::uint32_t shorten(std::uint64_t hash) {
    return static_cast<std::uint32_t>(hash ^ hash >> 32);
  }
  std::size_t after(std::size_t slot) const { return (slot + 1) & (slots_.size() - 1); }
  std::size_t home(std::uint32_t hash) const { return hash & (slots_.size() - 1); }

  template <class Match>
  std::size_t find_slot(std::uint64_t hash, Match match) const {
    if (slots_.empty()) return no_slot;
    const std::uint32_t wanted = shorten(hash);
    for (std::size_t i = home(wanted); slots_[i].value != npos; i = after(i)) {
      if (slots_[i].hash == wanted && match(slots_[i].value)) return i;
    }
    return no_slot;
  }

  void put(Slot slot) {
    std::size_t i = home(slot.hash);
    while (slots_[i].value != npos) i = after(i);
    slots_[i] = slot;
  }

  /// Frees a slot and moves those behind it up that would no longer be found across the gap, so
  /// that no tombstones pile up.
  void close_gap(std::size_t gap) {
    const std::size_t mask = slots_.size() - 1;
    for (std::size_t i = after(gap); slots_[i].value != npos; i = after(i)) {
      const std::size_t from_home = (i - home(slots_[i].hash)) & mask;
      const std::size_t from_gap = (i - gap) & mask;
      if (from_home < from_gap) continue;
      slots_[gap] = slots_[i];
      gap = i;
    }
    slots_[gap].value = npos;
  }

  void rehash(std::size_t slot_count) {
    std::vector<Slot> old(slot_count, Slot{0, npos});
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (slot.value != npos) put(slot);
    }
  }

  std::vector<Slot> slots_;
  std::size_t size_ = 0;
};

/// Names an object in a Slab. The index is used again for other objects, the generation is not, so
/// that a handle kept too long finds nothing. False for the handle that names nothing.
struct Handle {
  std::uint32_t index = 0xffffffff;
  std::uint32_t generation = 0;

  explicit operator bool() const { return generation != 0; }
  bool operator==(const Handle& other) const {
    return index == other.index && generation == other.generation;
  }
  bool operator!=(const Handle& other) const { return !(*this == other); }
};

/// A handle as one number, for whoever keeps one for us, and back.
constexpr std::uint64_t pack_handle(Handle handle) {
  return std::uint64_t{handle.generation} << 32 | handle.index;
}
constexpr Handle unpack_handle(std::uint64_t packed) {
  return {static_cast<std::uint32_t>(packed & 0xffffffff),
          static_cast<std::uint32_t>(packed >> 32)};
}

/// Objects at addresses that never change, found by index. Room for `chunk_size` objects is
/// allocated at a time and kept until the Slab goes; what is freed last is used first.
template <class T, std::size_t chunk_size = 64>
class Slab {
 public:
  Slab() = default;
  Slab(const Slab&) = delete;
  Slab& operator=(const Slab&) = delete;
  ~Slab() {
    for_each([this](Handle handle, T&) { destroy(handle); });
    for (void* chunk : chunks_) delete[] static_cast<Cell*>(chunk);
  }

  template <class... Arguments>
  Handle create(Arguments&&... arguments) {
    if (first_free_ == none) add_chunk();
    const std::uint32_t index = first_free_;
    Cell& cell = cell_at(index);
    first_free_ = cell.next_free;
    new (cell.storage) T(std::forward<Arguments>(arguments)...);
    ++cell.generation;
    ++size_;
    return {index, cell.generation};
  }

  /// The object, or null where it is gone.
  T* get(Handle handle) { return is_live(handle) ? &at(handle.index) : nullptr; }
  const T* get(Handle handle) const { return is_live(handle) ? &at(handle.index) : nullptr; }

  /// The object with that index, which must be alive.
  T& at(std::uint32_t index) { return object(cell_at(index)); }
  const T& at(std::uint32_t index) const { return object(cell_at(index)); }
  /// The handle of the object with that index, which must be alive.
  Handle handle_of(std::uint32_t index) const { return {index, cell_at(index).generation}; }

  /// Ends the object's life; nothing happens where it is gone already.
  void destroy(Handle handle) {
    if (!is_live(handle)) return;
    Cell& cell = cell_at(handle.index);
    ++cell.generation;  // before the destructor, so that nothing finds the object any more
    object(cell).~T();
    cell.next_free = first_free_;
    first_free_ = handle.index;
    --size_;
  }

  /// Calls `use(Handle, T&)` on every object in order of index. It may destroy the object it got.
  template <class Use>
  void for_each(Use use) {
    for (std::uint32_t index = 0; index < capacity(); ++index) {
      const Handle handle{index, cell_at(index).generation};
      if (is_live(handle)) use(handle, at(index));
    }
  }

  /// Makes room for `count` objects, so that creating up to there allocates nothing.
  void reserve(std::size_t count) {
    while (capacity() < count) add_chunk();
  }
  std::size_t size() const { return size_; }
  std::size_t capacity() const { return chunks_.size() * chunk_size; }

 private:
  /// Odd generations are alive, even ones are free: one comparison tells both.
  struct Cell {
    alignas(T) unsigned char storage[sizeof(T)];
    std::uint32_t generation = 0;
    std::uint32_t next_free = none;
  };
  static constexpr std::uint32_t none = 0xffffffff;

  static T& object(Cell& cell) { return *std::launder(reinterpret_cast<T*>(cell.storage)); }
  Cell& cell_at(std::uint32_t index) const {
    return static_cast<Cell*>(chunks_[index / chunk_size])[index % chunk_size];
  }
  bool is_live(Handle handle) const {
    return handle.generation % 2 == 1 && handle.index < capacity() &&
           cell_at(handle.index).generation == handle.generation;
  }
  void add_chunk() {
    const auto first = static_cast<std::uint32_t>(capacity());
    chunks_.push_back(new Cell[chunk_size]);
    for (std::uint32_t i = chunk_size; i-- > 0;) {  // so that the lowest index is used first
      cell_at(first + i).next_free = first_free_;
      first_free_ = first + i;
    }
  }

  std::vector<void*> chunks_;  ///< arrays of Cell; the vector is of one type for all slabs
  std::uint32_t first_free_ = none;
  std::size_t size_ = 0;
};

class BlockPool;

/// A piece of memory for a kept message, given back to its pool when this goes. Moves only; empty
/// where nothing was allocated. Lifetime: the pool must outlive it.
class Block {
 public:
  Block() = default;
  Block(Block&& other) noexcept : header_(std::exchange(other.header_, nullptr)) {}
  Block& operator=(Block&& other) noexcept {
    if (this == &other) return *this;
    reset();
    header_ = std::exchange(other.header_, nullptr);
    return *this;
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block() { reset(); }

  inline void reset();
  explicit operator bool() const { return header_ != nullptr; }
  char* data() { return reinterpret_cast<char*>(header_ + 1); }
  const char* data() const { return reinterpret_cast<const char*>(header_ + 1); }
  /// The size asked for; 0 where empty.
  std::size_t size() const { return header_ == nullptr ? 0 : header_->size; }

 private:
  friend class BlockPool;
  struct Header {
    union {
      BlockPool* owner;   ///< of a block in use
      Header* next_free;  ///< of an idle one
    };
    std::uint32_t size;
    std::uint32_t size_class;
  };
  explicit Block(Header* header) : header_(header) {}

  Header* header_ = nullptr;
};

/// Blocks of up to `max_block_size` octets. A freed block is kept for the next one of its size
/// class; there are four classes to each doubling, so that little is wasted on kept messages, of
/// which a busy server holds hundreds of thousands. What is idle beyond the cap goes back to the
/// heap.
class BlockPool {
 public:
  static constexpr std::size_t max_block_size = std::size_t{1} << 17;

  explicit BlockPool(std::size_t max_idle_size = std::size_t{16} << 20)
      : max_idle_size_(max_idle_size) {}
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;
  ~BlockPool() {
    for (Block::Header*& first : idle_) {
      while (first != nullptr) ::operator delete(std::exchange(first, first->next_free));
    }
  }

  /// A block of `size` octets, uninitialised; an empty one where that is more than max_block_size.
  Block allocate(std::size_t size) {
    if (size > max_block_size) return {};
    const std::uint32_t size_class = class_of(size);
    const std::size_t room = room_of(size_class);
    Block::Header* header = idle_[size_class];
    if (header != nullptr) {
      idle_[size_class] = header->next_free;
      idle_size_ -= room;
    } else {
      header = static_cast<Block::Header*>(::operator new(sizeof(Block::Header) + room));
    }
    header->owner = this;
    header->size = static_cast<std::uint32_t>(size);
    header->size_class = size_class;
    in_use_size_ += room;
    return Block(header);
  }

  /// Octets of room in the blocks that are in use, and in those that wait for use.
  std::size_t in_use_size() const { return in_use_size_; }
  std::size_t idle_size() const { return idle_size_; }

 private:
  friend class Block;
  static constexpr std::size_t smallest = 256;
  static constexpr std::size_t class_count = 4 * 9 + 1;  // from 2^8 to 2^17 octets

  /// 256, 320, 384, 448, 512, 640, 768, 896, 1024, ...
  static constexpr std::size_t room_of(std::uint32_t size_class) {
    return (smallest + smallest / 4 * (size_class % 4)) << size_class / 4;
  }
  static std::uint32_t class_of(std::size_t size) {
    std::uint32_t size_class = 0;
    while (room_of(size_class + 4) < size) size_class += 4;
    while (room_of(size_class) < size) ++size_class;
    return size_class;
  }

  void take_back(Block::Header* header) {
    const std::uint32_t size_class = header->size_class;
    const std::size_t room = room_of(size_class);
    in_use_size_ -= room;
    if (idle_size_ + room > max_idle_size_) {
      ::operator delete(header);
      return;
    }
    idle_size_ += room;
    header->next_free = idle_[size_class];
    idle_[size_class] = header;
  }

  Block::Header* idle_[class_count] = {};
  std::size_t idle_size_ = 0;
  std::size_t in_use_size_ = 0;
  std::size_t max_idle_size_;
};

inline void Block::reset() {
  if (header_ != nullptr) header_->owner->take_back(std::exchange(header_, nullptr));
}

}  // namespace sipmsg

// ========================================== timer.hpp ===========================================

// timer: deadlines in queues by duration, in anybody's time.
//
// All SIP timers of one kind last equally long, so whichever of them was started first also fires
// first: each duration is one first-in-first-out queue, and the earliest of the few heads is the
// next deadline of all. Starting and cancelling cost the same however many timers run, and there
// is neither heap nor wheel. The timers stand in the objects they belong to and allocate nothing.
// Left out on purpose: a clock. `now_ms` comes from the caller, counts milliseconds from any start,
// and may jump ahead by hours.

namespace sipmsg {

/// One timer, part of the object it belongs to. Stops when it is destroyed; stays where it is.
class Timer {
 public:
  /// For the owner to know the timer by when it fires: the owner's number, and which timer of its.
  explicit Timer(std::uint32_t owner_index = 0, std::uint8_t timer_kind = 0)
      : owner(owner_index), kind(timer_kind) {}
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;
  ~Timer() { cancel(); }

  bool is_running() const { return next_ != this; }
  /// When it fires, or fired last.
  std::uint64_t deadline_ms() const { return deadline_ms_; }
  /// Stops it; nothing happens where it does not run.
  void cancel() {
    previous_->next_ = next_;
    next_->previous_ = previous_;
    previous_ = next_ = this;
  }

  std::uint32_t owner;
  std::uint8_t kind;

 private:
  friend class TimerQueue;
  Timer* previous_ = this;  // a ring: a timer that does not run is alone in its own
  Timer* next_ = this;
  std::uint64_t deadline_ms_ = 0;
};

/// All running timers of one duration, in the order in which they fire. Must outlive them.
class TimerQueue {
 public:
  /// `duration_ms` of 0 counts as 1: a timer never fires in the instant it is started, so that
  /// callbacks that start timers come to an end.
  explicit TimerQueue(std::uint64_t duration_ms)
      : duration_ms_(duration_ms == 0 ? 1 : duration_ms) {}

  std::uint64_t duration_ms() const { return duration_ms_; }

  /// Starts the timer, or starts it anew, to fire `duration_ms()` after `now_ms`.
  void start(Timer& timer, std::uint64_t now_ms) {
    timer.cancel();
    Timer& last = *ring_.previous_;
    timer.deadline_ms_ = now_ms + duration_ms_;
    // Time that went backwards would put the queue out of order.
    if (&last != &ring_ && timer.deadline_ms_ < last.deadline_ms_) {
      timer.deadline_ms_ = last.deadline_ms_;
    }
    timer.previous_ = &last;
    timer.next_ = &ring_;
    last.next_ = ring_.previous_ = &timer;
  }

  /// The timer that fires next, null where none runs.
  Timer* first() { return ring_.is_running() ? ring_.next_ : nullptr; }

 private:
  std::uint64_t duration_ms_;
  Timer ring_;  ///< the queue is a ring through this one, which itself never fires
};

/// The queues of one owner, as many as it has durations: a handful.
class Timers {
 public:
  /// The queue for that duration, made where there is none yet; ask once and keep it. The
  /// reference lives as long as this. Of timers with one deadline those fire first whose queue was
  /// made first.
  TimerQueue& queue(std::uint64_t duration_ms) {
    for (const auto& queue : queues_) {
      if (queue->duration_ms() == (duration_ms == 0 ? 1 : duration_ms)) return *queue;
    }
    queues_.push_back(std::make_unique<TimerQueue>(duration_ms));
    return *queues_.back();
  }

  /// Stops every timer whose deadline has come and calls `fire(Timer&)` on it, earliest first.
  /// `fire` may start, cancel and destroy any timer, the one that fires included, and may advance.
  template <class Fire>
  void advance(std::uint64_t now_ms, Fire fire) {
    while (Timer* timer = earliest()) {
      if (timer->deadline_ms() > now_ms) return;
      timer->cancel();
      fire(*timer);
    }
  }

  /// When `advance` has something to do next; nothing where no timer runs.
  std::optional<std::uint64_t> next_deadline() const {
    const Timer* timer = earliest();
    if (timer == nullptr) return std::nullopt;
    return timer->deadline_ms();
  }

 private:
  Timer* earliest() const {
    Timer* earliest = nullptr;
    for (const auto& queue : queues_) {
      Timer* first = queue->first();
      if (first == nullptr) continue;
      if (earliest == nullptr || first->deadline_ms() < earliest->deadline_ms()) earliest = first;
    }
    return earliest;
  }

  std::vector<std::unique_ptr<TimerQueue>> queues_;
};

}  // namespace sipmsg

// ======================================== registrar.hpp =========================================

// registrar: who can be reached where, and until when.
//
// An address-of-record is the name a user is known by; a binding says that requests for it go to
// one contact, one of the user's softphones, until a time. REGISTER makes, renews, lists and
// removes bindings, and a request does all it asks for or nothing (RFC 3261 10.3). The name is the
// caller's: within our own domains the user name, decoded, is the whole address-of-record. A
// contact says where a phone believes it is, the flow of its REGISTER where it can be reached in
// truth; which of the two counts is decided once, by route_to_contact.
//
// RFC 3261 10, RFC 3327 (Path), RFC 5626 (+sip.instance and reg-id). Left out on purpose: contacts
// that are not sip URIs, several flows to one phone that stand in for each other (RFC 5626
// outbound), GRUU, and looking up names: a contact whose host is a name is reached where its
// REGISTER came from.

namespace sipmsg {

/// What a Registrar grants and where its limits are.
struct RegistrarOptions {
  std::uint32_t expires_min_s = 60;       ///< less is refused with 423; 0 removes
  std::uint32_t expires_default_s = 600;  ///< where no time is asked for, or one that is no number
  std::uint32_t expires_max_s = 3600;     ///< more is cut to this
  std::uint32_t max_bindings = 50000;
  std::uint32_t max_bindings_per_user = 10;
  bool nat = true;  ///< look for NAT, and send to the source of the REGISTER where there is one
};

/// One way to reach a user. Lifetime of the views: until the Registrar is next changed.
struct Binding {
  std::string_view contact_uri;  ///< exactly as the client wrote it: clients compare
  std::string_view request_uri;  ///< the same as it may stand in a request line: without headers
  std::string_view instance;     ///< +sip.instance as written, with its quotes; may be empty
  std::string_view path;  ///< Path values for the Route of a request, "<sip:a;lr>, <sip:b;lr>"
  std::string_view user_agent;  ///< what client it is, cut to 64 octets
  std::string_view call_id;     ///< of the REGISTER that made or renewed it, as is `cseq`
  Flow flow;                    ///< where its requests go
  std::uint64_t expires_at_ms = 0;
  std::uint32_t cseq = 0;
  std::uint32_t reg_id = 0;  ///< RFC 5626, 0 for none
  int q = 1000;              ///< preference in thousandths; 1000 where none was given
  bool has_q = false;
  bool nat = false;  ///< the contact is behind a NAT, `flow` leads through it
};

/// What became of a REGISTER, and what its answer must say.
struct RegisterOutcome {
  int status = 200;             ///< 200, 400, 403, 423, 500 or 503
  Error error;                  ///< of a 400: what is wrong, with the offset in the request
  std::string_view reason;      ///< a phrase fit for the status line, "" for the usual one; static
  std::uint32_t expires_s = 0;  ///< for Expires: granted to the first contact; 0: write none
  std::uint32_t min_expires_s = 0;  ///< of a 423: for the Min-Expires header
  std::uint32_t retry_after_s = 0;  ///< of a 503: for the Retry-After header
  std::uint32_t added = 0;          ///< bindings that are new
  std::uint32_t refreshed = 0;      ///< bindings that were there before, or took an old one's place
  std::uint32_t removed = 0;        ///< bindings that are gone
  std::string_view nat_contact;  ///< the first contact that is behind a NAT; view into the request
  SocketAddress nat_address;     ///< where that one can be reached
};

/// Where the requests for a contact go.
struct ContactRoute {
  Flow flow;
  bool nat = false;  ///< a NAT was found
};

namespace detail {

/// Whether a datagram to that address can reach one host somewhere, and not many hosts, none, or
/// the server itself. `::ffff:a.b.c.d` could be any of these in disguise.
inline bool names_one_host(const IpAddress& ip, const IpAddress& source) {
  if (ip.is_unspecified() || (ip.is_loopback() && !source.is_loopback())) return false;
  if (ip.is_ipv4()) return ip.octets[0] < 224;  // multicast, reserved, broadcast
  constexpr std::string_view mapped("\0\0\0\0\0\0\0\0\0\0\xff\xff", 12);
  return ip.octets[0] != 0xff && ip.bytes().substr(0, 12) != mapped;
}

/// A phone behind a NAT writes its private address into the contact, or one of another network. The
/// source's own address with another port is believed: a tool may register for a port of its
/// machine that it does not send from, as sipsak does (Yate sends to the source there).
inline bool seems_behind_nat(const SocketAddress& contact, const SocketAddress& source) {
  if (contact.ip.is_private() && !source.ip.is_private()) return true;
  return contact.ip != source.ip && contact.port != source.port;
}

}  // namespace detail

/// The policy: where the requests for a contact go, given the flow its REGISTER came by.
///
/// Over TCP: back over the connection it came by, always; most phones cannot be connected to.
/// Over UDP: to the contact's own address, by the socket that heard the REGISTER, where it is
/// numeric and believed. Else to the source of the REGISTER: the host is a name, there is a maddr
/// or another transport than UDP, it is no address of a single host, or with `nat` on a NAT is
/// found.
inline ContactRoute route_to_contact(const UriView& contact, const Flow& source, bool nat) {
  ContactRoute route{source, false};
  const auto ip = parse_ip(contact.host);
  if (!ip) return route;
  const SocketAddress address{*ip, contact.port != 0 ? contact.port : std::uint16_t{5060},
                              *ip == source.remote.ip ? source.remote.scope : 0};
  const bool one_host = detail::names_one_host(*ip, source.remote.ip);
  route.nat = nat && (!one_host || detail::seems_behind_nat(address, source.remote));
  const auto transport = contact.parameter("transport");
  const bool other_transport = transport && !equal_ignoring_case(*transport, "udp");
  if (source.transport == Transport::tcp || route.nat || !one_host || other_transport ||
      contact.parameter("maddr")) {
    return route;
  }
  // A socket of the one family cannot send to the other; 0 lets the transport choose.
  if (ip->family != source.remote.ip.family) route.flow.socket = 0;
  route.flow.remote = address;
  return route;
}

/// The contact as seen from outside its NAT, `address` in place of its host and port: what Yate
/// says in X-Real-Contact.
inline void write_contact_outside_nat(Output& out, std::string_view contact_uri,
                                      const SocketAddress& address) {
  const auto uri = parse_uri(contact_uri);
  if (!uri) return;
  out.raw(uri->scheme_text).raw(":");
  if (uri->has_user) out.raw(uri->user).raw("@");
  out.host(to_text(address.ip)).raw(":").number(address.port);
  if (!uri->parameters.empty()) out.raw(";").raw(uri->parameters);
}

/// The bindings of all users.
///
/// Time is the caller's: `now_ms` is a clock that only runs forward. An expired binding is never
/// seen again, whether or not `advance` has taken it out yet. Looking up allocates nothing.
class Registrar {
 public:
  /// Far in the future: the deadline of a registrar without bindings.
  static constexpr std::uint64_t never = UINT64_MAX;
  /// Octets of all texts of one binding together, the user name among them.
  static constexpr std::size_t max_binding_text = 2048;
  /// Parameters and headers of a contact's URI together.
  static constexpr std::size_t max_uri_parts = 32;

  /// `key`: secret, so that nobody can choose names that collide in the table.
  Registrar(const RegistrarOptions& options, const SipHashKey& key)
      : options_(options), hash_(key) {}

  /// Other options from now on. Bindings that are there already stay as they are.
  void set_options(const RegistrarOptions& options) { options_ = options; }
  const RegistrarOptions& options() const { return options_; }

  /// Does what a REGISTER asks, wholly or not at all (RFC 3261 10.3 steps 6 and 7). Without Contact
  /// it asks for nothing but the list. `user` is the address-of-record, decoded, not empty; who may
  /// change it is for the caller to decide first. `request` passed `validate`.
  ///
  /// 400: a contact is malformed or not a sip URI, or `Contact: *` is not alone or has no Expires
  /// of 0. 403: more bindings than one user may have, or one larger than is kept. 423: for too
  /// short a time. 500: overtaken by a later request. 503: the table is full.
  RegisterOutcome update(std::string_view user, const MessageView& request, const Flow& source,
                         std::uint64_t now_ms);

  /// Calls `use(const Binding&)` on each live binding of the user: highest q first, and of equal
  /// ones the latest registered first. `use` may not change the registrar.
  template <class Use>
  void for_each(std::string_view user, std::uint64_t now_ms, Use use) const {
    for (std::uint32_t i = first_of(user); i != none; i = records_.at(i).of_user.next) {
      if (records_.at(i).expires_at_ms > now_ms) use(view(records_.at(i)));
    }
  }
  /// How many live bindings the user has.
  std::size_t count(std::string_view user, std::uint64_t now_ms) const;

  /// The Contact lines of a 200 to REGISTER: all live bindings of the user, each with the seconds
  /// it has left (RFC 3261 10.3 step 8).
  void write_contacts(Output& out, std::string_view user, std::uint64_t now_ms) const;

  /// A TCP connection is closed: the bindings that were reached over it are gone. How many.
  std::size_t remove_connection(std::uint32_t socket);
  /// Whether a live binding is reached over that TCP connection.
  bool has_connection(std::uint32_t socket, std::uint64_t now_ms) const;

  /// Takes out what has expired. Due at `next_deadline`; calls before that do nothing.
  void advance(std::uint64_t now_ms);
  std::uint64_t next_deadline() const { return records_.size() == 0 ? never : next_sweep_ms_; }

  /// Bindings in the table, expired ones that are not swept out yet among them.
  std::size_t size() const { return records_.size(); }
  /// Another number after each change of what `save` writes, so that a file is written only if it
  /// has to be.
  std::uint64_t revision() const { return revision_; }

  /// All live bindings as the text of a file in Yate's grammar, with absolute times; without those
  /// of TCP connections, which do not outlive the program. Whatever octets names and headers hold,
  /// they cannot end their line: they are percent-escaped.
  std::string save(std::uint64_t now_ms, std::uint64_t now_unix_s);

  struct LoadResult {
    std::size_t loaded = 0;
    std::size_t dropped = 0;  ///< expired, malformed, on a TCP connection, refused, beyond a limit
  };
  /// Adds the bindings of a file that `save` or Yate wrote.
  /// `keep(std::string_view user, Flow& flow)` says whether the user is still known. It may choose
  /// the flow's socket, which is the number that the UDP socket had when the file was written, and
  /// 0 in a file of Yate's.
  template <class Keep>
  LoadResult load(const Ini& file, std::uint64_t now_ms, std::uint64_t now_unix_s, Keep keep);

 private:
  static constexpr std::uint32_t none = HashIndex::npos;
  static constexpr std::int16_t no_q = -1;
  static constexpr std::uint64_t sweep_gap_ms = 5000;
  static constexpr std::uint32_t retry_after_s = 30;
  static constexpr std::size_t max_user_agent_size = 64;
  static constexpr std::string_view out_of_order = "Out of order";

  struct Links {
    std::uint32_t next = none;
    std::uint32_t previous = none;
  };

  /// A binding as it is kept: all texts in one block, in the order of the sizes, nothing between
  /// them. The bindings of a user form a list in the order of for_each, and those of a TCP
  /// connection form one in no order; an index finds the first of each list.
  struct Record {
    std::unique_ptr<char[]> text;
    std::uint64_t expires_at_ms = 0;
    Flow flow;
    std::uint32_t cseq = 0;
    std::uint32_t reg_id = 0;
    Links of_user;
    Links of_connection;
    std::int16_t q = no_q;
    std::uint16_t user_size = 0;
    std::uint16_t contact_size = 0;
    std::uint16_t request_uri_size = 0;
    std::uint16_t path_size = 0;
    std::uint16_t call_id_size = 0;
    std::uint8_t instance_size = 0;
    std::uint8_t user_agent_size = 0;
    bool own_request_uri = false;  ///< false: it is the beginning of the contact
    bool nat = false;

    std::string_view user() const { return {text.get(), user_size}; }
    int preference() const { return q == no_q ? 1000 : q; }
    bool over_connection() const { return flow.transport == Transport::tcp; }
  };

  /// One contact of a REGISTER.
  struct Wanted {
    Binding binding;
    UriView uri;
    Parameters parameters;
    std::uint32_t expires_s = 0;  ///< 0: to be removed
    bool renews = false;          ///< it takes the place of a binding that was there
    bool superseded = false;      ///< the same contact stands once more further on
  };
  struct Stored {
    std::uint32_t record;
    bool kept;
  };
  /// What a REGISTER would change, found out before anything is changed.
  struct Plan {
    std::string_view user;
    std::string_view call_id;
    std::uint32_t cseq = 0;
    std::vector<Stored> stored;  ///< the bindings that are there
    std::vector<Wanted> wanted;
    std::string path;
    std::string user_agent;
  };

  static RegisterOutcome refuse(int status, std::string_view reason) {
    RegisterOutcome outcome;
    outcome.status = status;
    outcome.reason = reason;
    return outcome;
  }
  static RegisterOutcome bad_request(Error error) {
    RegisterOutcome outcome = refuse(400, error.text());
    outcome.error = error;
    return outcome;
  }

  // -- what a request asks for --
  RegisterOutcome read(const MessageView& request, const Flow& source, std::uint64_t now_ms,
                       Plan& plan) const;
  static Error read_path(const MessageView& request, std::string& path);
  static Error read_contact(std::string_view element, Wanted& wanted);
  std::uint32_t requested_expiry(const Parameters& contact, const MessageView& request) const;

  // -- what that would change --
  RegisterOutcome plan_removal_of_all(const MessageView& request, Plan& plan) const;
  RegisterOutcome plan_contacts(Plan& plan) const;
  bool plan_contact(std::size_t number, Plan& plan) const;
  bool is_out_of_order(const Record& record, const Plan& plan) const;
  bool is_same(const Wanted& wanted, const Record& record) const;
  RegisterOutcome check_limits(const Plan& plan) const;
  RegisterOutcome commit(const Plan& plan);

  // -- the table --
  std::uint64_t hash_of(std::string_view user) const {
    SipHash hash = hash_;
    hash.update(user);
    return hash.finish();
  }
  std::uint32_t first_of(std::string_view user) const {
    return by_user_.find(hash_of(user),
                         [&](std::uint32_t i) { return records_.at(i).user() == user; });
  }
  std::uint64_t hash_of(std::uint32_t socket) const {
    std::array<std::uint8_t, 4> octets;
    detail::store_little(socket, octets.data());
    return hash_of(detail::as_text(octets.data(), octets.size()));
  }
  std::uint32_t first_of(std::uint32_t socket) const {
    return by_connection_.find(
        hash_of(socket), [&](std::uint32_t i) { return records_.at(i).flow.socket == socket; });
  }
  /// Comparing two URIs takes as many steps as the one has parameters and headers times those of
  /// the other, and one request may ask for hundreds of comparisons: both are limited.
  static bool fits(std::string_view user, const Binding& binding) {
    const std::size_t size = user.size() + binding.contact_uri.size() + binding.instance.size() +
                             binding.path.size() + binding.user_agent.size() +
                             binding.call_id.size();
    std::size_t parts = 0;
    for (char c : binding.contact_uri) parts += c == ';' || c == '&';
    return size <= max_binding_text && parts <= max_uri_parts && binding.instance.size() <= 255 &&
           binding.user_agent.size() <= max_user_agent_size;
  }
  bool has_room(std::string_view user, std::uint64_t now_ms) const {
    return !user.empty() && records_.size() < options_.max_bindings &&
           count(user, now_ms) < options_.max_bindings_per_user;
  }
  static Binding view(const Record& record);
  static void write_texts(Record& record, std::string_view user, const Binding& binding);
  void add(std::string_view user, const Binding& binding);
  void remove(std::uint32_t index);
  void remove_expired(std::string_view user, std::uint64_t now_ms);
  void link_to_user(std::uint32_t index);
  void link_to_connection(std::uint32_t index);
  template <Links Record::*list>
  void insert_between(std::uint32_t previous, std::uint32_t index, std::uint32_t next);
  template <Links Record::*list>
  void take_out(HashIndex& first, std::uint64_t hash, std::uint32_t index);

  // -- the file --
  static void save_binding(std::string& out, const Binding& binding, std::uint64_t expires_unix_s);
  struct SavedTexts {
    std::string instance, path, user_agent, call_id;
  };
  static std::uint64_t load_binding(const IniEntry* begin, const IniEntry* end, SavedTexts& texts,
                                    Binding& binding);

  RegistrarOptions options_;
  SipHash hash_;  ///< with the key mixed in; copied for each look-up
  Slab<Record> records_;
  HashIndex by_user_;
  HashIndex by_connection_;
  std::uint64_t next_sweep_ms_ = never;
  std::uint64_t no_sweep_before_ms_ = 0;
  std::uint64_t revision_ = 0;
};

// ---- what a request asks for ----

inline RegisterOutcome Registrar::update(std::string_view user, const MessageView& request,
                                         const Flow& source, std::uint64_t now_ms) {
  const auto cseq = request.cseq();
  if (!cseq) return bad_request(detail::error_in_header(request, HeaderId::cseq, cseq.error()));
  if (user.empty()) return bad_request(ErrorCode::bad_argument);
  if (!request.has(HeaderId::contact)) return {};
  remove_expired(user, now_ms);
  Plan plan;
  plan.user = user;
  plan.call_id = request.call_id();
  plan.cseq = cseq->number;
  for (std::uint32_t i = first_of(user); i != none; i = records_.at(i).of_user.next) {
    plan.stored.push_back({i, true});
  }
  const bool all = trim(request.header(HeaderId::contact)) == "*";
  RegisterOutcome outcome =
      all ? plan_removal_of_all(request, plan) : read(request, source, now_ms, plan);
  if (outcome.status == 200 && !all) outcome = plan_contacts(plan);
  if (outcome.status == 200) outcome = check_limits(plan);
  if (outcome.status == 200) outcome = commit(plan);
  return outcome;
}

namespace detail {

/// Appends with a blank in place of each control octet, those of folded lines among them.
inline void append_printable(std::string& out, std::string_view text) {
  for (char c : text) {
    const auto octet = static_cast<unsigned char>(c);
    out.push_back(octet < 0x20 || octet == 0x7f ? ' ' : c);
  }
}

/// A contact as it may stand in a request line: without what RFC 3261 19.1.1 allows in a contact
/// only, which are headers (RFC 4475 3.3.14: a Route among them must not be obeyed) and `method`.
inline std::string request_uri_of(const UriView& contact) {
  const std::size_t tail = contact.headers.empty() ? 0 : contact.headers.size() + 1;
  std::string_view whole = contact.text.substr(0, contact.text.size() - tail);
  if (!contact.parameter("method")) return std::string(whole);
  std::string uri(whole.substr(0, whole.size() - contact.parameters.size() - 1));
  for (const Parameter& parameter : Parameters(contact.parameters)) {
    if (equal_ignoring_case(parameter.name, "method")) continue;
    uri.append(";").append(parameter.name);
    if (parameter.has_value) uri.append("=").append(parameter.value);
  }
  return uri;
}

}  // namespace detail

inline RegisterOutcome Registrar::read(const MessageView& request, const Flow& source,
                                       std::uint64_t now_ms, Plan& plan) const {
  if (auto error = read_path(request, plan.path)) return bad_request(error);
  detail::append_printable(plan.user_agent,
                           request.header(HeaderId::user_agent).substr(0, max_user_agent_size));
  // Every binding a user may have can be replaced in one request, but not more than that.
  const std::size_t most = std::size_t{2} * options_.max_bindings_per_user;
  for (std::string_view element : request.values(HeaderId::contact)) {
    if (plan.wanted.size() == most) return refuse(403, "Too many contacts");
    Wanted wanted;
    if (auto error = read_contact(element, wanted)) {
      return bad_request(error.at(request.offset_of(element)));
    }
    const std::uint32_t requested_s = requested_expiry(wanted.parameters, request);
    // RFC 3261 10.3 step 7: an hour is never too brief, whatever the minimum.
    if (requested_s != 0 && requested_s < std::min(options_.expires_min_s, 3600u)) {
      RegisterOutcome outcome = refuse(423, {});
      outcome.min_expires_s = options_.expires_min_s;
      return outcome;
    }
    wanted.expires_s = std::min(requested_s, options_.expires_max_s);
    Binding& binding = wanted.binding;
    binding.expires_at_ms = now_ms + std::uint64_t{1000} * wanted.expires_s;
    binding.call_id = plan.call_id;
    binding.cseq = plan.cseq;
    binding.path = plan.path;
    binding.user_agent = plan.user_agent;
    // With a Path the next hop is the proxy that the REGISTER came through (RFC 3327 5.3).
    ContactRoute route{source};
    if (plan.path.empty()) route = route_to_contact(wanted.uri, source, options_.nat);
    binding.flow = route.flow;
    binding.nat = route.nat;
    if (!fits(plan.user, binding)) return refuse(403, "Contact too large");
    plan.wanted.push_back(wanted);
  }
  return {};
}

/// All Path values as one (RFC 3327). They come back as the Route of requests, so each must be a
/// sip URI that can be routed by.
inline Error Registrar::read_path(const MessageView& request, std::string& path) {
  for (std::string_view element : request.values(HeaderId::path)) {
    const std::size_t offset = request.offset_of(element);
    const auto hop = parse_name_addr(element);
    if (!hop) return hop.error().at(offset);
    if (hop->uri.scheme != UriScheme::sip) return Error(ErrorCode::unsupported_scheme).at(offset);
    if (!path.empty()) path.append(", ");
    detail::append_printable(path, element);
  }
  return {};
}

inline Error Registrar::read_contact(std::string_view element, Wanted& wanted) {
  if (element == "*") return ErrorCode::bad_contact_star;
  const auto contact = parse_name_addr(element);
  if (!contact) return contact.error();
  wanted.uri = contact->uri;
  wanted.parameters = contact->parameters;
  // No other scheme is served, and for sips the last hop would need TLS.
  if (wanted.uri.scheme != UriScheme::sip) return ErrorCode::unsupported_scheme;
  Binding& binding = wanted.binding;
  binding.contact_uri = wanted.uri.text;
  binding.instance = wanted.parameters.find("+sip.instance").value_or(std::string_view());
  if (find_control(binding.instance) != binding.instance.size()) return ErrorCode::bad_parameter;
  // RFC 5626 6: reg-id means nothing without an instance.
  const auto reg_id = parse_digits(wanted.parameters.find("reg-id").value_or(""), 0x7fffffff);
  if (!binding.instance.empty() && reg_id) binding.reg_id = static_cast<std::uint32_t>(*reg_id);
  const auto q = parse_q(wanted.parameters.find("q").value_or(""));
  binding.has_q = q.has_value();
  binding.q = q.value_or(1000);
  return {};
}

/// RFC 3261 10.3 step 7: the contact's own parameter, else the header, else the default; the
/// default also for one that is malformed, so that a mistake does not make a binding that lasts
/// long.
inline std::uint32_t Registrar::requested_expiry(const Parameters& contact,
                                                 const MessageView& request) const {
  const std::uint32_t default_s = std::max(options_.expires_default_s, options_.expires_min_s);
  if (const auto parameter = contact.find("expires")) {
    return MessageView::delta_seconds(*parameter).value_or(default_s);
  }
  return request.expires().value_or(default_s);
}

// ---- what that would change ----

/// `Contact: *` (RFC 3261 10.3 step 6).
inline RegisterOutcome Registrar::plan_removal_of_all(const MessageView& request,
                                                      Plan& plan) const {
  const std::size_t field = request.find(HeaderId::contact);
  const bool alone = request.find_next(field) == request.header_count();
  if (!alone || request.expires() != 0u) {
    return bad_request(
        detail::error_in_header(request, HeaderId::contact, ErrorCode::bad_contact_star));
  }
  for (Stored& stored : plan.stored) {
    if (is_out_of_order(records_.at(stored.record), plan)) return refuse(500, out_of_order);
    stored.kept = false;
  }
  return {};
}

inline RegisterOutcome Registrar::plan_contacts(Plan& plan) const {
  for (std::size_t i = 0; i < plan.wanted.size(); ++i) {
    if (!plan_contact(i, plan)) return refuse(500, out_of_order);
  }
  return {};
}

/// Finds what a contact replaces. False where a stored binding is newer than the request. A contact
/// that stands in the request twice counts as it stands last.
inline bool Registrar::plan_contact(std::size_t number, Plan& plan) const {
  Wanted& wanted = plan.wanted[number];
  for (std::size_t i = 0; i < number; ++i) {
    Wanted& earlier = plan.wanted[i];
    if (earlier.superseded || !equivalent(earlier.uri, wanted.uri)) continue;
    earlier.superseded = true;
    wanted.renews = wanted.renews || earlier.renews;
  }
  for (Stored& stored : plan.stored) {
    const Record& record = records_.at(stored.record);
    if (!stored.kept || !is_same(wanted, record)) continue;
    if (is_out_of_order(record, plan)) return false;
    stored.kept = false;
    wanted.renews = true;
  }
  return true;
}

/// RFC 3261 10.3 step 7: within one Call-ID the CSeq must rise, so that a request which was
/// overtaken by a later one cannot undo it.
inline bool Registrar::is_out_of_order(const Record& record, const Plan& plan) const {
  return record.cseq >= plan.cseq && view(record).call_id == plan.call_id;
}

/// Whether a contact means the binding that is there. RFC 3261 compares the URIs; RFC 5626 6
/// compares instance and reg-id alone where both have them. And a phone that comes with another
/// contact, after a restart on another port, takes the place of its former self: one instance is
/// one phone, also for clients that know nothing of RFC 5626 but the instance.
inline bool Registrar::is_same(const Wanted& wanted, const Record& record) const {
  const Binding stored = view(record);
  const bool same_phone =
      !wanted.binding.instance.empty() && wanted.binding.instance == stored.instance;
  if (wanted.binding.reg_id != 0 && stored.reg_id != 0) {
    return same_phone && wanted.binding.reg_id == stored.reg_id;
  }
  if (same_phone && wanted.expires_s != 0) return true;
  const auto uri = parse_uri(stored.contact_uri);
  return uri && equivalent(*uri, wanted.uri);
}

/// A limit refuses what would add to the bindings, never what renews or removes them.
inline RegisterOutcome Registrar::check_limits(const Plan& plan) const {
  std::size_t after = 0;
  for (const Stored& stored : plan.stored) after += stored.kept;
  for (const Wanted& wanted : plan.wanted) after += !wanted.superseded && wanted.expires_s != 0;
  const std::size_t before = plan.stored.size();
  if (after <= before) return {};
  if (after > options_.max_bindings_per_user) return refuse(403, "Too many contacts");
  if (records_.size() - before + after <= options_.max_bindings) return {};
  RegisterOutcome outcome = refuse(503, "Too many registrations");
  outcome.retry_after_s = retry_after_s;
  return outcome;
}

/// Nothing in here can fail. The first contact is added last, and so counts as the latest.
inline RegisterOutcome Registrar::commit(const Plan& plan) {
  RegisterOutcome outcome;
  for (const Stored& stored : plan.stored) {
    if (stored.kept) continue;
    remove(stored.record);
    ++outcome.removed;
  }
  for (std::size_t i = plan.wanted.size(); i-- > 0;) {
    const Wanted& wanted = plan.wanted[i];
    if (wanted.superseded || wanted.expires_s == 0) continue;
    add(plan.user, wanted.binding);
    outcome.expires_s = wanted.expires_s;
    if (wanted.renews) {
      ++outcome.refreshed;
      --outcome.removed;
    } else {
      ++outcome.added;
    }
    if (!wanted.binding.nat) continue;
    outcome.nat_contact = wanted.binding.contact_uri;
    outcome.nat_address = wanted.binding.flow.remote;
  }
  return outcome;
}

// ---- the table ----

inline Binding Registrar::view(const Record& record) {
  Binding binding;
  const char* next = record.text.get() + record.user_size;
  const auto take = [&next](std::size_t size) {
    const std::string_view text(next, size);
    next += size;
    return text;
  };
  binding.contact_uri = take(record.contact_size);
  binding.request_uri = record.own_request_uri
                            ? take(record.request_uri_size)
                            : binding.contact_uri.substr(0, record.request_uri_size);
  binding.instance = take(record.instance_size);
  binding.path = take(record.path_size);
  binding.user_agent = take(record.user_agent_size);
  binding.call_id = take(record.call_id_size);
  binding.flow = record.flow;
  binding.expires_at_ms = record.expires_at_ms;
  binding.cseq = record.cseq;
  binding.reg_id = record.reg_id;
  binding.q = record.preference();
  binding.has_q = record.q != no_q;
  binding.nat = record.nat;
  return binding;
}

inline void Registrar::write_texts(Record& record, std::string_view user, const Binding& binding) {
  const auto uri = parse_uri(binding.contact_uri);
  const std::string request_uri = detail::request_uri_of(*uri);
  record.own_request_uri = binding.contact_uri.substr(0, request_uri.size()) != request_uri;
  record.request_uri_size = static_cast<std::uint16_t>(request_uri.size());
  record.user_size = static_cast<std::uint16_t>(user.size());
  record.contact_size = static_cast<std::uint16_t>(binding.contact_uri.size());
  record.instance_size = static_cast<std::uint8_t>(binding.instance.size());
  record.path_size = static_cast<std::uint16_t>(binding.path.size());
  record.user_agent_size = static_cast<std::uint8_t>(binding.user_agent.size());
  record.call_id_size = static_cast<std::uint16_t>(binding.call_id.size());
  Slices texts;
  texts.add(user);
  texts.add(binding.contact_uri);
  if (record.own_request_uri) texts.add(request_uri);
  texts.add(binding.instance);
  texts.add(binding.path);
  texts.add(binding.user_agent);
  texts.add(binding.call_id);
  record.text.reset(new char[texts.size()]);
  texts.copy_to(record.text.get());
}

/// The binding fits, and there is room for it.
inline void Registrar::add(std::string_view user, const Binding& binding) {
  const std::uint32_t index = records_.create().index;
  Record& record = records_.at(index);
  write_texts(record, user, binding);
  record.flow = binding.flow;
  record.expires_at_ms = binding.expires_at_ms;
  record.cseq = binding.cseq;
  record.reg_id = binding.reg_id;
  if (binding.has_q) record.q = static_cast<std::int16_t>(binding.q);
  record.nat = binding.nat;
  link_to_user(index);
  if (record.over_connection()) link_to_connection(index);
  next_sweep_ms_ = std::min(next_sweep_ms_, std::max(binding.expires_at_ms, no_sweep_before_ms_));
  ++revision_;
}

inline void Registrar::remove(std::uint32_t index) {
  const Record& record = records_.at(index);
  take_out<&Record::of_user>(by_user_, hash_of(record.user()), index);
  if (record.over_connection()) {
    take_out<&Record::of_connection>(by_connection_, hash_of(record.flow.socket), index);
  }
  records_.destroy(records_.handle_of(index));
  ++revision_;
}

inline void Registrar::remove_expired(std::string_view user, std::uint64_t now_ms) {
  for (std::uint32_t i = first_of(user); i != none;) {
    const std::uint32_t next = records_.at(i).of_user.next;
    if (records_.at(i).expires_at_ms <= now_ms) remove(i);
    i = next;
  }
}

inline void Registrar::link_to_user(std::uint32_t index) {
  const int preference = records_.at(index).preference();
  const std::string_view user = records_.at(index).user();
  const std::uint32_t first = first_of(user);
  std::uint32_t previous = none;
  std::uint32_t next = first;
  while (next != none && records_.at(next).preference() > preference) {
    previous = next;
    next = records_.at(next).of_user.next;
  }
  insert_between<&Record::of_user>(previous, index, next);
  if (previous != none) return;
  if (first != none) by_user_.erase(hash_of(user), first);
  by_user_.insert(hash_of(user), index);
}

/// Behind the first of the connection's list, so that the index need not change.
inline void Registrar::link_to_connection(std::uint32_t index) {
  const std::uint32_t socket = records_.at(index).flow.socket;
  const std::uint32_t first = first_of(socket);
  if (first == none) {
    by_connection_.insert(hash_of(socket), index);
  } else {
    insert_between<&Record::of_connection>(first, index, records_.at(first).of_connection.next);
  }
}

template <Registrar::Links Registrar::Record::*list>
void Registrar::insert_between(std::uint32_t previous, std::uint32_t index, std::uint32_t next) {
  records_.at(index).*list = {next, previous};
  if (previous != none) (records_.at(previous).*list).next = index;
  if (next != none) (records_.at(next).*list).previous = index;
}

/// Takes a record out of its list, and puts the one behind it into the index where it was the
/// first.
template <Registrar::Links Registrar::Record::*list>
void Registrar::take_out(HashIndex& first, std::uint64_t hash, std::uint32_t index) {
  const Links links = records_.at(index).*list;
  if (links.next != none) (records_.at(links.next).*list).previous = links.previous;
  if (links.previous != none) {
    (records_.at(links.previous).*list).next = links.next;
    return;
  }
  first.erase(hash, index);
  if (links.next != none) first.insert(hash, links.next);
}

inline std::size_t Registrar::count(std::string_view user, std::uint64_t now_ms) const {
  std::size_t live = 0;
  for_each(user, now_ms, [&live](const Binding&) { ++live; });
  return live;
}

inline std::size_t Registrar::remove_connection(std::uint32_t socket) {
  const std::size_t before = records_.size();
  for (std::uint32_t i = first_of(socket); i != none; i = first_of(socket)) remove(i);
  return before - records_.size();
}

inline bool Registrar::has_connection(std::uint32_t socket, std::uint64_t now_ms) const {
  for (std::uint32_t i = first_of(socket); i != none; i = records_.at(i).of_connection.next) {
    if (records_.at(i).expires_at_ms > now_ms) return true;
  }
  return false;
}

/// One walk over the table when something may have expired, but not more often than the gap: a
/// table of 50,000 costs half a millisecond, and one of two softphones wakes nobody in between.
/// Bindings last differently long, so that a queue would have to be sorted; and as nobody sees an
/// expired binding anyway, being late costs only its memory.
inline void Registrar::advance(std::uint64_t now_ms) {
  if (now_ms < next_deadline()) return;
  std::uint64_t earliest_ms = never;
  records_.for_each([&](Handle handle, const Record& record) {
    if (record.expires_at_ms <= now_ms) {
      remove(handle.index);
    } else {
      earliest_ms = std::min(earliest_ms, record.expires_at_ms);
    }
  });
  no_sweep_before_ms_ = now_ms + sweep_gap_ms;
  next_sweep_ms_ = std::max(earliest_ms, no_sweep_before_ms_);
}

namespace detail {

/// 1, 0, 0.5, 0.25, 0.125
inline void write_q(Output& out, int thousandths) {
  out.raw(thousandths == 1000 ? "1" : "0");
  if (thousandths == 1000 || thousandths == 0) return;
  out.raw(".");
  for (int weight = 100; thousandths > 0; thousandths %= weight, weight /= 10) {
    out.number(static_cast<std::uint64_t>(thousandths / weight));
  }
}

}  // namespace detail

inline void Registrar::write_contacts(Output& out, std::string_view user,
                                      std::uint64_t now_ms) const {
  for_each(user, now_ms, [&](const Binding& binding) {
    out.raw("Contact: <").raw(binding.contact_uri).raw(">;expires=");
    out.number((binding.expires_at_ms - now_ms + 999) / 1000);
    if (binding.has_q) {
      out.raw(";q=");
      detail::write_q(out, binding.q);
    }
    if (!binding.instance.empty()) out.raw(";+sip.instance=").raw(binding.instance);
    if (binding.reg_id != 0) out.raw(";reg-id=").number(binding.reg_id);
    out.raw("\r\n");
  });
}

// ---- the file ----

namespace detail {

/// Appends with everything escaped that would end a line, a section's name or the escaping itself,
/// be trimmed away, name a run parameter or a directive ($), or continue a line (the backslash).
inline void append_ini_escaped(std::string& out, std::string_view text) {
  constexpr std::string_view signs = "%]$\\";
  constexpr char hex[] = "0123456789ABCDEF";
  for (char c : text) {
    const auto octet = static_cast<unsigned char>(c);
    if (octet > 0x20 && octet != 0x7f && signs.find(c) == std::string_view::npos) {
      out.push_back(c);
    } else {
      out.append({'%', hex[octet >> 4], hex[octet & 15]});
    }
  }
}

inline void append_ini_text(std::string& out, std::string_view key, std::string_view text) {
  if (text.empty()) return;
  out.append(key).append("=");
  append_ini_escaped(out, text);
  out.append("\n");
}

inline void append_ini_number(std::string& out, std::string_view key, std::uint64_t number) {
  out.append(key).append("=");
  append_number(out, number);
  out.append("\n");
}

}  // namespace detail

inline std::string Registrar::save(std::uint64_t now_ms, std::uint64_t now_unix_s) {
  std::string out =
      "; Who is registered where. Written by the registrar, read at the next start.\n";
  records_.for_each([&](Handle handle, const Record& first) {
    if (first.of_user.previous != none) return;
    bool named = false;
    for (std::uint32_t i = handle.index; i != none; i = records_.at(i).of_user.next) {
      const Record& record = records_.at(i);
      if (record.over_connection() || record.expires_at_ms <= now_ms) continue;
      if (!named) {
        out.append("\n[");
        detail::append_ini_escaped(out, record.user());
        out.append("]\n");
        named = true;
      }
      save_binding(out, view(record), now_unix_s + (record.expires_at_ms - now_ms + 999) / 1000);
    }
  });
  return out;
}

/// `driver`, `data` and `expires` are Yate's; `data` begins a further binding of the same user.
inline void Registrar::save_binding(std::string& out, const Binding& binding,
                                    std::uint64_t expires_unix_s) {
  // A sip URI has no octet that means something here, and Yate knows no escapes of ours.
  out.append("driver=sip\ndata=sip/").append(binding.contact_uri).append("\n");
  detail::append_ini_number(out, "expires", expires_unix_s);
  out.append("address=").append(to_text(binding.flow.remote)).append("\n");
  detail::append_ini_number(out, "socket", binding.flow.socket);
  if (binding.flow.remote.scope != 0) {
    detail::append_ini_number(out, "scope", binding.flow.remote.scope);
  }
  if (binding.nat) out.append("nat=true\n");
  if (binding.has_q) detail::append_ini_number(out, "q", static_cast<std::uint64_t>(binding.q));
  detail::append_ini_text(out, "instance", binding.instance);
  if (binding.reg_id != 0) detail::append_ini_number(out, "reg_id", binding.reg_id);
  detail::append_ini_text(out, "path", binding.path);
  detail::append_ini_text(out, "device", binding.user_agent);
  detail::append_ini_text(out, "call_id", binding.call_id);
  detail::append_ini_number(out, "cseq", binding.cseq);
}

/// Reads one binding; `texts` keeps what the binding points to. Returns when it expires, in seconds
/// since 1970, 0 for one that cannot be used.
inline std::uint64_t Registrar::load_binding(const IniEntry* begin, const IniEntry* end,
                                             SavedTexts& texts, Binding& binding) {
  const auto text = [=](std::string_view key) {
    for (const IniEntry* entry = begin; entry != end; ++entry) {
      if (entry->key == key) return std::string_view(entry->value);
    }
    return std::string_view();
  };
  const auto number = [&text](std::string_view key, std::uint64_t maximum) {
    return static_cast<std::uint32_t>(parse_digits(text(key), maximum).value_or(0));
  };
  const auto printable = [&text](std::string_view key) {
    std::string out;
    detail::append_printable(out, unescape(text(key)));
    return out;
  };

  constexpr std::string_view driver = "sip/";
  const std::string_view data = text("data");
  if (data.substr(0, driver.size()) != driver) return 0;
  const auto uri = parse_uri(data.substr(driver.size()));
  if (!uri || uri->scheme != UriScheme::sip) return 0;
  if (parse_boolean(text("connection_reliable")).value_or(false)) return 0;
  binding.contact_uri = uri->text;

  SocketAddress& remote = binding.flow.remote;
  if (text("address").empty()) {  // Yate writes the address it sends to into the URI
    remote.ip = parse_ip(uri->host).value_or(IpAddress());
    remote.port = uri->port != 0 ? uri->port : std::uint16_t{5060};
  } else {
    remote = parse_socket_address(text("address")).value();
    remote.scope = number("scope", UINT32_MAX);
    binding.flow.socket = number("socket", UINT32_MAX);
  }
  if (remote.port == 0 || !detail::names_one_host(remote.ip, remote.ip)) return 0;

  texts.instance = printable("instance");
  texts.path = printable("path");
  texts.user_agent = printable("device").substr(0, max_user_agent_size);
  texts.call_id = printable("call_id");
  binding.instance = texts.instance;
  binding.path = texts.path;
  binding.user_agent = texts.user_agent;
  binding.call_id = texts.call_id;
  binding.cseq = number("cseq", 0x7fffffff);
  binding.reg_id = number("reg_id", 0x7fffffff);
  binding.has_q = !text("q").empty();
  if (binding.has_q) binding.q = static_cast<int>(number("q", 1000));
  binding.nat = text("nat") == "true";
  return parse_digits(text("expires"), INT64_MAX).value_or(0);
}

template <class Keep>
Registrar::LoadResult Registrar::load(const Ini& file, std::uint64_t now_ms,
                                      std::uint64_t now_unix_s, Keep keep) {
  LoadResult result;
  for (const IniSection& section : file.sections()) {
    const std::string user = unescape(section.name);
    // From the last to the first, so that the first counts as the latest registered again.
    const IniEntry* const begin = section.entries.data();
    const IniEntry* end = begin + section.entries.size();
    for (const IniEntry* entry = end; entry-- != begin;) {
      if (entry->key != "data") continue;
      SavedTexts texts;
      Binding binding;
      const std::uint64_t expires_s = load_binding(entry, end, texts, binding);
      end = entry;
      if (expires_s <= now_unix_s || !fits(user, binding) || !has_room(user, now_ms) ||
          !keep(std::string_view(user), binding.flow)) {
        ++result.dropped;
        continue;
      }
      const std::uint64_t left_s =
          std::min<std::uint64_t>(expires_s - now_unix_s, options_.expires_max_s);
      binding.expires_at_ms = now_ms + 1000 * left_s;
      add(user, binding);
      ++result.loaded;
    }
  }
  return result;
}

}  // namespace sipmsg

// ======================================== parameters.hpp ========================================

// parameters: one MESSAGE as handlers see it, and everything they may ask of it by name.
//
// Yate hands its applications a list of named texts: `caller`, `called`, `sip_user-agent`,
// `xsip_body`. Here each is made when it is asked for, from the message itself; a handler that asks
// for nothing costs nothing. What a handler sets lies over that, for the handlers after it and for
// what is sent in the end: another `xsip_body` or `xsip_type` is another body, a `sip_NAME` that
// was set is a header of the message that goes on, an `osip_NAME` one of our answer.
// Left out on purpose: `id`, for there are no calls, and `handlers`, which whoever calls them
// knows.

namespace sipmsg {

/// A copy of a text that allocates nothing as long as it is short, as names are.
class ShortText {
 public:
  ShortText() = default;
  explicit ShortText(std::string_view text) {
    reserve(text.size());
    for (char c : text) push_back(c);
  }
  /// Decodes %-escapes, once.
  static ShortText unescaped(std::string_view text) {
    ShortText result;
    result.reserve(text.size());
    for (UnescapedOctets octets(text); !octets.done();) result.push_back(octets.next());
    return result;
  }
  /// Lifetime: as long as this object lives and is not assigned to.
  std::string_view view() const {
    return is_long_ ? std::string_view(long_) : std::string_view(short_.data(), size_);
  }

 private:
  void reserve(std::size_t size) {
    is_long_ = size > short_.size();
    if (is_long_) long_.reserve(size);
  }
  void push_back(char c) {
    if (is_long_) {
      long_.push_back(c);
    } else {
      short_[size_++] = c;
    }
  }

  std::array<char, 64> short_;  // left uninitialised: only the first size_ octets are ever read
  std::size_t size_ = 0;
  bool is_long_ = false;
  std::string long_;
};

/// What handlers have set and cleared, in the order in which the names came up first. Names compare
/// octet by octet.
class RouteChanges {
 public:
  struct Change {
    std::string name;
    std::string value;
    bool is_cleared = false;
  };

  /// Null where nobody touched that name.
  const Change* find(std::string_view name) const {
    for (const Change& change : changes_) {
      if (change.name == name) return &change;
    }
    return nullptr;
  }
  void set(std::string_view name, std::string_view value) {
    Change& change = of(name);
    change.value = value;
    change.is_cleared = false;
  }
  void clear(std::string_view name) {
    Change& change = of(name);
    change.value.clear();
    change.is_cleared = true;
  }
  /// Makes the changes of others on top of these.
  void apply(const RouteChanges& others) {
    for (const Change& change : others) of(change.name) = change;
  }

  bool empty() const { return changes_.empty(); }
  const Change* begin() const { return changes_.data(); }
  const Change* end() const { return changes_.data() + changes_.size(); }

 private:
  Change& of(std::string_view name) {
    for (Change& change : changes_) {
      if (change.name == name) return change;
    }
    changes_.push_back({std::string(name), {}, false});
    return changes_.back();
  }

  std::vector<Change> changes_;
};

/// What is known of a message besides itself.
struct RouteContext {
  std::string_view listener;      ///< the name of the one it came in through
  std::string_view role;          ///< of that listener
  std::string_view realm;         ///< of the digest
  std::string_view to_tag;        ///< that our own answer will carry
  std::uint32_t hops = 0;         ///< Max-Forwards of the message when it goes on
  std::uint64_t received_ms = 0;  ///< when it came, on the server's clock
  BodyEncoding body_encoding = BodyEncoding::base64;
  bool initial_headers = false;  ///< the headers of transport are there too, as sipheader_NAME
};

/// Names the message a handler wants to answer later. Good until it is answered or its deadline is
/// over; then it names nothing, and never another message.
using RouteKey = Handle;

/// What a handler sees of a message. Lifetime: during the handler's call only; a handler that
/// answers later, or on another thread, makes a KeptRouteRequest of it.
struct RouteRequest {
  const MessageView& message;
  std::string_view caller;          ///< user part of From, decoded
  std::string_view caller_name;     ///< display name of From, as written
  std::string_view called;          ///< user part of the Request-URI, decoded: see `set_parameter`
  std::string_view username;        ///< whom the password proved; empty without authentication
  Flow source;                      ///< where the message came from
  RouteKey key;                     ///< for a verdict that comes later
  RouteChanges* changes = nullptr;  ///< of all handlers so far
  RouteContext context{};

  std::string_view body() const { return message.body(); }
  std::string_view content_type() const { return message.header(HeaderId::content_type); }

  /// The parameter of that name as the handlers so far have left it; nothing where there is none.
  /// Of a header that is repeated, the first.
  inline std::optional<std::string> parameter(std::string_view name) const;
  /// For the handlers that follow, and for what is sent. To set what it is already changes nothing:
  /// some applications send back whatever they were told. Another `called` is whom the message goes
  /// to where no URI is given; its Request-URI changes when the chain is through.
  void set_parameter(std::string_view name, std::string_view value) const {
    if (changes == nullptr || parameter(name) == value) return;
    // Another body is in the form in which the first was shown, unless its form is set, too.
    if (name == "xsip_body" && changes->find("xsip_body_encoding") == nullptr) {
      const auto encoding = parameter("xsip_body_encoding");
      if (encoding) changes->set("xsip_body_encoding", *encoding);
    }
    changes->set(name, value);
  }
  void clear_parameter(std::string_view name) const {
    if (changes != nullptr) changes->clear(name);
  }
  /// Calls `use(name, value)` for every parameter, in Yate's order; what handlers have added comes
  /// last.
  template <class Function>
  void for_each_parameter(Function use) const;
};

namespace detail {

// ---- parameters that are neither header nor body

inline std::optional<std::string> some_text(std::string_view text) {
  if (text.empty()) return std::nullopt;
  return std::string(text);
}

inline std::string boolean_text(bool value) { return value ? "true" : "false"; }

/// TCP connections have no name but who is at the other end.
inline std::string connection_id(const RouteRequest& request) {
  if (request.source.transport == Transport::udp) return std::string(request.context.listener);
  return "tcp:" + to_text(request.source.remote);
}

inline std::optional<std::string> sender_domain(const RouteRequest& request) {
  const auto from = request.message.from();
  if (request.username.empty() || !from) return std::nullopt;
  return some_text(from->uri.host);
}

struct NamedParameter {
  std::string_view name;
  std::optional<std::string> (*value)(const RouteRequest& request);
};

/// In Yate's order (call.route with route_type=msg); `username` comes twice there.
inline const NamedParameter* route_parameters(std::size_t& count) {
  using R = const RouteRequest&;
  using Value = std::optional<std::string>;
  static constexpr NamedParameter table[] = {
      {"module", [](R) -> Value { return "sip"; }},
      {"route_type", [](R) -> Value { return "msg"; }},
      {"called", [](R request) { return some_text(request.called); }},
      {"caller", [](R request) { return some_text(request.caller); }},
      {"callername",
       [](R request) {
         return request.caller_name.empty() ? std::nullopt : Value(unquote(request.caller_name));
       }},
      {"username", [](R request) { return some_text(request.username); }},
      {"realm",
       [](R request) {
         return request.username.empty() ? std::nullopt : some_text(request.context.realm);
       }},
      {"newcall",
       [](R request) {
         return request.username.empty() ? std::nullopt : Value(boolean_text(false));
       }},
      {"domain", sender_domain},
      {"connection_id", [](R request) { return some_text(connection_id(request)); }},
      {"connection_reliable",
       [](R request) -> Value { return boolean_text(request.source.transport == Transport::tcp); }},
      {"role", [](R request) { return some_text(request.context.role); }},
      {"antiloop", [](R request) -> Value { return std::to_string(request.context.hops); }},
      {"ip_host", [](R request) -> Value { return to_text(request.source.remote.ip); }},
      {"ip_port", [](R request) -> Value { return std::to_string(request.source.remote.port); }},
      {"ip_transport",
       [](R request) -> Value { return std::string(transport_name(request.source.transport)); }},
      {"address", [](R request) -> Value { return to_text(request.source.remote); }},
      {"sip_uri", [](R request) { return some_text(request.message.request_uri_text()); }},
      {"sip_callid", [](R request) { return some_text(request.message.call_id()); }},
      {"xsip_dlgtag", [](R request) { return some_text(request.context.to_tag); }},
  };
  count = sizeof table / sizeof *table;
  return table;
}

// ---- headers

/// The headers of transport, of dialogs and of the password, which applications get only when they
/// ask for all.
constexpr bool is_withheld(HeaderId id) {
  switch (id) {
    case HeaderId::via:
    case HeaderId::route:
    case HeaderId::record_route:
    case HeaderId::call_id:
    case HeaderId::cseq:
    case HeaderId::max_forwards:
    case HeaderId::content_length:
    case HeaderId::www_authenticate:
    case HeaderId::proxy_authenticate:
    case HeaderId::authorization:
    case HeaderId::proxy_authorization: return true;
    default: return false;
  }
}

inline constexpr std::string_view header_prefix = "sip_";
inline constexpr std::string_view withheld_prefix = "sipheader_";

inline std::string header_parameter_name(const HeaderField& field) {
  const bool withheld = is_withheld(field.id);
  const std::string_view name = field.id == HeaderId::other ? field.name : header_name(field.id);
  return std::string(withheld ? withheld_prefix : header_prefix) + to_lower(name);
}

/// A header's value on one line.
inline std::string unfolded(std::string_view value) {
  std::string line(value.size(), '\0');
  Output out(&line[0], line.size());
  out.received(value);
  line.resize(out.size());
  return line;
}

inline std::optional<std::string> header_parameter(const RouteRequest& request,
                                                   std::string_view name) {
  const bool withheld = name.substr(0, withheld_prefix.size()) == withheld_prefix;
  if (withheld && !request.context.initial_headers) return std::nullopt;
  name.remove_prefix(withheld ? withheld_prefix.size() : header_prefix.size());
  if (name.empty() || to_lower(name) != name) return std::nullopt;
  if (is_withheld(header_id(name)) != withheld) return std::nullopt;
  const auto value = request.message.header(name);
  return value ? std::optional<std::string>(unfolded(*value)) : std::nullopt;
}

// ---- the body

/// Which types Yate hands on as text; everything else is encoded.
inline bool is_text_type(const MediaType& media) {
  const std::string type = to_lower(media.type);
  const std::string subtype = to_lower(media.subtype);
  const auto ends_with = [&](std::string_view end) {
    return subtype.size() > end.size() && subtype.substr(subtype.size() - end.size()) == end;
  };
  if (type == "text" || ends_with("+xml")) return true;
  if (type == "message") return subtype == "sipfrag";
  if (type != "application") return false;
  for (std::string_view known : {"json", "yaml", "x-yaml", "dtmf", "dtmf-relay"}) {
    if (subtype == known) return true;
  }
  return ends_with("+json");
}

inline std::string_view body_encoding_name(BodyEncoding encoding) {
  constexpr std::string_view names[] = {"base64", "hex", "hexs", "raw"};
  return names[static_cast<std::size_t>(encoding)];
}

inline std::string encode_body(std::string_view octets, BodyEncoding encoding) {
  switch (encoding) {
    case BodyEncoding::base64: return to_base64(octets);
    case BodyEncoding::hex: return to_hex(octets);
    case BodyEncoding::hexs: return to_hex(octets, ' ');
    case BodyEncoding::raw: break;
  }
  return std::string(octets);
}

/// The octets of an `xsip_body` with that `xsip_body_encoding`; "" and unknown names mean none.
inline Result<std::string> decode_body(std::string_view text, std::string_view encoding) {
  if (encoding == "base64") return from_base64(text);
  if (encoding == "hex" || encoding == "hexs") return from_hex(text);
  return std::string(text);
}

/// One part of a body that is no multipart itself.
struct BodyPart {
  std::string_view content_type;
  std::string_view headers;  ///< lines; empty for a body that is not in parts
  std::string_view octets;
};

inline constexpr std::size_t max_body_parts = 32;

/// Adds the body, or all parts of a multipart, nested ones in their place. What is no proper
/// multipart is one part as it is.
inline void collect_parts(const BodyPart& whole, int depth, std::vector<BodyPart>& parts) {
  const auto media = parse_media_type(whole.content_type);
  const bool is_multipart = media && equal_ignoring_case(media->type, "multipart");
  const std::string boundary =
      is_multipart ? unquote(media->parameters.find("boundary").value_or(std::string_view()))
                   : std::string();
  if (boundary.empty() || depth == max_content_depth) return parts.push_back(whole);
  Delimiter delimiter = find_delimiter(whole.octets, boundary, 0);
  if (!delimiter.found) return parts.push_back(whole);
  while (!delimiter.is_last && parts.size() < max_body_parts) {
    const std::size_t begin = delimiter.end;
    delimiter = find_delimiter(whole.octets, boundary, begin);
    const std::string_view text = whole.octets.substr(begin, delimiter.begin - begin);
    LineReader lines(text);
    PartHead head;
    if (!read_part_head(lines, head)) continue;
    BodyPart part;
    part.content_type = head.content_type.empty() ? "text/plain" : head.content_type;
    part.octets = lines.rest();
    part.headers = text.substr(0, text.size() - part.octets.size());
    collect_parts(part, depth + 1, parts);
  }
}

inline std::vector<BodyPart> body_parts(const RouteRequest& request) {
  std::vector<BodyPart> parts;
  if (!request.body().empty())
    collect_parts({request.content_type(), {}, request.body()}, 0, parts);
  return parts;
}

using UseParameter = FunctionRef<void(const std::string& name, std::string value)>;

/// The parameters of one part; the first part's names have no number behind them. A description of
/// a call is nobody's text (Yate).
inline void for_each_body_parameter(const RouteRequest& request, const BodyPart& part,
                                    std::size_t number, UseParameter use) {
  const auto media = parse_media_type(part.content_type.empty() ? "text/plain" : part.content_type);
  if (media && media->is("application", "sdp")) return;
  const std::string suffix = number == 0 ? std::string() : "." + std::to_string(number);
  if (media) {
    use("xsip_type" + suffix, std::string(media->type) + "/" + std::string(media->subtype));
  }
  const bool is_text =
      media && is_text_type(*media) && part.octets.find('\0') == std::string_view::npos;
  const BodyEncoding encoding = request.context.body_encoding;
  if (is_text) {
    use("xsip_body" + suffix, std::string(part.octets));
  } else {
    use("xsip_body_encoding" + suffix, std::string(body_encoding_name(encoding)));
    use("xsip_body" + suffix, encode_body(part.octets, encoding));
  }
  LineReader lines(part.headers);
  for (std::string_view line; lines.next(line, true) && !line.empty();) {
    const std::size_t colon = std::min(line.find(':'), line.size());
    const std::string name = to_lower(trim(line.substr(0, colon)));
    if (name == "content-type" || colon == line.size()) continue;
    use("xsip_body" + suffix + ".header_" + name, unfolded(trim(line.substr(colon + 1))));
  }
}

inline void for_each_body_parameter(const RouteRequest& request, UseParameter use) {
  const std::vector<BodyPart> parts = body_parts(request);
  for (std::size_t i = 0; i < parts.size(); ++i) for_each_body_parameter(request, parts[i], i, use);
}

inline std::optional<std::string> body_parameter(const RouteRequest& request,
                                                 std::string_view name) {
  std::optional<std::string> found;
  for_each_body_parameter(request, [&](const std::string& each, std::string value) {
    if (!found && each == name) found = std::move(value);
  });
  return found;
}

// ---- all of them

/// What the message itself says.
inline std::optional<std::string> message_parameter(const RouteRequest& request,
                                                    std::string_view name) {
  std::size_t count = 0;
  const NamedParameter* table = route_parameters(count);
  for (std::size_t i = 0; i < count; ++i) {
    if (table[i].name == name) return table[i].value(request);
  }
  if (name.substr(0, 5) == "xsip_") return body_parameter(request, name);
  const bool is_header = name.substr(0, header_prefix.size()) == header_prefix ||
                         name.substr(0, withheld_prefix.size()) == withheld_prefix;
  return is_header ? header_parameter(request, name) : std::nullopt;
}

/// A key of the sender's section in regfile.conf, with each `${name}` replaced by that parameter.
inline std::string user_parameter(const RouteRequest& request, std::string_view text) {
  std::string out;
  while (true) {
    const std::size_t open = text.find("${");
    const std::size_t close = open == std::string_view::npos ? open : text.find('}', open);
    if (close == std::string_view::npos) return out.append(text);
    const std::string_view name = trim(text.substr(open + 2, close - open - 2));
    out.append(text.substr(0, open)).append(message_parameter(request, name).value_or(""));
    text.remove_prefix(close + 1);
  }
}

}  // namespace detail

inline std::optional<std::string> RouteRequest::parameter(std::string_view name) const {
  const RouteChanges::Change* change = changes == nullptr ? nullptr : changes->find(name);
  if (change != nullptr) {
    return change->is_cleared ? std::nullopt : std::optional<std::string>(change->value);
  }
  return detail::message_parameter(*this, name);
}

template <class Function>
void RouteRequest::for_each_parameter(Function use) const {
  const auto is_changed = [this](std::string_view name) {
    return changes != nullptr && changes->find(name) != nullptr;
  };
  std::vector<std::string> shown;  // what others have changed is shown where it stood
  const auto show = [&](std::string_view name, std::string_view value) {
    if (!is_changed(name)) return use(name, value);
    const bool is_first = std::find(shown.begin(), shown.end(), name) == shown.end();
    if (!is_first) return;
    shown.emplace_back(name);
    if (const auto now = parameter(name)) use(name, *now);
  };
  std::size_t count = 0;
  const detail::NamedParameter* table = detail::route_parameters(count);
  for (std::size_t i = 0; i < count; ++i) {
    // Yate shows the user once more behind the connection.
    if (table[i].name == "antiloop" && !username.empty()) show("username", username);
    if (const auto value = table[i].value(*this)) show(table[i].name, *value);
  }
  for (std::size_t i = 0; i < message.header_count(); ++i) {
    const HeaderField field = message.field(i);
    if (detail::is_withheld(field.id) && !context.initial_headers) continue;
    show(detail::header_parameter_name(field), detail::unfolded(field.value));
  }
  detail::for_each_body_parameter(
      *this, [&](const std::string& name, const std::string& value) { show(name, value); });
  if (changes == nullptr) return;
  for (const RouteChanges::Change& change : *changes) {
    const bool was_shown = std::find(shown.begin(), shown.end(), change.name) != shown.end();
    if (!was_shown && !change.is_cleared) use(change.name, change.value);
  }
}

/// A RouteRequest with everything it borrows: for handlers that answer later or on another thread.
/// What is set on its view is its own; hand `changes()` over together with the verdict.
class KeptRouteRequest {
 public:
  explicit KeptRouteRequest(const RouteRequest& request)
      : message_(request.message),
        caller_(request.caller),
        caller_name_(request.caller_name),
        called_(request.called),
        username_(request.username),
        source_(request.source),
        key_(request.key),
        listener_(request.context.listener),
        role_(request.context.role),
        realm_(request.context.realm),
        to_tag_(request.context.to_tag),
        context_(request.context) {
    if (request.changes != nullptr) changes_ = *request.changes;
    context_.listener = listener_;
    context_.role = role_;
    context_.realm = realm_;
    context_.to_tag = to_tag_;
  }
  KeptRouteRequest(const KeptRouteRequest&) = delete;
  KeptRouteRequest& operator=(const KeptRouteRequest&) = delete;

  /// Lifetime: as long as this object.
  RouteRequest view() const {
    return {message_, caller_, caller_name_, called_, username_,
            source_,  key_,    &changes_,    context_};
  }
  RouteKey key() const { return key_; }
  const RouteChanges& changes() const { return changes_; }

 private:
  Message message_;
  std::string caller_;
  std::string caller_name_;
  std::string called_;
  std::string username_;
  Flow source_;
  RouteKey key_;
  std::string listener_;
  std::string role_;
  std::string realm_;
  std::string to_tag_;
  RouteContext context_;
  mutable RouteChanges changes_;
};

}  // namespace sipmsg

// ========================================= routing.hpp ==========================================

// routing: who exists here, and the chain of handlers that decides where a message goes.
//
// A MESSAGE that may be routed is offered to the handlers in ascending priority, ties in the order
// of installation (Yate's call.route with route_type=msg). The first verdict other than `next`
// ends the walk. The walk can be left and taken up again, so that a handler may answer later.
// The users' own bindings are looked up by such a handler too, at priority 100: one at 50 comes
// before it.

namespace sipmsg {

/// Whether a user may call itself so: by its name or one of its alternatives.
inline bool answers_to(const UserSettings& user, std::string_view name) {
  if (user.name == name) return true;
  return std::find(user.alternatives.begin(), user.alternatives.end(), name) !=
         user.alternatives.end();
}

/// All users, found by name. Names compare octet by octet, case included, as in Yate.
class UserDirectory {
 public:
  /// `key`: secret, so that nobody can choose names that collide in the tables.
  explicit UserDirectory(const SipHashKey& key = {}) : key_(key) {}

  /// The first of two users with one name stays.
  void add(UserSettings user) {
    if (find(user.name) != nullptr) return;
    const auto number = static_cast<std::uint32_t>(users_.size());
    by_name_.insert(SipHash::of(key_, user.name), number);
    for (const std::string& name : user.alternatives) {
      if (name != user.name) add_alternative(name, number);
    }
    users_.push_back(std::move(user));
  }

  /// Null where there is none. Lifetime: until users are added or the directory is gone.
  const UserSettings* find(std::string_view name) const {
    const std::uint32_t number = by_name_.find(
        SipHash::of(key_, name), [&](std::uint32_t n) { return users_[n].name == name; });
    return number == HashIndex::npos ? nullptr : &users_[number];
  }

  /// Calls `use(const UserSettings&)` on every user who lists that name as an alternative, in the
  /// order of the file; returns how many there are.
  template <class Use>
  std::size_t for_each_alternative(std::string_view name, Use use) const {
    const std::uint32_t found = find_alternative(name);
    if (found == HashIndex::npos) return 0;
    const std::vector<std::uint32_t>& numbers = alternatives_[found].users;
    for (std::uint32_t number : numbers) use(users_[number]);
    return numbers.size();
  }

  /// Whether a message to that name could ever find somebody.
  bool knows(std::string_view name) const {
    return find(name) != nullptr || find_alternative(name) != HashIndex::npos;
  }

  std::size_t size() const { return users_.size(); }

 private:
  /// A name that is none of a user's own, and all who answer to it.
  struct Alternative {
    std::string name;
    std::vector<std::uint32_t> users;
  };

  std::uint32_t find_alternative(std::string_view name) const {
    return by_alternative_.find(SipHash::of(key_, name),
                                [&](std::uint32_t n) { return alternatives_[n].name == name; });
  }
  void add_alternative(const std::string& name, std::uint32_t user) {
    std::uint32_t found = find_alternative(name);
    if (found == HashIndex::npos) {
      found = static_cast<std::uint32_t>(alternatives_.size());
      alternatives_.push_back({name, {}});
      by_alternative_.insert(SipHash::of(key_, name), found);
    }
    std::vector<std::uint32_t>& users = alternatives_[found].users;
    if (users.empty() || users.back() != user) users.push_back(user);
  }

  SipHashKey key_;
  std::vector<UserSettings> users_;
  std::vector<Alternative> alternatives_;
  HashIndex by_name_;
  HashIndex by_alternative_;
};

/// What a handler decides.
class Verdict {
 public:
  enum class Kind : std::uint8_t { next, accept, reject, forward, later };
  Verdict() = default;  ///< next

  /// Not mine: ask the next handler.
  static Verdict next() { return Verdict(Kind::next); }
  /// I took it: the sender gets this 2xx now, 202 in place of any other code, and the message goes
  /// no further.
  static Verdict accept(int code = 202) { return Verdict(Kind::accept, code); }
  /// Refused with this code and phrase, "" for the usual one. 408 may not be said of a message
  /// (RFC 4320 4.2) and goes out as 480; a code that is not from 300 to 699 as 500.
  static Verdict reject(int code, std::string phrase = {}) {
    return Verdict(Kind::reject, code, std::move(phrase));
  }
  /// To these: a user name or a sip URI of our own domains means that user's bindings; a URI with a
  /// numeric host of somewhere else is sent there, because the handler says so. Without any: to the
  /// bindings of whom the message calls.
  static Verdict forward(std::vector<std::string> uris) {
    Verdict verdict(Kind::forward);
    verdict.uris_ = std::move(uris);
    return verdict;
  }
  /// The verdict comes later, under the request's key, and not before the handler has returned.
  static Verdict later() { return Verdict(Kind::later); }

  Kind kind() const { return kind_; }
  int code() const { return code_; }
  const std::string& phrase() const { return phrase_; }
  const std::vector<std::string>& uris() const { return uris_; }

 private:
  explicit Verdict(Kind kind, int code = 0, std::string phrase = {})
      : kind_(kind), code_(code), phrase_(std::move(phrase)) {}

  Kind kind_ = Kind::next;
  int code_ = 0;
  std::string phrase_;
  std::vector<std::string> uris_;
};

// What applications written for Yate say of a message, as a verdict.

/// The status that a refusal by that name, or by a number, stands for. Nothing for a name that is
/// not known and a number that is no final code.
inline std::optional<int> status_of_reason(std::string_view reason) {
  struct Named {
    std::string_view name;
    int status;
  };
  static constexpr Named table[] = {
      {"incomplete", 484},    {"noauth", 401},          {"noautoauth", 401},
      {"busy", 486},          {"forbidden", 403},       {"unallocated", 410},
      {"moved", 410},         {"looping", 483},         {"service-not-implemented", 501},
      {"unimplemented", 501}, {"interworking", 500},    {"noroute", 404},
      {"nomedia", 415},       {"noanswer", 480},        {"offline", 404},
      {"failure", 500},       {"timeout", 408},         {"service-unavailable", 503},
      {"noresource", 503},    {"invalid-message", 400}, {"protocol-error", 400},
      {"noconn", 503},        {"nocall", 481},          {"rejected", 406},
      {"congestion", 480},    {"pending", 491},         {"postdialdelay", 504},
      {"unacceptable", 488},
  };
  for (const Named& named : table) {
    if (named.name == reason) return named.status;
  }
  const auto number = parse_digits(reason, 699);
  if (!number || *number < 200) return std::nullopt;
  return static_cast<int>(*number);
}

/// The code that the parameters `code`, `reason` and `error` refuse a message with, in that order;
/// `error` counts as a number only. Nothing where they ask for no refusal.
inline std::optional<int> refusal_asked_for(const RouteRequest& request) {
  const auto of_parameter = [&](std::string_view name, bool may_be_name) -> std::optional<int> {
    const auto text = request.parameter(name);
    if (!text || (!may_be_name && !all_of_class(*text, char_digit))) return std::nullopt;
    return status_of_reason(*text);
  };
  auto code = of_parameter("code", false);
  if (!code) code = of_parameter("reason", true);
  if (!code) code = of_parameter("error", false);
  return code && *code >= 300 ? code : std::nullopt;
}

/// What it means that a handler in Yate's manner has called a message handled or not, and left this
/// return value: a target "sip/URI", or "fork" with targets in `callto.1`, `callto.2` and so on; a
/// refusal where it is empty, "-" or "error". What nobody can send to is refused with 405, unless
/// the parameters name another code.
inline Verdict verdict_of(bool handled, std::string_view return_value,
                          const RouteRequest& request) {
  constexpr std::string_view driver = "sip/";
  if (!handled) return Verdict::next();
  std::vector<std::string> uris;
  const auto add = [&](std::string_view target) {
    if (target.substr(0, driver.size()) == driver) uris.emplace_back(target.substr(driver.size()));
  };
  add(return_value);
  for (int i = 1; return_value == "fork"; ++i) {
    const auto target = request.parameter("callto." + std::to_string(i));
    if (!target) break;
    add(*target);
  }
  if (!uris.empty()) return Verdict::forward(std::move(uris));
  return Verdict::reject(refusal_asked_for(request).value_or(405));
}

/// Called for each message in turn. Legal inside: adding and removing handlers, also this one.
using RouteHandler = std::function<Verdict(const RouteRequest&)>;

/// The handlers, by priority.
class HandlerChain {
 public:
  using Id = std::uint32_t;

  /// Where a walk along the chain stands; the default is before the first handler.
  struct Position {
    int priority = INT32_MIN;
    Id id = 0;
  };

  /// The id is for `remove`, and never 0.
  Id add(int priority, RouteHandler handler) {
    const Id id = ++last_id_;
    Entry entry{{priority, id}, std::make_shared<RouteHandler>(std::move(handler))};
    const auto after = [](const Position& a, const Entry& b) {
      return comes_before(a, b.position);
    };
    entries_.insert(std::upper_bound(entries_.begin(), entries_.end(), entry.position, after),
                    std::move(entry));
    return id;
  }

  /// False where there is no such handler any more.
  bool remove(Id id) {
    const auto found = std::find_if(entries_.begin(), entries_.end(),
                                    [id](const Entry& entry) { return entry.position.id == id; });
    if (found == entries_.end()) return false;
    entries_.erase(found);
    return true;
  }

  /// Asks the handlers behind `position` until one says something else than `next`, and moves
  /// `position` to it. `next` means that none was left.
  Verdict walk(Position& position, const RouteRequest& request) const {
    while (true) {
      // Looked up anew each time, and held, because the handler may change the chain.
      const auto after = [](const Position& a, const Entry& b) {
        return comes_before(a, b.position);
      };
      const auto found = std::upper_bound(entries_.begin(), entries_.end(), position, after);
      if (found == entries_.end()) return Verdict::next();
      position = found->position;
      const std::shared_ptr<RouteHandler> handler = found->handler;
      if (!*handler) continue;
      Verdict verdict = (*handler)(request);
      if (verdict.kind() != Verdict::Kind::next) return verdict;
    }
  }

  bool empty() const { return entries_.empty(); }

 private:
  struct Entry {
    Position position;
    std::shared_ptr<RouteHandler> handler;
  };

  static bool comes_before(const Position& a, const Position& b) {
    return a.priority != b.priority ? a.priority < b.priority : a.id < b.id;
  }

  std::vector<Entry> entries_;
  Id last_id_ = 0;
};

}  // namespace sipmsg

// ========================================== access.hpp ==========================================

// access: whose domains these are, who sent a request, and whether he may speak under that name.
//
// RFC 3261 22 says how a sender proves his password, digest.hpp does the arithmetic. Here it is
// decided what follows from it: a challenge, an identity, or a refusal. An account is no licence to
// write under other people's names, so the From of an authenticated request must name the user, or
// one of his alternatives, in a domain of ours.

namespace sipmsg {

/// The domains this server answers for: names, addresses, or any. Ports do not matter, nor does the
/// case of names.
class OwnDomains {
 public:
  /// "*" makes every domain ours. An IPv6 address may stand in brackets.
  void add(std::string_view domain) {
    if (domain == "*") {
      any_ = true;
    } else if (const auto ip = parse_ip(domain)) {
      addresses_.push_back(*ip);
    } else if (!domain.empty()) {
      names_.push_back(std::string(without_last_dot(domain)));
    }
  }
  void add(const IpAddress& address) { addresses_.push_back(address); }

  /// Whether a URI's host, IPv6 without brackets, is ours.
  bool contains(std::string_view host) const {
    if (any_) return true;
    const std::string_view wanted = without_last_dot(host);
    for (const std::string& name : names_) {
      if (equal_ignoring_case(name, wanted)) return true;
    }
    if (const auto ip = parse_ip(host)) {
      return std::find(addresses_.begin(), addresses_.end(), *ip) != addresses_.end();
    }
    return false;
  }
  bool is_any() const { return any_; }

 private:
  /// "example.org." is the same host: RFC 3261 25.1 lets a hostname end in a dot.
  static std::string_view without_last_dot(std::string_view host) {
    if (!host.empty() && host.back() == '.') host.remove_suffix(1);
    return host;
  }

  std::vector<std::string> names_;
  std::vector<IpAddress> addresses_;
  bool any_ = false;
};

/// Which pair of headers carries challenge and credentials: 401 as a registrar or an endpoint asks,
/// 407 as a proxy does (RFC 3261 22.1).
enum class ChallengeKind : std::uint8_t { www, proxy };

constexpr int challenge_code(ChallengeKind kind) { return kind == ChallengeKind::www ? 401 : 407; }

/// A few header fields of one message, by their index in it.
class FieldList {
 public:
  static constexpr std::size_t capacity = 12;

  void add(std::size_t field) {
    overflowed_ = overflowed_ || count_ == capacity;
    if (!overflowed_) fields_[count_++] = static_cast<std::uint8_t>(field);
  }
  /// Whether there were more than the list can hold.
  bool overflowed() const { return overflowed_; }
  const std::uint8_t* begin() const { return fields_.data(); }
  const std::uint8_t* end() const { return fields_.data() + count_; }

 private:
  static_assert(SIPMSG_MAX_HEADERS <= 256, "an index takes one octet");
  std::array<std::uint8_t, capacity> fields_{};
  std::uint8_t count_ = 0;
  bool overflowed_ = false;
};

/// What came of asking who sent a request.
struct Identity {
  enum class Kind : std::uint8_t {
    anonymous,  ///< no usable credentials, or wrong ones: challenge
    stale,      ///< the password is right, the nonce is not fresh: challenge with stale=true
    known,      ///< proved: `user` says who
  };
  Kind kind = Kind::anonymous;
  const UserSettings* user = nullptr;
  /// Why credentials for our realm were refused, for the log; empty where they were not.
  std::string_view refusal;
};

/// Judges the credentials of requests and writes challenges.
class AccessControl {
 public:
  AccessControl(DigestOptions options, std::string_view secret)
      : authenticator_(std::move(options), secret) {}

  /// Reads the credentials of the request that are for our realm; the first that are right count.
  /// Adds the fields they stand in to `own`: they are not for the eyes of a recipient, who could
  /// try passwords on them.
  Identity identify(const MessageView& request, ChallengeKind kind, const UserDirectory& users,
                    const IpAddress& source, std::uint64_t now_ms, FieldList& own) {
    Identity identity;
    std::size_t judged = 0;
    for_each_own(request, kind, [&](std::size_t field, const DigestCredentials& credentials) {
      own.add(field);
      if (identity.kind == Identity::Kind::known || judged++ >= max_judged) return;
      const Identity next = judge(credentials, request, users, source, now_ms);
      if (next.kind != Identity::Kind::anonymous || identity.kind == Identity::Kind::anonymous) {
        identity = next;
      }
    });
    return identity;
  }

  /// Adds the fields with credentials for our realm, unread.
  void find_own(const MessageView& request, ChallengeKind kind, FieldList& own) const {
    for_each_own(request, kind,
                 [&own](std::size_t field, const DigestCredentials&) { own.add(field); });
  }

  /// Writes the challenge headers of a 401 or 407, one for each algorithm (RFC 8760 2.3).
  void write_challenges(Output& out, ChallengeKind kind, bool stale, const IpAddress& client,
                        std::uint64_t now_ms) {
    const DigestNonce nonce = authenticator_.make_nonce(client.bytes(), now_ms);
    const HeaderId id =
        kind == ChallengeKind::www ? HeaderId::www_authenticate : HeaderId::proxy_authenticate;
    for (std::size_t i = 0; i < authenticator_.challenge_count(); ++i) {
      challenge_.resize(authenticator_.max_challenge_size());
      const std::size_t size =
          authenticator_.write_challenge(i, nonce, stale, &challenge_[0], challenge_.size());
      write_header(out, id, std::string_view(challenge_).substr(0, size));
    }
  }

  const std::string& realm() const { return authenticator_.options().realm; }

 private:
  /// Judging costs a few hashes, over the body too for auth-int. One realm needs one credential.
  static constexpr std::size_t max_judged = 4;

  /// Calls `use(field, credentials)` on each credential for our realm, malformed ones left out.
  template <class Use>
  void for_each_own(const MessageView& request, ChallengeKind kind, Use use) const {
    const HeaderId id =
        kind == ChallengeKind::www ? HeaderId::authorization : HeaderId::proxy_authorization;
    for (std::size_t field = request.find(id); field != request.header_count();
         field = request.find_next(field)) {
      const auto credentials = parse_credentials(request.field(field).value);
      if (!credentials || !credentials->is_digest) continue;
      if (detail::equal_unquoted(credentials->realm, realm())) use(field, *credentials);
    }
  }

  Identity judge(const DigestCredentials& credentials, const MessageView& request,
                 const UserDirectory& users, const IpAddress& source, std::uint64_t now_ms) {
    Identity identity;
    name_.clear();
    for (UnquotedOctets octets(credentials.username); !octets.done();) {
      name_.push_back(octets.next());
    }
    const UserSettings* user = users.find(name_);
    if (user != nullptr && !user->has_password) user = nullptr;
    // An empty password lets everyone in who gives the name, as in Yate; `check` warns of it.
    if (user != nullptr && user->password.empty()) {
      identity.kind = Identity::Kind::known;
      identity.user = user;
      return identity;
    }
    const DigestRequest asked{request.method_text(), request.request_uri_text(), request.body(),
                              source.bytes()};
    const DigestSecret secret =
        user == nullptr ? DigestSecret::unknown_user() : DigestSecret::password(user->password);
    switch (authenticator_.check(credentials, asked, secret, now_ms)) {
      case DigestVerdict::accepted:
        identity.kind = Identity::Kind::known;
        identity.user = user;
        break;
      case DigestVerdict::stale: identity.kind = Identity::Kind::stale; break;
      case DigestVerdict::wrong_response:
        identity.refusal = "wrong password or unknown user";
        break;
      case DigestVerdict::wrong_uri: identity.refusal = "credentials for another address"; break;
      case DigestVerdict::wrong_scheme:
      case DigestVerdict::wrong_realm:
      case DigestVerdict::wrong_algorithm: break;
    }
    return identity;
  }

  DigestAuthenticator authenticator_;
  std::string name_;       ///< kept for its capacity
  std::string challenge_;  ///< the same
};

/// Whether an authenticated user may send under that From, or register that To: under its own name
/// or an alternative, in a domain of ours.
inline bool may_speak_as(const UserSettings& user, const UriView& address,
                         std::string_view decoded_user, const OwnDomains& domains) {
  return answers_to(user, decoded_user) && domains.contains(address.host);
}

}  // namespace sipmsg

// ======================================== alteration.hpp ========================================

// alteration: what becomes of a message, or of its answer, by what handlers have set.
//
// `xsip_body` and `xsip_type` are another body, `sip_NAME` another header of the message that goes
// on, `called` another user in its Request-URI, `osip_NAME` a header of an answer of our own. From,
// To, Call-ID, CSeq and the headers of transport stay as they are, whatever is set: the sender must
// know its answer again (RFC 3261 16.6), and a proxy writes the others itself.

namespace sipmsg {

namespace detail {

/// The refusal that stands although a handler further on has found a way: `code` where a handler
/// left one, 483 where `antiloop` is used up; 0 where there is none.
inline int forbidden_by(const RouteChanges& changes) {
  if (const RouteChanges::Change* code = changes.find("code")) {
    const auto number = parse_digits(code->value, 699);
    if (number && *number >= 300) return static_cast<int>(*number);
  }
  const RouteChanges::Change* hops = changes.find("antiloop");
  const auto left = hops == nullptr ? std::nullopt : parse_integer(hops->value);
  return left && *left <= 0 ? 483 : 0;
}

/// The header that a parameter `sip_NAME` or `osip_NAME` may set; empty for every other parameter.
inline std::string_view header_to_set(std::string_view parameter, std::string_view prefix) {
  if (parameter.substr(0, prefix.size()) != prefix) return {};
  const std::string_view name = parameter.substr(prefix.size());
  const HeaderId id = header_id(name);
  const bool is_own = is_withheld(id) || id == HeaderId::from || id == HeaderId::to ||
                      id == HeaderId::contact || id == HeaderId::content_length;
  return is_own || !is_token(name) ? std::string_view() : name;
}

/// `user-agent` as it is usually written.
inline std::string header_spelling(std::string_view name) {
  const HeaderId id = header_id(name);
  if (id != HeaderId::other) return std::string(header_name(id));
  std::string spelling(name);
  bool begins_word = true;
  for (char& c : spelling) {
    if (begins_word && c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
    begins_word = c == '-';
  }
  return spelling;
}

/// The headers that handlers want in our own answer. What cannot stand in a header is left out.
inline void write_answer_headers(Output& out, const RouteChanges& changes) {
  for (const RouteChanges::Change& change : changes) {
    const std::string_view name = header_to_set(change.name, "osip_");
    const bool is_line =
        change.value.find_first_of(std::string_view("\r\n\0", 3)) == std::string::npos;
    if (name.empty() || change.is_cleared || !is_line) continue;
    write_header(out, header_spelling(name), change.value);
  }
}

inline bool alters_body(const RouteChanges& changes) {
  return changes.find("xsip_body") != nullptr || changes.find("xsip_type") != nullptr;
}

inline bool alters_message(const RouteChanges& changes) {
  if (changes.empty()) return false;
  if (alters_body(changes) || changes.find("called") != nullptr) return true;
  for (const RouteChanges::Change& change : changes) {
    if (!header_to_set(change.name, header_prefix).empty()) return true;
  }
  return false;
}

/// The start line with its line end, calling whom handlers have named.
inline std::string altered_start_line(const MessageView& message, const RouteChanges& changes) {
  const RouteChanges::Change* called = changes.find("called");
  if (called == nullptr) {
    return std::string(message.bytes().substr(0, message.offset_of(message.field_line(0))));
  }
  const auto uri = message.request_uri();
  const auto host = static_cast<std::size_t>(uri->host.data() - uri->text.data());
  const std::size_t behind_user =
      uri->has_user ? uri->text.rfind('@', host) + 1 : uri->scheme_text.size() + 1;
  std::string line = "MESSAGE " + std::string(uri->scheme_text) + ":";
  if (!called->value.empty()) line += escape(called->value, char_user) + "@";
  return line.append(uri->text.substr(behind_user)) + " SIP/2.0\r\n";
}

/// A body with its type.
struct AlteredBody {
  std::string octets;
  std::string content_type;
};

inline Result<AlteredBody> altered_body(const MessageView& message, const RouteChanges& changes) {
  const RouteChanges::Change* body = changes.find("xsip_body");
  const RouteChanges::Change* type = changes.find("xsip_type");
  AlteredBody altered;
  altered.octets = std::string(message.body());
  altered.content_type = std::string(message.header(HeaderId::content_type));
  if (body != nullptr) {
    const RouteChanges::Change* encoding = changes.find("xsip_body_encoding");
    auto octets = decode_body(body->value, encoding == nullptr ? std::string() : encoding->value);
    if (!octets) return octets.error();
    altered.octets = std::move(octets).value();
    // What was set took the place of the first part.
    std::vector<BodyPart> parts;
    collect_parts({altered.content_type, {}, message.body()}, 0, parts);
    if (!parts.empty()) altered.content_type = std::string(parts.front().content_type);
  }
  if (type != nullptr && !type->is_cleared) altered.content_type = type->value;
  if (altered.content_type.empty()) altered.content_type = "text/plain";
  return altered;
}

/// The message as handlers have changed it, without the fields that are `removed`. Errors:
/// `forbidden_octet` for a value that cannot stand in a header; what is wrong in an encoded body.
inline Result<std::string> altered_message(const MessageView& message, const FieldList& removed,
                                           const RouteChanges& changes) {
  std::array<bool, SIPMSG_MAX_HEADERS> is_gone{};
  for (std::size_t field : removed) is_gone[field] = true;
  std::string lines;
  std::string_view content_type = message.header(HeaderId::content_type);
  const bool is_new_body = changes.find("xsip_body") != nullptr;
  for (const RouteChanges::Change& change : changes) {
    const std::string_view name = header_to_set(change.name, header_prefix);
    if (name.empty()) continue;
    if (change.value.find_first_of(std::string_view("\r\n\0", 3)) != std::string::npos) {
      return ErrorCode::forbidden_octet;
    }
    const HeaderId id = header_id(name);
    for (std::size_t i = 0; i < message.header_count(); ++i) {
      const HeaderField field = message.field(i);
      const bool is_same =
          id == HeaderId::other ? equal_ignoring_case(field.name, name) : field.id == id;
      is_gone[i] = is_gone[i] || is_same;
    }
    if (change.is_cleared) continue;
    if (id == HeaderId::content_type) {
      content_type = change.value;
    } else {
      lines += header_spelling(name) + ": " + change.value + "\r\n";
    }
  }
  AlteredBody body{std::string(message.body()), std::string(content_type)};
  if (alters_body(changes)) {
    auto altered = altered_body(message, changes);
    if (!altered) return altered.error();
    body = std::move(altered).value();
  }
  if (body.content_type.find_first_of(std::string_view("\r\n\0", 3)) != std::string::npos) {
    return ErrorCode::forbidden_octet;
  }
  std::string text = altered_start_line(message, changes);
  for (std::size_t i = 0; i < message.header_count(); ++i) {
    const HeaderId id = message.field(i).id;
    const bool is_of_body = id == HeaderId::content_type || id == HeaderId::content_length ||
                            (id == HeaderId::content_encoding && is_new_body);
    if (!is_gone[i] && !is_of_body) text += message.field_line(i);
  }
  text += lines;
  if (!body.octets.empty() && !body.content_type.empty()) {
    text += "Content-Type: " + body.content_type + "\r\n";
  }
  text += "Content-Length: " + std::to_string(body.octets.size()) + "\r\n\r\n";
  return text + body.octets;
}

}  // namespace detail

}  // namespace sipmsg

// ======================================= transaction.hpp ========================================

// transaction: one request and its answers, sent again until they arrive, told to the user once.
//
// UDP loses, doubles and delays messages. The transaction layer (RFC 3261 17) hides that: a client
// transaction repeats its request until it is answered, a server transaction keeps its answer and
// gives it again to everyone who repeats the question, so that above this layer each request comes
// once and gets one final answer. Each transaction is a small state machine, and each machine
// stands below as a table of states and events with one function to a state, to be read beside
// figures 6, 7 and 8 of the RFC.
//
// RFC 3261 17.1.2 (client), 17.2.1 and 17.2.2 (server), 17.2.3 (matching), 8.2.6 and 8.2.7
// (answers with and without state), 18.2.2 and RFC 3581 (where answers go), RFC 4320 (no answer is
// better than a late one). Left out on purpose: the INVITE client and answers 2xx to INVITE, for
// this stack places and takes no calls; a client that repeats over another transport; a 100 that
// nobody asked for: some clients take it for the answer, and who repeats at T2 anyhow gains
// nothing.

namespace sipmsg {

/// Where everything that is to be sent goes out. Implemented by transport.hpp over libuv, by tests
/// in memory. None of its functions may call back into the layer that calls them.
class Sink {
 public:
  /// Chooses the socket where `flow.socket` is 0, writes it into `flow`, and returns what our Via
  /// names as sent-by for it: "192.0.2.1:5060", "[::1]:5060". Error where there is no way there.
  virtual Result<std::string_view> sent_by(Flow& flow) = 0;
  /// Takes the message over, copying what it cannot send at once. The slices are the caller's and
  /// may point into the buffer of a message that is being received. Error where it cannot be sent.
  virtual Error send(const Flow& flow, const Slices& message) = 0;
  /// Whether a TCP connection to that address is open, so that a message too large for UDP can take
  /// it (RFC 3261 18.1.1).
  virtual bool has_stream_to(const SocketAddress&) const { return false; }
  /// The name of the listener through which messages of that flow come; empty where it has none.
  virtual std::string_view listener_name(const Flow&) const { return {}; }

 protected:
  ~Sink() = default;
};

/// Names a request we received, until 64*T1 after it came (32 s) or it was answered over TCP.
struct ServerTransaction : Handle {};
/// Names a request we sent, until its final response or failure was told.
struct ClientTransaction : Handle {};

/// Who is told what arrives. From inside these functions every function of the layer may be called,
/// for the same transaction and for others; only destroyed it may not be.
class TransactionUser {
 public:
  /// A new request, well formed, never a retransmission and never an ACK. To be answered now or
  /// later, with one final response. Lifetime: request and flow are valid during the call only.
  virtual void on_request(ServerTransaction server, const MessageView& request,
                          const Flow& from) = 0;
  /// A provisional response (not 100), or the one final response, to a request we sent; after the
  /// final one nothing more is told. Lifetime: the response is valid during the call only.
  virtual void on_response(ClientTransaction client, const MessageView& response,
                           const Flow& from) = 0;
  /// Instead of a final response, once: `timeout` (Timer F), what the sink or connection_closed
  /// said, or `closed`.
  virtual void on_failure(ClientTransaction client, Error error) = 0;

 protected:
  ~TransactionUser() = default;
};

struct TransactionOptions {
  /// RFC 3261 17.1.1.1 and its table 4. T1 estimates the round trip: the first retransmission comes
  /// after it. T2 is the longest interval between two. T4 is how long the network may hold a
  /// message back. A transaction ends after 64*T1.
  std::uint32_t t1_ms = 500;
  std::uint32_t t2_ms = 4000;
  std::uint32_t t4_ms = 5000;
  /// How often a request, or an INVITE's final answer, is sent over UDP in all. By default as often
  /// as RFC 3261 has it: 11 times with the timers above.
  std::uint32_t max_request_sends = 255;
  std::uint32_t max_answer_sends = 255;
  /// Answers over UDP go to the address and port the request came from, whatever its Via says.
  /// Otherwise to that port only where the Via asks for it (RFC 3581), else to the Via's port.
  bool answer_to_source = false;
  /// How many requests may be open in each direction. One that came over UDP is open for 64*T1, so
  /// this is 32 times the rate per second that can be served. Beyond, a 503 is given and nothing
  /// kept.
  std::size_t max_transactions = 500000;
  /// How many octets of kept messages there may be; beyond, the same.
  std::size_t max_kept_size = std::size_t{512} << 20;
  /// The Retry-After of that 503.
  std::uint32_t retry_after_s = 30;
};

namespace detail {

/// What a message matches its transaction by (RFC 3261 17.1.3, 17.2.3), as a keyed hash of 128 bits
/// over all parts that must be equal. Nobody can make two that collide without the secret, so that
/// nothing else needs to be kept or compared.
struct TransactionKey {
  std::uint64_t low = 0;
  std::uint64_t high = 0;

  bool operator==(const TransactionKey& other) const {
    return low == other.low && high == other.high;
  }
};

using ToTag = std::array<char, 16>;

inline std::string_view text_of(const ToTag& tag) { return {tag.data(), tag.size()}; }

/// Makes keys, and To tags from keys.
class TransactionHash {
 public:
  explicit TransactionHash(Random random);

  /// The key of the server transaction a valid request belongs to, were its method `method`: that
  /// of a CANCEL with Method::invite is the key of what it cancels (RFC 3261 9.2).
  TransactionKey of_request(const MessageView& request, const Via& via, const Flow& from,
                            Method method) const;
  /// The key of a client transaction, as it is when sending and as a response repeats it.
  TransactionKey of_branch(std::string_view branch, std::string_view method_text) const;

  /// RFC 3261 8.2.7: one request gets the same tag however often it is answered; 19.3: nobody can
  /// foresee it.
  ToTag tag(const TransactionKey& key) const;
  /// The same for the octets of a request that is too broken to have a key.
  ToTag tag(std::string_view text) const;

 private:
  TransactionKey of_legacy_request(const MessageView& request, const Flow& from,
                                   Method method) const;
  TransactionKey hash(std::uint64_t number, std::initializer_list<std::string_view> texts) const;

  SipHash low_;
  SipHash high_;
  SipHash tag_;
};

enum class ServerState : std::uint8_t { trying, proceeding, completed, confirmed };
enum class ClientState : std::uint8_t { trying, proceeding, completed, terminated };

enum TransactionTimer : std::uint8_t { client_resend, client_end, server_resend, server_end };

/// A request we received. Once answered, all that is kept of it is this and the answer.
struct ServerRecord {
  TransactionKey key;
  std::uint64_t user_data = 0;
  Timer resend{0, server_resend};  ///< Timer G
  Timer end{0, server_end};        ///< the user's time to answer, then Timer H, I or J
  Block head;    ///< Via, From, To, Call-ID, CSeq for answers, until the final one
  Block answer;  ///< the last answer
  Flow source;
  std::uint16_t sent_by_port = 0;
  bool wants_rport = false;
  bool is_invite = false;
  ServerState state = ServerState::trying;
  std::uint32_t sends = 0;  ///< of the final answer
  ToTag to_tag{};
};

/// A request we sent.
struct ClientRecord {
  TransactionKey key;
  std::uint64_t user_data = 0;
  Timer resend{0, client_resend};  ///< Timer E
  Timer end{0, client_end};        ///< Timer F, then K
  Block request;                   ///< over UDP, until the final response
  Flow flow;
  ClientState state = ClientState::trying;
  bool has_response = false;
  std::uint32_t sends = 1;
  /// The other transactions on the same TCP connection.
  Handle connection;
  std::uint32_t next = HashIndex::npos;
  std::uint32_t previous = HashIndex::npos;
};

/// A TCP connection with client transactions on it.
struct ClientConnection {
  std::uint32_t socket = 0;
  std::uint32_t first_client = HashIndex::npos;
};

/// What can happen to a server transaction.
struct ServerEvent {
  enum Kind : std::uint8_t { request_again, ack, provisional, final_answer, resend, end };
  Kind kind;
  std::uint64_t now_ms;
  const Slices* answer = nullptr;  ///< of provisional and final_answer
};

/// What can happen to a client transaction.
struct ClientEvent {
  enum Kind : std::uint8_t { provisional, final_response, resend, end, broken };
  Kind kind;
  std::uint64_t now_ms;
  const MessageView* response = nullptr;  ///< of provisional and final_response, with `from`
  const Flow* from = nullptr;
  Error error = {};  ///< of broken
};

}  // namespace detail

/// All transactions of one server or user agent. Time comes with every call as `now_ms`, in
/// milliseconds from any start; the owner calls `advance` when `next_deadline` has come.
class TransactionLayer {
 public:
  /// `secret`: 16 octets of the operating system's randomness, used for nothing else. Sink and user
  /// must outlive this. Destruction tells the user nothing; `close` does.
  TransactionLayer(const TransactionOptions& options, Sink& sink, TransactionUser& user,
                   const SipHashKey& secret);
  TransactionLayer(const TransactionLayer&) = delete;
  TransactionLayer& operator=(const TransactionLayer&) = delete;

  /// Everything that arrives; `error` is what MessageView::parse said of it, or `too_large` for a
  /// message beyond a limit of the caller's.
  ///
  /// What is malformed is answered without state, or dropped where no answer is owed: to an ACK, to
  /// a response, to what has no Via. 400 names the mistake, "CSeq is malformed (octet 123)"; 505
  /// and 513 for another SIP version and for what is too large. A request beyond max_transactions
  /// gets 503. Retransmissions get the answer there is. What remains goes to the user.
  void receive(const MessageView& message, Error error, const Flow& from, std::uint64_t now_ms);

  // Requests we received.

  /// Writes the status line of an answer and the headers taken from its request: Via stamped with
  /// received and rport, From, To with tag, Call-ID, CSeq. Further headers and write_body follow.
  /// An empty phrase means the usual one. `out` fails with `gone` once the transaction is answered
  /// or gone.
  void begin_response(ServerTransaction server, int code, std::string_view phrase,
                      Output& out) const;

  /// Sends an answer, our own or a forwarded one, and keeps it for retransmissions.
  ///
  /// Errors: `gone` where the transaction was answered already, is gone, or its time is up (64*T1
  /// after it came: RFC 4320 has late answers dropped); `bad_argument` for answers that may not be
  /// sent, which leaves the transaction open: to other requests than INVITE 408 and provisional
  /// ones but 100, which over UDP may not come before Timer E has reached T2 (RFC 4320 4.1); to an
  /// INVITE 2xx. Otherwise what the sink said; a final answer over UDP is kept all the same, for
  /// the client will ask again.
  Error respond(ServerTransaction server, int code, const Slices& response, std::uint64_t now_ms);
  /// Sends a final answer and forgets the request: a retransmission will be a new request. For
  /// challenges, so that a flood of requests by nobody leaves nothing behind (RFC 3261 8.2.7,
  /// 26.3.2.4). The same errors; after any but `bad_argument` the transaction is gone.
  Error respond_statelessly(ServerTransaction server, int code, const Slices& response,
                            std::uint64_t now_ms);

  /// The INVITE that a CANCEL given to on_request means, false where there is none (RFC 3261 9.2).
  ServerTransaction find_cancelled(const MessageView& cancel, const Flow& from) const;

  bool is_open(ServerTransaction server) const { return servers_.get(server) != nullptr; }
  /// A number of the user's; 0 at first, and where the transaction is gone.
  std::uint64_t user_data(ServerTransaction server) const;
  void set_user_data(ServerTransaction server, std::uint64_t user_data);
  /// How the request came; a flow with socket 0 where the transaction is gone.
  Flow source(ServerTransaction server) const;
  /// What begin_response adds to a To without tag. Lifetime: as long as the transaction.
  std::string_view to_tag(ServerTransaction server) const;

  // Requests we send.

  /// Sends a request and repeats it until it is answered. `flow` as Sink::sent_by left it; `branch`
  /// (fresh, with magic cookie) and `method` as they stand in the message. Over UDP a copy is kept
  /// for retransmission, over TCP none.
  ///
  /// Errors: `bad_argument` for INVITE and ACK, `limit_reached`, `closed` after `close`, or what
  /// the sink said; then there will be no callback. Otherwise exactly one final response or failure
  /// is told, never from inside this call, unless `forget` is called before.
  Result<ClientTransaction> send(const Flow& flow, std::string_view branch, std::string_view method,
                                 const Slices& request, std::uint64_t user_data,
                                 std::uint64_t now_ms);
  /// The number given to `send`; 0 where the transaction is gone. Good inside the final callback.
  std::uint64_t user_data(ClientTransaction client) const;
  /// Whether any response came, 100 included; false where the transaction is gone. Good inside the
  /// final callback.
  bool has_response(ClientTransaction client) const;
  /// No callbacks of that transaction any more.
  void forget(ClientTransaction client);

  // The world around.

  /// A TCP connection is gone: its client transactions fail with `error`. Answers that belong on it
  /// go over a new one (RFC 3261 18.2.2).
  void connection_closed(std::uint32_t socket, Error error, std::uint64_t now_ms);
  /// Fires every timer that is due.
  void advance(std::uint64_t now_ms);
  /// When `advance` has something to do next; nothing where no transaction is open.
  std::optional<std::uint64_t> next_deadline() const { return timers_.next_deadline(); }
  /// Fails every client transaction with `closed` and forgets the server transactions; `send` fails
  /// from now on and requests are dropped.
  void close();

  std::size_t server_count() const { return servers_.size(); }
  std::size_t client_count() const { return clients_.size(); }
  std::size_t size() const { return server_count() + client_count(); }
  /// Octets held by kept messages.
  std::size_t kept_size() const { return blocks_.in_use_size(); }

 private:
  using ServerRecord = detail::ServerRecord;
  using ServerState = detail::ServerState;
  using ServerEvent = detail::ServerEvent;
  using ClientRecord = detail::ClientRecord;
  using ClientState = detail::ClientState;
  using ClientEvent = detail::ClientEvent;

  void receive_request(const MessageView& request, const Flow& from, std::uint64_t now_ms);
  void receive_response(const MessageView& response, const Flow& from, std::uint64_t now_ms);
  void open_server(const MessageView& request, const Via& via, const detail::TransactionKey& key,
                   const Flow& from, std::uint64_t now_ms);
  void refuse_broken(const MessageView& request, int code, Error mistake, const Flow& from);
  void refuse(const MessageView& request, int code, std::string_view phrase,
              const detail::ToTag& to_tag, const Flow& from);
  Flow answer_flow(const Flow& source, bool wants_rport, std::uint16_t sent_by_port) const;
  detail::ToTag tag_of(const MessageView& request, const Via& via,
                       const detail::TransactionKey& key, const Flow& from) const;

  // The machines: the event goes to the function of the state the transaction is in.
  Error on_event(ServerRecord& server, const ServerEvent& event);
  Error server_trying(ServerRecord& server, const ServerEvent& event);
  Error server_proceeding(ServerRecord& server, const ServerEvent& event);
  Error server_completed(ServerRecord& server, const ServerEvent& event);
  Error invite_proceeding(ServerRecord& server, const ServerEvent& event);
  Error invite_completed(ServerRecord& server, const ServerEvent& event);
  Error invite_confirmed(ServerRecord& server, const ServerEvent& event);
  void on_event(ClientRecord& client, const ClientEvent& event);
  void client_trying(ClientRecord& client, const ClientEvent& event);
  void client_proceeding(ClientRecord& client, const ClientEvent& event);
  void client_completed(ClientRecord& client, const ClientEvent& event);

  // Their actions.
  Error answerable(ServerTransaction server, int code, const Slices& response,
                   std::uint64_t now_ms) const;
  Error keep_and_send(ServerRecord& server, const Slices& answer);
  Error send_again(ServerRecord& server);
  Error send_answer(const ServerRecord& server, const Slices& answer);
  Error complete(ServerRecord& server, const ServerEvent& event);
  void tell_provisional(ClientRecord& client, const ClientEvent& event);
  void tell_final(ClientRecord& client, const ClientEvent& event);
  void fail(ClientRecord& client, Error error);
  void repeat_request(ClientRecord& client, TimerQueue& next_interval, std::uint64_t now_ms);
  TimerQueue& resend_queue(std::uint32_t sends) const;
  void on_timer(const Timer& timer, std::uint64_t now_ms);

  // The tables.
  std::uint32_t find_server(const detail::TransactionKey& key) const {
    return server_index_.find(key.low,
                              [&](std::uint32_t index) { return servers_.at(index).key == key; });
  }
  void destroy(ServerRecord& server);
  void join_connection(ClientRecord& client);
  void leave_connection(ClientRecord& client);
  std::uint32_t find_connection(std::uint32_t socket) const;
  ClientTransaction handle_of(const ClientRecord& client) const {
    return {clients_.handle_of(client.end.owner)};
  }

  TransactionOptions options_;
  Sink& sink_;
  TransactionUser& user_;
  detail::TransactionHash hash_;
  bool is_closed_ = false;
  std::unique_ptr<char[]> scratch_;  ///< heads and stateless answers are written here first

  BlockPool blocks_;
  Timers timers_;
  std::vector<TimerQueue*> resend_queues_;  ///< T1, 2*T1, 4*T1, ..., T2
  TimerQueue* end_queue_;                   ///< 64*T1
  TimerQueue* clear_queue_;                 ///< T4
  std::uint64_t quiet_ms_ = 0;              ///< how long after a request Timer E reaches T2

  Slab<ServerRecord> servers_;
  Slab<ClientRecord> clients_;
  Slab<detail::ClientConnection> connections_;
  HashIndex server_index_;
  HashIndex client_index_;
  HashIndex connection_index_;
};

// Matching.

namespace detail {

inline TransactionHash::TransactionHash(Random random)
    : low_(next_key(random)), high_(next_key(random)), tag_(next_key(random)) {}

/// All sizes are hashed before all texts, so that no octet can move from one text to the next.
inline TransactionKey TransactionHash::hash(std::uint64_t number,
                                            std::initializer_list<std::string_view> texts) const {
  SipHash low = low_;
  SipHash high = high_;
  const auto add = [&low, &high](std::string_view text) {
    low.update(text);
    high.update(text);
  };
  const auto add_number = [&add](std::uint64_t value) {
    std::array<std::uint8_t, 8> octets;
    store_little(value, octets.data());
    add(as_text(octets.data(), octets.size()));
  };
  add_number(number);
  for (std::string_view text : texts) add_number(text.size());
  for (std::string_view text : texts) add(text);
  return {low.finish(), high.finish()};
}

/// The name where the number of the method does not tell it.
inline std::string_view unknown_method(Method method, std::string_view name) {
  return method == Method::other ? name : std::string_view();
}

/// RFC 3261 17.2.3: branch, sent-by, and method; an ACK belongs to its INVITE.
///
/// The source's IP address counts as well, although the RFC does not ask for it: two phones behind
/// two routers may both be 192.168.1.2:5060, and some make the same branches when switched on in
/// the same second. It is not compared which transport a request came over.
inline TransactionKey TransactionHash::of_request(const MessageView& request, const Via& via,
                                                  const Flow& from, Method method) const {
  if (!via.has_rfc3261_branch()) return of_legacy_request(request, from, method);
  if (method == Method::ack) method = Method::invite;
  return hash(static_cast<std::uint64_t>(method) | std::uint64_t{via.port_or_default()} << 8,
              {via.branch, via.host, from.remote.ip.bytes(),
               unknown_method(method, request.method_text())});
}

/// Without the magic cookie, or with nothing behind it, the branch is none, and a request is known
/// by Request-URI, tags, Call-ID, CSeq and top Via (RFC 3261 17.2.3, RFC 4475 3.2.1).
inline TransactionKey TransactionHash::of_legacy_request(const MessageView& request,
                                                         const Flow& from, Method method) const {
  constexpr std::uint64_t legacy = std::uint64_t{1} << 24;
  const std::uint64_t cseq = request.cseq()->number;
  const Method of_key = method == Method::ack ? Method::invite : method;
  const auto key = [&](std::string_view to_tag) {
    return hash(static_cast<std::uint64_t>(of_key) | legacy | cseq << 32,
                {*request.values(HeaderId::via).begin(), request.request_uri_text(),
                 request.from()->tag(), to_tag, request.call_id(), from.remote.ip.bytes(),
                 unknown_method(of_key, request.method_text())});
  };
  const std::string_view to_tag = request.to()->tag();
  if (method != Method::ack) return key(to_tag);
  // The To tag of an ACK is that of our answer, which the INVITE did not have yet.
  const TransactionKey of_invite = key({});
  const ToTag our_tag = tag(of_invite);
  return to_tag == text_of(our_tag) ? of_invite : key(to_tag);
}

/// RFC 3261 17.1.3: branch and method. That the sent-by is one of ours is not asked: nobody else
/// knows the branch.
inline TransactionKey TransactionHash::of_branch(std::string_view branch,
                                                 std::string_view method_text) const {
  const Method method = parse_method(method_text);
  return hash(static_cast<std::uint64_t>(method), {branch, unknown_method(method, method_text)});
}

inline ToTag TransactionHash::tag(const TransactionKey& key) const {
  std::array<std::uint8_t, 16> octets;
  store_little(key.low, octets.data());
  store_little(key.high, octets.data() + 8);
  return tag(as_text(octets.data(), octets.size()));
}

inline ToTag TransactionHash::tag(std::string_view text) const {
  SipHash hash = tag_;
  hash.update(text);
  ToTag tag;
  write_hex(hash.finish(), tag.data());
  return tag;
}

/// Beyond what a message may have, for the stamps on Via and for header names in full.
inline constexpr std::size_t transaction_scratch_size = max_message_size + 1024;

}  // namespace detail

inline TransactionLayer::TransactionLayer(const TransactionOptions& options, Sink& sink,
                                          TransactionUser& user, const SipHashKey& secret)
    : options_(options),
      sink_(sink),
      user_(user),
      hash_(Random(secret)),
      scratch_(new char[detail::transaction_scratch_size]) {
  const std::uint64_t t1_ms = std::max<std::uint64_t>(options.t1_ms, 1);
  const std::uint64_t t2_ms = std::max<std::uint64_t>(options.t2_ms, t1_ms);
  end_queue_ = &timers_.queue(64 * t1_ms);  // the first, so that what is over sends nothing more
  clear_queue_ = &timers_.queue(options.t4_ms);
  for (std::uint64_t interval_ms = t1_ms; interval_ms < t2_ms; interval_ms *= 2) {
    resend_queues_.push_back(&timers_.queue(interval_ms));
    quiet_ms_ += interval_ms;
  }
  resend_queues_.push_back(&timers_.queue(t2_ms));
}

// Receiving.

inline void TransactionLayer::receive(const MessageView& message, Error error, const Flow& from,
                                      std::uint64_t now_ms) {
  if (is_closed_ || error.code == ErrorCode::empty) return;  // empty: a keep-alive
  if (message.is_response()) {  // a malformed response is dropped (RFC 3261 18.3, 8.1.3)
    if (!error && !validate(message)) receive_response(message, from, now_ms);
    return;
  }
  if (error) {
    const bool too_large =
        error.code == ErrorCode::too_large || error.code == ErrorCode::too_many_headers;
    const int code = error.code == ErrorCode::bad_version ? 505 : too_large ? 513 : 400;
    refuse_broken(message, code, error, from);
    return;
  }
  if (const Error mistake = validate(message)) {
    refuse_broken(message, 400, mistake, from);
    return;
  }
  receive_request(message, from, now_ms);
}

inline void TransactionLayer::receive_request(const MessageView& request, const Flow& from,
                                              std::uint64_t now_ms) {
  const auto via = request.top_via();
  const detail::TransactionKey key = hash_.of_request(request, *via, from, request.method());
  const std::uint32_t found = find_server(key);
  const bool is_ack = request.method() == Method::ack;
  if (found != HashIndex::npos) {
    const ServerEvent event{is_ack ? ServerEvent::ack : ServerEvent::request_again, now_ms};
    static_cast<void>(on_event(servers_.at(found), event));
    return;
  }
  if (is_ack) return;  // of an answer that was given without state, or long ago
  if (servers_.size() >= options_.max_transactions ||
      blocks_.in_use_size() >= options_.max_kept_size) {
    refuse(request, 503, {}, tag_of(request, *via, key, from), from);
    return;
  }
  open_server(request, *via, key, from, now_ms);
}

inline void TransactionLayer::open_server(const MessageView& request, const Via& via,
                                          const detail::TransactionKey& key, const Flow& from,
                                          std::uint64_t now_ms) {
  const detail::ToTag to_tag = tag_of(request, via, key, from);
  Output out(scratch_.get(), detail::transaction_scratch_size);
  write_response_head(out, request, detail::text_of(to_tag), from.remote);
  if (out.error()) return;  // its Via headers cannot be repeated, so that no answer would arrive

  const ServerTransaction handle{servers_.create()};
  ServerRecord& server = servers_.at(handle.index);
  server.key = key;
  server.head = blocks_.allocate(out.size());
  std::memcpy(server.head.data(), out.written().data(), out.size());
  server.source = from;
  server.sent_by_port = via.port_or_default();
  server.wants_rport = via.has_rport;
  server.is_invite = request.method() == Method::invite;
  server.state = server.is_invite ? ServerState::proceeding : ServerState::trying;
  server.to_tag = to_tag;
  server.resend.owner = server.end.owner = handle.index;
  end_queue_->start(server.end, now_ms);
  server_index_.insert(key.low, handle.index);
  user_.on_request(handle, request, from);
}

/// RFC 3261 9.2: the answers to a CANCEL have the To tag of those to the request it cancels.
inline detail::ToTag TransactionLayer::tag_of(const MessageView& request, const Via& via,
                                              const detail::TransactionKey& key,
                                              const Flow& from) const {
  if (request.method() != Method::cancel) return hash_.tag(key);
  return hash_.tag(hash_.of_request(request, via, from, Method::invite));
}

/// Tells the sender what is wrong, and where. No answer is owed to an ACK, and none would find its
/// way without a Via.
inline void TransactionLayer::refuse_broken(const MessageView& request, int code, Error mistake,
                                            const Flow& from) {
  if (request.method() == Method::ack || !request.has(HeaderId::via)) return;
  char buffer[128];
  Output phrase(buffer, sizeof buffer);
  phrase.raw(mistake.text());
  if (mistake.place > 0) {
    phrase.raw(" (octet ").number(static_cast<std::uint64_t>(mistake.place)).raw(")");
  }
  refuse(request, code, phrase.written(), hash_.tag(request.bytes()), from);
}

/// Answers without keeping anything (RFC 3261 8.2.7).
inline void TransactionLayer::refuse(const MessageView& request, int code, std::string_view phrase,
                                     const detail::ToTag& to_tag, const Flow& from) {
  Output out(scratch_.get(), detail::transaction_scratch_size);
  write_status_line(out, code, phrase);
  write_response_head(out, request, detail::text_of(to_tag), from.remote);
  if (code == 503) write_header(out, HeaderId::retry_after, options_.retry_after_s);
  write_body(out, {}, {});
  if (out.error()) return;
  const auto via = request.top_via();
  const Flow flow = via ? answer_flow(from, via->has_rport, via->port_or_default()) : from;
  static_cast<void>(sink_.send(flow, Slices(out.written())));
}

/// RFC 3261 18.2.2, RFC 3581 4: over TCP on the same connection; over UDP to the address the
/// request came from, and to its port where rport is there. `maddr` is not followed: nothing is
/// sent to an address that only the sender claims to be somebody's.
inline Flow TransactionLayer::answer_flow(const Flow& source, bool wants_rport,
                                          std::uint16_t sent_by_port) const {
  Flow flow = source;
  if (source.transport == Transport::udp && !wants_rport && !options_.answer_to_source) {
    flow.remote.port = sent_by_port;
  }
  return flow;
}

inline void TransactionLayer::receive_response(const MessageView& response, const Flow& from,
                                               std::uint64_t now_ms) {
  const detail::TransactionKey key =
      hash_.of_branch(response.top_via()->branch, response.cseq()->method);
  const std::uint32_t found = client_index_.find(
      key.low, [&](std::uint32_t index) { return clients_.at(index).key == key; });
  // RFC 3261 18.1.2 leaves strays to the core; RFC 4320 4.3 forbids to pass them on.
  if (found == HashIndex::npos) return;
  const auto kind =
      response.status_code() < 200 ? ClientEvent::provisional : ClientEvent::final_response;
  on_event(clients_.at(found), {kind, now_ms, &response, &from});
}

// The server machines.

inline Error TransactionLayer::on_event(ServerRecord& server, const ServerEvent& event) {
  switch (server.state) {
    case ServerState::trying: return server_trying(server, event);
    case ServerState::proceeding:
      return server.is_invite ? invite_proceeding(server, event) : server_proceeding(server, event);
    case ServerState::completed:
      return server.is_invite ? invite_completed(server, event) : server_completed(server, event);
    case ServerState::confirmed: return invite_confirmed(server, event);
  }
  return {};
}

// Any request but INVITE: RFC 3261 17.2.2, figure 8. "End" is the one timer that always runs: 64*T1
// for the user to answer, then Timer J.
//
//              | request again | 100        | 200-699       | End
//   -----------+---------------+------------+---------------+---------------------
//   Trying     | -             | send       | send, Timer J | - (RFC 4320)
//              |               | Proceeding | Completed (1) | Terminated
//   Proceeding | send 100      | send       | send, Timer J | - (RFC 4320)
//              |               |            | Completed (1) | Terminated
//   Completed  | send answer   | - (gone)   | - (gone)      | Terminated (Timer J)
//
//   (1) over TCP Terminated at once, for Timer J is zero there

inline Error TransactionLayer::server_trying(ServerRecord& server, const ServerEvent& event) {
  switch (event.kind) {
    case ServerEvent::provisional:
      server.state = ServerState::proceeding;
      return keep_and_send(server, *event.answer);
    case ServerEvent::final_answer: return complete(server, event);
    case ServerEvent::end: destroy(server); return {};
    default: return {};  // the user is still at it
  }
}

inline Error TransactionLayer::server_proceeding(ServerRecord& server, const ServerEvent& event) {
  switch (event.kind) {
    case ServerEvent::request_again: return send_again(server);
    case ServerEvent::provisional: return keep_and_send(server, *event.answer);
    case ServerEvent::final_answer: return complete(server, event);
    case ServerEvent::end: destroy(server); return {};
    default: return {};
  }
}

inline Error TransactionLayer::server_completed(ServerRecord& server, const ServerEvent& event) {
  switch (event.kind) {
    case ServerEvent::request_again: return send_again(server);
    case ServerEvent::end: destroy(server); return {};
    default: return {};
  }
}

// INVITE, as far as one needs it who refuses every call: RFC 3261 17.2.1, figure 7. "End" is 64*T1
// for the user to answer, then Timer H, then Timer I.
//
//              | INVITE again | 101-199 | 300-699         | ACK        | Timer G     | End
//   -----------+--------------+---------+-----------------+------------+-------------+-----------
//   Proceeding | send last    | send    | send, H, G (1)  | -          |             | -
//              | 1xx          |         | Completed       |            |             | Terminated
//   Completed  | send answer  | (gone)  | (gone)          | Timer I    | send answer | - (H)
//              |              |         |                 | Confirmed  | G*2, max T2 | Terminated
//   Confirmed  | -            | (gone)  | (gone)          | -          |             | - (I)
//              |              |         |                 |            |             | Terminated
//
//   (1) Timer G over UDP only; over TCP Timer I is zero, so that an ACK ends it

inline Error TransactionLayer::invite_proceeding(ServerRecord& server, const ServerEvent& event) {
  switch (event.kind) {
    case ServerEvent::request_again: return send_again(server);
    case ServerEvent::provisional: return keep_and_send(server, *event.answer);
    case ServerEvent::final_answer:
      server.state = ServerState::completed;
      server.head.reset();
      server.sends = 1;
      end_queue_->start(server.end, event.now_ms);
      if (server.source.transport == Transport::udp && options_.max_answer_sends > 1) {
        resend_queue(server.sends).start(server.resend, event.now_ms);
      }
      return keep_and_send(server, *event.answer);
    case ServerEvent::end: destroy(server); return {};
    default: return {};
  }
}

inline Error TransactionLayer::invite_completed(ServerRecord& server, const ServerEvent& event) {
  switch (event.kind) {
    case ServerEvent::request_again: return send_again(server);
    case ServerEvent::ack:
      if (server.source.transport != Transport::udp) {
        destroy(server);
        return {};
      }
      server.state = ServerState::confirmed;
      server.answer.reset();
      server.resend.cancel();
      clear_queue_->start(server.end, event.now_ms);
      return {};
    case ServerEvent::resend:
      if (event.now_ms >= server.end.deadline_ms()) return {};  // time jumped: it is over
      if (++server.sends < options_.max_answer_sends) {
        resend_queue(server.sends).start(server.resend, event.now_ms);
      }
      return send_again(server);
    case ServerEvent::end: destroy(server); return {};
    default: return {};
  }
}

inline Error TransactionLayer::invite_confirmed(ServerRecord& server, const ServerEvent& event) {
  if (event.kind == ServerEvent::end) destroy(server);
  return {};
}

// Their actions.

inline Error TransactionLayer::complete(ServerRecord& server, const ServerEvent& event) {
  if (server.source.transport != Transport::udp) {
    const Error error = send_answer(server, *event.answer);
    destroy(server);
    return error;
  }
  server.state = ServerState::completed;
  server.head.reset();
  end_queue_->start(server.end, event.now_ms);
  return keep_and_send(server, *event.answer);
}

inline Error TransactionLayer::keep_and_send(ServerRecord& server, const Slices& answer) {
  server.answer = blocks_.allocate(answer.size());
  answer.copy_to(server.answer.data());
  return send_answer(server, answer);
}

inline Error TransactionLayer::send_again(ServerRecord& server) {
  if (!server.answer) return {};
  return send_answer(server, Slices({server.answer.data(), server.answer.size()}));
}

/// RFC 3261 18.2.2: where the TCP connection is gone, a new one is opened to the address the
/// request came from and the port its Via names.
inline Error TransactionLayer::send_answer(const ServerRecord& server, const Slices& answer) {
  Flow flow = answer_flow(server.source, server.wants_rport, server.sent_by_port);
  const Error error = sink_.send(flow, answer);
  if (!error || flow.transport == Transport::udp) return error;
  flow.socket = 0;
  flow.remote.port = server.sent_by_port;
  return sink_.send(flow, answer);
}

inline TimerQueue& TransactionLayer::resend_queue(std::uint32_t sends) const {
  return *resend_queues_[std::min<std::size_t>(sends, resend_queues_.size()) - 1];
}

inline void TransactionLayer::destroy(ServerRecord& server) {
  const std::uint32_t index = server.end.owner;
  server_index_.erase(server.key.low, index);
  servers_.destroy(servers_.handle_of(index));
}

// Answering.

inline void TransactionLayer::begin_response(ServerTransaction server, int code,
                                             std::string_view phrase, Output& out) const {
  const ServerRecord* record = servers_.get(server);
  if (record == nullptr || !record->head) {
    out.fail(ErrorCode::gone);
    return;
  }
  write_status_line(out, code, phrase);
  out.raw({record->head.data(), record->head.size()});
}

/// Whether that answer may be sent now.
inline Error TransactionLayer::answerable(ServerTransaction server, int code,
                                          const Slices& response, std::uint64_t now_ms) const {
  const ServerRecord* record = servers_.get(server);
  if (record == nullptr || !record->head || now_ms >= record->end.deadline_ms()) {
    return ErrorCode::gone;
  }
  if (code < 100 || code > 699) return ErrorCode::bad_argument;
  if (response.size() > BlockPool::max_block_size) return ErrorCode::too_large;
  if (record->is_invite) {
    return code >= 200 && code < 300 ? ErrorCode::bad_argument : ErrorCode::none;
  }
  if (code == 408 || (code > 100 && code < 200)) return ErrorCode::bad_argument;
  if (code == 100 && record->source.transport == Transport::udp) {
    const std::uint64_t age_ms = now_ms + end_queue_->duration_ms() - record->end.deadline_ms();
    if (age_ms < quiet_ms_) return ErrorCode::bad_argument;
  }
  return {};
}

inline Error TransactionLayer::respond(ServerTransaction server, int code, const Slices& response,
                                       std::uint64_t now_ms) {
  if (const Error error = answerable(server, code, response, now_ms)) return error;
  const auto kind = code < 200 ? ServerEvent::provisional : ServerEvent::final_answer;
  return on_event(*servers_.get(server), {kind, now_ms, &response});
}

inline Error TransactionLayer::respond_statelessly(ServerTransaction server, int code,
                                                   const Slices& response, std::uint64_t now_ms) {
  if (code < 200) return ErrorCode::bad_argument;
  if (const Error error = answerable(server, code, response, now_ms)) return error;
  ServerRecord& record = *servers_.get(server);
  const Error error = send_answer(record, response);
  destroy(record);
  return error;
}

inline ServerTransaction TransactionLayer::find_cancelled(const MessageView& cancel,
                                                          const Flow& from) const {
  const auto via = cancel.top_via();
  if (!via) return {};
  const std::uint32_t found = find_server(hash_.of_request(cancel, *via, from, Method::invite));
  if (found == HashIndex::npos) return {};
  return {servers_.handle_of(found)};
}

inline std::uint64_t TransactionLayer::user_data(ServerTransaction server) const {
  const ServerRecord* record = servers_.get(server);
  return record == nullptr ? 0 : record->user_data;
}
inline void TransactionLayer::set_user_data(ServerTransaction server, std::uint64_t user_data) {
  if (ServerRecord* record = servers_.get(server)) record->user_data = user_data;
}
inline Flow TransactionLayer::source(ServerTransaction server) const {
  const ServerRecord* record = servers_.get(server);
  return record == nullptr ? Flow() : record->source;
}
inline std::string_view TransactionLayer::to_tag(ServerTransaction server) const {
  const ServerRecord* record = servers_.get(server);
  return record == nullptr ? std::string_view() : detail::text_of(record->to_tag);
}

// The client machine.

inline Result<ClientTransaction> TransactionLayer::send(const Flow& flow, std::string_view branch,
                                                        std::string_view method,
                                                        const Slices& request,
                                                        std::uint64_t user_data,
                                                        std::uint64_t now_ms) {
  if (is_closed_) return ErrorCode::closed;
  if (method == "INVITE" || method == "ACK") return ErrorCode::bad_argument;
  const std::size_t size = request.size();
  if (size > BlockPool::max_block_size) return ErrorCode::too_large;
  if (clients_.size() >= options_.max_transactions ||
      blocks_.in_use_size() >= options_.max_kept_size) {
    return ErrorCode::limit_reached;
  }
  if (const Error error = sink_.send(flow, request)) return error;

  const ClientTransaction handle{clients_.create()};
  ClientRecord& client = clients_.at(handle.index);
  client.key = hash_.of_branch(branch, method);
  client.user_data = user_data;
  client.flow = flow;
  client.resend.owner = client.end.owner = handle.index;
  end_queue_->start(client.end, now_ms);
  client_index_.insert(client.key.low, handle.index);
  if (flow.transport == Transport::udp) {
    client.request = blocks_.allocate(size);
    request.copy_to(client.request.data());
    if (options_.max_request_sends > 1) resend_queue(1).start(client.resend, now_ms);
  } else {
    join_connection(client);
  }
  return handle;
}

inline void TransactionLayer::on_event(ClientRecord& client, const ClientEvent& event) {
  if (event.response != nullptr) client.has_response = true;
  switch (client.state) {
    case ClientState::trying: client_trying(client, event); break;
    case ClientState::proceeding: client_proceeding(client, event); break;
    case ClientState::completed: client_completed(client, event); break;
    case ClientState::terminated: break;  // its failure is being told
  }
}

// Any request but INVITE: RFC 3261 17.1.2, figure 6. Timer E runs over UDP only.
//
//              | 100-199      | 200-699         | Timer E       | Timer F    | broken (2)
//   -----------+--------------+-----------------+---------------+------------+-----------
//   Trying     | tell (1)     | tell, Timer K   | send          | tell       | tell
//              | Proceeding   | Completed (3)   | E*2, max T2   | Terminated | Terminated
//   Proceeding | tell (1)     | tell, Timer K   | send          | tell       | tell
//              |              | Completed (3)   | E = T2        | Terminated | Terminated
//   Completed  | -            | -               |               | - (K)      | -
//              |              |                 |               | Terminated | Terminated
//
//   (1) but for 100, which tells nothing   (2) the connection, or the sink's error on sending again
//   (3) over TCP Terminated at once, for Timer K is zero there

inline void TransactionLayer::client_trying(ClientRecord& client, const ClientEvent& event) {
  switch (event.kind) {
    case ClientEvent::provisional:
      client.state = ClientState::proceeding;
      tell_provisional(client, event);
      break;
    case ClientEvent::final_response: tell_final(client, event); break;
    case ClientEvent::resend:
      repeat_request(client, resend_queue(client.sends + 1), event.now_ms);
      break;
    case ClientEvent::end: fail(client, ErrorCode::timeout); break;
    case ClientEvent::broken: fail(client, event.error); break;
  }
}

inline void TransactionLayer::client_proceeding(ClientRecord& client, const ClientEvent& event) {
  switch (event.kind) {
    case ClientEvent::provisional: tell_provisional(client, event); break;
    case ClientEvent::final_response: tell_final(client, event); break;
    case ClientEvent::resend: repeat_request(client, *resend_queues_.back(), event.now_ms); break;
    case ClientEvent::end: fail(client, ErrorCode::timeout); break;
    case ClientEvent::broken: fail(client, event.error); break;
  }
}

inline void TransactionLayer::client_completed(ClientRecord& client, const ClientEvent& event) {
  if (event.kind == ClientEvent::end || event.kind == ClientEvent::broken) {
    forget(handle_of(client));
  }
}

// Its actions. Whatever a transaction's record is needed for comes before the user is called: the
// user may forget the transaction.

inline void TransactionLayer::tell_provisional(ClientRecord& client, const ClientEvent& event) {
  if (event.response->status_code() == 100) return;
  user_.on_response(handle_of(client), *event.response, *event.from);
}

inline void TransactionLayer::tell_final(ClientRecord& client, const ClientEvent& event) {
  const ClientTransaction handle = handle_of(client);
  const bool reliable = client.flow.transport != Transport::udp;
  client.state = ClientState::completed;
  client.request.reset();
  client.resend.cancel();
  leave_connection(client);
  clear_queue_->start(client.end, event.now_ms);
  user_.on_response(handle, *event.response, *event.from);
  if (reliable) forget(handle);
}

inline void TransactionLayer::fail(ClientRecord& client, Error error) {
  const ClientTransaction handle = handle_of(client);
  client.state = ClientState::terminated;
  client.resend.cancel();
  client.end.cancel();
  leave_connection(client);
  user_.on_failure(handle, error);
  forget(handle);
}

inline void TransactionLayer::repeat_request(ClientRecord& client, TimerQueue& next_interval,
                                             std::uint64_t now_ms) {
  if (now_ms >= client.end.deadline_ms()) return;  // time jumped: Timer F is due as well
  if (++client.sends < options_.max_request_sends) next_interval.start(client.resend, now_ms);
  const Slices request({client.request.data(), client.request.size()});
  if (const Error error = sink_.send(client.flow, request)) fail(client, error);
}

inline std::uint64_t TransactionLayer::user_data(ClientTransaction client) const {
  const ClientRecord* record = clients_.get(client);
  return record == nullptr ? 0 : record->user_data;
}

inline bool TransactionLayer::has_response(ClientTransaction client) const {
  const ClientRecord* record = clients_.get(client);
  return record != nullptr && record->has_response;
}

inline void TransactionLayer::forget(ClientTransaction client) {
  ClientRecord* record = clients_.get(client);
  if (record == nullptr) return;
  leave_connection(*record);
  client_index_.erase(record->key.low, client.index);
  clients_.destroy(client);
}

// Connections: the client transactions on each stand in a list, so that closing one of ten thousand
// asks only those concerned.

namespace detail {
inline std::uint64_t hash_of_socket(std::uint32_t socket) {
  return socket * std::uint64_t{0x9e3779b97f4a7c15};  // numbers of our own: nobody can choose them
}
}  // namespace detail

inline std::uint32_t TransactionLayer::find_connection(std::uint32_t socket) const {
  return connection_index_.find(detail::hash_of_socket(socket), [&](std::uint32_t index) {
    return connections_.at(index).socket == socket;
  });
}

inline void TransactionLayer::join_connection(ClientRecord& client) {
  const std::uint32_t socket = client.flow.socket;
  std::uint32_t index = find_connection(socket);
  if (index == HashIndex::npos) {
    index = connections_.create().index;
    connections_.at(index).socket = socket;
    connection_index_.insert(detail::hash_of_socket(socket), index);
  }
  detail::ClientConnection& connection = connections_.at(index);
  client.connection = connections_.handle_of(index);
  client.next = connection.first_client;
  if (client.next != HashIndex::npos) clients_.at(client.next).previous = client.end.owner;
  connection.first_client = client.end.owner;
}

inline void TransactionLayer::leave_connection(ClientRecord& client) {
  detail::ClientConnection* connection = connections_.get(client.connection);
  if (connection == nullptr) return;
  if (client.next != HashIndex::npos) clients_.at(client.next).previous = client.previous;
  if (client.previous != HashIndex::npos) {
    clients_.at(client.previous).next = client.next;
  } else {
    connection->first_client = client.next;
  }
  if (connection->first_client == HashIndex::npos) {
    connection_index_.erase(detail::hash_of_socket(connection->socket), client.connection.index);
    connections_.destroy(client.connection);
  }
  client.connection = Handle();
  client.next = client.previous = HashIndex::npos;
}

inline void TransactionLayer::connection_closed(std::uint32_t socket, Error error,
                                                std::uint64_t now_ms) {
  const std::uint32_t index = find_connection(socket);
  if (index == HashIndex::npos) return;
  // Out of the index first: what a callback sends over the same number is not concerned.
  connection_index_.erase(detail::hash_of_socket(socket), index);
  const Handle connection = connections_.handle_of(index);
  const ClientEvent event{ClientEvent::broken, now_ms, nullptr, nullptr, error};
  while (const auto* remaining = connections_.get(connection)) {
    on_event(clients_.at(remaining->first_client), event);
  }
}

// Time.

inline void TransactionLayer::advance(std::uint64_t now_ms) {
  timers_.advance(now_ms, [&](const Timer& timer) { on_timer(timer, now_ms); });
}

inline void TransactionLayer::on_timer(const Timer& timer, std::uint64_t now_ms) {
  if (timer.kind == detail::server_resend || timer.kind == detail::server_end) {
    const auto kind = timer.kind == detail::server_resend ? ServerEvent::resend : ServerEvent::end;
    static_cast<void>(on_event(servers_.at(timer.owner), ServerEvent{kind, now_ms}));
    return;
  }
  const auto kind = timer.kind == detail::client_resend ? ClientEvent::resend : ClientEvent::end;
  on_event(clients_.at(timer.owner), {kind, now_ms});
}

inline void TransactionLayer::close() {
  is_closed_ = true;
  const ClientEvent event{ClientEvent::broken, 0, nullptr, nullptr, ErrorCode::closed};
  clients_.for_each([&](Handle, ClientRecord& client) { on_event(client, event); });
  servers_.for_each([this](Handle, ServerRecord& server) { destroy(server); });
}

}  // namespace sipmsg

// ========================================== login.hpp ===========================================

// login: a client's side of the password question, for one account.
//
// A server asks with 401 or 407; a client sends the request again with credentials (RFC 3261 22.2,
// 22.3). The nonce stays good for a while, so what follows carries credentials at once, with a
// rising count, or with the next nonce where an answer brought one. A password that was refused is
// not tried again: softphones that do lock their owners out. The arithmetic is that of digest.hpp;
// who sends the request again is agent.hpp.

namespace sipmsg {

/// One account's name and password, and the challenges it has answered so far. Share one Login
/// among all requests of an account.
class Login {
 public:
  Login(std::string username, std::string password)
      : username_(std::move(username)), password_(std::move(password)) {}

  const std::string& username() const { return username_; }
  /// Another password: what was refused counts no longer.
  void set_password(std::string password) {
    password_ = std::move(password);
    answers_.clear();
  }
  /// Whether the password was refused by some realm, and will not be tried there again.
  bool is_refused() const {
    for (const Answer& answer : answers_) {
      if (answer.refused) return true;
    }
    return false;
  }

  /// Takes the challenges of a 401 or 407: of each realm the strongest that we speak. A proxy that
  /// forks may collect those of several, for either header (RFC 3261 16.7 step 7). `answered` is
  /// the caller's for each request, empty at first: the realms it was sent again for. True where it
  /// is worth sending once more: there is a challenge of an algorithm we speak, and the password
  /// was not the reason (RFC 3261 22.2: the same credentials again only where the nonce alone was
  /// wrong). `cnonce` is a fresh random token.
  bool take(const MessageView& response, std::vector<std::string>& answered,
            std::string_view cnonce) {
    bool is_worth_it = false;
    for (const bool is_proxy : {false, true}) {
      const auto id = is_proxy ? HeaderId::proxy_authenticate : HeaderId::www_authenticate;
      std::vector<DigestChallenge> challenges = read_challenges(response, id);
      while (!challenges.empty()) {
        const std::string_view realm = challenges.front().realm;
        std::vector<DigestChallenge> of_realm;
        std::vector<DigestChallenge> others;
        for (const DigestChallenge& challenge : challenges) {
          (challenge.realm == realm ? of_realm : others).push_back(challenge);
        }
        const auto best = DigestClient::choose(of_realm.data(), of_realm.size());
        if (best && take_one(is_proxy, of_realm[*best], answered, cnonce)) is_worth_it = true;
        challenges.swap(others);
      }
    }
    return is_worth_it;
  }

  /// Takes the nonce that an answer brings for the next request (RFC 7616 3.5). It does not say of
  /// which realm it speaks, so it is passed over where several could be meant. `cnonce` is a fresh
  /// random token.
  void take_next_nonce(const MessageView& response, std::string_view cnonce) {
    for (const bool is_proxy : {false, true}) {
      const auto info =
          response.header(is_proxy ? "Proxy-Authentication-Info" : "Authentication-Info");
      if (!info) continue;
      const auto next_nonce = Parameters(*info, ',').find("nextnonce");
      const auto is_meant = [is_proxy](const Answer& answer) {
        return answer.is_proxy == is_proxy && !answer.refused && answer.client.is_ready();
      };
      if (!next_nonce || std::count_if(answers_.begin(), answers_.end(), is_meant) != 1) continue;
      const auto answer = std::find_if(answers_.begin(), answers_.end(), is_meant);
      // One that cannot be used is no loss: the server will challenge.
      static_cast<void>(answer->client.take_next_nonce(*next_nonce, cnonce));
    }
  }

  /// Writes Authorization and Proxy-Authorization for one request, as far as challenges are known.
  /// `uri` is the Request-URI as it is sent. Each call counts as one use of the nonces.
  void write(Output& out, std::string_view method, std::string_view uri, std::string_view body) {
    for (Answer& answer : answers_) {
      if (answer.refused || !answer.client.is_ready()) continue;
      const auto value = answer.client.authorize(username_, password_, method, uri, body);
      if (!value) return static_cast<void>(out.fail(value.error().code));
      write_header(out, answer.is_proxy ? HeaderId::proxy_authorization : HeaderId::authorization,
                   *value);
    }
  }

 private:
  static constexpr std::size_t max_challenges = 16;
  static constexpr std::size_t max_realms = 8;    ///< a server and some proxies on the way to it
  static constexpr std::ptrdiff_t max_tries = 4;  ///< with new nonces, for one realm and request

  /// What one realm asked for last.
  struct Answer {
    bool is_proxy = false;
    std::string realm;  ///< with "www " or "proxy " before it: each asks for itself
    DigestClient client;
    bool refused = false;
  };

  static std::vector<DigestChallenge> read_challenges(const MessageView& response, HeaderId id) {
    std::vector<DigestChallenge> challenges;
    for (std::size_t field = response.find(id); field != response.header_count();
         field = response.find_next(field)) {
      for (std::string_view text : DigestChallenges(response.field(field).value)) {
        const auto challenge = parse_challenge(text);
        const bool has_room = challenges.size() < max_challenges;
        if (challenge && challenge->is_digest && has_room) challenges.push_back(*challenge);
      }
    }
    return challenges;
  }

  /// Whether the challenge of one realm is worth an answer.
  bool take_one(bool is_proxy, const DigestChallenge& challenge, std::vector<std::string>& answered,
                std::string_view cnonce) {
    std::string realm = (is_proxy ? "proxy " : "www ") + unquote(challenge.realm);
    Answer& answer = answer_for(is_proxy, realm);
    const auto tries = std::count(answered.begin(), answered.end(), realm);
    if (tries != 0 && !challenge.stale) answer.refused = true;
    if (answer.refused || tries >= max_tries || answered.size() >= max_challenges) return false;
    if (answer.client.take(challenge, cnonce)) return false;
    answered.push_back(std::move(realm));
    return true;
  }

  Answer& answer_for(bool is_proxy, const std::string& realm) {
    for (Answer& answer : answers_) {
      if (answer.realm == realm) return answer;
    }
    if (answers_.size() == max_realms) answers_.erase(answers_.begin());
    answers_.emplace_back();
    answers_.back().is_proxy = is_proxy;
    answers_.back().realm = realm;
    return answers_.back();
  }

  std::string username_;
  std::string password_;
  std::vector<Answer> answers_;
};

}  // namespace sipmsg

// ========================================= outgoing.hpp =========================================

// outgoing: what an application gives to be sent, and what it is told became of it.
//
// A request is a struct with defaults; agent and proxy both take it, each with its own way to its
// recipient. What is checked here is that a caller's text cannot become a header or a URI of
// another meaning: line ends and NUL are refused (RFC 3261 7.3.1), and so is what would be left out
// of a URI (19.1.5).

namespace sipmsg {

/// Header fields, name and value, in the order they are written.
using Headers = std::vector<std::pair<std::string, std::string>>;

/// A request to be sent. Whatever is not set has a sensible default. CR, LF and NUL may stand in
/// the body only.
struct Outgoing {
  /// The recipient: a URI, "sip:bob@192.0.2.7", or one with a display name, "Bob <sip:bob@x>".
  std::string to;
  std::string from;  ///< the sender, likewise; default: sip:anonymous@anonymous.invalid
  std::string body;  ///< any octets
  std::string content_type = "text/plain;charset=utf-8";  ///< of a body that is not empty
  std::string method = "MESSAGE";
  std::string request_uri;  ///< default: the URI of `to`
  /// Default: a fresh one. All REGISTERs of one registration have theirs in common (RFC 3261 10.2);
  /// the From tag follows from it.
  std::string call_id;
  /// Further ones; none of those above, and no Contact in a MESSAGE (RFC 3428 4).
  Headers headers;
  /// The user of a Contact that names where this agent is reached on the way the request takes, as
  /// it stands in a URI. For REGISTER; default: no Contact.
  std::string contact_user;
  /// The account that answers challenges (401, 407); one for all requests of an account, so that
  /// its nonces are used again. Without it a challenge is the final answer.
  std::shared_ptr<Login> login;
  /// The URI of the outbound proxy that all requests go through,
  /// "sip:proxy.example.org;transport=tcp". Default: the Request-URI says where to send to.
  std::string proxy;
  /// The way to send it, by which a request came in, say. Stands above `proxy`.
  std::optional<Flow> next_hop;
  /// How long to wait for the final answer, names to be looked up and other servers to be tried
  /// included; then the callback is told `timeout`. 0: as long as it takes, 32 s (64*T1) for each
  /// server.
  std::uint32_t deadline_ms = 0;
};

/// What became of a request we sent: an error of ours, or the final answer. RFC 3261 8.1.3.1 has
/// `timeout` mean the same as a 408, and `network` the same as a 503.
struct Outcome {
  Error error;         ///< `timeout`, `closed`, or that of the network, where no final answer came
  int code = 0;        ///< 200 to 699; 0 with an error
  std::string reason;  ///< the answer's phrase
  const MessageView* response = nullptr;  ///< during the callback only; null with an error
  Flow flow;                              ///< the way the answer came
  bool ok() const { return !error && code < 300; }
};

/// Told once what became of a request.
using SentHandler = std::function<void(const Outcome&)>;

namespace detail {

inline Error check_line(std::string_view text) {
  const std::size_t bad = text.find_first_of(std::string_view("\r\n\0", 3));
  if (bad == std::string_view::npos) return {};
  return {ErrorCode::forbidden_octet, static_cast<std::int32_t>(bad)};
}

/// A URI that is to become a header or a Request-URI. What it asks for beyond that is refused and
/// not left out (RFC 3261 19.1.5).
inline Result<UriView> parse_plain_uri(std::string_view text) {
  const auto uri = parse_uri(text);
  if (uri && (!uri->headers.empty() || uri->parameter("method"))) return ErrorCode::bad_uri;
  return uri;
}

/// What a caller gives for To or From. Without brackets all of it is the URI, parameters included,
/// which in a header would belong to the header (RFC 3261 20.10).
inline Result<NameAddr> parse_party(std::string_view text) {
  if (const Error error = check_line(text)) return error;
  NameAddr party;
  if (text.find('<') != std::string_view::npos) {
    const auto name_addr = parse_name_addr(text);
    if (!name_addr) return name_addr.error();
    if (!name_addr->parameters.text().empty()) return ErrorCode::bad_name_addr;
    party = *name_addr;
    text = party.uri.text;
  }
  const auto uri = parse_plain_uri(text);
  if (!uri) return uri.error();
  party.uri = *uri;
  return party;
}

/// Always in quotes, because unquoted only few octets may stand in a name, and no UTF-8.
inline std::string party_text(const NameAddr& party) {
  std::string text;
  if (!party.display_name.empty()) {
    text =
        is_quoted(party.display_name) ? std::string(party.display_name) : quote(party.display_name);
    text += ' ';
  }
  return text.append("<").append(party.uri.text).append(">");
}

/// What a caller may not add: the headers that every request has from here.
constexpr bool is_written_by_us(HeaderId id) {
  switch (id) {
    case HeaderId::via:
    case HeaderId::max_forwards:
    case HeaderId::from:
    case HeaderId::to:
    case HeaderId::call_id:
    case HeaderId::cseq:
    case HeaderId::user_agent:
    case HeaderId::content_type:
    case HeaderId::content_length: return true;
    default: return false;
  }
}

inline Error check_headers(const Headers& headers, bool allow_contact) {
  for (const auto& header : headers) {
    if (!is_token(header.first)) return ErrorCode::bad_token;
    if (const Error error = check_line(header.second)) return error;
    const HeaderId id = header_id(header.first);
    if (is_written_by_us(id)) return ErrorCode::duplicate_header;
    if (id == HeaderId::contact && !allow_contact) return ErrorCode::bad_argument;
  }
  return {};
}

}  // namespace detail

}  // namespace sipmsg

// ========================================== locate.hpp ==========================================

// locate: from the host in a URI to the addresses where a request is tried, in order.
//
// RFC 3263 4 for a client without TLS: which transport, which port, which address, and which next
// where one fails. RFC 2782 says how SRV records are ordered. Whoever can look up names stands
// behind NameService: libuv and the system's resolver in dns.hpp, a table in the tests. The reply
// to an SRV query is read here too (RFC 1035 4.1), because it comes from strangers.
//
// Left out on purpose: NAPTR (RFC 3263 4.1). Its one use is to let a domain choose among TLS, TCP
// and UDP, and to a client without TLS it can say no more than the SRV records do, which a domain
// must have anyway; few have NAPTR, and each message would wait for one more answer. So we ask for
// SRV of the transports we speak, as the RFC has it for domains without NAPTR. Also left out:
// IDNA, and remembering answers, which is the resolver's work.

namespace sipmsg {

/// Where a service can be had (RFC 2782). A lower priority is tried first; among equals the weight
/// is the chance to be the first. The target has no final dot; "." alone means: no such service.
struct SrvRecord {
  std::uint16_t priority = 0;
  std::uint16_t weight = 0;
  std::uint16_t port = 0;
  std::string target;
};

/// Looks up names. Each call leads to exactly one call of its handler, later, never from inside;
/// to none once the service is closed or gone.
class NameService {
 public:
  using AddressHandler = std::function<void(Error, const std::vector<IpAddress>&)>;
  using SrvHandler = std::function<void(Error, const std::vector<SrvRecord>&)>;

  /// A and AAAA of `host`, the preferred first. Error: `unknown_host`, or the network's.
  virtual void look_up_addresses(const std::string& host, AddressHandler done) = 0;
  /// SRV of `name` ("_sip._udp.example.org"), in any order. That there are none is no error.
  virtual void look_up_srv(const std::string& name, SrvHandler done) = 0;

 protected:
  ~NameService() = default;
};

/// How many next hops are found at most.
inline constexpr std::size_t max_next_hops = 10;
/// How many servers of a domain have their addresses looked up, the preferred ones.
inline constexpr std::size_t max_srv_targets = 8;
/// How many SRV records are read of one answer.
inline constexpr std::size_t max_srv_records = 32;

/// The next hops in the order to be tried: at least one, at most `max_next_hops`, none twice, their
/// `socket` 0; or the error that left none.
using LocateHandler = std::function<void(Error, std::vector<Flow>)>;

/// Puts the records in the order to be tried: by priority, and by chance among equals, in
/// proportion to their weights (RFC 2782, usage rules).
inline void order_srv(std::vector<SrvRecord>& records, Random& random) {
  // Those of weight 0 first in their priority, so that they have a small chance, too.
  const auto is_before = [](const SrvRecord& a, const SrvRecord& b) {
    return a.priority != b.priority ? a.priority < b.priority : a.weight < b.weight;
  };
  for (auto next = records.begin(); next != records.end(); ++next) {
    std::rotate(std::upper_bound(records.begin(), next, *next, is_before), next, next + 1);
  }
  for (auto first = records.begin(); first != records.end(); ++first) {
    std::uint64_t sum = 0;
    auto last = first;
    for (; last != records.end() && last->priority == first->priority; ++last) sum += last->weight;
    const std::uint64_t drawn = random.next() % (sum + 1);
    auto chosen = first;
    for (std::uint64_t running = chosen->weight; running < drawn; running += chosen->weight) {
      ++chosen;
    }
    std::rotate(first, chosen, chosen + 1);  // the others keep their order
  }
}

// ---- the reply to an SRV query -----------------------------------------------------------------

namespace detail {

inline constexpr std::size_t max_host_text = 253;  // 255 octets on the wire (RFC 1035 2.3.4)

/// Reads a DNS message from front to back (RFC 1035 4.1). The first thing that does not fit makes
/// it fail; from then on all numbers are 0 and all names empty.
class DnsReader {
 public:
  explicit DnsReader(std::string_view octets) : octets_(octets) {}

  bool has_failed() const { return has_failed_; }
  std::size_t position() const { return position_; }

  void skip(std::size_t count) {
    has_failed_ = has_failed_ || count > octets_.size() - position_;
    if (!has_failed_) position_ += count;
  }
  std::uint16_t number_16() {
    const std::size_t begin = position_;
    skip(2);
    return has_failed_ ? std::uint16_t{0} : load_big<std::uint16_t>(as_octets(octets_) + begin);
  }
  void skip_name() {
    while (const std::size_t label = number_8()) {
      if (is_pointer(label)) return skip(1);
      skip_label(label);
    }
  }
  std::string name();

 private:
  static constexpr std::size_t max_label = 63;
  static constexpr bool is_pointer(std::size_t length) { return length >= 0xc0; }

  void skip_label(std::size_t size) {
    has_failed_ = has_failed_ || size > max_label;
    skip(size);
  }
  std::size_t number_8() {
    const std::size_t begin = position_;
    skip(1);
    return has_failed_ ? 0 : static_cast<unsigned char>(octets_[begin]);
  }

  std::string_view octets_;
  std::size_t position_ = 0;
  bool has_failed_ = false;
};

/// A name with dots between its labels, "." for the root. What no host's name holds comes out as
/// '?', a dot within a label above all.
inline std::string DnsReader::name() {
  std::string text;
  std::size_t begin = position_;  // of the octets that are being read
  std::size_t end = 0;            // of the name, once a pointer has led away from it
  while (const std::size_t label = number_8()) {
    if (is_pointer(label)) {
      const std::size_t target = (label & 0x3f) << 8 | number_8();
      if (end == 0) end = position_;
      // Back only, to before all that was read of this name: so it ends (RFC 1035 4.1.4, "a prior
      // occurrence").
      has_failed_ = has_failed_ || target >= begin;
      if (!has_failed_) begin = position_ = target;
      continue;
    }
    const std::size_t first = position_;
    skip_label(label);
    has_failed_ = has_failed_ || text.size() + label > max_host_text;
    if (has_failed_) break;
    for (char c : octets_.substr(first, label)) {
      text.push_back(is_char(c, char_host) && c != '.' ? c : '?');
    }
    text.push_back('.');
  }
  if (has_failed_) return {};
  if (end != 0) position_ = end;
  if (text.size() > 1) text.pop_back();
  return text.empty() ? "." : text;
}

}  // namespace detail

/// The SRV records in a reply of the DNS, at most `max_srv_records`; none where the name does not
/// exist, or has none. Records whose target cannot be a host's name are left out. Whether the reply
/// belongs to the question is for the resolver to see, which also follows aliases: the owners'
/// names are not looked at. Error: `bad_dns_answer`, with the offset where it went wrong.
inline Result<std::vector<SrvRecord>> parse_srv_answer(std::string_view octets) {
  constexpr std::uint16_t is_response = 0x8000;
  constexpr std::uint16_t response_code = 0x000f;
  constexpr std::uint16_t no_such_name = 3;
  constexpr std::uint16_t type_srv = 33;
  constexpr std::uint16_t class_internet = 1;
  const auto failed_at = [](std::size_t offset) {
    return Error(ErrorCode::bad_dns_answer, static_cast<std::int32_t>(offset));
  };

  detail::DnsReader reader(octets);
  reader.skip(2);  // ID
  const std::uint16_t flags = reader.number_16();
  std::size_t questions = reader.number_16();
  std::size_t answers = reader.number_16();
  reader.skip(4);  // how many there are in the sections that are not read
  const unsigned code = flags & response_code;
  if (reader.has_failed() || !(flags & is_response)) return failed_at(0);
  std::vector<SrvRecord> records;
  if (code == no_such_name) return records;
  if (code != 0) return failed_at(2);

  for (; questions > 0 && !reader.has_failed(); --questions) {
    reader.skip_name();
    reader.skip(4);  // QTYPE, QCLASS
  }
  for (; answers > 0 && records.size() < max_srv_records && !reader.has_failed(); --answers) {
    reader.skip_name();
    const std::uint16_t type = reader.number_16();
    const std::uint16_t record_class = reader.number_16();
    reader.skip(4);  // TTL
    const std::size_t size = reader.number_16();
    const std::size_t begin = reader.position();
    if (type != type_srv || record_class != class_internet) {
      reader.skip(size);
      continue;
    }
    SrvRecord record;
    record.priority = reader.number_16();
    record.weight = reader.number_16();
    record.port = reader.number_16();
    record.target = reader.name();
    if (reader.position() - begin != size) return failed_at(begin);
    if (all_of_class(record.target, char_host)) records.push_back(std::move(record));
  }
  if (reader.has_failed()) return failed_at(reader.position());
  return records;
}

// ---- from a URI to its next hops ---------------------------------------------------------------

namespace detail {

/// What a URI says about where to go.
struct LocateTarget {
  std::string host;
  IpAddress ip;            ///< of a numeric host
  std::uint16_t port = 0;  ///< 0 where none is written
  std::optional<Transport> transport;
};

inline constexpr std::uint16_t default_sip_port = 5060;

/// A host that may be given to the resolver. Its last label is not a number: RFC 3261 25.1 has it
/// begin with a letter, and the system's resolver would take "127.1" and "0x7f.1" for addresses.
/// Nothing stricter, for names of containers begin with digits.
inline bool is_host_name(std::string_view host) {
  if (host.size() > max_host_text || !all_of_class(host, char_host)) return false;
  if (host.back() == '.') host.remove_suffix(1);
  std::string_view label = host.substr(host.rfind('.') + 1);  // all of it where there is no dot
  if (label.empty() || all_of_class(label, char_digit)) return false;
  if (label.size() < 2 || label[0] != '0' || to_lower(label[1]) != 'x') return true;
  return skip_class(label, char_hex, 2) != label.size();
}

/// RFC 3263 4: TARGET is the value of maddr, or else the host.
inline Result<LocateTarget> locate_target(const UriView& uri) {
  if (uri.scheme != UriScheme::sip) return ErrorCode::unsupported_scheme;
  LocateTarget target;
  if (const auto name = uri.parameter("transport")) {
    target.transport = parse_transport(*name);
    if (!target.transport) return ErrorCode::unsupported_transport;
  }
  const std::string_view host = uri.parameter("maddr").value_or(uri.host);
  target.port = uri.port;
  if (const auto ip = parse_ip(host)) {
    target.ip = *ip;
  } else if (is_host_name(host)) {
    target.host = host;
  } else {
    return ErrorCode::bad_host;
  }
  return target;
}

/// One search for next hops. It lives in the handlers that NameService holds, and so ends with it.
class LocateRun : public std::enable_shared_from_this<LocateRun> {
 public:
  LocateRun(LocateTarget target, NameService& names, Random& random, LocateHandler done)
      : target_(std::move(target)),
        names_(names),
        random_(next_key(random)),  // its own, for the caller's may be gone when answers come
        done_(std::move(done)) {}

  void start() {
    // A name without dot is one of this network or machine: the system's resolver completes it, or
    // finds it in a file, where SRV records do not stand.
    if (target_.port != 0 || target_.host.find('.') == std::string::npos) return ask_host();
    ask_srv(target_.transport.value_or(Transport::udp));
  }

 private:
  /// A host whose addresses are asked for, and what came of it.
  struct Server {
    std::string host;
    std::uint16_t port;
    std::vector<IpAddress> addresses;
    Error error;
  };

  void ask_srv(Transport transport) {
    transport_ = transport;
    std::string name("_sip._");
    name.append(transport_parameter(transport)).append(".").append(target_.host);
    names_.look_up_srv(
        name, [self = shared_from_this()](Error error, const std::vector<SrvRecord>& records) {
          self->on_srv(error, records);
        });
  }
  void on_srv(Error error, const std::vector<SrvRecord>& records);
  /// The host itself, at its port or the default one (RFC 3263 4.2).
  void ask_host() {
    transport_ = target_.transport.value_or(Transport::udp);
    servers_.push_back({target_.host, target_.port != 0 ? target_.port : default_sip_port, {}, {}});
    ask_addresses();
  }
  void ask_addresses();
  void finish();

  LocateTarget target_;
  NameService& names_;  ///< there whenever one of its handlers is called
  Random random_;
  LocateHandler done_;
  Transport transport_ = Transport::udp;
  bool udp_is_declined_ = false;
  std::vector<Server> servers_;  ///< in the order to be tried
  std::size_t waiting_ = 0;      ///< answers about addresses that are still to come
};

/// RFC 3263 4.1 has a client without NAPTR records ask for the SRV records of each transport it
/// speaks, and use whichever it likes of those that exist. UDP is the one we like: a domain without
/// any records would get UDP, too.
inline void LocateRun::on_srv(Error error, const std::vector<SrvRecord>& records) {
  std::vector<SrvRecord> usable;
  for (const SrvRecord& record : records) {
    if (is_host_name(record.target) && record.port != 0) usable.push_back(record);
  }
  if (!usable.empty()) {
    order_srv(usable, random_);
    if (usable.size() > max_srv_targets) usable.resize(max_srv_targets);
    for (SrvRecord& record : usable) {
      servers_.push_back({std::move(record.target), record.port, {}, {}});
    }
    return ask_addresses();
  }
  // A resolver that fails or knows no SRV would only make us wait again for TCP. The host's address
  // is often in a file, or known to another service than the DNS, so that is still tried.
  const bool is_declined = !error && !records.empty();  // "." says so (RFC 2782, Target)
  if (!error && !target_.transport && transport_ == Transport::udp) {
    udp_is_declined_ = is_declined;
    return ask_srv(Transport::tcp);
  }
  if (is_declined || udp_is_declined_) return done_(ErrorCode::unsupported_transport, {});
  ask_host();
}

inline void LocateRun::ask_addresses() {
  waiting_ = servers_.size();
  for (std::size_t i = 0; i < servers_.size(); ++i) {
    names_.look_up_addresses(
        servers_[i].host,
        [self = shared_from_this(), i](Error error, const std::vector<IpAddress>& addresses) {
          self->servers_[i].error = error;
          self->servers_[i].addresses = addresses;
          if (--self->waiting_ == 0) self->finish();
        });
  }
}

inline void LocateRun::finish() {
  std::vector<Flow> hops;
  Error error = ErrorCode::unknown_host;
  for (const Server& server : servers_) {
    if (server.error) error = server.error;
    for (const IpAddress& ip : server.addresses) {
      Flow hop;
      hop.transport = transport_;
      hop.remote.ip = ip;
      hop.remote.port = server.port;
      // 0.0.0.0 stands in filtering resolvers' answers and would mean this very machine.
      if (ip.is_unspecified() || hops.size() >= max_next_hops) continue;
      if (std::find(hops.begin(), hops.end(), hop) == hops.end()) hops.push_back(hop);
    }
  }
  if (!hops.empty()) error = {};
  done_(error, std::move(hops));
}

}  // namespace detail

/// Finds the next hops for a request to `uri`, which may be the Request-URI, a Route or that of an
/// outbound proxy (RFC 3263 4). For a numeric host `done` is called from inside, so that sending to
/// an address stays one step; for a name it is called later, unless `names` is closed before.
/// `names` may be null and then only numeric hosts are located. `uri` and `random` are needed
/// during the call only.
///
/// Errors now, after which `done` is not called: `unsupported_scheme` for all but sip;
/// `unsupported_transport`; `bad_host`; `bad_address` for a name without `names`. Errors later:
/// `unknown_host`; `unsupported_transport` where the domain declares that it offers none of ours;
/// what `names` says.
inline Error locate(const UriView& uri, NameService* names, Random& random, LocateHandler done) {
  auto target = detail::locate_target(uri);
  if (!target) return target.error();
  if (target->ip) {
    Flow hop;
    hop.transport = target->transport.value_or(Transport::udp);
    hop.remote.ip = target->ip;
    hop.remote.port = target->port != 0 ? target->port : detail::default_sip_port;
    done({}, {hop});
    return {};
  }
  if (names == nullptr) return ErrorCode::bad_address;
  std::make_shared<detail::LocateRun>(std::move(*target), *names, random, std::move(done))->start();
  return {};
}

}  // namespace sipmsg

// ========================================== agent.hpp ===========================================

// agent: a user agent for messages, client and server in one, without sockets and without clock.
//
// RFC 3261 8 and RFC 3428: `send` makes a MESSAGE, finds where it goes, tries one way after the
// other (RFC 3263 4.3, RFC 3261 18.1.1), answers challenges, and reports exactly once what became
// of it. Whatever comes in is checked (RFC 3261 8.2) and handed once to one handler, with a key to
// answer it by; who asked to be told of its delivery is told (RFC 5438). Endpoint puts it on a
// loop; tests drive it in virtual time. Left out on purpose: dialogs, for a MESSAGE never makes one
// (RFC 3428 4), and one that names a dialog is delivered like any other; following redirections,
// which is the application's to decide; remembering that a server was down.

namespace sipmsg {

struct AgentOptions {
  TransactionOptions transactions;
  std::string user_agent = "sipmsg/" SIPMSG_VERSION;
  /// The media types that are taken in a MESSAGE: "text/plain", "text/*". Empty: all. Others are
  /// refused with 415 (RFC 3261 8.2.3).
  std::vector<std::string> accept;
  /// Tells senders who ask for it in a message/cpim that their message was delivered, or refused,
  /// when it is replied to (RFC 5438). Only a sender whose From in the envelope is that of the
  /// request is told, so that nobody has us write to others.
  bool delivery_notices = false;
  /// The account that answers challenges to those.
  std::shared_ptr<Login> login;
  /// Seconds since 1970, for those. Null: they carry the date of the message they are about.
  std::uint64_t (*unix_time_s)() = nullptr;
  /// Looks up hosts that are names; must be there as long as the agent. Null: hosts must be
  /// numeric.
  NameService* names = nullptr;
};

/// Legal inside the callbacks: `send`, `reply`, `close`, `on_message`, `advance`. Not legal:
/// destroying the Agent.
class Agent final : public TransactionUser {
 public:
  /// The request is valid during the call; answer it with `reply`, now or later, but soon: its
  /// sender waits 64*T1 (32 s) at most, and a person waits for less.
  using RequestHandler = std::function<void(const MessageView&, const Flow&, ServerTransaction)>;

  /// `secret`: 16 octets nobody else knows, fresh for each agent. The sink must outlive this.
  Agent(AgentOptions options, Sink& sink, const SipHashKey& secret)
      : Agent(std::move(options), sink, Random(secret)) {}
  /// Closes: whoever waits is told `closed`, from in here. What callbacks use must outlive this, or
  /// `close` be called first.
  ~Agent() { close(); }
  Agent(const Agent&) = delete;
  Agent& operator=(const Agent&) = delete;

  /// Called for each MESSAGE that comes in. Without a handler they are refused with 405. The
  /// handler may replace itself.
  void on_message(RequestHandler handler) {
    on_message_ = handler ? std::make_shared<RequestHandler>(std::move(handler)) : nullptr;
  }

  /// Sends a request. An error now means that nothing was sent and no callback follows; otherwise
  /// `done` is called exactly once, later, never from inside this call.
  ///
  /// Where there are several servers to send it to, the next one is tried when one cannot be
  /// reached, says nothing at all, or answers 503. To whom it comes twice that way, it is the same
  /// by Call-ID, CSeq and From tag. Beyond 1300 octets it goes over TCP, and over UDP only where no
  /// TCP connection can be made (RFC 3261 18.1.1).
  ///
  /// RFC 3428 8 asks of the application to have at most one MESSAGE on its way to each recipient.
  ///
  /// Errors: what parse_name_addr and parse_uri find wrong in `to`, `from`, `request_uri` and
  /// `proxy`; `bad_uri` for a URI that asks for another method or for headers (RFC 3261 19.1.5),
  /// and for a bad `contact_user`; `unsupported_scheme` for sips, which needs TLS, and for all but
  /// sip where nothing else says where to send to; `unsupported_transport`; `bad_address` for a
  /// host that is a name, without `names`; `bad_method`, `bad_token`, `bad_call_id`,
  /// `bad_media_type`; `forbidden_octet` for CR, LF and NUL; `duplicate_header` for one that is
  /// written here; `bad_argument` for INVITE, ACK, and Contact in a MESSAGE; `too_large`;
  /// `limit_reached`; `closed`; and what the sink says. Where a name has to be looked up, the last
  /// ones come with the callback, as does what the look-up says: `unknown_host`, mostly.
  Error send(Outgoing outgoing, std::uint64_t now_ms, SentHandler done);

  /// Answers a request, with an own phrase or the usual one, and with further headers. An answer
  /// 405 or 501 says which methods are allowed, 415 which types are accepted.
  ///
  /// Errors: `gone` where it was answered before, or its sender has given up; `bad_argument` for
  /// codes that are no final answer, and for 408, which RFC 4320 forbids; `forbidden_octet`,
  /// `bad_token`; `duplicate_header` for a header that is written here; or what the sink says, and
  /// then the sender's retransmission gets the answer.
  Error reply(ServerTransaction server, int code, std::string_view phrase, const Headers& headers,
              std::uint64_t now_ms);
  Error reply(ServerTransaction server, int code, std::string_view phrase, std::uint64_t now_ms) {
    return reply(server, code, phrase, Headers(), now_ms);
  }
  /// The same from inside a callback, in whose instant it is.
  Error reply(ServerTransaction server, int code, std::string_view phrase = {}) {
    return reply(server, code, phrase, Headers(), now_ms_);
  }

  /// Has a NAT, and over TCP the peer, remember the way to us: CR LF CR LF over TCP (RFC 5626
  /// 3.5.1), an empty datagram over UDP, which no server takes for a message that is cut short.
  /// Error: what the sink says.
  Error send_keepalive(const Flow& flow) {
    return sink_.send(flow, Slices(flow.transport == Transport::udp ? "" : "\r\n\r\n"));
  }

  /// A fresh random token of 64 bits, for Call-IDs and the like.
  std::string random_token() {
    std::string token(token_size, '?');
    random_.write_token(&token[0], token.size());
    return token;
  }
  /// A fresh random number.
  std::uint64_t random_number() { return random_.next(); }

  /// One message as it arrived; `error` is what MessageView::parse said of it.
  void receive(const MessageView& message, Error error, const Flow& from, std::uint64_t now_ms) {
    now_ms_ = now_ms;
    layer_.receive(message, error, from, now_ms);
  }
  /// A TCP connection is gone: what waits for an answer over it is told `error`, or sent elsewhere.
  void connection_closed(std::uint32_t socket, Error error, std::uint64_t now_ms) {
    now_ms_ = now_ms;
    layer_.connection_closed(socket, error, now_ms);
  }
  /// A TCP connection could not be made: what has to go over UDP then, does.
  void connection_failed(std::uint32_t socket, Error error, std::uint64_t now_ms) {
    never_connected_ = true;
    connection_closed(socket, error, now_ms);
    never_connected_ = false;
  }
  /// Datagrams do not reach that peer: what waits for its answer is told `error`, or sent elsewhere
  /// (RFC 3261 18.4).
  void unreachable(const SocketAddress& peer, Error error, std::uint64_t now_ms);
  /// Does what is due, look-ups that have been answered included.
  void advance(std::uint64_t now_ms);
  /// When `advance` is to be called next; nothing where nothing waits and nothing is remembered.
  /// The answer to a look-up makes it sooner.
  std::optional<std::uint64_t> next_deadline() const;

  /// Ends every request that has no answer yet: their callbacks get `closed`. From now on nothing
  /// is sent, and what comes in is dropped.
  void close();
  bool is_closed() const { return is_closed_; }
  /// The instant of the last call that told the time; inside a callback, that of the callback.
  std::uint64_t now_ms() const { return now_ms_; }

  /// How many requests of ours wait for an answer.
  std::size_t waiting() const { return sent_.size(); }
  /// How many deadlines are remembered, some of them of requests that have ended.
  std::size_t kept_deadlines() const { return deadlines_.size(); }
  /// How many transactions there are, those among them that are only there to absorb what is late.
  std::size_t transactions() const { return layer_.size(); }
  /// Octets held by kept messages.
  std::size_t kept_size() const { return layer_.kept_size(); }

 private:
  /// Who asked to be told what becomes of a message.
  struct Notice {
    std::string envelope;  ///< the headers of the message/cpim, and those of what is enclosed
    std::string sender;    ///< a URI
    std::string recipient;
    Flow flow;
  };
  /// A MESSAGE we received, known by what it has in common on all ways, and its answer.
  struct Seen {
    std::uint64_t hash = 0;
    Timer end;
    int code = 0;  ///< 0: not answered yet
    std::string phrase;
    Headers headers;
    std::unique_ptr<Notice> notice;
  };
  /// A request that waits for its answer.
  struct Sent {
    SentHandler done;
    Outgoing request;  ///< its defaults filled in, To and From as they stand in the header
    std::uint32_t cseq = 0;
    std::vector<std::string> answered;  ///< the realms whose challenges were answered
    std::vector<Flow> hops;             ///< the ways to try
    std::size_t hop = 0;                ///< the one that is being tried
    ClientTransaction client;
    Error error;  ///< of the look-up
    bool is_located = false;
    bool is_by_size = false;     ///< it goes over TCP only because it is large
    bool has_no_stream = false;  ///< that cannot be done with this hop

    /// The next server begins anew: that it does not know the nonce of the last one says nothing of
    /// the password.
    void leave_hop() {
      ++hop;
      has_no_stream = false;
      answered.clear();
    }
  };
  struct Deadline {
    std::uint64_t at_ms;
    Handle sent;
  };
  static constexpr std::size_t token_size = 13;  // 64 bits of chance (RFC 3261 19.3)
  static constexpr std::size_t datagram_limit = 1300;
  static constexpr std::size_t scratch_size = max_message_size;
  static constexpr std::string_view anonymous = "Anonymous <sip:anonymous@anonymous.invalid>";

  Agent(AgentOptions options, Sink& sink, Random keys)
      : options_(std::move(options)),
        sink_(sink),
        random_(detail::next_key(keys)),
        tag_key_(detail::next_key(keys)),
        seen_key_(detail::next_key(keys)),
        seen_ends_(timers_.queue(
            2 * (std::uint64_t{64} * options_.transactions.t1_ms + options_.transactions.t4_ms))),
        layer_(options_.transactions, sink, *this, detail::next_key(keys)) {}

  // What we send.
  Error complete(Outgoing& outgoing);
  Error find_next_hops(Handle handle);
  Error try_hops(Handle handle);
  bool try_elsewhere(Handle handle);
  Error transmit(Handle handle);
  Result<std::string> authorize(const Outgoing& request);
  Result<std::string_view> write(const Sent& sent, Flow& flow, std::string_view branch,
                                 std::string_view credentials);
  void write_contact(Output& out, const Sent& sent, Transport transport,
                     std::string_view sent_by) const;
  Error answer_challenge(Handle handle, const MessageView& response, bool& is_answered);
  std::uint32_t next_cseq() { return cseq_ = (cseq_ + 1) & 0x7fffffff; }
  inline void on_response(ClientTransaction client, const MessageView& response,
                          const Flow& from) override;
  inline void on_failure(ClientTransaction client, Error error) override;
  void finish(Handle handle, const Outcome& outcome);
  void finish(Handle handle, Error error) {
    Outcome outcome;
    outcome.error = error;
    finish(handle, outcome);
  }
  void add_deadline(std::uint64_t at_ms, Handle handle);
  void drop_stale_deadlines();
  void end_what_is_due();
  void send_what_is_located();

  // What we receive.
  inline void on_request(ServerTransaction server, const MessageView& request,
                         const Flow& from) override;
  void serve(ServerTransaction server, const MessageView& request, const Flow& from);
  std::uint64_t seen_hash(const MessageView& request) const;
  bool is_merged(ServerTransaction server, const MessageView& request, const Flow& from);
  bool accepts(const MediaType& media) const;
  int refuse_content(const MessageView& request, Headers& headers) const;
  std::string accepted_types() const;
  void answer(ServerTransaction server, int code, const Headers& headers = {}) {
    static_cast<void>(respond(server, code, {}, headers));
  }
  Error respond(ServerTransaction server, int code, std::string_view phrase,
                const Headers& headers);
  void note_answer(Handle handle, int code, std::string_view phrase, const Headers& headers);
  std::unique_ptr<Notice> make_notice(const MessageView& request, const Flow& from) const;
  void send_notice(const Notice& notice, int code);
  std::string_view allowed_methods() const { return on_message_ ? "MESSAGE, OPTIONS" : "OPTIONS"; }
  void forget_seen(std::uint32_t index);

  AgentOptions options_;
  Sink& sink_;
  Random random_;
  SipHashKey tag_key_;
  SipHashKey seen_key_;
  std::shared_ptr<RequestHandler> on_message_;
  Slab<Sent> sent_;
  std::vector<Handle> located_;      ///< whose look-up has ended
  std::vector<Deadline> deadlines_;  ///< a heap, the soonest in front
  /// Looked at by look-ups that end when this is gone.
  std::shared_ptr<bool> is_alive_ = std::make_shared<bool>(true);
  Timers timers_;
  TimerQueue& seen_ends_;
  Slab<Seen> seen_;
  HashIndex seen_index_;
  std::unique_ptr<char[]> scratch_{new char[scratch_size]};  ///< untouched until it is needed
  std::uint32_t cseq_ = 0;
  std::uint64_t now_ms_ = 0;
  bool is_closed_ = false;
  bool is_locating_ = false;      ///< what is found now is found from inside `send`
  bool never_connected_ = false;  ///< the connection that is being reported was never there
  TransactionLayer layer_;        ///< the last, so that it goes first
};

// Sending.

namespace detail {

inline bool has_header(const Headers& headers, std::string_view name) {
  for (const auto& header : headers) {
    const HeaderId id = header_id(header.first);
    if (id == HeaderId::other ? equal_ignoring_case(header.first, name) : id == header_id(name)) {
      return true;
    }
  }
  return false;
}

/// RFC 3428 4: a MESSAGE has no Contact.
inline Error check_contact_user(const Outgoing& outgoing) {
  if (outgoing.contact_user.empty()) return {};
  if (outgoing.method == "MESSAGE") return ErrorCode::bad_argument;
  if (has_header(outgoing.headers, "Contact")) return ErrorCode::duplicate_header;
  if (const Error error = check_line(outgoing.contact_user)) return error;
  const std::string text = "sip:" + outgoing.contact_user + "@host.invalid";
  const auto uri = parse_uri(text);
  if (!uri) return uri.error();
  return uri->user == outgoing.contact_user ? Error() : Error(ErrorCode::bad_uri);
}

}  // namespace detail

/// Checks a request and fills in its defaults (RFC 3261 8.1.1).
inline Error Agent::complete(Outgoing& outgoing) {
  if (!is_token(outgoing.method)) return ErrorCode::bad_method;
  const auto to = detail::parse_party(outgoing.to);
  if (!to) return to.error();
  const auto from =
      detail::parse_party(outgoing.from.empty() ? anonymous : std::string_view(outgoing.from));
  if (!from) return from.error();
  if (outgoing.request_uri.empty()) outgoing.request_uri = to->uri.text;
  const auto uri = detail::parse_plain_uri(outgoing.request_uri);
  if (!uri) return uri.error();
  if (uri->scheme == UriScheme::sips) return ErrorCode::unsupported_scheme;
  if (!outgoing.call_id.empty() && !detail::is_call_id(outgoing.call_id)) {
    return ErrorCode::bad_call_id;
  }
  if (!outgoing.body.empty()) {  // RFC 3261 20.15: a body has a Content-Type
    if (const Error error = detail::check_line(outgoing.content_type)) return error;
    const auto type = parse_media_type(outgoing.content_type);
    if (!type) return type.error();
  }
  if (const Error error = detail::check_headers(outgoing.headers, outgoing.method != "MESSAGE")) {
    return error;
  }
  if (const Error error = detail::check_contact_user(outgoing)) return error;
  std::string to_text = detail::party_text(*to);  // before what it is made of goes
  std::string from_text = detail::party_text(*from);
  outgoing.to = std::move(to_text);
  outgoing.from = std::move(from_text);
  if (outgoing.call_id.empty()) outgoing.call_id = random_token();
  return {};
}

inline Error Agent::send(Outgoing outgoing, std::uint64_t now_ms, SentHandler done) {
  now_ms_ = now_ms;
  if (const Error error = complete(outgoing)) return error;
  if (is_closed_) return ErrorCode::closed;
  if (sent_.size() >= options_.transactions.max_transactions) return ErrorCode::limit_reached;
  const Handle handle = sent_.create();
  Sent& sent = *sent_.get(handle);
  sent.request = std::move(outgoing);
  sent.cseq = next_cseq();
  Error error = find_next_hops(handle);
  if (!error && sent.is_located) error = try_hops(handle);
  if (error) {
    sent_.destroy(handle);
    return error;
  }
  sent.done = std::move(done);
  if (sent.request.deadline_ms != 0) add_deadline(now_ms + sent.request.deadline_ms, handle);
  return {};
}

/// RFC 3261 8.1.2. A numeric host is found at once; a name later, and then `advance` goes on.
inline Error Agent::find_next_hops(Handle handle) {
  Sent& sent = *sent_.get(handle);
  if (sent.request.next_hop) {
    sent.hops = {*sent.request.next_hop};
    sent.is_located = true;
    return {};
  }
  const auto uri =
      parse_uri(sent.request.proxy.empty() ? sent.request.request_uri : sent.request.proxy);
  if (!uri) return uri.error();
  is_locating_ = true;
  const Error error = locate(*uri, options_.names, random_,
                             [this, alive = std::weak_ptr<bool>(is_alive_), handle](
                                 Error failure, std::vector<Flow> hops) {
                               if (alive.expired()) return;
                               Sent* found = sent_.get(handle);
                               if (found == nullptr) return;  // its deadline has passed
                               found->is_located = true;
                               found->error = failure;
                               found->hops = std::move(hops);
                               if (!is_locating_) located_.push_back(handle);
                             });
  is_locating_ = false;
  return error;
}

/// Sends to the first next hop, from the one whose turn it is, that takes it.
inline Error Agent::try_hops(Handle handle) {
  Sent& sent = *sent_.get(handle);
  Error error = sent.error;
  for (; sent.hop < sent.hops.size(); sent.leave_hop()) {
    error = transmit(handle);
    if (!error) return {};
  }
  return error;
}

/// The next hop has failed. RFC 3263 4.3: the same request goes to the next one, with a branch of
/// its own and otherwise equal, so that who gets it twice knows it again. RFC 3261 18.1.1: what
/// goes over TCP only for its size goes to the same one over UDP, where there was no connection;
/// otherwise it may have arrived. False where there is no other way.
inline bool Agent::try_elsewhere(Handle handle) {
  Sent& sent = *sent_.get(handle);
  sent.has_no_stream = sent.is_by_size && never_connected_;
  if (!sent.has_no_stream) sent.leave_hop();
  return sent.hop < sent.hops.size() && !try_hops(handle);
}

/// Writes a request with a branch of its own, and starts its transaction.
inline Error Agent::transmit(Handle handle) {
  Sent& sent = *sent_.get(handle);
  const std::string branch = "z9hG4bK" + random_token();
  const auto start = [&](const Flow& flow, std::string_view octets) -> Error {
    const auto client = layer_.send(flow, branch, sent.request.method, Slices(octets),
                                    pack_handle(handle), now_ms_);
    if (client) sent.client = *client;
    return client.error();
  };
  const auto credentials = authorize(sent.request);
  if (!credentials) return credentials.error();
  Flow flow = sent.hops[sent.hop];
  auto octets = write(sent, flow, branch, *credentials);
  // A way that is given with its socket is not left for one that may not be there.
  const bool may_switch = sent.hops[sent.hop].socket == 0 || sink_.has_stream_to(flow.remote);
  sent.is_by_size = octets && octets->size() > datagram_limit && may_switch &&
                    flow.transport == Transport::udp && !sent.has_no_stream;
  if (sent.is_by_size) {
    Flow stream;
    stream.transport = Transport::tcp;
    stream.remote = flow.remote;
    octets = write(sent, stream, branch, *credentials);
    if (octets && !start(stream, *octets)) return {};
    sent.is_by_size = false;
    sent.has_no_stream = true;
    octets = write(sent, flow, branch, *credentials);
  }
  return octets ? start(flow, *octets) : octets.error();
}

/// Authorization and Proxy-Authorization, as lines; perhaps none. Once for each time it is sent: a
/// request may be written for UDP and again for TCP, and RFC 2617 3.2.2 counts those that are sent.
inline Result<std::string> Agent::authorize(const Outgoing& request) {
  if (!request.login) return std::string();
  Output out(scratch_.get(), scratch_size);
  request.login->write(out, request.method, request.request_uri, request.body);
  if (out.error().code == ErrorCode::no_room) return ErrorCode::too_large;
  if (out.error()) return out.error();
  return std::string(out.written());
}

inline Result<std::string_view> Agent::write(const Sent& sent, Flow& flow, std::string_view branch,
                                             std::string_view credentials) {
  const auto sent_by = sink_.sent_by(flow);
  if (!sent_by) return sent_by.error();
  const Outgoing& request = sent.request;
  std::array<char, 16> from_tag;
  write_hex(SipHash::of(tag_key_, request.call_id), from_tag.data());
  RequestStart start;
  start.method = request.method;
  start.request_uri = request.request_uri;
  start.transport = flow.transport;
  start.sent_by = *sent_by;
  start.branch = branch;
  start.from = request.from;
  start.from_tag = {from_tag.data(), from_tag.size()};
  start.to = request.to;
  start.call_id = request.call_id;
  start.cseq = sent.cseq;
  Output out(scratch_.get(), scratch_size);
  begin_request(out, start);
  if (!request.contact_user.empty()) write_contact(out, sent, flow.transport, *sent_by);
  for (const auto& header : request.headers) write_header(out, header.first, header.second);
  out.raw(credentials);
  write_header(out, HeaderId::user_agent, options_.user_agent);
  write_body(out, request.body.empty() ? std::string_view() : request.content_type, request.body);
  if (out.error().code == ErrorCode::no_room) return ErrorCode::too_large;
  if (out.error()) return out.error();
  return out.written();
}

/// Where we are reached the way this request goes. For TCP that says so, or the answer would be to
/// send datagrams (RFC 3261 8.1.1.8).
inline void Agent::write_contact(Output& out, const Sent& sent, Transport transport,
                                 std::string_view sent_by) const {
  out.raw("Contact: <sip:").word(sent.request.contact_user).raw("@").word(sent_by);
  out.raw(transport == Transport::tcp ? ";transport=tcp>\r\n" : ">\r\n");
}

/// RFC 3261 22.2: the same request once more, with credentials, Call-ID and tag as before and the
/// next CSeq. `is_answered` says whether it is on its way; then the first answer is nobody's.
inline Error Agent::answer_challenge(Handle handle, const MessageView& response,
                                     bool& is_answered) {
  Sent& sent = *sent_.get(handle);
  const auto& login = sent.request.login;
  if (!login || !login->take(response, sent.answered, random_token())) return {};
  sent.cseq = next_cseq();
  const Error error = transmit(handle);
  is_answered = !error;
  return error;
}

inline void Agent::on_response(ClientTransaction client, const MessageView& response,
                               const Flow& from) {
  const int code = response.status_code();
  const Handle handle = unpack_handle(layer_.user_data(client));
  const Sent* sent = sent_.get(handle);
  if (code < 200 || sent == nullptr) return;
  if (code == 401 || code == 407) {
    bool is_answered = false;
    if (const Error error = answer_challenge(handle, response, is_answered)) {
      return finish(handle, error);
    }
    if (is_answered) return;
  }
  if (const auto& login = sent->request.login) login->take_next_nonce(response, random_token());
  if (code == 503 && try_elsewhere(handle)) return;
  Outcome outcome;
  outcome.code = code;
  outcome.reason = std::string(response.reason_phrase());
  outcome.response = &response;
  outcome.flow = from;
  finish(handle, outcome);
}

inline void Agent::on_failure(ClientTransaction client, Error error) {
  const Handle handle = unpack_handle(layer_.user_data(client));
  if (sent_.get(handle) == nullptr) return;
  // RFC 3263 4.3: a server that has answered 100 is there, and has passed the message on, perhaps:
  // from the next one its recipient would get it twice.
  const bool has_server = error.code == ErrorCode::timeout && layer_.has_response(client);
  if (is_closed_ || has_server || !try_elsewhere(handle)) finish(handle, error);
}

inline void Agent::unreachable(const SocketAddress& peer, Error error, std::uint64_t now_ms) {
  now_ms_ = now_ms;
  std::vector<Handle> concerned;  // first, for what callbacks send now is not
  sent_.for_each([&](Handle handle, const Sent& sent) {
    if (!sent.client || sent.is_by_size) return;
    const Flow& hop = sent.hops[sent.hop];
    if (hop.transport == Transport::udp && hop.remote == peer) concerned.push_back(handle);
  });
  for (const Handle handle : concerned) {
    const Sent* sent = sent_.get(handle);
    if (sent == nullptr) continue;
    layer_.forget(sent->client);
    if (!try_elsewhere(handle)) finish(handle, error);
  }
}

inline void Agent::finish(Handle handle, const Outcome& outcome) {
  Sent* sent = sent_.get(handle);
  if (sent == nullptr) return;
  const SentHandler done = std::move(sent->done);
  sent_.destroy(handle);
  drop_stale_deadlines();
  if (done) done(outcome);
}

inline void Agent::send_what_is_located() {
  for (const Handle handle : std::exchange(located_, {})) {
    if (sent_.get(handle) == nullptr) continue;
    if (const Error error = try_hops(handle)) finish(handle, error);
  }
}

// Deadlines may be of any length, so that queues by duration do not suit them.

inline void Agent::add_deadline(std::uint64_t at_ms, Handle handle) {
  const auto is_later = [](const Deadline& a, const Deadline& b) { return a.at_ms > b.at_ms; };
  // Of what has ended only the soonest are taken out at once; the rest must not pile up.
  if (deadlines_.size() > 64 && deadlines_.size() > 2 * sent_.size()) {
    const auto is_over = [this](const Deadline& entry) { return sent_.get(entry.sent) == nullptr; };
    deadlines_.erase(std::remove_if(deadlines_.begin(), deadlines_.end(), is_over),
                     deadlines_.end());
    std::make_heap(deadlines_.begin(), deadlines_.end(), is_later);
  }
  deadlines_.push_back({at_ms, handle});
  std::push_heap(deadlines_.begin(), deadlines_.end(), is_later);
}

inline void Agent::drop_stale_deadlines() {
  const auto is_later = [](const Deadline& a, const Deadline& b) { return a.at_ms > b.at_ms; };
  while (!deadlines_.empty() && sent_.get(deadlines_.front().sent) == nullptr) {
    std::pop_heap(deadlines_.begin(), deadlines_.end(), is_later);
    deadlines_.pop_back();
  }
}

inline void Agent::end_what_is_due() {
  while (!deadlines_.empty() && deadlines_.front().at_ms <= now_ms_) {
    const Handle handle = deadlines_.front().sent;
    if (const Sent* sent = sent_.get(handle)) layer_.forget(sent->client);
    finish(handle, ErrorCode::timeout);  // takes it out of the heap, too
  }
}

// Receiving: RFC 3261 8.2, in the order of its steps.

inline void Agent::on_request(ServerTransaction server, const MessageView& request,
                              const Flow& from) {
  switch (request.method()) {
    case Method::message: return on_message_ ? serve(server, request, from) : answer(server, 405);
    case Method::options: return serve(server, request, from);
    // RFC 3261 9.2: only INVITE can be cancelled, and no INVITE is ever left unanswered here.
    case Method::cancel: return answer(server, layer_.find_cancelled(request, from) ? 200 : 481);
    default: return answer(server, 501);
  }
}

inline void Agent::serve(ServerTransaction server, const MessageView& request, const Flow& from) {
  const bool is_message = request.method() == Method::message;
  // 8.2.2.1. Which user the URI names is not asked: behind a proxy it is a contact of our own.
  if (request.request_uri()->scheme != UriScheme::sip) return answer(server, 416);
  if (is_message && is_merged(server, request, from)) return;
  if (request.has(HeaderId::require)) {  // 8.2.2.3: there is no extension that we know
    std::string tags;
    for (std::string_view tag : request.values(HeaderId::require)) {
      if (is_token(tag)) tags.append(tags.empty() ? "" : ", ").append(tag);
    }
    return answer(server, 420, {{"Unsupported", std::move(tags)}});
  }
  if (!is_message) {  // 11.2
    return answer(server, 200,
                  {{"Allow", std::string(allowed_methods())},
                   {"Accept", accepted_types()},
                   {"Accept-Encoding", "identity"},
                   {"Accept-Language", "*"},
                   {"Supported", ""}});  // 20.37: no extensions
  }
  Headers refusal;
  if (const int code = refuse_content(request, refusal)) return answer(server, code, refusal);
  const std::shared_ptr<RequestHandler> handler = on_message_;  // held: it may replace itself
  (*handler)(request, from, server);
}

/// Beyond From tag, Call-ID and CSeq, all of From and the body must be equal, too: there are phones
/// that make the same three when switched on in the same second.
inline std::uint64_t Agent::seen_hash(const MessageView& request) const {
  SipHash hasher(seen_key_);
  for (std::string_view part :
       {request.header(HeaderId::from), request.call_id(), request.header(HeaderId::cseq)}) {
    hasher.update(part);
    hasher.update(std::string_view("\0", 1));
  }
  hasher.update(request.body());
  return hasher.finish();
}

/// Whether the request came before by another way (RFC 3261 8.2.2.2), as one does that a proxy
/// sends to two bindings which both lead here, and one whose sender tries another server or
/// transport. It is not handed over again, and gets the answer the first one got; the sender must
/// learn what became of the message, whichever way is the one that works. While there is no answer
/// yet, it gets 482, as the RFC has it.
///
/// It is remembered for so long because a copy may be 64*T1 and T4 late at the proxy, which has
/// forgotten it by then and takes as long again to bring it here. Asked of a MESSAGE alone, for to
/// answer OPTIONS twice does no harm.
inline bool Agent::is_merged(ServerTransaction server, const MessageView& request,
                             const Flow& from) {
  if (!request.to()->tag().empty()) return false;
  const std::uint64_t hash = seen_hash(request);
  const std::uint32_t found =
      seen_index_.find(hash, [&](std::uint32_t index) { return seen_.at(index).hash == hash; });
  if (found != HashIndex::npos) {
    const Seen& first = seen_.at(found);
    const int code = first.code == 0 ? 482 : first.code;
    static_cast<void>(respond(server, code, first.phrase, first.headers));
    return true;
  }
  if (seen_.size() >= options_.transactions.max_transactions) return false;
  const Handle handle = seen_.create();
  Seen& seen = *seen_.get(handle);
  seen.hash = hash;
  seen.end.owner = handle.index;
  seen.notice = make_notice(request, from);
  seen_ends_.start(seen.end, now_ms_);
  seen_index_.insert(hash, handle.index);
  layer_.set_user_data(server, pack_handle(handle));
  return false;
}

inline void Agent::forget_seen(std::uint32_t index) {
  seen_index_.erase(seen_.at(index).hash, index);
  seen_.destroy(seen_.handle_of(index));
}

/// RFC 3261 8.2.3: the code to refuse the body with, and what would be taken; or 0. A body that
/// may be passed over is no reason, and neither is none.
inline int Agent::refuse_content(const MessageView& request, Headers& headers) const {
  if (request.body().empty()) return 0;
  const std::string_view disposition = request.header(HeaderId::content_disposition);
  const std::size_t parameters = std::min(disposition.find(';'), disposition.size());
  if (parameters < disposition.size()) {
    const auto handling = Parameters(disposition.substr(parameters + 1)).find("handling");
    if (handling && equal_ignoring_case(*handling, "optional")) return 0;
  }
  for (std::string_view encoding : request.values(HeaderId::content_encoding)) {
    if (equal_ignoring_case(encoding, "identity")) continue;
    headers = {{"Accept-Encoding", "identity"}};
    return 415;
  }
  if (options_.accept.empty()) return 0;
  // RFC 2045 5.2 has what has no type be text.
  const std::string_view type = request.header(HeaderId::content_type);
  const auto media = parse_media_type(type.empty() ? std::string_view("text/plain") : type);
  return media && accepts(*media) ? 0 : 415;
}

inline bool Agent::accepts(const MediaType& media) const {
  for (const std::string& accepted : options_.accept) {
    const auto pattern = parse_media_type(accepted);
    if (!pattern) continue;
    if (pattern->type != "*" && !equal_ignoring_case(pattern->type, media.type)) continue;
    if (pattern->subtype == "*" || equal_ignoring_case(pattern->subtype, media.subtype))
      return true;
  }
  return false;
}

inline std::string Agent::accepted_types() const {
  std::string types;
  for (const std::string& accepted : options_.accept) {
    types.append(types.empty() ? "" : ", ").append(accepted);
  }
  return types.empty() ? "*/*" : types;
}

// Answering.

inline Error Agent::reply(ServerTransaction server, int code, std::string_view phrase,
                          const Headers& headers, std::uint64_t now_ms) {
  now_ms_ = now_ms;
  if (const Error error = detail::check_headers(headers, code >= 300)) return error;
  if (detail::has_header(headers, "Server")) return ErrorCode::duplicate_header;
  return respond(server, code, phrase, headers);
}

inline Error Agent::respond(ServerTransaction server, int code, std::string_view phrase,
                            const Headers& headers) {
  if (code < 200 || code > 699) return ErrorCode::bad_argument;
  Output out(scratch_.get(), scratch_size);
  layer_.begin_response(server, code, phrase, out);
  if ((code == 405 || code == 501) && !detail::has_header(headers, "Allow")) {
    write_header(out, HeaderId::allow, allowed_methods());
  }
  if (code == 415 && !detail::has_header(headers, "Accept") &&
      !detail::has_header(headers, "Accept-Encoding")) {
    write_header(out, HeaderId::accept, accepted_types());
  }
  for (const auto& header : headers) write_header(out, header.first, header.second);
  write_header(out, HeaderId::server, options_.user_agent);
  write_body(out, {}, {});
  if (out.error()) return out.error();
  const Handle seen = unpack_handle(layer_.user_data(server));  // before the transaction goes
  const Error error = layer_.respond(server, code, Slices(out.written()), now_ms_);
  const bool is_answered = error.code != ErrorCode::gone && error.code != ErrorCode::bad_argument;
  if (is_answered) note_answer(seen, code, phrase, headers);
  return error;
}

/// Keeps the answer for those who bring the same message by another way.
inline void Agent::note_answer(Handle handle, int code, std::string_view phrase,
                               const Headers& headers) {
  Seen* seen = seen_.get(handle);
  if (seen == nullptr || seen->code != 0) return;
  seen->code = code;
  seen->phrase = phrase;
  seen->headers = headers;
  if (const std::unique_ptr<Notice> notice = std::move(seen->notice)) send_notice(*notice, code);
}

// Telling senders that their message was delivered (RFC 5438).

namespace detail {

/// Whether who is named in an envelope is who sent the request. There he may stand as im:bob@x or
/// pres:bob@x, which are the names of RFC 3860 and RFC 3859 for one who is sip:bob@x here.
inline bool is_same_user(std::string_view enveloped, const UriView& sender) {
  std::string text(enveloped);
  const std::size_t colon = std::min(text.find(':'), text.size());
  const std::string scheme = to_lower(enveloped.substr(0, colon));
  if (scheme == "im" || scheme == "pres") text.replace(0, colon, "sip");
  const auto uri = parse_uri(text);
  return uri && address_of_record(*uri) == address_of_record(sender);
}

}  // namespace detail

/// What is needed to tell the sender later; null where that is not asked for, or not to be done.
inline std::unique_ptr<Agent::Notice> Agent::make_notice(const MessageView& request,
                                                         const Flow& from) const {
  if (!options_.delivery_notices) return nullptr;
  const auto type = request.content_type();
  if (!type || !type->is("message", "cpim")) return nullptr;
  const auto content = read_content(request);
  if (!content || !content->cpim) return nullptr;
  const CpimMessage& cpim = *content->cpim;
  const bool is_asked = cpim.request.positive_delivery || cpim.request.negative_delivery;
  // RFC 5438 8.3: no notification of a notification, or two clients would go on for ever.
  if (!is_asked || content->kind == ContentKind::notification) return nullptr;
  if (cpim.message_id.empty() || cpim.to.empty()) return nullptr;
  const UriView sender = request.from()->uri;
  if (!detail::is_same_user(cpim.from.uri, sender)) return nullptr;
  auto notice = std::make_unique<Notice>();
  notice->envelope = request.body().substr(0, detail::offset_in(request.body(), cpim.content));
  notice->sender = sender.text;
  notice->recipient = request.to()->uri.text;
  notice->flow = from;
  return notice;
}

/// A MESSAGE of its own, back the way the other one came. What becomes of it is nobody's concern.
inline void Agent::send_notice(const Notice& notice, int code) {
  const auto received = parse_cpim(notice.envelope);
  if (!received) return;
  const bool is_delivered = code < 300;
  const NotificationRequest& asked = received->request;
  if (!(is_delivered ? asked.positive_delivery : asked.negative_delivery)) return;
  std::int64_t now_s = parse_date_time(received->date_time).value();
  if (options_.unix_time_s != nullptr) now_s = static_cast<std::int64_t>(options_.unix_time_s());
  std::string body(std::min<std::size_t>(2048 + 8 * notice.envelope.size(), max_message_size),
                   '\0');
  Output out(&body[0], body.size());
  write_notification_for(out, *received, NotificationType::delivery,
                         is_delivered ? NotificationStatus::delivered : NotificationStatus::failed,
                         random_token(), now_s);
  if (out.error()) return;
  body.resize(out.size());
  Outgoing outgoing;
  outgoing.to = notice.sender;
  outgoing.from = notice.recipient;
  outgoing.body = std::move(body);
  outgoing.content_type = cpim_media_type;
  outgoing.login = options_.login;
  outgoing.next_hop = notice.flow;
  static_cast<void>(send(std::move(outgoing), now_ms_, nullptr));
}

// Time, and the end of it.

inline void Agent::advance(std::uint64_t now_ms) {
  now_ms_ = now_ms;
  send_what_is_located();
  timers_.advance(now_ms, [this](const Timer& timer) { forget_seen(timer.owner); });
  layer_.advance(now_ms);
  end_what_is_due();
}

inline std::optional<std::uint64_t> Agent::next_deadline() const {
  if (!located_.empty()) return now_ms_;
  std::optional<std::uint64_t> next = layer_.next_deadline();
  const auto consider = [&next](std::uint64_t at_ms) {
    if (!next || at_ms < *next) next = at_ms;
  };
  if (const auto of_seen = timers_.next_deadline()) consider(*of_seen);
  if (!deadlines_.empty()) consider(deadlines_.front().at_ms);
  return next;
}

inline void Agent::close() {
  if (std::exchange(is_closed_, true)) return;
  layer_.close();
  // Those left wait for a look-up.
  sent_.for_each([this](Handle handle, Sent&) { finish(handle, ErrorCode::closed); });
  located_.clear();
  deadlines_.clear();
  seen_.for_each([this](Handle handle, Seen&) { forget_seen(handle.index); });
}

}  // namespace sipmsg

// ======================================= registration.hpp =======================================

// registration: a client's side of REGISTER: one binding, kept alive for as long as it is wanted.
//
// RFC 3261 10.2 for a client: register, refresh in time, obey 423, unregister at the end. What
// fails for the moment is tried again, later each time and not by all clients at once; what the
// registrar refuses for good is not. A way to us that broke, a TCP connection or a NAT's memory,
// is noticed and made anew (RFC 5626 3.5, 4.5). Time comes in as an argument; Endpoint arms the
// timer, tests drive it in virtual time.
//
// Left out on purpose: fetching or removing others' bindings; several bindings for one contact
// (RFC 5626 reg-id); waiting for the pong to a ping, which few registrars send over TCP and none
// over UDP: there a restart that no keep-alive fell into shows at the next refresh.

namespace sipmsg {

struct RegistrationOptions {
  std::string address_of_record;  ///< "sip:101@example.org"; what the contact's user is taken from
  /// The registrar's URI, "sip:example.org". Default: the host of the address-of-record, its port
  /// and its transport parameter, too.
  std::string registrar;
  std::string proxy;              ///< as Outgoing::proxy
  std::shared_ptr<Login> login;   ///< null: a challenge is a refusal
  std::uint32_t expires_s = 600;  ///< what is asked for; the registrar may grant less, or want more
  /// Between keep-alives while registered, so that a NAT remembers the way to us; 0: none. An
  /// answer's P-NAT-Refresh shortens it. RFC 5626 4.4.1 and 4.4.2 want less than 30 s over UDP.
  std::uint32_t keepalive_s = 25;
};

/// How a registration stands.
struct RegistrationStatus {
  enum class State : std::uint8_t {
    registering,   ///< asked, for the first time or anew after the way to us broke
    registered,    ///< granted; told again after each refresh
    retrying,      ///< it did not work for now; the next try comes in `retry_in_ms`
    refused,       ///< for good (403, 404, a wrong password): no further try until `start`
    unregistered,  ///< stopped
  };
  State state = State::unregistered;
  Error error;                    ///< of the last try, where there was no answer
  int code = 0;                   ///< the last answer; 0 without one
  std::string reason;             ///< its phrase
  std::uint32_t expires_s = 0;    ///< granted, with `registered`
  std::uint64_t retry_in_ms = 0;  ///< with `retrying`
};

/// Keeps one binding alive through an Agent. Make it with std::make_shared: what is under way when
/// it goes ends without it. Anything may be done inside the handler, letting go of this included.
class RegistrationKeeper : public std::enable_shared_from_this<RegistrationKeeper> {
 public:
  using Handler = std::function<void(const RegistrationStatus&)>;

  /// The agent must outlive this, or `close` be called first. The handler is told of each change,
  /// and of each refresh.
  RegistrationKeeper(Agent& agent, RegistrationOptions options, Handler handler)
      : agent_(agent),
        options_(std::move(options)),
        handler_(std::make_shared<Handler>(std::move(handler))) {}

  /// Registers, and stays registered until `stop`. Also begins anew after a refusal. Error now, of
  /// Agent::send or `bad_argument` for an address-of-record without user: nothing is sent and the
  /// handler is not called.
  Error start(std::uint64_t now_ms);

  /// Unregisters, and calls `done` once, later: when the registrar has answered, after
  /// `stop_timeout_ms` at most, or from inside `close`. A second call does not hasten the first;
  /// both are told.
  void stop(std::uint64_t now_ms, std::function<void()> done);

  /// Ends at once, without telling the handler. A registrar that has granted the registration is
  /// sent word, which the agent sees to while it is there; nobody waits for that. Whoever waits for
  /// `stop` is told from in here. Nothing is called any more.
  void close(std::uint64_t now_ms);

  /// Does what is due.
  void advance(std::uint64_t now_ms);
  /// When `advance` is to be called next.
  std::optional<std::uint64_t> next_deadline() const;
  /// A TCP connection is gone: where it is the one we are reached over, another is made.
  void connection_closed(std::uint32_t socket, Error error, std::uint64_t now_ms);

  /// Datagrams do not reach that peer: where it is the one that knows us, it is asked again.
  void unreachable(const SocketAddress& peer, Error error, std::uint64_t now_ms);

  const RegistrationStatus& status() const { return status_; }
  const RegistrationOptions& options() const { return options_; }

  /// How long `stop` waits for the registrar.
  static constexpr std::uint64_t stop_timeout_ms = 5000;
  /// Waiting after a failure: this long at first, twice as long each time, up to the longest. Of
  /// each a random half is left out, so that a server that comes back is not met by all at once.
  static constexpr std::uint64_t first_retry_ms = 1000;
  static constexpr std::uint64_t longest_retry_ms = 300000;
  /// What a registrar may ask for with Retry-After and Min-Expires; more is taken for this.
  static constexpr std::uint32_t longest_wish_s = 86400;

 private:
  using State = RegistrationStatus::State;
  enum class Phase : std::uint8_t { idle, active, stopping, stopped };

  Error complete();
  Error send(std::uint32_t expires_s, std::uint64_t now_ms, std::optional<Flow> way = {});
  void try_now(std::uint64_t now_ms);
  void on_outcome(const Outcome& outcome);
  void on_granted(const Outcome& outcome);
  void fail(const Outcome& outcome, std::uint64_t at_least_ms);
  void finish_stop();
  void tell();
  std::uint64_t back_off();
  std::uint32_t granted_s(const MessageView& response) const;
  void start_keepalive(std::uint64_t now_ms);
  void lose_way(Error error, std::uint64_t now_ms);

  Agent& agent_;
  RegistrationOptions options_;
  std::shared_ptr<Handler> handler_;
  std::string user_;  ///< of the address-of-record, and of our contact
  std::string call_id_;
  RegistrationStatus status_;
  Phase phase_ = Phase::idle;
  bool is_waiting_ = false;  ///< a REGISTER is under way
  bool is_unregistering_ = false;
  bool has_raised_ = false;    ///< what is asked for; a registrar may want that once in a row
  bool may_be_bound_ = false;  ///< so that there is something to take back
  std::uint32_t try_number_ = 0;
  std::uint64_t now_ms_ = 0;
  std::uint32_t failures_ = 0;     ///< in succession
  std::uint32_t expires_s_ = 0;    ///< what is asked for: what a 423 wanted, mostly
  std::uint32_t keepalive_s_ = 0;  ///< 0: none
  Flow flow_;                      ///< the way to us; its socket is 0 where there is none
  std::optional<std::uint64_t> try_at_ms_;
  std::optional<std::uint64_t> keepalive_at_ms_;
  std::optional<std::uint64_t> stop_at_ms_;
  std::vector<std::function<void()>> stop_done_;
};

namespace detail {

/// The number a header value begins with, at most `maximum`: of Retry-After, which may have a
/// comment and parameters behind it.
inline std::optional<std::uint32_t> leading_seconds(std::string_view value, std::uint32_t maximum) {
  const std::size_t digits = skip_class(value, char_digit);
  const auto seconds = MessageView::delta_seconds(value.substr(0, digits));
  if (!seconds) return std::nullopt;
  return std::min(*seconds, maximum);
}

/// Whether a registrar that answers so will not change its mind. The others speak of the moment: of
/// load (480, 486, 500, 503), of time (408, 423, 504), of too many requests (429, 491).
constexpr bool is_refusal_for_good(int code) {
  switch (code) {
    case 408:
    case 423:
    case 429:
    case 480:
    case 486:
    case 491:
    case 500:
    case 502:
    case 503:
    case 504: return false;
    default: return code >= 300;
  }
}

/// The registrar of an address-of-record (RFC 3261 10.2: a Request-URI without user).
inline std::string registrar_of(const UriView& uri) {
  std::string text("sip:");
  const bool is_ipv6 = is_ipv6_text(uri.host);
  text.append(is_ipv6 ? "[" : "").append(uri.host).append(is_ipv6 ? "]" : "");
  if (uri.port != 0) {
    text.push_back(':');
    append_number(text, uri.port);
  }
  if (const auto transport = uri.parameter("transport")) {
    text.append(";transport=").append(*transport);
  }
  return text;
}

}  // namespace detail

// ---- asking ------------------------------------------------------------------------------------

/// Fills in what follows from the options.
inline Error RegistrationKeeper::complete() {
  const auto uri = parse_uri(options_.address_of_record);
  if (!uri) return uri.error();
  if (uri->scheme != UriScheme::sip) return ErrorCode::unsupported_scheme;
  if (!uri->has_user) return ErrorCode::bad_argument;
  user_ = uri->user;
  if (options_.registrar.empty()) options_.registrar = detail::registrar_of(*uri);
  if (call_id_.empty()) call_id_ = agent_.random_token();
  expires_s_ = std::max<std::uint32_t>(options_.expires_s, 1);
  return {};
}

inline Error RegistrationKeeper::start(std::uint64_t now_ms) {
  if (phase_ == Phase::active && status_.state != State::refused) return {};
  if (phase_ == Phase::stopping || is_waiting_) return ErrorCode::bad_argument;
  if (const Error error = complete()) return error;
  failures_ = 0;
  if (const Error error = send(expires_s_, now_ms)) return error;
  phase_ = Phase::active;
  status_ = RegistrationStatus();
  status_.state = State::registering;
  return {};
}

/// One REGISTER. All have one Call-ID, and the agent's CSeq rises (RFC 3261 10.2).
inline Error RegistrationKeeper::send(std::uint32_t expires_s, std::uint64_t now_ms,
                                      std::optional<Flow> way) {
  now_ms_ = now_ms;
  Outgoing request;
  request.method = "REGISTER";
  request.to = request.from = options_.address_of_record;
  request.request_uri = options_.registrar;
  request.proxy = options_.proxy;
  request.next_hop = way;
  request.login = options_.login;
  request.call_id = call_id_;
  request.contact_user = user_;
  std::string seconds;
  detail::append_number(seconds, expires_s);
  request.headers = {{"Expires", std::move(seconds)}};
  const std::weak_ptr<RegistrationKeeper> weak = weak_from_this();
  const std::uint32_t number = ++try_number_;
  const Error error =
      agent_.send(std::move(request), now_ms, [weak, number](const Outcome& outcome) {
        const auto self = weak.lock();
        if (self && number == self->try_number_) self->on_outcome(outcome);
      });
  if (error) return error;
  is_waiting_ = true;
  if (expires_s != 0) may_be_bound_ = true;
  return {};
}

inline void RegistrationKeeper::try_now(std::uint64_t now_ms) {
  try_at_ms_.reset();
  keepalive_at_ms_.reset();
  const Error error = send(expires_s_, now_ms);
  if (!error) return;
  Outcome outcome;
  outcome.error = error;
  fail(outcome, 0);
}

// ---- what came of it ---------------------------------------------------------------------------

inline void RegistrationKeeper::on_outcome(const Outcome& outcome) {
  is_waiting_ = false;
  now_ms_ = agent_.now_ms();
  if (phase_ == Phase::stopped || agent_.is_closed()) return;
  status_.error = outcome.error;
  status_.code = outcome.code;
  status_.reason = outcome.reason;
  if (phase_ == Phase::stopping) {
    // RFC 3261 10.2: not before the one that was under way has its answer.
    if (!std::exchange(is_unregistering_, true) && !send(0, now_ms_)) return;
    return finish_stop();
  }
  if (outcome.ok()) return on_granted(outcome);
  if (outcome.code == 423) {  // RFC 3261 10.2.8
    const auto minimum =
        outcome.response->delta_seconds(outcome.response->header(HeaderId::min_expires));
    const std::uint32_t wanted = std::min(minimum.value_or(0), longest_wish_s);
    if (wanted > expires_s_ && !std::exchange(has_raised_, true)) {
      expires_s_ = wanted;
      return try_now(now_ms_);
    }
  }
  if (outcome.code != 0 && detail::is_refusal_for_good(outcome.code)) {
    may_be_bound_ = false;
    status_.state = State::refused;
    return tell();
  }
  std::uint64_t at_least_ms = 0;
  if (outcome.response != nullptr) {
    const std::string_view wish = outcome.response->header(HeaderId::retry_after);
    at_least_ms = std::uint64_t{1000} * detail::leading_seconds(wish, longest_wish_s).value_or(0);
  }
  fail(outcome, at_least_ms);
}

inline void RegistrationKeeper::on_granted(const Outcome& outcome) {
  const std::uint32_t seconds = granted_s(*outcome.response);
  if (seconds == 0) return fail(outcome, 0);  // granted in words only
  failures_ = 0;
  has_raised_ = false;
  flow_ = outcome.flow;
  status_.state = State::registered;
  status_.expires_s = seconds;
  status_.retry_in_ms = 0;
  // At half-life, so that there is as much time again for it to fail and be tried again.
  try_at_ms_ =
      now_ms_ + std::max<std::uint64_t>(std::uint64_t{500} * status_.expires_s, first_retry_ms);
  keepalive_s_ = options_.keepalive_s;
  const auto wish = outcome.response->header("P-NAT-Refresh");
  const auto wish_s = detail::leading_seconds(wish.value_or(std::string_view()), longest_wish_s);
  if (wish_s && *wish_s != 0) keepalive_s_ = std::min(keepalive_s_, *wish_s);
  start_keepalive(now_ms_);
  tell();
}

/// What the registrar granted for our contact: its expires parameter, else the Expires header
/// (RFC 3261 10.2.4), else what was asked for. Ours is known by user and address: that of our Via,
/// or the one the registrar saw us at. One that stands alone is ours however it was rewritten.
inline std::uint32_t RegistrationKeeper::granted_s(const MessageView& response) const {
  const auto via = response.top_via();
  std::size_t contacts = 0;
  std::optional<std::uint32_t> of_any;
  std::optional<std::uint32_t> of_ours;
  for (std::string_view value : response.values(HeaderId::contact)) {
    const auto contact = parse_name_addr(value);
    if (!contact) continue;
    ++contacts;
    of_any = MessageView::delta_seconds(contact->parameters.find("expires").value_or(""));
    const UriView& uri = contact->uri;
    const bool is_sent_by = via && uri.host == via->host && uri.port == via->port;
    const auto rport = via ? parse_digits(via->rport, 65535) : std::nullopt;
    const bool is_source = via && uri.host == via->received && rport && uri.port == *rport;
    if (uri.user == user_ && (is_sent_by || is_source)) of_ours = of_any;
  }
  if (!of_ours && contacts == 1) of_ours = of_any;
  const std::uint32_t granted = of_ours.value_or(response.expires().value_or(expires_s_));
  return std::min(granted, std::max(expires_s_, longest_wish_s));
}

/// It did not work this time.
inline void RegistrationKeeper::fail(const Outcome& outcome, std::uint64_t at_least_ms) {
  flow_ = Flow();
  has_raised_ = false;
  keepalive_at_ms_.reset();
  status_.state = State::retrying;
  status_.error = outcome.error;
  status_.code = outcome.code;
  status_.reason = outcome.reason;
  status_.expires_s = 0;
  status_.retry_in_ms = std::max(back_off(), at_least_ms);
  try_at_ms_ = now_ms_ + status_.retry_in_ms;
  tell();
}

inline std::uint64_t RegistrationKeeper::back_off() {
  const std::uint64_t longest =
      std::min(first_retry_ms << std::min(failures_, 16U), longest_retry_ms);
  ++failures_;
  return longest / 2 + agent_.random_number() % (longest / 2 + 1);
}

/// The last thing that is done: the handler may let go of this.
inline void RegistrationKeeper::tell() {
  const std::shared_ptr<Handler> handler = handler_;
  const RegistrationStatus status = status_;
  if (*handler) (*handler)(status);
}

// ---- the way to us -----------------------------------------------------------------------------

inline void RegistrationKeeper::start_keepalive(std::uint64_t now_ms) {
  keepalive_at_ms_.reset();
  if (keepalive_s_ == 0) return;
  // RFC 5626 4.4.1: not in step with others, 80 to 100 of 100.
  const std::uint64_t longest = std::uint64_t{1000} * keepalive_s_;
  keepalive_at_ms_ = now_ms + longest - agent_.random_number() % (longest / 5 + 1);
}

inline void RegistrationKeeper::connection_closed(std::uint32_t socket, Error error,
                                                  std::uint64_t now_ms) {
  if (flow_.transport == Transport::tcp && flow_.socket == socket) lose_way(error, now_ms);
}

inline void RegistrationKeeper::unreachable(const SocketAddress& peer, Error error,
                                            std::uint64_t now_ms) {
  if (flow_.transport == Transport::udp && flow_.remote == peer) lose_way(error, now_ms);
}

inline void RegistrationKeeper::lose_way(Error error, std::uint64_t now_ms) {
  if (phase_ != Phase::active || status_.state != State::registered) return;
  if (is_waiting_) return;  // the REGISTER under way will say by itself what became of it
  now_ms_ = now_ms;
  Outcome outcome;
  outcome.error = error;
  fail(outcome, 0);
}

// ---- the end -----------------------------------------------------------------------------------

inline void RegistrationKeeper::stop(std::uint64_t now_ms, std::function<void()> done) {
  now_ms_ = now_ms;
  stop_done_.push_back(std::move(done));
  if (phase_ == Phase::stopping) return;
  phase_ = Phase::stopping;
  try_at_ms_.reset();
  keepalive_at_ms_.reset();
  is_unregistering_ = false;
  stop_at_ms_ = now_ms + stop_timeout_ms;
  if (is_waiting_) return;
  is_unregistering_ = true;
  // Later in any case, never from in here.
  if (!may_be_bound_ || send(0, now_ms)) stop_at_ms_ = now_ms;
}

inline void RegistrationKeeper::finish_stop() {
  phase_ = Phase::stopped;
  may_be_bound_ = false;
  is_waiting_ = false;
  ++try_number_;  // what is still under way is nobody's any more
  stop_at_ms_.reset();
  flow_ = Flow();
  status_.state = State::unregistered;
  const std::shared_ptr<RegistrationKeeper> self = weak_from_this().lock();
  const auto waiting = std::exchange(stop_done_, {});
  tell();
  for (const auto& done : waiting) {
    if (done) done();
  }
}

inline void RegistrationKeeper::close(std::uint64_t now_ms) {
  const bool is_active = std::exchange(phase_, Phase::stopped) == Phase::active;
  // RFC 3261 10.2: not while another one is under way. By the way the last answer came, as names
  // cannot be looked up any more where the agent closes, too.
  if (is_active && status_.state == State::registered && !is_waiting_) {
    static_cast<void>(send(0, now_ms, flow_));
  }
  is_waiting_ = false;
  ++try_number_;
  try_at_ms_.reset();
  keepalive_at_ms_.reset();
  stop_at_ms_.reset();
  for (const auto& done : std::exchange(stop_done_, {})) {
    if (done) done();
  }
}

// ---- time --------------------------------------------------------------------------------------

inline void RegistrationKeeper::advance(std::uint64_t now_ms) {
  now_ms_ = now_ms;
  if (stop_at_ms_ && *stop_at_ms_ <= now_ms) return finish_stop();
  if (try_at_ms_ && *try_at_ms_ <= now_ms) return try_now(now_ms);
  if (!keepalive_at_ms_ || *keepalive_at_ms_ > now_ms) return;
  if (const Error error = agent_.send_keepalive(flow_)) {
    Outcome outcome;
    outcome.error = error;
    return fail(outcome, 0);
  }
  start_keepalive(now_ms);
}

inline std::optional<std::uint64_t> RegistrationKeeper::next_deadline() const {
  std::optional<std::uint64_t> next;
  for (const auto& deadline : {try_at_ms_, keepalive_at_ms_, stop_at_ms_}) {
    if (deadline && (!next || *deadline < *next)) next = deadline;
  }
  return next;
}

}  // namespace sipmsg

// ========================================== relay.hpp ===========================================

// relay: one MESSAGE on its way from its sender to every binding of its recipient, and back the
// best of their answers.
//
// RFC 3261 16.6 to 16.9, the stateful proxy core. A request goes out as it came but for a few
// edits; each copy is a branch with a client transaction of its own. The first 2xx is passed on at
// once; otherwise the best of all answers is, when the last branch has one. A branch that stays
// silent never makes a 408 (RFC 4320): the sender gets 480 shortly before it would give up by
// itself. A copy keeps going to its phone after another phone answered: a message is for all of
// them.
// RFC 5393: a forking proxy must find loops, and bounds by Max-Breadth how often a request doubles.
// Left out on purpose: sending to one target after the other by q, and redirection.

namespace sipmsg {

/// Where the protocol core says what its operator should know. One line each, without line end.
class ServerLog {
 public:
  virtual void log(Severity severity, std::string_view text) = 0;

 protected:
  ~ServerLog() = default;
};

/// So many lines of one kind a minute and no more: who sends requests must not be able to fill the
/// disk with what we say about them.
class LogLimit {
 public:
  explicit LogLimit(std::uint32_t lines_a_minute) : most_(lines_a_minute) {}

  /// Whether one more line may be written now. Ask before putting its text together.
  bool admits(std::uint64_t now_ms) {
    if (now_ms - begin_ms_ >= 60000) {
      begin_ms_ = now_ms;
      count_ = 0;
    }
    if (count_ == most_) return false;
    ++count_;
    return true;
  }

 private:
  std::uint32_t most_;
  std::uint32_t count_ = 0;
  std::uint64_t begin_ms_ = 0;
};

/// What has happened since the start.
struct ServerCounters {
  std::uint64_t relayed = 0;    ///< MESSAGE requests that went to at least one binding
  std::uint64_t delivered = 0;  ///< of these, answered 2xx by a recipient
  std::uint64_t refused = 0;    ///< requests that we answered with 300 or more ourselves
  std::uint64_t dropped = 0;    ///< requests of a flood that got no answer
};

namespace detail {

/// Larger than any message with what we add to it.
inline constexpr std::size_t relay_scratch_size = max_message_size + 4096;

inline constexpr std::size_t max_datagram = 65507;  // over IPv4; a little more over IPv6

/// How long the sender of a request that came at `received_ms` is still to be kept waiting: until
/// 60*T1 after that, for at 64*T1 its own timer ends. In whole steps of 2*T1, and so a little less
/// where some of it is over, that there are few queues of timers.
constexpr std::uint64_t patience_ms(std::uint64_t received_ms, std::uint64_t now_ms,
                                    std::uint64_t t1_ms) {
  const std::uint64_t step_ms = 2 * t1_ms;
  const std::uint64_t over_ms = now_ms - received_ms;
  return over_ms >= 30 * step_ms ? 0 : (30 * step_ms - over_ms) / step_ms * step_ms;
}

}  // namespace detail

/// Sends the answers that are our own and not a recipient's.
class OwnAnswers {
 public:
  using AddHeaders = detail::FunctionRef<void(Output&)>;

  OwnAnswers(TransactionLayer& layer, ServerCounters& counters)
      : layer_(layer), counters_(counters), scratch_(new char[detail::relay_scratch_size]) {}

  /// For the Server header; empty: none is written.
  void set_server_name(std::string_view name) {
    server_name_ = name;
    const auto ends_line = [](char c) { return c == '\r' || c == '\n' || c == '\0'; };
    server_name_.erase(std::remove_if(server_name_.begin(), server_name_.end(), ends_line),
                       server_name_.end());
  }
  /// For the Retry-After that every 503 gets (RFC 3261 21.5.4).
  void set_retry_after(std::uint32_t seconds) { retry_after_s_ = seconds; }
  /// The time, from now on.
  void set_now(std::uint64_t now_ms) { now_ms_ = now_ms; }

  /// A code that may not be sent is replaced by one that may: 408, which RFC 4320 4.2 forbids for
  /// all requests but INVITE, by 480; one that is no final code by 500. A phrase that cannot stand
  /// in a status line gives way to the usual one. `add_headers(Output&)` writes further headers.
  void send(ServerTransaction server, int code, std::string_view phrase, AddHeaders add_headers) {
    code = sendable(code);
    const std::string_view answer = write(server, code, phrase, add_headers);
    if (!answer.empty()) static_cast<void>(layer_.respond(server, code, Slices(answer), now_ms_));
  }
  void send(ServerTransaction server, int code, std::string_view phrase = {}) {
    send(server, code, phrase, [](Output&) {});
  }
  /// The same, and forgets the request: for challenges, of which a flood must leave nothing behind.
  void send_statelessly(ServerTransaction server, int code, AddHeaders add_headers) {
    const std::string_view answer = write(server, code, {}, add_headers);
    if (answer.empty()) return;
    static_cast<void>(layer_.respond_statelessly(server, code, Slices(answer), now_ms_));
  }

 private:
  static constexpr std::size_t max_phrase_size = 256;

  static int sendable(int code) {
    if (code == 408) return 480;
    return code < 200 || code > 699 ? 500 : code;
  }
  static std::string_view sendable(std::string_view phrase) {
    const bool forbidden =
        phrase.find_first_of(std::string_view("\r\n\0", 3)) != std::string_view::npos;
    return forbidden || phrase.size() > max_phrase_size ? std::string_view() : phrase;
  }

  /// Without the further headers where they do not fit: whoever sets them must not keep the sender
  /// waiting. Empty for a request whose own head does not fit, of some 60,000 octets: its sender's
  /// timer ends it.
  std::string_view write(ServerTransaction server, int code, std::string_view phrase,
                         AddHeaders add_headers) {
    std::string_view answer = write(server, code, phrase, add_headers, detail::max_datagram);
    const auto nothing = [](Output&) {};
    if (answer.empty()) answer = write(server, code, phrase, nothing, detail::relay_scratch_size);
    if (!answer.empty() && code >= 300) ++counters_.refused;
    return answer;
  }
  std::string_view write(ServerTransaction server, int code, std::string_view phrase,
                         AddHeaders add_headers, std::size_t room) {
    Output out(scratch_.get(), room);
    layer_.begin_response(server, code, sendable(phrase), out);
    add_headers(out);
    if (code == 503) write_header(out, HeaderId::retry_after, retry_after_s_);
    if (!server_name_.empty()) write_header(out, HeaderId::server, server_name_);
    write_body(out, {}, {});
    return out.error() ? std::string_view() : out.written();
  }

  TransactionLayer& layer_;
  ServerCounters& counters_;
  std::string server_name_;
  std::uint32_t retry_after_s_ = 30;
  std::unique_ptr<char[]> scratch_;
  std::uint64_t now_ms_ = 0;
};

/// Where one copy of a message goes. Lifetime: views of whoever made it.
struct RelayTarget {
  std::string_view uri;   ///< becomes the Request-URI
  std::string_view path;  ///< becomes Route: the Path of the registration (RFC 3327)
  Flow flow;
};

/// A message to be relayed, and what is to be changed in it.
struct RelayRequest {
  ServerTransaction server;  ///< to be answered; names nothing for a message of our own
  std::uint64_t own = 0;     ///< what RelayUser knows a message of our own by; 0 for a received one
  const MessageView* message = nullptr;
  std::string_view username;  ///< the sender's, for whoever is told that nobody took the message
  std::string_view user;  ///< whose bindings the targets are; empty for others: then nobody is told
  Flow source;
  std::uint64_t received_ms = 0;
  std::uint64_t loop_hash = 0;      ///< from RelaySet::loop_hash
  std::uint32_t max_forwards = 70;  ///< to be written, already decremented
  FieldList removed;                ///< what is not for the recipient
};

/// Who is told what became of messages where that is not simply passed on to their sender. May do
/// anything, also relay further messages.
class RelayUser {
 public:
  /// No target took a message: `code` is the best answer there was, 480 where there was none. The
  /// request is valid during the call. True where its sender is answered from there, now or later;
  /// otherwise it gets that answer.
  virtual bool on_undelivered(const RelayRequest& request, int code) = 0;
  /// The end of a message of our own, once: the best answer, which may be null where it is `code`
  /// alone. Valid during the call.
  virtual void on_own_end(std::uint64_t own, int code, const MessageView* response) = 0;

 protected:
  ~RelayUser() = default;
};

/// All messages that are on their way.
class RelaySet {
 public:
  /// So many copies of one request may exist at once, here and at the proxies behind us: the
  /// Max-Breadth that RFC 5393 5.3.3 recommends.
  static constexpr std::uint32_t max_breadth = 60;

  RelaySet(TransactionLayer& layer, Sink& sink, RelayUser& user, OwnAnswers& answers,
           ServerCounters& counters, ServerLog& log, std::uint32_t t1_ms, const SipHashKey& secret)
      : layer_(layer),
        sink_(sink),
        user_(user),
        answers_(answers),
        counters_(counters),
        log_(log),
        t1_ms_(t1_ms),
        random_(secret),
        loop_hash_(detail::next_key(random_)),
        scratch_(new char[detail::relay_scratch_size]) {}

  /// Sends the message to each target. Returns 0, and the answer follows by itself; or the code it
  /// is to be refused with: 480 where no target can be reached, 440 where there are more of them
  /// than the request's breadth.
  [[nodiscard]] int start(const RelayRequest& request, const RelayTarget* targets,
                          std::size_t count);
  /// Whether on_undelivered is asked; each message to a user is kept for it until it is answered.
  void keep_requests(bool keep) { keeps_requests_ = keep; }

  /// What the branches of this request will carry, so that it is known again.
  std::uint64_t loop_hash(const MessageView& request) const;
  /// Whether the request was here before, with the same Request-URI: 482 (RFC 3261 16.3 step 4).
  bool is_loop(const MessageView& request, std::uint64_t loop_hash) const;

  void on_response(ClientTransaction client, const MessageView& response);
  void on_failure(ClientTransaction client);
  /// The time, from now on; `advance` also does what is due.
  void set_now(std::uint64_t now_ms) { now_ms_ = now_ms; }
  void advance(std::uint64_t now_ms);
  /// When `advance` has something to do next; nothing where no message is on its way.
  std::optional<std::uint64_t> next_deadline() const { return timers_.next_deadline(); }
  std::size_t size() const { return relays_.size(); }
  /// Octets held by requests, and by answers that are kept until a better one comes.
  std::size_t kept_size() const { return blocks_.in_use_size(); }

 private:
  /// The response context of RFC 3261 16: what the branches of one request have answered so far.
  struct Relay {
    RelayRequest request;  ///< without its message and names, which are in `kept`
    Block kept;            ///< message and both names, for on_undelivered; or empty
    std::uint32_t kept_username_size = 0;
    std::uint32_t kept_user_size = 0;
    Timer timer;
    std::uint32_t open_branches = 0;
    bool answered = false;
    int best_code = 0;                 ///< 0 where no answer is there yet
    std::uint32_t best_body_size = 0;  ///< of `best`
    Block best;                        ///< empty where there was no memory for it
    std::string challenges;  ///< header lines of the 401 and 407 that are not `best` (16.7 step 7)
  };

  static constexpr std::size_t token_size = 13;        // 64 bits of chance
  static constexpr std::size_t path_mtu = 1300;        // RFC 3261 18.1.1
  static constexpr std::size_t added_size = 160;       // what our edits add, about
  static constexpr std::size_t max_challenges = 8192;  // octets of `challenges`
  static constexpr std::size_t max_kept = 16U << 20U;  // octets of all `best` and `kept`

  Error send_branch(const RelayRequest& request, Handle relay, const RelayTarget& target,
                    std::uint32_t breadth);
  Error send_over(Flow flow, const RelayRequest& request, Handle relay, const RelayTarget& target,
                  std::uint32_t breadth);
  Slices edit(const RelayRequest& request, const RelayTarget& target, std::uint32_t breadth,
              Edits& edits, Output& text) const;
  void log_large_datagram();
  void keep_request(Relay& relay, const RelayRequest& request);
  bool tell_undelivered(const Relay& relay, int code);
  void pass_on(Relay& relay, int code, const MessageView& response);
  void keep_if_best(Relay& relay, int code, const MessageView& response);
  void add_challenges(Relay& relay, const MessageView& response);
  void close_branch(Handle handle, Relay& relay);
  void answer_with_best(Relay& relay);
  void answer(const Relay& relay, int code, std::string_view phrase = {});
  void pass_on_best(const Relay& relay);
  void finish(Handle handle);

  TransactionLayer& layer_;
  Sink& sink_;
  RelayUser& user_;
  OwnAnswers& answers_;
  ServerCounters& counters_;
  ServerLog& log_;
  std::uint64_t t1_ms_;
  Random random_;
  SipHash loop_hash_;  ///< keyed and fresh; copied for each use
  Timers timers_;
  BlockPool blocks_;
  Slab<Relay> relays_;
  std::unique_ptr<char[]> scratch_;
  std::size_t large_size_ = 0;  ///< of a datagram that no log line has told of yet
  SocketAddress large_remote_;
  LogLimit large_log_{10};
  LogLimit breadth_log_{10};
  bool keeps_requests_ = false;
  std::uint64_t now_ms_ = 0;
};

namespace detail {

/// How good a final answer other than 2xx is for the sender, 0 being best (RFC 3261 16.7 step 6):
/// 6xx ends the search, then the lowest class, and of 4xx first those that tell how to try again
/// and last the one that tells nothing.
constexpr int response_rank(int code) {
  if (code >= 600) return 0;
  if (code < 400) return 1;
  if (code == 401 || code == 407 || code == 415 || code == 420 || code == 484) return 2;
  if (code < 500) return code == 408 ? 4 : 3;
  return code == 503 ? 6 : 5;
}

inline bool has_two_vias(const MessageView& response) {
  const auto vias = response.values(HeaderId::via);
  auto element = vias.begin();
  return element != vias.end() && ++element != vias.end();
}

constexpr bool is_challenge(int code) { return code == 401 || code == 407; }

/// The breadth a request may still have (RFC 5393 5.3.3).
inline std::uint32_t breadth_of(const MessageView& request, std::uint32_t most) {
  const auto value = parse_digits(request.header("Max-Breadth").value_or(""), most);
  return value ? static_cast<std::uint32_t>(*value) : most;
}

/// A message without Content-Length is as long as its datagram; where it goes on over a stream its
/// length must be said (RFC 3261 18.3, 20.14).
inline void add_content_length(const MessageView& message, Edits& edits, Output& text) {
  if (message.has(HeaderId::content_length)) return;
  const std::size_t begin = text.size();
  write_header(text, HeaderId::content_length, message.body().size());
  edits.insert_last(text.since(begin));
}

}  // namespace detail

// The request.

inline int RelaySet::start(const RelayRequest& request, const RelayTarget* targets,
                           std::size_t count) {
  // To write Max-Breadth is needed only where the request doubles.
  std::uint32_t breadth = 0;
  if (count > 1) {
    breadth = detail::breadth_of(*request.message, max_breadth);
    if (count > breadth) {
      if (breadth_log_.admits(now_ms_)) {
        log_.log(Severity::warning, "a message to " + std::to_string(count) +
                                        " bindings refused with 440: " + std::to_string(breadth) +
                                        " are allowed");
      }
      return 440;
    }
    breadth /= static_cast<std::uint32_t>(count);
  }
  const Handle handle = relays_.create();
  Relay& relay = relays_.at(handle.index);
  relay.request = request;
  relay.request.message = nullptr;
  relay.request.username = {};
  relay.request.user = {};
  Error error;
  for (std::size_t i = 0; i < count; ++i) {
    const Error failed = send_branch(request, handle, targets[i], breadth);
    if (failed) {
      error = failed;
    } else {
      ++relay.open_branches;
    }
  }
  if (relay.open_branches == 0) {
    relays_.destroy(handle);
    if (error.code == ErrorCode::limit_reached) return 503;
    return error.code == ErrorCode::too_large ? 513 : 480;
  }
  if (keeps_requests_ && !request.user.empty()) keep_request(relay, request);
  ++counters_.relayed;
  relay.timer.owner = handle.index;
  timers_.queue(detail::patience_ms(request.received_ms, now_ms_, t1_ms_))
      .start(relay.timer, now_ms_);
  log_large_datagram();
  return 0;
}

inline void RelaySet::keep_request(Relay& relay, const RelayRequest& request) {
  const std::string_view message = request.message->bytes();
  const std::size_t size = message.size() + request.username.size() + request.user.size();
  if (blocks_.in_use_size() + size > max_kept) return;
  relay.kept = blocks_.allocate(size);
  relay.kept_username_size = static_cast<std::uint32_t>(request.username.size());
  relay.kept_user_size = static_cast<std::uint32_t>(request.user.size());
  Slices slices(message);
  slices.add(request.username);
  slices.add(request.user);
  slices.copy_to(relay.kept.data());
}

/// RFC 3261 18.1.1: a request over 1300 octets goes by TCP where the target can be reached so, and
/// by UDP where it turns out that it cannot.
inline Error RelaySet::send_branch(const RelayRequest& request, Handle relay,
                                   const RelayTarget& target, std::uint32_t breadth) {
  const std::size_t size = request.message->size() + target.uri.size() + added_size;
  if (target.flow.transport == Transport::udp && size > path_mtu &&
      sink_.has_stream_to(target.flow.remote)) {
    const Flow stream{Transport::tcp, 0, target.flow.remote};
    if (!send_over(stream, request, relay, target, breadth)) return {};
  }
  return send_over(target.flow, request, relay, target, breadth);
}

inline Error RelaySet::send_over(Flow flow, const RelayRequest& request, Handle relay,
                                 const RelayTarget& target, std::uint32_t breadth) {
  const auto sent_by = sink_.sent_by(flow);
  if (!sent_by) return sent_by.error();

  Output text(scratch_.get(), detail::relay_scratch_size);
  // The branch: the magic cookie, chance, and behind a dot what a loop is known by (16.6 step 8).
  std::array<char, token_size> token;
  random_.write_token(token.data(), token.size());
  text.raw("Via: SIP/2.0/").raw(transport_name(flow.transport)).raw(" ").raw(*sent_by);
  text.raw(";branch=");
  const std::size_t branch_begin = text.size();
  text.raw("z9hG4bK").raw({token.data(), token.size()}).raw(".").hex(request.loop_hash);
  const std::string_view branch = text.since(branch_begin);
  text.raw(";rport\r\n");

  Edits edits(*request.message);
  const Slices message = edit(request, target, breadth, edits, text);
  if (text.error()) return text.error();
  if (edits.error()) return edits.error();
  const std::size_t size = message.size();
  if (flow.transport == Transport::udp && size > path_mtu) {
    if (size > detail::max_datagram) return ErrorCode::too_large;
    large_size_ = size;
    large_remote_ = flow.remote;
  }
  return layer_
      .send(flow, branch, request.message->method_text(), message, pack_handle(relay), now_ms_)
      .error();
}

/// Last of all, for whoever reads the log may call us again.
inline void RelaySet::log_large_datagram() {
  if (large_size_ == 0) return;
  std::array<char, 160> buffer;
  Output line(buffer.data(), buffer.size());
  line.raw("a request of ").number(large_size_).raw(" octets goes by UDP to ");
  line.ip(large_remote_.ip).raw(" port ").number(large_remote_.port);
  line.raw(", which has no TCP connection");
  large_size_ = 0;
  if (large_log_.admits(now_ms_)) log_.log(Severity::info, line.written());
}

/// RFC 3261 16.6, as edits of what was received. `text` holds our own Via line, and takes what else
/// is written. A `breadth` of 0 leaves Max-Breadth alone.
inline Slices RelaySet::edit(const RelayRequest& request, const RelayTarget& target,
                             std::uint32_t breadth, Edits& edits, Output& text) const {
  const MessageView& message = *request.message;
  const bool has_max_forwards = message.has(HeaderId::max_forwards);
  std::string_view old_breadth;
  if (breadth != 0) old_breadth = message.header("Max-Breadth").value_or("");
  edits.set_request_uri(target.uri);

  if (!target.path.empty()) write_header(text, HeaderId::route, target.path);
  if (!has_max_forwards) write_header(text, HeaderId::max_forwards, request.max_forwards);
  if (breadth != 0 && old_breadth.empty()) {
    text.raw("Max-Breadth: ").number(breadth).raw("\r\n");
  }
  edits.insert_first(text.written());

  const auto replace_number = [&](std::string_view old, std::uint64_t number) {
    const std::size_t begin = text.size();
    text.number(number);
    edits.replace(old, text.since(begin));
  };
  if (has_max_forwards) {
    replace_number(message.header(HeaderId::max_forwards), request.max_forwards);
  }
  if (!old_breadth.empty()) replace_number(old_breadth, breadth);

  const auto vias = message.values(HeaderId::via);
  if (!vias.empty()) {
    const std::string_view top_via = *vias.begin();
    if (const auto via = parse_via(top_via)) {
      const std::size_t begin = text.size();
      write_stamped_via(text, top_via, *via, request.source.remote);
      edits.replace(top_via, text.since(begin));
    }
  }
  for (std::size_t field : request.removed) edits.remove_field(field);
  detail::add_content_length(message, edits, text);
  return edits.slices();
}

/// Over what a loop brings back unchanged (RFC 3261 16.6 step 8). Another Request-URI makes it a
/// spiral, which is no error. The method does not count (ibid.), and CSeq names it.
inline std::uint64_t RelaySet::loop_hash(const MessageView& request) const {
  SipHash hash = loop_hash_;
  for (std::string_view part : {request.request_uri_text(), request.header(HeaderId::from),
                                request.call_id(), request.header(HeaderId::cseq)}) {
    hash.update(part);
    hash.update(std::string_view("\0", 1));
  }
  return hash.finish();
}

inline bool RelaySet::is_loop(const MessageView& request, std::uint64_t loop_hash) const {
  std::array<char, 17> end_of_branch;
  Output out(end_of_branch.data(), end_of_branch.size());
  out.raw(".").hex(loop_hash);
  for (std::string_view via : request.values(HeaderId::via)) {
    if (via.find(out.written()) != std::string_view::npos) return true;
  }
  return false;
}

// The answers.

inline void RelaySet::on_response(ClientTransaction client, const MessageView& response) {
  const int code = response.status_code();
  if (code < 200) return;  // no provisional answer of a non-INVITE goes further (RFC 4320 4.1)
  const Handle handle = unpack_handle(layer_.user_data(client));
  Relay* relay = relays_.get(handle);
  if (relay == nullptr) return;  // the sender has been told 480 already
  // With our Via alone it answers us, and there is nobody to pass it on to (16.7 step 3).
  const bool is_for_sender = relay->request.own != 0 || detail::has_two_vias(response);
  if (is_for_sender && !relay->answered) {
    if (code < 300) {
      ++counters_.delivered;
      pass_on(*relay, code, response);
    } else {
      keep_if_best(*relay, code, response);
    }
  }
  close_branch(handle, *relay);
}

inline void RelaySet::on_failure(ClientTransaction client) {
  const Handle handle = unpack_handle(layer_.user_data(client));
  Relay* relay = relays_.get(handle);
  if (relay != nullptr) close_branch(handle, *relay);
}

inline void RelaySet::pass_on(Relay& relay, int code, const MessageView& response) {
  relay.answered = true;
  if (relay.request.own != 0) return user_.on_own_end(relay.request.own, code, &response);
  std::array<char, 40> buffer;
  Output text(buffer.data(), buffer.size());
  Edits edits(response);
  edits.remove_first_element(HeaderId::via);
  detail::add_content_length(response, edits, text);
  static_cast<void>(layer_.respond(relay.request.server, code, edits.slices(), now_ms_));
}

inline void RelaySet::keep_if_best(Relay& relay, int code, const MessageView& response) {
  const bool better =
      relay.best_code == 0 || detail::response_rank(code) < detail::response_rank(relay.best_code);
  if (!better) {
    if (detail::is_challenge(code)) add_challenges(relay, response);
    return;
  }
  std::array<char, 40> buffer;
  Output text(buffer.data(), buffer.size());
  Edits edits(response);
  edits.remove_first_element(HeaderId::via);
  detail::add_content_length(response, edits, text);
  const Slices slices = edits.slices();
  relay.best_code = code;
  relay.best_body_size = static_cast<std::uint32_t>(response.body().size());
  relay.best.reset();
  if (blocks_.in_use_size() + slices.size() > max_kept) return;
  relay.best = blocks_.allocate(slices.size());
  slices.copy_to(relay.best.data());
}

/// The sender can only answer all challenges if it gets all of them (RFC 3261 16.7 step 7).
inline void RelaySet::add_challenges(Relay& relay, const MessageView& response) {
  for (HeaderId id : {HeaderId::www_authenticate, HeaderId::proxy_authenticate}) {
    for (std::size_t i = response.find(id); i != response.header_count();
         i = response.find_next(i)) {
      const std::string_view line = response.field_line(i);
      if (relay.challenges.size() + line.size() <= max_challenges) relay.challenges.append(line);
    }
  }
}

inline void RelaySet::close_branch(Handle handle, Relay& relay) {
  if (--relay.open_branches == 0) finish(handle);
}

inline void RelaySet::answer_with_best(Relay& relay) {
  if (relay.answered) return;
  relay.answered = true;
  const int code = relay.best_code;
  // RFC 4320 4.2 forbids 408 for a non-INVITE, and silence is no better than that.
  const bool is_silent = code == 0 || code == 408;
  if (relay.kept && tell_undelivered(relay, is_silent ? 480 : code)) return;
  if (is_silent) return answer(relay, 480);
  // RFC 3261 16.7 step 6: the recipient's 503 would say that this server is overloaded.
  if (code == 503) return answer(relay, 500, "Recipient Unavailable");
  if (!relay.best) return answer(relay, code);
  pass_on_best(relay);
}

inline void RelaySet::answer(const Relay& relay, int code, std::string_view phrase) {
  if (relay.request.own != 0) return user_.on_own_end(relay.request.own, code, nullptr);
  answers_.send(relay.request.server, code, phrase);
}

inline void RelaySet::pass_on_best(const Relay& relay) {
  const std::string_view best(relay.best.data(), relay.best.size());
  if (relay.request.own != 0) {
    MessageView response;
    const Error error = response.parse(best);
    return user_.on_own_end(relay.request.own, relay.best_code, error ? nullptr : &response);
  }
  Slices slices;
  if (detail::is_challenge(relay.best_code)) {
    const std::size_t headers_end = best.size() - relay.best_body_size - 2;
    slices.add(best.substr(0, headers_end));
    slices.add(relay.challenges);
    slices.add(best.substr(headers_end));
  } else {
    slices.add(best);
  }
  static_cast<void>(layer_.respond(relay.request.server, relay.best_code, slices, now_ms_));
}

inline bool RelaySet::tell_undelivered(const Relay& relay, int code) {
  const std::string_view kept(relay.kept.data(), relay.kept.size());
  const std::size_t names_size = relay.kept_username_size + relay.kept_user_size;
  const std::size_t size = kept.size() - names_size;
  MessageView message;
  if (message.parse(kept.substr(0, size))) return false;
  RelayRequest request = relay.request;
  request.message = &message;
  request.username = kept.substr(size, relay.kept_username_size);
  request.user = kept.substr(size + relay.kept_username_size);
  return user_.on_undelivered(request, code);
}

/// Branches that are still open go on without us: their transactions end by themselves, and what
/// they tell then finds no relay.
inline void RelaySet::finish(Handle handle) {
  answer_with_best(relays_.at(handle.index));
  relays_.destroy(handle);
}

inline void RelaySet::advance(std::uint64_t now_ms) {
  now_ms_ = now_ms;
  timers_.advance(now_ms, [this](Timer& timer) { finish(relays_.handle_of(timer.owner)); });
}

}  // namespace sipmsg

// ========================================== proxy.hpp ===========================================

// proxy: what a SIP MESSAGE server does with each request.
//
// MESSAGE is proxied (RFC 3261 16, RFC 3428 6): checked, its sender identified, offered to the
// handlers, and relayed to the bindings of the recipient. REGISTER is answered by section 10,
// OPTIONS by section 11, all else with 501. The order of the functions is the way of one message.
//
// Nothing is sent to an address other than the one a request came from, a live binding, or one that
// a handler names.
// Left out on purpose: dialogs, Record-Route, redirection, and everything of calls.

namespace sipmsg {

namespace detail {

/// Keys for different uses must differ; one secret gives them all.
inline SipHashKey derive_key(const SipHashKey& secret, char purpose) {
  SipHashKey key{};
  for (char half : {'1', '2'}) {
    const char text[] = {purpose, half};
    store_little(SipHash::of(secret, {text, 2}), key.data() + (half == '2' ? 8 : 0));
  }
  return key;
}

inline TransactionOptions transaction_options(const Settings& settings) {
  TransactionOptions options;
  options.t1_ms = settings.timers.t1_ms;
  options.t4_ms = settings.timers.t4_ms;
  options.max_transactions = settings.max_transactions;
  options.retry_after_s = settings.flood.retry_after_s;
  options.answer_to_source = std::any_of(
      settings.listeners.begin(), settings.listeners.end(), [](const ListenerSettings& listener) {
        return listener.enable && listener.type == Transport::udp && listener.answer_to_source;
      });
  return options;
}

}  // namespace detail

/// Called for a message that no binding of a known user took: `code` is what its sender would be
/// answered, that of [message] offline_code where the user has none. `request.called` is that user,
/// whatever name handlers sent the message to him from. Verdict::next() has it answered so; every
/// other verdict means what it means elsewhere. Not called for what they sent to somebody else, or
/// to several users.
using UndeliveredHandler = std::function<Verdict(const RouteRequest& request, int code)>;

/// What happened to a binding. Lifetime: during the call only.
struct RegistrationEvent {
  enum class Kind : std::uint8_t { added, refreshed, removed };
  Kind kind = Kind::added;
  std::string_view user;
  std::string_view contact;     ///< the URI as the phone wrote it
  std::string_view user_agent;  ///< as the phone calls itself; may be empty
  Flow flow;                    ///< by which the binding is reached
  std::uint32_t expires_s = 0;  ///< 0 where it was removed
};
/// Called when the REGISTER is answered. Of bindings that end by themselves nobody is told.
using RegistrationHandler = std::function<void(const RegistrationEvent&)>;

/// A SIP MESSAGE server without sockets and without clock.
///
/// Feed it what arrives with `receive` and the time with `advance`; what it wants to send goes to
/// the Sink. Users, registrar, sink and log are the caller's and must outlive it.
class Proxy : public TransactionUser, private RelayUser {
 public:
  /// `secret`: 16 octets nobody else knows, fresh for each run; nonces, tags and branches come of
  /// it.
  Proxy(const Settings& settings, const UserDirectory& users, Registrar& registrar, Sink& sink,
        ServerLog& log, const SipHashKey& secret)
      : settings_(std::make_shared<const Settings>(settings)),
        users_(&users),
        registrar_(registrar),
        sink_(sink),
        log_(log),
        random_(detail::derive_key(secret, 'o')),
        layer_(detail::transaction_options(settings), sink, *this, detail::derive_key(secret, 't')),
        answers_(layer_, counters_),
        relays_(layer_, sink, *this, answers_, counters_, log, settings.timers.t1_ms,
                detail::derive_key(secret, 'r')),
        access_(settings.digest, text_of(detail::derive_key(secret, 'd'))),
        t1_ms_(settings.timers.t1_ms) {
    apply_settings();
  }
  Proxy(const Proxy&) = delete;
  Proxy& operator=(const Proxy&) = delete;

  /// One message as it arrived; `error` is what MessageView::parse said of it.
  void receive(const MessageView& message, Error error, const Flow& from, std::uint64_t now_ms) {
    set_now(now_ms);
    ++events_;
    if (is_flood_victim(message, from)) {
      ++counters_.dropped;
      return;
    }
    layer_.receive(message, error, from, now_ms);
  }
  /// Nothing more waits on the sockets: a flood, if there was one, is over.
  void idle() { events_ = 0; }
  void connection_closed(std::uint32_t socket, Error error, std::uint64_t now_ms) {
    set_now(now_ms);
    registrar_.remove_connection(socket);
    layer_.connection_closed(socket, error, now_ms);
  }
  void advance(std::uint64_t now_ms) {
    set_now(now_ms);
    layer_.advance(now_ms);
    relays_.advance(now_ms);
    registrar_.advance(now_ms);
    timers_.advance(now_ms, [this](Timer& timer) { give_up_waiting(timer.owner); });
    own_timers_.advance(now_ms, [this](Timer& timer) {
      const OwnMessage& own = own_.at(timer.owner);
      on_own_end(pack_handle(own_.handle_of(timer.owner)), own.refused_with, nullptr);
    });
  }
  /// When `advance` is to be called next; UINT64_MAX where nothing waits.
  std::uint64_t next_deadline() const {
    const auto or_never = [](std::optional<std::uint64_t> deadline_ms) {
      return deadline_ms.value_or(UINT64_MAX);
    };
    return std::min({or_never(layer_.next_deadline()), or_never(relays_.next_deadline()),
                     or_never(timers_.next_deadline()), or_never(own_timers_.next_deadline()),
                     registrar_.next_deadline()});
  }

  HandlerChain& handlers() { return chain_; }
  void set_domains(OwnDomains domains) { domains_ = std::move(domains); }
  /// Other settings and users from now on; bindings and what is on its way stay. Timers, table
  /// sizes and everything of the digest are those of the start. A handler may call this, and the
  /// users before may go as soon as it has returned.
  void reload(const Settings& settings, const UserDirectory& users) {
    settings_ = std::make_shared<const Settings>(settings);
    users_ = &users;
    apply_settings();
  }
  /// Seconds since 1970 when `now_ms` was 0, for Date headers; without it none is written.
  void set_unix_time_at_zero(std::int64_t unix_s) { unix_s_at_zero_ = unix_s; }
  /// The verdict a handler promised with Verdict::later(), and what it has changed since it said
  /// so. Errors: `gone` where it was given before, its deadline is over or the sender has given up;
  /// `bad_argument` for one more `later`.
  Error resume(RouteKey key, const Verdict& verdict, std::uint64_t now_ms,
               const RouteChanges& changes = {});

  /// Whom to ask about messages that nobody took. Each message is kept for that until it is
  /// answered.
  void on_undelivered(UndeliveredHandler handler) {
    relays_.keep_requests(static_cast<bool>(handler));
    undelivered_ = handler ? std::make_shared<UndeliveredHandler>(std::move(handler)) : nullptr;
  }
  void on_registration(RegistrationHandler handler) {
    registration_ = handler ? std::make_shared<RegistrationHandler>(std::move(handler)) : nullptr;
  }

  /// Sends a message of our own to all bindings of the user that `outgoing.to` names, or to the one
  /// whose contact `outgoing.request_uri` is. No handler is asked. `done` is called exactly once,
  /// later: with the recipient's answer, or as its sender would be answered.
  ///
  /// Errors, after which `done` is not called: those of Agent::send for what is wrong in
  /// `outgoing`; `limit_reached`. `next_hop`, `login` and `method` are not looked at.
  Error send(const Outgoing& outgoing, std::uint64_t now_ms, SentHandler done);
  /// Tells everybody who waits for the end of a message of our own that it is `closed`, before it
  /// returns. Nothing may be called afterwards.
  void close();

  /// Whether a message to that name could ever find somebody.
  bool is_known(std::string_view name) const;
  /// Calls `use(const Binding&)` on the user's own bindings; where no user has that name, on those
  /// of all who list it as an alternative. `use` may not change them.
  template <class Use>
  void for_each_binding(std::string_view name, std::uint64_t now_ms, Use use) const {
    const bool is_own = registrar_.count(name, now_ms) > 0 || users_->find(name) != nullptr;
    if (is_own) return registrar_.for_each(name, now_ms, use);
    users_->for_each_alternative(
        name, [&](const UserSettings& user) { registrar_.for_each(user.name, now_ms, use); });
  }

  const ServerCounters& counters() const { return counters_; }
  std::size_t transactions() const { return layer_.size(); }
  /// How many messages are on their way to their recipients.
  std::size_t relays() const { return relays_.size(); }
  /// Octets held by kept messages.
  std::size_t kept_size() const { return layer_.kept_size() + relays_.kept_size(); }
  /// How many messages wait for a handler's verdict.
  std::size_t waiting() const { return waiting_.size(); }

 private:
  /// A MESSAGE while the handlers look at it. Texts are views, names as written.
  struct Asked {
    RelayRequest request;
    std::string_view caller;
    std::string_view caller_name;
    std::string_view called;
    ShortText username;  ///< a copy: a handler may call reload, and end the user's life
    HandlerChain::Position position;
    RouteChanges changes;
    ShortText user;            ///< to whose bindings it went, empty for others; before it was tried
    int undelivered_code = 0;  ///< what nobody who took it answered; 0 before it was tried
  };

  /// One that a handler keeps: what Asked borrows, owned.
  struct Waiting {
    Waiting(const Asked& asked_now, std::uint32_t index)
        : message(*asked_now.request.message), asked(asked_now), timer(index) {
      asked.request.message = &message;
      read_names(asked);
    }

    const Message message;
    Asked asked;
    Timer timer;
  };

  /// A message of our own on its way; or refused, which is told at once but not from inside `send`.
  struct OwnMessage {
    SentHandler done;
    int refused_with = 0;
    Timer timer;
  };

  static std::string_view text_of(const SipHashKey& key) {
    return detail::as_text(key.data(), key.size());
  }
  void set_now(std::uint64_t now_ms) {
    now_ms_ = now_ms;
    answers_.set_now(now_ms);
    relays_.set_now(now_ms);
  }
  void apply_settings() {
    answers_.set_server_name(settings_->user_agent);
    answers_.set_retry_after(settings_->flood.retry_after_s);
    chain_.remove(users_handler_);
    users_handler_ =
        chain_.add(static_cast<int>(settings_->route_priority),
                   [this](const RouteRequest& request) { return route_to_user(request); });
  }

  // TransactionUser
  inline void on_request(ServerTransaction server, const MessageView& request,
                         const Flow& from) override;
  void on_response(ClientTransaction client, const MessageView& response, const Flow&) override {
    relays_.on_response(client, response);
  }
  void on_failure(ClientTransaction client, Error) override { relays_.on_failure(client); }

  void on_message(ServerTransaction server, const MessageView& request, const Flow& from);
  void on_register(ServerTransaction server, const MessageView& request, const Flow& from);
  void on_options(ServerTransaction server, const MessageView& request);

  bool is_flood() const {
    return settings_->flood.events != 0 && events_ > settings_->flood.events;
  }
  bool is_flood_victim(const MessageView& message, const Flow& from) const;
  void refuse_method(ServerTransaction server);
  bool refuse_scheme(ServerTransaction server, const UriView& uri);
  bool refuse_domain(ServerTransaction server, int code, const UriView& uri);
  bool refuse_extensions(ServerTransaction server, const MessageView& request, HeaderId id,
                         std::string_view known);
  bool refuse_name(ServerTransaction server, const UserSettings& user, const UriView& address,
                   std::string_view header);
  void challenge(ServerTransaction server, ChallengeKind kind, const Identity& identity,
                 const MessageView& request, const Flow& from);
  void write_allow(Output& out) const;

  bool refuse_route(const MessageView& request, Asked& asked);
  bool refuse_sender(const MessageView& request, const UriView& from, Asked& asked);
  static void read_names(Asked& asked);
  Verdict route_to_user(const RouteRequest& request) const;
  RouteContext context_of(const Asked& asked, const Settings& settings) const;
  void set_keys_of_sender(const RouteRequest& request) const;
  using AskHandlers = detail::FunctionRef<Verdict(const RouteRequest&)>;
  std::optional<Verdict> ask(Asked& asked, AskHandlers ask_handlers);
  void walk(Asked& asked);
  void decide(Asked& asked, const Verdict& verdict);
  void decide_next(const Asked& asked);
  int refusal_of(const Asked& asked) const;
  std::uint64_t patience_of(const Asked& asked) const;
  void keep_waiting(const Asked& asked, RouteKey key);
  void give_up_waiting(std::uint32_t index);
  void refuse(const Asked& asked, int code, std::string_view phrase = {});
  void forward(Asked& asked, const std::vector<std::string>& uris);
  void refuse_undelivered(Asked& asked, int code);
  bool alter(Asked& asked, Message& altered);
  void add_bindings(std::string_view name);
  ShortText add_uri(std::string_view text);
  void add_target(const RelayTarget& target);

  // RelayUser
  inline bool on_undelivered(const RelayRequest& request, int code) override;
  inline void on_own_end(std::uint64_t own, int code, const MessageView* response) override;
  void end_own(Handle handle, const Outcome& outcome);
  void write_own(Output& out, const Outgoing& outgoing, const NameAddr& to, const NameAddr& from);
  void add_binding(std::string_view user, std::string_view contact);

  void write_registration(Output& out, std::string_view user, const MessageView& request,
                          const RegisterOutcome& outcome);
  void tell_registration(std::string_view user, const MessageView& request,
                         const RegisterOutcome& outcome);

  std::shared_ptr<const Settings> settings_;  ///< never null
  const UserDirectory* users_;
  Registrar& registrar_;
  Sink& sink_;
  ServerLog& log_;
  Random random_;
  ServerCounters counters_;
  OwnDomains domains_;
  TransactionLayer layer_;
  OwnAnswers answers_;
  RelaySet relays_;
  AccessControl access_;
  HandlerChain chain_;
  HandlerChain::Id users_handler_ = 0;
  std::uint64_t t1_ms_;
  Timers timers_;
  /// A place for each message that handlers look at, taken in advance because they are given its
  /// key; empty until one of them wants to answer later.
  Slab<std::unique_ptr<Waiting>> waiting_;
  std::shared_ptr<UndeliveredHandler> undelivered_;
  std::shared_ptr<RegistrationHandler> registration_;
  Timers own_timers_;
  Slab<OwnMessage> own_;
  std::uint32_t own_cseq_ = 0;
  std::array<RelayTarget, RelaySet::max_breadth + 1> targets_;
  std::size_t target_count_ = 0;
  std::uint64_t now_ms_ = 0;
  std::uint64_t events_ = 0;
  std::optional<std::int64_t> unix_s_at_zero_;
  LogLimit message_off_log_{1};
  LogLimit domain_log_{1};
  LogLimit waiting_log_{1};
  LogLimit deadline_log_{10};
  LogLimit password_log_{30};
  LogLimit name_log_{30};
  LogLimit registration_log_{100};
};

// Every request.

inline void Proxy::on_request(ServerTransaction server, const MessageView& request,
                              const Flow& from) {
  switch (request.method()) {
    case Method::message:
      if (settings_->message.enable) return on_message(server, request, from);
      if (message_off_log_.admits(now_ms_)) {
        log_.log(Severity::warning,
                 "MESSAGE refused with 501: set [message] enable=yes in ysipchan.conf");
      }
      break;
    case Method::register_:
      if (settings_->registrar.enable) return on_register(server, request, from);
      break;
    case Method::options:
      if (settings_->options_enable) return on_options(server, request);
      break;
    // RFC 3261 9.2: only INVITE can be cancelled, and no INVITE is ever left unanswered here.
    case Method::cancel:
      return answers_.send(server, layer_.find_cancelled(request, from) ? 200 : 481);
    default: break;
  }
  refuse_method(server);
}

/// Yate answers 501 to whatever is not in its Allow list, also to methods it knows.
inline void Proxy::refuse_method(ServerTransaction server) {
  answers_.send(server, 501, {}, [this](Output& out) { write_allow(out); });
}

inline void Proxy::write_allow(Output& out) const {
  std::string_view separator;
  out.raw("Allow: ");
  const auto add = [&](bool enabled, std::string_view method) {
    if (!enabled) return;
    out.raw(separator).raw(method);
    separator = ", ";
  };
  add(settings_->message.enable, "MESSAGE");
  add(settings_->registrar.enable, "REGISTER");
  add(settings_->options_enable, "OPTIONS");
  out.raw("\r\n");
}

/// In a flood REGISTER, OPTIONS and the like over UDP are dropped unanswered, because their clients
/// come back by themselves. MESSAGE never is.
inline bool Proxy::is_flood_victim(const MessageView& message, const Flow& from) const {
  if (!settings_->flood.protection || !is_flood() || from.transport != Transport::udp) return false;
  const Method method = message.method();
  return message.is_request() && (method == Method::register_ || method == Method::options ||
                                  method == Method::subscribe || method == Method::invite);
}

/// RFC 3261 8.2.2.1, 16.3: we serve sip. A sips request asks for TLS on every hop, which we have
/// not.
inline bool Proxy::refuse_scheme(ServerTransaction server, const UriView& uri) {
  if (uri.scheme == UriScheme::sip) return false;
  answers_.send(server, 416);
  return true;
}

/// Not ours to serve, and relaying it would make us an open relay.
inline bool Proxy::refuse_domain(ServerTransaction server, int code, const UriView& uri) {
  if (domains_.contains(uri.host)) return false;
  if (domain_log_.admits(now_ms_)) {
    log_.log(Severity::warning, "a request for the foreign domain " + std::string(uri.host) +
                                    " refused with " + std::to_string(code) +
                                    ": [general] domains in ysipchan.conf lists our own");
  }
  answers_.send(server, code);
  return true;
}

/// RFC 3261 8.2.2.3 (Require) and 16.3 step 5 (Proxy-Require): 420, naming what we do not know.
inline bool Proxy::refuse_extensions(ServerTransaction server, const MessageView& request,
                                     HeaderId id, std::string_view known) {
  const auto is_unknown = [known](std::string_view tag) {
    return !tag.empty() && !equal_ignoring_case(tag, known);
  };
  const auto tags = request.values(id);
  bool unknown = false;
  for (std::string_view tag : tags) unknown = unknown || is_unknown(tag);
  if (!unknown) return false;
  answers_.send(server, 420, {}, [&](Output& out) {
    for (std::string_view tag : tags) {
      if (is_unknown(tag) && is_token(tag)) write_header(out, HeaderId::unsupported, tag);
    }
  });
  return true;
}

inline void Proxy::challenge(ServerTransaction server, ChallengeKind kind, const Identity& identity,
                             const MessageView& request, const Flow& from) {
  if (!identity.refusal.empty() && password_log_.admits(now_ms_)) {
    log_.log(Severity::warning, std::string(identity.refusal) + " in " +
                                    std::string(request.method_text()) + " from " +
                                    to_text(from.remote));
  }
  const bool stale = identity.kind == Identity::Kind::stale;
  answers_.send_statelessly(server, challenge_code(kind), [&](Output& out) {
    access_.write_challenges(out, kind, stale, from.remote.ip, now_ms_);
  });
}

/// An account is no licence to use other people's names: 403 where the address in that header is
/// none of the user's.
inline bool Proxy::refuse_name(ServerTransaction server, const UserSettings& user,
                               const UriView& address, std::string_view header) {
  const ShortText name = ShortText::unescaped(address.user);
  if (may_speak_as(user, address, name.view(), domains_)) return false;
  if (name_log_.admits(now_ms_)) {
    const bool is_foreign = answers_to(user, name.view());
    log_.log(Severity::warning,
             "user " + user.name + " may not use the " + std::string(header) + " address " +
                 std::string(address.text) +
                 (is_foreign ? ": [general] domains in ysipchan.conf does not list its domain"
                             : ": it is neither the user's name nor one of the alternatives"));
  }
  answers_.send(server, 403);
  return true;
}

// MESSAGE: the checks of RFC 3261 16.3, in its order.

inline void Proxy::on_message(ServerTransaction server, const MessageView& request,
                              const Flow& from) {
  const auto uri = request.request_uri();
  if (refuse_scheme(server, *uri)) return;
  const std::uint32_t most = settings_->max_forwards;
  const std::uint32_t hops = std::min(request.max_forwards().value_or(most), most);
  if (hops == 0) return answers_.send(server, 483);

  Asked asked;
  asked.request.server = server;
  asked.request.message = &request;
  asked.request.source = from;
  asked.request.received_ms = now_ms_;
  asked.request.loop_hash = relays_.loop_hash(request);
  asked.request.max_forwards = hops - 1;
  if (relays_.is_loop(request, asked.request.loop_hash)) return answers_.send(server, 482);
  if (refuse_extensions(server, request, HeaderId::proxy_require, {})) return;
  if (refuse_domain(server, 403, *uri)) return;
  if (refuse_route(request, asked)) return;

  const auto sender = request.from();
  if (refuse_sender(request, sender->uri, asked)) return;
  if (asked.request.removed.overflowed()) {
    return answers_.send(server, 400, "Too many Route or credentials headers");
  }
  asked.caller = sender->uri.user;
  asked.caller_name = sender->display_name;
  asked.called = uri->user;
  walk(asked);
}

/// Routes that name us have led here and are taken off (RFC 3261 16.4); any other would make us a
/// relay.
inline bool Proxy::refuse_route(const MessageView& request, Asked& asked) {
  for (std::string_view element : request.values(HeaderId::route)) {
    const auto route = parse_name_addr(element);
    if (!route) {
      answers_.send(asked.request.server, 400, route.error().text());
      return true;
    }
    if (refuse_domain(asked.request.server, 403, route->uri)) return true;
  }
  for (std::size_t field = request.find(HeaderId::route); field != request.header_count();
       field = request.find_next(field)) {
    asked.request.removed.add(field);
  }
  return false;
}

/// Finds out who sent it, and takes note of what the recipient is not to see: our credentials, and
/// a P-Asserted-Identity, which says for certain what nobody has checked (RFC 3325 5).
inline bool Proxy::refuse_sender(const MessageView& request, const UriView& from, Asked& asked) {
  FieldList& removed = asked.request.removed;
  if (!settings_->message.auth_required) {
    access_.find_own(request, ChallengeKind::www, removed);
    access_.find_own(request, ChallengeKind::proxy, removed);
    return false;
  }
  const ServerTransaction server = asked.request.server;
  const Flow& source = asked.request.source;
  const bool by_proxy = settings_->message.auth_code == 407;
  const ChallengeKind kind = by_proxy ? ChallengeKind::proxy : ChallengeKind::www;
  const Identity identity =
      access_.identify(request, kind, *users_, source.remote.ip, now_ms_, removed);
  if (identity.kind != Identity::Kind::known) {
    challenge(server, kind, identity, request, source);
    return true;
  }
  if (refuse_name(server, *identity.user, from, "From")) return true;
  asked.username = ShortText(identity.user->name);
  access_.find_own(request, by_proxy ? ChallengeKind::www : ChallengeKind::proxy, removed);
  for (std::size_t i = 0; i < request.header_count(); ++i) {
    const HeaderField field = request.field(i);
    if (field.id != HeaderId::other) continue;
    if (equal_ignoring_case(field.name, "P-Asserted-Identity")) removed.add(i);
  }
  return false;
}

// MESSAGE: the handlers.

/// The names again, as views of the message that Asked now points to.
inline void Proxy::read_names(Asked& asked) {
  const auto from = asked.request.message->from();
  asked.caller = from->uri.user;
  asked.caller_name = from->display_name;
  asked.called = asked.request.message->request_uri()->user;
}

inline RouteContext Proxy::context_of(const Asked& asked, const Settings& settings) const {
  RouteContext context;
  context.listener = sink_.listener_name(asked.request.source);
  for (const ListenerSettings& listener : settings.listeners) {
    if (listener.name == context.listener) context.role = listener.role;
  }
  context.realm = settings.digest.realm;
  context.to_tag = layer_.to_tag(asked.request.server);
  context.hops = asked.request.max_forwards;
  context.received_ms = asked.request.received_ms;
  context.body_encoding = settings.body_encoding;
  context.initial_headers = settings.initial_headers;
  return context;
}

/// What regfile.conf says of the sender takes part as if a handler before all others had set it.
inline void Proxy::set_keys_of_sender(const RouteRequest& request) const {
  const UserSettings* user =
      users_->find(request.username.empty() ? request.caller : request.username);
  if (user == nullptr) return;
  for (const auto& [name, text] : user->parameters) {
    request.changes->set(name, detail::user_parameter(request, text));
  }
}

/// What they say; nothing where they say so later.
inline std::optional<Verdict> Proxy::ask(Asked& asked, AskHandlers ask_handlers) {
  const ShortText caller = ShortText::unescaped(asked.caller);
  const bool was_sent = !asked.user.view().empty();
  const ShortText called = was_sent ? asked.user : ShortText::unescaped(asked.called);
  const RouteKey key = waiting_.create();
  const std::shared_ptr<const Settings> settings = settings_;  // a handler may call reload
  const RouteRequest request{*asked.request.message,
                             caller.view(),
                             asked.caller_name,
                             called.view(),
                             asked.username.view(),
                             asked.request.source,
                             key,
                             &asked.changes,
                             context_of(asked, *settings)};
  Verdict verdict = ask_handlers(request);
  if (verdict.kind() == Verdict::Kind::later) {
    keep_waiting(asked, key);
    return std::nullopt;
  }
  waiting_.destroy(key);
  return verdict;
}

inline void Proxy::walk(Asked& asked) {
  const auto verdict = ask(asked, [&](const RouteRequest& request) {
    if (asked.position.id == 0) set_keys_of_sender(request);
    return chain_.walk(asked.position, request);
  });
  if (verdict) decide(asked, *verdict);
}

inline void Proxy::decide(Asked& asked, const Verdict& verdict) {
  const int code = verdict.code();
  switch (verdict.kind()) {
    case Verdict::Kind::next: return decide_next(asked);
    case Verdict::Kind::accept: return refuse(asked, code / 100 == 2 ? code : 202);
    case Verdict::Kind::reject: return refuse(asked, code < 300 ? 500 : code, verdict.phrase());
    case Verdict::Kind::forward: return forward(asked, verdict.uris());
    case Verdict::Kind::later: return;
  }
}

/// No handler took it: neither one that routes, nor, where it was tried in vain, one that keeps it.
inline void Proxy::decide_next(const Asked& asked) {
  if (asked.undelivered_code == 0) {
    const int code = refusal_of(asked);
    return refuse(asked, code != 0 ? code : 404);
  }
  // RFC 3261 16.7 step 6, as in RelaySet.
  if (asked.undelivered_code == 503) return refuse(asked, 500, "Recipient Unavailable");
  if (asked.undelivered_code != settings_->message.offline_code) {
    return refuse(asked, asked.undelivered_code);
  }
  answers_.send(asked.request.server, asked.undelivered_code, {}, [&](Output& out) {
    write_allow(out);
    detail::write_answer_headers(out, asked.changes);
  });
}

/// What the parameters that handlers have left ask for: a code from 300 to 699, or 0.
inline int Proxy::refusal_of(const Asked& asked) const {
  if (asked.changes.empty()) return 0;
  RouteChanges changes = asked.changes;
  const RouteRequest request{*asked.request.message, {}, {},      {}, {},
                             asked.request.source,   {}, &changes};
  return refusal_asked_for(request).value_or(0);
}

/// Answers with what handlers want to stand in the answer.
inline void Proxy::refuse(const Asked& asked, int code, std::string_view phrase) {
  answers_.send(asked.request.server, code, phrase,
                [&](Output& out) { detail::write_answer_headers(out, asked.changes); });
}

/// How long the sender may still be kept waiting. What nobody took has used that up, if all were
/// silent; then a part of what is left until the sender's own timer ends is for whoever keeps it.
inline std::uint64_t Proxy::patience_of(const Asked& asked) const {
  const std::uint64_t patience_ms = detail::patience_ms(asked.request.received_ms, now_ms_, t1_ms_);
  return asked.undelivered_code == 0 ? patience_ms : std::max(patience_ms, 3 * t1_ms_);
}

inline void Proxy::keep_waiting(const Asked& asked, RouteKey key) {
  if (waiting_.size() > settings_->message.max_pending) {
    waiting_.destroy(key);
    if (waiting_log_.admits(now_ms_)) {
      log_.log(Severity::warning,
               "messages refused with 503: [message] max_pending in ysipchan.conf limits how many "
               "may wait for handlers");
    }
    return answers_.send(asked.request.server, 503);
  }
  std::unique_ptr<Waiting>& waiting = waiting_.at(key.index);
  waiting = std::make_unique<Waiting>(asked, key.index);
  const std::uint64_t deadline_ms =
      std::min(std::uint64_t{1000} * settings_->message.handler_deadline_s, patience_of(asked));
  timers_.queue(deadline_ms).start(waiting->timer, now_ms_);
}

inline void Proxy::give_up_waiting(std::uint32_t index) {
  const ServerTransaction server = waiting_.at(index)->asked.request.server;
  waiting_.destroy(waiting_.handle_of(index));
  if (deadline_log_.admits(now_ms_)) {
    log_.log(Severity::warning,
             "a handler did not answer in time: its message is refused with 504");
  }
  answers_.send(server, 504);
}

inline Error Proxy::resume(RouteKey key, const Verdict& verdict, std::uint64_t now_ms,
                           const RouteChanges& changes) {
  set_now(now_ms);
  if (verdict.kind() == Verdict::Kind::later) return ErrorCode::bad_argument;
  std::unique_ptr<Waiting>* place = waiting_.get(key);
  if (place == nullptr || *place == nullptr) return ErrorCode::gone;
  // Out of the table first: a handler further down the chain may want to answer later, too.
  const std::unique_ptr<Waiting> waiting = std::move(*place);
  waiting->timer.cancel();
  waiting_.destroy(key);
  Asked& asked = waiting->asked;
  if (patience_of(asked) == 0) {
    answers_.send(asked.request.server, 504);
    return ErrorCode::gone;
  }
  asked.changes.apply(changes);
  if (verdict.kind() == Verdict::Kind::next && asked.undelivered_code == 0) {
    walk(asked);
  } else {
    decide(asked, verdict);
  }
  return {};
}

/// The handler of the users themselves: everybody we know is reached at his bindings.
inline Verdict Proxy::route_to_user(const RouteRequest& request) const {
  const RouteChanges::Change* called = request.changes->find("called");
  return is_known(called == nullptr ? request.called : called->value) ? Verdict::forward({})
                                                                      : Verdict::next();
}

inline bool Proxy::is_known(std::string_view name) const {
  if (name.empty()) return false;
  return settings_->registrar.accept_any_user || settings_->registrar.autocreate ||
         users_->knows(name);
}

// MESSAGE: to the bindings.

/// Without URIs the message goes to the bindings of whom it names. A handler that left a `code` or
/// used up the hops, and let others route, has refused it all the same.
inline void Proxy::forward(Asked& asked, const std::vector<std::string>& uris) {
  if (const int code = detail::forbidden_by(asked.changes)) return refuse(asked, code);
  Message altered;
  if (!alter(asked, altered)) return refuse(asked, 500);
  target_count_ = 0;
  asked.user = {};
  if (uris.empty()) {
    asked.user = ShortText::unescaped(asked.called);
    add_bindings(asked.user.view());
    if (target_count_ == 0 && !is_known(asked.user.view())) return refuse(asked, 404);
  }
  for (std::size_t i = 0; i < uris.size(); ++i) {
    const ShortText user = add_uri(uris[i]);
    asked.user = i == 0 || user.view() == asked.user.view() ? user : ShortText();
  }
  if (target_count_ == 0) return refuse_undelivered(asked, settings_->message.offline_code);
  asked.request.username = asked.username.view();
  asked.request.user = asked.user.view();
  const int code = relays_.start(asked.request, targets_.data(), target_count_);
  if (code == 480) return refuse_undelivered(asked, code);
  if (code != 0) refuse(asked, code);  // a limit of ours, which is no reason to keep the message
}

/// Asks whoever keeps messages, but once only: it may have sent the message somewhere else.
inline void Proxy::refuse_undelivered(Asked& asked, int code) {
  const bool was_asked = asked.undelivered_code != 0;
  asked.undelivered_code = code;
  const std::shared_ptr<UndeliveredHandler> handler = undelivered_;  // it may replace itself
  if (was_asked || !handler || !is_known(asked.user.view())) return decide_next(asked);
  const auto verdict =
      ask(asked, [&](const RouteRequest& request) { return (*handler)(request, code); });
  if (verdict) decide(asked, *verdict);
}

inline bool Proxy::on_undelivered(const RelayRequest& request, int code) {
  const std::shared_ptr<UndeliveredHandler> handler = undelivered_;
  if (!handler) return false;
  Asked asked;
  asked.request = request;
  asked.username = ShortText(request.username);
  asked.user = ShortText(request.user);
  asked.undelivered_code = code;
  read_names(asked);
  const auto verdict =
      ask(asked, [&](const RouteRequest& route) { return (*handler)(route, code); });
  if (verdict && verdict->kind() == Verdict::Kind::next) return false;
  if (verdict) decide(asked, *verdict);
  return true;
}

/// Where handlers have set another body, other headers or another user to call, makes the message
/// anew and has `asked` point to it. False where what they set cannot be sent.
inline bool Proxy::alter(Asked& asked, Message& altered) {
  if (!detail::alters_message(asked.changes)) return true;
  auto text = detail::altered_message(*asked.request.message, asked.request.removed, asked.changes);
  if (text) {
    auto message = Message::from_bytes(std::move(text).value());
    if (message) {
      altered = std::move(message).value();
      asked.request.message = &altered;
      asked.request.removed = {};
      read_names(asked);
      return true;
    }
    text = message.error();
  }
  if (waiting_log_.admits(now_ms_)) {
    log_.log(Severity::warning, std::string("a handler's change cannot be sent: ") +
                                    text.error().text() + ": its message is refused with 500");
  }
  return false;
}

inline void Proxy::add_bindings(std::string_view name) {
  for_each_binding(name, now_ms_, [this](const Binding& binding) {
    add_target({binding.request_uri, binding.path, binding.flow});
  });
}

/// Returns the user whose bindings these are, none for a URI of somebody else.
inline ShortText Proxy::add_uri(std::string_view text) {
  const auto uri = parse_uri(text);
  if (uri && uri->scheme != UriScheme::sip) return {};
  const ShortText user = uri ? ShortText::unescaped(uri->user) : ShortText(text);  // a bare name
  if (!uri || (domains_.contains(uri->host) && is_known(user.view()))) {
    add_bindings(user.view());
    return user;
  }
  // A phone may share our address, and its contact then has our domain and a name of its own.
  static_cast<void>(locate(*uri, nullptr, random_, [&](Error, const std::vector<Flow>& hops) {
    // Headers may not stand in a Request-URI (RFC 3261 19.1.1).
    if (!hops.empty()) add_target({text.substr(0, text.find('?')), {}, hops.front()});
  }));
  return {};
}

/// Each only once (RFC 3261 16.5). There is one place more than may be used, by which RelaySet sees
/// that they are too many.
inline void Proxy::add_target(const RelayTarget& target) {
  if (target_count_ == targets_.size()) return;
  for (std::size_t i = 0; i < target_count_; ++i) {
    if (targets_[i].uri == target.uri && targets_[i].flow == target.flow) return;
  }
  targets_[target_count_++] = target;
}

// Messages of our own.

inline Error Proxy::send(const Outgoing& outgoing, std::uint64_t now_ms, SentHandler done) {
  set_now(now_ms);
  const auto to = detail::parse_party(outgoing.to);
  if (!to) return to.error();
  const auto from = detail::parse_party(outgoing.from);
  if (!from) return from.error();
  if (const Error error = detail::check_headers(outgoing.headers, false)) return error;
  if (!outgoing.call_id.empty() && !detail::is_call_id(outgoing.call_id)) {
    return ErrorCode::bad_call_id;
  }
  if (own_.size() >= settings_->max_transactions) return ErrorCode::limit_reached;
  std::string text(max_message_size, '\0');
  Output out(&text[0], text.size());
  write_own(out, outgoing, *to, *from);
  if (out.error().code == ErrorCode::no_room) return ErrorCode::too_large;
  if (out.error()) return out.error();
  text.resize(out.size());
  const auto message = Message::from_bytes(std::move(text));
  if (!message) return message.error();

  const Handle handle = own_.create();
  OwnMessage& own = own_.at(handle.index);
  own.done = std::move(done);
  RelayRequest request;
  request.own = pack_handle(handle);
  request.message = &message.value();
  request.received_ms = now_ms_;
  request.loop_hash = relays_.loop_hash(*message);
  request.max_forwards = settings_->max_forwards;
  target_count_ = 0;
  const ShortText user = ShortText::unescaped(to->uri.user);
  if (outgoing.next_hop) {
    const bool has_uri = !outgoing.request_uri.empty();
    add_target(
        {has_uri ? std::string_view(outgoing.request_uri) : to->uri.text, {}, *outgoing.next_hop});
  } else if (outgoing.request_uri.empty()) {
    add_bindings(user.view());
  } else {
    add_binding(user.view(), outgoing.request_uri);
  }
  if (target_count_ == 0) {
    own.refused_with = is_known(user.view()) ? settings_->message.offline_code : 404;
  } else {
    own.refused_with = relays_.start(request, targets_.data(), target_count_);
  }
  if (own.refused_with != 0) {
    own.timer.owner = handle.index;
    own_timers_.queue(0).start(own.timer, now_ms_);
  }
  return {};
}

/// RFC 3261 8.1.1, but for Via and Request-URI, which each branch gets its own of.
inline void Proxy::write_own(Output& out, const Outgoing& outgoing, const NameAddr& to,
                             const NameAddr& from) {
  std::array<char, 13> token;
  const auto fresh = [&]() -> std::string_view {
    random_.write_token(token.data(), token.size());
    return {token.data(), token.size()};
  };
  out.raw("MESSAGE ").word(to.uri.text).raw(" SIP/2.0\r\n");
  write_header(out, HeaderId::max_forwards, settings_->max_forwards);
  out.raw("From: ").value(detail::party_text(from)).raw(";tag=").token(fresh()).raw("\r\n");
  out.raw("To: ").value(detail::party_text(to)).raw("\r\n");
  const std::string_view call_id = outgoing.call_id;
  out.raw("Call-ID: ").word(call_id.empty() ? fresh() : call_id).raw("\r\n");
  own_cseq_ = (own_cseq_ + 1) & 0x7fffffff;
  out.raw("CSeq: ").number(own_cseq_).raw(" MESSAGE\r\n");
  for (const auto& header : outgoing.headers) write_header(out, header.first, header.second);
  write_header(out, HeaderId::user_agent, settings_->user_agent);
  write_body(out, outgoing.body.empty() ? std::string_view() : outgoing.content_type,
             outgoing.body);
}

/// The user's one binding with that contact.
inline void Proxy::add_binding(std::string_view user, std::string_view contact) {
  for_each_binding(user, now_ms_, [&](const Binding& binding) {
    if (binding.contact_uri != contact) return;
    add_target({binding.request_uri, binding.path, binding.flow});
  });
}

inline void Proxy::on_own_end(std::uint64_t own, int code, const MessageView* response) {
  Outcome outcome;
  outcome.code = code;
  outcome.reason =
      std::string(response == nullptr ? default_reason_phrase(code) : response->reason_phrase());
  outcome.response = response;
  end_own(unpack_handle(own), outcome);
}

inline void Proxy::end_own(Handle handle, const Outcome& outcome) {
  OwnMessage* message = own_.get(handle);
  if (message == nullptr) return;
  const SentHandler done = std::move(message->done);
  own_.destroy(handle);
  if (done) done(outcome);
}

inline void Proxy::close() {
  Outcome outcome;
  outcome.error = ErrorCode::closed;
  own_.for_each([&](Handle handle, OwnMessage&) { end_own(handle, outcome); });
}

// REGISTER: RFC 3261 10.3.

inline void Proxy::on_register(ServerTransaction server, const MessageView& request,
                               const Flow& from) {
  const auto uri = request.request_uri();
  const auto to = request.to();
  if (refuse_scheme(server, *uri)) return;
  if (refuse_domain(server, 404, *uri)) return;
  if (refuse_extensions(server, request, HeaderId::require, "path")) return;
  // Who that is has to be proved before anything is said of the address.
  const UserSettings* user = nullptr;
  if (settings_->registrar.auth_required) {
    FieldList own;
    const Identity identity =
        access_.identify(request, ChallengeKind::www, *users_, from.remote.ip, now_ms_, own);
    if (identity.kind != Identity::Kind::known) {
      return challenge(server, ChallengeKind::www, identity, request, from);
    }
    user = identity.user;
  }
  if (to->uri.scheme != UriScheme::sip) return answers_.send(server, 404);
  if (refuse_domain(server, 404, to->uri)) return;
  if (user != nullptr && refuse_name(server, *user, to->uri, "To")) return;

  const ShortText to_name = ShortText::unescaped(to->uri.user);
  // A copy, for whoever reads the log or is told may call reload.
  const ShortText own_name(user != nullptr ? user->name : to_name.view());
  const std::string_view name = own_name.view();
  if (!is_known(name)) return answers_.send(server, 404);
  const RegisterOutcome outcome = registrar_.update(name, request, from, now_ms_);
  char buffer[128];
  Output phrase(buffer, sizeof buffer);
  phrase.raw(outcome.reason);
  if (outcome.error.place > 0) {
    phrase.raw(" (octet ").number(static_cast<std::uint64_t>(outcome.error.place)).raw(")");
  }
  answers_.send(server, outcome.status, phrase.written(), [&](Output& out) {
    if (outcome.status == 200) return write_registration(out, name, request, outcome);
    if (outcome.min_expires_s != 0) write_header(out, HeaderId::min_expires, outcome.min_expires_s);
  });
  // Last of all, for whoever reads the log may call us again.
  if (outcome.added > 0 && registration_log_.admits(now_ms_)) {
    log_.log(Severity::info, std::string(name) + " registered from " +
                                 std::string(transport_parameter(from.transport)) + " " +
                                 to_text(from.remote));
  }
  if (registration_ && outcome.status == 200) tell_registration(name, request, outcome);
}

/// One event for each contact of the request.
inline void Proxy::tell_registration(std::string_view user, const MessageView& request,
                                     const RegisterOutcome& outcome) {
  for (std::string_view element : request.values(HeaderId::contact)) {
    const auto contact = parse_name_addr(element);
    if (!contact) continue;
    RegistrationEvent event;
    event.kind = RegistrationEvent::Kind::removed;
    event.user = user;
    event.contact = contact->uri.text;
    event.user_agent = request.header(HeaderId::user_agent);
    registrar_.for_each(event.user, now_ms_, [&](const Binding& binding) {
      if (binding.contact_uri != event.contact) return;
      event.kind =
          outcome.added > 0 ? RegistrationEvent::Kind::added : RegistrationEvent::Kind::refreshed;
      event.flow = binding.flow;
      event.expires_s = static_cast<std::uint32_t>((binding.expires_at_ms - now_ms_) / 1000);
    });
    const std::shared_ptr<RegistrationHandler> handler = registration_;  // it may replace itself
    if (handler) (*handler)(event);
  }
}

/// All current bindings with the time each has left, and what a client behind a NAT should know.
inline void Proxy::write_registration(Output& out, std::string_view user,
                                      const MessageView& request, const RegisterOutcome& outcome) {
  registrar_.write_contacts(out, user, now_ms_);
  if (outcome.expires_s != 0) write_header(out, HeaderId::expires, outcome.expires_s);
  for (std::string_view path : request.values(HeaderId::path)) {  // RFC 3327 5.3
    out.raw("Path: ").raw(path).raw("\r\n");
  }
  if (unix_s_at_zero_) {
    const auto now_s = *unix_s_at_zero_ + static_cast<std::int64_t>(now_ms_ / 1000);
    write_header(out, HeaderId::date, format_date(now_s));
  }
  if (outcome.nat_contact.empty()) return;
  out.raw("X-Real-Contact: <");
  write_contact_outside_nat(out, outcome.nat_contact, outcome.nat_address);
  out.raw(">\r\n");
  if (settings_->registrar.nat_refresh_s != 0) {
    out.raw("P-NAT-Refresh: ").number(settings_->registrar.nat_refresh_s).raw("\r\n");
  }
}

// OPTIONS: RFC 3261 11.2.

inline void Proxy::on_options(ServerTransaction server, const MessageView& request) {
  const auto uri = request.request_uri();
  if (refuse_scheme(server, *uri)) return;
  if (refuse_domain(server, 404, *uri)) return;
  if (refuse_extensions(server, request, HeaderId::proxy_require, {})) return;
  if (refuse_extensions(server, request, HeaderId::require, "path")) return;
  if (is_flood()) return answers_.send(server, 503);
  answers_.send(server, 200, {}, [this](Output& out) {
    write_allow(out);
    out.raw("Accept: */*\r\nSupported: path\r\n");
  });
}

}  // namespace sipmsg

#ifndef SIPMSG_NO_UV  // from here on with libuv

#include <csignal>
#include <list>
#include <uv.h>

// =========================================== loop.hpp ===========================================

// loop: what this header keeps on the caller's libuv loop, and how it leaves it again.
//
// The loop is the caller's: it is never created, run or freed here. libuv wants every handle to
// stay in memory until its close callback has come, long after the object it served may be gone. So
// handles live in cores of their own, which free themselves in that callback; an owner that dies
// only lets go of its core, and may do so at any time, inside its own callbacks too.
// The clock is the loop's. Whoever waits for a time has an Alarm, and all Alarms of a Loop share
// one uv_timer. `post` is the one call that other threads may make.
//
// The addresses of libuv and of this machine's interfaces are turned into ours here, too.

namespace sipmsg {

/// libuv's negative status as an Error: `network`, with the status as its place.
inline Error network_error(int status) { return {ErrorCode::network, status}; }

/// The error's text, and what the operating system said where it was the one that refused: "the
/// network refused: address already in use".
inline std::string describe(Error error) {
  std::string text = error.text();
  if ((error.code == ErrorCode::network || error.code == ErrorCode::file) && error.place < 0) {
    char reason[128];
    text.append(": ").append(uv_strerror_r(error.place, reason, sizeof reason));
  }
  return text;
}

// ---- the loop ----------------------------------------------------------------------------------

class Alarm;

namespace detail {

/// Something to be done on the loop's thread.
class PostedJob {
 public:
  virtual ~PostedJob() = default;
  virtual void run() = 0;

  PostedJob* next = nullptr;
};

/// The timer and the wake-up of one Loop, until libuv has let go of both.
class LoopCore {
 public:
  static constexpr std::uint64_t never = UINT64_MAX;

  explicit LoopCore(uv_loop_t* uv_loop) : loop_(uv_loop) { uv_mutex_init(&mutex_); }
  ~LoopCore() { uv_mutex_destroy(&mutex_); }
  LoopCore(const LoopCore&) = delete;
  LoopCore& operator=(const LoopCore&) = delete;

  /// Opens the handles; they keep `self` alive until they are closed.
  int open(const std::shared_ptr<LoopCore>& self);
  void close();
  bool is_closed() const { return closed_; }

  uv_loop_t* loop() const { return loop_; }
  /// Takes the job over in any case.
  Error post(std::unique_ptr<PostedJob> job);

  void add(Alarm& alarm);
  void remove(Alarm& alarm);
  /// Starts the timer, or starts it anew where it is set for later.
  void wake_at(std::uint64_t deadline_ms);

  /// Room for datagrams: a socket uses it within one callback only, so that all of them can share
  /// it. Made at the first call.
  char* receive_buffer(std::size_t size) {
    if (!receive_buffer_) receive_buffer_.reset(new char[size]);
    return receive_buffer_.get();
  }

 private:
  void run_posted();
  void run_alarms();
  Alarm* next_due(std::uint64_t now_ms);
  PostedJob* take_posted();
  static void drop(PostedJob* job) {
    while (job != nullptr) delete std::exchange(job, job->next);
  }
  static void on_closed(uv_handle_t* handle) {
    auto* core = static_cast<LoopCore*>(handle->data);
    if (--core->open_handles_ == 0) core->self_.reset();  // the end of `core`, perhaps
  }

  uv_loop_t* loop_;
  uv_timer_t timer_;
  uv_async_t wakeup_;
  std::shared_ptr<LoopCore> self_;  ///< while libuv holds pointers to this
  int open_handles_ = 0;
  Alarm* alarms_ = nullptr;
  std::uint64_t timer_deadline_ms_ = never;
  std::uint64_t round_ = 0;  ///< counts calls of the timer, to give each Alarm one turn in each
  std::unique_ptr<char[]> receive_buffer_;

  uv_mutex_t mutex_;  ///< guards what is below
  PostedJob* first_posted_ = nullptr;
  PostedJob* last_posted_ = nullptr;
  bool closed_ = true;  ///< written by the loop's thread, under the mutex
};

template <class Function>
class PostedFunction final : public PostedJob {
 public:
  explicit PostedFunction(Function&& function) : function_(std::move(function)) {}
  void run() override { function_(); }

 private:
  Function function_;
};

}  // namespace detail

/// One owner's place on a libuv loop: clock, timer, wake-up from other threads.
///
/// From construction to `close()` it keeps the loop running. After `close()`, or the destructor,
/// nothing of it is called any more; the loop must turn once more so that libuv lets go of it.
/// Everything but `post` belongs to the thread that runs the loop.
class Loop {
 public:
  /// `loop` must stay until it has run dry after `close()`.
  explicit Loop(uv_loop_t* loop) : core_(std::make_shared<detail::LoopCore>(loop)) {
    if (const int status = core_->open(core_); status < 0) error_ = network_error(status);
  }
  ~Loop() { close(); }
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  /// What kept it from starting (no file descriptor left, mostly): it is closed then.
  Error error() const { return error_; }
  uv_loop_t* uv() const { return core_->loop(); }

  /// Milliseconds since an arbitrary moment, as of the beginning of this turn of the loop. Right
  /// inside the loop's callbacks; outside of them it may be old.
  std::uint64_t now_ms() const { return uv_now(core_->loop()); }
  /// The same, up to date: for what the application calls whenever it likes.
  std::uint64_t fresh_now_ms() {
    uv_update_time(core_->loop());
    return now_ms();
  }

  /// Has `function()` called on the loop's thread, in the order of the calls. May be called from
  /// any thread as long as this object lives. A function that has not run when the Loop is closed
  /// is destroyed instead. Error: `closed`.
  template <class Function>
  Error post(Function function) {
    return core_->post(std::make_unique<detail::PostedFunction<Function>>(std::move(function)));
  }

  void close() { core_->close(); }
  bool is_closed() const { return core_->is_closed(); }

  const std::shared_ptr<detail::LoopCore>& core() const { return core_; }

 private:
  std::shared_ptr<detail::LoopCore> core_;
  Error error_;
};

/// Waits for a time. Derive from it to be called; the Loop may be closed or gone before this is.
class Alarm {
 public:
  static constexpr std::uint64_t never = detail::LoopCore::never;

  Alarm(const Alarm&) = delete;
  Alarm& operator=(const Alarm&) = delete;

  /// Has `on_alarm` called once, at `deadline_ms` on the Loop's clock or earlier: an Alarm that is
  /// set twice goes off at the earlier time. So set it whenever something may have become due
  /// sooner, and look at what is due when it goes off.
  void arm(std::uint64_t deadline_ms) {
    if (deadline_ms >= deadline_ms_) return;
    deadline_ms_ = deadline_ms;
    core_->wake_at(deadline_ms);
  }

 protected:
  explicit Alarm(Loop& loop) : core_(loop.core()) { core_->add(*this); }
  ~Alarm() { core_->remove(*this); }

  /// The time has come. May do anything: arm, close the Loop, destroy this and the Loop.
  virtual void on_alarm(std::uint64_t now_ms) = 0;

 private:
  friend class detail::LoopCore;

  std::shared_ptr<detail::LoopCore> core_;
  Alarm* next_ = nullptr;
  std::uint64_t deadline_ms_ = never;
  std::uint64_t round_ = 0;
};

namespace detail {

inline int LoopCore::open(const std::shared_ptr<LoopCore>& self) {
  const int status = uv_async_init(loop_, &wakeup_, [](uv_async_t* handle) {
    static_cast<LoopCore*>(handle->data)->run_posted();
  });
  if (status < 0) return status;
  wakeup_.data = this;
  uv_timer_init(loop_, &timer_);
  timer_.data = this;
  open_handles_ = 2;
  self_ = self;
  closed_ = false;
  return 0;
}

inline void LoopCore::close() {
  if (closed_) return;
  uv_mutex_lock(&mutex_);
  closed_ = true;
  uv_mutex_unlock(&mutex_);
  uv_close(reinterpret_cast<uv_handle_t*>(&wakeup_), on_closed);
  uv_close(reinterpret_cast<uv_handle_t*>(&timer_), on_closed);
  drop(take_posted());
}

inline Error LoopCore::post(std::unique_ptr<PostedJob> job) {
  uv_mutex_lock(&mutex_);
  const bool closed = closed_;
  if (!closed) {
    PostedJob* added = job.release();
    (first_posted_ == nullptr ? first_posted_ : last_posted_->next) = added;
    last_posted_ = added;
    uv_async_send(&wakeup_);  // under the mutex: `close` must not come between
  }
  uv_mutex_unlock(&mutex_);
  return closed ? Error(ErrorCode::closed) : Error();
}

inline PostedJob* LoopCore::take_posted() {
  uv_mutex_lock(&mutex_);
  PostedJob* first = std::exchange(first_posted_, nullptr);
  uv_mutex_unlock(&mutex_);
  return first;
}

inline void LoopCore::run_posted() {
  PostedJob* job = take_posted();
  while (job != nullptr && !closed_) {
    std::unique_ptr<PostedJob> current(std::exchange(job, job->next));
    current->run();
  }
  drop(job);
}

inline void LoopCore::add(Alarm& alarm) {
  alarm.next_ = alarms_;
  alarms_ = &alarm;
}

inline void LoopCore::remove(Alarm& alarm) {
  Alarm** link = &alarms_;
  while (*link != &alarm) link = &(*link)->next_;
  *link = alarm.next_;
}

inline void LoopCore::wake_at(std::uint64_t deadline_ms) {
  if (closed_ || deadline_ms >= timer_deadline_ms_) return;
  timer_deadline_ms_ = deadline_ms;
  const std::uint64_t now_ms = uv_now(loop_);
  // Never 0: libuv calls a timer that is set to 0 inside its own callback again before anything
  // else gets its turn (libuv before 1.48).
  uv_timer_start(
      &timer_, [](uv_timer_t* handle) { static_cast<LoopCore*>(handle->data)->run_alarms(); },
      deadline_ms > now_ms ? deadline_ms - now_ms : 1, 0);
}

inline Alarm* LoopCore::next_due(std::uint64_t now_ms) {
  Alarm* alarm = alarms_;
  while (alarm != nullptr && (alarm->deadline_ms_ > now_ms || alarm->round_ == round_)) {
    alarm = alarm->next_;
  }
  return alarm;
}

inline void LoopCore::run_alarms() {
  timer_deadline_ms_ = never;
  ++round_;
  const std::uint64_t now_ms = uv_now(loop_);
  // Looked for anew after each call, in which any Alarm may have come or gone.
  while (Alarm* alarm = closed_ ? nullptr : next_due(now_ms)) {
    alarm->deadline_ms_ = never;
    alarm->round_ = round_;
    alarm->on_alarm(now_ms);
  }
  for (Alarm* alarm = alarms_; alarm != nullptr; alarm = alarm->next_) {
    wake_at(alarm->deadline_ms_);
  }
}

}  // namespace detail

/// Sixteen octets of the operating system's randomness: the seed of a Random, the key of a SipHash.
inline Result<std::array<std::uint8_t, 16>> random_secret() {
  std::array<std::uint8_t, 16> secret{};
  const int status = uv_random(nullptr, nullptr, secret.data(), secret.size(), 0, nullptr);
  if (status < 0) return network_error(status);
  return secret;
}

/// Seconds since 1970, for what outlives this process.
inline std::uint64_t unix_time_s() {
  uv_timeval64_t time{};
  uv_gettimeofday(&time);
  return static_cast<std::uint64_t>(time.tv_sec);
}

// ---- addresses ---------------------------------------------------------------------------------

/// An address in the operating system's form.
union NativeAddress {
  sockaddr any;
  sockaddr_in ipv4;
  sockaddr_in6 ipv6;
};

/// With `mapped`, an IPv4 address takes the form that IPv6 sockets want (::ffff:192.0.2.1).
inline NativeAddress to_native(const SocketAddress& address, bool mapped = false) {
  NativeAddress native;
  std::memset(&native, 0, sizeof native);
  if (address.ip.is_ipv6() || mapped) {
    native.ipv6.sin6_family = AF_INET6;
    native.ipv6.sin6_port = htons(address.port);
    native.ipv6.sin6_scope_id = address.scope;
    auto* octets = reinterpret_cast<std::uint8_t*>(&native.ipv6.sin6_addr);
    if (address.ip.is_ipv6()) {
      std::memcpy(octets, address.ip.octets.data(), 16);
    } else {
      octets[10] = octets[11] = 0xff;
      std::memcpy(octets + 12, address.ip.octets.data(), 4);
    }
  } else {
    native.ipv4.sin_family = AF_INET;
    native.ipv4.sin_port = htons(address.port);
    std::memcpy(&native.ipv4.sin_addr, address.ip.octets.data(), 4);
  }
  return native;
}

/// A mapped IPv4 address comes out as the IPv4 address it is: a peer has one name, whichever socket
/// it came in by. No family for what is neither IPv4 nor IPv6.
inline SocketAddress from_native(const sockaddr* native) {
  SocketAddress address;
  if (native->sa_family == AF_INET) {
    sockaddr_in ipv4;
    std::memcpy(&ipv4, native, sizeof ipv4);
    address.ip.family = 4;
    std::memcpy(address.ip.octets.data(), &ipv4.sin_addr, 4);
    address.port = ntohs(ipv4.sin_port);
  } else if (native->sa_family == AF_INET6) {
    sockaddr_in6 ipv6;
    std::memcpy(&ipv6, native, sizeof ipv6);
    const auto* octets = reinterpret_cast<const std::uint8_t*>(&ipv6.sin6_addr);
    constexpr std::uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    const bool is_mapped = std::memcmp(octets, mapped, sizeof mapped) == 0;
    address.ip.family = is_mapped ? 4 : 6;
    std::memcpy(address.ip.octets.data(), octets + (is_mapped ? 12 : 0), is_mapped ? 4 : 16);
    address.port = ntohs(ipv6.sin6_port);
    address.scope = ipv6.sin6_scope_id;
  }
  return address;
}

/// A numeric host as configurations have it: "192.0.2.1", "::1", "[::1]", and "fe80::1%eth0" for an
/// address that is only valid on one interface. Error: `bad_address`.
inline Result<SocketAddress> listen_address(std::string_view host, std::uint16_t port) {
  SocketAddress address;
  address.port = port;
  if (const auto ip = parse_ip(host)) {
    address.ip = *ip;
    return address;
  }
  sockaddr_in6 ipv6;
  if (host.find('%') == std::string_view::npos ||
      uv_ip6_addr(std::string(host).c_str(), port, &ipv6) != 0) {
    return ErrorCode::bad_address;
  }
  address = from_native(reinterpret_cast<const sockaddr*>(&ipv6));
  if (address.scope == 0) return ErrorCode::bad_address;  // there is no such interface
  return address;
}

/// One address of one interface of this machine.
struct InterfaceAddress {
  IpAddress ip;
  std::uint8_t prefix_length = 0;  ///< of its network, in bits
  bool is_loopback = false;
};

/// All of them, in the operating system's order. Empty where it does not tell.
inline std::vector<InterfaceAddress> interface_addresses() {
  std::vector<InterfaceAddress> result;
  uv_interface_address_t* interfaces = nullptr;
  int count = 0;
  if (uv_interface_addresses(&interfaces, &count) < 0) return result;
  for (int i = 0; i < count; ++i) {
    // Unions of sockaddr_in and sockaddr_in6, by value.
    const auto* address = reinterpret_cast<const sockaddr*>(&interfaces[i].address);
    const auto* netmask = reinterpret_cast<const sockaddr*>(&interfaces[i].netmask);
    InterfaceAddress found;
    found.ip = from_native(address).ip;
    found.is_loopback = interfaces[i].is_internal != 0;
    if (!found.ip) continue;
    for (std::uint8_t octet : from_native(netmask).ip.octets) {
      for (; (octet & 0x80) != 0; octet = static_cast<std::uint8_t>(octet << 1)) {
        ++found.prefix_length;
      }
    }
    result.push_back(found);
  }
  uv_free_interface_addresses(interfaces, count);
  return result;
}

namespace detail {

inline bool same_network(const IpAddress& a, const IpAddress& b, std::size_t prefix_length) {
  for (std::size_t bit = 0; bit < prefix_length; bit += 8) {
    const std::size_t bits = prefix_length - bit < 8 ? prefix_length - bit : 8;
    const auto mask = static_cast<std::uint8_t>(0xff << (8 - bits));
    if (((a.octets[bit / 8] ^ b.octets[bit / 8]) & mask) != 0) return false;
  }
  return true;
}

inline bool is_link_local(const IpAddress& ip) {
  return ip.is_ipv6() && ip.octets[0] == 0xfe && (ip.octets[1] & 0xc0) == 0x80;
}

}  // namespace detail

/// Under which of our own addresses `remote` reaches us, where a socket is bound to all of them:
/// the loopback for the loopback, an address in the same network (the smallest), else the first
/// that is neither loopback nor link-local, else the loopback.
inline IpAddress choose_local_address(const std::vector<InterfaceAddress>& interfaces,
                                      const IpAddress& remote) {
  IpAddress loopback;
  loopback.family = remote.family;
  loopback.octets[0] = remote.is_ipv4() ? 127 : 0;
  loopback.octets[remote.is_ipv4() ? 3 : 15] = 1;
  if (remote.is_loopback()) return loopback;

  const InterfaceAddress* near = nullptr;
  const InterfaceAddress* first = nullptr;
  for (const InterfaceAddress& candidate : interfaces) {
    if (candidate.ip.family != remote.family || candidate.is_loopback) continue;
    if (candidate.ip == remote) return remote;  // a neighbour on this very machine
    if (first == nullptr && !detail::is_link_local(candidate.ip)) first = &candidate;
    if ((near == nullptr || candidate.prefix_length > near->prefix_length) &&
        detail::same_network(candidate.ip, remote, candidate.prefix_length)) {
      near = &candidate;
    }
  }
  if (near != nullptr) return near->ip;
  return first != nullptr ? first->ip : loopback;
}

}  // namespace sipmsg

// ========================================== files.hpp ===========================================

// files: whole files, read and written through libuv, so that every system is the same.
//
// The calls wait until they are done. They are for starting up, for reloading, and for the thread
// pool (`Offload`): a loop that relays messages must not wait for a disk.
// A file that is written replaces the old one in one step (write beside it, flush, rename, flush
// the directory), so that after a crash there is the old content or the new, never half of one.

namespace sipmsg {

namespace detail {

/// One request of libuv's file system, done on the spot and cleaned up after.
class FileRequest {
 public:
  FileRequest() = default;
  ~FileRequest() { uv_fs_req_cleanup(&request_); }
  FileRequest(const FileRequest&) = delete;
  FileRequest& operator=(const FileRequest&) = delete;

  uv_fs_t* get() { return &request_; }

 private:
  uv_fs_t request_{};
};

inline Error file_error(std::int64_t status) {
  return {ErrorCode::file, static_cast<std::int32_t>(status)};
}

/// An open file; closed when this goes.
class File {
 public:
  explicit File(uv_file number) : number_(number) {}
  ~File() { (void)close(); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  /// The file's number, or libuv's negative status.
  static int open(const char* path, int flags) {
    FileRequest request;
    return uv_fs_open(nullptr, request.get(), path, flags, 0, nullptr);
  }

  Error read_all(std::string& out, std::size_t limit) {
    char piece[16384];
    while (true) {
      FileRequest request;
      uv_buf_t buffer = uv_buf_init(piece, sizeof piece);
      const int size = uv_fs_read(nullptr, request.get(), number_, &buffer, 1, -1, nullptr);
      if (size < 0) return file_error(size);
      if (size == 0) return {};
      if (out.size() + static_cast<std::size_t>(size) > limit) return ErrorCode::too_large;
      out.append(piece, static_cast<std::size_t>(size));
    }
  }

  Error write_all(std::string_view text) {
    while (!text.empty()) {
      FileRequest request;
      constexpr std::size_t most = std::size_t{1} << 30;
      const auto piece = static_cast<unsigned>(text.size() < most ? text.size() : most);
      uv_buf_t buffer = uv_buf_init(const_cast<char*>(text.data()), piece);
      const int size = uv_fs_write(nullptr, request.get(), number_, &buffer, 1, -1, nullptr);
      if (size < 0) return file_error(size);
      text.remove_prefix(static_cast<std::size_t>(size));
    }
    return {};
  }

  /// Waits until the disk has it.
  Error flush() {
    FileRequest request;
    const int status = uv_fs_fsync(nullptr, request.get(), number_, nullptr);
    return status < 0 ? file_error(status) : Error();
  }

  Error set_mode(std::uint64_t mode) {
    FileRequest request;
    const int bits = static_cast<int>(mode & 07777);
    const int status = uv_fs_fchmod(nullptr, request.get(), number_, bits, nullptr);
    return status < 0 ? file_error(status) : Error();
  }

  Error close() {
    if (number_ < 0) return {};
    FileRequest request;
    const int status = uv_fs_close(nullptr, request.get(), number_, nullptr);
    number_ = -1;
    return status < 0 ? file_error(status) : Error();
  }

 private:
  uv_file number_;
};

/// The directory a path names its file in, with its slash; "./" where it names none.
inline std::string directory_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  return slash == std::string::npos ? "./" : path.substr(0, slash + 1);
}

inline bool is_regular_file(const std::string& path) {
  FileRequest request;
  if (uv_fs_stat(nullptr, request.get(), path.c_str(), nullptr) < 0) return false;
  constexpr std::uint64_t type_mask = 0170000;
  constexpr std::uint64_t regular = 0100000;
  return (request.get()->statbuf.st_mode & type_mask) == regular;
}

/// Where a path leads when all symbolic links are followed; itself where it leads nowhere yet.
inline std::string without_links(const std::string& path) {
  FileRequest request;
  if (uv_fs_realpath(nullptr, request.get(), path.c_str(), nullptr) < 0) return path;
  return static_cast<const char*>(request.get()->ptr);
}

inline void remove_file(const std::string& path) {
  FileRequest request;
  uv_fs_unlink(nullptr, request.get(), path.c_str(), nullptr);
}

/// A file beside `path` with a name of its own, hidden, so that no `$include` of the directory
/// finds it. Only its owner can read it. Returns its number, or a negative status.
inline int create_beside(const std::string& path, std::string& name) {
  const std::string directory = directory_of(path);
  const std::size_t base = path.rfind('/') + 1;  // npos + 1 is 0
  name = directory + "." + path.substr(base) + ".XXXXXX";
  FileRequest request;
  const int number = uv_fs_mkstemp(nullptr, request.get(), name.c_str(), nullptr);
  if (number >= 0) name = request.get()->path;
  return number;
}

inline Error write_and_rename(const std::string& path, std::string_view text) {
  std::string name;
  const int number = create_beside(path, name);
  if (number < 0) return file_error(number);
  File file(number);
  FileRequest old;
  Error error;
  if (uv_fs_stat(nullptr, old.get(), path.c_str(), nullptr) == 0) {
    error = file.set_mode(old.get()->statbuf.st_mode);
  }
  if (!error) error = file.write_all(text);
  if (!error) error = file.flush();
  const Error not_closed = file.close();
  if (!error) error = not_closed;
  if (!error) {
    FileRequest request;
    const int status = uv_fs_rename(nullptr, request.get(), name.c_str(), path.c_str(), nullptr);
    if (status < 0) error = file_error(status);
  }
  if (error) remove_file(name);
  return error;
}

}  // namespace detail

/// The whole file, byte for byte. Error: `file`, its place being libuv's status; `too_large` where
/// it has more than `limit` octets.
inline Result<std::string> read_file(const std::string& path,
                                     std::size_t limit = std::size_t{64} << 20) {
  const int number = detail::File::open(path.c_str(), UV_FS_O_RDONLY);
  if (number < 0) return detail::file_error(number);
  detail::File file(number);
  std::string text;
  if (auto error = file.read_all(text, limit)) return error;
  return text;
}

/// The names of the regular files in a directory, links to such included, without the path, in any
/// order. Error: `file`, also where `path` is no directory.
inline Result<std::vector<std::string>> list_directory(const std::string& path) {
  detail::FileRequest request;
  const int count = uv_fs_scandir(nullptr, request.get(), path.c_str(), 0, nullptr);
  if (count < 0) return detail::file_error(count);
  std::vector<std::string> names;
  uv_dirent_t entry;
  while (uv_fs_scandir_next(request.get(), &entry) == 0) {
    const bool to_be_looked_at = entry.type == UV_DIRENT_UNKNOWN || entry.type == UV_DIRENT_LINK;
    if (entry.type == UV_DIRENT_FILE ||
        (to_be_looked_at && detail::is_regular_file(path + "/" + entry.name))) {
      names.emplace_back(entry.name);
    }
  }
  return names;
}

/// Puts `text` in the place of what `path` holds, or of what the link it is leads to. The file
/// keeps its mode; a new one is for its owner alone. Error: `file`; the old content is there still.
inline Error write_file_atomically(const std::string& path, std::string_view text) {
  const std::string target = detail::without_links(path);
  if (auto error = detail::write_and_rename(target, text)) return error;
  // The rename itself must reach the disk. Some systems cannot flush a directory: no harm done.
  const std::string directory = detail::directory_of(target);
  const int number = detail::File::open(directory.c_str(), UV_FS_O_RDONLY | UV_FS_O_DIRECTORY);
  if (number >= 0) (void)detail::File(number).flush();
  return {};
}

/// The files of a configuration, from the file system.
class FileSource : public IniSource {
 public:
  Result<std::string> read(const std::string& path) override { return read_file(path); }
  Result<std::vector<std::string>> list(const std::string& path) override {
    return list_directory(path);
  }
};

}  // namespace sipmsg

// =========================================== udp.hpp ============================================

// udp: datagrams, many for one system call, and never one cut or lost in silence.
//
// A UdpSocket hands every datagram to its receiver where libuv put it: nothing is copied, and all
// sockets of a loop read into one shared room. What is longer than the limit is handed over whole
// and named as too large, so that its sender can be told (RFC 3261 21.5.7) instead of having half a
// message believed. Clients keep their NAT bindings open with datagrams that mean nothing; those
// end here (RFC 5626 4.4.2, RFC 5389 6).
//
// Where a client asks for it, and on Linux, it is told which peers cannot be reached (RFC
// 3261 18.4): a socket that is not connected learns that from its queue of ICMP errors alone. A
// server does not ask: strangers could make it read more of them than messages.
//
// Sending tries the socket at once, straight from the caller's slices. Only where the system is
// full the datagram is copied and waits, in order, up to a bound. `send` is the one place where
// datagrams could be gathered and sent in batches one day; callers would not notice.

#ifdef __linux__
#include <linux/errqueue.h>
#endif

namespace sipmsg {

struct UdpOptions {
  /// Longer datagrams are handed over with the error `too_large`. Octets.
  std::size_t max_datagram = max_message_size;
  /// The system's buffers for this socket, in octets; 0: as the system has them.
  std::uint32_t receive_buffer = 0;
  /// An IPv6 socket refuses IPv4 peers; otherwise they appear with their IPv4 addresses.
  bool ipv6_only = false;
  /// What may wait to be sent, in octets.
  std::size_t max_queued = std::size_t{1} << 20;
  /// Tell the receiver of peers that cannot be reached, where the system can.
  bool report_unreachable = false;
};

/// Numbers of what happened on a socket since it was opened.
struct UdpCounters {
  std::uint64_t received = 0;        ///< datagrams handed to the receiver
  std::uint64_t keepalives = 0;      ///< datagrams that meant nothing
  std::uint64_t too_large = 0;       ///< of those received: longer than the limit
  std::uint64_t receive_errors = 0;  ///< the system reported one instead of a datagram
  std::uint64_t sent = 0;            ///< taken by the system
  std::uint64_t queued = 0;          ///< had to wait first
  std::uint64_t send_errors = 0;     ///< refused, at once or later
};

class UdpReceiver {
 public:
  /// A datagram from `from`; `error` is none or `too_large`. The octets may be changed by nobody
  /// and are valid during the call only. The receiver may do anything in it: send, close the
  /// socket, destroy it.
  virtual void on_datagram(std::string_view octets, const SocketAddress& from, Error error) = 0;
  /// Everything that had come is handed over: the moment for what is done once for many.
  virtual void on_datagrams_end() {}
  /// Something that was sent to `peer` came back as ICMP: nobody listens there (UV_ECONNREFUSED),
  /// or there is no way (UV_EHOSTUNREACH, UV_ENETUNREACH). The same may be done in it.
  virtual void on_unreachable(const SocketAddress& /* peer */, Error /* why */) {}

 protected:
  ~UdpReceiver() = default;
};

/// What clients send to keep a NAT binding open: nothing at all, line ends (RFC 5626 4.4.1 over
/// UDP), NULs, or a STUN message (RFC 5389 6: its first octet is no letter of a method).
inline bool is_udp_keepalive(std::string_view octets) {
  constexpr std::size_t stun_header_size = 20;
  if (octets.size() >= stun_header_size && static_cast<unsigned char>(octets[0]) < 4) return true;
  constexpr std::string_view padding("\r\n\0", 3);
  return octets.find_first_not_of(padding) == std::string_view::npos;
}

namespace detail {

/// A UDP socket and what waits to be sent on it, until libuv has let go of it.
class UdpCore {
 public:
  UdpCore(std::shared_ptr<LoopCore> loop, UdpReceiver& receiver, const UdpOptions& options)
      : loop_(std::move(loop)), receiver_(&receiver), options_(options) {}

  /// Opens, binds and starts to read. After an error this is on its way out already.
  Error open(const SocketAddress& address);
  /// Lets go: no callback reaches the receiver any more, and this frees itself.
  void close();
  Error send(const SocketAddress& to, const Slices& datagram);

  SocketAddress local() const {
    NativeAddress native;
    int size = sizeof native;
    uv_udp_getsockname(&handle_, &native.any, &size);
    SocketAddress address = from_native(&native.any);
    return address;
  }
  const UdpCounters& counters() const { return counters_; }

 private:
  /// One datagram that waits. It stands at the front of a block of the pool, its octets behind it.
  struct Queued {
    uv_udp_send_t request;
    UdpCore* core;
    Block block;  ///< the one this stands in
    char* octets() { return reinterpret_cast<char*>(this + 1); }
  };

  /// libuv fills 64 KiB for each datagram, the largest there is, and up to 20 in one call. Memory
  /// that no datagram reached is never touched, so it stays virtual.
  static constexpr std::size_t datagram_room = 65536;
  static constexpr std::size_t receive_room = 16 * datagram_room;

  Error bind(const SocketAddress& address);
  Error enqueue(const NativeAddress& to, const Slices& datagram);
  void receive(std::ptrdiff_t size, const char* octets, const sockaddr* from, unsigned flags);
  void ask_for_icmp();
  void read_icmp();
  static void on_sent(uv_udp_send_t* request, int status);

  std::shared_ptr<LoopCore> loop_;
  UdpReceiver* receiver_;
  UdpOptions options_;
  UdpCounters counters_;
  BlockPool pool_{std::size_t{256} << 10};
  uv_udp_t handle_;
  bool is_ipv6_ = false;
};

inline Error UdpCore::open(const SocketAddress& address) {
  const int status = uv_udp_init_ex(loop_->loop(), &handle_, AF_UNSPEC | UV_UDP_RECVMMSG);
  if (status < 0) {
    delete this;
    return network_error(status);
  }
  handle_.data = this;
  is_ipv6_ = address.ip.is_ipv6();
  const Error error = bind(address);
  if (error) close();
  return error;
}

inline Error UdpCore::bind(const SocketAddress& address) {
  const NativeAddress native = to_native(address);
  // Without UV_UDP_REUSEADDR: a port that is taken must be an error, not shared.
  const unsigned flags = is_ipv6_ && options_.ipv6_only ? unsigned{UV_UDP_IPV6ONLY} : 0;
  int status = uv_udp_bind(&handle_, &native.any, flags);
  if (status == 0 && options_.receive_buffer != 0) {
    int size = static_cast<int>(options_.receive_buffer);
    status = uv_recv_buffer_size(reinterpret_cast<uv_handle_t*>(&handle_), &size);
  }
  if (status < 0) return network_error(status);
  if (options_.report_unreachable) ask_for_icmp();
  const auto give_room = [](uv_handle_t* handle, std::size_t, uv_buf_t* room) {
    LoopCore& loop = *static_cast<UdpCore*>(handle->data)->loop_;
    *room = uv_buf_init(loop.receive_buffer(receive_room), receive_room);
  };
  const auto take = [](uv_udp_t* handle, ssize_t size, const uv_buf_t* buffer, const sockaddr* from,
                       unsigned flags_of_datagram) {
    static_cast<UdpCore*>(handle->data)->receive(size, buffer->base, from, flags_of_datagram);
  };
  status = uv_udp_recv_start(&handle_, give_room, take);
  return status < 0 ? network_error(status) : Error();
}

inline void UdpCore::close() {
  receiver_ = nullptr;
  // Stopped first: libuv would hand over the rest of a batch even after uv_close.
  uv_udp_recv_stop(&handle_);
  uv_close(reinterpret_cast<uv_handle_t*>(&handle_),
           [](uv_handle_t* handle) { delete static_cast<UdpCore*>(handle->data); });
}

inline void UdpCore::receive(std::ptrdiff_t size, const char* octets, const sockaddr* from,
                             unsigned flags) {
  if (from == nullptr) {  // nothing more to read, the end of a batch, or an error
    if (size < 0) ++counters_.receive_errors;
    if (options_.report_unreachable) read_icmp();
    if (receiver_ != nullptr) receiver_->on_datagrams_end();
    return;
  }
  const std::string_view datagram(octets, static_cast<std::size_t>(size));
  if (is_udp_keepalive(datagram)) {
    ++counters_.keepalives;
    return;
  }
  ++counters_.received;
  const bool too_large = datagram.size() > options_.max_datagram || (flags & UV_UDP_PARTIAL) != 0;
  if (too_large) ++counters_.too_large;
  receiver_->on_datagram(datagram, from_native(from),
                         too_large ? Error(ErrorCode::too_large) : Error());
}

#ifdef __linux__

/// ip(7), IP_RECVERR. That it does not work is no reason not to.
inline void UdpCore::ask_for_icmp() {
  uv_os_fd_t fd;
  if (uv_fileno(reinterpret_cast<uv_handle_t*>(&handle_), &fd) < 0) return;
  const int on = 1;
  setsockopt(fd, IPPROTO_IP, IP_RECVERR, &on, sizeof on);
  if (is_ipv6_) setsockopt(fd, IPPROTO_IPV6, IPV6_RECVERR, &on, sizeof on);
}

/// Reads the queue of errors to its end: while something is in it the system wakes us.
inline void UdpCore::read_icmp() {
  uv_os_fd_t fd;
  while (receiver_ != nullptr && uv_fileno(reinterpret_cast<uv_handle_t*>(&handle_), &fd) == 0) {
    NativeAddress peer;
    alignas(cmsghdr) char control[256];
    msghdr message{};
    message.msg_name = &peer;
    message.msg_namelen = sizeof peer;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    if (recvmsg(fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT) < 0) return;
    for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr;
         part = CMSG_NXTHDR(&message, part)) {
      const bool is_error = (part->cmsg_level == IPPROTO_IP && part->cmsg_type == IP_RECVERR) ||
                            (part->cmsg_level == IPPROTO_IPV6 && part->cmsg_type == IPV6_RECVERR);
      if (!is_error || receiver_ == nullptr) continue;
      sock_extended_err error;
      std::memcpy(&error, CMSG_DATA(part), sizeof error);
      const int status = -static_cast<int>(error.ee_errno);
      // What is too large for the path is told by sending; the rest is nothing that ends a request.
      if (status == UV_ECONNREFUSED || status == UV_EHOSTUNREACH || status == UV_ENETUNREACH) {
        receiver_->on_unreachable(from_native(&peer.any), network_error(status));
      }
    }
  }
}

#else

inline void UdpCore::ask_for_icmp() {}
inline void UdpCore::read_icmp() {}

#endif

inline Error UdpCore::send(const SocketAddress& to, const Slices& datagram) {
  if (to.ip.is_ipv6() && !is_ipv6_) return network_error(UV_EAFNOSUPPORT);
  const NativeAddress native = to_native(to, is_ipv6_);
  std::array<uv_buf_t, Slices::capacity> pieces;
  for (std::size_t i = 0; i < datagram.count; ++i) {
    const std::string_view piece = datagram.pieces[i];
    pieces[i] = uv_buf_init(const_cast<char*>(piece.data()), static_cast<unsigned>(piece.size()));
  }
  // libuv wants a buffer all the same.
  if (datagram.count == 0) pieces[0] = uv_buf_init(nullptr, 0);
  const auto count = static_cast<unsigned>(std::max<std::size_t>(datagram.count, 1));
  const auto try_send = [&] {
    return uv_udp_try_send(&handle_, pieces.data(), count, &native.any);
  };
  int status = try_send();
  // It may have been told of another datagram's end, which says nothing of this one.
  if (status < 0 && status != UV_EAGAIN && options_.report_unreachable) status = try_send();
  if (status >= 0) {
    ++counters_.sent;
    return {};
  }
  if (status == UV_EAGAIN) return enqueue(native, datagram);
  ++counters_.send_errors;
  return status == UV_EMSGSIZE ? Error(ErrorCode::too_large) : network_error(status);
}

inline Error UdpCore::enqueue(const NativeAddress& to, const Slices& datagram) {
  const std::size_t size = datagram.size();
  Block block;
  if (uv_udp_get_send_queue_size(&handle_) + size <= options_.max_queued) {
    block = pool_.allocate(sizeof(Queued) + size);
  }
  if (!block) {
    ++counters_.send_errors;
    return ErrorCode::limit_reached;
  }
  auto* queued = new (block.data()) Queued;
  queued->core = this;
  queued->request.data = queued;
  queued->block = std::move(block);
  datagram.copy_to(queued->octets());
  const uv_buf_t buffer = uv_buf_init(queued->octets(), static_cast<unsigned>(size));
  const int status =
      uv_udp_send(&queued->request, &handle_, &buffer, 1, &to.any, &UdpCore::on_sent);
  if (status == 0) {
    ++counters_.queued;
    return {};
  }
  const Block freed = std::move(queued->block);
  ++counters_.send_errors;
  return network_error(status);
}

inline void UdpCore::on_sent(uv_udp_send_t* request, int status) {
  auto* queued = static_cast<Queued*>(request->data);
  UdpCounters& counters = queued->core->counters_;
  ++(status < 0 ? counters.send_errors : counters.sent);
  const Block freed = std::move(queued->block);  // and `queued` with it
}

}  // namespace detail

/// One bound UDP socket. May be destroyed at any time, inside its receiver's callbacks too.
class UdpSocket {
 public:
  UdpSocket() = default;
  UdpSocket(UdpSocket&& other) noexcept : core_(std::exchange(other.core_, nullptr)) {}
  UdpSocket& operator=(UdpSocket&& other) noexcept {
    std::swap(core_, other.core_);
    return *this;
  }
  ~UdpSocket() { close(); }

  /// Binds to `address`, port 0 for any that is free, and starts to hand datagrams to `receiver`,
  /// which must live until this is closed. Error: `network`; a port that is taken is one.
  Error open(Loop& loop, const SocketAddress& address, UdpReceiver& receiver,
             const UdpOptions& options = {}) {
    close();
    if (loop.is_closed()) return ErrorCode::closed;
    auto core = std::make_unique<detail::UdpCore>(loop.core(), receiver, options);
    // From here on the core frees itself, when libuv has let go of it.
    detail::UdpCore* opened = core.release();
    if (auto error = opened->open(address)) return error;
    core_ = opened;
    return {};
  }

  /// Sends one datagram, or copies it where it cannot go out at once; the pieces are the caller's
  /// again in any case. Error: `too_large` for more than a datagram or the path can hold,
  /// `limit_reached` where too much waits already, `network`, `closed`. What fails after waiting is
  /// only counted: a datagram may be lost anywhere.
  Error send(const SocketAddress& to, const Slices& datagram) {
    return core_ == nullptr ? Error(ErrorCode::closed) : core_->send(to, datagram);
  }

  /// Ends reading and drops what waits. Nothing is called any more.
  void close() {
    if (core_ != nullptr) std::exchange(core_, nullptr)->close();
  }

  bool is_open() const { return core_ != nullptr; }
  /// The address it is bound to, with the port that the system chose. Only while open.
  SocketAddress local() const { return core_->local(); }
  const UdpCounters& counters() const { return core_->counters(); }

 private:
  detail::UdpCore* core_ = nullptr;
};

}  // namespace sipmsg

// =========================================== tcp.hpp ============================================

// tcp: listeners, connections made and accepted, their reuse, and their limits.
//
// Connections are known by number; a number of a connection that is gone finds nothing, and is not
// given to another until all others were. Connections to a peer are made when something is to be
// sent and there is none; what is sent meanwhile waits. Whoever connected, both sides use the
// connection for requests and answers alike (RFC 3261 18, RFC 5923).
//
// A peer can waste three things, and each has its bound: time (a message must be complete soon
// after it began, an idle connection is closed), connections (in all and per address), and memory
// (a peer that does not read what it is sent gets no more of it, and is not read from either).
// Reading holds no memory while nothing is half read (stream.hpp).
//
// libuv writes to sockets in a way that can raise SIGPIPE, so that signal is ignored from the first
// TcpConnections on, unless the program has made its own arrangements.

namespace sipmsg {

/// What holds for all connections. Times in milliseconds, sizes in octets.
struct TcpOptions {
  std::uint32_t connect_timeout_ms = 10000;  ///< to wait for a peer to accept
  std::uint32_t message_timeout_ms = 20000;  ///< from a message's first octet to its last
  std::uint32_t drain_timeout_ms = 2000;     ///< for a last answer to get out before closing
  std::uint32_t keepalive_ms = 120000;       ///< between pings on connections made by us; 0: none
  std::uint32_t idle_timeout_ms = 120000;  ///< for connections made by us, where keepalive_ms is 0
  /// For the peer's machine to acknowledge what is sent on connections made by us; 0: as long as
  /// the system likes, a quarter of an hour mostly, and so where it has no TCP_USER_TIMEOUT.
  std::uint32_t acknowledge_timeout_ms = 30000;
  std::uint32_t accept_retry_ms = 1000;        ///< to pause a listener that the system lets down
  std::size_t max_message = max_message_size;  ///< on connections made by us
  std::size_t max_queued = std::size_t{256} << 10;        ///< waiting to be sent on one connection
  std::size_t max_queued_in_all = std::size_t{16} << 20;  ///< on all connections together
  std::size_t max_connections = 10000;
  /// Accepted from one IPv4 address, or from one IPv6 network of 64 bits.
  std::size_t max_connections_per_address = 1000;
};

/// What holds for one listener and the connections it accepts.
struct TcpListenOptions {
  std::size_t max_message = max_message_size;  ///< octets
  std::uint32_t idle_timeout_ms = 120000;      ///< without a message or ping; 0: for ever
  int backlog = 0;         ///< connections not yet accepted; 0: the system's maximum
  bool ipv6_only = false;  ///< an IPv6 listener refuses IPv4 peers
};

/// Numbers of what happened since the start.
struct TcpCounters {
  std::uint64_t accepted = 0;
  std::uint64_t refused = 0;          ///< accepted and closed at once: too many connections
  std::uint64_t accept_failures = 0;  ///< the system had no file descriptor or memory left
  std::uint64_t connected = 0;        ///< made by us
  std::uint64_t connect_failures = 0;
  std::uint64_t received = 0;      ///< messages
  std::uint64_t keepalives = 0;    ///< pings and pongs received
  std::uint64_t sent = 0;          ///< messages taken for sending
  std::uint64_t not_sent = 0;      ///< messages refused for a limit
  std::uint64_t closed_idle = 0;   ///< for being idle
  std::uint64_t closed_slow = 0;   ///< for a message that did not complete in time
  std::uint64_t closed_frame = 0;  ///< for a message whose end could not be found
};

class TcpReceiver {
 public:
  /// A message, or, with an `error` that leaves its end unknown, what could be read of one; the
  /// connection is closed then, after what is sent on it inside this call. The message is valid
  /// during the call only. The receiver may do anything in it: send, close, destroy.
  virtual void on_stream_message(std::uint32_t connection, const MessageView& message, Error error,
                                 const SocketAddress& from) = 0;
  /// The connection is gone, or could not be made. Once for each connection; never inside a call of
  /// the receiver's, and never after `close`. `why`: `closed` by the peer or for being idle,
  /// `timeout`, `network`, or the mistake in the last message.
  virtual void on_connection_closed(std::uint32_t connection, Error why) = 0;
  /// Instead, where it could not be made: the peer has seen nothing of what was sent on it.
  virtual void on_connection_failed(std::uint32_t connection, Error why) {
    on_connection_closed(connection, why);
  }
  /// Everything that had come on a connection is handed over.
  virtual void on_stream_messages_end() {}
  /// A connection has been idle for its time: whether it is needed, and so stays open all the same.
  /// Nothing of ours may be called from here.
  virtual bool keeps_idle_connection(std::uint32_t) { return false; }

 protected:
  ~TcpReceiver() = default;
};

/// Connections are numbered from here; what is below is free for sockets of other kinds.
inline constexpr std::uint32_t first_connection_number = 0x10000;

namespace detail {

class TcpCore;

struct TcpConnection {
  enum class State : std::uint8_t {
    connecting,  ///< what is sent waits in libuv's queue
    open,        ///< reading and writing
    draining,    ///< what was sent goes out, what comes is dropped
    closed,      ///< until libuv has let go of it
  };

  TcpConnection(std::shared_ptr<TcpCore> owner, StreamBuffers& buffers, std::size_t max_message)
      : core(std::move(owner)), framer(buffers, max_message) {}

  uv_tcp_t handle;
  uv_connect_t connect_request;
  uv_shutdown_t shutdown_request;
  std::shared_ptr<TcpCore> core;  ///< which holds this one, too: let go in the close callback
  Handle place;                   ///< in the core's slab
  StreamFramer framer;
  Timer timer;                               ///< what it waits for; `kind` says what
  TimerQueue* idle_timers = nullptr;         ///< null: it may be idle for ever
  std::uint32_t number = 0;                  ///< 0: nobody has heard of it
  std::uint32_t listener = HashIndex::npos;  ///< which accepted it
  std::uint32_t peer = HashIndex::npos;      ///< its address's entry
  SocketAddress remote;
  SocketAddress local;
  std::size_t queued = 0;  ///< octets in libuv's queue
  Error why;               ///< it is being closed
  State state = State::connecting;
  bool made_by_us = false;
  bool was_open = false;  ///< it stood once
  bool is_reading = false;
  bool peer_is_done = false;   ///< it will not send any more
  bool has_shut_down = false;  ///< all is sent, and the peer knows that it was all
};

/// Whom the connections of an address are counted for. An IPv6 address counts with its whole
/// network, of which each subscriber has one, and 2^64 addresses in it.
inline IpAddress peer_network(IpAddress ip) {
  if (ip.is_ipv6()) std::fill(ip.octets.begin() + 8, ip.octets.end(), std::uint8_t{0});
  return ip;
}

struct TcpListener {
  uv_tcp_t handle;
  std::shared_ptr<TcpCore> core;
  std::uint32_t index = 0;  ///< in the core's list
};

/// All listeners and connections of one owner, until libuv has let go of the last.
class TcpCore : public std::enable_shared_from_this<TcpCore> {
 public:
  TcpCore(std::shared_ptr<LoopCore> loop, Alarm& alarm, TcpReceiver& receiver,
          const TcpOptions& options, const SipHashKey& key)
      : options_(options),
        loop_(std::move(loop)),
        alarm_(&alarm),
        receiver_(&receiver),
        hash_(key) {}

  Result<SocketAddress> listen(const SocketAddress& address, const TcpListenOptions& options);
  Result<std::uint32_t> connect(const SocketAddress& remote);
  Error send(TcpConnection& connection, const Slices& message);
  /// Closes it after what was sent has gone out.
  void drain(TcpConnection& connection, Error why);
  /// No callback reaches alarm or receiver any more. What was sent has `flush_ms` to get out.
  void close(std::uint32_t flush_ms);
  void advance(std::uint64_t now_ms);

  TcpConnection* find(std::uint32_t number);
  TcpConnection* find(const SocketAddress& remote);
  std::size_t connection_count() const { return connections_.size(); }
  const TcpCounters& counters() const { return counters_; }
  bool loop_is_closed() const { return loop_->is_closed(); }

 private:
  using State = TcpConnection::State;
  enum TimerKind : std::uint8_t {
    connect_timer,
    message_timer,
    idle_timer,
    ping_timer,
    drain_timer,
    accept_timer
  };

  /// A listener as it was asked for; `open` is null while it pauses.
  struct Listening {
    SocketAddress address;
    TcpListenOptions options;
    TimerQueue* idle_timers = nullptr;
    TcpListener* open = nullptr;
    Timer retry;
  };
  /// How many connections one address or network has.
  struct Peer {
    IpAddress network;
    std::size_t connections = 0;
  };
  /// Octets that wait. It stands at the front of a block of the pool, the octets behind it.
  struct Queued {
    uv_write_t request;
    TcpConnection* connection;
    std::size_t size;
    Block block;  ///< the one this stands in
    char* octets() { return reinterpret_cast<char*>(this + 1); }
  };

  // -- listeners --
  Error open_listener(std::uint32_t index);
  void close_listener(Listening& listening);
  void pause_listener(Listening& listening);
  void accept(TcpListener& listener);

  // -- the life of a connection --
  TcpConnection& create(std::size_t max_message);
  bool has_place_for(const IpAddress& ip);
  std::uint32_t find_peer(const IpAddress& network) const;
  void enter(TcpConnection& connection);
  void open(TcpConnection& connection);
  void limit_silence(TcpConnection& connection);
  void forget(TcpConnection& connection);
  void close(TcpConnection& connection, Error why);
  void on_closed(TcpConnection& connection);
  void start_timer(TcpConnection& connection, TimerKind kind, TimerQueue& queue);
  void start_idle_timer(TcpConnection& connection);
  static bool is_timing_a_message(const TcpConnection& connection) {
    return connection.timer.is_running() && connection.timer.kind == message_timer;
  }
  void on_timer(Timer& timer);

  // -- reading and writing --
  void start_reading(TcpConnection& connection);
  void pause_reading(TcpConnection& connection);
  void read(TcpConnection& connection, std::ptrdiff_t size);
  void hand_over(TcpConnection& connection);
  void wait_for_more(TcpConnection& connection, bool made_progress);
  void on_end_of_stream(TcpConnection& connection);
  void on_shut_down(TcpConnection& connection, int status);
  Error write(TcpConnection& connection, const Slices& message);
  Error enqueue(TcpConnection& connection, const Slices& message, std::size_t already_sent);
  void on_written(TcpConnection& connection, std::size_t size, int status);
  void close_flush_timer();

  std::uint64_t hash_of(const SocketAddress& address) const;
  std::uint64_t hash_of(const IpAddress& ip) const;
  /// Numbers are ours, so nobody chooses them: spread by a multiplication (the golden ratio).
  static std::uint64_t hash_of(std::uint32_t number) { return number * 0x9e3779b97f4a7c15; }
  std::uint64_t now_ms() const { return uv_now(loop_->loop()); }
  static TcpConnection& of(void* data) { return *static_cast<TcpConnection*>(data); }
  template <class Base, class Derived>
  static Base* as(Derived* handle) {
    return reinterpret_cast<Base*>(handle);
  }

  TcpOptions options_;
  std::shared_ptr<LoopCore> loop_;
  Alarm* alarm_;
  TcpReceiver* receiver_;  ///< null when closed
  SipHash hash_;           ///< fresh: copied for each use
  TcpCounters counters_;
  Timers timers_;  // before what holds timers
  StreamBuffers buffers_;
  BlockPool pool_{std::size_t{1} << 20};
  std::size_t queued_ = 0;  ///< on all connections
  std::vector<std::unique_ptr<Listening>> listeners_;
  Slab<TcpConnection, 16> connections_;
  HashIndex by_number_;
  HashIndex by_remote_;
  Slab<Peer> peers_;
  HashIndex by_network_;
  std::uint32_t last_number_ = first_connection_number - 1;
  uv_timer_t flush_timer_;
  std::shared_ptr<TcpCore> self_;  ///< while the flush timer is open
  bool flush_timer_is_open_ = false;
  char dropped_[4096];  ///< what is read only to be dropped
};

// ---- listeners ----

inline Result<SocketAddress> TcpCore::listen(const SocketAddress& address,
                                             const TcpListenOptions& options) {
  auto listening = std::make_unique<Listening>();
  listening->address = address;
  listening->options = options;
  if (options.idle_timeout_ms != 0) {
    listening->idle_timers = &timers_.queue(options.idle_timeout_ms);
  }
  const auto index = static_cast<std::uint32_t>(listeners_.size());
  listening->retry.owner = index;
  listening->retry.kind = accept_timer;
  listeners_.push_back(std::move(listening));
  if (auto error = open_listener(index)) {
    listeners_.pop_back();
    return error;
  }
  return listeners_.back()->address;
}

/// Binds and listens; with port 0 the port that the system chose is kept in the address.
inline Error TcpCore::open_listener(std::uint32_t index) {
  Listening& listening = *listeners_[index];
  auto* listener = new TcpListener;
  if (const int status = uv_tcp_init(loop_->loop(), &listener->handle); status < 0) {
    delete listener;
    return network_error(status);
  }
  listener->core = shared_from_this();
  listener->index = index;
  listener->handle.data = listener;
  listening.open = listener;

  const NativeAddress native = to_native(listening.address);
  const bool ipv6_only = listening.address.ip.is_ipv6() && listening.options.ipv6_only;
  int status =
      uv_tcp_bind(&listener->handle, &native.any, ipv6_only ? unsigned{UV_TCP_IPV6ONLY} : 0);
  // A port that is taken is reported here only, not by bind.
  if (status == 0) {
    const int backlog = listening.options.backlog > 0 ? listening.options.backlog : SOMAXCONN;
    status = uv_listen(as<uv_stream_t>(&listener->handle), backlog,
                       [](uv_stream_t* handle, int accept_status) {
                         auto& ready = *static_cast<TcpListener*>(handle->data);
                         TcpCore& core = *ready.core;
                         if (accept_status == 0) return core.accept(ready);
                         core.pause_listener(*core.listeners_[ready.index]);
                       });
  }
  if (status < 0) {
    close_listener(listening);
    return network_error(status);
  }
  NativeAddress bound;
  int size = sizeof bound;
  if (uv_tcp_getsockname(&listener->handle, &bound.any, &size) == 0) {
    listening.address.port = from_native(&bound.any).port;
  }
  return {};
}

inline void TcpCore::close_listener(Listening& listening) {
  if (listening.open == nullptr) return;
  uv_close(as<uv_handle_t>(&std::exchange(listening.open, nullptr)->handle),
           [](uv_handle_t* handle) { delete static_cast<TcpListener*>(handle->data); });
}

/// The system has no file descriptor or no memory left. libuv would try again at once and for ever,
/// so the listener is closed for a while.
inline void TcpCore::pause_listener(Listening& listening) {
  ++counters_.accept_failures;
  close_listener(listening);
  timers_.queue(options_.accept_retry_ms).start(listening.retry, now_ms());
  alarm_->arm(listening.retry.deadline_ms());
}

inline void TcpCore::accept(TcpListener& listener) {
  const Listening& listening = *listeners_[listener.index];
  TcpConnection& connection = create(listening.options.max_message);
  NativeAddress remote;
  NativeAddress local;
  int remote_size = sizeof remote;
  int local_size = sizeof local;
  if (uv_accept(as<uv_stream_t>(&listener.handle), as<uv_stream_t>(&connection.handle)) != 0 ||
      uv_tcp_getpeername(&connection.handle, &remote.any, &remote_size) != 0 ||
      uv_tcp_getsockname(&connection.handle, &local.any, &local_size) != 0) {
    ++counters_.accept_failures;  // the peer has gone again, mostly
    return close(connection, ErrorCode::closed);
  }
  connection.remote = from_native(&remote.any);
  connection.local = from_native(&local.any);
  if (!has_place_for(connection.remote.ip)) {
    ++counters_.refused;
    return close(connection, ErrorCode::limit_reached);
  }
  ++counters_.accepted;
  connection.listener = listener.index;
  connection.idle_timers = listening.idle_timers;
  enter(connection);
  open(connection);
  // Whoever connects has something to say.
  start_timer(connection, message_timer, timers_.queue(options_.message_timeout_ms));
}

// ---- the life of a connection ----

/// A connection with an open handle, which nobody can find yet.
inline TcpConnection& TcpCore::create(std::size_t max_message) {
  const Handle place = connections_.create(shared_from_this(), buffers_, max_message);
  TcpConnection& connection = *connections_.get(place);
  connection.place = place;
  connection.timer.owner = place.index;
  uv_tcp_init(loop_->loop(), &connection.handle);
  connection.handle.data = &connection;
  connection.connect_request.data = &connection;
  connection.shutdown_request.data = &connection;
  return connection;
}

/// Whether one more may be accepted from there; the one in question counts already.
inline bool TcpCore::has_place_for(const IpAddress& ip) {
  if (connections_.size() > options_.max_connections) return false;
  const std::uint32_t peer = find_peer(peer_network(ip));
  return peer == HashIndex::npos ||
         peers_.at(peer).connections < options_.max_connections_per_address;
}

/// Gives the connection a number, and enters it where it can be found.
inline void TcpCore::enter(TcpConnection& connection) {
  do {
    ++last_number_;
    if (last_number_ < first_connection_number) last_number_ = first_connection_number;
  } while (find(last_number_) != nullptr);
  connection.number = last_number_;
  by_number_.insert(hash_of(connection.number), connection.place.index);
  by_remote_.insert(hash_of(connection.remote), connection.place.index);

  const IpAddress network = peer_network(connection.remote.ip);
  connection.peer = find_peer(network);
  if (connection.peer == HashIndex::npos) {
    connection.peer = peers_.create().index;
    peers_.at(connection.peer).network = network;
    by_network_.insert(hash_of(network), connection.peer);
  }
  ++peers_.at(connection.peer).connections;
}

inline Result<std::uint32_t> TcpCore::connect(const SocketAddress& remote) {
  if (connections_.size() >= options_.max_connections) return ErrorCode::limit_reached;
  // The loop's clock may be old where the application calls out of the blue.
  uv_update_time(loop_->loop());
  TcpConnection& connection = create(options_.max_message);
  connection.remote = remote;
  connection.made_by_us = true;
  const std::uint32_t idle_ms =
      options_.keepalive_ms != 0 ? options_.keepalive_ms : options_.idle_timeout_ms;
  if (idle_ms != 0) connection.idle_timers = &timers_.queue(idle_ms);

  const NativeAddress native = to_native(remote);
  const int status = uv_tcp_connect(&connection.connect_request, &connection.handle, &native.any,
                                    [](uv_connect_t* request, int connect_status) {
                                      TcpConnection& made = of(request->data);
                                      TcpCore& core = *made.core;
                                      if (made.state != State::connecting) return;
                                      if (connect_status == 0) {
                                        ++core.counters_.connected;
                                        core.open(made);
                                        core.start_idle_timer(made);
                                      } else {
                                        ++core.counters_.connect_failures;
                                        core.close(made, network_error(connect_status));
                                      }
                                    });
  if (status < 0) {
    ++counters_.connect_failures;
    close(connection, network_error(status));
    return network_error(status);
  }
  NativeAddress local;
  int size = sizeof local;
  if (uv_tcp_getsockname(&connection.handle, &local.any, &size) == 0) {
    connection.local = from_native(&local.any);
  }
  enter(connection);
  start_timer(connection, connect_timer, timers_.queue(options_.connect_timeout_ms));
  return connection.number;
}

/// The connection stands.
inline void TcpCore::open(TcpConnection& connection) {
  connection.state = State::open;
  connection.was_open = true;
  uv_tcp_nodelay(&connection.handle, 1);
  // After so long without a sign of life the system asks whether the peer's machine is still there.
  constexpr unsigned quiet_s = 60;
  uv_tcp_keepalive(&connection.handle, 1, quiet_s);
  if (connection.made_by_us) limit_silence(connection);
  start_reading(connection);
}

/// A peer that went without a word, a router that forgot the connection: while something of ours is
/// on its way the system asks nothing, and would send it again and again for a quarter of an hour.
/// Whoever waits for an answer would wait on this connection each time anew.
inline void TcpCore::limit_silence(TcpConnection& connection) {
#ifdef TCP_USER_TIMEOUT
  uv_os_fd_t fd;
  if (uv_fileno(as<uv_handle_t>(&connection.handle), &fd) < 0) return;
  const unsigned limit_ms = options_.acknowledge_timeout_ms;
  setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &limit_ms, sizeof limit_ms);
#else
  static_cast<void>(connection);
#endif
}

/// From here on the connection cannot be found.
inline void TcpCore::forget(TcpConnection& connection) {
  if (connection.number == 0) return;
  by_number_.erase(hash_of(connection.number), connection.place.index);
  by_remote_.erase(hash_of(connection.remote), connection.place.index);
}

inline void TcpCore::close(TcpConnection& connection, Error why) {
  if (connection.state == State::closed) return;
  if (connection.state != State::draining) {
    forget(connection);
    connection.why = why;
  }
  connection.state = State::closed;
  connection.timer.cancel();
  uv_close(as<uv_handle_t>(&connection.handle), [](uv_handle_t* handle) {
    TcpConnection& closed = of(handle->data);
    // Let go of first, so that the last connection does not destroy its core from inside.
    const std::shared_ptr<TcpCore> core = std::move(closed.core);
    core->on_closed(closed);
  });
}

inline void TcpCore::on_closed(TcpConnection& connection) {
  const std::uint32_t number = connection.number;
  const Error why = connection.why;
  const bool was_open = connection.was_open;
  if (connection.peer != HashIndex::npos) {
    Peer& peer = peers_.at(connection.peer);
    if (--peer.connections == 0) {
      by_network_.erase(hash_of(peer.network), connection.peer);
      peers_.destroy(peers_.handle_of(connection.peer));
    }
  }
  connections_.destroy(connection.place);
  if (connections_.size() == 0) close_flush_timer();
  if (number == 0 || receiver_ == nullptr) return;
  if (was_open) return receiver_->on_connection_closed(number, why);
  receiver_->on_connection_failed(number, why);
}

inline void TcpCore::drain(TcpConnection& connection, Error why) {
  if (connection.state == State::connecting) return close(connection, why);
  if (connection.state != State::open) return;
  forget(connection);
  connection.state = State::draining;
  connection.why = why;
  // Reading goes on: data left unread would make the system break the connection off, and take the
  // last answer from the peer.
  if (!connection.peer_is_done) start_reading(connection);
  const int status = uv_shutdown(&connection.shutdown_request, as<uv_stream_t>(&connection.handle),
                                 [](uv_shutdown_t* request, int shutdown_status) {
                                   TcpConnection& done = of(request->data);
                                   done.core->on_shut_down(done, shutdown_status);
                                 });
  if (status < 0) return close(connection, why);
  start_timer(connection, drain_timer, timers_.queue(options_.drain_timeout_ms));
}

inline void TcpCore::on_shut_down(TcpConnection& connection, int status) {
  connection.has_shut_down = true;
  if (status < 0 || connection.peer_is_done) close(connection, connection.why);
}

inline void TcpCore::close(std::uint32_t flush_ms) {
  receiver_ = nullptr;
  for (const auto& listening : listeners_) {
    close_listener(*listening);
    listening->retry.cancel();
  }
  bool some_are_left = false;
  connections_.for_each([&](Handle, TcpConnection& connection) {
    const bool has_more = connection.queued > 0 || connection.state == State::draining;
    if (flush_ms == 0 || !has_more) return close(connection, ErrorCode::closed);
    drain(connection, ErrorCode::closed);
    some_are_left = some_are_left || connection.state == State::draining;
  });
  alarm_ = nullptr;
  if (!some_are_left || flush_timer_is_open_) return;
  // A timer of their own: the owner's may be gone before they are.
  uv_timer_init(loop_->loop(), &flush_timer_);
  flush_timer_.data = this;
  flush_timer_is_open_ = true;
  self_ = shared_from_this();
  uv_timer_start(
      &flush_timer_,
      [](uv_timer_t* timer) {
        auto& core = *static_cast<TcpCore*>(timer->data);
        core.connections_.for_each([&core](Handle, TcpConnection& connection) {
          core.close(connection, ErrorCode::closed);
        });
      },
      flush_ms, 0);
}

inline void TcpCore::close_flush_timer() {
  if (!std::exchange(flush_timer_is_open_, false)) return;
  uv_close(as<uv_handle_t>(&flush_timer_), [](uv_handle_t* handle) {
    const auto last = std::move(static_cast<TcpCore*>(handle->data)->self_);
  });
}

// ---- time ----

inline void TcpCore::start_timer(TcpConnection& connection, TimerKind kind, TimerQueue& queue) {
  connection.timer.kind = kind;
  queue.start(connection.timer, now_ms());
  if (alarm_ != nullptr) alarm_->arm(connection.timer.deadline_ms());
}

inline void TcpCore::start_idle_timer(TcpConnection& connection) {
  if (connection.idle_timers == nullptr) return connection.timer.cancel();
  const bool pings = connection.made_by_us && options_.keepalive_ms != 0;
  start_timer(connection, pings ? ping_timer : idle_timer, *connection.idle_timers);
}

inline void TcpCore::advance(std::uint64_t now) {
  timers_.advance(now, [this](Timer& timer) { on_timer(timer); });
  const auto next = timers_.next_deadline();
  if (next && alarm_ != nullptr) alarm_->arm(*next);
}

inline void TcpCore::on_timer(Timer& timer) {
  if (timer.kind == accept_timer) {
    if (open_listener(timer.owner)) pause_listener(*listeners_[timer.owner]);
    return;
  }
  TcpConnection& connection = connections_.at(timer.owner);
  switch (timer.kind) {
    case connect_timer: ++counters_.connect_failures; return close(connection, ErrorCode::timeout);
    case message_timer: ++counters_.closed_slow; return close(connection, ErrorCode::timeout);
    case idle_timer:
      if (receiver_ != nullptr && receiver_->keeps_idle_connection(connection.number)) {
        return start_idle_timer(connection);
      }
      ++counters_.closed_idle;
      return close(connection, ErrorCode::closed);
    case ping_timer:
      // RFC 5626 3.5.1. A peer that has read nothing since the last one is not there any more.
      if (connection.queued > 0) return close(connection, ErrorCode::timeout);
      (void)write(connection, Slices("\r\n\r\n"));
      return start_idle_timer(connection);
    default: return close(connection, connection.why);
  }
}

// ---- reading ----

inline void TcpCore::start_reading(TcpConnection& connection) {
  if (connection.is_reading) return;
  const auto give_room = [](uv_handle_t* handle, std::size_t, uv_buf_t* room) {
    TcpConnection& reader = of(handle->data);
    if (reader.state == State::open) {
      const StreamFramer::Room free = reader.framer.writable();
      *room = uv_buf_init(free.data, static_cast<unsigned>(free.size));
    } else {
      char* dropped = reader.core->dropped_;
      *room = uv_buf_init(dropped, sizeof reader.core->dropped_);
    }
  };
  const auto take = [](uv_stream_t* handle, ssize_t size, const uv_buf_t*) {
    TcpConnection& reader = of(handle->data);
    reader.core->read(reader, size);
  };
  connection.is_reading = uv_read_start(as<uv_stream_t>(&connection.handle), give_room, take) == 0;
}

inline void TcpCore::pause_reading(TcpConnection& connection) {
  uv_read_stop(as<uv_stream_t>(&connection.handle));
  connection.is_reading = false;
}

inline void TcpCore::read(TcpConnection& connection, std::ptrdiff_t size) {
  if (size == UV_EOF) return on_end_of_stream(connection);
  if (size < 0) return close(connection, network_error(static_cast<int>(size)));
  if (size == 0 || connection.state != State::open) return;
  connection.framer.commit(static_cast<std::size_t>(size));
  hand_over(connection);
}

/// Gives the receiver every whole message that has come. The receiver may close the connection or
/// everything; connection and core are there until this returns, for libuv still holds them.
inline void TcpCore::hand_over(TcpConnection& connection) {
  bool made_progress = false;
  bool pinged = false;
  while (connection.state == State::open) {
    const StreamEvent event = connection.framer.next();
    if (event == StreamEvent::need_more) break;
    made_progress = true;
    switch (event) {
      case StreamEvent::message:
      case StreamEvent::error:
        ++counters_.received;
        receiver_->on_stream_message(connection.number, connection.framer.view(),
                                     connection.framer.error(), connection.remote);
        break;
      case StreamEvent::ping: pinged = true; [[fallthrough]];
      default: ++counters_.keepalives; break;
    }
    if (event == StreamEvent::error) {
      ++counters_.closed_frame;
      drain(connection, connection.framer.error());
    }
  }
  if (connection.state == State::open) {
    // One answer, however many pings came at once: nobody makes us write much by writing little.
    if (pinged) (void)write(connection, Slices("\r\n"));
    wait_for_more(connection, made_progress);
  }
  if (receiver_ != nullptr) receiver_->on_stream_messages_end();
}

/// A message must be complete some time after it began, however busily it drips. Between messages
/// there is more time.
inline void TcpCore::wait_for_more(TcpConnection& connection, bool made_progress) {
  if (connection.state != State::open) return;
  if (connection.framer.pending() == 0) return start_idle_timer(connection);
  if (made_progress || !is_timing_a_message(connection)) {
    start_timer(connection, message_timer, timers_.queue(options_.message_timeout_ms));
  }
}

inline void TcpCore::on_end_of_stream(TcpConnection& connection) {
  connection.peer_is_done = true;
  pause_reading(connection);
  if (connection.state == State::open && connection.queued > 0) {
    return drain(connection, ErrorCode::closed);
  }
  if (connection.state == State::open || connection.has_shut_down) {
    close(connection, ErrorCode::closed);
  }
}

// ---- writing ----

inline Error TcpCore::send(TcpConnection& connection, const Slices& message) {
  if (connection.state != State::open && connection.state != State::connecting) {
    return ErrorCode::gone;
  }
  if (auto error = write(connection, message)) {
    ++counters_.not_sent;
    return error;
  }
  ++counters_.sent;
  // What we send keeps an idle connection, too; one that owes us the rest of a message it does not.
  if (connection.state == State::open && !is_timing_a_message(connection)) {
    start_idle_timer(connection);
  }
  return {};
}

/// Writes what the system takes at once, and queues a copy of the rest.
inline Error TcpCore::write(TcpConnection& connection, const Slices& message) {
  const std::size_t size = message.size();
  std::size_t sent = 0;
  if (connection.state == State::open && connection.queued == 0) {
    std::array<uv_buf_t, Slices::capacity> pieces;
    for (std::size_t i = 0; i < message.count; ++i) {
      const std::string_view piece = message.pieces[i];
      pieces[i] = uv_buf_init(const_cast<char*>(piece.data()), static_cast<unsigned>(piece.size()));
    }
    const int status = uv_try_write(as<uv_stream_t>(&connection.handle), pieces.data(),
                                    static_cast<unsigned>(message.count));
    if (status < 0 && status != UV_EAGAIN) {
      close(connection, network_error(status));
      return network_error(status);
    }
    if (status > 0) sent = static_cast<std::size_t>(status);
    if (sent == size) return {};
  }
  const std::size_t rest = size - sent;
  if (connection.queued + rest <= options_.max_queued &&
      queued_ + rest <= options_.max_queued_in_all) {
    return enqueue(connection, message, sent);
  }
  if (sent > 0) {
    close(connection, ErrorCode::limit_reached);  // nothing can follow half a message
  } else if (connection.queued > 0) {
    pause_reading(connection);  // who does not read is not read from: it would make us more to send
  }
  return ErrorCode::limit_reached;
}

inline Error TcpCore::enqueue(TcpConnection& connection, const Slices& message,
                              std::size_t already_sent) {
  const std::size_t size = message.size() - already_sent;
  Block block = pool_.allocate(sizeof(Queued) + size);
  if (!block) {  // no message is as large as that
    if (already_sent > 0) close(connection, ErrorCode::too_large);
    return ErrorCode::too_large;
  }
  auto* queued = new (block.data()) Queued;
  queued->request.data = queued;
  queued->connection = &connection;
  queued->size = size;
  queued->block = std::move(block);
  char* out = queued->octets();
  for (std::string_view piece : message) {
    const std::size_t skipped = std::min(already_sent, piece.size());
    already_sent -= skipped;
    piece.remove_prefix(skipped);
    if (!piece.empty()) std::memcpy(out, piece.data(), piece.size());
    out += piece.size();
  }
  const uv_buf_t buffer = uv_buf_init(queued->octets(), static_cast<unsigned>(size));
  const int status = uv_write(&queued->request, as<uv_stream_t>(&connection.handle), &buffer, 1,
                              [](uv_write_t* request, int write_status) {
                                auto* written = static_cast<Queued*>(request->data);
                                TcpConnection& writer = *written->connection;
                                const std::size_t octets = written->size;
                                { const Block freed = std::move(written->block); }
                                writer.core->on_written(writer, octets, write_status);
                              });
  if (status < 0) {
    const Block freed = std::move(queued->block);
    close(connection, network_error(status));
    return network_error(status);
  }
  connection.queued += size;
  queued_ += size;
  return {};
}

inline void TcpCore::on_written(TcpConnection& connection, std::size_t size, int status) {
  connection.queued -= size;
  queued_ -= size;
  if (connection.state != State::open) return;
  if (status < 0) return close(connection, network_error(status));
  if (connection.queued <= options_.max_queued / 2) start_reading(connection);
}

// ---- finding ----

inline std::uint64_t TcpCore::hash_of(const IpAddress& ip) const {
  SipHash hash = hash_;
  hash.update(ip.bytes());
  return hash.finish();
}

inline std::uint64_t TcpCore::hash_of(const SocketAddress& address) const {
  const std::uint32_t numbers[2] = {address.port, address.scope};
  SipHash hash = hash_;
  hash.update(address.ip.bytes());
  hash.update({reinterpret_cast<const char*>(numbers), sizeof numbers});
  return hash.finish();
}

inline std::uint32_t TcpCore::find_peer(const IpAddress& network) const {
  return by_network_.find(hash_of(network), [&](std::uint32_t candidate) {
    return peers_.at(candidate).network == network;
  });
}

inline TcpConnection* TcpCore::find(std::uint32_t number) {
  const std::uint32_t index = by_number_.find(hash_of(number), [&](std::uint32_t candidate) {
    return connections_.at(candidate).number == number;
  });
  return index == HashIndex::npos ? nullptr : &connections_.at(index);
}

inline TcpConnection* TcpCore::find(const SocketAddress& remote) {
  const std::uint32_t index = by_remote_.find(hash_of(remote), [&](std::uint32_t candidate) {
    return connections_.at(candidate).remote == remote;
  });
  return index == HashIndex::npos ? nullptr : &connections_.at(index);
}

/// Writing to a connection that the peer has closed must be an error, not the end of the program.
inline void ignore_broken_pipes() {
#ifdef SIGPIPE
  struct sigaction action;
  std::memset(&action, 0, sizeof action);
  if (sigaction(SIGPIPE, nullptr, &action) != 0 || (action.sa_flags & SA_SIGINFO) != 0) return;
  if (action.sa_handler != SIG_DFL) return;
  action.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &action, nullptr);
#endif
}

}  // namespace detail

/// All TCP listeners and connections of one owner. May be destroyed at any time, inside its
/// receiver's callbacks too.
class TcpConnections final : private Alarm {
 public:
  /// `key` keeps peers from choosing addresses that collide in our tables: `random_secret()`.
  /// `receiver` must live until this is closed.
  TcpConnections(Loop& loop, TcpReceiver& receiver, const TcpOptions& options,
                 const SipHashKey& key)
      : Alarm(loop),
        core_(std::make_shared<detail::TcpCore>(loop.core(), static_cast<Alarm&>(*this), receiver,
                                                options, key)) {
    detail::ignore_broken_pipes();
  }
  ~TcpConnections() { close(0); }

  /// Accepts connections at `address`, port 0 for any that is free; returns the address with its
  /// port. Error: `network`; a port that is taken is one.
  Result<SocketAddress> listen(const SocketAddress& address, const TcpListenOptions& options = {}) {
    if (is_closed_ || core_->loop_is_closed()) return ErrorCode::closed;
    return core_->listen(address, options);
  }

  /// The number of a connection to `remote`: one that is open or opening, else a new one. Error:
  /// `limit_reached`, `network`. That it could not be made is said by `on_connection_closed`.
  Result<std::uint32_t> connect(const SocketAddress& remote) {
    if (is_closed_ || core_->loop_is_closed()) return ErrorCode::closed;
    if (const detail::TcpConnection* found = core_->find(remote)) return found->number;
    return core_->connect(remote);
  }

  /// Sends, or copies what cannot go out at once; the pieces are the caller's again in any case.
  /// Error: `gone` where there is no such connection (any more), `limit_reached` where too much
  /// waits already, `network` where the connection broke just now. Taken is not delivered: a
  /// connection that closes takes along what waits.
  Error send(std::uint32_t connection, const Slices& message) {
    detail::TcpConnection* found = find(connection);
    return found == nullptr ? Error(ErrorCode::gone) : core_->send(*found, message);
  }

  /// Closes one connection after what was sent on it; `on_connection_closed` follows.
  void close_connection(std::uint32_t connection) {
    if (detail::TcpConnection* found = find(connection)) core_->drain(*found, ErrorCode::closed);
  }

  bool is_open(std::uint32_t connection) const { return find(connection) != nullptr; }
  /// Whether a connection to `remote` is open or opening.
  bool has_connection_to(const SocketAddress& remote) const {
    return !is_closed_ && core_->find(remote) != nullptr;
  }
  /// Our end of a connection, the port included; while it is opening perhaps not known yet, which
  /// is no family. Nothing where there is no such connection.
  std::optional<SocketAddress> local(std::uint32_t connection) const {
    const detail::TcpConnection* found = find(connection);
    if (found == nullptr) return std::nullopt;
    return found->local;
  }
  /// Which listener accepted it, counted from 0 in the order of `listen`. Nothing where none did.
  std::optional<std::size_t> listener(std::uint32_t connection) const {
    const detail::TcpConnection* found = find(connection);
    if (found == nullptr || found->listener == HashIndex::npos) return std::nullopt;
    return found->listener;
  }
  /// Those that are closing included.
  std::size_t connection_count() const { return core_->connection_count(); }
  const TcpCounters& counters() const { return core_->counters(); }

  /// Closes all. Nothing is called any more. What was sent and still waits has `flush_ms` to get
  /// out, also after this object is destroyed; without it everything is dropped at once.
  void close(std::uint32_t flush_ms = 0) {
    if (std::exchange(is_closed_, true)) return;
    core_->close(flush_ms);
  }

 private:
  detail::TcpConnection* find(std::uint32_t connection) const {
    return is_closed_ ? nullptr : core_->find(connection);
  }
  void on_alarm(std::uint64_t now_ms) override {
    if (is_closed_) return;
    core_->advance(now_ms);
  }

  std::shared_ptr<detail::TcpCore> core_;
  bool is_closed_ = false;
};

}  // namespace sipmsg

// ======================================== transport.hpp =========================================

// transport: all sockets of one server or client, and which of them a message takes.
//
// Transports turns datagrams and streams into one sequence of parsed messages, each with the Flow
// it came by, and sends what it is given along a Flow. A Flow that names a socket is obeyed to the
// letter: an answer leaves by the socket its request came in by (RFC 3261 18.2.2, RFC 3581), and a
// request reaches a phone over the connection it registered on (RFC 5626). Where no socket is named
// a suitable one is chosen, or opened.
//
// What our Via names as sent-by is the address under which the peer can reach us: that of the
// socket, and for one bound to all addresses the one that lies nearest to the peer.

namespace sipmsg {

/// One socket to listen on. Sizes in octets.
struct ListenerOptions {
  std::string name;  ///< for logs
  Transport transport = Transport::udp;
  SocketAddress address;                       ///< port 0: any that is free
  std::size_t max_message = max_message_size;  ///< a larger one is handed over with `too_large`
  std::uint32_t receive_buffer = 0;  ///< of the system, for a UDP socket; 0: as the system has it
  int backlog = 0;                   ///< TCP connections not yet accepted; 0: the system's maximum
  std::uint32_t idle_timeout_ms = 120000;  ///< of the TCP connections accepted here; 0: none
  bool ipv6_only = false;                  ///< an IPv6 socket refuses IPv4 peers
};

/// A socket that listens.
struct Listener {
  std::string name;
  Transport transport = Transport::udp;
  SocketAddress address;  ///< with the port that was chosen
  bool ipv6_only = false;
  std::uint32_t socket = 0;  ///< as in a Flow; 0 for TCP, where the connections have the numbers
};

struct TransportOptions {
  TcpOptions tcp;
  /// What may wait to be sent on one UDP socket, in octets.
  std::size_t max_queued_datagrams = std::size_t{1} << 20;
  /// Where no UDP socket can reach a peer, open one, on a port of the system's choice. A server
  /// that says where it listens may prefer an error.
  bool open_udp_on_demand = true;
  /// Tell the receiver of UDP peers that cannot be reached, where the system can.
  bool report_unreachable = false;
};

struct TransportCounters {
  UdpCounters udp;  ///< of all sockets together
  TcpCounters tcp;
};

class TransportReceiver {
 public:
  /// Every message that comes in, readable or not: `error` is what MessageView::parse said, or
  /// `too_large`. Valid during the call only, in which anything may be done, also destroying the
  /// Transports.
  virtual void on_message(const MessageView& message, Error error, const Flow& from) = 0;
  /// A TCP connection is gone or could not be made: once for each, never inside a call of ours, and
  /// never after `close`. What was sent on it and not answered will not be.
  virtual void on_connection_closed(std::uint32_t socket, Error why) = 0;
  /// Instead, where it could not be made: nothing that was sent on it has arrived.
  virtual void on_connection_failed(std::uint32_t socket, Error why) {
    on_connection_closed(socket, why);
  }
  /// A datagram did not reach its peer, as ICMP has it, which anybody may have sent. With
  /// `report_unreachable` only.
  virtual void on_unreachable(const Flow& /* flow */, Error /* why */) {}
  /// Everything that had come is handed over: the moment for what is done once for many messages.
  virtual void on_batch_end() {}
  /// A TCP connection that a peer made has been idle for its time: whether it stays open all the
  /// same, because a phone is reached over it. Nothing of ours may be called from here.
  virtual bool keeps_idle_connection(std::uint32_t) { return false; }

 protected:
  ~TransportReceiver() = default;
};

class Transports final : public Sink, private TcpReceiver {
 public:
  /// Called for each message in or out, as it is on the wire, also for those that are refused; not
  /// for keep-alives.
  using TraceHandler =
      std::function<void(bool is_incoming, const Flow& flow, std::string_view octets)>;

  /// Opens nothing yet. `receiver` must live until `close`.
  Transports(Loop& loop, TransportReceiver& receiver, const TransportOptions& options = {})
      : options_(options),
        loop_(loop),
        receiver_(receiver),
        tcp_(loop, *this, options.tcp, random_secret().value()) {}
  ~Transports() {
    close();
    if (destroyed_ != nullptr) *destroyed_ = true;
  }
  Transports(const Transports&) = delete;
  Transports& operator=(const Transports&) = delete;

  /// Opens a socket and returns its address, with the port. Error: `network`, with what the system
  /// said: a port that is taken is UV_EADDRINUSE.
  Result<SocketAddress> listen(const ListenerOptions& options);
  /// All that `listen` opened, in that order. References live until the next `listen`.
  const std::vector<Listener>& listeners() const { return listeners_; }
  /// The one through which messages of that Flow come; null for a socket opened on demand, for a
  /// connection made by us, and for one that is gone.
  const Listener* listener_of(const Flow& flow) const;

  /// See Sink. For TCP without a socket a connection is made, if there is none, and its number
  /// written into `flow`. The view is valid until the next call.
  inline Result<std::string_view> sent_by(Flow& flow) override;
  /// See Sink. Errors: `gone` for a connection that is no more; `too_large` for what no datagram
  /// holds; `limit_reached` where too much waits already; `network`; `closed`.
  inline Error send(const Flow& flow, const Slices& message) override;
  /// Whether a TCP connection to `remote` is open, or opening.
  bool has_stream_to(const SocketAddress& remote) const override {
    return tcp_.has_connection_to(remote);
  }
  std::string_view listener_name(const Flow& flow) const override {
    const Listener* listener = listener_of(flow);
    return listener == nullptr ? std::string_view() : std::string_view(listener->name);
  }
  /// Whether that TCP connection is open, or opening.
  bool is_open(std::uint32_t socket) const { return tcp_.is_open(socket); }
  /// Closes one TCP connection after what was sent on it has gone out.
  void close_connection(std::uint32_t socket) { tcp_.close_connection(socket); }

  /// Replaces the trace handler; an empty one ends it. It may replace itself, and may close and
  /// destroy.
  void on_trace(TraceHandler handler) {
    trace_ = handler ? std::make_shared<TraceHandler>(std::move(handler)) : nullptr;
  }

  std::size_t connection_count() const { return tcp_.connection_count(); }
  TransportCounters counters() const;

  /// Closes everything; nothing is called any more. What was sent over TCP and still waits has
  /// `flush_ms` to get out, also after this object is destroyed.
  void close(std::uint32_t flush_ms = 500);

 private:
  /// A UDP socket, under its number.
  struct Datagrams final : UdpReceiver {
    Datagrams(Transports& transports, std::uint32_t socket_number)
        : owner(transports), number(socket_number) {}
    void on_datagram(std::string_view octets, const SocketAddress& from, Error error) override {
      owner.on_datagram(octets, error, Flow{Transport::udp, number, from});
    }
    void on_datagrams_end() override { owner.receiver_.on_batch_end(); }
    void on_unreachable(const SocketAddress& peer, Error why) override {
      owner.receiver_.on_unreachable(Flow{Transport::udp, number, peer}, why);
    }

    Transports& owner;
    std::uint32_t number;
    UdpSocket socket;
    SocketAddress address;
    bool ipv6_only = false;
    std::string sent_by;  ///< empty where it depends on the peer
  };

  // -- receiving --
  void on_datagram(std::string_view octets, Error error, const Flow& flow);
  inline void on_stream_message(std::uint32_t connection, const MessageView& message, Error error,
                                const SocketAddress& from) override;
  void on_connection_closed(std::uint32_t connection, Error why) override {
    receiver_.on_connection_closed(connection, why);
  }
  void on_connection_failed(std::uint32_t connection, Error why) override {
    receiver_.on_connection_failed(connection, why);
  }
  void on_stream_messages_end() override { receiver_.on_batch_end(); }
  bool keeps_idle_connection(std::uint32_t connection) override {
    return receiver_.keeps_idle_connection(connection);
  }
  bool trace_incoming(const Flow& flow, std::string_view octets);

  // -- sending --
  Result<Datagrams*> open_udp(const ListenerOptions& options);
  Result<Datagrams*> udp_socket(const Flow& flow);
  Datagrams* choose_udp(const IpAddress& remote);
  Error send_on(const Flow& flow, const Slices& message);

  // -- sent-by --
  std::string_view udp_sent_by(const Datagrams& datagrams, const SocketAddress& remote);
  SocketAddress tcp_sent_by(std::uint32_t connection, const SocketAddress& remote);
  IpAddress local_address_for(const IpAddress& remote);
  std::string_view render(const SocketAddress& address);
  /// Whether what is bound to `bound` has `ip` as one of its addresses.
  static bool covers(const IpAddress& bound, bool ipv6_only, const IpAddress& ip) {
    if (bound.family == ip.family) return bound.is_unspecified() || bound == ip;
    return bound.is_ipv6() && bound.is_unspecified() && !ipv6_only;
  }

  TransportOptions options_;
  Loop& loop_;
  TransportReceiver& receiver_;
  TcpConnections tcp_;
  std::vector<std::unique_ptr<Datagrams>> udp_;  ///< number n at n - 1
  std::vector<Listener> listeners_;
  std::vector<std::size_t> tcp_listeners_;  ///< which of them listen on TCP
  std::shared_ptr<TraceHandler> trace_;
  bool* destroyed_ = nullptr;  ///< somebody's who wants to know
  bool is_closed_ = false;
  std::vector<InterfaceAddress> interfaces_;
  std::uint64_t interfaces_expire_ms_ = 0;
  char sent_by_[64];
};

// ---- listening ----

inline Result<SocketAddress> Transports::listen(const ListenerOptions& options) {
  if (is_closed_) return ErrorCode::closed;
  Listener listener;
  listener.name = options.name;
  listener.transport = options.transport;
  listener.ipv6_only = options.ipv6_only;
  if (options.transport == Transport::udp) {
    const auto opened = open_udp(options);
    if (!opened) return opened.error();
    listener.address = (*opened)->address;
    listener.socket = (*opened)->number;
  } else {
    TcpListenOptions tcp;
    tcp.max_message = options.max_message;
    tcp.idle_timeout_ms = options.idle_timeout_ms;
    tcp.backlog = options.backlog;
    tcp.ipv6_only = options.ipv6_only;
    const auto address = tcp_.listen(options.address, tcp);
    if (!address) return address.error();
    listener.address = *address;
    tcp_listeners_.push_back(listeners_.size());
  }
  listeners_.push_back(listener);
  return listener.address;
}

inline Result<Transports::Datagrams*> Transports::open_udp(const ListenerOptions& options) {
  auto datagrams = std::make_unique<Datagrams>(*this, static_cast<std::uint32_t>(udp_.size() + 1));
  if (datagrams->number >= first_connection_number) return ErrorCode::limit_reached;
  UdpOptions udp;
  udp.max_datagram = options.max_message;
  udp.receive_buffer = options.receive_buffer;
  udp.ipv6_only = options.ipv6_only;
  udp.max_queued = options_.max_queued_datagrams;
  udp.report_unreachable = options_.report_unreachable;
  if (auto error = datagrams->socket.open(loop_, options.address, *datagrams, udp)) return error;
  datagrams->address = datagrams->socket.local();
  datagrams->ipv6_only = options.ipv6_only;
  if (!options.address.ip.is_unspecified()) datagrams->sent_by = to_text(datagrams->address);
  udp_.push_back(std::move(datagrams));
  return udp_.back().get();
}

inline const Listener* Transports::listener_of(const Flow& flow) const {
  if (flow.transport == Transport::tcp) {
    const auto index = tcp_.listener(flow.socket);
    return index ? &listeners_[tcp_listeners_[*index]] : nullptr;
  }
  for (const Listener& listener : listeners_) {
    if (listener.socket != 0 && listener.socket == flow.socket) return &listener;
  }
  return nullptr;
}

inline TransportCounters Transports::counters() const {
  TransportCounters sum;
  sum.tcp = tcp_.counters();
  for (const auto& datagrams : udp_) {
    if (!datagrams->socket.is_open()) continue;
    const UdpCounters& udp = datagrams->socket.counters();
    sum.udp.received += udp.received;
    sum.udp.keepalives += udp.keepalives;
    sum.udp.too_large += udp.too_large;
    sum.udp.receive_errors += udp.receive_errors;
    sum.udp.sent += udp.sent;
    sum.udp.queued += udp.queued;
    sum.udp.send_errors += udp.send_errors;
  }
  return sum;
}

inline void Transports::close(std::uint32_t flush_ms) {
  if (std::exchange(is_closed_, true)) return;
  for (const auto& datagrams : udp_) datagrams->socket.close();
  tcp_.close(flush_ms);
}

// ---- receiving ----

inline void Transports::on_datagram(std::string_view octets, Error error, const Flow& flow) {
  // Line ends before the start line mean nothing (RFC 3261 7.5 says so of streams).
  while (octets.substr(0, 2) == "\r\n") octets.remove_prefix(2);
  if (!trace_incoming(flow, octets)) return;
  MessageView message;  // here, for everything else may be destroyed before it is
  const Error mistake = message.parse(octets);
  receiver_.on_message(message, error ? error : mistake, flow);
}

inline void Transports::on_stream_message(std::uint32_t connection, const MessageView& message,
                                          Error error, const SocketAddress& from) {
  const Flow flow{Transport::tcp, connection, from};
  if (!trace_incoming(flow, message.bytes())) return;
  receiver_.on_message(message, error, flow);
}

/// False where the handler has closed or destroyed this.
inline bool Transports::trace_incoming(const Flow& flow, std::string_view octets) {
  if (!trace_) return true;
  const std::shared_ptr<TraceHandler> handler = trace_;  // it may replace itself
  bool destroyed = false;
  bool* const outer = std::exchange(destroyed_, &destroyed);
  (*handler)(true, flow, octets);
  if (!destroyed) {
    destroyed_ = outer;
    return !is_closed_;
  }
  if (outer != nullptr) *outer = true;
  return false;
}

// ---- sending ----

/// The socket that a Flow names, or the best there is.
inline Result<Transports::Datagrams*> Transports::udp_socket(const Flow& flow) {
  if (is_closed_) return ErrorCode::closed;
  if (flow.socket > udp_.size()) return ErrorCode::gone;
  if (flow.socket > 0) return udp_[flow.socket - 1].get();
  if (Datagrams* chosen = choose_udp(flow.remote.ip)) return chosen;
  if (!options_.open_udp_on_demand) return network_error(UV_ENETUNREACH);
  ListenerOptions any;
  any.address.ip.family = flow.remote.ip.family;
  // For a peer on this machine nobody else needs to reach us.
  if (flow.remote.ip.is_loopback()) any.address.ip = flow.remote.ip;
  return open_udp(any);
}

/// The first socket that can reach `remote`: one of its family, and one bound to the loopback for
/// the loopback alone. Null where there is none.
inline Transports::Datagrams* Transports::choose_udp(const IpAddress& remote) {
  Datagrams* second_best = nullptr;
  for (const auto& candidate : udp_) {
    const IpAddress& bound = candidate->address.ip;
    const bool fits = bound.is_unspecified() || bound.is_loopback() == remote.is_loopback();
    if (bound.family == remote.family && fits) return candidate.get();
    if (bound.family != remote.family && covers(bound, candidate->ipv6_only, remote)) {
      second_best = candidate.get();
    }
  }
  return second_best;
}

inline Error Transports::send(const Flow& flow, const Slices& message) {
  constexpr std::size_t keepalive_size = 4;  // of the longest, CR LF CR LF; no message is as short
  const Error error = send_on(flow, message);
  if (trace_ && message.size() > keepalive_size) {
    // Last: the handler may replace itself, and destroy this.
    const std::shared_ptr<TraceHandler> handler = trace_;
    (*handler)(false, flow, message.to_string());
  }
  return error;
}

inline Error Transports::send_on(const Flow& flow, const Slices& message) {
  if (flow.transport == Transport::udp) {
    const auto datagrams = udp_socket(flow);
    return datagrams ? (*datagrams)->socket.send(flow.remote, message) : datagrams.error();
  }
  if (flow.socket != 0) return tcp_.send(flow.socket, message);
  const auto connection = tcp_.connect(flow.remote);
  return connection ? tcp_.send(*connection, message) : connection.error();
}

// ---- sent-by ----

inline Result<std::string_view> Transports::sent_by(Flow& flow) {
  if (flow.transport == Transport::udp) {
    const auto datagrams = udp_socket(flow);
    if (!datagrams) return datagrams.error();
    flow.socket = (*datagrams)->number;
    return udp_sent_by(**datagrams, flow.remote);
  }
  if (flow.socket == 0) {
    const auto connection = tcp_.connect(flow.remote);
    if (!connection) return connection.error();
    flow.socket = *connection;
  }
  if (!tcp_.is_open(flow.socket)) return ErrorCode::gone;
  return render(tcp_sent_by(flow.socket, flow.remote));
}

inline std::string_view Transports::udp_sent_by(const Datagrams& datagrams,
                                                const SocketAddress& remote) {
  if (!datagrams.sent_by.empty()) return datagrams.sent_by;
  SocketAddress address;
  address.ip = local_address_for(remote.ip);
  address.port = datagrams.address.port;
  return render(address);
}

/// Answers come back over the connection, and where it broke to a listener of ours (RFC 3261
/// 18.2.2): so its port it is, if there is one at this end's address.
inline SocketAddress Transports::tcp_sent_by(std::uint32_t connection,
                                             const SocketAddress& remote) {
  SocketAddress address = tcp_.local(connection).value_or(SocketAddress());
  if (!address.ip) address.ip = local_address_for(remote.ip);
  const Listener* found = nullptr;
  for (const std::size_t index : tcp_listeners_) {
    const Listener& listener = listeners_[index];
    if (!covers(listener.address.ip, listener.ipv6_only, address.ip)) continue;
    if (found == nullptr || listener.address.port == address.port) found = &listener;
  }
  if (found != nullptr) address.port = found->address.port;
  return address;
}

inline IpAddress Transports::local_address_for(const IpAddress& remote) {
  // Interfaces come and go, cables and VPNs, but not with every message.
  constexpr std::uint64_t lifetime_ms = 60000;
  const std::uint64_t now_ms = loop_.now_ms();
  if (!remote.is_loopback() && now_ms >= interfaces_expire_ms_) {
    interfaces_ = interface_addresses();
    interfaces_expire_ms_ = now_ms + lifetime_ms;
  }
  return choose_local_address(interfaces_, remote);
}

inline std::string_view Transports::render(const SocketAddress& address) {
  Output out(sent_by_, sizeof sent_by_);
  if (address.ip.is_ipv6()) out.raw("[");
  out.ip(address.ip);
  if (address.ip.is_ipv6()) out.raw("]");
  out.raw(":").number(address.port);
  return out.written();
}

}  // namespace sipmsg

// ========================================= offload.hpp ==========================================

// offload: work on libuv's thread pool, with a typed result, and in order where order matters.
//
// A handler that asks a database must not hold up the loop. `run` moves a function to the pool and
// brings what it returned back to the loop's thread. Jobs of one key are done one after another, in
// the order they were given, and report in that order; that is how messages from one sender to one
// recipient stay in line. Jobs of different keys do not wait for each other, and how many may wait
// in all is bounded.
//
// The pool is libuv's: one for the whole process, four threads unless UV_THREADPOOL_SIZE says
// otherwise, shared with name resolution and files. Jobs wait here and not in its queue, so that
// others get their turn. Work that has begun cannot be stopped.

namespace sipmsg {

struct OffloadOptions {
  std::size_t max_jobs = 1000;  ///< given and not done yet; more are refused
  std::size_t max_running = 4;  ///< given to the pool at the same time
};

namespace detail {

class OffloadCore;

/// One job. `work` is for a thread of the pool, everything else for the loop's.
class OffloadJob {
 public:
  virtual ~OffloadJob() = default;
  virtual void work() = 0;
  virtual void report(Error error) = 0;

  uv_work_t request;
  std::shared_ptr<OffloadCore> core;  ///< while the pool has it
  OffloadJob* next = nullptr;         ///< of its lane
  std::uint32_t lane = HashIndex::npos;
  std::uint64_t key = 0;
  bool has_reported = false;
};

template <class Work, class Done>
class TypedOffloadJob final : public OffloadJob {
 public:
  using Value = std::invoke_result_t<Work&>;

  TypedOffloadJob(Work&& work, Done&& done) : work_(std::move(work)), done_(std::move(done)) {}
  void work() override {
    if constexpr (std::is_void_v<Value>) {
      work_();
    } else {
      value_ = work_();
    }
  }
  void report(Error error) override {
    if constexpr (std::is_void_v<Value>) {
      done_(error);
    } else if (error) {
      done_(error, Value{});  // not value_, which the pool may be writing at this moment
    } else {
      done_(error, std::move(value_));
    }
  }

 private:
  struct Nothing {};

  Work work_;
  Done done_;
  std::conditional_t<std::is_void_v<Value>, Nothing, Value> value_{};
};

/// All jobs of one Offload, until the pool has given back the last.
class OffloadCore : public std::enable_shared_from_this<OffloadCore> {
 public:
  OffloadCore(std::shared_ptr<LoopCore> loop, const OffloadOptions& options)
      : loop_(std::move(loop)), options_(options) {}

  Error add(std::unique_ptr<OffloadJob> job);
  void close();
  bool is_closed() const { return closed_; }
  std::size_t size() const { return jobs_; }

 private:
  /// The jobs of one key: the first may be running, the others wait for it. Lanes whose first job
  /// could run wait in a queue of their own.
  struct Lane {
    OffloadJob* first = nullptr;
    OffloadJob* last = nullptr;
    std::uint32_t next = HashIndex::npos;  ///< in the queue of lanes
  };

  std::uint32_t lane_of(std::uint64_t key);
  void append(std::uint32_t lane);
  void start_some();
  void start(OffloadJob& job);
  void finish(OffloadJob& job);

  std::shared_ptr<LoopCore> loop_;
  OffloadOptions options_;
  Slab<Lane> lanes_;
  HashIndex by_key_;
  std::uint32_t first_ready_ = HashIndex::npos;
  std::uint32_t last_ready_ = HashIndex::npos;
  std::size_t jobs_ = 0;
  std::size_t running_ = 0;
  bool closed_ = false;
};

inline Error OffloadCore::add(std::unique_ptr<OffloadJob> job) {
  if (closed_ || loop_->is_closed()) return ErrorCode::closed;
  if (jobs_ >= options_.max_jobs) return ErrorCode::limit_reached;
  ++jobs_;
  job->lane = lane_of(job->key);
  Lane& lane = lanes_.at(job->lane);
  OffloadJob* added = job.release();  // owned by its lane
  const bool was_empty = lane.first == nullptr;
  (was_empty ? lane.first : lane.last->next) = added;
  lane.last = added;
  if (was_empty) append(added->lane);
  start_some();
  return {};
}

inline std::uint32_t OffloadCore::lane_of(std::uint64_t key) {
  std::uint32_t lane = by_key_.find(
      key, [&](std::uint32_t candidate) { return lanes_.at(candidate).first->key == key; });
  if (lane == HashIndex::npos) {
    lane = lanes_.create().index;
    by_key_.insert(key, lane);
  }
  return lane;
}

/// Puts a lane at the end of those that have a job to run.
inline void OffloadCore::append(std::uint32_t lane) {
  lanes_.at(lane).next = HashIndex::npos;
  (first_ready_ == HashIndex::npos ? first_ready_ : lanes_.at(last_ready_).next) = lane;
  last_ready_ = lane;
}

inline void OffloadCore::start_some() {
  while (running_ < options_.max_running && first_ready_ != HashIndex::npos) {
    Lane& lane = lanes_.at(first_ready_);
    first_ready_ = lane.next;
    start(*lane.first);
  }
}

inline void OffloadCore::start(OffloadJob& job) {
  ++running_;
  job.core = shared_from_this();
  job.request.data = &job;
  // Fails only without a function to call.
  uv_queue_work(
      loop_->loop(), &job.request,
      [](uv_work_t* request) { static_cast<OffloadJob*>(request->data)->work(); },
      [](uv_work_t* request, int) {
        auto& done = *static_cast<OffloadJob*>(request->data);
        const std::shared_ptr<OffloadCore> core = std::move(done.core);
        core->finish(done);
      });
}

/// A job has come back from the pool: done, or, where `close` could take it back, reported before.
inline void OffloadCore::finish(OffloadJob& job) {
  const std::unique_ptr<OffloadJob> owned(&job);
  if (job.has_reported) return;
  --running_;
  --jobs_;
  // The lane goes on first, for the report may do anything. The next job cannot overtake this one:
  // it reports in a later turn of the loop.
  const std::uint32_t index = job.lane;
  Lane& lane = lanes_.at(index);
  lane.first = job.next;
  if (lane.first != nullptr) {
    append(index);
  } else {
    by_key_.erase(job.key, index);
    lanes_.destroy(lanes_.handle_of(index));
  }
  start_some();
  job.report({});
}

inline void OffloadCore::close() {
  if (std::exchange(closed_, true)) return;
  const auto self = shared_from_this();  // reports may destroy the owner
  OffloadJob* first = nullptr;
  OffloadJob** end = &first;
  lanes_.for_each([&](Handle handle, Lane& lane) {
    *end = lane.first;
    while (*end != nullptr) end = &(*end)->next;
    lanes_.destroy(handle);
  });
  jobs_ = running_ = 0;
  while (first != nullptr) {
    OffloadJob* job = std::exchange(first, first->next);
    const bool pool_has_it = job->core != nullptr;
    job->has_reported = true;
    if (pool_has_it) uv_cancel(reinterpret_cast<uv_req_t*>(&job->request));
    job->report(ErrorCode::cancelled);
    if (!pool_has_it) delete job;
  }
}

}  // namespace detail

/// Runs functions on the thread pool. Everything but the functions themselves belongs to the loop's
/// thread. May be destroyed at any time, inside a report too.
///
///     offload.run(key, [text] { return look_up(text); },
///                 [](sipmsg::Error error, std::string found) { ... });
class Offload {
 public:
  explicit Offload(Loop& loop, const OffloadOptions& options = {})
      : core_(std::make_shared<detail::OffloadCore>(loop.core(), options)) {}
  ~Offload() { close(); }
  Offload(const Offload&) = delete;
  Offload& operator=(const Offload&) = delete;

  /// Has `work()` called on a thread of the pool and then `done(error, value)` on the loop's
  /// thread, with what `work` returned; `done(error)` where it returns nothing. Jobs of one `key`
  /// run and report one after another; make keys with a SipHash where they come from outside.
  ///
  /// `work` must own what it uses: it may outlive everything but the loop. What it returns must be
  /// movable and have a default constructor. `done` is called exactly once, never inside this call:
  /// without error, or with `cancelled` and a default value from inside `close`.
  /// Errors, after which `done` is not called: `limit_reached`, `closed`.
  template <class Work, class Done>
  Error run(std::uint64_t key, Work work, Done done) {
    auto job =
        std::make_unique<detail::TypedOffloadJob<Work, Done>>(std::move(work), std::move(done));
    job->key = key;
    return core_->add(std::move(job));
  }
  /// The same for work whose order does not matter.
  template <class Work, class Done>
  Error run(Work work, Done done) {
    return run(--unordered_, std::move(work), std::move(done));
  }

  /// Jobs given and not reported yet.
  std::size_t size() const { return core_->size(); }

  /// Reports everything that is not done as `cancelled`, before it returns. Work that has begun
  /// goes on, and the loop runs until it is through; what it returns is dropped.
  void close() { core_->close(); }

 private:
  std::shared_ptr<detail::OffloadCore> core_;
  std::uint64_t unordered_ = 0;
};

}  // namespace sipmsg

// =========================================== dns.hpp ============================================

// dns: the system's resolver, on libuv's thread pool.
//
// Addresses come from getaddrinfo through libuv, and with them whatever the system knows besides
// the DNS: its table of hosts, its search list, its order of address families (RFC 6724). For SRV
// records POSIX has no call; res_query stands in every Unix resolver, and asks the name servers of
// /etc/resolv.conf as getaddrinfo does. Both wait, so both run in the pool.
//
// Left out on purpose: a cache. Names are looked up for each request that is sent to one. Where
// that is too often, a caching resolver on the machine serves all its programs, and obeys the
// times-to-live, which getaddrinfo does not even tell.

namespace sipmsg {

namespace detail {

/// What came of an SRV query.
struct SrvAnswer {
  Error error;
  std::vector<SrvRecord> records;
};

// glibc before 2.34 has res_query in a library of its own, and we want none but libuv linked.
#if defined(SIPMSG_NO_SRV) || !defined(__linux__) || \
    (defined(__GLIBC__) && __GLIBC__ * 1000 + __GLIBC_MINOR__ < 2034)

/// There are no SRV records as far as this system can tell.
inline SrvAnswer query_srv(const std::string&) { return {}; }

#else

// Declared here, because <resolv.h> brings along macros named ADD, DELETE, QUERY, STATUS, REFUSED
// and two hundred others. It says `noexcept` in glibc only, and all declarations have to agree.
#ifdef __GLIBC__
extern "C" int res_query(const char* name, int record_class, int type, unsigned char* answer,
                         int size) noexcept;
#else
extern "C" int res_query(const char* name, int record_class, int type, unsigned char* answer,
                         int size);
#endif

/// Waits for the answer, for as long as /etc/resolv.conf says. Any thread may call it: each has a
/// resolver state of its own (glibc), or there is none (musl).
inline SrvAnswer query_srv(const std::string& name) {
  constexpr int class_internet = 1;
  constexpr int type_srv = 33;
  std::vector<unsigned char> buffer(65535);  // what the DNS can send over TCP
  SrvAnswer answer;
  const int size = res_query(name.c_str(), class_internet, type_srv, buffer.data(),
                             static_cast<int>(buffer.size()));
  if (size < 0) {
    const int reason = h_errno;
    if (reason == TRY_AGAIN) answer.error = network_error(UV_EAI_AGAIN);
    if (reason == NO_RECOVERY) answer.error = network_error(UV_EAI_FAIL);
    return answer;  // else: no such name, or it has no such records
  }
  // The size may be that of an answer which did not fit.
  auto records = parse_srv_answer(
      as_text(buffer.data(), std::min(static_cast<std::size_t>(size), buffer.size())));
  answer.error = records.error();
  answer.records = std::move(*records);
  return answer;
}

#endif

/// All look-ups of one Dns, until libuv has given back the last.
class DnsCore : public std::enable_shared_from_this<DnsCore> {
 public:
  explicit DnsCore(Loop& loop) : loop_(loop.core()), offload_(loop, offload_options()) {}

  void look_up_addresses(const std::string& host, NameService::AddressHandler done);
  void look_up_srv(const std::string& name, NameService::SrvHandler done);
  void close();

 private:
  struct AddressLookup {
    uv_getaddrinfo_t request;
    std::shared_ptr<DnsCore> core;
    std::list<AddressLookup>::iterator self;
    NameService::AddressHandler done;
  };
  static constexpr std::size_t max_lookups = 1000;  // of either kind
  /// Name servers that do not answer must leave threads to others.
  static OffloadOptions offload_options() { return {max_lookups, 2}; }

  bool is_closed() const { return is_closed_ || loop_->is_closed(); }
  static void on_addresses(uv_getaddrinfo_t* request, int status, addrinfo* found);
  /// Reports an error that is known at once, but may not be told before the caller is done.
  template <class Handler>
  void fail_later(Handler done, Error error) {
    auto report = [core = weak_from_this(), done = std::move(done), error] {
      const auto alive = core.lock();
      if (alive && !alive->is_closed()) done(error, {});
    };
    // A closed loop calls nobody.
    (void)loop_->post(std::make_unique<PostedFunction<decltype(report)>>(std::move(report)));
  }

  std::shared_ptr<LoopCore> loop_;
  Offload offload_;
  std::list<AddressLookup> lookups_;
  bool is_closed_ = false;
};

inline void DnsCore::look_up_addresses(const std::string& host, NameService::AddressHandler done) {
  if (is_closed()) return;
  if (!is_host_name(host)) return fail_later(std::move(done), ErrorCode::bad_host);
  if (lookups_.size() >= max_lookups) {
    return fail_later(std::move(done), ErrorCode::limit_reached);
  }
  lookups_.emplace_front();
  AddressLookup& lookup = lookups_.front();
  lookup.core = shared_from_this();
  lookup.self = lookups_.begin();
  lookup.done = std::move(done);
  lookup.request.data = &lookup;
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_DGRAM;  // or each address comes once for each type of socket
  const int status =
      uv_getaddrinfo(loop_->loop(), &lookup.request, on_addresses, host.c_str(), nullptr, &hints);
  if (status == 0) return;
  fail_later(std::move(lookup.done), network_error(status));
  lookups_.pop_front();
}

inline void DnsCore::on_addresses(uv_getaddrinfo_t* request, int status, addrinfo* found) {
  auto& lookup = *static_cast<AddressLookup*>(request->data);
  const std::shared_ptr<DnsCore> core = std::move(lookup.core);
  const NameService::AddressHandler done = std::move(lookup.done);
  core->lookups_.erase(lookup.self);
  std::vector<IpAddress> addresses;
  for (const addrinfo* entry = found; entry != nullptr; entry = entry->ai_next) {
    const IpAddress ip = from_native(entry->ai_addr).ip;
    if (ip && addresses.size() < max_next_hops) addresses.push_back(ip);
  }
  uv_freeaddrinfo(found);
  if (core->is_closed()) return;
  const bool is_unknown =
      status == UV_EAI_NONAME || status == UV_EAI_NODATA || (status == 0 && addresses.empty());
  if (is_unknown) return done(ErrorCode::unknown_host, {});
  done(status < 0 ? network_error(status) : Error(), addresses);
}

inline void DnsCore::look_up_srv(const std::string& name, NameService::SrvHandler done) {
  if (is_closed()) return;
  if (!is_host_name(name)) return fail_later(std::move(done), ErrorCode::bad_host);
  const Error error = offload_.run([name] { return query_srv(name); },
                                   [core = weak_from_this(), done](Error, const SrvAnswer& answer) {
                                     const auto alive = core.lock();
                                     if (!alive || alive->is_closed()) return;
                                     done(answer.error, answer.records);
                                   });
  if (error) fail_later(std::move(done), error);
}

inline void DnsCore::close() {
  is_closed_ = true;  // so that the handlers of what is cancelled are not called
  for (AddressLookup& lookup : lookups_) {
    uv_cancel(reinterpret_cast<uv_req_t*>(&lookup.request));
  }
  offload_.close();
}

}  // namespace detail

/// Looks up names as this system does. May be destroyed at any time, inside a handler too; the loop
/// then runs until the threads of the pool are through with what they had begun, which can take as
/// long as the name servers are silent.
///
/// Errors that handlers get: `unknown_host`; `network` with libuv's status, such as UV_EAI_AGAIN
/// where no name server answers; `bad_dns_answer`; `bad_host` for what is no name; `limit_reached`
/// where a thousand look-ups wait.
class Dns final : public NameService {
 public:
  explicit Dns(Loop& loop) : core_(std::make_shared<detail::DnsCore>(loop)) {}
  ~Dns() { close(); }
  Dns(const Dns&) = delete;
  Dns& operator=(const Dns&) = delete;

  void look_up_addresses(const std::string& host, AddressHandler done) override {
    core_->look_up_addresses(host, std::move(done));
  }
  /// With SIPMSG_NO_SRV, and where the C library has no res_query, there are no records.
  void look_up_srv(const std::string& name, SrvHandler done) override {
    core_->look_up_srv(name, std::move(done));
  }
  /// From now on no handler is called. Twice is fine.
  void close() { core_->close(); }

 private:
  std::shared_ptr<detail::DnsCore> core_;
};

}  // namespace sipmsg

// ========================================= endpoint.hpp =========================================

// endpoint: a user agent on a libuv loop: what a user of this header holds to send and receive.
//
// One object does both, on sockets it opens where it is told; a Registration keeps it reachable.
// The loop is the caller's. Everything here belongs to the loop's thread, but `post`, which other
// threads may call. Anything may be done inside a callback: sending, replacing the handler,
// closing, destroying the Endpoint or the Registration itself. After `close()`, or its destruction,
// the loop runs dry as far as this is concerned; it must turn once more so that libuv lets go of
// the sockets.

namespace sipmsg {

namespace detail {

/// Everything of an Endpoint. Lives until the Endpoint is gone and the last callback has returned.
class EndpointCore final : public TransportReceiver,
                           public Alarm,
                           private NameService,
                           public std::enable_shared_from_this<EndpointCore> {
 public:
  EndpointCore(uv_loop_t* loop, AgentOptions options, const SipHashKey& secret)
      : EndpointCore(std::make_unique<Loop>(loop), std::move(options), secret) {}

  Loop& loop() { return *loop_; }
  Agent& agent() { return agent_; }
  Transports& transports() { return transports_; }
  bool is_closed() const { return closed_; }
  /// Why nothing can be sent or received: closed, or a Loop that could not be opened.
  Error error() const { return closed_ ? Error(ErrorCode::closed) : loop_->error(); }

  /// Before and after whatever the application does: the next deadline may be sooner.
  void rearm() {
    if (closed_) return;
    if (const auto deadline_ms = agent_.next_deadline()) arm(*deadline_ms);
    for (const auto& registration : registrations_) {
      if (const auto deadline_ms = registration->next_deadline()) arm(*deadline_ms);
    }
  }
  void add(std::shared_ptr<RegistrationKeeper> registration) {
    registrations_.push_back(std::move(registration));
  }
  void remove(const RegistrationKeeper& registration) {
    const auto found =
        std::find_if(registrations_.begin(), registrations_.end(),
                     [&](const auto& candidate) { return candidate.get() == &registration; });
    if (found != registrations_.end()) registrations_.erase(found);
  }
  void close() {
    if (closed_) return;
    const auto self = shared_from_this();  // what is told may let go of the Endpoint
    closed_ = true;
    const std::uint64_t now_ms = loop_->fresh_now_ms();
    for (const auto& registration : std::exchange(registrations_, {})) registration->close(now_ms);
    agent_.close();
    agent_.on_message(nullptr);
    dns_.close();
    transports_.close();
    loop_->close();
  }

 private:
  EndpointCore(std::unique_ptr<Loop> loop, AgentOptions options, const SipHashKey& secret)
      : Alarm(*loop),
        loop_(std::move(loop)),
        dns_(*loop_),
        names_(options.names != nullptr ? *options.names : dns_),
        transports_(*loop_, *this, transport_options()),
        agent_(complete(std::move(options), *this), transports_, secret) {}

  static TransportOptions transport_options() {
    TransportOptions options;
    options.report_unreachable = true;
    return options;
  }
  static AgentOptions complete(AgentOptions options, NameService& names) {
    if (options.unix_time_s == nullptr) options.unix_time_s = &sipmsg::unix_time_s;
    options.names = &names;
    return options;
  }

  // The agent goes on in `advance`, when what it asked for is there: the alarm has to know.
  void look_up_addresses(const std::string& host, AddressHandler done) override {
    names_.look_up_addresses(host, [weak = weak_from_this(), done = std::move(done)](
                                       Error error, const std::vector<IpAddress>& addresses) {
      const auto self = weak.lock();
      if (!self || self->closed_) return;
      done(error, addresses);
      self->rearm();
    });
  }
  void look_up_srv(const std::string& name, SrvHandler done) override {
    names_.look_up_srv(name, [weak = weak_from_this(), done = std::move(done)](
                                 Error error, const std::vector<SrvRecord>& records) {
      const auto self = weak.lock();
      if (!self || self->closed_) return;
      done(error, records);
      self->rearm();
    });
  }

  void on_message(const MessageView& message, Error error, const Flow& flow) override {
    const auto self = shared_from_this();
    agent_.receive(message, error, flow, loop_->now_ms());
    rearm();
  }
  void on_connection_closed(std::uint32_t socket, Error error) override {
    const auto self = shared_from_this();
    const std::uint64_t now_ms = loop_->now_ms();
    agent_.connection_closed(socket, error, now_ms);
    for_each_registration([&](RegistrationKeeper& registration) {
      registration.connection_closed(socket, error, now_ms);
    });
    rearm();
  }
  void on_connection_failed(std::uint32_t socket, Error error) override {
    const auto self = shared_from_this();
    agent_.connection_failed(socket, error, loop_->now_ms());
    rearm();
  }
  void on_unreachable(const Flow& flow, Error error) override {
    const auto self = shared_from_this();
    const std::uint64_t now_ms = loop_->now_ms();
    agent_.unreachable(flow.remote, error, now_ms);
    for_each_registration([&](RegistrationKeeper& registration) {
      registration.unreachable(flow.remote, error, now_ms);
    });
    rearm();
  }
  void on_alarm(std::uint64_t now_ms) override {
    const auto self = shared_from_this();
    agent_.advance(now_ms);
    for_each_registration([&](RegistrationKeeper& registration) { registration.advance(now_ms); });
    rearm();
  }
  /// Handlers may add and take away registrations meanwhile. One that is passed over for that is
  /// due still, and so the alarm goes off again.
  template <class Use>
  void for_each_registration(Use use) {
    for (std::size_t i = 0; i < registrations_.size(); ++i) {
      const std::shared_ptr<RegistrationKeeper> registration = registrations_[i];
      use(*registration);
    }
  }

  std::unique_ptr<Loop> loop_;
  Dns dns_;
  NameService& names_;  ///< the application's, or `dns_`
  Transports transports_;
  Agent agent_;
  std::vector<std::shared_ptr<RegistrationKeeper>> registrations_;
  bool closed_ = false;
};

}  // namespace detail

/// Answers one received message, at any time later, also after everything else is gone: then
/// `send` says so. Copies all answer the same message.
class Reply {
 public:
  Reply() = default;
  Reply(std::weak_ptr<detail::EndpointCore> core, ServerTransaction server)
      : core_(std::move(core)), server_(server) {}

  /// Sends a final answer, 200 to 699, with this phrase or the usual one. False where nothing was
  /// sent: the message was answered before, its sender has given up (after 32 s), the Endpoint is
  /// closed, the code is another one, the phrase would end the line, or a header may not stand
  /// there. See Agent::reply.
  bool send(int code, std::string_view phrase = {}, const Headers& headers = {}) const {
    const auto core = core_.lock();
    if (!core || core->is_closed()) return false;
    const Error error =
        core->agent().reply(server_, code, phrase, headers, core->loop().fresh_now_ms());
    core->rearm();
    return !error;
  }

 private:
  std::weak_ptr<detail::EndpointCore> core_;
  ServerTransaction server_;
};

/// Sends and receives messages on the caller's loop.
///
///     sipmsg::Endpoint endpoint(uv_default_loop());
///     endpoint.on_message([](const sipmsg::Message& message, sipmsg::Reply reply) { ... });
///     if (auto error = endpoint.listen_udp("0.0.0.0", 5060)) ...
///
/// Complete programs: examples/020_echo.cpp.
class Endpoint {
 public:
  using RegistrationHandler = RegistrationKeeper::Handler;
  /// The Message is the handler's to copy; the reference is valid during the call.
  using MessageHandler = std::function<void(const Message& message, Reply reply)>;

  /// `loop` must stay until it has run dry after `close`. What keeps the Endpoint from working (no
  /// file descriptor left, mostly) is said by `listen_udp` and `send`.
  explicit Endpoint(uv_loop_t* loop, AgentOptions options = {})
      : core_(std::make_shared<detail::EndpointCore>(loop, std::move(options),
                                                     random_secret().value())) {}
  ~Endpoint() { close(); }
  Endpoint(const Endpoint&) = delete;
  Endpoint& operator=(const Endpoint&) = delete;

  /// Opens a socket at a numeric address; port 0 chooses one. Several may be opened. Error:
  /// `bad_address`, or `network` with what the system said, such as a port that is taken.
  Error listen_udp(std::string_view host, std::uint16_t port) {
    return listen(Transport::udp, host, port);
  }
  Error listen_tcp(std::string_view host, std::uint16_t port) {
    return listen(Transport::tcp, host, port);
  }
  /// What `listen_udp` and `listen_tcp` opened, in that order, with the ports that were chosen.
  const std::vector<Listener>& listeners() const { return core_->transports().listeners(); }

  /// Whom to call for each MESSAGE. Without a handler they are refused with 405.
  void on_message(MessageHandler handler);
  /// Whom to show every message, in or out. It looks on: it must not call this Endpoint from there.
  void on_trace(Transports::TraceHandler handler) {
    core_->transports().on_trace(std::move(handler));
  }

  /// Sends a request. An error now means that nothing was sent and that no callback comes;
  /// otherwise `done` is called exactly once, later: with the final answer, or with `timeout`,
  /// `network` or `closed`. A socket is opened where none is.
  Error send(Outgoing outgoing, SentHandler done) {
    if (const Error error = core_->error()) return error;
    const Error error =
        core_->agent().send(std::move(outgoing), core_->loop().fresh_now_ms(), std::move(done));
    core_->rearm();
    return error;
  }

  /// Has `function()` called on the loop's thread. The one call other threads may make.
  template <class Function>
  Error post(Function function) {
    return core_->loop().post(std::move(function));
  }

  /// Closes all sockets. Sends that wait are told `closed`, from inside this call; so does the
  /// destructor, hence what their callbacks capture must live longer than the Endpoint. Who is
  /// registered says goodbye, see Registration.
  void close() { core_->close(); }

 private:
  friend class Registration;
  Error listen(Transport transport, std::string_view host, std::uint16_t port);

  std::shared_ptr<detail::EndpointCore> core_;
};

/// Keeps an Endpoint registered, and so reachable. Whichever goes first, this or the Endpoint, the
/// registrar is sent word that we are gone. Only `stop` makes sure that he got it: a closed
/// Endpoint can repeat nothing, and meet no challenge. He who got none forgets us in time.
class Registration {
 public:
  /// The handler is told of each change, and of each refresh. See RegistrationStatus.
  Registration(Endpoint& endpoint, RegistrationOptions options,
               Endpoint::RegistrationHandler handler)
      : core_(endpoint.core_),
        keeper_(std::make_shared<RegistrationKeeper>(endpoint.core_->agent(), std::move(options),
                                                     std::move(handler))) {
    if (!endpoint.core_->is_closed()) endpoint.core_->add(keeper_);
  }
  ~Registration() {
    const auto core = core_.lock();
    const bool is_open = core && !core->is_closed();  // or nothing is sent any more, at any time
    if (core) core->remove(*keeper_);
    keeper_->close(is_open ? core->loop().fresh_now_ms() : 0);
    if (is_open) core->rearm();
  }
  Registration(const Registration&) = delete;
  Registration& operator=(const Registration&) = delete;

  /// Registers, and stays registered from then on; begins anew after a refusal. An error now, see
  /// RegistrationKeeper::start, means that nothing is sent and the handler is not called.
  Error start() {
    const auto core = core_.lock();
    if (!core) return ErrorCode::closed;
    if (const Error error = core->error()) return error;
    const Error error = keeper_->start(core->loop().fresh_now_ms());
    core->rearm();
    return error;
  }
  /// Unregisters; `done` is called exactly once: later, at most 5 s, or from inside the end of this
  /// or of the Endpoint where that comes first. Where the Endpoint is closed already, or never
  /// worked, from inside this call.
  void stop(std::function<void()> done) {
    const auto core = core_.lock();
    if (!core || core->error()) {
      if (done) done();
      return;
    }
    keeper_->stop(core->loop().fresh_now_ms(), std::move(done));
    core->rearm();
  }
  const RegistrationStatus& status() const { return keeper_->status(); }

 private:
  std::weak_ptr<detail::EndpointCore> core_;
  std::shared_ptr<RegistrationKeeper> keeper_;
};

inline Error Endpoint::listen(Transport transport, std::string_view host, std::uint16_t port) {
  if (const Error error = core_->error()) return error;
  const auto address = listen_address(host, port);
  if (!address) return address.error();
  ListenerOptions options;
  options.transport = transport;
  options.address = *address;
  return core_->transports().listen(options).error();
}

inline void Endpoint::on_message(MessageHandler handler) {
  if (!handler) return core_->agent().on_message(nullptr);
  const std::weak_ptr<detail::EndpointCore> core = core_;
  core_->agent().on_message([core, handler = std::move(handler)](
                                const MessageView& request, const Flow&, ServerTransaction server) {
    handler(Message(request), Reply(core, server));
  });
}

}  // namespace sipmsg

// ========================================== server.hpp ==========================================

// server: a SIP MESSAGE server on a libuv loop: sockets, users, registrar and proxy in one object.
//
// What it does stands in proxy.hpp; here it gets its sockets, its clock, its files and its threads.
// The loop is the caller's, and everything here belongs to its thread. Handlers that may take long
// run in libuv's thread pool, where messages of one sender to one recipient keep their order.
// Anything may be done inside a callback, also closing and destroying the Server.

namespace sipmsg {

/// Why a server could not start: the error, and what it befell, such as "udp 127.0.0.1:5060".
struct [[nodiscard]] StartError {
  Error error;
  std::string what;

  explicit operator bool() const { return static_cast<bool>(error); }
  std::string text() const { return what + ": " + describe(error); }
};

/// Reads DIR/ysipchan.conf and DIR/regfile.conf. Of the two one may be missing. What there is to
/// remark is added to `diagnostics`. Errors: `file` where there is neither, `bad_configuration`
/// where a server could not work with what they say.
inline Error load_directory(const std::string& directory, Settings& settings,
                            Diagnostics& diagnostics) {
  IniOptions options;
  options.run_parameters = {{"configpath", directory}, {"version", SIPMSG_VERSION}};
  options.loaded_modules = {"ysipchan", "regfile"};
  FileSource files;
  Ini ysipchan;
  Ini regfile;
  const auto read = [&](const char* name, Ini& ini, const char* without) {
    const std::string path = directory + "/" + name;
    const Error error = load_ini(files, path, options, ini, diagnostics);
    if (error) {
      diagnostics.push_back({Severity::warning, path, 0, describe(error) + "; " + without});
    }
    return !error;
  };
  const bool has_ysipchan = read("ysipchan.conf", ysipchan, "every key has its default");
  const bool has_regfile = read("regfile.conf", regfile, "there are no users");
  if (!has_ysipchan && !has_regfile) {
    diagnostics.push_back(
        {Severity::error, directory, 0, "neither ysipchan.conf nor regfile.conf can be read here"});
    return ErrorCode::file;
  }
  return load_settings(ysipchan, regfile, options.run_parameters, settings, diagnostics);
}

/// Whether a handler wants to see a message at all. Called on the loop, so it must be quick.
using RouteFilter = std::function<bool(const RouteRequest&)>;

/// Called with what the server's operator should know: one line, without line end.
using LogHandler = std::function<void(Severity severity, std::string_view text)>;

namespace detail {

/// The name this machine gives itself; empty where it has none.
inline std::string host_name() {
  char name[256];
  std::size_t size = sizeof name;
  return uv_os_gethostname(name, &size) == 0 ? std::string(name, size) : std::string();
}

/// The file that bindings outlive the server in. It is written by threads of the pool and, at the
/// end, by the loop's; an older state never replaces a newer one.
class BindingsFile {
 public:
  explicit BindingsFile(std::string path) : path_(std::move(path)) { uv_mutex_init(&mutex_); }
  ~BindingsFile() { uv_mutex_destroy(&mutex_); }
  BindingsFile(const BindingsFile&) = delete;
  BindingsFile& operator=(const BindingsFile&) = delete;

  const std::string& path() const { return path_; }
  Error write(std::uint64_t revision, std::string_view text) {
    uv_mutex_lock(&mutex_);
    Error error;
    if (revision >= written_revision_) {
      error = write_file_atomically(path_, text);
      written_revision_ = revision;
    }
    uv_mutex_unlock(&mutex_);
    return error;
  }

 private:
  const std::string path_;
  uv_mutex_t mutex_;
  std::uint64_t written_revision_ = 0;
};

/// Everything of a Server. Lives until the Server is gone and the last callback has returned.
class ServerCore final : public TransportReceiver,
                         public Alarm,
                         public ServerLog,
                         public std::enable_shared_from_this<ServerCore> {
 public:
  ServerCore(std::unique_ptr<Loop> loop, const Settings& settings, const SipHashKey& secret)
      : Alarm(*loop),
        settings_(std::make_shared<const Settings>(settings)),
        loop_(std::move(loop)),
        transports_(*loop_, *this, transport_options(settings)),
        users_(make_users(settings)),
        registrar_(registrar_options(settings), derive_key(secret, 'b')),
        proxy_(settings, *users_, registrar_, transports_, *this, derive_key(secret, 'p')),
        offload_(*loop_, offload_options(settings)),
        order_key_(derive_key(secret, 'o')) {
    const auto now_s = static_cast<std::int64_t>(unix_time_s());
    proxy_.set_unix_time_at_zero(now_s - static_cast<std::int64_t>(loop_->fresh_now_ms() / 1000));
  }

  StartError start();
  void reload(const Settings& settings);
  HandlerChain::Id add_handler(int priority, RouteHandler handler) {
    return proxy_.handlers().add(priority, std::move(handler));
  }
  HandlerChain::Id add_async_handler(int priority, RouteHandler handler, RouteFilter filter);
  Error resume(RouteKey key, const Verdict& verdict, const RouteChanges& changes) {
    if (closed_) return ErrorCode::gone;
    const Error error = proxy_.resume(key, verdict, loop_->fresh_now_ms(), changes);
    rearm();
    return error;
  }
  Error send(const Outgoing& outgoing, SentHandler done) {
    if (closed_) return ErrorCode::closed;
    const Error error = proxy_.send(outgoing, loop_->fresh_now_ms(), std::move(done));
    rearm();
    return error;
  }
  const UserSettings* find_user(std::string_view name) const { return users_->find(name); }
  void on_log(LogHandler handler) { log_ = std::make_shared<LogHandler>(std::move(handler)); }
  void close();

  Loop& loop() { return *loop_; }
  Transports& transports() { return transports_; }
  Proxy& proxy() { return proxy_; }
  Registrar& registrar() { return registrar_; }
  bool is_closed() const { return closed_; }

  /// Names in a line come from outside: what could end it, or move a terminal's cursor, does not.
  void log(Severity severity, std::string_view text) override {
    const std::shared_ptr<LogHandler> handler = log_;  // it may replace itself
    if (!handler || !*handler) return;
    std::string line(text);
    for (std::size_t i = 0; i < line.size(); ++i) {
      const auto octet = static_cast<unsigned char>(line[i]);
      // U+0080 to U+009F in UTF-8: some terminals obey them as they do ESC and a letter.
      const bool is_c1 = octet >= 0x80 && octet < 0xa0 && i > 0 && line[i - 1] == '\xc2';
      if (is_c1) line[i - 1] = '?';
      if (octet < 0x20 || octet == 0x7f || is_c1) line[i] = '?';
    }
    (*handler)(severity, line);
  }

 private:
  /// How often changed bindings are written to their file, as Yate does.
  static constexpr std::uint64_t save_interval_ms = 30000;

  static TransportOptions transport_options(const Settings& settings);
  static RegistrarOptions registrar_options(const Settings& settings);
  static OffloadOptions offload_options(const Settings& settings) {
    OffloadOptions options;
    options.max_jobs = settings.message.max_pending + std::size_t{1};  // one writes the bindings
    return options;
  }
  static ListenerOptions listener_options(const ListenerSettings& listener,
                                          const SocketAddress& address);
  static std::unique_ptr<UserDirectory> make_users(const Settings& settings);

  void on_message(const MessageView& message, Error error, const Flow& flow) override {
    const auto self = shared_from_this();
    proxy_.receive(message, error, flow, loop_->now_ms());
    rearm();
  }
  void on_connection_closed(std::uint32_t socket, Error error) override {
    const auto self = shared_from_this();
    proxy_.connection_closed(socket, error, loop_->now_ms());
    rearm();
  }
  void on_batch_end() override { proxy_.idle(); }
  /// Phones are reached over the connection they registered on, and some send nothing between two
  /// REGISTERs an hour apart.
  bool keeps_idle_connection(std::uint32_t socket) override {
    return registrar_.has_connection(socket, loop_->now_ms());
  }
  void on_alarm(std::uint64_t now_ms) override {
    const auto self = shared_from_this();
    proxy_.advance(now_ms);
    save_if_due(now_ms);
    rearm();
  }
  void rearm() {
    if (closed_) return;
    const std::uint64_t deadline_ms = std::min(proxy_.next_deadline(), save_deadline_ms());
    if (deadline_ms != UINT64_MAX) arm(deadline_ms);
  }

  Verdict run_in_pool(const std::shared_ptr<RouteHandler>& handler, const RouteRequest& request);
  static Verdict run_guarded(const RouteHandler& handler, const RouteRequest& request);
  StartError listen(const ListenerSettings& listener);
  OwnDomains own_domains() const;
  void load_bindings();
  std::uint64_t save_deadline_ms() const;
  void save_if_due(std::uint64_t now_ms);
  void report_save(Error error);
  std::string bindings_text() { return registrar_.save(loop_->now_ms(), unix_time_s()); }

  std::shared_ptr<const Settings> settings_;  ///< never null
  std::shared_ptr<LogHandler> log_;
  std::unique_ptr<Loop> loop_;
  Transports transports_;
  std::unique_ptr<UserDirectory> users_;
  Registrar registrar_;
  Proxy proxy_;
  Offload offload_;
  SipHashKey order_key_;                         ///< for the keys that keep messages in order
  std::shared_ptr<BindingsFile> bindings_file_;  ///< null where none is set
  std::uint64_t saved_revision_ = 0;
  std::uint64_t last_save_ms_ = 0;
  bool is_saving_ = false;
  bool closed_ = false;
};

inline TransportOptions ServerCore::transport_options(const Settings& settings) {
  TransportOptions options;
  options.tcp.keepalive_ms = settings.transport.tcp_keepalive_s * 1000;
  options.tcp.max_queued = settings.transport.tcp_write_limit_octets;
  options.tcp.max_connections = settings.transport.max_connections;
  options.tcp.max_connections_per_address = settings.transport.max_connections_per_address;
  options.open_udp_on_demand = false;
  return options;
}

inline RegistrarOptions ServerCore::registrar_options(const Settings& settings) {
  RegistrarOptions options;
  options.expires_min_s = settings.registrar.expires_min_s;
  options.expires_default_s = settings.registrar.expires_default_s;
  options.expires_max_s = settings.registrar.expires_max_s;
  options.max_bindings = settings.registrar.max_bindings;
  options.max_bindings_per_user = settings.registrar.max_bindings_per_user;
  options.nat = settings.registrar.nat;
  return options;
}

inline std::unique_ptr<UserDirectory> ServerCore::make_users(const Settings& settings) {
  auto users = std::make_unique<UserDirectory>(random_secret().value());
  for (const UserSettings& user : settings.users) users->add(user);
  return users;
}

inline ListenerOptions ServerCore::listener_options(const ListenerSettings& listener,
                                                    const SocketAddress& address) {
  ListenerOptions options;
  options.name = listener.name;
  options.transport = listener.type;
  options.address = address;
  options.max_message = listener.type == Transport::udp ? listener.max_datagram_octets
                                                        : listener.max_stream_message_octets;
  options.receive_buffer = listener.receive_buffer_octets;
  options.backlog = static_cast<int>(listener.backlog);
  options.idle_timeout_ms = listener.tcp_idle_s * 1000;
  options.ipv6_only = true;  // 0.0.0.0 and :: may be two listeners on one port
  return options;
}

inline StartError ServerCore::listen(const ListenerSettings& listener) {
  const std::string what = std::string(transport_parameter(listener.type)) + " " +
                           listener.address + " port " + std::to_string(listener.port);
  const auto address = listen_address(listener.address, listener.port);
  if (!address) return {address.error(), what};
  const auto bound = transports_.listen(listener_options(listener, *address));
  if (!bound) {
    return {bound.error(),
            std::string(transport_parameter(listener.type)) + " " + to_text(*address)};
  }
  return {};
}

inline StartError ServerCore::start() {
  if (loop_->error()) return {loop_->error(), "the loop"};
  for (const ListenerSettings& listener : settings_->listeners) {
    if (!listener.enable) continue;
    if (StartError error = listen(listener)) return error;
  }
  if (transports_.listeners().empty()) {
    return {ErrorCode::bad_configuration, "no listener is enabled"};
  }
  proxy_.set_domains(own_domains());
  load_bindings();
  rearm();
  return {};
}

/// What [general] domains lists; by default whatever somebody may rightly call this server.
inline OwnDomains ServerCore::own_domains() const {
  OwnDomains domains;
  for (const std::string& domain : settings_->domains) domains.add(domain);
  if (!settings_->domains.empty()) return domains;
  domains.add("localhost");
  domains.add(settings_->digest.realm);
  domains.add(host_name());
  for (const Listener& listener : transports_.listeners()) domains.add(listener.address.ip);
  for (const InterfaceAddress& interface : interface_addresses()) domains.add(interface.ip);
  return domains;
}

inline void ServerCore::reload(const Settings& settings) {
  auto users = make_users(settings);
  proxy_.reload(settings, *users);
  users_ = std::move(users);
  registrar_.set_options(registrar_options(settings));
  settings_ = std::make_shared<const Settings>(settings);
  proxy_.set_domains(own_domains());
  rearm();
}

inline HandlerChain::Id ServerCore::add_async_handler(int priority, RouteHandler handler,
                                                      RouteFilter filter) {
  const auto shared = std::make_shared<RouteHandler>(std::move(handler));
  return proxy_.handlers().add(
      priority, [this, shared, filter = std::move(filter)](const RouteRequest& request) {
        if (filter && !filter(request)) return Verdict::next();
        if (!settings_->message.async_process) return run_guarded(*shared, request);
        return run_in_pool(shared, request);
      });
}

/// What a handler throws costs its own message a 500 and nothing else.
inline Verdict ServerCore::run_guarded(const RouteHandler& handler, const RouteRequest& request) {
#if defined(__cpp_exceptions)
  try {
    return handler(request);
  } catch (...) {
    return Verdict::reject(500);
  }
#else
  return handler(request);
#endif
}

/// The handler answers from a thread of the pool; the order of one sender's messages to one
/// recipient is that of their jobs. A job whose turn comes when its sender has been answered 504 is
/// not the handler's any more: what it did with it could not be told to anybody.
inline Verdict ServerCore::run_in_pool(const std::shared_ptr<RouteHandler>& handler,
                                       const RouteRequest& request) {
  SipHash hash(order_key_);
  hash.update(request.caller);
  hash.update(std::string_view("\0", 1));
  hash.update(request.called);
  const auto kept = std::make_shared<KeptRouteRequest>(request);
  const std::uint64_t expires_at_ms =
      loop_->now_ms() + std::uint64_t{1000} * settings_->message.handler_deadline_s;
  const auto work = [handler, kept, expires_at_ms] {
    const bool is_late = uv_hrtime() / 1000000 >= expires_at_ms;  // the loop's clock, as it is now
    return is_late ? Verdict::reject(504) : run_guarded(*handler, kept->view());
  };
  const auto done = [this, kept](Error error, const Verdict& verdict) {
    if (!error) static_cast<void>(resume(kept->key(), verdict, kept->changes()));
  };
  if (offload_.run(hash.finish(), work, done)) return Verdict::reject(503);
  return Verdict::later();
}

inline void ServerCore::load_bindings() {
  last_save_ms_ = loop_->now_ms();
  if (settings_->registrar.file.empty()) return;
  bindings_file_ = std::make_shared<BindingsFile>(settings_->registrar.file);
  FileSource source;
  Ini file;
  Diagnostics diagnostics;
  if (load_ini(source, bindings_file_->path(), {}, file, diagnostics)) return;  // the first start
  const auto keep = [this](std::string_view user, Flow& flow) {
    flow.socket = 0;
    return settings_->registrar.autocreate || users_->find(user) != nullptr;
  };
  const auto result = registrar_.load(file, loop_->now_ms(), unix_time_s(), keep);
  saved_revision_ = registrar_.revision();
  log(Severity::info, bindings_file_->path() + ": " + std::to_string(result.loaded) +
                          " bindings read, " + std::to_string(result.dropped) + " dropped");
}

inline std::uint64_t ServerCore::save_deadline_ms() const {
  const bool due = bindings_file_ && !is_saving_ && registrar_.revision() != saved_revision_;
  return due ? last_save_ms_ + save_interval_ms : UINT64_MAX;
}

inline void ServerCore::save_if_due(std::uint64_t now_ms) {
  if (now_ms < save_deadline_ms()) return;
  last_save_ms_ = now_ms;
  const std::uint64_t revision = registrar_.revision();
  const auto work = [file = bindings_file_, text = bindings_text(), revision] {
    return file->write(revision, text);
  };
  const auto done = [this, revision](Error error, Error written) {
    is_saving_ = false;
    if (!error && written) report_save(written);
    if (!error && !written) saved_revision_ = revision;
    rearm();
  };
  is_saving_ = !offload_.run(work, done);
}

inline void ServerCore::report_save(Error error) {
  log(Severity::warning,
      bindings_file_->path() + ": " + describe(error) + ": the bindings are not saved");
}

inline void ServerCore::close() {
  if (closed_) return;
  closed_ = true;
  if (bindings_file_ && registrar_.revision() != saved_revision_) {
    const Error error = bindings_file_->write(registrar_.revision(), bindings_text());
    if (error) report_save(error);
  }
  proxy_.close();
  offload_.close();
  transports_.close();
  loop_->close();
}

}  // namespace detail

/// A server for SIP messages on the caller's loop.
///
///     sipmsg::Server server(uv_default_loop());  // open, on the loopback; or with Settings
///     if (auto error = server.start()) ... error.text() ...
///
class Server {
 public:
  /// `settings` as load_directory or open_settings give them. `loop` must stay until it has run
  /// dry after `close`.
  explicit Server(uv_loop_t* loop, const Settings& settings = open_settings())
      : core_(std::make_shared<detail::ServerCore>(std::make_unique<Loop>(loop), settings,
                                                   random_secret().value())) {}
  ~Server() { close(); }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  /// Opens every listener. After an error the Server is to be closed.
  StartError start() { return core_->start(); }
  /// The sockets that listen, with the ports they got.
  const std::vector<Listener>& listeners() const { return core_->transports().listeners(); }
  /// Other settings from now on. Listeners, timers and table sizes stay as they were at the start,
  /// and so do bindings and messages on their way.
  void reload(const Settings& settings) { core_->reload(settings); }

  /// Installs a handler that every MESSAGE is offered to, in ascending priority; the users' own
  /// bindings are looked up at 100. It runs on the loop and must not wait for anything: it may
  /// answer Verdict::later() and call `resume` when it knows.
  HandlerChain::Id add_handler(int priority, RouteHandler handler) {
    return core_->add_handler(priority, std::move(handler));
  }
  /// The same for a handler that may take long: it runs in libuv's thread pool where [message]
  /// async_process is on, one message at a time for each pair of sender and recipient.
  /// The handler must be good for several threads at once; what it throws is a 500. What does not
  /// pass `filter` it is not asked about, and goes on without waiting for a thread. One that does
  /// not return keeps its thread for good, of four, which names and files are looked up with, too;
  /// about messages that were answered 504 meanwhile it is not asked.
  HandlerChain::Id add_async_handler(int priority, RouteHandler handler,
                                     RouteFilter filter = nullptr) {
    return core_->add_async_handler(priority, std::move(handler), std::move(filter));
  }
  /// False where it was removed already.
  bool remove_handler(HandlerChain::Id id) { return core_->proxy().handlers().remove(id); }
  /// The verdict promised under that key, with the changes of KeptRouteRequest where there are any.
  /// `gone` where its deadline is over.
  Error resume(RouteKey key, const Verdict& verdict, const RouteChanges& changes = {}) {
    return core_->resume(key, verdict, changes);
  }

  /// Sends a message to the bindings of the user that `outgoing.to` names, or to the one binding
  /// whose contact `outgoing.request_uri` is, as any other message is relayed; handlers are not
  /// asked. See Proxy::send. `done` is called exactly once, from inside `close` at the latest.
  Error send(const Outgoing& outgoing, SentHandler done) {
    return core_->send(outgoing, std::move(done));
  }
  /// The user's section of regfile.conf, or null. Lifetime: until `reload`.
  const UserSettings* find_user(std::string_view name) const { return core_->find_user(name); }
  /// Whether there is such a user, be it under another name.
  bool is_known(std::string_view user) const { return core_->proxy().is_known(user); }
  /// Calls `use(const Binding&)` on every binding of that user, which must not call this Server.
  template <class Use>
  void for_each_binding(std::string_view user, Use use) const {
    core_->proxy().for_each_binding(user, core_->loop().now_ms(), use);
  }
  /// Whom to ask about messages to known users that nobody took: to keep them, or to send them
  /// elsewhere.
  void on_undelivered(UndeliveredHandler handler) {
    core_->proxy().on_undelivered(std::move(handler));
  }
  /// Whom to tell of phones that register and unregister.
  void on_registration(RegistrationHandler handler) {
    core_->proxy().on_registration(std::move(handler));
  }

  void on_log(LogHandler handler) { core_->on_log(std::move(handler)); }
  /// Whom to show every message, in or out. It looks on: it must not call this Server from there.
  void on_trace(Transports::TraceHandler handler) {
    core_->transports().on_trace(std::move(handler));
  }
  const ServerCounters& counters() const { return core_->proxy().counters(); }
  std::size_t bindings() const { return core_->registrar().size(); }

  /// Has `function()` called on the loop's thread. The one call other threads may make.
  template <class Function>
  Error post(Function function) {
    return core_->loop().post(std::move(function));
  }

  /// Saves the bindings where a file is set, closes all sockets; the loop runs dry then.
  void close() { core_->close(); }

 private:
  std::shared_ptr<detail::ServerCore> core_;
};

}  // namespace sipmsg

#endif  // SIPMSG_NO_UV

#endif  // SIPMSG_HPP

// MIT License
//
// Copyright (c) 2026 the sipmsg authors
//
// Permission is hereby granted, free of charge, to any person obtaining a copy
// of this software and associated documentation files (the "Software"), to deal
// in the Software without restriction, including without limitation the rights
// to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
// copies of the Software, and to permit persons to whom the Software is
// furnished to do so, subject to the following conditions:
//
// The above copyright notice and this permission notice shall be included in all
// copies or substantial portions of the Software.
//
// THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
// IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
// FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
// AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
// LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
// OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
// SOFTWARE.
