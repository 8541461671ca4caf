"""Filling arq's queue from inside Redis: a million jobs in seconds, byte for byte as `Queue.enqueue` writes them."""

import time

from bench.app import JOBS
from bench.servers import Servers
from worker.wire import Message, encode

PLACE = 987654321
"""Stands in the template for the job's number."""
CHUNK = 20_000
"""Jobs a script call."""

FILL = """
local from, upto, head, tail, now = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4], tonumber(ARGV[5])
for n = from, upto do
    local id = string.format('01900000-0000-7000-8000-%012x', n)
    redis.call('SET', 'arq:job:' .. id, head .. string.format('%d', n) .. tail)
    redis.call('ZADD', KEYS[1], now, id)
end
"""


def fill(servers: Servers, job: str, jobs: int) -> None:
    """Queue jobs 0 … jobs - 1, due now."""
    now_ms = time.time_ns() // 1_000_000
    kind = JOBS[job]
    message = encode(Message(kind.job_name, kind(n=PLACE).to_payload(), now_ms))
    head, tail = message.split(str(PLACE).encode())
    script = servers.redis.register_script(FILL)
    for first in range(0, jobs, CHUNK):
        script(keys=["arq:queue"], args=[first, min(first + CHUNK, jobs) - 1, head, tail, now_ms])
