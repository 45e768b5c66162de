// database/mysql: MariaDB and MySQL as a driver of database.hpp, by MariaDB's client library.
//
// A query may be repeated only where it certainly did nothing: where it could not be handed to the
// server at all, and where the server took all of it back because of a deadlock (`query_retry`).
// After any other loss of the connection nobody can know, and the script is told. So that this is
// rare, a connection that was idle is looked at before it is used: servers close those.
// Timeouts are kept twice. A server of MariaDB stops the query itself (max_statement_time); where
// no answer comes at all the client gives up a second later and drops the connection.
// While it connects, too, the library waits for its socket by our own function: so a server that
// takes the connection and says nothing does not hold up the end of the program. Only the search
// for the address of a host cannot be cut short. Left out on purpose: TLS settings (the library's
// defaults hold) and LOAD DATA LOCAL, by which a server can read files of this machine.
#include "mysql.hpp"

#include <errmsg.h>
#include <mysql.h>
#include <mysqld_error.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <mutex>
#include <utility>

#include "database.hpp"

namespace modules {

namespace {

using namespace database;

/// MariaDB's number for a statement that took longer than max_statement_time, and MySQL's for
/// max_execution_time; the library's header has only one of them.
constexpr unsigned mariadb_statement_timeout = 1969;
constexpr unsigned mysql_query_timeout = 3024;
/// The number of the character set of binary values.
constexpr unsigned binary_charset = 63;
/// Errors with these numbers are the client library's: the connection is of no more use.
constexpr unsigned first_client_error = 2000;
constexpr unsigned last_client_error = 2999;
/// Before a statement is repeated the one it was in the way of gets time to finish.
constexpr unsigned deadlock_pause_ms = 20;

struct ServerSettings {
  std::string host;
  std::string user;
  std::string password;
  std::string database;
  std::string socket;
  std::string encoding;
  std::uint16_t port = 0;
  bool compress = false;
  std::uint32_t timeout_s = 10;
  std::uint32_t query_retry = 1;
  ResultLimits limits;
};

struct ResultDeleter {
  void operator()(MYSQL_RES* result) const { mysql_free_result(result); }
};
using ResultSet = std::unique_ptr<MYSQL_RES, ResultDeleter>;

const char* null_if_empty(const std::string& text) { return text.empty() ? nullptr : text.c_str(); }

class ServerConnection final : public Connection {
 public:
  explicit ServerConnection(ServerSettings settings) : settings_(std::move(settings)) {}
  ~ServerConnection() override { close(); }

  bool is_open() const override { return server_ != nullptr; }
  Outcome open() override;
  Outcome run(const Query& query) override;
  void interrupt() override;

 private:
  bool is_interrupted();
  void set_options();
  void limit_statements();
  void keep_socket(my_socket socket);
  static int wait_for_socket(my_socket socket, my_bool is_read, int timeout_ms);
  void close();
  void give_up();
  bool server_has_left() const;
  bool is_over() const { return now_ms() >= began_ms_ + (settings_.timeout_s + 1) * 1000; }
  Outcome run_once(const Query& query, bool& did_nothing);
  Outcome read_results(const Query& query);
  Outcome read_rows(MYSQL_RES* result, bool wants_rows);
  bool is_in_transaction() const;
  Outcome failure();
  Outcome out_of_time(std::optional<std::uint32_t> code = {});

  static std::uint64_t now_ms() { return uv_hrtime() / 1000000; }

  /// The library does not tell `wait_for_socket` whose socket it is.
  static thread_local ServerConnection* connecting_;

  const ServerSettings settings_;
  MYSQL* server_ = nullptr;
  std::uint64_t began_ms_ = 0;  ///< of the query that runs
  bool is_given_up_ = false;    ///< to be closed as soon as no result refers to it

