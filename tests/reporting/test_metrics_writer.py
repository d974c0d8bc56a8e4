"""The metrics file, TensorBoard events, Weights & Biases (a stand-in) and late reading."""

import json
import math
import sys
import types

import jax
import jax.numpy as jnp
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from lm.config import Config, LogConfig
from lm.errors import UserError
from lm.reporting.metrics_writer import LateMetrics, MetricsWriter


def strict_lines(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def events(directory):
    """TFRecords: length (8), its checksum (4), payload, checksum (4)."""
    found = []
    for path in sorted(directory.glob("events.*")):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def test_every_line_is_strict_json_even_if_numbers_are_not_finite(tmp_path):
    writer = MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "tb", Config(log=LogConfig(tensorboard=False)))
    writer.write(1, {"train/loss": 2.5, "train/tokens": jnp.float32(64)})
    writer.write(2, {"train/loss": math.nan, "valid/perplexity": math.inf})
    assert strict_lines(tmp_path / "metrics.jsonl") == [
        {"step": 1, "train/loss": 2.5, "train/tokens": 64.0},
        {"step": 2, "train/loss": None, "valid/perplexity": None},
    ], "readable before the writer is closed"
    writer.close()
    assert not (tmp_path / "tb").exists()


def test_second_writer_appends(tmp_path):
    for step in (1, 2):
        writer = MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "tb", Config(log=LogConfig(tensorboard=False)))
        writer.write(step, {"a": step})
        writer.close()
    assert [line["step"] for line in strict_lines(tmp_path / "metrics.jsonl")] == [1, 2]


def test_tensorboard_gets_scalars_and_a_resumed_run_purges_later_ones(tmp_path):
    writer = MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "tb", Config(log=LogConfig()))
    writer.write(3, {"train/loss": 2.5, "train/bad": math.nan})
    writer.close()
    scalars = [(e.step, v.tag, v.simple_value) for e in events(tmp_path / "tb") for v in e.summary.value]
    assert scalars == [(3, "train/loss", 2.5)]

    writer = MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "resumed", Config(log=LogConfig()), start_step=10)
    writer.close()
    starts = [e.step for e in events(tmp_path / "resumed") if e.session_log.status == SessionLog.START]
    assert starts == [11], "events of step 11 and later are void, step 10 stays"


def test_missing_wandb_is_reported_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "tb", Config(log=LogConfig(wandb_project="mine")))
    assert list(tmp_path.iterdir()) == []


def test_wandb_keeps_its_run_over_restarts(tmp_path, monkeypatch):
    started, logged = [], []
    run = types.SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: None)
    fake = types.SimpleNamespace(init=lambda **values: started.append(values) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = Config(log=LogConfig(wandb_project="mine", tensorboard=False))
    for step in (1, 2):
        writer = MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "tb", config)
        writer.write(step, {"a": 1.0, "b": math.inf})
        writer.close()
    assert logged == [(1, {"a": 1.0}), (2, {"a": 1.0})]
    assert started[0]["id"] == started[1]["id"] and started[0]["dir"] == str(tmp_path)


def test_unwritable_path_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        MetricsWriter(tmp_path / "missing" / "metrics.jsonl", tmp_path / "tb", Config(log=LogConfig(tensorboard=False)))


def test_metrics_are_read_one_step_late():
    late = LateMetrics()
    assert late.flush() is None
    double = jax.jit(lambda x: {"loss": 2 * x})
    assert late.push(1, double(1.0)) is None
    assert late.push(2, double(2.0)) == (1, {"loss": 2.0})
    assert late.push(3, double(3.0)) == (2, {"loss": 4.0})
    assert late.flush() == (3, {"loss": 6.0})
    assert late.flush() is None


def test_push_reads_nothing_of_the_step_just_dispatched():
    class Unready:
        def __float__(self):
            raise AssertionError("waited for the step just dispatched")

        __array__ = __float__

    assert LateMetrics().push(1, {"loss": Unready()}) is None
