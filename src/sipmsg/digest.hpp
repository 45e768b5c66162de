// digest: who may speak. Challenges, credentials, responses, and nonces that remember nothing.
//
// Digest authentication (RFC 2617, RFC 7616; in SIP by RFC 3261 22 and RFC 8760): the server sends
// a challenge with a nonce, the client proves with a hash over nonce, method and URI that it knows
// the password. Three layers, top to bottom: reading the two headers as views, computing the
// response, and the two who use it, DigestClient and DigestAuthenticator. The server keeps nothing
// for a nonce it hands out: a nonce carries its time and a seal over that and the client's address.
// Only a nonce that a right password was used with is remembered, so that it cannot be replayed.
// Left out on purpose: Authentication-Info but for its nextnonce, userhash and username* (RFC
// 7616 3.4.4), which no softphone sends, and Basic, which RFC 3261 22.4 forbids.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "hash.hpp"
#include "uri.hpp"

namespace sipmsg {

// ---- names -------------------------------------------------------------------------------------

/// The hash functions of digest authentication, weakest first.
enum class DigestHash : std::uint8_t { md5, sha_256, sha_512_256 };

/// A hash, and whether the session variant (-sess) is meant, which mixes nonce and cnonce into HA1.
struct DigestAlgorithm {
  DigestHash hash = DigestHash::md5;
  bool session = false;

  constexpr bool operator==(const DigestAlgorithm& other) const {
    return hash == other.hash && session == other.session;
  }

  /// The token of the algorithm parameter, such as "SHA-256-sess" (RFC 7616 6.1). Never null.
  constexpr const char* name() const {
    switch (hash) {
      case DigestHash::md5: return session ? "MD5-sess" : "MD5";
      case DigestHash::sha_256: return session ? "SHA-256-sess" : "SHA-256";
      case DigestHash::sha_512_256: return session ? "SHA-512-256-sess" : "SHA-512-256";
    }
    return "";
  }
};

/// The algorithm of that name, any case; nothing for one we do not speak.
inline std::optional<DigestAlgorithm> parse_digest_algorithm(std::string_view name) {
  for (DigestHash hash : {DigestHash::md5, DigestHash::sha_256, DigestHash::sha_512_256}) {
    for (bool session : {false, true}) {
      const DigestAlgorithm algorithm{hash, session};
      if (equal_ignoring_case(name, algorithm.name())) return algorithm;
    }
  }
  return std::nullopt;
}

/// Quality of protection: what the response covers. `auth_int` covers the body too; `none` is the
/// old form of RFC 2069, without cnonce and nonce-count.
enum class DigestQop : std::uint8_t { none, auth, auth_int };

// ---- the two headers, as views -----------------------------------------------------------------

/// The value of an Authorization or Proxy-Authorization header. Lifetime: views into that value.
///
/// The first five are as written, with their quotes and escapes: read them with UnquotedOctets,
/// `unquote` or `unquote_into`. The others are without quotes. Parameters that are absent are
/// empty.
struct DigestCredentials {
  std::string_view scheme;
  std::string_view username;
  std::string_view realm;
  std::string_view nonce;
  std::string_view uri;
  std::string_view cnonce;
  std::string_view response;
  std::string_view qop_text;
  std::string_view nonce_count_text;  ///< eight hexadecimal digits, as the hash wants them
  std::string_view algorithm_text;
  std::optional<DigestAlgorithm> algorithm;  ///< MD5 where none is named; nothing if unknown
  std::uint32_t nonce_count = 0;
  DigestQop qop = DigestQop::none;
  bool is_digest = false;  ///< where false, nothing but `scheme` is filled in
};

/// One challenge of a WWW-Authenticate or Proxy-Authenticate header. Lifetime and form as above:
/// realm, nonce and opaque are as written, the others without quotes.
struct DigestChallenge {
  std::string_view scheme;
  std::string_view realm;
  std::string_view nonce;
  std::string_view opaque;
  std::string_view qop_text;  ///< the list as sent, "auth,auth-int"; empty where none is sent
  std::string_view algorithm_text;
  std::string_view stale_text;
  std::optional<DigestAlgorithm> algorithm;  ///< MD5 where none is named; nothing if unknown
  bool offers_auth = false;
  bool offers_auth_int = false;
  bool stale = false;      ///< the nonce was too old, the password was right: try again
  bool is_digest = false;  ///< where false, nothing but `scheme` is filled in

