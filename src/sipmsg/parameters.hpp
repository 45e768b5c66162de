// parameters: one MESSAGE as handlers see it, and everything they may ask of it by name.
//
// Yate hands its applications a list of named texts: `caller`, `called`, `sip_user-agent`,
// `xsip_body`. Here each is made when it is asked for, from the message itself; a handler that asks
// for nothing costs nothing. What a handler sets lies over that, for the handlers after it and for
// what is sent in the end: another `xsip_body` or `xsip_type` is another body, a `sip_NAME` that
// was set is a header of the message that goes on, an `osip_NAME` one of our answer.
// Left out on purpose: `id`, for there are no calls, and `handlers`, which whoever calls them
// knows.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "content.hpp"
#include "encoding.hpp"
#include "function_ref.hpp"
#include "message.hpp"
#include "pool.hpp"
#include "settings.hpp"
#include "text.hpp"

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
