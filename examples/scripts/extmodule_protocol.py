"""The line protocol of external modules, for programs in Python 3.

A program imports this, installs its handlers and calls run(). Messages of the engine come in as lines
on standard input, answers and messages of the program's own go out on standard output. So print() is
not for people here: say log(text), or write to standard error.
"""
import sys

CONTROL = {octet: "%" + chr(octet + 64) for octet in range(32)}
VALUE = str.maketrans({**CONTROL, "%": "%%", ":": "%z"})
NAME = str.maketrans({**CONTROL, "%": "%%", ":": "%z", "=": "%}"})


def escape(text):
    return text.translate(VALUE)


def unescape(text):
    pieces = iter(text.split("%"))
    plain = next(pieces)
    for piece in pieces:
        if piece:
            plain += chr(ord(piece[0]) - 64) + piece[1:]
        else:  # two percent signs side by side
            plain += "%" + next(pieces, "")
    return plain


class Message:
    """A message that the engine shows. What is changed here, and nothing else, is sent back."""

    def __init__(self, name, return_value="", parameters=()):
        self.name = name
        self.return_value = return_value
        self.parameters = list(parameters)  # names may repeat; the first counts
        self.changes = {}

    def get(self, name, default=""):
        return next((value for known, value in self.parameters if known == name), default)

    def set(self, name, value):
        self.changes[name] = value

    def clear(self, name):
        self.changes[name] = None


class Engine:
    def __init__(self):
        self._handlers = {}
        self._waiting = {}
        self._last_id = 0
        # Whatever octets come: they go back as they were. A lone CR is no end of a line.
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")

    def install(self, name, handler, priority=100, only=None):
        """Has handler(message) called for each message of that name; true from it means: handled.

        only=(parameter, value) has the engine send just those with exactly that value.
        """
        self._handlers[name] = handler
        fields = [str(priority), name, *(only or ())]
        self._send("%%>install:" + ":".join(map(escape, fields)))

    def dispatch(self, name, parameters, done=None):
        """Sends a message. When it comes back, done(message, handled) is called."""
        self._last_id += 1
        if done:
            self._waiting[str(self._last_id)] = done
        pairs = [key.translate(NAME) + "=" + escape(value) for key, value in parameters.items()]
        self._send(":".join(["%%>message", str(self._last_id), "0", escape(name), "", *pairs]))

    def log(self, text):
        self._send("%%>output:" + text.replace("\n", " "))

    def run(self):
        """Returns when the engine ends this program."""
        for line in sys.stdin:
            kind, *fields = line.rstrip("\r\n").split(":")
            if kind == "%%>message":
                self._handle(*fields)
            elif kind == "%%<message":
                self._done(*fields)
            elif kind == "Error in":
                print("the engine did not understand:", line, file=sys.stderr)

    def _handle(self, identity, _time, name, return_value, *pairs):
        message = self._read(name, return_value, pairs)
        handled = bool(self._handlers[message.name](message))
        answer = ["%%<message", identity, str(handled).lower(), "", escape(message.return_value)]
        for key, value in message.changes.items():
            answer.append(key.translate(NAME) + ("" if value is None else "=" + escape(value)))
        self._send(":".join(answer))

    def _done(self, identity, handled, name, return_value, *pairs):
        done = self._waiting.pop(unescape(identity), None)
        if done:
            done(self._read(name, return_value, pairs), handled == "true")

    @staticmethod
    def _read(name, return_value, pairs):
        parameters = [tuple(map(unescape, pair.split("=", 1))) for pair in pairs if "=" in pair]
        return Message(unescape(name), unescape(return_value), parameters)

    @staticmethod
    def _send(line):
        print(line, flush=True)
