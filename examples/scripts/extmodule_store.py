#!/usr/bin/env python3
"""Stores caller, called and body of every message in a database; the message goes on as it was.

The argument names the account, a section of sqlitedb.conf or mysqldb.conf. In extmodule.conf:

    [scripts]
    extmodule_store.py=chat
"""
import sys

from extmodule_protocol import Engine

account = sys.argv[1] if len(sys.argv) > 1 else "chat"


def literal(text):
    """A text as SQL has it. In hexadecimal there is no quote that somebody could close."""
    return "CAST(X'%s' AS CHAR)" % text.encode("utf-8", "surrogateescape").hex()


def query(sql):
    engine.dispatch("database", {"account": account, "query": sql, "results": "true"}, complain)


def complain(answer, handled):
    error = answer.get("error") if handled else "no such account: " + account
    if error:
        engine.log("not stored: " + error)


def store(message):
    values = ", ".join(literal(message.get(name)) for name in ("caller", "called", "xsip_body"))
    query("INSERT INTO messages (caller, called, body) VALUES (%s)" % values)
    return False


engine = Engine()
query("CREATE TABLE IF NOT EXISTS messages (caller TEXT, called TEXT, body TEXT)")
engine.install("call.route", store, priority=60, only=("route_type", "msg"))
engine.run()
