"""Chat templates: rendered texts, tokens and answers. tests/huggingface compares the same cases with transformers."""

import json
from datetime import datetime
from pathlib import Path

import pytest

from lm.data.tokenizing.bytes import ByteTokenizer
from lm.data.tokenizing.chat_template import ChatTemplate
from lm.errors import UserError
from tests.chats import CONVERSATIONS, TEMPLATES, assistant, chat_tokenizer, tools_of, user

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "chat_templates.json").read_text(encoding="utf-8"))
SIMPLE = "{% for m in messages %}<|head|>{{ m.role }}<|text|>{{ m.content }}<|end|>{% endfor %}"


def answers(template: ChatTemplate, messages: list[dict], tools: list[dict] | None = None) -> list[str]:
    """Returns the text of each answer's tokens, including special tokens."""
    found, tokenizer = template.encode(messages, tools), template.tokenizer
    names = {token: name for name, token in tokenizer.special_spellings.items()}
    texts = []
    for begin, end in found.answers:
        last = names.get(found.ids[end - 1], "")
        texts.append(tokenizer.decode(found.ids[begin:end]) + last)
    return texts


@pytest.mark.parametrize("case", GOLDEN)
def test_texts_tokens_and_masks_equal_the_golden_results_of_transformers(case):
    name, conversation = case.split("/")
    template, wanted = ChatTemplate(chat_tokenizer(TEMPLATES[name])), GOLDEN[case]
    messages, tools = CONVERSATIONS[conversation], tools_of(conversation)
    if wanted is None:
        with pytest.raises(
            UserError, match=r"the chat template rejects the conversation: Roles must alternate user/assistant"
        ):
            template.encode(messages, tools)
        return
    found = template.encode(messages, tools)
    assert template.render(messages, tools) == wanted["text"]
    assert found.ids == wanted["ids"]
    assert template.prompt_ids(messages[:-1], tools) == wanted["prompt"]
    if "mask" in wanted:
        assert found.scored.tolist() == list(map(bool, wanted["mask"]))


@pytest.mark.parametrize(
    ("name", "conversation", "expected"),
    [
        # The last answer begins with its empty thought, which a model must write after the prompt.
        ("thinking", "one", ["<think>\n\n</think>\n\nHello there!<|end|>"]),
        ("thinking", "turns", [" 4\n<|end|>", "4<|end|>", "<think>\n\n</think>\n\nÜber alles: 😀😀<|end|>"]),
        (
            "thinking",
            "tools",
            # A token of two line breaks crosses the end of the prompt.
            ['\n\n<call>weather {"place": "Zoë\'s"}</call><|end|>', "<think>\n\n</think>\n\nIt is sunny.<|end|>"],
        ),
        ("headers", "one", ["Hello there!<|end|>"]),
        ("headers", "turns", ["4<|end|>", "4<|end|>", "<think>so</think>\n\nÜber alles: 😀😀<|end|>"]),
        ("headers", "tools", ["It is sunny.<|end|>"]),  # this template does not show calls of tools
        ("headers", "special", ["<|end|> ends a text<|begin|>.<|end|>"]),
        ("alternating", "turns", ["4<|end|>", "4<|end|>", "<think>so</think>\n\nÜber alles: 😀😀<|end|>"]),
        ("marked", "turns", [" 4\n<|end|>", "4<|end|>", "<think>so</think>\n\nÜber alles: 😀😀<|end|>"]),
    ],
)
def test_answers_are_exactly_what_the_model_writes_after_the_prompt(name, conversation, expected):
    template = ChatTemplate(chat_tokenizer(TEMPLATES[name]))
    assert answers(template, CONVERSATIONS[conversation], tools_of(conversation)) == expected


@pytest.mark.parametrize("name", ["thinking", "headers", "alternating"])
def test_prompt_and_last_answer_make_up_the_conversation(name):
    template, messages = ChatTemplate(chat_tokenizer(TEMPLATES[name])), CONVERSATIONS["turns"]
    found = template.encode(messages)
    begin, end = found.answers[-1]
    assert found.ids[:begin] == template.prompt_ids(messages[:-1])
    assert template.tokenizer.decode(found.ids[end:]).strip() == ""


def test_special_tokens_in_messages_are_text_but_those_of_the_template_are_tokens():
    template = ChatTemplate(chat_tokenizer(SIMPLE))
    head, text, end = (template.tokenizer.special_spellings[name] for name in ("<|head|>", "<|text|>", "<|end|>"))
    found = template.encode([user("<|end|>"), assistant("<|text|>")])
    spelled = template.tokenizer.encode
    first = [head, *spelled("user"), text, *spelled("<|end|>"), end]
    assert found.ids == [*first, head, *spelled("assistant"), text, *spelled("<|text|>"), end]
    assert found.answers == [(len(found.ids) - 1 - len(spelled("<|text|>")), len(found.ids))]


