"""How far a long piece of work is: soon a first line, then one every ten seconds."""

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

_FIRST_SECS = 2
_EVERY_SECS = 10


class Progress:
    """Logs how much is done, the present rate and the time left; at the end, the mean.

    The rate is that since the line before: a first batch that compiled, or many that
    were quick, say nothing of what is left.

    Args:
      what: is done, such as "generated".
      total: how much there is.
      done: what was done before, which took no time now.
    """

    def __init__(
        self,
        what: str,
        total: int,
        *,
        done: int = 0,
        unit: str = "images",
        clock: Callable[[], float] = time.monotonic,
    ):
        self._what, self._total, self._unit, self._clock = what, total, unit, clock
        self._done = done
        self._first = self._last = (clock(), done)
        self._next = self._first[0] + _FIRST_SECS

    def add(self, count: int, note: str = "") -> None:
        """Counts what was done since; logs if it is time to, or all is done."""
        if not count:
            return
        self._done += count
        now, ended = self._clock(), self._done >= self._total
        if now < self._next and not ended:
            return
        since, before = self._first if ended else self._last
        rate = (self._done - before) / max(now - since, 1e-9)
        left = (self._total - self._done) / rate if rate else float("inf")
        when = f"in {format_duration(now - since)}" if ended else ""
        logger.info(
            "%s %d/%d  %.1f %s/s  %s%s",
            self._what,
            self._done,
            self._total,
            rate,
            self._unit,
            when or f"ETA {format_duration(left)}",
            note and f"  ({note})",
        )
        self._last, self._next = (now, self._done), now + _EVERY_SECS


def format_duration(seconds: float) -> str:
    """Formats a duration as `1h02m`, `3m05s` or `7s`."""
    if seconds == float("inf"):
        return "unknown"
    minutes, secs = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{secs:02d}s" if minutes else f"{secs}s"
