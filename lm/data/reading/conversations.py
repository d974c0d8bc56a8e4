"""Reads conversations, for chat models.

Three kinds of records are read: the `messages` of OpenAI and Hugging Face (role, content, tool_calls), optionally with
`tools`; the `conversations` of ShareGPT (from, value), optionally with `system`; and a prompt with its response, if
`target_field` names the response field. Messages and tools are left unchanged, because their interpretation depends on
the chat template. Only ShareGPT's names for keys and roles are replaced.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lm.config import SourceConfig
from lm.data.reading.fields import Field, Record, as_list, as_text, is_missing
from lm.data.reading.format import Format, Reader
from lm.errors import UserError
from lm.files import hash_of, well_formed

ROLES = ("system", "developer", "user", "assistant", "tool")
# Maps ShareGPT's roles to ours.
SPEAKERS = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
SPEAKERS |= {"chatgpt": "assistant", "model": "assistant", "tool": "tool", "observation": "tool"}


@dataclass(frozen=True)
class Conversation:
    """A raw example: the messages of a conversation, each with a role, and the tools that the model may call."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]]
    where: str  # the position of the record, for error messages

    labels = ()

    @property
    def key(self) -> str:
        """The text before the first answer. Conversations that share this text end up in the same subset."""
        roles = [message["role"] for message in self.messages]
        return "\n".join(map(text_of, self.messages[: roles.index("assistant")]))

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(text for message in self.messages if (text := text_of(message)))


class ConversationReader(Reader):
    """Reads conversations that contain at least one answer (a message from the assistant).

    Unless `field` is set, the messages are in the field "messages" or "conversations". If `target_field` is set, it
    names the field with the response, and `field` names the field with the prompt.
    """

    kind = "conversations"
    settings = ("target_field",)
    roles: ClassVar = {"messages": "field"}

    def __init__(self, config: SourceConfig, source: Format):
        self.config, self.source = config, source
        if config.target_field:
            self.fields = {"prompt": source.field("prompt", "field"), "response": source.field("", "target_field")}
        elif config.field != SourceConfig.field:
            self.fields = {"messages": source.field("messages", "field")}
        else:
            self.fields = {name: Field(name, optional=True) for name in ("messages", "conversations")}
        self.fields |= {name: Field(name, optional=True) for name in ("system", "tools")}

    def iterate(self) -> Iterator[Any]:
        self._in_json = 0  # number of tool calls whose arguments are a JSON string
        yield from super().iterate()

    def example(self, record: Record, where: str) -> Conversation:
        messages = self._messages(record, where)
        if system := self.fields["system"].text(record, where) if record.get("system") else "":
            messages.insert(0, {"role": "system", "content": system})
        roles = [message["role"] for message in messages]
        if "assistant" not in roles:
            raise UserError(f"{where}: the conversation has no assistant message, so there is nothing to learn.")
        return Conversation(messages, self._tools(record, where), where)

    def _messages(self, record: Record, where: str) -> list[dict[str, Any]]:
        if "prompt" in self.fields:
            prompt, response = (self.fields[name].text(record, where) for name in ("prompt", "response"))
            if not response.strip():
                raise UserError(f"{where}: the response in field {self.config.target_field!r} is empty.")
            return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        names = [name for name in self.fields if name not in ("system", "tools")]
        given = [name for name in names if not is_missing(record.get(name))]
        if len(given) != 1 and len(names) > 1:
            found = "both 'messages' and 'conversations'" if given else "neither 'messages' nor 'conversations'"
            raise UserError(
                f"{where}: the record has {found}; set field to the field that holds the messages or, for "
                "a prompt and its response, set field and target_field."
            )
        field = self.fields[(given or names)[0]]
        listed = as_list(field.value(record, where), field.spec, where)
        return [self._message(value, f"{where}, message {number}") for number, value in enumerate(listed, start=1)]

    def _message(self, value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: expected an object with role and content, but got {type(value).__name__}.")
        message = {name: _plain(each) for name, each in value.items() if each is not None}
        if "role" not in message and "from" in message:
            speaker, text = message.pop("from"), message.pop("value", "")
            if speaker not in SPEAKERS:
                raise UserError(f"{where}: unknown speaker {speaker!r:.40}; use one of {', '.join(SPEAKERS)}.")
            message = {"role": SPEAKERS[speaker], "content": text} | message
        if (role := message.get("role")) not in ROLES:
            raise UserError(f"{where}: unknown role {role!r:.40}; use one of {', '.join(ROLES)}.")
        calls, content = message.get("tool_calls"), message.get("content")
        if isinstance(content, list):
            if any(not isinstance(part, dict) or not isinstance(part.get("text"), str) for part in content):
                raise UserError(f"{where}: the content has parts that are not text; only text is supported.")
        elif content is not None:
            message["content"] = as_text(content, "content", where)
        called = [_function(call, where) for call in as_list(calls or [], "tool_calls", where)]
        if role == "assistant" and not (calls or text_of(message).strip()):
            raise UserError(f"{where}: the assistant's answer is empty; remove the record, or add the text.")
        if role != "assistant" and content is None:
            raise UserError(f"{where}: the {role} message has no content.")
        self._in_json += sum(isinstance(each.get("arguments"), str) for each in called)
        return message

    def _tools(self, record: Record, where: str) -> list[Mapping[str, Any]]:
        tools = record.get("tools")
        if isinstance(tools, str) and tools.strip():  # some data sets store the list as a JSON string
            try:
                tools = json.loads(tools)
            except ValueError as error:
                raise UserError(f"{where}: field 'tools' is a string that is not valid JSON ({error}).") from error
        listed = [] if is_missing(tools) or tools == "" else as_list(_plain(tools), "tools", where)
        if any(not isinstance(tool, Mapping) for tool in listed):
            raise UserError(f"{where}: field 'tools' should hold a list of objects that describe the tools.")
        return listed

    def fingerprint(self) -> str:
        return hash_of("conversations", self.config.kind, self.config.target_field, *self.source.identity())

    def notes(self) -> list[str]:
        problem = "tool calls store arguments as a JSON string, which most templates put in quotes; use JSON objects"
        return [*([f"{self._in_json:,} {problem}"] if self._in_json else []), *super().notes()]


def _function(call: Any, where: str) -> Mapping[str, Any]:
    """Returns the name and the arguments of a tool call. OpenAI's format nests them inside "function"."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UserError(f"{where}: tool_calls must hold objects, each with the name and the arguments of a function.")
    return function


def text_of(message: Mapping[str, Any]) -> str:
    """Returns the text of a message, or "" if it has none."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _plain(value: Any) -> Any:
    """Converts a value read from JSON or Parquet to plain Python values. Lone surrogates become U+FFFD."""
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(each) for each in value]
    return value.item() if isinstance(value, np.generic) else value
