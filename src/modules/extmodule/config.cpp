// extmodule/config: see config.hpp.
#include "config.hpp"

#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <functional>
#include <utility>

namespace modules::extmodule {

namespace {

using sipmsg::IniEntry;
using sipmsg::IniSection;
using sipmsg::Severity;

constexpr std::string_view listener_prefix = "listener ";

/// One key of a section, and what to do with its value. False: the value cannot be used.
using Use = std::function<bool(const std::string& value)>;
struct Key {
  std::string_view name;
  std::string_view allowed;  ///< what the value may be, for people
  Use use;
};

Use boolean(bool& target) {
  return [&target](const std::string& value) {
    const auto read = sipmsg::parse_boolean(value);
    if (read) target = *read;
    return read.has_value();
  };
}

Use number(std::uint32_t& target, std::int64_t minimum, std::int64_t maximum) {
  return [&target, minimum, maximum](const std::string& value) {
    const auto read = sipmsg::parse_integer(value);
    if (!read || *read < minimum || *read > maximum) return false;
    target = static_cast<std::uint32_t>(*read);
    return true;
  };
}

Use text(std::string& target) {
  return [&target](const std::string& value) {
    target = value;
    return true;
  };
}

bool is_loopback(const sipmsg::IpAddress& ip) {
  if (!ip.is_ipv6()) return ip.octets[0] == 127;
  return sipmsg::to_text(ip) == "::1";
}

class Reader {
 public:
  Reader(const std::string& directory, Config& config, sipmsg::Diagnostics& diagnostics)
      : directory_(directory), config_(config), diagnostics_(diagnostics) {
    options_.run_parameters = {
        {"configpath", directory}, {"sharedpath", directory}, {"version", SIPMSG_VERSION}};
    options_.loaded_modules = {"ysipchan", "regfile", "extmodule"};
  }

  bool read() {
    const std::string path = directory_ + "/extmodule.conf";
    if (::access(path.c_str(), F_OK) != 0) return true;
    if (const auto error = load_ini(source_, path, options_, ini_, diagnostics_)) {
      diagnostics_.push_back({Severity::error, path, 0, sipmsg::describe(error)});
      return false;
    }
    session_.facts = read_facts();
    // First of all: what [general] says rules the programs and listeners of every section.
    if (const IniSection* general = ini_.find("general")) read_general(*general);
    for (const IniSection& section : ini_.sections()) read_section(section);
    config_.path = path;
    config_.timeout_ms = session_.locals.timeout_ms;
    return usable_;
  }

 private:
  void remark(Severity severity, std::uint32_t file, std::uint32_t line, std::string text_of_it) {
    usable_ = usable_ && severity != Severity::error;
    diagnostics_.push_back({severity, ini_.files()[file], line, std::move(text_of_it)});
  }

  void remark(Severity severity, const IniEntry& entry, std::string text_of_it) {
    remark(severity, entry.file, entry.line, std::move(text_of_it));
  }

  std::shared_ptr<const Facts> read_facts() {
    auto facts = std::make_shared<Facts>();
    facts->engine = options_.run_parameters;
    facts->loaded_modules = options_.loaded_modules;
    facts->run_id = std::to_string(std::time(nullptr));
    const std::string path = directory_ + "/yate.conf";
    sipmsg::Diagnostics ignored;  // it is read for programs that ask, and rules nothing here
    if (::access(path.c_str(), R_OK) == 0) {
      (void)load_ini(source_, path, options_, facts->config, ignored);
    }
    return facts;
  }

  void read_keys(const IniSection& section, const std::vector<Key>& keys) {
    for (const IniEntry& entry : section.entries) {
      const auto known = [&entry](const Key& key) { return key.name == entry.key; };
      const auto key = std::find_if(keys.begin(), keys.end(), known);
      if (key == keys.end()) {
        std::string names;
        for (const Key& other : keys) names.append(names.empty() ? "" : ", ").append(other.name);
        remark(Severity::warning, entry, "unknown key " + entry.key + "; known are " + names);
      } else if (section.find(entry.key) == &entry && !key->use(entry.value)) {
        remark(Severity::warning, entry,
               entry.key + "=" + entry.value + " is not used: it must be " +
                   std::string(key->allowed));
      }
    }
  }

  void read_general(const IniSection& section) {
    Locals& locals = session_.locals;
    std::uint32_t priority = static_cast<std::uint32_t>(session_.priority);
    std::uint32_t grace_ticks = config_.grace_ms / tick_ms;
    bool is_tracked = false;
    read_keys(section,
              {
                  {"scripts_dir", "a directory", text(scripts_directory_)},
                  {"priority", "0 to 2147483647", number(priority, 0, INT32_MAX)},
                  {"maxqueue", "0 to 10000", number(locals.maxqueue, 0, Locals::largest_maxqueue)},
                  {"timeout", "1 to 600000 milliseconds", number(locals.timeout_ms, 1, 600000)},
                  {"timebomb", "yes or no", boolean(locals.timebomb)},
                  {"settime", "yes or no", boolean(locals.settime)},
                  {"waitflush", "1 to 100 tenths of a second", number(grace_ticks, 1, 100)},
                  {"trackparam", "yes or no", boolean(is_tracked)},
              });
    if (const IniEntry* entry = section.find("timeout")) config_.timeout_line = entry->line;
    if (const IniEntry* entry = section.find("trackparam")) {
      remark(Severity::info, *entry,
             "trackparam has no effect: programs always stand in the parameter handlers");
    }
    session_.priority = static_cast<int>(priority);
    config_.grace_ms = grace_ticks * tick_ms;
    scripts_directory_ = expand_run_parameters(scripts_directory_, options_.run_parameters);
  }

