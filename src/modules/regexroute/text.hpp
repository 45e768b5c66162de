// regexroute/text: text of a rule in which captures, parameters and functions take the place of
// \1, ${name} and $(function,...).
//
// The text is taken apart once, when the configuration is read, and what is put in later is never
// looked at again: no octet that a sender writes can end a function, name a parameter or become an
// argument. Yate replaces in the text as it stands and reads the result; docs/modules/regexroute.md
// lists where that shows.
#pragma once

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "pattern.hpp"

namespace modules {
class Message;
}

namespace modules::regexroute {

struct Environment;
struct Function;
struct Piece;

/// What a text is completed from.
struct Scope {
  const Message& message;
  const Captures& captures;
  Environment& environment;
};

class Text {
 public:
  /// Octets that replacement makes at most; what comes after is left out. `;p=${p}${p}` doubles.
  static constexpr std::size_t max_size = std::size_t{256} << 10;

  enum class Kind : std::uint8_t {
    target,     ///< `\0` to `\9`, `\\`, `${}` and `$()` are replaced
    condition,  ///< `${}` and `$()` are replaced
    name        ///< `\0` to `\9` and `\\` are replaced
  };

  /// An explanation where `raw` cannot be read, "" where all is well.
  std::string parse(std::string_view raw, Kind kind);

  /// Whether nothing is replaced.
  bool is_literal() const;
  /// The text where nothing is replaced.
  std::string_view literal() const;

  void append_to(std::string& out, const Scope& scope) const;
  std::string expand(const Scope& scope) const;

 private:
  friend class TextReader;
  std::vector<Piece> pieces_;
};

struct Capture {
  std::size_t group = 0;
};

struct Parameter {
  Text name;
  Text otherwise;  ///< where the message has none of that name
};

/// `$name` as an argument stands for the global variable, where the file says so.
struct Argument {
  Text text;  ///< the value, or the variable's name
  bool is_variable = false;
};

struct Call {
  const Function* function = nullptr;
  std::vector<Argument> arguments;
};

struct Piece {
  std::variant<std::string, Capture, Parameter, Call> content;
};

/// The place behind the ) that ends the function at the beginning of `text`, which is "$(...": the
/// first one that is not inside ${}. npos where there is none.
std::size_t end_of_call(std::string_view text);

}  // namespace modules::regexroute
