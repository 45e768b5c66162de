#!/usr/bin/env python3
"""Two phones write to each other through the filtering example."""
import sys

from peers import Phone, expect, running

with running(sys.argv[1]) as example:
    output = example.stdout.readline()
    first, second = Phone("101", "", 5074), Phone("102", "", 5074)
    for phone in first, second:
        expect(phone.register(), "SIP/2.0 200 OK")
    expect(second.write("101", "let me in"), "SIP/2.0 406 Not Acceptable")
    with second.answering() as received:
        expect(first.write("102", "hello"), "SIP/2.0 200 OK")
    expect(received, ["hello"])
    example.terminate()
    output += example.communicate()[0]
sys.stdout.write(output)
