# codecplus for data sets, on NVIDIA GPUs: docker build -f docker/tokenize.Dockerfile -t codecplus-tokenize .
#   docker run --rm --gpus all -v "$PWD:/data" codecplus-tokenize --data recordings/ --model dac-16khz-live -o tokens/ --device cuda
# torch's wheels bring CUDA along; the host needs a driver only.
FROM python:3.12-slim-bookworm
WORKDIR /source
COPY . .
RUN python -m venv /venv \
    && /venv/bin/pip install --no-cache-dir -c constraints.txt torch \
    && /venv/bin/pip install --no-cache-dir -c constraints.txt '.[formats,tokenize]' \
    && rm -rf /source/* \
    && useradd --uid 1000 --create-home codecplus
USER 1000
ENV PATH=/venv/bin:$PATH HF_HOME=/tmp/huggingface
WORKDIR /data
ENTRYPOINT ["codecplus", "tokenize"]
