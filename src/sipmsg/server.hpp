// server: a SIP MESSAGE server on a libuv loop: sockets, users, registrar and proxy in one object.
//
// What it does stands in proxy.hpp; here it gets its sockets, its clock, its files and its threads.
// The loop is the caller's, and everything here belongs to its thread. Handlers that may take long
// run in libuv's thread pool, where messages of one sender to one recipient keep their order.
// Anything may be done inside a callback, also closing and destroying the Server.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "endpoint.hpp"
#include "files.hpp"
#include "offload.hpp"
#include "proxy.hpp"

namespace sipmsg {

/// Why a server could not start: the error, and what it befell, such as "udp 127.0.0.1:5060".
struct [[nodiscard]] StartError {
  Error error;
  std::string what;

  explicit operator bool() const { return static_cast<bool>(error); }
  std::string text() const { return what + ": " + describe(error); }
};

/// Reads DIR/ysipchan.conf and DIR/regfile.conf. Of the two one may be missing. What there is to
/// remark is added to `diagnostics`. Errors: `file` where there is neither, `bad_configuration`
/// where a server could not work with what they say.
inline Error load_directory(const std::string& directory, Settings& settings,
                            Diagnostics& diagnostics) {
  IniOptions options;
  options.run_parameters = {{"configpath", directory}, {"version", SIPMSG_VERSION}};
  options.loaded_modules = {"ysipchan", "regfile"};
  FileSource files;
  Ini ysipchan;
  Ini regfile;
  const auto read = [&](const char* name, Ini& ini, const char* without) {
    const std::string path = directory + "/" + name;
    const Error error = load_ini(files, path, options, ini, diagnostics);
    if (error) {
      diagnostics.push_back({Severity::warning, path, 0, describe(error) + "; " + without});
    }
    return !error;
  };
  const bool has_ysipchan = read("ysipchan.conf", ysipchan, "every key has its default");
  const bool has_regfile = read("regfile.conf", regfile, "there are no users");
  if (!has_ysipchan && !has_regfile) {
    diagnostics.push_back(
        {Severity::error, directory, 0, "neither ysipchan.conf nor regfile.conf can be read here"});
    return ErrorCode::file;
  }
  return load_settings(ysipchan, regfile, options.run_parameters, settings, diagnostics);
}

/// Whether a handler wants to see a message at all. Called on the loop, so it must be quick.
using RouteFilter = std::function<bool(const RouteRequest&)>;

/// Called with what the server's operator should know: one line, without line end.
using LogHandler = std::function<void(Severity severity, std::string_view text)>;

namespace detail {

/// The name this machine gives itself; empty where it has none.
inline std::string host_name() {
  char name[256];
  std::size_t size = sizeof name;
  return uv_os_gethostname(name, &size) == 0 ? std::string(name, size) : std::string();
}

/// The file that bindings outlive the server in. It is written by threads of the pool and, at the
/// end, by the loop's; an older state never replaces a newer one.
class BindingsFile {
 public:
  explicit BindingsFile(std::string path) : path_(std::move(path)) { uv_mutex_init(&mutex_); }
  ~BindingsFile() { uv_mutex_destroy(&mutex_); }
  BindingsFile(const BindingsFile&) = delete;
  BindingsFile& operator=(const BindingsFile&) = delete;

  const std::string& path() const { return path_; }
  Error write(std::uint64_t revision, std::string_view text) {
    uv_mutex_lock(&mutex_);
    Error error;
    if (revision >= written_revision_) {
      error = write_file_atomically(path_, text);
      written_revision_ = revision;
    }
    uv_mutex_unlock(&mutex_);
    return error;
  }

