#!/usr/bin/env python3
"""Two phones write to each other through the filtering example."""
import sys

from peers import Phone, expect, running

with running(sys.argv[1]) as example:
    output = example.stdout.readline()
    first, second = Phone("101", "", 5074), Phone("102", "", 5074)
    for phone in first, second:
        expect(phone.register(), 200)
    expect(second.write("101", "let me in"), 406)
    with second.answering() as received:
        expect(first.write("102", "hello"), 200)
    expect(received, ["hello"])
    example.terminate()
    output += example.communicate()[0]
sys.stdout.write(output)
