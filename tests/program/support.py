"""What the tests of the program share: starting it, talking SIP to it, a configuration to give it."""
import hashlib
import pathlib
import random
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

PROGRAM = sys.argv.pop(1) if len(sys.argv) > 1 else "sipmsg"
TIMEOUT_S = 10

# The program leaves signals alone that are ignored when it starts, as in the background of a script.
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)


def free_port():
    """One that is free over UDP and TCP, and that the system gives to nobody who wants any."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, \
                socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp:
            try:
                udp.bind(("127.0.0.1", port))
                tcp.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


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


class Phone:
    """A UDP socket that sends one request and waits for its final answer."""

    def __init__(self, port):
        self.server = ("127.0.0.1", port)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(TIMEOUT_S)
        self.number = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def ask(self, method, user, body=b"", headers=""):
        self.number += 1
        port = self.socket.getsockname()[1]
        uri = f"sip:{user}@127.0.0.1" if method == "MESSAGE" else "sip:127.0.0.1"
        head = (f"{method} {uri} SIP/2.0\r\n"
                f"Via: SIP/2.0/UDP 127.0.0.1:{port};branch=z9hG4bK{port}-{self.number};rport\r\n"
                f"Max-Forwards: 70\r\nFrom: <sip:101@127.0.0.1>;tag=1\r\nTo: <sip:{user}@127.0.0.1>\r\n"
                f"Call-ID: {port}\r\nCSeq: {self.number} {method}\r\n{headers}"
                f"Content-Length: {len(body)}\r\n\r\n")
        self.socket.sendto(head.encode() + body, self.server)
        return self.socket.recv(65536).decode()


class Socket:
    """A UDP socket of the loopback that talks to the server."""

    def __init__(self, port):
        self.server = ("127.0.0.1", port)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.number = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, text):
        try:
            self.socket.sendto(text.encode(), self.server)
        except ConnectionRefusedError:
            pass  # of an earlier datagram: nobody listens there at the moment

    def receive(self, wait_s=TIMEOUT_S):
        """The next datagram, or None after `wait_s`."""
        end = time.monotonic() + wait_s
        while True:
            ready, _, _ = select.select([self.socket], [], [], max(0, end - time.monotonic()))
            if not ready:
                return None
            try:
                return self.socket.recv(65536).decode()
            except ConnectionRefusedError:
                continue

    def request(self, method, user, body="", headers="", sender="101"):
        """The text of a new request, each with a transaction of its own."""
        self.number += 1
        uri = f"sip:{user}@127.0.0.1" if method == "MESSAGE" else "sip:127.0.0.1"
        return (f"{method} {uri} SIP/2.0\r\n"
                f"Via: SIP/2.0/UDP 127.0.0.1:{self.port};branch=z9hG4bK{self.port}-{self.number};rport\r\n"
                f"Max-Forwards: 70\r\nFrom: \"Ann\" <sip:{sender}@127.0.0.1>;tag=1\r\n"
                f"To: <sip:{user}@127.0.0.1>\r\nCall-ID: {self.port}-{self.number}\r\n"
                f"CSeq: {self.number} {method}\r\n{headers}"
                f"Content-Length: {len(body.encode())}\r\n\r\n{body}")

    def ask(self, *arguments, password=None, **named):
        """The code of the final answer; with a password the challenge before it is met."""
        answer = self.transact(self.request(*arguments, **named))
        if password is not None and code(answer) == 401:
            sender = named.get("sender", "101")
            named["headers"] = named.get("headers", "") + credentials(arguments[0], sender, password,
                                                                      answer)
            answer = self.transact(self.request(*arguments, **named))
        return code(answer)

    def transact(self, request):
        """Sends a request until it is answered, as UDP wants it; the answer."""
        call_id = header(request, "Call-ID")
        for _ in range(TIMEOUT_S * 2):
            self.send(request)
            while answer := self.receive(0.5):
                if answer.startswith("SIP/2.0 ") and header(answer, "Call-ID") == call_id:
                    return answer
        raise AssertionError(f"no answer to {request}")

    def register(self, user, expires=3600, password=None, contact=None):
        """`contact`: the user in the Contact, where that is another."""
        return self.ask("REGISTER", user, sender=user, password=password,
                        headers=f"Contact: <sip:{contact or user}@127.0.0.1:{self.port}>\r\n"
                                f"Expires: {expires}\r\n")

    def answer(self, request, status="200 OK"):
        kept = [line for line in request.split("\r\n\r\n")[0].split("\r\n")
                if line.split(":")[0] in ("Via", "From", "To", "Call-ID", "CSeq")]
        self.send("\r\n".join([f"SIP/2.0 {status}"] + kept + ["Content-Length: 0", "", ""]))

    def take_message(self, status="200 OK", wait_s=TIMEOUT_S):
        """The next MESSAGE, answered; None where none comes."""
        end = time.monotonic() + wait_s
        while (text := self.receive(max(0, end - time.monotonic()))) is not None:
            if text.startswith("MESSAGE "):
                self.answer(text, status)
                return text
        return None


def header(text, name):
    found = re.search(rf"^{name}: *(.*?)\r$", text, re.MULTILINE)
    return found.group(1) if found else None


def credentials(method, user, password, challenge):
    """The header that answers a 401: without qop, which every server must take (RFC 2617 3.2.2)."""
    realm, nonce = (re.search(rf'{name}="([^"]*)"', challenge).group(1)
                    for name in ("realm", "nonce"))
    digest = lambda *parts: hashlib.md5(":".join(parts).encode()).hexdigest()
    response = digest(digest(user, realm, password), nonce, digest(method, "sip:127.0.0.1"))
    return (f'Authorization: Digest username="{user}", realm="{realm}", nonce="{nonce}", '
            f'uri="sip:127.0.0.1", response="{response}", algorithm=MD5\r\n')


def body_of(text):
    return text.split("\r\n\r\n", 1)[1]


def code(answer):
    return int(answer.split(" ")[1])


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
