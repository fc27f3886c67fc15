"""Compile the agent's fuzzers with sanitizers and run them: `make fuzz`.

    python native/fuzz.py [--seconds N]

Each `native/agent/fuzz/fuzz_*.c` is a program of its own: it is linked with the files that its
line `Links:` names, the fuzzer's and the agent's, called with the seconds it may run, and ends with
something other than 0 at the first fault. clang or gcc give it the address and the
undefined-behaviour sanitizer; where neither is installed, zig gives the latter alone, since it
carries no runtime for the former.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from build import ROOT, BuildError, host_arch, zig

AGENT = ROOT / "native" / "agent"
OUTPUT = ROOT / "build" / "fuzz"
FLAGS = ["-std=c11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fno-omit-frame-pointer"]
ALL = "-fsanitize=address,undefined"
UNDEFINED = "-fsanitize=undefined"


def linked_files(source: Path) -> list[str]:
    """What the first comment says the fuzzer is made of, besides itself."""
    line = re.search(r"^ \* Links: (.+)$", source.read_text(), re.M)
    if line is None:
        raise BuildError(f"{source}: no line `Links:` in its first comment")
    return [str(AGENT / name) for name in line[1].split()]


def compile_fuzzer(source: Path) -> Path:
    """Compile one fuzzer with the best sanitizers that this machine has."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    program = OUTPUT / source.stem
    rest = ["-I", str(AGENT), "-o", str(program), str(source), *linked_files(source)]
    compiler = shutil.which("clang") or shutil.which("gcc")
    if compiler is None:
        zig(["cc", "-target", f"{host_arch()}-linux-musl", *FLAGS, UNDEFINED, *rest])
        return program
    command = [compiler, *FLAGS, ALL, "-fno-sanitize-recover=all", *rest]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{done.stderr}".rstrip())
    return program


def run_fuzzer(program: Path, seconds: int) -> bool:
    """Run one fuzzer, and say whether it found nothing."""
    print(f"==> {program.name}, {seconds} s", flush=True)
    environment = {**os.environ, "ASAN_OPTIONS": "abort_on_error=1"}
    return subprocess.run([program, str(seconds)], env=environment, check=False).returncode == 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Fuzz the guest agent.")
    parser.add_argument("--seconds", type=int, default=60, help="how long each may run")
    seconds = parser.parse_args().seconds
    sources = sorted((AGENT / "fuzz").glob("fuzz_*.c"))
    if not sources:
        print(f"{AGENT / 'fuzz'} holds no fuzz_*.c", file=sys.stderr)
        return 1
    try:
        programs = [compile_fuzzer(source) for source in sources]
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    failed = [program.name for program in programs if not run_fuzzer(program, seconds)]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
