"""The border to threads."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rerankd.concurrency.worker import Worker, available_cores, read_quota, release


async def test_a_call_runs_in_another_thread_and_its_result_comes_back() -> None:
    with Worker(name="test", threads=1) as worker:
        assert await worker.run(sorted, [1, 3, 2], reverse=True) == [3, 2, 1]
        assert (await worker.run(threading.current_thread)).name.startswith("test")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere all threads of a process have one priority")
async def test_a_worker_of_low_priority_changes_its_own_threads_only() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = niceness()
    with Worker(name="nice", threads=1, niceness=3) as nice, Worker(name="plain", threads=1) as plain:
        assert await nice.run(niceness) == before + 3
        assert await plain.run(niceness) == before
    assert niceness() == before


_ENDS_MORE = (StopIteration, SystemExit, KeyboardInterrupt, GeneratorExit)


@pytest.mark.parametrize(
    "error", [ValueError("told to"), KeyError(1), MemoryError(), *(kind() for kind in _ENDS_MORE)], ids=repr
)
async def test_what_a_call_raises_reaches_the_caller(error: BaseException) -> None:
    def fail() -> None:
        raise error

    with Worker(name="test", threads=1) as worker:
        with pytest.raises(RuntimeError if isinstance(error, _ENDS_MORE) else type(error)):
            await asyncio.wait_for(worker.run(fail), timeout=5)
        assert await worker.run(lambda: 1) == 1


async def test_a_call_that_was_cancelled_while_it_waited_never_starts() -> None:
    started: list[int] = []
    gate = threading.Event()
    with Worker(name="test", threads=1) as worker:
        running = asyncio.ensure_future(worker.run(gate.wait))
        waiting = asyncio.ensure_future(worker.run(started.append, 1))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.sleep(0)
        gate.set()
        await running
        await worker.run(lambda: None)
    assert started == []


async def test_a_call_that_waits_for_a_thread_that_was_given_up_is_done_by_a_new_one() -> None:
    gate = threading.Event()
    with Worker(name="test", threads=1) as worker:
        hanging = asyncio.ensure_future(worker.run(gate.wait))
        waiting = asyncio.ensure_future(worker.run(lambda: "answered"))
        await asyncio.sleep(0.05)
        worker.give_up()
        assert await asyncio.wait_for(waiting, timeout=10) == "answered"
        assert not hanging.done()
        gate.set()
        assert await asyncio.wait_for(hanging, timeout=10)


async def test_a_call_that_waits_is_cancelled_with_its_caller_or_its_worker() -> None:
    started: list[str] = []
    gate = threading.Event()
    with Worker(name="test", threads=1, last_calls_s=0.1) as worker:
        hanging = asyncio.ensure_future(worker.run(gate.wait))
        waiting = [asyncio.ensure_future(worker.run(started.append, which)) for which in ("caller", "worker")]
        await asyncio.sleep(0.05)
        worker.give_up()
        waiting[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        await asyncio.sleep(0.05)
        second_gate = threading.Event()
        hanging_too = asyncio.ensure_future(worker.run(second_gate.wait))
        last = asyncio.ensure_future(worker.run(started.append, "last"))
        await asyncio.sleep(0.05)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(last, timeout=10)
    for ends in (gate, second_gate):
        ends.set()
    await asyncio.gather(hanging, hanging_too)
    assert started == ["worker"]


_ENDS_WITH_CALLS = """
import asyncio, sys, threading, time
from rerankd.concurrency.worker import Worker, exit_beside_hung_calls

async def serve(call):
    for given_up in (True, False):
        with Worker(name="last", threads=1, last_calls_s=0.1) as worker:
            running = asyncio.ensure_future(worker.run(call))
            await asyncio.sleep(0.1)
            if given_up:
                worker.give_up()
            running.cancel()

asyncio.run(serve({"hangs": threading.Event().wait, "ends": int, "is ending": int}[sys.argv[1]]))
if sys.argv[1] == "is ending":
    threading.Thread(target=time.sleep, args=(0.2,)).start()
exit_beside_hung_calls()
print("went on")
"""


@pytest.mark.parametrize(("call", "output"), [("hangs", ""), ("ends", "went on\n"), ("is ending", "went on\n")])
def test_calls_that_hang_do_not_keep_the_process(call: str, output: str) -> None:
    command = [sys.executable, "-c", _ENDS_WITH_CALLS, call]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 0
    assert ended.stdout == output
    assert ("calls hang in last" in ended.stderr) == (call == "hangs")


async def test_a_call_that_runs_is_finished_before_its_worker_is_closed() -> None:
    with Worker(name="test", threads=1) as worker:
        thread = await worker.run(threading.current_thread)
        call = asyncio.ensure_future(worker.run(time.sleep, 0.2))
        await asyncio.sleep(0.05)
    assert not thread.is_alive()
    await call


def test_there_is_at_least_one_core() -> None:
    assert available_cores() >= 1


@pytest.mark.parametrize(
    ("content", "cores"),
    [("200000 100000\n", 2.0), ("50000 100000\n", 0.5), ("max 100000\n", None), ("", None), ("nonsense\n", None)],
)
def test_a_containers_cpu_quota_is_read(tmp_path: Path, content: str, cores: float | None) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(content)
    assert read_quota(file) == cores


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert read_quota(tmp_path / "cpu.max") is None


async def test_a_large_list_is_emptied_in_portions_between_which_others_have_their_turn() -> None:
    items: list[object] = [object() for _ in range(1100)]
    left: list[int] = []
    ending = asyncio.ensure_future(release(items))
    while not ending.done():
        left.append(len(items))
        await asyncio.sleep(0)
    assert items == []
    assert left == [1100, 850, 600, 350, 100]
    await release([])
