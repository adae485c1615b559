"""The ways in which Redis is set up, and how entries are read and written in each: one server, behind Sentinels or not,
and a cluster.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import count
from typing import Any, Final, Protocol

from redis import asyncio as redis
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, AuthenticationError, ClusterError, RedisClusterException, RedisError

from rerankd.cache.access import Access

_PREFIX: Final = b"rerankd:"
# One command for many keys costs a fifth of what a pipeline of as many SETs costs this process.
_PUT: Final = "for i = 1, #KEYS do redis.call('SET', KEYS[i], ARGV[i + 1], 'EX', ARGV[1]) end"
# Two names that lie in different slots of a cluster; a probe's entries are gone in a millisecond.
_PROBES: Final = (_PREFIX + b"probe-1", _PREFIX + b"probe-2")
_PROBE_PUT: Final = "for i = 1, #KEYS do redis.call('SET', KEYS[i], '', 'PX', 1) end"
# One Sentinel that hangs must not use up the time of the others.
_SENTINEL_ANSWER_S: Final = 0.25
# A command reaches keys of one slot only. With fewer groups a request needs fewer commands; with more, shards share the
# keys more evenly.
_SLOT_GROUPS: Final = 64


class UnknownMaster(RedisError):
    """Sentinels answer, and watch no master of this name."""


class NoMaster(RedisError):
    """Nobody is the master now."""


class RangeUnserved(RedisError):
    """A cluster has nobody for some of its slots now, or moves them."""


class Deployment(Protocol):
    """Every method raises the client's errors, and takes as long as Redis does."""

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of keys in their order; None where one is unknown."""

    async def put(self, entries: Mapping[bytes, bytes], *, ttl_s: int) -> None: ...

    async def evaluate(self, script: str, key: str, *arguments: float | str) -> Any:  # noqa: ANN401 - as the script says
        """What a Lua script answers, which reads and writes one key."""

    async def run(self, *command: Any) -> Any:  # noqa: ANN401 - commands take and give bytes, texts and numbers
        """The answer to one command, whose keys lie in one slot."""

    async def probe(self) -> None:
        """Do what requests do, in every part: a Sentinel, or one server of a cluster, answers pings too."""

    async def renew(self) -> None:
        """Forget idle connections, and find out again where the servers are."""

    async def close(self) -> None: ...


def connection_options(*, max_connections: int) -> dict[str, Any]:
    """What all clients have in common."""
    return {
        # `RedisCache` keeps time: the client's own timeouts fire when only the event loop was late.
        "socket_timeout": None,
        "socket_connect_timeout": None,
        # Version 3 of the protocol keeps the client from noticing that an idle connection was closed.
        "protocol": 2,
        "max_connections": max_connections,
        "retry": Retry(NoBackoff(), 0),
    }


class OneServer:
    """A server that has all entries."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        found: list[bytes | None] = await self.run("MGET", *_names(keys))
        return found

    async def put(self, entries: Mapping[bytes, bytes], *, ttl_s: int) -> None:
        await self.run("EVAL", _PUT, len(entries), *_names(entries), ttl_s, *entries.values())

    async def evaluate(self, script: str, key: str, *arguments: float | str) -> Any:  # noqa: ANN401 - as the script says
        return await self.run("EVAL", script, 1, _PREFIX + key.encode(), *arguments)

    async def probe(self) -> None:
        await self.run("MGET", *_PROBES)
        await self.run("EVAL", _PROBE_PUT, len(_PROBES), *_PROBES)

    async def renew(self) -> None:
        await self._client.connection_pool.disconnect(inuse_connections=False)

    async def close(self) -> None:
        await self._client.aclose()

    async def run(self, *command: Any) -> Any:  # noqa: ANN401 - as above
        return await self._client.execute_command(*command)  # type: ignore[no-untyped-call]


