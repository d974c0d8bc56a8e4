"""Bad input to whole commands: exit status 1, one line that names the culprit, and no written file is damaged."""

import gzip
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lm.checkpoints.checkpoints import Checkpoints

pytestmark = pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections


@pytest.fixture(scope="module")
def trained(tiny, launch, tmp_path_factory) -> Path:
    """A run of two steps with a checkpoint after each."""
    root = tmp_path_factory.mktemp("trained") / "run"
    process = launch("train.py", *tiny.flags(root, **SHORT))
    assert process.wait() == 0, process.stderr
    return root


SHORT = {"train__num_steps": 2, "optimizer__warmup_steps": 1, "checkpoint__every_steps": 1}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workdir=w"], "--config is missing"),
        (["--config=CONFIG"], "--workdir is missing"),
        (["--config=configs/quickstrat.py", "--workdir=w"], "there is no file configs/quickstrat.py"),
        (["--config=CONFIG", "--workdir=w", "now"], "'now' is not a flag"),
        (["--config=CONFIG", "--workdir=w", "--steps=5"], "'steps'"),
        (["--config=CONFIG", "--workdir=w", "--num_processes=two"], "num_processes"),
        (
            ["--config=CONFIG", "--workdir=w", "--coordinator=here", "--num_processes=2"],
            "--coordinator must be host:port",
        ),
        (["--config=CONFIG", "--workdir"], "Missing value for flag --workdir"),
        (["--config"], "--config=: no file is given"),
        (["--workdir=w", "--config.train.num_steps=5"], "--config=FILE.py"),
    ],
)
def test_bad_flags_of_training_are_refused(refused, tiny, flags, message):
    refused(message, "train.py", *(flag.replace("CONFIG", f"{tiny.config}:{tiny.text}") for flag in flags))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.num_step=5", "--config.train.num_step: there is no such setting; did you mean num_steps"),
        ("trian.num_steps=5", "--config.trian: there is no such setting; did you mean train"),
        ("train.num_steps.more=5", "train.num_steps is a single value"),
        ("train.num_steps=many", "train.num_steps"),
        ("train.num_steps=2.5", "train.num_steps"),
        ("train.batch_size=0", "config.train.batch_size: 0 is below the smallest allowed value, 1"),
        ("model.dropout=1.5", "config.model.dropout: 1.5 is above"),
        ("optimizer.learning_rate=nan", "config.optimizer.learning_rate: expected a finite number"),
        ("model.activation=swigul", "did you mean swiglu"),
        ("model.num_heads=3", "num_heads=3 does not divide d_model=16"),
        ("model.num_kv_heads=3", "config.model.num_kv_heads: 3 does not divide num_heads=2"),
        ("optimizer.warmup_steps=40", "config.optimizer.warmup_steps: 40 warm-up steps do not fit"),
        ("train.accumulation=5", "config.train.accumulation: 5 microbatches cannot evenly divide"),
        ("model.max_length=16", "config.model.max_length: 16 is less than"),
        ("data.holdout_fraction=0.0", "config.data.holdout_fraction: evaluation has no data"),
        ("data.train.text.kind=docx", "config.data.train.text.kind: 'docx' is not one of"),
        ("data.train.other.path=x", "other"),
        ("data.train.text.pth=x", "did you mean path"),
        ("data.tokenizer.kind=huggingface", "config.data.tokenizer.path"),
        ("mesh.tensor=3", "config.mesh: data=-1, fsdp=1, tensor=3 does not match the 8 devices"),
        ("mesh.data=4", "does not match the 8 devices"),
        ("train.batch_size=12", "config.train.batch_size: 12 rows"),
        ("eval.batch_size=4", "config.eval.batch_size: 4"),
        ("model.vocab_size=100", "config.model.vocab_size: 100 is smaller than the tokenizer's vocabulary"),
    ],
)
def test_bad_settings_are_refused(refused, tiny, tmp_path, override, message):
    refused(message, "train.py", *tiny.flags(tmp_path / "run"), f"--config.{override}")
    assert not Checkpoints(tmp_path / "run" / "checkpoints", read_only=True).steps()


