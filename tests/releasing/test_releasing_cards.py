"""The cards, read by the library of the hub they are made for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard, ModelCard
from made_up import attack, audited

from knowledge_recycling.releasing.cards import write_cards
from knowledge_recycling.reporting.result import Result

NAME = 'a "set": #1'
ABOUT: dict[str, Any] = {
    "images": 123,
    "copies": {"exact": 2, "near": 5, "threshold": 3.25},
    "override": None,
    "refused": [],
}


def cards_of(result: Result, folder: Path, **about: Any) -> tuple[ModelCard, DatasetCard]:
    dataset = result.dataset.model_copy(update={"name": NAME})
    write_cards(folder, result.model_copy(update={"dataset": dataset}), ABOUT | about)
    texts = [(folder / name).read_text(encoding="utf-8") for name in ("MODEL_CARD.md", "README.md")]
    return ModelCard(texts[0]), DatasetCard(texts[1])


def test_the_front_matter_is_what_the_hub_reads(tmp_path: Path) -> None:
    model, data = cards_of(audited(), tmp_path)
    assert model.data.license == data.data.license == "other"
    [evaluation] = model.data.eval_results
    assert (evaluation.dataset_name, evaluation.metric_type) == (NAME, "accuracy")
    assert evaluation.metric_value == pytest.approx(0.9)
    assert data.data.pretty_name == f"synthetic {NAME}"
    assert data.data.configs[0]["data_files"] == [{"split": "train", "path": "synthetic.parquet"}]


def test_the_strongest_attack_on_each_released_target_is_in_both(tmp_path: Path) -> None:
    changes = {"student": {"lira": attack(0.51), "rmia": attack(0.57, 0.031)}}
    result = audited(**changes, **{"dp-sgd 8": {"lira": attack(0.77)}})
    for card in cards_of(result, tmp_path):
        assert "| student | rmia | 0.57 | 3.1 |" in card.text
        assert "| synthetic set, atypical canaries | lira | 0.6 | 1.2 |" in card.text
        assert "0.77" not in card.text
        assert "| teacher | lira" not in card.text


def test_copies_and_the_size_attacked_are_stated(tmp_path: Path) -> None:
    _, data = cards_of(audited(), tmp_path)
    assert "2 exact and 5 near copies" in data.text
    assert "less than 3.25 grey values" in data.text
    assert "about 50 images" in data.text
    assert "123" in data.text


def test_without_an_audit_both_say_that_nothing_is_known(tmp_path: Path) -> None:
    never = audited().model_copy(update={"audit": None, "privacy": {}})
    for card in cards_of(never, tmp_path, override="no | reason", refused=["there is no audit"]):
        assert "not audited" in card.text
        assert "no \\| reason" in card.text
