"""Holds what a soak has counted against what is promised, and writes it down."""

import datetime
import itertools
import statistics
from collections import Counter

import callers
import harm

# Inputs of a slice: what may be computed again for one death (docs/design/0013).
SLICE = 512
# Deaths that are not a service's by any harm that was done.
NEVER = ("engine_corrupt", "config_error", "no_progress", "status")
# A worker's memory counts from this age on: by then all its buffers have been used.
GROWN_S = 20


# How long an event is watched for what follows.
WATCHED_S = 10


def judge(soak):
    """All figures, and under `problems` what must not be."""
    ledger, workers = soak.ledger, soak.workers
    jobs = list(ledger.jobs.values())
    streams = [job for job in jobs if job.stream]
    deaths = sorted((at, reason) for worker in workers for at, reason in worker.ended)
    lost = sorted(at for worker in workers for at in worker.sessions_lost)
    hits = [at for at, _ in deaths] + lost
    unanswered = [job.name for job in jobs if not job.done_at] + [
        f"job-{number} (never sent)" for number in range(ledger.next, ledger.total)
    ]
    missing = {job.name: job.seen.count(0) for job in streams if 0 in job.seen}
    repeats = sum(job.repeats for job in streams)
    over = [job.name for job in streams if job.repeats > allowed(job, hits)]
    twice = [job for job in jobs if job.answers > 1]
    trouble = {job.name: job.trouble for job in jobs if job.trouble}
    waits = {
        lane: sorted(job.done_at - job.sent_at for job in jobs if job.done_at and not job.stream and job.lane == lane)
        for lane in callers.LANES
    }
    times_in = Counter(int(at - soak.began) for at in ledger.times)
    figures = {
        "command": command(soak.options),
        "seed": soak.options.seed,
        "seconds": soak.ended - soak.began,
        "jobs": len(jobs),
        "inputs": sum(job.count for job in jobs),
        "streams": len(streams),
        "streamed_inputs": sum(job.count for job in streams),
        "unanswered": len(unanswered),
        "missing": sum(missing.values()),
        "vectors_compared": ledger.compared,
        "twice": len(twice),
        # The publisher itself sent the job a second time, because its first confirm was lost.
        "twice_sent_twice": sum(job.published - job.refused > 1 for job in twice),
        "republished": ledger.republished,
        "untaken": ledger.untaken,
        "refused": ledger.refusals,
        "errors": ledger.errors,
        "echoes": ledger.echoes,
        "repeats": repeats,
        "repeats_largest": max((job.repeats for job in streams), default=0),
        "streams_ended_twice": sum(job.answers > 1 for job in streams),
        "streams_repeated": {job.name: ranges(job.seen) for job in streams if job.repeats},
        "deaths": Counter(reason for _, reason in deaths),
        "sessions_lost": len(lost),
        "waits": {
            lane.split(".")[1]: [quantile(values, share) for share in (0.5, 0.99, 1.0)] for lane, values in waits.items()
        },
        "memory": memory(soak),
        "left": soak.left,
        "events": [told(event, soak) for event in soak.events if event.when],
        # Answers in each second.
        "timeline": [times_in[second] for second in range(int(soak.ended - soak.began) + 1)],
        "kinds": Counter(event.kind for event in soak.events if event.when),
        "members": Counter(online for _, online in soak.members.values()),
        "nodes": soak.nodes.count,
        "workers": len(workers),
    }
    problems = []
    if unanswered:
        problems.append(f"{len(unanswered)} jobs without an answer: {unanswered[:10]}")
    if missing:
        problems.append(f"indices missing: {missing}")
    if trouble:
        problems.append(f"{len(trouble)} jobs with a wrong answer: {dict(list(trouble.items())[:5])}")
    if over:
        problems.append(f"computed again beyond {SLICE} inputs per death: {over}")
    if repeats > SLICE * len(hits) + sum(job.count * (job.published - job.refused - 1) for job in streams):
        problems.append(f"{repeats} inputs computed again, with {len(hits)} deaths and lost sessions")
    if any(soak.left.values()):
        problems.append(f"left in the queues: {soak.left}")
    if never := [reason for _, reason in deaths if reason.startswith(NEVER)]:
        problems.append(f"deaths without a cause: {never}")
    if 2 * len(figures["events"]) < len(soak.events):
        problems.append(f"only {len(figures['events'])} of {len(soak.events)} events happened")
    for part in (soak.listener, *soak.harm):
        if part.fault:
            problems.append(f"{type(part).__name__}: {part.fault!r}")
    figures["problems"] = problems
    return figures


