#include "chat_view.hpp"

#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <utility>

#include "exit_status.hpp"
#include "line_editor.hpp"
#include "output.hpp"
#include "screen_text.hpp"
#include "terminal.hpp"

namespace program {

namespace {

// ---- on a terminal -----------------------------------------------------------------------------

class TerminalView final : public ChatView {
 public:
  TerminalView(uv_loop_t* loop, ChatHandlers handlers)
      : loop_(loop), handlers_(std::move(handlers)), transcript_(editor_) {}
  ~TerminalView() override { TerminalView::close(); }

  bool start() override {
    if (!terminal_.enter()) return false;
    std::size_t watched = 0;
    for (int number : {SIGTSTP, SIGCONT, SIGWINCH}) {
      signals_[watched] = new Signal;
      uv_signal_init(loop_, signals_[watched]);
      uv_unref(reinterpret_cast<uv_handle_t*>(signals_[watched]));
      watch(signals_[watched++], number);
    }
    input_ = std::make_unique<Input>(loop_, STDIN_FILENO,
                                     [this](std::string_view octets) { take(octets); });
    resize();
    return true;
  }

  void close() override {
    if (!input_) return;
    input_.reset();
    for (Signal*& signal : signals_) {
      if (signal != nullptr) uv_close(reinterpret_cast<uv_handle_t*>(signal), free_signal);
      signal = nullptr;
    }
    print_out("\r\x1b[K");
    terminal_.leave();
  }

  void show_notice(const std::string& text) override { draw(transcript_.add("* " + text)); }
  void show_incoming(const std::string& who, const std::string& text) override {
    draw(transcript_.add(who + ": " + text));
  }
  void show_own(std::uint64_t id, const std::string& text, LineState,
                const std::string& note) override {
    const std::string entry = "> " + text + "  [" + note + "]";
    draw(transcript_.rewrite(id, entry));
  }
  void show_peer(const std::string& name, bool is_typing) override {
    editor_.set_prompt(name + (is_typing ? " is typing> " : "> "));
    draw(transcript_.show_line());
  }
  void set_ready(bool) override {}  // a person may write at any time

 private:
  struct Signal : uv_signal_t {};

  static void free_signal(uv_handle_t* handle) { delete reinterpret_cast<Signal*>(handle); }

  void watch(Signal* signal, int number) {
    signal->data = this;
    uv_signal_start(
        signal,
        [](uv_signal_t* handle, int caught) {
          static_cast<TerminalView*>(handle->data)->on_signal(caught);
        },
        number);
  }

  void on_signal(int number) {
    if (number == SIGTSTP) return suspend();
    number == SIGCONT ? resume() : resize();
  }

  /// As Control-Z does by itself where a terminal is not raw: with all that was started together,
  /// and not where nobody could bring us back. So it may have done nothing; else SIGCONT has come.
  void suspend() {
    print_out("\r\x1b[K");
    terminal_.leave();
    uv_signal_stop(signals_[0]);
    kill(0, SIGTSTP);
    watch(signals_[0], SIGTSTP);
    resume();
  }
  void resume() {
    if (!terminal_.enter()) return handlers_.gone();
    resize();
  }

  void resize() {
    const TerminalSize size = terminal_size();
    draw(transcript_.resize(size.columns, size.rows));
  }

  void take(std::string_view octets) {
    if (octets.empty()) return handlers_.end(exit_done);
    for (EditEvent& event : editor_.feed(octets)) {
      if (!input_) return;  // what came before it has ended the chat
      switch (event.action) {
        case EditAction::accept: handlers_.line(std::move(event.text)); break;
        case EditAction::interrupt:
        case EditAction::end: return handlers_.end(exit_done);
        case EditAction::suspend: suspend(); break;
        case EditAction::redraw: draw(transcript_.redraw()); break;
      }
    }
    if (!input_) return;
    draw(transcript_.show_line());
    handlers_.key(editor_.text());
  }

  void draw(const std::string& octets) {
    if (input_ && !print_out(octets)) handlers_.gone();
  }

  uv_loop_t* loop_;
  ChatHandlers handlers_;
  RawTerminal terminal_;
  LineEditor editor_;
  Transcript transcript_;
  std::unique_ptr<Input> input_;
  Signal* signals_[3] = {};  ///< of SIGTSTP, SIGCONT and SIGWINCH
};

// ---- in a pipe ---------------------------------------------------------------------------------

class PipeView final : public ChatView {
 public:
  PipeView(uv_loop_t* loop, ChatHandlers handlers) : loop_(loop), handlers_(std::move(handlers)) {}

  bool start() override {
    is_open_ = true;
    return true;
  }
  void close() override {
    is_open_ = false;
    input_.reset();
  }

  void show_notice(const std::string& text) override { std::fprintf(stderr, "%s\n", text.c_str()); }
  void show_incoming(const std::string& who, const std::string& text) override {
    print("< " + who + ": " + text);
  }
  /// Once, when it is known what became of it.
  void show_own(std::uint64_t, const std::string& text, LineState state,
                const std::string& note) override {
    if (state == LineState::settled) print("> " + text + "  [" + note + "]");
  }
  void show_peer(const std::string&, bool) override {}

  void set_ready(bool is_ready) override {
    is_ready_ = is_ready;
    if (!is_open_ || is_at_end_) return;
    if (!input_ && is_ready) {
      input_ = std::make_unique<Input>(loop_, STDIN_FILENO,
                                       [this](std::string_view octets) { take(octets); });
    } else if (input_) {
      is_ready ? input_->resume() : input_->pause();
    }
    if (is_ready) hand_over();
  }

 private:
  static constexpr std::size_t max_line = std::size_t{1} << 20;

  void take(std::string_view octets) {
    if (octets.empty()) {
      is_at_end_ = true;
      if (!pending_.empty()) pending_.push_back('\n');
    }
    pending_.append(octets);
    hand_over();
  }

  /// Line by line, for as long as they are wanted.
  void hand_over() {
    while (is_open_ && is_ready_) {
      const std::size_t end = pending_.find('\n');
      if (end == std::string::npos) break;
      std::string line = pending_.substr(0, end);
      pending_.erase(0, end + 1);
      if (!line.empty() && line.back() == '\r') line.pop_back();
      handlers_.line(std::move(line));
    }
    if (!is_open_) return;
    if (is_at_end_ && pending_.empty()) return handlers_.end(exit_done);
    if (pending_.size() < max_line || pending_.find('\n') != std::string::npos) return;
    complain("standard input: a line of more than a megabyte is no message");
    pending_.clear();
    is_at_end_ = true;
    input_.reset();
    handlers_.end(exit_usage);
  }

  void print(const std::string& line) {
    if (is_open_ && !print_line_out(line)) handlers_.gone();
  }

  uv_loop_t* loop_;
  ChatHandlers handlers_;
  std::unique_ptr<Input> input_;
  std::string pending_;
  bool is_open_ = false;
  bool is_ready_ = false;
  bool is_at_end_ = false;
};

}  // namespace

bool is_chat_on_terminal() { return isatty(STDIN_FILENO) != 0 && isatty(STDOUT_FILENO) != 0; }

std::unique_ptr<ChatView> make_chat_view(uv_loop_t* loop, ChatHandlers handlers) {
  if (is_chat_on_terminal()) {
    return std::make_unique<TerminalView>(loop, std::move(handlers));
  }
  return std::make_unique<PipeView>(loop, std::move(handlers));
}

}  // namespace program
