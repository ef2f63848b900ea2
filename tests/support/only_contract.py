"""An import-linter contract that says what some modules may import, instead of listing all they may not."""

import sys
from fnmatch import fnmatchcase
from typing import Any, cast

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output

OWN = ("kit", "quotas", "scheduler", "serving", "heliu")


class OnlyContract(Contract):
    """`modules` import nothing of this project but `may_import`, and nothing from outside but what is allowed.

    Names are shell patterns. `outside` is what may come from elsewhere: `stdlib` for the standard library, names of
    libraries, or `*`; `except` takes names away again. `modules` that do not exist yet break nothing.
    """

    type_name = "only"

    modules = fields.SetField(subfield=fields.StringField())
    may_import = fields.SetField(subfield=fields.StringField())
    outside = fields.SetField(subfield=fields.StringField())
    without = fields.SetField(subfield=fields.StringField(), required=False, default=set())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Kept when every direct import of `modules` is allowed."""
        _ = verbose
        faults: list[str] = []
        for importer in sorted(graph.modules):
            if not _matches(importer, _names(self.modules)):
                continue
            for imported in sorted(graph.find_modules_directly_imported_by(importer)):
                if not self._allows(imported):
                    details = graph.get_import_details(importer=importer, imported=imported)
                    lines = ", ".join(str(detail["line_number"]) for detail in details)
                    faults.append(f"{importer} may not import {imported} (line {lines})")
        return ContractCheck(kept=not faults, metadata={"faults": faults})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print one line per fault."""
        for fault in cast("list[str]", check.metadata["faults"]):
            output.print_error(f"- {fault}")

    def _allows(self, imported: str) -> bool:
        root = imported.partition(".")[0]
        if root in OWN:
            return _matches(imported, _names(self.may_import))
        outside, without = _names(self.outside), _names(self.without)
        if root in without:
            return False
        return "*" in outside or root in outside or ("stdlib" in outside and root in sys.stdlib_module_names)


def _names(field: Any) -> set[str]:
    """The parsed value of a set field, which import-linter's types describe as the field itself."""
    return cast("set[str]", field)


def _matches(module: str, patterns: set[str]) -> bool:
    return any(fnmatchcase(module, pattern) for pattern in patterns)
