"""Text-conditional noise: how much the text changes the predicted noise.

`||f(x, c) - f(x, 0)||`, the norm of the difference and not the difference of norms, as of
64x64x4 latents: the unit of `generate.prompt_target`.
"""

import jax.numpy as jnp

from copymit.mitigation.detectors import Detector
from copymit.mitigation.effect import published_norms

_SOURCE = (
    "Wen et al. 2024, Detecting, Explaining, and Mitigating Memorization in Diffusion "
    "Models, equation 2; `text_noise_norm` of YuxinWenRick/diffusion_memorization"
)

DETECTORS = (
    Detector(
        "noise_norm_first",
        "text-conditional noise, step 1",
        _SOURCE,
        0,
        lambda seen, options: published_norms(seen.first.difference),
    ),
    Detector(
        "noise_norm_mean",
        "text-conditional noise, all steps",
        _SOURCE,
        1,
        lambda seen, options: jnp.sqrt(seen.squares.sum((2, 3))).mean(0),
    ),
)
