import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from copymit.analysis import analyze as analyze_module
from copymit.analysis.__main__ import main
from copymit.analysis.analyze import (
    Settings,
    analyze,
    check_settings,
    settings_for_few,
)
from copymit.analysis.opening import open_data
from copymit.data.examples import Example, Provenance
from copymit.data.sources import load_source
from copymit.embedding.registry import make_embedder
from tests.analysis.planted import (
    BOTH,
    CAPTION_ONLY,
    EXACT_FILE,
    EXACT_PIXELS,
    NEAR,
    draw_picture,
    plant,
    png,
)

PIXELS = Settings(embedder="pixels", resolution=64, threshold=0.93, gallery_size=5)
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)>"


class Listed:
    """A source of the given examples."""

    class_names = ()
    provenance = Provenance()

    def __init__(self, examples):
        self._examples = examples
        self.example_ids = [example.example_id for example in examples]
        self.labels = np.full(len(examples), -1, np.int32)
        self.caption_counts = np.ones(len(examples), np.int32)

    def __len__(self):
        return len(self._examples)

    def __getitem__(self, index):
        return self._examples[index]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    images, captions = plant(folder)
    source, fingerprint = open_data(str(images), str(captions))
    found = analyze(source, folder / "out", PIXELS, fingerprint=fingerprint)
    return folder, found


def ids_of(found, kind):
    ids = found.table["example_id"]
    return [set(ids.iloc[c.rows]) for c in found.clusters if c.kind == kind]


def in_any_order(sets):
    return sorted(map(sorted, sets))


def test_every_planted_duplicate_of_an_image_is_found_and_nothing_else(planted):
    _, found = planted
    expected = [EXACT_FILE, EXACT_PIXELS, NEAR, BOTH]
    assert in_any_order(ids_of(found, "image")) == in_any_order(expected)


def test_the_calibrated_threshold_finds_the_same(planted, monkeypatch):
    for module in ("near", "analyze"):
        monkeypatch.setattr(f"copymit.analysis.{module}.MIN_CALIBRATION", 50)
    folder, _ = planted
    images, captions = folder / "images", folder / "captions.json"
    source, fingerprint = open_data(str(images), str(captions))
    settings = PIXELS._replace(threshold=None)
    found = analyze(source, folder / "out", settings, fingerprint=fingerprint)
    expected = [EXACT_FILE, EXACT_PIXELS, NEAR, BOTH]
    assert in_any_order(ids_of(found, "image")) == in_any_order(expected)
    assert found.counts["image_threshold_is_calibrated"]


def test_captions_that_differ_in_case_and_punctuation_are_one(planted):
    _, found = planted
    expected = [CAPTION_ONLY, BOTH]
    assert in_any_order(ids_of(found, "caption")) == in_any_order(expected)
    assert found.counts["exact_captions"]["groups"] == 2


def test_files_pixels_and_captions_are_counted_apart(planted):
    _, found = planted
    counts = found.counts
    assert counts["exact_files"] == {
        "groups": 1,
        "examples": 2,
        "surplus": 1,
        "largest": 2,
    }
    assert counts["exact_images"]["examples"] == 4
    assert counts["near_images"]["examples"] == 10
    # The exact and the near ones have captions of their own.
    by_captions = counts["image_clusters_by_captions"]
    assert by_captions == {"same": 1, "similar": 0, "different": 3}


def test_the_manifest_keeps_exactly_one_of_each_cluster(planted):
    folder, found = planted
    manifest = pd.read_csv(folder / "out" / "manifest.csv")
    assert list(manifest.columns) == ["example_id", "factor"]
    factors = dict(zip(manifest["example_id"], manifest["factor"], strict=True))
    assert len(factors) == 66
    clusters = ids_of(found, "image")
    assert [sum(factors[i] for i in ids) for ids in clusters] == [1] * 4
    alone = set(factors) - set().union(*clusters)
    assert {factors[i] for i in alone} == {1}
    assert factors["near_resized.png"] == 1  # the largest of them


def test_the_table_of_clusters_says_what_is_in_them(planted):
    folder, _ = planted
    table = pd.read_parquet(folder / "out" / "clusters.parquet")
    near = table[(table["kind"] == "image") & (table["cluster"] == 1)]
    assert set(near["example_id"]) == NEAR
    assert near["kept"].sum() == 1
    assert (near["image_similarity_to_kept"] >= 0.9).all()
    both = table[(table["kind"] == "image") & table["example_id"].isin(BOTH)]
    np.testing.assert_allclose(both["caption_similarity"], 1, atol=1e-6)


