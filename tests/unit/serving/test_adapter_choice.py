"""Which adapters a replica keeps."""

from datetime import UTC, datetime, timedelta

from serving.adapter_choice import Candidate, choose
from serving.vocabulary import AdapterId

NOW = datetime(2026, 11, 2, tzinfo=UTC)


def wanted(name: str, firm: str, minutes_ago: int) -> Candidate:
    return Candidate(AdapterId(name), firm, NOW - timedelta(minutes=minutes_ago))


ALL = [wanted("a", "firm_1", 30), wanted("b", "firm_2", 10), wanted("c", "firm_1", 20)]


def test_the_last_wanted_adapters_stay_when_room_is_short() -> None:
    assert choose(ALL, room=8, firm_id=None) == ["b", "c", "a"]
    assert choose(ALL, room=2, firm_id=None) == ["b", "c"]
    assert choose(ALL, room=0, firm_id=None) == []


def test_a_dedicated_deployment_loads_only_its_own_firms_adapters() -> None:
    assert choose(ALL, room=8, firm_id="firm_1") == ["c", "a"]
    assert choose(ALL, room=8, firm_id="firm_3") == []


def test_equal_times_are_ordered_by_id_so_that_replicas_agree() -> None:
    same = [wanted(name, "firm_1", 5) for name in ("z", "m", "a")]
    assert choose(same, room=2, firm_id=None) == choose(reversed(same), room=2, firm_id=None) == ["a", "m"]
