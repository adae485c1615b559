"""Runs `rerankd bench` against its own server: the shipped model on a free loopback port, without a cache.

python -m loadtest [options of `rerankd bench`, without the URL]
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from loadtest.servers import rerankd_server, wait_until_ready
from rerankd.config.settings import SHIPPED_REGISTRY


def main() -> int:
    with (
        tempfile.TemporaryDirectory() as name,
        rerankd_server(
            Path(name), SHIPPED_REGISTRY, RERANKD_CACHE_URL="none://", RERANKD_LOG_LEVEL="WARNING"
        ) as server,
    ):
        wait_until_ready(server)
        return subprocess.call([sys.executable, "-m", "rerankd", "bench", server.url, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
