// regexroute/pattern: see pattern.hpp.
#include "pattern.hpp"

#include <algorithm>
#include <optional>
#include <tuple>

#include "sipmsg.hpp"

namespace modules::regexroute {

namespace {

constexpr std::size_t max_expression = 4096;
/// What the library makes of {n}: a copy for each time, of everything inside.
constexpr std::uint64_t max_size_with_repetitions = 100000;

/// The larger number of "{2,5}", or of "\{2,5\}", at `place`, which is moved behind it. Nothing
/// where there is no such thing.
std::optional<std::uint64_t> take_repetition(std::string_view text, std::size_t& place) {
  std::uint64_t largest = 0;
  std::uint64_t number = 0;
  bool has_digit = false;
  for (std::size_t i = place; i < text.size(); ++i) {
    if (sipmsg::is_digit(text[i])) {
      has_digit = true;
      number = std::min<std::uint64_t>(number * 10 + static_cast<std::uint64_t>(text[i] - '0'),
                                       max_size_with_repetitions);
      largest = std::max(largest, number);
    } else if (text[i] == ',') {
      number = 0;
    } else {
      if (!has_digit) return std::nullopt;
      place = i;
      return largest;
    }
  }
  return std::nullopt;
}

/// About how many states the library will make. What a repeated group holds is not looked up: its
/// number counts for the whole expression, so that groups inside groups multiply as they do there.
std::uint64_t size_with_repetitions(std::string_view text, bool extended) {
  std::uint64_t size = text.size();
  std::uint64_t times = 1;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool escaped = text[i] == '\\' && i + 1 < text.size();
    if (escaped) ++i;
    if (text[i] != '{' || escaped == extended) continue;
    const std::size_t before = i - (escaped ? 1 : 0);
    const bool is_group = before > 0 && (text[before - 1] == ')' || text[before - 1] == '}');
    std::size_t place = i + 1;
    const std::optional<std::uint64_t> number = take_repetition(text, place);
    if (!number) continue;
    i = place - 1;
    if (!is_group) {
      size += *number;
    } else if (*number > 1) {
      times = std::min(times * *number, max_size_with_repetitions + 1);
    }
  }
  return size * times;
}

bool holds_back_reference(std::string_view text) {
  for (std::size_t i = 0; i + 1 < text.size(); ++i) {
    if (text[i] != '\\') continue;
    ++i;
    if (text[i] >= '1' && text[i] <= '9') return true;
  }
  return false;
}

}  // namespace

std::string Pattern::compile(std::string_view text, Syntax syntax) {
  *this = Pattern();
  if (text.size() > max_expression) return "the regular expression is too long";
  if (text.find('\0') != std::string_view::npos) return "a regular expression holds no NUL";
  if (size_with_repetitions(text, syntax.extended) > max_size_with_repetitions) {
    return "the regular expression repeats too often";
  }
  if (!syntax.insensitive && take_as_literal(text)) return {};

  auto compiled = std::make_unique<regex_t>();
  const int flags = (syntax.extended ? REG_EXTENDED : 0) | (syntax.insensitive ? REG_ICASE : 0);
  const int status = regcomp(compiled.get(), std::string(text).c_str(), flags);
  if (status != 0) {
    char why[128];
    regerror(status, compiled.get(), why, sizeof why);
    return std::string("bad regular expression: ") + why;
  }
  compiled_.reset(compiled.release());
  kind_ = Kind::expression;
  has_back_reference_ = holds_back_reference(text);
  return {};
}

/// Whether the expression means the same octets in both syntaxes, between ^ and $ or without them.
bool Pattern::take_as_literal(std::string_view text) {
  if (text == ".*") {
    kind_ = Kind::anything;
    return true;
  }
  const bool from_start = !text.empty() && text.front() == '^';
  if (from_start) text.remove_prefix(1);
  const bool to_end = !text.empty() && text.back() == '$';
  if (to_end) text.remove_suffix(1);
  if (text.find_first_of(".[]*^$\\+?(){}|") != std::string_view::npos) return false;
  if (!from_start && (to_end || text.empty())) return false;
  kind_ = !from_start ? Kind::inside : to_end ? Kind::whole : Kind::beginning;
  literal_ = text;
  return true;
}

bool Pattern::matches(const std::string& subject, Captures& captures) const {
  const std::string_view all = subject;
  std::size_t place = 0;
  std::size_t size = literal_.size();
  switch (kind_) {
    case Kind::nothing: return false;
    case Kind::expression: return execute(subject, captures);
    case Kind::anything: size = all.size(); break;
    case Kind::whole:
      if (all != literal_) return false;
      break;
    case Kind::beginning:
      if (all.substr(0, size) != literal_) return false;
      break;
    case Kind::inside:
      place = all.find(literal_);
      if (place == std::string_view::npos) return false;
      break;
  }
  captures = Captures();
  captures[0] = all.substr(place, size);
  return true;
}

bool Pattern::execute(const std::string& subject, Captures& captures) const {
  const std::size_t limit = has_back_reference_ ? max_subject_of_back_reference : max_subject;
  std::array<regmatch_t, std::tuple_size_v<Captures>> places;
  int status = 0;
  if (subject.size() <= limit) {
    status = regexec(compiled_.get(), subject.c_str(), places.size(), places.data(), 0);
  } else {
    const std::string beginning(subject, 0, limit);
    status = regexec(compiled_.get(), beginning.c_str(), places.size(), places.data(), REG_NOTEOL);
  }
  if (status != 0) return false;
  for (std::size_t i = 0; i < places.size(); ++i) {
    captures[i] = {};
    if (places[i].rm_so < 0) continue;
    const auto begin = static_cast<std::size_t>(places[i].rm_so);
    const auto end = static_cast<std::size_t>(places[i].rm_eo);
    captures[i] = std::string_view(subject).substr(begin, end - begin);
  }
  return true;
}

std::string to_subject(std::string value) {
  const std::string_view trimmed = sipmsg::trim(value);
  if (trimmed.size() != value.size()) value = std::string(trimmed);
  std::replace(value.begin(), value.end(), '\0', '\x01');
  return value;
}

}  // namespace modules::regexroute
