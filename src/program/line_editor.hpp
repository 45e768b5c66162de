// line_editor: the line somebody is typing: keys in, text for the terminal out.
//
// It knows no terminal: octets as a terminal sends them go in, in pieces of any size, and what is
// to be done comes out as actions; `show` is the text that draws the line. So all of it is tested
// without one. Keys: the arrows, Home, End, Delete, Backspace, and Control with A B C D E F H K L N
// P U W Z as most shells have them. What is pasted (bracketed paste) becomes part of the line,
// line ends as blanks: pasting never sends. A line longer than the terminal is scrolled sideways.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace program {

/// What the keys ask for beyond changing the line.
enum class EditAction : std::uint8_t {
  accept,     ///< Enter: `text` is the line, which is empty now
  interrupt,  ///< Control-C in an empty line; in any other it empties the line
  end,        ///< Control-D in an empty line
  suspend,    ///< Control-Z
  redraw,     ///< Control-L: the screen should be cleared and drawn anew
};

struct EditEvent {
  EditAction action;
  std::string text;  ///< of `accept`
};

class LineEditor {
 public:
  static constexpr std::size_t max_line_size = 16384;  ///< octets; what is beyond is not taken
  static constexpr std::size_t max_history = 500;

  /// Octets from the terminal. What is incomplete at the end waits for the next call.
  std::vector<EditEvent> feed(std::string_view octets);

  /// The line as it stands, always whole characters without control characters.
  const std::string& text() const { return text_; }
  /// Where the cursor is in it, in octets.
  std::size_t cursor() const { return cursor_; }

  /// What stands before the line; printable, and shortened where it would fill the terminal.
  void set_prompt(std::string prompt) { prompt_ = std::move(prompt); }
  /// The terminal's width; at least 2 is assumed.
  void set_columns(std::size_t columns) { columns_ = columns < 2 ? 2 : columns; }
  /// The octets that draw prompt and line on the terminal's row the cursor is in, and put the
  /// cursor where it belongs.
  std::string show() const;

 private:
  enum class State : std::uint8_t { ground, escape, sequence, single_shift };

  void take(char octet, std::vector<EditEvent>& events);
  void take_control(char octet, std::vector<EditEvent>& events);
  void take_pasted(char octet);
  void take_text(char octet);
  void end_sequence(char final_octet);
  void move_to(std::size_t position) { cursor_ = position; }
  void erase(std::size_t begin, std::size_t end);
  void erase_word();
  void accept(std::vector<EditEvent>& events);
  void recall(std::size_t index);

  std::string text_;
  std::size_t cursor_ = 0;
  std::string pending_;  ///< the beginning of a character
  State state_ = State::ground;
  std::string parameters_;  ///< of an escape sequence
  bool is_pasting_ = false;

  std::deque<std::string> history_;
  std::size_t recalled_ = 0;  ///< index in it; its size: the line that is being written
  std::string written_;       ///< that line, while another one is looked at

  std::string prompt_ = "> ";
  std::size_t columns_ = 80;
};

}  // namespace program
