// database_sqlite.cpp and database.cpp: the message `database` over real files of SQLite, with
// other connections that hold locks. Meant to be run with the thread sanitizer, too.
// Not covered: a full disk.
#include "../../src/modules/database/sqlite.hpp"

#include <sqlite3.h>

#include "support/database.hpp"

namespace net_database_sqlite {

using namespace test;

namespace {

const std::string endless =
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";

/// [store] in a file of the fixture's directory; more keys may follow.
struct Fixture : DatabaseFixture {
  explicit Fixture(const std::string& keys = "", const std::string& general = "")
      : DatabaseFixture(
            modules::make_sqlitedb, "sqlitedb.conf",
            "[general]\n" + general + "[store]\ndatabase=${configpath}/store.db\n" + keys) {}
  std::string path() const { return directory.path + "/store.db"; }
};

/// A connection as another program has it.
class OtherConnection {
 public:
  explicit OtherConnection(const std::string& path, int flags = 0) {
    REQUIRE(sqlite3_open_v2(path.c_str(), &database_,
                            SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | flags,
                            nullptr) == SQLITE_OK);
  }
  ~OtherConnection() { sqlite3_close(database_); }
  OtherConnection(const OtherConnection&) = delete;
  OtherConnection& operator=(const OtherConnection&) = delete;

  int run(const char* sql) { return sqlite3_exec(database_, sql, nullptr, nullptr, nullptr); }

