// registration: a client's side of REGISTER: one binding, kept alive for as long as it is wanted.
//
// RFC 3261 10.2 for a client: register, refresh in time, obey 423, unregister at the end. What
// fails for the moment is tried again, later each time and not by all clients at once; what the
// registrar refuses for good is not. A way to us that broke, a TCP connection or a NAT's memory,
// is noticed and made anew (RFC 5626 3.5, 4.5). Time comes in as an argument; Endpoint arms the
// timer, tests drive it in virtual time.
//
// Left out on purpose: fetching or removing others' bindings; several bindings for one contact
// (RFC 5626 reg-id); waiting for the pong to a ping, which few registrars send over TCP and none
// over UDP: there a restart that no keep-alive fell into shows at the next refresh.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "agent.hpp"

namespace sipmsg {

struct RegistrationOptions {
  std::string address_of_record;  ///< "sip:101@example.org"; what the contact's user is taken from
  /// The registrar's URI, "sip:example.org". Default: the host of the address-of-record, its port
  /// and its transport parameter, too.
  std::string registrar;
  std::string proxy;              ///< as Outgoing::proxy
  std::shared_ptr<Login> login;   ///< null: a challenge is a refusal
  std::uint32_t expires_s = 600;  ///< what is asked for; the registrar may grant less, or want more
  /// Between keep-alives while registered, so that a NAT remembers the way to us; 0: none. An
  /// answer's P-NAT-Refresh shortens it. RFC 5626 4.4.1 and 4.4.2 want less than 30 s over UDP.
  std::uint32_t keepalive_s = 25;
};

/// How a registration stands.
struct RegistrationStatus {
  enum class State : std::uint8_t {
    registering,   ///< asked, for the first time or anew after the way to us broke
    registered,    ///< granted; told again after each refresh
    retrying,      ///< it did not work for now; the next try comes in `retry_in_ms`
    refused,       ///< for good (403, 404, a wrong password): no further try until `start`
    unregistered,  ///< stopped
  };
  State state = State::unregistered;
  Error error;                    ///< of the last try, where there was no answer
  int code = 0;                   ///< the last answer; 0 without one
  std::string reason;             ///< its phrase
  std::uint32_t expires_s = 0;    ///< granted, with `registered`
  std::uint64_t retry_in_ms = 0;  ///< with `retrying`
};

/// Keeps one binding alive through an Agent. Make it with std::make_shared: what is under way when
/// it goes ends without it. Anything may be done inside the handler, letting go of this included.
class RegistrationKeeper : public std::enable_shared_from_this<RegistrationKeeper> {
 public:
  using Handler = std::function<void(const RegistrationStatus&)>;

  /// The agent must outlive this, or `close` be called first. The handler is told of each change,
  /// and of each refresh.
  RegistrationKeeper(Agent& agent, RegistrationOptions options, Handler handler)
      : agent_(agent),
        options_(std::move(options)),
        handler_(std::make_shared<Handler>(std::move(handler))) {}

  /// Registers, and stays registered until `stop`. Also begins anew after a refusal. Error now, of
  /// Agent::send or `bad_argument` for an address-of-record without user: nothing is sent and the
  /// handler is not called.
  Error start(std::uint64_t now_ms);

  /// Unregisters, and calls `done` once, later: when the registrar has answered, after
  /// `stop_timeout_ms` at most, or from inside `close`. A second call does not hasten the first;
  /// both are told.
  void stop(std::uint64_t now_ms, std::function<void()> done);

  /// Ends at once, without telling the handler. A registrar that has granted the registration is
  /// sent word, which the agent sees to while it is there; nobody waits for that. Whoever waits for
  /// `stop` is told from in here. Nothing is called any more.
  void close(std::uint64_t now_ms);

  /// Does what is due.
  void advance(std::uint64_t now_ms);
  /// When `advance` is to be called next.
  std::optional<std::uint64_t> next_deadline() const;
  /// A TCP connection is gone: where it is the one we are reached over, another is made.
  void connection_closed(std::uint32_t socket, Error error, std::uint64_t now_ms);

