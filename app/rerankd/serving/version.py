"""One loading of a model, from its files to its release. A newer one loads beside it, and then takes its place."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from contextvars import Context
from typing import Literal

from rerankd.errors import ConfigError, SourceUnreachable
from rerankd.serving.model import LoadedModel, ServedModel, try_out
from rerankd.telemetry.redaction import redacted

logger = logging.getLogger(__name__)

_FIRST_RETRY_S = 5.0
_LAST_RETRY_S = 300.0

# Loads a model and runs it; leaving the context releases its threads and its memory.
Opening = Callable[[], AbstractAsyncContextManager[LoadedModel]]


class Version:
    """Loads in a task of its own, then waits for `serve`; after `retire` it finishes its requests and is released.

    `release` is called in a thread once it is gone. `idle_unload_s`: how long no request may come until it is unloaded;
    None: for ever. `drain_s`: how long its requests may take once it is retired. With `at_once` it serves as soon as it
    can, and is loaded again and again while the place that its files come from cannot be reached.
    """

    def __init__(
        self,
        model: ServedModel,
        opening: Opening,
        release: Callable[[], None],
        *,
        drain_s: float,
        idle_unload_s: float | None = None,
        at_once: bool = False,
    ) -> None:
        self.model = model
        self._opening = opening
        self._release = release
        self._drain_s = drain_s
        self._idle_unload_s = idle_unload_s
        self._at_once = at_once
        self._loaded: LoadedModel | None = None
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._serving = asyncio.Event()
        self._retired = asyncio.Event()
        # Not in the context of the request that wants the model: its id would be in the log for ever.
        self.task = asyncio.create_task(self._live(), name=model.name, context=Context())

    @property
    def alive(self) -> bool:
        """Whether it serves, or may serve yet."""
        return not self.task.done() and not self._retired.is_set()

    @property
    def state(self) -> Literal["loading", "serving", "draining"]:
        """Where it is between its files and its release."""
        if self._retired.is_set():
            return "draining"
        return "serving" if self._serving.is_set() else "loading"

    async def opened(self) -> None:
        """Wait until it could serve.

        Raises:
            ConfigError: it cannot; the message says why.
        """
        await asyncio.shield(self._opened)

    def serve(self) -> None:
        """Answer the model's requests from now on; it was opened."""
        assert self._loaded is not None  # noqa: S101 - `opened` has said so
        self.model.serve(self._loaded)
        self._serving.set()

    def retire(self) -> None:
        """Take no more requests: another version does, or none. One that does not serve yet ends at once."""
        self._retired.set()
        if not self._serving.is_set():
            self.task.cancel()

    async def close(self) -> None:
        """Stop at once, whatever it does."""
        self.task.cancel()
        await asyncio.wait([self.task])

    async def _live(self) -> None:
        """Never raises: other models must go on."""
        try:
            await self._open_and_serve()
        except* ConfigError as errors:
            self._fail(str(errors.exceptions[0]))
        except* Exception as errors:
            logger.exception("model is lost", extra={"model": self.model.name})
            self._fail(f"{errors.exceptions[0]!r:.200}")
        finally:
            self._loaded = None
            if not self._opened.done():
                self._opened.cancel()
        if self._retired.is_set():
            await asyncio.to_thread(self._release)

    async def _open_and_serve(self) -> None:
        pause_s = _FIRST_RETRY_S
        while True:
            try:
                async with self._opening() as loaded:
                    await self._run(loaded)
                return
            except SourceUnreachable as error:
                if not self._at_once:
                    raise
                self.model.fail(f"{error} (asking again in {pause_s:.0f} s)")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LAST_RETRY_S)

    async def _run(self, loaded: LoadedModel) -> None:
        await try_out(loaded)
        self._loaded = loaded
        self._opened.set_result(None)
        if self._at_once:
            self.serve()
        await self._serving.wait()
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self.model.watch(loaded))
            idling = tasks.create_task(self._unload_when_idle(loaded))
            await self._retired.wait()
            watching.cancel()
            idling.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._drain_s):
                await loaded.usage.ended()

    async def _unload_when_idle(self, loaded: LoadedModel) -> None:
        if self._idle_unload_s is None:
            return
        await loaded.usage.idle_for(self._idle_unload_s)
        self.unload()

    def unload(self) -> None:
        """Stop serving, until a request comes for which the model is loaded again."""
        self.model.unload()
        self.retire()

    def _fail(self, reason: str) -> None:
        """Tell why: those that wait for it while it loads, and everyone if it served."""
        if not self._opened.done() and not self._at_once:
            self._opened.set_exception(ConfigError(redacted(reason)))
        elif not self._retired.is_set():
            self.model.fail(reason)
