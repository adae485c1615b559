"""Simulates users with Locust: each ranks new documents, waits for a moment, and repeats.

    pip install locust
    locust -f loadtest/locustfile.py --host http://127.0.0.1:8000 --documents 30
    locust -f loadtest/locustfile.py --host http://127.0.0.1:8000 --headless --users 32 --spawn-rate 8 --run-time 1m

Run it where `rerankd` can be imported: where it is installed, or with `app/` in PYTHONPATH. An answer that lacks a
document counts as a failure.
"""

import time
from argparse import ArgumentParser, Namespace

from locust import FastHttpUser, between, events, task
from locust.env import Environment

from rerankd.tools.benchmark.workload import Shape, Workload


@events.init_command_line_parser.add_listener
def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--documents", default="30", help="documents a request, or a mix as 10+30+100")
    parser.add_argument("--rerank-path", default="/v2/rerank", help="the rerank endpoint")
    parser.add_argument("--api-key", default="", is_secret=True, env_var="RERANKD_BENCH_API_KEY", help="a bearer token")


class Searcher(FastHttpUser):
    """Sends a request, waits between half a second and two, and repeats."""

    wait_time = between(0.5, 2.0)

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        options: Namespace = environment.parsed_options
        self._path = options.rerank_path
        self._bodies = Workload(Shape.parse(options.documents), seed=time.time_ns())
        self._headers = {"Content-Type": "application/json"}
        if options.api_key:
            self._headers["Authorization"] = f"Bearer {options.api_key}"

    @task
    def rank(self) -> None:
        body = next(self._bodies)
        name = f"{self._path} ({body.documents} documents)"
        with self.client.post(
            self._path, data=body.content, headers=self._headers, name=name, catch_response=True
        ) as answer:
            if answer.status_code == 200 and len(answer.json()["results"]) != body.documents:
                answer.failure("the answer lacks documents")
