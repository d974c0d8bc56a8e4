"""A small tokenizer, chat templates and conversations, for the tests of chat models."""

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from lm.data.tokenizing.huggingface import HuggingFaceTokenizer

SPECIALS = ("<|begin|>", "<|end|>", "<|head|>", "<|text|>")
NAMES = {"bos_token": "<|begin|>", "eos_token": "<|end|>"}

# Tools in the system prompt, and an empty thought in the last answer only, as in Qwen 3.
THINKING = """\
{%- if tools %}
    {{- '<|head|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{% endif %}
    {%- for tool in tools %}{{- tool | tojson + "\\n" }}{% endfor %}
    {{- '<|end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|head|>system\\n' + messages[0].content + '<|end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {{- '<|head|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}
        {%- set content = (message.content or '').split('</think>')[-1].lstrip('\\n') %}
        {%- if loop.last %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
        {{- content }}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n<call>' + call.function.name + ' ' }}{{ call.function.arguments | tojson }}{{- '</call>' }}
        {%- endfor %}
    {%- else %}
        {{- message.content }}
    {%- endif %}
    {{- '<|end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|head|>assistant\\n' }}{% endif %}
"""
# BOS, headers and trimmed texts, as in Llama 3.
HEADERS = (
    "{{ bos_token }}{% for message in messages %}{{ '<|head|>' + message['role'] + '<|text|>\n\n' }}"
    "{{ message['content'] | trim + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|text|>\n\n' }}{% endif %}"
)
# Roles that must alternate, with the system prompt inside the first message, as in Gemma 3.
ALTERNATING = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first = messages[0]['content'] + '\n\n' -%}{%- set rest = messages[1:] -%}
{%- else -%}
    {%- set first = '' -%}{%- set rest = messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Roles must alternate user/assistant/user/assistant/...') }}
    {%- endif -%}
    {{ '<|head|>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}
    {{- (first if loop.first else '') + message['content'] | trim + '<|end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|head|>model\n' }}{%- endif -%}
"""
MARKED = (
    "{% for message in messages %}{{ '<|head|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content + '<|end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message.content + '<|end|>\n' }}{% endif %}{% endfor %}"
)
TEMPLATES = {"thinking": THINKING, "headers": HEADERS, "alternating": ALTERNATING, "marked": MARKED}

TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": 'Of a <place> "é"', "parameters": {"place": {"default": None}}},
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"place": "Zoë's"}}}


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str, **more: object) -> dict:
    return {"role": "assistant", "content": text, **more}


CONVERSATIONS: dict[str, list[dict]] = {
    "one": [user("Hi"), assistant("Hello there!")],
    "turns": [
        {"role": "system", "content": "Be brief. "},
        user(" What is 2+2? "),
        assistant(" 4\n"),
        user("4"),
        assistant("4"),
        user("你好 😀"),
        assistant("<think>so</think>\n\nÜber alles: 😀😀"),
    ],
    "tools": [
        {"role": "system", "content": "Use tools."},
        user("Weather?"),
        assistant("", tool_calls=[CALL]),
        {"role": "tool", "content": "sunny"},
        assistant("It is sunny."),
    ],
    "special": [user("What is <|end|>?"), assistant("<|end|> ends a text<|begin|>.")],
}


def tools_of(name: str) -> list[dict] | None:
    return [TOOL] if name == "tools" else None


def library_tokenizer() -> tokenizers.Tokenizer:
    """Returns a byte-level tokenizer with a few merges, so that some tokens cross the borders of an answer."""
    vocabulary = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("Ċ", "Ċ"), ("l", "l"), ("H", "e"), ("i", "s"), ("Ġ", "is"), (">", "Ċ"), ("Ġ", "4")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    return tokenizer


def chat_tokenizer(template: str = "") -> HuggingFaceTokenizer:
    config = {**NAMES, **({"chat_template": template} if template else {})}
    content = library_tokenizer().to_str().encode()
    return HuggingFaceTokenizer.from_files(content, {"tokenizer_config.json": config})
