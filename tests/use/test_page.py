"""`hf-llm demo`: the page answers, and a browser draws it. Needs Gradio, and Chromium to draw (`make test-page`)."""

import shutil
import subprocess

import pytest
from transformers import AutoModelForSequenceClassification
from tuning.small_models import save_checkpoint, small_tokenizer

from hf_llm.use import open_model
from hf_llm.use.page import make_page
from hf_llm.use.tasks import Options
from hf_llm_cli import main


def test_without_gradio_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    save_checkpoint(tmp_path, "decoder")
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    with pytest.raises(SystemExit) as status:
        main(["demo", str(tmp_path)])
    assert status.value.code == 2 and "pip install 'hf_llm[demo]'" in capsys.readouterr().err


@pytest.fixture
def served():
    """`served(path)`: the page of a checkpoint on a free port, closed at the end."""
    pytest.importorskip("gradio")
    pages = []

    def serve(path) -> str:
        page = make_page(open_model(str(path), options=Options(max_new_tokens=5)))
        pages.append(page)
        return page.launch(prevent_thread_lock=True, quiet=True, share=False)[1]

    yield serve
    for page in pages:
        page.close()


def seen(url: str, folder) -> str:
    """The page as a browser without a screen draws it."""
    chromium = shutil.which("chromium") or pytest.skip("no chromium")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    words = [chromium, *flags.split(), f"--user-data-dir={folder}", "--virtual-time-budget=20000", "--dump-dom", url]
    return subprocess.run(words, capture_output=True, text=True, timeout=120).stdout


def test_classes(served, tmp_path):
    save_checkpoint(tmp_path, "encoder")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, id2label={0: "bad", 1: "good"})
    model.save_pretrained(tmp_path / "trained")
    small_tokenizer("encoder").save_pretrained(tmp_path / "trained")
    url = served(tmp_path / "trained")
    from gradio_client import Client

    shown = Client(url, verbose=False).predict("red cat", api_name="/predict")
    assert {entry["label"] for entry in shown["confidences"]} == {"bad", "good"}
    page = seen(url, tmp_path / "browser")
    assert "classify" in page and "textarea" in page and "Submit" in page


def test_chat(served, tmp_path):
    save_checkpoint(tmp_path, "decoder")
    url = served(tmp_path)
    from gradio_client import Client

    said = Client(url, verbose=False).predict("red cat", api_name="/predict")
    model = open_model(str(tmp_path), options=Options(max_new_tokens=5))
    assert str(said).strip() == model([{"text": "red cat"}])[0]["prediction"]
    assert "textarea" in seen(url, tmp_path / "browser")
