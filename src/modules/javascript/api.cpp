// javascript/api: see api.hpp. The functions here are `native.NAME` in the prelude,
// which calls them with arguments of the right types.
#include "api.hpp"

#include <regex.h>

#include <cstdlib>

#include "heap.hpp"
#include "text.hpp"

namespace modules {

namespace {

/// A line of the log is cut there.
constexpr std::size_t max_log_octets = 8192;

ScriptHost& host_of(duk_context* context) {
  return *static_cast<ScriptHost*>(ScriptHeap::of(context).owner);
}

/// The argument as octets: in `host.scratch`, or in the script's memory where they are the same.
/// Valid until the next call.
std::string_view octets_of(duk_context* context, ScriptHost& host, duk_idx_t index) {
  duk_size_t size = 0;
  const char* text = duk_safe_to_lstring(context, index, &size);
  const std::string_view view(text, size);
  if (is_ascii(view)) return view;
  host.scratch.clear();
  from_script_text(view, host.scratch);
  return host.scratch;
}

std::uint64_t number_of(duk_context* context, duk_idx_t index) {
  const double value = duk_to_number(context, index);
  constexpr double largest = 9007199254740991.0;
  if (!(value > 0)) return 0;
  return static_cast<std::uint64_t>(value < largest ? value : largest);
}

/// All own properties of an object: a count, then names and values. With `may_be_absent`, each
/// value follows a flag that says whether there is one.
void write_properties(duk_context* context, ScriptHost& host, duk_idx_t object,
                      bool may_be_absent) {
  FrameWriter& frames = host.frames();
  std::uint64_t count = 0;
  duk_enum(context, object, DUK_ENUM_OWN_PROPERTIES_ONLY);
  while (duk_next(context, -1, 0)) {
    ++count;
    duk_pop(context);
  }
  duk_pop(context);
  frames.number(count);
  duk_enum(context, object, DUK_ENUM_OWN_PROPERTIES_ONLY);
  while (duk_next(context, -1, 1)) {
    const bool present = !duk_is_undefined(context, -1);
    frames.text(octets_of(context, host, -2));
    if (may_be_absent) frames.flag(present);
    frames.text(present ? octets_of(context, host, -1) : std::string_view());
    duk_pop_2(context);
  }
  duk_pop(context);
}

duk_ret_t end_frame(duk_context* context, ScriptHost& host) {
  if (host.frames().end()) return 0;
  return duk_range_error(context, "the message is too large");
}

// ---- the functions

duk_ret_t native_log(duk_context* context) {
  ScriptHost& host = host_of(context);
  const auto severity = static_cast<sipmsg::Severity>(duk_get_uint(context, 0));
  host.frames().begin(FrameType::log);
  host.frames().number(static_cast<std::uint64_t>(severity));
  host.frames().text(octets_of(context, host, 1).substr(0, max_log_octets));
  host.frames().end();
  host.flush();  // the script may never come to an end
  return 0;
}

duk_ret_t native_complain(duk_context* context) {
  ScriptHost& host = host_of(context);
  duk_dup(context, 0);
  describe_error(context, host);
  log_scratch(host, sipmsg::Severity::error);
  return 0;
}

duk_ret_t native_uptime(duk_context* context) {
  push_number(context, host_of(context).uptime_ms() / 1000);
  return 1;
}

/// (delay, interval) -> id
duk_ret_t native_timer(duk_context* context) {
  ScriptHost& host = host_of(context);
  const std::uint64_t id = host.new_id();
  if (!host.set_timer(id, number_of(context, 0), number_of(context, 1))) {
    return duk_range_error(context, "too many timers");
  }
  push_number(context, id);
  return 1;
}

duk_ret_t native_clear_timer(duk_context* context) {
  host_of(context).clear_timer(number_of(context, 0));
  return 0;
}

/// (handler, owner, name, priority, filter parameter, filter value)
duk_ret_t native_install(duk_context* context) {
  ScriptHost& host = host_of(context);
  FrameWriter& frames = host.frames();
  frames.begin(FrameType::install);
  frames.number(number_of(context, 0));
  frames.text(octets_of(context, host, 1));
  frames.text(octets_of(context, host, 2));
  frames.number(number_of(context, 3));
  frames.text(octets_of(context, host, 4));
  frames.text(octets_of(context, host, 5));
  return end_frame(context, host);
}

duk_ret_t native_remove(duk_context* context) {
  ScriptHost& host = host_of(context);
  host.frames().begin(FrameType::remove);
  host.frames().number(number_of(context, 0));
  return end_frame(context, host);
}

/// Whether the C library takes that POSIX extended regular expression.
duk_ret_t native_is_regex(duk_context* context) {
  regex_t expression;
  const bool good = regcomp(&expression, duk_get_string(context, 0), REG_EXTENDED | REG_NOSUB) == 0;
  if (good) regfree(&expression);
  duk_push_boolean(context, good);
  return 1;
}

/// (id, handled, return value, changes)
duk_ret_t native_answer(duk_context* context) {
  ScriptHost& host = host_of(context);
  FrameWriter& frames = host.frames();
  frames.begin(FrameType::answer);
  frames.number(number_of(context, 0));
  frames.flag(duk_to_boolean(context, 1));
  frames.text(octets_of(context, host, 2));
  write_properties(context, host, 3, true);
  return end_frame(context, host);
}

/// (whether a result is wanted, name, return value, time, parameters) -> id
duk_ret_t native_dispatch(duk_context* context) {
  ScriptHost& host = host_of(context);
  const std::uint64_t id = duk_to_boolean(context, 0) ? host.new_id() : 0;
  FrameWriter& frames = host.frames();
  frames.begin(FrameType::dispatch);
  frames.number(id);
  frames.text(octets_of(context, host, 1));
  frames.text(octets_of(context, host, 2));
  frames.number(number_of(context, 3));
  write_properties(context, host, 4, false);
  end_frame(context, host);
  push_number(context, id);
  return 1;
}

duk_ret_t native_wait(duk_context* context) {
  if (host_of(context).wait_for(context, number_of(context, 0))) return 0;
  return duk_range_error(context, "too many messages wait inside one another");
}

/// (operation, name, value) -> text or undefined
duk_ret_t native_shared(duk_context* context) {
  ScriptHost& host = host_of(context);
  const auto operation = static_cast<SharedOperation>(duk_get_uint(context, 0));
  FrameWriter& frames = host.frames();
  frames.begin(FrameType::shared);
  frames.number(static_cast<std::uint64_t>(operation));
  frames.text(octets_of(context, host, 1));
  frames.text(octets_of(context, host, 2));
  end_frame(context, host);
  host.flush();
  const bool answered =
      operation == SharedOperation::get || operation == SharedOperation::increment;
  bool present = false;
  if (!answered || !host.receive_shared(present) || !present) return 0;
  duk_push_lstring(context, host.scratch.data(), host.scratch.size());
  return 1;
}

/// A text as section 7 of Yate's facts has parameters: as a number where it is one.
duk_ret_t native_number(duk_context* context) {
  duk_size_t size = 0;
  const char* text = duk_get_lstring(context, 0, &size);
  if (text != nullptr && is_plain_number({text, size})) {
    duk_push_number(context, std::strtod(text, nullptr));
  }
  return 1;
}

struct NativeFunction {
  const char* name;
  duk_c_function function;
  duk_idx_t arguments;
};

constexpr NativeFunction native_functions[] = {
    {"log", native_log, 2},
    {"complain", native_complain, 1},
    {"uptime", native_uptime, 0},
    {"timer", native_timer, 2},
    {"clearTimer", native_clear_timer, 1},
    {"install", native_install, 6},
    {"remove", native_remove, 1},
    {"isRegex", native_is_regex, 1},
    {"answer", native_answer, 4},
    {"dispatch", native_dispatch, 5},
    {"wait", native_wait, 1},
    {"shared", native_shared, 3},
    {"number", native_number, 1},
};

/// The line of the script that the innermost "(NAME:LINE)" of a stack trace names, or 0. What is
/// thrown by a function of ours names that function's line first.
std::uint32_t script_line(std::string_view trace, std::string_view name) {
  for (std::size_t at = trace.find(name); at != std::string_view::npos;
       at = trace.find(name, at + 1)) {
    const std::size_t colon = at + name.size();
    if (at == 0 || trace[at - 1] != '(' || colon >= trace.size() || trace[colon] != ':') continue;
    std::uint32_t line = 0;
    for (std::size_t i = colon + 1; i < trace.size() && line < UINT32_MAX / 20; ++i) {
      if (trace[i] < '0' || trace[i] > '9') break;
      line = line * 10 + static_cast<std::uint32_t>(trace[i] - '0');
    }
    return line;
  }
  return 0;
}

duk_ret_t describe_raw(duk_context* context, void*) {
  ScriptHost& host = host_of(context);
  host.scratch.clear();
  std::uint32_t line = 0;
  if (duk_is_object(context, -1)) {
    duk_get_prop_literal(context, -1, "stack");
    const char* trace = duk_get_string(context, -1);
    if (trace != nullptr) line = script_line(trace, host.source().name);
    duk_pop(context);
  }
  if (line > 0) {  // nothing in here calls Duktape, so the text may have a destructor
    const SourcePosition position = host.source().position(line);
    host.scratch = position.file + ":" + std::to_string(position.line) + ": ";
  }
  duk_size_t size = 0;
  const char* text = duk_safe_to_lstring(context, -1, &size);
  from_script_text({text, size < max_log_octets ? size : max_log_octets}, host.scratch);
  return 0;
}

}  // namespace

void push_api(duk_context* context) {
  duk_push_string(context, script_prelude);
  duk_push_string(context, "prelude");
  duk_compile(context, DUK_COMPILE_FUNCTION);
  duk_push_bare_object(context);
  for (const NativeFunction& native : native_functions) {
    duk_push_c_function(context, native.function, native.arguments);
    duk_put_prop_string(context, -2, native.name);
  }
  duk_call(context, 1);
}

void push_text(duk_context* context, ScriptHost& host, std::string_view octets) {
  if (!is_ascii(octets)) {
    to_script_text(octets, host.scratch);
    octets = host.scratch;
  }
  duk_push_lstring(context, octets.data(), octets.size());
}

void push_parameters(duk_context* context, ScriptHost& host, FrameReader& frame) {
  constexpr std::size_t smallest = 16;  // two lengths
  duk_push_bare_object(context);
  for (std::uint64_t left = frame.count(smallest); left > 0; --left) {
    push_text(context, host, frame.text());
    const std::string_view value = frame.text();
    duk_dup_top(context);
    if (duk_has_prop(context, -3)) {
      duk_pop(context);
      continue;
    }
    push_text(context, host, value);
    duk_put_prop(context, -3);
  }
}

void push_table(duk_context* context, ScriptHost& host, FrameReader& frame) {
  if (!frame.flag()) {
    duk_push_undefined(context);
    return;
  }
  duk_push_object(context);
  const std::uint64_t columns = frame.count(8);
  duk_push_array(context);
  for (duk_uarridx_t column = 0; column < columns; ++column) {
    push_text(context, host, frame.text());
    duk_put_prop_index(context, -2, column);
  }
  duk_put_prop_literal(context, -2, "columns");
  const std::uint64_t rows = frame.count(1);
  duk_push_array(context);
  for (duk_uarridx_t row = 0; row < rows && frame.is_good(); ++row) {
    duk_push_array(context);
    for (duk_uarridx_t column = 0; column < columns; ++column) {
      const bool present = frame.flag();
      if (present) {
        push_text(context, host, frame.text());
      } else {
        duk_push_null(context);
      }
      duk_put_prop_index(context, -2, column);
    }
    duk_put_prop_index(context, -2, row);
  }
  duk_put_prop_literal(context, -2, "rows");
}

void describe_error(duk_context* context, ScriptHost& host) {
  if (duk_safe_call(context, &describe_raw, nullptr, 1, 1) != DUK_EXEC_SUCCESS) {
    host.scratch = "an exception that cannot be told";
  }
  duk_pop(context);
}

void log_scratch(ScriptHost& host, sipmsg::Severity severity) {
  host.frames().begin(FrameType::log);
  host.frames().number(static_cast<std::uint64_t>(severity));
  host.frames().text(host.scratch);
  host.frames().end();
  host.flush();
}

}  // namespace modules
