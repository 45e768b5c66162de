// send: one message, or many of the same, and what became of them.
#include <unistd.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "account.hpp"
#include "command_line.hpp"
#include "input.hpp"
#include "json.hpp"
#include "lifetime.hpp"
#include "outcome.hpp"
#include "output.hpp"
#include "screen_text.hpp"
#include "subcommands.hpp"
#include "trace.hpp"

namespace program {

namespace {

using sipmsg::Outcome;
using sipmsg::Outgoing;

constexpr std::uint32_t most_messages = 1000000;
constexpr std::uint32_t highest_rate = 100000;
constexpr std::uint64_t progress_every_ms = 200;

struct SendArguments {
  Account account;
  std::string from;
  std::string to;
  std::string text;
  bool has_text = false;
  std::string file;
  std::string content_type = "text/plain;charset=utf-8";
  std::uint32_t deadline_ms = 0;
  std::uint32_t repeat = 1;
  std::uint32_t rate_per_s = 0;
  bool json = false;
};

std::optional<int> read(SendArguments& arguments, int argc, char** argv) {
  const Option options[] = {
      {"--from", "URI", "the sender; default: the --user at the recipient's host, or nobody",
       &arguments.from},
      {"--file", "FILE", "the message is what this file holds", &arguments.file},
      {"--content-type", "TYPE", "what it is; default: text/plain;charset=utf-8",
       &arguments.content_type},
      {"--deadline", "SECONDS", "how long to wait for the answer; default: 32 for each server",
       SecondsTarget{&arguments.deadline_ms}},
      {"--repeat", "N", "send it so many times, one after the other",
       NumberTarget{&arguments.repeat, 1, most_messages}},
      {"--rate", "R", "so many each second, whether the last one is answered or not",
       NumberTarget{&arguments.rate_per_s, 1, highest_rate}},
      {"--json", "", "print one JSON object", &arguments.json},
  };
  const Operand operands[] = {{"TO-URI", &arguments.to, true},
                              {"TEXT", &arguments.text, false, &arguments.has_text}};
  CommandLine command;
  command.usage = "sipmsg send [OPTIONS] TO-URI [TEXT | -]";
  command.summary =
      "Sends a message and prints what became of it: \"200 OK in 3.2 ms\". The text is the "
      "argument,\n"
      "or standard input with -, without its last line end, or that of --file.";
  command.options = options;
  command.operands = operands;
  command.shared = arguments.account.options();
  command.notes =
      "--json prints to, from, ok, time_ms, exit_status, meaning, and code and reason of the "
      "answer, or\n"
      "error where there was none. With --repeat: sent, answers (how many of each code), errors,\n"
      "seconds, p50_ms, p99_ms, longest_ms, exit_status.\n\n"
      "Exit status: 0 delivered or accepted, 1 refused, 2 wrong usage, 3 no answer.";
  return read_arguments(command, argc, argv);
}

/// What is wrong with the arguments taken together, "" where nothing is; fills in what follows.
std::string complete(SendArguments& arguments) {
  if (std::string wrong = check_uri("TO-URI", arguments.to); !wrong.empty()) return wrong;
  if (arguments.has_text && !arguments.file.empty()) return "TEXT and --file: only one of them";
  if (!arguments.has_text && arguments.file.empty()) {
    return "TEXT is missing: give it as an argument, as - for standard input, or with --file";
  }
  if (!arguments.from.empty()) {
    if (std::string wrong = check_uri("--from", arguments.from); !wrong.empty()) return wrong;
  }
  if (std::string wrong = arguments.account.complete(uri_of(arguments.from)); !wrong.empty()) {
    return wrong;
  }
  if (arguments.from.empty() && !arguments.account.user().empty()) {
    const std::string recipient = uri_of(arguments.to);
    const auto uri = sipmsg::parse_uri(recipient);
    const bool is_ipv6 = sipmsg::is_ipv6_text(uri->host);
    arguments.from = "sip:" + arguments.account.user() + "@";
    arguments.from.append(is_ipv6 ? "[" : "").append(uri->host).append(is_ipv6 ? "]" : "");
    if (std::string wrong = check_uri("--user", arguments.from); !wrong.empty()) return wrong;
  }
  if (arguments.file.empty()) return {};
  const auto file = sipmsg::read_file(arguments.file, sipmsg::max_message_size);
  if (!file) return "--file " + arguments.file + ": " + describe(file.error());
  arguments.text = *file;
  return {};
}

/// Sends, counts, and ends when all is answered.
class Sending {
 public:
  explicit Sending(const SendArguments& arguments)
      : arguments_(arguments), lifetime_(uv_default_loop(), [this](int number) {
          clear_progress();
          complain(std::string("ended by ") + signal_name(number) + " while waiting");
          interrupt();
        }) {
    outgoing_.to = arguments.to;
    outgoing_.from = arguments.from;
    outgoing_.body = arguments.text;
    outgoing_.content_type = arguments.content_type;
    outgoing_.login = arguments.account.login();
    outgoing_.proxy = arguments.account.proxy_for(uri_of(arguments.to));
    outgoing_.deadline_ms = arguments.deadline_ms;
    if (arguments.account.trace()) endpoint_.on_trace(print_trace);
  }

