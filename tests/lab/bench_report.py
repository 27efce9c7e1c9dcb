"""Medians, verdicts and tables of what scripts/bench measured: bench_report.py VALUES, the rest from the environment.

VALUES has lines "name, congestion, setting, metric, value" with tabs between. Writes OUT.json and OUT.md, prints the
latter; ends with 1 where a figure that must be reached is not.
"""
import json
import math
import os
import statistics
import sys


def read(path):
    values = {}
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            name, congestion, setting, metric, value = line.rstrip("\n").split("\t")
            try:
                values.setdefault((name, congestion, setting), {}).setdefault(metric, []).append(float(value))
            except ValueError:
                pass
    return values


VALUES = read(sys.argv[1])
MEDIANS = {
    key: {metric: statistics.median(found) for metric, found in metrics.items() if found}
    for key, metrics in VALUES.items()
}
CONGESTION = os.environ["CONGESTION"].split()
ROWS = []


def get(name, congestion, setting, metric):
    return MEDIANS.get((name, congestion, setting), {}).get(metric)


def show(value, digits=2):
    return "-" if value is None else f"{value:.{digits}f}"


def row(work, must, goal, got, holds, beside=""):
    """One line of the table; `holds` is None where there is no figure."""
    verdict = "not measured" if holds is None else "yes" if holds else "NO"
    ROWS.append({"work": work, "must": must, "goal": goal, "got": got, "beside": beside, "holds": holds, "verdict": verdict})


def least(work, bound, goal, value, unit, beside=""):
    row(work, f"at least {bound:g} {unit}", goal, f"{show(value)} {unit}", None if value is None else value >= bound, beside)


def most(work, bound, goal, value, unit, beside="", digits=2):
    row(work, f"at most {bound:g} {unit}", goal, f"{show(value, digits)} {unit}", None if value is None else value <= bound, beside)


def ratio(a, b):
    return None if a is None or not b else a / b


def less(a, b):
    return None if a is None or b is None else a - b


def local():
    for cc in CONGESTION:
        raw = lambda metric: get("raw", cc, "on", metric)
        own = lambda metric: get("byway", cc, "on", metric)
        for metric, work, bound, goal in (
            ("tcp1_gbit", "TCP, 1 stream", 9.5, "12"),
            ("tcp4_gbit", "TCP, 4 streams", 10, "14"),
        ):
            part = ratio(own(metric), raw(metric))
            least(f"{work}, offloads on, {cc}", bound, goal, own(metric), "Gbit/s", f"raw {show(raw(metric))}, {show(part)} of it")
        most(f"CPU of both daemons, TCP 1 stream, {cc}", 1.1, "0.75", own("cpu_s_per_gb"), "s/GB")
        added = less(own("ping_idle_min_ms"), raw("ping_idle_min_ms"))
        most(f"idle ping, minimum above raw, {cc}", 0.040, "", added, "ms", f"{show(own('ping_idle_min_ms'), 3)} to {show(raw('ping_idle_min_ms'), 3)} ms", 3)
        added = less(own("ping_idle_ms"), raw("ping_idle_ms"))
        most(f"idle ping, average above raw, {cc}", 0.2, "", added, "ms", f"{show(own('ping_idle_ms'), 3)} to {show(raw('ping_idle_ms'), 3)} ms", 3)
        for what, metric, bound in [("minimum", "ping_one_min_ms", 0.040), ("average", "ping_one_ms", 0.2)]:
            added = less(own(metric), raw(metric))
            most(f"the same on one processor, none else to be woken, {what}, {cc}", bound, "", added, "ms", f"{show(own(metric), 3)} to {show(raw(metric), 3)} ms", 3)
        most(f"ping under load, average, {cc}", 1.5, "", own("ping_loaded_ms"), "ms", f"raw {show(raw('ping_loaded_ms'))} ms")
        beside_base(cc)
    # UDP has no congestion control: all rounds count.
    both = lambda name, metric: pooled(name, "on", metric)
    offered = float(os.environ["UDP64_PPS"]) / 1000
    least("UDP 64 B, delivered", 180, "", both("byway", "udp64_kpps"), "kpps", f"offered {offered:g}, raw {show(both('raw', 'udp64_kpps'), 0)}")
    mbit = both("byway", "udp1200_gbit")
    raw = both("raw", "udp1200_gbit")
    least(f"UDP 1200 B offered at {os.environ['UDP_RATE']}, received", 900, "", mbit and mbit * 1000, "Mbit/s", f"raw {show(raw and raw * 1000, 0)}")


def pooled(name, setting, metric):
    found = [v for cc in CONGESTION for v in VALUES.get((name, cc, setting), {}).get(metric, [])]
    return statistics.median(found) if found else None


