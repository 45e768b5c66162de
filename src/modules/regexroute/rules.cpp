// regexroute/rules: see rules.hpp.
#include "rules.hpp"

#include <utility>

namespace modules::regexroute {

namespace {

using sipmsg::Diagnostics;
using sipmsg::IniEntry;
using sipmsg::Severity;
using sipmsg::trim;

/// Takes `word` and the blanks behind it off the front, where it stands there as a word of its own.
bool take_word(std::string_view& text, std::string_view word) {
  if (text.substr(0, word.size()) != word) return false;
  if (text.size() > word.size() && !sipmsg::is_blank(text[word.size()])) return false;
  text = trim(text.substr(word.size()));
  return true;
}

bool is_no_context(std::string_view section) {
  for (std::string_view name : {"priorities", "extra", "$once", "$init"}) {
    if (section == name) return true;
  }
  return false;
}

struct Word {
  std::string_view word;
  Action action;
};

/// These take what stands before the first semicolon.
constexpr Word words[] = {
    {"noop", Action::go_on},        {"return", Action::give_back},  {"include", Action::include},
    {"call", Action::include},      {"jump", Action::jump},         {"goto", Action::jump},
    {"match", Action::match},       {"newmatch", Action::match},    {"rename", Action::rename},
    {"retval", Action::set_return}, {"dispatch", Action::dispatch}, {"enqueue", Action::enqueue},
};

/// Reads the rules of one context, one line after the other.
class ContextReader {
 public:
  ContextReader(const RuleBook& book, const RuleOptions& options,
                const std::vector<std::string>& files, Diagnostics& diagnostics,
                std::vector<Rule>& rules)
      : book_(book), options_(options), files_(files), diagnostics_(diagnostics), rules_(rules) {}

  void read(const std::vector<IniEntry>& entries) {
    for (const IniEntry& entry : entries) {
      entry_ = &entry;
      read_line();
    }
    for (const Block& block : blocks_) {
      entry_ = block.opened_by;
      fail("the block that begins here is not closed");
    }
  }

 private:
  /// A chain of blocks of which one at most is entered.
  struct Block {
    std::size_t condition = 0;        ///< the rule that opened the last one
    std::vector<std::size_t> leaves;  ///< rules that lead behind the chain
    const IniEntry* opened_by = nullptr;
  };

  // -- lines and blocks --

  void read_line() {
    std::string_view key = entry_->key;
    const bool closes = key.front() == '}';
    if (closes) key = trim(key.substr(1));
    if (closes && blocks_.empty()) return fail("} without a block that it closes");

    Rule rule;
    rule.file = entry_->file;
    rule.line = entry_->line;
    read_condition(key.empty() ? ".*" : key, Condition::Link::also, rule);
    std::string_view target = entry_->value;
    read_further_conditions(target, rule);
    const bool opens = target == "{";
    if (!opens) read_action(target, rule);

    Block chain;
    if (closes) chain = close_block();
    const std::size_t place = rules_.size();
    rule.otherwise = place + 1;
    rules_.push_back(std::move(rule));
    if (opens) return open_block(std::move(chain), place);
    for (std::size_t leave : chain.leaves) rules_[leave].otherwise = rules_.size();
  }

  /// Ends the innermost block: whoever comes out of it skips what else the chain holds, and whoever
  /// did not come in goes on with the rule that follows now.
  Block close_block() {
    Block chain = std::move(blocks_.back());
    blocks_.pop_back();
    Rule leave;
    leave.action = Action::leave_block;
    chain.leaves.push_back(rules_.size());
    rules_.push_back(std::move(leave));
    rules_[chain.condition].otherwise = rules_.size();
    return chain;
  }

  void open_block(Block chain, std::size_t place) {
    if (blocks_.size() == RuleBook::max_block_depth) {
      fail("more than " + std::to_string(RuleBook::max_block_depth) + " blocks inside one another");
    }
    chain.condition = place;
    chain.opened_by = entry_;
    blocks_.push_back(std::move(chain));
  }

  // -- conditions --

  void read_further_conditions(std::string_view& target, Rule& rule) {
    while (true) {
      Condition::Link link = Condition::Link::also;
      if (take_word(target, "or")) {
        link = Condition::Link::or_else;
      } else if (!take_word(target, "if") && !take_word(target, "and")) {
        return;
      }
      const std::size_t equals = target.find('=');
      const std::string_view raw = trim(target.substr(0, equals));
      if (equals == std::string_view::npos || raw.empty()) {
        target = {};
        return fail("if, and, or need REGEX=TARGET behind them");
      }
      read_condition(raw, link, rule);
      target = trim(target.substr(equals + 1));
    }
  }

