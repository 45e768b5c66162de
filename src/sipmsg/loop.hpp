// loop: what this header keeps on the caller's libuv loop, and how it leaves it again.
//
// The loop is the caller's: it is never created, run or freed here. libuv wants every handle to
// stay in memory until its close callback has come, long after the object it served may be gone. So
// handles live in cores of their own, which free themselves in that callback; an owner that dies
// only lets go of its core, and may do so at any time, inside its own callbacks too.
// The clock is the loop's. Whoever waits for a time has an Alarm, and all Alarms of a Loop share
// one uv_timer. `post` is the one call that other threads may make.
//
// The addresses of libuv and of this machine's interfaces are turned into ours here, too.
#pragma once

#include <uv.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "address.hpp"

namespace sipmsg {

/// libuv's negative status as an Error: `network`, with the status as its place.
inline Error network_error(int status) { return {ErrorCode::network, status}; }

/// The error's text, and what the operating system said where it was the one that refused: "the
/// network refused: address already in use".
inline std::string describe(Error error) {
  std::string text = error.text();
  if ((error.code == ErrorCode::network || error.code == ErrorCode::file) && error.place < 0) {
    char reason[128];
    text.append(": ").append(uv_strerror_r(error.place, reason, sizeof reason));
  }
  return text;
}

// ---- the loop ----------------------------------------------------------------------------------

class Alarm;

namespace detail {

/// Something to be done on the loop's thread.
class PostedJob {
 public:
  virtual ~PostedJob() = default;
  virtual void run() = 0;

  PostedJob* next = nullptr;
};

/// The timer and the wake-up of one Loop, until libuv has let go of both.
class LoopCore {
 public:
  static constexpr std::uint64_t never = UINT64_MAX;

  explicit LoopCore(uv_loop_t* uv_loop) : loop_(uv_loop) { uv_mutex_init(&mutex_); }
  ~LoopCore() { uv_mutex_destroy(&mutex_); }
  LoopCore(const LoopCore&) = delete;
  LoopCore& operator=(const LoopCore&) = delete;

  /// Opens the handles; they keep `self` alive until they are closed.
  int open(const std::shared_ptr<LoopCore>& self);
  void close();
  bool is_closed() const { return closed_; }

  uv_loop_t* loop() const { return loop_; }
  /// Takes the job over in any case.
  Error post(std::unique_ptr<PostedJob> job);

  void add(Alarm& alarm);
  void remove(Alarm& alarm);
  /// Starts the timer, or starts it anew where it is set for later.
  void wake_at(std::uint64_t deadline_ms);

  /// Room for datagrams: a socket uses it within one callback only, so that all of them can share
  /// it. Made at the first call.
  char* receive_buffer(std::size_t size) {
    if (!receive_buffer_) receive_buffer_.reset(new char[size]);
    return receive_buffer_.get();
  }

 private:
  void run_posted();
  void run_alarms();
  Alarm* next_due(std::uint64_t now_ms);
  PostedJob* take_posted();
  static void drop(PostedJob* job) {
    while (job != nullptr) delete std::exchange(job, job->next);
  }
  static void on_closed(uv_handle_t* handle) {
    auto* core = static_cast<LoopCore*>(handle->data);
    if (--core->open_handles_ == 0) core->self_.reset();  // the end of `core`, perhaps
  }

  uv_loop_t* loop_;
  uv_timer_t timer_;
  uv_async_t wakeup_;
  std::shared_ptr<LoopCore> self_;  ///< while libuv holds pointers to this
  int open_handles_ = 0;
  Alarm* alarms_ = nullptr;
  std::uint64_t timer_deadline_ms_ = never;
  std::uint64_t round_ = 0;  ///< counts calls of the timer, to give each Alarm one turn in each
  std::unique_ptr<char[]> receive_buffer_;

  uv_mutex_t mutex_;  ///< guards what is below
  PostedJob* first_posted_ = nullptr;
  PostedJob* last_posted_ = nullptr;
  bool closed_ = true;  ///< written by the loop's thread, under the mutex
};

template <class Function>
class PostedFunction final : public PostedJob {
 public:
  explicit PostedFunction(Function&& function) : function_(std::move(function)) {}
  void run() override { function_(); }

