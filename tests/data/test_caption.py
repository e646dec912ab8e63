"""Captions by a tiny random BLIP: reproducible, resumable, whole; and their export."""

import json
import logging
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy import stats

from copymit.data.caption import __main__ as caption_command
from copymit.data.caption import writing
from copymit.data.caption.__main__ import main
from copymit.data.captions import random_caption
from copymit.data.folder_source import FolderSource
from copymit.data.tokenizer import make_tokenizer

torch = pytest.importorskip("torch", reason="the extra caption is not installed")
transformers = pytest.importorskip("transformers", reason="as above")

blip = pytest.importorskip("copymit.data.caption.blip")

WORDS = ("a", "red", "blue", "cat", "dog", "on", "grass", "big", "sky")
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
N = 5


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Threads wait for each other far longer than these sizes take to compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def logging_of_tests(monkeypatch):
    """The command would replace the handler that `caplog` reads."""
    monkeypatch.setattr(caption_command, "set_up_logging", lambda verbose: None)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A BLIP of two thousand random weights, saved as transformers does."""
    path = tmp_path_factory.mktemp("blip")
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text = {
        "vocab_size": len(VOCABULARY) + 1,
        "encoder_hidden_size": 16,
        "bos_token_id": len(VOCABULARY),  # no word of the tokenizer, as in the real one
        "sep_token_id": 3,
        "max_position_embeddings": 24,
        "initializer_range": 1.0,
    }
    vision = {"image_size": 8, "patch_size": 4, "initializer_range": 0.5}
    config = transformers.BlipConfig(
        text_config=sizes | text,
        vision_config=sizes | vision,
        image_text_hidden_size=16,
    )
    transformers.BlipForConditionalGeneration(config).save_pretrained(path)
    vocabulary = {word: i for i, word in enumerate(VOCABULARY)}
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(path)
    blip.BlipImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(path)
    return path


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images" / "cat").mkdir(parents=True)
    for i in range(N):
        pixels = rng.integers(256, size=(9, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / "cat" / f"{i}.png")
    return tmp_path / "images"


def _generate(model, folder, to, **options) -> Path:
    options = {"num_captions": 4, "batch_size": 2, "max_length": 8} | options
    flags = [f"--{k}" if v is True else f"--{k}={v}" for k, v in options.items()]
    main(["generate", str(folder), f"--to={to}", f"--model={model}", "--debug", *flags])
    return to


def test_every_image_gets_its_captions_in_a_file_that_a_folder_reads(
    model, folder, tmp_path
):
    path = _generate(model, folder, tmp_path / "out" / "c.json", num_captions=20)
    captions = json.loads(path.read_text())
    assert list(captions) == [f"cat/{i}.png" for i in range(N)]
    for texts in captions.values():
        assert len(texts) == 20
        assert len(set(texts)) > 5
        assert {word for text in texts for word in text.split()} <= {*WORDS}
    source = FolderSource(folder, path)
    assert source.caption_counts.tolist() == [20] * N
    assert list(path.parent.iterdir()) == [path], "nothing unfinished is left"


def test_captions_of_different_images_differ(model, folder, tmp_path):
    captions = json.loads(_generate(model, folder, tmp_path / "c.json").read_text())
    assert len({tuple(texts) for texts in captions.values()}) == N


def test_only_seed_and_settings_change_the_captions(model, folder, tmp_path):
    first = _generate(model, folder, tmp_path / "0.json").read_text()
    for batch_size in (1, 3, 8):
        path = tmp_path / f"{batch_size}.json"
        assert (
            _generate(model, folder, path, batch_size=batch_size).read_text() == first
        )
    other = _generate(model, folder, tmp_path / "seed.json", seed=1).read_text()
    assert other != first
    fewer = _generate(model, folder, tmp_path / "fewer.json", num_captions=2)
    for name, texts in json.loads(fewer.read_text()).items():
        assert texts == json.loads(first)[name][:2]


def test_an_image_keeps_its_captions_in_another_company(model, folder, tmp_path):
    whole = json.loads(_generate(model, folder, tmp_path / "0.json").read_text())
    (folder / "cat" / "1.png").unlink()
    rest = json.loads(_generate(model, folder, tmp_path / "1.json").read_text())
    assert rest == {k: v for k, v in whole.items() if k != "cat/1.png"}


def test_the_original_caption_comes_first(model, folder, tmp_path):
    plain = json.loads(_generate(model, folder, tmp_path / "0.json").read_text())
    given = tmp_path / "given.json"
    given.write_text(json.dumps({name: [f"my {name}", "x"] for name in plain}))
    path = _generate(
        model, folder, tmp_path / "1.json", keep_original=True, captions=given
    )
    kept = json.loads(path.read_text())
    assert kept == {name: [f"my {name}", *plain[name]] for name in plain}


def test_captions_are_as_long_as_asked_for(model, folder, tmp_path):
    path = _generate(
        model, folder, tmp_path / "c.json", num_captions=40, min_length=3, max_length=6
    )
    # Each of the model's tokens is a word.
    captions = json.loads(path.read_text()).values()
    lengths = {len(text.split()) for texts in captions for text in texts}
    assert lengths == {3, 4, 5, 6}


def test_captions_as_parquet_are_those_as_json(model, folder, tmp_path):
    json_path = _generate(model, folder, tmp_path / "c.json")
    path = _generate(model, folder, tmp_path / "c.parquet")
    table = pq.read_table(path)
    assert table.column_names == ["example_id", "captions"]
    expected = json.loads(json_path.read_text())
    assert dict(zip(*table.to_pydict().values(), strict=True)) == expected
    one, two = (FolderSource(folder, p) for p in (json_path, path))
    assert [one[i] for i in range(N)] == [two[i] for i in range(N)]


class Killed(Exception):
    pass


@pytest.mark.parametrize("torn", [0, 7])
@pytest.mark.parametrize("batches", [0, 1, 2])
def test_a_killed_run_goes_on_where_it_was(
    model, folder, tmp_path, monkeypatch, caplog, batches, torn
):
    whole = _generate(model, folder, tmp_path / "whole.json").read_text()
    path = tmp_path / "c.json"
    calls: list[int] = []
    caption = blip.Blip.__call__

    def killed_later(self, images, uniforms):
        if len(calls) == batches:
            raise Killed
        calls.append(len(images))
        return caption(self, images, uniforms)

    monkeypatch.setattr(blip.Blip, "__call__", killed_later)
    with pytest.raises(Killed):
        _generate(model, folder, path)
    assert not path.exists()
    partial = tmp_path / "c.json.partial"
    assert len(partial.read_text().splitlines()) == 1 + 2 * batches
    if torn and batches:
        partial.write_bytes(partial.read_bytes()[:-torn])
    monkeypatch.setattr(blip.Blip, "__call__", caption)
    with caplog.at_level(logging.INFO, logger="copymit"):
        _generate(model, folder, path, batch_size=3)
    assert path.read_text() == whole
    assert not partial.exists()
    done = 2 * batches - bool(torn and batches)
    if done:
        assert f"{done} of {N} images have captions already" in caplog.text
    assert f"captioned {N}/{N}  " in caplog.text


def test_a_run_does_not_go_on_with_other_settings_or_images(
    model, folder, tmp_path, monkeypatch
):
    path = tmp_path / "c.json"
    _generate(model, folder, tmp_path / "0.json")
    lines = [json.dumps([f"cat/{i}.png", ["x"]]) for i in (0, 2)]
    monkeypatch.setattr(
        writing, "write_captions", lambda *_: (_ for _ in ()).throw(Killed)
    )
    with pytest.raises(Killed):
        _generate(model, folder, path)
    with pytest.raises(
        ValueError, match=r"c\.json\.partial was made with other settin"
    ):
        _generate(model, folder, path, seed=3)
    partial = tmp_path / "c.json.partial"
    header = partial.read_text().splitlines()[0]
    partial.write_text("\n".join([header, *lines]) + "\n")
    with pytest.raises(
        ValueError, match=r"of other images, or damaged, from image 1 on"
    ):
        _generate(model, folder, path)


def test_a_finished_file_is_not_overwritten(model, folder, tmp_path):
    path = tmp_path / "c.json"
    path.write_text("mine")
    with pytest.raises(ValueError, match=r"c\.json is there already: remove it"):
        _generate(model, folder, path)
    assert path.read_text() == "mine"


def test_a_corrupt_image_is_named_before_any_is_captioned(model, folder, tmp_path):
    (folder / "cat" / "3.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"1 of 5 images cannot be used:\n  'cat/3"):
        _generate(model, folder, tmp_path / "c.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_captions": 0}, "--num_captions=0 must be at least 1"),
        ({"batch_size": 0}, "--batch_size=0 must be at least 1"),
        ({"min_length": 0}, "--min_length=0 must be at least 1"),
        ({"min_length": 9}, "--max_length=8 is less than --min_length=9"),
        ({"max_length": 24}, r"--max_length=24 is more than the 23 tokens of"),
        ({"top_p": 0}, r"--top_p=0.0 must lie in \(0, 1\]"),
        ({"top_p": 1.5}, r"--top_p=1.5 must lie in \(0, 1\]"),
        ({"seed": -1}, "--seed=-1 must not be negative"),
    ],
)
def test_settings_out_of_range_are_named(model, folder, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        _generate(model, folder, tmp_path / "c.json", **options)


def test_a_model_of_another_kind_is_named(folder, tmp_path):
    config = transformers.BertConfig(hidden_size=8, num_attention_heads=2)
    config.save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="is a bert model: use a BLIP for captions"):
        _generate(tmp_path / "bert", folder, tmp_path / "c.json")


def test_a_model_that_lacks_weights_is_named(model, folder, tmp_path):
    import safetensors.torch

    weights = safetensors.torch.load_file(model / "model.safetensors")
    path = tmp_path / "broken"
    path.mkdir()
    for file in model.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    kept = {k: v for k, v in weights.items() if "crossattention" not in k}
    assert len(kept) < len(weights)
    safetensors.torch.save_file(
        kept, path / "model.safetensors", metadata={"format": "pt"}
    )
    with pytest.raises(ValueError, match=r"lacks \d+ weights of a captioning model"):
        _generate(path, folder, tmp_path / "c.json")


def test_an_empty_caption_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"an empty caption for 'cat/0\.png': raise"):
        writing.caption_source(
            FolderSource(folder),
            lambda images, uniforms: [[" "]] * len(images),
            tmp_path / "c.json",
            settings={},
            num_captions=1,
            max_length=1,
            batch_size=1,
            seed=0,
            keep_original=False,
        )


# The sampling.


def _nucleus(uniforms, top_p=0.9, forbidden=(), min_length=0):
    return blip.Nucleus(
        torch.tensor(uniforms, dtype=torch.float64)[:, None],
        torch.tensor([i in forbidden for i in range(4)]),
        end=3,
        top_p=top_p,
        min_length=min_length,
    )


def _choose(nucleus, probabilities):
    logits = torch.log(torch.tensor(probabilities)).repeat(len(nucleus.uniforms), 1)
    start = torch.zeros((len(logits), 1), dtype=torch.long)
    return nucleus(start, logits).argmax(-1).numpy()


def test_tokens_follow_their_probabilities_within_the_nucleus():
    probabilities = [0.05, 0.5, 0.15, 0.3]
    uniforms = np.random.default_rng(0).random(5000)
    # 0.5 and 0.3 hold less than 0.9, with 0.15 they hold more.
    counts = np.bincount(_choose(_nucleus(uniforms), probabilities), minlength=4)
    assert counts[0] == 0
    expected = np.array(probabilities[1:]) / 0.95 * 5000
    assert stats.chisquare(counts[1:], expected).pvalue > 1e-3


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        ({"top_p": 1.0}, {0, 1, 2, 3}),
        ({"top_p": 0.01}, {1}),
        ({"top_p": 1.0, "forbidden": (1, 2)}, {0, 3}),
        ({"top_p": 1.0, "min_length": 1}, {0, 1, 2}),
    ],
)
def test_what_may_be_chosen(settings, chosen):
    uniforms = [0.0, *np.linspace(0, 1, 100, endpoint=False), np.nextafter(1, 0)]
    tokens = _choose(_nucleus(uniforms, **settings), [0.05, 0.5, 0.15, 0.3])
    assert set(tokens) == chosen


def test_the_nucleus_is_that_of_transformers():
    rng = np.random.default_rng(0)
    for _ in range(20):
        logits = torch.tensor(rng.normal(size=(1, 4)) * 2)
        theirs = transformers.TopPLogitsWarper(0.8)(None, logits)
        nucleus = _nucleus(np.linspace(0, 1, 500, endpoint=False), 0.8)
        ours = set(_choose(nucleus, logits.softmax(-1)[0].tolist()))
        assert ours == set(torch.isfinite(theirs[0]).nonzero()[:, 0].tolist())


# The export.


@pytest.mark.parametrize("root", ["", "/fs/author/train", "/fs/author/train/"])
def test_captions_come_back_from_the_original_codes_format(folder, tmp_path, root):
    texts = {f"cat/{i}.png": [f'é "{i}"', "b\n日本"] for i in range(N)}
    given = tmp_path / "given.json"
    given.write_text(json.dumps(texts))
    path = tmp_path / "dcr.json"
    flags = [f"--captions={given}", "--format=dcr", f"--root={root}", f"--to={path}"]
    main(["export", str(folder), *flags])
    prefix = "/fs/author/train/" if root else ""
    assert json.loads(path.read_text()) == {prefix + k: v for k, v in texts.items()}
    back = tmp_path / "back.json"
    main(["export", str(folder), f"--captions={path}", f"--to={back}"])
    assert json.loads(back.read_text()) == texts


def test_random_captions_mean_the_same_in_the_original_codes_file(folder, tmp_path):
    path = tmp_path / "random.json"
    flags = ["--random", "--seed=3", "--format=dcr", "--root=/x", f"--to={path}"]
    main(["export", str(folder), *flags])
    assert all(
        len(json.loads(text)) == 4
        for texts in json.loads(path.read_text()).values()
        for text in texts
    )
    decode = make_tokenizer().decode
    ours, theirs = FolderSource(folder), FolderSource(folder, path)
    for i in range(N):
        expected = random_caption(ours[i], decode, seed=3)
        assert random_caption(theirs[i], decode, seed=99) == expected
        assert random_caption(ours[i], decode, seed=99) != expected


def test_the_embedded_set_is_exported_by_its_ids(tmp_path):
    main(["export", "fluent_emoji", f"--to={tmp_path / 'c.parquet'}"])
    table = pq.read_table(tmp_path / "c.parquet")
    assert table.num_rows == 1852
    assert min(map(len, table["captions"].to_pylist())) >= 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--format=dcr", "--to=c.parquet"],
            r"c\.parquet: the original code reads JSON",
        ),
        (["--root=/x", "--to=c.json"], r"root='/x' needs the format dcr"),
    ],
)
def test_an_export_that_contradicts_itself_is_refused(
    folder, tmp_path, monkeypatch, flags, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        main(["export", str(folder), "--debug", *flags])


def test_a_mistake_is_told_in_one_line_without_a_trace(tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"error: no folder '.*nowhere'.*"):
        main(["export", str(tmp_path / "nowhere"), f"--to={tmp_path / 'c.json'}"])
