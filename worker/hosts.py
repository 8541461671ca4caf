"""A PostgreSQL URL of several hosts, taken apart, so that each gets its share of the time to connect.

asyncpg tries several hosts too, within one timeout for all of them: a first host that is cut off, and doesn't even
refuse, takes all of it, and the one that was promoted is never asked.
"""

import os
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit


def each_host(url: str) -> list[str]:
    """`url` once for each host that it names, in its order. Raises ValueError for one that can't be read."""
    parts = urlsplit(url)
    login, at, netloc = parts.netloc.rpartition("@")
    if "," in netloc:
        return [urlunsplit(parts._replace(netloc=login + at + host)) for host in netloc.split(",")]
    query = dict(parse_qsl(parts.query))
    hosts = query.get("host", "").split(",")
    if len(hosts) == 1:
        return [url]
    ports = query.get("port", "").split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    head = url.partition("?")[0]
    return [
        f"{head}?{urlencode({**query, 'host': host, 'port': port} if port else {**query, 'host': host})}"
        for host, port in zip(hosts, ports, strict=True)
    ]


def names_attributes(url: str) -> bool:
    """Whether it says which kind of server is wanted (`target_session_attrs`)."""
    return "target_session_attrs" in dict(parse_qsl(urlsplit(url).query))


def certificates_fault(url: str) -> str | None:
    """What is wrong with the files of certificates that it names, or should. None: nothing that shows from here."""
    query = dict(parse_qsl(urlsplit(url).query))
    missing = next((name for name in FILES if name in query and not Path(query[name]).exists()), None)
    if missing:
        return f"its {missing} names a file that isn't there; correct it"
    is_checked = query.get("sslmode") in {"verify-ca", "verify-full"}
    has_root = "sslrootcert" in query or "PGSSLROOTCERT" in os.environ or HOME_ROOT.expanduser().exists()
    if is_checked and not has_root:
        return f"its sslmode is {query['sslmode']}, and it names no certificates to check with; add sslrootcert=FILE"
    return None


FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
HOME_ROOT = Path("~/.postgresql/root.crt")
"""Where libpq and asyncpg look for them by themselves."""
