"""Reading YAML into typed, frozen models, with errors that say what, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from dpgan.errors import UserError


class Model(BaseModel):
    """Base of every settings model: frozen, and refusing what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


M = TypeVar("M", bound=BaseModel)


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, or a UserError that names the file and the line."""
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run this in the project's root folder") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected `key: value` lines, found {type(content).__name__}")
    return content


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word closest to a mistyped one, or None where nothing is close."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)), None)


def unknown_name(kind: str, name: str, known: Iterable[str], where: str) -> UserError:
    """One error for a name that is not there, with the nearest one that is."""
    known = list(known)
    guess = nearest(name, known)
    hint = f"did you mean {guess!r}? " if guess else ""
    return UserError(f"{where}: unknown {kind} {name!r}; {hint}known: {', '.join(known) or 'none'}")


def _field_names(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Names that are allowed at a place in a nested model."""
    current: Any = model
    for key in location:
        field = current.model_fields.get(key) if hasattr(current, "model_fields") else None
        if field is None:
            return []
        current = field.annotation
    return list(getattr(current, "model_fields", {}))


def parse(model: type[M], content: dict[str, Any], path: Path) -> M:
    """A typed model from a mapping; the first mistakes as one UserError, one line each."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        lines = []
        for item in error.errors(include_url=False)[:8]:
            location = item["loc"]
            key = ".".join(str(part) for part in location)
            if item["type"] == "extra_forbidden":
                known = _field_names(model, location[:-1])
                guess = nearest(str(location[-1]), known)
                hint = f"; did you mean {guess!r}?" if guess else f"; known here: {', '.join(known)}"
                lines.append(f"{path}: unknown key {key!r}{hint}")
            elif item["type"] == "missing":
                lines.append(f"{path}: missing key {key!r}")
            else:
                given = f" (given: {item['input']!r})" if key else ""
                message = item["msg"].removeprefix("Value error, ")
                lines.append(f"{path}: {key + ': ' if key else ''}{message}{given}")
        raise UserError("\n".join(lines)) from None
