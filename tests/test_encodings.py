"""Text files are UTF-8 on every machine, whatever its locale says."""

import ast
from pathlib import Path


ROOT = Path(__file__).parents[1]
OTHERS = ("tarfile", "tokenize", "os")  # whose `open` takes no encoding


def opens_text(call: ast.Call) -> bool:
    """Whether a call reads or writes text by the locale's encoding."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if name not in ("open", "read_text", "write_text") or any(k.arg == "encoding" for k in call.keywords):
        return False
    values = [*call.args, *(k.value for k in call.keywords)]
    is_binary = any(isinstance(v, ast.Constant) and v.value in ("rb", "wb", "ab", "rb+") for v in values)
    return not is_binary and getattr(getattr(call.func, "value", None), "id", "") not in OTHERS


def test_text_files_name_their_encoding():
    found = []
    for path in [p for folder in ("hf_llm", "recipes") for p in (ROOT / folder).rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        nodes = ast.walk(ast.parse(text)) if "open(" in text or "_text(" in text else ()
        calls = (node for node in nodes if isinstance(node, ast.Call))
        found += [f"{path.relative_to(ROOT)}:{call.lineno}" for call in calls if opens_text(call)]
    assert not found
