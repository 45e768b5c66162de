// extmodule/codec: the lines that an external program and the engine exchange.
//
// One line is one command: fields between colons, in which control characters, colons and percent
// signs are escaped, so that any text but one with a NUL fits into a field. Here lines are cut out
// of a stream, what a program says is taken apart, and what the engine says is put together. What
// the commands do is the session's business.
// The grammar is that of Yate's external modules (docs/modules/extmodule.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "../engine.hpp"

namespace modules::extmodule {

// ---- fields ----

/// Octets below 32 and `:` become `%` and the octet plus 64, `%` becomes `%%`.
std::string escape(std::string_view text);
/// The same for the name of a parameter, in which `=` is escaped, too.
std::string escape_name(std::string_view text);

/// Nothing where a `%` stands before an octet it cannot stand before (`%@`, a NUL, is among them),
/// and where a control character was not escaped.
std::optional<std::string> unescape(std::string_view text);
/// The same for the name of a parameter, in which `%}` is `=`.
std::optional<std::string> unescape_name(std::string_view text);

// ---- what a program says ----

/// `name=value` sets a parameter, `name` alone (no value) removes it.
struct Change {
  std::string name;
  std::optional<std::string> value;
};
using Changes = std::vector<Change>;

/// `%%>message`: a message for the engine's handlers.
struct MessageLine {
  std::string id;
  std::uint64_t created_unix_s = 0;  ///< 0: now
  std::string name;
  std::string return_value;
  Changes parameters;
};

/// `%%<message`: the answer to a message the program was shown.
struct AnswerLine {
  std::string id;
  bool handled = false;
  std::string name;                         ///< empty: keeps its name
  std::optional<std::string> return_value;  ///< nothing: the short form, which changes nothing
  Changes parameters;
};

struct InstallLine {
  std::optional<int> priority;
  std::string name;
  std::string filter;  ///< a parameter's name; empty: every message of that name
  std::string value;   ///< of that parameter, exactly
};

struct UninstallLine {
  std::string name;
};

struct WatchLine {
  std::string name;  ///< empty: all
};

struct UnwatchLine {
  std::string name;
};

struct SetlocalLine {
  std::string name;
  std::string value;  ///< empty: asks for it
};

struct OutputLine {
  std::string text;
};

struct DebugLine {
  int level = 0;
  std::string text;
};

struct ConnectLine {
  std::string role;
  std::string id;
};

struct QuitLine {};

/// `Error in:`, said by a program that did not understand us.
struct ErrorLine {
  std::string text;
};

using Line = std::variant<QuitLine, MessageLine, AnswerLine, InstallLine, UninstallLine, WatchLine,
                          UnwatchLine, SetlocalLine, OutputLine, DebugLine, ConnectLine, ErrorLine>;

/// Takes one line apart, given without its end. Nothing where it is not understood.
std::optional<Line> decode(std::string_view line);

// ---- what the engine says ----

/// `%%>message`: asks a program to handle it.
std::string message_line(std::string_view id, const Message& message);
/// `%%<message`: what became of a message. Without an id: to somebody who watches.
std::string answer_line(std::string_view id, bool handled, const Message& message);
std::string installed_line(int priority, std::string_view name, bool done);
std::string uninstalled_line(int priority, std::string_view name, bool done);
std::string watched_line(std::string_view name, bool done);
std::string unwatched_line(std::string_view name, bool done);
std::string setlocal_line(std::string_view name, std::string_view value, bool done);
std::string quit_line();
/// `Error in:` and the line as it came.
std::string error_line(std::string_view line);

// ---- lines in a stream ----

/// Cuts lines out of what arrives in pieces. A line ends at LF; a CR before it is no part of it.
class LineCutter {
 public:
  void add(std::string_view octets);
  /// The next line that is complete. Nothing where more must come first, and for good once a line
  /// was longer than `limit_octets`, its end not counted.
  std::optional<std::string> next(std::size_t limit_octets);
  bool is_too_long() const { return too_long_; }

 private:
  std::string buffer_;
  std::size_t begin_ = 0;    ///< of the first line not taken
  std::size_t scanned_ = 0;  ///< up to here there is no end of it
  bool too_long_ = false;
};

}  // namespace modules::extmodule
