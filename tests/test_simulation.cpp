// Whole conversations in virtual time: phones, the proxy between them, and a network that loses,
// doubles, delays and reorders datagrams or breaks connections. Everything is the real thing but
// for sockets and clock: registrar, digest, transactions, relaying, framing.
//
// What is promised, and what these tests hold the stack to:
// - Every send ends in exactly one callback: the final answer, or one error.
// - A message whose sender is told 2xx was handed to each reachable phone of its recipient.
// - No phone hands a message to its application twice: a server transaction absorbs what comes
//   again for 64*T1 (32 s), and an Agent knows a MESSAGE again for more than twice as long, should
//   the proxy have forgotten it and relay it once more.
// - When all is quiet, every table is empty again.
// What nobody can promise, so that it is not asked for:
// - That a sender who was told an error was not heard. Each lost answer leaves him in doubt, which
//   no protocol can end (his message may be there). With little loss this does not happen in
//   practice, and there both sides are counted in full.
// - That a copy which the network held back for longer than 64*T1 is known again.
// - That a phone which was switched off and on remembers what it showed before.
// - That an order is kept over UDP: RFC 3428 8 has senders wait for the answer first.
//
// A failure prints its seed; SIPMSG_TEST_SEED=N adds N to all seeds, for long nights of others.
#include <doctest/doctest.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "support/simulation.hpp"
#include "support/sipmsg.hpp"

namespace test_simulation {

using namespace sipmsg;
using test::Dice;
using test::Host;
using test::Network;
using test::Node;
using test::Weather;

namespace {

constexpr std::uint64_t minute_ms = 60000;
constexpr std::uint64_t hour_ms = 3600000;

std::uint64_t seed_of(std::uint64_t seed) {
  const char* more = std::getenv("SIPMSG_TEST_SEED");
  return more == nullptr ? seed : seed + std::strtoull(more, nullptr, 10);
}

class NoLog final : public ServerLog {
 public:
  void log(Severity, std::string_view) override {}
};

/// One message from application to application, and everything that became of it.
struct Letter {
  std::string body;
  std::uint64_t sent_at_ms = 0;
  std::vector<unsigned> arrivals;  ///< for each phone of the recipient, by its number
  unsigned outcomes = 0;
  int code = 0;
  Error error;
  bool has_retry_after = false;

  bool ok() const { return !error && code >= 200 && code < 300; }
  unsigned arrived() const {
    unsigned sum = 0;
    for (unsigned count : arrivals) sum += count;
    return sum;
  }
};

/// All letters of a run. The body of each begins with its number.
class Post {
 public:
  explicit Post(Dice& dice) : dice_(dice) {}

  std::size_t write(std::uint64_t now_ms) {
    Letter letter;
    letter.sent_at_ms = now_ms;
    letter.body = std::to_string(letters_.size()) + " ";
    const std::uint64_t size = dice_.between(0, 100);
    for (std::uint64_t i = 0; i < size; ++i) letter.body.push_back(static_cast<char>(dice_.next()));
    letters_.push_back(letter);
    return letters_.size() - 1;
  }
  void arrive(std::string_view body, std::size_t phone) {
    const std::size_t number = std::strtoull(std::string(body).c_str(), nullptr, 10);
    REQUIRE(number < letters_.size());
    Letter& letter = letters_[number];
    if (body != letter.body) FAIL_CHECK("letter " << number << " arrived altered");
    letter.arrivals.resize(std::max(letter.arrivals.size(), phone + 1));
    ++letter.arrivals[phone];
    order_.push_back(number);
  }
  Letter& at(std::size_t number) { return letters_[number]; }
  const std::vector<Letter>& letters() const { return letters_; }
  /// The numbers of the letters in the order in which they arrived.
  const std::vector<std::size_t>& order() const { return order_; }

  std::size_t count_ok() const {
    std::size_t count = 0;
    for (const Letter& letter : letters_) count += letter.ok();
    return count;
  }

 private:
  Dice& dice_;
  std::vector<Letter> letters_;
  std::vector<std::size_t> order_;
};

/// How a phone is set up.
struct Account {
  std::string user = "nobody";
  std::string password;  ///< empty: it is never asked for one
  Transport transport = Transport::udp;
  std::uint32_t expires_s = 3600;
};

/// A softphone: registers and stays registered, answers challenges, takes messages and sends them.
class Phone final : public Node {
 public:
  Phone(Network& network, Post& post, const std::string& address, const SocketAddress& proxy,
        Account account, std::size_t number)
      : network_(network),
        post_(post),
        host_(network, address),
        account_(std::move(account)),
        number_(number) {
    proxy_.transport = account_.transport;
    proxy_.remote = proxy;
    switch_on();
  }
  ~Phone() { host_.set_node(nullptr); }
  Phone(const Phone&) = delete;
  Phone& operator=(const Phone&) = delete;

