"""Progress bars with rate and time left, on a terminal; silence elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

UNITS = {
    "make up": "patches",
    "list": "B",
    "ingest": "patches",
    "upload": "B",
    "verify": "B",
    "audit": "samples",
    "compare": "pairs",
}
"""What a stage counts."""


@contextmanager
def bars(stream: TextIO) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function to be told (stage, done, total)."""
    if not stream.isatty():
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.filesize import decimal
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TimeRemainingColumn
    from rich.text import Text

    class Amount(ProgressColumn):
        def render(self, task: Task) -> Text:
            done, total, speed = int(task.completed), int(task.total or 0), int(task.speed or 0)
            if UNITS[task.description] == "B":
                return Text(f"{decimal(done)}/{decimal(total)} {decimal(speed)}/s")
            return Text(f"{done:,}/{total:,} {speed:,} {UNITS[task.description]}/s")

    with Progress(
        "{task.description}", BarColumn(), Amount(), TimeRemainingColumn(), console=Console(file=stream)
    ) as display:
        stages: dict[str, TaskID] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in stages:
                stages[stage] = display.add_task(stage, total=total)
            display.update(stages[stage], completed=done, total=total)

        yield progress
