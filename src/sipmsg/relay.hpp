// relay: one MESSAGE on its way from its sender to every binding of its recipient, and back the
// best of their answers.
//
// RFC 3261 16.6 to 16.9, the stateful proxy core. A request goes out as it came but for a few
// edits; each copy is a branch with a client transaction of its own. The first 2xx is passed on at
// once; otherwise the best of all answers is, when the last branch has one. A branch that stays
// silent never makes a 408 (RFC 4320): the sender gets 480 shortly before it would give up by
// itself. A copy keeps going to its phone after another phone answered: a message is for all of
// them.
// RFC 5393: a forking proxy must find loops, and bounds by Max-Breadth how often a request doubles.
// Left out on purpose: sending to one target after the other by q, and redirection.
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <string_view>

#include "access.hpp"
#include "function_ref.hpp"
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

/// So many lines of one kind a minute and no more: who sends requests must not be able to fill the
/// disk with what we say about them.
class LogLimit {
 public:
  explicit LogLimit(std::uint32_t lines_a_minute) : most_(lines_a_minute) {}

  /// Whether one more line may be written now. Ask before putting its text together.
  bool admits(std::uint64_t now_ms) {
    if (now_ms - begin_ms_ >= 60000) {
      begin_ms_ = now_ms;
      count_ = 0;
    }
    if (count_ == most_) return false;
    ++count_;
    return true;
  }

 private:
  std::uint32_t most_;
  std::uint32_t count_ = 0;
  std::uint64_t begin_ms_ = 0;
};

/// What has happened since the start.
struct ServerCounters {
  std::uint64_t relayed = 0;    ///< MESSAGE requests that went to at least one binding
  std::uint64_t delivered = 0;  ///< of these, answered 2xx by a recipient
  std::uint64_t refused = 0;    ///< requests that we answered with 300 or more ourselves
  std::uint64_t dropped = 0;    ///< requests of a flood that got no answer
};

namespace detail {

/// Larger than any message with what we add to it.
inline constexpr std::size_t relay_scratch_size = max_message_size + 4096;

inline constexpr std::size_t max_datagram = 65507;  // over IPv4; a little more over IPv6

/// How long the sender of a request that came at `received_ms` is still to be kept waiting: until
/// 60*T1 after that, for at 64*T1 its own timer ends. In whole steps of 2*T1, and so a little less
/// where some of it is over, that there are few queues of timers.
constexpr std::uint64_t patience_ms(std::uint64_t received_ms, std::uint64_t now_ms,
                                    std::uint64_t t1_ms) {
  const std::uint64_t step_ms = 2 * t1_ms;
  const std::uint64_t over_ms = now_ms - received_ms;
  return over_ms >= 30 * step_ms ? 0 : (30 * step_ms - over_ms) / step_ms * step_ms;
}

}  // namespace detail

/// Sends the answers that are our own and not a recipient's.
class OwnAnswers {
 public:
  using AddHeaders = detail::FunctionRef<void(Output&)>;

  OwnAnswers(TransactionLayer& layer, ServerCounters& counters)
      : layer_(layer), counters_(counters), scratch_(new char[detail::relay_scratch_size]) {}

  /// For the Server header; empty: none is written.
  void set_server_name(std::string_view name) {
    server_name_ = name;
    const auto ends_line = [](char c) { return c == '\r' || c == '\n' || c == '\0'; };
    server_name_.erase(std::remove_if(server_name_.begin(), server_name_.end(), ends_line),
                       server_name_.end());
  }
  /// For the Retry-After that every 503 gets (RFC 3261 21.5.4).
  void set_retry_after(std::uint32_t seconds) { retry_after_s_ = seconds; }
  /// The time, from now on.
  void set_now(std::uint64_t now_ms) { now_ms_ = now_ms; }

