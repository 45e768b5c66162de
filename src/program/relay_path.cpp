// relay_path: the functions of the header that take most of the time of a relayed message, compiled
// for speed.
//
// The rest of the program is compiled for size. The linker takes the first copy it meets of an
// inline function, and this file stands first. What is named here brings along what it calls. The
// list is the top of callgrind's, of a server that relays: reading, hashing and writing. What
// stands further down there is left out for its size: it would save a tenth more and cost 8 kB.
#include "sipmsg.hpp"

namespace {

/// Keeps a copy of the function in this file.
#define PROGRAM_COMPILE(name, function) [[gnu::used]] const auto name = function

namespace text {
PROGRAM_COMPILE(control, &sipmsg::find_control);
PROGRAM_COMPILE(skip_class, &sipmsg::skip_class);
PROGRAM_COMPILE(find_class, &sipmsg::find_class);
PROGRAM_COMPILE(parse_digits, &sipmsg::parse_digits);
PROGRAM_COMPILE(find_outside_quotes, &sipmsg::find_outside_quotes);
PROGRAM_COMPILE(equal, &sipmsg::equal_ignoring_case);
PROGRAM_COMPILE(trim, &sipmsg::trim);
}  // namespace text

namespace reading {
PROGRAM_COMPILE(message, &sipmsg::MessageView::parse);
PROGRAM_COMPILE(uri, &sipmsg::parse_uri);
PROGRAM_COMPILE(host_port, &sipmsg::parse_host_port);
PROGRAM_COMPILE(name_addr, &sipmsg::parse_name_addr);
PROGRAM_COMPILE(via, &sipmsg::parse_via);
PROGRAM_COMPILE(header_id, &sipmsg::header_id);
}  // namespace reading

namespace hashing {
PROGRAM_COMPILE(update, &sipmsg::SipHash::update);
PROGRAM_COMPILE(finish, &sipmsg::SipHash::finish);
}  // namespace hashing

namespace writing {
PROGRAM_COMPILE(raw, &sipmsg::Output::raw);
PROGRAM_COMPILE(copy_to, &sipmsg::Slices::copy_to);
}  // namespace writing

#undef PROGRAM_COMPILE

}  // namespace
