"""Writes the word vectors of a run to a file, and examines word vectors.

python -m lm.vectors export --workdir=runs/vectors --output=vectors.txt              word2vec text
python -m lm.vectors neighbours --workdir=runs/vectors --words=king,river            the nearest words
python -m lm.vectors similarity --file=vectors.txt --pairs=wordsim353.tsv            Spearman's rank correlation
python -m lm.vectors analogies --file=vectors.bin --questions=questions-words.txt    accuracy of 3CosAdd
python -m lm.vectors picture --workdir=runs/vectors --words=king,queen,man,woman --output=words.png

Each command takes a run directory (--workdir) or a file in word2vec text or binary, GloVe text or fastText .vec format
(--file). Files whose names end in .gz are compressed. Any model with a token embedding has word vectors: the embeddings
of those tokens that are whole words. All similarities are cosines. A word that is not in the vocabulary is looked up in
lower case.
3CosAdd answers "a is to b as c is to ?" with the word nearest to b - a + c, excluding these three words (Mikolov 2013).
The picture shows the first two principal components of the vectors after they are scaled to length 1.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

from absl import flags
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lm.config.command import DONE, define_path, define_step_flag, run
from lm.data.vector_files import WRITERS, write_vectors
from lm.errors import UserError
from lm.evaluation.word_vectors import Score, WordTable, read_pairs, read_questions
from lm.files import expanded, replacing, writing_flag
from lm.reporting.word_map import draw_words
from lm.runs.word_table import table_of_file, table_of_run

FLAGS = flags.FLAGS
arguments: list[str] = []  # the command, taken from the command line
NEEDED = {
    "export": ("output",),
    "neighbours": ("words",),
    "analogies": ("questions",),
    "similarity": ("pairs",),
    "picture": ("words", "output"),
}
COMMANDS = tuple(NEEDED)
OPTIONAL = {"export": ("format",), "neighbours": ("count",)}


def define_flags() -> None:
    define_path("workdir", "Run directory with word vectors.")
    define_path("file", "File of word vectors, instead of --workdir.")
    define_step_flag()
    flags.DEFINE_integer("limit", 0, "With --file: read only this many words. 0 means all.", lower_bound=0)
    define_path("output", "export: file of word vectors to write. picture: PNG file to write.")
    flags.DEFINE_enum(
        "format", None, list(WRITERS), "export: format. The default is binary for .bin and .bin.gz, else word2vec."
    )
    flags.DEFINE_list("words", [], "neighbours and picture: comma-separated words.")
    flags.DEFINE_integer("count", 10, "neighbours: number of neighbours of each word.", lower_bound=1)
    define_path("questions", "analogies: file with four words per line and sections ': NAME' (questions-words.txt).")
    define_path("pairs", "similarity: file with two words and a score per line (WordSim-353, SimLex-999).")


def main() -> int:
    if not arguments:
        raise UserError(f"name a command: python -m lm.vectors {'|'.join(COMMANDS)} --workdir=... (see --help).")
    (command,) = arguments
    read = (*NEEDED[command], *OPTIONAL.get(command, ()))
    for name in NEEDED[command]:
        if not FLAGS[name].value:
            raise UserError(f"--{name} is missing; `lm.vectors {command}` needs --{' and --'.join(NEEDED[command])}.")
    for name in {*sum(NEEDED.values(), ()), *sum(OPTIONAL.values(), ())} - {*read}:
        if FLAGS[name].present:
            raise UserError(f"--{name} has no effect on `lm.vectors {command}`; omit it.")
    if (FLAGS.workdir is None) == (FLAGS.file is None):
        raise UserError("give either --workdir=RUN or --file=VECTORS.")
    if FLAGS.workdir is None and FLAGS["step"].present:
        raise UserError("--step applies only to --workdir; omit it.")
    if FLAGS.file is None and FLAGS.limit:
        raise UserError("--limit applies only to --file; omit it.")
    prepared = PREPARE[command]()  # reads the smaller files first, so that errors in them appear early
    if FLAGS.file is None:
        table, origin = table_of_run(Path(FLAGS.workdir), FLAGS.step)
    else:
        table, origin = table_of_file(FLAGS.file, FLAGS.limit)
    prepared(table, f"{origin}: {len(table.words):,} words, {table.vectors_VE.shape[1]:,} values each")
    return DONE


Use = Callable[[WordTable, str], None]


def export() -> Use:
    path = expanded(FLAGS.output)
    gz = path.suffix == ".gz"
    kind = FLAGS.format or ("binary" if path.name.removesuffix(".gz").endswith(".bin") else "word2vec")
    if FLAGS.file is not None and path.exists() and path.samefile(expanded(FLAGS.file)):
        raise UserError(f"--output={FLAGS.output}: this file is also the input; choose another file.")

    def use(table: WordTable, described: str) -> None:
        with writing_flag("output", path), replacing(path.resolve(), durable=True) as temporary:
            with temporary.open("wb") as file:
                notes = write_vectors(file, kind, table.words, table.vectors_VE, gz)
        print("\n".join([described, *(f"note: {each}" for each in notes), f"written: {FLAGS.output} ({kind})"]))

    return use


def neighbours() -> Use:
    def use(table: WordTable, described: str) -> None:
        print(described)
        for word in FLAGS.words:
            print(f"\n{word}")
            for near, cosine in table.neighbours(known(table, [word])[0], FLAGS.count):
                print(f"  {cosine:.4f}  {near}")

    return use


def similarity() -> Use:
    pairs = read_pairs(expanded(FLAGS.pairs))

    def use(table: WordTable, described: str) -> None:
        score = table.similarity(pairs)
        left = f"{score.total - score.scored:,} pairs were left out, because at least one word is unknown"
        print(f"{described}\n")
        if math.isnan(score.value):
            problem = f"{left}, and the remaining pairs have no rank correlation"
            raise UserError(f"--pairs={FLAGS.pairs}: {problem}; use other pairs.")
        print(f"Spearman's rank correlation: {score.value:.4f} over {score.scored:,} of {score.total:,} pairs")
        if score.scored < score.total:
            print(left)

    return use


def analogies() -> Use:
    questions = read_questions(expanded(FLAGS.questions))

    def use(table: WordTable, described: str) -> None:
        scores = table.analogies(questions)
        shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for name in ("section", "accuracy", "scored", "questions"):
            shown.add_column(name, justify="left" if name == "section" else "right")
        scored = sum(each.scored for each in scores.values())
        right = sum(each.value * each.scored for each in scores.values() if each.scored)
        whole = Score(right / scored if scored else math.nan, scored, len(questions))
        for section, each in [*scores.items(), ("all", whole)]:
            accuracy = f"{each.value:.2%}" if each.scored else "-"
            shown.add_row(*map(Text, (section, accuracy, f"{each.scored:,}", f"{each.total:,}")))
        print(f"{described}\n", flush=True)
        Console().print(shown, highlight=False)
        if scored < len(questions):
            print(f"\n{len(questions) - scored:,} questions were left out, because at least one word is unknown.")

    return use


def picture() -> Use:
    path = expanded(FLAGS.output)
    if len(FLAGS.words) < 3:
        raise UserError("--words: a picture needs at least three words.")

    def use(table: WordTable, described: str) -> None:
        numbers = known(table, FLAGS.words)
        words = [table.words[number] for number in numbers]
        with writing_flag("output", path):
            draw_words(words, *table.components(numbers), path, Path(FLAGS.workdir or FLAGS.file).name)
        print(f"{described}\nwritten: {FLAGS.output}, {len(words)} words")

    return use


def known(table: WordTable, words: list[str]) -> list[int]:
    """Returns the indices of the words. Raises UserError if a word is not in the vocabulary."""
    numbers = [table.find(word.strip()) for word in words]
    if unknown := [word for word, number in zip(words, numbers, strict=True) if number is None]:
        raise UserError(
            f"--words: {', '.join(unknown)}: not in the vocabulary of {len(table.words):,} words; omit them."
        )
    return [number for number in numbers if number is not None]


PREPARE: dict[str, Callable[[], Use]] = {
    "export": export,
    "neighbours": neighbours,
    "analogies": analogies,
    "similarity": similarity,
    "picture": picture,
}


if __name__ == "__main__":
    define_flags()
    arguments[:] = [each for each in sys.argv[1:2] if each in COMMANDS]
    del sys.argv[1 : 1 + len(arguments)]
    run(main)
