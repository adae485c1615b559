"""Faults on purpose, which only a worker made for them has."""

import asyncio
import threading

import pytest

from rerankd.serving.faults import MortalWorker


async def test_a_thread_that_died_while_it_waited_for_a_call_is_replaced_before_the_next() -> None:
    with MortalWorker(name="mortal", threads=1) as worker:
        victim = await worker.run(threading.current_thread)
        worker.lose_threads()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(worker.run(lambda: "taken along"), timeout=1)
        victim.join(timeout=10)
        assert not victim.is_alive()
        assert await asyncio.wait_for(worker.run(lambda: "answered"), timeout=10) == "answered"
