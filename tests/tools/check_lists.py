#!/usr/bin/env python3
"""Every source, test, example and benchmark there is stands in a list of a meson.build.

A file that nobody listed would never be built or run, and nobody would notice.
"""
import pathlib
import sys

root = pathlib.Path(__file__).resolve().parent.parent.parent
builds = [root / "meson.build", root / "src/modules/meson.build", root / "tests/modules/meson.build"]
build = "".join(path.read_text() for path in builds)
patterns = ("src/program/*.cpp", "src/modules/**/*.cpp", "tests/test_*.cpp", "tests/net_*.cpp",
            "tests/modules/*.cpp", "tests/program/test_*.py", "examples/*.cpp", "bench/*.cpp", "fuzz/*.cpp")


def is_listed(path):
    name = path.stem.removeprefix("test_") if path.suffix == ".py" else path.stem
    return any(f"{before}{name}{after}" in build for before in "'/" for after in ("'", ".cpp'"))


forgotten = [path.relative_to(root) for pattern in patterns for path in sorted(root.glob(pattern))
             if not is_listed(path)]
sys.exit("\n".join(f"{path}: not listed in a meson.build" for path in forgotten) or 0)
