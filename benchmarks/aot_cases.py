"""The models and chips for which benchmarks/aot_findings.py and the tests compile a training step ahead of time."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import jax
from jax._src.cudnn import fused_attention_stablehlo

from lm.aot import absent_devices
from lm.config import Config, defaults, source
from lm.models.presets import preset
from lm.training.compiled_cost import Report, compile_for, trace_for

LENGTH = 2048  # tokens, of the source as well as of the target


@dataclass(frozen=True)
class Target:
    """Eight chips, or one, of a kind."""

    topology: str
    one: str  # the topology from which a single device is taken
    gpu: str = ""  # the name in GPU_TARGETS

    @property
    def plugins(self) -> tuple[str, ...]:
        """The modules of the plug-ins with one of which JAX can compile for these chips."""
        return ("jax_cuda13_plugin", "jax_cuda12_plugin") if self.gpu else ("libtpu",)

    @property
    def installed(self) -> str:
        """The first of the plug-ins that is installed, or ""."""
        return next((each for each in self.plugins if importlib.util.find_spec(each)), "")

    @property
    def missing(self) -> str:
        """Which plug-in is missing, or ""."""
        return "" if self.installed else self.plugins[0]

    def devices(self, count: int) -> tuple[list[Any], str]:
        devices, platform = absent_devices(self.topology if count > 1 else self.one, gpu_target=self.gpu)
        return devices[:count], platform


TARGETS = {
    "v5e": Target("v5e:2x4", "v5e:2x2"),
    "v5p": Target("v5p:2x2x2", "v5p:2x2x1"),
    "v6e": Target("v6e:2x4", "v6e:2x2"),
    "h100": Target("cuda:1x8", "cuda:1x1", "h100"),
}
DECODER = {"family": "decoder", "vocab_size": 50_304, "max_length": LENGTH}
MODELS: dict[str, dict[str, Any]] = {
    "decoder 124 M": preset("gpt2_124m") | DECODER,
    "decoder 1.3 B": preset("gpt2_124m")
    | DECODER
    | {"num_layers": 24, "d_model": 2048, "num_heads": 32, "num_kv_heads": 32, "head_dim": 64, "d_ff": 8192},
    "T5-base": preset("t5_base") | {"family": "encoder_decoder", "vocab_size": 32_128},
    "BERT-base": preset("bert_base") | {"family": "encoder", "vocab_size": 30_592, "max_length": LENGTH},
}
FULLY_SHARDED = ("decoder 1.3 B",)  # the others are replicated over the devices
ROWS = dict.fromkeys(MODELS, 4) | {"decoder 1.3 B": 2, "T5-base": 2}  # per device


def config_of(name: str, devices: int, **model: Any) -> Config:
    """Returns the config of a case: bfloat16, packed rows, no dropout of attention weights, AdamW."""
    values = defaults()
    values.data.train.docs = source(kind="embedded")
    values.data.sequence_length = LENGTH
    values.model.update(MODELS[name] | {"dtype": "bfloat16", "dropout": 0.0, "attention_dropout": 0.0} | model)
    if values.model.family == "encoder":
        values.objective.name = "masked"
        values.data.tokenizer.extra_ids = 1
    if values.model.family == "encoder_decoder":
        values.data.train = {"pairs": source(kind="tsv", path="pairs.tsv", field="one", target_field="two")}
        values.data.source_length = LENGTH
        values.objective.name = "seq2seq"
    values.mesh.update(data=1, fsdp=devices, tensor=1) if name in FULLY_SHARDED else values.mesh.update(data=devices)
    values.train.batch_size = values.eval.batch_size = devices * ROWS[name]
    return Config.from_dict(values.to_dict())


def compile_case(name: str, target: str, devices: int = 8, **model: Any) -> tuple[Report, list[str]]:
    """Compiles a case. Returns the report and the lines that the compiler has written to standard error.

    The precision of products is the default one: Pallas cannot compile bfloat16 products of the highest precision,
    which the tests set for all products.
    """
    with standard_error() as lines, without_cudnn(), jax.default_matmul_precision("default"):
        report = compile_for(config_of(name, devices, **model), *TARGETS[target].devices(devices))
    return report, lines


def trace_case(name: str, target: str, devices: int = 8, **model: Any) -> jax.stages.Traced:
    """Traces the step that `compile_case` compiles."""
    with without_cudnn(), jax.default_matmul_precision("default"):
        return trace_for(config_of(name, devices, **model), *TARGETS[target].devices(devices))[0]


@contextmanager
def without_cudnn() -> Iterator[None]:
    """In the block, JAX uses the version of cuDNN that the targets name, if the library is not installed.

    JAX asks for the version while it traces attention. Compiling for an absent GPU needs nothing else of cuDNN.
    """
    if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.cudnn"):
        yield
    else:
        with mock.patch.object(fused_attention_stablehlo, "check_cudnn_version", lambda: 91_000):
            yield


@contextmanager
def standard_error() -> Iterator[list[str]]:
    """Provides a list that at the end of the block holds the lines of standard error, also those from C++ code.

    They are printed as well, by a process of its own, so that they are seen even if the compiler aborts this process.
    """
    sys.stderr.flush()
    kept, lines = os.dup(2), list[str]()
    with tempfile.NamedTemporaryFile() as file:
        tee = subprocess.Popen(["tee", file.name], stdin=subprocess.PIPE, stdout=kept)
        assert tee.stdin is not None
        os.dup2(tee.stdin.fileno(), 2)
        tee.stdin.close()
        try:
            yield lines
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)  # closes the pipe, which ends the process
            os.close(kept)
            tee.wait()
            lines += file.read().decode(errors="replace").splitlines()