  /// A code that may not be sent is replaced by one that may: 408, which RFC 4320 4.2 forbids for
  /// all requests but INVITE, by 480; one that is no final code by 500. A phrase that cannot stand
  /// in a status line gives way to the usual one. `add_headers(Output&)` writes further headers.
  void send(ServerTransaction server, int code, std::string_view phrase, AddHeaders add_headers) {
    code = sendable(code);
    const std::string_view answer = write(server, code, phrase, add_headers);
    if (!answer.empty()) static_cast<void>(layer_.respond(server, code, Slices(answer), now_ms_));
  }
  void send(ServerTransaction server, int code, std::string_view phrase = {}) {
    send(server, code, phrase, [](Output&) {});
  }
  /// The same, and forgets the request: for challenges, of which a flood must leave nothing behind.
  void send_statelessly(ServerTransaction server, int code, AddHeaders add_headers) {
    const std::string_view answer = write(server, code, {}, add_headers);
    if (answer.empty()) return;
    static_cast<void>(layer_.respond_statelessly(server, code, Slices(answer), now_ms_));
  }

 private:
  static constexpr std::size_t max_phrase_size = 256;

  static int sendable(int code) {
    if (code == 408) return 480;
    return code < 200 || code > 699 ? 500 : code;
  }
  static std::string_view sendable(std::string_view phrase) {
    const bool forbidden =
        phrase.find_first_of(std::string_view("\r\n\0", 3)) != std::string_view::npos;
    return forbidden || phrase.size() > max_phrase_size ? std::string_view() : phrase;
  }

  /// Without the further headers where they do not fit: whoever sets them must not keep the sender
  /// waiting. Empty for a request whose own head does not fit, of some 60,000 octets: its sender's
  /// timer ends it.
  std::string_view write(ServerTransaction server, int code, std::string_view phrase,
                         AddHeaders add_headers) {
    std::string_view answer = write(server, code, phrase, add_headers, detail::max_datagram);
    const auto nothing = [](Output&) {};
    if (answer.empty()) answer = write(server, code, phrase, nothing, detail::relay_scratch_size);
    if (!answer.empty() && code >= 300) ++counters_.refused;
    return answer;
  }
  std::string_view write(ServerTransaction server, int code, std::string_view phrase,
                         AddHeaders add_headers, std::size_t room) {
    Output out(scratch_.get(), room);
    layer_.begin_response(server, code, sendable(phrase), out);
    add_headers(out);
    if (code == 503) write_header(out, HeaderId::retry_after, retry_after_s_);
    if (!server_name_.empty()) write_header(out, HeaderId::server, server_name_);
    write_body(out, {}, {});
    return out.error() ? std::string_view() : out.written();
  }

  TransactionLayer& layer_;
  ServerCounters& counters_;
  std::string server_name_;
  std::uint32_t retry_after_s_ = 30;
  std::unique_ptr<char[]> scratch_;
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
  ServerTransaction server;  ///< to be answered; names nothing for a message of our own
  std::uint64_t own = 0;     ///< what RelayUser knows a message of our own by; 0 for a received one
  const MessageView* message = nullptr;
  std::string_view username;  ///< the sender's, for whoever is told that nobody took the message
  std::string_view user;  ///< whose bindings the targets are; empty for others: then nobody is told
  Flow source;
  std::uint64_t received_ms = 0;
  std::uint64_t loop_hash = 0;      ///< from RelaySet::loop_hash
  std::uint32_t max_forwards = 70;  ///< to be written, already decremented
  FieldList removed;                ///< what is not for the recipient
};

/// Who is told what became of messages where that is not simply passed on to their sender. May do
/// anything, also relay further messages.
class RelayUser {
 public:
  /// No target took a message: `code` is the best answer there was, 480 where there was none. The
  /// request is valid during the call. True where its sender is answered from there, now or later;
  /// otherwise it gets that answer.
  virtual bool on_undelivered(const RelayRequest& request, int code) = 0;
  /// The end of a message of our own, once: the best answer, which may be null where it is `code`
  /// alone. Valid during the call.
  virtual void on_own_end(std::uint64_t own, int code, const MessageView* response) = 0;

 protected:
  ~RelayUser() = default;
};

