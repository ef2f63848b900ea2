"""Who sees and changes which adapter, deployment and replica. Somebody else's does not exist."""

from kit.auth import Principal
from kit.errors import Forbidden, NotFound
from quotas.api import Action, allowed_actions, is_staff, require
from quotas.vocabulary import PLATFORM_FIRM, FirmId


def sees_adapters(principal: Principal, firm_id: str) -> bool:
    """A firm's own people and keys; of the platform's staff those who may look at deployments."""
    needed = Action.DEPLOYMENT_READ if is_staff(principal) else Action.MODEL_READ
    return needed in allowed_actions(principal, firm_id=FirmId(firm_id))


def sees_deployments(principal: Principal, firm_id: str) -> bool:
    """A firm sees its own and the shared ones, which are the platform's."""
    if Action.DEPLOYMENT_READ in allowed_actions(principal, firm_id=FirmId(firm_id)):
        return True
    own = principal.firm_id
    return (
        firm_id == PLATFORM_FIRM
        and own is not None
        and Action.DEPLOYMENT_READ in allowed_actions(principal, firm_id=FirmId(own))
    )


def adapters_of(principal: Principal, asked: str | None) -> str | None:
    """The firm whose adapters to list; None: every firm's. Raises NotFound, Forbidden."""
    firm_id = asked or principal.firm_id
    action = Action.DEPLOYMENT_READ if is_staff(principal) else Action.MODEL_READ
    require(principal, action, firm_id=FirmId(firm_id) if firm_id else None)
    return firm_id


def deployments_of(principal: Principal, asked: str | None) -> set[str] | None:
    """The firms whose deployments to list; None: every firm's. Raises NotFound, Forbidden."""
    firm_id = asked or principal.firm_id
    require(principal, Action.DEPLOYMENT_READ, firm_id=FirmId(firm_id) if firm_id else None)
    if firm_id is None:
        return None
    return {firm_id} if asked else {firm_id, PLATFORM_FIRM}


def allow(principal: Principal, action: Action, firm_id: str, *, seen: bool, absent: NotFound) -> None:
    """Return if `principal` may do `action` there. Raises `absent` for what it may not see, else Forbidden."""
    if not seen:
        raise absent
    if action not in allowed_actions(principal, firm_id=FirmId(firm_id)):
        if firm_id == PLATFORM_FIRM and not is_staff(principal):
            raise Forbidden(
                "this belongs to the platform; only its administrators change it",
                code="not_allowed",
                hint="ask the platform's administrators",
            )
        require(principal, action, firm_id=FirmId(firm_id))
