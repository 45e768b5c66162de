// Reads the input as a configuration file.
#include "fuzz.hpp"

using namespace sipmsg;
using fuzz::require;
using fuzz::touch;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  IniOptions options;
  options.run_parameters = {{"version", "0.1.0"}, {"nodename", "fuzz"}};
  options.loaded_modules = {"regfile"};
  options.max_entries = 5000;  // sections that include one another double at every level
  Diagnostics diagnostics;
  const Ini ini = parse_ini(fuzz::as_text(data, size), "fuzz.conf", options, diagnostics);
  std::size_t entries = 0;
  for (const IniSection& section : ini.sections()) {
    touch(section.name);
    require(ini.find(section.name) == &section, "a section is found by its name");
    for (const IniEntry& entry : section.entries) {
      touch(entry.key);
      touch(entry.value);
      require(section.find(entry.key) != nullptr, "an entry is found by its key");
      require(entry.file < ini.files().size(), "an entry has its file");
      require(entry.line <= size + 1, "an entry has its line");
      for (std::string_view piece : split_list(entry.value)) touch(piece);
      static_cast<void>(parse_boolean(entry.value));
      static_cast<void>(parse_integer(entry.value));
      touch(expand_run_parameters(entry.value, options.run_parameters));
      ++entries;
    }
  }
  require(entries <= options.max_entries, "the number of entries is bounded");
  for (const Diagnostic& diagnostic : diagnostics) {
    const std::string text = to_text(diagnostic);
    require(text.find_first_of("\r\n") == std::string::npos, "a diagnostic is one line");
  }
  return 0;
}
