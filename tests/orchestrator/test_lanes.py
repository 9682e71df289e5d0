"""A piece waits for a decoder's context that will be there sooner than a warm-up."""

from __future__ import annotations

from orchestrator.lanes import Lanes
from tests.orchestrator.bare import piece
from tests.orchestrator.plans import frames_for, make_plan

#: Ten windows; a cold decoder warms up over ten latent frames, two to three pieces.
PLAN = make_plan(frames_for(10), decode_context=10)
PIECES = {piece(index) for index in range(10)}


def lanes(**stands_before: int) -> Lanes:
    made = Lanes(PLAN)
    for worker, index in stands_before.items():
        made.sent(piece(index - 1), worker)
    return made


def test_the_next_piece_belongs_to_the_lane() -> None:
    assert lanes(w1=3, w2=1).worker(piece(3), PIECES) == ("w1", True)


def test_anybody_starts_a_shot() -> None:
    assert lanes().worker(piece(0), PIECES) == (None, False)
    assert lanes(w1=5).worker(piece(4), PIECES) == (None, False), "a lane never goes back"


def test_a_near_lane_is_waited_for_and_a_far_one_is_not() -> None:
    starts = [start for start, _ in PLAN.shots[0].pieces]
    waits = [lanes(w1=1).worker(piece(index), PIECES)[1] for index in range(2, 10)]
    assert waits == [starts[1] >= starts[index] - 10 for index in range(2, 10)]
    assert waits[0] and not waits[-1]


def test_a_lane_that_others_overtook_does_not_count() -> None:
    """Piece 3 is done, so the lane before it goes no further."""
    assert lanes(w1=3).worker(piece(4), PIECES - {piece(3)}) == (None, False)
    assert lanes(w1=3, w2=4).worker(piece(4), PIECES - {piece(3)}) == ("w2", True)


def test_lost_and_avoided_lanes_do_not_count() -> None:
    both = lanes(w1=3, w2=3)
    assert both.worker(piece(3), PIECES, avoid={"w1"}) == ("w2", True)
    both.end("w2")
    assert both.worker(piece(3), PIECES, avoid={"w1"}) == (None, False)
    both.end("w1", shot=1)
    assert both.worker(piece(3), PIECES) == ("w1", True)
    both.end("w1", shot=0)
    assert both.worker(piece(3), PIECES) == (None, False)
