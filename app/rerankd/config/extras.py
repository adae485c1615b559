"""How to install optional dependencies: the extras of pyproject.toml."""

from rerankd.errors import ConfigError


def install_extra(extra: str) -> str:
    """The command that installs an extra beside an installed rerankd."""
    return f"pip install 'rerankd[{extra}]' (in a checkout: make install EXTRAS={extra})"


def missing(package: str, *, extra: str, of: str) -> ConfigError:
    """The error for a package that is not installed; `of` is what needs it."""
    return ConfigError(f"{of} needs {package}, which is not installed; run: {install_extra(extra)}")