  /// Whether we can answer it: a digest, of an algorithm and a qop that we speak.
  constexpr bool is_supported() const {
    return is_digest && algorithm && (qop_text.empty() || offers_auth || offers_auth_int);
  }
};

namespace detail {

/// Where the value of a parameter is kept, and in which form.
template <class Header>
struct DigestField {
  std::string_view name;
  std::string_view Header::*member;
  bool keeps_quotes;
};

inline constexpr std::array<DigestField<DigestCredentials>, 9> credentials_fields{{
    {"username", &DigestCredentials::username, true},
    {"realm", &DigestCredentials::realm, true},
    {"nonce", &DigestCredentials::nonce, true},
    {"uri", &DigestCredentials::uri, true},
    {"cnonce", &DigestCredentials::cnonce, true},
    {"response", &DigestCredentials::response, false},
    {"qop", &DigestCredentials::qop_text, false},
    {"nc", &DigestCredentials::nonce_count_text, false},
    {"algorithm", &DigestCredentials::algorithm_text, false},
}};

inline constexpr std::array<DigestField<DigestChallenge>, 6> challenge_fields{{
    {"realm", &DigestChallenge::realm, true},
    {"nonce", &DigestChallenge::nonce, true},
    {"opaque", &DigestChallenge::opaque, true},
    {"qop", &DigestChallenge::qop_text, false},
    {"algorithm", &DigestChallenge::algorithm_text, false},
    {"stale", &DigestChallenge::stale_text, false},
}};

inline Error digest_error(std::string_view whole, std::string_view part) {
  return {ErrorCode::bad_credentials, static_cast<std::int32_t>(part.data() - whole.data())};
}

/// A quoted string, or octets that need no quotes. RFC 3261 25.1 says for each parameter which of
/// the two it wants; clients differ, and nothing depends on it.
inline bool is_digest_value(std::string_view value) {
  if (is_quoted(value)) return true;
  for (char c : value) {
    if (static_cast<unsigned char>(c) <= ' ' || c == '"' || c == '\x7f') return false;
  }
  return !value.empty();
}

/// Reads scheme and parameters into a header's views. Parameters we do not know are skipped
/// (RFC 3261 25.1 auth-param); one we know must not come twice, because two readers could then
/// take different ones for true.
template <class Header, std::size_t count>
Error read_digest_header(std::string_view whole,
                         const std::array<DigestField<Header>, count>& fields, Header& header) {
  const std::string_view value = trim(whole);
  std::size_t scheme_end = 0;
  while (scheme_end < value.size() && !is_blank(value[scheme_end])) ++scheme_end;
  header.scheme = value.substr(0, scheme_end);
  if (!is_token(header.scheme)) return digest_error(whole, value);
  header.is_digest = equal_ignoring_case(header.scheme, "Digest");
  if (!header.is_digest) return {};

  for (const Parameter& parameter : Parameters(value.substr(scheme_end), ',')) {
    if (parameter.name.empty() && !parameter.has_value) continue;
    if (!is_token(parameter.name)) return digest_error(whole, parameter.name);
    if (!is_digest_value(parameter.value)) {
      return digest_error(whole, parameter.has_value ? parameter.value : parameter.name);
    }
    for (const DigestField<Header>& field : fields) {
      if (!equal_ignoring_case(parameter.name, field.name)) continue;
      std::string_view& member = header.*field.member;
      if (!member.empty()) return digest_error(whole, parameter.name);
      const bool drop_quotes = !field.keeps_quotes && is_quoted(parameter.value);
      member =
          drop_quotes ? parameter.value.substr(1, parameter.value.size() - 2) : parameter.value;
    }
  }
  return {};
}

/// RFC 7616 3.3: an absent algorithm means MD5.
inline std::optional<DigestAlgorithm> algorithm_or_default(std::string_view name) {
  return name.empty() ? DigestAlgorithm{} : parse_digest_algorithm(name);
}

}  // namespace detail

/// Reads the value of an Authorization or Proxy-Authorization header. A scheme other than Digest
/// and an unknown algorithm are no errors; see `is_digest` and `algorithm`.
/// Error: `bad_credentials` at the parameter that is malformed, unknown in its value or there
/// twice; at the end of the value where one is missing.
inline Result<DigestCredentials> parse_credentials(std::string_view value) {
  DigestCredentials credentials;
  if (Error error = detail::read_digest_header(value, detail::credentials_fields, credentials)) {
    return error;
  }
  if (!credentials.is_digest) return credentials;

  const Error missing{ErrorCode::bad_credentials, static_cast<std::int32_t>(value.size())};
  for (std::string_view required : {credentials.username, credentials.realm, credentials.nonce,
                                    credentials.uri, credentials.response}) {
    if (required.empty()) return missing;
  }
  credentials.algorithm = detail::algorithm_or_default(credentials.algorithm_text);
  const bool is_session = credentials.algorithm && credentials.algorithm->session;
  if (is_session && credentials.cnonce.empty()) return missing;
  // A nonce-count without qop means nothing (RFC 2617 3.2.2); some clients send it all the same.
  if (credentials.qop_text.empty()) return credentials;

  if (equal_ignoring_case(credentials.qop_text, "auth")) {
    credentials.qop = DigestQop::auth;
  } else if (equal_ignoring_case(credentials.qop_text, "auth-int")) {
    credentials.qop = DigestQop::auth_int;
  } else {
    return detail::digest_error(value, credentials.qop_text);
  }
  if (credentials.cnonce.empty() || credentials.nonce_count_text.empty()) return missing;
  const std::optional<std::uint64_t> count = parse_hex(credentials.nonce_count_text);
  if (!count || credentials.nonce_count_text.size() != 8) {
    return detail::digest_error(value, credentials.nonce_count_text);
  }
  credentials.nonce_count = static_cast<std::uint32_t>(*count);
  return credentials;
}

/// Reads one challenge, such as DigestChallenges yields. A scheme other than Digest and an unknown
/// algorithm or qop are no errors; see `is_supported`.
/// Error: `bad_credentials`, as for `parse_credentials`.
inline Result<DigestChallenge> parse_challenge(std::string_view value) {
  DigestChallenge challenge;
  if (Error error = detail::read_digest_header(value, detail::challenge_fields, challenge)) {
    return error;
  }
  if (!challenge.is_digest) return challenge;
  if (challenge.realm.empty() || challenge.nonce.empty()) {
    return {ErrorCode::bad_credentials, static_cast<std::int32_t>(value.size())};
  }
  challenge.algorithm = detail::algorithm_or_default(challenge.algorithm_text);
  challenge.stale = equal_ignoring_case(challenge.stale_text, "true");
  for (const Parameter& option : Parameters(challenge.qop_text, ',')) {
    if (equal_ignoring_case(option.name, "auth")) challenge.offers_auth = true;
    if (equal_ignoring_case(option.name, "auth-int")) challenge.offers_auth_int = true;
  }
  return challenge;
}

/// Cuts a header value into its challenges. RFC 3261 20.44 gives each a header of its own, HTTP
/// lets several stand in one, separated by the same comma that separates parameters; a few servers
/// do that. A word that no '=' follows begins a new challenge.
/// Lifetime: views into the value.
class DigestChallenges {
 public:
  explicit DigestChallenges(std::string_view value) : value_(trim(value)) {}

