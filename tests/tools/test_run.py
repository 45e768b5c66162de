#!/usr/bin/env python3
"""./run on machines that lack things: every tool it calls is a stand-in that writes down the call.

The stand-in for a package manager "installs" the tools, meson's makes a build directory, ninja's a
program that prints its arguments. So what is said, installed and started can be checked for five
package managers, as root and not, with and without a terminal, without touching this machine.
"""
import os
import pathlib
import pty
import shutil
import subprocess
import tempfile
import unittest

RUN = pathlib.Path(__file__).resolve().parent.parent.parent / "run"
TOOLS = ("c++", "meson", "ninja", "pkg-config", "python3")

MANAGER = """\
case $1 in update | -Sy) touch "$STATE/renewed"; exit ;; esac
if [ -n "${EMPTY_LISTS:-}" ] && [ ! -e "$STATE/renewed" ]; then exit 100; fi
for tool in c++ meson ninja pkg-config python3; do ln -sf "$BIN/.$tool" "$BIN/$tool"; done
"""
STAND_INS = {
    "id": 'echo "${USER_ID:-0}"',
    "sudo": 'exec "$@"',
    ".c++": "",  # whatever it is asked to compile, it finds
    ".meson": '[ "$1" = setup ] || exit 0\n'
              'for dir; do case $dir in */release | */test) break ;; esac; done\n'
              'mkdir -p "$dir/meson-private"; : >"$dir/build.ninja"',
    ".ninja": 'if [ "$3" = -n ]; then [ -e "$2/sipmsg" ] && echo "no work to do."; exit 0; fi\n'
              'if [ -n "${BROKEN:-}" ]; then echo "main.cpp:1: it is broken"; exit 1; fi\n'
              'printf \'#!/bin/sh\\nfor a; do echo "<$a>"; done\\n\' >"$2/sipmsg"\n'
              'chmod +x "$2/sipmsg"',
    ".pkg-config": "",
    ".python3": "",
}