def wire():
    for cc in CONGESTION:
        for metric, work in (("tcp1_gbit", "TCP, 1 stream"), ("tcp4_gbit", "TCP, 4 streams")):
            own, raw = get("byway", cc, "wire", metric), get("raw", cc, "wire", metric)
            least(f"{work}, MTU-sized packets, {cc}", 0.55, "0.65", ratio(own, raw), "of raw", f"{show(own)} of {show(raw)} Gbit/s, {show(get('byway', cc, 'wire', 'cpu_s_per_gb'))} s/GB")


def chacha():
    found = [MEDIANS[k].get("tcp1_gbit") for k in MEDIANS if k[2] == "chacha"]
    least("ChaCha20-Poly1305, TCP 1 stream", 5, "", found[0] if found else None, "Gbit/s")


def flood():
    for cc in CONGESTION:
        if ("byway", cc, "flood") not in MEDIANS:
            continue
        own = ratio(get("byway", cc, "flood", "flooded_gbit"), get("byway", cc, "flood", "quiet_gbit"))
        raw = ratio(get("raw", cc, "flood", "flooded_gbit"), get("raw", cc, "flood", "quiet_gbit"))
        kept = ratio(own, raw)
        pps = get("byway", cc, "flood", "flood_kpps")
        least(f"TCP kept under junk at the port, beside what raw keeps, {cc}", 0.8, "", kept, "", f"keeps {show(own)}, raw {show(raw)}, at {show(pps, 0)} kpps")
        grown = less(get("byway", cc, "flood", "rss_after_kb"), get("byway", cc, "flood", "rss_before_kb"))
        # Bounded queues fill: what comes beyond them would be a leak.
        most("memory that flood costs", 4096, "", grown, "kB", "", 0)


def delay():
    losses = sorted({k[2] for k in MEDIANS if k[2].startswith("delay-")}, key=lambda s: int(s[6:]))
    for setting in losses:
        percent = int(setting[6:]) / 1000
        for cc in CONGESTION:
            own = lambda metric: get("byway", cc, setting, metric)
            raw = lambda metric: get("raw", cc, setting, metric)
            for streams in (1, 4):
                metric = f"tcp{streams}_gbit"
                work = f"20 ms, {percent:g} % loss, {cc}, {streams} stream{'s' if streams > 1 else ''}"
                beside = f"{show(own(metric), 3)} of {show(raw(metric), 3)} Gbit/s"
                part = ratio(own(metric), raw(metric))
                if cc == "cubic":
                    least(work, 0.8, "", part, "of raw", beside)
                elif streams == 4:
                    least(work, 0.7, "", part, "of raw", beside)
                else:
                    row(work, "", "", f"{show(part)} of raw", None if part is None else True, beside)
            added = less(own("ping_loaded1_ms"), own("ping_idle_ms"))
            most(f"20 ms, {percent:g} % loss, {cc}, ping under load above idle", 2, "", added, "ms", f"{show(own('ping_loaded1_ms'))} to {show(own('ping_idle_ms'))} ms; raw's adds {show(less(raw('ping_loaded1_ms'), raw('ping_idle_ms')))}")


def relay():
    for cc in CONGESTION:
        if ("relayed", cc, "relay") not in MEDIANS:
            continue
        of = lambda name, metric: get(name, cc, "relay", metric)
        for metric, work in (("tcp1_gbit", "TCP, 1 stream"), ("tcp4_gbit", "TCP, 4 streams")):
            part = ratio(of("relayed", metric), of("direct", metric))
            beside = f"{show(of('relayed', metric))} of {show(of('direct', metric))} Gbit/s, raw {show(of('raw', metric))}, streams {show(of('stream', metric))}"
            least(f"{work}, relayed, {cc}", 0.5, "", part, "of direct", beside)
        most("CPU of the relay, TCP 1 stream", 0.4, "", of("relayed", "forwarder_cpu_s_per_gb"), "s/GB")
        for what, metric in (("minimum", "ping_idle_min_ms"), ("average", "ping_idle_ms")):
            added = less(of("relayed", metric), of("raw", metric))
            beside = f"{show(of('relayed', metric), 3)} to {show(of('raw', metric), 3)} ms; direct {show(of('direct', metric), 3)}"
            most(f"idle ping, {what}, relayed above two hops of raw", 0.2, "", added, "ms", beside, 3)
        row("from `join` to the first packet", "reported", "", f"{show(of('relayed', 'first_packet_ms'), 0)} ms relayed", True, f"direct {show(of('direct', 'first_packet_ms'), 0)}, streams {show(of('stream', 'first_packet_ms'), 0)} ms")
        losses = sorted((k[2] for k in MEDIANS if k[0] == "raw" and k[1] == cc and k[2].startswith("relay-")), key=lambda s: int(s[6:]))
        for setting in losses:
            at = lambda name: get(name, cc, setting, "tcp1_gbit")
            parts = ", ".join(f"{name} {show(ratio(at(name), at('raw')))}" for name in ("direct", "relayed", "stream"))
            row(f"20 ms through a third machine, {int(setting[6:]) / 1000:g} % loss, {cc}, 1 stream", "reported", "", f"of raw: {parts}", True, f"raw {show(at('raw'), 3)} Gbit/s")


