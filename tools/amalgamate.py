#!/usr/bin/env python3
"""Joins the parts in src/sipmsg into include/sipmsg.hpp.

    tools/amalgamate.py             writes the header
    tools/amalgamate.py --check     exits 1 where the header is stale
    tools/amalgamate.py --version   prints the version, which config.hpp alone states

src/sipmsg/all.hpp is the manifest: one include per part, in order. The includes inside the parts
go: those of other parts because all stand in one file, those of the standard library because they
are gathered at the top (libuv's below the line that SIPMSG_NO_UV draws). The order is the layering,
so a part that includes a later one is refused, and so is <uv.h> above that line.
"""
import argparse
import pathlib
import re
import sys

PART = re.compile(r'\s*#\s*include\s*"(.+?)"(?:\s*//\s*(.*))?')
SYSTEM = re.compile(r"\s*#\s*include\s*<(.+?)>")

HEAD = """\
// sipmsg {version}: SIP MESSAGE (RFC 3428) in one C++17 header, on one libuv loop.
//
// SPDX-License-Identifier: MIT
// {copyright}
// The licence stands at the end of this file; keep it there when you copy the file.
//
// To use it, put this file beside yours, write #include "sipmsg.hpp", and build with
//
//     c++ -std=c++17 -O2 yours.cpp $(pkg-config --cflags --libs libuv)
//
// With -DSIPMSG_NO_UV it ends before {first_with_uv} and needs the standard library only.
//
// generated: edit src/sipmsg and run tools/amalgamate.py. The parts, in the order of this file:
//
{contents}
#ifndef SIPMSG_HPP
#define SIPMSG_HPP
"""


class Refused(Exception):
    pass


def read(path):
    return path.read_text(encoding="utf-8")


def read_version(folder):
    config = read(folder / "config.hpp")
    version = re.search(r'#define SIPMSG_VERSION "(.+)"', config)[1]
    numbers = re.findall(r"#define SIPMSG_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", config)
    if ".".join(numbers) != version:
        raise Refused(f"config.hpp: SIPMSG_VERSION {version} differs from its three numbers")
    return version


def read_manifest(folder):
    """The parts in order, as (file name, what it owns, whether it may use libuv)."""
    parts, below = [], False
    for number, line in enumerate(read(folder / "all.hpp").splitlines(), 1):
        if match := PART.match(line):
            parts.append((match[1], match[2] or "", below))
        elif line.startswith(("#ifndef SIPMSG_NO_UV", "#endif")):
            below = line.startswith("#ifndef")
        elif line and not line.startswith(("//", "#pragma once")):
            raise Refused(f"all.hpp:{number}: neither an include, nor SIPMSG_NO_UV, nor a comment")
    listed, there = {part[0] for part in parts}, {path.name for path in folder.glob("*.hpp")}
    for name in sorted(there - listed - {"all.hpp"}):
        raise Refused(f"{name}: not listed in all.hpp")
    for name in sorted(listed - there):
        raise Refused(f"all.hpp: lists {name}, which does not exist")
    return parts


def read_part(folder, name, below, earlier, system):
    """The part without its includes; those of the library are added to the set `system`."""
    lines, depth = [], 0
    for number, line in enumerate(read(folder / name).splitlines(), 1):
        where = f"{name}:{number}"
        if match := PART.match(line):
            if match[1] not in earlier:
                raise Refused(f"{where}: includes {match[1]}, which is not above it in all.hpp")
            continue
        if match := SYSTEM.match(line):
            if match[1].startswith("uv") and not below:
                raise Refused(f"{where}: includes <{match[1]}> above the line of SIPMSG_NO_UV")
            if depth == 0:  # an include under an #if stays where it is
                system.add(match[1])
                continue
        depth += bool(re.match(r"\s*#\s*if", line)) - bool(re.match(r"\s*#\s*endif", line))
        if not line.startswith("#pragma once"):
            lines.append(line)
    body = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")
    return f"// {' ' + name + ' ':=^96}\n\n{body}\n"


def amalgamate(root):
    folder, licence = root / "src/sipmsg", read(root / "LICENSE")
    parts = read_manifest(folder)
    bodies, system, earlier = {False: [], True: []}, {False: set(), True: set()}, set()
    for name, _, below in parts:
        bodies[below].append(read_part(folder, name, below, earlier, system[below]))
        earlier.add(name)
    contents = "".join(f"//   {name:<17} {owns}".rstrip() + "\n" for name, owns, _ in parts)
    pieces = [HEAD.format(version=read_version(folder), contents=contents,
                          copyright=re.search("Copyright.*", licence)[0],
                          first_with_uv=next(name for name, _, below in parts if below))]
    for below in (False, True):
        if below:
            pieces.append("#ifndef SIPMSG_NO_UV  // from here on with libuv\n")
        names = sorted(system[below] - (system[False] if below else set()))
        pieces.append("".join(f"#include <{name}>\n" for name in names))
        pieces += bodies[below]
    pieces.append("#endif  // SIPMSG_NO_UV\n\n#endif  // SIPMSG_HPP\n")
    pieces.append("".join(f"// {line}".rstrip() + "\n" for line in licence.splitlines()))
    return "\n".join(pieces)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 where the header is stale")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("--root", type=pathlib.Path, help="the repository, instead of this one",
                        default=pathlib.Path(__file__).resolve().parent.parent)
    options = parser.parse_args()
    try:
        if options.version:
            print(read_version(options.root / "src/sipmsg"))
            return
        text = amalgamate(options.root).encode()
    except (Refused, OSError) as error:
        sys.exit(f"amalgamate: {error}")
    header = options.root / "include/sipmsg.hpp"
    fresh = header.exists() and header.read_bytes() == text
    if options.check and not fresh:
        sys.exit("amalgamate: include/sipmsg.hpp is stale; run tools/amalgamate.py")
    if not fresh:
        header.write_bytes(text)


if __name__ == "__main__":
    main()
