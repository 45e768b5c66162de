// output: results on standard output, and what happens when nobody reads them any more.
#pragma once

#include <cstdio>
#include <string>

#include "exit_status.hpp"

namespace program {

/// Writes it out at once. False where standard output is gone, which was said then.
inline bool print_out(const std::string& text) {
  const bool is_written =
      std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
  if (!is_written) complain("standard output: nobody reads it any more");
  return is_written;
}
inline bool print_line_out(std::string line) { return print_out(line.append("\n")); }

}  // namespace program
