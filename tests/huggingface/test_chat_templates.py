"""Rendered texts, token ids and masks equal those of `apply_chat_template` in transformers.

The golden results, which tests/data/tokenizing/test_chat_template.py compares without transformers, are written with:
UPDATE_GOLDEN=1 pytest tests/huggingface/test_chat_templates.py
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from lm.config import TokenizerConfig
from lm.data.tokenizing import build_tokenizer
from lm.data.tokenizing.chat_template import ChatTemplate
from lm.errors import UserError
from tests.chats import CONVERSATIONS, NAMES, TEMPLATES, chat_tokenizer, library_tokenizer, tools_of

transformers = pytest.importorskip("transformers")

GOLDEN = Path(__file__).parents[1] / "golden" / "chat_templates.json"
PUBLISHED = Path(os.environ.get("LM_PUBLISHED", "/tmp/published"))


def expected(tokenizer, name: str) -> dict | None:
    """Returns what transformers makes of a conversation, or None if the template refuses it."""
    messages, tools = CONVERSATIONS[name], tools_of(name)
    try:
        text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
    except Exception:  # the kind of error depends on the template
        return None
    # Without this option, special tokens that a user spells out would become tokens.
    options = {"tools": tools, "return_dict": True, "sanitize_control_tokens": name == "special"}
    ids = tokenizer.apply_chat_template(messages, **options)["input_ids"]
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, **options)["input_ids"]
    found = {"text": text, "ids": ids, "prompt": prompt}
    if "{% generation" in tokenizer.chat_template and name != "special":
        masked = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, **options)
        found["mask"] = masked["assistant_masks"]
    return found


def compare(template: ChatTemplate, name: str, wanted: dict | None) -> None:
    messages, tools = CONVERSATIONS[name], tools_of(name)
    if wanted is None:
        with pytest.raises(UserError, match="the chat template rejects the conversation: "):
            template.render(messages, tools)
        return
    found = template.encode(messages, tools)
    assert template.render(messages, tools) == wanted["text"]
    assert found.ids == wanted["ids"]
    assert template.prompt_ids(messages[:-1], tools) == wanted["prompt"]
    if "mask" in wanted:
        np.testing.assert_array_equal(found.scored, wanted["mask"])


def test_small_templates_equal_transformers():
    golden = {}
    for name, text in TEMPLATES.items():
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=library_tokenizer(), chat_template=text, **NAMES)
        template = ChatTemplate(chat_tokenizer(text))
        for conversation in CONVERSATIONS:
            wanted = expected(fast, conversation)
            compare(template, conversation, wanted)
            golden[f"{name}/{conversation}"] = wanted
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(golden, ensure_ascii=False) + "\n", encoding="utf-8")
    assert golden == json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["qwen3", "llama3_1", "gemma3"])
def test_published_templates_equal_transformers(name):
    folder = PUBLISHED / name
    if not (folder / "tokenizer.json").is_file():
        pytest.skip(f"{folder} is missing; set LM_PUBLISHED to a directory with published tokenizers")
    published = transformers.AutoTokenizer.from_pretrained(folder)
    config = TokenizerConfig(kind="huggingface", path=str(folder / "tokenizer.json"))
    template = ChatTemplate(build_tokenizer(config, ()))
    for conversation in CONVERSATIONS:
        compare(template, conversation, expected(published, conversation))
