"""Scores a run on tasks of lm-evaluation-harness.

python -m lm.harness --workdir=runs/smollm2 --tasks=arc_easy,wikitext --num_fewshot=0 --limit=100
python -m lm.harness --workdir=runs/mine --tasks=my_task --include_path=my_tasks --output=scores.json

The optional package lm-eval defines the tasks and computes the metrics; our code answers its requests without PyTorch.
Decoders and encoder-decoders are supported. The package includes many tasks, most of which download their data from the
Hugging Face Hub. --include_path is a directory with YAML files that define additional tasks, whose data may be local
files.

A table of the scores is printed, and all results are written to a JSON file, together with the run, the step and the
settings. By default, this file is eval/STEP/harness-TASKS.json in the run directory.
"""

from __future__ import annotations

import difflib
import json
import os
from pathlib import Path
from typing import Any

from absl import flags

from lm.config.command import DONE, LONGEST_NUMBER, define_path, run
from lm.decoding.lines import whole_file
from lm.errors import UserError
from lm.files import check_below, expanded
from lm.runs.directory import RunDirectory
from lm.runs.evaluate import Options
from lm.runs.harness import Generation, HarnessOptions, HarnessRun, as_language_model
from lm.tasks import task_of

FLAGS = flags.FLAGS
LONGEST_STEM = 100  # characters of a file name


def define_flags() -> None:
    define_path("workdir", "Run directory of the model.")
    flags.DEFINE_list("tasks", [], "Comma-separated names of tasks or task groups, or paths of YAML files.")
    define_path("include_path", "Directory with YAML files that define additional tasks.")
    doc = "Number of examples in each prompt. By default, the task sets it; tasks that fix it at 0 ignore this flag."
    flags.DEFINE_integer("num_fewshot", None, doc, lower_bound=0)
    doc = "Score only this many examples per task or, if the value is below 1, this fraction. For trial runs."
    flags.DEFINE_float("limit", None, doc)
    flags.register_validator("limit", lambda value: value is None or value > 0, "use a number above 0")
    flags.DEFINE_integer(
        "batch_size", 0, "Number of rows per batch. If 0, the run's eval.batch_size is used.", lower_bound=0
    )
    doc = "Maximum number of tokens to read. Longer prompts are truncated on the left. 0 means the model's maximum."
    flags.DEFINE_integer("max_length", 0, doc, lower_bound=0)
    flags.DEFINE_string("checkpoint", "best", "Checkpoint to use: best, last or a step number.")
    flags.register_validator("checkpoint", _is_checkpoint, "use best, last or a step number")
    flags.DEFINE_integer("average", 1, "Average this many checkpoints, ending with --checkpoint.", lower_bound=1)
    flags.DEFINE_bool("apply_chat_template", False, "Render prompts with the tokenizer's chat template.")
    flags.DEFINE_string(
        "system_instruction", None, "System message before each prompt, if --apply_chat_template is given."
    )
    flags.DEFINE_string(
        "gen_kwargs", None, "Settings that override those of the tasks, such as max_gen_toks=64,top_k=5."
    )
    flags.DEFINE_integer("seed", 0, "Random seed for sampled texts.", lower_bound=0, upper_bound=2**31 - 1)
    flags.DEFINE_bool("log_samples", False, "Also write each request and answer to the results.")
    define_path("output", "JSON file for the results. By default, it is written to the run directory.")


def _is_checkpoint(value: str) -> bool:
    return value in ("best", "last") or (value.isdecimal() and len(value) <= LONGEST_NUMBER)


def main() -> int:
    if FLAGS.workdir is None:
        raise UserError("--workdir is missing; specify the run directory of the model, e.g. --workdir=runs/smollm2.")
    if not FLAGS.tasks:
        raise UserError("--tasks is missing; specify at least one task, e.g. --tasks=arc_easy,wikitext.")
    if FLAGS.system_instruction and not FLAGS.apply_chat_template:
        raise UserError("--system_instruction applies only to chat models; give --apply_chat_template too.")
    directory = RunDirectory.existing(Path(FLAGS.workdir))
    config = directory.load_config()
    if not task_of(config).writes_text:
        problem = f"a model with objective.name={config.objective.name} does not predict text"
        raise UserError(f"--workdir={FLAGS.workdir}: {problem}; score it with eval.py --workdir={FLAGS.workdir}.")
    check_installed()
    gen_kwargs = read_gen_kwargs(FLAGS.gen_kwargs)
    if FLAGS.output is not None:
        with whole_file(FLAGS.output, "output"):
            pass  # raises an error now rather than after scoring
    manager, tasks = load_tasks(FLAGS.tasks, FLAGS.include_path)
    step = "latest" if FLAGS.checkpoint == "last" else FLAGS.checkpoint
    options = Options(step=step, average=FLAGS.average, batch_size=FLAGS.batch_size)
    harness = HarnessOptions(FLAGS.max_length, FLAGS.seed, FLAGS.apply_chat_template)
    model = HarnessRun(directory, config, options, harness)
    output = FLAGS.output or default_output(directory, model.step)
    with whole_file(output, "output") as write:
        results = evaluate(model, manager, tasks, gen_kwargs)
        print(table(results))
        write([as_json(results)])
    print(f"written: {output}")
    return DONE