  class Iterator {
   public:
    explicit Iterator(std::string_view rest) : rest_(rest) { read(); }
    std::string_view operator*() const { return current_; }
    Iterator& operator++() {
      read();
      return *this;
    }
    bool operator!=(const Iterator& other) const { return at_end_ != other.at_end_; }

   private:
    void read() {
      at_end_ = rest_.empty();
      std::size_t comma = find_outside_quotes(rest_, ',');
      while (comma < rest_.size() && !begins_challenge(rest_.substr(comma + 1))) {
        comma = find_outside_quotes(rest_, ',', comma + 1);
      }
      current_ = trim(rest_.substr(0, comma));
      rest_ = comma < rest_.size() ? rest_.substr(comma + 1) : std::string_view();
    }

    static bool begins_challenge(std::string_view text) {
      text = trim(text);
      std::size_t end = 0;
      while (end < text.size() && is_char(text[end], char_token)) ++end;
      if (end == 0) return false;
      const std::string_view after = text.substr(end);
      if (after.empty() || after.front() == ',') return true;
      return is_blank(after.front()) && trim(after).front() != '=';
    }

    std::string_view rest_;
    std::string_view current_;
    bool at_end_ = false;
  };

  Iterator begin() const { return Iterator(value_); }
  Iterator end() const { return Iterator(std::string_view()); }

 private:
  std::string_view value_;
};

/// The octets that a quoted or unquoted value stands for, without allocating: a view into the value
/// itself where nothing is escaped, else into `room`. Nothing where `room` is too small.
inline std::optional<std::string_view> unquote_into(std::string_view value, char* room,
                                                    std::size_t room_size) {
  if (!is_quoted(value)) return value;
  const std::string_view inside = value.substr(1, value.size() - 2);
  if (inside.find('\\') == std::string_view::npos) return inside;
  std::size_t used = 0;
  for (UnquotedOctets octets(value); !octets.done();) {
    if (used == room_size) return std::nullopt;
    room[used++] = octets.next();
  }
  return std::string_view(room, used);
}

// ---- the computation ---------------------------------------------------------------------------

/// A digest as lower-case hexadecimal digits, 32 or 64 of them: HA1, HA2 or a response.
class DigestHex {
 public:
  constexpr DigestHex() = default;
  template <std::size_t size>
  explicit DigestHex(const std::array<std::uint8_t, size>& digest) : size_(2 * size) {
    static_assert(2 * size <= sizeof(digits_), "no digest is longer than 256 bits");
    write_hex(digest.data(), size, digits_.data());
  }
  /// Lifetime: as long as this object lives and is not assigned to.
  std::string_view view() const { return {digits_.data(), size_}; }

