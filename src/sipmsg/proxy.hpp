// proxy: what a SIP MESSAGE server does with each request.
//
// MESSAGE is proxied (RFC 3261 16, RFC 3428 6): checked, its sender identified, offered to the
// handlers, and relayed to the bindings of the recipient. REGISTER is answered by section 10,
// OPTIONS by section 11, all else with 501. The order of the functions is the way of one message.
//
// Nothing is sent to an address other than the one a request came from, a live binding, or one that
// a handler names.
// Left out on purpose: dialogs, Record-Route, redirection, and everything of calls.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "access.hpp"
#include "registrar.hpp"
#include "relay.hpp"

namespace sipmsg {

namespace detail {

/// Keys for different uses must differ; one secret gives them all.
inline SipHashKey derive_key(const SipHashKey& secret, char purpose) {
  SipHashKey key{};
  for (char half : {'1', '2'}) {
    const char text[] = {purpose, half};
    std::uint64_t word = SipHash::of(secret, {text, 2});
    for (std::size_t i = 0; i < 8; ++i, word >>= 8) {
      key[(half == '2' ? 8U : 0U) + i] = static_cast<std::uint8_t>(word & 0xff);
    }
  }
  return key;
}

inline std::string_view text_of_key(const SipHashKey& key) {
  return {reinterpret_cast<const char*>(key.data()), key.size()};
}

inline TransactionOptions transaction_options(const Settings& settings) {
  TransactionOptions options;
  options.t1_ms = settings.timers.t1_ms;
  options.t4_ms = settings.timers.t4_ms;
  options.max_transactions = settings.max_transactions;
  options.retry_after_s = settings.flood.retry_after_s;
  return options;
}

inline void decode_into(std::string& out, std::string_view escaped) {
  out.clear();
  for (UnescapedOctets octets(escaped); !octets.done();) out.push_back(octets.next());
}

}  // namespace detail

/// A SIP MESSAGE server without sockets and without clock.
///
/// Feed it what arrives with `receive` and the time with `advance`; what it wants to send goes to
/// the Sink. Users, registrar, sink and log are the caller's and must outlive it.
class Proxy : public TransactionUser {
 public:
  /// `secret`: 16 octets nobody else knows, fresh for each run; nonces, tags and branches come of
  /// it.
  Proxy(const Settings& settings, const UserDirectory& users, Registrar& registrar, Sink& sink,
        ServerLog& log, const SipHashKey& secret)
      : settings_(settings),
        users_(&users),
        registrar_(registrar),
        log_(log),
        layer_(detail::transaction_options(settings), sink, *this, detail::derive_key(secret, 't')),
        answers_(layer_, counters_),
        relays_(layer_, sink, answers_, counters_, log, settings.timers.t1_ms,
                detail::derive_key(secret, 'r')),
        access_(settings.digest, detail::text_of_key(detail::derive_key(secret, 'd'))),
        handler_deadlines_(&timers_.queue(handler_deadline_ms(settings))) {
    answers_.set_server_name(settings.user_agent);
    users_handler_ = add_users_handler();
  }
  Proxy(const Proxy&) = delete;
  Proxy& operator=(const Proxy&) = delete;

  /// One message as it arrived; `error` is what MessageView::parse said of it.
  void receive(const MessageView& message, Error error, const Flow& from, std::uint64_t now_ms) {
    set_now(now_ms);
    ++events_;
    if (is_flood_victim(message, from)) {
      ++counters_.dropped;
      return;
    }
    layer_.receive(message, error, from, now_ms);
  }
  /// Nothing more waits on the sockets: a flood, if there was one, is over.
  void idle() { events_ = 0; }
  void connection_closed(std::uint32_t socket, Error error, std::uint64_t now_ms) {
    set_now(now_ms);
    registrar_.remove_connection(socket);
    layer_.connection_closed(socket, error, now_ms);
  }
  void advance(std::uint64_t now_ms) {
    set_now(now_ms);
    layer_.advance(now_ms);
    relays_.advance(now_ms);
    registrar_.advance(now_ms);
    timers_.advance(now_ms, [this](Timer& timer) { give_up_waiting(timer.owner); });
  }
  /// When `advance` is to be called next; UINT64_MAX where nothing waits.
  std::uint64_t next_deadline() const {
    const auto or_never = [](std::optional<std::uint64_t> deadline_ms) {
      return deadline_ms.value_or(UINT64_MAX);
    };
    return std::min({or_never(layer_.next_deadline()), or_never(relays_.next_deadline()),
                     or_never(timers_.next_deadline()), registrar_.next_deadline()});
  }

