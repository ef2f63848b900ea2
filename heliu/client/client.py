"""The typed client of the control plane: `Client(api_url, token)`; models are called with the OpenAI SDK instead."""

from types import TracebackType
from typing import Self

from heliu.client.approvals import Approvals
from heliu.client.jobs import Files, Fleet, Jobs
from heliu.client.money import Discounts, Money, Tariffs, Usage, Vouchers
from heliu.client.people import Firms, Keys, Members, Quotas, Sessions
from heliu.client.serving import Adapters, Deployments, Models
from heliu.client.transport import Transport


class Client:
    """Everything a caller may do, grouped by noun.

    Calls are repeated when that cannot act twice and may help; a refusal raises `ApiError` with its code and hint. An
    act on money that waits for a second administrator raises `AwaitsApproval`: nothing is done before that.
    """

    def __init__(
        self, api_url: str = "http://127.0.0.1:8700", token: str | None = None, *, transport: Transport | None = None
    ) -> None:
        self._transport = transport = transport or Transport(api_url, token)
        self.sessions = Sessions(transport)
        self.firms = Firms(transport)
        self.members = Members(transport)
        self.keys = Keys(transport)
        self.quotas = Quotas(transport)
        self.tariffs = Tariffs(transport)
        self.discounts = Discounts(transport)
        self.usage = Usage(transport)
        self.vouchers = Vouchers(transport)
        self.money = Money(transport)
        self.approvals = Approvals(transport)
        self.jobs = Jobs(transport)
        self.files = Files(transport)
        self.fleet = Fleet(transport)
        self.models = Models(transport)
        self.adapters = Adapters(transport)
        self.deployments = Deployments(transport)

    def acting_as(self, token: str) -> "Client":
        """The same platform for another caller: a session's token or an API key."""
        return Client(transport=self._transport.with_token(token))

    def close(self) -> None:
        """Close the connections, also of those made by `acting_as`."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
