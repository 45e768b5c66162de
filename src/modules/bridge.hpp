// bridge: a MESSAGE of the server as a message of the engine, and back.
//
// What arrives is dispatched as `call.route`, and where a handler names a target, as `msg.execute`;
// the outcome becomes the server's verdict (verdict_of in the header). The users of regfile.conf
// route at their own priority among the other handlers. What an application dispatches as
// `msg.execute` or `xsip.generate` is sent; phones that come and go are told as `user.register` and
// `user.unregister`. While nobody is interested, a MESSAGE passes here without a copy.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "engine.hpp"
#include "sipmsg.hpp"

namespace modules {

/// A MESSAGE on its way through the engine: its parameters are made when somebody asks.
class RouteMessage final : public Message {
 public:
  explicit RouteMessage(const sipmsg::RouteRequest& request)
      : Message("call.route"), request_(request) {}

  std::optional<std::string> get(std::string_view name) const override;
  void set(std::string_view name, std::string_view value) override;
  void clear(std::string_view name) override;
  void for_each(const Use& use) const override;
  RouteMessage* as_route() override { return this; }

  const sipmsg::KeptRouteRequest& request() const { return request_; }

  /// What the users of regfile.conf gave as target; where it stays, each of their phones is reached
  /// by the way it registered.
  std::string users_target;
  /// Whether msg.execute came to the server itself, which then sends it.
  bool is_sent = false;

 private:
  sipmsg::KeptRouteRequest request_;
};

/// Between one server and one engine, which must both outlive it.
class Bridge {
 public:
  Bridge(sipmsg::Server& server, Engine& engine, const sipmsg::Settings& settings);
  ~Bridge();
  Bridge(const Bridge&) = delete;
  Bridge& operator=(const Bridge&) = delete;

 private:
  struct Routing;
  using RoutingPointer = std::shared_ptr<Routing>;

  sipmsg::Verdict on_route(const sipmsg::RouteRequest& request);
  void on_routed(const RoutingPointer& routing, bool handled);
  void execute(const RoutingPointer& routing);
  static sipmsg::Verdict verdict_of_target(const RouteMessage& message, const std::string& target);
  static sipmsg::Verdict verdict_of_execution(const Routing& routing);
  void finish(const RoutingPointer& routing, sipmsg::Verdict verdict);

  bool route_to_user(Message& message) const;
  std::string host() const;
  void send(const MessagePointer& message, Answer answer);
  void address(sipmsg::Outgoing& outgoing, const std::string& target,
               const std::string& called) const;
  void on_registration(const sipmsg::RegistrationEvent& event);

  sipmsg::Server& server_;
  Engine& engine_;
  std::string host_;  ///< the first of our domains; empty where none is listed
  sipmsg::HandlerChain::Id handler_ = 0;
  Engine::Id users_ = 0;
  Engine::Id execute_ = 0;
  Engine::Id generate_ = 0;
};

}  // namespace modules
