"""The atomic steps of delivery, in Lua; each one is a transition that must not be torn apart.

They must not know what a request means. Tried on Redis 6.2, 7.0, 8.2 and Valkey 9.1.

KEYS[1] is always the queue: the name of its stream, and of the group on all its streams. KEYS[2] is the stream of the
entry that a step is about: the queue's own, or that of its lane. A *lane* in ARGV is the stream that is served before
the queue's own, or ''. Other keys are passed in, but for those that are made from the queue's name: the capped stream
of run times and the counts. An *owner* is a consumer's name: a bridge `<name>~<random>`, a slot
`<name>~<random>.<slot>`, or `released`. An entry is ours only at the attempt (its delivery count) that we know of:
owner and attempt together are the fence.
"""

from __future__ import annotations

import hashlib


class Script:
    """A Lua script and the name that the server knows it by."""

    def __init__(self, body: str) -> None:
        self.source = PRELUDE + body
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


PRELUDE = """
local queue, group = KEYS[1], KEYS[1]
local function pending(stream, entry)
  return redis.call('XPENDING', stream, group, entry, entry, 1)[1]
end
local function ours(stream, entry, owner, attempt)
  local p = pending(stream, entry)
  return p and p[2] == owner and p[4] == tonumber(attempt)
end
local function value_of(fields)
  for i = 1, #fields, 2 do if fields[i] == 'value' then return fields[i + 1] end end
  return false
end
local function value(stream, entry)
  local e = redis.call('XRANGE', stream, entry, entry)[1]
  if not e then return nil end
  return value_of(e[2])
end
local function count(what)
  return redis.pcall('HINCRBY', 'cog-celery:' .. queue .. ':counts', what, 1)
end
-- What happened lately, for people who look: about the last thousand steps.
local function note(what, entry, owner, attempt, about)
  local fields = {'what', what, 'entry', entry, 'owner', owner, 'attempt', attempt, 'about', about}
  redis.pcall('XADD', 'cog-celery:' .. queue .. ':recent', 'MAXLEN', '~', 1000, '*', unpack(fields))
end
-- A response replaces a response, never a list, a stream or whatever else somebody keeps under that name.
local function writable(key)
  local kind = redis.call('TYPE', key)['ok']
  return kind == 'none' or kind == 'string'
end
local function set(key, snapshot, ttl)
  if ttl == '0' then redis.call('SET', key, snapshot) else redis.call('SET', key, snapshot, 'PX', ttl) end
end
-- Others wait for the same id: what its first request gets, they get.
local function show_followers(record, own, snapshot, ttl)
  redis.call('HSET', record, 'snapshot', snapshot)
  for _, field in ipairs(redis.call('HKEYS', record)) do
    local key = string.match(field, '^to:(.*)$')
    if key and key ~= own and writable(key) then set(key, snapshot, ttl) end
  end
end
-- The queue's streams: its lane first, and every tenth time the other way round, so that nothing starves.
local function in_turn(lane)
  if lane == '' then return {queue} end
  local takes = count('takes')
  if type(takes) == 'number' and takes % 10 == 0 then return {queue, lane} end
  return {lane, queue}
end
-- What this owner has in the pending lists.
local function held(streams, owner)
  for _, stream in ipairs(streams) do
    while true do
      local p = redis.call('XPENDING', stream, group, '-', '+', 1, owner)[1]
      if not p then break end
      local v = value(stream, p[1])
      if v ~= nil then return {stream, p[1], p[4], v} end
      redis.call('XACK', stream, group, p[1])
    end
  end
end
-- The next entry: of each stream one that was given back, else a new one.
local function read(lane, owner)
  for _, stream in ipairs(in_turn(lane)) do
    while true do
      local given_back = redis.pcall('XPENDING', stream, group, '-', '+', 1, 'released')
      if given_back.err then return nil, given_back end
      local p = given_back[1]
      if not p then break end
      local v = value(stream, p[1])
      if v ~= nil then
        redis.call('XCLAIM', stream, group, owner, 0, p[1], 'JUSTID')
        return {stream, p[1], p[4], v}
      end
      redis.call('XACK', stream, group, p[1])
    end
    local x = redis.pcall('XREADGROUP', 'GROUP', group, owner, 'COUNT', 1, 'STREAMS', stream, '>')
    if x and x.err then return nil, x end
    if x then
      local e = x[1][2][1]
      return {stream, e[1], 1, value_of(e[2])}
    end
  end
end
-- The last id that the group was given of a stream; nil without such a group.
local function last_delivered(stream)
  for _, g in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local last, name
    for i = 1, #g, 2 do
      if g[i] == 'name' then name = g[i + 1] elseif g[i] == 'last-delivered-id' then last = g[i + 1] end
    end
    if name == group then return last end
  end
end
"""

