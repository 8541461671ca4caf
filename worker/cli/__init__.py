"""The `worker` command. Its commands are listed in `worker.cli.commands`; each family is a module here."""

from worker.cli.commands import make_cli


def main() -> None:
    """Run the command line of this process, and end it with the command's exit code."""
    make_cli()()
