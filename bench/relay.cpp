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
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string>

#include "sipmsg.hpp"

namespace {

constexpr int window = 64;

[[noreturn]] void fail(const char* what) {
  std::perror(what);
  std::exit(1);
}

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

/// A UDP socket connected to the server.
class Phone {
 public:
  explicit Phone(std::uint16_t server_port) : fd_(socket(AF_INET, SOCK_DGRAM, 0)) {
    sockaddr_in server{};
    server.sin_family = AF_INET;
    server.sin_port = htons(server_port);
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const int size = 4 << 20;
    setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    if (connect(fd_, reinterpret_cast<sockaddr*>(&server), sizeof server) != 0) fail("connect");
    sockaddr_in own{};
    socklen_t length = sizeof own;
    getsockname(fd_, reinterpret_cast<sockaddr*>(&own), &length);
    port_ = std::to_string(ntohs(own.sin_port));
    timeval patience{2, 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  }
  void send(std::string_view octets) const {
    if (::send(fd_, octets.data(), octets.size(), 0) < 0) fail("send");
  }
  std::string_view receive() {
    const ssize_t size = recv(fd_, buffer_, sizeof buffer_, 0);
    if (size < 0) fail("recv: the server is silent");
    return {buffer_, static_cast<std::size_t>(size)};
  }
  const std::string& port() const { return port_; }

 private:
  int fd_;
  std::string port_;
  char buffer_[65536];
};

void enroll(Phone& phone, const char* user) {
  const std::string name(user);
  phone.send("REGISTER sip:127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:" + phone.port() +
             ";branch=z9hG4bKreg" + name + "\r\nMax-Forwards: 70\r\nFrom: <sip:" + name +
             "@127.0.0.1>;tag=1\r\nTo: <sip:" + name + "@127.0.0.1>\r\nCall-ID: " + name +
             "\r\nCSeq: 1 REGISTER\r\nContact: <sip:" + name + "@127.0.0.1:" + phone.port() +
             ">\r\nContent-Length: 0\r\n\r\n");
  if (phone.receive().substr(0, 11) != "SIP/2.0 200") fail("REGISTER");
}

std::string message(const Phone& from, int number, const std::string& body,
                    const std::string& to = "bob") {
  const std::string id = to + std::to_string(number);
  return "MESSAGE sip:" + to + "@127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:" + from.port() +
         ";branch=z9hG4bK" + id +
         ";rport\r\nMax-Forwards: 70\r\nFrom: \"Alice\" "
         "<sip:alice@127.0.0.1>;tag=D6kf2p\r\nTo: <sip:bob@127.0.0.1>\r\nCall-ID: c" +
         id +
         "\r\nCSeq: 20 MESSAGE\r\nContent-Type: text/plain\r\nUser-Agent: bench\r\n"
         "Content-Length: " +
         std::to_string(body.size()) + "\r\n\r\n" + body;
}

/// The 200 to a message, with all its Via.
void answer(Phone& phone, std::string_view received) {
  sipmsg::MessageView request;
  if (request.parse(received)) fail("the relayed message");
  char buffer[4096];
  sipmsg::Output out(buffer, sizeof buffer);
  write_status_line(out, 200, {});
  for (std::string_view via : request.values(sipmsg::HeaderId::via)) {
    out.raw("Via: ").raw(via).raw("\r\n");
  }
  for (sipmsg::HeaderId id : {sipmsg::HeaderId::from, sipmsg::HeaderId::to,
                              sipmsg::HeaderId::call_id, sipmsg::HeaderId::cseq}) {
    write_header(out, id, request.header(id));
  }
  write_body(out, {}, {});
  phone.send(out.written());
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
  enroll(bob, "bob");
  const Phone patient(port);
  const int slow = argc > 3 ? std::atoi(argv[3]) : 0;
  for (int i = 0; i < slow; ++i) patient.send(message(patient, i, "", "slow"));
  timespec begin{};
  clock_gettime(CLOCK_MONOTONIC, &begin);
  int sent = 0;
  int answered = 0;
  while (answered < count) {
    for (; sent < count && sent - answered < window; ++sent) alice.send(message(alice, sent, body));
    for (int i = answered; i < sent; ++i) answer(bob, bob.receive());
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