  const Account& account() const { return account_; }
  Agent& agent() { return *agent_; }
  Host& host() { return host_; }
  bool is_registered() const { return registered_; }

  void switch_on() {
    ++life_;
    digest_ = DigestClient();
    registered_ = false;
    agent_ = std::make_unique<Agent>(AgentOptions(), host_, network_.dice().key());
    agent_->on_message([this](const MessageView& message, const Flow&, ServerTransaction server) {
      post_.arrive(message.body(), number_);
      static_cast<void>(agent_->reply(server, 200));
    });
    host_.set_node(this);
  }
  /// Without a word: its letters are lost to it, and nobody is told.
  void switch_off() {
    ++life_;
    host_.set_node(nullptr);
    network_.break_connections_of(host_);
    agent_.reset();
  }
  bool is_on() const { return agent_ != nullptr; }

  /// Registers, renews in time, and tries again where that fails.
  void enroll() {
    Outgoing request;
    request.method = "REGISTER";
    request.to = request.from = "sip:" + account_.user + "@example.org";
    request.request_uri = "sip:example.org";
    request.call_id = "registration-" + std::to_string(number_) + "-" + std::to_string(life_);
    const std::string transport =
        account_.transport == Transport::tcp ? ";transport=tcp" : std::string();
    request.headers = {
        {"Contact", "<sip:" + account_.user + "@" + host_.address_text() + transport + ">"},
        {"Expires", std::to_string(account_.expires_s)}};
    request.next_hop = proxy_;
    transact(request, [this](const Outcome& outcome) {
      registered_ = outcome.ok();
      const std::uint64_t again_ms =
          registered_ ? std::uint64_t{500} * account_.expires_s : std::uint64_t{1000};
      if (stays_) later(again_ms, [this] { enroll(); });
    });
  }
  /// No more renewals: the registration is left to expire.
  void stop_enrolling() { stays_ = false; }

  std::size_t write_to(const std::string& user) {
    const std::size_t number = post_.write(network_.now_ms());
    Outgoing request;
    request.to = "sip:" + user + "@example.org";
    request.from = "sip:" + account_.user + "@example.org";
    request.body = post_.at(number).body;
    request.content_type = "application/octet-stream";
    request.next_hop = proxy_;
    transact(request, [this, number](const Outcome& outcome) { note(number, outcome); });
    return number;
  }

  /// To another phone, with no proxy between.
  std::size_t write_directly_to(const Phone& other) {
    const std::size_t number = post_.write(network_.now_ms());
    Outgoing request;
    request.to = "sip:" + other.account_.user + "@" + other.host_.address_text();
    if (account_.transport == Transport::tcp) request.to += ";transport=tcp";
    request.body = post_.at(number).body;
    const Error error =
        agent_->send(request, network_.now_ms(),
                     [this, number](const Outcome& outcome) { note(number, outcome); });
    CHECK_FALSE(error);
    return number;
  }

  // Node
  void receive(const MessageView& message, Error error, const Flow& from,
               std::uint64_t now_ms) override {
    agent_->receive(message, error, from, now_ms);
  }
  void connection_closed(std::uint32_t socket, Error error, std::uint64_t now_ms) override {
    agent_->connection_closed(socket, error, now_ms);
    if (account_.transport != Transport::tcp || !registered_ || !stays_) return;
    registered_ = false;  // what it was reached by is gone
    enroll();
  }
  void advance(std::uint64_t now_ms) override { agent_->advance(now_ms); }
  std::uint64_t next_deadline() const override { return agent_->next_deadline().value_or(never); }

 private:
  /// Later, unless the phone is off then, or was switched off and on.
  template <class Call>
  void later(std::uint64_t delay_ms, Call call) {
    network_.after(delay_ms, [this, call, life = life_] {
      if (life == life_) call();
    });
  }

  void note(std::size_t number, const Outcome& outcome) {
    Letter& letter = post_.at(number);
    ++letter.outcomes;
    letter.code = outcome.code;
    letter.error = outcome.error;
    letter.has_retry_after =
        outcome.response != nullptr && outcome.response->has(HeaderId::retry_after);
  }

