// registrar: who can be reached where, and until when.
//
// An address-of-record is the name a user is known by; a binding says that requests for it go to
// one contact, one of the user's softphones, until a time. REGISTER makes, renews, lists and
// removes bindings, and a request does all it asks for or nothing (RFC 3261 10.3). The name is the
// caller's: within our own domains the user name, decoded, is the whole address-of-record. A
// contact says where a phone believes it is, the flow of its REGISTER where it can be reached in
// truth; which of the two counts is decided once, by route_to_contact.
//
// RFC 3261 10, RFC 3327 (Path), RFC 5626 (+sip.instance and reg-id). Left out on purpose: contacts
// that are not sip URIs, several flows to one phone that stand in for each other (RFC 5626
// outbound), GRUU, and looking up names: a contact whose host is a name is reached where its
// REGISTER came from.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "hash.hpp"
#include "ini.hpp"
#include "pool.hpp"
#include "writer.hpp"

namespace sipmsg {

/// What a Registrar grants and where its limits are.
struct RegistrarOptions {
  std::uint32_t expires_min_s = 60;       ///< less is refused with 423; 0 removes
  std::uint32_t expires_default_s = 600;  ///< where no time is asked for, or one that is no number
  std::uint32_t expires_max_s = 3600;     ///< more is cut to this
  std::uint32_t max_bindings = 50000;
  std::uint32_t max_bindings_per_user = 10;
  bool nat = true;  ///< look for NAT, and send to the source of the REGISTER where there is one
};

/// One way to reach a user. Lifetime of the views: until the Registrar is next changed.
struct Binding {
  std::string_view contact_uri;  ///< exactly as the client wrote it: clients compare
  std::string_view request_uri;  ///< the same as it may stand in a request line: without headers
  std::string_view instance;     ///< +sip.instance as written, with its quotes; may be empty
  std::string_view path;  ///< Path values for the Route of a request, "<sip:a;lr>, <sip:b;lr>"
  std::string_view user_agent;  ///< what client it is, cut to 64 octets
  std::string_view call_id;     ///< of the REGISTER that made or renewed it, as is `cseq`
  Flow flow;                    ///< where its requests go
  std::uint64_t expires_at_ms = 0;
  std::uint32_t cseq = 0;
  std::uint32_t reg_id = 0;  ///< RFC 5626, 0 for none
  int q = 1000;              ///< preference in thousandths; 1000 where none was given
  bool has_q = false;
  bool nat = false;  ///< the contact is behind a NAT, `flow` leads through it
};

/// What became of a REGISTER, and what its answer must say.
struct RegisterOutcome {
  int status = 200;             ///< 200, 400, 403, 423, 500 or 503
  Error error;                  ///< of a 400: what is wrong, with the offset in the request
  std::string_view reason;      ///< a phrase fit for the status line, "" for the usual one; static
  std::uint32_t expires_s = 0;  ///< for Expires: granted to the first contact; 0: write none
  std::uint32_t min_expires_s = 0;  ///< of a 423: for the Min-Expires header
  std::uint32_t retry_after_s = 0;  ///< of a 503: for the Retry-After header
  std::uint32_t added = 0;          ///< bindings that are new
  std::uint32_t refreshed = 0;      ///< bindings that were there before, or took an old one's place
  std::uint32_t removed = 0;        ///< bindings that are gone
  std::string_view nat_contact;  ///< the first contact that is behind a NAT; view into the request
  SocketAddress nat_address;     ///< where that one can be reached
};

/// Where the requests for a contact go.
struct ContactRoute {
  Flow flow;
  bool nat = false;  ///< a NAT was found
};

namespace detail {

/// Whether a datagram to that address can reach one host somewhere, and not many hosts, none, or
/// the server itself. `::ffff:a.b.c.d` could be any of these in disguise.
inline bool names_one_host(const IpAddress& ip, const IpAddress& source) {
  if (ip.is_unspecified() || (ip.is_loopback() && !source.is_loopback())) return false;
  if (ip.is_ipv4()) return ip.octets[0] < 224;  // multicast, reserved, broadcast
  constexpr std::string_view mapped("\0\0\0\0\0\0\0\0\0\0\xff\xff", 12);
  return ip.octets[0] != 0xff && ip.bytes().substr(0, 12) != mapped;
}

/// A phone behind a NAT writes its private address into the contact, or one of another network. The
/// source's own address with another port is believed: a tool may register for a port of its
/// machine that it does not send from, as sipsak does (Yate sends to the source there).
inline bool seems_behind_nat(const SocketAddress& contact, const SocketAddress& source) {
  if (contact.ip.is_private() && !source.ip.is_private()) return true;
  return contact.ip != source.ip && contact.port != source.port;
}

}  // namespace detail

/// The policy: where the requests for a contact go, given the flow its REGISTER came by.
///
/// Over TCP: back over the connection it came by, always; most phones cannot be connected to.
/// Over UDP: to the contact's own address, by the socket that heard the REGISTER, where it is
/// numeric and believed. Else to the source of the REGISTER: the host is a name, there is a maddr
/// or another transport than UDP, it is no address of a single host, or with `nat` on a NAT is
/// found.
inline ContactRoute route_to_contact(const UriView& contact, const Flow& source, bool nat) {
  ContactRoute route{source, false};
  const auto ip = parse_ip(contact.host);
  if (!ip) return route;
  const SocketAddress address{*ip, contact.port != 0 ? contact.port : std::uint16_t{5060},
                              *ip == source.remote.ip ? source.remote.scope : 0};
  const bool one_host = detail::names_one_host(*ip, source.remote.ip);
  route.nat = nat && (!one_host || detail::seems_behind_nat(address, source.remote));
  const auto transport = contact.parameter("transport");
  const bool other_transport = transport && !equal_ignoring_case(*transport, "udp");
  if (source.transport == Transport::tcp || route.nat || !one_host || other_transport ||
      contact.parameter("maddr")) {
    return route;
  }
  // A socket of the one family cannot send to the other; 0 lets the transport choose.
  if (ip->family != source.remote.ip.family) route.flow.socket = 0;
  route.flow.remote = address;
  return route;
}

/// The contact as seen from outside its NAT, `address` in place of its host and port: what Yate
/// says in X-Real-Contact.
inline void write_contact_outside_nat(Output& out, std::string_view contact_uri,
                                      const SocketAddress& address) {
  const auto uri = parse_uri(contact_uri);
  if (!uri) return;
  out.raw(uri->scheme_text).raw(":");
  if (uri->has_user) out.raw(uri->user).raw("@");
  out.host(to_text(address.ip)).raw(":").number(address.port);
  if (!uri->parameters.empty()) out.raw(";").raw(uri->parameters);
}

/// The bindings of all users.
///
/// Time is the caller's: `now_ms` is a clock that only runs forward. An expired binding is never
/// seen again, whether or not `advance` has taken it out yet. Looking up allocates nothing.
class Registrar {
 public:
  /// Far in the future: the deadline of a registrar without bindings.
  static constexpr std::uint64_t never = UINT64_MAX;
  /// Octets of all texts of one binding together, the user name among them.
  static constexpr std::size_t max_binding_text = 2048;
  /// Parameters and headers of a contact's URI together.
  static constexpr std::size_t max_uri_parts = 32;

