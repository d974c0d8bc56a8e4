"""Denoising objectives: a chunk of text -> a corrupted source and what the decoder has to write.

Every objective is a `Denoiser`, in pure NumPy. Its sizes depend on a chunk's length and on a few numbers
that are drawn for many chunks at once (`draw`), so that rows can be packed before an example is made;
`make` then draws the rest and keeps to these sizes. Where the randomness comes from is the caller's affair.

Shape letters: n tokens of a chunk, E examples, D numbers drawn for an example.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

import numpy as np

from lm.config import ObjectiveConfig
from lm.errors import UserError

UL2_SPANS = ((3, 0.15), (8, 0.15), (3, 0.5), (8, 0.5), (64, 0.15), (64, 0.5))  # mean length, share of the tokens
UL2_MODES = ("R", "R", "X", "X", "X", "X", "S")  # of these, and of the prefix LM
UL2_MODE_IDS = {"R": 100, "S": 101, "X": 102}  # behind the hundred for spans

Example = tuple[np.ndarray, np.ndarray]  # source and target tokens, int32, each with its end token
Sizes = tuple[np.ndarray, np.ndarray]  # of source and target, int64 (E,) each


def noise_counts(lengths_E: np.ndarray, density: float, mean_span: float) -> tuple[np.ndarray, np.ndarray]:
    """Masked tokens and masked spans of chunks of 2 tokens or more, int64 (E,) each (Raffel 2020).

    Masked are round(n density) tokens, at least one and not all, in round(masked / mean_span) spans, at
    least one and no more than there are tokens left between them. Halves are rounded to even, as in T5.
    """
    lengths_E = np.asarray(lengths_E, np.int64)
    noise_E = np.clip(np.round(lengths_E * density).astype(np.int64), 1, lengths_E - 1)
    spans_E = np.maximum(np.round(noise_E / mean_span).astype(np.int64), 1)
    return noise_E, np.minimum(spans_E, lengths_E - noise_E)


def random_segments(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Sizes of `parts` pieces, none empty, that make `total`: every way of cutting it is as likely."""
    cuts = np.sort(rng.permutation(total - 1)[: parts - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def noise_mask(length: int, density: float, mean_span: float, rng: np.random.Generator) -> np.ndarray:
    """Bool (n,): T5's random spans. Kept and masked spans take turns, beginning with a kept one.

    So the first token is never masked and the last one always is.
    """
    noise, spans = (int(each) for each in noise_counts(np.array(length), density, mean_span))
    kept = random_segments(length - noise, spans, rng)
    masked = random_segments(noise, spans, rng)
    return np.repeat(np.tile([False, True], spans), np.stack([kept, masked], axis=1).reshape(-1))


def corrupt(tokens: np.ndarray, mask: np.ndarray, sentinels: np.ndarray, eos_id: int) -> Example:
    """T5's layout (Raffel 2020, figure 2): masked span i becomes sentinel i, counted from 0.

    Source: the text with each masked span replaced by its sentinel, then eos. Target: sentinel 0, the tokens
    of span 0, sentinel 1, those of span 1, ..., then eos. If the text ends in a token that is not masked,
    one more sentinel comes before the target's eos, as in the figure; it stands for the kept text at the
    end, as every other sentinel of the target stands for the kept text before its span. Masks from
    `noise_mask` end in a masked token, so they have no such last sentinel, and T5's own have none either:
    512 tokens of source go with 114 of target.
    """
    begins = mask & ~np.concatenate([[False], mask[:-1]])
    spans = int(begins.sum())
    closing = int(not mask[-1])
    assert spans + closing <= len(sentinels), (spans, closing, len(sentinels))
    source = np.array(tokens, np.int32)
    source[begins] = sentinels[:spans]
    masked = np.asarray(tokens, np.int32)[mask]
    places = np.flatnonzero(begins[mask])
    target = np.insert(masked, places, sentinels[:spans])
    return _ended(source[~mask | begins], eos_id), _ended(target, *sentinels[spans : spans + closing], eos_id)


def _ended(tokens: np.ndarray, *end: int) -> np.ndarray:
    return np.concatenate([tokens, end]).astype(np.int32)


class Denoiser(abc.ABC):
    """One objective. Chunks have 2 tokens or more, and neither bos nor eos."""

    @abc.abstractmethod
    def fits(self, lengths_E: np.ndarray, source_length: int, target_length: int) -> np.ndarray:
        """Bool (E,): whether an example of a chunk of this length fits the row, whatever is drawn."""

    @abc.abstractmethod
    def sizes(self, lengths_E: np.ndarray, draws_ED: np.ndarray) -> Sizes:
        """Tokens of source and of target, int64 (E,) and (E,), end token included."""

    @abc.abstractmethod
    def make(self, tokens: np.ndarray, draws_D: np.ndarray, rng: np.random.Generator) -> Example:
        """Source and target of a chunk (n,), of just those sizes."""

    def draw(self, lengths_E: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """All that is random about the sizes: (E, D). By default nothing is."""
        return np.zeros((len(lengths_E), 0))

    def longest_chunk(self, source_length: int, target_length: int) -> int:
        """Every chunk of 2 to so many tokens fits a row of `source_length` and `target_length` tokens.

        For span corruption this is the computation of T5: 512 tokens of source hold chunks of 568 at 15 %
        and a mean of 3. Raises UserError if the row holds none.
        """
        lengths = np.arange(2, source_length + target_length + 1)  # what is in a row was in the text
        fitting = int(np.argmin(np.append(self.fits(lengths, source_length, target_length), False)))
        if not fitting:
            raise UserError(
                f"config.data.sequence_length: rows of {source_length} source and {target_length} target tokens hold "
                "no example of this objective; lengthen them (or data.source_length)."
            )
        return fitting + 1


class SpanCorruption(Denoiser):
    """T5's objective: the decoder writes the masked spans. Chunks have no more spans than there are sentinels."""

    def __init__(self, density: float, mean_span: float, sentinels: Sequence[int], eos_id: int):
        self._density, self._mean_span, self._eos_id = density, mean_span, eos_id
        self._sentinels = np.array(sentinels, np.int32)

    def fits(self, lengths_E: np.ndarray, source_length: int, target_length: int) -> np.ndarray:
        _, spans_E = noise_counts(lengths_E, self._density, self._mean_span)
        source_sizes_E, target_sizes_E = self.sizes(lengths_E, self.draw(lengths_E, np.random.default_rng(0)))
        fits_E = (source_sizes_E <= source_length) & (target_sizes_E <= target_length)
        return fits_E & (spans_E <= len(self._sentinels))

    def sizes(self, lengths_E: np.ndarray, draws_ED: np.ndarray) -> Sizes:
        noise_E, spans_E = noise_counts(lengths_E, self._density, self._mean_span)
        return lengths_E - noise_E + spans_E + 1, noise_E + spans_E + 1

    def make(self, tokens: np.ndarray, draws_D: np.ndarray, rng: np.random.Generator) -> Example:
        mask = noise_mask(len(tokens), self._density, self._mean_span, rng)
        return corrupt(tokens, mask, self._sentinels, self._eos_id)


class PrefixLm(Denoiser):
    """The decoder goes on from the beginning of the text. Every place to cut it is as likely; neither part is empty."""

    def __init__(self, eos_id: int):
        self._eos_id = eos_id

    def fits(self, lengths_E: np.ndarray, source_length: int, target_length: int) -> np.ndarray:
        return lengths_E <= min(source_length, target_length)  # n - 1 tokens on one side, and eos

    def draw(self, lengths_E: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Where the text is cut: int64 (E, 1), from 1 to n - 1."""
        return rng.integers(1, lengths_E)[:, None]

    def sizes(self, lengths_E: np.ndarray, draws_ED: np.ndarray) -> Sizes:
        return draws_ED[:, 0] + 1, lengths_E - draws_ED[:, 0] + 1

    def make(self, tokens: np.ndarray, draws_D: np.ndarray, rng: np.random.Generator) -> Example:
        cut = int(draws_D[0])
        return _ended(tokens[:cut], self._eos_id), _ended(tokens[cut:], self._eos_id)


class Ul2(Denoiser):
    """UL2's mixture of seven denoisers (Tay 2022, table 1), each as likely, told by a mode token before the source.

    R: spans of mean 3 and 8, 15 % of the tokens. X: spans of mean 3 and 8 at 50 %, of mean 64 at 15 % and
    50 %. S: prefix LM, cut anywhere, as the code in the paper's appendix does. Extra ids 100, 101 and 102
    are the modes R, S and X; the spans have the hundred before.
    """

    def __init__(self, extra_ids: Sequence[int], eos_id: int):
        spans = [SpanCorruption(density, mean, extra_ids[:100], eos_id) for mean, density in UL2_SPANS]
        self._parts: list[Denoiser] = [*spans, PrefixLm(eos_id)]
        self._modes = [extra_ids[UL2_MODE_IDS[mode]] for mode in UL2_MODES]

    def fits(self, lengths_E: np.ndarray, source_length: int, target_length: int) -> np.ndarray:
        return np.all([part.fits(lengths_E, source_length - 1, target_length) for part in self._parts], axis=0)

    def draw(self, lengths_E: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Number of the denoiser, and where a prefix LM would cut: int64 (E, 2)."""
        which_E = rng.integers(0, len(self._parts), len(lengths_E))
        return np.concatenate([which_E[:, None], self._parts[-1].draw(lengths_E, rng)], axis=1)

    def sizes(self, lengths_E: np.ndarray, draws_ED: np.ndarray) -> Sizes:
        source_sizes_E, target_sizes_E = np.zeros_like(lengths_E), np.zeros_like(lengths_E)
        for number, part in enumerate(self._parts):
            mine = draws_ED[:, 0] == number
            source_sizes_E[mine], target_sizes_E[mine] = part.sizes(lengths_E[mine], draws_ED[mine, 1:])
        return source_sizes_E + 1, target_sizes_E

    def make(self, tokens: np.ndarray, draws_D: np.ndarray, rng: np.random.Generator) -> Example:
        number = int(draws_D[0])
        source, target = self._parts[number].make(tokens, draws_D[1:], rng)
        return np.concatenate([[self._modes[number]], source]).astype(np.int32), target


class Infilling(Denoiser):
    """BART's text infilling (Lewis 2020): spans of Poisson length become one mask each; the decoder writes it all.

    Spans are drawn until they have round(n density) tokens (at least one, not all), and the last is cut to that.
    Spans of length 0, masks that hide nothing, are among them. They lie anywhere in the text, each in
    one piece, two of them next to each other perhaps. There are never more spans than masked tokens, so a
    source is never longer than its target.

    Sizes depend on the number of spans k alone, and it has a closed form: in a Poisson process of rate 1
    cut into stretches of length lambda, the counts of the stretches are the lengths, and the last of m
    tokens falls at a time G of Gamma(m) into stretch k = ceil(G / lambda). Given G, the other m - 1 fall
    evenly before it.

    Args:
        ends_sentence: bool (V,), the tokens that end a sentence, to shuffle the sentences of the source before
            it is masked; None to leave them in order.
    """

    def __init__(
        self, density: float, mean_span: float, mask_id: int, eos_id: int, ends_sentence: np.ndarray | None = None
    ):
        self._density, self._mean_span, self._mask_id, self._eos_id = density, mean_span, mask_id, eos_id
        self._ends_sentence = ends_sentence

    def fits(self, lengths_E: np.ndarray, source_length: int, target_length: int) -> np.ndarray:
        return lengths_E + 1 <= min(source_length, target_length)

    def draw(self, lengths_E: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The time G of the last masked token: float64 (E, 1)."""
        noise_E, _ = noise_counts(lengths_E, self._density, self._mean_span)
        return np.minimum(rng.standard_gamma(noise_E), self._mean_span * noise_E)[:, None]

    def sizes(self, lengths_E: np.ndarray, draws_ED: np.ndarray) -> Sizes:
        noise_E, spans_E = self._counts(lengths_E, draws_ED)
        return lengths_E - noise_E + spans_E + 1, lengths_E + 1

    def _counts(self, lengths_E: np.ndarray, draws_ED: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Masked tokens and spans."""
        noise_E, _ = noise_counts(lengths_E, self._density, self._mean_span)
        spans_E = np.ceil(draws_ED[:, 0] / self._mean_span).astype(np.int64)
        return noise_E, np.clip(spans_E, 1, noise_E)

    def make(self, tokens: np.ndarray, draws_D: np.ndarray, rng: np.random.Generator) -> Example:
        noise, spans = (int(each[0]) for each in self._counts(np.array([len(tokens)]), draws_D[None]))
        target = _ended(tokens, self._eos_id)
        if self._ends_sentence is not None:
            tokens = permute_sentences(tokens, self._ends_sentence, rng)
        stretches = (rng.random(noise - 1) * draws_D[0] / self._mean_span).astype(np.int64)
        lengths = np.bincount(np.minimum(stretches, spans - 1), minlength=spans)
        lengths[-1] += 1
        # The kept tokens and the masks in a row, and how much of the text each stands for.
        is_mask = rng.permutation(len(tokens) - noise + spans) < spans
        widths = np.ones(len(is_mask), np.int64)
        widths[is_mask] = rng.permutation(lengths)
        begins = np.minimum(np.cumsum(widths) - widths, len(tokens) - 1)
        return _ended(np.where(is_mask, self._mask_id, tokens[begins]), self._eos_id), target


def permute_sentences(tokens: np.ndarray, ends_sentence: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The sentences of a chunk (n,) in a random order. `ends_sentence`, bool (V,): the tokens that end one."""
    sentence = np.concatenate([[0], np.cumsum(ends_sentence[tokens[:-1]])])
    return tokens[np.argsort(rng.permutation(int(sentence[-1]) + 1)[sentence], kind="stable")]


def build_denoiser(
    objective: ObjectiveConfig, extra_ids: Sequence[int], eos_id: int, ends_sentence: np.ndarray | None = None
) -> Denoiser:
    """The objective of a config. `extra_ids[i]` is the token <extra_id_i>; `ends_sentence` is for permute_sentences.

    Raises UserError if the vocabulary has too few extra ids.
    """
    needed = {"span_corruption": 1, "ul2": 103, "infilling": 1, "prefix_lm": 0}[objective.name]
    if len(extra_ids) < needed:
        raise UserError(
            f"config.data.tokenizer.extra_ids: {objective.name} needs {needed} in the vocabulary, and it has "
            f"{len(extra_ids)}; raise it, or take a tokenizer that has them."
        )
    density, mean_span = objective.noise_density, objective.mean_span_length
    if objective.name == "span_corruption":
        return SpanCorruption(density, mean_span, extra_ids, eos_id)
    if objective.name == "ul2":
        return Ul2(extra_ids, eos_id)
    if objective.name == "infilling":
        if objective.permute_sentences:
            assert ends_sentence is not None, "to permute sentences one must know where they end"
        return Infilling(
            density, mean_span, extra_ids[0], eos_id, ends_sentence if objective.permute_sentences else None
        )
    return PrefixLm(eos_id)
