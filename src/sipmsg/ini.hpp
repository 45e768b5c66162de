// ini: the configuration grammar of Yate, every value with its file and line.
//
// Lines are comments, section headers, keys, or directives in brackets that include files and
// sections and switch stretches of a file on and off. Reading is done once and keeps everything in
// the order it was written, duplicates too: what a key means is for `settings` to say. Files come
// through an interface, so that this part needs no file system and a test needs no disk.
//
// Left out on purpose: writing such files, and the replacement of ${} in values, which each reader
// of a value decides for itself (`expand_run_parameters` is there for it).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text.hpp"

namespace sipmsg {

// ---- what can be said about a configuration ----

/// `error`: cannot work as written. `warning`: works, but hardly as meant. `info`: good to know.
enum class Severity : std::uint8_t { error, warning, info };

inline const char* severity_name(Severity severity) {
  switch (severity) {
    case Severity::error: return "error";
    case Severity::warning: return "warning";
    case Severity::info: break;
  }
  return "info";
}

/// One remark on one line; line 0 is the file as a whole.
struct Diagnostic {
  Severity severity = Severity::info;
  std::string file;
  std::uint32_t line = 0;
  std::string text;
};

/// "FILE:LINE: SEVERITY: TEXT", the form that editors and terminals make clickable. Names out of
/// the file stand in it, so control octets, which a terminal would obey, come out as question
/// marks.
inline std::string to_text(const Diagnostic& diagnostic) {
  std::string out = diagnostic.file;
  if (diagnostic.line != 0) out += ":" + std::to_string(diagnostic.line);
  out.append(": ").append(severity_name(diagnostic.severity)).append(": ").append(diagnostic.text);
  for (char& c : out) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return out;
}

/// Remarks in the order they were made.
using Diagnostics = std::vector<Diagnostic>;

inline std::size_t count(const Diagnostics& diagnostics, Severity severity) {
  std::size_t found = 0;
  for (const Diagnostic& diagnostic : diagnostics) {
    if (diagnostic.severity == severity) ++found;
  }
  return found;
}

// ---- values ----

/// A boolean as Yate writes it, lower case only. Nothing for any other text: `1`, `0`, `YES` and
/// the empty text are no booleans, and stand for the default of their key.
inline std::optional<bool> parse_boolean(std::string_view text) {
  for (std::string_view word : {"true", "yes", "on", "enable", "t"}) {
    if (text == word) return true;
  }
  for (std::string_view word : {"false", "no", "off", "disable", "f"}) {
    if (text == word) return false;
  }
  return std::nullopt;
}

/// A C integer that is the whole text: decimal, 0x and hexadecimal, or 0 and octal, with a sign or
/// without. One too large for 64 bits becomes the largest, or the smallest, there is: whoever knows
/// the range of the key clamps it. Nothing where it is no such number.
inline std::optional<std::int64_t> parse_integer(std::string_view text) {
  bool negative = false;
  if (!text.empty() && (text.front() == '-' || text.front() == '+')) {
    negative = text.front() == '-';
    text.remove_prefix(1);
  }
  std::uint64_t base = 10;
  if (text.size() > 2 && text[0] == '0' && to_lower(text[1]) == 'x') {
    base = 16;
    text.remove_prefix(2);
  } else if (text.size() > 1 && text[0] == '0') {
    base = 8;
    text.remove_prefix(1);
  }
  if (text.empty()) return std::nullopt;
  constexpr std::uint64_t largest = INT64_MAX;
  std::uint64_t value = 0;
  for (char c : text) {
    const int digit = hex_value(c);
    if (digit < 0 || static_cast<std::uint64_t>(digit) >= base) return std::nullopt;
    const auto more = static_cast<std::uint64_t>(digit);
    value = value > (largest - more) / base ? largest : value * base + more;
  }
  const auto magnitude = static_cast<std::int64_t>(value);
  return negative ? -magnitude : magnitude;
}

/// A word that stands for a number.
struct IniKeyword {
  std::string_view word;
  std::int64_t value;
};

/// The value of a keyword, spelt exactly; else the integer it is; else nothing.
inline std::optional<std::int64_t> parse_keyword(std::string_view text, const IniKeyword* words,
                                                 std::size_t word_count) {
  for (std::size_t i = 0; i < word_count; ++i) {
    if (words[i].word == text) return words[i].value;
  }
  return parse_integer(text);
}

/// The pieces between commas, trimmed, without the empty ones. Views into `text`.
inline std::vector<std::string_view> split_list(std::string_view text) {
  std::vector<std::string_view> pieces;
  while (!text.empty()) {
    const std::size_t comma = text.find(',');
    const std::string_view piece = trim(text.substr(0, comma));
    if (!piece.empty()) pieces.push_back(piece);
    text = comma == std::string_view::npos ? std::string_view() : text.substr(comma + 1);
  }
  return pieces;
}

/// A named value that the program gives to its configuration: `configpath`, `version`, `nodename`.
struct RunParameter {
  std::string name;
  std::string value;
};
using RunParameters = std::vector<RunParameter>;

/// `text` with each `${name}` replaced by that parameter, or by nothing where there is none;
/// `${name$default}` names what takes its place instead. What was put in is not looked at again.
inline std::string expand_run_parameters(std::string_view text, const RunParameters& parameters) {
  std::string out;
  while (true) {
    const std::size_t open = text.find("${");
    const std::size_t close = open == std::string_view::npos ? open : text.find('}', open);
    if (close == std::string_view::npos) return out.append(text);
    std::string_view name = trim(text.substr(open + 2, close - open - 2));
    std::string_view value;
    if (const std::size_t dollar = name.find('$'); dollar != std::string_view::npos) {
      value = trim(name.substr(dollar + 1));
      name = trim(name.substr(0, dollar));
    }
    for (const RunParameter& parameter : parameters) {
      if (parameter.name != name) continue;
      value = parameter.value;
      break;
    }
    out.append(text.substr(0, open)).append(value);
    text.remove_prefix(close + 1);
  }
}

// ---- what a file holds ----

struct IniEntry {
  std::string key;
  std::string value;       ///< empty for a key without `=`
  std::uint32_t file = 0;  ///< index into Ini::files()
  std::uint32_t line = 0;  ///< of a continued value: the first
};

struct IniSection {
  std::string name;
  std::vector<IniEntry> entries;  ///< as written, duplicates too
  std::uint32_t file = 0;         ///< where the name stood first
  std::uint32_t line = 0;

