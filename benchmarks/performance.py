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

from benchmarks.record import RESULTS
from benchmarks.step_sections import (
    BY_HAND,
    OURS,
    Ratio,
    Record,
    gpu_ratios,
    gpu_steps,
    products,
    profile,
    step_ratios,
    steps,
    table,
)
from lm.files import replacing
from lm.reporting.curves import COLORS

PAGE = "performance"
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
