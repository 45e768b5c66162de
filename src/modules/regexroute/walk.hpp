// regexroute/walk: one message's way through the rules.
//
// Rules of a context are tried from top to bottom until one routes the message; include and jump
// lead to other contexts. However the rules are written, a message gets only so many steps.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "../engine.hpp"
#include "functions.hpp"
#include "rules.hpp"

namespace modules::regexroute {

/// What rules act upon beside their message. Outlives every walk.
struct Host {
  Environment& environment;
  std::uint32_t max_depth = 5;                             ///< of include and jump
  std::function<void(MessagePointer)> dispatch = nullptr;  ///< offers it to its handlers
  sipmsg::LogHandler log = nullptr;
  std::uint64_t steps_left = 0;  ///< shared with the messages that a message's rules dispatch
  sipmsg::LogLimit steps_log{10};
  sipmsg::LogLimit warning_log{60};
};

class Walk {
 public:
  /// Steps that one message may cost beside once through all rules. A step is a rule that is tried,
  /// or an assignment.
  static constexpr std::uint64_t max_steps = 20000;
  /// Messages dispatched by rules for a message dispatched by rules, and so on.
  static constexpr std::uint32_t max_dispatching = 16;
  static constexpr std::size_t max_enqueued = 100;

  /// `match_text` is what rules without ${} or $() in front are matched against.
  Walk(const RuleBook& book, Host& host, Message& message, std::string_view match_text);

  /// Whether the message is handled; its target is then its return value.
  bool run(std::string_view context);
  /// Messages to be dispatched when the walk is over.
  std::vector<MessagePointer> take_enqueued() { return std::move(enqueued_); }

 private:
  enum class Next : std::uint8_t { rule, handled, not_handled };

  bool run_context(std::size_t number, std::uint32_t depth);
  bool applies(const Rule& rule);
  bool holds(const Condition& condition);
  const std::string& subject_of(const Condition& condition);
  Next act(const Rule& rule, std::uint32_t depth);
  bool enter(const Rule& rule, std::string_view name, std::uint32_t depth);
  void assign(const std::vector<Assignment>& assignments, Message& message);
  void send(const Rule& rule, std::string name);
  bool take_step();
  Scope scope() const { return {message_, captures_, host_.environment}; }
  std::uint64_t now_ms() const { return host_.environment.now_unix_us() / 1000; }
  void say(sipmsg::Severity severity, std::string text);
  void warn(const Rule& rule, std::string_view text);

  const RuleBook& book_;
  Host& host_;
  Message& message_;
  std::string match_text_;
  std::string value_;  ///< of a parameter or function that is matched
  Captures captures_;
  std::vector<MessagePointer> enqueued_;
};

}  // namespace modules::regexroute