  /// Datagrams do not reach that peer: where it is the one that knows us, it is asked again.
  void unreachable(const SocketAddress& peer, Error error, std::uint64_t now_ms);

  const RegistrationStatus& status() const { return status_; }
  const RegistrationOptions& options() const { return options_; }

  /// How long `stop` waits for the registrar.
  static constexpr std::uint64_t stop_timeout_ms = 5000;
  /// Waiting after a failure: this long at first, twice as long each time, up to the longest. Of
  /// each a random half is left out, so that a server that comes back is not met by all at once.
  static constexpr std::uint64_t first_retry_ms = 1000;
  static constexpr std::uint64_t longest_retry_ms = 300000;
  /// What a registrar may ask for with Retry-After and Min-Expires; more is taken for this.
  static constexpr std::uint32_t longest_wish_s = 86400;

 private:
  using State = RegistrationStatus::State;
  enum class Phase : std::uint8_t { idle, active, stopping, stopped };

  Error complete();
  Error send(std::uint32_t expires_s, std::uint64_t now_ms, std::optional<Flow> way = {});
  void try_now(std::uint64_t now_ms);
  void on_outcome(const Outcome& outcome);
  void on_granted(const Outcome& outcome);
  void fail(const Outcome& outcome, std::uint64_t at_least_ms);
  void finish_stop();
  void tell();
  std::uint64_t back_off();
  std::uint32_t granted_s(const MessageView& response) const;
  void start_keepalive(std::uint64_t now_ms);
  void lose_way(Error error, std::uint64_t now_ms);

