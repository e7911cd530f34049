"""What the machine is: output files, devices, processes. Knows nothing of audio or models."""
