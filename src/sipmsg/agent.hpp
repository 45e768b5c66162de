// agent: a user agent for messages, client and server in one, without sockets and without clock.
//
// RFC 3261 8 and RFC 3428: `send` makes a MESSAGE, finds where it goes, tries one way after the
// other (RFC 3263 4.3, RFC 3261 18.1.1), answers challenges, and reports exactly once what became
// of it. Whatever comes in is checked (RFC 3261 8.2) and handed once to one handler, with a key to
// answer it by; who asked to be told of its delivery is told (RFC 5438). Endpoint puts it on a
// loop; tests drive it in virtual time. Left out on purpose: dialogs, for a MESSAGE never makes one
// (RFC 3428 4), and one that names a dialog is delivered like any other; following redirections,
// which is the application's to decide; remembering that a server was down.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "content.hpp"
#include "hash.hpp"
#include "locate.hpp"
#include "login.hpp"
#include "outgoing.hpp"
#include "pool.hpp"
#include "timer.hpp"
#include "transaction.hpp"
#include "writer.hpp"

namespace sipmsg {

struct AgentOptions {
  TransactionOptions transactions;
  std::string user_agent = "sipmsg/" SIPMSG_VERSION;
  /// The media types that are taken in a MESSAGE: "text/plain", "text/*". Empty: all. Others are
  /// refused with 415 (RFC 3261 8.2.3).
  std::vector<std::string> accept;
  /// Tells senders who ask for it in a message/cpim that their message was delivered, or refused,
  /// when it is replied to (RFC 5438). Only a sender whose From in the envelope is that of the
  /// request is told, so that nobody has us write to others.
  bool delivery_notices = false;
  /// The account that answers challenges to those.
  std::shared_ptr<Login> login;
  /// Seconds since 1970, for those. Null: they carry the date of the message they are about.
  std::uint64_t (*unix_time_s)() = nullptr;
  /// Looks up hosts that are names; must be there as long as the agent. Null: hosts must be
  /// numeric.
  NameService* names = nullptr;
};

/// Legal inside the callbacks: `send`, `reply`, `close`, `on_message`, `advance`. Not legal:
/// destroying the Agent.
class Agent final : public TransactionUser {
 public:
  /// The request is valid during the call; answer it with `reply`, now or later, but soon: its
  /// sender waits 64*T1 (32 s) at most, and a person waits for less.
  using RequestHandler = std::function<void(const MessageView&, const Flow&, ServerTransaction)>;

  /// `secret`: 16 octets nobody else knows, fresh for each agent. The sink must outlive this.
  Agent(AgentOptions options, Sink& sink, const SipHashKey& secret)
      : Agent(std::move(options), sink, Random(secret)) {}
  /// Closes: whoever waits is told `closed`, from in here. What callbacks use must outlive this, or
  /// `close` be called first.
  ~Agent() { close(); }
  Agent(const Agent&) = delete;
  Agent& operator=(const Agent&) = delete;

  /// Called for each MESSAGE that comes in. Without a handler they are refused with 405. The
  /// handler may replace itself.
  void on_message(RequestHandler handler) {
    on_message_ = handler ? std::make_shared<RequestHandler>(std::move(handler)) : nullptr;
  }

  /// Sends a request. An error now means that nothing was sent and no callback follows; otherwise
  /// `done` is called exactly once, later, never from inside this call.
  ///
  /// Where there are several servers to send it to, the next one is tried when one cannot be
  /// reached, says nothing at all, or answers 503. To whom it comes twice that way, it is the same
  /// by Call-ID, CSeq and From tag. Beyond 1300 octets it goes over TCP, and over UDP only where no
  /// TCP connection can be made (RFC 3261 18.1.1).
  ///
  /// RFC 3428 8 asks of the application to have at most one MESSAGE on its way to each recipient.
  ///
  /// Errors: what parse_name_addr and parse_uri find wrong in `to`, `from`, `request_uri` and
  /// `proxy`; `bad_uri` for a URI that asks for another method or for headers (RFC 3261 19.1.5),
  /// and for a bad `contact_user`; `unsupported_scheme` for sips, which needs TLS, and for all but
  /// sip where nothing else says where to send to; `unsupported_transport`; `bad_address` for a
  /// host that is a name, without `names`; `bad_method`, `bad_token`, `bad_call_id`,
  /// `bad_media_type`; `forbidden_octet` for CR, LF and NUL; `duplicate_header` for one that is
  /// written here; `bad_argument` for INVITE, ACK, and Contact in a MESSAGE; `too_large`;
  /// `limit_reached`; `closed`; and what the sink says. Where a name has to be looked up, the last
  /// ones come with the callback, as does what the look-up says: `unknown_host`, mostly.
  Error send(Outgoing outgoing, std::uint64_t now_ms, SentHandler done);

