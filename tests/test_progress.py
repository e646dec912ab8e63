"""Progress of long work: which lines come, what they count, and when."""

import logging
import math

import pytest

from copymit.progress import Progress, format_duration


class Clock:
    """Stands still until it is told."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, "copymit.progress")
    return lambda: [record.getMessage() for record in caplog.records]


def test_a_line_comes_soon_then_every_ten_seconds_and_at_the_end(lines):
    clock = Clock()
    progress = Progress("read", 100, clock=clock)
    reported = []
    for second in range(1, 26):
        clock.now = 100.0 + second
        before = len(lines())
        progress.add(4)
        if len(lines()) > before:
            reported.append(second)
    assert reported == [2, 12, 22, 25]
    assert lines()[0] == "read 8/100  4.0 images/s  ETA 23s"
    assert lines()[-1] == "read 100/100  4.0 images/s  in 25s"


def test_the_rate_is_the_present_one_and_what_was_done_before_is_not_in_it(lines):
    clock = Clock()
    progress = Progress("read", 1000, done=400, unit="texts", clock=clock)
    clock.now += 30  # it had to compile
    progress.add(10, "5 were known")
    clock.now += 10
    progress.add(90)
    clock.now += 10
    progress.add(500)
    assert lines() == [
        "read 410/1000  0.3 texts/s  ETA 29m30s  (5 were known)",
        "read 500/1000  9.0 texts/s  ETA 56s",
        "read 1000/1000  12.0 texts/s  in 50s",
    ]


def test_nothing_done_is_no_progress(lines):
    clock = Clock()
    progress = Progress("read", 10, clock=clock)
    clock.now += 60
    progress.add(0)
    assert lines() == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (7.4, "7s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (185, "3m05s"),
        (3599.6, "1h00m"),
        (3720, "1h02m"),
        (90_000, "25h00m"),
        (math.inf, "unknown"),
    ],
)
def test_durations_read_as_a_person_says_them(seconds, text):
    assert format_duration(seconds) == text
