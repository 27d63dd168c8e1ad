"""What the loader's bench counts."""

import threading

from bench.loader import _cpu_seconds


def test_cpu_seconds_are_counted_while_threads_come_and_go() -> None:
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            short = threading.Thread(target=int)
            short.start()
            short.join()

    churning = [threading.Thread(target=churn) for _ in range(4)]
    for thread in churning:
        thread.start()
    try:
        seconds = [_cpu_seconds() for _ in range(2000)]
    finally:
        stop.set()
        for thread in churning:
            thread.join()
    assert seconds == sorted(seconds)
