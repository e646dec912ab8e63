"""What an evaluation does again, and what not; stages alone; folders of anyone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from configs import tiny
from copymit.embedding import embed
from copymit.evaluation.run import run_stages
from copymit.evaluation.stages import STAGES
from copymit.evaluation.subject import open_pair, open_run
from tests.programs.conftest import Run


def open_with(run, **changes):
    """Opens a run with some settings of the `eval` section changed."""
    config = tiny.get_config()
    for key, value in changes.items():
        config.eval[key] = value
    return open_run(run.workdir, config, None)


_OF_THE_PAGE = (
    "report.html",
    "generations.csv",
    "generations.parquet",
    "metrics_card.txt",
)


def times(folder):
    """When each file was written, but for the page's, which are always made anew."""
    return {
        path: path.stat().st_mtime_ns
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.name not in (*_OF_THE_PAGE, "evaluation.json")
        and path.parent.name not in ("figures", "pairs")
    }


def test_a_second_evaluation_reuses_what_the_first_one_made(copied):
    before = times(copied.out)
    run_stages(open_run(copied.workdir, None, None))
    assert times(copied.out) == before
    # No image depends on these, so neither may cost a generation.
    run_stages(open_with(copied, gallery_size=2, batch_size=3))
    assert times(copied.out) == before


def test_runs_that_share_a_cache_embed_their_training_images_once(
    finished, tmp_path, monkeypatch
):
    seen = []
    apply = embed._Network.__call__
    monkeypatch.setattr(
        *(embed._Network, "__call__"),
        lambda self, prepared: (seen.append(len(prepared)), apply(self, prepared))[1],
    )
    scores = [finished.out / "scores.json"]
    counts = []
    for name in ("first", "second", "evaluated before"):
        run = Run(Path(shutil.copytree(finished.workdir, tmp_path / name)))
        if name != "evaluated before":
            shutil.rmtree(run.workdir / "eval")
        record = json.loads((run.workdir / "config.json").read_text())
        record["config"]["data"]["cache_dir"] = "../cache"
        (run.workdir / "config.json").write_text(json.dumps(record))
        run_stages(open_run(run.workdir, None, None))
        scores.append(run.out / "scores.json")
        counts.append(sum(seen))
        seen.clear()
        features = tmp_path / "cache" / "features"
        kept = {path.parent for path in features.rglob("*.npy")}
        sets = {"references", "heldout"}
        assert {folder.parent.name for folder in kept} == sets
        if name == "evaluated before":
            continue
        own = {path.parent.name for path in run.out.rglob("embeddings/*/*/*.npy")}
        assert own == {"generations", "reconstructions"}
    before = json.loads(scores[0].read_text())
    embedders = len(before["protocols"])
    trained_on = before["num_references"] + before["num_heldout"]
    assert counts[0] - counts[1] == trained_on * embedders
    assert counts[2] == 0
    cached = [path.read_text().replace('"../cache"', '""') for path in scores]
    assert set(cached) == {scores[0].read_text()}


def test_a_changed_setting_repeats_its_stage_and_the_later_ones(copied):
    before = times(copied.out)
    run_stages(open_with(copied, num_neighbors=3))
    after = times(copied.out)
    changed = [p for p in after if after[p] != before.get(p)]
    top = {p.relative_to(copied.out).parts[0] for p in changed}
    kept = {"matches.parquet", "matches", "measured.parquet", "scores.json"}
    assert top - {"copies", "pairs"} == kept
    assert set(pd.read_parquet(copied.out / "matches.parquet")["rank"]) == {0, 1, 2}


def test_generations_of_other_settings_are_removed(copied):
    before = copied.pictures()
    run_stages(open_with(copied, num_generations=10))
    after = copied.pictures()
    assert (len(before), len(after)) == (12, 10)
    # Image k is the same picture however many are asked for.
    for name, image in after.items():
        np.testing.assert_array_equal(image, before[name])
    scores = json.loads((copied.out / "scores.json").read_text())
    assert scores["num_generations"] == 10


def test_an_artefact_that_was_removed_is_made_again(copied):
    before = copied.pictures()
    (copied.out / "generations" / "000004.png").unlink()
    (copied.out / "matches.parquet").unlink()
    run_stages(open_run(copied.workdir, None, None))
    after = copied.pictures()
    assert before.keys() == after.keys()
    # The other images took part in its batch before, and did not now.
    for name, image in after.items():
        np.testing.assert_array_equal(image, before[name])
    assert (copied.out / "matches.parquet").exists()


