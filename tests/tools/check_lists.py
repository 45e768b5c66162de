#!/usr/bin/env python3
"""Every test, example and benchmark there is stands in a list of meson.build.

A file that nobody listed would never run, and nobody would notice.
"""
import pathlib
import sys

root = pathlib.Path(__file__).resolve().parent.parent.parent
build = (root / "meson.build").read_text()
patterns = ("tests/test_*.cpp", "tests/net_*.cpp", "examples/*.cpp", "bench/*.cpp")
forgotten = [path.relative_to(root) for pattern in patterns for path in sorted(root.glob(pattern))
             if f"'{path.stem}'" not in build]
sys.exit("\n".join(f"{path}: not listed in meson.build" for path in forgotten) or 0)
