// transaction: one request and its answers, sent again until they arrive, told to the user once.
//
// UDP loses, doubles and delays messages. The transaction layer (RFC 3261 17) hides that: a client
// transaction repeats its request until it is answered, a server transaction keeps its answer and
// gives it again to everyone who repeats the question, so that above this layer each request comes
// once and gets one final answer. Each transaction is a small state machine, and each machine
// stands below as a table of states and events with one function to a state, to be read beside
// figures 6, 7 and 8 of the RFC.
//
// RFC 3261 17.1.2 (client), 17.2.1 and 17.2.2 (server), 17.2.3 (matching), 8.2.6 and 8.2.7
// (answers with and without state), 18.2.2 and RFC 3581 (where answers go), RFC 4320 (no answer is
// better than a late one). Left out on purpose: the INVITE client and answers 2xx to INVITE, for
// this stack places and takes no calls; a client that repeats over another transport; a 100 that
// nobody asked for: some clients take it for the answer, and who repeats at T2 anyhow gains
// nothing.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "hash.hpp"
#include "pool.hpp"
#include "timer.hpp"
#include "writer.hpp"

namespace sipmsg {

/// Where everything that is to be sent goes out. Implemented by transport.hpp over libuv, by tests
/// in memory. None of its functions may call back into the layer that calls them.
class Sink {
 public:
  /// Chooses the socket where `flow.socket` is 0, writes it into `flow`, and returns what our Via
  /// names as sent-by for it: "192.0.2.1:5060", "[::1]:5060". Error where there is no way there.
  virtual Result<std::string_view> sent_by(Flow& flow) = 0;
  /// Takes the message over, copying what it cannot send at once. The slices are the caller's and
  /// may point into the buffer of a message that is being received. Error where it cannot be sent.
  virtual Error send(const Flow& flow, const Slices& message) = 0;
  /// Whether a TCP connection to that address is open, so that a message too large for UDP can take
  /// it (RFC 3261 18.1.1).
  virtual bool has_stream_to(const SocketAddress&) const { return false; }
  /// The name of the listener through which messages of that flow come; empty where it has none.
  virtual std::string_view listener_name(const Flow&) const { return {}; }

 protected:
  ~Sink() = default;
};

/// Names a request we received, until 64*T1 after it came (32 s) or it was answered over TCP.
struct ServerTransaction : Handle {};
/// Names a request we sent, until its final response or failure was told.
struct ClientTransaction : Handle {};

/// Who is told what arrives. From inside these functions every function of the layer may be called,
/// for the same transaction and for others; only destroyed it may not be.
class TransactionUser {
 public:
  /// A new request, well formed, never a retransmission and never an ACK. To be answered now or
  /// later, with one final response. Lifetime: request and flow are valid during the call only.
  virtual void on_request(ServerTransaction server, const MessageView& request,
                          const Flow& from) = 0;
  /// A provisional response (not 100), or the one final response, to a request we sent; after the
  /// final one nothing more is told. Lifetime: the response is valid during the call only.
  virtual void on_response(ClientTransaction client, const MessageView& response,
                           const Flow& from) = 0;
  /// Instead of a final response, once: `timeout` (Timer F), what the sink or connection_closed
  /// said, or `closed`.
  virtual void on_failure(ClientTransaction client, Error error) = 0;

 protected:
  ~TransactionUser() = default;
};

struct TransactionOptions {
  /// RFC 3261 17.1.1.1 and its table 4. T1 estimates the round trip: the first retransmission comes
  /// after it. T2 is the longest interval between two. T4 is how long the network may hold a
  /// message back. A transaction ends after 64*T1.
  std::uint32_t t1_ms = 500;
  std::uint32_t t2_ms = 4000;
  std::uint32_t t4_ms = 5000;
  /// How often a request, or an INVITE's final answer, is sent over UDP in all. By default as often
  /// as RFC 3261 has it: 11 times with the timers above.
  std::uint32_t max_request_sends = 255;
  std::uint32_t max_answer_sends = 255;
  /// Answers over UDP go to the address and port the request came from, whatever its Via says.
  /// Otherwise to that port only where the Via asks for it (RFC 3581), else to the Via's port.
  bool answer_to_source = false;
  /// How many requests may be open in each direction. One that came over UDP is open for 64*T1, so
  /// this is 32 times the rate per second that can be served. Beyond, a 503 is given and nothing
  /// kept.
  std::size_t max_transactions = 500000;
  /// How many octets of kept messages there may be; beyond, the same.
  std::size_t max_kept_size = std::size_t{512} << 20;
  /// The Retry-After of that 503.
  std::uint32_t retry_after_s = 30;
};

namespace detail {

/// What a message matches its transaction by (RFC 3261 17.1.3, 17.2.3), as a keyed hash of 128 bits
/// over all parts that must be equal. Nobody can make two that collide without the secret, so that
/// nothing else needs to be kept or compared.
struct TransactionKey {
  std::uint64_t low = 0;
  std::uint64_t high = 0;

  bool operator==(const TransactionKey& other) const {
    return low == other.low && high == other.high;
  }
};

using ToTag = std::array<char, 16>;

inline std::string_view text_of(const ToTag& tag) { return {tag.data(), tag.size()}; }

/// Makes keys, and To tags from keys.
class TransactionHash {
 public:
  explicit TransactionHash(Random random);

  /// The key of the server transaction a valid request belongs to, were its method `method`: that
  /// of a CANCEL with Method::invite is the key of what it cancels (RFC 3261 9.2).
  TransactionKey of_request(const MessageView& request, const Via& via, const Flow& from,
                            Method method) const;
  /// The key of a client transaction, as it is when sending and as a response repeats it.
  TransactionKey of_branch(std::string_view branch, std::string_view method_text) const;

  /// RFC 3261 8.2.7: one request gets the same tag however often it is answered; 19.3: nobody can
  /// foresee it.
  ToTag tag(const TransactionKey& key) const;
  /// The same for the octets of a request that is too broken to have a key.
  ToTag tag(std::string_view text) const;

