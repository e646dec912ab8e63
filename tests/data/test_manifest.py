"""Manifests: which images are trained on, how often, and which captions vary."""

import io
import json
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy import stats

from configs import common
from copymit.data.captions import VariedCaptions, make_caption_function
from copymit.data.dataset import load_dataset, make_captions
from copymit.data.duplication import duplication_table
from copymit.data.examples import Example, Provenance
from copymit.data.manifest import (
    MAX_FACTOR,
    listed_duplication,
    match_manifest,
    read_manifest,
    select_listed,
)
from copymit.data.pipeline import Draws, iterate_batches, load_images
from copymit.data.schedule import example_at, make_schedule
from copymit.data.tokenizer import make_tokenizer

NAMES = tuple(f"{i:02}.png" for i in range(20))
# Two left out, five repeated.
FACTORS = np.array([0, 0] + [1] * 13 + [2, 3, 4, 5, 30])


@pytest.fixture
def folder(tmp_path):
    """Twenty pictures with three captions each; those of the last are four."""
    (tmp_path / "images").mkdir()
    for i, name in enumerate(NAMES):
        image = Image.new("RGB", (4, 4), (10 * i, 0, 0))
        image.save(tmp_path / "images" / name)
    texts = {name: [f"{name} {i}" for i in range(3)] for name in NAMES}
    texts[NAMES[-1]].append("more")
    (tmp_path / "captions.json").write_text(json.dumps(texts))
    return tmp_path / "images"


def _write(folder, table, suffix="csv"):
    path = folder.parent / f"manifest.{suffix}"
    if suffix == "csv":
        pd.DataFrame(table).to_csv(path, index=False)
    else:
        pd.DataFrame(table).to_parquet(path, index=False)
    return path


def _rows(policies=None, factors=FACTORS):
    rows = {"example_id": NAMES, "factor": factors}
    return rows if policies is None else rows | {"captions": policies}


def _config(folder, path, **changes):
    config = common.get_config().data
    config.update(
        {
            "source": str(folder),
            "captions": str(folder.parent / "captions.json"),
            "manifest": str(path),
        }
        | changes
    )
    return config


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_manifest_says_which_images_are_trained_on_and_how_often(folder, suffix):
    rng = np.random.default_rng(0)
    shuffled = pd.DataFrame(_rows()).iloc[rng.permutation(20)]
    path = _write(folder, shuffled, suffix)
    dataset = load_dataset(_config(folder, path), seed=0)
    assert dataset.example_ids == list(NAMES[2:])
    assert dataset.duplication.weights.tolist() == FACTORS[2:].tolist()
    assert dataset.duplication.duplicated.tolist() == [False] * 13 + [True] * 5
    assert dataset.heldout_ids == []
    table = duplication_table(
        dataset.example_ids,
        dataset.duplication,
        dataset.source.caption_counts[dataset.indices],
    )
    assert table.column_names == ["example_id", "weight", "duplicated", "caption_count"]
    assert table["caption_count"].to_pylist() == [3] * 17 + [4]


def test_held_out_images_are_drawn_from_those_left_out(folder):
    factors = np.where(np.arange(20) < 12, 0, 1)
    config = _config(folder, _write(folder, _rows(factors=factors)), num_heldout=4)
    dataset, other = (load_dataset(config, seed) for seed in (0, 1))
    assert len(dataset.heldout) == 4
    assert set(dataset.heldout_ids) <= set(NAMES[:12])
    assert other.heldout_ids != dataset.heldout_ids
    config.num_heldout = 6
    assert set(load_dataset(config, 0).heldout_ids) > set(dataset.heldout_ids)
    config.num_heldout = 13
    with pytest.raises(
        ValueError, match=r"num_heldout=13, but .* leaves out 12 images"
    ):
        load_dataset(config, seed=0)


