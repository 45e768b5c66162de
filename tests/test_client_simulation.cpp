// Clients as programs use them, an Agent with an account and a registration that keeps itself, with
// the proxy between them and a network that loses and doubles datagrams, breaks connections, and
// sees the server restart. All in virtual time; what is promised stands in test_simulation.cpp.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "support/simulation.hpp"
#include "support/sipmsg.hpp"

namespace test_client_simulation {

using namespace sipmsg;
using test::Host;
using test::Network;
using test::Node;
using test::Weather;

namespace {

using State = RegistrationStatus::State;

constexpr std::uint64_t minute_ms = 60000;

std::uint64_t seed_of(std::uint64_t seed) {
  const char* more = std::getenv("SIPMSG_TEST_SEED");
  return more == nullptr ? seed : seed + std::strtoull(more, nullptr, 10);
}

class NoLog final : public ServerLog {
 public:
  void log(Severity, std::string_view) override {}
};

std::string password_of(const std::string& user) { return user + "'s secret"; }

/// A server that asks for passwords, and may be restarted: then it has forgotten everything.
class Home final : private Node {
 public:
  Home(Network& network, const std::vector<std::string>& names)
      : network_(network), host_(network, "192.0.2.1:5060") {
    settings_.domains = {"example.org"};
    settings_.registrar.expires_min_s = 60;
    settings_.message.enable = true;
    for (const std::string& name : names) {
      UserSettings user;
      user.name = name;
      user.has_password = true;
      user.password = password_of(name);
      settings_.users.push_back(user);
      users_.add(user);
    }
    switch_on();
  }
  ~Home() { host_.set_node(nullptr); }

  void switch_on() {
    running_ = std::make_unique<Running>(*this);
    OwnDomains domains;
    domains.add("example.org");
    running_->proxy.set_domains(std::move(domains));
    host_.set_node(this);
  }
  void switch_off() {
    host_.set_node(nullptr);
    network_.break_connections_of(host_);
    running_.reset();
  }
  std::string uri() const { return "sip:" + host_.address_text(); }
  Registrar& registrar() { return running_->registrar; }

 private:
  // Node
  void receive(const MessageView& message, Error error, const Flow& from,
               std::uint64_t now_ms) override {
    if (now_ms != last_ms_) running_->proxy.idle();  // there was nothing to read in between
    last_ms_ = now_ms;
    running_->proxy.receive(message, error, from, now_ms);
  }
  void connection_closed(std::uint32_t socket, Error error, std::uint64_t now_ms) override {
    running_->proxy.connection_closed(socket, error, now_ms);
  }
  void advance(std::uint64_t now_ms) override { running_->proxy.advance(now_ms); }
  std::uint64_t next_deadline() const override { return running_->proxy.next_deadline(); }

  /// What a restart ends and begins.
  struct Running {
    explicit Running(Home& home)
        : registrar(RegistrarOptions(), home.network_.dice().key()),
          proxy(home.settings_, home.users_, registrar, home.host_, home.log_,
                home.network_.dice().key()) {}
    Registrar registrar;
    Proxy proxy;
  };

  Network& network_;
  Host host_;
  Settings settings_;
  UserDirectory users_;
  NoLog log_;
  std::uint64_t last_ms_ = 0;
  std::unique_ptr<Running> running_;
};

/// What became of one message.
struct Letter {
  unsigned arrivals = 0;
  unsigned outcomes = 0;
  bool ok = false;
};

class Client final : private Node {
 public:
  Client(Network& network, std::vector<Letter>& letters, const std::string& name,
         const std::string& address, const std::string& proxy,
         const std::string& password = std::string())
      : network_(network),
        letters_(letters),
        name_(name),
        proxy_(proxy),
        login_(std::make_shared<Login>(name, password.empty() ? password_of(name) : password)),
        host_(network, address),
        agent_(AgentOptions(), host_, network.dice().key()) {
    agent_.on_message([this](const MessageView& message, const Flow&, ServerTransaction server) {
      const std::string body(message.body());
      ++letters_.at(std::strtoull(body.c_str(), nullptr, 10)).arrivals;
      static_cast<void>(agent_.reply(server, 200));
    });
    host_.set_node(this);
  }
  ~Client() {
    host_.set_node(nullptr);
    agent_.close();
  }

  void enroll(std::uint32_t expires_s = 120) {
    RegistrationOptions options;
    options.address_of_record = uri();
    options.proxy = proxy_;
    options.login = login_;
    options.expires_s = expires_s;
    keeper_ = std::make_shared<RegistrationKeeper>(
        agent_, options,
        [this](const RegistrationStatus& status) { states.push_back(status.state); });
    REQUIRE_FALSE(keeper_->start(network_.now_ms()));
  }
  void write_to(const Client& other, std::uint32_t deadline_ms = 0) {
    const std::size_t number = letters_.size();
    letters_.emplace_back();
    Outgoing outgoing;
    outgoing.to = other.uri();
    outgoing.from = uri();
    outgoing.body = std::to_string(number) + " Hello";
    outgoing.proxy = proxy_;
    outgoing.login = login_;
    outgoing.deadline_ms = deadline_ms;
    const Error error =
        agent_.send(std::move(outgoing), network_.now_ms(), [this, number](const Outcome& outcome) {
          ++letters_[number].outcomes;
          letters_[number].ok = outcome.ok();
        });
    CHECK_FALSE(error);
  }
  std::string uri() const { return "sip:" + name_ + "@example.org"; }
  bool is_registered() const { return keeper_->status().state == State::registered; }
  RegistrationKeeper& keeper() { return *keeper_; }
  Agent& agent() { return agent_; }

