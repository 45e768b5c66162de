#include "line_editor.hpp"

#include "screen_text.hpp"

namespace program {

namespace {

constexpr char control(char letter) { return static_cast<char>(letter & 0x1f); }
constexpr char escape = '\x1b';
constexpr char erase_key = '\x7f';
constexpr std::size_t max_parameters = 32;  // a sequence longer than that is no key

}  // namespace

std::vector<EditEvent> LineEditor::feed(std::string_view octets) {
  std::vector<EditEvent> events;
  for (char octet : octets) take(octet, events);
  return events;
}

void LineEditor::take(char octet, std::vector<EditEvent>& events) {
  switch (state_) {
    case State::escape:
      // Escape and a letter, which is Alt and the letter, does nothing.
      state_ = octet == '[' ? State::sequence : octet == 'O' ? State::single_shift : State::ground;
      parameters_.clear();
      return;
    case State::sequence:
      if (octet >= 0x40 && octet <= 0x7e) return end_sequence(octet);
      if (parameters_.size() < max_parameters) parameters_.push_back(octet);
      return;
    case State::single_shift: return end_sequence(octet);
    case State::ground: break;
  }
  if (octet == escape) {
    pending_.clear();
    state_ = State::escape;
  } else if (is_pasting_) {
    take_pasted(octet);
  } else if (static_cast<unsigned char>(octet) < 0x20 || octet == erase_key) {
    pending_.clear();
    take_control(octet, events);
  } else {
    take_text(octet);
  }
}

void LineEditor::take_control(char octet, std::vector<EditEvent>& events) {
  switch (octet) {
    case '\r':
    case '\n': return accept(events);
    case control('A'): return move_to(0);
    case control('B'): return move_to(previous_position(text_, cursor_));
    case control('C'):
      if (text_.empty()) events.push_back({EditAction::interrupt, {}});
      recalled_ = history_.size();
      return erase(0, text_.size());
    case control('D'):
      if (text_.empty()) events.push_back({EditAction::end, {}});
      return erase(cursor_, next_position(text_, cursor_));
    case control('E'): return move_to(text_.size());
    case control('F'): return move_to(next_position(text_, cursor_));
    case control('H'):
    case erase_key: return erase(previous_position(text_, cursor_), cursor_);
    case control('K'): return erase(cursor_, text_.size());
    case control('L'): events.push_back({EditAction::redraw, {}}); return;
    case control('N'): return recall(recalled_ + 1);
    case control('P'): return recall(recalled_ - 1);
    case control('U'): return erase(0, cursor_);
    case control('W'): return erase_word();
    case control('Z'): events.push_back({EditAction::suspend, {}}); return;
    default: return;
  }
}

void LineEditor::take_pasted(char octet) {
  const bool is_control = static_cast<unsigned char>(octet) < 0x20 || octet == erase_key;
  if (!is_control) return take_text(octet);
  if (octet == '\r' || octet == '\n' || octet == '\t') take_text(' ');
}

/// Puts a character in once all its octets are there; what is none, or is no text, is left out.
void LineEditor::take_text(char octet) {
  const auto value = static_cast<unsigned char>(octet);
  const bool continues = (value & 0xc0) == 0x80;
  if (!continues) pending_.clear();
  pending_.push_back(octet);
  const auto lead = static_cast<unsigned char>(pending_[0]);
  const std::size_t size = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0x80 ? 2 : 1;
  if (pending_.size() < size) return;
  if (text_.size() + size <= max_line_size && printable(pending_) == pending_) {
    text_.insert(cursor_, pending_);
    cursor_ += size;
  }
  pending_.clear();
}

/// What ends an escape sequence says which key it was; "~" leaves that to the number before it.
void LineEditor::end_sequence(char final_octet) {
  state_ = State::ground;
  if (final_octet == '~' && parameters_ == "200") is_pasting_ = true;
  if (final_octet == '~' && parameters_ == "201") is_pasting_ = false;
  if (is_pasting_) return;
  const bool is_home = parameters_ == "1" || parameters_ == "7";
  const bool is_end = parameters_ == "4" || parameters_ == "8";
  switch (final_octet) {
    case 'A': return recall(recalled_ - 1);
    case 'B': return recall(recalled_ + 1);
    case 'C': return move_to(next_position(text_, cursor_));
    case 'D': return move_to(previous_position(text_, cursor_));
    case 'F': return move_to(text_.size());
    case 'H': return move_to(0);
    case '~':
      if (is_home) move_to(0);
      if (is_end) move_to(text_.size());
      if (parameters_ == "3") erase(cursor_, next_position(text_, cursor_));
      return;
    default: return;
  }
}

void LineEditor::erase(std::size_t begin, std::size_t end) {
  text_.erase(begin, end - begin);
  cursor_ = begin;
}

void LineEditor::erase_word() {
  std::size_t begin = cursor_;
  while (begin > 0 && text_[begin - 1] == ' ') --begin;
  while (begin > 0 && text_[begin - 1] != ' ') --begin;
  erase(begin, cursor_);
}

void LineEditor::accept(std::vector<EditEvent>& events) {
  if (!text_.empty() && (history_.empty() || history_.back() != text_)) {
    history_.push_back(text_);
    if (history_.size() > max_history) history_.pop_front();
  }
  recalled_ = history_.size();
  events.push_back({EditAction::accept, std::move(text_)});
  text_.clear();
  cursor_ = 0;
}

/// Shows another line of the history; the one that was being written is kept at its end.
void LineEditor::recall(std::size_t index) {
  if (index > history_.size()) return;  // before the first, too
  if (recalled_ == history_.size()) written_ = text_;
  recalled_ = index;
  text_ = index == history_.size() ? written_ : history_[index];
  cursor_ = text_.size();
}

std::string LineEditor::show() const {
  const std::string_view prompt = fitting(prompt_, columns_ / 2);
  const std::size_t prompt_columns = columns_of(prompt);
  const std::size_t room = columns_ - prompt_columns;
  const std::string_view line = text_;
  // Characters leave on the left until the cursor is inside.
  std::size_t first = 0;
  std::size_t column = columns_of(line.substr(0, cursor_));
  while (column >= room) {
    const std::size_t next = next_position(line, first);
    column -= columns_of(line.substr(first, next - first));
    first = next;
  }
  column += prompt_columns;
  std::string out = "\r\x1b[K";
  out.append(prompt).append(fitting(line.substr(first), room - 1)).append("\r");
  if (column > 0) out.append("\x1b[").append(std::to_string(column)).append("C");
  return out;
}

}  // namespace program
