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
#include "parameters.hpp"
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

// What applications written for Yate say of a message, as a verdict.

/// The status that a refusal by that name, or by a number, stands for. Nothing for a name that is
/// not known and a number that is no final code.
inline std::optional<int> status_of_reason(std::string_view reason) {
  struct Named {
    std::string_view name;
    int status;
  };
  static constexpr Named table[] = {
      {"incomplete", 484},    {"noauth", 401},          {"noautoauth", 401},
      {"busy", 486},          {"forbidden", 403},       {"unallocated", 410},
      {"moved", 410},         {"looping", 483},         {"service-not-implemented", 501},
      {"unimplemented", 501}, {"interworking", 500},    {"noroute", 404},
      {"nomedia", 415},       {"noanswer", 480},        {"offline", 404},
      {"failure", 500},       {"timeout", 408},         {"service-unavailable", 503},
      {"noresource", 503},    {"invalid-message", 400}, {"protocol-error", 400},
      {"noconn", 503},        {"nocall", 481},          {"rejected", 406},
      {"congestion", 480},    {"pending", 491},         {"postdialdelay", 504},
      {"unacceptable", 488},
  };
  for (const Named& named : table) {
    if (named.name == reason) return named.status;
  }
  const auto number = parse_digits(reason, 699);
  if (!number || *number < 200) return std::nullopt;
  return static_cast<int>(*number);
}

/// The code that the parameters `code`, `reason` and `error` refuse a message with, in that order;
/// `error` counts as a number only. Nothing where they ask for no refusal.
inline std::optional<int> refusal_asked_for(const RouteRequest& request) {
  const auto of_parameter = [&](std::string_view name, bool may_be_name) -> std::optional<int> {
    const auto text = request.parameter(name);
    if (!text || (!may_be_name && !all_of_class(*text, char_digit))) return std::nullopt;
    return status_of_reason(*text);
  };
  auto code = of_parameter("code", false);
  if (!code) code = of_parameter("reason", true);
  if (!code) code = of_parameter("error", false);
  return code && *code >= 300 ? code : std::nullopt;
}

/// What it means that a handler in Yate's manner has called a message handled or not, and left this
/// return value: a target "sip/URI", or "fork" with targets in `callto.1`, `callto.2` and so on; a
/// refusal where it is empty, "-" or "error". What nobody can send to is refused with 405, unless
/// the parameters name another code.
inline Verdict verdict_of(bool handled, std::string_view return_value,
                          const RouteRequest& request) {
  constexpr std::string_view driver = "sip/";
  if (!handled) return Verdict::next();
  std::vector<std::string> uris;
  const auto add = [&](std::string_view target) {
    if (target.substr(0, driver.size()) == driver) uris.emplace_back(target.substr(driver.size()));
  };
  add(return_value);
  for (int i = 1; return_value == "fork"; ++i) {
    const auto target = request.parameter("callto." + std::to_string(i));
    if (!target) break;
    add(*target);
  }
  if (!uris.empty()) return Verdict::forward(std::move(uris));
  return Verdict::reject(refusal_asked_for(request).value_or(405));
}

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