/// All messages that are on their way.
class RelaySet {
 public:
  /// So many copies of one request may exist at once, here and at the proxies behind us: the
  /// Max-Breadth that RFC 5393 5.3.3 recommends.
  static constexpr std::uint32_t max_breadth = 60;

  RelaySet(TransactionLayer& layer, Sink& sink, RelayUser& user, OwnAnswers& answers,
           ServerCounters& counters, ServerLog& log, std::uint32_t t1_ms, const SipHashKey& secret)
      : layer_(layer),
        sink_(sink),
        user_(user),
        answers_(answers),
        counters_(counters),
        log_(log),
        t1_ms_(t1_ms),
        random_(secret),
        loop_hash_(detail::next_key(random_)),
        scratch_(new char[detail::relay_scratch_size]) {}

  /// Sends the message to each target. Returns 0, and the answer follows by itself; or the code it
  /// is to be refused with: 480 where no target can be reached, 440 where there are more of them
  /// than the request's breadth.
  [[nodiscard]] int start(const RelayRequest& request, const RelayTarget* targets,
                          std::size_t count);
  /// Whether on_undelivered is asked; each message to a user is kept for it until it is answered.
  void keep_requests(bool keep) { keeps_requests_ = keep; }

  /// What the branches of this request will carry, so that it is known again.
  std::uint64_t loop_hash(const MessageView& request) const;
  /// Whether the request was here before, with the same Request-URI: 482 (RFC 3261 16.3 step 4).
  bool is_loop(const MessageView& request, std::uint64_t loop_hash) const;

  void on_response(ClientTransaction client, const MessageView& response);
  void on_failure(ClientTransaction client);
  /// The time, from now on; `advance` also does what is due.
  void set_now(std::uint64_t now_ms) { now_ms_ = now_ms; }
  void advance(std::uint64_t now_ms);
  /// When `advance` has something to do next; nothing where no message is on its way.
  std::optional<std::uint64_t> next_deadline() const { return timers_.next_deadline(); }
  std::size_t size() const { return relays_.size(); }
  /// Octets held by requests, and by answers that are kept until a better one comes.
  std::size_t kept_size() const { return blocks_.in_use_size(); }

 private:
  /// The response context of RFC 3261 16: what the branches of one request have answered so far.
  struct Relay {
    RelayRequest request;  ///< without its message and names, which are in `kept`
    Block kept;            ///< message and both names, for on_undelivered; or empty
    std::uint32_t kept_username_size = 0;
    std::uint32_t kept_user_size = 0;
    Timer timer;
    std::uint32_t open_branches = 0;
    bool answered = false;
    int best_code = 0;                 ///< 0 where no answer is there yet
    std::uint32_t best_body_size = 0;  ///< of `best`
    Block best;                        ///< empty where there was no memory for it
    std::string challenges;  ///< header lines of the 401 and 407 that are not `best` (16.7 step 7)
  };

  static constexpr std::size_t token_size = 13;        // 64 bits of chance
  static constexpr std::size_t path_mtu = 1300;        // RFC 3261 18.1.1
  static constexpr std::size_t added_size = 160;       // what our edits add, about
  static constexpr std::size_t max_challenges = 8192;  // octets of `challenges`
  static constexpr std::size_t max_kept = 16U << 20U;  // octets of all `best` and `kept`

  Error send_branch(const RelayRequest& request, Handle relay, const RelayTarget& target,
                    std::uint32_t breadth);
  Error send_over(Flow flow, const RelayRequest& request, Handle relay, const RelayTarget& target,
                  std::uint32_t breadth);
  Slices edit(const RelayRequest& request, const RelayTarget& target, std::uint32_t breadth,
              Edits& edits, Output& text) const;
  void log_large_datagram();
  void keep_request(Relay& relay, const RelayRequest& request);
  bool tell_undelivered(const Relay& relay, int code);
  void pass_on(Relay& relay, int code, const MessageView& response);
  void keep_if_best(Relay& relay, int code, const MessageView& response);
  void add_challenges(Relay& relay, const MessageView& response);
  void close_branch(Handle handle, Relay& relay);
  void answer_with_best(Relay& relay);
  void answer(const Relay& relay, int code, std::string_view phrase = {});
  void pass_on_best(const Relay& relay);
  void finish(Handle handle);

