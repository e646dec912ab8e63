"""A manifest: a table that says of every image how often it is trained on.

In: a CSV or parquet file with the columns `example_id`, `factor` and optionally
`captions`, and a source. Out: the factors in the order of the source, and from them
which images are trained on and how often. Everything is a column of numpy or Arrow.
Measured with a million rows and ids of 22 characters: 1.2 s of one slow core up to the
first batch, half of it for reading; per process 235 MB at the peak (200 from parquet),
of which 60 stay while training, without the ids, which are the source's.
"""

from collections.abc import Sequence
from typing import NamedTuple, SupportsIndex

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from etils import epath
from jaxtyping import Bool, Int

from copymit.data.captions import VariedCaptions
from copymit.data.captions_file import refuse
from copymit.data.draw import draw_order
from copymit.data.duplication import Duplication
from copymit.data.examples import Example, ExampleSource
from copymit.data.sources import Selection

MAX_FACTOR = 1_000_000
POLICIES = ("first", "any")
_COLUMNS = ("example_id", "factor", "captions")
_LAYOUT = (
    "its columns are example_id, factor (a whole number, 0 = leave out) and, if "
    "captions vary, captions (first or any)"
)


class Manifest(NamedTuple):
    """The rows of a manifest.

    Attributes:
      example_ids: all different; an Arrow array, since a million Python strings are
        slow and large.
      factors: in [0, MAX_FACTOR]: visits an epoch, or weight; 0 leaves the image out.
      varied: whether each visit draws one of the image's captions (`any`), or all take
        the first.
    """

    example_ids: pa.Array
    factors: Int[np.ndarray, " N"]
    varied: Bool[np.ndarray, " N"]


def read_manifest(path: epath.PathLike) -> Manifest:
    """Reads a `.csv` or `.parquet` file, on disk or in a bucket.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is not such a table, or an id occurs twice, a factor is not a
        whole number in [0, MAX_FACTOR], a policy is unknown, or all factors are 0.
    """
    name = f"data.manifest={str(path)!r}"
    table = _read_table(epath.Path(path).expanduser(), name)
    columns = set(table.column_names)
    if len(columns) != table.num_columns or not (
        set(_COLUMNS[:2]) <= columns <= set(_COLUMNS)
    ):
        raise ValueError(f"{name} has the columns {table.column_names}: {_LAYOUT}")
    incomplete = [column for column in table.column_names if table[column].null_count]
    refuse(f"columns of {name} have empty cells: fill them", incomplete)
    ids = _plain(table["example_id"])
    if not pa.types.is_string(ids.type):
        raise ValueError(f"{name}: example_id holds {ids.type}, not text: {_LAYOUT}")
    counts = pc.value_counts(ids)
    twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    refuse(f"ids are listed twice in {name}: keep one row of each", twice.to_pylist())
    factors = _parse_factors(ids, _plain(table["factor"]), name)
    varied = np.zeros(len(ids), bool)
    if "captions" in columns:
        policies = _plain(table["captions"])
        refuse(
            f"captions policies in {name} are unknown: use first or any",
            map(str, set(pc.unique(policies).to_pylist()) - set(POLICIES)),
        )
        varied = pc.equal(policies, "any").to_numpy(zero_copy_only=False)
    if not factors.any():
        raise ValueError(f"{name} leaves every image out: give some a factor of 1")
    return Manifest(ids, factors, varied)


def match_manifest(manifest: Manifest, source: ExampleSource, path: str) -> Manifest:
    """Puts the rows of a manifest in the order of a source.

    Args:
      path: what errors call the manifest.
    Raises:
      ValueError: if an id is not in the source, an image of the source is not listed,
        or an image whose captions vary has only one.
    """
    name = f"data.manifest={path!r}"
    ids = pa.array(source.example_ids, pa.string())
    rows = pc.index_in(ids, value_set=manifest.example_ids)
    if rows.null_count:
        unlisted = ids.filter(pc.is_null(rows)).to_pylist()
        refuse(
            f"images are not listed in {name}: list them, with factor 0 to leave out",
            unlisted,
        )
    if len(manifest.example_ids) > len(ids):
        absent = manifest.example_ids.filter(
            pc.invert(pc.is_in(manifest.example_ids, value_set=ids))
        )
        refuse(f"ids of {name} are not in the data: remove them", absent.to_pylist())
    order = rows.to_numpy()
    factors, varied = manifest.factors[order], manifest.varied[order]
    single = varied & (factors > 0) & (source.caption_counts < 2)
    refuse(
        f"images have captions 'any' in {name}, but only one caption: give them more, "
        "or 'first'",
        (source.example_ids[int(i)] for i in np.flatnonzero(single)),
    )
    return Manifest(ids, factors, varied)


