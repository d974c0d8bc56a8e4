"""Denoising examples: in every epoch, each chunk of text is corrupted anew to obtain a source and a target.

The sizes of an example depend only on the length of its chunk and on a few random numbers that `Denoiser.draw` draws
for all chunks at once, so rows can be packed before any example is made. `Denoiser.make` draws the remaining random
numbers.

n is the number of tokens in a chunk, E the number of examples, and D the number of random numbers per example.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence

import numpy as np

from lm.data import order
from lm.data.examples.example import ChunkExamples, Example, from_pair
from lm.data.storing.token_store import TokenStore
from lm.data.tokenizing.special_tokens import SpecialTokens
from lm.errors import UserError

# Mode token, mean span length, and fraction of tokens that are masked. Mode S is a prefix LM.
UL2 = (("R", 3, 0.15), ("R", 8, 0.15), ("X", 3, 0.5), ("X", 8, 0.5), ("X", 64, 0.15), ("X", 64, 0.5))
UL2_MODE_IDS = {"R": 100, "S": 101, "X": 102}  # indices of extra ids; the first 100 extra ids are span sentinels

Corrupted = tuple[np.ndarray, np.ndarray]  # source and target tokens, int32, each ending with the EOS token
Sizes = tuple[np.ndarray, np.ndarray]  # source and target sizes, int64 (E,) each


def noise_counts(lengths_E: np.ndarray, density: float, mean_span: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers of masked tokens and masked spans, int64 (E,) each (Raffel 2020).

    The number of masked tokens is round(n * density), limited to the range from 1 to n - 1. The number of spans is
    round(masked / mean_span), limited to the range from 1 to the number of kept tokens. Halves are rounded to even, as
    in T5.
    """
    noise_E = np.clip(np.round(lengths_E * density).astype(np.int64), 1, lengths_E - 1)
    spans_E = np.maximum(np.round(noise_E / mean_span).astype(np.int64), 1)
    return noise_E, np.minimum(spans_E, lengths_E - noise_E)


