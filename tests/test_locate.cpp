// locate.hpp: which questions a URI leads to, in which order the answers are tried, and what is
// read of a reply to an SRV query. The resolver is a table here, and answers when the test says so.
// Not covered: the system's resolver, for which see net_dns.cpp.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "support/guarded.hpp"
#include "support/sipmsg.hpp"

namespace test_locate {

using namespace sipmsg;

namespace {

const SipHashKey key{};

/// Answers from a table. What is not in it has no address and no SRV records.
class Table final : public NameService {
 public:
  std::map<std::string, std::vector<IpAddress>> addresses;
  std::map<std::string, std::vector<SrvRecord>> services;
  std::map<std::string, Error> failures;
  std::vector<std::string> asked;

  /// "sip.example.org 192.0.2.1", or "_sip._udp.example.org 10 60 5060 sip.example.org", or
  /// "sip.example.org timeout"; any number of those, each in its line.
  explicit Table(const std::string& lines) {
    std::size_t begin = 0;
    while (begin < lines.size()) {
      const std::size_t end = std::min(lines.find('\n', begin), lines.size());
      add(words(lines.substr(begin, end - begin)));
      begin = end + 1;
    }
  }

  void look_up_addresses(const std::string& host, AddressHandler done) override {
    asked.push_back(host);
    later.push_back([this, host, done = std::move(done)] {
      const auto found = addresses.find(host);
      if (failures.count(host) != 0) return done(failures[host], {});
      if (found == addresses.end()) return done(ErrorCode::unknown_host, {});
      done({}, found->second);
    });
  }
  void look_up_srv(const std::string& name, SrvHandler done) override {
    asked.push_back(name);
    later.push_back([this, name, done = std::move(done)] {
      done(failures.count(name) != 0 ? failures[name] : Error(), services[name]);
    });
  }

  /// Gives the answers, the last question's first where `reversed`, until nothing is asked any
  /// more.
  void answer_all(bool reversed = false) {
    while (!later.empty()) {
      const auto next = reversed ? std::move(later.back()) : std::move(later.front());
      reversed ? later.pop_back() : later.pop_front();
      next();
    }
  }

  std::deque<std::function<void()>> later;