 private:
  sqlite3* database_ = nullptr;
};

}  // namespace

TEST_CASE("what a query wrote and found stands in the message") {
  Fixture fixture;
  fixture.run("CREATE TABLE t (id INTEGER, name TEXT, data BLOB, value REAL)");
  const auto insert = fixture.run(
      "INSERT INTO t VALUES (7, 'sieben', x'00ff7E', 1.5), (8, NULL, x'', NULL), (9, '', NULL, 0)");
  CHECK(insert->get("dbtype") == "sqlitedb");
  CHECK(insert->get("rows") == "0");
  CHECK(insert->get("columns") == "0");
  CHECK(insert->get("affected") == "3");
  CHECK(insert->message->table == nullptr);

  const auto select = fixture.run("SELECT id, name, data AS raw, value FROM t ORDER BY id");
  CHECK(select->get("rows") == "3");
  CHECK(select->get("columns") == "4");
  CHECK(select->get("affected") == "0");
  REQUIRE(select->message->table != nullptr);
  CHECK(select->message->table->columns == std::vector<std::string>{"id", "name", "raw", "value"});
  const char* expected[3][4] = {
      {"7", "sieben", "00ff7e", "1.5"}, {"8", "(null)", "", "(null)"}, {"9", "", "(null)", "0.0"}};
  for (std::size_t row = 0; row < 3; ++row) {
    for (std::size_t column = 0; column < 4; ++column) {
      CHECK(select->cell(row, column) == expected[row][column]);
    }
  }
}

TEST_CASE("a text may hold any octet, and comes back as it is") {
  Fixture fixture;
  const auto select = fixture.run("SELECT 'a' || char(0) || 'b', 'it''s', char(128512)");
  CHECK(select->cell(0, 0) == std::string("a\0b", 3));
  CHECK(select->cell(0, 1) == "it's");
  CHECK(select->cell(0, 2) == "\xf0\x9f\x98\x80");
}

TEST_CASE("of several statements the last with rows gives them, and all count as affected") {
  Fixture fixture;
  const auto several = fixture.run(
      "; CREATE TABLE t (a); INSERT INTO t VALUES (1), (2); SELECT a, 'first' FROM t;\n"
      "-- a comment; with a semicolon\nSELECT a FROM t WHERE a = 2; SELECT a FROM t WHERE a = 9;"
      "UPDATE t SET a = 3 WHERE a = 1; ");
  CHECK(several->get("rows") == "1");
  CHECK(several->get("columns") == "1");
  CHECK(several->get("affected") == "3");
  CHECK(several->cell(0, 0) == "2");
}

TEST_CASE("a query that finds nothing has no rows, no columns and no table") {
  Fixture fixture;
  const auto select = fixture.run("SELECT 1 WHERE 0");
  CHECK(select->get("rows") == "0");
  CHECK(select->get("columns") == "0");
  CHECK(select->message->table == nullptr);
}

TEST_CASE("results=no counts the rows and keeps none") {
  Fixture fixture;
  const auto select = fixture.ask("SELECT 1 UNION SELECT 2", {{"results", "no"}});
  CHECK(select->handled);
  CHECK(select->get("rows") == "2");
  CHECK(select->get("columns") == "1");
  CHECK(select->message->table == nullptr);
}

TEST_CASE("a query that fails is handled, with the database's own words") {
  Fixture fixture;
  struct Row {
    const char* query;
    const char* text;
    const char* code;
  };
  const Row rows[] = {
      {"SELECT * FROM nowhere", "no such table: nowhere", "1"},
      {"SELEC 1", "near \"SELEC\": syntax error", "1"},
      {"CREATE TABLE u (a UNIQUE); INSERT INTO u VALUES (1); INSERT INTO u VALUES (1)",
       "UNIQUE constraint failed: u.a", "2067"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.query);
    const auto failed = fixture.ask(row.query);
    CHECK(failed->handled);
    CHECK(failed->get("error") == "failure");
    CHECK(failed->get("error_text") == row.text);
    CHECK(failed->get("code") == row.code);
    CHECK(failed->get("dbtype") == "sqlitedb");
    CHECK(failed->get("rows") == "(absent)");
    CHECK(failed->get("affected") == "(absent)");
    CHECK(failed->message->table == nullptr);
    CHECK(fixture.has_logged(row.text));
  }
}

TEST_CASE("a message that is sent again keeps nothing of its first query") {
  Fixture fixture;
  const auto question = fixture.ask("SELECT * FROM nowhere");
  question->message->set("query", "SELECT 1");
  question->answers = 0;
  fixture.dispatch(question);
  REQUIRE(fixture.wait(question));
  CHECK(question->get("error") == "(absent)");
  CHECK(question->get("error_text") == "(absent)");
  CHECK(question->get("code") == "(absent)");
  CHECK(question->cell(0, 0) == "1");
  question->message->set("query", "SELECT * FROM nowhere");
  question->answers = 0;
  fixture.dispatch(question);
  REQUIRE(fixture.wait(question));
  CHECK(question->get("rows") == "(absent)");
  CHECK(question->message->table == nullptr);
}

TEST_CASE("an account that is not in the file is somebody else's; no query is no error") {
  Fixture fixture;
  for (const char* account : {"", "other", "general", "STORE"}) {
    CAPTURE(account);
    const auto question = fixture.send("SELECT 1", {}, account);
    CHECK(question->answers == 1);
    CHECK_FALSE(question->handled);
    CHECK(question->get("dbtype") == "(absent)");
  }
  const auto empty = fixture.send("");
  CHECK(empty->answers == 1);
  CHECK(empty->handled);
  CHECK(empty->get("dbtype") == "sqlitedb");
  CHECK(empty->get("rows") == "(absent)");
}

TEST_CASE("a lock of another program is waited for, but not longer than the timeout") {
  Fixture patient("timeout=9000\n");
  patient.run("CREATE TABLE t (a)");
  OtherConnection other(patient.path());
  REQUIRE(other.run("BEGIN EXCLUSIVE") == SQLITE_OK);
  const auto waiting = patient.send("INSERT INTO t VALUES (1)");
  patient.loop.turn();
  CHECK(waiting->answers == 0);
  REQUIRE(other.run("COMMIT") == SQLITE_OK);
  CHECK(patient.wait(waiting));
  CHECK(waiting->get("affected") == "1");

  Fixture hasty("timeout=100\n");
  hasty.run("CREATE TABLE t (a)");
  OtherConnection holder(hasty.path());
  REQUIRE(holder.run("BEGIN EXCLUSIVE") == SQLITE_OK);
  const auto refused = hasty.ask("INSERT INTO t VALUES (1)");
  CHECK(refused->handled);
  CHECK(refused->get("error") == "failure");
  CHECK(refused->get("error_text") == "database is locked");
  CHECK(refused->get("code") == "5");
  REQUIRE(holder.run("COMMIT") == SQLITE_OK);
  CHECK(hasty.run("INSERT INTO t VALUES (1)")->get("affected") == "1");
}

TEST_CASE("a lock of the shared cache, of which SQLite tells no busy handler, is tried again") {
  struct Row {
    const char* retry;
    bool succeeds;
  };
  for (const Row& row : {Row{"retry=100\n", true}, Row{"retry=0\n", false}}) {
    CAPTURE(row.retry);
    Fixture fixture(std::string("timeout=9000\n") + row.retry, "shared_cache=yes\n");
    fixture.run("CREATE TABLE t (a)");
    OtherConnection other(fixture.path(), SQLITE_OPEN_SHAREDCACHE);
    REQUIRE(other.run("BEGIN; INSERT INTO t VALUES (1)") == SQLITE_OK);
    const auto question = fixture.send("SELECT a FROM t");
    if (!row.succeeds) CHECK(fixture.wait(question));
    fixture.loop.turn();
    REQUIRE(other.run("COMMIT") == SQLITE_OK);
    CHECK(fixture.wait(question));
    CHECK(question->get("rows") == (row.succeeds ? "1" : "(absent)"));
    CHECK(question->get("code") == (row.succeeds ? "(absent)" : "262"));
  }
}

TEST_CASE("a query without end is stopped, and the connection is good for the next") {
  Fixture fixture("timeout=100\n");
  const auto stopped = fixture.ask(endless);
  CHECK(stopped->handled);
  CHECK(stopped->get("error") == "failure");
  CHECK(stopped->get("error_text") == "not done after 100 ms");
  CHECK(stopped->get("code") == "9");
  fixture.run("SELECT 1");
}

TEST_CASE("what waited for a free connection longer than the timeout is not begun any more") {
  Fixture fixture("timeout=100\n");
  fixture.run("CREATE TABLE t (a)");
  const auto first = fixture.send(endless);
  const auto second = fixture.send(endless);
  const auto late = fixture.send("INSERT INTO t VALUES (1)");
  CHECK(fixture.wait(late));
  CHECK(first->get("code") == "9");
  CHECK(second->answers == 1);
  CHECK(late->get("error_text") == "no connection was free for 100 ms");
  CHECK(fixture.run("SELECT * FROM t")->get("rows") == "0");
}

TEST_CASE("queries of one connection run in the order they were sent") {
  Fixture fixture("timeout=60000\n");
  fixture.run("CREATE TABLE t (place INTEGER PRIMARY KEY AUTOINCREMENT, a)");
  std::vector<QuestionPointer> questions;
  for (int i = 0; i < 50; ++i) {
    questions.push_back(fixture.send("INSERT INTO t (a) VALUES (" + std::to_string(i) + ")"));
    CHECK(questions.back()->answers == 0);
  }
  CHECK(fixture.wait(questions.back()));
  for (const auto& question : questions) CHECK(question->answers == 1);
  const auto all = fixture.run("SELECT a FROM t ORDER BY place");
  REQUIRE(all->get("rows") == "50");
  for (std::size_t i = 0; i < 50; ++i) CHECK(all->cell(i, 0) == std::to_string(i));
}

TEST_CASE("with a pool a slow query does not hold up the others") {
  Fixture fixture("timeout=8000\npoolsize=2\n");
  fixture.run("SELECT 1");
  const auto slow = fixture.send(endless);
  for (int i = 0; i < 10; ++i) fixture.run("SELECT 1");
  CHECK(slow->answers == 0);
}

TEST_CASE("results, queries and queues have limits") {
  Fixture fixture("max_rows=3\nmax_result=2000\nmaxqueue=2\ntimeout=300\n");
  const std::string numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) ";
  CHECK(fixture.run(numbers + "SELECT i FROM n LIMIT 3")->get("rows") == "3");
  struct Row {
    std::string query;
    const char* text;
  };
  const Row rows[] = {
      {numbers + "SELECT i FROM n", "the result has more than 3 rows"},
      {"SELECT zeroblob(1000)", "the result has more than 2000 octets"},
      {"SELECT '" + std::string(2000, 'x') + "'", "the result has more than 2000 octets"},
      {"SELECT 1 --" + std::string(1000000, 'x'), "the query is longer than 1000000 octets"},
      {std::string("SELECT 1; \0 SELECT 2", 20), "the query holds a NUL octet"},
  };
  for (const Row& row : rows) {
    const auto refused = fixture.ask(row.query);
    CHECK(refused->handled);
    CHECK(refused->get("error") == "failure");
    CHECK(refused->get("error_text") == row.text);
    CHECK(refused->message->table == nullptr);
  }
  const auto running = fixture.send(endless);
  const auto second = fixture.send("SELECT 2");
  const auto third = fixture.send("SELECT 3");
  const auto refused = fixture.send("SELECT 4");
  CHECK(refused->answers == 1);
  CHECK(refused->handled);
  CHECK(refused->get("error_text") == "2 queries are waiting already");
  CHECK(fixture.wait(third));
}

