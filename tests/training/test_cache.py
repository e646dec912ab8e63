"""What is cached is what would have been computed, for every view and every caption."""

import jax
import numpy as np
import pytest
from etils import epath

from configs import tiny
from copymit.data.dataset import load_dataset, make_captions
from copymit.data.row_store import RowStore
from copymit.data.schedule import draw_generator
from copymit.data.tokenizer import make_tokenizer
from copymit.models.assembly import make_model
from copymit.sharding import make_mesh
from copymit.training import cache
from copymit.training.gradients import hidden_states_of, moments_of
from copymit.training.loop import _add_caches, _make_draws
from copymit.training.state import init_state, make_optimizer


@pytest.fixture(scope="module")
def config():
    config = tiny.get_config()
    config.data.random_flip = True
    config.data.cache_latents = True
    config.data.cache_embeddings = True
    config.model.text_encoder.train = False
    config.model.autoencoder.name = "kl"
    config.model.autoencoder.kl.block_out_channels = (8, 8)
    config.model.autoencoder.kl.layers_per_block = 1
    config.model.autoencoder.kl.norm_num_groups = 4
    config.mitigation.train.multiple_captions = True
    return config


@pytest.fixture(scope="module")
def run(config):
    mesh = make_mesh()
    model = make_model(config.model, config.data.resolution, "float32")
    dataset = load_dataset(config.data, config.seed)
    state = init_state(model, make_optimizer(config.train), config, mesh)
    return config, model, state, dataset, mesh


@pytest.fixture(scope="module")
def workdir(run, tmp_path_factory):
    workdir = epath.Path(tmp_path_factory.mktemp("run"))
    config, model, state, dataset, mesh = run
    _add_caches(
        _make_draws(config, dataset), workdir, config, model, state, dataset, mesh
    )
    return workdir


def cached_draws(run, workdir):
    config, model, state, dataset, mesh = run
    draws = _make_draws(config, dataset)
    _add_caches(draws, workdir, config, model, state, dataset, mesh)
    return draws


def test_cached_batches_are_the_uncached_ones(run, workdir):
    config, model, state, dataset, _ = run
    cached, uncached = cached_draws(run, workdir), _make_draws(config, dataset)
    images_of = jax.jit(lambda batch: moments_of(model, state.frozen, batch))
    text_of = jax.jit(lambda batch: hidden_states_of(model, state.frozen, batch))
    flips = set()
    for draw in range(40):
        mine, theirs = cached.record(draw), uncached.record(draw)
        assert mine["example_index"] == theirs["example_index"]
        batch = {name: value[None] for name, value in theirs.items()}
        # The cache encodes eight images at a time: sums in another order, 1e-6 each.
        np.testing.assert_allclose(mine["moments"], images_of(batch)[0], atol=1e-5)
        np.testing.assert_allclose(
            mine["encoder_hidden_states"], text_of(batch)[0], atol=1e-5
        )
        rng = draw_generator(config.seed, draw, "example")
        flips.add(bool(rng.random(2)[0] < 0.5))
    assert flips == {True, False}


