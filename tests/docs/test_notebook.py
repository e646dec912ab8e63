"""The notebook is one, its code is Python, and what it starts there are such flags."""

import json
import re
import shlex

import click
import pytest

from copymit.cli.verbs import VERBS, Program
from tests.docs.pages import DOCS, ROOT

NOTEBOOK = json.loads((DOCS / "copymit.ipynb").read_text())
CODE = ["".join(c["source"]) for c in NOTEBOOK["cells"] if c["cell_type"] == "code"]
COMMANDS = [
    line.removeprefix("!copymit ")
    for cell in CODE
    for line in cell.splitlines()
    if line.startswith("!copymit ")
]


def test_it_is_a_notebook_without_results():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in NOTEBOOK["cells"]:
        assert cell["metadata"] == {}
        assert all(line.endswith("\n") for line in cell["source"][:-1])
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
        else:
            assert cell.keys() == {"cell_type", "id", "metadata", "source"}


def test_its_cells_are_python_but_for_commands():
    names: set[str] = set()
    for cell in CODE:
        python = re.sub(r"^[!%].*$", "pass", cell, flags=re.MULTILINE)
        names |= set(compile(python, "cell", "exec").co_names)
    used = {name for line in COMMANDS for name in re.findall(r"\{(\w+)\}", line)}
    assert used
    assert used <= names


@pytest.mark.parametrize("line", COMMANDS)
def test_its_commands_are_known_to_the_programs(line):
    verb, *words = shlex.split(line)
    program = VERBS[verb]
    if isinstance(program, click.Command):
        program.make_context(verb, words)  # raises for what it does not know
        return
    for word in words:
        flag, equals, _ = word.partition("=")
        assert equals
        assert f'"{flag.removeprefix("--")}"' in _source(program)
        if flag == "--config":
            assert (ROOT / "configs" / f"{word.partition('=')[2]}.py").exists()


def _source(program: Program) -> str:
    module = program.entry.partition(":")[0]
    return (ROOT / f"{module.replace('.', '/')}.py").read_text()


def test_it_shows_an_audit_and_a_demo():
    assert {line.split()[0] for line in COMMANDS} >= {"train", "evaluate", "audit"}
