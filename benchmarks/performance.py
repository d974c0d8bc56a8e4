"""Makes results/performance.md, with a picture, from the records of the benchmarks of speed and memory.

    python -m benchmarks.performance

Each section names the command that measures it. A record that is missing is named in the page.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import gpu_speed
from benchmarks.record import RESULTS
from lm.files import replacing
from lm.reporting.curves import COLORS

PAGE = "performance"
OURS = "ours"
GB = 1e9
Record = dict[str, Any]
Ratio = tuple[str, float]  # what is compared, and the speed of ours divided by that of the other system
ROWS = {
    "greedy": "greedy",
    "sampled": "sampled",
    "beams_exact": "beam search, exact",
    "beams_early": "beam search, early stopping",
    "continued": "decoder, sampled",
    "all_greedy": "all sentences, greedy",
    "all_beams_exact": "all sentences, beam search, exact",
    "all_beams_early": "all sentences, beam search, early stopping",
}


@dataclass(frozen=True)
class Section:
    """A section of the page, made from one record."""

    title: str
    record: str  # the name of a file in results/, without .json
    command: str
    text: Callable[[Record], list[str]]  # its lines
    ratios: Callable[[Record], Iterable[Ratio]] = lambda record: ()
    picture: str = ""
    unmeasured: str = "Not measured yet."  # the text if there is no record


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


def decoding(record: Record) -> list[str]:
    rows = [
        (
            ROWS[each["row"]],
            each["system"],
            f"{each['sentences_per_second']:,.1f}",
            f"{each['tokens_per_second']:,.0f}",
            "" if each["system"] == OURS else f"{each['speed_of_ours']:.2f}",
            f"{each['first_call_seconds']:.1f}",
        )
        for each in record["figures"]
    ]
    heading = "", "system", "sentences per second", "tokens per second", "speed of ours", "first call, s"
    settings = f"{record['num_beams']} beams, batches of {record['batch_size']}, float32"
    counts = (
        f"The first {record['sentences']['few']:,} of {record['sentences']['all']:,} sentences, unless a row says all"
    )
    return [f"{counts}; {settings}. The first call includes compilation.", "", *table(heading, rows)]


def decoding_ratios(record: Record) -> Iterable[Ratio]:
    for each in record["figures"]:
        if each["system"] != OURS:
            yield f"decoding, {ROWS[each['row']]}, {each['system']}", each["speed_of_ours"]


def data(record: Record) -> list[str]:
    lines = [
        "`store` reads, cleans, tokenises and stores a text, each line as a document, with the given number of "
        "processes; these take about a second to start. `sentencepiece` only tokenises lines that are in memory, in "
        "one thread. `unigram` and `bpe` are the algorithms of the tokenizer. The other rows are batches, made by one "
        "process.",
        "",
    ]
    for name, result in record["results"].items():
        lines += [f"{name}, {result['text']['bytes'] / 1e6:,.0f} MB:", ""]
        lines += [*table(("", "speed", "relative to SentencePiece alone"), data_rows(result)), ""]
    return lines[:-1]


def data_rows(result: Record) -> Iterable[tuple[str, str, str]]:
    """Yields what is measured, its speed, and its speed relative to SentencePiece alone ("" if they do not compare)."""
    for each, values in result["medians"].items():
        megabytes = values.get("MB_per_second")
        speed = f"{values['M_tokens_per_second']:.1f} M tokens/s" if megabytes is None else f"{megabytes:.1f} MB/s"
        ratio = result["ratio_to_sentencepiece"].get(each)
        yield each, speed, "" if ratio is None else f"{ratio:.2f}"


def data_ratios(record: Record) -> Iterable[Ratio]:
    for name, result in record["results"].items():
        for each, ratio in result["ratio_to_sentencepiece"].items():
            if not each.startswith("sentencepiece"):
                _, algorithm, workers = each.split(", ")
                yield f"store, {algorithm}, workers: {workers}, {name}, SentencePiece alone", ratio


def starts(record: Record) -> list[str]:
    stages = list(
        dict.fromkeys(stage for times in record["medians"].values() for stage in times if stage != "compiled")
    )
    rows = []
    for command, times in record["medians"].items():
        cells = [f"{times[stage]['wall']:.2f}" if stage in times else "" for stage in stages]
        rows.append((command, *cells, str(times.get("compiled", ""))))
    explained = (
        f"Seconds from the start of the process to the end of each stage of `{record['config']}`. `first` has an empty "
        "cache, `again` continues the run, and `new` starts another run with the same cache."
    )
    return [explained, "", *table(("command", *stages, "compiled programs"), rows)]


def recurrent(record: Record) -> list[str]:
    seconds = record["seconds_per_step"]
    rows = [(name, f"{1e3 * seconds[name]:,.0f}") for name in seconds]
    return [
        "An LSTM language model with 2 layers of width 650, 20 rows and 35 steps of back-propagation, float32.",
        "",
        *table(("system", "ms per step"), rows),
    ]


def word_vectors(record: Record) -> list[str]:
    spread = ", ".join(f"{ratio:.2f}" for ratio in record["ratio_of_each_round"])
    return [
        f"Skip-gram trains on {record['median_ratio']:.2f} times as many words per second as gensim "
        f"{record['gensim']} (rounds: {spread})."
    ]


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


SECTIONS = (
    Section("Training step", "step_speed", "python -m benchmarks.step_speed --record", steps, step_ratios),
    Section(
        "Training step on a GPU",
        "gpu_speed",
        "python -m benchmarks.gpu_speed --record",
        gpu_steps,
        gpu_ratios,
        unmeasured=BY_HAND,
    ),
    Section("Profile of a step", "step_profile", "python -m benchmarks.step_profile --record", profile),
    Section("Forms of matrix products", "product_forms", "python -m benchmarks.product_forms --record", products),
    Section(
        "Decoding",
        "decode",
        "python -m benchmarks.decode --workdir=RUN --input=FILE --output=results/decode.json",
        decoding,
        decoding_ratios,
    ),
    Section("Data", "data_speed", "python -m benchmarks.data_speed --texts=DIRS --name=data_speed", data, data_ratios),
    Section("Start-up", "startup", "python -m benchmarks.startup --name=startup", starts),
    Section(
        "Recurrent language model",
        "recurrent_speed",
        "python -m benchmarks.recurrent_speed",
        recurrent,
        lambda record: [("LSTM step, pytorch", record["speed_relative_to_pytorch"])],
    ),
    Section(
        "Word vectors",
        "word_vectors_speed",
        "python -m benchmarks.word_vectors_speed",
        word_vectors,
        lambda record: [("word vectors, gensim", record["median_ratio"])],
    ),
    Section(
        "Cost of a step against its sizes",
        "cost_curves",
        "python -m benchmarks.cost_curves",
        lambda record: ["Seconds, FLOPs and memory of a decoder, while one size varies:"],
        picture="cost_curves.png",
    ),
)


def page(records: dict[str, Record], has_picture: bool) -> str:
    lines = [
        "# Speed and memory",
        "",
        "Made by `python -m benchmarks.performance` from the records of the commands below. Each of them runs the",
        "systems in turn, in one run; figures of different records cannot be compared. A speed of ours above 1 means",
        "that ours is faster. Programs compiled for GPUs and TPUs are examined in [aot.md](aot.md).",
        "",
    ]
    if has_picture:
        lines += [f"![speed of ours relative to other systems]({PAGE}.png)", ""]
    for section in SECTIONS:
        lines += [f"## {section.title}", "", f"    {section.command}", ""]
        if (record := records.get(section.record)) is None:
            lines += [section.unmeasured.strip(), ""]
            continue
        lines += [*section.text(record), ""]
        if section.picture:
            lines += [f"![{section.title}]({section.picture})", ""]
        if note := record.get("note"):
            lines += [note, ""]
        lines += [f"Measured on {origin(record)}.", ""]
    return "\n".join(lines)


def origin(record: Record) -> str:
    """Returns the hardware, the commits and the versions of a record, or of its results."""
    parts = [record] if "hardware" in record else list(record["results"].values())
    hardware = "; ".join(dict.fromkeys(each["hardware"] for each in parts))
    commits = ", ".join(dict.fromkeys(each["commit"] for each in parts))
    named = ("jax", "torch", "transformers")
    versions = {
        f"{name} {each['versions'][name]}": None for each in parts for name in named if name in each["versions"]
    }
    return f"{hardware}, commit {commits}, {', '.join(versions)}"


def draw(ratios: Sequence[Ratio], path: Path) -> None:
    """Draws a bar for each ratio, on a logarithmic axis with a line at 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.6 + 0.26 * len(ratios)), layout="constrained")
    axes = figure.subplots()
    names, values = zip(*reversed(ratios), strict=True)
    axes.barh(names, [value - 1 for value in values], left=1, color=COLORS[0], height=0.65)
    for row, value in enumerate(values):
        side = {"ha": "left", "xytext": (3, 0)} if value >= 1 else {"ha": "right", "xytext": (-3, 0)}
        axes.annotate(f"{value:.2f}", (value, row), textcoords="offset points", va="center", fontsize=8, **side)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(min(0.5, min(values) / 1.3), max(2, 1.3 * max(values)))
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("speed of ours relative to the other system")
    axes.tick_params(axis="y", labelsize=8, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def main() -> int:
    paths = {section.record: RESULTS / f"{section.record}.json" for section in SECTIONS}
    records = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
    found = [
        ratio for section in SECTIONS if section.record in records for ratio in section.ratios(records[section.record])
    ]
    written = [RESULTS / f"{PAGE}.md"]
    written[0].write_text(page(records, bool(found)))
    if found:
        written.append(RESULTS / f"{PAGE}.png")
        draw(found, written[1])
    print(f"Written: {', '.join(map(str, written))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
