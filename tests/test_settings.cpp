// The configuration files: every key, what is said about mistakes, the samples and the manual.
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "support/data.hpp"
#include "support/sipmsg.hpp"

namespace test_settings {

using namespace sipmsg;

namespace {

struct Loaded {
  Settings settings;
  Diagnostics diagnostics;
  Error error;

  /// The remarks that are no hints, one per line.
  std::string complaints() const {
    std::string out;
    for (const Diagnostic& diagnostic : diagnostics) {
      if (diagnostic.severity != Severity::info) out += to_text(diagnostic) + "\n";
    }
    return out;
  }
  bool says(const std::string& text) const {
    for (const Diagnostic& diagnostic : diagnostics) {
      if (to_text(diagnostic) == text) return true;
    }
    return false;
  }
};

Loaded load(const std::string& ysipchan, const std::string& regfile = "") {
  Loaded loaded;
  const IniOptions options;
  const Ini first = parse_ini(ysipchan, "y.conf", options, loaded.diagnostics);
  const Ini second = parse_ini(regfile, "r.conf", options, loaded.diagnostics);
  const RunParameters parameters = {{"configpath", "/etc/sipmsg"}};
  loaded.error = load_settings(first, second, parameters, loaded.settings, loaded.diagnostics);
  return loaded;
}

/// Where the keys of the first listener and all others are found.
SettingTarget target_of(Settings& settings) {
  REQUIRE_FALSE(settings.listeners.empty());
  return {settings, settings.listeners.front()};
}

std::string header_of(const SettingKey& row) {
  if (row.section == "regfile") return "[general]";
  return "[" + std::string(row.section == "listener" ? "listener x" : row.section) + "]";
}

/// A file that sets one key to one value, and in which a listener has a port of its own.
Loaded load_key(const SettingKey& row, const std::string& value) {
  const std::string line = std::string(row.key) + "=" + value + "\n";
  if (row.section == "regfile") return load("", "[general]\n" + line);
  if (row.section != "listener") return load(header_of(row) + "\n" + line);
  const bool is_port = row.key == "port";
  return load("[general]\nport=5090\n[listener x]\n" + line + (is_port ? "" : "port=5070\n"));
}

std::string value_of(const SettingKey& row, Loaded& loaded) {
  Settings& settings = loaded.settings;
  REQUIRE_FALSE(settings.listeners.empty());
  return setting_text(row, {settings, settings.listeners.back()});
}

std::string default_of(const SettingKey& row) {
  Settings settings;
  return setting_text(row, target_of(settings));
}

bool is_honoured(const SettingKey& row) { return row.kind != SettingKind::without_effect; }

/// The file `name` of the repository.
std::string read_repository(const std::string& name) { return test::read_data("../../" + name); }

bool ends_with(const std::string& text, const std::string& ending) {
  return text.size() >= ending.size() &&
         text.compare(text.size() - ending.size(), ending.size(), ending) == 0;
}

}  // namespace

TEST_CASE("the table names no key twice") {
  for (const SettingKey& row : setting_keys()) {
    int times = 0;
    for (const SettingKey& other : setting_keys()) {
      if (row.section == other.section && row.key == other.key) ++times;
    }
    CAPTURE(row.section);
    CAPTURE(row.key);
    CHECK(times == 1);
    CHECK(is_honoured(row) == row.reason.empty());
  }
  CHECK(std::size(setting_keys()) > 90);
}

TEST_CASE("without files everything is as in Yate, and one learns that messages are off") {
  Settings settings;
  Diagnostics diagnostics;
  CHECK_FALSE(load_settings(Ini(), Ini(), {}, settings, diagnostics));
  Settings fresh;
  for (const SettingKey& row : setting_keys()) {
    CAPTURE(row.key);
    CHECK(setting_text(row, target_of(settings)) == setting_text(row, target_of(fresh)));
  }
  REQUIRE(settings.listeners.size() == 1);
  const ListenerSettings& listener = settings.listeners[0];
  CHECK(listener.name == "general");
  CHECK(listener.type == Transport::udp);
  CHECK(listener.address == "0.0.0.0");
  CHECK(listener.port == 5060);
  CHECK(settings.digest.realm == "Yate");
  CHECK_FALSE(settings.message.enable);
  REQUIRE(diagnostics.size() == 2);
  CHECK(to_text(diagnostics[0]) ==
        "ysipchan.conf: info: messages are off and answered 501; enable=yes in [message] switches "
        "them on");
  CHECK(to_text(diagnostics[1]) == "regfile.conf: info: no user is listed");
}

TEST_CASE("the defaults are those of Yate") {
  struct Row {
    const char* section;
    const char* key;
    const char* value;
  };
  const Row rows[] = {
      {"listener", "type", "udp"},
      {"listener", "port", "5060"},
      {"listener", "maxpkt", "65528"},
      {"listener", "tcp_maxpkt", "65528"},
      {"listener", "buffer", "0"},
      {"listener", "backlog", "5"},
      {"listener", "tcp_idle", "120"},
      {"listener", "ignorevia", "yes"},
      {"general", "realm", "Yate"},
      {"general", "maxforwards", "20"},
      {"general", "floodevents", "100"},
      {"general", "floodprotection", "yes"},
      {"general", "nat", "yes"},
      {"general", "congestion_retry", "30"},
      {"general", "t1", "500"},
      {"general", "t4", "5000"},
      {"options", "enable", "yes"},
      {"registrar", "enable", "yes"},
      {"registrar", "expires_min", "60"},
      {"registrar", "expires_def", "600"},
      {"registrar", "expires_max", "3600"},
      {"registrar", "auth_required", "yes"},
      {"registrar", "nat_refresh", "25"},
      {"message", "enable", "no"},
      {"message", "auth_required", "yes"},
      {"message", "async_process", "yes"},
      {"message", "auth_code", "401"},
      {"message", "offline_code", "405"},
      {"regfile", "autocreate", "no"},
      {"regfile", "route", "100"},
      {"general", "algorithms", "MD5"},
      {"general", "nonce_lifetime", "300"},
      {"general", "printmsg", "no"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.key);
    bool found = false;
    for (const SettingKey& key : setting_keys()) {
      if (key.section != row.section || key.key != row.key) continue;
      found = true;
      CHECK(default_of(key) == row.value);
    }
    CHECK(found);
  }
}

TEST_CASE("every boolean is read, and keeps its default for what is none") {
  for (const SettingKey& row : setting_keys()) {
    if (row.kind != SettingKind::boolean) continue;
    CAPTURE(row.section);
    CAPTURE(row.key);
    for (const char* word : {"yes", "no"}) {
      Loaded loaded = load_key(row, word);
      CHECK(value_of(row, loaded) == word);
      CHECK(loaded.complaints() == "");
    }
    for (const char* word : {"1", "0", "YES", "", "yes ; please"}) {
      CAPTURE(word);
      Loaded loaded = load_key(row, word);
      CHECK(value_of(row, loaded) == default_of(row));
      CHECK(count(loaded.diagnostics, Severity::warning) == 1);
      CHECK_FALSE(loaded.error);
    }
  }
}

TEST_CASE("every number is read, held within its range, and keeps its default for what is none") {
  for (const SettingKey& row : setting_keys()) {
    if (row.kind != SettingKind::number) continue;
    CAPTURE(row.section);
    CAPTURE(row.key);
    CHECK(row.minimum < row.maximum);
    CHECK(std::stoull(default_of(row)) >= row.minimum);
    CHECK(std::stoull(default_of(row)) <= row.maximum);
    // Keys that other keys bound as well have test cases of their own.
    const bool stands_alone = row.key != "t1" && row.key != "t4" && row.key != "tcp_idle" &&
                              row.key.substr(0, 7) != "expires";

    for (std::uint64_t value : {row.minimum, row.maximum}) {
      if (!stands_alone) continue;
      Loaded loaded = load_key(row, std::to_string(value));
      CHECK(value_of(row, loaded) == std::to_string(value));
      CHECK(loaded.complaints() == "");
    }
    for (const std::string& value : {std::to_string(row.maximum + 1), std::string("-1"),
                                     std::string("99999999999999999999")}) {
      CAPTURE(value);
      Loaded loaded = load_key(row, value);
      if (row.out_of_range == OutOfRange::refuse) {
        CHECK(loaded.error.code == ErrorCode::bad_configuration);
        CHECK(count(loaded.diagnostics, Severity::error) == 1);
        continue;
      }
      CHECK_FALSE(loaded.error);
      CHECK(count(loaded.diagnostics, Severity::warning) >= 1);
      const std::uint64_t nearest = value == "-1" ? row.minimum : row.maximum;
      if (row.out_of_range == OutOfRange::use_default) {
        CHECK(value_of(row, loaded) == default_of(row));
      } else if (stands_alone) {
        CHECK(value_of(row, loaded) == std::to_string(nearest));
      }
    }
    for (const char* value : {"", "many", "1x", "1.5"}) {
      CAPTURE(value);
      Loaded loaded = load_key(row, value);
      CHECK(value_of(row, loaded) == default_of(row));
      CHECK(count(loaded.diagnostics, Severity::warning) == 1);
      CHECK_FALSE(loaded.error);
    }
  }
}

TEST_CASE("texts, lists, keywords and algorithms are read") {
  struct Row {
    const char* key;
    const char* written;
    const char* used;
    const char* complaint;
  };
  const Row rows[] = {
      {"realm", "a \"quoted\" one", "a \"quoted\" one", ""},
      {"realm", "", "Yate",
       "y.conf:2: warning: [general] realm: empty is not allowed; allowed: text; used instead: "
       "Yate\n"},
      {"realm", "a\x1b[31m", "Yate",
       "y.conf:2: warning: [general] realm: \"a?[31m\" is not allowed; allowed: text; used "
       "instead: Yate\n"},
      {"useragent", "mine/1", "mine/1", ""},
      {"role", "", "", ""},
      {"role", "inside", "inside", ""},
      {"domains", "", "", ""},
      {"domains", "*", "*", ""},
      {"domains", " Example.ORG, 192.0.2.1 ,[2001:DB8::1],::1",
       "example.org,192.0.2.1,[2001:db8::1],::1", ""},
      {"domains", "example.org:5060, other.org", "other.org",
       "y.conf:2: warning: [general] domains: \"example.org:5060\" is left out; allowed: host "
       "names "
       "and addresses without port, or *\n"},
      {"algorithms", "sha-256 , MD5", "SHA-256,MD5", ""},
      {"algorithms", "SHA-512-256-sess,MD5,md5", "SHA-512-256-sess,MD5", ""},
      {"algorithms", " , ", "MD5",
       "y.conf:2: warning: [general] algorithms: \",\" is not allowed; allowed: list of MD5, "
       "SHA-256, SHA-512-256; used instead: MD5\n"},
      {"algorithms", "MD5,SHA-1", "MD5",
       "y.conf:2: error: [general] algorithms: \"SHA-1\" is no algorithm we know; allowed: list of "
       "MD5, SHA-256, SHA-512-256\n"},
      {"type", "tcp", "tcp", ""},
  };
  for (const Row& row : rows) {
    CAPTURE(row.key);
    CAPTURE(row.written);
    Loaded loaded = load("[general]\n" + std::string(row.key) + "=" + row.written + "\n");
    CHECK(loaded.complaints() == row.complaint);
    for (const SettingKey& key : setting_keys()) {
      if (key.key != row.key || (key.section != "general" && key.section != "listener")) continue;
      CHECK(setting_text(key, target_of(loaded.settings)) == row.used);
    }
  }
}

TEST_CASE("what asks a sender for a password is 401 or 407 and nothing else") {
  CHECK(load("[message]\nauth_code=407\n").settings.message.auth_code == 407);
  const Loaded loaded = load("[message]\nauth_code=403\n");
  CHECK(loaded.settings.message.auth_code == 401);
  CHECK(loaded.complaints() ==
        "y.conf:2: warning: [message] auth_code: \"403\" is not allowed; allowed: 401 or 407; used "
        "instead: 401\n");
}

TEST_CASE("a value that cannot be used is named with what was found, allowed and used") {
  CHECK(load("[message]\nenable=1\n")
            .says("y.conf:2: warning: [message] enable: \"1\" is not allowed; allowed: yes or no "
                  "(true on enable "
                  "t, false off disable f); used instead: no"));
  CHECK(load("[general]\n\nt1=90\n")
            .says("y.conf:3: warning: [general] t1: \"90\" is not allowed; allowed: 100 to 5000; "
                  "used instead: "
                  "500"));
  CHECK(load("[general]\nmaxpkt=100000\n")
            .says("y.conf:2: warning: [general] maxpkt: \"100000\" is not allowed; allowed: 524 to "
                  "65528; used "
                  "instead: 65528"));
  CHECK(load("[general]\nnat=no ; never\n")
            .says("y.conf:2: warning: [general] nat: \"no ; never\" is not allowed; allowed: yes "
                  "or no (true on "
                  "enable t, false off disable f); used instead: yes (a ; behind a value begins no "
                  "comment)"));
  const std::string a_lot(1000, 'x');
  CHECK(load("[general]\nt1=" + a_lot + "\n").complaints().size() < 250);
  CHECK(load("[general]\n" + a_lot + "=1\n").complaints().size() < 250);
}

TEST_CASE("an unknown key is a warning that knows better") {
  struct Row {
    const char* text;
    const char* remark;
  };
  const Row rows[] = {
      {"[general]\nmaxforward=1\n",
       "[general] maxforward: unknown key; did you mean \"maxforwards\"?"},
      {"[general]\nMaxForwards=1\n",
       "[general] MaxForwards: unknown key; did you mean \"maxforwards\"?"},
      {"[general]\nflodevents=1\n",
       "[general] flodevents: unknown key; did you mean \"floodevents\"?"},
      {"[general]\nprot=1\n", "[general] prot: unknown key; did you mean \"port\"?"},
      {"[general]\nlazy10=1\n", "[general] lazy10: unknown key; did you mean \"lazy100\"?"},
      {"[message]\nenabled=yes\n", "[message] enabled: unknown key; did you mean \"enable\"?"},
      {"[registrar]\nexpire_max=9\n",
       "[registrar] expire_max: unknown key; did you mean \"expires_max\"?"},
      {"[general]\nauth_required=no\n",
       "[general] auth_required: unknown key; it belongs to [registrar], [message]"},
      {"[general]\nenable=yes\n",
       "[general] enable: unknown key; it belongs to [listener NAME], [options], [registrar], "
       "[message], [offline]"},
      {"[message]\nport=5060\n", "[message] port: unknown key; it belongs to [listener NAME]"},
      {"[listener x]\nport=1\nrealm=x\n",
       "[listener x] realm: unknown key; it belongs to [general]"},
      {"[general]\nautocreate=yes\n", "[general] autocreate: unknown key"},
      {"[general]\nwhatever=1\n", "[general] whatever: unknown key"},
      {"[general]\nx=1\n", "[general] x: unknown key"},
      {"[general]\n# port=1\n", "[general] # port: unknown key; only ; begins a comment"},
      {"[mesage]\nenable=yes\n", "[mesage]: unknown section; did you mean [message]?"},
      {"[Message]\nenable=yes\n", "[Message]: unknown section; did you mean [message]?"},
      {"[listener]\ntype=tcp\n",
       "[listener]: unknown section; a listener is written [listener NAME]"},
      {"[listner x]\ntype=tcp\n",
       "[listner x]: unknown section; a listener is written [listener NAME]"},
      {"[users]\na=b\n", "[users]: unknown section"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.text);
    const Loaded loaded = load(row.text);
    CHECK_FALSE(loaded.error);
    REQUIRE(count(loaded.diagnostics, Severity::warning) == 1);
    CHECK(ends_with(loaded.complaints(), ": warning: " + std::string(row.remark) + "\n"));
  }
}

TEST_CASE("the distance of two names counts the slips of a hand") {
  struct Row {
    const char* a;
    const char* b;
    std::size_t distance;
  };
  const Row rows[] = {
      {"", "", 0},         {"abc", "abc", 0},  {"abc", "ABC", 0},        {"", "abc", 3},
      {"abc", "abxc", 1},  {"abxc", "abc", 1}, {"abc", "axc", 1},        {"abc", "acb", 1},
      {"port", "prot", 1}, {"abc", "xyz", 3},  {"kitten", "sitting", 3}, {"ca", "abc", 3},
  };
  for (const Row& row : rows) {
    CAPTURE(row.a);
    CAPTURE(row.b);
    CHECK(detail::edit_distance(row.a, row.b) == row.distance);
    CHECK(detail::edit_distance(row.b, row.a) == row.distance);
  }
  CHECK(detail::edit_distance(std::string(100, 'a'), std::string(100, 'a')) >= 40);
}

TEST_CASE("a key without effect is named once, with the reason") {
  for (const SettingKey& row : setting_keys()) {
    if (is_honoured(row)) continue;
    CAPTURE(row.section);
    CAPTURE(row.key);
    const bool whole_section = row.key == "*";
    const std::string key = whole_section ? "anything" : std::string(row.key);
    const std::string text = header_of(row) + "\n" +
                             (row.section == "listener" ? "port=5070\n" : "") + key + "=1\n" + key +
                             "=2\n";
    const Loaded loaded = row.section == "regfile" ? load("", text) : load(text);
    CHECK(loaded.complaints() == "");
    int times = 0;
    for (const Diagnostic& diagnostic : loaded.diagnostics) {
      if (ends_with(diagnostic.text, "has no effect: " + std::string(row.reason))) ++times;
    }
    CHECK(times == 1);
  }
  const Loaded loaded =
      load("[general]\nudp_force_bind=yes\n[listener x]\nport=1\nudp_force_bind=no\n");
  CHECK(loaded.says(
      "y.conf:2: info: [general] udp_force_bind: has no effect: a port that is taken is an error, "
      "never another port"));
  CHECK(load("[codecs]\nmulaw=yes\nalaw=no\n")
            .says("y.conf:1: info: [codecs]: has no effect: calls and media are not served"));
}

TEST_CASE("of a key that stands twice the first counts, and the other is remarked") {
  const Loaded loaded = load("[general]\nt1=200\nt1=300\n");
  CHECK(loaded.settings.timers.t1_ms == 200);
  CHECK(loaded.complaints() ==
        "y.conf:3: warning: [general] t1: stands here again; the first, y.conf:2, counts\n");
}

TEST_CASE("the hint how to switch messages on stands where one would look") {
  const std::string hint =
      "messages are off and answered 501; enable=yes in [message] switches them on";
  CHECK(load("").says("y.conf: info: " + hint));
  CHECK(load("[message]\nauth_required=no\n").says("y.conf:1: info: [message]: " + hint));
  CHECK(load("[message]\n\nenable=no\n").says("y.conf:3: info: [message] enable: " + hint));
  CHECK(load("[message]\nenable=yes\n", "[a]\npassword=x\n").diagnostics.empty());
}

TEST_CASE("[general] is the first listener, and each [listener NAME] one more") {
  const Loaded loaded = load(
      "[general]\naddr=127.0.0.1\nport=5070\nmaxpkt=2000\ntcp_maxpkt=3000\nbuffer=4000\ntcp_idle="
      "90\n"
      "ignorevia=no\nrole=first\nbacklog=9\n"
      "[listener tcp]\ntype=tcp\naddr=127.0.0.1\nport=5070\n"
      "[listener  other one ]\nport=5080\nmaxpkt=600\ntcp_maxpkt=700\nbuffer=1\ntcp_idle=200\n"
      "ignorevia=yes\nrole=second\nbacklog=7\n");
  CHECK(loaded.complaints() == "");
  const auto& listeners = loaded.settings.listeners;
  REQUIRE(listeners.size() == 3);
  CHECK(listeners[0].name == "general");
  CHECK(listeners[0].address == "127.0.0.1");
  CHECK(listeners[0].port == 5070);
  CHECK(listeners[0].role == "first");
  CHECK(listeners[0].backlog == 9);

  CHECK(listeners[1].name == "tcp");
  CHECK(listeners[1].type == Transport::tcp);
  CHECK(listeners[1].port == 5070);
  CHECK(listeners[1].max_datagram_octets == 2000);
  CHECK(listeners[1].max_stream_message_octets == 3000);
  CHECK(listeners[1].receive_buffer_octets == 4000);
  CHECK(listeners[1].tcp_idle_s == 90);
  CHECK_FALSE(listeners[1].answer_to_source);
  CHECK_MESSAGE(listeners[1].role == "", "a role is not handed on");
  CHECK(listeners[1].backlog == 5);

  CHECK(listeners[2].name == "other one");
  CHECK(listeners[2].address == "0.0.0.0");
  CHECK(listeners[2].max_datagram_octets == 600);
  CHECK(listeners[2].max_stream_message_octets == 700);
  CHECK(listeners[2].receive_buffer_octets == 1);
  CHECK(listeners[2].tcp_idle_s == 200);
  CHECK(listeners[2].answer_to_source);
  CHECK(listeners[2].role == "second");
  CHECK(listeners[2].backlog == 7);
}

TEST_CASE("[listener general] takes the place of [general], and stays the first") {
  const Loaded loaded = load(
      "[listener x]\nport=5070\n[general]\nport=5080\nmaxpkt=2000\n[listener general]\ntype=tcp\n");
  CHECK(loaded.complaints() == "");
  const auto& listeners = loaded.settings.listeners;
  REQUIRE(listeners.size() == 2);
  CHECK(listeners[0].name == "general");
  CHECK(listeners[0].type == Transport::tcp);
  CHECK(listeners[0].port == 5060);
  CHECK(listeners[0].max_datagram_octets == 2000);
  CHECK(listeners[1].name == "x");
  CHECK(loaded.says(
      "y.conf:4: info: [general] port: has no effect: [listener general] takes its place"));
  CHECK_FALSE(load("[general]\ntype=tls\naddr=x\nport=y\n[listener general]\n").error);
}

TEST_CASE("addresses of listeners") {
  struct Row {
    const char* keys;
    const char* address;  ///< empty: refused
    bool ipv6;
    std::size_t warnings;
  };
  const Row rows[] = {
      {"", "0.0.0.0", false, 0},
      {"addr=\n", "0.0.0.0", false, 0},
      {"addr=192.0.2.7\n", "192.0.2.7", false, 0},
      {"addr=::1\n", "::1", true, 0},
      {"addr=fe80::1%eth0\n", "fe80::1%eth0", true, 0},
      {"ipv6=yes\n", "::", true, 0},
      {"addr=\nipv6=yes\n", "::", true, 0},
      {"ipv6=no\n", "0.0.0.0", false, 0},
      {"addr=::1\nipv6=yes\n", "::1", true, 0},
      {"addr=::1\nipv6=no\n", "::1", true, 1},
      {"addr=127.0.0.1\nipv6=yes\n", "127.0.0.1", false, 1},
      {"addr=localhost\n", "", false, 0},
      {"addr=1.2.3\n", "", false, 0},
      {"addr=1.2.3.4.5\n", "", false, 0},
      {"addr=256.1.1.1\n", "", false, 0},
      {"addr=[::1]\n", "", false, 0},
      {"addr=127.0.0.1%lo\n", "", false, 0},
      {"addr=127.0.0.1:5060\n", "", false, 0},
  };
  for (const Row& row : rows) {
    CAPTURE(row.keys);
    for (const char* section : {"[general]\n", "[listener x]\n"}) {
      const bool extra = section[1] == 'l';
      Loaded loaded = load(std::string(section) + row.keys + (extra ? "port=5070\n" : ""));
      const auto& listeners = loaded.settings.listeners;
      CHECK(count(loaded.diagnostics, Severity::warning) == row.warnings);
      if (row.address[0] == '\0') {
        CHECK(loaded.error.code == ErrorCode::bad_configuration);
        CHECK(listeners.size() == (extra ? 1 : 0));
        continue;
      }
      CHECK_FALSE(loaded.error);
      REQUIRE(listeners.size() == (extra ? 2 : 1));
      CHECK(listeners.back().address == row.address);
      CHECK(listeners.back().ipv6 == row.ipv6);
    }
  }
  CHECK(load("[general]\naddr=localhost\n")
            .says("y.conf:2: error: [general] addr: \"localhost\" is not a numeric IPv4 or IPv6 "
                  "address; allowed: "
                  "one, or empty for all addresses"));
}

TEST_CASE("a kind of listener that is not served is an error, and that listener is left out") {
  Loaded loaded = load("[listener s]\ntype=tls\nport=5061\n");
  CHECK(loaded.error.code == ErrorCode::bad_configuration);
  CHECK(loaded.settings.listeners.size() == 1);
  CHECK(loaded.complaints() ==
        "y.conf:2: error: [listener s] type: tls is not supported here; allowed: udp or tcp\n");

  loaded = load("[general]\ntype=sctp\n");
  CHECK(loaded.settings.listeners.empty());
  CHECK(loaded.complaints() ==
        "y.conf:2: error: [general] type: \"sctp\" is not allowed; allowed: udp or tcp\n");
  CHECK(load("[general]\nport=70000\n").complaints() ==
        "y.conf:2: error: [general] port: \"70000\" is not allowed; allowed: 0 to 65535\n");
}

TEST_CASE("a listener that is off keeps nobody from starting") {
  const Loaded loaded = load("[listener s]\nenable=no\ntype=tls\naddr=nowhere\nport=5060\n");
  CHECK_FALSE(loaded.error);
  CHECK(count(loaded.diagnostics, Severity::warning) == 2);
  REQUIRE(loaded.settings.listeners.size() == 2);
  CHECK_FALSE(loaded.settings.listeners[1].enable);
}

TEST_CASE("two listeners for one port are an error") {
  struct Row {
    const char* first;
    const char* second;
    bool clash;
  };
  const Row rows[] = {
      {"", "", true},
      {"", "type=tcp\n", false},
      {"", "port=5061\n", false},
      {"port=0\n", "port=0\n", false},
      {"addr=127.0.0.1\n", "addr=127.0.0.2\n", false},
      {"addr=127.0.0.1\n", "addr=127.0.0.1\n", true},
      {"addr=127.0.0.1\n", "", true},
      {"", "addr=127.0.0.1\n", true},
      {"", "ipv6=yes\n", false},
      {"addr=::1\n", "addr=0:0::0:1\n", true},
      {"addr=::1\n", "addr=::2\n", false},
      {"addr=::\n", "addr=::2\n", true},
      {"addr=fe80::1%eth0\n", "addr=fe80::1%eth1\n", false},
      {"addr=fe80::1%eth0\n", "addr=fe80::1%eth0\n", true},
      {"", "enable=no\n", false},
  };
  for (const Row& row : rows) {
    CAPTURE(row.first);
    CAPTURE(row.second);
    const Loaded loaded =
        load("[general]\n" + std::string(row.first) + "[listener x]\n" + row.second);
    CHECK((loaded.error.code == ErrorCode::bad_configuration) == row.clash);
    CHECK(loaded.settings.listeners.size() == (row.clash ? 1 : 2));
    CHECK(loaded.complaints().empty() != row.clash);
  }
  CHECK(load("[listener x]\nport=5060\n").complaints() ==
        "y.conf:2: error: [listener x] port: udp 0.0.0.0:5060 is taken already by the listener "
        "\"general\"\n");
  CHECK(load("[listener x]\n").complaints() ==
        "y.conf:1: error: [listener x]: udp 0.0.0.0:5060 is taken already by the listener "
        "\"general\"\n");
}

TEST_CASE("t4 is at least three times t1") {
  Loaded loaded = load("[general]\nt1=1000\nt4=2000\n");
  CHECK(loaded.settings.timers.t4_ms == 3000);
  CHECK(loaded.complaints() ==
        "y.conf:3: warning: [general] t4: t4 is at least 3 times t1; used: 3000\n");
  loaded = load("[general]\nt1=2000\n");
  CHECK(loaded.settings.timers.t4_ms == 6000);
  CHECK(loaded.complaints() == "");
}

TEST_CASE("an idle connection outlives its transactions") {
  Loaded loaded = load("[general]\ntcp_idle=20\n[listener x]\nport=5070\ntcp_idle=30\n");
  CHECK(loaded.settings.listeners[0].tcp_idle_s == 48);
  CHECK(loaded.settings.listeners[1].tcp_idle_s == 48);
  CHECK(loaded.complaints() ==
        "y.conf:2: warning: [general] tcp_idle: is at least 96 times t1; used: 48\n"
        "y.conf:5: warning: [listener x] tcp_idle: is at least 96 times t1; used: 48\n");
  loaded = load("[general]\nt1=510\ntcp_idle=48\n");
  CHECK_MESSAGE(loaded.settings.listeners[0].tcp_idle_s == 49, "48.96 seconds, rounded up");
  loaded = load("[general]\nt1=5000\n");
  CHECK(loaded.settings.listeners[0].tcp_idle_s == 480);
  CHECK(loaded.complaints() == "");
}

TEST_CASE("keep-alives come as often as idle connections are closed, unless said otherwise") {
  CHECK(load("[general]\ntcp_idle=200\n").settings.transport.tcp_keepalive_s == 200);
  CHECK(load("[general]\ntcp_idle=200\ntcp_keepalive=30\n").settings.transport.tcp_keepalive_s ==
        30);
}

TEST_CASE("the times of registrations are put in order") {
  Loaded loaded = load("[registrar]\nexpires_min=900\n");
  CHECK(loaded.settings.registrar.expires_default_s == 900);
  CHECK(loaded.complaints() == "");
  loaded = load("[registrar]\nexpires_def=5000\n");
  CHECK(loaded.settings.registrar.expires_default_s == 3600);
  CHECK(loaded.complaints() ==
        "y.conf:2: warning: [registrar] expires_def: expires_def is between expires_min and "
        "expires_max; used: 3600\n");
  loaded = load("[registrar]\nexpires_min=900\nexpires_max=300\n");
  CHECK(loaded.settings.registrar.expires_max_s == 900);
  CHECK(loaded.settings.registrar.expires_default_s == 900);
  CHECK(loaded.complaints() ==
        "y.conf:3: warning: [registrar] expires_max: expires_max is not below expires_min; used: "
        "900\n");
}

TEST_CASE("the old keys of [general] hold where the sections say nothing") {
  Loaded loaded = load("[general]\nregistrar=no\noptions=no\n");
  CHECK_FALSE(loaded.settings.registrar.enable);
  CHECK_FALSE(loaded.settings.options_enable);
  loaded =
      load("[registrar]\nenable=yes\n[options]\nenable=yes\n[general]\nregistrar=no\noptions=no\n");
  CHECK(loaded.settings.registrar.enable);
  CHECK(loaded.settings.options_enable);
}

TEST_CASE("users have a password or none, alternatives and parameters") {
  const Loaded loaded =
      load("[message]\nenable=yes\n",
           "[general]\nautocreate=no\nfile=${configpath}/reg.conf\nroute=80\n"
           "[101]\nb=1\npassword=secret ; of mine\nalternatives= alice , ,desk\na=${b}\n"
           "a=2\n[102]\n[103]\npassword=\n");
  CHECK(loaded.settings.registrar.file == "/etc/sipmsg/reg.conf");
  CHECK(loaded.settings.route_priority == 80);
  const auto& users = loaded.settings.users;
  REQUIRE(users.size() == 3);
  CHECK(users[0].name == "101");
  CHECK(users[0].has_password);
  CHECK(users[0].password == "secret ; of mine");
  REQUIRE(users[0].alternatives.size() == 2);
  CHECK(users[0].alternatives[0] == "alice");
  CHECK(users[0].alternatives[1] == "desk");
  REQUIRE(users[0].parameters.size() == 3);
  CHECK(users[0].parameters[0] == std::make_pair(std::string("b"), std::string("1")));
  CHECK(users[0].parameters[1].second == "${b}");
  CHECK(users[0].parameters[2].second == "2");
  CHECK_FALSE(users[1].has_password);
  CHECK(users[2].has_password);
  CHECK(users[2].password.empty());
  REQUIRE(loaded.diagnostics.size() == 2);
  CHECK(
      to_text(loaded.diagnostics[0]) ==
      "r.conf:11: info: [102]: has no password: may register only where [registrar] auth_required "
      "is off");
  CHECK(to_text(loaded.diagnostics[1]) ==
        "r.conf:13: warning: [103] password: is empty: anybody is let in as this user, with any "
        "password");
}

TEST_CASE("mistakes among users are remarked") {
  struct Row {
    const char* text;
    const char* remark;
  };
  const Row rows[] = {
      {"[a]\npassword=x\nalternatives=b,c,b\n",
       "r.conf:3: warning: [a] alternatives: \"b\" stands here twice\n"},
      {"[a]\npassword=x\nalternatives=b\n[b]\npassword=y\n",
       "r.conf:3: warning: [a] alternatives: \"b\" is a user, who gets what is sent there\n"},
      {"[a]\npassword=x\nalternatives=a\n",
       "r.conf:3: warning: [a] alternatives: \"a\" is this user's own name\n"},
      {"[a]\npassword=x\nalternatives=k\n[b]\npassword=y\nalternatives=k\n", ""},
      {"[general]\n[a]\npassword=x\nalternatives=general\n", ""},
      {"[a]\npassword=x\npassword=y\n",
       "r.conf:3: warning: [a] password: stands here again; the first, r.conf:2, counts\n"},
      {"[a]\npassword=x\nPassword=y\n",
       "r.conf:3: warning: [a] Password: is kept as a parameter of the user; did you mean "
       "\"password\"?\n"},
      {"[a]\npassword=x\nalternative=y\n",
       "r.conf:3: warning: [a] alternative: is kept as a parameter of the user; did you mean "
       "\"alternatives\"?\n"},
      {"[general]\nautocrate=yes\n",
       "r.conf:2: warning: [general] autocrate: unknown key; did you mean \"autocreate\"?\n"},
      {"[general]\nport=5060\n", "r.conf:2: warning: [general] port: unknown key\n"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.text);
    CHECK(load("", row.text).complaints() == row.remark);
  }
  CHECK(load("", "[general]\nautocreate=yes\n")
            .says("r.conf:2: info: [general] autocreate: lets nobody in while [registrar] "
                  "auth_required is on: who "
                  "is not listed has no password to pass it with"));
  CHECK_FALSE(load("[registrar]\nauth_required=no\n", "[general]\nautocreate=yes\n")
                  .says("r.conf: info: no user is listed"));
}

TEST_CASE("no remark ever holds a password") {
  const Loaded loaded = load("[general]\npassword=hunter2\n",
                             "[a]\npassword=hunter2\npassword=hunter2\nPassword=hunter2\n"
                             "pasword=hunter2\n[general]\npassword=hunter2\n");
  CHECK(loaded.diagnostics.size() > 3);
  for (const Diagnostic& diagnostic : loaded.diagnostics) {
    CHECK(diagnostic.text.find("hunter2") == std::string::npos);
  }
}

TEST_CASE("an error in reading the files is an error of the configuration") {
  Settings settings;
  Diagnostics diagnostics = {{Severity::error, "y.conf", 1, "too much"}};
  CHECK(load_settings(Ini(), Ini(), {}, settings, diagnostics).code ==
        ErrorCode::bad_configuration);
}

TEST_CASE("values from included files are remarked with their own file and line") {
  class Files : public IniSource {
   public:
    Result<std::string> read(const std::string& path) override {
      if (path == "main.conf") return std::string("[general]\n[$include more.conf]\n");
      if (path == "more.conf") return std::string(";\n;\nt1=1\n");
      return ErrorCode::file;
    }
    Result<std::vector<std::string>> list(const std::string&) override { return ErrorCode::file; }
  };
  Files files;
  Ini ini;
  Diagnostics diagnostics;
  Settings settings;
  CHECK_FALSE(load_ini(files, "main.conf", {}, ini, diagnostics));
  CHECK_FALSE(load_settings(ini, Ini(), {}, settings, diagnostics));
  REQUIRE_FALSE(diagnostics.empty());
  CHECK(diagnostics[0].file == "more.conf");
  CHECK(diagnostics[0].line == 3);
}

TEST_CASE("without a directory everybody on this machine is served") {
  const Settings settings = open_settings();
  REQUIRE(settings.listeners.size() == 2);
  CHECK(settings.listeners[0].type == Transport::udp);
  CHECK(settings.listeners[1].type == Transport::tcp);
  for (const ListenerSettings& listener : settings.listeners) {
    CHECK(listener.enable);
    CHECK(listener.address == "127.0.0.1");
    CHECK(listener.port == 5060);
  }
  CHECK(settings.message.enable);
  CHECK_FALSE(settings.message.auth_required);
  CHECK_FALSE(settings.registrar.auth_required);
  CHECK(settings.registrar.accept_any_user);
  REQUIRE(settings.domains.size() == 1);
  CHECK(settings.domains[0] == "*");
  CHECK_FALSE(Settings().registrar.accept_any_user);
}

// ---- the samples and the manual ----

namespace {

/// The sample with every key that is switched off switched on: `;key=value` and `;[section]`.
std::string switched_on(const std::string& sample) {
  std::string out;
  for (std::string line : test::split(sample, '\n')) {
    if (line.size() > 1 && line[0] == ';' && line[1] != ' ') line.erase(0, 1);
    out += line + "\n";
  }
  return out;
}

}  // namespace

TEST_CASE("the samples as they are shipped change nothing and are without fault") {
  Loaded loaded = load(read_repository("conf/ysipchan.conf.sample"),
                       read_repository("conf/regfile.conf.sample"));
  CHECK_FALSE(loaded.error);
  CHECK(loaded.complaints() == "");
  CHECK(loaded.settings.users.empty());
  CHECK(loaded.settings.listeners.size() == 1);
  for (const SettingKey& row : setting_keys()) {
    CAPTURE(row.key);
    CHECK(setting_text(row, target_of(loaded.settings)) == default_of(row));
  }
}

TEST_CASE("the samples with every key switched on show the defaults and are without fault") {
  Loaded loaded = load(switched_on(read_repository("conf/ysipchan.conf.sample")),
                       switched_on(read_repository("conf/regfile.conf.sample")));
  CHECK_FALSE(loaded.error);
  CHECK(loaded.complaints() == "");
  CHECK(loaded.settings.users.size() == 2);
  REQUIRE(loaded.settings.listeners.size() == 2);
  CHECK(loaded.settings.listeners[1].type == Transport::tcp);
  for (const SettingKey& row : setting_keys()) {
    CAPTURE(row.key);
    const std::string text = setting_text(row, target_of(loaded.settings));
    if (row.key == "useragent") {
      CHECK(text == "sipmsg");  // the sample does not follow the version
    } else {
      CHECK(text == default_of(row));
    }
  }
}

TEST_CASE("the samples show every key that has an effect, with what it may be") {
  const IniOptions options;
  Diagnostics diagnostics;
  const std::string samples[] = {read_repository("conf/ysipchan.conf.sample"),
                                 read_repository("conf/regfile.conf.sample")};
  for (const SettingKey& row : setting_keys()) {
    if (!is_honoured(row)) continue;
    CAPTURE(row.section);
    CAPTURE(row.key);
    const bool is_regfile = row.section == "regfile";
    const Ini ini = parse_ini(switched_on(samples[is_regfile]), "sample", options, diagnostics);
    std::string section(is_regfile ? "general" : row.section);
    if (section == "listener") section = row.key == "enable" ? "listener tcp" : "general";
    CHECK(ini.find(section, row.key) != nullptr);
    CHECK(samples[is_regfile].find("\n; " + std::string(row.key) + ": ") != std::string::npos);
    if (row.kind == SettingKind::number) {
      CHECK(samples[is_regfile].find("\n; Allowed: " + setting_allowed(row)) != std::string::npos);
    }
  }
}

TEST_CASE("the manual lists every key with default and range, or with the reason") {
  const std::string manual = read_repository("docs/configuration.md");
  for (const SettingKey& row : setting_keys()) {
    CAPTURE(row.section);
    CAPTURE(row.key);
    std::string section = "`[" + std::string(row.section) + "]`";
    if (row.section == "listener") section = "`[listener NAME]`";
    if (row.section == "regfile") section = "`[general]` of regfile.conf";
    if (!is_honoured(row)) {
      const std::string key = row.key == "*" ? "all" : "`" + std::string(row.key) + "`";
      CHECK(manual.find("\n| " + section + " | " + key + " | " + std::string(row.reason) +
                        " |\n") != std::string::npos);
      continue;
    }
    std::string value = default_of(row).empty() ? "empty" : default_of(row);
    if (row.key == "useragent") value = "sipmsg/VERSION";
    const std::size_t begin = manual.find("\n### " + section + "\n");
    REQUIRE(begin != std::string::npos);
    const std::string chapter = manual.substr(begin, manual.find("\n##", begin + 1) - begin);
    CHECK(chapter.find("\n| `" + std::string(row.key) + "` | " + value + " | " +
                       setting_allowed(row) + " | ") != std::string::npos);
  }
}

}  // namespace test_settings
