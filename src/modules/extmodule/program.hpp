// extmodule/program: a program that the module starts, watches over, and ends.
//
// One of [scripts] speaks the protocol on its standard input and output; where it fails it is
// started again, later and later. One of [execute] only runs. What either writes to standard error
// goes where the server's own does.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "connection.hpp"
#include "handle.hpp"
#include "session.hpp"

namespace modules::extmodule {

struct ProgramSettings {
  std::string path;
  std::string argument;    ///< empty: none
  bool speaks = true;      ///< false: one of [execute]
  SessionOptions session;  ///< of one that speaks
};

class Program final : public std::enable_shared_from_this<Program> {
 public:
  static constexpr std::uint64_t shortest_pause_ms = 1000;
  static constexpr std::uint64_t longest_pause_ms = 60000;

  Program(const Surroundings& surroundings, ProgramSettings settings);

  void start();
  /// Has it end: closes its input, sends SIGTERM, and SIGKILL after the grace time. Returns at
  /// once; what is left to do is done by the loop, also when the owner has let go of this.
  void stop();

 private:
  enum class Timer { none, rest, last_look, kill, pause };

  /// libuv's status.
  int spawn(Stream* input, Stream* output);
  void exited(std::int64_t status, int signal);
  void disconnected(std::optional<Ending> ending);
  void set_timer(Timer purpose, std::uint64_t delay_ms);
  void timed_out();
  void terminate();
  void go_on();
  bool wants_restart() const;
  void start_later();
  void log(sipmsg::Severity severity, const std::string& text) const;

  const Surroundings around_;
  const ProgramSettings settings_;
  const std::string name_;
  std::shared_ptr<Program> self_;  ///< while there is a process
  std::shared_ptr<Connection> connection_;
  Owned<uv_process_t> process_;
  int group_ = 0;  ///< its process group: itself, and what it has started
  Owned<uv_timer_t> timer_;
  Timer timer_purpose_ = Timer::none;
  std::uint64_t started_ms_ = 0;
  std::uint64_t pause_ms_ = shortest_pause_ms;
  std::optional<Ending> ending_;
  std::optional<bool> restart_;  ///< what it has said about that
  bool has_failed_ = false;      ///< ended by a signal, or with a status that is not 0
  bool is_stopped_ = false;
};

}  // namespace modules::extmodule
