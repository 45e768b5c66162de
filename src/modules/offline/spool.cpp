// offline/spool: see spool.hpp.
#include "spool.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

namespace modules {

namespace {

using sipmsg::Error;
using sipmsg::ErrorCode;

constexpr std::size_t id_digits = 16;
/// Larger than any message with all its octets escaped.
constexpr std::size_t max_file_octets = 1048576;

enum class Kind : std::uint8_t { message, delivered, half_written, lock, foreign };

struct Name {
  Kind kind = Kind::foreign;
  std::uint64_t id = 0;
};

Name parse_name(std::string_view text) {
  if (text == "lock") return {Kind::lock, 0};
  const bool is_hidden = text.substr(0, 1) == ".";
  if (is_hidden) text.remove_prefix(1);
  const auto id = parse_spool_id(text.substr(0, id_digits));
  if (!id) return {};
  const std::string_view ending = text.substr(id_digits);
  if (is_hidden) return {ending == ".tmp" ? Kind::half_written : Kind::foreign, *id};
  if (ending == ".msg") return {Kind::message, *id};
  return {ending == ".done" ? Kind::delivered : Kind::foreign, *id};
}

Error file_error(int status) { return status < 0 ? Error(ErrorCode::file, status) : Error(); }

std::string described(const std::string& path, Error error) {
  return path + ": " + sipmsg::describe(error);
}

std::string file_name(const std::string& path, std::uint64_t id, const char* ending) {
  return path + "/" + spool_id_text(id) + ending;
}

Unreadable unreadable_by(Error error) {
  const bool is_gone = error.code == ErrorCode::file && error.place == -ENOENT;
  if (is_gone) return {};
  const bool is_for_now = error.code == ErrorCode::file;  // and not because of its size
  return {is_for_now ? Unreadable::Kind::for_now : Unreadable::Kind::broken,
          sipmsg::describe(error)};
}

std::optional<KeptMessage> read_message(const std::string& file, std::uint64_t id,
                                        std::uint64_t& octets, Unreadable& unreadable) {
  const auto text = sipmsg::read_file(file, max_file_octets);
  if (!text) {
    unreadable = unreadable_by(text.error());
    return std::nullopt;
  }
  octets = text->size();
  auto message = parse_file_text(*text, unreadable.why);
  if (message) {
    message->id = id;
  } else {
    unreadable.kind = Unreadable::Kind::broken;
  }
  return message;
}

/// Sorts the files of a spool. Those that vanish meanwhile are no remark.
class SpoolReader {
 public:
  explicit SpoolReader(const std::string& path) : path_(path) {}

  void take(const std::string& file) {
    const Name name = parse_name(file);
    if (name.kind == Kind::lock || name.kind == Kind::half_written) return;
    if (name.kind == Kind::foreign) return leave_alone(file, "is not a file of this spool");
    Unreadable unreadable;
    SpoolContents::Kept kept;
    auto message = read_message(path_ + "/" + file, name.id, kept.octets, unreadable);
    if (!message) {
      const bool is_gone = unreadable.kind == Unreadable::Kind::gone;
      return is_gone ? void() : leave_alone(file, unreadable.why);
    }
    message->body = std::string();
    message->headers.clear();
    if (name.kind == Kind::delivered) {
      contents_.finished.push_back(std::move(*message));
      return;
    }
    kept.message = std::move(*message);
    contents_.kept.push_back(std::move(kept));
  }

  SpoolContents finish() {
    const auto before = [](const auto& a, const auto& b) { return a.message.id < b.message.id; };
    std::sort(contents_.kept.begin(), contents_.kept.end(), before);
    return std::move(contents_);
  }

 private:
  void leave_alone(const std::string& file, const std::string& why) {
    if (++contents_.left_alone > SpoolContents::max_remarks) return;
    contents_.remarks.push_back(path_ + "/" + on_one_line(file) + ": " + why + "; left alone");
  }

  const std::string& path_;
  SpoolContents contents_;
};

}  // namespace

// ---- the operating system

namespace {

class RealFiles final : public FileOperations {
 public:
  int create(const std::string& path) override {
    const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    return file < 0 ? -errno : file;
  }
  int write(int file, std::string_view text) override {
    while (!text.empty()) {
      const ssize_t size = ::write(file, text.data(), text.size());
      if (size < 0 && errno != EINTR) return -errno;
      if (size > 0) text.remove_prefix(static_cast<std::size_t>(size));
    }
    return 0;
  }
  int sync(int file) override { return ::fsync(file) < 0 ? -errno : 0; }
  int close(int file) override { return ::close(file) < 0 ? -errno : 0; }
  int rename(const std::string& from, const std::string& to) override {
    return ::rename(from.c_str(), to.c_str()) < 0 ? -errno : 0;
  }
  int remove(const std::string& path) override { return ::unlink(path.c_str()) < 0 ? -errno : 0; }
  int sync_directory(const std::string& path) override {
    const int directory = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0) return -errno;
    const int status = sync(directory);
    ::close(directory);
    return status;
  }
};

}  // namespace

FileOperations& real_files() {
  static RealFiles files;
  return files;
}

// ---- names

std::string spool_id_text(std::uint64_t id) {
  std::string digits = std::to_string(id);
  return std::string(id_digits - std::min(id_digits, digits.size()), '0') + digits;
}

