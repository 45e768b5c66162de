// The world around a Proxy, in memory and in virtual time: requests come as text, whatever is sent
// is kept to be looked at, and phones answer when they are told to.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "support/sipmsg.hpp"

namespace test::network {

using sipmsg::Error;
using sipmsg::ErrorCode;
using sipmsg::Flow;
using sipmsg::Transport;

// Messages as text. Written without the help of what is tested.

/// A request, put together by `text`. An empty header is left out.
struct Request {
  std::string method = "MESSAGE";
  std::string uri = "sip:bob@example.org";
  std::string via = "SIP/2.0/UDP 192.0.2.10:5060;branch=z9hG4bKa1;rport";
  std::string from = "<sip:alice@example.org>;tag=alice1";
  std::string to = "<sip:bob@example.org>";
  std::string call_id = "call-1";
  std::string cseq = "1 MESSAGE";
  std::string max_forwards = "70";
  std::string headers;  ///< further lines, each with its CR LF
  std::string content_type = "text/plain";
  bool has_content_length = true;
  std::string body = "hello";

  std::string text() const {
    std::string out = method + " " + uri + " SIP/2.0\r\n";
    const auto add = [&out](const std::string& name, const std::string& value) {
      if (!value.empty()) out += name + ": " + value + "\r\n";
    };
    add("Via", via);
    add("Max-Forwards", max_forwards);
    add("From", from);
    add("To", to);
    add("Call-ID", call_id);
    add("CSeq", cseq);
    out += headers;
    if (!body.empty()) add("Content-Type", content_type);
    if (has_content_length) add("Content-Length", std::to_string(body.size()));
    return out + "\r\n" + body;
  }
};

/// The lines of a message's head, its start line first; folded lines stay as they are.
inline std::vector<std::string> head_lines(const std::string& text) {
  std::vector<std::string> lines;
  std::size_t begin = 0;
  for (std::size_t end; (end = text.find("\r\n", begin)) != begin; begin = end + 2) {
    if (end == std::string::npos) FAIL("no blank line in: " << text);
    const std::string line = text.substr(begin, end - begin);
    if (line[0] == ' ' || line[0] == '\t') {
      lines.back() += "\r\n" + line;
    } else {
      lines.push_back(line);
    }
  }
  return lines;
}
inline std::string start_line(const std::string& text) { return head_lines(text).front(); }
inline int status_of(const std::string& text) {
  return text.compare(0, 8, "SIP/2.0 ") == 0 ? std::stoi(text.substr(8, 3)) : 0;
}
/// The values of all headers of that name, which is given as it is written.
inline std::vector<std::string> headers_of(const std::string& text, const std::string& name) {
  std::vector<std::string> values;
  for (const std::string& line : head_lines(text)) {
    if (line.compare(0, name.size() + 2, name + ": ") == 0) {
      values.push_back(line.substr(name.size() + 2));
    }
  }
  return values;
}
/// The value of the one header of that name; "" where there is none.
inline std::string header_of(const std::string& text, const std::string& name) {
  const std::vector<std::string> values = headers_of(text, name);
  if (values.size() > 1) FAIL("more than one " << name << " in: " << text);
  return values.empty() ? std::string() : values.front();
}
inline std::string body_of(const std::string& text) {
  return text.substr(text.find("\r\n\r\n") + 4);
}
/// "branch" gives "z9hG4bK..." of a Via.
inline std::string parameter_of(const std::string& value, const std::string& name) {
  const std::size_t at = value.find(";" + name + "=");
  if (at == std::string::npos) return {};
  const std::size_t begin = at + name.size() + 2;
  return value.substr(begin, value.find(';', begin) - begin);
}

/// What a phone answers: all Via, From, To with a tag, Call-ID, CSeq (RFC 3261 8.2.6), then what is
/// given.
inline std::string answer_to(const std::string& request, const std::string& status,
                             const std::string& headers = "", const std::string& body = "") {
  std::string out = "SIP/2.0 " + status + "\r\n";
  for (const std::string& line : head_lines(request)) {
    const std::string name = line.substr(0, line.find(':'));
    const bool to = name == "To";
    if (!to && name != "Via" && name != "From" && name != "Call-ID" && name != "CSeq") continue;
    out += line + (to && line.find(";tag=") == std::string::npos ? ";tag=phone" : "") + "\r\n";
  }
  return out + headers + "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
}

// Addresses.

inline Flow udp(const std::string& address, std::uint32_t socket = 1) {
  const auto remote = sipmsg::parse_socket_address(address);
  if (!remote) FAIL("no address: " << address);
  return {Transport::udp, socket, *remote};
}
inline Flow tcp(const std::string& address, std::uint32_t socket) {
  Flow flow = udp(address, socket);
  flow.transport = Transport::tcp;
  return flow;
}

/// What was sent: where to, when, and what.
struct Packet {
  Flow flow;
  std::uint64_t at_ms = 0;
  std::string text;

