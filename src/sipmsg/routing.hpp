// routing: who exists here, and the chain of handlers that decides where a message goes.
//
// A MESSAGE that may be routed is offered to the handlers in ascending priority, ties in the order
// of installation (Yate's call.route with route_type=msg). The first verdict other than `next`
// ends the walk. The walk can be left and taken up again, so that a handler may answer later.
// The users' own bindings are looked up by such a handler too, at priority 100: one at 50 comes
// before it.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "hash.hpp"
#include "message.hpp"
#include "pool.hpp"
#include "settings.hpp"

namespace sipmsg {

/// Whether a user may call itself so: by its name or one of its alternatives.
inline bool answers_to(const UserSettings& user, std::string_view name) {
  if (user.name == name) return true;
  return std::find(user.alternatives.begin(), user.alternatives.end(), name) !=
         user.alternatives.end();
}

/// All users, found by name. Names compare octet by octet, case included, as in Yate.
class UserDirectory {
 public:
  /// `key`: secret, so that nobody can choose names that collide in the tables.
  explicit UserDirectory(const SipHashKey& key = {}) : key_(key) {}

  /// The first of two users with one name stays.
  void add(UserSettings user) {
    if (find(user.name) != nullptr) return;
    const auto number = static_cast<std::uint32_t>(users_.size());
    by_name_.insert(SipHash::of(key_, user.name), number);
    for (const std::string& name : user.alternatives) {
      if (name != user.name) add_alternative(name, number);
    }
    users_.push_back(std::move(user));
  }

  /// Null where there is none. Lifetime: until users are added or the directory is gone.
  const UserSettings* find(std::string_view name) const {
    const std::uint32_t number = by_name_.find(
        SipHash::of(key_, name), [&](std::uint32_t n) { return users_[n].name == name; });
    return number == HashIndex::npos ? nullptr : &users_[number];
  }

  /// Calls `use(const UserSettings&)` on every user who lists that name as an alternative, in the
  /// order of the file; returns how many there are.
  template <class Use>
  std::size_t for_each_alternative(std::string_view name, Use use) const {
    const std::uint32_t found = find_alternative(name);
    if (found == HashIndex::npos) return 0;
    const std::vector<std::uint32_t>& numbers = alternatives_[found].users;
    for (std::uint32_t number : numbers) use(users_[number]);
    return numbers.size();
  }

  /// Whether a message to that name could ever find somebody.
  bool knows(std::string_view name) const {
    return find(name) != nullptr || find_alternative(name) != HashIndex::npos;
  }

  std::size_t size() const { return users_.size(); }

 private:
  /// A name that is none of a user's own, and all who answer to it.
  struct Alternative {
    std::string name;
    std::vector<std::uint32_t> users;
  };

  std::uint32_t find_alternative(std::string_view name) const {
    return by_alternative_.find(SipHash::of(key_, name),
                                [&](std::uint32_t n) { return alternatives_[n].name == name; });
  }
  void add_alternative(const std::string& name, std::uint32_t user) {
    std::uint32_t found = find_alternative(name);
    if (found == HashIndex::npos) {
      found = static_cast<std::uint32_t>(alternatives_.size());
      alternatives_.push_back({name, {}});
      by_alternative_.insert(SipHash::of(key_, name), found);
    }
    std::vector<std::uint32_t>& users = alternatives_[found].users;
    if (users.empty() || users.back() != user) users.push_back(user);
  }

  SipHashKey key_;
  std::vector<UserSettings> users_;
  std::vector<Alternative> alternatives_;
  HashIndex by_name_;
  HashIndex by_alternative_;
};

/// A copy of a text that allocates nothing as long as it is short, as names are.
class ShortText {
 public:
  ShortText() = default;
  explicit ShortText(std::string_view text) {
    reserve(text.size());
    for (char c : text) push_back(c);
  }
  /// Decodes %-escapes, once.
  static ShortText unescaped(std::string_view text) {
    ShortText result;
    result.reserve(text.size());
    for (UnescapedOctets octets(text); !octets.done();) result.push_back(octets.next());
    return result;
  }
  /// Lifetime: as long as this object lives and is not assigned to.
  std::string_view view() const {
    return is_long_ ? std::string_view(long_) : std::string_view(short_.data(), size_);
  }

 private:
  void reserve(std::size_t size) {
    is_long_ = size > short_.size();
    if (is_long_) long_.reserve(size);
  }
  void push_back(char c) {
    if (is_long_) {
      long_.push_back(c);
    } else {
      short_[size_++] = c;
    }
  }