  /// The first entry of that name, or null. Names are case sensitive.
  const IniEntry* find(std::string_view key) const {
    for (const IniEntry& entry : entries) {
      if (entry.key == key) return &entry;
    }
    return nullptr;
  }
};

namespace detail {
class IniReader;
}

/// A configuration as it was read. Pointers and references into it live as long as it is unchanged.
class Ini {
 public:
  const std::vector<IniSection>& sections() const { return sections_; }
  /// The paths that were read, the one asked for first, also where it could not be read.
  const std::vector<std::string>& files() const { return files_; }
  /// False where a `$require` or `$requiresection` found nothing.
  bool complete() const { return complete_; }

  /// The section of that name, or null. Names are case sensitive.
  const IniSection* find(std::string_view section) const {
    if (slots_.empty()) return nullptr;
    const std::uint32_t number = slots_[slot_of(section)];
    return number == 0 ? nullptr : &sections_[number - 1];
  }
  /// The first entry of that name in that section, or null.
  const IniEntry* find(std::string_view section, std::string_view key) const {
    const IniSection* found = find(section);
    return found == nullptr ? nullptr : found->find(key);
  }

 private:
  friend class detail::IniReader;

  /// Where that name stands in the hash table, or the free slot where it would (a regfile may have
  /// a section for each of ten thousand users, so a walk over them for each would not do).
  std::size_t slot_of(std::string_view name) const {
    std::uint32_t hash = 2166136261u;  // FNV-1a
    for (char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619u;
    std::size_t slot = hash & (slots_.size() - 1);
    while (slots_[slot] != 0 && sections_[slots_[slot] - 1].name != name) {
      slot = (slot + 1) & (slots_.size() - 1);
    }
    return slot;
  }

  /// The number of that section, which is made where it is new.
  std::size_t open_section(std::string name, std::uint32_t file, std::uint32_t line) {
    if ((sections_.size() + 1) * 2 > slots_.size()) grow();
    const std::size_t slot = slot_of(name);
    if (slots_[slot] != 0) return slots_[slot] - std::size_t{1};
    sections_.push_back({std::move(name), {}, file, line});
    slots_[slot] = static_cast<std::uint32_t>(sections_.size());
    return sections_.size() - 1;
  }

  void grow() {
    slots_.assign(slots_.empty() ? 16 : slots_.size() * 2, 0);
    for (std::size_t i = 0; i < sections_.size(); ++i) {
      slots_[slot_of(sections_[i].name)] = static_cast<std::uint32_t>(i + 1);
    }
  }

  std::vector<IniSection> sections_;
  std::vector<std::uint32_t> slots_;  ///< open addressing: section number + 1, 0 = free
  std::vector<std::string> files_;
  bool complete_ = true;
};

// ---- reading ----

/// Where files come from. Paths are as written in the configuration, relative ones put behind the
/// directory of the file that names them.
class IniSource {
 public:
  /// The whole file. Error: `file`.
  virtual Result<std::string> read(const std::string& path) = 0;
  /// The names of the regular files in a directory, in any order, without the path. Error: `file`
  /// where `path` is no directory.
  virtual Result<std::vector<std::string>> list(const std::string& path) = 0;