  TransactionLayer& layer_;
  Sink& sink_;
  RelayUser& user_;
  OwnAnswers& answers_;
  ServerCounters& counters_;
  ServerLog& log_;
  std::uint64_t t1_ms_;
  Random random_;
  SipHash loop_hash_;  ///< keyed and fresh; copied for each use
  Timers timers_;
  BlockPool blocks_;
  Slab<Relay> relays_;
  std::unique_ptr<char[]> scratch_;
  std::size_t large_size_ = 0;  ///< of a datagram that no log line has told of yet
  SocketAddress large_remote_;
  LogLimit large_log_{10};
  LogLimit breadth_log_{10};
  bool keeps_requests_ = false;
  std::uint64_t now_ms_ = 0;
};

namespace detail {

/// How good a final answer other than 2xx is for the sender, 0 being best (RFC 3261 16.7 step 6):
/// 6xx ends the search, then the lowest class, and of 4xx first those that tell how to try again
/// and last the one that tells nothing.
constexpr int response_rank(int code) {
  if (code >= 600) return 0;
  if (code < 400) return 1;
  if (code == 401 || code == 407 || code == 415 || code == 420 || code == 484) return 2;
  if (code < 500) return code == 408 ? 4 : 3;
  return code == 503 ? 6 : 5;
}

inline bool has_two_vias(const MessageView& response) {
  const auto vias = response.values(HeaderId::via);
  auto element = vias.begin();
  return element != vias.end() && ++element != vias.end();
}

constexpr bool is_challenge(int code) { return code == 401 || code == 407; }

/// The breadth a request may still have (RFC 5393 5.3.3).
inline std::uint32_t breadth_of(const MessageView& request, std::uint32_t most) {
  const auto value = parse_digits(request.header("Max-Breadth").value_or(""), most);
  return value ? static_cast<std::uint32_t>(*value) : most;
}

/// A message without Content-Length is as long as its datagram; where it goes on over a stream its
/// length must be said (RFC 3261 18.3, 20.14).
inline void add_content_length(const MessageView& message, Edits& edits, Output& text) {
  if (message.has(HeaderId::content_length)) return;
  const std::size_t begin = text.size();
  write_header(text, HeaderId::content_length, message.body().size());
  edits.insert_last(text.since(begin));
}

}  // namespace detail

// The request.

inline int RelaySet::start(const RelayRequest& request, const RelayTarget* targets,
                           std::size_t count) {
  // To write Max-Breadth is needed only where the request doubles.
  std::uint32_t breadth = 0;
  if (count > 1) {
    breadth = detail::breadth_of(*request.message, max_breadth);
    if (count > breadth) {
      if (breadth_log_.admits(now_ms_)) {
        log_.log(Severity::warning, "a message to " + std::to_string(count) +
                                        " bindings refused with 440: " + std::to_string(breadth) +
                                        " are allowed");
      }
      return 440;
    }
    breadth /= static_cast<std::uint32_t>(count);
  }
  const Handle handle = relays_.create();
  Relay& relay = relays_.at(handle.index);
  relay.request = request;
  relay.request.message = nullptr;
  relay.request.username = {};
  relay.request.user = {};
  Error error;
  for (std::size_t i = 0; i < count; ++i) {
    const Error failed = send_branch(request, handle, targets[i], breadth);
    if (failed) {
      error = failed;
    } else {
      ++relay.open_branches;
    }
  }
  if (relay.open_branches == 0) {
    relays_.destroy(handle);
    if (error.code == ErrorCode::limit_reached) return 503;
    return error.code == ErrorCode::too_large ? 513 : 480;
  }
  if (keeps_requests_ && !request.user.empty()) keep_request(relay, request);
  ++counters_.relayed;
  relay.timer.owner = handle.index;
  timers_.queue(detail::patience_ms(request.received_ms, now_ms_, t1_ms_))
      .start(relay.timer, now_ms_);
  log_large_datagram();
  return 0;
}

