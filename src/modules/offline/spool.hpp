// offline/spool: the directory that kept messages stand in, one file for each.
//
//     ID.msg    a message that was accepted and not delivered yet
//     ID.done   one that was delivered a moment ago, so that a repetition of it is recognised
//     .ID.tmp   one that is being written: not accepted, removed at the next start
//     lock      locked by the process that works here, which wrote its number into it
//
// ID has sixteen digits and rises with the order of arrival. No name comes from the network. Files
// are for their owner alone.
//
// A message is accepted when its file, synced, has been renamed and the directory been synced; it
// is delivered when it has been renamed or removed and the directory been synced. So a crash at any
// instant leaves each message in one of its states, and what a crash left half done is no message.
// What is not ours, or broken, is reported and left alone.
//
// Everything here waits for the disk: it is for threads of the pool, several at once.
#pragma once

#include <uv.h>

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "message.hpp"
#include "sipmsg.hpp"

namespace modules {

/// The operations that change a spool, so that a test can let each of them fail. All return 0, or a
/// number that is not negative, or libuv's negative status.
class FileOperations {
 public:
  virtual ~FileOperations() = default;
  /// A new file, open for writing; `path` must not exist.
  virtual int create(const std::string& path) = 0;
  virtual int write(int file, std::string_view text) = 0;
  virtual int sync(int file) = 0;
  virtual int close(int file) = 0;
  virtual int rename(const std::string& from, const std::string& to) = 0;
  virtual int remove(const std::string& path) = 0;
  virtual int sync_directory(const std::string& path) = 0;
};

/// Those of the operating system.
FileOperations& real_files();

/// What stands in a spool.
struct SpoolContents {
  /// So many files that were left alone have a line of their own.
  static constexpr std::size_t max_remarks = 20;

  struct Kept {
    KeptMessage message;  ///< without headers and body
    std::uint64_t octets = 0;
  };
  std::vector<Kept> kept;             ///< in the order of arrival
  std::vector<KeptMessage> finished;  ///< delivered a moment ago; without headers and body
  std::vector<std::string>
      remarks;  ///< a line for each file that was left alone, up to a few; others
  std::size_t left_alone = 0;
};

/// Why there is no message.
struct Unreadable {
  enum class Kind : std::uint8_t {
    gone,     ///< it has no file
    broken,   ///< what the file holds is no message
    for_now,  ///< the file could not be read: it may be whole
  };
  Kind kind = Kind::gone;
  std::string why;
};

/// Reads a spool that another process may be working on. `unusable` is why that could not be done,
/// empty where it could.
SpoolContents read_spool(const std::string& path, std::string& unusable);

/// The message with that id, or why there is none.
std::optional<KeptMessage> read_spooled(const std::string& path, std::uint64_t id,
                                        Unreadable& unreadable);

/// Sixteen digits.
std::string spool_id_text(std::uint64_t id);
std::optional<std::uint64_t> parse_spool_id(std::string_view text);

/// The file of the message with that id.
std::string spool_file(const std::string& path, std::uint64_t id);

/// The spool of the process that works on it, alone. Holds the lock until it is gone.
class Spool {
 public:
  explicit Spool(std::string path, FileOperations& files = real_files());
  ~Spool();
  Spool(const Spool&) = delete;
  Spool& operator=(const Spool&) = delete;

  const std::string& path() const { return path_; }

  /// Makes the directory where there is none, locks it, removes what a crash left half written, and
  /// reads the rest. Whoever holds the lock is given `patience_ms` to let go of it: before a
  /// reload it is this very process. `unusable` as above.
  SpoolContents open(unsigned patience_ms, std::string& unusable);

  /// Accepts a message. Without an error it stays through any crash, and `is_committed` is set the
  /// moment this is so. After an error it is not there, as far as the disk obeys. After `stop`:
  /// `closed`.
  sipmsg::Error write(const KeptMessage& message, std::atomic<bool>& is_committed);
  std::optional<KeptMessage> read(std::uint64_t id, Unreadable& unreadable) const {
    return read_spooled(path_, id, unreadable);
  }
  /// Delivered or given up; with `remember` it stays as ID.done. One that somebody removed by hand
  /// is no error.
  sipmsg::Error finish(std::uint64_t id, bool remember);
  /// Removes ID.done.
  void forget(std::uint64_t id);
  /// When this returns, no message is accepted any more; what was is told by its `is_committed`.
  void stop();

 private:
  std::string name(std::uint64_t id, const char* ending) const;
  sipmsg::Error lock(unsigned patience_ms, std::string& unusable);
  sipmsg::Error write_aside(const std::string& aside, std::string_view text);
  sipmsg::Error publish(const std::string& aside, const std::string& place);

  const std::string path_;
  FileOperations& files_;
  int lock_ = -1;
  uv_rwlock_t gate_;  ///< held for reading while a message becomes an accepted one
  bool is_stopped_ = false;
};

}  // namespace modules
