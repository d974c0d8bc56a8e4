"""The sections of results/performance.md about training steps: their tables, and what was found about their speed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks import gpu_speed

OURS = "ours"
GB = 1e9
Record = dict[str, Any]
Ratio = tuple[str, float]  # what is compared, and the speed of ours divided by that of the other system


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Returns a table in Markdown whose first column is text and whose other columns are numbers."""
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


VARIATION = """
The factors vary by up to a fifth from one run to the next: in five runs on one day, that of the decoder in float32 was
0.93, 0.93, 0.94, 1.00 and 1.10. Our process returns its temporary memory, 1 GB for the decoder, to the operating system
after every step. In some phases a step takes up to a second longer because the system is slow to provide huge pages
again (on this virtual machine, up to 2 s of processor time per GB). Alone on the machine, a float32 step usually takes
470 ms for the Multi30k config and 1,750 ms for the decoder. With a single arena and high thresholds
(glibc.malloc.arena_max, mmap_threshold and trim_threshold), the C library keeps this memory, and a step of the decoder
takes 1,750 to 1,900 ms without page faults. This is not the default, because its memory then grew from 1.6 GB to 2.5 GB
within ten steps, and to 13 GB beside PyTorch: version 2.36 of the library often cannot reuse an aligned block once a
small one lies behind it. Memory set aside before the first step prevented this in 24 steps of one run, but not in
another. Temporaries in blocks of at most 16 or 32 MiB (xla_multiheap_size_constraint_per_heap) were no faster.
"""


def steps(record: Record) -> list[str]:
    rows = []
    for key, result in record["results"].items():
        ours = result["systems"][OURS]
        for name, each in result["systems"].items():
            speed, memory = "", ""
            if name != OURS:
                speed = f"{each['seconds_per_step'] / ours['seconds_per_step']:.2f}"
                memory = f"{ours['peak_rss_bytes'] / each['peak_rss_bytes']:.2f}"
            size = f"{each['peak_rss_bytes'] / GB:.2f} GB"
            milliseconds, dtype = f"{1e3 * each['seconds_per_step']:,.0f}", key.rpartition(", ")[2]
            rows.append(
                (result["title"], dtype, name, milliseconds, speed, size, memory, f"{each['first_seconds']:.1f}")
            )
    heading = (
        "model",
        "dtype",
        "system",
        "ms per step",
        "speed of ours",
        "peak memory",
        "ours / theirs",
        "first step, s",
    )
    return [*table(heading, rows), VARIATION.rstrip()]


def step_ratios(record: Record) -> Iterable[Ratio]:
    for key, result in record["results"].items():
        ours = result["systems"][OURS]["seconds_per_step"]
        for name, each in result["systems"].items():
            if name != OURS:
                yield f"step, {key}, {name}", each["seconds_per_step"] / ours


BY_HAND = """
Not measured yet by this command. One H200 was at hand for 15 minutes (jax 0.11.2, cuDNN 9.19, PyTorch 2.11), on which
the step of GPT-2 (124 M) was timed by a script, with 32 rows of 1,024 tokens, bfloat16, AdamW and clipping, at commit
b93cf11e:

- nanoGPT, compiled: 64.2 to 66.8 ms per step (490,000 to 511,000 tokens per second).
- Ours, beside nanoGPT, with a mask between the segments of a row and logits in 4 chunks: 72.0 ms.
- Ours, in a later run on such a GPU, with neither mask nor chunks, and cuBLAS for all products: 66.4 ms. This is 422
  TFLOP/s: 43 % of the peak (989), and 56 % of the speed of a product of two large matrices (758).

Since then, three things have changed whose effect on the step has not been timed: offsets may replace the mask (see
below), logits are computed in 8 chunks on GPUs (before, in 94 for this batch), and norms save their means, so that the
gradient of a scale needs no pass of its own. Compiling took 60 to 75 s. The profile of the 66.4 ms:

| kind of kernel | ms |
| --- | ---: |
| matrix products | 32.2 |
| attention | 8.8 |
| norms | 7.2 |
| loss, without its products | 5.8 |
| GELU and biases of the MLP | 5.1 |
| clipping and AdamW | 1.6 |
| other operations | 3.2 |
| gaps between kernels | 2.6 |

Matrix products thus run at the speed of a large one (755 TFLOP/s); the rest takes half of the step. Attention, forward
and backward, takes the following milliseconds in bfloat16. Offsets separate at most the given number of segments per
row; their outputs and gradients agree with those of the mask.

| rows, heads, segments per row | mask | 2 offsets | 4 | 8 | 32 | no mask |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
| 32 x 1,024, 12 heads of 64, causal, 1 | 1.23 | 0.84 |  | 1.05 |  | 0.80 |
| 32 x 1,024, 12 heads of 64, causal, 4 | 1.22 |  | 0.55 | 0.71 | 1.54 |  |
| 8 x 2,048, 16 heads of 128, causal, 4 | 2.26 |  |  | 0.76 |  |  |
| 32 x 1,024, 12 heads of 64, bidirectional, 4 | 1.67 |  |  | 0.76 |  |  |
"""


