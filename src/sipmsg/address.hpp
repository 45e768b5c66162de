// address: numeric IP addresses, transports, and the flow a message came over.
//
// The core names peers by these values and never touches a socket: a Flow is all it needs to answer
// where a request came from (RFC 3261 18.2.2, RFC 3581) and to reach a binding over the connection
// it registered on (RFC 5626).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "uri.hpp"

namespace sipmsg {

/// An IPv4 or IPv6 address. Octets in network order; an IPv4 address fills the first four.
struct IpAddress {
  std::array<std::uint8_t, 16> octets{};
  std::uint8_t family = 0;  ///< 4, 6, or 0 for none

  bool is_ipv4() const { return family == 4; }
  bool is_ipv6() const { return family == 6; }
  explicit operator bool() const { return family != 0; }
  bool operator==(const IpAddress& other) const {
    return family == other.family && octets == other.octets;
  }
  bool operator!=(const IpAddress& other) const { return !(*this == other); }

  /// The octets that count, as text for hashing: 4, 16 or none.
  std::string_view bytes() const {
    return {reinterpret_cast<const char*>(octets.data()), family == 4   ? std::size_t{4}
                                                          : family == 6 ? std::size_t{16}
                                                                        : std::size_t{0}};
  }
  bool is_unspecified() const {
    for (auto octet : octets) {
      if (octet != 0) return false;
    }
    return true;
  }
  bool is_loopback() const {
    if (family == 4) return octets[0] == 127;
    for (std::size_t i = 0; i < 15; ++i) {
      if (octets[i] != 0) return false;
    }
    return family == 6 && octets[15] == 1;
  }
  /// RFC 1918 and link-local addresses, and unique local ones (RFC 4193).
  bool is_private() const {
    if (family == 6)
      return (octets[0] & 0xfe) == 0xfc || (octets[0] == 0xfe && (octets[1] & 0xc0) == 0x80);
    if (family != 4) return false;
    return octets[0] == 10 || (octets[0] == 172 && (octets[1] & 0xf0) == 16) ||
           (octets[0] == 192 && octets[1] == 168) || (octets[0] == 169 && octets[1] == 254);
  }
};

/// An address with a port; `scope` is the interface index of a link-local IPv6 address, else 0.
struct SocketAddress {
  IpAddress ip;
  std::uint16_t port = 0;
  std::uint32_t scope = 0;

  bool operator==(const SocketAddress& other) const {
    return ip == other.ip && port == other.port && scope == other.scope;
  }
  bool operator!=(const SocketAddress& other) const { return !(*this == other); }
};

enum class Transport : std::uint8_t { udp, tcp };

/// The name as it stands in a Via; `transport_parameter` gives the form of URIs.
inline std::string_view transport_name(Transport transport) {
  return transport == Transport::tcp ? "TCP" : "UDP";
}
inline std::string_view transport_parameter(Transport transport) {
  return transport == Transport::tcp ? "tcp" : "udp";
}
inline std::optional<Transport> parse_transport(std::string_view name) {
  if (equal_ignoring_case(name, "udp")) return Transport::udp;
  if (equal_ignoring_case(name, "tcp")) return Transport::tcp;
  return std::nullopt;
}

/// The way one message came, or is to go: which socket, and who is at the other end.
///
/// `socket` numbers the UDP socket, or the TCP connection (a connection's number is never used
/// again, so a stale flow cannot reach a stranger); 0 asks the transport to choose: the first UDP
/// socket of the address family, or for TCP an open connection to `remote`, else a new one.
struct Flow {
  Transport transport = Transport::udp;
  std::uint32_t socket = 0;
  SocketAddress remote;

  bool operator==(const Flow& other) const {
    return transport == other.transport && socket == other.socket && remote == other.remote;
  }
};

namespace detail {

inline std::optional<IpAddress> parse_ipv4(std::string_view text) {
  IpAddress address;
  address.family = 4;
  for (std::size_t i = 0; i < 4; ++i) {
    const std::size_t dot = i < 3 ? text.find('.') : text.size();
    if (dot == std::string_view::npos || dot > 3) return std::nullopt;
    const auto octet = parse_digits(text.substr(0, dot), 255);
    if (!octet) return std::nullopt;
    address.octets[i] = static_cast<std::uint8_t>(*octet);
    text.remove_prefix(i < 3 ? dot + 1 : dot);
  }
  return address;
}

/// Reads groups of hexadecimal digits into `out`, 16 octets; the one that ends the address may be
/// an IPv4 address. Returns how many octets were written, or nothing.
inline std::optional<std::size_t> parse_ipv6_groups(std::string_view text, bool is_end,
                                                    std::uint8_t* out) {
  std::size_t written = 0;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find(':'), text.size());
    const std::string_view group = text.substr(0, end);
    if (group.find('.') != std::string_view::npos) {
      const auto ipv4 = parse_ipv4(group);
      if (!ipv4 || !is_end || end != text.size() || written > 12) return std::nullopt;
      for (std::size_t i = 0; i < 4; ++i) out[written++] = ipv4->octets[i];
      return written;
    }
    if (group.empty() || group.size() > 4 || written > 14) return std::nullopt;
    unsigned value = 0;
    for (char c : group) {
      const int digit = hex_value(c);
      if (digit < 0) return std::nullopt;
      value = value * 16 + static_cast<unsigned>(digit);
    }
    out[written++] = static_cast<std::uint8_t>(value >> 8);
    out[written++] = static_cast<std::uint8_t>(value & 0xff);
    if (end == text.size()) return written;
    text.remove_prefix(end + 1);
    if (text.empty()) return std::nullopt;
  }
  return written;
}

