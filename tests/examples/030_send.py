#!/usr/bin/env python3
"""Lets the sending example write to a phone, by the real server."""
import sys

from peers import Phone, running, served

example, server = sys.argv[1:]
with served(server, "--listen", "udp:127.0.0.1:5071"):
    phone = Phone("102", "", 5071)
    phone.register()
    with running(example) as sender:
        text = phone.answer_next()
        output, _ = sender.communicate()
    if text != "Ahoj, čau":
        sys.exit(f"the phone received {text!r}")
    sys.stdout.write(output)
    sys.exit(sender.returncode)
