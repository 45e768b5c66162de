#!/usr/bin/env python3
"""Applications through the real program, with real SIP: the examples of examples/scripts, each with
its effect checked; and what becomes of messages where an application is reloaded, crashes or hangs.

    test_applications.py PROGRAM [NAME...]

What needs a module that PROGRAM is built without is skipped, as is WithMariaDB but under
tests/modules/with_mariadb.py.
"""
import contextlib
import os
import pathlib
import re
import shutil
import signal
import sqlite3
import stat
import tempfile
import threading
import unittest

from support import Served, Socket, body_of, free_port, header, run, wait_until

EXAMPLES = pathlib.Path(__file__).resolve().parent.parent.parent / "examples/scripts"
MODULES = run("--version").stdout.partition("modules: ")[2].split()


def needs(*modules):
    missing = [name for name in modules if name not in MODULES]
    return unittest.skipIf(missing, f"built without {', '.join(missing)}")


def example(name):
    return (EXAMPLES / name).read_text()


def switched_on(name, wanted):
    """An example's configuration with only the line of that script not commented out."""
    lines = []
    for line in example(name).splitlines():
        bare = line.lstrip(";")
        if re.match(r"[\w.]+\.py=|\w+=\w+\.js", bare):
            line = bare if bare.startswith(wanted) else ";" + bare
        lines.append(line)
    assert any(line.startswith(wanted) for line in lines), f"{name} does not name {wanted}"
    return "\n".join(lines) + "\n"


class Setting:
    """A directory with users 101 to 103, and the files that a test gives: NAME=TEXT for NAME.conf,
    and `copies` of examples."""

    def __init__(self, *copies, more="", auth="yes", **files):
        self.temporary = tempfile.TemporaryDirectory()
        self.path = pathlib.Path(self.temporary.name)
        self.port = free_port()
        files.setdefault("ysipchan", f"[general]\naddr=127.0.0.1\nport={self.port}\n"
                                     f"[registrar]\nauth_required={auth}\n"
                                     f"[message]\nenable=yes\nauth_required={auth}\n{more}\n")
        files.setdefault("regfile", "".join(f"[{user}]\npassword=of-{user}\n"
                                            for user in (101, 102, 103)))
        for name in copies:
            shutil.copy(EXAMPLES / name, self.path)
        self.write(**{f"{name}.conf": text for name, text in files.items()})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.temporary.cleanup()

    def write(self, **files):
        for name, text in files.items():
            path = self.path / name
            path.write_text(text)
            if name.endswith(".py"):
                path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def served(self):
        return Served("-c", str(self.path))

    def rows(self, database, sql):
        """What stands in a database of this directory; nothing where it is not there yet."""
        with contextlib.closing(sqlite3.connect(self.path / database)) as connection:
            try:
                return connection.execute(sql).fetchall()
            except sqlite3.OperationalError:
                return []


class Sender(Socket):
    """The phone of a user who writes and is not registered."""

    def __init__(self, setting, user="101"):
        super().__init__(setting.port)
        self.user = user

    def write(self, recipient, text, headers="Content-Type: text/plain\r\n"):
        """The code of the answer."""
        return self.ask("MESSAGE", recipient, text, headers=headers, sender=self.user,
                        password=f"of-{self.user}")


class Recipient(Socket):
    """The phone of a user who is registered, takes every message and keeps it."""

    def __init__(self, setting, user="102"):
        super().__init__(setting.port)
        self.messages = []
        self.is_open = True
        assert self.register(user, password=f"of-{user}") == 200
        self.thread = threading.Thread(target=self.take_messages)
        self.thread.start()

    def take_messages(self):
        while self.is_open:
            message = self.receive(0.02)
            if message and message.startswith("MESSAGE "):
                self.messages.append(message)  # before its sender can know
                self.answer(message)

    def __exit__(self, *_):
        self.is_open = False
        self.thread.join()
        super().__exit__()

    def texts(self):
        return [body_of(message) for message in self.messages]

    def wait_for(self, number):
        wait_until(lambda: len(self.messages) >= number)
        return self.messages[number - 1]


