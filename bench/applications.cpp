// What an application costs the server for each message, whichever way it is written.
//
//     applications PROGRAM SCRIPTS [MESSAGES]     PROGRAM is build/.../sipmsg, SCRIPTS is
//                                                 examples/scripts; default: 10000 messages
//
// For each way a server in a process of its own, over UDP on the loopback; this process plays the
// phones. Each application lets only 101 write, but for the last, which stores what he writes in a
// SQLite file. The figure is the time on a CPU by the scheduler's account, of all threads of the
// server and of the processes it has started, while the messages pass; what it takes to start is
// left out. The ways take turns, several times, and the best of each counts: noise only adds.
#include <dirent.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "phone.hpp"
#include "sipmsg.hpp"

using namespace bench;

namespace {

constexpr int window = 32;
constexpr int rounds = 3;
constexpr int warm_up = 500;
const std::string body(100, 'x');

/// Serves the directory until it is killed.
using Serve = std::function<void(const std::string& directory)>;

struct Way {
  const char* name;
  Serve serve;
  std::vector<std::pair<std::string, std::string>> files;
  std::vector<std::string> copied;  ///< from SCRIPTS
  int refusal = 0;  ///< what others than 101 are answered; 0 where they are not refused
  double best_us = 0;
};

void write_file(const std::string& path, const std::string& text) {
  std::FILE* file = std::fopen(path.c_str(), "wb");
  if (file == nullptr || std::fwrite(text.data(), 1, text.size(), file) != text.size()) {
    fail(path.c_str());
  }
  std::fclose(file);
  chmod(path.c_str(), 0700);
}

std::string read_file(const std::string& path) {
  std::string text;
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) return text;
  char piece[4096];
  while (const std::size_t size = std::fread(piece, 1, sizeof piece, file))
    text.append(piece, size);
  std::fclose(file);
  return text;
}

std::vector<std::string> names_in(const std::string& path) {
  std::vector<std::string> names;
  DIR* directory = opendir(path.c_str());
  if (directory == nullptr) return names;
  while (const dirent* entry = readdir(directory)) {
    if (entry->d_name[0] != '.') names.emplace_back(entry->d_name);
  }
  closedir(directory);
  return names;
}

// ---- the servers

/// The program, with its modules.
Serve serve_program(const std::string& program) {
  return [program](const std::string& directory) {
    if (std::freopen("/dev/null", "w", stderr) == nullptr) fail("/dev/null");
    execl(program.c_str(), program.c_str(), "serve", "-c", directory.c_str(), nullptr);
    std::exit(1);
  };
}

/// A server in C++, with a handler that `add` adds.
Serve serve_handler(void (*add)(sipmsg::Server& server)) {
  return [add](const std::string& directory) {
    sipmsg::Settings settings;
    sipmsg::Diagnostics diagnostics;
    if (load_directory(directory, settings, diagnostics)) fail("the configuration");
    sipmsg::Server server(uv_default_loop(), settings);
    add(server);
    if (const auto error = server.start()) fail(error.text().c_str());
    uv_run(uv_default_loop(), UV_RUN_DEFAULT);
  };
}

sipmsg::Verdict refuse_others(const sipmsg::RouteRequest& request) {
  return request.caller == "101" ? sipmsg::Verdict::next() : sipmsg::Verdict::reject(403);
}

