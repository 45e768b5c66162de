#!/usr/bin/env python3
"""tests/run_example.py: which output passes for which block."""
import pathlib
import subprocess
import sys
import tempfile
import unittest

RUNNER = pathlib.Path(__file__).resolve().parent.parent / "run_example.py"
SOURCE = """\
#include "../include/sipmsg.hpp"  // c++ -std=c++17 010_x.cpp $(pkg-config --libs libuv)

int main() {}

// Expected output:
//     port ...
//       indented
//
//     ...
//     end
"""
PRINTED = "port 5060\n  indented\n\none\ntwo\nend\n"


class RunExample(unittest.TestCase):
    def result(self, printed, source=SOURCE, status=0):
        """What the runner says of a program that prints this and exits so: "" where it passes."""
        with tempfile.TemporaryDirectory() as folder:
            program, example = pathlib.Path(folder, "program"), pathlib.Path(folder, "010_x.cpp")
            program.write_text(f"#!/bin/sh\ncat <<'END'\n{printed}END\nexit {status}\n")
            program.chmod(0o755)
            example.write_text(source)
            done = subprocess.run([sys.executable, RUNNER, program, example, "-"], capture_output=True,
                                  text=True)
        self.assertEqual(done.returncode == 0, done.stderr == "", done.stderr)
        return done.stderr

    def test_output_as_expected_passes(self):
        self.assertEqual(self.result(PRINTED), "")

    def test_dots_alone_on_a_line_stand_for_no_line_too(self):
        self.assertEqual(self.result("port 1\n  indented\n\nend\n"), "")

    def test_a_missing_a_changed_and_a_further_line_fail(self):
        for wrong in (PRINTED.replace("end\n", ""), PRINTED.replace("port", "Port"),
                      PRINTED.replace("  indented", "indented"), PRINTED + "more\n", ""):
            self.assertNotEqual(self.result(wrong), "", wrong)

    def test_a_failing_program_fails(self):
        self.assertIn("exit status 3", self.result(PRINTED, status=3))

    def test_a_file_without_block_or_build_line_fails(self):
        self.assertIn("Expected output", self.result(PRINTED, SOURCE.replace("Expected", "Some")))
        self.assertIn("build line", self.result(PRINTED, SOURCE.replace("010_x.cpp", "020_x.cpp")))


if __name__ == "__main__":
    unittest.main()