class Filters(unittest.TestCase):
    """Only 101 may write, whichever way that is said."""

    def check(self, setting, refusal):
        with setting, setting.served() as it, Recipient(setting, "102") as phone, \
                Recipient(setting, "101") as first, Sender(setting, "101") as allowed, \
                Sender(setting, "102") as other:
            # A program's handler is there when it has installed it, shortly after the start.
            wait_until(lambda: other.write("101", "no") == refusal)
            passed = len(first.messages)
            self.assertEqual(other.write("101", "never"), refusal)
            self.assertEqual(other.write("102", "never"), refusal)
            self.assertEqual(allowed.write("102", "welcome"), 200)
            self.assertEqual(phone.texts(), ["welcome"])
            self.assertEqual(len(first.messages), passed)
            it.end()
            return "\n".join(it.lines) + it.process.stderr.read()

    @needs("regexroute")
    def test_one_line_of_regexroute(self):
        self.check(Setting(regexroute=example("filter/regexroute.conf")), 403)

    @needs("javascript")
    def test_filter_sip_messages_js(self):
        log = self.check(Setting("filter_sip_messages.js", javascript=switched_on(
            "javascript.conf", "filter=")), 406)
        self.assertIn("No message from 102 to 101", log)

    @needs("extmodule")
    def test_extmodule_filter_py(self):
        self.check(Setting("extmodule_filter.py", "extmodule_protocol.py",
                           extmodule=example("extmodule.conf")), 403)

    @needs("javascript")
    def test_a_filter_as_yates_page_writes_it(self):
        """A reason and "handled", but no target: the page's way to refuse."""
        setting = Setting(javascript="[scripts]\nfilter=filter\n")
        setting.write(**{"filter.js": """
            function onCallRoute(msg)
            {
                Engine.output("call.route caller=" + msg.caller + " called=" + msg.called);
                if (msg.route_type == "msg") {
                    if (msg.caller != "101") {
                        Engine.output("SIP MESSAGE stopped for " + msg.caller);
                        msg.reason = "rejected";
                        return true;
                    }
                }
                return false;
            }
            Message.install(onCallRoute, "call.route", 50);"""})
        log = self.check(setting, 406)
        self.assertIn("call.route caller=101 called=102", log)
        self.assertIn("SIP MESSAGE stopped for 102", log)


NASTY = "it's \"100%\": a\\b; DROP TABLE sms; --\r\n\u00e4\U0001f600"


