// trace: every SIP message as it is on the wire, on standard error, for --trace.
#pragma once

#include <unistd.h>

#include <cstdio>
#include <string>
#include <string_view>

#include "screen_text.hpp"
#include "sipmsg.hpp"

namespace program {

inline void print_trace(bool is_incoming, const sipmsg::Flow& flow, std::string_view octets) {
  std::fprintf(stderr, "%s %s %s, %zu octets\n", is_incoming ? "received from" : "sent to",
               std::string(transport_parameter(flow.transport)).c_str(),
               to_text(flow.remote).c_str(), octets.size());
  // What is kept, or read by a program, stays as it was; a terminal would obey it.
  const std::string shown =
      isatty(STDERR_FILENO) != 0 ? printable(octets, LineEnds::kept) : std::string(octets);
  std::fwrite(shown.data(), 1, shown.size(), stderr);
  std::fputs("\n", stderr);
}

}  // namespace program
