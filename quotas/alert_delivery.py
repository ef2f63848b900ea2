"""Alerts leave after commit: signed webhooks and e-mail, tried again on a schedule, dead after the last try."""

import asyncio
import json
import logging
import smtplib
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.message import EmailMessage
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic_settings import BaseSettings, SettingsConfigDict

from kit.addresses import ANYWHERE
from kit.db import Database
from kit.errors import HeliuError, InvalidInput
from kit.fetch import FetchPolicy, fetch
from kit.units import format_yuan
from quotas.adapters import budget_store as store
from quotas.alerts import next_try, signature, signing_secret

log = logging.getLogger(__name__)

TRY_SECONDS = 10
ANSWER_BYTES = 64 * 1024
CLAIMED = timedelta(seconds=60)


class AlertSettings(BaseSettings):
    """How alerts leave. `HELIU_SMTP_URL=smtp://user:password@host:587`; without it e-mail cannot be sent."""

    model_config = SettingsConfigDict(env_prefix="HELIU_", extra="ignore")

    smtp_url: str | None = None
    mail_from: str = "heliu@localhost"
    webhook_private_ok: bool = False


def webhook_policy(settings: AlertSettings) -> FetchPolicy:
    """How a webhook is called: over https to the public internet, unless the setting allows more; no redirects."""
    if settings.webhook_private_ok:
        return FetchPolicy(ANSWER_BYTES, TRY_SECONDS, schemes=("https", "http"), allowed=ANYWHERE)
    return FetchPolicy(ANSWER_BYTES, TRY_SECONDS)


@dataclass(frozen=True, slots=True)
class Sender:
    """What sending needs: the settings, and the key that channels' secrets are derived from."""

    settings: AlertSettings
    master: bytes


async def deliver(db: Database, sender: Sender, now: datetime) -> int:
    """Try every message that is due. No transaction is open while one is sent. Returns how many were tried."""
    async with db.transaction() as tx:
        due = await store.claim(tx, now=now, until=now + CLAIMED)
    await asyncio.gather(*(_try(db, sender, message, now) for message in due))
    return len(due)


async def _try(db: Database, sender: Sender, message: Mapping[str, Any], now: datetime) -> None:
    error: str | None = None
    try:
        async with asyncio.timeout(TRY_SECONDS):
            if message["ended_at"] is not None:
                raise InvalidInput("The channel was ended.")
            await (_post if message["kind"] == "webhook" else _mail)(sender, message, now)
    except (HeliuError, OSError, smtplib.SMTPException, TimeoutError, ValueError) as problem:
        error = (str(problem) or type(problem).__name__)[:500]
    pause = next_try(message["tries"])
    hopeless = pause is None or message["ended_at"] is not None
    state = "delivered" if error is None else "dead" if hopeless else "waiting"
    async with db.transaction() as tx:
        await store.resolve(tx, message["id"], state=state, now=now, next_at=now + (pause or timedelta(0)), error=error)
    if error is not None:
        log.warning("an alert was not delivered", extra={"delivery": message["id"], "error": error, "state": state})


async def _post(sender: Sender, message: Mapping[str, Any], now: datetime) -> None:
    body = json.dumps({"type": "budget.reached", "timestamp": message["at"].isoformat(), "data": _facts(message)})
    stamp = int(now.timestamp())
    secret = signing_secret(sender.master, message["channel_id"])
    headers = {
        "Content-Type": "application/json",
        "webhook-id": message["id"],
        "webhook-timestamp": str(stamp),
        "webhook-signature": signature(secret, message["id"], stamp, body.encode()),
    }
    policy = webhook_policy(sender.settings)
    answer = await fetch(message["target"], policy, method="POST", content=body.encode(), headers=headers)
    if not answer.ok:
        raise InvalidInput(f"it answered {answer.status}")


async def _mail(sender: Sender, message: Mapping[str, Any], _now: datetime) -> None:
    if sender.settings.smtp_url is None:
        raise InvalidInput("HELIU_SMTP_URL is not set: this installation cannot send e-mail.")
    facts = _facts(message)
    mail = EmailMessage()
    mail["From"], mail["To"] = sender.settings.mail_from, message["target"]
    mail["Subject"] = f"Heliu: {message['threshold']} % of a budget is used ({message['period']})"
    spent, amount = format_yuan(message["spent"]), format_yuan(message["amount"])
    mail.set_content(f"{spent} of {amount} are used.\n\n" + "\n".join(f"{name}: {facts[name]}" for name in facts))
    await asyncio.to_thread(_submit, sender.settings.smtp_url, mail)


def _submit(url: str, mail: EmailMessage) -> None:
    parts = urlsplit(url)
    host, port, verified = parts.hostname or "localhost", parts.port or 0, ssl.create_default_context()
    with (
        smtplib.SMTP_SSL(host, port, timeout=TRY_SECONDS, context=verified)
        if parts.scheme == "smtps"
        else smtplib.SMTP(host, port, timeout=TRY_SECONDS)
    ) as server:
        server.ehlo()
        if parts.scheme != "smtps" and (parts.username or server.has_extn("starttls")):
            server.starttls(context=verified)
        if parts.username:
            server.login(unquote(parts.username), unquote(parts.password or ""))
        server.send_message(mail)


def _facts(message: Mapping[str, Any]) -> dict[str, Any]:
    names = ("alert_id", "budget_id", "firm_id", "project_id", "key_id", "period", "threshold", "hard_stop")
    facts = {name: message[name] for name in names}
    return facts | {"amount_micro_yuan": message["amount"], "spent_micro_yuan": message["spent"]}
