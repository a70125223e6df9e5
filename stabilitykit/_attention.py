"""How second moments pass attention and products of hidden tensors."""

from __future__ import annotations
