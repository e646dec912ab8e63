"""Ends a training that hangs: alive, silent, and paid for by the hour."""

import faulthandler
import logging
import os
import sys
import threading
import time
from typing import Self

logger = logging.getLogger(__name__)

_GRACE_SECS = 2.0  # for the thread that explains, before the one in C ends all
TRY_AGAIN = 75


class HangWatch:
    """Ends the process once what it waits for has not come for `seconds`.

    A thread says why, shows where every other stands and exits with code 75, "try again"
    (EX_TEMPFAIL): to what starts runs again, 1 is a mistake that stays. If one of them
    never gives Python's lock back, `faulthandler`'s thread in C does it, with code 1.

    Args:
      seconds: 0 watches nothing.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._deadline = self._armed_until = 0.0
        self._awaited = ""
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self.expect("the first step")
        if self._seconds:
            threading.Thread(target=self._explain, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        if self._seconds:
            faulthandler.cancel_dump_traceback_later()

    def expect(self, awaited: str) -> None:
        """Starts anew: there was progress, and `awaited` comes next."""
        self._awaited = awaited
        self._deadline = time.monotonic() + self._seconds
        # Not at every step: each time a thread is started, in 0.1 ms.
        if self._seconds and self._deadline > self._armed_until - _GRACE_SECS / 2:
            self._armed_until = self._deadline + _GRACE_SECS
            faulthandler.dump_traceback_later(
                self._seconds + _GRACE_SECS, exit=True, file=sys.__stderr__ or 2
            )

    def _explain(self) -> None:
        while (left := self._deadline - time.monotonic()) > 0:
            if self._over.wait(left):
                return
        logger.error(
            "error: waited %g s for %s: the process ends, and shows where each of its "
            "threads stood. Run the same command again (on every host) and it goes on "
            "from the newest checkpoint. If this can take so long, raise "
            "train.hang_timeout_seconds; 0 waits for ever",
            self._seconds,
            self._awaited,
        )
        faulthandler.dump_traceback(sys.__stderr__ or 2)
        os._exit(TRY_AGAIN)
