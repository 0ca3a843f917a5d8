# SPDX-License-Identifier: GPL-3.0-or-later
"""The worker: takes jobs from the database one by one and finishes them. `--check` tells whether it is alive."""

from __future__ import annotations

import argparse
import hashlib
import signal
import sqlite3
import sys
import threading
import time
from contextlib import closing

import board

NAME = "worker"
POLL = 0.25  # seconds between two looks for work
BEAT = 2.0  # seconds between two signs of life
DEAD = 15.0  # seconds without one


def work(title: str) -> str:
    """Return the result of a job: how many words it has, and a fingerprint of it."""
    return f"{len(title.split())} words, {hashlib.sha256(title.encode()).hexdigest()[:12]}"


def run(stopped: threading.Event) -> None:
    """Work until stopped. What a killed predecessor had begun is begun again."""
    with closing(board.connect()) as connection:
        left = board.requeue(connection)
        print(f"ready, {left} jobs taken up again" if left else "ready", flush=True)
        beaten = 0.0
        while not stopped.is_set():
            if time.monotonic() - beaten >= BEAT:
                board.beat(connection, NAME)
                beaten = time.monotonic()
            job = board.take(connection)
            if job is None:
                stopped.wait(POLL)
                continue
            board.finish(connection, job["id"], work(job["title"]))
            print(f"job {job['id']} done", flush=True)
    print("stopped", flush=True)


def check() -> int:
    """Return 0 when the worker has given a sign of life lately."""
    try:
        with closing(board.connect()) as connection:
            age = time.time() - board.last_beat(connection, NAME)
    except sqlite3.Error as error:
        print(f"the database does not answer: {error}")
        return 1
    if age > DEAD:
        print(f"no sign of life for {age:.0f} s")
        return 1
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit with 0 if the worker is alive")
    if parser.parse_args().check:
        sys.exit(check())
    end = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: end.set())
    run(end)
