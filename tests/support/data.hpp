// Reads test data. SIPMSG_TEST_DATA is the absolute path of tests/data, set by the build.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

#include <doctest/doctest.h>

namespace test {

/// The whole file `name` below tests/data, byte for byte; fails the test where it is missing.
inline std::string read_data(const std::string& name) {
  const std::string path = std::string(SIPMSG_TEST_DATA) + "/" + name;
  std::FILE* file = std::fopen(path.c_str(), "rb");
  REQUIRE_MESSAGE(file != nullptr, "cannot open " << path);
  std::string bytes;
  char buffer[4096];
  for (std::size_t n; (n = std::fread(buffer, 1, sizeof buffer, file)) > 0;)
    bytes.append(buffer, n);
  std::fclose(file);
  return bytes;
}

/// `text` cut at each `separator`; a separator at the very end makes no further piece.
inline std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> pieces;
  std::size_t begin = 0;
  while (begin < text.size()) {
    std::size_t end = text.find(separator, begin);
    if (end == std::string::npos) {
      pieces.push_back(text.substr(begin));
      break;
    }
    pieces.push_back(text.substr(begin, end - begin));
    begin = end + 1;
    if (begin == text.size() && separator != '\n') pieces.emplace_back();
  }
  return pieces;
}

/// The rows of a table file: lines that are neither empty nor comments (#), cut at tabs.
inline std::vector<std::vector<std::string>> read_table(const std::string& name) {
  std::vector<std::vector<std::string>> rows;
  for (const std::string& line : split(read_data(name), '\n')) {
    if (!line.empty() && line[0] != '#') rows.push_back(split(line, '\t'));
  }
  return rows;
}

}  // namespace test
