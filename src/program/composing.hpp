// composing: "is typing" at both ends, RFC 3994: when to say it, and for how long to believe it.
//
// Time comes in as an argument. The one who types says "active" at the first key, again before that
// runs out, and "idle" when the keys rest or the line is given up; the message itself ends it
// without a word (RFC 3994 3.2). The one who reads believes "active" until its time is over.
#pragma once

#include <cstdint>
#include <optional>

namespace program {

/// The side that types.
class ComposingSender {
 public:
  static constexpr std::uint64_t idle_after_ms = 15000;  ///< RFC 3994 3.2
  static constexpr std::uint32_t refresh_s = 60;         ///< not less: RFC 3994 3.3

  /// What is to be sent now, if anything: whether it is "active".
  using Signal = std::optional<bool>;

  /// The line has changed; `is_message`: there is something in it that is to become a message.
  Signal on_key(bool is_message, std::uint64_t now_ms) {
    if (!is_message) return stop();
    last_key_ms_ = now_ms;
    if (is_active_ && now_ms < said_ms_ + half_refresh_ms) return std::nullopt;
    is_active_ = true;
    said_ms_ = now_ms;
    return true;
  }
  /// The message was sent, which says by itself that nobody is typing any more.
  void on_sent() { is_active_ = false; }
  Signal advance(std::uint64_t now_ms) {
    if (!is_active_ || now_ms < last_key_ms_ + idle_after_ms) return std::nullopt;
    return stop();
  }
  /// When `advance` is to be called.
  std::optional<std::uint64_t> next_deadline() const {
    if (!is_active_) return std::nullopt;
    return last_key_ms_ + idle_after_ms;
  }
  Signal stop() {
    if (!is_active_) return std::nullopt;
    is_active_ = false;
    return false;
  }

 private:
  static constexpr std::uint64_t half_refresh_ms = std::uint64_t{500} * refresh_s;

  bool is_active_ = false;
  std::uint64_t last_key_ms_ = 0;
  std::uint64_t said_ms_ = 0;
};

/// The side that reads.
class ComposingWatcher {
 public:
  void on_signal(bool is_active, std::uint32_t refresh_s, std::uint64_t now_ms) {
    until_ms_.reset();
    if (is_active) until_ms_ = now_ms + std::uint64_t{1000} * refresh_s;
  }
  /// A message came.
  void on_message() { until_ms_.reset(); }
  void advance(std::uint64_t now_ms) {
    if (until_ms_ && now_ms >= *until_ms_) until_ms_.reset();
  }
  bool is_typing() const { return until_ms_.has_value(); }
  std::optional<std::uint64_t> next_deadline() const { return until_ms_; }

 private:
  std::optional<std::uint64_t> until_ms_;
};

}  // namespace program
