// database/settings: see settings.hpp.
#include "settings.hpp"

#include <algorithm>

namespace modules::database {

using sipmsg::Severity;

namespace {

std::string shown(const sipmsg::IniEntry& entry) {
  constexpr std::size_t longest = 60;
  const bool is_long = entry.value.size() > longest;
  return "\"" + entry.value.substr(0, longest) + (is_long ? "...\"" : "\"");
}

}  // namespace

const sipmsg::IniEntry* SectionReader::find(std::string_view key) {
  known_.push_back(key);
  return section_ == nullptr ? nullptr : section_->find(key);
}

bool SectionReader::boolean(std::string_view key, bool otherwise) {
  const sipmsg::IniEntry* entry = find(key);
  if (entry == nullptr) return otherwise;
  if (const auto value = sipmsg::parse_boolean(entry->value)) return *value;
  remark_on(entry, Severity::warning,
            shown(*entry) + " is neither yes nor no; it is " + (otherwise ? "yes" : "no"));
  return otherwise;
}

std::uint64_t SectionReader::number(std::string_view key, std::uint64_t otherwise,
                                    std::uint64_t minimum, std::uint64_t maximum) {
  const sipmsg::IniEntry* entry = find(key);
  if (entry == nullptr) return otherwise;
  const auto value = sipmsg::parse_integer(entry->value);
  std::uint64_t used = otherwise;
  if (value) used = *value < 0 ? minimum : static_cast<std::uint64_t>(*value);
  used = std::clamp(used, minimum, maximum);
  if (!value || *value < 0 || used != static_cast<std::uint64_t>(*value)) {
    remark_on(entry, Severity::warning,
              shown(*entry) + " is no number from " + std::to_string(minimum) + " to " +
                  std::to_string(maximum) + "; it is " + std::to_string(used));
  }
  return used;
}

std::string SectionReader::text(std::string_view key, std::string_view otherwise) {
  const sipmsg::IniEntry* entry = find(key);
  return entry == nullptr ? std::string(otherwise) : entry->value;
}

std::string SectionReader::expanded(std::string_view key, std::string_view otherwise) {
  return sipmsg::expand_run_parameters(text(key, otherwise), run_parameters_);
}

std::string SectionReader::text_or_file(std::string_view key, std::size_t limit) {
  const sipmsg::IniEntry* entry = find(key);
  if (entry == nullptr) return {};
  if (entry->value.empty() || entry->value.front() != '@') return entry->value;
  const std::string path = sipmsg::expand_run_parameters(
      sipmsg::trim(std::string_view(entry->value).substr(1)), run_parameters_);
  sipmsg::Result<std::string> read = sipmsg::read_file(path, limit);
  if (read) return std::move(read).value();
  const bool is_large = read.error().code == sipmsg::ErrorCode::too_large;
  remark_on(entry, Severity::error,
            path + ": " +
                (is_large ? "has more than " + std::to_string(limit) + " octets"
                          : sipmsg::describe(read.error())));
  return {};
}

void SectionReader::remark(Severity severity, std::string_view key, std::string text) {
  remark_on(section_ == nullptr ? nullptr : section_->find(key), severity, std::move(text));
}

void SectionReader::remark_on(const sipmsg::IniEntry* entry, Severity severity, std::string text) {
  const std::uint32_t section_file = section_ == nullptr ? 0 : section_->file;
  const std::uint32_t section_line = section_ == nullptr ? 0 : section_->line;
  std::string where = "[" + name() + "]";
  if (entry != nullptr) where += " " + entry->key;
  diagnostics_.push_back({severity, ini_.files()[entry == nullptr ? section_file : entry->file],
                          entry == nullptr ? section_line : entry->line, where + ": " + text});
}

void SectionReader::warn_of_unknown_keys() {
  if (section_ == nullptr) return;
  std::string all;
  for (std::string_view key : known_) all.append(all.empty() ? "" : ", ").append(key);
  for (const sipmsg::IniEntry& entry : section_->entries) {
    if (std::find(known_.begin(), known_.end(), entry.key) != known_.end()) continue;
    remark_on(&entry, Severity::warning, "unknown key; known are " + all);
  }
}

}  // namespace modules::database
