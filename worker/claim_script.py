"""The script that claims due jobs: whole or not at all, and as many as there are free slots.

What can be asked or told of many jobs at once is, since each redis.call costs a microsecond.
"""

from worker.lease import RENEWALS_PER_LEASE

PAGE, PAGES = 100, 20
"""A claim looks past so many jobs of a queue that somebody else holds, in so many steps; the next goes on behind."""
STEP = 16
"""Messages that are read at once, so that at most so many large ones are read in vain."""
SUSPECT_WAITS_MS = 1_000
"""When a suspect, or a job that has its start, is looked at again where a limit keeps it from going on."""
LIMIT_STAYS_MS = 30_000
"""How long what a limit has parked is left to who knows that limit, and tells of it with each claim that meets it."""
SETTLES_MS = 1_000
"""Beyond a renewal: after a wipe jobs whose number is limited wait for so long."""
OTHERS_FIRST_MS = 1_000
"""For which a job that was put back since its function isn't known is left to others. Stock arq looks each 500 ms."""

# Now is Redis's own clock, never a worker's. A job that another worker holds (a stock arq worker, say) is passed over
# and its score never moved. A large message comes alone, so that a batch of them can't fill the memory. A key of the
# wrong type must not keep other jobs from being claimed: MGET takes it for a missing one, the rest goes through pcall,
# whose error is an empty list to ipairs. Of a limit whose key is no sorted set nothing starts, and others do.
#
# A message from the outbox never expires; another's expiry is taken away, or it could run out while the job runs or
# is parked. Plain arq functions keep it: arq promises that such a job is neither started nor tried again after it.
#
# Jobs whose lease ran out come first: in the queue they stand behind everything that was due before the lease's end,
# and with a long backlog a killed worker's jobs would wait for all of it. They are suspects: whoever had them neither
# ended them nor gave them back, so one of them may have killed it (worker/suspects). One that isn't due any more was
# put back, or enqueued anew, by somebody who knows nothing of leases.
#
# A job that its name's limit keeps from starting is parked: moved out of the queue, with its score, so that no claim
# meets it again before it may start. A suspect isn't, since only its place in `ratchet:leases` says that it is one: it
# waits for a second, and a place is kept for it meanwhile, or what is parked would always be quicker. Nor is one that
# has its start, which would wait there for another.
# What is asked of limits comes as `worker.limits.Gate.arguments`.
#
# A Redis at its maxmemory refuses what may need more, in a script up to its first write. So the first is one that needs
# none, here, where jobs are settled, and where leases are renewed: or what lies in a full Redis could never leave it.
CLAIM = (
    """
redis.call('DEL', 'ratchet:room')
local want, lease, token, limit = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local page, pages, step, idle_ms = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]
local may_expire, known, seen = ARGV[9] == '1', ARGV[10], ARGV[11]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ids, scores, messages, failures, aborted, limited, suspects, rated = {}, {}, {}, {}, {}, {}, {}, {}
local counts, passed, bytes, full, more = {}, {}, 0, false, false
local parked, parked_bytes, waiting, unparked = 0, 0, {}, {}
local are_aborts = redis.pcall('ZCARD', 'arq:abort') ~= 0

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
    since = made or tostring(now)
    if seen ~= '' and seen ~= since then wiped = 'w' end
    if mark ~= since .. (wiped or '') then redis.call('SET', 'ratchet:since', since .. (wiped or '')) end
    if wiped == 'w' then opens_at = since + lease / RENEWALS_PER_LEASE + SETTLES_MS end
end

for _, gate in pairs(gates) do
    if gate.max and since == '' then look_for_wipe() end
end

-- How many jobs may start now: as many as there are permits, and as the rate has left. One of them may be a suspect's.
-- Who `goes_on` has its start.
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
    return math.min(gate.permits, goes_on and want or gate.tokens) - (suspect and 0 or gate.kept)
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
    if suspect and gate.kept > 0 then
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
    redis.call('ZREM', source, id)
    redis.pcall('ZREM', 'ratchet:leases:' .. queue, id)
    redis.call('ZADD', parking(queue, gate.key), 'NX', score, id)
    redis.call('SADD', 'ratchet:parked:' .. queue, gate.key)
    tell_of(gate)
    waiting[gate.key], parked_bytes = gate, parked_bytes + size
    -- What another's gate had parked stood in nobody's way.
    if source == queue and not unparked[id] then parked = parked + 1 end
    full = parked_bytes > 8 * limit
end

local function postpone(queue, gate, id, suspect)
    redis.call('ZADD', queue, now + SUSPECT_WAITS_MS, id)
            redis.pcall('ZREMRANGEBYSCORE', permits, '-inf', '(' .. now)
            local held = redis.pcall('ZCARD', permits)
            gate.permits = now >= opens_at and type(held) == 'number' and gate.max - held or 0
end

-- Who puts back a job that it can't run gives it half a millisecond, which no time has else. Workers that wake when it
-- is due would take it each time before a stock arq worker, which may be the only one that knows it, has looked.
local function is_for_others(score)
    return string.sub(score, -2) == '.5' and tonumber(score) + OTHERS_FIRST_MS > now
end

local function texts(prefix, some)
    local keys = {}
    for i, id in ipairs(some) do keys[i] = prefix .. id end
    return redis.call('MGET', unpack(keys))
end

local function in_pairs(flat)
    local found, scored = {}, {}
    for i = 1, #flat, 2 do found[#found + 1], scored[#found + 1] = flat[i], flat[i + 1] end
    return found, scored
end

local function choose(queue, source, free, scored, suspect)
    local chosen, at = {}, 1
    while at <= #free and not full do
        local part = {}
        for i = at, math.min(#free, at + step - 1, at + want - #ids - 1) do part[#part + 1] = free[i] end
        for i, message in ipairs(texts('arq:job:', part)) do
            local size, gate = message and #message or 0, gate_for(message)
            local started = started_at(gate, part[i])
            if source ~= queue and not message then
                redis.call('ZREM', source, part[i])
            elseif gate and room(gate, suspect, started) <= 0 and (suspect or started) then
                postpone(queue, gate, part[i], suspect)
            elseif gate and room(gate, suspect, started) <= 0 then
                park(queue, source, gate, part[i], scored[at], message)
            else
                full = #ids > 0 and bytes + size > limit
                if full then break end
                if gate then start(gate, part[i], suspect, started) end
                bytes = bytes + size
                chosen[#chosen + 1] = part[i]
                ids[#ids + 1], scores[#ids + 1], messages[#ids + 1] = part[i], scored[at], message
                limited[#ids] = gate and gate.max and gate.key or ''
                rated[#ids] = gate and gate.count and gate.key or ''
            end
            at = at + 1
            if full then break end
        end
        full = full or #ids >= want
    end
    return chosen
end

-- Takes what nobody holds out of `found` in `source`, the queue or a parking of it. Returns how many it passed over.
local function take(queue, source, found, scored, suspect)
    local free, due, over = {}, {}, 0
    for i, holder in ipairs(texts('arq:in-progress:', found)) do
        if source == queue and (holder or is_for_others(scored[i])) then
            over = over + 1
        elseif not holder then
            free[#free + 1], due[#free + 1] = found[i], scored[i]
        else
            redis.call('ZADD', queue, 'NX', scored[i], found[i])
            redis.call('ZREM', source, found[i])
        end
    end
    local chosen = choose(queue, source, free, due, suspect)
    if #chosen == 0 then return over end
    local before, held = #ids - #chosen, {}
    local counted = texts('arq:retry:', chosen)
    local asked = are_aborts and redis.pcall('ZMSCORE', 'arq:abort', unpack(chosen)) or {}
    for i, id in ipairs(chosen) do
        local at = before + i
        redis.call('SET', 'arq:in-progress:' .. id, token .. ':' .. scores[at], 'PX', lease)
        if messages[at] and not may_expire and string.sub(messages[at], -7) ~= ',"o":1}' then
            redis.call('PERSIST', 'arq:job:' .. id)
        end
        failures[at], aborted[at], suspects[at] = counted[i], asked[i] and 1 or 0, suspect and 1 or 0
        held[2 * i - 1], held[2 * i] = now + lease, id
    end
    if source ~= queue then redis.call('ZREM', source, unpack(chosen)) end
    redis.call('ZADD', queue, unpack(held))
    redis.pcall('ZADD', 'ratchet:leases:' .. queue, unpack(held))
    return over
end

local function take_expired(queue)
    local leases, behind = 'ratchet:leases:' .. queue, 0
    for _ = 1, pages do
        local size, found, scored = math.min(want - #ids, page), {}, {}
        if full or size <= 0 then return end
        local expired = redis.pcall('ZRANGEBYSCORE', leases, '-inf', now, 'LIMIT', behind, size)
        if #expired == 0 then return end
        for i, score in ipairs(redis.call('ZMSCORE', queue, unpack(expired))) do
            if score and tonumber(score) <= now then
                found[#found + 1], scored[#found + 1] = expired[i], score
            else
                redis.call('ZREM', leases, expired[i])
            end
        end
        if #found > 0 then behind = behind + take(queue, queue, found, scored, true) end
    end
end

-- What was parked and may start now.
local function take_parked(queue, key, gate)
    local source = parking(queue, key)
    for _ = 1, pages do
        local size = math.min(want - #ids, page, room(gate))
        if full or size <= 0 then break end
        local found, scored = in_pairs(redis.call('ZRANGE', source, 0, size - 1, 'WITHSCORES'))
        if #found == 0 then
            redis.call('SREM', 'ratchet:parked:' .. queue, key)
            break
        end
        take(queue, source, found, scored)
    end
    if room(gate) <= 0 then waiting[key] = gate end
end

-- What was parked under a name that this worker has no gate for goes back to its place in the queue: it may be of a job
-- that has no limit any more, or of one that this worker doesn't know and that must not come before all others. The
-- latter only where nobody tells of a limit: this worker would take it, and put it back for seconds, again and again,
-- and who knows the job would find nothing to start.
local function unpark(queue, key)
    local source = parking(queue, key)
    local found, scored = in_pairs(redis.call('ZRANGE', source, 0, page - 1, 'WITHSCORES'))
    for i, id in ipairs(found) do
        redis.call('ZADD', queue, 'NX', scored[i], id)
        unparked[id] = true
    end
    if #found > 0 then redis.call('ZREM', source, unpack(found)) end
    if #found < page then redis.call('SREM', 'ratchet:parked:' .. queue, key) else more = true end
end

local function is_known(name)
    return string.find(known, ' ' .. name .. ' ', 1, true) ~= nil
end

local function look_at_parked(queue)
    for _, key in ipairs(redis.pcall('SMEMBERS', 'ratchet:parked:' .. queue)) do
        if gates[key] then
            tell_of(gates[key])
            take_parked(queue, key, gates[key])
        elseif is_known(key) or redis.call('EXISTS', 'ratchet:limit:' .. key) == 0 then
            unpark(queue, key)
        end
    end
end

-- Passes over `behind` jobs. Returns how many the next claim has to, where this one didn't come to the end of them.
local function take_due(queue, behind)
    local size = math.min(want - #ids, page)
    for _ = 1, pages do
        if full then return 0 end
        local due = redis.call('ZRANGEBYSCORE', queue, '-inf', now, 'WITHSCORES', 'LIMIT', behind, size)
        local is_last = #due < 2 * size
        if #due > 0 then behind, size = behind + take(queue, queue, in_pairs(due)), page end
        if is_last then return 0 end
    end
    more = more or #ids > 0
    return full and 0 or behind
end

local lots = {}
for i, queue in ipairs(KEYS) do lots[i] = 'ratchet:parked:' .. queue end
local has_parked = redis.call('EXISTS', unpack(lots)) > 0
for i, queue in ipairs(KEYS) do
    local before, is_queue = #ids, type(redis.pcall('ZCARD', queue)) == 'number'
    if is_queue and not full then take_expired(queue) end
    if is_queue and not full and has_parked then look_at_parked(queue) end
    passed[i] = is_queue and not full and take_due(queue, tonumber(ARGV[11 + i])) or 0
    counts[i] = #ids - before
end

local function mark_idle(queue)
    if idle_ms ~= '0' then redis.call('SET', 'ratchet:idle:' .. queue, 1, 'PX', idle_ms) end
end

local reopens = false
if not full and not more then
    for _, queue in ipairs(KEYS) do mark_idle(queue) end
    for key, gate in pairs(waiting) do
        mark_idle('/' .. key)
        local at = opens(gate)
        if at then reopens = reopens and math.min(reopens, at) or at end
    end
end
return {
    now, parked, (full or more) and 1 or 0, reopens, are_aborts and 1 or 0, since, passed, counts,
    ids, scores, messages, failures, aborted, limited, suspects, rated
}
""".replace("SUSPECT_WAITS_MS", str(SUSPECT_WAITS_MS))
    .replace("LIMIT_STAYS_MS", str(LIMIT_STAYS_MS))
    .replace("OTHERS_FIRST_MS", str(OTHERS_FIRST_MS))
    .replace("SETTLES_MS", str(SETTLES_MS))
    .replace("RENEWALS_PER_LEASE", str(RENEWALS_PER_LEASE))
)