class MasterOfSentinels(OneServer):
    """The server that the Sentinels call the master now."""

    def __init__(
        self, sentinels: Sequence[tuple[str, int]], master: str, access: Access, options: dict[str, Any]
    ) -> None:
        tls = {name: value for name, value in options.items() if name.startswith("ssl")}
        self._sentinels = Sentinel(  # type: ignore[no-untyped-call]
            sentinels,
            sentinel_kwargs={
                "password": access.sentinel_password or None,
                "socket_timeout": _SENTINEL_ANSWER_S,
                "socket_connect_timeout": _SENTINEL_ANSWER_S,
                "protocol": 2,
                "retry": Retry(NoBackoff(), 0),
                **tls,
            },
        )
        self._master = master
        super().__init__(self._sentinels.master_for(master, **options))

    async def renew(self) -> None:
        await super().renew()
        await self._sentinels.discover_master(self._master)

    async def close(self) -> None:
        await super().close()
        for sentinel in self._sentinels.sentinels:
            await sentinel.aclose()

    async def run(self, *command: Any) -> Any:  # noqa: ANN401 - as above
        try:
            return await super().run(*command)
        except MasterNotFoundError:
            await self._find_why()
            raise NoMaster("the Sentinels have no master that answers") from None

    async def _find_why(self) -> None:
        """Raises what a Sentinel says that the client keeps to itself: no such name, or another password."""
        for sentinel in self._sentinels.sentinels:
            try:
                masters = await sentinel.sentinel_masters()
            except AuthenticationError:
                raise
            except (RedisError, OSError):
                continue
            if self._master not in masters:
                raise UnknownMaster("no master of that name")


class Cluster:
    """Servers that share the entries. Names say by a tag in braces which of them has an entry, one tag for a range of
    slots, so that one command serves many keys.
    """

    def __init__(self, nodes: Sequence[tuple[str, int]], options: dict[str, Any]) -> None:
        startup = [ClusterNode(host, port) for host, port in nodes]
        self._client = redis.RedisCluster(startup_nodes=startup, **options)

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        groups = _by_slot_group(keys)
        values = await self._run([("MGET", *_tagged(group, members)) for group, members in groups.items()])
        value_of: dict[bytes, bytes | None] = {}
        for members, found in zip(groups.values(), values, strict=True):
            value_of.update(zip(members, found, strict=True))
        return [value_of[key] for key in keys]

    async def put(self, entries: Mapping[bytes, bytes], *, ttl_s: int) -> None:
        commands = []
        for group, members in _by_slot_group(entries).items():
            values = (entries[key] for key in members)
            commands.append(("EVAL", _PUT, len(members), *_tagged(group, members), ttl_s, *values))
        await self._run(commands)

    async def evaluate(self, script: str, key: str, *arguments: float | str) -> Any:  # noqa: ANN401 - as the script says
        return await self.run("EVAL", script, 1, _PREFIX + key.encode(), *arguments)

    async def run(self, *command: Any) -> Any:  # noqa: ANN401 - as above
        (answer,) = await self._run([command])
        return answer

    async def probe(self) -> None:
        names = [_PREFIX + tag + b"probe" for tag in _slot_tags()]
        await self._run([("MGET", name) for name in names])
        await self._run([("EVAL", _PROBE_PUT, 1, name) for name in names])

    async def renew(self) -> None:
        await self._client.aclose()
        with _told_apart():
            await self._client.initialize()

    async def close(self) -> None:
        await self._client.aclose()

    async def _run(self, commands: Iterable[tuple[Any, ...]]) -> list[Any]:
        pipeline = self._client.pipeline()
        for command in commands:
            pipeline.execute_command(*command)
        with _told_apart():
            return await pipeline.execute()


@contextmanager
def _told_apart() -> Iterator[None]:
    """What passes once a cluster has settled, from the errors by which `refusals` knows one that will never do."""
    try:
        yield
    except (ClusterError, AskError, RedisClusterException) as error:
        raise RangeUnserved(str(error)) from error.__cause__


def _names(keys: Iterable[bytes]) -> list[bytes]:
    return [_PREFIX + key.hex().encode() for key in keys]


def _tagged(group: int, keys: Iterable[bytes]) -> list[bytes]:
    prefix = _PREFIX + _slot_tags()[group]
    return [prefix + key.hex().encode() for key in keys]


def _by_slot_group(keys: Iterable[bytes]) -> dict[int, list[bytes]]:
    """Keys are hashes, so any of their bytes divides them evenly."""
    groups: dict[int, list[bytes]] = {}
    for key in keys:
        groups.setdefault(key[0] % _SLOT_GROUPS, []).append(key)
    return groups


@cache
def _slot_tags() -> list[bytes]:
    """For each of as many equal ranges of slots, the first number in braces that hashes into it."""
    width = REDIS_CLUSTER_HASH_SLOTS // _SLOT_GROUPS
    tag_of: dict[int, bytes] = {}
    for number in count():
        if len(tag_of) == _SLOT_GROUPS:
            break
        tag = b"{%d}" % number
        tag_of.setdefault(key_slot(tag) // width, tag)
    return [tag_of[group] for group in range(_SLOT_GROUPS)]
