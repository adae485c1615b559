"""rerankd: a query and candidate documents go in, the documents come back in order of relevance."""

__version__ = "0.1.0"  # the only place: pyproject.toml reads it
