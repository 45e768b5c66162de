#include "options.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <optional>

namespace program {

namespace {

/// Digits only, no sign; nothing where it is none or above `highest`.
std::optional<std::uint32_t> parse_number(std::string_view text, std::uint32_t highest) {
  std::uint64_t number = 0;
  for (char c : text) {
    if (c < '0' || c > '9') return std::nullopt;
    number = number * 10 + static_cast<std::uint64_t>(c - '0');
    if (number > highest) return std::nullopt;
  }
  if (text.empty()) return std::nullopt;
  return static_cast<std::uint32_t>(number);
}

/// "2", "0.25" or ".5" seconds in milliseconds, rounded down.
std::optional<std::uint32_t> parse_seconds_ms(std::string_view text) {
  constexpr std::uint32_t day_s = 86400;
  const std::size_t point = std::min(text.find('.'), text.size());
  std::string thousandths(text.substr(std::min(point + 1, text.size())));
  if (thousandths.empty() && point == 0) return std::nullopt;
  thousandths.resize(std::max<std::size_t>(thousandths.size(), 3), '0');
  const auto whole_s = point == 0 ? 0 : parse_number(text.substr(0, point), day_s);
  const auto fraction_ms = parse_number(std::string_view(thousandths).substr(0, 3), 999);
  const bool is_digits = thousandths.find_first_not_of("0123456789") == std::string::npos;
  if (!whole_s || !fraction_ms || !is_digits) return std::nullopt;
  return *whole_s * 1000 + *fraction_ms;
}

/// How many letters must be put in, taken out or exchanged to make one word of the other.
std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i + 1;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t exchanged = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({exchanged, row[j] + 1, diagonal + 1});
    }
  }
  return row.back();
}

/// "udp|tcp" as it is said: "udp or tcp".
std::string list_of(std::string_view words) {
  std::string text(words);
  for (std::size_t bar = text.find('|'); bar != std::string::npos; bar = text.find('|', bar)) {
    text.replace(bar, 1, " or ");
  }
  return text;
}

bool is_one_of(std::string_view word, std::string_view words) {
  while (true) {
    const std::size_t bar = std::min(words.find('|'), words.size());
    if (words.substr(0, bar) == word) return true;
    if (bar == words.size()) return false;
    words.remove_prefix(bar + 1);
  }
}

class Parser {
 public:
  Parser(const CommandLine& command, int argc, char** argv, int first)
      : command_(command), argc_(argc), argv_(argv), next_(first) {
    is_given_.resize(command.options.size() + command.shared.size());
  }

  ParsedCommandLine parse() {
    for (; next_ < argc_; ++next_) {
      const std::string_view argument = argv_[next_];
      const bool is_option = !only_operands_ && argument.size() > 1 && argument[0] == '-';
      if (!is_option) {
        take_operand(argument);
      } else if (argument == "--") {
        only_operands_ = true;
      } else if (argument == "--help" || argument == "-h") {
        parsed_.wants_help = parsed_.wrong.empty();
        return parsed_;
      } else {
        take_option(argument);
      }
    }
    for (std::size_t i = operand_; i < command_.operands.size(); ++i) {
      if (command_.operands.begin()[i].is_required) {
        complain(std::string(command_.operands.begin()[i].name) + " is missing");
      }
    }
    return parsed_;
  }

 private:
  /// The first mistake is the one to be told of. What follows is read all the same: there may be a
  /// secret in it.
  void complain(std::string text) {
    if (parsed_.wrong.empty()) parsed_.wrong = std::move(text);
  }

  void take_operand(std::string_view argument) {
    if (operand_ == command_.operands.size()) {
      return complain("argument " + std::to_string(next_) + ", \"" + std::string(argument) +
                      "\": nothing more is expected" +
                      (operand_ > 0 ? "; a text with blanks needs quotes" : ""));
    }
    const Operand& operand = command_.operands.begin()[operand_++];
    *operand.value = argument;
    if (operand.is_given != nullptr) *operand.is_given = true;
  }

  void take_option(std::string_view argument) {
    const std::size_t equals = std::min(argument.find('='), argument.size());
    const std::string_view name = argument.substr(0, equals);
    std::size_t index = 0;
    const Option* option = find(name, index);
    if (option == nullptr) return complain("unknown option " + std::string(name) + nearest(name));
    const bool is_list = std::holds_alternative<std::vector<std::string>*>(option->target);
    if (is_given_[index] != 0 && !is_list) complain(std::string(name) + " is given twice");
    is_given_[index] = 1;
    if (const auto* flag = std::get_if<bool*>(&option->target)) {
      if (equals != argument.size()) complain(std::string(name) + " takes no value");
      **flag = true;
      return;
    }
    if (equals == argument.size() && next_ + 1 == argc_) {
      return complain(std::string(name) + " needs a value: " + std::string(option->value));
    }
    char* value = equals == argument.size() ? argv_[++next_] : argv_[next_] + equals + 1;
    store(*option, value);
  }

