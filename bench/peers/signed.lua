-- Makes wrk post one signed body with a fresh delivery id each time (the id is not signed), and print its sums as JSON.
-- Arguments after wrk's own: SIGNATURE BODY_FILE keep|close. Counts in one thread: start wrk with -t1.
local head, body, number = "", "", 0
local stamp = string.format("%08x", os.time() % 4294967296)

function init(args)
  local file = assert(io.open(args[2], "rb"))
  body = file:read("*a")
  file:close()
  head = "POST /api/webhooks/github HTTP/1.1\r\nHost: localhost\r\nUser-Agent: GitHub-Hookshot/044aadd\r\nAccept: */*\r\n"
    .. (args[3] == "close" and "Connection: close\r\n" or "")
    .. "Content-Type: application/json\r\nX-GitHub-Event: push\r\nX-Hub-Signature-256: sha256=" .. args[1]
    .. "\r\nContent-Length: " .. #body .. "\r\nX-GitHub-Delivery: "
  math.randomseed(os.time())
  stamp = stamp .. string.format("-%04x-4%03x-8%03x-", math.random(0, 65535), math.random(0, 4095), math.random(0, 4095))
end

function request()
  number = number + 1
  return head .. stamp .. string.format("%012x\r\n\r\n", number) .. body
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format('{"requests": %d, "seconds": %.6f, "refused": %d, "broken": %d, "p50_ms": %.3f, "p99_ms": %.3f}\n',
    summary.requests, summary.duration / 1e6, e.status, e.connect + e.read + e.write + e.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
