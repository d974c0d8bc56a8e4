"""Presents a run as a language model to lm-evaluation-harness, which defines the tasks and computes the metrics.

The harness requests generated texts and the log-probabilities of continuations and of whole texts. `HarnessRun`
answers these requests; `as_language_model` wraps it in the class that the harness expects. PyTorch is not needed.

A prompt has the same special tokens as in lm.generate: exactly one BOS token if the tokenizer puts one before each
text, and otherwise none. No part of a document is encoded as a special token. If a chat template is applied, the
harness passes the rendered text, in which the names of special tokens stand for the tokens themselves. Texts are used
unchanged: neither the cleaning nor the prefix of the training data is applied.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.config import Config
from lm.data.tokenizing.chat_template import ChatTemplate, Message
from lm.decoding.loop import Sampler
from lm.decoding.sampling import Sampling, row_keys, vocabulary_of
from lm.decoding.stops import texts_until
from lm.decoding.text import batches_by_length
from lm.errors import UserError
from lm.evaluation.continuations import ContinuationScorer, Score, cut_left, rolling_windows
from lm.models import build_model
from lm.parallel.mesh import on_mesh
from lm.reporting.progress import counting
from lm.runs.compile_cache import use_compile_cache
from lm.runs.directory import RunDirectory
from lm.runs.evaluate import Options, choose_mesh, evaluation_config, read_params
from lm.runs.generation import chat_vocabulary
from lm.runs.prepare import load_tokenizers
from lm.tasks import task_of
from lm.training.startup import versions

NEW_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # synonyms that tasks use
NEW_TOKENS_DEFAULT = 256  # as in the harness
SAMPLING = {"temperature": float, "top_k": int, "top_p": float, "min_p": float, "repetition_penalty": float}
WITHOUT_EFFECT = {"num_beams": 1, "use_cache": True}  # settings that tasks may contain, each with its only valid value


@dataclass(frozen=True)
class HarnessOptions:
    """Options for how a run answers the harness's requests."""

    max_length: int = 0  # maximum number of tokens that the model reads; 0 means all of its positions
    seed: int = 0  # for sampled texts; each request has its own random numbers
    as_chat: bool = False  # whether prompts are rendered with the chat template


@dataclass(frozen=True)
class Generation:
    """A task's settings for generating text."""

    sampling: Sampling
    max_new_tokens: int
    stops: tuple[str, ...]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Generation:
        """Reads the `generation_kwargs` of a task. Raises UserError if a setting is unknown or out of range.

        As in the harness, decoding is greedy unless the task sets do_sample or a temperature.
        """
        rest = dict(values)
        until = rest.pop("until", None) or []
        stops = (until,) if isinstance(until, str) else tuple(until)
        new = [_number(rest.pop(name, None), name, int) for name in NEW_TOKENS]
        max_new_tokens = next((number for number in new if number is not None), NEW_TOKENS_DEFAULT)
        do_sample = rest.pop("do_sample", None)
        chosen = {name: _number(rest.pop(name, None), name, kind) for name, kind in SAMPLING.items()}
        chosen = {name: value for name, value in chosen.items() if value is not None}
        temperature = chosen.pop("temperature", 1.0 if do_sample else 0.0)
        for name, value in rest.items():
            if value is not None and WITHOUT_EFFECT.get(name) != value:
                raise UserError(f"the generation setting {name}={value!r} is not supported.")
        sampling = Sampling(0.0 if do_sample is False else temperature, **chosen)
        sampling.check()
        if max_new_tokens < 1:
            raise UserError(f"max_gen_toks={max_new_tokens} is invalid; it must be at least 1.")
        return cls(sampling, max_new_tokens, stops)


def _number(value: Any, name: str, kind: Callable[[Any], Any]) -> Any:
    """Converts a setting to a number; None stays None. Raises UserError if the conversion is impossible."""
    try:
        found = None if value is None else kind(value)
        if found is None or found == float(value):
            return found
    except (OverflowError, TypeError, ValueError):
        pass
    raise UserError(f"{name}={value!r} is invalid; it must be {'a whole number' if kind is int else 'a number'}.")


