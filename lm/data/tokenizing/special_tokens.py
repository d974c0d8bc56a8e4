"""The special tokens of a tokenizer, and the templates that place them around one text or two texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

TEXT = -1  # stands for a text among the token ids of a template
# Slices of a flat array (N,): the array, and the start and the length of each slice, int64 (E,).
Slices = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Template:
    """A sequence of special tokens and one or two placeholders (TEXT) for texts, with a token type for each entry."""

    ids: tuple[int, ...]
    types: tuple[int, ...]

    @classmethod
    def of_one(cls, *ids: int) -> Template:
        """Returns a template in which all token types are 0."""
        return cls(ids, (0,) * len(ids))

    @property
    def num_special(self) -> int:
        """The number of special tokens."""
        return sum(token != TEXT for token in self.ids)

    def num_before(self, text: int) -> int:
        """Returns the number of special tokens before the text with this index."""
        return [index for index, token in enumerate(self.ids) if token == TEXT][text] - text

    def text_mask(self, *sizes: int) -> np.ndarray:
        """Returns whether each token of an input belongs to a text, bool (T,). `sizes` are the lengths of the texts."""
        rest = iter(sizes)
        lengths = [next(rest) if token == TEXT else 1 for token in self.ids]
        return np.repeat(np.array(self.ids) == TEXT, lengths)

    def fill(self, *texts: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the tokens of the whole input and their types, both int32 (T,)."""
        rest = iter(texts)
        parts = [np.asarray(next(rest) if token == TEXT else [token], np.int32) for token in self.ids]
        assert next(rest, None) is None, f"the template {self.ids} has room for fewer than {len(texts)} texts"
        return np.concatenate(parts), np.repeat(np.array(self.types, np.int32), list(map(len, parts)))

    def fill_all(self, *texts: Slices) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Does the same as `fill` for many inputs at once.

        Returns the tokens and types of all inputs, concatenated, both int32 (T,), and the size of each input, int64
        (E,). Each text is given as slices, one for each input.
        """
        sizes_E = np.sum([lengths_E for _, _, lengths_E in texts], axis=0) + self.num_special
        next_E = np.cumsum(sizes_E) - sizes_E  # index of the next token of each input
        tokens_T = np.empty(int(sizes_E.sum()), np.int32)
        types_T = np.zeros(len(tokens_T), np.int32)
        rest = iter(texts)
        for token, kind in zip(self.ids, self.types, strict=True):
            if token == TEXT:
                flat_N, begins_E, lengths_E = next(rest)
                before_E = np.cumsum(lengths_E) - lengths_E
                every = np.arange(int(lengths_E.sum()))
                index_T = every + np.repeat(next_E - before_E, lengths_E)
                tokens_T[index_T] = flat_N[every + np.repeat(begins_E - before_E, lengths_E)]
                next_E = next_E + lengths_E
            else:
                index_T, next_E = next_E, next_E + 1
                tokens_T[index_T] = token
            if kind:
                types_T[index_T] = kind
        return tokens_T, types_T, sizes_E


@dataclass(frozen=True)
class SpecialTokens:
    """The ids of the special tokens. None means that the tokenizer has no such token.

    Most published decoders (GPT-2, Qwen, SmolLM2) have no BOS token. Documents and empty prompts then begin with EOS,
    which separated the documents in pre-training.
    """

    bos: int | None  # precedes each text
    eos: int  # ends each document and each source
    other_stops: tuple[int, ...] = ()  # tokens that end a generated text, in addition to `eos`
    pad: int | None = None
    mask: int | None = None
    first_of_target: int | None = None  # the first token of an encoder-decoder's decoder input; None means `start`
    forced_first: int | None = None  # the first token that an encoder-decoder must generate
    one: Template | None = None  # the template for one text; None means `bos text eos`
    two: Template | None = None  # the template for a pair of texts; None means `bos text eos text eos`
    chat_template: str | None = None  # a Jinja template that renders conversations
    names: Mapping[str, str] = field(default_factory=dict)  # "bos_token" etc. -> text, for chat templates

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SpecialTokens:
        templates = {name: values.get(name) and Template(*map(tuple, values[name])) for name in ("one", "two")}
        return cls(**{**values, "other_stops": tuple(values.get("other_stops", ())), **templates})

    def to_json(self) -> dict[str, Any]:
        """Returns the fields that are set, as JSON values from which `from_json` restores an equal object."""
        every = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        found = {name: value for name, value in every.items() if value not in (None, (), {}) or name == "bos"}
        lists = {name: [list(value.ids), list(value.types)] for name, value in found.items() if name in ("one", "two")}
        return found | lists | ({"other_stops": list(self.other_stops)} if self.other_stops else {})

    @property
    def start(self) -> int:
        """The token that precedes each document: BOS, or EOS if there is no BOS."""
        return self.eos if self.bos is None else self.bos

    @property
    def stops(self) -> tuple[int, ...]:
        """The tokens that end a generated text, starting with EOS."""
        return (self.eos, *self.other_stops)

    @property
    def decoder_start(self) -> int:
        return self.start if self.first_of_target is None else self.first_of_target

    @cached_property
    def for_text(self) -> Template:
        """The template for one text, such as a text to classify."""
        return self.one or Template.of_one(*self._bos, TEXT, self.eos)

    @cached_property
    def for_pair(self) -> Template:
        """The template for two texts. EOS separates the texts if the published template has no separator."""
        if self.two and self.two.num_before(1) > self.two.num_before(0):
            return self.two
        length = len(self._bos) + 2
        return Template((*self._bos, TEXT, self.eos, TEXT, self.eos), (0,) * length + (1, 1))

    @cached_property
    def for_source(self) -> Template:
        """The template for a source of an encoder-decoder. Our own tokenizers use no BOS token for sources."""
        before, after = self._around
        return Template.of_one(*before, TEXT, *after)

    @cached_property
    def for_target(self) -> Template:
        """The template for a target. In the decoder's input, `decoder_start` precedes the target.

        If the first token is forced, for example to be the code of the target language, a target starts with this token
        instead of the tokens that precede a source.
        """
        before, _ = self._around
        return Template.of_one(*(before if self.forced_first is None else (self.forced_first,)), TEXT, self.eos)

    def frame(self, *texts: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the tokens of one text or a pair, with special tokens, and their types, both int32 (T,).

        If a published template adds no tokens to an empty text, the result is the single token `start`.
        """
        tokens_T, types_T = (self.for_text if len(texts) == 1 else self.for_pair).fill(*texts)
        return (tokens_T, types_T) if len(tokens_T) else (np.array([self.start], np.int32), np.zeros(1, np.int32))

    def as_source(self) -> SpecialTokens:
        """Returns special tokens that frame each text as a source of an encoder-decoder."""
        two = self.two or Template((TEXT, self.eos, TEXT, self.eos), (0, 0, 1, 1))
        return dataclasses.replace(self, one=self.for_source, two=two)

    @property
    def _bos(self) -> tuple[int, ...]:
        return () if self.bos is None else (self.bos,)

    @property
    def _around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens before and after a source. A source always ends with a special token, so it is never empty."""
        if self.one is None:
            return (), (self.eos,)
        at = self.one.ids.index(TEXT)
        return self.one.ids[:at], self.one.ids[at + 1 :] or (self.eos,)