  std::mutex mutex_;  ///< guards what is below
  /// A second descriptor of the connection's socket, so that `interrupt` can shut it down at any
  /// time: the library's own may be closed at that moment, and its number be somebody else's.
  int socket_ = -1;
  bool is_interrupted_ = false;
};

// ---- the connection ----

Outcome ServerConnection::open() {
  if (is_interrupted()) return Outcome::fail(Status::no_connection, "interrupted");
  // The library must be made ready by one thread.
  static const int library = mysql_library_init(0, nullptr, nullptr);
  if (library != 0) return Outcome::fail(Status::no_connection, "the client library fails");
  server_ = mysql_init(nullptr);
  if (server_ == nullptr) return Outcome::fail(Status::no_connection, "out of memory");
  set_options();
  connecting_ = this;
  MYSQL* connected =
      mysql_real_connect(server_, null_if_empty(settings_.host), settings_.user.c_str(),
                         settings_.password.c_str(), null_if_empty(settings_.database),
                         settings_.port, null_if_empty(settings_.socket), CLIENT_MULTI_STATEMENTS);
  if (connected == nullptr) {
    Outcome outcome =
        Outcome::fail(Status::no_connection, mysql_error(server_), mysql_errno(server_));
    close();
    return outcome;
  }
  mysql_options(server_, MARIADB_OPT_IO_WAIT, nullptr);
  keep_socket(mysql_get_socket(server_));
  limit_statements();
  return {};
}

void ServerConnection::set_options() {
  const unsigned connect_s = settings_.timeout_s;
  const unsigned wait_s = settings_.timeout_s + 1;
  const unsigned no = 0;
  mysql_options(server_, MYSQL_OPT_CONNECT_TIMEOUT, &connect_s);
  mysql_options(server_, MYSQL_OPT_READ_TIMEOUT, &wait_s);
  mysql_options(server_, MYSQL_OPT_WRITE_TIMEOUT, &wait_s);
  mysql_options(server_, MYSQL_OPT_LOCAL_INFILE, &no);
  mysql_options(server_, MYSQL_SET_CHARSET_NAME, settings_.encoding.c_str());
  mysql_options(server_, MARIADB_OPT_IO_WAIT, reinterpret_cast<const void*>(&wait_for_socket));
  if (settings_.compress) mysql_options(server_, MYSQL_OPT_COMPRESS, nullptr);
}

/// MySQL has nothing of the kind for all statements, and servers before 10.1 neither.
void ServerConnection::limit_statements() {
  if (mariadb_connection(server_) == 0) return;
  const std::string limit = "SET max_statement_time=" + std::to_string(settings_.timeout_s);
  mysql_real_query(server_, limit.data(), limit.size());
}

void ServerConnection::keep_socket(my_socket socket) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (socket_ >= 0) ::close(socket_);
  socket_ = ::dup(static_cast<int>(socket));
  if (is_interrupted_) ::shutdown(socket_, SHUT_RDWR);
}

thread_local ServerConnection* ServerConnection::connecting_ = nullptr;

/// Each of the host's addresses that the library tries has a socket of its own.
int ServerConnection::wait_for_socket(my_socket socket, my_bool is_read, int timeout_ms) {
  connecting_->keep_socket(socket);
  pollfd entry{static_cast<int>(socket), static_cast<short>(is_read != 0 ? POLLIN : POLLOUT), 0};
  int ready = 0;
  do {
    ready = ::poll(&entry, 1, timeout_ms > 0 ? timeout_ms : -1);
  } while (ready < 0 && errno == EINTR);
  if (ready == 0) errno = ETIMEDOUT;
  return ready;
}

bool ServerConnection::is_interrupted() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return is_interrupted_;
}

void ServerConnection::interrupt() {
  const std::lock_guard<std::mutex> lock(mutex_);
  is_interrupted_ = true;
  if (socket_ >= 0) ::shutdown(socket_, SHUT_RDWR);
}

void ServerConnection::close() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (socket_ >= 0) ::close(socket_);
    socket_ = -1;
  }
  is_given_up_ = false;
  if (server_ != nullptr) mysql_close(std::exchange(server_, nullptr));
}

/// What the server still sends is not waited for: the library would read a result to its end before
/// it lets go of it.
void ServerConnection::give_up() {
  is_given_up_ = true;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (socket_ >= 0) ::shutdown(socket_, SHUT_RDWR);
}

/// Between two queries a server has nothing to say: what can be read then is the end.
bool ServerConnection::server_has_left() const {
  pollfd socket{static_cast<int>(mysql_get_socket(server_)), POLLIN, 0};
  return ::poll(&socket, 1, 0) != 0;
}

