// exit_status: what a caller can tell from how the program ended, and how it complains.
#pragma once

#include <cstdio>
#include <string>

namespace program {

/// Exit statuses of every subcommand. The greater one says more, where there is more than one.
enum Exit : int {
  exit_done = 0,
  exit_refused = 1,  ///< the other side said no
  exit_usage = 2,    ///< the arguments or the configuration cannot be used
  exit_network = 3,  ///< nobody answered, or nothing could be sent
};

/// One line on standard error. Nothing that is secret may be in it.
inline void complain(const std::string& text) {
  std::fprintf(stderr, "sipmsg: %s\n", text.c_str());
}

}  // namespace program
