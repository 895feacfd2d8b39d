"""Diagnosis of a failed build: its log, read into the error that the caller gets. Pure."""

from __future__ import annotations

import difflib
import re

from atoll.environments.asked.redaction import redact
from atoll.errors import AtollError, DiskFull, EnvironmentBuildError

LOG_CHARACTERS = 4000
"""Characters of the log's end that an error carries."""

READ_CHARACTERS = 200_000
"""Characters of the log's end that are searched for the cause."""

WELL_KNOWN = (
    "accelerate aiohttp anyio beautifulsoup4 bokeh boto3 catboost celery click cryptography cython dash dask "
    "datasets diffusers django duckdb fastapi fastparquet flask fsspec gensim geopandas gradio grpcio h5py httpx "
    "huggingface-hub hypothesis jax jaxlib jinja2 joblib jupyter keras langchain librosa lightgbm lightning lxml "
    "matplotlib networkx nltk notebook numba numpy onnx onnxruntime openai opencv-python openpyxl optuna orjson "
    "pandas pillow plotly polars prophet protobuf psutil psycopg2-binary pyarrow pydantic pyjokes pymongo pytest "
    "python-dateutil pytorch-lightning pyyaml ray redis requests rich ruff safetensors scikit-image scikit-learn "
    "scipy seaborn sentence-transformers setuptools shapely soundfile spacy sqlalchemy starlette statsmodels "
    "streamlit sympy tensorboard tensorflow tiktoken tokenizers torch torchaudio torchvision tqdm transformers trl "
    "typer uvicorn wandb xarray xgboost"
)
"""Popular names that a missing one may be a slip of; separated by spaces."""

_RENAMED = {
    "sklearn": "scikit-learn",
    "cv2": "opencv-python",
    "pil": "pillow",
    "bs4": "beautifulsoup4",
    "yaml": "pyyaml",
    "skimage": "scikit-image",
    "dateutil": "python-dateutil",
}

_WHEELS_ONLY = re.compile(
    r"building\s+(source\s+distributions|from\s+source)\b.{0,120}?\bdisabled", re.IGNORECASE | re.DOTALL
)


def needs_building(log: str) -> bool:
    """Return whether an attempt with wheels only failed for the lack of wheels."""
    return _WHEELS_ONLY.search(log) is not None


def is_disk_full(log: str) -> bool:
    """Return whether the builder ran out of space."""
    return "No space left on device" in log or "os error 28" in log or "Disk quota exceeded" in log


def explain(key: str, status: int, log: str) -> AtollError:
    """Return the error that a failed build means.

    Args:
        key: the environment's, for the message.
        status: the builder's exit status, negative for a signal.
        log: everything it printed, without secrets.
    """
    prefix = f"could not build environment `{key[:8]}`: "
    log = log[-READ_CHARACTERS:]
    text = redact(log)
    tail = text[-LOG_CHARACTERS:]
    if is_disk_full(log):
        return DiskFull(
            prefix + "no space is left on the disk",
            hint="make space, for example with `atoll env prune --cache`",
            log=tail,
        )
    message, hint = _read(_joined(text), status)
    return EnvironmentBuildError(prefix + message, hint=hint, log=tail, status=status)


def explain_conda(key: str, status: int, log: str, *, kind: str, message: str) -> AtollError:
    """Return the error that a failed step of a conda build means.

    Args:
        key, status, log: as for `explain`.
        kind: the type of rattler's error; empty where the step ended without one.
        message: its text.
    """
    prefix = f"could not build environment `{key[:8]}`: "
    tail = log[-LOG_CHARACTERS:]
    text = " ".join(line.strip() for line in message.splitlines() if line.strip())[:2000]
    if is_disk_full(log):
        return DiskFull(
            prefix + "no space is left on the disk",
            hint="make space, for example with `atoll env prune --cache`",
            log=tail,
        )
    said, hint = _read_conda(kind, text, message, status)
    return EnvironmentBuildError(prefix + said, hint=hint, log=tail, status=status)


def _read_conda(kind: str, text: str, message: str, status: int) -> tuple[str, str]:
    if kind == "SolverError":
        said = re.sub(r"^Cannot solve the request because of: *", "", text).rstrip(".")
        absent = re.fullmatch(r"No candidates were found for (\S+) (\S.*)", said)
        if absent and absent[2] == "*":
            return f"no package `{absent[1]}` in the channels", "check its name, and which channel has it"
        if absent:
            return (
                f"no release of `{absent[1]} {absent[2]}` in the channels",
                "check the version, and the channels' releases for this Python and machine",
            )
        return f"the packages conflict: {said}", "loosen one of the versions"
    if kind.startswith("Invalid") or kind in ("ParseSubdirError", "PackageNameMatcherParseError"):
        return f"a package or channel cannot be read: {text}", 'write packages as in `"numpy>=2"`'
    if kind in ("GatewayError", "FetchRepoDataError"):
        refused = re.search(r"\b(401 Unauthorized|403 Forbidden|407 Proxy Authentication Required)\b", message)
        if refused:
            return f"a channel answers `{refused[1]}`", "check the credentials in the channel's address"
        return f"cannot read a channel: {text}", "check its address, the network and the proxy variables"
    if not kind:
        number = -status if status < 0 else status - 128
        return (
            (f"the builder was ended by signal {number}", "try again") if number > 0 else ("see the log", "see the log")
        )
    return text or f"the builder failed with `{kind}`", "see the log; `atoll env prune --cache` clears the cache"