// ---- queries ----

Outcome ServerConnection::run(const Query& query) {
  began_ms_ = now_ms();
  std::uint32_t retries = settings_.query_retry;
  bool may_connect_again = true;
  if (server_has_left()) close();
  while (true) {
    if (!is_open()) {
      Outcome outcome = open();
      if (outcome.status != Status::done) return outcome;
      may_connect_again = false;
    }
    bool did_nothing = false;
    Outcome outcome = run_once(query, did_nothing);
    const bool may_repeat = did_nothing && (is_open() ? retries-- > 0 : may_connect_again);
    if (!may_repeat || is_over() || is_interrupted()) return outcome;
    if (is_open()) uv_sleep(deadlock_pause_ms);
  }
}

/// `did_nothing`: it failed, and the server is as it was before. The connection is closed where it
/// is of no more use.
Outcome ServerConnection::run_once(const Query& query, bool& did_nothing) {
  const bool was_in_transaction = is_in_transaction();
  Outcome outcome;
  if (mysql_real_query(server_, query.text.data(), query.text.size()) != 0) {
    outcome = failure();
    // The first statement of the query failed, and no other was looked at. A deadlock takes the
    // whole transaction back: one that an earlier query began would be missing its first half.
    const bool is_deadlock = outcome.code == ER_LOCK_DEADLOCK && !was_in_transaction;
    did_nothing = is_deadlock || outcome.code == CR_SERVER_GONE_ERROR;
  } else {
    outcome = read_results(query);
  }
  if (is_given_up_) {
    close();
  } else if (outcome.status != Status::done && is_in_transaction() && !was_in_transaction) {
    mysql_rollback(server_);  // or those who use the connection next would be part of it
  }
  return outcome;
}

/// Those of all statements. The last that has rows gives them, as in Yate.
Outcome ServerConnection::read_results(const Query& query) {
  Outcome outcome;
  std::uint64_t affected = 0;
  std::uint64_t warnings = 0;
  int more = 0;
  do {
    const ResultSet result(mysql_use_result(server_));
    if (result != nullptr) {
      Outcome one = read_rows(result.get(), query.wants_rows);
      if (one.status != Status::done) return one;
      outcome = std::move(one);
    } else if (mysql_errno(server_) != 0) {
      return failure();
    } else {
      affected += mysql_affected_rows(server_);
    }
    warnings += mysql_warning_count(server_);
    more = mysql_next_result(server_);
    if (more == 0 && is_over()) return out_of_time();
  } while (more == 0);
  if (more > 0) return failure();
  outcome.affected = affected;
  outcome.warnings = warnings;
  return outcome;
}

bool is_binary(const MYSQL_FIELD& field) {
  switch (field.type) {
    case MYSQL_TYPE_BIT:
    case MYSQL_TYPE_GEOMETRY: return true;
    case MYSQL_TYPE_STRING:
    case MYSQL_TYPE_VAR_STRING:
    case MYSQL_TYPE_VARCHAR:
    case MYSQL_TYPE_TINY_BLOB:
    case MYSQL_TYPE_MEDIUM_BLOB:
    case MYSQL_TYPE_LONG_BLOB:
    case MYSQL_TYPE_BLOB: return field.charsetnr == binary_charset;
    default: return false;
  }
}

/// Row by row, because the library would take any number of them into memory. A result that is too
/// large is not read to its end: the connection is given up.
Outcome ServerConnection::read_rows(MYSQL_RES* result, bool wants_rows) {
  TableBuilder table(settings_.limits);
  const unsigned columns = mysql_num_fields(result);
  const MYSQL_FIELD* fields = mysql_fetch_fields(result);
  for (unsigned i = 0; i < columns; ++i) {
    table.add_column(std::string(fields[i].name, fields[i].name_length));
  }
  std::uint64_t rows = 0;
  while (MYSQL_ROW values = mysql_fetch_row(result)) {
    ++rows;
    if (is_over()) return out_of_time();
    if (!wants_rows) continue;
    const unsigned long* sizes = mysql_fetch_lengths(result);
    std::vector<std::optional<std::string>> row(columns);
    for (unsigned i = 0; i < columns; ++i) {
      if (values[i] == nullptr) continue;
      const std::string_view octets(values[i], sizes[i]);
      row[i] = is_binary(fields[i]) ? to_hexadecimal(octets) : std::string(octets);
    }
    if (!table.add_row(std::move(row))) {
      give_up();
      return Outcome::fail(Status::failure, table.refusal());
    }
  }
  if (mysql_errno(server_) != 0) return failure();
  Outcome outcome;
  outcome.rows = rows;
  outcome.columns = columns;
  if (wants_rows) outcome.table = table.take();
  return outcome;
}

