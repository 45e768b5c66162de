#!/usr/bin/env python3
"""Only the user named as the argument may write; everybody else is refused with 403 Forbidden.

In extmodule.conf:

    [scripts]
    extmodule_filter.py=101
"""
import sys

from extmodule_protocol import Engine

allowed = sys.argv[1] if len(sys.argv) > 1 else "101"


def refuse_others(message):
    # The name that the sender has proved by password, not the one he writes into From.
    if message.get("username") == allowed:
        return False  # not ours: the next handler finds the recipient
    message.return_value = "-"
    message.set("reason", "forbidden")
    return True


engine = Engine()
engine.install("call.route", refuse_others, priority=50, only=("route_type", "msg"))
engine.run()
