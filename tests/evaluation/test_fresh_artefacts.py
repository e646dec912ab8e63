"""What an evaluation reads was made of its own inputs, whatever else lies there.

Every number is compared with that of the same inputs in a fresh directory.
"""

import json
import os

import numpy as np
import pytest
from PIL import Image

from copymit.embedding.clip import CaptionEmbedder
from copymit.embedding.registry import make_embedder
from copymit.embedding.store import EmbeddingStore
from copymit.evaluation import embed_stage, score_stage
from copymit.evaluation import run as run_module
from copymit.evaluation.run import run_stages
from copymit.evaluation.subject import open_pair
from copymit.settings import evaluation_settings
from copymit.storage import write_whole

SIZE_PX = 16
STAGES = ("embed", "search", "score")


class Killed(BaseException):
    """Nothing catches it, as nothing catches a kill."""


@pytest.fixture(autouse=True)
def no_quality(monkeypatch):
    """Quality takes longest, and depends on the same features as everything else."""
    found = {"warnings": []}
    monkeypatch.setattr(score_stage, "score_quality", lambda *_: dict(found))


@pytest.fixture
def photos(rng):
    """Twelve pictures, and twelve others that are not like any of them."""
    coarse = rng.integers(0, 256, (24, 4, 4, 3), dtype=np.uint8)
    pictures = coarse.repeat(4, axis=1).repeat(4, axis=2)
    return pictures[:12], pictures[12:]


def save(folder, pictures):
    """Writes pictures under the same names, at a time that was not there before."""
    folder.mkdir(exist_ok=True)
    for i, picture in enumerate(pictures):
        path = folder / f"{i:02d}.png"
        before = path.stat().st_mtime_ns if path.exists() else 0
        Image.fromarray(picture).save(path)
        status = path.stat()
        later = max(status.st_mtime_ns, before + 1)
        os.utime(path, ns=(status.st_atime_ns, later))
    return str(folder)


@pytest.fixture
def folders(tmp_path, photos):
    """Trained images, and generations unlike them; `copy` makes these their copies."""
    trained, others = photos
    made = tmp_path / "made"

    class Folders:
        generations = save(made, others)
        references = save(tmp_path / "trained", trained)

        def copy(self):
            save(made, trained)

        def open(self, workdir="audit", prompts=None, weights=None, **settings):
            config = evaluation_settings()
            config.update(
                {"embedders": ("pixels",), "tile_l2_candidates": 0} | settings
            )
            config.weights.update(weights or {})
            images = (self.generations, self.references)
            return open_pair(*images, tmp_path / workdir, config, "it", prompts)

        def audit(self, workdir="audit", **settings):
            """Is the scores, without the page, which takes longest."""
            out = run_stages(self.open(workdir, **settings), STAGES)
            return json.loads((out / "scores.json").read_text())

    return Folders()


def dies(*_, **__):
    raise Killed


def test_an_interrupted_embedding_keeps_no_features_of_other_images(
    folders, monkeypatch
):
    assert folders.audit()["similarity_mean"] < 0.6
    folders.copy()
    with monkeypatch.context() as patch:
        patch.setattr("copymit.evaluation.embed_stage.embed_all", dies)
        with pytest.raises(Killed):
            folders.audit()
    assert folders.audit()["similarity_mean"] == pytest.approx(1, abs=1e-6)


def test_a_kill_between_two_embedders_leaves_neither_with_old_features(
    folders, monkeypatch
):
    both = {"embedders": ("pixels", "pixels_16")}
    folders.audit(**both)
    folders.copy()
    real = EmbeddingStore.write

    def first_alone(store, plan, *args):
        if plan.protocol.startswith("pixels at 16 px"):
            raise Killed
        real(store, plan, *args)

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddingStore, "write", first_alone)
        with pytest.raises(Killed):
            folders.audit(**both)
    scores = folders.audit(**both)
    for key in ("similarity_mean", "pixels_16_similarity_mean"):
        assert scores[key] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kill_after", range(0, 14, 3))
def test_a_kill_after_any_write_changes_no_number(folders, monkeypatch, kill_after):
    options = {"tiles": 2, "embedders": ("pixels", "pixels_16")}
    folders.audit(**options)
    folders.copy()
    written = []

    def counted(path, data):
        if len(written) == kill_after:
            raise Killed
        written.append(path)
        write_whole(path, data)

    with monkeypatch.context() as patch:
        for module in ("embedding.store", "evaluation.artefacts"):
            patch.setattr(f"copymit.{module}.write_whole", counted, raising=False)
        with pytest.raises(Killed):
            folders.audit(**options)
    again, fresh = folders.audit(**options), folders.audit("fresh", **options)
    assert json.dumps(again) == json.dumps(fresh)


def test_tiles_that_are_no_longer_asked_for_are_not_read(folders):
    save_as_copies = folders.copy
    save_as_copies()
    assert folders.audit(tiles=2)["template_similarity_mean"] == pytest.approx(1)
    assert "template_similarity_mean" not in folders.audit(tiles=0)


def test_prompts_that_are_gone_are_not_scored(folders, monkeypatch, photos):
    """The network is replaced: what is tested is which texts are still read."""

    def features(_, texts):
        return np.ones((len(texts), 3 * 32**2 + 1), np.float32)

    monkeypatch.setattr(
        embed_stage,
        "make_clip_captions",
        lambda *_: CaptionEmbedder("clip_vit_b16", "ones", None, (), None),
    )
    monkeypatch.setattr(embed_stage, "embed_captions", features)
    monkeypatch.setattr(
        embed_stage, "make_embedder", lambda *_: make_embedder("pixels")
    )
    options = {"clip_score": "clip_vit_b16"}
    prompted = folders.audit(prompts=list("abcdefghijkl"), **options)
    assert prompted["clip_score_count"] == 12
    assert "clip_score" not in folders.audit(**options)


def test_replaced_weights_in_a_folder_are_noticed(tmp_path, folders, monkeypatch):
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "model.safetensors").write_bytes(b"first")
    stages = []
    real = run_module._work
    monkeypatch.setattr(
        run_module, "_work", lambda *args: (stages.append(args[2]), real(*args))
    )
    monkeypatch.setattr(
        embed_stage,
        "make_embedder",
        lambda name, _: make_embedder("pixels")._replace(
            name=name, protocol=(weights / "model.safetensors").read_text()
        ),
    )
    options = {
        "embedders": ("clip_vit_b16",),
        "weights": {"clip_vit_b16": str(weights)},
    }
    folders.audit(**options)
    assert folders.audit(**options)["protocol"] == "first"
    assert stages == ["embed", "search", "score"]
    (weights / "model.safetensors").write_bytes(b"other")
    assert folders.audit(**options)["protocol"] == "other"
    assert stages[3:] == ["embed", "search", "score"]
