// agent: a user agent for messages, client and server in one, without sockets and without clock.
//
// RFC 3261 8 and RFC 3428: `send` makes a MESSAGE and reports exactly once what became of it;
// whatever comes in is handed to one handler with a key to answer it by. Endpoint puts it on a
// loop; tests drive it in virtual time. Left out on purpose: dialogs, for a MESSAGE never makes one
// (RFC 3428 4), and one that names a dialog is delivered like any other; following redirections
// and answering challenges, which are the application's to decide; looking up names.
#pragma once

#include <algorithm>
#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "hash.hpp"
#include "login.hpp"
#include "pool.hpp"
#include "timer.hpp"
#include "transaction.hpp"
#include "writer.hpp"

namespace sipmsg {

/// A request to be sent. Whatever is not set has a sensible default. CR, LF and NUL may stand in
/// the body only.
struct Outgoing {
  /// The recipient: a URI, "sip:bob@192.0.2.7", or one with a display name, "Bob <sip:bob@x>".
  std::string to;
  std::string from;  ///< the sender, likewise; default: sip:anonymous@anonymous.invalid
  std::string body;  ///< any octets
  std::string content_type = "text/plain;charset=utf-8";  ///< of a body that is not empty
  std::string method = "MESSAGE";
  std::string request_uri;  ///< default: the URI of `to`
  /// Default: a fresh one. A request that is sent again, with credentials say, and all REGISTERs of
  /// one agent have theirs in common (RFC 3261 8.1.3.5, 10.2); its From tag follows from it.
  std::string call_id;
  /// Further ones, name and value; none of those above, and no Contact in a MESSAGE (RFC 3428 4).
  std::vector<std::pair<std::string, std::string>> headers;
  /// The account that answers challenges (401, 407); one for all requests of an account, so that
  /// its nonces are used again. Without it a challenge is the final answer.
  std::shared_ptr<Login> login;
  /// Where to send it: a flow to a proxy, or to the recipient. Without one, the Request-URI must
  /// have a numeric host.
  std::optional<Flow> next_hop;
};

/// What became of a request we sent: an error of ours, or the final answer. RFC 3261 8.1.3.1 has
/// `timeout` mean the same as a 408, and `network` the same as a 503.
struct Outcome {
  Error error;         ///< `timeout`, `closed`, or that of the network, where no final answer came
  int code = 0;        ///< 200 to 699; 0 with an error
  std::string reason;  ///< the answer's phrase
  const MessageView* response = nullptr;  ///< during the callback only; null with an error
  bool ok() const { return !error && code < 300; }
};

struct AgentOptions {
  TransactionOptions transactions;
  std::string user_agent = "sipmsg/" SIPMSG_VERSION;
};

/// Legal inside the callbacks: `send`, `reply`, `close`, `on_message`, `advance`. Not legal:
/// destroying the Agent.
class Agent final : public TransactionUser {
 public:
  using SentHandler = std::function<void(const Outcome&)>;
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
  /// RFC 3428 8 asks of the application: to have at most one MESSAGE on its way to each recipient,
  /// and to keep within 1300 octets. A larger one goes over TCP where a connection is open.
  ///
  /// Errors: what parse_name_addr and parse_uri find wrong in `to`, `from` and `request_uri`;
  /// `bad_uri` for a URI that asks for another method or for headers (RFC 3261 19.1.5);
  /// `unsupported_scheme` for sips, which needs TLS, and without `next_hop` for all but sip;
  /// `unsupported_transport`; `bad_address` for a host that is a name; `bad_method`, `bad_token`,
  /// `bad_call_id`, `bad_media_type`; `forbidden_octet` for CR, LF and NUL; `duplicate_header` for
  /// one that is written here; `bad_argument` for INVITE, ACK, and Contact in a MESSAGE;
  /// `too_large`; `limit_reached`; `closed`; and what the sink says.
  Error send(const Outgoing& outgoing, std::uint64_t now_ms, SentHandler done);

  /// Answers a request, with an own phrase or the usual one. An answer 405 or 501 says what is
  /// allowed.
  ///
  /// Errors: `gone` where it was answered before, or its sender has given up; `bad_argument` for
  /// codes that are no final answer, and for 408, which RFC 4320 forbids; `forbidden_octet`; or
  /// what the sink says, and then the sender's retransmission gets the answer.
  Error reply(ServerTransaction server, int code, std::string_view phrase, std::uint64_t now_ms) {
    now_ms_ = now_ms;
    return answer(server, code, phrase, [](Output&) {});
  }
  /// The same from inside a callback, in whose instant it is.
  Error reply(ServerTransaction server, int code, std::string_view phrase = {}) {
    return reply(server, code, phrase, now_ms_);
  }