  HandlerChain& handlers() { return chain_; }
  void set_domains(OwnDomains domains) { domains_ = std::move(domains); }
  /// Other settings and users from now on; bindings and what is on its way stay. Timers, table
  /// sizes and the digest realm are those of the start.
  void reload(const Settings& settings, const UserDirectory& users) {
    settings_ = settings;
    users_ = &users;
    answers_.set_server_name(settings.user_agent);
    handler_deadlines_ = &timers_.queue(handler_deadline_ms(settings));
    chain_.remove(users_handler_);
    users_handler_ = add_users_handler();
  }
  /// Seconds since 1970 when `now_ms` was 0, for Date headers; without it none is written.
  void set_unix_time_at_zero(std::int64_t unix_s) { unix_s_at_zero_ = unix_s; }
  /// The verdict a handler promised with Verdict::later(). `gone` where its deadline is over.
  Error resume(RouteKey key, const Verdict& verdict, std::uint64_t now_ms);

  const ServerCounters& counters() const { return counters_; }
  std::size_t transactions() const { return layer_.size(); }
  /// How many messages wait for a handler's verdict.
  std::size_t waiting() const { return waiting_.size(); }

 private:
  static constexpr std::uint64_t log_pause_ms = 60000;

  static std::uint64_t handler_deadline_ms(const Settings& settings) {
    return std::uint64_t{1000} * settings.message.handler_deadline_s;
  }

  /// A MESSAGE while the handlers look at it.
  struct Asked {
    RelayRequest request;
    std::string_view username;
    HandlerChain::Position position;
  };

  /// One that a handler keeps: everything Asked borrows, owned.
  struct Waiting {
    Message message;
    RelayRequest request;
    std::string username;
    HandlerChain::Position position;
    Timer timer;
  };

  void set_now(std::uint64_t now_ms) {
    now_ms_ = now_ms;
    answers_.set_now(now_ms);
    relays_.set_now(now_ms);
  }

  // TransactionUser
  inline void on_request(ServerTransaction server, const MessageView& request,
                         const Flow& from) override;
  void on_response(ClientTransaction client, const MessageView& response, const Flow&) override {
    relays_.on_response(client, response);
  }
  void on_failure(ClientTransaction client, Error) override { relays_.on_failure(client); }

  void on_message(ServerTransaction server, const MessageView& request, const Flow& from);
  void on_register(ServerTransaction server, const MessageView& request, const Flow& from);
  void on_options(ServerTransaction server, const MessageView& request, const Flow& from);

  bool is_flood() const { return settings_.flood.events != 0 && events_ > settings_.flood.events; }
  bool is_flood_victim(const MessageView& message, const Flow& from) const;
  void refuse_method(ServerTransaction server, const MessageView& request);
  bool refuse_scheme(ServerTransaction server, const UriView& uri);
  bool refuse_extensions(ServerTransaction server, const MessageView& request, HeaderId id,
                         std::string_view known);
  bool refuse_sender(ServerTransaction server, const UserSettings& user, const MessageView& request,
                     HeaderId id);
  void challenge(ServerTransaction server, ChallengeKind kind, const Identity& identity,
                 const MessageView& request, const Flow& from);
  void write_allow(Output& out) const;

  HandlerChain::Id add_users_handler() {
    return chain_.add(static_cast<int>(settings_.route_priority),
                      [this](const RouteRequest& request) { return route_to_user(request); });
  }
  Verdict route_to_user(const RouteRequest& request) const;
  void walk(Asked& asked);
  void decide(Asked& asked, const Verdict& verdict);
  void keep_waiting(const Asked& asked, RouteKey key);
  void give_up_waiting(std::uint32_t index);
  void forward(const Asked& asked, const std::vector<std::string>& uris);
  void add_bindings(std::string_view name);
  void add_uri(std::string_view text);
  void add_target(const RelayTarget& target);
  bool is_known(std::string_view name) const;

  void write_registration(Output& out, std::string_view user, const MessageView& request,
                          const RegisterOutcome& outcome);
  void log_seldom(std::uint64_t& last_ms, Severity severity, const std::string& text);

