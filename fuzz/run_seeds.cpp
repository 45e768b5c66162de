// Runs a fuzz target on files, without libFuzzer: the seeds as an ordinary test, and crashes once
// more under a debugger.
//
//     run_seeds FILE-OR-DIRECTORY...
//
// Each file is given whole, cut short at some lengths, and with some octets replaced by such that
// mean something, so that a plain test run covers what a fuzzer finds first.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <vector>

#include "fuzz.hpp"

namespace {

/// In memory of just that size, so that the address sanitizer sees one octet too far.
void run_on(const std::string& input) {
  const std::unique_ptr<std::uint8_t[]> exact(new std::uint8_t[input.size()]);
  std::copy(input.begin(), input.end(), exact.get());
  LLVMFuzzerTestOneInput(exact.get(), input.size());
}

void run_around(const std::string& seed, std::size_t number) {
  constexpr std::size_t step = 31;  // all lengths and places of a few hundred seeds take too long
  constexpr std::string_view octets("\0\n\r \"\\,;<>:%9\xff", 14);
  run_on(seed);
  std::string changed = seed;
  for (std::size_t i = number % step; i < std::min<std::size_t>(seed.size(), 4000); i += step) {
    run_on(seed.substr(0, i));
    changed[i] = octets[(i + number) % octets.size()];
    run_on(changed);
    changed[i] = seed[i];
  }
}

std::vector<std::filesystem::path> files_of(const std::filesystem::path& path) {
  if (!std::filesystem::is_directory(path)) return {path};
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(path)) {
    if (entry.is_regular_file()) files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

int main(int argc, char** argv) {
  std::size_t count = 0;
  for (int i = 1; i < argc; ++i) {
    for (const auto& path : files_of(argv[i])) {
      std::ifstream file(path, std::ios::binary);
      if (!file) {
        std::fprintf(stderr, "cannot open %s\n", path.c_str());
        return 2;
      }
      run_around({std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()}, count);
      ++count;
    }
  }
  std::printf("%zu seeds\n", count);
  return count > 0 ? 0 : 2;
}
