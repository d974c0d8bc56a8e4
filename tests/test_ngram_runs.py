"""n-gram models in whole runs: fitted once, evaluated, used by the commands, exported, imported and mixed."""

import gzip
import json
import shutil
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from lm.batch import Output
from lm.errors import UserError
from lm.models.mixture import Mixture
from lm.runs.arpa import export_arpa, import_arpa
from lm.runs.directory import RunDirectory
from lm.runs.mixing import Mix, check_mixable, cut_contexts
from tests.run_helpers import config_of, train_here
from tests.test_stateful import STATEFUL

# Resets what the config file of the tests changes for the Transformer.
NGRAM = {
    "model__architecture": "ngram",
    "model__num_layers": 6,
    "model__d_model": 384,
    "model__num_heads": 6,
    "model__dropout": 0.0,
    "optimizer__warmup_steps": -1,
    "optimizer__ema_decay": 0.0,
    "train__num_steps": -1,
    "checkpoint__every_steps": 500,
    "checkpoint__keep_latest": 2,
    "eval__every_steps": 500,
    "log__every_steps": 10,
    "model__ngram__order": 3,
    "model__ngram__smoothing": "jelinek_mercer",
}


def loss_of(root, step=1, stem="results"):
    return json.loads((root / f"eval/{step}/{stem}.json").read_text())["metrics"]["loss"]


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    root = tmp_path_factory.mktemp("ngram") / "run"
    assert train_here(tiny, root, **NGRAM) == 0
    return root


def test_a_run_is_fitted_once_and_used_by_the_commands(tiny, trained, call, capsys):
    fitted = json.loads((trained / "checkpoints/1/record/metadata").read_text())["content"]["metadata"]["fitted"]
    assert len(fitted["lambdas"]) == 3 and all(0 < each < 1 for each in fitted["lambdas"])
    record = (trained / "checkpoints/1").stat().st_mtime_ns
    capsys.readouterr()
    assert train_here(tiny, trained, **NGRAM) == 0
    assert "Already done" in capsys.readouterr().out
    assert (trained / "checkpoints/1").stat().st_mtime_ns == record
    loss = loss_of(trained)
    assert 0.1 < loss < 1.5
    outcome = call("eval.py", f"--workdir={trained}")
    assert outcome.status == 0 and loss_of(trained) == pytest.approx(loss, rel=1e-6), outcome.stderr
    outcome = call("lm.generate", f"--workdir={trained}", "--prompt=a qu", "--max_new_tokens=3", "--temperature=0")
    assert outcome.status == 0 and outcome.stdout.startswith("a quick"), outcome.stderr
    outcome = call("lm.predict", f"--workdir={trained}", "--text=a quick", "--pooling=mean")
    assert outcome.status == 1 and "an n-gram model has no token vectors" in outcome.stderr
    with pytest.raises(UserError, match=r"another config \(model.ngram.order: 3 -> 2\)"):
        train_here(tiny, trained, **NGRAM | {"model__ngram__order": 2})


