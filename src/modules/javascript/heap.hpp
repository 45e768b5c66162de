// javascript/heap: a Duktape heap that cannot grow beyond a limit.
//
// Duktape leaves functions by longjmp when a script throws. So in this module no object with a
// destructor lives in a function that calls Duktape, unless the call is a protected one.
#pragma once

#include <duktape.h>

#include <cstddef>

namespace modules {

/// Where the limit is reached, the script gets an exception that it may catch, "Error: alloc
/// failed".
class ScriptHeap {
 public:
  explicit ScriptHeap(std::size_t limit);
  ~ScriptHeap();
  ScriptHeap(const ScriptHeap&) = delete;
  ScriptHeap& operator=(const ScriptHeap&) = delete;

  /// Null where not even an empty heap fits into the limit.
  duk_context* context() { return context_; }
  /// Of any thread of such a heap.
  static ScriptHeap& of(duk_context* context);

  /// Octets in use, garbage included.
  std::size_t used() const { return used_; }
  /// Whether something did not fit since it was asked last.
  bool take_failure();
  /// Collects the garbage and says whether more than half of the limit is in use nevertheless.
  bool is_exhausted();

  void* owner = nullptr;  ///< whoever the functions of the heap need to find

 private:
  static void* allocate(void* heap, duk_size_t size);
  static void* reallocate(void* heap, void* pointer, duk_size_t size);
  static void release(void* heap, void* pointer);

  std::size_t limit_;
  std::size_t used_ = 0;
  bool failed_ = false;
  duk_context* context_;
};

}  // namespace modules
