// database_mysql.cpp and database.cpp over a real server of MariaDB, which with_mariadb.py starts,
// and kills and starts again in between. Meant to be run with the thread sanitizer, too.
// Not covered: servers of MySQL, TLS.
#include "../../src/modules/database/mysql.hpp"

#include "support/database.hpp"

namespace net_database_mysql {

using namespace test;

namespace {

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr) FAIL("to be run by tests/modules/with_mariadb.py: no " << name);
  return value;
}

/// An account of the server; of a key that stands twice the first counts.
std::string account(const std::string& name, const std::string& keys = "") {
  return "[" + name + "]\n" + keys + "socket=" + environment("SIPMSG_TEST_MARIADB_SOCKET") +
         "\nuser=tester\npassword=secret\ndatabase=sipmsg\n";
}

/// [store], and [admin], by which tests look at the server and do it harm.
struct Fixture : DatabaseFixture {
  explicit Fixture(const std::string& keys = "")
      : DatabaseFixture(modules::make_mysqldb, "mysqldb.conf",
                        account("admin", "timeout=20000\n") + account("store", keys)) {}

  QuestionPointer admin(const std::string& query) { return run(query, "admin"); }
  /// Makes an empty table `t`.
  void make_table(const std::string& columns) {
    admin("DROP TABLE IF EXISTS t; CREATE TABLE t (" + columns + ") ENGINE=InnoDB");
  }
  /// Waits until a thread of the server is in this call of SLEEP, and returns its number. Its query
  /// alone would not tell: all of it is there while the statement before is still being done.
  std::string thread_at(const std::string& words) {
    while (true) {
      const auto found = admin(
          "SELECT id FROM information_schema.processlist WHERE id <> connection_id() "
          "AND state = 'User sleep' AND info LIKE '%" +
          words + "%'");
      if (found->get("rows") != "0") return found->cell(0, 0);
    }
  }
};

/// Has the server stopped, killed or started.
void command(const std::string& word) {
  const int control = std::stoi(environment("SIPMSG_TEST_MARIADB_CONTROL"));
  const std::string line = word + "\n";
  REQUIRE(::write(control, line.data(), line.size()) == static_cast<long>(line.size()));
  std::string answer;
  for (char c = 0; c != '\n'; answer += c) REQUIRE(::read(control, &c, 1) == 1);
  REQUIRE(answer == "done\n");
}

}  // namespace

TEST_CASE("what a query wrote and found stands in the message") {
  Fixture fixture;
  fixture.make_table("id INT, name TEXT, data BLOB, bits VARBINARY(9), at DATETIME");
  const auto insert = fixture.run(
      "INSERT INTO t VALUES (7, '\xc3\xa4\xf0\x9f\x98\x80', x'00ff7E', 'ab', '2026-01-02 "
      "03:04:05'), "
      "(8, NULL, '', NULL, NULL)");
  CHECK(insert->get("dbtype") == "mysqldb");
  CHECK(insert->get("affected") == "2");
  CHECK(insert->get("rows") == "(absent)");
  CHECK(insert->get("columns") == "(absent)");
  CHECK(insert->message->table == nullptr);

  const auto select = fixture.run("SELECT id, name, data, bits AS b, at FROM t ORDER BY id");
  CHECK(select->get("rows") == "2");
  CHECK(select->get("columns") == "5");
  REQUIRE(select->message->table != nullptr);
  CHECK(select->message->table->columns ==
        std::vector<std::string>{"id", "name", "data", "b", "at"});
  const char* expected[2][5] = {
      {"7", "\xc3\xa4\xf0\x9f\x98\x80", "00ff7e", "6162", "2026-01-02 03:04:05"},
      {"8", "(null)", "", "(null)", "(null)"}};
  for (std::size_t row = 0; row < 2; ++row) {
    for (std::size_t column = 0; column < 5; ++column) {
      CHECK(select->cell(row, column) == expected[row][column]);
    }
  }
  // Not only there and back: the server took two characters in, not six octets.
  CHECK(fixture.run("SELECT CHAR_LENGTH(name) FROM t WHERE id = 7")->cell(0, 0) == "2");
}

TEST_CASE("a query that finds nothing has its columns all the same") {
  Fixture fixture;
  const auto select = fixture.run("SELECT 1 AS one, 2 AS two FROM DUAL WHERE 0");
  CHECK(select->get("rows") == "0");
  CHECK(select->get("columns") == "2");
  REQUIRE(select->message->table != nullptr);
  CHECK(select->message->table->columns == std::vector<std::string>{"one", "two"});
}

