"""The Beam pipeline: exactly as many as asked for, the same bytes for any workers."""

import io
import json
import tarfile

import pytest
from PIL import Image

from copymit.data.record_source import RecordSource

pytest.importorskip(
    "apache_beam", reason="Beam needs an environment of its own: make beam-test"
)

from apache_beam.options.pipeline_options import PipelineOptions

from copymit.data.prepare.beam import list_tars, prepare
from copymit.data.prepare.write import Settings


@pytest.fixture
def tars(tmp_path, noise):
    """Three shards of eight images each; one image of each shard is cut off."""
    (tmp_path / "tars").mkdir()
    for shard in range(3):
        with tarfile.open(tmp_path / "tars" / f"{shard:05d}.tar", "w") as tar:
            for i in range(8):
                number = 8 * shard + i
                image = noise(number, 16, "JPEG")
                facts = {"url": f"http://e.com/{number}.jpg", "similarity": number / 8}
                members = {
                    "jpg": image[: len(image) // 2] if i == 3 else image,
                    "txt": f"picture {number}".encode(),
                    "json": json.dumps(facts).encode(),
                }
                for suffix, data in members.items():
                    entry = tarfile.TarInfo(f"{shard:05d}{i:04d}.{suffix}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
    return list_tars(str(tmp_path / "tars" / "*.tar"))


def run(tars, output, workers=1, **settings):
    options = PipelineOptions(
        [
            "--runner=DirectRunner",
            f"--direct_num_workers={workers}",
            "--direct_running_mode=multi_threading",
        ]
    )
    settings = Settings(**{"on_corrupt": "skip", "shard_bytes": 2_000} | settings)
    return prepare(tars, output, settings, options)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_exactly_as_many_good_examples_as_asked_for_are_written(tars, tmp_path):
    summary = run(tars, tmp_path / "out", num_examples=15)
    source = RecordSource(tmp_path / "out")
    assert summary.num_examples == len(source) == 15
    assert len(set(source.example_ids)) == 15
    for i in range(15):
        example = source[i]
        number = int(example.captions[0].removeprefix("picture "))
        assert example.example_id.endswith(f"{number // 8:05d}{number % 8:04d}")
        Image.open(io.BytesIO(example.image)).load()


def test_the_bytes_do_not_depend_on_the_number_of_workers(tars, tmp_path):
    for workers in (1, 2):
        run(tars, tmp_path / str(workers), workers, num_examples=15)
    assert files(tmp_path / "1") == files(tmp_path / "2")
    assert len(list((tmp_path / "1").glob("*.array_record-*"))) > 1


def test_another_seed_draws_others_and_bad_ones_are_listed(tars, tmp_path):
    drawn = []
    for seed in (0, 1):
        summary = run(tars, tmp_path / str(seed), num_examples=10, seed=seed)
        drawn.append(set(RecordSource(tmp_path / str(seed)).example_ids))
    assert drawn[0] != drawn[1]
    everything = run(tars, tmp_path / "all")
    assert everything.num_examples == 21
    assert len(everything.skipped) == 3
    assert len(summary.skipped) <= 3


def test_more_than_there_are_is_refused(tars, tmp_path):
    with pytest.raises(ValueError, match="22 examples are wanted"):
        run(tars, tmp_path / "out", num_examples=22)
