"""The table of application documents; the files themselves are in blobs."""

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import BigInteger, Column, DateTime, ForeignKey, Text, UniqueConstraint
from sqlmodel import Field, SQLModel

from quotas.adapters.tables import SCHEMA


class DocumentRow(SQLModel, table=True):
    """What a firm sent with its application."""

    __tablename__: ClassVar[Any] = "firm_document"
    __table_args__ = (UniqueConstraint("firm_id", "sha256", name="firm_document_once"), {"schema": SCHEMA})

    id: str = Field(sa_column=Column(Text, primary_key=True))
    firm_id: str = Field(sa_column=Column(Text, ForeignKey(f"{SCHEMA}.firm.id"), nullable=False))
    kind: str = Field(sa_column=Column(Text, nullable=False))
    name: str = Field(sa_column=Column(Text, nullable=False))
    media_type: str = Field(sa_column=Column(Text, nullable=False))
    size_bytes: int = Field(sa_column=Column(BigInteger, nullable=False))
    sha256: str = Field(sa_column=Column(Text, nullable=False))
    blob: str = Field(sa_column=Column(Text, nullable=False))
    uploaded_by: str = Field(sa_column=Column(Text, nullable=False))
    uploaded_at: datetime = Field(sa_column=Column(DateTime(timezone=True), nullable=False))
