"""rerankd: a query and candidate documents go in, the documents come back in order of relevance."""

import os

__version__ = "0.1.0"

# Libraries read these when they are first imported, wherever that is: a service that sees private texts reports to
# nobody unless its operator says so.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
