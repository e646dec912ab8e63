"""When the inputs of a stage count as changed, and which stages there are."""

import os

import pytest

from copymit.evaluation.stages import (
    check_stages,
    compute_digest,
    content_digest,
)


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