TEST_CASE("a transaction that fails half way is taken back, and holds no lock") {
  Fixture fixture;
  fixture.run("CREATE TABLE t (a)");
  const auto failed = fixture.ask("BEGIN; INSERT INTO t VALUES (1); SELECT nonsense; COMMIT");
  CHECK(failed->get("error_text") == "no such column: nonsense");
  OtherConnection other(fixture.path());
  CHECK(other.run("INSERT INTO t VALUES (2)") == SQLITE_OK);
  const auto left = fixture.run("SELECT a FROM t");
  CHECK(left->get("rows") == "1");
  CHECK(left->cell(0, 0) == "2");
}

TEST_CASE("initialize prepares the database before anything else, from the key or from a file") {
  SUBCASE("from the key, once for all connections") {
    Fixture fixture("poolsize=3\ninitialize=CREATE TABLE t (a); INSERT INTO t VALUES (5)\n");
    std::vector<QuestionPointer> questions;
    for (int i = 0; i < 9; ++i) questions.push_back(fixture.send("SELECT a FROM t"));
    for (const auto& question : questions) {
      CHECK(fixture.wait(question));
      CHECK(question->get("rows") == "1");
    }
  }
  SUBCASE("from a file") {
    TemporaryDirectory scripts;
    scripts.write("schema.sql", "CREATE TABLE t (a);\nINSERT INTO t VALUES (6);\n");
    Fixture fixture("initialize=@" + scripts.path + "/schema.sql\n");
    CHECK(fixture.run("SELECT a FROM t")->cell(0, 0) == "6");
  }
  SUBCASE("one that fails is a warning") {
    Fixture fixture("initialize=CREATE TABLE\n");
    fixture.run("SELECT 1");
    CHECK(fixture.has_logged("account store: initialize: "));
  }
}

