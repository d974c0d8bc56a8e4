"""Converts between the fields of config.json and the settings of ModelConfig.

Each family lists its fields. Every field of a config.json either determines some of our settings, is known to be
neutral (it does not affect what the model computes), or is rejected with an error that names it. An absent field has
the default value from the family's `transformers` class; these defaults differ between families.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lm.config import ModelConfig
from lm.errors import UserError

Settings = dict[str, Any]  # settings of ModelConfig
Values = dict[str, Any]  # fields of config.json

# Fields that do not affect what a model computes: bookkeeping, training settings, and generation defaults, which
# generation_config.json overrides. tie_word_embeddings is read separately (see recognising.py).
NEUTRAL = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path _num_labels architectures
    attn_implementation auto_map dtype finetuning_task id2label keys_to_ignore_at_inference label2id model_type
    name_or_path num_labels output_attentions output_hidden_states output_past problem_type return_dict
    task_specific_params tie_word_embeddings tokenizer_class torch_dtype torchscript transformers_version use_bfloat16
    use_cache use_return_dict xla_device chunk_size_feed_forward gradient_checkpointing
    initializer_range initializer_factor init_std
    attention_dropout attention_probs_dropout_prob attn_pdrop classifier_dropout classifier_dropout_prob dropout
    dropout_rate embd_pdrop hidden_dropout hidden_dropout_prob resid_pdrop activation_dropout layerdrop
    encoder_layerdrop decoder_layerdrop embedding_dropout mlp_dropout
    bos_token_id eos_token_id eos_token_ids pad_token_id sep_token_id cls_token_id mask_token_id unk_token_id
    decoder_start_token_id forced_bos_token_id forced_eos_token_id bad_words_ids suppress_tokens
    begin_suppress_tokens prefix max_length min_length max_new_tokens do_sample early_stopping num_beams
    num_beam_groups diversity_penalty
    temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size num_return_sequences output_scores return_dict_in_generate remove_invalid_values
    exponential_decay_length_penalty
    """.split()
)


@dataclass(frozen=True)
class Field:
    """A group of config.json fields that together determine one or more settings.

    Attributes:
        defaults: maps each field to the value that the `transformers` class uses if the field is absent.
        ours: the names of the settings that the fields determine.
        read: computes the settings from the field values, or raises ValueError if the values are not supported.
        write: computes the fields from a ModelConfig; it omits fields that need not be written.
        reads: maps the other fields on which the settings depend to their defaults.
        older: the fields that `transformers` 4 needs because it ignores the newer ones.
    """

    defaults: Mapping[str, Any]
    ours: tuple[str, ...]
    read: Callable[[Values], Settings]
    write: Callable[[ModelConfig], Values]
    reads: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    older: tuple[str, ...] = ()


def number(theirs: str, ours: str, default: float | None, *, null: Any = None, least: float = 0) -> Field:
    """Returns the field for a numeric setting.

    If the field is null in config.json, the setting gets the value of the argument `null`.
    """

    def read(values: Values) -> Settings:
        value = values[theirs]
        if value is None and null is not None:
            return {ours: null}
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{theirs}={value!r} is not a number")
        if value != value or value in (float("inf"), -float("inf")) or value < least:
            raise ValueError(f"{theirs}={value!r} is out of range")
        if value == null:
            raise ValueError(f"{theirs}={value!r} is not supported; use null to disable the feature")
        return {ours: value}

    def write(model: ModelConfig) -> Values:
        value = getattr(model, ours)
        return {theirs: None if null is not None and value == null else value}

    return Field({theirs: default}, (ours,), read, write)


def choice(theirs: str, ours: str, known: Mapping[Any, Any], default: Any) -> Field:
    """Returns the field for a setting. `known` maps the values of the field to values of the setting."""

    def read(values: Values) -> Settings:
        value = values[theirs]
        if isinstance(value, (list, dict)) or value not in known:
            raise ValueError(f"{theirs}={value!r} is not supported; supported: {', '.join(map(str, known))}")
        return {ours: known[value]}

    def write(model: ModelConfig) -> Values:
        matching = [value for value, setting in known.items() if setting == getattr(model, ours)]
        return {theirs: default if default in matching else matching[0]} if matching else {}

    return Field({theirs: default}, (ours,), read, write)


