"""Maps generation_config.json, or config.json in older folders, to the generation settings in config.eval.

Our decoders sample tokens, and our encoder-decoders use beam search. Each field determines a setting, is known to be
neutral, or is reported as ignored. Absent fields get the defaults of `transformers`, so the default is greedy
decoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lm.errors import UserError
from lm.huggingface.base import CONFIG, GENERATION_CONFIG, Folder

# The fields for the tokens that begin, end and pad a text. The tokenizer reads them (see special_token_files.py).
TOKENS = frozenset("bos_token_id eos_token_id pad_token_id decoder_start_token_id forced_bos_token_id".split())
# Fields that affect neither the possible tokens nor their probabilities: bookkeeping, caches, outputs, and speculative
# decoding, which is exact.
NEUTRAL = frozenset(
    """
    transformers_version _from_model_config _commit_hash use_cache cache_implementation cache_config max_cache_len
    return_legacy_cache output_attentions output_hidden_states output_scores output_logits return_dict_in_generate
    remove_invalid_values is_assistant num_assistant_tokens num_assistant_tokens_schedule
    assistant_confidence_threshold assistant_early_exit assistant_lookbehind target_lookbehind
    assistant_ensemble_weight speculation_type use_mtp prompt_lookup_num_tokens max_matching_ngram_size low_memory
    compile_config disable_compile continuous_batching_config prefill_chunk_size
    """.split()
)
# For each of the remaining fields, the value (other than null) that has no effect.
NO_EFFECT: Mapping[str, Any] = {
    "do_sample": False,
    "early_stopping": False,
    "num_beams": 1,
    "temperature": 1.0,
    "top_k": 50,  # without do_sample
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "num_return_sequences": 1,
    "renormalize_logits": False,
    "guidance_scale": 1.0,
    "token_healing": False,
}
OTHERS = """
    max_length max_new_tokens max_time stop_strings bad_words_ids suppress_tokens begin_suppress_tokens
    forced_eos_token_id forced_decoder_ids exponential_decay_length_penalty sequence_bias watermarking_config
    penalty_alpha dola_layers constraints force_words_ids top_h
""".split()
STATED = frozenset(NO_EFFECT) | frozenset(OTHERS)
SAMPLED = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}  # the defaults in `transformers`
LONGEST_LIST = 300  # characters


@dataclass
class Generation:
    """The generation settings of a folder, read field by field.

    Attributes:
        values: the fields and their values.
        where: the file, for error messages.
        settings: our settings, keyed by dotted name relative to config.eval.
        done: the names of the fields that have been handled.
    """

    values: Mapping[str, Any]
    where: str
    settings: dict[str, Any] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)

    def take(self, name: str, default: float) -> Any:
        """Returns the number in a field, or the default if it is null or absent. Raises UserError for other values."""
        self.done.add(name)
        value = self.values.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f"{self.where}: {name}={value!r} is not a number.")
        return type(default)(value)

    def read_sampling(self) -> None:
        """Reads the fields that our decoders support.

        The maximum length is ignored, because each command has a flag for it.
        """
        self.done |= {"max_length", "max_new_tokens", "do_sample"}
        drawn = self.values.get("do_sample") is True
        found = {name: self.take(name, default) for name, default in SAMPLED.items()}
        self.settings = found if drawn else {"temperature": 0.0}
        self.settings["repetition_penalty"] = self.take("repetition_penalty", 1.0)
        self.settings = {f"sampling.{name}": value for name, value in self.settings.items()}

    def read_search(self, longest: int) -> None:
        """Reads the fields that our encoder-decoders support. `longest` is the number of positions.

        min_length and max_length in `transformers` include the decoder's start token.
        """
        settings = {
            "num_beams": self.take("num_beams", 1),
            "length_penalty": self.take("length_penalty", 1.0),
            "no_repeat_ngram": self.take("no_repeat_ngram_size", 0),
            "min_new_tokens": self.take("min_new_tokens", max(0, self.take("min_length", 0) - 1)),
        }
        most = self.take("max_new_tokens", self.take("max_length", 1) - 1)
        if most > 0:
            settings["max_new_tokens"] = min(most, longest - 1)
            settings["min_new_tokens"] = min(settings["min_new_tokens"], settings["max_new_tokens"])
        if settings["num_beams"] == 1:
            self.done |= {"early_stopping", "renormalize_logits"}
        else:
            settings["exact"] = self.values.get("early_stopping") == "never"
            if settings["exact"]:
                self.done.add("early_stopping")
        if self.values.get("do_sample") is not True:
            self.done |= SAMPLED.keys()
        self.settings = {f"generation.{name}": value for name, value in settings.items()}

    def read_excluded(self) -> None:
        """Marks lists of excluded tokens as handled if they contain only tokens that we never generate."""
        ends = self.values.get("eos_token_id")
        never = {self.values.get(name) for name in ("bos_token_id", "pad_token_id")}
        never -= set(ends) if isinstance(ends, list) else {ends}
        for name in ("bad_words_ids", "suppress_tokens", "begin_suppress_tokens"):
            listed = self.values.get(name)
            if isinstance(listed, list):
                words = [each if isinstance(each, list) else [each] for each in listed]
                if all(len(word) == 1 and word[0] in never for word in words):
                    self.done.add(name)

    def not_followed(self) -> tuple[str, ...]:
        """Returns a note that lists the fields with an effect only in `transformers`, or () if there are none."""
        left = {name: self.values[name] for name in sorted(self.values.keys() - self.done - TOKENS - NEUTRAL)}
        kept = [f"{name}={value!r:.60}" for name, value in left.items() if value not in (None, NO_EFFECT.get(name))]
        return (f"ignored generation settings: {', '.join(kept):.{LONGEST_LIST}}",) if kept else ()


def generation_of(folder: Folder, family: str, longest: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns our settings, keyed by dotted name relative to config.eval, and notes about ignored fields.

    Args:
        family: the value of model.family.
        longest: the number of positions.

    Raises UserError, naming the field, if a value has the wrong type.
    """
    values, name = folder.generation_config, GENERATION_CONFIG
    if values is None:
        name = CONFIG
        values = {each: folder.config[each] for each in STATED & folder.config.keys()}
        if not values:  # the folder specifies no generation settings
            return {}, ()
        values |= {each: folder.config[each] for each in TOKENS & folder.config.keys()}
    found = Generation(values, f"{folder.source}/{name}")
    if family == "encoder_decoder":
        found.read_search(longest)
    else:
        found.read_sampling()
    found.read_excluded()
    return found.settings, found.not_followed()