TWO_SIDED = ["model.family=encoder_decoder", "objective.name=span_corruption"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.family=encoder_decoder"], "config.objective.name: 'causal' does not support model.family=encoder_dec"),
        (["objective.name=ul2"], "config.objective.name: 'ul2' does not support model.family=decoder; choose causal"),
        (["objective.name=seq2seq"], "config.objective.name: 'seq2seq' does not support model.family=decoder"),
        (["data.source_length=8"], "config.data.source_length: this setting is not read by objective.name=causal"),
        (
            ["model.num_encoder_layers=2"],
            "config.model.num_encoder_layers: this setting applies only to model.family=encoder_decoder",
        ),
        (["data.train.text.prefix=fix: "], "config.data.train.text.prefix: this setting applies only to pairs"),
        (
            ["data.separate_vocabularies=True"],
            "config.data.separate_vocabularies: this setting is not read by objective",
        ),
        (
            ["eval.generation.metrics=('bleu',)"],
            "config.eval.generation.metrics: this setting is not read by objective",
        ),
        (TWO_SIDED, "config.data.tokenizer.extra_ids: objective.name='span_corruption' needs tokens for masked spans"),
        ([*TWO_SIDED, "objective.name=ul2", "data.tokenizer.extra_ids=100"], "objective.name='ul2' needs 103"),
        ([*TWO_SIDED, "objective.name=seq2seq"], "config.data.train.text.target_path: name the file with the targets"),
        ([*TWO_SIDED, "objective.name=infiling"], "did you mean infilling"),
    ],
)
def test_settings_that_do_not_go_with_the_objective_are_refused(refused_settings, tiny, overrides, message):
    refused_settings(message, tiny, overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.family=decoder"], "config.objective.name: 'seq2seq' does not support model.family=decoder"),
        (["objective.name=span_corruption"], "train.reversal.target_path: this setting applies only to pairs"),
        (
            ["data.train.reversal.target_path="],
            "config.data.train.reversal.target_path: name the file with the targets",
        ),
        (
            ["data.train.reversal.pattern=x"],
            "config.data.train.reversal.target_path: name the file with the targets (or",
        ),
        (
            ["data.train.reversal.kind=jsonl"],
            "config.data.train.reversal.target_field: name the field that holds the target",
        ),
        (
            ["data.train.reversal.kind=embedded"],
            "config.data.train.reversal.kind: embedded does not support pairs; use",
        ),
        (["data.train.reversal.document=file"], "config.data.train.reversal.document: pairs in text files are read"),
        (["data.holdout=tail"], "config.data.holdout: pairs can only be held out by hash"),
        (["data.separate_vocabularies=True"], "config.model.share_embeddings: two vocabularies cannot share"),
        (
            ["model.positions=relative", "model.relative_max_distance=16"],
            "config.model.relative_max_distance: the distance must be",
        ),
        (["model.max_length=20"], "config.model.max_length: 20 is less than data.sequence_length=32"),
        (["model.window=8"], "config.model.window: an encoder-decoder does not support a sliding window"),
        (
            ["model.attention=splash"],
            "config.model.attention: 'splash' requires data.sequence_length to be a multiple of 128",
        ),
        (["eval.generation.num_beams=0"], "config.eval.generation.num_beams: 0 is below the smallest"),
        (["eval.generation.num_beams=100000"], "config.eval.generation.num_beams: 100000 is above the largest"),
        (["eval.generation.length_penalty=9"], "config.eval.generation.length_penalty: 9.0 is above the largest"),
        (["eval.generation.metrics=('blue',)"], "config.eval.generation.metrics: 'blue' is not one of bleu, chrf"),
        (["eval.generation.max_new_tokens=33"], "config.eval.generation.max_new_tokens: 33 exceeds the model's"),
        (
            ["eval.generation.min_new_tokens=33"],
            "config.eval.generation.min_new_tokens: this minimum exceeds max_new_tokens",
        ),
        (["train.patience=2", "checkpoint.best_metric=valid/bleu"], "this run does not compute 'valid/bleu'; choose"),
        (
            ["checkpoint.best_metric=valid/bits_per_byte"],
            "config.checkpoint.best_metric: this run does not compute 'valid/bits_per_byte'",
        ),
        (["checkpoint.best_metric=valid/reversal/loss"], "valid/ followed by one of loss, perplexity, token_accuracy."),
        (["objective.label_smoothing=0.95"], "config.objective.label_smoothing: 0.95 is above the largest"),
        (["objective.label_smoothing_over=other"], "did you mean others"),
    ],
)
def test_bad_settings_of_pairs_are_refused(refused_settings, tiny_pairs, overrides, message):
    refused_settings(message, tiny_pairs, overrides)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("config.train.num_steps = (5", "FILE, line 16: SyntaxError"),
        ("config.train.num_step = 5", "config.train.num_step: there is no such setting; did you mean num_steps"),
        ("config.train.num_steps = 'five'", "FILE, line 16: TypeError: Could not override field 'num_steps'"),
        ("config.model.activation = undefined", "FILE, line 16: NameError: name 'undefined'"),
        ("config.seed = {}['seed']", "FILE, line 16: KeyError: 'seed'"),
        ("raise ValueError('two\\nlines')", "FILE, line 16: ValueError: two lines"),
        ("open('nothing.json')", "FILE, line 16: FileNotFoundError"),
        ("config = None", "FILE: get_config() returned None; end this function with `return config`"),
        ("config = 5", "FILE: get_config() returned 5"),
        ("config.data.train.text = 'input.txt'", "FILE, line 16: TypeError: Could not override field 'text'"),
        ("del config.data.train.text", "config.data.train: no data source is given"),
        ("config.eval.prompts = (1,)", "config.eval.prompts: expected a tuple of strings"),
    ],
)
def test_broken_config_files_are_refused(refused, tiny, tmp_path, change, message):
    path = tmp_path / "changed.py"
    path.write_text(tiny.config.read_text().replace("    return config", f"    {change}\n    return config"))
    refused(
        message.replace("FILE", str(path)), "train.py", f"--config={path}:{tiny.text}", f"--workdir={tmp_path / 'run'}"
    )
    assert sorted(tmp_path.iterdir()) == [path], "nothing is written, not even bytecode"


