"""What a claim asks of limits: how many jobs of a name may start now, and where those go that may not.

A part of the claim script (worker/claim_script.py), between what it is given and how it takes jobs.
"""

from worker.lease import RENEWALS_PER_LEASE

SUSPECT_WAITS_MS = 1_000
"""When a suspect, or a job that has its start, is looked at again where a limit keeps it from going on."""
LIMIT_STAYS_MS = 30_000
"""How long what a limit has parked is left to who knows that limit, and tells of it with each claim that meets it."""
SETTLES_MS = 1_000
"""Beyond a renewal: after a wipe jobs whose number is limited wait for so long."""

# What is asked of limits comes as `worker.limits.Gate.arguments`. Of one whose key is no sorted set nothing starts, and
# others do.
#
# A job that its name's limit keeps from starting is parked: moved out of the queue, with its score, so that no claim
# meets it again before it may start. A suspect isn't, since only its place in `ratchet:leases` says that it is one; nor
# is a job that has its start, which would wait there for another. They wait for a second, and a place is kept for one
# meanwhile, or what is parked would always be quicker.
LIMITS = (
    """
local gates, gate_of_name = {}, {}
for i = 12 + #KEYS, #ARGV, 5 do
    local name, key, max, count, per = unpack(ARGV, i, i + 4)
    gates[key] = gates[key] or {key = key, max = tonumber(max), count = tonumber(count), per = tonumber(per)}
    gate_of_name[name] = gates[key]
end

-- A wipe takes permits away, and workers restore those of what they run with their next renewal. Until then nobody
-- knows what runs, so no job starts whose number is limited. A wipe is known by a mark that is another than this worker
-- has seen; who has just started has seen none.
local since, opens_at = '', 0
local function look_for_wipe()
    local mark = redis.call('MGET', 'ratchet:since')[1] or ''
    local made, wiped = string.match(mark, '^(%d+)(w?)$')
    if made and tonumber(made) > now then made = nil end  -- a clock that was set back
    since = made or tostring(now)
    if seen ~= '' and seen ~= since then wiped = 'w' end
    if mark ~= since .. (wiped or '') then redis.call('SET', 'ratchet:since', since .. (wiped or '')) end
    if wiped == 'w' then opens_at = since + lease / RENEWALS_PER_LEASE + SETTLES_MS end
end

for _, gate in pairs(gates) do
    if gate.max and since == '' then look_for_wipe() end
end

-- How many jobs may start now: as many as there are permits, and as the rate has left. One place of them may be kept,
-- for a suspect or for who `goes_on`, which has its start.
local function room(gate, suspect, goes_on)
    if not gate.permits then
        gate.permits, gate.tokens = want, want
        gate.kept = redis.call('EXISTS', 'ratchet:kept:' .. gate.key)
        if gate.max then
            local permits = 'ratchet:permits:' .. gate.key
            -- Not in the millisecond in which it ends: the in-progress key still stands, and another job would get it.
            redis.pcall('ZREMRANGEBYSCORE', permits, '-inf', '(' .. now)
            local held = redis.pcall('ZCARD', permits)
            gate.permits = now >= opens_at and type(held) == 'number' and gate.max - held or 0
        end
        if gate.count then
            local starts = 'ratchet:rate:' .. gate.key
            redis.pcall('ZREMRANGEBYSCORE', starts, '-inf', now - gate.per)
            redis.pcall('ZREMRANGEBYSCORE', starts, '(' .. now + gate.per, '+inf')  -- a clock that was set back
            local started = redis.pcall('ZCARD', starts)
            gate.tokens = type(started) == 'number' and gate.count - started or 0
        end
    end
    return math.min(gate.permits, goes_on and want or gate.tokens) - ((suspect or goes_on) and 0 or gate.kept)
end

-- When a job started that goes on, or that was put back before it had begun (worker/settle_script.py).
local function started_at(gate, id)
    if not gate or not gate.count then return nil end
    room(gate)  -- which forgets what a rate counts no more
    local at = redis.pcall('ZSCORE', 'ratchet:rate:' .. gate.key, id .. '/')
    return type(at) == 'string' and at or nil
end

local function start(gate, id, suspect, started)
    gate.permits = gate.permits - 1
    if gate.max then redis.call('ZADD', 'ratchet:permits:' .. gate.key, now + lease, id) end
    if started then
        redis.call('ZREM', 'ratchet:rate:' .. gate.key, id .. '/')
    else
        gate.tokens = gate.tokens - 1
    end
    if gate.count then
        redis.call('ZADD', 'ratchet:rate:' .. gate.key, started or now, id .. '/' .. token)
        redis.call('PEXPIRE', 'ratchet:rate:' .. gate.key, math.ceil(gate.per) + 1)
    end
    if (suspect or started) and gate.kept > 0 then
        redis.call('DEL', 'ratchet:kept:' .. gate.key)
        gate.kept = 0
    end
end

-- When one may start again, as far as that can be known; a permit may be given back sooner.
local function opens(gate)
    if gate.max == 0 then return nil end
    local at = now + 1
    if gate.tokens <= 0 then
        local first = redis.pcall('ZRANGE', 'ratchet:rate:' .. gate.key, 0, 0, 'WITHSCORES')
        at = math.max(at, math.ceil(tonumber(first[2] or 0) + gate.per))
    end
    if gate.kept > 0 then at = math.max(at, now + redis.call('PTTL', 'ratchet:kept:' .. gate.key)) end
    if gate.permits <= 0 then
        local first = redis.pcall('ZRANGE', 'ratchet:permits:' .. gate.key, 0, 0, 'WITHSCORES')
        at = math.max(at, tonumber(first[2] or 0) + 1)
        if now < opens_at then at = math.ceil(opens_at) end
    end
    return at
end

local function gate_for(message)
    if not message or not next(gate_of_name) then return nil end
    local name = string.match(message, '^%s*{%s*"t"%s*:%s*%w+%s*,%s*"f"%s*:%s*"([%w_.:-]+)"')
    if not name and #message <= limit then
        local ok, body = pcall(cjson.decode, message)
        name = ok and type(body) == 'table' and body['f']
    end
    return gate_of_name[name or '']
end

-- A pause says nothing: with its end whoever looks next may have what it held back.
local function tell_of(gate)
    if gate.max == 0 or gate.is_told then return end
    redis.call('SET', 'ratchet:limit:' .. gate.key, 1, 'PX', LIMIT_STAYS_MS)
    gate.is_told = true
end

local function parking(queue, key)
    return 'ratchet:parked:' .. queue .. '/' .. key
end

local function park(queue, source, gate, id, score, message)
    local size = #message
    if string.sub(message, -7) ~= ',"o":1}' then redis.call('PERSIST', 'arq:job:' .. id) end
    redis.pcall('ZREM', 'ratchet:leases:' .. queue, id)
    local place = parking(queue, gate.key)
    local is_told = type(redis.pcall('SADD', 'ratchet:parked:' .. queue, gate.key)) == 'number'
    if not is_told or type(redis.pcall('ZADD', place, 'NX', score, id)) ~= 'number' then
        place = queue  -- where it waits for a second, since one of these keys is somebody else's
        redis.call('ZADD', queue, now + SUSPECT_WAITS_MS, id)
    end
    if source ~= place then redis.call('ZREM', source, id) end
    tell_of(gate)
    waiting[gate.key], parked_bytes = gate, parked_bytes + size
    -- What another's gate had parked stood in nobody's way.
    if source == queue and not unparked[id] then parked = parked + 1 end
    full = parked_bytes > 8 * limit
end

local function postpone(queue, gate, id, suspect)
    redis.call('ZADD', queue, now + SUSPECT_WAITS_MS, id)
    if suspect then redis.pcall('ZADD', 'ratchet:leases:' .. queue, now + SUSPECT_WAITS_MS, id) end
    redis.call('SET', 'ratchet:kept:' .. gate.key, 1, 'PX', 2 * SUSPECT_WAITS_MS)
    waiting[gate.key], parked, gate.kept = gate, parked + 1, 1
end

""".replace("SUSPECT_WAITS_MS", str(SUSPECT_WAITS_MS))
    .replace("LIMIT_STAYS_MS", str(LIMIT_STAYS_MS))
    .replace("SETTLES_MS", str(SETTLES_MS))
    .replace("RENEWALS_PER_LEASE", str(RENEWALS_PER_LEASE))
)
