// extmodule/codec: see codec.hpp.
#include "codec.hpp"

#include <algorithm>
#include <utility>

#include "sipmsg.hpp"

namespace modules::extmodule {

namespace {

constexpr unsigned char escape_distance = 64;

bool is_control(char c) { return static_cast<unsigned char>(c) < 32; }

std::string escape_with(std::string_view text, char extra) {
  std::string out;
  out.reserve(text.size());
  for (char c : text) {
    if (c == '%') {
      out += "%%";
    } else if (is_control(c) || c == ':' || c == extra) {
      out += '%';
      out += static_cast<char>(static_cast<unsigned char>(c) + escape_distance);
    } else {
      out += c;
    }
  }
  return out;
}

/// The octet that `c` stands for behind a percent sign.
std::optional<char> unescape_one(char c, char extra) {
  if (c == '%') return c;
  const auto octet = static_cast<unsigned char>(c);
  if (octet <= escape_distance) return std::nullopt;
  const char plain = static_cast<char>(octet - escape_distance);
  if (is_control(plain) || plain == ':' || plain == extra) return plain;
  return std::nullopt;
}

std::optional<std::string> unescape_with(std::string_view text, char extra) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (is_control(text[i])) return std::nullopt;
    if (text[i] != '%') {
      out += text[i];
      continue;
    }
    if (++i == text.size()) return std::nullopt;
    const auto plain = unescape_one(text[i], extra);
    if (!plain) return std::nullopt;
    out += *plain;
  }
  return out;
}

/// Takes fields off the front of a line. A field that is malformed makes the whole line so.
class Fields {
 public:
  explicit Fields(std::string_view rest) : rest_(rest) {}

  bool is_at_end() const { return !rest_; }
  bool failed() const { return failed_; }
  void fail() { failed_ = true; }

  std::string_view raw() {
    if (!rest_) {
      fail();
      return {};
    }
    const std::size_t colon = rest_->find(':');
    const std::string_view field = rest_->substr(0, colon);
    rest_ =
        colon == std::string_view::npos ? std::nullopt : std::optional(rest_->substr(colon + 1));
    return field;
  }
  /// All that is left, colons too.
  std::string_view rest() {
    if (!rest_) fail();
    return std::exchange(rest_, std::nullopt).value_or(std::string_view());
  }
  std::string text() { return or_fail(unescape(raw())); }
  std::string optional_text() { return is_at_end() ? std::string() : text(); }

  Changes changes() {
    Changes changes;
    while (!is_at_end()) {
      const std::string_view field = raw();
      if (field.empty()) continue;
      const std::size_t equals = field.find('=');
      Change change;
      change.name = or_fail(unescape_name(field.substr(0, equals)));
      if (change.name.empty()) fail();
      if (equals != std::string_view::npos) {
        change.value = or_fail(unescape(field.substr(equals + 1)));
      }
      changes.push_back(std::move(change));
    }
    return changes;
  }

 private:
  std::string or_fail(std::optional<std::string> text) {
    if (!text) fail();
    return std::move(text).value_or(std::string());
  }

  std::optional<std::string_view> rest_;  ///< nothing: the last field was taken
  bool failed_ = false;
};

MessageLine decode_message(Fields& fields) {
  MessageLine line;
  line.id = fields.text();
  const std::string_view time = fields.raw();
  const auto seconds = time.empty() ? 0 : sipmsg::parse_digits(time, UINT64_MAX);
  if (!seconds) fields.fail();
  line.created_unix_s = seconds.value_or(0);
  line.name = fields.text();
  if (line.name.empty()) fields.fail();
  line.return_value = fields.optional_text();
  line.parameters = fields.changes();
  return line;
}

AnswerLine decode_answer(Fields& fields) {
  AnswerLine line;
  line.id = fields.text();
  line.handled = sipmsg::parse_boolean(fields.raw()).value_or(false);  // as Yate reads it
  line.name = fields.text();
  if (fields.is_at_end()) {
    if (!line.name.empty()) fields.fail();
    return line;
  }
  line.return_value = fields.text();
  line.parameters = fields.changes();
  return line;
}

InstallLine decode_install(Fields& fields) {
  InstallLine line;
  const std::string_view priority = fields.raw();
  if (!priority.empty()) {
    const auto number = sipmsg::parse_digits(priority, INT32_MAX);
    if (!number) fields.fail();
    line.priority = static_cast<int>(number.value_or(0));
  }
  line.name = fields.text();
  if (line.name.empty()) fields.fail();
  line.filter = fields.optional_text();
  line.value = fields.optional_text();
  return line;
}

SetlocalLine decode_setlocal(Fields& fields) {
  SetlocalLine line;
  line.name = fields.text();
  line.value = fields.optional_text();
  return line;
}

