"""Wrote lightning.ckpt, once, with pytorch-lightning 2.6.6 and torch 2.13.0.

    pip install pytorch-lightning && python tests/unit/graph/sources/data/make_lightning.py

A real Trainer's file; Lightning itself is not needed to read it, and is not installed for
the tests.
"""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import nn


class Tiny(pl.LightningModule):
    def __init__(self, channels: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        return self(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-2)


if __name__ == "__main__":
    torch.manual_seed(0)
    loader = torch.utils.data.DataLoader(torch.randn(16, 6), batch_size=4)
    model = Tiny(channels=6, classes=2)
    trainer = pl.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.fit(model, loader)
    trainer.save_checkpoint(Path(__file__).with_name("lightning.ckpt"))
    print(model(torch.ones(1, 6)).tolist())