def _joined(log: str) -> str:
    """Return the log with the builder's wrapped sentences on one line each."""
    return re.sub(r"\n[ \t]{7,}(?=And because|Because|we can conclude|\S+ depends|and )", " ", log)


def _read(log: str, status: int) -> tuple[str, str]:
    cause = _first(r"cause: (.+)", log)
    if "because the network was disabled" in log:
        name = _first(r"Because (\S+) was not found in the cache", log)
        return (
            f"offline, and {f'`{name}`' if name else 'a package'} is not in the cache",
            "build it once with the network, or unset `UV_OFFLINE`",
        )
    missing = _first(r"(?:Because |and )(\S+) was not found in the (?:package registry|provided)", log)
    if missing:
        near = _near(missing)
        return (
            f"no package `{missing}` in the package index",
            f"did you mean `{near}`?" if near else "check the name, and the index it comes from (`--index-url`)",
        )
    mismatch = re.search(r"Hash mismatch for `([^`\n]{1,200})`.{0,500}?Computed:\s+(\S+)", log, re.DOTALL)
    if mismatch:
        return (
            f"the index's file of `{mismatch[1]}` has another digest than the requirements ask for: `{mismatch[2]}`",
            "lock the versions again if that file is the right one",
        )
    refused = re.search(r"\b(401 Unauthorized|403 Forbidden|407 Proxy Authentication Required)\b", log)
    if refused:
        return (f"the package index answers `{refused[1]}`", "check the credentials of the index or the proxy")
    if re.search(
        r"Request failed after|dns error|tcp connect error|Could not resolve host|Failed to fetch|error sending request"
        r"|unable to access|Network is unreachable",
        log,
    ):
        host = _first(r"(?:Failed to fetch: `?|url \(|unable to access ')[a-z+]+://([^/\s`'):]+)", log)
        reason = [line.strip() for line in re.findall(r"cause: (.+)", log)]
        return (
            f"cannot reach {f'`{host}`' if host else 'the package index'}" + (f" ({reason[-1]})" if reason else ""),
            "check the network and the proxy variables; cached packages build with `UV_OFFLINE=1`",
        )
    denied = _first(r"`(/[^`]+)`: Permission denied", log)
    if denied:
        return (f"the builder may not read `{denied}`", f"let everyone read it: `chmod a+rX {denied}`")
    failed = _first(r"Failed to build:? `?([^`\s]+)`?", log) or _first(r"error: Failed to build `?([^`\s]+)", log)
    if failed or any(words in log for words in ("Call to `", "Build backend", "Build failures usually indicate")):
        return (
            f"{f'`{failed}`' if failed else 'a package'} failed to build from its source",
            (
                "the log says why; a version with wheels for this Python needs no build, and builds may need "
                "system packages (compilers, headers)"
            ),
        )
    absent = _first(r"there (?:is|are) no versions? of (\S+)", log)
    if absent:
        return (f"no release of `{absent.rstrip('.,')}` matches", "check the version, and the index's releases")
    if re.search(r"no wheels? with a matching|no usable wheels", log):
        return (
            _sentence(cause) or "a package has no wheel for this Python",
            "ask for another version of the package or another `python_version`",
        )
    if "unsatisfiable" in log or "incompatible" in log:
        return ("the requirements conflict: " + _sentence(cause), "loosen one of the versions")
    if "Git operation failed" in log:
        return ("a repository cannot be fetched", "check its address and that it can be read from here")
    if status < 0 or status > 128:
        return (f"the builder was ended by signal {-status if status < 0 else status - 128}", "try again")
    last = next((line for line in reversed(log.splitlines()) if line.strip()), "")
    return (_sentence(_first(r"error: (.+)", log) or last) or f"the builder ended with status {status}", "see the log")


def _first(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match[1].strip() if match else ""


def _sentence(text: str) -> str:
    text = re.sub(r",? we can conclude that (your requirements are unsatisfiable|the requirements.*)", "", text)
    text = text.strip().rstrip(".")
    return text[:1].lower() + text[1:500] if text[1:2].islower() or " " in text[:2] else text[:500]


def _near(name: str) -> str:
    known = _RENAMED.get(name.lower())
    found = known or next(iter(difflib.get_close_matches(name.lower(), WELL_KNOWN.split(), n=1, cutoff=0.8)), "")
    return found if found != name.lower() else ""  # it is spelled well: the index lacks it