 private:
  std::array<char, 64> digits_{};
  std::size_t size_ = 0;
};

namespace detail {

/// A piece of what is hashed. `as_written` resolves quotes and escapes on the way: RFC 7616 3.4
/// hashes unq(username), not the quoted string.
struct DigestPiece {
  std::string_view text;
  bool as_written = false;
};

template <class Hash>
void update_as_written(Hash& hash, std::string_view value) {
  if (!is_quoted(value)) return hash.update(value);
  const std::string_view inside = value.substr(1, value.size() - 2);
  if (inside.find('\\') == std::string_view::npos) return hash.update(inside);
  for (UnquotedOctets octets(value); !octets.done();) {
    const char octet = octets.next();
    hash.update(std::string_view(&octet, 1));
  }
}

/// H(piece ":" piece ":" ...), the only form that digest authentication knows.
template <class Hash>
DigestHex hash_joined(std::initializer_list<DigestPiece> pieces) {
  Hash hash;
  bool is_first = true;
  for (const DigestPiece& piece : pieces) {
    if (!is_first) hash.update(":");
    is_first = false;
    if (piece.as_written) {
      update_as_written(hash, piece.text);
    } else {
      hash.update(piece.text);
    }
  }
  return DigestHex(hash.finish());
}

inline DigestHex hash_joined(DigestHash hash, std::initializer_list<DigestPiece> pieces) {
  switch (hash) {
    case DigestHash::md5: return hash_joined<Md5>(pieces);
    case DigestHash::sha_256: return hash_joined<Sha256>(pieces);
    case DigestHash::sha_512_256: return hash_joined<Sha512_256>(pieces);
  }
  return {};
}

inline DigestHex digest_ha2(DigestHash hash, std::string_view method, DigestPiece uri,
                            DigestQop qop, std::string_view body) {
  if (qop != DigestQop::auth_int) return hash_joined(hash, {{method}, uri});
  // The hash of an absent body is the hash of nothing (RFC 3261 22.4 item 7).
  const DigestHex body_hash = hash_joined(hash, {{body}});
  return hash_joined(hash, {{method}, uri, {body_hash.view()}});
}

}  // namespace detail

/// H(username:realm:password), the form in which a server may keep a password. It is worth as much
/// as the password to whoever steals it, in this one realm.
inline DigestHex digest_ha1(DigestHash hash, std::string_view username, std::string_view realm,
                            std::string_view password) {
  return detail::hash_joined(hash, {{username}, {realm}, {password}});
}

/// H(method:uri), for auth-int H(method:uri:H(body)) (RFC 7616 3.4.3).
inline DigestHex digest_ha2(DigestHash hash, std::string_view method, std::string_view uri,
                            DigestQop qop = DigestQop::none, std::string_view body = {}) {
  return detail::digest_ha2(hash, method, {uri}, qop, body);
}

/// What a server knows of a user: the password, or its HA1, or that there is no such user.
/// Lifetime: views what it was made of.
struct DigestSecret {
  enum class Kind : std::uint8_t { password, ha1, unknown_user };

  static DigestSecret password(std::string_view password) { return {password, Kind::password}; }
  /// HA1 as `digest_ha1` yields it, lower-case digits; good for algorithms of that hash only.
  static DigestSecret ha1(DigestHash hash, std::string_view digits) {
    return {digits, Kind::ha1, hash};
  }
  /// No such user: nothing is ever accepted, but everything is computed as for any user, so that
  /// the time an answer takes does not tell which names exist.
  static DigestSecret unknown_user() { return {{}, Kind::unknown_user}; }

  /// Whether a response of that hash can be right at all.
  constexpr bool is_usable_for(DigestHash hash) const {
    return kind == Kind::password || (kind == Kind::ha1 && ha1_hash == hash);
  }

