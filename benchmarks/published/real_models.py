"""Runs real published models in this code and in transformers, and prints a table of what they do.

    python -m benchmarks.published.fetch --output=/tmp/published minilm smollm2 rxnmapper rxnfp_pretrained
    python -m benchmarks.published.real_models --models=/tmp/published [minilm stories260k ...] [--record]

- minilm: sentence vectors beside those of transformers, and the cosines of paraphrases and of unrelated sentences.
- rxnmapper, rxnfp: each token of a reaction is masked in turn, and predicted. The reaction is in rxnmapper's README.
- smollm2: the answer to a question beside that of transformers, which loads our export, and a conversation in lm.chat.
- stories260k: a llama2.c checkpoint, exported as a Llama folder, tells the same story in transformers. It is read from
  --data, by default $LM_SHARED_DATA or ../shared/data.

The models are used through the commands, as a user would. The exit status is 1 if a result is not the expected one.
With --record, results/published.json is written. torch and transformers are needed: requirements-benchmarks.txt.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.huggingface_peer import frameworks
from benchmarks.published.llama2c import write_run
from benchmarks.record import RESULTS, surroundings, write_record
from benchmarks.stories260k import BEGIN, data_directory
from benchmarks.table import ROOT
from lm.batch import Batch
from lm.data.tokenizing import load_tokenizer
from lm.huggingface.folder import open_folder
from lm.huggingface.importing import load_params, read_tokenizer
from lm.huggingface.recognising import recognise

REACTION = "CC(C)S.CN(C)C=O.Fc1cccnc1F.O=C([O-])[O-].[K+].[K+]>>CC(C)Sc1ncccc1F"
STORY, ANSWER = 200, 24  # tokens
QUESTION = "What is the capital of France?"
TALK = (QUESTION, "And what is the capital of Italy?", "Which of the two cities is larger?")
PARAPHRASES = (
    ("A man is riding a horse along the beach.", "Someone rides a horse by the sea."),
    ("How do I reset my password?", "I forgot my password and need a new one."),
    ("The company reported higher profits this year.", "This year, the firm earned more money than before."),
    ("It will rain heavily in the north tomorrow.", "Tomorrow, the north expects heavy rain."),
    ("The cat is sleeping on the sofa.", "A kitten naps on the couch."),
    ("She plays the violin in an orchestra.", "She is a violinist in a symphony orchestra."),
    ("The train to Berlin leaves at nine.", "At nine o'clock, the Berlin train departs."),
    ("Add two eggs and a cup of flour.", "Mix in a cup of flour and two eggs."),
    ("The doctor advised him to stop smoking.", "He was told by his physician to give up cigarettes."),
    ("Scientists have found water on Mars.", "Researchers discovered water on the planet Mars."),
    ("The film was far too long and boring.", "That movie was dull and went on forever."),
    ("He repaired the old bicycle in his garage.", "In the garage, he fixed his old bike."),
)


@dataclass(frozen=True)
class Outcome:
    """The measured figures of a model, by name, and whether they match the expected ones."""

    figures: dict[str, Any]
    as_expected: bool


def command(*arguments: str, stdin: str | None = None) -> str:
    """Runs a command of this project and returns its output."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, input=stdin, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def minilm(models: Path, scratch: Path) -> Outcome:
    torch, transformers = frameworks()
    folder, run, texts = models / "minilm", scratch / "run", [text for pair in PARAPHRASES for text in pair]
    command("-m", "lm.hf", "import", f"--model={folder}", f"--workdir={run}")
    (scratch / "texts.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    lines = command("-m", "lm.predict", f"--workdir={run}", f"--input={scratch / 'texts.txt'}").splitlines()
    ours_ED = np.array([json.loads(line)["vector"] for line in lines])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]")
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.inference_mode():
        body = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
        vectors_ELD = body(inputs.input_ids, attention_mask=inputs.attention_mask).last_hidden_state.numpy()
    mask_EL = inputs.attention_mask.numpy()[..., None]
    theirs_ED = (vectors_ELD * mask_EL).sum(axis=1) / mask_EL.sum(axis=1)
    theirs_ED /= np.linalg.norm(theirs_ED, axis=1, keepdims=True)
    difference = float(np.abs(ours_ED - theirs_ED).max())
    cosines = ours_ED[::2] @ ours_ED[1::2].T  # of each first sentence with each second one
    same = np.eye(len(PARAPHRASES), dtype=bool)
    lowest, highest = float(cosines[same].min()), float(cosines[~same].max())
    figures = {
        "sentences": len(texts),
        "largest_difference": difference,
        "smallest_cosine_of_paraphrases": round(lowest, 4),
        "largest_cosine_of_unrelated": round(highest, 4),
    }
    return Outcome(figures, difference < 1e-6 and lowest > highest)


