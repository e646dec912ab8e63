"""Records in tensorflow's format, without tensorflow."""

import pytest

from copymit.data.examples import Example
from copymit.data.tf_example import decode_example, encode_example

EXAMPLES = [
    Example("a/é.png", b"\xff\xd8\0", ("one", "zwei ä"), 3),
    Example("b", b"x" * 1000, ("one",), None),
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_comes_back(example):
    assert decode_example(encode_example(example)) == example


def test_the_bytes_are_those_of_the_format():
    # Field 1 of Example holds Features, whose field 1 is a map, in the order of names.
    record = encode_example(Example("i", b"p", ("c",), 0))
    texts = [(b"captions", b"c"), (b"example_id", b"i"), (b"image", b"p")]
    entries = [b"\n" + bytes([len(k)]) + k + b"\x12\5\n\3\n\1" + v for k, v in texts]
    entries.append(b"\n\5label\x12\5\x1a\3\n\1\0")
    features = b"".join(b"\n" + bytes([len(entry)]) + entry for entry in entries)
    assert record == b"\n" + bytes([len(features)]) + features


def test_tensorflow_reads_it():
    tf = pytest.importorskip("tensorflow", reason="needs the extra `prepare`")
    record = tf.train.Example.FromString(encode_example(EXAMPLES[0]))
    assert record.features.feature["label"].int64_list.value == [3]
    assert record.features.feature["image"].bytes_list.value == [b"\xff\xd8\0"]
    assert decode_example(record.SerializeToString()) == EXAMPLES[0]


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xff\xff", encode_example(EXAMPLES[0])[:-2]]
)
def test_other_bytes_are_refused(data):
    with pytest.raises(ValueError, match="no record of example_id"):
        decode_example(data)