  /// Answers a request, with an own phrase or the usual one, and with further headers. An answer
  /// 405 or 501 says which methods are allowed, 415 which types are accepted.
  ///
  /// Errors: `gone` where it was answered before, or its sender has given up; `bad_argument` for
  /// codes that are no final answer, and for 408, which RFC 4320 forbids; `forbidden_octet`,
  /// `bad_token`; `duplicate_header` for a header that is written here; or what the sink says, and
  /// then the sender's retransmission gets the answer.
  Error reply(ServerTransaction server, int code, std::string_view phrase, const Headers& headers,
              std::uint64_t now_ms);
  Error reply(ServerTransaction server, int code, std::string_view phrase, std::uint64_t now_ms) {
    return reply(server, code, phrase, Headers(), now_ms);
  }
  /// The same from inside a callback, in whose instant it is.
  Error reply(ServerTransaction server, int code, std::string_view phrase = {}) {
    return reply(server, code, phrase, Headers(), now_ms_);
  }

  /// Has a NAT, and over TCP the peer, remember the way to us: CR LF CR LF over TCP (RFC 5626
  /// 3.5.1), an empty datagram over UDP, which no server takes for a message that is cut short.
  /// Error: what the sink says.
  Error send_keepalive(const Flow& flow) {
    return sink_.send(flow, Slices(flow.transport == Transport::udp ? "" : "\r\n\r\n"));
  }

  /// A fresh random token of 64 bits, for Call-IDs and the like.
  std::string random_token() {
    std::string token(token_size, '?');
    random_.write_token(&token[0], token.size());
    return token;
  }
  /// A fresh random number.
  std::uint64_t random_number() { return random_.next(); }

  /// One message as it arrived; `error` is what MessageView::parse said of it.
  void receive(const MessageView& message, Error error, const Flow& from, std::uint64_t now_ms) {
    now_ms_ = now_ms;
    layer_.receive(message, error, from, now_ms);
  }
  /// A TCP connection is gone: what waits for an answer over it is told `error`, or sent elsewhere.
  void connection_closed(std::uint32_t socket, Error error, std::uint64_t now_ms) {
    now_ms_ = now_ms;
    layer_.connection_closed(socket, error, now_ms);
  }
  /// A TCP connection could not be made: what has to go over UDP then, does.
  void connection_failed(std::uint32_t socket, Error error, std::uint64_t now_ms) {
    never_connected_ = true;
    connection_closed(socket, error, now_ms);
    never_connected_ = false;
  }
  /// Datagrams do not reach that peer: what waits for its answer is told `error`, or sent elsewhere
  /// (RFC 3261 18.4).
  void unreachable(const SocketAddress& peer, Error error, std::uint64_t now_ms);
  /// Does what is due, look-ups that have been answered included.
  void advance(std::uint64_t now_ms);
  /// When `advance` is to be called next; nothing where nothing waits and nothing is remembered.
  /// The answer to a look-up makes it sooner.
  std::optional<std::uint64_t> next_deadline() const;

  /// Ends every request that has no answer yet: their callbacks get `closed`. From now on nothing
  /// is sent, and what comes in is dropped.
  void close();
  bool is_closed() const { return is_closed_; }
  /// The instant of the last call that told the time; inside a callback, that of the callback.
  std::uint64_t now_ms() const { return now_ms_; }

  /// How many requests of ours wait for an answer.
  std::size_t waiting() const { return sent_.size(); }
  /// How many deadlines are remembered, some of them of requests that have ended.
  std::size_t kept_deadlines() const { return deadlines_.size(); }
  /// How many transactions there are, those among them that are only there to absorb what is late.
  std::size_t transactions() const { return layer_.size(); }
  /// Octets held by kept messages.
  std::size_t kept_size() const { return layer_.kept_size(); }

 private:
  /// Who asked to be told what becomes of a message.
  struct Notice {
    std::string envelope;  ///< the headers of the message/cpim, and those of what is enclosed
    std::string sender;    ///< a URI
    std::string recipient;
    Flow flow;
  };
  /// A MESSAGE we received, known by what it has in common on all ways, and its answer.
  struct Seen {
    std::uint64_t hash = 0;
    Timer end;
    int code = 0;  ///< 0: not answered yet
    std::string phrase;
    Headers headers;
    std::unique_ptr<Notice> notice;
  };
  /// A request that waits for its answer.
  struct Sent {
    SentHandler done;
    Outgoing request;  ///< its defaults filled in, To and From as they stand in the header
    std::uint32_t cseq = 0;
    std::vector<std::string> answered;  ///< the realms whose challenges were answered
    std::vector<Flow> hops;             ///< the ways to try
    std::size_t hop = 0;                ///< the one that is being tried
    ClientTransaction client;
    Error error;  ///< of the look-up
    bool is_located = false;
    bool is_by_size = false;     ///< it goes over TCP only because it is large
    bool has_no_stream = false;  ///< that cannot be done with this hop

    /// The next server begins anew: that it does not know the nonce of the last one says nothing of
    /// the password.
    void leave_hop() {
      ++hop;
      has_no_stream = false;
      answered.clear();
    }
  };
  struct Deadline {
    std::uint64_t at_ms;
    Handle sent;
  };
  static constexpr std::size_t token_size = 13;  // 64 bits of chance (RFC 3261 19.3)
  static constexpr std::size_t datagram_limit = 1300;
  static constexpr std::size_t scratch_size = max_message_size;
  static constexpr std::string_view anonymous = "Anonymous <sip:anonymous@anonymous.invalid>";

