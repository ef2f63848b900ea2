"""Kinds of columns, so that a table reads as a list of what it holds."""

from typing import Any, ClassVar

from sqlalchemy import BigInteger, Boolean, Column, DateTime, ForeignKey, Integer, LargeBinary, Text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlmodel import Field, SQLModel

SCHEMA = "scheduler"


def text_column(*, nullable: bool = False, to: str | None = None, primary_key: bool = False) -> Any:
    """Text, perhaps a key."""
    keys = [ForeignKey(f"{SCHEMA}.{to}")] if to else []
    return Field(default=None, sa_column=Column(Text, *keys, nullable=nullable, primary_key=primary_key))


def instant(*, nullable: bool = False) -> Any:
    """A point in time."""
    return Field(default=None, sa_column=Column(DateTime(timezone=True), nullable=nullable))


def integer(*, nullable: bool = False, big: bool = False, primary_key: bool = False) -> Any:
    """A whole number."""
    kind = BigInteger if big else Integer
    return Field(default=None, sa_column=Column(kind, nullable=nullable, primary_key=primary_key, autoincrement=False))


def count() -> Any:
    """A large count that begins at 0."""
    return Field(default=0, sa_column=Column(BigInteger, nullable=False, server_default="0"))


def small_count() -> Any:
    """A count that begins at 0."""
    return Field(default=0, sa_column=Column(Integer, nullable=False, server_default="0"))


def flag() -> Any:
    """Yes or no, always said."""
    return Field(default=False, sa_column=Column(Boolean, nullable=False))


def false() -> Any:
    """Yes or no; no where nothing is said."""
    return Field(default=False, sa_column=Column(Boolean, nullable=False, server_default="false"))


def texts() -> Any:
    """A list of texts."""
    return Field(default=None, sa_column=Column(ARRAY(Text), nullable=False))


def integers(*, nullable: bool = False) -> Any:
    """A list of whole numbers."""
    return Field(default=None, sa_column=Column(ARRAY(Integer), nullable=nullable))


def hash_column(*, nullable: bool = False) -> Any:
    """Bytes of a hash."""
    return Field(default=None, sa_column=Column(LargeBinary, nullable=nullable))


def json_column(*, nullable: bool = False) -> Any:
    """What JSON can say."""
    return Field(default=None, sa_column=Column(JSONB(none_as_null=True), nullable=nullable))


def sizes() -> Any:
    """Numbers by name; none where nothing is said."""
    return Field(default_factory=dict, sa_column=Column(JSONB, nullable=False, server_default="{}"))


class Table(SQLModel):
    """A table of the scheduler; its name is said by each."""

    __tablename__: ClassVar[Any]
