"""The programs as a user runs them: end to end, killed and started again, on several
devices and processes. One small run, made once, serves most of the tests."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pandas as pd
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

from configs import tiny
from copymit.config import read_record
from copymit.data.schedule import examples_of_step, make_schedule
from copymit.evaluation.run import evaluate
from copymit.evaluation.stages import STAGES
from copymit.evaluation.subject import open_folders, open_run
from copymit.metrics import read_metrics
from copymit.training.loop import NonFiniteLossError, train

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
CONFIG = tiny.get_config()
LAST_STEP = CONFIG.train.steps
# One level instead of two: half the compilation, which is most of the time here. Its
# width makes kernels that are large enough to be sharded.
SMALL = {"block_out_channels": (32,), "cross_attention": (True,)}
FLAGS = (
    "--config=configs/tiny.py",
    *(f"--config.model.unet.{name}={value}" for name, value in SMALL.items()),
)


class Programs:
    """Starts the programs with one cache of compiled functions and without torch."""

    def __init__(self, cache: Path, without_torch: Path):
        self.cache = cache
        self._path = f"{without_torch}{os.pathsep}{ROOT}"

    def start(self, *command, **environment) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": self._path,
                "JAX_PLATFORMS": "cpu",
                "JAX_COMPILATION_CACHE_DIR": str(self.cache),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
                "XLA_FLAGS": "",
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *command, **environment) -> str:
        return self.finish(self.start(*command, **environment))

    def finish(self, process: subprocess.Popen, code: int = 0) -> str:
        """Waits for a program that ends with `code`; returns what it said."""
        stdout, stderr = process.communicate(timeout=400)
        assert process.returncode == code, stderr
        return stdout + stderr


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    # torch is for the tests only; the programs must do without it, and start faster.
    without_torch = tmp_path_factory.mktemp("without_torch")
    (without_torch / "torch.py").write_text("raise ImportError('not installed')\n")
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    cache = Path(cache) if cache else tmp_path_factory.mktemp("jax_cache")
    programs = Programs(cache, without_torch)
    # This process compiles as the programs do, and into the same cache.
    settings = {
        "jax_compilation_cache_dir": str(cache),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_disable_most_optimizations": True,
    }
    before = {name: jax.config.values[name] for name in settings}
    configure(settings)
    yield programs
    configure(before)


def configure(settings):
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # or it would stay where it was first used


@pytest.fixture(scope="module")
def finished(programs, tmp_path_factory):
    """A run that was trained and evaluated by the programs without interruption."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    programs.run("train.py", *FLAGS, f"--workdir={workdir}")
    said = programs.run("evaluate.py", f"--workdir={workdir}")
    assert said.startswith(str(workdir / "eval" / str(LAST_STEP) / "report.html"))
    return workdir


