"""The Flax Inception computes what torch functions, written out here, compute."""

import numpy as np
import pytest
import torch
from flax import nnx
from torch.nn import functional as F

from copymit.models import inception
from copymit.models.functional import describe_params
from copymit.models.inception import Inception, load_inception
from copymit.models.torch_layout import to_torch_name, to_torch_shape


def torch_conv(state, name, x, stride=1, padding=0):
    hidden = F.conv2d(x, state[f"{name}.conv.weight"], None, stride, padding)
    norm = [
        state[f"{name}.bn.{key}"]
        for key in ("running_mean", "running_var", "weight", "bias")
    ]
    return F.relu(F.batch_norm(hidden, *norm, eps=0.001))


def torch_average(x):
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def torch_max(x):
    return F.max_pool2d(x, 3, stride=1, padding=1)


def torch_chain(state, block, x, *steps):
    """Applies (branch, padding) or (branch, padding, stride) in turn."""
    for branch, padding, *stride in steps:
        x = torch_conv(state, f"{block}.{branch}", x, *(stride or [1]), padding)
    return x


def torch_block_a(state, name, x):
    branches = [
        torch_chain(state, name, x, ("branch1x1", 0)),
        torch_chain(state, name, x, ("branch5x5_1", 0), ("branch5x5_2", 2)),
        torch_chain(
            state,
            name,
            x,
            ("branch3x3dbl_1", 0),
            ("branch3x3dbl_2", 1),
            ("branch3x3dbl_3", 1),
        ),
        torch_chain(state, name, torch_average(x), ("branch_pool", 0)),
    ]
    return torch.cat(branches, 1)


def torch_block_b(state, name, x):
    branches = [
        torch_chain(state, name, x, ("branch3x3", 0, 2)),
        torch_chain(
            state,
            name,
            x,
            ("branch3x3dbl_1", 0),
            ("branch3x3dbl_2", 1),
            ("branch3x3dbl_3", 0, 2),
        ),
        F.max_pool2d(x, 3, 2),
    ]
    return torch.cat(branches, 1)


def torch_block_c(state, name, x):
    row, column = (0, 3), (3, 0)
    long = [("branch7x7dbl_1", 0), ("branch7x7dbl_2", column), ("branch7x7dbl_3", row)]
    long += [("branch7x7dbl_4", column), ("branch7x7dbl_5", row)]
    short = [("branch7x7_1", 0), ("branch7x7_2", row), ("branch7x7_3", column)]
    branches = [
        torch_chain(state, name, x, ("branch1x1", 0)),
        torch_chain(state, name, x, *short),
        torch_chain(state, name, x, *long),
        torch_chain(state, name, torch_average(x), ("branch_pool", 0)),
    ]
    return torch.cat(branches, 1)


def torch_block_d(state, name, x):
    long = [("branch7x7x3_1", 0), ("branch7x7x3_2", (0, 3)), ("branch7x7x3_3", (3, 0))]
    branches = [
        torch_chain(state, name, x, ("branch3x3_1", 0), ("branch3x3_2", 0, 2)),
        torch_chain(state, name, x, *long, ("branch7x7x3_4", 0, 2)),
        F.max_pool2d(x, 3, 2),
    ]
    return torch.cat(branches, 1)


def torch_block_e(state, name, x, pool):
    single = torch_chain(state, name, x, ("branch3x3_1", 0))
    double = torch_chain(state, name, x, ("branch3x3dbl_1", 0), ("branch3x3dbl_2", 1))
    branches = [
        torch_chain(state, name, x, ("branch1x1", 0)),
        torch_chain(state, name, single, ("branch3x3_2a", (0, 1))),
        torch_chain(state, name, single, ("branch3x3_2b", (1, 0))),
        torch_chain(state, name, double, ("branch3x3dbl_3a", (0, 1))),
        torch_chain(state, name, double, ("branch3x3dbl_3b", (1, 0))),
        torch_chain(state, name, pool(x), ("branch_pool", 0)),
    ]
    return torch.cat(branches, 1)


def torch_inception(state, x):
    x = torch_conv(state, "Conv2d_1a_3x3", x, stride=2)
    x = torch_conv(state, "Conv2d_2a_3x3", x)
    x = F.max_pool2d(torch_conv(state, "Conv2d_2b_3x3", x, padding=1), 3, 2)
    x = torch_conv(state, "Conv2d_3b_1x1", x)
    x = F.max_pool2d(torch_conv(state, "Conv2d_4a_3x3", x), 3, 2)
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = torch_block_a(state, name, x)
    x = torch_block_b(state, "Mixed_6a", x)
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        x = torch_block_c(state, name, x)
    x = torch_block_d(state, "Mixed_7a", x)
    x = torch_block_e(state, "Mixed_7b", x, torch_average)
    x = torch_block_e(state, "Mixed_7c", x, torch_max)
    return x.mean((2, 3))


