"""Act 2: a firm applies and is let in; a doubtful one waits; the owner invites a developer and makes a key."""

from typing import Any

from heliu.client import ApiError, Client
from heliu.client.people_views import Firm
from heliu.demo.actors import MISTYPED_USCC, RIVAL, RIVAL_USCC, STUDIO, USCC, Account, new_account
from heliu.demo.story import Story

SCOPES = (
    "inference", "jobs:read", "jobs:write", "artifacts:read", "artifacts:write",
    "models:read", "deployments:read", "billing:read", "quotas:read",
)  # fmt: skip

KEY_NAME = "demo"
UNKNOWN_ACCOUNT = 401


def firm_is_let_in(story: Story) -> None:
    """Everybody who plays has an account and is signed in."""
    _administrator(story)
    _studio(story)
    _doubtful_firm(story)
    _developer(story)
    _key(story)


def _administrator(story: Story) -> None:
    account = story.cast.administrator = story.cast.administrator or new_account("administrator")
    story.memory.save()
    known = _signed_in(story, account)
    if known is None:
        claim = story.anyone.sessions.claim_administrator
        session = claim(_admin_token(story), email=account.email, name="Demo administrator", password=account.password)
        story.administrator = story.anyone.acting_as(session.token)
        story.stage.did("the one-time administrator link was used; there is no default password", account.email)
    else:
        story.administrator = known
        story.stage.did("the administrator signs in", account.email)
    roles = story.administrator.sessions.me().roles
    story.stage.check("platform_admin" in roles, f"the platform knows the caller as {', '.join(roles)}")


def _signed_in(story: Story, account: Account) -> Client | None:
    """A session of this account; None while the platform does not know it: nobody came to use it."""
    try:
        return story.sign_in(account)
    except ApiError as refusal:
        if refusal.status != UNKNOWN_ACCOUNT:
            raise
        return None


def _admin_token(story: Story) -> str:
    from heliu.main import admin_link

    return admin_link(story.settings).partition("token=")[2]


def _studio(story: Story) -> None:
    stage, cast = story.stage, story.cast
    if cast.firm_id is None:
        # The account is kept before it is used: an interrupted run is continued, not begun anew.
        cast.owner = cast.owner or new_account("owner")
        story.memory.save()
        firm = _applied(story, USCC, STUDIO, cast.owner)
        stage.did(f"{STUDIO} applies", f"{firm.id}, USCC {firm.uscc}, {firm.industry_cluster}, {firm.district}")
        stage.check(not firm.doubts, "its check character is right: it waits in the queue")
        _let_in(story, firm)
        stage.did("the administrator reviews and approves")
        cast.firm_id = firm.id
        story.memory.save()
    firm = story.administrator.firms.get(story.firm_id)
    stage.must(firm.state == "active", f"{firm.name} is active ({firm.id})")
    assert cast.owner is not None, "whoever applied has an account"
    story.owner = story.sign_in(cast.owner)


def _applied(story: Story, uscc: str, name: str, owner: Account) -> Firm:
    """The firm with this USCC: one that an interrupted run left, or a fresh application."""
    left = [firm for firm in story.administrator.firms.list() if firm.uscc == uscc]
    return left[0] if left else story.anyone.firms.apply(**_application(uscc, name, owner))


def _let_in(story: Story, firm: Firm) -> None:
    if firm.state != "active":
        story.administrator.firms.review(firm.id, "approve")


def _doubtful_firm(story: Story) -> None:
    stage, cast = story.stage, story.cast
    if cast.doubtful_firm_id is None:
        name = "A firm that mistyped its code (demo)"
        firm = _applied(story, MISTYPED_USCC, name, new_account("mistyped"))
        cast.doubtful_firm_id = firm.id
        story.memory.save()
        stage.did("a second firm applies with a mistyped USCC", firm.id)
    firm = story.administrator.firms.get(cast.doubtful_firm_id)
    stage.check(
        firm.state == "in_review" and firm.doubts,
        f"the one with the mistyped code waits for a person: {' '.join(firm.doubts)}",
    )


def _developer(story: Story) -> None:
    account = story.cast.developer = story.cast.developer or new_account("developer")
    story.memory.save()
    known = _signed_in(story, account)
    if known is None:
        invited = story.owner.members.invite(account.email, ["firm_developer"])
        session = story.anyone.members.accept(invited.token, name="Lin Yue", password=account.password)
        known = story.anyone.acting_as(session.token)
        story.stage.did("the owner invites a developer, who accepts", account.email)
    story.developer = known
    me = story.developer.sessions.me()
    story.stage.check(
        me.firm.id == story.firm_id and me.roles == ["firm_developer"], "the developer has that one role in the studio"
    )


def _key(story: Story) -> None:
    cast = story.cast
    if cast.key is None:
        for left in story.owner.keys.list():
            if left.name == KEY_NAME and left.revoked_at is None:
                story.owner.keys.revoke(left.id, reason="an interrupted demo lost its secret")
        issued = story.owner.keys.issue(KEY_NAME, SCOPES)
        cast.key, cast.key_id = issued.token, issued.key.id
        story.memory.save()
        story.stage.did("the owner issues an API key, shown once", f"{issued.token[:12]}… ({issued.key.id})")
    listed: list[Any] = [key for key in story.owner.keys.list() if key.id == cast.key_id]
    story.stage.check(
        len(listed) == 1 and not hasattr(listed[0], "token"), f"the key {cast.key_id} is listed, its secret is not"
    )


def rival(story: Story) -> Client:
    """The owner of another firm, which must see nothing of the studio's."""
    if story.cast.rival is None:
        story.cast.rival = new_account("rival")
        story.memory.save()
    _let_in(story, _applied(story, RIVAL_USCC, RIVAL, story.cast.rival))
    return story.sign_in(story.cast.rival)


def _application(uscc: str, name: str, owner: Account) -> dict[str, Any]:
    return {
        "uscc": uscc,
        "name": name,
        "industry_cluster": "online_games",
        "district": "东湖新技术开发区",
        "contact_name": "Shen Lan",
        "contact_email": owner.email,
        "contact_phone": "027-0000 0000",
        "owner_name": "Shen Lan",
        "owner_email": owner.email,
        "owner_password": owner.password,
    }
