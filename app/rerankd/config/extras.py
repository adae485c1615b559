"""Says how to install an optional dependency. The extras are those of pyproject.toml."""

from rerankd.errors import ConfigError


def missing(package: str, *, extra: str, of: str) -> ConfigError:
    """The error for a package that is not installed; `of` is what needs it."""
    return ConfigError(
        f"{of} needs {package}, which is not installed; run: make install EXTRAS={extra} "
        f"(in an environment of your own: pip install -c constraints.txt -e '.[{extra}]')"
    )
