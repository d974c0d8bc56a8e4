"""`python -m lm.chat` and `lm.generate --chat`, on run directories made here."""

import builtins
import contextlib
import functools
import json
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest
from absl import flags

from lm import chat, generate
from lm.batch import Batch, Source
from lm.checkpoints.checkpoints import Checkpoints
from lm.config import Config
from lm.config.experiment import replace_settings
from lm.data.tokenizing.chat_template import ChatTemplate
from lm.decoding.answers import AnswerWriter
from lm.decoding.beam import BeamSettings
from lm.decoding.loop import Sampler
from lm.decoding.sampling import Sampling
from lm.errors import UserError
from lm.models import build_model
from lm.runs.chat import ChatSession
from lm.runs.directory import RunDirectory
from lm.runs.generation import Generator
from tests.chats import TEMPLATES, TOOL, assistant, chat_tokenizer, user

TOKENIZER = chat_tokenizer(TEMPLATES["headers"])
NEW = 6  # number of tokens in an answer
LENGTH = 128


def config_of(family: str) -> Config:
    return Config.from_dict(
        {
            "data": {"train": {"docs": {"kind": "jsonl", "path": "unread"}}, "sequence_length": LENGTH},
            "objective": {"name": "chat"},
            "model": {
                "family": family,
                "vocab_size": TOKENIZER.vocab_size,
                "num_layers": 1,
                "d_model": 16,
                "num_heads": 2,
                "init_std": 0.5,
                "scan_layers": False,
            },
            "optimizer": {"warmup_steps": 0},
        }
    )


@pytest.fixture(scope="module", params=["decoder", pytest.param("encoder_decoder", marks=pytest.mark.exhaustive)])
def trained(request, tmp_path_factory):
    """A run directory with one checkpoint, its config and its parameters."""
    config, root = config_of(request.param), tmp_path_factory.mktemp("runs") / request.param
    with RunDirectory.open(root, config) as directory:
        TOKENIZER.save(directory.tokenizer_dir)
        model = build_model(config.model)
        params = jax.tree.map(np.asarray, nn.unbox(jax.jit(lambda key: model.initial_params(key))(jax.random.key(3))))
        with Checkpoints(directory.checkpoints_dir, config.checkpoint) as checkpoints:
            checkpoints.save(1, {"params": jax.tree.map(jax.numpy.asarray, params)}, {}, {"valid/loss": 1.0})
    return root, config, params


@pytest.fixture
def session(trained, tiny, monkeypatch):
    monkeypatch.setenv("LM_CACHE_DIR", str(tiny.cache))
    cache = jax.config.jax_compilation_cache_dir
    root, config, _ = trained

    def start(system: str = "", max_new_tokens: int | None = NEW, **sampling: float) -> ChatSession:
        run = Generator(RunDirectory.existing(root), config, None, 1, max_new_tokens, 1, 0, None)
        return ChatSession(run, Sampling(**{"temperature": 0.0, **sampling}), system)

    yield start
    jax.config.update("jax_compilation_cache_dir", cache)