bool ServerConnection::is_in_transaction() const {
  unsigned status = 0;
  mariadb_get_infov(server_, MARIADB_CONNECTION_SERVER_STATUS, &status);
  return (status & SERVER_STATUS_IN_TRANS) != 0;
}

Outcome ServerConnection::failure() {
  const std::uint32_t code = mysql_errno(server_);
  const std::string text = mysql_error(server_);
  const bool is_from_client = code >= first_client_error && code <= last_client_error;
  if (is_from_client) give_up();
  if (is_interrupted()) return Outcome::fail(Status::cancelled, text, code);
  if (code == mariadb_statement_timeout || code == mysql_query_timeout) {
    return Outcome::fail(Status::timeout, text, code);
  }
  if (is_from_client && is_over()) return out_of_time(code);
  return Outcome::fail(Status::failure, text, code);
}

Outcome ServerConnection::out_of_time(std::optional<std::uint32_t> code) {
  give_up();
  return Outcome::fail(Status::timeout,
                       "not done after " + std::to_string(settings_.timeout_s) + " s", code);
}

// ---- mysqldb.conf ------------------------------------------------------------------------------

class MysqlDriver final : public Driver {
 public:
  std::string_view name() const override { return "mysqldb"; }
  void read_general(SectionReader& section) override {
    query_retry_ = section.number("query_retry", 1, 1, 10);
  }
  AccountSettings read_account(SectionReader& section) override;
  std::string_view error_name(Status status) const override {
    switch (status) {
      case Status::timeout: return "timeout";
      case Status::no_connection: return "noconn";
      case Status::cancelled: return "cancelled";
      case Status::done:
      case Status::failure: break;
    }
    return "failure";
  }

 private:
  std::uint64_t query_retry_ = 1;
};

/// Yate rounds to seconds, too: the client library knows nothing smaller.
std::uint32_t rounded_to_seconds(std::uint64_t milliseconds) {
  return static_cast<std::uint32_t>(std::max<std::uint64_t>((milliseconds + 500) / 1000, 1));
}

AccountSettings MysqlDriver::read_account(SectionReader& section) {
  AccountSettings settings;
  read_common(section, settings);
  ServerSettings server;
  server.host = section.expanded("host");
  server.port = static_cast<std::uint16_t>(section.number("port", 0, 0, 65535));
  server.database = section.expanded("database", "yate");
  server.user = section.expanded("user", "mysql");
  server.password = section.text("password");
  server.socket = section.expanded("socket");
  server.compress = section.boolean("compress", false);
  server.encoding = section.text("encoding");
  if (server.encoding.empty()) server.encoding = "utf8mb4";
  server.timeout_s = rounded_to_seconds(section.number("timeout", 10000, 1, 3600000));
  server.query_retry =
      static_cast<std::uint32_t>(section.number("query_retry", query_retry_, 1, 10));
  server.limits = settings.limits;
  settings.timeout_ms = server.timeout_s * std::uint64_t{1000};
  settings.max_retry_ms = section.number("initretry", 10, 0, 3600) * 1000;
  settings.warn_query_ms = section.number("warn_query_duration", 0, 0, 3600000);
  settings.answers_at_once = true;
  settings.make_connection = [server](std::uint32_t) {
    return std::make_unique<ServerConnection>(server);
  };
  return settings;
}

}  // namespace

std::unique_ptr<Module> make_mysqldb() {
  return database::make_module(std::make_unique<MysqlDriver>());
}

}  // namespace modules
