"""`python -m lm.generate`, on run directories made here."""

import dataclasses
import io
import json
import shutil
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest
from absl import flags

from lm import generate
from lm.checkpoints.checkpoints import Checkpoints
from lm.config import Config, TokenizerConfig
from lm.data.tokenizing import build_tokenizer
from lm.data.tokenizing.bytes import ByteTokenizer
from lm.decoding.beam import BeamSettings
from lm.decoding.beam_model import beam_search
from lm.decoding.loop import Sampler
from lm.decoding.sampling import Sampling, row_keys, vocabulary_of
from lm.decoding.text import SourceDecoder, encode_prompts, encode_sources, generate_texts, sample_many
from lm.errors import UserError
from lm.models import build_model
from lm.runs.directory import RunDirectory
from lm.runs.generation import Generator

TOKENIZER = ByteTokenizer()
CONFIG = Config.from_dict(
    {
        "data": {"train": {"docs": {"kind": "embedded"}}, "sequence_length": 128},
        "model": {
            "vocab_size": TOKENIZER.vocab_size,
            "num_layers": 1,
            "d_model": 16,
            "num_heads": 2,
            "attention": "splash",
        },
        "optimizer": {"ema_decay": 0.9, "warmup_steps": 0},
    }
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run directory with steps 1 (the best) and 2, whose moving averages differ from their parameters."""
    root = tmp_path_factory.mktemp("runs") / "small"
    with RunDirectory.open(root, CONFIG) as directory:
        TOKENIZER.save(directory.tokenizer_dir)
        model = build_model(CONFIG.model, platform="tpu")
        params = jax.tree.map(np.asarray, nn.unbox(jax.jit(lambda key: model.initial_params(key))(jax.random.key(0))))
        with Checkpoints(directory.checkpoints_dir, CONFIG.checkpoint) as checkpoints:
            for step in (1, 2):
                state = {"params": params, "ema": jax.tree.map(lambda x, step=step: (1 + 3 * step) * x, params)}
                checkpoints.save(step, jax.tree.map(jax.numpy.asarray, state), {}, {"valid/loss": float(step)})
    return root, params


@pytest.fixture
def command(trained, tiny, capsys, monkeypatch):
    """Runs the command in this process and returns what it printed."""
    monkeypatch.setenv("LM_CACHE_DIR", str(tiny.cache))
    cache = jax.config.jax_compilation_cache_dir
    before = set(flags.FLAGS)
    generate.define_flags()

    def call(*arguments, root=trained[0]):
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["generate", f"--workdir={root}", *arguments])
        assert generate.main() == 0
        return capsys.readouterr().out

    yield call
    flags.FLAGS.remove_flag_values(set(flags.FLAGS) - before)
    jax.config.update("jax_compilation_cache_dir", cache)


def expected(trained, prompts, sampling, new, seed, samples, factor=4):
    model = build_model(dataclasses.replace(CONFIG.model, attention="xla"))
    params = jax.tree.map(lambda x: factor * x, trained[1])
    sampler = Sampler(model, params, sampling, vocabulary_of(TOKENIZER), new)
    return list(sample_many(sampler, TOKENIZER, encode_prompts(TOKENIZER, prompts), seed, samples))


def test_several_prompts_and_samples_have_headings(trained, command, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\né two\n", encoding="utf-8")
    sampling = Sampling(temperature=1.1, top_k=40, top_p=0.9, min_p=0.01, repetition_penalty=1.1)
    found = command(
        *("--prompt=", "--prompt=zero", f"--prompts_file={file}", "--num_samples=2", "--seed=5", "--max_new_tokens=7"),
        *("--temperature=1.1", "--top_k=40", "--top_p=0.9", "--min_p=0.01", "--repetition_penalty=1.1"),
    )
    prompts = ["", "zero", "one", "é two"]
    rows = expected(trained, prompts, sampling, 7, 5, 2)
    assert found == "".join(f"--- prompt {p + 1}, sample {s + 1} ---\n{prompts[p]}{text}\n" for p, s, text in rows)


def test_control_characters_are_spelled_out_on_a_terminal_only(command, monkeypatch):
    codes = ["a\x1b[2J\tb\n", "c\x9b\r\x07\u202e", "d é \U0001f600"]
    monkeypatch.setattr(generate, "continue_prompts", lambda *_: iter(codes))
    assert command("--prompt=a") == "".join(codes)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert command("--prompt=a") == "a\\x1b[2J\tb\nc\\x9b\\r\\x07\\u202ed é \U0001f600"


def test_average_of_checkpoints_is_used(trained, command):
    ((_, _, text),) = expected(trained, ["ab"], Sampling(), 5, 0, 1, factor=5.5)  # 1 + 3 * 1.5
    assert command("--prompt=ab", "--average=2", "--max_new_tokens=5") == f"ab{text}\n"


def test_one_prompt_streams_the_same_text_from_the_best_or_the_given_step(trained, command):
    for arguments, factor in (((), 4), (("--step=2",), 7)):
        ((_, _, text),) = expected(trained, ["ab"], Sampling(), 125, 0, 1, factor)  # 3 + 125 = 128 positions
        assert command("--prompt=ab", *arguments) == f"ab{text}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "there is no prompt; give --prompt"),
        (("--prompt=a", "--top_p=1.5"), "top_p=1.5 is invalid; it must be"),
        (("--prompt=a", "--temperature=-1"), "temperature=-1.0 is invalid; it must be"),
        (("--prompt=a", "--max_new_tokens=0"), "max_new_tokens=0 is invalid; it must be"),
        (("--prompt=a", "--max_new_tokens=127"), "2 tokens .* adding 127 new .* 128 positions .* at most 126"),
        (("--prompt=" + "a" * 140,), "141 tokens .* shorten the prompt"),
        (("--prompts_file=/nowhere/prompts",), "/nowhere/prompts cannot be read: No such file"),
        (("--prompt=a", "--step=9"), "no checkpoint for step 9"),
        (("--prompt=a", "--workdir=/nowhere"), "/nowhere: there is no such run directory"),
        (("--prompt=a", "--average=3"), "cannot average 3 checkpoints: the run has only 2"),
        (
            ("--input=a",),
            "--input applies only to encoder-decoders, but the model in .* continues text; give --prompt or",
        ),
        (("--prompt=a", "--num_beams=2"), "--num_beams applies only to encoder-decoders"),
        (("--prompt=a", "--output_prefix=b"), "--output_prefix applies only to encoder-decoders"),
        (("--from_prior",), "--from_prior applies only to autoencoders, but .* has objective.name=causal; omit"),
        (("--prompt=a", "--prompt=b", "--walk=linear"), "--walk applies only to autoencoders"),
    ],
)
def test_bad_input_for_a_decoder_is_refused_in_one_line(command, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        command(*arguments)
    assert "\n" not in str(caught.value)


ALPHABET = build_tokenizer(TokenizerConfig(kind="characters"), ["abcdefgh \n\t:"])
PAIRS = Config.from_dict(
    {
        "data": {
            "train": {
                name: {"path": "a", "target_path": "b", "document": "line", "prefix": "ab: "} for name in ("one", "two")
            },
            "cleaning": {"whitespace": "collapse"},
            "sequence_length": 16,
            "source_length": 12,
        },
        "model": {
            "family": "encoder_decoder",
            "vocab_size": ALPHABET.vocab_size + 2,
            "num_layers": 1,
            "d_model": 16,
            "num_heads": 2,
            "tie_embeddings": False,
        },
        "objective": {"name": "seq2seq"},
        "optimizer": {"ema_decay": 0.9, "warmup_steps": 0},
        "eval": {"generation": {"num_beams": 2, "length_penalty": 0.6, "max_new_tokens": 8, "batch_size": 3}},
    }
)
LINES = ["a b  c", "", "h", "b a d c a b d a c e", "   ", "c a f e"]
READ = ["ab: a b c", "ab: h", "ab: b a d c a b d a c e", "ab: c a f e"]
NUMBERS = [1, 3, 4, 6]


@pytest.fixture(scope="module")
def pairs_run(tmp_path_factory):
    """A run directory of an untrained encoder-decoder, its model, and a file of sources."""
    root = tmp_path_factory.mktemp("runs") / "pairs"
    with RunDirectory.open(root, PAIRS) as directory:
        ALPHABET.save(directory.tokenizer_dir)
        model = build_model(dataclasses.replace(PAIRS.model, attention="xla"))
        shapes = nn.unbox(jax.eval_shape(lambda key: model.initial_params(key), jax.random.key(0)))
        random = np.random.default_rng(94)
        params = jax.tree.map(lambda x: random.normal(0.0, 0.5, x.shape).astype(x.dtype), shapes)
        with Checkpoints(directory.checkpoints_dir, PAIRS.checkpoint) as checkpoints:
            checkpoints.save(1, jax.tree.map(jax.numpy.asarray, {"params": params, "ema": params}), {}, {})
    (root / "in").write_text("".join(f"{line}\n" for line in LINES))
    return root, model, params


def one_line(text):
    return text.replace("\n", " ").replace("\t", " ")


@pytest.mark.exhaustive
def test_file_is_translated_line_by_line(pairs_run, command, tmp_path):
    root, model, params = pairs_run
    settings = BeamSettings(num_beams=2, length_penalty=0.6, max_new_tokens=8, num_hypotheses=2)
    found = generate_texts(SourceDecoder(model, params, ALPHABET, 3), ALPHABET, READ, settings, 12)
    best = dict(zip(NUMBERS, [one_line(each[0][0]) for each in found], strict=True))
    generate_from = f"--input={root / 'in'}"

    printed = command(generate_from, root=root)
    assert printed == "".join(best.get(number, "") + "\n" for number in range(1, 7))
    assert len(set(best.values())) > 2  # the source matters

    said = command(generate_from, f"--output={tmp_path / 'out'}", root=root)
    assert said.startswith(f"written: {tmp_path / 'out'}, 6 sources in ")
    assert (tmp_path / "out").read_text() == printed

    lines = command(generate_from, "--num_hypotheses=2", root=root).splitlines()
    rows = [line.split("\t") for line in lines]
    pairs = [(number, *each) for number, two in zip(NUMBERS, found, strict=True) for each in two]
    expected = sorted([*pairs, (2, "", 0.0), (5, "", 0.0)], key=lambda each: each[0])
    assert [(int(number), text) for number, _, text in rows] == [
        (number, one_line(text)) for number, text, _ in expected
    ]
    np.testing.assert_allclose([float(score) for _, score, _ in rows], [score for *_, score in expected], atol=1e-5)


def test_flags_of_beam_search_override_the_settings(pairs_run, command):
    root, model, params = pairs_run
    settings = BeamSettings(3, "gnmt", 2.0, 6, 4, 2, 1)
    ((best, *_),) = generate_texts(SourceDecoder(model, params, ALPHABET, 1), ALPHABET, ["b: h a"], settings, 12)
    found = command(
        *("--prompt=h  a", "--prefix=b: ", "--num_beams=3", "--penalty=gnmt", "--length_penalty=2", "--batch_size=1"),
        *("--max_new_tokens=6", "--min_new_tokens=4", "--no_repeat_ngram=2"),
        root=root,
    )
    assert found == one_line(best[0]) + "\n"


def test_outputs_are_sampled_with_a_temperature(pairs_run, command, monkeypatch):
    root, model, params = pairs_run
    sources = encode_sources(ALPHABET, READ[:2], 12)
    sampling = Sampling(temperature=0.9, top_k=5)
    drawn = SourceDecoder(model, params, ALPHABET, 2).sample(sources, sampling, 8, 4, 2)
    arguments = ("--prompt=a b c", "--prompt=h", "--temperature=0.9", "--top_k=5", "--seed=4", "--batch_size=3")
    batch_sizes, load = [], Generator.load
    monkeypatch.setattr(Generator, "load", lambda self, rows: batch_sizes.append(rows) or load(self, rows))
    found = command(*arguments, "--num_samples=2", root=root)
    assert batch_sizes == [3]  # of four outputs
    rows = [(source, sample, drawn[source - 1][sample - 1]) for source in (1, 2) for sample in (1, 2)]
    assert found == "".join(f"{source}\t{sample}\t{one_line(text)}\n" for source, sample, text in rows)


@pytest.mark.exhaustive
def test_outputs_start_with_a_prefix(pairs_run, command):
    """The model generates the rest of every output after the prefix."""
    root, model, params = pairs_run
    sources, start = encode_sources(ALPHABET, READ[:2], 12), ALPHABET.encode_batch(["ga"])[0]
    settings = BeamSettings(num_beams=2, length_penalty=0.6, max_new_tokens=6)
    vocabulary = vocabulary_of(ALPHABET)
    searched = beam_search(model, params, sources, settings, vocabulary, [start] * 2)
    arguments = ("--prompt=a b c", "--prompt=h", "--output_prefix=ga", "--max_new_tokens=6")
    found = command(*arguments, root=root).split("\n")
    assert found == [one_line(ALPHABET.decode(best.tokens)) for best, *_ in searched] + [""]
    assert found[0].startswith("ga") and found[1].startswith("ga") and max(map(len, found)) > 2

    keys = row_keys(7, np.arange(2), np.zeros(2))
    begins = [[vocabulary.bos_id, *start]] * 2
    drawn = Sampler(model, params, Sampling(), vocabulary, 4).generate(begins, keys, sources=sources)
    found = command(*arguments, "--temperature=1", "--seed=7", root=root).split("\n")
    assert found == ["ga" + one_line(ALPHABET.decode(each)) for each in drawn] + [""]


def test_model_of_span_corruption_reads_and_writes_extra_ids(pairs_run, command, tmp_path):
    root, model, params = pairs_run
    shutil.copytree(root, tmp_path / "run")
    values = PAIRS.to_dict()
    values["data"]["train"] = {"docs": {"kind": "embedded"}}
    values["data"]["tokenizer"]["extra_ids"] = 2
    values["objective"] = {"name": "span_corruption"}
    RunDirectory(tmp_path / "run").write_config(Config.from_dict(values))
    tokenizer = ALPHABET.with_extra_ids(2)
    tokenizer.save(tmp_path / "run" / "tokenizer")
    first, second = tokenizer.extra_id(0), tokenizer.extra_id(1)
    source = [*tokenizer.encode("a"), first, *tokenizer.encode(" b"), second, tokenizer.eos_id]
    settings, vocabulary = BeamSettings(num_beams=2, length_penalty=0.6, max_new_tokens=8), vocabulary_of(tokenizer)
    (best, *_), *_ = beam_search(model, params, [source], settings, vocabulary, [[first]])
    arguments = ("--prompt=a <extra_id_0> b<extra_id_1>", "--output_prefix=<extra_id_0>")
    found = command(*arguments, root=tmp_path / "run")
    assert found == one_line(tokenizer.decode_spelled(best.tokens)) + "\n" and found.startswith("<extra_id_0>")
    assert command(*arguments[:1], root=root) != found, "other tasks read it as ordinary text"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "there is no source; give --input=FILE or --prompt"),
        (("--input=/nowhere/in",), "--input=/nowhere/in cannot be read: No such file"),
        (("--input=IN", "--prompt=a"), "give either --input or --prompt, not both"),
        (("--input=IN", "--output=IN"), "--output=.*in would overwrite the file that --input reads"),
        (("--input=IN", "--output=/nowhere/out"), "--output=/nowhere/out cannot be written: No such file"),
        (("--input=IN", "--num_beams=0"), "num_beams=0 is invalid; it must be at least 1"),
        (("--input=IN", "--num_hypotheses=3"), "num_hypotheses=3 is invalid; it must be from 1 to num_beams=2"),
        (("--input=IN", "--penalty=none"), "penalty='none' is invalid; it must be one of"),
        (("--input=IN", "--max_new_tokens=17"), "max_new_tokens=17 exceeds the model's 16 positions"),
        (("--input=IN", "--temperature=1", "--max_new_tokens=16"), "16 positions .* at most 15"),
        (("--input=IN", "--top_k=3"), "--top_k applies only to sampling; give --temperature too"),
        (("--input=IN", "--num_samples=3"), "--num_samples applies only to sampling"),
        (
            ("--input=IN", "--temperature=1", "--penalty=gnmt"),
            "--penalty applies only to beam search, but --temperature selects sampling",
        ),
        (("--prompts_file=IN",), "--prompts_file applies only to models that continue text; give --input"),
        (("--input=IN", "--average=2"), "cannot average 2 checkpoints: the run has only 1"),
        (
            ("--input=IN", "--output_prefix=abcdefgh"),
            "--output_prefix: the prefix has 8 tokens, but outputs have at most 8; increase",
        ),
        (("--prompt=\udcff",), "text 1 is not valid UTF-8"),
    ],
)
def test_bad_input_for_an_encoder_decoder_is_refused_in_one_line(pairs_run, command, arguments, message):
    root, *_ = pairs_run
    with pytest.raises(UserError, match=message) as caught:
        command(*(each.replace("=IN", f"={root / 'in'}") for each in arguments), root=root)
    assert "\n" not in str(caught.value)


def test_a_link_to_the_input_is_not_replaced_either(pairs_run, command, tmp_path):
    root, *_ = pairs_run
    content = (root / "in").read_bytes()
    (tmp_path / "soft").symlink_to(root / "in")
    (tmp_path / "hard").hardlink_to(root / "in")
    for name in ("soft", "hard"):
        with pytest.raises(UserError, match=rf"--output=.*{name} would overwrite the file that --input reads"):
            command(f"--input={root / 'in'}", f"--output={tmp_path / name}", root=root)
    assert (root / "in").read_bytes() == content
    command(f"--input={root / 'in'}", f"--output={tmp_path / 'out'}", root=root)


def test_flags_without_effect_are_reported(pairs_run, command, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    command("--prompt=ab", "--max_new_tokens=1", "--temperature=0", "--top_k=3", "--repetition_penalty=1.1")
    because = "has no effect: with temperature 0, the most probable token is always chosen."
    assert sys.stderr.getvalue() == f"note: --top_k=3 {because}\n"
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    command("--prompt=a b", "--seed=3", root=pairs_run[0])
    assert sys.stderr.getvalue().startswith("note: --seed=3 has no effect: beam search involves no randomness.\n")


@pytest.mark.exhaustive
def test_encoder_decoder_from_training_to_its_outputs(tiny_pairs, call, tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    assert call("train.py", *tiny_pairs.flags(run, train__num_steps=8)).status == 0
    (tmp_path / "in").write_text("a b c\n\n" + "h " * 20 + "\n")
    done = call("lm.generate", f"--workdir={run}", f"--input={tmp_path / 'in'}", f"--output={out}", "--num_beams=2")
    assert done.status == 0, done.stderr
    assert done.stdout.startswith(f"written: {out}, 3 sources in")
    (warning,) = done.stderr.splitlines()
    assert warning == (
        "warning: 1 of 2 sources are longer than 24 tokens (config.data.source_length) and were truncated; the first "
        "is on line 3."
    )
    lines = out.read_text().split("\n")
    assert len(lines) == 4 and lines[1] == "" == lines[3]

    # Evaluation gives the same outputs, and empty ones for blank sources too.
    sources = [" " * number for number in range(12)] + [f"{a} {b} c" for a in "abcd" for b in "efg"]
    (tmp_path / "other.source").write_text("".join(f"{each}\n" for each in sources))
    (tmp_path / "other.target").write_text("".join(f"{each[::-1]}\n" for each in sources))
    flags = ["holdout_fraction=0.5", "holdout=hash"]
    done = call(
        *("eval.py", f"--workdir={run}", f"--config={tiny_pairs.config}:{tmp_path / 'other.source'}"),
        *(f"--config.data.{each}" for each in flags),
        *("--config.eval.generation.metrics=('exact_match',)", "--config.eval.generation.num_beams=2"),
    )
    assert done.status == 0, done.stderr
    (path,) = (run / "eval").glob("*/predictions-tiny_pairs*.jsonl")
    examples = [json.loads(line) for line in path.read_text().splitlines()]
    (tmp_path / "in").write_text("".join(f"{each['source']}\n" for each in examples))
    assert (
        call("lm.generate", f"--workdir={run}", f"--input={tmp_path / 'in'}", f"--output={out}", "--num_beams=2").status
        == 0
    )
    assert out.read_text().split("\n")[:-1] == [one_line(each["prediction"]) for each in examples]
    blank = [(each["prediction"], each["score"]) for each in examples if not each["source"]]
    assert blank and set(blank) == {("", 0.0)} and any(each["prediction"] for each in examples)


@pytest.mark.exhaustive
def test_flag_error_of_the_command_is_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "lm.generate", "--prompt=a", "--num_samples=0"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ") and "num_samples" in line
