// database_mysql.cpp without a server of MySQL: its configuration, and what becomes of queries
// where nobody answers.
#include "../../src/modules/database/mysql.hpp"

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "support/database.hpp"

namespace net_database_unreachable {

using namespace test;

TEST_CASE("where nobody listens the account is dead, and is refused at once from then on") {
  std::uint16_t port = 0;
  {
    RawListener gone;
    port = gone.port();
  }
  DatabaseFixture fixture(modules::make_mysqldb, "mysqldb.conf",
                          "[store]\nhost=127.0.0.1\nport=" + std::to_string(port) + "\n");
  const auto first = fixture.ask("INSERT INTO t VALUES (1)");
  CHECK_FALSE(first->handled);
  CHECK(first->get("error") == "noconn");
  CHECK(first->get("code") == "2002");
  CHECK(first->get("error_text").find("Can't connect to server on '127.0.0.1'") == 0);
  const auto second = fixture.send("SELECT 1");
  CHECK(second->answers == 1);
  CHECK(second->get("error") == "noconn");
  const auto unseen = fixture.send("SELECT 1", {{"results", "no"}});
  CHECK(unseen->answers == 1);
  CHECK_FALSE(unseen->handled);
}

namespace {

using Connections = std::vector<std::optional<RawSocket>>;

/// Resets every connection that a listener takes, or lets it stand and says nothing. Wakes the loop
/// for each.
class UnhelpfulServer {
 public:
  UnhelpfulServer(EventLoop& loop, const RawListener& listener, Connections* standing = nullptr)
      : listener_(listener), standing_(standing) {
    uv_poll_init(loop.uv(), poll_, listener.fd());
    poll_->data = this;
    uv_poll_start(poll_, UV_READABLE, [](uv_poll_t* poll, int, int) {
      UnhelpfulServer& self = *static_cast<UnhelpfulServer*>(poll->data);
      while (auto connection = self.listener_.accept()) {
        ++self.attempts;
        if (self.standing_ == nullptr) {
          connection->reset();
        } else {
          self.standing_->push_back(std::move(connection));
        }
      }
    });
  }
  ~UnhelpfulServer() {
    uv_close(reinterpret_cast<uv_handle_t*>(poll_),
             [](uv_handle_t* poll) { delete reinterpret_cast<uv_poll_t*>(poll); });
  }
  UnhelpfulServer(const UnhelpfulServer&) = delete;
  UnhelpfulServer& operator=(const UnhelpfulServer&) = delete;

  std::size_t attempts = 0;

 private:
  const RawListener& listener_;
  Connections* standing_;
  uv_poll_t* poll_ = new uv_poll_t;
};

}  // namespace

TEST_CASE("initretry=0 tries again only for a query") {
  for (const bool retries : {true, false}) {
    CAPTURE(retries);
    const RawListener listener;
    DatabaseFixture fixture(modules::make_mysqldb, "mysqldb.conf",
                            "[store]\nhost=127.0.0.1\nport=" + std::to_string(listener.port()) +
                                (retries ? "\n" : "\ninitretry=0\n"));
    const UnhelpfulServer server(fixture.loop, listener);
    CHECK(fixture.loop.run_until([&] { return fixture.has_logged("no conn"); }));
    CHECK(server.attempts == 1);
    if (retries) {
      CHECK(fixture.loop.run_until([&] { return server.attempts == 2; }));
    } else {
      const auto question = fixture.send("SELECT 1");
      CHECK(question->answers == 0);
      CHECK(fixture.wait(question));
      CHECK(server.attempts == 2);
      CHECK_FALSE(question->handled);
    }
  }
}

TEST_CASE("a server that says nothing is waited for as long as the timeout says") {
  RawListener silent;
  DatabaseFixture fixture(
      modules::make_mysqldb, "mysqldb.conf",
      "[store]\nhost=127.0.0.1\nport=" + std::to_string(silent.port()) + "\ntimeout=1000\n");
  const auto question = fixture.ask("SELECT 1");
  CHECK_FALSE(question->handled);
  CHECK(question->get("error") == "noconn");
}

TEST_CASE("to connect to a server that says nothing does not hold up the end") {
  const RawListener listener;
  Connections standing;  // longer than the module is there
  const std::uint64_t began_ns = [&] {
    DatabaseFixture fixture(
        modules::make_mysqldb, "mysqldb.conf",
        "[store]\nhost=127.0.0.1\nport=" + std::to_string(listener.port()) + "\ntimeout=8000\n");
    const UnhelpfulServer server(fixture.loop, listener, &standing);
    CHECK(fixture.loop.run_until([&] { return server.attempts == 1; }));
    const auto question = fixture.send("SELECT 1");
    const std::uint64_t stopped_ns = uv_hrtime();
    fixture.module->stop();
    CHECK(question->answers == 1);
    CHECK_FALSE(question->handled);
    return stopped_ns;
  }();
  CHECK(uv_hrtime() - began_ns < 4000000000);
}

TEST_CASE("what is wrong in mysqldb.conf is named with its line, and no secret with it") {
  struct Row {
    const char* line;
    const char* remark;  ///< behind "mysqldb.conf:4: "
  };
  const Row rows[] = {
      {"port=70000", "warning: [store] port: \"70000\" is no number from 0 to 65535; it is 65535"},
      {"compress=1", "warning: [store] compress: \"1\" is neither yes nor no; it is no"},
      {"initretry=never",
       "warning: [store] initretry: \"never\" is no number from 0 to 3600; it is 10"},
      {"query_retry=0", "warning: [store] query_retry: \"0\" is no number from 1 to 10; it is 1"},
      {"pasword=hidden", "warning: [store] pasword: unknown key; known are "},
  };
  for (const Row& row : rows) {
    CAPTURE(row.line);
    TemporaryDirectory directory;
    directory.write("mysqldb.conf", std::string("[general]\npriority=50\n[store]\n") + row.line);
    sipmsg::Diagnostics diagnostics;
    const auto module = modules::make_mysqldb();
    CHECK(module->load(directory.path, diagnostics));
    CHECK(module->is_enabled());
    CHECK(module->name() == "mysqldb");
    REQUIRE(diagnostics.size() == 1);
    const std::string text = sipmsg::to_text(diagnostics[0]);
    CHECK(text.find(directory.path + "/mysqldb.conf:4: " + row.remark) == 0);
    CHECK(text.find("hidden") == std::string::npos);
  }
}

TEST_CASE("the sample of mysqldb.conf is without fault and has every key") {
  check_sample(modules::make_mysqldb, "mysqldb.conf");
}

}  // namespace net_database_unreachable
