"""A student trains while processes are killed, disks fill and clocks jump: its result is the same."""

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
from tests.chaos.harness import Harness
from tests.waiting import LONG_S, wait_for

SEED = int(os.environ.get("CHAOS_SEED", "0"))
FAULTS = int(os.environ.get("CHAOS_FAULTS", "50"))
_UNDISTURBED_S = 10
"""The longest time between two faults; a student needs half of it to start."""
_LOCK_S = 7
"""The longest lock: longer than the store waits for one."""

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600 + FAULTS * LONG_S)]


def _kill_teacher(harness: Harness, rng: random.Random) -> None:
    harness.teacher.kill()
    time.sleep(rng.uniform(0, 2))


def _kill_student(harness: Harness, rng: random.Random) -> None:
    harness.kill_student()


def _kill_both(harness: Harness, rng: random.Random) -> None:
    harness.kill_student()
    harness.teacher.kill()


def _fill_store(harness: Harness, rng: random.Random) -> None:
    harness.prober.store_writable = False
    with harness.store_disk.full():
        time.sleep(rng.uniform(1, 4))
        if rng.random() < 0.3:
            harness.teacher.kill()  # restarted when there is space again
    harness.prober.store_writable = True


def _fill_runs(harness: Harness, rng: random.Random) -> None:
    """Fills the disk until the student ends: it cannot write its next checkpoint or its summary."""
    with harness.run_disk.full():
        wait_for(lambda: harness.student.poll() is not None, "the student's end on a full disk")


def _lock_store(harness: Harness, rng: random.Random) -> None:
    harness.prober.store_writable = False
    with closing(sqlite3.connect(harness.store, timeout=60, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        time.sleep(rng.uniform(1, _LOCK_S))
        other.execute("ROLLBACK")
    harness.prober.store_writable = True


def _shift_clock(harness: Harness, rng: random.Random) -> None:
    for _ in range(3):
        harness.clock.set(rng.choice((-(10**8), -86400, -3600, -1, 0, 1, 3600, 86400, 10**8)))
        time.sleep(rng.uniform(1, 2))  # the processes read the offset once a second
    harness.clock.set(0)  # with any other offset libfaketime takes most of a core


def _crawl(harness: Harness, rng: random.Random) -> None:
    """Adds clients that send a byte a second, and clients that stop within the head or the body."""
    connections = [_connected(harness) for _ in range(20)]
    head = b"POST /policy HTTP/1.1\r\nHost: teacher\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: 99\r\n\r\n"
    for number, connection in enumerate(connections):
        connection.sendall(head[: rng.randrange(len(head))] if number % 2 else head + b'{"image":')
    for _ in range(rng.randrange(2, 6)):
        time.sleep(1)
        for connection in connections[:10]:
            with suppress(OSError):  # the teacher may have closed it
                connection.send(b" ")
    # The others stay half open as long as the teacher keeps them
    for connection in connections[:10]:
        connection.close()
    harness.half_open += connections[10:]


def _reset(harness: Harness, rng: random.Random) -> None:
    """Resets connections within a request, or while its answer is pending."""
    question = harness.bodies.question()
    harness.ledger.add_picture(base64.b64decode(question["image"]))
    body = json.dumps(question).encode()
    request = b"POST /policy HTTP/1.1\r\nHost: teacher\r\nContent-Type: application/json\r\n"
    request += b"Content-Length: %d\r\n\r\n" % len(body) + body
    for _ in range(30):
        connection = _connected(harness)
        connection.sendall(request[: rng.choice((len(request), rng.randrange(len(request))))])
        time.sleep(rng.uniform(0, 0.03))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()


def _connected(harness: Harness) -> socket.socket:
    address = urlsplit(harness.teacher.url)
    return socket.create_connection((address.hostname or "", address.port or 0), timeout=LONG_S)


_Fault = Callable[[Harness, random.Random], None]


@pytest.fixture
def harness(tmp_path: Path, bodies: Bodies) -> Iterator[Harness]:
    """A teacher with a store, and its student."""
    harness = Harness(tmp_path, bodies)
    try:
        yield harness
    finally:
        harness.close()


def test_after_every_fault_all_recover_and_no_answer_is_lost(harness: Harness) -> None:
    rng = random.Random(SEED)
    faults: list[_Fault] = [_kill_teacher, _kill_student, _kill_both, _lock_store, _crawl, _reset]
    for fault, unavailable in (
        (_fill_store, harness.store_disk.unavailable),
        (_fill_runs, harness.run_disk.unavailable),
        (_shift_clock, harness.clock.unavailable),
    ):
        if unavailable:
            print(f"\nfaults: {_name(fault)} is left out: {unavailable}", end="")
        else:
            faults.append(fault)
    count: Counter[str] = Counter()
    longest_s = 0.0
    # Each kind at least once, in any order
    drawn = rng.sample(faults, len(faults)) + rng.choices(faults, k=max(0, FAULTS - len(faults)))
    for number, fault in enumerate(drawn[:FAULTS], 1):
        end = time.monotonic() + rng.uniform(0, _UNDISTURBED_S)
        while time.monotonic() < end:
            harness.restart_ended()
            time.sleep(0.02)
        print(f"\nfaults: {number}: {_name(fault)}", end="", flush=True)
        fault(harness, rng)
        count[_name(fault)] += 1
        began = time.monotonic()
        harness.check()
        longest_s = max(longest_s, time.monotonic() - began)
        print(f": all recovered after {time.monotonic() - began:.1f} s", end="", flush=True)
    harness.finish()
    harness.check()
    print(
        f"\nfaults: seed {SEED}: {sum(count.values())} of {dict(count)}; recovered within {longest_s:.1f} s"
        f"\nfaults: {len(harness.ledger)} stored answers are equal to a fresh planner's,"
        f" {len(harness.prober.acknowledged)} of them given to the probing client, which got"
        f" {dict(sorted(harness.prober.statuses.items()))} (0: the connection broke)"
        f"\nfaults: {harness.completed_runs} runs ended bit for bit as undisturbed ones; errors printed:"
    )
    for line, times in Counter(harness.errors).items():
        print(f"faults:   {times} x {line}")
    assert harness.completed_runs > 0


def _name(fault: _Fault) -> str:
    return fault.__name__.strip("_").replace("_", " ")
