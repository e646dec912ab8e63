"""The command of a run: what a person types, made fit for every host.

Enters: words such as `train.py --config=... --workdir=gs://...`. Leaves: the words that
each host starts, the same on all of them, with nothing secret inside.
"""

import hashlib
import json
import re
from collections.abc import Sequence

PROGRAMS = ("train.py", "evaluate.py")
# Command lines are seen by every user of a host and are kept in logs.
_SECRET = re.compile(
    r"(api|access|secret|private|auth|hf|wandb)[-_]?(key|token)|password|passwd"
    r"|(^|[-_.])(token|secret|credentials)=|\bhf_[A-Za-z0-9]{20,}|\bya29\.",
    re.IGNORECASE,
)


def command_of_hosts(words: Sequence[str]) -> list[str]:
    """Returns the command that every host of a slice starts.

    `train.py` and `evaluate.py` get the interpreter before them and `--distributed`
    behind them: on Cloud TPU, jax then finds the other hosts by itself. Every other
    command is left as it is (`python` is the one of the run's own environment).

    Raises:
        ValueError: if there is no command, or something secret in it.
    """
    words = list(words)
    if not words:
        raise ValueError(
            "no command: put it behind --, as in "
            "run NAME ... -- train.py --config=... --workdir=gs://..."
        )
    for word in words:
        if _SECRET.search(word):
            shown = re.split("[=:]", word)[0]
            raise ValueError(
                f"{shown}...: looks like a secret, and command lines are seen by others "
                "and kept in logs; put it into a file and give --env-file"
            )
        if "\n" in word or "\0" in word:
            raise ValueError(f"a line break in the command: {word!r}")
    if words[0] not in PROGRAMS:
        return words
    joined = any(w.startswith(("--distributed", "--coordinator")) for w in words)
    return ["python", *words, *([] if joined else ["--distributed"])]


def workdir_of(words: Sequence[str]) -> str:
    """Returns the value of --workdir, or nothing."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--workdir="):
            return word.removeprefix("--workdir=")
        if word == "--workdir":
            return following
    return ""


def check_workdir(words: Sequence[str]) -> None:
    """Refuses a workdir that is lost with the slice.

    Raises:
        ValueError: if --workdir is given and not in a bucket.
    """
    workdir = workdir_of(words)
    if workdir and not workdir.startswith("gs://"):
        raise ValueError(
            f"--workdir={workdir} lies on the disk of each host, is lost with the slice "
            "and not shared between hosts; use gs://BUCKET/... (or --local-workdir if "
            "that is what you want)"
        )


def run_id_of(command: Sequence[str]) -> str:
    """Names a run by its command: the same command is the same run."""
    return hashlib.sha256(json.dumps(list(command)).encode()).hexdigest()[:10]
