// transcript: what was said, above the line that is being written.
//
// The terminal scrolls as ever, nothing is cleared at the end, and what was said can be read and
// copied after the program. Entries that are still on the screen can be rewritten, which is how a
// sent line comes to show what became of it; one that has scrolled away is said again. Like the
// editor it knows no terminal: every call returns the octets to be written.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "line_editor.hpp"

namespace program {

class Transcript {
 public:
  /// The editor's line is drawn below the last entry.
  explicit Transcript(LineEditor& editor) : editor_(editor) {}

  /// The terminal has this size now. What was written before can no longer be rewritten: terminals
  /// differ in how they fold it.
  std::string resize(std::size_t columns, std::size_t rows);

  /// Adds an entry; printable text, in which LF begins a new row. `id` is for `rewrite`; 0: none.
  std::string add(std::string_view text, std::uint64_t id = 0);
  /// Replaces the entry with this id, or adds the text where it is gone.
  std::string rewrite(std::uint64_t id, std::string_view text);
  /// Draws the editor's line alone.
  std::string show_line() const { return editor_.show(); }
  /// Clears the terminal, draws the last entries and the line.
  std::string redraw();

 private:
  struct Entry {
    std::uint64_t id;
    std::string text;
    std::size_t rows;
  };

  std::string fold(std::string_view text, std::size_t& rows) const;
  void forget_what_scrolled_away();

  LineEditor& editor_;
  std::size_t columns_ = 80;
  std::size_t rows_ = 24;
  std::vector<Entry> entries_;  ///< those on the screen, the last one next above the line
};

}  // namespace program
