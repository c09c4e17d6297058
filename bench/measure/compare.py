"""Hits and pass-through: Portway and what a user would pick instead, in alternating rounds.

The machine is shared and its speed drifts by tens of percent within minutes. So each round runs
every contestant once, directly after one another; a ratio is taken within a round, and the median
of the rounds' ratios is what counts.
"""

import statistics

from . import contestants
from .machine import Unusable, get, measured, say
from .origin import Origin, expect_still

# What is promised, as "at least this many times as good as". `must` decides PASS or FALLS SHORT, `aim` is shown only.
TARGETS = {
    "hit": {"bare": ("must", 0.85), "nginx": ("must", 1.2), "haproxy": ("aim", 0.9), "varnish": ("aim", 1.8)},
    "hit16": {"bare": ("must", 0.85), "nginx": ("must", 1.0)},
    "pass": {"nginx": ("must", 0.75), "haproxy": ("aim", 1.0)},
}
PATHS = {"hit": "/1k.json", "hit16": "/16k.json", "pass": "/pass/1k"}


def run(bench, kind, rounds, seconds, only=None):
    """Measures one kind; the answer is what goes into the JSON file."""
    origin = Origin(bench)
    caching = kind != "pass"
    path = PATHS[kind]
    makers = {
        "portway": lambda: contestants.portway(bench, origin.port),
        "bare": lambda: contestants.bare(bench, origin.files),
        "nginx": lambda: contestants.nginx(bench, origin.port, caching),
        "haproxy": lambda: contestants.haproxy(bench, origin.port, caching),
        "varnish": lambda: contestants.varnish(bench, origin.port, caching),
    }
    if not caching:
        del makers["bare"]
    field = [make() for name, make in makers.items() if not only or name in only]
    try:
        check_answers(field, origin, path, caching)
        results = {one.name: [] for one in field}
        for one in field:
            measured(bench, one.process, one.port, path, 1)
        for number in range(rounds):
            for one in field:
                before = origin.requests()
                result = measured(bench, one.process, one.port, path, seconds)
                if caching:
                    expect_still(origin, before, 5, one.name)
                elif origin.requests() - before < result["requests"]:
                    raise Unusable(f"{one.name} did not pass every request on")
                results[one.name].append(result)
            say(f"  round {number + 1}/{rounds}: " + "  ".join(
                f"{name} {rows[-1]['rps']:.0f}/s {rows[-1]['cpu_us']:.1f} µs" for name, rows in results.items()))
    finally:
        for one in field:
            bench.stop(one.process)
        bench.stop(origin.process)
    return summarise(kind, results)


def check_answers(field, origin, path, caching):
    """Every contestant must give the origin's bytes, and a cache must give them without asking."""
    status, fields, wanted = get(origin.port, path)
    if status != 200:
        raise Unusable(f"the origin answers {status}")
    for one in field:
        for _ in range(3):
            status, got, body = get(one.port, path)
            if status != 200 or body != wanted or got.get("cache-control") != fields["cache-control"]:
                raise Unusable(f"{one.name} answers {status} with {len(body)} bytes instead of the origin's answer: {got}")
        before = origin.requests()
        for _ in range(5):
            get(one.port, path)
        asked = origin.requests() - before
        if asked != (0 if caching else 5):
            raise Unusable(f"{one.name} asked the origin {asked} times in 5 requests")


def summarise(kind, results):
    """Medians, and the medians of the ratios within a round (above 1: Portway is better)."""
    table = {}
    for name, rows in results.items():
        line = {key: statistics.median(row[key] for row in rows) for key in ("rps", "cpu_us", "busy", "p50_us", "p99_us")}
        ours = results.get("portway")
        if ours and name != "portway":
            line["rps_ratio"] = statistics.median(a["rps"] / b["rps"] for a, b in zip(ours, rows))
            line["cpu_ratio"] = statistics.median(b["cpu_us"] / a["cpu_us"] for a, b in zip(ours, rows))
            line["cpu_ratio_range"] = [pick(b["cpu_us"] / a["cpu_us"] for a, b in zip(ours, rows)) for pick in (min, max)]
        table[name] = line
    verdicts = []
    for name, (kind_of_target, at_least) in TARGETS[kind].items():
        line = table.get(name, {})
        if "cpu_ratio" not in line:
            continue
        met = {"rps": line["rps_ratio"] >= at_least, "cpu": line["cpu_ratio"] >= at_least}
        verdicts.append({"against": name, "kind": kind_of_target, "at_least": at_least, "rps": line["rps_ratio"],
                         "cpu": line["cpu_ratio"], "met_rps": met["rps"], "met_cpu": met["cpu"], "met": all(met.values())})
    show(kind, table, verdicts)
    return {"kind": kind, "table": table, "verdicts": verdicts, "rounds": results}


def show(kind, table, verdicts):
    say(f"\n{kind}: {PATHS[kind]}   (ratios: above 1, Portway is better)")
    say(f"  {'':9}{'req/s':>9}{'CPU µs/req':>12}{'busy':>7}{'p50 µs':>8}{'p99 µs':>8}{'req/s ratio':>13}{'CPU ratio':>11}   range")
    for name, line in table.items():
        ratios = ""
        if "cpu_ratio" in line:
            low, high = line["cpu_ratio_range"]
            ratios = f"{line['rps_ratio']:>13.2f}{line['cpu_ratio']:>11.2f}   {low:.2f}–{high:.2f}"
        say(f"  {name:9}{line['rps']:>9.0f}{line['cpu_us']:>12.2f}{line['busy']:>7.0%}{line['p50_us']:>8.0f}{line['p99_us']:>8.0f}{ratios}")
    for one in verdicts:
        word = "PASS" if one["met"] else "FALLS SHORT"
        if one["kind"] == "aim":
            word = "(aim) " + ("met" if one["met"] else "not met")
        say(f"  ≥ {one['at_least']} × {one['against']:8} req/s {one['rps']:.2f} {mark(one['met_rps'])}   CPU {one['cpu']:.2f} {mark(one['met_cpu'])}   {word}")
    say()


def mark(met):
    return "ok" if met else "short"