inline std::optional<IpAddress> parse_ipv6(std::string_view text) {
  IpAddress address;
  address.family = 6;
  std::array<std::uint8_t, 16> head{};
  std::array<std::uint8_t, 16> tail{};
  const std::size_t gap = text.find("::");
  const bool has_gap = gap != std::string_view::npos;
  const auto head_size = parse_ipv6_groups(text.substr(0, gap), !has_gap, head.data());
  if (!head_size) return std::nullopt;
  if (!has_gap) {
    if (*head_size != 16) return std::nullopt;
    address.octets = head;
    return address;
  }
  const auto tail_size = parse_ipv6_groups(text.substr(gap + 2), true, tail.data());
  if (!tail_size || *head_size + *tail_size > 14) return std::nullopt;
  for (std::size_t i = 0; i < *head_size; ++i) address.octets[i] = head[i];
  for (std::size_t i = 0; i < *tail_size; ++i) address.octets[16 - *tail_size + i] = tail[i];
  return address;
}

inline void append_number(std::string& out, std::uint64_t value) {
  char digits[20];
  std::size_t n = 0;
  do {
    digits[n++] = static_cast<char>('0' + value % 10);
    value /= 10;
  } while (value != 0);
  while (n > 0) out.push_back(digits[--n]);
}

inline char* write_ipv4(const IpAddress& ip, char* out) {
  for (std::size_t i = 0; i < 4; ++i) {
    if (i > 0) *out++ = '.';
    const unsigned octet = ip.octets[i];
    if (octet >= 100) *out++ = static_cast<char>('0' + octet / 100);
    if (octet >= 10) *out++ = static_cast<char>('0' + octet / 10 % 10);
    *out++ = static_cast<char>('0' + octet % 10);
  }
  return out;
}

/// RFC 5952: lower case, no leading zeros, the longest run of two or more zero groups as "::".
inline char* write_ipv6(const IpAddress& ip, char* out) {
  std::array<unsigned, 8> groups{};
  for (std::size_t i = 0; i < 8; ++i) {
    groups[i] = static_cast<unsigned>(ip.octets[2 * i] << 8 | ip.octets[2 * i + 1]);
  }
  std::size_t gap = 8;
  std::size_t gap_size = 1;
  for (std::size_t i = 0; i < 8; ++i) {
    std::size_t zeros = 0;
    while (i + zeros < 8 && groups[i + zeros] == 0) ++zeros;
    if (zeros > gap_size) {
      gap = i;
      gap_size = zeros;
    }
  }
  for (std::size_t i = 0; i < 8;) {
    if (i == gap) {
      *out++ = ':';
      *out++ = ':';
      i += gap_size;
      continue;
    }
    if (i > 0 && i != gap + gap_size) *out++ = ':';
    bool leading = true;
    for (int shift = 12; shift >= 0; shift -= 4) {
      const unsigned digit = groups[i] >> shift & 15U;
      if (digit == 0 && leading && shift > 0) continue;
      leading = false;
      *out++ = "0123456789abcdef"[digit];
    }
    ++i;
  }
  return out;
}

}  // namespace detail

/// A numeric address; IPv6 with or without brackets. Nothing where it is none.
inline std::optional<IpAddress> parse_ip(std::string_view text) {
  if (text.size() >= 2 && text.front() == '[' && text.back() == ']') {
    return detail::parse_ipv6(text.substr(1, text.size() - 2));
  }
  if (text.find(':') != std::string_view::npos) return detail::parse_ipv6(text);
  return detail::parse_ipv4(text);
}

/// The longest text of an address: eight groups of four digits.
inline constexpr std::size_t max_ip_text = 39;

/// Writes "192.0.2.1" or "2001:db8::1" to `out`, which has room for `max_ip_text` octets. Returns
/// how many were written, 0 for no address.
inline std::size_t write_ip(const IpAddress& ip, char* out) {
  const char* const begin = out;
  if (ip.family == 4) out = detail::write_ipv4(ip, out);
  if (ip.family == 6) out = detail::write_ipv6(ip, out);
  return static_cast<std::size_t>(out - begin);
}

/// "192.0.2.1" or "2001:db8::1"; empty for none.
inline std::string to_text(const IpAddress& ip) {
  char text[max_ip_text];
  return {text, write_ip(ip, text)};
}

/// "192.0.2.1:5060" or "[2001:db8::1]:5060".
inline std::string to_text(const SocketAddress& address) {
  std::string out = address.ip.is_ipv6() ? "[" + to_text(address.ip) + "]" : to_text(address.ip);
  out.push_back(':');
  detail::append_number(out, address.port);
  return out;
}

/// "HOST:PORT" with a numeric host. Error: `bad_address`.
inline Result<SocketAddress> parse_socket_address(std::string_view text) {
  const std::size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return ErrorCode::bad_address;
  SocketAddress address;
  const std::string_view host = text.substr(0, colon);
  const bool bracketed = !host.empty() && host.front() == '[';
  const auto ip = parse_ip(host);
  const auto port = parse_digits(text.substr(colon + 1), 65535);
  if (!ip || !port || ip->is_ipv6() != bracketed) return ErrorCode::bad_address;
  address.ip = *ip;
  address.port = static_cast<std::uint16_t>(*port);
  return address;
}

}  // namespace sipmsg
