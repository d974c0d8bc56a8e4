"""Compiles training steps for TPUs and GPUs that need not be present, and writes what it finds to results/aot.md.

    python -m benchmarks.aot_findings [--targets=v5e,h100] [--models='BERT-base'] [--noremat]

Needs the plug-ins of requirements-tpu.txt and requirements-cuda.txt, but no device. Rows of earlier runs whose plug-in
is missing, or that were not selected, are kept if their case still exists: they are in results/aot.json. The whole
takes about half an hour of one core (a minute and a half for each TPU program, 10 seconds for a GPU's) and 6 GB of
memory.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import jax
from absl import app, flags

from benchmarks.aot_cases import FULLY_SHARDED, LENGTH, MODELS, ROWS, TARGETS, compile_case, config_of, trace_case
from benchmarks.step_flops import work_of
from lm.costs import GIB
from lm.models.transformer.remat import REMAT_POLICIES
from lm.training.compiled_cost import Report

RESULTS = Path(__file__).parents[1] / "results"
PACKAGES = {
    "libtpu": ("libtpu",),
    "CUDA plug-in": ("jax-cuda13-plugin", "jax-cuda13-pjrt"),
    "cuDNN": ("nvidia-cudnn-cu13",),
}
REMAT_MODEL, REMAT_TARGETS = "decoder 124 M", ("v5e", "h100")
BACKWARD = 2.5  # products of the backward kernel for each of the forward kernel: five of L x L x K instead of two

FLAGS = flags.FLAGS


def package_sizes() -> dict[str, str]:
    """Returns the version and the installed size of each plug-in."""
    found = {}
    for name, packages in PACKAGES.items():
        try:
            each = [importlib.metadata.distribution(package) for package in packages]
        except importlib.metadata.PackageNotFoundError:
            continue
        size = sum(file.size or 0 for one in each for file in one.files or ())
        found[name] = f"{packages[0]} {each[0].version}, {size / 1e6:.0f} MB installed"
    return found


def case_of(name: str, target: str) -> dict[str, Any]:
    """Returns what a row records about its case: the sizes and the versions of the compiler."""
    packages = "jax", TARGETS[target].installed.replace("_", "-")
    versions = {package: importlib.metadata.version(package) for package in packages}
    return {"rows_per_device": ROWS[name], "length": LENGTH, "versions": versions}


def is_current(each: dict[str, Any], name: str) -> bool:
    """Whether the row is about a case as it is defined now."""
    return each.get("rows_per_device") == ROWS[name] and each.get("length") == LENGTH


def row(report: Report, messages: list[str], name: str, target: str) -> dict[str, Any]:
    """Returns the row of a case: what the report says, without what differs between equal compilations."""
    kept = dataclasses.asdict(report) | {"like_scores": sorted(report.like_scores)}
    del kept["compile_seconds"]
    involuntary = [line for line in messages if "nvoluntary" in line]
    found = {"involuntary": involuntary, "compared_bytes": compared_bytes(name, report.parameters)}
    return kept | found | case_of(name, target)


def compared_bytes(name: str, parameters: int) -> dict[str, int]:
    """Returns bytes of collectives per step and device with which those of the program are compared.

    With replicated parameters: one all-reduce of the gradients in float32. With fsdp: parameters gathered in bfloat16
    for the forward and the backward pass, and gradients that are summed in float32.
    """
    if name in FULLY_SHARDED:
        return {"all-gather": 2 * 2 * parameters, "gradients": 4 * parameters}
    return {"all-gather": 0, "gradients": 4 * parameters}


def remat_rows(target: str, name: str) -> list[dict[str, Any]]:
    """Compiles a step for one device with each policy, and counts its work."""
    rows = []
    for policy in ("none", *REMAT_POLICIES):
        report, _ = compile_case(name, target, devices=1, remat=policy)
        work = work_of(trace_case(name, target, devices=1, remat=policy).jaxpr.jaxpr)
        model = config_of(name, 1).model
        # Scores and weighted values; a causal kernel computes half of them.
        kernel = 2 * ROWS[name] * LENGTH**2 * model.num_heads * model.head_dim
        counts = {
            "temporaries": report.temporaries,
            "products": work.products,
            "forward_kernels": work.forward_kernels,
            "flops": work.products + (work.forward_kernels + BACKWARD * model.num_layers) * kernel,
        }
        rows.append({"target": target, "policy": policy} | counts | case_of(name, target))
    return rows


def number(count: float | None, unit: float = GIB, digits: int = 2) -> str:
    return "-" if count is None else f"{count / unit:.{digits}f}"


def markdown(found: dict[str, Any]) -> str:
    """Returns results/aot.md."""
    lines = ["# What the compilers make of the training step, without a device", ""]
    lines += [INTRODUCTION.format(length=LENGTH).strip(), ""]
    lines += [f"- {name}: {text}" for name, text in found["packages"].items()]
    lines += [f"- compiled by {text}" for text in compilers([*found["programs"].values(), *found["remat"]])]
    lines += ["", "## Programs", "", PROGRAMS.strip(), ""]
    header = [
        "model",
        "chips",
        "tokens per step",
        "state",
        "temporaries",
        "of GiB",
        "fused kernels: calls per step",
        "all-gather",
        "gradients",
    ]
    lines += ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for key, each in found["programs"].items():
        name, target = key.split(" @ ")
        sizes, compared = each["collective_bytes"], each["compared_bytes"]
        gradients = sizes["all-reduce"] + sizes["reduce-scatter"]
        kernels = ", ".join(f"{kernel} {count}" for kernel, count in sorted(each["kernels"].items()))
        cells = [
            name,
            target,
            f"{each['tokens']:,}",
            number(each["state"]),
            number(each["temporaries"]),
            number(each["capacity"], digits=0),
            kernels or "none",
            f"{number(sizes['all-gather'], 1e9)} ({number(compared['all-gather'], 1e9)})",
            f"{number(gradients, 1e9)} ({number(compared['gradients'], 1e9)})",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *checks(found["programs"]), "", "## Rematerialisation", "", REMAT.strip(), ""]
    missing = [each for each in REMAT_TARGETS if each not in {row["target"] for row in found["remat"]}]
    lines += [f"Not compiled for {', '.join(missing)}.", ""] if missing else []
    lines += ["| chip | policy | temporaries, GiB | forward kernels | recomputed FLOPs |", "|---|---|---|---|---|"]
    least = {each["target"]: each["flops"] for each in found["remat"] if each["policy"] == "none"}
    for each in found["remat"]:
        extra = each["flops"] / least[each["target"]] - 1
        cells = [each["target"], each["policy"], number(each["temporaries"])]
        lines.append("| " + " | ".join([*cells, str(each["forward_kernels"]), f"{extra:.1%}"]) + " |")
    return "\n".join([*lines, "", "## Findings", "", FINDINGS.strip(), ""])


def compilers(rows: list[dict[str, Any]]) -> list[str]:
    """Returns the versions of the compilers of all rows, without repetitions."""
    found = {", ".join(f"{name} {version}" for name, version in each["versions"].items()) for each in rows}
    return sorted(found)


def checks(programs: dict[str, Any]) -> list[str]:
    """Returns the programs that are missing, and for each property, in which of the others it does not hold."""
    properties = {
        "no array is as large as the scores (B, H, L, S) of a layer": lambda each: not each["like_scores"],
        "no product of two float32 matrices": lambda each: not each["float32_products"],
        "no message about involuntary rematerialisation": lambda each: not each["involuntary"],
        "the whole state is donated": lambda each: (
            (each["donated"] or 0) >= 0.99 * 12 * each["parameters"] / split(each)
        ),
    }
    lines = []
    if missing := [key for key in keys() if key not in programs]:
        lines += [f"Not compiled yet: {', '.join(missing)}.", ""]
    for text, holds in properties.items():
        broken = [key for key, each in programs.items() if not holds(each)]
        lines.append(
            f"- {text}: " + ("holds for the programs listed." if not broken else f"not for {', '.join(broken)}.")
        )
    return lines


def split(each: dict[str, Any]) -> int:
    """Returns over how many devices the parameters are split."""
    return 8 if "fsdp 8" in each["mesh"] else 1


INTRODUCTION = """
Made by `python -m benchmarks.aot_findings`; nothing here was run on an accelerator. Each model's step (bfloat16, packed
rows of {length} tokens, an encoder-decoder with as many source tokens, AdamW, 2 or 4 rows per device) is compiled for
eight chips. The 1.3 B decoder is split over all of them (fsdp); the other models are replicated.
"""
PROGRAMS = """
Memory per device is in GiB, collectives are in GB per step and device. In parentheses, for comparison: parameters
gathered twice in bfloat16, and gradients summed once in float32. Kernels inside a loop over layers count once for each
layer. On TPUs, the forward and backward kernels of splash attention and of our own kernel for T5's bias have different
names.
"""
REMAT = """
One device, 4 rows. FLOPs are those of matrix products and of attention kernels in the traced step, relative to a step
without rematerialisation. A backward kernel counts as 2.5 forward kernels. Elementwise operations, which are also
computed again, are not counted. Every policy keeps the input of each block.
"""
FINDINGS = """
What can be compiled without a device:

