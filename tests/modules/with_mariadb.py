#!/usr/bin/env python3
"""Runs a test program beside a MariaDB server of its own.

    with_mariadb.py PROGRAM [ARGUMENT...]

The server lives in a temporary directory, listens on a UNIX socket there and on a free port of the
loopback, and is gone afterwards. The program finds in its environment:

    SIPMSG_TEST_MARIADB_SOCKET   path of the UNIX socket
    SIPMSG_TEST_MARIADB_PORT     port on 127.0.0.1
    SIPMSG_TEST_MARIADB_CONTROL  number of an open socket; "stop", "kill" (no farewell) and "start"
                                 on a line are done, and answered with "done" on a line

There are the user `tester` with the password `secret`, and the database `sipmsg`. Exits with the
program's status, and with 77, which Meson counts as skipped, where there is no mariadbd.
"""
import os
import pathlib
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "support"))
from ports import free_port  # noqa: E402: it stands there

START_LIMIT_S = 60
# Debian's package mariadb-server-core has the server and these, and mariadb-install-db, too, but
# not the client programs which that calls.
SHARE = pathlib.Path("/usr/share/mysql")
SYSTEM_TABLES = ["mysql_system_tables.sql", "mysql_performance_tables.sql",
                 "mysql_system_tables_data.sql"]
ACCOUNTS = """
DELETE FROM global_priv WHERE User = '';
CREATE DATABASE sipmsg CHARACTER SET utf8mb4;
FLUSH PRIVILEGES;
CREATE USER tester@'%' IDENTIFIED BY 'secret';
GRANT ALL ON *.* TO tester@'%';
"""


def find_server():
    return shutil.which("mariadbd", path=os.environ.get("PATH", "") + ":/usr/sbin")


class Server:
    def __init__(self, program, directory):
        self.directory = pathlib.Path(directory)
        self.socket = self.directory / "socket"
        self.port = free_port()
        self.process = None
        self.command = [
            program, "--no-defaults", f"--user={pwd.getpwuid(os.getuid()).pw_name}",
            f"--datadir={self.directory / 'data'}", "--innodb-buffer-pool-size=8M",
            "--innodb-log-file-size=4M", "--innodb-flush-log-at-trx-commit=0",
            "--skip-log-bin", "--skip-name-resolve"]

    def prepare(self):
        """Makes the system's tables and the test's account."""
        (self.directory / "data").mkdir()
        script = ["CREATE DATABASE IF NOT EXISTS mysql;", "USE mysql;", "SET @auth_root_socket=NULL;"]
        script += [(SHARE / name).read_text() for name in SYSTEM_TABLES]
        with self.log() as log:
            subprocess.run(self.command + ["--bootstrap", "--skip-networking"], check=True,
                           input="\n".join(script) + ACCOUNTS, text=True, stdout=log, stderr=log)

    def start(self):
        with self.log() as log:
            self.process = subprocess.Popen(
                self.command + [f"--socket={self.socket}", f"--port={self.port}",
                                "--bind-address=127.0.0.1"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + START_LIMIT_S
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("mariadbd did not start:\n" + self.log_path().read_text())
            time.sleep(0.02)

    def answers(self):
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(self.socket))
                return probe.recv(1) != b""  # the server speaks first
        except OSError:
            return False

    def stop(self):
        if self.process is not None:
            self.process.terminate()
            self.end()

    def kill(self):
        self.process.kill()
        self.end()

    def end(self):
        self.process.wait()
        self.process = None
        self.socket.unlink(missing_ok=True)

    def log_path(self):
        return self.directory / "log"

    def log(self):
        return self.log_path().open("ab")


def serve(control, server):
    """Does what the test program asks for, until it is gone."""
    actions = {"start": server.start, "stop": server.stop, "kill": server.kill}
    with control, control.makefile("rw") as lines:
        for line in lines:
            try:
                actions[line.strip()]()
                answer = "done"
            except Exception as error:  # the program must not wait for ever
                answer = f"failed: {error}".replace("\n", " ")
            lines.write(answer + "\n")
            lines.flush()


def run(server, command):
    ours, theirs = socket.socketpair()
    environment = dict(os.environ, SIPMSG_TEST_MARIADB_SOCKET=str(server.socket),
                       SIPMSG_TEST_MARIADB_PORT=str(server.port),
                       SIPMSG_TEST_MARIADB_CONTROL=str(theirs.fileno()))
    with theirs:
        program = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()])
    thread = threading.Thread(target=serve, args=(ours, server))
    thread.start()
    status = program.wait()
    thread.join()
    return status


def main():
    program = find_server()
    if program is None:
        print("skipped: no mariadbd here (Debian's package mariadb-server-core has it)")
        return 77
    with tempfile.TemporaryDirectory(prefix="sipmsg-mariadb-") as directory:
        server = Server(program, directory)
        try:
            server.prepare()
            server.start()
            return run(server, sys.argv[1:])
        except (RuntimeError, subprocess.CalledProcessError) as error:
            print(error, server.log_path().read_text(), sep="\n", file=sys.stderr)
            return 1
        finally:
            server.stop()


if __name__ == "__main__":
    sys.exit(main())
