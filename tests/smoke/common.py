"""What smoke.py and interop.py have in common: processes and what they write, checks, and the end.

A check is a function that raises Failed, or returns; it says `ok NAME` or `FAILED NAME` with the log
of everything that runs. What one check has started the next ones use.
"""
import argparse
import fcntl
import os
import pathlib
import pty
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "support"))
from ports import HOST, free_port  # noqa: E402: it stands there

TIMEOUT_S = 8  # for anything that takes some milliseconds on an idle machine
LOG_LINES = 120  # of each participant, shown where a check fails

PACKAGES = {"sipsak": "sipsak", "sipp": "sip-tester", "baresip": "baresip-core",
            "linphonec": "linphone-cli", "kamailio": "kamailio"}


class Failed(Exception):
    """What a check expected and did not see."""


def wait_until(condition, what, timeout_s=TIMEOUT_S):
    """The first value of condition() that is not false."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {timeout_s} s")
        time.sleep(0.02)


def raise_loopback():
    """In a new network namespace the loopback interface is down."""
    get_flags, set_flags, up = 0x8913, 0x8914, 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(any_socket, get_flags, request))[1]
        if not flags & up:
            fcntl.ioctl(any_socket, set_flags, struct.pack("16sH14x", b"lo", flags | up))


def which(program):
    """Its path; servers stand where only root looks."""
    return shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin")


# ---- what runs ----------------------------------------------------------------------------------

class Running:
    """A process that is ended with the driver, and what it has written."""
    all = []

    def __init__(self, name):
        self.name = name
        self.begin = 0
        Running.all.append(self)

    def octets(self):
        """All it has written so far."""
        return self.file.read_bytes() if self.file.exists() else b""

    def position(self):
        return len(self.octets())

    def log(self, begin=0):
        return self.octets()[begin:].decode(errors="replace")

    def mark(self):
        """From here on `fresh` counts."""
        self.begin = self.position()

    def fresh(self):
        return self.log(self.begin)

    def is_running(self):
        return self.process.poll() is None

    def end(self):
        if self.is_running():
            self.process.kill()
        self.process.wait()


class Terminal(Running):
    """A program on a pseudo terminal."""
    ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\r+(?=\n)")
    OVERWRITTEN = re.compile(r"[^\n]*\r")  # baresip draws its line again with every letter

    def __init__(self, name, command, home, **environment):
        super().__init__(name)
        self.written = b""
        self.terminal, other_end = pty.openpty()
        fcntl.ioctl(other_end, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 500, 0, 0))
        self.process = subprocess.Popen(
            command, stdin=other_end, stdout=other_end, stderr=other_end, cwd=home,
            start_new_session=True,
            env={"PATH": os.environ["PATH"], "HOME": str(home), "TERM": "dumb",
                 "LC_ALL": "C.UTF-8", **environment})
        os.close(other_end)
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        while True:
            try:
                octets = os.read(self.terminal, 65536)
            except OSError:  # EIO is the end of what the program writes
                return
            if not octets:
                return
            self.written += octets

    def octets(self):
        return self.written

    def log(self, begin=0):
        return self.OVERWRITTEN.sub("", self.ESCAPES.sub("", super().log(begin)))

    def type(self, line):
        os.write(self.terminal, line.encode() + b"\n")


class Command(Running):
    """Runs to its end within the time; sipsak or sipp."""

    def __init__(self, name, command, directory, error_option=None):
        """With an option for a file of its own errors that is its log, not the standard output."""
        super().__init__(name)
        self.file = directory / f"command-{len(Running.all)}"
        if error_option:
            command = [*command, error_option, self.file]
        with open(self.file, "ab") as log:
            self.process = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if error_option else log,
                stderr=log, cwd=directory, start_new_session=True,
                env={"PATH": os.environ["PATH"], "TERM": "dumb", "LC_ALL": "C.UTF-8"})

    def status(self):
        try:
            return self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.end()
            return None

    def expect(self, status, pattern=""):
        ended = self.status()
        if ended is None:
            raise Failed(f"{self.name} still runs after {TIMEOUT_S} s")
        if ended != status or not re.search(pattern, self.log()):
            raise Failed(f"{self.name} ended with status {ended} instead of {status}"
                         + (f" and {pattern!r} in its output" if pattern else ""))


# ---- checks -------------------------------------------------------------------------------------

class Checks:
    """Derive from it, and give it `run`, which calls `check` for one after the other."""

    def __init__(self, options):
        self.options = options
        self.directory = options.directory
        self.counts = {"ok": 0, "FAILED": 0, "skipped": 0}

    def before_check(self):
        """Raises where no check can succeed any more."""

    def check(self, name, needs, function, *arguments):
        missing = [program for program in needs if not which(program)]
        if missing:
            packages = ", ".join(f"{program} (package {PACKAGES[program]})" for program in missing)
            self.conclude("skipped" if self.options.allow_missing else "FAILED", name,
                          f"not installed: {packages}")
            return
        begin = {running: running.position() for running in Running.all}
        try:
            self.before_check()
            function(*arguments)
            self.conclude("ok", name)
        except (Failed, OSError) as failure:  # OSError: its terminal is gone, for one
            self.conclude("FAILED", name, str(failure))
            for running in Running.all:
                news = running.log(*([begin[running]] if running in begin else []))
                lines = news.strip().splitlines()[-LOG_LINES:]
                if lines:
                    print(f"    --- {running.name}", *lines, sep="\n    | ", flush=True)

    def conclude(self, verdict, name, why=""):
        self.counts[verdict] += 1
        print(f"{verdict} {name}" + (f": {why}" if why else ""), flush=True)


def parse_options(parser):
    """With the options that all drivers have."""
    parser.add_argument("program", type=lambda text: pathlib.Path(text).resolve())
    parser.add_argument("--allow-missing", action="store_true",
                        help="skip checks whose programs are not installed")
    parser.add_argument("--directory", type=pathlib.Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--isolated", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not os.access(options.program, os.X_OK):
        parser.error(f"{options.program} is not a program")
    return options


def conclude(checks):
    """Runs them, ends whatever runs, and exits with what came of it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))
    raise_loopback()
    try:
        checks.run()
    finally:
        for running in Running.all:
            running.end()
    counts = checks.counts
    skipped = f", {counts['skipped']} skipped" if counts["skipped"] else ""
    print(f"{counts['ok']} passed, {counts['FAILED']} failed{skipped}")
    sys.exit(1 if counts["FAILED"] else 0)
