// regexroute/text: see text.hpp.
#include "text.hpp"

#include <algorithm>
#include <utility>

#include "../engine.hpp"
#include "functions.hpp"
#include "sipmsg.hpp"

namespace modules::regexroute {

namespace {

std::string quoted(std::string_view text) {
  constexpr std::size_t longest = 60;
  std::string out = "\"";
  out.append(text.substr(0, longest)).append(text.size() > longest ? "...\"" : "\"");
  return out;
}

}  // namespace

std::size_t end_of_call(std::string_view text) {
  for (std::size_t i = 2; i < text.size(); ++i) {
    if (text[i] == ')') return i + 1;
    if (text.substr(i, 2) != "${") continue;
    i = text.find('}', i);
    if (i == std::string_view::npos) return std::string_view::npos;
  }
  return std::string_view::npos;
}

// ---- taking apart ------------------------------------------------------------------------------

/// Reads one text into pieces; stops at the first mistake.
class TextReader {
 public:
  TextReader(Text& text, Text::Kind kind) : text_(text), kind_(kind) {}

  std::string read(std::string_view raw) {
    while (!raw.empty() && mistake_.empty()) raw.remove_prefix(take(raw));
    end_literal();
    return std::move(mistake_);
  }

 private:
  /// Takes what `raw` begins with and returns its size.
  std::size_t take(std::string_view raw) {
    if (kind_ != Text::Kind::condition && raw[0] == '\\') return take_escape(raw);
    if (kind_ != Text::Kind::name && raw.substr(0, 2) == "${") return take_parameter(raw);
    if (kind_ != Text::Kind::name && raw.substr(0, 2) == "$(") return take_call(raw);
    literal_ += raw[0];
    return 1;
  }

  /// A backslash before anything but a digit or another one stays where it is.
  std::size_t take_escape(std::string_view raw) {
    const char next = raw.size() > 1 ? raw[1] : '\0';
    if (sipmsg::is_digit(next)) {
      add(Capture{static_cast<std::size_t>(next - '0')});
      return 2;
    }
    literal_ += '\\';
    return next == '\\' ? 2 : 1;
  }

  std::size_t take_parameter(std::string_view raw) {
    const std::size_t close = raw.find('}');
    if (close == std::string_view::npos) return fail("${ without }: ", raw);
    const std::string_view content = raw.substr(2, close - 2);
    const std::size_t dollar = content.find('$');
    Parameter parameter;
    const std::string_view name = sipmsg::trim(content.substr(0, dollar));
    if (name.empty()) return fail("${} names no parameter: ", raw);
    read_inner(parameter.name, name);
    if (dollar != std::string_view::npos) {
      read_inner(parameter.otherwise, sipmsg::trim(content.substr(dollar + 1)));
    }
    add(std::move(parameter));
    return close + 1;
  }

  /// Inside ${} only captures are replaced.
  void read_inner(Text& inner, std::string_view raw) {
    if (kind_ == Text::Kind::target) {
      (void)inner.parse(raw, Text::Kind::name);
    } else if (!raw.empty()) {
      inner.pieces_.push_back({std::string(raw)});
    }
  }

  std::size_t take_call(std::string_view raw) {
    const std::size_t end = end_of_call(raw);
    if (end == std::string_view::npos) return fail("$( without ): ", raw);
    const std::string_view content = sipmsg::trim(raw.substr(2, end - 3));
    if (content.empty()) {
      literal_ += ';';
    } else if (content == "$") {
      literal_ += '$';
    } else if (content.find("$(") != std::string_view::npos) {
      return fail("a function inside a function; give the inner one to a parameter first: ", raw);
    } else {
      read_call(content);
    }
    return end;
  }