# KEYS queue, stream of the entry or the queue again, credits. ARGV bridge, prefix of announce keys, lane, then
# optionally an entry that the bridge has, and its attempt. Pops credits until one is of a worker that lives; an entry
# is taken only together with a credit. -> ticket, credit, the version of tickets that its worker reads, stream, entry,
# attempt, value | gone | no entry, last delivered id[, that of the lane] | no credit
TAKE = Script("""
local stream, lane, known = KEYS[2], ARGV[3], ARGV[4]
while true do
  local credit = redis.call('LPOP', KEYS[3])
  if not credit then return {'no credit'} end
  local announced = redis.call('GET', ARGV[2] .. (string.match(credit, '^(.*)%.') or ''))
  if announced then
    local entry, fault
    if known then
      local v = value(stream, known)
      if v ~= nil and ours(stream, known, ARGV[1], ARGV[5]) then entry = {stream, known, tonumber(ARGV[5]), v} end
    else
      entry, fault = read(lane, ARGV[1])
    end
    if entry then
      return {'ticket', credit, tonumber(string.match(announced, '"tickets": ?(%d%d?%d?)')) or 1, unpack(entry)}
    end
    redis.call('LPUSH', KEYS[3], credit)
    if fault then return fault end
    if known then
      if ours(stream, known, ARGV[1], ARGV[5]) then redis.call('XACK', stream, group, known) end
      return {'gone'}
    end
    return {'no entry', last_delivered(queue), lane ~= '' and last_delivered(lane) or nil}
  end
end
""")

# KEYS queue, stream. ARGV entry, bridge, attempt, slot. The slot becomes the owner; the same again is answered the
# same.
#   -> stream, entry, attempt, value | false: a void ticket
CLAIM = Script("""
local stream = KEYS[2]
if not ours(stream, ARGV[1], ARGV[2], ARGV[3]) and not ours(stream, ARGV[1], ARGV[4], ARGV[3]) then return false end
local v = value(stream, ARGV[1])
if v == nil then
  redis.call('XACK', stream, group, ARGV[1])
  return false
end
redis.call('XCLAIM', stream, group, ARGV[4], 0, ARGV[1], 'JUSTID')
return {stream, ARGV[1], tonumber(ARGV[3]), v}
""")

# KEYS queue, stream, response, cancel key. ARGV entry, owner, attempt, snapshot, record of its id or ''. Only a
# terminal response has a time to live.
#   -> 0: not the owner | 1: written | 2: written, and the cancel key exists | 3: the response key is not for responses
PUBLISH = Script("""
if not ours(KEYS[2], ARGV[1], ARGV[2], ARGV[3]) then
  count('stale')
  return 0
end
if not writable(KEYS[3]) then return 3 end
redis.call('SET', KEYS[3], ARGV[4])
if ARGV[5] ~= '' then show_followers(ARGV[5], KEYS[3], ARGV[4], '0') end
if KEYS[4] and redis.call('EXISTS', KEYS[4]) == 1 then return 2 end
return 1
""")