def test_a_second_run_reads_and_embeds_nothing(planted, monkeypatch):
    folder, first = planted
    source, fingerprint = open_data(
        str(folder / "images"), str(folder / "captions.json")
    )

    def refuse(*_args, **_kwargs):
        raise AssertionError("something was computed again")

    monkeypatch.setattr("copymit.analysis.listing.decode_image", refuse)
    monkeypatch.setattr("copymit.embedding.store.EmbeddingStore.write", refuse)
    again = analyze(source, folder / "out", PIXELS, fingerprint=fingerprint)
    assert again.counts == first.counts


def test_a_changed_file_is_read_again(tmp_path):
    images, captions = plant(tmp_path, count=8)
    settings = PIXELS._replace(gallery_size=0)
    found = run(images, captions, tmp_path / "out", settings)
    assert {"06.png", "07.png"} not in ids_of(found, "image")
    (images / "07.png").write_bytes((images / "06.png").read_bytes())
    found = run(images, captions, tmp_path / "out", settings)
    assert {"06.png", "07.png"} in ids_of(found, "image")


def run(images, captions, out, settings):
    source, fingerprint = open_data(str(images), str(captions))
    return analyze(source, out, settings, fingerprint=fingerprint)


def test_unreadable_images_stop_or_are_listed(tmp_path):
    images, captions = plant(tmp_path, count=8)
    (images / "06.png").write_bytes(b"no image")
    settings = PIXELS._replace(gallery_size=0)
    with pytest.raises(ValueError, match=r"1 of 14 .*06\.png.*--on_corrupt=skip"):
        run(images, captions, tmp_path / "out", settings)
    settings = settings._replace(on_corrupt="skip")
    found = run(images, captions, tmp_path / "out", settings)
    assert list(found.counts["unreadable"]) == ["06.png"]
    factors = found.manifest.set_index("example_id")["factor"]
    assert len(factors) == 14
    assert factors["06.png"] == 0
    assert factors["07.png"] == 1
    assert in_any_order(ids_of(found, "image")) == in_any_order(
        [EXACT_FILE, EXACT_PIXELS, NEAR, BOTH]
    )


def test_a_single_image_has_no_duplicates_to_look_for(tmp_path):
    (tmp_path / "images").mkdir()
    draw_picture(0).save(tmp_path / "images" / "a.png")
    with pytest.raises(ValueError, match=r"1 images .* at least two"):
        analyze(load_source(str(tmp_path / "images")), tmp_path / "out", PIXELS)


def test_among_few_images_equal_pixels_are_duplicates_and_it_is_said_before(
    tmp_path, caplog
):
    caplog.set_level("INFO")
    images, captions = plant(tmp_path, count=8)
    found = run(images, captions, tmp_path / "out", PIXELS._replace(threshold=None))
    assert in_any_order(ids_of(found, "image")) == [
        sorted(EXACT_FILE),
        sorted(EXACT_PIXELS),
    ]
    assert "calibrated from 500 different ones or more" in caplog.messages[0]
    told = [m for m in caplog.messages if "only equal files and equal pixels" in m]
    assert len(told) == 1
    assert "give --threshold" in told[0]
    assert not found.counts["image_threshold_is_calibrated"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Settings(embedder="sscd_288"), ("sscd_288", 0.75)),
        (Settings(embedder="sscd_dcr"), ("sscd_dcr", 0.5)),
        (Settings(embedder="sscd_288_int8"), ("sscd_288_int8", 0.75)),
        (Settings(embedder="pixels"), ("pixels", 1.0)),
        (Settings(embedder="sscd_288", threshold=0.9), ("sscd_288", 0.9)),
    ],
)
def test_few_images_are_compared_at_a_published_threshold(settings, expected):
    few = settings_for_few(settings, 499)
    assert (few.embedder, few.threshold) == expected
    assert settings_for_few(settings, 500) == settings


@pytest.mark.parametrize(
    ("side", "expected"), [(63, "efficientnet_lite0"), (64, "sscd_288_int8")]
)
def test_the_embedder_goes_by_the_size_of_most_images_unless_it_is_named(
    side, expected, tmp_path, monkeypatch
):
    chosen = []
    monkeypatch.setattr(
        analyze_module,
        "make_embedder",
        lambda name, weights: chosen.append(name) or make_embedder("pixels"),
    )
    for i, shape in enumerate([(side, 200), (200, side), (300, 300), (20, 20)]):
        picture = Image.fromarray(np.full((*shape, 3), 40 * i, np.uint8))
        picture.save(tmp_path / f"{i}.png")
    source, _ = open_data(str(tmp_path))
    for settings in (Settings(threshold=0.9), Settings("pixels", threshold=0.9)):
        analyze(source, tmp_path / f"out{len(chosen)}", settings)
    assert chosen == [expected, "pixels"]