 private:
  const std::string path_;
  uv_mutex_t mutex_;
  std::uint64_t written_revision_ = 0;
};

/// Everything of a Server. Lives until the Server is gone and the last callback has returned.
class ServerCore final : public TransportReceiver,
                         public Alarm,
                         public ServerLog,
                         public std::enable_shared_from_this<ServerCore> {
 public:
  ServerCore(std::unique_ptr<Loop> loop, const Settings& settings, const SipHashKey& secret)
      : Alarm(*loop),
        settings_(std::make_shared<const Settings>(settings)),
        loop_(std::move(loop)),
        transports_(*loop_, *this, transport_options(settings)),
        users_(make_users(settings)),
        registrar_(registrar_options(settings), derive_key(secret, 'b')),
        proxy_(settings, *users_, registrar_, transports_, *this, derive_key(secret, 'p')),
        offload_(*loop_, offload_options(settings)),
        order_key_(derive_key(secret, 'o')) {
    const auto now_s = static_cast<std::int64_t>(unix_time_s());
    proxy_.set_unix_time_at_zero(now_s - static_cast<std::int64_t>(loop_->fresh_now_ms() / 1000));
  }

  StartError start();
  void reload(const Settings& settings);
  HandlerChain::Id add_handler(int priority, RouteHandler handler) {
    return proxy_.handlers().add(priority, std::move(handler));
  }
  HandlerChain::Id add_async_handler(int priority, RouteHandler handler, RouteFilter filter);
  Error resume(RouteKey key, const Verdict& verdict, const RouteChanges& changes) {
    if (closed_) return ErrorCode::gone;
    const Error error = proxy_.resume(key, verdict, loop_->fresh_now_ms(), changes);
    rearm();
    return error;
  }
  Error send(const Outgoing& outgoing, SentHandler done) {
    if (closed_) return ErrorCode::closed;
    const Error error = proxy_.send(outgoing, loop_->fresh_now_ms(), std::move(done));
    rearm();
    return error;
  }
  const UserSettings* find_user(std::string_view name) const { return users_->find(name); }
  void on_log(LogHandler handler) { log_ = std::make_shared<LogHandler>(std::move(handler)); }
  void close();

  Loop& loop() { return *loop_; }
  Transports& transports() { return transports_; }
  Proxy& proxy() { return proxy_; }
  Registrar& registrar() { return registrar_; }
  bool is_closed() const { return closed_; }

  /// Names in a line come from outside: what could end it, or move a terminal's cursor, does not.
  void log(Severity severity, std::string_view text) override {
    const std::shared_ptr<LogHandler> handler = log_;  // it may replace itself
    if (!handler || !*handler) return;
    std::string line(text);
    for (std::size_t i = 0; i < line.size(); ++i) {
      const auto octet = static_cast<unsigned char>(line[i]);
      // U+0080 to U+009F in UTF-8: some terminals obey them as they do ESC and a letter.
      const bool is_c1 = octet >= 0x80 && octet < 0xa0 && i > 0 && line[i - 1] == '\xc2';
      if (is_c1) line[i - 1] = '?';
      if (octet < 0x20 || octet == 0x7f || is_c1) line[i] = '?';
    }
    (*handler)(severity, line);
  }

 private:
  /// How often changed bindings are written to their file, as Yate does.
  static constexpr std::uint64_t save_interval_ms = 30000;

  static TransportOptions transport_options(const Settings& settings);
  static RegistrarOptions registrar_options(const Settings& settings);
  static OffloadOptions offload_options(const Settings& settings) {
    OffloadOptions options;
    options.max_jobs = settings.message.max_pending + std::size_t{1};  // one writes the bindings
    return options;
  }
  static ListenerOptions listener_options(const ListenerSettings& listener,
                                          const SocketAddress& address);
  static std::unique_ptr<UserDirectory> make_users(const Settings& settings);

  void on_message(const MessageView& message, Error error, const Flow& flow) override {
    const auto self = shared_from_this();
    proxy_.receive(message, error, flow, loop_->now_ms());
    rearm();
  }
  void on_connection_closed(std::uint32_t socket, Error error) override {
    const auto self = shared_from_this();
    proxy_.connection_closed(socket, error, loop_->now_ms());
    rearm();
  }
  void on_batch_end() override { proxy_.idle(); }
  /// Phones are reached over the connection they registered on, and some send nothing between two
  /// REGISTERs an hour apart.
  bool keeps_idle_connection(std::uint32_t socket) override {
    return registrar_.has_connection(socket, loop_->now_ms());
  }
  void on_alarm(std::uint64_t now_ms) override {
    const auto self = shared_from_this();
    proxy_.advance(now_ms);
    save_if_due(now_ms);
    rearm();
  }
  void rearm() {
    if (closed_) return;
    const std::uint64_t deadline_ms = std::min(proxy_.next_deadline(), save_deadline_ms());
    if (deadline_ms != UINT64_MAX) arm(deadline_ms);
  }

  Verdict run_in_pool(const std::shared_ptr<RouteHandler>& handler, const RouteRequest& request);
  static Verdict run_guarded(const RouteHandler& handler, const RouteRequest& request);
  StartError listen(const ListenerSettings& listener);
  OwnDomains own_domains() const;
  void load_bindings();
  std::uint64_t save_deadline_ms() const;
  void save_if_due(std::uint64_t now_ms);
  void report_save(Error error);
  std::string bindings_text() { return registrar_.save(loop_->now_ms(), unix_time_s()); }

  std::shared_ptr<const Settings> settings_;  ///< never null
  std::shared_ptr<LogHandler> log_;
  std::unique_ptr<Loop> loop_;
  Transports transports_;
  std::unique_ptr<UserDirectory> users_;
  Registrar registrar_;
  Proxy proxy_;
  Offload offload_;
  SipHashKey order_key_;                         ///< for the keys that keep messages in order
  std::shared_ptr<BindingsFile> bindings_file_;  ///< null where none is set
  std::uint64_t saved_revision_ = 0;
  std::uint64_t last_save_ms_ = 0;
  bool is_saving_ = false;
  bool closed_ = false;
};

inline TransportOptions ServerCore::transport_options(const Settings& settings) {
  TransportOptions options;
  options.tcp.keepalive_ms = settings.transport.tcp_keepalive_s * 1000;
  options.tcp.max_queued = settings.transport.tcp_write_limit_octets;
  options.tcp.max_connections = settings.transport.max_connections;
  options.tcp.max_connections_per_address = settings.transport.max_connections_per_address;
  options.open_udp_on_demand = false;
  return options;
}

inline RegistrarOptions ServerCore::registrar_options(const Settings& settings) {
  RegistrarOptions options;
  options.expires_min_s = settings.registrar.expires_min_s;
  options.expires_default_s = settings.registrar.expires_default_s;
  options.expires_max_s = settings.registrar.expires_max_s;
  options.max_bindings = settings.registrar.max_bindings;
  options.max_bindings_per_user = settings.registrar.max_bindings_per_user;
  options.nat = settings.registrar.nat;
  return options;
}

inline std::unique_ptr<UserDirectory> ServerCore::make_users(const Settings& settings) {
  auto users = std::make_unique<UserDirectory>(random_secret().value());
  for (const UserSettings& user : settings.users) users->add(user);
  return users;
}

inline ListenerOptions ServerCore::listener_options(const ListenerSettings& listener,
                                                    const SocketAddress& address) {
  ListenerOptions options;
  options.name = listener.name;
  options.transport = listener.type;
  options.address = address;
  options.max_message = listener.type == Transport::udp ? listener.max_datagram_octets
                                                        : listener.max_stream_message_octets;
  options.receive_buffer = listener.receive_buffer_octets;
  options.backlog = static_cast<int>(listener.backlog);
  options.idle_timeout_ms = listener.tcp_idle_s * 1000;
  options.ipv6_only = true;  // 0.0.0.0 and :: may be two listeners on one port
  return options;
}

inline StartError ServerCore::listen(const ListenerSettings& listener) {
  const std::string what = std::string(transport_parameter(listener.type)) + " " +
                           listener.address + " port " + std::to_string(listener.port);
  const auto address = listen_address(listener.address, listener.port);
  if (!address) return {address.error(), what};
  const auto bound = transports_.listen(listener_options(listener, *address));
  if (!bound) {
    return {bound.error(),
            std::string(transport_parameter(listener.type)) + " " + to_text(*address)};
  }
  return {};
}

inline StartError ServerCore::start() {
  if (loop_->error()) return {loop_->error(), "the loop"};
  for (const ListenerSettings& listener : settings_->listeners) {
    if (!listener.enable) continue;
    if (StartError error = listen(listener)) return error;
  }
  if (transports_.listeners().empty()) {
    return {ErrorCode::bad_configuration, "no listener is enabled"};
  }
  proxy_.set_domains(own_domains());
  load_bindings();
  rearm();
  return {};
}

/// What [general] domains lists; by default whatever somebody may rightly call this server.
inline OwnDomains ServerCore::own_domains() const {
  OwnDomains domains;
  for (const std::string& domain : settings_->domains) domains.add(domain);
  if (!settings_->domains.empty()) return domains;
  domains.add("localhost");
  domains.add(settings_->digest.realm);
  domains.add(host_name());
  for (const Listener& listener : transports_.listeners()) domains.add(listener.address.ip);
  for (const InterfaceAddress& interface : interface_addresses()) domains.add(interface.ip);
  return domains;
}

inline void ServerCore::reload(const Settings& settings) {
  auto users = make_users(settings);
  proxy_.reload(settings, *users);
  users_ = std::move(users);
  registrar_.set_options(registrar_options(settings));
  settings_ = std::make_shared<const Settings>(settings);
  proxy_.set_domains(own_domains());
  rearm();
}

inline HandlerChain::Id ServerCore::add_async_handler(int priority, RouteHandler handler,
                                                      RouteFilter filter) {
  const auto shared = std::make_shared<RouteHandler>(std::move(handler));
  return proxy_.handlers().add(
      priority, [this, shared, filter = std::move(filter)](const RouteRequest& request) {
        if (filter && !filter(request)) return Verdict::next();
        if (!settings_->message.async_process) return run_guarded(*shared, request);
        return run_in_pool(shared, request);
      });
}

/// What a handler throws costs its own message a 500 and nothing else.
inline Verdict ServerCore::run_guarded(const RouteHandler& handler, const RouteRequest& request) {
#if defined(__cpp_exceptions)
  try {
    return handler(request);
  } catch (...) {
    return Verdict::reject(500);
  }
#else
  return handler(request);
#endif
}

/// The handler answers from a thread of the pool; the order of one sender's messages to one
/// recipient is that of their jobs. A job whose turn comes when its sender has been answered 504 is
/// not the handler's any more: what it did with it could not be told to anybody.
inline Verdict ServerCore::run_in_pool(const std::shared_ptr<RouteHandler>& handler,
                                       const RouteRequest& request) {
  SipHash hash(order_key_);
  hash.update(request.caller);
  hash.update(std::string_view("\0", 1));
  hash.update(request.called);
  const auto kept = std::make_shared<KeptRouteRequest>(request);
  const std::uint64_t expires_at_ms =
      loop_->now_ms() + std::uint64_t{1000} * settings_->message.handler_deadline_s;
  const auto work = [handler, kept, expires_at_ms] {
    const bool is_late = uv_hrtime() / 1000000 >= expires_at_ms;  // the loop's clock, as it is now
    return is_late ? Verdict::reject(504) : run_guarded(*handler, kept->view());
  };
  const auto done = [this, kept](Error error, const Verdict& verdict) {
    if (!error) static_cast<void>(resume(kept->key(), verdict, kept->changes()));
  };
  if (offload_.run(hash.finish(), work, done)) return Verdict::reject(503);
  return Verdict::later();
}

inline void ServerCore::load_bindings() {
  last_save_ms_ = loop_->now_ms();
  if (settings_->registrar.file.empty()) return;
  bindings_file_ = std::make_shared<BindingsFile>(settings_->registrar.file);
  FileSource source;
  Ini file;
  Diagnostics diagnostics;
  if (load_ini(source, bindings_file_->path(), {}, file, diagnostics)) return;  // the first start
  const auto keep = [this](std::string_view user, Flow& flow) {
    flow.socket = 0;
    return settings_->registrar.autocreate || users_->find(user) != nullptr;
  };
  const auto result = registrar_.load(file, loop_->now_ms(), unix_time_s(), keep);
  saved_revision_ = registrar_.revision();
  log(Severity::info, bindings_file_->path() + ": " + std::to_string(result.loaded) +
                          " bindings read, " + std::to_string(result.dropped) + " dropped");
}

inline std::uint64_t ServerCore::save_deadline_ms() const {
  const bool due = bindings_file_ && !is_saving_ && registrar_.revision() != saved_revision_;
  return due ? last_save_ms_ + save_interval_ms : UINT64_MAX;
}

inline void ServerCore::save_if_due(std::uint64_t now_ms) {
  if (now_ms < save_deadline_ms()) return;
  last_save_ms_ = now_ms;
  const std::uint64_t revision = registrar_.revision();
  const auto work = [file = bindings_file_, text = bindings_text(), revision] {
    return file->write(revision, text);
  };
  const auto done = [this, revision](Error error, Error written) {
    is_saving_ = false;
    if (!error && written) report_save(written);
    if (!error && !written) saved_revision_ = revision;
    rearm();
  };
  is_saving_ = !offload_.run(work, done);
}

inline void ServerCore::report_save(Error error) {
  log(Severity::warning,
      bindings_file_->path() + ": " + describe(error) + ": the bindings are not saved");
}

inline void ServerCore::close() {
  if (closed_) return;
  closed_ = true;
  if (bindings_file_ && registrar_.revision() != saved_revision_) {
    const Error error = bindings_file_->write(registrar_.revision(), bindings_text());
    if (error) report_save(error);
  }
  proxy_.close();
  offload_.close();
  transports_.close();
  loop_->close();
}

}  // namespace detail

/// A server for SIP messages on the caller's loop.
///
///     sipmsg::Server server(uv_default_loop());  // open, on the loopback; or with Settings
///     if (auto error = server.start()) ... error.text() ...
///
class Server {
 public:
  /// `settings` as load_directory or open_settings give them. `loop` must stay until it has run
  /// dry after `close`.
  explicit Server(uv_loop_t* loop, const Settings& settings = open_settings())
      : core_(std::make_shared<detail::ServerCore>(std::make_unique<Loop>(loop), settings,
                                                   random_secret().value())) {}
  ~Server() { close(); }
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  /// Opens every listener. After an error the Server is to be closed.
  StartError start() { return core_->start(); }
  /// The sockets that listen, with the ports they got.
  const std::vector<Listener>& listeners() const { return core_->transports().listeners(); }
  /// Other settings from now on. Listeners, timers and table sizes stay as they were at the start,
  /// and so do bindings and messages on their way.
  void reload(const Settings& settings) { core_->reload(settings); }

