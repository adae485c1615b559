"""Keys that change while the service runs, and keys beyond ASCII."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from rerankd.api.auth import key_in
from rerankd.config.api_keys import ApiKey, hash_key, read_api_keys
from rerankd.config.settings import Settings
from rerankd.errors import ConfigError, Forbidden, RateLimited, Unauthorized
from rerankd.gateway.administration import read_keys, read_keys_again
from rerankd.gateway.keys import ApiKeys

_ALPHABETS = [
    "voilà",  # its last byte in UTF-8 is a blank in Latin-1
    "Åse-Å",  # and here a control character that counts as one
    "klüger",
    "ключ",
    "κλειδί",
    "鍵",
    "مفتاح",
    "מפתח",
    "キー",
    "🔑",
    "clé-à",
]


def _bearer(key: bytes) -> Sequence[bytes]:
    """A key as it comes out of the headers that servers give to applications."""
    return key_in({"authorization": f"Bearer {key.decode('latin-1')}"})


def test_a_missing_or_wrong_key_is_called_what_it_is() -> None:
    keys = ApiKeys([ApiKey(name="a", sha256=hash_key("right"))], called="admin key")
    with pytest.raises(Unauthorized, match="no admin key, and this request needs one"):
        keys.identify([])
    with pytest.raises(Unauthorized, match="this admin key is not valid"):
        keys.identify([b"wrong"])


@pytest.mark.parametrize("key", _ALPHABETS)
def test_a_key_of_any_alphabet_is_known(key: str) -> None:
    keys = ApiKeys([ApiKey(name="a", sha256=hash_key(key))])
    assert keys.identify(_bearer(key.encode())).name == "a"
    assert keys.identify(key_in({"api-key": f" {key.encode().decode('latin-1')}\t"})).name == "a"


@pytest.mark.parametrize("key", ["voilà", "klüger", "Åse-Å"])
def test_a_client_may_send_a_key_in_latin_1(key: str) -> None:
    keys = ApiKeys([ApiKey(name="a", sha256=hash_key(key))])
    assert keys.identify(_bearer(key.encode("latin-1"))).name == "a"
    with pytest.raises(Unauthorized):
        keys.identify(_bearer(key[:-1].encode("latin-1")))


def test_a_key_that_is_not_utf_8_in_the_environment_is_known_by_its_bytes() -> None:
    as_python_reads_it = b"kl\xfcger".decode("utf-8", "surrogateescape")
    keys = ApiKeys([ApiKey(name="a", sha256=hash_key(as_python_reads_it))])
    assert keys.identify(_bearer(b"kl\xfcger")).name == "a"


def _key(name: str, secret: str, requests_per_s: float | None = None) -> ApiKey:
    return ApiKey(name=name, sha256=sha256(secret.encode()).hexdigest(), requests_per_s=requests_per_s)


async def test_what_a_key_has_used_is_kept_while_its_limits_stay() -> None:
    keys = ApiKeys([_key("a", "one", 1.0), _key("b", "two", 1.0), _key("c", "three")])
    for secret in (b"one", b"two"):
        await keys.identify(_bearer(secret)).allowance.ask(now=100.0)
    changes = keys.replace([_key("a", "fresh", 1.0), _key("b", "two", 5.0), _key("d", "four")])
    assert (changes.added, changes.removed, changes.changed) == (["d"], ["c"], ["a", "b"])
    with pytest.raises(RateLimited):
        await keys.identify(_bearer(b"fresh")).allowance.ask(now=100.0)
    await keys.identify(_bearer(b"two")).allowance.ask(now=100.0)
    for gone in (b"one", b"three"):
        with pytest.raises(Unauthorized):
            keys.identify(_bearer(gone))


async def test_keys_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text('[[key]]\nname = "old"\nkey = "s3cret-one"\n', encoding="utf-8")
    path.chmod(0o600)
    settings = Settings(api_keys_file=path)
    keys = ApiKeys(read_api_keys(settings.api_keys, settings.api_keys_file))
    path.write_text('[[key]]\nname = "new"\nkey = "s3cret-two"\n', encoding="utf-8")
    changes = await read_keys_again(settings, keys, None)
    assert keys.identify(_bearer(b"s3cret-two")).name == "new"
    assert (changes.added, changes.removed, changes.changed) == (["new"], ["old"], [])


def test_a_key_is_for_its_scopes_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(
        '[[key]]\nname = "usual"\nkey = "one"\n'
        '[[key]]\nname = "prometheus"\nkey = "two"\nscopes = ["metrics"]\n'
        '[[key]]\nname = "operator"\nkey = "three"\nscopes = ["admin"]\n',
        encoding="utf-8",
    )
    clients, admins = map(ApiKeys, read_keys(Settings(api_keys_file=path)))
    allowed = {
        (key, scope)
        for key in (b"one", b"two", b"three")
        for scope, keys in (("rerank", clients), ("metrics", clients), ("admin", admins))
        if _is_allowed(keys, key, scope)
    }
    assert allowed == {(b"one", "rerank"), (b"one", "metrics"), (b"two", "metrics"), (b"three", "admin")}
    with pytest.raises(Forbidden, match="this API key has no scope 'rerank'"):
        clients.identify([b"three"])


def _is_allowed(keys: ApiKeys, key: bytes, scope: Any) -> bool:
    try:
        return bool(keys.identify([key], scope=scope).name)
    except (Unauthorized, Forbidden):
        return False


@pytest.mark.parametrize("broken", ["", "[[key", '[[key]]\nname = "a"\nkey = ""\n'])
async def test_a_broken_file_changes_no_key(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(broken, encoding="utf-8")
    keys = ApiKeys([_key("a", "one")])
    with pytest.raises(ConfigError):
        await read_keys_again(Settings(api_keys_file=path), keys, None)
    assert keys.identify(_bearer(b"one")).name == "a"


async def test_admin_keys_change_together_with_the_clients_or_neither_does(tmp_path: Path) -> None:
    clients, admins = tmp_path / "keys.toml", tmp_path / "admins.toml"
    clients.write_text('[[key]]\nname = "client"\nkey = "one"\n', encoding="utf-8")
    admins.write_text('[[key]]\nname = "operator"\nkey = "two"\n', encoding="utf-8")
    settings = Settings(api_keys_file=clients, admin_keys_file=admins)
    of_clients, of_admins = ApiKeys([_key("a", "old")]), ApiKeys([_key("b", "old")])
    changes = await read_keys_again(settings, of_clients, of_admins)
    assert changes.added == ["client", "operator"]
    assert of_clients.identify(_bearer(b"one")).name == "client"
    assert of_admins.identify(_bearer(b"two"), scope="admin").name == "operator"
    with pytest.raises(Unauthorized):
        of_admins.identify(_bearer(b"one"), scope="admin")
    clients.write_text('[[key]]\nname = "client"\nkey = "two"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="is an API key too"):
        await read_keys_again(settings, of_clients, of_admins)
    assert of_clients.identify(_bearer(b"one")).name == "client", "a client with an admin's key is refused"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('name = "a"\nkey = "client"', "is an API key too"),
        ('name = "a"\nkey = "x"\ntokens_per_min = 5', "tokens_per_min"),
        ('name = "a"\nkey = "x"\n[[key]]\nname = "b"\nkey = "x"', "is the same as"),
    ],
)
def test_an_admin_key_that_protects_less_than_it_seems_to_is_refused(
    tmp_path: Path, content: str, problem: str
) -> None:
    path = tmp_path / "admins.toml"
    path.write_text(f"[[key]]\n{content}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=problem):
        read_keys(Settings(api_keys=("client",), admin_keys_file=path))
