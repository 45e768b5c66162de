// endpoint: a user agent on a libuv loop: what a user of this header holds to send and receive.
//
// One object does both, on sockets it opens where it is told; a Registration keeps it reachable.
// The loop is the caller's. Everything here belongs to the loop's thread, but `post`, which other
// threads may call. Anything may be done inside a callback: sending, replacing the handler,
// closing, destroying the Endpoint or the Registration itself. After `close()`, or its destruction,
// the loop runs dry as far as this is concerned; it must turn once more so that libuv lets go of
// the sockets.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "agent.hpp"
#include "dns.hpp"
#include "loop.hpp"
#include "registration.hpp"
#include "transport.hpp"

namespace sipmsg {

namespace detail {

/// Everything of an Endpoint. Lives until the Endpoint is gone and the last callback has returned.
class EndpointCore final : public TransportReceiver,
                           public Alarm,
                           private NameService,
                           public std::enable_shared_from_this<EndpointCore> {
 public:
  EndpointCore(uv_loop_t* loop, AgentOptions options, const SipHashKey& secret)
      : EndpointCore(std::make_unique<Loop>(loop), std::move(options), secret) {}

  Loop& loop() { return *loop_; }
  Agent& agent() { return agent_; }
  Transports& transports() { return transports_; }
  bool is_closed() const { return closed_; }
  /// Why nothing can be sent or received: closed, or a Loop that could not be opened.
  Error error() const { return closed_ ? Error(ErrorCode::closed) : loop_->error(); }

  /// Before and after whatever the application does: the next deadline may be sooner.
  void rearm() {
    if (closed_) return;
    if (const auto deadline_ms = agent_.next_deadline()) arm(*deadline_ms);
    for (const auto& registration : registrations_) {
      if (const auto deadline_ms = registration->next_deadline()) arm(*deadline_ms);
    }
  }
  void add(std::shared_ptr<RegistrationKeeper> registration) {
    registrations_.push_back(std::move(registration));
  }
  void remove(const RegistrationKeeper& registration) {
    const auto found =
        std::find_if(registrations_.begin(), registrations_.end(),
                     [&](const auto& candidate) { return candidate.get() == &registration; });
    if (found != registrations_.end()) registrations_.erase(found);
  }
  void close() {
    if (closed_) return;
    const auto self = shared_from_this();  // what is told may let go of the Endpoint
    closed_ = true;
    const std::uint64_t now_ms = loop_->fresh_now_ms();
    for (const auto& registration : std::exchange(registrations_, {})) registration->close(now_ms);
    agent_.close();
    agent_.on_message(nullptr);
    dns_.close();
    transports_.close();
    loop_->close();
  }

 private:
  EndpointCore(std::unique_ptr<Loop> loop, AgentOptions options, const SipHashKey& secret)
      : Alarm(*loop),
        loop_(std::move(loop)),
        dns_(*loop_),
        names_(options.names != nullptr ? *options.names : dns_),
        transports_(*loop_, *this, transport_options()),
        agent_(complete(std::move(options), *this), transports_, secret) {}

  static TransportOptions transport_options() {
    TransportOptions options;
    options.report_unreachable = true;
    return options;
  }
  static AgentOptions complete(AgentOptions options, NameService& names) {
    if (options.unix_time_s == nullptr) options.unix_time_s = &sipmsg::unix_time_s;
    options.names = &names;
    return options;
  }

  // The agent goes on in `advance`, when what it asked for is there: the alarm has to know.
  void look_up_addresses(const std::string& host, AddressHandler done) override {
    names_.look_up_addresses(host, [weak = weak_from_this(), done = std::move(done)](
                                       Error error, const std::vector<IpAddress>& addresses) {
      const auto self = weak.lock();
      if (!self || self->closed_) return;
      done(error, addresses);
      self->rearm();
    });
  }
  void look_up_srv(const std::string& name, SrvHandler done) override {
    names_.look_up_srv(name, [weak = weak_from_this(), done = std::move(done)](
                                 Error error, const std::vector<SrvRecord>& records) {
      const auto self = weak.lock();
      if (!self || self->closed_) return;
      done(error, records);
      self->rearm();
    });
  }

  void on_message(const MessageView& message, Error error, const Flow& flow) override {
    const auto self = shared_from_this();
    agent_.receive(message, error, flow, loop_->now_ms());
    rearm();
  }
  void on_connection_closed(std::uint32_t socket, Error error) override {
    const auto self = shared_from_this();
    const std::uint64_t now_ms = loop_->now_ms();
    agent_.connection_closed(socket, error, now_ms);
    for_each_registration([&](RegistrationKeeper& registration) {
      registration.connection_closed(socket, error, now_ms);
    });
    rearm();
  }
  void on_connection_failed(std::uint32_t socket, Error error) override {
    const auto self = shared_from_this();
    agent_.connection_failed(socket, error, loop_->now_ms());
    rearm();
  }
  void on_unreachable(const Flow& flow, Error error) override {
    const auto self = shared_from_this();
    const std::uint64_t now_ms = loop_->now_ms();
    agent_.unreachable(flow.remote, error, now_ms);
    for_each_registration([&](RegistrationKeeper& registration) {
      registration.unreachable(flow.remote, error, now_ms);
    });
    rearm();
  }
  void on_alarm(std::uint64_t now_ms) override {
    const auto self = shared_from_this();
    agent_.advance(now_ms);
    for_each_registration([&](RegistrationKeeper& registration) { registration.advance(now_ms); });
    rearm();
  }
  /// Handlers may add and take away registrations meanwhile. One that is passed over for that is
  /// due still, and so the alarm goes off again.
  template <class Use>
  void for_each_registration(Use use) {
    for (std::size_t i = 0; i < registrations_.size(); ++i) {
      const std::shared_ptr<RegistrationKeeper> registration = registrations_[i];
      use(*registration);
    }
  }

  std::unique_ptr<Loop> loop_;
  Dns dns_;
  NameService& names_;  ///< the application's, or `dns_`
  Transports transports_;
  Agent agent_;
  std::vector<std::shared_ptr<RegistrationKeeper>> registrations_;
  bool closed_ = false;
};

}  // namespace detail

/// Answers one received message, at any time later, also after everything else is gone: then
/// `send` says so. Copies all answer the same message.
class Reply {
 public:
  Reply() = default;
  Reply(std::weak_ptr<detail::EndpointCore> core, ServerTransaction server)
      : core_(std::move(core)), server_(server) {}

