"""How parameters start: named distributions, drawn on the host.

As a program of the device, the random numbers of a network are one kernel a tensor, each
with a loop of its own: 16 CPU seconds of compilation for the smallest UNet here, 44 for one
of 257 M parameters. NumPy draws them in 0.1 and 5, and nothing is compiled.
"""

import dataclasses
import hashlib
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

_CUT = 2.0
_CHUNK = 2**16  # values that stay in the cache; another size would draw other ones
_STD_WHEN_CUT = 0.879625661  # of a standard normal without what is beyond the cut


@dataclasses.dataclass(frozen=True)
class Initializer:
    """A distribution of initial values, for `nnx` in place of its own initializers.

    Attributes:
      std: standard deviation around 0; 0 is the constant.
      by_fan_in: the sum over all inputs has this deviation instead of each value, and no
        value is further than two deviations off, as in jax's `lecun_normal`.
      output_axes: how many of the last axes are outputs.
    """

    std: float
    by_fan_in: bool = False
    output_axes: int = 1

    def __call__(self, key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32):
        """Draws for a module that is being made, also where it is only traced."""

        def draw(words):
            return self.draw(np.asarray(words).tobytes(), shape).astype(dtype)

        words = jax.random.key_data(key)
        values = (
            jax.pure_callback(draw, jax.ShapeDtypeStruct(shape, dtype), words)
            if isinstance(words, jax.core.Tracer)
            else jax.device_put(draw(words))
        )
        # The variable made of them remembers how: see `functional.describe_params`.
        return nnx.VariableMetadata(values, metadata={"initializer": self})

    def draw(self, seed: bytes, shape: tuple[int, ...]) -> np.ndarray:
        """Draws float32 values, a function of the seed and the shape alone."""
        if not self.std:
            return np.zeros(shape, np.float32)
        key = int.from_bytes(hashlib.sha256(seed).digest()[:16], "little")
        rng = np.random.Generator(np.random.Philox(key=key))
        std = self.std
        if self.by_fan_in:
            std /= _STD_WHEN_CUT * math.sqrt(math.prod(shape[: -self.output_axes]))
        values = np.empty(math.prod(shape), np.float32)
        for start in range(0, len(values), _CHUNK):
            chunk = values[start : start + _CHUNK]
            rng.standard_normal(out=chunk, dtype=np.float32)
            if self.by_fan_in:
                _draw_again_beyond_cut(rng, chunk)
            chunk *= np.float32(std)
        return values.reshape(shape)


def normal(std: float) -> Initializer:
    """Returns the normal distribution around 0."""
    return Initializer(std)


LECUN_NORMAL = Initializer(1.0, by_fan_in=True)
"""Keeps the variance of features (LeCun et al. 1998)."""

HE_NORMAL = Initializer(math.sqrt(2), by_fan_in=True)
"""Keeps it through ReLUs (He et al. 2015)."""

ZERO = Initializer(0.0)
"""For the last layer of every residual branch, so that a new network is the identity
between its first and last convolution and learns sooner (Dhariwal and Nichol 2021).
Networks with loaded weights do not notice."""


def _draw_again_beyond_cut(rng: np.random.Generator, values: np.ndarray) -> None:
    beyond = np.flatnonzero(np.abs(values) > _CUT)
    while beyond.size:
        values[beyond] = rng.standard_normal(beyond.size, np.float32)
        beyond = beyond[np.abs(values[beyond]) > _CUT]
