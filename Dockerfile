# Built from the root of the repository: docker build -t recparams .
ARG PYTHON_IMAGE=python:3.12-slim-bookworm
FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
RUN python -m venv /opt/recparams
COPY constraints.txt pyproject.toml README.md ./
COPY clients/python clients/python
COPY rl rl
COPY server server
RUN /opt/recparams/bin/pip install --no-cache-dir --constraint constraints.txt ./clients/python .

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/recparams /opt/recparams
RUN useradd --system --create-home --home-dir /var/lib/recparams recparams
USER recparams
WORKDIR /var/lib/recparams
ENV PATH=/opt/recparams/bin:$PATH \
    NUMBA_CACHE_DIR=/var/lib/recparams/numba \
    RECPARAMS_ENVIRONMENT=production \
    RECPARAMS_HOST=0.0.0.0
EXPOSE 50051
ENTRYPOINT ["recparams"]
CMD ["serve"]
