"""Renders conversations with the Jinja template of a chat model, and finds the tokens of the answers.

A template may come from the internet, so it runs in Jinja's sandbox and only receives plain JSON values. The
Jinja environment is set up as in transformers' `apply_chat_template`, for which published templates are written.
Neither adds a BOS token, because templates write their own.

The answers are the assistant's messages. Their tokens are found by character offsets in one encoding of the whole
rendered text: encoding the parts separately would yield different tokens at their boundaries. If the template marks
generated text with `{% generation %}`, the marked spans are the answers. Most published templates lack such marks. In
that case, an answer begins after the generation prompt (such as `<|im_start|>assistant` and a line break) and ends with
the first special token after its text (such as `<|im_end|>`).
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from lm.data.tokenizing.base import Offsets, Tokenizer
from lm.errors import UserError

Message = Mapping[str, Any]  # has a role and, usually, content; the other keys depend on the template
Tools = Sequence[Mapping[str, Any]] | None

# Templates for models that have none, selected by name with data.chat_template.
TEMPLATES = {
    # Each message follows its role, as in "User: Hi" and "Assistant: Hello!<eos>".
    "plain": (
        "{% for message in messages %}{{ message.role | capitalize }}: {{ message.content }}"
        "{{ eos_token if message.role == 'assistant' else '' }}\n{% endfor %}"
        "{% if add_generation_prompt %}Assistant: {% endif %}"
    ),
    # The texts alone, one per line, e.g. to train an encoder-decoder on instructions, as in FLAN.
    "texts": "{% for message in messages %}{{ message.content }}{{ '' if loop.last else '\n' }}{% endfor %}",
}
# Some templates write today's date. In training, the date is fixed, so that the data depends only on the config.
TRAINING_DATE = datetime(2024, 7, 26)
# Characters used to mark text: noncharacters, which no text should contain, and private-use characters.
MARKS = tuple(map(chr, (*range(0xFDD0, 0xFDF0), *range(0xE000, 0xF900))))
_LONGEST_REASON = 200  # maximum length of a Jinja error message, in characters


@dataclass(frozen=True)
class Encoded:
    """The tokens of a rendered conversation."""

    ids: list[int]
    answers: list[tuple[int, int]]  # the bounds [begin, end) of each answer in `ids`, including its end token

    @property
    def scored(self) -> np.ndarray:
        """bool (T,): whether each token belongs to an answer."""
        scored_T = np.zeros(len(self.ids), bool)
        for begin, end in self.answers:
            scored_T[begin:end] = True
        return scored_T


class ChatTemplate:
    """The chat template of a tokenizer, or another Jinja template to use with the tokenizer.

    Raises UserError if `text` is not a valid template.

    Args:
        text: the template, the name of one of TEMPLATES, or "" for the tokenizer's own template.
        now: the time that templates obtain from `strftime_now`.
    """

    def __init__(self, tokenizer: Tokenizer, text: str = "", now: datetime = TRAINING_DATE):
        if not (text or tokenizer.chat_template):
            raise UserError(
                f"config.data.chat_template: the tokenizer has no chat template; set this to {' or '.join(TEMPLATES)} "
                "or to the text of a Jinja template."
            )
        self.text = TEMPLATES.get(text, text) or str(tokenizer.chat_template)
        self.tokenizer, self._marks = tokenizer, ("", "")
        self._template = _compile(self.text, self._generation, now)
        self._has_spans = re.search(r"{%-?\s*generation\s*-?%}", self.text) is not None
        self._special_ids = frozenset(tokenizer.special_spellings.values())
        spellings = sorted(tokenizer.special_spellings, key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, spellings)) or "(?!)")

    def _generation(self, text: str) -> str:
        """Marks the text between {% generation %} and {% endgeneration %}."""
        return text.join(self._marks)

    def render(self, messages: Sequence[Message], tools: Tools = None, *, prompt: bool = False) -> str:
        """Returns the text of a conversation. If `prompt` is true, the text ends where the next answer begins.

        Raises UserError if the template rejects the conversation or does something that the sandbox forbids.
        """
        import jinja2

        try:
            return self._template.render(
                messages=[_without_nulls(message) for message in messages],
                tools=list(tools) if tools else None,
                documents=None,
                add_generation_prompt=prompt,
                **self.tokenizer.template_variables,
            )
        except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # Besides Jinja errors, a template can raise the errors of the Python methods that it calls.
            raise UserError(f"the chat template rejects the conversation: {_reason(error)}") from error

    def prompt_ids(self, messages: Sequence[Message], tools: Tools = None) -> list[int]:
        """Returns the tokens of the prompt after which the model writes the next answer."""
        return self._encode(self.render(messages, tools, prompt=True), messages, tools, prompt=True)[0]

    def fitted_prompt(self, messages: Sequence[Message], tools: Tools, limit: int) -> tuple[list[int], int]:
        """Returns `prompt_ids` without the oldest turns, if the whole prompt would have more than `limit` tokens.

        A turn begins with a user message. The system prompt and the last turn are always kept, even if they exceed the
        limit. Also returns the number of messages that were left out.
        """
        head = next(
            (n for n, each in enumerate(messages) if each["role"] not in ("system", "developer")), len(messages)
        )
        starts = [n for n, each in enumerate(messages) if each["role"] == "user" and n > head]
        ids: list[int] = []
        for start in (head, *starts):
            ids = self.prompt_ids([*messages[:head], *messages[start:]], tools)
            if len(ids) <= limit:
                break
        return ids, start - head

    def encode(self, messages: Sequence[Message], tools: Tools = None) -> Encoded:
        """Returns the tokens of a conversation and the bounds of its answers.

        Raises UserError if the template rejects the conversation or renders no answer.
        """
        text = self.render(messages, tools)
        ids, offsets = self._encode(text, messages, tools)
        begins_T, ends_T = np.array(offsets, np.int64).reshape(-1, 2).T
        spans = self._marked_spans(text, messages, tools) if self._has_spans else None
        exact = spans is not None  # whether the spans include end tokens
        if spans is None:
            spans = self._located_spans(text, messages, tools)
        limits = [*(begin for begin, _ in spans[1:]), len(text)]
        answers = []
        for (begin, end), limit in zip(spans, limits, strict=False):
            tokens = np.flatnonzero((begins_T < end) & (ends_T > begin) & (begins_T < ends_T))
            if len(tokens):
                first, last = int(tokens[0]), int(tokens[-1])
                answers.append((first, last + 1 if exact else self._end(ids, begins_T, last + 1, limit)))
        if not answers:
            raise UserError("the chat template renders no text from the assistant, so there is nothing to learn.")
        return Encoded(ids, answers)

    @functools.cached_property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end an answer: the tokenizer's end tokens, and the one written by the template, if any."""
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        found = self.tokenizer.stop_ids
        try:
            encoded = self.encode(messages)
        except UserError:
            return frozenset(found)
        last = encoded.ids[encoded.answers[-1][1] - 1]
        return frozenset(found) | ({last} & self._special_ids)

    def _end(self, ids: Sequence[int], begins_T: np.ndarray, first: int, limit: int) -> int:
        """Returns the end of an answer: the index after the next special token before `limit`, or `first`."""
        for index in range(first, len(ids)):
            if begins_T[index] >= limit:
                break
            if ids[index] in self._special_ids:
                return index + 1
        return first

    def _marked_spans(self, text: str, messages: Sequence[Message], tools: Tools) -> list[tuple[int, int]] | None:
        """Returns the character range of each {% generation %} block, or None if the marks change the text."""
        left, right = _marks(text)
        self._marks = left, right
        try:
            parts = re.split(f"[{left}{right}]", self.render(messages, tools))
        finally:
            self._marks = "", ""
        if "".join(parts) != text:
            return None
        bounds = np.cumsum([len(part) for part in parts[:-1]]).tolist()
        return list(zip(bounds[::2], bounds[1::2], strict=True))

    def _located_spans(self, text: str, messages: Sequence[Message], tools: Tools) -> list[tuple[int, int]]:
        """Returns the character range [begin, end) of each answer, from the end of its prompt to the end of its text.

        An answer is located by replacing it and comparing the rendered texts. A template may write something before the
        text of an answer, such as an empty <think> block, so an answer begins at the end of its prompt, if found.
        """
        mark, _ = _marks(text)
        numbers = [number for number, message in enumerate(messages) if message.get("role") == "assistant"]
        header = self._header(messages[: numbers[0]], tools) if numbers else ""
        spans, before = [], 0
        for number in numbers:
            changed = [*messages[:number], _replaced(messages[number], mark), *messages[number + 1 :]]
            other = self.render(changed, tools)
            if other == text:
                continue
            begin, from_end = _common(text, other), _common(text[::-1], other[::-1])
            end = len(text) - from_end
            at = text.rfind(header, before, max(begin, before)) if header else -1
            begin = at + len(header) if at >= 0 else min(begin, end)
            spans.append((begin, end))
            before = end
        return spans

    def _header(self, messages: Sequence[Message], tools: Tools) -> str:
        """Returns the text that the template writes before an answer, or "" if it cannot be determined."""
        try:
            return self.render(messages, tools, prompt=True).removeprefix(self.render(messages, tools))
        except UserError:  # some templates reject a conversation without messages
            return ""

    def _encode(
        self, text: str, messages: Sequence[Message], tools: Tools, *, prompt: bool = False
    ) -> tuple[list[int], Offsets]:
        """Encodes a rendered text. Names of special tokens are encoded as tokens, except in messages."""
        left, right = _marks(text)

        def mark(value: str) -> str:
            return self._spelled.sub(lambda found: f"{left}{found[0]}{right}", value)

        marked = [_mapped(message, mark) for message in messages], _mapped(tools, mark)
        if marked == (list(messages), tools):
            return self.tokenizer.encode_rendered(text)
        parts = re.split(f"({left}[^{left}{right}]*{right})", self.render(*marked, prompt=prompt))
        if "".join(parts).translate(dict.fromkeys(map(ord, (left, right)))) != text:
            raise UserError("the chat template splits the name of a special token in a message; change the message.")
        ids: list[int] = []
        offsets: Offsets = []
        begin = 0
        for part in filter(None, parts):
            written = part.replace(left, "").replace(right, "")
            encode = self.tokenizer.encode_with_offsets if part[0] == left else self.tokenizer.encode_rendered
            found, spans = encode(written)
            ids += found
            offsets += [(begin + first, begin + end) for first, end in spans]
            begin += len(written)
        return ids, offsets


