// locate: from the host in a URI to the addresses where a request is tried, in order.
//
// RFC 3263 4 for a client without TLS: which transport, which port, which address, and which next
// where one fails. RFC 2782 says how SRV records are ordered. Whoever can look up names stands
// behind NameService: libuv and the system's resolver in dns.hpp, a table in the tests. The reply
// to an SRV query is read here too (RFC 1035 4.1), because it comes from strangers.
//
// Left out on purpose: NAPTR (RFC 3263 4.1). Its one use is to let a domain choose among TLS, TCP
// and UDP, and to a client without TLS it can say no more than the SRV records do, which a domain
// must have anyway; few have NAPTR, and each message would wait for one more answer. So we ask for
// SRV of the transports we speak, as the RFC has it for domains without NAPTR. Also left out:
// IDNA, and remembering answers, which is the resolver's work.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "address.hpp"
#include "hash.hpp"

namespace sipmsg {

/// Where a service can be had (RFC 2782). A lower priority is tried first; among equals the weight
/// is the chance to be the first. The target has no final dot; "." alone means: no such service.
struct SrvRecord {
  std::uint16_t priority = 0;
  std::uint16_t weight = 0;
  std::uint16_t port = 0;
  std::string target;
};

/// Looks up names. Each call leads to exactly one call of its handler, later, never from inside;
/// to none once the service is closed or gone.
class NameService {
 public:
  using AddressHandler = std::function<void(Error, const std::vector<IpAddress>&)>;
  using SrvHandler = std::function<void(Error, const std::vector<SrvRecord>&)>;

  /// A and AAAA of `host`, the preferred first. Error: `unknown_host`, or the network's.
  virtual void look_up_addresses(const std::string& host, AddressHandler done) = 0;
  /// SRV of `name` ("_sip._udp.example.org"), in any order. That there are none is no error.
  virtual void look_up_srv(const std::string& name, SrvHandler done) = 0;

 protected:
  ~NameService() = default;
};

/// How many next hops are found at most.
inline constexpr std::size_t max_next_hops = 10;
/// How many servers of a domain have their addresses looked up, the preferred ones.
inline constexpr std::size_t max_srv_targets = 8;
/// How many SRV records are read of one answer.
inline constexpr std::size_t max_srv_records = 32;

/// The next hops in the order to be tried: at least one, at most `max_next_hops`, none twice, their
/// `socket` 0; or the error that left none.
using LocateHandler = std::function<void(Error, std::vector<Flow>)>;

/// Puts the records in the order to be tried: by priority, and by chance among equals, in
/// proportion to their weights (RFC 2782, usage rules).
inline void order_srv(std::vector<SrvRecord>& records, Random& random) {
  // Those of weight 0 first in their priority, so that they have a small chance, too.
  const auto is_before = [](const SrvRecord& a, const SrvRecord& b) {
    return a.priority != b.priority ? a.priority < b.priority : a.weight < b.weight;
  };
  for (auto next = records.begin(); next != records.end(); ++next) {
    std::rotate(std::upper_bound(records.begin(), next, *next, is_before), next, next + 1);
  }
  for (auto first = records.begin(); first != records.end(); ++first) {
    std::uint64_t sum = 0;
    auto last = first;
    for (; last != records.end() && last->priority == first->priority; ++last) sum += last->weight;
    const std::uint64_t drawn = random.next() % (sum + 1);
    auto chosen = first;
    for (std::uint64_t running = chosen->weight; running < drawn; running += chosen->weight) {
      ++chosen;
    }
    std::rotate(first, chosen, chosen + 1);  // the others keep their order
  }
}

// ---- the reply to an SRV query -----------------------------------------------------------------

namespace detail {

inline constexpr std::size_t max_host_text = 253;  // 255 octets on the wire (RFC 1035 2.3.4)

/// Reads a DNS message from front to back (RFC 1035 4.1). The first thing that does not fit makes
/// it fail; from then on all numbers are 0 and all names empty.
class DnsReader {
 public:
  explicit DnsReader(std::string_view octets) : octets_(octets) {}

  bool has_failed() const { return has_failed_; }
  std::size_t position() const { return position_; }

