"""Every setting with its meaning: the comment that stands beside it where it is set.

configs/common.py, copymit/settings.py and the records of mitigations are the only home of
defaults and meanings; here they are read, for `--list_settings` and the documentation.
"""

import ast
import importlib
import inspect
import io
import textwrap
import tokenize
from collections.abc import Callable, Iterator
from typing import Any

from copymit.config import flatten
from copymit.mitigation.registry import SETTINGS
from copymit.project import use_project
from copymit.settings import evaluation_settings, training_settings
from copymit.spelling import nearest

_NAME_WIDTH = 52
_APPLY = "names of mitigations, each with a strength or else its paper's"


def meanings() -> dict[str, str]:
    """Maps the dotted name of every setting to what it means."""
    use_project()
    common = importlib.import_module("configs.common")
    found = comments_of(common.get_config)
    for section, function in (
        ("train", training_settings),
        ("eval", evaluation_settings),
    ):
        found |= {f"{section}.{k}": v for k, v in comments_of(function).items()}
    found |= {f"mitigation.{s.path}": s.meaning for s in SETTINGS.values()}
    found["mitigation.apply"] = _APPLY
    return {name: _of(name, found) for name in flatten(common.get_config().to_dict())}


def _of(name: str, found: dict[str, str]) -> str:
    """Is the comment of a setting, else that of the nearest section around it."""
    while name and not found.get(name):
        name = name.rpartition(".")[0]
    return found.get(name, "")


def comments_of(function: Callable[[], Any]) -> dict[str, str]:
    """Reads the comments of the settings that a function assigns.

    A comment is on the lines of the assignment, or on lines of its own right above.

    Returns:
      {dotted name: comment}, also of sections; "" where there is none.
    """
    source = textwrap.dedent(inspect.getsource(function))
    comments = {
        token.start[0]: (
            token.string.lstrip("# "),
            not token.line[: token.start[1]].strip(),
        )
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    (body,) = (n.body for n in ast.parse(source).body if isinstance(n, ast.FunctionDef))
    sections: dict[str, str] = {}  # what the function calls them: their dotted names
    found: dict[str, str] = {}
    for node in body:
        if not isinstance(node, ast.Assign):
            continue
        dotted = [d for d in (_dotted(t, sections) for t in node.targets) if d]
        for target in node.targets:
            if isinstance(target, ast.Name):
                sections[target.id] = dotted[0] if dotted else ""
        first, last = node.lineno, node.end_lineno or node.lineno
        while comments.get(first - 1, ("", False))[1]:
            first -= 1
        lines = (
            comments[line][0] for line in range(first, last + 1) if line in comments
        )
        found |= dict.fromkeys(dotted[:1], " ".join(lines))
    return found


def _dotted(target: ast.expr, sections: dict[str, str]) -> str:
    """Writes `model.unet.remat` of the target `model.unet.remat`, or "" of a name."""
    path = ast.unparse(target).split(".")
    if len(path) == 1 or path[0] not in sections:
        return ""
    return ".".join(part for part in (sections[path[0]], *path[1:]) if part)


def list_settings(settings: dict[str, Any], flag: str, word: str = "") -> Iterator[str]:
    """Yields a line for each setting, `--config.NAME = VALUE   meaning`.

    Args:
      settings: nested, as the program would use them.
      flag: `config`, or `eval` for the settings of that section.
      word: only settings that have it in their names or meanings, whatever its case.
    Raises:
      ValueError: for a word that no setting has.
    """
    known, section = meanings(), "" if flag == "config" else f"{flag}."
    flat = flatten(settings)
    rows = [
        (f"--{flag}.{name} = {value!r}", known.get(section + name, ""))
        for name, value in flat.items()
        if word.lower() in f"{name} {known.get(section + name, '')}".lower()
    ]
    if not rows:
        raise ValueError(
            f"--list_settings={word}: no setting has it in its name or meaning"
            f"{nearest(word, flat)}"
        )
    for setting, meaning in rows:
        apart = 1 if len(setting) >= _NAME_WIDTH else _NAME_WIDTH - len(setting)
        yield (setting + " " * apart + meaning).rstrip()
