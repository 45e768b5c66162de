// chat_view: what a chat looks like: on a terminal, with a line that is edited, or in a pipe, where
// lines go in and lines come out.
#pragma once

#include <uv.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "input.hpp"
#include "transcript.hpp"

namespace program {

/// What the view tells the chat. Anything may be done in these but destroying the view.
struct ChatHandlers {
  std::function<void(std::string line)> line;      ///< a line was written
  std::function<void(std::string_view text)> key;  ///< the line is this now; never in a pipe
  std::function<void(int status)> end;  ///< nothing more comes; all was taken if it is exit_done
  std::function<void()> gone;           ///< nobody reads what is shown
};

/// How one of our own lines stands.
enum class LineState : std::uint8_t { waiting, sent, settled };

class ChatView {
 public:
  virtual ~ChatView() = default;

  /// From now on keys or lines are read. False where that cannot be.
  virtual bool start() = 0;
  /// Leaves the terminal as it was before. Nothing is read or shown any more.
  virtual void close() = 0;

  /// All texts are printable, and one line.
  virtual void show_notice(const std::string& text) = 0;
  virtual void show_incoming(const std::string& who, const std::string& text) = 0;
  /// An own line. First `waiting` or `sent`, with the same id then what it comes to be: `note` says
  /// what that is.
  virtual void show_own(std::uint64_t id, const std::string& text, LineState state,
                        const std::string& note) = 0;
  /// Whom lines go to, and whether he is typing.
  virtual void show_peer(const std::string& name, bool is_typing) = 0;
  /// Whether lines may come now; otherwise they wait with their writer.
  virtual void set_ready(bool is_ready) = 0;
};

/// Whether standard input and output are a terminal, so that there is a person at it.
bool is_chat_on_terminal();

/// For a terminal or, where there is none, for a pipe.
std::unique_ptr<ChatView> make_chat_view(uv_loop_t* loop, ChatHandlers handlers);

}  // namespace program
