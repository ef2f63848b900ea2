"""Secrets of this installation: made once, kept in files only their owner can read."""

import os
import secrets
from pathlib import Path


def load_or_create(path: Path) -> str:
    """The secret in `path`; made (256 random bits, hexadecimal, mode 0600) when there is none yet.

    Two processes that start at once agree: the file appears whole under its name or not at all.
    """
    if path.exists():
        return path.read_text().strip()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.touch(mode=0o600)
    draft.write_text(secrets.token_hex(32))
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    return path.read_text().strip()
