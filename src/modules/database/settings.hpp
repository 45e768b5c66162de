// database/settings: one section of a module's file, read key by key.
//
// As with the server's own files, a value that cannot be used is named with file and line, what was
// found and what is allowed, and the default takes its place, so that a file that works with Yate
// works here too. A value is never shown where it could be a secret.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "sipmsg.hpp"

namespace modules::database {

class SectionReader {
 public:
  /// Everything is borrowed. A null `section` has the name "" and no keys.
  SectionReader(const sipmsg::Ini& ini, const sipmsg::IniSection* section,
                const sipmsg::RunParameters& run_parameters, sipmsg::Diagnostics& diagnostics)
      : ini_(ini), section_(section), run_parameters_(run_parameters), diagnostics_(diagnostics) {}

  std::string name() const { return section_ == nullptr ? std::string() : section_->name; }

  bool boolean(std::string_view key, bool otherwise);
  /// A number outside of the range becomes the nearest inside.
  std::uint64_t number(std::string_view key, std::uint64_t otherwise, std::uint64_t minimum,
                       std::uint64_t maximum);
  std::string text(std::string_view key, std::string_view otherwise = {});
  /// The same with ${} of run parameters replaced.
  std::string expanded(std::string_view key, std::string_view otherwise = {});
  /// The file that the value names behind its `@`, at most `limit` octets; else the value itself.
  /// One that cannot be read is an error.
  std::string text_or_file(std::string_view key, std::size_t limit);

  /// A remark on that key, or on the section where it has no such key.
  void remark(sipmsg::Severity severity, std::string_view key, std::string text);
  /// Warns of every key that none of the calls above asked for.
  void warn_of_unknown_keys();

 private:
  const sipmsg::IniEntry* find(std::string_view key);
  void remark_on(const sipmsg::IniEntry* entry, sipmsg::Severity severity, std::string text);

  const sipmsg::Ini& ini_;
  const sipmsg::IniSection* section_;
  const sipmsg::RunParameters& run_parameters_;
  sipmsg::Diagnostics& diagnostics_;
  std::vector<std::string_view> known_;
};

}  // namespace modules::database
