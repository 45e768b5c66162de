#include <iostream>

#include "sipmsg.hpp"  // c++ -std=c++17 -Iinclude examples/060_filter.cpp $(pkg-config --cflags --libs libuv) -o filter

int main() {
  sipmsg::Settings settings = sipmsg::open_settings();
  for (auto& listener : settings.listeners) listener.port = 5074;
  uv_loop_t* loop = uv_default_loop();
  sipmsg::Server server(loop, settings);
  // The users' phones are looked up at priority 100, so a handler at 50 comes before.
  server.add_handler(50, [](const sipmsg::RouteRequest& request) {
    if (request.caller == "101") return sipmsg::Verdict::next();
    std::cout << "stopped a message from " << request.caller << std::endl;
    return sipmsg::Verdict::reject(406);
  });
  if (auto error = server.start()) {
    std::cerr << error.text() << std::endl;
    return 1;
  }
  std::cout << "ready" << std::endl;
  return uv_run(loop, UV_RUN_DEFAULT);
}

// A server that lets only 101 send messages. What a handler decides is the sender's answer: with
// Verdict::next() the next handler is asked, and behind the last of them the message is delivered;
// with Verdict::reject(406) the sender gets 406 Not Acceptable.
//
// Expected output:
//   ready
//   stopped a message from 102
