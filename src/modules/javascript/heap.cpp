// javascript/heap: see heap.hpp.
#include "heap.hpp"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>

namespace modules {

namespace {

/// Stands in front of each piece of memory, and keeps it aligned.
union Header {
  std::size_t size;
  std::max_align_t alignment;
};

/// Duktape found no way to go on, nor may this return. A script's process ends; the server has
/// nothing unprotected and does not come here.
[[noreturn]] void on_fatal(void*, const char* text) {
  std::fprintf(stderr, "sipmsg: the script engine gave up: %s\n", text == nullptr ? "" : text);
  _exit(1);
}

}  // namespace

ScriptHeap::ScriptHeap(std::size_t limit)
    : limit_(limit), context_(duk_create_heap(&allocate, &reallocate, &release, this, &on_fatal)) {}

ScriptHeap::~ScriptHeap() {
  if (context_ != nullptr) duk_destroy_heap(context_);
}

ScriptHeap& ScriptHeap::of(duk_context* context) {
  duk_memory_functions functions;
  duk_get_memory_functions(context, &functions);
  return *static_cast<ScriptHeap*>(functions.udata);
}

bool ScriptHeap::take_failure() {
  const bool failed = failed_;
  failed_ = false;
  return failed;
}

bool ScriptHeap::is_exhausted() {
  duk_gc(context_, 0);
  duk_gc(context_, 0);        // what finalizers released is found the second time
  return used_ > limit_ / 2;  // the piece that did not fit may have been a large one
}

void* ScriptHeap::allocate(void* heap, duk_size_t size) { return reallocate(heap, nullptr, size); }

void* ScriptHeap::reallocate(void* heap, void* pointer, duk_size_t size) {
  auto* self = static_cast<ScriptHeap*>(heap);
  if (size == 0) {
    release(heap, pointer);
    return nullptr;
  }
  Header* old = pointer == nullptr ? nullptr : static_cast<Header*>(pointer) - 1;
  const std::size_t old_size = old == nullptr ? 0 : old->size;
  const std::size_t others = self->used_ - old_size;
  if (size > self->limit_ || others > self->limit_ - size) {
    self->failed_ = true;
    return nullptr;
  }
  auto* header = static_cast<Header*>(std::realloc(old, sizeof(Header) + size));
  if (header == nullptr) {
    self->failed_ = true;
    return nullptr;
  }
  header->size = size;
  self->used_ = others + size;
  return header + 1;
}

void ScriptHeap::release(void* heap, void* pointer) {
  if (pointer == nullptr) return;
  Header* header = static_cast<Header*>(pointer) - 1;
  static_cast<ScriptHeap*>(heap)->used_ -= header->size;
  std::free(header);
}

}  // namespace modules
