import numpy as np

from copymit.scores.repeats import UNIQUE, group_repeats, summarise_repeats
from copymit.search.exact import Neighbours


def test_what_is_connected_by_similar_pairs_or_equal_pixels_is_one_group():
    # 0-1 alike, 1-2 alike, 3 and 5 of equal pixels, 4 alone, 6 and 7 of one colour.
    nearest = np.array([[1], [2], [1], [4], [3], [4], [7], [6]])
    similar = np.array([[0.9], [0.9], [0.9], [0.1], [0.1], [0.1], [1.0], [1.0]])
    pictures = np.array([0, 1, 2, 3, 4, 3, 5, 5])
    blank = np.arange(8) >= 6
    groups = group_repeats(Neighbours(nearest, similar), pictures, 0.8, blank)
    expected = [0, 0, 0, 3, UNIQUE, 3, UNIQUE, UNIQUE]
    assert groups.tolist() == expected
    prompts = ["a", "a", "a", "b", "c", "d", "e", "f"]
    assert summarise_repeats(groups, prompts) == {
        "num_repeated_generations": 5,
        "num_repeat_groups": 2,
        "largest_repeat_group": 3,
        "num_repeated_across_prompts": 2,
    }
    assert "num_repeated_across_prompts" not in summarise_repeats(groups, None)
