"""What can be seen of a checkpoint without opening it: configuration, version, code, weights, files, card.

Each check takes a `Folder` and returns what it saw; it raises ValueError (or another error) if that is wrong, and
`NotApplicable` if there is nothing to check.
"""

import json
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import torch
import transformers
from huggingface_hub.repocard import metadata_load
from packaging.version import Version
from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig

from .. import registration
from ..interop.loading import PICKLES
from ..manifest import MANIFEST, defect
from ..models.base import check_shards
from ..models.common import VERSION, auto_map
from .bare import NotApplicable
from .code import KNOWN_FAULTS, differing, installed_code, tested_versions


# What a run leaves beside its model, for itself and not for others: neither checked nor published.
NOT_PUBLISHED = (
    *("checkpoint-*", "runs/*", "tokenizer/*", ".*", "_*", MANIFEST),
    *("optimizer.pt", "scheduler.pt", "rng_state*.pth", "trainer_state.json", "run_config.json", "data_state.json"),
)
# what the Hub calls the task of each head
PIPELINE_TAGS = {
    "ForCausalLM": "text-generation",
    "ForMaskedLM": "fill-mask",
    "ForConditionalGeneration": "text2text-generation",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMultipleChoice": "multiple-choice",
}


@dataclass(frozen=True)
class Folder:
    """A checkpoint and its config.json."""

    path: Path
    config: dict

    @property
    def stack(self) -> str:
        return self.config["model_type"].removeprefix("hf_llm_")

    @property
    def head(self) -> str:
        """The head that was saved: "ForCausalLM", ..., "Model"; "" if config.json names none."""
        named = (self.config.get("architectures") or [""])[0]
        return next((head for head in (*PIPELINE_TAGS, "Model") if named.endswith(head)), "")

    @property
    def files(self) -> list[str]:
        return published_files(self.path)


def published_files(folder: Path) -> list[str]:
    """Names, relative to the folder, of what `hf-llm publish` would upload."""
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    return [name for name in names if not any(fnmatch(name, pattern) for pattern in NOT_PUBLISHED)]


def read_folder(path: Path) -> Folder:
    """The checkpoint at `path`. Raises ValueError if that is none of hf_llm."""
    if (path / "adapter_config.json").is_file():
        raise ValueError("an adapter alone: `hf-llm merge ADAPTER DST` writes a checkpoint with it in its weights")
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"config.json cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"config.json is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError("config.json holds no JSON object")
    known = [config_class.model_type for config_class, _ in registration.STACKS.values()]
    if config.get("model_type") not in known:
        raise ValueError(f"`model_type={config.get('model_type')!r}` is none of hf_llm ({', '.join(known)})")
    return Folder(path, config)


def check_auto_map(folder: Folder) -> str:
    """Every Auto class of the stack has its file and class."""
    expected, found = auto_map(folder.stack), folder.config.get("auto_map", {})
    wrong = [f"{name} is {found.get(name, 'missing')}" for name in expected if found.get(name) != expected[name]]
    if wrong:
        raise ValueError(f"`auto_map`: {', '.join(wrong)}")
    named = folder.config.get("architectures") or []
    classes = [target.split(".")[1] for target in expected.values()]
    if len(named) != 1 or named[0] not in classes:
        raise ValueError(f"`architectures={named}` must name one of {', '.join(dict.fromkeys(classes[1:]))}")
    return f"{len(expected) - 1} heads"


def check_version(folder: Folder) -> str:
    """It names the version that wrote it."""
    version = folder.config.get("hf_llm_version")
    if not isinstance(version, str) or not re.fullmatch(r"\d+\.\d+\.\d+\S*", version):
        raise ValueError(f"`hf_llm_version={version!r}` in config.json names no version")
    other = "" if version == VERSION else f"; installed is {VERSION}"
    return f"written by hf_llm {version}{other}"


def check_code(folder: Folder) -> str:
    """The code files are there and, if this version wrote them, to the byte those that it writes."""
    present = {name for name in folder.files if name.endswith(".py")}
    version = folder.config.get("hf_llm_version")
    if version != VERSION:
        raise NotApplicable(f"{len(present)} files of hf_llm {version}, to compare with an installed {VERSION}")
    missing, altered = differing(folder.path, folder.config)
    problems = {"missing": missing, f"other than in hf_llm {VERSION}": altered}
    if missing or altered:
        raise ValueError("; ".join(f"{what}: {', '.join(files)}" for what, files in problems.items() if files))
    expected = installed_code(folder.config)
    extra = sorted(present - set(expected))
    return f"{len(expected)} files, as in hf_llm {VERSION}" + (f"; besides them {', '.join(extra)}" if extra else "")


def check_known_faults(folder: Folder) -> str:
    """The code is not older than the mending of a known fault."""
    faults = [what for name, what in KNOWN_FAULTS.items() if name not in folder.files]
    if faults:
        raise ValueError(f"{'; '.join(faults)}. `hf-llm update` brings newer code, and leaves the weights as they are")
    return "none"


