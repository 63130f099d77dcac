"""What a run records of the text that it is trained on, where its recipe says more of it than one whole source."""

from __future__ import annotations

from typing import Any

from mixerzoo.data.config import DataConfig, HfSource, StdlibSource, TextSource
from mixerzoo.data.entry import PreparedData


def text_record(config: DataConfig, prepared: PreparedData) -> dict[str, Any]:
    """The sources with the shares asked for and reached, by tokens, and where the training text was cut.

    Args:
        config: what was asked for.
        prepared: what there is.

    Returns:
        ``train_tokens``, ``train_documents``, the limits that were set, and ``sources``; nothing where one source is
        taken whole.
    """
    asked = {"max_documents": config.max_documents, "max_tokens": config.max_tokens}
    limits = {name: value for name, value in asked.items() if value is not None}
    if prepared.mixture is None and not limits:
        return {}
    total = len(prepared.train.tokens)
    record: dict[str, Any] = {"train_tokens": total, "train_documents": prepared.train.num_documents, **limits}
    if config.sources is not None and prepared.mixture is not None:
        record["sources"] = [
            {
                "source": name_of(each.source),
                "weight": each.weight,
                "share": round(counts.num_tokens / total, 6),
                "tokens": counts.num_tokens,
                "documents": counts.num_documents,
            }
            for each, counts in zip(config.sources, prepared.mixture.sources, strict=True)
        ]
        if prepared.validation_mixture is not None:
            for source, counts in zip(record["sources"], prepared.validation_mixture.sources, strict=True):
                source |= {"validation_tokens": counts.num_tokens, "validation_documents": counts.num_documents}
    return record


def name_of(source: StdlibSource | TextSource | HfSource) -> str:
    """What to call a source in a line."""
    if isinstance(source, HfSource):
        return f"{source.name} ({source.path})"
    return f"{source.name} ({', '.join(source.paths)})" if isinstance(source, TextSource) else source.name