def random_segments(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the sizes of `parts` non-empty segments that add up to `total`, drawn uniformly."""
    cuts = np.sort(rng.permutation(total - 1)[: parts - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def noise_mask(length: int, density: float, mean_span: float, rng: np.random.Generator) -> np.ndarray:
    """Returns T5's random mask, bool (n,): kept and masked spans alternate, and the first span is kept."""
    noise, spans = map(int, noise_counts(np.array(length), density, mean_span))
    kept, masked = random_segments(length - noise, spans, rng), random_segments(noise, spans, rng)
    return np.repeat(np.tile([False, True], spans), np.stack([kept, masked], axis=1).reshape(-1))


def corrupt(tokens: np.ndarray, mask: np.ndarray, sentinels: np.ndarray, eos_id: int) -> Corrupted:
    """Returns T5's source and target (Raffel 2020, figure 2): sentinel i replaces masked span i, counted from 0.

    The source is the text with these replacements, followed by EOS. The target is sentinel 0, the tokens of span 0,
    sentinel 1, the tokens of span 1, ..., followed by EOS. If the last token of the text is not masked, the target has
    a final sentinel before its EOS, as in the figure. This sentinel stands for the unmasked text at the end. Masks from
    `noise_mask`, like those from T5's code, end with a masked token and need no final sentinel.
    """
    begins = mask & ~np.concatenate([[False], mask[:-1]])
    spans, closing = int(begins.sum()), int(not mask[-1])
    assert spans + closing <= len(sentinels), (spans, closing, len(sentinels))
    source = np.array(tokens, np.int32)
    source[begins] = sentinels[:spans]
    masked = np.asarray(tokens, np.int32)[mask]
    target = np.insert(masked, np.flatnonzero(begins[mask]), sentinels[:spans])
    return ended(source[~mask | begins], eos_id), ended(target, *sentinels[spans : spans + closing], eos_id)


def ended(tokens: np.ndarray, *end: int) -> np.ndarray:
    """Returns the tokens followed by the ids `end`, int32."""
    return np.concatenate([tokens, end]).astype(np.int32)


class Denoiser(abc.ABC):
    """Base class for methods that corrupt chunks. A chunk has at least 2 tokens, none of which is BOS or EOS."""

    @abc.abstractmethod
    def fits(self, lengths_E: np.ndarray, source_length: int, target_length: int) -> np.ndarray:
        """Returns, for each length, whether all examples made from chunks of that length fit in a row, bool (E,)."""

    @abc.abstractmethod
    def sizes(self, lengths_E: np.ndarray, draws_ED: np.ndarray) -> Sizes:
        """Returns the numbers of source and target tokens, int64 (E,) each, including EOS."""

    @abc.abstractmethod
    def make(self, tokens: np.ndarray, draws_D: np.ndarray, rng: np.random.Generator) -> Corrupted:
        """Returns the source and target made from a chunk (n,). Both have exactly the lengths given by `sizes`."""

    def draw(self, lengths_E: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns an (E, D) array of the random numbers that determine the sizes. By default, D is 0."""
        return np.zeros((len(lengths_E), 0))

    def longest_chunk(self, source_length: int, target_length: int) -> int:
        """Returns the largest L such that all chunks of at most L tokens fit in a row.

        For span corruption, this is T5's rule: with a density of 15% and a mean span of 3, chunks may have up to 568
        tokens if rows have 512 source tokens. Raises UserError if no chunk fits.
        """
        lengths = np.arange(2, source_length + target_length + 1)  # the longest possible chunk fills both sides
        fitting = int(np.argmin(np.append(self.fits(lengths, source_length, target_length), False)))
        if not fitting:
            raise UserError(
                f"config.data.sequence_length: rows of {source_length} source tokens and {target_length} target tokens "
                "are too short for any example; increase data.sequence_length or data.source_length."
            )
        return fitting + 1


class SpanCorruption(Denoiser):
    """T5's span corruption (see `corrupt`): the decoder predicts the masked spans."""

    def __init__(self, density: float, mean_span: float, sentinels: Sequence[int], eos_id: int):
        self._density, self._mean_span, self._eos_id = density, mean_span, eos_id
        self._sentinels = np.array(sentinels, np.int32)

    def fits(self, lengths_E: np.ndarray, source_length: int, target_length: int) -> np.ndarray:
        _, spans_E = noise_counts(lengths_E, self._density, self._mean_span)
        source_sizes_E, target_sizes_E = self.sizes(lengths_E, np.zeros((len(lengths_E), 0)))
        fits_E = (source_sizes_E <= source_length) & (target_sizes_E <= target_length)
        return fits_E & (spans_E <= len(self._sentinels))

    def sizes(self, lengths_E: np.ndarray, draws_ED: np.ndarray) -> Sizes:
        noise_E, spans_E = noise_counts(lengths_E, self._density, self._mean_span)
        return lengths_E - noise_E + spans_E + 1, noise_E + spans_E + 1

    def make(self, tokens: np.ndarray, draws_D: np.ndarray, rng: np.random.Generator) -> Corrupted:
        mask = noise_mask(len(tokens), self._density, self._mean_span, rng)
        return corrupt(tokens, mask, self._sentinels, self._eos_id)


class PrefixLm(Denoiser):
    """Cuts the text into two non-empty parts at a uniformly random index; the decoder predicts the second part."""

    def __init__(self, eos_id: int):
        self._eos_id = eos_id

    def fits(self, lengths_E: np.ndarray, source_length: int, target_length: int) -> np.ndarray:
        return lengths_E <= min(source_length, target_length)  # up to n - 1 tokens on either side, plus EOS

    def draw(self, lengths_E: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns the index of the cut, int64 (E, 1), from 1 to n - 1."""
        return rng.integers(1, lengths_E)[:, None]

    def sizes(self, lengths_E: np.ndarray, draws_ED: np.ndarray) -> Sizes:
        return draws_ED[:, 0] + 1, lengths_E - draws_ED[:, 0] + 1

    def make(self, tokens: np.ndarray, draws_D: np.ndarray, rng: np.random.Generator) -> Corrupted:
        cut = int(draws_D[0])
        return ended(tokens[:cut], self._eos_id), ended(tokens[cut:], self._eos_id)


class Ul2(Denoiser):
    """UL2's mixture of seven equally likely denoisers (Tay 2022, table 1), with a mode token before the source.

    The prefix LM may cut the text anywhere, as in the code in the paper's appendix.
    """

    def __init__(self, extra_ids: Sequence[int], eos_id: int):
        spans = [SpanCorruption(density, mean, extra_ids[:100], eos_id) for _, mean, density in UL2]
        self._denoisers: list[Denoiser] = [*spans, PrefixLm(eos_id)]
        self._modes = [extra_ids[UL2_MODE_IDS[mode]] for mode in (*(mode for mode, _, _ in UL2), "S")]

    def fits(self, lengths_E: np.ndarray, source_length: int, target_length: int) -> np.ndarray:
        return np.all([each.fits(lengths_E, source_length - 1, target_length) for each in self._denoisers], axis=0)

    def draw(self, lengths_E: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns the index of the denoiser and the index at which a prefix LM would cut the text, int64 (E, 2)."""
        which_E = rng.integers(0, len(self._denoisers), len(lengths_E))
        return np.concatenate([which_E[:, None], self._denoisers[-1].draw(lengths_E, rng)], axis=1)

    def sizes(self, lengths_E: np.ndarray, draws_ED: np.ndarray) -> Sizes:
        source_sizes_E, target_sizes_E = np.zeros((2, len(lengths_E)), np.int64)
        for number, denoiser in enumerate(self._denoisers):
            mine = draws_ED[:, 0] == number
            source_sizes_E[mine], target_sizes_E[mine] = denoiser.sizes(lengths_E[mine], draws_ED[mine, 1:])
        return source_sizes_E + 1, target_sizes_E

    def make(self, tokens: np.ndarray, draws_D: np.ndarray, rng: np.random.Generator) -> Corrupted:
        number = int(draws_D[0])
        source, target = self._denoisers[number].make(tokens, draws_D[1:], rng)
        return np.concatenate([[self._modes[number]], source]).astype(np.int32), target


class Infilling(Denoiser):
    """BART's text infilling (Lewis 2020): one mask replaces each span; the decoder predicts the whole text.

    The lengths of the spans follow a Poisson distribution. Spans are drawn until they contain round(n * density)
    tokens, a number limited to the range from 1 to n - 1. The last span is shortened to reach this number exactly. A
    span of length 0 inserts a mask that replaces nothing. Spans may be anywhere in the text, even next to each other.
    There are never more spans than masked tokens, so a source is never longer than its target.

    The sizes depend only on the number of spans k, which is drawn directly. Consider a Poisson process of rate 1, cut
    into intervals of length lambda: the number of events in each interval is the length of a span. The last of the m
    masked tokens is the event at time G, drawn from Gamma(m). This event falls into interval k = ceil(G / lambda).
    Given G, the times of the other m - 1 events are uniformly distributed between 0 and G.

    If `ends_sentence` is given, the sentences of the source are shuffled first. This bool (V,) array is True for tokens
    that end a sentence.
    """

    def __init__(
        self, density: float, mean_span: float, mask_id: int, eos_id: int, ends_sentence: np.ndarray | None = None
    ):
        self._density, self._mean_span, self._mask_id, self._eos_id = density, mean_span, mask_id, eos_id
        self._ends_sentence = ends_sentence

    def fits(self, lengths_E: np.ndarray, source_length: int, target_length: int) -> np.ndarray:
        return lengths_E + 1 <= min(source_length, target_length)

    def draw(self, lengths_E: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns, for each example, the time G of the last masked token, float64 (E, 1)."""
        noise_E, _ = noise_counts(lengths_E, self._density, self._mean_span)
        return np.minimum(rng.standard_gamma(noise_E), self._mean_span * noise_E)[:, None]

    def sizes(self, lengths_E: np.ndarray, draws_ED: np.ndarray) -> Sizes:
        noise_E, spans_E = self._counts(lengths_E, draws_ED)
        return lengths_E - noise_E + spans_E + 1, lengths_E + 1

    def _counts(self, lengths_E: np.ndarray, draws_ED: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        noise_E, _ = noise_counts(lengths_E, self._density, self._mean_span)
        spans_E = np.ceil(draws_ED[:, 0] / self._mean_span).astype(np.int64)
        return noise_E, np.clip(spans_E, 1, noise_E)

    def make(self, tokens: np.ndarray, draws_D: np.ndarray, rng: np.random.Generator) -> Corrupted:
        noise, spans = (int(each[0]) for each in self._counts(np.array([len(tokens)]), draws_D[None]))
        target = ended(tokens, self._eos_id)
        if self._ends_sentence is not None:
            tokens = permute_sentences(tokens, self._ends_sentence, rng)
        stretches = (rng.random(noise - 1) * draws_D[0] / self._mean_span).astype(np.int64)
        lengths = np.bincount(np.minimum(stretches, spans - 1), minlength=spans)
        lengths[-1] += 1
        # For each source token: whether it is a mask, and the number of text tokens that it stands for.
        is_mask = rng.permutation(len(tokens) - noise + spans) < spans
        widths = np.ones(len(is_mask), np.int64)
        widths[is_mask] = rng.permutation(lengths)
        begins = np.minimum(np.cumsum(widths) - widths, len(tokens) - 1)
        return ended(np.where(is_mask, self._mask_id, tokens[begins]), self._eos_id), target


def permute_sentences(tokens: np.ndarray, ends_sentence: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shuffles the sentences of a chunk (n,).

    The bool (V,) array `ends_sentence` is True for tokens that end a sentence.
    """
    sentence = np.concatenate([[0], np.cumsum(ends_sentence[tokens[:-1]])])
    return tokens[np.argsort(rng.permutation(int(sentence[-1]) + 1)[sentence], kind="stable")]


class DenoisingExamples(ChunkExamples):
    """Corrupted chunks of documents.

    A chunk has at most `denoiser.longest_chunk` tokens. One-token chunks are omitted.
    """

    def __init__(
        self,
        store: TokenStore,
        denoiser: Denoiser,
        lengths: tuple[int, int],
        special: SpecialTokens,
        seed: int,
        name: str,
    ):
        """`lengths` holds the source length and the target length of a row."""
        # The denoiser adds EOS to both sides; the templates may have more special tokens.
        self._added = special.for_source.num_special - 1, special.for_target.num_special - 1
        source_length, target_length = (length - added for length, added in zip(lengths, self._added, strict=True))
        super().__init__(store, denoiser.longest_chunk(source_length, target_length), 2, seed, name)
        self._denoiser, self._special = denoiser, special
        self._kept = order.EpochCache[np.ndarray]()  # caches the random draws of each epoch

    def sizes(self, epoch: int) -> tuple[np.ndarray, ...]:
        source_sizes_E, target_sizes_E = self._denoiser.sizes(self._chunks.length_E, self._draws(epoch))
        return target_sizes_E + self._added[1], source_sizes_E + self._added[0]

    def num_targets(self) -> int:
        return int(self.sizes(0)[0].sum())

    def make(self, epoch: int, index: int) -> Example:
        tokens = self._tokens(int(self._chunks.first_E[index]), int(self._chunks.length_E[index]))
        rng = order.generator("corrupt", *self._key, epoch, index)
        source, target = self._denoiser.make(tokens, self._draws(epoch)[index], rng)
        return from_pair(source[:-1], target[:-1], self._special)

    def _draws(self, epoch: int) -> np.ndarray:
        rng = order.generator("draw", *self._key, epoch)
        return self._kept.get(epoch, lambda _: self._denoiser.draw(self._chunks.length_E, rng))
