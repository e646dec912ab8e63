"""Prompts, and the bookkeeping of generation with a generator that makes flat images."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image

from configs import tiny
from copymit.data.dataset import load_dataset, make_captions
from copymit.data.schedule import draw_generator
from copymit.data.tokenizer import make_tokenizer
from copymit.evaluation import generate as generate_module
from copymit.evaluation.generate import generate
from copymit.evaluation.notes import read_notes
from copymit.evaluation.optimised import score_optimisations
from copymit.evaluation.prompts import make_prompts, read_prompts
from copymit.generator import Generated
from copymit.models.assembly import DiffusionModel

# Its latents are the pixels.
PIXELS = DiffusionModel(
    (16, 16, 3),
    {},
    lambda params, pixels: pixels,
    lambda moments, key: moments,
    lambda params, latents: latents,
    lambda *_: None,
    lambda *_: None,
)


@pytest.fixture
def config():
    return tiny.get_config()


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(8, 49407)


def prompts_of(config, tokenizer):
    dataset = load_dataset(config.data, config.seed)
    return make_prompts(config, dataset, tokenizer), dataset


def first_captions(dataset, indices):
    return [dataset.source[int(i)].captions[0] for i in indices]


def test_each_training_image_prompts_equally_often(config, tokenizer):
    config.eval.num_generations = 24
    prompts, dataset = prompts_of(config, tokenizer)
    assert [p.id for p in prompts] == [f"{i:06d}" for i in range(24)]
    assert [p.example_id for p in prompts] == dataset.example_ids * 2
    assert [p.prompt for p in prompts] == first_captions(dataset, dataset.indices) * 2
    assert {(p.seed, p.guidance_scale) for p in prompts} == {(0, 1.5)}
    assert all(p.prompt_used == p.prompt for p in prompts)


def test_held_out_images_prompt_with_their_own_captions(config, tokenizer):
    config.eval.prompts = "heldout"
    config.eval.num_generations = 9
    prompts, dataset = prompts_of(config, tokenizer)
    expected = [*dataset.heldout_ids, dataset.heldout_ids[0]]
    assert [p.example_id for p in prompts] == expected
    assert {p.example_id for p in prompts}.isdisjoint(dataset.example_ids)


def test_random_prompts_are_drawn_with_replacement_and_by_the_seed(config, tokenizer):
    config.eval.prompts = "random"
    config.eval.num_generations = 600
    prompts, dataset = prompts_of(config, tokenizer)
    assert prompts == prompts_of(config, tokenizer)[0]
    counts = dict.fromkeys(dataset.example_ids, 0)
    for prompt in prompts:
        counts[prompt.example_id] += 1
    # 50 each are expected; five standard deviations of a binomial are 34.
    assert all(16 < count < 84 for count in counts.values())
    assert len(set(counts.values())) > 1
    config.eval.seed = 1
    others = prompts_of(config, tokenizer)[0]
    assert [p.example_id for p in others] != [p.example_id for p in prompts]


def test_fewer_generations_are_the_first_of_more(config, tokenizer):
    few, _ = prompts_of(config, tokenizer)
    config.eval.num_generations = 30
    assert prompts_of(config, tokenizer)[0][:12] == few


def test_a_prompt_is_never_a_varied_caption(config, tokenizer):
    config.data.duplication = "partial"
    config.data.classes = ("food & drink",)
    prompts, dataset = prompts_of(config, tokenizer)
    assert [p.prompt for p in prompts] == first_captions(dataset, dataset.indices)


@pytest.mark.parametrize("style", ["fixed", "class", "unconditional"])
def test_a_caption_of_many_images_names_none_of_them(style, config, tokenizer):
    config.data.caption_style = style
    prompts, _ = prompts_of(config, tokenizer)
    assert {p.example_id for p in prompts} == {None}
    start = {"fixed": "An image", "class": "An image of ", "unconditional": ""}[style]
    assert all(p.prompt.startswith(start) for p in prompts)


def test_random_captions_are_those_of_the_training(config, tokenizer):
    config.data.caption_style = "random"
    prompts, dataset = prompts_of(config, tokenizer)
    caption = make_captions(config.data, dataset.source, tokenizer, config.seed)
    for prompt, index in zip(prompts, dataset.indices, strict=True):
        trained = caption(
            dataset.source[int(index)], True, draw_generator(5, 5, "example")
        )
        assert prompt.prompt == trained
        assert prompt.example_id == dataset.source.example_ids[index]


def test_wrong_settings_are_named(config, tokenizer):
    config.eval.num_generations = 0
    with pytest.raises(ValueError, match="num_generations=0: nothing to evaluate"):
        prompts_of(config, tokenizer)
    config.eval.num_generations = 4
    config.eval.prompts = "all"
    with pytest.raises(ValueError, match="'all' is not known: use one of each, random"):
        prompts_of(config, tokenizer)
    config.eval.prompts = "heldout"
    config.data.num_heldout = 0
    with pytest.raises(ValueError, match=r"needs data\.num_heldout above 0"):
        prompts_of(config, tokenizer)


def test_prompts_of_a_file_come_in_turn(config, tokenizer, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a red fox\n\n  a blue dog \n")
    config.eval.update(prompts="file", prompts_file=str(file), num_generations=5)
    prompts, _ = prompts_of(config, tokenizer)
    texts = ["a red fox", "a blue dog"] * 2 + ["a red fox"]
    assert [p.prompt for p in prompts] == texts
    assert {p.example_id for p in prompts} == {None}


def test_prompts_of_a_file_come_before_captions(config, tokenizer, tmp_path):
    only_captions, _ = prompts_of(config, tokenizer)
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"caption": "a red fox", "index": 3}\n{"prompt": "a blue dog"}\n')
    config.eval.update(prompts="file+each", prompts_file=str(file))
    prompts, _ = prompts_of(config, tokenizer)
    assert [p.prompt for p in prompts[:2]] == ["a red fox", "a blue dog"]
    assert [p.id for p in prompts] == [p.id for p in only_captions]
    # A caption keeps its number, and with it its noise.
    assert prompts[2:] == only_captions[2:]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "  \n", r"p\.txt holds no prompt"),
        ("p.jsonl", '{"text": 3}\n', r"line 1 needs an object with the text"),
        ("p.jsonl", '{"prompt": "a"}\nnot json\n', r"line 2 is not JSON"),
    ],
)
def test_a_file_without_prompts_is_named(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name)


def test_a_missing_file_of_prompts_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt' does not exist"):
        read_prompts(tmp_path / "nowhere.txt")
    with pytest.raises(ValueError, match=r"set eval\.prompts_file"):
        read_prompts("")


class FlatImages:
    """A generator whose image k has the colour 10 k and took k mod 5 steps to each target;
    it keeps what it was asked for."""

    def __init__(self):
        self.batches = []
        self.stop_after = None
        self.optimised = ()
        self.broken = ()

    def __call__(self, params, input_ids, image_ids):
        if len(self.batches) == self.stop_after:
            raise KeyboardInterrupt
        numbers = np.asarray(image_ids)
        self.batches.append(numbers.tolist())
        assert len(input_ids) == len(numbers)
        colours = (10 * numbers).astype(np.uint8).reshape(-1, 1, 1, 1)
        images = jnp.broadcast_to(colours, (len(numbers), 16, 16, 3))
        steps = dict.fromkeys(self.optimised, image_ids % 5)
        return Generated(images, steps, ~np.isin(numbers, self.broken))


@pytest.fixture
def flat_images(monkeypatch):
    generator = FlatImages()
    monkeypatch.setattr(generate_module, "make_model", lambda *_: PIXELS)
    monkeypatch.setattr(generate_module, "make_generate", lambda *_: generator)
    return generator


@pytest.fixture
def run(config, tmp_path, flat_images):
    dataset = load_dataset(config.data, config.seed)
    out = epath.Path(tmp_path) / "eval" / "9"

    def generate_into_out(digest="settings"):
        generate(config, dataset, lambda *_: {}, out, digest)
        files = sorted(path.name for path in (out / "generations").iterdir())
        assert files == [f"{i:06d}.png" for i in range(config.eval.num_generations)]
        return out

    return generate_into_out


def colour_of(out, i):
    image = np.array(Image.open(out / "generations" / f"{i:06d}.png"))
    assert image.shape == (16, 16, 3)
    return int(image[0, 0, 0])


def test_every_batch_is_full_and_every_image_under_its_own_number(run, flat_images):
    out = run()
    assert flat_images.batches == [[*range(8)], [8, 9, 10, 11, 8, 9, 10, 11]]
    assert [colour_of(out, i) for i in range(12)] == [10 * i for i in range(12)]
    prompts = [json.loads(s) for s in (out / "prompts.jsonl").read_text().splitlines()]
    assert [p["id"] for p in prompts] == [f"{i:06d}" for i in range(12)]


def test_after_an_interruption_only_missing_images_are_made(run, flat_images):
    flat_images.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        run()
    flat_images.stop_after = None
    flat_images.batches.clear()
    out = run()
    assert flat_images.batches == [[8, 9, 10, 11, 8, 9, 10, 11]]
    assert [colour_of(out, i) for i in range(12)] == [10 * i for i in range(12)]
    flat_images.batches.clear()
    run()
    assert flat_images.batches == []


def test_images_of_other_settings_are_removed(run, config, flat_images):
    run()
    flat_images.batches.clear()
    config.eval.num_generations = 5
    out = run("other settings")
    assert len(list((out / "reconstructions").iterdir())) == 5
    assert flat_images.batches == [[0, 1, 2, 3, 4, 0, 1, 2]]


def test_a_wrong_setting_removes_nothing(run, config):
    out = run()
    config.eval.sampler = "magic"
    with pytest.raises(ValueError, match="'magic' is not known"):
        run("other settings")
    assert colour_of(out, 3) == 30


def test_a_prompt_that_is_cut_is_reported(run, caplog):
    run()
    assert "prompt is cut to 8 tokens: 'family: man, woman, boy'" in caplog.text


def notes_of(out):
    return [read_notes(path) for path in sorted((out / "generations").iterdir())]


def test_what_optimisations_came_to_is_counted_even_after_an_interruption(
    run, config, flat_images
):
    config.mitigation.generate.update(noise_target=8.2, noise_iterations=4)
    flat_images.optimised, flat_images.stop_after = ("noise_target",), 1
    with pytest.raises(KeyboardInterrupt):
        run()
    flat_images.stop_after = None
    found = score_optimisations(notes_of(run()), config.mitigation.generate)
    # Of 0 to 11 by 5: 0, 5 and 10 took no step, 4 and 9 all four.
    assert found["num_noises_optimised"] == 9
    assert found["num_noises_still_above_target"] == 2
    (warning,) = found["warnings"]
    assert "noise_target=8.2 was not reached by 2 of 12 generations in 4" in warning


def test_a_target_above_every_generation_is_told(run, config, flat_images):
    config.mitigation.generate.update(prompt_target=100.0)
    config.eval.num_generations = 1
    flat_images.optimised = ("prompt_target",)
    found = score_optimisations(notes_of(run()), config.mitigation.generate)
    assert found["num_prompts_optimised"] == 0
    (warning,) = found["warnings"]
    assert "prompt_target=100 changed nothing: no generation was above" in warning


def test_pictures_without_optimisation_or_without_notes_are_not_counted(run, config):
    notes = notes_of(run())
    nothing = {"warnings": []}
    assert score_optimisations(notes, config.mitigation.generate) == nothing
    config.mitigation.generate.update(prompt_target=3.0)
    assert score_optimisations(notes, config.mitigation.generate) == nothing


def test_images_that_were_not_finite_are_noted_even_after_an_interruption(
    run, flat_images, caplog
):
    flat_images.broken, flat_images.stop_after = (2, 9), 1
    with pytest.raises(KeyboardInterrupt):
        run()
    flat_images.stop_after = None
    notes = notes_of(run())
    assert [i for i, note in enumerate(notes) if note] == [2, 9]
    assert notes[2] == {"not_finite": "1"}
    assert "not finite: 000002" in caplog.text
    assert "not finite: 000009" in caplog.text