@pytest.fixture
def copied(finished, tmp_path):
    """The finished run, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def open_with(workdir, name=None, **changes):
    """Opens a run with some settings of the `eval` section changed."""
    config = tiny.get_config().eval
    for key, value in changes.items():
        config[key] = value
    return open_run(workdir, config, name)


def times(folder):
    """When each file was written, but for the page, which is always made anew."""
    return {
        path: path.stat().st_mtime_ns
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.name not in ("report.html", "stages.json")
        and path.parent.name != "figures"
    }


def pictures(folder):
    return {path.name: np.array(Image.open(path)) for path in folder.glob("*.png")}


def checkpoint_arrays(workdir, step):
    arrays = {}
    for item in ("params", "ema", "optimizer"):
        with ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.restore(workdir / "checkpoints" / str(step) / item)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            arrays[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return arrays


def losses(workdir):
    metrics = read_metrics(workdir)
    assert [m["step"] for m in metrics] == list(range(1, LAST_STEP + 1))
    return np.array([m["loss"] for m in metrics])


# What the programs leave behind.


def test_a_run_records_its_settings_and_where_they_come_from(finished):
    record = read_record(finished)
    assert record["config"]["train"]["steps"] == LAST_STEP
    assert record["config"]["model"]["unet"]["block_out_channels"] == [32]
    assert record["command"][1:] == [*FLAGS, f"--workdir={finished}"]
    assert record["packages"]["jax"] == jax.__version__
    assert {"git_commit", "python"} <= record.keys()


def test_a_run_records_what_was_duplicated(finished):
    table = pd.read_parquet(finished / "duplication.parquet")
    assert list(table) == ["example_id", "weight", "duplicated", "caption_count"]
    assert table["example_id"].nunique() == len(table) == 12
    assert sorted(table["weight"]) == [1] * 9 + [4] * 3
    assert (table["duplicated"] == (table["weight"] == 4)).all()
    assert (table["caption_count"] >= 1).all()


def test_a_run_reports_every_step_in_both_formats(finished):
    assert np.isfinite(losses(finished)).all()
    for metrics in read_metrics(finished):
        assert {
            "grad_norm",
            "param_norm",
            "learning_rate",
            "steps_per_second",
            "images_per_second",
            "data_wait_share",
        } <= metrics.keys()
        assert 0 <= metrics["data_wait_share"] <= 1
    (events,) = finished.glob("events.*")
    assert b"data_wait_share" in events.read_bytes()


def test_a_run_keeps_its_last_checkpoint_and_a_grid_of_samples(finished):
    (checkpoint,) = (finished / "checkpoints").iterdir()
    assert checkpoint.name == str(LAST_STEP)
    assert {"params", "ema", "optimizer", "position"} <= {
        path.name for path in checkpoint.iterdir()
    }
    position = json.loads((checkpoint / "position" / "metadata").read_text())
    assert position == {"step": LAST_STEP, "next_batch": LAST_STEP}
    (grid,) = (finished / "samples").iterdir()
    assert Image.open(grid).size == (8 * 16, 2 * 16)  # twelve pictures, eight a row


def test_an_evaluation_leaves_every_artefact(finished):
    out = finished / "eval" / str(LAST_STEP)
    ids = [f"{i:06d}" for i in range(CONFIG.eval.num_generations)]
    lines = (out / "prompts.jsonl").read_text().splitlines()
    prompts = [json.loads(line) for line in lines]
    assert [p["id"] for p in prompts] == ids
    assert {"prompt", "prompt_used", "seed", "guidance_scale"} <= prompts[0].keys()
    found = pictures(out / "generations")
    assert sorted(found) == [f"{i}.png" for i in ids]
    assert {image.shape for image in found.values()} == {(16, 16, 3)}
    for embedder in CONFIG.eval.embedders:
        for images, count in (("generations", 12), ("references", 12), ("heldout", 8)):
            with np.load(out / "embeddings" / f"{embedder}_{images}.npz") as arrays:
                assert len(arrays["ids"]) == len(arrays["features"]) == count
                assert embedder.split("_")[0] in str(arrays["protocol"]).lower()
    matches = pd.read_parquet(out / "matches.parquet")
    assert list(matches) == ["generation", "rank", "reference", "similarity"]
    assert set(matches["generation"]) == set(ids)
    references = pd.read_parquet(finished / "duplication.parquet")["example_id"]
    assert set(matches["reference"]) <= set(references)
    assert sorted(matches["rank"].unique()) == list(range(11))
    assert {p.name for p in (out / "figures").iterdir()} >= {
        "histogram.png",
        "loss.png",
    }
    page = (out / "report.html").read_text()
    assert "full duplication x4" in page
    assert not re.search(r"""(src|href)=["']?https?:""", page)


def test_the_scores_have_the_documented_keys(finished):
    scores = json.loads(
        (finished / "eval" / str(LAST_STEP) / "scores.json").read_text()
    )
    for key in (
        "dataset_similarity",
        "similarity_mean",
        "similarity_p75",
        "similarity_p90",
        "similarity_p95",
        "similarity_above_0.5",
        "background_dataset_similarity",
        "background_similarity_mean",
        "heldout_dataset_similarity",
        "similarity_to_duplicated",
        "similarity_to_unduplicated",
        "prompted_image_hits",
        "pixels_dataset_similarity",
    ):
        low, high = scores[f"{key}_ci95"] or (scores[key] or 0, scores[key] or 0)
        assert low <= (scores[key] or 0) <= high, key
    assert scores["dataset_similarity"] == scores["similarity_p95"]
    assert scores["fd_efficientnet_lite0"] > 0
    assert "fid" not in scores  # that name is Inception's
    assert {"precision", "recall", "density", "coverage"} <= scores.keys()
    assert {"complexity_entropy_pearson", "complexity_entropy_pvalue"} <= scores.keys()
    assert scores["search_recall"] == 1
    assert scores["num_generations"] == scores["num_references"] == 12
    assert scores["num_heldout"] == 8
    assert scores["settings"]["train.steps"] == LAST_STEP
    assert scores["settings"]["step"] == LAST_STEP


# What an evaluation does again, and what not.


