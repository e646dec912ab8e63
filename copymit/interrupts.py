"""Ctrl-C and SIGTERM, which are the same: a program ends, or saves before it does.

Nothing is raised: an exception would surface wherever the main thread happens to be, in a
callback of XLA or a library's clean-up, and not at all while XLA compiles. A thread hears
of the signal and ends the process as a kill would. What lies on disk is whole at any time
(copymit/storage.py); what must not stay there is undone first.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_undo: list[Callable[[], object]] = []
_stops: list["Stop"] = []
_ending = threading.Event()


class Stop:
    """The wish to stop, left to the one who asked for it to be.

    Attributes:
      wished: is set once the signal has come.
      code: the exit code then, 128 + the signal's number; until then 0.
    """

    def __init__(self, saying: str = ""):
        self.wished = threading.Event()
        self.code = 0
        self._saying = saying

    def wish(self, number: int) -> None:
        """Notes a signal, and says what happens before the end."""
        self.code = 128 + number
        self.wished.set()
        if self._saying:
            _say(f"{self._saying}; a second time ends at once")


@contextlib.contextmanager
def heeded(signals: Sequence[signal.Signals] = SIGNALS) -> Iterator[None]:
    """Ends the process at any of these signals: in one line, with code 128 + its number.

    Changes nothing within itself, nor in another thread than the main one.
    """
    if threading.current_thread() is not threading.main_thread() or any(
        signal.getsignal(number) is _wake for number in signals
    ):
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    handlers = {number: signal.signal(number, _wake) for number in signals}
    # C's handler writes there at once, whatever Python is doing.
    descriptor = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(
        target=_listen, args=[reader, frozenset(signals)], daemon=True
    ).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(writer)  # the thread ends


@contextlib.contextmanager
def deferred(
    saying: str, signals: Sequence[signal.Signals] = SIGNALS
) -> Iterator[Stop]:
    """Leaves the first signal to the caller; a second ends the process.

    Args:
      saying: what is done before the end, told when the signal comes.
    """
    stop = Stop(saying)
    with heeded(signals):
        _stops.append(stop)
        try:
            yield stop
        finally:
            _stops.remove(stop)


@contextlib.contextmanager
def undone(undo: Callable[[], object]) -> Iterator[None]:
    """Calls `undo` if a signal ends the process meanwhile."""
    _undo.append(undo)
    try:
        yield
    finally:
        _undo.remove(undo)


def await_end() -> None:
    """Returns at once, or never if a signal is ending the process.

    So that what the end has undone is not reported as an error.
    """
    if _ending.is_set():
        threading.Event().wait()


def leave_to_parent(*_: object) -> None:
    """Passes over Ctrl-C in a worker process, to which a terminal sends it as well."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _wake(*_: object) -> None:
    """Is Python's part of the handler: nothing."""


def _listen(reader: int, signals: frozenset[int]) -> None:
    while came := os.read(reader, 1):
        number = came[0]
        if number not in signals:
            continue  # another handler's
        if _ending.is_set():
            os._exit(128 + number)  # the end itself hangs
        stop = next(
            (stop for stop in reversed(_stops) if not stop.wished.is_set()), None
        )
        if stop:
            stop.wish(number)
        else:
            _ending.set()
            threading.Thread(target=_end, args=[number], daemon=True).start()
    os.close(reader)


def _end(number: int) -> None:
    for undo in reversed(_undo.copy()):
        with contextlib.suppress(Exception):  # the others must have their turn
            undo()
    for child in multiprocessing.active_children():
        child.kill()
    _say("interrupted: what is finished stays; the same command goes on from there")
    os._exit(128 + number)


def _say(text: str) -> None:
    """Writes to the terminal, though the main thread may hold the locks of logging."""
    with contextlib.suppress(OSError):
        os.write(2, f"\n{text}\n".encode())
