// settings: what the configuration files say, in plain structs with units in their names.
//
// ysipchan.conf says how the server works and regfile.conf who its users are, as in Yate. One table
// lists every key: where its value goes, what it may be, or why it has no effect here. Reading, the
// search for the nearest name of a misspelt key, and the tests of documentation and samples all
// work from that table.
//
// Yate falls back to a default without a word. Here a value that cannot be used is named with file,
// line, what was found and what is allowed: a warning, where the default is used instead, so that a
// directory that works with Yate works here too; an error, where nothing sensible can be done.
// Left out on purpose: reading files (`ini` with an IniSource does), and the files of modules.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "address.hpp"
#include "digest.hpp"
#include "ini.hpp"

namespace sipmsg {

// ---- the settings ------------------------------------------------------------------------------

/// One socket to listen on: `[general]` makes the first, each `[listener NAME]` one more.
struct ListenerSettings {
  std::string name = "general";
  bool enable = true;  ///< one that is off is listed all the same
  Transport type = Transport::udp;
  std::string address = "0.0.0.0";  ///< numeric; one of IPv6 may end in %INTERFACE
  std::uint16_t port = 5060;        ///< 0: any that is free
  bool ipv6 = false;                ///< the address is one of IPv6
  std::uint32_t max_datagram_octets = 65528;
  std::uint32_t max_stream_message_octets = 65528;
  std::uint32_t receive_buffer_octets = 0;  ///< of a UDP socket; 0: as the system has it
  std::uint32_t backlog = 5;                ///< connections not yet accepted; 0: the system's most
  std::uint32_t tcp_idle_s = 120;           ///< a connection idle for so long is closed
  bool answer_to_source = true;  ///< answers go where the packet came from, whatever Via says
  std::string role;              ///< handed to handlers with what comes in here
};

struct TransportSettings {
  std::uint32_t tcp_keepalive_s = 120;  ///< between pings on connections made by us; 0: none
  std::uint32_t tcp_write_limit_octets = 262144;  ///< waiting on one connection; more is refused
  std::uint32_t max_connections = 10000;
  std::uint32_t max_connections_per_address = 1000;
};

/// RFC 3261 17.1.2.2; T2 is four seconds.
struct TimerSettings {
  std::uint32_t t1_ms = 500;
  std::uint32_t t4_ms = 5000;
};

struct FloodSettings {
  bool protection = true;
  std::uint32_t events = 100;        ///< so many requests without an idle moment; 0: never a flood
  std::uint32_t retry_after_s = 30;  ///< in the 503 that a reached limit is answered with
};

struct RegistrarSettings {
  bool enable = true;
  bool auth_required = true;
  bool accept_any_user = false;  ///< users need not be listed; no key sets this
  bool autocreate = false;       ///< regfile.conf: the same, by the owner's wish
  std::uint32_t expires_min_s = 60;
  std::uint32_t expires_default_s = 600;
  std::uint32_t expires_max_s = 3600;
  bool nat = true;                   ///< a private Contact is replaced by the source address
  std::uint32_t nat_refresh_s = 25;  ///< asked of clients behind a NAT; 0: nothing is asked
  std::uint32_t max_bindings = 50000;
  std::uint32_t max_bindings_per_user = 10;
  std::string file;  ///< where bindings are kept over a restart; empty: nowhere
};

struct MessageSettings {
  bool enable = false;
  bool auth_required = true;
  bool async_process = true;         ///< handlers run in the thread pool
  std::uint16_t auth_code = 401;     ///< or 407
  std::uint16_t offline_code = 405;  ///< the answer for a user without bindings
  std::uint32_t handler_deadline_s = 10;
  std::uint32_t max_pending = 1000;  ///< messages that wait for handlers
};

/// Messages for users who cannot be reached; a module of the program keeps them.
struct OfflineSettings {
  bool enable = false;
  std::string spool;                    ///< the directory they are kept in; empty: memory
  std::uint32_t max_messages = 100;     ///< for one user
  std::uint32_t max_per_sender = 1000;  ///< of one sender
  std::uint64_t max_octets = 67108864;  ///< in all
  std::uint32_t expires_s = 604800;     ///< unless their sender wants a shorter time
  bool notify = false;                  ///< tells senders who ask for it what became of them
};

/// In which form handlers get a body that is no text, as parameter `xsip_body`.
enum class BodyEncoding : std::uint8_t { base64, hex, hexs, raw };

/// One user of regfile.conf.
struct UserSettings {
  std::string name;
  bool has_password = false;
  std::string password;  ///< where it is there and empty, everybody is let in
  std::vector<std::string> alternatives;
  std::vector<std::pair<std::string, std::string>> parameters;  ///< all other keys, in order
};

namespace detail {

inline DigestOptions default_digest() {
  DigestOptions digest;
  digest.realm = "Yate";  // accounts made for Yate may name it
  // MD5 alone: whether every softphone in use copes with a second challenge is not known yet. A
  // client that does not would be locked out by the stronger one (RFC 8760 2.4 hopes otherwise).
  digest.algorithms = {DigestAlgorithm{DigestHash::md5, false}};
  return digest;
}

}  // namespace detail

/// Everything the two files can say. As constructed: what Yate does without them.
struct Settings {
  std::vector<ListenerSettings> listeners = {ListenerSettings{}};
  std::string user_agent = "sipmsg/" SIPMSG_VERSION;
  std::uint32_t max_forwards = 20;
  bool trace = false;                ///< every message is logged
  std::vector<std::string> domains;  ///< lower case; "*": any; empty: found out at start
  std::uint32_t max_transactions = 100000;
  bool options_enable = true;
  std::uint32_t route_priority = 100;  ///< of the users of regfile.conf among the handlers
  BodyEncoding body_encoding = BodyEncoding::base64;
  bool initial_headers = false;  ///< handlers get the headers of transport too
  bool generate = false;         ///< applications may send messages by `xsip.generate`
  DigestOptions digest = detail::default_digest();
  TransportSettings transport;
  TimerSettings timers;
  FloodSettings flood;
  RegistrarSettings registrar;
  MessageSettings message;
  OfflineSettings offline;
  std::vector<UserSettings> users;
};

/// What `sipmsg serve` works with where no directory is given: reached from this machine only, any
/// user may register with any password, messages are on.
inline Settings open_settings() {
  Settings settings;
  settings.listeners.clear();
  for (Transport type : {Transport::udp, Transport::tcp}) {
    ListenerSettings listener;
    listener.name = std::string(transport_parameter(type));
    listener.type = type;
    listener.address = "127.0.0.1";
    listener.answer_to_source = false;  // no Yate to be like: RFC 3261 18.2.2 and RFC 3581
    settings.listeners.push_back(std::move(listener));
  }
  settings.domains = {"*"};
  settings.registrar.auth_required = false;
  settings.registrar.accept_any_user = true;
  settings.message.enable = true;
  settings.message.auth_required = false;
  return settings;
}

// ---- the table of keys -------------------------------------------------------------------------

enum class SettingKind : std::uint8_t {
  boolean,
  number,
  keyword,
  text,
  list,
  algorithms,
  without_effect,
};

/// What becomes of a number that is none of those allowed.
enum class OutOfRange : std::uint8_t { use_default, clamp, refuse };

/// Where the value of a key goes: the settings, or the listener whose section is read.
struct SettingTarget {
  Settings& settings;
  ListenerSettings& listener;
};

/// One key. `section` is as in the file, with "listener" for each `[listener NAME]` (whose keys may
/// stand in `[general]` too), and "regfile" for `[general]` of regfile.conf. The key "*" stands for
/// every key of its section.
struct SettingKey {
  using Number = std::uint64_t(const SettingTarget&);
  using SetNumber = void(const SettingTarget&, std::uint64_t);
  using Text = std::string&(const SettingTarget&);
  using List = std::vector<std::string>&(const SettingTarget&);

