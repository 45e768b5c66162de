// regexroute: see regexroute.hpp.
#include "regexroute.hpp"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <deque>
#include <limits>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "rules.hpp"
#include "walk.hpp"

namespace modules {

namespace regexroute {
namespace {

using sipmsg::Diagnostics;
using sipmsg::Ini;
using sipmsg::IniEntry;
using sipmsg::IniSection;
using sipmsg::Severity;

/// What outlives the configuration: Yate keeps its global variables as long as it runs, and each
/// reading of the file makes a new module.
struct Globals {
  Variables variables;
  std::set<std::string, std::less<>> set_once;  ///< names that [$once] has set
  std::string run_id;
};

std::uint64_t now_unix_us() {
  const auto since_epoch = std::chrono::system_clock::now().time_since_epoch();
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(since_epoch).count());
}

Globals& globals() {
  static Globals only_one = {{}, {}, std::to_string(now_unix_us() / 1000000)};
  return only_one;
}

std::string host_name() {
  char name[UV_MAXHOSTNAMESIZE];
  std::size_t size = sizeof name;
  return uv_os_gethostname(name, &size) == 0 ? std::string(name, size) : std::string();
}

// ---- settings ----------------------------------------------------------------------------------

/// A message that rules are installed for.
struct Hook {
  std::string message;
  int priority = 100;
  std::string match_parameter;  ///< "" matches the name of the message
  std::string context;          ///< "" takes it from the parameter `context`
  std::string filter_parameter;
  std::string filter_value;

  bool operator==(const Hook& other) const {
    return message == other.message && priority == other.priority &&
           match_parameter == other.match_parameter && context == other.context &&
           filter_parameter == other.filter_parameter && filter_value == other.filter_value;
  }
};

/// Sets `filter` where the hook has one. An explanation where that cannot be read.
std::string read_filter(const Hook& hook, Syntax syntax, Predicate& filter) {
  if (hook.filter_parameter.empty()) return {};
  const std::string parameter = hook.filter_parameter;
  if (hook.filter_value.empty() || hook.filter_value.front() != '^') {
    filter = [parameter, value = hook.filter_value](const Message& message) {
      return message.get_or(parameter) == value;
    };
    return {};
  }
  std::string_view text = hook.filter_value;
  const bool inverted = text.size() > 1 && text.back() == '^';
  if (inverted) text.remove_suffix(1);
  auto pattern = std::make_shared<Pattern>();
  std::string mistake = pattern->compile(text, syntax);
  filter = [parameter, pattern, inverted](const Message& message) {
    Captures captures;
    const std::string subject = to_subject(message.get_or(parameter));
    return pattern->matches(subject, captures) != inverted;
  };
  return mistake;
}

struct Priorities {
  std::int64_t route = 100;
  std::int64_t max_depth = 5;
  bool tracks = true;
  bool adds_once = true;
  RuleOptions rules;
};

/// Reads [priorities] and [extra].
class SettingsReader {
 public:
  SettingsReader(const Ini& ini, Diagnostics& diagnostics) : ini_(ini), diagnostics_(diagnostics) {}

  Priorities read_priorities() {
    Priorities out;
    const IniSection* section = ini_.find("priorities");
    if (section == nullptr) return out;
    for (const IniEntry& entry : section->entries) {
      if (section->find(entry.key) == &entry) read_priority(entry, out);
    }
    return out;
  }

  std::vector<Hook> read_extra(const Priorities& priorities, const RuleBook& rules) {
    std::vector<Hook> hooks;
    const IniSection* section = ini_.find("extra");
    if (section == nullptr) return hooks;
    for (const IniEntry& entry : section->entries) {
      Hook hook = read_hook(entry);
      if (rules.find(hook.context) == no_context) {
        say(Severity::error, entry, "there is no section [" + hook.context + "] with its rules");
        continue;
      }
      Predicate filter;
      const std::string mistake = read_filter(hook, priorities.rules.syntax, filter);
      if (!mistake.empty()) say(Severity::error, entry, "filter of " + entry.key + ": " + mistake);
      const bool is_again = std::find(hooks.begin(), hooks.end(), hook) != hooks.end();
      if (!is_again || !priorities.adds_once) hooks.push_back(std::move(hook));
    }
    return hooks;
  }

 private:
  static constexpr std::int64_t largest_priority = 1000000;