  std::string_view text;
  Kind kind = Kind::unknown_user;
  DigestHash ha1_hash = DigestHash::md5;
};

/// The response that these credentials should carry (RFC 7616 3.4.1); their `response` is not
/// looked at. Empty for an unknown algorithm. Allocates nothing.
///
/// -sess: the RFC computes HA1 once per session, with the first cnonce, and a server that keeps
/// nothing cannot. So cnonce must stay the same as long as the nonce does, which is what clients
/// with -sess do.
inline DigestHex digest_response(const DigestCredentials& credentials, const DigestSecret& secret,
                                 std::string_view method, std::string_view body) {
  if (!credentials.algorithm) return {};
  const DigestHash hash = credentials.algorithm->hash;
  const detail::DigestPiece nonce{credentials.nonce, true};
  const detail::DigestPiece cnonce{credentials.cnonce, true};

  // Computed also where it is stored: the time tells nothing of how a user is kept.
  const DigestHex computed_ha1 = detail::hash_joined(
      hash, {{credentials.username, true}, {credentials.realm, true}, {secret.text}});
  std::string_view ha1 = secret.kind == DigestSecret::Kind::ha1 ? secret.text : computed_ha1.view();
  DigestHex session_ha1;
  if (credentials.algorithm->session) {
    session_ha1 = detail::hash_joined(hash, {{ha1}, nonce, cnonce});
    ha1 = session_ha1.view();
  }

  const DigestHex ha2 =
      detail::digest_ha2(hash, method, {credentials.uri, true}, credentials.qop, body);
  if (credentials.qop == DigestQop::none) {
    return detail::hash_joined(hash, {{ha1}, nonce, {ha2.view()}});
  }
  return detail::hash_joined(
      hash,
      {{ha1}, nonce, {credentials.nonce_count_text}, cnonce, {credentials.qop_text}, {ha2.view()}});
}

// ---- the client --------------------------------------------------------------------------------

/// One client's answers to one server's challenges: keeps the nonce and counts its uses, so that
/// later requests may carry credentials at once, without being challenged again.
///
/// A 401 or 407 to a request that carried credentials means a wrong password, unless the challenge
/// says `stale`: do not answer it twice (RFC 3261 22.1).
class DigestClient {
 public:
  /// The place of the challenge to answer: of the strongest hash we speak, the first of equals;
  /// nothing where we speak none. RFC 8760 2.4 says the topmost that is supported, local policy
  /// permitting; ours is that a server's order may not weaken what protects the password.
  static std::optional<std::size_t> choose(const DigestChallenge* challenges, std::size_t count) {
    std::optional<std::size_t> best;
    for (std::size_t i = 0; i < count; ++i) {
      if (!challenges[i].is_supported()) continue;
      if (!best || challenges[*best].algorithm->hash < challenges[i].algorithm->hash) best = i;
    }
    return best;
  }

  /// Takes over a challenge; `cnonce` is the client's own random token (RFC 7616 3.4), used as long
  /// as the nonce is. The same nonce once more keeps its count and its cnonce.
  /// Errors: `bad_argument` for a challenge that is not supported; `forbidden_octet`.
  Error take(const DigestChallenge& challenge, std::string_view cnonce) {
    if (!challenge.is_supported()) return ErrorCode::bad_argument;
    for (std::string_view value : {challenge.realm, challenge.nonce, challenge.opaque, cnonce}) {
      if (has_forbidden_octet(value)) return ErrorCode::forbidden_octet;
    }
    std::string nonce = quote(unquote(challenge.nonce));
    if (nonce != nonce_) {
      nonce_count_ = 0;
      cnonce_ = quote(cnonce);
    }
    nonce_ = std::move(nonce);
    realm_ = quote(unquote(challenge.realm));
    opaque_ = challenge.opaque.empty() ? std::string() : quote(unquote(challenge.opaque));
    algorithm_ = *challenge.algorithm;
    names_algorithm_ = !challenge.algorithm_text.empty();
    // auth before auth-int: a proxy may touch the body on the way.
    qop_ = challenge.offers_auth       ? DigestQop::auth
           : challenge.offers_auth_int ? DigestQop::auth_int
                                       : DigestQop::none;
    return {};
  }

  /// Takes over the nonce that a server gives with its answer, instead of a challenge, for the next
  /// request (RFC 7616 3.5): the value of nextnonce, as written. Its count begins anew. Errors:
  /// `bad_argument` before a challenge was taken, and for no nonce; `forbidden_octet`.
  Error take_next_nonce(std::string_view next_nonce, std::string_view cnonce) {
    if (!is_ready() || next_nonce.empty()) return ErrorCode::bad_argument;
    if (has_forbidden_octet(next_nonce) || has_forbidden_octet(cnonce)) {
      return ErrorCode::forbidden_octet;
    }
    std::string nonce = quote(unquote(next_nonce));
    if (nonce == nonce_) return {};
    nonce_ = std::move(nonce);
    nonce_count_ = 0;
    cnonce_ = quote(cnonce);
    return {};
  }

  /// Whether a challenge was taken.
  bool is_ready() const { return !nonce_.empty(); }

  /// The value of the Authorization or Proxy-Authorization header for one request; each call counts
  /// as one use of the nonce. `uri` is the Request-URI as it is sent, `username` and `password` are
  /// plain text.
  /// Errors: `bad_argument` before a challenge was taken; `forbidden_octet`.
  Result<std::string> authorize(std::string_view username, std::string_view password,
                                std::string_view method, std::string_view uri,
                                std::string_view body) {
    if (!is_ready()) return ErrorCode::bad_argument;
    if (has_forbidden_octet(username) || has_forbidden_octet(uri)) {
      return ErrorCode::forbidden_octet;
    }
    std::array<char, 16> count;
    write_hex(++nonce_count_, count.data());
    const std::string quoted_username = quote(username);
    const std::string quoted_uri = quote(uri);

    DigestCredentials credentials;
    credentials.username = quoted_username;
    credentials.realm = realm_;
    credentials.nonce = nonce_;
    credentials.uri = quoted_uri;
    credentials.algorithm = algorithm_;
    credentials.qop = qop_;
    credentials.qop_text = qop_ == DigestQop::auth_int ? "auth-int" : "auth";
    credentials.nonce_count_text = std::string_view(count.data() + 8, 8);
    credentials.cnonce = cnonce_;
    const DigestHex response =
        digest_response(credentials, DigestSecret::password(password), method, body);

    std::string value = "Digest username=";
    value.append(quoted_username).append(", realm=").append(realm_);
    value.append(", nonce=").append(nonce_).append(", uri=").append(quoted_uri);
    value.append(", response=\"").append(response.view()).append("\"");
    if (names_algorithm_) value.append(", algorithm=").append(algorithm_.name());
    if (qop_ != DigestQop::none) {
      value.append(", qop=").append(credentials.qop_text);
      value.append(", nc=").append(credentials.nonce_count_text);
    }
    if (qop_ != DigestQop::none || algorithm_.session) value.append(", cnonce=").append(cnonce_);
    if (!opaque_.empty()) value.append(", opaque=").append(opaque_);
    return value;
  }