  constexpr SettingKey(std::string_view in_section, std::string_view name, SettingKind what,
                       Number* get = nullptr, SetNumber* set = nullptr)
      : section(in_section), key(name), number(get), set_number(set), kind(what) {}
  constexpr SettingKey(std::string_view in_section, std::string_view name, Text* field)
      : section(in_section), key(name), text(field), kind(SettingKind::text) {}
  constexpr SettingKey(std::string_view in_section, std::string_view name, List* field)
      : section(in_section), key(name), list(field), kind(SettingKind::list) {}

  std::string_view section;
  std::string_view key;
  std::string_view reason;  ///< why it has no effect
  std::uint64_t minimum = 0;
  std::uint64_t maximum = 0;
  const IniKeyword* keywords = nullptr;
  union {            // which one says `kind`
    Number* number;  ///< booleans and keywords too
    Text* text;
    List* list;
  };
  SetNumber* set_number = nullptr;
  std::uint8_t keyword_count = 0;
  SettingKind kind;
  OutOfRange out_of_range = OutOfRange::clamp;
  bool may_be_empty = true;
};

namespace detail {

template <class Field>
Settings& setting_owner(const SettingTarget& target, Field Settings::*) {
  return target.settings;
}
template <class Field>
ListenerSettings& setting_owner(const SettingTarget& target, Field ListenerSettings::*) {
  return target.listener;
}

/// The member that a path of member pointers leads to, such as timers, t1_ms.
template <auto first, auto... rest>
auto& setting_field(const SettingTarget& target) {
  return ((setting_owner(target, first).*first).*....*rest);
}

/// Builds the rows of the table. The template arguments are the path to the field.
template <auto... path>
struct SettingRow {
  using Field = std::remove_reference_t<decltype(setting_field<path...>(
      std::declval<const SettingTarget&>()))>;

  static std::uint64_t get(const SettingTarget& target) {
    return static_cast<std::uint64_t>(setting_field<path...>(target));
  }
  static void set(const SettingTarget& target, std::uint64_t value) {
    setting_field<path...>(target) = static_cast<Field>(value);
  }

