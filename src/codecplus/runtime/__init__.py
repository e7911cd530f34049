"""What a network runs on: `torch_network` for models in torch, `onnx_network` for exported ones, without torch."""
