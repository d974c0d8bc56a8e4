"""Compiling for absent chips: everything that runs without their compilers."""

import dataclasses
import importlib.util
import os
import re
import subprocess
import sys

import jax
import pytest

from benchmarks.aot_cases import standard_error
from lm.aot import absent_devices
from lm.config import Config, defaults, source
from lm.costs import CHIPS, GIB, estimate_memory
from lm.errors import UserError
from lm.models import build_model
from lm.tasks import task_of
from lm.training import compiled_cost
from lm.training.compiled_cost import compile_for, count_collectives, table
from lm.training.gpu_targets import GPU_TARGETS
from lm.training.program import COLLECTIVES

ONE = {"data": 1, "fsdp": 1, "tensor": 1}


def small(**model):
    config = defaults()
    config.data.train.docs = source(kind="embedded")
    config.data.sequence_length = 16
    config.train.batch_size = 8
    config.model.update(vocab_size=64, num_layers=2, d_model=32, num_heads=4, scan_layers=True, **model)
    return config


@pytest.fixture(scope="module")
def report():
    """The real step, compiled for eight CPU devices."""
    config = small()
    config.mesh.update(data=2, fsdp=2, tensor=2)
    return compile_for(Config.from_dict(config.to_dict()), jax.devices()[:8], "cpu")


def test_report_of_a_compiled_step(report):
    config = Config.from_dict(small().to_dict())
    assert report.parameters == build_model(config.model).parameter_counts().total
    assert report.tokens == 8 * 16
    assert report.train_flops * 8 == build_model(config.model).flops_per_row(16).train * 8
    # Parameters and two moments in float32, nearly all split four ways; donated, so counted once.
    assert 0.25 < report.state / (12 * report.parameters) < 0.35
    assert report.temporaries > 0
    assert report.collectives["all-reduce"] > 0 and report.collectives["all-gather"] > 0
    assert report.peak is report.capacity is report.fits is None


def test_table_shows_what_is_known_and_what_is_not(report):
    lines = dict(line.split(maxsplit=1) for line in table(report).replace(" per step", "_per_step").splitlines())
    assert lines["devices"] == "8 x cpu"
    assert lines["mesh"] == "data 2 x fsdp 2 x tensor 2"
    assert lines["attention"] == "blocked"
    assert lines["verdict"] == "unknown for this device"
    assert f"{report.state / GIB:.2f} GiB" in table(report)


@pytest.mark.parametrize(("capacity", "verdict"), [(2**40, True), (1000, False)])
def test_verdict_compares_the_needed_memory_with_that_of_the_chip(report, capacity, verdict):
    known = dataclasses.replace(report, capacity=capacity)
    assert known.fits is verdict
    assert ("does not fit" in table(known)) is not verdict


class Refused:
    """A traced step that does not fit in memory."""

    def lower(self):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: XLA:TPU ... Used 20.1G of 15.75G hbm. Exceeded by 4G.")


def test_estimate_includes_the_head_of_the_task(monkeypatch):
    monkeypatch.setattr(compiled_cost, "trace_train_step", lambda *args: Refused())
    values = small(family="encoder")
    values.data.train = {"mine": source(kind="tsv", path="mine.tsv", label_field="label")}
    values.data.labels = tuple(f"label {i}" for i in range(1000))
    values.objective.name = "classification"
    config = Config.from_dict(values.to_dict())
    report = compile_for(config, jax.devices()[:1], "cpu")
    with_head, without = (build_model(config.model, head) for head in (task_of(config).head(config), None))
    with_head, without = (estimate_memory(config, model, ONE, "cpu").total for model in (with_head, without))
    assert report.estimate == with_head != without


def test_out_of_memory_in_the_compiler_becomes_a_verdict(monkeypatch):
    monkeypatch.setattr(compiled_cost, "trace_train_step", lambda *args: Refused())
    report = compile_for(Config.from_dict(small().to_dict()), jax.devices()[:1], "cpu")
    assert report.fits is False
    assert "does not fit (Used 20.1G of 15.75G hbm)" in table(report)


