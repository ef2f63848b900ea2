"""Names that clients put into `model`: base models' and adapters' share one space within a firm."""

import re

_SLUG = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")
SLUG_RULE = "1 to 64 of a-z, 0-9, '.', '_' and '-', with a letter or digit at both ends"


def is_slug(name: str) -> bool:
    """Whether `name` may name a model or an adapter. Ids (`adp_…`) may not: a name must never read as one."""
    return _SLUG.fullmatch(name) is not None and not name.startswith("adp_")
