import threading
import time
from concurrent.futures import wait

import pytest

from trl_sdpo.serving.batching import Batcher, QueueFullError


class Held:
    """Computes when it is let go, and notes its batches."""

    def __init__(self):
        self.go, self.batches = threading.Event(), []

    def __call__(self, group, works):
        self.batches.append((group, list(works)))
        self.go.wait(10)
        if "broken" in works:
            raise ValueError("broken piece")
        return [f"{group}-{work}" for work in works]


def started(held, batcher):
    """A first piece is on its way, so that what follows waits."""
    first = batcher.submit("a", 0)
    for _ in range(1000):
        if held.batches:
            break
        time.sleep(0.005)
    return first


def test_what_gathers_becomes_the_next_batch_by_group():
    held = Held()
    with Batcher(held, max_batch_size=4) as batcher:
        futures = [started(held, batcher), *(batcher.submit(group, n) for n, group in enumerate("aabab", start=1))]
        held.go.set()
        assert [future.result(10) for future in futures] == ["a-0", "a-1", "a-2", "b-3", "a-4", "b-5"]
    assert held.batches == [("a", [0]), ("a", [1, 2, 4]), ("b", [3]), ("b", [5])]


def test_a_piece_that_fails_fails_alone():
    held = Held()
    with Batcher(held) as batcher:
        futures = [started(held, batcher), *(batcher.submit("a", work) for work in (1, "broken", 3))]
        held.go.set()
        wait(futures, 10)
    assert [future.result() for future in futures if not future.exception()] == ["a-0", "a-1", "a-3"]
    assert str(futures[2].exception()) == "broken piece"


def test_one_more_than_may_wait_is_refused_and_those_who_gave_up_are_not_computed():
    held = Held()
    with Batcher(held, max_waiting=2) as batcher:
        first = started(held, batcher)
        waiting = [batcher.submit("a", work) for work in (1, 2)]
        with pytest.raises(QueueFullError, match="2 requests are waiting"):
            batcher.submit("a", 3)
        assert batcher.num_waiting == 2
        assert waiting[0].cancel()
        held.go.set()
        assert waiting[1].result(10) == "a-2"
        assert first.result(10) == "a-0"
    assert held.batches[1] == ("a", [2])


def test_closing_answers_what_waits_and_takes_nothing_more():
    held = Held()
    batcher = Batcher(held)
    futures = [started(held, batcher), batcher.submit("a", 1)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    held.go.set()
    closing.join(10)
    assert [future.result(0) for future in futures] == ["a-0", "a-1"]
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit("a", 2)


@pytest.mark.parametrize("error", [SystemExit("out"), KeyboardInterrupt(), MemoryError("no memory")])
def test_nothing_that_a_computation_raises_ends_the_service(error):
    def compute(group, works):
        if works == [1]:
            raise error
        return works

    with Batcher(compute) as batcher:
        assert isinstance(batcher.submit("a", 1).exception(10), Exception)
        assert batcher.submit("a", 2).result(10) == 2


@pytest.mark.parametrize("options", [{"max_batch_size": 0}, {"max_waiting": 0}])
def test_sizes_below_one_are_refused(options):
    with pytest.raises(ValueError, match="at least 1"):
        Batcher(lambda group, works: works, **options)
