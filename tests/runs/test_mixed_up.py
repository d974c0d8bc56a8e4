"""A run directory whose files do not belong together is refused in one line, and data may lie elsewhere."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lm.checkpoints.integrity import json_hash
from lm.config.data import SourceConfig
from lm.data.reading import FORMATS
from lm.errors import UserError
from tests.conftest import Tiny, content_of
from tests.run_helpers import checkpoints_of, metrics, train_here

pytestmark = pytest.mark.filterwarnings("ignore:the load_module")  # of ml_collections

SHORT = {
    "train__num_steps": 4,
    "optimizer__warmup_steps": 1,
    "checkpoint__every_steps": 2,
    "data__tokenizer__kind": "characters",
    "eval__every_steps": 4,
}
COMMANDS = ("train.py", "eval.py", "lm.generate", "lm.merge_lora", "lm.compare")


@pytest.fixture(scope="module")
def trained(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with adapters and checkpoints of steps 2 and 4."""
    root = tmp_path_factory.mktemp("mixed") / "run"
    assert train_here(tiny, root, **SHORT, model__lora_rank=2) == 0
    return root


@pytest.fixture(scope="module")
def other(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on other text and thus with another tokenizer, which is as large."""
    folder = tmp_path_factory.mktemp("other")
    letters = str.maketrans("abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    (folder / "text.txt").write_text(tiny.text.read_text().translate(letters))
    changed = Tiny(folder / "text.txt", tiny.config, tiny.cache)
    assert train_here(changed, folder / "run", **SHORT, model__lora_rank=2) == 0
    return folder / "run"


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def arguments(command: str, tiny: Tiny, root: Path, **changes: object) -> list[object]:
    own = {
        "train.py": tiny.flags(root, **{**SHORT, "model__lora_rank": 2, **changes}),
        "eval.py": [f"--workdir={root}"],
        "lm.generate": [f"--workdir={root}", "--prompt=a"],
        "lm.merge_lora": [f"--workdir={root}", f"--output={root.parent / 'merged'}"],
        "lm.compare": [f"--workdir={root},{root}"],
    }
    return [command, *own[command]]


def edit(root: Path, **changes: object) -> None:
    """Changes settings in config.json."""
    values = json.loads((root / "config.json").read_text())
    for name, value in changes.items():
        *sections, key = name.split("__")
        inner = values
        for section in sections:
            inner = inner[section]
        assert inner[key] != value
        inner[key] = value
    (root / "config.json").write_text(json.dumps(values))


def change_records(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the metadata of every checkpoint, as another version of the code would have written it."""
    for path in root.glob("checkpoints/*/record/metadata"):
        content = json.loads(path.read_text())["content"]
        change(content["metadata"])
        path.write_text(json.dumps({"content": content, "sha256": json_hash(content)}))


def assert_same_run(one: Path, two: Path) -> None:
    """Asserts that the arrays of the last checkpoints, by their checksums, and the metrics are equal to the bit."""
    records = [
        json.loads((root / "checkpoints" / str(checkpoints_of(root)[-1]) / "record" / "metadata").read_text())
        for root in (one, two)
    ]
    first, second = (record["content"] for record in records)
    assert first["step"] == second["step"] and first["leaves"] == second["leaves"]
    assert metrics(one) == metrics(two)


@pytest.mark.parametrize("command", COMMANDS)
def test_tokenizer_or_checkpoints_of_another_run_are_refused(refused, tiny, copy, other, tmp_path, command):
    for name in ("tokenizer", "checkpoints"):
        swapped = tmp_path / name
        shutil.copytree(copy, swapped)
        shutil.rmtree(swapped / name)
        shutil.copytree(other / name, swapped / name)
        refused("is not the tokenizer that", *arguments(command, tiny, swapped), keeping=tmp_path)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model__num_layers": 2}, "model.num_layers: 1 -> 2"),
        ({"model__activation": "relu"}, "model.activation: "),
        ({"model__lora_alpha": 3.0}, "model.lora_alpha: 16.0 -> 3.0"),
        ({"data__cleaning__unicode": "NFC"}, "data.cleaning.unicode: '' -> 'NFC'"),
    ],
)
def test_edited_config_is_refused(refused, tiny, copy, command, changes, named):
    edit(copy, **changes)
    refused(named, *arguments(command, tiny, copy, **changes), keeping=copy)


