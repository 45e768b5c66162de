#include "account.hpp"

#include <cstdlib>

namespace program {

std::string uri_of(const std::string& text) {
  if (text.find('<') == std::string::npos) return text;
  const auto party = sipmsg::parse_name_addr(text);
  return party ? std::string(party->uri.text) : std::string();
}

std::string check_uri(const std::string& what, const std::string& text) {
  const std::string said = what + " " + text + ": ";
  std::string_view uri_text = text;
  if (text.find('<') != std::string::npos) {
    const auto party = sipmsg::parse_name_addr(text);
    if (!party) return said + party.error().text();
    uri_text = party->uri.text;
  }
  const auto uri = sipmsg::parse_uri(uri_text);
  if (!uri) return said + uri.error().text() + "; expected a URI such as sip:102@127.0.0.1:5060";
  if (uri->scheme != sipmsg::UriScheme::sip) {
    return said + "expected a URI such as sip:102@127.0.0.1:5060";
  }
  return {};
}

std::string Account::complete(const std::string& own_uri) {
  if (user_.empty() && !own_uri.empty()) {
    const auto uri = sipmsg::parse_uri(own_uri);
    if (uri) user_ = uri->user;
  }
  if (std::string wrong = read_password(); !wrong.empty()) return wrong;
  if (std::string wrong = complete_proxy(); !wrong.empty()) return wrong;
  if (has_password_ && user_.empty()) return "a password needs --user, or a URI with a user";
  if (has_password_) login_ = std::make_shared<sipmsg::Login>(user_, std::move(password_));
  password_.clear();
  return {};
}

std::string Account::read_password() {
  const char* variable = std::getenv("SIPMSG_PASSWORD");
  const std::string from_environment = variable == nullptr ? "" : variable;
  const bool is_in_environment = variable != nullptr;
  unsetenv("SIPMSG_PASSWORD");
  if (has_password_ && !password_file_.empty()) {
    return "--password and --password-file: only one of them";
  }
  if (!password_file_.empty()) {
    constexpr std::size_t most = 4096;
    const auto file = sipmsg::read_file(password_file_, most);
    if (!file) return "--password-file " + password_file_ + ": " + describe(file.error());
    password_ = file->substr(0, file->find_first_of("\r\n"));
    has_password_ = true;
  } else if (!has_password_ && is_in_environment && !user_.empty()) {
    password_ = from_environment;
    has_password_ = true;
  }
  return {};
}

std::string Account::complete_proxy() {
  if (proxy_.empty()) return {};
  const std::string given = proxy_;
  if (!sipmsg::equal_ignoring_case(proxy_.substr(0, 4), "sip:")) proxy_.insert(0, "sip:");
  const auto uri = sipmsg::parse_uri(proxy_);
  if (!uri || uri->host.empty() || uri->has_user) {
    return "--proxy " + given + ": expected HOST:PORT or a URI such as sip:proxy.example.org";
  }
  const auto transport = uri->parameter("transport");
  if (transport && !transport_.empty() && !sipmsg::equal_ignoring_case(*transport, transport_)) {
    return "--transport " + transport_ + ": --proxy says " + std::string(*transport);
  }
  if (!transport && !transport_.empty()) proxy_ += ";transport=" + transport_;
  return {};
}

std::string Account::proxy_for(const std::string& uri) const {
  if (!proxy_.empty()) return proxy_;
  return transport_.empty() ? std::string() : server_of(uri);
}

std::string Account::server_of(const std::string& uri_text) const {
  if (!proxy_.empty()) return proxy_;
  const auto uri = sipmsg::parse_uri(uri_text);
  if (!uri || uri->host.empty()) return {};
  const bool is_ipv6 = sipmsg::is_ipv6_text(uri->host);
  std::string result("sip:");
  result.append(is_ipv6 ? "[" : "").append(uri->host).append(is_ipv6 ? "]" : "");
  if (uri->port != 0) result.append(":").append(std::to_string(uri->port));
  const std::string_view transport = uri->parameter("transport").value_or(transport_);
  if (!transport.empty()) result.append(";transport=").append(transport);
  return result;
}

}  // namespace program