std::vector<Way> all_ways(const std::string& program) {
  const Serve with_modules = serve_program(program);
  std::vector<Way> ways;
  ways.push_back({"no handler", with_modules, {}, {}});
  ways.push_back({"C++ handler, on the loop",
                  serve_handler([](auto& server) { server.add_handler(50, refuse_others); }),
                  {},
                  {},
                  403});
  ways.push_back({"C++ handler, in the pool",
                  serve_handler([](auto& server) { server.add_async_handler(50, refuse_others); }),
                  {},
                  {},
                  403});
  ways.push_back({"regexroute, one line",
                  with_modules,
                  {{"regexroute.conf",
                    "[default]\n${route_type}^msg$=if ${caller}^101$^=-;reason=forbidden\n"}},
                  {},
                  403});
  ways.push_back({"JavaScript, filter_sip_messages.js",
                  with_modules,
                  {{"javascript.conf", "[scripts]\nfilter=filter_sip_messages.js\n"}},
                  {"filter_sip_messages.js"},
                  406});
  ways.push_back(
      {"external program in Python",
       with_modules,
       {{"extmodule.conf", "[general]\nscripts_dir=${configpath}\n[scripts]\nfilter.py=\n"},
        {"filter.py",
         "#!/usr/bin/env python3\n"
         "from extmodule_protocol import Engine\n"
         "def refuse_others(message):\n"
         "    if message.get('caller') == '101':\n"
         "        return False\n"
         "    message.return_value = '-'\n"
         "    message.set('reason', 'forbidden')\n"
         "    return True\n"
         "engine = Engine()\n"
         "engine.install('call.route', refuse_others, priority=50, only=('route_type', 'msg'))\n"
         "engine.run()\n"}},
       {"extmodule_protocol.py"},
       403});
  ways.push_back(
      {"JavaScript, stored by sqlitedb",
       with_modules,
       {{"javascript.conf", "[scripts]\nstore=store.js\n"},
        {"sqlitedb.conf",
         "[smsc]\ndatabase=${configpath}/smsc.db\ninitialize=CREATE TABLE sms(caller TEXT, called "
         "TEXT, message TEXT)\n"},
        {"store.js",
         "Message.install(function (msg) {\n"
         "    var m = new Message('database');\n"
         "    m.account = 'smsc';\n"
         "    m.query = \"INSERT INTO sms VALUES('\" + msg.caller.sqlEscape(\"'\") + \"','\" +\n"
         "        msg.called.sqlEscape(\"'\") + \"','\" + msg.xsip_body.sqlEscape(\"'\") + "
         "\"')\";\n"
         "    if (m.dispatch() && m.affected == 1)\n"
         "        return false;\n"
         "    msg.code = 500;\n"
         "    msg.retValue('-');\n"
         "    return true;\n"
         "}, 'call.route', 50);\n"}},
       {}});
  return ways;
}

/// A server that serves one way, with a directory of its own.
class Running {
 public:
  Running(const Way& way, const std::string& scripts) : port_(free_port()) {
    char name[] = "/tmp/sipmsg-bench-XXXXXX";
    if (mkdtemp(name) == nullptr) fail("mkdtemp");
    directory_ = name;
    write_file(directory_ + "/ysipchan.conf",
               "[general]\naddr=127.0.0.1\nport=" + std::to_string(port_) +
                   "\nbuffer=4194304\nfloodprotection=no\nmax_transactions=1000000\n"
                   "[registrar]\nauth_required=no\n[message]\nenable=yes\nauth_required=no\n");
    write_file(directory_ + "/regfile.conf", "[101]\n[102]\n[103]\n");
    for (const auto& [file, text] : way.files) write_file(directory_ + "/" + file, text);
    for (const std::string& file : way.copied) {
      write_file(directory_ + "/" + file, read_file(scripts + "/" + file));
    }
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGTERM);
      way.serve(directory_);
      std::exit(0);
    }
  }
  ~Running() {
    kill(pid_, SIGTERM);
    waitpid(pid_, nullptr, 0);
    for (const std::string& name : names_in(directory_)) {
      const std::string path = directory_ + "/" + name;
      if (unlink(path.c_str()) != 0) remove_cache(path);
    }
    rmdir(directory_.c_str());
  }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;

  std::uint16_t port() const { return port_; }

  /// Time on a CPU until now, of it and all its descendants.
  double cpu_us() const {
    double sum_us = 0;
    for (const std::string& process : family()) {
      const std::string threads = "/proc/" + process + "/task";
      for (const std::string& thread : names_in(threads)) {
        sum_us += std::atof(read_file(threads + "/" + thread + "/schedstat").c_str()) / 1000;
      }
    }
    return sum_us;
  }

 private:
  static std::uint16_t free_port() {
    const int fd = socket(AF_INET, SOCK_DGRAM, 0);
    sockaddr_in own{};
    own.sin_family = AF_INET;
    own.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof own;
    if (bind(fd, reinterpret_cast<sockaddr*>(&own), length) != 0) fail("bind");
    getsockname(fd, reinterpret_cast<sockaddr*>(&own), &length);
    close(fd);
    return ntohs(own.sin_port);
  }

  /// What Python compiles beside a module that is imported.
  static void remove_cache(const std::string& path) {
    for (const std::string& name : names_in(path)) unlink((path + "/" + name).c_str());
    rmdir(path.c_str());
  }

  /// The process and whatever has it for an ancestor.
  std::vector<std::string> family() const {
    std::map<std::string, std::string> parents;
    for (const std::string& name : names_in("/proc")) {
      const std::string status = read_file("/proc/" + name + "/status");
      const std::size_t at = status.find("PPid:\t");
      if (at != std::string::npos) {
        parents[name] = status.substr(at + 6, status.find('\n', at) - at - 6);
      }
    }
    std::vector<std::string> found = {std::to_string(pid_)};
    for (std::size_t i = 0; i < found.size(); ++i) {
      for (const auto& [child, parent] : parents) {
        if (parent == found[i]) found.push_back(child);
      }
    }
    return found;
  }

  std::uint16_t port_;
  std::string directory_;
  pid_t pid_ = 0;
};

