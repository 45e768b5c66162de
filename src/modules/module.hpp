// module: what a module of the program is to `serve` and `check`.
//
// A module reads its own configuration file, and where that is there hooks itself into the engine
// and the server. All of them are listed in modules.cpp, each left out where Meson was told so.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "engine.hpp"
#include "sipmsg.hpp"

namespace modules {

/// What a module works with. Outlives every module.
struct Context {
  uv_loop_t* loop;
  sipmsg::Server& server;
  Engine& engine;
  sipmsg::LogHandler log;  ///< one line, without line end and without the module's name
};

/// How long a module may keep a message waiting at most, and where that is said; 0 where it keeps
/// none waiting.
struct LongestWait {
  std::uint64_t ms = 0;
  std::string file;
  std::uint32_t line = 0;  ///< 0 where the file does not say it
};

class Module {
 public:
  virtual ~Module() = default;

  /// As in `sipmsg --version`, in log lines and in the parameter `handlers`.
  virtual std::string_view name() const = 0;

  /// Reads what it needs of DIR; what is wrong or worth knowing is added to `diagnostics`, with
  /// file and line. False where the server could not start with it. Where its file is not there, it
  /// stays off and that is no mistake. Nothing else happens yet: `check` ends here. Called again on
  /// SIGHUP, on a module of its own that takes the place of this one after `stop`.
  virtual bool load(const std::string& directory, sipmsg::Diagnostics& diagnostics) = 0;
  /// Whether there is anything to do.
  virtual bool is_enabled() const = 0;
  /// What is behind that time goes on to the next handler, which must be while its sender still
  /// waits. Asked after `load`.
  virtual LongestWait longest_wait() const { return {}; }

  /// Hooks itself in. The context stays until after `stop`.
  virtual void start(Context& context) = 0;
  /// Unhooks itself, ends what it started, closes its handles; what waits for it is answered as not
  /// handled. The loop runs dry then. Afterwards it may be destroyed, also before the loop turns.
  virtual void stop() = 0;
};

}  // namespace modules
