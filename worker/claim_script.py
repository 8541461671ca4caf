"""The script that claims due jobs: whole or not at all, and as many as there are free slots.

What can be asked or told of many jobs at once is, since each redis.call costs a microsecond.
"""

from worker.limit_script import LIMITS

PAGE, PAGES = 100, 20
"""A claim looks past so many jobs of a queue that somebody else holds, in so many steps; the next goes on behind."""
STEP = 16
"""Messages that are read at once, so that at most so many large ones are read in vain."""
OTHERS_FIRST_MS = 1_000
"""For which a job that was put back since its function isn't known is left to others. Stock arq looks each 500 ms."""

# Now is Redis's own clock, never a worker's. A job that another worker holds (a stock arq worker, say) is passed over
# and its score never moved. A large message comes alone, so that a batch of them can't fill the memory. A key of the
# wrong type must not keep other jobs from being claimed: MGET takes it for a missing one, the rest goes through pcall,
# whose error is an empty list to ipairs.
#
# A message from the outbox never expires; another's expiry is taken away, or it could run out while the job runs or
# is parked. Plain arq functions keep it: arq promises that such a job is neither started nor tried again after it.
#
# Jobs whose lease ran out come first: in the queue they stand behind everything that was due before the lease's end,
# and with a long backlog a killed worker's jobs would wait for all of it. They are suspects: whoever had them neither
# ended them nor gave them back, so one of them may have killed it (worker/suspects). One that isn't due any more was
# put back, or enqueued anew, by somebody who knows nothing of leases.
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

"""
    + LIMITS
    + """
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
        local found, scored = in_pairs(redis.pcall('ZRANGE', source, 0, size - 1, 'WITHSCORES'))
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
    local found, scored = in_pairs(redis.pcall('ZRANGE', source, 0, page - 1, 'WITHSCORES'))
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
""".replace("OTHERS_FIRST_MS", str(OTHERS_FIRST_MS))
)
