"""Committed files: no trace of one machine, no large files, locks that agree with the requirements."""

import re
import subprocess
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
NOT_OURS = {".git", ".venv", "runs", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis"}
LARGEST_FILE = 500_000  # bytes
LOCKS = tuple(f"requirements{more}.lock" for more in ("", "-dev", "-cuda", "-tpu"))
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORMS = (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))

# Folders of one person's or one worker's machine, at the start of a path.
MACHINE_PATH = re.compile(r"(?<![\w.$}~-])/(?:work|root|tmp/dev|opt/pypi|home/\w+|Users/\w+)(?![\w-])")
INDEX_HOST = re.compile(r"pypi\.org|pythonhosted|index-url|find-links|https?:|^-", re.MULTILINE)


def committed_files() -> list[Path]:
    """Returns the files that git tracks; without git, all that running the project does not create."""
    if (ROOT / ".git").exists():
        listing = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True, check=False)
        if listing.returncode == 0:
            return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]
    return [path for path in ROOT.rglob("*") if path.is_file() and not NOT_OURS & set(path.relative_to(ROOT).parts)]


def machine_paths(text: str) -> list[str]:
    return [match.group() for match in MACHINE_PATH.finditer(text)]


def requirements(name: str) -> list[Requirement]:
    """Returns all requirements of a file and of the files that it includes with -r."""
    found = []
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("-r "):
            found += requirements(line.removeprefix("-r ").strip())
        elif line:
            found.append(Requirement(line))
    return found


def lock(name: str) -> list[tuple[Requirement, frozenset[str]]]:
    """Returns each locked release, name==version with its marker, and its allowed hashes."""
    text = "\n".join(line for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if "#" not in line[:5])
    entries = []
    for entry in text.replace("\\\n", " ").splitlines():
        release, *hashes = entry.split("--hash=")
        if release.strip():
            entries.append((Requirement(release.strip()), frozenset(each.strip() for each in hashes)))
    return entries


def applies(marker: Marker | None, python: str, platform: str, machine: str) -> bool:
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.7",
        "sys_platform": platform,
        "platform_system": platform.capitalize(),
        "platform_machine": machine,
    }
    return marker is None or marker.evaluate(environment)


def test_no_file_names_a_machine():
    assert len(committed_files()) > 20
    for path in committed_files():
        if path.suffix != ".png":
            assert machine_paths(path.read_text(encoding="utf-8", errors="replace")) == [], path


@pytest.mark.parametrize("folder", ["work", "root", "home/ann", "Users/ann", "tmp/dev"])
def test_machine_path_is_found(folder):
    assert machine_paths(f'open("/{folder}/corpus.txt")') == [f"/{folder}"]
    assert machine_paths(f"$HOME/{folder}/x, ../{folder}, {folder}/x, a/{folder}, /workspace") == []


def test_no_file_is_large():
    sizes = {path: path.stat().st_size for path in committed_files()}
    assert {path: size for path, size in sizes.items() if size > LARGEST_FILE} == {}


@pytest.mark.parametrize("name", LOCKS)
def test_locks_hash_every_release_and_name_no_index(name):
    assert INDEX_HOST.findall((ROOT / name).read_text(encoding="utf-8")) == []
    for release, hashes in lock(name):
        assert re.fullmatch(r"==[^,*]+", str(release.specifier)), release
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes), release


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(
    ("wanted", "locked"),
    [(name.replace("lock", "txt"), name) for name in LOCKS],
)
def test_every_direct_requirement_is_locked_once_within_its_bounds(wanted, locked, python):
    for platform, machine in PLATFORMS:
        target = (python, platform, machine)
        versions: dict[str, list[str]] = {}
        for release, _ in lock(locked):
            if applies(release.marker, *target):
                versions.setdefault(canonicalize_name(release.name), []).append(str(release.specifier)[2:])
        for requirement in requirements(wanted):
            if applies(requirement.marker, *target):
                found = versions.get(canonicalize_name(requirement.name), [])
                assert len(found) == 1, f"{requirement} is locked {len(found)} times for {target}"
                assert requirement.specifier.contains(found[0]), f"{requirement} is locked at {found[0]} for {target}"


def test_every_direct_requirement_has_both_bounds():
    for requirement in requirements("requirements-dev.txt"):
        operators = {each.operator for each in requirement.specifier}
        assert {">=", "<"} <= operators, requirement


@pytest.mark.parametrize("name", LOCKS[1:])
def test_other_locks_include_the_first(name):
    """.ci/environment relies on this: it installs the one on top of the other."""
    with_hashes = {str(release): hashes for release, hashes in lock(name)}
    for release, hashes in lock("requirements.lock"):
        assert with_hashes.get(str(release)) == hashes, release


@pytest.mark.parametrize("name", ["requirements.txt", *LOCKS])
def test_tensorflow_and_torch_are_not_required(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    names = {canonicalize_name(name) for name in re.findall(r"^([A-Za-z][\w.-]*)", text, re.MULTILINE)}
    assert "jax" in names
    assert not names & {"tensorflow", "tensorflow-cpu", "tf-nightly", "keras", "torch"}
