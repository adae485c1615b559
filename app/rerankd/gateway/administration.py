"""What operators change while the service runs: API keys and models, by a signal or with an admin key.

Each command leaves a line in the log `rerankd.audit`, with its origin and its outcome.
"""

import asyncio
import logging
from dataclasses import asdict
from typing import Any, Final

from rerankd.concurrency.channel import Channel
from rerankd.config.api_keys import ApiKey, read_admin_keys, read_api_keys
from rerankd.config.settings import Settings
from rerankd.errors import ConfigError, NotChanged, RerankError
from rerankd.gateway.keys import ApiKeys, KeyChanges
from rerankd.gateway.together import Command, Together
from rerankd.serving.hosting import Changes, HostedModel, ModelHost
from rerankd.serving.model import ServedModel

audit = logging.getLogger("rerankd.audit")
logger = logging.getLogger(__name__)

HANGUP: Final = "SIGHUP"


class Administration:
    """Commands to a running service. `by` is the name of an admin key, or of a signal."""

    def __init__(
        self,
        settings: Settings,
        *,
        keys: ApiKeys,
        admin_keys: ApiKeys | None,
        host: ModelHost,
        channel: Channel | None = None,
    ) -> None:
        """`admin_keys` None: nobody may send commands, and only signals do. `channel`: to the scheduler, where this is
        one of several front ends.
        """
        self._settings = settings
        self._keys = keys
        self.admin_keys = admin_keys
        self._host = host
        self._commands: dict[str, Command] = {
            "reload of keys": lambda _: read_keys_again(settings, keys, admin_keys),
            "reload": lambda _: host.reload(),
            "load": host.load,
            "unload": host.unload,
        }
        self._together = None if channel is None else Together(channel, self._commands)

    async def hang_up(self) -> None:
        """Read models again, and API keys where they come from files. What cannot be used changes nothing, and the log
        says why.
        """
        files = self._settings.api_keys_file or self._settings.admin_keys_file
        for reload in (self.reload_keys, self.reload_models) if files else (self.reload_models,):
            try:
                await reload(by=HANGUP)
            except NotChanged:
                logger.debug("the audit log has said why")

    async def reload_keys(self, *, by: str) -> KeyChanges:
        """Read the files of keys again and use them, or change nothing.

        Raises:
            NotChanged: a file cannot be used; the message never holds a key.
        """
        changes: KeyChanges = await self._do("reload of keys", by=by)
        return changes

    async def reload_models(self, *, by: str) -> Changes:
        """Read the registry again and serve what it says, or change nothing.

        Raises:
            NotChanged: something in it cannot be served; the message names every problem.
        """
        changes: Changes = await self._do("reload", by=by)
        return changes

    async def load(self, name: str, *, by: str) -> HostedModel:
        """Load a model from its files, again if it serves already.

        Raises:
            ModelNotFound, InvalidRequest: see `ModelHost.load`.
            NotChanged: it cannot be loaded; if it served before, it still does.
        """
        await self._do("load", by=by, model=name)
        return self._host.hosted(name)

    async def unload(self, name: str, *, by: str) -> HostedModel:
        """Release a model's memory until a request asks for it.

        Raises:
            ModelNotFound, InvalidRequest: see `ModelHost.unload`.
        """
        await self._do("unload", by=by, model=name)
        return self._host.hosted(name)

    @property
    def default(self) -> ServedModel:
        """The model that answers requests which name none."""
        return self._host.catalog.named(None)

    def models(self) -> list[HostedModel]:
        """The models that are served, and their versions."""
        return [self._host.hosted(model.name) for model in self._host.catalog.models]

    async def _do(self, name: str, *, by: str, model: str = "") -> Any:  # noqa: ANN401 - each has its own outcome
        """Run a command and log it."""
        told = {"model": model} if model else {}
        try:
            if self._together is None:
                outcome = await self._commands[name](model)
            else:
                named = self._host.catalog.named(model).name if model else ""
                outcome = await self._together.run(name, named)
        except (ConfigError, RerankError) as error:
            audit.error("%s changed nothing: %s", name, error, extra={"by": by, **told})
            if isinstance(error, RerankError):
                raise
            raise NotChanged(f"nothing was changed: {error}") from None
        audit.info("%s", name, extra={"by": by, **told, **_told(outcome)})
        return outcome


def _told(outcome: object) -> dict[str, Any]:
    return asdict(outcome) if isinstance(outcome, Changes | KeyChanges) else {}


async def read_keys_again(settings: Settings, clients: ApiKeys, admins: ApiKeys | None) -> KeyChanges:
    """Replace the keys by those of the files, in both or in neither.

    Raises:
        ConfigError: see `read_keys`.
    """
    of_clients, of_admins = await asyncio.to_thread(read_keys, settings)
    changes = clients.replace(of_clients)
    return changes if admins is None else changes.joined(admins.replace(of_admins))


def read_keys(settings: Settings) -> tuple[list[ApiKey], list[ApiKey]]:
    """The keys of clients and of operators.

    Raises:
        ConfigError: see `read_api_keys` and `read_admin_keys`.
    """
    clients = read_api_keys(settings.api_keys, settings.api_keys_file)
    return clients, read_admin_keys(settings.admin_keys_file, clients=clients)