 private:
  static bool has_forbidden_octet(std::string_view text) {
    return text.find_first_of(std::string_view("\r\n\0", 3)) != std::string_view::npos;
  }

  // All quoted, ready to be written.
  std::string realm_;
  std::string nonce_;
  std::string opaque_;
  std::string cnonce_;
  std::uint64_t nonce_count_ = 0;
  DigestAlgorithm algorithm_;
  DigestQop qop_ = DigestQop::none;
  bool names_algorithm_ = false;
};

// ---- the server --------------------------------------------------------------------------------

/// A nonce as text: 16 digits of time in milliseconds, 16 of a serial number, 32 of the seal over
/// both and the client's address. One serves all the challenges of one response.
struct DigestNonce {
  std::array<char, 64> text{};
  std::string_view view() const { return {text.data(), text.size()}; }
};

namespace detail {

/// Which nonce-counts have been used with which nonces, in a fixed number of octets.
///
/// Only nonces that a right password was used with take a place, so nobody without a password can
/// fill it. A nonce's serial number tells its row; a full row forgets its oldest nonce and from
/// then on refuses every nonce that is older still and not remembered: it cannot know any more
/// whether that was used. So a table that is too small makes nonces live shorter, and never lets a
/// replay through.
class NonceMemory {
 public:
  explicit NonceMemory(std::size_t max_nonces)
      : row_count_(std::max<std::size_t>(1, (max_nonces + row_size - 1) / row_size)),
        rows_(static_cast<Row*>(std::calloc(row_count_, sizeof(Row)))) {
    // What `new` would do without exceptions. calloc, because its zeros of the operating system
    // take no memory until they are written to: an idle server stays small.
    if (!rows_) std::abort();
  }

  /// Notes that `nonce_count` was used with the nonce of that serial number, which is never 0.
  /// Returns false where it was used before, or where that cannot be told.
  bool use(std::uint64_t serial, std::uint32_t nonce_count) {
    if (Entry* entry = find_or_add(serial)) return mark(*entry, nonce_count);
    return false;
  }

  /// Uses the nonce up, in all its counts. Returns false where it was used before in any.
  bool use_up(std::uint64_t serial) {
    Entry* entry = find_or_add(serial);
    if (!entry || entry->window != 0) return false;
    entry->highest = ~std::uint32_t{0};
    entry->window = ~std::uint64_t{0};
    return true;
  }

 private:
  struct Entry {
    std::uint64_t serial;  ///< 0 where the place is free
    std::uint64_t window;  ///< bit n: the count `highest` - n was used
    std::uint32_t highest;
  };
  static constexpr std::size_t row_size = 8;
  struct Row {
    std::array<Entry, row_size> entries;
    std::uint64_t forgotten;  ///< nonces up to this serial are refused where not remembered
  };
  struct Free {
    void operator()(Row* rows) const { std::free(rows); }
  };

  Entry* find_or_add(std::uint64_t serial) {
    Row& row = rows_.get()[serial % row_count_];
    Entry* oldest = row.entries.data();
    for (Entry& entry : row.entries) {
      if (entry.serial == serial) return &entry;
      if (entry.serial < oldest->serial) oldest = &entry;
    }
    if (serial <= row.forgotten) return nullptr;
    row.forgotten = std::max(row.forgotten, oldest->serial);
    *oldest = Entry{serial, 0, 0};
    return oldest;
  }

  /// A window of 64 counts, as IPsec has it (RFC 4303 3.4.3): datagrams may overtake each other.
  static bool mark(Entry& entry, std::uint32_t count) {
    if (entry.window == 0 || count > entry.highest) {
      const std::uint32_t ahead = entry.window == 0 ? 64 : count - entry.highest;
      entry.window = (ahead < 64 ? entry.window << ahead : 0) | 1;
      entry.highest = count;
      return true;
    }
    const std::uint32_t behind = entry.highest - count;
    if (behind >= 64 || (entry.window >> behind & 1) != 0) return false;
    entry.window |= std::uint64_t{1} << behind;
    return true;
  }

