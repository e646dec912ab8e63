"""Every sweep of the study of photos can be drawn, once it has scores."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from configs.sweeps_types import Bars, Clusters, Curves, Roc, Scatter
from copymit.mitigation.detectors import all_detectors
from copymit.project import PROJECT
from copymit.scores.complexity import Complexity
from copymit.scores.names import look_up
from launch.collect import collect
from launch.figures import figure
from launch.trials import list_trials, load_sweep, plan, unique_tasks

_LISTED = re.compile(r"^sweeps=(?:\$sweeps,)?(.*)$", re.MULTILINE)
SWEEPS = [
    name
    for line in _LISTED.findall((PROJECT / "launch" / "photos.sh").read_text())
    for name in line.split(",")
]
# Not in scores.json: weights of CLIP are seldom at hand, seconds are in timings.json, and
# the rest of a detector in detection.json.
ELSEWHERE = re.compile(
    "clip_score|fid|seconds_per_image|num_(un)?(memorised|seen)|(unseen_)?(auc|tpr_.*)"
)
IMAGES = [f"{i}.jpg" for i in range(20)]


def scores_of(sweep):
    return {
        score for panel in sweep.panels for score in getattr(panel, "scores", ())
    } | set(sweep.columns)


def make_scores(sweep, rng):
    """Makes up scores under the keys that the sweep draws and scores.json knows."""
    keys = {key for score in scores_of(sweep) for key in score.keys}
    keys = {key for key in keys if not ELSEWHERE.fullmatch(key)}
    assert all(look_up(key) for key in keys)
    scores = {key: float(rng.uniform(0.1, 0.9)) for key in keys}
    intervals = {f"{key}_ci95": [v - 0.1, v + 0.1] for key, v in scores.items()}
    return scores | intervals | {"embedder": "made up", "num_generations": 20}


def make_detection(rng):
    """Makes up what detectors say: memorised prompts, others, and unseen ones."""
    names = list(all_detectors())
    found = {
        name: {"auc": rng.uniform(0.5, 1), "tpr_at_1_percent_fpr": rng.uniform()}
        | {"memorised_count": 5, "other_count": 15}
        for name in names
    }
    summary = {"num_memorised": 5, "num_unmemorised": 15, "num_unseen": 20}
    memorised = np.arange(40) < 5
    table = {name: memorised + rng.normal(0, 0.5, 40) for name in names}
    table |= {"memorised": memorised, "kind": 20 * ["prompted"] + 20 * ["unseen"]}
    return summary | {"unmemorised": found, "unseen": found}, pd.DataFrame(table)


def make_generations(rng):
    count = len(IMAGES)
    table = {
        "generation": [f"{i:06d}" for i in range(count)],
        "nearest_reference": IMAGES,
        "similarity": rng.uniform(size=count),
    }
    measures = {
        f"nearest_{name}": rng.uniform(size=count) for name in Complexity._fields
    }
    return pd.DataFrame(table | measures)


def make_up(sweep, plans, root):
    """Writes what the programs of these trials would."""
    rng = np.random.default_rng(0)
    for made in plans:
        folder = root / made.scores
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scores.json").write_text(json.dumps(make_scores(sweep, rng)))
        (folder / "timings.json").write_text('{"seconds_per_image": 0.5}')
        make_generations(rng).to_parquet(folder / "generations.parquet")
        summary, prompts = make_detection(rng)
        (folder / "detection.json").write_text(json.dumps(summary))
        prompts.to_parquet(folder / "detection.parquet")
        (folder / "report.html").touch()
        if made.clusters:
            (root / made.clusters).mkdir(parents=True, exist_ok=True)
            clusters = {"example_id": IMAGES}
            for kind in ("image", "caption"):
                clusters[f"{kind}_similarity"] = rng.uniform(size=len(IMAGES))
            pd.DataFrame(clusters).to_parquet(root / made.clusters / "clusters.parquet")


def has_marks(axes, panel):
    """Whether something is drawn besides the axes."""
    if isinstance(panel, Bars):
        return len(axes.patches) > 0
    if isinstance(panel, Clusters | Scatter):
        return any(len(drawn.get_offsets()) for drawn in axes.collections)
    return any(len(line.get_xdata()) for line in axes.lines)


def listed():
    """Yields every sweep with `photos`, and with `photos_cpu` where its values differ."""
    for name in SWEEPS:
        panels = load_sweep(f"configs/sweeps.py:{name}").panels
        yield name, "photos"
        if any(isinstance(panel, Curves) for panel in panels):
            yield name, "photos_cpu"


@pytest.mark.parametrize(("name", "preset"), listed())
def test_each_sweep_of_the_study_has_its_table_figure_and_page(
    name, preset, tmp_path, figures, monkeypatch
):
    monkeypatch.setattr(figure, "DPI", 20)  # looked into, not at
    sweep = load_sweep(f"configs/sweeps.py:{name}")
    trials = list_trials(sweep, preset, 2)
    assert len({trial.name for trial in trials}) == len(trials)
    labels = [tuple(trial.labels.items()) for trial in trials]
    assert len(set(labels)) == len(labels)
    plans = [plan(trial) for trial in trials]
    make_up(sweep, plans, tmp_path)
    files, missing = collect(sweep, plans, str(tmp_path), name)
    assert missing == []
    assert [file.rpartition(".")[2] for file in files] == [
        "parquet",
        "md",
        "png",
        "html",
    ]

    drawn = [p for p in sweep.panels if not needs_clip(p)]
    bars = [axes for axes in figures[0].axes if axes.get_label() != "<colorbar>"]
    assert len(bars) == len(drawn)
    assert all(has_marks(a, p) for a, p in zip(bars, drawn, strict=True))
    for axes, panel in zip(bars, drawn, strict=True):
        if isinstance(panel, Curves):
            values = {float(trial.labels[panel.x]) for trial in trials}
            assert set(axes.get_xticks()) == values
        if isinstance(panel, Roc):
            names = {line.get_label() for line in axes.lines}
            assert {t.labels["detector"] for t in trials} <= names
    settings = len(trials) // 2
    text = (tmp_path / f"{name}.md").read_text()
    assert text.count("\n| ") == settings + 2
    page = (tmp_path / f"{name}.html").read_text()
    assert page.count("<section") == settings


def needs_clip(panel):
    """Whether a panel draws what is measured only with weights that few have."""
    return any(s.keys == ("clip_score",) for s in getattr(panel, "scores", ()))


def test_the_sweeps_of_the_study_come_down_to_tasks_in_order():
    trials = [
        trial
        for name in SWEEPS
        for trial in list_trials(load_sweep(f"configs/sweeps.py:{name}"), "photos", 1)
    ]
    known = set()
    for task in unique_tasks(plan(trial) for trial in trials):
        assert set(task.after) <= known
        known.add(task.key)


def test_what_the_study_of_photos_is_to_show_is_drawn():
    wanted = {
        "fig3": {
            "dataset_similarity",
            "copied_share",
            "fd_efficientnet_lite0_to_heldout",
        },
        "fig5": {"dataset_similarity", "background_dataset_similarity", "copied_share"},
        "training_length": {"dataset_similarity", "copied_share"},
        "dataset_size": {"dataset_similarity", "copied_share"},
        "fig4": {"dataset_similarity", "copied_share"},
        "unconditional": {"dataset_similarity", "copied_share"},
        "table_train_mitigations": {"copied_share", "fd_efficientnet_lite0_to_heldout"},
        "mitigations_once": {"copied_share", "clip_score"},
        "detectors": {"unseen_tpr_at_1_percent_fpr", "num_memorised", "num_unseen"},
    }
    for name, keys in wanted.items():
        scores = scores_of(load_sweep(f"configs/sweeps.py:{name}"))
        assert keys <= {key for score in scores for key in score.keys}, name
    assert set(wanted) <= set(SWEEPS)


def test_fifty_prompts_can_be_memorised_beside_five_hundred_others():
    (trial, *_) = list_trials(load_sweep("configs/sweeps.py:detectors"), "photos", 1)
    from configs import photos

    config = photos.get_config()
    config.update_from_flattened_dict({**trial.train, **trial.evaluate})
    duplicated = config.data.num_examples * config.data.duplicated_fraction
    assert duplicated >= 50
    assert config.eval.detection.num_prompts >= config.data.num_examples
    assert min(config.data.num_heldout, config.eval.detection.num_prompts) >= 500
