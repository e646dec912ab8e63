"""A published model, or any folder in diffusers' layout, as it is."""

import functools
import logging
import os

from etils import epath
from ml_collections import ConfigDict

from copymit.config import flatten, trained_settings
from copymit.data.dataset import load_dataset
from copymit.evaluation.settings import resolve_embedders
from copymit.evaluation.stages import content_digest
from copymit.evaluation.subject.places import name_after, place_of
from copymit.evaluation.subject.subject import Run, Subject, subject_of_run
from copymit.mitigation.registry import (
    mitigation_settings,
    unused_in_evaluation,
    with_mitigations,
)
from copymit.pretrained.settings import load_networks, with_pretrained_settings

logger = logging.getLogger(__name__)


def open_model(
    source: str, workdir: epath.PathLike, config: ConfigDict, name: str | None
) -> Subject:
    """Opens a published model.

    Args:
      source: a base model's name, a folder, or a hub id.
      config: its `data` section is what the generations are compared with and, unless
        they come from a file, prompted by.
      name: of the evaluation; by default after the model and the data.
    Raises:
      FileNotFoundError, ValueError: if the model or the data cannot be used.
    """
    config = config.copy_and_resolve_references()
    size = config.eval.resolution or config.data.resolution
    config.eval, choice = resolve_embedders(config.eval, lambda: size)
    given = config.to_dict()
    config.model.pretrained = source
    config = with_mitigations(with_pretrained_settings(config))
    for problem in unused_in_evaluation(config.mitigation, mitigation_settings()):
        logger.warning(problem)
    dataset = load_dataset(config.data, config.seed, workdir)
    # A hub id, or a name that copymit knows, is no path.
    places = [
        place_of(path) if os.path.exists(path) else path
        for path in (source, config.data.source)
    ]
    return subject_of_run(
        Run(config, dataset, functools.partial(load_networks, config.model), None),
        epath.Path(workdir) / "eval" / (name or name_after(source, places)),
        [trained_settings(flatten(config.to_dict())), content_digest(source)],
        title=source,
        record={
            "kind": "published",
            "places": places,
            "model": source,
            "config": given,
        },
        choice=choice,
    )
