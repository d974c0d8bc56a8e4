"""TFDS data sets by random access, without TensorFlow."""

from __future__ import annotations

import contextlib
import importlib
import os
from typing import Any

from lm.errors import UserError


class TfdsDataSet:
    """A data set by its TFDS name, with config and version if wanted. Raises UserError if there is none."""

    # Not registered by `import tensorflow_datasets`, although TensorFlow is not needed to import them.
    PACKAGES = ("datasets.{name}.{name}_dataset_builder", "text", "translate", "summarization", "question_answering")

    def __init__(self, name: str, data_dir: str = ""):
        self.name, self.data_dir = name, data_dir
        self.builder = self._find_builder()

    @property
    def full_name(self) -> str:
        """With config and version."""
        return self.builder.info.full_name

    def _build(self, **options: Any) -> Any:
        """TFDS's builder, or None if it knows no such data set."""
        import tensorflow_datasets as tfds

        if self.data_dir:
            options["data_dir"] = os.path.expanduser(self.data_dir)
        try:
            return tfds.builder(self.name, try_gcs=False, **options)
        except (tfds.core.registered.DatasetNotFoundError, ModuleNotFoundError) as error:
            if _needs_tensorflow(error):
                raise UserError(_tensorflow_message(self.name)) from error
            return None
        except (ValueError, AssertionError, OSError) as error:
            raise UserError(f"tfds {self.name}: {_first_line(error)}") from error

    def _find_builder(self) -> Any:
        import tensorflow_datasets as tfds

        name = self.name.partition("/")[0].partition(":")[0]
        builder = self._build()
        for package in self.PACKAGES:
            if builder is not None:
                return builder
            with contextlib.suppress(ModuleNotFoundError):
                importlib.import_module("tensorflow_datasets." + package.format(name=name))
            builder = self._build()
        if builder is None:
            raise UserError(
                f"tfds {self.name}: TFDS {tfds.__version__} has no data set {name!r}, nor is one prepared in "
                f"{self.data_dir or tfds.core.constants.DATA_DIR}."
            )
        return builder

    def open_split(self, split: str) -> Any:
        """The split, by random access; the data set is downloaded and prepared if it is not there yet."""
        try:
            if not self.builder.info.splits:
                self.builder = self._build(file_format="array_record")
                self.builder.download_and_prepare()
            return self.builder.as_data_source(split=split)
        except NotImplementedError as error:
            raise UserError(
                f"tfds {self.name}: it is prepared in {self.builder.data_path} without random access; "
                f"prepare it with file_format='array_record' in another data_dir ({_first_line(error)})."
            ) from error
        except Exception as error:  # TFDS and its download raise many kinds; all of them are about this data set
            if _needs_tensorflow(error):
                raise UserError(_tensorflow_message(self.name)) from error
            raise UserError(
                f"tfds {self.name}, split {split!r}: {type(error).__name__}: {_first_line(error)} "
                f"(splits: {', '.join(self.builder.info.splits or {}) or 'none yet'})"
            ) from error


def _needs_tensorflow(error: BaseException) -> bool:
    """Whether TensorFlow is what this error, or one that it came from, asked for and did not find."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ImportError) and "tensorflow" in (str(seen.name or ""), *str(seen).split("'")):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _tensorflow_message(name: str) -> str:
    return (
        f"tfds {name}: this data set needs TensorFlow to be prepared. Prepare it once where TensorFlow is installed "
        "(tfds build --file_format=array_record) and name the folder in data_dir; training needs no TensorFlow."
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