  void read_priority(const IniEntry& entry, Priorities& out) {
    const std::string_view key = entry.key;
    if (key == "route") return read_number(entry, 0, largest_priority, out.route);
    if (key == "maxdepth") return read_number(entry, 5, 100, out.max_depth);
    if (key == "extended") return read_boolean(entry, out.rules.syntax.extended);
    if (key == "insensitive") return read_boolean(entry, out.rules.syntax.insensitive);
    if (key == "trackparam") return read_boolean(entry, out.tracks);
    if (key == "add_once") return read_boolean(entry, out.adds_once);
    if (key == "defaultrule") {
      out.rules.default_rule = entry.value;
      return;
    }
    for (std::string_view other : {"preroute", "prerouteall", "status", "rex_debug"}) {
      if (key == other) return say(Severity::info, entry, entry.key + " has no effect here");
    }
    say(Severity::warning, entry, "unknown key " + entry.key);
  }

  void read_boolean(const IniEntry& entry, bool& value) {
    const std::optional<bool> read = sipmsg::parse_boolean(entry.value);
    if (read) {
      value = *read;
    } else {
      say(Severity::warning, entry, entry.key + " is no boolean; the default is used");
    }
  }

  void read_number(const IniEntry& entry, std::int64_t least, std::int64_t most,
                   std::int64_t& value) {
    const std::optional<std::int64_t> read = sipmsg::parse_integer(entry.value);
    if (!read)
      return say(Severity::warning, entry, entry.key + " is no integer; the default is used");
    value = std::clamp(*read, least, most);
    if (value == *read) return;
    say(Severity::warning, entry,
        entry.key + " is out of range; " + std::to_string(value) + " is used");
  }

  /// PRIORITY,PARAMETER,CONTEXT,FILTER-PARAMETER,FILTER-VALUE; all may be missing.
  Hook read_hook(const IniEntry& entry) {
    std::string_view rest = entry.value;
    const auto take = [&rest] {
      const std::size_t comma = rest.find(',');
      const std::string_view piece = sipmsg::trim(rest.substr(0, comma));
      rest = comma == std::string_view::npos ? std::string_view() : rest.substr(comma + 1);
      return std::string(piece);
    };
    Hook hook;
    hook.message = entry.key;
    const std::string priority = take();
    hook.match_parameter = take();
    hook.context = take();
    hook.filter_parameter = take();
    hook.filter_value = sipmsg::trim(rest);
    if (hook.context.empty()) hook.context = hook.message;
    const std::optional<std::int64_t> number = sipmsg::parse_integer(priority);
    if (number && *number >= 0 && *number <= largest_priority) {
      hook.priority = static_cast<int>(*number);
    } else if (!priority.empty()) {
      say(Severity::error, entry,
          "the priority of " + entry.key + " is no integer from 0 to " +
              std::to_string(largest_priority));
    }
    return hook;
  }

  void say(Severity severity, const IniEntry& entry, std::string text) {
    diagnostics_.push_back({severity, ini_.files()[entry.file], entry.line, std::move(text)});
  }

  const Ini& ini_;
  Diagnostics& diagnostics_;
};

// ---- the module --------------------------------------------------------------------------------

class Regexroute final : public Module {
 public:
  std::string_view name() const override { return "regexroute"; }
  bool is_enabled() const override { return enabled_; }
  bool load(const std::string& directory, Diagnostics& diagnostics) override;
  void start(modules::Context& context) override;
  void stop() override;

 private:
  static constexpr std::size_t max_enqueued_at_once = 1000;

  void install(const Hook& hook);
  void initialize_variables();
  void handle(const Hook& hook, const MessagePointer& message, const Answer& answer);
  void dispatch_enqueued();

