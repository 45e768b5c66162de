#!/usr/bin/env python3
"""The program as its user meets it: what it prints, where, and how it ends.

    test_program.py PROGRAM

Starts the program on ports of the loopback that are free, talks SIP to it, sends it signals.
"""
import os
import pathlib
import pty
import re
import signal
import socket
import subprocess
import unittest

from support import PROGRAM, Served, Socket, configuration, free_port, run, ysipchan


class CommandLine(unittest.TestCase):
    def test_help_and_version_go_to_standard_output_and_succeed(self):
        for arguments in (["--help"], ["--version"], ["serve", "--help"], ["check", "--help"]):
            with self.subTest(arguments):
                done = run(*arguments)
                self.assertEqual((done.returncode, done.stderr), (0, ""))
                self.assertTrue(done.stdout)
        self.assertRegex(run("--version").stdout, r"^sipmsg \d+\.\d+\.\d+\n")

    def test_what_is_wrong_with_the_arguments_is_said_and_the_exit_status_is_2(self):
        for arguments, said in ((
                [], "a subcommand is missing"), (
                ["dance"], "unknown subcommand dance"), (
                ["serve", "--fast"], "unknown option --fast"), (
                ["serve", "-c"], "-c needs a value"), (
                ["serve", "--listen", "127.0.0.1:5060"], "expected udp:HOST:PORT or tcp:HOST:PORT"), (
                ["serve", "--listen", "udp:localhost:5060"], "expected a numeric address"), (
                ["serve", "--listen", "udp:127.0.0.1:99999"], "expected a numeric address"), (
                ["check"], "check needs -c DIR")):
            with self.subTest(arguments):
                done = run(*arguments)
                self.assertEqual((done.returncode, done.stdout), (2, ""))
                self.assertIn(said, done.stderr)


class Check(unittest.TestCase):
    def test_a_mistake_is_named_with_file_line_and_what_is_allowed(self):
        with configuration(ysipchan="[general]\nport=70000\n[message]\nenabel=yes\n",
                           regfile="[101]\npassword=x\n") as directory:
            done = run("check", "-c", directory)
            self.assertEqual(done.returncode, 2)
            self.assertIn(f"{directory}/ysipchan.conf:2: error: ", done.stdout)
            self.assertIn("65535", done.stdout)
            self.assertRegex(done.stdout, r"ysipchan\.conf:4: warning: .*enabel.*enable")

    def test_a_good_configuration_is_usable(self):
        with configuration(ysipchan="[message]\nenable=yes\n", regfile="[101]\npassword=x\n") as d:
            done = run("check", "-c", d)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            self.assertIn("usable", done.stdout)

    def test_a_directory_that_holds_neither_file_is_an_error(self):
        with configuration() as directory:
            for subcommand in ("check", "serve"):
                self.assertEqual(run(subcommand, "-c", directory).returncode, 2)