@pytest.mark.parametrize("command", COMMANDS[:3])
def test_edited_config_of_an_old_run_is_refused_by_the_shapes(refused, tiny, copy, command):
    """Such a run recorded no settings."""
    change_records(copy, lambda metadata: metadata.pop("config"))
    edit(copy, model__num_layers=2)
    refused("belongs to another model", *arguments(command, tiny, copy, model__num_layers=2), keeping=copy)


def test_training_compares_what_the_other_commands_ignore(refused, tiny, copy, call):
    edit(copy, optimizer__learning_rate=0.5)
    flags = arguments("train.py", tiny, copy, optimizer__learning_rate=0.5, train__num_steps=4)
    refused("optimizer.learning_rate: 0.001 -> 0.5", *flags, keeping=copy)
    assert call(*arguments("eval.py", tiny, copy)).status == 0


def test_run_without_its_tokenizer_is_refused(refused, tiny, copy):
    shutil.rmtree(copy / "tokenizer")
    for command in COMMANDS[:3]:
        refused("tokenizer", *arguments(command, tiny, copy), keeping=copy)


@pytest.mark.parametrize(
    ("broken", "problem"),
    [(lambda content: content.pop("metrics"), "has no metrics"), (lambda content: content.clear(), "has no format")],
)
def test_record_that_lacks_a_part_counts_as_damaged(call, tiny, copy, broken, problem):
    path = copy / "checkpoints" / "4" / "record" / "metadata"
    content = json.loads(path.read_text())["content"]
    broken(content)
    path.write_text(json.dumps({"content": content, "sha256": json_hash(content)}))
    outcome = call("lm.generate", f"--workdir={copy}", "--prompt=a", "--max_new_tokens=1")
    assert outcome.status == 0 and "Using the checkpoint for step 2" in outcome.stderr and problem in outcome.stderr


def old(root: Path, straight: Path) -> None:
    """Makes a copy of the run at step 2 as an earlier version would have left it."""
    shutil.copytree(straight, root)
    shutil.rmtree(root / "checkpoints" / "4")
    change_records(root, lambda metadata: metadata.pop("config"))


def test_old_run_continues_exactly(tiny, trained, tmp_path):
    old(tmp_path / "old", trained)
    assert train_here(tiny, tmp_path / "old", **SHORT, model__lora_rank=2) == 0
    assert_same_run(tmp_path / "old", trained)


def test_run_continues_with_equal_data_in_another_place_only(tiny, trained, refused, call, tmp_path):
    root = tmp_path / "run"
    old(root, trained)
    moved = Tiny(tmp_path / "elsewhere" / "renamed.txt", tiny.config, tiny.cache)
    moved.text.parent.mkdir()
    moved.text.write_text(tiny.text.read_text().replace("fox", "cat"))
    refused("changed: train/text, valid/text", *arguments("train.py", moved, root), keeping=root)
    shutil.copy(tiny.text, moved.text)
    outcome = call(*arguments("train.py", moved, root))
    assert outcome.status == 0, outcome.stderr
    assert f"data.train.text.path: '{tiny.text}' -> '{moved.text}'" in outcome.stdout.replace("\n", "")
    assert_same_run(root, trained)
    assert str(moved.text) in (root / "config.json").read_text(), "where eval.py looks from now on"


