"""Downloads models from the Hugging Face hub, using the optional package huggingface_hub."""

from __future__ import annotations

from pathlib import Path

from lm.errors import UserError

UNUSED = (
    # other weight formats
    *("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.ot", "*.pkl", "*.tflite", "*.gguf", "*.onnx*"),
    # folders and files that contain another copy of the model
    *("onnx/*", "openvino/*", "original/*", "coreml/*", "consolidated*"),
)


def download(name: str) -> Path:
    """Returns the local cache folder of a model, downloading the model if necessary.

    `name` is organisation/name or organisation/name@revision, where the revision is a branch, a tag or a commit.

    Raises UserError if the model cannot be downloaded.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            f"{name}: there is no such folder, and downloading a model from the hub requires huggingface_hub; run "
            "`pip install huggingface_hub`, or specify an existing folder."
        ) from None
    repository, _, revision = name.partition("@")
    try:
        return Path(
            huggingface_hub.snapshot_download(repository, revision=revision or None, ignore_patterns=list(UNUSED))
        )
    except Exception as error:  # invalid names, access, network, disk: these errors share no base class
        reason = " ".join(str(error).split())[:250] or type(error).__name__
        raise UserError(
            f"{name}: there is no such folder, and it cannot be downloaded from the hub ({reason}). Check the name "
            "and the network connection; if access to the model is restricted, run `hf auth login`."
        ) from None