def check_tested_versions(folder: Folder) -> str:
    """The versions that the code says it was tested with, beside those that are here."""
    tested = tested_versions(folder.path, folder.config.get("hf_llm_version"))
    if not tested:
        raise NotApplicable("the code does not say")
    here = f"transformers {transformers.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    return f"{', '.join(tested)}; here {here}"


def check_weights(folder: Folder) -> str:
    """Every safetensors file is whole, and every number finite."""
    shards = [name for name in folder.files if name.endswith(".safetensors")]
    check_shards(folder.path)
    index = folder.path / "model.safetensors.index.json"
    if index.is_file():
        placed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    elif "model.safetensors" in shards:
        placed = None
    else:
        raise ValueError("no model.safetensors, and no index of shards")
    found, numbers, dtypes = {}, 0, set()
    for shard in sorted(set(placed.values())) if placed else ("model.safetensors",):
        try:
            with safe_open(folder.path / shard, framework="pt") as file:
                for name in file.keys():
                    tensor = file.get_tensor(name)
                    if not bool(torch.isfinite(tensor).all()):
                        raise ValueError(f"{name} in {shard} has numbers that are not finite")
                    found[name] = shard
                    numbers += tensor.numel()
                    dtypes.add(str(tensor.dtype).removeprefix("torch."))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{shard} is torn or missing: {error}") from error
    if placed and placed != found:
        wrong = sorted(set(placed.items()) ^ set(found.items()))
        raise ValueError(f"shards and {index.name} disagree about {wrong[0][0]}")
    return f"{len(found)} tensors, {numbers:,} numbers ({', '.join(sorted(dtypes))}), all finite"


def check_manifest(folder: Folder) -> str:
    """Sizes and hashes are those that were written."""
    if not (folder.path / MANIFEST).is_file():
        raise NotApplicable(f"no {MANIFEST}")
    if (reason := defect(folder.path)) is not None:
        raise ValueError(reason)
    return "every file as it was written"


def check_pickles(folder: Folder) -> str:
    """Nothing that runs code when it is opened."""
    found = [name for name in folder.files if any(fnmatch(name, pattern) for pattern in (*PICKLES, "*.pkl"))]
    if found:
        raise ValueError(f"can run code when opened: {', '.join(found)}")
    return "none"


def check_generation_config(folder: Folder) -> str:
    """It is valid, and its tokens are in the vocabulary."""
    if not (folder.path / "generation_config.json").is_file():
        if folder.head in ("ForCausalLM", "ForConditionalGeneration"):
            raise ValueError("generation_config.json is missing")
        raise NotApplicable("the model does not generate")
    settings = GenerationConfig.from_pretrained(folder.path)
    settings.validate(strict=True)
    size = folder.config["vocab_size"]
    ids = {name: value for name, value in settings.to_dict().items() if name.endswith("_token_id")}
    for name, value in ids.items():
        for number in value if isinstance(value, list) else [value]:
            if number is not None and not 0 <= number < size:
                raise ValueError(f"`{name}={value}` is beyond the vocabulary (`vocab_size={size}`)")
    return ", ".join(f"{name} {value}" for name, value in ids.items() if value is not None) or "valid"


def check_card(folder: Folder) -> str:
    """README.md says how the model is opened, what it does and, if anything, a version that there was by then."""
    card = folder.path / "README.md"
    if not card.is_file():
        raise ValueError("README.md is missing")
    metadata = metadata_load(card)
    if not metadata:
        raise ValueError("README.md has no metadata (a block of YAML between two lines of ---)")
    if metadata.get("library_name") != "transformers":
        raise ValueError(f"`library_name: {metadata.get('library_name')}` must be transformers")
    tag = metadata.get("pipeline_tag")
    if not isinstance(tag, str):
        raise ValueError("`pipeline_tag` is missing: the Hub would not know what the model does")
    expected = PIPELINE_TAGS.get(folder.head)
    if folder.head and tag in PIPELINE_TAGS.values() and tag != expected:
        raise ValueError(f"`pipeline_tag: {tag}`, but {folder.head} is for {expected or 'none of these tasks'}")
    said = set(re.findall(r"\bhf_llm (\d+\.\d+\.\d+\w*)", card.read_text(encoding="utf-8")))
    version = folder.config.get("hf_llm_version")  # of the code, which may have been updated since the training
    if newer := sorted(v for v in said if Version(v) > Version(str(version))):
        raise ValueError(f"speaks of hf_llm {', '.join(newer)}, which is newer than config.json's {version}")
    licence = metadata.get("license")
    return f"{tag}; " + (f"license {licence}" if licence else "no license stated (`license:` in README.md)")


CHECKS: dict[str, Callable[[Folder], str]] = {
    "auto_map": check_auto_map,
    "version": check_version,
    "code": check_code,
    "known faults": check_known_faults,
    "tested with": check_tested_versions,
    "weights": check_weights,
    "manifest": check_manifest,
    "pickles": check_pickles,
    "generation config": check_generation_config,
    "card": check_card,
}
