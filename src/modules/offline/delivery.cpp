// offline/delivery: see delivery.hpp.
#include "delivery.hpp"

#include <algorithm>
#include <utility>

namespace modules {

namespace {

using sipmsg::Severity;
using sipmsg::Verdict;

/// Messages that may wait for the store to be opened.
constexpr std::size_t max_early = 1000;
/// Users who are sent messages at a time, so many bodies are in memory; the others wait.
constexpr std::size_t max_deliveries = 100;
/// Users who may wait for that; beyond it they wait for their next REGISTER.
constexpr std::size_t max_waiting = 100000;
/// Phones that are remembered after they registered.
constexpr std::size_t max_newcomers = 10000;
/// What no datagram to that phone can carry this server refuses itself; to try again is in vain.
constexpr int too_large_code = 513;
/// The clock on the wall may be set; so often at least it is looked at.
constexpr std::int64_t longest_sleep_s = 3600;

std::int64_t now_s() { return static_cast<std::int64_t>(sipmsg::unix_time_s()); }

OfflineOptions options_of(const sipmsg::OfflineSettings& settings) {
  OfflineOptions options;
  options.spool = settings.spool;
  options.limits.max_per_user = settings.max_messages;
  options.limits.max_per_sender = settings.max_per_sender;
  options.limits.max_octets = settings.max_octets;
  return options;
}

}  // namespace

std::shared_ptr<OfflineDelivery> OfflineDelivery::make(uv_loop_t* loop, sipmsg::Server& server,
                                                       const sipmsg::Settings& settings,
                                                       sipmsg::LogHandler log) {
  return std::shared_ptr<OfflineDelivery>(
      new OfflineDelivery(std::make_unique<sipmsg::Loop>(loop), server, settings, std::move(log)));
}

OfflineDelivery::OfflineDelivery(std::unique_ptr<sipmsg::Loop> loop, sipmsg::Server& server,
                                 const sipmsg::Settings& settings, sipmsg::LogHandler log)
    : Alarm(*loop),
      loop_(std::move(loop)),
      server_(server),
      settings_(settings.offline),
      offline_code_(settings.message.offline_code),
      newcomer_ms_(64 * std::uint64_t{settings.timers.t1_ms}),
      users_(sipmsg::random_secret().value()),
      log_(std::move(log)),
      phone_key_(sipmsg::random_secret().value()),
      random_(sipmsg::random_secret().value()),
      store_(*loop_, options_of(settings_), log_) {
  for (const sipmsg::UserSettings& user : settings.users) users_.add(user);
}

void OfflineDelivery::log(Severity severity, const std::string& text) const {
  if (log_) log_(severity, text);
}

// ---- opening and closing

void OfflineDelivery::open(std::vector<KeptMessage> earlier) {
  earlier_ = std::move(earlier);
  store_.open(now_s(), [this](bool is_usable) { opened(is_usable); });
}

void OfflineDelivery::opened(bool is_usable) {
  is_open_ = is_usable;
  is_unusable_ = !is_usable;
  if (is_usable) {
    for (KeptMessage& message : std::exchange(earlier_, {})) {
      store_.adopt(std::move(message), now_s());
    }
  } else {
    log(Severity::error, "messages for users who are offline are refused");
  }
  // Before the early ones, which the phones that are there have refused: what those have not seen.
  start_waiting();
  for (const Arrived& early : std::exchange(early_, {})) {
    const Verdict verdict = is_usable ? keep(early) : Verdict::next();
    if (verdict.kind() == Verdict::Kind::later) continue;
    static_cast<void>(server_.resume(early.key, verdict));
  }
  rearm();
}

std::vector<KeptMessage> OfflineDelivery::close() {
  for (const Arrived& early : std::exchange(early_, {})) {
    static_cast<void>(server_.resume(early.key, Verdict::next()));
  }
  is_open_ = false;
  is_unusable_ = true;
  store_.close();
  loop_->close();
  std::vector<KeptMessage> messages = store_.take_all();
  for (KeptMessage& message : earlier_) messages.push_back(std::move(message));
  return messages;
}

// ---- keeping

/// No binding, or none that answered: RFC 3261 16.7 takes silence for 408, and 480 is said where
/// 408 may not be (RFC 4320). A 503 speaks of a phone, or a connection, that does not work.
bool OfflineDelivery::is_for_later(std::string_view called, int code) const {
  if (code == 408 || code == 480 || code == 503) return true;
  if (code != offline_code_) return false;
  bool is_phone = false;  // that said so itself, by chance with the same code
  server_.for_each_binding(called, [&is_phone](const sipmsg::Binding&) { is_phone = true; });
  return !is_phone;
}

/// Whose the message is: the user of that name, or else all who list it as an alternative.
std::vector<std::string> OfflineDelivery::users_of(std::string_view called) const {
  std::vector<std::string> names;
  if (users_.find(called) == nullptr) {
    users_.for_each_alternative(
        called, [&names](const sipmsg::UserSettings& user) { names.push_back(user.name); });
  }
  if (names.empty()) names.emplace_back(called);
  return names;
}

Verdict OfflineDelivery::on_undelivered(const sipmsg::RouteRequest& request, int code) {
  if (is_unusable_ || !is_for_later(request.called, code) || !is_worth_keeping(request))
    return Verdict::next();
  Arrived arrived{{}, request.key, request.context.received_ms};
  for (const std::string& user : users_of(request.called)) {
    auto message = keep_of(request, user, now_s(), settings_.expires_s);
    if (!message) return Verdict::next();
    arrived.messages.push_back(std::move(*message));
  }
  if (is_open_) return keep(arrived);
  if (early_.size() >= max_early) return Verdict::reject(503);
  early_.push_back(std::move(arrived));
  return Verdict::later();
}

Verdict OfflineDelivery::keep(const Arrived& arrived) {
  const auto asked = std::make_shared<Asked>();
  asked->key = arrived.key;
  asked->received_ms = arrived.received_ms;
  for (const KeptMessage& message : arrived.messages) {
    const auto kept_here = [this, asked, message](bool is_kept) { kept(message, *asked, is_kept); };
    const Keeping keeping = store_.keep(message, now_s(), kept_here);
    if (keeping == Keeping::kept) {
      ++asked->waiting;
    } else if (keeping == Keeping::known) {
      asked->is_kept = true;  // the answer to its first copy was lost
    } else {
      refuse(*asked, keeping, message);
    }
  }
  if (asked->waiting != 0) return Verdict::later();
  return verdict_of(*asked);
}

Verdict OfflineDelivery::verdict_of(const Asked& asked) const {
  if (asked.is_kept) return Verdict::accept(202);
  return is_unusable_ ? Verdict::next() : Verdict::reject(asked.refused_with);
}

void OfflineDelivery::refuse(Asked& asked, Keeping keeping, const KeptMessage& message) {
  // A full mailbox is the recipient's matter; everything else is ours, and may be over soon.
  asked.refused_with = keeping == Keeping::user_full ? 480 : 503;
  if (!full_log_.admits(loop_->now_ms())) return;
  const char* reason = keeping == Keeping::user_full     ? "[offline] max_messages is reached"
                       : keeping == Keeping::sender_full ? "[offline] max_per_sender is reached"
                       : keeping == Keeping::store_full  ? "[offline] max_octets is reached"
                                                         : "it could not be written";
  log(Severity::warning, "a message from " + name_for_log(message.sender) + " to " +
                             name_for_log(message.user) + " is not kept: " + reason);
}

void OfflineDelivery::kept(const KeptMessage& message, Asked& asked, bool is_kept) {
  if (is_kept) {
    asked.is_kept = true;
  } else if (!is_unusable_) {
    refuse(asked, Keeping::failed, message);
  }
  if (--asked.waiting == 0) static_cast<void>(server_.resume(asked.key, verdict_of(asked)));
  if (!is_open_) return;
  if (is_kept) notify(message, Fate::stored);
  go_on(message.user);
  if (is_kept) deliver_to_newcomer(message.user, asked.received_ms);
}

/// A delivery may have waited for what was just written.
void OfflineDelivery::go_on(const std::string& user) {
  if (!is_open_) return;
  const auto delivery = deliveries_.find(user);
  if (delivery != deliveries_.end() && delivery->second.waits_for_disk) deliver_next(user);
  rearm();
}

// ---- delivering

void OfflineDelivery::on_register(std::string_view user_name, std::string_view contact) {
  if (is_unusable_) return;
  const std::string user(user_name);
  remember(user, contact);
  begin(user, std::string(contact));
}

void OfflineDelivery::remember(const std::string& user, std::string_view contact) {
  const std::uint64_t now_ms = loop_->now_ms();
  newcomers_[user] = {std::string(contact), now_ms};
  newcomers_by_age_.emplace_back(now_ms, user);
  while (newcomers_by_age_.front().first + newcomer_ms_ < now_ms ||
         newcomers_by_age_.size() > max_newcomers) {
    const auto& [when_ms, name] = newcomers_by_age_.front();
    const auto found = newcomers_.find(name);
    if (found != newcomers_.end() && found->second.when_ms == when_ms) newcomers_.erase(found);
    newcomers_by_age_.pop_front();
  }
}

/// The message was sent to the phones there were, in vain; one that came since then has not seen
/// it.
void OfflineDelivery::deliver_to_newcomer(const std::string& user, std::uint64_t received_ms) {
  const auto found = newcomers_.find(user);
  if (found == newcomers_.end() || found->second.when_ms <= received_ms) return;
  // A delivery that runs comes to this message, too.
  if (deliveries_.count(user) == 0) begin(user, found->second.contact);
}

void OfflineDelivery::begin(const std::string& user, const std::string& contact) {
  if (is_open_ && !store_.has(user)) return;
  if (const auto found = deliveries_.find(user); found != deliveries_.end()) {
    found->second.next_contact = contact;
    return;
  }
  if (!is_open_ || deliveries_.size() >= max_deliveries) {
    if (registered_.size() < max_waiting) registered_[user] = contact;
    return;
  }
  deliveries_[user].contact = contact;
  deliver_next(user);
}

/// Begins with those who had to wait for the store, or for others.
void OfflineDelivery::start_waiting() {
  if (std::exchange(is_starting_, true)) return;  // one that ends at once brings us here again
  while (is_open_ && deliveries_.size() < max_deliveries && !registered_.empty()) {
    const auto next = registered_.extract(registered_.begin());
    begin(next.key(), next.mapped());
  }
  is_starting_ = false;
}

/// Goes on with a phone that registered during the delivery, where there is one, or ends it.
void OfflineDelivery::end(const std::string& user) {
  const auto found = deliveries_.find(user);
  if (found == deliveries_.end()) return;
  Delivery& delivery = found->second;
  if (!delivery.next_contact.empty()) {
    delivery.contact = std::exchange(delivery.next_contact, {});
    return deliver_next(user);
  }
  deliveries_.erase(found);
  start_waiting();
}

std::uint64_t OfflineDelivery::phone_of(std::string_view contact) const {
  return sipmsg::SipHash::of(phone_key_, contact) | 1;  // 0 is none
}

void OfflineDelivery::deliver_next(const std::string& user) {
  expire();
  const auto found = deliveries_.find(user);
  if (found == deliveries_.end()) return;
  Delivery& delivery = found->second;
  const std::uint64_t id = store_.next(user, phone_of(delivery.contact));
  if (id == 0) return end(user);
  delivery.waits_for_disk = !store_.is_written(id);
  if (delivery.waits_for_disk) return;
  const auto weak = weak_from_this();
  store_.take(id, [weak, user, id](std::optional<KeptMessage> message) {
    const auto self = weak.lock();
    if (!self || !self->is_open_) return;
    if (message) return self->send(user, id, *message);
    // One that is still there comes first, whenever it can be read.
    self->store_.is_written(id) ? self->fail(user, id, "the first one cannot be read")
                                : self->deliver_next(user);
  });
}

void OfflineDelivery::send(const std::string& user, std::uint64_t id, const KeptMessage& message) {
  const std::string& contact = deliveries_.at(user).contact;
  const auto weak = weak_from_this();
  const auto done = [weak, user, message](const sipmsg::Outcome& outcome) {
    const auto self = weak.lock();
    if (self && self->is_open_) self->sent(user, message, outcome);
  };
  const sipmsg::Error error = server_.send(delivery_of(message, contact), done);
  if (!error) return;
  if (error.code == sipmsg::ErrorCode::limit_reached || error.code == sipmsg::ErrorCode::closed) {
    return fail(user, id, error.text());
  }
  refused(user, id, std::string("it cannot be sent: ") + error.text());
}

void OfflineDelivery::sent(const std::string& user, const KeptMessage& message,
                           const sipmsg::Outcome& outcome) {
  const std::uint64_t id = message.id;
  if (outcome.ok()) {
    const auto weak = weak_from_this();
    // The next one waits until this one is marked on the disk: so a crash can repeat only one.
    return store_.finish(id, now_s(), [weak, user, message](bool is_safe) {
      const auto self = weak.lock();
      if (!self || !self->is_open_) return;
      self->notify(message, Fate::delivered);
      is_safe ? self->deliver_next(user) : self->end(user);
    });
  }
  // Where the phone is gone the code is one of this server, [message] offline_code for one, and
  // says nothing of the message.
  const bool is_of_message = outcome.response != nullptr || outcome.code == too_large_code;
  if (outcome.error || !is_of_message || !is_refused_for_good(outcome.code)) {
    return fail(user, id, outcome.error ? outcome.error.text() : std::to_string(outcome.code));
  }
  refused(user, id, "this phone refuses it with " + std::to_string(outcome.code));
}

/// That phone will never take the message; it may take the next.
void OfflineDelivery::refused(const std::string& user, std::uint64_t id, const std::string& why) {
  if (delivery_log_.admits(loop_->now_ms())) {
    log(Severity::warning, "message " + spool_id_text(id) + " for " + name_for_log(user) + ": " +
                               why + "; kept for another one");
  }
  store_.give_back(id, phone_of(deliveries_.at(user).contact));
  deliver_next(user);
}

/// The delivery ends, and begins again with the next REGISTER.
void OfflineDelivery::fail(const std::string& user, std::uint64_t id, const std::string& why) {
  store_.give_back(id);
  const auto newcomer = newcomers_.find(user);
  const bool is_newcomer =
      newcomer != newcomers_.end() && newcomer->second.contact == deliveries_.at(user).contact;
  if (is_newcomer) newcomers_.erase(newcomer);
  if (delivery_log_.admits(loop_->now_ms())) {
    log(Severity::info, "messages for " + name_for_log(user) + " are not delivered yet: " + why);
  }
  end(user);
}

// ---- notices

/// A notice is sent once, to whoever of the sender's phones is there: it is not kept.
void OfflineDelivery::notify(const KeptMessage& message, Fate fate) {
  if (!settings_.notify) return;
  std::string id(13, '\0');
  random_.write_token(&id[0], id.size());
  const auto notice = notice_of(message, fate, id, now_s());
  if (notice) static_cast<void>(server_.send(*notice, [](const sipmsg::Outcome&) {}));
}

// ---- time

void OfflineDelivery::expire() {
  OfflineStore::Use use;
  if (settings_.notify) {
    use = [this](const KeptMessage& message) { notify(message, Fate::expired); };
  }
  store_.expire(now_s(), use);
}

void OfflineDelivery::on_alarm(std::uint64_t) {
  if (!is_open_) return;
  expire();
  rearm();
}

void OfflineDelivery::rearm() {
  if (!is_open_) return;
  const std::int64_t now = now_s();
  const std::int64_t wait_s = std::min(store_.next_deadline_s(now) - now, longest_sleep_s);
  arm(loop_->now_ms() + static_cast<std::uint64_t>(wait_s) * 1000);
}

}  // namespace modules
