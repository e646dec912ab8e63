"""Dry-runs every extra with its pins, on every Python that is supported.

    make check-extras    resolves each of them; nothing is installed
    make constraints     brings the pins up to what setup.cfg asks for

An extra's pins are in constraints-EXTRA.txt where it cannot live beside the rest and has
an environment of its own, else in constraints.txt, for copymit with all other extras.
uv resolves also for Pythons that are not on this machine.
"""

import configparser
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
_PINNED = re.compile(r"^([\w.-]+)==", re.MULTILINE)
# Of an environment of its own, whose tests run there.
_OWN = ["pytest"]


class Unreachable(Exception):
    """The package index does not answer, so nothing is known."""


def read_extras(root: Path = ROOT) -> dict[str, tuple[list[str], Path]]:
    """Maps each extra, and "" for none, to what is installed and its pins."""
    config = configparser.ConfigParser()
    config.read(root / "setup.cfg")
    base = config["options"]["install_requires"].split("\n")[1:]
    extras = {"": (base, root / "constraints.txt")}
    for name, lines in config["options.extras_require"].items():
        own = root / f"constraints-{name}.txt"
        beside = _OWN if own.exists() else base
        pins = own if own.exists() else root / "constraints.txt"
        extras[name] = ([*beside, *lines.split("\n")[1:]], pins)
    return extras


def find_problem(requirements: Iterable[str], pins: Path, python: str) -> str:
    """Resolves requirements with pins; returns what is wrong, or "".

    Raises:
      Unreachable: the index does not answer.
    """
    arguments = ["--python-version", python, "--constraints", str(pins), "-"]
    code, resolved, messages = _compile(requirements, arguments)
    if code:
        return messages
    if "does not have an extra" in messages:  # to uv a warning
        return messages
    known = _pinned(pins.read_text())
    loose = [name for name in _pinned(resolved) if name not in known]
    return f"{pins.name} does not pin {', '.join(loose)}" if loose else ""


def write_pins(requirements: Iterable[str], pins: Path) -> None:
    """Pins everything that the requirements resolve to; pins that still hold stay."""
    arguments = ["--universal", "--python-version", PYTHONS[0], "-o", str(pins), "-"]
    code, _, messages = _compile(requirements, arguments)
    if code:
        sys.exit(messages)
    about = f"# The versions that are tested together: pip install -c {pins.name} ...\n"
    pins.write_text(f"{about}# Written by `make constraints`.\n{pins.read_text()}")


def _pinned(text: str) -> list[str]:
    return [name.lower().replace("_", "-") for name in _PINNED.findall(text)]


def _compile(requirements: Iterable[str], arguments: list[str]) -> tuple[int, str, str]:
    uv = Path(sysconfig.get_path("scripts")) / "uv"
    options = ["--no-header", "--no-annotate", "--no-python-downloads"]
    done = subprocess.run(
        [uv, "pip", "compile", *options, *arguments],
        input="\n".join(requirements),
        capture_output=True,
        text=True,
    )
    if done.returncode and "Failed to fetch" in done.stderr:
        raise Unreachable(done.stderr.strip())
    return done.returncode, done.stdout, done.stderr.strip()


def main() -> int:
    """Checks all extras; returns 1 if one cannot be installed, or is not pinned."""
    extras = read_extras()
    if sys.argv[1:] == ["--write"]:
        for pins in {pins for _, pins in extras.values()}:
            together = [r for reqs, of in extras.values() if of == pins for r in reqs]
            write_pins(together, pins)
        return 0
    cases = [(name, python) for python in PYTHONS for name in extras]
    with ThreadPoolExecutor(4) as pool:
        checks = [pool.submit(find_problem, *extras[n], python) for n, python in cases]
    try:
        problems = [check.result() for check in checks]
    except Unreachable as error:
        print(f"{error}\n\nEXTRAS WERE NOT CHECKED: the package index does not answer.")
        return 0
    for (name, python), problem in zip(cases, problems, strict=True):
        if problem:
            print(f"copymit[{name}] on Python {python}:\n{problem}\n")
    wrong = sum(map(bool, problems))
    print(f"{len(cases) - wrong} of {len(cases)} installations resolve with their pins")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
