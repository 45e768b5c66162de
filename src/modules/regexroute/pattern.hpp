// regexroute/pattern: one regular expression of a rule, compiled once by the C library.
//
// POSIX basic or extended expressions (<regex.h>), unanchored, with up to nine groups. Most rules
// of a message router are no more than a name between ^ and $: those are compared without the
// library.
//
// Values come from the network, and the library's time can grow with the square of their length
// (with a back-reference, exponentially). So only the beginning of a long value is looked at.
#pragma once

#include <regex.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace modules::regexroute {

/// What the last match took out of its subject: \0 is all that matched, \1 to \9 are the groups;
/// empty where there was none. Views into the subject.
using Captures = std::array<std::string_view, 10>;

struct Syntax {
  bool extended = false;
  bool insensitive = false;  ///< upper and lower case are the same
};

class Pattern {
 public:
  /// Octets of a value that an expression looks at; beyond, `$` does not match.
  static constexpr std::size_t max_subject = 4096;
  /// The same for one with a back-reference.
  static constexpr std::size_t max_subject_of_back_reference = 64;

  /// Matches nothing until an expression is compiled.
  Pattern() = default;

  /// An explanation where `text` is no regular expression, or too large a one; "" where all is
  /// well.
  std::string compile(std::string_view text, Syntax syntax);

  /// `subject` is as `to_subject` makes it. Sets all of `captures` where it matches, else leaves
  /// them.
  bool matches(const std::string& subject, Captures& captures) const;

  bool has_back_reference() const { return has_back_reference_; }

 private:
  enum class Kind : std::uint8_t { nothing, anything, whole, beginning, inside, expression };
  struct Free {
    void operator()(regex_t* compiled) const {
      regfree(compiled);
      delete compiled;
    }
  };

  bool take_as_literal(std::string_view text);
  bool execute(const std::string& subject, Captures& captures) const;

  Kind kind_ = Kind::nothing;
  bool has_back_reference_ = false;
  std::string literal_;
  std::unique_ptr<regex_t, Free> compiled_;  ///< the library forbids to move it
};

/// A value as the C library can match it: without blanks around it; NUL, at which the library would
/// stop reading, becomes an octet that no text holds.
std::string to_subject(std::string value);

}  // namespace modules::regexroute
