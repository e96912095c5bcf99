"""A student learns while everything around it dies, fills up, hangs and lies: it comes to the same end."""

import base64
import json
import os
import random
import socket
import sqlite3
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.chaos.bodies import Bodies
from tests.chaos.school import School
from tests.waiting import LONG_S, wait_for

SEED = int(os.environ.get("CHAOS_SEED", "0"))
FAULTS = int(os.environ.get("CHAOS_FAULTS", "50"))
_UNTROUBLED_S = 10
"""Between two faults, at most: a student takes half of it to start."""
_LOCK_S = 7
"""Longer than the store waits for a lock."""

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600 + FAULTS * LONG_S)]


def _kill_teacher(school: School, rng: random.Random) -> None:
    school.teacher.kill()
    time.sleep(rng.uniform(0, 2))


def _kill_student(school: School, rng: random.Random) -> None:
    school.kill_student()


def _kill_both(school: School, rng: random.Random) -> None:
    school.kill_student()
    school.teacher.kill()


def _fill_store(school: School, rng: random.Random) -> None:
    school.prober.store_is_well = False
    with school.store_disk.full():
        time.sleep(rng.uniform(1, 4))
        if rng.random() < 0.3:
            school.teacher.kill()  # and it is started again when there is room
    school.prober.store_is_well = True


def _fill_runs(school: School, rng: random.Random) -> None:
    """Until the student ends, as it must: it cannot write its next checkpoint, nor its summary."""
    with school.run_disk.full():
        wait_for(lambda: school.student.poll() is not None, "the student's end on a full disk")


def _lock_store(school: School, rng: random.Random) -> None:
    school.prober.store_is_well = False
    with closing(sqlite3.connect(school.store, timeout=60, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        time.sleep(rng.uniform(1, _LOCK_S))
        other.execute("ROLLBACK")
    school.prober.store_is_well = True


def _shift_clock(school: School, rng: random.Random) -> None:
    for _ in range(3):
        school.clock.set(rng.choice((-(10**8), -86400, -3600, -1, 0, 1, 3600, 86400, 10**8)))
        time.sleep(rng.uniform(1, 2))  # the offset is read once a second
    school.clock.set(0)  # beside another offset libfaketime takes most of a core


def _crawl(school: School, rng: random.Random) -> None:
    """Clients of a byte a second, and some that stop in the middle of the head or of the body."""
    connections = [_connected(school) for _ in range(20)]
    head = b"POST /policy HTTP/1.1\r\nHost: teacher\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: 99\r\n\r\n"
    for number, connection in enumerate(connections):
        connection.sendall(head[: rng.randrange(len(head))] if number % 2 else head + b'{"image":')
    for _ in range(rng.randrange(2, 6)):
        time.sleep(1)
        for connection in connections[:10]:
            with suppress(OSError):  # the teacher may have closed it
                connection.send(b" ")
    # The others stay half open for as long as the teacher lets them
    for connection in connections[:10]:
        connection.close()
    school.half_open += connections[10:]


def _reset(school: School, rng: random.Random) -> None:
    """Connections that are reset in the middle of a request, or while its answer is waited for."""
    question = school.bodies.question()
    school.ledger.know(base64.b64decode(question["image"]))
    body = json.dumps(question).encode()
    request = b"POST /policy HTTP/1.1\r\nHost: teacher\r\nContent-Type: application/json\r\n"
    request += b"Content-Length: %d\r\n\r\n" % len(body) + body
    for _ in range(30):
        connection = _connected(school)
        connection.sendall(request[: rng.choice((len(request), rng.randrange(len(request))))])
        time.sleep(rng.uniform(0, 0.03))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()


def _connected(school: School) -> socket.socket:
    address = urlsplit(school.teacher.url)
    return socket.create_connection((address.hostname or "", address.port or 0), timeout=LONG_S)


_Fault = Callable[[School, random.Random], None]


@pytest.fixture
def school(tmp_path: Path, bodies: Bodies) -> Iterator[School]:
    """A teacher with a store, and its student."""
    school = School(tmp_path, bodies)
    try:
        yield school
    finally:
        school.close()


def test_whatever_happens_all_come_back_and_nothing_is_lost(school: School) -> None:
    rng = random.Random(SEED)
    faults: list[_Fault] = [_kill_teacher, _kill_student, _kill_both, _lock_store, _crawl, _reset]
    for fault, why_not in (
        (_fill_store, school.store_disk.why_not),
        (_fill_runs, school.run_disk.why_not),
        (_shift_clock, school.clock.why_not),
    ):
        if why_not:
            print(f"\nfaults: {_name(fault)} is left out: {why_not}", end="")
        else:
            faults.append(fault)
    count: Counter[str] = Counter()
    longest_s = 0.0
    # Each kind at least once, in any order
    drawn = rng.sample(faults, len(faults)) + rng.choices(faults, k=max(0, FAULTS - len(faults)))
    for number, fault in enumerate(drawn[:FAULTS], 1):
        end = time.monotonic() + rng.uniform(0, _UNTROUBLED_S)
        while time.monotonic() < end:
            school.tend()
            time.sleep(0.02)
        print(f"\nfaults: {number}: {_name(fault)}", end="", flush=True)
        fault(school, rng)
        count[_name(fault)] += 1
        began = time.monotonic()
        school.check()
        longest_s = max(longest_s, time.monotonic() - began)
        print(f": all is back and right after {time.monotonic() - began:.1f} s", end="", flush=True)
    school.finish()
    school.check()
    print(
        f"\nfaults: seed {SEED}: {sum(count.values())} of {dict(count)}; back after {longest_s:.1f} s at most"
        f"\nfaults: {len(school.ledger)} stored answers are a fresh planner's,"
        f" {len(school.prober.acknowledged)} of them given to a client of its own, which saw"
        f" {dict(sorted(school.prober.statuses.items()))} (0: the connection broke)"
        f"\nfaults: {school.lessons} runs came to the same end bit for bit as undisturbed; what was said:"
    )
    for line, times in Counter(school.said).items():
        print(f"faults:   {times} x {line}")
    assert school.lessons > 0


def _name(fault: _Fault) -> str:
    return fault.__name__.strip("_").replace("_", " ")