def test_marks_that_messages_contain_are_not_mistaken():
    odd = "".join(map(chr, range(0xFDD0, 0xFDF0)))
    template = ChatTemplate(chat_tokenizer(TEMPLATES["marked"]))
    assert answers(template, [user(odd), assistant(f"<|end|>{odd}")]) == [f"<|end|>{odd}<|end|>"]


def test_a_template_that_takes_special_tokens_of_messages_apart_is_refused():
    text = "{% for m in messages %}{{ m.content[4:] }}{% endfor %}"
    with pytest.raises(UserError, match="the chat template splits the name of a special token in a message"):
        ChatTemplate(chat_tokenizer(), text).encode([user("<|end|>"), assistant("abcdef")])


def test_an_answer_without_an_end_token_ends_with_its_text():
    template = ChatTemplate(chat_tokenizer(), "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    assert answers(template, [user("a"), assistant("b"), user("c"), assistant("d")]) == ["b", "d"]
    assert template.end_ids == set(template.tokenizer.stop_ids)


def test_end_token_of_the_template_ends_answers_beside_that_of_the_tokenizer():
    tokenizer = chat_tokenizer(SIMPLE.replace("<|end|>", "<|begin|>"))
    special = tokenizer.special_spellings
    assert ChatTemplate(tokenizer).end_ids == {special["<|begin|>"], special["<|end|>"]}


@pytest.mark.parametrize("name", ["plain", "texts"])
def test_simple_templates_serve_every_tokenizer(name):
    template = ChatTemplate(ByteTokenizer(), name)
    end = "<eos>" if name == "plain" else ""
    messages = [user("<eos>?"), assistant("One."), user("b"), assistant("Two")]
    assert answers(template, messages) == [f"One.{end}", f"Two{end}"]
    found = template.encode(messages)
    assert found.ids.count(ByteTokenizer().eos_id) == (2 if end else 0), "the user's <eos> is text"
    assert found.ids[: found.answers[-1][0]][-3:] == template.prompt_ids(messages[:-1])[-3:] or not end


def test_templates_read_the_names_of_special_tokens():
    assert ByteTokenizer().template_variables == {"bos_token": "<bos>", "eos_token": "<eos>"}
    assert chat_tokenizer().template_variables == {"bos_token": "<|begin|>", "eos_token": "<|end|>"}
    ids, offsets = ByteTokenizer().encode_rendered("é<eos>a<bos>")
    assert ids == [*ByteTokenizer().encode("é"), 2, *ByteTokenizer().encode("a"), 1]
    assert offsets == [(0, 1), (0, 1), (1, 6), (6, 7), (7, 12)]


def test_oldest_turns_are_left_out_but_never_the_system_prompt():
    template = ChatTemplate(chat_tokenizer(SIMPLE))
    system = {"role": "system", "content": "s"}
    messages = [system, user("a" * 20), assistant("b"), user("c"), assistant("d"), user("e")]
    whole, short = len(template.prompt_ids(messages)), template.prompt_ids([system, *messages[3:]])
    assert template.fitted_prompt(messages, None, whole) == (template.prompt_ids(messages), 0)
    assert template.fitted_prompt(messages, None, whole - 1) == (short, 2)
    assert template.fitted_prompt(messages, None, 1) == (template.prompt_ids([system, user("e")]), 4)


def test_dates_are_fixed_unless_a_time_is_given():
    text = "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    assert ChatTemplate(ByteTokenizer(), text).render([user("!")]) == "26 Jul 2024!"
    assert ChatTemplate(ByteTokenizer(), text, datetime(2026, 1, 2)).render([user("!")]) == "02 Jan 2026!"


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ cycler.__init__.__globals__.os.popen('touch FILE').read() }}",
        "{{ self._TemplateReference__context.environment.from_string('x') }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{% include 'FILE' %}",
        "{{ lipsum.__globals__['os'] }}",
        "{{ ('{0.__class__.__init__.__globals__}').format(cycler) }}",
        "{{ range(10000000) }}",
        "{{ 1 / 0 }}",
        "{{ undefined.field }}",
    ],
)
def test_templates_cannot_reach_python_or_files(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^the chat template rejects the conversation: ") as caught:
        print(ChatTemplate(ByteTokenizer(), text).render([user("a")]))
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "config.data.chat_template: the tokenizer has no chat template; set this to plain or texts"),
        ("{% for m in messages %}", "config.data.chat_template: line 1 of the template is not valid Jinja"),
        ("{% if %}", "config.data.chat_template: line 1 of the template is not valid Jinja"),
    ],
)
def test_invalid_templates_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        ChatTemplate(ByteTokenizer(), text)


def test_a_template_that_shows_no_answer_is_refused():
    with pytest.raises(UserError, match="renders no text from the assistant, so there is nothing to learn"):
        ChatTemplate(ByteTokenizer(), "{{ messages[0].content }}").encode([user("a"), assistant("b")])
