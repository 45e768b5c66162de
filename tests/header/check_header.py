#!/usr/bin/env python3
"""Checks on the header as a whole, with the compiler that stands after the check's name.

    check_header.py parts COMPILER FLAGS...   each part compiles alone; those of the core without
                                              libuv in reach
    check_header.py names COMPILER FLAGS...   nothing leaks: outside namespace sipmsg the header
                                              declares nothing, defines no symbol, and leaves no
                                              macro but its guard and those of config.hpp; and a
                                              file that only includes it compiles to nothing
    check_header.py core COMPILER FLAGS...    the core neither calls nor includes sockets, clocks,
                                              chance, threads, environment or heavy headers

names and core need g++: with another compiler they exit 77, which Meson takes for skipped.
"""
import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PARTS = ROOT / "src/sipmsg"
WITHOUT_LIBUV = f"-I{ROOT / 'tests/header/without_libuv'}"
SHIPPED = f'#include "{ROOT / "include/sipmsg.hpp"}"\n'
KEEP_INLINE = "-fkeep-inline-functions"  # makes g++ compile every function, used or not
NOT_IN_THE_CORE = re.compile(
    r"(uv_\w+|socket|bind|connect|accept4?|send(to|msg|mmsg)?|recv(from|msg|mmsg)?|getaddrinfo"
    r"|(secure_)?getenv|time|clock(_gettime)?|gettimeofday|localtime(_r)?|s?rand(om)?|getrandom"
    r"|pthread_create|\w*system_clock\w*now\w*|\w*steady_clock\w*now\w*|\w*random_device\w*)")

HEADERS_NOT_IN_THE_CORE = {
    "chrono", "random", "thread", "mutex", "condition_variable", "future",  # clock, chance, threads
    "iostream", "fstream", "sstream", "locale", "regex", "filesystem",      # slow to compile
    "sys/socket.h", "netinet/in.h", "arpa/inet.h", "netdb.h", "unistd.h"}   # the system


def run(command, text=""):
    """The command's output; its error output and an exit where it fails."""
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def check_parts(compiler):
    core = (PARTS / "all.hpp").read_text().partition("#ifndef SIPMSG_NO_UV")[0]
    # The compiler may be two words, as "ccache c++" is.
    first_flag = next(i for i, word in enumerate(compiler) if word.startswith("-"))

    def compile_alone(part):
        reach = [WITHOUT_LIBUV] if f'"{part.name}"' in core else []
        return subprocess.run(
            compiler[:first_flag] + reach + compiler[first_flag:] + ["-fsyntax-only", "-x", "c++", "-"],
            input=f'#include "{part}"\n', capture_output=True, text=True)

    parts = sorted(PARTS.glob("*.hpp"))
    with concurrent.futures.ThreadPoolExecutor(int(os.environ.get("JOBS", os.cpu_count()))) as pool:
        results = list(zip(parts, pool.map(compile_alone, parts)))
    for part, done in results:
        if done.returncode != 0 or done.stderr:
            print(f"{part.name}, included alone:\n{done.stderr}")
    return [part.name for part, done in results if done.returncode != 0]


def system_includes(above=False):
    """A file that includes what the header includes (above SIPMSG_NO_UV), and nothing else."""
    text = (ROOT / "include/sipmsg.hpp").read_text()
    if above:
        text = text.partition("#ifndef SIPMSG_NO_UV")[0]
    names = re.findall(r"^\s*#\s*include <(.+)>", text, re.M)
    return "".join(f"#include <{name}>\n" for name in names)


def symbols(compiler, source, *which):
    with tempfile.TemporaryDirectory() as folder:
        made = f"{folder}/all.o"
        run([*compiler, "-O0", "-x", "c++", "-c", "-o", made, "-"], source)
        return {line.split()[-1] for line in run(["nm", *which, made]).splitlines()}


def macros(compiler, source):
    output = run(compiler + ["-dM", "-E", "-x", "c++", "-"], source)
    return set(re.findall(r"^#define (\w+)", output, re.M))


def declared_outside(text):
    """What stands at brace depth 0, but for directives, comments and `namespace sipmsg {}`."""
    text = re.sub(r"\\\n", " ", text)
    raw, comment = r'R"(\w*)\(.*?\)\1"', r"//[^\n]*|/\*.*?\*/"
    string, character = r'"(?:\\.|[^"\\\n])*"', r"(?<!\w)'(?:\\.|[^'\\\n])+'"
    text = re.sub(f"{raw}|{comment}|{string}|{character}", "", text, flags=re.S)
    text = re.sub(r"^\s*#.*$", "", text, flags=re.M)
    depth, outside = 0, ""
    for piece in re.split(r"([{}])", text):
        depth += (piece == "{") - (piece == "}")
        if depth == 0 and piece != "}":
            outside += piece
    return outside.replace("namespace sipmsg", "").split()


def check_names(compiler):
    text = (ROOT / "include/sipmsg.hpp").read_text()
    allowed = macros(compiler, '#include "{}"\n'.format(PARTS / "config.hpp")) | {"SIPMSG_HPP"}
    left = macros(compiler, SHIPPED) - macros(compiler, system_includes()) - allowed
    # A virtual function that is declared without `inline` and defined below its class makes every
    # file that includes the header carry the class; that once doubled the time to compile it.
    unasked = {name for name in symbols(compiler, SHIPPED, "--defined-only") if "6sipmsg" in name}
    unasked = {name for name in unasked if name.startswith("_ZTV")} or unasked
    compiler = [*compiler, KEEP_INLINE]
    defined = symbols(compiler, SHIPPED, "--defined-only")
    # Ours begin with the namespace; the library's templates over our types, with std's.
    ours_or_std = re.compile(r"_Z(GV|GR|T[VITS]|T[hv]n?[\d_n]+_|Z)*(N[KVRO]*)?(6sipmsg|S[tabsiod]|9__gnu_cxx)"
                             r"|_Z(nw|na|dl|da)|\.|DW\.ref|GCC_except_table")
    strange = {name for name in defined - symbols(compiler, system_includes(), "--defined-only")
               if not ours_or_std.match(name)}
    return ([f"macro {name} stays defined after the header" for name in sorted(left)]
            + [f"symbol {name} is outside namespace sipmsg" for name in sorted(strange)]
            + [f"symbol {name} is made although nothing uses it" for name in sorted(unasked)[:9]]
            + [f"'{word}' stands outside namespace sipmsg" for word in declared_outside(text)])


def check_core(compiler):
    compiler = [*compiler, KEEP_INLINE, WITHOUT_LIBUV, "-DSIPMSG_NO_UV"]
    called = symbols(compiler, SHIPPED, "--undefined-only")
    called -= symbols(compiler, system_includes(above=True), "--undefined-only")
    included = set(re.findall(r"<(.+)>", system_includes(above=True)))
    return ([f"the core includes <{name}>" for name in sorted(included & HEADERS_NOT_IN_THE_CORE)]
            + [f"the core calls {name}" for name in sorted(called)
               if NOT_IN_THE_CORE.fullmatch(name)])


def main():
    check, compiler = sys.argv[1], sys.argv[2:]
    if check != "parts" and "__clang__" in macros(compiler, ""):
        sys.exit(77)
    mistakes = {"parts": check_parts, "names": check_names, "core": check_core}[check](compiler)
    sys.exit("\n".join(mistakes) or 0)


if __name__ == "__main__":
    main()