  /// Sends a final answer, 200 to 699, with this phrase or the usual one. False where nothing was
  /// sent: the message was answered before, its sender has given up (after 32 s), the Endpoint is
  /// closed, the code is another one, the phrase would end the line, or a header may not stand
  /// there. See Agent::reply.
  bool send(int code, std::string_view phrase = {}, const Headers& headers = {}) const {
    const auto core = core_.lock();
    if (!core || core->is_closed()) return false;
    const Error error =
        core->agent().reply(server_, code, phrase, headers, core->loop().fresh_now_ms());
    core->rearm();
    return !error;
  }

 private:
  std::weak_ptr<detail::EndpointCore> core_;
  ServerTransaction server_;
};

/// Sends and receives messages on the caller's loop.
///
///     sipmsg::Endpoint endpoint(uv_default_loop());
///     endpoint.on_message([](const sipmsg::Message& message, sipmsg::Reply reply) { ... });
///     if (auto error = endpoint.listen_udp("0.0.0.0", 5060)) ...
///
/// Complete programs: examples/020_echo.cpp.
class Endpoint {
 public:
  using RegistrationHandler = RegistrationKeeper::Handler;
  /// The Message is the handler's to copy; the reference is valid during the call.
  using MessageHandler = std::function<void(const Message& message, Reply reply)>;

  /// `loop` must stay until it has run dry after `close`. What keeps the Endpoint from working (no
  /// file descriptor left, mostly) is said by `listen_udp` and `send`.
  explicit Endpoint(uv_loop_t* loop, AgentOptions options = {})
      : core_(std::make_shared<detail::EndpointCore>(loop, std::move(options),
                                                     random_secret().value())) {}
  ~Endpoint() { close(); }
  Endpoint(const Endpoint&) = delete;
  Endpoint& operator=(const Endpoint&) = delete;

  /// Opens a socket at a numeric address; port 0 chooses one. Several may be opened. Error:
  /// `bad_address`, or `network` with what the system said, such as a port that is taken.
  Error listen_udp(std::string_view host, std::uint16_t port) {
    return listen(Transport::udp, host, port);
  }
  Error listen_tcp(std::string_view host, std::uint16_t port) {
    return listen(Transport::tcp, host, port);
  }
  /// What `listen_udp` and `listen_tcp` opened, in that order, with the ports that were chosen.
  const std::vector<Listener>& listeners() const { return core_->transports().listeners(); }