  /// Sends a request, with credentials where they are asked for.
  void transact(Outgoing request, SentHandler done, unsigned attempt = 1) {
    Outgoing signed_request = request;
    if (signed_request.call_id.empty()) {
      request.call_id = signed_request.call_id = "letter-" + std::to_string(network_.dice().next());
    }
    const bool is_signed = digest_.is_ready();
    if (is_signed) {
      const std::string uri = request.request_uri.empty() ? request.to : request.request_uri;
      const auto credentials =
          digest_.authorize(account_.user, account_.password, request.method, uri, request.body);
      REQUIRE(credentials.ok());
      signed_request.headers.emplace_back("Authorization", *credentials);
    }
    const Error error = agent_->send(
        signed_request, network_.now_ms(),
        [this, request, done, attempt, is_signed](const Outcome& outcome) {
          if (outcome.code == 401 && attempt < 4) {
            const auto challenge =
                parse_challenge(outcome.response->header(HeaderId::www_authenticate));
            REQUIRE(challenge.ok());
            CHECK(challenge->stale == is_signed);  // the password is right
            REQUIRE_FALSE(digest_.take(*challenge, std::to_string(network_.dice().next())));
            return transact(request, done, attempt + 1);
          }
          done(outcome);
        });
    if (error) {  // of a connection that is just gone
      Outcome outcome;
      outcome.error = error;
      done(outcome);
    }
  }

  Network& network_;
  Post& post_;
  Host host_;
  Account account_;
  std::size_t number_;
  Flow proxy_;
  DigestClient digest_;
  bool registered_ = false;
  bool stays_ = true;
  unsigned life_ = 0;  ///< how often it was switched on and off
  std::unique_ptr<Agent> agent_;
};

Settings proxy_settings() {
  Settings settings;
  settings.domains = {"example.org"};
  settings.registrar.auth_required = false;
  settings.registrar.accept_any_user = true;
  settings.message.enable = true;
  settings.message.auth_required = false;
  return settings;
}

RegistrarOptions registrar_options(const Settings& settings) {
  RegistrarOptions options;
  options.expires_max_s = settings.registrar.expires_max_s;
  return options;
}

UserDirectory directory_of(const Settings& settings) {
  UserDirectory users;
  for (const UserSettings& user : settings.users) users.add(user);
  return users;
}

/// The proxy at its host, and the phones around it.
class World final : private Node {
 public:
  World(std::uint64_t seed, const Weather& weather, const Settings& settings = proxy_settings())
      : network(seed, weather),
        post(network.dice()),
        host_(network, "192.0.2.1:5060"),
        users_(directory_of(settings)),
        registrar(registrar_options(settings), network.dice().key()),
        proxy(settings, users_, registrar, host_, log_, network.dice().key()) {
    OwnDomains domains;
    domains.add("example.org");
    proxy.set_domains(std::move(domains));
    host_.set_node(this);
  }
  ~World() { host_.set_node(nullptr); }

  Phone& add_phone(Account account) {
    const std::size_t number = phones.size();
    const std::string address = "192.0.2." + std::to_string(10 + number) + ":5060";
    phones.push_back(std::make_unique<Phone>(network, post, address, host_.address(),
                                             std::move(account), number));
    return *phones.back();
  }
  Phone& add_phone(const std::string& user, Transport transport = Transport::udp) {
    Account account;
    account.user = user;
    account.transport = transport;
    return add_phone(account);
  }

  /// Registers all phones, however long it takes.
  void enroll_all() {
    for (auto& phone : phones) phone->enroll();
    const auto all_registered = [this] {
      for (auto& phone : phones) {
        if (!phone->is_registered()) return false;
      }
      return true;
    };
    while (!all_registered() && network.now_ms() < hour_ms) network.run_for(1000);
    REQUIRE(all_registered());
  }

  /// Has so many letters written, each by a phone and at a moment that chance chooses, to the user
  /// of another one.
  void write_letters(std::size_t count, std::uint64_t within_ms) {
    for (std::size_t i = 0; i < count; ++i) {
      network.after(network.dice().between(0, within_ms), [this] {
        const std::size_t from = network.dice().between(0, phones.size() - 1);
        const std::size_t to = network.dice().between(0, phones.size() - 2);
        const auto& recipient = phones[to < from ? to : to + 1]->account().user;
        if (phones[from]->is_on()) phones[from]->write_to(recipient);
      });
    }
  }

  /// Lets everything end: registrations expire, transactions time out. Then nothing may be left.
  void end() {
    for (auto& phone : phones) phone->stop_enrolling();
    REQUIRE(network.run_until_quiet());
    CHECK(proxy.transactions() == 0);
    CHECK(proxy.relays() == 0);
    CHECK(proxy.waiting() == 0);
    CHECK(proxy.kept_size() == 0);
    CHECK(registrar.size() == 0);
    for (auto& phone : phones) {
      if (!phone->is_on()) continue;
      CHECK(phone->agent().waiting() == 0);
      CHECK(phone->agent().transactions() == 0);
      CHECK(phone->agent().kept_size() == 0);
    }
  }

  Network network;
  Post post;

 private:
  // Node
  void receive(const MessageView& message, Error error, const Flow& from,
               std::uint64_t now_ms) override {
    if (now_ms != last_ms_) proxy.idle();  // there was nothing to read in between
    last_ms_ = now_ms;
    proxy.receive(message, error, from, now_ms);
  }
  void connection_closed(std::uint32_t socket, Error error, std::uint64_t now_ms) override {
    proxy.connection_closed(socket, error, now_ms);
  }
  void advance(std::uint64_t now_ms) override { proxy.advance(now_ms); }
  std::uint64_t next_deadline() const override { return proxy.next_deadline(); }