 private:
  TransactionKey of_legacy_request(const MessageView& request, const Flow& from,
                                   Method method) const;
  TransactionKey hash(std::uint64_t number, std::initializer_list<std::string_view> texts) const;

  SipHash low_;
  SipHash high_;
  SipHash tag_;
};

enum class ServerState : std::uint8_t { trying, proceeding, completed, confirmed };
enum class ClientState : std::uint8_t { trying, proceeding, completed, terminated };

enum TransactionTimer : std::uint8_t { client_resend, client_end, server_resend, server_end };

/// A request we received. Once answered, all that is kept of it is this and the answer.
struct ServerRecord {
  TransactionKey key;
  std::uint64_t user_data = 0;
  Timer resend{0, server_resend};  ///< Timer G
  Timer end{0, server_end};        ///< the user's time to answer, then Timer H, I or J
  Block head;    ///< Via, From, To, Call-ID, CSeq for answers, until the final one
  Block answer;  ///< the last answer
  Flow source;
  std::uint16_t sent_by_port = 0;
  bool wants_rport = false;
  bool is_invite = false;
  ServerState state = ServerState::trying;
  std::uint32_t sends = 0;  ///< of the final answer
  ToTag to_tag{};
};

/// A request we sent.
struct ClientRecord {
  TransactionKey key;
  std::uint64_t user_data = 0;
  Timer resend{0, client_resend};  ///< Timer E
  Timer end{0, client_end};        ///< Timer F, then K
  Block request;                   ///< over UDP, until the final response
  Flow flow;
  ClientState state = ClientState::trying;
  bool has_response = false;
  std::uint32_t sends = 1;
  /// The other transactions on the same TCP connection.
  Handle connection;
  std::uint32_t next = HashIndex::npos;
  std::uint32_t previous = HashIndex::npos;
};

/// A TCP connection with client transactions on it.
struct ClientConnection {
  std::uint32_t socket = 0;
  std::uint32_t first_client = HashIndex::npos;
};

/// What can happen to a server transaction.
struct ServerEvent {
  enum Kind : std::uint8_t { request_again, ack, provisional, final_answer, resend, end };
  Kind kind;
  std::uint64_t now_ms;
  const Slices* answer = nullptr;  ///< of provisional and final_answer
};

/// What can happen to a client transaction.
struct ClientEvent {
  enum Kind : std::uint8_t { provisional, final_response, resend, end, broken };
  Kind kind;
  std::uint64_t now_ms;
  const MessageView* response = nullptr;  ///< of provisional and final_response, with `from`
  const Flow* from = nullptr;
  Error error = {};  ///< of broken
};

}  // namespace detail

/// All transactions of one server or user agent. Time comes with every call as `now_ms`, in
/// milliseconds from any start; the owner calls `advance` when `next_deadline` has come.
class TransactionLayer {
 public:
  /// `secret`: 16 octets of the operating system's randomness, used for nothing else. Sink and user
  /// must outlive this. Destruction tells the user nothing; `close` does.
  TransactionLayer(const TransactionOptions& options, Sink& sink, TransactionUser& user,
                   const SipHashKey& secret);
  TransactionLayer(const TransactionLayer&) = delete;
  TransactionLayer& operator=(const TransactionLayer&) = delete;

  /// Everything that arrives; `error` is what MessageView::parse said of it, or `too_large` for a
  /// message beyond a limit of the caller's.
  ///
  /// What is malformed is answered without state, or dropped where no answer is owed: to an ACK, to
  /// a response, to what has no Via. 400 names the mistake, "CSeq is malformed (octet 123)"; 505
  /// and 513 for another SIP version and for what is too large. A request beyond max_transactions
  /// gets 503. Retransmissions get the answer there is. What remains goes to the user.
  void receive(const MessageView& message, Error error, const Flow& from, std::uint64_t now_ms);

  // Requests we received.

  /// Writes the status line of an answer and the headers taken from its request: Via stamped with
  /// received and rport, From, To with tag, Call-ID, CSeq. Further headers and write_body follow.
  /// An empty phrase means the usual one. `out` fails with `gone` once the transaction is answered
  /// or gone.
  void begin_response(ServerTransaction server, int code, std::string_view phrase,
                      Output& out) const;

  /// Sends an answer, our own or a forwarded one, and keeps it for retransmissions.
  ///
  /// Errors: `gone` where the transaction was answered already, is gone, or its time is up (64*T1
  /// after it came: RFC 4320 has late answers dropped); `bad_argument` for answers that may not be
  /// sent, which leaves the transaction open: to other requests than INVITE 408 and provisional
  /// ones but 100, which over UDP may not come before Timer E has reached T2 (RFC 4320 4.1); to an
  /// INVITE 2xx. Otherwise what the sink said; a final answer over UDP is kept all the same, for
  /// the client will ask again.
  Error respond(ServerTransaction server, int code, const Slices& response, std::uint64_t now_ms);
  /// Sends a final answer and forgets the request: a retransmission will be a new request. For
  /// challenges, so that a flood of requests by nobody leaves nothing behind (RFC 3261 8.2.7,
  /// 26.3.2.4). The same errors; after any but `bad_argument` the transaction is gone.
  Error respond_statelessly(ServerTransaction server, int code, const Slices& response,
                            std::uint64_t now_ms);

  /// The INVITE that a CANCEL given to on_request means, false where there is none (RFC 3261 9.2).
  ServerTransaction find_cancelled(const MessageView& cancel, const Flow& from) const;

  bool is_open(ServerTransaction server) const { return servers_.get(server) != nullptr; }
  /// A number of the user's; 0 at first, and where the transaction is gone.
  std::uint64_t user_data(ServerTransaction server) const;
  void set_user_data(ServerTransaction server, std::uint64_t user_data);
  /// How the request came; a flow with socket 0 where the transaction is gone.
  Flow source(ServerTransaction server) const;
  /// What begin_response adds to a To without tag. Lifetime: as long as the transaction.
  std::string_view to_tag(ServerTransaction server) const;

  // Requests we send.

