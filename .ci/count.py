"""Adds up what the steps of .ci/run passed and failed, and prints the line that ends it.

A step counts as one. But where it ends with a count of its own, that is taken; where it ran Meson's
tests, each of those counts; and where a test is a doctest program, each of its cases. Exits 1 where
anything failed, or where a doctest program ran no case.
"""
import json
import pathlib
import re
import sys

CASES = re.compile(r"\[doctest\] test cases: *(\d+) *\| *(\d+) passed *\| *(\d+) failed")
OWN_COUNT = re.compile(r"^(\d+) passed, (\d+) failed\n*\Z", re.M)


def count_test(record):
    """What one test of Meson's passed and failed."""
    well = record["result"] in ("OK", "EXPECTEDFAIL")
    cases = CASES.search(record.get("stdout") or "")
    if record["result"] == "SKIP":
        return 0, 0
    if not cases:
        return int(well), int(not well)
    ran, passed, failed = map(int, cases.groups())
    if ran == 0 or (not well and failed == 0):  # it ran nothing, or crashed after its last case
        failed += 1
    return passed, failed


def count_step(status_file):
    failed_step = status_file.read_text().strip() != "0"
    records = status_file.with_suffix(".tests")
    if not records.exists():
        own = OWN_COUNT.search(status_file.with_suffix(".log").read_text(errors="replace"))
        passed, failed = map(int, own.groups()) if own else (int(not failed_step), 0)
        return passed, failed or int(failed_step)
    counts = [count_test(json.loads(line)) for line in records.read_text().splitlines()]
    passed, failed = (sum(column) for column in zip(*counts))
    return passed, failed or int(failed_step)


steps = [count_step(path) for path in sorted(pathlib.Path(sys.argv[1]).glob("*.status"))]
passed, failed = (sum(column) for column in zip(*steps))
print(f"{passed} passed, {failed} failed")
sys.exit(1 if failed else 0)
