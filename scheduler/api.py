"""The door to `scheduler` for the packages above it. Functions take the caller's open transaction, or a Database."""

from pathlib import Path

from scheduler.artifacts import artifact_view as artifact_view
from scheduler.artifacts import artifacts_of as artifacts_of
from scheduler.artifacts import list_artifacts as list_artifacts
from scheduler.artifacts import open_artifact as open_artifact
from scheduler.attempts import authenticate_attempt as authenticate_attempt
from scheduler.jobs import cancel_job as cancel_job
from scheduler.jobs import submit_job as submit_job
from scheduler.quotes import quote_job as quote_job
from scheduler.replicas import stop_workload as stop_workload
from scheduler.replicas import submit_replica as submit_replica
from scheduler.replicas import workload_states as workload_states
from scheduler.specs import InputRef as InputRef
from scheduler.specs import JobSpec as JobSpec
from scheduler.terms import Terms as Terms

MIGRATIONS: Path = Path(__file__).parent / "adapters" / "migrations"