def test_a_second_evaluation_reuses_what_the_first_one_made(finished):
    out = finished / "eval" / str(LAST_STEP)
    before = times(out)
    evaluate(open_run(finished, None, None))
    assert times(out) == before
    # Nothing that images depend on: neither of these may cost a generation.
    evaluate(open_with(finished, gallery_size=2, batch_size=3))
    assert times(out) == before


def test_a_changed_setting_repeats_its_stage_and_the_later_ones(copied):
    out = copied / "eval" / str(LAST_STEP)
    before = times(out)
    evaluate(open_with(copied, num_neighbors=3))
    after = times(out)
    changed = {p.relative_to(out).parts[0] for p in after if after[p] != before.get(p)}
    assert changed == {"matches.parquet", "matches", "scores.json"}
    assert set(pd.read_parquet(out / "matches.parquet")["rank"]) == {0, 1, 2}


def test_generations_of_other_settings_are_removed(copied):
    out = copied / "eval" / str(LAST_STEP)
    before = pictures(out / "generations")
    evaluate(open_with(copied, num_generations=10))
    after = pictures(out / "generations")
    assert len(before) == 12
    assert len(after) == 10
    # Image k is the same picture however many are asked for.
    for name, image in after.items():
        np.testing.assert_array_equal(image, before[name])
    assert json.loads((out / "scores.json").read_text())["num_generations"] == 10


def test_an_artefact_that_was_removed_is_made_again(copied):
    out = copied / "eval" / str(LAST_STEP)
    before = pictures(out / "generations")
    (out / "generations" / "000004.png").unlink()
    (out / "matches.parquet").unlink()
    evaluate(open_run(copied, None, None))
    after = pictures(out / "generations")
    assert before.keys() == after.keys()
    # The other images took part in its batch before, and did not now.
    for name, image in after.items():
        np.testing.assert_array_equal(image, before[name])
    assert (out / "matches.parquet").exists()


def test_a_stage_whose_inputs_are_missing_names_the_stage_that_makes_them(copied):
    for stage in STAGES[1:]:
        with pytest.raises(ValueError, match=rf"{stage} stage needs .* generate stage"):
            evaluate(open_run(copied, None, "other"), [stage])
    out = copied / "eval" / str(LAST_STEP)
    shutil.rmtree(out / "embeddings")
    with pytest.raises(ValueError, match=r"run\s+--stages=embed,score"):
        evaluate(open_run(copied, None, None), ["score"])


def test_a_stage_refuses_inputs_of_other_settings(copied):
    before = times(copied / "eval")
    with pytest.raises(ValueError, match=r"report stage needs .* generate stage"):
        evaluate(open_with(copied, num_generations=10), ["report"])
    with pytest.raises(ValueError, match=r"score stage needs .* search stage"):
        evaluate(open_with(copied, num_neighbors=3), ["score"])
    assert times(copied / "eval") == before


def test_stages_run_alone_in_several_calls(copied):
    out = copied / "eval" / str(LAST_STEP)
    scores = (out / "scores.json").read_text()
    shutil.rmtree(out)
    for stage in STAGES:
        evaluate(open_run(copied, None, None), [stage])
    assert (out / "report.html").exists()
    assert (out / "scores.json").read_text() == scores


def test_two_runs_are_shown_side_by_side(copied, finished):
    evaluate(open_run(copied, None, None), compared=[open_run(finished, None, None)])
    page = (copied / "eval" / str(LAST_STEP) / "report.html").read_text()
    assert page.count("full duplication x4") > 2


def test_folders_of_anyone_are_measured_and_their_copies_found(
    programs, finished, tmp_path
):
    generations, references = tmp_path / "made", tmp_path / "trained"
    generations.mkdir()
    references.mkdir()
    images = open_run(finished, None, None).references
    for i in range(12):
        picture = Image.fromarray(images.read(i))
        picture.save(references / f"{i}.png")
        # The copies come in another order and under other names.
        picture.save(generations / f"copy {11 - i:02d}.png")
    subject = open_folders(
        str(generations), str(references), tmp_path / "audit", CONFIG.eval, None
    )
    out = evaluate(subject)
    scores = json.loads((out / "scores.json").read_text())
    assert scores["similarity_mean"] == pytest.approx(1, abs=1e-5)
    assert scores["dataset_similarity"] == pytest.approx(1, abs=1e-5)
    assert scores["pixels_similarity_mean"] == pytest.approx(1, abs=1e-5)
    assert scores["background_dataset_similarity"] < 0.99
    # Of distances in the hundreds; float32 features, float64 moments.
    assert abs(scores["fd_efficientnet_lite0"]) < 1e-3
    matches = pd.read_parquet(out / "matches.parquet").query("rank == 0")
    for row in matches.itertuples():
        assert row.reference == f"{11 - int(row.generation[5:7])}.png"
    # A changed folder is measured anew.
    before = times(out)
    (generations / "copy 00.png").unlink()
    subject = open_folders(
        str(generations), str(references), tmp_path / "audit", CONFIG.eval, None
    )
    with pytest.raises(ValueError, match="needs what the embed stage makes"):
        evaluate(subject, ["report"])
    assert times(out) == before