TEST_CASE("an account whose database cannot be opened is dead until it can") {
  TemporaryDirectory elsewhere;
  DatabaseFixture fixture(modules::make_sqlitedb, "sqlitedb.conf",
                          "[store]\ndatabase=" + elsewhere.path + "/later/store.db\n");
  const auto first = fixture.ask("SELECT 1");
  CHECK_FALSE(first->handled);
  CHECK(first->get("error") == "noconn");
  CHECK(first->get("error_text") == "unable to open database file");
  CHECK(fixture.has_logged("account store: no connection: unable to open database file"));
  const auto second = fixture.send("SELECT 1");
  CHECK(second->answers == 1);  // at once
  CHECK_FALSE(second->handled);
  std::filesystem::create_directory(elsewhere.path + "/later");
  CHECK(fixture.loop.run_until([&] { return fixture.has_logged("connected again"); }));
  fixture.run("SELECT 1");
}

TEST_CASE("autostart=no opens the database for the first query") {
  Fixture eager;
  CHECK(eager.loop.run_until([&] { return std::filesystem::exists(eager.path()); }));
  Fixture lazy("autostart=no\ninitialize=CREATE TABLE t (a)\n");
  lazy.loop.turn();
  CHECK_FALSE(std::filesystem::exists(lazy.path()));
  lazy.run("SELECT a FROM t");
}

TEST_CASE("a module that stops answers what is under way, and nothing afterwards") {
  Fixture fixture("timeout=60000\n");
  fixture.run("CREATE TABLE t (a)");
  std::vector<QuestionPointer> questions = {fixture.send(endless)};
  for (int i = 0; i < 3; ++i) questions.push_back(fixture.send("INSERT INTO t VALUES (1)"));
  fixture.loop.turn();
  fixture.module->stop();
  for (const auto& question : questions) {
    CHECK(question->answers == 1);
    CHECK_FALSE(question->handled);
    CHECK(question->get("error") == "cancelled");
  }
  const std::size_t lines = fixture.log.size();
  const auto late = fixture.send("SELECT 1");
  CHECK(late->answers == 1);
  CHECK_FALSE(late->handled);
  fixture.module = modules::make_sqlitedb();  // the old one may go before the loop turns
  fixture.server.close();
  CHECK(fixture.loop.run_dry(5000));
  CHECK(fixture.log.size() == lines);
  OtherConnection other(fixture.path());
  CHECK(other.run("BEGIN EXCLUSIVE") == SQLITE_OK);
}

