"""From what real tools wrote to a prepared set, a training's data and a report.

The folders in `recorded/` were made by `record.py`; `make chains-test` makes them anew, in
an environment that has the tools, and says where with COPYMIT_CHAINS.
"""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import common
from copymit.data.dataset import load_dataset
from copymit.data.examples import describe_captions
from copymit.data.images import decode_image
from copymit.data.prepare.__main__ import main
from copymit.data.sources import load_source, open_folder, select_examples
from copymit.evaluation import evaluate

RECORDED = Path(os.environ.get("COPYMIT_CHAINS", Path(__file__).parent / "recorded"))
DOWNLOADS = ["img2dataset_webdataset", "img2dataset_files", "img2dataset_parquet"]
COMMANDS = {
    "img2dataset_webdataset": "img2dataset",
    "img2dataset_files": "img2dataset",
    "img2dataset_parquet": "huggingface",
    "save_to_disk": "huggingface",
    "imagefolder": "folder",
    "kohya": "folder",
}
TEXTS = {
    i: f"picture {i}" + ("\u2028on two lines" if i == 1 else "") for i in range(12)
}
del TEXTS[8]  # a page of HTML was there instead


@pytest.fixture
def chain(tmp_path):
    """Returns a function name -> folder."""

    def chain(name: str) -> Path:
        return make_kohya(tmp_path) if name == "kohya" else RECORDED / name

    return chain


def make_kohya(folder: Path) -> Path:
    """Lays the pictures out as kohya's trainer wants them."""
    pictures = RECORDED / "imagefolder" / "train"
    target = folder / "kohya" / "10_sks picture"
    target.mkdir(parents=True)
    for line in (pictures / "metadata.jsonl").read_text("utf-8").split("\n")[:-1]:
        row = json.loads(line)
        shutil.copy(pictures / row["file_name"], target)
        text = target / Path(row["file_name"]).with_suffix(".caption")
        text.write_text(row["text"], encoding="utf-8")
    return target.parent


@pytest.mark.parametrize("name", COMMANDS)
def test_every_image_keeps_its_caption_from_the_tool_to_the_training(
    name, chain, tmp_path, capsys
):
    main([COMMANDS[name], str(chain(name)), f"--output={tmp_path / 'out'}"])
    assert "captions: 11 of 11 images, 1 each" in capsys.readouterr().err
    config = common.get_config().data
    config.update(source=str(tmp_path / "out"), resolution=16)
    dataset = load_dataset(config, 0)
    examples = [dataset.source[int(i)] for i in dataset.indices]
    assert sorted(e.captions[0] for e in examples) == sorted(TEXTS.values())
    kinds, pixels = {}, {}
    for example in examples:
        (number,) = (i for i, text in TEXTS.items() if text == example.captions[0])
        kinds[number] = Image.open(io.BytesIO(example.image)).format
        pixels[number] = np.asarray(decode_image(example.image, example.example_id))
    # img2dataset writes JPEG whatever it gets; copymit keeps every file as it is.
    kept = name not in DOWNLOADS
    assert (kinds[3], kinds[5]) == (("AVIF", "PNG") if kept else ("JPEG", "JPEG"))
    assert all(p.shape == (12, 16, 3) for p in pixels.values())
    flat = {number for number, p in pixels.items() if not p.std()}
    assert flat == (set() if kept else {5})  # img2dataset makes 16 bits all white


def test_the_formats_of_one_download_are_one_data_set():
    drawn = []
    for name in DOWNLOADS:
        source = open_folder(RECORDED / name)
        assert describe_captions(source).startswith("captions: 11 of 11 images, 1 each")
        chosen = select_examples(source, num_examples=5, num_heldout=2, seed=4)
        captions = [{source[int(i)].captions for i in part} for part in chosen]
        ids = [{source.example_ids[int(i)] for i in part} for part in chosen]
        drawn.append((captions, ids))
    assert drawn[0] == drawn[1] == drawn[2]


def test_what_was_not_downloaded_is_left_out_by_its_key():
    source = open_folder(RECORDED / "img2dataset_parquet")
    (left_out,) = source.provenance.left_out
    assert left_out.startswith("00001/")
    assert source.metadata(0)["status"] == "success"


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_tool_wrote_is_audited_as_it_is(name, chain, tmp_path):
    folder = chain(name)
    references = open_folder(folder)
    texts = [references[i].captions[0] for i in range(len(references))]
    copied = texts.index("picture 4")
    image = decode_image(references[copied].image, "copied").resize((16, 16))
    (tmp_path / "made").mkdir()
    image.save(tmp_path / "made" / "0.png")
    result = evaluate(
        str(tmp_path / "made"),
        str(folder),
        workdir=tmp_path / "run",
        embedders=("pixels",),
        resolution=16,
        batch_size=16,
    )
    nearest = result.generations["nearest_reference"].tolist()
    assert nearest == [references.example_ids[copied]]
    assert "picture 4" in result.report.read_text("utf-8")


def test_training_names_the_command_that_prepares_what_a_tool_wrote():
    for name, command in COMMANDS.items():
        if command != "folder":
            with pytest.raises(ValueError, match=f"copymit.data.prepare {command} "):
                load_source(str(RECORDED / name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["img2dataset_webdataset", "kohya"])
def test_a_model_is_trained_and_reported_on_what_a_tool_wrote(name, chain, tmp_path):
    main([COMMANDS[name], str(chain(name)), f"--output={tmp_path / 'out'}"])
    flags = ["--config=configs/tiny.py", f"--workdir={tmp_path / 'run'}"]
    changes = {"num_examples": 8, "num_heldout": 3, "source": tmp_path / "out"}
    flags += [f"--config.data.{key}={value}" for key, value in changes.items()]
    root = Path(__file__).parents[2]
    for program in (["train.py", *flags], ["evaluate.py", flags[1]]):
        command = [sys.executable, *program]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "captions: 11 of 11 images, 1 each" in done.stderr
    (report,) = tmp_path.glob("run/eval/*/report.html")
    assert "picture" in report.read_text("utf-8")
