// javascript: see javascript.hpp.
#include "javascript.hpp"

#include <utility>
#include <vector>

#include "settings.hpp"

namespace modules {

namespace {

/// What outlives a reading of the configuration, which makes a module of its own.
SharedVariables& shared_variables() {
  static SharedVariables only_one;
  return only_one;
}

/// The path of this very program.
std::string own_program() {
  char path[4096];
  std::size_t size = sizeof path;
  return uv_exepath(path, &size) == 0 ? std::string(path, size) : std::string();
}

class Javascript final : public Module {
 public:
  std::string_view name() const override { return "javascript"; }

  bool load(const std::string& directory, sipmsg::Diagnostics& diagnostics) override {
    return load_javascript(directory, settings_, diagnostics);
  }

  bool is_enabled() const override { return !settings_.scripts.empty(); }

  LongestWait longest_wait() const override {
    return {settings_.limits.timeout_ms, settings_.path, settings_.timeout_line};
  }

  void start(Context& context) override {
    surroundings_.loop = context.loop;
    surroundings_.engine = &context.engine;
    surroundings_.log = context.log;
    surroundings_.program = own_program();
    surroundings_.run_parameters = settings_.run_parameters;
    surroundings_.started_ms = uv_now(context.loop);
    surroundings_.shared = &shared_variables();
    surroundings_.limits = settings_.limits;
    for (const ScriptSource& script : settings_.scripts) {
      scripts_.push_back(ScriptProcess::start(surroundings_, script));
    }
  }

  void stop() override {
    for (const auto& script : std::exchange(scripts_, {})) script->stop();
  }

 private:
  JavascriptSettings settings_;
  ScriptSurroundings surroundings_;
  std::vector<std::shared_ptr<ScriptProcess>> scripts_;
};

}  // namespace

std::unique_ptr<Module> make_javascript() { return std::make_unique<Javascript>(); }

}  // namespace modules
