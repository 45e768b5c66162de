// stream: where one message ends and the next begins on a TCP connection.
//
// TCP carries octets, not messages: one read may bring half a header or three messages. A
// StreamFramer holds what has come and not been used, and hands out one message after the other,
// however the octets were cut on their way. Content-Length alone says where a body ends (RFC 3261
// 18.3), so a message without one that can be trusted is the last of its connection. Empty lines
// between messages are skipped (RFC 3261 7.5); two of them are a ping (RFC 5626 3.5.1).
//
// Memory follows the octets that came, not the lengths that were announced, and a connection that
// is quiet holds none. When to close a slow connection is for the owner of the clock to say.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <string_view>
#include <vector>

#include "message.hpp"

namespace sipmsg {

/// What StreamFramer::next found.
enum class StreamEvent : std::uint8_t {
  need_more,  ///< nothing whole is left: read more
  message,    ///< a whole message, in `view()`; its first mistake, if any, in `error()`
  blank,      ///< one CR LF between messages: the answer to a ping of ours, or padding
  ping,       ///< a second CR LF right behind a blank: answer it with one CR LF
  error,      ///< nobody knows where this message ends: answer `view()` with `error()`, and close
};

namespace detail {

struct StreamBlock {
  MessageView view;
  std::size_t capacity = 0;
  std::unique_ptr<char[]> octets;
};

}  // namespace detail

/// Read buffers that nobody uses at the moment, shared by all connections of one loop, so that a
/// busy connection allocates nothing and a quiet one holds nothing.
/// Lifetime: must outlive every StreamFramer that was made with it.
class StreamBuffers {
 public:
  /// Holds most messages; larger ones get a buffer of their own while they last.
  static constexpr std::size_t block_size = 4096;

  explicit StreamBuffers(std::size_t max_spare = 16) : max_spare_(max_spare) {
    spare_.reserve(max_spare);
  }

  /// How many are kept at the moment.
  std::size_t spare() const { return spare_.size(); }

 private:
  friend class StreamFramer;

  std::unique_ptr<detail::StreamBlock> take() {
    if (!spare_.empty()) {
      auto block = std::move(spare_.back());
      spare_.pop_back();
      return block;
    }
    auto block = std::make_unique<detail::StreamBlock>();
    block->octets.reset(new char[block_size]);
    block->capacity = block_size;
    return block;
  }
  void give_back(std::unique_ptr<detail::StreamBlock> block) {
    if (block && block->capacity == block_size && spare_.size() < max_spare_) {
      spare_.push_back(std::move(block));
    }
  }

  std::vector<std::unique_ptr<detail::StreamBlock>> spare_;
  std::size_t max_spare_;
};

/// The reading side of one connection. In turn: read into `writable()`, `commit` what came, call
/// `next()` until it says `need_more`, also where nothing came, because that gives an unused buffer
/// back. The events do not depend on how the octets were cut.
class StreamFramer {
 public:
  /// Messages of more than `max_message_octets` (at most sipmsg::max_message_size) are an error.
  explicit StreamFramer(StreamBuffers& buffers, std::size_t max_message_octets = max_message_size)
      : buffers_(&buffers),
        limit_(std::clamp<std::size_t>(max_message_octets, 1, max_message_size)) {}
  ~StreamFramer() { buffers_->give_back(std::move(block_)); }
  StreamFramer(const StreamFramer&) = delete;
  StreamFramer& operator=(const StreamFramer&) = delete;

  /// Memory to read into.
  struct Room {
    char* data;
    std::size_t size;
  };

  /// Where the next octets go: room for at least one, none after `error`. Ends the life of
  /// `view()`.
  Room writable() {
    if (failed_) return {nullptr, 0};
    consume_message();
    if (!block_) block_ = buffers_->take();
    make_room();
    return {block_->octets.get() + end_, block_->capacity - end_};
  }
  /// Says that `size` octets were put into `writable()`, which must have been called before.
  void commit(std::size_t size) { end_ += size; }

  /// Goes on to the next message or blank line. Ends the life of `view()`.
  StreamEvent next() {
    if (failed_) return StreamEvent::error;
    consume_message();
    if (skip_line_end()) {
      after_blank_ = !after_blank_;
      return after_blank_ ? StreamEvent::blank : StreamEvent::ping;
    }
    if (begin_ == end_) {
      buffers_->give_back(std::move(block_));
      begin_ = end_ = 0;
      return StreamEvent::need_more;
    }
    const bool head_is_read = message_size_ != 0 || read_head();
    if (failed_) return StreamEvent::error;
    if (!head_is_read || pending() < message_size_) {
      // A large buffer does not outlive its message.
      const bool large = block_->capacity > StreamBuffers::block_size;
      if (large && pending() < StreamBuffers::block_size) move_to(StreamBuffers::block_size);
      return StreamEvent::need_more;
    }
    block_->view.extend(available());
    after_blank_ = false;
    delivered_ = true;
    return StreamEvent::message;
  }

