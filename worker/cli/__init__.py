"""The `worker` command. Its commands are listed in `worker.cli.commands`; each family is a module here."""

from worker.garbage import collect_seldom


def main() -> None:
    """Run the command line of this process, and end it with the command's exit code."""
    collect_seldom()
    from worker.cli.commands import make_cli  # noqa: PLC0415 - loading is what there is to gain from

    make_cli()()
