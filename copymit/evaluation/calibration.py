"""Targets of mitigations as quantiles of what a model does with prompts not memorised.

The prompts are those of `eval.detection.other_prompts`, or else captions of held-out
images; the initial noises are the generations' own.
"""

import logging

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from copymit.data.dataset import Dataset
from copymit.data.tokenizer import Tokenizer
from copymit.diffusion.noise_scheduler import NoiseScheduler
from copymit.evaluation.prompts import make_prompts
from copymit.generator import SamplingOptions, make_measure
from copymit.mitigation.sampling import asked_quantiles, calibrated
from copymit.models.assembly import DiffusionModel, ModelParams
from copymit.sharding import replicated

logger = logging.getLogger(__name__)

# A quantile of 64 numbers is known to a tenth of the distribution or so.
_NUM_PROMPTS = 64


def calibration_prompts(
    config: ConfigDict, dataset: Dataset, tokenizer: Tokenizer
) -> list[str]:
    """Lists the prompts that a quantile is of.

    Raises:
      ValueError: where there are none; names the setting and the way out.
    """
    config = config.copy_and_resolve_references()
    config.eval.num_generations = _NUM_PROMPTS
    config.eval.prompts_file = config.eval.detection.other_prompts
    config.eval.prompts = "file" if config.eval.prompts_file else "heldout"
    if not config.eval.prompts_file and not len(dataset.heldout):
        raise ValueError(
            "mitigation.generate: a quantile is of prompts that are not memorised, and "
            "there are none: name a file of them in eval.detection.other_prompts, set "
            "data.num_heldout, or give a target in place of the quantile"
        )
    return [prompt.prompt_used for prompt in make_prompts(config, dataset, tokenizer)]


def calibrate(
    options: SamplingOptions,
    prompts: list[str],
    model: DiffusionModel,
    noise_scheduler: NoiseScheduler,
    tokenizer: Tokenizer,
    negative_ids: np.ndarray,
    params: ModelParams,
    mesh: Mesh,
) -> SamplingOptions:
    """Returns the options with a target for every quantile that they ask for."""
    measure = make_measure(model, noise_scheduler, options, negative_ids)
    measure = jax.jit(measure, out_shardings=replicated(mesh))
    with jax.set_mesh(mesh):
        # One batch for each of eight: as small as a batch of generations.
        parts = [
            measure(
                params,
                tokenizer.encode(prompts[first : first + 8]),
                np.arange(first, first + 8, dtype=np.int32),
            )
            for first in range(0, len(prompts), 8)
        ]
    measured = {
        name: np.concatenate([np.asarray(part[name]) for part in parts])
        for name in parts[0]
    }
    mitigations = calibrated(options.mitigations, measured)
    for c in asked_quantiles(mitigations):
        logger.info(
            "mitigation.%s=%.4g, by %d prompts that are not memorised",
            c.target.path,
            dict(mitigations)[c.target.name],
            len(prompts),
        )
    return options._replace(mitigations=mitigations)