# KEYS queue, stream, settled[, response]. ARGV entry, owner, attempt, terminal snapshot, ttl in ms or 0, snapshot to be
# seen before it or '', duration or '', take the next one: 0 or 1, record of its id or '', how long that is kept in ms
# or 0, what came of it, as it is to be noted, lane.
# `settled` keeps what its owner committed last, so that a commit whose reply was lost can be told from one that came
# too late. -> done[, stream, entry, attempt, value] | settled[, stream, entry, attempt, value] | stale | refused: the
# response key is not for responses
COMMIT = Script("""
local stream, lane = KEYS[2], ARGV[12]
local this = stream .. '/' .. ARGV[1] .. '/' .. ARGV[3]
if not ours(stream, ARGV[1], ARGV[2], ARGV[3]) then
  if redis.call('GET', KEYS[3]) ~= this then
    count('stale')
    return {'stale'}
  end
  count('settled')
  local e = held(lane == '' and {queue} or {lane, queue}, ARGV[2])
  if e then return {'settled', unpack(e)} end
  return {'settled'}
end
if KEYS[4] then
  if not writable(KEYS[4]) then return {'refused'} end
  if ARGV[6] ~= '' then set(KEYS[4], ARGV[6], ARGV[5]) end
  set(KEYS[4], ARGV[4], ARGV[5])
end
if ARGV[9] ~= '' then
  show_followers(ARGV[9], KEYS[4], ARGV[4], ARGV[5])
  if ARGV[10] == '0' then
    redis.call('DEL', ARGV[9])
  else
    redis.call('HSET', ARGV[9], 'ended', '1')
    redis.call('PEXPIRE', ARGV[9], ARGV[10])
  end
end
redis.call('SET', KEYS[3], this, 'EX', 86400)
redis.call('XACK', stream, group, ARGV[1])
redis.call('XDEL', stream, ARGV[1])
-- Behind the point of no return nothing may be raised: a key of another type costs the statistics, not the answer.
count('done')
if ARGV[7] ~= '' then redis.pcall('XADD', queue .. '-run-time', 'MAXLEN', 100, '*', 'duration', ARGV[7]) end
note('ended', ARGV[1], ARGV[2], ARGV[3], ARGV[11])
if ARGV[8] == '1' then
  local e = read(lane, ARGV[2])
  if e then return {'done', unpack(e)} end
end
return {'done'}
""")

# KEYS queue, stream, dead letters (the queue again: none is kept), [response]. ARGV entry, owner, attempt, terminal
# snapshot or '', ttl, reason, longest list of dead letters, record of its id or '', runs that it had, who had it last,
# bytes of a field that are kept or 0 for all, what is to be noted of it. The entry leaves the stream for the dead
# letters, where it stays as it was, with the reason beside it. -> 1 | 0: not the owner | an error's text: it was ended,
# but not all could be written
BURY = Script("""
local stream = KEYS[2]
if not ours(stream, ARGV[1], ARGV[2], ARGV[3]) then return 0 end
local fault
if KEYS[4] and ARGV[4] ~= '' then
  if writable(KEYS[4]) then
    set(KEYS[4], ARGV[4], ARGV[5])
  else
    fault = 'WRONGTYPE the response key holds something else'
  end
end
if ARGV[8] ~= '' then
  -- It was not answered by a prediction: the same id may be sent again.
  if ARGV[4] ~= '' then show_followers(ARGV[8], KEYS[4], ARGV[4], ARGV[5]) end
  redis.call('DEL', ARGV[8])
end
local name = ARGV[1]
if stream ~= queue then name = name .. '.high' end
local copy = {'reason', ARGV[6], 'entry', name, 'attempts', ARGV[9], 'owner', ARGV[10]}
local e = redis.call('XRANGE', stream, ARGV[1], ARGV[1])[1]
if e and KEYS[3] ~= queue then
  local most = tonumber(ARGV[11])
  -- Lua can pass some 8,000 values at once; an entry with more fields than a request can have is cut.
  for i = 1, math.min(#e[2], 1000) do
    local field = e[2][i]
    if most > 0 and #field > most then
      field = string.sub(field, 1, most)
      copy[2] = ARGV[6] .. ' (The message is cut here, it had more than ' .. ARGV[11] .. ' bytes.)'
    end
    copy[#copy + 1] = field
  end
  local kept = redis.pcall('XADD', KEYS[3], 'MAXLEN', '~', ARGV[7], '*', unpack(copy))
  if type(kept) == 'table' and kept.err then
    -- Out of memory, or not the primary any more: it passes, and then the letter is kept.
    if not string.find(kept.err, 'WRONGTYPE') then return kept end
    fault = kept.err
  end
end
redis.call('XACK', stream, group, ARGV[1])
redis.call('XDEL', stream, ARGV[1])
count('dead')
note('buried', ARGV[1], ARGV[10], ARGV[9], ARGV[12])
return fault or 1
""")

