"""Pretraining on transformers' Trainer: exact resumption, optimizers, throughput, and a report of every run."""
