// What the fuzz targets share. Each target is libFuzzer's LLVMFuzzerTestOneInput; fuzz/README.md
// says how to build and run them.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

#include <sipmsg.hpp>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace fuzz {

/// Reads every octet, so that a view into freed or foreign memory cannot pass.
inline void touch(std::string_view text) {
  static volatile unsigned sum;
  for (char c : text) sum = sum + static_cast<unsigned char>(c);
}

/// What has to hold for every input.
inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", what);
  std::abort();
}

inline std::string_view as_text(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

}  // namespace fuzz