  NoLog log_;
  Host host_;
  UserDirectory users_;
  std::uint64_t last_ms_ = 0;

 public:
  Registrar registrar;
  Proxy proxy;
  std::vector<std::unique_ptr<Phone>> phones;
};

/// What holds in every weather.
void check_promises(const Post& post, unsigned phones_of_recipient = 1) {
  std::size_t unanswered = 0;
  std::size_t answered_twice = 0;
  std::size_t doubled = 0;
  std::size_t not_there = 0;
  for (const Letter& letter : post.letters()) {
    unanswered += letter.outcomes == 0;
    answered_twice += letter.outcomes > 1;
    for (unsigned count : letter.arrivals) doubled += count > 1;
    not_there += letter.ok() && letter.arrived() < phones_of_recipient;
  }
  CHECK(unanswered == 0);
  CHECK(answered_twice == 0);
  CHECK(doubled == 0);
  CHECK(not_there == 0);
}

/// Beyond that, in fair weather: all there, and all senders know.
void check_all_delivered(const Post& post, unsigned phones_of_recipient = 1) {
  check_promises(post, phones_of_recipient);
  std::size_t missing = 0;
  for (const Letter& letter : post.letters()) {
    missing += !letter.ok() || letter.code != 200 || letter.arrived() != phones_of_recipient;
  }
  CHECK(missing == 0);
}

/// Fair up to some loss: each of eleven sends has to fail to lose a letter.
constexpr unsigned fair_loss_percent = 10;

}  // namespace

// ---- the harness --------------------------------------------------------------------------------

TEST_CASE("one seed makes one run, octet for octet, and another seed another") {
  const auto run = [](std::uint64_t seed) {
    World world(seed, {20, 20, 1, 800});
    world.add_phone("alice");
    world.add_phone("bob");
    world.enroll_all();
    world.write_letters(50, minute_ms);
    world.end();
    return world.network.fingerprint();
  };
  const std::uint64_t first = run(1);
  CHECK(run(1) == first);
  CHECK(run(2) != first);
}

TEST_CASE("the weather does what it says") {
  Network network(seed_of(1), {30, 20, 10, 500});
  Post post(network.dice());
  Account account;
  Phone alice(network, post, "192.0.2.10:5060", {}, account, 0);
  Phone bob(network, post, "192.0.2.11:5060", {}, account, 1);
  for (int i = 0; i < 300; ++i) alice.write_directly_to(bob);
  REQUIRE(network.run_until_quiet());
  const auto& counters = network.counters();
  CHECK(counters.lost > counters.sent / 5);
  CHECK(counters.lost < counters.sent * 2 / 5);
  CHECK(counters.duplicated > counters.sent / 10);
  CHECK(counters.overtaken > counters.delivered / 4);
}

// ---- without a proxy ----------------------------------------------------------------------------

TEST_CASE("two agents exchange messages without a proxy, whatever the network does") {
  const Weather weathers[] = {
      {0, 0, 1, 1},      {10, 0, 1, 50},   {0, 50, 1, 50},
      {10, 30, 1, 1500}, {30, 10, 1, 200}, {50, 10, 1, 200},
  };
  for (const Weather& weather : weathers) {
    const std::uint64_t seed = seed_of(weather.loss_percent + 100);
    CAPTURE(seed);
    CAPTURE(weather.loss_percent);
    Network network(seed, weather);
    Post post(network.dice());
    Account account;
    Phone alice(network, post, "192.0.2.10:5060", {}, account, 0);
    Phone bob(network, post, "[2001:db8::11]:5070", {}, account, 1);
    for (int i = 0; i < 150; ++i) {
      network.after(network.dice().between(0, minute_ms), [&] { alice.write_directly_to(bob); });
      network.after(network.dice().between(0, minute_ms), [&] { bob.write_directly_to(alice); });
    }
    REQUIRE(network.run_until_quiet());
    weather.loss_percent <= fair_loss_percent ? check_all_delivered(post) : check_promises(post);
    CHECK(post.count_ok() > post.letters().size() * 8 / 10);
    for (Phone* phone : {&alice, &bob}) {
      CHECK(phone->agent().transactions() == 0);
      CHECK(phone->agent().kept_size() == 0);
    }
  }
}

TEST_CASE("two agents exchange messages over streams that are cut anywhere") {
  const std::uint64_t seed = seed_of(200);
  CAPTURE(seed);
  Network network(seed, {0, 0, 1, 300});
  Post post(network.dice());
  Account account;
  account.transport = Transport::tcp;
  Phone alice(network, post, "192.0.2.10:5060", {}, account, 0);
  Phone bob(network, post, "192.0.2.11:5060", {}, account, 1);
  for (int i = 0; i < 300; ++i) {
    network.after(network.dice().between(0, minute_ms), [&] { alice.write_directly_to(bob); });
  }
  REQUIRE(network.run_until_quiet());
  check_all_delivered(post);
  CHECK(network.counters().connections == 1);
  std::vector<std::size_t> in_order = post.order();
  std::sort(in_order.begin(), in_order.end());
  CHECK(post.order() == in_order);
}

// ---- with the proxy -----------------------------------------------------------------------------

TEST_CASE(
    "every message arrives once and every sender is answered once, whatever the network does") {
  const struct {
    std::string what;
    Weather weather;
    std::size_t letters;
    unsigned ok_percent;  ///< so many at least
  } rows[] = {
      {"sunshine", {0, 0, 1, 1}, 400, 100},
      {"a little of everything", {2, 2, 5, 60}, 300, 100},
      {"10 percent loss", {10, 0, 5, 60}, 400, 100},
      {"30 percent loss", {30, 0, 5, 60}, 400, 97},
      {"50 percent loss", {50, 0, 5, 60}, 300, 65},
      {"most things twice", {0, 60, 5, 60}, 300, 100},
      {"heavy reordering", {0, 10, 1, 400}, 300, 100},
      {"delays beyond T1", {0, 10, 400, 2500}, 300, 100},
      {"loss, doubles and delays", {10, 20, 50, 1500}, 300, 100},
      {"a storm", {40, 30, 1, 3000}, 300, 65},
  };
  for (const auto& row : rows) {
    for (std::uint64_t number : {1U, 2U}) {
      const std::uint64_t seed = seed_of(1000 + number);
      CAPTURE(row.what);
      CAPTURE(seed);
      World world(seed, row.weather);
      world.add_phone("alice");
      world.add_phone("bob");
      world.enroll_all();
      world.write_letters(row.letters / 2, 2 * minute_ms);
      world.end();
      row.ok_percent == 100 ? check_all_delivered(world.post) : check_promises(world.post);
      CHECK(world.post.count_ok() * 100 >= world.post.letters().size() * row.ok_percent);
    }
  }
}

TEST_CASE("the same holds with passwords, for every request is challenged or carries credentials") {
  for (unsigned loss_percent : {0U, 10U, 30U}) {
    const std::uint64_t seed = seed_of(2000 + loss_percent);
    CAPTURE(loss_percent);
    CAPTURE(seed);
    Settings settings = proxy_settings();
    settings.registrar.auth_required = true;
    settings.registrar.accept_any_user = false;
    settings.message.auth_required = true;
    settings.digest.nonce_lifetime_s = 20;  // some go stale on the way
    for (const char* name : {"alice", "bob"}) {
      UserSettings user;
      user.name = name;
      user.has_password = true;
      user.password = std::string(name) + "'s secret";
      settings.users.push_back(user);
    }
    World world(seed, {loss_percent, 10, 5, 300}, settings);
    for (const UserSettings& user : settings.users) {
      Account account;
      account.user = user.name;
      account.password = user.password;
      world.add_phone(account);
    }
    world.enroll_all();
    world.write_letters(200, 2 * minute_ms);
    world.end();
    loss_percent <= fair_loss_percent ? check_all_delivered(world.post)
                                      : check_promises(world.post);
    CHECK(world.post.count_ok() * 100 >= world.post.letters().size() * 95);
  }
}

TEST_CASE("a message reaches every phone of its recipient once, and its sender hears one answer") {
  for (unsigned loss_percent : {0U, 10U}) {
    const std::uint64_t seed = seed_of(3000 + loss_percent);
    CAPTURE(loss_percent);
    CAPTURE(seed);
    World world(seed, {loss_percent, 10, 5, 400});
    Phone& alice = world.add_phone("alice");
    for (int i = 0; i < 4; ++i) world.add_phone("bob");
    world.enroll_all();
    for (int i = 0; i < 100; ++i) {
      world.network.after(world.network.dice().between(0, minute_ms),
                          [&] { alice.write_to("bob"); });
    }
    world.end();
    check_all_delivered(world.post, 4);
    CHECK(world.proxy.counters().relayed == 100);
    CHECK(world.proxy.counters().delivered == 100);
  }
}

TEST_CASE("a phone that is reached on two ways shows a message once") {
  const std::uint64_t seed = seed_of(3500);
  CAPTURE(seed);
  World world(seed, {5, 10, 5, 200});
  Phone& alice = world.add_phone("alice");
  Phone& bob = world.add_phone("bob");
  world.enroll_all();
  // A second contact that leads to the same phone, as after a change of settings.
  Outgoing second;
  second.method = "REGISTER";
  second.to = second.from = "sip:bob@example.org";
  second.request_uri = "sip:example.org";
  second.headers = {{"Contact", "<sip:bob-again@" + bob.host().address_text() + ">"}};
  second.next_hop = Flow();
  second.next_hop->remote = parse_socket_address("192.0.2.1:5060").value();
  int code = 0;
  REQUIRE_FALSE(bob.agent().send(second, world.network.now_ms(),
                                 [&](const Outcome& outcome) { code = outcome.code; }));
  world.network.run_for(5000);
  REQUIRE(code == 200);
  REQUIRE(world.registrar.count("bob", world.network.now_ms()) == 2);
  for (int i = 0; i < 100; ++i) {
    world.network.after(world.network.dice().between(0, minute_ms), [&] { alice.write_to("bob"); });
  }
  world.end();
  check_all_delivered(world.post);
}

TEST_CASE("when one of two phones is switched off, the other's answer is the sender's, at once") {
  const std::uint64_t seed = seed_of(4000);
  CAPTURE(seed);
  World world(seed, {0, 0, 5, 60});
  Phone& alice = world.add_phone("alice");
  world.add_phone("bob");
  Phone& gone = world.add_phone("bob");
  world.enroll_all();
  gone.switch_off();
  std::vector<std::size_t> numbers;
  for (int i = 0; i < 50; ++i) numbers.push_back(alice.write_to("bob"));
  world.network.run_for(2000);
  for (std::size_t number : numbers) CHECK(world.post.at(number).code == 200);
  world.end();
  check_all_delivered(world.post);
}

TEST_CASE("the sender of a message to a phone that vanished is told 480 before it gives up") {
  const std::uint64_t seed = seed_of(4100);
  CAPTURE(seed);
  World world(seed, {0, 10, 5, 60});
  Phone& alice = world.add_phone("alice");
  Phone& bob = world.add_phone("bob");
  world.enroll_all();
  bob.switch_off();
  std::vector<std::size_t> numbers;
  for (int i = 0; i < 100; ++i) numbers.push_back(alice.write_to("bob"));
  world.network.run_for(29000);
  for (std::size_t number : numbers) CHECK(world.post.at(number).outcomes == 0);
  world.network.run_for(3000);
  for (std::size_t number : numbers) {
    CHECK(world.post.at(number).code == 480);
    CHECK(world.post.at(number).outcomes == 1);
  }
  world.network.run_for(2 * hour_ms);  // bob's registration is over
  const std::size_t late = alice.write_to("bob");
  world.end();
  CHECK(world.post.at(late).code == 405);
  check_promises(world.post);
}

TEST_CASE("a phone that is switched off and on again gets what comes then, and nothing twice") {
  for (unsigned loss_percent : {0U, 20U}) {
    const std::uint64_t seed = seed_of(4200 + loss_percent);
    CAPTURE(loss_percent);
    CAPTURE(seed);
    World world(seed, {loss_percent, 10, 5, 60});
    Phone& alice = world.add_phone("alice");
    Phone& bob = world.add_phone("bob");
    world.enroll_all();
    for (int i = 0; i < 200; ++i) {
      world.network.after(world.network.dice().between(0, 2 * minute_ms),
                          [&] { alice.write_to("bob"); });
    }
    // It is off for a second: what came before is forgotten, and what is repeated comes anew.
    constexpr std::uint64_t off_at_ms = minute_ms;
    const std::uint64_t start_ms = world.network.now_ms();
    world.network.after(off_at_ms, [&] { bob.switch_off(); });
    world.network.after(off_at_ms + 1000, [&] {
      bob.switch_on();
      bob.enroll();
    });
    world.end();
    std::size_t again = 0;
    for (const Letter& letter : world.post.letters()) {
      CHECK(letter.outcomes == 1);
      CHECK((!letter.ok() || letter.arrived() >= 1));
      CHECK(letter.arrived() <= 2);
      if (letter.arrived() < 2) continue;
      ++again;  // its answer was lost, and it was shown once by each of the phone's lives
      CHECK(letter.sent_at_ms < start_ms + off_at_ms);
      CHECK(letter.sent_at_ms > start_ms + off_at_ms - 32000);
    }
    CHECK(again <= (loss_percent == 0 ? 0U : 20U));
    CHECK(world.post.count_ok() > 190);
  }
}

// ---- handlers that answer later -----------------------------------------------------------------

namespace {

/// A handler that thinks for a while about each message, and lets those of one sender to one
/// recipient go on in their order. Those of others may overtake.
class SlowHandler {
 public:
  SlowHandler(World& world, std::uint64_t max_delay_ms) : world_(world) {
    world.proxy.handlers().add(50, [this, max_delay_ms](const RouteRequest& request) {
      std::uint64_t& last_ms =
          last_ms_[std::string(request.caller) + ">" + std::string(request.called)];
      const std::uint64_t now_ms = world_.network.now_ms();
      last_ms = std::max(last_ms, now_ms + world_.network.dice().between(0, max_delay_ms));
      world_.network.after(last_ms - now_ms, [this, key = request.key] {
        const Error error = world_.proxy.resume(key, Verdict::next(), world_.network.now_ms());
        error ? ++too_late_ : ++resumed_;
      });
      return Verdict::later();
    });
  }
  std::size_t resumed() const { return resumed_; }
  std::size_t too_late() const { return too_late_; }

