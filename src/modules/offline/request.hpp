// offline/request: what is kept of a MESSAGE, what is sent of it later, and what a notice of its
// fate says. Texts only: no store, no server, no clock.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "message.hpp"
#include "sipmsg.hpp"

namespace modules {

/// Whether a message is worth reading later. "Is typing" (RFC 3994) and notices of what became of
/// a message (RFC 5438) are not: they speak of a conversation that is over.
bool is_worth_keeping(const sipmsg::RouteRequest& request);

/// What is kept for that user, without id. Nothing where it has no time left: Expires counts from
/// Date where there is one (RFC 3428 7), and `longest_s` is the most there is.
std::optional<KeptMessage> keep_of(const sipmsg::RouteRequest& request, std::string_view user,
                                   std::int64_t now_s, std::uint32_t longest_s);

/// The message for the phone with that contact. All tries to deliver one message have one Call-ID.
sipmsg::Outgoing delivery_of(const KeptMessage& message, std::string_view contact);

/// What a notice tells a sender.
enum class Fate : std::uint8_t { stored, delivered, expired };

/// The notice for who asked to be told of that fate; `id` is a token that names the notice. Nothing
/// where nobody asked, and for a message that is itself a notice.
std::optional<sipmsg::Outgoing> notice_of(const KeptMessage& message, Fate fate,
                                          std::string_view id, std::int64_t now_s);

/// Whether a final answer of a phone means that it will never take this message.
bool is_refused_for_good(int code);

}  // namespace modules
