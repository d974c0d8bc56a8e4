"""Compares the speed and the quality of skip-gram training with gensim's, on the same text and in turn.

    python -m benchmarks.word_vectors_speed --data=DIR --pairs=wordsim353.tsv --rounds=3

DIR is the directory of configs/vectors_wikitext2.py. gensim comes from requirements-vectors.txt; --gensim names another
interpreter that has it. Both train on whole lines with the settings of that config: the same dimension, window,
negatives, subsampling, minimum count and epochs, gensim with two threads. Each round uses another seed. Speed is words
of text per second of training, without the time for reading, the vocabulary and compilation. Quality is Spearman's rank
correlation with --pairs, computed by `lm.vectors similarity`. The result is written to results/word_vectors_speed.json.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from absl import flags

from benchmarks.record import RESULTS, surroundings, write_record
from configs import vectors_wikitext2
from lm.config import Config, command
from lm.errors import UserError
from lm.evaluation.word_vectors import read_pairs
from lm.runs.word_table import table_of_file, table_of_run

FLAGS = flags.FLAGS
GENSIM = """
import json, sys, time
import gensim
text, output, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
model = gensim.models.Word2Vec(workers=2, sg=1, **settings)
lines = [line.split() for line in open(text, encoding="utf-8")]
model.build_vocab(lines)
began = time.perf_counter()
model.train(lines, total_examples=model.corpus_count, epochs=model.epochs)
seconds = time.perf_counter() - began
model.wv.save_word2vec_format(output, binary=True)
print(json.dumps({"seconds": seconds, "words": model.corpus_total_words, "version": gensim.__version__}))
"""


def define_flags() -> None:
    flags.DEFINE_string("data", None, "Directory with train.txt or train.txt.gz.")
    flags.DEFINE_string("pairs", None, "File of word pairs, such as wordsim353.tsv.")
    flags.DEFINE_string("gensim", sys.executable, "Python interpreter that has gensim.")
    flags.DEFINE_integer("rounds", 3, "Number of times that each is run.", lower_bound=1)


def train_ours(folder: Path, seed: int) -> tuple[float, Path]:
    """Trains with train.py. Returns the seconds of training and the run directory."""
    root = folder / f"ours_{seed}"
    flags = [f"--config=configs/vectors_wikitext2.py:{FLAGS.data}", f"--workdir={root}", f"--config.seed={seed}"]
    flags += ["--config.eval.every_steps=1000000", "--config.checkpoint.every_steps=1000000"]
    subprocess.run([sys.executable, "train.py", *flags], check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    return max(line["train/seconds"] for line in lines if "train/loss" in line), root


def train_gensim(folder: Path, text: Path, settings: dict, seed: int) -> tuple[dict, Path]:
    """Trains with gensim. Returns what GENSIM prints and the file of vectors."""
    output = folder / f"gensim_{seed}.bin"
    given = json.dumps(settings | {"seed": seed + 1})
    found = subprocess.run(
        [FLAGS.gensim, "-c", GENSIM, str(text), str(output), given], check=True, capture_output=True, text=True
    )
    return json.loads(found.stdout.splitlines()[-1]), output


def main() -> int:
    if not FLAGS.data or not FLAGS.pairs:
        raise UserError("--data and --pairs are needed (see --help).")
    pairs = read_pairs(Path(FLAGS.pairs))
    config = Config.from_dict(vectors_wikitext2.get_config(FLAGS.data).to_dict())
    objective = config.objective
    settings = {
        "vector_size": config.model.d_model,
        "window": objective.context_window,
        "negative": objective.negatives,
        "sample": objective.subsample,
        "min_count": config.data.tokenizer.min_count,
        "epochs": round(config.train.num_epochs),
    }
    speeds: dict[str, list[float]] = {"lm": [], "gensim": []}
    scores: dict[str, list[float]] = {"lm": [], "gensim": []}
    version = ""
    with tempfile.TemporaryDirectory() as name:
        folder, text = Path(name), Path(name) / "train.txt"
        packed = Path(FLAGS.data) / "train.txt.gz"
        text.write_bytes(
            gzip.decompress(packed.read_bytes()) if packed.exists() else packed.with_suffix("").read_bytes()
        )
        for seed in range(FLAGS.rounds):
            theirs, file = train_gensim(folder, text, settings, seed)
            seconds, root = train_ours(folder, seed)
            version, words = theirs["version"], theirs["words"] * settings["epochs"]
            tables = {"lm": table_of_run(root, "latest")[0], "gensim": table_of_file(str(file))[0]}
            for system, spent in {"lm": seconds, "gensim": theirs["seconds"]}.items():
                score = tables[system].similarity(pairs)
                speeds[system].append(words / spent)
                scores[system].append(score.value)
                print(
                    f"round {seed}  {system:7} {words / spent:12,.0f} words/s  similarity {score.value:.4f}", flush=True
                )
    ratios = np.divide(speeds["lm"], speeds["gensim"])
    record = {
        "settings": settings,
        "words_per_second": speeds,
        "ratio_of_each_round": ratios.tolist(),
        "median_ratio": float(np.median(ratios)),
        "similarity": scores,
        "mean_similarity": {system: float(np.mean(each)) for system, each in scores.items()},
        "scored_pairs": score.scored,
        "gensim": version,
        **surroundings(),
    }
    write_record(RESULTS / "word_vectors_speed.json", record)
    print(f"median ratio of speeds {record['median_ratio']:.2f}; mean similarity {record['mean_similarity']}")
    return command.DONE


if __name__ == "__main__":
    define_flags()
    command.run(main)
