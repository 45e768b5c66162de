// pool: memory that is used again: an index by keyed hash, slabs of objects, blocks of octets.
//
// A server in steady state makes and forgets the same things over and over: transactions, bindings,
// copies of messages. Here they are taken from what was freed before, so that after a warm-up no
// message costs a heap allocation. Objects stay where they are for life and are known by a Handle,
// which notices when its object is gone; tables know them by a 32-bit index, half a pointer.
// Left out on purpose: threads (everything belongs to one), and giving slabs and indexes back
// before the end: both are as large as their owner's limit allows, blocks have a cap of their own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>
#include <vector>

#include "config.hpp"

namespace sipmsg {

/// Finds 32-bit values by 64-bit hashes: open addressing, linear probing, eight octets a slot, at
/// most half of the slots in use. Grows by doubling and never shrinks.
///
/// The hashes must be keyed (SipHash) where the names behind them come from outside: with any other
/// hash an attacker could choose names that all fall into one slot. Only 32 bits of the hash are
/// kept, so the owner says in `find` whether a value is the one it means.
class HashIndex {
 public:
  static constexpr std::uint32_t npos = 0xffffffff;  ///< no value; may not be inserted

  /// Makes room for `count` entries, so that inserting up to there allocates nothing.
  void reserve(std::size_t count) {
    std::size_t slots = 16;
    while (slots < count * 2) slots *= 2;
    if (slots > slots_.size()) rehash(slots);
  }

  /// Adds an entry. Several may have the same hash, and the same hash and value twice count twice.
  void insert(std::uint64_t hash, std::uint32_t value) {
    reserve(++size_);
    put({shorten(hash), value});
  }

  /// Takes out the entry with that hash and value, where there is one.
  void erase(std::uint64_t hash, std::uint32_t value) {
    const std::size_t at =
        find_slot(hash, [value](std::uint32_t candidate) { return candidate == value; });
    if (at == no_slot) return;
    --size_;
    close_gap(at);
  }

  /// The first value with that hash of which `match(value)` says yes; npos where there is none.
  template <class Match>
  std::uint32_t find(std::uint64_t hash, Match match) const {
    const std::size_t at = find_slot(hash, match);
    return at == no_slot ? npos : slots_[at].value;
  }

  std::size_t size() const { return size_; }

 private:
  struct Slot {
    std::uint32_t hash;
    std::uint32_t value;  ///< npos in a free slot
  };
  static constexpr std::size_t no_slot = static_cast<std::size_t>(-1);

  static std::uint32_t shorten(std::uint64_t hash) {
    return static_cast<std::uint32_t>(hash ^ hash >> 32);
  }
  std::size_t after(std::size_t slot) const { return (slot + 1) & (slots_.size() - 1); }
  std::size_t home(std::uint32_t hash) const { return hash & (slots_.size() - 1); }

  template <class Match>
  std::size_t find_slot(std::uint64_t hash, Match match) const {
    if (slots_.empty()) return no_slot;
    const std::uint32_t wanted = shorten(hash);
    for (std::size_t i = home(wanted); slots_[i].value != npos; i = after(i)) {
      if (slots_[i].hash == wanted && match(slots_[i].value)) return i;
    }
    return no_slot;
  }

  void put(Slot slot) {
    std::size_t i = home(slot.hash);
    while (slots_[i].value != npos) i = after(i);
    slots_[i] = slot;
  }

  /// Frees a slot and moves those behind it up that would no longer be found across the gap, so
  /// that no tombstones pile up.
  void close_gap(std::size_t gap) {
    const std::size_t mask = slots_.size() - 1;
    for (std::size_t i = after(gap); slots_[i].value != npos; i = after(i)) {
      const std::size_t from_home = (i - home(slots_[i].hash)) & mask;
      const std::size_t from_gap = (i - gap) & mask;
      if (from_home < from_gap) continue;
      slots_[gap] = slots_[i];
      gap = i;
    }
    slots_[gap].value = npos;
  }

  void rehash(std::size_t slot_count) {
    std::vector<Slot> old(slot_count, Slot{0, npos});
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (slot.value != npos) put(slot);
    }
  }

  std::vector<Slot> slots_;
  std::size_t size_ = 0;
};