  /// `key`: secret, so that nobody can choose names that collide in the table.
  Registrar(const RegistrarOptions& options, const SipHashKey& key)
      : options_(options), hash_(key) {}

  /// Other options from now on. Bindings that are there already stay as they are.
  void set_options(const RegistrarOptions& options) { options_ = options; }
  const RegistrarOptions& options() const { return options_; }

  /// Does what a REGISTER asks, wholly or not at all (RFC 3261 10.3 steps 6 and 7). Without Contact
  /// it asks for nothing but the list. `user` is the address-of-record, decoded, not empty; who may
  /// change it is for the caller to decide first. `request` passed `validate`.
  ///
  /// 400: a contact is malformed or not a sip URI, or `Contact: *` is not alone or has no Expires
  /// of 0. 403: more bindings than one user may have, or one larger than is kept. 423: for too
  /// short a time. 500: overtaken by a later request. 503: the table is full.
  RegisterOutcome update(std::string_view user, const MessageView& request, const Flow& source,
                         std::uint64_t now_ms);

  /// Calls `use(const Binding&)` on each live binding of the user: highest q first, and of equal
  /// ones the latest registered first. `use` may not change the registrar.
  template <class Use>
  void for_each(std::string_view user, std::uint64_t now_ms, Use use) const {
    for (std::uint32_t i = first_of(user); i != none; i = records_.at(i).of_user.next) {
      if (records_.at(i).expires_at_ms > now_ms) use(view(records_.at(i)));
    }
  }
  /// How many live bindings the user has.
  std::size_t count(std::string_view user, std::uint64_t now_ms) const;

  /// The Contact lines of a 200 to REGISTER: all live bindings of the user, each with the seconds
  /// it has left (RFC 3261 10.3 step 8).
  void write_contacts(Output& out, std::string_view user, std::uint64_t now_ms) const;

  /// A TCP connection is closed: the bindings that were reached over it are gone. How many.
  std::size_t remove_connection(std::uint32_t socket);
  /// Whether a live binding is reached over that TCP connection.
  bool has_connection(std::uint32_t socket, std::uint64_t now_ms) const;

  /// Takes out what has expired. Due at `next_deadline`; calls before that do nothing.
  void advance(std::uint64_t now_ms);
  std::uint64_t next_deadline() const { return records_.size() == 0 ? never : next_sweep_ms_; }

  /// Bindings in the table, expired ones that are not swept out yet among them.
  std::size_t size() const { return records_.size(); }
  /// Another number after each change of what `save` writes, so that a file is written only if it
  /// has to be.
  std::uint64_t revision() const { return revision_; }

  /// All live bindings as the text of a file in Yate's grammar, with absolute times; without those
  /// of TCP connections, which do not outlive the program. Whatever octets names and headers hold,
  /// they cannot end their line: they are percent-escaped.
  std::string save(std::uint64_t now_ms, std::uint64_t now_unix_s);

  struct LoadResult {
    std::size_t loaded = 0;
    std::size_t dropped = 0;  ///< expired, malformed, on a TCP connection, refused, beyond a limit
  };
  /// Adds the bindings of a file that `save` or Yate wrote.
  /// `keep(std::string_view user, Flow& flow)` says whether the user is still known. It may choose
  /// the flow's socket, which is the number that the UDP socket had when the file was written, and
  /// 0 in a file of Yate's.
  template <class Keep>
  LoadResult load(const Ini& file, std::uint64_t now_ms, std::uint64_t now_unix_s, Keep keep);

