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

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "access.hpp"
#include "alteration.hpp"
#include "function_ref.hpp"
#include "locate.hpp"
#include "outgoing.hpp"
#include "registrar.hpp"
#include "relay.hpp"
#include "routing.hpp"

namespace sipmsg {

namespace detail {

/// Keys for different uses must differ; one secret gives them all.
inline SipHashKey derive_key(const SipHashKey& secret, char purpose) {
  SipHashKey key{};
  for (char half : {'1', '2'}) {
    const char text[] = {purpose, half};
    store_little(SipHash::of(secret, {text, 2}), key.data() + (half == '2' ? 8 : 0));
  }
  return key;
}

inline TransactionOptions transaction_options(const Settings& settings) {
  TransactionOptions options;
  options.t1_ms = settings.timers.t1_ms;
  options.t4_ms = settings.timers.t4_ms;
  options.max_transactions = settings.max_transactions;
  options.retry_after_s = settings.flood.retry_after_s;
  options.answer_to_source = std::any_of(
      settings.listeners.begin(), settings.listeners.end(), [](const ListenerSettings& listener) {
        return listener.enable && listener.type == Transport::udp && listener.answer_to_source;
      });
  return options;
}

}  // namespace detail

/// Called for a message that no binding of a known user took: `code` is what its sender would be
/// answered, that of [message] offline_code where the user has none. `request.called` is that user,
/// whatever name handlers sent the message to him from. Verdict::next() has it answered so; every
/// other verdict means what it means elsewhere. Not called for what they sent to somebody else, or
/// to several users.
using UndeliveredHandler = std::function<Verdict(const RouteRequest& request, int code)>;

/// What happened to a binding. Lifetime: during the call only.
struct RegistrationEvent {
  enum class Kind : std::uint8_t { added, refreshed, removed };
  Kind kind = Kind::added;
  std::string_view user;
  std::string_view contact;     ///< the URI as the phone wrote it
  std::string_view user_agent;  ///< as the phone calls itself; may be empty
  Flow flow;                    ///< by which the binding is reached
  std::uint32_t expires_s = 0;  ///< 0 where it was removed
};
/// Called when the REGISTER is answered. Of bindings that end by themselves nobody is told.
using RegistrationHandler = std::function<void(const RegistrationEvent&)>;

/// A SIP MESSAGE server without sockets and without clock.
///
/// Feed it what arrives with `receive` and the time with `advance`; what it wants to send goes to
/// the Sink. Users, registrar, sink and log are the caller's and must outlive it.
class Proxy : public TransactionUser, private RelayUser {
 public:
  /// `secret`: 16 octets nobody else knows, fresh for each run; nonces, tags and branches come of
  /// it.
  Proxy(const Settings& settings, const UserDirectory& users, Registrar& registrar, Sink& sink,
        ServerLog& log, const SipHashKey& secret)
      : settings_(std::make_shared<const Settings>(settings)),
        users_(&users),
        registrar_(registrar),
        sink_(sink),
        log_(log),
        random_(detail::derive_key(secret, 'o')),
        layer_(detail::transaction_options(settings), sink, *this, detail::derive_key(secret, 't')),
        answers_(layer_, counters_),
        relays_(layer_, sink, *this, answers_, counters_, log, settings.timers.t1_ms,
                detail::derive_key(secret, 'r')),
        access_(settings.digest, text_of(detail::derive_key(secret, 'd'))),
        t1_ms_(settings.timers.t1_ms) {
    apply_settings();
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
    own_timers_.advance(now_ms, [this](Timer& timer) {
      const OwnMessage& own = own_.at(timer.owner);
      on_own_end(pack_handle(own_.handle_of(timer.owner)), own.refused_with, nullptr);
    });
  }
  /// When `advance` is to be called next; UINT64_MAX where nothing waits.
  std::uint64_t next_deadline() const {
    const auto or_never = [](std::optional<std::uint64_t> deadline_ms) {
      return deadline_ms.value_or(UINT64_MAX);
    };
    return std::min({or_never(layer_.next_deadline()), or_never(relays_.next_deadline()),
                     or_never(timers_.next_deadline()), or_never(own_timers_.next_deadline()),
                     registrar_.next_deadline()});
  }

  HandlerChain& handlers() { return chain_; }
  void set_domains(OwnDomains domains) { domains_ = std::move(domains); }
  /// Other settings and users from now on; bindings and what is on its way stay. Timers, table
  /// sizes and everything of the digest are those of the start. A handler may call this, and the
  /// users before may go as soon as it has returned.
  void reload(const Settings& settings, const UserDirectory& users) {
    settings_ = std::make_shared<const Settings>(settings);
    users_ = &users;
    apply_settings();
  }
  /// Seconds since 1970 when `now_ms` was 0, for Date headers; without it none is written.
  void set_unix_time_at_zero(std::int64_t unix_s) { unix_s_at_zero_ = unix_s; }
  /// The verdict a handler promised with Verdict::later(), and what it has changed since it said
  /// so. Errors: `gone` where it was given before, its deadline is over or the sender has given up;
  /// `bad_argument` for one more `later`.
  Error resume(RouteKey key, const Verdict& verdict, std::uint64_t now_ms,
               const RouteChanges& changes = {});

