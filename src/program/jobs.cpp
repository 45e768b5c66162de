#include "jobs.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "exit_status.hpp"

extern char** environ;

namespace program {

namespace {

/// The end to read from, below 0 an error; `ours` becomes the other. libuv would take a pair of
/// sockets, and a program that opens /dev/stdin cannot have one.
int open_pipe(uv_pipe_t& ours) {
  int ends[2];
  if (pipe(ends) != 0) return uv_translate_sys_error(errno);
  for (int end : ends) fcntl(end, F_SETFD, FD_CLOEXEC);
  const int status = uv_pipe_open(&ours, ends[1]);
  if (status == 0) return ends[0];
  for (int end : ends) ::close(end);
  return status;
}

}  // namespace

/// One that runs: its process, and the pipe that is its standard input.
struct Jobs::Running {
  uv_process_t process{};
  uv_pipe_t pipe{};
  uv_write_t write{};
  Job job;
  Jobs* owner = nullptr;  ///< null once nobody cares
  int open_handles = 2;

  void close_pipe() {
    auto* handle = reinterpret_cast<uv_handle_t*>(&pipe);
    if (uv_is_closing(handle) == 0) uv_close(handle, on_closed);
  }
  void close_process() {
    auto* handle = reinterpret_cast<uv_handle_t*>(&process);
    if (uv_is_closing(handle) == 0) uv_close(handle, on_closed);
  }
  static void on_closed(uv_handle_t* handle) {
    auto* running = static_cast<Running*>(handle->data);
    if (--running->open_handles == 0) delete running;
  }
  void finish(int status) {
    close_pipe();
    close_process();
    if (owner == nullptr) return;
    Jobs& jobs = *std::exchange(owner, nullptr);
    jobs.all_.erase(std::find(jobs.all_.begin(), jobs.all_.end(), this));
    --jobs.running_;
    job.done(status);  // may close the jobs, but not destroy them
    jobs.start_waiting();
  }
};

bool Jobs::add(Job job) {
  if (waiting_.size() >= max_waiting) return false;
  waiting_.push_back(std::move(job));
  start_waiting();
  return true;
}

void Jobs::start_waiting() {
  while (running_ < at_once_ && !waiting_.empty()) {
    Job job = std::move(waiting_.front());
    waiting_.pop_front();
    start(std::move(job));
  }
}

void Jobs::start(Job job) {
  auto* running = new Running;
  running->job = std::move(job);
  running->owner = this;
  running->process.data = running->pipe.data = running->write.data = running;
  uv_pipe_init(loop_, &running->pipe, 0);
  const int read_end = open_pipe(running->pipe);
  all_.push_back(running);
  ++running_;

  std::vector<std::string> own;
  for (const auto& variable : running->job.environment) {
    own.push_back(variable.first + "=" + variable.second);
  }
  std::vector<char*> environment;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    environment.push_back(*variable);
  }
  for (std::string& variable : own) environment.push_back(variable.data());
  environment.push_back(nullptr);
  char* arguments[] = {program_.data(), nullptr};
  uv_stdio_container_t streams[3];
  for (int descriptor : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    streams[descriptor].flags = UV_INHERIT_FD;
    streams[descriptor].data.fd = descriptor;
  }
  streams[STDIN_FILENO].data.fd = std::max(read_end, -1);  // with -1 nothing is started
  uv_process_options_t options{};
  options.file = program_.c_str();
  options.args = arguments;
  options.env = environment.data();
  options.stdio = streams;
  options.stdio_count = 3;
  options.exit_cb = [](uv_process_t* process, std::int64_t status, int signal) {
    static_cast<Running*>(process->data)->finish(signal != 0 ? -1 : static_cast<int>(status));
  };
  int status = uv_spawn(loop_, &running->process, &options);
  if (read_end < 0) {
    status = read_end;
  } else {
    ::close(read_end);
  }
  if (status < 0) {
    complain("--exec " + program_ + ": " + uv_strerror(status));
    return running->finish(-1);
  }
  uv_buf_t buffer =
      uv_buf_init(running->job.input.data(), static_cast<unsigned>(running->job.input.size()));
  // What the program does not read is not our concern.
  status =
      uv_write(&running->write, reinterpret_cast<uv_stream_t*>(&running->pipe), &buffer, 1,
               [](uv_write_t* write, int) { static_cast<Running*>(write->data)->close_pipe(); });
  if (status < 0) running->close_pipe();
}

void Jobs::close() {
  waiting_.clear();
  for (Running* running : std::exchange(all_, {})) {
    running->owner = nullptr;
    running->close_pipe();
    running->close_process();
  }
  running_ = 0;
}

}  // namespace program
