// Reads the input as credentials, as challenges, and judges and answers them.
#include "fuzz.hpp"

using namespace sipmsg;
using fuzz::require;
using fuzz::touch;

namespace {

void check_credentials(std::string_view text) {
  const auto credentials = parse_credentials(text);
  if (!credentials) {
    require(static_cast<std::size_t>(credentials.error().place) <= text.size(),
            "a mistake is within the text");
    return;
  }
  for (std::string_view part :
       {credentials->scheme, credentials->username, credentials->realm, credentials->nonce,
        credentials->uri, credentials->cnonce, credentials->response, credentials->qop_text,
        credentials->nonce_count_text, credentials->algorithm_text}) {
    touch(part);
    touch(unquote(part));
  }
  static DigestAuthenticator server({}, "0123456789abcdef");
  const DigestVerdict verdict =
      server.check(*credentials, {"MESSAGE", "sip:bob@example.org", "body", "\x7f\0\0\1"},
                   DigestSecret::password("secret"), 1000);
  require(verdict != DigestVerdict::accepted, "nobody guesses a nonce");
}

void check_challenge(std::string_view text) {
  const auto challenge = parse_challenge(text);
  if (!challenge) return;
  for (std::string_view part :
       {challenge->scheme, challenge->realm, challenge->nonce, challenge->opaque,
        challenge->qop_text, challenge->algorithm_text, challenge->stale_text}) {
    touch(part);
  }
  DigestClient client;
  if (client.take(*challenge, "cnonce")) return;
  const auto value = client.authorize("alice", "secret", "MESSAGE", "sip:bob@example.org", "body");
  require(value.ok(), "a challenge that was taken can be answered");
  const auto credentials = parse_credentials(*value);
  require(credentials.ok() && credentials->is_digest, "our own credentials can be read");
  require(unquote(credentials->nonce) == unquote(challenge->nonce), "the nonce comes back");
  const DigestHex response =
      digest_response(*credentials, DigestSecret::password("secret"), "MESSAGE", "body");
  require(response.view() == credentials->response, "the response is the one we expect");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text = fuzz::as_text(data, size);
  check_credentials(text);
  check_challenge(text);
  std::size_t count = 0;
  for (std::string_view challenge : DigestChallenges(text)) {
    touch(challenge);
    check_challenge(challenge);
    require(++count <= size, "challenges come to an end");
  }
  // Credentials stand in messages: the seeds are messages.
  MessageView message;
  if (!message.parse(text)) {
    for (HeaderId id : {HeaderId::authorization, HeaderId::proxy_authorization}) {
      if (message.has(id)) check_credentials(message.header(id));
    }
    for (HeaderId id : {HeaderId::www_authenticate, HeaderId::proxy_authenticate}) {
      for (std::size_t i = message.find(id); i != message.header_count();
           i = message.find_next(i)) {
        check_challenge(message.field(i).value);
      }
    }
  }
  return 0;
}
