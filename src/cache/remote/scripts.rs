//! What is done inside Redis, in one step each.
//!
//! Fixed texts: whatever varies comes as a key or an argument.

use crate::{
    cache::{
        coherence::{position, record::Record},
        l2::codec,
    },
    redis::{Script, lease::HOLDS, millis},
};

/// Records that the log keeps. Who was away for more of them starts over with an empty memory.
const LOG_LENGTH: usize = 65_536;
/// Records that are read at a time.
pub const BATCH: usize = 1000;

/// For scripts that run although the server is out of memory: what they add is bounded, and a purge that
/// could not be recorded would be worse. (The flag needs Redis 7.)
const ANYWAY: &str = "#!lua flags=allow-oom\n";
const USUAL: &str = "#!lua\n";

/// Makes sure that the log is there and is the one the caller followed up to `applied`; returns its end.
///
/// A log that was lost begins with a purge of everything; one that lost its newest records, because a
/// replica without them took over, gets one.
const LOG: &str = "
local EVENTS = ARGV[#ARGV]
local function append(generation_after, record)
  local time = redis.call('TIME')
  local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
  local previous = last and tonumber(string.match(last[1], '^%d+')) or 0
  local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
  local generation = math.max(now, previous + 1, generation_after + 1)
  local id = string.format('%.0f', generation)
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', LOG_LENGTH, id .. '-0', 'r', record)
  redis.call('PUBLISH', EVENTS, 'P ' .. id .. ' ' .. string.format('%.0f', previous) .. ' ' .. record)
  return id, string.format('%.0f', previous)
end
local function log_end(applied)
  local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
  if not last then return (append(applied, EVERYTHING)) end
  if applied > 0 then
    local id = string.format('%.0f', applied) .. '-0'
    if #redis.call('XRANGE', KEYS[1], id, id) == 0 then
      local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
      if tonumber(string.match(first[1], '^%d+')) < applied then
        return (append(applied, EVERYTHING))
      end
    end
  end
  return string.match(last[1], '^%d+')
end
";

const RECORD: &str = "
log_end(0)
local id, previous = append(tonumber(ARGV[1]), ARGV[2])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local members = redis.call('ZRANGEBYSCORE', KEYS[2], now - LEASE_MS, '+inf')
return {id, previous, members}
";

const BEAT: &str = "
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local last = log_end(tonumber(ARGV[2]))
redis.call('ZADD', KEYS[2], now, ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - 20 * LEASE_MS)
redis.call('PUBLISH', EVENTS, 'B ' .. last .. ' ' .. ARGV[3] .. ' ' .. ARGV[1])
local members = redis.call('ZRANGEBYSCORE', KEYS[2], now - LEASE_MS, '+inf')
return {string.format('%.0f', now), last, members}
";

const HISTORY: &str = "
log_end(tonumber(ARGV[1]))
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1][1]
local records = redis.call('XRANGE', KEYS[1], '(' .. ARGV[1] .. '-0', '+', 'COUNT', BATCH)
local flat = {string.match(first, '^%d+')}
for _, it in ipairs(records) do
  flat[#flat + 1] = string.match(it[1], '^%d+')
  flat[#flat + 1] = it[2][2]
end
return flat
";

/// A lease's value is its owner's token, followed by the instances that wait.
const LEASES: &str = "
local INBOX = ARGV[#ARGV]
local function release(lease, token, outcome)
  local held, value = holds(lease, token)
  if not held then return end
  redis.call('DEL', lease)
  for instance in string.gmatch(string.sub(value, #token + 1), '%S+') do
    redis.call('PUBLISH', INBOX .. instance, 'L ' .. lease .. ' ' .. outcome)
  end
end
";

const LEAD: &str = "
if ARGV[4] == '' then
  if redis.call('EXISTS', KEYS[2]) == 1 then return -1 end
elseif redis.call('GETRANGE', KEYS[2], 0, #ARGV[4] - 1) ~= ARGV[4] then
  return -1
end
local held, value = holds(KEYS[1], ARGV[1])
if held then return 0 end
if not value then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  return 0
end
if not string.find(value, ' ' .. ARGV[3], 1, true) then
  redis.call('SET', KEYS[1], value .. ' ' .. ARGV[3], 'KEEPTTL')
end
return math.max(redis.call('PTTL', KEYS[1]), 1)
";

const RENEW: &str = "
if holds(KEYS[1], ARGV[1]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
";

const RELEASE: &str = "
release(KEYS[1], ARGV[1], ARGV[2])
";

/// Never puts an older response in place of a younger: eight bytes of it are the generation it was filled at.
const PUT: &str = "
local form = string.sub(ARGV[4], 1, 3)
local function filled_at(key)
  local head = redis.call('GETRANGE', key, 0, FILLED_AT + 7)
  -- What has another form is of no use to anybody.
  if #head < FILLED_AT + 8 or string.sub(head, 1, 3) ~= form then return 0, 0 end
  return struct.unpack('>I4I4', string.sub(head, FILLED_AT + 1))
end
-- In two halves: a number has 53 bits here.
local high, low = struct.unpack('>I4I4', ARGV[3])
local function is_older(key)
  local there, rest = filled_at(key)
  return there < high or (there == high and rest <= low)
end
if is_older(KEYS[2]) then
  redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[5])
end
if ARGV[6] ~= '' and is_older(KEYS[3]) then
  redis.call('SET', KEYS[3], ARGV[6], 'PX', ARGV[5])
end
if ARGV[1] ~= '' then release(KEYS[1], ARGV[1], ARGV[2]) end
";

/// All of them.
#[derive(Debug)]
pub struct Scripts {
    /// Keys: log, instances. Arguments: generation known, record, events channel.
    pub record: Script,
    /// Keys: log, instances. Arguments: number, applied, instance, events channel.
    pub beat: Script,
    /// Keys: log, instances. Arguments: applied, events channel.
    pub history: Script,
    /// Keys: lease, entry. Arguments: token, milliseconds, instance, what was seen.
    pub lead: Script,
    /// Keys: lease. Arguments: token, milliseconds.
    pub renew: Script,
    /// Keys: lease. Arguments: token, outcome, prefix of inboxes.
    pub release: Script,
    /// Keys: lease, entry, primary. Arguments: token, outcome, generation, value, milliseconds, what
    /// responses vary on, prefix of inboxes.
    pub put: Script,
}

impl Scripts {
    pub fn new() -> Self {
        let everything = String::from_utf8_lossy(&Record::everything().to_bytes()).into_owned();
        let script = |flags: &str, parts: &[&str]| {
            let text = parts
                .concat()
                .replace("LOG_LENGTH", &LOG_LENGTH.to_string())
                .replace("BATCH", &BATCH.to_string())
                .replace("LEASE_MS", &millis(position::LEASE).to_string())
                .replace("FILLED_AT", &codec::FILLED_AT.to_string())
                .replace("EVERYTHING", &format!("'{everything}'"));
            Script::new(&format!("{flags}{text}"))
        };
        Self {
            record: script(ANYWAY, &[LOG, RECORD]),
            beat: script(ANYWAY, &[LOG, BEAT]),
            history: script(ANYWAY, &[LOG, HISTORY]),
            lead: script(ANYWAY, &[HOLDS, LEAD]),
            renew: script(ANYWAY, &[HOLDS, RENEW]),
            release: script(ANYWAY, &[HOLDS, LEASES, RELEASE]),
            put: script(USUAL, &[HOLDS, LEASES, PUT]),
        }
    }
}
