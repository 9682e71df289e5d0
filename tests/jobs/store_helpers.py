"""Real processes, and a checker of stores that shares no code with the product."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("fork")


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder where fsync costs nothing, for tests with thousands of writes."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(dir=base))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def in_child(
    work: Callable[[Callable[[Any], None]], None], **environment: str
) -> tuple[int, list[Any]]:
    """Fork, run ``work(say)`` there, and return its exit code and all that it said before.

    What was said before a SIGKILL is kept. The exit code is -9 after a SIGKILL, 1 after an
    error that ``work`` did not expect.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.environ.update(environment)
            work(lambda said: _send(writer, said))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    with open(reader, "rb") as pipe:
        said = list(_received(pipe))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


def at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Run ``work(number)`` in as many processes, released together; their results in order."""
    barrier = CONTEXT.Barrier(count)
    queue = CONTEXT.SimpleQueue()

    def run(number: int) -> None:
        barrier.wait()
        try:
            queue.put((number, work(number)))
        except Exception as error:
            queue.put((number, error))

    processes = [CONTEXT.Process(target=run, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    results = dict(queue.get() for _ in processes)
    for process in processes:
        process.join()
    return [results[number] for number in range(count)]


@contextmanager
def running(work: Callable[[], None]) -> Iterator[int]:
    """A process that runs ``work`` and then waits; it is killed, if it still lives, and reaped.

    Yields its pid once ``work`` has returned.
    """
    ready = CONTEXT.Event()

    def run() -> None:
        work()
        ready.set()
        signal.pause()

    process = CONTEXT.Process(target=run)
    process.start()
    assert ready.wait(10)
    try:
        yield process.pid
    finally:
        process.kill()
        process.join()


def check_store(root: Path, but: str = "") -> None:
    """Every file of a store, outside tmp/ and logs/, is whole; ``but`` one recipe's data."""
    for path in root.rglob("*.json"):
        if "tmp" not in path.relative_to(root).parts:
            check_sealed(path)
    for record in root.glob("results/*/*/record.json"):
        said = json.loads(record.read_bytes())
        if said["recipe"] == but:
            continue
        (data,) = (each for each in record.parent.iterdir() if each.stem == said["attempt"])
        assert hashlib.sha256(data.read_bytes()).hexdigest() == said["sha256"], data
        assert data.stat().st_size == said["length"], data
    for folder in root.glob("jobs/*"):
        assert {"spec.json", "plan.json"} <= {each.name for each in folder.iterdir()}


def check_sealed(path: Path) -> None:
    text = path.read_text()
    body, _, tail = text.rpartition(',"checksum":"')
    assert tail == hashlib.sha256((body + "}").encode()).hexdigest() + '"}\n', path


def damages(data: bytes, stride: int = 1) -> Iterator[bytes]:
    """The bytes with one bit flipped, at every place, and cut short at every place."""
    for place in range(0, len(data), stride):
        flipped = bytearray(data)
        flipped[place] ^= 1 << (place % 8)
        yield bytes(flipped)
        yield data[:place]


def _send(writer: int, said: Any) -> None:
    os.write(writer, pickle.dumps(said))


def _received(pipe: Any) -> Iterator[Any]:
    while True:
        try:
            yield pickle.load(pipe)
        except EOFError:
            return
