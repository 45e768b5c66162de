#!/usr/bin/env python3
"""Sends the echo example one MESSAGE, as a softphone would, and ends it when it has answered 200."""
import socket
import subprocess
import sys
import time

BODY = "Grüße aus der Ferne".encode()
MESSAGE = (b"MESSAGE sip:echo@127.0.0.1:5070 SIP/2.0\r\n"
           b"Via: SIP/2.0/UDP 127.0.0.1:%d;branch=z9hG4bKexample;rport\r\n"
           b"Max-Forwards: 70\r\n"
           b"From: <sip:test@127.0.0.1>;tag=1\r\n"
           b"To: <sip:echo@127.0.0.1:5070>\r\n"
           b"Call-ID: example\r\n"
           b"CSeq: 1 MESSAGE\r\n"
           b"Content-Type: text/plain;charset=utf-8\r\n"
           b"Content-Length: %d\r\n\r\n%s")

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as phone, \
        subprocess.Popen([sys.argv[1]], stdout=subprocess.PIPE, text=True) as example:
    phone.bind(("127.0.0.1", 0))
    phone.settimeout(0.2)
    message = MESSAGE % (phone.getsockname()[1], len(BODY), BODY)
    answer = b""
    deadline = time.monotonic() + 10
    while not answer and time.monotonic() < deadline:
        try:  # the example may not listen yet, so this repeats as SIP does
            phone.sendto(message, ("127.0.0.1", 5070))
            answer = phone.recv(65536)
        except (TimeoutError, ConnectionRefusedError):
            pass
    example.terminate()
    output, _ = example.communicate()
    if not answer.startswith(b"SIP/2.0 200 OK\r\n"):
        sys.exit(f"the answer was {answer!r}")
    sys.stdout.write(output)