  static constexpr SettingKey boolean(std::string_view section, std::string_view key) {
    return SettingKey(section, key, SettingKind::boolean, get, set);
  }
  static constexpr SettingKey number(std::string_view section, std::string_view key,
                                     std::uint64_t minimum, std::uint64_t maximum,
                                     OutOfRange out_of_range = OutOfRange::clamp) {
    SettingKey row(section, key, SettingKind::number, get, set);
    row.minimum = minimum;
    row.maximum = maximum;
    row.out_of_range = out_of_range;
    return row;
  }
  template <std::uint8_t count>
  static constexpr SettingKey keyword(std::string_view section, std::string_view key,
                                      const IniKeyword (&words)[count], OutOfRange out_of_range) {
    SettingKey row(section, key, SettingKind::keyword, get, set);
    row.keywords = words;
    row.keyword_count = count;
    row.out_of_range = out_of_range;
    return row;
  }
  static constexpr SettingKey text(std::string_view section, std::string_view key,
                                   bool may_be_empty) {
    SettingKey row(section, key, setting_field<path...>);
    row.may_be_empty = may_be_empty;
    return row;
  }
  static constexpr SettingKey list(std::string_view section, std::string_view key) {
    return SettingKey(section, key, setting_field<path...>);
  }
};

constexpr SettingKey no_effect(std::string_view section, std::string_view key,
                               std::string_view reason) {
  SettingKey row(section, key, SettingKind::without_effect);
  row.reason = reason;
  return row;
}

inline constexpr IniKeyword setting_types[] = {
    {"udp", static_cast<std::int64_t>(Transport::udp)},
    {"tcp", static_cast<std::int64_t>(Transport::tcp)},
};
inline constexpr IniKeyword setting_auth_codes[] = {{"401", 401}, {"407", 407}};
inline constexpr IniKeyword setting_body_encodings[] = {
    {"base64", static_cast<std::int64_t>(BodyEncoding::base64)},
    {"hex", static_cast<std::int64_t>(BodyEncoding::hex)},
    {"hexs", static_cast<std::int64_t>(BodyEncoding::hexs)},
    {"raw", static_cast<std::int64_t>(BodyEncoding::raw)},
};

}  // namespace detail

/// Every key there is, as an array.
inline const auto& setting_keys() {
  using detail::no_effect;
  using S = Settings;
  using L = ListenerSettings;
  using T = TransportSettings;
  using R = RegistrarSettings;
  using M = MessageSettings;
  using O = OfflineSettings;
  constexpr std::string_view calls = "calls and media are not served";
  constexpr std::string_view tls = "TLS is not served";
  constexpr std::string_view modules = "it belongs to modules of Yate";
  constexpr std::string_view capture = "there is no capture server; printmsg logs every message";
  constexpr std::string_view rfc_4320 = "a request other than INVITE gets no 100 (RFC 4320)";
  // clang-format off
  static constexpr SettingKey table[] = {
      detail::SettingRow<&L::enable>::boolean("listener", "enable"),
      detail::SettingRow<&L::type>::keyword("listener", "type", detail::setting_types, OutOfRange::refuse),
      detail::SettingRow<&L::address>::text("listener", "addr", true),
      detail::SettingRow<&L::port>::number("listener", "port", 0, 65535, OutOfRange::refuse),
      detail::SettingRow<&L::ipv6>::boolean("listener", "ipv6"),
      detail::SettingRow<&L::max_datagram_octets>::number("listener", "maxpkt", 524, 65528),
      detail::SettingRow<&L::max_stream_message_octets>::number("listener", "tcp_maxpkt", 524, 65528),
      detail::SettingRow<&L::receive_buffer_octets>::number("listener", "buffer", 0, 67108864),
      detail::SettingRow<&L::backlog>::number("listener", "backlog", 0, 65535),
      detail::SettingRow<&L::tcp_idle_s>::number("listener", "tcp_idle", 10, 600),
      detail::SettingRow<&L::answer_to_source>::boolean("listener", "ignorevia"),
      detail::SettingRow<&L::role>::text("listener", "role", true),

      detail::SettingRow<&S::domains>::list("general", "domains"),
      detail::SettingRow<&S::digest, &DigestOptions::realm>::text("general", "realm", false),
      SettingKey("general", "algorithms", SettingKind::algorithms),
      detail::SettingRow<&S::digest, &DigestOptions::nonce_lifetime_s>::number("general", "nonce_lifetime", 10, 86400),
      detail::SettingRow<&S::user_agent>::text("general", "useragent", false),
      detail::SettingRow<&S::max_forwards>::number("general", "maxforwards", 1, 255),
      detail::SettingRow<&S::registrar, &R::nat>::boolean("general", "nat"),
      detail::SettingRow<&S::timers, &TimerSettings::t1_ms>::number("general", "t1", 100, 5000, OutOfRange::use_default),
      detail::SettingRow<&S::timers, &TimerSettings::t4_ms>::number("general", "t4", 1000, 25000, OutOfRange::use_default),
      detail::SettingRow<&S::transport, &T::tcp_keepalive_s>::number("general", "tcp_keepalive", 0, 3600),
      detail::SettingRow<&S::transport, &T::tcp_write_limit_octets>::number("general", "tcp_write_limit", 65536, 16777216),
      detail::SettingRow<&S::flood, &FloodSettings::events>::number("general", "floodevents", 0, 1000000),
      detail::SettingRow<&S::flood, &FloodSettings::protection>::boolean("general", "floodprotection"),
      detail::SettingRow<&S::flood, &FloodSettings::retry_after_s>::number("general", "congestion_retry", 10, 600),
      detail::SettingRow<&S::max_transactions>::number("general", "max_transactions", 100, 10000000),
      detail::SettingRow<&S::transport, &T::max_connections>::number("general", "max_connections", 1, 1000000),
      detail::SettingRow<&S::transport, &T::max_connections_per_address>::number("general", "max_connections_per_address", 1, 1000000),
      detail::SettingRow<&S::digest, &DigestOptions::max_remembered_nonces>::number("general", "max_nonces", 8, 10000000),
      detail::SettingRow<&S::trace>::boolean("general", "printmsg"),
      detail::SettingRow<&S::body_encoding>::keyword("general", "body_encoding", detail::setting_body_encodings, OutOfRange::use_default),
      detail::SettingRow<&S::initial_headers>::boolean("general", "initial_headers"),
      detail::SettingRow<&S::generate>::boolean("general", "generate"),
      detail::SettingRow<&S::registrar, &R::enable>::boolean("general", "registrar"),
      detail::SettingRow<&S::options_enable>::boolean("general", "options"),

      detail::SettingRow<&S::options_enable>::boolean("options", "enable"),

      detail::SettingRow<&S::registrar, &R::enable>::boolean("registrar", "enable"),
      detail::SettingRow<&S::registrar, &R::auth_required>::boolean("registrar", "auth_required"),
      detail::SettingRow<&S::registrar, &R::expires_min_s>::number("registrar", "expires_min", 1, 2592000),
      detail::SettingRow<&S::registrar, &R::expires_default_s>::number("registrar", "expires_def", 1, 2592000),
      detail::SettingRow<&S::registrar, &R::expires_max_s>::number("registrar", "expires_max", 1, 2592000),
      detail::SettingRow<&S::registrar, &R::nat_refresh_s>::number("registrar", "nat_refresh", 0, 3600),
      detail::SettingRow<&S::registrar, &R::max_bindings>::number("registrar", "max_bindings", 1, 10000000),
      detail::SettingRow<&S::registrar, &R::max_bindings_per_user>::number("registrar", "max_bindings_per_user", 1, 100),

      detail::SettingRow<&S::message, &M::enable>::boolean("message", "enable"),
      detail::SettingRow<&S::message, &M::auth_required>::boolean("message", "auth_required"),
      detail::SettingRow<&S::message, &M::auth_code>::keyword("message", "auth_code", detail::setting_auth_codes, OutOfRange::use_default),
      detail::SettingRow<&S::message, &M::offline_code>::number("message", "offline_code", 400, 699, OutOfRange::use_default),
      detail::SettingRow<&S::message, &M::async_process>::boolean("message", "async_process"),
      detail::SettingRow<&S::message, &M::handler_deadline_s>::number("message", "handler_deadline", 1, 30),
      detail::SettingRow<&S::message, &M::max_pending>::number("message", "max_pending", 1, 1000000),

      detail::SettingRow<&S::offline, &O::enable>::boolean("offline", "enable"),
      detail::SettingRow<&S::offline, &O::spool>::text("offline", "spool", true),
      detail::SettingRow<&S::offline, &O::max_messages>::number("offline", "max_messages", 1, 1000000),
      detail::SettingRow<&S::offline, &O::max_per_sender>::number("offline", "max_per_sender", 1, 1000000),
      detail::SettingRow<&S::offline, &O::max_octets>::number("offline", "max_octets", 65536, 1099511627776),
      detail::SettingRow<&S::offline, &O::expires_s>::number("offline", "expires", 60, 31536000),
      detail::SettingRow<&S::offline, &O::notify>::boolean("offline", "notify"),

      detail::SettingRow<&S::registrar, &R::autocreate>::boolean("regfile", "autocreate"),
      detail::SettingRow<&S::registrar, &R::file>::text("regfile", "file", true),
      detail::SettingRow<&S::route_priority>::number("regfile", "route", 0, 1000000),

      no_effect("listener", "default", "a request goes out over the transport of the recipient's binding"),
      no_effect("listener", "udp_force_bind", "a port that is taken is an error, never another port"),
      no_effect("listener", "thread", "one thread does all the work"),
      no_effect("listener", "sslcontext", tls),
      no_effect("listener", "rtp_localip", calls),
      no_effect("listener", "nat_address", calls),
      no_effect("listener", "warn_bind_fail_delay", "a port that is taken is an error at once"),
      no_effect("listener", "capture_filter", capture),
      no_effect("listener", "capture_agent", capture),
      no_effect("listener", "capture_server", capture),
      no_effect("listener", "capture_compress", capture),

      no_effect("general", "ipv6_support", "IPv6 is always there for listeners with such an addr or ipv6=yes"),
      no_effect("general", "lazy100", rfc_4320),
      no_effect("general", "sip_req_trans_count", "requests are repeated until an answer comes or 64*T1 are over (RFC 3261 17.1.2.2)"),
      no_effect("general", "sip_rsp_trans_count", "an answer is repeated when the request is (RFC 3261 17.2.2)"),
      no_effect("general", "tcp_keepalive_first", "the first keep-alive comes after tcp_keepalive, like every other"),
      no_effect("general", "auth_foreign", "nonces of others are never accepted"),
      no_effect("general", "auth_copy_headers", modules),
      no_effect("general", "async_generic", "methods other than MESSAGE, REGISTER and OPTIONS are not served"),
      no_effect("general", "warn_no_default_udp_transport", "there is no default transport"),
      no_effect("general", "flags", "they are for broken calls"),
      no_effect("general", "tcp_out_rtp_localip", calls),
      no_effect("general", "transfer", calls),
      no_effect("general", "refer_update", calls),
      no_effect("general", "prack", calls),
      no_effect("general", "info", calls),
      no_effect("general", "fork", calls),
      no_effect("general", "fork_early", calls),
      no_effect("general", "progress", calls),
      no_effect("general", "check_allow_info", calls),
      no_effect("general", "missing_allow_info", calls),
      no_effect("general", "dtmfmethods", calls),
      no_effect("general", "honor_dtmf_detect", calls),
      no_effect("general", "rfc2833", calls),
      no_effect("general", "privacy", calls),
      no_effect("general", "secure", calls),
      no_effect("general", "forward_sdp", calls),
      no_effect("general", "rtp_start", calls),
      no_effect("general", "multi_ringing", calls),
      no_effect("general", "refresh_nosdp", calls),
      no_effect("general", "update_target", calls),
      no_effect("general", "update_verify", calls),
      no_effect("general", "preventive_bye", calls),
      no_effect("general", "autochangeparty", calls),
      no_effect("general", "change_party_2xx", calls),
      no_effect("general", "maxchans", calls),
      no_effect("general", "ssl_certificate_file", tls),
      no_effect("general", "ssl_key_file", tls),

      no_effect("registrar", "async_process", "registering waits for nothing"),
      no_effect("methods", "*", "methods other than MESSAGE, REGISTER and OPTIONS are not served"),
      no_effect("sip-t", "*", calls),
      no_effect("codecs", "*", calls),
      no_effect("hacks", "*", calls),

      no_effect("regfile", "auth", "users are looked up before any handler is asked"),
      no_effect("regfile", "register", "users are looked up before any handler is asked"),
  };
  // clang-format on
  return table;
}

/// What the value of a key may be, for people.
inline std::string setting_allowed(const SettingKey& row) {
  std::string out;
  switch (row.kind) {
    case SettingKind::boolean: return "yes or no";
    case SettingKind::number:
      return std::to_string(row.minimum) + " to " + std::to_string(row.maximum);
    case SettingKind::keyword:
      for (std::size_t i = 0; i < row.keyword_count; ++i) {
        out.append(i == 0 ? "" : " or ").append(row.keywords[i].word);
      }
      return out;
    case SettingKind::text: return "text";
    case SettingKind::list: return "list";
    case SettingKind::algorithms: return "list of MD5, SHA-256, SHA-512-256";
    case SettingKind::without_effect: break;
  }
  return out;
}

/// The present value of a key, as it would stand in the file.
inline std::string setting_text(const SettingKey& row, const SettingTarget& target) {
  std::string out;
  switch (row.kind) {
    case SettingKind::boolean: return row.number(target) != 0 ? "yes" : "no";
    case SettingKind::number: return std::to_string(row.number(target));
    case SettingKind::keyword:
      for (std::size_t i = 0; i < row.keyword_count; ++i) {
        if (static_cast<std::uint64_t>(row.keywords[i].value) == row.number(target)) {
          out = row.keywords[i].word;
        }
      }
      return out;
    case SettingKind::text: return row.text(target);
    case SettingKind::list:
      for (const std::string& piece : row.list(target)) {
        out.append(out.empty() ? "" : ",").append(piece);
      }
      return out;
    case SettingKind::algorithms:
      for (const DigestAlgorithm& algorithm : target.settings.digest.algorithms) {
        out.append(out.empty() ? "" : ",").append(algorithm.name());
      }
      return out;
    case SettingKind::without_effect: break;
  }
  return out;
}

// ---- reading -----------------------------------------------------------------------------------

namespace detail {

/// How many octets must be inserted, dropped, replaced or swapped with their neighbour to make one
/// name of the other, whatever their case; a large number for long names.
inline std::size_t edit_distance(std::string_view a, std::string_view b) {
  constexpr std::size_t longest = 40;
  if (a.size() > longest || b.size() > longest) return longest;
  std::array<std::size_t, longest + 1> before_last{};
  std::array<std::size_t, longest + 1> last{};
  std::array<std::size_t, longest + 1> row{};
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    before_last = last;
    last = row;
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const bool same = to_lower(a[i - 1]) == to_lower(b[j - 1]);
      row[j] = last[j - 1] + (same ? 0 : 1);
      if (row[j] > last[j] + 1) row[j] = last[j] + 1;
      if (row[j] > row[j - 1] + 1) row[j] = row[j - 1] + 1;
      const bool swapped = i > 1 && j > 1 && to_lower(a[i - 1]) == to_lower(b[j - 2]) &&
                           to_lower(a[i - 2]) == to_lower(b[j - 1]);
      if (swapped && row[j] > before_last[j - 2] + 1) row[j] = before_last[j - 2] + 1;
    }
  }
  return row[b.size()];
}