def test_a_finished_cache_is_only_read(run, workdir, monkeypatch):
    def forbidden(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(RowStore, "write", forbidden)
    cached_draws(run, workdir)


def test_an_interrupted_cache_computes_only_what_is_missing(run, workdir, monkeypatch):
    *_, dataset, _ = run
    path = next((workdir / "cache").glob("moments-*")) / "rows"
    shard = path / "c" / "0" / "0" / "0" / "0"
    before = shard.read_bytes()
    shard.unlink()
    written = []
    write = RowStore.write

    def count(store, index, rows):
        written.append(index)
        write(store, index, rows)

    monkeypatch.setattr(RowStore, "write", count)
    cached_draws(run, workdir)
    assert written == [0]
    assert shard.read_bytes() == before
    assert len(dataset.indices) > 0


def test_other_weights_make_another_cache(run, workdir):
    config, model, state, dataset, mesh = run
    vae = {k: v + 1e-3 for k, v in state.frozen["vae"].items()}
    changed = state._replace(frozen={**state.frozen, "vae": vae})
    draws = _make_draws(config, dataset)
    _add_caches(draws, workdir, config, model, changed, dataset, mesh)
    assert len(list((workdir / "cache").glob("moments-*"))) == 2
    assert len(list((workdir / "cache").glob("embeddings-*"))) == 1


def test_the_fingerprint_notices_a_swap_and_a_changed_bit(rng):
    values = rng.standard_normal((4, 8)).astype(np.float32)
    first = cache.fingerprint({"w": jax.numpy.asarray(values)})
    assert first == cache.fingerprint({"w": jax.numpy.asarray(values)})
    swapped = values[[1, 0, 2, 3]]
    nudged = values.copy()
    nudged[3, 7] = np.nextafter(nudged[3, 7], np.float32(9))
    for other in (swapped, nudged):
        assert cache.fingerprint({"w": jax.numpy.asarray(other)}) != first


def test_a_caption_that_was_not_foreseen_is_named(run, workdir):
    draws = cached_draws(run, workdir)
    draws.caption = lambda example, duplicated, rng: "something else entirely"
    draws.caption_dropout = 0.0
    with pytest.raises(
        ValueError, match=r"'something else entirely' is not in the cache"
    ):
        draws.record(0)


def test_embeddings_of_a_text_encoder_that_trains_are_not_cached(run, tmp_path):
    config, model, state, _, mesh = run
    frozen = {k: v for k, v in state.frozen.items() if k != "text_encoder"}
    with pytest.raises(ValueError, match=r"set model\.text_encoder\.train to False"):
        cache.cache_embeddings(
            epath.Path(tmp_path),
            config,
            model,
            state._replace(frozen=frozen),
            np.zeros((1, 8), np.int32),
            mesh,
        )


def test_every_caption_that_a_run_draws_is_listed(run):
    config, _, _, dataset, _ = run
    draws = _make_draws(config, dataset)
    plain = make_captions(config.data, dataset.source, make_tokenizer(), config.seed)
    listed = cache.every_caption(config, dataset, plain)
    assert "" in listed  # caption dropout
    for draw in range(100):
        rng = draw_generator(config.seed, draw, "example")
        rng.random(2)
        example = dataset.source[int(dataset.indices[draw % len(dataset.indices)])]
        assert draws.caption(example, True, rng) in listed


def test_embeddings_are_counted_before_they_are_computed(config, tmp_path, monkeypatch):
    config = config.copy_and_resolve_references()
    config.train.update(steps=1000, batch_size=8)
    config.model.text_encoder.update(max_length=77, hidden_size=1024)
    folder = epath.Path(tmp_path) / "cache"
    taken = 7000 * 77 * 1024 * 4
    monkeypatch.setattr(cache, "_free_bytes", lambda folder: 2 * taken)
    assert cache.embeddings_pay(config, 7000, folder)
    assert not cache.embeddings_pay(config, 7001, folder)
    config.train.dtype = "bfloat16"
    assert cache.embeddings_pay(config, 7999, folder)
    # As many as are drawn: hardly one would be met twice.
    assert not cache.embeddings_pay(config, 8000, folder)
    config.model.text_encoder.hidden_size = 32
    assert cache.embeddings_pay(config, 8000, folder)  # but it is little


def test_embeddings_of_a_bfloat16_run_are_kept_as_they_are(run, tmp_path):
    config, _, _, dataset, mesh = run
    config = config.copy_and_resolve_references()
    config.train.dtype = "bfloat16"
    config.data.cache_latents = False
    model = make_model(config.model, config.data.resolution, "bfloat16")
    state = init_state(model, make_optimizer(config.train), config, mesh)
    draws, uncached = _make_draws(config, dataset), _make_draws(config, dataset)
    _add_caches(draws, epath.Path(tmp_path), config, model, state, dataset, mesh)
    kept = draws.record(0)["encoder_hidden_states"]
    ids = uncached.record(0)["input_ids"][None]
    expected = jax.jit(lambda ids: model.encode_text(state.frozen, ids))(ids)[0]
    assert kept.dtype == expected.dtype == jax.numpy.bfloat16
    # The cache encodes eight captions at a time: roundings of bfloat16, 2^-8 each.
    np.testing.assert_allclose(
        kept.astype(np.float32), expected.astype(np.float32), rtol=0.02, atol=0.02
    )
