"""Cases of the families that are variations of GPT."""

GPT_LIKE = {}