def masked_tokens(name: str, expected: int, models: Path) -> Outcome:
    torch, transformers = frameworks()
    folder = open_folder(models / name)
    published = recognise(folder)
    tokenizer = read_tokenizer(folder, published.config.model.vocab_size)
    reference = transformers.PreTrainedTokenizerFast(tokenizer_file=str(models / name / "tokenizer.json"))
    ids = reference(REACTION).input_ids  # [CLS] reaction [SEP]
    assert ids[1:-1] == tokenizer.encode(REACTION)
    number, mask = len(ids) - 2, reference.convert_tokens_to_ids("[MASK]")
    tokens_BL = np.repeat([ids], number, axis=0)
    rows_B = np.arange(number)
    tokens_BL[rows_B, rows_B + 1] = mask
    model = published.model.clone(head=published.model.head.clone(max_masked=0))  # logits of all tokens
    ones_BL, tokens = jnp.ones(tokens_BL.shape, jnp.int32), jnp.asarray(tokens_BL, jnp.int32)
    positions_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1]), tokens_BL.shape)
    batch = Batch(tokens, tokens, ones_BL.astype(jnp.float32), positions=positions_BL, segments=ones_BL)
    with jax.default_matmul_precision("highest"):
        found = jax.jit(lambda params: model.apply({"params": params}, batch).logits)(load_params(folder, published))
    ours_BV = np.asarray(found)[rows_B, rows_B + 1]
    peer = getattr(transformers, published.architecture).from_pretrained(models / name, attn_implementation="eager")
    with torch.inference_mode():
        output = peer.eval()(torch.tensor(tokens_BL))
    logits = output.prediction_logits if "prediction_logits" in output else output.logits
    theirs_BV = logits.numpy()[rows_B, rows_B + 1]
    right = int((ours_BV.argmax(axis=1) == ids[1:-1]).sum())
    equal = int((ours_BV.argmax(axis=1) == theirs_BV.argmax(axis=1)).sum())
    figures = {
        "masked": number,
        "recovered": right,
        "same_as_transformers": equal,
        "largest_difference": float(np.abs(ours_BV - theirs_BV).max()),
    }
    return Outcome(figures, right == expected and equal == number)


def rxnmapper(models: Path, scratch: Path) -> Outcome:
    return masked_tokens("rxnmapper", 53, models)


def rxnfp(models: Path, scratch: Path) -> Outcome:
    return masked_tokens("rxnfp_pretrained", 44, models)


def smollm2(models: Path, scratch: Path) -> Outcome:
    torch, transformers = frameworks()
    run, out, greedy = scratch / "run", scratch / "exported", ("--temperature=0", f"--max_new_tokens={ANSWER}")
    command("-m", "lm.hf", "import", f"--model={models / 'smollm2'}", f"--workdir={run}")
    written = command("-m", "lm.generate", f"--workdir={run}", "--chat", f"--prompt={QUESTION}", *greedy)
    answer = written.removeprefix(QUESTION).strip()
    said = command("-m", "lm.chat", f"--workdir={run}", *greedy, stdin="".join(f"{line}\n" for line in TALK))
    command("-m", "lm.hf", "export", f"--workdir={run}", f"--out={out}")
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(out)
    peer = transformers.AutoModelForCausalLM.from_pretrained(out, attn_implementation="eager").eval()
    messages: list[dict[str, str]] = []
    for text in TALK:
        messages.append({"role": "user", "content": text})
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            made = peer.generate(prompt, do_sample=False, max_new_tokens=ANSWER)[0, prompt.shape[1] :]
        messages.append({"role": "assistant", "content": tokenizer.decode(made, skip_special_tokens=True)})
    theirs = [message["content"] for message in messages[1::2]]
    same = said.strip() == "\n".join(theirs).strip()
    figures = {"answer": answer, "messages": list(TALK), "answers": theirs, "same_answers_in_lm_chat": same}
    return Outcome(figures, "Paris" in answer and answer == theirs[0].strip() and same)


def stories260k(data: Path, scratch: Path) -> Outcome:
    torch, transformers = frameworks()
    run, out, files = scratch / "run", scratch / "exported", data / "stories260k"
    write_run(files / "stories260K.bin", files / "tok512.bin", run)
    options = ("--prompt=", "--temperature=0", f"--max_new_tokens={STORY}")
    story = command("-m", "lm.generate", f"--workdir={run}", *options).strip()
    command("-m", "lm.hf", "export", f"--workdir={run}", f"--out={out}")
    peer = transformers.LlamaForCausalLM.from_pretrained(out, attn_implementation="eager").eval()
    with torch.inference_mode():
        made = peer.generate(torch.tensor([[BEGIN]]), do_sample=False, max_new_tokens=STORY)[0].tolist()
    tokenizer = load_tokenizer(run / "tokenizer")
    told = tokenizer.decode(made).strip()
    equal = tokenizer.encode(story) == made[1:]
    figures = {"tokens": len(made) - 1, "same_ids": equal, "same_text": story == told, "begins": story[:50]}
    return Outcome(figures, equal and story == told and len(made) == STORY + 1)


CHECKS: dict[str, Callable[[Path, Path], Outcome]] = {
    each.__name__: each for each in (minilm, rxnmapper, rxnfp, smollm2, stories260k)
}
COMMAND = "python -m benchmarks.published.real_models --models=DIR --record"
FROM_DATA = ("stories260k",)  # files that are not among the fetched ones


def table(outcomes: dict[str, Outcome]) -> str:
    lines = []
    for name, each in outcomes.items():
        lines.append(f"{name}: {'as expected' if each.as_expected else 'NOT AS EXPECTED'}")
        lines += [f"    {figure.replace('_', ' '):32} {value}" for figure, value in each.figures.items()]
    return "\n".join(lines)


def run(names: Sequence[str], models: Path, data: Path) -> dict[str, Outcome]:
    outcomes = {}
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            outcomes[name] = CHECKS[name](data if name in FROM_DATA else models, Path(scratch))
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(CHECKS)}; by default, all")
    parser.add_argument("--models", type=Path, required=True, help="folder that fetch.py has filled")
    parser.add_argument("--data", type=Path, default=data_directory(), help="folder with stories260k")
    parser.add_argument("--record", action="store_true", help="write results/published.json")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - CHECKS.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(CHECKS)}")
    outcomes = run(arguments.names or list(CHECKS), arguments.models.absolute(), arguments.data.absolute())
    print(table(outcomes))
    if arguments.record:
        figures = {name: each.figures for name, each in outcomes.items()}
        write_record(RESULTS / "published.json", {"name": "published", "command": COMMAND, **figures, **surroundings()})
    return int(not all(each.as_expected for each in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
