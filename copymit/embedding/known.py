"""Features that were computed before, found by the pixels of their images."""

from collections.abc import Iterable, Sequence

import numpy as np

from copymit.embedding.store import DIGEST_BYTES, EmbeddingStore, StoredRows


class KnownFeatures:
    """Where the features of images lie; in memory 20 bytes an image, and no open file.

    Args:
      stores: of any images; where several have an image, the first counts.
      protocol: features of others are not the same.
    """

    def __init__(self, stores: Iterable[EmbeddingStore], protocol: str):
        found = [part for store in stores for part in store.known(protocol)]
        self._features = StoredRows([path for path, _ in found])
        self._ends = np.cumsum([len(digests) for _, digests in found], dtype=np.int64)
        digests = [np.empty((0, DIGEST_BYTES), np.uint8)]
        digests += [digests for _, digests in found]
        del found
        halves = np.concatenate(digests).view(np.uint64)
        del digests
        # Images whose digests share a half are one, as far as looking them up goes: the
        # other half tells, and one that is not found is embedded.
        self._heads, first = np.unique(halves[:, 0], return_index=True)
        self._tails = halves[first, 1]
        self._places = first.astype(np.uint32)

    def find(self, digest: bytes) -> int | None:
        """Says at which place the features of an image are, or None if nowhere."""
        head, tail = np.frombuffer(digest, np.uint64)
        row = int(np.searchsorted(self._heads, head))
        if row == len(self._heads):
            return None
        same = self._heads[row] == head and self._tails[row] == tail
        return int(self._places[row]) if same else None

    def read(self, places: Sequence[int]) -> list[np.ndarray | None]:
        """Reads the features at some places, opening each file once.

        Returns:
          None for those whose file has been removed since.
        """
        rows: list[np.ndarray | None] = [None] * len(places)
        files = np.searchsorted(self._ends, places, side="right")
        for file in np.unique(files):
            try:
                features = self._features[file]
            except FileNotFoundError:
                continue
            start = self._ends[file] - len(features)
            for i in np.flatnonzero(files == file):
                rows[i] = np.array(features[places[i] - start])
        return rows