  void read_section(const IniSection& section) {
    if (section.name == "general") return;
    if (section.name == "scripts") return read_programs(section, true);
    if (section.name == "execute") return read_programs(section, false);
    if (section.name.compare(0, listener_prefix.size(), listener_prefix) == 0) {
      return read_listener(section);
    }
    remark(Severity::warning, section.file, section.line,
           "unknown section " + section.name +
               "; known are general, scripts, execute and listener NAME");
  }

  void read_programs(const IniSection& section, bool speaks) {
    for (const IniEntry& entry : section.entries) {
      ProgramSettings program;
      program.path = path_of_program(entry.key);
      program.argument = expand_run_parameters(entry.value, options_.run_parameters);
      program.speaks = speaks;
      program.session = session_;
      if (std::string wrong = obstacle(program.path); !wrong.empty()) {
        remark(Severity::error, entry, program.path + wrong);
      } else {
        config_.programs.push_back(std::move(program));
      }
    }
  }

  std::string path_of_program(const std::string& file) const {
    if (file.front() == '/') return file;
    const bool is_relative = scripts_directory_.empty() || scripts_directory_.front() != '/';
    return (is_relative ? directory_ + "/" : "") + scripts_directory_ + "/" + file;
  }

  static std::string obstacle(const std::string& path) {
    struct stat status {};
    if (::stat(path.c_str(), &status) != 0) return " is not there";
    if (!S_ISREG(status.st_mode)) return " is no program";
    if (::access(path.c_str(), X_OK) != 0) return " is not executable; chmod +x makes it so";
    return {};
  }

  void read_listener(const IniSection& section) {
    ListenerSettings listener;
    listener.name = section.name.substr(listener_prefix.size());
    listener.session = session_;
    std::string type = "tcp";
    std::string address = "127.0.0.1";
    std::string role;
    std::uint32_t port = 0;
    read_keys(section,
              {
                  {"type", "tcp or unix", text(type)},
                  {"addr", "a numeric address", text(address)},
                  {"port", "0 to 65535", number(port, 0, 65535)},
                  {"path", "a file", text(listener.path)},
                  {"mode", "permissions in octal, such as 0660", number(listener.mode, 0, 0777)},
                  {"role", "global, or nothing", text(role)},
              });
    listener.session.is_connected = role == "global";
    listener.is_unix = type == "unix";
    listener.path = expand_run_parameters(listener.path, options_.run_parameters);
    const auto refuse = [&](const char* key, const std::string& why) {
      const IniEntry* entry = section.find(key);
      if (entry != nullptr) return remark(Severity::error, *entry, why);
      remark(Severity::error, section.file, section.line, why);
    };
    if (!role.empty() && role != "global") {
      return refuse("role", "role " + role + " is for calls; here only global programs are served");
    }
    if (type != "tcp" && type != "unix") {
      return refuse("type", "unknown type " + type + "; known are tcp and unix");
    }
    if (listener.is_unix) {
      if (listener.path.empty()) return refuse("path", "a listener of type unix needs a path");
      if (listener.path.size() >= sizeof(sockaddr_un::sun_path)) {
        return refuse("path", "the path is too long for the name of a socket");
      }
    } else {
      const auto parsed = sipmsg::parse_ip(address);
      if (!parsed) return refuse("addr", address + " is no numeric address");
      if (section.find("port") == nullptr) {
        return refuse("port", "a listener of type tcp needs a port");
      }
      listener.address.ip = *parsed;
      listener.address.port = static_cast<std::uint16_t>(port);
      if (!is_loopback(*parsed)) {
        remark(Severity::warning, *section.find("addr"),
               address +
                   " can be reached from other machines: whoever connects there reads and"
                   " changes every message, without a password");
      }
    }
    config_.listeners.push_back(std::move(listener));
  }

  static constexpr std::uint32_t tick_ms = 100;

  const std::string& directory_;
  Config& config_;
  sipmsg::Diagnostics& diagnostics_;
  sipmsg::IniOptions options_;
  sipmsg::FileSource source_;
  sipmsg::Ini ini_;
  SessionOptions session_;  ///< of programs that say nothing else
  std::string scripts_directory_ = "scripts";
  bool usable_ = true;
};

}  // namespace

bool load_config(const std::string& directory, Config& config, sipmsg::Diagnostics& diagnostics) {
  return Reader(directory, config, diagnostics).read();
}

}  // namespace modules::extmodule
