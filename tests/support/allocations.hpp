// Counts heap allocations. Link tests/support/allocations.cpp, which replaces operator new.
#pragma once

#include <cstddef>

namespace test {

/// Counts the calls of operator new, by any thread, from its construction to its destruction. One
/// at a time.
class AllocationCount {
 public:
  AllocationCount();
  ~AllocationCount();
  AllocationCount(const AllocationCount&) = delete;
  AllocationCount& operator=(const AllocationCount&) = delete;

  std::size_t count() const;
};

}  // namespace test
