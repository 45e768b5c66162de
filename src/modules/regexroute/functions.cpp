// regexroute/functions: see functions.hpp.
#include "functions.hpp"

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <utility>

#include "../engine.hpp"

namespace modules::regexroute {

// ---- global variables --------------------------------------------------------------------------

bool Variables::set(std::string_view name, std::string_view value) {
  const auto found = values_.find(name);
  if (found != values_.end()) {
    found->second = value;
    return true;
  }
  if (values_.size() >= max_count) return false;
  values_.emplace(name, value);
  return true;
}

void Variables::clear(std::string_view name) {
  const auto found = values_.find(name);
  if (found != values_.end()) values_.erase(found);
}

std::string_view Variables::get(std::string_view name) const {
  const auto found = values_.find(name);
  return found == values_.end() ? std::string_view() : std::string_view(found->second);
}

// ---- arguments and numbers ---------------------------------------------------------------------

/// The arguments of one call, each made when it is asked for. One that is missing is empty.
class Arguments {
 public:
  Arguments(const Call& call, const Scope& scope) : call_(call), scope_(scope) {}

  std::size_t count() const { return call_.arguments.size(); }

  std::string text(std::size_t place) const {
    if (place >= count()) return {};
    const Argument& argument = call_.arguments[place];
    std::string made = argument.text.expand(scope_);
    return argument.is_variable ? std::string(environment().variables.get(made)) : made;
  }
  std::int64_t number(std::size_t place) const { return to_number(text(place)); }

  /// The name of the variable that stands there; empty for a value.
  std::string variable(std::size_t place) const {
    const bool is_variable = place < count() && call_.arguments[place].is_variable;
    return is_variable ? call_.arguments[place].text.expand(scope_) : std::string();
  }

  const Message& message() const { return scope_.message; }
  Environment& environment() const { return scope_.environment; }