  int run() {
    if (arguments_.has_text && arguments_.text == "-") {
      outgoing_.body.clear();
      input_ = std::make_unique<Input>(uv_default_loop(), STDIN_FILENO,
                                       [this](std::string_view octets) { take(octets); });
    } else {
      begin();
    }
    lifetime_.run();
    return status_;
  }

 private:
  struct Answers {
    int count = 0;
    std::string reason;  ///< of the first one
  };

  static std::uint64_t now_ns() { return uv_hrtime(); }

  void take(std::string_view octets) {
    if (!octets.empty()) {
      outgoing_.body.append(octets);
      if (outgoing_.body.size() <= sipmsg::max_message_size) return;
      complain("standard input: " + sentence(sipmsg::Error(sipmsg::ErrorCode::too_large)));
      status_ = exit_usage;
      return end();
    }
    if (!outgoing_.body.empty() && outgoing_.body.back() == '\n') outgoing_.body.pop_back();
    begin();
  }

  void begin() {
    begin_ns_ = now_ns();
    if (arguments_.repeat > 1 && isatty(STDERR_FILENO) != 0) {
      progress_ = std::make_unique<Timer>(uv_default_loop());
      progress_->start(progress_every_ms, progress_every_ms, [this] { show_progress(); });
    }
    send_what_is_due();
  }

  /// One after the other, as RFC 3428 8 wants it, or as many as the rate asks for.
  void send_what_is_due() {
    if (arguments_.rate_per_s == 0) return send_one();
    const double elapsed_s = static_cast<double>(now_ns() - begin_ns_) / 1e9;
    const double due = elapsed_s * arguments_.rate_per_s;  // besides the first one
    while (sent_ < arguments_.repeat && sent_ <= due && !lifetime_.has_ended()) send_one();
    if (sent_ == arguments_.repeat || lifetime_.has_ended()) return;
    if (!pace_) pace_ = std::make_unique<Timer>(uv_default_loop());
    const double next_ms = (static_cast<double>(sent_) / arguments_.rate_per_s - elapsed_s) * 1000;
    pace_->start(static_cast<std::uint64_t>(std::max(next_ms, 1.0)), 0,
                 [this] { send_what_is_due(); });
  }

  void send_one() {
    ++sent_;
    const std::uint64_t sent_ns = now_ns();
    const sipmsg::Error error = endpoint_.send(outgoing_, [this, sent_ns](const Outcome& outcome) {
      count(outcome, static_cast<double>(now_ns() - sent_ns) / 1e6);
    });
    if (!error) return;
    Outcome outcome;
    outcome.error = error;
    count(outcome, 0);
  }

  void count(const Outcome& outcome, double time_ms) {
    ++answered_;
    status_ = std::max<int>(status_, exit_status_of(outcome));
    if (arguments_.repeat == 1) {
      print_one(outcome, time_ms);
    } else if (outcome.error) {
      ++errors_[outcome.error.code];
    } else {
      Answers& answers = answers_[outcome.code];
      if (answers.count++ == 0) answers.reason = printable(outcome.reason);
      times_ms_.push_back(static_cast<float>(time_ms));
    }
    // What the arguments make impossible is not tried a thousand times.
    const bool is_hopeless = outcome.error && exit_status_of(outcome.error) == exit_usage;
    if (answered_ == arguments_.repeat || is_hopeless) return sum_up();
    if (arguments_.rate_per_s == 0 && !lifetime_.has_ended()) send_later();
  }

  /// Not from inside a send that failed at once: a thousand of them would be as deep.
  void send_later() {
    if (!pace_) pace_ = std::make_unique<Timer>(uv_default_loop());
    pace_->start(0, 0, [this] { send_one(); });
  }

  void interrupt() {
    status_ = exit_network;
    end();
    sum_up();
  }

  void sum_up() {
    if (is_summed_up_) return;
    is_summed_up_ = true;
    if (arguments_.repeat > 1) print_summary();
    end();
  }

  void end() {
    if (!lifetime_.end(status_)) return;
    if (input_) input_->close();
    progress_.reset();
    pace_.reset();
    endpoint_.close();
  }

