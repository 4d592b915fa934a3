#!/usr/bin/env python3
"""What `make outages` does and when, and what it makes of what was seen.

outages.py schedule SEED MINUTES     prints the outages: seconds of calm before it, kind, seconds
outages.py judge FOLDER SINCE COUNT  reads `outages`, `states` and `journal` of the folder, and the count of
                                     jobs as load.py prints it; prints Markdown; fails if a promise was broken
outages.py legend                    prints what the columns mean and what is held against what
"""

import json
import random
import sys
from dataclasses import dataclass, field

KINDS = {
    "killed": "broker killed (SIGKILL), started",
    "killed-only": "broker killed (SIGKILL), left to its own unit",
    "stopped": "broker stopped (SIGSTOP)",
    "dropped": "packets to and from the broker dropped",
    "memory": "memory alarm: the broker blocks publishing",
    "app": "`rabbitmqctl stop_app`, then `start_app`",
    "restarted": "`systemctl restart rabbitmq-server`",
    "closed": "all connections closed by the broker",
}
# In these the broker is there all the time, so nothing may die however long they last.
HARMLESS = ("memory", "closed")

# As shipped. systemd's unit and the service's defaults.
DISCONNECT_KILL_S = 10
CHECK_S = 1
RESTART_S = 5
POSTMORTEM_MAX_S = 2
RECONNECT_PAUSE_MAX_S = 5
COOLDOWN_MAX_S = 120 * 1.25
# What a busy machine needs besides.
SLACK_S = 2
# The last attempt before the broker was back may hang for so long, and then comes the longest pause; or the
# process dies just then, and the next begins. Then it loads its model, connects and proves itself.
READY_BOUND_S = 30
# The broker was away for less than this: a service that was ready when it went must live.
LIVES_BELOW_S = DISCONNECT_KILL_S - RECONNECT_PAUSE_MAX_S + 1
# … and for longer than this: it must have died.
DIES_ABOVE_S = DISCONNECT_KILL_S + CHECK_S + SLACK_S
# Two outages with less calm between them may be one to the service.
JOINED_BELOW_S = 5
# The load sends one job a second; it too needs a while to come back, and a memory alarm holds it up.
JOBS_EVERY_S = 3
# The alarm asks systemd every two seconds.
TRY_SLACK_S = 10

PROCESS_EXIT = "98e322203f7a4ed290d09fe03c09fe15"
STARTING = "7d4958e842da4a758f6c1cdc7b36dcc5"
STOPPING = "de5b426a63be47a7b6ac3eaac82e2f6f"
RESTART_SCHEDULED = "5eb03494b6584870a536b337290809b3"
REFUSED = "Start request repeated too quickly."
DEATH = "6f8c1727ddbd49cd9cee8f93eafa69e7"
ALARM = "d9ffcc143c0247c08e92a2fbacb0c3bf"
UNIT = "embeddings.service"

# --- the schedule --------------------------------------------------------------------------------------


def deck(minutes):
    """Each kind and length once; minutes of absence are a part of the whole."""
    return [
        *(("killed", length) for length in (0, 5, 20, 60, round(3 * minutes))),
        ("killed-only", 0),
        *(("stopped", length) for length in (3, 15, 60)),
        *(("dropped", length) for length in (5, 30)),
        ("memory", 20),
        ("app", 15),
        ("restarted", 0),
        ("closed", 0),
    ]


# What a kind takes besides its length.
EXTRA_S = {"killed": 8, "killed-only": 18, "restarted": 9, "app": 6, "memory": 3, "closed": 3}


def calm(draw, minutes):
    """Often too short to come back in, and sometimes long enough for a cool-down."""
    low, high = draw.choices([(0.2, 3), (5, 20), (20, 60), (90, 150)], [35, 35, 20, 10])[0]
    return min(draw.uniform(low, high), 3 * minutes)


