"""Words and small pieces that all sections of the report share."""

import base64
import math
from typing import Any

NAMES = {
    "macro_map": "macro mAP", "micro_map": "micro mAP", "macro_f1": "macro F1", "micro_f1": "micro F1",
    "macro_iou": "macro IoU", "accuracy": "accuracy", "average_precision": "average precision", "iou": "IoU",
    "f1": "F1", "precision": "precision", "recall": "recall", "purity": "purity", "map": "mAP of retrieval",
    "trustworthiness": "trustworthiness", "auroc": "AUROC", "nmi": "NMI", "ari": "ARI", "silhouette": "silhouette",
    "by_chance": "by chance", "one_cluster": "one cluster",
}  # fmt: skip


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def picture(content: bytes) -> str:
    """A PNG as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def safe(svg: str) -> Any:
    """Markup of ours, whose names are escaped already, as the template takes it in unchanged."""
    import markupsafe

    return markupsafe.Markup(svg)


def figure(value: Any) -> str:
    """Three decimals; a dash for what is no number."""
    return f"{value:.3f}".replace("-", "−") if isinstance(value, int | float) and math.isfinite(value) else "–"


def signed(value: float) -> str:
    """Three decimals with their sign, which what is 0 to three decimals has none of."""
    text = f"{value:+.3f}".replace("-", "−")
    return "0.000" if text in ("+0.000", "−0.000") else text


def sentence(text: str) -> str:
    """With a capital at its beginning, unless its first word has one inside, as mAP has."""
    return text[:1].upper() + text[1:] if text.split(" ")[0].islower() else text