def test_images_without_captions_have_no_caption_in_common(tmp_path):
    images, _ = plant(tmp_path, count=8)
    source, _ = open_data(str(images))
    found = analyze(source, tmp_path / "out", PIXELS)
    assert len(ids_of(found, "image")) == 4
    assert ids_of(found, "caption") == []
    assert found.counts["exact_captions"]["groups"] == 0
    page = (tmp_path / "out" / "analysis.html").read_text()
    assert "There are no captions." in page
    assert "The same caption" not in page
    # Some have one: these are compared, the others are not.
    for name in ("00", "01", "02", "03"):
        (images / f"{name}.txt").write_text("the same" if name < "02" else name)
    found = analyze(open_data(str(images))[0], tmp_path / "some", PIXELS)
    assert ids_of(found, "caption") == [{"00.png", "01.png"}]
    assert "The same caption" in (tmp_path / "some" / "analysis.html").read_text()


def test_images_that_are_all_the_same_are_one_cluster(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "abc":
        draw_picture(0).save(tmp_path / "images" / f"{name}.png")
    found = analyze(load_source(str(tmp_path / "images")), tmp_path / "out", PIXELS)
    assert ids_of(found, "image") == [{"a.png", "b.png", "c.png"}]
    assert found.manifest["factor"].tolist() == [1, 0, 0]
    assert (tmp_path / "out" / "analysis.html").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedder": "sscd"}, "efficientnet_lite0"),
        ({"threshold": 0.0}, "threshold=0.0 must be"),
        ({"threshold": float("nan")}, "threshold=nan must be"),
        ({"caption_threshold": 1.5}, "caption_threshold=1.5 must be"),
        ({"caption_embedder": "bert"}, "caption_ngrams"),
        ({"weights": {"sscd": "x"}}, "sscd_disc_mixup"),
        ({"on_corrupt": "ignore"}, "stop or skip"),
        ({"search": "faiss"}, "scann"),
        ({"batch_size": 0}, "at least 1"),
    ],
)
def test_bad_settings_name_the_way_out(change, message):
    with pytest.raises(ValueError, match=message):
        check_settings(Settings(**change))


def test_tar_files_have_captions_of_their_own(tmp_path):
    with pytest.raises(ValueError, match="leave out --captions"):
        open_data(str(tmp_path / "a.tar"), "captions.json")


def test_the_page_escapes_hostile_captions_and_ids(tmp_path):
    examples = [
        Example(f"{HOSTILE}{i}.png", png(draw_picture(0)), (HOSTILE,), None)
        for i in range(2)
    ]
    analyze(Listed(examples), tmp_path, PIXELS, title=HOSTILE)
    page = (tmp_path / "analysis.html").read_text()
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;document.title=" in page
    assert "script-src" not in page
    assert "default-src 'none'" in page


def test_half_a_character_in_a_caption_is_survived(tmp_path):
    examples = [
        Example(f"{i}.png", png(draw_picture(0)), ("half \ud800",), None)
        for i in range(2)
    ]
    found = analyze(Listed(examples), tmp_path, PIXELS)
    assert found.counts["exact_captions"]["groups"] == 1


def test_the_command_writes_every_file(tmp_path):
    images, captions = plant(tmp_path, count=8)
    out = tmp_path / "out"
    main(
        [
            f"--source={images}",
            f"--captions={captions}",
            f"--out={out}",
            "--embedder=pixels",
            "--threshold=0.93",
        ]
    )
    names = {path.name for path in out.iterdir()}
    assert names >= {"analysis.html", "clusters.parquet", "manifest.csv"}
    assert (out / "figures" / "clusters.png").stat().st_size > 0
    counts = json.loads((out / "analysis.json").read_text())
    assert counts["near_images"]["groups"] == 4
    assert counts["image_threshold"] == 0.93


def test_the_command_ends_in_one_line_on_bad_input(tmp_path):
    with pytest.raises(SystemExit, match=r"error: .*leave out --captions"):
        main([f"--source={tmp_path / 'none.tar'}", "--captions=x", "--out=x"])


def test_the_most_similar_emoji_are_not_taken_for_duplicates(tmp_path):
    whole = load_source("fluent_emoji")
    twins = {"1f431", "1f63a"}  # one image under two names
    # The nearest of all distinct pairs, and of a family: guards, dancers, clocks.
    similar = ["1f482", "1f482-200d-2642", "1f46f", "1f46f-200d-2642"]
    similar += ["1f551", "1f559", "1f638", "1f6b4-200d-2640", "1f6b4-200d-2642"]
    rows = [whole.example_ids.index(name) for name in [*twins, *similar]]
    # Calibration gives 0.9993 on all 1,852, of which the nearest distinct reach 0.9905.
    settings = Settings(threshold=0.995, gallery_size=0, batch_size=4)
    found = analyze(Listed([whole[i] for i in rows]), tmp_path, settings)
    assert ids_of(found, "image") == [twins]
    assert found.counts["search"]["image"]["near_pairs"] == 0  # they are equal