class Serve(unittest.TestCase):
    def test_without_configuration_it_says_what_to_type_into_a_softphone(self):
        port = free_port()
        with Served("--listen", f"udp:127.0.0.1:{port}", "--listen", f"tcp:127.0.0.1:{port}") as it:
            self.assertEqual(it.lines[-3:], [f"listening udp 127.0.0.1:{port}",
                                             f"listening tcp 127.0.0.1:{port}", "ready"])
            self.assertIn("password", "\n".join(it.lines))
            with Socket(port) as phone:
                self.assertEqual(phone.register("102"), 200)

    def test_it_ends_within_a_second_on_sigterm_and_sigint(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with Served("--listen", f"udp:127.0.0.1:{free_port()}") as it:
                status, seconds = it.end(number)
                self.assertEqual(status, 0)
                self.assertLess(seconds, 1)

    def test_a_port_that_is_taken_is_an_error_that_names_it(self):
        port = free_port()
        with Served("--listen", f"udp:127.0.0.1:{port}"):
            done = run("serve", "--listen", f"udp:127.0.0.1:{port}")
            self.assertEqual(done.returncode, 3)
            self.assertIn(f"udp 127.0.0.1:{port}", done.stderr)
            self.assertIn("address already in use", done.stderr)

    def test_an_address_open_to_the_network_is_warned_of(self):
        with Served("--listen", f"udp:0.0.0.0:{free_port()}") as it:
            self.assertIn("warning: whoever can reach 0.0.0.0", "\n".join(it.lines))

    def test_ipv6_is_served(self):
        try:
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
                probe.bind(("::1", 0))
        except OSError:
            self.skipTest("this machine has no IPv6 loopback")
        port = free_port()
        with Served("--listen", f"udp:[::1]:{port}") as it:
            self.assertIn(f"listening udp [::1]:{port}", it.lines)

    def test_messages_that_are_switched_off_get_501_and_the_log_names_the_key(self):
        port = free_port()
        with configuration(ysipchan=ysipchan(port), regfile="[101]\npassword=x\n") as directory, \
                Served("-c", directory) as it, Socket(port) as phone:
            self.assertIn("[message]", "\n".join(it.lines))
            self.assertEqual(phone.ask("MESSAGE", "102", "hello"), 501)
            it.wait_for("[message] enable=yes")

    def test_senders_are_challenged_and_no_password_is_ever_printed(self):
        port = free_port()
        with configuration(ysipchan=ysipchan(port, "[message]\nenable=yes"),
                           regfile="[101]\npassword=secret-word\n") as directory, \
                Served("-c", directory, "--trace") as it, Socket(port) as phone:
            answer = phone.transact(phone.request("MESSAGE", "101", "hello"))
            self.assertIn("SIP/2.0 401 ", answer)
            self.assertRegex(answer, r'WWW-Authenticate: Digest realm="Yate", nonce="[^"]+", qop="auth"')
            it.wait_for("SIP/2.0 401 ")
            it.end()
            self.assertNotIn("secret-word", "\n".join(it.lines) + it.process.stderr.read())

    def test_sighup_reads_the_configuration_anew_and_keeps_the_bindings(self):
        port = free_port()
        off = "[registrar]\nauth_required=no\n[message]\nenable=no\nauth_required=no"
        with configuration(ysipchan=ysipchan(port, off), regfile="[102]\n") as directory, \
                Served("-c", directory) as it, Socket(port) as phone:
            self.assertEqual(phone.register("102"), 200)
            self.assertEqual(phone.ask("MESSAGE", "102", "hello"), 501)
            path = pathlib.Path(directory) / "ysipchan.conf"
            path.write_text(path.read_text().replace("enable=no", "enable=yes"))
            it.process.send_signal(signal.SIGHUP)
            it.wait_for("reloaded")
            phone.send(phone.request("MESSAGE", "102", "hello"))
            self.assertTrue(phone.take_message().startswith(f"MESSAGE sip:102@127.0.0.1:{phone.port}"))
            path.write_text("[general]\nport=seventy\nport=70000\ntype=pigeon\n")
            it.process.send_signal(signal.SIGHUP)
            it.wait_for("stays as it was")

    def test_started_with_nohup_it_outlives_its_terminal_and_reads_its_configuration_anew(self):
        ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
        port = free_port()
        with Served("--listen", f"udp:127.0.0.1:{port}", preexec_fn=ignore) as it:
            it.process.send_signal(signal.SIGHUP)
            with self.assertRaises(subprocess.TimeoutExpired):
                it.process.wait(0.3)
        with configuration(ysipchan=ysipchan(port), regfile="") as directory, \
                Served("-c", directory, preexec_fn=ignore) as it:
            it.process.send_signal(signal.SIGHUP)
            it.wait_for("reloaded")

    def test_the_trace_shows_what_is_sent_and_received(self):
        port = free_port()
        with Served("--listen", f"udp:127.0.0.1:{port}", "--trace") as it, Socket(port) as phone:
            phone.ask("OPTIONS", "x")
            self.assertTrue(re.match(r"received from udp 127\.0\.0\.1:\d+, \d+ octets",
                                     it.wait_for("received from")))
            it.wait_for("sent to udp")
            it.wait_for("SIP/2.0 200 OK")

    def test_the_trace_on_a_terminal_holds_nothing_that_it_would_obey(self):
        port = free_port()
        master, slave = pty.openpty()
        with subprocess.Popen([PROGRAM, "serve", "--listen", f"udp:127.0.0.1:{port}", "--trace"],
                              stderr=slave) as server, Socket(port) as phone:
            os.close(slave)
            shown = b""
            while b"ready" not in shown:
                shown += os.read(master, 65536)
            phone.ask("OPTIONS", "x", headers="Subject: \x1b[2Jtitle\r\n")
            while b"SIP/2.0 " not in shown:
                shown += os.read(master, 65536)
            server.kill()
        os.close(master)
        self.assertIn("Subject: \ufffd[2Jtitle\r\n", shown.decode())
        self.assertNotIn(b"\x1b", shown)


if __name__ == "__main__":
    unittest.main(verbosity=1)
