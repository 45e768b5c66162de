#include "transcript.hpp"

#include <algorithm>

#include "screen_text.hpp"

namespace program {

namespace {

constexpr std::string_view clear_to_end = "\r\x1b[J";

}  // namespace

std::string Transcript::resize(std::size_t columns, std::size_t rows) {
  columns_ = std::max<std::size_t>(columns, 2);
  rows_ = std::max<std::size_t>(rows, 2);
  entries_.clear();
  editor_.set_columns(columns_);
  return std::string(clear_to_end) + editor_.show();
}

/// Ends each row by itself, before the terminal would: so it is known how many there are.
std::string Transcript::fold(std::string_view text, std::size_t& rows) const {
  std::string out;
  rows = 0;
  while (true) {
    const std::size_t line_end = std::min(text.find('\n'), text.size());
    // One column stays free: terminals differ in what they do at the last one.
    const std::string_view row = fitting(text.substr(0, line_end), columns_ - 1);
    out.append(row).append("\r\n");
    ++rows;
    const bool is_cut = row.size() < line_end;
    if (is_cut && row.empty()) return out;  // not even one character fits
    if (!is_cut && line_end == text.size()) return out;
    text.remove_prefix(is_cut ? row.size() : line_end + 1);
  }
}

void Transcript::forget_what_scrolled_away() {
  std::size_t rows = 1;  // the line being written
  for (auto entry = entries_.rbegin(); entry != entries_.rend(); ++entry) {
    rows += entry->rows;
    if (rows <= rows_) continue;
    entries_.erase(entries_.begin(), entry.base());
    return;
  }
}

std::string Transcript::add(std::string_view text, std::uint64_t id) {
  Entry entry{id, std::string(text), 0};
  std::string out = std::string(clear_to_end) + fold(text, entry.rows) + editor_.show();
  entries_.push_back(std::move(entry));
  forget_what_scrolled_away();
  return out;
}

std::string Transcript::rewrite(std::uint64_t id, std::string_view text) {
  const auto found = std::find_if(entries_.begin(), entries_.end(),
                                  [id](const Entry& entry) { return entry.id == id; });
  if (id == 0 || found == entries_.end()) return add(text, id);
  found->text = text;
  std::size_t up = 0;
  for (auto entry = found; entry != entries_.end(); ++entry) up += entry->rows;
  std::string out = "\x1b[" + std::to_string(up) + "A";
  out.append(clear_to_end);
  for (auto entry = found; entry != entries_.end(); ++entry) out += fold(entry->text, entry->rows);
  out += editor_.show();
  forget_what_scrolled_away();
  return out;
}

std::string Transcript::redraw() {
  std::string out = "\x1b[2J\x1b[H";
  for (Entry& entry : entries_) out += fold(entry.text, entry.rows);
  return out + editor_.show();
}

}  // namespace program