def _compile(text: str, generation: Callable[[str], str], now: datetime) -> Any:
    """Compiles a template. Raises UserError if its syntax is invalid."""
    import jinja2
    from jinja2 import ext, nodes, sandbox

    class Generation(ext.Extension):
        """The block {% generation %}, whose text is passed through `generation`."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

        def _text(self, caller: Callable[[], str]) -> str:
            return generation(caller())

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {"raise_exception": refuse, "strftime_now": now.strftime}
    try:
        return environment.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(
            f"config.data.chat_template: line {error.lineno} of the template is not valid Jinja ({_reason(error)})."
        ) from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:_LONGEST_REASON].rstrip(".") + "."


def _marks(text: str) -> list[str]:
    """Returns two characters that do not occur in a text."""
    return list(itertools.islice((mark for mark in MARKS if mark not in text), 2))


def _without_nulls(message: Message) -> dict[str, Any]:
    """Returns a message without the keys whose value is null, since published templates do not handle null values."""
    return {name: value for name, value in message.items() if value is not None}


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """Returns a copy of a JSON value in which `change` has been applied to every string except keys."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _mapped(each, change) for name, each in value.items()}
    return [_mapped(each, change) for each in value] if isinstance(value, (list, tuple)) else value


def _replaced(answer: Message, mark: str) -> Message:
    """Returns an answer with `mark` in place of its text and tool calls."""
    content, calls = answer.get("content"), answer.get("tool_calls")
    changed = {**answer}
    if isinstance(content, str) and content:
        changed["content"] = mark
    elif content:
        changed["content"] = [{**part, "text": mark} for part in content]
    if calls:
        changed["tool_calls"] = [
            {
                **call,
                **(
                    {"function": _replaced_call(call["function"], mark)}
                    if "function" in call
                    else _replaced_call(call, mark)
                ),
            }
            for call in calls
        ]
    return changed


def _replaced_call(call: Mapping[str, Any], mark: str) -> dict[str, Any]:
    arguments = mark if isinstance(call.get("arguments"), str) else {mark: mark}
    return {**call, "name": mark, "arguments": arguments}


def _common(one: str, other: str) -> int:
    """Returns the length of the longest common prefix of two texts."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
