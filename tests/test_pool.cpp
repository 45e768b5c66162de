#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <random>
#include <vector>

#include <doctest/doctest.h>

#include "support/allocations.hpp"
#include "support/sipmsg.hpp"

namespace test_pool {

using sipmsg::Block;
using sipmsg::BlockPool;
using sipmsg::Handle;
using sipmsg::HashIndex;
using sipmsg::Slab;

namespace {

const auto any = [](std::uint32_t) { return true; };

/// An object that says when it dies.
struct Mortal {
  explicit Mortal(int* deaths, int value = 0) : deaths_(deaths), value_(value) {}
  Mortal(const Mortal&) = delete;
  Mortal& operator=(const Mortal&) = delete;
  ~Mortal() { ++*deaths_; }
  int value() const { return value_; }

 private:
  int* deaths_;
  int value_;
};

}  // namespace

TEST_CASE("an index finds what was inserted and nothing else") {
  HashIndex index;
  CHECK(index.find(7, any) == HashIndex::npos);
  index.erase(7, 1);  // nothing there to erase

  index.insert(7, 1);
  index.insert(8, 2);
  CHECK(index.size() == 2);
  CHECK(index.find(7, any) == 1);
  CHECK(index.find(8, any) == 2);
  CHECK(index.find(9, any) == HashIndex::npos);
  CHECK(index.find(7, [](std::uint32_t) { return false; }) == HashIndex::npos);
}

TEST_CASE("entries of one hash are told apart by their values") {
  HashIndex index;
  for (std::uint32_t value = 0; value < 10; ++value) index.insert(42, value);
  for (std::uint32_t wanted = 0; wanted < 10; ++wanted) {
    CHECK(index.find(42, [wanted](std::uint32_t value) { return value == wanted; }) == wanted);
  }
  index.erase(42, 5);
  CHECK(index.size() == 9);
  CHECK(index.find(42, [](std::uint32_t value) { return value == 5; }) == HashIndex::npos);
  CHECK(index.find(42, [](std::uint32_t value) { return value == 9; }) == 9);
  index.erase(42, 5);
  CHECK(index.size() == 9);
}

TEST_CASE("an index agrees with a multimap through a long life of inserting and erasing") {
  // Few distinct hashes, some of them at the end of the table, make long runs that wrap around.
  HashIndex index;
  std::multimap<std::uint64_t, std::uint32_t> model;
  std::mt19937 random(1);
  for (std::uint32_t step = 0; step < 20000; ++step) {
    const std::uint64_t hash = random() % 4 == 0 ? 0xffffffff - random() % 4 : random() % 64;
    const bool grow = model.size() < 40 || (random() % 2 == 0 && model.size() < 200);
    if (grow) {
      index.insert(hash, step);
      model.emplace(hash, step);
    } else {
      auto victim = model.lower_bound(hash);
      if (victim == model.end()) victim = model.begin();
      index.erase(victim->first, victim->second);
      model.erase(victim);
    }
    REQUIRE(index.size() == model.size());
    if (step % 50 != 0) continue;
    for (const auto& entry : model) {
      const auto same = [&entry](std::uint32_t value) { return value == entry.second; };
      REQUIRE(index.find(entry.first, same) == entry.second);
    }
  }
  while (!model.empty()) {
    index.erase(model.begin()->first, model.begin()->second);
    model.erase(model.begin());
  }
  CHECK(index.size() == 0);
  for (std::uint64_t hash = 0; hash < 64; ++hash) CHECK(index.find(hash, any) == HashIndex::npos);
}

TEST_CASE("an index allocates nothing within its reserve, however often it is used") {
  HashIndex index;
  index.reserve(1000);
  const test::AllocationCount allocations;
  for (std::uint32_t round = 0; round < 20; ++round) {
    for (std::uint32_t i = 0; i < 1000; ++i) index.insert(i * std::uint64_t{0x9e3779b97f4a7c15}, i);
    for (std::uint32_t i = 0; i < 1000; ++i) index.erase(i * std::uint64_t{0x9e3779b97f4a7c15}, i);
  }
  CHECK(allocations.count() == 0);
  CHECK(index.size() == 0);
}

TEST_CASE("a handle finds its object, and nothing once that is gone and its place used again") {
  int deaths = 0;
  Slab<Mortal, 4> slab;
  CHECK(slab.get(Handle()) == nullptr);
  CHECK_FALSE(Handle());

  const Handle first = slab.create(&deaths, 1);
  const Handle second = slab.create(&deaths, 2);
  CHECK(first);
  CHECK(first != second);
  REQUIRE(slab.get(first) != nullptr);
  CHECK(slab.get(first)->value() == 1);
  CHECK(slab.at(second.index).value() == 2);
  CHECK(slab.handle_of(second.index) == second);
  CHECK(slab.size() == 2);

  slab.destroy(first);
  CHECK(deaths == 1);
  CHECK(slab.get(first) == nullptr);
  slab.destroy(first);
  CHECK(deaths == 1);
  CHECK(slab.size() == 1);

  const Handle third = slab.create(&deaths, 3);
  CHECK(third.index == first.index);  // the place freed last is used first
  CHECK(slab.get(first) == nullptr);
  CHECK(slab.get(third)->value() == 3);
  slab.destroy(first);
  CHECK(slab.get(third) != nullptr);
}

TEST_CASE("objects of a slab never move, and all of them end with it") {
  int deaths = 0;
  {
    Slab<Mortal, 4> slab;
    std::vector<std::pair<Handle, const Mortal*>> objects;
    for (int i = 0; i < 100; ++i) {
      const Handle handle = slab.create(&deaths, i);
      objects.emplace_back(handle, slab.get(handle));
    }
    for (std::size_t i = 0; i < objects.size(); i += 3) slab.destroy(objects[i].first);
    for (std::size_t i = 0; i < objects.size(); ++i) {
      CHECK(slab.get(objects[i].first) == (i % 3 == 0 ? nullptr : objects[i].second));
    }
    std::size_t seen = 0;
    slab.for_each([&](Handle handle, Mortal& object) {
      CHECK(slab.get(handle) == &object);
      ++seen;
      if (object.value() % 2 == 0) slab.destroy(handle);
    });
    CHECK(seen == 66);
    CHECK(slab.size() == 33);
    CHECK(deaths == 67);
  }
  CHECK(deaths == 100);
}

TEST_CASE("a handle with a wrong generation or an index out of range finds nothing") {
  int deaths = 0;
  Slab<Mortal, 4> slab;
  const Handle handle = slab.create(&deaths);
  CHECK(slab.get({handle.index, handle.generation + 1}) == nullptr);
  CHECK(slab.get({handle.index, handle.generation + 2}) == nullptr);
  CHECK(slab.get({handle.index, 0}) == nullptr);
  CHECK(slab.get({handle.index + 1, 0}) == nullptr);  // a place never used
  CHECK(slab.get({4, 1}) == nullptr);
  CHECK(slab.get({0xffffffff, 1}) == nullptr);
}

TEST_CASE("a slab allocates nothing within its reserve") {
  int deaths = 0;
  Slab<Mortal, 8> slab;
  slab.reserve(20);
  CHECK(slab.capacity() >= 20);
  const test::AllocationCount allocations;
  for (int round = 0; round < 10; ++round) {
    Handle handles[20];
    for (Handle& handle : handles) handle = slab.create(&deaths);
    for (const Handle& handle : handles) slab.destroy(handle);
  }
  CHECK(allocations.count() == 0);
  CHECK(deaths == 200);
}

TEST_CASE("a block has the size asked for, and a freed one is used again") {
  BlockPool pool;
  Block block = pool.allocate(500);
  REQUIRE(block);
  CHECK(block.size() == 500);
  std::memset(block.data(), 'x', block.size());
  const char* place = block.data();
  CHECK(pool.in_use_size() == 512);
  block.reset();
  CHECK_FALSE(block);
  CHECK(block.size() == 0);
  CHECK(pool.in_use_size() == 0);
  CHECK(pool.idle_size() == 512);

  const test::AllocationCount allocations;
  Block again = pool.allocate(512);
  CHECK(allocations.count() == 0);
  CHECK(again.data() == place);
  CHECK(again.size() == 512);
  CHECK(pool.idle_size() == 0);
}

TEST_CASE("every size gets a block that holds it and wastes at most a fifth") {
  BlockPool pool(std::size_t{1} << 30);
  for (std::size_t size = 0; size <= BlockPool::max_block_size; size += size < 3000 ? 1 : 997) {
    CAPTURE(size);
    Block block = pool.allocate(size);
    REQUIRE(block);
    REQUIRE(block.size() == size);
    const std::size_t room = pool.in_use_size();
    REQUIRE(room >= size);
    if (size > 256) REQUIRE(room <= size + size / 4);
    std::memset(block.data(), 1, size);  // the address sanitizer sees whether it is all there
  }
  Block largest = pool.allocate(BlockPool::max_block_size);
  CHECK(largest.size() == BlockPool::max_block_size);
  CHECK(pool.in_use_size() == BlockPool::max_block_size);
  CHECK_FALSE(pool.allocate(BlockPool::max_block_size + 1));
}

TEST_CASE("blocks move, and each is given back once") {
  BlockPool pool;
  Block a = pool.allocate(10);
  Block b = pool.allocate(300);
  a.data()[0] = 'a';
  CHECK(pool.in_use_size() == 256 + 320);
  b = std::move(a);
  CHECK(pool.in_use_size() == 256);
  CHECK_FALSE(a);
  CHECK(b.data()[0] == 'a');
  Block c(std::move(b));
  CHECK(c.data()[0] == 'a');
  Block& same = c;
  c = std::move(same);
  CHECK(c.data()[0] == 'a');
  c.reset();
  c.reset();
  CHECK(pool.in_use_size() == 0);
  CHECK(pool.idle_size() == 256 + 320);
}

TEST_CASE("what is idle beyond the cap goes back to the heap") {
  BlockPool pool(1000);
  std::vector<Block> blocks;
  for (int i = 0; i < 10; ++i) blocks.push_back(pool.allocate(400));
  CHECK(pool.in_use_size() == 4480);
  blocks.clear();
  CHECK(pool.in_use_size() == 0);
  CHECK(pool.idle_size() == 896);
}

}  // namespace test_pool
