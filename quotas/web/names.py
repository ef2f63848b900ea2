"""What names may look like at the edge: of pools, centres, cohorts and models. One rule each, for all packages."""

from typing import Annotated

from pydantic import StringConstraints

from kit.patterns import Pattern

_POOL = "a pool is centre/accelerator, both of a-z, 0-9 and '-', the accelerator of '.' too"
_COHORT = "a cohort is named by a-z, 0-9 and '-', with a letter first"

Pool = Annotated[
    str,
    StringConstraints(max_length=120),
    Pattern(r"^[a-z0-9][a-z0-9-]*/[a-z0-9][a-z0-9.-]*$", _POOL, "east/a100"),
]
Centre = Annotated[
    str,
    StringConstraints(max_length=60),
    Pattern(r"^[a-z0-9][a-z0-9-]*$", "a centre is named by a-z, 0-9 and '-'", "east"),
]
Cohort = Annotated[str, StringConstraints(max_length=63), Pattern(r"^[a-z][a-z0-9-]*$", _COHORT, "studios")]
CohortNode = Annotated[
    str,
    StringConstraints(max_length=63),
    Pattern(r"^(firm_[0-9a-z]+|[a-z][a-z0-9-]*)$", f"give a firm's id (firm_…) or a cohort; {_COHORT}", "studios"),
]
Model = Annotated[
    str,
    StringConstraints(min_length=1, max_length=120),
    Pattern(
        r"^[a-zA-Z0-9][a-zA-Z0-9._/-]*$",
        "a model is named by letters, digits, '.', '_', '/' and '-', with a letter or digit first",
        "qwen-7b",
    ),
]