  std::size_t row_count_;
  std::unique_ptr<Row, Free> rows_;
};

/// Whether the digest-uri names what the request is for. RFC 2617 3.2.2.5 wants the same resource,
/// RFC 3261 22.4 item 6 lets it differ. Ours: the same user at the same host. Ports, parameters and
/// headers do not count, for clients and proxies add and drop them; a digest-uri without user
/// passes for all users of its host (sipp signs so).
inline bool names_same_target(std::string_view digest_uri, std::string_view request_uri) {
  if (digest_uri == request_uri) return true;
  const Result<UriView> ours = parse_uri(request_uri);
  const Result<UriView> theirs = parse_uri(digest_uri);
  if (!ours || !theirs) return false;
  if (equivalent(*ours, *theirs)) return true;
  if (ours->scheme != theirs->scheme) return false;
  if (ours->scheme != UriScheme::sip && ours->scheme != UriScheme::sips) return false;
  if (!equal_ignoring_case(ours->host, theirs->host)) return false;
  return !theirs->has_user || equal_with_escapes(ours->user, theirs->user, false);
}

inline bool equal_unquoted(std::string_view as_written, std::string_view plain) {
  UnquotedOctets octets(as_written);
  for (char c : plain) {
    if (octets.done() || octets.next() != c) return false;
  }
  return octets.done();
}

}  // namespace detail

struct DigestOptions {
  /// Whom the password is for; shown to the user. CR, LF and NUL are left out.
  std::string realm = "sipmsg";
  /// One challenge for each, in this order: best first (RFC 8760 2.3).
  std::vector<DigestAlgorithm> algorithms = {DigestAlgorithm{}};
  std::uint64_t nonce_lifetime_s = 300;
  /// How many used nonces to remember, 25 octets each. The effect of too few: under load nonces
  /// live shorter than their lifetime, and clients come once more for a new one.
  std::size_t max_remembered_nonces = 16384;
  /// Refuse credentials whose uri parameter names another user or host than the Request-URI.
  bool check_uri = true;
};

/// What became of credentials. All but `accepted` are answered with challenges, with stale=true
/// only for `stale`; `wrong_uri` may also be answered 400 (RFC 2617 3.2.2.5).
enum class DigestVerdict : std::uint8_t {
  accepted,
  stale,            ///< the password is right, the nonce too old, used before, or not from us
  wrong_response,   ///< wrong password, or no such user
  wrong_scheme,     ///< not Digest
  wrong_realm,      ///< for somebody else; a request may carry several credentials (RFC 3261 22.3)
  wrong_algorithm,  ///< not one that we offer
  wrong_uri,        ///< all is right, but it was made for another Request-URI
};

/// The request that credentials come with. `client_address`: the octets of the IP address it came
/// from, 4 or 16, without port, since the port may change when a NAT forgets.
struct DigestRequest {
  std::string_view method;
  std::string_view uri;
  std::string_view body;
  std::string_view client_address;
};

/// The server's side: writes challenges and judges credentials.
///
/// Replay is refused for every nonce, so that what was overheard is worth nothing:
/// - With qop, each nonce-count is good once; counts up to 63 below the highest may come late.
/// - Without qop (RFC 2069 clients) there is no count, so a nonce is good for one request only. A
///   client that uses it again gets stale=true and a fresh one, and such clients answer that, as
///   they must: with servers without qop it is how nonces end. It costs them one more round trip
///   for a request that came with an old nonce, and no login.
/// A datagram that was merely sent twice does not get here: the transaction layer absorbs it.
///
/// Clock: `now_ms` need only be one that does not go backwards.
class DigestAuthenticator {
 public:
  /// `secret`: at least 16 random octets, fresh for each object. With the secret of an earlier one
  /// that one's nonces could be replayed, for which of them were used is not known here.
  DigestAuthenticator(DigestOptions options, std::string_view secret)
      : options_(std::move(options)), seal_(secret), memory_(options_.max_remembered_nonces) {
    std::string& realm = options_.realm;
    const auto is_forbidden = [](char c) { return c == '\r' || c == '\n' || c == '\0'; };
    realm.erase(std::remove_if(realm.begin(), realm.end(), is_forbidden), realm.end());
    quoted_realm_ = quote(realm);
  }

  const DigestOptions& options() const { return options_; }

  /// A new nonce for the client at that address, never the same twice.
  DigestNonce make_nonce(std::string_view client_address, std::uint64_t now_ms) {
    DigestNonce nonce;
    char* const serial = write_hex(now_ms, nonce.text.data());
    char* const seal = write_hex(++last_serial_, serial);
    const Sha256::Digest digest = sealed(nonce.view().substr(0, stamp_size), client_address);
    write_hex(digest.data(), seal_size / 2, seal);
    return nonce;
  }

  /// How many challenges go into one 401 or 407, each in a header of its own.
  std::size_t challenge_count() const { return options_.algorithms.size(); }

