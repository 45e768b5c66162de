// modules: see modules.hpp. The one list of them; SIPMSG_WITH_NAME comes from Meson.
#include "modules.hpp"

#include <utility>

#ifdef SIPMSG_WITH_REGEXROUTE
#include "regexroute/regexroute.hpp"
#endif
#ifdef SIPMSG_WITH_EXTMODULE
#include "extmodule/extmodule.hpp"
#endif
#ifdef SIPMSG_WITH_JAVASCRIPT
#include "javascript/javascript.hpp"
#endif
#ifdef SIPMSG_WITH_SQLITE
#include "database/sqlite.hpp"
#endif
#ifdef SIPMSG_WITH_MYSQL
#include "database/mysql.hpp"
#endif
#ifdef SIPMSG_WITH_OFFLINE
#include "offline/offline.hpp"
#endif

namespace modules {

namespace {

std::vector<std::unique_ptr<Module>> make_modules() {
  std::vector<std::unique_ptr<Module>> modules;
#ifdef SIPMSG_WITH_SQLITE
  modules.push_back(make_sqlitedb());
#endif
#ifdef SIPMSG_WITH_MYSQL
  modules.push_back(make_mysqldb());
#endif
#ifdef SIPMSG_WITH_OFFLINE
  modules.push_back(make_offline());
#endif
#ifdef SIPMSG_WITH_REGEXROUTE
  modules.push_back(make_regexroute());
#endif
#ifdef SIPMSG_WITH_EXTMODULE
  modules.push_back(make_extmodule());
#endif
#ifdef SIPMSG_WITH_JAVASCRIPT
  modules.push_back(make_javascript());
#endif
  return modules;
}

/// A module that answers no sooner than the server gives up takes the message with it: its sender
/// gets 504, and no further handler is asked.
void remark_on_wait(const Module& module, const sipmsg::Settings& settings,
                    sipmsg::Diagnostics& diagnostics) {
  const LongestWait wait = module.longest_wait();
  const std::uint64_t deadline_s = settings.message.handler_deadline_s;
  if (!module.is_enabled() || wait.ms < deadline_s * 1000) return;
  diagnostics.push_back(
      {sipmsg::Severity::warning, wait.file, wait.line,
       "a message may wait for an answer for " + std::to_string(wait.ms) +
           " ms (timeout), but is refused with 504 after " + std::to_string(deadline_s) +
           " s ([message] handler_deadline of ysipchan.conf): it goes on to the next handler only "
           "where timeout is smaller"});
}

}  // namespace

std::string module_names() {
  std::string names;
  for (const auto& module : make_modules()) {
    if (!names.empty()) names += ' ';
    names += module->name();
  }
  return names;
}

Modules::Modules() : modules_(make_modules()) {}

bool Modules::load(const std::string& directory, const sipmsg::Settings& settings,
                   sipmsg::Diagnostics& diagnostics) {
  bool usable = true;
  for (const auto& module : modules_) {
    if (!module->load(directory, diagnostics)) usable = false;
    remark_on_wait(*module, settings, diagnostics);
  }
  return usable;
}

void Modules::start(uv_loop_t* loop, sipmsg::Server& server, const sipmsg::Settings& settings,
                    sipmsg::LogHandler log) {
  for (const auto& module : modules_) {
    if (!module->is_enabled()) continue;
    if (!bridge_) bridge_ = std::make_unique<Bridge>(server, engine_, settings);
    const auto named = [log, name = std::string(module->name())](sipmsg::Severity severity,
                                                                 std::string_view text) {
      log(severity, name + ": " + std::string(text));
    };
    contexts_.push_back(std::make_unique<Context>(Context{loop, server, engine_, named}));
    module->start(*contexts_.back());
  }
}

/// Those that answer for others go last.
void Modules::stop() {
  for (auto module = modules_.rbegin(); module != modules_.rend(); ++module) {
    if ((*module)->is_enabled()) (*module)->stop();
  }
  modules_.clear();
  bridge_.reset();
}

}  // namespace modules
