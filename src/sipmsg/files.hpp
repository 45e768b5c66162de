// files: whole files, read and written through libuv, so that every system is the same.
//
// The calls wait until they are done. They are for starting up, for reloading, and for the thread
// pool (`Offload`): a loop that relays messages must not wait for a disk.
// A file that is written replaces the old one in one step (write beside it, flush, rename, flush
// the directory), so that after a crash there is the old content or the new, never half of one.
#pragma once

#include <uv.h>

#include <string>
#include <string_view>
#include <vector>

#include "ini.hpp"

namespace sipmsg {

namespace detail {

/// One request of libuv's file system, done on the spot and cleaned up after.
class FileRequest {
 public:
  FileRequest() = default;
  ~FileRequest() { uv_fs_req_cleanup(&request_); }
  FileRequest(const FileRequest&) = delete;
  FileRequest& operator=(const FileRequest&) = delete;

  uv_fs_t* get() { return &request_; }

 private:
  uv_fs_t request_{};
};

inline Error file_error(std::int64_t status) {
  return {ErrorCode::file, static_cast<std::int32_t>(status)};
}

/// An open file; closed when this goes.
class File {
 public:
  explicit File(uv_file number) : number_(number) {}
  ~File() { (void)close(); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  /// The file's number, or libuv's negative status.
  static int open(const char* path, int flags) {
    FileRequest request;
    return uv_fs_open(nullptr, request.get(), path, flags, 0, nullptr);
  }

  Error read_all(std::string& out, std::size_t limit) {
    char piece[16384];
    while (true) {
      FileRequest request;
      uv_buf_t buffer = uv_buf_init(piece, sizeof piece);
      const int size = uv_fs_read(nullptr, request.get(), number_, &buffer, 1, -1, nullptr);
      if (size < 0) return file_error(size);
      if (size == 0) return {};
      if (out.size() + static_cast<std::size_t>(size) > limit) return ErrorCode::too_large;
      out.append(piece, static_cast<std::size_t>(size));
    }
  }

  Error write_all(std::string_view text) {
    while (!text.empty()) {
      FileRequest request;
      constexpr std::size_t most = std::size_t{1} << 30;
      const auto piece = static_cast<unsigned>(text.size() < most ? text.size() : most);
      uv_buf_t buffer = uv_buf_init(const_cast<char*>(text.data()), piece);
      const int size = uv_fs_write(nullptr, request.get(), number_, &buffer, 1, -1, nullptr);
      if (size < 0) return file_error(size);
      text.remove_prefix(static_cast<std::size_t>(size));
    }
    return {};
  }

  /// Waits until the disk has it.
  Error flush() {
    FileRequest request;
    const int status = uv_fs_fsync(nullptr, request.get(), number_, nullptr);
    return status < 0 ? file_error(status) : Error();
  }

  Error set_mode(std::uint64_t mode) {
    FileRequest request;
    const int bits = static_cast<int>(mode & 07777);
    const int status = uv_fs_fchmod(nullptr, request.get(), number_, bits, nullptr);
    return status < 0 ? file_error(status) : Error();
  }

  Error close() {
    if (number_ < 0) return {};
    FileRequest request;
    const int status = uv_fs_close(nullptr, request.get(), number_, nullptr);
    number_ = -1;
    return status < 0 ? file_error(status) : Error();
  }

 private:
  uv_file number_;
};

/// The directory a path names its file in, with its slash; "./" where it names none.
inline std::string directory_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  return slash == std::string::npos ? "./" : path.substr(0, slash + 1);
}

inline bool is_regular_file(const std::string& path) {
  FileRequest request;
  if (uv_fs_stat(nullptr, request.get(), path.c_str(), nullptr) < 0) return false;
  constexpr std::uint64_t type_mask = 0170000;
  constexpr std::uint64_t regular = 0100000;
  return (request.get()->statbuf.st_mode & type_mask) == regular;
}

/// Where a path leads when all symbolic links are followed; itself where it leads nowhere yet.
inline std::string without_links(const std::string& path) {
  FileRequest request;
  if (uv_fs_realpath(nullptr, request.get(), path.c_str(), nullptr) < 0) return path;
  return static_cast<const char*>(request.get()->ptr);
}

inline void remove_file(const std::string& path) {
  FileRequest request;
  uv_fs_unlink(nullptr, request.get(), path.c_str(), nullptr);
}

/// A file beside `path` with a name of its own, hidden, so that no `$include` of the directory
/// finds it. Only its owner can read it. Returns its number, or a negative status.
inline int create_beside(const std::string& path, std::string& name) {
  const std::string directory = directory_of(path);
  const std::size_t base = path.rfind('/') + 1;  // npos + 1 is 0
  name = directory + "." + path.substr(base) + ".XXXXXX";
  FileRequest request;
  const int number = uv_fs_mkstemp(nullptr, request.get(), name.c_str(), nullptr);
  if (number >= 0) name = request.get()->path;
  return number;
}

inline Error write_and_rename(const std::string& path, std::string_view text) {
  std::string name;
  const int number = create_beside(path, name);
  if (number < 0) return file_error(number);
  File file(number);
  FileRequest old;
  Error error;
  if (uv_fs_stat(nullptr, old.get(), path.c_str(), nullptr) == 0) {
    error = file.set_mode(old.get()->statbuf.st_mode);
  }
  if (!error) error = file.write_all(text);
  if (!error) error = file.flush();
  const Error not_closed = file.close();
  if (!error) error = not_closed;
  if (!error) {
    FileRequest request;
    const int status = uv_fs_rename(nullptr, request.get(), name.c_str(), path.c_str(), nullptr);
    if (status < 0) error = file_error(status);
  }
  if (error) remove_file(name);
  return error;
}

}  // namespace detail

/// The whole file, byte for byte. Error: `file`, its place being libuv's status; `too_large` where
/// it has more than `limit` octets.
inline Result<std::string> read_file(const std::string& path,
                                     std::size_t limit = std::size_t{64} << 20) {
  const int number = detail::File::open(path.c_str(), UV_FS_O_RDONLY);
  if (number < 0) return detail::file_error(number);
  detail::File file(number);
  std::string text;
  if (auto error = file.read_all(text, limit)) return error;
  return text;
}

/// The names of the regular files in a directory, links to such included, without the path, in any
/// order. Error: `file`, also where `path` is no directory.
inline Result<std::vector<std::string>> list_directory(const std::string& path) {
  detail::FileRequest request;
  const int count = uv_fs_scandir(nullptr, request.get(), path.c_str(), 0, nullptr);
  if (count < 0) return detail::file_error(count);
  std::vector<std::string> names;
  uv_dirent_t entry;
  while (uv_fs_scandir_next(request.get(), &entry) == 0) {
    const bool to_be_looked_at = entry.type == UV_DIRENT_UNKNOWN || entry.type == UV_DIRENT_LINK;
    if (entry.type == UV_DIRENT_FILE ||
        (to_be_looked_at && detail::is_regular_file(path + "/" + entry.name))) {
      names.emplace_back(entry.name);
    }
  }
  return names;
}

/// Puts `text` in the place of what `path` holds, or of what the link it is leads to. The file
/// keeps its mode; a new one is for its owner alone. Error: `file`; the old content is there still.
inline Error write_file_atomically(const std::string& path, std::string_view text) {
  const std::string target = detail::without_links(path);
  if (auto error = detail::write_and_rename(target, text)) return error;
  // The rename itself must reach the disk. Some systems cannot flush a directory: no harm done.
  const std::string directory = detail::directory_of(target);
  const int number = detail::File::open(directory.c_str(), UV_FS_O_RDONLY | UV_FS_O_DIRECTORY);
  if (number >= 0) (void)detail::File(number).flush();
  return {};
}

/// The files of a configuration, from the file system.
class FileSource : public IniSource {
 public:
  Result<std::string> read(const std::string& path) override { return read_file(path); }
  Result<std::vector<std::string>> list(const std::string& path) override {
    return list_directory(path);
  }
};

}  // namespace sipmsg
