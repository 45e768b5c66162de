// access: whose domains these are, who sent a request, and whether he may speak under that name.
//
// RFC 3261 22 says how a sender proves his password, digest.hpp does the arithmetic. Here it is
// decided what follows from it: a challenge, an identity, or a refusal. An account is no licence to
// write under other people's names, so the From of an authenticated request must name the user, or
// one of his alternatives, in a domain of ours.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "digest.hpp"
#include "routing.hpp"
#include "writer.hpp"

namespace sipmsg {

/// The domains this server answers for: names, addresses, or any. Ports do not matter, nor does the
/// case of names.
class OwnDomains {
 public:
  /// "*" makes every domain ours. An IPv6 address may stand in brackets.
  void add(std::string_view domain) {
    if (domain == "*") {
      any_ = true;
    } else if (const auto ip = parse_ip(domain)) {
      addresses_.push_back(*ip);
    } else if (!domain.empty()) {
      names_.push_back(std::string(without_last_dot(domain)));
    }
  }
  void add(const IpAddress& address) { addresses_.push_back(address); }

  /// Whether a URI's host, IPv6 without brackets, is ours.
  bool contains(std::string_view host) const {
    if (any_) return true;
    const std::string_view wanted = without_last_dot(host);
    for (const std::string& name : names_) {
      if (equal_ignoring_case(name, wanted)) return true;
    }
    if (const auto ip = parse_ip(host)) {
      return std::find(addresses_.begin(), addresses_.end(), *ip) != addresses_.end();
    }
    return false;
  }
  bool is_any() const { return any_; }

 private:
  /// "example.org." is the same host: RFC 3261 25.1 lets a hostname end in a dot.
  static std::string_view without_last_dot(std::string_view host) {
    if (!host.empty() && host.back() == '.') host.remove_suffix(1);
    return host;
  }

  std::vector<std::string> names_;
  std::vector<IpAddress> addresses_;
  bool any_ = false;
};

/// Which pair of headers carries challenge and credentials: 401 as a registrar or an endpoint asks,
/// 407 as a proxy does (RFC 3261 22.1).
enum class ChallengeKind : std::uint8_t { www, proxy };

constexpr int challenge_code(ChallengeKind kind) { return kind == ChallengeKind::www ? 401 : 407; }

/// A few header fields of one message, by their index in it.
class FieldList {
 public:
  static constexpr std::size_t capacity = 12;

  void add(std::size_t field) {
    overflowed_ = overflowed_ || count_ == capacity;
    if (!overflowed_) fields_[count_++] = static_cast<std::uint8_t>(field);
  }
  /// Whether there were more than the list can hold.
  bool overflowed() const { return overflowed_; }
  const std::uint8_t* begin() const { return fields_.data(); }
  const std::uint8_t* end() const { return fields_.data() + count_; }

 private:
  static_assert(SIPMSG_MAX_HEADERS <= 256, "an index takes one octet");
  std::array<std::uint8_t, capacity> fields_{};
  std::uint8_t count_ = 0;
  bool overflowed_ = false;
};

/// What came of asking who sent a request.
struct Identity {
  enum class Kind : std::uint8_t {
    anonymous,  ///< no usable credentials, or wrong ones: challenge
    stale,      ///< the password is right, the nonce is not fresh: challenge with stale=true
    known,      ///< proved: `user` says who
  };
  Kind kind = Kind::anonymous;
  const UserSettings* user = nullptr;
  /// Why credentials for our realm were refused, for the log; empty where they were not.
  std::string_view refusal;
};

/// Judges the credentials of requests and writes challenges.
class AccessControl {
 public:
  AccessControl(DigestOptions options, std::string_view secret)
      : authenticator_(std::move(options), secret) {}

  /// Reads the credentials of the request that are for our realm; the first that are right count.
  /// Adds the fields they stand in to `own`: they are not for the eyes of a recipient, who could
  /// try passwords on them.
  Identity identify(const MessageView& request, ChallengeKind kind, const UserDirectory& users,
                    const IpAddress& source, std::uint64_t now_ms, FieldList& own) {
    Identity identity;
    std::size_t judged = 0;
    for_each_own(request, kind, [&](std::size_t field, const DigestCredentials& credentials) {
      own.add(field);
      if (identity.kind == Identity::Kind::known || judged++ >= max_judged) return;
      const Identity next = judge(credentials, request, users, source, now_ms);
      if (next.kind != Identity::Kind::anonymous || identity.kind == Identity::Kind::anonymous) {
        identity = next;
      }
    });
    return identity;
  }

