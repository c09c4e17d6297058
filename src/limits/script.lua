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
-- How far is looked, slot by slot, for those that have left and for the first that has not.
local NEAR = 8

-- What counts for a limit in the slot `present`, and the slots in its hash that do not any more.
local function survey(key, present)
  local first, last = present - SLOTS, present + SLOTS
  local sums = redis.call('HMGET', key, 'u', 'o', 'n')
  if not sums[1] then
    return { used = 0, oldest = present, newest = present, gone = {} }
  end
  local used, oldest, newest = tonumber(sums[1]), tonumber(sums[2]), tonumber(sums[3])
  if oldest >= first and newest <= last then
    return { used = used, oldest = oldest, newest = newest, gone = {} }
  end

  -- Slots have left since. Of a busy key those are the few after the oldest.
  local left = first - oldest
  if left <= NEAR and newest <= last then
    local slots, gone = {}, {}
    for i = 1, left + NEAR do
      slots[i] = oldest + i - 1
    end
    local counts = redis.call('HMGET', key, unpack(slots))
    for i, slot in ipairs(slots) do
      if counts[i] and i > left then
        return { used = used, oldest = slot, newest = newest, gone = gone }
      elseif counts[i] then
        used = used - tonumber(counts[i])
        gone[#gone + 1] = slot
      end
    end
  end

  -- Otherwise there are few, or it was long ago: all of them.
  local all = { used = 0, oldest = present, newest = present, gone = {} }
  local fields = redis.call('HGETALL', key)
  for i = 1, #fields, 2 do
    local slot = tonumber(fields[i])
    if slot and slot >= first and slot <= last then
      all.oldest = all.used == 0 and slot or math.min(all.oldest, slot)
      all.newest = all.used == 0 and slot or math.max(all.newest, slot)
      all.used = all.used + tonumber(fields[i + 1])
    elseif slot then
      all.gone[#all.gone + 1] = slot
    end
  end
  return all
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
