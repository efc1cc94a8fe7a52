"""From a pretrained checkpoint to a model that does a job: fine-tuning of every kind, with or without adapters."""
