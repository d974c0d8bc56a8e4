"""The worked examples of docs/extending.md run, and the documentation names files that exist."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import code_map
from lm.config import SourceConfig
from lm.data.reading import FORMATS, open_reader
from lm.data.reading.readers import READERS
from lm.evaluation import METRICS
from lm.evaluation.text_metrics import TEXT_METRICS
from lm.evaluation.tokenisation import Tokenisation
from lm.models.layers import ACTIVATIONS
from lm.tasks import TASKS
from lm.training.optimizers import OPTIMIZERS
from tests.run_helpers import train_here

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FEW_STEPS = {"train__num_steps": 2, "optimizer__warmup_steps": 0, "optimizer__decay_steps": 2, "eval__every_steps": 2}


def example(heading: str) -> dict:
    """Returns the names that the first code block of a section of docs/extending.md defines."""
    _, _, section = (ROOT / "docs/extending.md").read_text().partition(f"\n## {heading}\n")
    block = re.search(r"```python\n(.*?)```", section, flags=re.S)
    assert block, heading
    names: dict = {"__name__": "docs"}
    exec(block[1], names)
    return names


def results(root: Path) -> dict:
    return json.loads((root / "eval/2/results.json").read_text())["metrics"]


@pytest.mark.exhaustive
def test_task_example_trains_and_is_shown(tiny, tmp_path, monkeypatch, call):
    monkeypatch.setitem(TASKS, "unshuffle", example("A task")["Unshuffle"]())
    changes = {"objective__name": "unshuffle", "model__family": "encoder_decoder", "data__source_length": 32}
    assert train_here(tiny, tmp_path / "run", **FEW_STEPS, **changes) == 0
    assert 0 < results(tmp_path / "run")["nll"] < 7
    flags = [f"--config.{name.replace('__', '.')}={value}" for name, value in changes.items()]
    outcome = call("lm.data.show", f"--config={tiny.config}:{tiny.text}", "--n=1", *flags)
    assert outcome.status == 0 and "source" in outcome.stdout, outcome.stderr


@pytest.mark.exhaustive
def test_metric_example_is_computed_and_shown(tiny_pairs, tmp_path, monkeypatch):
    metric = example("A metric")["length_ratio"]
    references = [("a b c",), ("d",)]
    tokens = Tokenisation.of(references, "auto")
    values, _ = metric.score(["a b", "c"], references, tokens)
    assert values == {"length_ratio": 75.0}
    monkeypatch.setitem(TEXT_METRICS, metric.name, metric)
    monkeypatch.setitem(METRICS, metric.name, metric.gives[0])
    changes = {"eval__generation__metrics": ("length_ratio",), "eval__generation__max_new_tokens": 4}
    assert train_here(tiny_pairs, tmp_path / "run", **FEW_STEPS, **changes) == 0
    assert results(tmp_path / "run")["length_ratio"] >= 0
    assert "length ratio" in (tmp_path / "run/eval/2/results.md").read_text()


def test_optimizer_and_activation_examples_train(tiny, tmp_path, monkeypatch):
    activation = example("A norm, an activation")["squared_relu"]
    np.testing.assert_array_equal(activation.function(jnp.array([-1.0, 3.0])), [0, 9])
    monkeypatch.setitem(ACTIVATIONS, "squared_relu", activation)
    monkeypatch.setitem(OPTIMIZERS, "nadamw", example("An optimizer, a schedule")["nadamw"])
    changes = {"optimizer__name": "nadamw", "model__activation": "squared_relu"}
    assert train_here(tiny, tmp_path / "run", **FEW_STEPS, **changes) == 0
    assert 0 < results(tmp_path / "run")["loss"] < 7


@pytest.mark.parametrize(("kind", "found"), [("documents", "a b"), ("labels", "x")])
def test_format_example_serves_every_reader(tmp_path, monkeypatch, kind, found):
    monkeypatch.setitem(FORMATS, "json", example("A data format")["JsonArray"])
    (tmp_path / "data.json").write_text('[{"text": "a b", "label": "x"}]')
    label = {} if kind == "documents" else {"label_field": "label"}
    source = SourceConfig(kind="json", path=str(tmp_path / "data.json"), **label)
    (raw,) = open_reader(source, READERS[kind]).iterate()
    assert (raw if kind == "documents" else raw.label) == found


def test_optax_still_has_what_the_optimizer_example_uses():
    """The direction of its first step by hand: Nesterov momentum with bias correction (Dozat 2016)."""
    state = optax.scale_by_adam(0.9, 0.999, 0.0, nesterov=True)
    updates, _ = state.update(jnp.array([0.5]), state.init(jnp.zeros(1)))
    expected = (0.9 * 0.05 / (1 - 0.9**2) + 0.1 * 0.5 / (1 - 0.9)) / 0.5
    np.testing.assert_allclose(jax.device_get(updates), [expected], rtol=1e-5)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_files_that_exist(page):
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    files = re.findall(r"`((?:lm|tests|docs|benchmarks|configs|results|launch)/[\w/]+\.(?:py|md|json))`", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [file for file in files if not (ROOT / file).exists()]
    assert missing == [], page.name


def test_code_map_is_up_to_date():
    assert code_map.PAGE.read_text() == code_map.code_map(), "run python -m benchmarks.code_map"


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