  /// One message as it arrived; `error` is what MessageView::parse said of it.
  void receive(const MessageView& message, Error error, const Flow& from, std::uint64_t now_ms) {
    now_ms_ = now_ms;
    layer_.receive(message, error, from, now_ms);
  }
  /// A TCP connection is gone: what waits for an answer over it is told `error`.
  void connection_closed(std::uint32_t socket, Error error, std::uint64_t now_ms) {
    now_ms_ = now_ms;
    layer_.connection_closed(socket, error, now_ms);
  }
  void advance(std::uint64_t now_ms);
  /// When `advance` is to be called next; nothing where nothing waits and nothing is remembered.
  std::optional<std::uint64_t> next_deadline() const;

  /// Ends every request that has no answer yet: their callbacks get `closed`. From now on nothing
  /// is sent, and what comes in is dropped.
  void close();

  /// How many requests of ours wait for an answer.
  std::size_t waiting() const { return sent_.size(); }
  /// How many transactions there are, those among them that are only there to absorb what is late.
  std::size_t transactions() const { return layer_.size(); }
  /// Octets held by kept messages.
  std::size_t kept_size() const { return layer_.kept_size(); }

 private:
  /// A request we received, known by what it has in common on all ways.
  struct Seen {
    std::uint64_t hash = 0;
    Timer end;
  };
  /// A request that waits for its answer.
  struct Sent {
    SentHandler done;
    std::unique_ptr<Outgoing> again;    ///< what to send again with credentials; null without login
    std::vector<std::string> answered;  ///< the realms that was done for
  };
  /// A request to be sent, checked, its defaults filled in.
  struct Draft {
    std::string to;    ///< as it stands in the header
    std::string from;  ///< likewise, without tag
    std::string_view request_uri;
    std::string call_id;
    Flow flow;
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
  Result<Draft> prepare(const Outgoing& outgoing);
  void write(Output& out, const Outgoing& outgoing, const Draft& draft, Transport transport,
             std::string_view sent_by, std::string_view branch) const;
  std::string random_token() {
    std::string token(token_size, '?');
    random_.write_token(&token[0], token.size());
    return token;
  }
  inline void on_response(ClientTransaction client, const MessageView& response,
                          const Flow&) override;
  inline void on_failure(ClientTransaction client, Error error) override;
  Result<ClientTransaction> transmit(const Outgoing& outgoing, const Draft& draft, Handle handle);
  Error answer_challenge(Handle handle, const MessageView& response, bool& is_answered);
  void finish(ClientTransaction client, const Outcome& outcome);

  // What we receive.
  inline void on_request(ServerTransaction server, const MessageView& request,
                         const Flow& from) override;
  void serve(ServerTransaction server, const MessageView& request, const Flow& from);
  bool is_merged(const MessageView& request);
  template <class AddHeaders>
  Error answer(ServerTransaction server, int code, std::string_view phrase, AddHeaders add_headers);
  void write_allow(Output& out) const {
    out.raw(on_message_ ? "Allow: MESSAGE, OPTIONS\r\n" : "Allow: OPTIONS\r\n");
  }
  void forget_seen(std::uint32_t index);