def gpu_steps(record: Record) -> list[str]:
    text = (
        "bfloat16, AdamW; rows are full and hold one text each. The FLOPs of a step, with those of attention as if it "
        "were not causal, are divided by its time and by the peak of the data sheet, or by the speed of a product of "
        "two large matrices. To predict masked tokens, ours computes only their logits, and PyTorch those of all."
    )
    return [text, "", *table(gpu_speed.HEADING, gpu_speed.rows_of(record["results"]))]


def gpu_ratios(record: Record) -> Iterable[Ratio]:
    for key, result in record["results"].items():
        ours = result["systems"][OURS]["seconds_per_step"]
        for name, each in result["systems"].items():
            if name != OURS:
                yield f"step on a GPU, {key}, {name}", each["seconds_per_step"] / ours


def profile(record: Record) -> list[str]:
    measured = {
        f"{result['title']}, {dtype}": each
        for result in record["results"].values()
        for dtype, each in result["dtypes"].items()
    }
    first = next(iter(measured.values()))["seconds_by_kind"]
    kinds = sorted(first, key=lambda kind: -first[kind])
    rows = [
        (kind, *(f"{1e3 * each['seconds_by_kind'].get(kind, 0):,.0f}" for each in measured.values())) for kind in kinds
    ]
    rows.append(("time of the step", *(f"{1e3 * each['seconds']:,.0f}" for each in measured.values())))
    text = (
        "Milliseconds that each kind of operation takes in a step. Operations that run side by side make the sum "
        "larger than the time of the step, which is longer here because of the profiler:"
    )
    return [text, "", *table(("", *measured), rows)]


TRIED = """
Of what was tried on CPUs, the following made the step little or no faster: the flags xla_cpu_prefer_vector_width=512,
xla_cpu_enable_fast_math and xla_cpu_experimental_ynn_fusion_type, XLA's older code generator, its memory scheduler
(13 % less memory, but 4 to 15 % slower), a transposition hidden in a change of type or behind a barrier before a
product with a weight matrix, attention with the keys before the queries in the forward pass too, and a C library that
keeps all large blocks (no page faults, but 2.5 GB of memory). In T5-small, attention with bfloat16 factors made the
step up to a third slower, and transposing the factors as 16-bit integers, which XLA does not convert to float32,
changed nothing. What made it faster: huge pages, products in the forms above, activations in float32 beside bfloat16
products, for which XLA adds far fewer conversions, a backward pass of attention that transposes no scores, attention
in blocks even if all scores take only 4 to 16 MiB (T5-small: 5 % in float32, 10 to 17 % in bfloat16), counting correct
predictions without an argmax over the vocabulary (7 % of the step of the Multi30k config), and logits in chunks that
fit in a cache (another 3 to 7 %, and a third less memory).
"""


def products(record: Record) -> list[str]:
    sizes = record["sizes"]
    text = (
        f"y = x w, dx = dy w^T and dw = x^T dy for {sizes['tokens']:,} tokens, {sizes['inputs']:,} inputs and "
        f"{sizes['outputs']:,} outputs. XLA multiplies bfloat16 matrices fast only in some forms, none of which is as "
        "fast as PyTorch's product. This limits our bfloat16 step:"
    )
    rows = [(name, f"{each['gflops_per_second']:,.0f}", each["library"]) for name, each in record["forms"].items()]
    return [text, "", *table(("product", "GFLOP/s", "XLA's library of kernels"), rows), TRIED.rstrip()]