  /// Installs a handler that every MESSAGE is offered to, in ascending priority; the users' own
  /// bindings are looked up at 100. It runs on the loop and must not wait for anything: it may
  /// answer Verdict::later() and call `resume` when it knows.
  HandlerChain::Id add_handler(int priority, RouteHandler handler) {
    return core_->add_handler(priority, std::move(handler));
  }
  /// The same for a handler that may take long: it runs in libuv's thread pool where [message]
  /// async_process is on, one message at a time for each pair of sender and recipient.
  /// The handler must be good for several threads at once; what it throws is a 500. What does not
  /// pass `filter` it is not asked about, and goes on without waiting for a thread. One that does
  /// not return keeps its thread for good, of four, which names and files are looked up with, too;
  /// about messages that were answered 504 meanwhile it is not asked.
  HandlerChain::Id add_async_handler(int priority, RouteHandler handler,
                                     RouteFilter filter = nullptr) {
    return core_->add_async_handler(priority, std::move(handler), std::move(filter));
  }
  /// False where it was removed already.
  bool remove_handler(HandlerChain::Id id) { return core_->proxy().handlers().remove(id); }
  /// The verdict promised under that key, with the changes of KeptRouteRequest where there are any.
  /// `gone` where its deadline is over.
  Error resume(RouteKey key, const Verdict& verdict, const RouteChanges& changes = {}) {
    return core_->resume(key, verdict, changes);
  }

