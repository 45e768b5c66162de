// bridge: see bridge.hpp.
#include "bridge.hpp"

#include <ctime>
#include <utility>
#include <vector>

namespace modules {

using sipmsg::Verdict;

namespace {

constexpr std::string_view users_module = "regfile";
constexpr std::string_view sip_module = "sip";
constexpr std::string_view driver = "sip/";
/// Yate's for its SIP channel among the handlers of msg.execute.
constexpr int sip_priority = 100;
/// Before every handler that the server itself might have.
constexpr int before_all = INT32_MIN + 1;

std::uint64_t unix_now_s() { return static_cast<std::uint64_t>(std::time(nullptr)); }

/// What Yate's engine calls true.
bool is_true(const std::optional<std::string>& text) {
  return text && sipmsg::parse_boolean(*text).value_or(false);
}

bool is_false(const std::optional<std::string>& text) {
  return text && !sipmsg::parse_boolean(*text).value_or(true);
}

/// The first of our domains that can stand in a URI; empty where none is listed.
std::string first_domain(const sipmsg::Settings& settings) {
  for (const std::string& domain : settings.domains) {
    if (domain != "*") return sipmsg::is_ipv6_text(domain) ? "[" + domain + "]" : domain;
  }
  return {};
}

/// Whether call.route returned somewhere to go, and not a refusal.
bool is_target(std::string_view return_value) {
  return !return_value.empty() && return_value != "-" && return_value != "error";
}

}  // namespace

// ---- a MESSAGE with its parameters

std::optional<std::string> RouteMessage::get(std::string_view name) const {
  return request_.view().parameter(name);
}
void RouteMessage::set(std::string_view name, std::string_view value) {
  request_.view().set_parameter(name, value);
}
void RouteMessage::clear(std::string_view name) { request_.view().clear_parameter(name); }
void RouteMessage::for_each(const Use& use) const { request_.view().for_each_parameter(use); }

// ---- what arrives

/// One MESSAGE until its verdict is known.
struct Bridge::Routing {
  std::shared_ptr<RouteMessage> message;
  bool is_inside = true;                ///< the server's handler has not returned yet
  std::optional<Verdict> verdict;       ///< that was found until then
  const sipmsg::RouteRequest* request;  ///< while inside
};

Bridge::Bridge(sipmsg::Server& server, Engine& engine, const sipmsg::Settings& settings)
    : server_(server), engine_(engine), host_(first_domain(settings)) {
  handler_ = server_.add_handler(
      before_all, [this](const sipmsg::RouteRequest& request) { return on_route(request); });
  // Behind applications of the same priority: 100 is the default of all of them, and a rule or
  // script that refuses a message must not depend on whether its recipient is online.
  users_ = engine_.install_last(std::string(users_module), "call.route",
                                static_cast<int>(settings.route_priority),
                                [this](const MessagePointer& message, const Answer& answer) {
                                  answer(route_to_user(*message));
                                });
  const auto send_it = [this](const MessagePointer& message, Answer answer) {
    send(message, std::move(answer));
  };
  execute_ = engine_.install_last(std::string(sip_module), "msg.execute", sip_priority, send_it);
  if (settings.generate) {
    generate_ =
        engine_.install_last(std::string(sip_module), "xsip.generate", sip_priority, send_it);
  }
  server_.on_registration(
      [this](const sipmsg::RegistrationEvent& event) { on_registration(event); });
}

Bridge::~Bridge() {
  server_.remove_handler(handler_);
  server_.on_registration(nullptr);
  for (const Engine::Id id : {users_, execute_, generate_}) engine_.uninstall(id);
}

Verdict Bridge::on_route(const sipmsg::RouteRequest& request) {
  const bool wanted =
      engine_.is_wanted("call.route", users_module) || engine_.is_wanted("msg.execute", sip_module);
  if (!wanted) return Verdict::next();
  const auto routing = std::make_shared<Routing>();
  routing->message = std::make_shared<RouteMessage>(request);
  routing->message->created_unix_s = unix_now_s();
  routing->request = &request;
  engine_.dispatch(routing->message,
                   [this, routing](bool handled) { on_routed(routing, handled); });
  routing->is_inside = false;
  return routing->verdict.value_or(Verdict::later());
}

/// The users route as one of the handlers, so a message that came to nobody there goes nowhere; but
/// a known one who is offline is still the server's to answer for.
void Bridge::on_routed(const RoutingPointer& routing, bool handled) {
  RouteMessage& message = *routing->message;
  if (!handled) {
    if (message.get("error") == "offline" && !sipmsg::refusal_asked_for(message.request().view())) {
      return finish(routing, Verdict::forward({}));
    }
    const auto code = sipmsg::refusal_asked_for(message.request().view());
    return finish(routing, Verdict::reject(code.value_or(404)));
  }
  if (is_target(message.return_value)) return execute(routing);
  finish(routing, verdict_of_target(message, message.return_value));
}

/// A target was found: `error` and `reason` on the way there count no longer (as in Yate). Handlers
/// of msg.execute may take the message instead of us, or those who know targets that are not ours
/// ("mailbox/102").
void Bridge::execute(const RoutingPointer& routing) {
  RouteMessage& message = *routing->message;
  const std::string target = std::exchange(message.return_value, {});
  for (std::string_view name : {"error", "reason"}) {
    if (message.get(name)) message.clear(name);
  }
  if (!engine_.is_wanted("msg.execute", sip_module)) {
    return finish(routing, verdict_of_target(message, target));
  }
  message.set("callto", target);
  message.rename("msg.execute");
  engine_.dispatch(routing->message, [this, routing](bool handled) {
    const RouteMessage& executed = *routing->message;
    finish(routing, handled && !executed.is_sent
                        ? verdict_of_execution(*routing)
                        : verdict_of_target(executed, executed.get_or("callto")));
  });
}

/// What we make of a target ourselves.
Verdict Bridge::verdict_of_target(const RouteMessage& message, const std::string& target) {
  const bool by_users = !target.empty() && message.users_target == target;
  return by_users ? Verdict::forward({})
                  : sipmsg::verdict_of(true, target, message.request().view());
}

/// What it means that somebody else has taken the message: `code` if it is set, else the return
/// value as a number, else `reason` by name, else 200.
Verdict Bridge::verdict_of_execution(const Routing& routing) {
  const RouteMessage& message = *routing.message;
  const sipmsg::RouteRequest request = message.request().view();
  auto code = sipmsg::status_of_reason(message.get_or("code"));
  if (!code) code = sipmsg::status_of_reason(message.return_value);
  if (!code) code = sipmsg::refusal_asked_for(request);
  if (!code || *code < 300) return Verdict::accept(code.value_or(200));
  return Verdict::reject(*code);
}

void Bridge::finish(const RoutingPointer& routing, Verdict verdict) {
  const sipmsg::KeptRouteRequest& request = routing->message->request();
  if (!routing->is_inside) {
    // Gone where its deadline is over; then its sender has an answer already.
    static_cast<void>(server_.resume(request.key(), verdict, request.changes()));
    return;
  }
  routing->request->changes->apply(request.changes());
  routing->verdict = std::move(verdict);
}

// ---- the users of regfile.conf

/// As Yate's regfile module: a bound user is a target, several are a fork; a known user who is
/// offline is said to be so and left to other handlers.
bool Bridge::route_to_user(Message& message) const {
  const std::string called = message.get_or("called");
  if (called.empty() || is_false(message.get("route_regfile"))) return false;
  std::vector<std::string> targets;
  server_.for_each_binding(called, [&](const sipmsg::Binding& binding) {
    targets.push_back(std::string(driver) + std::string(binding.request_uri));
  });
  if (targets.empty()) {
    if (server_.is_known(called)) message.set("error", "offline");
    return false;
  }
  message.return_value = targets.front();
  if (targets.size() > 1) {
    message.return_value = "fork";
    for (std::size_t i = 0; i < targets.size(); ++i) {
      message.set("callto." + std::to_string(i + 1), targets[i]);
    }
  }
  if (RouteMessage* route = message.as_route()) route->users_target = message.return_value;
  return true;
}

// ---- what applications send

namespace {

std::string address_of(std::string_view user, const std::string& host) {
  return "sip:" + sipmsg::escape(user, sipmsg::char_user) + "@" + host;
}

/// The sender: `sip_from` as a header has it, or `caller` and `domain`.
std::string sender_of(const Message& message, const std::string& host) {
  for (std::string_view name : {"sip_From", "sip_from"}) {
    if (const auto from = message.get(name)) {
      const auto parsed = sipmsg::parse_name_addr(*from);
      if (parsed) return std::string(parsed->uri.text);
    }
  }
  const std::string user = message.get_or("user", message.get_or("caller", "anonymous"));
  const std::string domain = message.get_or("domain");
  return address_of(user, domain.empty() ? host : domain);
}

/// The headers that `sip_NAME` parameters ask for, but for those which every message has of its
/// own.
void add_headers(const Message& message, sipmsg::Outgoing& outgoing) {
  message.for_each([&](std::string_view name, std::string_view value) {
    const std::string_view header = sipmsg::detail::header_to_set(name, "sip_");
    const sipmsg::HeaderId id = sipmsg::header_id(header);
    const bool is_own = header.empty() || id == sipmsg::HeaderId::content_type ||
                        id == sipmsg::HeaderId::user_agent || name == "sip_uri" ||
                        name == "sip_callid";
    if (is_own || value.find_first_of("\r\n") != std::string_view::npos) return;
    outgoing.headers.emplace_back(sipmsg::detail::header_spelling(header), value);
  });
}

/// Where it is to go: `callto` or `called`, or all of a fork.
std::vector<std::string> targets_of(const Message& message) {
  std::vector<std::string> targets = {message.get_or("callto", message.get_or("called"))};
  if (targets.front() == "fork") {
    targets.front() = message.get_or("called");
    for (std::size_t i = 1; const auto target = message.get("callto." + std::to_string(i)); ++i) {
      targets.resize(i);
      targets.back() = *target;
    }
  }
  for (std::string& target : targets) {
    if (std::string_view(target).substr(0, driver.size()) == driver) target.erase(0, driver.size());
  }
  return targets;
}

/// A message of an application that waits for its end: with several targets for the end of all.
struct Sending {
  /// One that was taken counts above those that were not.
  void note(const sipmsg::Outcome& outcome) {
    if (outcome.ok() || !is_taken) {
      message->set("code", std::to_string(outcome.error ? 503 : outcome.code));
      message->set("reason", outcome.reason);
    }
    is_taken = is_taken || outcome.ok();
    if (--open == 0) answer(is_taken);
  }

