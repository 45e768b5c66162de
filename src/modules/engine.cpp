// engine: see engine.hpp.
#include "engine.hpp"

#include <algorithm>

namespace modules {

// ---- parameters as a list

std::optional<std::string> ListMessage::get(std::string_view name) const {
  for (const auto& parameter : parameters_) {
    if (parameter.first == name) return parameter.second;
  }
  return std::nullopt;
}

void ListMessage::set(std::string_view name, std::string_view value) {
  for (auto& parameter : parameters_) {
    if (parameter.first != name) continue;
    parameter.second = value;
    return;
  }
  add(std::string(name), std::string(value));
}

void ListMessage::clear(std::string_view name) {
  const auto is_named = [name](const auto& parameter) { return parameter.first == name; };
  parameters_.erase(std::remove_if(parameters_.begin(), parameters_.end(), is_named),
                    parameters_.end());
}

void ListMessage::for_each(const Use& use) const {
  for (const auto& parameter : parameters_) use(parameter.first, parameter.second);
}

// ---- handlers

/// A message on its way along its handlers. `priority` and `id` are those of the last one asked.
struct Engine::Walk {
  MessagePointer message;
  Answer done;
  int priority = INT32_MIN;
  Id id = 0;
};

Engine::Id Engine::install(std::string owner, std::string name, int priority, Handler handler,
                           Predicate filter) {
  return add({++last_id_, priority, std::move(owner), std::move(name), std::move(filter),
              std::make_shared<Handler>(std::move(handler))});
}

Engine::Id Engine::install_last(std::string owner, std::string name, int priority,
                                Handler handler) {
  return add({--first_late_id_, priority, std::move(owner), std::move(name), nullptr,
              std::make_shared<Handler>(std::move(handler))});
}

Engine::Id Engine::add(Entry entry) {
  const Id id = entry.id;
  const auto place = std::upper_bound(
      entries_.begin(), entries_.end(), entry, [](const Entry& wanted, const Entry& other) {
        return wanted.priority != other.priority ? wanted.priority < other.priority
                                                 : wanted.id < other.id;
      });
  entries_.insert(place, std::move(entry));
  return id;
}

bool Engine::uninstall(Id id) {
  const auto found = std::find_if(entries_.begin(), entries_.end(),
                                  [id](const Entry& entry) { return entry.id == id; });
  if (found == entries_.end()) return false;
  entries_.erase(found);
  return true;
}

Engine::Id Engine::watch(std::string name, Watcher watcher) {
  watches_.push_back({++last_id_, std::move(name), std::make_shared<Watcher>(std::move(watcher))});
  return last_id_;
}

bool Engine::unwatch(Id id) {
  const auto found = std::find_if(watches_.begin(), watches_.end(),
                                  [id](const Watch& watch) { return watch.id == id; });
  if (found == watches_.end()) return false;
  watches_.erase(found);
  return true;
}

bool Engine::is_wanted(std::string_view name, std::string_view owner) const {
  for (const Entry& entry : entries_) {
    if (entry.name == name && entry.owner != owner) return true;
  }
  for (const Watch& watch : watches_) {
    if (watch.name.empty() || watch.name == name) return true;
  }
  return false;
}

void Engine::dispatch(MessagePointer message, Answer done) {
  auto walk = std::make_shared<Walk>();
  walk->message = std::move(message);
  walk->done = std::move(done);
  go_on(walk);
}

const Engine::Entry* Engine::next(const Message& message, int priority, Id id) const {
  for (const Entry& entry : entries_) {
    if (entry.name != message.name() || entry.priority < priority) continue;
    if (entry.priority == priority && entry.id <= id) continue;
    if (!entry.filter || entry.filter(message)) return &entry;
  }
  return nullptr;
}

void Engine::note_passed(Message& message, const Entry& entry) {
  const std::string passed = entry.owner + ":" + std::to_string(entry.priority);
  const auto before = message.get("handlers");
  message.set("handlers", before ? *before + "," + passed : passed);
}

/// Asks one handler after the other, in a loop and not by recursion: most answer at once. The list
/// is looked at anew for each, because a handler may install and uninstall.
void Engine::go_on(const std::shared_ptr<Walk>& walk) {
  while (true) {
    const Entry* entry = next(*walk->message, walk->priority, walk->id);
    if (entry == nullptr) return finish(*walk, false);
    walk->priority = entry->priority;
    walk->id = entry->id;
    const std::shared_ptr<Handler> handler = entry->handler;
    if (!entry->owner.empty()) note_passed(*walk->message, *entry);

    struct Asking {
      bool inside = true;
      bool answered = false;
      bool handled = false;
    };
    const auto asking = std::make_shared<Asking>();
    const std::weak_ptr<char> alive = alive_;
    (*handler)(walk->message, [this, alive, walk, asking](bool handled) {
      if (std::exchange(asking->answered, true)) return;
      asking->handled = handled;
      if (asking->inside || alive.expired()) return;
      if (handled) return finish(*walk, true);
      go_on(walk);
    });
    asking->inside = false;
    if (!asking->answered) return;
    if (asking->handled) return finish(*walk, true);
  }
}

void Engine::finish(const Walk& walk, bool handled) {
  const std::vector<Watch> watches = watches_;  // a watcher may watch and unwatch
  for (const Watch& watch : watches) {
    const bool wanted = watch.name.empty() || watch.name == walk.message->name();
    if (wanted) (*watch.watcher)(*walk.message, handled);
  }
  if (walk.done) walk.done(handled);
}

}  // namespace modules