 private:
  static constexpr std::uint32_t none = HashIndex::npos;
  static constexpr std::int16_t no_q = -1;
  static constexpr std::uint64_t sweep_gap_ms = 5000;
  static constexpr std::uint32_t retry_after_s = 30;
  static constexpr std::size_t max_user_agent_size = 64;
  static constexpr std::string_view out_of_order = "Out of order";

  struct Links {
    std::uint32_t next = none;
    std::uint32_t previous = none;
  };

  /// A binding as it is kept: all texts in one block, in the order of the sizes, nothing between
  /// them. The bindings of a user form a list in the order of for_each, and those of a TCP
  /// connection form one in no order; an index finds the first of each list.
  struct Record {
    std::unique_ptr<char[]> text;
    std::uint64_t expires_at_ms = 0;
    Flow flow;
    std::uint32_t cseq = 0;
    std::uint32_t reg_id = 0;
    Links of_user;
    Links of_connection;
    std::int16_t q = no_q;
    std::uint16_t user_size = 0;
    std::uint16_t contact_size = 0;
    std::uint16_t request_uri_size = 0;
    std::uint16_t path_size = 0;
    std::uint16_t call_id_size = 0;
    std::uint8_t instance_size = 0;
    std::uint8_t user_agent_size = 0;
    bool own_request_uri = false;  ///< false: it is the beginning of the contact
    bool nat = false;

    std::string_view user() const { return {text.get(), user_size}; }
    int preference() const { return q == no_q ? 1000 : q; }
    bool over_connection() const { return flow.transport == Transport::tcp; }
  };

  /// One contact of a REGISTER.
  struct Wanted {
    Binding binding;
    UriView uri;
    Parameters parameters;
    std::uint32_t expires_s = 0;  ///< 0: to be removed
    bool renews = false;          ///< it takes the place of a binding that was there
    bool superseded = false;      ///< the same contact stands once more further on
  };
  struct Stored {
    std::uint32_t record;
    bool kept;
  };
  /// What a REGISTER would change, found out before anything is changed.
  struct Plan {
    std::string_view user;
    std::string_view call_id;
    std::uint32_t cseq = 0;
    std::vector<Stored> stored;  ///< the bindings that are there
    std::vector<Wanted> wanted;
    std::string path;
    std::string user_agent;
  };

  static RegisterOutcome refuse(int status, std::string_view reason) {
    RegisterOutcome outcome;
    outcome.status = status;
    outcome.reason = reason;
    return outcome;
  }
  static RegisterOutcome bad_request(Error error) {
    RegisterOutcome outcome = refuse(400, error.text());
    outcome.error = error;
    return outcome;
  }

  // -- what a request asks for --
  RegisterOutcome read(const MessageView& request, const Flow& source, std::uint64_t now_ms,
                       Plan& plan) const;
  static Error read_path(const MessageView& request, std::string& path);
  static Error read_contact(std::string_view element, Wanted& wanted);
  std::uint32_t requested_expiry(const Parameters& contact, const MessageView& request) const;

  // -- what that would change --
  RegisterOutcome plan_removal_of_all(const MessageView& request, Plan& plan) const;
  RegisterOutcome plan_contacts(Plan& plan) const;
  bool plan_contact(std::size_t number, Plan& plan) const;
  bool is_out_of_order(const Record& record, const Plan& plan) const;
  bool is_same(const Wanted& wanted, const Record& record) const;
  RegisterOutcome check_limits(const Plan& plan) const;
  RegisterOutcome commit(const Plan& plan);

  // -- the table --
  std::uint64_t hash_of(std::string_view user) const {
    SipHash hash = hash_;
    hash.update(user);
    return hash.finish();
  }
  std::uint32_t first_of(std::string_view user) const {
    return by_user_.find(hash_of(user),
                         [&](std::uint32_t i) { return records_.at(i).user() == user; });
  }
  std::uint64_t hash_of(std::uint32_t socket) const {
    std::array<std::uint8_t, 4> octets;
    detail::store_little(socket, octets.data());
    return hash_of(detail::as_text(octets.data(), octets.size()));
  }
  std::uint32_t first_of(std::uint32_t socket) const {
    return by_connection_.find(
        hash_of(socket), [&](std::uint32_t i) { return records_.at(i).flow.socket == socket; });
  }
  /// Comparing two URIs takes as many steps as the one has parameters and headers times those of
  /// the other, and one request may ask for hundreds of comparisons: both are limited.
  static bool fits(std::string_view user, const Binding& binding) {
    const std::size_t size = user.size() + binding.contact_uri.size() + binding.instance.size() +
                             binding.path.size() + binding.user_agent.size() +
                             binding.call_id.size();
    std::size_t parts = 0;
    for (char c : binding.contact_uri) parts += c == ';' || c == '&';
    return size <= max_binding_text && parts <= max_uri_parts && binding.instance.size() <= 255 &&
           binding.user_agent.size() <= max_user_agent_size;
  }
  bool has_room(std::string_view user, std::uint64_t now_ms) const {
    return !user.empty() && records_.size() < options_.max_bindings &&
           count(user, now_ms) < options_.max_bindings_per_user;
  }
  static Binding view(const Record& record);
  static void write_texts(Record& record, std::string_view user, const Binding& binding);
  void add(std::string_view user, const Binding& binding);
  void remove(std::uint32_t index);
  void remove_expired(std::string_view user, std::uint64_t now_ms);
  void link_to_user(std::uint32_t index);
  void link_to_connection(std::uint32_t index);
  template <Links Record::*list>
  void insert_between(std::uint32_t previous, std::uint32_t index, std::uint32_t next);
  template <Links Record::*list>
  void take_out(HashIndex& first, std::uint64_t hash, std::uint32_t index);

