# One image for workers and the read service. Dependencies come first: they change less often than the code.
FROM python:3.13-slim AS build
WORKDIR /src
RUN python3 -m venv /app && /app/bin/pip install --no-cache-dir --disable-pip-version-check hatchling
COPY producer/pyproject.toml producer/README.md producer/
COPY producer/tallystream producer/tallystream
COPY worker/pyproject.toml worker/README.md worker/
COPY worker/tallystream_worker worker/tallystream_worker
RUN /app/bin/pip install --no-cache-dir --disable-pip-version-check ./producer ./worker

FROM python:3.13-slim
COPY --from=build /app /app
COPY config/tallystream.toml /etc/tallystream/tallystream.toml
ENV PATH=/app/bin:$PATH PYTHONUNBUFFERED=1
USER 65532:65532
WORKDIR /etc/tallystream
ENTRYPOINT ["tallystream"]
CMD ["--help"]