 protected:
  ~IniSource() = default;
};

struct IniOptions {
  RunParameters run_parameters;             ///< for ${} in section names and directives
  std::vector<std::string> loaded_modules;  ///< for `$loaded`: names like "regfile"
  std::uint32_t max_include_depth = 10;     ///< files inside files
  std::uint32_t max_files = 10000;          ///< read in all
  std::uint32_t max_entries = 1000000;      ///< kept in all
};

namespace detail {

/// Takes the lines of a text one by one. A line ends at LF, CR LF, CR or NUL.
class IniLines {
 public:
  explicit IniLines(std::string_view text) : rest_(text) {
    if (rest_.substr(0, 3) == byte_order_mark) rest_.remove_prefix(3);
  }

  /// The next line without its leading blanks, or false at the end.
  bool next(std::string_view& line) {
    if (rest_.empty()) return false;
    ++number_;
    constexpr std::string_view ends("\n\r\0", 3);
    const std::size_t end = rest_.find_first_of(ends);
    line = rest_.substr(0, end);
    while (!line.empty() && is_blank(line.front())) line.remove_prefix(1);
    if (end == std::string_view::npos) {
      rest_ = {};
      return true;
    }
    saw_nul_ = saw_nul_ || rest_[end] == '\0';
    const bool two_octets = rest_.substr(end, 2) == "\r\n";
    rest_.remove_prefix(end + (two_octets ? 2 : 1));
    return true;
  }

  std::uint32_t number() const { return number_; }  ///< of the line taken last, from 1
  bool saw_nul() const { return saw_nul_; }

 private:
  std::string_view rest_;
  std::uint32_t number_ = 0;
  bool saw_nul_ = false;
};

/// Takes `word` and the blanks behind it off the front of `text`, where it stands there as a word
/// of its own.
inline bool ini_skip_word(std::string_view& text, std::string_view word) {
  if (text.substr(0, word.size()) != word) return false;
  if (text.size() > word.size() && !is_blank(text[word.size()])) return false;
  text = trim(text.substr(word.size()));
  return true;
}

/// A module by any of the names Yate's users write: regfile, regfile.yate, server/regfile.yate.
inline std::string_view ini_module_name(std::string_view text) {
  if (const std::size_t slash = text.rfind('/'); slash != std::string_view::npos) {
    text.remove_prefix(slash + 1);
  }
  constexpr std::string_view ending = ".yate";
  if (text.size() > ending.size() && text.substr(text.size() - ending.size()) == ending) {
    text.remove_suffix(ending.size());
  }
  return text;
}

class IniReader {
 public:
  IniReader(Ini& ini, IniSource* source, const IniOptions& options, Diagnostics& diagnostics)
      : ini_(ini), source_(source), options_(options), diagnostics_(diagnostics) {}

  Error read_main_file(const std::string& path) {
    Result<std::string> text = source_->read(path);
    read_text_as(path, *text);
    return text.error();
  }

  void read_text_as(const std::string& path, std::string_view text) {
    ini_.files_.push_back(path);
    read_text(text, 0, no_section);
    for (std::size_t i = 0; i < unresolved_.size(); ++i) resolve(unresolved_[i]);
  }