 private:
  static std::vector<std::string> words(const std::string& line) {
    std::vector<std::string> result(1);
    for (char c : line) {
      if (c != ' ') {
        result.back().push_back(c);
      } else if (!result.back().empty()) {
        result.emplace_back();
      }
    }
    return result;
  }
  void add(const std::vector<std::string>& row) {
    const auto number = [&](std::size_t i) {
      return static_cast<std::uint16_t>(std::stoi(row[i]));
    };
    if (row.size() == 5) {
      services[row[0]].push_back({number(1), number(2), number(3), row[4]});
    } else if (const auto ip = parse_ip(row.at(1))) {
      addresses[row[0]].push_back(*ip);
    } else {
      REQUIRE(row[1] == "timeout");
      failures[row[0]] = ErrorCode::timeout;
    }
  }
};

std::string to_text(const std::vector<Flow>& hops) {
  std::string text;
  for (const Flow& hop : hops) {
    if (!text.empty()) text += ", ";
    text.append(transport_parameter(hop.transport)).append(" ").append(to_text(hop.remote));
    CHECK(hop.socket == 0);
  }
  return text;
}

std::string join(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

/// The hops, or the name of the error, now or later.
std::string located(const std::string& uri, Table& table, bool reversed = false) {
  Random random(key);
  const auto parsed = parse_uri(uri);
  REQUIRE(parsed);
  std::string result;
  int calls = 0;
  const Error error = locate(*parsed, &table, random, [&](Error failed, std::vector<Flow> hops) {
    ++calls;
    CHECK(hops.empty() == static_cast<bool>(failed));
    result = failed ? failed.name() : to_text(hops);
  });
  if (error) {
    CHECK(table.later.empty());
    CHECK(calls == 0);
    return std::string("now ") + error.name();
  }
  table.answer_all(reversed);
  CHECK(calls == 1);
  return result;
}

}  // namespace

TEST_CASE("a numeric host is the next hop, at once and without a question") {
  const struct {
    const char* uri;
    const char* hops;
  } rows[] = {
      {"sip:bob@192.0.2.7", "udp 192.0.2.7:5060"},
      {"sip:bob@192.0.2.7:5070", "udp 192.0.2.7:5070"},
      {"sip:192.0.2.7;transport=tcp", "tcp 192.0.2.7:5060"},
      {"sip:192.0.2.7:5070;transport=TCP", "tcp 192.0.2.7:5070"},
      {"sip:bob@[2001:db8::7];transport=udp", "udp [2001:db8::7]:5060"},
      {"sip:bob@[2001:db8::7]:5070", "udp [2001:db8::7]:5070"},
      {"sip:bob@example.org;maddr=192.0.2.8", "udp 192.0.2.8:5060"},
      {"sip:bob@example.org:5070;maddr=[2001:db8::8]", "udp [2001:db8::8]:5070"},
  };
  for (const auto& row : rows) {
    CAPTURE(row.uri);
    Random random(key);
    std::string hops;
    CHECK_FALSE(locate(*parse_uri(row.uri), nullptr, random, [&](Error error, const auto& found) {
      CHECK_FALSE(error);
      hops = to_text(found);
    }));
    CHECK(hops == row.hops);
  }
}

TEST_CASE("what no look-up can help is refused at once") {
  const struct {
    const char* uri;
    const char* error;
  } rows[] = {
      {"sips:bob@example.org", "unsupported_scheme"},
      {"tel:+358555", "unsupported_scheme"},
      {"mailto:bob@example.org", "unsupported_scheme"},
      {"sip:bob@example.org;transport=tls", "unsupported_transport"},
      {"sip:bob@192.0.2.1;transport=sctp", "unsupported_transport"},
      {"sip:bob@example.org;transport", "unsupported_transport"},
      {"sip:bob@example.org;maddr=", "bad_host"},
      {"sip:bob@example.org;maddr=a%00b", "bad_host"},
      {"sip:bob@example.org;maddr=[::1", "bad_host"},
      // The system's resolver would take these for 127.0.0.1 and the like.
      {"sip:bob@127.1", "bad_host"},
      {"sip:bob@2130706433", "bad_host"},
      {"sip:bob@0x7f.0.0.0x1", "bad_host"},
      {"sip:bob@0X7F000001.", "bad_host"},
      {"sip:bob@256.1.1.1", "bad_host"},
      {"sip:bob@.", "bad_host"},
      {"sip:bob@example..", "bad_host"},
  };
  for (const auto& row : rows) {
    CAPTURE(row.uri);
    Table table("");
    CHECK(located(row.uri, table) == std::string("now ") + row.error);
    CHECK(table.asked.empty());
  }
  Table table("");
  CHECK(located("sip:" + std::string(254, 'a'), table) == "now bad_host");
  CHECK(located("sip:" + std::string(253, 'a'), table) == "unknown_host");
}

TEST_CASE("without somebody to ask, a name is no address") {
  Random random(key);
  CHECK(locate(*parse_uri("sip:bob@example.org"), nullptr, random, [](Error, const auto&) {
          FAIL("an error now is the only one");
        }).code == ErrorCode::bad_address);
}

TEST_CASE("a name is looked up as RFC 3263 section 4 has it") {
  const struct {
    const char* rule;
    const char* table;
    const char* uri;
    const char* asked;
    const char* hops;
  } rows[] = {
      {"an explicit port: addresses only, UDP",
       "_sip._udp.example.org 0 0 5999 b.example.org\nexample.org 192.0.2.1",
       "sip:bob@example.org:5070", "example.org", "udp 192.0.2.1:5070"},
      {"an explicit port and transport: addresses only", "example.org 192.0.2.1",
       "sip:bob@example.org:5060;transport=tcp", "example.org", "tcp 192.0.2.1:5060"},
      {"neither: SRV, UDP first, and then TCP is not asked for",
       "_sip._udp.example.org 0 0 5061 a.example.org\n_sip._tcp.example.org 0 0 5062 "
       "b.example.org\n"
       "a.example.org 192.0.2.1",
       "sip:bob@example.org", "_sip._udp.example.org a.example.org", "udp 192.0.2.1:5061"},
      {"neither, and only TCP has records",
       "_sip._tcp.example.org 0 0 5062 b.example.org\nb.example.org 192.0.2.2",
       "sip:bob@example.org", "_sip._udp.example.org _sip._tcp.example.org b.example.org",
       "tcp 192.0.2.2:5062"},
      {"neither, and no records: the host, UDP, 5060", "example.org 192.0.2.1",
       "sip:bob@example.org", "_sip._udp.example.org _sip._tcp.example.org example.org",
       "udp 192.0.2.1:5060"},
      {"a transport: its SRV only",
       "_sip._udp.example.org 0 0 5061 a.example.org\n_sip._tcp.example.org 0 0 5062 "
       "b.example.org\n"
       "b.example.org 192.0.2.2",
       "sip:bob@example.org;transport=tcp", "_sip._tcp.example.org b.example.org",
       "tcp 192.0.2.2:5062"},
      {"a transport without records: the host, with that transport", "example.org 192.0.2.1",
       "sip:bob@example.org;transport=tcp", "_sip._tcp.example.org example.org",
       "tcp 192.0.2.1:5060"},
      {"maddr is the name that counts",
       "_sip._udp.far.example.net 0 0 5061 a.example.net\na.example.net 192.0.2.9",
       "sip:bob@example.org;maddr=far.example.net", "_sip._udp.far.example.net a.example.net",
       "udp 192.0.2.9:5061"},
      {"a name without dot has no SRV records", "pbx 192.0.2.1", "sip:bob@pbx", "pbx",
       "udp 192.0.2.1:5060"},
      {"priorities in order, and all addresses of one server before the next",
       "_sip._udp.example.org 20 0 5062 b.example.org\n_sip._udp.example.org 10 0 5061 "
       "a.example.org\n"
       "a.example.org 2001:db8::1\na.example.org 192.0.2.1\nb.example.org 192.0.2.2",
       "sip:example.org", "_sip._udp.example.org a.example.org b.example.org",
       "udp [2001:db8::1]:5061, udp 192.0.2.1:5061, udp 192.0.2.2:5062"},
      {"the same address twice is tried once; at another port it is another",
       "_sip._udp.example.org 1 0 5060 a.example.org\n_sip._udp.example.org 2 0 5060 "
       "b.example.org\n"
       "_sip._udp.example.org 3 0 5080 a.example.org\na.example.org 192.0.2.1\na.example.org "
       "192.0.2.1\n"
       "b.example.org 192.0.2.1",
       "sip:example.org", "_sip._udp.example.org a.example.org b.example.org a.example.org",
       "udp 192.0.2.1:5060, udp 192.0.2.1:5080"},
      {"a server without address is passed over",
       "_sip._udp.example.org 1 0 5060 a.example.org\n_sip._udp.example.org 2 0 5060 "
       "b.example.org\n"
       "b.example.org 192.0.2.2",
       "sip:example.org", "_sip._udp.example.org a.example.org b.example.org",
       "udp 192.0.2.2:5060"},
      {"servers that exist but have no address: the host is not tried instead",
       "_sip._udp.example.org 1 0 5060 a.example.org\nexample.org 192.0.2.1", "sip:example.org",
       "_sip._udp.example.org a.example.org", "unknown_host"},
      {"0.0.0.0 and :: are nobody's address", "a.example.org 0.0.0.0\na.example.org ::",
       "sip:a.example.org:5060", "a.example.org", "unknown_host"},
      {"targets that are no names, and port 0, are passed over",
       "_sip._udp.example.org 1 0 5060 127.1\n_sip._udp.example.org 2 0 0 b.example.org\n"
       "_sip._udp.example.org 3 0 5060 a.example.org\na.example.org 192.0.2.1",
       "sip:example.org", "_sip._udp.example.org a.example.org", "udp 192.0.2.1:5060"},
      {"no service over UDP, says the domain, and TCP has one",
       "_sip._udp.example.org 0 0 0 .\n_sip._tcp.example.org 0 0 5062 b.example.org\n"
       "b.example.org 192.0.2.2",
       "sip:example.org", "_sip._udp.example.org _sip._tcp.example.org b.example.org",
       "tcp 192.0.2.2:5062"},
      {"no service over UDP, and none known over TCP",
       "_sip._udp.example.org 0 0 0 .\nexample.org 192.0.2.1", "sip:example.org",
       "_sip._udp.example.org _sip._tcp.example.org", "unsupported_transport"},
      {"no service over either", "_sip._udp.example.org 0 0 0 .\n_sip._tcp.example.org 0 0 0 .",
       "sip:example.org", "_sip._udp.example.org _sip._tcp.example.org", "unsupported_transport"},
      {"no service over the transport that was asked for",
       "_sip._tcp.example.org 0 0 0 .\nexample.org 192.0.2.1", "sip:example.org;transport=tcp",
       "_sip._tcp.example.org", "unsupported_transport"},
      {"a resolver that fails is not asked for TCP, but for the host",
       "_sip._udp.example.org timeout\nexample.org 192.0.2.1", "sip:example.org",
       "_sip._udp.example.org example.org", "udp 192.0.2.1:5060"},
      {"a resolver that fails for TCP only", "_sip._tcp.example.org timeout\nexample.org 192.0.2.1",
       "sip:example.org", "_sip._udp.example.org _sip._tcp.example.org example.org",
       "udp 192.0.2.1:5060"},
      {"what the resolver says is what the caller hears", "example.org timeout",
       "sip:example.org:5060", "example.org", "timeout"},
      {"nothing is found", "", "sip:example.org",
       "_sip._udp.example.org _sip._tcp.example.org example.org", "unknown_host"},
  };
  for (const auto& row : rows) {
    for (const bool reversed : {false, true}) {  // answers come in any order
      CAPTURE(row.rule);
      CAPTURE(reversed);
      Table table(row.table);
      CHECK(located(row.uri, table, reversed) == row.hops);
      CHECK(join(table.asked) == row.asked);
    }
  }
}

TEST_CASE("how much a domain can have us look up and try is limited") {
  Table table("");
  for (std::uint16_t i = 0; i < 100; ++i) {
    const std::string host = "s" + std::to_string(i) + ".example.org";
    table.services["_sip._udp.example.org"].push_back({i, 0, 5060, host});
    for (int n = 1; n <= 3; ++n) {
      table.addresses[host].push_back(
          *parse_ip("10." + std::to_string(i) + ".0." + std::to_string(n)));
    }
  }
  const std::string hops = located("sip:example.org", table);
  CHECK(table.asked.size() == 1 + max_srv_targets);
  CHECK(std::count(hops.begin(), hops.end(), ',') + 1 == max_next_hops);
  CHECK(hops.find("udp 10.0.0.1:5060, udp 10.0.0.2:5060, udp 10.0.0.3:5060, udp 10.1.0.1:5060") ==
        0);
}

TEST_CASE("the answers may come after the caller and his random numbers are gone") {
  Table table(
      "_sip._udp.example.org 0 1 5060 a.example.org\n_sip._udp.example.org 0 1 5060 b.example.org\n"
      "a.example.org 192.0.2.1\nb.example.org 192.0.2.2");
  std::size_t found = 0;
  {
    auto random = std::make_unique<Random>(key);
    const std::string uri = "sip:example.org";
    CHECK_FALSE(locate(*parse_uri(uri), &table, *random,
                       [&](Error, const auto& hops) { found = hops.size(); }));
  }
  table.answer_all();
  CHECK(found == 2);
}

TEST_CASE("a name service that forgets its handlers leaves nothing behind") {
  auto witness = std::make_shared<int>();
  {
    Table table("");
    Random random(key);
    CHECK_FALSE(locate(*parse_uri("sip:example.org"), &table, random,
                       [witness](Error, const auto&) { FAIL("it was closed"); }));
    CHECK(witness.use_count() == 2);
    table.later.clear();
  }
  CHECK(witness.use_count() == 1);
}

TEST_CASE("records of one priority come in proportion to their weights") {
  Random random(key);
  std::map<std::string, int> first;
  constexpr int rounds = 10000;
  for (int i = 0; i < rounds; ++i) {
    std::vector<SrvRecord> records{{20, 100, 1, "backup"},
                                   {10, 0, 1, "zero"},
                                   {10, 10, 1, "one"},
                                   {10, 30, 1, "three"},
                                   {10, 60, 1, "six"}};
    order_srv(records, random);
    CHECK(records[4].target == "backup");
    ++first[records[0].target];
  }
  // One in 101 for the weight of 0; the rest by weight. Six standard deviations are 300.
  CHECK(first["zero"] > 0);
  CHECK(first["zero"] < 200);
  CHECK(std::abs(first["one"] - 990) < 300);
  CHECK(std::abs(first["three"] - 2970) < 300);
  CHECK(std::abs(first["six"] - 5940) < 300);
  CHECK(first.size() == 4);
}

TEST_CASE("ordering keeps every record, whatever the weights") {
  Random random(key);
  for (std::size_t size = 0; size < 20; ++size) {
    std::vector<SrvRecord> records;
    for (std::size_t i = 0; i < size; ++i) {
      const std::uint64_t chance = random.next();
      records.push_back({static_cast<std::uint16_t>(chance % 3),
                         static_cast<std::uint16_t>(chance % 5 == 0 ? 65535 : chance % 7), 1,
                         std::to_string(i)});
    }
    order_srv(records, random);
    std::map<std::string, int> seen;
    for (std::size_t i = 0; i < size; ++i) {
      ++seen[records[i].target];
      if (i > 0) CHECK(records[i - 1].priority <= records[i].priority);
    }
    CHECK(seen.size() == size);
  }
}

// The reply to an SRV query.

namespace {

std::string number_16(unsigned value) {
  return {static_cast<char>(value >> 8), static_cast<char>(value & 0xff)};
}

/// "a.example.org" as labels; a final "@N" points to offset N instead of ending.
std::string labels(const std::string& name) {
  std::string wire;
  std::size_t begin = 0;
  while (begin < name.size()) {
    if (name[begin] == '@') {
      return wire + number_16(0xc000U | static_cast<unsigned>(std::stoi(name.substr(begin + 1))));
    }
    const std::size_t end = std::min(name.find('.', begin), name.size());
    wire.push_back(static_cast<char>(end - begin));
    wire += name.substr(begin, end - begin);
    begin = end + 1;
  }
  return wire + '\0';
}

constexpr unsigned srv = 33;

std::string record(const std::string& owner, unsigned type, const std::string& data,
                   unsigned record_class = 1) {
  return labels(owner) + number_16(type) + number_16(record_class) + std::string("\0\0\0\x3c", 4) +
         number_16(static_cast<unsigned>(data.size())) + data;
}
std::string service(unsigned priority, unsigned weight, unsigned port, const std::string& target) {
  return number_16(priority) + number_16(weight) + number_16(port) + target;
}

/// The question stands at offset 12, its "example.org" at 22.
std::string reply(const std::vector<std::string>& answers, unsigned flags = 0x8180) {
  std::string wire = "id" + number_16(flags) + number_16(1) +
                     number_16(static_cast<unsigned>(answers.size())) + std::string(4, '\0') +
                     labels("_sip._udp.example.org") + number_16(srv) + number_16(1);
  for (const std::string& answer : answers) wire += answer;
  return wire;
}

std::string parsed(const std::string& wire) {
  const test::GuardedText guarded(wire);
  const auto records = parse_srv_answer(guarded.view());
  if (!records) {
    CHECK(records.error().place >= 0);
    CHECK(static_cast<std::size_t>(records.error().place) <= wire.size());
    return records.error().name();
  }
  std::string text;
  for (const SrvRecord& found : *records) {
    text += (text.empty() ? "" : ", ") + std::to_string(found.priority) + " " +
            std::to_string(found.weight) + " " + std::to_string(found.port) + " " + found.target;
  }
  return text;
}

}  // namespace

TEST_CASE("the SRV records of a reply are read") {
  const std::string full = labels("sip.example.org");
  const std::string one = record("_sip._udp.example.org", srv, service(10, 60, 5060, full));
  const struct {
    const char* rule;
    std::string wire;
    std::string records;
  } rows[] = {
      {"one", reply({one}), "10 60 5060 sip.example.org"},
      {"the owner and the target may be compressed",
       reply({record("@12", srv, service(1, 2, 65535, labels("a.@22"))),
              record("@12", srv, service(65535, 0, 1, labels("@22")))}),
       "1 2 65535 a.example.org, 65535 0 1 example.org"},
      {"no such service", reply({record("@12", srv, service(0, 0, 0, labels("")))}), "0 0 0 ."},
      {"aliases, other types and other classes are passed over",
       reply({record("@12", 5, labels("elsewhere.@22")), record("@12", 16, "\x03txt"),
              record("@12", srv, service(9, 9, 9, full), 3), one}),
       "10 60 5060 sip.example.org"},
      {"none", reply({}), ""},
      {"no such name", reply({}, 0x8183), ""},
      {"a target that no host can have",
       reply({record("@12", srv, service(1, 1, 1, labels("a b.org"))), one}),
       "10 60 5060 sip.example.org"},
      {"a dot within a label",
       reply({record("@12", srv,
                     service(1, 1, 1,
                             "\x03"
                             "a.b" +
                                 labels("@22")))}),
       ""},
      {"more after the answers is not read", reply({one}) + "rubbish",
       "10 60 5060 sip.example.org"},
  };
  for (const auto& row : rows) {
    CAPTURE(row.rule);
    CHECK(parsed(row.wire) == row.records);
  }
}

TEST_CASE("a name of a reply is at most 253 octets of text") {
  const std::string label(63, 'a');
  std::string name = label + "." + label + "." + label + ".";
  CHECK(
      parsed(reply({record("@12", srv, service(1, 1, 1, labels(name + std::string(61, 'b'))))})) ==
      "1 1 1 " + name + std::string(61, 'b'));
  CHECK(
      parsed(reply({record("@12", srv, service(1, 1, 1, labels(name + std::string(62, 'b'))))})) ==
      "bad_dns_answer");
}

TEST_CASE("a reply that does not fit together is refused") {
  const std::string full = labels("sip.example.org");
  const std::string good = reply({record("@12", srv, service(10, 60, 5060, full))});
  const std::size_t target = good.size() - full.size();
  const auto with_target = [&](const std::string& wire) {
    return reply({record("@12", srv, service(10, 60, 5060, wire))});
  };
  const struct {
    const char* rule;
    std::string wire;
  } rows[] = {
      {"nothing", ""},
      {"a query", reply({}, 0x0100)},
      {"the server failed", reply({}, 0x8182)},
      {"the server refused", reply({}, 0x8185)},
      {"a pointer to itself", with_target(number_16(0xc000U | static_cast<unsigned>(target)))},
      {"a pointer to the label before it",
       with_target("\x01"
                   "a" +
                   number_16(0xc000U | static_cast<unsigned>(target)))},
      {"a pointer forward", with_target(number_16(0xc000U | static_cast<unsigned>(target + 2)))},
      {"a pointer out of the message", with_target(number_16(0xffff))},
      {"a label of a kind that is not defined",
       with_target(std::string(1, '\x40') + std::string(64, 'a') + '\0')},
      {"an owner of such a kind", reply({std::string(1, '\x80') + std::string(128, 'a') +
                                         record("", srv, service(1, 1, 1, full))})},
      {"the record goes on after the target", with_target(full + "x")},
      {"the record ends within the target", with_target(full.substr(0, full.size() - 1)) + '\0'},
      {"a record of two octets", reply({record("@12", srv, "ab")})},
  };
  for (const auto& row : rows) {
    CAPTURE(row.rule);
    CHECK(parsed(row.wire) == "bad_dns_answer");
  }
  for (std::size_t size = 0; size < good.size(); ++size) {
    CAPTURE(size);
    CHECK(parsed(good.substr(0, size)) == "bad_dns_answer");
  }
}

TEST_CASE("of one reply a limited number of records is read") {
  const std::vector<std::string> many(1000, record("@12", srv, service(1, 1, 1, labels("@22"))));
  const auto records = parse_srv_answer(reply(many));
  REQUIRE(records);
  CHECK(records->size() == max_srv_records);
}

TEST_CASE("a chain of pointers ends where it began, however long") {
  // In a record that is passed over: the root, and then pointers, each to the one before.
  const std::size_t begin = reply({record("@12", 16, "")}).size();
  std::string chain(1, '\0');
  chain += number_16(0xc000U | static_cast<unsigned>(begin));
  while (begin + chain.size() < 0x3ffe) {
    chain += number_16(0xc000U | static_cast<unsigned>(begin + chain.size() - 2));
  }
  const auto last = std::to_string(begin + chain.size() - 2);
  CHECK(parsed(reply({record("@12", 16, chain),
                      record("@12", srv, service(1, 2, 3, labels("@" + last)))})) == "1 2 3 .");
}

}  // namespace test_locate
