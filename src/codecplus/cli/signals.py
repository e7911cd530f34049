"""Signals that ask a command to end: they end it as Ctrl-C does, so that it cleans up."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end.

    Attributes:
        number: of the signal.
        name: what it did, for a message.
    """

    def __init__(self, number: int, name: str):
        super().__init__(name)
        self.number = number
        self.name = name


_NAMES = {"SIGTERM": "terminated", "SIGHUP": "hung up"}


@contextmanager
def stop_signals() -> Iterator[None]:
    """Raise Stopped in the block where a signal would kill the process, and leave nothing clean.

    A signal that is ignored, as `nohup` does, or that has a handler, stays as it is.
    """
    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for name, meaning in _NAMES.items():
            number = getattr(signal, name, None)  # Windows knows no SIGHUP
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                previous[number] = signal.signal(number, _raiser(meaning))
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _raiser(meaning: str) -> Any:
    def stop(number: int, frame: Any) -> NoReturn:
        raise Stopped(number, meaning)

    return stop
