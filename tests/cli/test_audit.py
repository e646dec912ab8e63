"""copymit audit: any folders in, the answer, numbers and paths out, nothing overwritten."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from copymit.cli.verbs import copymit

QUICK = ("--embedder=pixels_16",)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """made/ has three images at three depths, one of them from trained/."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    paths = [f"trained/{i % 2}/deep/{i}.png" for i in range(24)]
    for path in (*paths, "made/a/b/0.png", "made/a/1.png"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(root / path)
    shutil.copy(root / paths[7], root / "made" / "copy.png")
    return root


@pytest.fixture
def audit(images, tmp_path):
    """Audits made/ against trained/ in a directory of its own."""

    def run(*options: str, generations: str = "made") -> Result:
        places = [str(images / generations), str(images / "trained")]
        return CliRunner().invoke(
            copymit, ["audit", *places, f"--out={tmp_path}", *options]
        )

    return run


def results(tmp_path: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in tmp_path.rglob("*") if p.name in _TELLING}


_TELLING = ("scores.json", "generations.csv", "matches.parquet")


def test_images_at_any_depth_are_compared_and_a_pipeline_is_stopped(audit, tmp_path):
    ended = audit(*QUICK, "--fail_above=0.3")
    assert ended.exit_code == 3, ended.output
    lines = ended.stdout.splitlines()
    assert lines[0].startswith(
        "1 of 3 generations is a copy of 1 training image (1 exact)"
    )
    assert any(line.startswith("Share of copies") for line in lines)
    assert Path(lines[-1]).name == "report.html"
    assert all(Path(line.split()[-1]).exists() for line in lines[-4:])
    scores = json.loads((Path(lines[-1]).parent / "scores.json").read_text())
    assert scores["num_references"] == 24
    assert scores["false_discovery_rate"] == 0.01


def test_another_audit_has_another_directory_and_the_same_is_reused(audit, tmp_path):
    first = audit(*QUICK)
    before = results(tmp_path)
    assert len(before) == len(_TELLING)
    again = audit(*QUICK)
    assert again.stdout == first.stdout
    assert results(tmp_path) == before
    other = audit(*QUICK, "--fdr=0.2")
    assert other.stdout.splitlines()[-1] != first.stdout.splitlines()[-1]
    after = results(tmp_path)
    assert len(after) == 2 * len(before)
    assert {path: after[path] for path in before} == before


def test_options_are_settings_under_their_full_names_too(audit, monkeypatch):
    seen = {}

    def open_pair(generations, references, out, config, *rest):
        seen.update(config.to_dict(), rest=rest)
        raise ValueError("seen")

    monkeypatch.setattr("copymit.evaluation.subject.open_pair", open_pair)
    weights = "--weights=sscd_disc_mixup=" + __file__
    ended = audit("--eval.resolution=48", "--on_corrupt=skip", "--fdr=0.05", weights)
    assert str(ended.exception) == "error: seen\n(--debug shows where this was found)"
    assert (seen["resolution"], seen["on_corrupt"]) == (48, "skip")
    assert seen["false_discovery_rate"] == 0.05
    assert seen["weights"]["sscd_disc_mixup"] == __file__


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--fdr=1", "'--fdr'"),
        ("--size=0", "'--size'"),
        ("--fail-above=2", "'--fail-above'"),
        ("--on-corrupt=ignore", "'ignore' is not one of"),
        ("--fdrr=1", "Did you mean '--fdr'?"),
        ("--weights=sscd", "'sscd' is not NAME=PATH"),
        ("--weights=sscd_mixup=x", "did you mean sscd_disc_mixup?"),
    ],
)
def test_a_mistake_is_refused_before_anything_is_read(
    option, expected, audit, tmp_path
):
    ended = audit(option, generations="absent")
    assert ended.exit_code == 2
    assert expected in ended.output
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_named(audit):
    ended = audit(*QUICK, generations="absent")
    assert "absent" in str(ended.exception)
    assert ended.exit_code == 1
