"""docs/compatibility.md says what the tests prove, no more and no less, of every path that the gateway answers."""

from serving.gateway.endpoints import ENDPOINTS
from tests.support.coverage import CLIENTS, proofs, table
from tests.support.sources import ROOT

DOCUMENT = ROOT / "docs" / "compatibility.md"
PLAIN_PATHS = {"/v1/models", "/v1/usage"}


def test_the_table_is_what_the_tests_prove() -> None:
    written = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("|")]
    assert written == table(proofs()), "print it anew: python -m tests.support.coverage"


def test_every_path_of_the_gateway_is_in_it_and_no_other() -> None:
    assert {proof.endpoint for proof in proofs()} == {path.decode() for path in ENDPOINTS} | PLAIN_PATHS


def test_every_client_named_in_a_test_has_a_column() -> None:
    assert {proof.client for proof in proofs()} == set(CLIENTS)
