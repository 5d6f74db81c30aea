# Built from the root of the repository: docker build -t recparams .
# To pin the base: --build-arg PYTHON_IMAGE=python:3.12-slim-bookworm@sha256:...
# With traces and the deep learners: --build-arg EXTRAS=otel,deep (torch is large).
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG EXTRAS=""
WORKDIR /src
RUN python -m venv --without-pip /opt/recparams
COPY constraints.txt pyproject.toml README.md ./
COPY clients/python clients/python
COPY rl rl
COPY server server
COPY simulation simulation
RUN pip --python /opt/recparams/bin/python install --no-cache-dir --constraint constraints.txt \
    ./clients/python ".${EXTRAS:+[$EXTRAS]}"
# For any CPU of the architecture: what is compiled for the builder's would not do for others.
# -P: what was installed, not what lies in this folder.
ENV NUMBA_CACHE_DIR=/opt/recparams/numba \
    NUMBA_CPU_NAME=generic
RUN /opt/recparams/bin/python -P -m recparams_server.jobs.warm

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/recparams /opt/recparams
COPY deploy/entrypoint.sh /opt/recparams/bin/entrypoint.sh
# Of all the image a container writes to /tmp alone.
ENV PATH=/opt/recparams/bin:$PATH \
    NUMBA_CACHE_DIR=/tmp/numba \
    NUMBA_CPU_NAME=generic \
    RECPARAMS_ENVIRONMENT=production \
    RECPARAMS_HOST=0.0.0.0
# A number, because Kubernetes cannot tell whether a name is root's.
USER 10001:10001
EXPOSE 50051
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s CMD ["recparams", "health"]
ENTRYPOINT ["/opt/recparams/bin/entrypoint.sh"]
CMD ["serve"]