  AgentOptions options_;
  Sink& sink_;
  Random random_;
  SipHashKey tag_key_;
  SipHashKey seen_key_;
  std::shared_ptr<RequestHandler> on_message_;
  Slab<Sent> sent_;
  Timers timers_;
  TimerQueue& seen_ends_;
  Slab<Seen> seen_;
  HashIndex seen_index_;
  std::unique_ptr<char[]> scratch_{new char[scratch_size]};  ///< untouched until it is needed
  std::uint32_t cseq_ = 0;
  std::uint64_t now_ms_ = 0;
  TransactionLayer layer_;  ///< the last, so that it goes first
};

// Sending.

namespace detail {

inline Error check_line(std::string_view text) {
  const std::size_t bad = text.find_first_of(std::string_view("\r\n\0", 3));
  if (bad == std::string_view::npos) return {};
  return {ErrorCode::forbidden_octet, static_cast<std::int32_t>(bad)};
}

/// A URI that is to become a header or a Request-URI. What it asks for beyond that is refused and
/// not left out (RFC 3261 19.1.5).
inline Result<UriView> parse_plain_uri(std::string_view text) {
  const auto uri = parse_uri(text);
  if (uri && (!uri->headers.empty() || uri->parameter("method"))) return ErrorCode::bad_uri;
  return uri;
}

/// What a caller gives for To or From. Without brackets all of it is the URI, parameters included,
/// which in a header would belong to the header (RFC 3261 20.10).
inline Result<NameAddr> parse_party(std::string_view text) {
  if (const Error error = check_line(text)) return error;
  NameAddr party;
  if (text.find('<') != std::string_view::npos) {
    const auto name_addr = parse_name_addr(text);
    if (!name_addr) return name_addr.error();
    if (!name_addr->parameters.text().empty()) return ErrorCode::bad_name_addr;
    party = *name_addr;
    text = party.uri.text;
  }
  const auto uri = parse_plain_uri(text);
  if (!uri) return uri.error();
  party.uri = *uri;
  return party;
}

/// Always in quotes, because unquoted only few octets may stand in a name, and no UTF-8.
inline std::string party_text(const NameAddr& party) {
  std::string text;
  if (!party.display_name.empty()) {
    text =
        is_quoted(party.display_name) ? std::string(party.display_name) : quote(party.display_name);
    text += ' ';
  }
  return text.append("<").append(party.uri.text).append(">");
}

/// What a caller may not add: the headers that every request has from here.
constexpr bool is_written_by_agent(HeaderId id) {
  switch (id) {
    case HeaderId::via:
    case HeaderId::max_forwards:
    case HeaderId::from:
    case HeaderId::to:
    case HeaderId::call_id:
    case HeaderId::cseq:
    case HeaderId::user_agent:
    case HeaderId::content_type:
    case HeaderId::content_length: return true;
    default: return false;
  }
}

inline Error check_headers(const Outgoing& outgoing) {
  for (const auto& header : outgoing.headers) {
    if (!is_token(header.first)) return ErrorCode::bad_token;
    if (const Error error = check_line(header.second)) return error;
    const HeaderId id = header_id(header.first);
    if (is_written_by_agent(id)) return ErrorCode::duplicate_header;
    if (id == HeaderId::contact && outgoing.method == "MESSAGE") return ErrorCode::bad_argument;
  }
  return {};
}

/// RFC 3261 8.1.2 and RFC 3263 4, as far as they go without looking up names.
inline Result<Flow> flow_to(const UriView& uri) {
  if (uri.scheme != UriScheme::sip) return ErrorCode::unsupported_scheme;
  const auto transport = parse_transport(uri.parameter("transport").value_or("udp"));
  if (!transport) return ErrorCode::unsupported_transport;
  const auto ip = parse_ip(uri.parameter("maddr").value_or(uri.host));
  if (!ip) return ErrorCode::bad_address;
  Flow flow;
  flow.transport = *transport;
  flow.remote.ip = *ip;
  flow.remote.port = uri.port != 0 ? uri.port : std::uint16_t{5060};
  return flow;
}

}  // namespace detail

/// RFC 3261 8.1.1.
inline Result<Agent::Draft> Agent::prepare(const Outgoing& outgoing) {
  if (!is_token(outgoing.method)) return ErrorCode::bad_method;
  const auto to = detail::parse_party(outgoing.to);
  if (!to) return to.error();
  const auto from =
      detail::parse_party(outgoing.from.empty() ? anonymous : std::string_view(outgoing.from));
  if (!from) return from.error();
  const auto uri = detail::parse_plain_uri(
      outgoing.request_uri.empty() ? to->uri.text : std::string_view(outgoing.request_uri));
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
  if (const Error error = detail::check_headers(outgoing)) return error;
  const auto flow = outgoing.next_hop ? Result<Flow>(*outgoing.next_hop) : detail::flow_to(*uri);
  if (!flow) return flow.error();

  Draft draft;
  draft.to = detail::party_text(*to);
  draft.from = detail::party_text(*from);
  draft.request_uri = uri->text;
  draft.call_id = outgoing.call_id.empty() ? random_token() : outgoing.call_id;
  draft.flow = *flow;
  return draft;
}

inline Error Agent::send(const Outgoing& outgoing, std::uint64_t now_ms, SentHandler done) {
  now_ms_ = now_ms;
  const auto draft = prepare(outgoing);
  if (!draft) return draft.error();
  const Handle handle = sent_.create();
  Sent& sent = *sent_.get(handle);
  sent.done = std::move(done);
  if (outgoing.login) {
    sent.again = std::make_unique<Outgoing>(outgoing);
    sent.again->call_id = draft->call_id;
  }
  const auto client = transmit(outgoing, *draft, handle);
  if (!client) sent_.destroy(handle);
  return client.error();
}

/// Writes a request with a branch and a CSeq of its own, and starts its transaction.
inline Result<ClientTransaction> Agent::transmit(const Outgoing& outgoing, const Draft& draft,
                                                 Handle handle) {
  Flow flow = draft.flow;
  const std::string branch = "z9hG4bK" + random_token();
  cseq_ = (cseq_ + 1) & 0x7fffffff;
  Output out(nullptr, 0);
  while (true) {
    const auto sent_by = sink_.sent_by(flow);
    if (!sent_by) return sent_by.error();
    out = Output(scratch_.get(), scratch_size);
    write(out, outgoing, draft, flow.transport, *sent_by, branch);
    if (out.error().code == ErrorCode::no_room) return ErrorCode::too_large;
    if (out.error()) return out.error();
    // RFC 3261 18.1.1: what is over 1300 octets goes by a transport that fragments well.
    const bool by_stream = flow.transport == Transport::udp && out.size() > datagram_limit &&
                           sink_.has_stream_to(flow.remote);
    if (!by_stream) break;
    flow.transport = Transport::tcp;
    flow.socket = 0;
  }
  return layer_.send(flow, branch, outgoing.method, Slices(out.written()), pack_handle(handle),
                     now_ms_);
}

/// RFC 3261 22.2: the same request once more, with credentials, Call-ID and tag as before and the
/// next CSeq. `is_answered` says whether it is on its way; then the first answer is nobody's.
inline Error Agent::answer_challenge(Handle handle, const MessageView& response,
                                     bool& is_answered) {
  is_answered = false;
  Sent& sent = *sent_.get(handle);
  if (!sent.again || !sent.again->login->take(response, sent.answered, random_token())) return {};
  const auto draft = prepare(*sent.again);
  if (!draft) return draft.error();
  const auto client = transmit(*sent.again, *draft, handle);
  is_answered = client.ok();
  return client.error();
}

inline void Agent::write(Output& out, const Outgoing& outgoing, const Draft& draft,
                         Transport transport, std::string_view sent_by,
                         std::string_view branch) const {
  std::array<char, 16> from_tag;
  write_hex(SipHash::of(tag_key_, draft.call_id), from_tag.data());
  RequestStart start;
  start.method = outgoing.method;
  start.request_uri = draft.request_uri;
  start.transport = transport;
  start.sent_by = sent_by;
  start.branch = branch;
  start.from = draft.from;
  start.from_tag = {from_tag.data(), from_tag.size()};
  start.to = draft.to;
  start.call_id = draft.call_id;
  start.cseq = cseq_;
  begin_request(out, start);
  for (const auto& header : outgoing.headers) write_header(out, header.first, header.second);
  if (outgoing.login) {
    outgoing.login->write(out, outgoing.method, draft.request_uri, outgoing.body);
  }
  write_header(out, HeaderId::user_agent, options_.user_agent);
  write_body(out, outgoing.body.empty() ? std::string_view() : outgoing.content_type,
             outgoing.body);
}

inline void Agent::on_response(ClientTransaction client, const MessageView& response, const Flow&) {
  if (response.status_code() < 200) return;
  Outcome outcome;
  if (response.status_code() == 401 || response.status_code() == 407) {
    const Handle handle = unpack_handle(layer_.user_data(client));
    bool is_answered = false;
    if (sent_.get(handle) != nullptr) {
      outcome.error = answer_challenge(handle, response, is_answered);
    }
    if (is_answered) return;
    if (outcome.error) return finish(client, outcome);
  }
  outcome.code = response.status_code();
  outcome.reason = std::string(response.reason_phrase());
  outcome.response = &response;
  finish(client, outcome);
}

inline void Agent::on_failure(ClientTransaction client, Error error) {
  Outcome outcome;
  outcome.error = error;
  finish(client, outcome);
}

inline void Agent::finish(ClientTransaction client, const Outcome& outcome) {
  const Handle handle = unpack_handle(layer_.user_data(client));
  Sent* sent = sent_.get(handle);
  if (sent == nullptr) return;
  const SentHandler done = std::move(sent->done);
  sent_.destroy(handle);
  if (done) done(outcome);
}

// Receiving: RFC 3261 8.2, in the order of its steps.

inline void Agent::on_request(ServerTransaction server, const MessageView& request,
                              const Flow& from) {
  const auto refuse = [&](int code) {
    static_cast<void>(answer(server, code, {}, [](Output&) {}));
  };
  switch (request.method()) {
    case Method::message: return on_message_ ? serve(server, request, from) : refuse(405);
    case Method::options: return serve(server, request, from);
    // RFC 3261 9.2: only INVITE can be cancelled, and no INVITE is ever left unanswered here.
    case Method::cancel: return refuse(layer_.find_cancelled(request, from) ? 200 : 481);
    default: return refuse(501);
  }
}

inline void Agent::serve(ServerTransaction server, const MessageView& request, const Flow& from) {
  const auto no_headers = [](Output&) {};
  // 8.2.2.1. Which user the URI names is not asked: behind a proxy it is a contact of our own.
  if (request.request_uri()->scheme != UriScheme::sip) {
    return static_cast<void>(answer(server, 416, {}, no_headers));
  }
  if (request.method() == Method::message && is_merged(request)) {
    return static_cast<void>(answer(server, 482, {}, no_headers));
  }
  if (request.has(HeaderId::require)) {  // 8.2.2.3: there is no extension that we know
    return static_cast<void>(answer(server, 420, {}, [&](Output& out) {
      std::string_view separator;
      out.raw(header_name(HeaderId::unsupported)).raw(": ");
      for (std::string_view tag : request.values(HeaderId::require)) {
        if (!is_token(tag)) continue;
        out.raw(separator).raw(tag);
        separator = ", ";
      }
      out.raw("\r\n");
    }));
  }
  if (request.method() == Method::options) {  // 11.2
    return static_cast<void>(answer(server, 200, {}, [this](Output& out) {
      write_allow(out);
      out.raw("Accept: */*\r\n");
    }));
  }
  const std::shared_ptr<RequestHandler> handler = on_message_;  // held: it may replace itself
  (*handler)(request, from, server);
}

/// RFC 3261 8.2.2.2: whether the request came before by another way, as one does that a proxy sends
/// to two bindings which both lead here, and one whose sender tries another transport.
///
/// It is remembered for so long because a copy may be 64*T1 and T4 late at the proxy, which has
/// forgotten it by then and takes as long again to bring it here.
///
/// Beyond From tag, Call-ID and CSeq, all of From and the body must be equal, too: there are phones
/// that make the same three when switched on in the same second. Asked of a MESSAGE alone, for to
/// answer OPTIONS twice does no harm.
inline bool Agent::is_merged(const MessageView& request) {
  if (!request.to()->tag().empty()) return false;
  SipHash hasher(seen_key_);
  for (std::string_view part :
       {request.header(HeaderId::from), request.call_id(), request.header(HeaderId::cseq)}) {
    hasher.update(part);
    hasher.update(std::string_view("\0", 1));
  }
  hasher.update(request.body());
  const std::uint64_t hash = hasher.finish();
  const std::uint32_t found =
      seen_index_.find(hash, [&](std::uint32_t index) { return seen_.at(index).hash == hash; });
  if (found != HashIndex::npos) return true;
  if (seen_.size() >= options_.transactions.max_transactions) return false;
  const std::uint32_t index = seen_.create().index;
  Seen& seen = seen_.at(index);
  seen.hash = hash;
  seen.end.owner = index;
  seen_ends_.start(seen.end, now_ms_);
  seen_index_.insert(hash, index);
  return false;
}

inline void Agent::forget_seen(std::uint32_t index) {
  seen_index_.erase(seen_.at(index).hash, index);
  seen_.destroy(seen_.handle_of(index));
}

template <class AddHeaders>
Error Agent::answer(ServerTransaction server, int code, std::string_view phrase,
                    AddHeaders add_headers) {
  if (code < 200 || code > 699) return ErrorCode::bad_argument;
  Output out(scratch_.get(), scratch_size);
  layer_.begin_response(server, code, phrase, out);
  if (code == 405 || code == 501) write_allow(out);
  add_headers(out);
  write_header(out, HeaderId::server, options_.user_agent);
  write_body(out, {}, {});
  if (out.error()) return out.error();
  return layer_.respond(server, code, Slices(out.written()), now_ms_);
}

// Time, and the end of it.

inline void Agent::advance(std::uint64_t now_ms) {
  now_ms_ = now_ms;
  timers_.advance(now_ms, [this](const Timer& timer) { forget_seen(timer.owner); });
  layer_.advance(now_ms);
}

inline std::optional<std::uint64_t> Agent::next_deadline() const {
  const auto of_layer = layer_.next_deadline();
  const auto of_seen = timers_.next_deadline();
  if (!of_layer || !of_seen) return of_layer ? of_layer : of_seen;
  return std::min(*of_layer, *of_seen);
}

inline void Agent::close() {
  layer_.close();
  seen_.for_each([this](Handle handle, Seen&) { forget_seen(handle.index); });
}

}  // namespace sipmsg