 private:
  Function function_;
};

}  // namespace detail

/// One owner's place on a libuv loop: clock, timer, wake-up from other threads.
///
/// From construction to `close()` it keeps the loop running. After `close()`, or the destructor,
/// nothing of it is called any more; the loop must turn once more so that libuv lets go of it.
/// Everything but `post` belongs to the thread that runs the loop.
class Loop {
 public:
  /// `loop` must stay until it has run dry after `close()`.
  explicit Loop(uv_loop_t* loop) : core_(std::make_shared<detail::LoopCore>(loop)) {
    if (const int status = core_->open(core_); status < 0) error_ = network_error(status);
  }
  ~Loop() { close(); }
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  /// What kept it from starting (no file descriptor left, mostly): it is closed then.
  Error error() const { return error_; }
  uv_loop_t* uv() const { return core_->loop(); }

  /// Milliseconds since an arbitrary moment, as of the beginning of this turn of the loop. Right
  /// inside the loop's callbacks; outside of them it may be old.
  std::uint64_t now_ms() const { return uv_now(core_->loop()); }
  /// The same, up to date: for what the application calls whenever it likes.
  std::uint64_t fresh_now_ms() {
    uv_update_time(core_->loop());
    return now_ms();
  }

  /// Has `function()` called on the loop's thread, in the order of the calls. May be called from
  /// any thread as long as this object lives. A function that has not run when the Loop is closed
  /// is destroyed instead. Error: `closed`.
  template <class Function>
  Error post(Function function) {
    return core_->post(std::make_unique<detail::PostedFunction<Function>>(std::move(function)));
  }

  void close() { core_->close(); }
  bool is_closed() const { return core_->is_closed(); }

  const std::shared_ptr<detail::LoopCore>& core() const { return core_; }

 private:
  std::shared_ptr<detail::LoopCore> core_;
  Error error_;
};

/// Waits for a time. Derive from it to be called; the Loop may be closed or gone before this is.
class Alarm {
 public:
  static constexpr std::uint64_t never = detail::LoopCore::never;

  Alarm(const Alarm&) = delete;
  Alarm& operator=(const Alarm&) = delete;

  /// Has `on_alarm` called once, at `deadline_ms` on the Loop's clock or earlier: an Alarm that is
  /// set twice goes off at the earlier time. So set it whenever something may have become due
  /// sooner, and look at what is due when it goes off.
  void arm(std::uint64_t deadline_ms) {
    if (deadline_ms >= deadline_ms_) return;
    deadline_ms_ = deadline_ms;
    core_->wake_at(deadline_ms);
  }

 protected:
  explicit Alarm(Loop& loop) : core_(loop.core()) { core_->add(*this); }
  ~Alarm() { core_->remove(*this); }

  /// The time has come. May do anything: arm, close the Loop, destroy this and the Loop.
  virtual void on_alarm(std::uint64_t now_ms) = 0;

 private:
  friend class detail::LoopCore;

