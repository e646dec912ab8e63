"""Which stages count as finished, and when their inputs count as changed."""

import os

import pytest
from etils import epath

from copymit.evaluation.stages import (
    STAGES,
    StageRecord,
    check_stages,
    compute_digest,
    content_digest,
)


@pytest.fixture
def directory(tmp_path):
    return epath.Path(tmp_path)


def test_a_stage_is_done_only_with_the_inputs_it_finished_with(directory):
    record = StageRecord(directory)
    record.finish("embed", "these inputs")
    for again in (record, StageRecord(directory)):
        assert again.is_done("embed", "these inputs")
        assert not again.is_done("embed", "other inputs")
        assert not again.is_done("search", "these inputs")


def test_a_stage_that_begins_makes_the_later_ones_out_of_date(directory):
    record = StageRecord(directory)
    for stage in STAGES:
        record.finish(stage, stage)
    record.begin("search")
    done = [s for s in STAGES if StageRecord(directory).is_done(s, s)]
    assert done == ["generate", "embed"]


def test_a_record_that_was_not_finished_does_not_count(directory):
    StageRecord(directory).finish("generate", "inputs")
    (directory / "stages.partial").write_text('{"generate": "in')
    assert StageRecord(directory).is_done("generate", "inputs")
    StageRecord(directory).finish("embed", "inputs")
    assert StageRecord(directory).is_done("embed", "inputs")


def test_a_digest_depends_on_every_value_but_not_on_the_order_of_keys():
    inputs = {"steps": 25, "guidance": 2.0, "embedders": ("a", "b")}
    digest = compute_digest(inputs)
    assert digest == compute_digest(dict(reversed(inputs.items())))
    assert digest == compute_digest(inputs | {"embedders": ["a", "b"]})
    for change in ({"steps": 26}, {"guidance": 2.5}, {"embedders": ("b", "a")}):
        assert compute_digest(inputs | change) != digest


def test_a_folder_changes_with_names_sizes_and_times(tmp_path):
    (tmp_path / "class").mkdir()
    image = tmp_path / "class" / "a.png"
    image.write_bytes(b"1234")
    digests = [content_digest(tmp_path)]
    assert content_digest(tmp_path) == digests[0]

    image.write_bytes(b"123456")
    digests.append(content_digest(tmp_path))
    os.utime(image, ns=(0, 0))
    digests.append(content_digest(tmp_path))
    image.rename(tmp_path / "class" / "b.png")
    digests.append(content_digest(tmp_path))
    (tmp_path / "class" / "c.png").write_bytes(b"")
    digests.append(content_digest(tmp_path))
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize("names", [["judge"], ["embed", "Score"], []])
def test_stages_that_do_not_exist_are_refused(names):
    with pytest.raises(ValueError, match="generate,embed,search,score,detect,report"):
        check_stages(names)


def test_any_known_stages_are_accepted():
    check_stages(["report", "embed"])
