"""docs/gateway.md tells every setting, and its default, as it is."""

import re
from pathlib import Path

from serving.gateway.settings import GatewaySettings

PAGE = Path(__file__).resolve().parents[4] / "docs" / "gateway.md"


def shown(value: object) -> str:
    """A default as the page writes it."""
    match value:
        case None | ():
            return "–"
        case bool():
            return str(int(value))
        case tuple():
            return ", ".join(map(str, value))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        case int() if value >= 1 << 30:
            return f"{value >> 30} GiB"
        case int() if value >= 1 << 20:
            return f"{value >> 20} MiB" if value % (1 << 20) == 0 else f"{value:,}"
        case int():
            return f"{value:,}"
        case _:
            return f"{value:g}"


def test_the_page_names_every_setting_with_its_default_and_no_other() -> None:
    told = re.findall(r"^\| `([A-Z_]+)` \| ([^|]+) \| ([^|]+) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    fields = GatewaySettings.model_fields.items()
    assert told == [(name.upper(), shown(field.default), field.description) for name, field in fields]
