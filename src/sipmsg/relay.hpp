// relay: one MESSAGE on its way from its sender to every binding of its recipient, and back the
// best of their answers.
//
// RFC 3261 16.6 to 16.9, the stateful proxy core. A request goes out as it came but for a few
// edits; each copy is a branch with a client transaction of its own. The first 2xx is passed on at
// once; otherwise the best of all answers is, when the last branch has one. A branch that stays
// silent never makes a 408 (RFC 4320): the sender gets 480 shortly before it would give up by
// itself. A copy keeps going to its phone after another phone answered: a message is for all of
// them.
#pragma once

#include <array>
#include <string>
#include <string_view>

#include "hash.hpp"
#include "ini.hpp"
#include "pool.hpp"
#include "timer.hpp"
#include "transaction.hpp"
#include "writer.hpp"

namespace sipmsg {

/// Where the protocol core says what its operator should know. One line each, without line end.
class ServerLog {
 public:
  virtual void log(Severity severity, std::string_view text) = 0;

 protected:
  ~ServerLog() = default;
};

/// What has happened since the start.
struct ServerCounters {
  std::uint64_t relayed = 0;    ///< MESSAGE requests that went to at least one binding
  std::uint64_t delivered = 0;  ///< of these, answered 2xx by a recipient
  std::uint64_t refused = 0;    ///< requests that we answered with 300 or more ourselves
  std::uint64_t dropped = 0;    ///< requests of a flood that got no answer
};

/// Sends the answers that are our own and not a recipient's.
class OwnAnswers {
 public:
  OwnAnswers(TransactionLayer& layer, ServerCounters& counters)
      : layer_(layer), counters_(counters), scratch_(scratch_size) {}

  void set_server_name(std::string name) { server_name_ = std::move(name); }

  /// `add_headers(Output&)` writes further header lines.
  template <class AddHeaders>
  void send(ServerTransaction server, int code, std::string_view phrase, AddHeaders add_headers) {
    const std::string_view answer = write(server, code, phrase, add_headers);
    if (!answer.empty()) static_cast<void>(layer_.respond(server, code, Slices(answer), now_ms_));
  }
  void send(ServerTransaction server, int code, std::string_view phrase = {}) {
    send(server, code, phrase, [](Output&) {});
  }
  /// The same, and forgets the request: for challenges, of which a flood must leave nothing behind.
  template <class AddHeaders>
  void send_statelessly(ServerTransaction server, int code, AddHeaders add_headers) {
    const std::string_view answer = write(server, code, {}, add_headers);
    if (answer.empty()) return;
    static_cast<void>(layer_.respond_statelessly(server, code, Slices(answer), now_ms_));
  }

  /// The time, from now on.
  void set_now(std::uint64_t now_ms) { now_ms_ = now_ms; }

 private:
  static constexpr std::size_t scratch_size = max_message_size + 4096;

  /// Empty for a request whose head does not fit, of some 60,000 octets: its sender's timer ends
  /// it.
  template <class AddHeaders>
  std::string_view write(ServerTransaction server, int code, std::string_view phrase,
                         AddHeaders add_headers) {
    Output out(scratch_.data(), scratch_.size());
    layer_.begin_response(server, code, phrase, out);
    add_headers(out);
    write_header(out, HeaderId::server, server_name_);
    write_body(out, {}, {});
    if (out.error()) return {};
    if (code >= 300) ++counters_.refused;
    return out.written();
  }

  TransactionLayer& layer_;
  ServerCounters& counters_;
  std::string server_name_;
  std::vector<char> scratch_;
  std::uint64_t now_ms_ = 0;
};

/// Where one copy of a message goes. Lifetime: views of whoever made it.
struct RelayTarget {
  std::string_view uri;   ///< becomes the Request-URI
  std::string_view path;  ///< becomes Route: the Path of the registration (RFC 3327)
  Flow flow;
};

/// A message to be relayed, and what is to be changed in it.
struct RelayRequest {
  ServerTransaction server;
  const MessageView* message = nullptr;
  Flow source;
  bool pop_route = false;             ///< the first Route names us (RFC 3261 16.4)
  std::size_t credentials_field = 0;  ///< our credentials, not for the recipient; or header_count()
  std::uint32_t max_forwards = 70;    ///< to be written, already decremented
};

class RelaySet {
 public:
  static constexpr std::size_t max_branches = 16;