def test_each_collective_is_counted_once():
    program = """
      %all-gather.1 = f32[8]{0} all-gather(%p), dimensions={0}
      %ar = (f32[8]{0}, f32[8]{0}) all-reduce-start(%p), to_apply=%add
      %done = f32[8]{0} all-reduce-done(%ar)
      %x = f32[8]{0} add(%all-gather.1, %done), metadata={op_name="all-gather"}
    """
    expected = dict.fromkeys(COLLECTIVES, 0) | {"all-gather": 1, "all-reduce": 1}
    assert count_collectives(program) == expected


@pytest.mark.parametrize(
    ("topology", "reason"),
    [("v5e", "must have the form"), ("v5e:8by8", "must have the form"), ("cuda:8", "cuda"), ("", "must have the form")],
)
def test_malformed_topology_is_refused(topology, reason):
    with pytest.raises(UserError, match=reason):
        absent_devices(topology)


def test_missing_compiler_is_reported_with_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"requirements-tpu\.txt"):
        absent_devices("v5e:2x2")
    with pytest.raises(UserError, match=r"requirements-cuda\.txt"):
        absent_devices("cuda:1x8")


def test_unknown_gpu_is_reported_with_those_that_are_known(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UserError, match=r"--gpu_target=h99 must be one of a100, h100, h200, or a file"):
        absent_devices("cuda:1x8", gpu_target="h99")


@pytest.mark.parametrize(("name", "capability", "processors", "gib"), [("a100", 8, 108, 79), ("h200", 9, 132, 139)])
def test_description_of_a_gpu_in_text(name, capability, processors, gib):
    """XLA reads the numbers from the text; the memory is the one that `lm.costs` gives for the same chip."""
    target = GPU_TARGETS[name]
    text = target.text()
    assert text.startswith("gpu_device_info {\n") and text.count("{") == text.count("}") == 3
    assert f"cuda_compute_capability {{ major: {capability} }}" in text
    assert f'device_description_str: "{target.name}"' in text and target.name in CHIPS
    fields = dict(re.findall(r"^  (\w+): (\S+)$", text, flags=re.MULTILINE))
    expected = {"core_count": processors, "device_memory_size": gib * GIB, "threads_per_warp": 32}
    assert {key: float(fields[key]) for key in expected} == expected
    assert float(fields["memory_bandwidth"]) == target.bandwidth


def test_missing_vocabulary_size_is_reported():
    config = small()
    config.model.vocab_size = 0
    with pytest.raises(UserError, match=r"model\.vocab_size"):
        compile_for(Config.from_dict(config.to_dict()), jax.devices()[:1], "cpu")


def test_messages_of_a_compiler_are_collected_and_printed_even_if_it_fails(capfd):
    with pytest.raises(RuntimeError), standard_error() as lines:
        os.write(2, b"one\ntwo\n")
        raise RuntimeError
    assert lines == ["one", "two"] and "one\ntwo\n" in capfd.readouterr().err


def test_messages_of_a_compiler_that_aborts_are_printed():
    program = "import os; from benchmarks.aot_cases import standard_error\nwith standard_error(): "
    program += "os.write(2, b'the reason'), os.abort()"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode < 0 and "the reason" in ended.stderr


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_step_compiles_for_a_tpu_with_splash_attention():
    devices, platform = absent_devices("v5e:2x2")
    config = small(dtype="bfloat16", head_dim=64)
    config.data.sequence_length = 128
    config.mesh.update(data=2, fsdp=1, tensor=2)
    with jax.default_matmul_precision("default"):  # Pallas cannot compile bfloat16 products of the highest precision
        report = compile_for(Config.from_dict(config.to_dict()), devices, platform)
    assert report.kernel == "splash" and report.fits and report.capacity == 16 * GIB
