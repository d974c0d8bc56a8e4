"""A run answers the requests of lm-evaluation-harness; the harness itself is not needed here."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from lm.data.tokenizing.chat_template import ChatTemplate
from lm.data.tokenizing.huggingface import HuggingFaceTokenizer
from lm.decoding.sampling import Sampling
from lm.errors import UserError
from lm.evaluation.continuations import rolling_windows
from lm.runs.directory import RunDirectory
from lm.runs.evaluate import Options
from lm.runs.generation import Generator, continue_prompts, translate
from lm.runs.harness import Generation, HarnessOptions, HarnessRun
from tests.run_helpers import config_of, save_untrained

TEXTS = ["the lazy dog", "a quick brown fox jumps over the lazy dog while seven wizards brew", "é", ""]
GREEDY = {"until": [], "max_gen_toks": 12}


def opened(root, *, batch_size=3, step="best", **harness):
    directory = RunDirectory.existing(root)
    options = Options(step=step, batch_size=batch_size)
    return HarnessRun(directory, directory.load_config(), options, HarnessOptions(**harness))


@pytest.fixture(scope="module")
def decoder(tiny, tmp_path_factory):
    root = tmp_path_factory.mktemp("harness") / "decoder"
    save_untrained(root, config_of(tiny, model__init_std=0.5), steps=(8, 16))
    return root


@pytest.fixture(scope="module")
def encoder_decoder(tiny_pairs, tmp_path_factory):
    root = tmp_path_factory.mktemp("harness") / "pairs"
    save_untrained(root, config_of(tiny_pairs, model__init_std=0.5))
    return root


def generator_of(root):
    directory = RunDirectory.existing(root)
    return Generator(directory, directory.load_config(), None, 1, GREEDY["max_gen_toks"], 1, 0, 8)


def test_prompts_have_one_bos_token_and_continuations_have_none(decoder):
    run = opened(decoder)
    text = run.tokenizer.encode("the dog")
    assert run.encode_prompt("the dog") == [1, *text] and run.encode("the dog") == text
    assert run.encode_prompt("<bos>a") == [1, *run.tokenizer.encode("<bos>a")]  # text never is a special token
    assert run.prefix_id == 1 and run.max_length == 32


def test_sources_have_the_special_tokens_of_training(encoder_decoder):
    run = opened(encoder_decoder)
    assert run.encode_prompt("a b") == [*run.tokenizer.encode("a b"), 2]


def test_log_probability_of_a_text_is_the_sum_over_its_windows(decoder):
    run = opened(decoder)
    text = TEXTS[1]
    tokens = run.tokenizer.encode(text)
    windows = list(rolling_windows(tokens, 1, 32))
    assert len(windows) == 3
    each = [run.score([window])[0].log_probability for window in windows]
    found = run.log_probabilities([text, "", text[:5]])
    np.testing.assert_allclose(found[0], sum(each), rtol=1e-6)
    assert found[1] == 0.0
    np.testing.assert_allclose(found[2], run.score([([1], tokens[:5])])[0].log_probability, rtol=1e-6)


def test_generated_texts_of_a_decoder_are_those_of_lm_generate(decoder):
    run = opened(decoder)
    whole = list(continue_prompts(generator_of(decoder), TEXTS[::2], Sampling(temperature=0)))
    wanted = [part.partition("---\n")[2].removesuffix("\n") for part in whole]
    found = run.generate([(text, GREEDY) for text in TEXTS[::2]])
    assert [text + new for text, new in zip(TEXTS[::2], found, strict=True)] == wanted
    stop = found[0][2:4]
    assert len(stop) == 2
    cut = run.generate([(TEXTS[0], {**GREEDY, "until": stop}), (TEXTS[2], GREEDY)])  # two groups of settings
    assert cut == [found[0].partition(stop)[0], found[1]]


@pytest.mark.exhaustive
def test_generated_texts_of_an_encoder_decoder_are_those_of_lm_generate(encoder_decoder):
    sources = ["a b c d", "h g", "c c c"]
    wanted = translate(generator_of(encoder_decoder), sources, Sampling(temperature=0), None, "")
    found = opened(encoder_decoder).generate([(text, GREEDY) for text in sources])
    assert [" ".join(text.splitlines()) for text in found] == list(wanted.lines) and all(found)


def test_long_prompts_are_cut_on_the_left(decoder):
    run = opened(decoder)
    room = 32 - 12
    (found,) = run.generate([(TEXTS[1], GREEDY)])
    assert [found] == run.generate([(TEXTS[1][-(room - 1) :], GREEDY)])  # one byte per token, after BOS
    with pytest.raises(
        UserError, match=r"leaves no room for a prompt in the model's 32 positions.* --gen_kwargs=max_gen_toks=N"
    ):
        run.generate([("a", {"until": ["x"]})])


def test_sampled_texts_depend_on_the_seed_and_on_the_request_only(decoder):
    sampled = {"do_sample": True, "max_gen_toks": 12}
    requests = [("a", sampled)] * 3
    first = opened(decoder, seed=1).generate(requests)
    assert first == opened(decoder, seed=1, batch_size=1).generate(requests)
    assert len(set(first)) == 3 and first != opened(decoder, seed=2).generate(requests)


def test_shorter_contexts_can_be_chosen(decoder):
    assert opened(decoder, max_length=24).max_length == 24
    with pytest.raises(UserError, match="--max_length=33 exceeds the model's 32 positions"):
        opened(decoder, max_length=33)


def test_latest_checkpoint_can_be_chosen(decoder):
    assert opened(decoder, step="latest").step == 16 and opened(decoder, step="8").record["step"] == 8


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({}, Generation(Sampling(0.0), 256, ())),
        ({"until": "\n", "max_new_tokens": 9}, Generation(Sampling(0.0), 9, ("\n",))),
        ({"until": ["a", "b"], "max_tokens": 3, "num_beams": 1}, Generation(Sampling(0.0), 3, ("a", "b"))),
        ({"do_sample": False, "temperature": 0.7}, Generation(Sampling(0.0), 256, ())),
        ({"max_gen_toks": "64", "temperature": None}, Generation(Sampling(0.0), 64, ())),
        ({"do_sample": True}, Generation(Sampling(1.0), 256, ())),
        ({"temperature": 0.5, "top_k": 4, "top_p": 0.9}, Generation(Sampling(0.5, 4, 0.9), 256, ())),
    ],
)
def test_generation_settings_of_tasks(values, wanted):
    assert Generation.of(values) == wanted


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_beams": 4}, "num_beams=4 is not supported"),
        ({"stop_token": 3}, "stop_token=3 is not supported"),
        ({"max_gen_toks": 0}, "max_gen_toks=0 is invalid; it must be at least 1"),
        ({"top_p": 2.0}, "top_p=2.0 is invalid"),
        ({"max_gen_toks": 2.5}, "max_gen_toks=2.5 is invalid; it must be a whole number"),
        ({"temperature": "high"}, "temperature='high' is invalid; it must be a number"),
    ],
)
def test_unsupported_generation_settings_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        Generation.of(values)


def chat_run(template):
    """Returns the parts of a run that read rendered templates, with a tokenizer of words."""
    special = {"<s>": 0, "</s>": 1, "<unk>": 2}
    words = {**special, **{word: n for n, word in enumerate(("user", "assistant", ":", "Hi", "Yes"), start=3)}}
    content = {
        "added_tokens": [
            {"id": n, "content": name, "special": True, "single_word": False, "lstrip": False, "rstrip": False}
            | {"normalized": False}
            for name, n in special.items()
        ],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    }
    tokenizer = HuggingFaceTokenizer(json.dumps(content).encode(), "<s>", "</s>")
    parts = {"tokenizer": tokenizer, "template": ChatTemplate(tokenizer, template), "reads_source": False}
    run = SimpleNamespace(**parts, _noted=False)
    run.encode = lambda text: HarnessRun.encode(run, text)
    return run


def test_rendered_template_has_its_own_bos_token_only():
    run = chat_run("{{ '<s>' }}{% for m in messages %}{{ m.role }} : {{ m.content }} </s>{% endfor %}assistant :")
    text = HarnessRun.render(run, [{"role": "user", "content": "Hi"}], prompt=True)
    assert HarnessRun.encode_prompt(run, text) == [0, 3, 5, 6, 1, 4, 5]
    assert HarnessRun.encode_prompt(run, "Hi") == [0, 6]  # a template without BOS gets the one of the tokenizer


def test_unfinished_answer_is_the_end_of_the_prompt():
    run = chat_run("{% for m in messages %}{{ m.role }} : {{ m.content }} </s>{% endfor %}")
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    assert HarnessRun.render(run, messages, prompt=False) == "user : Hi </s>assistant : Yes"


def test_system_message_that_the_template_refuses_is_left_out(capsys):
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    run = chat_run(refusal + "{% for m in messages %}{{ m.content }}{% endfor %}")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    for _ in range(2):
        assert HarnessRun.render(run, messages, prompt=True) == "Hi"
    assert capsys.readouterr().err.count("the chat template rejects system messages") == 1
    with pytest.raises(UserError, match="the chat template rejects the conversation"):
        HarnessRun.render(chat_run("{{ raise_exception('never') }}"), messages, prompt=True)


def test_chat_needs_a_template(decoder):
    with pytest.raises(UserError, match="the tokenizer has no chat template"):
        opened(decoder, as_chat=True)


def test_bad_flags_are_refused(refused, decoder, tiny_labels, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    command = ("lm.harness", f"--workdir={decoder}")
    refused("lm-evaluation-harness cannot be imported", *command, "--tasks=a")
    refused("install it with pip install -r requirements-harness.txt", *command, "--tasks=a")
    refused("--workdir is missing", "lm.harness", "--tasks=a")
    refused("--tasks is missing", *command)
    refused("use best, last or a step number", *command, "--tasks=a", "--checkpoint=middle")
    refused("use a number above 0", *command, "--tasks=a", "--limit=0")
    refused("give --apply_chat_template too", *command, "--tasks=a", "--system_instruction=x")
    refused("there is no such run directory", "lm.harness", f"--workdir={tmp_path / 'no'}", "--tasks=a")
    save_untrained(tmp_path / "labels", config_of(tiny_labels))
    problem = "a model with objective.name=classification does not predict text; score it with eval.py"
    refused(problem, "lm.harness", f"--workdir={tmp_path / 'labels'}", "--tasks=a")