 private:
  const Call& call_;
  const Scope& scope_;
};

namespace {

/// Numbers stay far enough from the ends of 64 bits that a sum of two is one still.
constexpr std::int64_t largest_number = 1'000'000'000'000'000'000;

std::int64_t product(std::int64_t a, std::int64_t b) {
  if (a == 0 || b == 0) return 0;
  const std::int64_t most = largest_number / std::abs(a);
  if (std::abs(b) <= most) return a * b;
  return (a < 0) == (b < 0) ? largest_number : -largest_number;
}

std::string boolean(bool value) { return value ? "true" : "false"; }

/// Zeros in front, behind the sign, until the number has `width` octets.
std::string padded(std::int64_t number, std::int64_t width) {
  constexpr std::int64_t most = 1000;
  std::string text = std::to_string(number);
  const auto wanted = static_cast<std::size_t>(std::clamp<std::int64_t>(width, 0, most));
  if (text.size() < wanted) text.insert(number < 0 ? 1 : 0, wanted - text.size(), '0');
  return text;
}

/// Without a third argument the result is as wide as the first, so that telephone numbers keep
/// their leading zeros.
std::string arithmetic(const Arguments& arguments,
                       std::int64_t (*operation)(std::int64_t, std::int64_t)) {
  const std::string first = arguments.text(0);
  const std::int64_t width =
      arguments.count() > 2 ? arguments.number(2) : static_cast<std::int64_t>(first.size());
  return padded(operation(to_number(first), arguments.number(1)), width);
}

template <class Operation>
std::string calculate(const Arguments& arguments) {
  return arithmetic(arguments, [](std::int64_t a, std::int64_t b) { return Operation()(a, b); });
}
struct Add {
  std::int64_t operator()(std::int64_t a, std::int64_t b) const { return a + b; }
};
struct Subtract {
  std::int64_t operator()(std::int64_t a, std::int64_t b) const { return a - b; }
};
struct Multiply {
  std::int64_t operator()(std::int64_t a, std::int64_t b) const { return product(a, b); }
};
struct Divide {
  std::int64_t operator()(std::int64_t a, std::int64_t b) const { return b == 0 ? 0 : a / b; }
};
struct Remainder {
  std::int64_t operator()(std::int64_t a, std::int64_t b) const { return b == 0 ? 0 : a % b; }
};

template <class Relation>
std::string compare(const Arguments& arguments) {
  return boolean(Relation()(arguments.number(0), arguments.number(1)));
}

// ---- the functions -----------------------------------------------------------------------------

std::string yield_variable(const Arguments& arguments) {
  const std::string name(sipmsg::trim(arguments.text(0)));
  return std::string(arguments.environment().variables.get(name));
}

std::string count_by(const Arguments& arguments, std::int64_t step) {
  std::string result = std::to_string(arguments.number(0) + step);
  const std::string variable = arguments.variable(0);
  if (!variable.empty()) arguments.environment().variables.set(variable, result);
  return result;
}
std::string yield_increment(const Arguments& arguments) { return count_by(arguments, 1); }
std::string yield_decrement(const Arguments& arguments) { return count_by(arguments, -1); }

std::string yield_length(const Arguments& arguments) {
  return std::to_string(arguments.text(0).size());
}

std::string yield_lower(const Arguments& arguments) { return sipmsg::to_lower(arguments.text(0)); }

std::string yield_upper(const Arguments& arguments) {
  std::string text = arguments.text(0);
  for (char& c : text) {
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
  }
  return text;
}

/// One octet; none for 0, which no value of Yate's can hold.
std::string yield_chr(const Arguments& arguments) {
  const std::int64_t code = sipmsg::parse_integer(arguments.text(0)).value_or(0) & 0xff;
  return code == 0 ? std::string() : std::string(1, static_cast<char>(code));
}

/// Up to four octets of a number, the lowest first: $(hex,VALUE,OCTETS,SEPARATOR).
std::string yield_hex(const Arguments& arguments) {
  const auto value =
      static_cast<std::uint32_t>(sipmsg::parse_integer(arguments.text(0)).value_or(0));
  std::int64_t octets = std::min<std::int64_t>(arguments.number(1), 4);
  if (octets <= 0) {
    octets = 1;
    while (octets < 4 && (value >> (8 * octets)) != 0) ++octets;
  }
  const std::string separator = arguments.count() > 2 ? arguments.text(2).substr(0, 1) : " ";
  constexpr char digits[] = "0123456789abcdef";
  std::string out;
  for (std::int64_t i = 0; i < octets; ++i) {
    const std::uint32_t octet = (value >> (8 * i)) & 0xff;
    if (i > 0) out += separator;
    out += digits[octet >> 4];
    out += digits[octet & 15];
  }
  return out;
}

std::string yield_equal_text(const Arguments& arguments) {
  return boolean(arguments.text(0) == arguments.text(1));
}
std::string yield_other_text(const Arguments& arguments) {
  return boolean(arguments.text(0) != arguments.text(1));
}

std::string yield_position(const Arguments& arguments) {
  const std::size_t place = arguments.text(1).find(arguments.text(0));
  return place == std::string::npos ? "-1" : std::to_string(place);
}

std::string yield_random(const Arguments& arguments) {
  std::string text = arguments.text(0);
  for (char& c : text) {
    if (c == '?') c = static_cast<char>('0' + arguments.environment().random.next() % 10);
  }
  return text;
}

/// The number of the item that a list begins with; a variable that holds it is counted on.
std::size_t take_turn(const Arguments& arguments) {
  const std::size_t items = arguments.count() - 1;
  const auto turn = static_cast<std::uint64_t>(std::max<std::int64_t>(arguments.number(0), 0));
  const std::string variable = arguments.variable(0);
  if (!variable.empty()) {
    arguments.environment().variables.set(variable, std::to_string((turn + 1) % items));
  }
  return static_cast<std::size_t>(turn % items);
}

std::string yield_index(const Arguments& arguments) {
  return arguments.text(1 + take_turn(arguments));
}

std::string yield_rotated(const Arguments& arguments) {
  const std::size_t items = arguments.count() - 1;
  const std::size_t first = take_turn(arguments);
  std::string out;
  for (std::size_t i = 0; i < items; ++i) {
    const std::string item = arguments.text(1 + (first + i) % items);
    if (!out.empty() && !item.empty()) out += ' ';
    out += item;
  }
  return out;
}

std::string yield_configured(const Arguments& arguments) {
  const std::string section(sipmsg::trim(arguments.text(0)));
  const std::string key(sipmsg::trim(arguments.text(1)));
  const auto* entry = arguments.environment().engine_configuration.find(section, key);
  return entry == nullptr ? std::string() : entry->value;
}

std::string run_parameter(const Arguments& arguments, std::string_view name) {
  for (const sipmsg::RunParameter& parameter : arguments.environment().run_parameters) {
    if (parameter.name == name) return parameter.value;
  }
  return {};
}
std::string yield_run_parameter(const Arguments& arguments) {
  return run_parameter(arguments, arguments.text(0));
}
std::string yield_node_name(const Arguments& arguments) {
  return run_parameter(arguments, "nodename");
}

std::string yield_loaded(const Arguments& arguments) {
  const std::vector<std::string>& loaded = arguments.environment().loaded_modules;
  return boolean(std::find(loaded.begin(), loaded.end(), arguments.text(0)) != loaded.end());
}

/// Appends one of a list, with what the second argument says between them, by default a comma.
class Listing {
 public:
  explicit Listing(const Arguments& arguments) : separator_(sipmsg::trim(arguments.text(1))) {
    if (separator_.empty()) separator_ = ",";
  }
  void add(std::string_view name) {
    if (out_.size() > Text::max_size) return;
    if (!out_.empty()) out_ += separator_;
    out_ += name;
  }
  std::string take() { return std::move(out_); }

