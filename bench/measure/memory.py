"""What the cache and the streams hold in memory."""

import json
import random
import subprocess
import time

from . import contestants
from .machine import LOAD_CORE, Unusable, get, memory_mib, reset_peak, say
from .origin import BIG, ChunkedOrigin, Origin
from .scale import fill, stats

L1_MIB = 256
CACHE_LIMIT_MIB = 1.3 * L1_MIB + 150
STREAM_LIMIT_MIB = 32


def cache(bench, entries=1_000_000):
    """A million distinct 1 KiB responses through a 256 MiB cache, each asked for once; then the hits among them."""
    origin = Origin(bench)
    one = contestants.portway(bench, origin.port, l1=f"{L1_MIB}MiB")
    try:
        start = memory_mib(one.process.pid)
        filled = fill(bench, one, origin, entries, 1, "/m/%08d", "n")
        peak, after = memory_mib(one.process.pid, "VmHWM"), memory_mib(one.process.pid)
        shares = {}
        for name, keys in (("first 10 000", range(10_000)), ("last 10 000", range(entries - 10_000, entries)), ("all", range(entries))):
            shares[name] = sum(is_hit(one, key) for key in random.Random(1).sample(keys, 500)) / 500
        counted = stats(one)
    finally:
        bench.stop(one.process)
        bench.stop(origin.process)
    met = peak < CACHE_LIMIT_MIB
    say(f"\nmemory: {entries} distinct 1 KiB responses through {L1_MIB} MiB in {filled['seconds']:.0f} s")
    say(f"  RSS {start:.0f} MiB at the start, {after:.0f} after, peak {peak:.0f}   < {CACHE_LIMIT_MIB:.0f}: {'PASS' if met else 'FALLS SHORT'}")
    say("  hits afterwards: " + ", ".join(f"{share:.0%} of the {name}" for name, share in shares.items()))
    say(f"  /admin/v1/cache/stats: {json.dumps(counted)[:600]}\n")
    return {"kind": "memory", "start_mib": start, "after_mib": after, "peak_mib": peak, "limit_mib": CACHE_LIMIT_MIB, "met": met,
            "hit_share": shares, "stats": counted, "filled": filled}


def is_hit(one, key):
    # `only-if-cached` asks without changing what is asked about: a miss is 504 and stores nothing.
    status, fields, body = get(one.port, f"/m/{key:08d}", {"Cache-Control": "only-if-cached"})
    if status not in (200, 504) or (status == 200 and not body.startswith(f"/m/{key:08d}x".encode())):
        raise Unusable(f"entry {key} is answered with {status} {body[:40]}")
    return status == 200 and fields.get("x-cache", "HIT") == "HIT"


def stream(bench, clients=10):
    """Ten bodies of 1 GiB at once: with a length and chunked, storable or not, read fast and read slowly."""
    origin, chunked = Origin(bench), ChunkedOrigin()
    answer = {"kind": "stream", "limit_mib": STREAM_LIMIT_MIB, "cases": {}}
    plans = [
        ("length, no-store, fast", origin.port, "/big/{n}", None),
        ("length, max-age, fast", origin.port, "/bigfresh/{n}", None),
        ("chunked, no-store, fast", chunked.port, "/plain/{n}", None),
        ("chunked, max-age, fast", chunked.port, "/fresh/{n}", None),
        ("length, no-store, slow", origin.port, "/big/{n}", 8),
        ("length, max-age, slow", origin.port, "/bigfresh/{n}", 8),
        ("chunked, max-age, slow", chunked.port, "/fresh/{n}", 8),
        ("length, max-age, one URL", origin.port, "/bigfresh/one", None),
    ]
    try:
        for name, port, path, slow_seconds in plans:
            # A gateway of its own: what one case left in the allocator must not help or burden the next.
            one = contestants.portway(bench, port)
            try:
                answer["cases"][name] = streamed(bench, one, name, path, clients, slow_seconds)
            finally:
                bench.stop(one.process)
    finally:
        chunked.close()
        bench.stop(origin.process)
    answer["met"] = all(case["met"] for case in answer["cases"].values())
    say(f"  stream: {'PASS' if answer['met'] else 'FALLS SHORT'}\n")
    return answer


def streamed(bench, one, name, path, clients, slow_seconds):
    warm(one)
    before = memory_mib(one.process.pid)
    reset_peak(one.process.pid)
    started = time.monotonic()
    limit = ["--limit-rate", "1M", "--max-time", str(slow_seconds)] if slow_seconds else ["--max-time", "300"]
    curls = []
    for n in range(clients):
        command = ["taskset", "-c", LOAD_CORE, "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code} %{size_download}", *limit,
                   f"http://127.0.0.1:{one.port}{path.format(n=n)}"]
        curls.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True))
    bench.processes.extend(curls)
    totals = []
    for curl in curls:
        text, _ = curl.communicate(timeout=320)
        bench.processes.remove(curl)
        status, size = text.split()
        totals.append(int(size))
        if status != "200" or (not slow_seconds and int(size) != BIG):
            raise Unusable(f"{name}: a client got {status} and {size} bytes")
    wall = time.monotonic() - started
    peak = memory_mib(one.process.pid, "VmHWM")
    met = peak - before < STREAM_LIMIT_MIB
    say(f"  {name:26} {sum(totals) / (1 << 30):5.1f} GiB in {wall:5.1f} s, RSS {before:.0f} MiB, added at the peak {peak - before:5.1f} MiB"
        f"   < {STREAM_LIMIT_MIB}: {'PASS' if met else 'FALLS SHORT'}")
    return {"before_mib": before, "peak_mib": peak, "added_mib": peak - before, "bytes": sum(totals), "seconds": wall, "met": met}


def warm(one):
    """What any first request allocates is no part of the streams."""
    for _ in range(20):
        status, _, _ = get(one.port, "/health/live")
        if status != 200:
            raise Unusable(f"/health/live answers {status}")
