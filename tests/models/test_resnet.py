"""The Flax ResNets compute what torch ones do, through every format of SSCD's files."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from torch.nn import functional as F

from copymit.models import sscd
from copymit.models.backend import tracing_for
from copymit.models.functional import trace_module
from copymit.models.resnet import Conv, ResNetConfig, pool_generalised_mean
from copymit.models.sscd import ARCHITECTURES, Sscd, SscdConfig, load_sscd
from copymit.models.torch_layout import to_torch_state


class TorchBottleneck(torch.nn.Module):
    def __init__(self, inputs, width, outputs, stride, groups):
        super().__init__()
        conv = torch.nn.Conv2d
        self.conv1 = conv(inputs, width, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(width)
        self.conv3 = conv(width, outputs, 1, bias=False)
        self.bn3 = torch.nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = torch.nn.Sequential(
                conv(inputs, outputs, 1, stride, bias=False),
                torch.nn.BatchNorm2d(outputs),
            )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class TorchTrunk(torch.nn.Module):
    """A trunk of two stages with torchvision's names."""

    def __init__(self, config):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(64)
        channels = 64
        for stage, depth in enumerate(config.depths):
            width = config.groups * config.width_per_group * 2**stage
            blocks = []
            for i in range(depth):
                stride = 2 if stage and not i else 1
                outputs = 256 * 2**stage
                blocks.append(
                    TorchBottleneck(channels, width, outputs, stride, config.groups)
                )
                channels = outputs
            setattr(self, f"layer{stage + 1}", torch.nn.Sequential(*blocks))

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.layer2(self.layer1(x))


class TorchGem(torch.nn.Module):
    def forward(self, x):
        return x.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3)


