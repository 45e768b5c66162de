#!/usr/bin/env python3
"""Takes every message to one user, who needs no telephone, and answers it with a message.

The argument is the user's name. In extmodule.conf:

    [scripts]
    extmodule_auto_reply.py=assistant
"""
import sys

from extmodule_protocol import Engine

user = sys.argv[1] if len(sys.argv) > 1 else "assistant"
target = "auto_reply/" + user


def route(message):
    """Says that messages to the user have a target: our own, so that they come to `answer`."""
    if message.get("route_type") != "msg":
        return False
    message.return_value = target
    return True


def answer(message):
    caller = message.get("caller")
    if caller == user:
        return True  # an answer to an answer would never end
    engine.dispatch("msg.execute", {
        "called": caller,
        "caller": user,
        "domain": message.get("domain"),
        "xsip_type": "text/plain",
        "xsip_body": "You wrote: " + message.get("xsip_body"),
    }, lambda _, handled: None if handled else engine.log(caller + " could not be answered"))
    return True  # the sender gets 200


engine = Engine()
engine.install("call.route", route, priority=50, only=("called", user))
engine.install("msg.execute", answer, priority=50, only=("callto", target))
engine.run()
