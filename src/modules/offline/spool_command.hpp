// offline/spool_command: `sipmsg spool`: looking after messages that are kept for later.
//
// Works on the files beside a running server, without its lock: reading disturbs nobody, and a
// message that vanishes is passed over there.
#pragma once

namespace modules {

/// The subcommand: `argv` as main has it, with "spool" as argv[1]. Returns the exit status: 0 done,
/// 1 no such message, 2 usage or configuration.
int spool_main(int argc, char** argv);

}  // namespace modules