class Stores(unittest.TestCase):
    """What is kept in a database, and what becomes of it."""

    @needs("javascript", "sqlitedb")
    def test_smsc_js_keeps_for_who_is_offline_delivers_and_forgets(self):
        setting = Setting("smsc.js", javascript=switched_on("javascript.conf", "smsc="),
                          sqlitedb=example("sqlitedb.conf"))
        kept = lambda: setting.rows("smsc.db", "SELECT caller,called,message,type FROM sms ORDER BY id")
        with setting, setting.served(), Sender(setting) as sender:
            self.assertEqual(sender.write("102", NASTY, "Content-Type: text/plain;charset=utf-8\r\n"),
                             202)
            self.assertEqual(sender.write("102", "second"), 202)
            self.assertEqual(sender.write("nobody", "nothing is kept for strangers"), 404)
            self.assertEqual(kept(), [("101", "102", NASTY, "text/plain;charset=utf-8"),
                                      ("101", "102", "second", "text/plain")])
            with Recipient(setting, "102") as phone:
                first = phone.wait_for(1)
                self.assertEqual(body_of(first), NASTY)
                self.assertEqual(body_of(phone.wait_for(2)), "second")
                self.assertIn("<sip:101@", header(first, "From"))
                self.assertTrue(header(first, "Date").endswith(" GMT"))
                self.assertTrue(header(first, "Content-Type").startswith("text/plain"))
                wait_until(lambda: not kept())
                self.assertEqual(sender.write("102", "directly"), 200)
                self.assertEqual(phone.texts(), [NASTY, "second", "directly"])
                self.assertEqual(kept(), [])

    @needs("javascript", "sqlitedb")
    def test_smsc_js_delivers_to_a_phone_with_a_name_of_its_own_under_each_name_of_its_user(self):
        setting = Setting("smsc.js", javascript=switched_on("javascript.conf", "smsc="),
                          sqlitedb=example("sqlitedb.conf"),
                          regfile="[101]\npassword=of-101\n"
                                  "[102]\npassword=of-102\nalternatives=desk,101\n")
        kept = lambda: setting.rows("smsc.db", "SELECT called FROM sms ORDER BY id")
        with setting, setting.served() as it, Sender(setting) as sender, \
                Socket(setting.port) as phone:
            register = lambda: phone.register("102", password="of-102", contact="102-0x55f9466b0ea0")
            for recipient in ("desk", "101", "102"):
                self.assertEqual(sender.write(recipient, f"to {recipient}"), 202)
            self.assertEqual(register(), 200)
            self.assertEqual(body_of(phone.take_message()), "to desk")
            self.assertEqual(body_of(phone.take_message()), "to 102")
            wait_until(lambda: kept() == [("101",)])
            self.assertEqual(register(), 200)  # and nothing is left
            self.assertEqual(sender.write("101", "another"), 202)
            it.end()
            self.assertNotIn("smsc.js:", "\n".join(it.lines) + it.process.stderr.read())

    @needs("javascript", "sqlitedb")
    def test_smsc_js_says_503_where_the_database_fails(self):
        setting = Setting("smsc.js", javascript=switched_on("javascript.conf", "smsc="),
                          sqlitedb=example("sqlitedb.conf"))
        with setting, setting.served(), Sender(setting) as sender:
            self.assertEqual(sender.write("102", "kept"), 202)
            with contextlib.closing(sqlite3.connect(setting.path / "smsc.db")) as database:
                database.execute("DROP TABLE sms")
            self.assertEqual(sender.write("102", "not kept"), 503)

    @needs("javascript", "sqlitedb")
    def test_smsc_js_keeps_what_a_phone_refused_and_offers_it_again(self):
        setting = Setting("smsc.js", javascript=switched_on("javascript.conf", "smsc="),
                          sqlitedb=example("sqlitedb.conf"))
        kept = lambda: setting.rows("smsc.db", "SELECT message FROM sms ORDER BY id")
        with setting, setting.served(), Sender(setting) as sender, Socket(setting.port) as busy:
            self.assertEqual(sender.write("102", "again"), 202)
            self.assertEqual(busy.register("102", password="of-102"), 200)
            self.assertEqual(body_of(busy.take_message("486 Busy Here")), "again")
            self.assertEqual(kept(), [("again",)])
            self.assertEqual(busy.register("102", password="of-102"), 200)
            self.assertEqual(body_of(busy.take_message()), "again")
            wait_until(lambda: not kept())

    @needs("javascript", "sqlitedb")
    def test_a_store_as_yates_page_writes_it(self):
        """The page's columns, its own escaping, and no word of what becomes of the message."""
        setting = Setting(
            javascript="[scripts]\nsmsc=smsc\n",
            sqlitedb="[smsc]\ndatabase=${configpath}/page.db\n"
                     "initialize=CREATE TABLE sms(caller TEXT, called TEXT, message TEXT)\n")
        setting.write(**{"smsc.js": """
            function onCallRoute(msg)
            {
                Engine.output("call.route caller=" + msg.caller + " called=" + msg.called);
                if (msg.route_type == "msg") {
                    var m = new Message("database");
                    m.account = "smsc";
                    m.query = "INSERT INTO sms(caller,called,message) VALUES('" +
                        sql_escape(msg.caller) + "','" + sql_escape(msg.called) + "','" +
                        sql_escape(msg.xsip_body) + "')";
                    m.dispatch();
                }
            }
            function sql_escape(val)
            {
                return ("" + val).split("'").join("''");
            }
            Message.install(onCallRoute, "call.route", 50);"""})
        with setting, setting.served(), Sender(setting) as sender, Recipient(setting) as phone:
            self.assertEqual(sender.write("102", NASTY), 200)
            self.assertEqual(sender.write("103", "nobody is there"), 405)
            self.assertEqual(phone.texts(), [NASTY])
            self.assertEqual(setting.rows("page.db", "SELECT * FROM sms"),
                             [("101", "102", NASTY), ("101", "103", "nobody is there")])

    @needs("extmodule", "sqlitedb")
    def test_extmodule_store_py(self):
        setting = Setting("extmodule_store.py", "extmodule_protocol.py",
                          extmodule=switched_on("extmodule.conf", "extmodule_store.py="),
                          sqlitedb="[chat]\ndatabase=${configpath}/chat.db\n")
        stored = lambda: setting.rows("chat.db", "SELECT caller, called, body FROM messages")
        with setting, setting.served(), Sender(setting) as sender, Recipient(setting) as phone:
            def is_stored():  # not yet where the program has not installed its handler
                self.assertEqual(sender.write("102", "first"), 200)
                return ("101", "102", "first") in stored()
            wait_until(is_stored)
            self.assertEqual(sender.write("102", NASTY), 200)
            self.assertEqual(phone.texts()[-1], NASTY)
            wait_until(lambda: ("101", "102", NASTY) in stored())

    @needs("extmodule")
    def test_extmodule_auto_reply_py(self):
        setting = Setting("extmodule_auto_reply.py", "extmodule_protocol.py",
                          extmodule=switched_on("extmodule.conf", "extmodule_auto_reply.py="))
        with setting, setting.served(), Recipient(setting, "101") as phone, \
                Sender(setting) as sender:
            wait_until(lambda: sender.write("assistant", NASTY) == 200)
            reply = phone.wait_for(1)
            self.assertEqual(body_of(reply), "You wrote: " + NASTY)
            self.assertIn("<sip:assistant@", header(reply, "From"))


