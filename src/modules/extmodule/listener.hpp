// extmodule/listener: where programs that run already, here or elsewhere, connect to.
//
// Whoever can connect is trusted with every message, so a UNIX socket is the owner's alone where
// nothing else is configured, and what listens on the network is on the loopback by default.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "connection.hpp"
#include "handle.hpp"

namespace modules::extmodule {

struct ListenerSettings {
  std::string name;
  bool is_unix = false;
  sipmsg::SocketAddress address;  ///< of TCP
  std::string path;               ///< of a UNIX socket
  std::uint32_t mode = 0600;      ///< its file's permissions
  SessionOptions session;
};

class Listener {
 public:
  static constexpr std::size_t max_connections = 100;

  Listener(const Surroundings& surroundings, ListenerSettings settings);
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  /// Says in the log where it listens, or why it does not.
  void start();
  /// Ends all connections, and removes the file of a UNIX socket.
  void stop();

 private:
  /// libuv's status.
  int listen();
  int listen_unix();
  int listen_tcp();
  void accept();
  std::string place() const;

  const Surroundings around_;
  const ListenerSettings settings_;
  Owned<Stream> stream_;
  std::map<std::uint64_t, std::shared_ptr<Connection>> connections_;
  std::uint64_t last_number_ = 0;
};

}  // namespace modules::extmodule
