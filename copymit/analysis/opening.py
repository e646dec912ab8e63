"""Opens the data set to analyse: what the command line names becomes a source."""

import glob
import os

from copymit.analysis.listing import fingerprint_files
from copymit.data.examples import ExampleSource
from copymit.data.folder_source import FolderSource
from copymit.data.sources import FLUENT_EMOJI_FILE, load_source, open_folder
from copymit.embedding.image_set import open_source


def open_data(
    name_or_path: str, captions: str = ""
) -> tuple[ExampleSource, str | None]:
    """Opens the embedded set, a folder of any kind, or tar files.

    Args:
      name_or_path: `fluent_emoji`, a folder, a tar file in webdataset's layout or a
        pattern of several, such as `shards/*.tar`.
      captions: a captions file for a folder of images or a prepared data set.
    Returns:
      The source, and a fingerprint that changes when its files do; None if nobody knows.
    Raises:
      FileNotFoundError, ValueError: for something that is missing or damaged, or a
        captions file for tar files.
    """
    if not name_or_path:
        raise ValueError(
            "no data set is given: use --source=FOLDER, --source='shards/*.tar' or "
            "--source=fluent_emoji"
        )
    if name_or_path.endswith(".tar"):
        if captions:
            raise ValueError(
                f"{name_or_path!r} has its captions in it, as .txt beside each image: "
                "leave out --captions, or unpack it and give the folder"
            )
        source = open_source(name_or_path)
        assert source is not None
        return source, fingerprint_files(sorted(glob.glob(name_or_path)))
    if name_or_path == "fluent_emoji":
        return load_source(name_or_path), fingerprint_files([str(FLUENT_EMOJI_FILE)])
    # Captions of another file than the set's own are for what training reads, too.
    source = (
        load_source(name_or_path, captions=captions)
        if captions
        else open_folder(name_or_path)
    )
    if isinstance(source, FolderSource):
        files = [os.path.join(source.folder, i) for i in source.example_ids]
        return source, fingerprint_files([*files, *source.caption_files])
    return source, None
