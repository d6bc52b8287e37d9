"""Protocols (the regions of a label map) and the relations between them."""

from bidsseg.labels.protocol import Protocol, Region, load_protocol, shipped_protocols
from bidsseg.labels.relation import Relation, covers_brain, load_relation

__all__ = ["Protocol", "Region", "Relation", "covers_brain", "load_protocol", "load_relation", "shipped_protocols"]
