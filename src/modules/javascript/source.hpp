// javascript/source: a script's text, with the files it includes put in their places.
//
// A line `#include "f"` stands for the file's text, `#require "f"` does so the first time only. The
// engine sees one text, and LineMap says which line of which file one of its lines was.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "sipmsg.hpp"

namespace modules {

/// From line `first` of the joined text on, until the next piece begins, stand the lines of a file
/// from `line` on.
struct SourcePiece {
  std::uint32_t first = 0;
  std::uint32_t file = 0;
  std::uint32_t line = 0;
};

struct SourcePosition {
  std::string file;
  std::uint32_t line = 0;
};

struct ScriptSource {
  std::string name;                ///< as javascript.conf has it, for log lines
  std::string text;                ///< all of it, joined
  std::vector<std::string> files;  ///< paths, the script's own first
  std::vector<SourcePiece> pieces;

  /// Where a line of the joined text, counted from 1, comes from.
  SourcePosition position(std::uint32_t joined_line) const;
};

struct SourceOptions {
  std::string include_directory;    ///< looked in where the file is not beside the one including it
  std::size_t max_length = 500000;  ///< octets, of the joined text
  bool auto_extensions = true;      ///< "f" may be the file f.js
};

/// The file a script or an included name stands for, or "" where there is none.
std::string find_script(const std::string& directory, const std::string& name,
                        const SourceOptions& options);

/// Reads the script at `path`. False where it or what it includes cannot be used; why stands in
/// `diagnostics` then.
bool read_script(const std::string& path, const SourceOptions& options, ScriptSource& source,
                 sipmsg::Diagnostics& diagnostics);

/// Compiles it, runs nothing. False where its syntax is wrong; `diagnostics` says where.
bool check_syntax(const ScriptSource& source, std::size_t memory_limit,
                  sipmsg::Diagnostics& diagnostics);

}  // namespace modules
