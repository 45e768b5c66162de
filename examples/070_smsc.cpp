#include <ctime>
#include <deque>
#include <iostream>
#include <map>

#include "sipmsg.hpp"  // c++ -std=c++17 -Iinclude examples/070_smsc.cpp $(pkg-config --cflags --libs libuv) -o smsc

/// Messages for users who are away, by recipient. In memory: an example, not a mailbox to rely on.
class MessageCentre {
 public:
  explicit MessageCentre(sipmsg::Server& server) : server_(server) {
    server.on_undelivered([this](const sipmsg::RouteRequest& request, int code) {
      if (code != 405 && code != 480) return sipmsg::Verdict::next();  // a refusal is an answer
      return keep(request);
    });
    server.on_registration([this](const sipmsg::RegistrationEvent& event) {
      if (event.kind != sipmsg::RegistrationEvent::Kind::removed) deliver(std::string(event.user));
    });
  }

 private:
  struct Mailbox {
    std::deque<sipmsg::Outgoing> messages;
    bool is_delivering = false;
  };

  sipmsg::Verdict keep(const sipmsg::RouteRequest& request) {
    sipmsg::Outgoing message;
    message.from = request.message.from()->uri.text;
    message.to = "sip:" + std::string(request.called) + "@127.0.0.1";
    message.body = request.body();
    message.content_type = request.content_type();
    message.headers = {{"Date", sipmsg::format_date(std::time(nullptr))}};
    mailboxes_[std::string(request.called)].messages.push_back(std::move(message));
    std::cout << "kept for " << request.called << ": " << request.body() << std::endl;
    return sipmsg::Verdict::accept(202);
  }

  /// One after the other, in order; what is not taken stays for the next time.
  void deliver(const std::string& user) {
    Mailbox& mailbox = mailboxes_[user];
    if (mailbox.messages.empty() || mailbox.is_delivering) return;
    const auto error =
        server_.send(mailbox.messages.front(), [this, user](const sipmsg::Outcome& outcome) {
          Mailbox& delivered = mailboxes_[user];
          delivered.is_delivering = false;
          if (!outcome.ok()) return;
          std::cout << "delivered to " << user << ": " << delivered.messages.front().body
                    << std::endl;
          delivered.messages.pop_front();
          deliver(user);
        });
    mailbox.is_delivering = !error;
    if (error) std::cerr << describe(error) << std::endl;
  }

  sipmsg::Server& server_;
  std::map<std::string, Mailbox> mailboxes_;
};

int main() {
  sipmsg::Settings settings = sipmsg::open_settings();
  for (auto& listener : settings.listeners) listener.port = 5075;
  uv_loop_t* loop = uv_default_loop();
  sipmsg::Server server(loop, settings);
  MessageCentre centre(server);
  if (auto error = server.start()) {
    std::cerr << error.text() << std::endl;
    return 1;
  }
  std::cout << "ready" << std::endl;
  return uv_run(loop, UV_RUN_DEFAULT);
}

// A short message service centre: keeps messages for users who are away, answers 202 Accepted, and
// delivers when they register. `on_undelivered` is asked when no phone took a message;
// `Server::send` sends one of our own to a user's phones. The program `sipmsg` has this built in,
// on disk and safe against crashes: [offline] in ysipchan.conf.
//
// Expected output:
//   ready
//   kept for 102: are you there?
//   kept for 102: call me
//   delivered to 102: are you there?
//   delivered to 102: call me
