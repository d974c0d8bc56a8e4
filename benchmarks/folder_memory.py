"""Measures the memory that the import and export of a large model folder need beyond the model's parameters.

    python -m benchmarks.folder_memory --directory=/tmp/folder_memory [--output=results/folder_memory.json]

A folder is made with a Llama of a billion random bfloat16 parameters, 2 GB in shards of 500 MB. It is imported onto one
CPU device and onto a 2 x 2 mesh of them (fsdp x tensor), and exported from each; the exported tensors must equal those
of the folder to the bit. Each stage runs in a process of its own, whose peak memory is that of the kernel (VmHWM), so
the benchmark needs Linux. The memory before the stage and the float32 parameters are subtracted. The exit status is 1
if more than LIMIT is left. Needs 12 GB of disk and 6 GB of memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import optax

from lm.checkpoints.checkpoints import Checkpoints
from lm.config import Config
from lm.config.experiment import replace_settings
from lm.huggingface import provenance
from lm.huggingface.exporting import Original, export
from lm.huggingface.folder import open_folder
from lm.huggingface.importing import import_folder
from lm.huggingface.recognising import recognise
from lm.huggingface.weights import TensorInfo
from lm.huggingface.writing import write_folder
from lm.models import build_model
from lm.models.parameters import count_parameters
from lm.parallel.mesh import make_mesh
from lm.runs.directory import RunDirectory
from lm.tasks import task_of
from lm.training.state import abstract_state

LIMIT = 2**30  # bytes
SHARD_BYTES = 500_000_000
MESHES = {"1x1": (1, 1), "2x2": (2, 2)}  # fsdp x tensor
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 14,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def make_folder(path: Path) -> None:
    """Writes the folder with random values."""
    width, hidden, rows = LLAMA["hidden_size"], LLAMA["intermediate_size"], LLAMA["vocab_size"]
    keys = LLAMA["num_key_value_heads"] * width // LLAMA["num_attention_heads"]
    layer = {
        "input_layernorm": (width,),
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, width),
        "post_attention_layernorm": (width,),
        "mlp.gate_proj": (hidden, width),
        "mlp.up_proj": (hidden, width),
        "mlp.down_proj": (width, hidden),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (rows, width)}
    for index in range(LLAMA["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes |= {"model.norm": (width,), "lm_head": (rows, width)}
    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    tensors = {f"{name}.weight": TensorInfo(shape, bfloat16) for name, shape in shapes.items()}
    generator = np.random.default_rng(0)
    arrays = (
        (name, (generator.standard_normal(info.shape, np.float32) * 0.02).astype(bfloat16))
        for name, info in tensors.items()
    )
    pieces = {piece: index for index, piece in enumerate(("<unk>", "<s>", "</s>", "a", "b"))}
    added = [
        dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        | {"id": pieces[piece], "content": piece, "special": True}
        for piece in ("<unk>", "<s>", "</s>")
    ]
    parts = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    model = {"type": "WordLevel", "vocab": pieces, "unk_token": "<unk>"}
    tokenizer = {"version": "1.0", **parts, "added_tokens": added, "model": model}
    write_folder(
        path,
        config=LLAMA,
        generation_config={"bos_token_id": 1, "eos_token_id": 2},
        tensors=tensors,
        arrays=arrays,
        files={
            "tokenizer.json": json.dumps(tokenizer).encode(),
            "tokenizer_config.json": b'{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}',
        },
        max_shard_bytes=SHARD_BYTES,
    )


def memory(name: str) -> int:
    """Returns a number of bytes from /proc/self/status: VmRSS is the memory now, VmHWM its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(name)


def run_stage(stage: str, mesh: str, directory: Path) -> dict[str, Any]:
    """Runs a stage in this process. Returns its peak memory beyond the parameters, in bytes, and its seconds."""
    fsdp, tensor = MESHES[mesh]
    workdir = directory / f"run_{mesh}"
    jax.jit(lambda x: x + 1)(np.zeros(8)).block_until_ready()  # initialises JAX
    if stage == "import":
        folder = open_folder(directory / "folder")
        published = recognise(folder)
        config = replace_settings(published.config, {"mesh.data": 1, "mesh.fsdp": fsdp, "mesh.tensor": tensor})
        published = dataclasses.replace(published, config=config)
        count = count_parameters(abstract_params(config))
    else:
        config = RunDirectory.existing(workdir).load_config()
        count = count_parameters(abstract_params(config))
    before, start = memory("VmRSS"), time.monotonic()
    if stage == "import":
        import_folder(folder, published, workdir)
    else:
        run = RunDirectory(workdir)
        with run.open_checkpoints(config) as checkpoints:
            params = restored(checkpoints, config, sharded=mesh != "1x1")
        export(params, config, directory / f"out_{mesh}", Original.read(workdir / provenance.DIRECTORY))
    beyond = memory("VmHWM") - before - 4 * count
    return {"beyond_bytes": beyond, "seconds": round(time.monotonic() - start, 1), "parameters": count}


def abstract_params(config: Config) -> Any:
    model = build_model(config.model, task_of(config).head(config))
    mesh = make_mesh(config.mesh)
    return abstract_state(config, model, optax.identity(), mesh).params


def restored(checkpoints: Checkpoints, config: Config, *, sharded: bool) -> Any:
    """Returns the parameters of the only checkpoint, on the devices or, as `lm.hf export` has them, in NumPy arrays."""
    return checkpoints.restore_params(abstract_params(config) if sharded else None, 0)[0]


def same_tensors(first: Path, second: Path) -> bool:
    one, two = open_folder(first), open_folder(second)
    return one.tensors.keys() == two.tensors.keys() and all(
        np.array_equal(one.read(name).view(np.uint16), two.read(name).view(np.uint16)) for name in one.tensors
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--directory", type=Path, required=True, help="folder for the model; what is there is used again"
    )
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--stage", nargs=2, metavar=("STAGE", "MESH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        print(json.dumps(run_stage(*arguments.stage, arguments.directory)))
        return 0
    if not (arguments.directory / "folder").exists():
        make_folder(arguments.directory / "folder")
    results, passed = {}, True
    for mesh, sizes in MESHES.items():
        flag = f"--xla_force_host_platform_device_count={np.prod(sizes)}"
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag}
        for stage in ("import", "export"):
            command = [sys.executable, "-m", "benchmarks.folder_memory", f"--directory={arguments.directory}"]
            done = subprocess.run(
                [*command, "--stage", stage, mesh], env=environment, check=True, stdout=subprocess.PIPE, text=True
            )
            found = json.loads(done.stdout.splitlines()[-1])
            results[f"{stage}_{mesh}"] = found
            passed &= found["beyond_bytes"] <= LIMIT
            beyond = f"{found['beyond_bytes'] / 2**30:.2f} GiB beyond {found['parameters']:,} parameters"
            print(f"{stage} {mesh}: {beyond}, {found['seconds']} s", flush=True)
        passed &= (same := same_tensors(arguments.directory / "folder", arguments.directory / f"out_{mesh}"))
        print(f"tensors after the round trip on {mesh}: {'equal' if same else 'DIFFERENT'}")
        results[f"equal_{mesh}"] = same
    if arguments.output:
        versions = {"python": platform.python_version(), "jax": jax.__version__}
        arguments.output.write_text(json.dumps({"limit_bytes": LIMIT, **versions, **results}, indent=1) + "\n")
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
