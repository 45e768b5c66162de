// The phones of the benchmarks: sockets that know as much SIP as they need, so that what is
// measured is the server.
#pragma once

#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "sipmsg.hpp"

namespace bench {

[[noreturn]] inline void fail(const char* what) {
  std::perror(what);
  std::exit(1);
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
  ~Phone() { close(fd_); }
  Phone(const Phone&) = delete;
  Phone& operator=(const Phone&) = delete;

  void send(std::string_view octets) const {
    if (::send(fd_, octets.data(), octets.size(), 0) < 0) fail("send");
  }
  std::string_view receive() {
    const ssize_t size = recv(fd_, buffer_, sizeof buffer_, 0);
    if (size < 0) fail("recv: the server is silent");
    return {buffer_, static_cast<std::size_t>(size)};
  }

  void enroll(const std::string& user) {
    send("REGISTER sip:127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:" + port_ +
         ";branch=z9hG4bKreg" + user + "\r\nMax-Forwards: 70\r\nFrom: <sip:" + user +
         "@127.0.0.1>;tag=1\r\nTo: <sip:" + user + "@127.0.0.1>\r\nCall-ID: " + user +
         "\r\nCSeq: 1 REGISTER\r\nContact: <sip:" + user + "@127.0.0.1:" + port_ +
         ">\r\nContent-Length: 0\r\n\r\n");
    if (receive().substr(0, 11) != "SIP/2.0 200") fail("REGISTER");
  }

  /// A MESSAGE; `number` is another one for each.
  void write(const std::string& sender, const std::string& recipient, int number,
             const std::string& body) const {
    const std::string id = std::to_string(number);
    send("MESSAGE sip:" + recipient + "@127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:" + port_ +
         ";branch=z9hG4bK" + id + ";rport\r\nMax-Forwards: 70\r\nFrom: \"Alice\" <sip:" + sender +
         "@127.0.0.1>;tag=D6kf2p\r\nTo: <sip:" + recipient + "@127.0.0.1>\r\nCall-ID: c" + id +
         "\r\nCSeq: 20 MESSAGE\r\nContent-Type: text/plain\r\nUser-Agent: bench\r\n"
         "Content-Length: " +
         std::to_string(body.size()) + "\r\n\r\n" + body);
  }

  /// The 200 to a message, with all its Via.
  void answer(std::string_view received) const {
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
    send(out.written());
  }

 private:
  int fd_;
  std::string port_;
  char buffer_[65536];
};

}  // namespace bench
