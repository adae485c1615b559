"""`rerankd keys`: makes an API key, and the table that the service reads instead of it."""

import json
import secrets
import sys
from typing import Annotated, Final

import typer

from rerankd.config.api_keys import ApiKey, checked_key

# A name for those that search logs and repositories for secrets; then 256 bits.
_PREFIX: Final = "rk_"
_KEY_BYTES: Final = 32


def keys(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the log and metrics call the key.")],
    *,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="rerank, metrics or admin; several are allowed. Default: rerank and metrics.", show_default=False
        ),
    ] = None,
    requests_per_s: Annotated[float | None, typer.Option(help="Limit of requests.", show_default=False)] = None,
    tokens_per_min: Annotated[int | None, typer.Option(help="Limit of tokens.", show_default=False)] = None,
    hash_only: Annotated[bool, typer.Option("--hash", help="Hash the key on standard input; make none.")] = False,
) -> None:
    """Make an API key. Its table for RERANKD_API_KEYS_FILE goes to standard output, the key itself to standard error.
    The table holds a hash, from which nobody can compute the key.
    """
    key = sys.stdin.readline().strip() if hash_only else _PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    given = {"name": name, "requests_per_s": requests_per_s, "tokens_per_min": tokens_per_min, "scopes": scope}
    made = checked_key(key, {field: value for field, value in given.items() if value is not None})
    typer.echo("\n".join(["[[key]]", *_lines(made, scopes=scope)]))
    if not hash_only:
        typer.echo(f"the key, shown only now: {key}", err=True)


def _lines(key: ApiKey, *, scopes: list[str] | None) -> list[str]:
    values = {
        "name": key.name,
        "sha256": key.sha256,
        "requests_per_s": key.requests_per_s,
        "tokens_per_min": key.tokens_per_min,
        "scopes": scopes,
    }
    return [
        f"{field} = {json.dumps(value, ensure_ascii=False)}" for field, value in values.items() if value is not None
    ]
