#!/usr/bin/env python3
"""Lets the registering example receive messages from a phone, by the real server."""
import pathlib
import sys
import tempfile

from peers import Phone, running, served

example, server = sys.argv[1:]
with tempfile.TemporaryDirectory() as folder:
    pathlib.Path(folder, "ysipchan.conf").write_text(
        "[general]\naddr=127.0.0.1\nport=5072\n[message]\nenable=yes\n")
    pathlib.Path(folder, "regfile.conf").write_text("[101]\npassword=another\n[102]\npassword=secret\n")
    with served(server, "-c", folder):
        phone = Phone("101", "another", 5072)
        with running(example) as receiver:
            phone.write_until_answered_200("102", "Ahoj, čau")
            phone.write_until_answered_200("102", "bye")
            output, _ = receiver.communicate()
        gone = phone.write("102", "still there?")
        if gone != 405:
            sys.exit(f"it did not unregister: {gone}")
sys.stdout.write(output)
sys.exit(receiver.returncode)
