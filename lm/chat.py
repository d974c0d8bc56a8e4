"""Lets the user chat with a model in a terminal.

python -m lm.chat --workdir=runs/tuned --system="Be brief." --temperature=0.7

Messages are rendered with the tokenizer's chat template or with the template set by data.chat_template. An answer is
printed while it is generated and ends at a stop token of the model. The model reads the whole conversation. If the
conversation becomes too long, the oldest turns are left out, and a note says so.

--tools=FILE names a JSON file with a list of tools, which are passed to the chat template unchanged. A tool call is
shown as text; no tool is run.

/reset starts a new conversation; /exit or Ctrl-D ends the command. Ctrl-C stops the current answer. In a terminal,
control characters in an answer are escaped. If standard input is not a terminal, each of its lines is a message.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

from absl import flags

from lm.config import SamplingConfig
from lm.config.command import DONE, check_speed_flags, define_path, define_speed_flags, run
from lm.config.schema import docs
from lm.decoding.lines import show
from lm.decoding.sampling import Sampling
from lm.errors import UserError
from lm.files import expanded, parse_json, read_file, well_formed
from lm.runs.chat import ChatSession
from lm.runs.directory import RunDirectory
from lm.runs.generation import Generator
from lm.tasks import task_of

FLAGS = flags.FLAGS
OPTIONS = ("step", "average", "max_new_tokens", "seed", "int8", "draft", "draft_tokens")
HELP = "Ctrl-C stops an answer, /reset starts a new conversation, and /exit or Ctrl-D ends the command."


def define_flags() -> None:
    define_path("workdir", "Run directory of the model.")
    flags.DEFINE_string("system", "", "System prompt, which precedes every conversation.")
    define_path("tools", "JSON file with a list of objects that describe the tools the model may call.")
    flags.DEFINE_integer("step", None, "Checkpoint step to use. By default, the best step is used.")
    flags.DEFINE_integer("average", 1, "Average this many checkpoints, ending with --step.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Random seed for sampling.", lower_bound=0, upper_bound=2**31 - 1)
    flags.DEFINE_integer("max_new_tokens", None, "Maximum number of tokens in an answer.", lower_bound=1)
    define_speed_flags()
    for name, doc in docs(SamplingConfig).items():
        define = flags.DEFINE_integer if isinstance(getattr(SamplingConfig(), name), int) else flags.DEFINE_float
        define(name, None, f"{doc} The default is eval.sampling.{name}.")


def main() -> int:
    if FLAGS.workdir is None:
        raise UserError("--workdir is missing; specify the run directory of the model, e.g. --workdir=runs/tuned.")
    directory = RunDirectory.existing(Path(FLAGS.workdir))
    config = directory.load_config()
    if not task_of(config).writes_text:
        raise UserError(
            f"--workdir={FLAGS.workdir}: a model with objective.name={config.objective.name} cannot be used for chat."
        )
    check_speed_flags()
    sampling = Sampling.of(config.eval.sampling, {name: FLAGS[name].value for name in docs(SamplingConfig)})
    options: dict[str, Any] = {name: FLAGS[name].value for name in OPTIONS}
    generator = Generator(directory, config, num_samples=1, batch_size=None, **options)
    session = ChatSession(generator, sampling, FLAGS.system, None if FLAGS.tools is None else read_tools(FLAGS.tools))
    in_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if in_terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # gives `input` a history and line editing
        print(HELP)
    while True:
        try:
            text = read_message("> " if in_terminal else "")
            if text is None or text == "/exit":
                return DONE
            if text == "/reset":
                session.reset()
                note("a new conversation begins")
            elif text.startswith("/"):
                note(f"there is no command {text.split()[0]:.20}; use /reset or /exit")
            elif text:
                print_answer(session, text)
        except KeyboardInterrupt:  # stops an answer or discards a message
            if not in_terminal:
                raise
            print(flush=True)


def read_tools(path: str) -> list[dict[str, Any]]:
    """Returns the tools in a JSON file. Raises UserError if the file does not hold a list of objects."""
    try:
        tools = parse_json(read_file(expanded(path)))
    except (OSError, ValueError) as error:
        raise UserError(
            f"--tools={path}: the file cannot be read ({error}); name a JSON file with a list of tools."
        ) from error
    if not isinstance(tools, list) or not tools or not all(isinstance(tool, dict) for tool in tools):
        raise UserError(f"--tools={path}: the file must hold a list of objects, each of which describes a tool.")
    return tools


def read_message(prompt: str) -> str | None:
    """Returns the next message, or None at the end of the input."""
    try:
        return well_formed(input(prompt)).strip()
    except EOFError:
        return None
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not valid UTF-8 ({error.reason}).") from error


def print_answer(session: ChatSession, text: str) -> None:
    """Prints an answer while it is generated, followed by any notes for the user."""
    try:
        with contextlib.closing(session.answer(text)) as parts:
            for part in parts:
                show(part)
    except UserError as error:
        note(str(error).rstrip("."))
        return
    print(flush=True)
    if session.is_cut:
        note("the answer reached --max_new_tokens")
    if session.left_out:
        note(f"the conversation is too long for the model; the oldest {session.left_out} messages were left out")


def note(text: str) -> None:
    print(f"({text})", file=sys.stderr, flush=True)


if __name__ == "__main__":
    define_flags()
    run(main)
