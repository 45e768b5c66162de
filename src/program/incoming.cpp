#include "incoming.hpp"

#include "screen_text.hpp"

namespace program {

namespace {

const char* kind_name(sipmsg::ContentKind kind) {
  switch (kind) {
    case sipmsg::ContentKind::text: return "text";
    case sipmsg::ContentKind::html: return "html";
    case sipmsg::ContentKind::composing: return "composing";
    case sipmsg::ContentKind::notification: return "notification";
    case sipmsg::ContentKind::other: break;
  }
  return "other";
}

/// What the sender says, where it can be read; the header, or the envelope.
std::string date_of(const sipmsg::Message& message, const sipmsg::Content& content) {
  const auto of_header = sipmsg::parse_date(message.header(sipmsg::HeaderId::date));
  if (of_header) return sipmsg::format_date_time(*of_header);
  if (content.cpim) {
    const auto of_envelope = sipmsg::parse_date_time(content.cpim->date_time);
    if (of_envelope) return sipmsg::format_date_time(*of_envelope);
  }
  return sipmsg::format_date_time(static_cast<std::int64_t>(sipmsg::unix_time_s()));
}

}  // namespace

Incoming read_incoming(const sipmsg::Message& message) {
  Incoming incoming;
  if (const auto& from = message.from()) {
    incoming.from = from->uri.text;
    incoming.display_name = sipmsg::unquote(from->display_name);
  }
  if (const auto& to = message.to()) incoming.to = to->uri.text;
  incoming.call_id = message.call_id();
  const auto submitted = message.header("Auto-Submitted");
  incoming.is_auto_submitted = submitted && !sipmsg::equal_ignoring_case(*submitted, "no");
  const auto content = sipmsg::read_content(message);
  incoming.date = date_of(message, *content);
  if (!content) {  // what cannot be read is handed on as it is
    incoming.content_type = message.header(sipmsg::HeaderId::content_type);
    incoming.body = message.body();
    return incoming;
  }
  incoming.kind = content->kind;
  incoming.content_type = content->media_type;
  incoming.text = content->text;
  incoming.body = content->body;
  incoming.is_composing = content->composing.is_active;
  incoming.refresh_s = content->composing.refresh_s;
  incoming.message_id = content->notification.message_id;
  incoming.delivery_status = notification_status_name(content->notification.status);
  return incoming;
}

std::string Incoming::line() const {
  const std::string said = printable(from) + ": ";
  switch (kind) {
    case sipmsg::ContentKind::text:
    case sipmsg::ContentKind::html: return said + printable(text);
    case sipmsg::ContentKind::composing:
      return said + (is_composing ? "[is typing]" : "[has stopped typing]");
    case sipmsg::ContentKind::notification:
      return said + "[" + printable(delivery_status) + ": message " + printable(message_id) + "]";
    case sipmsg::ContentKind::other: break;
  }
  return said + "[" + printable(content_type) + ", " + std::to_string(body.size()) + " octets]";
}

JsonObject Incoming::json() const {
  JsonObject object;
  object.add("from", from).add("display_name", display_name).add("to", to).add("date", date);
  object.add("call_id", call_id).add("kind", kind_name(kind)).add("content_type", content_type);
  switch (kind) {
    case sipmsg::ContentKind::text:
    case sipmsg::ContentKind::html: object.add("text", text); break;
    case sipmsg::ContentKind::composing: object.add("is_composing", is_composing); break;
    case sipmsg::ContentKind::notification:
      object.add("message_id", message_id).add("delivery_status", delivery_status);
      break;
    case sipmsg::ContentKind::other: object.add("body_base64", base64(body)); break;
  }
  return object;
}

}  // namespace program