def only(theirs: str, *allowed: Any, absent: Any = None) -> Field:
    """Returns a field that must have one of the allowed values.

    Its default is `absent` or, if that is None, the first allowed value.
    """
    default = allowed[0] if absent is None else absent

    def read(values: Values) -> Settings:
        value = values[theirs]
        # The types must match, because True == 1.
        if not any(value == each and type(value) is type(each) for each in allowed):
            named = " or ".join(map(repr, allowed))
            raise ValueError(f"{theirs}={value!r} is not supported; supported: {named}")
        return {}

    return Field({theirs: default}, (), read, lambda _: {} if default in allowed else {theirs: allowed[0]})


def position_rows(theirs: str, default: int, unused: int = 0) -> Field:
    """Returns the field for the number of rows in the position table. The first `unused` rows are never read."""

    def read(values: Values) -> Settings:
        value = values[theirs]
        if isinstance(value, bool) or not isinstance(value, int) or value <= unused:
            raise ValueError(f"{theirs}={value!r} is not a valid number of positions")
        return {"max_length": value - unused}

    return Field({theirs: default}, ("max_length",), read, lambda model: {theirs: model.max_length + unused})


def gathered(fields: Iterable[Field], *changes: Field) -> tuple[Field, ...]:
    """Combines two lists of fields.

    Each element of `changes` replaces all elements of `fields` with which it shares a config.json field.
    """
    new = {name for each in changes for name in each.defaults}
    return (*(each for each in fields if not new & each.defaults.keys()), *changes)


# Features that are not supported for any family.
GENERIC = (
    only("quantization_config", None),
    only("pruned_heads", None, {}),
    only("add_cross_attention", False, None),
    only("cross_attention_hidden_size", None),
    only("tie_encoder_decoder", False, None),
    only("is_decoder", False, None),
    only("is_encoder_decoder", False, None),
)


def read_settings(fields: Iterable[Field], neutral: Collection[str], config: Values, where: str) -> Settings:
    """Returns the ModelConfig settings that a config.json determines. Raises UserError if a field is not supported.

    Args:
        neutral: the names of the family's fields that do not affect what the model computes.
        where: the folder, for error messages.
    """
    fields = gathered(GENERIC, *fields)
    settings: Settings = {}
    known = {name for each in fields for name in each.defaults} | set(neutral) | NEUTRAL
    if unknown := sorted(name for name in config.keys() - known if config[name] is not None):
        name = unknown[0]
        raise UserError(
            f"{where}: config.json has the field {name}={config[name]!r:.60}, which is not recognised for this "
            "model family and may change what the model computes; remove the field if it has no effect."
        )
    for each in fields:
        values = {name: config.get(name, default) for name, default in {**each.reads, **each.defaults}.items()}
        try:
            settings |= each.read(values)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            names = " / ".join(each.defaults)
            raise UserError(f"{where}: config.json: {error if str(error) else names}.") from None
    return settings


def write_values(
    fields: Iterable[Field], model: ModelConfig, original: Mapping[str, Any], before: ModelConfig | None
) -> Values:
    """Returns the config.json fields for a model.

    Args:
        original: the config.json from which the model was imported. A field is kept unless a setting that
            it determines has changed. If `transformers` 5 wrote this file, the fields that version 4 needs are added.
        before: the settings that correspond to `original`, or None if there is no original.
    """
    values = dict(original)
    for each in fields:
        if before is None or any(getattr(model, name) != getattr(before, name) for name in each.ours):
            values |= each.write(model)
        elif each.older and any(original.get(name) is not None for name in each.defaults.keys() - each.older):
            written = each.write(model)
            values |= {name: written[name] for name in each.older if written.get(name) is not None} | values
    return values