def allowed(job, hits):
    """Inputs of this job that may have been computed again: a slice for each hit in its life, and all if it was sent twice."""
    end = job.done_at or float("inf")
    during = sum(job.sent_at <= at <= end + 1 for at in hits)
    return SLICE * during + job.count * max(0, job.published - job.refused - 1)


def ranges(seen):
    """How often which inputs came: (times, first, last) of those that came more than once."""
    found, first = [], 0
    for times, run in itertools.groupby(seen):
        length = len(list(run))
        if times > 1:
            found.append((times, first, first + length - 1))
        first += length
    return found


def quantile(values, share):
    return values[min(int(len(values) * share), len(values) - 1)] if values else None


def memory(soak):
    """Resident MiB of grown workers: median of the first and of the last third of the run, and the most ever."""
    samples = [sample for worker in soak.workers for sample in worker.memory]
    third = (soak.ended - soak.began) / 3
    grown = [(at - soak.began, kib / 1024) for at, age, kib in samples if age >= GROWN_S]
    first = [mib for at, mib in grown if at < third]
    last = [mib for at, mib in grown if at >= 2 * third]
    return {
        "first_third": statistics.median(first) if first else None,
        "last_third": statistics.median(last) if last else None,
        "max": max((kib / 1024 for _, _, kib in samples), default=None),
    }


def told(event, soak):
    return {
        "at": event.when - soak.began,
        "kind": event.kind,
        "target": event.target,
        "detail": event.detail,
        # What comes close to an outage of the whole cluster says nothing of its own.
        "silence": None if outage(event, soak.events) else silence(event.when, soak.ledger.times),
    }


def outage(event, events):
    """Whether it happened while, or shortly before or after, there was no quorum for another reason than itself."""
    return any(
        other.kind == harm.TWO_KILLED
        and other is not event
        and other.when
        and other.when - WATCHED_S < event.when < (other.until or other.when) + WATCHED_S
        for other in events
    )


def silence(when, times):
    """The longest time without any answer that begins within `WATCHED_S` behind `when`, or lies around it."""
    before = max((at for at in times if at <= when), default=when)
    behind = [at for at in times if when < at]
    longest, last = 0.0, before
    for at in behind:
        if last > when + WATCHED_S:
            break
        longest, last = max(longest, at - last), at
    return longest


