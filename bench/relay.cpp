// What relaying one MESSAGE costs the server: its CPU time by the operating system's account.
//
//     relay [MESSAGES [BODY-OCTETS [SLOW]]]   default: 200000 messages of 100 octets
//
// SLOW further messages, at most 1000, are waiting meanwhile for a handler in the thread pool that
// takes a second for each; those that are counted need no handler. They must not be slower for it.
//
// A server in a process of its own, open mode, UDP on the loopback. This process plays both phones:
// it keeps a window of messages under way, answers each 200, and checks that every one came through
// with one final answer. The server's user and system time divided by the messages is the figure;
// the rate depends on this process, too, and on how noisy the machine is.
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string>

#include "phone.hpp"
#include "sipmsg.hpp"

using namespace bench;

namespace {

constexpr int window = 64;

/// Runs a server until standard input of the pipe ends; writes its port into the other pipe first.
[[noreturn]] void serve(int port_pipe, int end_pipe) {
  uv_loop_t* loop = uv_default_loop();
  sipmsg::Settings settings = sipmsg::open_settings();
  settings.listeners.resize(1);
  settings.listeners[0].port = 0;
  settings.listeners[0].receive_buffer_octets = 4 << 20;
  settings.max_transactions = 10000000;
  settings.flood.protection = false;
  settings.message.handler_deadline_s = 30;
  sipmsg::Server server(loop, settings);
  server.add_async_handler(
      50,
      [](const sipmsg::RouteRequest&) {
        uv_sleep(1000);
        return sipmsg::Verdict::accept();
      },
      [](const sipmsg::RouteRequest& request) { return request.called == "slow"; });
  if (auto error = server.start()) {
    std::fprintf(stderr, "%s\n", error.text().c_str());
    std::exit(1);
  }
  const std::uint16_t port = server.listeners()[0].address.port;
  if (write(port_pipe, &port, sizeof port) != sizeof port) fail("write");
  uv_pipe_t pipe;
  uv_pipe_init(loop, &pipe, 0);
  uv_pipe_open(&pipe, end_pipe);
  pipe.data = &server;
  uv_read_start(
      reinterpret_cast<uv_stream_t*>(&pipe),
      [](uv_handle_t*, std::size_t, uv_buf_t* buffer) {
        static char octets[16];
        *buffer = uv_buf_init(octets, sizeof octets);
      },
      [](uv_stream_t* stream, ssize_t, const uv_buf_t*) {
        static_cast<sipmsg::Server*>(stream->data)->close();
        uv_stop(stream->loop);  // slow handlers are not waited for
        uv_close(reinterpret_cast<uv_handle_t*>(stream), nullptr);
      });
  uv_run(loop, UV_RUN_DEFAULT);
  std::_Exit(0);
}

double seconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
}

}  // namespace

int main(int argc, char** argv) {
  const int count = argc > 1 ? std::atoi(argv[1]) : 200000;
  const std::string body(argc > 2 ? static_cast<std::size_t>(std::atoi(argv[2])) : 100, 'x');
  int port_pipe[2];
  int end_pipe[2];
  if (pipe(port_pipe) != 0 || pipe(end_pipe) != 0) fail("pipe");
  const pid_t server = fork();
  if (server == 0) {
    close(end_pipe[1]);
    serve(port_pipe[1], end_pipe[0]);
  }
  std::uint16_t port = 0;
  if (read(port_pipe[0], &port, sizeof port) != sizeof port) fail("the server did not start");

  Phone alice(port);
  Phone bob(port);
  bob.enroll("bob");
  Phone patient(port);
  const int slow = argc > 3 ? std::atoi(argv[3]) : 0;
  for (int i = 0; i < slow; ++i) patient.write("patient", "slow", i, "x");
  timespec begin{};
  clock_gettime(CLOCK_MONOTONIC, &begin);
  int sent = 0;
  int answered = 0;
  while (answered < count) {
    for (; sent < count && sent - answered < window; ++sent)
      alice.write("alice", "bob", sent, body);
    for (int i = answered; i < sent; ++i) bob.answer(bob.receive());
    for (; answered < sent; ++answered) {
      if (alice.receive().substr(0, 11) != "SIP/2.0 200") fail("an answer that is not 200");
    }
  }
  timespec end{};
  clock_gettime(CLOCK_MONOTONIC, &end);

  close(end_pipe[1]);
  int status = 0;
  rusage usage{};
  if (wait4(server, &status, 0, &usage) != server || status != 0) fail("the server's end");
  const double wall = static_cast<double>(end.tv_sec - begin.tv_sec) +
                      static_cast<double>(end.tv_nsec - begin.tv_nsec) / 1e9;
  std::printf("%d messages of %zu octets relayed, each answered 200\n", count, body.size());
  std::printf("server CPU per message: %.2f us (%.2f user, %.2f system)\n",
              (seconds(usage.ru_utime) + seconds(usage.ru_stime)) / count * 1e6,
              seconds(usage.ru_utime) / count * 1e6, seconds(usage.ru_stime) / count * 1e6);
  std::printf("rate: %.0f messages/s; server's peak memory: %ld kB\n", count / wall,
              usage.ru_maxrss);
  return 0;
}