def peers():
    for cc in CONGESTION:
        own = lambda metric: get("byway", cc, "peers", metric)
        if ("byway", cc, "peers") not in MEDIANS:
            continue
        sessions = own("datagram_peers")
        pair, crowd, still = own("pair_gbit"), own("crowd_gbit"), own("still_gbit")
        peers_text = f"one active pair beside {show(own('joined'), 0)} idle peers (real daemons, {os.environ['PEERS']} asked for)"
        least(f"{peers_text}, stopped meanwhile", 0.9, "", ratio(still, pair), "of two peers", f"{show(still)} of {show(pair)} Gbit/s; sessions: {show(own('still_peers'), 0)}")
        beside = f"{show(ratio(crowd, pair))} of two peers"
        row(f"{peers_text}, on the same processors", "reported", "", beside, True, f"{show(crowd)} Gbit/s; sessions: {show(sessions, 0)}")
        most("memory an idle peer gains with its datagram path (its whole session: a unit test)", 40, "", own("rss_per_session_kb"), "kB", f"{show(own('rss_streams_kb'), 0)} kB without, {show(own('rss_sessions_kb'), 0)} with sessions", 1)
        most("idle traffic of the hub, each of its peers", 1000, "", own("idle_bytes_per_s"), "B/s", "", 0)
        most("idle processor time of the hub, each of its peers", 1, "", own("idle_cpu_percent"), "% of a core")


def idle():
    for cc in CONGESTION:
        if ("byway", cc, "idle-1") not in MEDIANS:
            continue
        one = lambda metric: get("byway", cc, "idle-1", metric)
        three = lambda metric: get("byway", cc, "idle-3", metric)
        most("idle traffic of a pair, both directions", 1000, "", one("bytes_per_s"), "B/s", "", 0)
        most("idle processor time of a daemon with one peer", 1, "", one("cpu_percent"), "% of a core", f"{show(one('rss_kb'), 0)} kB resident", 3)
        for what, metric, unit, digits in (("traffic", "bytes_per_s", "B/s", 0), ("processor time", "cpu_percent", "% of a core", 3)):
            beside = f"{show(three(metric), digits)} beside {show(one(metric), digits)} {unit}"
            most(f"idle {what} of a pair that shares three subnets", 1.2, "", ratio(three(metric), one(metric)), "of one that shares one", beside)


# The 97.5th percentile of Student's t, by degrees of freedom from 1 on; 1.96 beyond.
STUDENT = [12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10, 2.09]


def interval(pairs):
    """The geometric mean of the ratios of pairs with its 95 % interval: ratios are compared by their logarithms."""
    logs = [math.log(own / base) for own, base in pairs if own > 0 and base > 0]
    if len(logs) < 2:
        return None
    middle = statistics.mean(logs)
    free = len(logs) - 1
    student = STUDENT[free - 1] if free <= len(STUDENT) else 1.96
    half = student * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(middle - half), math.exp(middle), math.exp(middle + half)


def beside_base(cc):
    """Each figure of `local` beside that of BYWAY_BASE in the same round; above 1 is better, also for what should be small."""
    own, base = VALUES.get(("byway", cc, "on"), {}), VALUES.get(("base", cc, "on"), {})
    for metric, work, larger in (
        ("tcp1_gbit", "TCP, 1 stream", True),
        ("tcp4_gbit", "TCP, 4 streams", True),
        ("cpu_s_per_gb", "CPU for each GB of one TCP stream", False),
        ("ping_idle_ms", "idle ping", False),
        ("ping_one_ms", "idle ping on one processor", False),
        ("ping_loaded_ms", "ping under load", False),
        ("udp64_kpps", "UDP 64 B", True),
        ("udp1200_gbit", "UDP 1200 B", True),
    ):
        mine, former = own.get(metric, []), base.get(metric, [])
        if not former:
            continue
        pairs = list(zip(mine, former)) if larger else list(zip(former, mine))
        # A round that failed leaves the two without their partners: no pair is made up.
        found = interval(pairs) if len(mine) == len(former) else None
        got = "-" if found is None else f"{found[1]:.2f} ({found[0]:.2f} to {found[2]:.2f})"
        medians = f"medians {show(statistics.median(mine), 3) if mine else '-'} beside {show(statistics.median(former), 3)}, {len(pairs)} pairs"
        row(f"{work}, {cc}, beside the base", "interval not wholly below 0.97", "", got, None if found is None else found[2] >= 0.97, medians)


