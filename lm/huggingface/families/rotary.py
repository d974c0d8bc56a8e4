"""The config.json fields shared by families with rotary positions: frequencies, their scaling and layer patterns.

`transformers` 4 writes rope_theta and rope_scaling. Version 5 writes rope_parameters, with one entry per kind of layer
if the kinds differ. An export writes both forms, because version 4 silently ignores rope_parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from lm.config import ModelConfig
from lm.huggingface.fields import Field, Settings, Values

FULL, SLIDING = "full_attention", "sliding_attention"
# For each kind of scaling, maps its field names to our settings.
SCALED = {
    "linear": {"factor": "rope_factor"},
    "llama3": {
        "factor": "rope_factor",
        "original_max_position_embeddings": "rope_original_length",
        "low_freq_factor": "rope_low_freq_factor",
        "high_freq_factor": "rope_high_freq_factor",
    },
    "yarn": {
        "factor": "rope_factor",
        "original_max_position_embeddings": "rope_original_length",
        "beta_fast": "rope_beta_fast",
        "beta_slow": "rope_beta_slow",
        "attention_factor": "rope_attention_factor",
        "truncate": "rope_truncate",
    },
}
SETTINGS = ("rope_scaling", *dict.fromkeys(name for each in SCALED.values() for name in each.values()))


def read_number(values: Mapping[str, Any], name: str, default: Any = None) -> float:
    value = values.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name}={value!r} is not a positive number")
    return value


def read_scaling(parameters: Mapping[str, Any], longest: int) -> Settings:
    """Returns our settings for the RoPE parameters of one kind of layer. `longest` is max_position_embeddings."""
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if parameters.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise ValueError(
            f"rope_parameters: partial_rotary_factor={parameters['partial_rotary_factor']!r} is not supported; "
            "supported: 1.0"
        )
    if kind == "default":
        return {"rope_scaling": "none"}
    if kind not in SCALED:
        known = ", ".join(("default", *SCALED))
        raise ValueError(f"rope_scaling / rope_parameters: rope_type={kind!r} is not supported; supported: {known}")
    settings: Settings = {"rope_scaling": kind}
    if kind != "linear":
        settings["rope_original_length"] = int(read_number(parameters, "original_max_position_embeddings", longest))
    ratio = longest / settings["rope_original_length"] if kind == "yarn" else None
    settings["rope_factor"] = float(read_number(parameters, "factor", ratio))
    if kind == "llama3":
        for name in ("low_freq_factor", "high_freq_factor"):
            settings[f"rope_{name}"] = float(read_number(parameters, name))
    if kind == "yarn":
        settings["rope_beta_fast"] = float(read_number(parameters, "beta_fast", 32))
        settings["rope_beta_slow"] = float(read_number(parameters, "beta_slow", 1))
        settings["rope_attention_factor"] = _attention_factor(parameters, settings["rope_factor"])
        settings["rope_truncate"] = parameters.get("truncate") is not False
    return settings


def _attention_factor(parameters: Mapping[str, Any], factor: float) -> float:
    """Returns the factor by which YaRN multiplies cosines and sines; 0 stands for 0.1 ln(factor) + 1."""
    if parameters.get("attention_factor") is not None:
        return float(read_number(parameters, "attention_factor"))
    if not (parameters.get("mscale") and parameters.get("mscale_all_dim")):
        return 0.0

    def factor_of(name: str) -> float:
        return 1.0 if factor <= 1 else 0.1 * read_number(parameters, name) * math.log(factor) + 1.0

    return factor_of("mscale") / factor_of("mscale_all_dim")


def write_scaling(model: ModelConfig) -> Values:
    """Returns the scaling parameters without rope_theta."""
    if model.rope_scaling == "none":
        return {"rope_type": "default"}
    values = {theirs: getattr(model, ours) for theirs, ours in SCALED[model.rope_scaling].items()}
    if not values.get("attention_factor", 1):
        del values["attention_factor"]
    return {"rope_type": model.rope_scaling, **values}


def rope(theta: float, longest: int, *, some_windows: bool = False) -> Field:
    """Returns the fields for rotary positions that are the same in all layers.

    Args:
        theta: the class default of rope_theta.
        longest: the class default of max_position_embeddings.
        some_windows: whether only some layers have a window. In both cases, the scaling applies to all layers.
    """

    def read(values: Values) -> Settings:
        # If a file has both, rope_scaling takes precedence over rope_parameters, and nested values over top-level ones.
        parameters = dict(values["rope_scaling"] or values["rope_parameters"] or {})
        if SLIDING in parameters or FULL in parameters:
            raise ValueError("rope_parameters that differ between layers are not supported for this family")
        if values["partial_rotary_factor"] is not None:
            parameters.setdefault("partial_rotary_factor", values["partial_rotary_factor"])
        settings = read_scaling(parameters, values["max_position_embeddings"])
        if some_windows:
            settings["rope_scaling_local"] = settings["rope_scaling"] != "none"
        return settings | {"rotary_theta": float(read_number(parameters, "rope_theta", values["rope_theta"]))}

    def write(model: ModelConfig) -> Values:
        scaling = write_scaling(model)
        return {
            "rope_theta": model.rotary_theta,
            "rope_scaling": None if model.rope_scaling == "none" else scaling,
            "rope_parameters": {**scaling, "rope_theta": model.rotary_theta},
        }

    defaults = {"rope_theta": theta, "rope_scaling": None, "rope_parameters": None, "partial_rotary_factor": None}
    older = ("rope_theta", "rope_scaling")
    return Field(defaults, ("rotary_theta", *SETTINGS), read, write, {"max_position_embeddings": longest}, older)


def layered_rope(
    theta: float,
    local_theta: float | None,
    longest: int,
    names: tuple[str, str] = ("rope_theta", "rope_local_base_freq"),
    *,
    scales_local: bool = False,
) -> Field:
    """Returns the fields for rotary positions that differ between layers with and without a window.

    Args:
        theta, local_theta: the class defaults. If local_theta is None, all layers use theta.
        names: the names of the two fields in `transformers` 4.
        scales_local: whether rope_scaling in `transformers` 4 also applies to layers with a window.
    """

    def read(values: Values) -> Settings:
        old, new = values["rope_scaling"], values["rope_parameters"] or {}
        if new and not (FULL in new or SLIDING in new):
            raise ValueError(f"rope_parameters={new!r:.80} must have the keys {FULL} and {SLIDING}")
        full, local = dict(new.get(FULL) or {}), dict(new.get(SLIDING) or {})
        full |= old or {}
        local |= (old or {}) if scales_local else {}
        common = values[names[0]]
        settings = read_scaling(full, values["max_position_embeddings"])
        of_local = read_scaling(local, values["max_position_embeddings"])
        if of_local["rope_scaling"] != "none" and of_local != settings:
            raise ValueError(f"rope_parameters: scaling {SLIDING} differently from {FULL} is not supported")
        default = common if local_theta is None else values[names[1]]
        return settings | {
            "rope_scaling_local": of_local["rope_scaling"] != "none",
            "rotary_theta": float(read_number(full, "rope_theta", common)),
            "local_rotary_theta": float(read_number(local, "rope_theta", default)),
        }

    def write(model: ModelConfig) -> Values:
        scaling, plain = write_scaling(model), {"rope_type": "default"}
        local = scaling if model.rope_scaling_local else plain
        thetas = model.rotary_theta, model.local_rotary_theta or model.rotary_theta
        nested = {FULL: {**scaling, "rope_theta": thetas[0]}, SLIDING: {**local, "rope_theta": thetas[1]}}
        old = {"rope_theta": thetas[0]} if local_theta is None else dict(zip(names, thetas, strict=True))
        return {**old, "rope_scaling": None if model.rope_scaling == "none" else scaling, "rope_parameters": nested}

    defaults: Values = {names[0]: theta, "rope_scaling": None, "rope_parameters": None}
    defaults |= {} if local_theta is None else {names[1]: local_theta}
    ours = ("rotary_theta", "local_rotary_theta", "rope_scaling_local", *SETTINGS)
    older = tuple(name for name in defaults if name != "rope_parameters")
    return Field(defaults, ours, read, write, {"max_position_embeddings": longest}, older)


def period_of(chosen: list[bool], usual: tuple[int, int]) -> tuple[int, int] | None:
    """Returns (n, k) if exactly the layers k, n + k, 2n + k, ... are chosen, or None if there is no such pattern.

    If several patterns fit, `usual` is preferred. If no layer is chosen, n exceeds the number of layers.
    """
    last = len(chosen)
    for every, offset in (usual, *((n, k) for n in range(1, last + 2) for k in range(n))):
        if [n % every == offset for n in range(last)] == chosen:
            return every, offset
    return None


def windows(
    usual: tuple[int, int],
    default: int,
    layers: int,
    *,
    name: str = "sliding_window",
    period: str = "sliding_window_pattern",
    to_ours: Callable[[int], int] = lambda window: window,
    to_theirs: Callable[[int], int] = lambda window: window,
) -> Field:
    """Returns the fields for sliding windows in some layers: layer_types or, in `transformers` 4, the period.

    Args:
        usual: the period of the layers without a window, and the index of the first such layer.
        default, layers: the class defaults of the window and of num_hidden_layers.
        name, period: the names of the fields for the window and the period.
        to_ours, to_theirs: functions that convert the window size.
    """

    def read(values: Values) -> Settings:
        count, window = values["num_hidden_layers"], values[name]
        every = values[period] or values[f"_{period}"] or usual[0]
        start = usual[1] if every == usual[0] else 0 if usual[1] == 0 else every - 1
        types = values["layer_types"]
        if types is None:
            types = [FULL if n % every == start else SLIDING for n in range(count)]
        if len(types) != count or set(types) - {FULL, SLIDING}:
            raise ValueError(f"layer_types={types!r:.80} must have {count} elements, each {FULL} or {SLIDING}")
        pattern = period_of([each == FULL for each in types], (every, start))
        if pattern is None:
            raise ValueError(f"layer_types={types!r:.120} is not supported because it is not periodic")
        if window is None or set(types) == {FULL}:
            return {"window": 0, "global_every": 0, "global_offset": 0}
        size = to_ours(int(read_number(values, name)))
        return {"window": size, "global_every": pattern[0], "global_offset": pattern[1]}

    def write(model: ModelConfig) -> Values:
        if not model.window:
            return {"layer_types": [FULL] * model.num_layers}
        every, offset = model.global_every, model.global_offset
        types = [FULL if every and n % every == offset else SLIDING for n in range(model.num_layers)]
        return {name: to_theirs(model.window), "layer_types": types, **({period: every} if every else {})}

    defaults = {name: default, "layer_types": None, period: None, f"_{period}": None}
    ours = ("window", "global_every", "global_offset")
    return Field(defaults, ours, read, write, {"num_hidden_layers": layers}, older=(period,))