def test_every_token_has_its_whole_context_whatever_the_length_of_windows(tiny, trained, tmp_path):
    assert train_here(tiny, tmp_path / "run", **NGRAM, data__sequence_length=16) == 0
    assert loss_of(tmp_path / "run") == pytest.approx(loss_of(trained), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__d_model": 64}, "config.model.d_model: this setting is not read by model.architecture=ngram, only by"),
        ({"model__embedding_from": "a.txt"}, "config.model.embedding_from: this setting is not read by model.arch"),
        ({"train__num_steps": 5}, "config.train.num_steps: this setting is not read by model.architecture=ngram"),
        ({"objective__name": "classification"}, "model.architecture=ngram learns from whole documents; choose causal"),
        (
            {"model__family": "encoder", "objective__name": "masked"},
            "model.architecture=ngram does not support 'encoder'",
        ),
        ({"model__ngram__lambdas": (0.5,)}, "config.model.ngram.lambdas: give 3 weights from 0 to 1, one per order"),
        ({"model__ngram__fallback_discounts": (0.5, 3, 1)}, "three discounts, for the counts 1, 2 and 3, each from 0"),
        ({"data__sequence_length": 2}, "config.data.sequence_length: 2 is less than model.ngram.order=3"),
        (
            {"eval__stride": 31},
            "config.eval.stride: windows that begin every 31 tokens truncate the contexts of model.ngram",
        ),
        ({"model__ngram__sizes": (5,)}, "config.model.ngram.sizes: these numbers are counted in the training data"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tiny, changes, message):
    with pytest.raises(UserError) as error:
        config_of(tiny, **NGRAM | changes)
    assert message in str(error.value)


def test_models_that_cannot_be_fitted_are_refused_before_anything_is_built(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("lm.training.loop.prepare", None)
    message = "config.model.ngram.smoothing: such a model cannot be trained, only imported"
    with pytest.raises(UserError, match=message):
        train_here(tiny, tmp_path / "run", **NGRAM | {"model__ngram__smoothing": "arpa"})
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(UserError, match="is fitted by one process; start only one"):
        train_here(tiny, tmp_path / "run", **NGRAM)
    assert not (tmp_path / "run").exists()


def test_an_order_above_the_longest_document_is_refused_and_leaves_nothing(tiny, tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"{number}\n" for number in range(10, 99)))
    changes = NGRAM | {"model__ngram__order": 7, "data__train__text__path": str(tmp_path / "text.txt")}
    with pytest.raises(UserError, match="no document has 5 tokens, including its start and end tokens, so 4 is"):
        train_here(tiny, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_an_arpa_file_of_a_run_becomes_a_run_with_the_same_loss(trained, tmp_path, call):
    arpa, imported = tmp_path / "model.arpa", tmp_path / "imported"
    outcome = call("lm.ngram", "export", f"--workdir={trained}", f"--out={arpa}")
    assert outcome.status == 0 and "n-grams of orders 1 to 3" in outcome.stdout, outcome.stderr
    export_arpa(trained, tmp_path / "m.arpa.gz")
    assert (tmp_path / "m.arpa.gz").read_bytes()[:8] == b"\x1f\x8b\x08\0\0\0\0\0"  # no name and no time
    assert gzip.decompress((tmp_path / "m.arpa.gz").read_bytes()) == arpa.read_bytes()
    flags = f"--arpa={tmp_path / 'm.arpa.gz'}", f"--workdir={imported}", f"--like={trained}"
    outcome = call("lm.ngram", "import", *flags)
    assert outcome.status == 0, outcome.stderr
    outcome = call("eval.py", f"--workdir={imported}")
    assert outcome.status == 0 and loss_of(imported) == pytest.approx(loss_of(trained), rel=1e-5), outcome.stderr
    outcome = call("eval.py", f"--workdir={trained}", f"--mix={imported}:0.5")
    mixed = loss_of(trained, stem="results-mix_imported_0.5")
    assert outcome.status == 0 and mixed == pytest.approx(loss_of(trained), rel=1e-5), outcome.stderr
    outcome = call("lm.ngram", "import", *flags)
    assert outcome.status == 1 and "already exists; choose a new name" in outcome.stderr
    # Without --like, the words of the file are words of text.
    outcome = call("lm.ngram", "import", f"--arpa={arpa}", f"--workdir={tmp_path / 'words'}")
    assert outcome.status == 0, outcome.stderr
    outcome = call(
        "lm.generate", f"--workdir={tmp_path / 'words'}", "--prompt=a ␣ q", "--max_new_tokens=1", "--temperature=0"
    )
    assert outcome.status == 0 and outcome.stdout.startswith("a ␣ q u"), outcome.stderr


def test_bad_arpa_files_and_runs_are_refused_in_one_line_and_nothing_is_written(tiny, trained, tmp_path, call):
    good = "\\data\\\nngram 1=3\n\n\\1-grams:\n-1\t<s>\n-1\t</s>\n-1\tabc\n\n\\end\\\n"
    files = {
        "cut": (good[:-7].encode(), "is incomplete"),
        "latin": (good.replace("abc", "é").encode("latin-1"), "is not UTF-8"),
    }
    files |= {
        "sums": (good.encode(), "the probabilities of the 1-grams sum to 0.2, not to 1"),
        "context": (
            good.replace("=3\n", "=3\nngram 2=1\n")
            .replace("-1\t<s>", "-1\t<s>\t0.5")
            .replace("-1\t", "-0.30103\t")
            .replace("\\end", "\\2-grams:\n-0.30103\t<s> abc\n\n\\end")
            .encode(),
            "the probabilities after '<s>' sum to 2.081, not to 1",
        ),
    }
    files |= {"like": (good.encode(), "1 words, such as 'abc', are not in the vocabulary of")}
    files |= {
        "broken.gz": (gzip.compress(good.encode())[:-12], "damaged or not a gzip file"),
        "empty": (b"", "expected \\data\\"),
    }
    for name, (content, message) in files.items():
        (tmp_path / name).write_bytes(content)
        like = [f"--like={trained}"] if name == "like" else []
        outcome = call("lm.ngram", "import", f"--arpa={tmp_path / name}", f"--workdir={tmp_path / 'new'}", *like)
        assert outcome.status == 1 and message in outcome.stderr, (name, outcome.stderr)
        assert outcome.stderr.count("\n") == 1 and str(tmp_path / name) in outcome.stderr
        assert not (tmp_path / "new").exists()
    assert train_here(tiny, tmp_path / "add", **NGRAM | {"model__ngram__smoothing": "add_k"}) == 0
    outcome = call("lm.ngram", "export", f"--workdir={tmp_path / 'add'}", f"--out={tmp_path / 'out'}")
    assert outcome.status == 1 and "smoothing='add_k' shares probability equally" in outcome.stderr
    assert not (tmp_path / "out").exists()


def test_an_import_like_a_neural_run_gives_every_token_its_whole_context(tiny, trained, tmp_path):
    run = RunDirectory(tmp_path / "neural")
    run.write_config(config_of(tiny, eval__every_steps=7))
    shutil.copytree(trained / "tokenizer", tmp_path / "neural" / "tokenizer")
    export_arpa(trained, tmp_path / "m.arpa")
    import_arpa(tmp_path / "m.arpa", tmp_path / "imported", tmp_path / "neural")
    assert run.load_config().eval.stride == 32
    assert RunDirectory(tmp_path / "imported").load_config().eval.stride == 30  # 3-grams in windows of 32


class Fixed:
    """A model whose logits are its parameters."""

    def apply(self, variables, batch, *, train=False):
        return Output(variables["params"])


def test_a_mixture_interpolates_probabilities():
    own, other = np.random.default_rng(0).normal(size=(2, 1, 4, 5)).astype(np.float32)
    params = {"own": jnp.asarray(own), "other": jnp.asarray(other[..., :4]), "weight": jnp.float32(0.3)}
    logits = Mixture(Fixed(), Fixed()).apply({"params": params}, SimpleNamespace()).logits

    def shares(x):
        return np.exp(x) / np.exp(x).sum(-1, keepdims=True)

    wanted = 0.7 * shares(own) + 0.3 * np.pad(shares(other[..., :4]), ((0, 0), (0, 0), (0, 1)))
    np.testing.assert_allclose(np.exp(logits), wanted, rtol=1e-5)


@pytest.mark.exhaustive
def test_a_neural_run_and_an_ngram_run_are_mixed_in_both_directions(tiny, trained, tmp_path, call):
    short = {"train__num_steps": 8, "optimizer__warmup_steps": 0, "optimizer__ema_decay": 0.0, "eval__stride": 30}
    neural = tmp_path / "neural"
    assert train_here(tiny, neural, **short) == 0
    outcome = call("eval.py", f"--workdir={trained}", f"--mix={neural}:0.25")
    assert outcome.status == 0 and "run + 0.25 neural" in outcome.stdout, outcome.stderr
    one = loss_of(trained, stem="results-mix_neural_0.25")
    outcome = call("eval.py", f"--workdir={neural}", f"--mix={trained}:0.75", "--step=8")
    assert outcome.status == 0 and loss_of(neural, 8, "results-mix_run_0.75") == pytest.approx(one, rel=1e-5)
    assert one < 0.75 * loss_of(trained) + 0.25 * loss_of(neural, 8)  # the logarithm is concave
    outcome = call("eval.py", f"--workdir={neural}", f"--mix={trained}")
    assert outcome.status == 0 and "the best weight on the validation split is" in outcome.stdout, outcome.stderr
    details = json.loads((neural / "eval/8/results-mix_run.json").read_text())["mix"]
    assert details["tuned_on"] == "the validation split" and 0.5 < details["weight"] <= 1
    tuned = loss_of(neural, 8, "results-mix_run")
    assert tuned <= min(one, loss_of(trained)) + 1e-4


def test_runs_that_predict_other_tokens_are_not_mixed(tiny, tiny_labels):
    mix, own, stateful = Mix.of("runs/b:0.5"), config_of(tiny, **NGRAM), config_of(tiny, **STATEFUL)
    for other, fingerprints, length, message in (
        (own, ("a", "b"), 32, "the tokenizers of the two runs differ"),
        (config_of(tiny_labels), ("a", "a"), 32, "objective.name=classification does not score every token"),
        (config_of(tiny), ("a", "a"), 64, "its model has 32 positions, but rows have 64 tokens; evaluate that run"),
    ):
        with pytest.raises(UserError, match=message):
            check_mixable(mix, own, other, fingerprints, length)
    for runs in ((own, stateful), (stateful, own)):
        with pytest.raises(UserError, match="--mix=runs/b: one of the two runs carries its state between windows"):
            check_mixable(mix, *runs, ("a", "a"), 32)
    check_mixable(mix, own, own, ("a", "a"), 64)  # an n-gram model has no positions


def test_windows_that_cut_the_contexts_of_the_other_run_are_reported(tiny):
    neural, ngram = config_of(tiny), config_of(tiny, **NGRAM)
    order = ngram.model.ngram.order
    assert cut_contexts(ngram, neural) == cut_contexts(ngram, ngram) == ""
    assert cut_contexts(neural, ngram) == (
        f"windows that begin every 32 tokens truncate some contexts of that run; --stride={32 - order + 1} would not"
    )


@pytest.mark.parametrize("text", ["runs/a:0", "runs/a:1.5", "runs/a:-1"])
def test_weights_outside_0_to_1_are_refused(text):
    with pytest.raises(UserError, match="must be between 0 and 1"):
        Mix.of(text)
    assert Mix.of("runs/a") == Mix.of("runs/a") and Mix.of("runs/a:b/c").weight is None


@pytest.mark.parametrize("text", ["runs/a:", "runs/a:0,3", "runs/a:.3x"])
def test_weights_that_are_no_numbers_are_refused(text):
    with pytest.raises(UserError, match=f"--mix={text}: .* is not a number; write RUN:WEIGHT, e.g. runs/a:0.3"):
        Mix.of(text)
    assert Mix.of("runs:1/a").root.name == "a"
