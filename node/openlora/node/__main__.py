"""The `openlora` command, also as `python -m openlora.node`."""

import sys


def main() -> None:
    """Ctrl-C is exit code 130 from the first moment on, before there is any command to end."""
    try:
        from openlora.node.cli.main import main as command
    except KeyboardInterrupt:
        sys.exit(130)
    command()


if __name__ == "__main__":
    main()
