-- For wrk: sends the requests of a file, one after the other, over and over. In the file each is its length on a
-- line, then its bytes. Says what came of it as one line of JSON.

local messages, turn = {}, 0

function init(arguments)
  local file = assert(io.open(arguments[1], "rb"))
  local length = file:read("*n")
  while length do
    file:read(1)
    messages[#messages + 1] = file:read(length)
    length = file:read("*n")
  end
end

function request()
  turn = turn % #messages + 1
  return messages[turn]
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    '\n{"answered": %d, "seconds": %.6f, "refused": %d, "broken": %d, "p50_ms": %.3f, "p99_ms": %.3f}\n',
    summary.requests, summary.duration / 1e6, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