  /// The message, after the events `message` and `error` only; after `error` as much of it as could
  /// be read. Lifetime: until `next`, `writable` or the destructor is called.
  const MessageView& view() const { return block_->view; }
  /// The mistake in `view()`, if any, as MessageView::parse found it.
  Error error() const { return error_; }
  /// Octets that came and were not handed out yet: a part of a message, if `next` needs more.
  std::size_t pending() const { return end_ - begin_; }
  /// Octets of memory held for this connection.
  std::size_t capacity() const { return block_ ? block_->capacity : 0; }

 private:
  std::string_view available() const {
    if (!block_) return {};
    return {block_->octets.get() + begin_, end_ - begin_};
  }
  bool fail(Error error) {
    failed_ = true;
    error_ = error;
    return false;
  }
  void consume_message() {
    if (!delivered_) return;
    begin_ += message_size_;
    message_size_ = searched_ = 0;
    error_ = {};
    delivered_ = false;
  }
  bool skip_line_end() {
    if (message_size_ != 0 || available().substr(0, 2) != "\r\n") return false;
    begin_ += 2;
    searched_ = 0;
    return true;
  }

  /// Reads the head of a message once it is all there, and so learns the size of the whole. False
  /// where octets are missing, or with `failed_` where the size cannot be known.
  bool read_head() {
    const std::string_view octets = available().substr(0, limit_);
    // The first look is a parse, which mostly finds a whole message. Where it does not, nothing is
    // parsed again before the end of the head has come, and no octet is searched twice for it.
    if (searched_ != 0 && !find_head_end(octets) && octets.size() < limit_) return false;
    const Error error = block_->view.parse(octets, Framing::stream);
    const std::size_t size = block_->view.size();
    const bool head_missing = error.code == ErrorCode::incomplete && size == octets.size();
    if (head_missing && octets.size() < limit_) {
      // What the end of the head may have begun with is searched again: LF CR LF.
      searched_ = std::max<std::size_t>(octets.size(), 3) - 2;
      return false;
    }
    if (head_missing || size > limit_) {
      return fail({ErrorCode::too_large, static_cast<std::int32_t>(limit_)});
    }
    if (breaks_frame(error.code)) return fail(error);
    if (error.code != ErrorCode::incomplete) error_ = error;
    message_size_ = size;
    return true;
  }

  /// Looks for an empty line, as MessageView::parse understands it, from `searched_` on.
  bool find_head_end(std::string_view octets) {
    while (true) {
      const std::size_t line_end = octets.find('\n', searched_);
      if (line_end == std::string_view::npos) {
        searched_ = octets.size();
        return false;
      }
      searched_ = line_end;
      const std::string_view rest = octets.substr(line_end + 1, 2);
      if (rest == "\r\n" || (!rest.empty() && rest[0] == '\n')) return true;
      if (rest.empty() || rest == "\r") return false;
      ++searched_;
    }
  }

  /// Sees to it that something can be read behind `end_`.
  void make_room() {
    if (begin_ > 0) {
      std::memmove(block_->octets.get(), block_->octets.get() + begin_, pending());
      end_ -= begin_;
      begin_ = 0;
    }
    // Doubling as the octets come: whoever announces much and sends little is given little.
    const bool full = end_ == block_->capacity && end_ < limit_;
    if (full) move_to(std::min(block_->capacity * 2, limit_));
  }
  void move_to(std::size_t capacity) {
    std::unique_ptr<char[]> octets(new char[capacity]);
    std::memcpy(octets.get(), block_->octets.get() + begin_, pending());
    block_->octets = std::move(octets);
    block_->capacity = capacity;
    end_ -= begin_;
    begin_ = 0;
  }

  StreamBuffers* buffers_;
  std::unique_ptr<detail::StreamBlock> block_;
  std::size_t limit_;
  std::size_t begin_ = 0;         ///< of the current message, in the block
  std::size_t end_ = 0;           ///< of the octets that came
  std::size_t message_size_ = 0;  ///< of the current message, 0 until its head was read
  std::size_t searched_ = 0;      ///< up to where the current message has no end of its head
  Error error_;
  bool delivered_ = false;    ///< the current message was handed out
  bool after_blank_ = false;  ///< an odd number of CR LF came since the last message
  bool failed_ = false;
};

}  // namespace sipmsg
