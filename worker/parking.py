"""Where jobs wait that a limit or a pause keeps from starting: out of the queue, so that no claim meets them.

`ratchet:parked:{queue}` is the set of the names of limits that hold any back; `ratchet:parked:{queue}/{name}` their
ids, by the score that they had in the queue. (No queue has a `/` in its name.) The claim script fills and empties them.
"""

PARKED = """
local function parking_of(queue, id)
    for _, name in ipairs(redis.pcall('SMEMBERS', 'ratchet:parked:' .. queue)) do
        local parking = 'ratchet:parked:' .. queue .. '/' .. name
        if type(redis.pcall('ZSCORE', parking, id)) == 'string' then return parking end
    end
    return false
end
"""
"""Lua, for the scripts that look for one job: the sorted set that holds it back, or false."""
