"""SentencePiece tokenizers, loaded from a file or trained in bounded memory on a uniform sample of the text."""

from __future__ import annotations

import functools
import io
import itertools
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lm.config import TokenizerConfig
from lm.data.tokenizing import library
from lm.data.tokenizing.base import Offsets, Tokenizer
from lm.data.tokenizing.flat import Flat, sums_of
from lm.data.tokenizing.piece_files import BPE, NORMAL, SPACE, UNIGRAM, USER_DEFINED, PieceFile, with_scores
from lm.data.tokenizing.samples import LONGEST_LINE, cut_after_words, even_sample, split_texts
from lm.data.tokenizing.special_tokens import SpecialTokens
from lm.data.tokenizing.word_cache import GRID, WordCache
from lm.errors import UserError

LARGEST_SIZE = re.compile(r"too high \(\d+\)\. Please set it to a value <= (\d+)")  # in a SentencePiece error message
LEAST_SCORE = -1e6  # the score of a piece that must never match a text
UNKNOWN_PENALTY = 10.0  # an unknown character's score in SentencePiece is the lowest piece score minus this
THREADS = 4  # fixed, because the sums in the expectation step depend on the number of threads


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece tokenizer. Models that `train` creates are lossless; published models may normalise the text."""

    kind = "sentencepiece"
    doc = "a model trained on the text, or the model file given by `path`"
    file_type = "SentencePiece model"
    reads = ("vocab_size", "algorithm", "train_megabytes")
    file_name = "sentencepiece.model"

    def __init__(self, model: bytes):
        import sentencepiece

        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        self._processor.load_from_serialized_proto(model)
        processor = self._processor
        self.base_size = processor.get_piece_size()
        self.unk_id = processor.unk_id()
        ends = processor.bos_id(), processor.eos_id()
        if max(ends) < 0:
            raise ValueError("it has neither a BOS nor an EOS piece")
        bos_id, eos_id = (each if each >= 0 else max(ends) for each in ends)
        self.special_tokens = SpecialTokens(bos_id, eos_id)
        self.pad_id = max(processor.pad_id(), 0)
        self._joints = self._find_joints()
        self.cuts_anywhere = bool(self._joints)

    @classmethod
    def train(cls, config: TokenizerConfig, texts: Iterable[str]) -> SentencePieceTokenizer:
        """Trains a lossless model.

        If the text yields too few pieces for config.vocab_size, the vocabulary is made as large as possible, and a
        note is printed. Raises UserError if the vocabulary would be too small for the characters of the text.
        """
        sample = even_sample(split_texts(texts), int(config.train_megabytes * 1e6))
        if not sample:
            raise UserError("config.data.tokenizer: there is no training text for the vocabulary.")
        try:
            return cls(_train(config.algorithm, config.vocab_size, sample))
        except RuntimeError as error:
            if not (largest := LARGEST_SIZE.search(str(error))):
                raise UserError(_explain(config, str(error))) from error
        print(
            f"note: config.data.tokenizer.vocab_size={config.vocab_size} is more than this training text allows; the "
            f"vocabulary has {largest[1]} pieces.",
            file=sys.stderr,
        )
        try:
            return cls(_train(config.algorithm, int(largest[1]), sample))
        except RuntimeError as error:
            raise UserError(_explain(config, str(error))) from error

    def _find_joints(self) -> dict[str, list[int]]:
        """Returns the ids of each boundary character. A text can be split at these characters and encoded in parts.

        In models that `train` creates, only the piece "\\n" contains a line break, so documents are encoded line by
        line. U+2581 is encoded as bytes, because SentencePiece would decode it as a space. Published models have no
        boundary characters.
        """
        processor = self._processor
        newline = processor.piece_to_id("\n")
        space_symbol = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        probe = "  a\n\n  b "
        exact = newline != self.unk_id and processor.encode("\n") == [newline]
        exact = exact and self.unk_id not in space_symbol and processor.decode(processor.encode(probe)) == probe
        return {"\n": [newline], SPACE: space_symbol} if exact else {}

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        cut, joints = [self._cut(text) for text in texts], self._joints
        encoded = iter(self._processor.encode([part for parts in cut for part in parts[::2]]))
        ids = ((joints[part] if part in joints else next(encoded) for part in parts) for parts in cut)
        return [list(itertools.chain.from_iterable(each)) for each in ids]

    def encode_documents(self, texts: Sequence[str]) -> Flat:
        """See the base class. Uses a single thread, since token stores are built by several processes."""
        if texts and self._word_cache and (encoded_texts := self._word_cache.encode(texts)):
            return encoded_texts
        if self._joints and any(SPACE in text for text in texts):
            return super().encode_documents(texts)
        lines = [text.split("\n") for text in texts] if self._joints else [[text] for text in texts]
        line_break, between, start = (
            np.array(ids, np.int32).tobytes()
            for ids in (self._joints.get("\n", ()), (self.eos_id, self.start_id), (self.start_id,))
        )
        after = itertools.chain.from_iterable([line_break] * (len(each) - 1) + [between] for each in lines)
        encoded = self._buffers([line for each in lines for line in each])
        joined = b"".join([start, *itertools.chain.from_iterable(zip(encoded, after, strict=True))])
        ids_N = np.frombuffer(joined, np.int32)[:-1]  # drops the start token after the last text
        per_text = 2 if self.eos_id == self.start_id else 1
        found = np.flatnonzero(ids_N == self.eos_id)
        if len(found) != per_text * len(texts):  # a published model may encode text as EOS
            return super().encode_documents(texts)
        return ids_N, np.diff(found[per_text - 1 :: per_text], prepend=-1)

    @functools.cached_property
    def _word_cache(self) -> WordCache | None:
        """The cache of words, or None if the model does not encode words independently (see `word_cache.py`)."""
        if not self._joints:
            return None
        file = PieceFile.parse(self._model)
        pieces = [piece for piece, _ in file.scored]
        defined = [piece for piece, kind in zip(pieces, file.types, strict=True) if kind == USER_DEFINED]
        if file.charsmap or defined != ["\n"] or any(SPACE in piece.lstrip(SPACE) for piece in pieces):
            return None
        score_V = None
        if file.algorithm == UNIGRAM:
            is_normal_V = np.array(file.types) == NORMAL
            score_V = np.array([score for _, score in file.scored])
            score_V[~is_normal_V] = score_V[is_normal_V].min() - UNKNOWN_PENALTY
            if np.any(score_V % GRID):
                return None
        elif file.algorithm != BPE:
            return None
        encode = functools.partial(self._processor.encode, num_threads=1)
        return WordCache(encode, self._joints["\n"], (self.eos_id, self.start_id), score_V)

    def _buffers(self, texts: list[str]) -> list[Any]:
        """Returns the ids of each text as a buffer of int32. The texts contain no boundary characters."""
        try:  # out_type="numpy" uses this method too, but takes 20 % longer, because it makes an array for each text
            processor: Any = self._processor
            return processor._processor._EncodeAsBufferBatch(texts, 1, None, False, -1, 0.1, False, False, False)
        except (AttributeError, TypeError):  # not all releases have this method
            return [np.array(ids, np.int32) for ids in self._processor.encode(texts, num_threads=1)]

    def changed(self, texts: Sequence[str], ids_N: np.ndarray, lengths_E: np.ndarray) -> np.ndarray:
        """See the base class.

        A model with boundary characters encodes the exact text as a sequence of pieces and bytes. Decoding fails to
        restore it only if part of the text is unknown. In that case, the known pieces have fewer bytes than the text.
        """
        if not self._joints:
            return super().changed(texts, ids_N, lengths_E)
        sizes_E = [len(text) if text.isascii() else len(text.encode()) for text in texts]
        sizes_N = self._num_bytes_V[ids_N]
        if int(sizes_N.sum()) == sum(sizes_E):
            return np.zeros(len(texts), bool)
        return sums_of(sizes_N, lengths_E) != np.array(sizes_E, np.int64)

    @functools.cached_property
    def _num_bytes_V(self) -> np.ndarray:
        """The number of bytes of text that each token stands for, int32 (V,)."""
        processor = self._processor
        spelled = [self._piece(token) if self._is_text(token) else "" for token in range(self.base_size)]
        sizes = [1 if processor.is_byte(token) else len(text.encode()) for token, text in enumerate(spelled)]
        return np.array(sizes, np.int32)

    def pieces_of(self, texts: Sequence[str]) -> list[list[str]]:
        """Returns the pieces of each text. Text that matches no piece in the vocabulary becomes a piece of its own."""
        return self._processor.encode(list(texts), out_type=str)

    def _cut(self, text: str) -> list[str]:
        """Splits text at boundary characters. Returns the parts, with the boundary characters between them."""
        return re.split(f"([\n{SPACE}])", text) if self._joints else [text]

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        ids: list[int] = []
        offsets: Offsets = []
        position = 0
        for part in self._cut(text):
            joint = self._joints.get(part)
            found, spans = (joint, [(0, 1)] * len(joint)) if joint else self._part_with_offsets(part)
            ids += found
            offsets += [(position + begin, position + end) for begin, end in spans]
            position += len(part)
        return ids, offsets

    def _part_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        """Returns the ids and their character offsets, which refer to `text` even if the model normalises it.

        A character may become several tokens, e.g. one per byte or one per letter of a ligature. SentencePiece assigns
        the character only to the last of these tokens. This method assigns the character's offsets to all of them. A
        space that the model adds before the text gets an empty range.
        """
        try:
            found = self._processor.encode(text, out_type="offset_mapping")
            ids, spans = list(found["ids"]), found["offsets"]
        except (RuntimeError, ValueError):  # older releases lack offset mappings
            older: Any = "immutable_proto"
            pieces = self._processor.encode(text, out_type=older).pieces
            ids, spans = [piece.id for piece in pieces], [(piece.begin, piece.end) for piece in pieces]
        offsets: Offsets = []
        following = len(text), len(text)
        for token, (begin, end) in zip(reversed(ids), reversed(spans), strict=True):
            if begin == end == following[0] and self._processor.id_to_piece(token) != SPACE:
                begin, end = following
            following = begin, end
            offsets.append(following)
        return ids, offsets[::-1]

    def _decode(self, ids: list[int]) -> str:
        return self._processor.decode(ids)

    def decode_each(self, batch: Sequence[list[int]]) -> list[str]:
        return self._processor.decode(list(batch)) if batch else []

    def _piece(self, token: int) -> str:
        if token == self.unk_id:
            return "<unk>"
        return self._processor.id_to_piece(token).replace(SPACE, " ")

    def _is_text(self, token: int) -> bool:
        if token < self.base_size and (self._processor.is_control(token) or self._processor.is_unused(token)):
            return False
        return super()._is_text(token)

    def _starts_word(self, token: int) -> bool:
        if self._processor.is_byte(token):
            return bytes([int(self._processor.id_to_piece(token)[1:-1], 16)]).isspace()
        return super()._starts_word(token)

    def _special(self) -> dict[int, str]:
        names = {self.start_id: "<bos>", self.eos_id: "<eos>"}
        return names | ({self.pad_id: "<pad>"} if self._processor.pad_id() >= 0 else {})

    def library_parts(self, names: Mapping[int, str]) -> dict[str, Any]:
        """See the base class. Pieces contain spaces instead of U+2581, so that U+2581 in a text becomes bytes.

        In the library, a unigram model matches all its pieces in a text, including those that stand for special tokens
        or bytes. Giving these pieces a very low score prevents this, as long as other pieces can spell the same text.

        The library adds scores in 64-bit arithmetic; SentencePiece uses 32-bit arithmetic. In a unigram model whose
        scores are not multiples of GRID, the ids may therefore differ if two segmentations of a text have almost the
        same score. In any unigram model, the ids may also differ if the scores of a line add up to more than EXACT
        (see `word_cache.py`).
        """
        processor = self._processor
        pieces = [names.get(token, processor.id_to_piece(token)) for token in range(self.base_size)]
        scores = [LEAST_SCORE] * self.base_size
        for token in range(self.base_size):
            if not (processor.is_control(token) or processor.is_unknown(token) or processor.is_byte(token)):
                pieces[token], scores[token] = processor.id_to_piece(token), processor.get_score(token)
                if self._joints:
                    pieces[token] = pieces[token].replace(SPACE, " ")
        spelled = {piece: score for piece, score in zip(pieces, scores, strict=True) if score > LEAST_SCORE}
        if missing := {character for piece in spelled for character in piece} - spelled.keys():
            raise UserError(
                f"the SentencePiece model lacks the piece {min(missing)!r} but has longer pieces that contain it."
            )
        space = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
        decoders: list[dict[str, Any]] = [
            *([] if self._joints else [space]),
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]
        parts: dict[str, Any] = {"decoder": library.sequence("decoders", decoders)}
        if not self._joints:  # all spaces become U+2581
            parts["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        if all(score == round(score) for score in spelled.values()):  # in a BPE model, scores are 0, -1, -2, ...
            merges = library.merges_of(list(spelled), list(spelled.values()))
            options = {"byte_fallback": True, "fuse_unk": True, "unk_token": pieces[self.unk_id or 0]}
            ids = {piece: token for token, piece in enumerate(pieces)}
            return parts | {"model": library.bpe(ids, list(merges), **options)}
        vocabulary = [[piece, score] for piece, score in zip(pieces, scores, strict=True)]
        model = {"type": "Unigram", "unk_id": self.unk_id, "vocab": vocabulary, "byte_fallback": True}
        # A piece such as "<0x41>" would still match if no other piece spells one of its characters, so such characters
        # are split off.
        alone = {character for piece in pieces if piece not in spelled for character in piece} - spelled.keys()
        pattern = "".join(f"\\x{{{ord(character):x}}}" for character in sorted(alone))
        return parts | {"model": model, "pre_tokenizer": library.split(f"[{pattern}]") if alone else None}

    def _content(self) -> bytes:
        return self._model


def _train(algorithm: str, vocab_size: int, sample: Sequence[str]) -> bytes:
    """Returns a trained model in serialised form. SentencePiece may raise RuntimeError."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sample) if algorithm == BPE else cut_after_words(sample),
        model_writer=model,
        model_type=algorithm,
        vocab_size=vocab_size,
        # With these options, decoding restores the exact text:
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        byte_fallback=True,
        user_defined_symbols=["\n"],
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        max_sentence_length=4 * LONGEST_LINE,  # in bytes
        num_threads=THREADS,
        minloglevel=2,
    )
    found = model.getvalue()
    return found if algorithm == BPE else with_scores(found, lambda score: round(score / GRID) * GRID)


def _explain(config: TokenizerConfig, message: str) -> str:
    """Converts a SentencePiece error into a message that names the setting to change and a suitable value."""
    where = f"config.data.tokenizer.vocab_size={config.vocab_size}"
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return f"{where} is too small for the characters of this training text; set it to more than {found[1]}."
    return f"{where}: SentencePiece could not be trained on this text ({message.splitlines()[0]})."
