import threading

from scheduler.node.lease import Lease, boottime


def test_a_lease_runs_from_when_it_was_asked_for() -> None:
    ended = threading.Event()
    lease = Lease(ended.set)
    try:
        lease.renew(boottime() - 8, 10)
        assert 1 < lease.remaining() <= 2
    finally:
        lease.close()


def test_an_older_answer_never_shortens_a_lease() -> None:
    lease = Lease(lambda: None)
    try:
        now = boottime()
        lease.renew(now, 60)
        lease.renew(now - 30, 60)
        assert lease.remaining() > 50
    finally:
        lease.close()


def test_the_end_of_a_lease_is_acted_upon_and_final() -> None:
    ended = threading.Event()
    lease = Lease(ended.set)
    lease.renew(boottime(), 0.3)
    assert ended.wait(5)
    lease.close()  # before the kernel's own timer: this process shall live
    lease.renew(boottime(), 60)
    assert lease.remaining() == 0


def test_a_lease_that_was_never_held_is_over_but_ends_nothing() -> None:
    ended = threading.Event()
    lease = Lease(ended.set)
    assert lease.remaining() == 0
    assert not ended.wait(0.2)
    lease.close()
