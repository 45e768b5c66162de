// javascript/main: the process that a script runs in, started by the server as
// `sipmsg run-script NAME MEMORY-LIMIT` and of no use to anybody else.
#pragma once

namespace modules {

/// What main() does for the hidden subcommand `run-script`. Standard input is the connection to the
/// server; when it ends, so does this. Returns the exit status.
int run_script_main(int argc, char** argv);

}  // namespace modules
