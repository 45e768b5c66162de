// trace: every SIP message as it is on the wire, on standard error, for --trace.
#pragma once

#include <cstdio>
#include <string>
#include <string_view>

#include "sipmsg.hpp"

namespace program {

inline void print_trace(bool is_incoming, const sipmsg::Flow& flow, std::string_view octets) {
  std::fprintf(stderr, "%s %s %s, %zu octets\n", is_incoming ? "received from" : "sent to",
               std::string(transport_parameter(flow.transport)).c_str(),
               to_text(flow.remote).c_str(), octets.size());
  std::fwrite(octets.data(), 1, octets.size(), stderr);
  std::fputs("\n", stderr);
}

}  // namespace program
