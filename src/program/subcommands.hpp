// subcommands: what the program can do. Each takes the whole command line, reads it from the
// argument behind its own name on, and returns the exit status.
#pragma once

namespace program {

int serve(int argc, char** argv);
int check(int argc, char** argv);
int send(int argc, char** argv);
int receive(int argc, char** argv);
int chat(int argc, char** argv);
int explain(int argc, char** argv);

}  // namespace program
