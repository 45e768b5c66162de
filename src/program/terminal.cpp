#include "terminal.hpp"

#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <initializer_list>

namespace program {

namespace {

// What a handler of signals needs, hence without an object.
termios terminal_before;
volatile sig_atomic_t is_raw = 0;

constexpr char begin_marking_pastes[] = "\x1b[?2004h";
constexpr char end_marking_pastes[] = "\x1b[?2004l";

template <std::size_t size>
void write_to_terminal(const char (&octets)[size]) {
  // Where this fails there is no terminal any more to be put right.
  if (write(STDOUT_FILENO, octets, size - 1) < 0) return;
}

/// May be called from a handler of signals.
void restore() {
  if (is_raw == 0) return;
  is_raw = 0;
  write_to_terminal(end_marking_pastes);
  if (tcsetattr(STDIN_FILENO, TCSADRAIN, &terminal_before) == 0) return;
  // A signal came while it waited for what is still to be shown (see Lifetime).
  tcsetattr(STDIN_FILENO, TCSANOW, &terminal_before);
}

/// SA_RESETHAND has the signal do what it does by itself when it is raised again.
extern "C" void restore_and_die(int number) {
  restore();
  raise(number);
}

void restore_however_it_ends() {
  static bool is_done = false;
  if (is_done) return;
  is_done = true;
  std::atexit(restore);
  struct sigaction action {};
  action.sa_handler = restore_and_die;
  action.sa_flags = static_cast<int>(SA_RESETHAND | SA_NODEFER);
  for (int number : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL}) sigaction(number, &action, nullptr);
}

}  // namespace

TerminalSize terminal_size() {
  winsize size{};
  TerminalSize result;
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0) return result;
  if (size.ws_col != 0) result.columns = size.ws_col;
  if (size.ws_row != 0) result.rows = size.ws_row;
  return result;
}

bool RawTerminal::enter() {
  if (is_raw != 0) return true;
  if (tcgetattr(STDIN_FILENO, &terminal_before) != 0) return false;
  termios raw = terminal_before;
  raw.c_iflag &= ~static_cast<tcflag_t>(BRKINT | ICRNL | INPCK | ISTRIP | IXON);
  raw.c_lflag &= ~static_cast<tcflag_t>(ECHO | ICANON | IEXTEN | ISIG);
  raw.c_cc[VMIN] = 1;
  raw.c_cc[VTIME] = 0;
  restore_however_it_ends();
  is_raw = 1;  // before: a signal in between must find it
  if (tcsetattr(STDIN_FILENO, TCSADRAIN, &raw) != 0) {
    is_raw = 0;
    return false;
  }
  write_to_terminal(begin_marking_pastes);
  return true;
}

void RawTerminal::leave() { restore(); }

}  // namespace program
