#!/usr/bin/env python3
"""Runs one example and compares what it prints with the `// Expected output:` block in its file.

    run_example.py PROGRAM examples/NNN_name.cpp SERVER

The block is the comment lines after `// Expected output:`, without the slashes and their common
indent. In it `...` stands for anything on its line, and a line of `...` alone for any number of
lines (ports and Call-IDs differ from run to run).

An example that serves, or talks to somebody, has a driver: tests/examples/NNN_name.py is run with
the example's program and SERVER, our own `sipmsg`, as its arguments; it starts and ends them, and
prints what the example printed. Either must exit with 0. The file must also show how to build it: a line with `c++ -std=c++17` and its name.
"""
import difflib
import pathlib
import re
import subprocess
import sys
import textwrap

TIMEOUT_S = 30


def expected_output(source):
    """The text of the block, or None where the file has none."""
    lines = source.splitlines()
    if "// Expected output:" not in lines:
        return None
    block = []
    for line in lines[lines.index("// Expected output:") + 1:]:
        if not line.startswith("//"):
            break
        block.append(line[2:])
    return textwrap.dedent("\n".join(block)).strip("\n") + "\n"


def as_pattern(expected):
    pattern = ""
    for line in expected.splitlines():
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += r".*".join(map(re.escape, line.split("..."))) + r"\n"
    return pattern


def check(program, example, server):
    source = example.read_text()
    expected = expected_output(source)
    if expected is None:
        return f"{example.name} has no line `// Expected output:`"
    if not re.search(rf"c\+\+ -std=c\+\+17 .*\b{re.escape(example.name)}", source):
        return f"{example.name} has no build line `c++ -std=c++17 ... {example.name} ...`"
    driver = pathlib.Path(__file__).resolve().parent / "examples" / f"{example.stem}.py"
    command = [sys.executable, driver, program, server] if driver.exists() else [program]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as late:
        return f"still running after {TIMEOUT_S} s; until then it printed:\n{late.stdout}"
    if done.returncode != 0:
        return f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    if not re.fullmatch(as_pattern(expected), done.stdout):
        difference = difflib.unified_diff(expected.splitlines(), done.stdout.splitlines(),
                                          f"expected by {example.name}", "printed", lineterm="")
        return "\n".join(difference) + "\n" + done.stderr
    return None


if __name__ == "__main__":
    program, example, server = map(pathlib.Path, sys.argv[1:])
    sys.exit(check(program.resolve(), example, server.resolve()))