# KEYS queue. ARGV stream, entry, owner, attempt, for each.
#   -> for each: 1 still the owner, its lease begins anew | 0 not the owner | 2 the owner, but the entry was deleted
EXTEND = Script("""
local verdicts = {}
for i = 1, #ARGV, 4 do
  local stream, entry, owner = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local gone = redis.pcall('XPENDING', stream, group, entry, entry, 1).err
  -- One of two streams may be gone: that is the end of what was in it, and of nothing else.
  if gone and not string.find(gone, 'NOGROUP') and not string.find(gone, 'WRONGTYPE') then return {err = gone} end
  if gone or not ours(stream, entry, owner, ARGV[i + 3]) then
    verdicts[#verdicts + 1] = 0
  elseif #redis.call('XRANGE', stream, entry, entry) == 0 then
    -- An XCLAIM would drop it from the pending list (Redis >= 7), and its last snapshot could not be fenced any more.
    verdicts[#verdicts + 1] = 2
  else
    redis.call('XCLAIM', stream, group, owner, 0, entry, 'JUSTID')
    verdicts[#verdicts + 1] = 1
  end
end
return verdicts
""")

# KEYS queue, stream, released[, mark of a run]. ARGV entry, owner, attempt, lease in ms, whose it is to be: `released`,
# and whoever takes an entry next takes this one, the attempt does not count; or still its owner's, and a bridge takes
# it over as if that had been silent for a lease. The stream `released` wakes a bridge that watches. -> 1 | 0: not the
# owner
RELEASE = Script("""
local stream = KEYS[2]
if not ours(stream, ARGV[1], ARGV[2], ARGV[3]) then return 0 end
if value(stream, ARGV[1]) == nil then
  redis.call('XACK', stream, group, ARGV[1])
else
  redis.call('XCLAIM', stream, group, ARGV[5], 0, ARGV[1], 'IDLE', ARGV[4], 'JUSTID')
  redis.call('XADD', KEYS[3], 'MAXLEN', 1, '*', 'entry', ARGV[1])
  if KEYS[4] then redis.call('SET', KEYS[4], '', 'EX', 86400) end
  count('released')
  note('released', ARGV[1], ARGV[2], ARGV[3], '')
end
return 1
""")

# KEYS queue, stream. ARGV entry, the owner it is to be taken from, its attempt, the idle time in ms that it must have,
# bridge, count this run: 0 or 1. -> attempt | 0: not so any more
RECLAIM = Script("""
local stream = KEYS[2]
local p = pending(stream, ARGV[1])
if not p or p[2] ~= ARGV[2] or p[4] ~= tonumber(ARGV[3]) or p[3] < tonumber(ARGV[4]) then return 0 end
if value(stream, ARGV[1]) == nil then
  redis.call('XACK', stream, group, ARGV[1])
  return 0
end
count('reclaimed')
if ARGV[6] == '1' then
  redis.call('XCLAIM', stream, group, ARGV[5], 0, ARGV[1], 'RETRYCOUNT', p[4] + 1, 'JUSTID')
  note('reclaimed', ARGV[1], ARGV[2], p[4] + 1, '')
  return p[4] + 1
end
note('reclaimed', ARGV[1], ARGV[2], p[4], '')
redis.call('XCLAIM', stream, group, ARGV[5], 0, ARGV[1], 'JUSTID')
return p[4]
""")

# KEYS queue, released. ARGV owner, lane, lease in ms. What this owner has in the pending lists, after a lost reply; of
# two streams it may have got two, and the second one is given back. -> stream, entry, attempt, value | false
RECOVER = Script("""
local streams = ARGV[2] == '' and {queue} or {ARGV[2], queue}
local first = held(streams, ARGV[1])
if not first then return false end
for _, stream in ipairs(streams) do
  for _, p in ipairs(redis.call('XPENDING', stream, group, '-', '+', 10, ARGV[1])) do
    if stream ~= first[1] or p[1] ~= first[2] then
      if value(stream, p[1]) == nil then
        redis.call('XACK', stream, group, p[1])
      else
        redis.call('XCLAIM', stream, group, 'released', 0, p[1], 'IDLE', ARGV[3], 'JUSTID')
        redis.call('XADD', KEYS[2], 'MAXLEN', 1, '*', 'entry', p[1])
      end
    end
  end
end
return first
""")