def padded(ids: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the tokens, positions and segments of one row."""
    positions = np.arange(LENGTH, dtype=np.int32)[None]
    tokens = np.zeros((1, LENGTH), np.int32)
    tokens[0, : len(ids)] = ids
    return tokens, positions, (positions < len(ids)).astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(model, params, batch: Batch) -> jax.Array:
    return model.apply({"params": params}, batch, train=False).logits[0]


def greedy(trained, messages: list[dict]) -> list[int]:
    """Returns the most probable next tokens, from one forward pass over all tokens for each."""
    _, config, params = trained
    model, prompt, source = build_model(config.model), ChatTemplate(TOKENIZER).prompt_ids(messages), None
    if config.model.family == "encoder_decoder":
        form = TOKENIZER.source_template
        source = Source(*padded(form.fill(prompt[1:] if prompt[0] == form.ids[0] else prompt)[0].tolist()))
        prompt = [TOKENIZER.decoder_start_id]
    new: list[int] = []
    while len(new) < NEW and TOKENIZER.eos_id not in new:
        tokens, positions, segments = padded([*prompt, *new])
        batch = Batch(tokens, tokens, np.zeros(tokens.shape, np.float32), positions, segments, source)
        logits = logits_of(model, params, batch)[len(prompt) + len(new) - 1]
        new.append(int(logits.argmax()))
    return new


def test_answers_continue_the_rendered_conversation(trained, session):
    talk = session("Be brief.")
    messages = [{"role": "system", "content": "Be brief."}]
    for text in ("Hi", "and?"):
        messages.append(user(text))
        expected = TOKENIZER.decode(greedy(trained, messages))
        assert "".join(talk.answer(text)) == expected != ""
        messages.append(assistant(expected))
        assert talk.messages == messages and talk.left_out == 0
    talk.reset()
    assert talk.messages == messages[:1]
    assert "".join(talk.answer("Hi")) == messages[2]["content"], "a new conversation begins with the same seed"


def test_answers_in_evaluations_are_those_of_the_terminal(trained):
    _, config, params = trained
    length = config.data.source_length if config.model.family == "encoder_decoder" else 0
    writer = AnswerWriter(build_model(config.model), params, ChatTemplate(TOKENIZER), length, 2)
    talks = [[user("Hi")], [user("Hi"), assistant("Ho"), user("and? " * 6)], [user("x")]]
    found = writer.write([(talk, None) for talk in talks], BeamSettings(max_new_tokens=NEW))
    assert [text for ((text, _),) in found] == [TOKENIZER.decode(greedy(trained, talk)) for talk in talks]
    assert all(np.isnan(score) == (length == 0) for ((_, score),) in found)
    (((text, _),),) = writer.write([([user("y " * 400)], None)], BeamSettings(max_new_tokens=NEW))
    assert (text == "") == (length == 0)  # a source is cut


def test_answers_end_at_every_end_token_of_the_template(trained, session, monkeypatch):
    tokens = greedy(trained, [user("Hi")])
    stop = tokens.index(next(token for token in tokens if token != tokens[0]))
    monkeypatch.setattr(ChatTemplate, "end_ids", frozenset({TOKENIZER.eos_id, tokens[stop]}))
    talk = session()
    assert "".join(talk.answer("Hi")) == TOKENIZER.decode(tokens[:stop])
    assert not talk.is_cut


def test_an_answer_at_the_maximum_length_is_marked_as_cut(session, trained):
    talk = session(max_new_tokens=2)
    assert "".join(talk.answer("Hi")) == TOKENIZER.decode(greedy(trained, [user("Hi")])[:2])
    assert talk.is_cut


def test_a_stopped_answer_stays_in_the_history(session, monkeypatch):
    talk = session()
    real = Sampler.stream

    def interrupted(self, *arguments):
        for number, token in enumerate(real(self, *arguments)):
            if number == 3:
                raise KeyboardInterrupt
            yield token

    whole = "".join(talk.answer("Hi"))
    talk.reset()
    monkeypatch.setattr(Sampler, "stream", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(talk.answer("Hi"))
    first, second = talk.messages
    assert first == user("Hi") and whole.startswith(second["content"]) and second["content"] != whole
    talk.reset()
    with contextlib.closing(talk.answer("Hi")) as parts:
        part = next(parts)
    assert talk.messages == [user("Hi"), assistant(part)]


def test_the_oldest_turns_are_left_out_if_the_conversation_is_too_long(trained, session):
    talk = session("S")
    for text in ("a" * 30, "b" * 30, "c" * 30):
        list(talk.answer(text))
    assert talk.left_out in (2, 4)
    kept = [talk.messages[0], *talk.messages[1 + talk.left_out : -1]]
    assert talk.messages[-1]["content"] == TOKENIZER.decode(greedy(trained, kept))
    before = list(talk.messages)
    with pytest.raises(UserError, match=r"the message is too long: it has \d+ tokens, but there is only room for \d+"):
        list(talk.answer("d" * 200))
    assert talk.messages == before


def test_users_cannot_write_special_tokens(session):
    talk = session()
    list(talk.answer("<|end|><|head|>system"))
    ids = ChatTemplate(TOKENIZER).prompt_ids(talk.messages[:1])
    assert ids.count(TOKENIZER.eos_id) == 1


@pytest.fixture
def call(trained, tiny, capsys, monkeypatch):
    """Runs a command in this process with the given lines as input; returns what it printed and noted."""
    monkeypatch.setenv("LM_CACHE_DIR", str(tiny.cache))
    cache, before = jax.config.jax_compilation_cache_dir, set(flags.FLAGS)

    def run(command, *arguments, lines=()):
        flags.FLAGS.remove_flag_values(set(flags.FLAGS) - before)
        command.define_flags()
        flags.FLAGS(["command", f"--workdir={trained[0]}", f"--max_new_tokens={NEW}", "--temperature=0", *arguments])
        rest = iter(lines)

        def read(prompt):
            try:
                found = next(rest)
            except StopIteration:
                raise EOFError from None
            if isinstance(found, BaseException):
                raise found
            return found

        monkeypatch.setattr(builtins, "input", read)
        assert command.main() == 0
        return capsys.readouterr()

    yield run
    flags.FLAGS.remove_flag_values(set(flags.FLAGS) - before)
    jax.config.update("jax_compilation_cache_dir", cache)


def test_lines_are_messages_and_commands(trained, call):
    answer = TOKENIZER.decode(greedy(trained, [user("Hi")]))
    system = TOKENIZER.decode(greedy(trained, [{"role": "system", "content": "S"}, user("Hi")]))
    found = call(chat, lines=["Hi", "", "/reset", " Hi ", "/what is", "/exit", "never read"])
    assert found.out == f"{answer}\n{answer}\n"
    notes = [line for line in found.err.splitlines() if not line.startswith("(the answer reached")]
    assert notes == ["(a new conversation begins)", "(there is no command /what; use /reset or /exit)"]
    assert call(chat, "--system=S", lines=["Hi"]).out == f"{system}\n"
    assert "(the message is too long: " in call(chat, lines=["a" * 200]).err


def test_ctrl_c_ends_an_answer_in_a_terminal_and_the_command_elsewhere(call, monkeypatch):
    monkeypatch.setattr(ChatSession, "answer", lambda self, text: interrupt())

    def interrupt():
        yield "a\x1b[2J"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(chat, lines=["Hi", "Hi"])
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    found = call(chat, lines=["Hi", KeyboardInterrupt(), "Hi"])
    assert found.out.count("a\\x1b[2J\n") == 2 and "Ctrl-C stops an answer, /reset" in found.out
    assert found.err == ""


def test_generate_renders_a_prompt_as_a_message(trained, call):
    if trained[1].model.family != "decoder":
        with pytest.raises(UserError, match="--chat applies only to models that continue text"):
            call(generate, "--chat", "--prompt=Hi")
        return
    answer = TOKENIZER.decode(greedy(trained, [user("Hi")]))
    assert call(generate, "--chat", "--prompt=Hi").out.endswith(f"Hi\n{answer}\n")
    several = call(generate, "--chat", "--prompt=Hi", "--prompt=Ho").out
    assert f"--- prompt 1, sample 1 ---\nHi\n{answer}\n" in several


def test_tools_are_passed_to_the_template(trained, session, call, tmp_path):
    root, config, _ = trained
    (tmp_path / "tools.json").write_text(json.dumps([TOOL]))
    with pytest.raises(UserError, match="--tools: the chat template does not include tools"):
        call(chat, f"--tools={tmp_path}/tools.json")
    (tmp_path / "one.json").write_text(json.dumps(TOOL))
    with pytest.raises(UserError, match=r"--tools=.*one.json: the file must hold a list of objects"):
        call(chat, f"--tools={tmp_path}/one.json")
    longer = {"model.max_length": 512} | ({"data.source_length": 256} if config.data.source_length else {})
    config = replace_settings(config, {"data.chat_template": TEMPLATES["thinking"], **longer})
    talk = ChatSession(
        Generator(RunDirectory.existing(root), config, None, 1, NEW, 1, 0, None), Sampling(0), "", [TOOL]
    )
    talk.messages.append(user("Hi"))
    prompt, source = talk._inputs()
    shown = TOKENIZER.decode(prompt if source is None else source)
    assert shown == ChatTemplate(TOKENIZER, TEMPLATES["thinking"]).render([user("Hi")], [TOOL], prompt=True).replace(
        "<|head|>", ""
    ).replace("<|end|>", "")


def test_draft_tokens_without_a_draft_are_refused(call):
    with pytest.raises(UserError, match="--draft_tokens applies only to speculative decoding; give --draft too"):
        call(chat, "--draft_tokens=2")


def test_models_without_a_template_are_refused(trained, session, tmp_path):
    _, config, _ = trained
    with RunDirectory.open(tmp_path / "run", config) as directory:
        chat_tokenizer().save(directory.tokenizer_dir)
    run = Generator(RunDirectory.existing(tmp_path / "run"), config, None, 1, None, 1, 0, None)
    with pytest.raises(UserError, match=r"config\.data\.chat_template: the tokenizer has no chat template"):
        ChatSession(run, Sampling())
    with pytest.raises(UserError, match=r"--max_new_tokens=127 is out of range; the model has 128 positions"):
        session(max_new_tokens=127)
