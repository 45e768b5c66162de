// database: see database.hpp.
#include "database.hpp"

#include <algorithm>
#include <atomic>
#include <deque>
#include <map>
#include <mutex>
#include <utility>

namespace modules::database {

using sipmsg::Severity;

namespace {

/// As many octets as SQLite takes by default. It bounds what waiting queries take of memory.
constexpr std::size_t max_query_octets = 1000000;
/// The first pause after a failed attempt to connect; each further one is twice as long.
constexpr std::uint64_t first_retry_ms = 250;

/// What databases and clients say goes into a log line without what could end the line.
std::string printable(std::string_view text) {
  constexpr std::size_t longest = 300;
  std::string out(text.substr(0, longest));
  for (char& c : out) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return out;
}

std::uint64_t monotonic_ms() { return uv_hrtime() / 1000000; }

// ---- messages ----------------------------------------------------------------------------------

/// A message may be dispatched twice; what the first query left must not look like the second's.
void clear_outcome(Message& message) {
  for (const char* name :
       {"error", "error_text", "code", "rows", "columns", "affected", "warnings"}) {
    message.clear(name);
  }
  message.table = nullptr;
}

void write_error(Message& message, const Driver& driver, const Outcome& outcome) {
  message.set("error", driver.error_name(outcome.status));
  if (!outcome.text.empty()) message.set("error_text", outcome.text);
  if (outcome.code) message.set("code", std::to_string(*outcome.code));
}

void write_outcome(Message& message, const Driver& driver, const Outcome& outcome) {
  message.set("dbtype", driver.name());
  if (outcome.status != Status::done) return write_error(message, driver, outcome);
  if (outcome.rows) message.set("rows", std::to_string(*outcome.rows));
  if (outcome.columns) message.set("columns", std::to_string(*outcome.columns));
  message.set("affected", std::to_string(outcome.affected));
  if (outcome.warnings != 0) message.set("warnings", std::to_string(outcome.warnings));
  message.table = outcome.table;
}

// ---- what the pool does ------------------------------------------------------------------------

/// One query on its way, or, with an empty text, the wish to be connected.
struct Job {
  Query query;
  MessagePointer message;  ///< null: nobody waits for what comes of it
  Answer answer;
  std::uint64_t accepted_ms = 0;
  std::uint64_t warn_ms = 0;
  std::atomic<bool> is_taken{false};  ///< a thread has it: it is run once, whoever runs it
};

/// A connection and its turn. Only when an account stops do two threads want it at once.
struct Line {
  std::mutex turn;
  std::unique_ptr<Connection> connection;  ///< null once it is closed for good
};

/// What came of a job.
struct Report {
  Outcome outcome;
  std::string remark;       ///< of a connection that opened, but not quite as wished
  bool has_opened = false;  ///< the connection was not open before
  bool is_open = false;
  std::uint64_t took_ms = 0;
};

Report work_on(Line& line, Job& job) {
  Report report;
  const std::lock_guard<std::mutex> turn(line.turn);
  if (line.connection == nullptr || job.is_taken.exchange(true)) return report;
  const std::uint64_t began_ms = monotonic_ms();
  if (!line.connection->is_open()) {
    report.outcome = line.connection->open();
    if (report.outcome.status != Status::done) return report;
    report.has_opened = true;
    report.remark = std::move(report.outcome.text);
    report.outcome = {};
  }
  if (!job.query.text.empty()) report.outcome = line.connection->run(job.query);
  report.is_open = line.connection->is_open();
  report.took_ms = monotonic_ms() - began_ms;
  return report;
}

/// The last work of an account that stopped: queries which were answered before they ran are run
/// now, as far as the account's timeout allows, and the connections are closed. It owns itself.
struct Farewell {
  uv_work_t request;
  std::vector<std::shared_ptr<Line>> lines;
  std::deque<std::shared_ptr<Job>> jobs;
  bool is_first_line_interrupted = false;
  AccountSettings settings;

  void work() {
    if (!jobs.empty()) run_jobs(*lines.front());
    for (const std::shared_ptr<Line>& line : lines) {
      const std::lock_guard<std::mutex> turn(line->turn);
      line->connection = nullptr;
    }
  }

