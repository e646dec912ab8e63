"""Prints the FID of photos as published code and as ours computes it, side by side.

    make parity                          (2,000 photos: 10 minutes on two CPU cores)

In: `golden/photos.json`, which `make_golden.py` writes, and ../shared/data. Fails if a
number of ours lies further than `TOLERANCE` from the published one.
"""

import json
import sys
import tempfile
from pathlib import Path

from tests.parity import inputs, ours

TOLERANCE = 1e-3  # relative; see the test of the same photos in test_golden.py


def main() -> None:
    if not inputs.PHOTOS.is_file():
        sys.exit(f"{inputs.PHOTOS} is not here: no photos to compare")
    golden = json.loads((Path(__file__).parent / "golden" / "photos.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        weights = ours.save_weights(Path(folder))
        embedders = {k: ours.make(k, weights) for k in ("legacy_pytorch", "clean")}
    apart = []
    for count, fids in golden.items():
        for protocol, published in fids.items():
            fid = ours.photo_fid(embedders[protocol], int(count))
            error = abs(fid / published - 1)
            print(
                f"{protocol:>14}, {2 * int(count):>4} photos: published {published:.6f}, "
                f"ours {fid:.6f}, relative difference {error:.1e}",
                flush=True,
            )
            if error > TOLERANCE:
                apart.append(f"{protocol} of {2 * int(count)} photos")
    if apart:
        sys.exit(f"further apart than {TOLERANCE}: {', '.join(apart)}")


if __name__ == "__main__":
    main()