  void read_condition(std::string_view raw, Condition::Link link, Rule& rule) {
    Condition condition;
    condition.link = link;
    if (raw.substr(0, 2) == "${") {
      read_parameter(raw, condition);
    } else if (raw.substr(0, 2) == "$(") {
      read_function(raw, condition);
    }
    if (condition.source != Condition::Source::match_text && (raw.empty() || raw == "^")) {
      read_default_rule(!raw.empty(), condition);
    } else {
      read_pattern(raw, condition);
    }
    rule.conditions.push_back(std::move(condition));
  }

  void read_parameter(std::string_view& raw, Condition& condition) {
    condition.source = Condition::Source::parameter;
    const std::size_t close = raw.find('}');
    if (close == std::string_view::npos) return fail("${ without }");
    const std::string_view content = raw.substr(2, close - 2);
    const std::size_t dollar = content.find('$');
    condition.parameter = trim(content.substr(0, dollar));
    if (condition.parameter.empty()) fail("${} names no parameter");
    if (dollar != std::string_view::npos) condition.otherwise = content.substr(dollar + 1);
    raw = trim(raw.substr(close + 1));
  }

  void read_function(std::string_view& raw, Condition& condition) {
    condition.source = Condition::Source::function;
    const std::size_t end = end_of_call(raw);
    if (end == std::string_view::npos) return fail("$( without )");
    read_text(condition.function, raw.substr(0, end), Text::Kind::condition);
    raw = trim(raw.substr(end));
  }

  void read_default_rule(bool inverted, Condition& condition) {
    condition.inverted = inverted;
    if (!options_.default_rule) {
      condition.asks_for_truth = true;
    } else if (options_.default_rule->empty()) {
      fail("a regular expression is missing, and [priorities] defaultrule is empty");
    } else {
      read_pattern(*options_.default_rule, condition);
      condition.inverted = condition.inverted != inverted;
    }
  }

  /// A final ^, which would make no sense in an expression, inverts it.
  void read_pattern(std::string_view raw, Condition& condition) {
    condition.inverted = !raw.empty() && raw.back() == '^';
    if (condition.inverted) raw.remove_suffix(1);
    if (raw.empty()) return;  // matches nothing, and inverted everything
    const std::string mistake = condition.pattern.compile(raw, options_.syntax);
    if (!mistake.empty()) return fail(mistake);
    if (condition.pattern.has_back_reference()) {
      say(Severity::warning, "a back-reference can take very long, so only the first " +
                                 std::to_string(Pattern::max_subject_of_back_reference) +
                                 " octets of a value are looked at");
    }
  }

  // -- actions --

  void read_action(std::string_view target, Rule& rule) {
    if (ends_like_block(target)) return fail("{ must stand alone behind the =");
    if (take_word(target, "msleep")) {
      return fail("msleep would hold up everybody's messages, and is not possible here");
    }
    if (take_log(target, rule)) return read_text(rule.text, target, Text::Kind::target);
    const std::size_t semicolon = target.find(';');
    read_head(trim(target.substr(0, semicolon)), rule);
    if (semicolon != std::string_view::npos) read_assignments(target.substr(semicolon + 1), rule);
  }

  /// Whether Yate would take it for the beginning of a block, and then never enter it.
  static bool ends_like_block(std::string_view target) {
    if (target.empty() || target.back() != '{') return false;
    target = trim(target.substr(0, target.size() - 1));
    return !target.empty() && target.back() == '=';
  }

  static bool take_log(std::string_view& target, Rule& rule) {
    const bool is_debug = take_word(target, "debug");
    if (!is_debug && !take_word(target, "echo") && !take_word(target, "output")) return false;
    rule.action = Action::log;
    if (is_debug) rule.severity = take_level(target);
    return true;
  }

  /// Yate's levels go from 1, a failure, to 10, everything; 5 is a warning. None is 10.
  static Severity take_level(std::string_view& target) {
    std::size_t digits = 0;
    while (digits < target.size() && sipmsg::is_digit(target[digits])) ++digits;
    if (digits == 0 || digits > 2) return Severity::info;
    const auto level = sipmsg::parse_digits(target.substr(0, digits), 99).value_or(10);
    target = trim(target.substr(digits));
    if (level <= 3) return Severity::error;
    return level <= 6 ? Severity::warning : Severity::info;
  }

