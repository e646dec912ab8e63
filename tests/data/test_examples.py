import numpy as np

from copymit.data.caption_views import view_captions
from copymit.data.examples import Example, Provenance, describe_left_out
from copymit.data.manifest import VariedSource

ORIGIN = Provenance("a test", "a.txt is not text", ["b.mp4"], lambda: "a hash")


class Source:
    example_ids = ("a.png",)
    labels = np.array([-1], np.int32)
    caption_counts = np.array([2], np.int32)
    class_names = ()
    provenance = ORIGIN

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return Example("a.png", b"", ("one", "other"), None)


def test_a_source_seen_otherwise_still_says_where_it_is_from_and_what_it_lacks():
    views = [VariedSource(Source(), np.array([True])), view_captions(Source(), 1)]
    for view in views:
        assert view.provenance == ORIGIN
        assert "1 files (1 .mp4), such as 'b.mp4'" in describe_left_out(view)
