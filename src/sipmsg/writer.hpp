// writer: new requests, answers to requests, and received messages sent on with a few edits.
//
// Everything is written into a buffer the caller gives, so that writing allocates nothing. A
// message that is forwarded is not built again: the edits say what to cut out and what to put in,
// and the result is a list of slices, most of them of the received bytes, that goes out as one
// datagram. CR, LF and NUL cannot get into a header: whatever comes from a caller goes through
// `Output::value` and its stricter kin, which refuse them, and Edits look at the lines they are
// given.
#pragma once

#include <array>
#include <cstring>
#include <string>
#include <string_view>

#include "message.hpp"

namespace sipmsg {

/// Writes into a buffer of the caller's. The first thing that goes wrong stays in `error()`, and
/// nothing is written after it, so that a whole message can be written before asking once.
/// Lifetime: the buffer must outlive this and every view of `written()`.
class Output {
 public:
  Output(char* buffer, std::size_t room) : buffer_(buffer), room_(room) {}

  /// Octets as they are: literals, and what was checked before.
  Output& raw(std::string_view text) {
    if (error_) return *this;
    if (text.size() > room_ - size_) {
      error_ = {ErrorCode::no_room, static_cast<std::int32_t>(size_)};
      return *this;
    }
    if (!text.empty()) std::memcpy(buffer_ + size_, text.data(), text.size());
    size_ += text.size();
    return *this;
  }
  /// Octets from a caller, which must not end the line: error `forbidden_octet` for CR, LF and NUL.
  Output& value(std::string_view text) {
    for (std::size_t i = find_control(text); i < text.size(); i = find_control(text, i + 1)) {
      if (text[i] != '\t') return fail(ErrorCode::forbidden_octet, i);
    }
    return raw(text);
  }
  /// Octets from a caller, one or more, none of them a blank or a control character: a URI, a
  /// Call-ID, a host. Error: `forbidden_octet`.
  Output& word(std::string_view text) {
    for (std::size_t i = 0; i < text.size(); ++i) {
      const auto octet = static_cast<unsigned char>(text[i]);
      if (octet <= 0x20 || octet == 0x7f) return fail(ErrorCode::forbidden_octet, i);
    }
    if (text.empty()) return fail(ErrorCode::forbidden_octet, 0);
    return raw(text);
  }
  /// A token from a caller (RFC 3261 25.1). Error: `bad_token`.
  Output& token(std::string_view text) {
    if (!is_token(text)) return fail(ErrorCode::bad_token, skip_class(text, char_token));
    return raw(text);
  }
  /// A header value that was received, perhaps in a message with mistakes: each line break in it,
  /// proper folding or not, becomes a blank.
  Output& received(std::string_view text) {
    std::size_t begin = 0;
    for (std::size_t i = find_control(text); i < text.size(); i = find_control(text, i)) {
      if (text[i] != '\r' && text[i] != '\n') {
        ++i;
        continue;
      }
      raw(text.substr(begin, i - begin)).raw(" ");
      while (i < text.size() && (text[i] == '\r' || text[i] == '\n')) ++i;
      begin = i;
    }
    return raw(text.substr(begin));
  }
  Output& number(std::uint64_t value) {
    char digits[20];
    std::size_t begin = sizeof digits;
    do {
      digits[--begin] = static_cast<char>('0' + value % 10);
      value /= 10;
    } while (value != 0);
    return raw({digits + begin, sizeof digits - begin});
  }
  /// A host as it stands in a URI or a Via: an IPv6 address gets its brackets.
  Output& host(std::string_view text) {
    if (text.find(':') == std::string_view::npos) return word(text);
    return raw("[").word(text).raw("]");
  }
  Output& ip(const IpAddress& address) {
    char text[max_ip_text];
    return raw({text, write_ip(address, text)});
  }

  /// Writes a caller's octets and returns the copy: for edits whose text must outlive its source.
  std::string_view copied(std::string_view text) {
    const std::size_t begin = size_;
    value(text);
    return since(begin);
  }
  /// 16 lower-case hexadecimal digits.
  Output& hex(std::uint64_t value) {
    std::array<char, 16> digits;
    for (std::size_t i = 16; i-- > 0; value >>= 4) digits[i] = "0123456789abcdef"[value & 15];
    return raw({digits.data(), digits.size()});
  }

