"""The worker thread: newest wish wins, waiting, failing, closing."""

import asyncio
import threading

import pytest

from ess_widgets.widgets.worker import Worker


class Counter:
    """Counts down from what was wished for, one step at a time."""

    def __init__(self):
        self.left = 0
        self.seen = []
        self.errors = []
        self.gate = threading.Event()
        self.gate.set()
        self.worker = Worker(self.step, self.errors.append, "test")

    def step(self):
        self.gate.wait(10)
        if self.left < 0:
            self.left = 0
            raise ValueError("below zero")
        if self.left == 0:
            return False
        self.seen.append(self.left)
        self.left -= 1
        return True

    def wish(self, number):
        self.left = number
        self.worker.wake()


@pytest.fixture
def counter():
    counter = Counter()
    yield counter
    counter.gate.set()
    counter.worker.close()


def test_wait_returns_when_all_is_done(counter):
    counter.wish(3)
    assert counter.worker.wait(10) is None
    assert counter.seen == [3, 2, 1] and not counter.worker.busy


def test_a_newer_wish_replaces_the_older(counter):
    counter.gate.clear()
    counter.wish(1000)
    counter.wish(1)
    counter.gate.set()
    counter.worker.wait(10)
    assert counter.seen == [1]


def test_where_a_loop_runs_wait_is_awaitable(counter):
    async def main():
        counter.wish(2)
        await counter.worker.wait(10)
        return list(counter.seen)

    assert asyncio.run(main()) == [2, 1]


def test_waiting_too_long_says_so_and_the_work_goes_on(counter):
    counter.gate.clear()
    counter.wish(2)
    with pytest.raises(TimeoutError, match="not up to date"):
        counter.worker.wait(0.01)

    async def late():
        await counter.worker.wait(0.01)

    with pytest.raises(TimeoutError, match="not up to date"):
        asyncio.run(late())
    counter.gate.set()
    counter.worker.wait(10)
    assert counter.seen == [2, 1]


def test_a_failing_step_is_reported_and_the_next_wish_is_served(counter):
    counter.wish(-1)
    counter.worker.wait(10)
    assert [str(error) for error in counter.errors] == ["below zero"]
    counter.wish(1)
    counter.worker.wait(10)
    assert counter.seen == [1]


def test_closing_ends_the_thread_and_those_who_wait(counter):
    counter.gate.clear()
    counter.wish(5)
    waiting = threading.Thread(target=counter.worker.wait, args=(10,))
    waiting.start()
    counter.worker.close()
    counter.gate.set()
    waiting.join(10)
    counter.worker._thread.join(10)
    assert not waiting.is_alive() and not counter.worker._thread.is_alive()


def test_waiting_for_oneself_is_refused():
    caught = []

    def step():
        try:
            worker.wait(1)
        except RuntimeError as error:
            caught.append(str(error))
        return False

    worker = Worker(step, caught.append, "test")
    worker.wake()
    worker.wait(10)
    worker.close()
    assert len(caught) == 1 and "observer" in caught[0]


def test_a_threads_own_thread_count_leaves_others_alone():
    import torch

    from ess_widgets.widgets.threads import use_threads

    before = torch.get_num_threads()
    counts = {}

    def own():
        use_threads(before + 1, before)
        counts["own"] = torch.get_num_threads()

    def later():
        counts["later"] = torch.get_num_threads()

    for target in (own, later):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
    assert counts == {"own": before + 1, "later": before}
    assert torch.get_num_threads() == before
