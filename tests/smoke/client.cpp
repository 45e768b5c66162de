// A client for interop.py: an account that registers, receives and sends on one Endpoint. What it
// is to do comes in lines on its standard input, and what happens goes out in lines.
//
//     client ADDRESS-OF-RECORD PASSWORD [PROXY-URI]
//
//     register            registering, registered EXPIRES, retrying CODE ERROR, refused CODE ERROR
//     send URI TEXT       answer CODE REASON, or failed ERROR
//     unregister          unregistered
//     (end of input)      unregisters, and ends
//
// A message that comes in is answered 200: message FROM-URI TEXT
#include <cstdio>
#include <optional>
#include <string>

#include <sipmsg.hpp>

namespace {

using sipmsg::RegistrationStatus;

void print(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

class Client {
 public:
  Client(uv_loop_t* loop, std::string account, std::string password, std::string proxy)
      : endpoint_(loop), account_(std::move(account)), proxy_(std::move(proxy)) {
    const auto uri = sipmsg::parse_uri(account_);
    login_ = std::make_shared<sipmsg::Login>(std::string(uri->user), std::move(password));
    endpoint_.on_message([](const sipmsg::Message& message, sipmsg::Reply reply) {
      print("message " + std::string(message.from()->uri.text) + " " + std::string(message.body()));
      reply.send(200);
    });
    sipmsg::RegistrationOptions options;
    options.address_of_record = account_;
    options.proxy = proxy_;
    options.login = login_;
    options.expires_s = 60;
    registration_.emplace(endpoint_, options, tell);
    uv_pipe_init(loop, &input_, 0);
    input_.data = this;
    uv_pipe_open(&input_, 0);
    uv_read_start(reinterpret_cast<uv_stream_t*>(&input_), give_room, on_read);
  }

 private:
  static void tell(const RegistrationStatus& status) {
    const std::string why = std::to_string(status.code) + " " + status.error.name();
    switch (status.state) {
      case RegistrationStatus::State::registering: return print("registering");
      case RegistrationStatus::State::registered:
        return print("registered " + std::to_string(status.expires_s));
      case RegistrationStatus::State::retrying: return print("retrying " + why);
      case RegistrationStatus::State::refused: return print("refused " + why);
      case RegistrationStatus::State::unregistered: return;
    }
  }

  void obey(const std::string& line) {
    if (line == "register") {
      if (const auto error = registration_->start())
        print(std::string("refused 0 ") + error.name());
    } else if (line == "unregister") {
      registration_->stop([] { print("unregistered"); });
    } else {
      const std::size_t blank = line.find(' ', 5);
      send(line.substr(5, blank - 5), line.substr(blank + 1));
    }
  }
  void send(const std::string& to, const std::string& text) {
    sipmsg::Outgoing message;
    message.to = to;
    message.from = account_;
    message.body = text;
    message.proxy = proxy_;
    message.login = login_;
    const auto error = endpoint_.send(message, [](const sipmsg::Outcome& outcome) {
      print(outcome.error ? std::string("failed ") + outcome.error.name()
                          : "answer " + std::to_string(outcome.code) + " " + outcome.reason);
    });
    if (error) print(std::string("failed ") + error.name());
  }

  static void give_room(uv_handle_t*, std::size_t, uv_buf_t* room) {
    static char octets[4096];
    *room = uv_buf_init(octets, sizeof octets);
  }
  static void on_read(uv_stream_t* stream, ssize_t size, const uv_buf_t* read) {
    auto& client = *static_cast<Client*>(stream->data);
    if (size < 0) return client.finish();
    client.line_.append(read->base, static_cast<std::size_t>(size));
    for (std::size_t end; (end = client.line_.find('\n')) != std::string::npos;) {
      const std::string line = client.line_.substr(0, end);
      client.line_.erase(0, end + 1);
      client.obey(line);
    }
  }
  void finish() {
    uv_close(reinterpret_cast<uv_handle_t*>(&input_), nullptr);
    registration_->stop([this] { endpoint_.close(); });
  }

  sipmsg::Endpoint endpoint_;
  std::string account_;
  std::string proxy_;
  std::shared_ptr<sipmsg::Login> login_;
  std::optional<sipmsg::Registration> registration_;
  uv_pipe_t input_;
  std::string line_;
};

}  // namespace

int main(int count, char** words) {
  if (count < 3) return 2;
  Client client(uv_default_loop(), words[1], words[2], count > 3 ? words[3] : "");
  return uv_run(uv_default_loop(), UV_RUN_DEFAULT);
}
