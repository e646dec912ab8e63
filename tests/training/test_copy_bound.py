"""A training ends where it begins to copy, and keeps the checkpoint before."""

import jax.numpy as jnp
import pytest

from copymit.checkpoint import closing_checkpoints, open_checkpoints, save_checkpoint
from copymit.training.copy_bound import CopyBound


def measured(share: float) -> dict[str, float]:
    return {"online_copied_share": share, "loss": 0.5}


def test_steps_below_the_bound_are_good_and_saved():
    copies = CopyBound(0.02)
    assert copies.judge(10, measured(0.0))
    assert copies.judge(20, measured(0.02))
    assert (copies.good, copies.ended) == ([20], "")


def test_the_first_step_above_ends_it_and_the_one_before_is_named():
    copies = CopyBound(0.02)
    copies.judge(10, measured(0.0))
    assert not copies.judge(20, measured(0.25))
    assert copies.good == [10]
    assert copies.ended.startswith("ended: at step 20, 25% of what is drawn are copies")
    assert "stop_above_copied_share=0.02. The newest checkpoint is that of step 10" in (
        copies.ended
    )


def test_copies_at_the_first_look_leave_nothing_to_go_back_to():
    with pytest.raises(ValueError, match=r"step 10 is the first .* measure earlier"):
        CopyBound(0.02).judge(10, measured(0.25))


@pytest.mark.parametrize("found", [{"loss": 0.5}, measured(1.0)])
def test_without_a_bound_or_a_number_nothing_ends(found):
    bound = 1.0 if "online_copied_share" in found else 0.02
    copies = CopyBound(bound)
    assert not copies.judge(10, found)
    assert (copies.good, copies.ended) == ([], "")


ROWS = [{"step": 5}] + [
    {"step": step} | measured(share)
    for step, share in ((10, 0.0), (20, 0.01), (30, 0.1))
]


def test_a_run_that_was_ended_stays_so_until_the_bound_is_raised():
    ended = CopyBound(0.02, ROWS)
    ended.go_on_from(20)
    assert ended.good == [20]
    assert "at step 30, 10% of what" in ended.ended
    raised = CopyBound(0.2, ROWS)
    raised.go_on_from(20)
    assert (raised.good, raised.ended) == ([20], "")


def test_a_run_that_goes_on_knows_the_last_good_step_up_to_its_checkpoint():
    copies = CopyBound(0.02, ROWS)
    copies.go_on_from(17)
    assert copies.good == [10]
    new = CopyBound(0.02, ROWS)
    new.go_on_from(0)  # begun anew, over an old metrics.jsonl
    assert (new.good, new.ended) == ([], "")


def test_the_last_good_checkpoint_outlives_newer_ones_and_is_the_newest_in_the_end(
    tmp_path,
):
    items = {"params": {"unet": {"bias": jnp.ones(2)}}}
    copies = CopyBound(0.02)
    checkpoints = open_checkpoints(tmp_path, also=copies.good)
    with closing_checkpoints(checkpoints):
        for step in (10, 12, 14):
            if step == 10:
                copies.judge(step, measured(0.0))
            save_checkpoint(checkpoints, step, items, {"step": step})
        checkpoints.wait_until_finished()
        assert checkpoints.all_steps() == [10, 14]
        copies.judge(20, measured(0.5))
        copies.remove_later(checkpoints)
        assert checkpoints.all_steps() == [10]
    with open_checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.latest_step() == 10
