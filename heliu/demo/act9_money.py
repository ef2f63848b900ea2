"""Act 9: the statement, what the centre is owed, and the ledger's examination of itself."""

from collections.abc import Mapping
from datetime import datetime
from time import monotonic, sleep
from zoneinfo import ZoneInfo

from heliu.client.money_views import Statement, StatementLine
from heliu.client.serving_views import EngineLine
from heliu.demo.story import Story
from heliu.supervisor.ray_cluster import CENTRE
from kit.units import MS_PER_HOUR, PPM, format_yuan

SHANGHAI = ZoneInfo("Asia/Shanghai")
SETTLE_SECONDS_MAX = 20


def money_adds_up(story: Story, finished_jobs: Mapping[str, str]) -> None:
    """Show the month and check every sum; `finished_jobs` maps this run's job ids to what they were."""
    period = datetime.now(SHANGHAI).strftime("%Y-%m")
    statement = story.owner.money.statement(period)
    _show(story, statement, finished_jobs)
    _check_sums(story, statement, finished_jobs)
    _centre(story, period)
    _ledger(story, finished_jobs)
    _engines(story)


def _show(story: Story, statement: Statement, jobs: Mapping[str, str]) -> None:
    columns = {"what": "What", "used": "Used>", "tariff": "Tariff"}
    columns |= {"amount": "Amount>", "voucher": "Voucher>", "cash": "Cash>"}
    named = {job.id: job.recipe or job.name for job in story.developer.jobs.list()} | dict(jobs)
    tariffs = {tariff: f"T{number}" for number, tariff in enumerate(_tariffs(statement), start=1)}
    rows = [_row(line, named, tariffs) for line in statement.lines]
    rows.append(
        {
            "what": "sum",
            "amount": format_yuan(statement.amount_micro_yuan),
            "voucher": format_yuan(statement.voucher_micro_yuan),
            "cash": format_yuan(statement.cash_micro_yuan),
        }
    )
    story.stage.table(f"Statement of {statement.firm_id} for {statement.period} ({statement.state})", columns, rows)
    for tariff, short in tariffs.items():
        story.stage.did(f"{short} is tariff version", tariff)
    story.stage.did(
        f"opening {format_yuan(statement.opening_micro_yuan)} + paid in {format_yuan(statement.top_ups_micro_yuan)} "
        f"- cash {format_yuan(statement.cash_micro_yuan)} = closing {format_yuan(statement.closing_micro_yuan)}"
    )


def _tariffs(statement: Statement) -> list[str]:
    return list(dict.fromkeys(line.tariff_id for line in statement.lines if line.tariff_id))


def _row(line: StatementLine, jobs: Mapping[str, str], tariffs: Mapping[str, str]) -> dict[str, str]:
    if line.kind == "compute":
        what = f"{jobs.get(line.subject, 'compute')} {line.subject}"
        used = f"{line.quantities['gpu_ms'] / 1000:,.1f} slot-s"
    else:
        what = f"tokens of {line.about.get('model', line.subject)} by {line.about.get('key_id', '?')}"
        kinds = {"input": "in", "cached_input": "cached", "output": "out"}
        used = " + ".join(f"{line.quantities.get(kind, 0):,} {short}" for kind, short in kinds.items())
    return {
        "what": what,
        "used": used,
        "tariff": tariffs.get(line.tariff_id or "", "–"),
        "amount": format_yuan(line.amount_micro_yuan),
        "voucher": format_yuan(line.voucher_micro_yuan),
        "cash": format_yuan(line.cash_micro_yuan),
    }