  std::string_view written() const { return {buffer_, size_}; }
  /// What was written since `written().size()` was `begin`.
  std::string_view since(std::size_t begin) const { return {buffer_ + begin, size_ - begin}; }
  std::size_t size() const { return size_; }
  std::size_t room() const { return room_ - size_; }
  Error error() const { return error_; }
  /// Notes what a writer finds wrong with its arguments.
  Output& fail(ErrorCode code, std::size_t place = 0) {
    if (!error_) error_ = {code, static_cast<std::int32_t>(place)};
    return *this;
  }

 private:
  char* buffer_;
  std::size_t room_;
  std::size_t size_ = 0;
  Error error_;
};

/// The phrase that RFC 3261 21 gives a status code; that of its class for a code it does not know.
inline std::string_view default_reason_phrase(int code) {
  switch (code) {
    case 100: return "Trying";
    case 200: return "OK";
    case 202: return "Accepted";
    case 300: return "Multiple Choices";
    case 302: return "Moved Temporarily";
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 406: return "Not Acceptable";
    case 407: return "Proxy Authentication Required";
    case 408: return "Request Timeout";
    case 410: return "Gone";
    case 413: return "Request Entity Too Large";
    case 414: return "Request-URI Too Long";
    case 415: return "Unsupported Media Type";
    case 416: return "Unsupported URI Scheme";
    case 420: return "Bad Extension";
    case 423: return "Interval Too Brief";
    case 440: return "Max-Breadth Exceeded";
    case 480: return "Temporarily Unavailable";
    case 481: return "Call/Transaction Does Not Exist";
    case 482: return "Loop Detected";
    case 483: return "Too Many Hops";
    case 484: return "Address Incomplete";
    case 485: return "Ambiguous";
    case 486: return "Busy Here";
    case 487: return "Request Terminated";
    case 488: return "Not Acceptable Here";
    case 491: return "Request Pending";
    case 500: return "Server Internal Error";
    case 501: return "Not Implemented";
    case 502: return "Bad Gateway";
    case 503: return "Service Unavailable";
    case 504: return "Server Time-out";
    case 505: return "Version Not Supported";
    case 513: return "Message Too Large";
    case 600: return "Busy Everywhere";
    case 603: return "Decline";
    case 604: return "Does Not Exist Anywhere";
    case 606: return "Not Acceptable";
    default: break;
  }
  constexpr std::string_view classes[] = {"Trying",      "OK",           "Multiple Choices",
                                          "Bad Request", "Server Error", "Decline"};
  return classes[code >= 100 && code < 700 ? code / 100 - 1 : 4];
}

/// `Name: value`, both the caller's.
inline void write_header(Output& out, std::string_view name, std::string_view value) {
  out.token(name).raw(": ").value(value).raw("\r\n");
}
inline void write_header(Output& out, HeaderId id, std::string_view value) {
  write_header(out, header_name(id), value);
}
inline void write_header(Output& out, HeaderId id, std::uint64_t value) {
  out.token(header_name(id)).raw(": ").number(value).raw("\r\n");
}

/// Ends the headers and adds the body: Content-Type where there is one, Content-Length always
/// (RFC 3261 20.14: mandatory on a stream, harmless in a datagram).
inline void write_body(Output& out, std::string_view content_type, std::string_view body) {
  if (!content_type.empty()) write_header(out, HeaderId::content_type, content_type);
  write_header(out, HeaderId::content_length, body.size());
  out.raw("\r\n").raw(body);
}

/// A Via element as the server that received it must note it: with `received` where the sender's
/// host is not the address it came from or where it asked for rport, and with the value of `rport`
/// (RFC 3261 18.2.1, RFC 3581 4). What the sender itself claimed of either is left out.
inline void write_stamped_via(Output& out, std::string_view element, const Via& via,
                              const SocketAddress& source) {
  const std::size_t parameters = std::min(element.find(';'), element.size());
  out.received(trim(element.substr(0, parameters)));
  if (parameters < element.size()) {
    for (const Parameter& parameter : Parameters(element.substr(parameters + 1))) {
      if (equal_ignoring_case(parameter.name, "received") ||
          equal_ignoring_case(parameter.name, "rport")) {
        continue;
      }
      out.raw(";").received(parameter.name);
      if (parameter.has_value) out.raw("=").received(parameter.value);
    }
  }
  const auto sent_by = parse_ip(via.host);
  if (via.has_rport || !sent_by || *sent_by != source.ip) out.raw(";received=").ip(source.ip);
  if (via.has_rport) out.raw(";rport=").number(source.port);
}

/// The status line of an answer, `code` from 100 to 699. An empty phrase means the usual one.
inline void write_status_line(Output& out, int code, std::string_view phrase) {
  if (code < 100 || code > 699) {
    out.fail(ErrorCode::bad_argument);
    return;
  }
  out.raw("SIP/2.0 ").number(static_cast<std::uint64_t>(code)).raw(" ");
  out.value(phrase.empty() ? default_reason_phrase(code) : phrase).raw("\r\n");
}

/// The headers every answer takes from its request (RFC 3261 8.2.6): all Via, the top one stamped;
/// From, To, Call-ID, CSeq. `to_tag` is added where the request's To has none; a 100 needs none.
/// The request may be one that failed to parse: what it lacks is left out.
inline void write_response_head(Output& out, const MessageView& request, std::string_view to_tag,
                                const SocketAddress& source) {
  bool top = true;
  for (std::string_view element : request.values(HeaderId::via)) {
    const auto via = parse_via(element);
    out.raw("Via: ");
    if (top && via) {
      write_stamped_via(out, element, *via, source);
    } else {
      out.received(element);
    }
    out.raw("\r\n");
    top = false;
  }
  for (HeaderId id : {HeaderId::from, HeaderId::to, HeaderId::call_id, HeaderId::cseq}) {
    if (!request.has(id)) continue;
    out.raw(header_name(id)).raw(": ").received(request.header(id));
    if (id == HeaderId::to && !to_tag.empty()) {
      const auto to = request.to();
      if (to && to->tag().empty()) out.raw(";tag=").token(to_tag);
    }
    out.raw("\r\n");
  }
}

/// What a new request begins with. All texts are the caller's and are checked.
struct RequestStart {
  std::string_view method;
  std::string_view request_uri;
  Transport transport = Transport::udp;
  std::string_view sent_by;  ///< host[:port] of our Via
  std::string_view branch;   ///< with the magic cookie
  std::string_view from;     ///< name-addr or addr-spec, without tag
  std::string_view from_tag;
  std::string_view to;
  std::string_view to_tag;  ///< only within a dialog
  std::string_view call_id;
  std::uint32_t cseq = 1;
  std::uint32_t max_forwards = 70;
};

/// The request line and the headers of RFC 3261 8.1.1. Further headers and `write_body` follow.
inline void begin_request(Output& out, const RequestStart& start) {
  out.token(start.method).raw(" ").word(start.request_uri).raw(" SIP/2.0\r\n");
  out.raw("Via: SIP/2.0/").raw(transport_name(start.transport)).raw(" ").word(start.sent_by);
  out.raw(";branch=").token(start.branch).raw(";rport\r\n");
  write_header(out, HeaderId::max_forwards, start.max_forwards);
  out.raw("From: ").value(start.from).raw(";tag=").token(start.from_tag).raw("\r\n");
  out.raw("To: ").value(start.to);
  if (!start.to_tag.empty()) out.raw(";tag=").token(start.to_tag);
  out.raw("\r\n");
  out.raw("Call-ID: ").word(start.call_id).raw("\r\n");
  out.raw("CSeq: ").number(start.cseq).raw(" ").token(start.method).raw("\r\n");
}

/// A message in pieces, in the order they go out. Lifetime: that of the bytes the pieces point to.
struct Slices {
  static constexpr std::size_t capacity = 48;

