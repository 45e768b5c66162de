// Reads the input as what an external program writes: in pieces, the first octet says how large,
// to a session that has something to ask it. Link src/modules/engine.cpp and extmodule/codec.cpp,
// locals.cpp and session.cpp from there.
#include "../src/modules/extmodule/session.hpp"
#include "fuzz.hpp"

using namespace modules;
using namespace modules::extmodule;
using fuzz::require;
using fuzz::touch;

namespace {

class Reader final : public Peer {
 public:
  void send(std::string line) override {
    require(line.find('\n') == std::string::npos, "one line is sent at a time");
    octets += line.size();
  }
  bool can_send() const override { return octets < 1000000; }
  std::uint64_t now_ms() const override { return time_ms; }
  std::uint64_t now_unix_s() const override { return 0; }
  void wake_at(std::uint64_t) override {}
  void log(sipmsg::Severity, std::string_view text) override {
    for (char c : text) require(static_cast<unsigned char>(c) >= 32, "a log line is one line");
  }
  void end(Ending) override {
    require(!is_over, "a session ends once");
    is_over = true;
  }

  std::size_t octets = 0;
  std::uint64_t time_ms = 0;
  bool is_over = false;
};

/// What is escaped reads back, but for a NUL, which nobody can send.
void check_fields(const std::string& text) {
  if (text.find('\0') != std::string::npos) return;
  require(unescape(escape(text)) == text, "an escaped field reads back");
  require(unescape_name(escape_name(text)) == text, "an escaped name reads back");
  if (const auto plain = unescape(text)) {
    require(unescape(escape(*plain)) == *plain, "an unescaped field can be escaped");
  }
}

void check_decoded(const Line& line) {
  const auto* message = std::get_if<MessageLine>(&line);
  if (message == nullptr) return;
  auto copy = ListMessage(message->name);
  copy.return_value = message->return_value;
  for (const Change& parameter : message->parameters) {
    require(!parameter.name.empty(), "a parameter has a name");
    if (parameter.value) copy.add(parameter.name, *parameter.value);
  }
  const auto again = decode(message_line(message->id, copy));
  require(again.has_value(), "a message that was read can be written");
  const auto& read = std::get<MessageLine>(*again);
  require(read.id == message->id && read.name == message->name, "and reads back the same");
  require(read.return_value == message->return_value, "with its return value");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input = fuzz::as_text(data, size);
  if (input.empty()) return 0;
  Engine engine;
  Reader reader;
  const auto session = Session::make(engine, reader, {});
  std::size_t unanswered = 0;
  const auto ask = [&](const char* name) {
    auto message = std::make_shared<ListMessage>(name);
    message->add("called", "102");
    ++unanswered;
    engine.dispatch(message, [&unanswered](bool) { --unanswered; });
  };
  session->take("%%>install:1:call.route");
  LineCutter cutter;
  const std::size_t piece = 1 + static_cast<unsigned char>(input[0]) % 64;
  for (std::size_t at = 1; at < input.size() && !reader.is_over; at += piece) {
    cutter.add(input.substr(at, piece));
    while (const auto line = cutter.next(session->max_line())) {
      check_fields(*line);
      if (const auto decoded = decode(*line)) check_decoded(*decoded);
      session->take(*line);
      ask("call.route");
      reader.time_ms += 1000;
      session->advance(reader.time_ms);
      touch(session->locals().debugname);
    }
  }
  session->closed();
  require(unanswered == 0, "every message is answered in the end");
  return 0;
}