inline void RelaySet::keep_request(Relay& relay, const RelayRequest& request) {
  const std::string_view message = request.message->bytes();
  const std::size_t size = message.size() + request.username.size() + request.user.size();
  if (blocks_.in_use_size() + size > max_kept) return;
  relay.kept = blocks_.allocate(size);
  relay.kept_username_size = static_cast<std::uint32_t>(request.username.size());
  relay.kept_user_size = static_cast<std::uint32_t>(request.user.size());
  Slices slices(message);
  slices.add(request.username);
  slices.add(request.user);
  slices.copy_to(relay.kept.data());
}

/// RFC 3261 18.1.1: a request over 1300 octets goes by TCP where the target can be reached so, and
/// by UDP where it turns out that it cannot.
inline Error RelaySet::send_branch(const RelayRequest& request, Handle relay,
                                   const RelayTarget& target, std::uint32_t breadth) {
  const std::size_t size = request.message->size() + target.uri.size() + added_size;
  if (target.flow.transport == Transport::udp && size > path_mtu &&
      sink_.has_stream_to(target.flow.remote)) {
    const Flow stream{Transport::tcp, 0, target.flow.remote};
    if (!send_over(stream, request, relay, target, breadth)) return {};
  }
  return send_over(target.flow, request, relay, target, breadth);
}

inline Error RelaySet::send_over(Flow flow, const RelayRequest& request, Handle relay,
                                 const RelayTarget& target, std::uint32_t breadth) {
  const auto sent_by = sink_.sent_by(flow);
  if (!sent_by) return sent_by.error();

  Output text(scratch_.get(), detail::relay_scratch_size);
  // The branch: the magic cookie, chance, and behind a dot what a loop is known by (16.6 step 8).
  std::array<char, token_size> token;
  random_.write_token(token.data(), token.size());
  text.raw("Via: SIP/2.0/").raw(transport_name(flow.transport)).raw(" ").raw(*sent_by);
  text.raw(";branch=");
  const std::size_t branch_begin = text.size();
  text.raw("z9hG4bK").raw({token.data(), token.size()}).raw(".").hex(request.loop_hash);
  const std::string_view branch = text.since(branch_begin);
  text.raw(";rport\r\n");

  Edits edits(*request.message);
  const Slices message = edit(request, target, breadth, edits, text);
  if (text.error()) return text.error();
  if (edits.error()) return edits.error();
  const std::size_t size = message.size();
  if (flow.transport == Transport::udp && size > path_mtu) {
    if (size > detail::max_datagram) return ErrorCode::too_large;
    large_size_ = size;
    large_remote_ = flow.remote;
  }
  return layer_
      .send(flow, branch, request.message->method_text(), message, pack_handle(relay), now_ms_)
      .error();
}

/// Last of all, for whoever reads the log may call us again.
inline void RelaySet::log_large_datagram() {
  if (large_size_ == 0) return;
  std::array<char, 160> buffer;
  Output line(buffer.data(), buffer.size());
  line.raw("a request of ").number(large_size_).raw(" octets goes by UDP to ");
  line.ip(large_remote_.ip).raw(" port ").number(large_remote_.port);
  line.raw(", which has no TCP connection");
  large_size_ = 0;
  if (large_log_.admits(now_ms_)) log_.log(Severity::info, line.written());
}

