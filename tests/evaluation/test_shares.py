"""Processes that share nothing but the directory embed a share each."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from copymit.evaluation import lock
from copymit.evaluation import run as run_module
from copymit.evaluation.lock import sole_evaluation
from copymit.evaluation.run import run_stages
from copymit.evaluation.stages import Share, check_stages, parse_share
from copymit.evaluation.subject import open_pair
from copymit.settings import evaluation_settings
from copymit.storage import create_whole

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "text", ["", "1", "4/4", "-1/4", "1/4/2", "0/0", "a/b", "1/ 4"]
)
def test_a_share_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match=rf"--shard={text}: give i/n"):
        parse_share(text)


def test_only_the_embed_stage_is_shared():
    share = parse_share("3/4")
    assert share == Share(3, 4)
    check_stages(["embed"], share)
    for stages in (["embed", "search"], ["generate"], []):
        with pytest.raises(ValueError, match=r"add --stages=embed|use some of"):
            check_stages(stages, share)


@pytest.fixture(params=["disk", "bucket"])
def directory(request, tmp_path, monkeypatch):
    """Where locks are the kernel's, and where they are objects."""
    if request.param == "bucket":
        monkeypatch.setattr(lock, "is_remote", lambda _: True)
        open_store = lock.ts.KvStore.open
        monkeypatch.setattr(
            lock.ts.KvStore, "open", lambda path: open_store(f"file://{path}")
        )
        # Whoever looks at a lock sees its owner write it anew.
        monkeypatch.setattr(lock, "_BEAT_SECS", 0.01)
        monkeypatch.setattr(lock, "_DEAD_SECS", 60.0)
        ticks = iter(range(10**9))
        monkeypatch.setattr(lock.time, "time", lambda: next(ticks))
    return run_module.epath.Path(tmp_path)


@pytest.mark.parametrize(
    ("first", "second", "refused"),
    [
        (Share(0, 4), Share(1, 4), False),
        (Share(0, 4), Share(0, 4), True),
        (Share(0, 4), None, True),
        (None, Share(0, 4), True),
        (None, None, True),
    ],
)
def test_shares_are_at_work_together_and_exclude_everybody_else(
    first, second, refused, directory
):
    taken = pytest.raises(ValueError, match=r"is being evaluated by process \d+ on")
    with (
        sole_evaluation(directory, first),
        taken if refused else contextlib.nullcontext(),
        sole_evaluation(directory, second),
    ):
        pass
    with sole_evaluation(directory, second):
        pass
    assert not list(directory.glob("*.lock"))


def test_what_a_killed_share_left_keeps_nobody_out(tmp_path):
    (tmp_path / "share-2-of-4.lock").write_text("process 1 on here (--shard=2/4)")
    for share in (Share(1, 4), Share(2, 4), None):
        with sole_evaluation(run_module.epath.Path(tmp_path), share):
            pass
    assert not list(tmp_path.iterdir())


def test_of_several_who_make_a_file_one_succeeds(tmp_path):
    path = run_module.epath.Path(tmp_path / "record.json")
    assert [create_whole(path, data) for data in (b"first", b"second")] == [True, False]
    assert path.read_bytes() == b"first"


@pytest.fixture
def pictures(rng, tmp_path):
    """Pictures in files: 600 training images and 300 generations, in 3 and 2 shards."""
    trained = rng.integers(0, 256, (600, 4, 4, 3), dtype=np.uint8).repeat(4, 1)
    trained = trained.repeat(4, 2)
    noise = rng.integers(0, 30, (300, 16, 16, 3), dtype=np.uint8)
    np.save(tmp_path / "trained.npy", trained)
    np.save(tmp_path / "made.npy", trained[:300] // 2 + noise)
    return tmp_path


SETTINGS = {
    "embedders": ("pixels_16",),
    "quality_embedders": (),
    "tile_l2_candidates": 0,
}


def open_audit(pictures, made="made", **settings):
    config = evaluation_settings()
    config.update(SETTINGS | settings)
    images = [str(pictures / f"{name}.npy") for name in (made, "trained")]
    return open_pair(*images, pictures / "shared", config, "it")


def test_a_share_of_other_settings_or_images_is_refused(pictures):
    out = run_stages(open_audit(pictures), ["embed"], share=Share(0, 2))
    before = (out / "evaluation.json").read_bytes()
    run_stages(open_audit(pictures, batch_size=7), ["embed"], share=Share(1, 2))
    other = open_audit(pictures, embedders=("pixels",))
    with pytest.raises(ValueError, match="holds an evaluation of other settings"):
        run_stages(other, ["embed"], share=Share(1, 2))
    os.utime(pictures / "made.npy", (1, 1))
    with pytest.raises(ValueError, match="other settings, images or weights"):
        run_stages(open_audit(pictures), ["embed"], share=Share(1, 2))
    assert (out / "evaluation.json").read_bytes() == before
    (pictures / "made.npy").rename(pictures / "drawn.npy")
    with pytest.raises(ValueError, match=r"holds the evaluation of .*made.npy against"):
        run_stages(open_audit(pictures, "drawn"), ["embed"], share=Share(1, 2))


def evaluate_command(pictures, workdir, *flags):
    return [
        *(str(ROOT / "evaluate.py"), f"--workdir={pictures / workdir}", "--name=it"),
        *(
            f"--{n}={pictures / file}.npy"
            for n, file in (("generations", "made"), ("references", "trained"))
        ),
        *(f"--eval.{name}={value}" for name, value in SETTINGS.items()),
        *flags,
    ]


# Runs a program that is killed once it has written a shard.
_KILLED = """
import os, runpy, signal, sys
from copymit.embedding.store import EmbeddingStore

write = EmbeddingStore.write
def write_and_die(*arguments):
    write(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
EmbeddingStore.write = write_and_die
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_shares_of_which_one_is_killed_give_the_scores_of_one_process(pictures):
    """Three real processes, the last killed after one of its two shards."""
    stages = ("--stages=embed,search,score",)

    def start(*command):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        return subprocess.Popen(
            [sys.executable, *command],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    def share(index):
        flags = ("--stages=embed", f"--shard={index}/2")
        return evaluate_command(pictures, "shared", *flags)

    first, killed = start(*share(1)), start("-c", _KILLED, *share(0))
    for process, code in ((killed, -signal.SIGKILL), (first, 0)):
        _, log = process.communicate()
        assert process.returncode == code, log
    assert "--shard=1/2 is done; all shares together are not" in log
    resumed = start(*share(0))
    log = resumed.communicate()[1]
    assert resumed.returncode == 0, log
    assert "256 done before" in log
    assert "--shard=0/2 is done; all shares together are\n" in log
    whole = start(*evaluate_command(pictures, "shared", *stages))
    log = whole.communicate()[1]
    assert "embed: nothing changed, reused" in log
    alone = start(*evaluate_command(pictures, "alone", *stages))
    assert (alone.wait(), whole.returncode) == (0, 0), log
    scores = [
        (pictures / workdir / "eval/it/scores.json").read_bytes()
        for workdir in ("shared", "alone")
    ]
    assert scores[0] == scores[1]
    assert json.loads(scores[0])["num_references"] == 600
