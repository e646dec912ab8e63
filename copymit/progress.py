"""How far a long piece of work is: a line with rate and time left, now and then."""

import logging
import time

_SECONDS_BETWEEN_REPORTS = 10
_SECONDS_WORTH_A_LINE = 3


class Progress:
    """Counts what is done, and logs it where the work takes more than a few seconds.

    Args:
      what: is being done, such as "checking images".
      total: number of all.
    """

    def __init__(self, logger: logging.Logger, what: str, total: int):
        self._logger, self._what, self._total, self._done = logger, what, total, 0
        self._started = self._reported = time.perf_counter()

    def add(self, count: int) -> None:
        """Notes that so many more are done."""
        self._done += count
        now = time.perf_counter()
        seconds = now - self._started
        finished = self._done >= self._total
        if finished and seconds >= _SECONDS_WORTH_A_LINE:
            ending = f"in {format_duration(seconds)}"
        elif not finished and now - self._reported >= _SECONDS_BETWEEN_REPORTS:
            left = (self._total - self._done) * seconds / max(self._done, 1)
            ending = f"ETA {format_duration(left)}"
        else:
            return
        self._reported = now
        self._logger.info(
            "%s: %d/%d  %.0f a second  %s",
            *(self._what, self._done, self._total, self._done / seconds, ending),
        )


def format_duration(seconds: float) -> str:
    """Formats a duration as `1h02m`, `3m05s` or `7s`."""
    if seconds == float("inf"):
        return "unknown"
    minutes, secs = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{secs:02d}s" if minutes else f"{secs}s"
