"""A phone that is a UDP socket, and what tests ask of a message's text."""
import hashlib
import re
import select
import socket
import time

from ports import HOST

TIMEOUT_S = 10


class Socket:
    """A UDP socket of the loopback that talks to the server."""

    def __init__(self, port):
        self.server = (HOST, port)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.socket.bind((HOST, 0))
        self.port = self.socket.getsockname()[1]
        self.number = 0
        self.answers = {}  # by the branch of the request

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
        """The next datagram, or None after `wait_s`. A request that is repeated although it has been
        answered, as happens on a slow machine, gets its answer again (RFC 3261 17.2.2)."""
        end = time.monotonic() + wait_s
        while True:
            ready, _, _ = select.select([self.socket], [], [], max(0, end - time.monotonic()))
            if not ready:
                return None
            try:
                text = self.socket.recv(65536).decode()
            except ConnectionRefusedError:
                continue
            answered = self.answers.get(branch(text)) if text.startswith("MESSAGE ") else None
            if answered is None:
                return text
            self.send(answered)

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
        answer = "\r\n".join([f"SIP/2.0 {status}"] + kept + ["Content-Length: 0", "", ""])
        self.answers[branch(request)] = answer
        self.send(answer)

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


def branch(text):
    """Of the topmost Via."""
    return re.search(r"branch=([^;,\s]*)", header(text, "Via")).group(1)


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
