// regexroute/rules: the sections of regexroute.conf, read into rules that are ready to be tried.
//
// A rule is `REGEX=TARGET`. Everything about its form is settled here, once: conditions and their
// regular expressions, the action, assignments, which rule comes next where one does not match.
// Blocks in braces are no more than such places to go on at. What cannot be a rule is an error with
// its line; Yate finds most of that out when the rule is tried, or never.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pattern.hpp"
#include "sipmsg.hpp"
#include "text.hpp"

namespace modules::regexroute {

struct RuleOptions {
  Syntax syntax;
  /// What is asked of a parameter or function without an expression behind it; nothing for Yate's
  /// default, whether the value is true.
  std::optional<std::string> default_rule;
};

/// What must hold for a rule to apply.
struct Condition {
  enum class Source : std::uint8_t { match_text, parameter, function };
  enum class Link : std::uint8_t {
    also,    ///< tried where the one before holds
    or_else  ///< tried where the one before does not hold; where it does, all further are skipped
  };

  Source source = Source::match_text;
  Link link = Link::also;
  bool inverted = false;
  bool asks_for_truth = false;  ///< instead of `pattern`
  std::string parameter;
  std::string otherwise;  ///< the value of a parameter that is missing
  Text function;
  Pattern pattern;
};

/// `name=value`, or `name` alone, which clears; `$name` is a global variable.
struct Assignment {
  Text name;
  Text value;
  bool is_variable = false;
  bool clears = false;
};

enum class Action : std::uint8_t {
  go_on,       ///< only assignments
  route,       ///< the text is the target
  give_back,   ///< leaves the context, handled where the text is true
  include,     ///< the rules of another context, then the next one
  jump,        ///< the rules of another context, and no more of this one
  match,       ///< the text is matched from now on
  rename,      ///< the text is the message's name
  set_return,  ///< the text is the return value so far
  log,         ///< the text goes to the log
  dispatch,    ///< another message, now
  enqueue,     ///< another message, when these rules are through
  leave_block  ///< the end of a block that was entered: behind all its alternatives
};

inline constexpr std::size_t no_context = static_cast<std::size_t>(-1);

struct Rule {
  std::vector<Condition> conditions;
  Action action = Action::go_on;
  bool may_be_missing = false;                         ///< a context with @ in front
  sipmsg::Severity severity = sipmsg::Severity::info;  ///< of `log`
  std::uint32_t file = 0;
  std::uint32_t line = 0;
  std::size_t otherwise = 0;  ///< the rule of this context to go on with where this does not apply
  std::size_t context = no_context;  ///< of `include` and `jump`, where the file names it
  Text text;
  std::vector<Assignment> assignments;
};

struct RuleContext {
  std::string name;
  std::vector<Rule> rules;
};

class RuleBook {
 public:
  static constexpr std::size_t max_block_depth = 10;

  /// Reads all sections that hold rules: every one but [priorities], [extra], [$once] and [$init].
  /// Adds an error to `diagnostics` for each rule that cannot be tried.
  void read(const sipmsg::Ini& ini, const RuleOptions& options, sipmsg::Diagnostics& diagnostics);

  /// The number of that context, or no_context.
  std::size_t find(std::string_view name) const;
  const RuleContext& context(std::size_t number) const { return contexts_[number]; }
  std::size_t rule_count() const;
  /// "FILE:LINE" of a rule.
  std::string place_of(const Rule& rule) const;

 private:
  std::vector<RuleContext> contexts_;
  std::map<std::string, std::size_t, std::less<>> numbers_;
  std::vector<std::string> files_;
};

}  // namespace modules::regexroute