  bool enabled_ = false;
  Ini ini_;
  Priorities priorities_;
  std::vector<Hook> hooks_;
  RuleBook rules_;
  Environment environment_{globals().variables, {}, {}, {}, {}, sipmsg::Random({}), now_unix_us};
  Host host_{environment_};
  Engine* engine_ = nullptr;  ///< null but between start and stop
  std::vector<Engine::Id> installed_;
  std::deque<MessagePointer> enqueued_;
  bool dispatches_enqueued_ = false;
};

bool Regexroute::load(const std::string& directory, Diagnostics& diagnostics) {
  const std::size_t before = sipmsg::count(diagnostics, Severity::error);
  sipmsg::IniOptions options;
  options.run_parameters = {
      {"configpath", directory}, {"version", SIPMSG_VERSION}, {"nodename", host_name()}};
  options.loaded_modules = {"ysipchan", "regfile", "regexroute"};
  const std::string path = directory + "/regexroute.conf";
  sipmsg::FileSource files;
  if (const sipmsg::Error error = sipmsg::load_ini(files, path, options, ini_, diagnostics)) {
    if (error.place == UV_ENOENT) return true;
    diagnostics.push_back({Severity::error, path, 0, sipmsg::describe(error)});
    return false;
  }
  Diagnostics of_yate_conf;  // others read that file, or nobody does
  (void)sipmsg::load_ini(files, directory + "/yate.conf", options,
                         environment_.engine_configuration, of_yate_conf);
  environment_.run_parameters = options.run_parameters;
  environment_.loaded_modules = options.loaded_modules;

  SettingsReader reader(ini_, diagnostics);
  priorities_ = reader.read_priorities();
  rules_.read(ini_, priorities_.rules, diagnostics);
  hooks_ = reader.read_extra(priorities_, rules_);
  const IniSection* unused = ini_.find("contexts");
  if (unused != nullptr) {
    diagnostics.push_back({Severity::info, ini_.files()[unused->file], unused->line,
                           "[contexts] is not asked: call.preroute is not sent for messages"});
  }
  enabled_ = true;
  return sipmsg::count(diagnostics, Severity::error) == before;
}

void Regexroute::start(modules::Context& context) {
  engine_ = &context.engine;
  if (const auto secret = sipmsg::random_secret()) environment_.random = sipmsg::Random(*secret);
  environment_.run_id = globals().run_id;
  host_.max_depth = static_cast<std::uint32_t>(priorities_.max_depth);
  host_.log = context.log;
  host_.dispatch = [this](MessagePointer message) {
    engine_->dispatch(std::move(message), nullptr);
  };
  initialize_variables();
  if (priorities_.route > 0) {
    install({"call.route", static_cast<int>(priorities_.route), "called", "", "", ""});
  }
  for (const Hook& hook : hooks_) install(hook);
}

void Regexroute::stop() {
  for (const Engine::Id id : installed_) engine_->uninstall(id);
  installed_.clear();
  enqueued_.clear();
  engine_ = nullptr;
}

/// [$once] before [$init]. A name that is new in [$once] is set by the reading that finds it.
void Regexroute::initialize_variables() {
  Globals& kept = globals();
  if (const IniSection* once = ini_.find("$once")) {
    for (const IniEntry& entry : once->entries) {
      if (kept.set_once.insert(entry.key).second) kept.variables.set(entry.key, entry.value);
    }
  }
  if (const IniSection* always = ini_.find("$init")) {
    for (const IniEntry& entry : always->entries) kept.variables.set(entry.key, entry.value);
  }
}

void Regexroute::install(const Hook& hook) {
  Predicate filter;
  (void)read_filter(hook, priorities_.rules.syntax, filter);  // load has found no mistake
  const std::string owner = priorities_.tracks ? "regexroute" : "";
  const auto handler = [this, hook](const MessagePointer& message, const Answer& answer) {
    handle(hook, message, answer);
  };
  installed_.push_back(
      engine_->install(owner, hook.message, hook.priority, handler, std::move(filter)));
}

void Regexroute::handle(const Hook& hook, const MessagePointer& message, const Answer& answer) {
  const bool is_route = hook.context.empty();
  const std::string match_text =
      hook.match_parameter.empty() ? message->name() : message->get_or(hook.match_parameter);
  if (is_route && match_text.empty()) return answer(false);
  const std::string context = is_route ? message->get_or("context", "default") : hook.context;
  Walk walk(rules_, host_, *message, match_text);
  const bool handled = walk.run(context);
  for (MessagePointer& more : walk.take_enqueued()) enqueued_.push_back(std::move(more));
  answer(handled);
  if (environment_.dispatching == 0) dispatch_enqueued();
}

/// One after the other and not inside one another: rules may enqueue what makes them enqueue more.
void Regexroute::dispatch_enqueued() {
  if (std::exchange(dispatches_enqueued_, true)) return;
  for (std::size_t i = 0; !enqueued_.empty(); ++i) {
    if (i == max_enqueued_at_once) {
      host_.log(Severity::warning, "messages enqueue messages without end; the rest is left out");
      enqueued_.clear();
      break;
    }
    MessagePointer message = std::move(enqueued_.front());
    enqueued_.pop_front();
    engine_->dispatch(std::move(message), nullptr);
  }
  dispatches_enqueued_ = false;
}

}  // namespace

}  // namespace regexroute

std::unique_ptr<Module> make_regexroute() { return std::make_unique<regexroute::Regexroute>(); }

}  // namespace modules
