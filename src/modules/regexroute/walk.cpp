// regexroute/walk: see walk.hpp.
#include "walk.hpp"

#include <algorithm>
#include <utility>

namespace modules::regexroute {

namespace {

/// Yate's default rule: neither empty nor a word for no, nor zeros only.
bool is_true(std::string_view value) {
  for (std::string_view word : {"false", "no", "off", "disable", "f"}) {
    if (value == word) return false;
  }
  return value.find_first_not_of('0') != std::string_view::npos;
}

}  // namespace

Walk::Walk(const RuleBook& book, Host& host, Message& message, std::string_view match_text)
    : book_(book), host_(host), message_(message) {
  match_text_ = to_subject(std::string(match_text));
}

bool Walk::run(std::string_view context) {
  const std::size_t number = book_.find(context);
  if (number == no_context) return false;
  if (host_.environment.dispatching == 0) host_.steps_left = max_steps + book_.rule_count();
  return run_context(number, 0);
}

bool Walk::run_context(std::size_t number, std::uint32_t depth) {
  const std::vector<Rule>& rules = book_.context(number).rules;
  std::size_t place = 0;
  while (place < rules.size()) {
    const Rule& rule = rules[place];
    if (!take_step()) return false;
    if (rule.action == Action::leave_block || !applies(rule)) {
      place = rule.otherwise;
      continue;
    }
    ++place;
    const Next next = act(rule, depth);
    if (next != Next::rule) return next == Next::handled;
  }
  return false;
}

bool Walk::take_step() {
  if (host_.steps_left == 0) return false;
  if (--host_.steps_left > 0) return true;
  if (host_.steps_log.admits(now_ms())) {
    say(sipmsg::Severity::warning, "the rules take too many steps for one message, and are left");
  }
  return false;
}

// ---- conditions --------------------------------------------------------------------------------

/// Where an alternative is there for a condition that holds, nothing behind is asked any more;
/// where none is there for one that does not hold, neither.
bool Walk::applies(const Rule& rule) {
  bool holds_so_far = true;
  for (std::size_t i = 0; i < rule.conditions.size(); ++i) {
    const Condition& condition = rule.conditions[i];
    const bool is_alternative = condition.link == Condition::Link::or_else;
    if (i > 0 && holds_so_far == is_alternative) break;
    holds_so_far = holds(condition);
  }
  return holds_so_far;
}

bool Walk::holds(const Condition& condition) {
  const std::string& subject = subject_of(condition);
  if (condition.asks_for_truth) {
    captures_ = Captures();
    return is_true(subject) != condition.inverted;
  }
  if (condition.pattern.matches(subject, captures_) == condition.inverted) return false;
  if (condition.inverted) captures_ = Captures();
  return true;
}

const std::string& Walk::subject_of(const Condition& condition) {
  if (condition.source == Condition::Source::match_text) return match_text_;
  if (condition.source == Condition::Source::parameter) {
    std::optional<std::string> found = message_.get(condition.parameter);
    value_ = to_subject(found ? *std::move(found) : condition.otherwise);
  } else {
    value_ = to_subject(condition.function.expand(scope()));
  }
  return value_;
}

// ---- actions -----------------------------------------------------------------------------------

Walk::Next Walk::act(const Rule& rule, std::uint32_t depth) {
  std::string made = rule.text.expand(scope());
  const std::string_view text = sipmsg::trim(made);
  if (rule.action == Action::log) {
    say(rule.severity, std::move(made));
    return Next::rule;
  }
  if (rule.action == Action::dispatch || rule.action == Action::enqueue) {
    send(rule, std::string(text));
    return Next::rule;
  }
  assign(rule.assignments, message_);
  switch (rule.action) {
    case Action::give_back:
      return sipmsg::parse_boolean(text).value_or(false) ? Next::handled : Next::not_handled;
    case Action::jump: return enter(rule, text, depth) ? Next::handled : Next::not_handled;
    case Action::include: return enter(rule, text, depth) ? Next::handled : Next::rule;
    case Action::match:
      if (!text.empty()) match_text_ = to_subject(std::move(made));
      return Next::rule;
    case Action::rename:
      if (!text.empty()) message_.rename(std::string(text));
      return Next::rule;
    case Action::set_return: message_.return_value = text; return Next::rule;
    case Action::route:
      if (text.empty()) return Next::rule;
      message_.return_value = text;
      return Next::handled;
    default: return Next::rule;
  }
}

bool Walk::enter(const Rule& rule, std::string_view name, std::uint32_t depth) {
  const std::size_t number = rule.context != no_context ? rule.context : book_.find(name);
  if (number == no_context) {
    if (!rule.may_be_missing && !name.empty()) {
      warn(rule, std::string("there is no section [").append(name).append("]"));
    }
    return false;
  }
  if (depth >= host_.max_depth) {
    warn(rule, "include and jump lead deeper than maxdepth; this one is left out");
    return false;
  }
  return run_context(number, depth + 1);
}

/// One after the other: a later one sees what an earlier one has set.
void Walk::assign(const std::vector<Assignment>& assignments, Message& message) {
  for (const Assignment& assignment : assignments) {
    if (!take_step()) return;
    const std::string made_name = assignment.name.expand(scope());
    const std::string_view name = sipmsg::trim(made_name);
    if (name.empty()) continue;
    Variables& variables = host_.environment.variables;
    if (assignment.clears) {
      assignment.is_variable ? variables.clear(name) : message.clear(name);
      continue;
    }
    const std::string made_value = assignment.value.expand(scope());
    const std::string_view value = sipmsg::trim(made_value);
    if (!assignment.is_variable) {
      message.set(name, value);
    } else if (!variables.set(name, value)) {
      say(sipmsg::Severity::warning, "too many global variables; a new one is not set");
    }
  }
}

/// Another message: made of this one, but the assignments are its own.
void Walk::send(const Rule& rule, std::string name) {
  if (name.empty()) return;
  auto message = std::make_shared<ListMessage>(std::move(name));
  message->created_unix_s = host_.environment.now_unix_us() / 1000000;
  assign(rule.assignments, *message);
  if (rule.action == Action::enqueue) {
    if (enqueued_.size() >= max_enqueued) return warn(rule, "too many messages are enqueued");
    enqueued_.push_back(std::move(message));
    return;
  }
  if (host_.environment.dispatching >= max_dispatching) {
    return warn(rule, "messages dispatch messages too deep; this one is left out");
  }
  ++host_.environment.dispatching;
  host_.dispatch(std::move(message));
  --host_.environment.dispatching;
}

// ---- the log -----------------------------------------------------------------------------------

/// Values of messages stand in it, so that nobody's terminal obeys it, nor is flooded by it.
void Walk::say(sipmsg::Severity severity, std::string text) {
  constexpr std::size_t longest = 1000;
  if (text.size() > longest) text.replace(longest, std::string::npos, "...");
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  host_.log(severity, text);
}

/// What is wrong with a rule shows with each message, and often more than once.
void Walk::warn(const Rule& rule, std::string_view text) {
  if (!host_.warning_log.admits(now_ms())) return;
  say(sipmsg::Severity::warning, (book_.place_of(rule) + ": ").append(text));
}

}  // namespace modules::regexroute