/// RFC 3261 16.6, as edits of what was received. `text` holds our own Via line, and takes what else
/// is written. A `breadth` of 0 leaves Max-Breadth alone.
inline Slices RelaySet::edit(const RelayRequest& request, const RelayTarget& target,
                             std::uint32_t breadth, Edits& edits, Output& text) const {
  const MessageView& message = *request.message;
  const bool has_max_forwards = message.has(HeaderId::max_forwards);
  std::string_view old_breadth;
  if (breadth != 0) old_breadth = message.header("Max-Breadth").value_or("");
  edits.set_request_uri(target.uri);

  if (!target.path.empty()) write_header(text, HeaderId::route, target.path);
  if (!has_max_forwards) write_header(text, HeaderId::max_forwards, request.max_forwards);
  if (breadth != 0 && old_breadth.empty()) {
    text.raw("Max-Breadth: ").number(breadth).raw("\r\n");
  }
  edits.insert_first(text.written());

  const auto replace_number = [&](std::string_view old, std::uint64_t number) {
    const std::size_t begin = text.size();
    text.number(number);
    edits.replace(old, text.since(begin));
  };
  if (has_max_forwards) {
    replace_number(message.header(HeaderId::max_forwards), request.max_forwards);
  }
  if (!old_breadth.empty()) replace_number(old_breadth, breadth);

  const auto vias = message.values(HeaderId::via);
  if (!vias.empty()) {
    const std::string_view top_via = *vias.begin();
    if (const auto via = parse_via(top_via)) {
      const std::size_t begin = text.size();
      write_stamped_via(text, top_via, *via, request.source.remote);
      edits.replace(top_via, text.since(begin));
    }
  }
  for (std::size_t field : request.removed) edits.remove_field(field);
  detail::add_content_length(message, edits, text);
  return edits.slices();
}

/// Over what a loop brings back unchanged (RFC 3261 16.6 step 8). Another Request-URI makes it a
/// spiral, which is no error. The method does not count (ibid.), and CSeq names it.
inline std::uint64_t RelaySet::loop_hash(const MessageView& request) const {
  SipHash hash = loop_hash_;
  for (std::string_view part : {request.request_uri_text(), request.header(HeaderId::from),
                                request.call_id(), request.header(HeaderId::cseq)}) {
    hash.update(part);
    hash.update(std::string_view("\0", 1));
  }
  return hash.finish();
}

inline bool RelaySet::is_loop(const MessageView& request, std::uint64_t loop_hash) const {
  std::array<char, 17> end_of_branch;
  Output out(end_of_branch.data(), end_of_branch.size());
  out.raw(".").hex(loop_hash);
  for (std::string_view via : request.values(HeaderId::via)) {
    if (via.find(out.written()) != std::string_view::npos) return true;
  }
  return false;
}

// The answers.

inline void RelaySet::on_response(ClientTransaction client, const MessageView& response) {
  const int code = response.status_code();
  if (code < 200) return;  // no provisional answer of a non-INVITE goes further (RFC 4320 4.1)
  const Handle handle = unpack_handle(layer_.user_data(client));
  Relay* relay = relays_.get(handle);
  if (relay == nullptr) return;  // the sender has been told 480 already
  // With our Via alone it answers us, and there is nobody to pass it on to (16.7 step 3).
  const bool is_for_sender = relay->request.own != 0 || detail::has_two_vias(response);
  if (is_for_sender && !relay->answered) {
    if (code < 300) {
      ++counters_.delivered;
      pass_on(*relay, code, response);
    } else {
      keep_if_best(*relay, code, response);
    }
  }
  close_branch(handle, *relay);
}

inline void RelaySet::on_failure(ClientTransaction client) {
  const Handle handle = unpack_handle(layer_.user_data(client));
  Relay* relay = relays_.get(handle);
  if (relay != nullptr) close_branch(handle, *relay);
}

inline void RelaySet::pass_on(Relay& relay, int code, const MessageView& response) {
  relay.answered = true;
  if (relay.request.own != 0) return user_.on_own_end(relay.request.own, code, &response);
  std::array<char, 40> buffer;
  Output text(buffer.data(), buffer.size());
  Edits edits(response);
  edits.remove_first_element(HeaderId::via);
  detail::add_content_length(response, edits, text);
  static_cast<void>(layer_.respond(relay.request.server, code, edits.slices(), now_ms_));
}