// ---- the phones

/// Waits until the server is there: a REGISTER that nobody listens for is refused by the system.
void wait_for_server(std::uint16_t port) {
  for (int tries = 0; tries < 500; ++tries) {
    const int fd = socket(AF_INET, SOCK_DGRAM, 0);
    sockaddr_in name{};
    name.sin_family = AF_INET;
    name.sin_port = htons(port);
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const bool is_free = bind(fd, reinterpret_cast<sockaddr*>(&name), sizeof name) == 0;
    close(fd);
    if (!is_free) return;
    usleep(20000);
  }
  fail("the server did not start");
}

class Traffic {
 public:
  explicit Traffic(std::uint16_t port) : alice_(port), bob_(port), other_(port) {
    bob_.enroll("102");
  }

  /// Waits until the application is there, which is when others than 101 are refused so.
  void wait_for_refusal(int code) {
    const std::string wanted = "SIP/2.0 " + std::to_string(code);
    while (true) {
      other_.write("103", "101", ++number_, body);
      const std::string_view answer = other_.receive();
      if (answer.substr(0, wanted.size()) == wanted) return;
      usleep(10000);
    }
  }

  void relay(int count) {
    const int end = number_ + count;
    int sent = number_;
    int answered = number_;
    while (answered < end) {
      for (; sent < end && sent - answered < window; ++sent) alice_.write("101", "102", sent, body);
      for (int i = answered; i < sent; ++i) bob_.answer(bob_.receive());
      for (; answered < sent; ++answered) {
        if (alice_.receive().substr(0, 11) != "SIP/2.0 200") fail("an answer that is not 200");
      }
    }
    number_ = end;
  }

 private:
  Phone alice_;
  Phone bob_;
  Phone other_;
  int number_ = 1;
};

double measure(const Way& way, const std::string& scripts, int messages) {
  const Running server(way, scripts);
  wait_for_server(server.port());
  Traffic traffic(server.port());
  if (way.refusal != 0) traffic.wait_for_refusal(way.refusal);
  traffic.relay(warm_up);
  const double before_us = server.cpu_us();
  traffic.relay(messages);
  return (server.cpu_us() - before_us) / messages;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const int messages = argc > 3 ? std::atoi(argv[3]) : 10000;
  std::vector<Way> ways = all_ways(argv[1]);
  for (int round = 0; round < rounds; ++round) {
    for (Way& way : ways) {
      const double us = measure(way, argv[2], messages);
      way.best_us = round == 0 ? us : std::min(way.best_us, us);
    }
  }
  std::printf("%d messages of %zu octets each, %d at once, best of %d\n", messages, body.size(),
              window, rounds);
  std::printf("%-36s %12s %12s %8s\n", "", "CPU, us", "more, us", "ratio");
  for (const Way& way : ways) {
    std::printf("%-36s %12.1f %12.1f %8.2f\n", way.name, way.best_us, way.best_us - ways[0].best_us,
                way.best_us / ways[0].best_us);
  }
  return 0;
}
