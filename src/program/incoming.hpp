// incoming: a message that came, as the clients show it and hand it on.
#pragma once

#include <string>

#include "json.hpp"
#include "sipmsg.hpp"

namespace program {

struct Incoming {
  std::string from;          ///< a URI
  std::string display_name;  ///< "" where there is none
  std::string to;            ///< a URI
  std::string call_id;
  std::string content_type;  ///< type/subtype, of what is inside where it is enclosed
  std::string date;          ///< RFC 3339, in UTC: what the sender says, or else now
  sipmsg::ContentKind kind = sipmsg::ContentKind::other;
  std::string text;                ///< UTF-8; of the kinds text and html
  std::string body;                ///< the octets
  bool is_composing = false;       ///< of the kind composing: whether the sender is typing
  std::uint32_t refresh_s = 0;     ///< and for how long that holds
  std::string message_id;          ///< of the kind notification: which message it speaks of
  std::string delivery_status;     ///< and what became of it: "delivered"
  bool is_auto_submitted = false;  ///< by a program that says so; nobody waits for an answer

  /// Something to be shown or handled, and not a sign about something else.
  bool is_message() const {
    return kind != sipmsg::ContentKind::composing && kind != sipmsg::ContentKind::notification;
  }
  /// One line without its end: "sip:101@example.org: hello". Printable.
  std::string line() const;
  JsonObject json() const;
};

Incoming read_incoming(const sipmsg::Message& message);

}  // namespace program