def command(options):
    words = [f"JOBS={options.jobs}", f"WORKERS={options.workers}", f"KILLS={options.kills}", f"SEED={options.seed}"]
    words += [f"STREAMS={options.streams}"] if options.streams != max(1, options.jobs // 1000) else []
    words += [f"HARM='{options.harm}'"] if options.harm else []
    return "make soak " + " ".join(words)


def counted(counter):
    return ", ".join(f"{name} {count}" for name, count in sorted(counter.items())) or "none"


def seconds(value):
    return "–" if value is None else f"{value:.2f} s" if value < 10 else f"{value:.0f} s"


def mib(value):
    return "–" if value is None else f"{value:.0f} MiB"


def section(figures):
    f = figures
    verdict = "pass" if not f["problems"] else "**FAIL**: " + "; ".join(f["problems"])
    rows = [
        ("jobs, answered once or more", f"{f['jobs'] - f['unanswered']} of {f['jobs']}"),
        ("jobs without an answer", f["unanswered"]),
        ("inputs; of these streamed, in so many jobs", f"{f['inputs']}; {f['streamed_inputs']} in {f['streams']}"),
        ("indices missing", f["missing"]),
        ("vectors compared with undisturbed ones", f["vectors_compared"]),
        ("left in any queue at the end", sum(f["left"].values())),
        ("time, inputs per second", f"{f['seconds']:.0f} s, {f['inputs'] / f['seconds']:.0f}"),
        ("harm done", counted(f["kinds"])),
        ("deaths of workers, by reason", counted(f["deaths"])),
        ("sessions lost and found again", f["sessions_lost"]),
        ("jobs answered more than once", f"{f['twice']}, of which {f['twice_sent_twice']} because they were sent twice"),
        ("sent again for a lost confirm", f["republished"]),
        ("streamed inputs computed again", f"{f['repeats']}, of one job at most {f['repeats_largest']}"),
        ("streamed jobs that ended more than once", f["streams_ended_twice"]),
        ("not taken by the broker, and sent again", counted(f["untaken"])),
        ("refused and sent again", counted(f["refused"])),
        ("errors", counted(f["errors"])),
        *(
            (f"from sending to the answer, {lane}: p50, p99, max", ", ".join(map(seconds, values)))
            for lane, values in f["waits"].items()
        ),
        (
            "resident memory of a worker, first third, last third, most",
            ", ".join(mib(f["memory"][key]) for key in ("first_third", "last_third", "max")),
        ),
    ]
    lines = [
        f"{datetime.date.today()}, {f['system']['on']}: `{f['command']}`, {f['workers']} workers, {f['nodes']} nodes, "
        f"{verdict}.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
        "",
        "| harm | times | without any answer, median | longest |",
        "|---|---|---|---|",
    ]
    for kind in harm.WEIGHTS:
        gaps = [event["silence"] for event in f["events"] if event["kind"] == kind and event["silence"] is not None]
        if gaps:
            lines.append(f"| {kind} | {len(gaps)} | {seconds(statistics.median(gaps))} | {seconds(max(gaps))} |")
    return "\n".join(lines) + "\n"


HEAD = """# Soak

Many jobs, while workers and broker nodes are killed at random, and **every job is counted**. `make soak` starts three workers
and a RabbitMQ cluster of three nodes on one machine, sends jobs of mixed shapes on both lanes, and **writes this file** (10 000 jobs or more);
`make soak DEBIAN=trixie` does it in a booted Debian of that release. `make test` does the same with 3000 jobs.

- **Jobs**: nine of ten are one short text, some have up to 60, one in a thousand is streamed with hundreds to thousands.
  Publishers wait for each confirm and send a job again, with the same id, if its confirm is lost with a node. What is answered
  `overloaded` or `draining` is sent again after `retry_after_ms`.
- **Harm** comes at random numbers of vectors, from the seed: workers killed, told to stop or frozen for some seconds, a node killed
  and started again after some seconds; seldom two of three nodes, which leaves no quorum. Workers are started again after a second.
- **Without any answer**: the longest time in which not one of all jobs was answered, begun within 10 s behind the harm;
  not counted close to a time without a quorum.
- **Answered more than once**: at-least-once has its price. What the counting side itself saw twice because its own
  connection was lost does not count.
- A run fails if a job has no answer, an index of a streamed job is missing, a vector is not the one that the engine alone
  computes for this text, anything is left in a queue, a worker dies for a reason that nobody gave it, or more is computed again
  than one slice (512 inputs) for each death and each lost session.
"""


def write(document, figures, text):
    """Puts the section of this system in the place of its last one; the others stay, in the order of their titles."""
    sections = {}
    if document.exists():
        for part in document.read_text().split("\n## ")[1:]:
            title, _, body = part.partition("\n")
            sections[title] = body.strip("\n")
    sections[figures["system"]["title"]] = text.strip("\n")
    parts = [f"## {title}\n\n{body.strip()}\n" for title, body in sorted(sections.items())]
    document.write_text("\n".join([HEAD, *parts]))
