// offload: work on libuv's thread pool, with a typed result, and in order where order matters.
//
// A handler that asks a database must not hold up the loop. `run` moves a function to the pool and
// brings what it returned back to the loop's thread. Jobs of one key are done one after another, in
// the order they were given, and report in that order; that is how messages from one sender to one
// recipient stay in line. Jobs of different keys do not wait for each other, and how many may wait
// in all is bounded.
//
// The pool is libuv's: one for the whole process, four threads unless UV_THREADPOOL_SIZE says
// otherwise, shared with name resolution and files. Jobs wait here and not in its queue, so that
// others get their turn. Work that has begun cannot be stopped.
#pragma once

#include <uv.h>

#include <cstdint>
#include <memory>
#include <type_traits>
#include <utility>

#include "loop.hpp"
#include "pool.hpp"

namespace sipmsg {

struct OffloadOptions {
  std::size_t max_jobs = 1000;  ///< given and not done yet; more are refused
  std::size_t max_running = 4;  ///< given to the pool at the same time
};

namespace detail {

class OffloadCore;

/// One job. `work` is for a thread of the pool, everything else for the loop's.
class OffloadJob {
 public:
  virtual ~OffloadJob() = default;
  virtual void work() = 0;
  virtual void report(Error error) = 0;

  uv_work_t request;
  std::shared_ptr<OffloadCore> core;  ///< while the pool has it
  OffloadJob* next = nullptr;         ///< of its lane
  std::uint32_t lane = HashIndex::npos;
  std::uint64_t key = 0;
  bool has_reported = false;
};

template <class Work, class Done>
class TypedOffloadJob final : public OffloadJob {
 public:
  using Value = std::invoke_result_t<Work&>;

  TypedOffloadJob(Work&& work, Done&& done) : work_(std::move(work)), done_(std::move(done)) {}
  void work() override {
    if constexpr (std::is_void_v<Value>) {
      work_();
    } else {
      value_ = work_();
    }
  }
  void report(Error error) override {
    if constexpr (std::is_void_v<Value>) {
      done_(error);
    } else if (error) {
      done_(error, Value{});  // not value_, which the pool may be writing at this moment
    } else {
      done_(error, std::move(value_));
    }
  }

 private:
  struct Nothing {};

  Work work_;
  Done done_;
  std::conditional_t<std::is_void_v<Value>, Nothing, Value> value_{};
};

/// All jobs of one Offload, until the pool has given back the last.
class OffloadCore : public std::enable_shared_from_this<OffloadCore> {
 public:
  OffloadCore(std::shared_ptr<LoopCore> loop, const OffloadOptions& options)
      : loop_(std::move(loop)), options_(options) {}

  Error add(std::unique_ptr<OffloadJob> job);
  void close();
  bool is_closed() const { return closed_; }
  std::size_t size() const { return jobs_; }

 private:
  /// The jobs of one key: the first may be running, the others wait for it. Lanes whose first job
  /// could run wait in a queue of their own.
  struct Lane {
    OffloadJob* first = nullptr;
    OffloadJob* last = nullptr;
    std::uint32_t next = HashIndex::npos;  ///< in the queue of lanes
  };

  std::uint32_t lane_of(std::uint64_t key);
  void append(std::uint32_t lane);
  void start_some();
  void start(OffloadJob& job);
  void finish(OffloadJob& job);

