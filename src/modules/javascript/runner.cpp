// javascript/runner: see runner.hpp.
#include "runner.hpp"

#include <algorithm>
#include <utility>

#include "text.hpp"

namespace modules {

/// One call of a hook, with what its arguments are made of.
struct ScriptRunner::Call {
  ScriptRunner* runner;
  Hook hook;
  FrameReader frame;
  std::uint64_t id = 0;
};

namespace {

constexpr char hooks_name[] = "hooks";

duk_ret_t make_hooks(duk_context* context, void*) {
  duk_push_heap_stash(context);
  push_api(context);
  duk_put_prop_string(context, -2, hooks_name);
  return 0;
}

}  // namespace

bool ScriptRunner::run() {
  started_ms_ = now_ms();
  while (turn(heap_ ? heap_->context() : nullptr)) {
  }
  flush();
  return !failed_;
}

void ScriptRunner::flush() {
  const std::string_view ready = frames_.ready();
  if (ready.empty()) return;
  link_.send(ready);
  frames_.consume(ready.size());
}

// ---- work

void ScriptRunner::begin_work(std::string_view what) {
  if (!what.empty()) {
    frames_.begin(FrameType::busy);
    frames_.text(what);
    frames_.end();
    flush();  // before the script runs: it may never come back
  }
  working_ = true;
}

void ScriptRunner::end_work() {
  if (!std::exchange(working_, false)) return;
  frames_.begin(FrameType::done);
  frames_.end();
}

bool ScriptRunner::turn(duk_context* context) {
  // Timers that are always due, as after Engine.usleep(0), must not keep messages waiting for ever.
  if (!std::exchange(is_frames_turn_, false) && run_timer(context)) {
    is_frames_turn_ = true;
    return !over_;
  }
  std::string frame;
  if (!inbox_.empty()) {
    frame = std::move(inbox_.front());
    inbox_.pop_front();
  } else {
    flush();
    const auto received = link_.receive(frame, next_timer_wait_ms());
    if (received == ScriptLink::Received::nothing) return true;
    if (received == ScriptLink::Received::end) over_ = true;
    if (over_) return false;
  }
  if (!process(context, frame)) over_ = failed_ = true;
  return !over_;
}

bool ScriptRunner::process(duk_context* context, const std::string& frame) {
  FrameReader reader(frame);
  const auto type = reader.type();
  if (!type || (heap_ == nullptr) != (*type == FrameType::start)) return false;
  begin_work({});
  Call call{this, Hook::load, reader};
  switch (*type) {
    case FrameType::start:
      if (!start(reader)) return false;
      break;
    case FrameType::handle:
      call.hook = Hook::handle;
      protect(context, call);
      break;
    case FrameType::result:
      call.hook = Hook::wake;
      protect(context, call);
      break;
    default: return false;
  }
  end_work();
  if (!waits_.empty() || !heap_->take_failure() || !heap_->is_exhausted()) return true;
  scratch = "its memory_limit is used up";
  log_scratch(*this, sipmsg::Severity::error);
  return false;
}

bool ScriptRunner::start(FrameReader& frame) {
  read_source(frame);
  heap_ = std::make_unique<ScriptHeap>(static_cast<std::size_t>(frame.number()));
  uptime_base_ms_ = frame.number();
  duk_context* context = heap_->context();
  if (context == nullptr || !frame.is_good()) return false;
  heap_->owner = this;
  if (duk_safe_call(context, &make_hooks, nullptr, 0, 1) != DUK_EXEC_SUCCESS) return false;
  duk_pop(context);
  Call call{this, Hook::load, frame};
  protect(context, call);
  return true;
}

void ScriptRunner::read_source(FrameReader& frame) {
  source_.name = frame.text();
  source_.text = frame.text();
  for (std::uint64_t left = frame.count(8); left > 0; --left) {
    source_.files.emplace_back(frame.text());
  }
  for (std::uint64_t left = frame.count(24); left > 0; --left) {
    SourcePiece piece;
    piece.first = static_cast<std::uint32_t>(frame.number());
    piece.file = static_cast<std::uint32_t>(frame.number());
    piece.line = static_cast<std::uint32_t>(frame.number());
    source_.pieces.push_back(piece);
  }
}

// ---- calls into the script

void ScriptRunner::protect(duk_context* context, Call& call) {
  FrameReader frame = call.frame;
  if (call.hook == Hook::handle || call.hook == Hook::wake) call.id = frame.number();
  const bool good = duk_safe_call(context, &run_call, &call, 0, 1) == DUK_EXEC_SUCCESS;
  if (good) {
    duk_pop(context);
  } else {
    describe_error(context, *this);
    log_scratch(*this, sipmsg::Severity::error);
  }
  if (!good && call.hook == Hook::handle) {
    (void)frame.number();
    (void)frame.text();
    frames_.begin(FrameType::answer);
    frames_.number(call.id);
    frames_.flag(false);
    frames_.text(frame.text());
    frames_.number(0);
    frames_.end();
  }
  const bool is_waited_for = std::find(waits_.begin(), waits_.end(), call.id) != waits_.end();
  if (call.hook != Hook::handle && is_waited_for) arrived_.push_back(call.id);
}

duk_ret_t ScriptRunner::run_call(duk_context* context, void* data) {
  Call& call = *static_cast<Call*>(data);
  duk_push_heap_stash(context);
  duk_get_prop_string(context, -1, hooks_name);
  duk_get_prop_index(context, -1, static_cast<duk_uarridx_t>(call.hook));
  const duk_idx_t function = duk_get_top_index(context);
  push_arguments(context, call);
  duk_call(context, duk_get_top_index(context) - function);
  return 0;
}

void ScriptRunner::push_arguments(duk_context* context, Call& call) {
  ScriptRunner& runner = *call.runner;
  FrameReader& frame = call.frame;
  switch (call.hook) {
    case Hook::load:
      push_text(context, runner, runner.source_.text);
      push_text(context, runner, runner.source_.name);
      duk_compile(context, 0);
      push_parameters(context, runner, frame);
      return;
    case Hook::handle:
      push_number(context, frame.number());
      push_number(context, frame.number());
      push_text(context, runner, frame.text());
      push_text(context, runner, frame.text());
      push_number(context, frame.number());
      push_parameters(context, runner, frame);
      return;
    case Hook::wake:
      push_number(context, frame.number());
      duk_push_boolean(context, frame.flag());
      push_text(context, runner, frame.text());
      push_text(context, runner, frame.text());
      push_parameters(context, runner, frame);
      push_table(context, runner, frame);
      return;
    case Hook::due: push_number(context, call.id); return;
  }
}

// ---- timers

bool ScriptRunner::set_timer(std::uint64_t id, std::uint64_t delay_ms, std::uint64_t interval_ms) {
  if (timers_.size() >= max_timers) return false;
  timers_.emplace(now_ms() + delay_ms, Timer{id, interval_ms});
  return true;
}

void ScriptRunner::clear_timer(std::uint64_t id) {
  const auto found = std::find_if(timers_.begin(), timers_.end(),
                                  [id](const auto& timer) { return timer.second.id == id; });
  if (found != timers_.end()) timers_.erase(found);
}

std::uint64_t ScriptRunner::next_timer_wait_ms() {
  if (timers_.empty()) return ScriptLink::forever;
  const std::uint64_t due_ms = timers_.begin()->first;
  const std::uint64_t time_ms = now_ms();
  return due_ms > time_ms ? due_ms - time_ms : 0;
}

bool ScriptRunner::run_timer(duk_context* context) {
  if (timers_.empty() || next_timer_wait_ms() > 0) return false;
  const Timer timer = timers_.begin()->second;
  timers_.erase(timers_.begin());
  if (timer.interval_ms > 0) timers_.emplace(now_ms() + timer.interval_ms, timer);
  begin_work("ran a timer");
  Call call{this, Hook::due, FrameReader({}), timer.id};
  protect(context, call);
  end_work();
  return true;
}

// ---- waiting inside of the script

bool ScriptRunner::wait_for(duk_context* context, std::uint64_t id) {
  if (waits_.size() >= max_depth) return false;
  waits_.push_back(id);
  end_work();
  const auto has_arrived = [this, id] {
    return std::find(arrived_.begin(), arrived_.end(), id) != arrived_.end();
  };
  while (!has_arrived() && turn(context)) {
  }
  waits_.pop_back();
  const bool arrived = has_arrived();
  arrived_.erase(std::remove(arrived_.begin(), arrived_.end(), id), arrived_.end());
  begin_work("went on inside a callback");
  return arrived;
}

bool ScriptRunner::receive_shared(bool& present) {
  std::string frame;
  while (!over_ && link_.receive(frame, ScriptLink::forever) == ScriptLink::Received::frame) {
    FrameReader reader(frame);
    const auto type = reader.type();
    if (type != FrameType::shared_value) {
      inbox_.push_back(std::move(frame));
      continue;
    }
    present = reader.flag();
    to_script_text(reader.text(), scratch);
    return reader.is_good();
  }
  over_ = true;
  return false;
}

}  // namespace modules
