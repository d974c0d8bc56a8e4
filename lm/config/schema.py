"""The config schema: nested dataclasses with documented fields, built from plain dicts with type checks.

The string below a setting documents it. `affects` declares what changing the setting would alter in an existing run;
the default is the effect declared by the enclosing `section`. Other code queries these effects instead of keeping its
own lists. For example, when a run is continued, only settings that affect nothing may change. If a setting has several
effects, it declares the one that comes last in this list:

    nothing    no effect on batches, updates or model outputs, except for rounding
    location   no effect as long as the contents of the file or directory stay the same, which is checked
    updates    only the values of the parameters: how they are initialised and updated
    storage    only the arrays that hold the parameters (stacked layers, padding, unused positions)
    function   the output of the model for given parameters and tokens
    shapes     which parameters exist, and their shapes
    batches    the data that each step reads
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import importlib
import inspect
import itertools
import math
import typing
from collections.abc import Collection, Mapping
from dataclasses import field
from typing import Any

from lm.config.retired import RETIRED
from lm.errors import UserError

EFFECTS = ("nothing", "location", "updates", "storage", "function", "shapes", "batches")


def option(
    default: Any,
    *,
    choices: tuple = (),
    registry: str = "",
    minimum: Any = None,
    maximum: Any = None,
    affects: str = "",
    parameters: tuple[str, ...] = (),
    needs: tuple[str, ...] = (),
    read_by: str = "",
) -> Any:
    """Builds the dataclass field of a setting that has rules. A setting without rules needs only a plain default.

    Args:
        choices: the allowed values. If empty, any value is allowed.
        registry: the dotted name of a dict, such as "lm.tasks.TASKS", whose keys are the allowed values. The dict is
            imported only when a value is checked.
        minimum, maximum: the bounds of the allowed range, inclusive.
        affects: one of EFFECTS. By default, "shapes" if `parameters` is given, else the effect of the section.
        parameters: the names of the parameters whose existence or shape depends on the setting. If empty, a setting
            that affects "shapes" may concern any parameter.
        needs: the conditions under which the setting has an effect, such as "document=separator" (see `unused.py`).
        read_by: another setting of the section, which selects a registry entry. This setting has an effect only if that
            entry lists it in `reads`.
    """
    affects = affects or ("shapes" if parameters else "")
    assert affects in ("", *EFFECTS), affects
    rules = {"choices": choices, "registry": registry, "min": minimum, "max": maximum, "affects": affects}
    return field(default=default, metadata={**rules, "parameters": parameters, "needs": needs, "read_by": read_by})


def section(cls: type, affects: str = "") -> Any:
    """Builds a field that holds an instance of `cls`. `affects` applies to settings of `cls` that declare no effect."""
    assert affects in ("", *EFFECTS), affects
    return field(default_factory=cls, metadata={"affects": affects})


@functools.cache  # each call would evaluate all annotations again, and a command makes hundreds of calls
def type_hints(cls: type) -> Mapping[str, Any]:
    """Returns the type of each setting of a section."""
    return typing.get_type_hints(cls)


@functools.cache
def docs(cls: type) -> dict[str, str]:
    """Returns the documentation of each setting of a section: the string below its declaration in the source."""
    found = {}
    for base in filter(dataclasses.is_dataclass, reversed(cls.__mro__)):
        tree = ast.parse(inspect.getsource(base))
        for declaration, below in itertools.pairwise(ast.walk(tree)):
            match declaration, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                    found[name] = " ".join(doc.split())
    return found


def entries(registry: str) -> Mapping[str, Any]:
    """Returns the registry with the given dotted name, such as "lm.tasks.TASKS"."""
    module, _, name = registry.rpartition(".")
    return getattr(importlib.import_module(module), name)


def allowed_values(rules: Mapping[str, Any]) -> tuple:
    """Returns the values that the metadata of a field allows, or an empty tuple if any value is allowed."""
    return tuple(entries(rules["registry"])) if rules.get("registry") else rules.get("choices", ())


# --- values ---------------------------------------------------------------------------------------------------


def build(cls: type, values: Mapping[str, Any], path: str = "") -> Any:
    """Builds an instance of `cls` from nested dicts. Raises UserError for unknown keys and invalid types or values."""
    if not isinstance(values, Mapping):
        raise UserError(f"config.{path or 'top'}: expected a section of settings, got {values!r}.")
    hints = type_hints(cls)
    for key in values:
        if key not in hints:
            raise UserError(_unknown("config.", f"{path}{key}", hints))
    built = {}
    for spec in dataclasses.fields(cls):
        if spec.name in values:
            built[spec.name] = _value(hints[spec.name], values[spec.name], f"{path}{spec.name}", spec.metadata)
    return cls(**built)


def _value(kind: Any, value: Any, path: str, rules: Mapping[str, Any]) -> Any:
    if dataclasses.is_dataclass(kind):
        return build(typing.cast(type, kind), value, path + ".")
    if typing.get_origin(kind) is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"config.{path}: expected named data sources, got {value!r}.")
        inner = typing.get_args(kind)[1]
        return {str(name): build(inner, each, f"{path}.{name}.") for name, each in value.items()}
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        kinds = {float: ((int, float), "numbers"), int: ((int,), "whole numbers"), str: ((str,), "strings")}
        allowed, expected = kinds[inner]
        many = isinstance(value, (tuple, list))
        if not many or not all(isinstance(v, allowed) and not isinstance(v, bool) for v in value):
            raise UserError(f"config.{path}: expected a tuple of {expected}, got {value!r}.")
        return tuple(inner(v) for v in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"config.{path}: expected {kind.__name__}, got {value!r}.")
    if kind is float and not math.isfinite(value):
        raise UserError(f"config.{path}: expected a finite number, got {value!r}.")
    choices = allowed_values(rules)
    if choices and value not in choices:
        near = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"config.{path}: {value!r} is not one of {', '.join(map(repr, choices))}{hint}")
    if (low := rules.get("min")) is not None and value < low:
        raise UserError(f"config.{path}: {value!r} is below the smallest allowed value, {low!r}.")
    if (high := rules.get("max")) is not None and value > high:
        raise UserError(f"config.{path}: {value!r} is above the largest allowed value, {high!r}.")
    return value


# --- names ----------------------------------------------------------------------------------------------------


def check_name(schema: type, dotted: str) -> None:
    """Raises UserError, suggesting similar names, unless `dotted` (a.b.c) is the name of a setting or section."""
    kind: Any = schema
    parts = dotted.split(".")
    for number, part in enumerate(parts):
        if typing.get_origin(kind) is dict:  # `part` is the NAME in data.train.NAME.field
            kind = typing.get_args(kind)[1]
            continue
        above = ".".join(parts[:number])
        if not dataclasses.is_dataclass(kind):
            raise UserError(f"--config.{dotted}: {above} is a single value and has no setting {part!r}.")
        hints = type_hints(typing.cast(type, kind))
        if part not in hints:
            raise UserError(_unknown("--config.", f"{above}.{part}".lstrip("."), hints))
        kind = hints[part]


def describe_settings(cls: Any, prefix: str = "", with_entries: bool = True) -> list[tuple[str, Any, str]]:
    """Returns (dotted name, default, documentation) for every setting, in the order of declaration.

    If `with_entries` is true, the documentation also describes the entries of registries. This imports the registries,
    and JAX with them, which takes seconds.
    """
    hints, found = type_hints(cls), []
    for spec in dataclasses.fields(cls):
        kind, name = hints[spec.name], prefix + spec.name
        if dataclasses.is_dataclass(kind):
            found += describe_settings(kind, name + ".", with_entries)
        else:
            doc = docs(cls)[spec.name]
            if spec.metadata.get("registry") and not with_entries:
                doc += " --helpfull lists the allowed values."
            elif choices := allowed_values(spec.metadata):
                doc += f"{_docs_of_entries(spec.metadata)} One of: {', '.join(map(repr, choices))}."
            found.append((name, getattr(cls(), spec.name), doc))
            if typing.get_origin(kind) is dict:
                found += describe_settings(typing.get_args(kind)[1], name + ".NAME.", with_entries)
    return found


def _docs_of_entries(rules: Mapping[str, Any]) -> str:
    registry = entries(rules["registry"]) if rules.get("registry") else {}
    docs = [f"{name}: {entry.doc}" for name, entry in registry.items() if getattr(entry, "doc", "")]
    return f" {'; '.join(docs)}." if docs else ""


def _unknown(start: str, dotted: str, known: Collection[str]) -> str:
    """Returns the error message for a setting that is not among the `known` settings of its section."""
    if dotted in RETIRED:
        return f"{start}{dotted} is no longer a setting; {RETIRED[dotted].advice}"
    near = difflib.get_close_matches(dotted.rpartition(".")[2], known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the available settings are {', '.join(sorted(known))}."
    return f"{start}{dotted}: there is no such setting; {hint}"


# --- effects of a change ------------------------------------------------------------------------------------------


@functools.cache
def effect(schema: type, dotted: str) -> str:
    """Returns the effect of a setting, one of EFFECTS.

    A setting of a data source inherits the effect of data.train, data.valid or data.test unless it declares its own.
    """
    cls, found = schema, ""
    names = iter(dotted.split("."))
    for name in names:
        (spec,) = (each for each in dataclasses.fields(cls) if each.name == name)
        found = spec.metadata.get("affects") or found
        kind = type_hints(cls)[name]
        if typing.get_origin(kind) is dict and found != "nothing":
            kind = typing.get_args(kind)[1]
            next(names, None)  # skip the name of the data source
        if not dataclasses.is_dataclass(kind):
            break
        cls = typing.cast(type, kind)
    assert found, f"{dotted} does not declare `affects`"
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Returns a line "key: old -> new" for each value that differs between two nested dicts."""
    lines = []
    for key in sorted(set(old) | set(new)):
        a, b, name = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, name + ".")
        elif (list(a) if isinstance(a, tuple) else a) != (list(b) if isinstance(b, tuple) else b):
            lines.append(f"{name}: {a!r} -> {b!r}")
    return lines


def differences_affecting(effects: Collection[str], schema: type, old: Mapping, new: Mapping) -> list[str]:
    """Returns the `differences` between two nested dicts, but only for settings that have one of the given effects."""
    return [line for line in differences(old, new) if effect(schema, line.split(":")[0]) in effects]
