"""Small models of Transformers with random weights, and a `Trainer` that trains them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

os.environ["HF_HUB_OFFLINE"] = "1"

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the library, about others
    import transformers


def language_model() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_layer=1,
            n_embd=8,
            n_head=2,
            vocab_size=16,
            n_positions=8,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    return model


def classifier() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=16,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            max_position_embeddings=8,
            hidden_dropout_prob=0,
            attention_probs_dropout_prob=0,
        )
    )
    return model


def texts(*, labels: bool) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(16, (16, 6), generator=generator)
    return [{"input_ids": row, "labels": row[0] % 2 if labels else row} for row in ids]


def train(
    model: nn.Module,
    directory: Path,
    *callbacks: Any,
    labels: bool = False,
    resume: str | None = None,
    measure: Callable[[Any], dict[str, float]] | None = None,
    **options: Any,
) -> None:
    arguments = {
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.01,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": [],
        "dataloader_pin_memory": False,
        **options,
    }
    trainer = transformers.Trainer(
        model,
        transformers.TrainingArguments(str(directory), **arguments),
        train_dataset=texts(labels=labels),
        eval_dataset=None if measure is None else texts(labels=labels),
        compute_metrics=measure,
        callbacks=list(callbacks),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train(resume_from_checkpoint=resume)
