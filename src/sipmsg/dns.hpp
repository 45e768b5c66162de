// dns: the system's resolver, on libuv's thread pool.
//
// Addresses come from getaddrinfo through libuv, and with them whatever the system knows besides
// the DNS: its table of hosts, its search list, its order of address families (RFC 6724). For SRV
// records POSIX has no call; res_query stands in every Unix resolver, and asks the name servers of
// /etc/resolv.conf as getaddrinfo does. Both wait, so both run in the pool.
//
// Left out on purpose: a cache. Names are looked up for each request that is sent to one. Where
// that is too often, a caching resolver on the machine serves all its programs, and obeys the
// times-to-live, which getaddrinfo does not even tell.
#pragma once

#include <uv.h>

#include <algorithm>
#include <cstddef>
#include <list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "locate.hpp"
#include "loop.hpp"
#include "offload.hpp"

namespace sipmsg {

namespace detail {

/// What came of an SRV query.
struct SrvAnswer {
  Error error;
  std::vector<SrvRecord> records;
};

// glibc before 2.34 has res_query in a library of its own, and we want none but libuv linked.
#if defined(SIPMSG_NO_SRV) || !defined(__linux__) || \
    (defined(__GLIBC__) && __GLIBC__ * 1000 + __GLIBC_MINOR__ < 2034)

/// There are no SRV records as far as this system can tell.
inline SrvAnswer query_srv(const std::string&) { return {}; }

#else

// Declared here, because <resolv.h> brings along macros named ADD, DELETE, QUERY, STATUS, REFUSED
// and two hundred others. It says `noexcept` in glibc only, and all declarations have to agree.
#ifdef __GLIBC__
extern "C" int res_query(const char* name, int record_class, int type, unsigned char* answer,
                         int size) noexcept;
#else
extern "C" int res_query(const char* name, int record_class, int type, unsigned char* answer,
                         int size);
#endif

/// Waits for the answer, for as long as /etc/resolv.conf says. Any thread may call it: each has a
/// resolver state of its own (glibc), or there is none (musl).
inline SrvAnswer query_srv(const std::string& name) {
  constexpr int class_internet = 1;
  constexpr int type_srv = 33;
  std::vector<unsigned char> buffer(65535);  // what the DNS can send over TCP
  SrvAnswer answer;
  const int size = res_query(name.c_str(), class_internet, type_srv, buffer.data(),
                             static_cast<int>(buffer.size()));
  if (size < 0) {
    const int reason = h_errno;
    if (reason == TRY_AGAIN) answer.error = network_error(UV_EAI_AGAIN);
    if (reason == NO_RECOVERY) answer.error = network_error(UV_EAI_FAIL);
    return answer;  // else: no such name, or it has no such records
  }
  // The size may be that of an answer which did not fit.
  auto records = parse_srv_answer(
      as_text(buffer.data(), std::min(static_cast<std::size_t>(size), buffer.size())));
  answer.error = records.error();
  answer.records = std::move(*records);
  return answer;
}

#endif

/// All look-ups of one Dns, until libuv has given back the last.
class DnsCore : public std::enable_shared_from_this<DnsCore> {
 public:
  explicit DnsCore(Loop& loop) : loop_(loop.core()), offload_(loop, offload_options()) {}

  void look_up_addresses(const std::string& host, NameService::AddressHandler done);
  void look_up_srv(const std::string& name, NameService::SrvHandler done);
  void close();

 private:
  struct AddressLookup {
    uv_getaddrinfo_t request;
    std::shared_ptr<DnsCore> core;
    std::list<AddressLookup>::iterator self;
    NameService::AddressHandler done;
  };
  static constexpr std::size_t max_lookups = 1000;  // of either kind
  /// Name servers that do not answer must leave threads to others.
  static OffloadOptions offload_options() { return {max_lookups, 2}; }

  bool is_closed() const { return is_closed_ || loop_->is_closed(); }
  static void on_addresses(uv_getaddrinfo_t* request, int status, addrinfo* found);
  /// Reports an error that is known at once, but may not be told before the caller is done.
  template <class Handler>
  void fail_later(Handler done, Error error) {
    auto report = [core = weak_from_this(), done = std::move(done), error] {
      const auto alive = core.lock();
      if (alive && !alive->is_closed()) done(error, {});
    };
    // A closed loop calls nobody.
    (void)loop_->post(std::make_unique<PostedFunction<decltype(report)>>(std::move(report)));
  }

