// header: the names of header fields, and the typed views of their values.
//
// A name is recognised once, to a HeaderId, in its long or compact form and in any case (RFC 3261
// 7.3.1, 7.3.3). A value is read only when somebody asks, into a struct of views; nothing is
// copied. Folded lines need no unfolding: their line breaks count as blanks.
// Authorization and its kin are read by digest.hpp.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "address.hpp"
#include "uri.hpp"

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