def test_a_stage_whose_inputs_are_missing_names_the_stage_that_makes_them(copied):
    for stage in STAGES[1:]:
        with pytest.raises(ValueError, match=rf"{stage} stage needs .* generate stage"):
            run_stages(open_run(copied.workdir, None, "other"), [stage])
    shutil.rmtree(copied.out / "embeddings")
    with pytest.raises(ValueError, match=r"run\s+--stages=embed,score"):
        run_stages(open_run(copied.workdir, None, None), ["score"])


def test_a_stage_refuses_inputs_of_other_settings(copied):
    before = times(copied.out)
    with pytest.raises(ValueError, match=r"report stage needs .* generate stage"):
        run_stages(open_with(copied, num_generations=10), ["report"])
    with pytest.raises(ValueError, match=r"score stage needs .* search stage"):
        run_stages(open_with(copied, num_neighbors=3), ["score"])
    assert times(copied.out) == before


def test_stages_run_alone_in_several_calls(copied):
    scores = (copied.out / "scores.json").read_text()
    shutil.rmtree(copied.out)
    for stage in STAGES:
        run_stages(open_run(copied.workdir, None, None), [stage])
    assert 'id="detection"' in (copied.out / "report.html").read_text()
    assert (copied.out / "scores.json").read_text() == scores


def test_the_generator_keeps_away_from_the_training_images_when_told_to(copied):
    before = copied.pictures()
    config = tiny.get_config()
    # Everything is too similar, so that every image is turned away.
    config.mitigation.generate.update(
        repulsion=50.0, clean_threshold=-1.0, noisy_threshold=-1.0
    )
    run_stages(open_run(copied.workdir, config, "repelled"), ["generate"])
    after = copied.pictures("repelled")
    assert after.keys() == before.keys()
    assert all((after[name] != image).any() for name, image in before.items())


def test_two_runs_are_shown_side_by_side(copied, finished):
    subject = open_run(copied.workdir, None, None)
    run_stages(subject)
    alone = (copied.out / "report.html").read_text()
    run_stages(subject, compared=[open_run(finished.workdir, None, None)])
    assert (copied.out / "figures" / "comparison.png").exists()
    title = "full duplication x4"
    assert (copied.out / "report.html").read_text().count(title) > alone.count(title)


def test_copies_are_found_in_folders_of_anyone(finished, tmp_path):
    made, trained = tmp_path / "made", tmp_path / "trained"
    made.mkdir()
    trained.mkdir()
    images = open_run(finished.workdir, None, None).references
    for i in range(12):
        picture = Image.fromarray(images.read(i))
        picture.save(trained / f"{i}.png")
        # The copies come in another order and under other names.
        picture.save(made / f"copy {11 - i:02d}.png")

    def open_both():
        audit, config = tmp_path / "audit", tiny.get_config().eval
        return open_pair(str(made), str(trained), audit, config, None)

    out = run_stages(open_both())
    scores = json.loads((out / "scores.json").read_text())
    for key in ("similarity_mean", "dataset_similarity", "pixels_similarity_mean"):
        assert scores[key] == pytest.approx(1, abs=1e-5), key
    assert scores["background_dataset_similarity"] < 0.99
    # Distances of sets that differ are in the hundreds; the features are float32.
    assert abs(scores["fd_efficientnet_lite0"]) < 1e-3
    for row in pd.read_parquet(out / "matches.parquet").query("rank == 0").itertuples():
        assert row.reference == f"{11 - int(row.generation[5:7])}.png"
    # A folder that changed must be embedded anew.
    (made / "copy 00.png").unlink()
    with pytest.raises(ValueError, match="needs what the embed stage makes"):
        run_stages(open_both(), ["report"])


def test_prompts_are_generated_as_the_mitigation_changes_them(copied):
    config = tiny.get_config()
    config.mitigation.apply = ("RNA=3", "GNI")
    subject = open_run(copied.workdir, config, "numbers")
    run_stages(subject, ["generate"])
    prompts = subject.prompts()
    for row in prompts.itertuples():
        words = row.prompt_used.split(" ")
        assert len(words) == len(row.prompt.split(" ")) + 3
        assert sum(word.isdigit() for word in words) >= 3
    assert "generated with gaussian noise, random numbers" in subject.title
    # Another strength is another set of images.
    config.mitigation.apply = ("RNA=3", "GNI=0.2")
    other = open_run(copied.workdir, config, "numbers")
    with pytest.raises(ValueError, match="needs what the generate stage makes"):
        run_stages(other, ["embed"])
