"""The command: from images to a data set that training and others read."""

import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from configs import demo
from copymit.data.captions_file import write_captions
from copymit.data.dataset import load_dataset
from copymit.data.examples import describe_captions
from copymit.data.folder_source import FolderSource
from copymit.data.prepare.__main__ import main
from copymit.data.record_source import RecordSource
from copymit.data.sources import load_source


def captions_of(folder):
    ids = FolderSource(folder).example_ids
    return {name: [f"{name} {k}" for k in range(3)] for name in ids}


def load(source, captions=None):
    config = demo.get_config().data
    config.unlock()
    config.update(
        {"source": str(source), "captions": captions, "classes": (), "num_examples": 8}
    )
    config.update({"num_heldout": 2, "duplicated_fraction": 0.25})
    return load_dataset(config, seed=3)


def test_training_draws_the_same_examples_from_a_prepared_folder(folder, tmp_path):
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps(captions_of(folder)))
    output = tmp_path / "out"
    main(["folder", str(folder), f"--output={output}", f"--captions={captions}"])
    prepared, plain = load(output), load(folder, str(captions))
    assert isinstance(prepared.source, RecordSource)
    assert prepared.example_ids == plain.example_ids
    assert prepared.heldout_ids == plain.heldout_ids
    np.testing.assert_array_equal(
        prepared.duplication.weights, plain.duplication.weights
    )
    for i in plain.indices:
        assert prepared.source[i] == plain.source[i]
    assert len(prepared.source[0].captions) == 3


def test_a_mistake_is_told_in_one_line(folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["folder", str(folder / "absent"), f"--output={tmp_path / 'out'}"])
    assert str(stopped.value).startswith("error: no folder")
    with pytest.raises(SystemExit):
        main(["folder", str(folder)])
    assert "--output" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"absent.png": ["x"]}, "1 captions for images that are absent"),
        ({"cats/01.png": []}, "1 images without captions"),
        ({"cats/01.png": [" "]}, "1 entries with an empty caption"),
    ],
)
def test_captions_that_do_not_fit_are_refused(folder, tmp_path, change, message):
    captions = tmp_path / "captions.json"
    captions.write_text(json.dumps({**captions_of(folder), **change}))
    with pytest.raises(SystemExit, match=message):
        main(
            [
                "folder",
                str(folder),
                f"--output={tmp_path}/out",
                f"--captions={captions}",
            ]
        )
    assert not (tmp_path / "out").exists()


def test_tensorflow_datasets_reads_it_without_tensorflow(folder, tmp_path):
    pytest.importorskip("tensorflow_datasets", reason="needs the extra `prepare`")
    main(["folder", str(folder), f"--output={tmp_path / 'out'}"])
    program = f"""
import sys
import tensorflow_datasets as tfds
builder = tfds.builder_from_directory({str(tmp_path / "out")!r})
raw = {{"image": tfds.decode.SkipDecoding()}}
data = builder.as_data_source(split="train", decoders=raw)
last = data[len(data) - 1]
print(len(data), last["example_id"], last["captions"], last["label"], len(last["image"]))
print(builder.as_data_source(split="train")[0]["image"].shape)
print(builder.info.features["label"].names, "tensorflow" in sys.modules)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    size = (folder / "dogs/10.png").stat().st_size
    assert done.stdout.splitlines() == [
        f"12 b'dogs/10.png' [] 1 {size}",
        "(16, 16, 3)",
        "['cats', 'dogs'] False",
    ]


def test_real_photos_of_imagenette_keep_their_bytes(shared_data, tmp_path):
    with tarfile.open(shared_data / "imagenette2-224.tar") as tar:
        photos = [entry for entry in tar if "/val/" in entry.name and entry.isfile()]
        tar.extractall(tmp_path, members=photos[::5], filter="data")
    folder = tmp_path / "imagenette2-224" / "val"
    main(["folder", str(folder), f"--output={tmp_path / 'out'}"])
    source, prepared = FolderSource(folder), RecordSource(tmp_path / "out")
    assert len(prepared) == len(photos[::5]) == 100
    assert "English springer" in prepared.class_names
    assert all(prepared[i] == source[i] for i in range(100))


def test_captions_of_a_model_make_a_prepared_set_with_several(folder, tmp_path):
    prepared, captions = tmp_path / "prepared", tmp_path / "captions.json"
    main(["folder", str(folder), f"--output={prepared}"])
    source = load_source(str(prepared))
    assert not source.caption_counts.any()
    write_captions(
        captions, ((i, [f"{i} {n}" for n in "abc"]) for i in source.example_ids)
    )
    # Trained with at once, or written as a set of its own.
    both = load_source(str(prepared), captions=str(captions))
    assert describe_captions(both).endswith("12 images, 3 each, from captions.json")
    again = tmp_path / "again"
    main(["prepared", str(prepared), f"--output={again}", f"--captions={captions}"])
    for index, example in enumerate(
        map(load_source(str(again)).__getitem__, range(12))
    ):
        assert example == both[index]
        assert example.image == source[index].image
        assert len(example.captions) == 3
    captions.write_text('{"cats/01.png": ["x"]}')
    with pytest.raises(ValueError, match="11 images without captions"):
        load_source(str(prepared), captions=str(captions))
