"""Decisions one workload at a time, as tests like to read them."""

from datetime import datetime

from scheduler.cycle import Policy, decide
from scheduler.decisions import told
from scheduler.snapshot import State
from scheduler.vocabulary import Decision


def decided(state: State, policy: Policy | None = None, *, now: datetime) -> list[Decision]:
    """What is decided from scratch about everything that waits, and about what has to stop."""
    seen, decisions = decide(state, (), policy or Policy(), now=now)
    return told(seen, decisions, now=now)