def model():
    own = lambda metric: get("byway", "-", "model", metric)
    most("View after one changed announcement, at 1,000 members x 50 workloads", 10, "", own("next_view_ms"), "ms")
    row("View of 1,000 members x 50 workloads", "reported", "", f"whole {show(own('view_ms'), 0)} ms, {show(own('view_kb'), 0)} kB; after one changed announcement {show(own('next_view_ms'), 2)} ms, {show(own('next_view_kb'), 0)} kB more", True)
    worst = [own(f"{what}_ms") for what in ("receive", "save", "document", "dns_add", "upkeep", "compare", "pull", "ask")]
    most("node's thread for a message, an own command or upkeep there", 5, "", max(filter(None, worst), default=None), "ms", f"one announcement {show(own('document_ms'), 1)} ms, dns add {show(own('dns_add_ms'), 1)} ms, upkeep {show(own('upkeep_ms'), 1)} ms; 64 announcements {show(own('save_ms'), 1)} ms, saved after {show(own('saved_ms'), 1)} ms", 1)
    most("lookup among 100,000 prefixes", 40, "", own("lookup_ns"), "ns", "", 0)


def head():
    env = os.environ
    yield f"{env['MACHINE']}; commit {env['COMMIT']}"
    yield ""
    yield (
        f"Medians of {env['REPEAT']} rounds of {env['SECS']} s ({env['LONG_REPEAT']} of {env['LONG_SECS']} s with delay), raw veth in the same"
        f" run; carriers in use: {env['PATHS'].replace(chr(10), ', ') or 'none'}"
    )
    yield ""


def table():
    yield "| work | must reach | goal | got | beside | reached |"
    yield "|---|---|---|---|---|---|"
    for r in ROWS:
        mark = f"**{r['verdict']}**" if r["verdict"] == "NO" else r["verdict"]
        yield f"| {r['work']} | {r['must']} | {r['goal']} | {r['got']} | {r['beside']} | {mark} |"
    yield ""


def figures():
    names = [k for k in MEDIANS if k[2] == "on"]
    if not names:
        return
    yield "| what | congestion | TCP 1 | TCP 4 | TCP reverse | UDP 1200 B (loss) | UDP 64 B | ping idle | ping loaded | CPU s/GB TCP / UDP | first packet |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for key in sorted(names, key=lambda k: (k[1], k[0] != "raw", k[0])):
        m = MEDIANS[key].get
        yield (
            f"| {key[0]} | {key[1]} | {show(m('tcp1_gbit'))} | {show(m('tcp4_gbit'))} | {show(m('tcp_reverse_gbit'))} | {show(m('udp1200_gbit'))}"
            f" ({show(m('udp1200_loss_percent'), 1)} %) | {show(m('udp64_kpps'), 0)} kpps | {show(m('ping_idle_min_ms'), 3)} / {show(m('ping_idle_ms'), 3)} ms |"
            f" {show(m('ping_loaded_ms'))} ms | {show(m('cpu_s_per_gb'))} / {show(m('udp1200_cpu_s_per_gb'))} | {show(m('first_packet_ms'), 0)} ms |"
        )
    yield ""
    yield "Rates in Gbit/s. CPU: user and system seconds of both daemons for each GB delivered (single TCP stream, UDP). Idle ping: minimum"
    yield "and average. First packet: from typing `join` to the first answered ping."


SECTIONS = {
    "local": local, "wire": wire, "chacha": chacha, "flood": flood, "delay": delay, "relay": relay, "peers": peers, "idle": idle, "model": model,
}
for name in SECTIONS:
    if name in os.environ["SECTIONS"].split():
        SECTIONS[name]()
text = "\n".join([*head(), *table(), *figures()]) + "\n"
results = [
    {"name": key[0], "congestion": key[1], "setting": key[2], "median": MEDIANS[key], "all": VALUES[key]}
    for key in sorted(MEDIANS)
]
local_path = next((p.split(": ", 1)[1] for p in os.environ["PATHS"].split("\n") if p.startswith("byway: ")), "")
whole = {
    "schema": "byway.bench/1",
    "machine": os.environ["MACHINE"],
    "commit": os.environ["COMMIT"],
    "rounds": int(os.environ["REPEAT"]),
    "seconds": int(os.environ["SECS"]),
    "path": local_path,
    "udp_rate": os.environ["UDP_RATE"],
    "verdicts": ROWS,
    "results": results,
}
with open(os.environ["OUT"] + ".json", "w", encoding="utf-8") as out:
    json.dump(whole, out, indent=1)
with open(os.environ["OUT"] + ".md", "w", encoding="utf-8") as out:
    out.write(text)
print(text, end="")
sys.exit(any(r["verdict"] == "NO" for r in ROWS))
