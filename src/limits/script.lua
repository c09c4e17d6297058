-- Decides about one request, and counts it if all of its limits let it through, and else in none.
--
-- `now` is set before this text: microseconds of the server's own clock.
-- KEYS: a hash for each limit. A field with a number is a slot, and how many requests were let through
-- in it. Over all slots: `u`, how many requests those are; `o`, the oldest slot; `n`, the newest.
-- ARGV: for each limit, how many requests it allows, and how many microseconds a slot is long.
-- Returns for each limit whether it lets the request through (1 or 0), how many it would still let
-- through, and in how many microseconds that grows.
--
-- The arithmetic is that of window.rs, which says why it is so.

local SLOTS = 100

-- What counts for the limit in the slot `present`.
local function survey(key, present)
  local sums = redis.call('HMGET', key, 'u', 'o', 'n')
  if not sums[1] then
    return { used = 0, oldest = present, newest = present, gone = {} }
  end
  local all = { used = tonumber(sums[1]), oldest = tonumber(sums[2]), newest = tonumber(sums[3]), gone = {} }
  if all.oldest >= present - SLOTS and all.newest <= present + SLOTS then
    return all
  end
  -- Something has left the window since: only then the slots have to be looked at one by one.
  local used, oldest, newest, gone = 0, nil, nil, {}
  local fields = redis.call('HGETALL', key)
  for i = 1, #fields, 2 do
    local slot = tonumber(fields[i])
    if slot and slot >= present - SLOTS and slot <= present + SLOTS then
      used = used + tonumber(fields[i + 1])
      oldest = math.min(oldest or slot, slot)
      newest = math.max(newest or slot, slot)
    elseif slot then
      gone[#gone + 1] = fields[i]
    end
  end
  return { used = used, oldest = oldest or present, newest = newest or present, gone = gone }
end

local limits, passes = {}, true
for i, key in ipairs(KEYS) do
  local requests, width = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  local present = math.floor(now / width)
  local limit = survey(key, present)
  limit.requests, limit.width, limit.present = requests, width, present
  limit.allows = limit.used < requests
  passes = passes and limit.allows
  limits[i] = limit
end

local reply = {}
for i, key in ipairs(KEYS) do
  local limit = limits[i]
  if passes then
    limit.used = limit.used + 1
    limit.oldest = math.min(limit.oldest, limit.present)
    limit.newest = math.max(limit.newest, limit.present)
    -- First what a server that is full or read-only refuses: then nothing has changed yet.
    redis.call('HSET', key, 'u', limit.used, 'o', limit.oldest, 'n', limit.newest)
    if #limit.gone > 0 then
      redis.call('HDEL', key, unpack(limit.gone))
    end
    if redis.call('HINCRBY', key, limit.present, 1) == 1 then
      local left = (limit.newest + SLOTS + 1) * limit.width - now
      -- The server counts this from the beginning of the millisecond it is in.
      redis.call('PEXPIRE', key, math.ceil(left / 1000) + 1)
    end
  end
  reply[3 * i - 2] = limit.allows and 1 or 0
  reply[3 * i - 1] = math.max(0, limit.requests - limit.used)
  reply[3 * i] = math.max(0, (limit.oldest + SLOTS + 1) * limit.width - now)
end
return reply
