"""Text of a certain form: refused in words and with an example, where pydantic would show the regular expression."""

from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError, ValidatorFunctionWrapHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


@dataclass(frozen=True, slots=True)
class Pattern:
    """Metadata of an annotated `str`, after its other constraints. `rule` says what such text is, for people."""

    regex: str
    rule: str
    example: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Match the text and, where it does not fit, say the rule. What was sent is not repeated: it may be secret."""
        text = handler(source)
        assert text["type"] == "str", "a pattern is for text, and comes after its length"
        text = core_schema.StringSchema(**{**text, "pattern": self.regex})

        def read(value: Any, strictly: ValidatorFunctionWrapHandler) -> Any:
            try:
                return strictly(value)
            except ValidationError as error:
                if error.errors(include_url=False, include_input=False)[0]["type"] != "string_pattern_mismatch":
                    raise
                raise PydanticCustomError("pattern", "{rule}, such as {example}", self._words) from None

        return core_schema.no_info_wrap_validator_function(read, text)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """What it is without the words, and an example."""
        return {**handler(schema), "examples": [self.example]}

    @property
    def _words(self) -> dict[str, Any]:
        return {"rule": self.rule, "example": self.example}
