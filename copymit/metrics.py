"""What a run reports while it trains: a JSON line, a TensorBoard event, a progress line.

Only process 0 writes.
"""

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import jax
import numpy as np
from etils import epath

from copymit.progress import format_duration
from copymit.storage import GrowingObject, is_remote, write_whole, writing
from copymit.wandb_run import WandbRun

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter

logger = logging.getLogger(__name__)

_UPLOAD_EVERY_SECS = 60
_ON_DISK = "disk"  # before a path, for tensorboardX


class _Events:
    """Opens the file of TensorBoard's events, on disk or in a bucket.

    tensorboardX's own writer dies of the first refusal, and its queue then blocks the
    training.
    """

    def open(self, path: str) -> "GrowingObject | _Appended":
        return GrowingObject(path) if is_remote(path) else _Appended(path)

    def directory_check(self, path: str) -> None:
        """The directory is the run's, and there."""


class _Appended:
    """A file on disk, which is given up once there is no room for it."""

    def __init__(self, path: str):
        self._path = Path(path.removeprefix(f"{_ON_DISK}:"))
        self._file = self._path.open("ab", buffering=0)
        self._full = False

    def write(self, data: bytes) -> int:
        try:
            return len(data) if self._full else self._file.write(data)
        except OSError as error:
            logger.warning("%s is not complete: %s", self._path, error)
            self._full = True
            return len(data)

    def flush(self) -> None:
        """Every write is through."""

    def close(self) -> None:
        self._file.close()


def _open_events(workdir: epath.Path, first_step: int) -> "SummaryWriter":
    # Where torch is installed this imports it: seconds that only a training should pay.
    from tensorboardX import SummaryWriter
    from tensorboardX.record_writer import register_writer_factory

    for place in ("gs", _ON_DISK):
        register_writer_factory(place, _Events())
    folder = str(workdir) if is_remote(workdir) else f"{_ON_DISK}:{workdir}"
    return SummaryWriter(folder, purge_step=first_step + 1)


class MetricWriter:
    """Appends scalars to `metrics.jsonl` and to TensorBoard's event file.

    A resumed run repeats the steps after its last checkpoint, so what an earlier
    process wrote about them is dropped. Nothing can be appended to an object in a bucket:
    there the file is written anew, once a minute and whenever `flush` is called.

    Args:
      first_step: number of steps already done; later lines are removed.
      wandb_project: of Weights & Biases, which is told the same; "" = none.
      settings: of the run, flat, for Weights & Biases.
    """

    def __init__(
        self,
        workdir: epath.Path,
        first_step: int,
        wandb_project: str = "",
        settings: Mapping[str, Any] | None = None,
    ):
        self._path = workdir / "metrics.jsonl"
        self._active = jax.process_index() == 0
        if not self._active:
            return
        kept = [m for m in read_metrics(workdir) if m["step"] <= first_step]
        data = "".join(json.dumps(m) + "\n" for m in kept).encode()
        # Whole at once, so that a kill here does not lose the history.
        write_whole(self._path, data)
        self._remote = is_remote(workdir)
        self._file = (
            GrowingObject(self._path, data)
            if self._remote
            else cast(IO[bytes], self._path.open("ab"))
        )
        self._flushed = time.monotonic()
        self._events = _open_events(workdir, first_step)
        self._wandb = (
            WandbRun(workdir, wandb_project, settings or {}) if wandb_project else None
        )

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the scalars of one step."""
        if not self._active:
            return
        line = json.dumps({"step": step, **scalars}) + "\n"
        with writing(self._path):
            self._file.write(line.encode())
        if not self._remote or time.monotonic() - self._flushed > _UPLOAD_EVERY_SECS:
            self.flush()
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(step, scalars)

    def write_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Shows an image (H, W, 3), uint8, in TensorBoard."""
        if not self._active:
            return
        self._events.add_image(name, image, step, dataformats="HWC")
        if self._wandb:
            self._wandb.log_image(step, name, image)

    def flush(self) -> None:
        """Makes what was written so far safe from a kill."""
        if self._active:
            with writing(self._path):
                self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Flushes everything to disk."""
        if self._active:
            self._events.close()
            with writing(self._path):
                self._file.close()
            if self._wandb:
                self._wandb.close()


def read_metrics(workdir: epath.PathLike) -> list[dict[str, float]]:
    """Reads `metrics.jsonl`; a last line cut short by a kill is left out."""
    path = epath.Path(workdir) / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            logger.warning("%s: dropped a line that was cut short", path)
    return rows


class Progress:
    """Measures the rate and share of time spent waiting for data, between two reports.

    Args:
      total: number of steps of the whole run.
      first_step: steps done before this process started.
      batch_size: examples a step.
    """

    def __init__(self, total: int, first_step: int, batch_size: int):
        self.total = total
        self.batch_size = batch_size
        self._last_step = first_step
        self._last_time = time.perf_counter()
        self._waited = 0.0

    def waited(self, seconds: float) -> None:
        """Notes time in which the device had no batch."""
        self._waited += seconds

    def report(self, step: int) -> dict[str, float]:
        """Returns the scalars since the last report and starts anew."""
        now = time.perf_counter()
        seconds = max(now - self._last_time, 1e-9)
        rate = (step - self._last_step) / seconds
        scalars = {
            "steps_per_second": rate,
            "images_per_second": rate * self.batch_size,
            "data_wait_share": min(self._waited / seconds, 1.0),
        }
        self._last_step, self._last_time, self._waited = step, now, 0.0
        return scalars

    def line(self, step: int, scalars: Mapping[str, float]) -> str:
        """Formats a line for a person: where the run stands and when it will end."""
        rate = scalars["steps_per_second"]
        eta = (self.total - step) / rate if rate else float("inf")
        return (
            f"step {step}/{self.total}  loss {scalars['loss']:.4f}  "
            f"{rate:.2f} steps/s  {scalars['images_per_second']:.0f} images/s  "
            f"ETA {format_duration(eta)}"
        )


def device_memory_gib() -> float | None:
    """Returns the peak memory of the first local device, where the platform tells."""
    stats = jax.local_devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] / 2**30 if stats else None
