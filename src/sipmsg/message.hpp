// message: one SIP message, read in a single pass over the caller's bytes.
//
// `MessageView::parse` reads the start line and makes the index of header fields: where each name
// and value stands, and which header it is. It copies nothing and allocates nothing. Values are
// read by header.hpp when somebody asks for them. A message with a mistake is indexed all the same
// as far as it goes, because its sender is owed a 400 that can only be built from its headers
// (RFC 3261 8.2.6).
//
// MessageView borrows the bytes; Message owns them.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>

#include "header.hpp"

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