  std::array<char, 64> short_;  // left uninitialised: only the first size_ octets are ever read
  std::size_t size_ = 0;
  bool is_long_ = false;
  std::string long_;
};

/// Names the message a handler wants to answer later. Good until it is answered or its deadline is
/// over; then it names nothing, and never another message.
using RouteKey = Handle;

/// What a handler sees of a message. Lifetime: during the handler's call only; a handler that
/// answers later, or on another thread, copies what it needs.
struct RouteRequest {
  const MessageView& message;
  std::string_view caller;       ///< user part of From, decoded
  std::string_view caller_name;  ///< display name of From, as written
  std::string_view called;       ///< user part of the Request-URI, decoded
  std::string_view username;     ///< whom the password proved; empty without authentication
  Flow source;                   ///< where the message came from
  RouteKey key;                  ///< for a verdict that comes later

  std::string_view body() const { return message.body(); }
  std::string_view content_type() const { return message.header(HeaderId::content_type); }
};

/// What a handler decides.
class Verdict {
 public:
  enum class Kind : std::uint8_t { next, accept, reject, forward, later };
  Verdict() = default;  ///< next

  /// Not mine: ask the next handler.
  static Verdict next() { return Verdict(Kind::next); }
  /// I took it: the sender gets this 2xx now, 202 in place of any other code, and the message goes
  /// no further.
  static Verdict accept(int code = 202) { return Verdict(Kind::accept, code); }
  /// Refused with this code and phrase, "" for the usual one. 408 may not be said of a message
  /// (RFC 4320 4.2) and goes out as 480; a code that is not from 300 to 699 as 500.
  static Verdict reject(int code, std::string phrase = {}) {
    return Verdict(Kind::reject, code, std::move(phrase));
  }
  /// To these: a user name or a sip URI of our own domains means that user's bindings; a URI with a
  /// numeric host of somewhere else is sent there, because the handler says so. Without any: to the
  /// bindings of whom the message calls.
  static Verdict forward(std::vector<std::string> uris) {
    Verdict verdict(Kind::forward);
    verdict.uris_ = std::move(uris);
    return verdict;
  }
  /// The verdict comes later, under the request's key, and not before the handler has returned.
  static Verdict later() { return Verdict(Kind::later); }

  Kind kind() const { return kind_; }
  int code() const { return code_; }
  const std::string& phrase() const { return phrase_; }
  const std::vector<std::string>& uris() const { return uris_; }

 private:
  explicit Verdict(Kind kind, int code = 0, std::string phrase = {})
      : kind_(kind), code_(code), phrase_(std::move(phrase)) {}

  Kind kind_ = Kind::next;
  int code_ = 0;
  std::string phrase_;
  std::vector<std::string> uris_;
};

/// Called for each message in turn. Legal inside: adding and removing handlers, also this one.
using RouteHandler = std::function<Verdict(const RouteRequest&)>;

/// The handlers, by priority.
class HandlerChain {
 public:
  using Id = std::uint32_t;

  /// Where a walk along the chain stands; the default is before the first handler.
  struct Position {
    int priority = INT32_MIN;
    Id id = 0;
  };

  /// The id is for `remove`, and never 0.
  Id add(int priority, RouteHandler handler) {
    const Id id = ++last_id_;
    Entry entry{{priority, id}, std::make_shared<RouteHandler>(std::move(handler))};
    const auto after = [](const Position& a, const Entry& b) {
      return comes_before(a, b.position);
    };
    entries_.insert(std::upper_bound(entries_.begin(), entries_.end(), entry.position, after),
                    std::move(entry));
    return id;
  }

  /// False where there is no such handler any more.
  bool remove(Id id) {
    const auto found = std::find_if(entries_.begin(), entries_.end(),
                                    [id](const Entry& entry) { return entry.position.id == id; });
    if (found == entries_.end()) return false;
    entries_.erase(found);
    return true;
  }

  /// Asks the handlers behind `position` until one says something else than `next`, and moves
  /// `position` to it. `next` means that none was left.
  Verdict walk(Position& position, const RouteRequest& request) const {
    while (true) {
      // Looked up anew each time, and held, because the handler may change the chain.
      const auto after = [](const Position& a, const Entry& b) {
        return comes_before(a, b.position);
      };
      const auto found = std::upper_bound(entries_.begin(), entries_.end(), position, after);
      if (found == entries_.end()) return Verdict::next();
      position = found->position;
      const std::shared_ptr<RouteHandler> handler = found->handler;
      if (!*handler) continue;
      Verdict verdict = (*handler)(request);
      if (verdict.kind() != Verdict::Kind::next) return verdict;
    }
  }

  bool empty() const { return entries_.empty(); }

 private:
  struct Entry {
    Position position;
    std::shared_ptr<RouteHandler> handler;
  };

  static bool comes_before(const Position& a, const Position& b) {
    return a.priority != b.priority ? a.priority < b.priority : a.id < b.id;
  }

  std::vector<Entry> entries_;
  Id last_id_ = 0;
};

}  // namespace sipmsg
