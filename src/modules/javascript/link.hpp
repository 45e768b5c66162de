// javascript/link: what the server and the process of a script say to each other.
//
// Each script runs in a process of its own, because Duktape as distributions build it cannot be
// interrupted: the server kills a process that does not come to an end. The two are connected by
// one stream of frames, a length and a type and fields, in the octet order of the machine they
// share. Both sides check what they read: a script's process may have gone mad.
//
// Work that the server sends (`start`, `handle`, `result`) is taken up in order, and each piece is
// followed by one `done` when the script has stopped running for it, be it because it is finished
// or because it waits for something. What the script begins on its own, a timer mostly, is
// announced by `busy` and ended by `done`, too. So the server always knows for how long the script
// has been running without a pause, and for what.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>

namespace modules {

enum class FrameType : std::uint8_t {
  // To the script.
  start,         ///< name, source, line map, limits, run parameters: always the first frame
  handle,        ///< id, handler, name, return value, time, parameters
  result,        ///< id, handled, name, return value, parameters, table
  shared_value,  ///< present, value: the answer to `shared`, ahead of its turn
  // To the server.
  done,      ///< nothing
  busy,      ///< what for
  install,   ///< handler, owner, name, priority, filter parameter, filter value
  remove,    ///< handler
  answer,    ///< id, handled, return value, changed parameters
  dispatch,  ///< id (0: no result wanted), name, return value, time, parameters
  shared,    ///< operation, name, value
  log,       ///< severity, text
  last = log
};

/// What `shared` asks for. Values are texts.
enum class SharedOperation : std::uint8_t {
  get,
  set,        ///< no answer
  clear,      ///< no answer
  increment,  ///< the value is the number to wrap at, 0 for none
  last = increment
};

/// No frame is larger: a sender cuts what does not fit, a receiver gives the connection up.
constexpr std::size_t max_frame_size = std::size_t{32} << 20;

/// Puts frames at the end of a text. A frame that was begun and not ended (a script's exception
/// came between) is dropped when the next one begins.
class FrameWriter {
 public:
  void begin(FrameType type);
  void number(std::uint64_t value) { raw(&value, sizeof value); }
  void flag(bool value) { number(value ? 1 : 0); }
  void text(std::string_view value);
  /// False where the frame is too large; it is dropped then.
  bool end();

  /// All ended frames that were not taken out yet.
  std::string_view ready() const { return std::string_view(octets_).substr(0, ended_); }
  void consume(std::size_t size);

 private:
  void raw(const void* octets, std::size_t size) {
    octets_.append(static_cast<const char*>(octets), size);
  }

  std::string octets_;
  std::size_t ended_ = 0;  ///< where the last whole frame ends
};

/// Takes the fields out of one frame. After a field that is not there, all others are empty, and
/// `is_good` is false. Texts are views into the frame.
class FrameReader {
 public:
  /// `frame` is what `split_frame` gave.
  explicit FrameReader(std::string_view frame) : rest_(frame) {}

  /// The first field of each frame.
  std::optional<FrameType> type();
  std::uint64_t number();
  bool flag() { return number() != 0; }
  std::string_view text();
  /// A number of list entries, each of which takes at least `entry_size` octets.
  std::uint64_t count(std::size_t entry_size);
  bool is_good() const { return good_; }

 private:
  std::string_view rest_;
  bool good_ = true;
};

// Frames are read inside of calls that Duktape leaves by longjmp.
static_assert(std::is_trivially_destructible_v<FrameReader>);

enum class FrameState : std::uint8_t { whole, incomplete, broken };

/// Takes the first frame off the front of `octets`. `incomplete`: more octets are needed. `broken`:
/// this is no stream of frames, there is no way to go on.
FrameState split_frame(std::string_view& octets, std::string_view& frame);

}  // namespace modules
