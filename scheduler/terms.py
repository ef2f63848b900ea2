"""The numbers attempts live by, in one place; a composition root fills them from settings."""

from dataclasses import dataclass, field

from scheduler.cycle import Policy
from scheduler.retries import RetryPolicy


@dataclass(frozen=True, slots=True)
class Terms:
    """Times in seconds, sizes in bytes."""

    lease_seconds: int = 20
    heartbeat_seconds: int = 4
    margin_seconds: int = 5  # no successor starts before lease end plus this
    grace_seconds: int = 10  # from the wish to stop to the kill
    start_timeout_seconds: int = 180  # a placed attempt that nobody claims is given up after this
    node_failures_max: int = 3  # a node where so many attempts in a row could not be prepared is closed
    node_silence_seconds: int = 15  # a node not seen for this long is lost
    money_pause_seconds: int = 15  # work without money is asked again after this
    replica_hold_seconds: int = 1800  # a replica's money is held for this long at once …
    replica_renew_seconds: int = 300  # … and settled and held anew this often
    quote_seconds: int = 900
    half_life_seconds: int = 86_400  # what a firm used this long ago weighs half when it borrows
    upload_bytes_max: int = 1 << 30  # one file
    upload_seconds: int = 86_400  # an upload that is not complete by then is forgotten
    firm_storage_bytes: int = 20 << 30  # all uploads and artifacts of a firm
    output_bytes_max: int = 4 << 30  # all outputs of an attempt
    output_files_max: int = 1_000
    checkpoint_bytes_max: int = 4 << 30  # what a workload keeps for its next attempt
    max_runtime_seconds: int = 7 * 86_400  # the most a job may ask for
    link_seconds: int = 300  # how long a signed download link holds
    policy: Policy = field(default_factory=Policy)
    retry: RetryPolicy = field(default_factory=RetryPolicy)