  Settings settings_;
  const UserDirectory* users_;
  Registrar& registrar_;
  ServerLog& log_;
  ServerCounters counters_;
  OwnDomains domains_;
  TransactionLayer layer_;
  OwnAnswers answers_;
  RelaySet relays_;
  AccessControl access_;
  HandlerChain chain_;
  HandlerChain::Id users_handler_ = 0;
  Timers timers_;
  TimerQueue* handler_deadlines_;
  Slab<Waiting> waiting_;
  std::array<RelayTarget, RelaySet::max_branches> targets_;
  std::size_t target_count_ = 0;
  // Decoded names of the message at hand, kept for their capacity.
  std::string caller_;
  std::string called_;
  std::string name_;
  std::uint64_t now_ms_ = 0;
  std::uint64_t events_ = 0;
  std::optional<std::int64_t> unix_s_at_zero_;
  std::uint64_t message_off_logged_ms_ = 0;
  std::uint64_t foreign_logged_ms_ = 0;
  std::uint64_t waiting_logged_ms_ = 0;
};

// ---- every request ------------------------------------------------------------------------------

inline void Proxy::on_request(ServerTransaction server, const MessageView& request,
                              const Flow& from) {
  switch (request.method()) {
    case Method::message:
      if (settings_.message.enable) return on_message(server, request, from);
      log_seldom(message_off_logged_ms_, Severity::warning,
                 "MESSAGE refused with 501: set [message] enable=yes in ysipchan.conf");
      break;
    case Method::register_:
      if (settings_.registrar.enable) return on_register(server, request, from);
      break;
    case Method::options:
      if (settings_.options_enable) return on_options(server, request, from);
      break;
    // RFC 3261 9.2: only INVITE can be cancelled, and no INVITE is ever left unanswered here.
    case Method::cancel:
      return answers_.send(server, layer_.find_cancelled(request, from) ? 200 : 481);
    default: break;
  }
  refuse_method(server, request);
}

/// Yate answers 501 to whatever is not in its Allow list, also to methods it knows.
inline void Proxy::refuse_method(ServerTransaction server, const MessageView&) {
  answers_.send(server, 501, {}, [this](Output& out) { write_allow(out); });
}

inline void Proxy::write_allow(Output& out) const {
  std::array<std::string_view, 3> methods;
  std::size_t count = 0;
  if (settings_.message.enable) methods[count++] = "MESSAGE";
  if (settings_.registrar.enable) methods[count++] = "REGISTER";
  if (settings_.options_enable) methods[count++] = "OPTIONS";
  out.raw("Allow: ");
  for (std::size_t i = 0; i < count; ++i) out.raw(i == 0 ? "" : ", ").raw(methods[i]);
  out.raw("\r\n");
}

/// In a flood REGISTER, OPTIONS and the like over UDP are dropped unanswered, because their clients
/// come back by themselves. MESSAGE never is.
inline bool Proxy::is_flood_victim(const MessageView& message, const Flow& from) const {
  if (!settings_.flood.protection || !is_flood() || from.transport != Transport::udp) return false;
  const Method method = message.method();
  return message.is_request() && (method == Method::register_ || method == Method::options ||
                                  method == Method::subscribe || method == Method::invite);
}

/// RFC 3261 8.2.2.1, 16.3: we serve sip. A sips request asks for TLS on every hop, which we have
/// not.
inline bool Proxy::refuse_scheme(ServerTransaction server, const UriView& uri) {
  if (uri.scheme == UriScheme::sip) return false;
  answers_.send(server, 416);
  return true;
}

/// RFC 3261 8.2.2.3 (Require) and 16.3 step 5 (Proxy-Require): 420, naming what we do not know.
inline bool Proxy::refuse_extensions(ServerTransaction server, const MessageView& request,
                                     HeaderId id, std::string_view known) {
  bool unknown = false;
  for (std::string_view tag : request.values(id)) {
    unknown = unknown || !equal_ignoring_case(tag, known);
  }
  if (!unknown) return false;
  answers_.send(server, 420, {}, [&](Output& out) {
    std::string_view separator;
    out.raw(header_name(HeaderId::unsupported)).raw(": ");
    for (std::string_view tag : request.values(id)) {
      if (equal_ignoring_case(tag, known) || !is_token(tag)) continue;
      out.raw(separator).raw(tag);
      separator = ", ";
    }
    out.raw("\r\n");
  });
  return true;
}

inline void Proxy::challenge(ServerTransaction server, ChallengeKind kind, const Identity& identity,
                             const MessageView& request, const Flow& from) {
  if (identity.refused) {
    log_.log(Severity::warning, "wrong password or unknown user in " +
                                    std::string(request.method_text()) + " from " +
                                    to_text(from.remote));
  }
  const bool stale = identity.kind == Identity::Kind::stale;
  answers_.send_statelessly(server, challenge_code(kind), [&](Output& out) {
    access_.write_challenges(out, kind, stale, from.remote.ip, now_ms_);
  });
}

/// An account is no licence to use other people's names: 403 where the address in that header is
/// none of the user's.
inline bool Proxy::refuse_sender(ServerTransaction server, const UserSettings& user,
                                 const MessageView& request, HeaderId id) {
  const auto address = id == HeaderId::from ? request.from() : request.to();
  detail::decode_into(name_, address->uri.user);
  if (may_speak_as(user, address->uri, name_, domains_)) return false;
  log_.log(Severity::warning, "user " + user.name + " may not use the " +
                                  std::string(header_name(id)) + " address " +
                                  std::string(address->uri.text));
  answers_.send(server, 403);
  return true;
}

inline void Proxy::log_seldom(std::uint64_t& last_ms, Severity severity, const std::string& text) {
  if (last_ms != 0 && now_ms_ - last_ms < log_pause_ms) return;
  last_ms = std::max<std::uint64_t>(now_ms_, 1);
  log_.log(severity, text);
}

// ---- MESSAGE: the checks of RFC 3261 16.3
// --------------------------------------------------------

inline void Proxy::on_message(ServerTransaction server, const MessageView& request,
                              const Flow& from) {
  const auto uri = request.request_uri();
  if (refuse_scheme(server, *uri)) return;
  if (refuse_extensions(server, request, HeaderId::proxy_require, {})) return;
  const std::uint32_t hops =
      std::min(request.max_forwards().value_or(settings_.max_forwards), settings_.max_forwards);
  if (hops == 0) return answers_.send(server, 483);
  if (relays_.is_loop(request)) return answers_.send(server, 482);

  Asked asked;
  asked.request.server = server;
  asked.request.message = &request;
  asked.request.source = from;
  asked.request.max_forwards = hops - 1;
  asked.request.credentials_field = request.header_count();

  if (!uri->host.empty() && !domains_.contains(uri->host)) {
    log_seldom(foreign_logged_ms_, Severity::warning,
               "MESSAGE to the foreign domain " + std::string(uri->host) +
                   " refused with 403: [general] domains in ysipchan.conf lists our own");
    return answers_.send(server, 403);
  }
  // A Route that names us has led here and is taken off (16.4); any other would make us a relay.
  if (request.has(HeaderId::route)) {
    const auto routes = request.values(HeaderId::route);
    auto route = routes.begin();
    const auto first = parse_name_addr(*route);
    if (!first) return answers_.send(server, 400, error_text(first.error().code));
    if (!domains_.contains(first->uri.host)) return answers_.send(server, 403);
    if (++route != routes.end()) return answers_.send(server, 403);
    asked.request.pop_route = true;
  }

  if (settings_.message.auth_required) {
    const ChallengeKind kind =
        settings_.message.auth_code == 407 ? ChallengeKind::proxy : ChallengeKind::www;
    const Identity identity = access_.identify(request, kind, *users_, from.remote.ip, now_ms_);
    if (identity.kind != Identity::Kind::known) {
      return challenge(server, kind, identity, request, from);
    }
    if (refuse_sender(server, *identity.user, request, HeaderId::from)) return;
    asked.username = identity.user->name;
    asked.request.credentials_field = identity.field;
  }
  walk(asked);
}

// ---- MESSAGE: the handlers
// -----------------------------------------------------------------------

inline void Proxy::walk(Asked& asked) {
  const MessageView& message = *asked.request.message;
  const auto from = message.from();
  detail::decode_into(caller_, from->uri.user);
  detail::decode_into(called_, message.request_uri()->user);
  const RouteKey key = waiting_.create();
  const RouteRequest request{
      message, caller_, from->display_name, called_, asked.username, asked.request.source, key};
  const Verdict verdict = chain_.walk(asked.position, request);
  if (verdict.kind() == Verdict::Kind::later) return keep_waiting(asked, key);
  waiting_.destroy(key);
  decide(asked, verdict);
}

inline void Proxy::decide(Asked& asked, const Verdict& verdict) {
  const ServerTransaction server = asked.request.server;
  switch (verdict.kind()) {
    case Verdict::Kind::next: return answers_.send(server, 404);
    case Verdict::Kind::accept: return answers_.send(server, verdict.code());
    case Verdict::Kind::reject: return answers_.send(server, verdict.code(), verdict.phrase());
    case Verdict::Kind::forward: return forward(asked, verdict.uris());
    case Verdict::Kind::later: return;
  }
}

inline void Proxy::keep_waiting(const Asked& asked, RouteKey key) {
  if (waiting_.size() > settings_.message.max_pending) {
    waiting_.destroy(key);
    log_seldom(waiting_logged_ms_, Severity::warning,
               "too many messages wait for handlers: [message] max_pending limits them");
    return answers_.send(asked.request.server, 503, {}, [this](Output& out) {
      write_header(out, HeaderId::retry_after, settings_.flood.retry_after_s);
    });
  }
  Waiting& waiting = *waiting_.get(key);
  waiting.message = Message(*asked.request.message);
  waiting.request = asked.request;
  waiting.request.message = &waiting.message;
  waiting.username = asked.username;
  waiting.position = asked.position;
  waiting.timer.owner = key.index;
  handler_deadlines_->start(waiting.timer, now_ms_);
}

inline void Proxy::give_up_waiting(std::uint32_t index) {
  const ServerTransaction server = waiting_.at(index).request.server;
  waiting_.destroy(waiting_.handle_of(index));
  log_.log(Severity::warning, "a handler did not answer in time: its message is refused with 504");
  answers_.send(server, 504);
}

inline Error Proxy::resume(RouteKey key, const Verdict& verdict, std::uint64_t now_ms) {
  set_now(now_ms);
  Waiting* waiting = waiting_.get(key);
  if (waiting == nullptr || waiting->request.message == nullptr) return ErrorCode::gone;
  // Moved out first: a handler further down the chain may want to answer later, too.
  const Message message = std::move(waiting->message);
  const std::string username = std::move(waiting->username);
  Asked asked{waiting->request, username, waiting->position};
  asked.request.message = &message;
  waiting_.destroy(key);
  if (verdict.kind() == Verdict::Kind::next) {
    walk(asked);
  } else {
    decide(asked, verdict);
  }
  return {};
}

/// The handler of the users themselves: everybody we know is reached at his bindings.
inline Verdict Proxy::route_to_user(const RouteRequest& request) const {
  return is_known(request.called) ? Verdict::forward({}) : Verdict::next();
}

inline bool Proxy::is_known(std::string_view name) const {
  if (name.empty()) return false;
  return settings_.registrar.accept_any_user || settings_.registrar.autocreate ||
         users_->knows(name);
}

// ---- MESSAGE: to the bindings
// --------------------------------------------------------------------

/// Without URIs the message goes to the bindings of whom it names.
inline void Proxy::forward(const Asked& asked, const std::vector<std::string>& uris) {
  target_count_ = 0;
  if (uris.empty()) {
    detail::decode_into(called_, asked.request.message->request_uri()->user);
    add_bindings(called_);
  }
  for (const std::string& uri : uris) add_uri(uri);
  if (target_count_ == 0) {
    return answers_.send(asked.request.server, settings_.message.offline_code, {},
                         [this](Output& out) { write_allow(out); });
  }
  relays_.start(asked.request, targets_.data(), target_count_);
}

/// The user's own bindings; where no user has that name, those of all who list it as an
/// alternative.
inline void Proxy::add_bindings(std::string_view name) {
  const auto add = [this](const Binding& binding) {
    add_target({binding.request_uri, binding.path, binding.flow});
  };
  registrar_.for_each(name, now_ms_, add);
  if (target_count_ > 0 || users_->find(name) != nullptr) return;
  users_->for_each_alternative(
      name, [&](const UserSettings& user) { registrar_.for_each(user.name, now_ms_, add); });
}

inline void Proxy::add_uri(std::string_view text) {
  const auto uri = parse_uri(text);
  if (!uri) return add_bindings(text);  // a bare user name
  if (uri->scheme != UriScheme::sip) return;
  if (domains_.contains(uri->host)) {
    detail::decode_into(name_, uri->user);
    return add_bindings(name_);
  }
  const auto ip = parse_ip(uri->host);
  if (!ip) return;
  Flow flow;
  flow.transport =
      parse_transport(uri->parameter("transport").value_or("udp")).value_or(Transport::udp);
  flow.remote.ip = *ip;
  flow.remote.port = uri->port != 0 ? uri->port : std::uint16_t{5060};
  add_target({text, {}, flow});
}

inline void Proxy::add_target(const RelayTarget& target) {
  if (target_count_ < targets_.size()) targets_[target_count_++] = target;
}

// ---- REGISTER: RFC 3261 10.3
// ---------------------------------------------------------------------

inline void Proxy::on_register(ServerTransaction server, const MessageView& request,
                               const Flow& from) {
  const auto uri = request.request_uri();
  const auto to = request.to();
  if (refuse_scheme(server, *uri)) return;
  if (refuse_extensions(server, request, HeaderId::require, "path")) return;
  const bool is_ours = to->uri.scheme == UriScheme::sip && !to->uri.user.empty() &&
                       domains_.contains(uri->host) && domains_.contains(to->uri.host);
  if (!is_ours) {
    log_seldom(foreign_logged_ms_, Severity::warning,
               "REGISTER of " + std::string(to->uri.text) +
                   " refused with 404: [general] domains in ysipchan.conf lists our own");
    return answers_.send(server, 404);
  }
  std::string_view user;
  if (settings_.registrar.auth_required) {
    const Identity identity =
        access_.identify(request, ChallengeKind::www, *users_, from.remote.ip, now_ms_);
    if (identity.kind != Identity::Kind::known) {
      return challenge(server, ChallengeKind::www, identity, request, from);
    }
    if (refuse_sender(server, *identity.user, request, HeaderId::to)) return;
    user = identity.user->name;
  } else {
    detail::decode_into(called_, to->uri.user);
    user = called_;
    if (!is_known(user)) return answers_.send(server, 404);
  }
  const RegisterOutcome outcome = registrar_.update(user, request, from, now_ms_);
  answers_.send(server, outcome.status, outcome.reason, [&](Output& out) {
    if (outcome.status == 200) return write_registration(out, user, request, outcome);
    if (outcome.min_expires_s != 0) write_header(out, HeaderId::min_expires, outcome.min_expires_s);
    if (outcome.retry_after_s != 0) write_header(out, HeaderId::retry_after, outcome.retry_after_s);
  });
}

/// All current bindings with the time each has left, and what a client behind a NAT should know.
inline void Proxy::write_registration(Output& out, std::string_view user,
                                      const MessageView& request, const RegisterOutcome& outcome) {
  registrar_.write_contacts(out, user, now_ms_);
  if (outcome.expires_s != 0) write_header(out, HeaderId::expires, outcome.expires_s);
  for (std::string_view path : request.values(HeaderId::path)) {  // RFC 3327 5.3
    out.raw("Path: ").raw(path).raw("\r\n");
  }
  if (unix_s_at_zero_) {
    const auto now_s = *unix_s_at_zero_ + static_cast<std::int64_t>(now_ms_ / 1000);
    write_header(out, HeaderId::date, format_date(now_s));
  }
  if (outcome.nat_contact.empty()) return;
  out.raw("X-Real-Contact: <");
  write_contact_outside_nat(out, outcome.nat_contact, outcome.nat_address);
  out.raw(">\r\n");
  if (settings_.registrar.nat_refresh_s != 0) {
    out.raw("P-NAT-Refresh: ").number(settings_.registrar.nat_refresh_s).raw("\r\n");
  }
}

// ---- OPTIONS: RFC 3261 11.2
// ----------------------------------------------------------------------

inline void Proxy::on_options(ServerTransaction server, const MessageView& request, const Flow&) {
  const auto uri = request.request_uri();
  if (refuse_scheme(server, *uri)) return;
  if (refuse_extensions(server, request, HeaderId::require, "path")) return;
  if (refuse_extensions(server, request, HeaderId::proxy_require, {})) return;
  if (!domains_.contains(uri->host)) return answers_.send(server, 404);
  if (is_flood()) {
    return answers_.send(server, 503, {}, [this](Output& out) {
      write_header(out, HeaderId::retry_after, settings_.flood.retry_after_s);
    });
  }
  answers_.send(server, 200, {}, [this](Output& out) {
    write_allow(out);
    out.raw("Accept: */*\r\nSupported: path\r\n");
  });
}

}  // namespace sipmsg