  /// Whom to ask about messages that nobody took. Each message is kept for that until it is
  /// answered.
  void on_undelivered(UndeliveredHandler handler) {
    relays_.keep_requests(static_cast<bool>(handler));
    undelivered_ = handler ? std::make_shared<UndeliveredHandler>(std::move(handler)) : nullptr;
  }
  void on_registration(RegistrationHandler handler) {
    registration_ = handler ? std::make_shared<RegistrationHandler>(std::move(handler)) : nullptr;
  }

  /// Sends a message of our own to all bindings of the user that `outgoing.to` names, or to the one
  /// whose contact `outgoing.request_uri` is. No handler is asked. `done` is called exactly once,
  /// later: with the recipient's answer, or as its sender would be answered.
  ///
  /// Errors, after which `done` is not called: those of Agent::send for what is wrong in
  /// `outgoing`; `limit_reached`. `next_hop`, `login` and `method` are not looked at.
  Error send(const Outgoing& outgoing, std::uint64_t now_ms, SentHandler done);
  /// Tells everybody who waits for the end of a message of our own that it is `closed`, before it
  /// returns. Nothing may be called afterwards.
  void close();

  /// Whether a message to that name could ever find somebody.
  bool is_known(std::string_view name) const;
  /// Calls `use(const Binding&)` on the user's own bindings; where no user has that name, on those
  /// of all who list it as an alternative. `use` may not change them.
  template <class Use>
  void for_each_binding(std::string_view name, std::uint64_t now_ms, Use use) const {
    const bool is_own = registrar_.count(name, now_ms) > 0 || users_->find(name) != nullptr;
    if (is_own) return registrar_.for_each(name, now_ms, use);
    users_->for_each_alternative(
        name, [&](const UserSettings& user) { registrar_.for_each(user.name, now_ms, use); });
  }

  const ServerCounters& counters() const { return counters_; }
  std::size_t transactions() const { return layer_.size(); }
  /// How many messages are on their way to their recipients.
  std::size_t relays() const { return relays_.size(); }
  /// Octets held by kept messages.
  std::size_t kept_size() const { return layer_.kept_size() + relays_.kept_size(); }
  /// How many messages wait for a handler's verdict.
  std::size_t waiting() const { return waiting_.size(); }

 private:
  /// A MESSAGE while the handlers look at it. Texts are views, names as written.
  struct Asked {
    RelayRequest request;
    std::string_view caller;
    std::string_view caller_name;
    std::string_view called;
    ShortText username;  ///< a copy: a handler may call reload, and end the user's life
    HandlerChain::Position position;
    RouteChanges changes;
    ShortText user;            ///< to whose bindings it went, empty for others; before it was tried
    int undelivered_code = 0;  ///< what nobody who took it answered; 0 before it was tried
  };

  /// One that a handler keeps: what Asked borrows, owned.
  struct Waiting {
    Waiting(const Asked& asked_now, std::uint32_t index)
        : message(*asked_now.request.message), asked(asked_now), timer(index) {
      asked.request.message = &message;
      read_names(asked);
    }

    const Message message;
    Asked asked;
    Timer timer;
  };

  /// A message of our own on its way; or refused, which is told at once but not from inside `send`.
  struct OwnMessage {
    SentHandler done;
    int refused_with = 0;
    Timer timer;
  };

