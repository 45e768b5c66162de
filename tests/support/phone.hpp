// A softphone on real sockets of the loopback, for tests of servers.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "loop.hpp"
#include "sipmsg.hpp"

namespace test {

/// A softphone: registers, counts what it gets, answers 200.
class Phone {
 public:
  /// `contact_user`: how its contact calls it, where not by its name.
  Phone(test::EventLoop& loop, const sipmsg::Server& server, std::string name,
        sipmsg::Transport transport, std::string contact_user = {})
      : name_(std::move(name)),
        contact_user_(contact_user.empty() ? name_ : std::move(contact_user)),
        endpoint(loop.uv()) {
    for (const sipmsg::Listener& listener : server.listeners()) {
      if (listener.transport == transport) hop_ = sipmsg::Flow{transport, 0, listener.address};
    }
    REQUIRE_FALSE(endpoint.listen_udp("127.0.0.1", 0));
    endpoint.on_message([this](const sipmsg::Message& message, const sipmsg::Reply& reply) {
      received.emplace_back(message.body());
      last = message;
      reply.send(200);
    });
  }

  /// REGISTER; expires 0 unregisters.
  void enroll(test::EventLoop& loop, int expires = 60) {
    sipmsg::Outgoing outgoing;
    outgoing.method = "REGISTER";
    outgoing.to = outgoing.from = "sip:" + name_ + "@127.0.0.1";
    outgoing.request_uri = "sip:127.0.0.1";
    outgoing.next_hop = hop_;
    outgoing.headers = {{"Contact", "<" + contact() + ">;expires=" + std::to_string(expires)}};
    int code = 0;
    REQUIRE_FALSE(
        endpoint.send(outgoing, [&](const sipmsg::Outcome& outcome) { code = outcome.code; }));
    REQUIRE(loop.run_until([&] { return code != 0; }));
    REQUIRE(code == 200);
  }
  /// Sends a message; its answer is added to `answers`.
  void write_to(const std::string& recipient, std::string body) {
    sipmsg::Outgoing outgoing;
    outgoing.to = "sip:" + recipient + "@127.0.0.1";
    outgoing.from = "sip:" + name_ + "@127.0.0.1";
    outgoing.body = std::move(body);
    outgoing.next_hop = hop_;
    REQUIRE_FALSE(endpoint.send(
        outgoing, [this](const sipmsg::Outcome& outcome) { answers.push_back(outcome.code); }));
  }

  std::string contact() const {
    return "sip:" + contact_user_ + "@" + to_text(endpoint.listeners()[0].address);
  }

  std::vector<std::string> received;
  sipmsg::Message last;
  std::vector<int> answers;

 private:
  std::string name_;
  std::string contact_user_;
  sipmsg::Flow hop_;

 public:
  sipmsg::Endpoint endpoint;  ///< the last: its end tells whoever still waits
};

}  // namespace test
