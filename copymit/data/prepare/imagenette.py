"""Imagenette through its official `tensorflow_datasets` builder, joined with captions.

In: the archive (fetched by the builder, or one that is there) and a captions file. Out:
an `ExampleSource` with ids "n01440764/ILSVRC2012_val_00009111.JPEG". Needs tensorflow,
as the builder does.
"""

import contextlib
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from copymit.data.captions_file import refuse
from copymit.data.folder_source import IMAGENETTE_CLASSES, FolderSource
from copymit.storage import scratch_folder

CONFIGS = ("160px-v2", "320px-v2", "full-size-v2")
SPLITS = {"train": "train", "validation": "val"}  # name -> folder in the archive


@contextlib.contextmanager
def open_imagenette(
    config: str,
    *,
    archive: str | None = None,
    split: str = "train",
    captions: str | None = None,
    captions_format: str = "auto",
    download_dir: str | None = None,
) -> Iterator[FolderSource]:
    """Opens one split; what is unpacked lives as long as the context.

    Args:
      config: one of `CONFIGS`.
      archive: a tar file in the official layout, `imagenette2-160/train/<wnid>/*.JPEG`,
        also compressed, or the folder that was unpacked from it; None lets the builder
        fetch it.
      captions: a captions file, see `FolderSource`.
      download_dir: where the builder keeps what it fetches.
    Raises:
      ValueError: if tensorflow_datasets is absent, the archive is damaged or has
        another layout, or the captions do not fit.
      FileNotFoundError: if the archive or the captions file is absent.
    """
    with scratch_folder() as scratch:
        builder = _make_builder(config, str(scratch))
        if archive is None:
            folder = _fetch(builder, split, download_dir)
        elif Path(archive).is_dir():
            folder = _find_split(Path(archive), split)
        else:
            _unpack(Path(archive), scratch / "unpacked")
            folder = _find_split(scratch / "unpacked", split)
        source = FolderSource(
            folder,
            captions,
            captions_format=captions_format,
            class_names=IMAGENETTE_CLASSES,
        )
        official = {
            f"{record['label'].rstrip('/')}/{name}"
            for name, record in builder._generate_examples(str(folder))
        }
        refuse(
            f"images of {str(folder)!r} are not what the official builder reads there: "
            "unpack the archive again",
            sorted(official.symmetric_difference(source.example_ids)),
        )
        yield source


def _make_builder(config: str, data_dir: str) -> Any:
    try:
        import tensorflow as tf
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ValueError(
            f"the official builder needs the extra `prepare` ({error}): pip install "
            "-c constraints.txt -e '.[prepare]', or unpack the archive yourself and use "
            "python -m copymit.data.prepare folder imagenette2-160/train"
        ) from error
    del tf  # tensorflow_datasets itself imports it only when it is used.
    if config not in CONFIGS:
        raise ValueError(f"config must be one of {', '.join(CONFIGS)}, got {config!r}")
    return tfds.builder_cls("imagenette")(config=config, data_dir=data_dir)


def _fetch(builder: Any, split: str, download_dir: str | None) -> Path:
    import tensorflow_datasets as tfds

    manager = tfds.download.DownloadManager(
        download_dir=download_dir or str(Path.home() / "tensorflow_datasets/downloads"),
        dataset_name=builder.name,
        url_infos=builder.url_infos,
        max_simultaneous_downloads=1,
    )
    generators = {g.name: g for g in builder._split_generators(manager)}
    return Path(generators[split].gen_kwargs["datapath"])


def _unpack(archive: Path, target: Path) -> None:
    if not archive.is_file():
        raise FileNotFoundError(f"no archive at {archive}")
    try:
        with tarfile.open(archive) as tar:
            # The filter refuses members that would lie outside of the target.
            tar.extractall(target, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(
            f"{archive} is not a whole tar file ({error}): fetch it again"
        ) from error


def _find_split(root: Path, split: str) -> Path:
    name = SPLITS[split]
    found = [path for path in (root, *sorted(root.iterdir())) if (path / name).is_dir()]
    if len(found) != 1:
        raise ValueError(
            f"{len(found)} folders {name!r} in {str(root)!r}: one is expected, as in "
            "imagenette2-160/train"
        )
    return found[0] / name