  static std::string_view text_of(const SipHashKey& key) {
    return detail::as_text(key.data(), key.size());
  }
  void set_now(std::uint64_t now_ms) {
    now_ms_ = now_ms;
    answers_.set_now(now_ms);
    relays_.set_now(now_ms);
  }
  void apply_settings() {
    answers_.set_server_name(settings_->user_agent);
    answers_.set_retry_after(settings_->flood.retry_after_s);
    chain_.remove(users_handler_);
    users_handler_ =
        chain_.add(static_cast<int>(settings_->route_priority),
                   [this](const RouteRequest& request) { return route_to_user(request); });
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
  void on_options(ServerTransaction server, const MessageView& request);

  bool is_flood() const {
    return settings_->flood.events != 0 && events_ > settings_->flood.events;
  }
  bool is_flood_victim(const MessageView& message, const Flow& from) const;
  void refuse_method(ServerTransaction server);
  bool refuse_scheme(ServerTransaction server, const UriView& uri);
  bool refuse_domain(ServerTransaction server, int code, const UriView& uri);
  bool refuse_extensions(ServerTransaction server, const MessageView& request, HeaderId id,
                         std::string_view known);
  bool refuse_name(ServerTransaction server, const UserSettings& user, const UriView& address,
                   std::string_view header);
  void challenge(ServerTransaction server, ChallengeKind kind, const Identity& identity,
                 const MessageView& request, const Flow& from);
  void write_allow(Output& out) const;

  bool refuse_route(const MessageView& request, Asked& asked);
  bool refuse_sender(const MessageView& request, const UriView& from, Asked& asked);
  static void read_names(Asked& asked);
  Verdict route_to_user(const RouteRequest& request) const;
  RouteContext context_of(const Asked& asked, const Settings& settings) const;
  void set_keys_of_sender(const RouteRequest& request) const;
  using AskHandlers = detail::FunctionRef<Verdict(const RouteRequest&)>;
  std::optional<Verdict> ask(Asked& asked, AskHandlers ask_handlers);
  void walk(Asked& asked);
  void decide(Asked& asked, const Verdict& verdict);
  void decide_next(const Asked& asked);
  int refusal_of(const Asked& asked) const;
  std::uint64_t patience_of(const Asked& asked) const;
  void keep_waiting(const Asked& asked, RouteKey key);
  void give_up_waiting(std::uint32_t index);
  void refuse(const Asked& asked, int code, std::string_view phrase = {});
  void forward(Asked& asked, const std::vector<std::string>& uris);
  void refuse_undelivered(Asked& asked, int code);
  bool alter(Asked& asked, Message& altered);
  void add_bindings(std::string_view name);
  ShortText add_uri(std::string_view text);
  void add_target(const RelayTarget& target);

  // RelayUser
  inline bool on_undelivered(const RelayRequest& request, int code) override;
  inline void on_own_end(std::uint64_t own, int code, const MessageView* response) override;
  void end_own(Handle handle, const Outcome& outcome);
  void write_own(Output& out, const Outgoing& outgoing, const NameAddr& to, const NameAddr& from);
  void add_binding(std::string_view user, std::string_view contact);

  void write_registration(Output& out, std::string_view user, const MessageView& request,
                          const RegisterOutcome& outcome);
  void tell_registration(std::string_view user, const MessageView& request,
                         const RegisterOutcome& outcome);

  std::shared_ptr<const Settings> settings_;  ///< never null
  const UserDirectory* users_;
  Registrar& registrar_;
  Sink& sink_;
  ServerLog& log_;
  Random random_;
  ServerCounters counters_;
  OwnDomains domains_;
  TransactionLayer layer_;
  OwnAnswers answers_;
  RelaySet relays_;
  AccessControl access_;
  HandlerChain chain_;
  HandlerChain::Id users_handler_ = 0;
  std::uint64_t t1_ms_;
  Timers timers_;
  /// A place for each message that handlers look at, taken in advance because they are given its
  /// key; empty until one of them wants to answer later.
  Slab<std::unique_ptr<Waiting>> waiting_;
  std::shared_ptr<UndeliveredHandler> undelivered_;
  std::shared_ptr<RegistrationHandler> registration_;
  Timers own_timers_;
  Slab<OwnMessage> own_;
  std::uint32_t own_cseq_ = 0;
  std::array<RelayTarget, RelaySet::max_breadth + 1> targets_;
  std::size_t target_count_ = 0;
  std::uint64_t now_ms_ = 0;
  std::uint64_t events_ = 0;
  std::optional<std::int64_t> unix_s_at_zero_;
  LogLimit message_off_log_{1};
  LogLimit domain_log_{1};
  LogLimit waiting_log_{1};
  LogLimit deadline_log_{10};
  LogLimit password_log_{30};
  LogLimit name_log_{30};
  LogLimit registration_log_{100};
};

// Every request.

inline void Proxy::on_request(ServerTransaction server, const MessageView& request,
                              const Flow& from) {
  switch (request.method()) {
    case Method::message:
      if (settings_->message.enable) return on_message(server, request, from);
      if (message_off_log_.admits(now_ms_)) {
        log_.log(Severity::warning,
                 "MESSAGE refused with 501: set [message] enable=yes in ysipchan.conf");
      }
      break;
    case Method::register_:
      if (settings_->registrar.enable) return on_register(server, request, from);
      break;
    case Method::options:
      if (settings_->options_enable) return on_options(server, request);
      break;
    // RFC 3261 9.2: only INVITE can be cancelled, and no INVITE is ever left unanswered here.
    case Method::cancel:
      return answers_.send(server, layer_.find_cancelled(request, from) ? 200 : 481);
    default: break;
  }
  refuse_method(server);
}

/// Yate answers 501 to whatever is not in its Allow list, also to methods it knows.
inline void Proxy::refuse_method(ServerTransaction server) {
  answers_.send(server, 501, {}, [this](Output& out) { write_allow(out); });
}

inline void Proxy::write_allow(Output& out) const {
  std::string_view separator;
  out.raw("Allow: ");
  const auto add = [&](bool enabled, std::string_view method) {
    if (!enabled) return;
    out.raw(separator).raw(method);
    separator = ", ";
  };
  add(settings_->message.enable, "MESSAGE");
  add(settings_->registrar.enable, "REGISTER");
  add(settings_->options_enable, "OPTIONS");
  out.raw("\r\n");
}

/// In a flood REGISTER, OPTIONS and the like over UDP are dropped unanswered, because their clients
/// come back by themselves. MESSAGE never is.
inline bool Proxy::is_flood_victim(const MessageView& message, const Flow& from) const {
  if (!settings_->flood.protection || !is_flood() || from.transport != Transport::udp) return false;
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

/// Not ours to serve, and relaying it would make us an open relay.
inline bool Proxy::refuse_domain(ServerTransaction server, int code, const UriView& uri) {
  if (domains_.contains(uri.host)) return false;
  if (domain_log_.admits(now_ms_)) {
    log_.log(Severity::warning, "a request for the foreign domain " + std::string(uri.host) +
                                    " refused with " + std::to_string(code) +
                                    ": [general] domains in ysipchan.conf lists our own");
  }
  answers_.send(server, code);
  return true;
}

/// RFC 3261 8.2.2.3 (Require) and 16.3 step 5 (Proxy-Require): 420, naming what we do not know.
inline bool Proxy::refuse_extensions(ServerTransaction server, const MessageView& request,
                                     HeaderId id, std::string_view known) {
  const auto is_unknown = [known](std::string_view tag) {
    return !tag.empty() && !equal_ignoring_case(tag, known);
  };
  const auto tags = request.values(id);
  bool unknown = false;
  for (std::string_view tag : tags) unknown = unknown || is_unknown(tag);
  if (!unknown) return false;
  answers_.send(server, 420, {}, [&](Output& out) {
    for (std::string_view tag : tags) {
      if (is_unknown(tag) && is_token(tag)) write_header(out, HeaderId::unsupported, tag);
    }
  });
  return true;
}

inline void Proxy::challenge(ServerTransaction server, ChallengeKind kind, const Identity& identity,
                             const MessageView& request, const Flow& from) {
  if (!identity.refusal.empty() && password_log_.admits(now_ms_)) {
    log_.log(Severity::warning, std::string(identity.refusal) + " in " +
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
inline bool Proxy::refuse_name(ServerTransaction server, const UserSettings& user,
                               const UriView& address, std::string_view header) {
  const ShortText name = ShortText::unescaped(address.user);
  if (may_speak_as(user, address, name.view(), domains_)) return false;
  if (name_log_.admits(now_ms_)) {
    const bool is_foreign = answers_to(user, name.view());
    log_.log(Severity::warning,
             "user " + user.name + " may not use the " + std::string(header) + " address " +
                 std::string(address.text) +
                 (is_foreign ? ": [general] domains in ysipchan.conf does not list its domain"
                             : ": it is neither the user's name nor one of the alternatives"));
  }
  answers_.send(server, 403);
  return true;
}

// MESSAGE: the checks of RFC 3261 16.3, in its order.

inline void Proxy::on_message(ServerTransaction server, const MessageView& request,
                              const Flow& from) {
  const auto uri = request.request_uri();
  if (refuse_scheme(server, *uri)) return;
  const std::uint32_t most = settings_->max_forwards;
  const std::uint32_t hops = std::min(request.max_forwards().value_or(most), most);
  if (hops == 0) return answers_.send(server, 483);

  Asked asked;
  asked.request.server = server;
  asked.request.message = &request;
  asked.request.source = from;
  asked.request.received_ms = now_ms_;
  asked.request.loop_hash = relays_.loop_hash(request);
  asked.request.max_forwards = hops - 1;
  if (relays_.is_loop(request, asked.request.loop_hash)) return answers_.send(server, 482);
  if (refuse_extensions(server, request, HeaderId::proxy_require, {})) return;
  if (refuse_domain(server, 403, *uri)) return;
  if (refuse_route(request, asked)) return;

  const auto sender = request.from();
  if (refuse_sender(request, sender->uri, asked)) return;
  if (asked.request.removed.overflowed()) {
    return answers_.send(server, 400, "Too many Route or credentials headers");
  }
  asked.caller = sender->uri.user;
  asked.caller_name = sender->display_name;
  asked.called = uri->user;
  walk(asked);
}

/// Routes that name us have led here and are taken off (RFC 3261 16.4); any other would make us a
/// relay.
inline bool Proxy::refuse_route(const MessageView& request, Asked& asked) {
  for (std::string_view element : request.values(HeaderId::route)) {
    const auto route = parse_name_addr(element);
    if (!route) {
      answers_.send(asked.request.server, 400, route.error().text());
      return true;
    }
    if (refuse_domain(asked.request.server, 403, route->uri)) return true;
  }
  for (std::size_t field = request.find(HeaderId::route); field != request.header_count();
       field = request.find_next(field)) {
    asked.request.removed.add(field);
  }
  return false;
}

/// Finds out who sent it, and takes note of what the recipient is not to see: our credentials, and
/// a P-Asserted-Identity, which says for certain what nobody has checked (RFC 3325 5).
inline bool Proxy::refuse_sender(const MessageView& request, const UriView& from, Asked& asked) {
  FieldList& removed = asked.request.removed;
  if (!settings_->message.auth_required) {
    access_.find_own(request, ChallengeKind::www, removed);
    access_.find_own(request, ChallengeKind::proxy, removed);
    return false;
  }
  const ServerTransaction server = asked.request.server;
  const Flow& source = asked.request.source;
  const bool by_proxy = settings_->message.auth_code == 407;
  const ChallengeKind kind = by_proxy ? ChallengeKind::proxy : ChallengeKind::www;
  const Identity identity =
      access_.identify(request, kind, *users_, source.remote.ip, now_ms_, removed);
  if (identity.kind != Identity::Kind::known) {
    challenge(server, kind, identity, request, source);
    return true;
  }
  if (refuse_name(server, *identity.user, from, "From")) return true;
  asked.username = ShortText(identity.user->name);
  access_.find_own(request, by_proxy ? ChallengeKind::www : ChallengeKind::proxy, removed);
  for (std::size_t i = 0; i < request.header_count(); ++i) {
    const HeaderField field = request.field(i);
    if (field.id != HeaderId::other) continue;
    if (equal_ignoring_case(field.name, "P-Asserted-Identity")) removed.add(i);
  }
  return false;
}

// MESSAGE: the handlers.

/// The names again, as views of the message that Asked now points to.
inline void Proxy::read_names(Asked& asked) {
  const auto from = asked.request.message->from();
  asked.caller = from->uri.user;
  asked.caller_name = from->display_name;
  asked.called = asked.request.message->request_uri()->user;
}

inline RouteContext Proxy::context_of(const Asked& asked, const Settings& settings) const {
  RouteContext context;
  context.listener = sink_.listener_name(asked.request.source);
  for (const ListenerSettings& listener : settings.listeners) {
    if (listener.name == context.listener) context.role = listener.role;
  }
  context.realm = settings.digest.realm;
  context.to_tag = layer_.to_tag(asked.request.server);
  context.hops = asked.request.max_forwards;
  context.received_ms = asked.request.received_ms;
  context.body_encoding = settings.body_encoding;
  context.initial_headers = settings.initial_headers;
  return context;
}

/// What regfile.conf says of the sender takes part as if a handler before all others had set it.
inline void Proxy::set_keys_of_sender(const RouteRequest& request) const {
  const UserSettings* user =
      users_->find(request.username.empty() ? request.caller : request.username);
  if (user == nullptr) return;
  for (const auto& [name, text] : user->parameters) {
    request.changes->set(name, detail::user_parameter(request, text));
  }
}

/// What they say; nothing where they say so later.
inline std::optional<Verdict> Proxy::ask(Asked& asked, AskHandlers ask_handlers) {
  const ShortText caller = ShortText::unescaped(asked.caller);
  const bool was_sent = !asked.user.view().empty();
  const ShortText called = was_sent ? asked.user : ShortText::unescaped(asked.called);
  const RouteKey key = waiting_.create();
  const std::shared_ptr<const Settings> settings = settings_;  // a handler may call reload
  const RouteRequest request{*asked.request.message,
                             caller.view(),
                             asked.caller_name,
                             called.view(),
                             asked.username.view(),
                             asked.request.source,
                             key,
                             &asked.changes,
                             context_of(asked, *settings)};
  Verdict verdict = ask_handlers(request);
  if (verdict.kind() == Verdict::Kind::later) {
    keep_waiting(asked, key);
    return std::nullopt;
  }
  waiting_.destroy(key);
  return verdict;
}

inline void Proxy::walk(Asked& asked) {
  const auto verdict = ask(asked, [&](const RouteRequest& request) {
    if (asked.position.id == 0) set_keys_of_sender(request);
    return chain_.walk(asked.position, request);
  });
  if (verdict) decide(asked, *verdict);
}

inline void Proxy::decide(Asked& asked, const Verdict& verdict) {
  const int code = verdict.code();
  switch (verdict.kind()) {
    case Verdict::Kind::next: return decide_next(asked);
    case Verdict::Kind::accept: return refuse(asked, code / 100 == 2 ? code : 202);
    case Verdict::Kind::reject: return refuse(asked, code < 300 ? 500 : code, verdict.phrase());
    case Verdict::Kind::forward: return forward(asked, verdict.uris());
    case Verdict::Kind::later: return;
  }
}

/// No handler took it: neither one that routes, nor, where it was tried in vain, one that keeps it.
inline void Proxy::decide_next(const Asked& asked) {
  if (asked.undelivered_code == 0) {
    const int code = refusal_of(asked);
    return refuse(asked, code != 0 ? code : 404);
  }
  // RFC 3261 16.7 step 6, as in RelaySet.
  if (asked.undelivered_code == 503) return refuse(asked, 500, "Recipient Unavailable");
  if (asked.undelivered_code != settings_->message.offline_code) {
    return refuse(asked, asked.undelivered_code);
  }
  answers_.send(asked.request.server, asked.undelivered_code, {}, [&](Output& out) {
    write_allow(out);
    detail::write_answer_headers(out, asked.changes);
  });
}

/// What the parameters that handlers have left ask for: a code from 300 to 699, or 0.
inline int Proxy::refusal_of(const Asked& asked) const {
  if (asked.changes.empty()) return 0;
  RouteChanges changes = asked.changes;
  const RouteRequest request{*asked.request.message, {}, {},      {}, {},
                             asked.request.source,   {}, &changes};
  return refusal_asked_for(request).value_or(0);
}

/// Answers with what handlers want to stand in the answer.
inline void Proxy::refuse(const Asked& asked, int code, std::string_view phrase) {
  answers_.send(asked.request.server, code, phrase,
                [&](Output& out) { detail::write_answer_headers(out, asked.changes); });
}

/// How long the sender may still be kept waiting. What nobody took has used that up, if all were
/// silent; then a part of what is left until the sender's own timer ends is for whoever keeps it.
inline std::uint64_t Proxy::patience_of(const Asked& asked) const {
  const std::uint64_t patience_ms = detail::patience_ms(asked.request.received_ms, now_ms_, t1_ms_);
  return asked.undelivered_code == 0 ? patience_ms : std::max(patience_ms, 3 * t1_ms_);
}

inline void Proxy::keep_waiting(const Asked& asked, RouteKey key) {
  if (waiting_.size() > settings_->message.max_pending) {
    waiting_.destroy(key);
    if (waiting_log_.admits(now_ms_)) {
      log_.log(Severity::warning,
               "messages refused with 503: [message] max_pending in ysipchan.conf limits how many "
               "may wait for handlers");
    }
    return answers_.send(asked.request.server, 503);
  }
  std::unique_ptr<Waiting>& waiting = waiting_.at(key.index);
  waiting = std::make_unique<Waiting>(asked, key.index);
  const std::uint64_t deadline_ms =
      std::min(std::uint64_t{1000} * settings_->message.handler_deadline_s, patience_of(asked));
  timers_.queue(deadline_ms).start(waiting->timer, now_ms_);
}

inline void Proxy::give_up_waiting(std::uint32_t index) {
  const ServerTransaction server = waiting_.at(index)->asked.request.server;
  waiting_.destroy(waiting_.handle_of(index));
  if (deadline_log_.admits(now_ms_)) {
    log_.log(Severity::warning,
             "a handler did not answer in time: its message is refused with 504");
  }
  answers_.send(server, 504);
}

inline Error Proxy::resume(RouteKey key, const Verdict& verdict, std::uint64_t now_ms,
                           const RouteChanges& changes) {
  set_now(now_ms);
  if (verdict.kind() == Verdict::Kind::later) return ErrorCode::bad_argument;
  std::unique_ptr<Waiting>* place = waiting_.get(key);
  if (place == nullptr || *place == nullptr) return ErrorCode::gone;
  // Out of the table first: a handler further down the chain may want to answer later, too.
  const std::unique_ptr<Waiting> waiting = std::move(*place);
  waiting->timer.cancel();
  waiting_.destroy(key);
  Asked& asked = waiting->asked;
  if (patience_of(asked) == 0) {
    answers_.send(asked.request.server, 504);
    return ErrorCode::gone;
  }
  asked.changes.apply(changes);
  if (verdict.kind() == Verdict::Kind::next && asked.undelivered_code == 0) {
    walk(asked);
  } else {
    decide(asked, verdict);
  }
  return {};
}

/// The handler of the users themselves: everybody we know is reached at his bindings.
inline Verdict Proxy::route_to_user(const RouteRequest& request) const {
  const RouteChanges::Change* called = request.changes->find("called");
  return is_known(called == nullptr ? request.called : called->value) ? Verdict::forward({})
                                                                      : Verdict::next();
}

inline bool Proxy::is_known(std::string_view name) const {
  if (name.empty()) return false;
  return settings_->registrar.accept_any_user || settings_->registrar.autocreate ||
         users_->knows(name);
}

// MESSAGE: to the bindings.

/// Without URIs the message goes to the bindings of whom it names. A handler that left a `code` or
/// used up the hops, and let others route, has refused it all the same.
inline void Proxy::forward(Asked& asked, const std::vector<std::string>& uris) {
  if (const int code = detail::forbidden_by(asked.changes)) return refuse(asked, code);
  Message altered;
  if (!alter(asked, altered)) return refuse(asked, 500);
  target_count_ = 0;
  asked.user = {};
  if (uris.empty()) {
    asked.user = ShortText::unescaped(asked.called);
    add_bindings(asked.user.view());
    if (target_count_ == 0 && !is_known(asked.user.view())) return refuse(asked, 404);
  }
  for (std::size_t i = 0; i < uris.size(); ++i) {
    const ShortText user = add_uri(uris[i]);
    asked.user = i == 0 || user.view() == asked.user.view() ? user : ShortText();
  }
  if (target_count_ == 0) return refuse_undelivered(asked, settings_->message.offline_code);
  asked.request.username = asked.username.view();
  asked.request.user = asked.user.view();
  const int code = relays_.start(asked.request, targets_.data(), target_count_);
  if (code == 480) return refuse_undelivered(asked, code);
  if (code != 0) refuse(asked, code);  // a limit of ours, which is no reason to keep the message
}

/// Asks whoever keeps messages, but once only: it may have sent the message somewhere else.
inline void Proxy::refuse_undelivered(Asked& asked, int code) {
  const bool was_asked = asked.undelivered_code != 0;
  asked.undelivered_code = code;
  const std::shared_ptr<UndeliveredHandler> handler = undelivered_;  // it may replace itself
  if (was_asked || !handler || !is_known(asked.user.view())) return decide_next(asked);
  const auto verdict =
      ask(asked, [&](const RouteRequest& request) { return (*handler)(request, code); });
  if (verdict) decide(asked, *verdict);
}

inline bool Proxy::on_undelivered(const RelayRequest& request, int code) {
  const std::shared_ptr<UndeliveredHandler> handler = undelivered_;
  if (!handler) return false;
  Asked asked;
  asked.request = request;
  asked.username = ShortText(request.username);
  asked.user = ShortText(request.user);
  asked.undelivered_code = code;
  read_names(asked);
  const auto verdict =
      ask(asked, [&](const RouteRequest& route) { return (*handler)(route, code); });
  if (verdict && verdict->kind() == Verdict::Kind::next) return false;
  if (verdict) decide(asked, *verdict);
  return true;
}

/// Where handlers have set another body, other headers or another user to call, makes the message
/// anew and has `asked` point to it. False where what they set cannot be sent.
inline bool Proxy::alter(Asked& asked, Message& altered) {
  if (!detail::alters_message(asked.changes)) return true;
  auto text = detail::altered_message(*asked.request.message, asked.request.removed, asked.changes);
  if (text) {
    auto message = Message::from_bytes(std::move(text).value());
    if (message) {
      altered = std::move(message).value();
      asked.request.message = &altered;
      asked.request.removed = {};
      read_names(asked);
      return true;
    }
    text = message.error();
  }
  if (waiting_log_.admits(now_ms_)) {
    log_.log(Severity::warning, std::string("a handler's change cannot be sent: ") +
                                    text.error().text() + ": its message is refused with 500");
  }
  return false;
}

inline void Proxy::add_bindings(std::string_view name) {
  for_each_binding(name, now_ms_, [this](const Binding& binding) {
    add_target({binding.request_uri, binding.path, binding.flow});
  });
}

/// Returns the user whose bindings these are, none for a URI of somebody else.
inline ShortText Proxy::add_uri(std::string_view text) {
  const auto uri = parse_uri(text);
  if (uri && uri->scheme != UriScheme::sip) return {};
  const ShortText user = uri ? ShortText::unescaped(uri->user) : ShortText(text);  // a bare name
  if (!uri || (domains_.contains(uri->host) && is_known(user.view()))) {
    add_bindings(user.view());
    return user;
  }
  // A phone may share our address, and its contact then has our domain and a name of its own.
  static_cast<void>(locate(*uri, nullptr, random_, [&](Error, const std::vector<Flow>& hops) {
    // Headers may not stand in a Request-URI (RFC 3261 19.1.1).
    if (!hops.empty()) add_target({text.substr(0, text.find('?')), {}, hops.front()});
  }));
  return {};
}

/// Each only once (RFC 3261 16.5). There is one place more than may be used, by which RelaySet sees
/// that they are too many.
inline void Proxy::add_target(const RelayTarget& target) {
  if (target_count_ == targets_.size()) return;
  for (std::size_t i = 0; i < target_count_; ++i) {
    if (targets_[i].uri == target.uri && targets_[i].flow == target.flow) return;
  }
  targets_[target_count_++] = target;
}

// Messages of our own.

inline Error Proxy::send(const Outgoing& outgoing, std::uint64_t now_ms, SentHandler done) {
  set_now(now_ms);
  const auto to = detail::parse_party(outgoing.to);
  if (!to) return to.error();
  const auto from = detail::parse_party(outgoing.from);
  if (!from) return from.error();
  if (const Error error = detail::check_headers(outgoing.headers, false)) return error;
  if (!outgoing.call_id.empty() && !detail::is_call_id(outgoing.call_id)) {
    return ErrorCode::bad_call_id;
  }
  if (own_.size() >= settings_->max_transactions) return ErrorCode::limit_reached;
  std::string text(max_message_size, '\0');
  Output out(&text[0], text.size());
  write_own(out, outgoing, *to, *from);
  if (out.error().code == ErrorCode::no_room) return ErrorCode::too_large;
  if (out.error()) return out.error();
  text.resize(out.size());
  const auto message = Message::from_bytes(std::move(text));
  if (!message) return message.error();

  const Handle handle = own_.create();
  OwnMessage& own = own_.at(handle.index);
  own.done = std::move(done);
  RelayRequest request;
  request.own = pack_handle(handle);
  request.message = &message.value();
  request.received_ms = now_ms_;
  request.loop_hash = relays_.loop_hash(*message);
  request.max_forwards = settings_->max_forwards;
  target_count_ = 0;
  const ShortText user = ShortText::unescaped(to->uri.user);
  if (outgoing.next_hop) {
    const bool has_uri = !outgoing.request_uri.empty();
    add_target(
        {has_uri ? std::string_view(outgoing.request_uri) : to->uri.text, {}, *outgoing.next_hop});
  } else if (outgoing.request_uri.empty()) {
    add_bindings(user.view());
  } else {
    add_binding(user.view(), outgoing.request_uri);
  }
  if (target_count_ == 0) {
    own.refused_with = is_known(user.view()) ? settings_->message.offline_code : 404;
  } else {
    own.refused_with = relays_.start(request, targets_.data(), target_count_);
  }
  if (own.refused_with != 0) {
    own.timer.owner = handle.index;
    own_timers_.queue(0).start(own.timer, now_ms_);
  }
  return {};
}

/// RFC 3261 8.1.1, but for Via and Request-URI, which each branch gets its own of.
inline void Proxy::write_own(Output& out, const Outgoing& outgoing, const NameAddr& to,
                             const NameAddr& from) {
  std::array<char, 13> token;
  const auto fresh = [&]() -> std::string_view {
    random_.write_token(token.data(), token.size());
    return {token.data(), token.size()};
  };
  out.raw("MESSAGE ").word(to.uri.text).raw(" SIP/2.0\r\n");
  write_header(out, HeaderId::max_forwards, settings_->max_forwards);
  out.raw("From: ").value(detail::party_text(from)).raw(";tag=").token(fresh()).raw("\r\n");
  out.raw("To: ").value(detail::party_text(to)).raw("\r\n");
  const std::string_view call_id = outgoing.call_id;
  out.raw("Call-ID: ").word(call_id.empty() ? fresh() : call_id).raw("\r\n");
  own_cseq_ = (own_cseq_ + 1) & 0x7fffffff;
  out.raw("CSeq: ").number(own_cseq_).raw(" MESSAGE\r\n");
  for (const auto& header : outgoing.headers) write_header(out, header.first, header.second);
  write_header(out, HeaderId::user_agent, settings_->user_agent);
  write_body(out, outgoing.body.empty() ? std::string_view() : outgoing.content_type,
             outgoing.body);
}

/// The user's one binding with that contact.
inline void Proxy::add_binding(std::string_view user, std::string_view contact) {
  for_each_binding(user, now_ms_, [&](const Binding& binding) {
    if (binding.contact_uri != contact) return;
    add_target({binding.request_uri, binding.path, binding.flow});
  });
}

inline void Proxy::on_own_end(std::uint64_t own, int code, const MessageView* response) {
  Outcome outcome;
  outcome.code = code;
  outcome.reason =
      std::string(response == nullptr ? default_reason_phrase(code) : response->reason_phrase());
  outcome.response = response;
  end_own(unpack_handle(own), outcome);
}

inline void Proxy::end_own(Handle handle, const Outcome& outcome) {
  OwnMessage* message = own_.get(handle);
  if (message == nullptr) return;
  const SentHandler done = std::move(message->done);
  own_.destroy(handle);
  if (done) done(outcome);
}

inline void Proxy::close() {
  Outcome outcome;
  outcome.error = ErrorCode::closed;
  own_.for_each([&](Handle handle, OwnMessage&) { end_own(handle, outcome); });
}

// REGISTER: RFC 3261 10.3.

inline void Proxy::on_register(ServerTransaction server, const MessageView& request,
                               const Flow& from) {
  const auto uri = request.request_uri();
  const auto to = request.to();
  if (refuse_scheme(server, *uri)) return;
  if (refuse_domain(server, 404, *uri)) return;
  if (refuse_extensions(server, request, HeaderId::require, "path")) return;
  // Who that is has to be proved before anything is said of the address.
  const UserSettings* user = nullptr;
  if (settings_->registrar.auth_required) {
    FieldList own;
    const Identity identity =
        access_.identify(request, ChallengeKind::www, *users_, from.remote.ip, now_ms_, own);
    if (identity.kind != Identity::Kind::known) {
      return challenge(server, ChallengeKind::www, identity, request, from);
    }
    user = identity.user;
  }
  if (to->uri.scheme != UriScheme::sip) return answers_.send(server, 404);
  if (refuse_domain(server, 404, to->uri)) return;
  if (user != nullptr && refuse_name(server, *user, to->uri, "To")) return;

  const ShortText to_name = ShortText::unescaped(to->uri.user);
  // A copy, for whoever reads the log or is told may call reload.
  const ShortText own_name(user != nullptr ? user->name : to_name.view());
  const std::string_view name = own_name.view();
  if (!is_known(name)) return answers_.send(server, 404);
  const RegisterOutcome outcome = registrar_.update(name, request, from, now_ms_);
  char buffer[128];
  Output phrase(buffer, sizeof buffer);
  phrase.raw(outcome.reason);
  if (outcome.error.place > 0) {
    phrase.raw(" (octet ").number(static_cast<std::uint64_t>(outcome.error.place)).raw(")");
  }
  answers_.send(server, outcome.status, phrase.written(), [&](Output& out) {
    if (outcome.status == 200) return write_registration(out, name, request, outcome);
    if (outcome.min_expires_s != 0) write_header(out, HeaderId::min_expires, outcome.min_expires_s);
  });
  // Last of all, for whoever reads the log may call us again.
  if (outcome.added > 0 && registration_log_.admits(now_ms_)) {
    log_.log(Severity::info, std::string(name) + " registered from " +
                                 std::string(transport_parameter(from.transport)) + " " +
                                 to_text(from.remote));
  }
  if (registration_ && outcome.status == 200) tell_registration(name, request, outcome);
}

/// One event for each contact of the request.
inline void Proxy::tell_registration(std::string_view user, const MessageView& request,
                                     const RegisterOutcome& outcome) {
  for (std::string_view element : request.values(HeaderId::contact)) {
    const auto contact = parse_name_addr(element);
    if (!contact) continue;
    RegistrationEvent event;
    event.kind = RegistrationEvent::Kind::removed;
    event.user = user;
    event.contact = contact->uri.text;
    event.user_agent = request.header(HeaderId::user_agent);
    registrar_.for_each(event.user, now_ms_, [&](const Binding& binding) {
      if (binding.contact_uri != event.contact) return;
      event.kind =
          outcome.added > 0 ? RegistrationEvent::Kind::added : RegistrationEvent::Kind::refreshed;
      event.flow = binding.flow;
      event.expires_s = static_cast<std::uint32_t>((binding.expires_at_ms - now_ms_) / 1000);
    });
    const std::shared_ptr<RegistrationHandler> handler = registration_;  // it may replace itself
    if (handler) (*handler)(event);
  }
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
  if (settings_->registrar.nat_refresh_s != 0) {
    out.raw("P-NAT-Refresh: ").number(settings_->registrar.nat_refresh_s).raw("\r\n");
  }
}

// OPTIONS: RFC 3261 11.2.

inline void Proxy::on_options(ServerTransaction server, const MessageView& request) {
  const auto uri = request.request_uri();
  if (refuse_scheme(server, *uri)) return;
  if (refuse_domain(server, 404, *uri)) return;
  if (refuse_extensions(server, request, HeaderId::proxy_require, {})) return;
  if (refuse_extensions(server, request, HeaderId::require, "path")) return;
  if (is_flood()) return answers_.send(server, 503);
  answers_.send(server, 200, {}, [this](Output& out) {
    write_allow(out);
    out.raw("Accept: */*\r\nSupported: path\r\n");
  });
}

}  // namespace sipmsg