  std::shared_ptr<LoopCore> loop_;
  OffloadOptions options_;
  Slab<Lane> lanes_;
  HashIndex by_key_;
  std::uint32_t first_ready_ = HashIndex::npos;
  std::uint32_t last_ready_ = HashIndex::npos;
  std::size_t jobs_ = 0;
  std::size_t running_ = 0;
  bool closed_ = false;
};

inline Error OffloadCore::add(std::unique_ptr<OffloadJob> job) {
  if (closed_ || loop_->is_closed()) return ErrorCode::closed;
  if (jobs_ >= options_.max_jobs) return ErrorCode::limit_reached;
  ++jobs_;
  job->lane = lane_of(job->key);
  Lane& lane = lanes_.at(job->lane);
  OffloadJob* added = job.release();  // owned by its lane
  const bool was_empty = lane.first == nullptr;
  (was_empty ? lane.first : lane.last->next) = added;
  lane.last = added;
  if (was_empty) append(added->lane);
  start_some();
  return {};
}

inline std::uint32_t OffloadCore::lane_of(std::uint64_t key) {
  std::uint32_t lane = by_key_.find(
      key, [&](std::uint32_t candidate) { return lanes_.at(candidate).first->key == key; });
  if (lane == HashIndex::npos) {
    lane = lanes_.create().index;
    by_key_.insert(key, lane);
  }
  return lane;
}

/// Puts a lane at the end of those that have a job to run.
inline void OffloadCore::append(std::uint32_t lane) {
  lanes_.at(lane).next = HashIndex::npos;
  (first_ready_ == HashIndex::npos ? first_ready_ : lanes_.at(last_ready_).next) = lane;
  last_ready_ = lane;
}

inline void OffloadCore::start_some() {
  while (running_ < options_.max_running && first_ready_ != HashIndex::npos) {
    Lane& lane = lanes_.at(first_ready_);
    first_ready_ = lane.next;
    start(*lane.first);
  }
}

inline void OffloadCore::start(OffloadJob& job) {
  ++running_;
  job.core = shared_from_this();
  job.request.data = &job;
  // Fails only without a function to call.
  uv_queue_work(
      loop_->loop(), &job.request,
      [](uv_work_t* request) { static_cast<OffloadJob*>(request->data)->work(); },
      [](uv_work_t* request, int) {
        auto& done = *static_cast<OffloadJob*>(request->data);
        const std::shared_ptr<OffloadCore> core = std::move(done.core);
        core->finish(done);
      });
}

/// A job has come back from the pool: done, or, where `close` could take it back, reported before.
inline void OffloadCore::finish(OffloadJob& job) {
  const std::unique_ptr<OffloadJob> owned(&job);
  if (job.has_reported) return;
  --running_;
  --jobs_;
  // The lane goes on first, for the report may do anything. The next job cannot overtake this one:
  // it reports in a later turn of the loop.
  const std::uint32_t index = job.lane;
  Lane& lane = lanes_.at(index);
  lane.first = job.next;
  if (lane.first != nullptr) {
    append(index);
  } else {
    by_key_.erase(job.key, index);
    lanes_.destroy(lanes_.handle_of(index));
  }
  start_some();
  job.report({});
}

inline void OffloadCore::close() {
  if (std::exchange(closed_, true)) return;
  const auto self = shared_from_this();  // reports may destroy the owner
  OffloadJob* first = nullptr;
  OffloadJob** end = &first;
  lanes_.for_each([&](Handle handle, Lane& lane) {
    *end = lane.first;
    while (*end != nullptr) end = &(*end)->next;
    lanes_.destroy(handle);
  });
  jobs_ = running_ = 0;
  while (first != nullptr) {
    OffloadJob* job = std::exchange(first, first->next);
    const bool pool_has_it = job->core != nullptr;
    job->has_reported = true;
    if (pool_has_it) uv_cancel(reinterpret_cast<uv_req_t*>(&job->request));
    job->report(ErrorCode::cancelled);
    if (!pool_has_it) delete job;
  }
}

}  // namespace detail

/// Runs functions on the thread pool. Everything but the functions themselves belongs to the loop's
/// thread. May be destroyed at any time, inside a report too.
///
///     offload.run(key, [text] { return look_up(text); },
///                 [](sipmsg::Error error, std::string found) { ... });
class Offload {
 public:
  explicit Offload(Loop& loop, const OffloadOptions& options = {})
      : core_(std::make_shared<detail::OffloadCore>(loop.core(), options)) {}
  ~Offload() { close(); }
  Offload(const Offload&) = delete;
  Offload& operator=(const Offload&) = delete;

  /// Has `work()` called on a thread of the pool and then `done(error, value)` on the loop's
  /// thread, with what `work` returned; `done(error)` where it returns nothing. Jobs of one `key`
  /// run and report one after another; make keys with a SipHash where they come from outside.
  ///
  /// `work` must own what it uses: it may outlive everything but the loop. What it returns must be
  /// movable and have a default constructor. `done` is called exactly once, never inside this call:
  /// without error, or with `cancelled` and a default value from inside `close`.
  /// Errors, after which `done` is not called: `limit_reached`, `closed`.
  template <class Work, class Done>
  Error run(std::uint64_t key, Work work, Done done) {
    auto job =
        std::make_unique<detail::TypedOffloadJob<Work, Done>>(std::move(work), std::move(done));
    job->key = key;
    return core_->add(std::move(job));
  }
  /// The same for work whose order does not matter.
  template <class Work, class Done>
  Error run(Work work, Done done) {
    return run(--unordered_, std::move(work), std::move(done));
  }

  /// Jobs given and not reported yet.
  std::size_t size() const { return core_->size(); }

  /// Reports everything that is not done as `cancelled`, before it returns. Work that has begun
  /// goes on, and the loop runs until it is through; what it returns is dropped.
  void close() { core_->close(); }

 private:
  std::shared_ptr<detail::OffloadCore> core_;
  std::uint64_t unordered_ = 0;
};

}  // namespace sipmsg
