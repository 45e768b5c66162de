// alteration: what becomes of a message, or of its answer, by what handlers have set.
//
// `xsip_body` and `xsip_type` are another body, `sip_NAME` another header of the message that goes
// on, `called` another user in its Request-URI, `osip_NAME` a header of an answer of our own. From,
// To, Call-ID, CSeq and the headers of transport stay as they are, whatever is set: the sender must
// know its answer again (RFC 3261 16.6), and a proxy writes the others itself.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>

#include "access.hpp"
#include "parameters.hpp"
#include "writer.hpp"

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
