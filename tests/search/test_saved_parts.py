import json

import numpy as np
import pytest

from copymit.search import saved_parts
from copymit.search.nearest import search, search_exact, search_scann
from copymit.search.scann_index import ScannSettings, smaller_settings

pytest.importorskip("scann", reason="ScaNN has wheels for Linux only")

PART = 400


def unit_rows(count, dimension, seed):
    rows = np.random.default_rng(seed).normal(size=(count, dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


REFERENCES, QUERIES = unit_rows(1000, 16, 0), unit_rows(40, 16, 1)
# Every leaf is searched and every candidate scored again, so nothing may be missed.
THOROUGH = ScannSettings("tree_ah", 20, 20, 400)


@pytest.fixture
def builds(monkeypatch):
    """Counts the rows of each index that is built."""
    counts = []
    build = saved_parts.build_scann

    def counted(scann, references, *rest):
        counts.append(len(references))
        return build(scann, references, *rest)

    monkeypatch.setattr(saved_parts, "build_scann", counted)
    return counts


def find(references=REFERENCES, index_dir=None, settings=THOROUGH, **options):
    return search_scann(
        QUERIES,
        references,
        5,
        settings=settings,
        index_dir=index_dir,
        part_rows=PART,
        **options,
    )


def assert_exact(result, references=REFERENCES, **options):
    exact = search_exact(QUERIES, references, 5, **options)
    np.testing.assert_array_equal(result.neighbours.indices, exact.indices)
    assert (result.recall, result.recall_at_k) == (1.0, 1.0)


def test_parts_together_find_what_exact_search_does(builds):
    assert_exact(find())
    assert builds == [400, 400, 200]


def test_a_saved_index_is_used_again_and_answers_the_same(builds, tmp_path):
    first = find(index_dir=tmp_path)
    again = find(index_dir=tmp_path)
    assert builds == [400, 400, 200]
    np.testing.assert_array_equal(again.neighbours.indices, first.neighbours.indices)
    assert_exact(again)


def test_added_references_build_only_the_parts_that_hold_them(builds, tmp_path):
    more = np.concatenate([REFERENCES, unit_rows(300, 16, 2)])
    find(index_dir=tmp_path)
    builds.clear()
    assert_exact(find(more, tmp_path), more)
    assert builds == [400, 100]


def test_shards_of_the_references_may_be_cut_anew(builds, tmp_path):
    find(index_dir=tmp_path)
    find([REFERENCES[:123], REFERENCES[123:]], tmp_path)
    assert len(builds) == 3


def test_a_changed_row_builds_its_part_again(builds, tmp_path):
    find(index_dir=tmp_path)
    builds.clear()
    changed = REFERENCES.copy()
    changed[450] = QUERIES[0]
    result = find(changed, tmp_path)
    assert builds == [400]
    assert result.neighbours.indices[0, 0] == 450


def test_other_leaves_build_again_but_other_effort_does_not(builds, tmp_path):
    find(index_dir=tmp_path)
    builds.clear()
    find(index_dir=tmp_path, settings=ScannSettings("tree_ah", 20, 3, 50))
    assert builds == []
    find(index_dir=tmp_path, settings=ScannSettings("tree_ah", 10, 10, 400))
    assert builds == [400, 400]


def test_parts_finished_before_a_kill_are_used_again(builds, tmp_path, monkeypatch):
    save = saved_parts._save

    def killed_in_the_second_part(searcher, folder, facts):
        if folder.name.endswith("1"):
            unfinished = folder.with_name(folder.name + ".unfinished")
            unfinished.mkdir()
            (unfinished / "dataset.npy").write_bytes(b"half")
            raise KeyboardInterrupt
        save(searcher, folder, facts)

    monkeypatch.setattr(saved_parts, "_save", killed_in_the_second_part)
    with pytest.raises(KeyboardInterrupt):
        find(index_dir=tmp_path)
    monkeypatch.setattr(saved_parts, "_save", save)
    builds.clear()
    assert_exact(find(index_dir=tmp_path))
    assert builds == [400, 200]
    assert not list(tmp_path.glob("*.unfinished"))


@pytest.mark.parametrize("damage", ["cut", "pickle", "facts"])
def test_a_damaged_part_is_built_again(builds, tmp_path, damage):
    find(index_dir=tmp_path)
    builds.clear()
    part = tmp_path / "part-00001"
    if damage == "cut":
        data = (part / "dataset.npy").read_bytes()
        (part / "dataset.npy").write_bytes(data[: len(data) // 2])
    elif damage == "pickle":
        (part / "scann_docids.pkl").write_bytes(b"hostile")
    else:
        (part / "part.json").write_text("[1")
    assert_exact(find(index_dir=tmp_path))
    assert builds == [400]
    assert not (part / "scann_docids.pkl").exists()


def test_the_saved_digest_is_of_the_rows(tmp_path):
    find(index_dir=tmp_path)
    facts = json.loads((tmp_path / "part-00000" / "part.json").read_text())
    assert (facts["rows"], facts["dim"], len(facts["sha256"])) == (400, 16, 64)


def test_an_excluded_row_is_excluded_in_its_part_and_duplicates_stay():
    references = REFERENCES.copy()
    references[900] = references[3]
    own = np.arange(1000)
    result = search_scann(
        references, references, 2, exclude=own, settings=THOROUGH, part_rows=PART
    )
    exact = search_exact(references, references, 2, exclude=own)
    np.testing.assert_array_equal(result.neighbours.indices, exact.indices)
    assert result.neighbours.indices[3, 0] == 900
    assert result.neighbours.indices[900, 0] == 3


def test_a_last_part_with_fewer_rows_than_neighbours_is_merged():
    references = REFERENCES[: PART + 2]
    assert_exact(find(references), references)


def test_search_passes_the_folder_on(tmp_path):
    search(
        QUERIES,
        REFERENCES,
        2,
        backend="scann",
        index_dir=tmp_path,
        part_rows=PART,
    )
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["part-00000", "part-00001", "part-00002"]


def test_a_bucket_and_an_empty_part_are_refused():
    with pytest.raises(ValueError, match=r"gs://bucket/index.*local"):
        find(index_dir="gs://bucket/index")
    with pytest.raises(ValueError, match="part_rows is 0"):
        search_scann(QUERIES, REFERENCES, 1, part_rows=0)


def test_settings_of_the_last_part_search_the_same_share_of_leaves():
    tuned = ScannSettings("tree_ah", 1000, 20, 300)
    fitted = smaller_settings(tuned, 250_000, 10)
    assert fitted == ScannSettings("tree_ah", 500, 10, 300)
    assert smaller_settings(tuned, 5_000, 10).kind == "brute_force"
    assert smaller_settings(ScannSettings("brute_force"), 250_000, 10).reorder == 0