def test_a_corrupt_image_that_is_left_out_does_no_harm(folder):
    (folder / NAMES[0]).write_bytes(b"not an image")
    config = _config(folder, _write(folder, _rows()))
    assert len(load_dataset(config, seed=0).indices) == 18
    (folder / NAMES[2]).write_bytes(b"not an image")
    config.on_corrupt = "skip"
    dataset = load_dataset(config, seed=0)
    assert dataset.duplication.weights.tolist() == FACTORS[3:].tolist()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_captions_vary_where_the_manifest_says_any(folder, suffix):
    policies = ["first"] * 14 + ["any"] * 5 + ["first"]
    config = _config(folder, _write(folder, _rows(policies), suffix))
    dataset = load_dataset(config, seed=0)
    # One with factor 1 is marked, too: the control.
    assert dataset.duplication.duplicated.tolist() == [False] * 12 + [True] * 6
    caption = make_captions(config, dataset.source, make_tokenizer(), seed=0)
    rng = np.random.default_rng(0)
    for index, duplicated in enumerate(dataset.duplication.duplicated):
        example = dataset.source[int(dataset.indices[index])]
        texts = [caption(example, duplicated, rng) for _ in range(300)]
        if 12 <= index < 17:
            counts = [texts.count(text) for text in example.captions]
            assert sum(counts) == 300
            assert stats.chisquare(counts).pvalue > 1e-4
        else:
            assert set(texts) == {example.captions[0]}
        # A prompt of the evaluation is never varied.
        assert caption(example, False, rng) == example.captions[0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            {"factor": [1, -1, 1]},
            r"1 factors in .* out of range.*0 to 1000000: '1: -1'",
        ),
        ({"factor": [1, 2.5, 1]}, r"factors in .* out of range|holds double"),
        ({"factor": [1, 1, MAX_FACTOR + 1]}, r"out of range.*'2: 1000001'"),
        ({"factor": [10**12, 1, 1]}, r"out of range.*'0: 1000000000000'"),
        ({"factor": ["1", "x", "1"]}, r"1 factors in .*'1: x'"),
        ({"factor": [0, 0, 0]}, r"leaves every image out: give some a factor of 1"),
        ({"example_id": ["a", "b", "a"]}, r"1 ids are listed twice in .*: 'a'"),
        ({"captions": ["any", "all", "first"]}, r"policies in .* unknown.*any: 'all'"),
        ({"caption": ["any"] * 3}, r"has the columns \['example_id', 'factor', 'capt"),
        ({"captions": ["any", None, "first"]}, r"empty cells|policies .* unknown"),
        ({"example_id": None}, r"has the columns \['factor'\]: its columns are exam"),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_wrong_row_is_named(tmp_path, rows, message, suffix):
    whole = {"example_id": ["0", "1", "2"], "factor": [1, 1, 1]} | rows
    table = {name: column for name, column in whole.items() if column is not None}
    path = _write(tmp_path / "images", table, suffix)
    with pytest.raises(ValueError, match=message) as error:
        read_manifest(path)
    assert str(path) in str(error.value)


def test_an_id_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"example_id": [1, 2], "factor": [1, 1]}), path)
    with pytest.raises(ValueError, match="example_id holds int64, not text"):
        read_manifest(path)


def test_numbers_and_quoted_commas_are_good_ids(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text('example_id,factor\n007, 3 \n"a, b",1\nNA,2\n')
    manifest = read_manifest(path)
    assert manifest.example_ids.to_pylist() == ["007", "a, b", "NA"]
    assert manifest.factors.tolist() == [3, 1, 2]
    assert manifest.varied.tolist() == [False] * 3


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b'{"a": 1}', b"PAR1PAR1"])
def test_a_file_that_is_no_table_is_named(tmp_path, suffix, content):
    path = tmp_path / f"m.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"m\.{suffix}' .*its columns are"):
        read_manifest(path)


def test_a_missing_manifest_and_one_of_another_kind_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no manifest: .*gone\.csv' is not a"):
        read_manifest(tmp_path / "gone.csv")
    with pytest.raises(ValueError, match=r"m\.json' must end in \.csv or \.parquet"):
        read_manifest(tmp_path / "m.json")


