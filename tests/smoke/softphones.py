"""Softphones from Debian, driven as somebody would who types into them and reads what they show."""
import re
import shutil

from common import HERE, HOST, Terminal, wait_until

EXAMPLES = HERE.parents[1] / "examples" / "softphones"


class Baresip(Terminal):
    program = "baresip"

    def __init__(self, directory, user, transport, port, password, contacts):
        home = directory / f"baresip-{user}"
        home.mkdir()
        server = f"{HOST}:{port}"
        by_tcp = f';outbound="sip:{server};transport=tcp"' if transport == "tcp" else ""
        shutil.copy(EXAMPLES / "101" / "config", home)
        (home / "accounts").write_text(
            f"<sip:{user}@{server};transport={transport}>;auth_pass={password};regint=60{by_tcp}\n")
        (home / "contacts").write_text(
            "".join(f"<sip:{contact}@{server}>\n" for contact in contacts))
        self.start(home, user, transport, contacts)

    def start(self, home, user, transport, contacts):
        """With the files that `home` has."""
        self.user, self.transport, self.contacts, self.contact = user, transport, contacts, 0
        super().__init__(f"baresip {user}", ["baresip", "-f", home], home)

    def is_registered(self):
        return "200 OK" in self.log()

    def is_refused_registration(self):
        return "401 Unauthorized" in self.log()

    def send(self, peer, text):
        """It writes to the current contact, so that is to be chosen first."""
        wanted = self.contacts.index(peer)
        while self.contact != wanted:
            step = 1 if wanted > self.contact else -1
            self.contact += step
            shown = self.log().count("Current contact:")
            self.type("/contact_next" if step > 0 else "/contact_prev")
            wait_until(lambda: self.log().count("Current contact:") > shown,
                       f"{self.name} changes its current contact")
        self.mark()
        self.type(f"/message {text}")

    def shows(self, peer, text):
        return re.search(rf'sip:{peer}@\S*: "{re.escape(text)}"', self.log())

    def shows_failure(self, code):
        return re.search(rf"^ {code} ", self.fresh(), re.M)

    def shows_success(self):
        """It shows failures only."""
        return not re.search(r"^ [3-6]\d\d |failed", self.fresh(), re.M)

    def quit(self):
        self.type("/quit")


class Linphonec(Terminal):
    program = "linphonec"

    def __init__(self, directory, user, transport, port, password, realm="Yate"):
        home = directory / f"linphonec-{user}"
        # Without these it has no database, and crashes when it sends.
        for folder in (".local/share/linphone", ".config/linphone"):
            (home / folder).mkdir(parents=True)
        self.user, self.transport, self.log_file = user, transport, home / "log"
        self.log_file.touch()
        server = f"<sip:{HOST}:{port};transport={transport}>"
        udp_port, tcp_port = (-1, 0) if transport == "udp" else (0, -1)  # -1 any, 0 none
        # It would wait for a network, and a namespace has none.
        (home / "linphonerc").write_text(f"""\
[sip]
sip_port={udp_port}
sip_tcp_port={tcp_port}
register_only_when_network_is_up=0
auto_net_state_mon=0
guess_hostname=0
default_proxy=0
[proxy_0]
reg_proxy={server}
reg_route={server}
reg_identity=sip:{user}@{HOST}:{port}
reg_expires=60
reg_sendregister=1
[auth_info_0]
username={user}
passwd={password}
realm={realm}
""")
        super().__init__(f"linphonec {user}",
                         ["linphonec", "-c", home / "linphonerc", "-d", "4", "-l", self.log_file],
                         home)

    def events(self):
        """Its log tells what it does not show: what became of registrations and messages."""
        lines = self.log_file.read_text(errors="replace").splitlines()
        return [line for line in lines if " moving from " in line]

    def position(self):
        return super().position(), len(self.events())

    def log(self, begin=(0, 0)):
        return "\n".join([super().log(begin[0]), *self.events()[begin[1]:]])

    def is_registered(self):
        return "to [LinphoneRegistrationOk]" in self.log()

    def is_refused_registration(self):
        return "to [LinphoneRegistrationFailed]" in self.log()

    def send(self, peer, text):
        self.mark()
        self.type(f"chat sip:{peer}@{HOST} {text}")

    def shows(self, peer, text):
        return re.search(rf"Message received from .*sip:{peer}@\S*: {re.escape(text)}", self.log())

    def shows_failure(self, code):
        return "to NotDelivered" in self.fresh()

    def shows_success(self):
        return "to Delivered" in self.fresh()

    def quit(self):
        self.type("quit")