  /// Sends a request and repeats it until it is answered. `flow` as Sink::sent_by left it; `branch`
  /// (fresh, with magic cookie) and `method` as they stand in the message. Over UDP a copy is kept
  /// for retransmission, over TCP none.
  ///
  /// Errors: `bad_argument` for INVITE and ACK, `limit_reached`, `closed` after `close`, or what
  /// the sink said; then there will be no callback. Otherwise exactly one final response or failure
  /// is told, never from inside this call, unless `forget` is called before.
  Result<ClientTransaction> send(const Flow& flow, std::string_view branch, std::string_view method,
                                 const Slices& request, std::uint64_t user_data,
                                 std::uint64_t now_ms);
  /// The number given to `send`; 0 where the transaction is gone. Good inside the final callback.
  std::uint64_t user_data(ClientTransaction client) const;
  /// Whether any response came, 100 included; false where the transaction is gone. Good inside the
  /// final callback.
  bool has_response(ClientTransaction client) const;
  /// No callbacks of that transaction any more.
  void forget(ClientTransaction client);

  // The world around.

  /// A TCP connection is gone: its client transactions fail with `error`. Answers that belong on it
  /// go over a new one (RFC 3261 18.2.2).
  void connection_closed(std::uint32_t socket, Error error, std::uint64_t now_ms);
  /// Fires every timer that is due.
  void advance(std::uint64_t now_ms);
  /// When `advance` has something to do next; nothing where no transaction is open.
  std::optional<std::uint64_t> next_deadline() const { return timers_.next_deadline(); }
  /// Fails every client transaction with `closed` and forgets the server transactions; `send` fails
  /// from now on and requests are dropped.
  void close();

  std::size_t server_count() const { return servers_.size(); }
  std::size_t client_count() const { return clients_.size(); }
  std::size_t size() const { return server_count() + client_count(); }
  /// Octets held by kept messages.
  std::size_t kept_size() const { return blocks_.in_use_size(); }

 private:
  using ServerRecord = detail::ServerRecord;
  using ServerState = detail::ServerState;
  using ServerEvent = detail::ServerEvent;
  using ClientRecord = detail::ClientRecord;
  using ClientState = detail::ClientState;
  using ClientEvent = detail::ClientEvent;

  void receive_request(const MessageView& request, const Flow& from, std::uint64_t now_ms);
  void receive_response(const MessageView& response, const Flow& from, std::uint64_t now_ms);
  void open_server(const MessageView& request, const Via& via, const detail::TransactionKey& key,
                   const Flow& from, std::uint64_t now_ms);
  void refuse_broken(const MessageView& request, int code, Error mistake, const Flow& from);
  void refuse(const MessageView& request, int code, std::string_view phrase,
              const detail::ToTag& to_tag, const Flow& from);
  Flow answer_flow(const Flow& source, bool wants_rport, std::uint16_t sent_by_port) const;
  detail::ToTag tag_of(const MessageView& request, const Via& via,
                       const detail::TransactionKey& key, const Flow& from) const;

  // The machines: the event goes to the function of the state the transaction is in.
  Error on_event(ServerRecord& server, const ServerEvent& event);
  Error server_trying(ServerRecord& server, const ServerEvent& event);
  Error server_proceeding(ServerRecord& server, const ServerEvent& event);
  Error server_completed(ServerRecord& server, const ServerEvent& event);
  Error invite_proceeding(ServerRecord& server, const ServerEvent& event);
  Error invite_completed(ServerRecord& server, const ServerEvent& event);
  Error invite_confirmed(ServerRecord& server, const ServerEvent& event);
  void on_event(ClientRecord& client, const ClientEvent& event);
  void client_trying(ClientRecord& client, const ClientEvent& event);
  void client_proceeding(ClientRecord& client, const ClientEvent& event);
  void client_completed(ClientRecord& client, const ClientEvent& event);

  // Their actions.
  Error answerable(ServerTransaction server, int code, const Slices& response,
                   std::uint64_t now_ms) const;
  Error keep_and_send(ServerRecord& server, const Slices& answer);
  Error send_again(ServerRecord& server);
  Error send_answer(const ServerRecord& server, const Slices& answer);
  Error complete(ServerRecord& server, const ServerEvent& event);
  void tell_provisional(ClientRecord& client, const ClientEvent& event);
  void tell_final(ClientRecord& client, const ClientEvent& event);
  void fail(ClientRecord& client, Error error);
  void repeat_request(ClientRecord& client, TimerQueue& next_interval, std::uint64_t now_ms);
  TimerQueue& resend_queue(std::uint32_t sends) const;
  void on_timer(const Timer& timer, std::uint64_t now_ms);

  // The tables.
  std::uint32_t find_server(const detail::TransactionKey& key) const {
    return server_index_.find(key.low,
                              [&](std::uint32_t index) { return servers_.at(index).key == key; });
  }
  void destroy(ServerRecord& server);
  void join_connection(ClientRecord& client);
  void leave_connection(ClientRecord& client);
  std::uint32_t find_connection(std::uint32_t socket) const;
  ClientTransaction handle_of(const ClientRecord& client) const {
    return {clients_.handle_of(client.end.owner)};
  }

  TransactionOptions options_;
  Sink& sink_;
  TransactionUser& user_;
  detail::TransactionHash hash_;
  bool is_closed_ = false;
  std::unique_ptr<char[]> scratch_;  ///< heads and stateless answers are written here first

  BlockPool blocks_;
  Timers timers_;
  std::vector<TimerQueue*> resend_queues_;  ///< T1, 2*T1, 4*T1, ..., T2
  TimerQueue* end_queue_;                   ///< 64*T1
  TimerQueue* clear_queue_;                 ///< T4
  std::uint64_t quiet_ms_ = 0;              ///< how long after a request Timer E reaches T2

