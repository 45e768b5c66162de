#!/usr/bin/env python3
"""Behaves as programs on top of Yate's own Python library do.

No filter, every parameter is sent back whether changed or not, the return value too.
"""
import sys


def main():
    print("%%>install:50:call.route", flush=True)
    for line in sys.stdin:
        fields = line.rstrip("\n").split(":")
        if fields[0] != "%%>message":
            continue
        fields[0] = "%%<message"
        fields[2] = "true" if "called=99991001" in fields else "false"
        if fields[2] == "true":
            fields[4] = "tone/dial"
            fields.append("greeting=hello %z-)")
        print(":".join(fields), flush=True)


main()
