"""The embedded data sets as the recipes import them, and a datasets cache of the tests' own."""

import datasets
import pytest

from hf_llm.data.sources import import_recipes_data


import_recipes_data()


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory):
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    yield datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = before
