// account: who a client is and how it gets to others: the options that all clients have.
//
// A password comes from --password, from the file of --password-file, or from the environment, in
// this order. It goes into the Login and nowhere else: what is printed never holds it, `ps` does
// not show it (the option is overwritten), and programs we start do not inherit it. That of the
// environment is for whoever may need it, and left out where there is no user it could be of.
#pragma once

#include <memory>
#include <string>

#include "options.hpp"
#include "sipmsg.hpp"

namespace program {

class Account {
 public:
  Account() = default;
  Account(const Account&) = delete;  // the table of options points in here
  Account& operator=(const Account&) = delete;

  View<Option> options() const { return options_; }

  /// To be called after the arguments were read. `own_uri` is who sends; its user is the name to
  /// log in with where --user gives no other; empty: nobody. What is wrong, "" where nothing is.
  std::string complete(const std::string& own_uri);

  /// Null where there is no password.
  const std::shared_ptr<sipmsg::Login>& login() const { return login_; }
  const std::string& user() const { return user_; }
  bool trace() const { return trace_; }

  /// What Outgoing::proxy is to be for requests to this URI: the proxy; else, with --transport, the
  /// URI's own host over that, unless the URI says over what; else empty.
  std::string proxy_for(const std::string& uri) const;
  /// The same where all is to go through the server of this URI, that of --as.
  std::string server_of(const std::string& uri) const;

 private:
  std::string read_password();
  std::string complete_proxy();

  std::string user_;
  std::string password_;
  bool has_password_ = false;
  std::string password_file_;
  std::string proxy_;
  std::string transport_;
  bool trace_ = false;
  std::shared_ptr<sipmsg::Login> login_;

  const Option options_[6] = {
      {"--user", "NAME", "the name to log in with, where it is not that of the own URI", &user_},
      {"--password", "PASSWORD", "better in a file or in the variable SIPMSG_PASSWORD",
       SecretTarget{&password_, &has_password_}},
      {"--password-file", "FILE", "a file whose first line is the password", &password_file_},
      {"--proxy", "PROXY", "HOST:PORT, or a URI: where everything is sent to", &proxy_},
      {"--transport", "udp|tcp", "what to send it over, where no URI says so",
       ChoiceTarget{&transport_, "udp|tcp"}},
      {"--trace", "", "show every SIP message on standard error", &trace_},
  };
};

/// What is wrong with a URI somebody gave, for --as, say; "" where nothing is. A name in front,
/// "Bob <sip:bob@example.org>", is allowed.
std::string check_uri(const std::string& what, const std::string& text);

/// The URI of "Bob <sip:bob@example.org>", or the text itself.
std::string uri_of(const std::string& text);

}  // namespace program
