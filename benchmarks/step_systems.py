"""The systems whose training steps are compared: ours, and those of PyTorch, each in a process of its own.

    python -m benchmarks.step_systems SYSTEM MODEL DTYPE FOLDER

The process builds the model from FOLDER, which `write_folder` has written in the format of `transformers`, takes
CHECKED steps, and prints a line of JSON with their losses. Until its standard input ends, it then reads a number of
steps from there, takes one step that is not timed and that many timed ones, and prints their mean time. The first step
after a pause may be slow, because a virtual machine gives free memory back to its host meanwhile. All systems read the
same random tokens, and update all parameters by AdamW after clipping the norm of the gradient. They use the GPU if
there is one.

The system "nanogpt" is the GPT of nanoGPT, compiled as its train.py does; NANOGPT names the folder of a clone.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.step_models import GPU_MODELS, MASKED, MODELS, Arrays, Model, peer_of
from lm.runs.huge_pages import restart_with_huge_pages

CHECKED = 3  # steps whose losses are compared
RATE, DECAY, CLIP, BETAS = 1e-3, 0.1, 1.0, (0.9, 0.95)
Step = Callable[[Arrays], Any]  # takes a batch, and returns the loss before the update, which may not be there yet


def our_config(model: Model, dtype: str, opened: Any) -> tuple[Any, Any]:
    """Returns what `recognise` finds in an opened folder, and the config of our run."""
    from lm.config.experiment import replace_settings
    from lm.huggingface.recognising import recognise

    published = recognise(opened, max_length=model.length, dtype=dtype)
    changes = {"learning_rate": RATE, "schedule": "constant", "warmup_steps": 0, "weight_decay": DECAY}
    changes |= {"b1": BETAS[0], "b2": BETAS[1], "clip_norm": CLIP}
    settings = {f"optimizer.{name}": value for name, value in changes.items()}
    settings |= {"train.batch_size": model.rows, "data.sequence_length": model.length, "model.scan_layers": False}
    settings |= {"data.source_length": model.source_length, "objective.noise_density": MASKED}
    return published, replace_settings(published.config, settings)


def our_program(model: Model, dtype: str, folder: Path) -> tuple[Any, Step]:
    """Returns our compiled step, and a function that takes steps with it."""
    import jax

    from lm.batch import Batch, Source
    from lm.data.packing.prefetch import GlobalBatches
    from lm.huggingface.folder import open_folder
    from lm.huggingface.importing import load_params
    from lm.models import build_model
    from lm.models.parameters import unstack_layers
    from lm.parallel.mesh import make_mesh
    from lm.tasks import task_of
    from lm.training.multipliers import learning_rate_multipliers
    from lm.training.optimizers import make_optimizer
    from lm.training.state import abstract_state, make_state, with_params
    from lm.training.step import compile_train_step

    opened = open_folder(folder)
    published, config = our_config(model, dtype, opened)
    network = build_model(config.model, task_of(config).head(config))
    optimizer = make_optimizer(config.optimizer, 10**6, learning_rate_multipliers(config, network))
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    abstract = abstract_state(config, network, optimizer, mesh)
    params = unstack_layers(load_params(opened, published))
    state = with_params(make_state(config, network, optimizer, abstract, mesh), params)
    program = compile_train_step(config, network, optimizer, abstract, mesh, model.max_segments)
    batches = GlobalBatches(mesh, model.rows)

    def step(arrays: Arrays) -> Any:
        nonlocal state
        tokens = arrays["tokens"]
        positions, ones = np.broadcast_to(np.arange(model.length, dtype=np.int32), tokens.shape), np.ones_like(tokens)
        source = None
        if model.source_length:
            places = np.broadcast_to(np.arange(model.source_length, dtype=np.int32), arrays["source"].shape)
            source = Source(arrays["source"], places, np.ones_like(arrays["source"]))
        types = np.zeros_like(tokens) if config.model.token_types > 1 else None
        text = tokens, arrays["targets"], arrays["weights"], positions, ones
        batch = Batch(*text, source, types, max_segments=model.max_segments)
        state, metrics = program(state, batches.place(batch))
        return metrics["train/loss"]

    return program, step


def our_flops(model: Model, folder: Path) -> float:
    """Returns the FLOPs of the matrix products of a step, with those of attention as if it were not causal."""
    import jax

    from benchmarks.step_flops import work_of
    from lm.config.experiment import replace_settings
    from lm.huggingface.folder import open_folder
    from lm.training.compiled_cost import trace_for

    settings = {"model.attention": "xla", "objective.logit_chunks": 1}
    config = replace_settings(our_config(model, "bfloat16", open_folder(folder))[1], settings)
    traced, *_ = trace_for(config, jax.devices()[:1], jax.default_backend())
    return work_of(traced.jaxpr.jaxpr).products


def torch_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def torch_step(model: Model, dtype: str, folder: Path, compiled: bool = False) -> Step:
    import torch

    peer = type(peer_of(model, "meta")).from_pretrained(folder, attn_implementation="sdpa").train().to(torch_device())
    matrices = [each for each in peer.parameters() if each.ndim > 1]
    vectors = [each for each in peer.parameters() if each.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, fused=True)

    def loss_of(ids: dict[str, Any]) -> Any:
        inputs = {"input_ids": ids["tokens"]}
        if model.source_length:
            inputs = {"input_ids": ids["source"], "decoder_input_ids": ids["tokens"]}
        logits = peer(**inputs, use_cache=False).logits if not model.masks else peer(**inputs).logits
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids["labels"].flatten())

    return training(peer, optimizer, torch.compile(loss_of) if compiled else loss_of, dtype)


def training(peer: Any, optimizer: Any, loss_of: Callable[[dict[str, Any]], Any], dtype: str) -> Step:
    """Returns a function that takes steps with PyTorch. The labels are -100 where the weights are 0."""
    import torch

    device = torch_device()
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as nanoGPT allows and as JAX uses by default

    def step(arrays: Arrays) -> Any:
        ids = {name: torch.tensor(each, dtype=torch.int64) for name, each in arrays.items() if name != "weights"}
        ids["labels"] = torch.where(torch.tensor(arrays["weights"]) > 0, ids.pop("targets"), -100)
        if device == "cuda":  # pinned, as in nanoGPT, so that copying does not wait for the previous step
            ids = {name: each.pin_memory().to(device, non_blocking=True) for name, each in ids.items()}
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = loss_of(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), CLIP)
        optimizer.step()
        return loss.detach()

    return step


def nanogpt_step(model: Model, dtype: str, folder: Path) -> Step:
    import torch
    from safetensors.torch import load_file

    spec = importlib.util.spec_from_file_location("nanogpt", Path(os.environ["NANOGPT"], "model.py"))
    assert spec is not None and spec.loader is not None
    nanogpt = sys.modules["nanogpt"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nanogpt)
    settings = {name: model.settings[name] for name in ("n_layer", "n_head", "n_embd") if name in model.settings}
    sizes = {"block_size": model.length, "vocab_size": model.vocab_size, "dropout": 0.0, "bias": True}
    peer = nanogpt.GPT(nanogpt.GPTConfig(**sizes, **settings))
    weights = load_file(folder / "model.safetensors")
    transposed = "attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"
    weights = {name: each.t() if name.endswith(transposed) else each for name, each in weights.items()}
    peer.load_state_dict(weights | {"lm_head.weight": weights["transformer.wte.weight"]})
    peer.to(torch_device())
    optimizer = peer.configure_optimizers(DECAY, RATE, BETAS, torch_device())
    run = torch.compile(peer)
    return training(peer, optimizer, lambda ids: run(ids["tokens"], ids["labels"])[1], dtype)


SYSTEMS: dict[str, Callable[[Model, str, Path], Step]] = {
    "ours": lambda model, dtype, folder: our_program(model, dtype, folder)[1],
    "pytorch": torch_step,
    "pytorch-compiled": lambda model, dtype, folder: torch_step(model, dtype, folder, compiled=True),
    "nanogpt": nanogpt_step,
}


def say(**values: Any) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({**values, "peak_rss_bytes": peak * 1024, "peak_device_bytes": device_peak()}), flush=True)


def device_peak() -> int:
    """Returns the most memory of the GPU that this process has used for arrays, or 0 if there is no GPU."""
    if "jax" in sys.modules:
        import jax

        return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def main(system: str, name: str, dtype: str, folder: str) -> int:
    if system == "ours":
        restart_with_huge_pages()  # as train.py does
    model = (MODELS | GPU_MODELS)[name]
    began = time.perf_counter()
    step, batches = SYSTEMS[system](model, dtype, Path(folder)), model.arrays()
    losses = [float(step(next(batches))) for _ in range(CHECKED)]
    seconds = time.perf_counter() - began
    flops = our_flops(model, Path(folder)) if system == "ours" and name in GPU_MODELS else 0.0
    say(losses=losses, first_seconds=seconds, flops=flops)
    for line in sys.stdin:
        chosen = [next(batches) for _ in range(int(line))]
        float(step(next(batches)))
        began = time.perf_counter()
        for each in chosen[:-1]:
            step(each)
        float(step(chosen[-1]))  # waits for all steps
        say(seconds=(time.perf_counter() - began) / len(chosen))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
