"""PostgreSQL on an address, and a standby of it."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from worker.dev import EmbeddedPostgres, EmbeddedServerError
from worker.dev.server import free_port
from worker.dev.user import group_of

HBA = "local all all trust\nlocal replication all trust\nhost all all 127.0.0.1/32 trust\n"


class NetworkedPostgres(EmbeddedPostgres):
    """One that listens on an address as well. Its data is safe from a crash of the server, not of the machine."""

    def __init__(
        self,
        address: str = "127.0.0.1",
        *,
        options: Mapping[str, str] | None = None,
        installed: Path | None = None,
        hba: str = HBA,
    ) -> None:
        self.address, self.port = address, free_port()
        given = {"listen_addresses": address, "port": str(self.port), **(options or {})}
        super().__init__(durable=False, options=given, installed=installed)
        hba_file = self.own_file("hba", hba)
        self._options["hba_file"] = str(hba_file)

    def own_file(self, name: str, content: str) -> Path:
        """A file that the server's user alone may read."""
        path = self._server.directory / name
        path.write_text(content)
        path.chmod(0o600)
        if self._user is not None:
            shutil.chown(path, self._user)
        return path

    def database_url(self, database: str) -> str:
        return f"{super().database_url(database)}&port={self.port}"

    @property
    def location(self) -> str:
        """host:port, as a URL has it."""
        return f"{self.address}:{self.port}"

    def standby(self) -> "Standby":
        """A standby of this server, which streams from it and hasn't been started yet."""
        return Standby.of(self)


class Standby(NetworkedPostgres):
    """Streams from another until it is promoted."""

    @classmethod
    def of(cls, primary: NetworkedPostgres) -> Self:
        source = f"host={primary._socket_dir} port={primary.port} user=postgres application_name=standby"
        standby = cls(options={"primary_conninfo": source})
        data, user = standby._data_dir, standby._user
        data.chmod(0o700)
        done = subprocess.run(
            [str(standby._server_bin / "pg_basebackup"), "-d", source, "-D", str(data), "-c", "fast", "--no-sync"],
            capture_output=True, text=True, check=False, cwd="/", env={"PATH": os.environ["PATH"], "HOME": "/"},
            user=user, group=group_of(user), extra_groups=None if user is None else (),
        )  # fmt: skip
        if done.returncode != 0:
            standby.close()
            raise EmbeddedServerError(f"pg_basebackup failed: {done.stderr.strip()}")
        signal_file = data / "standby.signal"
        signal_file.touch()
        if user is not None:
            shutil.chown(signal_file, user)
        return standby

    def promote(self) -> None:
        """Make it a primary, and return when it is one."""
        assert self.psql("select pg_promote()") == "t"

    def _accepts_connections(self) -> bool:
        try:
            lines = (self._data_dir / "postmaster.pid").read_text().split()
        except OSError:
            return False
        return lines[:1] == [str(self.pid)] and lines[-1] in {"standby", "ready"}