  void read_head(std::string_view head, Rule& rule) {
    rule.action = head.empty() ? Action::go_on : Action::route;
    rule.may_be_missing = !head.empty() && head.front() == '@';
    std::string_view rest = head.substr(rule.may_be_missing ? 1 : 0);
    std::string_view found;
    for (const Word& word : words) {
      const bool is_to_context = word.action == Action::include || word.action == Action::jump;
      if (rule.may_be_missing && !is_to_context) continue;
      if (!take_word(rest, word.word)) continue;
      rule.action = word.action;
      found = word.word;
      break;
    }
    if (rule.may_be_missing && found.empty()) {
      return fail("@ stands before include, call, jump and goto only");
    }
    if (rest.empty() && needs_text(rule.action)) {
      return fail(std::string(found) + " needs something behind it");
    }
    if (found == "noop") return;
    read_text(rule.text, rest, Text::Kind::target);
    check_head(rule);
  }

  static bool needs_text(Action action) {
    switch (action) {
      case Action::include:
      case Action::jump:
      case Action::match:
      case Action::rename:
      case Action::dispatch:
      case Action::enqueue: return true;
      default: return false;
    }
  }

  void check_head(Rule& rule) {
    if (!rule.text.is_literal() || rule.text.literal().empty()) return;
    const std::string_view text = rule.text.literal();
    if (rule.action == Action::give_back && !sipmsg::parse_boolean(text)) {
      return fail("return takes a boolean, such as true or false");
    }
    if (rule.action != Action::include && rule.action != Action::jump) return;
    rule.context = book_.find(text);
    if (rule.context != no_context || rule.may_be_missing) return;
    say(Severity::warning, std::string("there is no section [").append(text).append("]"));
  }

  void read_assignments(std::string_view raw, Rule& rule) {
    while (true) {
      const std::size_t semicolon = raw.find(';');
      read_assignment(trim(raw.substr(0, semicolon)), rule);
      if (semicolon == std::string_view::npos) return;
      raw.remove_prefix(semicolon + 1);
    }
  }

  void read_assignment(std::string_view raw, Rule& rule) {
    if (raw.empty()) return;
    const std::size_t equals = raw.find('=');
    std::string_view name = trim(raw.substr(0, equals));
    Assignment assignment;
    assignment.clears = equals == std::string_view::npos;
    const bool is_replaced = name.substr(0, 2) == "${" || name.substr(0, 2) == "$(";
    assignment.is_variable = !is_replaced && !name.empty() && name.front() == '$';
    if (assignment.is_variable) name = trim(name.substr(1));
    if (name.empty()) return fail("an assignment without a name");
    read_text(assignment.name, name, Text::Kind::target);
    if (equals != std::string_view::npos) {
      read_text(assignment.value, trim(raw.substr(equals + 1)), Text::Kind::target);
    }
    rule.assignments.push_back(std::move(assignment));
  }

  // -- small things --

  void read_text(Text& text, std::string_view raw, Text::Kind kind) {
    const std::string mistake = text.parse(raw, kind);
    if (!mistake.empty()) fail(mistake);
  }

  void fail(std::string text) { say(Severity::error, std::move(text)); }
  void say(Severity severity, std::string text) {
    diagnostics_.push_back({severity, files_[entry_->file], entry_->line, std::move(text)});
  }

  const RuleBook& book_;
  const RuleOptions& options_;
  const std::vector<std::string>& files_;
  Diagnostics& diagnostics_;
  std::vector<Rule>& rules_;
  std::vector<Block> blocks_;
  const IniEntry* entry_ = nullptr;
};

}  // namespace

void RuleBook::read(const sipmsg::Ini& ini, const RuleOptions& options, Diagnostics& diagnostics) {
  files_ = ini.files();
  for (const sipmsg::IniSection& section : ini.sections()) {
    if (is_no_context(section.name)) continue;
    numbers_.emplace(section.name, contexts_.size());
    contexts_.push_back({section.name, {}});
  }
  for (RuleContext& context : contexts_) {
    ContextReader reader(*this, options, files_, diagnostics, context.rules);
    reader.read(ini.find(context.name)->entries);
  }
}

std::size_t RuleBook::find(std::string_view name) const {
  const auto found = numbers_.find(name);
  return found == numbers_.end() ? no_context : found->second;
}

std::size_t RuleBook::rule_count() const {
  std::size_t count = 0;
  for (const RuleContext& context : contexts_) count += context.rules.size();
  return count;
}

std::string RuleBook::place_of(const Rule& rule) const {
  return files_[rule.file] + ":" + std::to_string(rule.line);
}

}  // namespace modules::regexroute