def schedule(seed, minutes):
    """Shuffled decks as far as the time goes, and one long outage in their midst."""
    draw = random.Random(seed)
    long = round(60 * minutes / 3)
    left = 60 * minutes - long - 30
    outages = []
    while True:
        cards = deck(minutes)
        draw.shuffle(cards)
        taken = 0
        for kind, length in cards:
            pause = calm(draw, minutes)
            if (cost := pause + length + EXTRA_S.get(kind, 1)) <= left:
                outages.append((pause, kind, length))
                left -= cost
                taken += 1
        if not taken:
            break
    outages.insert(draw.randint(len(outages) // 3, 2 * len(outages) // 3), (calm(draw, minutes), "killed", long))
    for pause, kind, length in outages:
        print(f"{pause:.1f} {kind} {length}")


# --- what was seen -------------------------------------------------------------------------------------


@dataclass
class Outage:
    kind: str
    length: int
    at: float
    back: float
    # When the next one begins.
    end: float = 0
    deaths: list = field(default_factory=list)
    wrong: list = field(default_factory=list)

    @property
    def how_long(self):
        if self.kind == "killed":
            return f" after {duration(self.length)}" if self.length else " at once"
        return f", {duration(self.length)}" if self.length else ""

    @property
    def away(self):
        return self.back - self.at


@dataclass
class State:
    at: float
    pid: str
    active: str
    said: str

    @property
    def ready(self):
        return self.active == "active" and self.said == "ready"

    @property
    def words(self):
        return "ready" if self.ready else {"failed": "cooling down", "activating": "starting"}.get(self.active, self.said)


@dataclass
class Event:
    at: float
    fields: dict

    def __getitem__(self, name):
        value = self.fields.get(name)
        return value if isinstance(value, str) else ""


def read_outages(path):
    with open(path) as lines:
        rows = [line.split() for line in lines]
    return [Outage(kind, int(length), float(at), float(back)) for kind, length, at, back in rows]


def read_states(path):
    with open(path) as lines:
        rows = [line.split() for line in lines]
    return [State(float(at), *rest) for at, *rest in rows if len(rest) == 3]


def read_journal(path):
    with open(path) as lines:
        entries = [json.loads(line) for line in lines]
    return [Event(int(entry["__REALTIME_TIMESTAMP"]) / 1e6, entry) for entry in entries]


class Journal:
    """Deaths and starts are systemd's word, records and alarms the service's."""

    def __init__(self, events):
        self.events = events
        of_unit = [event for event in events if event["UNIT"] == UNIT]

        def by_id(message_id):
            return [event for event in of_unit if event["MESSAGE_ID"] == message_id]

        self.deaths = [event for event in by_id(PROCESS_EXIT) if "Main process" in event["MESSAGE"]]
        self.starts = by_id(STARTING)
        self.stops = by_id(STOPPING)
        self.scheduled = by_id(RESTART_SCHEDULED)
        self.refused = [event for event in of_unit if event["MESSAGE"].endswith(REFUSED)]
        self.records = [event for event in events if event["KILL_REASON"]]
        self.alarms = [event for event in events if event["MESSAGE_ID"] == ALARM]

    def records_of(self, number):
        """Those between this death and the next."""
        begin = self.deaths[number].at - 1
        end = self.deaths[number + 1].at - 1 if number + 1 < len(self.deaths) else float("inf")
        return [record for record in self.records if begin <= record.at < end]

    def show(self, begin, end):
        """As journalctl would, without RabbitMQ's lines."""
        for event in self.events:
            if begin <= event.at <= end and UNIT in json.dumps(event.fields):
                who = event["SYSLOG_IDENTIFIER"] or event["_COMM"]
                yield f"{event.at:.3f} {who}: {event['MESSAGE']}"


# --- what it is held against ---------------------------------------------------------------------------


class Judgement:
    def __init__(self, outages, states, journal, since):
        self.outages, self.states, self.journal, self.since = outages, states, journal, since
        self.end = states[-1].at if states else since
        self.end = max([self.end] + [event.at for event in journal.events[-1:]])
        for outage, following in zip(outages, outages[1:]):
            outage.end = following.at
        outages[-1].end = self.end
        for outage in outages:
            outage.deaths = [
                number for number, death in enumerate(journal.deaths) if outage.at <= death.at < outage.end
            ]

    def state_at(self, moment):
        return next((state for state in reversed(self.states) if state.at <= moment), self.states[0])

    def row(self, number, outage):
        before = self.state_at(outage.at)
        joined = number > 0 and outage.at - self.outages[number - 1].back < JOINED_BELOW_S
        self.hold_deaths(outage, before.ready and not joined)
        records = self.hold_records(outage)
        ready = self.hold_ready(outage)
        alarms = [alarm for alarm in self.journal.alarms if outage.at <= alarm.at < outage.end]
        cells = [
            clock(outage.at - self.since),
            KINDS[outage.kind] + outage.how_long,
            f"{outage.away:.1f} s" if outage.kind not in HARMLESS else "–",
            before.words,
            ", ".join(f"{self.journal.deaths[it].at - outage.at:.1f} s" for it in outage.deaths) or "none",
            records,
            ", ".join(f"{alarm['COOLDOWN_S']} s" for alarm in alarms),
            *ready,
        ]
        if outage.wrong:
            cells[1] = f"**FAIL** ({'; '.join(outage.wrong)}) {cells[1]}"
        return "| " + " | ".join(cells) + " |"

    def hold_deaths(self, outage, ready_before):
        died = len(outage.deaths)
        if died > 1:
            outage.wrong.append(f"{died} deaths")
        if not ready_before:
            return
        if died and (outage.kind in HARMLESS or outage.away <= LIVES_BELOW_S):
            outage.wrong.append("died")
        if outage.kind in HARMLESS:
            return
        if not died and outage.away >= DIES_ABOVE_S:
            outage.wrong.append("did not die")
        for number in outage.deaths:
            after = self.journal.deaths[number].at - outage.at
            if after > DISCONNECT_KILL_S + CHECK_S + SLACK_S:
                outage.wrong.append(f"died after {after:.1f} s")

    def hold_records(self, outage):
        reasons = []
        for number in outage.deaths:
            death, records = self.journal.deaths[number], self.journal.records_of(number)
            reasons += [record["KILL_REASON"] for record in records]
            if len(records) != 1:
                outage.wrong.append(f"{len(records)} records of one death")
            if any(record["KILL_REASON"] != "broker_disconnected" for record in records):
                outage.wrong.append("another reason than the broker")
            if death["EXIT_STATUS"] != "70":
                outage.wrong.append(f"exit is {death['EXIT_STATUS']}")
        return ", ".join(reasons) or "none"

    def hold_ready(self, outage):
        """When it was ready again, counted from the broker's return, and the bound of that."""
        cooled = max((alarm.at + float(alarm["COOLDOWN_S"]) for alarm in self.journal.alarms if alarm.at < outage.end), default=0)
        bound = max(cooled - outage.back, 0) + READY_BOUND_S
        shown = f"{bound:.0f} s" + (" (cool-down)" if cooled > outage.back else "")
        free = max([outage.back] + [self.journal.deaths[number].at for number in outage.deaths])
        # The first moment from which on it is ready: in the state that holds then, or in a later one.
        later = [state.at for state in self.states if free < state.at < outage.end and state.ready]
        if self.state_at(free).ready:
            later.insert(0, free)
        if later:
            after = later[0] - outage.back
            if after > bound:
                outage.wrong.append("ready too late")
            if later[0] == outage.back and not outage.deaths:
                return "all the time" if self.ready_throughout(outage) else "0.0 s", shown
            return f"{after:.1f} s", shown
        if outage.end - outage.back > bound:
            outage.wrong.append("not ready within the bound")
        return "the next came first" if outage.end < self.end else "never", shown

    def ready_throughout(self, outage):
        during = [state for state in self.states if outage.at <= state.at <= outage.back]
        return self.state_at(outage.at).ready and all(state.ready for state in during)

    def retries(self):
        """Each refused start raises one alarm, and each alarm ends in one try: how many were made, what was wrong."""
        wrong, tried = [], 0
        journal = self.journal
        if len(journal.alarms) != len(journal.refused):
            wrong.append(f"{len(journal.refused)} start limits and {len(journal.alarms)} alarms")
        for alarm in journal.alarms:
            pause = float(alarm["COOLDOWN_S"])
            if not 0 < pause <= COOLDOWN_MAX_S:
                wrong.append(f"a cool-down of {pause:.0f} s")
            late = alarm.at + pause + TRY_SLACK_S
            if any(alarm.at + pause - 1 <= start.at <= late for start in journal.starts):
                tried += 1
            elif late < self.end:
                wrong.append(f"no try after the alarm at {clock(alarm.at - self.since)}")
        return tried, wrong

    def overall(self, jobs):
        journal, wrong = self.journal, []
        tried, of_retries = self.retries()
        wrong += of_retries
        # Every start is systemd's own after a death, or the alarm's after its cool-down.
        hands = len(journal.starts) - (len(journal.scheduled) - len(journal.refused)) - tried + len(journal.stops)
        pids = {state.pid for state in self.states} - {"0"}
        outside = [death for death in journal.deaths if not any(it.at <= death.at < it.end for it in self.outages)]
        away = sum(outage.away for outage in self.outages if outage.kind not in HARMLESS)
        checks = [
            (len(journal.records) == len(journal.deaths), "records are not as many as deaths"),
            (len(pids) == len(journal.deaths) + 1, f"{len(pids)} processes were seen"),
            (not outside, "a death before the first outage"),
            (hands == 0, "somebody laid a hand on"),
            (self.states[-1].ready, f"in the end it is {self.states[-1].words}"),
            (jobs.get("sent", 0) >= (self.end - self.since - away) / JOBS_EVERY_S, "the load was not there all the time"),
            (jobs.get("lost") == 0, "jobs were lost"),
            (jobs.get("errors") == 0, "wrong answers"),
        ]
        wrong += [what for holds, what in checks if not holds]
        figures = [
            ("outages", len(self.outages)),
            ("broker away, all together", f"{duration(round(away))} of {duration(round(self.end - self.since))}"),
            ("deaths", len(journal.deaths)),
            ("records of a death", len(journal.records)),
            ("start limits reached", len(journal.refused)),
            ("alarms", len(journal.alarms)),
            ("tries after a cool-down", tried),
            ("hands laid on", hands),
            ("jobs confirmed", jobs.get("sent")),
            ("jobs lost", jobs.get("lost")),
            ("jobs done twice", jobs.get("twice")),
            ("wrong answers", jobs.get("errors")),
        ]
        return figures, wrong


def clock(seconds):
    return f"{int(seconds) // 60:02}:{int(seconds) % 60:02}"


def duration(seconds):
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min" + (f" {seconds % 60} s" if seconds % 60 else "")


def judge(folder, since, count):
    journal = Journal(read_journal(f"{folder}/journal"))
    judgement = Judgement(read_outages(f"{folder}/outages"), read_states(f"{folder}/states"), journal, since)
    rows = [judgement.row(number, outage) for number, outage in enumerate(judgement.outages)]
    figures, wrong = judgement.overall(json.loads(count or "{}"))
    print("| in all | |\n|---|---|")
    for name, value in figures:
        print(f"| {name} | {value} |")
    for what in wrong:
        print(f"| **FAIL** | {what} |")
    print(
        "\n| at | outage | broker away | before | died after | records | alarm, cool-down | ready again after | bound |"
        "\n|---|---|---|---|---|---|---|---|---|"
    )
    print("\n".join(rows))
    for outage in judgement.outages:
        if outage.wrong:
            print(f"\n{clock(outage.at - since)} {outage.kind}: {'; '.join(outage.wrong)}", file=sys.stderr)
            for line in journal.show(outage.at - 5, min(outage.end, outage.back + 90) + 5):
                print("      :", line, file=sys.stderr)
    if wrong or any(outage.wrong for outage in judgement.outages):
        sys.exit(1)


def legend():
    print(f"""\
- **broker away**: from the harm until the broker answers a new connection. **before**: what the service was when the harm
  came: ready, starting (it waits for the broker), or cooling down after a start limit. Calm between two outages is of
  random length, from a fraction of a second to minutes.
- **died after**: counted from the harm. One outage costs at most one death. None is allowed to a service that was ready, if the
  broker was away for at most {LIVES_BELOW_S} s (`disconnect_kill_ms` less the longest pause between two attempts to connect) or was
  there all the time; one is demanded, within {DISCONNECT_KILL_S + CHECK_S + SLACK_S} s, if it was away for longer than that.
- **records**: of the deaths of this row in the journal: exactly one per death, with the reason `broker_disconnected`. Deaths and
  starts are counted by what systemd says, not by what the service says.
- **ready again after**: counted from the broker's return. *Bound*: {READY_BOUND_S} s, behind the end of the cool-down if the start
  limit was reached. A cool-down itself is announced by its alarm and lasts at most {COOLDOWN_MAX_S:.0f} s (two minutes, spread by a quarter).
- **hands laid on**: starts and stops of the service that are neither systemd's own after a death nor the alarm's after its
  cool-down.
- **jobs lost**: confirmed by the broker and never answered. **Done twice**: with a second answer, because a process died between an
  answer and its acknowledgement.""")


if __name__ == "__main__":
    command, *rest = sys.argv[1:] or [""]
    if command == "schedule":
        schedule(rest[0], float(rest[1]))
    elif command == "judge":
        judge(rest[0], float(rest[1]), rest[2])
    elif command == "legend":
        legend()
    else:
        sys.exit(__doc__)