  void run_jobs(Line& line) {
    if (is_first_line_interrupted) {
      const std::lock_guard<std::mutex> turn(line.turn);
      line.connection = settings.make_connection(settings.pool_size);
    }
    const std::uint64_t deadline_ms = monotonic_ms() + settings.timeout_ms;
    for (const std::shared_ptr<Job>& job : jobs) {
      if (monotonic_ms() >= deadline_ms) return;
      work_on(line, *job);
    }
  }
};

void say_farewell(uv_loop_t* loop, std::unique_ptr<Farewell> farewell) {
  Farewell* running = farewell.release();
  running->request.data = running;
  uv_queue_work(
      loop, &running->request,
      [](uv_work_t* request) { static_cast<Farewell*>(request->data)->work(); },
      [](uv_work_t* request, int) { delete static_cast<Farewell*>(request->data); });
}

// ---- accounts ----------------------------------------------------------------------------------

/// An account at work: its connections, what waits for one, and whether the database is there.
///
/// While it cannot be reached the account is dead: queries are refused at once, and from time to
/// time, at growing intervals, it is tried again. A connection that was lost is opened anew for the
/// next query. Everything here belongs to the loop's thread.
class Account final : public sipmsg::Alarm, public std::enable_shared_from_this<Account> {
 public:
  Account(sipmsg::Loop& loop, sipmsg::Offload& offload, const Driver& driver,
          const AccountSettings& settings, sipmsg::LogHandler log)
      : Alarm(loop),
        loop_(loop),
        offload_(offload),
        driver_(driver),
        settings_(settings),
        log_(std::move(log)) {
    for (std::uint32_t i = 0; i < settings.pool_size; ++i) {
      Slot slot;
      slot.line = std::make_shared<Line>();
      slot.line->connection = settings.make_connection(i);
      slots_.push_back(std::move(slot));
    }
  }

  void start() {
    if (settings_.autostart) add(std::make_shared<Job>());
  }
  /// Takes a message, and answers it now or later.
  void take(const MessagePointer& message, Answer answer);
  /// Answers all messages as not handled. The caller closes the Offload then.
  std::unique_ptr<Farewell> stop();

 private:
  struct Slot {
    std::shared_ptr<Line> line;
    std::shared_ptr<Job> job;  ///< what the pool does with it, or null
    bool is_open = false;
    bool is_resting = false;  ///< could not be opened where others could
  };

  bool retries() const { return settings_.max_retry_ms != 0; }
  std::optional<Outcome> reason_to_refuse(const Job& job);
  void add(std::shared_ptr<Job> job);
  void pump();
  Slot* free_slot();
  void run(Slot& slot, std::shared_ptr<Job> job);
  void on_done(Slot& slot, const std::shared_ptr<Job>& job, sipmsg::Error error, Report report);
  void on_opened(const std::string& remark);
  void on_no_connection(Slot& slot, const std::shared_ptr<Job>& job, const Outcome& outcome);
  void on_alarm(std::uint64_t now_ms) override;
  void deliver(Job& job, const Outcome& outcome);
  void refuse(Job& job, const Outcome& outcome);
  void warn_if_slow(const Job& job, std::uint64_t took_ms);
  void log(Severity severity, std::string_view text) {
    if (log_) log_(severity, "account " + printable(settings_.name) + ": " + printable(text));
  }

