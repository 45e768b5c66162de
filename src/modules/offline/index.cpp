// offline/index: see index.hpp.
#include "index.hpp"

#include <algorithm>

namespace modules {

Keeping OfflineIndex::check(const KeptMessage& message, std::uint64_t octets) const {
  if (identities_.count(message.identity) != 0) return Keeping::known;
  const auto user = users_.find(message.user);
  if (user != users_.end() && user->second.size() >= limits_.max_per_user) {
    return Keeping::user_full;
  }
  const auto sender = senders_.find(message.sender);
  if (sender != senders_.end() && sender->second >= limits_.max_per_sender) {
    return Keeping::sender_full;
  }
  if (octets_ + octets + overhead > limits_.max_octets) return Keeping::store_full;
  return Keeping::kept;
}

Keeping OfflineIndex::reserve(KeptMessage& message, std::uint64_t octets, std::int64_t now_s) {
  forget_finished(now_s);
  const Keeping keeping = check(message, octets);
  if (keeping != Keeping::kept) return keeping;
  message.id = new_id(now_s);
  insert(message, octets, false);
  return keeping;
}

/// Not counted from 1 after each start: whoever looks at the spool by hand would mean another
/// message by the same number.
std::uint64_t OfflineIndex::new_id(std::int64_t now_s) {
  last_id_ = std::max(last_id_ + 1, static_cast<std::uint64_t>(now_s) * 1000);
  return last_id_;
}

bool OfflineIndex::adopt(KeptMessage& message, std::uint64_t octets, std::int64_t now_s) {
  if (identities_.count(message.identity) != 0) return false;
  message.id = new_id(now_s);
  insert(message, octets, true);
  return true;
}

void OfflineIndex::restore(const KeptMessage& message, std::uint64_t octets) {
  skip_to(message.id);
  insert(message, octets, true);
}

void OfflineIndex::restore_finished(const std::string& identity, std::int64_t until_s) {
  if (!identities_.emplace(identity, 0).second) return;
  finished_.emplace_back(until_s, identity);
}

void OfflineIndex::insert(const KeptMessage& message, std::uint64_t octets, bool is_written) {
  Entry entry;
  entry.user = message.user;
  entry.sender = message.sender;
  entry.identity = message.identity;
  entry.octets = octets + overhead;
  entry.kept_s = message.kept_s;
  entry.expires_s = message.expires_s;
  entry.is_written = is_written;
  users_[message.user].insert(message.id);
  ++senders_[message.sender];
  identities_[message.identity] = message.id;
  by_expiry_.emplace(message.expires_s, message.id);
  octets_ += entry.octets;
  entries_.emplace(message.id, std::move(entry));
}

void OfflineIndex::commit(std::uint64_t id) {
  if (Entry* entry = find(id)) entry->is_written = true;
}

void OfflineIndex::remove(std::uint64_t id, bool remember, std::int64_t now_s) {
  const auto found = entries_.find(id);
  if (found == entries_.end()) return;
  const Entry& entry = found->second;
  const auto user = users_.find(entry.user);
  user->second.erase(id);
  if (user->second.empty()) users_.erase(user);
  const auto sender = senders_.find(entry.sender);
  if (--sender->second == 0) senders_.erase(sender);
  by_expiry_.erase({entry.expires_s, id});
  octets_ -= entry.octets;
  const std::int64_t until_s = entry.kept_s + remember_s;
  if (remember && until_s > now_s) {
    identities_[entry.identity] = 0;
    finished_.emplace_back(until_s, entry.identity);
    if (finished_.size() > max_finished) forget_finished(finished_.front().first);
  } else {
    identities_.erase(entry.identity);
  }
  entries_.erase(found);
}

OfflineIndex::Entry* OfflineIndex::find(std::uint64_t id) {
  const auto found = entries_.find(id);
  return found == entries_.end() ? nullptr : &found->second;
}

const OfflineIndex::Entry* OfflineIndex::find(std::uint64_t id) const {
  const auto found = entries_.find(id);
  return found == entries_.end() ? nullptr : &found->second;
}

std::optional<std::uint64_t> OfflineIndex::being_written(const std::string& identity) const {
  const auto found = identities_.find(identity);
  if (found == identities_.end() || found->second == 0) return std::nullopt;
  if (entries_.at(found->second).is_written) return std::nullopt;
  return found->second;
}

std::uint64_t OfflineIndex::next(const std::string& user, std::uint64_t phone) const {
  const auto found = users_.find(user);
  if (found == users_.end()) return 0;
  for (const std::uint64_t id : found->second) {
    const Entry& entry = entries_.at(id);
    const bool is_refused = entry.refused_by != 0 && entry.refused_by == phone;
    if (!is_refused && !entry.is_held) return id;
  }
  return 0;
}

std::vector<std::uint64_t> OfflineIndex::take_expired(std::int64_t now_s) {
  std::vector<std::uint64_t> expired;
  for (auto it = by_expiry_.begin(); it != by_expiry_.end() && it->first <= now_s;) {
    const Entry& entry = entries_.at(it->second);
    // What is in somebody's hands is left until he is through with it.
    if (entry.is_held || !entry.is_written) {
      ++it;
      continue;
    }
    expired.push_back(it->second);
    it = by_expiry_.erase(it);
  }
  return expired;
}

std::optional<std::int64_t> OfflineIndex::next_expiry_s() const {
  if (by_expiry_.empty()) return std::nullopt;
  return by_expiry_.begin()->first;
}

void OfflineIndex::forget_finished(std::int64_t now_s) {
  // In the order they were finished, which is not quite that of their ends; a few may stay longer.
  while (!finished_.empty() && finished_.front().first <= now_s) {
    const auto found = identities_.find(finished_.front().second);
    if (found != identities_.end() && found->second == 0) identities_.erase(found);
    finished_.pop_front();
  }
}

}  // namespace modules
