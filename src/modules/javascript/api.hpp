// javascript/api: what a script finds besides the language itself: Engine, Message and a few more
// methods of String, as Yate has them (its differences: docs/modules/javascript.md).
//
// Most of it is written in JavaScript (prelude.cpp), on top of the functions here, which
// turn a script's wishes into frames. Each piece of a script's work runs as a coroutine, so that
// dispatch() can wait while other messages are handled; where a script cannot be left, inside a
// callback of sort() or forEach(), the loop runs inside of it instead (`wait_for`).
#pragma once

#include <duktape.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "link.hpp"
#include "source.hpp"

namespace modules {

/// What the functions of a script need of the process they run in. Those that return false let the
/// script see an exception. None of them throws: no call of Duktape in them is unprotected.
class ScriptHost {
 public:
  virtual FrameWriter& frames() = 0;
  /// Sends what was written so far.
  virtual void flush() = 0;
  virtual std::uint64_t now_ms() = 0;
  virtual std::uint64_t uptime_ms() = 0;
  /// Never the same twice, never 0.
  virtual std::uint64_t new_id() = 0;
  /// Has `due(id)` called after that time, and again after each `interval_ms` where that is not 0.
  virtual bool set_timer(std::uint64_t id, std::uint64_t delay_ms, std::uint64_t interval_ms) = 0;
  virtual void clear_timer(std::uint64_t id) = 0;
  /// Runs the loop until `wake(id)` was called; false where that can never be.
  virtual bool wait_for(duk_context* context, std::uint64_t id) = 0;
  /// The server's answer to `shared`; false where it is gone.
  virtual bool receive_shared(bool& present) = 0;
  virtual const ScriptSource& source() const = 0;

  std::string scratch;  ///< room for texts that are converted; any call may change it

 protected:
  ~ScriptHost() = default;
};

/// Where the hooks stand in the array that `push_api` leaves.
enum class Hook : duk_uarridx_t {
  load,    ///< (function): runs the script itself
  handle,  ///< (id, handler, name, return value, time, parameters)
  wake,    ///< (id, handled, name, return value, parameters, table): what it waited for has come
  due      ///< (id): a timer
};

/// Defines the globals and pushes the array of hooks. May throw. `heap.owner` must be the host.
void push_api(duk_context* context);

inline void push_number(duk_context* context, std::uint64_t value) {
  duk_push_number(context, static_cast<double>(value));
}
void push_text(duk_context* context, ScriptHost& host, std::string_view octets);
/// As an object without prototype; of several with one name the first counts. May throw.
void push_parameters(duk_context* context, ScriptHost& host, FrameReader& frame);
/// As {columns: [text], rows: [[text or null]]}, or undefined where there is none. May throw.
void push_table(duk_context* context, ScriptHost& host, FrameReader& frame);

/// Takes what was thrown off the top of the stack: "FILE:LINE: MESSAGE" in `host.scratch`. Never
/// throws.
void describe_error(duk_context* context, ScriptHost& host);
/// Sends `host.scratch` as a line of the log.
void log_scratch(ScriptHost& host, sipmsg::Severity severity);

/// The part that is written in JavaScript: a function of (native).
extern const char* const script_prelude;

}  // namespace modules
