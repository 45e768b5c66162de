#!/usr/bin/env python3
"""A phone writes to one that is away, which then comes back."""
import sys

from peers import Phone, expect, running

with running(sys.argv[1]) as example:
    output = example.stdout.readline()
    sender, recipient = Phone("101", "", 5075), Phone("102", "", 5075)
    for text in "are you there?", "call me":
        expect(sender.write("102", text), 202)
    expect(recipient.register(), 200)
    expect([recipient.answer_next(), recipient.answer_next()], ["are you there?", "call me"])
    output += example.stdout.readline() + example.stdout.readline()
    output += example.stdout.readline() + example.stdout.readline()
sys.stdout.write(output)
