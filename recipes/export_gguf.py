"""Write a decoder as a GGUF file, for llama.cpp and what is built on it.

    python recipes/export_gguf.py outputs/demo outputs/demo.gguf --llama-cpp ~/llama.cpp [--outtype q8_0]

The native export goes through llama.cpp's own converter, of a checkout or of the source distribution of
llama-cpp-python (`vendor/llama.cpp` in it). It knows how a tokenizer splits text by a fingerprint of its ids, which a
newly trained one cannot have; ours (`algorithm: bpe`) split as GPT-2's does, and that is what it is told.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from hf_llm.interop.folders import export_folder


SPLITS_LIKE_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


def splits_like_gpt2(tokenizer) -> bool:
    splitting = json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"]
    return all(splitting.get(name) == value for name, value in SPLITS_LIKE_GPT2.items())


def convert(native: str, destination: Path, outtype: str, llama_cpp: Path) -> None:
    """Run llama.cpp's converter on a native checkpoint."""
    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
    import convert_hf_to_gguf
    from conversion.base import TextModel

    by_fingerprint = TextModel.get_vocab_base_pre

    def name_of_splitting(self, tokenizer) -> str:
        try:
            return by_fingerprint(self, tokenizer)
        except NotImplementedError:
            if splits_like_gpt2(tokenizer):
                return "gpt-2"
            raise

    TextModel.get_vocab_base_pre = name_of_splitting
    sys.argv = ["convert_hf_to_gguf.py", native, "--outfile", str(destination), "--outtype", outtype]
    convert_hf_to_gguf.main()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SRC", help="a checkpoint of hf_llm, or a Hub id")
    parser.add_argument("destination", metavar="DST", type=Path, help="the GGUF file to write")
    parser.add_argument("--llama-cpp", type=Path, required=True, help="folder with convert_hf_to_gguf.py")
    parser.add_argument("--outtype", default="f32", help="f32, f16, bf16, q8_0, ... (default: f32)")
    parser.add_argument("--as", dest="family", help="native model_type; by default the nearest")
    arguments = parser.parse_args()
    if not (arguments.llama_cpp / "convert_hf_to_gguf.py").is_file():
        parser.error(f"--llama-cpp {arguments.llama_cpp}: there is no convert_hf_to_gguf.py in it")
    with tempfile.TemporaryDirectory() as folder:
        try:
            export_folder(arguments.source, f"{folder}/native", arguments.family)
        except (OSError, ValueError) as error:
            parser.error(str(error))
        convert(f"{folder}/native", arguments.destination, arguments.outtype, arguments.llama_cpp)


if __name__ == "__main__":
    main()