class HarnessRun:
    """Answers the requests of the harness with the model of a run.

    Raises UserError if the run has no checkpoint, if a chat template is to be applied but the tokenizer has none,
    or if an option is out of range.
    """

    def __init__(self, directory: RunDirectory, own: Config, options: Options, harness: HarnessOptions) -> None:
        config = evaluation_config(directory.root, own, options)
        longest = config.model.max_length
        if not 0 <= harness.max_length <= longest:
            raise UserError(f"--max_length={harness.max_length} exceeds the model's {longest} positions.")
        use_compile_cache(config)
        tokenizers = load_tokenizers(config, directory.root)
        self.tokenizer, self._source_tokenizer = tokenizers.target, tokenizers.source
        self.template = ChatTemplate(self.tokenizer, config.data.chat_template) if harness.as_chat else None
        self._vocabulary = chat_vocabulary(self.template) if self.template else vocabulary_of(self.tokenizer)
        self._model = build_model(config.model, task_of(config).head(config))
        self._mesh = choose_mesh(config)
        self._params, self.step, kind, _ = read_params(directory, config, self._model, self._mesh, options)
        self.max_length, self._seed = harness.max_length or longest, harness.seed
        self.batch_size, self.reads_source = config.eval.batch_size, self._model.reads_source
        self._noted = False
        special, pad_id = self.tokenizer.special_tokens, self.tokenizer.pad_id
        limits = self.max_length, self.batch_size
        self._scorer = ContinuationScorer(self._model, self._params, special, pad_id, *limits)
        devices = self._mesh.devices
        self.record: dict[str, Any] = {
            "model": "lm",
            "run": str(directory.root),
            "step": self.step,
            "parameters": kind,
            "max_length": self.max_length,
            "apply_chat_template": harness.as_chat,
            "seed": harness.seed,
            "dtype": config.model.dtype,
            "activation_dtype": self._model.activation_dtype,
            "devices": f"{devices.size} x {devices.flat[0].device_kind}",
            "mesh": dict(self._mesh.shape),
            "versions": versions(),
        }

    @property
    def prefix_id(self) -> int:
        """The token that precedes a text without context: the tokenizer's BOS, or EOS if it has none."""
        name = self.tokenizer.template_variables.get("bos_token")
        return self.tokenizer.special_spellings.get(name or "", self.tokenizer.start_id)

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of a text, without adding special tokens."""
        return self.tokenizer.encode_rendered(text)[0] if self.template else self.tokenizer.encode(text)

    def encode_prompt(self, text: str) -> list[int]:
        """Returns the tokens of a prompt.

        If the model reads sources, the special tokens of a source are added. Otherwise, BOS precedes the prompt if the
        tokenizer puts BOS before each text.
        """
        if self.reads_source:
            source = self._source_tokenizer
            form = source.source_template
            ids = source.encode_rendered(text)[0] if self.template else source.encode(text)
            begins = ids[:1] == list(form.ids[:1])  # the chat template has already written the first token
            return form.fill(ids[1:] if begins else ids)[0].tolist()
        ids, bos = self.encode(text), self.tokenizer.bos_id
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]

    def score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Score]:
        """Returns the score of each continuation after its context (see `ContinuationScorer.score`)."""
        with on_mesh(self._mesh), counting(len(pairs), "requests") as report:
            return self._scorer.score(pairs, report)

    def log_probabilities(self, texts: Sequence[str]) -> list[float]:
        """Returns the log-probability of each text, in nats. Long texts are scored in windows (see `rolling_windows`).

        An encoder-decoder reads the context of a window as its source, as in the harness.
        """
        encoded = self.tokenizer.encode_batch(list(texts))
        start = self.prefix_id
        windows = [list(rolling_windows(tokens, start, self.max_length)) for tokens in encoded]
        scores = iter(self.score([window for each in windows for window in each]))
        return [sum(next(scores).log_probability for _ in each) for each in windows]

    def generate(self, requests: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """Returns the text generated for each (prompt, generation settings), up to its first stop string.

        A prompt that leaves too little room for the new tokens is truncated on the left. Raises UserError if a setting
        is invalid.
        """
        groups: dict[str, list[int]] = defaultdict(list)
        for number, (_, values) in enumerate(requests):
            groups[json.dumps(values, sort_keys=True)].append(number)
        texts = [""] * len(requests)
        with on_mesh(self._mesh), counting(len(requests), "requests") as report:
            done = 0
            for numbers in groups.values():
                settings = Generation.of(requests[numbers[0]][1])
                prompts = self._fitted([requests[number][0] for number in numbers], settings.max_new_tokens)
                start = self._vocabulary.output_start if self.reads_source else []
                new = max(settings.max_new_tokens - max(len(start) - 1, 0), 1)
                sampler = Sampler(self._model, self._params, settings.sampling, self._vocabulary, new)
                size = min(self.batch_size, len(numbers))
                for batch in batches_by_length(prompts, size):
                    keys = row_keys(self._seed, np.array([numbers[index] for index in batch]), np.zeros(len(batch)))
                    rows = [prompts[index] for index in batch]
                    inputs, sources = ([start] * len(rows), rows) if self.reads_source else (rows, None)
                    made = texts_until(sampler, self.tokenizer, inputs, keys, settings.stops, size, sources)
                    for index, text in zip(batch, made, strict=True):
                        texts[numbers[index]] = text
                    done += len(batch)
                    if report is not None:
                        report(done, len(requests))
        return texts

    def _fitted(self, texts: Sequence[str], max_new_tokens: int) -> list[list[int]]:
        """Returns the tokens of each prompt. Drops text tokens on the left if there is no room for the new tokens."""
        room, num_kept = self.max_length - max_new_tokens, int(self.tokenizer.bos_id is not None)
        if self.reads_source:
            num_kept = self._source_tokenizer.source_template.num_before(0)
            room = self.max_length if max_new_tokens < self.max_length else 0
        if room < 1:
            raise UserError(
                f"the task generates up to {max_new_tokens:,} tokens, which leaves no room for a prompt in the "
                f"model's {self.max_length:,} positions; lower that limit with --gen_kwargs=max_gen_toks=N."
            )
        # Without BOS, an empty prompt has no tokens, so `prefix_id` takes its place, as at the start of a new text.
        return [cut_left(self.encode_prompt(text) or [self.prefix_id], room, num_kept) for text in texts]

    def render(self, messages: Sequence[Message], prompt: bool) -> str:
        """Renders a conversation with the chat template.

        If `prompt` is true, the text ends where the next answer begins; otherwise, it ends with the last message. As in
        the harness, system messages are left out, with a note on stderr, if the template rejects them.
        """
        assert self.template is not None
        try:
            text = self.template.render(messages, prompt=prompt)
        except UserError:
            others = [message for message in messages if message["role"] != "system"]
            if len(others) == len(messages):
                raise
            text = self.template.render(others, prompt=prompt)
            if not self._noted:
                print("note: the chat template rejects system messages, so they are left out.", file=sys.stderr)
            self._noted = True
        if prompt:
            return text
        last = messages[-1]["content"].strip()
        return text[: text.rindex(last) + len(last)]


def as_language_model(run: HarnessRun) -> Any:
    """Wraps a run in an `lm_eval.api.model.LM`, which can be passed to `lm_eval.simple_evaluate`."""
    from lm_eval.api.model import TemplateLM

    class RunModel(TemplateLM):
        backend = "seq2seq" if run.reads_source else "causal"
        eot_token_id = run.tokenizer.eos_id
        prefix_token_id = run.prefix_id
        max_length = run.max_length
        tokenizer_name = run.tokenizer.fingerprint

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return run.encode(string) if add_special_tokens is False else run.encode_prompt(string)

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            start = [] if run.reads_source else [run.prefix_id]  # replaces an empty context
            return list(run.score([(context or start, new) for _, context, new in requests]))

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            return run.log_probabilities([request.args[0] for request in requests])

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            return run.generate([request.args for request in requests])

        def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
            return run.render(chat_history, add_generation_prompt)

        def chat_template(self, chat_template: bool | str = False) -> str:
            return run.template.text if run.template else ""

        def get_model_info(self) -> dict[str, Any]:
            return run.record

    return RunModel()
