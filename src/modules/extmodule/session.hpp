// extmodule/session: what one external program and the engine say to each other.
//
// The program's commands go in line by line, the engine's lines come out; the engine's messages for
// which the program has installed itself wait here for its answers. Whatever the program does or
// fails to do, each message is answered: in time, or as not handled. There is no socket, process or
// clock in here: those are the Peer's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>

#include "../engine.hpp"
#include "codec.hpp"
#include "locals.hpp"
#include "sipmsg.hpp"

namespace modules::extmodule {

/// Why a session ends its program.
enum class Ending {
  finished,  ///< it has said quit
  refused,   ///< it wants to be what a message server has no use for
  broken,    ///< a line too long, or a message timed out under a timebomb
};

/// What a session stands on. Stays until the session was told `closed`.
class Peer {
 public:
  /// Sends the line, to which the end is still to be added.
  virtual void send(std::string line) = 0;
  /// False while so much waits to be read by the program that no more should be sent unasked.
  virtual bool can_send() const = 0;
  virtual std::uint64_t now_ms() const = 0;
  virtual std::uint64_t now_unix_s() const = 0;
  /// Wants `advance` to be called at that time, or earlier.
  virtual void wake_at(std::uint64_t deadline_ms) = 0;
  virtual void log(sipmsg::Severity severity, std::string_view text) = 0;
  /// The last call of a session: sends what is still to be sent, and closes.
  virtual void end(Ending ending) = 0;

 protected:
  ~Peer() = default;
};

struct SessionOptions {
  int priority = 100;        ///< of handlers that come without one
  bool is_connected = true;  ///< false: the program must first say who it is, by `connect`
  Locals locals;             ///< what the program finds at its start
  std::shared_ptr<const Facts> facts = std::make_shared<Facts>();
};

class Session : public std::enable_shared_from_this<Session> {
 public:
  /// Lines of a program may be this much longer than the longest it was asked to answer, and no
  /// longer than this in all.
  static constexpr std::size_t longest_line = 1048576;
  static constexpr std::size_t max_installs = 1000;
  static constexpr std::size_t max_watches = 1000;

  /// Both stay until the session was told `closed`, or has ended its peer.
  static std::shared_ptr<Session> make(Engine& engine, Peer& peer, SessionOptions options);
  ~Session() { closed(); }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  /// A line from the program, without its end. Legal inside any callback of the engine.
  void take(std::string_view line);
  /// A line came that is longer than it may be.
  void take_too_long();
  /// Gives up on what the program has not answered until now.
  void advance(std::uint64_t now_ms);
  /// The program is gone: nothing more is sent, what waits is answered as not handled.
  void closed();

  /// In octets. A program that sends all parameters back, as Yate's library does, must not be cut
  /// off because somebody wrote a long message; so the answer to what was sent always fits.
  std::size_t max_line() const;
  const Locals& locals() const { return locals_; }

 private:
  struct Installed {
    Engine::Id id = 0;
    int priority = 0;
  };
  struct Waiting {
    MessagePointer message;
    Answer answer;
    std::uint64_t deadline_ms = 0;
  };
  enum class State { unconnected, connected, quitting, closed };

  Session(Engine& engine, Peer& peer, SessionOptions options);

  void obey(const QuitLine& line);
  void obey(const MessageLine& line);
  void obey(const AnswerLine& line);
  void obey(const InstallLine& line);
  void obey(const UninstallLine& line);
  void obey(const WatchLine& line);
  void obey(const UnwatchLine& line);
  void obey(const SetlocalLine& line);
  void obey(const OutputLine& line);
  void obey(const DebugLine& line);
  void obey(const ErrorLine& line);
  void connect(const ConnectLine& line);
  void complain(std::string_view line);

  void ask(const MessagePointer& message, Answer answer);
  /// Why the program cannot be asked; null where it can.
  const char* obstacle() const;
  void show(std::string_view watched, const Message& message, bool handled);
  void dispatched(const std::string& id, const MessagePointer& message, bool handled);
  bool is_own(const Message& message) const { return own_.count(&message) != 0; }
  Answer take_answer(std::uint64_t number);
  void release();
  void end(Ending ending);
  void log_refused(const Message& message, const char* why);

  Engine& engine_;
  Peer& peer_;
  const int priority_;
  const std::shared_ptr<const Facts> facts_;
  Locals locals_;
  State state_;
  std::map<std::string, Installed, std::less<>> installed_;
  std::map<std::string, Engine::Id, std::less<>> watches_;
  std::map<std::uint64_t, Waiting> waiting_;
  std::set<std::pair<std::uint64_t, std::uint64_t>> deadlines_;  ///< time and number of those
  std::set<const Message*> own_;  ///< messages of the program on their way
  std::uint64_t last_number_ = 0;
  std::size_t longest_sent_ = 0;
  std::uint32_t complaints_ = 0;
  bool is_refusing_ = false;  ///< said in the log that it cannot be asked
  sipmsg::LogLimit timeout_log_{10};
  sipmsg::LogLimit unmatched_log_{10};
};

/// Fit for one line of a log: control characters come out as question marks.
std::string printable(std::string_view text);

}  // namespace modules::extmodule