  /// Whom to call for each MESSAGE. Without a handler they are refused with 405.
  void on_message(MessageHandler handler);
  /// Whom to show every message, in or out. It looks on: it must not call this Endpoint from there.
  void on_trace(Transports::TraceHandler handler) {
    core_->transports().on_trace(std::move(handler));
  }

  /// Sends a request. An error now means that nothing was sent and that no callback comes;
  /// otherwise `done` is called exactly once, later: with the final answer, or with `timeout`,
  /// `network` or `closed`. A socket is opened where none is.
  Error send(Outgoing outgoing, SentHandler done) {
    if (const Error error = core_->error()) return error;
    const Error error =
        core_->agent().send(std::move(outgoing), core_->loop().fresh_now_ms(), std::move(done));
    core_->rearm();
    return error;
  }

  /// Has `function()` called on the loop's thread. The one call other threads may make.
  template <class Function>
  Error post(Function function) {
    return core_->loop().post(std::move(function));
  }

  /// Closes all sockets. Sends that wait are told `closed`, from inside this call; so does the
  /// destructor, hence what their callbacks capture must live longer than the Endpoint. Who is
  /// registered says goodbye, see Registration.
  void close() { core_->close(); }

 private:
  friend class Registration;
  Error listen(Transport transport, std::string_view host, std::uint16_t port);

  std::shared_ptr<detail::EndpointCore> core_;
};

/// Keeps an Endpoint registered, and so reachable. Whichever goes first, this or the Endpoint, the
/// registrar is sent word that we are gone. Only `stop` makes sure that he got it: a closed
/// Endpoint can repeat nothing, and meet no challenge. He who got none forgets us in time.
class Registration {
 public:
  /// The handler is told of each change, and of each refresh. See RegistrationStatus.
  Registration(Endpoint& endpoint, RegistrationOptions options,
               Endpoint::RegistrationHandler handler)
      : core_(endpoint.core_),
        keeper_(std::make_shared<RegistrationKeeper>(endpoint.core_->agent(), std::move(options),
                                                     std::move(handler))) {
    if (!endpoint.core_->is_closed()) endpoint.core_->add(keeper_);
  }
  ~Registration() {
    const auto core = core_.lock();
    const bool is_open = core && !core->is_closed();  // or nothing is sent any more, at any time
    if (core) core->remove(*keeper_);
    keeper_->close(is_open ? core->loop().fresh_now_ms() : 0);
    if (is_open) core->rearm();
  }
  Registration(const Registration&) = delete;
  Registration& operator=(const Registration&) = delete;

  /// Registers, and stays registered from then on; begins anew after a refusal. An error now, see
  /// RegistrationKeeper::start, means that nothing is sent and the handler is not called.
  Error start() {
    const auto core = core_.lock();
    if (!core) return ErrorCode::closed;
    if (const Error error = core->error()) return error;
    const Error error = keeper_->start(core->loop().fresh_now_ms());
    core->rearm();
    return error;
  }
  /// Unregisters; `done` is called exactly once: later, at most 5 s, or from inside the end of this
  /// or of the Endpoint where that comes first. Where the Endpoint is closed already, or never
  /// worked, from inside this call.
  void stop(std::function<void()> done) {
    const auto core = core_.lock();
    if (!core || core->error()) {
      if (done) done();
      return;
    }
    keeper_->stop(core->loop().fresh_now_ms(), std::move(done));
    core->rearm();
  }
  const RegistrationStatus& status() const { return keeper_->status(); }

 private:
  std::weak_ptr<detail::EndpointCore> core_;
  std::shared_ptr<RegistrationKeeper> keeper_;
};

inline Error Endpoint::listen(Transport transport, std::string_view host, std::uint16_t port) {
  if (const Error error = core_->error()) return error;
  const auto address = listen_address(host, port);
  if (!address) return address.error();
  ListenerOptions options;
  options.transport = transport;
  options.address = *address;
  return core_->transports().listen(options).error();
}

inline void Endpoint::on_message(MessageHandler handler) {
  if (!handler) return core_->agent().on_message(nullptr);
  const std::weak_ptr<detail::EndpointCore> core = core_;
  core_->agent().on_message([core, handler = std::move(handler)](
                                const MessageView& request, const Flow&, ServerTransaction server) {
    handler(Message(request), Reply(core, server));
  });
}

}  // namespace sipmsg
