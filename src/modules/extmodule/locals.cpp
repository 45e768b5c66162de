// extmodule/locals: see locals.hpp.
#include "locals.hpp"

#include <algorithm>

namespace modules::extmodule {

namespace {

struct TextRow {
  std::string_view name;
  std::string Locals::*member;
};

struct BooleanRow {
  std::string_view name;
  bool Locals::*member;
};

struct NumberRow {
  std::string_view name;
  std::uint32_t Locals::*member;
  std::int64_t minimum;
  std::int64_t maximum;
};

constexpr TextRow text_rows[] = {
    {"id", &Locals::id},
    {"reason", &Locals::reason},
    {"trackparam", &Locals::trackparam},
    {"debugname", &Locals::debugname},
};

constexpr BooleanRow boolean_rows[] = {
    {"disconnected", &Locals::disconnected}, {"setdata", &Locals::setdata},
    {"timebomb", &Locals::timebomb},         {"reenter", &Locals::reenter},
    {"selfwatch", &Locals::selfwatch},       {"settime", &Locals::settime},
};

constexpr NumberRow number_rows[] = {
    {"timeout", &Locals::timeout_ms, 1, 600000},
    {"bufsize", &Locals::bufsize, 2048, 65536},
    {"maxqueue", &Locals::maxqueue, 0, Locals::largest_maxqueue},
    {"debuglevel", &Locals::debuglevel, 0, 10},
};

std::string text_of(bool value) { return value ? "true" : "false"; }

template <class Row, std::size_t count>
const Row* find_row(const Row (&rows)[count], std::string_view name) {
  for (const Row& row : rows) {
    if (row.name == name) return &row;
  }
  return nullptr;
}

/// The rest of `text` behind `prefix`, where it begins so.
std::optional<std::string_view> behind(std::string_view text, std::string_view prefix) {
  if (text.substr(0, prefix.size()) != prefix) return std::nullopt;
  return text.substr(prefix.size());
}

}  // namespace

std::optional<std::string> Facts::find(std::string_view name) const {
  if (name == "runid") return run_id;
  if (const auto parameter = behind(name, "engine.")) {
    for (const auto& known : engine) {
      if (known.name == *parameter) return known.value;
    }
    return "";
  }
  if (const auto place = behind(name, "config.")) {
    const std::size_t dot = place->find('.');
    if (dot == std::string_view::npos) return "";
    const auto* entry = config.find(place->substr(0, dot), place->substr(dot + 1));
    return entry == nullptr ? "" : entry->value;
  }
  if (const auto module = behind(name, "loaded.")) {
    const auto& all = loaded_modules;
    return text_of(std::find(all.begin(), all.end(), *module) != all.end());
  }
  return std::nullopt;
}

Locals::Told Locals::set(std::string_view name, std::string_view value, const Facts& facts) {
  const bool is_question = value.empty();
  if (const auto* row = find_row(text_rows, name)) {
    if (!is_question) this->*row->member = value;
    return {this->*row->member, true};
  }
  if (const auto* row = find_row(boolean_rows, name)) {
    const auto wanted = sipmsg::parse_boolean(value);
    if (wanted) this->*row->member = *wanted;
    return {text_of(this->*row->member), is_question || wanted};
  }
  if (name == "restart") {
    const auto wanted = sipmsg::parse_boolean(value);
    if (wanted) restart = wanted;
    return {text_of(restart.value_or(false)), is_question || wanted};
  }
  if (const auto* row = find_row(number_rows, name)) {
    const auto wanted = sipmsg::parse_integer(value);
    if (wanted) {
      const auto fitting = std::clamp(*wanted, row->minimum, row->maximum);
      this->*row->member = static_cast<std::uint32_t>(fitting);
    }
    return {std::to_string(this->*row->member), is_question || wanted};
  }
  if (auto fact = facts.find(name)) return {std::move(*fact), is_question};
  return {std::string(value), false};
}

}  // namespace modules::extmodule
