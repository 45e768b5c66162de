"""Ports for the tests that start servers."""
import random
import socket

HOST = "127.0.0.1"


def free_port():
    """One that is free over UDP and TCP, and that the system gives to nobody who wants any."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, \
                socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp:
            try:
                udp.bind((HOST, port))
                tcp.bind((HOST, port))
                return port
            except OSError:
                continue
