// Reads the input as a regexroute.conf, whose first line is who is called, and leads a message
// through its rules.
#include <algorithm>

#include "../src/modules/regexroute/walk.hpp"
#include "fuzz.hpp"

using namespace modules;
using namespace modules::regexroute;
using fuzz::require;
using fuzz::touch;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text = fuzz::as_text(data, size);
  const std::string_view called = text.substr(0, text.find('\n'));
  sipmsg::Diagnostics diagnostics;
  sipmsg::IniOptions ini_options;
  ini_options.max_entries = 500;  // sections that include one another double at every level
  const sipmsg::Ini ini = sipmsg::parse_ini(text, "fuzz.conf", ini_options, diagnostics);
  RuleOptions options;
  options.syntax.extended = size % 2 == 1;
  RuleBook book;
  book.read(ini, options, diagnostics);
  for (const auto& diagnostic : diagnostics) {
    require(to_text(diagnostic).find('\n') == std::string::npos, "a diagnostic is one line");
  }

  Variables variables;
  Environment environment{
      variables, {{"version", "0"}}, {"regfile"}, {}, "1", sipmsg::Random({}), [] {
        return std::uint64_t{1700000000000000};
      }};
  Host host{environment};
  host.log = [](sipmsg::Severity, std::string_view line) {
    touch(line);
    require(line.find('\n') == std::string_view::npos, "a line of the log is one line");
  };
  host.dispatch = [](const MessagePointer& message) { touch(message->name()); };
  for (const auto& section : ini.sections()) {
    ListMessage message("call.route", {{"called", std::string(called)}, {"route_type", "msg"}});
    Walk walk(book, host, message, called);
    static_cast<void>(walk.run(section.name));
    touch(message.return_value);
    require(message.return_value.size() <= Text::max_size, "a target is bounded");
    message.for_each([size](std::string_view name, std::string_view value) {
      touch(name);
      touch(value);
      require(value.size() <= std::max(Text::max_size, size), "a value is bounded");
    });
    for (const auto& enqueued : walk.take_enqueued()) touch(enqueued->name());
  }
  return 0;
}
