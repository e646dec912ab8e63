"""A cloud in a folder for the tests of launch.tpu: the fake gcloud and its state."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from launch import tpu

ZONE = "us-west4-a"
TRAIN = """
import os, signal, sys, time
from pathlib import Path
workdir = next(w for w in sys.argv if w.startswith("--workdir=gs://"))
folder = Path(os.environ["BUCKETS"], workdir.split("gs://")[1])
folder.mkdir(parents=True, exist_ok=True)
steps = folder / "steps"
# As the real one: a checkpoint, and the exit code of a run that was told to end.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143 + bool(print("saved"))))
first = os.environ["HOSTNAME"].endswith(("node-w-0", "run-w-0", "run-0-w-0"))
print("--distributed" in sys.argv, os.environ.get("HF_TOKEN", "no token"), flush=True)
done = len(steps.read_text().split()) if steps.exists() else 0
# In its first life it waits in the middle, for what a test has in store for it.
middle = folder / "middle"
first_life = "WAIT_AT" in os.environ and not middle.exists()
for step in range(done, int(os.environ.get("STEPS", 5))):
    if first_life and step == int(os.environ["WAIT_AT"]):
        if first:
            middle.touch()
        while True:
            time.sleep(0.05)
    if first:
        with open(steps, "a") as file:
            file.write(f"{step} ")
    print("step", step, flush=True)
    time.sleep(float(os.environ.get("SECS", 0.02)))
sys.exit(int(os.environ.get("CODE", 0)))
"""
# One script is the python of a host, makes environments and is the python inside them.
PYTHON = """#!/bin/sh
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; exit 0; fi
if [ "$1 $2" = "-m pip" ]; then echo "$@" >> "$HOME/pip.txt"; exit ${PIP_CODE:-0}; fi
exec {python} ${FAKE_PYTHON_FLAGS--S} "$@"
"""


class FakeCloud:
    """The folder, with what a test asks of it and lets go wrong."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project = folder / "project"
        (folder / "bin").mkdir()
        python = PYTHON.replace("{python}", shlex.quote(sys.executable))
        for name in ("python3", "python3.11", "python3.12", "python3.13"):
            self._program(name, python)
        fake = Path(__file__).with_name("fake_gcloud.py")
        # PATH for the calls holds gcloud alone: hosts have no gcloud of their own.
        self.path = folder / "path"
        self.path.mkdir()
        (self.path / "gcloud").write_text(
            f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -I -S {fake} "$@"\n'
        )
        (self.path / "gcloud").chmod(0o755)
        self.set(requests={}, faults=[], hosts=2, buckets=["bucket"], environment={})
        self.set(environment={"BUCKETS": str(folder / "buckets")})

    def _program(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(text)
        path.chmod(0o755)

    def make_project(self) -> None:
        """A checkout with a train.py that counts."""
        self.project.mkdir()
        for name, text in {
            "train.py": TRAIN,
            "setup.cfg": "[metadata]\nname = small\n",
            "constraints.txt": "",
        }.items():
            (self.project / name).write_text(text)
        self.git("init", "-q")
        self.git("add", "--", ".")
        (self.project / "notes.py").write_text("TOKEN = 'not tracked'\n")

    def git(self, *words: str) -> None:
        subprocess.run(["git", "-C", self.project, *words], check=True)

    @property
    def state(self) -> dict:
        return json.loads((self.folder / "state.json").read_text())

    def set(self, **values) -> None:
        path = self.folder / "state.json"
        old = self.state if path.exists() else {}
        path.write_text(json.dumps({**old, **values}))

    def environment(self, **values) -> None:
        self.set(environment={**self.state["environment"], **values})

    def fail(self, verb: str, **fault) -> None:
        """Lets a later call of this verb go wrong (see fake_gcloud.py)."""
        long = {"objects": "objects list", "node": "tpu-vm describe"}
        verb = long.get(verb, f"queued-resources {verb}")
        self.set(faults=[*self.state["faults"], {"verb": verb, **fault}])

    def calls(self, verb: str = "") -> list[list[str]]:
        path = self.folder / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines]
        return [words for words in found if not verb or verb in words]

    def host(self, index: int = 0, node: str = "run") -> Path:
        return self.folder / "hosts" / f"{node}-w-{index}"

    def steps(self) -> list[int]:
        """What the train.py of the small project has done, over all its lives."""
        text = (self.folder / "buckets" / "bucket" / "x" / "steps").read_text()
        return [int(word) for word in text.split()]

    def do(self, verb: str, *words: str) -> int:
        """Runs a verb of launch.tpu on the slice `run`."""
        pace = ["--poll-secs=0.05"]
        kind = ["--type=v5litepod-8"] if verb in ("create", "run") else []
        return tpu.main([verb, "run", f"--zone={ZONE}", *pace, *kind, *words])

    def train(self, *words: str) -> int:
        command = ["train.py", "--workdir=gs://bucket/x"]
        return self.do("run", *words, "--", *command)

    @property
    def middle(self) -> Path:
        """A file that appears when the first life of a run waits at step WAIT_AT."""
        return self.folder / "buckets" / "bucket" / "x" / "middle"

    def processes(self) -> list[int]:
        notes = (self.folder / "hosts").glob("*/copymit-*/runs/*/process")
        numbers = [int(note.read_text().split()[0]) for note in notes]
        return [n for n in numbers if Path(f"/proc/{n}").exists() and not _zombie(n)]

    def end(self) -> None:
        for number in self.processes():
            os.killpg(number, signal.SIGKILL)


def _zombie(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().split(") ")[1][0] == "Z"
    except OSError:
        return True
