"""What a hit costs when there are many routes and many entries.

Two gateways run side by side: one with 10 routes and 10 entries, one with 10 000 and 1 000 000.
Hits on one key show what the number of routes and entries costs by itself; hits on random keys add
the processor's own cache misses, which no program that holds a million entries is spared.
"""

import json
import statistics

from . import contestants
from .machine import Unusable, get, measured, memory_mib, say, wrk
from .origin import Origin, expect_still

AT_MOST = 1.1

# Asks for every key once, then for the last one until wrk is stopped.
# wrk calls `request` once before the start, for its own use. The surplus of 200 lets the answers on all connections arrive.
FILL_LUA = """
local next, last, routes = -1, {entries} + 200, {routes}
function request()
  local n = next
  next = next + 1
  if n == last then io.write("ENOUGH\\n") io.flush() end
  if n < 0 then n = 0 elseif n >= {entries} then n = {entries} - 1 end
  return wrk.format("GET", string.format("{pattern}", {arguments}))
end
"""

RANDOM_LUA = """
math.randomseed(20261122)
function request()
  local n = math.random(0, {entries} - 1)
  return wrk.format("GET", string.format("/s/r%d/items/%d", n % {routes}, n))
end
"""


def routes_file(path, routes, origin):
    lines = ["upstreams:", "  origin:", f"    targets: [http://127.0.0.1:{origin}]", "routes:"]
    for n in range(routes):
        lines += [f"  - name: r{n}", f"    path: /s/r{n}/items/{{id}}", "    methods: [GET, HEAD]", "    upstream: origin",
                  "    cache: { ttl: 1h }"]
    path.write_text("\n".join(lines) + "\n")
    return path


def fill(bench, one, origin, entries, routes, pattern="/s/r%d/items/%d", arguments="n % routes, n"):
    before = origin.requests()
    lua = FILL_LUA.format(entries=entries, routes=routes, pattern=pattern, arguments=arguments)
    result = wrk(bench, one.port, seconds=900, script=lua)
    failed = result["socket_errors"] + result["bad_status"] + result["timeouts"]
    asked = origin.requests() - before
    if failed or asked < entries:
        raise Unusable(f"{one.name}: {asked} of {entries} entries were fetched: {result}")
    return {"requests": result["requests"], "origin_requests": asked, "seconds": result["micros"] / 1e6}


def stats(one):
    status, _, text = get(one.admin, "/admin/v1/cache/stats")
    try:
        return json.loads(text) if status == 200 else {"status": status}
    except ValueError:
        return {"status": status}


def run(bench, rounds, seconds, entries=1_000_000, routes=10_000):
    origin = Origin(bench)
    sides = []
    try:
        for name, count, held, l1 in (("few", 10, 10, None), ("many", routes, entries, str(2 << 30))):
            file = routes_file(bench.dir / f"{name}.yaml", count, origin.port)
            one = contestants.portway(bench, origin.port, f"portway-{name}", file, l1)
            one.filled = fill(bench, one, origin, held, count)
            one.random = RANDOM_LUA.format(entries=held, routes=count)
            one.stats = stats(one)
            say(f"  {one.name}: {one.filled}, RSS {memory_mib(one.process.pid):.0f} MiB, {json.dumps(one.stats)[:400]}")
            sides.append(one)
        results = {"same": [], "random": []}
        for number in range(rounds):
            for kind, path, pick in (("same", "/s/r7/items/7", lambda _: ""), ("random", "/", lambda one: one.random)):
                pair = []
                for one in sides:
                    before = origin.requests()
                    pair.append(measured(bench, one.process, one.port, path, seconds, script=pick(one)))
                    # A random pick may meet an entry that the cache did not admit; more than 1 in 1000 would be misses.
                    expect_still(origin, before, 5 + pair[-1]["requests"] // 1000, one.name)
                results[kind].append({"few": pair[0], "many": pair[1]})
            say(f"  round {number + 1}/{rounds}: " + "  ".join(
                f"{kind} {rows[-1]['few']['cpu_us']:.2f} → {rows[-1]['many']['cpu_us']:.2f} µs" for kind, rows in results.items()))
    finally:
        for one in sides:
            bench.stop(one.process)
        bench.stop(origin.process)
    answer = {"kind": "scale", "rounds": results, "filled": {one.name: one.filled for one in sides}}
    say(f"\nscale: 10 routes and 10 entries against {routes} and {entries}")
    for kind, rows in results.items():
        few, many = (statistics.median(row[side]["cpu_us"] for row in rows) for side in ("few", "many"))
        cpu = statistics.median(row["many"]["cpu_us"] / row["few"]["cpu_us"] for row in rows)
        rps = statistics.median(row["few"]["rps"] / row["many"]["rps"] for row in rows)
        met = cpu <= AT_MOST
        answer[kind] = {"few_cpu_us": few, "many_cpu_us": many, "cpu_ratio": cpu, "rps_ratio": rps, "met": met}
        say(f"  {kind:7} key: {few:.2f} → {many:.2f} µs CPU a hit, {cpu:.3f} times (requests/s {rps:.3f})   "
            f"≤ {AT_MOST}: {'PASS' if met else 'FALLS SHORT'}")
    say()
    return answer
