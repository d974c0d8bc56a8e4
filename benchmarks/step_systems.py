"""The systems that benchmarks/step_speed.py compares: our training step, and that of PyTorch, each in its own process.

    python -m benchmarks.step_systems SYSTEM MODEL DTYPE FOLDER

The process builds the model from FOLDER, which `write_folder` has written in the format of `transformers`, takes
CHECKED steps, and prints a line of JSON with their losses. Until its standard input ends, it then reads a number of
steps from there, takes one step that is not timed and that many timed ones, and prints their mean time. The first step
after a pause may be slow, because a virtual machine gives free memory back to its host meanwhile. Both systems read the
same random tokens, and update all parameters by AdamW after clipping the norm of the gradient.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lm.runs.huge_pages import restart_with_huge_pages

CHECKED = 3  # steps whose losses are compared
RATE, DECAY, CLIP, BETAS = 1e-3, 0.1, 1.0, (0.9, 0.95)
MASKED = 0.15  # share of the masked tokens of an encoder
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Model:
    """A model that both systems train, and the size of its batches.

    Attributes:
        name: the class in `transformers`.
        settings: the fields of its config that differ from their defaults.
        source_length: the number of tokens of a source, for encoder-decoders.
    """

    title: str
    name: str
    settings: dict[str, Any]
    rows: int
    length: int
    source_length: int = 0
    masks: bool = False

    @property
    def vocab_size(self) -> int:
        return self.settings["vocab_size"]

    def arrays(self) -> Iterator[Arrays]:
        """Yields batches without end: `tokens`, `targets` and `weights` (B, L), and perhaps `source` (B, S)."""
        random = np.random.default_rng(0)
        while True:
            ids = random.integers(4, self.vocab_size, (self.rows, self.length + 1)).astype(np.int32)
            tokens, targets = ids[:, :-1], ids[:, 1:]
            weights = np.ones_like(tokens, np.float32)
            if self.masks:
                count = round(MASKED * self.length)  # in every row, so that the work is the same in every step
                chosen = np.argsort(random.random(tokens.shape), axis=1)[:, :count]
                weights = np.zeros_like(weights)
                np.put_along_axis(weights, chosen, 1, axis=1)
                tokens, targets = np.where(weights > 0, 3, tokens).astype(np.int32), tokens
            arrays = {"tokens": tokens, "targets": targets, "weights": weights}
            if self.source_length:
                source = random.integers(4, self.vocab_size, (self.rows, self.source_length))
                arrays["source"] = source.astype(np.int32)
            yield arrays


MODELS = {
    "gpt": Model(
        "decoder of nanoGPT's Shakespeare setting",
        "GPT2LMHeadModel",
        {
            **{"n_layer": 6, "n_embd": 384, "n_head": 6, "n_positions": 256, "vocab_size": 65},
            "activation_function": "gelu",
        },
        rows=16,
        length=256,
    ),
    "translation": Model(
        "encoder-decoder of the Multi30k config",
        "MarianMTModel",
        {
            **{f"{side}_layers": 4 for side in ("encoder", "decoder")},
            **{f"{side}_attention_heads": 4 for side in ("encoder", "decoder")},
            **{f"{side}_ffn_dim": 256 for side in ("encoder", "decoder")},
            "d_model": 128,
            "vocab_size": 6000,
            "max_position_embeddings": 64,
            "activation_function": "relu",
            "scale_embedding": True,
        },
        rows=64,
        length=64,
        source_length=64,
    ),
    "t5": Model(
        "T5-small",
        "T5ForConditionalGeneration",
        {"vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
        rows=8,
        length=64,
        source_length=256,
    ),
    "bert": Model(
        "BERT-base, masked tokens",
        "BertForMaskedLM",
        {"vocab_size": 30522},
        rows=8,
        length=128,
        masks=True,
    ),
}
NO_DROPOUT = "resid_pdrop embd_pdrop attn_pdrop dropout attention_dropout activation_dropout dropout_rate"
NO_DROPOUT += " hidden_dropout_prob attention_probs_dropout_prob"


def peer_of(model: Model) -> Any:
    """Returns the model of `transformers`, without dropout and with its fused attention."""
    import torch
    import transformers

    cls = getattr(transformers, model.name)
    known = vars(cls.config_class())
    settings = {name: 0.0 for name in NO_DROPOUT.split() if name in known}
    special = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = cls.config_class(**settings, **special, **model.settings)
    torch.manual_seed(0)
    return cls._from_config(config, attn_implementation="sdpa" if cls._supports_sdpa else "eager")


def write_folder(model: Model, folder: Path) -> None:
    """Writes the initial weights, which both systems read."""
    peer_of(model).save_pretrained(folder)


Step = Callable[[Arrays], float]  # takes a batch, and returns the loss before the update


def our_program(model: Model, dtype: str, folder: Path) -> tuple[Any, Step]:
    """Returns our compiled step, and a function that takes steps with it."""
    import jax

    from lm.batch import Batch, Source
    from lm.config.experiment import replace_settings
    from lm.data.packing.prefetch import GlobalBatches
    from lm.huggingface.folder import open_folder
    from lm.huggingface.importing import load_params
    from lm.huggingface.recognising import recognise
    from lm.models import build_model
    from lm.models.parameters import unstack_layers
    from lm.parallel.mesh import make_mesh
    from lm.tasks import task_of
    from lm.training.multipliers import learning_rate_multipliers
    from lm.training.optimizers import make_optimizer
    from lm.training.state import abstract_state, make_state, with_params
    from lm.training.step import compile_train_step

    opened = open_folder(folder)
    published = recognise(opened, max_length=model.length, dtype=dtype)
    changes = {"learning_rate": RATE, "schedule": "constant", "warmup_steps": 0, "weight_decay": DECAY}
    changes |= {"b1": BETAS[0], "b2": BETAS[1], "clip_norm": CLIP}
    settings = {f"optimizer.{name}": value for name, value in changes.items()}
    settings |= {"train.batch_size": model.rows, "data.sequence_length": model.length, "model.scan_layers": False}
    settings |= {"data.source_length": model.source_length, "objective.noise_density": MASKED}
    config = replace_settings(published.config, settings)
    network = build_model(config.model, task_of(config).head(config))
    optimizer = make_optimizer(config.optimizer, 10**6, learning_rate_multipliers(config, network))
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    abstract = abstract_state(config, network, optimizer, mesh)
    params = unstack_layers(load_params(opened, published))
    state = with_params(make_state(config, network, optimizer, abstract, mesh), params)
    program = compile_train_step(config, network, optimizer, abstract, mesh)
    batches = GlobalBatches(mesh, model.rows)

    def step(arrays: Arrays) -> float:
        nonlocal state
        tokens = arrays["tokens"]
        positions, ones = np.broadcast_to(np.arange(model.length, dtype=np.int32), tokens.shape), np.ones_like(tokens)
        source = None
        if model.source_length:
            places = np.broadcast_to(np.arange(model.source_length, dtype=np.int32), arrays["source"].shape)
            source = Source(arrays["source"], places, np.ones_like(arrays["source"]))
        types = np.zeros_like(tokens) if config.model.token_types > 1 else None
        batch = Batch(tokens, arrays["targets"], arrays["weights"], positions, ones, source, types)
        state, metrics = program(state, batches.place(batch))
        return float(metrics["train/loss"])

    return program, step


def torch_step(model: Model, dtype: str, folder: Path, compiled: bool = False) -> Step:
    import torch

    peer = type(peer_of(model)).from_pretrained(folder, attn_implementation="sdpa").train()
    matrices = [each for each in peer.parameters() if each.ndim > 1]
    vectors = [each for each in peer.parameters() if each.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, fused=True)
    run = torch.compile(peer) if compiled else peer

    def step(arrays: Arrays) -> float:
        ids = {name: torch.tensor(each, dtype=torch.int64) for name, each in arrays.items() if name != "weights"}
        labels = torch.where(torch.tensor(arrays["weights"]) > 0, ids["targets"], -100)
        inputs = {"input_ids": ids["tokens"]}
        if model.source_length:
            inputs = {"input_ids": ids["source"], "decoder_input_ids": ids["tokens"]}
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = run(**inputs, use_cache=False).logits if not model.masks else run(**inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), CLIP)
        optimizer.step()
        return loss.item()

    return step


SYSTEMS: dict[str, Callable[[Model, str, Path], Step]] = {
    "ours": lambda model, dtype, folder: our_program(model, dtype, folder)[1],
    "pytorch": torch_step,
    "pytorch-compiled": lambda model, dtype, folder: torch_step(model, dtype, folder, compiled=True),
}


def say(**values: Any) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({**values, "peak_rss_bytes": peak * 1024}), flush=True)


def main(system: str, name: str, dtype: str, folder: str) -> int:
    if system == "ours":
        restart_with_huge_pages()  # as train.py does
    model = MODELS[name]
    began = time.perf_counter()
    step, batches = SYSTEMS[system](model, dtype, Path(folder)), model.arrays()
    losses = [step(next(batches)) for _ in range(CHECKED)]
    say(losses=losses, first_seconds=time.perf_counter() - began)
    for line in sys.stdin:
        chosen = [next(batches) for _ in range(int(line))]
        step(next(batches))
        began = time.perf_counter()
        for each in chosen:
            step(each)
        say(seconds=(time.perf_counter() - began) / len(chosen))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