  /// A string_view that may be left uninitialised: one message in a thousand has 48 pieces, and
  /// every one would pay for clearing them.
  struct Piece {
    const char* octets;
    std::size_t length;

    operator std::string_view() const { return {octets, length}; }
  };

  std::array<Piece, capacity> pieces;
  std::size_t count = 0;
  bool complete = true;  ///< false once a piece beyond the capacity was left out

  Slices() {}  // NOLINT: leaves `pieces` as they are, also in Slices{}
  explicit Slices(std::string_view whole) { add(whole); }
  void add(std::string_view piece) {
    if (piece.empty()) return;
    complete = count < capacity;
    if (complete) pieces[count++] = {piece.data(), piece.size()};
  }
  const Piece* begin() const { return pieces.data(); }
  const Piece* end() const { return pieces.data() + count; }
  std::size_t size() const {
    std::size_t sum = 0;
    for (std::string_view piece : *this) sum += piece.size();
    return sum;
  }
  /// Copies all pieces to `out`, which has room for `size()` octets.
  void copy_to(char* out) const {
    for (std::string_view piece : *this) {
      std::memcpy(out, piece.data(), piece.size());
      out += piece.size();
    }
  }
  std::string to_string() const {
    std::string whole(size(), '\0');
    copy_to(&whole[0]);
    return whole;
  }
};

namespace detail {

/// Whether a text is header lines and nothing else: each with a name, a colon and its CR LF, none
/// empty, no CR or LF anywhere else but in folding.
inline bool are_header_lines(std::string_view lines) {
  while (!lines.empty()) {
    const std::size_t name = skip_class(lines, char_token);
    if (name == 0 || name == lines.size() || lines[name] != ':') return false;
    std::size_t end = find_control(lines);
    while (end < lines.size() && lines[end] != '\r') {
      if (lines[end] == '\n' || lines[end] == '\0') return false;
      end = find_control(lines, end + 1);
    }
    if (lines.substr(end, 2) != "\r\n") return false;
    lines.remove_prefix(end + 2);
  }
  return true;
}

}  // namespace detail

/// A received message as it is to be sent on: a sorted list of places where something is cut out
/// and something put in. The message must have been parsed without error. The texts put in must
/// stay where they are until the message is sent; write them into an Output of your own.
/// The first thing that goes wrong stays in `error()`; `slices()` is empty from then on.
class Edits {
 public:
  explicit Edits(const MessageView& message) : message_(&message) {}