  Agent& agent_;
  RegistrationOptions options_;
  std::shared_ptr<Handler> handler_;
  std::string user_;  ///< of the address-of-record, and of our contact
  std::string call_id_;
  RegistrationStatus status_;
  Phase phase_ = Phase::idle;
  bool is_waiting_ = false;  ///< a REGISTER is under way
  bool is_unregistering_ = false;
  bool has_raised_ = false;    ///< what is asked for; a registrar may want that once in a row
  bool may_be_bound_ = false;  ///< so that there is something to take back
  std::uint32_t try_number_ = 0;
  std::uint64_t now_ms_ = 0;
  std::uint32_t failures_ = 0;     ///< in succession
  std::uint32_t expires_s_ = 0;    ///< what is asked for: what a 423 wanted, mostly
  std::uint32_t keepalive_s_ = 0;  ///< 0: none
  Flow flow_;                      ///< the way to us; its socket is 0 where there is none
  std::optional<std::uint64_t> try_at_ms_;
  std::optional<std::uint64_t> keepalive_at_ms_;
  std::optional<std::uint64_t> stop_at_ms_;
  std::vector<std::function<void()>> stop_done_;
};

namespace detail {

/// The number a header value begins with, at most `maximum`: of Retry-After, which may have a
/// comment and parameters behind it.
inline std::optional<std::uint32_t> leading_seconds(std::string_view value, std::uint32_t maximum) {
  const std::size_t digits = skip_class(value, char_digit);
  const auto seconds = MessageView::delta_seconds(value.substr(0, digits));
  if (!seconds) return std::nullopt;
  return std::min(*seconds, maximum);
}

/// Whether a registrar that answers so will not change its mind. The others speak of the moment: of
/// load (480, 486, 500, 503), of time (408, 423, 504), of too many requests (429, 491).
constexpr bool is_refusal_for_good(int code) {
  switch (code) {
    case 408:
    case 423:
    case 429:
    case 480:
    case 486:
    case 491:
    case 500:
    case 502:
    case 503:
    case 504: return false;
    default: return code >= 300;
  }
}

/// The registrar of an address-of-record (RFC 3261 10.2: a Request-URI without user).
inline std::string registrar_of(const UriView& uri) {
  std::string text("sip:");
  const bool is_ipv6 = is_ipv6_text(uri.host);
  text.append(is_ipv6 ? "[" : "").append(uri.host).append(is_ipv6 ? "]" : "");
  if (uri.port != 0) {
    text.push_back(':');
    append_number(text, uri.port);
  }
  if (const auto transport = uri.parameter("transport")) {
    text.append(";transport=").append(*transport);
  }
  return text;
}

}  // namespace detail

// ---- asking ------------------------------------------------------------------------------------

/// Fills in what follows from the options.
inline Error RegistrationKeeper::complete() {
  const auto uri = parse_uri(options_.address_of_record);
  if (!uri) return uri.error();
  if (uri->scheme != UriScheme::sip) return ErrorCode::unsupported_scheme;
  if (!uri->has_user) return ErrorCode::bad_argument;
  user_ = uri->user;
  if (options_.registrar.empty()) options_.registrar = detail::registrar_of(*uri);
  if (call_id_.empty()) call_id_ = agent_.random_token();
  expires_s_ = std::max<std::uint32_t>(options_.expires_s, 1);
  return {};
}

inline Error RegistrationKeeper::start(std::uint64_t now_ms) {
  if (phase_ == Phase::active && status_.state != State::refused) return {};
  if (phase_ == Phase::stopping || is_waiting_) return ErrorCode::bad_argument;
  if (const Error error = complete()) return error;
  failures_ = 0;
  if (const Error error = send(expires_s_, now_ms)) return error;
  phase_ = Phase::active;
  status_ = RegistrationStatus();
  status_.state = State::registering;
  return {};
}

/// One REGISTER. All have one Call-ID, and the agent's CSeq rises (RFC 3261 10.2).
inline Error RegistrationKeeper::send(std::uint32_t expires_s, std::uint64_t now_ms,
                                      std::optional<Flow> way) {
  now_ms_ = now_ms;
  Outgoing request;
  request.method = "REGISTER";
  request.to = request.from = options_.address_of_record;
  request.request_uri = options_.registrar;
  request.proxy = options_.proxy;
  request.next_hop = way;
  request.login = options_.login;
  request.call_id = call_id_;
  request.contact_user = user_;
  std::string seconds;
  detail::append_number(seconds, expires_s);
  request.headers = {{"Expires", std::move(seconds)}};
  const std::weak_ptr<RegistrationKeeper> weak = weak_from_this();
  const std::uint32_t number = ++try_number_;
  const Error error =
      agent_.send(std::move(request), now_ms, [weak, number](const Outcome& outcome) {
        const auto self = weak.lock();
        if (self && number == self->try_number_) self->on_outcome(outcome);
      });
  if (error) return error;
  is_waiting_ = true;
  if (expires_s != 0) may_be_bound_ = true;
  return {};
}

inline void RegistrationKeeper::try_now(std::uint64_t now_ms) {
  try_at_ms_.reset();
  keepalive_at_ms_.reset();
  const Error error = send(expires_s_, now_ms);
  if (!error) return;
  Outcome outcome;
  outcome.error = error;
  fail(outcome, 0);
}

// ---- what came of it ---------------------------------------------------------------------------

inline void RegistrationKeeper::on_outcome(const Outcome& outcome) {
  is_waiting_ = false;
  now_ms_ = agent_.now_ms();
  if (phase_ == Phase::stopped || agent_.is_closed()) return;
  status_.error = outcome.error;
  status_.code = outcome.code;
  status_.reason = outcome.reason;
  if (phase_ == Phase::stopping) {
    // RFC 3261 10.2: not before the one that was under way has its answer.
    if (!std::exchange(is_unregistering_, true) && !send(0, now_ms_)) return;
    return finish_stop();
  }
  if (outcome.ok()) return on_granted(outcome);
  if (outcome.code == 423) {  // RFC 3261 10.2.8
    const auto minimum =
        outcome.response->delta_seconds(outcome.response->header(HeaderId::min_expires));
    const std::uint32_t wanted = std::min(minimum.value_or(0), longest_wish_s);
    if (wanted > expires_s_ && !std::exchange(has_raised_, true)) {
      expires_s_ = wanted;
      return try_now(now_ms_);
    }
  }
  if (outcome.code != 0 && detail::is_refusal_for_good(outcome.code)) {
    may_be_bound_ = false;
    status_.state = State::refused;
    return tell();
  }
  std::uint64_t at_least_ms = 0;
  if (outcome.response != nullptr) {
    const std::string_view wish = outcome.response->header(HeaderId::retry_after);
    at_least_ms = std::uint64_t{1000} * detail::leading_seconds(wish, longest_wish_s).value_or(0);
  }
  fail(outcome, at_least_ms);
}

inline void RegistrationKeeper::on_granted(const Outcome& outcome) {
  const std::uint32_t seconds = granted_s(*outcome.response);
  if (seconds == 0) return fail(outcome, 0);  // granted in words only
  failures_ = 0;
  has_raised_ = false;
  flow_ = outcome.flow;
  status_.state = State::registered;
  status_.expires_s = seconds;
  status_.retry_in_ms = 0;
  // At half-life, so that there is as much time again for it to fail and be tried again.
  try_at_ms_ =
      now_ms_ + std::max<std::uint64_t>(std::uint64_t{500} * status_.expires_s, first_retry_ms);
  keepalive_s_ = options_.keepalive_s;
  const auto wish = outcome.response->header("P-NAT-Refresh");
  const auto wish_s = detail::leading_seconds(wish.value_or(std::string_view()), longest_wish_s);
  if (wish_s && *wish_s != 0) keepalive_s_ = std::min(keepalive_s_, *wish_s);
  start_keepalive(now_ms_);
  tell();
}

/// What the registrar granted for our contact: its expires parameter, else the Expires header
/// (RFC 3261 10.2.4), else what was asked for. Ours is known by user and address: that of our Via,
/// or the one the registrar saw us at. One that stands alone is ours however it was rewritten.
inline std::uint32_t RegistrationKeeper::granted_s(const MessageView& response) const {
  const auto via = response.top_via();
  std::size_t contacts = 0;
  std::optional<std::uint32_t> of_any;
  std::optional<std::uint32_t> of_ours;
  for (std::string_view value : response.values(HeaderId::contact)) {
    const auto contact = parse_name_addr(value);
    if (!contact) continue;
    ++contacts;
    of_any = MessageView::delta_seconds(contact->parameters.find("expires").value_or(""));
    const UriView& uri = contact->uri;
    const bool is_sent_by = via && uri.host == via->host && uri.port == via->port;
    const auto rport = via ? parse_digits(via->rport, 65535) : std::nullopt;
    const bool is_source = via && uri.host == via->received && rport && uri.port == *rport;
    if (uri.user == user_ && (is_sent_by || is_source)) of_ours = of_any;
  }
  if (!of_ours && contacts == 1) of_ours = of_any;
  const std::uint32_t granted = of_ours.value_or(response.expires().value_or(expires_s_));
  return std::min(granted, std::max(expires_s_, longest_wish_s));
}

/// It did not work this time.
inline void RegistrationKeeper::fail(const Outcome& outcome, std::uint64_t at_least_ms) {
  flow_ = Flow();
  has_raised_ = false;
  keepalive_at_ms_.reset();
  status_.state = State::retrying;
  status_.error = outcome.error;
  status_.code = outcome.code;
  status_.reason = outcome.reason;
  status_.expires_s = 0;
  status_.retry_in_ms = std::max(back_off(), at_least_ms);
  try_at_ms_ = now_ms_ + status_.retry_in_ms;
  tell();
}

inline std::uint64_t RegistrationKeeper::back_off() {
  const std::uint64_t longest =
      std::min(first_retry_ms << std::min(failures_, 16U), longest_retry_ms);
  ++failures_;
  return longest / 2 + agent_.random_number() % (longest / 2 + 1);
}

/// The last thing that is done: the handler may let go of this.
inline void RegistrationKeeper::tell() {
  const std::shared_ptr<Handler> handler = handler_;
  const RegistrationStatus status = status_;
  if (*handler) (*handler)(status);
}

// ---- the way to us -----------------------------------------------------------------------------

inline void RegistrationKeeper::start_keepalive(std::uint64_t now_ms) {
  keepalive_at_ms_.reset();
  if (keepalive_s_ == 0) return;
  // RFC 5626 4.4.1: not in step with others, 80 to 100 of 100.
  const std::uint64_t longest = std::uint64_t{1000} * keepalive_s_;
  keepalive_at_ms_ = now_ms + longest - agent_.random_number() % (longest / 5 + 1);
}

inline void RegistrationKeeper::connection_closed(std::uint32_t socket, Error error,
                                                  std::uint64_t now_ms) {
  if (flow_.transport == Transport::tcp && flow_.socket == socket) lose_way(error, now_ms);
}

inline void RegistrationKeeper::unreachable(const SocketAddress& peer, Error error,
                                            std::uint64_t now_ms) {
  if (flow_.transport == Transport::udp && flow_.remote == peer) lose_way(error, now_ms);
}

inline void RegistrationKeeper::lose_way(Error error, std::uint64_t now_ms) {
  if (phase_ != Phase::active || status_.state != State::registered) return;
  if (is_waiting_) return;  // the REGISTER under way will say by itself what became of it
  now_ms_ = now_ms;
  Outcome outcome;
  outcome.error = error;
  fail(outcome, 0);
}

// ---- the end -----------------------------------------------------------------------------------

inline void RegistrationKeeper::stop(std::uint64_t now_ms, std::function<void()> done) {
  now_ms_ = now_ms;
  stop_done_.push_back(std::move(done));
  if (phase_ == Phase::stopping) return;
  phase_ = Phase::stopping;
  try_at_ms_.reset();
  keepalive_at_ms_.reset();
  is_unregistering_ = false;
  stop_at_ms_ = now_ms + stop_timeout_ms;
  if (is_waiting_) return;
  is_unregistering_ = true;
  // Later in any case, never from in here.
  if (!may_be_bound_ || send(0, now_ms)) stop_at_ms_ = now_ms;
}

inline void RegistrationKeeper::finish_stop() {
  phase_ = Phase::stopped;
  may_be_bound_ = false;
  is_waiting_ = false;
  ++try_number_;  // what is still under way is nobody's any more
  stop_at_ms_.reset();
  flow_ = Flow();
  status_.state = State::unregistered;
  const std::shared_ptr<RegistrationKeeper> self = weak_from_this().lock();
  const auto waiting = std::exchange(stop_done_, {});
  tell();
  for (const auto& done : waiting) {
    if (done) done();
  }
}

inline void RegistrationKeeper::close(std::uint64_t now_ms) {
  const bool is_active = std::exchange(phase_, Phase::stopped) == Phase::active;
  // RFC 3261 10.2: not while another one is under way. By the way the last answer came, as names
  // cannot be looked up any more where the agent closes, too.
  if (is_active && status_.state == State::registered && !is_waiting_) {
    static_cast<void>(send(0, now_ms, flow_));
  }
  is_waiting_ = false;
  ++try_number_;
  try_at_ms_.reset();
  keepalive_at_ms_.reset();
  stop_at_ms_.reset();
  for (const auto& done : std::exchange(stop_done_, {})) {
    if (done) done();
  }
}

// ---- time --------------------------------------------------------------------------------------

inline void RegistrationKeeper::advance(std::uint64_t now_ms) {
  now_ms_ = now_ms;
  if (stop_at_ms_ && *stop_at_ms_ <= now_ms) return finish_stop();
  if (try_at_ms_ && *try_at_ms_ <= now_ms) return try_now(now_ms);
  if (!keepalive_at_ms_ || *keepalive_at_ms_ > now_ms) return;
  if (const Error error = agent_.send_keepalive(flow_)) {
    Outcome outcome;
    outcome.error = error;
    return fail(outcome, 0);
  }
  start_keepalive(now_ms);
}

inline std::optional<std::uint64_t> RegistrationKeeper::next_deadline() const {
  std::optional<std::uint64_t> next;
  for (const auto& deadline : {try_at_ms_, keepalive_at_ms_, stop_at_ms_}) {
    if (deadline && (!next || *deadline < *next)) next = deadline;
  }
  return next;
}

}  // namespace sipmsg
