// What it costs to ask a script about a message: from the engine to the script's process and back,
// one message at a time and a hundred at a time, with the 25 parameters of a usual MESSAGE.
//
//   bench_javascript PROGRAM [MESSAGES]     PROGRAM is build/.../sipmsg
#include <sys/resource.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "../src/modules/javascript/process.hpp"

using namespace modules;

namespace {

struct Case {
  const char* name;
  const char* script;
};

constexpr Case cases[] = {
    {"looks at one parameter",
     "Message.install(function (msg) { return msg.caller == 102; }, 'call.route', 50);"},
    {"changes two",
     "Message.install(function (msg) { msg.x = msg.caller + 1; msg.caller = 'x'; return false; },"
     "'call.route', 50);"},
    {"dispatches another message",
     "Message.install(function (msg) { var m = new Message('database'); m.account = 'smsc';"
     "m.query = \"INSERT '\" + msg.xsip_body.sqlEscape() + \"'\"; m.dispatch(); return false; },"
     "'call.route', 50);"},
};

std::shared_ptr<ListMessage> usual_message() {
  auto message = std::make_shared<ListMessage>("call.route");
  message->set("caller", "101");
  message->set("xsip_body", "What it costs to ask a script about a message, it's measured here.");
  for (int i = 0; i < 23; ++i) {
    message->set("sip_parameter_" + std::to_string(i), "<sip:101@192.0.2.1:5060>;tag=8f2b7c01");
  }
  return message;
}

/// CPU time of this process, or of its children that have ended, in microseconds.
double cpu_us(decltype(RUSAGE_SELF) whose) {
  rusage usage{};
  ::getrusage(whose, &usage);
  const auto microseconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) * 1e6 + static_cast<double>(time.tv_usec);
  };
  return microseconds(usage.ru_utime) + microseconds(usage.ru_stime);
}

class Bench {
 public:
  explicit Bench(const std::string& program) {
    uv_loop_init(&loop_);
    surroundings_.loop = &loop_;
    surroundings_.engine = &engine_;
    surroundings_.program = program;
    surroundings_.shared = &shared_;
    surroundings_.limits.time_limit_ms = 60000;
    surroundings_.limits.timeout_ms = 60000;
    surroundings_.log = [](sipmsg::Severity, std::string_view line) {
      std::fprintf(stderr, "%s\n", std::string(line).c_str());
      std::exit(1);
    };
    engine_.install("database", "database", 100,
                    [](const MessagePointer&, const Answer& answer) { answer(true); });
  }

  void run(const Case& what, int messages, int at_once) {
    ScriptSource source;
    source.name = "bench";
    source.text = what.script;
    source.files = {"bench"};
    source.pieces = {{1, 0, 1}};
    const auto script = ScriptProcess::start(surroundings_, source);
    left_ = messages;
    finished_ = 0;
    const std::uint64_t began = uv_hrtime();
    const double server_began = cpu_us(RUSAGE_SELF);
    const double script_began = cpu_us(RUSAGE_CHILDREN);
    for (int i = 0; i < at_once; ++i) send();
    while (finished_ < messages) uv_run(&loop_, UV_RUN_ONCE);
    const double wall_us = static_cast<double>(uv_hrtime() - began) / 1000;
    const double server_us = cpu_us(RUSAGE_SELF) - server_began;
    script->stop();
    uv_run(&loop_, UV_RUN_DEFAULT);
    const double script_us = cpu_us(RUSAGE_CHILDREN) - script_began;
    std::printf("%-28s %3d at once: %6.1f us each; CPU: server %5.1f us, script %5.1f us\n",
                what.name, at_once, wall_us / messages, server_us / messages, script_us / messages);
  }

 private:
  void send() {
    if (left_ == 0) return;
    --left_;
    engine_.dispatch(usual_message(), [this](bool handled) {
      if (handled) std::abort();
      ++finished_;
      send();
    });
  }

  uv_loop_t loop_{};
  Engine engine_;
  SharedVariables shared_;
  ScriptSurroundings surroundings_;
  int left_ = 0;
  int finished_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  const int messages = argc > 2 ? std::atoi(argv[2]) : 20000;
  Bench bench(argv[1]);
  for (const Case& what : cases) {
    for (int at_once : {1, 100}) bench.run(what, messages, at_once);
  }
  return 0;
}
