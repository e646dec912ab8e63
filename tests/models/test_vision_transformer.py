"""Patches and interpolated positions against torch's convolution and interpolation."""

import numpy as np
import pytest
from flax import nnx

from copymit.models.torch_layout import from_torch_order
from copymit.models.vision_transformer import PatchEmbedding, interpolate_positions

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("use_bias", [True, False])
def test_a_patch_embedding_is_a_strided_convolution(use_bias, rng):
    conv = torch.nn.Conv2d(3, 5, 4, stride=4, bias=use_bias)
    module = PatchEmbedding(4, 5, use_bias=use_bias, rngs=nnx.Rngs(0))
    weight = conv.weight.detach().numpy()
    module.kernel.set_value(from_torch_order("kernel", weight, module.kernel.shape))
    if use_bias:
        module.bias.set_value(conv.bias.detach().numpy())
    pixels = rng.standard_normal((2, 13, 19, 3), np.float32)  # one and three left over
    with torch.no_grad():
        expected = conv(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
    expected = expected.flatten(2).transpose(1, 2)
    # Sums of 48 float32 products in another order.
    np.testing.assert_allclose(module(pixels), expected, atol=1e-5)


@pytest.mark.parametrize("grid", [(16, 16), (37, 20), (50, 37), (1, 2)])
@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_positions_are_interpolated_as_torch_does(grid, offset, rng):
    positions = rng.standard_normal((37 * 37, 6), np.float32)
    image = torch.from_numpy(
        positions.reshape(1, 37, 37, 6).transpose(0, 3, 1, 2).copy()
    )
    how = (
        {"scale_factor": tuple((n + offset) / 37 for n in grid)}
        if offset
        else {"size": grid}
    )
    expected = torch.nn.functional.interpolate(
        image, mode="bicubic", align_corners=False, **how
    )
    assert expected.shape == (1, 6, *grid)
    actual = interpolate_positions(positions, *grid, offset)
    expected = expected[0].permute(1, 2, 0).reshape(-1, 6)
    # torch places the kernel in float32.
    np.testing.assert_allclose(actual, expected, atol=3e-5)


def test_positions_of_the_native_grid_stay_as_they_are(rng):
    positions = rng.standard_normal((9, 4), np.float32)
    np.testing.assert_array_equal(
        interpolate_positions(positions, 3, 3, 0.1), positions
    )
