#include <iostream>

#include "sipmsg.hpp"  // c++ -std=c++17 -Iinclude examples/020_echo.cpp $(pkg-config --cflags --libs libuv) -o echo

int main() {
  uv_loop_t* loop = uv_default_loop();  // yours: sipmsg never creates, runs or frees a loop
  sipmsg::Endpoint endpoint(loop);
  endpoint.on_message([](const sipmsg::Message& message, sipmsg::Reply reply) {
    std::cout << message.from()->uri.text << ": " << message.body() << std::endl;
    reply.send(200);
  });
  if (auto error = endpoint.listen_udp("127.0.0.1", 5070)) {
    std::cerr << describe(error) << std::endl;
    return 1;
  }
  return uv_run(loop, UV_RUN_DEFAULT);
}

// Receives messages, prints each and answers 200. To send it one, write to
// sip:echo@127.0.0.1:5070 from any softphone on this machine.
//
// Expected output:
//   sip:test@127.0.0.1: Grüße aus der Ferne