  Agent(AgentOptions options, Sink& sink, Random keys)
      : options_(std::move(options)),
        sink_(sink),
        random_(detail::next_key(keys)),
        tag_key_(detail::next_key(keys)),
        seen_key_(detail::next_key(keys)),
        seen_ends_(timers_.queue(
            2 * (std::uint64_t{64} * options_.transactions.t1_ms + options_.transactions.t4_ms))),
        layer_(options_.transactions, sink, *this, detail::next_key(keys)) {}

  // What we send.
  Error complete(Outgoing& outgoing);
  Error find_next_hops(Handle handle);
  Error try_hops(Handle handle);
  bool try_elsewhere(Handle handle);
  Error transmit(Handle handle);
  Result<std::string> authorize(const Outgoing& request);
  Result<std::string_view> write(const Sent& sent, Flow& flow, std::string_view branch,
                                 std::string_view credentials);
  void write_contact(Output& out, const Sent& sent, Transport transport,
                     std::string_view sent_by) const;
  Error answer_challenge(Handle handle, const MessageView& response, bool& is_answered);
  std::uint32_t next_cseq() { return cseq_ = (cseq_ + 1) & 0x7fffffff; }
  inline void on_response(ClientTransaction client, const MessageView& response,
                          const Flow& from) override;
  inline void on_failure(ClientTransaction client, Error error) override;
  void finish(Handle handle, const Outcome& outcome);
  void finish(Handle handle, Error error) {
    Outcome outcome;
    outcome.error = error;
    finish(handle, outcome);
  }
  void add_deadline(std::uint64_t at_ms, Handle handle);
  void drop_stale_deadlines();
  void end_what_is_due();
  void send_what_is_located();

  // What we receive.
  inline void on_request(ServerTransaction server, const MessageView& request,
                         const Flow& from) override;
  void serve(ServerTransaction server, const MessageView& request, const Flow& from);
  std::uint64_t seen_hash(const MessageView& request) const;
  bool is_merged(ServerTransaction server, const MessageView& request, const Flow& from);
  bool accepts(const MediaType& media) const;
  int refuse_content(const MessageView& request, Headers& headers) const;
  std::string accepted_types() const;
  void answer(ServerTransaction server, int code, const Headers& headers = {}) {
    static_cast<void>(respond(server, code, {}, headers));
  }
  Error respond(ServerTransaction server, int code, std::string_view phrase,
                const Headers& headers);
  void note_answer(Handle handle, int code, std::string_view phrase, const Headers& headers);
  std::unique_ptr<Notice> make_notice(const MessageView& request, const Flow& from) const;
  void send_notice(const Notice& notice, int code);
  std::string_view allowed_methods() const { return on_message_ ? "MESSAGE, OPTIONS" : "OPTIONS"; }
  void forget_seen(std::uint32_t index);