DebugLine decode_debug(Fields& fields) {
  DebugLine line;
  const auto level = sipmsg::parse_digits(fields.raw(), INT32_MAX);
  if (!level) fields.fail();
  line.level = static_cast<int>(level.value_or(0));
  const std::string_view text = fields.rest();
  line.text = unescape(text).value_or(std::string(text));  // it only goes to the log
  return line;
}

ConnectLine decode_connect(Fields& fields) {
  ConnectLine line;
  line.role = fields.text();
  line.id = fields.optional_text();
  return line;  // the type, which may follow, names media
}

template <class Named>
Named decode_name(Fields& fields) {
  Named line;
  line.name = fields.text();
  return line;
}

Line decode_fields(std::string_view command, Fields& fields) {
  if (command == "%%>message") return decode_message(fields);
  if (command == "%%<message") return decode_answer(fields);
  if (command == "%%>install") return decode_install(fields);
  if (command == "%%>uninstall") return decode_name<UninstallLine>(fields);
  if (command == "%%>watch") return decode_name<WatchLine>(fields);
  if (command == "%%>unwatch") return decode_name<UnwatchLine>(fields);
  if (command == "%%>setlocal") return decode_setlocal(fields);
  if (command == "%%>output") return OutputLine{std::string(fields.rest())};
  if (command == "%%>debug") return decode_debug(fields);
  if (command == "%%>connect") return decode_connect(fields);
  if (command == "%%>quit") return QuitLine{};
  if (command == "Error in") return ErrorLine{std::string(sipmsg::trim(fields.rest()))};
  fields.fail();
  return QuitLine{};
}

/// "BEGIN:NAME:true": how the engine confirms most commands.
std::string confirmation(std::string_view begin, std::string_view name, bool done) {
  return std::string(begin).append(escape(name)).append(done ? ":true" : ":false");
}

void append_rest(std::string& line, const Message& message) {
  line.append(escape(message.name())).append(":").append(escape(message.return_value));
  message.for_each([&line](std::string_view name, std::string_view value) {
    line.append(":").append(escape_name(name)).append("=").append(escape(value));
  });
}

}  // namespace

// ---- fields ----

// A character that is escaped anyway stands where there is none more.
std::string escape(std::string_view text) { return escape_with(text, ':'); }
std::string escape_name(std::string_view text) { return escape_with(text, '='); }
std::optional<std::string> unescape(std::string_view text) { return unescape_with(text, ':'); }
std::optional<std::string> unescape_name(std::string_view text) { return unescape_with(text, '='); }

// ---- lines ----

std::optional<Line> decode(std::string_view line) {
  const std::size_t colon = line.find(':');
  const bool has_fields = colon != std::string_view::npos;
  Fields fields(has_fields ? line.substr(colon + 1) : std::string_view());
  if (!has_fields) (void)fields.raw();
  Line decoded = decode_fields(line.substr(0, colon), fields);
  if (fields.failed()) return std::nullopt;
  return decoded;
}

std::string message_line(std::string_view id, const Message& message) {
  std::string line = "%%>message:";
  line.append(escape(id)).append(":").append(std::to_string(message.created_unix_s)).append(":");
  append_rest(line, message);
  return line;
}

std::string answer_line(std::string_view id, bool handled, const Message& message) {
  std::string line = "%%<message:";
  line.append(escape(id)).append(handled ? ":true:" : ":false:");
  append_rest(line, message);
  return line;
}

std::string installed_line(int priority, std::string_view name, bool done) {
  return confirmation("%%<install:" + std::to_string(priority) + ":", name, done);
}

std::string uninstalled_line(int priority, std::string_view name, bool done) {
  return confirmation("%%<uninstall:" + std::to_string(priority) + ":", name, done);
}

std::string watched_line(std::string_view name, bool done) {
  return confirmation("%%<watch:", name, done);
}

std::string unwatched_line(std::string_view name, bool done) {
  return confirmation("%%<unwatch:", name, done);
}

std::string setlocal_line(std::string_view name, std::string_view value, bool done) {
  return confirmation("%%<setlocal:" + escape(name) + ":", value, done);
}

std::string quit_line() { return "%%<quit"; }

std::string error_line(std::string_view line) { return std::string("Error in: ").append(line); }

// ---- lines in a stream ----

void LineCutter::add(std::string_view octets) {
  buffer_.erase(0, begin_);
  scanned_ -= begin_;
  begin_ = 0;
  buffer_.append(octets);
}

std::optional<std::string> LineCutter::next(std::size_t limit_octets) {
  if (too_long_) return std::nullopt;
  const std::size_t end = buffer_.find('\n', scanned_);
  scanned_ = std::min(end, buffer_.size());
  std::size_t size = scanned_ - begin_;
  if (size > 0 && buffer_[scanned_ - 1] == '\r') --size;  // its LF may not have come yet
  too_long_ = size > limit_octets;
  if (too_long_ || end == std::string::npos) return std::nullopt;
  std::string line = buffer_.substr(begin_, size);
  begin_ = scanned_ = end + 1;
  return line;
}

}  // namespace modules::extmodule