# KEYS queue, stream, record of its id, response. ARGV entry, owner, attempt, ttl in ms or 0. An entry whose id another
# one has, in flight or kept, ends here: its response key gets what the other one's gets. A hundred may follow: each
# snapshot is written for all of them in one step.
#   -> first: run it | follows | stale | refused: the response key is not for responses | crowded
ENROLL = Script("""
local stream = KEYS[2]
if not ours(stream, ARGV[1], ARGV[2], ARGV[3]) then return 'stale' end
if not writable(KEYS[4]) then return 'refused' end
local first, at, ended, snapshot = unpack(redis.call('HMGET', KEYS[3], 'entry', 'stream', 'ended', 'snapshot'))
at = at or queue -- as long as there are records of a release that knew of no lanes
if first == ARGV[1] and at == stream then return 'first' end
if not first or not (ended or pending(at, first) or value(at, first) ~= nil) then
  -- Those who followed one that is gone without an answer follow this one.
  redis.call('HDEL', KEYS[3], 'ended', 'snapshot')
  redis.call('HSET', KEYS[3], 'entry', ARGV[1], 'stream', stream)
  redis.call('EXPIRE', KEYS[3], 604800) -- a week; once it has ended, as long as is wanted
  return 'first'
end
if not ended and redis.call('HLEN', KEYS[3]) > 103 then return 'crowded' end
if snapshot and redis.call('GET', KEYS[4]) ~= snapshot then set(KEYS[4], snapshot, ended and ARGV[4] or '0') end
if not ended then redis.call('HSET', KEYS[3], 'to:' .. KEYS[4], '') end
redis.call('XACK', stream, group, ARGV[1])
redis.call('XDEL', stream, ARGV[1])
count('followed')
note('followed', ARGV[1], ARGV[2], ARGV[3], first)
return 'follows'
""")

# KEYS queue, credits. ARGV slot. -> 1 if the list lacked it
CREDIT = Script("""
if redis.call('LPOS', KEYS[2], ARGV[1]) then return 0 end
redis.call('RPUSH', KEYS[2], ARGV[1])
return 1
""")

# KEYS queue, its streams. ARGV consumer. A consumer is deleted only by one who sees in the same step that nothing is
# pending for it.
FORGET = Script("""
for i = 2, #KEYS do
  if #redis.call('XPENDING', KEYS[i], group, '-', '+', 1, ARGV[1]) == 0 then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[i], group, ARGV[1])
  end
end
return 1
""")

# KEYS queue, stream, the stream it goes to. ARGV entry, owner, attempt, what is to be noted of it. The request leaves
# one queue and is another one's from then on. -> its new entry | 0: not the owner
MOVE = Script("""
local stream = KEYS[2]
if not ours(stream, ARGV[1], ARGV[2], ARGV[3]) then return 0 end
local v = value(stream, ARGV[1])
if v == nil then
  redis.call('XACK', stream, group, ARGV[1])
  return 0
end
if stream ~= queue then
  local target = string.match(KEYS[3], '^(.*)%.high$') or ''
  -- In a lane that nobody serves it would wait for ever, and be seen by nobody.
  if redis.pcall('HGET', 'cog-celery:' .. target .. ':settings', 'priority') == 'false' then
    return {err = 'NOLANE the processes of ' .. target .. ' were started without its lane'}
  end
end
local entry = redis.call('XADD', KEYS[3], '*', 'value', v)
redis.call('XACK', stream, group, ARGV[1])
redis.call('XDEL', stream, ARGV[1])
count('moved')
note('moved', ARGV[1], KEYS[3] .. '/' .. entry, ARGV[3], ARGV[4])
return entry
""")

