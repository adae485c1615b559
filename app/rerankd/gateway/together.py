"""Runs operators' commands in all front-end processes, so that they keep serving the same models for the same keys."""

from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from typing import Any
from uuid import uuid4

from rerankd.concurrency.channel import Channel, Head, Reply

# Runs here, for a model or for none.
Command = Callable[[str], Awaitable[Any]]


class Together:
    """The part of one front end: it asks the scheduler, which has every front end run the command, this one too."""

    def __init__(self, channel: Channel, commands: Mapping[str, Command]) -> None:
        self._channel = channel
        self._commands = commands
        self._name = uuid4().hex
        self._numbers = count()
        self._outcomes: dict[str, Any] = {}
        channel.calls["command"] = self._run_here

    async def run(self, command: str, model: str) -> Any:  # noqa: ANN401 - each command has its own outcome
        """Run a command everywhere; the outcome is this front end's.

        Raises:
            ConfigError, RerankError: what the command raises; then it changed nothing anywhere.
        """
        asker = f"{self._name}/{next(self._numbers)}"
        try:
            await self._channel.call("everywhere", {"command": command, "model": model, "asker": asker})
            return self._outcomes[asker]
        finally:
            self._outcomes.pop(asker, None)

    async def _run_here(self, told: Head, _: bytes) -> Reply:
        outcome = await self._commands[told["command"]](told["model"])
        if told["asker"].startswith(self._name):
            self._outcomes[told["asker"]] = outcome
        return {}, b""