 private:
  World& world_;
  std::map<std::string, std::uint64_t> last_ms_;
  std::size_t resumed_ = 0;
  std::size_t too_late_ = 0;
};

}  // namespace

TEST_CASE("messages that a handler keeps for a while arrive once, in whatever weather") {
  for (const Weather& weather : {Weather{0, 0, 5, 60}, Weather{10, 20, 5, 800}}) {
    const std::uint64_t seed = seed_of(5000 + weather.loss_percent);
    CAPTURE(seed);
    World world(seed, weather);
    SlowHandler handler(world, 3000);
    world.add_phone("alice");
    world.add_phone("bob");
    world.add_phone("carol");
    world.enroll_all();
    world.write_letters(200, 2 * minute_ms);
    world.end();
    check_all_delivered(world.post);
    CHECK(handler.resumed() == 200);
  }
}

TEST_CASE("messages of one sender to one recipient keep their order through slow handlers") {
  for (Transport transport : {Transport::udp, Transport::tcp}) {
    const std::uint64_t seed = seed_of(5100);
    CAPTURE(seed);
    CAPTURE(std::string(transport_name(transport)));
    World world(seed,
                {0, 0, 20, 20});  // the network keeps the order, so that only the proxy counts
    SlowHandler handler(world, 3000);
    const char* names[] = {"alice", "bob", "carol"};
    for (const char* name : names) world.add_phone(name, transport);
    world.enroll_all();
    std::vector<std::string> way(300);
    for (std::size_t i = 0; i < way.size(); ++i) {
      world.network.after(10 * i, [&world, &way] {
        const std::size_t from = world.network.dice().between(0, 2);
        const std::size_t to = (from + world.network.dice().between(1, 2)) % 3;
        const std::string& recipient = world.phones[to]->account().user;
        const std::size_t number = world.phones[from]->write_to(recipient);
        way[number] = world.phones[from]->account().user + ">" + recipient;
      });
    }
    world.end();
    check_all_delivered(world.post);
    std::map<std::string, std::size_t> last;
    std::size_t overtaken = 0;
    std::size_t highest = 0;
    for (std::size_t number : world.post.order()) {
      const auto found = last.find(way[number]);
      if (found != last.end()) CHECK(found->second < number);
      last[way[number]] = number;
      overtaken += number < highest;
      highest = std::max(highest, number);
    }
    CHECK(last.size() == 6);
    CHECK(overtaken > 100);  // others do overtake: the order is not that of a single queue
  }
}

TEST_CASE("a handler that takes too long makes 504, and its verdict comes to nothing") {
  const std::uint64_t seed = seed_of(5200);
  CAPTURE(seed);
  Settings settings = proxy_settings();
  settings.message.handler_deadline_s = 2;
  World world(seed, {0, 10, 5, 60}, settings);
  SlowHandler handler(world, 4000);
  Phone& alice = world.add_phone("alice");
  world.add_phone("bob");
  world.enroll_all();
  for (std::uint64_t i = 0; i < 50; ++i) {
    world.network.after(10000 * i, [&] { alice.write_to("bob"); });
  }
  world.end();
  check_promises(world.post);
  std::size_t late = 0;
  for (const Letter& letter : world.post.letters()) {
    CHECK((letter.code == 200 || letter.code == 504));
    CHECK(letter.arrived() == (letter.code == 200 ? 1 : 0));
    late += letter.code == 504;
  }
  CHECK(handler.too_late() == late);
  CHECK(late > 5);
  CHECK(handler.resumed() > 5);
}

// ---- limits -------------------------------------------------------------------------------------

TEST_CASE("a burst beyond the limits is delivered or refused with 503, all of it") {
  const struct {
    std::string what;
    unsigned loss_percent;
    std::uint32_t max_transactions;
    std::uint32_t max_pending;
    bool slow_handler;
    int phones_of_recipient;
  } rows[] = {
      {"transactions", 0, 100, 1000, false, 1},
      {"transactions, with loss", 10, 100, 1000, false, 1},
      {"transactions to several phones", 0, 100, 1000, false, 4},
      {"messages that wait for handlers", 0, 100000, 50, true, 1},
      {"messages that wait for handlers, with loss", 10, 100000, 50, true, 1},
  };
  for (const auto& row : rows) {
    const std::uint64_t seed = seed_of(6000);
    CAPTURE(row.what);
    CAPTURE(seed);
    Settings settings = proxy_settings();
    settings.max_transactions = row.max_transactions;
    settings.message.max_pending = row.max_pending;
    World world(seed, {row.loss_percent, 0, 5, 60}, settings);
    std::unique_ptr<SlowHandler> handler;
    if (row.slow_handler) handler = std::make_unique<SlowHandler>(world, 2000);
    Phone& alice = world.add_phone("alice");
    for (int i = 0; i < row.phones_of_recipient; ++i) world.add_phone("bob");
    world.enroll_all();
    for (std::uint64_t i = 0; i < 500; ++i) {
      world.network.after(2 * i, [&] { alice.write_to("bob"); });
    }
    world.end();
    check_promises(world.post);
    std::size_t refused = 0;
    for (const Letter& letter : world.post.letters()) {
      CAPTURE(letter.code);
      CHECK((letter.code == 200 || letter.code == 503));
      CHECK((letter.arrived() > 0) == (letter.code == 200));
      CHECK(letter.has_retry_after == (letter.code == 503));
      refused += letter.code == 503;
    }
    CHECK(refused > 100);
    CHECK(world.post.count_ok() >= 25);
  }
}

// ---- streams ------------------------------------------------------------------------------------

TEST_CASE("over TCP, and between TCP and UDP, every message arrives once") {
  for (bool mixed : {false, true}) {
    const std::uint64_t seed = seed_of(7000);
    CAPTURE(seed);
    CAPTURE(mixed);
    World world(seed, {mixed ? 10U : 0U, 0, 5, 200});
    world.add_phone("alice", Transport::tcp);
    world.add_phone("bob", mixed ? Transport::udp : Transport::tcp);
    world.enroll_all();
    world.write_letters(200, minute_ms);
    world.end();
    check_all_delivered(world.post);
    CHECK(world.network.counters().connections == (mixed ? 1 : 2));
  }
}

TEST_CASE("connections that break cost answers, but double nothing and leave nobody waiting") {
  for (std::uint64_t number : {1U, 2U, 3U}) {
    const std::uint64_t seed = seed_of(7100 + number);
    CAPTURE(seed);
    World world(seed, {0, 0, 5, 200});
    world.add_phone("alice", Transport::tcp);
    world.add_phone("bob", Transport::tcp);
    world.enroll_all();
    world.write_letters(300, 5 * minute_ms);
    for (int i = 0; i < 60; ++i) {
      world.network.after(world.network.dice().between(0, 5 * minute_ms),
                          [&] { world.network.break_some_connection(); });
    }
    world.network.run_for(5 * minute_ms);
    world.end();
    check_promises(world.post);
    CHECK(world.network.counters().broken_connections > 40);
    CHECK(world.post.count_ok() > 200);
    CHECK(world.post.count_ok() < 300);  // some were hit
    for (const Letter& letter : world.post.letters()) {
      const bool explained = letter.ok() || letter.error.code == ErrorCode::network ||
                             letter.error.code == ErrorCode::gone || letter.code == 480 ||
                             letter.code == 405;
      CHECK_MESSAGE(explained, letter.code << " " << letter.error.name());
    }
  }
}

TEST_CASE("a phone whose connection broke is offline until it registers again") {
  const std::uint64_t seed = seed_of(7200);
  CAPTURE(seed);
  World world(seed, {0, 0, 5, 60});
  Phone& alice = world.add_phone("alice");
  Phone& bob = world.add_phone("bob", Transport::tcp);
  world.enroll_all();
  bob.stop_enrolling();
  world.network.break_connections_of(bob.host());
  world.network.run_for(1000);
  CHECK(world.registrar.count("bob", world.network.now_ms()) == 0);
  const std::size_t offline = alice.write_to("bob");
  world.network.run_for(1000);
  CHECK(world.post.at(offline).code == 405);
  bob.enroll();
  world.network.run_for(1000);
  const std::size_t back = alice.write_to("bob");
  world.end();
  CHECK(world.post.at(back).code == 200);
  check_promises(world.post);
}

// ---- a long time --------------------------------------------------------------------------------

TEST_CASE("a day of traffic leaves nothing behind") {
  const std::uint64_t seed = seed_of(8000);
  CAPTURE(seed);
  World world(seed, {5, 5, 5, 300});
  world.add_phone("alice");
  world.add_phone("bob");
  world.enroll_all();
  constexpr std::uint64_t day_ms = 24 * hour_ms;
  world.write_letters(1000, day_ms);
  world.network.run_for(day_ms);
  CHECK(world.registrar.count("alice", world.network.now_ms()) == 1);
  CHECK(world.proxy.transactions() < 20);
  world.end();
  check_all_delivered(world.post);
}

}  // namespace test_simulation
