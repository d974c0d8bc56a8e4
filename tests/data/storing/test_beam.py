"""An Apache Beam pipeline makes the stores of one process, and says what is missing."""

import pickle
import sys
import types

import pytest

from lm.config import Config, defaults, source
from lm.data.reading import finding
from lm.data.storing import beam
from lm.data.storing.documents import Documents
from lm.data.storing.splits import split_sources
from lm.data.tokenizing.bytes import ByteTokenizer
from lm.errors import UserError
from lm.tasks import task_of
from lm.tasks.texts import open_stores
from tests.data.storing.documents import TEXTS, contents

pytestmark = pytest.mark.usefixtures("small_chunks")


@pytest.fixture
def several_files(tmp_path, monkeypatch):
    """Documents of several files, each a unit of its own, and an empty one."""
    monkeypatch.setattr(finding, "UNIT_BYTES", 10)
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text("\n".join(TEXTS[number * 20 : number * 20 + 20 * (number != 2)]))
    values = defaults()
    values.data.train.a = source(path=str(tmp_path / "*.txt"), document="line")
    values.data.cleaning.deduplicate = True
    values.data.cache_dir = str(tmp_path)
    config = Config.from_dict(values.to_dict())

    def store(cache, **changes):
        values.data.update(changes)
        config = Config.from_dict(values.to_dict())
        (split,) = split_sources(config.data, "train")
        (found,) = open_stores(task_of(config), split, {"": ByteTokenizer()}, cache)
        return found

    (split,) = split_sources(config.data, "train")
    reader, rules = task_of(config).open(split)
    return Documents(split, reader, rules, ByteTokenizer()), store


def test_the_functions_of_the_pipeline_write_the_parts_of_one_process(tmp_path, several_files):
    found, _ = several_files
    assert found.num_units() >= 4
    read, write = pickle.loads(
        pickle.dumps((beam.UnitReader(found, tmp_path / "p"), beam.ChunkWriter(found, tmp_path / "p")))
    )
    (tmp_path / "p").mkdir()
    names = [write(named) for unit in reversed(range(found.num_units())) for named in read(unit)]
    assert len(names) == len(list(found.all_chunks())) > found.num_units()
    for name, chunk in found.all_chunks():
        found.encoder.part(chunk).save(tmp_path / f"{name}.part")
        assert (tmp_path / f"{name}.part").read_bytes() == (tmp_path / "p" / f"{name}.part").read_bytes()
    assert not any(True for unit in range(found.num_units()) for _ in read(unit)), "all parts are done"
    assert beam.names_of_parts(tmp_path / "p", found.num_units()) == [name for name, _ in found.all_chunks()]


@pytest.mark.parametrize("lost", ["000001-000002.part", "000002.total", "*"])
def test_parts_that_are_missing_are_reported(tmp_path, several_files, lost):
    found, _ = several_files
    (tmp_path / "p").mkdir()
    read, write = beam.UnitReader(found, tmp_path / "p"), beam.ChunkWriter(found, tmp_path / "p")
    for unit in range(found.num_units()):
        assert all(map(write, read(unit)))
    for path in list((tmp_path / "p").glob(lost)):
        path.unlink()
    named = "000000.total" if lost == "*" else lost
    with pytest.raises(UserError, match=rf"config\.data\.beam: .*/p/{named} is missing on this machine; all machines"):
        beam.names_of_parts(tmp_path / "p", found.num_units())


def test_beam_makes_the_same_store(tmp_path, several_files):
    pytest.importorskip("apache_beam")
    _, store = several_files
    one = store(tmp_path / "one", store_workers=1)
    other = store(tmp_path / "other", beam="--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner")
    assert contents(one) == contents(other)


def test_beam_that_is_missing_is_reported_in_one_line(tmp_path, several_files, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    _, store = several_files
    with pytest.raises(UserError, match=r"config\.data\.beam: Apache Beam is not installed; run `pip install -r"):
        store(tmp_path / "cache", beam="--runner=DirectRunner")


def test_a_failed_pipeline_keeps_its_parts_and_the_reason(tmp_path, several_files, monkeypatch):
    _, store = several_files

    def fail(options):
        (parts,) = (tmp_path / "cache").glob("*.parts")
        (parts / "000000-000000.part").write_text("x")
        raise RuntimeError("Traceback (most recent call last):\n  File ...\nValueError: the flow was cut\n")

    library, options = types.ModuleType("apache_beam"), types.ModuleType("pipeline_options")
    library.Pipeline, options.PipelineOptions = fail, list
    monkeypatch.setitem(sys.modules, "apache_beam", library)
    monkeypatch.setitem(sys.modules, "apache_beam.options", types.ModuleType("options"))
    monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", options)
    with pytest.raises(UserError, match=r"config\.data\.beam: the pipeline failed \(ValueError: the flow was cut\)\."):
        store(tmp_path / "cache", beam="--runner=DirectRunner")
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match="Apache Beam is not installed"):
        store(tmp_path / "cache", beam="--runner=DirectRunner")
    assert len(list((tmp_path / "cache").glob("*.parts/*.part"))) == 1
