"""The console program: its verbs reach the programs, and cost nothing before."""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner

from copymit.cli import verbs

ROOT = Path(__file__).parents[2]
NAMES = "train evaluate audit prepare caption analyze sweep plan export doctor"
# Help of these reads the registries that it lists; and a doctor looks for jax.
WITH_JAX = ("prepare", "caption", "analyze", "doctor")

HELP = {
    "--help": "doctor",
    "audit --help": "--fail-above",
    "export --help": "--push",
    "train --help": "--list_settings=WORD",
    "evaluate --help": "--eval.NAME=VALUE",
    "plan --help": "--topology",
    "sweep --help": "--num_seeds",
}
MISTAKES = {
    "train --config=dmeo --workdir=x": "there is no config dmeo; did you mean demo?",
    "train --config dmeo --workdir=x": "there is no config dmeo; did you mean demo?",
    "train --config=demo:controll --workdir=x": "did you mean control?",
    "train --config=laion10k:smal --workdir=x": "did you mean small?",
    "train --config=tiny:x --workdir=x": "this config takes no argument",
    "train --config=tiny --workdir=x --config.steps=a": "mean --config.train.steps?",
    "train --config=tiny --workdir=x --config.train.steps=a": "'a'",
    "train --config=tiny --wrkdir=x": "Did you mean: workdir ?",
    "train --config=tiny": "--workdir is missing",
    "train --config=tiny --workdir=x more": "unexpected arguments: more",
    "evaluate --workdir=x --eval.tyles=2": "did you mean --eval.tiles?",
    "evaluate --workdir=x --eval.tiles=two": "'two'",
    "evaluate --workdir=x --config=tiny --config.eval.tyles=2": "config.eval.tiles?",
    "plan --config=configs/tinny.py": "did you mean tiny?",
    "plan": "--config is missing",
}

# One process has a child for each command line; what they all need is imported once.
_REFUSE_JAX = """
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in ("jax", "flax", "torch", "pandas"):
            raise ImportError(f"{name} is not needed for this")

sys.meta_path.insert(0, Refuse())
"""
_IN_CHILDREN = """
from copymit.cli.verbs import main
import copymit.cli.program

said = {}
for line in json.loads(sys.argv[1]):
    with tempfile.TemporaryFile() as file:
        child = os.fork()
        if not child:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.argv = ["copymit", *line.split()]
            main()  # ends in sys.exit
        _, status = os.waitpid(child, 0)
        file.seek(0)
        said[line] = os.waitstatus_to_exitcode(status), file.read().decode()
print(json.dumps(said))
"""


class Said(NamedTuple):
    code: int
    text: str


@pytest.fixture(scope="module")
def answers() -> dict[str, Said]:
    """Command line -> what a process said to it; help in one that has no jax."""
    found = {}
    for lines, first in ((HELP, _REFUSE_JAX), (MISTAKES, "import configs.common\n")):
        code = f"import json, os, sys, tempfile\n{first}{_IN_CHILDREN}"
        command = [sys.executable, "-c", code, json.dumps(list(lines))]
        found |= json.loads(subprocess.check_output(command, cwd=ROOT, text=True))
    return {line: Said(*said) for line, said in found.items()}


def test_help_lists_the_verbs_in_order():
    said = CliRunner().invoke(verbs.copymit, ["--help"]).output
    listed = said.partition("Commands:\n")[2].splitlines()[: len(NAMES.split())]
    assert " ".join(line.split()[0] for line in listed) == NAMES


def test_a_verb_that_there_is_not_is_answered_with_the_one_that_was_meant():
    result = CliRunner().invoke(verbs.copymit, ["trian", "--config=demo"])
    assert result.exit_code == 2
    assert "No such command 'trian'. Did you mean 'train'?" in result.output


def test_completion_knows_the_verbs_and_an_audits_options(monkeypatch):
    monkeypatch.setenv("_COPYMIT_COMPLETE", "bash_complete")

    def complete(line: str) -> list[str]:
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
        said = CliRunner().invoke(verbs.copymit, prog_name="copymit").output
        return [word.rpartition(",")[2] for word in said.split()]

    assert set(complete("copymit a")) == {"audit", "analyze"}
    assert "--fail-above" in complete("copymit audit --f")


@pytest.mark.parametrize("line", HELP)
def test_help_imports_no_jax(line, answers):
    code, said = answers[line]
    assert code == 0, said
    assert HELP[line] in said
    assert f"copymit {line.removesuffix('--help')}".rstrip() in said


@pytest.mark.parametrize("verb", WITH_JAX)
def test_programs_call_themselves_by_their_verb(verb, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["copymit"])  # it is changed
    with pytest.raises(SystemExit) as ended:
        verbs.copymit([verb, "--help"], standalone_mode=False)
    assert ended.value.code == 0
    assert f"usage: copymit {verb}" in capsys.readouterr().out


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line_with_what_was_meant(line, answers):
    code, said = answers[line]
    assert code == 2, said
    (one,) = said.splitlines()
    assert one.startswith("error: ")
    assert MISTAKES[line] in one


def test_settings_are_printed_as_a_config_has_them():
    words = ["--config=demo:control", "--list_settings=duplication_factor"]
    command = [sys.executable, "-m", "copymit", "train", *words]
    said = subprocess.check_output(command, cwd=ROOT, text=True)
    assert said.split()[:3] == ["--config.data.duplication_factor", "=", "1"]