/// Collects the name most like the one given, if one is like it at all.
class NearestName {
 public:
  explicit NearestName(std::string_view name) : name_(name), best_(2 + name.size() / 4) {}
  void offer(std::string_view candidate) {
    const std::size_t distance = edit_distance(name_, candidate);
    if (distance >= best_ || distance >= candidate.size()) return;
    best_ = distance;
    nearest_ = candidate;
  }
  std::string_view found() const { return nearest_; }  ///< empty for none

 private:
  std::string_view name_;
  std::string_view nearest_;
  std::size_t best_;
};

/// A text of the file, cut where it is long.
inline std::string setting_shortened(std::string_view text) {
  constexpr std::size_t longest = 60;
  return std::string(text.substr(0, longest)).append(text.size() > longest ? "..." : "");
}

/// A value of the file in quotes.
inline std::string setting_shown(std::string_view value) {
  return "\"" + setting_shortened(value) + "\"";
}

/// Reads both files into settings that hold the defaults. Every value that is not used as it is
/// written leaves a diagnostic behind.
class SettingsReader {
 public:
  SettingsReader(Settings& settings, const RunParameters& run_parameters, Diagnostics& diagnostics)
      : settings_(settings),
        run_parameters_(run_parameters),
        diagnostics_(diagnostics),
        mentioned_(std::size(setting_keys())) {}