  /// Puts `text` in place of `length` octets at `offset`; what the text holds is not looked at.
  /// Of several insertions at one offset the first one made comes first, and all of them come
  /// before what replaces the octets there.
  /// Errors: `bad_argument` outside the message and where edits overlap, `no_room` beyond 23 edits.
  void replace(std::size_t offset, std::size_t length, std::string_view text) {
    const std::size_t size = message_->bytes().size();
    if (offset > size || length > size - offset) return fail(ErrorCode::bad_argument);
    if (count_ == capacity) return fail(ErrorCode::no_room);
    std::size_t at = count_;
    while (at > 0 && comes_before(offset, length, edits_[at - 1])) --at;
    const bool overlaps =
        (at > 0 && std::size_t{edits_[at - 1].offset} + edits_[at - 1].length > offset) ||
        (at < count_ && offset + length > edits_[at].offset);
    if (overlaps) return fail(ErrorCode::bad_argument);
    for (std::size_t i = count_++; i > at; --i) edits_[i] = edits_[i - 1];
    edits_[at] = {static_cast<std::uint16_t>(offset), static_cast<std::uint16_t>(length),
                  static_cast<std::uint32_t>(text.size()), text.data()};
  }
  void insert(std::size_t offset, std::string_view text) { replace(offset, 0, text); }
  /// Puts another text in place of a part of the message, such as a header's value. Error:
  /// `forbidden_octet` for CR, LF and NUL in the text.
  void replace(std::string_view part, std::string_view text) {
    for (std::size_t i = find_control(text); i < text.size(); i = find_control(text, i + 1)) {
      if (text[i] != '\t') return fail(ErrorCode::forbidden_octet);
    }
    cut(part, text);
  }

