"""The script that tells Redis what came of jobs: whole or not at all, and many at once.

Of each job it takes its queue, its id, the token that it is held by, and a word that says what becomes of it:
`finish STAYS_MS KEEP_MS HAD_MESSAGE LIMITED RESULT`, `later STAYS_MS DELAY_MS FAILURES LIMITED ADOPTED`,
`now STAYS_MS DUE_MS FAILURES LIMITED ADOPTED`; or as `later`, `suspect`: then whoever takes it finds a lease that ran
out. A DELAY_MS that ends in a half says that others come first (worker/claim_script.py). Before any of them may stand
`only SHA1`: of the message that it is about; then `started NAME`: whose rate is to count no other start of it. Four
arguments, since to pack them is most of what it costs in Python.
"""

from worker.wake import WAKE

RETRY_KEY_TTL_S = 88_400
"""arq's own."""

# Only the holder of the token settles; whoever lost it has nothing to say any more. An id that had no message when it
# was claimed may have got one since: that is another job, and it is offered. So is another that came while the key was
# gone (worker/lease_script.py).
SETTLE = (
    WAKE
    + """
redis.call('DEL', 'ratchet:room')  -- a full Redis (worker/claim_script.py)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local tokens, settled, gone = {}, {}, {}
local ended, offered, freed, woken, suspects = {}, {}, {}, {}, {}
for i = 2, #ARGV, 4 do tokens[#tokens + 1] = 'arq:in-progress:' .. ARGV[i] end
tokens = redis.call('MGET', unpack(tokens))

local function of(lists, queue)
    lists[queue] = lists[queue] or {}
    return lists[queue]
end

local function add(lists, queue, id)
    local list = of(lists, queue)
    list[#list + 1] = id
end

local function add_scored(lists, queue, score, id)
    local list = of(lists, queue)
    list[#list + 1], list[#list + 2] = score, id
end

local function finish(queue, id, result, keep, had_message)
    if had_message == '0' and redis.call('TYPE', 'arq:job:' .. id)['ok'] == 'string' then return end
    gone[#gone + 1], gone[#gone + 2] = 'arq:job:' .. id, 'arq:retry:' .. id
    add(ended, queue, id)
    if keep == '-1' then redis.call('SET', 'arq:result:' .. id, result)
    elseif keep ~= '0' then redis.call('SET', 'arq:result:' .. id, result, 'PX', keep) end
end

local function put_back(queue, id, adopted, due, failures)
    if adopted ~= '' then redis.call('SET', 'arq:job:' .. id, adopted, 'XX') end
    if due % 1 ~= 0 then redis.call('PERSIST', 'arq:job:' .. id) end  -- it waits for others, however long that takes
    if failures ~= '0' then redis.call('SET', 'arq:retry:' .. id, failures, 'EX', RETRY_TTL) end
    add_scored(offered, queue, due, id)
end

local function keep_start(name, id, token)
    local starts, member = 'ratchet:rate:' .. name, id .. '/' .. string.match(token, '^[^:]*')
    local at = redis.pcall('ZSCORE', starts, member)
    if type(at) ~= 'string' then return end
    redis.call('ZREM', starts, member)
    redis.call('ZADD', starts, at, id .. '/')
end

local function is_another(id, digest)
    local message = digest and redis.call('MGET', 'arq:job:' .. id)[1]
    return message and redis.sha1hex(message) ~= digest
end

for n = 1, #tokens do
    local queue, id, token, how = unpack(ARGV, 4 * n - 3, 4 * n)
    local digest, rest = string.match(how, '^only (%x+) (.*)$')
    how = rest or how
    local rated, unrated = string.match(how, '^started (%S+) (.*)$')
    how = unrated or how
    settled[n] = tokens[n] == token and 1 or 0
    local verb, stays, first, second, limited, body = string.match(how, '^(%a+) (%d+) (-?[%d.]+) (%d+) (%S*) (.*)$')
    if settled[n] == 1 then
        add(freed, queue, id)
        if limited ~= '' then
            redis.pcall('ZREM', 'ratchet:permits:' .. limited, id)
            woken['/' .. limited] = true
        end
        if rated then keep_start(rated, id, token) end
    end
    if settled[n] == 1 and is_another(id, digest) then
        settled[n] = 0
        gone[#gone + 1] = 'arq:in-progress:' .. id
        add_scored(offered, queue, now, id)
        woken[queue] = true
    elseif settled[n] == 1 then
        if stays == '0' then gone[#gone + 1] = 'arq:in-progress:' .. id
        else redis.call('PEXPIRE', 'arq:in-progress:' .. id, stays) end
        if verb == 'finish' then finish(queue, id, body, first, second) end
        if verb == 'later' then put_back(queue, id, body, now + first, second) end
        if verb == 'now' then
            put_back(queue, id, body, first, second)
            woken[queue] = true
        end
        if verb == 'suspect' then
            put_back(queue, id, body, now + first, second)
            add_scored(suspects, queue, now + first, id)
            woken[queue] = woken[queue] or first == '0'
        end
    end
end
for queue, ids in pairs(ended) do
    redis.pcall('ZREM', queue, unpack(ids))
    redis.pcall('ZREM', 'arq:abort', unpack(ids))
end
for queue, ids in pairs(offered) do redis.pcall('ZADD', queue, 'XX', unpack(ids)) end
for queue, ids in pairs(freed) do redis.pcall('ZREM', 'ratchet:leases:' .. queue, unpack(ids)) end
for queue, ids in pairs(suspects) do redis.pcall('ZADD', 'ratchet:leases:' .. queue, unpack(ids)) end
if #gone > 0 then redis.call('DEL', unpack(gone)) end
for queue, is_due in pairs(woken) do
    if is_due then wake(queue) end
end
return settled
""".replace("RETRY_TTL", str(RETRY_KEY_TTL_S))
)