def test_files_without_a_config_are_refused(refused, tiny, tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    refused(f"{tiny.text}, line 1: SyntaxError", "train.py", f"--config={tiny.text}", workdir)
    refused("has no attribute 'get_config'", "train.py", f"--config={Path(__file__)}", workdir)
    refused(
        "configs/quickstart.py: TypeError: get_config() takes", "train.py", "--config=configs/quickstart.py:x", workdir
    )


JSONL = '{"text": "one"}\n{"text": "two"\n{"text": "three"}\n'


@pytest.mark.parametrize(
    ("name", "content", "changes", "message"),
    [
        ("absent.txt", None, {}, "absent.txt: there is no such file"),
        ("*.text", None, {}, "no file matches this pattern"),
        ("", None, {}, "is a directory"),
        ("empty.txt", b"", {}, "contains no documents"),
        ("latin.txt", "one\ncaf\xe9\n".encode("latin-1"), {}, "the text is not valid utf-8 at line 2, byte 7"),
        ("text.txt", b"one\n", {"encoding": "utf-9"}, "encoding 'utf-9' is unknown"),
        ("short.txt", b"one\ntwo\nthree\nfour\nfive\nsix\n", {}, "one row needs 33"),
        ("single.txt", b"one line\n" * 100, {}, "no documents of text"),
        ("cut.txt.gz", gzip.compress(b"one\n" * 1000, mtime=0)[:-10], {}, "the file is damaged or not a gzip file"),
        ("a.jsonl", JSONL.encode(), {"kind": "jsonl"}, "a.jsonl, line 2: this is not valid JSON"),
        ("a.jsonl", b'{"body": "one"}\n', {"kind": "jsonl"}, "there is no field 'text'; available fields: 'body'"),
        ("a.jsonl", b'{"text": 1}\n', {"kind": "jsonl"}, "should hold text"),
        ("a.tsv", b"id\tbody\n1\tone\n", {"kind": "tsv"}, "there is no field 'text'; available fields: 'id', 'body'"),
        ("a.tsv", b"id\ttext\n1\n", {"kind": "tsv"}, "a.tsv, line 2: this row has 1 fields"),
        ("a.parquet", b"PAR1 not really", {"kind": "parquet"}, "a.parquet is not a readable Parquet file"),
    ],
)
def test_bad_data_files_are_refused(refused, tiny, tmp_path, name, content, changes, message):
    folder = tmp_path / "data"
    folder.mkdir()
    if content is not None:
        (folder / name).write_bytes(content)
    overrides = [f"--config.data.train.text.{key}={value}" for key, value in changes.items()]
    flags = [f"--config={tiny.config}:{folder / name}", f"--workdir={tmp_path / 'run'}", *overrides]
    refused(message, "train.py", *flags, keeping=folder)


LINES = b"one two\nthree four\nfive six\nseven eight\nnine ten\neleven twelve\n"


@pytest.mark.parametrize(
    ("source", "target", "changes", "message"),
    [
        (LINES, LINES[:-14], {}, "text.source has 6 lines, but "),
        (LINES, LINES + b"one more\n", {}, "text.target has 7; line i of one is paired with line i of the other"),
        (LINES, None, {}, "text.target: there is no such file"),
        (LINES, b"", {}, "text.source has 6 lines, but "),
        (b"", b"", {}, "are both empty"),
        (LINES, b"one\ncaf\xe9\n", {}, "text.target: the text is not valid utf-8 at line 2"),
        (LINES, LINES, {"data__pairs__drop_identical": True}, "config.data.train: no pairs of reversal"),
        (LINES, LINES, {"data__holdout_fraction": 1e-9}, "are held out for validation; there are too few"),
        (LINES, LINES, {"data__pairs__target_script": "KLINGON"}, "config.data.pairs.target_script: 'KLINGON'"),
        (LINES, LINES, {"data__pairs__overlong": "drop", "data__source_length": 4}, "every pair is longer than a row"),
        (
            LINES,
            LINES,
            {"data__separate_vocabularies": True, "model__share_embeddings": False},
            "config.data.separate_vocabularies: the tokenizer of each side is trained on the text of that side",
        ),
    ],
)
def test_bad_files_of_pairs_are_refused(refused, tiny_pairs, tmp_path, source, target, changes, message):
    folder = tmp_path / "data"
    folder.mkdir()
    for side, content in (("source", source), ("target", target)):
        if content is not None:
            (folder / f"text.{side}").write_bytes(content)
    _, *overrides = tiny_pairs.flags(tmp_path / "run", **{"data__holdout_fraction": 0.3, **changes})
    refused(message, "train.py", f"--config={tiny_pairs.config}:{folder / 'text.source'}", *overrides, keeping=folder)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(?P<source>.*", "config.data.train.reversal.pattern: '(?P<source>.*' is not a regular expression"),
        ("(?P<source>.*) => (.*)", "' has no group named target"),
        ("IN: (?P<source>.*) OUT: (?P<target>.*)", "text.source, line 1: pattern"),
    ],
)
def test_bad_patterns_of_pairs_are_refused(refused, tiny_pairs, tmp_path, pattern, message):
    changes = {"data__train__reversal__target_path": "", "data__train__reversal__pattern": pattern}
    refused(message, "train.py", *tiny_pairs.flags(tmp_path / "run", **changes))


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("huggingface", b'{"model": ', "not a usable tokenizer.json"),
        ("huggingface", None, "there is no file"),
        ("sentencepiece", b"not a model", "not a usable SentencePiece model"),
    ],
)
def test_bad_tokenizer_files_are_refused(refused, tiny, tmp_path, kind, content, message):
    path = tmp_path / "tokenizer.file"
    if content is not None:
        path.write_bytes(content)
    changes = {"data__tokenizer__kind": kind, "data__tokenizer__path": path}
    refused(message, "train.py", *tiny.flags(tmp_path / "run", **changes))