  void print_one(const Outcome& outcome, double time_ms) {
    if (lifetime_.has_ended()) return;  // interrupted, which was said
    if (arguments_.json) return print_one_json(outcome, time_ms);
    if (outcome.error) return complain(sentence(outcome));
    char time[32];
    std::snprintf(time, sizeof time, " in %.1f ms", time_ms);
    std::string line = std::to_string(outcome.code) + " " + printable(outcome.reason);
    const std::string meaning = meaning_of(outcome.code);
    if (outcome.ok()) line += time;
    if (!meaning.empty()) line.append(": ").append(meaning);
    print(line);
  }

  void print_one_json(const Outcome& outcome, double time_ms) {
    JsonObject object;
    object.add("to", outgoing_.to).add("from", outgoing_.from).add("ok", outcome.ok());
    if (outcome.error) {
      object.add("error", outcome.error.name());
    } else {
      object.add("code", outcome.code).add("reason", outcome.reason);
    }
    object.add("meaning", outcome.error ? sentence(outcome) : meaning_of(outcome.code));
    object.add("time_ms", time_ms).add("exit_status", exit_status_of(outcome));
    print(object.text());
  }

  /// The time that so many of a hundred answers did not exceed.
  double percentile_ms(double percent) {
    if (times_ms_.empty()) return 0;
    const double last = static_cast<double>(times_ms_.size() - 1);
    const auto place = static_cast<std::ptrdiff_t>(last * percent / 100 + 0.5);
    std::nth_element(times_ms_.begin(), times_ms_.begin() + place, times_ms_.end());
    return static_cast<double>(times_ms_[static_cast<std::size_t>(place)]);
  }

  void print_summary() {
    clear_progress();
    const double seconds = static_cast<double>(now_ns() - begin_ns_) / 1e9;
    const double p50_ms = percentile_ms(50);
    const double p99_ms = percentile_ms(99);
    const double longest_ms = percentile_ms(100);
    if (arguments_.json) {
      JsonObject answers;
      JsonObject errors;
      for (const auto& [code, those] : answers_) answers.add(std::to_string(code), those.count);
      for (const auto& [code, count] : errors_) errors.add(sipmsg::error_name(code), count);
      JsonObject object;
      object.add("sent", static_cast<std::int64_t>(sent_)).add("answers", answers);
      object.add("errors", errors).add("seconds", seconds).add("p50_ms", p50_ms);
      object.add("p99_ms", p99_ms).add("longest_ms", longest_ms).add("exit_status", status_);
      return print(object.text());
    }
    char line[160];
    std::snprintf(line, sizeof line, "%u sent in %.2f s", sent_, seconds);
    std::string text = line;
    const auto append = [&](int count, const std::string& what) {
      std::snprintf(line, sizeof line, "\n%8d  ", count);
      text.append(line).append(what);
    };
    for (const auto& [code, those] : answers_) {
      append(those.count, std::to_string(code) + " " + those.reason);
    }
    for (const auto& [code, count] : errors_) append(count, sentence(sipmsg::Error(code)));
    if (!times_ms_.empty()) {
      std::snprintf(line, sizeof line,
                    "\nanswered after: p50 %.1f ms, p99 %.1f ms, longest %.1f ms", p50_ms, p99_ms,
                    longest_ms);
      text += line;
    }
    print(text);
  }

  void print(const std::string& line) {
    if (!print_line_out(line)) status_ = exit_network;
  }

  void show_progress() {
    std::fprintf(stderr, "\r%u of %u sent, %u answered\x1b[K", sent_, arguments_.repeat, answered_);
  }
  void clear_progress() {
    if (progress_) std::fputs("\r\x1b[K", stderr);
  }

  const SendArguments& arguments_;
  Outgoing outgoing_;
  Lifetime lifetime_;
  std::unique_ptr<Input> input_;
  std::unique_ptr<Timer> pace_;
  std::unique_ptr<Timer> progress_;
  std::uint64_t begin_ns_ = 0;
  std::uint32_t sent_ = 0;
  std::uint32_t answered_ = 0;
  bool is_summed_up_ = false;
  int status_ = exit_done;
  std::map<int, Answers> answers_;  ///< by code
  std::map<sipmsg::ErrorCode, int> errors_;
  std::vector<float> times_ms_;
  sipmsg::Endpoint endpoint_{uv_default_loop()};  ///< the last: its end calls back into the others
};

}  // namespace

int send(int argc, char** argv) {
  SendArguments arguments;
  if (const auto status = read(arguments, argc, argv)) return *status;
  if (const std::string wrong = complete(arguments); !wrong.empty()) {
    complain(wrong);
    return exit_usage;
  }
  return Sending(arguments).run();
}

}  // namespace program