class Run(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name) / "a place"
        self.bin, self.state = self.root / "bin", self.root / "state"
        self.bin.mkdir(parents=True)
        self.state.mkdir()
        shutil.copy(RUN, self.root)
        (self.root / "meson.build").touch()
        for tool in ("sh", "cat", "chmod", "dirname", "grep", "ln", "mkdir", "rm", "touch"):
            (self.bin / tool).symlink_to(shutil.which(tool))
        for name, body in STAND_INS.items():
            self.stand_in(name, body)

    def stand_in(self, name, body):
        path = self.bin / name
        note = f'echo "{name.lstrip(".")} $*" >>"$STATE/calls"\n'
        path.write_text("#!/bin/sh\n" + ("" if name == "id" else note) + body + "\n")
        path.chmod(0o755)

    def install_everything(self):
        for tool in TOOLS:
            (self.bin / tool).symlink_to(self.bin / f".{tool}")

    def run_it(self, *arguments, stdin=subprocess.DEVNULL, **environment):
        (self.state / "calls").write_text("")
        environment = {"PATH": str(self.bin), "BIN": str(self.bin), "STATE": str(self.state),
                       **environment}
        done = subprocess.run([self.root / "run", *arguments], stdin=stdin, capture_output=True,
                              text=True, env=environment)
        self.calls = (self.state / "calls").read_text().splitlines()
        return done

    def installations(self):
        return [call for call in self.calls if call.split()[0] in PACKAGES]

    def test_on_a_bare_machine_root_gets_everything_installed_and_built_and_started(self):
        self.stand_in("apt-get", MANAGER)
        done = self.run_it()
        self.assertEqual((done.returncode, done.stdout), (0, "<serve>\n"), done.stderr)
        self.assertEqual(self.installations(), [PACKAGES["apt-get"]])
        self.assertIn("installing: apt-get install", done.stderr)

    def test_each_package_manager_is_asked_for_its_own_names(self):
        for manager, command in PACKAGES.items():
            with self.subTest(manager):
                self.stand_in(manager, MANAGER)
                if manager == "brew":  # there the compiler does not come from the manager
                    (self.bin / "c++").symlink_to(self.bin / ".c++")
                done = self.run_it("--version")
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertEqual(self.installations(), [command])
                shutil.rmtree(self.root / "build")
                for name in (manager, *TOOLS):
                    (self.bin / name).unlink()

    def test_empty_lists_of_packages_are_renewed(self):
        self.stand_in("apt-get", MANAGER)
        self.assertEqual(self.run_it(EMPTY_LISTS="1").returncode, 0)
        self.assertEqual(self.installations(),
                         [PACKAGES["apt-get"], "apt-get update", PACKAGES["apt-get"]])

    def test_an_installation_that_fails_shows_why(self):
        self.stand_in("apt-get", "echo no space left; exit 100")
        done = self.run_it()
        self.assertEqual(done.returncode, 2)
        self.assertIn("no space left", done.stderr)

    def test_without_root_and_without_a_terminal_it_says_what_to_run(self):
        self.stand_in("apt-get", MANAGER)
        done = self.run_it(USER_ID="1000")
        self.assertEqual(done.returncode, 2)
        self.assertIn("sudo apt-get install", done.stderr)
        self.assertEqual(self.installations(), [])

    def test_without_root_it_asks_before_it_uses_sudo(self):
        self.stand_in("apt-get", MANAGER)
        for answer, status, calls in (("n\n", 2, []), ("y\n", 0, [PACKAGES["apt-get"]])):
            ours, theirs = pty.openpty()
            os.write(ours, answer.encode())
            done = self.run_it(stdin=theirs, USER_ID="1000")
            self.assertEqual(done.returncode, status, done.stderr)
            self.assertIn("may I run: sudo apt-get install", done.stderr)
            self.assertEqual(self.installations(), calls)
            os.close(ours)
            os.close(theirs)
        self.assertIn("sudo " + PACKAGES["apt-get"], self.calls)

    def test_no_install_only_reports(self):
        self.stand_in("apt-get", MANAGER)
        done = self.run_it("--no-install")
        self.assertEqual(done.returncode, 2)
        self.assertIn("missing: c++ meson ninja pkg-config python3", done.stderr)
        self.assertIn("apt-get install", done.stderr)
        self.assertEqual(self.installations(), [])

    def test_without_a_package_manager_it_says_so(self):
        done = self.run_it()
        self.assertEqual(done.returncode, 2)
        self.assertIn("one of apt-get, apk, dnf, pacman, brew", done.stderr)

    def test_arguments_reach_the_program_as_they_are(self):
        self.install_everything()
        self.assertEqual(self.run_it("send", "two words", "").stdout, "<send>\n<two words>\n<>\n")

    def test_the_second_call_only_asks_ninja_and_says_nothing(self):
        self.install_everything()
        self.assertIn("building", self.run_it("serve").stderr)
        done = self.run_it("serve")
        self.assertEqual((done.stdout, done.stderr), ("<serve>\n", ""))
        self.assertEqual(len(self.calls), 1)

    def test_a_build_that_fails_shows_the_compiler_s_words(self):
        self.install_everything()
        done = self.run_it(BROKEN="1")
        self.assertEqual(done.returncode, 2)
        self.assertIn("main.cpp:1: it is broken", done.stderr)

    def test_tests_are_built_apart_and_arguments_reach_meson(self):
        self.install_everything()
        self.assertEqual(self.run_it("test", "--suite", "unit").returncode, 0)
        self.assertIn("-Dtests=enabled", "".join(self.calls))
        self.assertEqual(self.calls[-1], f"meson test -C {self.root}/build/test --no-rebuild "
                                         "--print-errorlogs --suite unit")

    def test_a_build_directory_that_was_moved_is_made_anew(self):
        self.install_everything()
        self.run_it()
        moved = self.root.with_name("another place")
        self.root.rename(moved)
        self.root, self.bin, self.state = moved, moved / "bin", moved / "state"
        for tool in TOOLS:
            (self.bin / tool).unlink()
        self.install_everything()
        self.assertEqual(self.run_it().returncode, 0)
        self.assertTrue(any(call.startswith("meson setup") for call in self.calls))

    def test_a_directory_that_is_no_build_directory_is_left_alone(self):
        self.install_everything()
        precious = self.root / "mine" / "release" / "precious"
        precious.parent.mkdir(parents=True)
        precious.touch()
        done = self.run_it(SIPMSG_BUILD_DIR=str(self.root / "mine"))
        self.assertEqual(done.returncode, 2)
        self.assertTrue(precious.exists())


PACKAGES = {
    "apt-get": "apt-get install -y --no-install-recommends"
               " g++ meson ninja-build pkg-config python3 libuv1-dev",
    "apk": "apk add g++ meson samurai pkgconf python3 libuv-dev",
    "dnf": "dnf install -y gcc-c++ meson ninja-build pkgconf-pkg-config python3 libuv-devel",
    "pacman": "pacman -S --needed --noconfirm gcc meson ninja pkgconf python libuv",
    "brew": "brew install meson ninja pkgconf python3 libuv",
}

if __name__ == "__main__":
    unittest.main()
