// login: a client's side of the password question, for one account.
//
// A server asks with 401 or 407; a client sends the request again with credentials (RFC 3261 22.2,
// 22.3). The nonce stays good for a while, so what follows carries credentials at once, with a
// rising count, or with the next nonce where an answer brought one. A password that was refused is
// not tried again: softphones that do lock their owners out. The arithmetic is that of digest.hpp;
// who sends the request again is agent.hpp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "digest.hpp"
#include "writer.hpp"

namespace sipmsg {

/// One account's name and password, and the challenges it has answered so far. Share one Login
/// among all requests of an account.
class Login {
 public:
  Login(std::string username, std::string password)
      : username_(std::move(username)), password_(std::move(password)) {}

  const std::string& username() const { return username_; }
  /// Another password: what was refused counts no longer.
  void set_password(std::string password) {
    password_ = std::move(password);
    answers_.clear();
  }
  /// Whether the password was refused by some realm, and will not be tried there again.
  bool is_refused() const {
    for (const Answer& answer : answers_) {
      if (answer.refused) return true;
    }
    return false;
  }

  /// Takes the challenges of a 401 or 407: of each realm the strongest that we speak. A proxy that
  /// forks may collect those of several, for either header (RFC 3261 16.7 step 7). `answered` is
  /// the caller's for each request, empty at first: the realms it was sent again for. True where it
  /// is worth sending once more: there is a challenge of an algorithm we speak, and the password
  /// was not the reason (RFC 3261 22.2: the same credentials again only where the nonce alone was
  /// wrong). `cnonce` is a fresh random token.
  bool take(const MessageView& response, std::vector<std::string>& answered,
            std::string_view cnonce) {
    bool is_worth_it = false;
    for (const bool is_proxy : {false, true}) {
      const auto id = is_proxy ? HeaderId::proxy_authenticate : HeaderId::www_authenticate;
      std::vector<DigestChallenge> challenges = read_challenges(response, id);
      while (!challenges.empty()) {
        const std::string_view realm = challenges.front().realm;
        std::vector<DigestChallenge> of_realm;
        std::vector<DigestChallenge> others;
        for (const DigestChallenge& challenge : challenges) {
          (challenge.realm == realm ? of_realm : others).push_back(challenge);
        }
        const auto best = DigestClient::choose(of_realm.data(), of_realm.size());
        if (best && take_one(is_proxy, of_realm[*best], answered, cnonce)) is_worth_it = true;
        challenges.swap(others);
      }
    }
    return is_worth_it;
  }

  /// Takes the nonce that an answer brings for the next request (RFC 7616 3.5). It does not say of
  /// which realm it speaks, so it is passed over where several could be meant. `cnonce` is a fresh
  /// random token.
  void take_next_nonce(const MessageView& response, std::string_view cnonce) {
    for (const bool is_proxy : {false, true}) {
      const auto info =
          response.header(is_proxy ? "Proxy-Authentication-Info" : "Authentication-Info");
      if (!info) continue;
      const auto next_nonce = Parameters(*info, ',').find("nextnonce");
      const auto is_meant = [is_proxy](const Answer& answer) {
        return answer.is_proxy == is_proxy && !answer.refused && answer.client.is_ready();
      };
      if (!next_nonce || std::count_if(answers_.begin(), answers_.end(), is_meant) != 1) continue;
      const auto answer = std::find_if(answers_.begin(), answers_.end(), is_meant);
      // One that cannot be used is no loss: the server will challenge.
      static_cast<void>(answer->client.take_next_nonce(*next_nonce, cnonce));
    }
  }

  /// Writes Authorization and Proxy-Authorization for one request, as far as challenges are known.
  /// `uri` is the Request-URI as it is sent. Each call counts as one use of the nonces.
  void write(Output& out, std::string_view method, std::string_view uri, std::string_view body) {
    for (Answer& answer : answers_) {
      if (answer.refused || !answer.client.is_ready()) continue;
      const auto value = answer.client.authorize(username_, password_, method, uri, body);
      if (!value) return static_cast<void>(out.fail(value.error().code));
      write_header(out, answer.is_proxy ? HeaderId::proxy_authorization : HeaderId::authorization,
                   *value);
    }
  }

 private:
  static constexpr std::size_t max_challenges = 16;
  static constexpr std::size_t max_realms = 8;    ///< a server and some proxies on the way to it
  static constexpr std::ptrdiff_t max_tries = 4;  ///< with new nonces, for one realm and request

  /// What one realm asked for last.
  struct Answer {
    bool is_proxy = false;
    std::string realm;  ///< with "www " or "proxy " before it: each asks for itself
    DigestClient client;
    bool refused = false;
  };

  static std::vector<DigestChallenge> read_challenges(const MessageView& response, HeaderId id) {
    std::vector<DigestChallenge> challenges;
    for (std::size_t field = response.find(id); field != response.header_count();
         field = response.find_next(field)) {
      for (std::string_view text : DigestChallenges(response.field(field).value)) {
        const auto challenge = parse_challenge(text);
        const bool has_room = challenges.size() < max_challenges;
        if (challenge && challenge->is_digest && has_room) challenges.push_back(*challenge);
      }
    }
    return challenges;
  }

  /// Whether the challenge of one realm is worth an answer.
  bool take_one(bool is_proxy, const DigestChallenge& challenge, std::vector<std::string>& answered,
                std::string_view cnonce) {
    std::string realm = (is_proxy ? "proxy " : "www ") + unquote(challenge.realm);
    Answer& answer = answer_for(is_proxy, realm);
    const auto tries = std::count(answered.begin(), answered.end(), realm);
    if (tries != 0 && !challenge.stale) answer.refused = true;
    if (answer.refused || tries >= max_tries || answered.size() >= max_challenges) return false;
    if (answer.client.take(challenge, cnonce)) return false;
    answered.push_back(std::move(realm));
    return true;
  }

  Answer& answer_for(bool is_proxy, const std::string& realm) {
    for (Answer& answer : answers_) {
      if (answer.realm == realm) return answer;
    }
    if (answers_.size() == max_realms) answers_.erase(answers_.begin());
    answers_.emplace_back();
    answers_.back().is_proxy = is_proxy;
    answers_.back().realm = realm;
    return answers_.back();
  }

  std::string username_;
  std::string password_;
  std::vector<Answer> answers_;
};

}  // namespace sipmsg
