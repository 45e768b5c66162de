// offline/delivery: what happens to messages that nobody took, from the first answer to the last.
//
// Decides what is kept and what its sender is answered, and sends each user his messages, one after
// another, when he registers. The store remembers, the server sends.
//
// A delivery goes on until nothing is left, or until the phone fails to answer with 2xx. A refusal
// that can never become a 2xx (is_refused_for_good) concerns that message and that phone alone: the
// next message is tried, and this one again when another phone registers. Everything else (busy, no
// answer, an overloaded phone) ends the delivery until the next REGISTER. Where that came while the
// message was still on its way to another phone of the user, it counts when the message is kept.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "request.hpp"
#include "sipmsg.hpp"
#include "store.hpp"

namespace modules {

/// Belongs to the loop's thread, which must turn once more after `close`.
class OfflineDelivery final : public std::enable_shared_from_this<OfflineDelivery>,
                              private sipmsg::Alarm {
 public:
  /// `server` outlives the call of `close`. Of `settings` also the users, as a message to an
  /// alternative name is kept for those who answer to it.
  static std::shared_ptr<OfflineDelivery> make(uv_loop_t* loop, sipmsg::Server& server,
                                               const sipmsg::Settings& settings,
                                               sipmsg::LogHandler log);
  ~OfflineDelivery() = default;

  /// Opens the store, and keeps `earlier` in it. What comes meanwhile waits.
  void open(std::vector<KeptMessage> earlier);
  sipmsg::Verdict on_undelivered(const sipmsg::RouteRequest& request, int code);
  /// The user has registered, or done so again, with that contact.
  void on_register(std::string_view user, std::string_view contact);
  /// Answers what waits. What was kept in memory is handed out, so that another one may keep it.
  std::vector<KeptMessage> close();

 private:
  /// A user's messages on their way to one phone.
  struct Delivery {
    std::string contact;
    std::string next_contact;     ///< registered meanwhile: tried where this one fails
    bool waits_for_disk = false;  ///< for the message that would be next
  };
  /// A message, or several for all who answer to one name, before its sender is answered.
  struct Asked {
    sipmsg::RouteKey key;
    std::uint64_t received_ms = 0;
    std::size_t waiting = 0;
    bool is_kept = false;  ///< for one user at least
    int refused_with = 0;
  };
  /// What nobody took, for one user or for all who answer to one name.
  struct Arrived {
    std::vector<KeptMessage> messages;
    sipmsg::RouteKey key;
    std::uint64_t received_ms = 0;
  };
  /// The phone of a user that registered last.
  struct Newcomer {
    std::string contact;
    std::uint64_t when_ms = 0;
  };

  OfflineDelivery(std::unique_ptr<sipmsg::Loop> loop, sipmsg::Server& server,
                  const sipmsg::Settings& settings, sipmsg::LogHandler log);

  bool is_for_later(std::string_view called, int code) const;
  std::vector<std::string> users_of(std::string_view called) const;
  void opened(bool is_usable);
  sipmsg::Verdict keep(const Arrived& arrived);
  void kept(const KeptMessage& message, Asked& asked, bool is_kept);
  sipmsg::Verdict verdict_of(const Asked& asked) const;
  void refuse(Asked& asked, Keeping keeping, const KeptMessage& message);

  void go_on(const std::string& user);
  void remember(const std::string& user, std::string_view contact);
  void deliver_to_newcomer(const std::string& user, std::uint64_t received_ms);
  void begin(const std::string& user, const std::string& contact);
  void start_waiting();
  void end(const std::string& user);
  void deliver_next(const std::string& user);
  void send(const std::string& user, std::uint64_t id, const KeptMessage& message);
  void sent(const std::string& user, const KeptMessage& message, const sipmsg::Outcome& outcome);
  void refused(const std::string& user, std::uint64_t id, const std::string& why);
  void fail(const std::string& user, std::uint64_t id, const std::string& why);
  std::uint64_t phone_of(std::string_view contact) const;

  void notify(const KeptMessage& message, Fate fate);
  void expire();
  void on_alarm(std::uint64_t now_ms) override;
  void rearm();
  void log(sipmsg::Severity severity, const std::string& text) const;

  std::unique_ptr<sipmsg::Loop> loop_;
  sipmsg::Server& server_;
  const sipmsg::OfflineSettings settings_;
  const int offline_code_;
  const std::uint64_t newcomer_ms_;  ///< for so long a message may be on its way before it is kept
  sipmsg::UserDirectory users_;
  sipmsg::LogHandler log_;
  sipmsg::SipHashKey phone_key_;
  sipmsg::Random random_;
  OfflineStore store_;
  std::map<std::string, Delivery> deliveries_;
  std::vector<KeptMessage> earlier_;  ///< of the store before this one, until this one has them
  std::vector<Arrived> early_;
  std::map<std::string, std::string> registered_;  ///< contacts of users who wait for their turn
  std::map<std::string, Newcomer> newcomers_;      ///< by user
  std::deque<std::pair<std::uint64_t, std::string>> newcomers_by_age_;  ///< when, and whose
  sipmsg::LogLimit full_log_{10};
  sipmsg::LogLimit delivery_log_{60};
  bool is_starting_ = false;
  bool is_open_ = false;
  bool is_unusable_ = false;
};

}  // namespace modules