  std::shared_ptr<detail::LoopCore> core_;
  Alarm* next_ = nullptr;
  std::uint64_t deadline_ms_ = never;
  std::uint64_t round_ = 0;
};

namespace detail {

inline int LoopCore::open(const std::shared_ptr<LoopCore>& self) {
  const int status = uv_async_init(loop_, &wakeup_, [](uv_async_t* handle) {
    static_cast<LoopCore*>(handle->data)->run_posted();
  });
  if (status < 0) return status;
  wakeup_.data = this;
  uv_timer_init(loop_, &timer_);
  timer_.data = this;
  open_handles_ = 2;
  self_ = self;
  closed_ = false;
  return 0;
}

inline void LoopCore::close() {
  if (closed_) return;
  uv_mutex_lock(&mutex_);
  closed_ = true;
  uv_mutex_unlock(&mutex_);
  uv_close(reinterpret_cast<uv_handle_t*>(&wakeup_), on_closed);
  uv_close(reinterpret_cast<uv_handle_t*>(&timer_), on_closed);
  drop(take_posted());
}

inline Error LoopCore::post(std::unique_ptr<PostedJob> job) {
  uv_mutex_lock(&mutex_);
  const bool closed = closed_;
  if (!closed) {
    PostedJob* added = job.release();
    (first_posted_ == nullptr ? first_posted_ : last_posted_->next) = added;
    last_posted_ = added;
    uv_async_send(&wakeup_);  // under the mutex: `close` must not come between
  }
  uv_mutex_unlock(&mutex_);
  return closed ? Error(ErrorCode::closed) : Error();
}

inline PostedJob* LoopCore::take_posted() {
  uv_mutex_lock(&mutex_);
  PostedJob* first = std::exchange(first_posted_, nullptr);
  uv_mutex_unlock(&mutex_);
  return first;
}

inline void LoopCore::run_posted() {
  PostedJob* job = take_posted();
  while (job != nullptr && !closed_) {
    std::unique_ptr<PostedJob> current(std::exchange(job, job->next));
    current->run();
  }
  drop(job);
}

inline void LoopCore::add(Alarm& alarm) {
  alarm.next_ = alarms_;
  alarms_ = &alarm;
}

inline void LoopCore::remove(Alarm& alarm) {
  Alarm** link = &alarms_;
  while (*link != &alarm) link = &(*link)->next_;
  *link = alarm.next_;
}

inline void LoopCore::wake_at(std::uint64_t deadline_ms) {
  if (closed_ || deadline_ms >= timer_deadline_ms_) return;
  timer_deadline_ms_ = deadline_ms;
  const std::uint64_t now_ms = uv_now(loop_);
  // Never 0: libuv calls a timer that is set to 0 inside its own callback again before anything
  // else gets its turn (libuv before 1.48).
  uv_timer_start(
      &timer_, [](uv_timer_t* handle) { static_cast<LoopCore*>(handle->data)->run_alarms(); },
      deadline_ms > now_ms ? deadline_ms - now_ms : 1, 0);
}

inline Alarm* LoopCore::next_due(std::uint64_t now_ms) {
  Alarm* alarm = alarms_;
  while (alarm != nullptr && (alarm->deadline_ms_ > now_ms || alarm->round_ == round_)) {
    alarm = alarm->next_;
  }
  return alarm;
}

inline void LoopCore::run_alarms() {
  timer_deadline_ms_ = never;
  ++round_;
  const std::uint64_t now_ms = uv_now(loop_);
  // Looked for anew after each call, in which any Alarm may have come or gone.
  while (Alarm* alarm = closed_ ? nullptr : next_due(now_ms)) {
    alarm->deadline_ms_ = never;
    alarm->round_ = round_;
    alarm->on_alarm(now_ms);
  }
  for (Alarm* alarm = alarms_; alarm != nullptr; alarm = alarm->next_) {
    wake_at(alarm->deadline_ms_);
  }
}

}  // namespace detail

/// Sixteen octets of the operating system's randomness: the seed of a Random, the key of a SipHash.
inline Result<std::array<std::uint8_t, 16>> random_secret() {
  std::array<std::uint8_t, 16> secret{};
  const int status = uv_random(nullptr, nullptr, secret.data(), secret.size(), 0, nullptr);
  if (status < 0) return network_error(status);
  return secret;
}

/// Seconds since 1970, for what outlives this process.
inline std::uint64_t unix_time_s() {
  uv_timeval64_t time{};
  uv_gettimeofday(&time);
  return static_cast<std::uint64_t>(time.tv_sec);
}

// ---- addresses ---------------------------------------------------------------------------------

/// An address in the operating system's form.
union NativeAddress {
  sockaddr any;
  sockaddr_in ipv4;
  sockaddr_in6 ipv6;
};

/// With `mapped`, an IPv4 address takes the form that IPv6 sockets want (::ffff:192.0.2.1).
inline NativeAddress to_native(const SocketAddress& address, bool mapped = false) {
  NativeAddress native;
  std::memset(&native, 0, sizeof native);
  if (address.ip.is_ipv6() || mapped) {
    native.ipv6.sin6_family = AF_INET6;
    native.ipv6.sin6_port = htons(address.port);
    native.ipv6.sin6_scope_id = address.scope;
    auto* octets = reinterpret_cast<std::uint8_t*>(&native.ipv6.sin6_addr);
    if (address.ip.is_ipv6()) {
      std::memcpy(octets, address.ip.octets.data(), 16);
    } else {
      octets[10] = octets[11] = 0xff;
      std::memcpy(octets + 12, address.ip.octets.data(), 4);
    }
  } else {
    native.ipv4.sin_family = AF_INET;
    native.ipv4.sin_port = htons(address.port);
    std::memcpy(&native.ipv4.sin_addr, address.ip.octets.data(), 4);
  }
  return native;
}

/// A mapped IPv4 address comes out as the IPv4 address it is: a peer has one name, whichever socket
/// it came in by. No family for what is neither IPv4 nor IPv6.
inline SocketAddress from_native(const sockaddr* native) {
  SocketAddress address;
  if (native->sa_family == AF_INET) {
    sockaddr_in ipv4;
    std::memcpy(&ipv4, native, sizeof ipv4);
    address.ip.family = 4;
    std::memcpy(address.ip.octets.data(), &ipv4.sin_addr, 4);
    address.port = ntohs(ipv4.sin_port);
  } else if (native->sa_family == AF_INET6) {
    sockaddr_in6 ipv6;
    std::memcpy(&ipv6, native, sizeof ipv6);
    const auto* octets = reinterpret_cast<const std::uint8_t*>(&ipv6.sin6_addr);
    constexpr std::uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    const bool is_mapped = std::memcmp(octets, mapped, sizeof mapped) == 0;
    address.ip.family = is_mapped ? 4 : 6;
    std::memcpy(address.ip.octets.data(), octets + (is_mapped ? 12 : 0), is_mapped ? 4 : 16);
    address.port = ntohs(ipv6.sin6_port);
    address.scope = ipv6.sin6_scope_id;
  }
  return address;
}

/// A numeric host as configurations have it: "192.0.2.1", "::1", "[::1]", and "fe80::1%eth0" for an
/// address that is only valid on one interface. Error: `bad_address`.
inline Result<SocketAddress> listen_address(std::string_view host, std::uint16_t port) {
  SocketAddress address;
  address.port = port;
  if (const auto ip = parse_ip(host)) {
    address.ip = *ip;
    return address;
  }
  sockaddr_in6 ipv6;
  if (host.find('%') == std::string_view::npos ||
      uv_ip6_addr(std::string(host).c_str(), port, &ipv6) != 0) {
    return ErrorCode::bad_address;
  }
  address = from_native(reinterpret_cast<const sockaddr*>(&ipv6));
  if (address.scope == 0) return ErrorCode::bad_address;  // there is no such interface
  return address;
}

/// One address of one interface of this machine.
struct InterfaceAddress {
  IpAddress ip;
  std::uint8_t prefix_length = 0;  ///< of its network, in bits
  bool is_loopback = false;
};

/// All of them, in the operating system's order. Empty where it does not tell.
inline std::vector<InterfaceAddress> interface_addresses() {
  std::vector<InterfaceAddress> result;
  uv_interface_address_t* interfaces = nullptr;
  int count = 0;
  if (uv_interface_addresses(&interfaces, &count) < 0) return result;
  for (int i = 0; i < count; ++i) {
    // Unions of sockaddr_in and sockaddr_in6, by value.
    const auto* address = reinterpret_cast<const sockaddr*>(&interfaces[i].address);
    const auto* netmask = reinterpret_cast<const sockaddr*>(&interfaces[i].netmask);
    InterfaceAddress found;
    found.ip = from_native(address).ip;
    found.is_loopback = interfaces[i].is_internal != 0;
    if (!found.ip) continue;
    for (std::uint8_t octet : from_native(netmask).ip.octets) {
      for (; (octet & 0x80) != 0; octet = static_cast<std::uint8_t>(octet << 1)) {
        ++found.prefix_length;
      }
    }
    result.push_back(found);
  }
  uv_free_interface_addresses(interfaces, count);
  return result;
}

namespace detail {

inline bool same_network(const IpAddress& a, const IpAddress& b, std::size_t prefix_length) {
  for (std::size_t bit = 0; bit < prefix_length; bit += 8) {
    const std::size_t bits = prefix_length - bit < 8 ? prefix_length - bit : 8;
    const auto mask = static_cast<std::uint8_t>(0xff << (8 - bits));
    if (((a.octets[bit / 8] ^ b.octets[bit / 8]) & mask) != 0) return false;
  }
  return true;
}

inline bool is_link_local(const IpAddress& ip) {
  return ip.is_ipv6() && ip.octets[0] == 0xfe && (ip.octets[1] & 0xc0) == 0x80;
}

}  // namespace detail

/// Under which of our own addresses `remote` reaches us, where a socket is bound to all of them:
/// the loopback for the loopback, an address in the same network (the smallest), else the first
/// that is neither loopback nor link-local, else the loopback.
inline IpAddress choose_local_address(const std::vector<InterfaceAddress>& interfaces,
                                      const IpAddress& remote) {
  IpAddress loopback;
  loopback.family = remote.family;
  loopback.octets[0] = remote.is_ipv4() ? 127 : 0;
  loopback.octets[remote.is_ipv4() ? 3 : 15] = 1;
  if (remote.is_loopback()) return loopback;

  const InterfaceAddress* near = nullptr;
  const InterfaceAddress* first = nullptr;
  for (const InterfaceAddress& candidate : interfaces) {
    if (candidate.ip.family != remote.family || candidate.is_loopback) continue;
    if (candidate.ip == remote) return remote;  // a neighbour on this very machine
    if (first == nullptr && !detail::is_link_local(candidate.ip)) first = &candidate;
    if ((near == nullptr || candidate.prefix_length > near->prefix_length) &&
        detail::same_network(candidate.ip, remote, candidate.prefix_length)) {
      near = &candidate;
    }
  }
  if (near != nullptr) return near->ip;
  return first != nullptr ? first->ip : loopback;
}

}  // namespace sipmsg
