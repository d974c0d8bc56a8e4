"""How error messages about data refer to the settings: by their names in a config, or by the flags of a command."""

from __future__ import annotations

from dataclasses import dataclass

from lm.config import SourceConfig

SPLIT = "split it"


@dataclass(frozen=True)
class Wording:
    """Advice in error messages. The defaults suit the data sources of a config."""

    # Advice if a file is in a different encoding, whose name replaces {}.
    encoding: str = "set the source's encoding to {}"
    # Advice if a line or document is too long.
    length: str = (
        f"{SPLIT} (for text, see `document`) or, if there is enough memory, increase the source's longest_line"
    )
    # Maps settings to the flags of the command; None if the settings come from a config.
    flags: dict[str, str] | None = None

    def name(self, setting: str, quote: str = "") -> str:
        """Returns the flag, such as --field, or the name of the setting, with `quote` on both sides."""
        return f"{quote}{setting}{quote}" if self.flags is None else f"--{self.flags.get(setting, setting)}"

    def assign(self, setting: str, value: str) -> str:
        """Returns the setting or the flag with a value, such as kind='csv' or --format=csv."""
        return f"{setting}={value!r}" if self.flags is None else f"{self.name(setting)}={value}"

    def omit(self, value: str = "") -> str:
        """Returns the advice to keep the default value of a setting. `value` completes the phrase "leave it"."""
        return f"leave it {value or 'empty'}" if self.flags is None else "omit it"


class InputSource(SourceConfig):
    """A data source for new inputs, described by the flags of lm.predict."""

    wording = Wording(
        "set --encoding to {}", f"{SPLIT} (for text, see --document)", {"kind": "format", "path": "input"}
    )


class TextSource(SourceConfig):
    """Text files named by a flag, such as eval.py's --text. They are read with the default settings."""

    wording = Wording("convert it from {} to UTF-8 first", SPLIT)


PLAIN_TEXT = TextSource()  # for UTF-8 files that are not data sources of a config


def wording_of(config: SourceConfig) -> Wording:
    """Returns the wording for messages about a data source."""
    return getattr(config, "wording", Wording())
