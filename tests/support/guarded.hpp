// Text that ends where the readable memory ends: one octet read too far is a fault, not luck.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <string_view>

#include <doctest/doctest.h>

namespace test {

class GuardedText {
 public:
  explicit GuardedText(std::string_view text) : size_(text.size()) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    room_ = (text.size() / page + 1) * page;
    void* memory =
        mmap(nullptr, room_ + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(memory != MAP_FAILED);
    memory_ = static_cast<char*>(memory);
    whole_ = room_ + page;
    REQUIRE(mprotect(memory_ + room_, page, PROT_NONE) == 0);
    set(text);
  }
  ~GuardedText() { munmap(memory_, whole_); }
  GuardedText(const GuardedText&) = delete;
  GuardedText& operator=(const GuardedText&) = delete;

  /// Another text in the same memory, not longer than the first one.
  void set(std::string_view text) {
    REQUIRE(text.size() <= room_);
    size_ = text.size();
    if (size_ > 0) std::memcpy(memory_ + room_ - size_, text.data(), size_);
  }
  std::string_view view() const { return {memory_ + room_ - size_, size_}; }

 private:
  char* memory_ = nullptr;
  std::size_t room_ = 0;
  std::size_t whole_ = 0;
  std::size_t size_;
};

}  // namespace test