@unittest.skipUnless("SIPMSG_TEST_MARIADB_PORT" in os.environ,
                     "no MariaDB server; tests/modules/with_mariadb.py starts one")
class WithMariaDB(unittest.TestCase):
    @needs("javascript", "mysqldb")
    def test_smsc_js_with_mysqldb_conf(self):
        """The sample as it is, but for the server, and the table that it tells to make by hand."""
        conf = example("mysqldb.conf.sample")
        table = re.sub(r"\n; *", " ", re.search(r"CREATE TABLE.*?;\n", conf, re.DOTALL).group())
        for key, value in (("user", "tester"), ("password", "secret"),
                           ("host", f"127.0.0.1\nport={os.environ['SIPMSG_TEST_MARIADB_PORT']}")):
            conf = re.sub(rf"^{key}=.*$", f"{key}={value}", conf, flags=re.MULTILINE)
        setting = Setting("smsc.js", mysqldb=conf,
                          javascript="[scripts]\nsmsc=smsc.js\nlook=look.js\n")
        setting.write(**{
            "look.js": """
                function ask(sql)
                {
                    var m = new Message("database");
                    m.account = "smsc";
                    m.query = sql;
                    return m.dispatch() && m.error === undefined ? m : null;
                }
                Message.install(function (msg) {
                    Engine.output("kept " + JSON.stringify(
                        ask("SELECT caller,called,message FROM sms ORDER BY id").getRow()));
                    msg.code = 486;
                    msg.retValue("-");
                    return true;
                }, "call.route", 40, "called", "look");
                Message.install(function (msg) {
                    msg.code = ask(%r) ? 486 : 500;
                    msg.retValue("-");
                    return true;
                }, "call.route", 40, "called", "prepare");""" % table})
        with setting, setting.served() as it, Sender(setting) as sender:
            wait_until(lambda: sender.write("prepare", "x") == 486)
            self.assertEqual(sender.write("102", NASTY), 202)
            sender.write("look", "x")
            line = it.wait_for("kept [")
            self.assertIn('"caller":101,"called":102', line)
            with Recipient(setting, "102") as phone:
                self.assertEqual(body_of(phone.wait_for(1)), NASTY)

                def is_forgotten():
                    sender.write("look", "x")
                    return "kept []" in it.wait_for("kept [")
                wait_until(is_forgotten)


CRASHING = """#!/usr/bin/env python3
import os, sys, time
print("%%>setlocal:restart:true", flush=True)
print("%%>install:50:call.route:route_type:msg", flush=True)
for line in sys.stdin:
    if not line.startswith("%%>message"):
        continue
    if "=crash" in line:
        os.abort()
    if "=hang" in line:
        time.sleep(20)
    marked = "=hello" in line
    print("%%<message:" + line.split(":")[1] + ":false::" + (":sip_X-Seen=program" if marked else ""),
          flush=True)
"""
FAILING_SCRIPT = """
Message.install(function (msg) {
    if (msg.xsip_body == "loop") while (true) {}
    if (msg.xsip_body == "throw") nothing();
    if (msg.xsip_body == "hang") Engine.sleep(5);
    if (msg.xsip_body == "hello") msg["sip_X-Seen"] = "script";
    return false;
}, "call.route", 50);
"""


