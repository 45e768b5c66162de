// IP addresses as text (RFC 4291 2.2, RFC 5952), and the values that name a peer.
#include <doctest/doctest.h>

#include <string>

#include "support/guarded.hpp"
#include "support/sipmsg.hpp"

namespace test_address {

using namespace sipmsg;

TEST_CASE("an address is read in every form, and written in one") {
  struct Row {
    std::string_view text, canonical;
  };
  const Row rows[] = {
      {"192.0.2.1", "192.0.2.1"},
      {"0.0.0.0", "0.0.0.0"},
      {"255.255.255.255", "255.255.255.255"},
      {"10.100.09.1", "10.100.9.1"},
      {"::", "::"},
      {"::1", "::1"},
      {"1::", "1::"},
      {"[2001:DB8::0001]", "2001:db8::1"},
      {"2001:db8:0:0:0:0:0:1", "2001:db8::1"},
      {"1:0:0:2:0:0:0:3", "1:0:0:2::3"},
      {"1:0:0:2:3:0:0:4", "1::2:3:0:0:4"},
      {"1:0:2:3:4:5:6:7", "1:0:2:3:4:5:6:7"},
      {"::2:3:4:5:6:7:8", "0:2:3:4:5:6:7:8"},
      {"1:2:3:4:5:6:7::", "1:2:3:4:5:6:7:0"},
      {"1:2:3:4:5:6::", "1:2:3:4:5:6::"},
      {"::ffff:192.0.2.1", "::ffff:c000:201"},
      {"1:2:3:4:5:6:192.0.2.1", "1:2:3:4:5:6:c000:201"},
      {"ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe"},
      {"a0b:c0:d:1000::", "a0b:c0:d:1000::"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.text);
    const test::GuardedText text(row.text);
    const auto ip = parse_ip(text.view());
    REQUIRE(ip.has_value());
    CHECK(to_text(*ip) == row.canonical);
    CHECK(parse_ip(row.canonical) == ip);
    CHECK(ip->is_ipv6() == (row.text.find(':') != std::string_view::npos));
    CHECK(ip->is_ipv4() != ip->is_ipv6());
    CHECK(ip->bytes().size() == (ip->is_ipv4() ? 4 : 16));
  }
}

TEST_CASE("what is no address is none") {
  for (std::string_view text : {"",
                                "1",
                                "1.2.3",
                                "1.2.3.",
                                ".1.2.3",
                                "1.2.3.4.5",
                                "1..2.3",
                                "256.1.1.1",
                                "1.2.3.0004",
                                "1.2.3.4 ",
                                " 1.2.3.4",
                                "1.2.3.-4",
                                "a.b.c.d",
                                "example.org",
                                "1.2.3.4:5",
                                ":",
                                ":::",
                                "::1::",
                                "1::2::3",
                                "1:2:3:4:5:6:7",
                                "1:2:3:4:5:6:7:8:9",
                                "1:2:3:4:5:6:7:8::",
                                "::1:2:3:4:5:6:7:8",
                                "1:",
                                ":1",
                                "12345::",
                                "::g",
                                "1.2.3.4::",
                                "::1.2.3.4:5",
                                "1:2:3:4:5:6:7:1.2.3.4",
                                "::1.2.3",
                                "2001:db8:::192.0.2.1",
                                "[::1",
                                "::1]",
                                "[1.2.3.4]",
                                "[]",
                                "fe80::1%eth0"}) {
    CAPTURE(text);
    const test::GuardedText guarded(text);
    CHECK_FALSE(parse_ip(guarded.view()).has_value());
  }
}

TEST_CASE("every address that is written reads back as itself") {
  std::uint32_t state = 7;
  for (int i = 0; i < 20000; ++i) {
    IpAddress ip;
    ip.family = 6;
    for (std::size_t group = 0; group < 8; ++group) {
      state = state * 1664525U + 1013904223U;
      if (state >> 30 == 0) continue;  // a quarter of the groups is zero
      ip.octets[2 * group] = static_cast<std::uint8_t>(state >> 29 == 2 ? 0 : state >> 16);
      ip.octets[2 * group + 1] = static_cast<std::uint8_t>(state >> 8);
    }
    char text[max_ip_text];
    const std::size_t size = write_ip(ip, text);
    CAPTURE(to_text(ip));
    REQUIRE(size <= max_ip_text);
    REQUIRE(parse_ip({text, size}) == ip);
  }
  CHECK(to_text(IpAddress()).empty());
}

TEST_CASE("addresses know what kind they are") {
  struct Row {
    std::string_view text;
    bool unspecified, loopback, is_private;
  };
  const Row rows[] = {
      {"0.0.0.0", true, false, false},      {"127.0.0.1", false, true, false},
      {"127.255.0.1", false, true, false},  {"10.0.0.1", false, false, true},
      {"172.15.0.1", false, false, false},  {"172.16.0.1", false, false, true},
      {"172.31.255.1", false, false, true}, {"172.32.0.1", false, false, false},
      {"192.168.1.1", false, false, true},  {"192.169.1.1", false, false, false},
      {"169.254.1.1", false, false, true},  {"192.0.2.1", false, false, false},
      {"::", true, false, false},           {"::1", false, true, false},
      {"::2", false, false, false},         {"fe80::1", false, false, true},
      {"febf::1", false, false, true},      {"fec0::1", false, false, false},
      {"fc00::1", false, false, true},      {"fdff::1", false, false, true},
      {"2001:db8::1", false, false, false}, {"1::1", false, false, false},
  };
  for (const Row& row : rows) {
    CAPTURE(row.text);
    const IpAddress ip = *parse_ip(row.text);
    CHECK(ip.is_unspecified() == row.unspecified);
    CHECK(ip.is_loopback() == row.loopback);
    CHECK(ip.is_private() == row.is_private);
    CHECK(ip);
  }
  CHECK_FALSE(IpAddress());
  CHECK_FALSE(IpAddress().is_loopback());
  CHECK_FALSE(IpAddress().is_private());
}

TEST_CASE("socket addresses are written with brackets where they need them, and read back") {
  for (std::string_view text : {"192.0.2.1:5060", "[2001:db8::1]:5060", "0.0.0.0:0"}) {
    CAPTURE(text);
    const auto address = parse_socket_address(text);
    REQUIRE(address.ok());
    CHECK(to_text(*address) == text);
  }
  for (std::string_view text :
       {"", ":", "192.0.2.1", "192.0.2.1:", "192.0.2.1:65536", "2001:db8::1:5060", "[2001:db8::1]",
        "[192.0.2.1]:5060", "localhost:5060", "192.0.2.1:5060 ", "192.0.2.1:-1", "[::1:5060"}) {
    CAPTURE(text);
    CHECK(parse_socket_address(text).error().code == ErrorCode::bad_address);
  }
}

TEST_CASE("flows are equal when socket, transport and peer are") {
  Flow flow;
  flow.remote = *parse_socket_address("192.0.2.1:5060");
  Flow other = flow;
  CHECK(flow == other);
  other.remote.port = 5061;
  CHECK_FALSE(flow == other);
  other = flow;
  other.socket = 3;
  CHECK_FALSE(flow == other);
  other = flow;
  other.transport = Transport::tcp;
  CHECK_FALSE(flow == other);
  other = flow;
  other.remote.scope = 2;
  CHECK(flow.remote != other.remote);
}

TEST_CASE("transports have a name for Via and one for URIs") {
  for (Transport transport : {Transport::udp, Transport::tcp}) {
    CHECK(parse_transport(transport_name(transport)) == transport);
    CHECK(parse_transport(transport_parameter(transport)) == transport);
  }
  CHECK(transport_name(Transport::tcp) == "TCP");
  CHECK(transport_parameter(Transport::udp) == "udp");
  CHECK_FALSE(parse_transport("tls").has_value());
  CHECK_FALSE(parse_transport("").has_value());
}

}  // namespace test_address
