"""SIGTERM, as batch systems send it: what is under way is put down as after Ctrl-C, and the exit status is 143."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click


class _Terminated(BaseException):
    """Raised where SIGTERM found the main thread."""


@contextmanager
def terminable() -> Iterator[None]:
    """Inside, SIGTERM ends the command with one line; workers, locks and scratch are let go on the way out."""

    def stop(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would cut the tidying short
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except _Terminated:
        click.echo("terminated: run the same command again to go on", err=True)
        sys.exit(128 + signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
