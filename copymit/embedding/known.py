"""Features that were computed before, found by the pixels of their images."""

from collections.abc import Iterable, Sequence

import numpy as np

from copymit.embedding.store import EmbeddingStore, StoredRows


class KnownFeatures:
    """Where the features of images lie; in memory 20 bytes an image, and no open file.

    Args:
      stores: of any images; where several have an image, the first counts.
      protocol: features of others are not the same.
    """

    def __init__(self, stores: Iterable[EmbeddingStore], protocol: str):
        paths, counts = [], []
        heads, tails = ([np.empty(0, np.uint64)] for _ in range(2))
        for path, digests in (
            part for store in stores for part in store.known(protocol)
        ):
            paths.append(path)
            counts.append(len(digests))
            head, tail = digests.view(np.uint64).T
            heads.append(head.copy())
            tails.append(tail.copy())
        self._features = StoredRows(paths)
        self._ends = np.cumsum(counts, dtype=np.int64)
        head = np.concatenate(heads)
        heads.clear()  # of ten million images, every copy is 80 MB
        order = np.argsort(head, kind="stable")
        head = head[order]
        # Images whose digests share a half are looked up as one: the other half tells
        # them apart, and one that is not found is embedded.
        first = np.append(True, head[1:] != head[:-1])[: len(head)]
        self._heads, self._places = head[first], order[first].astype(np.uint32)
        self._tails = np.concatenate(tails)[self._places]

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
        wanted = np.asarray(places, np.int64)
        files = np.searchsorted(self._ends, wanted, side="right")
        for file in np.unique(files):
            try:
                features = self._features[file]
            except FileNotFoundError:
                continue
            start = self._ends[file] - len(features)
            for i in np.flatnonzero(files == file):
                rows[i] = np.array(features[wanted[i] - start])
        return rows
