"""Reading YAML into typed, frozen models, with errors that say what, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from dpgan.errors import UserError
from dpgan.files import read_text


class Model(BaseModel):
    """Base of every settings model: frozen, and refusing what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


M = TypeVar("M", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which takes the last of two equal keys without a word; this one refuses them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":  # `<<: *row`, whose keys give way to the row's own
                continue
            name, line = self.construct_object(key, deep=True), key.start_mark.line + 1
            if not isinstance(name, Hashable):
                continue
            if name in lines:
                raise _Twice(f"key {name!r} is on line {lines[name]} and on line {line}; delete one of them")
            lines[name] = line
        return super().construct_mapping(node, deep)


class _Twice(yaml.YAMLError):
    """A key stands twice in a mapping."""


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, or a UserError that names the file and the line."""
    try:
        return parse_yaml(read_text(path), str(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run this in the project's root folder") from None


def parse_yaml(text: str, path: str) -> dict[str, Any]:
    """The mapping in a YAML text; `path` is what errors call it."""
    try:
        content = yaml.load(text, _Loader)
    except _Twice as error:
        raise UserError(f"{path}: {error}") from None
    except yaml.YAMLError as error:
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