  /// Error: `forbidden_octet` for a URI that is empty or holds a blank or a control character.
  void set_request_uri(std::string_view uri) {
    if (uri.empty()) return fail(ErrorCode::forbidden_octet);
    for (char c : uri) {
      if (static_cast<unsigned char>(c) <= 0x20 || c == 0x7f)
        return fail(ErrorCode::forbidden_octet);
    }
    cut(message_->request_uri_text(), uri);
  }
  void remove_field(std::size_t index) {
    if (index >= message_->header_count()) return fail(ErrorCode::bad_argument);
    cut(message_->field_line(index), {});
  }
  /// Puts whole lines, each with its CR LF, before all headers or behind them. Error:
  /// `forbidden_octet` where the text is anything else than header lines.
  void insert_first(std::string_view lines) {
    const bool none = message_->header_count() == 0;
    insert_lines(none ? end_of_headers() : message_->offset_of(message_->field_line(0)), lines);
  }
  void insert_last(std::string_view lines) { insert_lines(end_of_headers(), lines); }
  /// Takes the first element of a comma separated header away: the whole line where it is alone.
  void remove_first_element(HeaderId id) {
    const std::size_t index = message_->find(id);
    if (index == message_->header_count()) return fail(ErrorCode::bad_argument);
    const std::string_view value = message_->field(index).value;
    const std::size_t end = find_outside_quotes(value, ',');
    if (end == value.size()) {
      remove_field(index);
    } else {
      cut(value.substr(0, end + 1), {});
    }
  }
  /// Puts another body in place, and corrects Content-Length.
  /// `length_text` must hold the decimal digits of the new body's size.
  void set_body(std::string_view body, std::string_view length_text) {
    replace(message_->body_offset(), message_->body().size(), body);
    set_content_length(length_text);
  }
  /// Puts the number into Content-Length, or the header into a message that has none, as a datagram
  /// may. Error: `bad_number` where the text is not one.
  void set_content_length(std::string_view digits) {
    if (!all_of_class(digits, char_digit)) return fail(ErrorCode::bad_number);
    if (message_->has(HeaderId::content_length)) {
      return cut(message_->header(HeaderId::content_length), digits);
    }
    insert(end_of_headers(), "Content-Length: ");
    insert(end_of_headers(), digits);
    insert(end_of_headers(), "\r\n");
  }

  Error error() const { return error_; }

  Slices slices() const {
    Slices result;
    if (error_) return result;
    const std::string_view bytes = message_->bytes();
    std::size_t position = 0;
    for (std::size_t i = 0; i < count_; ++i) {
      const Edit& edit = edits_[i];
      result.add(bytes.substr(position, edit.offset - position));
      result.add({edit.text, edit.text_size});
      position = std::size_t{edit.offset} + edit.length;
    }
    result.add(bytes.substr(position));
    return result;
  }

 private:
  struct Edit {
    std::uint16_t offset;
    std::uint16_t length;
    std::uint32_t text_size;
    const char* text;
  };
  // Each edit makes at most two slices, and one more ends the message.
  static constexpr std::size_t capacity = (Slices::capacity - 1) / 2;

  static bool comes_before(std::size_t offset, std::size_t length, const Edit& other) {
    return offset < other.offset || (offset == other.offset && length == 0 && other.length > 0);
  }
  void fail(ErrorCode code) {
    if (!error_) error_ = code;
  }
  std::size_t end_of_headers() const { return message_->body_offset() - 2; }
  void cut(std::string_view part, std::string_view text) {
    replace(message_->offset_of(part), part.size(), text);
  }
  void insert_lines(std::size_t offset, std::string_view lines) {
    if (!detail::are_header_lines(lines)) return fail(ErrorCode::forbidden_octet);
    insert(offset, lines);
  }

  const MessageView* message_;
  std::array<Edit, capacity> edits_{};
  std::size_t count_ = 0;
  Error error_;
};

}  // namespace sipmsg
