"""Makes data sets by the tools that people use, from a server on this machine.

    make chains-test                        in an environment of its own: the extra `chains`
    python tests/chains/record.py FOLDER    writes them to FOLDER

Twelve pictures are served, of which one is AVIF, one has 16 bits, and one is a page of HTML
instead; one caption holds U+2028. img2dataset fetches them in each of its formats, and
`datasets` makes of a folder with metadata.jsonl what `save_to_disk` writes. Copies are in
`recorded/` beside this file, for the ordinary tests.
"""

import functools
import http.server
import io
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FORMATS = ("webdataset", "files", "parquet")
_KINDS = {3: "AVIF", 5: "PNG"}  # the others are JPEG
_GONE = 8
_SIZE = (16, 12)


def make_picture(number: int) -> bytes:
    """Draws a picture that no other number has, in a format that it may have outside."""
    rng = np.random.default_rng(number)
    kind = _KINDS.get(number, "JPEG")
    corners = rng.integers(0, 256, (2, 2, 3), np.uint8)
    image = Image.fromarray(corners).resize(_SIZE, Image.Resampling.BILINEAR)
    if kind == "PNG":
        deep = np.asarray(image.convert("L")).astype(np.uint16) * 257
        image = Image.fromarray(deep)
    file = io.BytesIO()
    image.save(file, kind)
    return b"<html>gone</html>" if number == _GONE else file.getvalue()


def make_caption(number: int) -> str:
    """Writes the caption of a picture."""
    return f"picture {number}" + ("\u2028on two lines" if number == 1 else "")


def main(out: Path) -> None:
    """Writes one folder for each way."""
    numbers = range(12)
    with tempfile.TemporaryDirectory() as scratch:
        www, table = Path(scratch, "www"), Path(scratch, "urls.parquet")
        www.mkdir()
        for number in numbers:
            (www / f"{number}.jpg").write_bytes(make_picture(number))
        handler = functools.partial(_Quiet, directory=str(www))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        urls = [f"{address}/{number}.jpg" for number in numbers]
        texts = [make_caption(number) for number in numbers]
        pq.write_table(pa.table({"URL": urls, "TEXT": texts}), table)
        for output_format in FORMATS:
            _download(table, out / f"img2dataset_{output_format}", output_format)
        server.shutdown()
    _save_to_disk([n for n in numbers if n != _GONE], out)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def _download(table: Path, out: Path, output_format: str) -> None:
    shutil.rmtree(out, ignore_errors=True)
    options = {
        "url_list": table,
        "input_format": "parquet",
        "url_col": "URL",
        "caption_col": "TEXT",
        "output_format": output_format,
        "output_folder": out,
        "resize_mode": "no",
        "processes_count": 1,
        "thread_count": 2,
        "number_sample_per_shard": 7,
    }
    program = Path(sys.executable).with_name("img2dataset")
    command = [program, *(f"--{name}={value}" for name, value in options.items())]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _save_to_disk(numbers: list[int], out: Path) -> None:
    """Writes ImageFolder's layout, and what `datasets` makes of it."""
    folder, saved = out / "imagefolder", out / "save_to_disk"
    for path in (folder, saved):
        shutil.rmtree(path, ignore_errors=True)
    (folder / "train").mkdir(parents=True)
    rows = []
    for number in numbers:
        suffix = _KINDS.get(number, "jpg").lower()
        name = f"{number}.{suffix}"
        (folder / "train" / name).write_bytes(make_picture(number))
        rows.append({"file_name": name, "text": make_caption(number)})
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "train" / "metadata.jsonl").write_text(lines, encoding="utf-8")
    with tempfile.TemporaryDirectory() as cache:
        loaded = datasets.load_dataset("imagefolder", data_dir=folder, cache_dir=cache)
        loaded.save_to_disk(saved)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
