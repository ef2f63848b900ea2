"""Room for large answers: bounded, in turn, and never a standstill."""

from dataclasses import dataclass, field
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from serving.gateway.answer_room import STEP_BYTES, AnswerRoom

MB = 1 << 20


@dataclass(eq=False)
class Answer:
    size: int = 0
    room: int = 0
    found: list[int] = field(default_factory=list[int])
    parked: bool = False

    def room_found(self, bytes_now: int) -> None:
        self.found.append(bytes_now)
        self.room, self.parked = bytes_now, False


def test_answers_have_room_up_to_the_bound_and_then_wait_in_turn() -> None:
    room = AnswerRoom(4 * MB)
    one, two, three, four = Answer(), Answer(), Answer(), Answer()
    assert room.extend(one, MB) == room.extend(two, MB) == 2 * MB and room.used == 4 * MB
    assert room.extend(three, MB) is None and room.extend(four, 1) is None
    room.leave(one)
    assert three.found == [2 * MB] and four.found == []
    room.leave(two)
    assert four.found == [MB + 1]
    room.leave(three)
    room.leave(four)
    assert room.used == 0


def test_when_all_are_parked_the_largest_goes_on_beyond_the_bound_and_the_others_wait_for_it() -> None:
    room = AnswerRoom(2 * MB)
    one, two = Answer(), Answer()
    assert room.extend(one, 1) == MB + 1
    assert room.extend(two, MB) is None  # one can still end
    assert room.extend(one, MB + 1) == 2 * MB + 1
    assert two.found == []
    room.leave(one)
    assert two.found == [2 * MB]
    room.leave(two)
    assert room.used == 0


def test_an_answer_that_is_whole_gives_back_what_it_does_not_need() -> None:
    room = AnswerRoom(3 * MB)
    one, two = Answer(), Answer()
    assert room.extend(one, MB) == 2 * MB
    assert room.extend(two, MB) is None
    assert room.whole(one, MB + 5) == MB + 5
    assert two.found == [] and room.used == MB + 5
    room.leave(one)
    assert two.found == [2 * MB]


@given(st.lists(st.integers(1, 12 * MB), min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_every_answer_comes_to_its_end_and_the_bound_is_passed_by_one_at_most(sizes: list[int], chance: Random) -> None:
    bound, largest = 8 * MB, max(sizes) + STEP_BYTES
    room, coming = AnswerRoom(bound), [Answer(size) for size in sizes]
    had = dict.fromkeys(map(id, coming), 0)
    while coming:
        going = [one for one in coming if not one.parked]
        assert going, "everybody waits for ever"
        one = chance.choice(going)
        had[id(one)] = min(one.size, had[id(one)] + MB // 2)
        if had[id(one)] == one.size:
            room.whole(one, one.size)
            room.leave(one)
            coming.remove(one)
        elif had[id(one)] > one.room:
            given = room.extend(one, had[id(one)])
            one.parked = given is None
            one.room = given or one.room
        assert room.used <= bound + largest
    assert room.used == 0
