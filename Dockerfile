# On the CPU:   docker build --tag qwendet .
# On a GPU:     docker build --tag qwendet --build-arg BASE=nvidia/cuda:13.0.1-runtime-ubuntu24.04 --build-arg TORCH_INDEX= .
# Then:         docker run --rm --volume "$PWD:/work" qwendet validate config.yaml
ARG BASE=python:3.11-slim
FROM ${BASE}
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# What every base has of these is left as it is; a CUDA base has no Python.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends fonts-dejavu-core make \
    && { command -v python3 || apt-get install --yes --no-install-recommends python3 python3-venv; } \
    && rm -rf /var/lib/apt/lists/*

COPY . /qwendet
WORKDIR /qwendet
RUN make .venv/.installed TORCH_INDEX="${TORCH_INDEX}"
ENV PATH=/qwendet/.venv/bin:${PATH}

WORKDIR /work
ENTRYPOINT ["qwendet"]
