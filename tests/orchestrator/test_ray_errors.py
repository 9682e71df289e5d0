"""What Ray's errors mean, on errors as Ray 2.60 words them."""

from __future__ import annotations

import pytest

exceptions = pytest.importorskip("ray.exceptions")

from orchestrator.ray_errors import died_before, in_words, lost_with_its_node, meaning  # noqa: E402

FACTS = """The actor died unexpectedly before finishing this task.
\tclass_name: LongtakeWorker
\tactor_id: 00143c08168b0ddedd9dfdee01000000
\tpid: 4242
\tnamespace: 6c0d
\tip: 10.0.0.7
"""
KILLED = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker "
    "exit detail: Worker unexpectedly exits with a connection error code 2. End of file. There are "
    "some potential root causes. (1) The process is killed by SIGKILL by OOM killer due to high "
    "memory usage. (2) ray stop --force is called. (3) SIGSEGV or another unexpected error."
)
MEMORY = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker "
    "exit detail: Task was killed due to the node running low on memory."
)
NODE = (
    "The actor died because its node has died. Node Id: ab12, Ip address: 10.0.0.7, Port: 4\n"
    "\tthe actor's node was terminated unexpectedly: health check failed"
)


def died(why: str) -> Exception:
    return exceptions.RayActorError(error_msg=FACTS + why)


@pytest.mark.parametrize(
    ("why", "said", "node"),
    [
        (KILLED, "was killed or crashed", False),
        (MEMORY, "killed for lack of memory", False),
        (NODE, "its node was lost", True),
        ("Something new.", "Something new.", False),
    ],
)
def test_why_a_worker_died(why: str, said: str, node: bool) -> None:
    error = died(why)
    assert meaning(error) == "actor"
    assert said in in_words(error)
    assert "actor_id" not in in_words(error) and "\n" not in in_words(error)
    assert lost_with_its_node(error) is node


def test_the_cause_inside_a_task_error() -> None:
    lost = exceptions.ObjectLostError("ab" * 14, None, "")
    task = exceptions.RayTaskError("run", "trace", lost, "proc")
    assert meaning(task) == "object"
    assert meaning(exceptions.RayTaskError("run", "trace", ValueError("no"), "proc")) == "task"
    assert in_words(exceptions.RayTaskError("run", "t", ValueError("no"), "p")) == "ValueError: no"


def test_a_task_whose_input_an_actor_took_with_it() -> None:
    """It is not the task's own worker that died."""
    task = exceptions.RayTaskError("run", "trace", died(KILLED), "proc")
    assert died_before(task) and meaning(task) == "object"
    assert not died_before(died(KILLED)) and not died_before(task.cause)
    assert "was killed or crashed" in in_words(task)
