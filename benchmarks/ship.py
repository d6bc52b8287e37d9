"""Copy a trained model into the package.

    python benchmarks/ship.py MODEL_FOLDER [NAME]

The script copies weights and card to ``bidsseg/models/shipped/NAME``; the default is the name of the model. Title,
description, licence, citations and what the brain mask contains are those in ``shipped.toml``, which concern the data
that the model was trained on. If the new card has no ``least_quality``, that of the model that is replaced is kept.
"""

from __future__ import annotations

import argparse
import tomllib
from dataclasses import replace
from pathlib import Path

from bidsseg.models.card import FOLDER, read_card
from bidsseg.models.library import load_model, save_model

TEXTS = Path(__file__).with_name("shipped.toml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("name", nargs="?")
    options = parser.parse_args()
    model = load_model(str(options.model))
    target = FOLDER / (options.name or model.card.name)
    before = read_card(target) if target.is_dir() else model.card
    least_quality = model.card.least_quality or before.least_quality
    target.mkdir(exist_ok=True)
    texts = tomllib.loads(TEXTS.read_text(encoding="utf-8")).get(target.name, {})
    card = replace(model.card, name=target.name, least_quality=least_quality, **texts)
    card = save_model(card, model.network.state_dict(), target)
    print(f"{target}: {card.size_mb:.1f} MB")


if __name__ == "__main__":
    main()
