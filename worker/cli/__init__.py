"""The `worker` command. Its commands are listed in `worker.cli.commands`; each family is a module here."""

import sys

from worker.garbage import collect_seldom

INTERRUPTED = 130
"""As typer ends a command that meets Ctrl-C."""


def main() -> None:
    """Run the command line of this process, and end it with the command's exit code."""
    collect_seldom()
    try:
        from worker.cli.commands import make_cli  # noqa: PLC0415 - loading is what there is to gain from
    except KeyboardInterrupt:  # it takes half a second, in which somebody may think better of it
        sys.exit(INTERRUPTED)
    make_cli()()