  sipmsg::Loop& loop_;
  sipmsg::Offload& offload_;
  const Driver& driver_;
  const AccountSettings& settings_;
  sipmsg::LogHandler log_;
  std::vector<Slot> slots_;  ///< never grows
  std::deque<std::shared_ptr<Job>> waiting_;
  bool was_open_ = false;  ///< the first connection has been open: others may be opened, too
  bool is_dead_ = false;
  bool is_stopped_ = false;
  Outcome why_dead_;
  std::uint64_t retry_at_ms_ = 0;
  std::uint64_t retry_pause_ms_ = 0;
};

void Account::take(const MessagePointer& message, Answer answer) {
  clear_outcome(*message);
  auto job = std::make_shared<Job>();
  job->query.text = message->get_or("query");
  if (job->query.text.empty()) {
    message->set("dbtype", driver_.name());
    return answer(true);
  }
  job->query.wants_rows = sipmsg::parse_boolean(message->get_or("results")).value_or(true);
  const auto warn_ms = sipmsg::parse_integer(message->get_or("warn_query_duration"));
  job->warn_ms =
      warn_ms && *warn_ms >= 0 ? static_cast<std::uint64_t>(*warn_ms) : settings_.warn_query_ms;
  job->message = message;
  job->answer = std::move(answer);
  if (const auto reason = reason_to_refuse(*job)) {
    return reason->status == Status::no_connection ? refuse(*job, *reason) : deliver(*job, *reason);
  }
  if (job->query.wants_rows || !settings_.answers_at_once) return add(std::move(job));

  const MessagePointer answered = std::exchange(job->message, nullptr);
  const Answer answer_now = std::exchange(job->answer, nullptr);
  const auto self = shared_from_this();
  add(std::move(job));
  answered->set("dbtype", driver_.name());
  answer_now(true);
}

std::optional<Outcome> Account::reason_to_refuse(const Job& job) {
  if (is_dead_ && retries() && loop_.fresh_now_ms() < retry_at_ms_) return why_dead_;
  if (job.query.text.size() > max_query_octets) {
    return Outcome::fail(Status::failure, "the query is longer than " +
                                              std::to_string(max_query_octets) + " octets");
  }
  if (waiting_.size() >= settings_.max_waiting) {
    return Outcome::fail(Status::failure,
                         std::to_string(settings_.max_waiting) + " queries are waiting already");
  }
  return std::nullopt;
}

void Account::add(std::shared_ptr<Job> job) {
  job->accepted_ms = loop_.fresh_now_ms();
  waiting_.push_back(std::move(job));
  pump();
}

/// Gives as many queries to the pool as there are connections to run them on, the oldest first.
void Account::pump() {
  const auto self = shared_from_this();
  while (!is_stopped_ && !waiting_.empty()) {
    Slot* slot = free_slot();
    if (slot == nullptr) return;
    std::shared_ptr<Job> job = std::move(waiting_.front());
    waiting_.pop_front();
    // Whoever sent it has given it up by now. So a database that hangs does not make all those
    // wait who come after it is back.
    if (loop_.fresh_now_ms() - job->accepted_ms > settings_.timeout_ms) {
      deliver(*job,
              Outcome::fail(Status::timeout, "no connection was free for " +
                                                 std::to_string(settings_.timeout_ms) + " ms"));
      continue;
    }
    run(*slot, std::move(job));
  }
}

/// An open one if there is one. Until the first has been open it is the only one: it prepares the
/// database for all.
Account::Slot* Account::free_slot() {
  Slot* found = nullptr;
  for (Slot& slot : slots_) {
    if (slot.job == nullptr && !slot.is_resting && (found == nullptr || slot.is_open)) {
      found = &slot;
      if (slot.is_open) break;
    }
    if (!was_open_) break;
  }
  return found;
}

void Account::run(Slot& slot, std::shared_ptr<Job> job) {
  slot.job = job;
  const auto work = [line = slot.line, job] { return work_on(*line, *job); };
  const auto done = [self = shared_from_this(), &slot, job](sipmsg::Error error, Report report) {
    self->on_done(slot, job, error, std::move(report));
  };
  if (const sipmsg::Error error = offload_.run(work, done)) {
    slot.job = nullptr;
    deliver(*job, Outcome::fail(Status::failure, error.text()));
  }
}

void Account::on_done(Slot& slot, const std::shared_ptr<Job>& job, sipmsg::Error error,
                      Report report) {
  slot.job = nullptr;
  if (error) return refuse(*job, Outcome::fail(Status::cancelled, error.text()));
  slot.is_open = report.is_open;
  if (report.has_opened) on_opened(report.remark);
  if (report.outcome.status == Status::no_connection) {
    return on_no_connection(slot, job, report.outcome);
  }
  warn_if_slow(*job, report.took_ms);
  deliver(*job, report.outcome);
  pump();
}

void Account::on_opened(const std::string& remark) {
  if (!remark.empty()) log(Severity::warning, remark);
  if (is_dead_) log(Severity::info, "connected again");
  was_open_ = true;
  is_dead_ = false;
  retry_pause_ms_ = 0;
}

void Account::on_no_connection(Slot& slot, const std::shared_ptr<Job>& job,
                               const Outcome& outcome) {
  retry_pause_ms_ = std::max(first_retry_ms, std::min(retry_pause_ms_ * 2, settings_.max_retry_ms));
  retry_at_ms_ = loop_.fresh_now_ms() + retry_pause_ms_;
  arm(retry_at_ms_);
  const bool others_are_open =
      std::any_of(slots_.begin(), slots_.end(), [](const Slot& other) { return other.is_open; });
  if (others_are_open) {
    slot.is_resting = true;
    waiting_.push_front(job);
    return pump();
  }
  if (!is_dead_) log(Severity::warning, "no connection: " + outcome.text);
  is_dead_ = true;
  why_dead_ = outcome;
  std::deque<std::shared_ptr<Job>> refused = std::exchange(waiting_, {});
  refused.push_front(job);
  for (const std::shared_ptr<Job>& each : refused) refuse(*each, outcome);
}

void Account::on_alarm(std::uint64_t now_ms) {
  if (is_stopped_) return;
  if (now_ms < retry_at_ms_) return arm(retry_at_ms_);
  for (Slot& slot : slots_) slot.is_resting = false;
  const bool is_idle = waiting_.empty() && slots_.front().job == nullptr;
  if (is_dead_ && is_idle && retries()) return add(std::make_shared<Job>());
  pump();
}

void Account::deliver(Job& job, const Outcome& outcome) {
  const bool is_query = !job.query.text.empty();
  if (outcome.status != Status::done && is_query) {
    const std::string number = outcome.code ? std::to_string(*outcome.code) + " " : "";
    log(Severity::warning, "a query failed: " + number + outcome.text);
  }
  if (job.message == nullptr) return;
  write_outcome(*job.message, driver_, outcome);
  std::exchange(job.answer, nullptr)(true);
}

void Account::refuse(Job& job, const Outcome& outcome) {
  if (job.message == nullptr) {
    if (!job.query.text.empty() && !is_stopped_) log(Severity::warning, "a query is lost");
    return;
  }
  write_error(*job.message, driver_, outcome);
  std::exchange(job.answer, nullptr)(false);
}

void Account::warn_if_slow(const Job& job, std::uint64_t took_ms) {
  if (job.warn_ms == 0 || took_ms <= job.warn_ms) return;
  log(Severity::warning, "a query took " + std::to_string(took_ms) + " ms");
}

std::unique_ptr<Farewell> Account::stop() {
  is_stopped_ = true;
  auto farewell = std::make_unique<Farewell>();
  farewell->settings = settings_;
  for (Slot& slot : slots_) {
    farewell->lines.push_back(slot.line);
    if (slot.job == nullptr) continue;
    if (slot.job->message == nullptr && !slot.job->query.text.empty()) {
      farewell->jobs.push_back(slot.job);  // its turn may not have come yet
      continue;
    }
    slot.line->connection->interrupt();
    if (&slot == &slots_.front()) farewell->is_first_line_interrupted = true;
  }
  const std::deque<std::shared_ptr<Job>> waiting = std::exchange(waiting_, {});
  for (const std::shared_ptr<Job>& job : waiting) {
    if (job->message == nullptr && !job->query.text.empty()) {
      farewell->jobs.push_back(job);
    } else {
      refuse(*job, Outcome::fail(Status::cancelled, "the module stops"));
    }
  }
  return farewell;
}

// ---- the module --------------------------------------------------------------------------------

/// How many threads of libuv's pool databases may take at the same time: all but one, which the
/// server's own work keeps.
std::size_t threads_to_use() {
  char text[16];
  std::size_t size = sizeof text;
  std::uint64_t threads = 4;  // libuv's own default
  if (uv_os_getenv("UV_THREADPOOL_SIZE", text, &size) == 0) {
    const auto number = sipmsg::parse_integer(std::string_view(text, size));
    threads = static_cast<std::uint64_t>(std::clamp<std::int64_t>(number.value_or(4), 1, 1024));
  }
  return static_cast<std::size_t>(std::max<std::uint64_t>(threads, 2) - 1);
}

class DatabaseModule final : public Module {
 public:
  explicit DatabaseModule(std::unique_ptr<Driver> driver) : driver_(std::move(driver)) {}
  ~DatabaseModule() override { stop_all(); }

