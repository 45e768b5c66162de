// check: reads a configuration as `serve` would and says every mistake; sends nothing.
#include "command_line.hpp"
#include "configuration.hpp"
#include "subcommands.hpp"

namespace program {

int check(int argc, char** argv) {
  std::string directory;
  CommandLine command;
  command.usage = "sipmsg check -c DIR";
  command.summary =
      "Reads DIR/ysipchan.conf, DIR/regfile.conf and the files of the modules, and prints what is\n"
      "wrong or worth knowing, each with file and line. Nothing is sent. Exit status 2 where the "
      "server could not start with "
      "it.";
  const Option options[] = {{"-c", "DIR", "the directory to read", &directory}};
  command.options = options;
  if (const auto status = read_arguments(command, argc, argv)) return *status;
  if (directory.empty()) {
    complain("check needs -c DIR");
    return exit_usage;
  }
  sipmsg::Settings settings;
  modules::Modules extensions;
  sipmsg::Diagnostics diagnostics;
  const bool usable = load_configuration(directory, settings, extensions, diagnostics);
  print(stdout, diagnostics);
  if (usable) std::printf("%s: usable\n", directory.c_str());
  return usable ? exit_done : exit_usage;
}

}  // namespace program
