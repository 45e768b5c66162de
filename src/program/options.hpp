// options: the command line of a subcommand as one table, which both reads it and explains it.
//
// A subcommand describes its options and operands; `parse` fills the variables they point to and
// says what is wrong, with the place in the command line; `help` writes the page for --help from
// the same table, so that neither can lack what the other has. Options may stand before, between
// and behind operands, as "--name value" or "--name=value"; after "--" everything is an operand.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace program {

/// A whole number between two bounds.
struct NumberTarget {
  std::uint32_t* value;
  std::uint32_t lowest;
  std::uint32_t highest;
};

/// A time in seconds, "2.5", kept in milliseconds; from one of them to a day.
struct SecondsTarget {
  std::uint32_t* value_ms;
};

/// One of a few words, with a bar between each two.
struct ChoiceTarget {
  std::string* value;
  std::string_view words;  ///< "udp|tcp"
};

/// A text that nobody may see: it is overwritten in the command line, where `ps` shows it.
struct SecretTarget {
  std::string* value;
  bool* is_given;
};

/// Where a value goes, which also says what it may be. A flag (bool) takes none; of the others only
/// a list may be given twice.
using OptionTarget = std::variant<bool*, std::string*, std::vector<std::string>*, NumberTarget,
                                  SecondsTarget, ChoiceTarget, SecretTarget>;

struct Option {
  std::string_view name;   ///< "--listen" or "-c"
  std::string_view value;  ///< what its value is called in the help; "" for a flag
  std::string_view help;   ///< one or several lines
  OptionTarget target;
};

/// An argument that is no option.
struct Operand {
  std::string_view name;
  std::string* value;
  bool is_required;
  bool* is_given = nullptr;
};

/// An array that lives elsewhere, for at least as long.
template <class T>
class View {
 public:
  View() = default;
  template <std::size_t size>
  View(const T (&array)[size]) : begin_(array), end_(array + size) {}

  const T* begin() const { return begin_; }
  const T* end() const { return end_; }
  std::size_t size() const { return static_cast<std::size_t>(end_ - begin_); }

 private:
  const T* begin_ = nullptr;
  const T* end_ = nullptr;
};

struct CommandLine {
  std::string_view usage;    ///< behind "usage: "
  std::string_view summary;  ///< what it does: a paragraph
  View<Option> options;
  View<Operand> operands = {};
  std::string_view notes = {};  ///< below the options
  View<Option> shared = {};     ///< further options, which several subcommands have
};

struct ParsedCommandLine {
  std::string wrong;        ///< what is wrong and where; empty where nothing is
  bool wants_help = false;  ///< --help or -h was given, and nothing behind it was looked at
};

/// Reads the arguments from `first` on. Secrets are overwritten in `argv`, also where something
/// else is wrong. The variables keep their values where nothing is given for them.
ParsedCommandLine parse(const CommandLine& command, int argc, char** argv, int first);

/// The page for --help, with its line end.
std::string help(const CommandLine& command);

}  // namespace program
