// timer: deadlines in queues by duration, in anybody's time.
//
// All SIP timers of one kind last equally long, so whichever of them was started first also fires
// first: each duration is one first-in-first-out queue, and the earliest of the few heads is the
// next deadline of all. Starting and cancelling cost the same however many timers run, and there
// is neither heap nor wheel. The timers stand in the objects they belong to and allocate nothing.
// Left out on purpose: a clock. `now_ms` comes from the caller, counts milliseconds from any start,
// and may jump ahead by hours.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "config.hpp"

namespace sipmsg {

/// One timer, part of the object it belongs to. Stops when it is destroyed; stays where it is.
class Timer {
 public:
  /// For the owner to know the timer by when it fires: the owner's number, and which timer of its.
  explicit Timer(std::uint32_t owner_index = 0, std::uint8_t timer_kind = 0)
      : owner(owner_index), kind(timer_kind) {}
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;
  ~Timer() { cancel(); }

  bool is_running() const { return next_ != this; }
  /// When it fires, or fired last.
  std::uint64_t deadline_ms() const { return deadline_ms_; }
  /// Stops it; nothing happens where it does not run.
  void cancel() {
    previous_->next_ = next_;
    next_->previous_ = previous_;
    previous_ = next_ = this;
  }

  std::uint32_t owner;
  std::uint8_t kind;

 private:
  friend class TimerQueue;
  Timer* previous_ = this;  // a ring: a timer that does not run is alone in its own
  Timer* next_ = this;
  std::uint64_t deadline_ms_ = 0;
};

/// All running timers of one duration, in the order in which they fire. Must outlive them.
class TimerQueue {
 public:
  /// `duration_ms` of 0 counts as 1: a timer never fires in the instant it is started, so that
  /// callbacks that start timers come to an end.
  explicit TimerQueue(std::uint64_t duration_ms)
      : duration_ms_(duration_ms == 0 ? 1 : duration_ms) {}

  std::uint64_t duration_ms() const { return duration_ms_; }

  /// Starts the timer, or starts it anew, to fire `duration_ms()` after `now_ms`.
  void start(Timer& timer, std::uint64_t now_ms) {
    timer.cancel();
    Timer& last = *ring_.previous_;
    timer.deadline_ms_ = now_ms + duration_ms_;
    // Time that went backwards would put the queue out of order.
    if (&last != &ring_ && timer.deadline_ms_ < last.deadline_ms_) {
      timer.deadline_ms_ = last.deadline_ms_;
    }
    timer.previous_ = &last;
    timer.next_ = &ring_;
    last.next_ = ring_.previous_ = &timer;
  }

  /// The timer that fires next, null where none runs.
  Timer* first() { return ring_.is_running() ? ring_.next_ : nullptr; }

 private:
  std::uint64_t duration_ms_;
  Timer ring_;  ///< the queue is a ring through this one, which itself never fires
};

/// The queues of one owner, as many as it has durations: a handful.
class Timers {
 public:
  /// The queue for that duration, made where there is none yet; ask once and keep it. The
  /// reference lives as long as this. Of timers with one deadline those fire first whose queue was
  /// made first.
  TimerQueue& queue(std::uint64_t duration_ms) {
    for (const auto& queue : queues_) {
      if (queue->duration_ms() == (duration_ms == 0 ? 1 : duration_ms)) return *queue;
    }
    queues_.push_back(std::make_unique<TimerQueue>(duration_ms));
    return *queues_.back();
  }

  /// Stops every timer whose deadline has come and calls `fire(Timer&)` on it, earliest first.
  /// `fire` may start, cancel and destroy any timer, the one that fires included, and may advance.
  template <class Fire>
  void advance(std::uint64_t now_ms, Fire fire) {
    while (Timer* timer = earliest()) {
      if (timer->deadline_ms() > now_ms) return;
      timer->cancel();
      fire(*timer);
    }
  }

  /// When `advance` has something to do next; nothing where no timer runs.
  std::optional<std::uint64_t> next_deadline() const {
    const Timer* timer = earliest();
    if (timer == nullptr) return std::nullopt;
    return timer->deadline_ms();
  }

 private:
  Timer* earliest() const {
    Timer* earliest = nullptr;
    for (const auto& queue : queues_) {
      Timer* first = queue->first();
      if (first == nullptr) continue;
      if (earliest == nullptr || first->deadline_ms() < earliest->deadline_ms()) earliest = first;
    }
    return earliest;
  }

  std::vector<std::unique_ptr<TimerQueue>> queues_;
};

}  // namespace sipmsg
