"""Texts are UTF-8, and their lines end in LF alone."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from copymit.data.examples import Example, Provenance
from copymit.data.prepare.write import Settings, write_data_set
from copymit.data.record_source import RecordSource
from copymit.data.texts import decode_text, split_lines
from copymit.evaluation.prompts import read_prompts

ODD = "a\u2028b\u2029c\x85d\x0be\x1cf"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("a", ["a"]),
        ("a\n", ["a"]),
        ("a\r\nb\n\nc", ["a", "b", "", "c"]),
        (f"{ODD}\nx", [ODD, "x"]),
    ],
)
def test_lines_end_in_lf_with_or_without_cr(text, lines):
    assert split_lines(text) == lines


def test_a_byte_order_mark_is_no_text_and_other_encodings_name_their_line():
    assert decode_text(b"\xef\xbb\xbfa", "x") == "a"
    with pytest.raises(ValueError, match="notes, line 3 is not UTF-8"):
        decode_text(b"a\nb\nc\xe9\n", "notes")
    with pytest.raises(ValueError, match="notes, line 1 is not UTF-8"):
        decode_text("a".encode("utf-16"), "notes")


def test_prompts_may_hold_any_separator(tmp_path):
    (tmp_path / "p.txt").write_bytes(f"\ufeff{ODD}\r\nsecond\n".encode())
    assert read_prompts(tmp_path / "p.txt") == [ODD, "second"]
    rows = [json.dumps({"prompt": text}, ensure_ascii=False) for text in (ODD, "x")]
    (tmp_path / "p.jsonl").write_text("\n".join(rows), encoding="utf-8")
    assert read_prompts(tmp_path / "p.jsonl") == [ODD, "x"]


class _Classes:
    """One image of two classes with odd names."""

    example_ids = ("0",)
    class_names = (ODD, "second")
    provenance = Provenance()

    def __init__(self, image):
        self.labels = np.array([1], np.int32)
        self.caption_counts = np.array([1], np.int32)
        self.image = image

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return Example("0", self.image, (ODD,), 1)


def test_classes_and_captions_of_a_prepared_set_may_hold_any_separator(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    write_data_set(_Classes(file.getvalue()), tmp_path / "out", Settings())
    prepared = RecordSource(tmp_path / "out")
    assert prepared.class_names == (ODD, "second")
    assert prepared[0].captions[0].startswith("a\u2028b\u2029c\x85d")
