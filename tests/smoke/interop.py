"""Our client against what others wrote: Kamailio as its server, sipp as registrar and as recipient,
baresip and linphonec at the other end of a chat.

run.sh starts it and says how to call it. The client is client.cpp, one process for each account; a
check types a line and waits for what is printed. Where there is a namespace to do that in, a name
server of our own stands on port 53, and /etc/resolv.conf leads to it.
"""
import argparse
import os
import pathlib
import re
import signal
import socket
import struct
import subprocess
import threading
import time

from common import (HERE, HOST, TIMEOUT_S, Checks, Command, Failed, Running, conclude, free_port,
                    parse_options, wait_until, which)
from softphones import Baresip, Linphonec

NONCE_EXPIRE_S = 3
DOMAIN = "example.test"


class Client(Running):
    """client.cpp for one account, over one transport (but for what is too large for UDP)."""

    def __init__(self, program, directory, user, domain, transport, password):
        super().__init__(f"client {user}")
        self.account, self.transport = f"sip:{user}@{domain}", transport
        proxy = f"sip:{domain};transport=tcp" if transport == "tcp" else ""
        self.file = directory / f"client-{len(Running.all)}"
        with open(self.file, "wb") as log:
            self.process = subprocess.Popen([program, self.account, password, proxy],
                                            stdin=subprocess.PIPE, stdout=log, stderr=log,
                                            start_new_session=True)

    def tell(self, line):
        self.mark()
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def waits_for(self, line):
        """A line in what it has printed since the last `tell` or `mark`."""
        pattern = re.compile(f"^{line}$", re.M)
        wait_until(lambda: pattern.search(self.fresh()), f"{self.name} prints {line!r}")

    def registers(self, expires_s=60):
        self.tell("register")
        self.waits_for(f"registered {expires_s}")

    def finish(self):
        """Its input ends, and then it does, having unregistered."""
        self.process.stdin.close()
        try:
            status = self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.name} does not end") from None
        if status != 0:
            raise Failed(f"{self.name} ends with status {status}")