 private:
  std::string separator_;
  std::string out_;
};

std::string yield_of_message(const Arguments& arguments) {
  const Message& message = arguments.message();
  const std::string what(sipmsg::trim(arguments.text(0)));
  if (what.empty() || what == "name") return message.name();
  if (what == "time") return std::to_string(message.created_unix_s);
  if (what == "retval") return message.return_value;
  if (what == "broadcast") return "false";
  if (what == "count") {
    std::size_t count = 0;
    message.for_each([&count](std::string_view, std::string_view) { ++count; });
    return std::to_string(count);
  }
  if (what != "parameters") return {};
  Listing names(arguments);
  message.for_each([&names](std::string_view name, std::string_view) { names.add(name); });
  return names.take();
}

std::string yield_of_variables(const Arguments& arguments) {
  const Variables& variables = arguments.environment().variables;
  const std::string what(sipmsg::trim(arguments.text(0)));
  if (what.empty() || what == "count") return std::to_string(variables.values().size());
  if (what != "list") return boolean(variables.has(what));
  Listing names(arguments);
  for (const auto& variable : variables.values()) names.add(variable.first);
  return names.take();
}

std::string yield_run_id(const Arguments& arguments) { return arguments.environment().run_id; }

std::string yield_dispatching(const Arguments& arguments) {
  return std::to_string(arguments.environment().dispatching);
}

/// As Yate's log has it: YYYYMMDDhhmmss.uuuuuu, in UTC.
std::string yield_timestamp(const Arguments& arguments) {
  const std::uint64_t now_us = arguments.environment().now_unix_us();
  const auto seconds = static_cast<std::time_t>(now_us / 1000000);
  std::tm parts{};
  gmtime_r(&seconds, &parts);
  char date[32];
  const std::size_t size = std::strftime(date, sizeof date, "%Y%m%d%H%M%S", &parts);
  return std::string(date, size) + "." + padded(static_cast<std::int64_t>(now_us % 1000000), 6);
}

constexpr Function variable_function = {"", 1, 1, yield_variable};
constexpr Function increment_function = {"++", 1, 1, yield_increment};
constexpr Function decrement_function = {"--", 1, 1, yield_decrement};

constexpr Function functions[] = {
    {"length", 0, 1, yield_length},
    {"upper", 0, 1, yield_upper},
    {"lower", 0, 1, yield_lower},
    {"chr", 0, 1, yield_chr},
    {"hex", 0, 3, yield_hex},
    {"add", 2, 3, calculate<Add>},
    {"+", 2, 3, calculate<Add>},
    {"sub", 2, 3, calculate<Subtract>},
    {"-", 2, 3, calculate<Subtract>},
    {"mul", 2, 3, calculate<Multiply>},
    {"*", 2, 3, calculate<Multiply>},
    {"div", 2, 3, calculate<Divide>},
    {"/", 2, 3, calculate<Divide>},
    {"mod", 2, 3, calculate<Remainder>},
    {"%", 2, 3, calculate<Remainder>},
    {"eq", 2, 3, compare<std::equal_to<>>},
    {"ne", 2, 3, compare<std::not_equal_to<>>},
    {"gt", 2, 3, compare<std::greater<>>},
    {">", 2, 3, compare<std::greater<>>},
    {"lt", 2, 3, compare<std::less<>>},
    {"<", 2, 3, compare<std::less<>>},
    {"ge", 2, 3, compare<std::greater_equal<>>},
    {"le", 2, 3, compare<std::less_equal<>>},
    {"streq", 2, 2, yield_equal_text},
    {"strne", 2, 2, yield_other_text},
    {"strpos", 2, 2, yield_position},
    {"random", 0, 1, yield_random},
    {"index", 2, 0, yield_index},
    {"rotate", 2, 0, yield_rotated},
    {"config", 2, 2, yield_configured},
    {"engine", 0, 1, yield_run_parameter},
    {"loaded", 0, 1, yield_loaded},
    {"message", 0, 2, yield_of_message},
    {"variables", 0, 2, yield_of_variables},
    {"runid", 0, 1, yield_run_id},
    {"nodename", 0, 1, yield_node_name},
    {"timestamp", 0, 1, yield_timestamp},
    {"dispatching", 0, 1, yield_dispatching},
};

const Function* find_by_name(std::string_view name) {
  for (const Function& function : functions) {
    if (function.name == name) return &function;
  }
  return nullptr;
}

}  // namespace

std::int64_t to_number(std::string_view text) {
  text = sipmsg::trim(text);
  const bool negative = !text.empty() && text.front() == '-';
  if (negative || (!text.empty() && text.front() == '+')) text.remove_prefix(1);
  if (text.empty()) return 0;
  std::int64_t value = 0;
  for (char c : text) {
    if (!sipmsg::is_digit(c)) return 0;
    value = value > largest_number / 10 ? largest_number : value * 10 + (c - '0');
  }
  value = std::min(value, largest_number);
  return negative ? -value : value;
}

FunctionName find_function(std::string_view content) {
  if (content.substr(0, 2) == "++") return {&increment_function, 2, true};
  if (content.substr(0, 2) == "--") return {&decrement_function, 2, true};
  const std::size_t comma = content.find(',');
  const std::size_t parameter = content.find("${");
  const bool has_arguments = comma < parameter;
  if (has_arguments) return {find_by_name(content.substr(0, comma)), comma + 1, true};
  const Function* bare = find_by_name(content);
  if (bare != nullptr && bare->least == 0) return {bare, content.size(), false};
  return {&variable_function, 0, true};
}

std::string evaluate(const Call& call, const Scope& scope) {
  return call.function->yield(Arguments(call, scope));
}

}  // namespace modules::regexroute
