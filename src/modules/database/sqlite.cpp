// database/sqlite: SQLite as a driver of database.hpp.
//
// SQLite works in this process, so nothing keeps a query from running for ever but what is asked of
// it here: a progress handler looks at the clock, and a busy handler bounds how long a lock of
// another connection, or of another program, is waited for. One deadline, the account's timeout,
// holds for both.
// Left out on purpose: names of databases as URIs, which could switch off more than a cache.
#include "sqlite.hpp"

#include <sqlite3.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "database.hpp"

namespace modules {

namespace {

using namespace database;
using sipmsg::Severity;

/// How many steps of SQLite's machine lie between two looks at the clock: a fraction of a
/// millisecond.
constexpr int steps_between_looks = 1000;
/// The pauses while a lock is waited for grow up to this.
constexpr unsigned longest_pause_ms = 50;

struct FileSettings {
  std::string path;
  std::string initialize;  ///< SQL that the first connection runs when it opens
  std::uint64_t timeout_ms = 2000;
  std::uint32_t retry = 5;
  bool shared_cache = false;
  ResultLimits limits;
};

struct StatementDeleter {
  void operator()(sqlite3_stmt* statement) const { sqlite3_finalize(statement); }
};
using Statement = std::unique_ptr<sqlite3_stmt, StatementDeleter>;

/// Busy without anybody's lock being waited for: a deadlock would come of it, or the lock is one of
/// the shared cache, of which the busy handler is not told.
bool is_busy(int code) {
  const int primary = code & 0xff;
  return primary == SQLITE_BUSY || primary == SQLITE_LOCKED;
}

class FileConnection final : public Connection {
 public:
  FileConnection(FileSettings settings, bool is_first)
      : settings_(std::move(settings)), is_first_(is_first) {}
  ~FileConnection() override { close(); }

  bool is_open() const override { return database_ != nullptr; }
  Outcome open() override;
  Outcome run(const Query& query) override;
  void interrupt() override { is_interrupted_ = true; }

 private:
  void close() { sqlite3_close(std::exchange(database_, nullptr)); }
  Outcome run_statements(const Query& query);
  int prepare(std::string_view& rest, Statement& statement);
  Outcome run_statement(sqlite3_stmt* statement, bool wants_rows);
  int step_to_end(sqlite3_stmt* statement, TableBuilder* table, std::uint64_t& rows,
                  std::string& refusal);
  bool may_repeat(int code, std::uint32_t& tries);
  Outcome failure(int code);

  static std::uint64_t now_ms() { return uv_hrtime() / 1000000; }
  bool is_over() const { return is_interrupted_ || now_ms() >= deadline_ms_; }
  static int on_busy(void* self, int times);
  static int on_progress(void* self) { return static_cast<FileConnection*>(self)->is_over(); }

