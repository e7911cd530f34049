"""The evaluation harness: codecs, data, metrics, results and reports.

from codecplus.eval import EvaluationConfig, build_leaderboard, compare, run_evaluation

out = run_evaluation(EvaluationConfig(codecs=["opus"], bitrates=[6, 12], data="recordings",
out="results")) build_leaderboard([out], html="board.html")
"""

from typing import TYPE_CHECKING

from codecplus._lazy import lazy_names

if TYPE_CHECKING:
    from codecplus.eval.comparison import Comparison, compare
    from codecplus.eval.config import EvaluationConfig
    from codecplus.eval.listening import analyse, load_ratings
    from codecplus.eval.metrics import METRICS, Score, score
    from codecplus.eval.report.leaderboard import build_leaderboard
    from codecplus.eval.results import Results, load_results
    from codecplus.eval.runner import run_evaluation

# Imported when first used, so that the command line can list its verbs at once.
__getattr__ = lazy_names(
    __name__,
    {
        "METRICS": "metrics",
        "analyse": "listening",
        "load_ratings": "listening",
        "Score": "metrics",
        "score": "metrics",
        "Comparison": "comparison",
        "compare": "comparison",
        "EvaluationConfig": "config",
        "build_leaderboard": "report.leaderboard",
        "Results": "results",
        "load_results": "results",
        "run_evaluation": "runner",
    },
)
__all__ = [
    "METRICS",
    "Comparison",
    "EvaluationConfig",
    "Results",
    "Score",
    "analyse",
    "build_leaderboard",
    "compare",
    "load_ratings",
    "load_results",
    "run_evaluation",
    "score",
]