@pytest.fixture(scope="module")
def state():
    """Random weights whose batch norms all do something."""
    params = describe_params(lambda rngs: Inception(rngs=rngs))
    generator = torch.Generator().manual_seed(0)

    def draw(shape, low, high):
        return torch.empty(shape).uniform_(low, high, generator=generator)

    state = {"fc.weight": draw((1008, 2048), -1, 1), "fc.bias": draw(1008, -1, 1)}
    for name, value in params.items():
        if not name.endswith(".conv.kernel"):
            continue
        shape = to_torch_shape(name, value.shape)
        bound = (6 / np.prod(shape[1:])) ** 0.5
        state[to_torch_name(name)] = draw(shape, -bound, bound)
        norm, count = name.replace(".conv.kernel", ".bn"), shape[0]
        state[f"{norm}.weight"] = draw(count, 0.8, 1.2)
        state[f"{norm}.bias"] = draw(count, -0.2, 0.2)
        state[f"{norm}.running_mean"] = draw(count, -0.2, 0.2)
        state[f"{norm}.running_var"] = draw(count, 0.6, 1.2)
        state[f"{norm}.num_batches_tracked"] = torch.tensor(0)
    return state


@pytest.fixture(scope="module")
def model(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(state, path)
    return load_inception(path)


def assert_close(ours, theirs):
    """Compares up to the float32 rounding of sums in another order."""
    theirs = theirs.numpy()
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.1
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    assert error < 1e-5
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def channels_first(x):
    return torch.from_numpy(np.asarray(x)).permute(0, 3, 1, 2)


def test_the_network_equals_torch_functions(model, state):
    images = np.random.default_rng(0).uniform(-1, 1, (2, 107, 91, 3))
    images = images.astype(np.float32)
    with torch.no_grad():
        expected = torch_inception(state, channels_first(images))
    assert_close(nnx.jit(lambda model, x: model(x))(model, images), expected)


@pytest.mark.parametrize(
    ("name", "channels", "reference"),
    [
        ("Mixed_5b", 192, torch_block_a),
        ("Mixed_6a", 288, torch_block_b),
        ("Mixed_6c", 768, torch_block_c),
        ("Mixed_7a", 768, torch_block_d),
        ("Mixed_7b", 1280, lambda *a: torch_block_e(*a, torch_average)),
        ("Mixed_7c", 2048, lambda *a: torch_block_e(*a, torch_max)),
    ],
)
def test_each_kind_of_block_equals_torch_functions(
    model, state, name, channels, reference
):
    # Negative inputs show a maximum that takes the padding's zeros.
    inputs = np.random.default_rng(1).normal(-1, 1, (2, 7, 9, channels))
    inputs = inputs.astype(np.float32)
    with torch.no_grad():
        expected = reference(state, name, channels_first(inputs)).permute(0, 2, 3, 1)
    assert_close(
        nnx.jit(lambda block, x: block(x))(getattr(model, name), inputs), expected
    )


def test_averages_leave_the_padding_out():
    ones = np.ones((1, 4, 5, 2), np.float32)
    np.testing.assert_allclose(inception._average_neighbours(ones), ones, rtol=1e-6)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda s: s.pop("Mixed_6b.branch7x7_2.conv.weight"),
            r"missing Mixed_6b\.branch7x7_2\.conv\.weight",
        ),
        (
            lambda s: s.pop("Mixed_7c.branch_pool.bn.running_var"),
            r"Mixed_7c\.branch_pool\.bn\.running_var is missing",
        ),
        (lambda s: s.update(extra=torch.ones(1)), "unused extra"),
        (
            lambda s: s.update({"AuxLogits.conv0.conv.weight": torch.ones(1, 1, 1, 1)}),
            r"AuxLogits\.conv0",
        ),
        (
            lambda s: s.update({"fc.weight": torch.ones(1000, 2048)}),
            r"fc\.weight has shape \(1000, 2048\), not \(1008, 2048\): .*torchvision's",
        ),
        (
            lambda s: s.update({"Conv2d_1a_3x3.conv.weight": torch.ones(32, 1, 3, 3)}),
            r"Conv2d_1a_3x3\.conv\.weight has shape \(32, 1, 3, 3\)",
        ),
    ],
)
def test_weights_of_another_network_are_named(tmp_path, state, edit, message):
    other = dict(state)
    edit(other)
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=message) as caught:
        load_inception(tmp_path / "other.pth")
    assert "other.pth" in str(caught.value)
    assert "pt_inception-2015-12-05-6726825d.pth" in str(caught.value)


def test_weights_without_the_unused_classifier_are_taken(tmp_path, state, model):
    bare = {name: value for name, value in state.items() if not name.startswith("fc.")}
    torch.save(bare, tmp_path / "bare.pth")
    loaded = load_inception(tmp_path / "bare.pth")
    kernels = [m.Mixed_7c.branch_pool.conv.kernel[...] for m in (loaded, model)]
    np.testing.assert_array_equal(*kernels)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        load_inception(tmp_path / "none.pth")
