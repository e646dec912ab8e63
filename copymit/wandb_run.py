"""A training as a run of Weights & Biases, for whoever asks for it."""

import importlib.util
import logging
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from copymit.storage import is_remote, write_whole

logger = logging.getLogger(__name__)


def check_wandb(project: str) -> None:
    """Raises a `ValueError` if a project is to be reported to and wandb is not there."""
    if project and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            f"train.wandb_project={project} needs the package wandb: pip install wandb, or "
            "leave the setting empty"
        )


class WandbRun:
    """A run of Weights & Biases: it goes on with its working directory, or is given up.

    Steps that a resumed training repeats are there already and are dropped by wandb.
    """

    def __init__(self, workdir: epath.Path, project: str, settings: Mapping[str, Any]):
        import wandb  # an extra

        self._wandb = wandb
        known = workdir / "wandb_id.txt"
        if not known.exists():
            write_whole(known, uuid.uuid4().hex.encode())
        try:
            self._run = wandb.init(
                project=project,
                id=known.read_text(),
                resume="allow",
                name=workdir.name,
                config=dict(settings),
                dir=None if is_remote(workdir) else str(workdir),
            )
        except wandb.Error as error:
            raise ConnectionError(
                f"train.wandb_project={project}: {error}; log in (wandb login), set "
                "WANDB_MODE=offline, or leave the setting empty"
            ) from error

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Reports; no training of days ends because of it."""
        if self._run is None:
            return
        try:
            self._run.log(dict(values), step=step)
        except Exception as error:  # of a library in a process of its own
            logger.warning("nothing more is reported to Weights & Biases: %s", error)
            self._run = None

    def log_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Reports an image (H, W, 3), uint8."""
        self.log(step, {name: self._wandb.Image(image)})

    def close(self) -> None:
        """Waits until all is reported, or is on disk where wandb is offline."""
        if self._run is not None:
            self._run.finish()