class Failures(unittest.TestCase):
    """What an application does wrong costs it its say about that message, and nobody the message."""

    def check(self, setting, rows, seen):
        with setting, setting.served() as it, Recipient(setting) as phone, Sender(setting) as sender:
            def works():
                return sender.write("102", "hello") == 200 and header(phone.messages[-1], "X-Seen") == seen
            wait_until(works)
            for text, said in rows:
                with self.subTest(text):
                    before = len(phone.messages)
                    self.assertEqual(sender.write("102", text), 200)
                    self.assertEqual(phone.texts()[before:], [text])
                    it.wait_for(said)
                    wait_until(works)  # and it is back
            it.end()

    @needs("extmodule")
    def test_an_external_program_that_crashes_or_hangs_costs_only_its_say(self):
        setting = Setting(extmodule="[general]\nscripts_dir=${configpath}\ntimeout=300\ntimebomb=yes\n"
                                    "[scripts]\nfailing.py=\n")
        setting.write(**{"failing.py": CRASHING})
        self.check(setting, (("crash", "failing.py"), ("hang", "failing.py")), "program")

    @needs("javascript")
    def test_a_script_that_loops_throws_or_hangs_costs_only_its_say(self):
        setting = Setting(javascript="[general]\ntime_limit=300\ntimeout=600\n[scripts]\nfailing=\n")
        setting.write(**{"failing.js": FAILING_SCRIPT})
        self.check(setting, (("throw", "failing.js:4"), ("loop", "did not come to an end within 300 ms"),
                             ("hang", "no answer within 600 ms")), "script")

    @needs("extmodule", "javascript")
    def test_with_defaults_a_message_that_a_program_and_a_script_keep_waiting_goes_on_in_time(self):
        setting = Setting(extmodule="[general]\nscripts_dir=${configpath}\n[scripts]\nfailing.py=\n",
                          javascript="[scripts]\nfailing=\n")
        setting.write(**{"failing.py": CRASHING, "failing.js": FAILING_SCRIPT})
        with setting, setting.served() as it, Recipient(setting) as phone, \
                Sender(setting) as sender:
            wait_until(lambda: sender.write("102", "hello") == 200 and
                       header(phone.messages[-1], "X-Seen") == "program")
            self.assertEqual(sender.write("102", "hang"), 200)
            self.assertEqual(phone.texts()[-1], "hang")
            it.end()


MISTAKES = {
    "regexroute": ("[default]\n^1$=-\n^(=x\n\\(=x\n", 4),
    "extmodule": ("[scripts]\n\nmissing.py=\n", 3),
    "javascript": ("[scripts]\nsmsc=missing.js\n", 2),
    "sqlitedb": ("[smsc]\ndatabase=:memory:\ninitialize=@missing.sql\n", 3),
    "mysqldb": ("[smsc]\nhost=127.0.0.1\nport=many\n", 3),
}


class Check(unittest.TestCase):
    def test_a_mistake_in_the_file_of_each_module_is_named_with_its_line(self):
        for module, (text, line) in MISTAKES.items():
            with self.subTest(module):
                if module not in MODULES:
                    self.skipTest(f"built without {module}")
                with Setting(**{module: text}) as setting:
                    said = run("check", "-c", str(setting.path)).stdout
                    self.assertRegex(said, rf"{setting.path}/{module}\.conf:{line}: (error|warning): ")

    @needs("offline")
    def test_a_mistake_in_the_section_offline_is_named_with_its_line(self):
        with Setting(more="[offline]\nenable=yes\nmax_messages=few\n") as setting:
            self.assertRegex(run("check", "-c", str(setting.path)).stdout,
                             rf"{setting.path}/ysipchan\.conf:11: warning: .*max_messages")

    @needs("javascript")
    def test_a_mistake_in_a_script_is_named_with_file_and_line_of_the_script(self):
        with Setting(javascript="[scripts]\nbad=\n") as setting:
            setting.write(**{"bad.js": "var x;\n\nfunction (\n"})
            done = run("check", "-c", str(setting.path))
            self.assertEqual(done.returncode, 2)
            self.assertRegex(done.stdout, rf"{setting.path}/bad\.js:3: error: ")

    @needs("extmodule", "javascript")
    def test_a_timeout_that_ends_after_the_senders_patience_is_warned_of(self):
        slow = {"extmodule": "[general]\nscripts_dir=${configpath}\ntimeout=10000\n[scripts]\nx.py=\n",
                "javascript": "[general]\ntimeout=10000\n[scripts]\nx=\n"}
        quick = {name: text.replace("10000", "9999") for name, text in slow.items()}
        default = {name: text.replace("timeout=10000\n", "") for name, text in slow.items()}
        for files, more, line in ((slow, "", ":(2|3)"), (quick, "", None), (default, "", None),
                                  (default, "handler_deadline=3\n", ""),
                                  (slow, "handler_deadline=30\n", None)):
            with self.subTest(files=files, more=more), Setting(more=more, **files) as setting:
                setting.write(**{"x.py": CRASHING, "x.js": FAILING_SCRIPT})
                done = run("check", "-c", str(setting.path))
                self.assertEqual(done.returncode, 0)
                for module in slow:
                    if line is None:
                        self.assertNotIn("handler_deadline", done.stdout)
                    else:
                        self.assertRegex(done.stdout,
                                         rf"{module}\.conf{line}: warning: .*handler_deadline")


