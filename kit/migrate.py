"""Alembic over several packages: each owns a folder of revisions on a branch of its own."""

from collections.abc import Sequence
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine

ENVIRONMENT = Path(__file__).parent / "migrations"
ADVISORY_LOCK = 0x48656C6975  # "Heliu"


def configuration(folders: Sequence[Path]) -> Config:
    """Alembic over kit's revisions and those in these folders."""
    config = Config()
    config.set_main_option("script_location", str(ENVIRONMENT))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", "\n".join(str(f) for f in (ENVIRONMENT / "versions", *folders)))
    return config


def run_migrations(url: str, folders: Sequence[Path]) -> None:
    """Bring the database at `url` to the newest revision of every folder. Two callers at once: one waits.

    kit's own tables come first; a package's first revision names the branches it stands on in `depends_on`.
    """
    config = configuration(folders)
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://", 1))
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (ADVISORY_LOCK,))
            config.attributes["connection"] = connection
            command.upgrade(config, "heads")
    finally:
        engine.dispose()
