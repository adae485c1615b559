"""A rerank service that the operator names: one call for all documents of a query that wait, up to its limit."""

from collections.abc import Sequence
from time import perf_counter
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from rerankd.config.options import read_options
from rerankd.engines.base import BatchLimits, EngineSpec, task_of
from rerankd.engines.remote.client import ClientOptions, RemoteClient, headers_of
from rerankd.errors import ConfigError, RemoteUnavailable
from rerankd.tasks.rank import Rank, TextPair

_USUAL_CALLS: Final = 8
# What limits a call is its number of documents.
_UNLIMITED: Final = 2**40
_MINUTE_S: Final = 60.0


def _with_slash(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError(f"must begin with /, not {path!r:.60}")
    return path


class ServiceOptions(ClientOptions):
    """`[model.engine_options]` of the engine `remote`."""

    timeout_s: float = Field(default=10.0, gt=0, description="For one answer.")
    path: Annotated[str, AfterValidator(_with_slash)] | None = Field(
        default=None, description="Where requests go behind the base; default: the protocol's usual path."
    )
    max_documents: int | None = Field(
        default=None, ge=1, description="Documents in a call; default: what services of the protocol take."
    )
    documents_per_min: int | None = Field(
        default=None, ge=1, description="Documents that may be sent in a minute, for services that cost money."
    )


class ServiceEngine:
    """`workers` calls at a time."""

    def __init__(self, client: RemoteClient, task: Rank, options: ServiceOptions, *, workers: int) -> None:
        self.client = client
        self._api = task.api
        self._path = options.path or task.api.path
        self._model = options.model
        self._budget = _Budget(options.documents_per_min)
        self.workers = workers
        # Where it is, and what else it is told, is nobody's business but the operator's.
        self.name = f"remote/{task.api.name}"
        self.preferred_batch = BatchLimits(
            tokens=_UNLIMITED, pairs=options.max_documents or task.api.max_documents, padded=False
        )

    @classmethod
    def load(cls, spec: EngineSpec) -> "ServiceEngine":
        """Read the options; nothing is asked yet.

        Raises:
            ConfigError: an option is missing, or the key's file is.
        """
        task, options = _checked(spec)
        workers = spec.workers or _USUAL_CALLS
        client = RemoteClient.open(options, name=task.api.name, calls=workers)
        return cls(client, task, options, workers=workers)

    async def ask(self, pairs: Sequence[TextPair], deadline: float) -> list[float]:
        """Score the documents of one query.

        Raises:
            RemoteUnavailable, RemoteFailed: see `RemoteClient.ask`.
        """
        if wait_s := self._budget.wait_s(now=perf_counter()):
            message = f"the remote model ({self._api.name}) was sent all documents that it may be sent in a minute"
            raise RemoteUnavailable(message, retry_after_s=wait_s)
        self._budget.take(len(pairs))
        return await self.client.ask(
            self._path,
            self._api.body(self._model, pairs),
            read=lambda answer: self._api.read(answer, documents=len(pairs)),
            what="a list of scores",
            deadline=deadline,
        )


class _Budget:
    """Documents that may be sent: fills steadily, to a minute's worth. A call is made while anything is left."""

    def __init__(self, per_min: int | None) -> None:
        self._per_min = per_min
        self._left = float(per_min or 0)
        self._filled_at = 0.0

    def wait_s(self, *, now: float) -> float:
        """Seconds until something is left."""
        if self._per_min is None:
            return 0.0
        self._left = min(self._per_min, self._left + (now - self._filled_at) * self._per_min / _MINUTE_S)
        self._filled_at = now
        return max(0.0, (1 - self._left) * _MINUTE_S / self._per_min)

    def take(self, documents: int) -> None:
        self._left -= documents


def check(spec: EngineSpec) -> None:
    """Read the options and the key's file; nothing is asked.

    Raises:
        ConfigError: an option is missing, or the key's file or a proxy cannot be used.
    """
    headers_of(_checked(spec)[1])


def _checked(spec: EngineSpec) -> tuple[Rank, ServiceOptions]:
    task = task_of(spec, Rank)
    options = read_options(spec.options, ServiceOptions, of="engine 'remote'")
    if task.api.max_documents == 1 and options.max_documents not in (None, 1):
        raise ConfigError(f"max_documents: protocol {task.api.name!r} asks for one document in a call; leave it out")
    return task, options
