"""How error messages about data refer to the settings: by their names in a config, or by the flags of a command."""

from __future__ import annotations

from dataclasses import dataclass

from lm.config import SourceConfig

SPLIT = "split it"


@dataclass(frozen=True)
class Wording:
    """Advice in error messages. The defaults suit the data sources of a config.

    Attributes:
        encoding: the advice if a file has another encoding, for which {} stands.
        length: the advice if a line or document is too long.
        flags: maps settings to the flags of the command; None if the settings come from a config.
    """

    encoding: str = "set the source's encoding to {}"
    length: str = (
        f"{SPLIT} (for text, see `document`) or, if there is enough memory, increase the source's longest_line"
    )
    flags: dict[str, str] | None = None

    @property
    def unknown_encoding(self) -> str:
        return self.encoding.format("the file's encoding (e.g. cp1252, latin-1, gb18030)")

    def name(self, setting: str, quote: str = "") -> str:
        """Returns the flag, such as --field, or the name of the setting between quotation marks."""
        return f"{quote}{setting}{quote}" if self.flags is None else f"--{self.flags.get(setting, setting)}"

    def assign(self, setting: str, value: str) -> str:
        """Returns the setting or the flag with a value, such as kind='csv' or --format=csv."""
        return f"{setting}={value!r}" if self.flags is None else f"{self.name(setting)}={value}"

    def omit(self, value: str = "") -> str:
        """Returns the advice if a setting must keep its default, which `value` describes."""
        return f"leave it {value or 'empty'}" if self.flags is None else "omit it"


SETTINGS = Wording()
UTF8_ONLY = Wording("convert it from {} to UTF-8 first", SPLIT)  # for files whose encoding no setting specifies
INPUT = Wording("set --encoding to {}", f"{SPLIT} (for text, see --document)", {"kind": "format", "path": "input"})


class InputSource(SourceConfig):
    """A data source for new inputs, which the flags of lm.predict describe."""

    wording = INPUT


class TextSource(SourceConfig):
    """Text files that a flag names, such as --text of eval.py. They are read with default settings."""

    wording = UTF8_ONLY


PLAIN_TEXT = TextSource()  # for UTF-8 files that are not data sources of a config


def wording_of(config: SourceConfig) -> Wording:
    """Returns the wording for messages about a data source."""
    return getattr(config, "wording", SETTINGS)
