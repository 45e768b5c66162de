// Reads the input as a datagram and as the beginning of a stream, asks for everything in it,
// answers it, and forwards it where it is valid.
#include "fuzz.hpp"

using namespace sipmsg;
using fuzz::require;
using fuzz::touch;

namespace {

void touch_uri(const UriView& uri) {
  for (std::string_view part :
       {uri.text, uri.scheme_text, uri.user, uri.password, uri.host, uri.parameters, uri.headers}) {
    touch(part);
  }
  for (const Parameter& parameter : Parameters(uri.parameters)) {
    touch(parameter.name);
    touch(parameter.value);
  }
  const std::string canonical = address_of_record(uri);
  touch(canonical);
  require(equivalent(uri, uri), "a URI is equivalent to itself");
  if (uri.scheme == UriScheme::sip || uri.scheme == UriScheme::sips) {
    const std::string escaped = "sip:" + escape_user(unescape(uri.user)) + "@h";
    const auto again = parse_uri(escaped);
    require(uri.user.empty() || (again && unescape(again->user) == unescape(uri.user)),
            "an escaped user reads back");
  }
}

void touch_name_addr(std::string_view text) {
  const auto address = parse_name_addr(text);
  if (!address) {
    const auto place = static_cast<std::size_t>(address.error().place);
    return require(place <= text.size(), "a mistake is within the text");
  }
  touch(unquote(address->display_name));
  touch(address->tag());
  touch_uri(address->uri);
  for (const Parameter& parameter : address->parameters) {
    require(!parameter.name.empty(), "a parameter that was read has a name");
    touch(parameter.name);
    touch(unquote(parameter.value));
  }
}

void touch_via(std::string_view text) {
  const auto via = parse_via(text);
  if (!via) return;
  for (std::string_view part :
       {via->transport, via->host, via->branch, via->received, via->maddr, via->rport}) {
    touch(part);
  }
  require(via->parameters_end <= text.size(), "the parameters end within the text");
  if (const auto ip = parse_ip(via->host)) {
    require(parse_ip(to_text(*ip)) == ip, "an address reads back");
  }
}

void touch_values(const MessageView& message) {
  for (std::size_t i = 0; i < message.header_count(); ++i) {
    const HeaderField field = message.field(i);
    touch(field.name);
    touch(field.value);
    touch(message.field_line(i));
    require(message.header(field.name).has_value(), "a header is found by its name");
    touch_name_addr(field.value);
    touch_via(field.value);
    for (const Parameter& parameter : Parameters(field.value, ',')) touch(parameter.value);
    if (const auto cseq = parse_cseq(field.value)) touch(cseq->method);
    if (const auto media = parse_media_type(field.value)) touch(media->subtype);
    if (const auto date = parse_date(field.value)) touch(format_date(*date));
    static_cast<void>(parse_q(field.value));
    static_cast<void>(MessageView::delta_seconds(field.value));
    if (field.id == HeaderId::other) continue;
    for (std::string_view element : message.values(field.id)) {
      touch(element);
      touch_name_addr(element);
      touch_via(element);
    }
  }
  if (const auto uri = message.request_uri()) touch_uri(*uri);
  static_cast<void>(message.max_forwards());
  static_cast<void>(message.content_length());
  static_cast<void>(message.expires());
}

/// Every line of what we wrote ends in CR LF, and the blank line is the last of the head.
void check_lines(std::string_view text) {
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool crlf = text[i] == '\r' && i + 1 < text.size() && text[i + 1] == '\n';
    require(crlf || (text[i] != '\r' && text[i] != '\n'), "no CR or LF stands alone");
    if (!crlf) continue;
    require(text.substr(i + 2, 2) != "\r\n" || i + 4 == text.size(), "the blank line is the last");
    ++i;
  }
}

void answer(const MessageView& message) {
  static char buffer[3 * max_message_size];
  Output out(buffer, sizeof buffer);
  SocketAddress source;
  source.ip = *parse_ip("2001:db8::1");
  source.port = 5060;
  write_status_line(out, 400, {});
  write_response_head(out, message, "tag", source);
  write_body(out, {}, {});
  require(!out.error(), "every message can be answered");
  check_lines(out.written());
}

void forward(const MessageView& message) {
  Edits edits(message);
  if (message.is_request()) edits.set_request_uri("sip:bob@192.0.2.1");
  edits.insert_first("Via: SIP/2.0/UDP 192.0.2.9;branch=z9hG4bKnew\r\n");
  edits.insert_last("X-Last: 1\r\n");
  if (message.has(HeaderId::route)) edits.remove_first_element(HeaderId::route);
  if (message.has(HeaderId::max_forwards)) {
    edits.replace(message.header(HeaderId::max_forwards), "9");
  }
  edits.set_body("another body", "12");
  require(!edits.error(), "a valid message can be edited");
  const std::string text = edits.slices().to_string();
  require(text.size() == edits.slices().size(), "the slices make up the message");
  if (message.header_count() + 3 > SIPMSG_MAX_HEADERS || text.size() > max_message_size) return;
  MessageView again;
  require(!again.parse(text), "what is forwarded can be parsed");
  require(!validate(again), "what is forwarded is valid");
  require(again.top_via()->branch == "z9hG4bKnew", "our Via is on top");
  require(again.body() == "another body", "the body is the new one");
  require(again.header("X-Last") == "1", "the last header is the new one");
  require(again.call_id() == message.call_id(), "the Call-ID is the old one");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes = fuzz::as_text(data, size);
  for (Framing framing : {Framing::stream, Framing::datagram}) {
    MessageView message;
    const Error error = message.parse(bytes, framing);
    require(error.place >= 0 && static_cast<std::size_t>(error.place) <= size,
            "a mistake is within the message");
    require(message.bytes().size() <= size, "the message is within the bytes");
    touch(message.bytes());
    touch(message.body());
    touch(message.method_text());
    touch(message.request_uri_text());
    touch(message.reason_phrase());
    touch_values(message);
    answer(message);
    const Error invalid = validate(message);
    require(invalid.place >= 0 && static_cast<std::size_t>(invalid.place) <= size,
            "a mistake is within the message");
    const Message copy(message);
    require(copy.bytes() == message.bytes(), "a copy has the same bytes");
    touch(copy.call_id());
    if (!error && !invalid) forward(message);
  }
  return 0;
}