  RelaySet(TransactionLayer& layer, Sink& sink, OwnAnswers& answers, ServerCounters& counters,
           ServerLog& log, std::uint32_t t1_ms, const SipHashKey& secret)
      : layer_(layer),
        sink_(sink),
        answers_(answers),
        counters_(counters),
        log_(log),
        loop_key_(secret),
        random_(secret),
        silence_(timers_.queue(std::uint64_t{60} * t1_ms)) {}

  /// Sends the message to each target, at most `max_branches`; the sender's answer follows by
  /// itself, 480 where no target could be reached.
  void start(const RelayRequest& request, const RelayTarget* targets, std::size_t count);

  /// Whether the request was here before, with the same Request-URI: 482 (RFC 3261 16.3 step 4).
  bool is_loop(const MessageView& request) const;

  void on_response(ClientTransaction client, const MessageView& response);
  void on_failure(ClientTransaction client);
  /// The time, from now on; `advance` also does what is due.
  void set_now(std::uint64_t now_ms) { now_ms_ = now_ms; }
  void advance(std::uint64_t now_ms);
  /// When `advance` has something to do next; nothing where no message is on its way.
  std::optional<std::uint64_t> next_deadline() const { return timers_.next_deadline(); }
  std::size_t size() const { return relays_.size(); }

 private:
  /// The response context of RFC 3261 16: what the branches of one request have answered so far.
  struct Relay {
    ServerTransaction server;
    Timer timer;
    std::array<ClientTransaction, max_branches> branches{};
    std::uint8_t branch_count = 0;
    std::uint8_t open_branches = 0;
    bool answered = false;
    int best_code = 0;  ///< 0 where no answer is there yet
    Block best;
    std::string challenges;  ///< header lines of the 401 and 407 that are not `best` (16.7 step 7)
  };

  static constexpr std::size_t token_size = 13;  // 64 bits of chance, or of the loop's hash
  static constexpr std::size_t datagram_limit = 1300;
  static constexpr std::size_t scratch_size = max_message_size + 4096;

  bool send_branch(const RelayRequest& request, Handle handle, RelayTarget target);
  Slices edit(const RelayRequest& request, const RelayTarget& target, std::string_view sent_by,
              std::string_view branch, Edits& edits, Output& text) const;
  std::string_view write_branch(const MessageView& request, Output& out);
  std::uint64_t loop_hash(const MessageView& request) const;
  void pass_on(Relay& relay, int code, const MessageView& response);
  void keep_if_best(Relay& relay, int code, const MessageView& response);
  void add_challenges(Relay& relay, const MessageView& response);
  void close_branch(Handle handle, Relay& relay, ClientTransaction client);
  void answer_with_best(Relay& relay);
  void finish(Handle handle);

