"""The table of commands, and how one is found, run and ended. A command's module is imported when it is asked for."""

import sys
import traceback
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from worker.cli.endings import ending

# Where each command's function is, in the order of `worker --help`. `worker run` must start where the embedded servers
# of `dev` and `demo` aren't installed, so what it doesn't need isn't imported.
COMMANDS = {
    "run": "worker.cli.run",
    "dev": "worker.cli.dev",
    "demo": "worker.cli.demo",
    "migrate": "worker.cli.migrate",
    "enqueue": "worker.cli.enqueue",
    "runs": "worker.cli.runs",
    "show": "worker.cli.runs",
    "replay": "worker.cli.operations",
    "cancel": "worker.cli.operations",
    "discard": "worker.cli.operations",
    "pause": "worker.cli.pause",
    "resume": "worker.cli.pause",
    "status": "worker.cli.status",
    "schema": "worker.cli.schema",
    "doctor": "worker.cli.doctor",
}


class Command(TyperCommand):
    """A command that ends with an exit code and one sentence on stderr where it fails."""

    def invoke(self, ctx: Any) -> Any:
        """Run it. Ends the process with 1, 2 or 3 for an error."""
        debug: bool = ctx.params.pop("debug")
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort):
            raise
        except BrokenPipeError:  # of standard output: its reader has seen enough, and typer ends without a word
            raise
        except Exception as error:  # noqa: BLE001 - every error ends as a sentence
            if debug:
                traceback.print_exc()
            code, sentence = ending(error)
            typer.echo(f"Error: {sentence}", err=True)
            raise typer.Exit(code) from None


class Commands(TyperGroup):
    """All commands, none of them imported yet."""

    def list_commands(self, ctx: object) -> list[str]:  # noqa: ARG002 - typer's signature
        """Their names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: object, cmd_name: str) -> Any:  # noqa: ARG002 - typer's signature
        """Import the one that is called `cmd_name`; None where there is none."""
        if cmd_name not in COMMANDS:
            return None
        function = getattr(import_module(COMMANDS[cmd_name]), cmd_name)
        command = _made(cmd_name, function)
        command.params += _made("options", _options).params
        return command

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raises BadParameter for an argument that is no UTF-8, and doesn't quote it: it may be a payload."""
        for number, argument in enumerate(args, start=1):
            if any("\ud800" <= sign <= "\udfff" for sign in argument):
                raise typer.BadParameter(f"argument {number} is no UTF-8; give it in UTF-8", ctx)
        return super().parse_args(ctx, args)

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command line and end the process; wrong usage is one sentence too, with 2."""
        try:
            code = super().main(*args, **{**options, "standalone_mode": False})
        except typer.TyperException as error:
            text, context = error.format_message(), getattr(error, "ctx", None)
            if text:
                path = context.command_path if context else "worker"
                typer.echo(f"Error: {text.rstrip('.')}; see {path} --help.", err=True)
            code = error.exit_code
        except typer.Abort:
            code = 1
        sys.exit(code or 0)


def make_cli() -> typer.Typer:
    """The whole command line."""
    return typer.Typer(
        name="worker", cls=Commands, callback=_worker, no_args_is_help=True, add_completion=False,
        pretty_exceptions_enable=False, rich_markup_mode="markdown",
    )  # fmt: skip


def _tell_version(asked: bool) -> None:  # noqa: FBT001 - typer gives it by position
    if asked:
        typer.echo(f"ratchet {version('ratchet')}")
        raise typer.Exit


def _worker(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Ratchet: a job enqueued in a transaction is applied exactly once.

    Settings come from the environment: DATABASE_URL, REDIS_URL, SENTRY_DSN, and WORKER_… (see docs/deployment.md).

    Exit codes: 0 done, 1 the job or check failed, 2 wrong usage or settings, 3 a server can't be reached or refuses us,
    130 Ctrl-C.
    """


def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """The options of every command. Read by `Command`."""


def _made(name: str, function: Any) -> Any:
    single = typer.Typer(add_completion=False, rich_markup_mode="markdown")
    single.command(name, cls=Command)(function)
    return get_command(single)