  void read_ysipchan(const Ini& ini) {
    begin(ini, "ysipchan.conf");
    settings_.listeners.clear();
    ListenerSettings general;
    read_general(general);
    for (const IniSection& section : ini.sections()) read_other_section(section);
    if (const IniSection* replaced = ini.find("listener general")) {
      read_listener(*replaced, "general", general);
    }
    for (const IniSection& section : ini.sections()) {
      const std::string_view name = listener_name(section);
      if (!name.empty() && name != "general") read_listener(section, name, general);
    }
    settings_.offline.spool = expand_run_parameters(settings_.offline.spool, run_parameters_);
    check_domains();
    check_expires();
    hint_at_message();
  }

  void read_regfile(const Ini& ini) {
    begin(ini, "regfile.conf");
    for (const IniSection& section : ini.sections()) {
      if (section.name != "general") read_user(section);
    }
    RegistrarSettings& registrar = settings_.registrar;
    if (const IniSection* general = ini.find("general")) {
      ListenerSettings none;
      read_section(*general, "regfile", {settings_, none});
      registrar.file = expand_run_parameters(registrar.file, run_parameters_);
      if (registrar.autocreate && registrar.auth_required) {
        remark(Severity::info, *general, general->find("autocreate"),
               "lets nobody in while [registrar] auth_required is on: who is not listed has no "
               "password to pass it with");
      }
    }
    if (settings_.users.empty() && !registrar.autocreate) {
      say(Severity::info, 0, 0, "no user is listed");
    }
  }

 private:
  void begin(const Ini& ini, std::string_view usual_name) {
    ini_ = &ini;
    file_ = ini.files().empty() ? std::string(usual_name) : ini.files().front();
  }

  // -- sections --

  /// The keys of the first listener stand among those for the whole server, and its limits are what
  /// the others start from.
  void read_general(ListenerSettings& general) {
    const std::size_t first_remark = diagnostics_.size();
    const IniSection* section = ini_->find("general");
    listener_is_bad_ = false;
    if (section != nullptr) read_section(*section, "general", {settings_, general});
    check_timers();
    check_idle(section, general);
    if (ini_->find("general", "tcp_keepalive") == nullptr) {
      settings_.transport.tcp_keepalive_s = general.tcp_idle_s;
    }
    if (ini_->find("listener general") == nullptr) add_listener(section, general, first_remark);
  }

  void read_other_section(const IniSection& section) {
    if (section.name == "general" || !listener_name(section).empty()) return;
    NearestName nearest(section.name);
    bool known = false;
    for (const SettingKey& row : setting_keys()) {
      if (row.section == "listener" || row.section == "regfile") continue;
      known = known || row.section == section.name;
      nearest.offer(row.section);
    }
    if (known) {
      ListenerSettings none;
      return read_section(section, section.name, {settings_, none});
    }
    if (edit_distance(section.name.substr(0, section.name.find(' ')), "listener") <= 2) {
      return remark(Severity::warning, section, nullptr,
                    "unknown section; a listener is written [listener NAME]");
    }
    remark(Severity::warning, section, nullptr,
           "unknown section" + suggestion(nearest.found(), "[", "]"));
  }

  static std::string suggestion(std::string_view name, std::string_view before,
                                std::string_view after) {
    if (name.empty()) return {};
    return std::string("; did you mean ").append(before).append(name).append(after).append("?");
  }