# Interruptions.


@pytest.fixture(scope="module")
def interrupted(programs, finished, tmp_path_factory):
    """A run that was killed, stopped by SIGTERM, and then ran to its end.

    Checkpoints and samples have nothing to do with the parameters, so they are set to
    slow the run down: each save waits for the one before it.
    """
    workdir = tmp_path_factory.mktemp("runs") / "interrupted"
    command = ["train.py", *FLAGS, f"--workdir={workdir}"]
    checkpoints = workdir / "checkpoints"

    process = programs.start(*command, "--config.train.checkpoint_every_steps=1")
    wait_until(process, lambda: complete_steps(checkpoints))
    process.send_signal(signal.SIGKILL)
    programs.finish(process, -signal.SIGKILL)
    killed_at = max(complete_steps(checkpoints))

    process = programs.start(
        *command,
        "--config.train.checkpoint_every_steps=1000",
        "--config.train.sample_every_steps=1",
    )
    wait_until(process, lambda: max(logged_steps(workdir)) > killed_at)
    process.send_signal(signal.SIGTERM)
    said = programs.finish(process, 128 + signal.SIGTERM)
    stopped_at = max(complete_steps(checkpoints))
    logged = logged_steps(workdir)

    programs.run(*command)
    return workdir, killed_at, stopped_at, logged, said


def complete_steps(checkpoints):
    """Steps of the checkpoints that Orbax has given their final names."""
    if not checkpoints.exists():
        return []
    return [int(p.name) for p in checkpoints.iterdir() if p.name.isdigit()]


def logged_steps(workdir):
    return [m["step"] for m in read_metrics(workdir)] or [0]


def wait_until(process, happened, seconds=300):
    deadline = time.monotonic() + seconds
    while not happened():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"too late: {process.communicate()[1]}")
        time.sleep(0.02)


def test_sigterm_saves_the_step_it_stops_at_and_says_so(interrupted):
    _, killed_at, stopped_at, logged, said = interrupted
    assert 1 <= killed_at < stopped_at < LAST_STEP
    assert max(logged) == stopped_at
    assert f"going on from step {killed_at}" in said
    assert f"stopped at step {stopped_at}; run again to go on" in said


def test_a_killed_and_a_stopped_run_end_with_the_same_bits(interrupted, finished):
    workdir = interrupted[0]
    expected = checkpoint_arrays(finished, LAST_STEP)
    found = checkpoint_arrays(workdir, LAST_STEP)
    assert expected.keys() == found.keys()
    assert sum(array.size for array in found.values()) > 1_000_000
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_an_interrupted_run_reports_each_step_once(interrupted, finished):
    np.testing.assert_array_equal(losses(interrupted[0]), losses(finished))


# Devices and processes.


def start_on_devices(programs, workdir, record, count, *flags):
    return programs.start(
        "tests/record_examples.py",
        record,
        *FLAGS,
        f"--workdir={workdir}",
        "--config.train.sample_every_steps=9",
        *flags,
        XLA_FLAGS=f"--xla_force_host_platform_device_count={count}",
        JAX_CPU_COLLECTIVES_IMPLEMENTATION="gloo",
    )


@pytest.fixture(scope="module")
def on_devices(programs, finished, tmp_path_factory):
    """Runs on four devices: by kind, the workdir and the examples of each step."""
    root = tmp_path_factory.mktemp("devices")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = {
        "data": [start_on_devices(programs, root / "data", root / "data.txt", 4)],
        "fsdp": [
            start_on_devices(
                programs, root / "fsdp", root / "fsdp.txt", 4, "--config.mesh.fsdp=2"
            )
        ],
    }
    finish_all(programs, started)
    started = {
        "processes": [
            start_on_devices(
                programs,
                root / "processes",
                root / f"processes{i}.txt",
                2,
                "--config.mesh.fsdp=2",
                f"--coordinator=127.0.0.1:{port}",
                "--num_processes=2",
                f"--process_id={i}",
            )
            for i in range(2)
        ],
    }
    finish_all(programs, started)
    return root


