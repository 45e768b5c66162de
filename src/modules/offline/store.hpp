// offline/store: messages that are kept for their users: what is where, and who may write when.
//
// One interface over two places: the spool, where a message outlives the process, and memory, where
// no spool is set. The index says what there is and what more may come; whatever waits for a disk
// runs in libuv's pool, where the operations for one user keep their order. Who is sent what, and
// what a sender is answered, is for `offline` to decide.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "index.hpp"
#include "sipmsg.hpp"
#include "spool.hpp"

namespace modules {

struct OfflineOptions {
  std::string spool;  ///< the directory; empty: memory
  OfflineLimits limits;
  std::size_t max_writing = 1000;  ///< messages on their way to the disk at a time
  unsigned lock_patience_ms = 2000;
};

/// Belongs to the loop's thread. Callbacks come once, later, and never from inside the call they
/// were given to, but for `close`, which ends what is waiting.
class OfflineStore {
 public:
  using Done = std::function<void()>;
  /// Whether there is a store now; where not, the log says why.
  using Opened = std::function<void(bool is_usable)>;
  /// Whether the message is kept.
  using Kept = std::function<void(bool is_kept)>;
  /// Nothing where the message is gone, or is none any more, or cannot be read at the moment; then
  /// it is still there, and given back.
  using Taken = std::function<void(std::optional<KeptMessage>)>;
  using Use = std::function<void(const KeptMessage&)>;
  /// Whether the disk has it.
  using Finished = std::function<void(bool is_safe)>;

  /// `loop` and `files` outlive this.
  OfflineStore(sipmsg::Loop& loop, OfflineOptions options, sipmsg::LogHandler log,
               FileOperations& files = real_files());
  ~OfflineStore() { close(); }
  OfflineStore(const OfflineStore&) = delete;
  OfflineStore& operator=(const OfflineStore&) = delete;

  /// To be called once, before everything else.
  void open(std::int64_t now_s, Opened opened);

  /// Keeps a message, which gets its id. `Keeping::kept`: `kept` will say whether it is. Everything
  /// else is the answer now, and `kept` is not called.
  Keeping keep(KeptMessage message, std::int64_t now_s, Kept kept);

  /// Takes over a message that another store has accepted, whatever the limits are by now. Where a
  /// spool cannot take it, it stays in memory.
  void adopt(KeptMessage message, std::int64_t now_s);

  bool has(const std::string& user) const { return index_.has(user); }
  /// See OfflineIndex. A message that is not written yet cannot be taken.
  std::uint64_t next(const std::string& user, std::uint64_t phone) const {
    return index_.next(user, phone);
  }
  bool is_written(std::uint64_t id) const;

  /// Reads a message, and holds it: it does not expire until `give_back` or `finish`.
  void take(std::uint64_t id, Taken taken);
  /// It was not delivered and stays; that phone, where it is not 0, will never take it.
  void give_back(std::uint64_t id, std::uint64_t refused_by = 0);
  /// It was delivered. In memory it is gone at once.
  void finish(std::uint64_t id, std::int64_t now_s, Finished finished);

  /// Removes what nobody came for in time, and says so in the log; `use`, where not null, is shown
  /// each such message.
  void expire(std::int64_t now_s, const Use& use);
  /// When to call that again.
  std::int64_t next_deadline_s(std::int64_t now_s) const;

  std::size_t size() const { return index_.size(); }

  /// Ends everything: messages that wait to be kept are told whether they are.
  void close();
  /// Everything that is kept in memory, for a store that takes this one's place. To be called after
  /// `close`.
  std::vector<KeptMessage> take_all();

 private:
  void restore(SpoolContents contents, std::int64_t now_s);
  void written(std::uint64_t id, bool is_kept, std::int64_t now_s);
  void forget_later(std::uint64_t id, std::int64_t until_s);
  void forget_some(std::int64_t now_s);
  template <class Work, class Report>
  void run(const std::string& user, Work work, Report report);
  void report_unreadable(std::uint64_t id, const Unreadable& unreadable);
  void log(sipmsg::Severity severity, const std::string& text) const;

  OfflineOptions options_;
  sipmsg::LogHandler log_;
  std::shared_ptr<Spool> spool_;  ///< null in memory; jobs in the pool hold it, too
  OfflineIndex index_;
  std::map<std::uint64_t, KeptMessage> in_memory_;        ///< what has no file
  std::multimap<std::uint64_t, Kept> waiting_;            ///< for a message that is being written
  std::multimap<std::int64_t, std::uint64_t> to_forget_;  ///< `.done` files, by their end
  std::size_t writing_ = 0;
  sipmsg::SipHashKey order_key_;
  sipmsg::Offload offload_;
  bool is_closed_ = false;
};

/// A user's name for a log line: quoted, short, without anything a terminal would obey.
std::string name_for_log(std::string_view user);

}  // namespace modules