class TorchSscd(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.backbone = TorchTrunk(config.trunk)
        self.embeddings = torch.nn.Sequential(
            TorchGem(), torch.nn.Linear(config.trunk.out_channels, config.features)
        )

    def forward(self, x):
        return self.embeddings(self.backbone(x))


def randomise_norms(model):
    """Makes every batch norm do something."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.0)
            module.bias.data.normal_(0, 0.3)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.3, 1.0)
    return model.eval()


def to_torchvision(name):
    """transformers' name of a ResNet's tensor -> torchvision's."""
    name = name.replace("embedder.embedder.convolution.", "conv1.")
    name = name.replace("embedder.embedder.normalization.", "bn1.")
    name = re.sub(
        r"encoder\.stages\.(\d)\.layers\.",
        lambda match: f"layer{int(match[1]) + 1}.",
        name,
    )
    name = name.replace("shortcut.convolution", "downsample.0")
    name = name.replace("shortcut.normalization", "downsample.1")
    for i in range(3):
        name = name.replace(f"layer.{i}.convolution", f"conv{i + 1}")
        name = name.replace(f"layer.{i}.normalization", f"bn{i + 1}")
    return name


def to_classy(name, block):
    """torchvision's name -> Classy Vision's."""
    leaves = {"conv1": 0, "bn1": 1, "conv2": 3, "bn2": 4, "conv3": 6}
    if match := re.match(r"backbone\.layer(\d)\.(\d+)\.(\w+)\.(.*)", name):
        stage, index, leaf = int(match[1]) - 1, match[2], match[3]
        if leaf in leaves:
            leaf = f"convolutional_block.{leaves[leaf]}"
        leaf = leaf.replace("bn3", "bn")
        return f"backbone.blocks.{stage}.{block(stage, index)}.{leaf}.{match[4]}"
    name = name.replace("backbone.conv1.", "backbone.initial_block._module.0.")
    return name.replace("backbone.bn1.", "backbone.initial_block._module.1.")


NAMINGS = {
    "torchvision": lambda name: name.replace("embeddings.1", "backbone.fc"),
    "torchvision trunk, own head": lambda name: name,
    "Classy Vision": lambda name: to_classy(name, lambda i, j: f"{j}._module"),
    "older Classy Vision": lambda name: to_classy(name, lambda i, j: f"block{i}-{j}"),
}
TINY_RESNET = SscdConfig("a tiny ResNet", ResNetConfig((1, 2)), 32)
TINY_RESNEXT = SscdConfig("a tiny ResNeXt", ResNetConfig((1, 2), 32, 4), 48)


@pytest.fixture(autouse=True)
def tiny_architectures(monkeypatch):
    tiny = {"tiny": TINY_RESNET, "tiny_grouped": TINY_RESNEXT}
    monkeypatch.setattr(sscd, "ARCHITECTURES", ARCHITECTURES | tiny)


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    return randomise_norms(TorchSscd(TINY_RESNET))


@pytest.fixture(scope="module")
def grouped_reference():
    torch.manual_seed(0)
    return randomise_norms(TorchSscd(TINY_RESNEXT))


def images(height=75, width=50):
    """Odd sizes round differently at each stride."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, height, width, 3)).astype(np.float32)


def to_torch(array):
    return torch.from_numpy(array).permute(0, 3, 1, 2)


@torch.no_grad()
def compute_expected(model, array):
    return model(to_torch(array)).numpy()


def run(model, array):
    return np.asarray(nnx.jit(lambda model, x: model(x))(model, array))


def assert_close(ours, theirs):
    """Compares up to the float32 rounding that the layers accumulate."""
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.01
    assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < 1e-4


def test_a_resnet_gives_what_transformers_gives(tmp_path):
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        layer_type="bottleneck", hidden_sizes=[256, 512], depths=[1, 2]
    )
    trunk = randomise_norms(transformers.ResNetModel(config))
    head = torch.nn.Linear(512, TINY_RESNET.features)
    state = {
        f"backbone.{to_torchvision(name)}": tensor
        for name, tensor in trunk.state_dict().items()
    }
    state |= {f"backbone.fc.{k}": v for k, v in head.state_dict().items()}
    torch.save(state, tmp_path / "resnet.pt")
    with torch.no_grad():
        features = trunk(to_torch(images())).last_hidden_state
        expected = head(TorchGem()(features)).numpy()
    assert_close(run(load_sscd(tmp_path / "resnet.pt", "tiny"), images()), expected)


def test_a_resnext_gives_what_torch_gives(grouped_reference, tmp_path):
    torch.save(grouped_reference.state_dict(), tmp_path / "resnext.pt")
    ours = load_sscd(tmp_path / "resnext.pt", "tiny_grouped")
    assert_close(run(ours, images()), compute_expected(grouped_reference, images()))


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_of_the_published_files_is_read(naming, reference, tmp_path):
    state = {NAMINGS[naming](k): v for k, v in reference.state_dict().items()}
    assert len(state) == len(reference.state_dict())
    torch.save(state, tmp_path / "weights.pt")
    got = to_torch_state(load_sscd(tmp_path / "weights.pt", "tiny"))
    torch.save(reference.state_dict(), tmp_path / "usual.pt")
    expected = to_torch_state(load_sscd(tmp_path / "usual.pt", "tiny"))
    assert got.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name], values)


@pytest.mark.parametrize("compiler", ["script", "trace"])
def test_a_torchscript_archive_gives_what_its_program_gives(
    compiler, reference, tmp_path
):
    program = (
        torch.jit.script(reference)
        if compiler == "script"
        else torch.jit.trace(reference, torch.zeros(1, 3, 64, 64))
    )
    program.save(str(tmp_path / "sscd.torchscript.pt"))
    ours = load_sscd(tmp_path / "sscd.torchscript.pt", "tiny")
    assert_close(run(ours, images()), compute_expected(program, images()))


def test_the_published_architectures_have_the_published_numbers_of_parameters():
    counts = {}
    for name, config in ARCHITECTURES.items():
        model = trace_module(lambda rngs, config=config: Sscd(config, rngs=rngs))
        sizes = jax.tree.map(lambda leaf: leaf.size, nnx.state(model.backbone))
        counts[name] = sum(jax.tree.leaves(sizes))
    # torchvision: 25,557,032 and 44,177,704 with a classifier of 1000 on 2048 features.
    # Folding leaves one bias for the two parameters of each norm.
    norms = {"resnet50": 26_560, "resnext101_32x4d": 68_928}
    totals = {"resnet50": 25_557_032, "resnext101_32x4d": 44_177_704}
    for name, count in counts.items():
        assert count == totals[name] - 2_049_000 - norms[name]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [16, 64, 256])
def test_grouped_convolutions_agree_with_those_of_accelerators(channels, stride):
    conv = Conv(channels, channels, 3, stride, groups=8, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(2, 7, 6, channels)).astype(np.float32)
    with tracing_for("tpu"):
        native = run(conv, x)
    np.testing.assert_allclose(run(conv, x), native, atol=1e-4)  # of up to 288 products


def test_generalised_mean_of_a_constant_is_the_constant_and_never_less_than_epsilon():
    features = jnp.full((1, 3, 3, 2), 2.0).at[..., 1].set(-1.0)
    np.testing.assert_allclose(
        pool_generalised_mean(features), [[2.0, 1e-6]], rtol=1e-5
    )


def test_a_file_of_another_architecture_is_named_with_what_is_needed(
    grouped_reference, tmp_path
):
    torch.save(grouped_reference.state_dict(), tmp_path / "other.pt")
    message = r"other\.pt holds a tiny ResNeXt, but SSCD's ResNet-50 .*512 features is"
    with pytest.raises(ValueError, match=message):
        load_sscd(tmp_path / "other.pt", "resnet50")


def test_a_file_of_another_network_is_named_with_its_first_tensors(tmp_path):
    torch.save(torch.nn.Linear(3, 3).state_dict(), tmp_path / "linear.pt")
    with pytest.raises(
        ValueError, match=r"linear\.pt holds weight, bias and so on, but"
    ):
        load_sscd(tmp_path / "linear.pt", "resnext101_32x4d")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("backbone.layer2.1.bn2.running_var"),
            r"bn2\.running_var is mis",
        ),
        (
            lambda s: s.pop("backbone.layer1.0.conv3.weight"),
            r"missing .*layer1\.0\.conv3",
        ),
        (lambda s: s.update(extra=torch.ones(1)), "unused extra"),
        (
            lambda s: s.update({"embeddings.1.bias": torch.ones(3)}),
            r"head\.bias has shape \(3,\), needs \(32,\)",
        ),
    ],
)
def test_missing_unused_and_misshapen_tensors_are_named(
    change, message, reference, tmp_path
):
    state = reference.state_dict()
    change(state)
    torch.save(state, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=rf"bad\.pt: .*{message}"):
        load_sscd(tmp_path / "bad.pt", "tiny")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        load_sscd(tmp_path / "none.pt", "resnet50")
