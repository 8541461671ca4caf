"""Finds `module:attribute` as Python finds modules, the current folder first."""

import os
import sys
from importlib import import_module

from pydantic import ValidationError

from worker.app import App
from worker.cli.endings import WRONG, Refusal


def load_app(name: str) -> App:
    """The App called `name`, as `module:attribute`. Raises Refusal where there is none."""
    app = load(name, "WORKER_APP")
    if not isinstance(app, App):
        raise Refusal(f"WORKER_APP is {name}, which is no App but {type(app).__name__}; name a worker.app.App.", WRONG)
    return app


def load(name: str, setting: str) -> object:
    """What `name` stands for; `setting` says where it came from. Raises Refusal where it can't be had."""
    module_name, _, attribute = name.partition(":")
    folder = os.getcwd()  # noqa: PTH109 - sys.path holds texts
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise Refusal(
                f"{setting} is {name}, and {module_name} needs the module {error.name}, which isn't there; install it.",
                WRONG,
            ) from error
        raise Refusal(
            f"{setting} is {name}, but no module {error.name} is in {folder} or installed; "
            "run the command in your project's folder, or correct the name.",
            WRONG,
        ) from error
    except Exception as error:
        raise Refusal(
            f"{setting} is {name}, but {module_name} can't be imported ({_told(error)}); "
            "correct it, or run this again with --debug to see where.",
            WRONG,
        ) from error
    if not hasattr(module, attribute):
        raise Refusal(f"{setting} is {name}, but {module_name} has no {attribute}; correct the name.", WRONG)
    found: object = getattr(module, attribute)
    return found


def _told(error: Exception) -> str:
    """Its type and text; pydantic's text quotes what it was given, which may be a URL with a password."""
    kind = type(error).__name__
    return kind if isinstance(error, ValidationError) else f"{kind}: {error}"
