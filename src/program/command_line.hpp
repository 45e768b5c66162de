// command_line: what every subcommand does first with its arguments.
#pragma once

#include <cstdio>
#include <optional>

#include "exit_status.hpp"
#include "options.hpp"

namespace program {

/// Reads what stands behind the subcommand's name. An exit status where the subcommand is not to
/// go on: the help was asked for and printed, or something is wrong and was said.
inline std::optional<int> read_arguments(const CommandLine& command, int argc, char** argv) {
  const ParsedCommandLine parsed = parse(command, argc, argv, 2);
  if (parsed.wants_help) {
    std::fputs(help(command).c_str(), stdout);
    return exit_done;
  }
  if (parsed.wrong.empty()) return std::nullopt;
  complain(parsed.wrong);
  std::fprintf(stderr, "usage: %s\n", std::string(command.usage).c_str());
  return exit_usage;
}

}  // namespace program