- libtpu (a wheel of 213 MB) compiles complete programs for v5e, v5p and v6e, with Pallas kernels down to machine code.
  A kernel that Mosaic cannot translate, or that needs too much vector memory, is therefore found. Its speed is not.
- The CUDA plug-in (132 MB) compiles complete programs for an H100 that is described by a text
  (`lm/training/gpu_targets.py`). It needs no library of NVIDIA, except that JAX asks cuDNN (517 MB) for its version.
- cuDNN's own part is not compiled: the program only names the call. A combination that cuDNN does not support, such as
  a window without a causal mask, compiles as well. The rows for the H100 thus show which calls are made, and their
  memory, but not that cuDNN accepts them, nor the memory of its workspaces. Autotuning is off, so the choice of
  matrix-multiplication kernels is not that of a real run.
- libtpu locks the machine for one process; `lm.aot` sets ALLOW_MULTIPLE_LIBTPU_LOAD, as it uses no device.
- With jax_default_matmul_precision=highest, Pallas kernels on bfloat16 do not compile ("Bad lhs type").

Attention:

- All three families use fused kernels, with packed rows: splash attention on TPUs, cuDNN on GPUs.
- TPU, T5's bias: splash attention takes no bias; tokamax 0.0.12 refuses a bias on TPUs; JAX's older flash-attention
  kernel reads a dense (B, H, L, S) bias. `lm/models/transformer/relative_attention.py` has a kernel of ours. It agrees
  with plain attention in the interpreter (to 1e-4 of the largest value, gradients included), and compiles for a v5e
  with 256 and with 8,192 tokens (`tests/test_aot_programs.py`). It has never run on a TPU: its speed is unknown.
  Pallas's strided rotation, the obvious way to expand the bias, is limited to strides within one register (128), so the
  tiles are expanded in log2(T) rotations.