  void skip(std::size_t count) {
    has_failed_ = has_failed_ || count > octets_.size() - position_;
    if (!has_failed_) position_ += count;
  }
  std::uint16_t number_16() {
    const std::size_t begin = position_;
    skip(2);
    return has_failed_ ? std::uint16_t{0} : load_big<std::uint16_t>(as_octets(octets_) + begin);
  }
  void skip_name() {
    while (const std::size_t label = number_8()) {
      if (is_pointer(label)) return skip(1);
      skip_label(label);
    }
  }
  std::string name();

 private:
  static constexpr std::size_t max_label = 63;
  static constexpr bool is_pointer(std::size_t length) { return length >= 0xc0; }

  void skip_label(std::size_t size) {
    has_failed_ = has_failed_ || size > max_label;
    skip(size);
  }
  std::size_t number_8() {
    const std::size_t begin = position_;
    skip(1);
    return has_failed_ ? 0 : static_cast<unsigned char>(octets_[begin]);
  }

  std::string_view octets_;
  std::size_t position_ = 0;
  bool has_failed_ = false;
};

/// A name with dots between its labels, "." for the root. What no host's name holds comes out as
/// '?', a dot within a label above all.
inline std::string DnsReader::name() {
  std::string text;
  std::size_t begin = position_;  // of the octets that are being read
  std::size_t end = 0;            // of the name, once a pointer has led away from it
  while (const std::size_t label = number_8()) {
    if (is_pointer(label)) {
      const std::size_t target = (label & 0x3f) << 8 | number_8();
      if (end == 0) end = position_;
      // Back only, to before all that was read of this name: so it ends (RFC 1035 4.1.4, "a prior
      // occurrence").
      has_failed_ = has_failed_ || target >= begin;
      if (!has_failed_) begin = position_ = target;
      continue;
    }
    const std::size_t first = position_;
    skip_label(label);
    has_failed_ = has_failed_ || text.size() + label > max_host_text;
    if (has_failed_) break;
    for (char c : octets_.substr(first, label)) {
      text.push_back(is_char(c, char_host) && c != '.' ? c : '?');
    }
    text.push_back('.');
  }
  if (has_failed_) return {};
  if (end != 0) position_ = end;
  if (text.size() > 1) text.pop_back();
  return text.empty() ? "." : text;
}

}  // namespace detail

/// The SRV records in a reply of the DNS, at most `max_srv_records`; none where the name does not
/// exist, or has none. Records whose target cannot be a host's name are left out. Whether the reply
/// belongs to the question is for the resolver to see, which also follows aliases: the owners'
/// names are not looked at. Error: `bad_dns_answer`, with the offset where it went wrong.
inline Result<std::vector<SrvRecord>> parse_srv_answer(std::string_view octets) {
  constexpr std::uint16_t is_response = 0x8000;
  constexpr std::uint16_t response_code = 0x000f;
  constexpr std::uint16_t no_such_name = 3;
  constexpr std::uint16_t type_srv = 33;
  constexpr std::uint16_t class_internet = 1;
  const auto failed_at = [](std::size_t offset) {
    return Error(ErrorCode::bad_dns_answer, static_cast<std::int32_t>(offset));
  };

  detail::DnsReader reader(octets);
  reader.skip(2);  // ID
  const std::uint16_t flags = reader.number_16();
  std::size_t questions = reader.number_16();
  std::size_t answers = reader.number_16();
  reader.skip(4);  // how many there are in the sections that are not read
  const unsigned code = flags & response_code;
  if (reader.has_failed() || !(flags & is_response)) return failed_at(0);
  std::vector<SrvRecord> records;
  if (code == no_such_name) return records;
  if (code != 0) return failed_at(2);

  for (; questions > 0 && !reader.has_failed(); --questions) {
    reader.skip_name();
    reader.skip(4);  // QTYPE, QCLASS
  }
  for (; answers > 0 && records.size() < max_srv_records && !reader.has_failed(); --answers) {
    reader.skip_name();
    const std::uint16_t type = reader.number_16();
    const std::uint16_t record_class = reader.number_16();
    reader.skip(4);  // TTL
    const std::size_t size = reader.number_16();
    const std::size_t begin = reader.position();
    if (type != type_srv || record_class != class_internet) {
      reader.skip(size);
      continue;
    }
    SrvRecord record;
    record.priority = reader.number_16();
    record.weight = reader.number_16();
    record.port = reader.number_16();
    record.target = reader.name();
    if (reader.position() - begin != size) return failed_at(begin);
    if (all_of_class(record.target, char_host)) records.push_back(std::move(record));
  }
  if (reader.has_failed()) return failed_at(reader.position());
  return records;
}

// ---- from a URI to its next hops ---------------------------------------------------------------

namespace detail {

/// What a URI says about where to go.
struct LocateTarget {
  std::string host;
  IpAddress ip;            ///< of a numeric host
  std::uint16_t port = 0;  ///< 0 where none is written
  std::optional<Transport> transport;
};

inline constexpr std::uint16_t default_sip_port = 5060;

/// A host that may be given to the resolver. Its last label is not a number: RFC 3261 25.1 has it
/// begin with a letter, and the system's resolver would take "127.1" and "0x7f.1" for addresses.
/// Nothing stricter, for names of containers begin with digits.
inline bool is_host_name(std::string_view host) {
  if (host.size() > max_host_text || !all_of_class(host, char_host)) return false;
  if (host.back() == '.') host.remove_suffix(1);
  std::string_view label = host.substr(host.rfind('.') + 1);  // all of it where there is no dot
  if (label.empty() || all_of_class(label, char_digit)) return false;
  if (label.size() < 2 || label[0] != '0' || to_lower(label[1]) != 'x') return true;
  return skip_class(label, char_hex, 2) != label.size();
}

/// RFC 3263 4: TARGET is the value of maddr, or else the host.
inline Result<LocateTarget> locate_target(const UriView& uri) {
  if (uri.scheme != UriScheme::sip) return ErrorCode::unsupported_scheme;
  LocateTarget target;
  if (const auto name = uri.parameter("transport")) {
    target.transport = parse_transport(*name);
    if (!target.transport) return ErrorCode::unsupported_transport;
  }
  const std::string_view host = uri.parameter("maddr").value_or(uri.host);
  target.port = uri.port;
  if (const auto ip = parse_ip(host)) {
    target.ip = *ip;
  } else if (is_host_name(host)) {
    target.host = host;
  } else {
    return ErrorCode::bad_host;
  }
  return target;
}

/// One search for next hops. It lives in the handlers that NameService holds, and so ends with it.
class LocateRun : public std::enable_shared_from_this<LocateRun> {
 public:
  LocateRun(LocateTarget target, NameService& names, Random& random, LocateHandler done)
      : target_(std::move(target)),
        names_(names),
        random_(next_key(random)),  // its own, for the caller's may be gone when answers come
        done_(std::move(done)) {}

