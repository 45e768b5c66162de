// screen_text: UTF-8 as a terminal shows it: characters, the columns they take, and what must never
// reach a terminal.
//
// Text from strangers may hold escape sequences that rename the window, move the cursor over what
// was said before, or answer as if typed; and marks that turn the direction of writing, which make
// one address look like another. `printable` leaves none of them. Wide characters are told by a
// short table of ranges instead of the locale, so that a line looks the same everywhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace program {

/// The character a text begins with.
struct Character {
  std::size_t size = 0;      ///< in octets; 1 for an octet that begins no character
  std::uint32_t number = 0;  ///< its code point; U+FFFD for such an octet
};

/// `text` must not be empty.
Character first_character(std::string_view text);

/// How many columns it takes: 0 for combining marks and joiners, 2 for the wide ones of East Asia
/// and most pictures, else 1.
std::size_t columns_of(std::uint32_t character);
std::size_t columns_of(std::string_view text);

/// Where the character before `position` begins, with the combining marks behind it; 0 at the
/// beginning.
std::size_t previous_position(std::string_view text, std::size_t position);
/// Where the character at `position` ends, with the combining marks behind it.
std::size_t next_position(std::string_view text, std::size_t position);

/// As many whole characters from the beginning as fit in `columns`.
std::string_view fitting(std::string_view text, std::size_t columns);

/// What the line ends of a text become.
enum class LineEnds : std::uint8_t {
  kept,    ///< LF
  escaped  ///< a backslash and an n: one message, one line
};

/// The text in well-formed UTF-8 and without anything a terminal would obey: control characters
/// become U+FFFD, a tab a blank, marks of direction vanish. CR LF counts as one line end.
std::string printable(std::string_view text, LineEnds line_ends = LineEnds::escaped);

}  // namespace program
