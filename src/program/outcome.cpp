#include "outcome.hpp"

#include "screen_text.hpp"

namespace program {

namespace {

struct Meaning {
  int code;
  const char* text;
};

/// The words are those of somebody who chats: what it says about the message, and what to do.
constexpr Meaning meanings[] = {
    {200, ""},
    {202, "the server keeps it, or passes it on later"},
    {400, "the server cannot read the request"},
    {401, "the password is missing or wrong"},
    {403, "not allowed: the sender's address is not the own one, or the domain is not served"},
    {404, "there is no such user"},
    {405, "the recipient is offline"},
    {407, "the password is missing or wrong"},
    {408, "the recipient did not answer in time"},
    {410, "the recipient is no longer there"},
    {413, "the message is too large"},
    {415, "the recipient does not take this type of content"},
    {416, "this kind of address is not served"},
    {420, "the server wants an extension that is not spoken here"},
    {421, "the server wants an extension that is not spoken here"},
    {423, "the registration would be too short"},
    {429, "the server wants to know who refers to it"},
    {440, "the message would be copied to too many"},
    {480, "the recipient does not answer at the moment"},
    {482, "the message has been there before"},
    {483, "the message went through too many servers"},
    {484, "the address is incomplete"},
    {485, "the address may mean several recipients"},
    {486, "the recipient is busy"},
    {488, "the recipient cannot take this message"},
    {500, "the server has a fault"},
    {501, "the server does not serve messages"},
    {502, "a server on the way got no proper answer"},
    {503, "the server is overloaded or under maintenance"},
    {504, "a server on the way got no answer in time"},
    {505, "the server does not speak this version of SIP"},
    {513, "the message is too large"},
    {600, "the recipient is busy everywhere"},
    {603, "the recipient declines"},
    {604, "the recipient does not exist anywhere"},
    {606, "the recipient cannot take this message"},
};

}  // namespace

std::string meaning_of(int code) {
  for (const Meaning& meaning : meanings) {
    if (meaning.code == code) return meaning.text;
  }
  if (code < 300) return "";
  if (code < 400) return "the recipient is reached at another address";
  if (code < 500) return "the request was refused";
  return code < 600 ? "the server failed" : "the recipient refuses";
}

std::string sentence(const sipmsg::Error& error) {
  switch (error.code) {
    case sipmsg::ErrorCode::timeout: return "nobody answered in time";
    case sipmsg::ErrorCode::network:
      if (error.place == UV_ECONNREFUSED) return "nobody listens there: connection refused";
      break;
    default: break;
  }
  return describe(error);
}

std::string sentence(const sipmsg::Outcome& outcome) {
  if (outcome.error) return sentence(outcome.error);
  std::string text = std::to_string(outcome.code) + " " + printable(outcome.reason);
  const std::string meaning = meaning_of(outcome.code);
  if (!meaning.empty()) text.append(": ").append(meaning);
  return text;
}

Exit exit_status_of(const sipmsg::Error& error) {
  switch (error.code) {
    case sipmsg::ErrorCode::none: return exit_done;
    case sipmsg::ErrorCode::network:
    case sipmsg::ErrorCode::timeout:
    case sipmsg::ErrorCode::closed:
    case sipmsg::ErrorCode::cancelled:
    case sipmsg::ErrorCode::gone:
    case sipmsg::ErrorCode::limit_reached:
    case sipmsg::ErrorCode::unknown_host: return exit_network;
    default: return exit_usage;
  }
}

Exit exit_status_of(const sipmsg::Outcome& outcome) {
  if (outcome.error) return exit_status_of(outcome.error);
  return outcome.ok() ? exit_done : exit_refused;
}

}  // namespace program
