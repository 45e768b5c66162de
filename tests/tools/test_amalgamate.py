#!/usr/bin/env python3
"""tools/amalgamate.py on small trees made for the purpose: what it writes and what it refuses."""
import pathlib
import subprocess
import sys
import tempfile
import unittest

TOOL = pathlib.Path(__file__).resolve().parent.parent.parent / "tools/amalgamate.py"

CONFIG = """\
// config: the version
#pragma once
#define SIPMSG_VERSION_MAJOR 1
#define SIPMSG_VERSION_MINOR 2
#define SIPMSG_VERSION_PATCH 3
#define SIPMSG_VERSION "1.2.3"
"""
TREE = {
    "LICENSE": "MIT License\n\nCopyright (c) 2026 somebody\n\nPermission is granted.\n",
    "src/sipmsg/config.hpp": CONFIG,
    "src/sipmsg/text.hpp": '// text: words\n#pragma once\n\n#include <string>\n\n'
                           '#include "config.hpp"\n\nint text();\n',
    "src/sipmsg/loop.hpp": '#pragma once\n#include <uv.h>\n\n#include <string>\n#ifdef _WIN32\n'
                           '#include <io.h>\n#endif\n#include "text.hpp"\nint loop();\n',
    "src/sipmsg/all.hpp": '// all\n#pragma once\n#include "config.hpp"  // the version\n'
                          '#include "text.hpp"  // words\n#ifndef SIPMSG_NO_UV\n'
                          '#include "loop.hpp"  // waits\n#endif\n',
    "include/sipmsg.hpp": "",
}


class Amalgamate(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        for name, text in TREE.items():
            self.write(name, text)

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def edit(self, name, old, new):
        self.assertIn(old, TREE[name])
        self.write(name, TREE[name].replace(old, new))

    def amalgamate(self, *options):
        return subprocess.run([sys.executable, TOOL, "--root", self.root, *options],
                              capture_output=True, text=True)

    def header(self):
        self.assertEqual(self.amalgamate().stderr, "")
        return (self.root / "include/sipmsg.hpp").read_bytes().decode()

    def assert_refused(self, *words):
        before = (self.root / "include/sipmsg.hpp").read_bytes()
        done = self.amalgamate()
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertEqual(before, (self.root / "include/sipmsg.hpp").read_bytes())
        for word in words:
            self.assertIn(word, done.stderr)

    def test_parts_stand_in_the_order_of_the_manifest(self):
        header = self.header()
        places = [header.index(text) for text in ("_VERSION_MAJOR", "int text();", "int loop();")]
        self.assertEqual(places, sorted(places))

    def test_inner_includes_go_and_system_includes_stand_once_at_the_top(self):
        header = self.header()
        self.assertNotIn('#include "', header.partition("#define SIPMSG_HPP")[2])
        self.assertNotIn("#pragma once", header)
        self.assertEqual(header.count("#include <string>"), 1)
        self.assertLess(header.index("#include <string>"), header.index("= config.hpp ="))

    def test_an_include_under_a_condition_stays_where_it_is(self):
        self.assertIn("#ifdef _WIN32\n#include <io.h>\n#endif\n", self.header())

    def test_libuv_stands_inside_the_guard_only(self):
        above, inside = self.header().split("#ifndef SIPMSG_NO_UV", 1)
        self.assertNotIn("<uv.h>", above)
        self.assertIn("#include <uv.h>", inside)
        self.assertLess(inside.index("int loop();"), inside.index("#endif  // SIPMSG_NO_UV"))

    def test_the_head_says_version_licence_and_contents(self):
        head = self.header().partition("#ifndef SIPMSG_HPP")[0]
        for text in ("sipmsg 1.2.3", "SPDX-License-Identifier: MIT", "(c) 2026 somebody",
                     "c++ -std=", "text.hpp          words"):
            self.assertIn(text, head)

    def test_the_header_holds_no_path_and_no_carriage_return(self):
        header = self.header()
        self.assertNotIn(str(self.root), header)
        self.assertNotIn("\r", header)

    def test_check_passes_a_fresh_header_and_fails_a_stale_one(self):
        self.assertEqual(self.amalgamate("--check").returncode, 1)
        self.header()
        self.assertEqual(self.amalgamate("--check").returncode, 0)
        self.edit("src/sipmsg/text.hpp", "int text();", "long text();")
        done = self.amalgamate("--check")
        self.assertEqual(done.returncode, 1)
        self.assertIn("stale", done.stderr)

    def test_the_version_comes_from_config_alone(self):
        self.assertEqual(self.amalgamate("--version").stdout, "1.2.3\n")
        self.edit("src/sipmsg/config.hpp", '"1.2.3"', '"1.2.4"')
        self.assert_refused("1.2.4", "three numbers")

    def test_an_include_of_a_later_part_is_refused(self):
        self.edit("src/sipmsg/text.hpp", "config.hpp", "loop.hpp")
        self.assert_refused("text.hpp:6", "loop.hpp")

    def test_an_include_of_the_part_itself_is_refused(self):
        self.edit("src/sipmsg/text.hpp", "config.hpp", "text.hpp")
        self.assert_refused("text.hpp:6")

    def test_a_part_that_the_manifest_does_not_list_is_refused(self):
        self.write("src/sipmsg/stray.hpp", "")
        self.assert_refused("stray.hpp", "not listed")

    def test_a_listed_part_that_does_not_exist_is_refused(self):
        (self.root / "src/sipmsg/loop.hpp").unlink()
        self.assert_refused("loop.hpp", "does not exist")

    def test_libuv_above_the_line_is_refused_even_under_a_condition(self):
        for include in ("#include <uv.h>", "#if 1\n#  include <uv/errno.h>\n#endif"):
            self.edit("src/sipmsg/text.hpp", "#include <string>", include)
            self.assert_refused("text.hpp:", "SIPMSG_NO_UV")

    def test_code_in_the_manifest_is_refused(self):
        self.edit("src/sipmsg/all.hpp", "// all\n", "// all\nint x;\n")
        self.assert_refused("all.hpp:2")


if __name__ == "__main__":
    unittest.main()