@pytest.mark.exhaustive
def test_unusable_run_directories_are_refused(refused, tiny, trained, tmp_path):
    (tmp_path / "file").write_text("mine")
    refused("file is not a directory", "train.py", *tiny.flags(tmp_path / "file"), keeping=tmp_path)
    refused("is not a directory, or one of its parents is a file", "train.py", *tiny.flags(tmp_path / "file" / "run"))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("mine")
    refused("holds 'thesis.tex' but no config.json", "train.py", *tiny.flags(tmp_path / "foreign"), keeping=tmp_path)
    changes = {**SHORT, "model__d_model": 32, "optimizer__learning_rate": 0.5}
    flags = tiny.flags(trained, **changes)
    refused("model.d_model: 16 -> 32; ", "train.py", *flags, keeping=trained)
    refused("optimizer.learning_rate: 0.001 -> 0.5", "train.py", *flags, keeping=trained)


def test_a_run_directory_in_use_is_refused(refused, tiny, trained):
    code = "import fcntl, sys; file = open(sys.argv[1], 'r+'); fcntl.lockf(file, fcntl.LOCK_EX); print(); input()"
    arguments = [sys.executable, "-c", code, trained / ".lock"]
    holder = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    holder.stdout.readline()
    refused("another process is training in this directory", "train.py", *tiny.flags(trained, **SHORT), keeping=trained)
    holder.communicate(b"\n")