  void start() {
    // A name without dot is one of this network or machine: the system's resolver completes it, or
    // finds it in a file, where SRV records do not stand.
    if (target_.port != 0 || target_.host.find('.') == std::string::npos) return ask_host();
    ask_srv(target_.transport.value_or(Transport::udp));
  }

 private:
  /// A host whose addresses are asked for, and what came of it.
  struct Server {
    std::string host;
    std::uint16_t port;
    std::vector<IpAddress> addresses;
    Error error;
  };

  void ask_srv(Transport transport) {
    transport_ = transport;
    std::string name("_sip._");
    name.append(transport_parameter(transport)).append(".").append(target_.host);
    names_.look_up_srv(
        name, [self = shared_from_this()](Error error, const std::vector<SrvRecord>& records) {
          self->on_srv(error, records);
        });
  }
  void on_srv(Error error, const std::vector<SrvRecord>& records);
  /// The host itself, at its port or the default one (RFC 3263 4.2).
  void ask_host() {
    transport_ = target_.transport.value_or(Transport::udp);
    servers_.push_back({target_.host, target_.port != 0 ? target_.port : default_sip_port, {}, {}});
    ask_addresses();
  }
  void ask_addresses();
  void finish();

  LocateTarget target_;
  NameService& names_;  ///< there whenever one of its handlers is called
  Random random_;
  LocateHandler done_;
  Transport transport_ = Transport::udp;
  bool udp_is_declined_ = false;
  std::vector<Server> servers_;  ///< in the order to be tried
  std::size_t waiting_ = 0;      ///< answers about addresses that are still to come
};

/// RFC 3263 4.1 has a client without NAPTR records ask for the SRV records of each transport it
/// speaks, and use whichever it likes of those that exist. UDP is the one we like: a domain without
/// any records would get UDP, too.
inline void LocateRun::on_srv(Error error, const std::vector<SrvRecord>& records) {
  std::vector<SrvRecord> usable;
  for (const SrvRecord& record : records) {
    if (is_host_name(record.target) && record.port != 0) usable.push_back(record);
  }
  if (!usable.empty()) {
    order_srv(usable, random_);
    if (usable.size() > max_srv_targets) usable.resize(max_srv_targets);
    for (SrvRecord& record : usable) {
      servers_.push_back({std::move(record.target), record.port, {}, {}});
    }
    return ask_addresses();
  }
  // A resolver that fails or knows no SRV would only make us wait again for TCP. The host's address
  // is often in a file, or known to another service than the DNS, so that is still tried.
  const bool is_declined = !error && !records.empty();  // "." says so (RFC 2782, Target)
  if (!error && !target_.transport && transport_ == Transport::udp) {
    udp_is_declined_ = is_declined;
    return ask_srv(Transport::tcp);
  }
  if (is_declined || udp_is_declined_) return done_(ErrorCode::unsupported_transport, {});
  ask_host();
}

inline void LocateRun::ask_addresses() {
  waiting_ = servers_.size();
  for (std::size_t i = 0; i < servers_.size(); ++i) {
    names_.look_up_addresses(
        servers_[i].host,
        [self = shared_from_this(), i](Error error, const std::vector<IpAddress>& addresses) {
          self->servers_[i].error = error;
          self->servers_[i].addresses = addresses;
          if (--self->waiting_ == 0) self->finish();
        });
  }
}

inline void LocateRun::finish() {
  std::vector<Flow> hops;
  Error error = ErrorCode::unknown_host;
  for (const Server& server : servers_) {
    if (server.error) error = server.error;
    for (const IpAddress& ip : server.addresses) {
      Flow hop;
      hop.transport = transport_;
      hop.remote.ip = ip;
      hop.remote.port = server.port;
      // 0.0.0.0 stands in filtering resolvers' answers and would mean this very machine.
      if (ip.is_unspecified() || hops.size() >= max_next_hops) continue;
      if (std::find(hops.begin(), hops.end(), hop) == hops.end()) hops.push_back(hop);
    }
  }
  if (!hops.empty()) error = {};
  done_(error, std::move(hops));
}

}  // namespace detail

/// Finds the next hops for a request to `uri`, which may be the Request-URI, a Route or that of an
/// outbound proxy (RFC 3263 4). For a numeric host `done` is called from inside, so that sending to
/// an address stays one step; for a name it is called later, unless `names` is closed before.
/// `names` may be null and then only numeric hosts are located. `uri` and `random` are needed
/// during the call only.
///
/// Errors now, after which `done` is not called: `unsupported_scheme` for all but sip;
/// `unsupported_transport`; `bad_host`; `bad_address` for a name without `names`. Errors later:
/// `unknown_host`; `unsupported_transport` where the domain declares that it offers none of ours;
/// what `names` says.
inline Error locate(const UriView& uri, NameService* names, Random& random, LocateHandler done) {
  auto target = detail::locate_target(uri);
  if (!target) return target.error();
  if (target->ip) {
    Flow hop;
    hop.transport = target->transport.value_or(Transport::udp);
    hop.remote.ip = target->ip;
    hop.remote.port = target->port != 0 ? target->port : detail::default_sip_port;
    done({}, {hop});
    return {};
  }
  if (names == nullptr) return ErrorCode::bad_address;
  std::make_shared<detail::LocateRun>(std::move(*target), *names, random, std::move(done))->start();
  return {};
}

}  // namespace sipmsg
