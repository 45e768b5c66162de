// error: the one list of what can go wrong, and the type that carries either a value or an error.
//
// sipmsg throws nothing. What can fail returns an Error, or a Result with a value in it, and both
// are [[nodiscard]]. An Error is two small numbers: a code from the list below and a place, which
// is a byte offset into the text that was read, or libuv's status for the codes of the network.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "config.hpp"

// clang-format off
#define SIPMSG_ERROR_LIST(X)                                                                      \
  X(none,                     "no error")                                                         \
  /* the frame of a message */                                                                    \
  X(incomplete,               "the message is not complete yet")                                  \
  X(empty,                    "there is nothing to read")                                         \
  X(too_large,                "the message is larger than the limit")                             \
  X(too_many_headers,         "the message has more header fields than the limit")                \
  X(bad_line_end,             "a line does not end in CR LF")                                     \
  X(missing_blank_line,       "the blank line after the headers is missing")                      \
  X(content_length_beyond,    "Content-Length is larger than the body that came")                 \
  X(bad_content_length,       "Content-Length is not a number")                                   \
  X(conflicting_content_length, "several Content-Length headers disagree")                        \
  X(missing_content_length,   "Content-Length is required on a stream")                           \
  /* the start line */                                                                            \
  X(bad_start_line,           "the first line is neither a request line nor a status line")       \
  X(bad_method,               "the method is not a token")                                        \
  X(bad_version,              "the SIP version is not 2.0")                                       \
  X(bad_status_code,          "the status code is not a number from 100 to 699")                  \
  /* headers */                                                                                   \
  X(bad_header_line,          "a header line has no name or no colon")                            \
  X(missing_via,              "Via is missing")                                                   \
  X(missing_from,             "From is missing")                                                  \
  X(missing_to,               "To is missing")                                                    \
  X(missing_call_id,          "Call-ID is missing")                                               \
  X(missing_cseq,             "CSeq is missing")                                                  \
  X(duplicate_header,         "a header that may appear once appears twice")                      \
  X(cseq_method_mismatch,     "the method in CSeq differs from the request's")                    \
  X(bad_via,                  "a Via header is malformed")                                        \
  X(bad_name_addr,            "a From, To, Contact or Route value is malformed")                  \
  X(bad_cseq,                 "CSeq is malformed")                                                \
  X(bad_call_id,              "Call-ID is malformed")                                             \
  X(bad_number,               "a number is malformed or out of range")                            \
  X(bad_quoted_string,        "a quoted string is not closed")                                    \
  X(bad_parameter,            "a parameter is malformed")                                         \
  X(bad_token,                "a token holds a character that is not allowed")                    \
  X(bad_date,                 "a date is malformed")                                              \
  X(bad_credentials,          "an authentication header is malformed")                            \
  X(bad_media_type,           "Content-Type is malformed")                                        \
  X(bad_contact_star,         "Contact: * stands with other contacts or with Expires above 0")    \
  /* URIs */                                                                                      \
  X(bad_uri,                  "the URI is malformed")                                             \
  X(bad_host,                 "the host is malformed")                                            \
  X(bad_port,                 "the port is not a number from 1 to 65535")                         \
  X(bad_escape,               "a % is not followed by two hexadecimal digits")                    \
  X(unsupported_scheme,       "the URI scheme is not served")                                     \
  X(unsupported_transport,    "the transport is not served")                                      \
  /* writing */                                                                                   \
  X(forbidden_octet,          "CR, LF, NUL or a misplaced blank cannot be written")               \
  X(no_room,                  "the output does not fit in the buffer")                            \
  /* content */                                                                                   \
  X(bad_cpim,                 "a message/cpim body is malformed")                                 \
  X(bad_multipart,            "a multipart body is malformed")                                    \
  X(bad_xml,                  "an XML document is malformed, or larger than the limit")           \
  /* running */                                                                                   \
  X(bad_argument,             "an argument is out of its range")                                  \
  X(bad_address,              "the address is not a numeric IP address with port")                \
  X(bad_configuration,        "the configuration has errors")                                     \
  X(limit_reached,            "a limit was reached")                                              \
  X(unknown_host,             "no address was found for the host")                                \
  X(bad_dns_answer,           "the answer of the DNS is malformed")                               \
  X(gone,                     "the transaction or connection is gone")                            \
  X(timeout,                  "no answer came in time")                                           \
  X(closed,                   "closed while waiting")                                             \
  X(cancelled,                "cancelled while waiting")                                          \
  X(file,                     "the file cannot be read or written")                               \
  X(network,                  "the network refused")
// clang-format on

namespace sipmsg {

/// What went wrong. One list for the whole header; `error_name` and `error_text` come from it too.
enum class ErrorCode : std::uint8_t {
#define SIPMSG_ERROR_ENUMERATOR(name, text) name,
  SIPMSG_ERROR_LIST(SIPMSG_ERROR_ENUMERATOR)
#undef SIPMSG_ERROR_ENUMERATOR
};

/// The enumerator's own name, for logs and tests. Never null.
inline const char* error_name(ErrorCode code) {
  static constexpr const char* names[] = {
#define SIPMSG_ERROR_NAME(name, text) #name,
      SIPMSG_ERROR_LIST(SIPMSG_ERROR_NAME)
#undef SIPMSG_ERROR_NAME
  };
  return names[static_cast<std::uint8_t>(code)];
}

/// One sentence without a full stop, fit for a reason phrase. Never null.
inline const char* error_text(ErrorCode code) {
  static constexpr const char* texts[] = {
#define SIPMSG_ERROR_TEXT(name, text) text,
      SIPMSG_ERROR_LIST(SIPMSG_ERROR_TEXT)
#undef SIPMSG_ERROR_TEXT
  };
  return texts[static_cast<std::uint8_t>(code)];
}
#undef SIPMSG_ERROR_LIST

/// An error, or the absence of one: false when all is well.
///
/// `place` is the byte offset into the text that was read, for the codes of parsers; libuv's
/// negative status for `network` and `file`; 0 otherwise.
struct [[nodiscard]] Error {
  ErrorCode code = ErrorCode::none;
  std::int32_t place = 0;

  constexpr Error() = default;
  constexpr Error(ErrorCode error_code, std::int32_t where = 0) : code(error_code), place(where) {}

  constexpr explicit operator bool() const { return code != ErrorCode::none; }
  const char* name() const { return error_name(code); }
  const char* text() const { return error_text(code); }

  /// The same error, seen from a text in which the one that was read begins at `offset`.
  constexpr Error at(std::size_t offset) const {
    return {code, place + static_cast<std::int32_t>(offset)};
  }
};

/// A value, or the error that kept it from being made. The value exists always (default
/// constructed on error), so that reading it by mistake is harmless; ask `ok()` first.
template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}
  Result(Error error) : error_(error) {}
  Result(ErrorCode code, std::int32_t place = 0) : error_(code, place) {}

  bool ok() const { return !error_; }
  explicit operator bool() const { return ok(); }
  Error error() const { return error_; }

  const T& value() const& { return value_; }
  T& value() & { return value_; }
  T&& value() && { return std::move(value_); }
  const T& operator*() const& { return value_; }
  T& operator*() & { return value_; }
  const T* operator->() const { return &value_; }
  T* operator->() { return &value_; }

 private:
  T value_{};
  Error error_{};
};

}  // namespace sipmsg