- GPU, T5's bias: cuDNN takes one bias for all rows, (1, H, L, S), but JAX adds the mask of the segments to it, which
  gives (B, H, L, S). Instead, 32 features of every head separate the segments (`cudnn_attention.py`). Heads are limited
  to 96 features; T5-3B and T5-11B, with heads of 128, use plain attention.
- GPU, without a bias: JAX turns the mask of the segments into a bias (B, 1, L, S) in bfloat16, and cuDNN also computes
  its gradient, which nothing uses: 2 x 8 MiB per row at 2,048 tokens, shared by heads but read by each. The programs
  above contain this mask. In training on windows of text, a limit to the number of segments per row is known. If it is
  at most 8, cuDNN gets the offsets of the segments instead (a private function of JAX; from Hopper on). With 4 segments
  per row, attention then takes 0.3 to 0.6 times as long ([performance.md](performance.md)).
- Dropout of attention weights: cuDNN has it, but JAX passes it a constant seed, so every step and layer would drop
  the same weights. Plain attention is used, as on TPUs, where splash has no dropout.
- Plain attention is also used if layers differ in their windows, for windows in both directions on GPUs (JAX refuses
  them for cuDNN), for soft caps on GPUs, and while decoding.

Precision and communication:

- The gradient of the logits is float32, and is rounded to bfloat16 before it is multiplied by the features and by the
  output matrix (`lm/models/products.py`). Otherwise, JAX would convert the other operands to float32: on an H100, that
  is TF32, at half the speed of bfloat16.
- The gradients of the layers are summed over the devices in bfloat16, whether the parameters are replicated or split
  (fsdp), because each layer's gradient is converted to float32 after the sum. This halves their bytes, but rounds the
  sum.
- A tied embedding is summed over the devices twice: once as output matrix, once as input table.
- T5-base with 4 rows of 2,048 + 2,048 tokens per device and no rematerialisation does not fit on a v5e (16 GiB): it
  needs 18.9 GiB. The table therefore has 2 rows.
- Without rematerialisation, the norms keep float32 copies of their inputs for the backward pass.
"""


def keys() -> list[str]:
    """Returns the keys of all programs, in the order of the table."""
    return [f"{name} @ {target}" for name in MODELS for target in TARGETS]


def write(found: dict[str, Any]) -> None:
    """Writes results/aot.json and results/aot.md, without rows of cases that no longer exist."""
    programs = {key: found["programs"][key] for key in keys() if key in found["programs"]}
    found["programs"] = {key: each for key, each in programs.items() if is_current(each, key.split(" @ ")[0])}
    found["remat"] = [each for each in found["remat"] if is_current(each, REMAT_MODEL)]
    (RESULTS / "aot.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "aot.md").write_text(markdown(found))


def main(_: list[str]) -> None:
    jax.config.update("jax_platforms", "cpu")
    path = RESULTS / "aot.json"
    found = json.loads(path.read_text()) if path.exists() else {"packages": {}, "programs": {}, "remat": []}
    found["packages"] |= package_sizes()
    write(found)  # the texts may be newer than the file
    for target in FLAGS.targets:
        if TARGETS[target].missing:
            print(f"{target}: skipped, {TARGETS[target].missing} is not installed")
            continue
        for name in FLAGS.models:
            start = time.process_time()
            report, messages = compile_case(name, target)
            found["programs"][f"{name} @ {target}"] = row(report, messages, name, target)
            print(f"{name} @ {target}: {time.process_time() - start:.0f} s of processor time", flush=True)
            write(found)
        if FLAGS.remat and target in REMAT_TARGETS:
            kept = [each for each in found["remat"] if each["target"] != target]
            found["remat"] = kept + remat_rows(target, REMAT_MODEL)
            write(found)


if __name__ == "__main__":
    flags.DEFINE_list("targets", list(TARGETS), "Chips to compile for.")
    flags.DEFINE_list("models", list(MODELS), "Models to compile.")
    flags.DEFINE_bool("remat", True, "Whether to compile each rematerialisation policy.")
    app.run(main)
