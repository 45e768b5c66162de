#!/usr/bin/env python3
"""Plays a chat in two terminals and compares what they show with the screens in the document.

    record_chat.py PROGRAM docs/chat.md            exit status 1 where they differ
    record_chat.py PROGRAM docs/chat.md --write    puts the screens into the document instead

The terminals are two panes of tmux, 78 columns each, over one another. The document's blocks marked
`text` are the screens, in the order of `SCENES`. Where tmux is missing it is skipped (exit status
77), unless the variable SIPMSG_SKIP_NOTHING is set.
"""
import difflib
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time

from support import PROGRAM, TIMEOUT_S, Served

COLUMNS, ROWS = 78, 12
BORDER = "-" * 26 + " the other terminal " + "-" * 32
SHOWN_PORT = 5060

# What is typed into which pane, and what the upper and the lower one must show then.
SCENES = (
    ((("upper", "sipmsg chat --as sip:101@{server} sip:102@{server}\r"),
      ("lower", "sipmsg chat --as sip:102@{server} sip:101@{server}\r")),
     "registered as sip:101", "registered as sip:102"),
    ((("upper", "Hello, are you there"),), "are you there", "101 is typing> "),
    ((("upper", "?\r"),), "[delivered: 200 OK]", "101: Hello, are you there?"),
    ((("lower", "Yes. Grüße aus Köln!\r"),), "102: Yes. Grüße", "[delivered: 200 OK]"),
    ((("lower", "/quit\r"),), "102> ", "$ "),
    ((("upper", "One more thing\r"),), "[failed: 405", "$"),
)


def four_digit_port():
    """A free one as wide as the one that is shown, so that lines break where they do there."""
    for port in range(SHOWN_PORT + 1000, 10000):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    sys.exit("no free port")


class Panes:
    """A tmux of its own with two shells in it."""

    def __init__(self, program):
        self.name = f"sipmsg-chat-{os.getpid()}"
        path = f"{pathlib.Path(program).resolve().parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "LC_ALL": "C.UTF-8", "TERM": "screen"}
        environment.pop("TMUX", None)
        self.environment = environment
        # One row more: the border between the panes.
        self.tmux("-f", "/dev/null", "new-session", "-d", "-x", str(COLUMNS), "-y", str(2 * ROWS + 1),
                  "sh")
        self.tmux("set-option", "status", "off")
        self.tmux("resize-window", "-x", str(COLUMNS), "-y", str(2 * ROWS + 1))
        self.tmux("split-window", "-v", "-l", str(ROWS), "sh")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        subprocess.run(["tmux", "-L", self.name, "kill-server"], check=False, capture_output=True)

    def tmux(self, *arguments):
        return subprocess.run(["tmux", "-L", self.name, *arguments], check=True, capture_output=True,
                              text=True, env=self.environment, timeout=TIMEOUT_S).stdout

    def write(self, pane, keys):
        target = f":.{0 if pane == 'upper' else 1}"
        for part in re.findall(r"[^\r]+|\r", keys):
            self.tmux("send-keys", "-t", target, *(["Enter"] if part == "\r" else ["-l", part]))

    def shown(self, pane):
        target = f":.{0 if pane == 'upper' else 1}"
        lines = self.tmux("capture-pane", "-p", "-t", target).rstrip("\n").split("\n")
        return "\n".join(line.rstrip() for line in lines).rstrip("\n")

    def wait_for(self, pane, wanted):
        deadline = time.monotonic() + TIMEOUT_S
        while wanted not in self.shown(pane) + " ":
            if time.monotonic() > deadline:
                raise SystemExit(f"{wanted!r} never came in the {pane} pane:\n{self.shown(pane)}")
            time.sleep(0.05)

    def wait_for_prompt(self, pane):
        deadline = time.monotonic() + TIMEOUT_S
        while self.shown(pane) != "$" and time.monotonic() < deadline:
            time.sleep(0.05)


def settle(panes):
    """Until two looks at the screens are the same: what was waited for may be half of a change."""
    before = None
    while (now := (panes.shown("upper"), panes.shown("lower"))) != before:
        before = now
        time.sleep(0.2)
    return now


def play():
    port = four_digit_port()
    server = f"127.0.0.1:{port}"
    screens = []
    with Served("--listen", f"udp:{server}"), Panes(PROGRAM) as panes:
        for pane in ("upper", "lower"):  # root's prompt is another one than everybody's
            panes.write(pane, "PS1='$ '; clear\r")
        for pane in ("upper", "lower"):
            panes.wait_for_prompt(pane)
        for keys, upper, lower in SCENES:
            for pane, text in keys:
                panes.write(pane, text.format(server=server))
            panes.wait_for("upper", upper)
            panes.wait_for("lower", lower)
            upper, lower = settle(panes)
            shown = "\n".join((upper, BORDER, lower))
            screens.append(shown.replace(f":{port}", f":{SHOWN_PORT}") + "\n")
    return screens


def main():
    document = pathlib.Path(sys.argv[1])
    if not shutil.which("tmux"):
        print("skipped: there is no tmux to play the chat in")
        return 1 if os.environ.get("SIPMSG_SKIP_NOTHING") else 77
    text = document.read_text()
    blocks = re.compile(r"(?<=^```text\n)(.+?)(?=^```$)", re.M | re.S)
    screens = play()
    if "--write" in sys.argv:
        rest = iter(screens)
        document.write_text(blocks.sub(lambda _: next(rest), text))
        return 0
    written = blocks.findall(text)
    differences = list(difflib.unified_diff("".join(written).splitlines(), "".join(screens).splitlines(),
                                            str(document), "what the terminals show", lineterm=""))
    print("\n".join(differences))
    return 1 if differences or len(written) != len(screens) else 0


if __name__ == "__main__":
    sys.exit(main())
