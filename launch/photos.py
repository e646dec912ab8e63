"""The photos that sweeps with `--preset=photos` train on: found, counted, and the same.

They lie where the user has them, and are no part of the project.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from etils import epath

from configs.sweeps_types import Trial
from copymit.project import PROJECT
from launch.trials import AUTOENCODER, read_settings

PRESETS = ("photos", "photos_cpu")
_WAY_OUT = (
    "give --source=FOLDER of images and --captions=FILE with their captions "
    "(docs/data.md says where there are some)"
)
_RECORD = "photos.json"


def read_places(
    preset: str, source: str, captions: str, autoencoder: str
) -> dict[str, str]:
    """Returns what the flags of these names say, as settings of every trial.

    Raises:
      ValueError: if one is given with another preset, or captions without their images.
    """
    given = {"source": source, "captions": captions, "autoencoder": autoencoder}
    if preset not in PRESETS:
        if name := next((k for k, v in given.items() if v), ""):
            raise ValueError(
                f"--{name}={given[name]} is for --preset={' and '.join(PRESETS)}; with "
                f"--preset={preset} use --override"
            )
        return {}
    if captions and not source:
        raise ValueError(f"--captions={captions} without --source: {_WAY_OUT}")
    places = {AUTOENCODER: _placed(autoencoder)} if autoencoder else {}
    if source:
        # Without a file, captions lie beside the images.
        places["data.source"] = _placed(source)
        places["data.captions"] = _placed(captions) if captions else ""
    return places


def check_photos(
    trials: Iterable[Trial], places: Mapping[str, str], root: str, title: str
) -> None:
    """Refuses photos that are too few, or not those of the trials that are there.

    Raises:
      FileNotFoundError, ValueError: says what is lacking.
    """
    from copymit.data.sources import load_source

    trials = list(trials)
    settings = [
        read_settings(t.config, t.train)
        for t in {(t.config, _sizes(t)): t for t in trials}.values()
    ]
    source = places.get("data.source", settings[0]["data.source"])
    captions = places.get("data.captions", settings[0]["data.captions"])
    folder = os.path.join(PROJECT, source) if "://" not in source else source
    if not epath.Path(folder).is_dir():
        raise FileNotFoundError(f"there are no photos in {source}: {_WAY_OUT}")
    file = os.path.join(PROJECT, captions) if captions else None
    photos = load_source(folder, captions=file)
    captioned = int((photos.caption_counts > 0).sum())
    most = max(
        settings, key=lambda s: int(s["data.num_examples"]) + int(s["data.num_heldout"])
    )
    train, heldout = most["data.num_examples"], most["data.num_heldout"]
    if captioned < train + heldout:
        raise ValueError(
            f"{title} trains on {train} photos with captions and compares with {heldout} "
            f"others: {source} has {len(photos)}, {captioned} of them with captions; "
            f"{_WAY_OUT}"
        )
    _claim(root, [[i, int(n)] for i, n in _described(photos)], source)


def _described(photos) -> list[tuple[str, int]]:
    return sorted(zip(photos.example_ids, photos.caption_counts, strict=True))


def _claim(root: str, described: list, source: str) -> None:
    """Notes which photos the trials in a directory are of, or compares."""
    digest = hashlib.sha256(json.dumps(described).encode()).hexdigest()
    path = epath.Path(root) / _RECORD
    if path.exists() and (there := json.loads(path.read_text()))["sha256"] != digest:
        raise ValueError(
            f"{root} holds trials of other photos ({there['count']}, where {source} has "
            f"{len(described)}; names and numbers of captions are compared): choose "
            "another --workdir"
        )
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"count": len(described), "sha256": digest}) + "\n")


def _sizes(trial: Trial) -> tuple[object, ...]:
    names = ("data.num_examples", "data.num_heldout")
    return tuple(trial.train.get(name) for name in names)


def _placed(name: str) -> str:
    """Returns a path as the programs see it, which start in the project.

    Below the project it is relative, so that a run may go on in another checkout.
    """
    path = Path(name).absolute()
    if "://" in name or not path.exists():
        return name
    return str(path.relative_to(PROJECT) if path.is_relative_to(PROJECT) else path)