  /// Sends a message to the bindings of the user that `outgoing.to` names, or to the one binding
  /// whose contact `outgoing.request_uri` is, as any other message is relayed; handlers are not
  /// asked. See Proxy::send. `done` is called exactly once, from inside `close` at the latest.
  Error send(const Outgoing& outgoing, SentHandler done) {
    return core_->send(outgoing, std::move(done));
  }
  /// The user's section of regfile.conf, or null. Lifetime: until `reload`.
  const UserSettings* find_user(std::string_view name) const { return core_->find_user(name); }
  /// Whether there is such a user, be it under another name.
  bool is_known(std::string_view user) const { return core_->proxy().is_known(user); }
  /// Calls `use(const Binding&)` on every binding of that user, which must not call this Server.
  template <class Use>
  void for_each_binding(std::string_view user, Use use) const {
    core_->proxy().for_each_binding(user, core_->loop().now_ms(), use);
  }
  /// Whom to ask about messages to known users that nobody took: to keep them, or to send them
  /// elsewhere.
  void on_undelivered(UndeliveredHandler handler) {
    core_->proxy().on_undelivered(std::move(handler));
  }
  /// Whom to tell of phones that register and unregister.
  void on_registration(RegistrationHandler handler) {
    core_->proxy().on_registration(std::move(handler));
  }

  void on_log(LogHandler handler) { core_->on_log(std::move(handler)); }
  /// Whom to show every message, in or out. It looks on: it must not call this Server from there.
  void on_trace(Transports::TraceHandler handler) {
    core_->transports().on_trace(std::move(handler));
  }
  const ServerCounters& counters() const { return core_->proxy().counters(); }
  std::size_t bindings() const { return core_->registrar().size(); }

  /// Has `function()` called on the loop's thread. The one call other threads may make.
  template <class Function>
  Error post(Function function) {
    return core_->loop().post(std::move(function));
  }

  /// Saves the bindings where a file is set, closes all sockets; the loop runs dry then.
  void close() { core_->close(); }

 private:
  std::shared_ptr<detail::ServerCore> core_;
};

}  // namespace sipmsg
