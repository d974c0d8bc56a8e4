"""Finds settings that were changed but have no effect because of the value of another setting.

A setting that the chosen task does not read is rejected by `checks.py`. The settings found here are only reported,
since the same config file may be used for several variants of an experiment. The arguments `needs` and `read_by` of
`option` declare when a setting has an effect.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

from lm.config.schema import entries


def unused(config: Any) -> list[str]:
    """Returns one line for each setting that was changed but has no effect.

    Must be called before derived values are filled in.
    """
    return list(_unused_in(config, config, "config"))


def _unused_in(section: Any, config: Any, path: str) -> Iterator[str]:
    usual, specs = type(section)(), {spec.name: spec for spec in dataclasses.fields(section)}
    for spec in specs.values():
        value, name = getattr(section, spec.name), f"{path}.{spec.name}"
        if dataclasses.is_dataclass(value):
            yield from _unused_in(value, config, name)
        elif isinstance(value, dict):
            for key, each in value.items():
                yield from _unused_in(each, config, f"{name}.{key}")
        elif value != getattr(usual, spec.name):
            lacking = [need for need in spec.metadata.get("needs", ()) if not _is_met(need, section, config)]
            if reader := spec.metadata.get("read_by"):
                registry, chosen = entries(specs[reader].metadata["registry"]), getattr(section, reader)
                if spec.name not in registry[chosen].reads:
                    readers = [each for each, entry in registry.items() if spec.name in entry.reads]
                    lacking.append(f"{reader}={' or '.join(readers)}, not {chosen}")
            if lacking:
                yield f"{name}={value!r} has no effect; it applies only with {' and '.join(lacking)}"


def _is_met(need: str, section: Any, config: Any) -> bool:
    """Returns whether a condition on a setting holds.

    The condition "name=value" holds if the setting has this value. "name" holds if its value is neither empty nor 0,
    and "no name" holds if its value is empty or 0. A name without a dot refers to a setting of the same section.
    """
    name, equals, value = need.removeprefix("no ").partition("=")
    found = attrgetter(name)(config if "." in name else section)
    return found == value if equals else bool(found) != need.startswith("no ")
