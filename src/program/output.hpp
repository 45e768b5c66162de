// output: results on standard output, and what happens when nobody reads them any more.
#pragma once

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <string>
#include <string_view>

#include "exit_status.hpp"

namespace program {

/// Waits until standard output takes more, for whoever shares it with us may have made it one that
/// does not wait by itself. False where a signal came first.
inline bool wait_for_reader() {
  pollfd output{STDOUT_FILENO, POLLOUT, 0};
  return ::poll(&output, 1, -1) > 0;
}

/// Writes it out at once, and waits for who reads it; a signal that ends the program ends that, too
/// (see Lifetime). False where standard output is gone, which was said then. Past stdio: what could
/// not be written is not to be waited for once more at the exit.
inline bool print_out(std::string_view text) {
  static bool is_gone = false;
  while (!text.empty() && !is_gone) {
    // A pipe takes so much wholly or, when a signal comes, not at all.
    const std::size_t piece = std::min<std::size_t>(text.size(), PIPE_BUF);
    const ssize_t written = ::write(STDOUT_FILENO, text.data(), piece);
    if (written > 0) {
      text.remove_prefix(static_cast<std::size_t>(written));
    } else if (errno != EAGAIN || !wait_for_reader()) {
      is_gone = true;
      complain(errno == EINTR ? "standard output: nobody reads it"
                              : "standard output: nobody reads it any more");
    }
  }
  return !is_gone;
}
inline bool print_line_out(std::string line) { return print_out(line.append("\n")); }

}  // namespace program
