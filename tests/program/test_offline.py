#!/usr/bin/env python3
"""Messages for users who are offline, through the real program: kept, delivered, and never lost.

    test_offline.py PROGRAM

The program is killed in the middle of load two hundred times; everything else is checked once.
"""
import fcntl
import pathlib
import random
import re
import select
import signal
import sys
import tempfile
import time
import unittest

from support import Served, Socket, body_of, branch, code, free_port, header, run, wait_until

KILLS = 200
SEED = 20260101


class Setting:
    """A configuration with a spool, on a free port."""

    def __init__(self, offline="spool=${configpath}/spool", offline_code=480, general="", rules=""):
        self.temporary = tempfile.TemporaryDirectory()
        self.directory = self.temporary.name
        self.port = free_port()
        path = pathlib.Path(self.directory)
        (path / "ysipchan.conf").write_text(
            f"[general]\naddr=127.0.0.1\nport={self.port}\n{general}\n[registrar]\nauth_required=no\n"
            f"expires_min=1\n[message]\nenable=yes\nauth_required=no\n"
            f"offline_code={offline_code}\n"
            f"[offline]\nenable=yes\n{offline}\n")
        (path / "regexroute.conf").write_text(rules)
        (path / "regfile.conf").write_text("[101]\n[102]\n[103]\n[104]\nalternatives=all\n[105]\nalternatives=all\n")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.temporary.cleanup()

    def files(self, ending=".msg"):
        spool = pathlib.Path(self.directory) / "spool"
        return sorted(path.name for path in spool.glob(f"*{ending}"))


