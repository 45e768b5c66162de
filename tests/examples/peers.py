"""Whom the examples talk to: the real server, and a phone that registers, writes and answers."""
import contextlib
import pathlib
import subprocess
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "support"))
from sip_socket import TIMEOUT_S, Socket, body_of  # noqa: E402: it stands there


def expect(seen, expected):
    if seen != expected:
        raise SystemExit(f"expected {expected!r}, seen was {seen!r}")


@contextlib.contextmanager
def running(*command):
    """A process whose output is text; it ends with the block at the latest."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


@contextlib.contextmanager
def served(program, *arguments):
    """`sipmsg serve`, ready, for as long as the block takes."""
    with running(program, "serve", *arguments) as server:
        lines = []
        while "ready\n" not in lines:
            lines.append(server.stdout.readline())
            if not lines[-1]:
                raise SystemExit(f"the server does not start: {''.join(lines)}")
        yield


class Phone(Socket):
    """One user of the server at `port`."""

    def __init__(self, user, password, port):
        super().__init__(port)
        self.user, self.password = user, password

    def register(self):
        return super().register(self.user, password=self.password)

    def write(self, user, text):
        """The code of the final answer."""
        return self.ask("MESSAGE", user, text, sender=self.user, password=self.password,
                        headers="Content-Type: text/plain;charset=utf-8\r\n")

    def write_until_answered_200(self, user, text):
        """For a recipient who may not have registered yet."""
        deadline = time.monotonic() + TIMEOUT_S
        while (answer := self.write(user, text)) != 200:
            if time.monotonic() > deadline:
                raise SystemExit(f"{user} cannot be written to: {answer}")
            time.sleep(0.05)

    def answer_next(self):
        """Answers 200 to the next message, and returns its text."""
        return body_of(self.take_message())

    @contextlib.contextmanager
    def answering(self):
        """Answers the next message while the block writes it from elsewhere; yields what came."""
        received = []
        thread = threading.Thread(target=lambda: received.append(self.answer_next()))
        thread.start()
        try:
            yield received
        finally:
            thread.join(TIMEOUT_S)