  void read_call(std::string_view content) {
    const FunctionName name = find_function(content);
    if (name.function == nullptr) {
      fail("unknown function ", content.substr(0, content.find(',')));
      return;
    }
    Call call;
    call.function = name.function;
    if (name.has_arguments) read_arguments(content.substr(name.size), call);
    if (call.arguments.size() < call.function->least) {
      fail("too few arguments: ", content);
      return;
    }
    add(std::move(call));
  }

  /// Arguments are divided by the commas of the file; the last one a function has takes the rest.
  void read_arguments(std::string_view raw, Call& call) {
    while (mistake_.empty()) {
      const bool is_last = call.arguments.size() + 1 == call.function->most;
      const std::size_t comma = is_last ? std::string_view::npos : end_of_argument(raw);
      read_argument(raw.substr(0, comma), call);
      if (comma == std::string_view::npos) return;
      raw.remove_prefix(comma + 1);
    }
  }

  static std::size_t end_of_argument(std::string_view raw) {
    for (std::size_t i = 0; i < raw.size(); ++i) {
      if (raw[i] == ',') return i;
      if (raw.substr(i, 2) == "${") i = std::min(raw.find('}', i), raw.size());
    }
    return std::string_view::npos;
  }

  void read_argument(std::string_view raw, Call& call) {
    Argument argument;
    if (!raw.empty() && raw[0] == '$' && raw.substr(0, 2) != "${") {
      argument.is_variable = true;
      raw = sipmsg::trim(raw.substr(1));
    }
    mistake_ = argument.text.parse(raw, kind_);
    call.arguments.push_back(std::move(argument));
  }

  template <class Content>
  void add(Content content) {
    end_literal();
    text_.pieces_.push_back({std::move(content)});
  }

  void end_literal() {
    if (!literal_.empty()) text_.pieces_.push_back({std::move(literal_)});
    literal_.clear();
  }

  /// Returns how much is left to read after a mistake: nothing.
  std::size_t fail(std::string_view what, std::string_view where) {
    mistake_ = std::string(what) + quoted(where);
    return where.size();
  }

  Text& text_;
  Text::Kind kind_;
  std::string literal_;
  std::string mistake_;
};

std::string Text::parse(std::string_view raw, Kind kind) {
  pieces_.clear();
  return TextReader(*this, kind).read(raw);
}

bool Text::is_literal() const {
  if (pieces_.empty()) return true;
  return pieces_.size() == 1 && std::holds_alternative<std::string>(pieces_[0].content);
}

std::string_view Text::literal() const {
  if (pieces_.empty() || !is_literal()) return {};
  return *std::get_if<std::string>(&pieces_[0].content);
}

// ---- putting together --------------------------------------------------------------------------

namespace {

/// Appends as much of `text` as the limit of a text allows.
void append(std::string& out, std::string_view text) {
  const std::size_t room = Text::max_size - std::min(out.size(), Text::max_size);
  out.append(text.substr(0, room));
}

void append_parameter(std::string& out, const Parameter& parameter, const Scope& scope) {
  const std::optional<std::string> value = parameter.name.is_literal()
                                               ? scope.message.get(parameter.name.literal())
                                               : scope.message.get(parameter.name.expand(scope));
  if (value) return append(out, *value);
  parameter.otherwise.append_to(out, scope);
}

}  // namespace

void Text::append_to(std::string& out, const Scope& scope) const {
  for (const Piece& piece : pieces_) {
    if (const auto* literal = std::get_if<std::string>(&piece.content)) {
      append(out, *literal);
    } else if (const auto* capture = std::get_if<Capture>(&piece.content)) {
      append(out, scope.captures[capture->group]);
    } else if (const auto* parameter = std::get_if<Parameter>(&piece.content)) {
      append_parameter(out, *parameter, scope);
    } else if (const auto* call = std::get_if<Call>(&piece.content)) {
      append(out, evaluate(*call, scope));
    }
  }
}

std::string Text::expand(const Scope& scope) const {
  std::string out;
  append_to(out, scope);
  return out;
}

}  // namespace modules::regexroute
