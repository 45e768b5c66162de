#include <iostream>

#include "sipmsg.hpp"  // c++ -std=c++17 -Iinclude examples/040_register.cpp $(pkg-config --cflags --libs libuv) -o register

int main() {
  uv_loop_t* loop = uv_default_loop();
  sipmsg::Endpoint endpoint(loop);
  sipmsg::RegistrationOptions account;
  account.address_of_record = "sip:102@127.0.0.1:5072";
  account.login = std::make_shared<sipmsg::Login>("102", "secret");
  sipmsg::Registration registration(
      endpoint, account, [](const sipmsg::RegistrationStatus& status) {
        if (status.state == sipmsg::RegistrationStatus::State::registered) {
          std::cout << "registered for " << status.expires_s << " s" << std::endl;
        } else if (status.error || status.code >= 300) {
          std::cout << "not registered: " << (status.error ? describe(status.error) : status.reason)
                    << std::endl;
        }
      });
  endpoint.on_message([&](const sipmsg::Message& message, sipmsg::Reply reply) {
    std::cout << message.from()->uri.user << ": " << message.body() << std::endl;
    reply.send(200);
    if (message.body() != "bye") return;
    registration.stop([&] { endpoint.close(); });  // the registrar forgets us at once
  });
  if (auto error = registration.start()) {
    std::cerr << describe(error) << std::endl;
    return 1;
  }
  return uv_run(loop, UV_RUN_DEFAULT);
}

// Registers 102 with a server and stays registered: asks again in time, and tries again where that
// fails. Ends when somebody writes "bye". Start a server first, with `sipmsg serve -c DIR` and
// these two files in the directory, ysipchan.conf and regfile.conf:
//
//     [general]                  [101]
//     addr=127.0.0.1             password=another
//     port=5072                  [102]
//     [message]                  password=secret
//     enable=yes
//
// Expected output:
//   registered for 600 s
//   101: Ahoj, čau
//   101: bye
