"""Whom the examples talk to: the real server, and a phone that registers, writes and answers."""
import contextlib
import hashlib
import re
import socket
import subprocess
import threading
import time
import uuid

HOST = "127.0.0.1"
TIMEOUT_S = 10


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


class Phone:
    """One user of the server at `port`."""

    def __init__(self, user, password, port):
        self.user, self.password, self.port = user, password, port
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((HOST, 0))
        self.socket.connect((HOST, port))
        self.socket.settimeout(TIMEOUT_S)
        self.contact = f"{HOST}:{self.socket.getsockname()[1]}"
        self.call_id, self.number = uuid.uuid4().hex, 0

    def receive(self):
        """A request or a final answer."""
        while True:
            message = self.socket.recv(65536).decode()
            if not message.startswith("SIP/2.0 1"):
                return message

    def ask(self, method, uri, to, body="", authorization=""):
        self.number += 1
        self.socket.send((
            f"{method} {uri} SIP/2.0\r\n"
            f"Via: SIP/2.0/UDP {self.contact};branch=z9hG4bK{uuid.uuid4().hex};rport\r\n"
            "Max-Forwards: 70\r\n"
            f"From: <sip:{self.user}@{HOST}:{self.port}>;tag={self.user}\r\nTo: <{to}>\r\n"
            f"Call-ID: {self.call_id}\r\nCSeq: {self.number} {method}\r\n{authorization}"
            + (f"Contact: <sip:{self.user}@{self.contact}>\r\n" if method == "REGISTER"
               else "Content-Type: text/plain;charset=utf-8\r\n")
            + f"Content-Length: {len(body.encode())}\r\n\r\n{body}").encode())
        answer = self.receive()
        if answer.startswith("SIP/2.0 401 ") and not authorization:
            return self.ask(method, uri, to, body, self.authorization(answer, method, uri))
        return answer.split("\r\n")[0]

    def authorization(self, answer, method, uri):
        """RFC 7616 with MD5, and without qop, as RFC 3261 22.4 still permits."""
        realm, nonce = (re.search(f'{name}="(.*?)"', answer)[1] for name in ("realm", "nonce"))

        def md5(*parts):
            return hashlib.md5(":".join(parts).encode()).hexdigest()

        response = md5(md5(self.user, realm, self.password), nonce, md5(method, uri))
        return (f'Authorization: Digest username="{self.user}", realm="{realm}", nonce="{nonce}", '
                f'uri="{uri}", response="{response}", algorithm=MD5\r\n')

    def register(self):
        return self.ask("REGISTER", f"sip:{HOST}:{self.port}", f"sip:{self.user}@{HOST}:{self.port}")

    def write(self, user, text):
        """The first line of the answer."""
        uri = f"sip:{user}@{HOST}:{self.port}"
        return self.ask("MESSAGE", uri, uri, text)

    def write_until_answered_200(self, user, text):
        """For a recipient who may not have registered yet."""
        deadline = time.monotonic() + TIMEOUT_S
        while (answer := self.write(user, text)) != "SIP/2.0 200 OK":
            if time.monotonic() > deadline:
                raise SystemExit(f"{user} cannot be written to: {answer}")
            time.sleep(0.05)

    def answer_next(self):
        """Answers 200 to the next message, and returns its text."""
        request = self.receive()
        head, _, body = request.partition("\r\n\r\n")
        kept = [line for line in head.split("\r\n")
                if line.startswith(("Via:", "From:", "To:", "Call-ID:", "CSeq:"))]
        self.socket.send("\r\n".join(["SIP/2.0 200 OK", *kept, "Content-Length: 0", "", ""]).encode())
        return body

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