/// Names an object in a Slab. The index is used again for other objects, the generation is not, so
/// that a handle kept too long finds nothing. False for the handle that names nothing.
struct Handle {
  std::uint32_t index = 0xffffffff;
  std::uint32_t generation = 0;

  explicit operator bool() const { return generation != 0; }
  bool operator==(const Handle& other) const {
    return index == other.index && generation == other.generation;
  }
  bool operator!=(const Handle& other) const { return !(*this == other); }
};

/// A handle as one number, for whoever keeps one for us, and back.
constexpr std::uint64_t pack_handle(Handle handle) {
  return std::uint64_t{handle.generation} << 32 | handle.index;
}
constexpr Handle unpack_handle(std::uint64_t packed) {
  return {static_cast<std::uint32_t>(packed & 0xffffffff),
          static_cast<std::uint32_t>(packed >> 32)};
}

/// Objects at addresses that never change, found by index. Room for `chunk_size` objects is
/// allocated at a time and kept until the Slab goes; what is freed last is used first.
template <class T, std::size_t chunk_size = 64>
class Slab {
 public:
  Slab() = default;
  Slab(const Slab&) = delete;
  Slab& operator=(const Slab&) = delete;
  ~Slab() {
    for_each([this](Handle handle, T&) { destroy(handle); });
    for (void* chunk : chunks_) delete[] static_cast<Cell*>(chunk);
  }

  template <class... Arguments>
  Handle create(Arguments&&... arguments) {
    if (first_free_ == none) add_chunk();
    const std::uint32_t index = first_free_;
    Cell& cell = cell_at(index);
    first_free_ = cell.next_free;
    new (cell.storage) T(std::forward<Arguments>(arguments)...);
    ++cell.generation;
    ++size_;
    return {index, cell.generation};
  }

  /// The object, or null where it is gone.
  T* get(Handle handle) { return is_live(handle) ? &at(handle.index) : nullptr; }
  const T* get(Handle handle) const { return is_live(handle) ? &at(handle.index) : nullptr; }

  /// The object with that index, which must be alive.
  T& at(std::uint32_t index) { return object(cell_at(index)); }
  const T& at(std::uint32_t index) const { return object(cell_at(index)); }
  /// The handle of the object with that index, which must be alive.
  Handle handle_of(std::uint32_t index) const { return {index, cell_at(index).generation}; }

  /// Ends the object's life; nothing happens where it is gone already.
  void destroy(Handle handle) {
    if (!is_live(handle)) return;
    Cell& cell = cell_at(handle.index);
    ++cell.generation;  // before the destructor, so that nothing finds the object any more
    object(cell).~T();
    cell.next_free = first_free_;
    first_free_ = handle.index;
    --size_;
  }

  /// Calls `use(Handle, T&)` on every object in order of index. It may destroy the object it got.
  template <class Use>
  void for_each(Use use) {
    for (std::uint32_t index = 0; index < capacity(); ++index) {
      const Handle handle{index, cell_at(index).generation};
      if (is_live(handle)) use(handle, at(index));
    }
  }

  /// Makes room for `count` objects, so that creating up to there allocates nothing.
  void reserve(std::size_t count) {
    while (capacity() < count) add_chunk();
  }
  std::size_t size() const { return size_; }
  std::size_t capacity() const { return chunks_.size() * chunk_size; }

 private:
  /// Odd generations are alive, even ones are free: one comparison tells both.
  struct Cell {
    alignas(T) unsigned char storage[sizeof(T)];
    std::uint32_t generation = 0;
    std::uint32_t next_free = none;
  };
  static constexpr std::uint32_t none = 0xffffffff;

  static T& object(Cell& cell) { return *std::launder(reinterpret_cast<T*>(cell.storage)); }
  Cell& cell_at(std::uint32_t index) const {
    return static_cast<Cell*>(chunks_[index / chunk_size])[index % chunk_size];
  }
  bool is_live(Handle handle) const {
    return handle.generation % 2 == 1 && handle.index < capacity() &&
           cell_at(handle.index).generation == handle.generation;
  }
  void add_chunk() {
    const auto first = static_cast<std::uint32_t>(capacity());
    chunks_.push_back(new Cell[chunk_size]);
    for (std::uint32_t i = chunk_size; i-- > 0;) {  // so that the lowest index is used first
      cell_at(first + i).next_free = first_free_;
      first_free_ = first + i;
    }
  }