def every_module(setting):
    """Each with something to do; a program and a script that never come to an end by themselves."""
    setting.write(**{
        "regexroute.conf": "[default]\n${route_type}^msg$=;sip_X-Rule=1\n",
        "extmodule.conf": "[general]\nscripts_dir=${configpath}\n[scripts]\ndeaf.py=\n",
        "deaf.py": "#!/usr/bin/env python3\nimport signal, sys, time\n"
                   "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
                   "print('%%>install:60:call.route', flush=True)\n"
                   "print('%%>output:deaf', flush=True)\ntime.sleep(20)\n",
        "javascript.conf": "[general]\ntime_limit=15000\n[scripts]\nquery=\nmad=\n",
        "mad.js": "Engine.output('mad'); Engine.setTimeout(function () { while (true) {} }, 50);\n",
        "query.js": "Message.install(function (msg) { Engine.output('asks');\n"
                    "var m = new Message('database');\n"
                    "m.account = 'slow'; m.query = 'WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL '\n"
                    "+ 'SELECT i + 1 FROM n) SELECT max(i) FROM n'; m.dispatch(); return false; },\n"
                    "'call.route', 40);\n",
        "sqlitedb.conf": "[slow]\ndatabase=:memory:\ntimeout=60000\n",
        "mysqldb.conf": f"[nobody]\nhost=127.0.0.1\nport={free_port()}\n",
    })


class Lifetime(unittest.TestCase):
    @needs("regexroute", "extmodule", "javascript", "sqlitedb", "offline")
    def test_it_ends_within_a_second_with_every_module_at_work(self):
        with Setting(auth="no", more="[offline]\nenable=yes\nspool=${configpath}/spool\n") as setting:
            every_module(setting)
            with setting.served() as it, Sender(setting) as sender:
                it.wait_for("deaf")
                sender.send(sender.request("MESSAGE", "102", "x"))
                it.wait_for("asks")
                status, seconds = it.end()
                self.assertEqual(status, 0)
                self.assertLess(seconds, 1)

    @needs("regexroute", "javascript")
    def test_a_reload_puts_new_handlers_in_the_place_of_the_old_and_loses_nothing(self):
        """Messages that wait for the old script go on to who is next, once."""
        setting = Setting(auth="no", javascript="[scripts]\nslow=\n",
                          regexroute="[default]\n${route_type}^msg$=;sip_X-Rule=old\n")
        setting.write(**{"slow.js": "Message.install(function (msg) { Engine.output('asked');\n"
                                    "Engine.sleep(3); msg['sip_X-Script'] = 'old'; return false; },\n"
                                    "'call.route', 50, 'xsip_body', '^wait');\n"
                                    "Message.install(function () { return false; }, 'user.register');"})
        with setting, setting.served() as it, Recipient(setting) as phone, Sender(setting) as sender:
            waiting = [sender.request("MESSAGE", "102", f"wait {i}") for i in range(20)]
            for request in waiting:
                sender.send(request)
            for _ in waiting:
                it.wait_for("asked")
            self.assertEqual(phone.messages, [])
            setting.write(**{
                "regexroute.conf": "[default]\n${route_type}^msg$=;sip_X-Rule=new\n",
                "slow.js": "Message.install(function (msg) { msg['sip_X-Script'] = 'new';\n"
                           "return false; }, 'call.route', 50);"})
            it.process.send_signal(signal.SIGHUP)
            it.wait_for("reloaded")
            answers = {}
            while len(answers) < len(waiting):
                answer = sender.receive()
                self.assertIsNotNone(answer, f"only {len(answers)} answers came")
                answers[header(answer, "Call-ID")] = answer.split()[1]
            self.assertEqual(set(answers.values()), {"200"})
            self.assertEqual(sorted(phone.texts()), sorted(map(body_of, waiting)))
            self.assertEqual({header(message, "X-Script") for message in phone.messages}, {None})
            self.assertEqual(sender.write("102", "wait no more"), 200)
            last = phone.messages[-1]
            self.assertEqual((header(last, "X-Script"), header(last, "X-Rule")), ("new", "new"))
            status, seconds = it.end()
            self.assertEqual(status, 0)
            self.assertLess(seconds, 1)


if __name__ == "__main__":
    unittest.main(verbosity=1)
