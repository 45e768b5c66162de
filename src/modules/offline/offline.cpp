// offline: see offline.hpp.
#include "offline.hpp"

#include <utility>
#include <vector>

#include "delivery.hpp"

namespace modules {

namespace {

/// Before all others that are told of a phone: none of them can hold it up.
constexpr int register_priority = 0;

/// What was kept in memory only, from one configuration to the next: a reload makes a new module.
std::vector<KeptMessage>& handed_over() {
  static std::vector<KeptMessage> messages;
  return messages;
}

/// Where `[offline] spool` stands, or where it could; for remarks on it.
sipmsg::Diagnostic remark_on_spool(const std::string& directory, sipmsg::Severity severity,
                                   const std::string& text) {
  sipmsg::Diagnostic remark;
  remark.severity = severity;
  remark.file = directory + "/ysipchan.conf";
  remark.text = "[offline] spool: " + text;
  sipmsg::FileSource files;
  sipmsg::Ini ini;
  sipmsg::Diagnostics ignored;
  if (sipmsg::load_ini(files, remark.file, {}, ini, ignored)) return remark;
  const sipmsg::IniEntry* entry = ini.find("offline", "spool");
  if (entry == nullptr) entry = ini.find("offline", "enable");
  if (entry == nullptr) return remark;
  remark.file = ini.files()[entry->file];
  remark.line = entry->line;
  return remark;
}

bool is_directory(const std::string& path) { return sipmsg::list_directory(path).ok(); }

std::string parent_of(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  const std::size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

class Offline final : public Module {
 public:
  std::string_view name() const override { return "offline"; }

  bool load(const std::string& directory, sipmsg::Diagnostics& diagnostics) override {
    // Whoever reads the settings for the server says what is wrong with them.
    sipmsg::Diagnostics said_already;
    if (sipmsg::load_directory(directory, settings_, said_already)) return true;
    if (!settings_.offline.enable) return true;
    using sipmsg::Severity;
    const std::string& spool = settings_.offline.spool;
    if (spool.empty()) {
      diagnostics.push_back(
          remark_on_spool(directory, Severity::warning,
                          "not set: messages are kept in memory, and lost when the server ends"));
    } else if (!is_directory(spool) && !is_directory(parent_of(spool))) {
      diagnostics.push_back(
          remark_on_spool(directory, Severity::error,
                          parent_of(spool) + " is no directory, so none can be made in it"));
      return false;
    }
    return true;
  }

  bool is_enabled() const override { return settings_.offline.enable; }

  void start(Context& context) override {
    context_ = &context;
    delivery_ = OfflineDelivery::make(
        context.loop, context.server, settings_,
        [log = context.log](sipmsg::Severity severity, std::string_view text) {
          if (log) log(severity, text);
        });
    delivery_->open(std::exchange(handed_over(), {}));
    context.server.on_undelivered([this](const sipmsg::RouteRequest& request, int code) {
      return delivery_->on_undelivered(request, code);
    });
    register_ = context.engine.install(std::string(name()), "user.register", register_priority,
                                       [this](const MessagePointer& message, const Answer& answer) {
                                         delivery_->on_register(message->get_or("username"),
                                                                message->get_or("sip_to"));
                                         answer(false);
                                       });
  }

  void stop() override {
    if (!delivery_) return;
    context_->server.on_undelivered(nullptr);
    context_->engine.uninstall(register_);
    handed_over() = delivery_->close();
    delivery_.reset();
  }

 private:
  sipmsg::Settings settings_;
  Context* context_ = nullptr;
  std::shared_ptr<OfflineDelivery> delivery_;
  Engine::Id register_ = 0;
};

}  // namespace

std::unique_ptr<Module> make_offline() { return std::make_unique<Offline>(); }

}  // namespace modules
