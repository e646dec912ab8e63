"""Every image is decoded once, and a file again only after it changed."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from configs import common
from copymit.data import checking
from copymit.data.checking import check_images
from copymit.data.dataset import load_dataset
from copymit.data.examples import Example, Provenance
from copymit.data.images import MAX_PIXELS
from copymit.data.prepare.write import Settings, write_data_set
from copymit.data.record_source import RecordSource, shard_name
from copymit.data.sources import FolderSource, load_source


def encode(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    generator = np.random.default_rng(seed)
    return Image.fromarray(
        generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


class ListSource:
    """Encoded images in memory, by id."""

    def __init__(self, files: dict[str, bytes]):
        self.files = files
        self.example_ids = list(files)
        self.labels = np.full(len(files), -1, np.int32)
        self.caption_counts = np.ones(len(files), np.int32)
        self.class_names = ()
        self.provenance = Provenance()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        example_id = self.example_ids[index]
        return Example(example_id, self.files[example_id], ("An image",), None)


def damaged_source() -> ListSource:
    good = encode(noise(8, 8))
    return ListSource(
        {"a.png": good, "b.png": good[:60], "c.png": good, "d.jpg": b"no image"}
    )


def test_good_images_are_all_kept():
    source = ListSource({f"{i}.png": encode(noise(8, 8, i)) for i in range(70)})
    kept, skipped = check_images(source, np.arange(69, -1, -1), "stop")
    np.testing.assert_array_equal(kept, np.arange(69, -1, -1))
    assert kept.dtype == np.int64
    assert skipped == []


def test_stop_lists_every_corrupt_image():
    with pytest.raises(ValueError, match=r"2 of 4 images cannot be used") as error:
        check_images(damaged_source(), range(4), "stop")
    assert "'b.png' is corrupt or truncated" in str(error.value)
    assert "'d.jpg' is not a readable JPEG" in str(error.value)
    assert 'set on_corrupt to "skip"' in str(error.value)


def test_skip_returns_and_logs_the_corrupt_images(caplog):
    with caplog.at_level("WARNING"):
        kept, skipped = check_images(damaged_source(), [3, 2, 1, 0], "skip")
    np.testing.assert_array_equal(kept, [2, 0])
    assert [example_id for example_id, _ in skipped] == ["d.jpg", "b.png"]
    assert "corrupt or truncated" in skipped[1][1]
    assert "skipping 2 of 4 images" in caplog.text
    assert "b.png" in caplog.text


def test_only_the_given_indices_are_checked():
    kept, skipped = check_images(damaged_source(), [0, 2], "stop")
    np.testing.assert_array_equal(kept, [0, 2])
    assert skipped == []
    assert len(check_images(damaged_source(), [], "stop")[0]) == 0


def test_nothing_but_corrupt_images_is_an_error_even_when_skipping():
    with pytest.raises(ValueError, match="2 of 2 images cannot be used"):
        check_images(damaged_source(), [1, 3], "skip")


def test_a_file_that_vanished_counts_as_corrupt():
    class Vanishing(ListSource):
        def __getitem__(self, index):
            if index == 1:
                raise FileNotFoundError("no such file: b.png")
            return super().__getitem__(index)

    good = encode(noise(8, 8))
    kept, skipped = check_images(Vanishing({"a": good, "b": good}), [0, 1], "skip")
    np.testing.assert_array_equal(kept, [0])
    assert skipped == [("b", "cannot be read (no such file: b.png)")]


def test_check_images_applies_and_checks_its_bounds():
    source = damaged_source()
    with pytest.raises(ValueError, match="8 x 8, more than 63 pixels"):
        check_images(source, [0], "stop", max_pixels=63)
    with pytest.raises(ValueError, match=r"max_pixels must be in \[1, "):
        check_images(source, [0], "stop", max_pixels=MAX_PIXELS + 1)
    with pytest.raises(ValueError, match='on_corrupt must be "stop" or "skip"'):
        check_images(source, [0], "ignore")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    for i in range(9):
        noise(6, 6, i).save(tmp_path / "data" / f"{i}.png")
    return tmp_path / "data"


@pytest.fixture
def decoded(monkeypatch):
    """The names of the images that were decoded."""
    names = []
    decode = checking.decode_image
    monkeypatch.setattr(
        checking, "decode_image", lambda d, n, m: names.append(n) or decode(d, n, m)
    )
    return names


def open_run(folder, workdir, seed=0, **changes):
    config = common.get_config().data
    config.update({"source": str(folder), "num_examples": 6, **changes})
    config.caption_style = "fixed"
    return load_dataset(config, seed, workdir)


def test_a_second_start_and_another_run_beside_it_decode_nothing(folder, decoded):
    runs = folder.parent / "runs"
    first = open_run(folder, runs / "a")
    assert sorted(decoded) == sorted(first.example_ids)
    decoded.clear()
    assert open_run(folder, runs / "a").example_ids == first.example_ids
    assert open_run(folder, runs / "b").example_ids == first.example_ids
    assert decoded == []
    # Another selection: only what no run has had.
    other = open_run(folder, runs / "c", num_examples=9)
    assert sorted(decoded) == sorted(set(other.example_ids) - set(first.example_ids))


def test_a_changed_file_is_decoded_again_and_its_fault_found(folder, decoded):
    workdir = folder.parent / "runs" / "a"
    names = open_run(folder, workdir).example_ids
    path = folder / names[2]
    before = path.stat()
    path.write_bytes(bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    decoded.clear()
    with pytest.raises(
        ValueError, match=rf"1 of 6 images cannot be used:\n  '{path.name}"
    ):
        open_run(folder, workdir)
    assert decoded == [path.name]
    # What is bad is no memory: it is found at every start.
    assert open_run(folder, workdir, on_corrupt="skip").skipped[0][0] == path.name
    noise(6, 6, 100).save(path)
    assert len(open_run(folder, workdir).example_ids) == 6
    assert decoded == [path.name] * 3


def test_a_file_of_the_same_name_in_another_folder_is_another(folder, decoded):
    twin = folder.parent / "twin" / "data"
    twin.mkdir(parents=True)
    for path in folder.iterdir():
        (twin / path.name).write_bytes(path.read_bytes())
        os.utime(twin / path.name, ns=(0, path.stat().st_mtime_ns))
    for place in (folder, twin):
        open_run(place, folder.parent / "runs" / "a")
    assert len(decoded) == 12


def test_a_memory_that_cannot_be_read_or_written_only_costs_time(folder, caplog):
    runs = folder.parent / "runs"
    open_run(folder, runs / "a")
    (memory,) = (runs / "checked_images").iterdir()
    memory.write_bytes(b"cut")
    assert len(open_run(folder, runs / "a").example_ids) == 6
    assert "is not used" in caplog.text
    memory.unlink()
    memory.parent.rmdir()
    memory.parent.write_text("in the way")
    assert len(open_run(folder, runs / "a").example_ids) == 6
    assert "the next start checks all images again" in caplog.text


def test_what_copymit_prepared_or_brings_along_is_not_decoded(folder, decoded):
    write_data_set(FolderSource(folder), folder.parent / "out", Settings())
    dataset = open_run(folder.parent / "out", folder.parent / "run")
    assert isinstance(dataset.source, RecordSource)
    assert len(dataset.example_ids) == 6
    check_images(load_source("fluent_emoji"), [3, 5])
    assert decoded == []
    (folder.parent / "out" / shard_name(0)).unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of its 1 files .*00000"):
        open_run(folder.parent / "out", folder.parent / "run")


def test_a_check_tells_its_rate(caplog):
    source = ListSource({f"{i}.png": encode(noise(8, 8, i)) for i in range(40)})
    with caplog.at_level("INFO"):
        check_images(source, range(40))
    assert "images checked 40/40" in caplog.text
    assert "images/s" in caplog.text