  void read_section(const IniSection& section, std::string_view scope,
                    const SettingTarget& target) {
    for (const IniEntry& entry : section.entries) {
      const SettingKey* row = find_key(scope, entry.key);
      if (row == nullptr) {
        remark_unknown(section, entry, scope);
      } else if (row->kind == SettingKind::without_effect) {
        mention(section, entry, *row);
      } else if (scope == "general" && is_replaced(*row)) {
        remark(Severity::info, section, &entry,
               "has no effect: [listener general] takes its place");
      } else if (is_first(section, entry)) {
        read_value(section, entry, *row, target);
      }
    }
  }

  /// Whether [general] is no listener because there is [listener general], and this key is not one
  /// that other listeners start from.
  bool is_replaced(const SettingKey& row) const {
    if (row.section != "listener" || ini_->find("listener general") == nullptr) return false;
    for (std::string_view key : {"type", "addr", "port", "ipv6", "backlog", "role"}) {
      if (row.key == key) return true;
    }
    return false;
  }

  /// The keys of a listener may stand in [general] too, but for the one that switches it off.
  static bool may_stand(const SettingKey& row, std::string_view scope) {
    return row.section == scope ||
           (scope == "general" && row.section == "listener" && row.key != "enable");
  }

  static const SettingKey* find_key(std::string_view scope, std::string_view key) {
    for (const SettingKey& row : setting_keys()) {
      if (may_stand(row, scope) && (row.key == key || row.key == "*")) return &row;
    }
    return nullptr;
  }

  void remark_unknown(const IniSection& section, const IniEntry& entry, std::string_view scope) {
    if (entry.key.front() == '#') {
      return remark(Severity::warning, section, &entry, "unknown key; only ; begins a comment");
    }
    NearestName nearest(entry.key);
    std::string owners;
    for (const SettingKey& row : setting_keys()) {
      if (may_stand(row, scope)) nearest.offer(row.key);
      if (row.key != entry.key || (row.section == "regfile") != (scope == "regfile")) continue;
      owners.append(owners.empty() ? "[" : ", [")
          .append(row.section == "listener" ? std::string_view("listener NAME") : row.section)
          .append("]");
    }
    const std::string hint =
        owners.empty() ? suggestion(nearest.found(), "\"", "\"") : "; it belongs to " + owners;
    remark(Severity::warning, section, &entry, "unknown key" + hint);
  }

  void mention(const IniSection& section, const IniEntry& entry, const SettingKey& row) {
    const auto number = static_cast<std::size_t>(&row - setting_keys());
    if (mentioned_[number]) return;
    mentioned_[number] = true;
    const bool whole_section = row.key == "*";
    remark(Severity::info, section, whole_section ? nullptr : &entry,
           std::string("has no effect: ").append(row.reason));
  }

  bool is_first(const IniSection& section, const IniEntry& entry) {
    const IniEntry* first = section.find(entry.key);
    if (first == &entry) return true;
    remark(Severity::warning, section, &entry,
           "stands here again; the first, " + ini_->files()[first->file] + ":" +
               std::to_string(first->line) + ", counts");
    return false;
  }

  // -- values --

  void read_value(const IniSection& section, const IniEntry& entry, const SettingKey& row,
                  const SettingTarget& target) {
    bool good = true;
    switch (row.kind) {
      case SettingKind::boolean: {
        const std::optional<bool> value = parse_boolean(entry.value);
        good = value.has_value();
        if (good) row.set_number(target, *value ? 1 : 0);
        break;
      }
      case SettingKind::number: return read_number(section, entry, row, target);
      case SettingKind::keyword: good = read_keyword(section, entry, row, target); break;
      case SettingKind::text:
        good = is_fit(entry.value) && (row.may_be_empty || !entry.value.empty());
        if (good) row.text(target) = entry.value;
        break;
      case SettingKind::list:
        row.list(target).clear();
        for (std::string_view piece : split_list(entry.value)) row.list(target).emplace_back(piece);
        break;
      case SettingKind::algorithms: return read_algorithms(section, entry, row, target);
      case SettingKind::without_effect: break;
    }
    if (!good) remark_unused(section, entry, row, target);
  }

  /// Texts go into headers and logs, where control octets have no place.
  static bool is_fit(std::string_view value) {
    for (char c : value) {
      if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return false;
    }
    return true;
  }

  void read_number(const IniSection& section, const IniEntry& entry, const SettingKey& row,
                   const SettingTarget& target) {
    const std::optional<std::int64_t> value = parse_integer(entry.value);
    if (!value) return remark_unused(section, entry, row, target);
    const bool too_small = *value < static_cast<std::int64_t>(row.minimum);
    const bool too_large = *value > static_cast<std::int64_t>(row.maximum);
    if (!too_small && !too_large) {
      return row.set_number(target, static_cast<std::uint64_t>(*value));
    }
    if (row.out_of_range == OutOfRange::clamp) {
      row.set_number(target, too_small ? row.minimum : row.maximum);
    }
    if (row.out_of_range == OutOfRange::refuse) return refuse(section, entry, row);
    remark_unused(section, entry, row, target);
  }

  bool read_keyword(const IniSection& section, const IniEntry& entry, const SettingKey& row,
                    const SettingTarget& target) {
    const std::optional<std::int64_t> value =
        parse_keyword(entry.value, row.keywords, row.keyword_count);
    for (std::size_t i = 0; i < row.keyword_count; ++i) {
      if (value != row.keywords[i].value) continue;
      row.set_number(target, static_cast<std::uint64_t>(*value));
      return true;
    }
    if (row.out_of_range != OutOfRange::refuse) return false;
    refuse(section, entry, row);
    return true;
  }

  void read_algorithms(const IniSection& section, const IniEntry& entry, const SettingKey& row,
                       const SettingTarget& target) {
    std::vector<DigestAlgorithm> algorithms;
    for (std::string_view name : split_list(entry.value)) {
      const std::optional<DigestAlgorithm> algorithm = parse_digest_algorithm(name);
      if (!algorithm) {
        return remark(
            Severity::error, section, &entry,
            setting_shown(name) + " is no algorithm we know; allowed: " + setting_allowed(row));
      }
      bool repeated = false;
      for (const DigestAlgorithm& earlier : algorithms) repeated |= earlier == *algorithm;
      if (!repeated) algorithms.push_back(*algorithm);
    }
    if (algorithms.empty()) return remark_unused(section, entry, row, target);
    target.settings.digest.algorithms = std::move(algorithms);
  }