 private:
  static constexpr std::size_t no_section = static_cast<std::size_t>(-1);
  /// How deep sections may include sections; each level is one call of `resolve`.
  static constexpr std::size_t max_section_depth = 100;
  /// The key under which a `$includesection` waits in its section for the end of the reading. No
  /// line can make such a key: one that begins with a bracket is no key line.
  static constexpr std::string_view placeholder_key = "[]";

  enum class Kind : std::uint8_t { note_if_missing, silent_if_missing, required };

  /// One file while it is read.
  struct Place {
    IniLines lines;
    std::uint32_t file;
    std::size_t section;  ///< the current one, or no_section
    std::uint32_t line() const { return lines.number(); }
  };

  // -- lines --

  /// An included file begins in the section of the one that includes it, and leaves that one's
  /// section as it was.
  void read_text(std::string_view text, std::uint32_t file, std::size_t section) {
    open_files_.push_back(file);
    Place place{IniLines(text), file, section};
    bool enabled = true;
    std::string_view line;
    while (place.lines.next(line)) {
      if (line.empty() || line.front() == ';') continue;
      if (line.front() == '[') {
        read_bracket_line(place, line, enabled);
      } else {
        read_key_line(place, line, enabled);
      }
    }
    if (place.lines.saw_nul()) {
      diagnostics_.push_back(
          {Severity::warning, ini_.files_[file], 0, "holds NUL octets; each ends its line"});
    }
    open_files_.pop_back();
  }

  void read_bracket_line(Place& place, std::string_view line, bool& enabled) {
    const std::size_t close = line.find(']');
    if (close == std::string_view::npos) {
      return warn(place, "a line that begins with [ has no ]; it is ignored");
    }
    std::string_view name = trim(line.substr(1, close - 1));
    if (name.empty()) return warn(place, "a section without a name is ignored");
    if (ini_skip_word(name, "$enabled")) {
      enabled = is_enabled(name, enabled);
      return;
    }
    if (!enabled || read_include(place, name) || read_include_section(place, name)) return;
    std::string expanded = expand(name);
    if (expanded.empty()) {
      warn(place, "the section's name is empty after replacement; its keys are ignored");
      place.section = no_section;
      return;
    }
    place.section = ini_.open_section(std::move(expanded), place.file, place.line());
  }

  /// Continuation lines belong to a key line also where that is switched off.
  void read_key_line(Place& place, std::string_view line, bool enabled) {
    const std::uint32_t line_number = place.line();
    const std::size_t equals = line.find('=');
    const std::string_view key = trim(line.substr(0, equals));
    std::string value;
    if (equals != std::string_view::npos && equals > 0) {
      value = line.substr(equals + 1);
      while (!value.empty() && value.back() == '\\') {
        value.pop_back();
        std::string_view next;
        if (!place.lines.next(next)) break;
        value.append(next);
      }
      value = std::string(trim(value));
    }
    if (!enabled) return;
    if (key.empty()) return warn(place, "a value without a key is ignored");
    if (place.section == no_section) {
      return warn(place, "a key outside any section is ignored");
    }
    add_entry(place.section, {std::string(key), std::move(value), place.file, line_number});
  }

  void add_entry(std::size_t section, IniEntry entry) {
    if (has_room(entry)) ini_.sections_[section].entries.push_back(std::move(entry));
  }

  /// Sections that include one another can grow without end; so can a directory that includes
  /// itself by many names.
  bool has_room(const IniEntry& entry) {
    if (++entry_count_ <= options_.max_entries) return true;
    if (entry_count_ == options_.max_entries + std::size_t{1}) {
      say(Severity::error, entry.file, entry.line,
          "more than " + std::to_string(options_.max_entries) + " keys; the rest is ignored");
    }
    return false;
  }

  // -- directives --

  bool is_enabled(std::string_view condition, bool enabled) const {
    if (condition == "else" || condition == "toggle") return !enabled;
    if (ini_skip_word(condition, "elseif") && enabled) return false;
    const std::string expanded = expand(condition);
    std::string_view text = trim(expanded);
    const bool inverted = ini_skip_word(text, "$not");
    return evaluate(text) != inverted;
  }