  std::string_view name() const override { return driver_->name(); }
  bool load(const std::string& directory, sipmsg::Diagnostics& diagnostics) override;
  bool is_enabled() const override { return !settings_.empty(); }
  void start(Context& context) override;
  void stop() override { stop_all(); }

 private:
  void on_message(const MessagePointer& message, Answer answer);
  void stop_all();

  std::unique_ptr<Driver> driver_;
  int priority_ = 100;
  std::vector<AccountSettings> settings_;

  Engine* engine_ = nullptr;  ///< while it is started
  Engine::Id handler_ = 0;
  std::unique_ptr<sipmsg::Loop> loop_;
  std::unique_ptr<sipmsg::Offload> offload_;
  std::map<std::string, std::shared_ptr<Account>, std::less<>> accounts_;
};

bool DatabaseModule::load(const std::string& directory, sipmsg::Diagnostics& diagnostics) {
  sipmsg::IniOptions options;
  options.run_parameters = {{"configpath", directory}, {"version", SIPMSG_VERSION}};
  options.loaded_modules = {"ysipchan", "regfile", std::string(name())};
  const std::string path = directory + "/" + std::string(name()) + ".conf";
  sipmsg::FileSource files;
  sipmsg::Ini ini;
  const std::size_t errors_before = sipmsg::count(diagnostics, Severity::error);
  if (const sipmsg::Error error = sipmsg::load_ini(files, path, options, ini, diagnostics)) {
    if (error.place == UV_ENOENT) return true;
    diagnostics.push_back({Severity::error, path, 0, sipmsg::describe(error)});
    return false;
  }
  SectionReader general(ini, ini.find("general"), options.run_parameters, diagnostics);
  priority_ = static_cast<int>(general.number("priority", 100, 0, 1000000));
  driver_->read_general(general);
  general.warn_of_unknown_keys();
  for (const sipmsg::IniSection& section : ini.sections()) {
    if (section.name == "general") continue;
    SectionReader reader(ini, &section, options.run_parameters, diagnostics);
    settings_.push_back(driver_->read_account(reader));
    reader.warn_of_unknown_keys();
  }
  return sipmsg::count(diagnostics, Severity::error) == errors_before;
}

void DatabaseModule::start(Context& context) {
  engine_ = &context.engine;
  loop_ = std::make_unique<sipmsg::Loop>(context.loop);
  sipmsg::OffloadOptions options;
  options.max_running = threads_to_use();
  options.max_jobs = 0;
  for (const AccountSettings& settings : settings_) options.max_jobs += settings.pool_size;
  offload_ = std::make_unique<sipmsg::Offload>(*loop_, options);
  for (const AccountSettings& settings : settings_) {
    auto account = std::make_shared<Account>(*loop_, *offload_, *driver_, settings, context.log);
    account->start();
    accounts_.emplace(settings.name, std::move(account));
  }
  handler_ = context.engine.install(
      std::string(name()), "database", priority_,
      [this](const MessagePointer& message, Answer answer) { on_message(message, answer); });
}

void DatabaseModule::on_message(const MessagePointer& message, Answer answer) {
  const auto found = accounts_.find(message->get_or("account"));
  if (found == accounts_.end()) return answer(false);
  const std::shared_ptr<Account> account = found->second;  // an answer may stop the module
  account->take(message, std::move(answer));
}

void DatabaseModule::stop_all() {
  if (engine_ == nullptr) return;
  std::exchange(engine_, nullptr)->uninstall(handler_);
  std::vector<std::unique_ptr<Farewell>> farewells;
  for (const auto& account : accounts_) farewells.push_back(account.second->stop());
  offload_->close();
  for (auto& farewell : farewells) say_farewell(loop_->uv(), std::move(farewell));
  loop_->close();
  accounts_.clear();
}

}  // namespace

// ---- for the drivers ---------------------------------------------------------------------------

bool TableBuilder::add_row(std::vector<std::optional<std::string>> row) {
  for (const std::optional<std::string>& value : row) {
    octets_ += sizeof value + (value ? value->size() : 0);
  }
  if (table_->rows.size() >= limits_.max_rows || octets_ > limits_.max_octets) return false;
  table_->rows.push_back(std::move(row));
  return true;
}

std::string TableBuilder::refusal() const {
  const bool too_many = table_->rows.size() >= limits_.max_rows;
  return "the result has more than " + (too_many ? std::to_string(limits_.max_rows) + " rows"
                                                 : std::to_string(limits_.max_octets) + " octets");
}

std::string to_hexadecimal(std::string_view octets) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string out;
  out.reserve(octets.size() * 2);
  for (char c : octets) {
    const auto octet = static_cast<unsigned char>(c);
    out.push_back(digits[octet >> 4]);
    out.push_back(digits[octet & 15]);
  }
  return out;
}

void read_common(SectionReader& section, AccountSettings& settings) {
  settings.name = section.name();
  settings.pool_size = static_cast<std::uint32_t>(section.number("poolsize", 1, 1, 64));
  settings.autostart = section.boolean("autostart", true);
  settings.max_waiting = static_cast<std::uint32_t>(section.number("maxqueue", 1000, 1, 100000));
  settings.limits.max_rows = section.number("max_rows", 10000, 1, 10000000);
  settings.limits.max_octets =
      section.number("max_result", std::uint64_t{16} << 20, 1024, std::uint64_t{1} << 30);
}

std::unique_ptr<Module> make_module(std::unique_ptr<Driver> driver) {
  return std::make_unique<DatabaseModule>(std::move(driver));
}

}  // namespace modules::database