inline void RelaySet::keep_if_best(Relay& relay, int code, const MessageView& response) {
  const bool better =
      relay.best_code == 0 || detail::response_rank(code) < detail::response_rank(relay.best_code);
  if (!better) {
    if (detail::is_challenge(code)) add_challenges(relay, response);
    return;
  }
  std::array<char, 40> buffer;
  Output text(buffer.data(), buffer.size());
  Edits edits(response);
  edits.remove_first_element(HeaderId::via);
  detail::add_content_length(response, edits, text);
  const Slices slices = edits.slices();
  relay.best_code = code;
  relay.best_body_size = static_cast<std::uint32_t>(response.body().size());
  relay.best.reset();
  if (blocks_.in_use_size() + slices.size() > max_kept) return;
  relay.best = blocks_.allocate(slices.size());
  slices.copy_to(relay.best.data());
}

/// The sender can only answer all challenges if it gets all of them (RFC 3261 16.7 step 7).
inline void RelaySet::add_challenges(Relay& relay, const MessageView& response) {
  for (HeaderId id : {HeaderId::www_authenticate, HeaderId::proxy_authenticate}) {
    for (std::size_t i = response.find(id); i != response.header_count();
         i = response.find_next(i)) {
      const std::string_view line = response.field_line(i);
      if (relay.challenges.size() + line.size() <= max_challenges) relay.challenges.append(line);
    }
  }
}

inline void RelaySet::close_branch(Handle handle, Relay& relay) {
  if (--relay.open_branches == 0) finish(handle);
}

inline void RelaySet::answer_with_best(Relay& relay) {
  if (relay.answered) return;
  relay.answered = true;
  const int code = relay.best_code;
  // RFC 4320 4.2 forbids 408 for a non-INVITE, and silence is no better than that.
  const bool is_silent = code == 0 || code == 408;
  if (relay.kept && tell_undelivered(relay, is_silent ? 480 : code)) return;
  if (is_silent) return answer(relay, 480);
  // RFC 3261 16.7 step 6: the recipient's 503 would say that this server is overloaded.
  if (code == 503) return answer(relay, 500, "Recipient Unavailable");
  if (!relay.best) return answer(relay, code);
  pass_on_best(relay);
}

inline void RelaySet::answer(const Relay& relay, int code, std::string_view phrase) {
  if (relay.request.own != 0) return user_.on_own_end(relay.request.own, code, nullptr);
  answers_.send(relay.request.server, code, phrase);
}

inline void RelaySet::pass_on_best(const Relay& relay) {
  const std::string_view best(relay.best.data(), relay.best.size());
  if (relay.request.own != 0) {
    MessageView response;
    const Error error = response.parse(best);
    return user_.on_own_end(relay.request.own, relay.best_code, error ? nullptr : &response);
  }
  Slices slices;
  if (detail::is_challenge(relay.best_code)) {
    const std::size_t headers_end = best.size() - relay.best_body_size - 2;
    slices.add(best.substr(0, headers_end));
    slices.add(relay.challenges);
    slices.add(best.substr(headers_end));
  } else {
    slices.add(best);
  }
  static_cast<void>(layer_.respond(relay.request.server, relay.best_code, slices, now_ms_));
}

inline bool RelaySet::tell_undelivered(const Relay& relay, int code) {
  const std::string_view kept(relay.kept.data(), relay.kept.size());
  const std::size_t names_size = relay.kept_username_size + relay.kept_user_size;
  const std::size_t size = kept.size() - names_size;
  MessageView message;
  if (message.parse(kept.substr(0, size))) return false;
  RelayRequest request = relay.request;
  request.message = &message;
  request.username = kept.substr(size, relay.kept_username_size);
  request.user = kept.substr(size + relay.kept_username_size);
  return user_.on_undelivered(request, code);
}

/// Branches that are still open go on without us: their transactions end by themselves, and what
/// they tell then finds no relay.
inline void RelaySet::finish(Handle handle) {
  answer_with_best(relays_.at(handle.index));
  relays_.destroy(handle);
}

inline void RelaySet::advance(std::uint64_t now_ms) {
  now_ms_ = now_ms;
  timers_.advance(now_ms, [this](Timer& timer) { finish(relays_.handle_of(timer.owner)); });
}

}  // namespace sipmsg
