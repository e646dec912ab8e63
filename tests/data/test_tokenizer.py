"""CLIP's tokenizer against transformers, a small byte-pair encoder, and known ids."""

import gzip
import hashlib
import importlib.resources
import itertools
import json
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import regex
from jaxtyping import TypeCheckError

from copymit.data.tokenizer import make_tokenizer

EMBEDDED = importlib.resources.files("copymit.data") / "embedded"
VOCABULARY = EMBEDDED / "bpe_simple_vocab_16e6.txt.gz"

# Where annotations are checked while testing, the checker refuses before our own code.
REFUSED = (ValueError, TypeCheckError)

PLAIN_TEXTS = [
    "",
    "a photo of a cat",
    "A PHOTO of a Garbage Truck, 1998!!!",
    "it's we've don't I'm they'll he'd you're 'tis o'clock ''s",
    "  two  spaces\tand\na newline \r\n ",
    "naïve café Ångström straße İstanbul",
    "写真の猫 и кошка قطة חתול แมว 고양이",
    "😀 👩‍🚀🏽 ☕️ flag 🇫🇷!",
    "e\u0301 is composed, \u00a0 is a space, \u200b and \ufeff are not",
    "x²+y³=½ ٣٤ Ⅷ 100,000.50€ #1 @you a_b-c/d\\e",
    "</w> <b>html</b> &amp; &quot;entities&quot;",
    "supercalifragilisticexpialidocious" * 3,
    "\x00 control \x07 characters \x7f",
]
SPECIAL_TEXTS = [
    "a <|endoftext|> inside",
    "<|startoftext|><|endoftext|>",
    "<|ENDOFTEXT|> and <|end",
]
TEXTS = PLAIN_TEXTS + SPECIAL_TEXTS


def _read_merges() -> list[str]:
    lines = gzip.decompress(VOCABULARY.read_bytes()).decode("utf-8").split("\n")
    return lines[1 : 1 + 48_894]


