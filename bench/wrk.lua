-- wrk -s wrk.lua URL -- TOKEN PATH... asks for the paths in turn, and says in JSON what came.

local requests = {}
local last = 0

function init(args)
   local headers = {Host = wrk.headers["Host"], Authorization = "Bearer " .. args[1]}
   for index = 2, #args do
      requests[#requests + 1] = wrk.format("GET", args[index], headers)
   end
end

function request()
   last = last % #requests + 1
   return requests[last]
end

function done(summary)
   local errors = 0
   for _, count in pairs(summary.errors) do
      errors = errors + count
   end
   io.stderr:write(string.format(
      '{"answers": %d, "bytes": %d, "microseconds": %d, "errors": %d}\n',
      summary.requests, summary.bytes, summary.duration, errors))
end
