"""The network behind a codec, in torch or ONNX: exact chunks of files, padded batches of clips."""
