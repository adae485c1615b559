"""Every client through every case, against real servers: `python -m tests.conformance.suite` writes docs/clients.md."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tests.conformance import cases
from tests.conformance.install import ENVIRONMENTS, NODE_ENVIRONMENT, STOCK_ENVIRONMENT, installed
from tests.conformance.protocol import Target
from tests.conformance.run import busy
from tests.registry_files import write_registry
from tests.servers import rerankd_server, wait_until_ready

_ROOT: Final = Path(__file__).resolve().parents[2]
_MODEL: Final = "minilm-qa"
_KEY: Final = "right-key"
_TIMEOUT_S: Final = 300
PAGE: Final = _ROOT / "docs" / "clients.md"
_TABLE_BEGINS: Final = "<!-- the table below is written by `make conformance` -->\n"
_TABLE_ENDS: Final = "<!-- end of the table -->\n"
_SIGNS: Final = {"ok": "✓", "silent": "(✓)", "n/a": "-", "failed": "✗"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a client did in a case: ok, silent (its own exception, but without our message), n/a or failed; `detail`
    says why it is not ok.
    """

    client: str
    version: str
    case: str
    outcome: str
    detail: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Servers:
    idle: Target
    busy: Target


@contextmanager
def running_servers(folder: Path) -> Iterator[Servers]:
    """One server that answers, and one that lets nothing wait, so that it is overloaded as soon as it has work."""
    settings = {"engine_options": {"file": "model.int8.onnx"}, "path": _ROOT / "models" / _MODEL}
    # LiteLLM puts its provider's name before the model's.
    model = {"name": _MODEL, "aliases": [f"fireworks/{_MODEL}"], **settings}
    registry = write_registry(folder, [model])
    with (
        rerankd_server(folder, registry, RERANKD_API_KEYS=_KEY) as idle,
        rerankd_server(
            folder, registry, RERANKD_API_KEYS=_KEY, RERANKD_MAX_WAITING_TOKENS="1", RERANKD_CACHE_URL="none://"
        ) as overloaded,
    ):
        for server in (idle, overloaded):
            wait_until_ready(server)
        yield Servers(Target(idle.url, _KEY, _MODEL), Target(overloaded.url, _KEY, _MODEL))


def outcomes(environment: str, servers: Servers) -> list[Outcome]:
    """How the clients of one environment do.

    Raises:
        InstallFailed: the environment cannot be installed.
    """
    folder = installed(environment)
    if environment == NODE_ENVIRONMENT:
        quiet = _node(folder, servers.idle, [case for case in cases.CASES if case != "overload"])
        with busy(servers.busy):
            return quiet + _node(folder, servers.busy, ["overload"])
    python = sys.executable if environment == STOCK_ENVIRONMENT else str(folder / "bin" / "python")
    command = [python, "-W", "ignore", "-m", "tests.conformance.run", environment]
    return _answered(command, {"idle": servers.idle, "busy": servers.busy})


def _node(folder: Path, target: Target, wanted: Sequence[str]) -> list[Outcome]:
    shared = {
        "query": cases.QUERY,
        "documents": cases.DOCUMENTS,
        "right": cases.RIGHT,
        "strange": cases.STRANGE,
    }
    script = str(Path(__file__).with_name("node.mjs"))
    return _answered(
        [str(folder / "bin" / "node"), script, str(folder)], {"target": target, "wanted": wanted, "cases": shared}
    )


def _answered(command: Sequence[str], question: object) -> list[Outcome]:
    answer = subprocess.run(
        command,
        input=json.dumps(question),
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        cwd=_ROOT,
        check=False,
    )
    if answer.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {answer.stderr[-2000:]}")
    # Some libraries print as well.
    return [Outcome(**json.loads(line)) for line in answer.stdout.splitlines() if line.startswith('{"client"')]


def rows(found: Sequence[Outcome]) -> list[str]:
    """One line of the table for each client, in the order in which they came."""
    lines = []
    for client, version in dict.fromkeys((outcome.client, outcome.version) for outcome in found):
        by_case = {outcome.case: outcome.outcome for outcome in found if outcome.client == client}
        signs = " | ".join(_SIGNS[by_case[case]] for case in cases.CASES)
        lines.append(f"| {client} | {version} | {signs} |")
    return lines


def notes(found: Sequence[Outcome]) -> list[str]:
    """Why what is not there is not there."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for outcome in found:
        if outcome.outcome in {"n/a", "silent"}:
            reasons.setdefault((outcome.case, outcome.detail), []).append(outcome.client)
    return [
        f"- *{case}*, {', '.join(clients)}: {reason}."
        for (case, reason), clients in sorted(reasons.items(), key=lambda item: list(cases.CASES).index(item[0][0]))
    ]


def _page(found: Sequence[Outcome]) -> str:
    before, rest = PAGE.read_text(encoding="utf-8").split(_TABLE_BEGINS)
    _, after = rest.split(_TABLE_ENDS)
    head = [f"| client | version | {' | '.join(cases.CASES)} |", "|---|---" + "|---" * len(cases.CASES) + "|"]
    table = "\n".join([*head, *rows(found), "", *notes(found)])
    return f"{before}{_TABLE_BEGINS}\n{table}\n\n{_TABLE_ENDS}{after}"


def main() -> None:
    """Run everything, write the page, and fail if a client failed."""
    found: list[Outcome] = []
    with TemporaryDirectory() as folder, running_servers(Path(folder)) as servers:
        for environment in ENVIRONMENTS:
            found += outcomes(environment, servers)
    PAGE.write_text(_page(found), encoding="utf-8")
    failed = [outcome for outcome in found if outcome.outcome == "failed"]
    for outcome in failed:
        sys.stderr.write(f"{outcome.client}, {outcome.case}: {outcome.detail}\n")
    sys.stdout.write(f"{len(found)} cases, {len(failed)} failed; {PAGE}\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