  std::vector<State> states;  ///< all that the handler was told

 private:
  // Node
  void receive(const MessageView& message, Error error, const Flow& from,
               std::uint64_t now_ms) override {
    agent_.receive(message, error, from, now_ms);
  }
  void connection_closed(std::uint32_t socket, Error error, std::uint64_t now_ms) override {
    agent_.connection_closed(socket, error, now_ms);
    if (keeper_) keeper_->connection_closed(socket, error, now_ms);
  }
  void advance(std::uint64_t now_ms) override {
    agent_.advance(now_ms);
    if (keeper_) keeper_->advance(now_ms);
  }
  std::uint64_t next_deadline() const override {
    const std::uint64_t of_agent = agent_.next_deadline().value_or(never);
    return std::min(of_agent, keeper_ ? keeper_->next_deadline().value_or(never) : never);
  }

  Network& network_;
  std::vector<Letter>& letters_;
  std::string name_;
  std::string proxy_;
  std::shared_ptr<Login> login_;
  Host host_;
  Agent agent_;
  std::shared_ptr<RegistrationKeeper> keeper_;
};

/// Lets time pass until all are registered, for a while at most.
bool all_register(Network& network, const std::vector<Client*>& clients, std::uint64_t at_most_ms) {
  const std::uint64_t end_ms = network.now_ms() + at_most_ms;
  const auto is_registered = [](const Client* client) { return client->is_registered(); };
  while (!std::all_of(clients.begin(), clients.end(), is_registered)) {
    if (network.now_ms() >= end_ms) return false;
    network.run_for(100);
  }
  return true;
}

void stop(Network& network, const std::vector<Client*>& clients) {
  std::size_t stopped = 0;
  for (Client* client : clients) client->keeper().stop(network.now_ms(), [&] { ++stopped; });
  REQUIRE(network.run_until_quiet());
  CHECK(stopped == clients.size());
  for (Client* client : clients) {
    CHECK(client->agent().waiting() == 0);
    CHECK(client->agent().transactions() == 0);
    CHECK(client->agent().kept_size() == 0);
    CHECK(client->states.back() == State::unregistered);
  }
}

struct Count {
  std::size_t not_answered_once = 0;
  std::size_t shown_twice = 0;
  std::size_t ok_but_not_there = 0;
  std::size_t ok = 0;