  TransactionLayer& layer_;
  Sink& sink_;
  OwnAnswers& answers_;
  ServerCounters& counters_;
  ServerLog& log_;
  SipHashKey loop_key_;
  Random random_;
  Timers timers_;
  TimerQueue& silence_;  ///< 60*T1: the sender's own timer ends at 64*T1
  BlockPool blocks_;
  Slab<Relay> relays_;
  std::vector<char> scratch_ = std::vector<char>(scratch_size);
  std::uint64_t now_ms_ = 0;
};

namespace detail {

/// How good a final answer other than 2xx is for the sender, 0 being best (RFC 3261 16.7 step 6):
/// 6xx ends the search, then the lowest class, and of 4xx first those that tell how to try again.
constexpr int response_rank(int code) {
  if (code >= 600) return 0;
  if (code < 400) return 1;
  if (code == 401 || code == 407 || code == 415 || code == 420 || code == 484) return 2;
  if (code < 500) return 3;
  return code == 503 ? 5 : 4;
}

inline bool has_two_vias(const MessageView& response) {
  const auto vias = response.values(HeaderId::via);
  auto element = vias.begin();
  return element != vias.end() && ++element != vias.end();
}

constexpr bool is_challenge(int code) { return code == 401 || code == 407; }

}  // namespace detail

inline void RelaySet::start(const RelayRequest& request, const RelayTarget* targets,
                            std::size_t count) {
  const Handle handle = relays_.create();
  relays_.get(handle)->server = request.server;
  for (std::size_t i = 0; i < count && i < max_branches; ++i) {
    send_branch(request, handle, targets[i]);
  }
  Relay& relay = *relays_.get(handle);
  if (relay.branch_count == 0) {
    answers_.send(request.server, 480);
    relays_.destroy(handle);
    return;
  }
  ++counters_.relayed;
  relay.timer.owner = handle.index;
  silence_.start(relay.timer, now_ms_);
}

inline bool RelaySet::send_branch(const RelayRequest& request, Handle handle, RelayTarget target) {
  std::array<char, 2 * token_size + 16> branch_text;
  Output branch_out(branch_text.data(), branch_text.size());
  const std::string_view branch = write_branch(*request.message, branch_out);
  while (true) {
    const auto sent_by = sink_.sent_by(target.flow);
    if (!sent_by) return false;
    Output text(scratch_.data(), scratch_.size());
    Edits edits(*request.message);
    const Slices message = edit(request, target, *sent_by, branch, edits, text);
    if (text.error() || edits.error()) return false;

    // RFC 3261 18.1.1: a request over 1300 octets goes by a transport that fragments well.
    if (target.flow.transport == Transport::udp && message.size() > datagram_limit) {
      if (sink_.has_stream_to(target.flow.remote)) {
        target.flow.transport = Transport::tcp;
        target.flow.socket = 0;
        continue;
      }
      log_.log(Severity::info, "a request of " + std::to_string(message.size()) +
                                   " octets goes by UDP to " + to_text(target.flow.remote) +
                                   ", which has no TCP connection");
    }
    const auto client = layer_.send(target.flow, branch, request.message->method_text(), message,
                                    pack_handle(handle), now_ms_);
    if (!client) return false;
    Relay& relay = *relays_.get(handle);
    relay.branches[relay.branch_count++] = *client;
    ++relay.open_branches;
    return true;
  }
}

/// RFC 3261 16.6, as edits of what was received.
inline Slices RelaySet::edit(const RelayRequest& request, const RelayTarget& target,
                             std::string_view sent_by, std::string_view branch, Edits& edits,
                             Output& text) const {
  const MessageView& message = *request.message;
  const std::string_view uri = text.copied(target.uri);
  edits.set_request_uri(uri);

  std::size_t begin = text.size();
  text.raw("Via: SIP/2.0/").raw(transport_name(target.flow.transport)).raw(" ").raw(sent_by);
  text.raw(";branch=").raw(branch).raw(";rport\r\n");
  if (!target.path.empty()) write_header(text, HeaderId::route, target.path);
  if (!message.has(HeaderId::max_forwards)) {
    write_header(text, HeaderId::max_forwards, request.max_forwards);
  }
  edits.insert_first(text.since(begin));

  begin = text.size();
  const std::string_view top_via = *message.values(HeaderId::via).begin();
  const auto via = parse_via(top_via);
  if (via) write_stamped_via(text, top_via, *via, request.source.remote);
  edits.replace(top_via, text.since(begin));

  if (message.has(HeaderId::max_forwards)) {
    begin = text.size();
    text.number(request.max_forwards);
    edits.replace(message.header(HeaderId::max_forwards), text.since(begin));
  }
  if (request.pop_route) edits.remove_first_element(HeaderId::route);
  if (request.credentials_field != message.header_count()) {
    edits.remove_field(request.credentials_field);
  }
  if (!message.has(HeaderId::content_length)) {  // a datagram may lack it, a stream may not
    begin = text.size();
    write_header(text, HeaderId::content_length, message.body().size());
    edits.insert_last(text.since(begin));
  }
  return edits.slices();
}

/// The magic cookie, 64 bits of chance, and behind a dot the loop's hash (RFC 3261 16.6 step 8).
inline std::string_view RelaySet::write_branch(const MessageView& request, Output& out) {
  std::array<char, token_size> token;
  random_.write_token(token.data(), token.size());
  out.raw("z9hG4bK").raw({token.data(), token.size()}).raw(".");
  out.hex(loop_hash(request));
  return out.written();
}

/// Over what a loop brings back unchanged (RFC 3261 16.6 step 8). Another Request-URI makes it a
/// spiral, which is no error. Keyed, so that it also proves that a Via is ours.
inline std::uint64_t RelaySet::loop_hash(const MessageView& request) const {
  SipHash hash(loop_key_);
  for (std::string_view part :
       {request.request_uri_text(), request.header(HeaderId::from), request.header(HeaderId::to),
        request.call_id(), request.header(HeaderId::cseq)}) {
    hash.update(part);
    hash.update(std::string_view("\0", 1));
  }
  return hash.finish();
}

inline bool RelaySet::is_loop(const MessageView& request) const {
  std::array<char, 16> digits;
  Output out(digits.data(), digits.size());
  out.hex(loop_hash(request));
  for (std::string_view element : request.values(HeaderId::via)) {
    const auto via = parse_via(element);
    if (!via || via->branch.size() <= digits.size()) continue;
    if (via->branch.substr(via->branch.size() - digits.size()) == out.written()) return true;
  }
  return false;
}

inline void RelaySet::on_response(ClientTransaction client, const MessageView& response) {
  const int code = response.status_code();
  if (code < 200) return;  // no provisional answer of a non-INVITE goes further (RFC 4320 4.1)
  const Handle handle = unpack_handle(layer_.user_data(client));
  Relay* relay = relays_.get(handle);
  if (relay == nullptr) return;
  if (!detail::has_two_vias(response)) {  // it answers us alone: there is nobody to pass it on to
    close_branch(handle, *relay, client);
    return;
  }
  if (code < 300) {
    if (!relay->answered) {
      ++counters_.delivered;
      pass_on(*relay, code, response);
    }
  } else {
    keep_if_best(*relay, code, response);
  }
  close_branch(handle, *relay, client);
}

inline void RelaySet::on_failure(ClientTransaction client) {
  const Handle handle = unpack_handle(layer_.user_data(client));
  Relay* relay = relays_.get(handle);
  if (relay != nullptr) close_branch(handle, *relay, client);
}

inline void RelaySet::pass_on(Relay& relay, int code, const MessageView& response) {
  Edits edits(response);
  edits.remove_first_element(HeaderId::via);
  relay.answered = true;
  static_cast<void>(layer_.respond(relay.server, code, edits.slices(), now_ms_));
}

inline void RelaySet::keep_if_best(Relay& relay, int code, const MessageView& response) {
  const bool better =
      relay.best_code == 0 || detail::response_rank(code) < detail::response_rank(relay.best_code);
  if (!better) {
    if (detail::is_challenge(code)) add_challenges(relay, response);
    return;
  }
  Edits edits(response);
  edits.remove_first_element(HeaderId::via);
  const Slices slices = edits.slices();
  relay.best_code = code;
  relay.best = blocks_.allocate(slices.size());
  slices.copy_to(relay.best.data());
}

/// The sender can only answer all challenges if it gets all of them (RFC 3261 16.7 step 7).
inline void RelaySet::add_challenges(Relay& relay, const MessageView& response) {
  for (HeaderId id : {HeaderId::www_authenticate, HeaderId::proxy_authenticate}) {
    for (std::size_t i = response.find(id); i != response.header_count();
         i = response.find_next(i)) {
      relay.challenges.append(response.field_line(i));
    }
  }
}

inline void RelaySet::close_branch(Handle handle, Relay& relay, ClientTransaction client) {
  for (std::size_t i = 0; i < relay.branch_count; ++i) {
    if (relay.branches[i] != client) continue;
    relay.branches[i] = {};
    --relay.open_branches;
  }
  if (relay.open_branches == 0) finish(handle);
}

inline void RelaySet::answer_with_best(Relay& relay) {
  if (relay.answered) return;
  relay.answered = true;
  const int code = relay.best_code;
  // RFC 4320 4.2 forbids 408 for a non-INVITE, and silence is no better than that.
  if (code == 0 || code == 408) return answers_.send(relay.server, 480);
  // RFC 3261 16.7 step 6: the recipient's 503 would say that this server is overloaded.
  if (code == 503) return answers_.send(relay.server, 500, "Recipient Unavailable");
  const std::string_view best(relay.best.data(), relay.best.size());
  Slices slices;
  const std::size_t head_end = best.find("\r\n\r\n");
  if (detail::is_challenge(code) && head_end != std::string_view::npos) {
    slices.add(best.substr(0, head_end + 2));
    slices.add(relay.challenges);
    slices.add(best.substr(head_end + 2));
  } else {
    slices.add(best);
  }
  static_cast<void>(layer_.respond(relay.server, code, slices, now_ms_));
}

inline void RelaySet::finish(Handle handle) {
  Relay& relay = *relays_.get(handle);
  answer_with_best(relay);
  for (std::size_t i = 0; i < relay.branch_count; ++i) {
    if (relay.branches[i]) layer_.forget(relay.branches[i]);
  }
  relays_.destroy(handle);
}

inline void RelaySet::advance(std::uint64_t now_ms) {
  now_ms_ = now_ms;
  timers_.advance(now_ms, [this](Timer& timer) { finish(relays_.handle_of(timer.owner)); });
}

}  // namespace sipmsg
