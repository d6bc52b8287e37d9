# bidsseg as a BIDS App.
#
#   docker build -t bidsseg .                                      for processors
#   docker build -t bidsseg:cuda --build-arg VARIANT=cuda .        for NVIDIA GPUs
#   docker build --build-arg BASE=python:3.11-slim-bookworm .      another base: with Python 3.11, or with apt
#
# Runs with a read-only root, as any user, without a home, without network, with only input and output mounted.

ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
COPY docker/install.sh /source/docker/
RUN /source/docker/install.sh python python3-venv
# Settings of pip, for those who build behind a mirror.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
ARG PIP_FIND_LINKS
ARG PIP_CERT
ARG VARIANT=cpu
COPY docker/requirements-${VARIANT}.txt /source/docker/
RUN /source/docker/install.sh packages ${VARIANT}
COPY pyproject.toml README.md LICENSE run.py /source/
COPY bidsseg /source/bidsseg
RUN /source/docker/install.sh bidsseg

FROM ${BASE}
COPY docker/install.sh /tmp/
RUN /tmp/install.sh python && rm /tmp/install.sh
COPY --from=build /opt/bidsseg /opt/bidsseg
COPY --from=build /version /version
# Nothing of the host's shall be found before the image's own, such as packages in a home that Singularity mounts.
# With one arena the C library keeps the large blocks of a network that runs in a thread, as it does in Dask's workers.
ENV PATH=/opt/bidsseg/bin:$PATH \
    PYTHONNOUSERSITE=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MALLOC_ARENA_MAX=1 \
    LC_ALL=C.UTF-8 \
    BIDSSEG_CONTAINER_TYPE=docker \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
ARG VERSION=unknown
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="bidsseg" \
      org.opencontainers.image.description="A BIDS App that segments brain MRI with deep networks, and trains them" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.licenses="Apache-2.0 AND BSD-2-Clause AND CC-BY-NC-4.0"
ENTRYPOINT ["/opt/bidsseg/bin/python", "/opt/bidsseg/run.py"]
