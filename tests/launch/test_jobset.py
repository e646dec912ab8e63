"""Following a JobSet, as a person types it (test_sweep.py has it inside a sweep)."""

import json
import os

import pytest

from launch import jobset

WORDS = ["run", "--type=v5litepod-8", "--image=i/i:1"]
COMMAND = ["--", "train.py", "--workdir=gs://bucket/run"]
KUBECTL = """#!/bin/sh
echo "$@" >> {folder}/calls
[ "$2" = get ] && [ -e {folder}/there ] && echo '{state}'
[ "$2" = apply ] && touch {folder}/there
exit 0
"""


@pytest.fixture
def kubectl(tmp_path, monkeypatch):
    """Installs a kubectl whose JobSet has ended well at once; returns its calls."""
    state = json.dumps({"status": {"terminalState": "Completed"}})
    path = tmp_path / "kubectl"
    path.write_text(KUBECTL.format(folder=tmp_path, state=state))
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "calls"


def test_a_namespace_is_understood_in_one_word_and_in_two(kubectl):
    for words in (["--namespace=team"], ["--namespace", "team"]):
        assert jobset.main([*WORDS, *words, *COMMAND], poll_secs=0.01) == 0
    calls = kubectl.read_text().splitlines()
    assert {call.split()[0] for call in calls} == {"--namespace=team"}
    assert [call.split()[1] for call in calls].count("apply") == 1


def test_the_name_may_stand_behind_the_options(kubectl):
    assert jobset.main([*WORDS[1:], WORDS[0], *COMMAND], poll_secs=0.01) == 0
    assert "get jobset run " in kubectl.read_text()


@pytest.mark.parametrize(
    ("flags", "program"), [([], "kubectl"), (["--xpk=my-cluster"], "xpk")]
)
def test_a_missing_program_is_named_with_the_way_to_it(
    kubectl, monkeypatch, flags, program
):
    if program == "kubectl":
        (kubectl.parent / "kubectl").unlink()
    monkeypatch.setenv("PATH", f"{kubectl.parent}{os.pathsep}/nowhere")
    monkeypatch.setattr(jobset, "_HOW_TO_GET", {program: "the way to it"})
    with pytest.raises(FileNotFoundError, match=f"{program} is not on PATH: the way"):
        jobset.main([*WORDS, *flags, *COMMAND], poll_secs=0.01)
