// javascript/source: see source.hpp.
#include "source.hpp"

#include <algorithm>
#include <string_view>

#include "heap.hpp"

namespace modules {

namespace {

using sipmsg::Diagnostics;
using sipmsg::Severity;

constexpr std::size_t max_include_depth = 10;

/// What a line `#include "f"` or `#require "f"` says.
struct Directive {
  std::string_view file;  ///< empty where the line is no directive
  bool once = false;
};

Directive parse_directive(std::string_view line) {
  Directive directive;
  line = sipmsg::trim(line);
  constexpr std::string_view include = "#include";
  constexpr std::string_view require = "#require";
  const std::string_view word = line.substr(0, include.size());
  if (word != include && word != require) return directive;
  directive.once = word == require;
  line = sipmsg::trim(line.substr(word.size()));
  if (line.empty() || line.front() != '"') return directive;
  line.remove_prefix(1);
  const std::size_t end = line.find('"');
  if (end != std::string_view::npos) directive.file = line.substr(0, end);
  return directive;
}

std::string directory_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

class SourceReader {
 public:
  SourceReader(const SourceOptions& options, ScriptSource& source, Diagnostics& diagnostics)
      : options_(options), source_(source), diagnostics_(diagnostics) {}

  bool read(const std::string& path, std::size_t depth) {
    auto text = sipmsg::read_file(path, options_.max_length);
    if (!text) {
      const bool large = text.error().code == sipmsg::ErrorCode::too_large;
      return refuse(path, 0, large ? too_long() : "cannot be read: " + describe(text.error()));
    }
    const auto file = static_cast<std::uint32_t>(source_.files.size());
    source_.files.push_back(path);
    return join(*text, file, depth);
  }

 private:
  bool join(std::string_view text, std::uint32_t file, std::size_t depth) {
    source_.pieces.push_back({line_, file, 1});
    for (std::uint32_t number = 1; !text.empty(); ++number) {
      const std::size_t end = text.find('\n');
      const std::string_view line = text.substr(0, end);
      text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
      const Directive directive = parse_directive(line);
      if (directive.file.empty()) {
        source_.text.append(line).push_back('\n');
        ++line_;
      } else {
        if (!include(directive, file, number, depth)) return false;
        source_.pieces.push_back({line_, file, number + 1});
      }
      if (source_.text.size() > options_.max_length) {
        return refuse(source_.files[file], number, too_long());
      }
    }
    return true;
  }

  bool include(const Directive& directive, std::uint32_t file, std::uint32_t line,
               std::size_t depth) {
    const std::string including = source_.files[file];
    const std::string name(directive.file);
    std::string path = find_script(directory_of(including), name, options_);
    if (path.empty() && !options_.include_directory.empty()) {
      path = find_script(options_.include_directory, name, options_);
    }
    if (path.empty()) return refuse(including, line, "there is no file " + name + " to include");
    const bool known =
        std::find(source_.files.begin(), source_.files.end(), path) != source_.files.end();
    if (directive.once && known) return true;
    if (depth >= max_include_depth) {
      return refuse(including, line, "files include files more than 10 deep");
    }
    return read(path, depth + 1);
  }

  std::string too_long() const {
    return "with what it includes, the script is longer than max_length=" +
           std::to_string(options_.max_length) + " octets";
  }
  bool refuse(const std::string& file, std::uint32_t line, std::string text) {
    diagnostics_.push_back({Severity::error, file, line, std::move(text)});
    return false;
  }

  const SourceOptions& options_;
  ScriptSource& source_;
  Diagnostics& diagnostics_;
  std::uint32_t line_ = 1;  ///< of the joined text
};

/// What the protected call that compiles gets.
struct Compilation {
  const ScriptSource* source;
};

duk_ret_t compile(duk_context* context, void* data) {
  const ScriptSource& source = *static_cast<Compilation*>(data)->source;
  duk_push_lstring(context, source.text.data(), source.text.size());
  duk_push_lstring(context, source.name.data(), source.name.size());
  duk_compile(context, 0);
  return 0;
}

/// The number in "... (line 12, end of input)", or 0: Duktape tells the line of a mistake in syntax
/// only so.
std::uint32_t line_in(std::string_view message) {
  constexpr std::string_view before = "(line ";
  const std::size_t place = message.rfind(before);
  std::uint32_t line = 0;
  if (place == std::string_view::npos) return line;
  for (char c : message.substr(place + before.size())) {
    if (c < '0' || c > '9' || line > UINT32_MAX / 20) break;
    line = line * 10 + static_cast<std::uint32_t>(c - '0');
  }
  return line;
}

}  // namespace

SourcePosition ScriptSource::position(std::uint32_t joined_line) const {
  SourcePosition found;
  for (const SourcePiece& piece : pieces) {
    if (piece.first > joined_line) break;
    found.file = piece.file < files.size() ? files[piece.file] : std::string();
    found.line = piece.line + (joined_line - piece.first);
  }
  return found;
}

std::string find_script(const std::string& directory, const std::string& name,
                        const SourceOptions& options) {
  if (name.empty()) return {};
  std::string path = name.front() == '/' ? name : directory + "/" + name;
  if (sipmsg::detail::is_regular_file(path)) return path;
  path += ".js";
  return options.auto_extensions && sipmsg::detail::is_regular_file(path) ? path : std::string();
}

bool read_script(const std::string& path, const SourceOptions& options, ScriptSource& source,
                 Diagnostics& diagnostics) {
  return SourceReader(options, source, diagnostics).read(path, 0);
}

bool check_syntax(const ScriptSource& source, std::size_t memory_limit, Diagnostics& diagnostics) {
  ScriptHeap heap(memory_limit);
  Compilation compilation{&source};
  std::string message = "its memory_limit is too small";
  if (heap.context() != nullptr) {
    if (duk_safe_call(heap.context(), &compile, &compilation, 0, 1) == DUK_EXEC_SUCCESS) {
      return true;
    }
    message = duk_safe_to_string(heap.context(), -1);
  }
  const SourcePosition position = source.position(line_in(message));
  const std::string& file = position.file.empty() ? source.files.front() : position.file;
  diagnostics.push_back(
      {Severity::error, file, position.line, message.substr(0, message.rfind(" (line "))});
  return false;
}

}  // namespace modules
