// database: what the modules sqlitedb and mysqldb share: the engine message `database`.
//
// A message names an account, which is a section of the module's file, and brings a query. The
// query runs on libuv's thread pool, on one of the account's connections, which are kept; what it
// found goes into the message: rows into Message::table, counts and errors into parameters, as in
// Yate. Where Yate only says `failure`, the database's own words stand in `error_text`.
//
// Three layers: a Driver knows one kind of database and what its file may say (database_sqlite,
// database_mysql); a Connection is one of its connections, for one thread at a time; accounts, the
// order of queries, limits and everything about messages is here and in database.cpp.
// Left out on purpose: transactions over several messages, because connections are shared; and
// values bound to a query, because Yate's message has no place for them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "../module.hpp"
#include "settings.hpp"

namespace modules::database {

struct Query {
  std::string text;        ///< one statement or several
  bool wants_rows = true;  ///< false: they are counted, but not kept
};

/// What became of a query. `no_connection`: it did not even reach the database.
enum class Status { done, failure, timeout, no_connection, cancelled };

/// Everything there is to say about a query, in the order of Yate's parameters.
struct Outcome {
  Status status = Status::done;
  std::string text;                   ///< what the database said; a remark where it is done
  std::optional<std::uint32_t> code;  ///< the database's own number for an error
  std::optional<std::uint64_t> rows;  ///< absent where there was nothing to count
  std::optional<std::uint64_t> columns;
  std::uint64_t affected = 0;
  std::uint64_t warnings = 0;
  std::shared_ptr<const Table> table;  ///< null where no rows were wanted, or none came

  static Outcome fail(Status status, std::string text, std::optional<std::uint32_t> code = {}) {
    Outcome outcome;
    outcome.status = status;
    outcome.text = std::move(text);
    outcome.code = code;
    return outcome;
  }
};

/// One connection to a database. Its thread changes from call to call, but no two calls overlap,
/// `interrupt` excepted.
class Connection {
 public:
  virtual ~Connection() = default;

  virtual bool is_open() const = 0;
  /// Waits at most as long as the account's timeout. Not called where it is open.
  virtual Outcome open() = 0;
  /// Waits as long as `open`, too. Afterwards the connection may have been lost.
  virtual Outcome run(const Query& query) = 0;
  /// Makes a call that is under way return soon, and all later ones at once. For any thread.
  virtual void interrupt() = 0;
};

/// The most that one query may bring.
struct ResultLimits {
  std::uint64_t max_rows = 10000;
  std::uint64_t max_octets = std::uint64_t{16} << 20;  ///< of memory, for all values
};

/// A table that grows row by row, until it is larger than allowed.
class TableBuilder {
 public:
  explicit TableBuilder(const ResultLimits& limits) : limits_(limits) {}

  void add_column(std::string name) { table_->columns.push_back(std::move(name)); }
  /// False where the row did not fit any more; `refusal` says why.
  bool add_row(std::vector<std::optional<std::string>> row);
  std::string refusal() const;
  std::shared_ptr<const Table> take() { return std::move(table_); }

 private:
  ResultLimits limits_;
  std::shared_ptr<Table> table_ = std::make_shared<Table>();
  std::uint64_t octets_ = 0;
};

/// Binary values travel as text: two lower-case digits for each octet.
std::string to_hexadecimal(std::string_view octets);

/// One section of the module's file.
struct AccountSettings {
  std::string name;
  std::uint32_t pool_size = 1;
  std::uint64_t timeout_ms = 10000;
  std::uint64_t max_retry_ms = 10000;  ///< the longest pause between attempts to connect; 0: none
                                       ///< is made but for a query
  std::uint64_t warn_query_ms = 0;     ///< a query that took longer is logged; 0: none
  std::uint32_t max_waiting = 1000;
  ResultLimits limits;
  bool autostart = true;         ///< connects at once, and not for the first query
  bool answers_at_once = false;  ///< to queries whose results nobody wants
  /// Makes a closed connection. The first of the account has `index` 0, and is opened before any
  /// other.
  std::function<std::unique_ptr<Connection>(std::uint32_t index)> make_connection;
};

/// One kind of database.
class Driver {
 public:
  virtual ~Driver() = default;

  /// Of the module, of its file without ".conf", and the value of `dbtype`.
  virtual std::string_view name() const = 0;
  virtual void read_general(SectionReader& section) = 0;
  virtual AccountSettings read_account(SectionReader& section) = 0;
  /// The value of `error`, which scripts written for Yate's module may compare.
  virtual std::string_view error_name(Status status) const = 0;
};

/// Reads the keys that all kinds of accounts have.
void read_common(SectionReader& section, AccountSettings& settings);

std::unique_ptr<Module> make_module(std::unique_ptr<Driver> driver);

}  // namespace modules::database
