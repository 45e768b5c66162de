// extmodule: see extmodule.hpp.
#include "extmodule.hpp"

#include <csignal>
#include <utility>
#include <vector>

#include "config.hpp"
#include "listener.hpp"
#include "program.hpp"

namespace modules {

namespace {

using namespace extmodule;

class ExternalModules final : public Module {
 public:
  std::string_view name() const override { return "extmodule"; }

  bool load(const std::string& directory, sipmsg::Diagnostics& diagnostics) override {
    return load_config(directory, config_, diagnostics);
  }

  bool is_enabled() const override {
    return !config_.programs.empty() || !config_.listeners.empty();
  }

  LongestWait longest_wait() const override {
    return {config_.timeout_ms, config_.path, config_.timeout_line};
  }

  void start(Context& context) override {
    // A program that ends must not take the server with it when something is written to it.
    std::signal(SIGPIPE, SIG_IGN);
    const Surroundings around{context.loop, context.engine, context.log, config_.grace_ms};
    for (const auto& settings : config_.listeners) {
      listeners_.push_back(std::make_unique<Listener>(around, settings));
      listeners_.back()->start();
    }
    for (const auto& settings : config_.programs) {
      programs_.push_back(std::make_shared<Program>(around, settings));
      programs_.back()->start();
    }
  }

  void stop() override {
    for (const auto& listener : std::exchange(listeners_, {})) listener->stop();
    for (const auto& program : std::exchange(programs_, {})) program->stop();
  }

 private:
  Config config_;
  std::vector<std::unique_ptr<Listener>> listeners_;
  std::vector<std::shared_ptr<Program>> programs_;
};

}  // namespace

std::unique_ptr<Module> make_extmodule() { return std::make_unique<ExternalModules>(); }

}  // namespace modules
