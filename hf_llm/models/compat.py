"""What differs between the versions of transformers that may open a checkpoint, and nothing else.

The first neighbour that configuration.py imports: a version that is too old stops here, with a sentence. Public
interfaces are looked up when they are used, so that a name which a version lacks costs no more than what needs it.
"""

import functools
import inspect
import warnings
from collections.abc import Callable
from dataclasses import fields

import torch
import transformers
from packaging.version import Version
from transformers.utils import logging


# minor releases of transformers that the tests run with (`make versions`), oldest and newest
TESTED_TRANSFORMERS = ("5.16", "5.24")


def check_version(found: str = transformers.__version__) -> None:
    """
    Raise ImportError for a transformers that is older than the tested range; warn once for one that is newer.
    """
    release = Version(found).release[:2]
    oldest, newest = (Version(version).release for version in TESTED_TRANSFORMERS)
    tested = f"tested with transformers {TESTED_TRANSFORMERS[0]} to {TESTED_TRANSFORMERS[1]}; {found} is installed"
    if release < oldest:
        raise ImportError(
            f"hf_llm was {tested}, which is too old: pip install 'transformers>={TESTED_TRANSFORMERS[0]}'."
        )
    if release > newest:
        logging.get_logger("transformers").warning_once(
            f"hf_llm was {tested}. If something is wrong, update hf_llm (of a checkpoint's code: `hf-llm update`), or "
            f"install transformers {TESTED_TRANSFORMERS[1]}."
        )


check_version()

# This needs transformers 5, which is certain from here on.
from transformers.modeling_outputs import BaseModelOutputWithPast  # noqa: E402


# `past_key_values` until 5.23; `cache` from 5.24 on: in outputs, in generate's keywords and in what it passes
CACHE = "cache" if "cache" in {field.name for field in fields(BaseModelOutputWithPast)} else "past_key_values"
CACHE_NAMES = ["past_key_values", "cache"]


def takes_cache(forward: Callable) -> Callable:
    """
    Decorator of a forward with a parameter `past_key_values`: takes the cache under its new name, `cache`, as well,
    and shows both in its signature. The old name is deprecated where transformers deprecates it.

    A paged cache (continuous batching), which is divided into blocks, remains a keyword argument `cache`: the
    attention modules take it.
    """

    @functools.wraps(forward)
    def wrapper(self, *args, **kwargs):
        old = kwargs.get("past_key_values")
        if old is not None and CACHE == "cache" and not torch.compiler.is_compiling():
            warnings.warn("`past_key_values` is deprecated. Use `cache` instead.", FutureWarning, stacklevel=2)
        if not hasattr(kwargs.get("cache"), "num_blocks"):
            cache = kwargs.pop("cache", None)
            if cache is not None and old is not None:
                raise ValueError("Pass the cache once: as `past_key_values` or as `cache`.")
            if cache is not None:
                kwargs["past_key_values"] = cache
        return forward(self, *args, **kwargs)

    signature = inspect.signature(forward)
    parameters = list(signature.parameters.values())
    place = len(parameters) - (parameters[-1].kind is inspect.Parameter.VAR_KEYWORD)
    parameters.insert(place, inspect.Parameter("cache", inspect.Parameter.KEYWORD_ONLY, default=None))
    wrapper.__signature__ = signature.replace(parameters=parameters)
    return wrapper


def update_paged_cache(key, value, layer_idx: int, kwargs: dict) -> tuple:
    """
    Keys and values (1, heads, tokens, head_dim) with those of a paged cache, `kwargs["cache"]`, before them.

    Until 5.23 the attention functions of transformers do this themselves; from 5.24 on the model does.
    """
    if CACHE == "past_key_values":
        return key, value
    return kwargs.pop("cache").update(key, value, layer_idx, kwargs=kwargs)


def sub_config(cls: type) -> object:
    """A part of a composite configuration, in `sub_configs_defaults`: a specification, which newer versions make of a
    class by themselves, and 5.20 does not."""
    specification = getattr(transformers.configuration_utils, "SubConfigSpec", None)
    return cls if specification is None else specification(config_class=cls)