  AgentOptions options_;
  Sink& sink_;
  Random random_;
  SipHashKey tag_key_;
  SipHashKey seen_key_;
  std::shared_ptr<RequestHandler> on_message_;
  Slab<Sent> sent_;
  std::vector<Handle> located_;      ///< whose look-up has ended
  std::vector<Deadline> deadlines_;  ///< a heap, the soonest in front
  /// Looked at by look-ups that end when this is gone.
  std::shared_ptr<bool> is_alive_ = std::make_shared<bool>(true);
  Timers timers_;
  TimerQueue& seen_ends_;
  Slab<Seen> seen_;
  HashIndex seen_index_;
  std::unique_ptr<char[]> scratch_{new char[scratch_size]};  ///< untouched until it is needed
  std::uint32_t cseq_ = 0;
  std::uint64_t now_ms_ = 0;
  bool is_closed_ = false;
  bool is_locating_ = false;      ///< what is found now is found from inside `send`
  bool never_connected_ = false;  ///< the connection that is being reported was never there
  TransactionLayer layer_;        ///< the last, so that it goes first
};

// Sending.

namespace detail {

inline bool has_header(const Headers& headers, std::string_view name) {
  for (const auto& header : headers) {
    const HeaderId id = header_id(header.first);
    if (id == HeaderId::other ? equal_ignoring_case(header.first, name) : id == header_id(name)) {
      return true;
    }
  }
  return false;
}

/// RFC 3428 4: a MESSAGE has no Contact.
inline Error check_contact_user(const Outgoing& outgoing) {
  if (outgoing.contact_user.empty()) return {};
  if (outgoing.method == "MESSAGE") return ErrorCode::bad_argument;
  if (has_header(outgoing.headers, "Contact")) return ErrorCode::duplicate_header;
  if (const Error error = check_line(outgoing.contact_user)) return error;
  const std::string text = "sip:" + outgoing.contact_user + "@host.invalid";
  const auto uri = parse_uri(text);
  if (!uri) return uri.error();
  return uri->user == outgoing.contact_user ? Error() : Error(ErrorCode::bad_uri);
}

}  // namespace detail

/// Checks a request and fills in its defaults (RFC 3261 8.1.1).
inline Error Agent::complete(Outgoing& outgoing) {
  if (!is_token(outgoing.method)) return ErrorCode::bad_method;
  const auto to = detail::parse_party(outgoing.to);
  if (!to) return to.error();
  const auto from =
      detail::parse_party(outgoing.from.empty() ? anonymous : std::string_view(outgoing.from));
  if (!from) return from.error();
  if (outgoing.request_uri.empty()) outgoing.request_uri = to->uri.text;
  const auto uri = detail::parse_plain_uri(outgoing.request_uri);
  if (!uri) return uri.error();
  if (uri->scheme == UriScheme::sips) return ErrorCode::unsupported_scheme;
  if (!outgoing.call_id.empty() && !detail::is_call_id(outgoing.call_id)) {
    return ErrorCode::bad_call_id;
  }
  if (!outgoing.body.empty()) {  // RFC 3261 20.15: a body has a Content-Type
    if (const Error error = detail::check_line(outgoing.content_type)) return error;
    const auto type = parse_media_type(outgoing.content_type);
    if (!type) return type.error();
  }
  if (const Error error = detail::check_headers(outgoing.headers, outgoing.method != "MESSAGE")) {
    return error;
  }
  if (const Error error = detail::check_contact_user(outgoing)) return error;
  std::string to_text = detail::party_text(*to);  // before what it is made of goes
  std::string from_text = detail::party_text(*from);
  outgoing.to = std::move(to_text);
  outgoing.from = std::move(from_text);
  if (outgoing.call_id.empty()) outgoing.call_id = random_token();
  return {};
}

inline Error Agent::send(Outgoing outgoing, std::uint64_t now_ms, SentHandler done) {
  now_ms_ = now_ms;
  if (const Error error = complete(outgoing)) return error;
  if (is_closed_) return ErrorCode::closed;
  if (sent_.size() >= options_.transactions.max_transactions) return ErrorCode::limit_reached;
  const Handle handle = sent_.create();
  Sent& sent = *sent_.get(handle);
  sent.request = std::move(outgoing);
  sent.cseq = next_cseq();
  Error error = find_next_hops(handle);
  if (!error && sent.is_located) error = try_hops(handle);
  if (error) {
    sent_.destroy(handle);
    return error;
  }
  sent.done = std::move(done);
  if (sent.request.deadline_ms != 0) add_deadline(now_ms + sent.request.deadline_ms, handle);
  return {};
}

/// RFC 3261 8.1.2. A numeric host is found at once; a name later, and then `advance` goes on.
inline Error Agent::find_next_hops(Handle handle) {
  Sent& sent = *sent_.get(handle);
  if (sent.request.next_hop) {
    sent.hops = {*sent.request.next_hop};
    sent.is_located = true;
    return {};
  }
  const auto uri =
      parse_uri(sent.request.proxy.empty() ? sent.request.request_uri : sent.request.proxy);
  if (!uri) return uri.error();
  is_locating_ = true;
  const Error error = locate(*uri, options_.names, random_,
                             [this, alive = std::weak_ptr<bool>(is_alive_), handle](
                                 Error failure, std::vector<Flow> hops) {
                               if (alive.expired()) return;
                               Sent* found = sent_.get(handle);
                               if (found == nullptr) return;  // its deadline has passed
                               found->is_located = true;
                               found->error = failure;
                               found->hops = std::move(hops);
                               if (!is_locating_) located_.push_back(handle);
                             });
  is_locating_ = false;
  return error;
}

/// Sends to the first next hop, from the one whose turn it is, that takes it.
inline Error Agent::try_hops(Handle handle) {
  Sent& sent = *sent_.get(handle);
  Error error = sent.error;
  for (; sent.hop < sent.hops.size(); sent.leave_hop()) {
    error = transmit(handle);
    if (!error) return {};
  }
  return error;
}

/// The next hop has failed. RFC 3263 4.3: the same request goes to the next one, with a branch of
/// its own and otherwise equal, so that who gets it twice knows it again. RFC 3261 18.1.1: what
/// goes over TCP only for its size goes to the same one over UDP, where there was no connection;
/// otherwise it may have arrived. False where there is no other way.
inline bool Agent::try_elsewhere(Handle handle) {
  Sent& sent = *sent_.get(handle);
  sent.has_no_stream = sent.is_by_size && never_connected_;
  if (!sent.has_no_stream) sent.leave_hop();
  return sent.hop < sent.hops.size() && !try_hops(handle);
}

/// Writes a request with a branch of its own, and starts its transaction.
inline Error Agent::transmit(Handle handle) {
  Sent& sent = *sent_.get(handle);
  const std::string branch = "z9hG4bK" + random_token();
  const auto start = [&](const Flow& flow, std::string_view octets) -> Error {
    const auto client = layer_.send(flow, branch, sent.request.method, Slices(octets),
                                    pack_handle(handle), now_ms_);
    if (client) sent.client = *client;
    return client.error();
  };
  const auto credentials = authorize(sent.request);
  if (!credentials) return credentials.error();
  Flow flow = sent.hops[sent.hop];
  auto octets = write(sent, flow, branch, *credentials);
  // A way that is given with its socket is not left for one that may not be there.
  const bool may_switch = sent.hops[sent.hop].socket == 0 || sink_.has_stream_to(flow.remote);
  sent.is_by_size = octets && octets->size() > datagram_limit && may_switch &&
                    flow.transport == Transport::udp && !sent.has_no_stream;
  if (sent.is_by_size) {
    Flow stream;
    stream.transport = Transport::tcp;
    stream.remote = flow.remote;
    octets = write(sent, stream, branch, *credentials);
    if (octets && !start(stream, *octets)) return {};
    sent.is_by_size = false;
    sent.has_no_stream = true;
    octets = write(sent, flow, branch, *credentials);
  }
  return octets ? start(flow, *octets) : octets.error();
}

/// Authorization and Proxy-Authorization, as lines; perhaps none. Once for each time it is sent: a
/// request may be written for UDP and again for TCP, and RFC 2617 3.2.2 counts those that are sent.
inline Result<std::string> Agent::authorize(const Outgoing& request) {
  if (!request.login) return std::string();
  Output out(scratch_.get(), scratch_size);
  request.login->write(out, request.method, request.request_uri, request.body);
  if (out.error().code == ErrorCode::no_room) return ErrorCode::too_large;
  if (out.error()) return out.error();
  return std::string(out.written());
}

inline Result<std::string_view> Agent::write(const Sent& sent, Flow& flow, std::string_view branch,
                                             std::string_view credentials) {
  const auto sent_by = sink_.sent_by(flow);
  if (!sent_by) return sent_by.error();
  const Outgoing& request = sent.request;
  std::array<char, 16> from_tag;
  write_hex(SipHash::of(tag_key_, request.call_id), from_tag.data());
  RequestStart start;
  start.method = request.method;
  start.request_uri = request.request_uri;
  start.transport = flow.transport;
  start.sent_by = *sent_by;
  start.branch = branch;
  start.from = request.from;
  start.from_tag = {from_tag.data(), from_tag.size()};
  start.to = request.to;
  start.call_id = request.call_id;
  start.cseq = sent.cseq;
  Output out(scratch_.get(), scratch_size);
  begin_request(out, start);
  if (!request.contact_user.empty()) write_contact(out, sent, flow.transport, *sent_by);
  for (const auto& header : request.headers) write_header(out, header.first, header.second);
  out.raw(credentials);
  write_header(out, HeaderId::user_agent, options_.user_agent);
  write_body(out, request.body.empty() ? std::string_view() : request.content_type, request.body);
  if (out.error().code == ErrorCode::no_room) return ErrorCode::too_large;
  if (out.error()) return out.error();
  return out.written();
}

/// Where we are reached the way this request goes. For TCP that says so, or the answer would be to
/// send datagrams (RFC 3261 8.1.1.8).
inline void Agent::write_contact(Output& out, const Sent& sent, Transport transport,
                                 std::string_view sent_by) const {
  out.raw("Contact: <sip:").word(sent.request.contact_user).raw("@").word(sent_by);
  out.raw(transport == Transport::tcp ? ";transport=tcp>\r\n" : ">\r\n");
}

/// RFC 3261 22.2: the same request once more, with credentials, Call-ID and tag as before and the
/// next CSeq. `is_answered` says whether it is on its way; then the first answer is nobody's.
inline Error Agent::answer_challenge(Handle handle, const MessageView& response,
                                     bool& is_answered) {
  Sent& sent = *sent_.get(handle);
  const auto& login = sent.request.login;
  if (!login || !login->take(response, sent.answered, random_token())) return {};
  sent.cseq = next_cseq();
  const Error error = transmit(handle);
  is_answered = !error;
  return error;
}

inline void Agent::on_response(ClientTransaction client, const MessageView& response,
                               const Flow& from) {
  const int code = response.status_code();
  const Handle handle = unpack_handle(layer_.user_data(client));
  const Sent* sent = sent_.get(handle);
  if (code < 200 || sent == nullptr) return;
  if (code == 401 || code == 407) {
    bool is_answered = false;
    if (const Error error = answer_challenge(handle, response, is_answered)) {
      return finish(handle, error);
    }
    if (is_answered) return;
  }
  if (const auto& login = sent->request.login) login->take_next_nonce(response, random_token());
  if (code == 503 && try_elsewhere(handle)) return;
  Outcome outcome;
  outcome.code = code;
  outcome.reason = std::string(response.reason_phrase());
  outcome.response = &response;
  outcome.flow = from;
  finish(handle, outcome);
}

inline void Agent::on_failure(ClientTransaction client, Error error) {
  const Handle handle = unpack_handle(layer_.user_data(client));
  if (sent_.get(handle) == nullptr) return;
  // RFC 3263 4.3: a server that has answered 100 is there, and has passed the message on, perhaps:
  // from the next one its recipient would get it twice.
  const bool has_server = error.code == ErrorCode::timeout && layer_.has_response(client);
  if (is_closed_ || has_server || !try_elsewhere(handle)) finish(handle, error);
}

inline void Agent::unreachable(const SocketAddress& peer, Error error, std::uint64_t now_ms) {
  now_ms_ = now_ms;
  std::vector<Handle> concerned;  // first, for what callbacks send now is not
  sent_.for_each([&](Handle handle, const Sent& sent) {
    if (!sent.client || sent.is_by_size) return;
    const Flow& hop = sent.hops[sent.hop];
    if (hop.transport == Transport::udp && hop.remote == peer) concerned.push_back(handle);
  });
  for (const Handle handle : concerned) {
    const Sent* sent = sent_.get(handle);
    if (sent == nullptr) continue;
    layer_.forget(sent->client);
    if (!try_elsewhere(handle)) finish(handle, error);
  }
}

inline void Agent::finish(Handle handle, const Outcome& outcome) {
  Sent* sent = sent_.get(handle);
  if (sent == nullptr) return;
  const SentHandler done = std::move(sent->done);
  sent_.destroy(handle);
  drop_stale_deadlines();
  if (done) done(outcome);
}

inline void Agent::send_what_is_located() {
  for (const Handle handle : std::exchange(located_, {})) {
    if (sent_.get(handle) == nullptr) continue;
    if (const Error error = try_hops(handle)) finish(handle, error);
  }
}

// Deadlines may be of any length, so that queues by duration do not suit them.

inline void Agent::add_deadline(std::uint64_t at_ms, Handle handle) {
  const auto is_later = [](const Deadline& a, const Deadline& b) { return a.at_ms > b.at_ms; };
  // Of what has ended only the soonest are taken out at once; the rest must not pile up.
  if (deadlines_.size() > 64 && deadlines_.size() > 2 * sent_.size()) {
    const auto is_over = [this](const Deadline& entry) { return sent_.get(entry.sent) == nullptr; };
    deadlines_.erase(std::remove_if(deadlines_.begin(), deadlines_.end(), is_over),
                     deadlines_.end());
    std::make_heap(deadlines_.begin(), deadlines_.end(), is_later);
  }
  deadlines_.push_back({at_ms, handle});
  std::push_heap(deadlines_.begin(), deadlines_.end(), is_later);
}

inline void Agent::drop_stale_deadlines() {
  const auto is_later = [](const Deadline& a, const Deadline& b) { return a.at_ms > b.at_ms; };
  while (!deadlines_.empty() && sent_.get(deadlines_.front().sent) == nullptr) {
    std::pop_heap(deadlines_.begin(), deadlines_.end(), is_later);
    deadlines_.pop_back();
  }
}

inline void Agent::end_what_is_due() {
  while (!deadlines_.empty() && deadlines_.front().at_ms <= now_ms_) {
    const Handle handle = deadlines_.front().sent;
    if (const Sent* sent = sent_.get(handle)) layer_.forget(sent->client);
    finish(handle, ErrorCode::timeout);  // takes it out of the heap, too
  }
}

// Receiving: RFC 3261 8.2, in the order of its steps.

inline void Agent::on_request(ServerTransaction server, const MessageView& request,
                              const Flow& from) {
  switch (request.method()) {
    case Method::message: return on_message_ ? serve(server, request, from) : answer(server, 405);
    case Method::options: return serve(server, request, from);
    // RFC 3261 9.2: only INVITE can be cancelled, and no INVITE is ever left unanswered here.
    case Method::cancel: return answer(server, layer_.find_cancelled(request, from) ? 200 : 481);
    default: return answer(server, 501);
  }
}

inline void Agent::serve(ServerTransaction server, const MessageView& request, const Flow& from) {
  const bool is_message = request.method() == Method::message;
  // 8.2.2.1. Which user the URI names is not asked: behind a proxy it is a contact of our own.
  if (request.request_uri()->scheme != UriScheme::sip) return answer(server, 416);
  if (is_message && is_merged(server, request, from)) return;
  if (request.has(HeaderId::require)) {  // 8.2.2.3: there is no extension that we know
    std::string tags;
    for (std::string_view tag : request.values(HeaderId::require)) {
      if (is_token(tag)) tags.append(tags.empty() ? "" : ", ").append(tag);
    }
    return answer(server, 420, {{"Unsupported", std::move(tags)}});
  }
  if (!is_message) {  // 11.2
    return answer(server, 200,
                  {{"Allow", std::string(allowed_methods())},
                   {"Accept", accepted_types()},
                   {"Accept-Encoding", "identity"},
                   {"Accept-Language", "*"},
                   {"Supported", ""}});  // 20.37: no extensions
  }
  Headers refusal;
  if (const int code = refuse_content(request, refusal)) return answer(server, code, refusal);
  const std::shared_ptr<RequestHandler> handler = on_message_;  // held: it may replace itself
  (*handler)(request, from, server);
}

/// Beyond From tag, Call-ID and CSeq, all of From and the body must be equal, too: there are phones
/// that make the same three when switched on in the same second.
inline std::uint64_t Agent::seen_hash(const MessageView& request) const {
  SipHash hasher(seen_key_);
  for (std::string_view part :
       {request.header(HeaderId::from), request.call_id(), request.header(HeaderId::cseq)}) {
    hasher.update(part);
    hasher.update(std::string_view("\0", 1));
  }
  hasher.update(request.body());
  return hasher.finish();
}

/// Whether the request came before by another way (RFC 3261 8.2.2.2), as one does that a proxy
/// sends to two bindings which both lead here, and one whose sender tries another server or
/// transport. It is not handed over again, and gets the answer the first one got; the sender must
/// learn what became of the message, whichever way is the one that works. While there is no answer
/// yet, it gets 482, as the RFC has it.
///
/// It is remembered for so long because a copy may be 64*T1 and T4 late at the proxy, which has
/// forgotten it by then and takes as long again to bring it here. Asked of a MESSAGE alone, for to
/// answer OPTIONS twice does no harm.
inline bool Agent::is_merged(ServerTransaction server, const MessageView& request,
                             const Flow& from) {
  if (!request.to()->tag().empty()) return false;
  const std::uint64_t hash = seen_hash(request);
  const std::uint32_t found =
      seen_index_.find(hash, [&](std::uint32_t index) { return seen_.at(index).hash == hash; });
  if (found != HashIndex::npos) {
    const Seen& first = seen_.at(found);
    const int code = first.code == 0 ? 482 : first.code;
    static_cast<void>(respond(server, code, first.phrase, first.headers));
    return true;
  }
  if (seen_.size() >= options_.transactions.max_transactions) return false;
  const Handle handle = seen_.create();
  Seen& seen = *seen_.get(handle);
  seen.hash = hash;
  seen.end.owner = handle.index;
  seen.notice = make_notice(request, from);
  seen_ends_.start(seen.end, now_ms_);
  seen_index_.insert(hash, handle.index);
  layer_.set_user_data(server, pack_handle(handle));
  return false;
}

inline void Agent::forget_seen(std::uint32_t index) {
  seen_index_.erase(seen_.at(index).hash, index);
  seen_.destroy(seen_.handle_of(index));
}

/// RFC 3261 8.2.3: the code to refuse the body with, and what would be taken; or 0. A body that
/// may be passed over is no reason, and neither is none.
inline int Agent::refuse_content(const MessageView& request, Headers& headers) const {
  if (request.body().empty()) return 0;
  const std::string_view disposition = request.header(HeaderId::content_disposition);
  const std::size_t parameters = std::min(disposition.find(';'), disposition.size());
  if (parameters < disposition.size()) {
    const auto handling = Parameters(disposition.substr(parameters + 1)).find("handling");
    if (handling && equal_ignoring_case(*handling, "optional")) return 0;
  }
  for (std::string_view encoding : request.values(HeaderId::content_encoding)) {
    if (equal_ignoring_case(encoding, "identity")) continue;
    headers = {{"Accept-Encoding", "identity"}};
    return 415;
  }
  if (options_.accept.empty()) return 0;
  // RFC 2045 5.2 has what has no type be text.
  const std::string_view type = request.header(HeaderId::content_type);
  const auto media = parse_media_type(type.empty() ? std::string_view("text/plain") : type);
  return media && accepts(*media) ? 0 : 415;
}

inline bool Agent::accepts(const MediaType& media) const {
  for (const std::string& accepted : options_.accept) {
    const auto pattern = parse_media_type(accepted);
    if (!pattern) continue;
    if (pattern->type != "*" && !equal_ignoring_case(pattern->type, media.type)) continue;
    if (pattern->subtype == "*" || equal_ignoring_case(pattern->subtype, media.subtype))
      return true;
  }
  return false;
}

inline std::string Agent::accepted_types() const {
  std::string types;
  for (const std::string& accepted : options_.accept) {
    types.append(types.empty() ? "" : ", ").append(accepted);
  }
  return types.empty() ? "*/*" : types;
}

// Answering.

inline Error Agent::reply(ServerTransaction server, int code, std::string_view phrase,
                          const Headers& headers, std::uint64_t now_ms) {
  now_ms_ = now_ms;
  if (const Error error = detail::check_headers(headers, code >= 300)) return error;
  if (detail::has_header(headers, "Server")) return ErrorCode::duplicate_header;
  return respond(server, code, phrase, headers);
}

inline Error Agent::respond(ServerTransaction server, int code, std::string_view phrase,
                            const Headers& headers) {
  if (code < 200 || code > 699) return ErrorCode::bad_argument;
  Output out(scratch_.get(), scratch_size);
  layer_.begin_response(server, code, phrase, out);
  if ((code == 405 || code == 501) && !detail::has_header(headers, "Allow")) {
    write_header(out, HeaderId::allow, allowed_methods());
  }
  if (code == 415 && !detail::has_header(headers, "Accept") &&
      !detail::has_header(headers, "Accept-Encoding")) {
    write_header(out, HeaderId::accept, accepted_types());
  }
  for (const auto& header : headers) write_header(out, header.first, header.second);
  write_header(out, HeaderId::server, options_.user_agent);
  write_body(out, {}, {});
  if (out.error()) return out.error();
  const Handle seen = unpack_handle(layer_.user_data(server));  // before the transaction goes
  const Error error = layer_.respond(server, code, Slices(out.written()), now_ms_);
  const bool is_answered = error.code != ErrorCode::gone && error.code != ErrorCode::bad_argument;
  if (is_answered) note_answer(seen, code, phrase, headers);
  return error;
}

/// Keeps the answer for those who bring the same message by another way.
inline void Agent::note_answer(Handle handle, int code, std::string_view phrase,
                               const Headers& headers) {
  Seen* seen = seen_.get(handle);
  if (seen == nullptr || seen->code != 0) return;
  seen->code = code;
  seen->phrase = phrase;
  seen->headers = headers;
  if (const std::unique_ptr<Notice> notice = std::move(seen->notice)) send_notice(*notice, code);
}

// Telling senders that their message was delivered (RFC 5438).

namespace detail {

/// Whether who is named in an envelope is who sent the request. There he may stand as im:bob@x or
/// pres:bob@x, which are the names of RFC 3860 and RFC 3859 for one who is sip:bob@x here.
inline bool is_same_user(std::string_view enveloped, const UriView& sender) {
  std::string text(enveloped);
  const std::size_t colon = std::min(text.find(':'), text.size());
  const std::string scheme = to_lower(enveloped.substr(0, colon));
  if (scheme == "im" || scheme == "pres") text.replace(0, colon, "sip");
  const auto uri = parse_uri(text);
  return uri && address_of_record(*uri) == address_of_record(sender);
}

}  // namespace detail

/// What is needed to tell the sender later; null where that is not asked for, or not to be done.
inline std::unique_ptr<Agent::Notice> Agent::make_notice(const MessageView& request,
                                                         const Flow& from) const {
  if (!options_.delivery_notices) return nullptr;
  const auto type = request.content_type();
  if (!type || !type->is("message", "cpim")) return nullptr;
  const auto content = read_content(request);
  if (!content || !content->cpim) return nullptr;
  const CpimMessage& cpim = *content->cpim;
  const bool is_asked = cpim.request.positive_delivery || cpim.request.negative_delivery;
  // RFC 5438 8.3: no notification of a notification, or two clients would go on for ever.
  if (!is_asked || content->kind == ContentKind::notification) return nullptr;
  if (cpim.message_id.empty() || cpim.to.empty()) return nullptr;
  const UriView sender = request.from()->uri;
  if (!detail::is_same_user(cpim.from.uri, sender)) return nullptr;
  auto notice = std::make_unique<Notice>();
  notice->envelope = request.body().substr(0, detail::offset_in(request.body(), cpim.content));
  notice->sender = sender.text;
  notice->recipient = request.to()->uri.text;
  notice->flow = from;
  return notice;
}

/// A MESSAGE of its own, back the way the other one came. What becomes of it is nobody's concern.
inline void Agent::send_notice(const Notice& notice, int code) {
  const auto received = parse_cpim(notice.envelope);
  if (!received) return;
  const bool is_delivered = code < 300;
  const NotificationRequest& asked = received->request;
  if (!(is_delivered ? asked.positive_delivery : asked.negative_delivery)) return;
  std::int64_t now_s = parse_date_time(received->date_time).value();
  if (options_.unix_time_s != nullptr) now_s = static_cast<std::int64_t>(options_.unix_time_s());
  std::string body(std::min<std::size_t>(2048 + 8 * notice.envelope.size(), max_message_size),
                   '\0');
  Output out(&body[0], body.size());
  write_notification_for(out, *received, NotificationType::delivery,
                         is_delivered ? NotificationStatus::delivered : NotificationStatus::failed,
                         random_token(), now_s);
  if (out.error()) return;
  body.resize(out.size());
  Outgoing outgoing;
  outgoing.to = notice.sender;
  outgoing.from = notice.recipient;
  outgoing.body = std::move(body);
  outgoing.content_type = cpim_media_type;
  outgoing.login = options_.login;
  outgoing.next_hop = notice.flow;
  static_cast<void>(send(std::move(outgoing), now_ms_, nullptr));
}

// Time, and the end of it.

inline void Agent::advance(std::uint64_t now_ms) {
  now_ms_ = now_ms;
  send_what_is_located();
  timers_.advance(now_ms, [this](const Timer& timer) { forget_seen(timer.owner); });
  layer_.advance(now_ms);
  end_what_is_due();
}

inline std::optional<std::uint64_t> Agent::next_deadline() const {
  if (!located_.empty()) return now_ms_;
  std::optional<std::uint64_t> next = layer_.next_deadline();
  const auto consider = [&next](std::uint64_t at_ms) {
    if (!next || at_ms < *next) next = at_ms;
  };
  if (const auto of_seen = timers_.next_deadline()) consider(*of_seen);
  if (!deadlines_.empty()) consider(deadlines_.front().at_ms);
  return next;
}

inline void Agent::close() {
  if (std::exchange(is_closed_, true)) return;
  layer_.close();
  // Those left wait for a look-up.
  sent_.for_each([this](Handle handle, Sent&) { finish(handle, ErrorCode::closed); });
  located_.clear();
  deadlines_.clear();
  seen_.for_each([this](Handle handle, Seen&) { forget_seen(handle.index); });
}

}  // namespace sipmsg
