"""One node over time, held against what a look at every single second says."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from quotas.vocabulary import FirmId
from scheduler.stretches import FOREVER, Free, Stretches, Use
from scheduler.vocabulary import Shape

NOW = datetime(2026, 11, 2, 2, 0, tzinfo=UTC)
EMPTY = Free(16, 16, (1000, 1000, 1000))
FIRMS = [FirmId("firm_1"), FirmId("firm_2")]
LAST = 40  # nothing begins or ends from here on


def moment(second: int) -> datetime:
    return FOREVER if second >= LAST else NOW + timedelta(seconds=second)


def use(start: int, end: int, devices: tuple[int, ...], milli: int, firm: FirmId) -> Use:
    shape = Shape.of(milli if milli < 1000 else 1000 * len(devices), 2, 1) if devices else Shape.of(0, 3, 2)
    return Use(moment(start), moment(end), devices, shape, firm)


@st.composite
def uses(draw: st.DrawFn) -> list[Use]:
    """What fits on the node together; what begins first was there before."""
    taken, cpus, fitting = dict[tuple[int, int], tuple[int, FirmId]](), dict[int, int](), list[Use]()
    for n in range(draw(st.integers(0, 9))):
        start = 0 if n < 4 else draw(st.integers(0, LAST - 2))
        end = draw(st.integers(start + 1, LAST + 3))
        milli, firm = draw(st.sampled_from([300, 500, 1000])), draw(st.sampled_from(FIRMS))
        devices = tuple(sorted(draw(st.sets(st.integers(0, 2), max_size=1 if milli < 1000 else 2))))
        made, span = use(start, end, devices, milli, firm), range(start, min(end, LAST + 1))
        places = [(second, device) for second in span for device in devices]
        fits = all(taken.get(at, (0, firm))[1] == firm and taken.get(at, (0, firm))[0] + milli <= 1000 for at in places)
        if fits and all(cpus.get(second, 0) + made.shape.cpu_milli <= EMPTY.cpu_milli for second in span):
            fitting.append(made)
            taken |= {at: (taken.get(at, (0, firm))[0] + milli, firm) for at in places}
            cpus |= {second: cpus.get(second, 0) + made.shape.cpu_milli for second in span}
    return fitting


class Seconds:
    """The same node, looked at second by second."""

    def __init__(self, uses: list[Use]) -> None:
        self.uses = uses

    def there(self, second: int) -> list[Use]:
        at = NOW + timedelta(seconds=second)
        return [use for use in self.uses if use.start <= at < use.end]

    def least(self, start: int, end: int) -> Free:
        seen = [self.there(second) for second in range(start, end)]
        return Free(
            min(EMPTY.cpu_milli - sum(use.shape.cpu_milli for use in there) for there in seen),
            min(EMPTY.memory_mib - sum(use.shape.memory_mib for use in there) for there in seen),
            [
                min(1000 - sum(use.shape.gpu_milli for use in there if device in use.devices) for there in seen)
                for device in range(3)
            ],
        )

    def holds(self, shape: Shape, firm: FirmId, start: int, end: int) -> bool:
        least = self.least(start, end)
        others = {
            device for s in range(start, end) for one in self.there(s) if one.firm != firm for device in one.devices
        }
        open_ = [d for d, milli in enumerate(least.gpu_milli) if milli >= shape.gpu_milli]
        if shape.is_share:
            open_ = [device for device in open_ if device not in others]
        enough = len(open_) >= shape.gpus
        return enough and least.cpu_milli >= shape.cpu_milli and least.memory_mib >= shape.memory_mib


SHAPES = [Shape.of(0, 6, 0), Shape.of(400), Shape.of(700, 2, 2), Shape.of(1000, 0, 4), Shape.of(2000), Shape.of(3000)]


@settings(max_examples=300, deadline=None)
@given(
    uses(),
    st.integers(0, 4),
    st.lists(st.integers(1, 5), max_size=4),
    st.sampled_from(SHAPES),
    st.sampled_from([None, 1, 4, 15]),
    st.integers(0, LAST - 5),
)
def test_a_node_in_stretches_says_what_a_look_at_every_second_says(
    there: list[Use], running: int, sooner: list[int], shape: Shape, seconds: int | None, not_before: int
) -> None:
    running = min(running, next((i for i, one in enumerate(there) if one.start > NOW), len(there)))
    stretches = Stretches(EMPTY, there[:running], NOW)
    for one in there[running:]:
        stretches.take(one)
    for i, at in enumerate(sooner[:running]):
        if moment(at) < there[i].end:
            stretches.end(there[i], moment(at))
            there[i] = replace(there[i], end=moment(at))
    truth = Seconds(there)
    firm, end = FIRMS[0], LAST + 2 if seconds is None else not_before + seconds
    assert stretches.least(moment(not_before), moment(end)) == truth.least(not_before, min(end, LAST + 2))
    whole = [d for d, milli in enumerate(truth.least(not_before, min(end, LAST + 2)).gpu_milli) if milli == 1000]
    assert stretches.whole(moment(not_before), moment(end)) == whole
    found = stretches.first(shape, firm, seconds, moment(not_before))
    starts = range(not_before, LAST + 1)
    fitting = (s for s in starts if truth.holds(shape, firm, s, LAST + 2 if seconds is None else s + seconds))
    first = next(fitting, None)
    assert found == (None if first is None else NOW + timedelta(seconds=first))
