#include <iostream>

#include "sipmsg.hpp"  // c++ -std=c++17 -Iinclude examples/030_send.cpp $(pkg-config --cflags --libs libuv) -o send

int main() {
  uv_loop_t* loop = uv_default_loop();
  sipmsg::Endpoint endpoint(loop);
  sipmsg::Outgoing message;
  message.from = "sip:101@127.0.0.1:5071";
  message.to = "sip:102@127.0.0.1:5071";
  message.body = "Ahoj, čau";
  const auto error = endpoint.send(message, [&](const sipmsg::Outcome& outcome) {
    if (outcome.error) {
      std::cout << "no answer: " << describe(outcome.error) << std::endl;
    } else {
      std::cout << outcome.code << " " << outcome.reason << std::endl;
    }
    endpoint.close();  // so that the loop has nothing more to wait for
  });
  if (error) {  // nothing was sent, and the function above is not called
    std::cerr << describe(error) << std::endl;
    return 1;
  }
  return uv_run(loop, UV_RUN_DEFAULT);
}

// Sends one message and learns what became of it: the recipient's answer, or that none came. Start
// a server first, `sipmsg serve --listen udp:127.0.0.1:5071`, and a softphone as 102 that registers
// there. Without the softphone the answer is `405 Method Not Allowed`; without the server it takes
// 32 seconds to be sure of that.
//
// Expected output:
//   200 OK
