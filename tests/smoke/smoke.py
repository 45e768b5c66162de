"""Drives softphones against the real program; run.sh starts it and says how to call it.

The softphones run on terminals (pty) of their own, as if somebody typed into them and read what
they show. The server runs with --trace, so that a check also knows which way a message took.
"""
import argparse
import re
import shutil
import signal
import socket
import subprocess
import time

from common import (HERE, HOST, TIMEOUT_S, Checks, Command, Failed, Running, conclude, free_port,
                    parse_options, wait_until)
from softphones import EXAMPLES, Baresip, Linphonec


class Server(Running):
    """The program under test."""
    RECORD = re.compile(rb"(received from|sent to) (udp|tcp) (\S+), (\d+) octets\n")

    def __init__(self, program, arguments, file):
        super().__init__("sipmsg")
        self.file = file
        with open(file, "wb") as log:
            self.process = subprocess.Popen([program, "serve", "--trace", *arguments],
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            start_new_session=True)

    def trace(self):
        """Pairs of (direction, transport, message) and the lines between them."""
        octets, records, lines, at = self.octets(), [], b"", 0
        while True:
            found = self.RECORD.search(octets, at)
            if not found:
                return records, (lines + octets[at:]).decode(errors="replace")
            lines += octets[at:found.start()]
            at = found.end() + int(found[4])
            records.append((found[1].decode().split()[0], found[2].decode(),
                            octets[found.end():at].decode(errors="replace")))

    def wait_ready(self):
        wait_until(lambda: "ready\n" in self.log() or not self.is_running(), "the server is ready")
        if not self.is_running():
            raise Failed("the server does not start")

    def answers(self, text):
        """What the server answered to messages with this text: ["401", "200"]."""
        records, _ = self.trace()
        calls = {call_id(message) for direction, _, message in records
                 if direction == "received" and is_message(message, text)}
        return [message.split()[1] for direction, _, message in records
                if direction == "sent" and message.startswith("SIP/2.0 ")
                and call_id(message) in calls]

    def way(self, text):
        """The transports a text came in by and went out by: ("udp", "tcp")."""
        records, _ = self.trace()
        sides = {direction: transport for direction, transport, message in records
                 if is_message(message, text)}
        return sides.get("received"), sides.get("sent")

    def reload(self):
        self.mark()
        self.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "reloaded\n" in self.fresh(), "the server reloads its configuration")

    def stop(self, number):
        """Seconds until the signal ended it, and its exit status."""
        begin = time.monotonic()
        self.process.send_signal(number)
        try:
            status = self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.end()
            raise Failed(f"the server still runs {TIMEOUT_S} s after the signal") from None
        return time.monotonic() - begin, status


def is_message(message, text):
    return message.startswith("MESSAGE ") and message.partition("\r\n\r\n")[2] == text


def call_id(message):
    found = re.search(r"^Call-ID: *(.*?)\r$", message, re.M | re.I)
    return found[1] if found else None


# ---- the checks ---------------------------------------------------------------------------------

