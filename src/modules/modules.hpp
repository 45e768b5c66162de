// modules: all of them together, as `serve` and `check` use them.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bridge.hpp"
#include "engine.hpp"
#include "module.hpp"

namespace modules {

/// The names of the modules in this build, with a blank between them; "none" where there are none.
std::string module_names();

/// The modules of one server. The server must outlive this.
class Modules {
 public:
  Modules();
  ~Modules() { stop(); }
  Modules(const Modules&) = delete;
  Modules& operator=(const Modules&) = delete;

  /// Has each module read its files in that directory. False where the server could not start so.
  bool load(const std::string& directory, sipmsg::Diagnostics& diagnostics);
  /// Starts what has something to do. The loop runs dry only after `stop`.
  void start(uv_loop_t* loop, sipmsg::Server& server, const sipmsg::Settings& settings,
             sipmsg::LogHandler log);
  void stop();

 private:
  std::vector<std::unique_ptr<Module>> modules_;
  std::vector<std::unique_ptr<Context>> contexts_;  ///< one for each that was started
  Engine engine_;
  std::unique_ptr<Bridge> bridge_;  ///< while any module is started
};

}  // namespace modules
