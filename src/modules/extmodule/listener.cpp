// extmodule/listener: see listener.hpp.
#include "listener.hpp"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace modules::extmodule {

namespace {

using sipmsg::Severity;

constexpr int backlog = 16;

/// Whether a UNIX socket is left over from somebody who has not cleaned up: nobody takes calls.
bool is_abandoned(const std::string& path) {
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  if (path.size() >= sizeof name.sun_path) return false;
  std::memcpy(name.sun_path, path.data(), path.size());
  const int socket = ::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (socket < 0) return false;
  const int status = ::connect(socket, reinterpret_cast<const sockaddr*>(&name), sizeof name);
  const bool is_refused = status != 0 && errno == ECONNREFUSED;
  ::close(socket);
  return is_refused;
}

/// Makes room for a socket of that name. libuv's status: whatever is in use, or no socket, stays.
int make_room(const std::string& path) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0) return 0;
  if (!S_ISSOCK(status.st_mode) || !is_abandoned(path)) return UV_EADDRINUSE;
  return ::unlink(path.c_str()) == 0 ? 0 : uv_translate_sys_error(errno);
}

}  // namespace

Listener::Listener(const Surroundings& surroundings, ListenerSettings settings)
    : around_(surroundings), settings_(std::move(settings)) {}

void Listener::start() {
  if (const int status = listen(); status < 0) {
    around_.log(Severity::error,
                "cannot listen on " + place() + " for programs: " + uv_strerror(status));
    return stream_.reset();
  }
  around_.log(Severity::info, "listening " + place() + " for programs");
}

void Listener::stop() {
  for (const auto& connection : std::exchange(connections_, {})) connection.second->close();
  stream_.reset();  // libuv removes the file
}

int Listener::listen() {
  if (const int status = settings_.is_unix ? listen_unix() : listen_tcp(); status < 0) {
    return status;
  }
  stream_->any.data = this;
  return uv_listen(&stream_->any, backlog, [](uv_stream_t* stream, int status) {
    auto* listener = static_cast<Listener*>(stream->data);
    if (listener != nullptr && status == 0) listener->accept();
  });
}

/// Nobody can connect before it listens, so the permissions are right from the first moment.
int Listener::listen_unix() {
  stream_ = make_pipe(around_.loop);
  if (const int status = make_room(settings_.path); status < 0) return status;
  const int status = uv_pipe_bind(&stream_->pipe, settings_.path.c_str());
  if (status < 0) return status;
  if (::chmod(settings_.path.c_str(), settings_.mode) == 0) return 0;
  return uv_translate_sys_error(errno);
}

int Listener::listen_tcp() {
  stream_ = make_tcp(around_.loop);
  sockaddr_storage name{};
  const std::string ip = sipmsg::to_text(settings_.address.ip);
  const int port = settings_.address.port;
  const int status = settings_.address.ip.is_ipv6()
                         ? uv_ip6_addr(ip.c_str(), port, reinterpret_cast<sockaddr_in6*>(&name))
                         : uv_ip4_addr(ip.c_str(), port, reinterpret_cast<sockaddr_in*>(&name));
  if (status < 0) return status;
  return uv_tcp_bind(&stream_->tcp, reinterpret_cast<const sockaddr*>(&name), 0);
}

/// Where it listens, with the port it got.
std::string Listener::place() const {
  if (settings_.is_unix) return "unix " + settings_.path;
  sipmsg::SocketAddress address = settings_.address;
  sockaddr_storage name{};
  int size = sizeof name;
  if (uv_tcp_getsockname(&stream_->tcp, reinterpret_cast<sockaddr*>(&name), &size) == 0) {
    // The port stands at the same place in both families.
    address.port = ntohs(reinterpret_cast<const sockaddr_in*>(&name)->sin_port);
  }
  return "tcp " + sipmsg::to_text(address);
}

void Listener::accept() {
  Owned<Stream> socket = settings_.is_unix ? make_pipe(around_.loop) : make_tcp(around_.loop);
  if (uv_accept(&stream_->any, &socket->any) < 0) return;
  if (connections_.size() >= max_connections) {
    around_.log(Severity::warning, settings_.name + ": too many programs, one more is refused");
    return;
  }
  const std::uint64_t number = ++last_number_;
  const auto on_ended = [this, number](std::optional<Ending>) { connections_.erase(number); };
  const auto connection = std::make_shared<Connection>(
      around_, settings_.name + " " + std::to_string(number), settings_.session, on_ended);
  connections_[number] = connection;
  connection->open(std::move(socket), nullptr);
}

}  // namespace modules::extmodule
