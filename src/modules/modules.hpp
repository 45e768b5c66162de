// modules: all of them together, as `serve` and `check` use them. A program that is built without
// any has nothing of the engine in it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "sipmsg.hpp"
#ifdef SIPMSG_WITH_MODULES
#include "bridge.hpp"
#include "engine.hpp"
#include "module.hpp"
#endif

namespace modules {

#ifdef SIPMSG_WITH_MODULES

/// The names of the modules in this build, with a blank between them.
std::string module_names();

/// The modules of one server. The server must outlive this.
class Modules {
 public:
  Modules();
  ~Modules() { stop(); }
  Modules(const Modules&) = delete;
  Modules& operator=(const Modules&) = delete;

  /// Has each module read its files in that directory, for a server with these settings. False
  /// where it could not start so.
  bool load(const std::string& directory, const sipmsg::Settings& settings,
            sipmsg::Diagnostics& diagnostics);
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

#else

inline std::string module_names() { return "none"; }

class Modules {
 public:
  bool load(const std::string&, const sipmsg::Settings&, sipmsg::Diagnostics&) { return true; }
  void start(uv_loop_t*, sipmsg::Server&, const sipmsg::Settings&, const sipmsg::LogHandler&) {}
  void stop() {}
};

#endif

}  // namespace modules
