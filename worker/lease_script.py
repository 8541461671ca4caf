"""The scripts that renew leases: those whose keys stand, all at once; and those whose keys are gone."""

_HOLD = """
redis.call('DEL', 'ratchet:room')  -- a full Redis (worker/claim_script.py)
local time = redis.call('TIME')
local lease = tonumber(ARGV[1])
local until_ms = time[1] * 1000 + math.floor(time[2] / 1000) + lease
local function hold(id, token, queue, limited)
    redis.call('SET', 'arq:in-progress:' .. id, token, 'PX', lease)
    redis.call('ZADD', queue, 'XX', until_ms, id)
    redis.pcall('ZADD', 'ratchet:leases:' .. queue, until_ms, id)
    if limited ~= '' then redis.pcall('ZADD', 'ratchet:permits:' .. limited, until_ms, id) end
end
"""

# A missing key was wiped, or its job has ended elsewhere. Another's token means that the lease was lost. Answers with
# the places of those that are lost, and of those whose keys are missing, from 1.
RENEW = (
    _HOLD
    + """
local lost, missing = {}, {}
for i = 2, #ARGV, 4 do
    local id, token, queue, limited = unpack(ARGV, i, i + 3)
    local held = redis.pcall('GET', 'arq:in-progress:' .. id)
    if not held then
        missing[#missing + 1] = (i + 2) / 4
    elseif held ~= token then
        lost[#lost + 1] = (i + 2) / 4
    else
        hold(id, token, queue, limited)
    end
end
return {lost, missing}
"""
)

# What was wiped is restored, so that a job which is sent again doesn't start twice. Where there is a message that isn't
# the job's own, known by its SHA-1, the job has ended elsewhere and this is another of its id: it is left alone.
# Answers with the places of those that are lost, from 1.
RESTORE = (
    _HOLD
    + """
local lost = {}
for i = 2, #ARGV, 5 do
    local id, token, queue, limited, digest = unpack(ARGV, i, i + 4)
    local message = redis.call('MGET', 'arq:job:' .. id)[1]
    if message and redis.sha1hex(message) ~= digest or redis.call('EXISTS', 'arq:in-progress:' .. id) == 1 then
        lost[#lost + 1] = (i + 3) / 5
    else
        hold(id, token, queue, limited)
    end
end
return lost
"""
)
