"""Programs with absl's flags and ml_collections' configs: help, settings, mistakes.

absl's own help lists the flags of its libraries, and its own errors come with a page of
usage; here a mistake is one line with the nearest name, and exit code 2.
"""

import contextlib
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from copymit.config import flatten
from copymit.console import refuse
from copymit.interrupts import heeded
from copymit.project import find_config, use_project
from copymit.spelling import nearest

_HELP = {"-h", "--help", "--helpshort", "--helpfull"}
_LIST = "--list_settings"
_ABOUT_SETTINGS = """\
settings:
  --list_settings
    Print every one with its value and meaning; with --config=..., the values there.
  --list_settings=WORD
    Those alone that have the word in their names or meanings.
  --{flag}.NAME=VALUE
    Change one. Configs are given by name (--config=demo) or path, some with an argument
    (--config=demo:control)."""


def run_program(main: Callable[[list[str]], None], settings: str = "config") -> None:
    """Parses the flags and runs `main`: what train.py and evaluate.py are, and plan.

    Args:
      main: as of `absl.app.run`; its module's text and flags are the help.
      settings: the flag of single settings, `config` or `eval`.
    """
    module = inspect.getmodule(main)
    assert module is not None

    def parse(argv: list[str]) -> list[str]:
        if _HELP & set(argv[1:]):
            print(_help(module, settings))
            sys.exit()
        asked = [word for word in argv if word.partition("=")[0] == _LIST]
        with _one_line(argv):
            words = [_with_config_found(argv, i) for i in range(len(argv))]
            if asked:
                from copymit.cli.meanings import list_settings  # imports jax

                config = _read_config(words)
                section = config if settings == "config" else config[settings]
                word = asked[-1].partition("=")[2]
                print(*list_settings(section, settings, word), sep="\n")
                sys.exit()
            parsed = flags.FLAGS(words)
        if parsed[1:]:
            refuse(f"unexpected arguments: {' '.join(parsed[1:])}")
        return parsed

    with heeded():
        app.run(main, flags_parser=parse)


@contextlib.contextmanager
def refuse_unknown_settings(flag: str, known: Iterable[str]) -> Iterator[None]:
    """Ends the program in one line where `--FLAG.NAME` names a setting that there is not.

    For flags whose settings are read from the command line where they are defined.
    """
    try:
        yield
    except (AttributeError, KeyError):
        _refuse_unknown(sys.argv, flag, known)
        raise
    except flags.Error as error:
        refuse(_one(error))


@contextlib.contextmanager
def _one_line(argv: Sequence[str]) -> Iterator[None]:
    """Ends the program in one line where the flags or the config are wrong."""
    try:
        yield
    except (AttributeError, KeyError):
        for flag in ("config", "eval"):
            _refuse_unknown(argv, flag, flatten(_read_config(argv, overrides=False)))
        raise
    except (flags.Error, ValueError, OSError) as error:
        refuse(_one(error))


def _refuse_unknown(argv: Sequence[str], flag: str, known: Iterable[str]) -> None:
    names = list(known)
    for word in argv:
        match = re.match(rf"--?(?:no)?{flag}\.([^=]+)", word)
        if match and match[1] not in names:
            refuse(
                f"--{flag}.{match[1]}: there is no such setting"
                f"{nearest(match[1], names, f'--{flag}.')} (--list_settings shows all)"
            )


def _one(error: Exception) -> str:
    """Says in one line what is wrong; of a config that raised, what it said itself."""
    if "Error whilst parsing config file" in str(error):
        given = str(error).partition(": Error whilst")[0].removeprefix("flag ")
        while error.__context__ and isinstance(error.__context__, Exception):
            error = error.__context__
        said = str(error)
        if "positional argument" in said:
            said = "this config takes no argument"
        return f"{given}: {said}"
    said = " ".join(str(error).split())
    missing = re.fullmatch(
        r"flag (--\w+)=None: Flag .* a value other than None\.", said
    )
    return f"{missing[1]} is missing" if missing else said


def _with_config_found(argv: Sequence[str], i: int) -> str:
    """Is argument `i`, with the path of a config in place of its name."""
    word = argv[i]
    if i and argv[i - 1] in ("--config", "-config"):
        return _path_of(word)
    flag, equals, given = word.partition("=")
    if equals and flag in ("--config", "-config"):
        return f"{flag}={_path_of(given)}"
    return word


def _path_of(given: str) -> str:
    use_project()  # what config files import
    return find_config(given)


def _read_config(argv: Sequence[str], *, overrides: bool = True) -> dict[str, Any]:
    """Reads the config of a command line, or configs/common.py's, as nested settings."""
    words = [_with_config_found(argv, i) for i in range(len(argv))]
    if not any(re.match("--?config(=|$)", word) for word in words):
        words[1:1] = [f"--config={find_config('common')}"]
        use_project()
    if not overrides:
        words = [word for word in words if not re.match(r"--?(no)?config\.", word)]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=list(words))
    values(words, known_only=True)
    return values.config.to_dict()


def _help(module: ModuleType, settings: str) -> str:
    """Is the text of a program, its flags with their meanings, and where settings are."""
    own = flags.FLAGS.get_key_flags_for_module(module)
    lines = [(module.__doc__ or "").strip(), "", "flags:"]
    for flag in own:
        told = flag.default and not isinstance(flag.default, ConfigDict)
        lines.append(f"  --{flag.name}" + (f"={flag.default}" if told else ""))
        lines += textwrap.wrap(
            flag.help, 88, initial_indent=" " * 4, subsequent_indent=" " * 4
        )
    lines += ["", _ABOUT_SETTINGS.format(flag=settings)]
    return "\n".join(lines)
