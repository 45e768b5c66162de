// javascript/main: see main.hpp.
#include "main.hpp"

#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <signal.h>
#include <sys/prctl.h>
#endif

#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include "runner.hpp"

// The sanitizers reserve terabytes of address space.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SIPMSG_WITHOUT_ADDRESS_LIMIT
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SIPMSG_WITHOUT_ADDRESS_LIMIT
#endif
#endif

namespace modules {

namespace {

/// The connection to the server on one socket. What cannot be sent is dropped: the next `receive`
/// finds the connection closed.
class SocketLink final : public ScriptLink {
 public:
  explicit SocketLink(int socket) : socket_(socket) {}

  void send(std::string_view frames) override {
    while (!frames.empty()) {
      const ssize_t size = ::send(socket_, frames.data(), frames.size(), MSG_NOSIGNAL);
      if (size < 0 && errno == EINTR) continue;
      if (size < 0) return;
      frames.remove_prefix(static_cast<std::size_t>(size));
    }
  }

  Received receive(std::string& frame, std::uint64_t wait_ms) override {
    const std::uint64_t end_ms = wait_ms == forever ? forever : now_ms() + wait_ms;
    while (true) {
      std::string_view rest = std::string_view(input_).substr(taken_);
      std::string_view next;
      const FrameState state = split_frame(rest, next);
      if (state == FrameState::broken) return Received::end;
      if (state == FrameState::whole) {
        frame = next;
        taken_ = input_.size() - rest.size();
        return Received::frame;
      }
      if (!wait_readable(end_ms)) return Received::nothing;
      if (!read_more()) return Received::end;
    }
  }

  std::uint64_t now_ms() override {
    timespec time{};
    ::clock_gettime(CLOCK_MONOTONIC, &time);
    return static_cast<std::uint64_t>(time.tv_sec) * 1000 +
           static_cast<std::uint64_t>(time.tv_nsec) / 1000000;
  }

 private:
  /// False where `end_ms` comes first.
  bool wait_readable(std::uint64_t end_ms) {
    pollfd entry{socket_, POLLIN, 0};
    while (true) {
      int wait_ms = -1;
      if (end_ms != forever) {
        const std::uint64_t time_ms = now_ms();
        const std::uint64_t left_ms = end_ms > time_ms ? end_ms - time_ms : 0;
        constexpr std::uint64_t longest_ms = 3600000;
        wait_ms = static_cast<int>(left_ms < longest_ms ? left_ms : longest_ms);
      }
      const int ready = ::poll(&entry, 1, wait_ms);
      if (ready > 0) return true;
      if (ready == 0 && now_ms() >= end_ms) return false;
      if (ready < 0 && errno != EINTR) return true;  // reading will tell
    }
  }

  bool read_more() {
    input_.erase(0, taken_);
    taken_ = 0;
    char piece[65536];
    ssize_t size = -1;
    do {
      size = ::read(socket_, piece, sizeof piece);
    } while (size < 0 && errno == EINTR);
    if (size <= 0) return false;
    input_.append(piece, static_cast<std::size_t>(size));
    return true;
  }

  int socket_;
  std::string input_;
  std::size_t taken_ = 0;  ///< of `input_`, by frames that were returned
};

void set_limit(int resource, rlim_t value) {
  const rlimit limit{value, value};
  ::setrlimit(static_cast<decltype(RLIMIT_CORE)>(resource), &limit);
}

/// The heap keeps its own limit; these are for what surrounds it, should that go wrong.
void limit_resources(std::size_t memory_limit) {
  set_limit(RLIMIT_CORE, 0);
#ifndef SIPMSG_WITHOUT_ADDRESS_LIMIT
  constexpr std::size_t surroundings = std::size_t{1} << 30;  // program, libraries, frames
  set_limit(RLIMIT_AS, memory_limit + surroundings);
#else
  (void)memory_limit;
#endif
}

}  // namespace

int run_script_main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "sipmsg: run-script is for the server itself\n");
    return 2;
  }
  limit_resources(static_cast<std::size_t>(std::strtoull(argv[3], nullptr, 10)));
#ifdef __linux__
  // A script in an endless loop would not see that its server is gone.
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
#endif
  SocketLink link(STDIN_FILENO);
  ScriptRunner runner(link);
  return runner.run() ? 0 : 1;
}

}  // namespace modules