TEST_CASE("of several statements the last with rows gives them, and affected is their sum") {
  Fixture fixture;
  fixture.make_table("a INT");
  const auto several = fixture.run(
      "INSERT INTO t VALUES (1), (2); SELECT 'first'; SELECT a FROM t WHERE a = 2; "
      "UPDATE t SET a = a + 5; DELETE FROM t WHERE a = 6");
  CHECK(several->get("rows") == "1");
  CHECK(several->get("columns") == "1");
  CHECK(several->get("affected") == "5");
  CHECK(several->cell(0, 0) == "2");
}

TEST_CASE("a query that fails is handled, with the server's number and words") {
  Fixture fixture;
  fixture.make_table("a INT PRIMARY KEY");
  struct Row {
    const char* query;
    const char* text;
    const char* code;
  };
  const Row rows[] = {
      {"SELEC 1", "You have an error in your SQL syntax", "1064"},
      {"SELECT * FROM nowhere", "Table 'sipmsg.nowhere' doesn't exist", "1146"},
      {"INSERT INTO t VALUES (1); INSERT INTO t VALUES (1); SELECT 1", "Duplicate entry", "1062"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.query);
    const auto failed = fixture.ask(row.query);
    CHECK(failed->handled);
    CHECK(failed->get("error") == "failure");
    CHECK(failed->get("error_text").find(row.text) == 0);
    CHECK(failed->get("code") == row.code);
    CHECK(failed->get("dbtype") == "mysqldb");
    CHECK(failed->get("rows") == "(absent)");
    CHECK(failed->message->table == nullptr);
    CHECK(fixture.has_logged(std::string("account store: a query failed: ") + row.code));
  }
  fixture.run("SELECT 1");
}

TEST_CASE("warnings are counted") {
  Fixture fixture;
  CHECK(fixture.run("DROP TABLE IF EXISTS nowhere")->get("warnings") == "1");
  CHECK(fixture.run("SELECT 1")->get("warnings") == "(absent)");
}

TEST_CASE("a wrong password makes a dead account, and stands in no log") {
  DatabaseFixture fixture(modules::make_mysqldb, "mysqldb.conf",
                          account("other") +
                              "[store]\nsocket=" + environment("SIPMSG_TEST_MARIADB_SOCKET") +
                              "\nuser=tester\npassword=unsecret\ndatabase=sipmsg\n");
  const auto refused = fixture.ask("SELECT 1");
  CHECK_FALSE(refused->handled);
  CHECK(refused->get("error") == "noconn");
  CHECK(refused->get("code") == "1045");
  CHECK(refused->get("error_text").find("Access denied for user 'tester'") == 0);
  CHECK(fixture.has_logged("account store: no connection: Access denied"));
  CHECK_FALSE(fixture.has_logged("secret"));
  fixture.run("SELECT 1", "other");
}

TEST_CASE("host and port reach the server, too") {
  DatabaseFixture fixture(
      modules::make_mysqldb, "mysqldb.conf",
      "[store]\nhost=127.0.0.1\nport=" + environment("SIPMSG_TEST_MARIADB_PORT") +
          "\nuser=tester\npassword=secret\ndatabase=sipmsg\ncompress=yes\n");
  CHECK(fixture.run("SELECT DATABASE()")->cell(0, 0) == "sipmsg");
}

TEST_CASE("encoding names the character set; unset it is utf8mb4") {
  const char* query = "SELECT @@character_set_client, @@character_set_results";
  Fixture unset;
  CHECK(unset.run(query)->cell(0, 0) == "utf8mb4");
  CHECK(unset.run(query)->cell(0, 1) == "utf8mb4");
  Fixture latin("encoding=latin1\n");
  CHECK(latin.run(query)->cell(0, 0) == "latin1");
  CHECK(latin.run("SELECT _utf8mb4'\xc3\xa4'")->cell(0, 0) == "\xe4");
}

TEST_CASE("a query that takes too long is stopped by the server, and the connection stays") {
  Fixture fixture("timeout=1000\n");
  const std::string id = fixture.run("SELECT CONNECTION_ID()")->cell(0, 0);
  const auto stopped = fixture.ask("SELECT SLEEP(30)");
  CHECK(stopped->handled);
  CHECK(stopped->get("error") == "timeout");
  CHECK(stopped->get("code") == "1969");
  CHECK(fixture.run("SELECT CONNECTION_ID()")->cell(0, 0) == id);
}

TEST_CASE("a server that stops nothing is given up a second later") {
  Fixture fixture("timeout=1000\n");
  const std::string id = fixture.run("SELECT CONNECTION_ID()")->cell(0, 0);
  fixture.run("SET max_statement_time=0");
  const auto stopped = fixture.ask("SELECT SLEEP(30)");
  CHECK(stopped->handled);
  CHECK(stopped->get("error") == "timeout");
  CHECK(stopped->get("error_text") == "not done after 1 s");
  CHECK(fixture.run("SELECT CONNECTION_ID()")->cell(0, 0) != id);
}