def check_installed() -> None:
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        problem = f"lm-evaluation-harness cannot be imported ({error})"
        raise UserError(f"{problem}; install it with pip install -r requirements-harness.txt.") from error


def read_gen_kwargs(text: str | None) -> dict[str, Any] | None:
    """Parses settings from a string such as "max_gen_toks=64,top_k=5". Raises UserError if one is invalid."""
    from lm_eval.utils import simple_parse_args_string

    if text is None:
        return None
    try:
        values = simple_parse_args_string(text)
        Generation.of(values)
    except UserError as error:
        raise UserError(f"--gen_kwargs={text}: {error}") from error
    return values


def load_tasks(names: list[str], include_path: str | None) -> tuple[Any, list[Any]]:
    """Returns the harness's task manager and the tasks and groups with these names, including their data.

    Raises UserError if a task is unknown, or if its definition or its data cannot be read.
    """
    from lm_eval.tasks import TaskManager

    folder = None if include_path is None else expanded(include_path)
    if folder is not None and not folder.is_dir():
        raise UserError(
            f"--include_path={include_path} is not a directory; give one that contains YAML files of tasks."
        )
    try:
        # Reading the definitions of all tasks of the package takes 20 seconds.
        manager = TaskManager(include_path=folder, include_defaults=False)
        if any(is_unknown(manager, name) for name in names):
            manager = TaskManager(include_path=folder)
    except Exception as error:
        raise explained(f"--include_path={include_path}: a definition cannot be read", error) from error
    for name in names:
        if is_unknown(manager, name):
            near = ", ".join(difflib.get_close_matches(name, manager.all_tasks, 3))
            where = f" and {include_path}" if include_path else ""
            hint = f"did you mean {near}?" if near else "list all tasks with `lm-eval ls tasks`."
            raise UserError(f"--tasks: there is no task {name!r} in lm-eval{where}; {hint}")
    try:
        loaded = manager.load([match for name in names for match in manager.match_tasks([name]) or [name]])
    except Exception as error:
        raise explained(f"--tasks={','.join(names)}: a task or its data cannot be read", error) from error
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            what = "runs programs that a model has written" if getattr(task, "UNSAFE_CODE", False) else "uses images"
            raise UserError(f"--tasks: the task {name!r} {what}, which is not supported; omit it.")
    inner = {child for children in loaded["group_map"].values() for child in children}
    groups = [group for name, group in loaded["groups"].items() if name not in inner]
    grouped = {task.task_name for group in groups for task in group.get_all_tasks()}
    return manager, [*groups, *(task for name, task in loaded["tasks"].items() if name not in grouped)]


def is_unknown(manager: Any, name: str) -> bool:
    return not manager.match_tasks([name]) and not Path(name).is_file()


def explained(problem: str, error: Exception) -> Exception:
    """Converts an error to a UserError. The harness raises many types of errors for invalid definitions and data."""
    if os.environ.get("LM_DEBUG"):
        return error
    reason = " ".join(str(error).split())[:250]
    return UserError(f"{problem} ({type(error).__name__}: {reason}); set LM_DEBUG=1 for the traceback.")


def evaluate(model: HarnessRun, manager: Any, tasks: list[Any], gen_kwargs: dict[str, Any] | None) -> dict[str, Any]:
    import lm_eval

    limit = FLAGS.limit
    return lm_eval.simple_evaluate(
        model=as_language_model(model),
        tasks=tasks,
        task_manager=manager,
        num_fewshot=FLAGS.num_fewshot,
        batch_size=model.batch_size,
        limit=int(limit) if limit and limit >= 1 else limit,
        log_samples=FLAGS.log_samples,
        apply_chat_template=FLAGS.apply_chat_template,
        system_instruction=FLAGS.system_instruction,
        gen_kwargs=gen_kwargs,
    )


def table(results: dict[str, Any]) -> str:
    from lm_eval.utils import make_table

    return "\n".join(make_table(results, column) for column in ("results", "groups") if results.get(column))


def as_json(results: dict[str, Any]) -> str:
    from lm_eval.utils import handle_non_serializable

    return json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False)


def default_output(directory: RunDirectory, step: int) -> str:
    stem = "-".join(["harness", *(Path(name).stem for name in FLAGS.tasks)])
    path = directory.eval_dir(step) / f"{stem[:LONGEST_STEM]}.json"
    try:
        check_below(path.parent, directory.root)
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent} cannot be written ({error.strerror or error}); give --output=FILE.") from error
    return str(path)


if __name__ == "__main__":
    define_flags()
    run(main)
