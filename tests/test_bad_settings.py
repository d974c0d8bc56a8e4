"""Settings that train.py refuses: unknown, wrong or incompatible values, and broken config files."""

from pathlib import Path

import pytest

from lm.checkpoints.checkpoints import Checkpoints

pytestmark = pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections


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
        ("train.accumulation=5", "config.train.accumulation: batch_size="),
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
        (
            ["data.tokenizer.kind=words", "data.tokenizer.line_breaks=True", "data.cleaning.whitespace=collapse"],
            "config.data.tokenizer.line_breaks: data.cleaning.whitespace='collapse' removes all line breaks",
        ),
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
        (
            [f"{name}=16384" for name in ("data.sequence_length", "data.source_length", "model.max_length")]
            + ["model.attention=splash", "model.positions=relative"],
            "config.model.attention: 'splash' supports relative positions only up to 8192 tokens; data.sequence_length",
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
