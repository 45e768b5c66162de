"""What the tests of the program share: starting it, a configuration to give it; talking SIP to it is in
tests/support."""
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "support"))
from ports import free_port  # noqa: E402: they stand there
from sip_socket import TIMEOUT_S, Socket, body_of, branch, code, header  # noqa: E402

PROGRAM = sys.argv.pop(1) if len(sys.argv) > 1 else "sipmsg"

# The program leaves signals alone that are ignored when it starts, as in the background of a script.
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)


def run(*arguments, **more):
    more.setdefault("input", "")
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, check=False,
                          timeout=TIMEOUT_S, **more)


class Served:
    """`sipmsg serve` with these arguments; `lines` is what it printed until it was ready."""

    def __init__(self, *arguments, **more):
        self.process = subprocess.Popen([PROGRAM, "serve", *arguments], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                        **more)
        self.lines = []
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            if line == "ready\n":
                break

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def wait_for(self, wanted):
        """The next line with that in it."""
        watchdog = threading.Timer(TIMEOUT_S, self.process.kill)  # which ends its output
        watchdog.start()
        try:
            for line in self.process.stderr:
                self.lines.append(line.rstrip("\n"))
                if wanted in line:
                    return line
        finally:
            watchdog.cancel()
        raise AssertionError(f"{wanted!r} never came; printed was {self.lines}")

    def kill(self):
        self.process.kill()
        self.process.wait(TIMEOUT_S)

    def end(self, number=signal.SIGTERM):
        """Its exit status, and how long it took to end."""
        begin = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(TIMEOUT_S)
        return self.process.returncode, time.monotonic() - begin


class Client:
    """A client that runs: what it prints is collected line by line, and can be waited for."""

    def __init__(self, *arguments, **more):
        self.process = subprocess.Popen([PROGRAM, *arguments], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                        **more)
        self.out, self.err = [], []
        self.changed = threading.Condition()
        self.readers = [threading.Thread(target=self.collect, args=those) for those in
                        ((self.process.stdout, self.out), (self.process.stderr, self.err))]
        for reader in self.readers:
            reader.start()

    def collect(self, stream, lines):
        for line in stream:
            with self.changed:
                lines.append(line.rstrip("\n"))
                self.changed.notify_all()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for reader in self.readers:
            reader.join()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            try:
                stream.close()
            except BrokenPipeError:
                pass

    def wait_for(self, pattern, lines=None):
        """The first line that matches, of standard output unless another list is given."""
        lines = self.out if lines is None else lines
        found = lambda: next((line for line in lines if re.search(pattern, line)), None)
        with self.changed:
            if not self.changed.wait_for(lambda: found() is not None, TIMEOUT_S):
                raise AssertionError(f"{pattern!r} never came; printed was {self.out} {self.err}")
            return found()

    def registered(self):
        self.wait_for("^registered as ", self.err)
        return self

    def write(self, text):
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def status(self):
        """The exit status, once it has ended by itself and all it printed is there."""
        status = self.process.wait(TIMEOUT_S)
        for reader in self.readers:
            reader.join()
        return status


def wait_until(condition):
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("it never came to be")
        time.sleep(0.01)


def configuration(**files):
    """A directory with these files: ysipchan="...", regfile="..."."""
    directory = tempfile.TemporaryDirectory()
    for name, text in files.items():
        (pathlib.Path(directory.name) / f"{name}.conf").write_text(text)
    return directory


def ysipchan(port, more=""):
    return f"[general]\naddr=127.0.0.1\nport={port}\n{more}\n"
