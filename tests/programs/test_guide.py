"""Every command of docs/guide.md runs as it stands there, on a small folder."""

import json
import re
import shlex

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.programs.conftest import ROOT

# What makes the training one of seconds; everything else is as the guide says.
TINY = (
    "data.resolution=16",
    "model.autoencoder.name=space_to_depth",
    "model.autoencoder.patch_size=4",
    "model.unet.block_out_channels=(32,)",
    "model.unet.cross_attention=(False,)",
    "model.text_encoder.max_length=8",
    "train.epochs=4.0",
    "train.evaluate_every_epochs=2.0",
    "train.evaluate_prompts=8",
    "eval.num_generations=16",
    "eval.batch_size=8",
    "eval.num_inference_steps=3",
    "eval.detection.num_prompts=8",
)
SHAPES = ("ellipse", "rectangle", "line")


def commands(text: str) -> list[list[str]]:
    """Lists the words of each command in the fenced blocks of a page."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


@pytest.fixture
def folder(tmp_path):
    """Sixty pictures with two captions each; two of them are there twice."""
    photos, rng = tmp_path / "photos", np.random.default_rng(0)
    photos.mkdir()
    captions = {}
    for i in range(60):
        colours = [tuple(map(int, rng.integers(0, 256, 3))) for _ in range(4)]
        image = Image.new("RGB", (40, 32), colours[0])
        draw = ImageDraw.Draw(image)
        for colour, shape in zip(colours[1:], SHAPES, strict=True):
            left, top = map(int, rng.integers(0, 20, 2))
            size = map(int, rng.integers(8, 20, 2))
            corners = (left, top, left + next(size), top + next(size))
            getattr(draw, shape)(corners, fill=colour)
        image.save(photos / f"{i:02}.png")
        captions[f"{i:02}.png"] = [f"picture {i}", f"shapes, number {i}"]
    for name in ("00.png", "01.png"):
        (photos / f"again-{name}").write_bytes((photos / name).read_bytes())
        captions[f"again-{name}"] = captions[name]
    (photos / "captions.json").write_text(json.dumps(captions))
    return tmp_path


def test_the_guide_has_a_command_for_each_of_its_steps():
    found = commands((ROOT / "docs" / "guide.md").read_text())
    assert {words[0] for words in found} == {"copymit"}
    verbs = [words[1] for words in found]
    assert verbs == ["analyze", "train", "evaluate", "evaluate", "evaluate", "evaluate"]


@pytest.mark.slow
def test_the_guide_leads_to_a_model_and_its_reports(programs, folder):
    said = {}
    for words in commands((ROOT / "docs" / "guide.md").read_text()):
        verb, *rest = words[1:]
        if verb == "train":
            rest = [word.replace("=finetune", "=finetune:small") for word in rest]
            rest += [f"--config.{change}" for change in TINY]
        # As a shell would: `copymit` is this program where it is installed.
        process = programs.start("-m", "copymit", verb, *rest, cwd=folder)
        said[" ".join(words)] = programs.finish(process)
    run = folder / "runs" / "mine"
    (step,) = (int(path.name) for path in (run / "checkpoints").iterdir())
    assert step == 4 * 54 // 16 + 1
    settings = json.loads((run / "config.json").read_text())["config"]
    assert settings["mitigation"]["train"]["multiple_captions"]
    scores = {}
    for name in (str(step), "heldout", "repelled"):
        assert (run / "eval" / name / "report.html").exists()
        scores[name] = json.loads((run / "eval" / name / "scores.json").read_text())
    assert all(0 <= found["copied_share"] <= 1 for found in scores.values())
    prompts = (run / "eval" / "heldout" / "prompts.jsonl").read_text()
    assert len(prompts.splitlines()) == 16
    assert (run / "eval" / str(step) / "detection.json").exists()
    everything = "".join(said.values())
    assert "2 would be left out" in everything
    assert "Traceback" not in everything
