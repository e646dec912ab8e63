"""copymit export WORKDIR: a run for diffusers, with a card that says what it copies."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from copymit.console import explain_bad_input, refuse, set_up_logging

if TYPE_CHECKING:
    from etils import epath

    from copymit.cli.model_card import Measured

logger = logging.getLogger("copymit.export")


@click.command(
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")}
)
@click.argument("workdir")
@click.option(
    "--to", required=True, metavar="FOLDER", help="A new folder; may be gs://."
)
@click.option("--step", type=int, help="Of the checkpoint; the newest by default.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of the weights in the files.",
)
@click.option("--lora", is_flag=True, help="Only what train.lora_rank trained.")
@click.option(
    "--evaluation",
    metavar="NAME",
    help="WORKDIR/eval/NAME, for the card; by default the one of the step.",
)
@click.option(
    "--card-only",
    is_flag=True,
    help="Write FOLDER/README.md and nothing else; nothing is pushed.",
)
@click.option(
    "--push", metavar="USER/NAME", help="Also upload to this model of the hub."
)
@click.option("--private", is_flag=True, help="Make it private, if it is new.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def export(workdir: str, to: str, debug: bool, **options: Any) -> None:
    """Write a run of `copymit train` as a folder that diffusers loads.

    Its README.md is a model card with the copying that `copymit evaluate` measured.
    """
    set_up_logging(debug)
    with explain_bad_input(debug):
        run_export(workdir, to, **options)


def run_export(
    workdir: str,
    to: str,
    *,
    step: int | None,
    dtype: str,
    lora: bool,
    evaluation: str | None,
    card_only: bool,
    push: str | None,
    private: bool,
) -> None:
    """Does what the command says; errors as of `export_trained`."""
    from etils import epath

    from copymit.cli.model_card import write_card
    from copymit.config import flatten, read_config
    from copymit.pretrained.base_models import find_base_model
    from copymit.pretrained.trained import export_lora, export_trained, saved_step
    from copymit.storage import is_remote

    if push and (card_only or is_remote(to)):
        refuse(
            "--push uploads a folder on disk: leave out --card-only, or gs:// in --to"
        )
    run, folder = epath.Path(workdir), epath.Path(to).expanduser()
    settings = flatten(read_config(run).to_dict())
    step = saved_step(run) if step is None else step
    origin = settings["model.pretrained"]
    base = find_base_model(origin) or find_base_model(Path(origin).name)
    card = write_card(
        push or folder.name, settings, step, base, _measured(run, step, evaluation)
    )
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: choose another --to")
    upload = open_repository(push, private) if push else None
    if not card_only:
        (export_lora if lora else export_trained)(run, folder, step=step, dtype=dtype)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(card)
    logger.info("%s is complete", folder)
    if upload:
        logger.info("%s is at %s", push, upload(str(folder)))


def _measured(
    run: "epath.Path", step: int, evaluation: str | None
) -> "Measured | None":
    """Finds what an evaluation of a checkpoint found."""
    from copymit.cli.model_card import Measured

    names = [evaluation] if evaluation else [str(step)]
    if not evaluation and (run / "eval").exists():
        names += sorted(path.name for path in (run / "eval").iterdir())
    for name in names:
        record, scores = (
            run / "eval" / name / file for file in ("evaluation.json", "scores.json")
        )
        if not (record.exists() and scores.exists()):
            continue
        if json.loads(record.read_text()).get("step") == step:
            card = run / "eval" / name / "metrics_card.txt"
            how = card.read_text() if card.exists() else ""
            return Measured(json.loads(scores.read_text()), how)
    if evaluation:
        raise ValueError(
            f"{run / 'eval' / evaluation} holds no scores of step {step}: name another "
            "--evaluation, or --step"
        )
    logger.warning(
        "the card will say that copying was not measured at step %d: "
        "copymit evaluate --workdir=%s does",
        *(step, run),
    )
    return None


def open_repository(name: str, private: bool) -> Callable[[str], str]:
    """Makes a model's repository on the hub, so that what it refuses it refuses at once.

    Returns:
      A function that uploads a folder and returns where it can be seen.
    Raises:
      ConnectionError: the hub cannot be reached, or does not let this account write.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    login = "log in with a token that may write (hf auth login)"
    # Besides its own errors, whatever the HTTP library in use raises comes through.
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
    except Exception as error:
        raise ConnectionError(f"--push={name}: {_said(error)}; {login}") from error

    def upload(folder: str) -> str:
        try:
            api.upload_folder(
                repo_id=name, folder_path=folder, commit_message="copymit export"
            )
        except Exception as error:
            raise ConnectionError(
                f"{folder} is complete, but was not uploaded: {_said(error)}; {login} and "
                f"go on with hf upload {name} {folder}"
            ) from error
        return str(address)

    return upload


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
