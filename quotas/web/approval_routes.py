"""Four eyes on money: what waits, who decides, and from which amount on."""

from fastapi import APIRouter

from quotas import approvals
from quotas.access import Action, require, require_person
from quotas.vocabulary import MoneyAction, ProposalState
from quotas.web import money_deeds
from quotas.web.approval_schemas import PolicyIn, PolicyOut, ProposalOut
from quotas.web.deps import CurrentPrincipal, Db, Now, Origin
from quotas.web.schemas import RefuseIn

router = APIRouter(prefix="/api/approvals", tags=["money"])


@router.get("")
async def list_proposals(principal: CurrentPrincipal, db: Db, state: ProposalState | None = None) -> list[ProposalOut]:
    """What waits for a second administrator, and what became of earlier ones; newest first."""
    require(principal, Action.AUDIT_READ, firm_id=None)
    async with db.transaction() as tx:
        return [ProposalOut.model_validate(row) for row in await approvals.proposals(tx, state=state)]


@router.get("/policy")
async def policy(principal: CurrentPrincipal, db: Db) -> PolicyOut:
    """The amounts above which a second administrator is needed."""
    require(principal, Action.AUDIT_READ, firm_id=None)
    async with db.transaction() as tx:
        return PolicyOut.of(await approvals.policy(tx))


@router.put("/policy", response_model=PolicyOut, responses=money_deeds.PROPOSED)
async def set_policy(body: PolicyIn, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin) -> object:
    """Lower the amounts at once; raising one of them waits for a second administrator itself."""
    require(principal, Action.MONEY_APPROVE, firm_id=None)
    async with db.transaction() as tx:
        return await money_deeds.do_or_propose(
            tx, MoneyAction.POLICY, body, amount=body.amount_above_micro_yuan, firm_id=None, by=principal, now=now,
            origin=origin,
        )  # fmt: skip


@router.post("/{approval_id}/approve")
async def approve(approval_id: str, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin) -> ProposalOut:
    """Let it happen, now. Never one's own."""
    require(principal, Action.MONEY_APPROVE, firm_id=None)
    require_person(principal)
    async with db.transaction() as tx:
        row = await approvals.proposal_of(tx, approval_id)
        how = money_deeds.perform(principal, now, origin)
        return ProposalOut.model_validate(await approvals.approve(tx, row, how, by=principal, now=now, origin=origin))


@router.post("/{approval_id}/refuse")
async def refuse(
    approval_id: str, body: RefuseIn, principal: CurrentPrincipal, db: Db, now: Now, origin: Origin
) -> ProposalOut:
    """Refuse it and say why; one's own is taken back this way."""
    require(principal, Action.MONEY_APPROVE, firm_id=None)
    async with db.transaction() as tx:
        row = await approvals.proposal_of(tx, approval_id)
        done = await approvals.refuse(tx, row, reason=body.reason, by=principal, now=now, origin=origin)
        return ProposalOut.model_validate(done)
