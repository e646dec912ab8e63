"""Stands in for train.py and evaluate.py: takes milliseconds, writes what they write.

Each start is noted in the file `starts` beside the run, each end in `ends`. While there is
a file `hold` in the sweep's directory, no program ends.
"""

import json
import sys
import time
from pathlib import Path


def main(arguments: list[str]) -> None:
    flags = dict(a.removeprefix("--").split("=", 1) for a in arguments)
    workdir = Path(flags["workdir"])
    workdir.mkdir(parents=True, exist_ok=True)
    name = flags.get("name", "train")
    with (workdir / "starts").open("a") as file:
        file.write(f"{name}\n")
    factor = float(flags.get("config.data.duplication_factor", 1))
    while (workdir.parents[1] / "hold").exists():
        time.sleep(0.02)
    if (
        flags.get("config.data.on_corrupt") == "fail-once"
        and not (workdir / "failed").exists()
    ):
        (workdir / "failed").touch()
        sys.exit("error: the disk is full")
    if flags.get("config.data.on_corrupt") == "fail":
        sys.exit("error: no such data")
    if "name" not in flags:
        step = {"step": 9, "loss": 0.5, "steps_per_second": 3.0}
        (workdir / "metrics.jsonl").write_text(json.dumps(step) + "\n")
        config = {"config": {"train": {"steps": 9}}}
        (workdir / "config.json").write_text(json.dumps(config))
    elif flags.get("stages") == "detect":
        out = workdir / "eval" / name
        assert (out / "scores.json").exists()
        found = {"auc": 0.9 + 0.01 * factor, "tpr_at_1_percent_fpr": 0.5}
        detection = {"unmemorised": {"sharpness": found}}
        detection["unseen"] = {"sharpness": found | {"auc": 1.0}}
        (out / "detection.json").write_text(json.dumps(detection))
    else:
        scores = {
            "dataset_similarity": 0.5 + 0.01 * factor,
            "dataset_similarity_ci95": [0.4, 0.8],
            "background_dataset_similarity": 0.45,
            "fd_efficientnet_lite0": 100.0 + factor,
            "embedder": "fake",
            "settings": {},
            "clip_score": None,
        }
        out = workdir / "eval" / name
        out.mkdir(parents=True, exist_ok=True)
        (out / "scores.json").write_text(json.dumps(scores))
        (out / "report.html").write_text("<html>")
    with (workdir / "ends").open("a") as file:
        file.write(f"{name}\n")


main(sys.argv[1:])