  /// No challenge is longer than this, in octets.
  std::size_t max_challenge_size() const {
    return quoted_realm_.size() + sizeof(DigestNonce::text) + 96;
  }

  /// Writes the value of challenge `index` to `out`, such as
  /// `Digest realm="Yate", nonce="...", qop="auth", algorithm=MD5, stale=true`.
  /// Returns its size; 0, with nothing of use written, where it is larger than `room`.
  std::size_t write_challenge(std::size_t index, const DigestNonce& nonce, bool stale, char* out,
                              std::size_t room) const {
    const std::string_view pieces[] = {"Digest realm=",
                                       quoted_realm_,
                                       ", nonce=\"",
                                       nonce.view(),
                                       "\", qop=\"auth\", algorithm=",
                                       options_.algorithms[index].name(),
                                       stale ? ", stale=true" : ""};
    std::size_t size = 0;
    for (std::string_view piece : pieces) {
      if (piece.size() > room - size) return 0;
      size += piece.copy(out + size, piece.size());
    }
    return size;
  }

  /// Judges credentials; on `accepted` their nonce-count is used up. Allocates nothing.
  ///
  /// The response is judged before the nonce: only who knows the password hears whether a nonce was
  /// stale (RFC 7616 3.3), and only a right response takes a place in memory.
  DigestVerdict check(const DigestCredentials& credentials, const DigestRequest& request,
                      const DigestSecret& secret, std::uint64_t now_ms) {
    if (!credentials.is_digest) return DigestVerdict::wrong_scheme;
    if (!detail::equal_unquoted(credentials.realm, options_.realm)) {
      return DigestVerdict::wrong_realm;
    }
    if (!is_offered(credentials.algorithm)) return DigestVerdict::wrong_algorithm;

    const DigestHex expected = digest_response(credentials, secret, request.method, request.body);
    const bool is_right = equal_constant_time(expected.view(), credentials.response);
    if (!is_right || !secret.is_usable_for(credentials.algorithm->hash)) {
      return DigestVerdict::wrong_response;
    }
    if (!targets(credentials, request)) return DigestVerdict::wrong_uri;

    const std::uint64_t serial = valid_serial(credentials.nonce, request.client_address, now_ms);
    if (serial == 0) return DigestVerdict::stale;
    const bool is_first_use = credentials.qop == DigestQop::none
                                  ? memory_.use_up(serial)
                                  : memory_.use(serial, credentials.nonce_count);
    return is_first_use ? DigestVerdict::accepted : DigestVerdict::stale;
  }

 private:
  static constexpr std::size_t stamp_size = 32;  // time and serial number, in digits
  static constexpr std::size_t seal_size = 32;   // 128 bits, in digits

  Sha256::Digest sealed(std::string_view stamp, std::string_view client_address) const {
    HmacSha256 hmac = seal_;
    hmac.update(stamp);
    hmac.update(client_address);
    return hmac.finish();
  }

  bool is_offered(const std::optional<DigestAlgorithm>& algorithm) const {
    if (!algorithm) return false;
    for (const DigestAlgorithm& offered : options_.algorithms) {
      if (offered == *algorithm) return true;
    }
    return false;
  }

  bool targets(const DigestCredentials& credentials, const DigestRequest& request) const {
    if (!options_.check_uri) return true;
    // A URI holds no quote and no backslash, so one with escapes is none.
    const auto uri = unquote_into(credentials.uri, nullptr, 0);
    return uri && detail::names_same_target(*uri, request.uri);
  }

  /// The serial number of a nonce that we made for that address and that is not too old; else 0.
  std::uint64_t valid_serial(std::string_view as_written, std::string_view client_address,
                             std::uint64_t now_ms) const {
    const std::optional<std::string_view> nonce = unquote_into(as_written, nullptr, 0);
    if (!nonce || nonce->size() != sizeof(DigestNonce::text)) return 0;

    const Sha256::Digest digest = sealed(nonce->substr(0, stamp_size), client_address);
    std::array<char, seal_size> seal;
    write_hex(digest.data(), seal_size / 2, seal.data());
    const std::string_view expected(seal.data(), seal.size());
    if (!equal_constant_time(expected, nonce->substr(stamp_size))) return 0;

    const std::uint64_t issued_ms = parse_hex(nonce->substr(0, 16)).value_or(0);
    const std::uint64_t serial = parse_hex(nonce->substr(16, 16)).value_or(0);
    const bool is_fresh =
        issued_ms <= now_ms && (now_ms - issued_ms) / 1000 < options_.nonce_lifetime_s;
    return is_fresh ? serial : 0;
  }

  DigestOptions options_;
  std::string quoted_realm_;
  HmacSha256 seal_;  ///< keyed and fresh; copied for each use
  detail::NonceMemory memory_;
  std::uint64_t last_serial_ = 0;
};

}  // namespace sipmsg