  /// Adds the fields with credentials for our realm, unread.
  void find_own(const MessageView& request, ChallengeKind kind, FieldList& own) const {
    for_each_own(request, kind,
                 [&own](std::size_t field, const DigestCredentials&) { own.add(field); });
  }

  /// Writes the challenge headers of a 401 or 407, one for each algorithm (RFC 8760 2.3).
  void write_challenges(Output& out, ChallengeKind kind, bool stale, const IpAddress& client,
                        std::uint64_t now_ms) {
    const DigestNonce nonce = authenticator_.make_nonce(client.bytes(), now_ms);
    const HeaderId id =
        kind == ChallengeKind::www ? HeaderId::www_authenticate : HeaderId::proxy_authenticate;
    for (std::size_t i = 0; i < authenticator_.challenge_count(); ++i) {
      challenge_.resize(authenticator_.max_challenge_size());
      const std::size_t size =
          authenticator_.write_challenge(i, nonce, stale, &challenge_[0], challenge_.size());
      write_header(out, id, std::string_view(challenge_).substr(0, size));
    }
  }

  const std::string& realm() const { return authenticator_.options().realm; }

 private:
  /// Judging costs a few hashes, over the body too for auth-int. One realm needs one credential.
  static constexpr std::size_t max_judged = 4;

  /// Calls `use(field, credentials)` on each credential for our realm, malformed ones left out.
  template <class Use>
  void for_each_own(const MessageView& request, ChallengeKind kind, Use use) const {
    const HeaderId id =
        kind == ChallengeKind::www ? HeaderId::authorization : HeaderId::proxy_authorization;
    for (std::size_t field = request.find(id); field != request.header_count();
         field = request.find_next(field)) {
      const auto credentials = parse_credentials(request.field(field).value);
      if (!credentials || !credentials->is_digest) continue;
      if (detail::equal_unquoted(credentials->realm, realm())) use(field, *credentials);
    }
  }

  Identity judge(const DigestCredentials& credentials, const MessageView& request,
                 const UserDirectory& users, const IpAddress& source, std::uint64_t now_ms) {
    Identity identity;
    name_.clear();
    for (UnquotedOctets octets(credentials.username); !octets.done();) {
      name_.push_back(octets.next());
    }
    const UserSettings* user = users.find(name_);
    if (user != nullptr && !user->has_password) user = nullptr;
    // An empty password lets everyone in who gives the name, as in Yate; `check` warns of it.
    if (user != nullptr && user->password.empty()) {
      identity.kind = Identity::Kind::known;
      identity.user = user;
      return identity;
    }
    const DigestRequest asked{request.method_text(), request.request_uri_text(), request.body(),
                              source.bytes()};
    const DigestSecret secret =
        user == nullptr ? DigestSecret::unknown_user() : DigestSecret::password(user->password);
    switch (authenticator_.check(credentials, asked, secret, now_ms)) {
      case DigestVerdict::accepted:
        identity.kind = Identity::Kind::known;
        identity.user = user;
        break;
      case DigestVerdict::stale: identity.kind = Identity::Kind::stale; break;
      case DigestVerdict::wrong_response:
        identity.refusal = "wrong password or unknown user";
        break;
      case DigestVerdict::wrong_uri: identity.refusal = "credentials for another address"; break;
      case DigestVerdict::wrong_scheme:
      case DigestVerdict::wrong_realm:
      case DigestVerdict::wrong_algorithm: break;
    }
    return identity;
  }

  DigestAuthenticator authenticator_;
  std::string name_;       ///< kept for its capacity
  std::string challenge_;  ///< the same
};

/// Whether an authenticated user may send under that From, or register that To: under its own name
/// or an alternative, in a domain of ours.
inline bool may_speak_as(const UserSettings& user, const UriView& address,
                         std::string_view decoded_user, const OwnDomains& domains) {
  return answers_to(user, decoded_user) && domains.contains(address.host);
}

}  // namespace sipmsg
