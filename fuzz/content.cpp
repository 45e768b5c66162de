// Reads the input as a body, its first line being the Content-Type; then writes what it read.
#include "fuzz.hpp"

using namespace sipmsg;
using fuzz::require;
using fuzz::touch;

namespace {

constexpr std::size_t room = 1 << 20;

/// What was made valid UTF-8 stays as it is when that is done again.
void check_text(const std::string& text) {
  std::string again;
  detail::append_valid_utf8(again, text);
  require(again == text, "text is valid UTF-8");
}

void check_within(std::string_view whole, std::string_view part) {
  touch(part);
  if (part.empty()) return;
  require(part.data() >= whole.data() && part.data() + part.size() <= whole.data() + whole.size(),
          "a view points into the body");
}

void check_date(std::string_view text) {
  const auto unix_s = parse_date_time(text);
  if (!unix_s || !detail::is_writable_date(*unix_s)) return;
  require(*parse_date_time(format_date_time(*unix_s)) == *unix_s, "a date reads back");
}

void check_notification_for(const CpimMessage& message) {
  static char buffer[room];
  Output out(buffer, room);
  write_notification_for(out, message, NotificationType::delivery, NotificationStatus::delivered,
                         "reply", 1000);
  if (out.error()) return;
  const auto content = read_content(cpim_media_type, out.written());
  require(content.ok(), "our own notification can be read");
  require(content->kind == ContentKind::notification, "and is one");
  std::string id;
  detail::append_valid_utf8(id, message.message_id);
  require(content->notification.message_id == id, "of that message");
  require(content->cpim->fields.size() == 5, "no header was smuggled in");
  require(content->cpim->to.size() == 1, "and no recipient");
}

void check_cpim(std::string_view body, const CpimMessage& message) {
  for (const CpimField& field : message.fields) {
    touch(field.name_space);
    check_within(body, field.name);
    check_within(body, field.parameters.text());
    for (const Parameter& parameter : field.parameters) check_within(body, parameter.value);
    check_within(body, field.value);
  }
  check_text(message.from.name);
  check_within(body, message.from.uri);
  for (const CpimAddress& address : message.to) {
    check_text(address.name);
    check_within(body, address.uri);
  }
  for (const CpimAddress& address : message.cc) check_within(body, address.uri);
  for (const CpimSubject& subject : message.subjects) {
    check_text(subject.text);
    touch(subject.language);
  }
  for (std::string_view part : {message.date_time, message.message_id, message.original_to,
                                message.content_type, message.transfer_encoding, message.content}) {
    check_within(body, part);
  }
  check_date(message.date_time);
  check_notification_for(message);
}

/// Writes an envelope with foreign texts in it, and reads it again.
void check_written_cpim(std::string_view text) {
  static char buffer[room];
  CpimStart start;
  start.from = "sip:a@b";
  start.to = "sip:c@d";
  start.from_name = text;
  start.subject = text;
  Output out(buffer, room);
  write_cpim(out, start, text);
  if (out.error()) return;
  const auto message = parse_cpim(out.written());
  require(message.ok(), "our own envelope can be read");
  std::string valid;
  detail::append_valid_utf8(valid, text);
  require(message->from.name == valid, "the name comes back");
  require(message->content == text, "the body comes back");
  require(message->fields.size() == (text.empty() ? 3U : 4U), "no header was smuggled in");
}

void check_content(std::string_view type, std::string_view body) {
  const auto content = read_content(type, body);
  if (!content) {
    const bool of_type = content.error().code == ErrorCode::bad_media_type;
    require(static_cast<std::size_t>(content.error().place) <= (of_type ? type : body).size(),
            "a mistake is within the text");
    return;
  }
  check_within(body, content->body);
  check_text(content->text);
  if (content->kind == ContentKind::text) check_written_cpim(content->text);
  if (content->cpim) check_cpim(body, *content->cpim);
  if (content->kind == ContentKind::composing) {
    const Composing& read = content->composing;
    check_text(read.content_type);
    check_date(read.last_active);
    static char buffer[room];
    Output out(buffer, room);
    write_composing(out, read.is_active, read.refresh_s, read.content_type);
    require(!out.error(), "what was read can be written");
    const auto again = parse_composing(out.written());
    if (out.size() > detail::XmlReader::max_size) return;
    require(again.ok() && again->content_type == read.content_type &&
                again->refresh_s == read.refresh_s && again->is_active == read.is_active,
            "and reads back");
  }
  if (content->kind == ContentKind::notification) {
    Notification read = content->notification;
    check_text(read.message_id);
    if (read.date_time.empty()) read.date_time = "x";
    static char buffer[room];
    Output out(buffer, room);
    write_notification(out, read);
    if (out.error() || out.size() > detail::XmlReader::max_size) return;
    const auto again = parse_notification(out.written());
    require(again.ok() && again->message_id == read.message_id && again->type == read.type &&
                again->status == read.status && again->subject == read.subject,
            "a notification reads back");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text = fuzz::as_text(data, size);
  const std::size_t line = text.find('\n');
  const std::string_view type = text.substr(0, line);
  const std::string_view body =
      line == std::string_view::npos ? std::string_view() : text.substr(line + 1);
  check_content(type, body);
  check_content("message/cpim", text);
  check_content("message/imdn+xml", text);
  check_date(text);
  return 0;
}