  /// A value that is not used; what stands in its place is in the target already.
  void remark_unused(const IniSection& section, const IniEntry& entry, const SettingKey& row,
                     const SettingTarget& target) {
    std::string text = found_and_allowed(entry, row);
    text.append("; used instead: ").append(setting_text(row, target));
    if (entry.value.find(';') != std::string::npos) {
      text.append(" (a ; behind a value begins no comment)");
    }
    remark(Severity::warning, section, &entry, std::move(text));
  }

  void refuse(const IniSection& section, const IniEntry& entry, const SettingKey& row) {
    listener_is_bad_ = true;
    if (row.key == "type" && entry.value == "tls") {
      return remark(Severity::error, section, &entry,
                    "tls is not supported here; allowed: " + setting_allowed(row));
    }
    remark(Severity::error, section, &entry, found_and_allowed(entry, row));
  }

  static std::string found_and_allowed(const IniEntry& entry, const SettingKey& row) {
    std::string text = entry.value.empty() ? "empty" : setting_shown(entry.value);
    text.append(" is not allowed; allowed: ").append(setting_allowed(row));
    if (row.kind == SettingKind::boolean) text.append(" (true on enable t, false off disable f)");
    return text;
  }

  // -- listeners --

  /// NAME of a section [listener NAME]; empty for other sections.
  static std::string_view listener_name(const IniSection& section) {
    constexpr std::string_view word = "listener";
    const std::string_view name = section.name;
    if (name.size() <= word.size() || name.substr(0, word.size()) != word) return {};
    return is_blank(name[word.size()]) ? trim(name.substr(word.size())) : std::string_view();
  }

  void read_listener(const IniSection& section, std::string_view name,
                     const ListenerSettings& general) {
    const std::size_t first_remark = diagnostics_.size();
    ListenerSettings listener;
    listener.name = name;
    listener.max_datagram_octets = general.max_datagram_octets;
    listener.max_stream_message_octets = general.max_stream_message_octets;
    listener.receive_buffer_octets = general.receive_buffer_octets;
    listener.tcp_idle_s = general.tcp_idle_s;
    listener.answer_to_source = general.answer_to_source;
    listener_is_bad_ = false;
    read_section(section, "listener", {settings_, listener});
    check_idle(&section, listener);
    add_listener(&section, listener, first_remark);
  }

  /// What is wrong with a listener that is off keeps nobody from starting.
  void add_listener(const IniSection* section, ListenerSettings listener,
                    std::size_t first_remark) {
    resolve_address(section, listener);
    if (listener.enable) check_taken(section, listener);
    if (listener.enable && listener_is_bad_) return;
    settings_.listeners.push_back(std::move(listener));
    if (settings_.listeners.back().enable) return;
    for (std::size_t i = first_remark; i < diagnostics_.size(); ++i) {
      if (diagnostics_[i].severity == Severity::error) diagnostics_[i].severity = Severity::warning;
    }
  }

  static std::string_view without_interface(std::string_view address) {
    return address.substr(0, address.find('%'));
  }

  void resolve_address(const IniSection* section, ListenerSettings& listener) {
    if (section == nullptr) return;
    const IniEntry* addr = section->find("addr");
    const IniEntry* ipv6 = section->find("ipv6");
    if (addr == nullptr || addr->value.empty()) {
      listener.address = listener.ipv6 ? "::" : "0.0.0.0";
      return;
    }
    const std::optional<IpAddress> ip = parse_ip(without_interface(listener.address));
    const bool has_interface = listener.address.find('%') != std::string::npos;
    if (!ip || listener.address.front() == '[' || (ip->is_ipv4() && has_interface)) {
      listener_is_bad_ = true;
      return remark(Severity::error, *section, addr,
                    setting_shown(addr->value) +
                        " is not a numeric IPv4 or IPv6 address; allowed: one, or "
                        "empty for all addresses");
    }
    if (ipv6 != nullptr && listener.ipv6 != ip->is_ipv6()) {
      remark(Severity::warning, *section, ipv6, "contradicts addr, which counts");
    }
    listener.ipv6 = ip->is_ipv6();
  }

  /// A port can be had once: for one address, or for all of a family.
  void check_taken(const IniSection* section, const ListenerSettings& listener) {
    if (section == nullptr || listener_is_bad_ || listener.port == 0) return;
    for (const ListenerSettings& other : settings_.listeners) {
      if (!other.enable || other.type != listener.type || other.port != listener.port) continue;
      if (!overlap(other.address, listener.address)) continue;
      const IniEntry* entry = section->find("port");
      listener_is_bad_ = true;
      return remark(Severity::error, *section, entry == nullptr ? section->find("addr") : entry,
                    std::string(transport_parameter(listener.type)) + " " + listener.address + ":" +
                        std::to_string(listener.port) + " is taken already by the listener " +
                        setting_shown(other.name));
    }
  }

  static bool overlap(std::string_view a, std::string_view b) {
    const IpAddress one = parse_ip(without_interface(a)).value_or(IpAddress());
    const IpAddress two = parse_ip(without_interface(b)).value_or(IpAddress());
    if (one.family != two.family) return false;
    if (one.is_unspecified() || two.is_unspecified()) return true;
    return one == two &&
           a.substr(without_interface(a).size()) == b.substr(without_interface(b).size());
  }

  // -- what keys have to do with one another --

  void check_timers() {
    TimerSettings& timers = settings_.timers;
    if (timers.t4_ms >= 3 * timers.t1_ms) return;
    const IniSection& general = *ini_->find("general");
    const IniEntry* t4 = general.find("t4");
    timers.t4_ms = 3 * timers.t1_ms;
    remark(t4 == nullptr ? Severity::info : Severity::warning, general,
           t4 == nullptr ? general.find("t1") : t4,
           "t4 is at least 3 times t1; used: " + std::to_string(timers.t4_ms));
  }

