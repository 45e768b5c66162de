// outgoing: what an application gives to be sent, and what it is told became of it.
//
// A request is a struct with defaults; agent and proxy both take it, each with its own way to its
// recipient. What is checked here is that a caller's text cannot become a header or a URI of
// another meaning: line ends and NUL are refused (RFC 3261 7.3.1), and so is what would be left out
// of a URI (19.1.5).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "address.hpp"
#include "header.hpp"
#include "login.hpp"
#include "message.hpp"

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
