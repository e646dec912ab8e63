"""Stable Diffusion 2.1 at full size through diffusers and back, with random weights.

    python -m benchmarks.pretrained [--folder=FOLDER]

Makes the model with diffusers, loads it here, compares outputs, saves it, reloads it in
diffusers and compares weights. Every part runs in a process of its own, so that 12 GB
of memory and 11 GB of disk are enough, and prints what it measured. Memory is the peak
of the resident set during loading, less what the process had before, as a multiple of
the weights' bytes: on a CPU the result itself is 1.0, and the mapped files, whose pages
the kernel drops when it must, are up to 1.0 more.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

NETWORKS = ("unet", "vae", "text_encoder")
PARTS = ("make", "load", "compare")
UNET = {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
    "upcast_attention": True,
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "sample_size": 768,
}
TEXT_ENCODER = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
}
# Small images: the weights are what is compared.
LATENT_SIZE = 16


def main() -> None:
    """Runs all parts for all networks, each in a new process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder")
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--network", choices=NETWORKS)
    arguments = parser.parse_args()
    if arguments.part:
        folder = Path(arguments.folder)
        {"make": make, "load": load, "compare": compare}[arguments.part](
            folder, arguments.network
        )
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for network in NETWORKS:
            for part in PARTS:
                options = [
                    f"--part={part}",
                    f"--network={network}",
                    f"--folder={folder}",
                ]
                command = [sys.executable, "-m", "benchmarks.pretrained", *options]
                subprocess.run(
                    command, check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}
                )


def inputs(network: str) -> tuple[np.ndarray, ...]:
    """Makes the same inputs for both sides, channels last."""
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(1, LATENT_SIZE, LATENT_SIZE, 4)).astype(np.float32)
    text = rng.normal(size=(1, 77, 1024)).astype(np.float32)
    ids = np.concatenate([[49_406], rng.integers(0, 49_406, 75), [49_407]])[None]
    timesteps = np.array([500])
    return {
        "unet": (latents, timesteps, text),
        "vae": (latents,),
        "text_encoder": (ids,),
    }[network]


def make(folder: Path, network: str) -> None:
    """Publishes one network with random weights, and what it computes."""
    import diffusers
    import torch
    import transformers

    torch.manual_seed(0)
    model = {
        "unet": lambda: diffusers.UNet2DConditionModel(**UNET),
        "vae": lambda: diffusers.AutoencoderKL(**VAE),
        "text_encoder": lambda: transformers.CLIPTextModel(
            transformers.CLIPTextConfig(**TEXT_ENCODER)
        ),
    }[network]().eval()
    arguments = [
        torch.from_numpy(np.moveaxis(x, -1, 1).copy() if x.ndim == 4 else x)
        for x in inputs(network)
    ]
    with torch.no_grad():
        if network == "unet":
            output = model(*arguments).sample.movedim(1, -1)
        elif network == "vae":
            output = model.decode(*arguments).sample.movedim(1, -1)
        else:
            output = model(*arguments).last_hidden_state
    np.save(folder / f"{network}.npy", output.numpy())
    model.save_pretrained(folder / "published" / network, max_shard_size="10GB")
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{network}: {count / 1e6:.1f} M parameters", flush=True)


def load(folder: Path, network: str) -> None:
    """Loads one network here, compares what it computes and saves it."""
    import jax
    import jax.numpy as jnp

    from copymit.models.functional import make_apply
    from copymit.pretrained.components import abstract_params, make_network
    from copymit.pretrained.load import load_network
    from copymit.pretrained.pipeline import read_config
    from copymit.pretrained.save import Network, save_network
    from copymit.pretrained.source import open_source

    source = open_source(str(folder / "published"))
    config = read_config(source, network)
    abstract = abstract_params(config)
    jax.block_until_ready(jnp.zeros(1))
    weights = sum(value.size * value.dtype.itemsize for value in abstract.values())
    with _Peak() as loading:
        params = jax.block_until_ready(load_network(source, network, abstract))
    with _Peak() as saving:
        save_network(folder / "saved", Network(network, config, params))
    apply = make_apply(
        lambda rngs: make_network(config, rngs),
        "decode" if network == "vae" else "__call__",
    )
    output = jax.jit(apply)(params, *map(jnp.asarray, inputs(network)))
    output = np.asarray(output[0] if network == "text_encoder" else output)
    expected = np.load(folder / f"{network}.npy")
    error = np.abs(output - expected).max()
    for verb, peak in (("loaded", loading), ("saved", saving)):
        print(
            f"{network}: {verb} {weights / 1e9:.2f} GB in {peak.seconds:.1f} s, peak "
            f"memory {peak.bytes / weights:.3f} x the weights",
            flush=True,
        )
    print(
        f"{network}: greatest difference from torch {error:.1e}, relative to the "
        f"standard deviation {error / expected.std():.1e}",
        flush=True,
    )


def compare(folder: Path, network: str) -> None:
    """Reloads what was saved in diffusers and compares it with what was published."""
    import diffusers
    import safetensors
    import torch
    import transformers

    model = {
        "unet": diffusers.UNet2DConditionModel,
        "vae": diffusers.AutoencoderKL,
        "text_encoder": transformers.CLIPTextModel,
    }[network].from_pretrained(folder / "saved" / network)
    state = model.state_dict()
    (path,) = (folder / "published" / network).glob("*.safetensors")
    with safetensors.safe_open(path, "pt") as published:
        assert state.keys() == set(published.keys())
        different = [
            name
            for name in state
            if not torch.equal(state[name], published.get_tensor(name))
        ]
    print(
        f"{network}: reloaded in diffusers, {len(state)} tensors, "
        f"{len(different)} different",
        flush=True,
    )
    if different:
        sys.exit(1)


class _Peak:
    """Measures time and the growth of the resident set at its peak (Linux)."""

    def __enter__(self):
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        self.before = _status("VmRSS")
        self.began = time.monotonic()
        return self

    def __exit__(self, *_):
        self.seconds = time.monotonic() - self.began
        self.bytes = _status("VmHWM") - self.before


def _status(field: str) -> int:
    """Reads a size in bytes of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return 1024 * int(value.split()[0])
    raise ValueError(f"no {field} in /proc/self/status: is this Linux?")


if __name__ == "__main__":
    main()
