"""What each mitigation at inference costs: plain sampling over sampling with it.

The small UNet of `benchmarks.unet`, two images of 32x32x4 latents with guidance; optimised
prompts and noise take all their iterations, the most that they can cost.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import Row, best_of
from benchmarks.unet import GUIDANCE_SCALE, SIZES
from copymit.data.tokenizer import make_tokenizer
from copymit.diffusion.noise_scheduler import make_noise_scheduler
from copymit.diffusion.trajectory import SAMPLERS
from copymit.mitigation.references import References, make_references
from copymit.mitigation.registry import MITIGATIONS, strengths, values_of
from copymit.mitigation.sampling import (
    changed_text,
    generation_rewrite,
    sample_with_mitigations,
)
from copymit.mitigation.scene import Text
from copymit.models.functional import init_params, make_apply
from copymit.models.unet import UNet2DConditionModel, UNetConfig

STEPS, IMAGES, REPEATS = 50, 2, 2
SHAPE = (32, 32, 4)
REFERENCE_COUNT = 10_000

PROMPT = "a photo of a garbage truck in front of a church"

# A target that is never reached: every iteration is taken.
_UNREACHED = 1e-6
_ON_THE_HOST = [m.name for m in MITIGATIONS.values() if m.prompt]


def _strengths() -> dict[str, dict[str, Any]]:
    """Returns the settings of every mitigation that acts on the device."""
    found = {}
    for m in MITIGATIONS.values():
        if m.switch.section != "generate" or m.prompt:
            continue
        strength = _UNREACHED if m.calibration else m.strength
        beside = (MITIGATIONS[name] for name in m.beside[:1])
        found[m.name] = {m.switch.name: strength} | {
            other.switch.name: other.strength for other in beside
        }
    return found


def run(steps: int = STEPS) -> list[Row]:
    """Times every mitigation against the same sampling without it.

    Args:
      steps: of the sampling; fewer make the optimisations' share larger.
    """
    text, make_noise, references = _inputs()
    params, predict = _network()

    def seconds(asked: dict[str, Any]) -> float:
        given = strengths(**asked)

        @jax.jit
        def generate(params, text: Text, references: References):
            keys = jax.random.split(jax.random.key(0), (2, IMAGES))
            text = text._replace(
                hidden_states=changed_text(given, text.hidden_states, keys[0]),
                negative_hidden_states=changed_text(
                    given, text.negative_hidden_states, keys[1]
                ),
            )
            return sample_with_mitigations(
                functools.partial(predict, params),
                SAMPLERS["ddim"](make_noise_scheduler(), steps),
                text,
                make_noise,
                given,
                guidance_scale=GUIDANCE_SCALE,
                num_train_timesteps=1000,
                references=references,
            )

        return best_of(lambda: generate(params, text, references), REPEATS)

    plain = seconds({})
    shape = f"{steps} steps, {IMAGES}x{'x'.join(map(str, SHAPE))}"
    times = {name: seconds(asked) for name, asked in _strengths().items()}
    times |= {name: plain + _seconds_of_rewrite(name) for name in _ON_THE_HOST}
    return [
        Row(f"{name}, {shape}", mitigated, "no mitigation", plain)
        for name, mitigated in times.items()
    ]


def _seconds_of_rewrite(name: str) -> float:
    """Times the rewriting of the prompts of a batch."""
    m = MITIGATIONS[name]
    values = values_of(strengths(**{m.switch.name: m.strength}))
    rewrite = generation_rewrite(values, make_tokenizer(77, 49_407).decode)
    rngs = [np.random.default_rng(i) for i in range(IMAGES)]
    return best_of(lambda: [rewrite(PROMPT, rng) for rng in rngs])


def _network():
    config = UNetConfig(sample_size=SHAPE[0], **SIZES["small"])

    def make(rngs):
        return UNet2DConditionModel(config, rngs=rngs)

    apply = make_apply(make)
    params = init_params(make)
    # A fresh network predicts zero, and has nothing to optimise.
    params["conv_out.kernel"] += 0.1

    def predict(params, latents, timesteps, hidden_states, control):
        if control is None:
            return apply(params, latents, timesteps, hidden_states)
        return apply(params, latents, timesteps, hidden_states, control)[0]

    return params, predict


def _inputs():
    rng = np.random.default_rng(0)
    length = 77
    input_ids = np.full((IMAGES, length), 49_407, np.int32)
    input_ids[:, :10] = np.arange(10)
    width = SIZES["small"]["cross_attention_dim"]
    states = rng.standard_normal((2, IMAGES, length, width), np.float32)
    text = Text(jnp.asarray(input_ids), *map(jnp.asarray, states))
    images = rng.standard_normal((REFERENCE_COUNT, *SHAPE), np.float32)
    references = jax.tree.map(jnp.asarray, make_references(images))

    def make_noise(number: int) -> jax.Array:
        return jax.random.normal(jax.random.key(number), (IMAGES, *SHAPE))

    return text, make_noise, references
