"""The command `rerankd`: its commands, in the order of `--help`."""

import sys

from rerankd.cli import (
    adapting,
    anchoring,
    auditing,
    benchmarking,
    calibrating,
    evaluating,
    exporting,
    importing,
    keys,
    listing,
    ranking,
    serving,
    tuning,
)
from rerankd.cli.app import cli, examples, print_problem
from rerankd.errors import ConfigError, RerankError
from rerankd.tools.outputs import explain_os_error

__all__ = ["cli", "main"]

cli.command(
    epilog=examples(
        "rerankd serve --port 8123",
        "rerankd serve BAAI/bge-reranker-v2-m3",
        "rerankd serve ./my-model --name ours --dtype int8",
        "RERANKD_REGISTRY=models.toml RERANKD_API_KEYS_FILE=keys.toml rerankd serve --check --load",
    )
)(serving.serve)
cli.command(
    help=ranking.RANK_HELP,
    epilog=examples(
        "rerankd rank requests.jsonl answers.jsonl",
        "rerankd rank bm25.trec reranked.trec --corpus corpus.jsonl --queries queries.jsonl --depth 100",
    ),
)(ranking.rank)
cli.command(
    "eval",
    epilog=examples(
        "rerankd eval data/my-questions --model minilm-qa --output report.json",
        "rerankd eval data/my-questions --url http://127.0.0.1:8000 --markdown report.md",
    ),
)(evaluating.evaluate)
cli.command(
    epilog=examples(
        "rerankd calibrate data/my-questions --held-out data/others --model minilm-qa --output minilm-qa.json",
        "rerankd calibrate data/my-questions --method isotonic --abstain 0.2",
    )
)(calibrating.calibrate)
cli.command(
    epilog=examples(
        "rerankd anchors corpus.jsonl queries.jsonl --model minilm-qa --output minilm-qa.anchors.npz",
        "rerankd anchors corpus.jsonl queries.jsonl --queries 100",
    )
)(anchoring.anchors)
cli.command(
    epilog=examples(
        "rerankd adapt data/my-corpus models/ours --held-out data/my-questions --minutes 20",
        "rerankd adapt corpus.jsonl models/ours --learn-from endpoint --endpoint http://127.0.0.1:8080/v1 "
        "--endpoint-model qwen3",
        "rerankd adapt data/my-corpus models/ours --learn-from clicks --clicks clicks.jsonl",
    )
)(adapting.adapt)
cli.command(
    epilog=examples(
        "rerankd audit data/my-questions --model minilm-qa --output audit.json",
        "rerankd audit data/my-questions --certify 200 --k 1 --words 3",
    )
)(auditing.audit)
cli.command(
    epilog=examples(
        "rerankd bench http://127.0.0.1:8000 --clients 1,8,32",
        "rerankd bench http://127.0.0.1:8000 --documents 10,100 --utilization 0.5,0.8 --output report.json",
    )
)(benchmarking.bench)
cli.command(epilog=examples("rerankd tune", "rerankd tune minilm-qa --budget-s 300"))(tuning.tune)
cli.command(epilog=examples("rerankd models", "rerankd models --json | jq -r '.[].name'"))(listing.models)
cli.command(
    epilog=examples(
        "rerankd keys search-frontend --requests-per-s 50 >>keys.toml",
        "rerankd keys prometheus --scope metrics >>keys.toml",
    )
)(keys.keys)
cli.command("inspect", epilog=examples("rerankd inspect BAAI/bge-reranker-v2-m3", "rerankd inspect ./my-model --json"))(
    listing.inspect_model
)
cli.command(
    epilog=examples(
        "rerankd export hub:cross-encoder/ms-marco-MiniLM-L6-v2 models/minilm-l6",
        "rerankd export ./my-model models/ours --precision float32 --precision int8",
    )
)(exporting.export)
cli.command(
    "import",
    epilog=examples(
        "rerankd import SmolLM2-135M-Instruct.Q4_1.gguf models/smollm2",
        "rerankd import qwen3-8b-q4_k_m.gguf models/qwen3 --precision float16",
    ),
)(importing.import_model)


def main() -> None:
    """Run the command line. Configuration and file errors print one line and exit with status 2."""
    words = sys.argv[1:]
    if words and "/" in words[0] and not words[0].startswith("-"):  # a model, for `docker run IMAGE MODEL`
        words = ["serve", *words]
    try:
        cli(words)
    except (ConfigError, RerankError) as error:
        print_problem(str(error))
        sys.exit(2)
    except OSError as error:
        if error.errno is None:
            raise
        print_problem(explain_os_error(error))
        sys.exit(2)
