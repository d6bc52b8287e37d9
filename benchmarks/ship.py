"""Put a trained model into the package.

    python benchmarks/ship.py MODEL_FOLDER [NAME]

Copies weights and card to ``bidsseg/models/shipped/NAME``; without a name the model keeps its own. Where the new card
tells no ``least_quality``, that of the model that was there stays.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from bidsseg.bids.sidecars import write_text_atomic
from bidsseg.models.card import CARD, FOLDER, read_card


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("name", nargs="?")
    options = parser.parse_args()
    card = read_card(options.model)
    target = FOLDER / (options.name or card.name)
    before = read_card(target) if target.is_dir() else card
    target.mkdir(exist_ok=True)
    shutil.copyfile(card.weights, target / card.weights.name)
    shipped = replace(card, name=target.name, least_quality=card.least_quality or before.least_quality)
    write_text_atomic(target / CARD, shipped.to_json())
    print(f"{target}: {card.size_mb:.1f} MB")


if __name__ == "__main__":
    main()