TEST_CASE("warn_query_duration, of the account or of the message, logs slow queries") {
  Fixture fixture("warn_query_duration=50\n");
  fixture.run("SELECT SLEEP(0.1)");
  CHECK(fixture.has_logged("account store: a query took 1"));
  fixture.log.clear();
  fixture.ask("SELECT SLEEP(0.1)", {{"warn_query_duration", "60000"}});
  fixture.run("SELECT 1");
  CHECK(fixture.log.empty());
}

TEST_CASE("results=no is answered before the query runs; an error is logged") {
  Fixture fixture;
  fixture.make_table("a INT");
  const auto insert = fixture.send("INSERT INTO t VALUES (1)", {{"results", "no"}});
  CHECK(insert->answers == 1);
  CHECK(insert->handled);
  CHECK(insert->get("dbtype") == "mysqldb");
  CHECK(insert->get("affected") == "(absent)");
  const auto wrong = fixture.send("INSERT INTO nowhere VALUES (1)", {{"results", "no"}});
  CHECK(wrong->answers == 1);
  CHECK(wrong->handled);
  CHECK(fixture.run("SELECT a FROM t")->get("rows") == "1");  // it waits for those before it
  CHECK(fixture.has_logged("account store: a query failed: 1146"));
}

TEST_CASE("queries of one connection run in the order they were sent") {
  Fixture fixture;
  fixture.make_table("place INT AUTO_INCREMENT PRIMARY KEY, a INT");
  std::vector<QuestionPointer> questions;
  for (int i = 0; i < 50; ++i) {
    questions.push_back(fixture.send("INSERT INTO t (a) VALUES (" + std::to_string(i) + ")",
                                     {{"results", i % 2 == 0 ? "no" : "yes"}}));
  }
  CHECK(fixture.wait(questions.back()));
  const auto all = fixture.run("SELECT a FROM t ORDER BY place");
  REQUIRE(all->get("rows") == "50");
  for (std::size_t i = 0; i < 50; ++i) CHECK(all->cell(i, 0) == std::to_string(i));
}

TEST_CASE("with a pool a slow query does not hold up the others") {
  Fixture fixture("poolsize=2\n");
  fixture.run("SELECT 1");
  const auto slow = fixture.send("SELECT SLEEP(1)");
  for (int i = 0; i < 10; ++i) fixture.run("SELECT 1");
  CHECK(slow->answers == 0);
  CHECK(fixture.wait(slow));
}

TEST_CASE("a result that is too large is an error, and the connection is made anew") {
  Fixture fixture("max_rows=100\nmax_result=20000\n");
  CHECK(fixture.run("SELECT seq FROM seq_1_to_100")->get("rows") == "100");
  const auto rows = fixture.ask("SELECT seq FROM seq_1_to_100000000");
  CHECK(rows->handled);
  CHECK(rows->get("error") == "failure");
  CHECK(rows->get("error_text") == "the result has more than 100 rows");
  const auto octets = fixture.ask("SELECT REPEAT('x', 30000)");
  CHECK(octets->get("error_text") == "the result has more than 20000 octets");
  fixture.run("SELECT 1");
}

TEST_CASE("a transaction that fails half way is taken back") {
  Fixture fixture;
  fixture.make_table("a INT");
  const auto failed = fixture.ask("BEGIN; INSERT INTO t VALUES (1); SELECT nonsense; COMMIT");
  CHECK(failed->get("code") == "1054");
  fixture.run("INSERT INTO t VALUES (2); COMMIT");
  const auto left = fixture.admin("SELECT a FROM t");
  CHECK(left->get("rows") == "1");
  CHECK(left->cell(0, 0) == "2");
}

TEST_CASE("a statement that the server took back because of a deadlock is run again") {
  // Counts how often it is called, in a table that knows no transactions, and pretends a deadlock.
  const std::string procedure =
      "CREATE OR REPLACE TABLE attempts (a INT) ENGINE=Aria TRANSACTIONAL=0;"
      "CREATE OR REPLACE PROCEDURE attempt(IN failures INT) BEGIN INSERT INTO attempts VALUES (1);"
      "IF (SELECT COUNT(*) FROM attempts) <= failures THEN "
      "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213; END IF; END";
  Fixture fixture("query_retry=2\n");
  struct Row {
    const char* query;
    const char* code;
    const char* attempts;
  };
  const Row rows[] = {
      {"CALL attempt(2)", "(absent)", "3"},
      {"CALL attempt(9)", "1213", "3"},
      // An earlier statement has been done, and must not be done twice.
      {"SELECT 1; CALL attempt(2)", "1213", "1"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.query);
    fixture.admin(procedure);
    CHECK(fixture.ask(row.query)->get("code") == row.code);
    CHECK(fixture.admin("SELECT * FROM attempts")->get("rows") == row.attempts);
  }
}

