// terminal: the terminal a person sits at: raw while we edit lines, and as it was whenever we are
// not, however the program ends or is stopped.
#pragma once

#include <cstddef>

namespace program {

/// The size of the terminal at standard output.
struct TerminalSize {
  std::size_t columns = 80;
  std::size_t rows = 24;
};
TerminalSize terminal_size();

/// There can be one. While it is raw every key comes as it is typed, Control-C and Control-Z too,
/// and what is pasted comes marked.
class RawTerminal {
 public:
  RawTerminal() = default;
  ~RawTerminal() { leave(); }
  RawTerminal(const RawTerminal&) = delete;
  RawTerminal& operator=(const RawTerminal&) = delete;

  /// Makes it raw, remembering how it was. False where standard input is none or refuses. From here
  /// on also the end by exit, abort and the signals of faults puts it back.
  bool enter();
  /// As it was before; harmless where it is that already.
  void leave();
};

}  // namespace program