TEST_CASE("an answer may ask again, or stop the module") {
  Fixture fixture;
  auto chained = std::make_shared<Question>();
  fixture.engine.dispatch(
      std::make_shared<modules::ListMessage>(
          "database", Fixture::Parameters{{"account", "store"}, {"query", "SELECT 1"}}),
      [&](bool) { chained = fixture.send("SELECT 2"); });
  CHECK(fixture.loop.run_until([&] { return chained->answers == 1; }));
  CHECK(chained->cell(0, 0) == "2");

  bool stopped = false;
  fixture.engine.dispatch(
      std::make_shared<modules::ListMessage>(
          "database", Fixture::Parameters{{"account", "store"}, {"query", "SELECT 1"}}),
      [&](bool handled) {
        CHECK(handled);
        fixture.module->stop();
        stopped = true;
      });
  const auto second = fixture.send("SELECT 1");
  CHECK(fixture.loop.run_until([&] { return stopped; }));
  CHECK(second->answers == 1);
  CHECK_FALSE(second->handled);
}

TEST_CASE("a database in memory belongs to its one connection") {
  DatabaseFixture fixture(modules::make_sqlitedb, "sqlitedb.conf", "[store]\npoolsize=4\n");
  REQUIRE(fixture.diagnostics.size() == 1);
  CHECK(fixture.diagnostics[0].line == 2);
  fixture.run("CREATE TABLE t (a)");
  std::vector<QuestionPointer> questions;
  for (int i = 0; i < 8; ++i) questions.push_back(fixture.send("INSERT INTO t VALUES (1)"));
  for (const auto& question : questions) {
    CHECK(fixture.wait(question));
    CHECK(question->get("affected") == "1");
  }
}

TEST_CASE("what is wrong in sqlitedb.conf is named with its line") {
  struct Row {
    const char* line;
    const char* remark;  ///< behind "sqlitedb.conf:4: "
    bool loads;
  };
  const Row rows[] = {
      {"timeout=50", "warning: [store] timeout: \"50\" is no number from 100 to 3600000; it is 100",
       true},
      {"timeout=soon",
       "warning: [store] timeout: \"soon\" is no number from 100 to 3600000; it is 2000", true},
      {"retry=-1", "warning: [store] retry: \"-1\" is no number from 0 to 100; it is 0", true},
      {"autostart=1", "warning: [store] autostart: \"1\" is neither yes nor no; it is yes", true},
      {"time=5", "warning: [store] time: unknown key; known are poolsize, ", true},
      {"initialize=@/nonexistent.sql",
       "error: [store] initialize: /nonexistent.sql: the file cannot be read or written: no such "
       "file or directory",
       false},
  };
  for (const Row& row : rows) {
    CAPTURE(row.line);
    TemporaryDirectory directory;
    directory.write("sqlitedb.conf", std::string("[general]\npriority=50\n[store]\n") + row.line);
    sipmsg::Diagnostics diagnostics;
    const auto module = modules::make_sqlitedb();
    CHECK(module->load(directory.path, diagnostics) == row.loads);
    REQUIRE(diagnostics.size() == 1);
    const std::string text = sipmsg::to_text(diagnostics[0]);
    CHECK(text.find(directory.path + "/sqlitedb.conf:4: " + row.remark) == 0);
  }
}

TEST_CASE("without its file, or without an account in it, the module is off") {
  TemporaryDirectory directory;
  sipmsg::Diagnostics diagnostics;
  const auto without = modules::make_sqlitedb();
  CHECK(without->load(directory.path, diagnostics));
  CHECK_FALSE(without->is_enabled());
  directory.write("sqlitedb.conf", "[general]\n");
  const auto empty = modules::make_sqlitedb();
  CHECK(empty->load(directory.path, diagnostics));
  CHECK_FALSE(empty->is_enabled());
  CHECK(diagnostics.empty());
  CHECK(empty->name() == "sqlitedb");
  std::filesystem::remove(directory.path + "/sqlitedb.conf");
  std::filesystem::create_directory(directory.path + "/sqlitedb.conf");
  const auto unreadable = modules::make_sqlitedb();
  CHECK_FALSE(unreadable->load(directory.path, diagnostics));
  CHECK(diagnostics.size() == 1);
}

TEST_CASE("the sample of sqlitedb.conf is without fault and has every key") {
  check_sample(modules::make_sqlitedb, "sqlitedb.conf");
}

}  // namespace net_database_sqlite
