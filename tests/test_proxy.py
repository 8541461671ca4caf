"""The line that other tests cut: what they see of it has to be true."""

import asyncio
from pathlib import Path

from tests.support.proxy import Proxy


class _HangsUpAtOnce(Proxy):
    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        super()._accept(reader, writer)
        self.hang_up()


async def test_a_line_that_is_hung_up_as_it_comes_is_closed(tmp_path: Path) -> None:
    proxy = _HangsUpAtOnce(tmp_path / "server", tmp_path / "own")
    await proxy.start()
    reader, writer = await asyncio.open_unix_connection(str(proxy.address))
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()
    await proxy.stop()
