// offline/store: see store.hpp.
#include "store.hpp"

#include <utility>

namespace modules {

namespace {

using sipmsg::Error;
using sipmsg::Severity;

/// What a thread of the pool found out.
struct Read {
  std::optional<KeptMessage> message;
  Unreadable unreadable;  ///< where there is none
};

struct OpenedSpool {
  SpoolContents contents;
  std::string unusable;
};

sipmsg::OffloadOptions offload_options() {
  sipmsg::OffloadOptions options;
  // What is kept is limited otherwise, and what was delivered must be marked as such.
  options.max_jobs = SIZE_MAX;
  options.max_running = 3;  // the pool has four threads, for everybody
  return options;
}

}  // namespace

std::string name_for_log(std::string_view user) {
  constexpr std::size_t longest = 60;
  const std::string line = on_one_line(user.substr(0, longest));
  return "\"" + line + (user.size() > longest ? "...\"" : "\"");
}

OfflineStore::OfflineStore(sipmsg::Loop& loop, OfflineOptions options, sipmsg::LogHandler log,
                           FileOperations& files)
    : options_(std::move(options)),
      log_(std::move(log)),
      index_(options_.limits),
      order_key_(sipmsg::random_secret().value()),
      offload_(loop, offload_options()) {
  if (!options_.spool.empty()) spool_ = std::make_shared<Spool>(options_.spool, files);
}

void OfflineStore::log(Severity severity, const std::string& text) const {
  if (log_) log_(severity, text);
}

/// Has work done in the pool, in the order of that user's other work. `report(Error, value)`: the
/// error is set where the store is closed before.
template <class Work, class Report>
void OfflineStore::run(const std::string& user, Work work, Report report) {
  const std::uint64_t key = sipmsg::SipHash::of(order_key_, user);
  // Refused only after `close`, when nobody waits for an answer any more.
  static_cast<void>(offload_.run(key, std::move(work), std::move(report)));
}

// ---- opening

void OfflineStore::open(std::int64_t now_s, Opened opened) {
  const auto work = [spool = spool_, patience_ms = options_.lock_patience_ms] {
    OpenedSpool result;
    if (spool) result.contents = spool->open(patience_ms, result.unusable);
    return result;
  };
  const auto report = [this, now_s, opened = std::move(opened)](Error error, OpenedSpool result) {
    if (error) return;
    if (result.unusable.empty()) {
      restore(std::move(result.contents), now_s);
    } else {
      log(Severity::error, result.unusable);
    }
    opened(result.unusable.empty());
  };
  run("", work, report);
}

void OfflineStore::restore(SpoolContents contents, std::int64_t now_s) {
  for (const std::string& remark : contents.remarks) log(Severity::warning, remark);
  if (contents.left_alone > SpoolContents::max_remarks) {
    log(Severity::warning, options_.spool + ": " + std::to_string(contents.left_alone) +
                               " files in all that are not messages of this spool");
  }
  for (const KeptMessage& message : contents.finished) {
    const std::int64_t until_s = message.kept_s + OfflineIndex::remember_s;
    if (until_s > now_s) index_.restore_finished(message.identity, until_s);
    index_.skip_to(message.id);
    forget_later(message.id, until_s);
  }
  for (const SpoolContents::Kept& kept : contents.kept) index_.restore(kept.message, kept.octets);
  forget_some(now_s);
  if (spool_) {
    log(Severity::info, options_.spool + ": " + std::to_string(index_.size()) + " messages kept");
  }
}

// ---- keeping

Keeping OfflineStore::keep(KeptMessage message, std::int64_t now_s, Kept kept) {
  if (is_closed_ || writing_ >= options_.max_writing) return Keeping::failed;
  if (const auto id = index_.being_written(message.identity)) {
    waiting_.emplace(*id, std::move(kept));
    return Keeping::kept;
  }
  const Keeping keeping = index_.reserve(message, to_file_text(message).size(), now_s);
  if (keeping != Keeping::kept) return keeping;
  const std::uint64_t id = message.id;
  const std::string user = message.user;
  waiting_.emplace(id, std::move(kept));
  ++writing_;
  if (!spool_) in_memory_[id] = message;

  const auto is_committed = std::make_shared<std::atomic<bool>>(false);
  const auto work = [spool = spool_, message = std::move(message), is_committed] {
    return spool ? spool->write(message, *is_committed) : Error();
  };
  const auto report = [this, id, now_s, is_committed](Error error, Error failure) {
    // Where the store is closed meanwhile, the thread may have come to its end all the same.
    const bool is_kept = error ? is_committed->load() : !failure;
    if (failure) log(Severity::error, options_.spool + ": " + sipmsg::describe(failure));
    written(id, is_kept, now_s);
  };
  run(user, work, report);
  return Keeping::kept;
}

void OfflineStore::written(std::uint64_t id, bool is_kept, std::int64_t now_s) {
  --writing_;
  if (is_kept) {
    index_.commit(id);
  } else {
    index_.remove(id, false, now_s);
    in_memory_.erase(id);
  }
  const auto range = waiting_.equal_range(id);
  std::vector<Kept> told;
  for (auto it = range.first; it != range.second; ++it) told.push_back(std::move(it->second));
  waiting_.erase(range.first, range.second);
  for (const Kept& kept : told) kept(is_kept);
}

void OfflineStore::adopt(KeptMessage message, std::int64_t now_s) {
  if (!index_.adopt(message, to_file_text(message).size(), now_s)) return;
  const std::uint64_t id = message.id;
  in_memory_[id] = message;
  if (!spool_) return;
  const std::string user = message.user;
  const auto is_committed = std::make_shared<std::atomic<bool>>(false);
  const auto work = [spool = spool_, message = std::move(message), is_committed] {
    return spool->write(message, *is_committed);
  };
  const auto report = [this, id, is_committed](Error, Error failure) {
    if (*is_committed) in_memory_.erase(id);
    if (!failure) return;
    log(Severity::error, options_.spool + ": " + sipmsg::describe(failure) + ": message " +
                             spool_id_text(id) + " stays in memory");
  };
  run(user, work, report);
}

// ---- giving out

bool OfflineStore::is_written(std::uint64_t id) const {
  const OfflineIndex::Entry* entry = index_.find(id);
  return entry != nullptr && entry->is_written;
}

void OfflineStore::take(std::uint64_t id, Taken taken) {
  OfflineIndex::Entry* entry = index_.find(id);
  std::string user;
  if (entry != nullptr) {
    entry->is_held = true;
    user = entry->user;
  }
  Read in_memory;
  if (const auto found = in_memory_.find(id); found != in_memory_.end()) {
    in_memory.message = found->second;
  }
  const auto work = [spool = spool_, id, in_memory = std::move(in_memory)]() mutable {
    if (!in_memory.message && spool) in_memory.message = spool->read(id, in_memory.unreadable);
    return std::move(in_memory);
  };
  const auto report = [this, id, taken = std::move(taken)](Error error, Read read) {
    if (error) return taken(std::nullopt);
    if (!read.message) report_unreadable(id, read.unreadable);
    taken(std::move(read.message));
  };
  run(user, work, report);
}

void OfflineStore::report_unreadable(std::uint64_t id, const Unreadable& unreadable) {
  const std::string what = "message " + spool_id_text(id);
  switch (unreadable.kind) {
    case Unreadable::Kind::gone: log(Severity::info, what + " was removed by hand"); break;
    case Unreadable::Kind::broken:
      log(Severity::warning, what + ": " + unreadable.why + "; left alone");
      break;
    case Unreadable::Kind::for_now:  // too many open files, the disk: its sender was told 202
      log(Severity::error, what + ": " + unreadable.why + "; tried again later");
      return give_back(id);
  }
  index_.remove(id, true, 0);
}

void OfflineStore::give_back(std::uint64_t id, std::uint64_t refused_by) {
  OfflineIndex::Entry* entry = index_.find(id);
  if (entry == nullptr) return;
  entry->is_held = false;
  if (refused_by != 0) entry->refused_by = refused_by;
}

void OfflineStore::finish(std::uint64_t id, std::int64_t now_s, Finished finished) {
  const OfflineIndex::Entry* entry = index_.find(id);
  const std::string user = entry == nullptr ? std::string() : entry->user;
  const std::int64_t until_s = (entry == nullptr ? 0 : entry->kept_s) + OfflineIndex::remember_s;
  const bool remember = until_s > now_s;
  index_.remove(id, true, now_s);
  in_memory_.erase(id);
  const auto work = [spool = spool_, id, remember] {
    return spool ? spool->finish(id, remember) : Error();
  };
  const auto report = [this, id, remember, until_s, finished = std::move(finished)](Error error,
                                                                                    Error failure) {
    if (failure) {
      log(Severity::error, options_.spool + ": " + sipmsg::describe(failure) + ": message " +
                               spool_id_text(id) + " may be delivered again after a restart");
    }
    if (spool_ && remember) forget_later(id, until_s);
    finished(!error && !failure);
  };
  run(user, work, report);
}

// ---- time

void OfflineStore::expire(std::int64_t now_s, const Use& use) {
  forget_some(now_s);
  for (const std::uint64_t id : index_.take_expired(now_s)) {
    log(Severity::info, "message " + spool_id_text(id) + " for " +
                            name_for_log(index_.find(id)->user) + " expired, undelivered");
    const auto drop = [this, id, now_s, use](std::optional<KeptMessage> message) {
      if (is_closed_ || index_.find(id) == nullptr) return;
      if (message && use) use(*message);
      finish(id, now_s, [](bool) {});
    };
    take(id, drop);
  }
}

std::int64_t OfflineStore::next_deadline_s(std::int64_t now_s) const {
  std::int64_t deadline_s = index_.next_expiry_s().value_or(INT64_MAX);
  if (!to_forget_.empty()) deadline_s = std::min(deadline_s, to_forget_.begin()->first);
  // One that is due and cannot go yet must not be asked for in every turn of the loop.
  return std::max(deadline_s, now_s + 1);
}

void OfflineStore::forget_later(std::uint64_t id, std::int64_t until_s) {
  if (!is_closed_) to_forget_.emplace(until_s, id);
}

/// Removes `.done` files that have served their time.
void OfflineStore::forget_some(std::int64_t now_s) {
  std::vector<std::uint64_t> ids;
  while (!to_forget_.empty() && to_forget_.begin()->first <= now_s) {
    ids.push_back(to_forget_.begin()->second);
    to_forget_.erase(to_forget_.begin());
  }
  index_.forget_finished(now_s);
  if (ids.empty()) return;
  const auto work = [spool = spool_, ids = std::move(ids)] {
    for (const std::uint64_t id : ids) spool->forget(id);
  };
  run("", work, [](Error) {});
}

// ---- the end

void OfflineStore::close() {
  if (std::exchange(is_closed_, true)) return;
  if (spool_) spool_->stop();
  offload_.close();
}

std::vector<KeptMessage> OfflineStore::take_all() {
  std::vector<KeptMessage> messages;
  for (auto& kept : in_memory_) messages.push_back(std::move(kept.second));
  in_memory_.clear();
  return messages;
}

}  // namespace modules
