"""What an embedder is: preprocessing on the host, a network on the device, and a name.

The name and the protocol (everything about preprocessing and weights that could change a
number) travel with every result.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, UInt8


class Embedder(NamedTuple):
    """A way to describe an image by a vector.

    Attributes:
      name: key of the embedder in configs and results.
      protocol: preprocessing and weights in words.
      prepare: image -> what the network takes of it, such as its resized pixels; runs on
        the host, in threads, and gives arrays of one shape for images of one size.
      params: a pytree of arrays.
      apply: (params, stacked prepared images) -> features, not normalised; traceable.
      any_shape: whether `prepare` gives one shape for images of any size, so that they
        come to it as they are; else they are resized and cropped to a common size first.
    """

    name: str
    protocol: str
    prepare: Callable[[UInt8[np.ndarray, "H W 3"]], np.ndarray]
    params: Any
    apply: Callable[[Any, Array], Float[Array, "B D"]]
    any_shape: bool = True