  explicit Count(const std::vector<Letter>& letters) {
    for (const Letter& letter : letters) {
      not_answered_once += letter.outcomes != 1;
      shown_twice += letter.arrivals > 1;
      ok_but_not_there += letter.ok && letter.arrivals == 0;
      ok += letter.ok;
    }
  }
};

}  // namespace

TEST_CASE("at 30 percent loss all of 10,000 messages are answered once, and none is shown twice") {
  const std::uint64_t seed = seed_of(10000);
  CAPTURE(seed);
  Network network(seed, {30, 10, 5, 120});
  std::vector<Letter> letters;
  Home home(network, {"alice", "bob"});
  Client alice(network, letters, "alice", "192.0.2.10:5060", home.uri());
  Client bob(network, letters, "bob", "192.0.2.11:5060", home.uri());
  alice.enroll();
  bob.enroll();
  REQUIRE(all_register(network, {&alice, &bob}, 10 * minute_ms));
  constexpr std::size_t count = 10000;
  for (std::size_t i = 0; i < count; ++i) {
    network.after(network.dice().between(0, 20 * minute_ms),
                  [&, i] { i % 2 == 0 ? alice.write_to(bob) : bob.write_to(alice); });
  }
  network.run_for(25 * minute_ms);
  stop(network, {&alice, &bob});
  REQUIRE(letters.size() == count);
  const Count counted(letters);
  CHECK(counted.not_answered_once == 0);
  CHECK(counted.shown_twice == 0);
  CHECK(counted.ok_but_not_there == 0);
  CHECK(counted.ok > count * 97 / 100);
  CHECK(network.counters().lost > network.counters().sent / 4);
  CHECK(network.counters().duplicated > network.counters().sent / 20);
}

TEST_CASE("a deadline too short for the weather ends in one callback all the same") {
  const std::uint64_t seed = seed_of(10001);
  CAPTURE(seed);
  Network network(seed, {30, 10, 5, 120});
  std::vector<Letter> letters;
  Home home(network, {"alice", "bob"});
  Client alice(network, letters, "alice", "192.0.2.10:5060", home.uri());
  Client bob(network, letters, "bob", "192.0.2.11:5060", home.uri());
  alice.enroll();
  bob.enroll();
  REQUIRE(all_register(network, {&alice, &bob}, 10 * minute_ms));
  for (std::size_t i = 0; i < 500; ++i) {
    network.after(network.dice().between(0, minute_ms), [&] { alice.write_to(bob, 900); });
  }
  network.run_for(5 * minute_ms);
  stop(network, {&alice, &bob});
  const Count counted(letters);
  CHECK(counted.not_answered_once == 0);
  CHECK(counted.shown_twice == 0);
  CHECK(counted.ok_but_not_there == 0);
  CHECK(counted.ok > 50);
  CHECK(counted.ok < 450);
}

TEST_CASE("a registration holds for a day of loss, and its user is there all the time") {
  for (const char* transport : {"", ";transport=tcp"}) {
    const std::uint64_t seed = seed_of(10002);
    CAPTURE(seed);
    CAPTURE(transport);
    Network network(seed, {30, 10, 5, 300});
    std::vector<Letter> letters;
    Home home(network, {"alice"});
    Client alice(network, letters, "alice", "192.0.2.10:5060", home.uri() + transport);
    alice.enroll(600);
    REQUIRE(all_register(network, {&alice}, 10 * minute_ms));
    std::size_t gone = 0;
    for (int minute = 0; minute < 24 * 60; ++minute) {
      network.run_for(minute_ms);
      gone += home.registrar().size() != 1;  // and not two: one binding is refreshed
    }
    CHECK(gone == 0);
    stop(network, {&alice});
    CHECK(home.registrar().size() == 0);
  }
}

TEST_CASE("clients find back to a server that was restarted and knows nothing any more") {
  const struct {
    const char* transport;
    std::uint64_t off_ms;
    std::uint64_t back_within_ms;
  } rows[] = {
      // A connection that breaks tells it at once.
      {";transport=tcp", 0, 3000},
      {";transport=tcp", 10 * minute_ms, 5 * minute_ms + 3000},  // the longest back-off
      // Over UDP it shows at the next refresh; a lost answer or more cost their time.
      {"", 0, 3 * minute_ms},
      {"", 10 * minute_ms, 7 * minute_ms},
  };
  for (const auto& row : rows) {
    const std::uint64_t seed = seed_of(10003);
    CAPTURE(seed);
    CAPTURE(row.transport);
    CAPTURE(row.off_ms);
    Network network(seed, {30, 10, 5, 120});
    std::vector<Letter> letters;
    Home home(network, {"alice", "bob"});
    Client alice(network, letters, "alice", "192.0.2.10:5060", home.uri() + row.transport);
    Client bob(network, letters, "bob", "192.0.2.11:5060", home.uri() + row.transport);
    alice.enroll();
    bob.enroll();
    REQUIRE(all_register(network, {&alice, &bob}, 10 * minute_ms));
    network.run_for(5 * minute_ms);
    home.switch_off();
    network.run_for(row.off_ms);
    home.switch_on();
    CHECK(home.registrar().size() == 0);
    const std::uint64_t end_ms = network.now_ms() + row.back_within_ms;
    while (home.registrar().size() != 2 && network.now_ms() < end_ms) network.run_for(100);
    CHECK(home.registrar().size() == 2);
    REQUIRE(all_register(network, {&alice, &bob}, minute_ms));

    for (int i = 0; i < 20; ++i) alice.write_to(bob);
    network.run_for(minute_ms);
    const Count counted(letters);
    CHECK(counted.not_answered_once == 0);
    CHECK(counted.shown_twice == 0);
    CHECK(counted.ok > 15);
    stop(network, {&alice, &bob});
  }
}

TEST_CASE("connections that break again and again are made again") {
  const std::uint64_t seed = seed_of(10004);
  CAPTURE(seed);
  Network network(seed, {0, 0, 5, 120});
  std::vector<Letter> letters;
  Home home(network, {"alice"});
  Client alice(network, letters, "alice", "192.0.2.10:5060", home.uri() + ";transport=tcp");
  alice.enroll();
  REQUIRE(all_register(network, {&alice}, minute_ms));
  for (int i = 0; i < 100; ++i) {
    REQUIRE(network.break_some_connection());
    network.run_for(2000);
    CHECK(alice.is_registered());
    CHECK(home.registrar().size() == 1);
  }
  stop(network, {&alice});
}

TEST_CASE("a wrong password is tried once, and not again for a day") {
  Network network(seed_of(10005), {30, 10, 5, 120});
  std::vector<Letter> letters;
  Home home(network, {"alice"});
  Client alice(network, letters, "alice", "192.0.2.10:5060", home.uri(), "wrong");
  alice.enroll();
  network.run_for(24 * 60 * minute_ms);
  REQUIRE_FALSE(alice.states.empty());
  CHECK(alice.states.back() == State::refused);
  CHECK(std::count(alice.states.begin(), alice.states.end(), State::refused) == 1);
  CHECK(home.registrar().size() == 0);
  CHECK(network.run_until_quiet());
}

}  // namespace test_client_simulation
