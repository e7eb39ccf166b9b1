"""The environment and the file `.env`, read: what they set, what is wrong with it, and what nothing reads."""

from __future__ import annotations

import os
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Final, TypeVar

from pydantic import ValidationError
from pydantic_settings import DotEnvSettingsSource

from outbox.errors import ConfigurationError
from outbox.settings.model import PREFIX, Settings, WriteSettings, variable

S = TypeVar("S", bound=WriteSettings)


@lru_cache(maxsize=1)
def write_settings() -> WriteSettings:
    """The write side's settings, read once a process.

    A mistake in them never fails an application's write: what cannot be read is left at its default, with a warning
    that names the variable; never its value.
    """
    try:
        return _read(WriteSettings)
    except ConfigurationError as error:
        from loguru import logger  # not above: the write side loads it for a mistake only

        logger.warning("{error}; the outbox goes on without it", error=str(error))
    try:
        return WriteSettings(_env_file=None)  # type: ignore[call-arg]
    except ValidationError:
        return WriteSettings.model_construct()


def load(**overrides: object) -> Settings:
    """Read all settings; `overrides` (from the command line) win over the environment, `None` means not given.

    Raises `ConfigurationError` that names the variable and what is wrong with it; never a value that may be secret.
    """
    return _read(Settings, **{name: value for name, value in overrides.items() if value is not None})


def _read(kind: type[S], **overrides: object) -> S:
    try:
        return kind(**overrides)  # type: ignore[arg-type]
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ConfigurationError(f"the file .env in the working directory cannot be read: {why}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        said = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:  # several settings together; the text names them
            raise ConfigurationError(said) from None
        field = str(first["loc"][0])
        raise ConfigurationError(f"{field if field.isupper() else variable(field)}: {said}") from None


SECRET: Final = {variable(name) for name, info in Settings.model_fields.items() if "SecretStr" in str(info.annotation)}
"""Variables whose values must never be shown."""

PATHS: Final = {variable(name) for name, info in Settings.model_fields.items() if info.annotation == Path | None}
"""Variables that name files."""


def exported(*env_files: Path) -> dict[str, str]:
    """What the environment sets and no such file does: values by variable, in the order of the settings."""
    in_file = {name.upper() for name in DotEnvSettingsSource(Settings, env_file=env_files).env_vars}
    names = (*map(variable, Settings.model_fields), "ELASTICSEARCH_URL")
    return {name: os.environ[name] for name in names if name in os.environ and name not in in_file}


def unknown_variables() -> list[str]:
    """One line for each `OUTBOX_…` variable, or line of `.env`, that no setting reads: most likely a misspelt one."""
    known = {variable(name) for name in Settings.model_fields}
    in_file = {name.upper() for name in DotEnvSettingsSource(Settings).env_vars}  # read as the settings read it
    lines = []
    for names, where in ((set(os.environ), ""), (in_file, " in .env")):
        for name in sorted(names):
            if name.startswith(PREFIX) and name not in known:
                near = get_close_matches(name, known, n=1, cutoff=0.75)
                hint = f"; did you mean {near[0]}?" if near else "; 'outbox-relay settings' lists them"
                lines.append(f"{name}{where} is no setting of outbox-relay and has no effect{hint}")
    return lines