  Slab<ServerRecord> servers_;
  Slab<ClientRecord> clients_;
  Slab<detail::ClientConnection> connections_;
  HashIndex server_index_;
  HashIndex client_index_;
  HashIndex connection_index_;
};

// Matching.

namespace detail {

inline TransactionHash::TransactionHash(Random random)
    : low_(next_key(random)), high_(next_key(random)), tag_(next_key(random)) {}

/// All sizes are hashed before all texts, so that no octet can move from one text to the next.
inline TransactionKey TransactionHash::hash(std::uint64_t number,
                                            std::initializer_list<std::string_view> texts) const {
  SipHash low = low_;
  SipHash high = high_;
  const auto add = [&low, &high](std::string_view text) {
    low.update(text);
    high.update(text);
  };
  const auto add_number = [&add](std::uint64_t value) {
    std::array<std::uint8_t, 8> octets;
    store_little(value, octets.data());
    add(as_text(octets.data(), octets.size()));
  };
  add_number(number);
  for (std::string_view text : texts) add_number(text.size());
  for (std::string_view text : texts) add(text);
  return {low.finish(), high.finish()};
}

/// The name where the number of the method does not tell it.
inline std::string_view unknown_method(Method method, std::string_view name) {
  return method == Method::other ? name : std::string_view();
}

/// RFC 3261 17.2.3: branch, sent-by, and method; an ACK belongs to its INVITE.
///
/// The source's IP address counts as well, although the RFC does not ask for it: two phones behind
/// two routers may both be 192.168.1.2:5060, and some make the same branches when switched on in
/// the same second. It is not compared which transport a request came over.
inline TransactionKey TransactionHash::of_request(const MessageView& request, const Via& via,
                                                  const Flow& from, Method method) const {
  if (!via.has_rfc3261_branch()) return of_legacy_request(request, from, method);
  if (method == Method::ack) method = Method::invite;
  return hash(static_cast<std::uint64_t>(method) | std::uint64_t{via.port_or_default()} << 8,
              {via.branch, via.host, from.remote.ip.bytes(),
               unknown_method(method, request.method_text())});
}

/// Without the magic cookie, or with nothing behind it, the branch is none, and a request is known
/// by Request-URI, tags, Call-ID, CSeq and top Via (RFC 3261 17.2.3, RFC 4475 3.2.1).
inline TransactionKey TransactionHash::of_legacy_request(const MessageView& request,
                                                         const Flow& from, Method method) const {
  constexpr std::uint64_t legacy = std::uint64_t{1} << 24;
  const std::uint64_t cseq = request.cseq()->number;
  const Method of_key = method == Method::ack ? Method::invite : method;
  const auto key = [&](std::string_view to_tag) {
    return hash(static_cast<std::uint64_t>(of_key) | legacy | cseq << 32,
                {*request.values(HeaderId::via).begin(), request.request_uri_text(),
                 request.from()->tag(), to_tag, request.call_id(), from.remote.ip.bytes(),
                 unknown_method(of_key, request.method_text())});
  };
  const std::string_view to_tag = request.to()->tag();
  if (method != Method::ack) return key(to_tag);
  // The To tag of an ACK is that of our answer, which the INVITE did not have yet.
  const TransactionKey of_invite = key({});
  const ToTag our_tag = tag(of_invite);
  return to_tag == text_of(our_tag) ? of_invite : key(to_tag);
}

/// RFC 3261 17.1.3: branch and method. That the sent-by is one of ours is not asked: nobody else
/// knows the branch.
inline TransactionKey TransactionHash::of_branch(std::string_view branch,
                                                 std::string_view method_text) const {
  const Method method = parse_method(method_text);
  return hash(static_cast<std::uint64_t>(method), {branch, unknown_method(method, method_text)});
}

inline ToTag TransactionHash::tag(const TransactionKey& key) const {
  std::array<std::uint8_t, 16> octets;
  store_little(key.low, octets.data());
  store_little(key.high, octets.data() + 8);
  return tag(as_text(octets.data(), octets.size()));
}

inline ToTag TransactionHash::tag(std::string_view text) const {
  SipHash hash = tag_;
  hash.update(text);
  ToTag tag;
  write_hex(hash.finish(), tag.data());
  return tag;
}

/// Beyond what a message may have, for the stamps on Via and for header names in full.
inline constexpr std::size_t transaction_scratch_size = max_message_size + 1024;

}  // namespace detail

inline TransactionLayer::TransactionLayer(const TransactionOptions& options, Sink& sink,
                                          TransactionUser& user, const SipHashKey& secret)
    : options_(options),
      sink_(sink),
      user_(user),
      hash_(Random(secret)),
      scratch_(new char[detail::transaction_scratch_size]) {
  const std::uint64_t t1_ms = std::max<std::uint64_t>(options.t1_ms, 1);
  const std::uint64_t t2_ms = std::max<std::uint64_t>(options.t2_ms, t1_ms);
  end_queue_ = &timers_.queue(64 * t1_ms);  // the first, so that what is over sends nothing more
  clear_queue_ = &timers_.queue(options.t4_ms);
  for (std::uint64_t interval_ms = t1_ms; interval_ms < t2_ms; interval_ms *= 2) {
    resend_queues_.push_back(&timers_.queue(interval_ms));
    quiet_ms_ += interval_ms;
  }
  resend_queues_.push_back(&timers_.queue(t2_ms));
}

// Receiving.

inline void TransactionLayer::receive(const MessageView& message, Error error, const Flow& from,
                                      std::uint64_t now_ms) {
  if (is_closed_ || error.code == ErrorCode::empty) return;  // empty: a keep-alive
  if (message.is_response()) {  // a malformed response is dropped (RFC 3261 18.3, 8.1.3)
    if (!error && !validate(message)) receive_response(message, from, now_ms);
    return;
  }
  if (error) {
    const bool too_large =
        error.code == ErrorCode::too_large || error.code == ErrorCode::too_many_headers;
    const int code = error.code == ErrorCode::bad_version ? 505 : too_large ? 513 : 400;
    refuse_broken(message, code, error, from);
    return;
  }
  if (const Error mistake = validate(message)) {
    refuse_broken(message, 400, mistake, from);
    return;
  }
  receive_request(message, from, now_ms);
}

inline void TransactionLayer::receive_request(const MessageView& request, const Flow& from,
                                              std::uint64_t now_ms) {
  const auto via = request.top_via();
  const detail::TransactionKey key = hash_.of_request(request, *via, from, request.method());
  const std::uint32_t found = find_server(key);
  const bool is_ack = request.method() == Method::ack;
  if (found != HashIndex::npos) {
    const ServerEvent event{is_ack ? ServerEvent::ack : ServerEvent::request_again, now_ms};
    static_cast<void>(on_event(servers_.at(found), event));
    return;
  }
  if (is_ack) return;  // of an answer that was given without state, or long ago
  if (servers_.size() >= options_.max_transactions ||
      blocks_.in_use_size() >= options_.max_kept_size) {
    refuse(request, 503, {}, tag_of(request, *via, key, from), from);
    return;
  }
  open_server(request, *via, key, from, now_ms);
}

inline void TransactionLayer::open_server(const MessageView& request, const Via& via,
                                          const detail::TransactionKey& key, const Flow& from,
                                          std::uint64_t now_ms) {
  const detail::ToTag to_tag = tag_of(request, via, key, from);
  Output out(scratch_.get(), detail::transaction_scratch_size);
  write_response_head(out, request, detail::text_of(to_tag), from.remote);
  if (out.error()) return;  // its Via headers cannot be repeated, so that no answer would arrive

  const ServerTransaction handle{servers_.create()};
  ServerRecord& server = servers_.at(handle.index);
  server.key = key;
  server.head = blocks_.allocate(out.size());
  std::memcpy(server.head.data(), out.written().data(), out.size());
  server.source = from;
  server.sent_by_port = via.port_or_default();
  server.wants_rport = via.has_rport;
  server.is_invite = request.method() == Method::invite;
  server.state = server.is_invite ? ServerState::proceeding : ServerState::trying;
  server.to_tag = to_tag;
  server.resend.owner = server.end.owner = handle.index;
  end_queue_->start(server.end, now_ms);
  server_index_.insert(key.low, handle.index);
  user_.on_request(handle, request, from);
}

/// RFC 3261 9.2: the answers to a CANCEL have the To tag of those to the request it cancels.
inline detail::ToTag TransactionLayer::tag_of(const MessageView& request, const Via& via,
                                              const detail::TransactionKey& key,
                                              const Flow& from) const {
  if (request.method() != Method::cancel) return hash_.tag(key);
  return hash_.tag(hash_.of_request(request, via, from, Method::invite));
}

/// Tells the sender what is wrong, and where. No answer is owed to an ACK, and none would find its
/// way without a Via.
inline void TransactionLayer::refuse_broken(const MessageView& request, int code, Error mistake,
                                            const Flow& from) {
  if (request.method() == Method::ack || !request.has(HeaderId::via)) return;
  char buffer[128];
  Output phrase(buffer, sizeof buffer);
  phrase.raw(mistake.text());
  if (mistake.place > 0) {
    phrase.raw(" (octet ").number(static_cast<std::uint64_t>(mistake.place)).raw(")");
  }
  refuse(request, code, phrase.written(), hash_.tag(request.bytes()), from);
}

/// Answers without keeping anything (RFC 3261 8.2.7).
inline void TransactionLayer::refuse(const MessageView& request, int code, std::string_view phrase,
                                     const detail::ToTag& to_tag, const Flow& from) {
  Output out(scratch_.get(), detail::transaction_scratch_size);
  write_status_line(out, code, phrase);
  write_response_head(out, request, detail::text_of(to_tag), from.remote);
  if (code == 503) write_header(out, HeaderId::retry_after, options_.retry_after_s);
  write_body(out, {}, {});
  if (out.error()) return;
  const auto via = request.top_via();
  const Flow flow = via ? answer_flow(from, via->has_rport, via->port_or_default()) : from;
  static_cast<void>(sink_.send(flow, Slices(out.written())));
}

/// RFC 3261 18.2.2, RFC 3581 4: over TCP on the same connection; over UDP to the address the
/// request came from, and to its port where rport is there. `maddr` is not followed: nothing is
/// sent to an address that only the sender claims to be somebody's.
inline Flow TransactionLayer::answer_flow(const Flow& source, bool wants_rport,
                                          std::uint16_t sent_by_port) const {
  Flow flow = source;
  if (source.transport == Transport::udp && !wants_rport && !options_.answer_to_source) {
    flow.remote.port = sent_by_port;
  }
  return flow;
}

inline void TransactionLayer::receive_response(const MessageView& response, const Flow& from,
                                               std::uint64_t now_ms) {
  const detail::TransactionKey key =
      hash_.of_branch(response.top_via()->branch, response.cseq()->method);
  const std::uint32_t found = client_index_.find(
      key.low, [&](std::uint32_t index) { return clients_.at(index).key == key; });
  // RFC 3261 18.1.2 leaves strays to the core; RFC 4320 4.3 forbids to pass them on.
  if (found == HashIndex::npos) return;
  const auto kind =
      response.status_code() < 200 ? ClientEvent::provisional : ClientEvent::final_response;
  on_event(clients_.at(found), {kind, now_ms, &response, &from});
}

// The server machines.

inline Error TransactionLayer::on_event(ServerRecord& server, const ServerEvent& event) {
  switch (server.state) {
    case ServerState::trying: return server_trying(server, event);
    case ServerState::proceeding:
      return server.is_invite ? invite_proceeding(server, event) : server_proceeding(server, event);
    case ServerState::completed:
      return server.is_invite ? invite_completed(server, event) : server_completed(server, event);
    case ServerState::confirmed: return invite_confirmed(server, event);
  }
  return {};
}

// Any request but INVITE: RFC 3261 17.2.2, figure 8. "End" is the one timer that always runs: 64*T1
// for the user to answer, then Timer J.
//
//              | request again | 100        | 200-699       | End
//   -----------+---------------+------------+---------------+---------------------
//   Trying     | -             | send       | send, Timer J | - (RFC 4320)
//              |               | Proceeding | Completed (1) | Terminated
//   Proceeding | send 100      | send       | send, Timer J | - (RFC 4320)
//              |               |            | Completed (1) | Terminated
//   Completed  | send answer   | - (gone)   | - (gone)      | Terminated (Timer J)
//
//   (1) over TCP Terminated at once, for Timer J is zero there

inline Error TransactionLayer::server_trying(ServerRecord& server, const ServerEvent& event) {
  switch (event.kind) {
    case ServerEvent::provisional:
      server.state = ServerState::proceeding;
      return keep_and_send(server, *event.answer);
    case ServerEvent::final_answer: return complete(server, event);
    case ServerEvent::end: destroy(server); return {};
    default: return {};  // the user is still at it
  }
}

inline Error TransactionLayer::server_proceeding(ServerRecord& server, const ServerEvent& event) {
  switch (event.kind) {
    case ServerEvent::request_again: return send_again(server);
    case ServerEvent::provisional: return keep_and_send(server, *event.answer);
    case ServerEvent::final_answer: return complete(server, event);
    case ServerEvent::end: destroy(server); return {};
    default: return {};
  }
}

inline Error TransactionLayer::server_completed(ServerRecord& server, const ServerEvent& event) {
  switch (event.kind) {
    case ServerEvent::request_again: return send_again(server);
    case ServerEvent::end: destroy(server); return {};
    default: return {};
  }
}

// INVITE, as far as one needs it who refuses every call: RFC 3261 17.2.1, figure 7. "End" is 64*T1
// for the user to answer, then Timer H, then Timer I.
//
//              | INVITE again | 101-199 | 300-699         | ACK        | Timer G     | End
//   -----------+--------------+---------+-----------------+------------+-------------+-----------
//   Proceeding | send last    | send    | send, H, G (1)  | -          |             | -
//              | 1xx          |         | Completed       |            |             | Terminated
//   Completed  | send answer  | (gone)  | (gone)          | Timer I    | send answer | - (H)
//              |              |         |                 | Confirmed  | G*2, max T2 | Terminated
//   Confirmed  | -            | (gone)  | (gone)          | -          |             | - (I)
//              |              |         |                 |            |             | Terminated
//
//   (1) Timer G over UDP only; over TCP Timer I is zero, so that an ACK ends it

inline Error TransactionLayer::invite_proceeding(ServerRecord& server, const ServerEvent& event) {
  switch (event.kind) {
    case ServerEvent::request_again: return send_again(server);
    case ServerEvent::provisional: return keep_and_send(server, *event.answer);
    case ServerEvent::final_answer:
      server.state = ServerState::completed;
      server.head.reset();
      server.sends = 1;
      end_queue_->start(server.end, event.now_ms);
      if (server.source.transport == Transport::udp && options_.max_answer_sends > 1) {
        resend_queue(server.sends).start(server.resend, event.now_ms);
      }
      return keep_and_send(server, *event.answer);
    case ServerEvent::end: destroy(server); return {};
    default: return {};
  }
}

inline Error TransactionLayer::invite_completed(ServerRecord& server, const ServerEvent& event) {
  switch (event.kind) {
    case ServerEvent::request_again: return send_again(server);
    case ServerEvent::ack:
      if (server.source.transport != Transport::udp) {
        destroy(server);
        return {};
      }
      server.state = ServerState::confirmed;
      server.answer.reset();
      server.resend.cancel();
      clear_queue_->start(server.end, event.now_ms);
      return {};
    case ServerEvent::resend:
      if (event.now_ms >= server.end.deadline_ms()) return {};  // time jumped: it is over
      if (++server.sends < options_.max_answer_sends) {
        resend_queue(server.sends).start(server.resend, event.now_ms);
      }
      return send_again(server);
    case ServerEvent::end: destroy(server); return {};
    default: return {};
  }
}

inline Error TransactionLayer::invite_confirmed(ServerRecord& server, const ServerEvent& event) {
  if (event.kind == ServerEvent::end) destroy(server);
  return {};
}

// Their actions.

inline Error TransactionLayer::complete(ServerRecord& server, const ServerEvent& event) {
  if (server.source.transport != Transport::udp) {
    const Error error = send_answer(server, *event.answer);
    destroy(server);
    return error;
  }
  server.state = ServerState::completed;
  server.head.reset();
  end_queue_->start(server.end, event.now_ms);
  return keep_and_send(server, *event.answer);
}

inline Error TransactionLayer::keep_and_send(ServerRecord& server, const Slices& answer) {
  server.answer = blocks_.allocate(answer.size());
  answer.copy_to(server.answer.data());
  return send_answer(server, answer);
}

inline Error TransactionLayer::send_again(ServerRecord& server) {
  if (!server.answer) return {};
  return send_answer(server, Slices({server.answer.data(), server.answer.size()}));
}

/// RFC 3261 18.2.2: where the TCP connection is gone, a new one is opened to the address the
/// request came from and the port its Via names.
inline Error TransactionLayer::send_answer(const ServerRecord& server, const Slices& answer) {
  Flow flow = answer_flow(server.source, server.wants_rport, server.sent_by_port);
  const Error error = sink_.send(flow, answer);
  if (!error || flow.transport == Transport::udp) return error;
  flow.socket = 0;
  flow.remote.port = server.sent_by_port;
  return sink_.send(flow, answer);
}

inline TimerQueue& TransactionLayer::resend_queue(std::uint32_t sends) const {
  return *resend_queues_[std::min<std::size_t>(sends, resend_queues_.size()) - 1];
}

inline void TransactionLayer::destroy(ServerRecord& server) {
  const std::uint32_t index = server.end.owner;
  server_index_.erase(server.key.low, index);
  servers_.destroy(servers_.handle_of(index));
}

// Answering.

inline void TransactionLayer::begin_response(ServerTransaction server, int code,
                                             std::string_view phrase, Output& out) const {
  const ServerRecord* record = servers_.get(server);
  if (record == nullptr || !record->head) {
    out.fail(ErrorCode::gone);
    return;
  }
  write_status_line(out, code, phrase);
  out.raw({record->head.data(), record->head.size()});
}

/// Whether that answer may be sent now.
inline Error TransactionLayer::answerable(ServerTransaction server, int code,
                                          const Slices& response, std::uint64_t now_ms) const {
  const ServerRecord* record = servers_.get(server);
  if (record == nullptr || !record->head || now_ms >= record->end.deadline_ms()) {
    return ErrorCode::gone;
  }
  if (code < 100 || code > 699) return ErrorCode::bad_argument;
  if (response.size() > BlockPool::max_block_size) return ErrorCode::too_large;
  if (record->is_invite) {
    return code >= 200 && code < 300 ? ErrorCode::bad_argument : ErrorCode::none;
  }
  if (code == 408 || (code > 100 && code < 200)) return ErrorCode::bad_argument;
  if (code == 100 && record->source.transport == Transport::udp) {
    const std::uint64_t age_ms = now_ms + end_queue_->duration_ms() - record->end.deadline_ms();
    if (age_ms < quiet_ms_) return ErrorCode::bad_argument;
  }
  return {};
}

inline Error TransactionLayer::respond(ServerTransaction server, int code, const Slices& response,
                                       std::uint64_t now_ms) {
  if (const Error error = answerable(server, code, response, now_ms)) return error;
  const auto kind = code < 200 ? ServerEvent::provisional : ServerEvent::final_answer;
  return on_event(*servers_.get(server), {kind, now_ms, &response});
}

inline Error TransactionLayer::respond_statelessly(ServerTransaction server, int code,
                                                   const Slices& response, std::uint64_t now_ms) {
  if (code < 200) return ErrorCode::bad_argument;
  if (const Error error = answerable(server, code, response, now_ms)) return error;
  ServerRecord& record = *servers_.get(server);
  const Error error = send_answer(record, response);
  destroy(record);
  return error;
}

inline ServerTransaction TransactionLayer::find_cancelled(const MessageView& cancel,
                                                          const Flow& from) const {
  const auto via = cancel.top_via();
  if (!via) return {};
  const std::uint32_t found = find_server(hash_.of_request(cancel, *via, from, Method::invite));
  if (found == HashIndex::npos) return {};
  return {servers_.handle_of(found)};
}

inline std::uint64_t TransactionLayer::user_data(ServerTransaction server) const {
  const ServerRecord* record = servers_.get(server);
  return record == nullptr ? 0 : record->user_data;
}
inline void TransactionLayer::set_user_data(ServerTransaction server, std::uint64_t user_data) {
  if (ServerRecord* record = servers_.get(server)) record->user_data = user_data;
}
inline Flow TransactionLayer::source(ServerTransaction server) const {
  const ServerRecord* record = servers_.get(server);
  return record == nullptr ? Flow() : record->source;
}
inline std::string_view TransactionLayer::to_tag(ServerTransaction server) const {
  const ServerRecord* record = servers_.get(server);
  return record == nullptr ? std::string_view() : detail::text_of(record->to_tag);
}

// The client machine.

inline Result<ClientTransaction> TransactionLayer::send(const Flow& flow, std::string_view branch,
                                                        std::string_view method,
                                                        const Slices& request,
                                                        std::uint64_t user_data,
                                                        std::uint64_t now_ms) {
  if (is_closed_) return ErrorCode::closed;
  if (method == "INVITE" || method == "ACK") return ErrorCode::bad_argument;
  const std::size_t size = request.size();
  if (size > BlockPool::max_block_size) return ErrorCode::too_large;
  if (clients_.size() >= options_.max_transactions ||
      blocks_.in_use_size() >= options_.max_kept_size) {
    return ErrorCode::limit_reached;
  }
  if (const Error error = sink_.send(flow, request)) return error;

  const ClientTransaction handle{clients_.create()};
  ClientRecord& client = clients_.at(handle.index);
  client.key = hash_.of_branch(branch, method);
  client.user_data = user_data;
  client.flow = flow;
  client.resend.owner = client.end.owner = handle.index;
  end_queue_->start(client.end, now_ms);
  client_index_.insert(client.key.low, handle.index);
  if (flow.transport == Transport::udp) {
    client.request = blocks_.allocate(size);
    request.copy_to(client.request.data());
    if (options_.max_request_sends > 1) resend_queue(1).start(client.resend, now_ms);
  } else {
    join_connection(client);
  }
  return handle;
}

inline void TransactionLayer::on_event(ClientRecord& client, const ClientEvent& event) {
  if (event.response != nullptr) client.has_response = true;
  switch (client.state) {
    case ClientState::trying: client_trying(client, event); break;
    case ClientState::proceeding: client_proceeding(client, event); break;
    case ClientState::completed: client_completed(client, event); break;
    case ClientState::terminated: break;  // its failure is being told
  }
}

// Any request but INVITE: RFC 3261 17.1.2, figure 6. Timer E runs over UDP only.
//
//              | 100-199      | 200-699         | Timer E       | Timer F    | broken (2)
//   -----------+--------------+-----------------+---------------+------------+-----------
//   Trying     | tell (1)     | tell, Timer K   | send          | tell       | tell
//              | Proceeding   | Completed (3)   | E*2, max T2   | Terminated | Terminated
//   Proceeding | tell (1)     | tell, Timer K   | send          | tell       | tell
//              |              | Completed (3)   | E = T2        | Terminated | Terminated
//   Completed  | -            | -               |               | - (K)      | -
//              |              |                 |               | Terminated | Terminated
//
//   (1) but for 100, which tells nothing   (2) the connection, or the sink's error on sending again
//   (3) over TCP Terminated at once, for Timer K is zero there

inline void TransactionLayer::client_trying(ClientRecord& client, const ClientEvent& event) {
  switch (event.kind) {
    case ClientEvent::provisional:
      client.state = ClientState::proceeding;
      tell_provisional(client, event);
      break;
    case ClientEvent::final_response: tell_final(client, event); break;
    case ClientEvent::resend:
      repeat_request(client, resend_queue(client.sends + 1), event.now_ms);
      break;
    case ClientEvent::end: fail(client, ErrorCode::timeout); break;
    case ClientEvent::broken: fail(client, event.error); break;
  }
}

inline void TransactionLayer::client_proceeding(ClientRecord& client, const ClientEvent& event) {
  switch (event.kind) {
    case ClientEvent::provisional: tell_provisional(client, event); break;
    case ClientEvent::final_response: tell_final(client, event); break;
    case ClientEvent::resend: repeat_request(client, *resend_queues_.back(), event.now_ms); break;
    case ClientEvent::end: fail(client, ErrorCode::timeout); break;
    case ClientEvent::broken: fail(client, event.error); break;
  }
}

inline void TransactionLayer::client_completed(ClientRecord& client, const ClientEvent& event) {
  if (event.kind == ClientEvent::end || event.kind == ClientEvent::broken) {
    forget(handle_of(client));
  }
}

// Its actions. Whatever a transaction's record is needed for comes before the user is called: the
// user may forget the transaction.

inline void TransactionLayer::tell_provisional(ClientRecord& client, const ClientEvent& event) {
  if (event.response->status_code() == 100) return;
  user_.on_response(handle_of(client), *event.response, *event.from);
}

inline void TransactionLayer::tell_final(ClientRecord& client, const ClientEvent& event) {
  const ClientTransaction handle = handle_of(client);
  const bool reliable = client.flow.transport != Transport::udp;
  client.state = ClientState::completed;
  client.request.reset();
  client.resend.cancel();
  leave_connection(client);
  clear_queue_->start(client.end, event.now_ms);
  user_.on_response(handle, *event.response, *event.from);
  if (reliable) forget(handle);
}

inline void TransactionLayer::fail(ClientRecord& client, Error error) {
  const ClientTransaction handle = handle_of(client);
  client.state = ClientState::terminated;
  client.resend.cancel();
  client.end.cancel();
  leave_connection(client);
  user_.on_failure(handle, error);
  forget(handle);
}

inline void TransactionLayer::repeat_request(ClientRecord& client, TimerQueue& next_interval,
                                             std::uint64_t now_ms) {
  if (now_ms >= client.end.deadline_ms()) return;  // time jumped: Timer F is due as well
  if (++client.sends < options_.max_request_sends) next_interval.start(client.resend, now_ms);
  const Slices request({client.request.data(), client.request.size()});
  if (const Error error = sink_.send(client.flow, request)) fail(client, error);
}

inline std::uint64_t TransactionLayer::user_data(ClientTransaction client) const {
  const ClientRecord* record = clients_.get(client);
  return record == nullptr ? 0 : record->user_data;
}

inline bool TransactionLayer::has_response(ClientTransaction client) const {
  const ClientRecord* record = clients_.get(client);
  return record != nullptr && record->has_response;
}

inline void TransactionLayer::forget(ClientTransaction client) {
  ClientRecord* record = clients_.get(client);
  if (record == nullptr) return;
  leave_connection(*record);
  client_index_.erase(record->key.low, client.index);
  clients_.destroy(client);
}

// Connections: the client transactions on each stand in a list, so that closing one of ten thousand
// asks only those concerned.

namespace detail {
inline std::uint64_t hash_of_socket(std::uint32_t socket) {
  return socket * std::uint64_t{0x9e3779b97f4a7c15};  // numbers of our own: nobody can choose them
}
}  // namespace detail

inline std::uint32_t TransactionLayer::find_connection(std::uint32_t socket) const {
  return connection_index_.find(detail::hash_of_socket(socket), [&](std::uint32_t index) {
    return connections_.at(index).socket == socket;
  });
}

inline void TransactionLayer::join_connection(ClientRecord& client) {
  const std::uint32_t socket = client.flow.socket;
  std::uint32_t index = find_connection(socket);
  if (index == HashIndex::npos) {
    index = connections_.create().index;
    connections_.at(index).socket = socket;
    connection_index_.insert(detail::hash_of_socket(socket), index);
  }
  detail::ClientConnection& connection = connections_.at(index);
  client.connection = connections_.handle_of(index);
  client.next = connection.first_client;
  if (client.next != HashIndex::npos) clients_.at(client.next).previous = client.end.owner;
  connection.first_client = client.end.owner;
}

inline void TransactionLayer::leave_connection(ClientRecord& client) {
  detail::ClientConnection* connection = connections_.get(client.connection);
  if (connection == nullptr) return;
  if (client.next != HashIndex::npos) clients_.at(client.next).previous = client.previous;
  if (client.previous != HashIndex::npos) {
    clients_.at(client.previous).next = client.next;
  } else {
    connection->first_client = client.next;
  }
  if (connection->first_client == HashIndex::npos) {
    connection_index_.erase(detail::hash_of_socket(connection->socket), client.connection.index);
    connections_.destroy(client.connection);
  }
  client.connection = Handle();
  client.next = client.previous = HashIndex::npos;
}

inline void TransactionLayer::connection_closed(std::uint32_t socket, Error error,
                                                std::uint64_t now_ms) {
  const std::uint32_t index = find_connection(socket);
  if (index == HashIndex::npos) return;
  // Out of the index first: what a callback sends over the same number is not concerned.
  connection_index_.erase(detail::hash_of_socket(socket), index);
  const Handle connection = connections_.handle_of(index);
  const ClientEvent event{ClientEvent::broken, now_ms, nullptr, nullptr, error};
  while (const auto* remaining = connections_.get(connection)) {
    on_event(clients_.at(remaining->first_client), event);
  }
}

// Time.

inline void TransactionLayer::advance(std::uint64_t now_ms) {
  timers_.advance(now_ms, [&](const Timer& timer) { on_timer(timer, now_ms); });
}

inline void TransactionLayer::on_timer(const Timer& timer, std::uint64_t now_ms) {
  if (timer.kind == detail::server_resend || timer.kind == detail::server_end) {
    const auto kind = timer.kind == detail::server_resend ? ServerEvent::resend : ServerEvent::end;
    static_cast<void>(on_event(servers_.at(timer.owner), ServerEvent{kind, now_ms}));
    return;
  }
  const auto kind = timer.kind == detail::client_resend ? ClientEvent::resend : ClientEvent::end;
  on_event(clients_.at(timer.owner), {kind, now_ms});
}

inline void TransactionLayer::close() {
  is_closed_ = true;
  const ClientEvent event{ClientEvent::broken, 0, nullptr, nullptr, ErrorCode::closed};
  clients_.for_each([&](Handle, ClientRecord& client) { on_event(client, event); });
  servers_.for_each([this](Handle, ServerRecord& server) { destroy(server); });
}

}  // namespace sipmsg