@pytest.mark.parametrize("command", ["train.py", "eval.py", "lm.generate"])
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("config.json", "config.json is damaged"),
        ("tokenizer/*", "tokenizer"),
        ("checkpoints/*/record/metadata", "no checkpoint is intact (damaged: 2, 1)"),
    ],
)
def test_damaged_runs_are_refused(refused, tiny, trained, tmp_path, command, broken, message):
    root = tmp_path / "run"
    shutil.copytree(trained, root)
    for path in root.glob(broken):
        path.write_bytes(path.read_bytes()[:-5])
    flags = tiny.flags(root, **SHORT) if command == "train.py" else [f"--workdir={root}"]
    prompt = ["--prompt=a"] if command == "lm.generate" else []
    refused(message, command, *flags, *prompt, keeping=root)


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        ("eval.py", [], "--workdir is missing"),
        ("eval.py", ["--workdir=nowhere"], "nowhere: there is no such run directory"),
        ("eval.py", ["--workdir=RUN", "--step=7"], "no checkpoint for step 7; choose one of 1, 2"),
        ("eval.py", ["--workdir=RUN", "--step=last"], "--step=last"),
        ("eval.py", ["--workdir=RUN", "--split=test"], "there is no test split"),
        ("eval.py", ["--workdir=RUN", "--text=nothing.txt"], "nothing.txt: there is no such file"),
        ("eval.py", ["--workdir=RUN", "--stride=33"], "config.eval.stride: 33 exceeds data.sequence_length=32"),
        ("lm.generate", ["--prompt=a"], "--workdir is missing"),
        ("lm.generate", ["--workdir=nowhere", "--prompt=a"], "nowhere: there is no such run directory"),
        ("lm.generate", ["--workdir=RUN"], "there is no prompt"),
        ("lm.generate", ["--workdir=RUN", "--prompt=a", "--step=7"], "no checkpoint for step 7"),
        ("lm.generate", ["--workdir=RUN", f"--prompt={'a ' * 40}"], "81"),
        ("lm.generate", ["--workdir=RUN", "--prompt=a", "--temperature=-1"], "temperature"),
        ("lm.generate", ["--workdir=RUN", "--prompts_file=nothing.txt"], "--prompts_file=nothing.txt cannot be read"),
        ("lm.data.show", [], "--config=FILE.py is missing"),
    ],
)
def test_bad_flags_of_other_commands_are_refused(refused, trained, command, flags, message):
    refused(message, command, *(flag.replace("RUN", str(trained)) for flag in flags), keeping=trained)


@pytest.fixture(scope="module")
def trained_pairs(tiny_pairs, launch, tmp_path_factory) -> Path:
    """The same for pairs."""
    root = tmp_path_factory.mktemp("trained_pairs") / "run"
    process = launch("train.py", *tiny_pairs.flags(root, **SHORT))
    assert process.wait() == 0, process.stderr
    return root


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--text=text.txt"], "--text: RUN needs pairs of texts; specify them in data.test of a config"),
        (["--average=3"], "cannot average 3 checkpoints: the run has only 2; train with a larger"),
        (["--average=2", "--step=1"], "cannot average 2 checkpoints: the run has only 1 up to step 1"),
        (["--average=0"], "--average must be at least 1, not 0"),
        (["--num_beams=-1"], "--num_beams must be at least 1, or 0 to use the value in the config, not -1"),
        (["--num_beams=100000"], "config.eval.generation.num_beams: 100000 is above the largest"),
        (["--length_penalty=nan"], "config.eval.generation.length_penalty: expected a finite number"),
        (["--split=test"], "there is no test split"),
        (["--split=valid/other"], "valid has no data source named 'other'; choose one of reversal"),
    ],
)
@pytest.mark.exhaustive
def test_bad_flags_of_evaluations_of_pairs_are_refused(refused, trained_pairs, flags, message):
    argv = ["eval.py", f"--workdir={trained_pairs}", *flags]
    refused(message.replace("RUN", str(trained_pairs)), *argv, keeping=trained_pairs)


def test_a_process_prints_the_refusal_to_stderr_only(tiny, launch, tmp_path):
    process = launch("train.py", *tiny.flags(tmp_path / "run"), "--config.train.num_step=5")
    assert process.wait() == 1
    assert process.stderr == (
        "error: --config.train.num_step: there is no such setting; "
        "did you mean num_steps or num_epochs or max_bad_steps?\n"
    )
    assert process.stdout == "" and not (tmp_path / "run").exists()
