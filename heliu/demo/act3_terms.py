"""Act 3: the administrator sets a quota, opens a voucher programme, grants a voucher, publishes prices and a model."""

from datetime import UTC, datetime, timedelta

from heliu.client.money_views import Tariff
from heliu.demo.story import BASE_MODEL, POOL, Story
from kit.units import MICRO_PER_YUAN, format_yuan

SLOT = 1000
QUOTA_SLOTS = 2
SHARE_PPM = 500_000
PROGRAMME_NAME = "算力券 Compute vouchers (demo)"
TARIFF_NAME = "Demo price book"
SLOT_HOUR_MICRO_YUAN = 3_600_000
TOKENS = {"input": 2_000_000, "cached_input": 500_000, "output": 8_000_000}
PREPAID_MICRO_YUAN = 200 * MICRO_PER_YUAN
VOUCHER_MICRO_YUAN = 500 * MICRO_PER_YUAN

ENTRY = {
    "name": BASE_MODEL,
    "display_name": "SmolLM2 135M Instruct",
    "owner": "Hugging Face TB",
    "licence": "Apache-2.0",
    "context_tokens": 2048,
    "capabilities": ["chat", "completions"],
    "source": BASE_MODEL,
    "revision": "1",
    "engine_arguments": {"max_model_len": 2048, "dtype": "bfloat16", "enforce_eager": True},
    "max_loras": 4,
}


def terms_are_set(story: Story) -> None:
    """Quota, voucher, money, prices, catalogue: each is found again on a second run."""
    _quota(story)
    _programme_and_voucher(story)
    _tariff(story)
    _money(story)
    _catalogue(story)


def _catalogue(story: Story) -> None:
    known = {model.name: model for model in story.administrator.models.list()}
    model = known.get(BASE_MODEL) or story.administrator.models.register(**ENTRY)
    story.stage.did(f"the catalogue has {model.display_name} by {model.owner}, {model.licence}", model.name)


def _quota(story: Story) -> None:
    administrator = story.administrator
    wanted = {story.firm_id: QUOTA_SLOTS * SLOT, "firm_platform": SLOT}
    for firm_id, milli in wanted.items():
        have = {quota.pool: quota.nominal_gpu_milli for quota in administrator.quotas.list(firm_id)}
        if have.get(POOL) != milli:
            administrator.quotas.set(firm_id, POOL, milli, reason="the demo")
    (quota,) = [one for one in story.owner.quotas.list() if one.pool == POOL]
    story.stage.check(
        quota.nominal_gpu_milli == QUOTA_SLOTS * SLOT,
        f"the studio may use {quota.nominal_gpu_milli // SLOT} slots of {POOL}; the platform's own models use 1",
    )


def _programme_and_voucher(story: Story) -> None:
    vouchers, cast, stage = story.administrator.vouchers, story.cast, story.stage
    if cast.programme_id is None:
        left = [one for one in vouchers.programmes() if one.name == PROGRAMME_NAME]
        programme = (
            left[0]
            if left
            else vouchers.open_programme(
                name=PROGRAMME_NAME,
                funder="the city's demo fund",
                share_ppm=SHARE_PPM,
                pool_micro_yuan=1_000_000 * MICRO_PER_YUAN,
                cap_per_firm_year_micro_yuan=200_000 * MICRO_PER_YUAN,
                valid_until=datetime.now(UTC) + timedelta(days=365),
            )
        )
        cast.programme_id = programme.id
        story.memory.save()
    if cast.voucher_id is None:
        key = f"demo-voucher-{story.firm_id}"
        granted = vouchers.grant(cast.programme_id, story.firm_id, VOUCHER_MICRO_YUAN, idempotency_key=key)
        cast.voucher_id = granted.id
        story.memory.save()
    (programme,) = [one for one in vouchers.programmes() if one.id == cast.programme_id]
    cap = format_yuan(programme.cap_per_firm_year_micro_yuan)
    stage.did(
        f"programme {programme.name}: pays {programme.share_ppm / 10_000:.0f} % of compute, "
        f"at most {cap} a firm and year, until {programme.valid_until:%Y-%m-%d}",
        programme.id,
    )
    (voucher,) = [one for one in story.owner.vouchers.list() if one.id == cast.voucher_id]
    left = f"{format_yuan(voucher.left_micro_yuan)} of {format_yuan(voucher.amount_micro_yuan)} left"
    stage.check(voucher.left_micro_yuan > 0, f"the studio holds voucher {voucher.id}: {left}")


def _tariff(story: Story) -> None:
    current = _current(story)
    if current is None:
        current = story.administrator.tariffs.publish(
            TARIFF_NAME,
            gpu=[{"pool": POOL, "micro_yuan_per_gpu_hour": SLOT_HOUR_MICRO_YUAN}],
            tokens=[
                {"model": BASE_MODEL, **{f"{kind}_micro_yuan_per_million": price for kind, price in TOKENS.items()}}
            ],
        )
    story.stage.check(
        current.valid_until is None,
        f"tariff {current.id}: {format_yuan(SLOT_HOUR_MICRO_YUAN)} a slot-hour; a million tokens "
        f"{format_yuan(TOKENS['input'])} in, {format_yuan(TOKENS['cached_input'])} cached, "
        f"{format_yuan(TOKENS['output'])} out",
    )


def _current(story: Story) -> Tariff | None:
    named = (one for one in story.administrator.tariffs.list() if one.name == TARIFF_NAME and one.valid_until is None)
    return next(named, None)


def _money(story: Story) -> None:
    key = f"demo-top-up-{story.firm_id}"
    evidence = "bank transfer 2026-DEMO-0001"
    story.administrator.money.top_up(story.firm_id, PREPAID_MICRO_YUAN, evidence=evidence, idempotency_key=key)
    account = story.owner.money.account()
    story.stage.check(
        account.available_micro_yuan > 0,
        f"the studio's prepaid balance is {format_yuan(account.balance_micro_yuan)}, "
        f"of which {format_yuan(account.held_micro_yuan)} is on hold",
    )
