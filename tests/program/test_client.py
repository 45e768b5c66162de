#!/usr/bin/env python3
"""The clients as their users meet them: send, receive and chat, against the server itself, and explain.

    test_client.py PROGRAM

All on ports of the loopback that are free. Terminals are pseudo-terminals.
"""
import base64
import contextlib
import fcntl
import json
import os
import pathlib
import pty
import select
import signal
import socket
import struct
import subprocess
import tempfile
import termios
import time
import unittest

from support import (PROGRAM, TIMEOUT_S, Client, Served, configuration, free_port, run, wait_until,
                     ysipchan)

PASSWORD = "secret-word"


@contextlib.contextmanager
def open_server():
    """A server that asks for no passwords; yields host:port."""
    port = free_port()
    with Served("--listen", f"udp:127.0.0.1:{port}", "--listen", f"tcp:127.0.0.1:{port}"):
        yield f"127.0.0.1:{port}"


@contextlib.contextmanager
def guarded_server():
    """A server whose users 101 and 102 have a password."""
    port = free_port()
    users = f"[101]\npassword={PASSWORD}\n[102]\npassword={PASSWORD}\n"
    with configuration(ysipchan=ysipchan(port, "[message]\nenable=yes"), regfile=users) as directory, \
            Served("-c", directory):
        yield f"127.0.0.1:{port}"


def receiver(server, *options, user="102", **more):
    return Client("receive", "--as", f"sip:{user}@{server}", *options, **more)


def in_environment(**variables):
    return {**os.environ, **variables}


def unread(*arguments):
    """A client whose standard output nobody reads."""
    read, write = os.pipe()
    os.close(read)
    try:
        return subprocess.Popen([PROGRAM, *arguments], stdin=subprocess.PIPE, stdout=write,
                                stderr=subprocess.PIPE, text=True)
    finally:
        os.close(write)


class CommandLine(unittest.TestCase):
    def test_help_goes_to_standard_output_and_names_the_exit_statuses(self):
        for subcommand in ("send", "receive", "chat", "explain"):
            with self.subTest(subcommand):
                done = run(subcommand, "--help")
                self.assertEqual((done.returncode, done.stderr), (0, ""))
                self.assertIn("Exit status: 0 ", done.stdout)
                self.assertTrue(max(map(len, done.stdout.splitlines())) <= 100)

    def test_what_is_wrong_with_the_arguments_is_said_and_the_exit_status_is_2(self):
        for arguments, said in (
                (["send"], "TO-URI is missing"),
                (["send", "sip:a@127.0.0.1"], "TEXT is missing"),
                (["send", "102", "hi"], "TO-URI 102: "),
                (["send", "tel:123", "hi"], "expected a URI such as sip:"),
                (["send", "sip:a@127.0.0.1", "hi", "--file", "x"], "only one of them"),
                (["send", "sip:a@127.0.0.1", "--file", "/nowhere/x"], "no such file or directory"),
                (["send", "sip:a@127.0.0.1", "hi", "--from", "<sip"], "--from <sip: "),
                (["send", "sip:a@127.0.0.1", "hi", "--password", "x"], "a password needs --user"),
                (["send", "sip:a@127.0.0.1", "hi", "--user", "a b"], "--user "),
                (["send", "sip:a@127.0.0.1", "hi", "--proxy", "x y"], "--proxy x y: expected"),
                (["send", "sip:a@127.0.0.1", "hi", "--proxy", "127.0.0.1;transport=udp",
                  "--transport", "tcp"], "--proxy says udp"),
                (["send", "sip:a@127.0.0.1", "hi", "--transport", "tls"], "expected udp or tcp"),
                (["send", "sip:a@127.0.0.1", "hi", "--password-file", "/nowhere/x"], "--password-file"),
                (["send", "sip:a@127.0.0.1", "hi", "--content-type", "text"],
                 "Content-Type is malformed"),
                (["send", "sip:a@127.0.0.1", "-hi"], "unknown option -hi; what is no option goes behind --"),
                (["send", "sip:a@127.0.0.1", "hi", "--deadline", "0"], "expected seconds above 0"),
                (["receive", "--timeout", "0"], "expected seconds above 0"),
                (["send", "sip:a@127.0.0.1", "hi", "--repeat", "0"], "expected a number from 1"),
                (["receive"], "--as URI is missing"),
                (["receive", "--as", "sip:127.0.0.1"], "a user name is missing"),
                (["receive", "--listen", "127.0.0.1:5060"], "expected udp:HOST:PORT"),
                (["receive", "--listen", "udp:127.0.0.1:0", "--auto-reply", "x"], "needs --as"),
                (["chat", "sip:a@127.0.0.1"], "--as URI is missing"),
                (["chat", "--as", "sip:a@127.0.0.1"], "PEER-URI is missing"),
                (["chat", "--as", "sip:a@127.0.0.1", "bob"], "PEER-URI bob: ")):
            with self.subTest(arguments):
                done = run(*arguments)
                self.assertEqual((done.returncode, done.stdout), (2, ""), done.stderr)
                self.assertIn(said, done.stderr)