std::optional<std::uint64_t> parse_spool_id(std::string_view text) {
  if (text.size() != id_digits) return std::nullopt;
  return sipmsg::parse_digits(text, 9999999999999999u);
}

std::string spool_file(const std::string& path, std::uint64_t id) {
  return file_name(path, id, ".msg");
}

// ---- reading

SpoolContents read_spool(const std::string& path, std::string& unusable) {
  const auto names = sipmsg::list_directory(path);
  if (!names) {
    unusable = described(path, names.error());
    return {};
  }
  SpoolReader reader(path);
  for (const std::string& name : *names) reader.take(name);
  return reader.finish();
}

std::optional<KeptMessage> read_spooled(const std::string& path, std::uint64_t id,
                                        Unreadable& unreadable) {
  std::uint64_t octets = 0;
  return read_message(spool_file(path, id), id, octets, unreadable);
}

// ---- the spool of a server

Spool::Spool(std::string path, FileOperations& files) : path_(std::move(path)), files_(files) {
  uv_rwlock_init(&gate_);
}

Spool::~Spool() {
  if (lock_ >= 0) ::close(lock_);  // and with it the lock goes
  uv_rwlock_destroy(&gate_);
}

std::string Spool::name(std::uint64_t id, const char* ending) const {
  return file_name(path_, id, ending);
}

SpoolContents Spool::open(unsigned patience_ms, std::string& unusable) {
  if (::mkdir(path_.c_str(), 0700) == 0) {
    static_cast<void>(files_.sync_directory(path_ + "/.."));
  } else if (errno != EEXIST) {
    unusable = described(path_, file_error(-errno));
    return {};
  }
  if (lock(patience_ms, unusable)) return {};
  const auto names = sipmsg::list_directory(path_);
  if (!names) {
    unusable = described(path_, names.error());
    return {};
  }
  for (const std::string& file : *names) {
    if (parse_name(file).kind == Kind::half_written) files_.remove(path_ + "/" + file);
  }
  SpoolContents contents = read_spool(path_, unusable);
  struct stat status {};
  if (::stat(path_.c_str(), &status) == 0 && (status.st_mode & 077) != 0) {
    contents.remarks.push_back(path_ + ": others than its owner may look into this directory");
  }
  return contents;
}

Error Spool::lock(unsigned patience_ms, std::string& unusable) {
  const std::string file = path_ + "/lock";
  lock_ = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (lock_ < 0) {
    const Error error = file_error(-errno);
    unusable = described(file, error);
    return error;
  }
  constexpr unsigned pause_ms = 20;
  while (::flock(lock_, LOCK_EX | LOCK_NB) < 0) {
    if (patience_ms < pause_ms) {
      char owner[24] = "";
      if (::pread(lock_, owner, sizeof owner - 1, 0) <= 0) std::strcpy(owner, "?");
      owner[std::strspn(owner, "0123456789?")] = '\0';
      unusable = path_ + ": process " + owner + " works on this spool; each server needs its own";
      ::close(lock_);
      lock_ = -1;
      return ErrorCode::limit_reached;
    }
    uv_sleep(pause_ms);
    patience_ms -= pause_ms;
  }
  // Only for people who look: what counts is the lock.
  const std::string owner = std::to_string(::getpid()) + "\n";
  if (::ftruncate(lock_, 0) == 0) static_cast<void>(files_.write(lock_, owner));
  return {};
}

Error Spool::write(const KeptMessage& message, std::atomic<bool>& is_committed) {
  const std::string aside = path_ + "/." + spool_id_text(message.id) + ".tmp";
  Error error = write_aside(aside, to_file_text(message));
  if (!error) {
    uv_rwlock_rdlock(&gate_);
    error = is_stopped_ ? Error(ErrorCode::closed) : publish(aside, name(message.id, ".msg"));
    is_committed = !error;
    uv_rwlock_rdunlock(&gate_);
  }
  if (error) files_.remove(aside);
  return error;
}

Error Spool::write_aside(const std::string& aside, std::string_view text) {
  const int file = files_.create(aside);
  if (file < 0) return file_error(file);
  int status = files_.write(file, text);
  if (status >= 0) status = files_.sync(file);
  const int closed = files_.close(file);
  return file_error(status < 0 ? status : closed);
}

Error Spool::publish(const std::string& aside, const std::string& place) {
  int status = files_.rename(aside, place);
  if (status < 0) return file_error(status);
  status = files_.sync_directory(path_);
  // Its sender is told that it was not accepted; then it should not be delivered either.
  if (status < 0) files_.remove(place);
  return file_error(status);
}

Error Spool::finish(std::uint64_t id, bool remember) {
  const std::string place = name(id, ".msg");
  int status = remember ? files_.rename(place, name(id, ".done")) : files_.remove(place);
  if (status == -ENOENT) return {};
  if (status >= 0) status = files_.sync_directory(path_);
  return file_error(status);
}

void Spool::forget(std::uint64_t id) { files_.remove(name(id, ".done")); }

void Spool::stop() {
  uv_rwlock_wrlock(&gate_);
  is_stopped_ = true;
  uv_rwlock_wrunlock(&gate_);
}

}  // namespace modules