  const FileSettings settings_;
  const bool is_first_;
  sqlite3* database_ = nullptr;
  std::uint64_t deadline_ms_ = 0;
  std::atomic<bool> is_interrupted_{false};
};

Outcome FileConnection::open() {
  if (is_interrupted_) return Outcome::fail(Status::no_connection, "interrupted");
  // NOMUTEX: no two threads use a connection at once.
  int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;
  if (settings_.shared_cache) flags |= SQLITE_OPEN_SHAREDCACHE;
  const int code = sqlite3_open_v2(settings_.path.c_str(), &database_, flags, nullptr);
  if (code != SQLITE_OK) {
    Outcome outcome = Outcome::fail(
        Status::no_connection, database_ == nullptr ? "out of memory" : sqlite3_errmsg(database_),
        static_cast<std::uint32_t>(code));
    close();
    return outcome;
  }
  sqlite3_extended_result_codes(database_, 1);
  sqlite3_busy_handler(database_, on_busy, this);
  sqlite3_progress_handler(database_, steps_between_looks, on_progress, this);
  Outcome outcome;
  if (is_first_ && !settings_.initialize.empty()) {
    const Outcome prepared = run({settings_.initialize, false});
    if (prepared.status != Status::done) outcome.text = "initialize: " + prepared.text;
  }
  return outcome;
}

int FileConnection::on_busy(void* self, int times) {
  if (static_cast<FileConnection*>(self)->is_over()) return 0;
  uv_sleep(std::min(static_cast<unsigned>(times) + 1, longest_pause_ms));
  return 1;
}

/// A query that fails in the middle of a transaction of its own must not leave that behind for
/// those who use the connection next: nobody else could write any more.
Outcome FileConnection::run(const Query& query) {
  deadline_ms_ = now_ms() + settings_.timeout_ms;
  if (query.text.find('\0') != std::string::npos) {
    return Outcome::fail(Status::failure, "the query holds a NUL octet");
  }
  const bool was_in_transaction = sqlite3_get_autocommit(database_) == 0;
  Outcome outcome = run_statements(query);
  const bool is_in_transaction = sqlite3_get_autocommit(database_) == 0;
  if (outcome.status != Status::done && is_in_transaction && !was_in_transaction) {
    deadline_ms_ = UINT64_MAX;
    sqlite3_exec(database_, "ROLLBACK", nullptr, nullptr, nullptr);
  }
  return outcome;
}

/// One after another until one fails. The last that had rows gives them, as in Yate.
Outcome FileConnection::run_statements(const Query& query) {
  const int changes_before = sqlite3_total_changes(database_);
  Outcome outcome;
  outcome.rows = outcome.columns = 0;
  std::string_view rest = query.text;
  while (!rest.empty()) {
    Statement statement;
    const int code = prepare(rest, statement);
    if (code != SQLITE_OK) return failure(code);
    if (statement == nullptr) continue;  // blanks or a comment
    Outcome one = run_statement(statement.get(), query.wants_rows);
    if (one.status != Status::done) return one;
    if (*one.rows != 0) outcome = std::move(one);
  }
  outcome.affected = static_cast<std::uint64_t>(sqlite3_total_changes(database_) - changes_before);
  return outcome;
}

/// Takes the first statement off `rest`.
int FileConnection::prepare(std::string_view& rest, Statement& statement) {
  std::uint32_t tries = 0;
  while (true) {
    sqlite3_stmt* prepared = nullptr;
    const char* tail = nullptr;
    const int code =
        sqlite3_prepare_v2(database_, rest.data(), static_cast<int>(rest.size()), &prepared, &tail);
    if (code == SQLITE_OK) {
      statement.reset(prepared);
      rest.remove_prefix(static_cast<std::size_t>(tail - rest.data()));
      return code;
    }
    if (!may_repeat(code, tries)) return code;
  }
}

/// A statement that found the database busy changed nothing, so that it can be run again.
Outcome FileConnection::run_statement(sqlite3_stmt* statement, bool wants_rows) {
  std::uint32_t tries = 0;
  while (true) {
    TableBuilder table(settings_.limits);
    std::uint64_t rows = 0;
    std::string refusal;
    const int code = step_to_end(statement, wants_rows ? &table : nullptr, rows, refusal);
    if (!refusal.empty()) return Outcome::fail(Status::failure, std::move(refusal));
    if (code != SQLITE_DONE) {
      if (may_repeat(code, tries)) {
        sqlite3_reset(statement);
        continue;
      }
      return failure(code);
    }
    Outcome outcome;
    outcome.rows = rows;
    outcome.columns = rows == 0 ? 0 : static_cast<std::uint64_t>(sqlite3_column_count(statement));
    if (wants_rows && rows != 0) outcome.table = table.take();
    return outcome;
  }
}

std::optional<std::string> value_of(sqlite3_stmt* statement, int column) {
  const int type = sqlite3_column_type(statement, column);
  if (type == SQLITE_NULL) return std::nullopt;
  const char* data = type == SQLITE_BLOB
                         ? static_cast<const char*>(sqlite3_column_blob(statement, column))
                         : reinterpret_cast<const char*>(sqlite3_column_text(statement, column));
  const auto size = static_cast<std::size_t>(sqlite3_column_bytes(statement, column));
  if (data == nullptr) return std::string();  // an empty BLOB
  const std::string_view octets(data, size);
  return type == SQLITE_BLOB ? to_hexadecimal(octets) : std::string(octets);
}

/// `table` is null where rows are only counted. Returns SQLite's last word.
int FileConnection::step_to_end(sqlite3_stmt* statement, TableBuilder* table, std::uint64_t& rows,
                                std::string& refusal) {
  const int columns = sqlite3_column_count(statement);
  for (int i = 0; table != nullptr && i < columns; ++i) {
    const char* name = sqlite3_column_name(statement, i);
    table->add_column(name == nullptr ? "" : name);
  }
  int code = SQLITE_OK;
  while ((code = sqlite3_step(statement)) == SQLITE_ROW) {
    ++rows;
    if (table == nullptr) continue;
    std::vector<std::optional<std::string>> row;
    row.reserve(static_cast<std::size_t>(columns));
    for (int i = 0; i < columns; ++i) row.push_back(value_of(statement, i));
    if (!table->add_row(std::move(row))) {
      refusal = table->refusal();
      return SQLITE_ABORT;
    }
  }
  return code;
}

bool FileConnection::may_repeat(int code, std::uint32_t& tries) {
  if (!is_busy(code) || tries >= settings_.retry || is_over()) return false;
  ++tries;
  uv_sleep(std::min(5u << std::min(tries, 4u), longest_pause_ms));
  return true;
}

Outcome FileConnection::failure(int code) {
  const auto number = static_cast<std::uint32_t>(code);
  if (is_interrupted_) return Outcome::fail(Status::cancelled, "interrupted", number);
  if (code == SQLITE_INTERRUPT) {
    return Outcome::fail(Status::timeout,
                         "not done after " + std::to_string(settings_.timeout_ms) + " ms", number);
  }
  return Outcome::fail(is_busy(code) ? Status::timeout : Status::failure, sqlite3_errmsg(database_),
                       number);
}

// ---- sqlitedb.conf -----------------------------------------------------------------------------

class SqliteDriver final : public Driver {
 public:
  std::string_view name() const override { return "sqlitedb"; }
  void read_general(SectionReader& section) override {
    shared_cache_ = section.boolean("shared_cache", false);
  }
  AccountSettings read_account(SectionReader& section) override;
  /// As in Yate's module, which knows no other; `error_text` and `code` say more.
  std::string_view error_name(Status status) const override {
    if (status == Status::no_connection) return "noconn";
    return status == Status::cancelled ? "cancelled" : "failure";
  }

 private:
  bool shared_cache_ = false;
};

AccountSettings SqliteDriver::read_account(SectionReader& section) {
  constexpr std::size_t longest_initialize = 65536;
  AccountSettings settings;
  read_common(section, settings);
  settings.timeout_ms = section.number("timeout", 2000, 100, 3600000);
  FileSettings file;
  file.path = section.expanded("database", ":memory:");
  file.initialize = section.text_or_file("initialize", longest_initialize);
  file.timeout_ms = settings.timeout_ms;
  file.retry = static_cast<std::uint32_t>(section.number("retry", 5, 0, 100));
  file.shared_cache = shared_cache_;
  file.limits = settings.limits;
  const bool is_private = file.path.empty() || file.path == ":memory:";
  if (is_private && settings.pool_size > 1) {
    section.remark(Severity::warning, "poolsize",
                   "each connection would have a database of its own; it is 1");
    settings.pool_size = 1;
  }
  settings.make_connection = [file](std::uint32_t index) {
    return std::make_unique<FileConnection>(file, index == 0);
  };
  return settings;
}

}  // namespace

std::unique_ptr<Module> make_sqlitedb() {
  return database::make_module(std::make_unique<SqliteDriver>());
}

}  // namespace modules