  bool evaluate(std::string_view text) const {
    if (ini_skip_word(text, "$loaded")) return is_loaded(text);
    if (ini_skip_word(text, "$unloaded")) return !is_loaded(text);
    if (ini_skip_word(text, "$filled")) return !text.empty();
    if (ini_skip_word(text, "$empty")) return text.empty();
    const bool otherwise = !ini_skip_word(text, "$bool");
    return parse_boolean(text).value_or(otherwise);
  }

  bool is_loaded(std::string_view module) const {
    for (const std::string& loaded : options_.loaded_modules) {
      if (ini_module_name(module) == loaded) return true;
    }
    return false;
  }

  /// Splits "KEYWORD ARGUMENT". Without an argument it is no directive, but the name of a section.
  static bool take_directive(std::string_view& text, std::string_view keyword) {
    return text.size() > keyword.size() && ini_skip_word(text, keyword);
  }

  bool read_include(Place& place, std::string_view directive) {
    Kind kind = Kind::note_if_missing;
    if (take_directive(directive, "$require")) {
      kind = Kind::required;
    } else if (take_directive(directive, "$includesilent")) {
      kind = Kind::silent_if_missing;
    } else if (!take_directive(directive, "$include")) {
      return false;
    }
    const std::string argument = expand(directive);
    if (argument.empty()) {
      missing(place.file, place.line(), kind, "the path to include is empty");
      return true;
    }
    std::string path = path_beside(ini_.files_[place.file], argument);
    Result<std::vector<std::string>> names = list(path);
    if (!names) {
      include_file(place, path, kind);
      return true;
    }
    if (path.back() != '/') path += '/';
    for (const std::string& name : sorted_names(*names)) include_file(place, path + name, kind);
    return true;
  }

  Result<std::vector<std::string>> list(const std::string& path) {
    if (source_ == nullptr) return ErrorCode::file;
    return source_->list(path);
  }

  void include_file(Place& place, const std::string& path, Kind kind) {
    if (open_files_.size() > options_.max_include_depth) {
      return refuse(place, kind, path, "files include files more than ",
                    std::to_string(options_.max_include_depth) + " deep");
    }
    for (std::uint32_t open : open_files_) {
      if (ini_.files_[open] == path) return refuse(place, kind, path, "it includes itself", "");
    }
    if (ini_.files_.size() >= options_.max_files) {
      return refuse(place, kind, path, "there are more files than ",
                    std::to_string(options_.max_files));
    }
    Result<std::string> text =
        source_ == nullptr ? Result<std::string>(ErrorCode::file) : source_->read(path);
    if (!text) {
      return missing(place.file, place.line(), kind, "cannot read the file " + path);
    }
    ini_.files_.push_back(path);
    read_text(*text, static_cast<std::uint32_t>(ini_.files_.size() - 1), place.section);
  }

  void refuse(const Place& place, Kind kind, const std::string& path, std::string_view why,
              std::string_view more) {
    if (kind == Kind::required) ini_.complete_ = false;
    warn(place, std::string("does not read ").append(path).append(": ").append(why).append(more));
  }

  void missing(std::uint32_t file, std::uint32_t line, Kind kind, std::string text) {
    if (kind == Kind::silent_if_missing) return;
    if (kind == Kind::required) ini_.complete_ = false;
    say(Severity::warning, file, line, std::move(text));
  }

  /// `argument` as seen from the directory of `file`, each run of slashes made one: a file must not
  /// escape the check for self-inclusion by another spelling.
  static std::string path_beside(std::string_view file, std::string_view argument) {
    std::string path;
    const std::size_t slash = file.rfind('/');
    if (argument.front() != '/' && slash != std::string_view::npos) {
      path = file.substr(0, slash + 1);
    }
    for (char c : argument) {
      if (c != '/' || path.empty() || path.back() != '/') path.push_back(c);
    }
    return path;
  }

  /// In byte order, without the leftovers of editors and packages.
  static std::vector<std::string> sorted_names(const std::vector<std::string>& names) {
    std::vector<std::string> sorted;
    for (const std::string& name : names) {
      if (name.empty() || name.front() == '.' || ends_with(name, "~") || ends_with(name, ".bak") ||
          ends_with(name, ".tmp")) {
        continue;
      }
      std::size_t place = sorted.size();
      while (place > 0 && name < sorted[place - 1]) --place;
      sorted.insert(sorted.begin() + static_cast<std::ptrdiff_t>(place), name);
    }
    return sorted;
  }
  static bool ends_with(std::string_view text, std::string_view ending) {
    return text.size() >= ending.size() && text.substr(text.size() - ending.size()) == ending;
  }