class Smoke(Checks):
    def __init__(self, options):
        super().__init__(options)
        self.port = free_port()
        self.server = self.idle_server = None
        self.phones = {}
        self.texts = 0

    def before_check(self):
        if self.server and not self.server.is_running():
            raise Failed(f"the server ended, status {self.server.process.returncode}")

    # ---- the server

    def write_configuration(self, enable):
        algorithms = f"algorithms={self.options.algorithms}\n" if self.options.algorithms else ""
        (self.directory / "ysipchan.conf").write_text(
            f"[general]\naddr={HOST}\nport={self.port}\n{algorithms}"
            f"[listener tcp]\ntype=tcp\naddr={HOST}\nport={self.port}\n"
            f"[message]\nenable={enable}\n")

    def start_server(self):
        self.write_configuration("yes")
        users = [101, 102, 103, 104, 105, 106, 107, 108, 201, 202, 203, 204, 301, 302]
        (self.directory / "regfile.conf").write_text(
            "".join(f"[{user}]\npassword=pw{user}\n" for user in users))
        self.server = Server(self.options.program, ["-c", self.directory],
                             self.directory / "server.log")
        self.server.wait_ready()

    def stop_server(self, number=signal.SIGTERM):
        server, self.server = self.server, None
        seconds, status = server.stop(number)
        if status != 0 or seconds > 1:
            raise Failed(f"exit status {status} after {seconds:.1f} s; expected 0 within 1 s")
        _, lines = server.trace()
        strange = [line for line in lines.splitlines() if re.match(r"(warning|error):", line)
                   and not re.search("wrong password|may not use the From|refused with 501", line)]
        if strange:
            raise Failed("unexpected in the log:\n" + "\n".join(strange))

    # ---- registration

    def open_phones(self):
        """All at once: linphonec takes its time."""
        def open_one(kind, user, *arguments, password=None):
            if shutil.which(kind.program):
                transport = "udp" if user in (101, 102, 103, 104, 301, 302) else "tcp"
                self.phones[user] = kind(self.directory, user, transport, self.port,
                                         password or f"pw{user}", *arguments)
        for user in (103, 104, 203, 204):
            open_one(Linphonec, user)
        open_one(Linphonec, 302, password="wrong")
        open_one(Baresip, 101, [102, 103, 203, 107])
        open_one(Baresip, 102, [101])
        open_one(Baresip, 201, [202, 203, 103])
        open_one(Baresip, 202, [201])
        open_one(Baresip, 301, [101], password="wrong")

    def registers(self, *users):
        for user in users:
            phone = self.phones[user]
            wait_until(phone.is_registered, f"{phone.name} is registered")

    def is_refused(self, user):
        phone = self.phones[user]
        wait_until(phone.is_refused_registration, f"{phone.name} is refused")
        if phone.is_registered():
            raise Failed(f"{phone.name} is registered with a wrong password")

    def sipsak(self, user, *arguments, transport="udp", password=None):
        return Command("sipsak", ["sipsak", "-v", "-v", "-E", transport, "-u", user, "-a",
                                  password or f"pw{user}", *arguments], self.directory)

    def sipsak_registers(self, transport, password, status, pattern):
        self.sipsak(105, "-U", "-x", 60, "-C", f"sip:105@{HOST}:{free_port()}",
                    "-s", f"sip:105@{HOST}:{self.port}", transport=transport,
                    password=password).expect(status, pattern)

    def sipp(self, scenario, user, transport, *arguments):
        return Command(f"sipp {scenario}", [
            "sipp", f"{HOST}:{self.port}", "-sf", HERE / f"sipp_{scenario}.xml", "-m", 1,
            "-i", HOST, "-t", "u1" if transport == "udp" else "t1", "-nostdin",
            "-key", "user", user, "-au", user, "-ap", f"pw{user}",
            "-timeout", f"{TIMEOUT_S - 1}s", "-timeout_error",
            "-trace_err", *arguments], self.directory, error_option="-error_file")

    def sipp_registers(self, transport):
        self.sipp("register", 106, transport).expect(0)

    # ---- messages

    def arrives(self, text, sender_transport, recipient, sender_user):
        wait_until(lambda: recipient.shows(sender_user, text), f"{recipient.name} shows {text!r}")
        wait_until(lambda: "200" in self.server.answers(text), "the sender is answered 200")
        way, expected = self.server.way(text), (sender_transport, recipient.transport)
        if way != expected:
            raise Failed(f"the message took the way {way} instead of {expected}")

    def new_text(self, sender, recipient):
        """No two are alike, so that none passes for another."""
        self.texts += 1
        return f"Grüße von {sender} an {recipient}, Nr. {self.texts}: žluťoučký kůň 👋🏽"

    def registered(self, user):
        """No need to wait for what cannot happen."""
        phone = self.phones[user]
        if not phone.is_registered():
            raise Failed(f"{phone.name} is not registered")
        return phone

    def chat(self, *users):
        """Each writes to the other."""
        one, other = map(self.registered, users)
        for sender, recipient in ((one, other), (other, one)):
            text = self.new_text(sender.user, recipient.user)
            sender.send(recipient.user, text)
            self.arrives(text, sender.transport, recipient, sender.user)
            wait_until(sender.shows_success, f"{sender.name} knows that its message arrived")

    def sipsak_message(self, text, peer, sender=105):
        file = self.directory / "sipsak-message"
        file.write_text(f"MESSAGE sip:{peer}@{HOST}:{self.port} SIP/2.0\n"
                        f"From: <sip:{sender}@{HOST}:{self.port}>;tag=sipsak\n"
                        f"To: <sip:{peer}@{HOST}:{self.port}>\n"
                        f"Call-ID: sipsak-{time.monotonic_ns()}\nCSeq: 1 MESSAGE\n"
                        "Max-Forwards: 70\nContent-Type: text/plain;charset=utf-8\n"
                        f"Content-Length: {len(text.encode())}\n\n{text}")
        return ["-f", file, "-s", f"sip:{peer}@{HOST}:{self.port}"]

    def sipsak_writes(self, transport, user):
        text, recipient = self.new_text("sipsak", user), self.registered(user)
        self.sipsak(105, *self.sipsak_message(text, user), transport=transport).expect(0, "200")
        self.arrives(text, transport, recipient, 105)

    def sipsak_is_told(self, pattern, peer, sender=105, password=None):
        self.sipsak(105, *self.sipsak_message(self.new_text(sender, peer), peer, sender),
                    password=password).expect(2 if password else 1, pattern)

    def sipp_writes(self, transport, user):
        text, recipient = self.new_text("sipp", user), self.registered(user)
        self.sipp("message", 106, transport, "-key", "peer", user, "-key", "text", text).expect(0)
        self.arrives(text, transport, recipient, 106)

    def sipp_receives(self):
        """First it registers the port on which it then waits."""
        port, messages = free_port(), self.directory / "sipp-messages"
        self.sipp("register", 107, "udp", "-p", port).expect(0)
        receiver = self.sipp("receive", 107, "udp", "-p", port, "-trace_msg",
                             "-message_file", messages)
        wait_until(messages.exists, "sipp waits")
        text, sender = self.new_text(101, "sipp"), self.registered(101)
        sender.send(107, text)
        receiver.expect(0)
        if text not in messages.read_text(errors="replace"):
            raise Failed(f"sipp did not receive {text!r}")
        wait_until(lambda: "200" in self.server.answers(text), "the sender is answered 200")

    def is_told(self, user, peer, code):
        sender = self.registered(user)
        text = self.new_text(user, peer)
        sender.send(peer, text)
        wait_until(lambda: sender.shows_failure(code), f"{sender.name} shows the failure {code}")
        answers = self.server.answers(text)
        if answers[-1:] != [code]:
            raise Failed(f"the sender was answered {answers} instead of {code}")

    def quits(self, user):
        phone = self.phones[user]
        phone.quit()
        wait_until(lambda: not phone.is_running(), f"{phone.name} ends")

    def tell_who_quit(self, sender, user):
        self.quits(user)
        self.is_told(sender, user, "405")

    def reload_with(self, enable):
        self.write_configuration(enable)
        self.server.reload()

    # ---- connections that are silent for long

    def open_idle(self):
        """A second server that closes silent connections early, with two phones on such ones."""
        directory, port = self.directory / "idle", free_port()
        directory.mkdir()
        (directory / "ysipchan.conf").write_text(
            f"[general]\ntype=tcp\naddr={HOST}\nport={port}\nt1=100\ntcp_idle=10\n"
            "[message]\nenable=yes\n")
        (directory / "regfile.conf").write_text("[401]\npassword=pw401\n[402]\npassword=pw402\n")
        self.idle_server = Server(self.options.program, ["-c", directory], directory / "log")
        self.idle_server.wait_ready()
        for user, peer in ((401, 402), (402, 401)):
            self.phones[user] = Baresip(directory, user, "tcp", port, f"pw{user}", [peer])
        self.registers(401, 402)
        self.silent = socket.create_connection((HOST, port))
        self.silent.send(b"\r\n\r\n")  # a keep-alive, which is answered; then it is silent
        self.silent.setblocking(False)

    def is_silent_closed(self):
        try:
            return self.silent.recv(64) == b""
        except BlockingIOError:
            return False

    def chat_after_idle(self):
        """Where nobody has registered, a silent connection is closed."""
        if not self.idle_server:
            raise Failed("that server did not start")
        self.server = self.idle_server
        wait_until(self.is_silent_closed, "the server closes the connection of a stranger", 20)
        self.chat(401, 402)
        self.stop_server()

    # ---- without configuration

    def open_mode(self):
        """The files of examples/softphones, with another port."""
        port = free_port()
        self.server = Server(self.options.program,
                             ["--listen", f"udp:{HOST}:{port}", "--listen", f"tcp:{HOST}:{port}"],
                             self.directory / "open-server.log")
        self.server.wait_ready()
        for user, peer in ((101, 102), (102, 101)):
            home = self.directory / f"open-{user}"
            home.mkdir()
            for name in ("config", "accounts", "contacts"):
                text = (EXAMPLES / str(user) / name).read_text()
                (home / name).write_text(text.replace(f"@{HOST}>", f"@{HOST}:{port}>"))
            phone = Baresip.__new__(Baresip)
            phone.start(home, user, "udp", [peer])
            self.phones[user] = phone
        self.registers(101, 102)
        self.chat(101, 102)

    # ---- all of it

    def run(self):
        baresip, linphonec, sipsak, sipp = ["baresip"], ["linphonec"], ["sipsak"], ["sipp"]
        check = self.check
        check("server starts", [], self.start_server)
        if self.counts["FAILED"]:
            return
        self.open_phones()
        check("baresip registers over tcp, to be silent", baresip, self.open_idle)

        for transport in ("udp", "tcp"):
            check(f"sipsak registers over {transport}", sipsak,
                  self.sipsak_registers, transport, None, 0, "completed successful")
            check(f"sipp registers over {transport}", sipp, self.sipp_registers, transport)
        check("sipsak with a wrong password is refused", sipsak,
              self.sipsak_registers, "udp", "wrong", 2, "401 Unauthorized")
        check("baresip registers over udp", baresip, self.registers, 101, 102)
        check("baresip registers over tcp", baresip, self.registers, 201, 202)
        check("baresip with a wrong password is refused", baresip, self.is_refused, 301)
        check("linphonec registers over udp", linphonec, self.registers, 103, 104)
        check("linphonec registers over tcp", linphonec, self.registers, 203, 204)
        check("linphonec with a wrong password is refused", linphonec, self.is_refused, 302)

        check("baresip and baresip chat over udp", baresip, self.chat, 101, 102)
        check("baresip and baresip chat over tcp", baresip, self.chat, 201, 202)
        check("linphonec and linphonec chat over udp", linphonec, self.chat, 103, 104)
        check("linphonec and linphonec chat over tcp", linphonec, self.chat, 203, 204)
        both = baresip + linphonec
        check("baresip and linphonec chat over udp", both, self.chat, 101, 103)
        check("baresip and linphonec chat over tcp", both, self.chat, 201, 203)
        check("baresip over udp and linphonec over tcp chat", both, self.chat, 101, 203)
        check("baresip over tcp and linphonec over udp chat", both, self.chat, 201, 103)
        check("sipsak writes over udp", sipsak + baresip, self.sipsak_writes, "udp", 101)
        check("sipsak writes over tcp", sipsak + linphonec, self.sipsak_writes, "tcp", 203)
        check("sipp writes over udp", sipp + linphonec, self.sipp_writes, "udp", 103)
        check("sipp writes over tcp", sipp + baresip, self.sipp_writes, "tcp", 201)
        check("sipp receives over udp", sipp + baresip, self.sipp_receives)

        check("sipsak is told 405 where the recipient is offline", sipsak,
              self.sipsak_is_told, "405 Method Not Allowed", 108)
        check("sipsak is told 404 where nobody has that name", sipsak,
              self.sipsak_is_told, "404 Not Found", 999)
        check("sipsak is told 403 where it writes as somebody else", sipsak,
              self.sipsak_is_told, "403 ", 101, 104)
        check("sipsak is told 401 where it writes with a wrong password", sipsak,
              self.sipsak_is_told, "401 Unauthorized", 101, 105, "wrong")
        check("baresip is told 405 after the other has quit", baresip, self.tell_who_quit, 101, 102)
        check("linphonec is told 405 after the other has quit", linphonec,
              self.tell_who_quit, 203, 204)

        check("server reloads with [message] enable=no", [], self.reload_with, "no")
        check("baresip is told 501 where messages are off", baresip, self.is_told, 201, 202, "501")
        check("linphonec is told 501 where messages are off", linphonec,
              self.is_told, 103, 104, "501")
        check("sipsak is told 501 where messages are off", sipsak,
              self.sipsak_is_told, "501 Not Implemented", 101)
        check("server reloads with [message] enable=yes", [], self.reload_with, "yes")
        check("baresip and baresip chat after the reloads", baresip, self.chat, 201, 202)
        check("linphonec and linphonec chat after the reloads", linphonec, self.chat, 103, 104)
        check("server ends within a second", [], self.stop_server)
        for user, phone in self.phones.items():
            if user not in (401, 402):
                phone.end()

        check("baresip over tcp is reached after a long silence", baresip, self.chat_after_idle)
        check("baresip and baresip chat through the open server", baresip, self.open_mode)
        if self.server:
            check("open server ends when its terminal is closed", [],
                  self.stop_server, signal.SIGHUP)


def main():
    parser = argparse.ArgumentParser(prog="tests/smoke/run.sh")
    parser.add_argument("--algorithms", help="[general] algorithms of ysipchan.conf")
    conclude(Smoke(parse_options(parser)))


if __name__ == "__main__":
    main()
