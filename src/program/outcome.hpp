// outcome: what became of a request, in words and as an exit status.
#pragma once

#include <string>

#include "exit_status.hpp"
#include "sipmsg.hpp"

namespace program {

/// What an answer means for somebody who sends messages, in plain words; "" for 200.
std::string meaning_of(int code);

/// "200 OK", "405 Method Not Allowed: the recipient is offline", or what went wrong without an
/// answer. Printable.
std::string sentence(const sipmsg::Outcome& outcome);
std::string sentence(const sipmsg::Error& error);

/// Whether it was the network that failed, or what was asked for that cannot be.
Exit exit_status_of(const sipmsg::Error& error);
Exit exit_status_of(const sipmsg::Outcome& outcome);

}  // namespace program
