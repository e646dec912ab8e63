"""Checked shapes, fixed seeds, one backend: the same for every test."""

import os
import random
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"  # read when jax is first imported

import jax
import jaxtyping
import numpy as np
import pytest

# Annotated shapes are checked in these modules, which must not be imported before this
# line. Left out are modules that refuse bad settings with an error of their own, since
# the type checker would be quicker, and those with protocols, which it cannot check.
_CHECKED = ("diffusion.objective", "models.autoencoder", "models.blocks")
_CHECKED += ("models.convolution", "models.functional", "models.torch_layout")
_CHECKED += ("models.text_encoder", "models.unet")
_CHECKED += ("models.autoencoder_kl", "models.autoencoder_tiny")
jaxtyping.install_import_hook(
    [f"copymit.{name}" for name in _CHECKED], "beartype.beartype"
)

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _seed_global_generators():
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Photos and weights beside the project, which not every machine has."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no ../shared/data beside the project: its photos are not public")
    return SHARED_DATA
