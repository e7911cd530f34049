"""Audio codec metrics for `evaluate`: `evaluate.load("FOLDER/audio_codec", "pesq_wb")`, or any
other metric's name.
"""

import datasets
import evaluate
import numpy as np

from codecplus.eval.metrics import METRICS, default_metrics, score

_DESCRIPTION = "Full-reference metrics of coded audio: " + ", ".join(METRICS)
_INPUTS = """
predictions, references: lists of mono clips, each a list of samples at ±1; the two clips of a pair
    have equal length
sample_rate: of all of them, Hz
Returns for each metric its mean over the clips that have a score, and under METRIC_scores one
value per clip,
None where there is none, with the reasons under METRIC_reasons.
"""


class AudioCodec(evaluate.Metric):
    """One metric by its name, or all the default ones."""

    def _info(self) -> evaluate.MetricInfo:
        samples = datasets.Sequence(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": samples, "references": samples}),
        )

    def _compute(self, predictions, references, sample_rate: int) -> dict:
        names = default_metrics() if self.config_name == "default" else [self.config_name]
        pairs = [
            (np.asarray(r, np.float32), np.asarray(p, np.float32))
            for r, p in zip(references, predictions, strict=True)
        ]
        scores = [score(reference, estimate, sample_rate, names) for reference, estimate in pairs]
        result: dict = {}
        for name in names:
            values = [clip[name].value for clip in scores]
            known = [value for value in values if value is not None]
            result[name] = float(np.mean(known)) if known else None
            result[f"{name}_scores"] = values
            result[f"{name}_reasons"] = [clip[name].reason for clip in scores]
        return result