  MessagePointer message;
  Answer answer;
  std::size_t open = 0;  ///< targets that have not answered
  bool is_taken = false;
};

}  // namespace

/// The host of addresses that applications give no host.
std::string Bridge::host() const {
  if (!host_.empty()) return host_;
  for (const sipmsg::Listener& listener : server_.listeners()) {
    const sipmsg::IpAddress& ip = listener.address.ip;
    if (!ip.is_unspecified()) return ip.is_ipv6() ? "[" + to_text(ip) + "]" : to_text(ip);
  }
  return "localhost";
}

/// A message of an application's own. Without `wait` it counts as handled when it is on its way;
/// with it, `code` is the recipient's answer and only a 2xx is handled. One of a phone is on its
/// way through `execute` and is sent there.
void Bridge::send(const MessagePointer& message, Answer answer) {
  if (RouteMessage* route = message->as_route()) {
    const std::string target = route->get_or("callto");
    route->is_sent = target == "fork" || target.substr(0, driver.size()) == driver;
    return answer(route->is_sent);
  }
  sipmsg::Outgoing outgoing;
  outgoing.from = sender_of(*message, host());
  outgoing.content_type = message->get_or("xsip_type", "text/plain;charset=utf-8");
  auto body = sipmsg::detail::decode_body(message->get_or("xsip_body"),
                                          message->get_or("xsip_body_encoding"));
  const std::vector<std::string> targets = targets_of(*message);
  if (!body || targets.front().empty()) {
    message->set("error", body ? "noroute" : "invalid-message");
    return answer(false);
  }
  outgoing.body = std::move(body).value();
  add_headers(*message, outgoing);

  const auto sending = std::make_shared<Sending>();
  sending->message = message;
  sending->answer = std::move(answer);
  const bool waits = is_true(message->get("wait"));
  for (const std::string& target : targets) {
    address(outgoing, target, message->get_or("called"));
    const sipmsg::Error error =
        server_.send(outgoing, [waits, sending](const sipmsg::Outcome& outcome) {
          if (waits) sending->note(outcome);
        });
    if (error) {
      message->set("error", error.name());
    } else {
      ++sending->open;
    }
  }
  if (sending->open == 0 || !waits) sending->answer(sending->open > 0);
}

/// Says where it goes: to all phones of a user, or to the one whose contact the target is. A
/// contact may have a name of the phone's own; then `called` says whose it is.
void Bridge::address(sipmsg::Outgoing& outgoing, const std::string& target,
                     const std::string& called) const {
  const auto uri = sipmsg::parse_uri(target);
  outgoing.to = uri ? target : address_of(target, host());
  outgoing.request_uri.clear();
  if (!uri) return;
  for (const std::string& user : {called, sipmsg::unescape(uri->user)}) {
    server_.for_each_binding(user, [&](const sipmsg::Binding& binding) {
      if (binding.contact_uri != target && binding.request_uri != target) return;
      outgoing.to = address_of(user, host());
      outgoing.request_uri = binding.contact_uri;
    });
    if (!outgoing.request_uri.empty()) return;
  }
}

// ---- phones that come and go

namespace {

/// The further names by which messages reach that user: none that is another user's own.
std::string alternatives_of(std::string_view name, const sipmsg::Server& server) {
  std::string text;
  const sipmsg::UserSettings* user = server.find_user(name);
  if (user == nullptr) return text;
  for (const std::string& other : user->alternatives) {
    if (server.find_user(other) == nullptr) text += (text.empty() ? "" : ",") + other;
  }
  return text;
}

}  // namespace

void Bridge::on_registration(const sipmsg::RegistrationEvent& event) {
  const bool is_gone = event.kind == sipmsg::RegistrationEvent::Kind::removed;
  const char* name = is_gone ? "user.unregister" : "user.register";
  if (!engine_.is_wanted(name)) return;
  const auto message = std::make_shared<ListMessage>(name);
  message->created_unix_s = unix_now_s();
  message->add("module", std::string(sip_module));
  message->add("number", std::string(event.user));
  message->add("username", std::string(event.user));
  message->add("driver", std::string(sip_module));
  message->add("data", std::string(driver) + std::string(event.contact));
  message->add("sip_to", std::string(event.contact));
  if (!event.user_agent.empty()) message->add("device", std::string(event.user_agent));
  const std::string alternatives = alternatives_of(event.user, server_);
  if (!alternatives.empty()) message->add("alternatives", alternatives);
  if (!is_gone) {
    message->add("expires", std::to_string(event.expires_s));
    message->add("ip_host", to_text(event.flow.remote.ip));
    message->add("ip_port", std::to_string(event.flow.remote.port));
    message->add("ip_transport", std::string(transport_name(event.flow.transport)));
    message->add("address", to_text(event.flow.remote));
  }
  engine_.dispatch(message, nullptr);
}

}  // namespace modules