  std::vector<void*> chunks_;  ///< arrays of Cell; the vector is of one type for all slabs
  std::uint32_t first_free_ = none;
  std::size_t size_ = 0;
};

class BlockPool;

/// A piece of memory for a kept message, given back to its pool when this goes. Moves only; empty
/// where nothing was allocated. Lifetime: the pool must outlive it.
class Block {
 public:
  Block() = default;
  Block(Block&& other) noexcept : header_(std::exchange(other.header_, nullptr)) {}
  Block& operator=(Block&& other) noexcept {
    if (this == &other) return *this;
    reset();
    header_ = std::exchange(other.header_, nullptr);
    return *this;
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block() { reset(); }

  inline void reset();
  explicit operator bool() const { return header_ != nullptr; }
  char* data() { return reinterpret_cast<char*>(header_ + 1); }
  const char* data() const { return reinterpret_cast<const char*>(header_ + 1); }
  /// The size asked for; 0 where empty.
  std::size_t size() const { return header_ == nullptr ? 0 : header_->size; }

 private:
  friend class BlockPool;
  struct Header {
    union {
      BlockPool* owner;   ///< of a block in use
      Header* next_free;  ///< of an idle one
    };
    std::uint32_t size;
    std::uint32_t size_class;
  };
  explicit Block(Header* header) : header_(header) {}

  Header* header_ = nullptr;
};

/// Blocks of up to `max_block_size` octets. A freed block is kept for the next one of its size
/// class; there are four classes to each doubling, so that little is wasted on kept messages, of
/// which a busy server holds hundreds of thousands. What is idle beyond the cap goes back to the
/// heap.
class BlockPool {
 public:
  static constexpr std::size_t max_block_size = std::size_t{1} << 17;

  explicit BlockPool(std::size_t max_idle_size = std::size_t{16} << 20)
      : max_idle_size_(max_idle_size) {}
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;
  ~BlockPool() {
    for (Block::Header*& first : idle_) {
      while (first != nullptr) ::operator delete(std::exchange(first, first->next_free));
    }
  }

  /// A block of `size` octets, uninitialised; an empty one where that is more than max_block_size.
  Block allocate(std::size_t size) {
    if (size > max_block_size) return {};
    const std::uint32_t size_class = class_of(size);
    const std::size_t room = room_of(size_class);
    Block::Header* header = idle_[size_class];
    if (header != nullptr) {
      idle_[size_class] = header->next_free;
      idle_size_ -= room;
    } else {
      header = static_cast<Block::Header*>(::operator new(sizeof(Block::Header) + room));
    }
    header->owner = this;
    header->size = static_cast<std::uint32_t>(size);
    header->size_class = size_class;
    in_use_size_ += room;
    return Block(header);
  }

  /// Octets of room in the blocks that are in use, and in those that wait for use.
  std::size_t in_use_size() const { return in_use_size_; }
  std::size_t idle_size() const { return idle_size_; }

 private:
  friend class Block;
  static constexpr std::size_t smallest = 256;
  static constexpr std::size_t class_count = 4 * 9 + 1;  // from 2^8 to 2^17 octets

  /// 256, 320, 384, 448, 512, 640, 768, 896, 1024, ...
  static constexpr std::size_t room_of(std::uint32_t size_class) {
    return (smallest + smallest / 4 * (size_class % 4)) << size_class / 4;
  }
  static std::uint32_t class_of(std::size_t size) {
    std::uint32_t size_class = 0;
    while (room_of(size_class + 4) < size) size_class += 4;
    while (room_of(size_class) < size) ++size_class;
    return size_class;
  }

  void take_back(Block::Header* header) {
    const std::uint32_t size_class = header->size_class;
    const std::size_t room = room_of(size_class);
    in_use_size_ -= room;
    if (idle_size_ + room > max_idle_size_) {
      ::operator delete(header);
      return;
    }
    idle_size_ += room;
    header->next_free = idle_[size_class];
    idle_[size_class] = header;
  }

  Block::Header* idle_[class_count] = {};
  std::size_t idle_size_ = 0;
  std::size_t in_use_size_ = 0;
  std::size_t max_idle_size_;
};

inline void Block::reset() {
  if (header_ != nullptr) header_->owner->take_back(std::exchange(header_, nullptr));
}

}  // namespace sipmsg
