"""Which URLs a job may write to: those below a prefix that whoever runs the worker has allowed. Pure.

No text of an error holds a URL: it could have a password in it.
"""

import re
from collections.abc import Collection

from worker.errors import Permanent

LOCAL = ("file", "local")
_SCHEME = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]{0,30})://(?P<rest>.*)", re.DOTALL)
_SEGMENT = re.compile(r"(?!\.{1,2}\Z)[\w .,~+=()-]+")
"""No dots alone, and nothing that a file system may read as more than a name: no %, ?, #, *, @, : or backslash."""


def is_url(path: str) -> bool:
    return "://" in path or "::" in path


def read_prefixes(text: str) -> tuple[str, ...]:
    """Prefixes from a text with commas, each ending in a slash. Raises ValueError for one that can't be."""
    return tuple(_prefix(part.strip()) for part in text.split(",") if part.strip())


def _prefix(text: str) -> str:
    match = _SCHEME.fullmatch(text)
    if match is None:
        raise ValueError("give each prefix as scheme://bucket/folder/")
    if match["scheme"] in LOCAL:
        raise ValueError("files of this machine are those below WORKER_FILES_DIR; set that")
    host, _, folders = match["rest"].rstrip("/").partition("/")
    if not re.fullmatch(r"[\w.-]+(:\d{1,5})?", host) or not _are_names(folders):
        raise ValueError(
            f"a prefix with {match['scheme']}:// has to name a bucket or folder, without user, password, query or dots"
        )
    return f"{text.rstrip('/')}/"


def allowed(url: str, prefixes: Collection[str]) -> str:
    """`url`, if it is below one of `prefixes`. Raises Permanent for any other."""
    match = _SCHEME.fullmatch(url)
    if match is None:
        raise Permanent("The URL of a file must be scheme://…, without a chain of protocols (::); give a plain one.")
    scheme = match["scheme"]
    if "@" in match["rest"].partition("/")[0]:
        raise Permanent(f"The {scheme}:// URL has a user in it; leave that to the worker's own settings.")
    prefix = next((prefix for prefix in prefixes if url.startswith(prefix)), None)
    if prefix is None:
        raise Permanent(
            f"The {scheme}:// URL isn't below a prefix of WORKER_FILES_URLS; give one that is, or allow it."
        )
    if not _are_names(url.removeprefix(prefix)) or url == prefix:
        raise Permanent(
            f"The {scheme}:// URL isn't plain names below its prefix (no '..', '//', '%', '?', '#', '*', ':' or '@'); "
            "give the path of a file."
        )
    return url


def local_path(url: str) -> str | None:
    """The absolute path that a file:// URL means; None for any other. Raises Permanent for another machine's."""
    if not url.startswith("file://"):
        return None
    path = url.removeprefix("file://")
    if not path.startswith("/") or "::" in path:
        raise Permanent("A file:// URL must be file:///path, without a host and without ::; give an absolute path.")
    return path


def _are_names(path: str) -> bool:
    return not path or all(_SEGMENT.fullmatch(name) for name in path.split("/"))
