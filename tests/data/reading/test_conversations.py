"""Conversations are read in the formats of OpenAI and ShareGPT and as prompts with responses; the rest is refused."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from lm.config import SourceConfig
from lm.data.reading import open_reader
from lm.data.reading.conversations import Conversation, ConversationReader
from lm.errors import UserError
from tests.chats import CALL, TOOL, assistant, user

SYSTEM = {"role": "system", "content": "Be brief."}


def read(folder, *records, **settings) -> list[Conversation]:
    path = folder / "talk.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    reader = open_reader(SourceConfig(kind="jsonl", path=str(path), **settings), ConversationReader)
    found = list(reader.iterate())
    read.notes = reader.notes()
    return found


def test_messages_and_tools_are_kept_as_they_are(tmp_path):
    messages = [SYSTEM, user("Weather? 😀"), assistant("", tool_calls=[CALL], reasoning_content="r")]
    messages += [{"role": "tool", "content": '{"a": 1}', "tool_call_id": "x"}, assistant("Sunny.")]
    (found,) = read(tmp_path, {"messages": messages, "tools": [TOOL], "other": 1})
    assert found.messages == messages and found.tools == [TOOL]
    assert found.key == "Be brief.\nWeather? 😀"
    assert found.texts == ("Be brief.", "Weather? 😀", '{"a": 1}', "Sunny.")
    assert read.notes == []
    assert read(tmp_path, {"messages": messages, "tools": json.dumps([TOOL])})[0].tools == [TOOL]
    assert read(tmp_path, {"messages": messages, "tools": None})[0].tools == []


@pytest.mark.parametrize(
    ("record", "settings"),
    [
        ({"messages": [SYSTEM, user("a"), assistant("b")]}, {}),
        ({"chat": {"list": [SYSTEM, user("a"), assistant("b")]}}, {"field": "chat.list"}),
        ({"messages": [{**user("a"), "name": None}, assistant("b", tool_calls=None)], "system": "Be brief."}, {}),
        (
            {
                "conversations": [
                    {"from": "system", "value": "Be brief."},
                    {"from": "human", "value": "a"},
                    {"from": "gpt", "value": "b"},
                ]
            },
            {},
        ),
        (
            {
                "conversations": [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}],
                "system": "Be brief.",
            },
            {},
        ),
        ({"system": "Be brief.", "q": "a", "r": "b"}, {"field": "q", "target_field": "r"}),
        ({"system": "Be brief.", "q": ["a"], "r": {"x": "b"}}, {"field": "{q}", "target_field": "r.x"}),
    ],
)
def test_all_formats_give_the_same_conversation(tmp_path, record, settings):
    (found,) = read(tmp_path, record, **settings)
    assert found.messages == [SYSTEM, user("a"), assistant("b")] and found.tools == []


def test_parquet_has_the_same_conversations_without_the_nulls_of_its_columns(tmp_path):
    messages = [SYSTEM, user("a"), assistant("b", tool_calls=[{"name": "f", "arguments": {"x": 1.5}}])]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"messages": messages}]), tmp_path / "talk.parquet")
    source = SourceConfig(kind="parquet", path=str(tmp_path / "talk.parquet"))
    (found,) = open_reader(source, ConversationReader).iterate()
    assert found.messages == messages


def test_lone_surrogates_become_replacement_characters(tmp_path):
    call = {"name": "f\ud800", "arguments": {"x": "\udc00"}}
    (found,) = read(tmp_path, {"messages": [user("a\ud800"), assistant("b", tool_calls=[call])]})
    replaced = {"name": "f\ufffd", "arguments": {"x": "\ufffd"}}
    assert found.messages == [user("a\ufffd"), assistant("b", tool_calls=[replaced])]


def test_arguments_in_json_texts_are_noted(tmp_path):
    call = {"function": {"name": "f", "arguments": '{"a": 1}'}}
    read(tmp_path, {"messages": [user("a"), assistant("", tool_calls=[call, CALL])]})
    assert read.notes == [
        "1 tool calls store arguments as a JSON string, which most templates put in quotes; use JSON objects"
    ]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"messages": [user("a"), {"role": "bot", "content": "b"}]},
            "message 2: unknown role 'bot'; use one of system",
        ),
        ({"messages": [{"content": "b"}]}, "message 1: unknown role None"),
        ({"conversations": [{"from": "robot", "value": "b"}]}, "message 1: unknown speaker 'robot'; use one of system"),
        ({"messages": [user("a"), assistant(" \n")]}, "message 2: the assistant's answer is empty; remove"),
        ({"messages": [user("a"), {"role": "assistant"}]}, "message 2: the assistant's answer is empty"),
        ({"messages": [user("a")]}, "the conversation has no assistant message, so there is nothing to learn"),
        ({"messages": []}, "the conversation has no assistant message"),
        ({"messages": [{"role": "user"}, assistant("b")]}, "message 1: the user message has no content"),
        ({"messages": [user(3), assistant("b")]}, "message 1: field 'content' should hold text, but holds the int 3"),
        ({"messages": "a"}, "field 'messages' should hold a list, but holds the str 'a'"),
        ({"messages": ["a"]}, "message 1: expected an object with role and content, but got str"),
        (
            {"messages": [user([{"type": "image"}]), assistant("b")]},
            "message 1: the content has parts that are not text",
        ),
        ({"messages": [assistant("", tool_calls="f")]}, "message 1: field 'tool_calls' should hold a list"),
        (
            {"messages": [assistant("", tool_calls=[{"x": 1}])]},
            "message 1: tool_calls must hold objects, each with the name",
        ),
        ({"messages": [user("a"), assistant("b")], "tools": "{"}, "field 'tools' is a string that is not valid JSON"),
        ({"messages": [user("a"), assistant("b")], "tools": ["f"]}, "field 'tools' should hold a list of objects"),
        (
            {"text": "a"},
            "the record has neither 'messages' nor 'conversations'; set field to the field that holds",
        ),
        ({"messages": [], "conversations": []}, "the record has both 'messages' and 'conversations'"),
    ],
)
def test_malformed_records_are_one_line_with_their_position(tmp_path, record, message):
    good = {"messages": [user("a"), assistant("b")]}
    with pytest.raises(UserError) as caught:
        read(tmp_path, good, record)
    assert str(caught.value).startswith(f"{tmp_path}/talk.jsonl, line 2") and message in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("response", "message"), [(" ", "the response in field 'r' is empty"), (None, "should hold text")]
)
def test_prompts_without_a_response_are_refused(tmp_path, response, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, {"q": "a", "r": response}, field="q", target_field="r")


def test_formats_that_hold_no_conversations_are_refused(tmp_path):
    with pytest.raises(UserError, match="text does not support conversations; use jsonl or parquet"):
        open_reader(SourceConfig(kind="text", path="x"), ConversationReader)