class Kamailio(Running):
    def __init__(self, directory, port, number):
        super().__init__("kamailio")
        self.file = directory / f"kamailio-{number}.log"
        with open(self.file, "wb") as log:
            self.process = subprocess.Popen(
                [which("kamailio"), "-f", HERE / "kamailio.cfg", "-DD", "-E", "-m", "16", "-M", "4",
                 "-A", f"PORT={port}", "-A", f"NONCE_EXPIRE={NONCE_EXPIRE_S}", "-Y", directory,
                 "-P", directory / "kamailio.pid"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def received(self, method, user):
        """The transports of what it received since `mark`."""
        return re.findall(rf"received {method} over (\w+) from {user}, ", self.fresh())

    def end(self):
        """It consists of several processes, which it ends itself when it is asked to."""
        if self.is_running():
            self.process.terminate()
            try:
                self.process.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class NameServer(threading.Thread):
    """Answers A and SRV questions from a table, and everything else with no records."""
    A, SRV, INTERNET = 1, 33, 1

    def __init__(self):
        super().__init__(daemon=True)
        self.table = {}
        self.asked = []
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((HOST, 53))

    @staticmethod
    def wire(name):
        return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"

    def add_host(self, name):
        self.table.setdefault((name, self.A), []).append(socket.inet_aton(HOST))

    def add_service(self, name, priority, port, target):
        self.table.setdefault((name, self.SRV), []).append(
            struct.pack("!HHH", priority, 0, port) + self.wire(target))

    def run(self):
        while True:
            query, peer = self.socket.recvfrom(4096)
            end = query.index(b"\0", 12) + 5
            labels, at = [], 12
            while query[at]:
                labels.append(query[at + 1:at + 1 + query[at]].decode().lower())
                at += 1 + query[at]
            name, kind = ".".join(labels), struct.unpack("!H", query[at + 1:at + 3])[0]
            self.asked.append((name, kind))
            records = self.table.get((name, kind), [])
            answer = query[:2] + struct.pack("!HHHHH", 0x8580, 1, len(records), 0, 0) + query[12:end]
            for data in records:  # 0xc00c: the name of the question
                answer += struct.pack("!HHHIH", 0xc00c, kind, self.INTERNET, 60, len(data)) + data
            self.socket.sendto(answer, peer)


class Interop(Checks):
    def __init__(self, options):
        super().__init__(options)
        self.port = free_port()
        self.kamailio = None
        self.starts = 0
        self.texts = 0
        self.clients = {}
        self.phones = {}

    def before_check(self):
        if self.kamailio and not self.kamailio.is_running():
            raise Failed(f"kamailio ended, status {self.kamailio.process.returncode}")

    def open(self, user, transport="udp", domain=None, password=None):
        self.clients[user] = Client(self.options.program, self.directory, user,
                                    domain or f"{HOST}:{self.port}", transport,
                                    password or f"pw{user}")
        return self.clients[user]

    def new_text(self):
        """No two are alike, so that none passes for another."""
        self.texts += 1
        return f"Nr. {self.texts}: žluťoučký kůň 👋🏽"

    # ---- Kamailio

    def start_kamailio(self):
        self.starts += 1
        self.kamailio = Kamailio(self.directory, self.port, self.starts)

        def is_listening():
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                return probe.connect_ex((HOST, self.port)) == 0

        wait_until(lambda: is_listening() or not self.kamailio.is_running(), "kamailio starts")
        if not self.kamailio.is_running():
            raise Failed("kamailio does not start")

    def registers(self, user, transport, domain=None):
        self.kamailio.mark()
        self.open(user, transport, domain).registers()
        transports = self.kamailio.received("REGISTER", user)
        if transports != [transport, transport]:
            raise Failed(f"it registered over {transports}")

    def is_refused(self):
        """The same wrong password is not sent twice (RFC 3261 22.2)."""
        self.kamailio.mark()
        client = self.open(301, password="wrong")
        client.tell("register")
        client.waits_for("refused 401 none")
        tries = self.kamailio.received("REGISTER", 301)
        if len(tries) != 2:
            raise Failed(f"it tried {len(tries)} times instead of once without and once with it")

    def writes(self, sender, recipient, text=None, domain=None, over=None):
        """Returns how often kamailio got it, tries with no or an old nonce included."""
        text = text or self.new_text()
        domain = domain or f"{HOST}:{self.port}"
        one, other = self.clients[sender], self.clients[recipient]
        self.kamailio.mark()
        other.mark()
        one.tell(f"send sip:{recipient}@{domain} {text}")
        other.waits_for(f"message {re.escape(one.account)} {re.escape(text)}")
        one.waits_for("answer 200 OK")
        transports = self.kamailio.received("MESSAGE", sender)
        if set(transports) != {over or one.transport}:
            raise Failed(f"it came over {transports}")
        return len(transports)

    def chat(self, one, other, domain=None):
        self.writes(one, other, domain=domain)
        self.writes(other, one, domain=domain)

    def is_told(self, sender, recipient, answer):
        self.clients[sender].tell(f"send sip:{recipient}@{HOST}:{self.port} {self.new_text()}")
        self.clients[sender].waits_for(f"answer {answer}")

    def uses_nonces_again(self):
        self.writes(101, 201)
        if self.writes(101, 201) != 1:
            raise Failed("a nonce that is fresh was not used again")
        time.sleep(NONCE_EXPIRE_S + 1.5)
        tries = self.writes(101, 201)
        if tries != 2:
            raise Failed(f"kamailio got it {tries} times, so that no nonce was stale")

    def writes_much(self):
        """RFC 3261 18.1.1: what is larger than 1300 octets goes over TCP."""
        self.writes(101, 201, self.new_text() + " x" * 2000, over="tcp")

    def registers_again(self):
        """Kamailio keeps bindings in memory, so that a new one has none."""
        client = self.clients[201]
        client.mark()
        self.kamailio.end()
        self.start_kamailio()
        client.waits_for("registered 60")
        self.writes(101, 201)

    def unregisters(self):
        self.clients[201].tell("unregister")
        self.clients[201].waits_for("unregistered")
        self.is_told(101, 201, "404 Not Found")

    # ---- the program

    def sipmsg(self, command, user, transport, *arguments, password=None):
        own = {"send": "--from", "receive": "--as"}[command]
        return Command(f"sipmsg {command}", [
            self.options.sipmsg, command, own, f"sip:{user}@{HOST}:{self.port}", "--password",
            password or f"pw{user}", "--proxy", f"sip:{HOST}:{self.port};transport={transport}",
            *arguments], self.directory)

    def program_sends_and_receives(self, transport):
        text = self.new_text()
        receiver = self.sipmsg("receive", 108, transport, "--count", 1)
        wait_until(lambda: "registered" in receiver.log(), "sipmsg receive is registered")
        self.kamailio.mark()
        self.sipmsg("send", 109, transport, f"sip:108@{HOST}:{self.port}", text).expect(0, "^200 OK")
        receiver.expect(0, rf"sip:109@{HOST}:{self.port}: {re.escape(text)}\n")
        transports = self.kamailio.received("MESSAGE", 109)
        if set(transports) != {transport}:
            raise Failed(f"it came over {transports}")

    def program_is_told(self, pattern, recipient, password=None):
        self.sipmsg("send", 109, "udp", f"sip:{recipient}@{HOST}:{self.port}", "hello",
                    password=password).expect(1, pattern)

    def run_program(self):
        for transport in ("udp", "tcp"):
            self.check(f"sipmsg send and receive through kamailio over {transport}", ["kamailio"],
                       self.program_sends_and_receives, transport)
        self.check("sipmsg send is told 404 by kamailio", ["kamailio"],
                   self.program_is_told, "^404 Not Found", 119)
        self.check("sipmsg send with a wrong password is told 407 by kamailio", ["kamailio"],
                   self.program_is_told, "^407 ", 119, "wrong")

    # ---- softphones

    def open_phones(self):
        """Those that are installed; linphonec takes its time."""
        for user, kind, transport, options in (
                (106, Linphonec, "udp", [HOST]), (206, Linphonec, "tcp", [HOST]),
                (107, Baresip, "udp", [[105, 205]]), (207, Baresip, "tcp", [[105, 205]])):
            if which(kind.program):
                self.phones[user] = kind(self.directory, user, transport, self.port, f"pw{user}",
                                         *options)
        for user, transport in ((105, "udp"), (205, "tcp")):
            self.registers(user, transport)

    def chat_with_phone(self, user, peer):
        client, phone = self.clients[user], self.phones[peer]
        wait_until(phone.is_registered, f"{phone.name} is registered")
        text = self.new_text()
        client.tell(f"send sip:{peer}@{HOST}:{self.port} {text}")
        wait_until(lambda: phone.shows(user, text), f"{phone.name} shows {text!r}")
        client.waits_for("answer 200 .*")  # linphonec says Ok
        text = self.new_text()
        client.mark()
        phone.send(user, text)
        client.waits_for(rf"message sip:{peer}@\S* {re.escape(text)}")
        wait_until(phone.shows_success, f"{phone.name} knows that its message arrived")

    def run_with_phones(self):
        self.check("softphones start, and clients register", ["kamailio"], self.open_phones)
        for peer, kind in ((107, Baresip), (207, Baresip), (106, Linphonec), (206, Linphonec)):
            for user in (105, 205):
                transports = ["tcp" if number > 200 else "udp" for number in (user, peer)]
                self.check(f"client over {transports[0]} and {kind.program} over {transports[1]} chat",
                           ["kamailio", kind.program], self.chat_with_phone, user, peer)

    # ---- names

    def start_name_server(self):
        """For TCP the domain has a first server that is down. Over UDP that shows by silence only,
        and a check has no time for Timer F."""
        file = self.directory / "resolv.conf"
        file.write_text(f"nameserver {HOST}\noptions timeout:1 attempts:2\n")
        subprocess.run(["mount", "--bind", file, "/etc/resolv.conf"], check=True)
        self.names = NameServer()
        self.names.add_host(f"down.{DOMAIN}")
        self.names.add_host(f"sip.{DOMAIN}")
        self.names.add_service(f"_sip._udp.{DOMAIN}", 10, self.port, f"sip.{DOMAIN}")
        self.names.add_service(f"_sip._tcp.{DOMAIN}", 20, self.port, f"sip.{DOMAIN}")
        self.names.add_service(f"_sip._tcp.{DOMAIN}", 10, free_port(), f"down.{DOMAIN}")
        self.names.start()

    def registers_by_name(self, user, transport):
        self.registers(user, transport, DOMAIN)
        asked = (f"_sip._{transport}.{DOMAIN}", NameServer.SRV)
        if asked not in self.names.asked:
            raise Failed(f"nobody asked for {asked[0]}")

    # ---- sipp

    def sipp(self, scenario, transport, *arguments):
        port = free_port()
        command = Command(f"sipp {scenario}", [
            "sipp", "-sf", HERE / f"sipp_{scenario}.xml", "-m", 1, "-i", HOST, "-p", port,
            "-t", "u1" if transport == "udp" else "t1", "-nostdin", "-timeout", f"{TIMEOUT_S}s",
            "-timeout_error", "-trace_err", *arguments], self.directory, error_option="-error_file")
        kind = socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM

        def is_taken():
            with socket.socket(socket.AF_INET, kind) as probe:
                try:
                    probe.bind((HOST, port))
                except OSError:
                    return True
                return False

        wait_until(is_taken, "sipp listens")
        return command, port

    def sipp_registers(self, user, transport):
        """401, 423, 200, and 200 again when the client goes."""
        sipp, port = self.sipp("registrar", transport, "-key", "user", user)
        client = self.open(user, transport, f"{HOST}:{port}")
        client.registers(1800)
        client.finish()
        sipp.expect(0)

    def sipp_receives(self, transport, text):
        messages = self.directory / f"sipp-{self.texts}"
        sipp, port = self.sipp("receive", transport, "-trace_msg", "-message_file", messages)
        parameter = ";transport=tcp" if transport == "tcp" else ""
        sender = self.open(110)
        sender.tell(f"send sip:sipp@{HOST}:{port}{parameter} {text}")
        sender.waits_for("answer 200 OK")
        sipp.expect(0)
        sender.finish()
        if text not in messages.read_text(errors="replace"):
            raise Failed(f"sipp did not receive {text!r}")

    # ---- all of it

    def run(self):
        kamailio, sipp = ["kamailio"], ["sipp"]
        check = self.check
        check("kamailio starts", kamailio, self.start_kamailio)
        if self.kamailio and self.kamailio.is_running():
            check("client registers with kamailio over udp", kamailio, self.registers, 101, "udp")
            check("client registers with kamailio over tcp", kamailio, self.registers, 201, "tcp")
            check("client with a wrong password is refused by kamailio", kamailio, self.is_refused)
            check("clients chat through kamailio, udp and tcp", kamailio, self.chat, 101, 201)
            check("client is told 404 by kamailio", kamailio, self.is_told, 101, 109,
                  "404 Not Found")
            check("client uses kamailio's nonces again until they are stale", kamailio,
                  self.uses_nonces_again)
            check("client sends kamailio a large message over tcp", kamailio, self.writes_much)
            check("client registers again when kamailio was restarted", kamailio,
                  self.registers_again)
            check("client unregisters with kamailio", kamailio, self.unregisters)
            if self.options.sipmsg:
                self.run_program()
            self.run_with_phones()
            self.run_by_name()
            for client in list(self.clients.values()):
                check(f"{client.name} ends in good order", kamailio, client.finish)
        for transport in ("udp", "tcp"):
            check(f"client registers with sipp over {transport}", sipp, self.sipp_registers,
                  111 if transport == "udp" else 211, transport)
            check(f"client sends to sipp over {transport}", sipp, self.sipp_receives, transport,
                  self.new_text())
        check("client sends much to sipp over udp where tcp is refused", sipp, self.sipp_receives,
              "udp", self.new_text() + " x" * 2000)

    def run_by_name(self):
        kamailio = ["kamailio"]
        if not self.options.isolated:
            self.conclude("skipped", "client finds kamailio by name", "that needs a namespace")
            return
        self.check("name server starts", kamailio, self.start_name_server)
        self.check("client finds kamailio by name over udp", kamailio,
                   self.registers_by_name, 104, "udp")
        self.check("client finds kamailio by name over tcp, past a server that is down", kamailio,
                   self.registers_by_name, 204, "tcp")
        self.check("clients chat by name", kamailio, self.chat, 104, 204, DOMAIN)


def main():
    parser = argparse.ArgumentParser(prog="tests/smoke/run.sh interop")
    parser.add_argument("--sipmsg", metavar="PROGRAM", help="checks this one's send and receive, too",
                        type=lambda text: pathlib.Path(text).resolve())
    conclude(Interop(parse_options(parser)))


if __name__ == "__main__":
    main()
