// auto_reply: whom an automatic answer may go to, so that two programs never answer each other
// without end.
//
// Three things together: an answer says that nobody wrote it (Auto-Submitted, RFC 3834 5), and is
// not answered by those who look; nobody is answered more often than once in ten seconds, for those
// who do not look; and never is anybody answered who has our own address.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace program {

class AutoReplyLimit {
 public:
  static constexpr std::uint64_t interval_ms = 10000;
  /// How many peers are remembered; beyond it nobody new is answered until one is forgotten.
  static constexpr std::size_t max_peers = 1000;

  /// Whether this peer may be answered now, which is remembered then.
  bool allows(const std::string& peer, std::uint64_t now_ms) {
    for (auto it = answered_ms_.begin(); it != answered_ms_.end();) {
      it = now_ms - it->second >= interval_ms ? answered_ms_.erase(it) : ++it;
    }
    if (answered_ms_.size() >= max_peers) return false;
    return answered_ms_.emplace(peer, now_ms).second;
  }

 private:
  std::map<std::string, std::uint64_t> answered_ms_;
};

}  // namespace program