class Keeping(unittest.TestCase):
    def test_messages_are_kept_over_a_restart_and_delivered_in_order_as_they_were_sent(self):
        with Setting() as setting, Socket(setting.port) as sender, Socket(setting.port) as phone:
            with Served("-c", setting.directory):
                for text in ("one", "two", "three"):
                    self.assertEqual(sender.ask(
                        "MESSAGE", "102", text,
                        headers="Content-Type: text/html\r\nSubject: s\r\n"
                                "Date: Wed, 26 Nov 2025 12:00:00 GMT\r\n"), 202)
                self.assertEqual(len(setting.files()), 3)
            with Served("-c", setting.directory):
                self.assertEqual(phone.register("102"), 200)
                for text in ("one", "two", "three"):
                    message = phone.take_message()
                    self.assertEqual(body_of(message), text)
                    self.assertTrue(message.startswith(f"MESSAGE sip:102@127.0.0.1:{phone.port} "))
                    self.assertTrue(header(message, "From").startswith('"Ann" <sip:101@127.0.0.1>'))
                    self.assertEqual(header(message, "Content-Type"), "text/html")
                    self.assertEqual(header(message, "Subject"), "s")
                    self.assertEqual(header(message, "Date"), "Wed, 26 Nov 2025 12:00:00 GMT")
                wait_until(lambda: not setting.files())
                # Now he is there, and what is sent to him is not kept.
                request = sender.request("MESSAGE", "102", "four")
                sender.send(request)
                self.assertEqual(body_of(phone.take_message()), "four")
                self.assertEqual(code(sender.receive()), 200)
                self.assertEqual(setting.files(), [])

    def test_a_phone_that_fails_gets_its_messages_when_it_registers_again(self):
        with Setting() as setting, Socket(setting.port) as sender, Socket(setting.port) as phone, \
                Served("-c", setting.directory) as it:
            for text in ("one", "two"):
                self.assertEqual(sender.ask("MESSAGE", "102", text), 202)
            self.assertEqual(phone.register("102"), 200)
            self.assertEqual(body_of(phone.take_message("486 Busy Here")), "one")
            it.wait_for("are not delivered yet: 486")
            self.assertEqual(len(setting.files()), 2)
            self.assertEqual(phone.register("102"), 200)
            first, second = phone.take_message(), phone.take_message()
            self.assertEqual((body_of(first), body_of(second)), ("one", "two"))

    def test_a_message_that_one_phone_cannot_take_is_kept_for_another(self):
        with Setting() as setting, Socket(setting.port) as sender, Socket(setting.port) as phone, \
                Socket(setting.port) as other, Served("-c", setting.directory) as it:
            for text in ("one", "two"):
                self.assertEqual(sender.ask("MESSAGE", "102", text), 202)
            self.assertEqual(phone.register("102"), 200)
            self.assertEqual(body_of(phone.take_message("415 Unsupported Media Type")), "one")
            self.assertEqual(body_of(phone.take_message()), "two")
            it.wait_for("this phone refuses it with 415")
            self.assertEqual(phone.register("102"), 200)
            self.assertIsNone(phone.take_message(wait_s=0.3))
            self.assertEqual(other.register("102"), 200)
            self.assertEqual(body_of(other.take_message()), "one")

    def test_a_phone_that_leaves_during_delivery_gets_the_rest_when_it_comes_back(self):
        with Setting(offline_code=405) as setting, Socket(setting.port) as sender, \
                Socket(setting.port) as phone, Served("-c", setting.directory) as it:
            for text in ("one", "two", "three"):
                self.assertEqual(sender.ask("MESSAGE", "102", text), 202)
            self.assertEqual(phone.register("102"), 200)
            while not (first := phone.receive()).startswith("MESSAGE "):
                pass
            self.assertEqual(phone.register("102", expires=0), 200)
            phone.answer(first)
            it.wait_for("are not delivered yet: 405")
            self.assertEqual(phone.register("102"), 200)
            self.assertEqual([body_of(first), *(body_of(phone.take_message()) for _ in range(2))],
                             ["one", "two", "three"])

    def test_what_is_not_kept_is_answered_as_usual(self):
        composing = "Content-Type: application/im-iscomposing+xml\r\n"
        state = ("<isComposing xmlns='urn:ietf:params:xml:ns:im-iscomposing'>"
                 "<state>active</state></isComposing>")
        with Setting() as setting, Socket(setting.port) as sender, Served("-c", setting.directory):
            self.assertEqual(sender.ask("MESSAGE", "nobody", "x"), 404)
            self.assertEqual(sender.ask("MESSAGE", "102", state, headers=composing), 480)
            self.assertEqual(sender.ask("MESSAGE", "102", "x", headers="Expires: 0\r\n"), 480)
            self.assertEqual(setting.files(), [])

    def test_a_refusal_by_a_phone_is_its_answer_also_where_it_is_that_for_the_offline(self):
        with Setting(offline_code=405) as setting, Socket(setting.port) as sender, \
                Socket(setting.port) as phone, Served("-c", setting.directory):
            self.assertEqual(phone.register("102"), 200)
            for status in ("486 Busy Here", "405 Method Not Allowed"):
                request = sender.request("MESSAGE", "102", "x")
                sender.send(request)
                self.assertTrue(phone.take_message(status))
                self.assertEqual(code(sender.receive()), int(status[:3]))
            self.assertEqual(setting.files(), [])
            self.assertEqual(phone.register("102", expires=0), 200)
            self.assertEqual(sender.ask("MESSAGE", "102", "x"), 202)

    def test_a_phone_that_is_there_and_cannot_be_reached_gets_its_messages_later(self):
        with Setting() as setting, Socket(setting.port) as sender, Socket(setting.port) as phone, \
                Served("-c", setting.directory):
            self.assertEqual(phone.register("102"), 200)
            for status in ("480 Temporarily Unavailable", "503 Service Unavailable"):
                request = sender.request("MESSAGE", "102", status)
                sender.send(request)
                self.assertTrue(phone.take_message(status))
                self.assertEqual(code(sender.receive()), 202)
            self.assertEqual(len(setting.files()), 2)
            self.assertEqual(phone.register("102"), 200)
            self.assertTrue(body_of(phone.take_message()).startswith("480"))
            self.assertTrue(body_of(phone.take_message()).startswith("503"))

    def test_what_a_phone_refused_before_the_spool_was_open_waits_until_it_registers_again(self):
        with Setting() as setting, Socket(setting.port) as sender, Socket(setting.port) as phone:
            spool = pathlib.Path(setting.directory, "spool")
            spool.mkdir(0o700)
            with open(spool / "lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # as the server before this one would
                with Served("-c", setting.directory):
                    self.assertEqual(phone.register("102"), 200)
                    sender.send(sender.request("MESSAGE", "102", "x"))
                    self.assertTrue(phone.take_message("480 Temporarily Unavailable"))
                    self.assertEqual(setting.files(), [])
                    fcntl.flock(lock, fcntl.LOCK_UN)
                    self.assertEqual(code(sender.receive()), 202)
                    self.assertIsNone(phone.take_message(wait_s=0.3))
                    self.assertEqual(phone.register("102"), 200)
                    self.assertEqual(body_of(phone.take_message()), "x")

    def test_a_message_to_a_common_name_is_kept_for_each_who_answers_to_it(self):
        with Setting() as setting, Socket(setting.port) as sender, Served("-c", setting.directory):
            self.assertEqual(sender.ask("MESSAGE", "all", "x"), 202)
            for user in ("104", "105"):
                with Socket(setting.port) as phone:
                    self.assertEqual(phone.register(user), 200)
                    message = phone.take_message()
                    self.assertEqual(body_of(message), "x")
                    self.assertEqual(header(message, "To"), f"<sip:{user}@127.0.0.1>")

    def test_what_a_rule_sends_elsewhere_is_kept_for_the_user_it_names_or_not_at_all(self):
        with Socket(0) as gateway:
            rules = f"[default]\n^77$=sip/sip:102@127.0.0.1\n^9=sip/sip:gw@127.0.0.1:{gateway.port}\n"
            with Setting(general="t1=100", rules=rules) as setting, \
                    Socket(setting.port) as sender, Socket(setting.port) as phone, \
                    Served("-c", setting.directory):
                self.assertEqual(sender.ask("MESSAGE", "77", "x"), 202)
                self.assertEqual(phone.register("102"), 200)
                message = phone.take_message()
                self.assertEqual(body_of(message), "x")
                self.assertEqual(header(message, "To"), "<sip:102@127.0.0.1>")
                self.assertEqual(sender.ask("MESSAGE", "901", "y"), 480)
                self.assertTrue(gateway.receive())
                wait_until(lambda: setting.files() == [])

    def test_a_phone_that_comes_while_another_is_silent_gets_what_is_kept_at_once(self):
        with Setting(general="t1=100") as setting, Socket(setting.port) as sender, \
                Socket(setting.port) as silent, Socket(setting.port) as phone, \
                Served("-c", setting.directory):
            self.assertEqual(silent.register("102"), 200)
            request = sender.request("MESSAGE", "102", "x")
            sender.send(request)
            for _ in range(2):  # so some milliseconds have passed
                self.assertTrue(silent.receive().startswith("MESSAGE "))
            self.assertEqual(phone.register("102"), 200)
            self.assertEqual(code(sender.receive()), 202)
            self.assertEqual(body_of(phone.take_message()), "x")
            wait_until(lambda: setting.files() == [])

    def test_limits_refuse_and_the_log_names_the_key(self):
        limits = "spool=${configpath}/spool\nmax_messages=2\nmax_per_sender=3"
        with Setting(limits) as setting, Socket(setting.port) as sender, \
                Served("-c", setting.directory) as it:
            codes = [sender.ask("MESSAGE", user, f"{i}")
                     for i, user in enumerate(("102", "102", "102", "103", "103"))]
            self.assertEqual(codes, [202, 202, 480, 202, 503])
            it.wait_for("[offline] max_messages is reached")
            it.wait_for("[offline] max_per_sender is reached")

    def test_an_expired_message_is_dropped_with_a_line_in_the_log(self):
        with Setting() as setting, Socket(setting.port) as sender, \
                Served("-c", setting.directory) as it:
            self.assertEqual(sender.ask("MESSAGE", "102", "x", headers="Expires: 1\r\n"), 202)
            self.assertRegex(it.wait_for("expired"), r'message \d{16} for "102" expired, undelivered')
            wait_until(lambda: setting.files() == [])

    def test_a_sender_who_asks_is_told_that_his_message_was_stored_and_delivered(self):
        cpim = ("From: <sip:101@127.0.0.1>\r\nTo: <sip:102@127.0.0.1>\r\n"
                "DateTime: 2025-11-26T12:00:00Z\r\nNS: imdn <urn:ietf:params:imdn>\r\n"
                "imdn.Message-ID: abc\r\n"
                "imdn.Disposition-Notification: positive-delivery, processing\r\n\r\n"
                "Content-Type: text/plain\r\n\r\nhello")
        kind = "Content-Type: message/cpim\r\n"
        for notify in ("yes", "no"):
            with Setting(f"spool=${{configpath}}/spool\nnotify={notify}") as setting, \
                    Socket(setting.port) as sender, Socket(setting.port) as own, \
                    Socket(setting.port) as phone, Served("-c", setting.directory):
                self.assertEqual(own.register("101"), 200)
                self.assertEqual(sender.ask("MESSAGE", "102", cpim, headers=kind), 202)
                if notify == "yes":
                    notice = own.take_message()
                    self.assertIn("<message-id>abc</message-id>", notice)
                    self.assertIn("<stored/>", re.sub(r"\s+/>", "/>", notice))
                self.assertEqual(phone.register("102"), 200)
                self.assertIn("hello", phone.take_message())
                if notify == "yes":
                    notice = own.take_message()
                    self.assertIn("<delivered/>", re.sub(r"\s+/>", "/>", notice))
                    # A notice is never kept, nor answered with a notice: the sender is gone.
                    own.register("101", expires=0)
                    self.assertEqual(phone.ask("MESSAGE", "101", body_of(notice), headers=kind,
                                               sender="102"), 480)
                self.assertIsNone(own.take_message(wait_s=0.2))

    def test_a_reload_keeps_what_is_kept_in_memory_too(self):
        with Setting("spool=") as setting, Socket(setting.port) as sender, \
                Socket(setting.port) as phone, Served("-c", setting.directory) as it:
            self.assertIn("kept in memory", "\n".join(it.lines))
            self.assertEqual(sender.ask("MESSAGE", "102", "x"), 202)
            it.process.send_signal(signal.SIGHUP)
            it.wait_for("reloaded")
            self.assertEqual(phone.register("102"), 200)
            self.assertEqual(body_of(phone.take_message()), "x")

    def test_a_reload_that_sets_a_spool_and_smaller_limits_loses_nothing(self):
        with Setting("spool=") as setting, Socket(setting.port) as sender, \
                Socket(setting.port) as phone, Served("-c", setting.directory) as it:
            for text in ("one", "two", "three"):
                self.assertEqual(sender.ask("MESSAGE", "102", text), 202)
            path = pathlib.Path(setting.directory) / "ysipchan.conf"
            path.write_text(path.read_text().replace(
                "spool=", "spool=${configpath}/spool\nmax_messages=1\nmax_per_sender=1"))
            it.process.send_signal(signal.SIGHUP)
            it.wait_for("reloaded")
            wait_until(lambda: len(setting.files()) == 3)
            self.assertEqual(phone.register("102"), 200)
            for text in ("one", "two", "three"):
                self.assertEqual(body_of(phone.take_message()), text)

    def test_a_reload_takes_over_the_spool(self):
        with Setting() as setting, Socket(setting.port) as sender, Socket(setting.port) as phone, \
                Served("-c", setting.directory) as it:
            self.assertEqual(sender.ask("MESSAGE", "102", "x"), 202)
            it.process.send_signal(signal.SIGHUP)
            it.wait_for("reloaded")
            self.assertEqual(phone.register("102"), 200)
            self.assertEqual(body_of(phone.take_message()), "x")

    def test_two_servers_do_not_work_on_one_spool(self):
        with Setting() as first, Setting(f"spool={first.directory}/spool") as second, \
                Served("-c", first.directory) as it:
            it.wait_for("0 messages kept")
            with Served("-c", second.directory) as other, Socket(second.port) as sender:
                line = other.wait_for("works on this spool")
                self.assertIn(f"process {it.process.pid} ", line)
                self.assertEqual(sender.ask("MESSAGE", "102", "x"), 480)

    def test_a_spool_that_cannot_be_made_is_named_by_check(self):
        with Setting("spool=/no/such/place") as setting:
            done = run("check", "-c", setting.directory)
            self.assertEqual(done.returncode, 2)
            self.assertRegex(done.stdout, r"ysipchan\.conf:\d+: error: \[offline\] spool: /no/such is no")


class Spool(unittest.TestCase):
    def test_list_show_and_drop_work_while_the_server_runs(self):
        with Setting() as setting, Socket(setting.port) as sender, Socket(setting.port) as phone, \
                Served("-c", setting.directory):
            for text in ("one\x1b[2J", "two", "three"):
                self.assertEqual(sender.ask("MESSAGE", "102", text), 202)
            listed = run("spool", "list", "-c", setting.directory)
            self.assertEqual((listed.returncode, listed.stderr), (0, ""))
            rows = listed.stdout.splitlines()
            self.assertEqual(len(rows), 4)
            ids = [row.split()[0] for row in rows[1:]]
            self.assertEqual([f"{number}.msg" for number in ids], setting.files())
            shown = run("spool", "show", "-c", setting.directory, ids[1])
            self.assertIn("User: 102\n", shown.stdout)
            self.assertTrue(shown.stdout.endswith("\n\ntwo"))
            dropped = run("spool", "drop", "-c", setting.directory, ids[1])
            self.assertEqual((dropped.returncode, dropped.stdout), (0, f"dropped {ids[1]}\n"))
            self.assertEqual(phone.register("102"), 200)
            self.assertEqual(body_of(phone.take_message()), "one\x1b[2J")
            self.assertEqual(body_of(phone.take_message()), "three")

    def test_what_is_wrong_is_said(self):
        with Setting() as setting, Setting("spool=") as memory:
            for arguments, status, said in (
                    ([], 2, "list, show or drop"),
                    (["dance", "-c", setting.directory], 2, "list, show or drop"),
                    (["list"], 2, "needs -c DIR"),
                    (["list", "-c", "/no/such"], 2, "/no/such"),
                    (["list", "-c", memory.directory], 2, "no spool is set"),
                    (["list", "-c", setting.directory], 2, "/spool: "),
                    (["show", "-c", setting.directory], 2, "needs the number of a message"),
                    (["drop", "-c", setting.directory, "../x"], 2, "is no number of a message")):
                with self.subTest(arguments):
                    done = run("spool", *arguments)
                    self.assertEqual((done.returncode, done.stdout), (status, ""))
                    self.assertIn(said, done.stderr)
            with Served("-c", setting.directory):
                done = run("spool", "drop", "-c", setting.directory, "1")
                self.assertEqual(done.returncode, 1)
                self.assertIn("no message 0000000000000001", done.stderr)


class Load:
    """A sender and a recipient that live through any number of restarts of the server.

    The sender repeats each request until it is answered, over restarts too, as RFC 3261 17.1.2.2
    has it. The recipient answers every MESSAGE with 200 and counts it.
    """
    OUTSTANDING = 8

    def __init__(self, port):
        self.sender = Socket(port)
        self.phone = Socket(port)
        self.unanswered = {}
        self.accepted = {}
        self.received = set()
        self.delivered = {}
        self.next_number = 0

    def close(self):
        self.sender.socket.close()
        self.phone.socket.close()

    def register(self):
        """Asked once per start; what it brings is read by `run`."""
        self.phone.send(self.phone.request(
            "REGISTER", "102", sender="102",
            headers=f"Contact: <sip:102@127.0.0.1:{self.phone.port}>\r\nExpires: 3600\r\n"))

    def repeat(self):
        for request in self.unanswered.values():
            self.sender.send(request)

    def run(self, seconds, sends=True):
        end = time.monotonic() + seconds
        sockets = [self.sender.socket, self.phone.socket]
        while (left := end - time.monotonic()) > 0:
            while sends and len(self.unanswered) < self.OUTSTANDING:
                text = f"m{self.next_number}"
                self.next_number += 1
                request = self.sender.request("MESSAGE", "102", text)
                self.unanswered[header(request, "Call-ID")] = request
                self.sender.send(request)
            ready, _, _ = select.select(sockets, [], [], left)
            if self.sender.socket in ready:
                self.take_answer(self.sender.receive(0))
            if self.phone.socket in ready:
                self.take_message(self.phone.receive(0))

    def take_answer(self, answer):
        if answer is None:
            return
        request = self.unanswered.get(header(answer, "Call-ID"))
        if request is None:
            return
        if code(answer) not in (200, 202):
            raise AssertionError(f"refused: {answer}")
        del self.unanswered[header(answer, "Call-ID")]
        self.accepted[body_of(request)] = code(answer)

    def take_message(self, text):
        if text is None or not text.startswith("MESSAGE "):
            return
        self.received.add(body_of(text))
        if header(text, "Call-ID").startswith("kept-"):
            # One transaction is one delivery, however often it is repeated.
            self.delivered.setdefault(body_of(text), set()).add(branch(text))
        self.phone.answer(text)


class Killed(unittest.TestCase):
    def test_no_kill_loses_an_accepted_message_or_repeats_more_than_the_one_in_flight(self):
        chance = random.Random(SEED)
        limits = "spool=${configpath}/spool\nmax_messages=100000\nmax_per_sender=100000"
        with Setting(limits) as setting:
            load = Load(setting.port)
            for kill in range(KILLS):
                with Served("-c", setting.directory) as it:
                    load.repeat()
                    # Now the phone is there from the start, now later, now not at all: so messages
                    # are relayed, delivered from the spool, or kept when the server is killed.
                    registers_after = chance.choice((0, chance.uniform(0, 0.06), None, None))
                    life_s = chance.uniform(0, 0.2)
                    if registers_after is not None and registers_after < life_s:
                        load.run(registers_after)
                        load.register()
                        life_s -= registers_after
                    load.run(life_s)
                    it.kill()
            with Served("-c", setting.directory):
                load.repeat()
                load.register()
                wait_until(lambda: load.run(0.1, sends=False) or (
                    not load.unanswered and not setting.files()))
                load.run(0.2, sends=False)
            load.close()
            self.check(load)

    def check(self, load):
        kept = [text for text, status in load.accepted.items() if status == 202]
        lost = [text for text in load.accepted if text not in load.received]
        # What was relayed and not answered before a kill is the sender's to repeat; from the spool
        # a message comes once, but for the one that was in flight.
        repeated = sum(len(branches) - 1 for branches in load.delivered.values())
        print(f"{KILLS} kills: {len(load.accepted)} accepted, {len(kept)} of them kept, "
              f"{len(lost)} lost, {repeated} kept ones delivered again", file=sys.stderr)
        self.assertEqual(lost, [])
        self.assertGreater(len(kept), KILLS)
        self.assertGreater(len(load.accepted) - len(kept), 0)
        self.assertLessEqual(repeated, KILLS)


if __name__ == "__main__":
    unittest.main(verbosity=1)