  /// A connection must outlive the transactions on it: at least 96 times T1.
  void check_idle(const IniSection* section, ListenerSettings& listener) {
    const std::uint32_t least_s = (96 * settings_.timers.t1_ms + 999) / 1000;
    if (listener.tcp_idle_s >= least_s) return;
    listener.tcp_idle_s = least_s;
    const IniEntry* entry = section == nullptr ? nullptr : section->find("tcp_idle");
    if (entry == nullptr) return;
    remark(Severity::warning, *section, entry,
           "is at least 96 times t1; used: " + std::to_string(least_s));
  }

  void check_domains() {
    std::vector<std::string> domains;
    for (const std::string& written : settings_.domains) {
      if (written == "*" || parse_ip(written) || all_of_class(written, char_host)) {
        domains.push_back(to_lower(written));
        continue;
      }
      remark(Severity::warning, *ini_->find("general"), ini_->find("general", "domains"),
             setting_shown(written) +
                 " is left out; allowed: host names and addresses without port, or *");
    }
    settings_.domains = std::move(domains);
  }

  void check_expires() {
    RegistrarSettings& registrar = settings_.registrar;
    const IniSection* section = ini_->find("registrar");
    if (registrar.expires_max_s < registrar.expires_min_s) {
      registrar.expires_max_s = registrar.expires_min_s;
      remark(
          Severity::warning, *section, first_of(*section, "expires_max", "expires_min"),
          "expires_max is not below expires_min; used: " + std::to_string(registrar.expires_max_s));
    }
    const std::uint32_t asked = registrar.expires_default_s;
    std::uint32_t& used = registrar.expires_default_s;
    if (used < registrar.expires_min_s) used = registrar.expires_min_s;
    if (used > registrar.expires_max_s) used = registrar.expires_max_s;
    if (used == asked) return;
    const IniEntry* entry = section->find("expires_def");
    remark(entry == nullptr ? Severity::info : Severity::warning, *section, entry,
           "expires_def is between expires_min and expires_max; used: " + std::to_string(used));
  }

  static const IniEntry* first_of(const IniSection& section, std::string_view one,
                                  std::string_view other) {
    const IniEntry* entry = section.find(one);
    return entry == nullptr ? section.find(other) : entry;
  }

  void hint_at_message() {
    if (settings_.message.enable) return;
    constexpr std::string_view hint =
        "messages are off and answered 501; enable=yes in [message] switches them on";
    if (const IniSection* section = ini_->find("message")) {
      return remark(Severity::info, *section, section->find("enable"), std::string(hint));
    }
    say(Severity::info, 0, 0, std::string(hint));
  }

  // -- users --

  void read_user(const IniSection& section) {
    UserSettings user;
    user.name = section.name;
    for (const IniEntry& entry : section.entries) read_user_key(section, entry, user);
    if (!user.has_password) {
      remark(Severity::info, section, nullptr,
             "has no password: may register only where [registrar] auth_required is off");
    } else if (user.password.empty()) {
      remark(Severity::warning, section, section.find("password"),
             "is empty: anybody is let in as this user, with any password");
    }
    settings_.users.push_back(std::move(user));
  }

  void read_user_key(const IniSection& section, const IniEntry& entry, UserSettings& user) {
    if (entry.key == "password") {
      if (!is_first(section, entry)) return;
      user.has_password = true;
      user.password = entry.value;
    } else if (entry.key == "alternatives") {
      if (is_first(section, entry)) read_alternatives(section, entry, user);
    } else {
      for (std::string_view key : {"password", "alternatives"}) {
        if (edit_distance(entry.key, key) > 2) continue;
        remark(Severity::warning, section, &entry,
               "is kept as a parameter of the user" + suggestion(key, "\"", "\""));
      }
      user.parameters.emplace_back(entry.key, entry.value);
    }
  }

  void read_alternatives(const IniSection& section, const IniEntry& entry, UserSettings& user) {
    for (std::string_view name : split_list(entry.value)) {
      bool repeated = false;
      for (const std::string& earlier : user.alternatives) repeated |= earlier == name;
      if (repeated) {
        remark(Severity::warning, section, &entry, setting_shown(name) + " stands here twice");
        continue;
      }
      if (name != "general" && ini_->find(name) != nullptr) {
        remark(
            Severity::warning, section, &entry,
            setting_shown(name) + (name == user.name ? " is this user's own name"
                                                     : " is a user, who gets what is sent there"));
      }
      user.alternatives.emplace_back(name);
    }
  }

  // -- remarks --

  /// On a key, or where there is none on its section.
  void remark(Severity severity, const IniSection& section, const IniEntry* entry,
              std::string text) {
    std::string subject = "[" + setting_shortened(section.name) + "]";
    if (entry != nullptr) subject.append(" ").append(setting_shortened(entry->key));
    say(severity, entry == nullptr ? section.file : entry->file,
        entry == nullptr ? section.line : entry->line, subject + ": " + text);
  }
  void say(Severity severity, std::uint32_t file, std::uint32_t line, std::string text) {
    diagnostics_.push_back(
        {severity, file == 0 ? file_ : ini_->files()[file], line, std::move(text)});
  }

  Settings& settings_;
  const RunParameters& run_parameters_;
  Diagnostics& diagnostics_;
  std::vector<bool> mentioned_;  ///< keys without effect that were named already
  const Ini* ini_ = nullptr;
  std::string file_;
  bool listener_is_bad_ = false;
};

}  // namespace detail

/// Sets `settings` to what the two files say, and to defaults where they say nothing. A file that
/// does not exist is an Ini without sections. `run_parameters` are put into the path of `file`.
/// Adds to `diagnostics` what there is to remark, in the order of the lines of each section.
/// Error: `bad_configuration`, where `diagnostics` then holds an error, from here or from before.
inline Error load_settings(const Ini& ysipchan, const Ini& regfile,
                           const RunParameters& run_parameters, Settings& settings,
                           Diagnostics& diagnostics) {
  settings = Settings();
  detail::SettingsReader reader(settings, run_parameters, diagnostics);
  reader.read_ysipchan(ysipchan);
  reader.read_regfile(regfile);
  return count(diagnostics, Severity::error) == 0 ? Error() : ErrorCode::bad_configuration;
}

}  // namespace sipmsg