  std::shared_ptr<LoopCore> loop_;
  Offload offload_;
  std::list<AddressLookup> lookups_;
  bool is_closed_ = false;
};

inline void DnsCore::look_up_addresses(const std::string& host, NameService::AddressHandler done) {
  if (is_closed()) return;
  if (!is_host_name(host)) return fail_later(std::move(done), ErrorCode::bad_host);
  if (lookups_.size() >= max_lookups) {
    return fail_later(std::move(done), ErrorCode::limit_reached);
  }
  lookups_.emplace_front();
  AddressLookup& lookup = lookups_.front();
  lookup.core = shared_from_this();
  lookup.self = lookups_.begin();
  lookup.done = std::move(done);
  lookup.request.data = &lookup;
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_DGRAM;  // or each address comes once for each type of socket
  const int status =
      uv_getaddrinfo(loop_->loop(), &lookup.request, on_addresses, host.c_str(), nullptr, &hints);
  if (status == 0) return;
  fail_later(std::move(lookup.done), network_error(status));
  lookups_.pop_front();
}

inline void DnsCore::on_addresses(uv_getaddrinfo_t* request, int status, addrinfo* found) {
  auto& lookup = *static_cast<AddressLookup*>(request->data);
  const std::shared_ptr<DnsCore> core = std::move(lookup.core);
  const NameService::AddressHandler done = std::move(lookup.done);
  core->lookups_.erase(lookup.self);
  std::vector<IpAddress> addresses;
  for (const addrinfo* entry = found; entry != nullptr; entry = entry->ai_next) {
    const IpAddress ip = from_native(entry->ai_addr).ip;
    if (ip && addresses.size() < max_next_hops) addresses.push_back(ip);
  }
  uv_freeaddrinfo(found);
  if (core->is_closed()) return;
  const bool is_unknown =
      status == UV_EAI_NONAME || status == UV_EAI_NODATA || (status == 0 && addresses.empty());
  if (is_unknown) return done(ErrorCode::unknown_host, {});
  done(status < 0 ? network_error(status) : Error(), addresses);
}

inline void DnsCore::look_up_srv(const std::string& name, NameService::SrvHandler done) {
  if (is_closed()) return;
  if (!is_host_name(name)) return fail_later(std::move(done), ErrorCode::bad_host);
  const Error error = offload_.run([name] { return query_srv(name); },
                                   [core = weak_from_this(), done](Error, const SrvAnswer& answer) {
                                     const auto alive = core.lock();
                                     if (!alive || alive->is_closed()) return;
                                     done(answer.error, answer.records);
                                   });
  if (error) fail_later(std::move(done), error);
}

inline void DnsCore::close() {
  is_closed_ = true;  // so that the handlers of what is cancelled are not called
  for (AddressLookup& lookup : lookups_) {
    uv_cancel(reinterpret_cast<uv_req_t*>(&lookup.request));
  }
  offload_.close();
}

}  // namespace detail

/// Looks up names as this system does. May be destroyed at any time, inside a handler too; the loop
/// then runs until the threads of the pool are through with what they had begun, which can take as
/// long as the name servers are silent.
///
/// Errors that handlers get: `unknown_host`; `network` with libuv's status, such as UV_EAI_AGAIN
/// where no name server answers; `bad_dns_answer`; `bad_host` for what is no name; `limit_reached`
/// where a thousand look-ups wait.
class Dns final : public NameService {
 public:
  explicit Dns(Loop& loop) : core_(std::make_shared<detail::DnsCore>(loop)) {}
  ~Dns() { close(); }
  Dns(const Dns&) = delete;
  Dns& operator=(const Dns&) = delete;

  void look_up_addresses(const std::string& host, AddressHandler done) override {
    core_->look_up_addresses(host, std::move(done));
  }
  /// With SIPMSG_NO_SRV, and where the C library has no res_query, there are no records.
  void look_up_srv(const std::string& name, SrvHandler done) override {
    core_->look_up_srv(name, std::move(done));
  }
  /// From now on no handler is called. Twice is fine.
  void close() { core_->close(); }

 private:
  std::shared_ptr<detail::DnsCore> core_;
};

}  // namespace sipmsg