@pytest.mark.exhaustive
def test_labelled_data_that_moved_continues(tiny_labels, tmp_path):
    changes = {"train__num_steps": 8, "checkpoint__every_steps": 4, "eval__every_steps": 8}
    root, moved = tmp_path / "run", Tiny(tmp_path / "b.tsv", tiny_labels.config, tiny_labels.cache)
    assert train_here(tiny_labels, root, **changes) == 0
    shutil.copytree(root, tmp_path / "straight")
    shutil.rmtree(root / "checkpoints" / "8")
    shutil.copy(tiny_labels.text, moved.text)
    assert train_here(moved, root, **changes) == 0
    assert_same_run(root, tmp_path / "straight")


def test_refused_start_leaves_nothing(refused, call, tiny, tmp_path):
    root, data = tmp_path / "new" / "run", tmp_path / "data.txt"
    data.write_text("one line\n" * 100)
    bad = Tiny(data, tiny.config, tiny.cache)
    refused("no documents of text", *arguments("train.py", bad, root))
    assert sorted(tmp_path.iterdir()) == [data]
    flags = arguments("train.py", tiny, root, eval__prompts="('" + "fox " * 20 + "',)")
    refused("config.eval.prompts: prompt 1 has 81 tokens", *flags)
    assert sorted(tmp_path.iterdir()) == [data]
    root.mkdir(parents=True)
    refused("freeze", *arguments("train.py", tiny, root, optimizer__freeze="('nothing',)"))
    assert list(root.iterdir()) == [], "the directory was the user's"


def test_prompts_that_became_too_long_are_refused_before_anything_is_written(refused, tiny, copy):
    flags = arguments("train.py", tiny, copy, eval__prompts="('" + "fox " * 20 + "',)")
    refused("config.eval.prompts: prompt 1 has 81 tokens", *flags, keeping=copy)
    assert checkpoints_of(copy) == [2, 4]


@pytest.mark.exhaustive
def test_start_after_a_killed_one_trains_the_tokenizer_anew(tiny, trained, tmp_path):
    """A kill before the first step leaves a tokenizer, perhaps of other data, and temporary files."""
    root = tmp_path / "run"
    root.mkdir()
    shutil.copy(trained / "config.json", root)
    shutil.copytree(trained / "tokenizer", root / "tokenizer")
    (root / "tokenizer.tmp-abcd1234").mkdir()
    (root / ".config.json.999999999.tmp").write_text("{")
    (tmp_path / "data.txt").write_text("".join(f"ABC {n} DEF\n" for n in range(200)))
    changed = Tiny(tmp_path / "data.txt", tiny.config, tiny.cache)
    assert train_here(changed, root, **SHORT) == 0
    assert sorted(each.name for each in root.iterdir()) == sorted(each.name for each in trained.iterdir())
    assert content_of(root / "tokenizer") != content_of(trained / "tokenizer")


def test_other_commands_write_and_load_only_where_the_user_of_this_machine_says(call, tiny, copy, tmp_path):
    edit(copy, data__cache_dir=str(tmp_path / "chosen"))
    assert call("eval.py", f"--workdir={copy}").status == 0
    assert call("lm.generate", f"--workdir={copy}", "--prompt=a", "--max_new_tokens=1").status == 0
    assert not (tmp_path / "chosen").exists()

    shutil.rmtree(copy / "eval")
    (tmp_path / "home").mkdir()
    (copy / "eval").symlink_to(tmp_path / "home")
    outcome = call("eval.py", f"--workdir={copy}")
    assert "a symbolic link leads out of the run directory" in outcome.stderr
    assert list((tmp_path / "home").iterdir()) == []


def test_tfds_data_is_not_prepared_in_a_directory_that_the_run_names(tmp_path):
    config = SourceConfig(kind="tfds", path="mnist", data_dir=str(tmp_path / "chosen"))
    with pytest.raises(UserError, match=r"mnist: the data set is not prepared in .*chosen, the data_dir of this run"):
        FORMATS["tfds"].check_only_reads(config)
    assert not (tmp_path / "chosen").exists()
