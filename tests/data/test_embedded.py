import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from copymit.data.embedded import build as builder
from copymit.data.images import decode_image
from copymit.data.sources import FLUENT_EMOJI_FILE, EmbeddedSource, load_source

CLASSES = (
    "smileys & emotion",
    "people & body",
    "animals & nature",
    "food & drink",
    "travel & places",
    "activities",
    "objects",
    "symbols",
    "flags",
)


@pytest.fixture(scope="module")
def source():
    return load_source("fluent_emoji")


def webp(colour: str, size: tuple[int, int] = (80, 80)) -> bytes:
    file = io.BytesIO()
    Image.new("RGBA", size, colour).save(file, "WEBP", lossless=True)
    return file.getvalue()


def write_tgz(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def manifest(name: str, version: str) -> bytes:
    return json.dumps({"name": name, "version": version}).encode()


@pytest.fixture
def archives(tmp_path):
    """Five images and five records, each with one rule of the join."""
    emoji = write_tgz(
        tmp_path / "emoji.tgz",
        {
            "package.json": manifest("@lobehub/fluent-emoji-3d", "1.1.0"),
            "assets/1f34e.webp": webp("red"),
            "assets/a9-fe0f.webp": webp("blue"),
            "assets/00a9-fe0f.webp": webp("lime", (80, 160)),
            "assets/2764.webp": webp("#00000000"),
            "assets/1f44d-1f3fb.webp": webp("black"),
            "assets/1f3f3-fe0f-200d-1f308.webp": webp("white"),
        },
    )
    records = [
        {
            "label": "red apple",
            "hexcode": "1F34E",
            "tags": ["Apple", "RED APPLE", "^_^", " "],
            "group": 4,
        },
        {"label": "copyright", "hexcode": "00A9-FE0F", "tags": ["C"], "group": 8},
        {"label": "red heart", "hexcode": "2764-FE0F", "group": 0},
        {"label": "no image", "hexcode": "1F34F", "tags": ["x"], "group": 4},
        {"label": "letter", "hexcode": "1F3F3-200D-1F308", "tags": ["no group"]},
        {
            "label": "thumbs up",
            "hexcode": "1F44D",
            "tags": [],
            "group": 1,
            "skins": [{"label": "light", "hexcode": "1F44D-1F3FB", "group": 1}],
        },
    ]
    names = ["smileys", "people", "components", "animals", "food & drink"]
    names += ["travel", "activities", "objects", "symbols", "flags"]
    groups = [{"order": i, "message": name} for i, name in enumerate(names)]
    shortcodes = {"1F34E": ["apple_fruit", "apple"], "00A9": "copy_right"}
    emojibase = write_tgz(
        tmp_path / "emojibase.tgz",
        {
            "package.json": manifest("emojibase-data", "17.0.0"),
            "en/data.json": json.dumps(records).encode(),
            "en/messages.json": json.dumps({"groups": groups}).encode(),
            "en/shortcodes/emojibase.json": json.dumps(shortcodes).encode(),
        },
    )
    return emoji, emojibase


def test_the_embedded_set_has_its_known_contents(source):
    assert len(source) == len(source.example_ids) == 1852
    assert len(set(source.example_ids)) == 1852
    assert tuple(source.class_names) == CLASSES
    assert source.labels.dtype == source.caption_counts.dtype == np.int32
    assert set(source.labels) == set(range(9))
    assert np.median(source.caption_counts) == 6


def test_every_embedded_image_is_64_px_webp(source):
    for index in range(len(source)):
        example = source[index]
        assert example.image[8:12] == b"WEBP"
        assert decode_image(example.image, example.example_id).size == (64, 64)


def test_every_embedded_caption_is_a_distinct_text(source):
    for index in range(len(source)):
        captions = source[index].captions
        assert len(captions) == source.caption_counts[index] >= 1
        assert all(caption.strip() for caption in captions)
        assert len({caption.casefold() for caption in captions}) == len(captions)


def test_the_red_apple_is_where_it_should_be(source):
    example = source[source.example_ids.index("1f34e")]
    assert example.captions[0] == "red apple"
    assert source.class_names[example.label] == "food & drink"
    pixels = np.asarray(decode_image(example.image, "apple")).astype(int)
    assert pixels[0, 0].min() > 245, "the background is white"
    red, green, blue = pixels[36, 32]
    assert red > 150 > max(green, blue)


def test_the_embedded_file_is_small_and_says_where_it_is_from():
    assert FLUENT_EMOJI_FILE.stat().st_size < 2_500_000
    metadata = pq.read_schema(FLUENT_EMOJI_FILE).metadata
    provenance = json.loads(metadata[b"provenance"])
    assert provenance["images"] == "@lobehub/fluent-emoji-3d@1.1.0"
    assert provenance["texts"] == "emojibase-data@17.0.0"
    licences = (FLUENT_EMOJI_FILE.parent / "LICENSES.md").read_text("utf-8")
    for holder in ("Microsoft Corporation", "LobeHub", "Miles Johnson"):
        assert holder in licences
    assert licences.count("Permission is hereby granted") == 3


def test_the_embedded_source_survives_pickling(source):
    copy = pickle.loads(pickle.dumps(source))
    assert copy[100] == source[100]
    np.testing.assert_array_equal(copy.labels, source.labels)


def test_a_missing_or_foreign_embedded_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.parquet.*install the package"):
        EmbeddedSource(tmp_path / "gone.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    for name in ("text", "other"):
        with pytest.raises(ValueError, match=rf"{name}\.parquet' is not embedded data"):
            EmbeddedSource(tmp_path / f"{name}.parquet")


def test_a_rebuild_honours_the_join_rules(archives, tmp_path):
    assert builder.build(*archives, tmp_path / "out.parquet") == 3
    rebuilt = EmbeddedSource(tmp_path / "out.parquet")
    assert rebuilt.example_ids == ("00a9", "1f34e", "2764")
    assert rebuilt.class_names == ("smileys", "food & drink", "symbols")
    assert rebuilt.labels.tolist() == [2, 1, 0]
    assert rebuilt[0].captions == ("copyright", "copy right", "C")
    assert rebuilt[1].captions == ("red apple", "apple fruit", "apple", "^_^")
    assert rebuilt[2].captions == ("red heart",)


def test_a_rebuild_pads_on_white_and_prefers_the_exact_name(archives, tmp_path):
    builder.build(*archives, tmp_path / "out.parquet")
    rebuilt = EmbeddedSource(tmp_path / "out.parquet")
    tall, _, transparent = (
        np.asarray(decode_image(rebuilt[i].image, "x")).astype(int) for i in range(3)
    )
    # WebP moves a plain colour by a few levels.
    assert np.abs(tall[32, 32] - [0, 255, 0]).max() < 10
    assert tall[32, 4].min() > 245
    assert tall.shape == (64, 64, 3)
    assert transparent.min() == 255


def test_a_rebuild_gives_the_same_bytes_twice(archives, tmp_path, capsys):
    emoji, emojibase = archives
    for name in ("one", "two"):
        builder.main(
            [f"--emoji={emoji}", f"--emojibase={emojibase}", f"--out={tmp_path / name}"]
        )
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert "3 examples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("hexcode", "key"),
    [
        ("1F34E", "1f34e"),
        ("39-FE0F-20E3", "0039-20e3"),
        ("00A9-FE0F", "00a9"),
        ("1F3F3-FE0F-200D-1F308", "1f3f3-200d-1f308"),
    ],
)
def test_hexcodes_have_one_spelling(hexcode, key):
    assert builder.normalise_hexcode(hexcode) == key


def test_another_version_of_a_package_is_refused(archives, tmp_path):
    old = write_tgz(
        tmp_path / "old.tgz",
        {"package.json": manifest("@lobehub/fluent-emoji-3d", "1.0.0")},
    )
    message = r"old\.tgz holds @lobehub/fluent-emoji-3d@1\.0\.0, but .*@1\.1\.0"
    with pytest.raises(ValueError, match=message):
        builder.build(old, archives[1], tmp_path / "out")
    with pytest.raises(ValueError, match=r"emojibase\.tgz holds emojibase-data@17"):
        builder.build(archives[1], archives[0], tmp_path / "out")


def test_a_missing_damaged_or_foreign_archive_is_named(archives, tmp_path):
    emoji, emojibase = archives
    with pytest.raises(FileNotFoundError, match=r"gone\.tgz.*npm pack @lobehub"):
        builder.build(tmp_path / "gone.tgz", emojibase, tmp_path / "out")
    (tmp_path / "half.tgz").write_bytes(emoji.read_bytes()[:300])
    (tmp_path / "text.tgz").write_text("hello")
    for name in ("half.tgz", "text.tgz"):
        with pytest.raises(ValueError, match=rf"{name} is no npm archive"):
            builder.build(tmp_path / name, emojibase, tmp_path / "out")
    for data in (b"[]", b"{}", b"no json"):
        foreign = write_tgz(tmp_path / "foreign.tgz", {"package.json": data})
        with pytest.raises(ValueError, match=r"foreign\.tgz has no package\.json"):
            builder.build(foreign, emojibase, tmp_path / "out")


def test_an_archive_that_unpacks_too_large_is_refused(archives, tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "_MAX_ARCHIVE_BYTES", 100)
    with pytest.raises(ValueError, match="unpacks to more than 100 bytes"):
        builder.build(*archives, tmp_path / "out")


def test_links_in_an_archive_are_not_followed(archives, tmp_path):
    path = tmp_path / "link.tgz"
    with tarfile.open(path, "w:gz") as archive:
        data = manifest("emojibase-data", "17.0.0")
        member = tarfile.TarInfo("package/package.json")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("package/en/data.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    files = builder.read_archive(path, builder.EMOJIBASE_PACKAGE, lambda name: True)
    assert list(files) == ["package/package.json"]


def test_archives_without_a_common_record_are_refused(archives, tmp_path):
    empty = write_tgz(
        tmp_path / "empty.tgz",
        {"package.json": manifest("@lobehub/fluent-emoji-3d", "1.1.0")},
    )
    with pytest.raises(ValueError, match=r"no image of empty\.tgz has a record in"):
        builder.build(empty, archives[1], tmp_path / "out")
