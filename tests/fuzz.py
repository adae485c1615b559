"""Sends generated requests for the whole OpenAPI document to a running server: `python -m tests.fuzz`, or `make fuzz`.

What is sent fits the document, breaks it, or lies at its edges. Whatever it is: no answer may be a 5xx, and each must
be one that the document describes. Arguments go on to `schemathesis run`.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.registry_files import write_registry
from tests.servers import Server, rerankd_server, wait_until_ready
from tests.tiny_models import TINY_BERT

# Clients send numbers as strings and fields of other services: dialects take both, so whether a body that breaks the
# schema is refused is no question here.
_CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,unsupported_method"
)


def fuzz(server: Server, arguments: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Run `schemathesis run` against a server; its exit code is not 0 where something was found."""
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        "run",
        f"{server.url}/openapi.json",
        "--checks",
        _CHECKS,
    ]
    return subprocess.run(
        [*command, "--no-color", *arguments], capture_output=True, text=True, timeout=3600, check=False
    )


def main() -> None:
    with TemporaryDirectory() as folder:
        registry = write_registry(Path(folder), [{"name": "tiny", "path": TINY_BERT}])
        with rerankd_server(Path(folder), registry, RERANKD_JOBS_FOLDER=f"{folder}/jobs") as server:
            wait_until_ready(server)
            done = fuzz(server, sys.argv[1:])
    sys.stdout.write(done.stdout + done.stderr)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
