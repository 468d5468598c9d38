"""Turn nested frozen dataclasses into plain data and back, strictly."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

T = TypeVar("T")


def to_dict(config: Any) -> Any:
    """Return `config` as dicts, lists and scalars that JSON and YAML can hold."""
    if dataclasses.is_dataclass(config):
        return {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(key): to_dict(value) for key, value in config.items()}
    if isinstance(config, (tuple, list)):
        return [to_dict(value) for value in config]
    return config


def from_dict(cls: type[T], data: Any, where: str = "config") -> T:
    """Build the dataclass `cls` from a mapping of plain data.

    Raises:
        ValueError: a key is unknown or missing, or a value has the wrong type; the message says which and where.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} must be a mapping of options, got {type(data).__name__}.")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(fields)}."
            raise ValueError(f"{where} has an unknown key {key!r}; {hint}")
    required = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in required if name not in data]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}; add it.")
    return cls(**{key: _convert(hints[key], value, f"{where}.{key}") for key, value in data.items()})


def check_ranges(config: Any, lowest: int = 1, /, **highest: int) -> None:
    """Check that whole numbers of a dataclass lie in [lowest, highest], before memory is taken for what a file claims.

    Raises:
        ValueError: one of them does not.
    """
    for name, most in highest.items():
        if not lowest <= (value := getattr(config, name)) <= most:
            raise ValueError(f"{name} must be in [{lowest}, {most}], got {value}; the config is broken.")


def _convert(hint: Any, value: Any, where: str) -> Any:  # noqa: PLR0911  (a return a kind of hint)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        options = [option for option in arguments if option is not type(None)]
        return _convert(options[0], value, where) if len(options) == 1 else value
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where} must be one of {', '.join(map(repr, arguments))}, got {value!r}.")
        return value
    if origin is tuple:
        return _convert_tuple(arguments, value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise ValueError(f"{where} must be a {hint.__name__}, got {value!r}.")
    return value


def _convert_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"{where} must be a list, got {value!r}.")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_convert(arguments[0], entry, f"{where}[{i}]") for i, entry in enumerate(value))
    if len(arguments) != len(value):
        raise ValueError(f"{where} must have {len(arguments)} entries, got {len(value)}.")
    return tuple(
        _convert(hint, entry, f"{where}[{i}]") for i, (hint, entry) in enumerate(zip(arguments, value, strict=True))
    )