  std::string to() const { return sipmsg::to_text(flow.remote); }
  int status() const { return status_of(text); }
};

/// alice, bob and carol at example.org, each with the password "secret of NAME"; nobody is asked
/// for one.
inline sipmsg::Settings plain_settings() {
  sipmsg::Settings settings;
  settings.domains = {"example.org"};
  settings.message.enable = true;
  settings.message.auth_required = false;
  settings.registrar.auth_required = false;
  for (const char* name : {"alice", "bob", "carol"}) {
    sipmsg::UserSettings user;
    user.name = name;
    user.has_password = true;
    user.password = std::string("secret of ") + name;
    settings.users.push_back(user);
  }
  return settings;
}
/// The same, and everybody is asked.
inline sipmsg::Settings guarded_settings() {
  sipmsg::Settings settings = plain_settings();
  settings.message.auth_required = true;
  settings.registrar.auth_required = true;
  return settings;
}

inline sipmsg::RegistrarOptions registrar_options(const sipmsg::RegistrarSettings& settings) {
  sipmsg::RegistrarOptions options;
  options.expires_min_s = settings.expires_min_s;
  options.expires_default_s = settings.expires_default_s;
  options.expires_max_s = settings.expires_max_s;
  options.max_bindings = settings.max_bindings;
  options.max_bindings_per_user = settings.max_bindings_per_user;
  options.nat = settings.nat;
  return options;
}

inline sipmsg::UserDirectory directory_of(const sipmsg::Settings& settings) {
  sipmsg::UserDirectory users;
  for (const sipmsg::UserSettings& user : settings.users) users.add(user);
  return users;
}

/// A Proxy with users, bindings, network, log and clock.
class Network : private sipmsg::Sink, private sipmsg::ServerLog {
 public:
  static constexpr sipmsg::SipHashKey secret{7, 7, 7};

  explicit Network(const sipmsg::Settings& settings = plain_settings())
      : users(directory_of(settings)),
        registrar(registrar_options(settings.registrar), secret),
        proxy(settings, users, registrar, *this, *this, secret) {
    sipmsg::OwnDomains domains;
    for (const std::string& domain : settings.domains) domains.add(domain);
    proxy.set_domains(domains);
  }

  sipmsg::UserDirectory users;
  sipmsg::Registrar registrar;
  std::vector<Packet> sent;  ///< in order; `take` empties it
  std::vector<std::string> log_lines;
  std::uint64_t now_ms = 5000000;
  /// Asked before each packet goes out; none: everything does.
  std::function<Error(const Flow&)> send_error;
  std::vector<sipmsg::SocketAddress> streams;  ///< who can be reached by TCP
  std::function<void()> on_next_log;           ///< called after the next line
  sipmsg::Proxy proxy;

  void receive(const std::string& text, const Flow& from,
               sipmsg::Framing framing = sipmsg::Framing::datagram) {
    sipmsg::MessageView message;
    const Error error = message.parse(text, framing);
    proxy.receive(message, error, from, now_ms);
  }
  /// Lets time pass, with a call of `advance` at each deadline and one at the end.
  void wait(std::uint64_t duration_ms) {
    const std::uint64_t end_ms = now_ms + duration_ms;
    while (proxy.next_deadline() <= end_ms) {
      now_ms = std::max(now_ms, proxy.next_deadline());
      proxy.advance(now_ms);
    }
    now_ms = end_ms;
    proxy.advance(now_ms);
  }

  std::vector<Packet> take() { return std::exchange(sent, {}); }
  /// The one packet that was sent.
  Packet take_one() {
    if (sent.size() != 1) FAIL("one packet expected, sent were " << sent.size());
    return take().front();
  }
  /// Sends a request and takes the one packet that follows at once.
  Packet ask(const std::string& text, const Flow& from) {
    receive(text, from);
    return take_one();
  }

  /// Makes a binding, past the Proxy.
  void bind(const std::string& user, const std::string& contact, const Flow& from,
            const std::string& headers = "") {
    Request request;
    request.method = "REGISTER";
    request.cseq = std::to_string(++bound_) + " REGISTER";
    request.call_id = "registration of " + user;
    request.headers = "Contact: <" + contact + ">\r\n" + headers;
    const std::string text = request.text();
    sipmsg::MessageView view;
    REQUIRE_FALSE(view.parse(text));
    REQUIRE(registrar.update(user, view, from, now_ms).status == 200);
  }
  /// For requests that must differ from each other.
  int next_number() { return ++number_; }
  /// How many lines of the log hold that text.
  std::size_t logged(const std::string& text) const {
    std::size_t count = 0;
    for (const std::string& line : log_lines) count += line.find(text) != std::string::npos;
    return count;
  }

 private:
  sipmsg::Result<std::string_view> sent_by(Flow& flow) override {
    const bool ipv6 = flow.remote.ip.is_ipv6();
    if (flow.socket == 0) flow.socket = flow.transport == Transport::tcp ? 900 : ipv6 ? 2 : 1;
    return ipv6 ? std::string_view("[2001:db8::1]:5060") : std::string_view("192.0.2.1:5060");
  }
  Error send(const Flow& flow, const sipmsg::Slices& message) override {
    if (send_error) {
      if (const Error error = send_error(flow)) return error;
    }
    sent.push_back({flow, now_ms, message.to_string()});
    return {};
  }
  bool has_stream_to(const sipmsg::SocketAddress& address) const override {
    for (const sipmsg::SocketAddress& stream : streams) {
      if (stream == address) return true;
    }
    return false;
  }
  void log(sipmsg::Severity, std::string_view text) override {
    log_lines.emplace_back(text);
    if (const std::function<void()> hook = std::exchange(on_next_log, nullptr)) hook();
  }

  int bound_ = 0;
  int number_ = 0;
};

}  // namespace test::network
