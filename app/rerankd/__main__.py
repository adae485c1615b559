"""Where a process of the command `rerankd` begins, also as `python -m rerankd`."""

from rerankd.config.settings import disable_telemetry


def main() -> None:
    """Prepare the process, then run the command line."""
    disable_telemetry()
    from rerankd import cli  # noqa: PLC0415 - libraries read the environment when they are imported

    cli.main()


if __name__ == "__main__":
    main()
