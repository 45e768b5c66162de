#include "presence.hpp"

#include <utility>

#include "outcome.hpp"

namespace program {

int Presence::enroll(const std::string& address_of_record) {
  address_ = address_of_record;
  sipmsg::RegistrationOptions options;
  options.address_of_record = address_of_record;
  options.proxy = account_.proxy_for(address_of_record);
  options.login = account_.login();
  registration_ = std::make_unique<sipmsg::Registration>(
      endpoint_, options, [this](const sipmsg::RegistrationStatus& status) { on_status(status); });
  const sipmsg::Error error = registration_->start();
  if (!error) return exit_done;
  const bool has_no_user = error.code == sipmsg::ErrorCode::bad_argument;
  handlers_.say(address_ + ": " + (has_no_user ? "a user name is missing" : sentence(error)));
  return exit_status_of(error);
}

int Presence::listen(const std::string& where) {
  const std::size_t colon = where.find(':');
  const auto transport = sipmsg::parse_transport(where.substr(0, colon));
  const auto address = sipmsg::parse_socket_address(
      colon == std::string::npos ? std::string_view() : std::string_view(where).substr(colon + 1));
  if (!transport || !address) {
    handlers_.say("--listen " + where +
                  ": expected udp:HOST:PORT or tcp:HOST:PORT, the host numeric");
    return exit_usage;
  }
  const std::string host = to_text(address->ip);
  const sipmsg::Error error = *transport == sipmsg::Transport::tcp
                                  ? endpoint_.listen_tcp(host, address->port)
                                  : endpoint_.listen_udp(host, address->port);
  if (error) {
    handlers_.say("--listen " + where + ": " + describe(error));
    return exit_network;
  }
  const sipmsg::Listener& listener = endpoint_.listeners().back();
  handlers_.say("listening " + std::string(transport_parameter(listener.transport)) + " " +
                to_text(listener.address));
  handlers_.ready();
  return exit_done;
}

void Presence::on_status(const sipmsg::RegistrationStatus& status) {
  using State = sipmsg::RegistrationStatus::State;
  sipmsg::Outcome outcome;
  outcome.error = status.error;
  outcome.code = status.code;
  outcome.reason = status.reason;
  if (status.state == State::registered) {
    if (is_registered_) return;  // a refresh
    is_registered_ = true;
    handlers_.say("registered as " + address_);
    if (!was_registered_) handlers_.ready();
    was_registered_ = true;
  } else if (status.state == State::refused) {
    is_registered_ = false;
    handlers_.say("not registered as " + address_ + ": " + sentence(outcome));
    handlers_.failed(exit_refused);
  } else if (status.state == State::retrying) {
    is_registered_ = false;
    const std::string said = "not registered as " + address_ + ": " + sentence(outcome);
    if (!was_registered_) {
      handlers_.say(said);
      return handlers_.failed(outcome.error ? exit_network : exit_refused);
    }
    handlers_.say(said + "; next try in " + std::to_string((status.retry_in_ms + 999) / 1000) +
                  " s");
  }
}

void Presence::stop(std::function<void()> done) {
  if (!registration_ || !was_registered_) return done();
  stopped_ = std::move(done);
  patience_ = std::make_unique<Timer>(uv_default_loop());
  patience_->start(patience_ms, 0, [this] { finish_stop(); });
  registration_->stop([this] { finish_stop(); });
}

void Presence::finish_stop() {
  patience_.reset();
  if (const auto stopped = std::exchange(stopped_, nullptr)) stopped();
}

}  // namespace program
