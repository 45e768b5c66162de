// uri: sip, sips and tel URIs, read as views, compared, and brought to the form that names a user.
//
// RFC 3261 19.1 (sip and sips), RFC 3966 (tel). A URI of another scheme is kept as text: whoever
// must act on it answers 416. Nothing is decoded while reading: an escape is decoded once, by the
// one who uses the value.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>

#include "text.hpp"

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
