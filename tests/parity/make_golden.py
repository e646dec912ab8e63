"""Writes what pytorch-fid, torch-fidelity, clean-fid and prdc compute, as golden files.

    make parity     (runs this in an environment of its own: torch and torchvision, 5.6 GB)

In: nothing but `inputs.py` and, for the FID of photos, ../shared/data. Out, beside this
script: `golden/inception.npz` (preprocessed pixels and features), `golden/scores.json`
(distances of drawn features) and `golden/photos.json` (FIDs of photos). The networks
take random weights in place of their downloads.
"""

import json
import sys
import tempfile
from pathlib import Path

import cleanfid.fid
import inputs  # by its folder: torch-fidelity installs a package `tests`
import numpy as np
import prdc
import pytorch_fid.fid_score
import pytorch_fid.inception
import torch
import torch_fidelity.feature_extractor_inceptionv3 as fidelity_inception
import torchvision.transforms
from cleanfid.resize import build_resizer
from PIL import Image
from torch_fidelity.interpolate_compat_tensorflow import (
    interpolate_bilinear_2d_like_tensorflow1x,
)
from torch_fidelity.metric_fid import (
    fid_features_to_statistics,
    fid_statistics_to_metric,
)
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

GOLDEN = Path(__file__).parent / "golden"


class Networks:
    """The published networks with the weights that `inputs` draws."""

    def __init__(self, folder: Path):
        convolutions = {
            name: tuple(tensor.shape)
            for name, tensor in torchvision.models.inception_v3(
                weights=None, num_classes=1008, aux_logits=False, init_weights=False
            )
            .state_dict()
            .items()
            if name.endswith(".conv.weight")
        }
        weights = inputs.inception_weights(convolutions)
        state = {name: torch.from_numpy(tensor) for name, tensor in weights.items()}
        path = folder / "weights.pth"
        torch.save(state, path)
        self.fidelity = fidelity_inception.FeatureExtractorInceptionV3(
            "golden", ["2048"], feature_extractor_weights_path=str(path)
        )
        # In place of the download.
        pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: state
        self.pytorch_fid = pytorch_fid.inception.InceptionV3().eval()

    def legacy_tensorflow(self, images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.fidelity(to_channels_first(images))[0].numpy()

    def legacy_pytorch(self, images: np.ndarray) -> np.ndarray:
        pixels = torch.stack([torchvision.transforms.ToTensor()(x) for x in images])
        return self._from_pixels(pixels)

    def dcr(self, images: np.ndarray) -> np.ndarray:
        return self._from_pixels(dcr_pixels(images))

    def clean(self, images: np.ndarray) -> np.ndarray:
        resize = build_resizer("clean")
        pixels = np.stack([resize(image) for image in images])
        return self.clean_network(to_channels_first(pixels)).numpy()

    def clean_network(self, pixels: torch.Tensor) -> torch.Tensor:
        """Does what clean-fid's `InceptionV3W.forward` does around its TorchScript."""
        hidden = (pixels - 128) / 128
        with torch.no_grad():
            for block in self.pytorch_fid.blocks:
                hidden = block(hidden)
        return hidden.flatten(1)

    def _from_pixels(self, pixels: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            return self.pytorch_fid(pixels)[0].flatten(1).numpy()


def to_channels_first(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def dcr_pixels(images: np.ndarray) -> torch.Tensor:
    """Does what DCR's `metrics/fid.py` does to a file before its network."""
    half = (0.5, 0.5, 0.5)
    transform = torchvision.transforms.Compose(
        [
            torchvision.transforms.Resize(299),
            torchvision.transforms.CenterCrop(299),
            torchvision.transforms.ToTensor(),
            torchvision.transforms.Normalize(half, half),
        ]
    )
    return torch.stack([transform(Image.fromarray(image)) for image in images])


def preprocess(images: np.ndarray) -> dict[str, np.ndarray]:
    """Returns by protocol the pixels that reach the first convolution."""
    resize = build_resizer("clean")
    floats = to_channels_first(images).float()
    size = (299, 299)
    half_pixel = torch.nn.functional.interpolate(
        floats / 255, size=size, mode="bilinear", align_corners=False
    )
    corner_pixel = interpolate_bilinear_2d_like_tensorflow1x(
        floats, size=size, align_corners=False
    )
    pixels = {
        "legacy_pytorch": 2 * half_pixel - 1,
        "legacy_tensorflow": (corner_pixel - 128) / 128,
        # pytorch-fid's network, which DCR calls, normalises again.
        "dcr": 2 * dcr_pixels(images) - 1,
    }
    channels_last = {k: v.permute(0, 2, 3, 1).numpy() for k, v in pixels.items()}
    clean = np.stack([resize(image) for image in images])
    return channels_last | {"clean": (clean - 128) / 128}


def inception_golden(networks: Networks) -> dict[str, np.ndarray]:
    golden = {}
    for height, width in inputs.IMAGE_SIZES:
        images = inputs.draw_images(height, width, count=1)
        for protocol, pixels in preprocess(images).items():
            golden[f"pixels_{protocol}_{height}x{width}"] = inputs.sample_pixels(pixels)
    images = inputs.draw_images(*inputs.FEATURE_IMAGE_SIZE, count=2)
    for protocol in inputs.PROTOCOLS:
        golden[f"features_{protocol}"] = getattr(networks, protocol)(images)
    return {name: np.float32(values) for name, values in golden.items()}


def scores_golden() -> dict[str, dict[str, float]]:
    golden = {}
    for name, (references, generations) in inputs.feature_sets().items():
        reals, fakes = torch.from_numpy(references), torch.from_numpy(generations)
        count = len(generations)
        scores = {}
        if count > references.shape[1]:
            statistics = [fid_features_to_statistics(x) for x in (reals, fakes)]
            fid = fid_statistics_to_metric(*statistics, verbose=False)
            scores["fid_torch_fidelity"] = fid["frechet_inception_distance"]
            scores["fid_pytorch_fid"] = float(
                pytorch_fid.fid_score.calculate_frechet_distance(
                    *statistics[0].values(), *statistics[1].values()
                )
            )
            scores["fid_clean_fid"] = float(
                cleanfid.fid.fid_from_feats(references, generations)
            )
        kid = kid_features_to_metric(
            fakes, reals, kid_subsets=2, kid_subset_size=count, verbose=False
        )
        scores["kid_torch_fidelity"] = kid["kernel_inception_distance_mean"]
        scores["kid_clean_fid"] = cleanfid.fid.kernel_distance(
            references, generations, num_subsets=2, max_subset_size=count
        )
        ours = prc_features_to_metric(fakes, reals, verbose=False)
        scores |= {f"{k}_torch_fidelity": ours[k] for k in ("precision", "recall")}
        for k in (3, 5):
            found = prdc.compute_prdc(references, generations, nearest_k=k)
            scores |= {f"{name}_{k}_prdc": float(v) for name, v in found.items()}
        golden[name] = scores
    return golden


def photos_golden(networks: Networks, count: int, folder: Path) -> dict[str, float]:
    """Runs the packages' own code on two folders of encoded photos."""
    paths = []
    for part, photos in zip("ab", inputs.read_photos(count), strict=True):
        path = folder / f"{count}{part}"
        path.mkdir()
        for i, photo in enumerate(photos):
            (path / f"{i:05d}.jpg").write_bytes(photo)
        paths.append(str(path))
    legacy = pytorch_fid.fid_score.calculate_fid_given_paths(
        paths, batch_size=32, device="cpu", dims=2048, num_workers=0
    )
    features = [
        cleanfid.fid.get_folder_features(
            path,
            networks.clean_network,
            num_workers=0,
            batch_size=32,
            device=torch.device("cpu"),
            mode="clean",
        )
        for path in paths
    ]
    clean = cleanfid.fid.fid_from_feats(*features)
    return {"legacy_pytorch": float(legacy), "clean": float(clean)}


def write_json(name: str, content: dict) -> None:
    (GOLDEN / name).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    write_json("scores.json", scores_golden())
    with tempfile.TemporaryDirectory() as folder:
        networks = Networks(Path(folder))
        np.savez_compressed(GOLDEN / "inception.npz", **inception_golden(networks))
        if not inputs.PHOTOS.is_file():
            sys.exit(f"{inputs.PHOTOS} is not here: golden/photos.json stays as it is")
        photos = {
            str(count): photos_golden(networks, count, Path(folder))
            for count in inputs.PHOTO_COUNTS
        }
        write_json("photos.json", photos)


if __name__ == "__main__":
    main()