  void store(const Option& option, char* value) {
    const std::string said = std::string(option.name) + " " + value + ": expected ";
    if (const auto* text = std::get_if<std::string*>(&option.target)) {
      **text = value;
    } else if (const auto* list = std::get_if<std::vector<std::string>*>(&option.target)) {
      (*list)->emplace_back(value);
    } else if (const auto* secret = std::get_if<SecretTarget>(&option.target)) {
      *secret->value = value;
      *secret->is_given = true;
      std::memset(value, '*', std::strlen(value));
    } else if (const auto* number = std::get_if<NumberTarget>(&option.target)) {
      const auto read = parse_number(value, number->highest);
      if (!read || *read < number->lowest) {
        return complain(said + "a number from " + std::to_string(number->lowest) + " to " +
                        std::to_string(number->highest));
      }
      *number->value = *read;
    } else if (const auto* seconds = std::get_if<SecondsTarget>(&option.target)) {
      const auto read = parse_seconds_ms(value);
      if (read.value_or(0) == 0) {
        return complain(said + "seconds above 0, as in 2 or 0.5, at most a day");
      }
      *seconds->value_ms = *read;
    } else if (const auto* choice = std::get_if<ChoiceTarget>(&option.target)) {
      if (!is_one_of(value, choice->words)) {
        return complain(said + list_of(choice->words));
      }
      *choice->value = value;
    }
  }

  /// `index` becomes the option's among all.
  const Option* find(std::string_view name, std::size_t& index) const {
    for (const View<Option>& options : {command_.options, command_.shared}) {
      for (const Option& option : options) {
        if (option.name == name) return &option;
        ++index;
      }
    }
    return nullptr;
  }

  std::string nearest(std::string_view name) const {
    std::size_t best = 3;  // further away it is a guess and no help
    std::string_view found;
    for (const View<Option>& options : {command_.options, command_.shared}) {
      for (const Option& option : options) {
        const std::size_t here = distance(name, option.name);
        if (here >= best || here >= option.name.size() - 1) continue;
        best = here;
        found = option.name;
      }
    }
    if (!found.empty()) return "; did you mean " + std::string(found) + "?";
    return command_.operands.size() == 0 ? "" : "; what is no option goes behind --";
  }

  const CommandLine& command_;
  int argc_;
  char** argv_;
  int next_;
  std::size_t operand_ = 0;
  bool only_operands_ = false;
  std::string is_given_;  ///< for each option 1 where it was, else 0
  ParsedCommandLine parsed_;
};

/// One option or several lines of its help, the help in a column of its own.
void append_option(std::string& page, std::string name, std::string_view text, std::size_t column) {
  name.insert(0, "  ");
  while (true) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    name.resize(std::max(name.size(), column), ' ');
    page.append(name).append(text.substr(0, end)).append("\n");
    if (end == text.size()) return;
    text.remove_prefix(end + 1);
    name.clear();
  }
}

std::string name_and_value(const Option& option) {
  std::string text(option.name);
  if (!option.value.empty()) text.append(" ").append(option.value);
  return text;
}

}  // namespace

ParsedCommandLine parse(const CommandLine& command, int argc, char** argv, int first) {
  return Parser(command, argc, argv, first).parse();
}

std::string help(const CommandLine& command) {
  std::size_t column = std::string_view("  --help  ").size();
  for (const View<Option>& options : {command.options, command.shared}) {
    for (const Option& option : options) {
      column = std::max(column, name_and_value(option).size() + 4);
    }
  }
  std::string page = "usage: " + std::string(command.usage) + "\n\n";
  page.append(command.summary).append("\n\n");
  for (const View<Option>& options : {command.options, command.shared}) {
    for (const Option& option : options) {
      append_option(page, name_and_value(option), option.help, column);
    }
  }
  if (command.operands.size() != 0) append_option(page, "--", "no options behind this", column);
  append_option(page, "--help", "this text", column);
  if (!command.notes.empty()) page.append("\n").append(command.notes).append("\n");
  return page;
}

}  // namespace program