def finish_all(programs, started):
    for processes in started.values():
        for process in processes:
            programs.finish(process)


def drawn(path):
    return np.array([json.loads(line) for line in path.read_text().splitlines()])


@pytest.mark.parametrize("kind", ["data", "fsdp", "processes"])
def test_the_examples_do_not_depend_on_devices_or_processes(kind, on_devices, finished):
    weights = pd.read_parquet(finished / "duplication.parquet")["weight"].to_numpy()
    schedule = make_schedule(weights, CONFIG.data.sampling, CONFIG.seed)
    expected = [
        examples_of_step(schedule, step, CONFIG.train.batch_size)
        for step in range(LAST_STEP)
    ]
    parts = [drawn(path) for path in sorted(on_devices.glob(f"{kind}*.txt"))]
    assert len(parts) == (2 if kind == "processes" else 1)
    found = np.concatenate(parts, axis=1)[:LAST_STEP]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["data", "fsdp", "processes"])
def test_the_loss_does_not_depend_on_devices_or_processes(kind, on_devices, finished):
    # Sums over a batch are taken in another order, 1e-7 each; Adam's division by small
    # moments enlarges that a few hundred times within these steps.
    found, expected = losses(on_devices / kind), losses(finished)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.ptp(expected) > 1e-2  # or else every run would agree


def test_one_process_goes_on_from_a_checkpoint_of_two(on_devices, programs):
    workdir = on_devices / "processes"
    said = programs.run("train.py", *FLAGS, f"--workdir={workdir}")
    assert f"going on from step {LAST_STEP}" in said


@pytest.mark.parametrize("devices", [1, 4])
def test_an_image_does_not_depend_on_its_batch_or_the_devices(
    devices, programs, finished
):
    name = f"on{devices}"
    programs.run(
        "evaluate.py",
        f"--workdir={finished}",
        f"--name={name}",
        "--stages=generate",
        "--config=configs/tiny.py",
        f"--config.eval.batch_size={5 if devices == 1 else 4}",
        XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}",
    )
    found = pictures(finished / "eval" / name / "generations")
    expected = pictures(finished / "eval" / str(LAST_STEP) / "generations")
    assert found.keys() == expected.keys()
    for file, image in expected.items():
        # Products of other shapes sum in another order; a value at the edge between two
        # grey levels may then round to the other one.
        difference = np.abs(image.astype(int) - found[file])
        assert difference.max() <= 1, file
        assert (difference > 0).mean() < 0.01, file
    assert len({image.tobytes() for image in expected.values()}) == len(expected)


# Divergence.


def very_small():
    config = tiny.get_config()
    config.data.num_examples = config.train.batch_size = 4
    config.data.num_heldout = 0
    config.model.autoencoder.patch_size = 8
    config.model.unet.block_out_channels = (8,)
    config.model.unet.cross_attention = (False,)
    config.train.learning_rate_schedule = "constant"
    config.train.warmup_steps = 0
    config.train.ema_decay = 0.0
    config.train.sample_every_steps = 0
    return config


def test_a_diverging_run_stops_and_names_the_step_and_the_last_good_checkpoint(
    programs, tmp_path
):
    config = very_small()
    config.train.steps = 2
    config.train.checkpoint_every_steps = 1
    train(config, tmp_path)
    # The settings of a run cannot change, so its record must be made to agree.
    record = read_record(tmp_path)
    record["config"]["train"]["learning_rate"] = 1e30
    (tmp_path / "config.json").write_text(json.dumps(record))
    config.train.learning_rate = 1e30
    config.train.steps = 9
    config.train.log_every_steps = 2
    with pytest.raises(
        NonFiniteLossError, match=r"at step 3; the last good checkpoint is step 2\. Low"
    ):
        train(config, tmp_path)
    # The step's loss was finite; it is its new parameters that are not to be saved.
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["2"]
    assert [m["step"] for m in read_metrics(tmp_path)] == [1, 2]


# Help.


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("train.py", ["--config", "--workdir", "--coordinator", "--process_id"]),
        (
            "evaluate.py",
            ["--workdir", "--stages", "--generations", "--references", "--compare"],
        ),
    ],
)
def test_help_shows_an_example_and_the_flags(program, expected, programs):
    # absl ends --help with 1, as it does for any line that it cannot run.
    said = programs.finish(programs.start(program, "--help"), code=1)
    assert f"python {program} --" in said
    for flag in expected:
        assert re.search(rf"^ *{flag}:", said, re.MULTILINE), flag
    assert "configs/common.py" in said
