"""Which example is drawn when: a pure function of the seed and the draw's number.

Draw `n` is position `n % batch_size` of step `n // batch_size`. Nothing depends on the
number of hosts or on what was drawn before, so a resumed run, or one on other hardware,
sees the same examples in the same order.
"""

import functools
from typing import Literal, NamedTuple, cast, get_args

import numpy as np
from jaxtyping import Int

Sampling = Literal["epochs", "replacement"]
SAMPLINGS = (*get_args(Sampling), "published")
DuplicationMode = Literal["weights", "counts"]

# Grain shuffles in 32 bits.
_MAX_EPOCH_DRAWS = 2**32 - 1

_PURPOSES = ("schedule", "example", "crop")


def draw_generator(
    seed: int, draw: int, purpose: Literal["schedule", "example", "crop"]
) -> np.random.Generator:
    """Makes the generator of one draw: random access to an independent stream.

    `schedule` chooses the example, `example` everything that happens to it but `crop`,
    the part that is seen.
    """
    key = np.array([seed, _PURPOSES.index(purpose)], np.uint64)
    # The lowest word of the counter moves with the numbers taken from the stream.
    return np.random.Generator(np.random.Philox(key=key, counter=[0, draw, 0, 0]))


class Schedule(NamedTuple):
    """The law by which examples are drawn.

    Attributes:
      cumulative_weights: running total of the examples' weights.
      sampling: `epochs` visits every example exactly `weight` times an epoch, in a new
        random order each epoch; `replacement` draws each time independently in
        proportion to the weights, as the original code did under duplication.
      seed: of the whole run.
    """

    cumulative_weights: Int[np.ndarray, " N"]
    sampling: Sampling
    seed: int

    @property
    def epoch_draws(self) -> int:
        """Number of draws in which every example is due `weight` times."""
        return int(self.cumulative_weights[-1])


def make_schedule(weights: Int[np.ndarray, " N"], sampling: str, seed: int) -> Schedule:
    """Checks the weights and prepares the schedule.

    Args:
      sampling: one of `Sampling`, or `published`, as the original code does it: with
        replacement where an example is duplicated, and shuffled where none is.
    Raises:
      ValueError: without examples, for a weight below 1, or an unknown sampling.
    """
    if sampling not in SAMPLINGS:
        raise ValueError(
            f"data.sampling={sampling!r} is not known: use one of {', '.join(SAMPLINGS)}"
        )
    if len(weights) == 0 or weights.min() < 1:
        raise ValueError(
            "every example needs a weight of at least 1, and one must exist"
        )
    cumulative_weights = np.cumsum(weights, dtype=np.int64)
    law: Sampling = "replacement" if weights.max() > 1 else "epochs"
    if sampling != "published":
        law = cast(Sampling, sampling)
    if law == "epochs" and cumulative_weights[-1] > _MAX_EPOCH_DRAWS:
        raise ValueError(
            f"an epoch of {cumulative_weights[-1]} draws is longer than "
            f"{_MAX_EPOCH_DRAWS}: lower the factors, or set data.sampling='replacement'"
        )
    return Schedule(cumulative_weights, law, seed)


def check_duplication_mode(mode: DuplicationMode, sampling: Sampling) -> None:
    """Refuses a sampling that does not keep what the duplication mode promises.

    Args:
      mode: `counts` promises that an epoch holds each example exactly `factor` times,
        shuffled without replacement; `weights` leaves it to the sampling.
    Raises:
      ValueError: for an unknown mode, or counts drawn with replacement.
    """
    if mode not in get_args(DuplicationMode):
        raise ValueError(
            f"data.duplication_mode={mode!r} is not known: use one of "
            f"{', '.join(get_args(DuplicationMode))}"
        )
    if mode == "counts" and sampling != "epochs":
        raise ValueError(
            f"data.duplication_mode='counts' promises exact counts an epoch, but "
            f"data.sampling={sampling!r} draws at random: set data.sampling='epochs', "
            "or data.duplication_mode='weights'"
        )


def example_at(schedule: Schedule, draw: int) -> int:
    """Returns the index of the example that draw number `draw` (from 0) takes."""
    from grain.experimental import index_shuffle

    total = schedule.epoch_draws
    if schedule.sampling == "replacement":
        ticket = int(draw_generator(schedule.seed, draw, "schedule").integers(total))
    else:
        epoch, position = divmod(draw, total)
        ticket = index_shuffle(
            position,
            max_index=total - 1,
            seed=_epoch_seed(schedule.seed, epoch),
            rounds=4,
        )
    return int(np.searchsorted(schedule.cumulative_weights, ticket, side="right"))


@functools.lru_cache(maxsize=16)
def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])


def examples_of_step(
    schedule: Schedule, step: int, batch_size: int
) -> Int[np.ndarray, " B"]:
    """Returns the indices of the examples of one step, for all hosts together."""
    first = step * batch_size
    return np.array([example_at(schedule, first + i) for i in range(batch_size)])
