// javascript/settings: see settings.hpp.
#include "settings.hpp"

#include <algorithm>
#include <cstdint>

namespace modules {

namespace {

using sipmsg::Diagnostics;
using sipmsg::Ini;
using sipmsg::IniEntry;
using sipmsg::IniSection;
using sipmsg::Severity;

/// A number of [general], with what is allowed and what to write to.
struct NumberKey {
  std::string_view name;
  std::int64_t least;
  std::int64_t most;
  std::int64_t value;
};

class SettingsReader {
 public:
  SettingsReader(const std::string& directory, JavascriptSettings& settings,
                 Diagnostics& diagnostics)
      : directory_(directory), settings_(settings), diagnostics_(diagnostics) {}

  bool read(const Ini& ini) {
    ini_ = &ini;
    scripts_directory_ = directory_;
    for (const IniSection& section : ini.sections()) {
      if (section.name == "general") read_general(section);
    }
    bool usable = true;
    for (const char* name : {"scripts", "late_scripts"}) {
      const IniSection* section = ini.find(name);
      if (section == nullptr) continue;
      for (const IniEntry& entry : section->entries) usable = read_script_entry(entry) && usable;
    }
    for (const IniSection& section : ini.sections()) remark_section(section);
    return usable;
  }

 private:
  void read_general(const IniSection& general) {
    NumberKey numbers[] = {
        {"max_length", 32768, 2097152, static_cast<std::int64_t>(options_.max_length)},
        {"time_limit", 10, 60000, static_cast<std::int64_t>(settings_.limits.time_limit_ms)},
        {"timeout", 100, 600000, static_cast<std::int64_t>(settings_.limits.timeout_ms)},
        {"memory_limit", 1 << 20, std::int64_t{1} << 30,
         static_cast<std::int64_t>(settings_.limits.memory_limit)},
        {"max_queue", 1, 100000, static_cast<std::int64_t>(settings_.limits.max_queue)}};
    for (NumberKey& key : numbers) {
      if (const IniEntry* entry = general.find(key.name)) read_number(*entry, key);
    }
    if (const IniEntry* entry = general.find("timeout")) settings_.timeout_line = entry->line;
    options_.max_length = static_cast<std::size_t>(numbers[0].value);
    settings_.limits.time_limit_ms = static_cast<std::uint64_t>(numbers[1].value);
    settings_.limits.timeout_ms = static_cast<std::uint64_t>(numbers[2].value);
    settings_.limits.memory_limit = static_cast<std::size_t>(numbers[3].value);
    settings_.limits.max_queue = static_cast<std::size_t>(numbers[4].value);
    if (const IniEntry* entry = general.find("scripts_dir")) scripts_directory_ = path_of(*entry);
    if (const IniEntry* entry = general.find("include_dir")) {
      options_.include_directory = path_of(*entry);
    }
    if (const IniEntry* entry = general.find("auto_extensions")) {
      const auto value = sipmsg::parse_boolean(entry->value);
      if (!value) say(Severity::warning, *entry, "is no boolean; yes is used");
      options_.auto_extensions = value.value_or(true);
    }
    for (const IniEntry& entry : general.entries) remark_key(entry);
  }

  void read_number(const IniEntry& entry, NumberKey& key) {
    const auto value = sipmsg::parse_integer(entry.value);
    if (!value) {
      return say(Severity::warning, entry,
                 "is no number; " + std::to_string(key.value) + " is used");
    }
    key.value = std::clamp(*value, key.least, key.most);
    if (key.value != *value) {
      say(Severity::warning, entry, "is out of range; " + std::to_string(key.value) + " is used");
    }
  }

  /// A path of the file, relative ones put behind the directory of the configuration.
  std::string path_of(const IniEntry& entry) const {
    std::string path = sipmsg::expand_run_parameters(entry.value, settings_.run_parameters);
    while (path.size() > 1 && path.back() == '/') path.pop_back();
    return !path.empty() && path.front() == '/' ? path : directory_ + "/" + path;
  }

  bool read_script_entry(const IniEntry& entry) {
    ScriptSource source;
    source.name = entry.key;
    const auto is_same = [&](const ScriptSource& other) { return other.name == entry.key; };
    if (std::any_of(settings_.scripts.begin(), settings_.scripts.end(), is_same)) {
      say(Severity::warning, entry, "stands there twice; the first counts");
      return true;
    }
    // A name alone is the file of that name.
    const std::string file = sipmsg::expand_run_parameters(
        entry.value.empty() ? entry.key : entry.value, settings_.run_parameters);
    const std::string path = find_script(scripts_directory_, file, options_);
    if (path.empty()) {
      say(Severity::error, entry, "there is no file " + file + " in " + scripts_directory_);
      return false;
    }
    if (!read_script(path, options_, source, diagnostics_)) return false;
    if (!check_syntax(source, settings_.limits.memory_limit, diagnostics_)) return false;
    settings_.scripts.push_back(std::move(source));
    return true;
  }

  void remark_key(const IniEntry& entry) {
    constexpr std::string_view used[] = {"scripts_dir", "include_dir",  "max_length",
                                         "time_limit",  "memory_limit", "auto_extensions",
                                         "timeout",     "max_queue"};
    constexpr std::string_view others[] = {"routing", "allow_abort", "allow_trace", "allow_link",
                                           "priority"};
    if (std::find(std::begin(used), std::end(used), entry.key) != std::end(used)) return;
    if (std::find(std::begin(others), std::end(others), entry.key) != std::end(others)) {
      return say(Severity::info, entry, "has no effect here");
    }
    sipmsg::detail::NearestName nearest(entry.key);
    for (std::string_view name : used) nearest.offer(name);
    std::string text = "is no key of [general]";
    if (!nearest.found().empty()) text.append("; did you mean ").append(nearest.found());
    say(Severity::warning, entry, text);
  }

  void remark_section(const IniSection& section) {
    const bool used =
        section.name == "general" || section.name == "scripts" || section.name == "late_scripts";
    if (used) return;
    const bool is_of_yate = section.name == "instances" || section.name == "handlers" ||
                            section.name == "posthooks" || section.name == "extensions";
    diagnostics_.push_back({is_of_yate ? Severity::info : Severity::warning,
                            ini_->files()[section.file], section.line,
                            "the section [" + section.name + "] has no effect here"});
  }

  void say(Severity severity, const IniEntry& entry, std::string_view text) {
    diagnostics_.push_back(
        {severity, ini_->files()[entry.file], entry.line, entry.key + ": " + std::string(text)});
  }

  const std::string& directory_;
  JavascriptSettings& settings_;
  Diagnostics& diagnostics_;
  const Ini* ini_ = nullptr;
  std::string scripts_directory_;
  SourceOptions options_;
};

}  // namespace

bool load_javascript(const std::string& directory, JavascriptSettings& settings,
                     Diagnostics& diagnostics) {
  const std::string path = directory + "/javascript.conf";
  if (!sipmsg::detail::is_regular_file(path)) return true;
  settings.path = path;
  settings.run_parameters = {{"configpath", directory}, {"version", SIPMSG_VERSION}};
  sipmsg::IniOptions options;
  options.run_parameters = settings.run_parameters;
  options.loaded_modules = {"javascript"};
  sipmsg::FileSource files;
  Ini ini;
  if (const sipmsg::Error error = load_ini(files, path, options, ini, diagnostics)) {
    diagnostics.push_back({Severity::error, path, 0, describe(error)});
    return false;
  }
  return SettingsReader(directory, settings, diagnostics).read(ini);
}

}  // namespace modules
