// engine: messages by name between the modules of the program, as Yate's engine dispatches them.
//
// A message has a name ("call.route", "database"), parameters and a return value. It is offered to
// the handlers installed for its name in ascending priority, ties in the order of installation,
// until one says that it is handled; then watchers are shown what became of it. A handler may
// answer later: the walk goes on from there. Everything here belongs to the loop's thread; whoever
// works on another one comes back with Server::post.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace modules {

/// What a database returned, row by row. A cell without value is SQL's NULL.
struct Table {
  std::vector<std::string> columns;
  std::vector<std::vector<std::optional<std::string>>> rows;
};

class RouteMessage;

/// One message. Names of parameters compare octet by octet; of several with one name the first
/// counts.
class Message {
 public:
  using Use = std::function<void(std::string_view name, std::string_view value)>;

  explicit Message(std::string name) : name_(std::move(name)) {}
  virtual ~Message() = default;
  Message(const Message&) = delete;
  Message& operator=(const Message&) = delete;

  const std::string& name() const { return name_; }
  void rename(std::string name) { name_ = std::move(name); }

  virtual std::optional<std::string> get(std::string_view name) const = 0;
  /// Replaces the first of that name, or adds one at the end.
  virtual void set(std::string_view name, std::string_view value) = 0;
  /// Removes all of that name.
  virtual void clear(std::string_view name) = 0;
  /// All of them, in order.
  virtual void for_each(const Use& use) const = 0;

  std::string get_or(std::string_view name, std::string_view otherwise = {}) const {
    return get(name).value_or(std::string(otherwise));
  }

  /// The MESSAGE of a phone that this is; null for every other message.
  virtual RouteMessage* as_route() { return nullptr; }

  std::string return_value;
  std::uint64_t created_unix_s = 0;
  std::shared_ptr<const Table> table;  ///< null unless a database answered

 private:
  std::string name_;
};

using MessagePointer = std::shared_ptr<Message>;

/// A message whose parameters are a list.
class ListMessage final : public Message {
 public:
  using Parameters = std::vector<std::pair<std::string, std::string>>;

  explicit ListMessage(std::string name, Parameters parameters = {})
      : Message(std::move(name)), parameters_(std::move(parameters)) {}

  std::optional<std::string> get(std::string_view name) const override;
  void set(std::string_view name, std::string_view value) override;
  void clear(std::string_view name) override;
  void for_each(const Use& use) const override;
  /// Another one at the end, also where there is one of that name.
  void add(std::string name, std::string value) {
    parameters_.emplace_back(std::move(name), std::move(value));
  }

 private:
  Parameters parameters_;
};

/// Says whether the message is handled: once, now or later, on the loop's thread. A handler that
/// drops it unasked leaves the message to its deadline.
using Answer = std::function<void(bool handled)>;
using Handler = std::function<void(const MessagePointer& message, Answer answer)>;
using Predicate = std::function<bool(const Message&)>;
using Watcher = std::function<void(const Message& message, bool handled)>;

/// Whoever has not answered when the Engine is destroyed is not heard any more.
class Engine {
 public:
  using Id = std::uint32_t;

  Engine() = default;
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// `owner` names the module in the parameter `handlers`; "" leaves no trace there. Only messages
  /// that pass `filter` (null: all) are offered. The id is for `uninstall`, and never 0.
  Id install(std::string owner, std::string name, int priority, Handler handler,
             Predicate filter = nullptr);
  /// The same behind all others of that priority, also those that are installed later: for what the
  /// server itself does where no application wants to do it.
  Id install_last(std::string owner, std::string name, int priority, Handler handler);
  /// False where there is none of that id any more.
  bool uninstall(Id id);

  /// Has `watcher` called for each message of that name, "" for all, when its walk is over.
  Id watch(std::string name, Watcher watcher);
  bool unwatch(Id id);

  /// Whether a message of that name would be seen by anybody but the handlers of `owner`.
  bool is_wanted(std::string_view name, std::string_view owner = {}) const;

  /// Offers the message to its handlers; `done` is called once, maybe from inside this call. Legal
  /// inside: everything, dispatching other messages too.
  void dispatch(MessagePointer message, Answer done);

 private:
  struct Entry {
    Id id = 0;
    int priority = 0;
    std::string owner;
    std::string name;
    Predicate filter;
    std::shared_ptr<Handler> handler;
  };
  struct Watch {
    Id id = 0;
    std::string name;
    std::shared_ptr<Watcher> watcher;
  };
  struct Walk;

  Id add(Entry entry);
  /// The next handler for that message behind a place in the order, or null.
  const Entry* next(const Message& message, int priority, Id id) const;
  static void note_passed(Message& message, const Entry& entry);
  void go_on(const std::shared_ptr<Walk>& walk);
  void finish(const Walk& walk, bool handled);

  std::vector<Entry> entries_;  ///< by priority, then by id
  std::vector<Watch> watches_;
  Id last_id_ = 0;
  Id first_late_id_ = UINT32_MAX;  ///< of those installed last; they count downwards
  std::shared_ptr<char> alive_ = std::make_shared<char>();  ///< weakly held by answers
};

}  // namespace modules