def select_listed(
    manifest: Manifest, num_heldout: int, seed: int, heldout_share: float = 0.0
) -> Selection:
    """Selects the images with a factor, and held-out ones of those without.

    More held-out images contain the fewer.

    Args:
      heldout_share: of the images with a factor, to be held out in place of others: what
        a manifest leaves out may be duplicates of what it lists.
    Raises:
      ValueError: if fewer are left out than are to be held out.
    """
    if heldout_share:
        listed = np.flatnonzero(manifest.factors)
        order = _in_drawn_order(manifest, listed, seed)
        num_heldout = round(heldout_share * len(listed))
        return Selection(np.sort(order[num_heldout:]), np.sort(order[:num_heldout]))
    left_out = np.flatnonzero(manifest.factors == 0)
    if not 0 <= num_heldout <= len(left_out):
        raise ValueError(
            f"data.num_heldout={num_heldout}, but data.manifest leaves out "
            f"{len(left_out)} images (factor 0): ask for fewer, or leave out more"
        )
    order = _in_drawn_order(manifest, left_out, seed)
    return Selection(
        np.flatnonzero(manifest.factors), np.sort(order[:num_heldout]).astype(np.int64)
    )


def _in_drawn_order(
    manifest: Manifest, rows: Int[np.ndarray, " K"], seed: int
) -> Int[np.ndarray, " K"]:
    names = manifest.example_ids.take(pa.array(rows)).to_pylist()
    return rows[draw_order(seed, names, "held out")]


def listed_duplication(
    manifest: Manifest, indices: Int[np.ndarray, " M"]
) -> Duplication:
    """Returns the duplication of the images at `indices`.

    Marked as duplicated are images with a factor above 1, and those whose captions
    vary: with factor 1 they are the control, as in `assign_duplication`.
    """
    factors = manifest.factors[indices]
    return Duplication(factors, (factors > 1) | manifest.varied[indices])


class VariedSource:
    """A source whose examples say, by `VariedCaptions`, that their captions vary."""

    def __init__(self, source: ExampleSource, varied: Bool[np.ndarray, " N"]):
        self._source = source
        self._varied = varied
        self.example_ids: Sequence[str] = source.example_ids
        self.labels = source.labels
        self.caption_counts = source.caption_counts
        self.class_names: Sequence[str] = source.class_names
        self.provenance = source.provenance

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: SupportsIndex) -> Example:
        example = self._source[index.__index__()]
        if not self._varied[index]:
            return example
        return example._replace(captions=VariedCaptions(example.captions))


def _read_table(path: epath.Path, name: str) -> pa.Table:
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"{name} must end in .csv or .parquet: {_LAYOUT}")
    if not path.is_file():
        raise FileNotFoundError(f"no manifest: {name} is not a file")
    content = pa.BufferReader(path.read_bytes())
    try:
        if path.suffix == ".parquet":
            return pq.read_table(content, use_threads=False)
        # As text: numbers that are none are then named, not guessed at.
        return pa.csv.read_csv(
            content,
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(_COLUMNS, pa.string())
            ),
        )
    except pa.ArrowException as error:
        raise ValueError(f"{name} cannot be read ({error}): {_LAYOUT}") from error


def _plain(column: pa.ChunkedArray) -> pa.Array:
    """Joins a column; texts that were stored as large or as categories become plain."""
    kind = column.type
    if pa.types.is_large_string(kind) or pa.types.is_dictionary(kind):
        column = column.cast(pa.string())
    return column.combine_chunks()


def _parse_factors(ids: pa.Array, factors: pa.Array, name: str) -> np.ndarray:
    if pa.types.is_string(factors.type):
        good = pc.match_substring_regex(factors, r"^\s*[0-9]{1,9}\s*$")
        _refuse_factors(ids, factors, pc.invert(good), name)
        factors = pc.cast(pc.utf8_trim_whitespace(factors), pa.int64())
    if not pa.types.is_integer(factors.type):
        raise ValueError(
            f"{name}: factor holds {factors.type}, not whole numbers: {_LAYOUT}"
        )
    bad = pc.or_(pc.less(factors, 0), pc.greater(factors, MAX_FACTOR))
    _refuse_factors(ids, factors, bad, name)
    return pc.cast(factors, pa.int64()).to_numpy()


def _refuse_factors(ids: pa.Array, factors: pa.Array, bad: pa.Array, name: str) -> None:
    rows = zip(ids.filter(bad), factors.filter(bad), strict=True)
    refuse(
        f"factors in {name} are out of range: use whole numbers from 0 to {MAX_FACTOR}",
        (f"{example_id}: {factor}" for example_id, factor in rows),
    )