def test_ids_that_do_not_fit_the_data_are_named(folder):
    fewer = pd.DataFrame(_rows()).iloc[3:]
    with pytest.raises(ValueError, match=r"3 images are not listed .*factor 0.*'00\.p"):
        load_dataset(_config(folder, _write(folder, fewer)), seed=0)
    more = pd.DataFrame(_rows())
    more.loc[20] = ["gone.png", 1]
    with pytest.raises(ValueError, match=r"1 ids of .* are not in .*: 'gone\.png'"):
        load_dataset(_config(folder, _write(folder, more)), seed=0)


def test_varied_captions_need_several_of_them(folder):
    path = folder.parent / "captions.json"
    texts = json.loads(path.read_text())
    for name in NAMES[1:3]:
        texts[name] = texts[name][:1]
    path.write_text(json.dumps(texts))
    config = _config(folder, _write(folder, _rows(["any"] * 20)))
    # The second has one caption as well, but it is left out.
    with pytest.raises(ValueError, match=r"1 images have captions 'any'.*: '02\.png'"):
        load_dataset(config, seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"duplication": "full"}, r"data\.duplication='full' contradicts data\.manif"),
        ({"duplication": "partial"}, r"set data\.duplication='none', or data\.manifes"),
        ({"num_examples": 5}, r"data\.num_examples=5 contradicts"),
        ({"classes": ("x",)}, r"data\.classes=\('x',\) contradicts"),
        ({"caption_style": "fixed"}, r"varies captions \('any'\).*'fixed' gives an im"),
        (
            {"duplication_mode": "counts", "sampling": "replacement"},
            r"'counts' promises exact counts .*'replacement' draws at random",
        ),
        ({"duplication_mode": "exact"}, r"'exact' is not known: use one of weights, c"),
    ],
)
def test_settings_that_contradict_the_manifest_are_refused(folder, changes, message):
    path = _write(folder, _rows(["any"] * 20))
    with pytest.raises(ValueError, match=message):
        load_dataset(_config(folder, path, **changes), seed=0)


# The draws.


def _encode(texts):
    """The number after the file name; 9 where there is none."""
    return np.array([[int(t[-1]) if t[-1:].isdigit() else 9, 0] for t in texts])


@pytest.fixture
def make_draws(folder):
    policies = ["first"] * 15 + ["any"] * 4 + ["first"]
    config = _config(folder, _write(folder, _rows(policies)))
    dataset = load_dataset(config, seed=0)
    images = load_images(dataset.source, dataset.indices, 4)

    def make(sampling="epochs", **changes) -> Draws:
        settings = {
            "num_steps": 24,
            "batch_size": 8,
            "caption_dropout": 0.0,
            "random_flip": True,
            "process_index": 0,
            "process_count": 1,
        }
        return Draws(
            images,
            dataset.duplication.duplicated,
            make_schedule(dataset.duplication.weights, sampling, 0),
            make_captions(config, dataset.source, make_tokenizer(), 0),
            _encode,
            **settings | changes,
        )

    return make


def _assert_same(actual, expected) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)


def test_every_epoch_holds_each_image_exactly_factor_times(make_draws):
    schedule = make_draws().schedule
    total = FACTORS.sum()
    assert schedule.epoch_draws == total == 57
    orders = []
    for epoch in (0, 1, 9):
        drawn = [example_at(schedule, epoch * total + i) for i in range(total)]
        np.testing.assert_array_equal(np.bincount(drawn), FACTORS[2:])
        orders.append(tuple(drawn))
    assert len(set(orders)) == 3


def test_draws_with_replacement_follow_the_factors(make_draws):
    schedule = make_draws("replacement").schedule
    drawn = [example_at(schedule, i) for i in range(6000)]
    counts = np.bincount(drawn, minlength=18)
    expected = FACTORS[2:] / FACTORS.sum() * len(drawn)
    assert stats.chisquare(counts, expected).pvalue > 1e-3


def test_only_the_listed_captions_vary_in_the_batches(make_draws):
    draws = make_draws("replacement", num_steps=1, batch_size=2000)
    records = [draws[i] for i in range(2000)]
    numbers = np.array([r["input_ids"][0] for r in records])
    index = np.array([r["example_index"] for r in records])
    varied = (index >= 13) & (index < 17)
    assert set(numbers[~varied]) == {0}
    assert stats.chisquare(np.bincount(numbers[varied], minlength=3)).pvalue > 1e-3


