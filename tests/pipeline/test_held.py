"""Batches on a GPU, of which the tests have none: its events are played."""

import weakref

import pytest
import torch

from pipeline.held import IN_FLIGHT, Held


class Event:
    """Of a GPU that has done what was queued when it is told so, or waited for."""

    def __init__(self) -> None:
        self.recorded = self.done = self.waited = False

    def record(self) -> None:
        self.recorded = True

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        assert self.recorded
        self.waited, self.done = not self.done, True


def test_batches_are_held_until_what_was_queued_with_them_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Event] = []
    monkeypatch.setattr(torch.cuda, "Event", lambda: events.append(Event()) or events[-1])
    held, memory = Held(), []

    def add() -> None:
        batch = torch.zeros(3)
        memory.append(weakref.ref(batch))
        held.add(batch)

    def alive() -> list[int]:
        return [number for number, kept in enumerate(memory) if kept() is not None]

    for _ in range(IN_FLIGHT):
        add()
    assert alive() == list(range(IN_FLIGHT)) and not any(event.waited for event in events)
    add()
    assert alive() == list(range(1, IN_FLIGHT + 1)), "no more than so many, the oldest is waited for"
    assert [event.waited for event in events] == [True] + [False] * IN_FLIGHT
    for event in events:
        event.done = True
    add()
    assert alive() == [IN_FLIGHT + 1] and not events[1].waited, "what is done is let go without waiting"
    held.clear()
    assert not alive() and events[-1].waited