def _byte_characters() -> dict[int, str]:
    """Printable Latin-1 stands for itself, the rest for code points from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + index) for index, byte in enumerate(others)
    }


def _vocabulary(merges: list[str]) -> dict[str, int]:
    characters = list(_byte_characters().values())
    words = [
        *characters,
        *(character + "</w>" for character in characters),
        *(merge.replace(" ", "") for merge in merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    return {word: index for index, word in enumerate(words)}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip_tokenizer")
    merges = _read_merges()
    (folder / "vocab.json").write_text(json.dumps(_vocabulary(merges)), "utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), "utf-8")
    return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def _merge_symbols(symbols: list[str], ranks: dict[str, int]) -> list[str]:
    """Applies the best merge until none applies: the definition, with no heap."""
    while len(symbols) > 1:
        pairs = [" ".join(pair) for pair in itertools.pairwise(symbols)]
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        at = pairs.index(best)
        symbols = [*symbols[:at], "".join(symbols[at : at + 2]), *symbols[at + 2 :]]
    return symbols


def _encode_by_definition(text: str) -> list[int]:
    merges = _read_merges()
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    vocabulary, characters = _vocabulary(merges), _byte_characters()
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    ids = []
    for piece in regex.findall(pattern, text.lower()):
        symbols = [characters[byte] for byte in piece.encode("utf-8")]
        symbols[-1] += "</w>"
        ids += [vocabulary[symbol] for symbol in _merge_symbols(symbols, ranks)]
    return ids


def test_the_embedded_vocabulary_is_the_published_file_and_names_its_licence():
    digest = hashlib.sha256(VOCABULARY.read_bytes()).hexdigest()
    assert digest == "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
    licence = (EMBEDDED / "bpe_simple_vocab_16e6.LICENSE").read_text("utf-8")
    assert "MIT License" in licence
    assert "OpenAI" in licence
    assert digest in licence


def test_known_captions_give_the_ids_published_with_clip():
    rows = make_tokenizer(max_length=8).encode(["a photo of a cat", "hello world!"])
    assert rows.tolist() == [
        [49406, 320, 1125, 539, 320, 2368, 49407, 49407],
        [49406, 3306, 1002, 256, 49407, 49407, 49407, 49407],
    ]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_those_of_transformers(reference, text):
    expected = reference(text, padding="max_length", truncation=True)["input_ids"]
    rows = make_tokenizer().encode([text])
    assert rows.dtype == np.int32
    np.testing.assert_array_equal(rows, [expected])


@pytest.mark.parametrize("text", PLAIN_TEXTS)
def test_ids_equal_those_of_byte_pair_encoding_by_definition(text):
    # Only NFC cleaning, which the definition leaves out, would change these bytes.
    text = text.replace("e\u0301", "é")
    expected = [49406, *_encode_by_definition(text), 49407]
    row = make_tokenizer(max_length=len(expected)).encode([text])[0]
    assert row.tolist() == expected


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_equals_that_of_transformers(reference, text):
    row = make_tokenizer().encode([text])[0]
    expected = reference.decode(row.tolist(), skip_special_tokens=True)
    assert make_tokenizer().decode(row) == expected


def test_decoding_leaves_padding_out_whatever_its_id():
    tokenizer = make_tokenizer(max_length=12, pad_token_id=0)
    row = tokenizer.encode(["Wow! A dog!"])[0]
    assert row[-1] == 0
    assert tokenizer.decode(row) == "wow ! a dog !"


def test_decoding_takes_ids_without_start_and_end():
    assert make_tokenizer().decode([320, 2368]) == "a cat"


def test_decoding_survives_random_tokens():
    ids = np.random.default_rng(0).integers(0, 49_406, 300)
    assert len(make_tokenizer().decode(ids)) > 300


def test_a_long_caption_keeps_its_end_token_and_is_reported():
    tokenizer = make_tokenizer(max_length=6)
    row = tokenizer.encode(["cat " * 5])[0]
    assert row.tolist() == [49406, 2368, 2368, 2368, 2368, 49407]
    assert tokenizer.truncated("cat " * 5)
    assert not tokenizer.truncated("cat " * 4)


def test_an_empty_batch_has_no_rows_of_full_length():
    assert make_tokenizer(max_length=16).encode([]).shape == (0, 16)


def test_properties_are_those_of_clip():
    tokenizer = make_tokenizer(max_length=16, pad_token_id=0)
    assert tokenizer.vocab_size == 49_408
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (49_406, 49_407)
    assert (tokenizer.max_length, tokenizer.pad_token_id) == (16, 0)


def test_a_pickled_tokenizer_is_small_and_equal():
    tokenizer = make_tokenizer(max_length=20, pad_token_id=0)
    pickled = pickle.dumps(tokenizer)
    assert len(pickled) < 1_000
    restored = pickle.loads(pickled)
    np.testing.assert_array_equal(restored.encode(TEXTS), tokenizer.encode(TEXTS))


def test_threads_get_the_same_ids():
    tokenizer = make_tokenizer()
    expected = tokenizer.encode(TEXTS)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(tokenizer.encode, [TEXTS] * 64))
    for result in results:
        np.testing.assert_array_equal(result, expected)


def test_encoding_a_caption_takes_well_under_a_millisecond():
    tokenizer = make_tokenizer()
    captions = [f"a photograph of astronaut {i} riding a horse" for i in range(200)]
    tokenizer.encode(captions[:1])
    start = time.perf_counter()
    tokenizer.encode(captions)
    # About 50 us on a slow core; the limit only catches a vocabulary loaded per call.
    assert (time.perf_counter() - start) / len(captions) < 1e-3


def test_one_string_instead_of_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"texts is one string.*\[text\]"):
        make_tokenizer().encode("a cat")


@pytest.mark.parametrize("caption", [None, float("nan"), b"bytes"])
def test_a_caption_that_is_not_text_is_shown(caption):
    with pytest.raises(REFUSED, match=r"is not a string|checking the parameters"):
        make_tokenizer().encode(["a cat", caption])


@pytest.mark.parametrize("token_id", [-1, 49_408])
def test_an_id_outside_the_vocabulary_is_named(token_id):
    with pytest.raises(ValueError, match=f"token id {token_id} is outside"):
        make_tokenizer().decode([320, token_id])


def test_a_batch_cannot_be_decoded_as_one_row():
    with pytest.raises(REFUSED, match=r"one row at a time|checking the parameters"):
        make_tokenizer().decode(np.zeros((2, 4), np.int32))


def test_a_row_without_room_for_start_and_end_is_refused():
    with pytest.raises(ValueError, match="max_length 1 has no room"):
        make_tokenizer(max_length=1)


def test_a_pad_id_outside_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="pad_token_id 49408 is outside"):
        make_tokenizer(pad_token_id=49_408)
