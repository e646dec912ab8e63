"""CLIP's byte-pair tokenizer: captions in, fixed-length token ids out, offline.

The vocabulary of 49,408 ids is, in order: 256 bytes, the same 256 bytes as ends of
words, the first 48,894 merges of the published list, the start and the end token.
"""

import functools
import gzip
import importlib.resources
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tokenizers
from jaxtyping import Int, Int32

_VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"
_MERGE_COUNT = 48_894
_START, _END = "<|startoftext|>", "<|endoftext|>"
_END_OF_WORD = "</w>"
VOCAB_SIZE = 49_408
_BOS_TOKEN_ID, _EOS_TOKEN_ID = 49_406, 49_407

# A contraction, a word, one digit, or a run of other characters.
_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True)
class Tokenizer:
    """Turns captions into rows of CLIP token ids; see `make_tokenizer`.

    Holds two numbers only, so that it pickles; the vocabulary is loaded once per
    process, at first use, and may be used from several threads.
    """

    max_length: int
    pad_token_id: int

    @property
    def vocab_size(self) -> int:
        return VOCAB_SIZE

    @property
    def bos_token_id(self) -> int:
        return _BOS_TOKEN_ID

    @property
    def eos_token_id(self) -> int:
        return _EOS_TOKEN_ID

    def encode(self, texts: Sequence[str]) -> Int32[np.ndarray, "B L"]:
        """Returns start token, caption, end token and padding, `max_length` ids a row.

        A caption that does not fit loses its tail; the end token is always there. As in
        the reference, `<|endoftext|>` written out in a caption is that token.

        Raises:
          ValueError: if `texts` is one string, or holds something that is not a string.
        """
        if isinstance(texts, str):
            raise ValueError("texts is one string; pass a list of captions: [text]")
        rows = np.full((len(texts), self.max_length), self.pad_token_id, np.int32)
        for row, text in zip(rows, texts, strict=True):
            ids = _caption_ids(text)[: self.max_length - 2]
            row[: len(ids) + 2] = [_BOS_TOKEN_ID, *ids, _EOS_TOKEN_ID]
        return rows

    def decode(self, ids: Sequence[int] | Int[np.ndarray, " L"]) -> str:
        """Returns the text of one row of ids: lower case, one space after each piece.

        What follows the last end token is padding, whatever its id, and is left out,
        as are the start and end tokens. Ids without an end token are all decoded.

        Raises:
          ValueError: if `ids` is not one row, or an id is outside the vocabulary.
        """
        tokens = np.asarray(ids, np.int64)
        if tokens.ndim != 1:
            raise ValueError(f"ids have shape {tokens.shape}; decode one row at a time")
        unknown = tokens[(tokens < 0) | (tokens >= VOCAB_SIZE)]
        if unknown.size:
            raise ValueError(
                f"token id {unknown[0]} is outside 0..{VOCAB_SIZE - 1}; decode takes "
                "ids of CLIP's own vocabulary"
            )
        ends = np.flatnonzero(tokens == _EOS_TOKEN_ID)
        caption = tokens[: ends[-1]] if ends.size else tokens
        text = _byte_pair_encoder().decode(caption.tolist(), skip_special_tokens=True)
        return text.replace(_END_OF_WORD, " ").strip()

    def truncated(self, text: str) -> bool:
        """Tells whether `encode` would cut the tail of this caption off."""
        return len(_caption_ids(text)) > self.max_length - 2


def make_tokenizer(
    max_length: int = 77, pad_token_id: int = _EOS_TOKEN_ID
) -> Tokenizer:
    """Makes CLIP's tokenizer from the vocabulary inside this package.

    Args:
      max_length: ids per caption, start and end token included.
      pad_token_id: fills rows; SD 1.x repeats the end token, SD 2.x uses 0 (`!`).
    Raises:
      ValueError: if a row cannot hold start and end, or the pad id is not a token.
    Source: openai/CLIP simple_tokenizer.py for the vocabulary, transformers 5
      `CLIPTokenizer` for the text cleaning (NFC, white space, lower case; the original
      also repaired mojibake and HTML entities).
    """
    if max_length < 2:
        raise ValueError(
            f"max_length {max_length} has no room for the start and end tokens; "
            "use 2 or more (77 in Stable Diffusion)"
        )
    if not 0 <= pad_token_id < VOCAB_SIZE:
        raise ValueError(
            f"pad_token_id {pad_token_id} is outside 0..{VOCAB_SIZE - 1}; use "
            f"{_EOS_TOKEN_ID} (SD 1.x) or 0 (SD 2.x)"
        )
    return Tokenizer(max_length, pad_token_id)


def read_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Reads CLIP's words with their ids, and the merges that make them, best first.

    These are `vocab.json` and `merges.txt` of the published tokenizers.
    """
    merges = _read_merges()
    # The code points that stand for bytes, ascending, are the published order of ids.
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = itertools.chain(
        alphabet,
        (character + _END_OF_WORD for character in alphabet),
        (left + right for left, right in merges),
        (_START, _END),
    )
    return {word: index for index, word in enumerate(words)}, merges


def _caption_ids(text: str) -> tuple[int, ...]:
    if not isinstance(text, str):
        raise ValueError(f"caption {text!r} is not a string; use '' for no caption")
    return _remembered_ids(text)


# Captions come again in every epoch, and many images share one.
@functools.lru_cache(maxsize=2**16)
def _remembered_ids(text: str) -> tuple[int, ...]:
    return tuple(_byte_pair_encoder().encode(text).ids)


@functools.cache
def _byte_pair_encoder() -> tokenizers.Tokenizer:
    vocabulary, merges = read_vocabulary()
    encoder = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab=vocabulary, merges=merges, end_of_word_suffix=_END_OF_WORD
        )
    )
    encoder.normalizer = tokenizers.normalizers.Sequence(
        [
            tokenizers.normalizers.NFC(),
            tokenizers.normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            tokenizers.normalizers.Lowercase(),
        ]
    )
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(
                tokenizers.Regex(_PIECES), behavior="removed", invert=True
            ),
            tokenizers.pre_tokenizers.ByteLevel(
                add_prefix_space=False, use_regex=False
            ),
        ]
    )
    encoder.decoder = tokenizers.decoders.ByteLevel()
    encoder.add_special_tokens([_START, _END])
    return encoder


def _read_merges() -> list[tuple[str, str]]:
    path = importlib.resources.files("copymit.data") / "embedded" / _VOCABULARY_FILE
    with path.open("rb") as packed, gzip.open(packed, "rt", encoding="utf-8") as lines:
        next(lines)  # the header
        pairs = (tuple(line.split()) for line in itertools.islice(lines, _MERGE_COUNT))
        return [(left, right) for left, right in pairs]
