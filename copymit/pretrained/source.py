"""Opens a published model, wherever it is: a name goes in, its files come out.

A source is a folder in diffusers' layout on disk or in a bucket, or a repository on the
Hugging Face hub of which only the files that are asked for are downloaded. What is in
the hub's cache is used when the hub cannot be reached or the model has left it.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
from etils import epath

from copymit.pretrained.base_models import BASE_MODELS, BaseModel, find_base_model
from copymit.spelling import nearest

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_MAX_JSON_BYTES = 2**26
_TIMEOUT_SECS = 20.0
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_LORA_FILE = "pytorch_lora_weights.safetensors"
# What diffusers' and accelerate's trainers leave in checkpoint-500 and the like.
_TRAINER_FILES = ("optimizer.bin", "scheduler.bin", "random_states_0.pkl")
_WAY_OUT = (
    "Download the model elsewhere (hf download ID --local-dir=FOLDER) and give that "
    "folder"
)


class Source(NamedTuple):
    """A published model that is opened but not read.

    Attributes:
      name: where it is, for messages.
      base: what the table of base models says of it, if anything.
      has: whether it has a file of this relative path.
      fetch: makes such a file readable and returns where; downloads it if need be.
    """

    name: str
    base: BaseModel | None
    has: Callable[[str], bool]
    fetch: Callable[[str], epath.Path]


def open_source(name: str) -> Source:
    """Opens a model by short name, folder, `gs://` folder or hub id, in this order.

    A folder that exists wins over a short name of the same spelling.

    Raises:
      FileNotFoundError: there is no such folder or repository; names those tried.
      ValueError: the name is neither, or access to the repository is not granted.
      ConnectionError: the hub cannot be reached and its cache does not have the model.
    """
    if "://" in name:
        return _open_folder(_bucket_folder(name))
    if epath.Path(name).expanduser().is_dir():
        return _open_folder(epath.Path(name).expanduser())
    if name in BASE_MODELS:
        return _open_base_model(name)
    if epath.Path(name).expanduser().is_file():
        refuse_pointer(epath.Path(name).expanduser())
        if "lora" in epath.Path(name).name.lower():
            raise _is_lora(name)
        raise ValueError(
            f"{name} is a file, and a model is a folder in diffusers' layout. Convert a "
            "single-file checkpoint with diffusers: StableDiffusionPipeline"
            ".from_single_file(FILE).save_pretrained(FOLDER)"
        )
    if _HUB_ID.fullmatch(name) and not name.startswith("."):
        return _open_repository(name)
    raise FileNotFoundError(
        f"{name} is not an existing folder, a hub id (OWNER/NAME) or one of "
        f"{', '.join(BASE_MODELS)}{nearest(name, BASE_MODELS)}"
    )


def read_json(source: Source, path: str) -> dict[str, Any]:
    """Reads a file that must hold one JSON object.

    Raises:
      FileNotFoundError: the source has no such file.
      ValueError: it is not JSON, not an object or unreasonably large.
    """
    if not source.has(path):
        raise FileNotFoundError(
            f"{source.name} has no {path}: it is incomplete, or not a model in "
            "diffusers' layout"
        )
    file = source.fetch(path)
    if file.stat().length > _MAX_JSON_BYTES:
        raise ValueError(f"{file} has more than {_MAX_JSON_BYTES} bytes of settings")
    refuse_pointer(file)
    try:
        content = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file} is not JSON ({type(error).__name__}: {error}): download it again"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, not a JSON object")
    return content


def refuse_pointer(file: epath.Path) -> None:
    """Raises a `ValueError` if git left a pointer where a large file should be."""
    with file.open("rb") as opened:
        if opened.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise ValueError(
                f"{file} is a pointer of git-lfs and not the file: run git lfs pull in "
                f"{file.parent}"
            )


def _bucket_folder(name: str) -> epath.Path:
    try:
        folder = epath.Path(name)
        exists = folder.is_dir()
    except KeyError as error:
        raise ValueError(f"{name} begins with no known scheme: use gs://") from error
    except ImportError as error:
        raise ValueError(f"{name} cannot be opened: {error}") from error
    if not exists:
        raise FileNotFoundError(f"There is no folder {name}")
    return folder


def _open_folder(folder: epath.Path) -> Source:
    if not (folder / "model_index.json").exists():
        if (folder / _LORA_FILE).exists():
            raise _is_lora(str(folder / _LORA_FILE))
        if any((folder / name).exists() for name in _TRAINER_FILES):
            raise ValueError(
                f"{folder} is an intermediate checkpoint of diffusers' trainer, with the "
                f"networks it trains alone: give the folder it wrote at the end, or copy "
                f"the base model and put {folder}/unet (or unet_ema) in place of its unet"
            )
    return Source(
        str(folder),
        find_base_model(folder.name),
        lambda path: (folder / path).is_file(),
        lambda path: folder / path,
    )


def _is_lora(name: str) -> ValueError:
    return ValueError(
        f"{name} is a LoRA, the difference to a base model: melt it in with diffusers "
        "(pipe.load_lora_weights(FILE); pipe.fuse_lora(); pipe.save_pretrained(FOLDER)) "
        "and give that folder"
    )


def _open_base_model(name: str) -> Source:
    """Opens the first repository of a base model that can be opened."""
    failures: list[Exception] = []
    for hub_id in BASE_MODELS[name].hub_ids:
        try:
            return _open_repository(hub_id)
        except (OSError, ValueError) as error:
            failures.append(error)
    kinds = {type(error) for error in failures}
    kind = kinds.pop() if len(kinds) == 1 else FileNotFoundError
    # Each of them ends in the same advice.
    tried = "; ".join(str(error).removesuffix(f". {_WAY_OUT}") for error in failures)
    raise kind(f"{name} could not be opened: {tried}. {_WAY_OUT}")


def _open_repository(hub_id: str) -> Source:
    """Opens a repository at the commit that is its newest now, or that is cached."""
    try:
        info = huggingface_hub.model_info(hub_id, timeout=_TIMEOUT_SECS)
        revision = info.sha
        names = {file.rfilename for file in info.siblings or ()}
    # Besides its own errors, whatever the HTTP library in use raises comes through.
    except Exception as error:
        cached = _cached_folder(hub_id)
        if cached is None:
            raise _explain(hub_id, error) from error
        revision = cached.name
        names = {str(p.relative_to(cached)) for p in cached.rglob("*") if p.is_file()}

    def fetch(path: str) -> epath.Path:
        try:
            file = huggingface_hub.hf_hub_download(hub_id, path, revision=revision)
        except Exception as error:
            raise _explain(hub_id, error) from error
        return epath.Path(file)

    return Source(hub_id, find_base_model(hub_id), names.__contains__, fetch)


def _cached_folder(hub_id: str) -> Path | None:
    try:
        folder = huggingface_hub.snapshot_download(hub_id, local_files_only=True)
    except (OSError, ValueError):
        return None
    return Path(folder)


def _explain(hub_id: str, error: Exception) -> Exception:
    """Says what went wrong with a repository, and what can be done."""
    from huggingface_hub import errors as hub_errors

    if isinstance(error, hub_errors.GatedRepoError):
        return ValueError(
            f"{hub_id} asks for its licence to be accepted: do so on "
            f"https://huggingface.co/{hub_id} and log in (hf auth login). "
            f"{_WAY_OUT}"
        )
    if isinstance(error, hub_errors.RepositoryNotFoundError):
        return FileNotFoundError(
            f"{hub_id} is not on the hub, or it is private. {_WAY_OUT}"
        )
    if isinstance(error, hub_errors.HFValidationError):
        return ValueError(f"{hub_id!r} cannot be a hub id: {error}")
    if isinstance(error, hub_errors.OfflineModeIsEnabled):
        return ConnectionError(
            f"{hub_id} is not in the hub's cache, and HF_HUB_OFFLINE is set. {_WAY_OUT}"
        )
    reason = str(error).strip().partition("\n")[0]
    return ConnectionError(
        f"{hub_id} cannot be read from the hub ({type(error).__name__}: {reason}). "
        f"{_WAY_OUT}"
    )