  // -- the file --
  static void save_binding(std::string& out, const Binding& binding, std::uint64_t expires_unix_s);
  struct SavedTexts {
    std::string instance, path, user_agent, call_id;
  };
  static std::uint64_t load_binding(const IniEntry* begin, const IniEntry* end, SavedTexts& texts,
                                    Binding& binding);

  RegistrarOptions options_;
  SipHash hash_;  ///< with the key mixed in; copied for each look-up
  Slab<Record> records_;
  HashIndex by_user_;
  HashIndex by_connection_;
  std::uint64_t next_sweep_ms_ = never;
  std::uint64_t no_sweep_before_ms_ = 0;
  std::uint64_t revision_ = 0;
};

// ---- what a request asks for ----

inline RegisterOutcome Registrar::update(std::string_view user, const MessageView& request,
                                         const Flow& source, std::uint64_t now_ms) {
  const auto cseq = request.cseq();
  if (!cseq) return bad_request(detail::error_in_header(request, HeaderId::cseq, cseq.error()));
  if (user.empty()) return bad_request(ErrorCode::bad_argument);
  if (!request.has(HeaderId::contact)) return {};
  remove_expired(user, now_ms);
  Plan plan;
  plan.user = user;
  plan.call_id = request.call_id();
  plan.cseq = cseq->number;
  for (std::uint32_t i = first_of(user); i != none; i = records_.at(i).of_user.next) {
    plan.stored.push_back({i, true});
  }
  const bool all = trim(request.header(HeaderId::contact)) == "*";
  RegisterOutcome outcome =
      all ? plan_removal_of_all(request, plan) : read(request, source, now_ms, plan);
  if (outcome.status == 200 && !all) outcome = plan_contacts(plan);
  if (outcome.status == 200) outcome = check_limits(plan);
  if (outcome.status == 200) outcome = commit(plan);
  return outcome;
}

namespace detail {

/// Appends with a blank in place of each control octet, those of folded lines among them.
inline void append_printable(std::string& out, std::string_view text) {
  for (char c : text) {
    const auto octet = static_cast<unsigned char>(c);
    out.push_back(octet < 0x20 || octet == 0x7f ? ' ' : c);
  }
}

/// A contact as it may stand in a request line: without what RFC 3261 19.1.1 allows in a contact
/// only, which are headers (RFC 4475 3.3.14: a Route among them must not be obeyed) and `method`.
inline std::string request_uri_of(const UriView& contact) {
  const std::size_t tail = contact.headers.empty() ? 0 : contact.headers.size() + 1;
  std::string_view whole = contact.text.substr(0, contact.text.size() - tail);
  if (!contact.parameter("method")) return std::string(whole);
  std::string uri(whole.substr(0, whole.size() - contact.parameters.size() - 1));
  for (const Parameter& parameter : Parameters(contact.parameters)) {
    if (equal_ignoring_case(parameter.name, "method")) continue;
    uri.append(";").append(parameter.name);
    if (parameter.has_value) uri.append("=").append(parameter.value);
  }
  return uri;
}

}  // namespace detail

inline RegisterOutcome Registrar::read(const MessageView& request, const Flow& source,
                                       std::uint64_t now_ms, Plan& plan) const {
  if (auto error = read_path(request, plan.path)) return bad_request(error);
  detail::append_printable(plan.user_agent,
                           request.header(HeaderId::user_agent).substr(0, max_user_agent_size));
  // Every binding a user may have can be replaced in one request, but not more than that.
  const std::size_t most = std::size_t{2} * options_.max_bindings_per_user;
  for (std::string_view element : request.values(HeaderId::contact)) {
    if (plan.wanted.size() == most) return refuse(403, "Too many contacts");
    Wanted wanted;
    if (auto error = read_contact(element, wanted)) {
      return bad_request(error.at(request.offset_of(element)));
    }
    const std::uint32_t requested_s = requested_expiry(wanted.parameters, request);
    // RFC 3261 10.3 step 7: an hour is never too brief, whatever the minimum.
    if (requested_s != 0 && requested_s < std::min(options_.expires_min_s, 3600u)) {
      RegisterOutcome outcome = refuse(423, {});
      outcome.min_expires_s = options_.expires_min_s;
      return outcome;
    }
    wanted.expires_s = std::min(requested_s, options_.expires_max_s);
    Binding& binding = wanted.binding;
    binding.expires_at_ms = now_ms + std::uint64_t{1000} * wanted.expires_s;
    binding.call_id = plan.call_id;
    binding.cseq = plan.cseq;
    binding.path = plan.path;
    binding.user_agent = plan.user_agent;
    // With a Path the next hop is the proxy that the REGISTER came through (RFC 3327 5.3).
    ContactRoute route{source};
    if (plan.path.empty()) route = route_to_contact(wanted.uri, source, options_.nat);
    binding.flow = route.flow;
    binding.nat = route.nat;
    if (!fits(plan.user, binding)) return refuse(403, "Contact too large");
    plan.wanted.push_back(wanted);
  }
  return {};
}

/// All Path values as one (RFC 3327). They come back as the Route of requests, so each must be a
/// sip URI that can be routed by.
inline Error Registrar::read_path(const MessageView& request, std::string& path) {
  for (std::string_view element : request.values(HeaderId::path)) {
    const std::size_t offset = request.offset_of(element);
    const auto hop = parse_name_addr(element);
    if (!hop) return hop.error().at(offset);
    if (hop->uri.scheme != UriScheme::sip) return Error(ErrorCode::unsupported_scheme).at(offset);
    if (!path.empty()) path.append(", ");
    detail::append_printable(path, element);
  }
  return {};
}

inline Error Registrar::read_contact(std::string_view element, Wanted& wanted) {
  if (element == "*") return ErrorCode::bad_contact_star;
  const auto contact = parse_name_addr(element);
  if (!contact) return contact.error();
  wanted.uri = contact->uri;
  wanted.parameters = contact->parameters;
  // No other scheme is served, and for sips the last hop would need TLS.
  if (wanted.uri.scheme != UriScheme::sip) return ErrorCode::unsupported_scheme;
  Binding& binding = wanted.binding;
  binding.contact_uri = wanted.uri.text;
  binding.instance = wanted.parameters.find("+sip.instance").value_or(std::string_view());
  if (find_control(binding.instance) != binding.instance.size()) return ErrorCode::bad_parameter;
  // RFC 5626 6: reg-id means nothing without an instance.
  const auto reg_id = parse_digits(wanted.parameters.find("reg-id").value_or(""), 0x7fffffff);
  if (!binding.instance.empty() && reg_id) binding.reg_id = static_cast<std::uint32_t>(*reg_id);
  const auto q = parse_q(wanted.parameters.find("q").value_or(""));
  binding.has_q = q.has_value();
  binding.q = q.value_or(1000);
  return {};
}

/// RFC 3261 10.3 step 7: the contact's own parameter, else the header, else the default; the
/// default also for one that is malformed, so that a mistake does not make a binding that lasts
/// long.
inline std::uint32_t Registrar::requested_expiry(const Parameters& contact,
                                                 const MessageView& request) const {
  const std::uint32_t default_s = std::max(options_.expires_default_s, options_.expires_min_s);
  if (const auto parameter = contact.find("expires")) {
    return MessageView::delta_seconds(*parameter).value_or(default_s);
  }
  return request.expires().value_or(default_s);
}

// ---- what that would change ----

/// `Contact: *` (RFC 3261 10.3 step 6).
inline RegisterOutcome Registrar::plan_removal_of_all(const MessageView& request,
                                                      Plan& plan) const {
  const std::size_t field = request.find(HeaderId::contact);
  const bool alone = request.find_next(field) == request.header_count();
  if (!alone || request.expires() != 0u) {
    return bad_request(
        detail::error_in_header(request, HeaderId::contact, ErrorCode::bad_contact_star));
  }
  for (Stored& stored : plan.stored) {
    if (is_out_of_order(records_.at(stored.record), plan)) return refuse(500, out_of_order);
    stored.kept = false;
  }
  return {};
}

inline RegisterOutcome Registrar::plan_contacts(Plan& plan) const {
  for (std::size_t i = 0; i < plan.wanted.size(); ++i) {
    if (!plan_contact(i, plan)) return refuse(500, out_of_order);
  }
  return {};
}

/// Finds what a contact replaces. False where a stored binding is newer than the request. A contact
/// that stands in the request twice counts as it stands last.
inline bool Registrar::plan_contact(std::size_t number, Plan& plan) const {
  Wanted& wanted = plan.wanted[number];
  for (std::size_t i = 0; i < number; ++i) {
    Wanted& earlier = plan.wanted[i];
    if (earlier.superseded || !equivalent(earlier.uri, wanted.uri)) continue;
    earlier.superseded = true;
    wanted.renews = wanted.renews || earlier.renews;
  }
  for (Stored& stored : plan.stored) {
    const Record& record = records_.at(stored.record);
    if (!stored.kept || !is_same(wanted, record)) continue;
    if (is_out_of_order(record, plan)) return false;
    stored.kept = false;
    wanted.renews = true;
  }
  return true;
}

/// RFC 3261 10.3 step 7: within one Call-ID the CSeq must rise, so that a request which was
/// overtaken by a later one cannot undo it.
inline bool Registrar::is_out_of_order(const Record& record, const Plan& plan) const {
  return record.cseq >= plan.cseq && view(record).call_id == plan.call_id;
}

/// Whether a contact means the binding that is there. RFC 3261 compares the URIs; RFC 5626 6
/// compares instance and reg-id alone where both have them. And a phone that comes with another
/// contact, after a restart on another port, takes the place of its former self: one instance is
/// one phone, also for clients that know nothing of RFC 5626 but the instance.
inline bool Registrar::is_same(const Wanted& wanted, const Record& record) const {
  const Binding stored = view(record);
  const bool same_phone =
      !wanted.binding.instance.empty() && wanted.binding.instance == stored.instance;
  if (wanted.binding.reg_id != 0 && stored.reg_id != 0) {
    return same_phone && wanted.binding.reg_id == stored.reg_id;
  }
  if (same_phone && wanted.expires_s != 0) return true;
  const auto uri = parse_uri(stored.contact_uri);
  return uri && equivalent(*uri, wanted.uri);
}

/// A limit refuses what would add to the bindings, never what renews or removes them.
inline RegisterOutcome Registrar::check_limits(const Plan& plan) const {
  std::size_t after = 0;
  for (const Stored& stored : plan.stored) after += stored.kept;
  for (const Wanted& wanted : plan.wanted) after += !wanted.superseded && wanted.expires_s != 0;
  const std::size_t before = plan.stored.size();
  if (after <= before) return {};
  if (after > options_.max_bindings_per_user) return refuse(403, "Too many contacts");
  if (records_.size() - before + after <= options_.max_bindings) return {};
  RegisterOutcome outcome = refuse(503, "Too many registrations");
  outcome.retry_after_s = retry_after_s;
  return outcome;
}

/// Nothing in here can fail. The first contact is added last, and so counts as the latest.
inline RegisterOutcome Registrar::commit(const Plan& plan) {
  RegisterOutcome outcome;
  for (const Stored& stored : plan.stored) {
    if (stored.kept) continue;
    remove(stored.record);
    ++outcome.removed;
  }
  for (std::size_t i = plan.wanted.size(); i-- > 0;) {
    const Wanted& wanted = plan.wanted[i];
    if (wanted.superseded || wanted.expires_s == 0) continue;
    add(plan.user, wanted.binding);
    outcome.expires_s = wanted.expires_s;
    if (wanted.renews) {
      ++outcome.refreshed;
      --outcome.removed;
    } else {
      ++outcome.added;
    }
    if (!wanted.binding.nat) continue;
    outcome.nat_contact = wanted.binding.contact_uri;
    outcome.nat_address = wanted.binding.flow.remote;
  }
  return outcome;
}

// ---- the table ----

inline Binding Registrar::view(const Record& record) {
  Binding binding;
  const char* next = record.text.get() + record.user_size;
  const auto take = [&next](std::size_t size) {
    const std::string_view text(next, size);
    next += size;
    return text;
  };
  binding.contact_uri = take(record.contact_size);
  binding.request_uri = record.own_request_uri
                            ? take(record.request_uri_size)
                            : binding.contact_uri.substr(0, record.request_uri_size);
  binding.instance = take(record.instance_size);
  binding.path = take(record.path_size);
  binding.user_agent = take(record.user_agent_size);
  binding.call_id = take(record.call_id_size);
  binding.flow = record.flow;
  binding.expires_at_ms = record.expires_at_ms;
  binding.cseq = record.cseq;
  binding.reg_id = record.reg_id;
  binding.q = record.preference();
  binding.has_q = record.q != no_q;
  binding.nat = record.nat;
  return binding;
}

inline void Registrar::write_texts(Record& record, std::string_view user, const Binding& binding) {
  const auto uri = parse_uri(binding.contact_uri);
  const std::string request_uri = detail::request_uri_of(*uri);
  record.own_request_uri = binding.contact_uri.substr(0, request_uri.size()) != request_uri;
  record.request_uri_size = static_cast<std::uint16_t>(request_uri.size());
  record.user_size = static_cast<std::uint16_t>(user.size());
  record.contact_size = static_cast<std::uint16_t>(binding.contact_uri.size());
  record.instance_size = static_cast<std::uint8_t>(binding.instance.size());
  record.path_size = static_cast<std::uint16_t>(binding.path.size());
  record.user_agent_size = static_cast<std::uint8_t>(binding.user_agent.size());
  record.call_id_size = static_cast<std::uint16_t>(binding.call_id.size());
  Slices texts;
  texts.add(user);
  texts.add(binding.contact_uri);
  if (record.own_request_uri) texts.add(request_uri);
  texts.add(binding.instance);
  texts.add(binding.path);
  texts.add(binding.user_agent);
  texts.add(binding.call_id);
  record.text.reset(new char[texts.size()]);
  texts.copy_to(record.text.get());
}

/// The binding fits, and there is room for it.
inline void Registrar::add(std::string_view user, const Binding& binding) {
  const std::uint32_t index = records_.create().index;
  Record& record = records_.at(index);
  write_texts(record, user, binding);
  record.flow = binding.flow;
  record.expires_at_ms = binding.expires_at_ms;
  record.cseq = binding.cseq;
  record.reg_id = binding.reg_id;
  if (binding.has_q) record.q = static_cast<std::int16_t>(binding.q);
  record.nat = binding.nat;
  link_to_user(index);
  if (record.over_connection()) link_to_connection(index);
  next_sweep_ms_ = std::min(next_sweep_ms_, std::max(binding.expires_at_ms, no_sweep_before_ms_));
  ++revision_;
}

inline void Registrar::remove(std::uint32_t index) {
  const Record& record = records_.at(index);
  take_out<&Record::of_user>(by_user_, hash_of(record.user()), index);
  if (record.over_connection()) {
    take_out<&Record::of_connection>(by_connection_, hash_of(record.flow.socket), index);
  }
  records_.destroy(records_.handle_of(index));
  ++revision_;
}

inline void Registrar::remove_expired(std::string_view user, std::uint64_t now_ms) {
  for (std::uint32_t i = first_of(user); i != none;) {
    const std::uint32_t next = records_.at(i).of_user.next;
    if (records_.at(i).expires_at_ms <= now_ms) remove(i);
    i = next;
  }
}

inline void Registrar::link_to_user(std::uint32_t index) {
  const int preference = records_.at(index).preference();
  const std::string_view user = records_.at(index).user();
  const std::uint32_t first = first_of(user);
  std::uint32_t previous = none;
  std::uint32_t next = first;
  while (next != none && records_.at(next).preference() > preference) {
    previous = next;
    next = records_.at(next).of_user.next;
  }
  insert_between<&Record::of_user>(previous, index, next);
  if (previous != none) return;
  if (first != none) by_user_.erase(hash_of(user), first);
  by_user_.insert(hash_of(user), index);
}

/// Behind the first of the connection's list, so that the index need not change.
inline void Registrar::link_to_connection(std::uint32_t index) {
  const std::uint32_t socket = records_.at(index).flow.socket;
  const std::uint32_t first = first_of(socket);
  if (first == none) {
    by_connection_.insert(hash_of(socket), index);
  } else {
    insert_between<&Record::of_connection>(first, index, records_.at(first).of_connection.next);
  }
}

template <Registrar::Links Registrar::Record::*list>
void Registrar::insert_between(std::uint32_t previous, std::uint32_t index, std::uint32_t next) {
  records_.at(index).*list = {next, previous};
  if (previous != none) (records_.at(previous).*list).next = index;
  if (next != none) (records_.at(next).*list).previous = index;
}

/// Takes a record out of its list, and puts the one behind it into the index where it was the
/// first.
template <Registrar::Links Registrar::Record::*list>
void Registrar::take_out(HashIndex& first, std::uint64_t hash, std::uint32_t index) {
  const Links links = records_.at(index).*list;
  if (links.next != none) (records_.at(links.next).*list).previous = links.previous;
  if (links.previous != none) {
    (records_.at(links.previous).*list).next = links.next;
    return;
  }
  first.erase(hash, index);
  if (links.next != none) first.insert(hash, links.next);
}

inline std::size_t Registrar::count(std::string_view user, std::uint64_t now_ms) const {
  std::size_t live = 0;
  for_each(user, now_ms, [&live](const Binding&) { ++live; });
  return live;
}

inline std::size_t Registrar::remove_connection(std::uint32_t socket) {
  const std::size_t before = records_.size();
  for (std::uint32_t i = first_of(socket); i != none; i = first_of(socket)) remove(i);
  return before - records_.size();
}

inline bool Registrar::has_connection(std::uint32_t socket, std::uint64_t now_ms) const {
  for (std::uint32_t i = first_of(socket); i != none; i = records_.at(i).of_connection.next) {
    if (records_.at(i).expires_at_ms > now_ms) return true;
  }
  return false;
}

/// One walk over the table when something may have expired, but not more often than the gap: a
/// table of 50,000 costs half a millisecond, and one of two softphones wakes nobody in between.
/// Bindings last differently long, so that a queue would have to be sorted; and as nobody sees an
/// expired binding anyway, being late costs only its memory.
inline void Registrar::advance(std::uint64_t now_ms) {
  if (now_ms < next_deadline()) return;
  std::uint64_t earliest_ms = never;
  records_.for_each([&](Handle handle, const Record& record) {
    if (record.expires_at_ms <= now_ms) {
      remove(handle.index);
    } else {
      earliest_ms = std::min(earliest_ms, record.expires_at_ms);
    }
  });
  no_sweep_before_ms_ = now_ms + sweep_gap_ms;
  next_sweep_ms_ = std::max(earliest_ms, no_sweep_before_ms_);
}

namespace detail {

/// 1, 0, 0.5, 0.25, 0.125
inline void write_q(Output& out, int thousandths) {
  out.raw(thousandths == 1000 ? "1" : "0");
  if (thousandths == 1000 || thousandths == 0) return;
  out.raw(".");
  for (int weight = 100; thousandths > 0; thousandths %= weight, weight /= 10) {
    out.number(static_cast<std::uint64_t>(thousandths / weight));
  }
}

}  // namespace detail

inline void Registrar::write_contacts(Output& out, std::string_view user,
                                      std::uint64_t now_ms) const {
  for_each(user, now_ms, [&](const Binding& binding) {
    out.raw("Contact: <").raw(binding.contact_uri).raw(">;expires=");
    out.number((binding.expires_at_ms - now_ms + 999) / 1000);
    if (binding.has_q) {
      out.raw(";q=");
      detail::write_q(out, binding.q);
    }
    if (!binding.instance.empty()) out.raw(";+sip.instance=").raw(binding.instance);
    if (binding.reg_id != 0) out.raw(";reg-id=").number(binding.reg_id);
    out.raw("\r\n");
  });
}

// ---- the file ----

namespace detail {

/// Appends with everything escaped that would end a line, a section's name or the escaping itself,
/// be trimmed away, name a run parameter or a directive ($), or continue a line (the backslash).
inline void append_ini_escaped(std::string& out, std::string_view text) {
  constexpr std::string_view signs = "%]$\\";
  constexpr char hex[] = "0123456789ABCDEF";
  for (char c : text) {
    const auto octet = static_cast<unsigned char>(c);
    if (octet > 0x20 && octet != 0x7f && signs.find(c) == std::string_view::npos) {
      out.push_back(c);
    } else {
      out.append({'%', hex[octet >> 4], hex[octet & 15]});
    }
  }
}

inline void append_ini_text(std::string& out, std::string_view key, std::string_view text) {
  if (text.empty()) return;
  out.append(key).append("=");
  append_ini_escaped(out, text);
  out.append("\n");
}

inline void append_ini_number(std::string& out, std::string_view key, std::uint64_t number) {
  out.append(key).append("=");
  append_number(out, number);
  out.append("\n");
}

}  // namespace detail

inline std::string Registrar::save(std::uint64_t now_ms, std::uint64_t now_unix_s) {
  std::string out =
      "; Who is registered where. Written by the registrar, read at the next start.\n";
  records_.for_each([&](Handle handle, const Record& first) {
    if (first.of_user.previous != none) return;
    bool named = false;
    for (std::uint32_t i = handle.index; i != none; i = records_.at(i).of_user.next) {
      const Record& record = records_.at(i);
      if (record.over_connection() || record.expires_at_ms <= now_ms) continue;
      if (!named) {
        out.append("\n[");
        detail::append_ini_escaped(out, record.user());
        out.append("]\n");
        named = true;
      }
      save_binding(out, view(record), now_unix_s + (record.expires_at_ms - now_ms + 999) / 1000);
    }
  });
  return out;
}

/// `driver`, `data` and `expires` are Yate's; `data` begins a further binding of the same user.
inline void Registrar::save_binding(std::string& out, const Binding& binding,
                                    std::uint64_t expires_unix_s) {
  // A sip URI has no octet that means something here, and Yate knows no escapes of ours.
  out.append("driver=sip\ndata=sip/").append(binding.contact_uri).append("\n");
  detail::append_ini_number(out, "expires", expires_unix_s);
  out.append("address=").append(to_text(binding.flow.remote)).append("\n");
  detail::append_ini_number(out, "socket", binding.flow.socket);
  if (binding.flow.remote.scope != 0) {
    detail::append_ini_number(out, "scope", binding.flow.remote.scope);
  }
  if (binding.nat) out.append("nat=true\n");
  if (binding.has_q) detail::append_ini_number(out, "q", static_cast<std::uint64_t>(binding.q));
  detail::append_ini_text(out, "instance", binding.instance);
  if (binding.reg_id != 0) detail::append_ini_number(out, "reg_id", binding.reg_id);
  detail::append_ini_text(out, "path", binding.path);
  detail::append_ini_text(out, "device", binding.user_agent);
  detail::append_ini_text(out, "call_id", binding.call_id);
  detail::append_ini_number(out, "cseq", binding.cseq);
}

/// Reads one binding; `texts` keeps what the binding points to. Returns when it expires, in seconds
/// since 1970, 0 for one that cannot be used.
inline std::uint64_t Registrar::load_binding(const IniEntry* begin, const IniEntry* end,
                                             SavedTexts& texts, Binding& binding) {
  const auto text = [=](std::string_view key) {
    for (const IniEntry* entry = begin; entry != end; ++entry) {
      if (entry->key == key) return std::string_view(entry->value);
    }
    return std::string_view();
  };
  const auto number = [&text](std::string_view key, std::uint64_t maximum) {
    return static_cast<std::uint32_t>(parse_digits(text(key), maximum).value_or(0));
  };
  const auto printable = [&text](std::string_view key) {
    std::string out;
    detail::append_printable(out, unescape(text(key)));
    return out;
  };

  constexpr std::string_view driver = "sip/";
  const std::string_view data = text("data");
  if (data.substr(0, driver.size()) != driver) return 0;
  const auto uri = parse_uri(data.substr(driver.size()));
  if (!uri || uri->scheme != UriScheme::sip) return 0;
  if (parse_boolean(text("connection_reliable")).value_or(false)) return 0;
  binding.contact_uri = uri->text;

  SocketAddress& remote = binding.flow.remote;
  if (text("address").empty()) {  // Yate writes the address it sends to into the URI
    remote.ip = parse_ip(uri->host).value_or(IpAddress());
    remote.port = uri->port != 0 ? uri->port : std::uint16_t{5060};
  } else {
    remote = parse_socket_address(text("address")).value();
    remote.scope = number("scope", UINT32_MAX);
    binding.flow.socket = number("socket", UINT32_MAX);
  }
  if (remote.port == 0 || !detail::names_one_host(remote.ip, remote.ip)) return 0;

  texts.instance = printable("instance");
  texts.path = printable("path");
  texts.user_agent = printable("device").substr(0, max_user_agent_size);
  texts.call_id = printable("call_id");
  binding.instance = texts.instance;
  binding.path = texts.path;
  binding.user_agent = texts.user_agent;
  binding.call_id = texts.call_id;
  binding.cseq = number("cseq", 0x7fffffff);
  binding.reg_id = number("reg_id", 0x7fffffff);
  binding.has_q = !text("q").empty();
  if (binding.has_q) binding.q = static_cast<int>(number("q", 1000));
  binding.nat = text("nat") == "true";
  return parse_digits(text("expires"), INT64_MAX).value_or(0);
}

template <class Keep>
Registrar::LoadResult Registrar::load(const Ini& file, std::uint64_t now_ms,
                                      std::uint64_t now_unix_s, Keep keep) {
  LoadResult result;
  for (const IniSection& section : file.sections()) {
    const std::string user = unescape(section.name);
    // From the last to the first, so that the first counts as the latest registered again.
    const IniEntry* const begin = section.entries.data();
    const IniEntry* end = begin + section.entries.size();
    for (const IniEntry* entry = end; entry-- != begin;) {
      if (entry->key != "data") continue;
      SavedTexts texts;
      Binding binding;
      const std::uint64_t expires_s = load_binding(entry, end, texts, binding);
      end = entry;
      if (expires_s <= now_unix_s || !fits(user, binding) || !has_room(user, now_ms) ||
          !keep(std::string_view(user), binding.flow)) {
        ++result.dropped;
        continue;
      }
      const std::uint64_t left_s =
          std::min<std::uint64_t>(expires_s - now_unix_s, options_.expires_max_s);
      binding.expires_at_ms = now_ms + 1000 * left_s;
      add(user, binding);
      ++result.loaded;
    }
  }
  return result;
}

}  // namespace sipmsg
