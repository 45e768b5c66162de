// offline/index: which messages are kept for whom, in what order, until when, and how many may be.
//
// Of each message only what must be known to decide is here, not its body: some 500 octets. There
// are no files and no clock in it, times are arguments: seconds since 1970. A message has its place
// in the order from `reserve` on, while it is still being written; `commit` makes it one that may
// be delivered.
// What a request was is remembered for a minute after its message is gone: a sender whose answer
// was lost repeats the request for 64*T1 (RFC 3261 17.1.2.2), and the server may have been started
// anew in between, knowing nothing of its transactions.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "message.hpp"

namespace modules {

struct OfflineLimits {
  std::size_t max_per_user = 100;
  std::size_t max_per_sender = 1000;
  std::uint64_t max_octets = 67108864;  ///< each message counts as its file, and `overhead` more
};

/// What becomes of a message that is to be kept.
enum class Keeping : std::uint8_t {
  kept,
  known,        ///< it is kept already, or was a moment ago: this is a repetition
  user_full,    ///< max_per_user
  sender_full,  ///< max_per_sender
  store_full,   ///< max_octets
  failed,       ///< it could not be written
};

class OfflineIndex {
 public:
  /// What a message counts beyond its file: its place in here.
  static constexpr std::uint64_t overhead = 512;
  /// For how long a repetition is recognised after the message is gone.
  static constexpr std::int64_t remember_s = 60;

  struct Entry {
    std::string user;
    std::string sender;
    std::string identity;
    std::uint64_t octets = 0;
    std::int64_t kept_s = 0;
    std::int64_t expires_s = 0;
    bool is_written = false;       ///< false: not accepted yet
    bool is_held = false;          ///< being delivered: neither expires nor is given out again
    std::uint64_t refused_by = 0;  ///< the phone that will never take it; 0: none said so
  };

  explicit OfflineIndex(const OfflineLimits& limits = {}) : limits_(limits) {}

  /// A place for a message, which gets its id; `octets` is the size of its file. `kept`, or why
  /// not.
  Keeping reserve(KeptMessage& message, std::uint64_t octets, std::int64_t now_s);
  /// One that another store has accepted, so that no limit applies; it gets its id here. False
  /// where it is known.
  bool adopt(KeptMessage& message, std::uint64_t octets, std::int64_t now_s);
  /// A message found at the start. No limit applies: it was accepted.
  void restore(const KeptMessage& message, std::uint64_t octets);
  /// What was delivered before the start, so that its repetition is recognised.
  void restore_finished(const std::string& identity, std::int64_t until_s);
  /// Keeps ids above this one.
  void skip_to(std::uint64_t id) { last_id_ = std::max(last_id_, id); }

  /// The message with that id is accepted.
  void commit(std::uint64_t id);
  /// It is gone. `remember`: and was accepted, so a repetition of its request is answered as it
  /// was.
  void remove(std::uint64_t id, bool remember, std::int64_t now_s);

  /// Null where there is none. Lifetime: until it is removed.
  Entry* find(std::uint64_t id);
  const Entry* find(std::uint64_t id) const;
  /// The message of a request that is being written, whose repetition must wait for it as well.
  std::optional<std::uint64_t> being_written(const std::string& identity) const;
  /// The user's first message to be offered to that phone, 0 for none: not what the phone has
  /// refused for good, nor what is being held. One that is being written still counts.
  std::uint64_t next(const std::string& user, std::uint64_t phone) const;
  bool has(const std::string& user) const { return users_.count(user) != 0; }
  /// Ids of messages whose time is over, each once: the caller removes them.
  std::vector<std::uint64_t> take_expired(std::int64_t now_s);
  /// When the next one expires; nothing where none will.
  std::optional<std::int64_t> next_expiry_s() const;
  void forget_finished(std::int64_t now_s);

  std::size_t size() const { return entries_.size(); }
  std::uint64_t octets() const { return octets_; }

 private:
  using Ids = std::set<std::uint64_t>;

  /// More than arrive in a minute, and a bound for a flood.
  static constexpr std::size_t max_finished = 100000;

  Keeping check(const KeptMessage& message, std::uint64_t octets) const;
  std::uint64_t new_id(std::int64_t now_s);
  void insert(const KeptMessage& message, std::uint64_t octets, bool is_written);

  // Trees, as names come from outside: nobody can choose some that make these slow.
  OfflineLimits limits_;
  std::map<std::uint64_t, Entry> entries_;
  std::map<std::string, Ids> users_;
  std::map<std::string, std::size_t> senders_;
  std::map<std::string, std::uint64_t> identities_;  ///< 0: of a message that is gone
  std::set<std::pair<std::int64_t, std::uint64_t>> by_expiry_;
  std::deque<std::pair<std::int64_t, std::string>> finished_;  ///< until when, whose
  std::uint64_t octets_ = 0;
  std::uint64_t last_id_ = 0;
};

}  // namespace modules
