"""Reads TFDS data sets with random access and without TensorFlow."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from lm.config import SourceConfig
from lm.data.reading.fields import Field, Record
from lm.data.reading.format import Format
from lm.errors import UserError

# Packages with data sets that `import tensorflow_datasets` does not register; they work without TensorFlow.
PACKAGES = ("datasets.{name}.{name}_dataset_builder", "text", "translate", "summarization", "question_answering")

UNIT = 1 << 16  # number of examples in a unit
RETRIES = 5  # number of retries of a download; the default, 10, takes two minutes without a network


class Tfds(Format):
    doc = "a TFDS data set"
    settings = (*Format.settings, "data_dir")
    reads = ("split",)

    def __init__(self, config: SourceConfig):
        super().__init__(config)
        self.builder = self._find_builder()

    @classmethod
    def check_only_reads(cls, config: SourceConfig) -> None:
        if config.data_dir and not cls(config).builder.info.splits:
            raise UserError(
                f"tfds {config.path}: the data set is not prepared in {config.data_dir}, the data_dir of this run; "
                "prepare it there with `tfds build`, or select other data with --config."
            )

    def identity(self) -> list[str]:
        return [self.builder.info.full_name, self.config.split, self.config.field]

    def records(self, fields: Sequence[Field]) -> Iterator[tuple[Record, str]]:
        return self._records(range(len(self._data)))

    def num_units(self) -> int:
        return max(1, -(-len(self._data) // UNIT))

    def records_of(self, unit: int, fields: Sequence[Field]) -> Iterator[tuple[Record, str]]:
        return self._records(range(unit * UNIT, min((unit + 1) * UNIT, len(self._data))))

    def _records(self, indices: range) -> Iterator[tuple[Record, str]]:
        where = f"tfds {self.config.path}, split {self.config.split!r}"
        if not len(self._data):
            raise UserError(f"{where}: the split is empty.")
        for i in indices:
            yield self._data[i], f"{where}, example {i}"

    @cached_property
    def _data(self) -> Any:
        return self._open_split()

    def _find_builder(self) -> Any:
        import tensorflow_datasets as tfds

        name = self.config.path.partition("/")[0].partition(":")[0]
        for package in ("", *PACKAGES):
            with contextlib.suppress(ModuleNotFoundError):
                importlib.import_module(f"tensorflow_datasets.{package.format(name=name)}".rstrip("."))
            if (builder := self._build()) is not None:
                return builder
        raise UserError(
            f"tfds {self.config.path}: TFDS {tfds.__version__} has no data set {name!r}, and no data set of this name "
            f"is prepared in {self.config.data_dir or tfds.core.constants.DATA_DIR}."
        )

    def _build(self, **options: Any) -> Any:
        """Returns the TFDS builder, or None if TFDS has no such data set."""
        import tensorflow_datasets as tfds

        if self.config.data_dir:
            options["data_dir"] = os.path.expanduser(self.config.data_dir)
        try:
            return tfds.builder(self.config.path, try_gcs=False, **options)
        except (tfds.core.registered.DatasetNotFoundError, ModuleNotFoundError) as error:
            self._check_tensorflow(error)
            return None
        except (ValueError, AssertionError, OSError) as error:
            raise UserError(f"tfds {self.config.path}: {_first_line(error)}") from error

    def _open_split(self) -> Any:
        """Returns the split as a sequence, after downloading and preparing the data set if necessary."""
        from tensorflow_datasets.core.download import downloader

        name, split = self.config.path, self.config.split
        try:
            if not self.builder.info.splits:
                downloader.MAX_RETRIES = RETRIES
                self.builder = self._build(file_format="array_record")
                self.builder.download_and_prepare()
            return self.builder.as_data_source(split=split)
        except NotImplementedError as error:
            problem = f"the copy in {self.builder.data_path} does not support random access"
            advice = f"prepare the data set with file_format='array_record' in another data_dir ({_first_line(error)})."
            raise UserError(f"tfds {name}: {problem}; {advice}") from error
        except Exception as error:  # TFDS and its downloads raise many types of exceptions
            self._check_tensorflow(error)
            splits, problem = ", ".join(self.builder.info.splits or {}), f"{type(error).__name__}: {_first_line(error)}"
            raise UserError(f"tfds {name}, split {split!r}: {problem} (splits: {splits or 'none yet'})") from error

    def _check_tensorflow(self, error: BaseException) -> None:
        """Raises UserError if `error` is a failed import of TensorFlow or was caused by one."""
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ImportError) and "tensorflow" in (str(cause.name or ""), *str(cause).split("'")):
                raise UserError(
                    f"tfds {self.config.path}: preparing this data set requires TensorFlow. Prepare it where "
                    "TensorFlow is installed (tfds build --file_format=array_record) and set data_dir accordingly; "
                    "training does not need TensorFlow."
                ) from error
            cause = cause.__cause__ or cause.__context__


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