def _check_sums(story: Story, statement: Statement, jobs: Mapping[str, str]) -> None:
    stage, lines = story.stage, statement.lines
    exact = (
        sum(line.amount_micro_yuan for line in lines) == statement.amount_micro_yuan
        and statement.amount_micro_yuan == statement.voucher_micro_yuan + statement.cash_micro_yuan
        and statement.closing_micro_yuan
        == statement.opening_micro_yuan + statement.top_ups_micro_yuan - statement.cash_micro_yuan
    )
    stage.check(exact, "the lines add up to the last micro-yuan")
    per_job = {job: [line for line in lines if line.kind == "compute" and line.subject == job] for job in jobs}
    stage.check(all(len(found) == 1 for found in per_job.values()), "each finished job is charged exactly once")
    halves = [line for found in per_job.values() for line in found if line.voucher_micro_yuan]
    shared = all(abs(2 * line.voucher_micro_yuan - line.amount_micro_yuan) <= 1 for line in halves)
    stage.check(len(halves) == len(jobs) and shared, "the voucher paid half of each")
    stage.check(any(line.kind == "tokens" for line in lines), "tokens are listed per key and model")


def _centre(story: Story, period: str) -> None:
    owed = story.administrator.money.centre_statement(CENTRE, period)
    columns = {"pool": "Pool", "hours": "Lent>", "list": "At list price>", "share": "Share>", "owed": "Owed>"}
    rows = [
        {
            "pool": line.pool,
            "hours": f"{line.gpu_ms / MS_PER_HOUR:.4f} slot-h",
            "list": format_yuan(line.list_micro_yuan),
            "share": f"{100 * line.payout_ppm / PPM:.0f} %",
            "owed": format_yuan(line.payable_micro_yuan),
        }
        for line in owed.lines
    ]
    story.stage.table(f"What the centre {CENTRE} is owed for {period}", columns, rows)
    story.stage.check(owed.payable_micro_yuan > 0, f"the centre is owed {format_yuan(owed.payable_micro_yuan)}")


def _ledger(story: Story, jobs: Mapping[str, str]) -> None:
    stage, report = story.stage, story.administrator.money.check_ledger()
    for finding in report.findings:
        stage.check(False, f"{finding.invariant} {finding.about}: {finding.detail}")
    examined = f"{report.transfers} transfers, {report.accounts} accounts, {report.blocks} sealed blocks"
    stage.check(report.ok, f"ledger check: debits = credits per asset, balances = replay ({examined})")
    for hold in report.open_holds:
        amount = format_yuan(hold.amount_micro_yuan)
        stage.did(
            f"open hold: {hold.kind} {hold.subject}, {amount}, until {hold.expires_at.astimezone():%H:%M}", hold.firm_id
        )
    left_over = [hold.subject for hold in report.open_holds if hold.subject in jobs]
    stage.check(not left_over, "no hold is open for finished work")


def _engines(story: Story) -> None:
    lines = _settled(story)
    columns = {
        "subject": "Engine",
        "counted": "It counted>",
        "own": "Warm-up>",
        "billed": "Billed>",
        "verdict": "Verdict",
    }
    story.stage.table(
        "Tokens billed against the engines' own counters (in + out)", columns, [_engine(x) for x in lines]
    )
    latest = lines[-1] if lines else None
    exact = latest and latest.verdict == "exact" and latest.billed_generation > 0
    story.stage.check(exact, "tokens billed = tokens the engine counted itself")
    wrong = [line.subject for line in lines if line.verdict in ("overbilled", "open")]
    story.stage.check(not wrong, "no engine of any earlier run was billed for more than it counted")


def _settled(story: Story) -> list[EngineLine]:
    """The reconciliation once usage has been shipped and the engines have reported since."""
    deadline = monotonic() + SETTLE_SECONDS_MAX
    while True:
        lines = story.administrator.deployments.engines()
        if all(line.verdict != "open" for line in lines) or monotonic() > deadline:
            return lines
        sleep(0.5)


def _engine(line: EngineLine) -> dict[str, str]:
    return {
        "subject": line.subject,
        "counted": f"{line.counted_prompt:,} + {line.counted_generation:,}",
        "own": f"{line.warmup_prompt:,} + {line.warmup_generation:,}",
        "billed": f"{line.billed_prompt:,} + {line.billed_generation:,}",
        "verdict": line.verdict,
    }