TEST_CASE("a connection that the server closed while it was idle is opened anew, unnoticed") {
  // Over TCP a query can still be written to it, and only the answer does not come.
  Fixture fixture("socket=\nhost=127.0.0.1\nport=" + environment("SIPMSG_TEST_MARIADB_PORT") +
                  "\n");
  fixture.make_table("a INT");
  const std::string id = fixture.run("SELECT CONNECTION_ID()")->cell(0, 0);
  fixture.admin("KILL CONNECTION " + id);
  // The server closes the socket some time after it said so.
  CHECK(fixture.loop.run_until([&] {
    const auto gone =
        fixture.admin("SELECT id FROM information_schema.processlist WHERE id = " + id);
    return gone->get("rows") == "0";
  }));
  CHECK(fixture.run("INSERT INTO t VALUES (1)")->get("affected") == "1");
  CHECK(fixture.run("SELECT * FROM t")->get("rows") == "1");
}

TEST_CASE("a query whose connection is lost may have been done, and is not run again") {
  Fixture fixture;
  fixture.make_table("a INT");
  const auto lost = fixture.send("INSERT INTO t VALUES (1); SELECT SLEEP(15)");
  fixture.admin("KILL CONNECTION " + fixture.thread_at("SLEEP(15)"));
  CHECK(fixture.wait(lost));
  CHECK(lost->handled);
  CHECK(lost->get("error") == "failure");
  const std::string code = lost->get("code");
  CHECK((code == "2013" || code == "1317" || code == "1927"));
  CHECK(fixture.run("SELECT * FROM t")->get("rows") == "1");
}

TEST_CASE("a server that is killed and comes back is connected to again") {
  for (const char* end : {"stop", "kill"}) {
    CAPTURE(end);
    Fixture fixture;
    fixture.run("SELECT 1");
    const auto under_way = fixture.send("SELECT SLEEP(15)");
    fixture.thread_at("SLEEP(15)");
    command(end);
    CHECK(fixture.wait(under_way));
    CHECK(under_way->handled);
    CHECK(under_way->get("error") == "failure");
    const auto refused = fixture.ask("SELECT 1");
    CHECK_FALSE(refused->handled);
    CHECK(refused->get("error") == "noconn");
    CHECK(refused->get("code") == "2002");
    CHECK(fixture.send("SELECT 1", {{"results", "no"}})->handled == false);
    command("start");
    CHECK(fixture.loop.run_until(
        [&] { return fixture.has_logged("account store: connected again"); }));
    fixture.run("SELECT 1");
  }
}

TEST_CASE("a module that stops answers what is under way at once") {
  Fixture fixture("timeout=60000\n");
  const auto running = fixture.send("SELECT SLEEP(50)");
  const auto waiting = fixture.send("SELECT 1");
  fixture.thread_at("SLEEP(50)");
  fixture.module->stop();
  for (const auto& question : {running, waiting}) {
    CHECK(question->answers == 1);
    CHECK_FALSE(question->handled);
    CHECK(question->get("error") == "cancelled");
  }
  const std::size_t lines = fixture.log.size();
  fixture.module = modules::make_mysqldb();
  fixture.server.close();
  CHECK(fixture.loop.run_dry(10000));
  CHECK(fixture.log.size() == lines);
}

TEST_CASE("queries that were answered before they ran are run when the module stops") {
  for (const bool is_awaited : {false, true}) {
    CAPTURE(is_awaited);
    {
      Fixture fixture("timeout=20000\n");
      fixture.make_table("place INT AUTO_INCREMENT PRIMARY KEY, a INT");
      // Whether the connection is in the middle of something that is cut off, or not.
      fixture.send("SELECT SLEEP(1)", {{"results", is_awaited ? "yes" : "no"}});
      fixture.thread_at("SLEEP(1)");
      for (int i = 0; i < 5; ++i) {
        fixture.send("INSERT INTO t (a) VALUES (" + std::to_string(i) + ")", {{"results", "no"}});
      }
      fixture.module->stop();
      fixture.server.close();
      CHECK(fixture.loop.run_dry());
    }
    Fixture next;
    const auto all = next.run("SELECT a FROM t ORDER BY place");
    REQUIRE(all->get("rows") == "5");
    for (std::size_t i = 0; i < 5; ++i) CHECK(all->cell(i, 0) == std::to_string(i));
  }
}

}  // namespace net_database_mysql