@pytest.mark.parametrize("sampling", ["epochs", "replacement"])
@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_batches_of_one(make_draws, sampling, count):
    alone = list(iterate_batches(make_draws(sampling), 0))
    together = [
        list(
            iterate_batches(
                make_draws(sampling, process_index=i, process_count=count), 0
            )
        )
        for i in range(count)
    ]
    assert len(alone) == 24
    for step, expected in enumerate(alone):
        parts = [batches[step] for batches in together]
        joined = {k: np.concatenate([p[k] for p in parts]) for k in expected}
        _assert_same(joined, expected)


@pytest.mark.parametrize("sampling", ["epochs", "replacement"])
def test_a_run_resumed_at_any_step_goes_on_as_if_nothing_happened(make_draws, sampling):
    whole = list(iterate_batches(make_draws(sampling), 0))
    for first_step in range(24):
        batch = next(iterate_batches(make_draws(sampling), first_step))
        _assert_same(batch, whole[first_step])


# At scale.

MILLION = 1_000_000


class MillionImages:
    """One picture under a million names."""

    def __init__(self):
        self.example_ids = [f"{i % 1000:03}/image_{i:08}.jpg" for i in range(MILLION)]
        self.labels = np.full(MILLION, -1, np.int32)
        self.caption_counts = np.full(MILLION, 2, np.int32)
        self.class_names = ()
        self.provenance = Provenance()
        file = io.BytesIO()
        Image.new("RGB", (64, 64)).save(file, "JPEG")
        self._image = file.getvalue()

    def __len__(self) -> int:
        return MILLION

    def __getitem__(self, index: int) -> Example:
        captions = VariedCaptions(("x 0", "x 1"))
        return Example(self.example_ids[index], self._image, captions, None)


def test_a_million_rows_are_ready_within_seconds_and_drawn_exactly(tmp_path):
    source = MillionImages()
    rng = np.random.default_rng(0)
    factors = rng.choice([0, 1, 1, 1, 1, 20], MILLION)
    varied = rng.random(MILLION) < 0.1
    order = rng.permutation(MILLION)
    ids = pa.array(source.example_ids)
    columns = [ids, pa.array(factors), pa.array(np.where(varied, "any", "first"))]
    table = pa.table(columns, names=["example_id", "factor", "captions"])
    pq.write_table(table.take(order), tmp_path / "m.parquet")

    # Of this process alone, whatever else the machine does.
    started = time.process_time()
    manifest = match_manifest(read_manifest(tmp_path / "m.parquet"), source, "m")
    selection = select_listed(manifest, 100, seed=0)
    duplication = listed_duplication(manifest, selection.train)
    schedule = make_schedule(duplication.weights, "epochs", seed=0)
    draws = Draws(
        load_images(source, selection.train, 64),
        duplication.duplicated,
        schedule,
        make_caption_function("instance", "none", (), decode=str, seed=0),
        _encode,
        num_steps=1000,
        batch_size=64,
        caption_dropout=0.0,
        random_flip=True,
        process_index=0,
        process_count=1,
    )
    batch = next(iterate_batches(draws, 900))
    elapsed = time.process_time() - started
    assert elapsed < 12, "a tenth of this was measured on two slow cores"

    np.testing.assert_array_equal(manifest.factors, factors)
    np.testing.assert_array_equal(manifest.varied, varied)
    np.testing.assert_array_equal(selection.train, np.flatnonzero(factors))
    assert (factors[selection.heldout] == 0).all()
    assert schedule.epoch_draws == factors.sum()
    expected = [example_at(schedule, 900 * 64 + i) for i in range(64)]
    np.testing.assert_array_equal(batch["example_index"], expected)
    # Images with factor 20 are five sixths of the draws' mass, and are drawn so.
    drawn = [example_at(schedule, i) for i in range(2000)]
    repeated = int((duplication.weights[drawn] == 20).sum())
    share = 20 * (factors == 20).sum() / factors.sum()
    assert stats.binomtest(repeated, 2000, share).pvalue > 1e-3
