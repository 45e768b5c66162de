// A terminal for tests: the few things the program asks of one, and what is seen on it afterwards.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

namespace test {

/// Characters of one column each; rows that scroll out at the top are gone. Whatever it is not
/// taught, it counts as `unknown`.
class Screen {
 public:
  Screen(std::size_t columns, std::size_t rows) : columns_(columns), rows_(rows) {}

  void write(std::string_view octets) {
    while (!octets.empty()) octets.remove_prefix(take(octets));
  }

  /// The rows, without blanks at their ends and without empty ones below the last.
  std::vector<std::string> text() const {
    std::vector<std::string> text;
    for (const auto& row : rows_) {
      std::string line;
      for (const std::string& character : row) line += character;
      line.erase(line.find_last_not_of(' ') + 1);
      text.push_back(line);
    }
    while (!text.empty() && text.back().empty()) text.pop_back();
    return text;
  }
  std::size_t row() const { return row_; }
  std::size_t column() const { return column_; }
  int unknown() const { return unknown_; }

 private:
  using Row = std::vector<std::string>;

  std::size_t take(std::string_view octets) {
    switch (octets[0]) {
      case '\r': column_ = 0; return 1;
      case '\n': line_feed(); return 1;
      case '\x1b': return take_sequence(octets);
      default: break;
    }
    std::size_t size = 1;
    while (size < octets.size() && (static_cast<unsigned char>(octets[size]) & 0xc0) == 0x80)
      ++size;
    if (static_cast<unsigned char>(octets[0]) < 0x20 || column_ >= columns_) {
      ++unknown_;
      return size;
    }
    Row& line = rows_[row_];
    if (line.size() <= column_) line.resize(column_ + 1, " ");
    line[column_++] = std::string(octets.substr(0, size));
    return size;
  }

  std::size_t take_sequence(std::string_view octets) {
    const std::size_t end = octets.find_first_not_of("0123456789;?", 2);
    if (octets.substr(0, 2) != "\x1b[" || end == std::string_view::npos) {
      ++unknown_;
      return 1;
    }
    const std::string number(octets.substr(2, end - 2));
    const std::size_t count = number.empty() ? 1 : std::strtoul(number.c_str(), nullptr, 10);
    switch (octets[end]) {
      case 'A': row_ -= count > row_ ? row_ : count; break;
      case 'C': column_ += count; break;
      case 'H': row_ = column_ = 0; break;
      case 'K': cut(row_); break;
      case 'J':
        if (number == "2") row_ = column_ = 0;
        cut(row_);
        for (std::size_t row = row_ + 1; row < rows_.size(); ++row) rows_[row].clear();
        break;
      default: ++unknown_;
    }
    return end + 1;
  }

  void cut(std::size_t row) {
    if (rows_[row].size() > column_) rows_[row].resize(column_);
  }

  void line_feed() {
    if (++row_ < rows_.size()) return;
    --row_;
    rows_.erase(rows_.begin());
    rows_.emplace_back();
  }

  std::size_t columns_;
  std::vector<Row> rows_;
  std::size_t row_ = 0;
  std::size_t column_ = 0;
  int unknown_ = 0;
};

}  // namespace test
