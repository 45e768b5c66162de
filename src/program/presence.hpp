// presence: how others reach a client: registered with a server, or listening at an address.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "account.hpp"
#include "exit_status.hpp"
#include "lifetime.hpp"
#include "sipmsg.hpp"

namespace program {

/// What the owner of a Presence is told.
struct PresenceHandlers {
  std::function<void(const std::string& line)> say;  ///< how it stands, for a person to read
  std::function<void()> ready;                       ///< once: messages can come from now on
  std::function<void(int status)> failed;            ///< it will never be; the exit status
};

class Presence {
 public:
  Presence(sipmsg::Endpoint& endpoint, const Account& account, PresenceHandlers handlers)
      : endpoint_(endpoint), account_(account), handlers_(std::move(handlers)) {}

  /// Registers this address-of-record and stays registered. The first try decides: a server that
  /// does not answer it is a failure, one that is lost later is waited for. What cannot be done at
  /// all is said and returned as an exit status; then no other handler is called.
  int enroll(const std::string& address_of_record);

  /// Opens a socket instead, "udp:127.0.0.1:5070"; `ready` is called from in here. Returns as
  /// above.
  int listen(const std::string& where);

  /// Takes the registration back; `done` is called once, perhaps from in here, and after a second
  /// at the latest, whatever the server does.
  void stop(std::function<void()> done);

 private:
  static constexpr std::uint64_t patience_ms = 1000;

  void finish_stop();
  void on_status(const sipmsg::RegistrationStatus& status);

  sipmsg::Endpoint& endpoint_;
  const Account& account_;
  PresenceHandlers handlers_;
  std::string address_;
  std::unique_ptr<sipmsg::Registration> registration_;
  std::unique_ptr<Timer> patience_;
  std::function<void()> stopped_;
  bool was_registered_ = false;
  bool is_registered_ = false;
};

}  // namespace program