class Send(unittest.TestCase):
    def test_a_message_that_arrives_is_told_with_its_time(self):
        with open_server() as server:
            for options in ([], ["--transport", "tcp"], ["--proxy", server],
                            ["--from", "Bob <sip:bob@127.0.0.1>"]):
                with self.subTest(options), receiver(server, "--count", "1").registered() as bob:
                    done = run("send", *options, f"sip:102@{server}", "hello")
                    self.assertEqual((done.returncode, done.stderr), (0, ""))
                    self.assertRegex(done.stdout, r"^200 OK in \d+\.\d ms\n$")
                    self.assertEqual(bob.status(), 0)
                    self.assertRegex(bob.out[0], r"^sip:[^ ]+: hello$")

    def test_a_refusal_is_told_in_plain_words_and_the_exit_status_is_1(self):
        with open_server() as server, guarded_server() as guarded:
            for arguments, said in (
                    ([f"sip:102@{server}", "hello"],
                     "405 Method Not Allowed: the recipient is offline\n"),
                    ([f"sip:102@{guarded}", "hello"],
                     "401 Unauthorized: the password is missing or wrong\n"),
                    (["--user", "101", "--password", "wrong", f"sip:102@{guarded}", "hello"],
                     "401 Unauthorized: the password is missing or wrong\n"),
                    (["--user", "101", "--password", PASSWORD, f"sip:nobody@{guarded}", "hello"],
                     "404 Not Found: there is no such user\n")):
                with self.subTest(arguments):
                    done = run("send", *arguments)
                    self.assertEqual((done.returncode, done.stdout, done.stderr), (1, said, ""))

    def test_the_transport_is_for_those_uris_that_name_none(self):
        with open_server() as server:
            done = run("send", "--trace", "--transport", "tcp", f"sip:102@{server};transport=udp", "x")
            self.assertIn(f"sent to udp {server}", done.stderr)

    def test_no_answer_is_told_and_the_exit_status_is_3(self):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            for arguments, said in (
                    (["--transport", "tcp"], "nobody listens there: connection refused"),
                    (["--deadline", "0.3"], "nobody answered in time")):
                with self.subTest(arguments):
                    uri = f"sip:102@127.0.0.1:{silent.getsockname()[1]}"
                    done = run("send", *arguments, uri, "hello")
                    self.assertEqual((done.returncode, done.stdout), (3, ""))
                    self.assertIn(said, done.stderr)

    def test_the_text_comes_from_standard_input_or_a_file(self):
        with open_server() as server, tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory) / "note"
            path.write_bytes(b"<b>bold</b>\n")
            for arguments, given, kind, text in (
                    (["-"], "two\nlines\n", "text", "two\nlines"),
                    (["-"], "", "text", ""),
                    (["--file", str(path)], "", "text", "<b>bold</b>\n"),
                    (["--file", str(path), "--content-type", "text/html"], "", "html",
                     "<b>bold</b>\n")):
                with self.subTest(arguments), \
                        receiver(server, "--json", "--count", "1").registered() as bob:
                    done = run("send", f"sip:102@{server}", *arguments, input=given)
                    self.assertEqual(done.returncode, 0, done.stderr)
                    self.assertEqual(bob.status(), 0)
                    message = json.loads(bob.out[0])
                    self.assertEqual((message["kind"], message["text"]), (kind, text))

    def test_what_is_too_large_is_refused_before_it_is_sent(self):
        done = run("send", "sip:102@127.0.0.1:9", "-", input="x" * 70000)
        self.assertEqual(done.returncode, 2)
        self.assertIn("larger than the limit", done.stderr)

    def test_json_is_one_object_with_documented_fields(self):
        with open_server() as server:
            uri = f"sip:102@{server}"
            done = run("send", "--json", "--user", "101", uri, "hello")
            answer = json.loads(done.stdout)
            self.assertGreater(answer.pop("time_ms"), 0)
            self.assertEqual(answer, {"to": uri, "from": "sip:101@127.0.0.1", "ok": False,
                                      "code": 405, "reason": "Method Not Allowed",
                                      "meaning": "the recipient is offline", "exit_status": 1})
            self.assertEqual(done.returncode, 1)
        done = run("send", "--json", "--transport", "tcp", uri, "hello")
        answer = json.loads(done.stdout)
        self.assertEqual((answer["ok"], answer["error"], answer["exit_status"]),
                         (False, "network", 3))
        self.assertEqual(done.returncode, 3)

    def test_many_are_counted_by_their_answers(self):
        with open_server() as server, receiver(server).registered() as bob:
            done = run("send", "--repeat", "20", f"sip:102@{server}", "hello")
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            self.assertRegex(done.stdout, r"^20 sent in \d+\.\d\d s\n +20  200 OK\n"
                             r"answered after: p50 [\d.]+ ms, p99 [\d.]+ ms, longest [\d.]+ ms\n$")
            begin = time.monotonic()
            done = run("send", "--json", "--repeat", "20", "--rate", "50", f"sip:103@{server}", "x")
            self.assertGreater(time.monotonic() - begin, 19 / 50)
            summary = json.loads(done.stdout)
            self.assertEqual((summary["sent"], summary["answers"], summary["errors"],
                              summary["exit_status"], done.returncode), (20, {"405": 20}, {}, 1, 1))
            self.assertLessEqual(summary["p50_ms"], summary["p99_ms"])
            self.assertLessEqual(summary["p99_ms"], summary["longest_ms"])
            self.assertEqual(len(bob.out), 20)

    def test_how_far_it_is_is_shown_to_a_person_only(self):
        master, slave = pty.openpty()
        with open_server() as server:
            done = subprocess.run([PROGRAM, "send", "--repeat", "30", "--rate", "50",
                                   f"sip:102@{server}", "x"], stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=slave, timeout=TIMEOUT_S, check=False)
        shown = os.read(master, 65536).decode()
        os.close(master)
        os.close(slave)
        self.assertRegex(shown, r"\r\d+ of 30 sent, \d+ answered")
        self.assertNotIn(b"answered\x1b", done.stdout)

    def test_a_signal_is_told_of_on_a_line_of_its_own(self):
        master, slave = pty.openpty()
        with open_server() as server, \
                subprocess.Popen([PROGRAM, "send", "--repeat", "1000", "--rate", "10", f"sip:102@{server}",
                                  "x"], stdout=subprocess.DEVNULL, stderr=slave) as client:
            shown = ""
            while "answered\x1b[K" not in shown:
                shown += os.read(master, 65536).decode()
            client.terminate()
            self.assertEqual(client.wait(TIMEOUT_S), 3)
        shown += os.read(master, 65536).decode()
        os.close(master)
        os.close(slave)
        self.assertIn("\r\x1b[Ksipmsg: ended by SIGTERM", shown)

    def test_what_can_never_work_is_not_tried_many_times(self):
        done = run("send", "--json", "--repeat", "1000", "--content-type", "text",
                   "sip:102@127.0.0.1:9", "x")
        self.assertEqual(json.loads(done.stdout)["errors"], {"bad_media_type": 1})
        self.assertEqual(done.returncode, 2)

    def test_the_trace_shows_what_is_sent_and_received(self):
        with open_server() as server:
            done = run("send", "--trace", f"sip:102@{server}", "hello")
            self.assertIn(f"sent to udp {server}", done.stderr)
            self.assertIn("MESSAGE sip:102@", done.stderr)
            self.assertIn("SIP/2.0 405 ", done.stderr)

    def test_a_signal_ends_it_in_a_sentence(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            with self.subTest(number), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
                silent.bind(("127.0.0.1", 0))
                silent.settimeout(TIMEOUT_S)
                with Client("send", f"sip:102@127.0.0.1:{silent.getsockname()[1]}", "x") as client:
                    silent.recv(65536)
                    client.process.send_signal(number)
                    self.assertEqual(client.status(), 3)
                    self.assertEqual(client.err, [f"sipmsg: ended by {number.name} while waiting"])


class Password(unittest.TestCase):
    def test_it_comes_from_the_option_a_file_or_the_environment_in_this_order(self):
        with guarded_server() as server, tempfile.TemporaryDirectory() as directory:
            right = pathlib.Path(directory) / "right"
            right.write_text(PASSWORD + "\nsecond line\n")
            wrong = in_environment(SIPMSG_PASSWORD="wrong")
            for options, environment, code in (
                    (["--password", PASSWORD], wrong, "405"),
                    (["--password-file", str(right)], wrong, "405"),
                    ([], in_environment(SIPMSG_PASSWORD=PASSWORD), "405"),
                    ([], wrong, "401"),
                    (["--password", "wrong"], in_environment(SIPMSG_PASSWORD=PASSWORD), "401")):
                with self.subTest((options, code)):
                    done = run("send", "--user", "101", *options, f"sip:102@{server}", "hello",
                               env=environment)
                    self.assertEqual(done.stdout[:3], code, done.stderr)
            done = run("send", "--user", "101", "--password", "x", "--password-file", str(right),
                       f"sip:102@{server}", "hello")
            self.assertEqual(done.returncode, 2)

    def test_that_of_the_environment_is_not_needed_where_nobody_logs_in(self):
        with open_server() as server:
            done = run("send", f"sip:102@{server}", "hello",
                       env=in_environment(SIPMSG_PASSWORD=PASSWORD))
            self.assertEqual((done.returncode, done.stderr, done.stdout[:3]), (1, "", "405"))

    def test_it_is_neither_printed_nor_seen_in_the_list_of_processes(self):
        for password in (["--password", PASSWORD], [f"--password={PASSWORD}"]):
            with self.subTest(password), guarded_server() as server, \
                    receiver(server, "--trace", *password).registered() as client:
                shown = pathlib.Path(f"/proc/{client.process.pid}/cmdline")
                if shown.exists():
                    self.assertIn(b"--password", shown.read_bytes())
                    self.assertNotIn(PASSWORD.encode(), shown.read_bytes())
                client.process.terminate()
                client.status()
                printed = "\n".join(client.out + client.err)
                self.assertIn("Authorization: Digest", printed)
                self.assertNotIn(PASSWORD, printed)

    def test_programs_do_not_inherit_it(self):
        with guarded_server() as server, tempfile.TemporaryDirectory() as directory:
            script = program(directory, "env")
            with receiver(server, "--exec", script, "--count", "1",
                          env=in_environment(SIPMSG_PASSWORD=PASSWORD)).registered() as client:
                done = run("send", "--user", "101", f"sip:102@{server}", "hello",
                           env=in_environment(SIPMSG_PASSWORD=PASSWORD))
                self.assertEqual(done.returncode, 0, done.stdout)
                self.assertEqual(client.status(), 0)
                self.assertTrue([line for line in client.out if line.startswith("SIPMSG_FROM=")])
                self.assertNotIn(PASSWORD, "\n".join(client.out))


def program(directory, commands):
    """A script that a receiver can run."""
    path = pathlib.Path(directory) / "program"
    path.write_text(f"#!/bin/sh\n{commands}\n")
    path.chmod(0o755)
    return str(path)


CPIM = ("From: <sip:101@example.org>\r\nTo: <sip:102@example.org>\r\n"
        "DateTime: 2026-01-02T03:04:05Z\r\n\r\nContent-Type: text/plain;charset=utf-8\r\n\r\nenclosed")
COMPOSING = ('<?xml version="1.0"?><isComposing xmlns="urn:ietf:params:xml:ns:im-iscomposing">'
             "<state>active</state></isComposing>")
NOTICE = ('<?xml version="1.0"?><imdn xmlns="urn:ietf:params:xml:ns:imdn"><message-id>m1</message-id>'
          "<datetime>2026-01-02T03:04:05Z</datetime><delivery-notification><status><delivered/>"
          "</status></delivery-notification></imdn>")


class Receive(unittest.TestCase):
    def test_each_message_is_one_line_that_no_terminal_obeys(self):
        with open_server() as server, receiver(server, "--count", "2").registered() as client:
            run("send", "--user", "101", f"sip:102@{server}", "one\ntwo \x1b[2Jthree")
            run("send", "--user", "101", f"sip:102@{server}", "Grüße")
            self.assertEqual(client.status(), 0)
            self.assertEqual(client.out, ["sip:101@127.0.0.1: one\\ntwo \ufffd[2Jthree",
                                          "sip:101@127.0.0.1: Grüße"])

    def test_json_has_the_documented_fields(self):
        with open_server() as server, receiver(server, "--json", "--count", "3").registered() as client:
            def sent(text, *options):
                done = run("send", "--from", '"Bob \\"B\\"" <sip:101@127.0.0.1>', *options,
                           f"sip:102@{server}", text)
                self.assertEqual(done.returncode, 0, done.stdout)
            sent("Grüße")
            sent("?\x01", "--content-type", "application/octet-stream")
            sent(COMPOSING, "--content-type", "application/im-iscomposing+xml")
            sent(NOTICE, "--content-type", "message/imdn+xml")
            sent(CPIM, "--content-type", "message/cpim")
            self.assertEqual(client.status(), 0)
            messages = [json.loads(line) for line in client.out]
        for message in messages:
            self.assertEqual((message["from"], message["display_name"], message["to"]),
                             ("sip:101@127.0.0.1", 'Bob "B"', f"sip:102@{server}"))
            self.assertRegex(message["date"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
            self.assertTrue(message["call_id"])
        text, octets, composing, notice, enclosed = messages
        self.assertEqual((text["kind"], text["content_type"], text["text"]),
                         ("text", "text/plain", "Grüße"))
        self.assertEqual((octets["kind"], base64.b64decode(octets["body_base64"])),
                         ("other", b"?\x01"))
        self.assertEqual((composing["kind"], composing["is_composing"]), ("composing", True))
        self.assertNotIn("text", composing)
        self.assertEqual((notice["kind"], notice["message_id"], notice["delivery_status"]),
                         ("notification", "m1", "delivered"))
        self.assertEqual((enclosed["kind"], enclosed["text"], enclosed["date"]),
                         ("text", "enclosed", "2026-01-02T03:04:05Z"))

    def test_signs_about_messages_are_no_messages(self):
        with open_server() as server, receiver(server, "--count", "1").registered() as client:
            for body, kind in ((COMPOSING, "application/im-iscomposing+xml"),
                               (NOTICE, "message/imdn+xml"), ("hello", "text/plain")):
                done = run("send", "--content-type", kind, f"sip:102@{server}", body)
                self.assertEqual(done.returncode, 0, done.stdout)
            self.assertEqual(client.status(), 0)
            self.assertEqual(len(client.out), 1)
            self.assertTrue(client.out[0].endswith(": hello"))

    def test_it_ends_after_its_time_and_says_by_its_status_whether_all_came(self):
        with open_server() as server:
            for options, message, status, said in (
                    ([], True, 0, None), ([], False, 3, "sipmsg: no message came in time"),
                    (["--count", "2"], True, 3, "sipmsg: 1 of 2 messages came in time")):
                with self.subTest(options), \
                        receiver(server, "--timeout", "1.5", *options).registered() as client:
                    if message:
                        run("send", f"sip:102@{server}", "hello")
                    self.assertEqual(client.status(), status)
                    self.assertEqual(client.err[1:], [said] if said else [])

    def test_it_unregisters_at_its_end(self):
        for number, options, status in ((signal.SIGTERM, [], 0), (signal.SIGINT, ["--count", "1"], 3)):
            with self.subTest(number), open_server() as server, \
                    receiver(server, *options).registered() as client:
                self.assertEqual(run("send", f"sip:103@{server}", "x").returncode, 1)
                client.process.send_signal(number)
                self.assertEqual(client.status(), status)
                self.assertIn(f"sipmsg: ended by {number.name}", client.err)
                self.assertIn("405", run("send", f"sip:102@{server}", "x").stdout)

    def test_without_registering_it_listens(self):
        for transport in ("udp", "tcp"):
            with self.subTest(transport), \
                    Client("receive", "--listen", f"{transport}:127.0.0.1:0", "--count", "1") as client:
                line = client.wait_for("^listening ", client.err)
                address = line.split()[-1]
                done = run("send", "--transport", transport, f"sip:anybody@{address}", "hello")
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertEqual(client.status(), 0)
                self.assertTrue(client.out[0].endswith(": hello"))

    def test_a_registration_that_is_refused_ends_it_with_status_1(self):
        with guarded_server() as server:
            done = run("receive", "--as", f"sip:102@{server}", "--password", "wrong")
            self.assertEqual((done.returncode, done.stdout), (1, ""))
            self.assertIn("the password is missing or wrong", done.stderr)

    def test_a_server_that_is_not_there_ends_it_with_status_3(self):
        done = run("receive", "--transport", "tcp", "--as", f"sip:102@127.0.0.1:{free_port()}")
        self.assertEqual(done.returncode, 3)
        self.assertIn("nobody listens there", done.stderr)

    def test_a_server_that_vanishes_is_told_of_and_waited_for(self):
        port = free_port()
        where = ("--listen", f"tcp:127.0.0.1:{port}", "--listen", f"udp:127.0.0.1:{port}")
        with Served(*where) as server, \
                receiver(f"127.0.0.1:{port}", "--transport", "tcp").registered() as client:
            server.process.kill()
            server.process.wait()
            client.wait_for("^not registered .*; next try in", client.err)
            with Served(*where):
                with client.changed:
                    again = lambda: sum(line.startswith("registered as") for line in client.err) == 2
                    self.assertTrue(client.changed.wait_for(again, 2 * TIMEOUT_S), client.err)
                client.process.terminate()
                self.assertEqual(client.status(), 0)

    def test_what_was_started_with_nohup_outlives_its_terminal(self):
        ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with open_server() as server, \
                receiver(server, "--count", "1", preexec_fn=ignore).registered() as client:
            client.process.send_signal(signal.SIGHUP)
            self.assertEqual(run("send", f"sip:102@{server}", "hello").stdout[:3], "200")
            self.assertEqual(client.status(), 0)

    def test_a_reader_that_has_gone_ends_it_in_a_sentence(self):
        with open_server() as server, \
                unread("receive", "--as", f"sip:102@{server}") as client:
            self.assertIn("registered", client.stderr.readline())
            self.assertEqual(run("send", f"sip:102@{server}", "x").stdout[:3], "500")
            self.assertEqual(client.wait(TIMEOUT_S), 3)
            self.assertIn("standard output: nobody reads it any more", client.stderr.read())

    def test_nothing_is_lost_where_standard_output_does_not_wait_by_itself(self):
        with open_server() as server:
            read, write = os.pipe()
            os.set_blocking(write, False)
            with subprocess.Popen([PROGRAM, "receive", "--as", f"sip:102@{server}", "--count", "100"],
                                  stdout=write, stderr=subprocess.PIPE, text=True) as client:
                self.assertIn("registered", client.stderr.readline())
                with Client("send", "--repeat", "100", "--rate", "500", f"sip:102@{server}", "x" * 1000):
                    wait_until(lambda: not select.select([], [write], [], 0)[1])
                    os.close(write)
                    with open(read, encoding="utf-8") as lines:
                        self.assertEqual(len(list(lines)), 100)
                self.assertEqual(client.wait(TIMEOUT_S), 0)

    def test_a_signal_ends_it_though_its_reader_reads_nothing(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(number), open_server() as server:
                read, write = os.pipe()
                with subprocess.Popen([PROGRAM, "receive", "--as", f"sip:102@{server}"], stdout=write,
                                      stderr=subprocess.PIPE, text=True) as client:
                    self.assertIn("registered", client.stderr.readline())
                    with Client("send", "--repeat", "100", "--rate", "100", f"sip:102@{server}",
                                "x" * 1000) as sender:
                        wait_until(lambda: not select.select([], [write], [], 0)[1])
                        time.sleep(0.2)  # the next message comes, and waits
                        client.send_signal(number)
                        try:
                            self.assertEqual(client.wait(3), 3)
                        finally:
                            client.kill()
                            sender.process.terminate()
                    self.assertIn("standard output: nobody reads it", client.stderr.read())
                os.close(read)
                os.close(write)


class Exec(unittest.TestCase):
    def test_the_program_gets_the_message_and_its_status_becomes_the_answer(self):
        for status, code in ((0, "200"), (75, "480"), (1, "603")):
            with self.subTest(status), open_server() as server, \
                    tempfile.TemporaryDirectory() as directory:
                script = program(directory, f"cat; echo; echo $SIPMSG_FROM $SIPMSG_TO "
                                            f"$SIPMSG_CONTENT_TYPE $SIPMSG_DISPLAY_NAME; exit {status}")
                with receiver(server, "--exec", script, "--count", "1").registered() as client:
                    done = run("send", "--from", "Bob <sip:101@127.0.0.1>", f"sip:102@{server}", "hello")
                    self.assertEqual(done.stdout[:3], code)
                    self.assertEqual(client.status(), 0)
                    self.assertEqual(client.out, ["hello", f"sip:101@127.0.0.1 sip:102@{server} "
                                                           "text/plain Bob"])

    def test_a_program_that_cannot_be_run_or_is_killed_is_a_fault(self):
        with open_server() as server, tempfile.TemporaryDirectory() as directory:
            for path in ("/nowhere/program", program(directory, "kill -9 $$")):
                with self.subTest(path), receiver(server, "--exec", path).registered() as client:
                    self.assertEqual(run("send", f"sip:102@{server}", "x").stdout[:3], "500")
                    if path.startswith("/nowhere"):
                        client.wait_for("no such file or directory", client.err)
                    client.process.terminate()
                    self.assertEqual(client.status(), 0)

    def test_so_many_run_at_once_and_no_more(self):
        with open_server() as server, tempfile.TemporaryDirectory() as directory:
            script = program(directory, f"cd {directory}; touch running.$$; ls -d running.* | wc -l; "
                                        f"while [ ! -e go ]; do sleep 0.02; done; rm running.$$")
            with receiver(server, "--exec", script, "--jobs", "2", "--count", "5").registered() as client:
                with Client("send", "--repeat", "5", "--rate", "1000", f"sip:102@{server}", "x") as sender:
                    deadline = time.monotonic() + TIMEOUT_S
                    while len(list(pathlib.Path(directory).glob("running.*"))) < 2:
                        self.assertLess(time.monotonic(), deadline)
                    (pathlib.Path(directory) / "go").touch()
                    self.assertEqual(sender.status(), 0, sender.out)
                self.assertEqual(client.status(), 0)
                self.assertEqual(len(client.out), 5)
                self.assertLessEqual(max(map(int, client.out)), 2)

    def test_a_signal_ends_it_though_a_program_runs(self):
        with open_server() as server, tempfile.TemporaryDirectory() as directory:
            script = program(directory, f"echo started; exec sleep {TIMEOUT_S}")
            with receiver(server, "--exec", script).registered() as client, \
                    Client("send", f"sip:102@{server}", "x"):
                client.wait_for("started")
                client.process.terminate()
                self.assertEqual(client.process.wait(TIMEOUT_S / 2), 0)

    def test_its_time_ends_it_though_a_program_runs(self):
        with open_server() as server, tempfile.TemporaryDirectory() as directory:
            script = program(directory, "exec sleep 60 >/dev/null 2>&1")
            with receiver(server, "--exec", script, "--count", "1", "--timeout", "1").registered() as client, \
                    Client("send", f"sip:102@{server}", "x"):
                self.assertEqual(client.process.wait(3), 0)

    def test_a_program_can_open_its_standard_input_by_name(self):
        with open_server() as server, tempfile.TemporaryDirectory() as directory:
            script = program(directory, "cat /dev/stdin")
            with receiver(server, "--exec", script, "--count", "1").registered() as client:
                done = run("send", f"sip:102@{server}", "hello")
                self.assertEqual((done.stdout[:3], client.status()), ("200", 0))
                self.assertEqual(client.out, ["hello"])


class AutoReply(unittest.TestCase):
    def test_whoever_writes_is_answered_once_in_a_while(self):
        with open_server() as server, \
                receiver(server, "--auto-reply", "I am out", user="101").registered(), \
                receiver(server, "--count", "1", user="102").registered() as asking:
            for _ in range(3):
                done = run("send", "--from", f"sip:102@{server}", f"sip:101@{server}", "hello")
                self.assertEqual(done.returncode, 0)
            self.assertEqual(asking.status(), 0)
            self.assertEqual(asking.out, [f"sip:101@{server}: I am out"])

    def test_an_answer_goes_through_the_own_server_whatever_the_sender_calls_his(self):
        with open_server() as server, \
                receiver(server, "--auto-reply", "I am out", user="101").registered() as client, \
                receiver(server, "--count", "1", user="102").registered() as asking:
            done = run("send", "--user", "102", f"sip:101@{server}", "hello")  # From has no port
            self.assertEqual(done.returncode, 0)
            self.assertEqual(asking.status(), 0, client.err)
            self.assertEqual(asking.out, [f"sip:101@{server}: I am out"])

    def test_a_stranger_learns_nothing_of_the_password(self):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger, guarded_server() as server, \
                receiver(server, "--auto-reply", "I am out", "--password", PASSWORD).registered() as client:
            stranger.bind(("127.0.0.1", 0))
            own = f"127.0.0.1:{stranger.getsockname()[1]}"
            run("send", "--from", f"sip:101@{own}", "--user", "101", "--password", PASSWORD,
                f"sip:102@{server}", "hello")
            client.wait_for("hello")
            client.wait_for("^sipmsg: answer to ", client.err)
            self.assertEqual(select.select([stranger], [], [], 0)[0], [])

    def test_two_that_answer_by_themselves_do_not_answer_each_other(self):
        with open_server() as server, \
                receiver(server, "--auto-reply", "I am out", user="101").registered() as one, \
                receiver(server, "--auto-reply", "so am I", user="102").registered() as two:
            run("send", "--from", f"sip:102@{server}", f"sip:101@{server}", "hello")
            self.assertIn("I am out", two.wait_for("I am out"))
            run("send", "--from", f"sip:103@{server}", f"sip:101@{server}", "the end")
            one.wait_for("the end")
            self.assertEqual((len(one.out), len(two.out)), (2, 1), (one.out, two.out))


class Explain(unittest.TestCase):
    MESSAGE = ("MESSAGE sip:102@127.0.0.1 SIP/2.0\nVia: SIP/2.0/UDP 127.0.0.1;branch=z9hG4bK1\n"
               "From: <sip:101@127.0.0.1>;tag=1\nTo: <sip:102@127.0.0.1\nX-Own: \x1b[2J\n"
               "Content-Type: text/plain\n\nhello")

    def test_each_part_has_its_meaning_and_its_section(self):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory) / "message"
            path.write_text(self.MESSAGE)
            for done in (run("explain", str(path)), run("explain", "-", input=self.MESSAGE),
                         run("explain", input=self.MESSAGE.replace("\n", "\r\n"))):
                self.assertEqual((done.returncode, done.stderr), (0, ""))
                for part in ("a message to be delivered (RFC 3428)", "(RFC 3261 20.42, 18.2)",
                             "X-Own: \ufffd[2J\n    not known here", "text (RFC 3428 7): hello",
                             "but: a From, To, Contact or Route value is malformed, at octet 1 "):
                    self.assertIn(part, done.stdout)

    def test_an_answer_is_told_in_plain_words(self):
        done = run("explain", input="SIP/2.0 405 Method Not Allowed\nCSeq: x\n\n")
        self.assertIn("an answer: the recipient is offline (RFC 3261 7.2, 21)", done.stdout)
        self.assertIn("but: CSeq is malformed", done.stdout)

    def test_what_cannot_be_read_is_said_with_its_place(self):
        done = run("explain", input="MESSAGE sip:a@b SIP/2.0\nno colon here\n\n")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("line 2, octet ", done.stderr)
        self.assertEqual(run("explain", "/nowhere/message").returncode, 2)
        self.assertEqual(run("explain", "a", "b").returncode, 2)


def chat_in_pipe(server, own, peer, *options):
    return Client("chat", "--as", f"sip:{own}@{server}", *options, f"sip:{peer}@{server}")


class ChatInPipe(unittest.TestCase):
    def test_lines_go_in_and_come_out_in_both_directions(self):
        with open_server() as server, chat_in_pipe(server, 101, 102).registered() as alice, \
                chat_in_pipe(server, 102, 101).registered() as bob:
            alice.write("hello\n//not a command\n")
            bob.wait_for("not a command")
            bob.write("hello yourself\n")
            alice.wait_for("yourself")
            for client in (alice, bob):
                client.process.stdin.close()
                self.assertEqual(client.status(), 0)
            self.assertEqual(alice.out, ["> hello  [delivered: 200 OK]",
                                         "> /not a command  [delivered: 200 OK]",
                                         f"< sip:102@{server}: hello yourself"])
            self.assertEqual(bob.out, [f"< sip:101@{server}: hello",
                                       f"< sip:101@{server}: /not a command",
                                       "> hello yourself  [delivered: 200 OK]"])
            self.assertNotIn("\x1b", "".join(alice.out + alice.err))

    def test_it_ends_when_every_line_is_answered_with_the_worst_that_became_of_them(self):
        with open_server() as server, receiver(server).registered() as bob:
            lines = "".join(f"line {i}\n" for i in range(300))
            done = run("chat", "--as", f"sip:101@{server}", f"sip:102@{server}",
                       input=lines + f"/to sip:103@{server}\nlast, without its end")
            self.assertEqual(done.returncode, 1)
            self.assertEqual(done.stdout.splitlines()[:300],
                             [f"> line {i}  [delivered: 200 OK]" for i in range(300)])
            self.assertEqual(done.stdout.splitlines()[300:],
                             ["> last, without its end  [failed: 405 Method Not Allowed: "
                              "the recipient is offline]"])
            self.assertEqual([line.rpartition(": ")[2] for line in bob.out],
                             [f"line {i}" for i in range(300)])

    def test_quit_ends_it_after_what_stands_before(self):
        with open_server() as server, receiver(server).registered():
            done = run("chat", "--as", f"sip:101@{server}", f"sip:102@{server}",
                       input="hello\n/dance\n/help\n/quit\nnever sent\n")
            self.assertEqual((done.returncode, done.stdout), (0, "> hello  [delivered: 200 OK]\n"))
            self.assertIn("/dance: no such command", done.stderr)
            self.assertIn("/to URI", done.stderr)

    def test_quit_is_the_end_however_many_lines_stand_before(self):
        with open_server() as server, receiver(server).registered() as bob:
            lines = "".join(f"line {i}\n" for i in range(60))
            done = run("chat", "--as", f"sip:101@{server}", f"sip:102@{server}",
                       input=lines + "/quit\nnever sent\n")
            self.assertEqual(done.returncode, 0)
            self.assertEqual(done.stdout.splitlines(),
                             [f"> line {i}  [delivered: 200 OK]" for i in range(60)])
            self.assertEqual(len(bob.out), 60)

    def test_two_can_chat_without_a_server(self):
        ports = free_port(), free_port()
        uris = [f"sip:{name}@127.0.0.1:{port}" for name, port in zip(("alice", "bob"), ports)]
        clients = [Client("chat", "--as", uris[i], "--listen", f"udp:127.0.0.1:{ports[i]}", uris[1 - i])
                   for i in (0, 1)]
        with clients[0] as alice, clients[1] as bob:
            bob.wait_for("^listening", bob.err)
            alice.write("hello\n")
            self.assertEqual(bob.wait_for("hello"), f"< {uris[0]}: hello")
            alice.wait_for("delivered")

    def test_a_reader_that_has_gone_and_a_signal_end_it_in_a_sentence(self):
        with open_server() as server, receiver(server).registered():
            with unread("chat", "--as", f"sip:101@{server}", f"sip:102@{server}") as client:
                client.stdin.write("hello\n")
                client.stdin.flush()
                self.assertEqual(client.wait(TIMEOUT_S), 3)
                self.assertIn("nobody reads it any more", client.stderr.read())
            with chat_in_pipe(server, 101, 102).registered() as client:
                client.process.terminate()
                self.assertEqual(client.status(), 0)
                self.assertIn("sipmsg: ended by SIGTERM", client.err)

    def test_a_signal_while_a_line_waits_ends_it_with_status_3(self):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            silent.settimeout(TIMEOUT_S)
            peer = f"sip:102@127.0.0.1:{silent.getsockname()[1]}"
            for own in (["--listen", "udp:127.0.0.1:0"], ["--proxy", peer.partition("@")[2]]):
                with self.subTest(own), Client("chat", "--as", "sip:101@127.0.0.1", *own, peer) as client:
                    client.write("hello\n")
                    silent.recv(65536)  # the message, or the registration before it
                    client.process.terminate()
                    self.assertEqual(client.status(), 3)
                    self.assertIn("sipmsg: ended by SIGTERM", client.err)

    def test_a_line_without_end_is_told_and_the_exit_status_is_2(self):
        with open_server() as server, receiver(server).registered():
            done = run("chat", "--as", f"sip:101@{server}", f"sip:102@{server}",
                       input="hello\n" + "x" * 1100000)
            self.assertEqual((done.returncode, done.stdout), (2, "> hello  [delivered: 200 OK]\n"))
            self.assertIn("more than a megabyte", done.stderr)

    def test_a_registration_that_is_refused_ends_it_with_status_1(self):
        with guarded_server() as server:
            done = run("chat", "--as", f"sip:101@{server}", f"sip:102@{server}", input="hello\n")
            self.assertEqual((done.returncode, done.stdout), (1, ""))
            self.assertIn("the password is missing or wrong", done.stderr)


class Terminal:
    """A chat on a pseudo-terminal."""

    def __init__(self, server, own, peer, *options, is_orphan=False):
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.shown = ""
        self.ready = "listening" if "--listen" in options else "registered as"
        self.process = subprocess.Popen(
            [PROGRAM, "chat", "--as", f"sip:{own}@{server}", *options,
             peer if ":" in str(peer) else f"sip:{peer}@{server}"],
            stdin=self.slave, stdout=self.slave, stderr=self.slave,
            preexec_fn=os.setsid if is_orphan else os.setpgrp)

    def __enter__(self):
        self.wait_for(self.ready)
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)

    def read(self, timeout_s):
        if select.select([self.master], [], [], timeout_s)[0]:
            self.shown += os.read(self.master, 65536).decode(errors="replace")
            return True
        return False

    def wait_for(self, wanted):
        deadline = time.monotonic() + TIMEOUT_S
        while wanted not in self.shown:
            if time.monotonic() > deadline:
                raise AssertionError(f"{wanted!r} never came; shown was {self.shown!r}")
            self.read(0.1)
        before, _, self.shown = self.shown.partition(wanted)
        return before

    def write(self, keys):
        os.write(self.master, keys.encode())

    def end(self):
        """The exit status; whether the terminal is as it was."""
        status = self.process.wait(TIMEOUT_S)
        while self.read(0):
            pass
        return status, termios.tcgetattr(self.slave) == self.before


class ChatOnTerminal(unittest.TestCase):
    def test_lines_are_edited_their_fate_and_what_comes_are_shown(self):
        with open_server() as server, Terminal(server, 101, 102) as alice, \
                Terminal(server, 102, 101) as bob:
            alice.write("helo\x1b[Dl")
            bob.wait_for("101 is typing> ")
            alice.write("\r")
            bob.wait_for("101: hello")
            alice.wait_for("> hello  [delivered: 200 OK]")
            alice.write("\x1b[A there\r")
            bob.wait_for("101: hello there")
            bob.write("/to sip:nobody@127.0.0.1\r")
            bob.wait_for("nobody> ")
            bob.write(f"/to sip:103@{server}\rhello\r")
            bob.wait_for("> hello  [failed: 405 Method Not Allowed: the recipient is offline]")
            bob.write("/help\r")
            bob.wait_for("/quit")
            for terminal in (alice, bob):
                terminal.write("/quit\r")
                self.assertEqual(terminal.end(), (0, True))

    def test_what_comes_cannot_command_the_terminal(self):
        with open_server() as server, Terminal(server, 101, 102) as alice:
            done = run("send", "--from", f"sip:102@{server}", f"sip:101@{server}", "\x1b]0;title\x07 there")
            self.assertEqual(done.returncode, 0)
            shown = alice.wait_for(" there")
            self.assertNotIn("\x1b]", shown)
            self.assertNotIn("\x07", shown)

    def test_the_terminal_is_as_it_was_however_the_chat_ends(self):
        with open_server() as server:
            for name, end in (
                    ("Control-D", lambda it: it.write("\x04")),
                    ("Control-C", lambda it: it.write("gone\x03\x03")),
                    ("SIGTERM", lambda it: it.process.send_signal(signal.SIGTERM)),
                    ("SIGINT", lambda it: it.process.send_signal(signal.SIGINT)),
                    ("SIGHUP", lambda it: it.process.send_signal(signal.SIGHUP)),
                    ("SIGQUIT", lambda it: it.process.send_signal(signal.SIGQUIT)),
                    ("SIGABRT", lambda it: it.process.send_signal(signal.SIGABRT)),
                    ("SIGSEGV", lambda it: it.process.send_signal(signal.SIGSEGV))):
                with self.subTest(name), Terminal(server, 101, 102) as alice:
                    self.assertNotEqual(termios.tcgetattr(alice.slave), alice.before)
                    end(alice)
                    status, is_restored = alice.end()
                    self.assertTrue(is_restored)
                    self.assertEqual(status, -getattr(signal, name) if name in ("SIGABRT", "SIGSEGV") else 0)
                    self.assertIn("\x1b[?2004l", alice.shown)

    def test_stopped_it_leaves_the_terminal_and_comes_back(self):
        with open_server() as server, Terminal(server, 101, 102) as alice, \
                subprocess.Popen(["sleep", "60"],
                                 preexec_fn=lambda: os.setpgid(0, alice.process.pid)) as beside:
            for stop in (lambda: alice.write("\x1a"),
                         lambda: alice.process.send_signal(signal.SIGTSTP)):
                stop()
                self.assertTrue(os.WIFSTOPPED(os.waitpid(alice.process.pid, os.WUNTRACED)[1]))
                self.assertEqual(termios.tcgetattr(alice.slave), alice.before)
                self.assertTrue(os.WIFSTOPPED(os.waitpid(beside.pid, os.WUNTRACED)[1]))
                os.killpg(alice.process.pid, signal.SIGCONT)
                alice.wait_for("\x1b[?2004h")
                self.assertNotEqual(termios.tcgetattr(alice.slave), alice.before)
            beside.kill()
            alice.write("/quit\r")
            self.assertEqual(alice.end(), (0, True))

    def test_where_nobody_could_bring_it_back_it_is_not_stopped(self):
        with open_server() as server, Terminal(server, 101, 102, is_orphan=True) as alice:
            for stop in (lambda: alice.write("\x1a"),
                         lambda: alice.process.send_signal(signal.SIGTSTP)):
                stop()
                alice.wait_for("\x1b[?2004l")
                alice.wait_for("\x1b[?2004h")
            alice.write("/quit\r")
            self.assertEqual(alice.end(), (0, True))

    def test_a_line_does_not_wait_long_for_what_is_typing(self):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            silent.settimeout(4)
            peer = f"sip:102@127.0.0.1:{silent.getsockname()[1]}"
            with Terminal("127.0.0.1", 101, peer, "--listen", "udp:127.0.0.1:0") as alice:
                alice.write("hello")
                self.assertIn(b"isComposing", silent.recv(65536))
                begin = time.monotonic()
                alice.write("\r")
                while not silent.recv(65536).endswith(b"\r\n\r\nhello"):
                    self.assertLess(time.monotonic(), begin + 4)

    def test_a_line_is_drawn_as_wide_as_the_terminal_has_become(self):
        with open_server() as server, Terminal(server, 101, 102) as alice:
            alice.write("0123456789abcdefghijklmnopqrstuvwxyz")
            alice.wait_for("102> 0123456789abcdefghijklmnopqrstuvwxyz")
            fcntl.ioctl(alice.master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 16, 0, 0))
            alice.process.send_signal(signal.SIGWINCH)
            alice.wait_for("102> qrstuvwxyz\r")

    def test_a_terminal_that_is_closed_ends_it(self):
        with open_server() as server, Terminal(server, 101, 102) as alice:
            os.close(alice.slave)
            os.close(alice.master)
            alice.process.wait(TIMEOUT_S)
            alice.master, alice.slave = os.pipe()


if __name__ == "__main__":
    unittest.main(verbosity=1)