  // -- sections inside sections --

  static std::optional<Kind> take_section_directive(std::string_view& text) {
    if (take_directive(text, "$requiresection")) return Kind::required;
    if (take_directive(text, "$includesectionsilent")) return Kind::silent_if_missing;
    if (take_directive(text, "$includesection")) return Kind::note_if_missing;
    return std::nullopt;
  }

  /// Leaves a placeholder: the section named may come later in the file.
  bool read_include_section(Place& place, std::string_view directive) {
    std::string_view name = directive;
    const std::optional<Kind> kind = take_section_directive(name);
    if (!kind) return false;
    if (place.section == no_section) {
      missing(place.file, place.line(), *kind, "a section is included outside any section");
      return true;
    }
    add_entry(place.section,
              {std::string(placeholder_key), std::string(directive), place.file, place.line()});
    if (unresolved_.empty() || unresolved_.back() != place.section) {
      unresolved_.push_back(place.section);
    }
    return true;
  }

  /// Puts the entries of included sections where their placeholders are, the innermost first.
  void resolve(std::size_t section) {
    stack_.push_back(section);
    std::vector<IniEntry> written = std::move(ini_.sections_[section].entries);
    std::vector<IniEntry> entries;
    for (IniEntry& entry : written) {
      if (entry.key == placeholder_key) {
        insert_section(entry, entries);
      } else {
        entries.push_back(std::move(entry));
      }
    }
    ini_.sections_[section].entries = std::move(entries);
    stack_.pop_back();
  }

  void insert_section(const IniEntry& placeholder, std::vector<IniEntry>& entries) {
    std::string_view text = placeholder.value;
    const Kind kind = take_section_directive(text).value_or(Kind::note_if_missing);
    const std::string name = expand(text);
    const auto give_up = [&](std::string_view why) {
      missing(placeholder.file, placeholder.line, kind,
              std::string("does not include the section [").append(name).append("]: ").append(why));
    };
    const IniSection* found = ini_.find(name);
    if (found == nullptr) return give_up("there is none");
    const auto number = static_cast<std::size_t>(found - ini_.sections_.data());
    for (std::size_t open : stack_) {
      if (open == number) return give_up("it includes itself");
    }
    if (stack_.size() >= max_section_depth) return give_up("too many sections inside sections");
    resolve(number);
    for (const IniEntry& entry : ini_.sections_[number].entries) {
      if (has_room(entry)) entries.push_back(entry);
    }
  }

  // -- small things --

  std::string expand(std::string_view text) const {
    return expand_run_parameters(text, options_.run_parameters);
  }
  void warn(const Place& place, std::string text) {
    say(Severity::warning, place.file, place.line(), std::move(text));
  }
  void say(Severity severity, std::uint32_t file, std::uint32_t line, std::string text) {
    diagnostics_.push_back({severity, ini_.files_[file], line, std::move(text)});
  }

  Ini& ini_;
  IniSource* source_;
  const IniOptions& options_;
  Diagnostics& diagnostics_;
  std::vector<std::uint32_t> open_files_;  ///< the file that is read and those around it
  std::vector<std::size_t> unresolved_;    ///< sections that hold placeholders
  std::vector<std::size_t> stack_;         ///< sections whose placeholders are being replaced
  std::size_t entry_count_ = 0;
};

}  // namespace detail

/// Reads the file at `path` and all it includes into `ini`, which it empties first, and adds to
/// `diagnostics` what there is to remark. Nothing of what the file says is an error of this call.
/// Error: `file`, where `path` itself cannot be read; `ini` is then empty but for the path.
inline Error load_ini(IniSource& source, const std::string& path, const IniOptions& options,
                      Ini& ini, Diagnostics& diagnostics) {
  ini = Ini();
  return detail::IniReader(ini, &source, options, diagnostics).read_main_file(path);
}

/// Reads one text, which can include sections but no files; `name` stands for it in diagnostics.
inline Ini parse_ini(std::string_view text, const std::string& name, const IniOptions& options,
                     Diagnostics& diagnostics) {
  Ini ini;
  detail::IniReader(ini, nullptr, options, diagnostics).read_text_as(name, text);
  return ini;
}

}  // namespace sipmsg
