"""Downloads models of the Hugging Face hub, if the optional package huggingface_hub is installed."""

from __future__ import annotations

from pathlib import Path

from lm.errors import UserError

UNUSED = (
    # other formats of the weights
    *("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.ot", "*.pkl", "*.tflite", "*.gguf", "*.onnx*"),
    # folders and files that hold the model once more
    *("onnx/*", "openvino/*", "original/*", "coreml/*", "consolidated*"),
)


def download(name: str) -> Path:
    """Returns the folder in the local cache that holds a model, which is downloaded if it is not there.

    `name` is organisation/name, or organisation/name@revision with a branch, a tag or a commit. Raises UserError.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            f"{name}: there is no such folder, and to download a model of the hub, huggingface_hub is needed; run "
            "`pip install huggingface_hub`, or give a folder."
        ) from None
    repository, _, revision = name.partition("@")
    try:
        return Path(
            huggingface_hub.snapshot_download(repository, revision=revision or None, ignore_patterns=list(UNUSED))
        )
    except Exception as error:  # of many kinds, with different bases: names, access, network, disk
        reason = " ".join(str(error).split())[:250] or type(error).__name__
        raise UserError(
            f"{name}: there is no such folder, and it cannot be downloaded from the hub ({reason}). Check the name, "
            "the network, and, for a model with restricted access, `hf auth login`."
        ) from None