# KEYS queue, dead letters. ARGV letter. The request goes back into the stream as it came, for a run like any other, and
# into the lane if it came from there and there still is one.
#   -> entry, with .high if it is in the lane | 0: there is no such letter | 1: it is none that BURY wrote
RETRY = Script("""
local letter = redis.call('XRANGE', KEYS[2], ARGV[1], ARGV[1])[1]
if not letter then return 0 end
local fields = letter[2]
-- BURY puts these four before the fields of the request, which may have the same names; unpack has a limit, see there.
for i, name in ipairs({'reason', 'entry', 'attempts', 'owner'}) do
  if fields[2 * i - 1] ~= name then return 1 end
end
if #fields < 10 or #fields > 7000 then return 1 end
local lane = ''
if string.sub(fields[4], -5) == '.high' then
  if redis.pcall('HGET', 'cog-celery:' .. queue .. ':settings', 'priority') == 'true' then lane = '.high' end
end
-- Deletes nothing. Who may not delete the letter is told so now: later, the request would be there twice.
redis.call('XDEL', KEYS[2], '0-0')
local entry = redis.call('XADD', queue .. lane, '*', unpack(fields, 9))
redis.call('XDEL', KEYS[2], ARGV[1])
return entry .. lane
""")

# KEYS queue, announce key, credits. ARGV what is announced, for how many ms, then the slots that are idle. The credits
# of a worker that was not known are thrown away: they are put down again in the same step, since later a missing one
# may mean that its ticket is on its way. -> 1 if it was known
ANNOUNCE = Script("""
local known = redis.call('EXISTS', KEYS[2])
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
if known == 0 then
  for i = 3, #ARGV do
    if not redis.call('LPOS', KEYS[3], ARGV[i]) then redis.call('RPUSH', KEYS[3], ARGV[i]) end
  end
end
return known
""")

# KEYS queue, processes. ARGV life, what it says of itself. With the server's time, since clocks differ. Whoever is new
# sweeps out those that were not heard of for an hour. -> 1 if it is new
DESCRIBE = Script("""
local t = redis.call('TIME')
local now = string.format('%d%03d', t[1], math.floor(t[2] / 1000))
local new = redis.pcall('HSET', KEYS[2], ARGV[1], now .. ' ' .. ARGV[2])
if new ~= 1 then return 0 end
local all = redis.call('HGETALL', KEYS[2])
for i = 1, #all, 2 do
  if (tonumber(string.match(all[i + 1], '^%d+')) or 0) < tonumber(now) - 3600000 then
    redis.call('HDEL', KEYS[2], all[i])
  end
end
return 1
""")

# KEYS queue, stream. Only the id goes over the wire: a request may have megabytes. -> the oldest entry that nobody has
# taken
OLDEST = Script("""
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[2])
if groups.err then return false end
local last = last_delivered(KEYS[2])
if not last then return false end
local e = redis.call('XRANGE', KEYS[2], '(' .. last, '+', 'COUNT', 1)[1]
return e and e[1]
""")

# KEYS queue, the stream that is searched. ARGV pattern, where to begin, entries and bytes after which to pause, so
# that nobody has to wait for long, the entry whose dead letter is looked for, or ''. -> where to go on or '', how many
# were looked at, those whose value has the pattern, and that letter: ids, and which of those looked at they were
FIND = Script("""
local from, looked, bytes, found = ARGV[2], 0, 0, {}
while looked < tonumber(ARGV[3]) and bytes < tonumber(ARGV[4]) do
  local e = redis.call('XRANGE', KEYS[2], from, '+', 'COUNT', 1)[1]
  if not e then return {'', looked, found} end
  looked = looked + 1
  from = '(' .. e[1]
  local v = value_of(e[2])
  if v then
    bytes = bytes + #v
  end
  if (v and string.find(v, ARGV[1])) or (e[2][3] == 'entry' and e[2][4] == ARGV[5]) then
    found[#found + 1] = {e[1], looked}
  end
end
return {from, looked, found}
""")

SCRIPTS = (
    TAKE,
    CLAIM,
    PUBLISH,
    COMMIT,
    BURY,
    EXTEND,
    RELEASE,
    RECLAIM,
    RECOVER,
    ENROLL,
    CREDIT,
    FORGET,
    ANNOUNCE,
    MOVE,
    RETRY,
    DESCRIBE,
)
