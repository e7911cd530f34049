"""The evaluation harness: codecs, data, metrics, results and reports."""
