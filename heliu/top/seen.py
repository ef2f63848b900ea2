"""What `heliu top` shows, asked of the control plane: firms, models, replicas, pools and the queue."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import httpx

ACCOUNTS_MAX = 20
"""How many firms' balances are looked up each time; the others are listed without."""
Ask = Callable[[str], Any]
"""A path of the control plane → its JSON; raises Refused."""


class Refused(Exception):
    """The platform did not answer this, or said no; the message is its own."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


def asking(client: httpx.Client) -> Ask:
    """Asks over HTTP."""

    def ask(path: str) -> Any:
        try:
            answer = client.get(path)
        except httpx.TransportError as error:
            raise Refused(f"the platform does not answer ({error})", status=0) from None
        if answer.is_success:
            return answer.json()
        try:
            said = str(answer.json()["detail"])
        except (ValueError, KeyError, TypeError):
            said = f"HTTP {answer.status_code}"
        raise Refused(said, status=answer.status_code)

    return ask


def look(ask: Ask) -> dict[str, Any]:
    """Everything the caller may see, once. A platform's member sees all firms, a firm's only its own.

    Raises Refused.
    """
    me = ask("/api/me")
    queue = ask("/api/queue")
    return {
        "firms": _firms(ask, me, queue["entries"]),
        "models": [_only(row, "name", "capabilities", "replicas_ready", "deprecated_at") for row in ask("/api/models")],
        "replicas": [_replica(row) for row in ask("/api/replicas")],
        "pools": [_only(row, "name", "nodes", "gpu_milli", "placed_milli") for row in ask("/api/pools")],
        "queue": queue,
    }


def _firms(ask: Ask, me: Mapping[str, Any], waiting: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    try:
        firms = ask("/api/firms?state=active")
    except Refused as refused:
        if refused.status != httpx.codes.FORBIDDEN:
            raise
        firms = [me["firm"]]
    waits = Counter(entry["firm_id"] for entry in waiting)
    rows: list[dict[str, Any]] = []
    for number, firm in enumerate(firms):
        row = _only(firm, "id", "name", "state") | {"waiting": waits[firm["id"]], "available_micro_yuan": None}
        if number < ACCOUNTS_MAX:
            try:
                row["available_micro_yuan"] = ask(f"/api/account?firm_id={firm['id']}")["available_micro_yuan"]
            except Refused as refused:
                if refused.status not in (httpx.codes.FORBIDDEN, httpx.codes.NOT_FOUND):
                    raise
        rows.append(row)
    return rows


def _replica(row: Mapping[str, Any]) -> dict[str, Any]:
    shown = _only(row, "id", "model", "state", "reason", "requests_running", "requests_waiting")
    return shown | {"adapters_ready": sum(1 for load in row.get("adapters", ()) if load["state"] == "ready")}


def _only(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: row.get(name) for name in names}
