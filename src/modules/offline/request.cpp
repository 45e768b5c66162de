// offline/request: see request.hpp.
#include "request.hpp"

#include <algorithm>

namespace modules {

namespace {

using sipmsg::HeaderId;
using sipmsg::MessageView;

/// Headers that go with the body, or that its reader should see. Those of the way it took, and what
/// it had to say to this server, are not kept.
bool is_kept_header(std::string_view name) {
  constexpr std::string_view names[] = {"Content-Encoding", "Content-Disposition",
                                        "Content-Language", "MIME-Version",
                                        "Subject",          "In-Reply-To",
                                        "Reply-To",         "Priority",
                                        "Organization",     "Expires"};
  return std::any_of(std::begin(names), std::end(names), [name](std::string_view kept) {
    return sipmsg::equal_ignoring_case(kept, name);
  });
}

/// A header's value on one line: it may have been folded.
std::string unfolded(std::string_view value) {
  std::string out(value);
  for (char& c : out) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  }
  return out;
}

/// Name and URI of a From or To, without tag.
std::string party_of(const sipmsg::Result<sipmsg::NameAddr>& address) {
  if (!address) return {};
  std::string text = unfolded(address->display_name);
  if (!text.empty()) text.push_back(' ');
  return text.append("<").append(address->uri.text).append(">");
}

std::string identity_of(const sipmsg::RouteRequest& request, std::string_view user) {
  const MessageView& message = request.message;
  const auto from = message.from();
  const auto via = message.top_via();
  sipmsg::Sha256 hash;
  for (std::string_view part :
       {user, request.caller, message.call_id(), message.header(HeaderId::cseq),
        from ? from->tag() : std::string_view(), via ? via->branch : std::string_view(),
        message.body()}) {
    hash.update(std::to_string(part.size()));
    hash.update(":");
    hash.update(part);
  }
  constexpr std::size_t octets = 16;
  std::string hex(octets * 2, '\0');
  sipmsg::write_hex(hash.finish().data(), octets, &hex[0]);
  return hex;
}

std::string sender_of(const sipmsg::RouteRequest& request) {
  if (!request.username.empty()) return std::string(request.username);
  const auto from = request.message.from();
  return from ? sipmsg::address_of_record(from->uri) : std::string();
}

/// The To of a delivery names the user who registered: the message may have called him by another
/// name, or To somebody else.
std::string recipient_of(const KeptMessage& message) {
  const auto to = sipmsg::parse_name_addr(message.to);
  if (to && sipmsg::unescape(to->uri.user) == message.user) return message.to;
  const std::string_view host = to && !to->uri.host.empty() ? to->uri.host : "localhost";
  const bool is_ipv6 = host.find(':') != std::string_view::npos;
  std::string text = "<sip:" + sipmsg::escape(message.user, sipmsg::char_user) + "@";
  return text.append(is_ipv6 ? "[" : "").append(host).append(is_ipv6 ? "]>" : ">");
}

bool is_asked_for(const sipmsg::NotificationRequest& request, Fate fate) {
  switch (fate) {
    case Fate::stored: return request.processing;
    case Fate::delivered: return request.positive_delivery;
    case Fate::expired: break;
  }
  return request.negative_delivery;
}

}  // namespace

bool is_worth_keeping(const sipmsg::RouteRequest& request) {
  const auto content = sipmsg::read_content(request.message);
  // What cannot be read here may be read by whom it is for.
  if (!content) return true;
  return content->kind != sipmsg::ContentKind::composing &&
         content->kind != sipmsg::ContentKind::notification;
}

std::optional<KeptMessage> keep_of(const sipmsg::RouteRequest& request, std::string_view user,
                                   std::int64_t now_s, std::uint32_t longest_s) {
  const MessageView& message = request.message;
  KeptMessage kept;
  kept.user = user;
  kept.sender = sender_of(request);
  kept.identity = identity_of(request, user);
  kept.from = party_of(message.from());
  kept.to = party_of(message.to());
  kept.kept_s = now_s;
  const auto date_s = sipmsg::parse_date(message.header(HeaderId::date));
  const std::int64_t sent_s = date_s && *date_s <= now_s ? *date_s : now_s;
  kept.date = sipmsg::format_date(sent_s);
  kept.expires_s = now_s + longest_s;
  if (const auto expires = message.expires()) {
    kept.expires_s = std::min(kept.expires_s, sent_s + *expires);
  }
  if (kept.expires_s <= now_s) return std::nullopt;
  kept.content_type = unfolded(message.header(HeaderId::content_type));
  for (std::size_t i = 0; i < message.header_count(); ++i) {
    const sipmsg::HeaderField field = message.field(i);
    const std::string_view name =
        field.id == HeaderId::other ? field.name : sipmsg::header_name(field.id);
    if (is_kept_header(name)) kept.headers.emplace_back(name, unfolded(field.value));
  }
  kept.body = message.body();
  return kept;
}

sipmsg::Outgoing delivery_of(const KeptMessage& message, std::string_view contact) {
  sipmsg::Outgoing outgoing;
  outgoing.to = recipient_of(message);
  outgoing.from = message.from;
  outgoing.body = message.body;
  if (!message.content_type.empty()) outgoing.content_type = message.content_type;
  outgoing.request_uri = contact;
  outgoing.call_id = "kept-" + std::to_string(message.id) + "-" + message.identity.substr(0, 16);
  outgoing.headers = message.headers;
  outgoing.headers.emplace_back("Date", message.date);
  return outgoing;
}

std::optional<sipmsg::Outgoing> notice_of(const KeptMessage& message, Fate fate,
                                          std::string_view id, std::int64_t now_s) {
  const auto content = sipmsg::read_content(message.content_type, message.body);
  if (!content || content->kind == sipmsg::ContentKind::notification || !content->cpim ||
      !is_asked_for(content->cpim->request, fate)) {
    return std::nullopt;
  }
  const auto type = fate == Fate::stored ? sipmsg::NotificationType::processing
                                         : sipmsg::NotificationType::delivery;
  const auto status = fate == Fate::stored      ? sipmsg::NotificationStatus::stored
                      : fate == Fate::delivered ? sipmsg::NotificationStatus::delivered
                                                : sipmsg::NotificationStatus::failed;
  std::string body(sipmsg::max_message_size, '\0');
  sipmsg::Output out(&body[0], body.size());
  sipmsg::write_notification_for(out, *content->cpim, type, status, id, now_s);
  if (out.error()) return std::nullopt;
  body.resize(out.size());
  sipmsg::Outgoing outgoing;
  outgoing.to = message.from;
  outgoing.from = recipient_of(message);
  outgoing.body = std::move(body);
  outgoing.content_type = sipmsg::cpim_media_type;
  return outgoing;
}

bool is_refused_for_good(int code) {
  constexpr int codes[] = {400, 405, 406, 413, 414, 415, 416, 420, 421, 488, 493, 501, 505, 513};
  if (code >= 600) return true;
  return std::find(std::begin(codes), std::end(codes), code) != std::end(codes);
}

}  // namespace modules
