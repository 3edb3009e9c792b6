"""The tables of the gateway itself. Times are milliseconds since 1970, UTC."""

from sqlalchemy import Column, LargeBinary
from sqlmodel import BigInteger, Field, SQLModel


class ApiKeyRecord(SQLModel, table=True):
    """One API key; what is stored does not let anybody use it."""

    __tablename__ = "api_key"

    id: str = Field(primary_key=True)
    principal: str
    role: str
    secret_hash: bytes = Field(sa_column=Column(LargeBinary, nullable=False, unique=True))
    created_at: int = Field(sa_type=BigInteger)
    revoked_at: int | None = Field(default=None, sa_type=BigInteger)
